//! Whole pipelines whose kernel is memory.

use std::collections::BTreeMap;

use crossbeam::channel::{Receiver, Sender, bounded};
use futures_util::FutureExt as _;
use ringmesh_io::{MemoryIo, OUTBOX_PACKETS, OUTBOX_TRAINS, PacketIo as _};
use ringmesh_tunnel::{
    Carrier, Dial, Handshaker, Job, JobDone, Path, PeerConfig, Psk, Random,
    filter::Filter,
    ip::Prefix,
    key::{NodeId, PresharedKey, PublicKey, SecretKey},
};
use tokio::sync::oneshot;

use super::*;
use crate::fallback::{self, DialOpen, Hub, LinkEnd};

/// A pipeline whose kernel is memory and whose handshaker runs when it is told to.
struct Side {
    number: u8,
    io: MemoryIo,
    pipeline: Pipeline,
    commands: mpsc::Sender<Command>,
    events: mpsc::Receiver<Event>,
    handshaker: Handshaker,
    jobs: Receiver<Job>,
    results: Sender<JobDone>,
    hub: Hub,
    dials: mpsc::Receiver<DialOpen>,
}

fn address(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number], 51820))
}

/// A UDP packet from one side to another.
fn packet(from: u8, to: u8, length: usize) -> Vec<u8> {
    let mut packet = vec![0xaa; length];
    packet[..20]
        .copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 100, 64, 0, from, 100, 64, 0, to]);
    packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    packet
}

impl Side {
    fn new(number: u8, jobs_bound: usize) -> (Self, PublicKey) {
        let secret = SecretKey::from_bytes([number; 32]);
        let (jobs_out, jobs) = bounded(jobs_bound);
        let (results, results_in) = bounded(16);
        let (commands, commands_in) = mpsc::channel(8);
        let (events_out, events) = mpsc::channel(8);
        let key = secret.public_key();
        let tunnel = Tunnel::new(0, key, Random::seeded(number.into())).unwrap();
        let handshakes = Handshakes { jobs: jobs_out, results: results_in };
        let io = MemoryIo::new(1408).unwrap();
        let (links, hub, dials) = fallback::links(io.waker());
        let side = Self {
            number,
            io,
            pipeline: Pipeline::new(tunnel, handshakes, links, commands_in, events_out),
            commands,
            events,
            handshaker: Handshaker::new(&secret, Random::seeded(u64::from(number) + 100)),
            jobs,
            results,
            hub,
            dials,
        };
        (side, key)
    }

    /// Makes `key` the only peer, at `number`'s address, and lets everything pass.
    fn apply(&mut self, number: u8, key: PublicKey, allowed: u8) {
        self.apply_with(number, key, allowed, Filter::allow_all());
    }

    /// The same, with a filter.
    fn apply_with(&mut self, number: u8, key: PublicKey, allowed: u8, filter: Filter) {
        let peer = PeerConfig {
            id: NodeId::from_bytes([number; 8]),
            key,
            psk: Psk::Fixed(PresharedKey::from_bytes([7; 32])),
            mesh: true,
            allowed_ips: vec![Prefix::host([100, 64, 0, allowed].into())],
            candidates: vec![address(number)],
            links: Vec::new(),
            relay: false,
            persistent_keepalive: None,
        };
        self.handshaker.apply(std::slice::from_ref(&peer));
        let (installed, mut wait) = oneshot::channel();
        self.command(Command::Apply(vec![peer], filter.into(), installed));
        wait.try_recv().expect("it is installed when the turn is over");
    }

    fn command(&mut self, command: Command) {
        self.commands.try_send(command).unwrap();
        self.io.waker().wake();
        self.turn();
    }

    /// One turn at the present moment.
    fn turn(&mut self) {
        let now = self.io.now().monotonic;
        self.io.turn(Some(now), &mut self.pipeline).unwrap();
        self.pipeline.answer_reports(self.io.counters());
    }

