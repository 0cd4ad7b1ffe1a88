//! The fast back end: one io_uring per worker, one `io_uring_enter` per turn.
//!
//! Receiving is two multishot operations that stay with the kernel and take buffers from a ring of ours; sending and
//! writing are one-shot operations on slots of the outbox and on buffers that packets were received in. Sends and
//! writes never wait in the kernel (`MSG_DONTWAIT`, `RWF_NOWAIT`), so they are done when `enter` has submitted them,
//! and the order in which they were queued is the order in which they leave.
//!
//! The kernel may use a buffer or a slot until the operation on it completed. Each therefore changes hands by a
//! completion only: [`buffers::BufferRing`] and the outbox check it, and dropping a back end first ends everything that
//! is with the kernel (or leaks the memory, if the kernel does not end it).

mod arm;
mod buffers;
mod completion;
mod conclude;
mod ring;
mod settle;
mod show;
mod stage;

use std::collections::VecDeque;
use std::io;
use std::mem::{self, ManuallyDrop};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use io_uring::cqueue;
use io_uring::types::Fixed;

use crate::outbox::{OUTBOX_PACKETS, Piece, datagram_capacity};
use crate::pause::Pause;
use crate::region::Region;
use crate::train::TRAIN_BYTES;
use crate::udp::Family;
use crate::udp::messages::{Messages, SENDS};
use crate::udp::segmentation::Segmentation;
use crate::writes::{self, Writes};
use crate::{Counters, Handler, Now, Offloads, Outbox, PacketIo, Parts, Waker, reads};
use arm::Arm;
use buffers::{BufferRing, Taken};
use ring::Ring;
pub(crate) use ring::explain;

/// Buffers for what arrives from the network, shared by both sockets.
const DATAGRAM_BUFFERS: u16 = 128;

/// Buffers for what arrives from TUN.
const PACKET_BUFFERS: u16 = 128;

/// The group numbers of the two buffer rings.
const DATAGRAM_GROUP: u16 = 0;
const PACKET_GROUP: u16 = 1;

/// In front of a datagram the kernel writes `io_uring_recvmsg_out`, the sender, and control messages.
const OUT_LEN: usize = 16;
const NAME_LEN: usize = 32;
/// Room for control messages (`UDP_GRO`); makes the datagram begin on a cache line.
const CONTROL_LEN: usize = 80;
const PREFIX: usize = OUT_LEN + NAME_LEN + CONTROL_LEN;

/// Where a packet's buffer begins, so that the packet behind the offload header begins on a cache line.
const PACKET_OFFSET: usize = crate::region::LINE - crate::offload::virtio::HEADER;

/// Positions of our files in the ring's table.
const TUN: Fixed = Fixed(0);
const WAKER: Fixed = Fixed(3);

fn socket(family: Family) -> Fixed {
    match family {
        Family::V4 => Fixed(1),
        Family::V6 => Fixed(2),
    }
}

/// How long a dropped back end waits for the kernel to end its operations, per attempt and in attempts.
const FAREWELL: Duration = Duration::from_millis(10);
const FAREWELL_ATTEMPTS: usize = 100;

/// Talks to the kernel through a ring. Belongs to the thread that made it.
#[derive(Debug)]
pub struct UringIo {
    ring: Ring,
    parts: Parts,
    memory: ManuallyDrop<Memory>,
    receive: [Arm; 2],
    read: Arm,
    wake: Arm,
    woken: bool,
    /// A socket took nothing more; we are told when it does.
    stalled: bool,
    awaiting_room: bool,
    /// The kernel had no memory for a datagram.
    send_pause: Pause,
    segmentation: Segmentation,
    /// Lasting operations handed over whose last completion has not come.
    outstanding: usize,
    /// Sends and writes queued since the last `enter`: they are done when it returns.
    fresh: u32,
    datagrams: VecDeque<Received>,
    packets: VecDeque<Received>,
    /// The sends queued, by message, and what became of each (0, or an error's code).
    sends: Vec<(Piece, i32)>,
    /// Writes to TUN that failed: which of those gathered, and the error's code.
    failed_writes: Vec<(u16, i32)>,
    /// Packets of the outbox that are being written to TUN.
    own: Vec<u16>,
    /// TUN is no more.
    gone: bool,
    /// The ring does not take what it is given: what is queued may still point to memory, which must not change any more.
    broken: bool,
    counters: Counters,
}

