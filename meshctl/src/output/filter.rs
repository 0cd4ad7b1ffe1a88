//! `meshctl filter`: what this node's filter allows and denies, and how often.

use std::{collections::BTreeMap, fmt::Write as _};

use ringmesh_proto::local;
use serde::Serialize;

use super::{
    Document,
    plan::service,
    printable,
    rule::CountedRule,
    table::{Columns, moment},
};

/// What this node's owner denies beyond the policy.
#[derive(Debug, Serialize)]
pub(crate) struct Denial {
    pub(crate) id: u32,
    pub(crate) direction: String,
    /// Empty: everybody.
    pub(crate) peer: String,
    pub(crate) protocol: String,
    pub(crate) ports: String,
    /// 0: until it is removed.
    pub(crate) expires_ms: u64,
    pub(crate) packets: u64,
}

impl From<local::Denial> for Denial {
    fn from(denial: local::Denial) -> Self {
        Self {
            id: denial.id,
            direction: denial.direction,
            peer: denial.peer,
            protocol: denial.protocol,
            ports: denial.ports,
            expires_ms: denial.expires_ms,
            packets: denial.packets,
        }
    }
}

/// Flows that are remembered for a peer.
#[derive(Debug, Serialize)]
pub(crate) struct PeerFlows {
    pub(crate) name: String,
    pub(crate) flows: u64,
    pub(crate) most: u64,
}

/// The filter: `schemas/filter.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Filter {
    /// 0: there is no policy, so nothing is allowed.
    pub(crate) policy_serial: u64,
    pub(crate) rules: Vec<CountedRule>,
    pub(crate) denials: Vec<Denial>,
    pub(crate) flows: u64,
    pub(crate) peers: Vec<PeerFlows>,
    pub(crate) drops: BTreeMap<String, u64>,
}

impl From<local::FilterResponse> for Filter {
    fn from(response: local::FilterResponse) -> Self {
        let peer = |peer: local::PeerFlows| PeerFlows { name: peer.name, flows: peer.flows, most: peer.most };
        let mut rules: Vec<CountedRule> = response.rules.into_iter().map(CountedRule::from).collect();
        rules.sort_by_key(|counted| counted.rule.number);
        let mut denials: Vec<Denial> = response.denials.into_iter().map(Denial::from).collect();
        denials.sort_by_key(|denial| denial.id);
        let mut peers: Vec<PeerFlows> = response.peers.into_iter().map(peer).collect();
        peers.sort_by(|a, b| (b.flows, &a.name).cmp(&(a.flows, &b.name)));
        Self {
            policy_serial: response.policy_serial,
            rules,
            denials,
            flows: response.flows,
            peers,
            drops: response.drops.into_iter().collect(),
        }
    }
}

impl Filter {
    fn head(&self) -> String {
        let policy = match self.policy_serial {
            0 => "none, so nothing is allowed".to_owned(),
            serial => format!("serial {serial}"),
        };
        let mut head = Columns::bare();
        head.row(["policy".to_owned(), policy]);
        head.row(["flows".to_owned(), self.flows.to_string()]);
        head.text()
    }

    fn rule_table(&self) -> String {
        let mut table = Columns::new(CountedRule::HEADINGS);
        self.rules.iter().for_each(|rule| table.row(rule.cells()));
        table.text()
    }

    fn denial_table(&self, now: u64) -> String {
        let mut table = Columns::new(["DENIAL", "DIRECTION", "PEER", "PROTOCOL", "PORTS", "ENDS", "PACKETS"]);
        for denial in &self.denials {
            table.row([
                denial.id.to_string(),
                denial.direction.clone(),
                if denial.peer.is_empty() { "*" } else { &denial.peer }.to_owned(),
                denial.protocol.clone(),
                denial.ports.clone(),
                moment(denial.expires_ms, now),
                denial.packets.to_string(),
            ]);
        }
        table.text()
    }
}

impl Document for Filter {
    fn text(&self, now: u64) -> String {
        let mut text = self.head();
        if self.rules.is_empty() {
            text += "\nno rule of the policy is about this node: it opens and takes nothing\n";
        } else {
            let _ = write!(text, "\n{}", self.rule_table());
        }
        if !self.denials.is_empty() {
            let _ = write!(text, "\n{}", self.denial_table(now));
        }
        if !self.peers.is_empty() {
            let mut table = Columns::new(["PEER", "FLOWS", "AT MOST"]);
            for peer in &self.peers {
                table.row([peer.name.clone(), peer.flows.to_string(), peer.most.to_string()]);
            }
            let _ = write!(text, "\n{}", table.text());
        }
        if !self.drops.is_empty() {
            let mut table = Columns::new(["DROPPED", "PACKETS"]);
            for (reason, count) in &self.drops {
                table.row([reason.clone(), count.to_string()]);
            }
            let _ = write!(text, "\n{}", table.text());
        }
        text
    }
}

