//! What `meshctl join` ends with: a real check, in one block.

use serde::Serialize;

use super::{Document, ping::Reply, status::Status, table::Columns};

/// A node that has joined, and what its first look around found: `schemas/join.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Joined {
    /// False if this machine had joined before and the token was not needed.
    pub(crate) enrolled: bool,
    #[serde(flatten)]
    pub(crate) check: Check,
    pub(crate) status: Status,
}

/// Whether packets pass.
#[derive(Debug, Serialize)]
pub(crate) struct Check {
    /// True if a peer answered, or there is none to answer.
    pub(crate) ok: bool,
    /// The revision of the map is the one installed in the data plane.
    pub(crate) installed: bool,
    /// How many peers were asked for an echo.
    pub(crate) asked: usize,
    pub(crate) ping: Option<FirstPing>,
}

/// The first peer that answered, or else one that did not.
#[derive(Debug, Serialize)]
pub(crate) struct FirstPing {
    pub(crate) node: String,
    pub(crate) ipv4: String,
    #[serde(flatten)]
    pub(crate) reply: Reply,
}

impl Joined {
    fn ping_line(&self) -> String {
        match (&self.check.ping, self.check.asked) {
            (None, _) => "no peer yet".to_owned(),
            (Some(FirstPing { node, ipv4, reply }), asked) => match (reply.way(), asked) {
                (Some(way), _) => format!("{node} ({ipv4}) {way}"),
                (None, 1) => format!("no reply from {node} ({ipv4})"),
                (None, _) => format!("no reply from any of {asked} peers"),
            },
        }
    }

    fn map_line(&self) -> String {
        match &self.status.network {
            None => "none".to_owned(),
            Some(network) if self.check.installed => {
                format!("revision {}, installed in the data plane", network.revision)
            }
            Some(network) => format!("revision {}, NOT YET installed in the data plane", network.revision),
        }
    }
}

impl Document for Joined {
    fn text(&self, _: u64) -> String {
        let mut facts = Columns::bare();
        if let Some(network) = &self.status.network {
            let verb = if self.enrolled { "joined" } else { "was in" };
            facts.row([
                verb.to_owned(),
                format!("network {} as {} (id {})", network.name, network.me.name, network.me.id),
            ]);
            facts.row(["addresses".to_owned(), network.me.addresses()]);
        }
        facts.row(["map".to_owned(), self.map_line()]);
        facts.row(["ping".to_owned(), self.ping_line()]);
        if let Some(plane) = &self.status.data_plane {
            facts.row(["device".to_owned(), format!("{}, udp port {}", plane.interface, plane.listen_port)]);
            facts.row(["io".to_owned(), plane.io_line()]);
            facts.row(["offloads".to_owned(), plane.offloads.clone()]);
            facts.row(["crypto".to_owned(), plane.crypto_line()]);
            facts.row(["mtu".to_owned(), plane.mtu.to_string()]);
        }
        facts.text()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{status::tests::running, tests::conforms};

    fn joined(ping: Option<FirstPing>, asked: usize) -> Joined {
        let ok = asked == 0 || ping.as_ref().is_some_and(|ping| ping.reply.path.is_some());
        Joined {
            enrolled: true,
            check: Check { ok, installed: true, asked, ping },
            status: Status::from(running()),
        }
    }

    fn reply(path: Option<&str>) -> Reply {
        Reply {
            sequence: 0,
            path: path.map(str::to_owned),
            via: None,
            loss_percent: None,
            endpoint: path.map(|_| "203.0.113.1:51820".to_owned()),
            rtt_us: path.map(|_| 420),
            error: if path.is_none() { Some("no handshake in 5 s".to_owned()) } else { None },
        }
    }

    fn first(path: Option<&str>) -> FirstPing {
        FirstPing { node: "web1".to_owned(), ipv4: "100.64.0.1".to_owned(), reply: reply(path) }
    }

    #[test]
    fn join_ends_with_addresses_revision_ping_back_end_and_mtu() {
        let joined = joined(Some(first(Some("direct"))), 1);
        insta::assert_snapshot!(joined.text(0));
        conforms("join", &joined);
    }

    #[test]
    fn the_first_node_has_nobody_to_ping() {
        assert!(joined(None, 0).text(0).contains("\nping       no peer yet\n"));
    }

    #[test]
    fn silence_is_shown_as_such() {
        let one = joined(Some(first(None)), 1).text(0);
        assert!(one.contains("no reply from web1 (100.64.0.1)"), "{one}");
        let many = joined(Some(first(None)), 3).text(0);
        assert!(many.contains("no reply from any of 3 peers"), "{many}");
    }
}
