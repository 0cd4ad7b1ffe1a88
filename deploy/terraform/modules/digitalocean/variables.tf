# What the machine is and does: checked by the module mesh, which these are handed to.

variable "role" {
  description = "What the machine is: `coordinator`, `node`, or `relay` (one that runs alone)."
  type        = string
  nullable    = false
}

variable "name" {
  description = "Its name in the network: one DNS label of lower-case letters, digits and hyphens."
  type        = string
  nullable    = false
}

variable "release_version" {
  description = "The version that the tarball must hold, as `meshctl --version` says it: `0.1.0`."
  type        = string
  nullable    = false
}

variable "release_url" {
  description = "Where the machine fetches the release tarball (`.tar.gz`), by HTTPS."
  type        = string
  nullable    = false
}

variable "release_sha256" {
  description = "The tarball's SHA-256, as in the release's `SHA256SUMS`: nothing of a tarball with another one is unpacked."
  type        = string
  nullable    = false
}

variable "wait_seconds" {
  description = "How long the first boot waits for the daemon, and for a coordinator that is not up yet, in seconds."
  type        = number
  default     = 300
  nullable    = false
}

variable "addresses" {
  description = "DNS names or IP addresses under which others reach the machine, the best first, at most 8. A coordinator must have one. A node or relay finds its own addresses, and needs only those that it cannot see (IP addresses alone)."
  type        = list(string)
  default     = []
  nullable    = false
}

variable "coordinator_port" {
  description = "Coordinator: the TCP port on which nodes connect, and the UDP port of its relay."
  type        = number
  default     = 443
  nullable    = false
}

variable "listen_port" {
  description = "Node or relay: its UDP port."
  type        = number
  default     = 51820
  nullable    = false
}

variable "websocket_port" {
  description = "Relay: the TCP port of its WebSocket, for nodes whose UDP is blocked; 0 for none."
  type        = number
  default     = 443
  nullable    = false
}

variable "network_name" {
  description = "Coordinator: the network's name."
  type        = string
  default     = "mesh"
  nullable    = false
}

variable "ipv4_pool" {
  description = "Coordinator: where nodes get their IPv4 addresses from: a range within 100.64.0.0/10 or a private one (RFC 1918), /8 to /29."
  type        = string
  default     = "100.64.0.0/10"
  nullable    = false
}

variable "zone" {
  description = "Coordinator: the DNS zone of the nodes' names."
  type        = string
  default     = "mesh"
  nullable    = false
}

variable "relay_enabled" {
  description = "Coordinator: whether it runs a relay for nodes that find no straight path."
  type        = bool
  default     = true
  nullable    = false
}

variable "join_token" {
  description = "Node or relay: the join token, made by `token_command` of the coordinator's module; best one for each machine, for one use, of a short life. It is in the user-data and in Terraform's state: see the README. Without one the machine is installed, and somebody joins it by hand."
  type        = string
  default     = null
  sensitive   = true
}

variable "ssh_sources" {
  description = "From where SSH may be reached, in CIDR form: [\"203.0.113.0/24\"]. An empty list closes it."
  type        = list(string)
  nullable    = false
}

variable "ssh_port" {
  description = "The TCP port of the machine's SSH server."
  type        = number
  default     = 22
  nullable    = false
}

variable "metrics_sources" {
  description = "From where metrics may be scraped, in CIDR form. With an empty list they are served on the loopback address alone."
  type        = list(string)
  default     = []
  nullable    = false
}

variable "metrics_port" {
  description = "The TCP port of its metrics; 0 for the role's usual one: 9464 for a node, 9465 for a coordinator, 9466 for a relay."
  type        = number
  default     = 0
  nullable    = false
}

# Where it runs.

variable "region" {
  description = "The region of droplet and reserved address: `fra1`, `nyc3`."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[a-z]{3}[0-9]$", var.region))
    error_message = "region must be a region's slug: three letters and a digit, as in fra1."
  }
}

variable "size" {
  description = "The droplet's size. The smallest is enough for a coordinator of a few hundred nodes."
  type        = string
  default     = "s-1vcpu-1gb"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z0-9_]+(-[a-z0-9_.]+)+$", var.size))
    error_message = "size must be a size's slug: s-1vcpu-1gb."
  }
}

variable "image" {
  description = "The droplet's image, by slug or id: a distribution with cloud-init and systemd, for x86-64."
  type        = string
  default     = "debian-12-x64"
  nullable    = false

  validation {
    condition     = can(regex("^([0-9]+|[a-z0-9]+(-[a-z0-9.]+)+)$", var.image))
    error_message = "image must be an image's slug or id: debian-12-x64."
  }
}

variable "ssh_key_fingerprints" {
  description = "Whose SSH keys may log in as root: fingerprints (MD5, as DigitalOcean shows them) or ids of keys in the account, at least one."
  type        = list(string)
  nullable    = false

  validation {
    condition     = length(var.ssh_key_fingerprints) > 0
    error_message = "ssh_key_fingerprints must name at least one key: without one DigitalOcean makes a password and mails it."
  }

  validation {
    condition     = alltrue([for key in var.ssh_key_fingerprints : can(regex("^([0-9]+|[0-9a-f]{2}(:[0-9a-f]{2}){15})$", key))])
    error_message = "ssh_key_fingerprints must be MD5 fingerprints (3b:16:e4:bf:8b:00:8b:b8:59:8c:a9:d3:f0:19:fa:45) or ids."
  }
}

variable "reserved_ip" {
  description = "Whether the machine gets a reserved address, which outlives the droplet. A coordinator needs one, or a DNS name among `addresses`: join tokens hold it, and nodes connect there."
  type        = bool
  default     = false
  nullable    = false

  validation {
    condition     = var.role != "coordinator" || var.reserved_ip || length(var.addresses) > 0
    error_message = "reserved_ip must be true for a coordinator, unless addresses names it."
  }
}

variable "ipv6" {
  description = "Whether the droplet gets an IPv6 address."
  type        = bool
  default     = true
  nullable    = false
}

variable "monitoring" {
  description = "Whether DigitalOcean's agent reports the droplet's load."
  type        = bool
  default     = false
  nullable    = false
}

variable "backups" {
  description = "Whether DigitalOcean makes weekly images of the droplet. They hold its keys, a coordinator's among them."
  type        = bool
  default     = false
  nullable    = false
}

variable "vpc_uuid" {
  description = "The VPC of the droplet; null for the region's default one."
  type        = string
  default     = null

  validation {
    condition     = var.vpc_uuid == null || can(regex("^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", var.vpc_uuid))
    error_message = "vpc_uuid must be a UUID in lower case."
  }
}

variable "project_id" {
  description = "The project in which droplet and reserved address are shown; null for the account's default one."
  type        = string
  default     = null

  validation {
    condition     = var.project_id == null || can(regex("^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", var.project_id))
    error_message = "project_id must be a UUID in lower case."
  }
}

variable "tags" {
  description = "The droplet's tags at DigitalOcean. Tags in the mesh come by the join token."
  type        = list(string)
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for tag in var.tags : can(regex("^[A-Za-z0-9:_-]{1,255}$", tag))])
    error_message = "tags must be letters, digits, colons, hyphens and underscores, at most 255."
  }
}