    fn run_handshaker(&mut self) {
        let now = both_clocks(self.io.now());
        while let Ok(job) = self.jobs.try_recv() {
            self.results.send(self.handshaker.run(job, 0, now)).unwrap();
            self.io.waker().wake();
        }
    }

    fn report(&mut self) -> WorkerReport {
        let (report, mut wait) = oneshot::channel();
        self.command(Command::Report(report));
        wait.try_recv().unwrap()
    }
}

/// Two sides that know each other.
fn pair() -> (Side, Side) {
    let ((mut one, one_key), (mut two, two_key)) = (Side::new(1, 16), Side::new(2, 16));
    one.apply(2, two_key, 2);
    two.apply(1, one_key, 1);
    (one, two)
}

/// Carries datagrams until neither side has any more.
fn settle(one: &mut Side, two: &mut Side) {
    for _ in 0..20 {
        for side in [&mut *one, &mut *two] {
            side.turn();
            side.run_handshaker();
            side.turn();
            side.turn();
        }
        for (to, datagram) in one.io.take_datagrams() {
            assert_eq!(to, address(two.number));
            two.io.push_datagram(address(one.number), &datagram);
        }
        for (to, datagram) in two.io.take_datagrams() {
            assert_eq!(to, address(one.number));
            one.io.push_datagram(address(two.number), &datagram);
        }
    }
}

#[test]
fn a_packet_crosses_two_pipelines_and_is_counted_on_both() {
    let (mut one, mut two) = pair();
    let first = packet(1, 2, 100);
    one.io.push_packet(&first);
    settle(&mut one, &mut two);
    assert_eq!(two.io.take_packets(), std::slice::from_ref(&first), "held while the handshake ran");
    let answer = packet(2, 1, 1408);
    two.io.push_packet(&answer);
    settle(&mut one, &mut two);
    assert_eq!(one.io.take_packets(), [answer]);

    let (one, two) = (one.report(), two.report());
    let expected = Traffic { sent_packets: 1, sent_bytes: 100, received_packets: 1, received_bytes: 1408 };
    assert_eq!(one.traffic, expected);
    assert_eq!((two.traffic.received_packets, two.traffic.received_bytes), (1, 100));
    assert_eq!(one.drops, BTreeMap::new());
    assert_eq!(one.peers.len(), 1);
    assert!(one.peers[0].received_bytes > 1408);
}

#[test]
fn a_ping_comes_back_as_an_event() {
    let (mut one, mut two) = pair();
    let (sent, mut wait) = oneshot::channel();
    one.command(Command::Ping(NodeId::from_bytes([2; 8]), 77, sent));
    assert_eq!(wait.try_recv().unwrap(), Ok(()));
    settle(&mut one, &mut two);
    let mut pongs = 0;
    while let Ok(event) = one.events.try_recv() {
        if let Event::Pong { token, path, .. } = event {
            assert_eq!((token, path), (77, Path::Udp(address(2))));
            pongs += 1;
        }
    }
    assert_eq!(pongs, 1);
}

#[test]
fn a_removed_peer_is_cut_off_by_the_same_turn() {
    let (mut one, mut two) = pair();
    one.io.push_packet(&packet(1, 2, 100));
    settle(&mut one, &mut two);
    let (installed, _wait) = oneshot::channel();
    two.io.take_packets();
    two.command(Command::Apply(Vec::new(), Filter::allow_all().into(), installed));
    one.io.push_packet(&packet(1, 2, 100));
    settle(&mut one, &mut two);
    assert!(two.io.take_packets().is_empty());
    assert!(two.report().drops[&DropReason::UnknownIndex] >= 1);
}

