"""What the checks of `run` are about: arguments to misspell, values to refuse, machines to render."""

import json
import re

# What every machine needs.
ARGUMENTS = {
    "name": "web",
    "release_version": "0.1.0",
    "release_url": "https://releases.example.org/ringmesh-0.1.0-x86_64-linux.tar.gz",
    "release_sha256": "0123456789abcdef" * 4,
    "ssh_sources": ["192.0.2.0/24"],
}
DROPLET = ARGUMENTS | {
    "region": "fra1",
    "ssh_key_fingerprints": ["512189"],
    "role": "coordinator",
    "addresses": ["mesh.example.org"],
}

# A machine of each role, with all that can be in its user-data.
TOKEN = "mesh1_" + "A" * 64
RENDERED = {
    "coordinator": {"addresses": ["mesh.example.org", "2001:db8::1"], "metrics_sources": ["192.0.2.7/32", "2001:db8::7/128"]},
    "node": {"addresses": ["203.0.113.9"], "join_token": TOKEN, "firewall": "ufw"},
    "relay": {"addresses": ["203.0.113.20"], "join_token": TOKEN, "firewall": "cloud", "install_packages": False},
}

# A bad value for each argument that the module digitalocean hands on unseen.
SECRET = "mesh1_tooshort"
HANDED_ON = [
    ("role", "server"),
    ("name", "Web"),
    ("release_version", "v0.1.0"),
    ("release_url", "http://releases.example.org/ringmesh.tar.gz"),
    ("release_sha256", "0123"),
    ("wait_seconds", 0),
    ("addresses", ["mesh.example.org:443"]),
    ("coordinator_port", 65536),
    ("listen_port", 0),
    ("websocket_port", -1),
    ("network_name", "my mesh"),
    ("ipv4_pool", "203.0.113.0/24"),
    ("zone", "my_mesh"),
    ("join_token", SECRET),
    ("ssh_sources", ["192.0.2.1"]),
    ("ssh_port", 70000),
    ("metrics_sources", ["0.0.0.0/0"]),
    ("metrics_port", 70000),
]


def bad_run(variable, value):
    """A test file that plans a droplet with one bad argument, and expects nothing."""
    arguments = DROPLET | {variable: value}
    if variable == "join_token":
        arguments |= {"role": "node", "addresses": []}
    assignments = "\n".join(f"    {name} = {json.dumps(value)}" for name, value in arguments.items())
    return f'mock_provider "digitalocean" {{}}\n\nrun "bad" {{\n  command = plan\n\n  variables {{\n{assignments}\n  }}\n}}\n'


# Fewer would mean that they are not found any more.
FEWEST_MISSPELLINGS = 60
# Terraform's own, whose absence changes what the others mean.
LEFT_ALONE = {"source", "for_each", "count"}


def misspellings(folder):
    """For each block that makes or calls something: its file, the text with all its arguments misspelt, and these names."""
    for file in sorted(folder.glob("*.tf")):
        whole = file.read_text().splitlines()
        for begin, line in enumerate(whole):
            if re.match(r"(module|resource) ", line):
                length = whole[begin:].index("}")
                changed, names = misspelt(whole[begin:begin + length])
                yield file, "\n".join(whole[:begin] + changed + whole[begin + length:]) + "\n", names


def misspelt(block):
    lines, names = [], []
    # What is open around a line: the first word of a block's head, or None for a value.
    around = []
    for line in block:
        argument = re.match(r"^( +)(\w+)( += .*)$", line)
        if argument and None not in around and "lifecycle" not in around and argument[2] not in LEFT_ALONE:
            names.append(f"{argument[2]}_x{len(names)}")
            lines.append(argument[1] + names[-1] + argument[3])
        else:
            lines.append(line)
        head = re.match(r"^ *(\w+)[^={]*\{$", line)
        more = len(re.findall(r"[{\[(]", line)) - len(re.findall(r"[}\])]", line))
        if head:
            around.append(head[1])
        elif more > 0:
            around.extend([None] * more)
        else:
            del around[len(around) + more:]
    return lines, names
