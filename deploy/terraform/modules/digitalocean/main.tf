# One machine of a mesh as a droplet: what it is and does is decided by ../mesh, where it runs and who reaches it here.

module "mesh" {
  source = "../mesh"

  role            = var.role
  name            = var.name
  release_sha256  = var.release_sha256
  release_url     = var.release_url
  release_version = var.release_version
  wait_seconds    = var.wait_seconds

  addresses        = concat(var.addresses, digitalocean_reserved_ip.this[*].ip_address)
  coordinator_port = var.coordinator_port
  listen_port      = var.listen_port
  websocket_port   = var.websocket_port

  network_name  = var.network_name
  ipv4_pool     = var.ipv4_pool
  zone          = var.zone
  relay_enabled = var.relay_enabled

  join_token = var.join_token

  # The firewall below does it.
  firewall        = "cloud"
  ssh_sources     = var.ssh_sources
  ssh_port        = var.ssh_port
  metrics_sources = var.metrics_sources
  metrics_port    = var.metrics_port
}

# Made before the droplet, so that a coordinator knows its address from its first start on, and keeps it on another droplet.
resource "digitalocean_reserved_ip" "this" {
  count = var.reserved_ip ? 1 : 0

  region = var.region
}

resource "digitalocean_droplet" "this" {
  name       = var.name
  region     = var.region
  size       = var.size
  image      = var.image
  ssh_keys   = var.ssh_key_fingerprints
  user_data  = module.mesh.user_data
  ipv6       = var.ipv6
  monitoring = var.monitoring
  backups    = var.backups
  vpc_uuid   = var.vpc_uuid
  tags       = var.tags

  lifecycle {
    # What is read at the first boot alone: a used token, a newer release or another operator's key is no reason to destroy a
    # machine, and a coordinator's root key with it. `terraform apply -replace=...` does it where it is meant.
    ignore_changes = [user_data, ssh_keys]
  }
}

resource "digitalocean_reserved_ip_assignment" "this" {
  count = var.reserved_ip ? 1 : 0

  ip_address = digitalocean_reserved_ip.this[0].ip_address
  droplet_id = tonumber(digitalocean_droplet.this.id)
}

locals {
  everybody = ["0.0.0.0/0", "::/0"]

  inbound = concat(
    [for rule in module.mesh.firewall_rules : { protocol = rule.protocol, ports = tostring(rule.port), sources = rule.sources }],
    # Path MTU discovery needs it.
    [{ protocol = "icmp", ports = null, sources = local.everybody }],
  )
}

resource "digitalocean_firewall" "this" {
  name        = var.name
  droplet_ids = [tonumber(digitalocean_droplet.this.id)]

  dynamic "inbound_rule" {
    for_each = local.inbound

    content {
      protocol         = inbound_rule.value.protocol
      port_range       = inbound_rule.value.ports
      source_addresses = inbound_rule.value.sources
    }
  }

  dynamic "outbound_rule" {
    for_each = ["tcp", "udp"]

    content {
      protocol              = outbound_rule.value
      port_range            = "1-65535"
      destination_addresses = local.everybody
    }
  }

  outbound_rule {
    protocol              = "icmp"
    destination_addresses = local.everybody
  }
}

resource "digitalocean_project_resources" "this" {
  count = var.project_id == null ? 0 : 1

  project   = var.project_id
  resources = concat([digitalocean_droplet.this.urn], digitalocean_reserved_ip.this[*].urn)
}
