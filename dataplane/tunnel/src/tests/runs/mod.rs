//! Runs: what is sealed and opened together equals what is sealed and opened one by one.

mod counters;
mod edges;

use std::ops::Range;

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

use super::filter::{filter_of, rule};
use super::*;
use crate::drop_reason::DropCounters;
use crate::filter::Direction;
use crate::message::data_counter;
use crate::netmap::Protocol;
use crate::notice::{Notice, Offered};
use crate::outbound::{Route, Sealed, Sent};
use crate::path::Channel;
use crate::reach::BindAnswer;
use crate::relayed;
use crate::run::{MAX_RUN, Packet};

const MTU: usize = 1408;

/// Nodes 1 and 2, which are peers, and node 3, their relay; what one sends to where another is arrives at once.
///
/// Two with the same seed are the same to the last key.
struct Trio {
    nodes: [Node; 3],
    now: Now,
}

const NEAR: usize = 0;
const FAR: usize = 1;
/// The names by which the two ends know their pair at the relay.
const NEAR_CHANNEL: u32 = 71;
const FAR_CHANNEL: u32 = 72;

fn id(number: u8) -> NodeId {
    NodeId::from_bytes([number; 8])
}

fn through_relay(channel: u32) -> Path {
    Path::Relay(Channel { relay: id(3), number: channel })
}

impl Trio {
    /// The three, each with sessions with the two others, and a channel for the pair.
    fn at(seed: u64, now: Now) -> Self {
        let mut nodes = [1, 2, 3].map(|number| Node::new(number, seed + u64::from(number) * 2));
        nodes[2].config.relay = true;
        let configs = nodes.each_ref().map(|node| node.config.clone());
        for (at, node) in nodes.iter_mut().enumerate() {
            let others = configs.iter().enumerate().filter(|(other, _)| *other != at);
            let others: Vec<PeerConfig> = others.map(|(_, config)| config.clone()).collect();
            node.apply(&others, now);
        }
        let mut trio = Self { nodes, now };
        for (from, to) in [(NEAR, 3), (FAR, 3), (NEAR, 2)] {
            trio.nodes[from].tunnel.ping(id(to), 1, now).unwrap();
            trio.settle();
        }
        for (client, target, channel) in [(1, 2, NEAR_CHANNEL), (2, 1, FAR_CHANNEL)] {
            trio.nodes[2].tunnel.answer_bind(
                id(client),
                id(target),
                BindAnswer::Bound { channel, present: true },
            );
            trio.settle();
        }
        trio
    }