#[test]
fn nothing_passes_before_a_filter_came_nor_what_the_one_in_force_denies() {
    let ((mut one, one_key), (mut two, two_key)) = (Side::new(1, 16), Side::new(2, 16));
    one.apply(2, two_key, 2);
    two.apply_with(1, one_key, 1, Filter::deny_all());
    one.io.push_packet(&packet(1, 2, 100));
    settle(&mut one, &mut two);
    assert!(two.io.take_packets().is_empty());
    assert_eq!(two.report().drops.iter().filter(|(reason, _)| reason.is_of_filter()).count(), 1);
    assert_eq!(two.report().traffic, Traffic::default());

    two.apply(1, one_key, 1);
    one.io.push_packet(&packet(1, 2, 100));
    settle(&mut one, &mut two);
    assert_eq!(two.io.take_packets().len(), 1);

    // The next packet of a flow that there is meets the next filter, inwards and outwards.
    for side in [&mut two, &mut one] {
        let (number, key) = if side.number == 2 { (1, one_key) } else { (2, two_key) };
        side.apply_with(number, key, number, Filter::deny_all());
    }
    for side in [&mut one, &mut two] {
        let (from, to) = (side.number, 3 - side.number);
        side.io.push_packet(&packet(from, to, 100));
    }
    let before = (one.report().traffic, two.report().traffic);
    settle(&mut one, &mut two);
    assert_eq!((one.report().traffic, two.report().traffic), before);
    assert!(one.io.take_packets().is_empty() && two.io.take_packets().is_empty());
}

#[test]
fn drops_are_named() {
    let (mut one, mut two) = pair();
    one.io.push_packet(&packet(1, 9, 100));
    one.io.push_packet(&[0x45, 0, 0]);
    one.io.push_datagram(address(9), b"hello");
    settle(&mut one, &mut two);
    let report = one.report();
    assert_eq!((report.drops[&DropReason::NoAllowedIp], report.drops[&DropReason::UnknownMessage]), (1, 1));
    assert!(report.drops.contains_key(&DropReason::MalformedPacket), "{:?}", report.drops);
    assert_eq!(report.traffic.sent_packets, 0);
}

#[test]
fn jobs_beyond_the_handshakers_queue_are_dropped_and_counted() {
    let (mut one, mut two) = pair();
    one.io.push_packet(&packet(1, 2, 100));
    one.turn();
    one.run_handshaker();
    one.turn();
    one.turn();
    let (_, initiation) = one.io.take_datagrams().pop().expect("an initiation");
    // Nobody takes the jobs meanwhile.
    for _ in 0..20 {
        two.io.push_datagram(address(1), &initiation);
    }
    two.turn();
    assert_eq!(two.jobs.len(), 16);
    assert_eq!(two.report().drops[&DropReason::HandshakeQueueFull], 4);
}

#[test]
fn packets_beyond_the_outbox_and_beyond_the_mtu_are_counted() {
    let (mut one, mut two) = pair();
    one.io.push_packet(&packet(1, 2, 100));
    settle(&mut one, &mut two);
    one.io.push_packet(&packet(1, 2, 1500));
    one.turn();
    // As the segments of one large packet do: between packets, a back end reads TUN only while there is room.
    let now = one.io.now();
    for _ in 0..OUTBOX_TRAINS + 44 {
        let segment = packet(1, 2, 100);
        one.pipeline.packets(&[SuperPacket::single(&segment)], one.io.outbox(), now);
    }
    let drops = one.report().drops;
    assert_eq!(drops, BTreeMap::from([(DropReason::OutboxFull, 44), (DropReason::PacketUnfit, 1)]));
}

#[test]
fn events_beyond_the_daemons_queue_are_lost_and_counted() {
    let (mut one, mut two) = pair();
    one.io.push_packet(&packet(1, 2, 100));
    settle(&mut one, &mut two);
    while one.events.try_recv().is_ok() {}
    // Nobody takes the events meanwhile.
    for token in 0..11 {
        let (sent, mut wait) = oneshot::channel();
        one.command(Command::Ping(NodeId::from_bytes([2; 8]), token, sent));
        assert_eq!(wait.try_recv().unwrap(), Ok(()));
        settle(&mut one, &mut two);
    }
    assert_eq!(one.events.len(), 8);
    let drops = one.report().drops;
    // Eleven answers at least, of which eight fit.
    assert!(drops[&DropReason::EventQueueFull] >= 3 && drops.len() == 1, "{drops:?}");
}