/// A denial that was added: `schemas/denial.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Added {
    pub(crate) denial: Denial,
}

impl Document for Added {
    fn text(&self, now: u64) -> String {
        let Denial { id, direction, peer, protocol, ports, expires_ms, .. } = &self.denial;
        let peer = if peer.is_empty() { "anybody" } else { peer };
        let who = match direction.as_str() {
            "in" => format!("from {peer}"),
            "out" => format!("to {peer}"),
            _ => format!("from and to {peer}"),
        };
        let ends = match expires_ms {
            0 => "until it is removed".to_owned(),
            at => format!("ends {}", moment(*at, now)),
        };
        printable(&format!("denial {id}: {} {who} on this node, {ends}\n", service(protocol, ports)))
    }
}

/// That a denial is gone: `schemas/denial-removed.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Removed {
    pub(crate) id: u32,
    /// Denials that this node still has.
    pub(crate) remaining: u64,
}

impl Document for Removed {
    fn text(&self, _: u64) -> String {
        let rest = match self.remaining {
            0 => "the policy alone decides now".to_owned(),
            1 => "1 other denial remains".to_owned(),
            count => format!("{count} other denials remain"),
        };
        format!("removed denial {}; {rest}\n", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{json, tests::conforms};

    const NOW: u64 = 1_790_000_000_000;

    fn rule(number: u32, packets: u64) -> local::FilterRule {
        local::FilterRule {
            number,
            source: "group:dev".to_owned(),
            destination: "tag:web".to_owned(),
            protocol: "tcp".to_owned(),
            ports: "443".to_owned(),
            packets,
            flows: packets / 100,
        }
    }

    fn denial(id: u32, direction: &str, peer: &str) -> local::Denial {
        local::Denial {
            id,
            direction: direction.to_owned(),
            peer: peer.to_owned(),
            protocol: "tcp".to_owned(),
            ports: "22".to_owned(),
            expires_ms: NOW + 3_540_000,
            packets: 3,
        }
    }

    fn filter() -> local::FilterResponse {
        local::FilterResponse {
            policy_serial: 5,
            rules: vec![rule(7, 0), rule(3, 3041)],
            denials: vec![
                denial(2, "in", "bob"),
                local::Denial {
                    expires_ms: 0,
                    protocol: "any".to_owned(),
                    ports: "*".to_owned(),
                    ..denial(1, "both", "")
                },
            ],
            flows: 32,
            peers: vec![
                local::PeerFlows { name: "web1".to_owned(), flows: 2, most: 16_384 },
                local::PeerFlows { name: "carol".to_owned(), flows: 30, most: 16_384 },
            ],
            drops: [("denied".to_owned(), 12), ("denied_locally".to_owned(), 3)].into(),
        }
    }

    #[test]
    fn a_filter_with_hits_denials_flows_and_drops() {
        insta::assert_snapshot!(Filter::from(filter()).text(NOW));
    }

    #[test]
    fn a_filter_as_json() {
        let filter = Filter::from(filter());
        conforms("filter", &filter);
        insta::assert_snapshot!(json(&filter).unwrap());
    }

    #[test]
    fn a_node_without_a_policy_allows_nothing_and_says_so() {
        let none = Filter::from(local::FilterResponse::default());
        conforms("filter", &none);
        let text = none.text(NOW);
        assert!(
            text.contains("none, so nothing is allowed") && text.contains("no rule of the policy"),
            "{text}"
        );
    }

    #[test]
    fn a_new_denial_is_read_back_in_words() {
        let text = |denial: local::Denial| {
            let added = Added { denial: Denial::from(denial) };
            conforms("denial", &added);
            added.text(NOW)
        };
        assert_eq!(text(denial(4, "in", "bob")), "denial 4: tcp/22 from bob on this node, ends in 59 min\n");
        let all = local::Denial {
            expires_ms: 0,
            protocol: "any".to_owned(),
            ports: "*".to_owned(),
            ..denial(5, "both", "")
        };
        assert_eq!(text(all), "denial 5: any from and to anybody on this node, until it is removed\n");
        assert!(text(denial(6, "out", "db")).contains("tcp/22 to db"));
    }

    #[test]
    fn the_policy_alone_decides_only_when_no_denial_is_left() {
        let text = |remaining| {
            let removed = Removed { id: 4, remaining };
            conforms("denial-removed", &removed);
            removed.text(0)
        };
        assert_eq!(text(0), "removed denial 4; the policy alone decides now\n");
        assert_eq!(text(1), "removed denial 4; 1 other denial remains\n");
        assert_eq!(text(2), "removed denial 4; 2 other denials remain\n");
    }
}
