# What is asked of DigitalOcean, whose provider is mocked.

mock_provider "digitalocean" {
  mock_resource "digitalocean_droplet" {
    defaults = {
      id           = "3164494"
      urn          = "do:droplet:3164494"
      ipv4_address = "198.51.100.20"
      ipv6_address = "2001:db8::20"
    }
  }

  mock_resource "digitalocean_reserved_ip" {
    defaults = {
      ip_address = "203.0.113.1"
      urn        = "do:reservedip:203.0.113.1"
    }
  }
}

variables {
  role                 = "node"
  name                 = "web"
  region               = "fra1"
  release_version      = "0.1.0"
  release_url          = "https://releases.example.org/ringmesh-0.1.0-x86_64-linux.tar.gz"
  release_sha256       = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
  ssh_key_fingerprints = ["3b:16:e4:bf:8b:00:8b:b8:59:8c:a9:d3:f0:19:fa:45"]
  ssh_sources          = ["192.0.2.0/24"]
}

run "a_coordinator_at_a_reserved_address" {
  variables {
    role            = "coordinator"
    name            = "fra"
    reserved_ip     = true
    metrics_sources = ["192.0.2.7/32"]
    project_id      = "4e1bfbc3-dc3e-41f2-a18f-1b4d7ba71679"
  }

  assert {
    condition     = nonsensitive(strcontains(digitalocean_droplet.this.user_data, "advertise = [\"203.0.113.1:443\"]"))
    error_message = "The coordinator is not told its address at its first start."
  }

  assert {
    condition     = digitalocean_reserved_ip_assignment.this[0].droplet_id == 3164494 && digitalocean_reserved_ip_assignment.this[0].ip_address == "203.0.113.1"
    error_message = "The address is not assigned to the droplet."
  }

  assert {
    condition     = digitalocean_project_resources.this[0].resources == toset(["do:droplet:3164494", "do:reservedip:203.0.113.1"])
    error_message = "Not everything is in the project."
  }

  assert {
    condition     = digitalocean_firewall.this.droplet_ids == toset([3164494])
    error_message = "The firewall stands before something else."
  }

  assert {
    condition = toset([for rule in digitalocean_firewall.this.inbound_rule : "${rule.protocol} ${coalesce(rule.port_range, "-")} ${join(" ", rule.source_addresses)}"]) == toset([
      "tcp 443 0.0.0.0/0 ::/0", "udp 443 0.0.0.0/0 ::/0", "tcp 22 192.0.2.0/24", "tcp 9465 192.0.2.7/32", "icmp - 0.0.0.0/0 ::/0",
    ])
    error_message = "Other ports are open."
  }

  assert {
    condition     = output.coordinator_url == "https://203.0.113.1:443" && output.ipv4_address == "203.0.113.1" && output.metrics_targets == tolist(["203.0.113.1:9465"])
    error_message = "The outputs lead elsewhere."
  }

  assert {
    condition     = nonsensitive(output.join_command) == "printf 'sudo meshctl join --token %s\\n' \"$(ssh root@203.0.113.1 meshctl token create)\""
    error_message = "The join line is made by something else."
  }
}

run "a_coordinator_with_a_name" {
  state_key = "named"

  variables {
    role      = "coordinator"
    addresses = ["mesh.example.org"]
  }

  assert {
    condition     = length(digitalocean_reserved_ip.this) == 0 && output.coordinator_endpoint == "mesh.example.org:443"
    error_message = "The coordinator is told to be elsewhere."
  }
}

run "a_node" {
  state_key = "node"

  variables {
    join_token      = "mesh1_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    metrics_sources = ["192.0.2.7/32"]
    tags            = ["env:prod"]
  }

  assert {
    condition     = issensitive(digitalocean_droplet.this.user_data) && nonsensitive(strcontains(digitalocean_droplet.this.user_data, "mesh1_"))
    error_message = "The token is shown, or not handed over."
  }

  assert {
    condition     = digitalocean_droplet.this.image == "debian-12-x64" && digitalocean_droplet.this.region == "fra1" && digitalocean_droplet.this.tags == toset(["env:prod"])
    error_message = "The droplet is another one."
  }

  assert {
    condition     = output.metrics_targets == tolist(["198.51.100.20:9464"]) && output.ipv4_address == "198.51.100.20"
    error_message = "The outputs lead elsewhere."
  }

  assert {
    condition     = length(digitalocean_project_resources.this) == 0 && length(digitalocean_reserved_ip_assignment.this) == 0
    error_message = "Something is made that nobody asked for."
  }
}

# The machine of the run before, told another release and another token.
run "a_used_token_and_a_newer_release_destroy_nothing" {
  command   = plan
  state_key = "node"

  variables {
    join_token           = "mesh1_BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB"
    release_version      = "0.2.0"
    ssh_key_fingerprints = ["512189"]
    metrics_sources      = ["192.0.2.7/32"]
    tags                 = ["env:prod"]
  }

  assert {
    condition     = nonsensitive(strcontains(digitalocean_droplet.this.user_data, "mesh1_AAAA")) && digitalocean_droplet.this.id == "3164494"
    error_message = "The droplet would be made anew."
  }
}
