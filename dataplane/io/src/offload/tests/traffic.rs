//! Mixed traffic: flows between each other, with loss, repetition, damage and whatever else happens to packets.

#![allow(clippy::wildcard_enum_match_arm, reason = "an event is of matter in few places")]

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::merge::nth;
use super::packet::{ACK, CWR, ECE, FIN, Ip, PSH, Packet, Transport, noise};
use super::world::{World, restored};
use crate::offload::coalesce::{CAPACITY, Coalescer, Full, Place};
use crate::offload::look::Class;

/// What happens to the next packet of a flow.
#[derive(Clone, Copy, Debug)]
enum Event {
    Next,
    Short(usize),
    Long,
    Push,
    Lost,
    Again,
    Fin,
    Cwr,
    Ece,
    PureAck,
    Tos,
    Ttl,
    Fragmentable,
    Id,
    Label,
    Acknowledgement,
    Window,
    Options,
    Bare,
    Damaged(usize),
    IpDamaged,
    Padded,
    Fragment,
    IpOptions,
    Icmp,
}

fn event() -> impl Strategy<Value = Event> {
    use Event::*;
    let odd = prop::sample::select(vec![
        Long,
        Push,
        Lost,
        Again,
        Fin,
        Cwr,
        Ece,
        PureAck,
        Tos,
        Ttl,
        Fragmentable,
        Id,
        Label,
        Acknowledgement,
        Window,
        Options,
        Bare,
        IpDamaged,
        Padded,
        Fragment,
        IpOptions,
        Icmp,
    ]);
    prop_oneof![
        20 => Just(Next),
        2 => (1..100usize).prop_map(Short),
        1 => (0..100usize).prop_map(Damaged),
        4 => odd,
    ]
}

/// One flow's sender. What an event changes of it stays changed, save what is of one packet.
struct Flow {
    next: Packet,
}

impl Flow {
    fn new(kind: usize, number: usize, may_be_fragmented: bool) -> Self {
        let mut next = [Packet::tcp4, Packet::tcp6, Packet::udp4, Packet::udp6][kind % 4](Vec::new());
        next.source_port = number as u16;
        if let Ip::V4 { fragment, .. } = &mut next.ip
            && may_be_fragmented
        {
            *fragment = 0;
        }
        Self { next }
    }

    /// The next packet, and its bytes. `None` if it was lost.
    fn send(&mut self, event: Event, size: usize, seed: u64) -> Option<Sent> {
        self.alter(event, size);
        let mut packet = self.next.clone();
        packet.payload = noise(
            seed,
            match event {
                Event::Short(by) => size - by.min(size - 1),
                Event::Long => size + 1,
                Event::PureAck => 0,
                _ => size,
            },
        );
        let once = match event {
            Event::Push => PSH,
            Event::Fin => FIN,
            Event::Cwr => CWR,
            _ => 0,
        };
        if packet.is_tcp() {
            *packet.flags_mut() |= once;
            *self.next.sequence_mut() = self.next.sequence_mut().wrapping_add(packet.payload.len() as u32);
        }
        match &mut self.next.ip {
            Ip::V4 { id, .. } => *id = id.wrapping_add(1),
            Ip::V6 { .. } => {}
        }
        match (event, &mut packet.ip) {
            (Event::Fragment, Ip::V4 { fragment, .. }) => *fragment |= 0x2000,
            (Event::IpOptions | Event::Fragment, Ip::V6 { extensions, .. }) => {
                *extensions = vec![(60, vec![0; 6])];
            }
            (Event::IpOptions, Ip::V4 { options, .. }) => *options = vec![1; 4],
            _ => {}
        }
        (!matches!(event, Event::Lost)).then(|| Sent::new(packet, event))
    }

