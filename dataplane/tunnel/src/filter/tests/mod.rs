//! The filter at work, without a tunnel around it: one node, its peers' flows, and packets in both directions.

mod changes;
mod decisions;
mod floods;
mod fragments;
mod icmp;
mod model;
mod neighbours;
mod reports;
mod states;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::drop_reason::DropReason;
use crate::key::{NetworkId, NodeId, PublicKey};
use crate::netmap::{Member, MemberKind, PortRange, Protocol, Rule, Selector};
use crate::packet::build::{self, ACK, FIN, RST, SYN, tcp, udp};
use crate::packet::{Header, TCP, UDP};
use crate::random::Random;
use crate::time::{UnixTime, test_epoch};
use Direction::{In, Out};

/// The peer that most is about.
const PEER: u8 = 2;
/// The two ends of a flow, ours first, in both families.
const ENDS: [[&str; 2]; 2] = [["100.64.0.1", "100.64.0.2"], ["fd00::1", "fd00::2"]];

fn id(number: u8) -> NodeId {
    NodeId::from_bytes([number; 8])
}

/// Member `number` has 100.64.0.`number`, fd00::`number` and behind it 10.`number`.0.0/16.
fn member(number: u8) -> Member {
    Member {
        network: NetworkId::from_bytes([7; 16]),
        id: id(number),
        name: format!("n{number}"),
        kind: MemberKind::Mesh,
        relay: false,
        noise_key: PublicKey::from_bytes([number; 32]),
        identity_key: None,
        ipv4: Some([100, 64, 0, number].into()),
        ipv6: format!("fd00::{number}").parse().unwrap(),
        tags: Vec::new(),
        groups: Vec::new(),
        routes: vec![format!("10.{number}.0.0/16").parse().unwrap()],
        serial: 1,
        not_after: UnixTime::from_secs(u64::MAX / 2000),
    }
}

/// Who may open what: a direction seen from node 1, a transport, a port.
fn rule(direction: Direction, protocol: Protocol, port: Option<u16>) -> Rule {
    let (me, others) = (Selector::Node(id(1)), Selector::All);
    let (source, destination) = if direction == Out { (me, others) } else { (others, me) };
    let ports = port.into_iter().map(PortRange::from).collect();
    Rule { sources: vec![source], destinations: vec![destination], protocol, ports }
}

/// The filter of node 1 among nodes 1 to 4.
fn filter(rules: &[Rule], denials: &[Denial]) -> Filter {
    let members: Vec<Member> = (1..=4).map(member).collect();
    Filter::of(&members[0], &members, (0..).zip(rules), denials)
}

fn denial(id: u32, scope: Scope, protocol: Protocol) -> Denial {
    Denial { id, scope, peers: None, protocol, ports: Vec::new() }
}

/// Node 1, as far as its filter goes.
struct Node {
    gate: Gate,
    flows: BTreeMap<u8, Flows>,
    now: Instant,
}

impl Node {
    fn new(rules: &[Rule]) -> Self {
        let mut node = Self {
            gate: Gate::new(&mut Random::seeded(1)).unwrap(),
            flows: BTreeMap::new(),
            now: test_epoch(),
        };
        node.apply(filter(rules, &[]));
        node
    }

    fn apply(&mut self, filter: Filter) {
        self.gate.apply(Arc::new(filter), self.now);
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
    }

    fn judge_with(&mut self, peer: u8, direction: Direction, packet: &[u8]) -> Result<(), DropReason> {
        let header = Header::parse(packet)?;
        let flows = self.flows.entry(peer).or_default();
        let passage = Passage { direction, header: &header, packet, packets: 1 };
        let pass = self.gate.judge(id(peer), flows, passage, self.now)?;
        self.gate.passed(direction, pass, 1);
        Ok(())
    }

    /// Judges a packet to or from the usual peer.
    fn judge(&mut self, direction: Direction, packet: &[u8]) -> Result<(), DropReason> {
        self.judge_with(PEER, direction, packet)
    }

    fn count(&mut self, peer: u8) -> usize {
        // A report is as of the last time that was told.
        let in_force = self.gate.filter().clone();
        self.apply(in_force);
        self.gate.count(&self.flows[&peer])
    }
}

fn addresses(ends: [&str; 2]) -> [IpAddr; 2] {
    ends.map(|end| end.parse().unwrap())
}

/// A packet between two ends, from ours if it goes out.
fn between(ends: [&str; 2], direction: Direction, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let [near, far] = addresses(ends);
    match direction {
        Out => build::with(near, far, protocol, payload),
        In => build::with(far, near, protocol, payload),
    }
}

/// A UDP packet from port 1000 of its sender to port 53, or back.
fn asking(ends: [&str; 2], direction: Direction) -> Vec<u8> {
    between(ends, direction, UDP, &udp(1000, 53, b"?"))
}

fn answering(ends: [&str; 2], direction: Direction) -> Vec<u8> {
    between(ends, direction, UDP, &udp(53, 1000, b"!"))
}

/// A segment of the connection from port 50000 of whoever opens it to port 22, from there or back.
fn segment(ends: [&str; 2], opener: Direction, direction: Direction, flags: u8) -> Vec<u8> {
    let (source, destination) = if direction == opener { (50_000, 22) } else { (22, 50_000) };
    between(ends, direction, TCP, &tcp(source, destination, flags, &[]))
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// The shortest time that is told.
const TICK: Duration = Duration::from_millis(125);
