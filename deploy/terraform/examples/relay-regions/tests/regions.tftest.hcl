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
  coordinator_name     = "mesh.example.org"
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
    condition     = output.coordinator_address == "203.0.113.1" && length(output.relay_addresses) == 0
    error_message = "The coordinator is elsewhere, or not alone."
  }

  assert {
    condition     = nonsensitive(output.token_command) == "ssh root@mesh.example.org meshctl token create"
    error_message = "The token is made by something else."
  }
}

run "then_a_relay_in_each_region" {
  variables {
    relay_regions = ["nyc3", "sgp1"]
    relay_tokens = {
      nyc3 = "mesh1_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
      sgp1 = "mesh1_BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB"
    }
  }

  assert {
    condition     = output.relay_addresses == { nyc3 = "198.51.100.20", sgp1 = "198.51.100.20" }
    error_message = "A relay is missing."
  }
}
