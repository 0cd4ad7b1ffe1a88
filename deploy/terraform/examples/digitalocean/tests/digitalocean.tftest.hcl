mock_provider "digitalocean" {
  mock_resource "digitalocean_droplet" {
    defaults = {
      id           = "3164494"
      ipv4_address = "198.51.100.20"
    }
  }

  mock_resource "digitalocean_reserved_ip" {
    defaults = { ip_address = "203.0.113.1" }
  }
}

variables {
  operator_range       = "192.0.2.0/24"
  ssh_key_fingerprints = ["3b:16:e4:bf:8b:00:8b:b8:59:8c:a9:d3:f0:19:fa:45"]
  release = {
    version = "0.1.0"
    url     = "https://releases.example.org/ringmesh-0.1.0-x86_64-linux.tar.gz"
    sha256  = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
  }
}

run "first_the_coordinator" {
  assert {
    condition     = output.coordinator_url == "https://203.0.113.1:443" && output.metrics_targets == ["203.0.113.1:9465"]
    error_message = "The coordinator is elsewhere."
  }

  assert {
    condition     = nonsensitive(output.token_command) == "ssh root@203.0.113.1 meshctl token create"
    error_message = "The token is made by something else."
  }
}

run "then_the_nodes" {
  variables {
    nodes       = { lab = "ams3", web = "fra1" }
    join_tokens = { web = "mesh1_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA" }
  }

  assert {
    condition     = output.metrics_targets == ["203.0.113.1:9465", "198.51.100.20:9464", "198.51.100.20:9464"]
    error_message = "Not every node is scraped."
  }
}
