//! What a mesh tells monitoring: series made of what is held, installed and counted, when somebody asks.
//!
//! The worker answers with a copy of its plain words; nothing here is on a packet's way.

use std::{collections::BTreeMap, time::Duration};

use ringmesh_io::{BackEnd, Counters};
use ringmesh_monitor::{Check, Registry, Series, Unit, relay};
use ringmesh_tunnel::{
    DropReason, HandshakeCounts, PathKind, PeerState, PeerStatus, Volume,
    filter::{Direction, FilterReport},
    netmap::Member,
    time::UnixTime,
};

use super::{
    Held, Mesh, Stage, durable,
    link::LinkState,
    reach::{rtt_of, selected},
    status::state_of_peer,
};
use crate::{
    clock, dns,
    peers::{self, is_relay},
    plane::{DataPlane, Plane, WorkerReport},
};

/// A map that no coordinator vouched for in this time is stale: as long as a head is good for.
const STALE_AFTER: Duration = Duration::from_secs(60 * 60);
/// Quantiles shown of what the selected paths have.
const QUANTILES: [(&str, f64); 4] = [("0.5", 0.5), ("0.9", 0.9), ("0.99", 0.99), ("1", 1.0)];

impl Mesh {
    /// Puts everything there is to count into `registry`.
    pub(crate) async fn measure(&self, registry: &mut Registry) {
        let held = self.held();
        let now = clock::wall();
        self.measure_map(registry, &held, now);
        let running = self.plane();
        match running.as_deref() {
            Some(Plane::Packets(plane)) => {
                // One that does not answer is told by `/livez`; what is known besides is told all the same.
                if let Ok(report) = plane.report().await {
                    self.measure_plane(registry, &held, plane, &report, now);
                }
            }
            Some(Plane::Relay(plane)) => {
                if let Ok(report) = plane.report().await {
                    relay::measure(registry, &report);
                }
            }
            None => {}
        }
        if let Some(report) = self.dns_report() {
            measure_dns(registry, &report);
        }
    }

    /// How long ago a coordinator vouched for the map, or this mesh began without one.
    fn map_age(&self, held: &Held) -> Duration {
        held.vouched.unwrap_or(self.begun).elapsed()
    }

    fn measure_map(&self, registry: &mut Registry, held: &Held, now: UnixTime) {
        let gauge = |value: u64| Series::gauge().count([], value);
        registry.register("node_map_revision", "Durable revision of the map held", gauge(durable(&held.map)));
        registry.register(
            "node_installed_revision",
            "Durable revision of the map in the data plane; 0 if none is",
            gauge(held.installed),
        );
        registry.register_with_unit(
            "node_map_age",
            "Time since a coordinator vouched for the map, or since the start",
            Unit::Seconds,
            Series::gauge().with([], self.map_age(held).as_secs_f64()),
        );
        registry.register(
            "node_coordinator_connected",
            "Whether the map stream is open",
            gauge(u64::from(self.link().state == LinkState::Connected)),
        );
        let left = |until: UnixTime| (until.as_millis() as f64 - now.as_millis() as f64) / 1e3;
        let mut expiry = Series::gauge();
        if let Some(me) = held.map.me() {
            expiry.set([("of", "membership")], left(me.not_after));
        }
        if let Some(policy) = held.map.policy() {
            expiry.set([("of", "policy")], left(policy.not_after));
        }
        registry.register_with_unit(
            "key_expiry",
            "Time until what lets packets pass ends, unless a coordinator renews it",
            Unit::Seconds,
            expiry,
        );
    }

    fn measure_plane(
        &self,
        registry: &mut Registry,
        held: &Held,
        plane: &DataPlane,
        report: &WorkerReport,
        now: UnixTime,
    ) {
        let known: BTreeMap<_, _> = report.peers.iter().map(|peer| (peer.id, peer)).collect();
        let members = || {
            let peers = held.map.peers(now).filter(|member| !is_relay(member));
            peers.map(|member| (member, known.get(&member.id).copied()))
        };
        let mut peers = Series::gauge();
        for (member, peer) in members() {
            let state = state_of_peer(peer, peers::has_key(&held.secrets, member));
            peers.add(
                [("path", peer.and_then(path_of).map_or("none", PathKind::as_str)), ("state", state)],
                1,
            );
        }
        registry.register("peers", "Peers by the path in use and by state, relays not among them", peers);
        measure_carried(registry, report);
        measure_drops(registry, report);
        measure_handshakes(registry, &report.handshakes);
        measure_paths(registry, members().filter_map(|(_, peer)| peer));
        measure_filter(registry, report);
        measure_io(registry, &report.io, plane.chosen().back_end);
        let (crypto, offloads) = (plane.crypto().kernel.as_str(), plane.offloads().to_string());
        registry.register(
            "data_plane",
            "What encrypts packets, and the kernel's offloads in use",
            Series::info().count([("crypto", crypto), ("offloads", &offloads)], 1),
        );
        let waiting: usize = report.peers.iter().map(|peer| peer.held_packets).sum();
        registry.register(
            "held_packets",
            "Packets that wait for a session or a path",
            Series::gauge().count([], waiting as u64),
        );
        if self.config.metrics.per_peer {
            measure_each_peer(registry, members(), now);
            measure_rules(registry, &report.filter);
        }
    }