    fn alter(&mut self, event: Event, size: usize) {
        match (event, &mut self.next.transport) {
            (Event::Again, Transport::Tcp { sequence, .. }) => *sequence = sequence.wrapping_sub(size as u32),
            (Event::Ece, Transport::Tcp { flags, .. }) => *flags ^= ECE,
            (Event::Acknowledgement, Transport::Tcp { acknowledgement, .. }) => *acknowledgement += 1,
            (Event::Window, Transport::Tcp { window, .. }) => *window ^= 1,
            (Event::Options, Transport::Tcp { options, .. }) => *options = noise(options.len() as u64, 12),
            _ => {}
        }
        match (event, &mut self.next.ip) {
            (Event::Fragmentable, Ip::V4 { fragment, .. }) => *fragment ^= 0x4000,
            (Event::Id, Ip::V4 { id, .. }) => *id = id.wrapping_add(5),
            (Event::Label, Ip::V6 { label, .. }) => *label ^= 1,
            _ => {}
        }
        match event {
            Event::Tos => self.next.tos ^= 3,
            Event::Ttl => self.next.ttl ^= 1,
            _ => {}
        }
    }
}

/// A packet on its way, with what is known of it.
#[derive(Clone, Debug)]
struct Sent {
    packet: Packet,
    bytes: Vec<u8>,
    /// To the reference: may be merged; is of its flow only; may be of any; is of none.
    is: Is,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    Mergeable,
    Verbatim,
    Unknown,
    Foreign,
}

impl Sent {
    fn new(packet: Packet, event: Event) -> Self {
        let mut bytes = packet.emit();
        let (tcp, v4) = (packet.is_tcp(), packet.is_v4());
        let mut is = match event {
            Event::Fin | Event::Cwr if tcp => Is::Verbatim,
            Event::PureAck => Is::Verbatim,
            Event::Fragment | Event::IpOptions => Is::Unknown,
            Event::Icmp => Is::Foreign,
            _ => Is::Mergeable,
        };
        let ip = packet.ip_len();
        match event {
            Event::Bare if !tcp && v4 => {
                bytes[ip + 6..ip + 8].fill(0);
                is = Is::Verbatim;
            }
            Event::Damaged(at) => {
                let at = packet.header_len() + at % packet.payload.len();
                bytes[at] ^= 1 << (at % 8);
                is = Is::Verbatim;
            }
            Event::IpDamaged if v4 => {
                bytes[10] ^= 1;
                is = Is::Verbatim;
            }
            Event::Padded => bytes.extend([0; 5]),
            Event::Icmp => bytes[if v4 { 9 } else { 6 }] = if v4 { 1 } else { 58 },
            _ => {}
        }
        Self { packet, bytes, is }
    }

    fn flow(&self) -> (u8, Vec<u8>, u16) {
        let addresses = match &self.packet.ip {
            Ip::V4 { source, .. } => source.to_vec(),
            Ip::V6 { source, .. } => source.to_vec(),
        };
        (self.packet.protocol(), addresses, self.packet.source_port)
    }
}

/// Whether `last` and what is merged with it may be followed by `next`: the rules, as they are told.
fn follows(group: &[&Sent], next: &Sent) -> bool {
    let (first, last) = (&group[0].packet, &group[group.len() - 1].packet);
    let packet = &next.packet;
    let ip = match (&first.ip, &last.ip, &packet.ip) {
        (Ip::V4 { fragment: first, .. }, Ip::V4 { id, .. }, Ip::V4 { fragment, id: next, .. }) => {
            first == fragment && (*first == 0x4000 || id.wrapping_add(1) == *next)
        }
        (Ip::V6 { label: first, .. }, _, Ip::V6 { label, .. }) => first == label,
        _ => false,
    };
    let transport = match (&last.transport, &packet.transport) {
        (
            Transport::Tcp { sequence, acknowledgement, flags, window, urgent, options },
            Transport::Tcp { sequence: next, acknowledgement: a, flags: f, window: w, urgent: u, options: o },
        ) => {
            sequence.wrapping_add(last.payload.len() as u32) == *next
                && (acknowledgement, window, urgent, options) == (a, w, u, o)
                && *flags == f & !PSH
        }
        (Transport::Udp, Transport::Udp) => true,
        _ => false,
    };
    let size = first.payload.len();
    let total: usize = group.iter().map(|sent| sent.packet.payload.len()).sum();
    ip && transport
        && (first.tos, first.ttl) == (packet.tos, packet.ttl)
        && last.payload.len() == size
        && packet.payload.len() <= size
        && group.len() < if packet.is_tcp() { 64 } else { 127 }
        && first.header_len() + total + packet.payload.len() <= 65_535
}