#[test]
fn a_stop_ends_the_loop_and_so_does_a_daemon_that_is_gone() {
    let (mut one, mut two) = pair();
    assert!(!one.pipeline.is_stopping());
    one.command(Command::Stop);
    assert!(one.pipeline.is_stopping());
    let (gone, _) = mpsc::channel(1);
    two.commands = gone;
    two.io.waker().wake();
    two.turn();
    assert!(two.pipeline.is_stopping());
}

/// A stream between two sides, of which each thinks that the other opened it.
struct Cable {
    one: LinkEnd,
    two: LinkEnd,
}

impl Cable {
    fn between(one: &Side, two: &Side) -> Self {
        Self { one: one.hub.accept(Carrier::Ssh), two: two.hub.accept(Carrier::Ssh) }
    }

    /// Carries what waits.
    fn carry(&self) {
        for (from, to) in [(&self.one, &self.two), (&self.two, &self.one)] {
            let mut frames = from.buffer(1024);
            if from.outgoing(&mut frames).now_or_never().is_some() {
                to.deliver(frames).now_or_never().expect("the worker emptied its queue");
            }
        }
    }
}

/// Carries what goes through the cable, and nothing else, until neither side has any more.
fn settle_by(cable: &Cable, one: &mut Side, two: &mut Side) {
    for _ in 0..20 {
        for side in [&mut *one, &mut *two] {
            side.turn();
            side.run_handshaker();
            side.turn();
            side.turn();
            side.io.take_datagrams();
        }
        cable.carry();
    }
}

fn framed(datagram: &[u8]) -> Vec<u8> {
    let mut frames = Vec::new();
    ringmesh_relay::frame::push(&mut frames, datagram).unwrap();
    frames
}

/// Two sides with a session, whose first message went through the cable.
fn pair_by_cable() -> (Side, Side, Cable) {
    let (mut one, mut two) = pair();
    let cable = Cable::between(&one, &two);
    one.io.push_packet(&packet(1, 2, 100));
    one.turn();
    one.run_handshaker();
    one.turn();
    one.turn();
    let (_, initiation) = one.io.take_datagrams().pop().expect("an initiation");
    cable.two.deliver(framed(&initiation)).now_or_never().unwrap();
    settle_by(&cable, &mut one, &mut two);
    assert_eq!(two.io.take_packets(), [packet(1, 2, 100)], "held while the handshake ran");
    (one, two, cable)
}

#[test]
fn packets_cross_a_link_both_ways_and_are_counted() {
    let (mut one, mut two, cable) = pair_by_cable();
    let answer = packet(2, 1, 1408);
    two.io.push_packet(&answer);
    settle_by(&cable, &mut one, &mut two);
    assert_eq!(one.io.take_packets(), [answer]);
    let report = one.report();
    let expected = Traffic { sent_packets: 1, sent_bytes: 100, received_packets: 1, received_bytes: 1408 };
    assert_eq!(report.traffic, expected);
    assert_eq!(report.drops, BTreeMap::new());
    assert_eq!(report.peers[0].endpoint, Some(Path::Link(cable.one.link())));
}

#[test]
fn a_link_is_proven_by_what_was_opened_and_not_by_what_anybody_could_send() {
    let (mut one, mut two) = pair();
    let cable = Cable::between(&one, &two);
    one.io.push_packet(&packet(1, 2, 100));
    one.turn();
    one.run_handshaker();
    one.turn();
    one.turn();
    let (_, initiation) = one.io.take_datagrams().pop().expect("an initiation");
    // Whoever saw one can repeat it.
    cable.two.deliver(framed(&initiation)).now_or_never().unwrap();
    let forged = [&[DATA, 0, 0, 0], &[7; 60][..]].concat();
    cable.two.deliver(framed(&forged)).now_or_never().unwrap();
    two.turn();
    assert!(!cable.two.is_proven());
    settle_by(&cable, &mut one, &mut two);
    assert!(cable.two.is_proven(), "the held packet came");
}