    /// What must hold for this member to do what it is there for.
    pub(crate) async fn ready(&self) -> Vec<Check> {
        let held = self.held();
        let check = |name, result: Result<String, String>| match result {
            Ok(detail) => Check { name, ok: true, detail },
            Err(detail) => Check { name, ok: false, detail },
        };
        let plane = self.plane();
        let mut checks = vec![
            check("joined", self.is_member()),
            check("map", self.map_is_good(&held, clock::wall())),
            check(
                "data_plane",
                if plane.is_some() { Ok("runs".to_owned()) } else { Err("does not run".to_owned()) },
            ),
        ];
        if let Some(packets) = plane.as_deref().and_then(Plane::packets) {
            checks.push(check("interface", self.interface_is_up(packets.interface()).await));
        }
        checks
    }

    fn is_member(&self) -> Result<String, String> {
        if self.is_removed() {
            return Err("this node was removed from its network by an operator".to_owned());
        }
        Ok(format!("in network {}", self.membership().network_name))
    }

    fn map_is_good(&self, held: &Held, now: UnixTime) -> Result<String, String> {
        match &*self.watch_stage().borrow() {
            Stage::Running => {}
            Stage::Waiting => return Err("no map has come yet".to_owned()),
            Stage::Stuck(failure) | Stage::Failed(failure) => return Err(failure.to_string()),
        }
        if !held.map.in_force(now) {
            return Err("this node's own membership has ended: a coordinator has to renew it".to_owned());
        }
        let age = self.map_age(held);
        if age > STALE_AFTER {
            return Err(format!("no coordinator has vouched for the map for {} min", age.as_secs() / 60));
        }
        Ok(format!("revision {} is in force", held.installed))
    }

    async fn interface_is_up(&self, name: &str) -> Result<String, String> {
        let index = self.netlink.index_of(name).await.map_err(|failure| failure.to_string())?;
        let running = self.netlink.running().await.map_err(|failure| failure.to_string())?;
        match index {
            Some(index) if running.contains(&index) => Ok(format!("{name} is up")),
            Some(_) => Err(format!("{name} is down: somebody switched it off (ip link set {name} up)")),
            None => Err(format!("{name} is gone: somebody removed it; restart the daemon")),
        }
    }
}

/// The kind of path that packets to a peer take.
fn path_of(peer: &PeerStatus) -> Option<PathKind> {
    let established = peer.state == PeerState::Established;
    Some(PathKind::of(peer.endpoint.filter(|_| established)?, peer.hop?))
}

fn measure_carried(registry: &mut Registry, report: &WorkerReport) {
    let both = |volumes: &mut dyn Iterator<Item = (PathKind, Volume)>| {
        let (mut bytes, mut packets) = (Series::counter(), Series::counter());
        for (kind, volume) in volumes {
            bytes.add([("path", kind.as_str())], volume.bytes);
            packets.add([("path", kind.as_str())], volume.packets);
        }
        (bytes, packets)
    };
    let (bytes, packets) = both(&mut report.carried.received());
    registry.register_with_unit(
        "rx",
        "Bytes of IP packets that came from peers and passed",
        Unit::Bytes,
        bytes,
    );
    registry.register("rx_packets", "IP packets that came from peers and passed", packets);
    let (bytes, packets) = both(&mut report.carried.sent());
    registry.register_with_unit("tx", "Bytes of IP packets sealed for peers", Unit::Bytes, bytes);
    registry.register("tx_packets", "IP packets sealed for peers", packets);
}

const DIRECTIONS: [(Direction, &str); 2] = [(Direction::In, "in"), (Direction::Out, "out")];

fn measure_drops(registry: &mut Registry, report: &WorkerReport) {
    let mut drops = Series::counter();
    for (direction, word) in DIRECTIONS {
        for &reason in DropReason::ALL {
            drops.add(
                [("direction", word), ("reason", reason.as_str())],
                report.dropped.by(direction, reason),
            );
        }
    }
    registry.register("drops", "Packets and datagrams that went no further, by reason", drops);
}

