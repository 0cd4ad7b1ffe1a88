//! Merging: packets of one flow that follow each other become one write to TUN, gathered from where they lie.
//!
//! The rules are those of the kernel's GRO, narrowed: who gets a merged packet must not be able to tell that it was
//! merged, nor that what carried it was our tunnel. Above all, a merged packet's checksums are not looked at any more
//! by whoever receives it, so none is merged whose checksums were not verified here.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use thiserror::Error;

use super::checksum::Sum;
use super::flows::Flows;
use super::headers::{self, IPV6, Ip, Protocol, TCP};
use super::look::{Alike, Class, Classes, Look, Mergeable, look};
use super::virtio::{self, HEADER, Header};

/// The most packets that are collected before they must be written.
pub(crate) const CAPACITY: usize = 1024;

/// The longest packet there is, merged or not.
const MAX_PACKET: usize = 65_535;

/// The most packets that are merged, as in the kernel's own GRO.
const MAX_TCP: u16 = 64;
/// The most datagrams that are merged: one less than the kernel cuts one into (`UDP_MAX_SEGMENTS` of Linux 6.9).
const MAX_UDP: u16 = 127;

/// Room for an offload header, an IPv6 header and TCP's longest.
const TEMPLATE: usize = HEADER + 40 + 60;

/// Where the engine finds bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// One of the engine's receive buffers.
    pub(crate) buffer: u16,
    /// The first byte's place in it.
    pub(crate) start: u32,
    /// How many bytes.
    pub(crate) len: u16,
}

/// As many packets as there is room for are collected: write them, and go on.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("{CAPACITY} packets are collected and must be written first")]
pub(crate) struct Full;

/// Collects a turn's packets for TUN.
#[derive(Debug)]
pub(crate) struct Coalescer {
    classes: Classes,
    flows: Flows,
    packets: Box<[Packet]>,
    packets_len: u16,
    slots: Box<[Slot]>,
    slots_len: u16,
    /// The slots before this one have their headers finished.
    finished: u16,
}

/// A packet, and which one of its group comes behind it.
#[derive(Clone, Copy, Debug, Default)]
struct Packet {
    place: Place,
    next: u16,
}

/// A group in the making.
#[derive(Clone, Copy, Debug)]
struct Slot {
    first: u16,
    last: u16,
    count: u16,
    /// What the first packet was; `None` if nothing is ever merged with it, and then nothing below means anything.
    seed: Option<Seed>,
    open: bool,
    push: bool,
    /// All bytes of the group as one IP packet.
    total: u32,
    next_sequence: u32,
    /// The payload of the last packet, all others having the seed's.
    last_payload: u16,
    /// The offload header, then the first packet's headers.
    template: [u8; TEMPLATE],
}

/// What of the first packet the others are compared with.
#[derive(Clone, Copy, Debug)]
struct Seed {
    alike: Alike,
    class: Class,
    ip: Ip,
    protocol: Protocol,
    transport: u8,
    headers: u8,
    size: u16,
    id: Option<u16>,
}

impl Slot {
    const EMPTY: Self = Self {
        first: 0,
        last: 0,
        count: 0,
        seed: None,
        open: false,
        push: false,
        total: 0,
        next_sequence: 0,
        last_payload: 0,
        template: [0; TEMPLATE],
    };
}

impl Coalescer {
    /// With all its memory; merges TCP, and not UDP.
    pub(crate) fn new() -> Self {
        let mut classes = Classes::default();
        classes.set(Class::Tcp4, true);
        classes.set(Class::Tcp6, true);
        Self {
            classes,
            flows: Flows::new(),
            packets: vec![Packet::default(); CAPACITY].into_boxed_slice(),
            packets_len: 0,
            slots: vec![Slot::EMPTY; CAPACITY].into_boxed_slice(),
            slots_len: 0,
            finished: 0,
        }
    }

    /// Merges packets of a class from now on, or leaves them as they are: as long as the device cannot take them merged.
    pub(crate) fn set_merging(&mut self, class: Class, merges: bool) {
        self.classes.set(class, merges);
        // Packets of a class that is off are not looked at, and could be overtaken by what is merged later.
        self.flows.clear();
    }

    /// Takes the next packet: its bytes, to look at, and where they will be at the time of writing.
    ///
    /// # Errors
    ///
    /// [`Full`]; the packet was not taken.
    pub(crate) fn push(&mut self, place: Place, packet: &[u8]) -> Result<(), Full> {
        let index = self.packets_len;
        *self.packets.get_mut(usize::from(index)).ok_or(Full)? = Packet { place, next: 0 };
        self.packets_len = index.wrapping_add(1);
        match look(packet, self.classes) {
            Look::Mergeable(mergeable) => self.push_mergeable(index, &mergeable, packet),
            Look::Verbatim(key) => {
                self.flows.seal(&key);
                self.open_slot(index);
            }
            Look::Foreign => {
                self.open_slot(index);
            }
            Look::Unknown => {
                self.flows.clear();
                self.open_slot(index);
            }
        }
        Ok(())
    }