    fn settle(&mut self) {
        loop {
            let sent: Vec<Datagram> = self.nodes.iter_mut().flat_map(|node| node.work(self.now)).collect();
            if sent.is_empty() {
                return;
            }
            for datagram in sent {
                if let Some(node) = self.nodes.iter_mut().find(|node| node.path == datagram.to) {
                    let _ = node.take(&datagram, self.now);
                }
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now.later(time);
        for node in &mut self.nodes {
            node.tunnel.handle_deadline(self.now);
        }
        self.settle();
    }

    fn hop_of(&self, at: usize) -> Hop {
        hop(self.nodes[at].path)
    }

    /// Packets sealed by `from` for the other end, one by one or as runs, as they come out.
    fn seal(&mut self, from: usize, packets: &[Vec<u8>], path: Option<Path>, as_run: bool) -> Vec<Vec<u8>> {
        let (tunnel, now) = (&mut self.nodes[from].tunnel, self.now);
        let slot = tunnel.peers.by_id(id(2 - from as u8)).unwrap();
        let mut sealed = Vec::new();
        let at_once = if as_run { packets.len().max(1) } else { 1 };
        for packets in packets.chunks(at_once) {
            let packets: Vec<Packet<'_>> = packets.iter().map(|packet| Packet::whole(packet)).collect();
            let mut buffer = vec![0; packets.len() * (MTU + MAX_OVERHEAD)];
            let done = tunnel.seal(slot, &packets, path, Sent::Data, &mut buffer, now).unwrap().unwrap();
            let Sealed { len, stride, .. } = done;
            sealed.extend(buffer[..len].chunks(stride).map(<[u8]>::to_vec));
        }
        sealed
    }
}

/// What of a node's state a datagram may change, in words that show every difference.
fn state(node: &Node, now: Now) -> String {
    let peers: Vec<String> = (node.tunnel.peers.iter())
        .map(|(_, peer)| {
            format!(
                "{:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {} {}\n",
                peer.sessions,
                peer.sessions.progress(),
                peer.timers,
                peer.paths,
                peer.flows,
                peer.active,
                peer.last_received,
                peer.last_opened,
                peer.last_handshake,
                peer.rtt,
                peer.held.len(),
                peer.notices.len(),
            )
        })
        .collect();
    let status: Vec<PeerStatus> = node.tunnel.peers(now).collect();
    format!(
        "{peers:?} {status:?} {:?} {:?} {:?} {:?}",
        node.tunnel.drops(),
        node.tunnel.carried(),
        node.tunnel.filter_report(),
        node.tunnel.poll_deadline(),
    )
}

/// Where two long texts differ, and what is around.
fn difference(one: &str, other: &str) -> Option<[String; 2]> {
    let at = one.bytes().zip(other.bytes()).position(|(one, other)| one != other);
    let at = at.or_else(|| (one.len() != other.len()).then_some(one.len().min(other.len())))?;
    Some([one, other].map(|text| text[at.saturating_sub(150)..(at + 150).min(text.len())].to_owned()))
}

/// A packet from `from` to the other end of `len` bytes, which differs from others by `mark`.
fn sized(from: usize, len: usize, mark: u8) -> Vec<u8> {
    let payload = vec![mark; len - 20];
    if from == NEAR { Pair::near_packet(&payload) } else { Pair::far_packet(&payload) }
}

/// A run's lengths: all but the last are equal once padded.
fn lengths() -> impl Strategy<Value = Vec<usize>> {
    let sixteens = prop_oneof![4 => 2..6_usize, 4 => 2..=88_usize, 2 => Just(88_usize)];
    let count = prop_oneof![6 => 1..20_usize, 1 => Just(MAX_RUN), 1 => 20..=MAX_RUN];
    (sixteens, count).prop_flat_map(|(sixteens, count)| {
        let (least, most) = (sixteens * 16 - 15, sixteens * 16);
        let equal = prop::collection::vec(least.max(20)..=most, count);
        (equal, 20..=most).prop_map(|(mut lengths, last)| {
            *lengths.last_mut().unwrap() = last;
            lengths
        })
    })
}

/// The packet in two pieces, as a segment lies, or in one.
fn cut(packet: &[u8], at: usize) -> Packet<'_> {
    match at {
        0 => Packet { head: packet, rest: &[] },
        _ => {
            let (head, rest) = packet.split_at(((at - 1) * 64).min(packet.len() / 64 * 64));
            Packet { head, rest }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_run_equals_sealing_one_by_one_byte_for_byte(
        runs in prop::collection::vec((lengths(), prop::collection::vec(0..6_usize, MAX_RUN), any::<bool>()), 1..4),
    ) {
        let now = Now::new(test_epoch(), UnixTime::from_secs(1_700_000_000));
        let (mut one_by_one, mut at_once) = (Trio::at(1, now), Trio::at(1, now));
        for (lengths, cuts, relayed) in runs {
            let packets: Vec<Vec<u8>> = lengths.iter().zip(0..).map(|(&len, mark)| sized(NEAR, len, mark)).collect();
            let path = relayed.then(|| through_relay(NEAR_CHANNEL));
            let expected = one_by_one.seal(NEAR, &packets, path, false);
            let pieces: Vec<Packet<'_>> = packets.iter().zip(cuts).map(|(packet, at)| cut(packet, at)).collect();
            let mut buffer = vec![0xff; packets.len() * (MTU + MAX_OVERHEAD)];
            let tunnel = &mut at_once.nodes[NEAR].tunnel;
            let slot = tunnel.peers.by_id(id(2)).unwrap();
            let sealed = tunnel.seal(slot, &pieces, path, Sent::Data, &mut buffer, now).unwrap().unwrap();
            prop_assert_eq!(sealed.to, at_once.hop_of(if relayed { 2 } else { FAR }));
            prop_assert_eq!(sealed.stride, expected[0].len());
            let made: Vec<&[u8]> = buffer[..sealed.len].chunks(sealed.stride).collect();
            prop_assert!(made == expected, "{:?}", lengths);
            prop_assert!(buffer[sealed.len..].iter().all(|&byte| byte == 0xff), "nothing is written behind");
            let states = [&at_once, &one_by_one].map(|trio| state(&trio.nodes[NEAR], now));
            prop_assert_eq!(difference(&states[0], &states[1]), None);
        }
    }
}

/// What happens to a datagram on its way.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Arrives,
    /// One bit of it is another.
    Damaged(usize),
    /// It comes again, right behind itself.
    Doubled,
    /// It comes again later, damaged.
    DoubledDamaged(usize),
    /// It changes places with one before it.
    Overtakes(usize),
    /// Something else comes instead of it: noise, a session's that nobody knows, another kind of message.
    Replaced(u8),
    Lost,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        12 => Just(Fate::Arrives),
        1 => (0..4096_usize).prop_map(Fate::Damaged),
        1 => Just(Fate::Doubled),
        1 => (128..4096_usize).prop_map(Fate::DoubledDamaged),
        2 => (1..8_usize).prop_map(Fate::Overtakes),
        1 => (0..6_u8).prop_map(Fate::Replaced),
        1 => Just(Fate::Lost),
    ]
}

fn damage(datagram: &mut [u8], bit: usize) {
    let bit = bit % (datagram.len() * 8);
    datagram[bit / 8] ^= 1 << (bit % 8);
}

/// The train that comes of datagrams of one length.
fn meet(datagrams: Vec<Vec<u8>>, fates: &[Fate]) -> Vec<Vec<u8>> {
    let mut train: Vec<Vec<u8>> = Vec::new();
    for (mut datagram, fate) in datagrams.into_iter().zip(fates.iter().cycle()) {
        match *fate {
            Fate::Arrives => train.push(datagram),
            Fate::Damaged(bit) => {
                damage(&mut datagram, bit);
                train.push(datagram);
            }
            Fate::Doubled => train.extend([datagram.clone(), datagram]),
            Fate::DoubledDamaged(bit) => {
                train.push(datagram.clone());
                damage(&mut datagram, bit);
                train.push(datagram);
            }
            Fate::Overtakes(places) => {
                let at = train.len().saturating_sub(places);
                train.insert(at, datagram);
            }
            Fate::Replaced(kind) => {
                datagram.fill(0xa5);
                datagram[..4].copy_from_slice(&[kind, 0, 0, 0]);
                train.push(datagram);
            }
            Fate::Lost => {}
        }
    }
    train
}

/// Gives `node` a train, at once or one by one; returns the packets with their places.
fn give(node: &mut Node, train: &[Vec<u8>], from: Hop, now: Now, as_run: bool) -> Delivered {
    let stride = train.first().map_or(0, Vec::len);
    let mut got: Vec<(usize, Range<usize>)> = Vec::new();
    let mut bytes = train.concat();
    if as_run {
        node.tunnel.inbound_run(&mut bytes, stride, from, now, &mut |index, range| got.push((index, range)));
    } else {
        for (index, datagram) in bytes.chunks_mut(stride.max(1)).enumerate() {
            if let Ok(Inbound::Packet { range, .. }) = node.tunnel.inbound(datagram, from, now) {
                got.push((index, range));
            }
        }
    }
    let packet = |(index, range): (usize, Range<usize>)| {
        (index, bytes[index * stride..][range.start..range.end].to_vec())
    };
    got.into_iter().map(packet).collect()
}

/// A notice that is as long as the shortest packet once it is padded.
fn notice_of_two_sixteens(kind: u8) -> Notice {
    let address = |number: u8| SocketAddr::from(([192, 0, 2, number], 1000));
    match kind {
        0 | 1 => Notice::Offer {
            candidates: Offered::from_slice(&[address(1), address(77), address(kind + 80)]).unwrap(),
            answer: kind == 0,
        },
        2 => Notice::EchoReply { token: 5, seen_from: Some(address(99)) },
        _ => Notice::Bound { target: id(1), channel: 5, present: true },
    }
}

/// One step of a story that two worlds are told.
#[derive(Clone, Debug)]
enum Chapter {
    /// So many packets of so many sixteens of bytes, of some flows, by the relay or not, from elsewhere or not.
    Train {
        count: usize,
        sixteens: usize,
        flows: u8,
        relayed: bool,
        moved: bool,
        fates: Vec<Fate>,
        notices: Vec<(usize, u8)>,
    },
    /// A ping, so that the next train has an answer to it in its midst.
    Ping,
    Wait(u64),
}

fn chapter() -> impl Strategy<Value = Chapter> {
    let train = (
        prop_oneof![3 => 1..10_usize, 2 => Just(45), 1 => 120..300_usize],
        prop_oneof![3 => Just(2_usize), 1 => 3..8_usize],
        1..4_u8,
        prop::bool::weighted(0.3),
        prop::bool::weighted(0.1),
        prop::collection::vec(fate(), 1..40),
        prop::collection::vec((0..50_usize, 0..4_u8), 0..4),
    );
    prop_oneof![
        8 => train.prop_map(|(count, sixteens, flows, relayed, moved, fates, notices)| {
            Chapter::Train { count, sixteens, flows, relayed, moved, fates, notices }
        }),
        1 => Just(Chapter::Ping),
        // Up to and beyond the life of a session.
        2 => prop_oneof![1..3_u64, Just(125), Just(170), Just(185)].prop_map(Chapter::Wait),
    ]
}

/// Packets with their places in a train.
type Delivered = Vec<(usize, Vec<u8>)>;

/// Tells one world the story, with runs or without; returns what arrived and the receiver's state after each chapter, and the
/// world.
fn live(story: &[Chapter], now: Now, as_run: bool) -> (Vec<(Delivered, String)>, Trio) {
    let mut trio = Trio::at(3, now);
    let rules = [rule(1, 2, Protocol::Any, None), rule(2, 1, Protocol::Any, None)];
    trio.nodes[FAR].tunnel.apply_filter(filter_of(2, &rules, &[]), now);
    let elsewhere = hop(path("203.0.113.9:9"));
    let mut told = Vec::new();
    for chapter in story {
        let mut got = Vec::new();
        match chapter {
            Chapter::Wait(time) => trio.pass(seconds(*time)),
            Chapter::Ping => {
                let now = trio.now;
                trio.nodes[FAR].tunnel.ping(id(1), 9, now).ok();
                for datagram in trio.nodes[FAR].work(now) {
                    if datagram.to == trio.nodes[NEAR].path {
                        let _ = trio.nodes[NEAR].take(&datagram, now);
                    }
                }
            }
            Chapter::Train { count, sixteens, flows, relayed, moved, fates, notices } => {
                let packets: Vec<Vec<u8>> = (0..*count)
                    .map(|number| {
                        let flow = number as u8 % flows;
                        let payload =
                            crate::packet::build::udp(flow.into(), 53, &vec![7; sixteens * 16 - 28]);
                        crate::packet::build::with([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 17, &payload)
                    })
                    .collect();
                if trio.nodes[NEAR].peer(2, trio.now).state == crate::peer::PeerState::Established {
                    let path = relayed.then(|| through_relay(NEAR_CHANNEL));
                    let mut sealed = trio.seal(NEAR, &packets, path, false);
                    // What else the near end has to say now goes in the middle, if it fits.
                    let others = trio.nodes[NEAR].work(trio.now);
                    let alike = others.into_iter().map(|other| other.bytes);
                    let stride = sealed[0].len();
                    for other in alike.filter(|other| other.len() == stride) {
                        sealed.insert(sealed.len() / 2, other);
                    }
                    for &(at, kind) in notices.iter().filter(|_| *sixteens == 2) {
                        let (notice, len) = notice_of_two_sixteens(kind).emit();
                        let notice = trio.seal(NEAR, &[notice[..len].to_vec()], path, false).remove(0);
                        assert_eq!(notice.len(), stride);
                        sealed.insert(at % (sealed.len() + 1), notice);
                    }
                    let mut train = meet(sealed, fates);
                    if *relayed {
                        // As the relay does: the other end's name for the pair.
                        for datagram in &mut train {
                            if relayed::parse(datagram) == Some(NEAR_CHANNEL) {
                                datagram[..8].copy_from_slice(&relayed::emit(FAR_CHANNEL));
                            }
                        }
                    }
                    let from = match (relayed, moved) {
                        (_, true) => elsewhere,
                        (true, false) => trio.hop_of(2),
                        (false, false) => trio.hop_of(NEAR),
                    };
                    if !train.is_empty() {
                        got = give(&mut trio.nodes[FAR], &train, from, trio.now, as_run);
                    }
                }
            }
        }
        told.push((got, state(&trio.nodes[FAR], trio.now)));
        trio.settle();
    }
    (told, trio)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_train_equals_opening_one_by_one_whatever_became_of_it(story in prop::collection::vec(chapter(), 1..12)) {
        let now = Now::new(test_epoch(), UnixTime::from_secs(1_700_000_000));
        let ((at_once, _), (one_by_one, _)) = (live(&story, now, true), live(&story, now, false));
        for (number, (at_once, one_by_one)) in at_once.into_iter().zip(one_by_one).enumerate() {
            prop_assert_eq!(at_once.0, one_by_one.0, "chapter {}: {:?}", number, story[number]);
            prop_assert_eq!(difference(&at_once.1, &one_by_one.1), None, "chapter {}: {:?}", number, story[number]);
        }
    }
}

#[test]
fn the_stories_of_trains_meet_every_fate() {
    let now = Now::new(test_epoch(), UnixTime::from_secs(1_700_000_000));
    let mut runner = TestRunner::deterministic();
    let mut drops = DropCounters::default();
    let mut delivered = 0;
    for _ in 0..60 {
        let story = prop::collection::vec(chapter(), 12).new_tree(&mut runner).unwrap().current();
        let (told, trio) = live(&story, now, true);
        delivered += told.iter().map(|(got, _)| got.len()).sum::<usize>();
        for (reason, count) in trio.nodes[FAR].tunnel.drops().iter() {
            drops.add(Direction::In, reason, count);
        }
    }
    assert!(delivered > 5000, "{delivered}");
    for reason in [
        DropReason::BadSeal,
        DropReason::Replayed,
        DropReason::UnknownIndex,
        DropReason::UnknownMessage,
        DropReason::UnknownRelay,
    ] {
        assert!(drops.get(reason) > 20, "{reason}: {}", drops.get(reason));
    }
}

impl Node {
    /// Sends packets as one run, each judged by itself; nothing if they are held.
    fn send_run(&mut self, packets: &[Vec<u8>], now: Now) -> Result<Option<Vec<Datagram>>, DropReason> {
        let routes: Vec<Route> =
            packets.iter().map(|packet| self.tunnel.route(packet, 1, now)).collect::<Result<_, _>>()?;
        assert!(routes.iter().all(|route| *route == routes[0]), "they go to one peer");
        let packets: Vec<Packet<'_>> = packets.iter().map(|packet| Packet::whole(packet)).collect();
        let mut buffer = vec![0; packets.len() * (MTU + MAX_OVERHEAD)];
        Ok(match self.tunnel.seal_run(routes[0], &packets, &mut buffer, now)? {
            Outbound::Send { len, stride, to } => {
                let datagram =
                    |bytes: &[u8]| Datagram { from: self.path, to: to.into(), bytes: bytes.to_vec() };
                Some(buffer[..len].chunks(stride).map(datagram).collect())
            }
            Outbound::Held => None,
        })
    }
}

fn marked(count: usize, len: usize) -> Vec<Vec<u8>> {
    (0..count).map(|mark| sized(NEAR, len, mark as u8)).collect()
}

fn counter_of(datagram: &[u8]) -> u64 {
    data_counter(*datagram.first_chunk().unwrap())
}
