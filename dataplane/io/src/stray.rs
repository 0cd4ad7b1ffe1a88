//! Strays: what a worker read and another one owns, on its way there.
//!
//! The kernel steers nearly all to its owner; what it cannot (a flow from TUN that nobody answered yet, a train of several
//! workers' datagrams) is copied into the owner's queue. The queue is one ring of memory, made at start, that all others push
//! into and the owner reads from: bounded, without a lock, in the order of each pusher.
//!
//! ```text
//!   released (owner)                     reserved (pushers)
//!      │                                    │
//!  ────┼──────────────┬──────┬──────────────┼────────────
//!      │ record       │record│ record, being│  free, up to one turn of the ring
//!      │ finished     │      │ copied       │  beyond `released`
//!  ────┼──────────────┴──────┴──────────────┼────────────
//!      ╵ blocks of 256 bytes, numbered from the first to the last ever; number modulo ring is the place
//! ```
//!
//! A pusher takes blocks by moving `reserved` on, copies, and marks the first block as finished with its number. The owner
//! reads a record when its first block is marked, and moves `released` on. As no number comes twice, an old mark is never
//! taken for a new one, and bytes never for a mark. A record lies in one piece: what is left at the end of the ring is
//! skipped by a record without bytes.
//!
//! A pusher that is held up while it copies holds up what others pushed after it, and wakes the owner itself when done.

use std::fmt;
use std::net::SocketAddr;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::utils::CachePadded;
use thiserror::Error;

use crate::offload::Shape;
use crate::region::Region;
use crate::{SuperPacket, Train, Waker};

/// The most bytes of a stray: as long as any packet, super-packet or train is.
pub const STRAY_BYTES: usize = 1 << 16;

/// Memory of all queues together, as long as each has [`LEAST`].
const TOTAL: usize = 4 << 20;
/// The most of one queue: about a millisecond of traffic. What waits longer had better be dropped.
const MOST: usize = 1 << 20;
/// The least of one queue. An empty one takes the longest stray wherever it begins: what it skips is shorter than what it
/// then stores.
const LEAST: usize = 256 << 10;

const BLOCK: usize = 256;
/// Where in its first block a record's bytes begin.
const BYTES_AT: usize = 128;

const _: () = assert!(size_of::<Record>() <= BYTES_AT && BLOCK.is_multiple_of(align_of::<Record>()));
const _: () = assert!(2 * (STRAY_BYTES + BYTES_AT).next_multiple_of(BLOCK) <= LEAST);

/// What one worker read and another owns.
#[derive(Debug)]
pub enum Stray<'a> {
    /// From TUN.
    Packet(SuperPacket<'a>),
    /// From the network.
    Datagrams {
        /// The datagrams.
        train: Train<'a>,
        /// Their sender.
        from: SocketAddr,
    },
}

/// The owner's queue has no room for the stray, or none could have: count a drop.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the queue for strays is full")]
pub struct Full;

/// A worker's ends of all queues.
#[derive(Debug)]
pub struct Strays {
    /// To each worker, by its number; the own one is there too, and of no use.
    pub to: Box<[StraySender]>,
    /// From all others.
    pub receiver: StrayReceiver,
}

/// Makes the queues of as many workers as there are wakers: one for each, reached by all. They take 4 MiB together, but
/// 256 KiB each at least and 1 MiB at most.
#[must_use]
pub fn strays(wakers: &[Waker]) -> Vec<Strays> {
    let bytes = (TOTAL / wakers.len().max(1)).clamp(LEAST, MOST);
    let queues: Vec<_> = wakers.iter().map(|waker| queue(bytes, waker.clone())).collect();
    let to: Box<[StraySender]> = queues.iter().map(|(sender, _)| sender.clone()).collect();
    queues.into_iter().map(|(_, receiver)| Strays { to: to.clone(), receiver }).collect()
}

