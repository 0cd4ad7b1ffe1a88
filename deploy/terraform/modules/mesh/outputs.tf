output "user_data" {
  description = "What cloud-init is given for the machine's first boot. It holds the join token, if there is one."
  value       = local.user_data
  sensitive   = true
}

output "firewall_rules" {
  description = "What must be open towards the machine: `description`, `protocol` (tcp or udp), `port`, `sources` (CIDR). Everything else may be closed; ICMP should pass."
  value       = local.firewall_rules
}

output "coordinator_endpoint" {
  description = "Where nodes connect, `host:port`; null unless the role is `coordinator`."
  value       = local.is_coordinator ? "${local.hosts[0]}:${var.coordinator_port}" : null
}

output "coordinator_url" {
  description = "Where automation connects, gRPC or JSON over HTTPS; null unless the role is `coordinator`."
  value       = local.is_coordinator ? "https://${local.hosts[0]}:${var.coordinator_port}" : null
}

output "token_command" {
  description = "One line that makes a join token on the coordinator over SSH and prints it, for `TF_VAR_...`; null unless the role is `coordinator`."
  value       = local.is_coordinator ? local.token_command : null
  sensitive   = true
}

output "join_command" {
  description = "One line that makes a join token on the coordinator over SSH and prints the line to run on the machine that shall join; null unless the role is `coordinator`."
  value       = local.is_coordinator ? "printf 'sudo meshctl join --token %s\\n' \"$(${local.token_command})\"" : null
  sensitive   = true
}

output "metrics_targets" {
  description = "What Prometheus may scrape, `host:port`: none unless `metrics_sources` lets somebody, and for a node or relay whose `addresses` are not known."
  value       = length(var.metrics_sources) > 0 && length(local.hosts) > 0 ? ["${local.hosts[0]}:${local.metrics_port}"] : []
}

output "metrics_port" {
  description = "The TCP port of its metrics."
  value       = local.metrics_port
}