/// How packets are merged: numbers of packets, in the order of writing.
fn merged(sent: &[Sent]) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut open: BTreeMap<_, usize> = BTreeMap::new();
    for (index, next) in sent.iter().enumerate() {
        if next.is == Is::Mergeable
            && let Some(group) = open.get(&next.flow())
            && let members = groups[*group].iter().map(|index| &sent[*index]).collect::<Vec<_>>()
            && follows(&members, next)
        {
            groups[*group].push(index);
            continue;
        }
        match next.is {
            Is::Mergeable => drop(open.insert(next.flow(), groups.len())),
            Is::Verbatim => drop(open.remove(&next.flow())),
            Is::Unknown => open.clear(),
            Is::Foreign => {}
        }
        groups.push(vec![index]);
    }
    groups
}

/// What merging may change: padding, which is no part of a packet, and the identification of packets that are never
/// fragmented.
fn essence(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] == 0x45 {
        packet.truncate(usize::from(u16::from_be_bytes([packet[2], packet[3]])));
        if packet[6] == 0x40 {
            // With it the header's checksum, unless it is wrong.
            let right = crate::offload::checksum::Sum::of(&packet[..20]).is_valid();
            packet[4..6].fill(0);
            packet[10..12].fill(u8::from(right));
        }
    } else if packet[0] >> 4 == 6 {
        packet.truncate(40 + usize::from(u16::from_be_bytes([packet[4], packet[5]])));
    }
    packet
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn traffic_is_merged_as_the_reference_does_and_nothing_of_it_is_lost(
        flows in prop::collection::vec((0..4usize, any::<bool>()), 1..6),
        size in 1..1_500usize,
        events in prop::collection::vec((any::<prop::sample::Index>(), event(), 1..8usize), 1..60),
    ) {
        let mut senders: Vec<_> =
            flows.iter().enumerate().map(|(number, (kind, df))| Flow::new(*kind, number, *df)).collect();
        let mut sent = Vec::new();
        for (sender, event, repeat) in &events {
            let sender = sender.get_mut(&mut senders);
            for _ in 0..*repeat {
                sent.extend(sender.send(*event, size, sent.len() as u64));
            }
        }
        let bytes: Vec<_> = sent.iter().map(|sent| sent.bytes.clone()).collect();
        let writes = World::new().write(&bytes);

        let unmerged: Vec<_> = writes.iter().map(|write| write.unmerged.clone()).collect();
        prop_assert_eq!(&unmerged, &merged(&sent));

        // Cut again, every packet is what it was.
        let order = unmerged.concat();
        for (got, was) in restored(&writes).iter().zip(&order) {
            prop_assert_eq!(essence(got), essence(&bytes[*was]));
        }
        // None is lost or doubled, and none goes past another of its flow.
        let mut sorted = order.clone();
        sorted.sort_unstable();
        prop_assert!(sorted.into_iter().eq(0..sent.len()));
        let mut last = BTreeMap::new();
        for index in order.iter().filter(|index| sent[**index].is != Is::Foreign) {
            let before = last.insert(sent[*index].flow(), *index);
            prop_assert!(before < Some(*index), "{index} went past {before:?}");
        }
    }

    #[test]
    fn cutting_undoes_merging_and_merging_undoes_cutting(
        kind in 0..4usize, size in 1..2_000usize, count in 2..64usize, tail in any::<prop::sample::Index>(), push: bool,
    ) {
        let count = count.min(65_000 / size);
        prop_assume!(count > 1);
        let mut whole = [Packet::tcp4, Packet::tcp6, Packet::udp4, Packet::udp6][kind](Vec::new());
        whole.payload = noise(size as u64, size * (count - 1) + 1 + tail.index(size));
        if push && whole.is_tcp() {
            *whole.flags_mut() = ACK | PSH;
        }
        let packets: Vec<_> = whole.cut(size).iter().map(Packet::emit).collect();
        let writes = World::new().write(&packets);
        prop_assert_eq!(writes.len(), 1);
        prop_assert_eq!(restored(&writes), packets);
        let (header, bytes) = whole.emit_unfinished(Some(size as u16));
        prop_assert_eq!(&writes[0].bytes[10..], &bytes[..]);
        prop_assert_eq!(&writes[0].bytes[..2], &header[..2]);
        prop_assert_eq!(&writes[0].bytes[4..10], &header[4..10], "but for the length of what is in one piece");
    }

    #[test]
    fn no_bytes_make_merging_panic(
        packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..120), 0..20),
        damage in prop::collection::vec((0..20usize, 0..120usize, any::<u8>()), 0..20),
    ) {
        let first = Packet::tcp4(noise(1, 60));
        let other = Packet::udp6(noise(1, 60));
        let mut all: Vec<_> = (0..20).map(|index| nth(if index % 2 == 0 { &first } else { &other }, index / 2).emit()).collect();
        for (packet, at, value) in damage {
            let len = all[packet].len();
            all[packet][at % len] = value;
        }
        all.extend(packets);
        let writes = World::new().write(&all);
        let mut numbers: Vec<_> = writes.iter().flat_map(|write| write.unmerged.clone()).collect();
        numbers.sort_unstable();
        prop_assert!(numbers.into_iter().eq(0..all.len()));
    }
}

