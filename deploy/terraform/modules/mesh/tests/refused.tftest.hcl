# What is refused, each by the variable that is wrong.

variables {
  role            = "coordinator"
  name            = "fra"
  release_version = "0.1.0"
  release_url     = "https://releases.example.org/ringmesh-0.1.0-x86_64-linux.tar.gz"
  release_sha256  = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
  addresses       = ["mesh.example.org"]
  ssh_sources     = ["192.0.2.0/24"]
}

run "an_unknown_role" {
  command = plan

  variables {
    role = "server"
  }

  expect_failures = [var.role]
}

run "a_name_with_capitals" {
  command = plan

  variables {
    name = "Fra"
  }

  expect_failures = [var.name]
}

run "a_name_of_two_labels" {
  command = plan

  variables {
    name = "fra.example"
  }

  expect_failures = [var.name]
}

run "a_name_that_begins_with_a_hyphen" {
  command = plan

  variables {
    name = "-fra"
  }

  expect_failures = [var.name]
}

run "a_name_with_a_quote" {
  command = plan

  variables {
    name = "fra'; reboot; '"
  }

  expect_failures = [var.name]
}

run "a_name_that_is_too_long" {
  command = plan

  variables {
    name = "a234567890123456789012345678901234567890123456789012345678901234"
  }

  expect_failures = [var.name]
}

run "a_version_with_a_v" {
  command = plan

  variables {
    release_version = "v0.1.0"
  }

  expect_failures = [var.release_version]
}

run "a_release_by_http" {
  command = plan

  variables {
    release_url = "http://releases.example.org/ringmesh.tar.gz"
  }

  expect_failures = [var.release_url]
}

run "a_release_in_a_file" {
  command = plan

  variables {
    release_url = "file:///tmp/ringmesh.tar.gz"
  }

  expect_failures = [var.release_url]
}

run "another_scheme_for_tests" {
  command = plan

  variables {
    release_url                = "ftp://releases.example.org/ringmesh.tar.gz"
    allow_insecure_release_url = true
  }

  expect_failures = [var.release_url]
}

run "a_url_with_a_quote" {
  command = plan

  variables {
    release_url = "https://releases.example.org/'$(reboot)'"
  }

  expect_failures = [var.release_url]
}

run "a_short_checksum" {
  command = plan

  variables {
    release_sha256 = "0123456789abcdef"
  }

  expect_failures = [var.release_sha256]
}

run "a_checksum_in_capitals" {
  command = plan

  variables {
    release_sha256 = "0123456789ABCDEF0123456789ABCDEF0123456789ABCDEF0123456789ABCDEF"
  }

  expect_failures = [var.release_sha256]
}

run "no_time_to_wait" {
  command = plan

  variables {
    wait_seconds = 0
  }

  expect_failures = [var.wait_seconds]
}

run "half_a_second_to_wait" {
  command = plan

  variables {
    wait_seconds = 1.5
  }

  expect_failures = [var.wait_seconds]
}

run "a_coordinator_without_address" {
  command = plan

  variables {
    addresses = []
  }

  expect_failures = [var.addresses]
}

run "an_address_with_a_port" {
  command = plan

  variables {
    addresses = ["mesh.example.org:443"]
  }

  expect_failures = [var.addresses]
}

run "an_address_in_brackets" {
  command = plan

  variables {
    addresses = ["[2001:db8::1]"]
  }

  expect_failures = [var.addresses]
}

run "an_address_that_is_none" {
  command = plan

  variables {
    addresses = ["203.0.113.256"]
  }

  expect_failures = [var.addresses]
}

run "an_address_twice" {
  command = plan

  variables {
    addresses = ["mesh.example.org", "mesh.example.org"]
  }

  expect_failures = [var.addresses]
}

run "nine_addresses" {
  command = plan

  variables {
    addresses = ["a", "b", "c", "d", "e", "f", "g", "h", "i"]
  }

  expect_failures = [var.addresses]
}

run "a_name_for_a_node" {
  command = plan

  variables {
    role      = "node"
    addresses = ["lab.example.org"]
  }

  expect_failures = [var.addresses]
}

run "port_0_for_a_coordinator" {
  command = plan

  variables {
    coordinator_port = 0
  }

  expect_failures = [var.coordinator_port]
}

