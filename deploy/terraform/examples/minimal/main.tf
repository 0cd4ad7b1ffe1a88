# A coordinator and nodes on whatever takes cloud-init's user-data: this renders it, and makes nothing.

terraform {
  required_version = ">= 1.9.0"
}

variable "coordinator_address" {
  description = "The DNS name or IP address at which nodes will find the coordinator."
  type        = string
  nullable    = false
}

variable "operator_range" {
  description = "From where operators come by SSH, in CIDR form."
  type        = string
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

variable "nodes" {
  description = "The names of the nodes."
  type        = set(string)
  default     = []
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
  source = "../../modules/mesh"

  role            = "coordinator"
  name            = "coordinator"
  addresses       = [var.coordinator_address]
  release_version = var.release.version
  release_url     = var.release.url
  release_sha256  = var.release.sha256
  ssh_sources     = [var.operator_range]
}

module "node" {
  source   = "../../modules/mesh"
  for_each = var.nodes

  role            = "node"
  name            = each.key
  release_version = var.release.version
  release_url     = var.release.url
  release_sha256  = var.release.sha256
  ssh_sources     = [var.operator_range]
  join_token      = lookup(var.join_tokens, each.key, null)
}

output "coordinator_user_data" {
  description = "What the coordinator's machine is given."
  value       = module.coordinator.user_data
  sensitive   = true
}

output "node_user_data" {
  description = "What each node's machine is given."
  value       = { for name, node in module.node : name => node.user_data }
  sensitive   = true
}

output "firewall_rules" {
  description = "What must be open towards each machine."
  value       = merge({ coordinator = module.coordinator.firewall_rules }, { for name, node in module.node : name => node.firewall_rules })
}

output "join_command" {
  description = "Makes a token and prints the line by which a machine joins."
  value       = module.coordinator.join_command
  sensitive   = true
}
