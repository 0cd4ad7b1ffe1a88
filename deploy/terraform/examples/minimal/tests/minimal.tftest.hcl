variables {
  coordinator_address = "203.0.113.1"
  operator_range      = "192.0.2.0/24"
  release = {
    version = "0.1.0"
    url     = "https://releases.example.org/ringmesh-0.1.0-x86_64-linux.tar.gz"
    sha256  = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
  }
}

run "first_the_coordinator" {
  assert {
    condition     = nonsensitive(startswith(output.coordinator_user_data, "#cloud-config\n")) && length(nonsensitive(output.node_user_data)) == 0
    error_message = "There is no coordinator, or more than that."
  }
}

run "then_the_nodes" {
  variables {
    nodes       = ["lab", "web"]
    join_tokens = { web = "mesh1_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA" }
  }

  assert {
    condition     = nonsensitive([for name, user_data in output.node_user_data : name if strcontains(user_data, "mesh1_")]) == ["web"]
    error_message = "A token went to another node than its own."
  }

  assert {
    condition     = sort(keys(output.firewall_rules)) == tolist(["coordinator", "lab", "web"])
    error_message = "Not every machine's ports are told."
  }
}
