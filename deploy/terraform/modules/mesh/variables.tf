# What this machine is.

variable "role" {
  description = "What the machine is: `coordinator`, `node`, or `relay` (one that runs alone)."
  type        = string
  nullable    = false

  validation {
    condition     = contains(["coordinator", "node", "relay"], var.role)
    error_message = "role must be \"coordinator\", \"node\" or \"relay\"."
  }
}

variable "name" {
  description = "Its name in the network: one DNS label of lower-case letters, digits and hyphens."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", var.name))
    error_message = "name must be one DNS label: 1 to 63 lower-case letters, digits and hyphens, with no hyphen at either end."
  }
}

# What is installed.

variable "release_version" {
  description = "The version that the tarball must hold, as `meshctl --version` says it: `0.1.0`."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[0-9]+\\.[0-9]+\\.[0-9]+(-[0-9A-Za-z.-]+)?(\\+[0-9A-Za-z.-]+)?$", var.release_version))
    error_message = "release_version must be a version as in 0.1.0, without a \"v\"."
  }
}

variable "release_url" {
  description = "Where the machine fetches the release tarball (`.tar.gz`), by HTTPS."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[a-z]+://[A-Za-z0-9/][A-Za-z0-9._~:/?&=%+,@-]*$", var.release_url))
    error_message = "release_url must be a URL without spaces, quotes or fragments."
  }

  validation {
    condition     = startswith(var.release_url, "https://") || (var.allow_insecure_release_url && can(regex("^(http|file)://", var.release_url)))
    error_message = "release_url must begin with https:// (http:// and file:// only with allow_insecure_release_url = true, for tests)."
  }
}

variable "release_sha256" {
  description = "The tarball's SHA-256, as in the release's `SHA256SUMS`: nothing of a tarball with another one is unpacked."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[0-9a-f]{64}$", var.release_sha256))
    error_message = "release_sha256 must be 64 lower-case hexadecimal digits."
  }
}

variable "allow_insecure_release_url" {
  description = "Whether `release_url` may be `http://` or `file://`. For tests: the checksum is verified all the same."
  type        = bool
  default     = false
  nullable    = false
}

variable "install_packages" {
  description = "Whether to install the distribution's packages that are needed (curl, ca-certificates, nftables or ufw). `false` for an image that has them."
  type        = bool
  default     = true
  nullable    = false
}

variable "wait_seconds" {
  description = "How long the first boot waits for the daemon, and for a coordinator that is not up yet, in seconds."
  type        = number
  default     = 300
  nullable    = false

  validation {
    condition     = var.wait_seconds >= 1 && var.wait_seconds <= 3600 && floor(var.wait_seconds) == var.wait_seconds
    error_message = "wait_seconds must be a whole number from 1 to 3600."
  }
}

# Where it is reached.

variable "addresses" {
  description = "DNS names or IP addresses under which others reach the machine, the best first, at most 8. A coordinator must have one. A node or relay finds its own addresses, and needs only those that it cannot see (IP addresses alone)."
  type        = list(string)
  default     = []
  nullable    = false

  validation {
    condition     = length(var.addresses) <= 8 && length(distinct(var.addresses)) == length(var.addresses)
    error_message = "addresses must be at most 8, all different."
  }

  validation {
    condition = alltrue([
      for address in var.addresses :
      can(cidrhost("${address}/${strcontains(address, ":") ? 128 : 32}", 0)) ||
      (length(address) <= 253 && !can(regex("^[0-9.]+$", address)) &&
      can(regex("^([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\\.)*[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$", address)))
    ])
    error_message = "addresses must be IP addresses or DNS names, without ports and brackets."
  }

  validation {
    condition     = var.role != "coordinator" || length(var.addresses) > 0
    error_message = "addresses must name at least one for a coordinator: join tokens hold it, and nodes connect there."
  }

  validation {
    condition     = var.role == "coordinator" || alltrue([for address in var.addresses : can(cidrhost("${address}/${strcontains(address, ":") ? 128 : 32}", 0))])
    error_message = "addresses of a node or relay must be IP addresses."
  }
}

variable "coordinator_port" {
  description = "Coordinator: the TCP port on which nodes connect, and the UDP port of its relay."
  type        = number
  default     = 443
  nullable    = false

  validation {
    condition     = var.coordinator_port >= 1 && var.coordinator_port <= 65535 && floor(var.coordinator_port) == var.coordinator_port
    error_message = "coordinator_port must be a whole number from 1 to 65535."
  }
}

variable "listen_port" {
  description = "Node or relay: its UDP port."
  type        = number
  default     = 51820
  nullable    = false

  validation {
    condition     = var.listen_port >= 1 && var.listen_port <= 65535 && floor(var.listen_port) == var.listen_port
    error_message = "listen_port must be a whole number from 1 to 65535."
  }
}

variable "websocket_port" {
  description = "Relay: the TCP port of its WebSocket, for nodes whose UDP is blocked; 0 for none."
  type        = number
  default     = 443
  nullable    = false

  validation {
    condition     = var.websocket_port >= 0 && var.websocket_port <= 65535 && floor(var.websocket_port) == var.websocket_port
    error_message = "websocket_port must be a whole number from 0 to 65535."
  }
}

