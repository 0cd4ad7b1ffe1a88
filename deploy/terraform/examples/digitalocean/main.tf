# A coordinator at a reserved address and nodes in any region, on DigitalOcean.

terraform {
  required_version = ">= 1.9.0"

  required_providers {
    digitalocean = {
      source  = "digitalocean/digitalocean"
      version = "~> 2.71"
    }
  }
}

# Its token is read from DIGITALOCEAN_TOKEN.
provider "digitalocean" {}

variable "operator_range" {
  description = "From where operators come by SSH, in CIDR form."
  type        = string
  nullable    = false
}

variable "ssh_key_fingerprints" {
  description = "Whose SSH keys may log in as root."
  type        = list(string)
  nullable    = false
}

variable "release" {
  description = "The release to install."
  type = object({
    version = string
    url     = string
    sha256  = string
  })
  nullable = false
}

variable "region" {
  description = "Where the coordinator runs."
  type        = string
  default     = "fra1"
  nullable    = false
}

variable "nodes" {
  description = "The nodes: name and region."
  type        = map(string)
  default     = {}
  nullable    = false
}

variable "join_tokens" {
  description = "By node, its join token. A node without one is installed, and joined by hand."
  type        = map(string)
  default     = {}
  nullable    = false
  sensitive   = true
}

module "coordinator" {
  source = "../../modules/digitalocean"

  role                 = "coordinator"
  name                 = "coordinator"
  region               = var.region
  reserved_ip          = true
  release_version      = var.release.version
  release_url          = var.release.url
  release_sha256       = var.release.sha256
  ssh_key_fingerprints = var.ssh_key_fingerprints
  ssh_sources          = [var.operator_range]
  metrics_sources      = [var.operator_range]
}

module "node" {
  source   = "../../modules/digitalocean"
  for_each = var.nodes

  role                 = "node"
  name                 = each.key
  region               = each.value
  release_version      = var.release.version
  release_url          = var.release.url
  release_sha256       = var.release.sha256
  ssh_key_fingerprints = var.ssh_key_fingerprints
  ssh_sources          = [var.operator_range]
  metrics_sources      = [var.operator_range]
  join_token           = lookup(var.join_tokens, each.key, null)
}

output "coordinator_url" {
  description = "Where automation connects."
  value       = module.coordinator.coordinator_url
}

output "token_command" {
  description = "Makes a token and prints it."
  value       = module.coordinator.token_command
  sensitive   = true
}

output "join_command" {
  description = "Makes a token and prints the line by which a machine joins."
  value       = module.coordinator.join_command
  sensitive   = true
}

output "metrics_targets" {
  description = "What Prometheus may scrape."
  value       = concat(module.coordinator.metrics_targets, flatten([for node in module.node : node.metrics_targets]))
}