/// A queue of so many bytes, rounded down to a power of two.
fn queue(bytes: usize, waker: Waker) -> (StraySender, StrayReceiver) {
    let blocks = 1 << (bytes.max(LEAST) / BLOCK).ilog2();
    let queue = Arc::new(Queue {
        reserved: CachePadded::new(AtomicU64::new(0)),
        released: CachePadded::new(AtomicU64::new(0)),
        finished: (0..blocks).map(|_| AtomicU64::new(0)).collect(),
        memory: Region::new(1, blocks * BLOCK),
    });
    let sender = StraySender { queue: Arc::clone(&queue), waker, pushed: false };
    (sender, StrayReceiver { queue, first: 0 })
}

/// A pusher's end of a worker's queue.
#[derive(Debug)]
pub struct StraySender {
    queue: Arc<Queue>,
    waker: Waker,
    /// Something was pushed since the owner was woken.
    pushed: bool,
}

impl Clone for StraySender {
    fn clone(&self) -> Self {
        Self { queue: Arc::clone(&self.queue), waker: self.waker.clone(), pushed: false }
    }
}

impl StraySender {
    /// Copies a stray into the queue. The owner learns of it by [`StraySender::wake`].
    ///
    /// # Errors
    ///
    /// When there is no room, or the stray is longer than [`STRAY_BYTES`]: nothing is pushed then.
    pub fn push(&mut self, stray: Stray<'_>) -> Result<(), Full> {
        match stray {
            Stray::Packet(packet) => self.queue.push(packet.whole(), Kind::Packet(packet.shape())),
            Stray::Datagrams { mut train, from } => {
                let stride = train.stride();
                self.queue.push(train.bytes(), Kind::Datagrams { stride, from })
            }
        }?;
        self.pushed = true;
        Ok(())
    }

    /// Wakes the owner if anything was pushed since the last call: once for all strays of a turn.
    pub fn wake(&mut self) {
        if std::mem::take(&mut self.pushed) {
            self.waker.wake();
        }
    }
}

impl Drop for StraySender {
    fn drop(&mut self) {
        self.wake();
    }
}

/// The owner's end of its queue. There is one.
#[derive(Debug)]
pub struct StrayReceiver {
    queue: Arc<Queue>,
    /// The block at which the oldest record begins: `released`, which nobody else changes.
    first: u64,
}

impl StrayReceiver {
    /// Lends the oldest stray and leaves it where it is, to see whether there is room for what will become of it.
    pub fn peek(&mut self) -> Option<Stray<'_>> {
        let record = self.oldest()?;
        Some(self.lend(&record))
    }

    /// Lends the oldest stray to `read`, whose bytes it may change, and makes room of it; `None` when there is none.
    pub fn pop<R>(&mut self, read: impl FnOnce(Stray<'_>) -> R) -> Option<R> {
        let record = self.oldest()?;
        let result = read(self.lend(&record));
        self.release(record.blocks);
        Some(result)
    }

    /// The oldest record, if it is finished.
    fn oldest(&mut self) -> Option<Record> {
        loop {
            if !self.queue.is_finished(self.first) {
                return None;
            }
            // SAFETY: a record begins here and is finished, so nobody writes to it until it is released, which only this
            // receiver does.
            let record = unsafe { self.queue.record(self.first).read() };
            match record.kind {
                Kind::Gap => self.release(record.blocks),
                Kind::Packet(_) | Kind::Datagrams { .. } => return Some(record),
            }
        }
    }

    fn lend(&mut self, record: &Record) -> Stray<'_> {
        let first = self.queue.bytes(self.first);
        // SAFETY: as many bytes were copied to here by who pushed the finished record, within blocks that belong to it. It
        // is not released while the answer lives, as that takes `&mut self` like this, so nobody else reaches them.
        let bytes = unsafe { std::slice::from_raw_parts_mut(first, record.len) };
        match record.kind {
            Kind::Datagrams { stride, from } => Stray::Datagrams { train: Train::of(bytes, stride), from },
            Kind::Packet(shape) => Stray::Packet(SuperPacket::of_shape(bytes, shape)),
            Kind::Gap => unreachable!("invariant: a gap is skipped when it is the oldest"),
        }
    }

    fn release(&mut self, blocks: u64) {
        self.first += blocks;
        // What was read, and written by who read, happened before whoever sees this writes there.
        self.queue.released.store(self.first, Ordering::Release);
    }
}

