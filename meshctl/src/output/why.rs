//! `meshctl why`: how a peer is reached, and what became of every other way to it.

use ringmesh_proto::local;
use serde::Serialize;

use super::{
    Document,
    path::{Relay, loss, relay_table, relays, rtt},
    peers::Peer,
    printable,
    table::{Columns, span},
};

/// The ways to a peer: `schemas/why.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Why {
    pub(crate) verdict: String,
    pub(crate) peer: Peer,
    pub(crate) candidates: Vec<Candidate>,
    pub(crate) relays: Vec<Relay>,
}

/// One way to a peer, taken or not.
#[derive(Debug, Serialize)]
pub(crate) struct Candidate {
    pub(crate) kind: String,
    pub(crate) address: String,
    pub(crate) origin: String,
    pub(crate) state: String,
    pub(crate) selected: bool,
    pub(crate) rtt_us: Option<u32>,
    pub(crate) loss_percent: Option<u32>,
    pub(crate) mtu: Option<u32>,
    pub(crate) heard_age_ms: Option<u64>,
    pub(crate) last_error: String,
    pub(crate) next_try_ms: Option<u64>,
}

impl From<local::WhyResponse> for Why {
    fn from(response: local::WhyResponse) -> Self {
        Self {
            verdict: response.verdict,
            peer: Peer::from(response.peer.unwrap_or_default()),
            candidates: response.paths.into_iter().map(Candidate::from).collect(),
            relays: relays(response.relays),
        }
    }
}

impl From<local::PathReport> for Candidate {
    fn from(report: local::PathReport) -> Self {
        Self {
            kind: report.kind,
            address: report.address,
            origin: report.origin,
            state: report.state,
            selected: report.selected,
            rtt_us: report.rtt_us,
            loss_percent: report.loss_percent,
            mtu: (report.mtu > 0).then_some(report.mtu),
            heard_age_ms: report.heard_age_ms,
            last_error: report.last_error,
            next_try_ms: report.next_try_ms,
        }
    }
}

impl Candidate {
    fn state(&self) -> String {
        let selected = if self.selected { ", selected" } else { "" };
        format!("{}{selected}", self.state)
    }

    fn next_try(&self) -> String {
        match self.next_try_ms {
            None => String::new(),
            Some(0) => "now".to_owned(),
            // Half a second is not none at all.
            Some(next) => format!("in {}", span(next.max(1000))),
        }
    }
}

impl Document for Why {
    fn text(&self, _: u64) -> String {
        let mut text = printable(&self.verdict).replace('\n', " ");
        text.push('\n');
        if !self.candidates.is_empty() {
            let mut table = Columns::new([
                "KIND",
                "ADDRESS",
                "ORIGIN",
                "STATE",
                "RTT",
                "LOSS",
                "HEARD",
                "NEXT TRY",
                "LAST ERROR",
            ]);
            for candidate in &self.candidates {
                table.row([
                    candidate.kind.clone(),
                    candidate.address.clone(),
                    candidate.origin.clone(),
                    candidate.state(),
                    rtt(candidate.rtt_us),
                    loss(candidate.loss_percent),
                    candidate.heard_age_ms.map_or_else(String::new, |age| format!("{} ago", span(age))),
                    candidate.next_try(),
                    candidate.last_error.clone(),
                ]);
            }
            text.push('\n');
            text.push_str(&table.text());
        }
        if !self.relays.is_empty() {
            text.push('\n');
            text.push_str(&relay_table(&self.relays));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{
        json,
        status::tests::{NOW, peer, relay},
        tests::conforms,
    };

    fn report(kind: &str, address: &str, origin: &str, state: &str) -> local::PathReport {
        local::PathReport {
            kind: kind.to_owned(),
            address: address.to_owned(),
            origin: origin.to_owned(),
            state: state.to_owned(),
            ..local::PathReport::default()
        }
    }

    fn relayed() -> local::WhyResponse {
        local::WhyResponse {
            verdict: "web1 is reached by the relay fra: both of its UDP addresses are silent.".to_owned(),
            peer: Some(local::Peer {
                path: "relay".to_owned(),
                via: "fra".to_owned(),
                endpoint: "198.51.100.2:443".to_owned(),
                ..peer("web1", 1)
            }),
            paths: vec![
                local::PathReport {
                    selected: true,
                    rtt_us: Some(32_100),
                    loss_percent: Some(0),
                    mtu: 1408,
                    heard_age_ms: Some(1_200),
                    ..report("relay", "fra", "map", "working")
                },
                local::PathReport {
                    loss_percent: Some(100),
                    last_error: "no answer to the last 3 probes".to_owned(),
                    next_try_ms: Some(4_000),
                    ..report("udp", "203.0.113.1:51820", "map", "dead")
                },
                local::PathReport {
                    next_try_ms: Some(400),
                    ..report("udp", "10.0.0.7:51820", "offered", "untried")
                },
                local::PathReport {
                    last_error: "connection refused".to_owned(),
                    ..report("ssh", "203.0.113.1:22", "map", "closed")
                },
            ],
            relays: vec![relay()],
        }
    }

    #[test]
    fn why_a_peer_is_reached_by_a_relay() {
        insta::assert_snapshot!(Why::from(relayed()).text(NOW));
    }

    #[test]
    fn why_as_json() {
        conforms("why", &Why::from(relayed()));
        insta::assert_snapshot!(json(&Why::from(relayed())).unwrap());
    }

    #[test]
    fn without_a_candidate_the_verdict_stands_alone() {
        let verdict = "phone has no address\nyet.".to_owned();
        let alone = local::WhyResponse { verdict, ..local::WhyResponse::default() };
        assert_eq!(Why::from(alone).text(NOW), "phone has no address yet.\n");
    }
}
