//! Packets on their way to TUN: what a turn brought, merged where they follow each other, and gathered from the buffers
//! that they were received in.
//!
//! ```text
//!   push ─▶ … ─▶ gather ─▶ the back end writes each ─▶ refused? merge no more of its class, write its packets one by one
//!                                                   ─▶ clear, and the buffers may be used again
//! ```

use crate::Offloads;
use crate::offload::{Class, Coalescer, Full, Place, virtio};

/// One write: an offload header and what lies behind it, as vectors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Write {
    pub(crate) vectors: *const libc::iovec,
    pub(crate) count: usize,
    /// How many packets it is.
    pub(crate) packets: usize,
}

/// Collects packets, and the vectors to write them with.
pub(crate) struct Writes {
    coalescer: Coalescer,
    vectors: Vec<libc::iovec>,
    gathered: Vec<Gathered>,
    pushed: usize,
    /// Has the kernel refuse what is merged, as one that does not know the offload does.
    #[cfg(test)]
    pub(crate) spoil: bool,
}

#[derive(Clone, Copy, Debug)]
struct Gathered {
    first: usize,
    count: usize,
    class: Option<Class>,
    packets: usize,
    /// Which group of the coalescer it was, to find its packets again.
    group: usize,
}

/// The most packets that one turn collects.
pub(crate) const CAPACITY: usize = crate::offload::CAPACITY;

// SAFETY: the vectors are written before every use, and lead to memory that whoever gathers keeps.
unsafe impl Send for Writes {}

impl Writes {
    pub(crate) fn new(offloads: Offloads) -> Self {
        let mut coalescer = Coalescer::new();
        for class in [Class::Tcp4, Class::Tcp6] {
            coalescer.set_merging(class, offloads.tun_gro);
        }
        coalescer.set_merging(Class::Udp, offloads.tun_gro && offloads.uso);
        Self {
            coalescer,
            // A packet and a header for each at the most, twice: once merged, once more one by one.
            vectors: Vec::with_capacity(CAPACITY * 4),
            gathered: Vec::with_capacity(CAPACITY * 2),
            pushed: 0,
            #[cfg(test)]
            spoil: false,
        }
    }

    /// How many packets may still be pushed.
    pub(crate) fn room(&self) -> usize {
        CAPACITY - self.pushed
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pushed == 0
    }

    /// Takes the next packet. Its buffer must not be used again before [`Writes::clear`].
    ///
    /// # Panics
    ///
    /// When there is no [`Writes::room`].
    pub(crate) fn push(&mut self, place: Place, packet: &[u8]) {
        let pushed: Result<(), Full> = self.coalescer.push(place, packet);
        pushed.expect("invariant: there was room for the packet");
        self.pushed += 1;
    }

    /// Makes vectors for all that was pushed, by where a place's first byte is; answers how many writes that is.
    pub(crate) fn gather(&mut self, address: impl Fn(Place) -> *const u8) -> usize {
        let groups = self.coalescer.finish();
        for (group, found) in groups.iter().enumerate() {
            let first = self.vectors.len();
            let header = found.header();
            self.vectors.push(vector(header.as_ptr(), header.len()));
            #[cfg(test)]
            if self.spoil && found.class().is_some() {
                // A super-packet of segments without size.
                static SPOILED: [u8; virtio::HEADER] = [1, virtio::GSO_TCPV4, 0, 0, 0, 0, 0, 0, 0, 0];
                self.vectors.pop();
                self.vectors.push(vector(SPOILED.as_ptr(), SPOILED.len()));
                self.vectors.push(vector(header[virtio::HEADER..].as_ptr(), header.len() - virtio::HEADER));
            }
            for place in found.pieces() {
                self.vectors.push(vector(address(place), usize::from(place.len)));
            }
            let (count, class, packets) = (self.vectors.len() - first, found.class(), found.packets_len());
            self.gathered.push(Gathered { first, count, class, packets, group });
        }
        self.gathered.len()
    }

    /// One of the writes gathered.
    ///
    /// # Panics
    ///
    /// When there is no such write.
    pub(crate) fn get(&self, index: usize) -> Write {
        let Gathered { first, count, packets, .. } = self.gathered[index];
        Write { vectors: self.vectors[first..first + count].as_ptr(), count, packets }
    }

    /// The kernel refused a write because of how it was merged: nothing more of its class is, and its packets become
    /// writes of their own, behind all that were gathered so far. Answers their indices.
    pub(crate) fn refuse(
        &mut self,
        index: usize,
        address: impl Fn(Place) -> *const u8,
    ) -> std::ops::Range<usize> {
        let refused = self.gathered[index];
        if let Some(class) = refused.class {
            self.coalescer.set_merging(class, false);
        }
        let start = self.gathered.len();
        let groups = self.coalescer.finish();
        for place in groups.get(refused.group).into_iter().flat_map(|group| group.packets()) {
            let first = self.vectors.len();
            self.vectors.push(vector(virtio::PLAIN.as_ptr(), virtio::PLAIN.len()));
            self.vectors.push(vector(address(place), usize::from(place.len)));
            self.gathered.push(Gathered { first, count: 2, class: None, packets: 1, group: refused.group });
        }
        start..self.gathered.len()
    }

    /// Forgets everything: all is written, and the buffers may be used again.
    pub(crate) fn clear(&mut self) {
        self.coalescer.clear();
        self.vectors.clear();
        self.gathered.clear();
        self.pushed = 0;
    }
}

/// What a system call takes for `len` bytes at `address`.
pub(crate) fn vector(address: *const u8, len: usize) -> libc::iovec {
    libc::iovec { iov_base: address.cast_mut().cast(), iov_len: len }
}

impl std::fmt::Debug for Writes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writes").field("pushed", &self.pushed).finish_non_exhaustive()
    }
}