/// What stands at the beginning of a record's first block.
#[derive(Clone, Copy)]
struct Record {
    blocks: u64,
    len: usize,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    Packet(Shape),
    Datagrams {
        stride: usize,
        from: SocketAddr,
    },
    /// Up to the end of the ring, with nothing in it.
    Gap,
}

/// Blocks are numbered from 0 on, and would last for centuries.
struct Queue {
    /// The first block that no pusher has taken yet.
    reserved: CachePadded<AtomicU64>,
    /// The first block that the owner is not done with.
    released: CachePadded<AtomicU64>,
    /// In the place of each block: one more than the number of the last one there at which a record begins that is finished.
    finished: Box<[AtomicU64]>,
    /// The blocks, one behind the other.
    memory: Region,
}

// SAFETY: the memory, which is what is not `Sync`, is reached only by who has its blocks: a pusher from `reserve` to
// `finish`, then the one receiver until it releases them. Each hands over by a release store that the next loads by acquire.
unsafe impl Sync for Queue {}

impl Queue {
    fn push(&self, bytes: &[u8], kind: Kind) -> Result<(), Full> {
        if bytes.len() > STRAY_BYTES {
            return Err(Full);
        }
        let blocks = (BYTES_AT + bytes.len()).div_ceil(BLOCK) as u64;
        let (gap, first) = self.reserve(blocks)?;
        if gap > 0 {
            let record = Record { blocks: gap, len: 0, kind: Kind::Gap };
            // SAFETY: the blocks of the gap are reserved for this call, and not finished yet.
            unsafe { self.record(first - gap).write(record) };
            self.finish(first - gap);
        }
        // SAFETY: at least a block from here on is reserved for this call, and not finished yet.
        unsafe { self.record(first).write(Record { blocks, len: bytes.len(), kind }) };
        // SAFETY: all blocks that the bytes need behind the record are reserved for this call and lie one behind the other;
        // nobody else has a reference to them, so `bytes` is elsewhere.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.bytes(first), bytes.len()) };
        self.finish(first);
        Ok(())
    }

    /// Takes blocks that lie one behind the other; answers how many before them are to be skipped, and the first.
    fn reserve(&self, blocks: u64) -> Result<(u64, u64), Full> {
        let ring = self.finished.len() as u64;
        let mut reserved = self.reserved.load(Ordering::Relaxed);
        loop {
            let to_end = ring - reserved % ring;
            let gap = if to_end < blocks { to_end } else { 0 };
            let end = reserved + gap + blocks;
            // Acquire: the owner was done with all before `released` when it stored this. If others have moved on since
            // `reserved` was read, even past `end`, the exchange fails.
            if end.saturating_sub(self.released.load(Ordering::Acquire)) > ring {
                return Err(Full);
            }
            // No bytes are handed over here: the number alone divides the blocks among pushers.
            let (done, failed) = (Ordering::Relaxed, Ordering::Relaxed);
            match self.reserved.compare_exchange_weak(reserved, end, done, failed) {
                Ok(_) => return Ok((gap, reserved + gap)),
                Err(moved_to) => reserved = moved_to,
            }
        }
    }

    /// Hands the record that begins at a block to the owner.
    fn finish(&self, first: u64) {
        self.finished[self.place(first)].store(first + 1, Ordering::Release);
    }

    fn is_finished(&self, first: u64) -> bool {
        self.finished[self.place(first)].load(Ordering::Acquire) == first + 1
    }

    fn place(&self, block: u64) -> usize {
        // The ring is a power of two, so the cut-off part does not matter.
        block as usize & (self.finished.len() - 1)
    }

    fn record(&self, first: u64) -> *mut Record {
        let offset = self.place(first) * BLOCK;
        // SAFETY: a place is below the number of blocks, so the offset is inside the memory.
        unsafe { self.memory.address(0).add(offset) }.cast()
    }

    fn bytes(&self, first: u64) -> *mut u8 {
        // SAFETY: still inside the block.
        unsafe { self.record(first).cast::<u8>().add(BYTES_AT) }
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("blocks", &self.finished.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