run "port_65536_for_a_coordinator" {
  command = plan

  variables {
    coordinator_port = 65536
  }

  expect_failures = [var.coordinator_port]
}

run "port_0_for_a_node" {
  command = plan

  variables {
    listen_port = 0
  }

  expect_failures = [var.listen_port]
}

run "a_negative_port" {
  command = plan

  variables {
    websocket_port = -1
  }

  expect_failures = [var.websocket_port]
}

run "port_70000_for_ssh" {
  command = plan

  variables {
    ssh_port = 70000
  }

  expect_failures = [var.ssh_port]
}

run "half_a_port" {
  command = plan

  variables {
    metrics_port = 9464.5
  }

  expect_failures = [var.metrics_port]
}

run "a_network_with_a_space" {
  command = plan

  variables {
    network_name = "my mesh"
  }

  expect_failures = [var.network_name]
}

run "a_pool_of_public_addresses" {
  command = plan

  variables {
    ipv4_pool = "203.0.113.0/24"
  }

  expect_failures = [var.ipv4_pool]
}

run "a_pool_that_reaches_beyond" {
  command = plan

  variables {
    ipv4_pool = "100.64.0.0/9"
  }

  expect_failures = [var.ipv4_pool]
}

run "a_pool_that_is_too_small" {
  command = plan

  variables {
    ipv4_pool = "10.0.0.0/30"
  }

  expect_failures = [var.ipv4_pool]
}

run "a_pool_with_host_bits" {
  command = plan

  variables {
    ipv4_pool = "10.0.0.1/16"
  }

  expect_failures = [var.ipv4_pool]
}

run "a_pool_of_ipv6" {
  command = plan

  variables {
    ipv4_pool = "fd00::/48"
  }

  expect_failures = [var.ipv4_pool]
}

run "a_pool_without_length" {
  command = plan

  variables {
    ipv4_pool = "10.0.0.0"
  }

  expect_failures = [var.ipv4_pool]
}

run "a_zone_with_an_underscore" {
  command = plan

  variables {
    zone = "my_mesh"
  }

  expect_failures = [var.zone]
}

run "a_zone_with_a_dot_at_the_end" {
  command = plan

  variables {
    zone = "mesh."
  }

  expect_failures = [var.zone]
}

run "an_unknown_firewall" {
  command = plan

  variables {
    firewall = "iptables"
  }

  expect_failures = [var.firewall]
}

run "ssh_from_a_bare_address" {
  command = plan

  variables {
    ssh_sources = ["192.0.2.1"]
  }

  expect_failures = [var.ssh_sources]
}

run "a_user_with_an_option" {
  command = plan

  variables {
    ssh_user = "-oProxyCommand=reboot"
  }

  expect_failures = [var.ssh_user]
}

run "metrics_from_a_name" {
  command = plan

  variables {
    metrics_sources = ["prometheus.example.org"]
  }

  expect_failures = [var.metrics_sources]
}

run "metrics_for_everybody" {
  command = plan

  variables {
    metrics_sources = ["0.0.0.0/0"]
  }

  expect_failures = [var.metrics_sources]
}

run "a_token_that_is_none" {
  command = plan

  variables {
    role       = "node"
    addresses  = []
    join_token = "mesh2_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
  }

  expect_failures = [terraform_data.machine]
}

run "a_token_with_a_line_break" {
  command = plan

  variables {
    role       = "node"
    addresses  = []
    join_token = "mesh1_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n"
  }

  expect_failures = [terraform_data.machine]
}

run "a_token_for_a_coordinator" {
  command = plan

  variables {
    join_token = "mesh1_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
  }

  expect_failures = [terraform_data.machine]
}

run "two_services_at_one_port" {
  command = plan

  variables {
    ssh_port = 443
  }

  expect_failures = [terraform_data.machine]
}

run "more_than_every_cloud_takes" {
  command = plan

  variables {
    ssh_sources = [for i in range(0, 1000) : "10.${floor(i / 256)}.${i % 256}.0/24"]
  }

  expect_failures = [terraform_data.machine]
}

run "a_zone_longer_than_a_coordinator_takes" {
  command = plan

  variables {
    zone = join(".", [for i in range(0, 44) : "ab"])
  }

  expect_failures = [var.zone]
}