#[test]
fn a_link_by_which_only_junk_came_ends_unnoticed_and_one_of_a_session_does_not() {
    let (_one, mut two, cable) = pair_by_cable();
    let stranger = two.hub.accept(Carrier::Ssh);
    stranger.deliver(framed(&[9; 40])).now_or_never().unwrap();
    stranger.deliver(framed(&[&[DATA, 0, 0, 0], &[7; 60][..]].concat())).now_or_never().unwrap();
    two.turn();
    drop(stranger);
    assert!(two.pipeline.links.receive().is_none(), "no peer is asked for it");
    drop(cable);
    assert!(matches!(two.pipeline.links.receive(), Some(Arrival::Closed { .. })));
}

#[test]
fn what_the_outbox_has_no_room_for_waits_for_the_next_turn_in_order() {
    let (mut one, mut two, cable) = pair_by_cable();
    // Fewer than a link's bounds, more than TUN takes in a turn.
    let packets: Vec<_> = (0..OUTBOX_PACKETS * 2 + 9).map(|n| packet(1, 2, 100 + n)).collect();
    for sent in &packets {
        one.io.push_packet(sent);
        one.turn();
    }
    one.turn();
    cable.carry();
    let mut turns = 0;
    while two.pipeline.behind.is_some() || turns == 0 {
        two.turn();
        turns += 1;
        let now = two.io.now().monotonic;
        assert!(two.pipeline.deadline().is_none_or(|at| at <= now) || two.pipeline.behind.is_none());
        assert!(turns < 10, "it must end");
    }
    two.turn();
    assert_eq!(turns, 3);
    assert_eq!(two.io.take_packets(), packets);
    assert_eq!(two.report().drops, BTreeMap::new());
}

#[test]
fn a_flood_of_junk_in_a_link_does_not_hold_up_a_turn() {
    let (mut one, mut two, cable) = pair_by_cable();
    let junk: Vec<u8> = (0..LINK_DATAGRAMS_PER_TURN + 1).flat_map(|_| framed(&[9; 40])).collect();
    cable.two.deliver(junk).now_or_never().unwrap();
    two.turn();
    assert!(two.pipeline.behind.is_some(), "one is left for the next turn");
    let first = two.report().drops[&DropReason::UnknownMessage];
    assert!(first >= LINK_DATAGRAMS_PER_TURN as u64, "{first}");
    one.io.push_packet(&packet(1, 2, 100));
    settle_by(&cable, &mut one, &mut two);
    assert_eq!(two.io.take_packets().len(), 1);
    assert_eq!(two.report().drops[&DropReason::UnknownMessage], LINK_DATAGRAMS_PER_TURN as u64 + 1);
}

#[test]
fn what_a_link_does_not_take_is_counted() {
    let (mut one, _two, _cable) = pair_by_cable();
    let fits = fallback::OUTGOING_BYTES / 1442;
    for _ in 0..fits + 20 {
        one.io.push_packet(&packet(1, 2, 1408));
        one.turn();
    }
    let full = one.report().drops[&DropReason::LinkFull];
    assert!((10..=20).contains(&full), "{full} of {fits} and 20 more");
    assert!(!one.report().drops.contains_key(&DropReason::LinkGone));
}

#[test]
fn a_wish_of_the_worker_reaches_the_dialer_and_its_failure_comes_back() {
    let (mut one, _) = pair();
    let open = Dial::Open { peer: NodeId::from_bytes([2; 8]), candidate: 3, carrier: Carrier::WebSocket };
    one.pipeline.links.dial(open);
    let asked = one.dials.try_recv().unwrap();
    assert_eq!((asked.candidate, asked.carrier), (3, Carrier::WebSocket));
    one.hub.failed(asked.peer, asked.candidate);
    one.turn();
    assert!(one.pipeline.links.receive().is_none(), "the turn took it");
}