    fn push_mergeable(&mut self, index: u16, mergeable: &Mergeable, packet: &[u8]) {
        let flow = self.flows.place(&mergeable.key);
        if let Some(slot) = self.flows.group(flow).and_then(|slot| self.slots.get_mut(usize::from(slot)))
            && slot.takes(mergeable, packet)
        {
            if let Some(last) = self.packets.get_mut(usize::from(slot.last)) {
                last.next = index;
            }
            slot.add(index, mergeable);
            return;
        }
        self.flows.set_group(flow, Some(self.slots_len));
        // Nothing is added behind PSH: such a group stays without a seed, and takes nobody.
        if let Some(slot) = self.open_slot(index).filter(|_| !mergeable.push) {
            slot.seed(mergeable, packet);
        }
    }

    /// Begins a group, of one packet and closed. There are as many slots as packets.
    fn open_slot(&mut self, index: u16) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(usize::from(self.slots_len))?;
        self.slots_len = self.slots_len.wrapping_add(1);
        slot.first = index;
        slot.last = index;
        slot.count = 1;
        slot.seed = None;
        slot.open = false;
        Some(slot)
    }

    /// Finishes the headers of what was merged, and shows what is to be written, in order.
    pub(crate) fn finish(&mut self) -> Groups<'_> {
        let new = usize::from(self.finished)..usize::from(self.slots_len);
        for slot in self.slots.get_mut(new).unwrap_or(&mut []) {
            slot.finish();
        }
        self.finished = self.slots_len;
        Groups { coalescer: self }
    }

    /// Forgets all packets.
    pub(crate) fn clear(&mut self) {
        self.flows.clear();
        self.packets_len = 0;
        self.slots_len = 0;
        self.finished = 0;
    }
}

impl Slot {
    /// Makes this group one that others may join.
    fn seed(&mut self, mergeable: &Mergeable, packet: &[u8]) {
        let headers = usize::from(mergeable.headers);
        let template = self.template.get_mut(HEADER..).and_then(|template| template.get_mut(..headers));
        let (Some(template), Some(packet)) = (template, packet.get(..headers)) else { return };
        template.copy_from_slice(packet);
        self.seed = Some(Seed {
            alike: mergeable.alike,
            class: mergeable.class,
            ip: mergeable.ip,
            protocol: mergeable.protocol,
            transport: mergeable.transport,
            headers: mergeable.headers,
            size: mergeable.payload,
            id: mergeable.id,
        });
        self.open = true;
        self.push = false;
        self.total = u32::from(mergeable.headers).wrapping_add(u32::from(mergeable.payload));
        self.next_sequence = mergeable.sequence.wrapping_add(mergeable.advance());
        self.last_payload = mergeable.payload;
    }

    /// Whether the next packet of the flow may join.
    fn takes(&self, mergeable: &Mergeable, packet: &[u8]) -> bool {
        let Some(seed) = self.seed.as_ref().filter(|_| self.open) else { return false };
        let most = match seed.protocol {
            Protocol::Tcp => MAX_TCP,
            Protocol::Udp => MAX_UDP,
        };
        let next_id = seed.id.map(|id| id.wrapping_add(self.count));
        let total = self.total.wrapping_add(u32::from(mergeable.payload));
        seed.alike == mergeable.alike
            && self.next_sequence == mergeable.sequence
            && next_id == mergeable.id
            && mergeable.payload <= seed.size
            && self.count < most
            && total <= MAX_PACKET as u32
            && self.has_options_of(seed, packet)
    }

    /// Whether TCP's options, whose length is among what was compared before, are the same bytes.
    fn has_options_of(&self, seed: &Seed, packet: &[u8]) -> bool {
        let fixed = usize::from(seed.transport).wrapping_add(TCP);
        let headers = usize::from(seed.headers);
        if seed.protocol == Protocol::Udp || headers == fixed {
            return true;
        }
        let ours = self.template.get(HEADER.wrapping_add(fixed)..HEADER.wrapping_add(headers));
        ours.is_some() && ours == packet.get(fixed..headers)
    }

    fn add(&mut self, index: u16, mergeable: &Mergeable) {
        self.last = index;
        self.count = self.count.wrapping_add(1);
        self.total = self.total.wrapping_add(u32::from(mergeable.payload));
        self.next_sequence = self.next_sequence.wrapping_add(mergeable.advance());
        self.last_payload = mergeable.payload;
        self.push = mergeable.push;
        let size = self.seed.as_ref().map_or(0, |seed| seed.size);
        self.open = !mergeable.push && mergeable.payload == size;
    }

