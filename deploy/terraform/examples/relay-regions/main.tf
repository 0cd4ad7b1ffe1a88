# A relay in each region where nodes sit behind NATs that leave no straight path: their packets then stay on their continent.

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

variable "coordinator_name" {
  description = "The coordinator's DNS name, which is made to point at `coordinator_address`."
  type        = string
  nullable    = false
}

variable "relay_regions" {
  description = "Where relays run."
  type        = set(string)
  default     = []
  nullable    = false
}

variable "relay_tokens" {
  description = "By region, the token of its relay: `meshctl token create --relay`. A relay without one is installed, and joined by hand."
  type        = map(string)
  default     = {}
  nullable    = false
  sensitive   = true
}

# It only says who is a member: relaying is left to those that stand nearer.
module "coordinator" {
  source = "../../modules/digitalocean"

  role                 = "coordinator"
  name                 = "coordinator"
  region               = "fra1"
  reserved_ip          = true
  addresses            = [var.coordinator_name]
  relay_enabled        = false
  release_version      = var.release.version
  release_url          = var.release.url
  release_sha256       = var.release.sha256
  ssh_key_fingerprints = var.ssh_key_fingerprints
  ssh_sources          = [var.operator_range]
}

module "relay" {
  source   = "../../modules/digitalocean"
  for_each = var.relay_regions

  role                 = "relay"
  name                 = "relay-${each.key}"
  region               = each.key
  release_version      = var.release.version
  release_url          = var.release.url
  release_sha256       = var.release.sha256
  ssh_key_fingerprints = var.ssh_key_fingerprints
  ssh_sources          = [var.operator_range]
  join_token           = lookup(var.relay_tokens, each.key, null)
}

output "coordinator_address" {
  description = "What the coordinator's DNS name points at."
  value       = module.coordinator.ipv4_address
}

output "token_command" {
  description = "Makes a token for a node and prints it; with `--relay` behind it one for a relay."
  value       = module.coordinator.token_command
  sensitive   = true
}

output "relay_addresses" {
  description = "Where the relays are, by region."
  value       = { for region, relay in module.relay : region => relay.ipv4_address }
}