/// Everything that the kernel is given addresses of.
#[derive(Debug)]
struct Memory {
    outbox: Outbox,
    datagrams: BufferRing,
    packets: BufferRing,
    /// Packets for TUN, in buffers that are with us until they are written.
    writes: Writes,
    delivering: Vec<Taken>,
    /// What sends point to.
    messages: Messages,
    /// What multishot receives are to leave room for.
    receive_header: Box<libc::msghdr>,
    /// The eventfd's count.
    wakes: Region,
}

/// Something that arrived and waits to be shown.
#[derive(Debug)]
struct Received {
    buffer: Taken,
    len: usize,
}

impl Memory {
    fn new(mtu: u16, offloads: Offloads) -> Self {
        let mut receive_header = Box::new(no_header());
        receive_header.msg_namelen = NAME_LEN as u32;
        receive_header.msg_controllen = CONTROL_LEN;
        let datagram = if offloads.udp_gro { TRAIN_BYTES } else { datagram_capacity(mtu) };
        let packet = reads::buffer_len(mtu, offloads.tso || offloads.uso);
        Self {
            outbox: Outbox::new(mtu),
            datagrams: BufferRing::new(DATAGRAM_GROUP, DATAGRAM_BUFFERS, 0, PREFIX + datagram),
            packets: BufferRing::new(PACKET_GROUP, PACKET_BUFFERS, PACKET_OFFSET, packet),
            writes: Writes::new(offloads),
            delivering: Vec::with_capacity(usize::from(DATAGRAM_BUFFERS)),
            messages: Messages::new(),
            receive_header,
            wakes: Region::new(1, size_of::<u64>()),
        }
    }
}

/// A ring and its memory, before anything was started on it.
#[derive(Debug)]
pub(crate) struct Core {
    // Dropped first: the ring must not outlive the memory it knows.
    ring: Ring,
    memory: Memory,
}

impl Core {
    /// Sets up a ring for the calling thread with buffers for this MTU.
    pub(crate) fn open(mtu: u16, offloads: Offloads) -> io::Result<Self> {
        Self::with(Ring::open()?, mtu, offloads)
    }

    fn with(ring: Ring, mtu: u16, offloads: Offloads) -> io::Result<Self> {
        let mut memory = Memory::new(mtu, offloads);
        // SAFETY: ring and memory stay together, here and in UringIo, and the memory goes last.
        unsafe { memory.datagrams.register(&ring) }?;
        // SAFETY: as above.
        unsafe { memory.packets.register(&ring) }?;
        Ok(Self { ring, memory })
    }

    /// Makes the files of a worker known to the ring.
    pub(crate) fn attach(&self, parts: &Parts) -> io::Result<()> {
        // A position without a file is -1.
        let fd = |family| parts.udp.socket(family).map_or(-1, |socket| socket.as_raw_fd());
        let [v4, v6] = Family::ALL.map(fd);
        self.ring.register_files(&[parts.tun.as_fd().as_raw_fd(), v4, v6, parts.waker.as_fd().as_raw_fd()])
    }
}

impl UringIo {
    /// Sets up a ring on the calling thread, which must be the one that uses it.
    ///
    /// # Errors
    ///
    /// When the kernel has no io_uring for us: forbidden, too old, or out of memory.
    pub fn new(mut parts: Parts) -> io::Result<Self> {
        parts.offer_offloads();
        let core = Core::open(parts.mtu, parts.offloads)?;
        core.attach(&parts)?;
        Ok(Self::assemble(core, parts))
    }

    /// With so many places in the ring's queues.
    #[cfg(test)]
    pub(crate) fn with_queues(mut parts: Parts, places: u32) -> io::Result<Self> {
        parts.offer_offloads();
        let core = Core::with(Ring::open_of(places, places)?, parts.mtu, parts.offloads)?;
        core.attach(&parts)?;
        Ok(Self::assemble(core, parts))
    }

    #[cfg(test)]
    pub(crate) fn writes(&mut self) -> &mut Writes {
        &mut self.memory.writes
    }

    /// Makes a back end of a ring to which `parts` are attached, for whose offloads its memory is.
    pub(crate) fn assemble(core: Core, parts: Parts) -> Self {
        Self {
            ring: core.ring,
            memory: ManuallyDrop::new(core.memory),
            receive: [Arm::default(); 2],
            read: Arm::default(),
            wake: Arm::default(),
            woken: false,
            stalled: false,
            awaiting_room: false,
            send_pause: Pause::default(),
            segmentation: Segmentation::new(parts.offloads.udp_gso),
            outstanding: 0,
            fresh: 0,
            datagrams: VecDeque::with_capacity(usize::from(DATAGRAM_BUFFERS)),
            packets: VecDeque::with_capacity(usize::from(PACKET_BUFFERS)),
            sends: Vec::with_capacity(SENDS),
            failed_writes: Vec::with_capacity(2 * writes::CAPACITY),
            own: Vec::with_capacity(OUTBOX_PACKETS),
            gone: false,
            broken: false,
            counters: Counters::default(),
            parts,
        }
    }