    /// Writes into the headers what is true of the group as a whole.
    fn finish(&mut self) {
        // What comes later begins a group of its own: this one is final.
        self.open = false;
        let Some(seed) = self.seed.filter(|_| self.count > 1) else { return };
        let Some((offload, packet)) = self.template.split_first_chunk_mut::<HEADER>() else { return };
        *offload = Header {
            flags: virtio::NEEDS_CSUM,
            gso_type: match (seed.protocol, seed.ip) {
                (Protocol::Tcp, Ip::V4) => virtio::GSO_TCPV4,
                (Protocol::Tcp, Ip::V6) => virtio::GSO_TCPV6,
                (Protocol::Udp, _) => virtio::GSO_UDP_L4,
            },
            // Exact: it is what the kernel has in one piece, and the rest it takes as it comes.
            hdr_len: u16::from(seed.headers),
            gso_size: seed.size,
            csum_start: u16::from(seed.transport),
            csum_offset: seed.protocol.checksum_at() as u16,
        }
        .emit();
        let Some((ip, transport)) = packet.split_at_mut_checked(usize::from(seed.transport)) else { return };
        // At most MAX_PACKET, which `takes` keeps.
        let total = self.total as u16;
        let addresses = match seed.ip {
            Ip::V4 => {
                headers::put16(ip, 2, total);
                headers::put16(ip, 10, 0);
                headers::put16(ip, 10, Sum::of(ip).checksum());
                ip.get(12..)
            }
            Ip::V6 => {
                headers::put16(ip, 4, total.wrapping_sub(IPV6 as u16));
                ip.get(8..)
            }
        };
        let len = total.wrapping_sub(u16::from(seed.transport));
        let pseudo = Sum::of(addresses.unwrap_or(&[]))
            .plus(Sum::of_word(u16::from(seed.protocol.number())))
            .plus(Sum::of_word(len));
        match seed.protocol {
            Protocol::Tcp => {
                let push = if self.push { headers::PSH } else { 0 };
                let flags = headers::be16(transport, 12).unwrap_or(0);
                headers::put16(transport, 12, flags | push);
            }
            Protocol::Udp => headers::put16(transport, 4, len),
        }
        headers::put16(transport, seed.protocol.checksum_at(), pseudo.fold());
    }
}

/// What is to be written to TUN, in order: no packet overtakes another of its flow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Groups<'a> {
    coalescer: &'a Coalescer,
}

impl<'a> Groups<'a> {
    /// How many writes that takes.
    pub(crate) fn len(&self) -> usize {
        usize::from(self.coalescer.slots_len)
    }

    /// One of them.
    pub(crate) fn get(&self, index: usize) -> Option<Group<'a>> {
        let slot = self.coalescer.slots.get(..self.len())?.get(index)?;
        Some(Group { slot, packets: &self.coalescer.packets })
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Group<'a>> + use<'a> {
        let coalescer = self.coalescer;
        let slots = coalescer.slots.get(..self.len()).unwrap_or(&[]);
        slots.iter().map(|slot| Group { slot, packets: &coalescer.packets })
    }
}

/// One write to TUN.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group<'a> {
    slot: &'a Slot,
    packets: &'a [Packet],
}

impl<'a> Group<'a> {
    /// As what this was merged; `None` for a packet that goes as it came.
    pub(crate) fn class(&self) -> Option<Class> {
        self.merged().map(|seed| seed.class)
    }

    /// How many packets this is.
    pub(crate) fn packets_len(&self) -> usize {
        usize::from(self.slot.count)
    }

    /// What is written first: the offload header, and of merged packets their common headers. It stays where it is
    /// until the coalescer is cleared.
    pub(crate) fn header(&self) -> &'a [u8] {
        let len = |seed: &Seed| HEADER.wrapping_add(usize::from(seed.headers));
        self.merged().and_then(|seed| self.slot.template.get(..len(seed))).unwrap_or(&virtio::PLAIN)
    }

    /// What is written behind that, in order: of merged packets the payloads, else the packet.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = Place> + use<'a> {
        let slot = self.slot;
        let seed = self.merged();
        let mut left = slot.count;
        self.packets().map(move |place| {
            left = left.wrapping_sub(1);
            let Some(seed) = seed else { return place };
            Place {
                buffer: place.buffer,
                start: place.start.wrapping_add(u32::from(seed.headers)),
                len: if left == 0 { slot.last_payload } else { seed.size },
            }
        })
    }

    /// The packets as they came, to write each by itself (behind [`virtio::PLAIN`]) when the kernel refuses them merged.
    pub(crate) fn packets(&self) -> impl Iterator<Item = Place> + use<'a> {
        let packets = self.packets;
        let mut next = self.slot.first;
        (0..self.slot.count).map_while(move |_| {
            let packet = packets.get(usize::from(next))?;
            next = packet.next;
            Some(packet.place)
        })
    }

    fn merged(&self) -> Option<&'a Seed> {
        self.slot.seed.as_ref().filter(|_| self.slot.count > 1)
    }
}
