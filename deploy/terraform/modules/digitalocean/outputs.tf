locals {
  # A node or relay finds its own address; from outside it is the droplet's.
  host = try(coalesce(concat(var.addresses, digitalocean_reserved_ip.this[*].ip_address)...), digitalocean_droplet.this.ipv4_address)
}

output "coordinator_endpoint" {
  description = "Where nodes connect, `host:port`; null unless the role is `coordinator`."
  value       = module.mesh.coordinator_endpoint
}

output "coordinator_url" {
  description = "Where automation connects, gRPC or JSON over HTTPS; null unless the role is `coordinator`."
  value       = module.mesh.coordinator_url
}

output "token_command" {
  description = "One line that makes a join token on the coordinator over SSH and prints it, for `TF_VAR_...`; null unless the role is `coordinator`."
  value       = module.mesh.token_command
  sensitive   = true
}

output "join_command" {
  description = "One line that makes a join token on the coordinator over SSH and prints the line to run on the machine that shall join; null unless the role is `coordinator`."
  value       = module.mesh.join_command
  sensitive   = true
}

output "metrics_targets" {
  description = "What Prometheus may scrape, `host:port`: none unless `metrics_sources` lets somebody."
  value       = length(var.metrics_sources) > 0 ? ["${strcontains(local.host, ":") ? "[${local.host}]" : local.host}:${module.mesh.metrics_port}"] : []
}

output "user_data" {
  description = "What cloud-init is given for the machine's first boot. It holds the join token, if there is one."
  value       = module.mesh.user_data
  sensitive   = true
}

output "firewall_rules" {
  description = "What is open towards the machine, besides ICMP: `description`, `protocol` (tcp or udp), `port`, `sources` (CIDR)."
  value       = module.mesh.firewall_rules
}

output "ipv4_address" {
  description = "The address to reach the machine at: the reserved one, if there is one, else the droplet's."
  value       = try(digitalocean_reserved_ip.this[0].ip_address, digitalocean_droplet.this.ipv4_address)
}

output "ipv6_address" {
  description = "The droplet's IPv6 address; empty or null without."
  value       = digitalocean_droplet.this.ipv6_address
}

output "droplet_id" {
  description = "The droplet's id."
  value       = digitalocean_droplet.this.id
}
