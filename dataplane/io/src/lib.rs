//! Linux packet I/O of a worker: one TUN queue, its UDP sockets, a waker and a deadline behind [`PacketIo`].
//!
//! A worker is a loop around [`PacketIo::turn`]. A turn hands the kernel what the [`Outbox`] holds, waits, and shows
//! a [`Handler`] everything that arrived; what the handler puts into the outbox leaves as the next turn begins. With
//! [`UringIo`] sending and waiting are therefore one `io_uring_enter`; [`PollIo`] keeps the same order with plain
//! system calls, and [`MemoryIo`] with neither, so that a handler can be tested without a kernel.
//!
//! ```text
//!              turn n                                  turn n + 1
//!   ┌────────────────────────────────────┐  ┌──────────────────────────────
//!   │ send outbox · wait · packets()     │  │ send outbox · wait · …
//!   │                      datagrams()   │  │   ▲
//!   │                      wake()        │  │   │ what the handler left,
//!   │                      idle()        │──┼───┘ and packets to TUN in place
//!   └────────────────────────────────────┘  └──────────────────────────────
//! ```
//!
//! Bytes that arrive are shown in the buffer they arrived in. A datagram is opened there, and [`Delivery::packet`]
//! names the range that goes to TUN, so an inbound packet is never copied in user space. Nothing is allocated after a
//! back end was opened, and every queue has a named bound.

mod address;
pub mod affinity;
mod back_end;
mod counters;
#[cfg(test)]
mod forced;
pub mod heap;
mod memory;
pub mod names;
mod offload;
mod offloads;
mod outbox;
mod pause;
mod poll;
mod reads;
mod region;
mod stray;
mod sys;
mod train;
mod tun;
mod udp;
mod uring;
mod waker;
mod writes;

use std::io;
use std::net::SocketAddr;
use std::time::{Instant, SystemTime};

pub use back_end::{BackEnd, Choice, Chosen, KernelIo, Parts, Refused, UnknownChoice, probe};
pub use counters::Counters;
pub use memory::MemoryIo;
pub use offload::{Head, SuperPacket};
pub use offloads::{Offloads, UnknownOffload};
pub use outbox::{
    DATAGRAM_OVERHEAD, OUTBOX_BYTES, OUTBOX_PACKETS, OUTBOX_TRAINS, Outbox, PacketSlot, TrainSlot,
    datagram_capacity,
};
pub use poll::PollIo;
pub use stray::{Full, STRAY_BYTES, Stray, StrayReceiver, StraySender, Strays, strays};
pub use train::{Delivery, RangeError, Train};
pub use tun::{Tun, TunError};
pub use udp::{MAX_WORKERS, SocketBuffers, Udp, UdpError};
pub use uring::UringIo;
pub use waker::Waker;

/// The most datagrams of one train that a handler is shown at once. A super-packet may have more segments.
///
/// The kernel's own bound for `UDP_SEGMENT` (`UDP_MAX_SEGMENTS`, 128 since Linux 6.9).
pub const MAX_SEGMENTS: usize = 128;

/// The most packets and super-packets that a handler is shown at once.
pub const MAX_PACKETS: usize = 64;

/// The time of a turn: read once after waiting, so that all of a turn's decisions agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// For timers: never goes back, does not count time asleep.
    pub monotonic: Instant,
    /// For what other machines wrote down: certificates, handshake timestamps.
    pub wall: SystemTime,
}

impl Now {
    /// Reads both clocks.
    #[must_use]
    pub fn read() -> Self {
        Self { monotonic: Instant::now(), wall: SystemTime::now() }
    }
}

/// What a worker needs from the kernel: one TUN queue, its UDP sockets, a deadline.
pub trait PacketIo {
    /// Sends what the outbox holds, waits for input, a wake or `deadline`, and shows `handler` everything that arrived.
    ///
    /// `None` waits without end, an instant that has passed not at all. What the handler leaves in the outbox is handed
    /// to the kernel as the next turn begins, or by [`PacketIo::flush`] when there will be no next turn. A turn may end
    /// early with nothing to show (a signal, room in a full outbox again); [`Handler::idle`] is called all the same.
    ///
    /// # Errors
    ///
    /// Only what the worker cannot live with: the TUN device is gone, or the kernel refuses to wait. Errors of single
    /// datagrams and packets are counted in [`Counters`] and never end the loop.
    fn turn(&mut self, deadline: Option<Instant>, handler: &mut impl Handler) -> io::Result<()>;

    /// Hands the kernel what the outbox holds, without waiting and without showing anything.
    ///
    /// # Errors
    ///
    /// As for [`PacketIo::turn`].
    fn flush(&mut self) -> io::Result<()>;

    /// The queue of datagrams and packets to send, for use between turns.
    fn outbox(&mut self) -> &mut Outbox;

    /// What was counted since the back end was opened.
    fn counters(&self) -> Counters;

    /// A handle that ends a turn from any thread.
    fn waker(&self) -> Waker;
}

/// What a worker does with what arrives. `now` is read once per turn.
pub trait Handler {
    /// Takes what TUN gave, in order: packets, and super-packets of equal segments. At most [`MAX_PACKETS`] at once.
    ///
    /// The outbox has room for all of them when this is called, each segment with [`DATAGRAM_OVERHEAD`] and a train of
    /// its own for every [`MAX_SEGMENTS`]: while the network does not take our datagrams, TUN is not read.
    fn packets(&mut self, packets: &[SuperPacket<'_>], outbox: &mut Outbox, now: Now);

    /// Takes a train of datagrams of one sender, as GRO delivered it.
    ///
    /// The datagrams are opened in place, and `delivery` is told which ranges are packets for TUN. Answers (a cookie,
    /// a handshake response) go into [`Delivery::outbox`].
    fn datagrams(&mut self, train: Train<'_>, from: SocketAddr, delivery: &mut Delivery<'_>, now: Now);

    /// Takes note that a [`Waker`] fired since the last turn: there may be something in the channels.
    fn wake(&mut self, outbox: &mut Outbox, now: Now);

    /// Ends a turn, always: the place for timers and for draining what wants to be sent.
    ///
    /// When the outbox is full here, keep the rest and let the next turn wait no longer than `deadline`; a turn ends as
    /// soon as there is room again.
    fn idle(&mut self, outbox: &mut Outbox, now: Now);
}
