//! How a path is named, and the relays that a path may lead through: the same words wherever one is shown.

use ringmesh_proto::local;
use serde::Serialize;

use super::table::{Columns, round_trip};

/// A path in words: `direct 203.0.113.7:51820`, `relay "fra" at 198.51.100.2:443`, `websocket "fra" at wss://fra.example.org/relay/v1`,
/// `ssh 203.0.113.7:22`; empty if there is none.
///
/// `endpoint` is where datagrams leave this machine, `via` the relay in between; either may be empty. A stream that came
/// from elsewhere leads nowhere: its name stands alone, as `incoming ssh link`.
pub(crate) fn named(path: &str, via: &str, endpoint: &str) -> String {
    match (path, via, endpoint) {
        ("", ..) => String::new(),
        (_, "", "") => path.to_owned(),
        (_, "", _) if endpoint.starts_with("incoming ") => endpoint.to_owned(),
        (_, "", _) => format!("{path} {endpoint}"),
        (_, _, "") => format!("{path} \"{via}\""),
        _ => format!("{path} \"{via}\" at {endpoint}"),
    }
}

/// A round trip in a cell, empty if none was measured.
pub(crate) fn rtt(us: Option<u32>) -> String {
    us.map_or_else(String::new, round_trip)
}

/// How many probes went unanswered, in a cell: `12%`, empty if none was sent.
pub(crate) fn loss(percent: Option<u32>) -> String {
    percent.map_or_else(String::new, |percent| format!("{percent}%"))
}

/// A node that passes on what cannot go straight, seen from here.
#[derive(Debug, Serialize)]
pub(crate) struct Relay {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) state: String,
    pub(crate) path: String,
    pub(crate) endpoint: String,
    pub(crate) rtt_us: Option<u32>,
    pub(crate) loss_percent: Option<u32>,
    pub(crate) seen_as: String,
}

impl From<local::Relay> for Relay {
    fn from(relay: local::Relay) -> Self {
        Self {
            id: relay.id,
            name: relay.name,
            state: relay.state,
            path: relay.path,
            endpoint: relay.endpoint,
            rtt_us: relay.rtt_us,
            loss_percent: relay.loss_percent,
            seen_as: relay.seen_as,
        }
    }
}

/// Relays by name, so that two calls can be compared.
pub(crate) fn relays(relays: Vec<local::Relay>) -> Vec<Relay> {
    let mut relays: Vec<Relay> = relays.into_iter().map(Relay::from).collect();
    relays.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    relays
}

/// A line for each relay.
pub(crate) fn relay_table(relays: &[Relay]) -> String {
    let mut table = Columns::new(["RELAY", "STATE", "PATH", "RTT", "LOSS", "SEEN AS"]);
    for relay in relays {
        table.row([
            relay.name.clone(),
            relay.state.clone(),
            named(&relay.path, "", &relay.endpoint),
            rtt(relay.rtt_us),
            loss(relay.loss_percent),
            relay.seen_as.clone(),
        ]);
    }
    table.text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_says_how_through_whom_and_where() {
        for (path, via, endpoint, text) in [
            ("direct", "", "203.0.113.7:51820", "direct 203.0.113.7:51820"),
            ("relay", "fra", "198.51.100.2:443", "relay \"fra\" at 198.51.100.2:443"),
            ("websocket", "fra", "", "websocket \"fra\""),
            ("ssh", "", "203.0.113.7:22", "ssh 203.0.113.7:22"),
            ("ssh", "", "me@gate.example:22", "ssh me@gate.example:22"),
            ("ssh", "", "incoming ssh link", "incoming ssh link"),
            ("direct", "", "", "direct"),
            ("", "", "203.0.113.7:51820", ""),
        ] {
            assert_eq!(named(path, via, endpoint), text);
        }
    }

    #[test]
    fn no_probe_is_not_the_same_as_no_loss() {
        assert_eq!((loss(None), loss(Some(0)), loss(Some(12))), (String::new(), "0%".into(), "12%".into()));
    }
}