# The network that a coordinator makes at its first start.

variable "network_name" {
  description = "Coordinator: the network's name."
  type        = string
  default     = "mesh"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", var.network_name))
    error_message = "network_name must be 1 to 63 lower-case letters, digits and hyphens, with no hyphen at either end."
  }
}

variable "ipv4_pool" {
  description = "Coordinator: where nodes get their IPv4 addresses from: a range within 100.64.0.0/10 or a private one (RFC 1918), /8 to /29."
  type        = string
  default     = "100.64.0.0/10"
  nullable    = false

  validation {
    condition     = can(regex("^[0-9.]+/([89]|1[0-9]|2[0-9])$", var.ipv4_pool)) && can(cidrhost(var.ipv4_pool, 0)) && try(cidrhost(var.ipv4_pool, 0) == split("/", var.ipv4_pool)[0], false)
    error_message = "ipv4_pool must be an IPv4 range in CIDR form from /8 to /29, with no bit set beyond its length: 100.64.0.0/10."
  }

  validation {
    condition = anytrue([
      for range in ["100.64.0.0/10", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"] :
      try(tonumber(split("/", var.ipv4_pool)[1]) >= tonumber(split("/", range)[1]) &&
      cidrhost("${split("/", var.ipv4_pool)[0]}/${split("/", range)[1]}", 0) == cidrhost(range, 0), false)
    ])
    error_message = "ipv4_pool must lie within 100.64.0.0/10, 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16."
  }
}

variable "zone" {
  description = "Coordinator: the DNS zone of the nodes' names."
  type        = string
  default     = "mesh"
  nullable    = false

  validation {
    condition     = length(var.zone) <= 128 && can(regex("^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", var.zone))
    error_message = "zone must be DNS labels of lower-case letters, digits and hyphens, with dots between, at most 128 characters: mesh, or mesh.example.org."
  }
}

variable "relay_enabled" {
  description = "Coordinator: whether it runs a relay for nodes that find no straight path."
  type        = bool
  default     = true
  nullable    = false
}

# What lets a node or relay in.

# Judged by preconditions of terraform_data.machine: a validation that fails shows the value, sensitive or not.
variable "join_token" {
  description = "Node or relay: the join token, made by `token_command` of the coordinator's module; best one for each machine, for one use, of a short life. It is in the user-data and in Terraform's state: see the README. Without one the machine is installed, and somebody joins it by hand."
  type        = string
  default     = null
  sensitive   = true
}

# Who may reach it.

variable "firewall" {
  description = "Who keeps the ports closed: `nftables` (a table of its own on the machine), `ufw`, or `cloud`: nobody on the machine, since the output `firewall_rules` is applied in front of it."
  type        = string
  default     = "nftables"
  nullable    = false

  validation {
    condition     = contains(["nftables", "ufw", "cloud"], var.firewall)
    error_message = "firewall must be \"nftables\", \"ufw\" or \"cloud\"."
  }
}

variable "ssh_sources" {
  description = "From where SSH may be reached, in CIDR form: [\"203.0.113.0/24\"]. An empty list closes it."
  type        = list(string)
  nullable    = false

  validation {
    condition     = alltrue([for range in var.ssh_sources : can(cidrhost(range, 0))])
    error_message = "ssh_sources must be ranges in CIDR form: [\"203.0.113.0/24\", \"2001:db8::/32\"]."
  }
}

variable "ssh_port" {
  description = "The TCP port of the machine's SSH server."
  type        = number
  default     = 22
  nullable    = false

  validation {
    condition     = var.ssh_port >= 1 && var.ssh_port <= 65535 && floor(var.ssh_port) == var.ssh_port
    error_message = "ssh_port must be a whole number from 1 to 65535."
  }
}

variable "ssh_user" {
  description = "Whom operators log in as, for the commands among the outputs; any but root must be allowed to use sudo."
  type        = string
  default     = "root"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z_][a-z0-9_-]{0,31}$", var.ssh_user))
    error_message = "ssh_user must be a user's name: lower-case letters, digits, \"_\" and \"-\"."
  }
}

variable "metrics_sources" {
  description = "From where metrics may be scraped, in CIDR form. With an empty list they are served on the loopback address alone."
  type        = list(string)
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for range in var.metrics_sources : can(cidrhost(range, 0))])
    error_message = "metrics_sources must be ranges in CIDR form: [\"203.0.113.7/32\"]."
  }

  validation {
    condition     = !anytrue([for range in var.metrics_sources : endswith(range, "/0")])
    error_message = "metrics_sources must not be everybody: metrics name peers and their addresses."
  }
}

variable "metrics_port" {
  description = "The TCP port of its metrics; 0 for the role's usual one: 9464 for a node, 9465 for a coordinator, 9466 for a relay."
  type        = number
  default     = 0
  nullable    = false

  validation {
    condition     = var.metrics_port >= 0 && var.metrics_port <= 65535 && floor(var.metrics_port) == var.metrics_port
    error_message = "metrics_port must be a whole number from 0 to 65535."
  }
}