#[test]
fn many_flows_at_once_are_merged_less_but_never_out_of_order() {
    let mut flows: Vec<_> = (0..150).map(|number| Flow::new(number, number, false)).collect();
    let mut packets = Vec::new();
    for round in 0..6u64 {
        for flow in &mut flows {
            packets.push(flow.send(Event::Next, 100, round).expect("not lost"));
        }
    }
    let bytes: Vec<_> = packets.iter().map(|sent| sent.bytes.clone()).collect();
    let writes = World::new().write(&bytes);
    let restored = restored(&writes);
    for number in 0..150u16 {
        let of_flow = |packets: &[Vec<u8>]| -> Vec<Vec<u8>> {
            let port = |packet: &Vec<u8>| {
                packet[if packet[0] == 0x45 { 20 } else { 40 }..][..2] == number.to_be_bytes()
            };
            packets.iter().filter(|packet| port(packet)).cloned().collect()
        };
        assert_eq!(of_flow(&restored), of_flow(&bytes));
    }
    assert!(writes.len() < bytes.len(), "the table is of use all the same");
    // As many as it has places for are all merged, unless they want the same ones.
    let few: Vec<_> =
        packets.iter().filter(|sent| sent.packet.source_port < 24).map(|sent| sent.bytes.clone()).collect();
    assert_eq!(World::new().write(&few).len(), 24);
}

#[test]
fn a_class_that_the_device_refuses_goes_unmerged() {
    for (class, new) in [
        (Class::Tcp4, Packet::tcp4 as fn(_) -> _),
        (Class::Tcp6, Packet::tcp6),
        (Class::Udp, Packet::udp4),
        (Class::Udp, Packet::udp6),
    ] {
        let first: Packet = new(noise(1, 100));
        let packets: Vec<_> = (0..4).map(|index| nth(&first, index).emit()).collect();
        let mut world = World::new();
        assert_eq!(world.write(&packets).len(), 1);
        world.coalescer.set_merging(class, false);
        assert_eq!(world.write(&packets).len(), 4);
        // Amidst a turn, nothing goes past what went unmerged.
        world.coalescer.set_merging(class, true);
        let push = |coalescer: &mut Coalescer, packet: &[u8]| {
            coalescer.push(Place { buffer: 0, start: 0, len: packet.len() as u16 }, packet).expect("room");
        };
        push(&mut world.coalescer, &packets[0]);
        world.coalescer.set_merging(class, false);
        push(&mut world.coalescer, &packets[0]);
        world.coalescer.set_merging(class, true);
        push(&mut world.coalescer, &packets[1]);
        assert_eq!(world.coalescer.finish().len(), 3);
        world.coalescer.clear();
        for other in [Class::Tcp4, Class::Tcp6, Class::Udp].into_iter().filter(|other| *other != class) {
            world.coalescer.set_merging(other, false);
        }
        assert_eq!(world.write(&packets).len(), 1, "the others are of no matter");
    }
    // Not without being asked: a device need not take it.
    let mut coalescer = Coalescer::new();
    for index in 0..4 {
        let packet = nth(&Packet::udp4(noise(1, 100)), index).emit();
        coalescer.push(Place { buffer: 0, start: 0, len: packet.len() as u16 }, &packet).expect("room");
    }
    assert_eq!(coalescer.finish().len(), 4);
}

