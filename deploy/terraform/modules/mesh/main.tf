# One machine of a mesh: what cloud-init is given for its first boot, and what must be open in front of it. This module knows no
# cloud: modules for one take its `user_data` and `firewall_rules`.

locals {
  # IPv6 addresses stand in brackets where a port follows.
  hosts = [for address in var.addresses : strcontains(address, ":") ? "[${address}]" : address]

  usual_metrics_port = { coordinator = 9465, node = 9464, relay = 9466 }[var.role]
  metrics_port       = var.metrics_port == 0 ? local.usual_metrics_port : var.metrics_port
  metrics_listen     = length(var.metrics_sources) > 0 ? "[::]:${local.metrics_port}" : "127.0.0.1:${local.metrics_port}"

  # Only what differs from the daemon's own defaults is not left to it: a file that says all would hide what was chosen.
  toml = templatefile("${path.module}/templates/${var.role}.toml.tftpl", {
    advertise        = jsonencode([for host in local.hosts : "${host}:${var.coordinator_port}"])
    coordinator_port = var.coordinator_port
    endpoints        = jsonencode([for host in local.hosts : "${host}:${var.listen_port}"])
    ipv4_pool        = jsonencode(var.ipv4_pool)
    listen_port      = var.listen_port
    metrics_listen   = jsonencode(local.metrics_listen)
    network_name     = jsonencode(var.network_name)
    relay_enabled    = var.relay_enabled
    websocket_port   = var.websocket_port
    zone             = jsonencode(var.zone)
  })
}

# What must be open, for the host's firewall and for the cloud's.
locals {
  everybody = ["0.0.0.0/0", "::/0"]

  role_ports = {
    coordinator = concat(
      [{ description = "nodes, automation and WebSockets", protocol = "tcp", port = var.coordinator_port, sources = local.everybody }],
      var.relay_enabled ? [{ description = "relay", protocol = "udp", port = var.coordinator_port, sources = local.everybody }] : [],
    )
    node = [{ description = "peers", protocol = "udp", port = var.listen_port, sources = local.everybody }]
    relay = concat(
      [{ description = "relay", protocol = "udp", port = var.listen_port, sources = local.everybody }],
      var.websocket_port > 0 ? [{ description = "WebSockets", protocol = "tcp", port = var.websocket_port, sources = local.everybody }] : [],
    )
  }

  # Without bits beyond a range's length, which some clouds refuse.
  firewall_rules = tolist([
    for rule in local.ports : merge(rule, { sources = distinct([for range in rule.sources : cidrsubnet(range, 0, 0)]) })
  ])

  ports = concat(
    local.role_ports[var.role],
    length(var.ssh_sources) > 0 ? [{ description = "SSH", protocol = "tcp", port = var.ssh_port, sources = var.ssh_sources }] : [],
    length(var.metrics_sources) > 0 ? [{ description = "metrics", protocol = "tcp", port = local.metrics_port, sources = var.metrics_sources }] : [],
  )

  # Sources of IPv4 and IPv6 are told apart, as both firewalls want it; everybody needs no source.
  host_rules = [
    for rule in local.firewall_rules : merge(rule, {
      open = contains(rule.sources, "0.0.0.0/0") && contains(rule.sources, "::/0")
      ipv4 = [for source in rule.sources : source if !strcontains(source, ":")]
      ipv6 = [for source in rule.sources : source if strcontains(source, ":")]
    })
  ]

  firewall_files = {
    cloud    = []
    nftables = [{ path = "ports.nft", permissions = "0600", content = templatefile("${path.module}/templates/ports.nft.tftpl", { rules = local.host_rules }) }]
    ufw      = [{ path = "ports.ufw", permissions = "0600", content = templatefile("${path.module}/templates/ports.ufw.tftpl", { rules = local.host_rules }) }]
  }[var.firewall]
}

# What cloud-init is given.
locals {
  # Only root may look into it, from before the first file is in it on: cloud-init writes a file first and restricts it then.
  setup_dir = "/var/lib/ringmesh-setup"

  settings = templatefile("${path.module}/templates/settings.tftpl", {
    firewall     = var.firewall
    insecure_url = var.allow_insecure_release_url
    name         = var.name
    role         = var.role
    sha256       = var.release_sha256
    url          = var.release_url
    version      = var.release_version
    wait_seconds = var.wait_seconds
  })

  files = concat(
    [
      { path = "setup", permissions = "0700", content = file("${path.module}/files/setup") },
      { path = "settings", permissions = "0600", content = local.settings },
      { path = "config.toml", permissions = "0600", content = local.toml },
    ],
    local.firewall_files,
    var.join_token == null ? [] : [{ path = "join-token", permissions = "0600", content = "${var.join_token}\n" }],
  )

  packages = concat(
    ["ca-certificates", "curl"],
    { nftables = ["nftables"], ufw = ["ufw"], cloud = [] }[var.firewall],
  )

  cloud_config = merge(
    {
      bootcmd = [["install", "-d", "-m", "0700", "-o", "root", "-g", "root", local.setup_dir]]
      write_files = [
        for file in local.files : merge(file, { path = "${local.setup_dir}/${file.path}", owner = "root:root" })
      ]
      runcmd = [["${local.setup_dir}/setup"]]
    },
    { for key, value in { package_update = true, packages = local.packages } : key => value if var.install_packages },
  )

  user_data = "#cloud-config\n${yamlencode(local.cloud_config)}"
}

# Clouds refuse longer user-data, most of them at 64 KiB and some at 16: told here, before anything is made.
resource "terraform_data" "machine" {
  input = {
    name    = var.name
    role    = var.role
    version = var.release_version
  }

  lifecycle {
    precondition {
      condition     = var.join_token == null || can(regex("^mesh1_[A-Za-z0-9_-]{40,}$", var.join_token))
      error_message = "join_token must be a token as `meshctl token create` prints it: mesh1_... (its value is not shown)."
    }

    precondition {
      condition     = var.join_token == null || var.role != "coordinator"
      error_message = "join_token is for a node or relay: a coordinator joins nothing."
    }

    precondition {
      condition     = nonsensitive(length(local.user_data)) <= 16384
      error_message = "The user-data would be longer than 16384 bytes, which is what every cloud takes."
    }

    precondition {
      condition     = length(distinct([for rule in local.firewall_rules : "${rule.protocol}/${rule.port}"])) == length(local.firewall_rules)
      error_message = "Two services of this machine would have the same port: see ssh_port, metrics_port, coordinator_port, listen_port and websocket_port."
    }
  }
}

# What operators run against a coordinator.
locals {
  is_coordinator = var.role == "coordinator"

  # ssh takes no brackets.
  ssh           = join(" ", concat(["ssh"], var.ssh_port == 22 ? [] : ["-p", tostring(var.ssh_port)], ["${var.ssh_user}@${try(var.addresses[0], "")}"]))
  token_command = "${local.ssh} ${var.ssh_user == "root" ? "" : "sudo "}meshctl token create"
}
