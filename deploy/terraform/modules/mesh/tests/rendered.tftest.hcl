# What is rendered for each role.

variables {
  name            = "fra"
  release_version = "0.1.0"
  release_url     = "https://releases.example.org/ringmesh-0.1.0-x86_64-linux.tar.gz"
  release_sha256  = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
  ssh_sources     = ["192.0.2.0/24", "2001:db8::/32"]
}

run "a_coordinator" {
  variables {
    role            = "coordinator"
    addresses       = ["mesh.example.org", "2001:db8::1"]
    network_name    = "office"
    ipv4_pool       = "10.77.0.0/16"
    zone            = "mesh.example.org"
    metrics_sources = ["192.0.2.7/32"]
  }

  assert {
    condition     = nonsensitive(startswith(output.user_data, "#cloud-config\n") && can(yamldecode(output.user_data)))
    error_message = "The user-data is no cloud-config."
  }

  assert {
    condition     = nonsensitive(yamldecode(output.user_data).runcmd == [["/var/lib/ringmesh-setup/setup"]])
    error_message = "Something else than setup is run."
  }

  assert {
    condition     = nonsensitive(yamldecode(output.user_data).bootcmd == [["install", "-d", "-m", "0700", "-o", "root", "-g", "root", "/var/lib/ringmesh-setup"]])
    error_message = "The folder is not closed before files are in it."
  }

  assert {
    condition = nonsensitive({ for file in yamldecode(output.user_data).write_files : file.path => file.content if endswith(file.path, "config.toml") } == {
      "/var/lib/ringmesh-setup/config.toml" = <<-TOML
        listen = "[::]:443"
        advertise = ["mesh.example.org:443","[2001:db8::1]:443"]

        [network]
        name = "office"
        ipv4_pool = "10.77.0.0/16"
        zone = "mesh.example.org"

        [relay]
        enabled = true

        [metrics]
        listen = "[::]:9465"
      TOML
    })
    error_message = "The configuration is not what was asked for."
  }

  assert {
    condition = jsonencode(output.firewall_rules) == jsonencode([
      { description = "nodes, automation and WebSockets", protocol = "tcp", port = 443, sources = ["0.0.0.0/0", "::/0"] },
      { description = "relay", protocol = "udp", port = 443, sources = ["0.0.0.0/0", "::/0"] },
      { description = "SSH", protocol = "tcp", port = 22, sources = ["192.0.2.0/24", "2001:db8::/32"] },
      { description = "metrics", protocol = "tcp", port = 9465, sources = ["192.0.2.7/32"] },
    ])
    error_message = "The ports are others."
  }

  assert {
    condition     = output.coordinator_endpoint == "mesh.example.org:443" && output.coordinator_url == "https://mesh.example.org:443"
    error_message = "The coordinator is told to be elsewhere."
  }

  assert {
    condition     = nonsensitive(output.token_command) == "ssh root@mesh.example.org meshctl token create"
    error_message = "The token is made by something else."
  }

  assert {
    condition     = nonsensitive(output.join_command) == "printf 'sudo meshctl join --token %s\\n' \"$(ssh root@mesh.example.org meshctl token create)\""
    error_message = "The join line is made by something else."
  }

  assert {
    condition     = output.metrics_targets == tolist(["mesh.example.org:9465"])
    error_message = "Prometheus is sent elsewhere."
  }
}

run "a_coordinator_of_another_login" {
  variables {
    role             = "coordinator"
    addresses        = ["2001:db8::1"]
    coordinator_port = 8443
    ssh_port         = 2222
    ssh_user         = "debian"
    relay_enabled    = false
    ssh_sources      = ["192.0.2.9/24", "192.0.2.0/24", "2001:db8::9/64"]
  }

  assert {
    condition     = output.firewall_rules[1].sources == tolist(["192.0.2.0/24", "2001:db8::/64"])
    error_message = "Ranges are not as every cloud takes them."
  }

  assert {
    condition     = nonsensitive(output.token_command) == "ssh -p 2222 debian@2001:db8::1 sudo meshctl token create"
    error_message = "The token is made by something else."
  }

  assert {
    condition     = output.coordinator_endpoint == "[2001:db8::1]:8443"
    error_message = "An IPv6 address stands without brackets."
  }

  assert {
    condition     = [for rule in output.firewall_rules : "${rule.protocol}/${rule.port}"] == ["tcp/8443", "tcp/2222"]
    error_message = "A relay's port is open where there is no relay."
  }

  assert {
    condition     = length(output.metrics_targets) == 0
    error_message = "Prometheus is sent where nothing is open."
  }
}