    /// The offloads in use: those asked for that the kernel has.
    #[must_use]
    pub fn offloads(&self) -> Offloads {
        self.parts.offloads
    }

    /// Submits what is queued, waits for `patience` completions of lasting operations, and takes in what happened.
    fn enter(&mut self, patience: u32, deadline: Option<Instant>) -> io::Result<Now> {
        let pauses = self.receive.iter().chain([&self.read, &self.wake]).filter_map(Arm::due_at);
        let until = pauses.chain(self.send_pause.until()).chain(deadline).min();
        self.broken = true;
        let patience = if patience > 0 && self.spin(until)? { 0 } else { patience };
        let timeout = until.map(|until| until.saturating_duration_since(Instant::now()));
        self.submit(patience, timeout)?;
        let now = Now::read();
        self.settle(now.monotonic)?;
        self.conclude(now.monotonic)?;
        self.broken = false;
        if self.gone { Err(self.parts.tun.gone()) } else { Ok(now) }
    }

    fn check_ring(&self) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "io_uring failed before"));
        }
        Ok(())
    }

    /// Looks for something to arrive for as long as was asked for, and not beyond `until`; tells whether it did.
    fn spin(&mut self, until: Option<Instant>) -> io::Result<bool> {
        if self.parts.spin.is_zero() {
            return Ok(false);
        }
        if self.fresh > 0 {
            self.submit(0, None)?;
        }
        let start = Instant::now();
        let end = until.map_or(start + self.parts.spin, |until| until.min(start + self.parts.spin));
        loop {
            if self.ring.has_news() {
                return Ok(true);
            }
            if Instant::now() >= end {
                return Ok(false);
            }
            std::hint::spin_loop();
        }
    }

    fn submit(&mut self, patience: u32, timeout: Option<Duration>) -> io::Result<()> {
        self.counters.system_calls += 1;
        let taken = self.ring.enter(patience, timeout)?;
        self.counters.submissions += taken as u64;
        self.fresh = 0;
        Ok(())
    }
}

fn no_header() -> libc::msghdr {
    // SAFETY: a msghdr is integers and pointers, for which zero is a value.
    unsafe { mem::zeroed() }
}

impl PacketIo for UringIo {
    fn turn(&mut self, deadline: Option<Instant>, handler: &mut impl Handler) -> io::Result<()> {
        self.check_ring()?;
        let patience = self.stage();
        let now = self.enter(patience, deadline)?;
        self.counters.turns += 1;
        self.show(handler, now);
        handler.idle(&mut self.memory.outbox, now);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.check_ring()?;
        self.stage_writes();
        self.stage_outbox();
        while self.fresh > 0 {
            self.enter(0, None)?;
            self.stage_outbox();
        }
        Ok(())
    }

    fn outbox(&mut self) -> &mut Outbox {
        &mut self.memory.outbox
    }

    fn counters(&self) -> Counters {
        Counters { completions_overflowed: self.ring.overflowed(), ..self.counters }
    }

    fn waker(&self) -> Waker {
        self.parts.waker.clone()
    }
}

impl Drop for UringIo {
    fn drop(&mut self) {
        if self.end_operations().is_ok() && self.outstanding == 0 && self.ring.is_settled() {
            // So that TUN is gone when its file is closed, and not when the kernel has taken the ring apart.
            let _ = self.ring.unregister_files();
            // SAFETY: no operation is with the kernel, so it does not use the memory; it is dropped once, here.
            unsafe { ManuallyDrop::drop(&mut self.memory) };
        } else {
            tracing::error!(
                event = "uring_stuck",
                outstanding = self.outstanding,
                "io_uring did not end its operations; leaking their memory"
            );
        }
    }
}

impl UringIo {
    /// Ends everything that is with the kernel.
    fn end_operations(&mut self) -> io::Result<()> {
        // What is queued goes first: it has addresses of ours as well.
        self.ring.enter(0, None)?;
        if self.outstanding > 0 {
            self.ring.cancel_all()?;
        }
        for _ in 0..FAREWELL_ATTEMPTS {
            while let Some(completed) = self.ring.completed() {
                let ended = completed.operation().is_lasting() && !cqueue::more(completed.flags);
                self.outstanding -= usize::from(ended);
            }
            if self.outstanding == 0 && self.ring.is_settled() {
                break;
            }
            self.ring.enter(u32::from(self.outstanding > 0), Some(FAREWELL))?;
        }
        Ok(())
    }
}
