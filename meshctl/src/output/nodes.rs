//! `meshctl nodes list` and `nodes remove`.

use ringmesh_proto::admin;
use serde::Serialize;

use super::{
    Document,
    installation::Installation,
    printable,
    table::{Columns, moment},
};

/// A member as its coordinator knows it.
#[derive(Debug, Serialize)]
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) kind: &'static str,
    pub(crate) relay: bool,
    pub(crate) ipv4: String,
    pub(crate) ipv6: String,
    pub(crate) noise_key: String,
    pub(crate) identity_fingerprint: String,
    pub(crate) tags: Vec<String>,
    pub(crate) online: bool,
    pub(crate) installed_revision: u64,
    pub(crate) enrolled_ms: u64,
    pub(crate) expires_ms: u64,
    pub(crate) last_seen_ms: u64,
    pub(crate) endpoints: Vec<String>,
    pub(crate) version: String,
    pub(crate) os: String,
    pub(crate) back_end: String,
}

impl From<admin::Node> for Node {
    fn from(node: admin::Node) -> Self {
        let kind = match node.kind() {
            admin::NodeKind::Unspecified => "unknown",
            admin::NodeKind::Mesh => "mesh",
            admin::NodeKind::Stock => "stock",
        };
        Self {
            id: node.id,
            name: node.name,
            kind,
            relay: node.relay,
            ipv4: node.ipv4,
            ipv6: node.ipv6,
            noise_key: node.noise_key,
            identity_fingerprint: node.identity_fingerprint,
            tags: node.tags,
            online: node.online,
            installed_revision: node.installed_revision,
            enrolled_ms: node.enrolled_ms,
            expires_ms: node.expires_ms,
            last_seen_ms: node.last_seen_ms,
            endpoints: node.endpoints,
            version: node.version,
            os: node.os,
            back_end: node.back_end,
        }
    }
}

impl Node {
    fn presence(&self, now: u64) -> String {
        match (self.online, self.last_seen_ms) {
            (true, _) => "online".to_owned(),
            (false, 0) => "offline".to_owned(),
            (false, seen) => format!("offline, seen {}", moment(seen, now)),
        }
    }

    /// What the node acknowledged, beside what there is: `14`, `13 of 14`.
    fn installed(&self, revision: u64) -> String {
        match self.installed_revision {
            0 => String::new(),
            installed if installed >= revision => installed.to_string(),
            installed => format!("{installed} of {revision}"),
        }
    }
}

/// All members of a network: `schemas/nodes.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Nodes {
    pub(crate) revision: u64,
    pub(crate) nodes: Vec<Node>,
}

impl From<admin::ListNodesResponse> for Nodes {
    fn from(response: admin::ListNodesResponse) -> Self {
        let mut nodes: Vec<Node> = response.nodes.into_iter().map(Node::from).collect();
        nodes.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        Self { revision: response.revision, nodes }
    }
}

impl Document for Nodes {
    fn text(&self, now: u64) -> String {
        if self.nodes.is_empty() {
            return "no node has joined yet\n".to_owned();
        }
        let mut table =
            Columns::new(["NODE", "ID", "KIND", "IPV4", "IPV6", "STATE", "INSTALLED", "TAGS", "EXPIRES"]);
        for node in &self.nodes {
            table.row([
                node.name.clone(),
                node.id.clone(),
                if node.relay { "relay" } else { node.kind }.to_owned(),
                node.ipv4.clone(),
                node.ipv6.clone(),
                node.presence(now),
                node.installed(self.revision),
                node.tags.join(","),
                moment(node.expires_ms, now),
            ]);
        }
        table.text()
    }
}

/// The member that was removed, and how far that got: `schemas/node-removed.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Removed {
    pub(crate) node: Node,
    #[serde(flatten)]
    pub(crate) installation: Installation,
}

impl From<admin::RemoveNodeResponse> for Removed {
    fn from(response: admin::RemoveNodeResponse) -> Self {
        let admin::RemoveNodeResponse { node, revision, installed, behind, waited_ms } = response;
        Self {
            node: Node::from(node.unwrap_or_default()),
            installation: Installation::new(revision, installed, behind, waited_ms),
        }
    }
}

impl Document for Removed {
    fn text(&self, _: u64) -> String {
        let Node { name, id, ipv4, .. } = &self.node;
        printable(&format!("removed {name} (id {id}, {ipv4}); {}\n", self.installation.text()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{installation::tests::behind, json, tests::conforms};

    const NOW: u64 = 1_790_000_000_000;

    fn node(name: &str, number: u8) -> admin::Node {
        admin::Node {
            relay: false,
            id: format!("00000000000000{number:02x}"),
            name: name.to_owned(),
            kind: admin::NodeKind::Mesh.into(),
            ipv4: format!("100.64.0.{number}"),
            ipv6: format!("fd12:3456:789a::{number}"),
            noise_key: "bm9pc2Uga2V5IG9mIGEgcGVlciwgMzIgYnl0ZXMgIS4=".to_owned(),
            identity_fingerprint: "SHA256:u3Vn3mQ4nD7h2b5e8k1Jr0cT6yXo9wZsLpAfGiHqRtE".to_owned(),
            tags: vec!["web".to_owned(), "prod".to_owned()],
            online: true,
            installed_revision: 14,
            enrolled_ms: NOW - 86_400_000,
            expires_ms: NOW + 29 * 86_400_000,
            last_seen_ms: NOW - 1_000,
            endpoints: vec![format!("203.0.113.{number}:51820")],
            version: "0.1.0".to_owned(),
            os: "linux".to_owned(),
            back_end: "uring".to_owned(),
        }
    }

    fn list() -> admin::ListNodesResponse {
        admin::ListNodesResponse {
            nodes: vec![
                node("web1", 1),
                admin::Node { installed_revision: 13, ..node("db", 2) },
                admin::Node {
                    online: false,
                    last_seen_ms: NOW - 3 * 86_400_000,
                    installed_revision: 0,
                    tags: Vec::new(),
                    ..node("old", 3)
                },
                admin::Node {
                    kind: admin::NodeKind::Stock.into(),
                    online: false,
                    last_seen_ms: 0,
                    installed_revision: 0,
                    identity_fingerprint: String::new(),
                    tags: Vec::new(),
                    ..node("phone", 4)
                },
                admin::Node { relay: true, tags: Vec::new(), ..node("relay", 5) },
            ],
            revision: 14,
        }
    }

    #[test]
    fn nodes_of_every_state() {
        conforms("nodes", &Nodes::from(list()));
        insta::assert_snapshot!(Nodes::from(list()).text(NOW));
    }

    #[test]
    fn nodes_as_json() {
        let first = admin::ListNodesResponse { nodes: vec![node("web1", 1)], revision: 14 };
        insta::assert_snapshot!(json(&Nodes::from(first)).unwrap());
    }

    #[test]
    fn an_empty_network_says_so() {
        assert_eq!(Nodes::from(admin::ListNodesResponse::default()).text(NOW), "no node has joined yet\n");
    }

    #[test]
    fn a_removal_names_the_node_the_revision_and_who_has_it() {
        let removed = Removed::from(admin::RemoveNodeResponse {
            node: Some(node("lab", 1)),
            revision: 7,
            installed: vec!["b".to_owned(), "a".to_owned()],
            behind: vec![behind("carol", false)],
            waited_ms: 40,
        });
        conforms("node-removed", &removed);
        assert_eq!(
            removed.text(NOW),
            "removed lab (id 0000000000000001, 100.64.0.1); r7 installed on 2 of 3 nodes in 40 ms; \
             1 behind: 1 offline (carol)\n"
        );
    }
}