#[test]
fn what_is_shown_once_is_final_and_what_comes_later_stands_behind_it() {
    let first = Packet::tcp4(noise(1, 100));
    let packets: Vec<_> = (0..4).map(|index| nth(&first, index).emit()).collect();
    let mut coalescer = Coalescer::new();
    let place =
        |index: usize| Place { buffer: 0, start: index as u32 * 1_000, len: packets[index].len() as u16 };
    coalescer.push(place(0), &packets[0]).expect("room");
    coalescer.push(place(1), &packets[1]).expect("room");
    let header = coalescer.finish().get(0).expect("one").header().to_vec();
    coalescer.push(place(2), &packets[2]).expect("room");
    coalescer.push(place(3), &packets[3]).expect("room");
    let groups = coalescer.finish();
    assert_eq!(groups.len(), 2);
    assert_eq!(groups.get(0).expect("one").header(), header);
    let starts: Vec<_> = groups.get(1).expect("two").pieces().map(|piece| (piece.start, piece.len)).collect();
    assert_eq!(starts, [(2_040, 100), (3_040, 100)]);
    assert!(groups.get(2).is_none());
}

#[test]
fn a_coalescer_is_as_new_after_every_turn() {
    let mut world = World::new();
    for turn in 0..20usize {
        let first = [Packet::tcp4, Packet::udp6][turn % 2](noise(turn as u64, 100));
        let other = Packet { source_port: 1, ..first.clone() };
        let flows = [first, other];
        let count = 1 + turn * 7 % 30;
        let packets: Vec<_> = (0..count).map(|index| nth(&flows[index % 2], index / 2).emit()).collect();
        let writes = world.write(&packets);
        assert_eq!(writes.len(), count.min(2));
        let mut restored = restored(&writes);
        let (even, odd) = (0..count).partition::<Vec<_>, _>(|index| index % 2 == 0);
        let want: Vec<_> = even.iter().chain(&odd).map(|index| packets[*index].clone()).collect();
        assert_eq!(restored.len(), want.len());
        assert!(restored.drain(..).eq(want));
    }
}

#[test]
fn what_was_cleared_is_joined_by_nobody() {
    let first = Packet::tcp4(noise(1, 100));
    let other = Packet { source_port: 1, ..first.clone() };
    let mut coalescer = Coalescer::new();
    let push = |coalescer: &mut Coalescer, packet: Packet| {
        let packet = packet.emit();
        coalescer.push(Place { buffer: 0, start: 0, len: packet.len() as u16 }, &packet).expect("room");
    };
    push(&mut coalescer, first.clone());
    coalescer.clear();
    // Where the first one's group was, there is now another flow's, which would fit.
    push(&mut coalescer, other);
    push(&mut coalescer, nth(&first, 1));
    assert_eq!(coalescer.finish().len(), 2);
}

#[test]
fn a_full_coalescer_takes_no_more_until_it_is_cleared() {
    let first = Packet::tcp4(noise(1, 10));
    let mut coalescer = Coalescer::new();
    let packet = first.emit();
    let place = Place { buffer: 0, start: 0, len: packet.len() as u16 };
    for round in 0..3 {
        for index in 0..CAPACITY {
            // Once all different, once all of one flow, once nothing that could be merged.
            let packet = match round {
                0 => nth(&first, 3 * index).emit(),
                1 => nth(&first, index).emit(),
                _ => Vec::new(),
            };
            assert_eq!(coalescer.push(place, &packet), Ok(()));
        }
        assert_eq!(coalescer.push(place, &packet), Err(Full));
        let groups = coalescer.finish();
        assert_eq!(groups.len(), if round == 1 { CAPACITY / 64 } else { CAPACITY });
        assert_eq!(groups.iter().map(|group| group.packets_len()).sum::<usize>(), CAPACITY);
        coalescer.clear();
        assert_eq!(coalescer.finish().len(), 0);
    }
}