fn measure_handshakes(registry: &mut Registry, counts: &HandshakeCounts) {
    let mut ends = Series::counter();
    for (role, result, count) in [
        ("initiator", "completed", counts.initiated),
        ("initiator", "unanswered", counts.unanswered),
        ("initiator", "refused", counts.initiator_refused),
        ("responder", "completed", counts.responded),
        ("responder", "unconfirmed", counts.unconfirmed),
        ("responder", "refused", counts.responder_refused),
    ] {
        ends.add([("role", role), ("result", result)], count);
    }
    registry.register("handshakes", "Handshakes by who began them and how they ended", ends);
    let durations = &counts.duration;
    registry.register_with_unit(
        "handshake_duration",
        "From the first initiation of an attempt to the session, for those that this node began",
        Unit::Seconds,
        Series::histogram().observed([], durations.sum().as_secs_f64(), durations.buckets().collect()),
    );
}

fn measure_paths<'a>(registry: &mut Registry, peers: impl Iterator<Item = &'a PeerStatus>) {
    let (mut rtts, mut loss, mut mtu) = (Vec::new(), None, None);
    for peer in peers.filter(|peer| peer.state == PeerState::Established) {
        rtts.extend(rtt_of(peer));
        let Some(path) = selected(peer) else { continue };
        loss = loss.max(path.loss);
        mtu = Some(mtu.map_or(path.mtu, |least: u16| least.min(path.mtu)));
    }
    rtts.sort_unstable();
    let mut quantiles = Series::quantiles();
    for (word, quantile) in QUANTILES {
        if let Some(rtt) = nearest_rank(&rtts, quantile) {
            quantiles.set([("quantile", word)], rtt.as_secs_f64());
        }
    }
    registry.register_with_unit("path_rtt", "Round trips of the paths in use", Unit::Seconds, quantiles);
    let optional =
        |value: Option<f64>| value.map_or_else(Series::gauge, |value| Series::gauge().with([], value));
    registry.register(
        "path_loss_ratio",
        "Share of the last probes that were not answered, of the path in use that loses most",
        optional(loss.map(|percent| f64::from(percent) / 100.0)),
    );
    registry.register_with_unit(
        "path_mtu",
        "The longest packet that fits the narrowest path in use",
        Unit::Bytes,
        optional(mtu.map(f64::from)),
    );
}