run "a_node_with_a_token" {
  variables {
    role       = "node"
    addresses  = ["203.0.113.9"]
    join_token = "mesh1_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
  }

  assert {
    condition = nonsensitive([for file in yamldecode(output.user_data).write_files : file if strcontains(file.content, "mesh1_")] == [{
      content     = "mesh1_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n"
      owner       = "root:root"
      path        = "/var/lib/ringmesh-setup/join-token"
      permissions = "0600"
    }])
    error_message = "The token is not in one file that only root can read."
  }

  assert {
    condition     = nonsensitive(length(regexall("mesh1_", output.user_data))) == 1
    error_message = "The token is in the user-data more than once."
  }

  assert {
    condition     = issensitive(output.user_data)
    error_message = "The user-data is shown, and the token in it."
  }

  assert {
    condition = nonsensitive(one([for file in yamldecode(output.user_data).write_files : file.content if endswith(file.path, "config.toml")]) == <<-TOML
      listen_port = 51820
      endpoints = ["203.0.113.9:51820"]

      [metrics]
      listen = "127.0.0.1:9464"
    TOML
    )
    error_message = "The configuration is not what was asked for."
  }

  assert {
    condition     = [for rule in output.firewall_rules : "${rule.protocol}/${rule.port}"] == ["udp/51820", "tcp/22"]
    error_message = "The ports are others."
  }

  assert {
    condition     = output.coordinator_endpoint == null && output.coordinator_url == null && output.join_command == null && output.token_command == null
    error_message = "A node is told to be a coordinator."
  }
}

run "a_node_that_somebody_joins_by_hand" {
  variables {
    role             = "node"
    ssh_sources      = []
    firewall         = "cloud"
    install_packages = false
  }

  assert {
    condition     = nonsensitive(sort([for file in yamldecode(output.user_data).write_files : basename(file.path)]) == tolist(["config.toml", "settings", "setup"]))
    error_message = "There are files that nobody asked for."
  }

  assert {
    condition     = nonsensitive(sort(keys(yamldecode(output.user_data)))) == tolist(["bootcmd", "runcmd", "write_files"])
    error_message = "Packages are installed though there is no need."
  }

  assert {
    condition     = [for rule in output.firewall_rules : "${rule.protocol}/${rule.port}"] == ["udp/51820"]
    error_message = "SSH is open to nobody in particular."
  }
}

run "a_relay_that_runs_alone" {
  variables {
    role       = "relay"
    firewall   = "ufw"
    join_token = "mesh1_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
  }

  assert {
    condition = nonsensitive(one([for file in yamldecode(output.user_data).write_files : file.content if endswith(file.path, "config.toml")]) == <<-TOML
      listen_port = 51820
      endpoints = []

      [relay]
      websocket_listen = "[::]:443"

      [metrics]
      listen = "127.0.0.1:9466"
    TOML
    )
    error_message = "The configuration is not what was asked for."
  }

  assert {
    condition = nonsensitive(one([for file in yamldecode(output.user_data).write_files : file.content if endswith(file.path, "ports.ufw")]) == <<-RULES
      allow in on mesh0
      allow proto udp from any to any port 51820
      allow proto tcp from any to any port 443
      allow proto tcp from 192.0.2.0/24 to any port 22
      allow proto tcp from 2001:db8::/32 to any port 22
    RULES
    )
    error_message = "The ports are others."
  }

  assert {
    condition     = nonsensitive(contains(yamldecode(output.user_data).packages, "ufw"))
    error_message = "ufw is not installed."
  }
}

run "a_relay_without_websocket" {
  variables {
    role           = "relay"
    websocket_port = 0
  }

  assert {
    condition     = nonsensitive(!strcontains(output.user_data, "websocket_listen")) && [for rule in output.firewall_rules : "${rule.protocol}/${rule.port}"] == ["udp/51820", "tcp/22"]
    error_message = "There is a WebSocket all the same."
  }
}
