# What is refused, each by the variable that is wrong. What the module mesh refuses is in its own tests.

mock_provider "digitalocean" {}

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

run "a_region_that_is_a_city" {
  command = plan

  variables {
    region = "Frankfurt"
  }

  expect_failures = [var.region]
}

run "a_size_with_a_space" {
  command = plan

  variables {
    size = "1 vcpu"
  }

  expect_failures = [var.size]
}

run "an_image_with_a_colon" {
  command = plan

  variables {
    image = "debian:12"
  }

  expect_failures = [var.image]
}

run "no_key" {
  command = plan

  variables {
    ssh_key_fingerprints = []
  }

  expect_failures = [var.ssh_key_fingerprints]
}

run "a_sha256_fingerprint" {
  command = plan

  variables {
    ssh_key_fingerprints = ["SHA256:scU3/riLwXKNjikdy90RI7dIQ0R5QLljhtbZvdRQh3I"]
  }

  expect_failures = [var.ssh_key_fingerprints]
}

run "a_coordinator_without_address" {
  command = plan

  variables {
    role = "coordinator"
  }

  expect_failures = [var.reserved_ip]
}

run "a_vpc_by_name" {
  command = plan

  variables {
    vpc_uuid = "default-fra1"
  }

  expect_failures = [var.vpc_uuid]
}

run "a_project_by_name" {
  command = plan

  variables {
    project_id = "Mesh"
  }

  expect_failures = [var.project_id]
}

run "a_tag_with_a_space" {
  command = plan

  variables {
    tags = ["two words"]
  }

  expect_failures = [var.tags]
}