/// The value that `quantile` of all, which are sorted, are at most.
fn nearest_rank(sorted: &[Duration], quantile: f64) -> Option<Duration> {
    let rank = (quantile * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

fn measure_filter(registry: &mut Registry, report: &WorkerReport) {
    let mut packets = Series::counter();
    for (direction, word) in DIRECTIONS {
        let allowed = match direction {
            Direction::In => report.filter.passed_in,
            Direction::Out => report.filter.passed_out,
        };
        let of_filter = DropReason::ALL.iter().filter(|reason| reason.is_of_filter());
        let denied = of_filter.map(|&reason| report.dropped.by(direction, reason)).sum();
        packets.add([("direction", word), ("verdict", "allowed")], allowed);
        packets.add([("direction", word), ("verdict", "denied")], denied);
    }
    registry.register("filter_packets", "Packets by the filter's verdict", packets);
    let gauge = |value: u64| Series::gauge().count([], value);
    registry.register(
        "filter_rules",
        "Rules in force that concern this node",
        gauge(report.filter.rules.len() as u64),
    );
    registry.register(
        "filter_flows",
        "Flows that have not timed out",
        gauge(report.filter.flows.values().sum()),
    );
}

fn measure_io(registry: &mut Registry, io: &Counters, back_end: BackEnd) {
    let counter = |value: u64| Series::counter().count([], value);
    let both = |received, sent| {
        Series::counter().count([("direction", "in")], received).count([("direction", "out")], sent)
    };
    registry.register(
        "io_datagrams",
        "Datagrams received from the network and handed to it, handshakes and probes among them",
        both(io.datagrams_received, io.datagrams_sent),
    );
    registry.register(
        "io_packets",
        "Packets read from TUN (out) and written to it (in)",
        both(io.packets_written, io.packets_read),
    );
    registry.register(
        "io_super_packets",
        "Reads from TUN (out) and writes to it (in) that were several packets",
        both(io.super_packets_written, io.super_packets_read),
    );
    registry.register(
        "io_trains",
        "Receives from the network and sends to it that were several datagrams",
        both(io.trains_received, io.trains_sent),
    );
    registry.register(
        "io_offloads_refused",
        "Sends and writes of several that the kernel refused, and that were done again one by one",
        counter(io.offloads_refused),
    );
    registry.register("io_system_calls", "System calls on the packet path", counter(io.system_calls));
    registry.register(
        "io_send_stalls",
        "Times the network took nothing more for the moment",
        counter(io.send_stalls),
    );
    registry.register(
        "io_receive_errors",
        "Errors of receiving that were not about a datagram of ours",
        counter(io.receive_errors),
    );
    if back_end == BackEnd::Uring {
        registry.register("uring_sqe", "Operations that io_uring took", counter(io.submissions));
        registry.register(
            "uring_cqe_overflow",
            "Times more completions waited than io_uring's queue has room for",
            counter(io.completions_overflowed),
        );
    }
}

fn measure_dns(registry: &mut Registry, report: &dns::Report) {
    let mut queries = Series::counter();
    for ((by, rcode), count) in &report.answers {
        let zone = match by {
            dns::By::Node => "own",
            dns::By::Upstream => "upstream",
        };
        queries.add([("zone", zone), ("rcode", rcode)], *count);
    }
    registry.register(
        "dns_queries",
        "DNS queries answered, by who knew: this node, or a resolver that was in place",
        queries,
    );
    let mut refused = Series::counter();
    for (reason, count) in &report.refusals {
        refused.add([("reason", reason)], *count);
    }
    registry.register(
        "dns_refused",
        "DNS queries without an answer, or without one from a resolver",
        refused,
    );
}

/// Series of each peer: as many as there are, so only for who asked.
fn measure_each_peer<'a>(
    registry: &mut Registry,
    members: impl Iterator<Item = (&'a Member, Option<&'a PeerStatus>)>,
    now: UnixTime,
) {
    let (mut received, mut sent) = (Series::counter(), Series::counter());
    let (mut rtt, mut handshake, mut path) = (Series::gauge(), Series::gauge(), Series::gauge());
    for (member, peer) in members.filter_map(|(member, peer)| Some((member, peer?))) {
        let label = ("peer", member.name.as_str());
        received.add([label], peer.received_bytes);
        sent.add([label], peer.sent_bytes);
        if let Some(of) = rtt_of(peer) {
            rtt.set([label], of.as_secs_f64());
        }
        if let Some(at) = peer.last_handshake {
            handshake.set([label], now.saturating_since(at).as_secs_f64());
        }
        path.set([label, ("path", path_of(peer).map_or("none", PathKind::as_str))], 1.0);
    }
    registry.register_with_unit("peer_rx", "Bytes of authentic datagrams from a peer", Unit::Bytes, received);
    registry.register_with_unit("peer_tx", "Bytes of datagrams to a peer", Unit::Bytes, sent);
    registry.register_with_unit("peer_rtt", "Round trip of the path to a peer", Unit::Seconds, rtt);
    registry.register_with_unit(
        "peer_handshake_age",
        "Time since a peer's last handshake",
        Unit::Seconds,
        handshake,
    );
    registry.register("peer_path", "The path in use to a peer: 1", path);
}

fn measure_rules(registry: &mut Registry, report: &FilterReport) {
    let (mut packets, mut flows, mut denials) = (Series::counter(), Series::counter(), Series::counter());
    for (rule, hits) in &report.rules {
        let rule = rule.to_string();
        packets.add([("rule", rule.as_str())], hits.packets);
        flows.add([("rule", rule.as_str())], hits.flows);
    }
    for (denial, count) in &report.denials {
        denials.add([("denial", denial.to_string().as_str())], *count);
    }
    registry.register("filter_rule_packets", "Packets of flows that a rule was the first to allow", packets);
    registry.register("filter_rule_flows", "Flows that a rule let be opened", flows);
    registry.register("filter_denial_packets", "Packets that a denial of this node's owner forbade", denials);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_a_value_that_so_many_are_at_most() {
        let millis = |list: &[u64]| list.iter().map(|ms| Duration::from_millis(*ms)).collect::<Vec<_>>();
        let ten = millis(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        let of = |quantile| nearest_rank(&ten, quantile).map(|rtt| rtt.as_millis());
        assert_eq!([0.5, 0.9, 0.99, 1.0].map(of), [Some(5), Some(9), Some(10), Some(10)]);
        assert_eq!(nearest_rank(&millis(&[7]), 0.5), Some(Duration::from_millis(7)));
        assert_eq!(nearest_rank(&[], 0.5), None);
    }
}
