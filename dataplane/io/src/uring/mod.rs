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
mod ring;
mod settle;
mod stage;

use std::collections::VecDeque;
use std::io;
use std::mem::{self, ManuallyDrop};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use io_uring::cqueue;
use io_uring::types::Fixed;

use crate::address::RawAddress;
use crate::outbox::{OUTBOX_DATAGRAMS, datagram_capacity};
use crate::region::Region;
use crate::tun::virtio;
use crate::udp::Family;
use crate::{Counters, Delivery, Handler, Now, Outbox, PacketIo, Parts, SuperPacket, Train, Waker};
use arm::Arm;
use buffers::{BufferRing, Taken};
use ring::Ring;
pub(crate) use ring::explain;

/// Buffers for datagrams that arrive, shared by both sockets.
const DATAGRAM_BUFFERS: u16 = 128;

/// Buffers for packets from TUN.
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
const PACKET_OFFSET: usize = crate::region::LINE - virtio::HEADER;

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
    /// Operations handed over whose last completion has not come.
    outstanding: usize,
    /// One-shot operations queued since the last `enter`.
    fresh: u32,
    datagrams: VecDeque<Received>,
    packets: VecDeque<Received>,
    /// Slots whose datagrams the kernel did not take, in order.
    returned: Vec<u16>,
    counters: Counters,
}

/// Everything that the kernel is given addresses of.
#[derive(Debug)]
struct Memory {
    outbox: Outbox,
    datagrams: BufferRing,
    packets: BufferRing,
    /// Per datagram buffer: the buffer, and how many writes from it are under way.
    delivering: Box<[Option<(Taken, usize)>]>,
    /// Per datagram slot of the outbox.
    headers: Box<[SendHeader]>,
    /// What multishot receives are to leave room for.
    receive_header: Box<libc::msghdr>,
    /// The eventfd's count.
    wakes: Region,
}

/// What a send points to.
struct SendHeader {
    message: libc::msghdr,
    vector: libc::iovec,
    name: RawAddress,
}

impl std::fmt::Debug for SendHeader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SendHeader").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Something that arrived and waits to be shown.
#[derive(Debug)]
struct Received {
    buffer: Taken,
    len: usize,
}

impl Memory {
    fn new(mtu: u16) -> Self {
        let mut receive_header = Box::new(no_header());
        receive_header.msg_namelen = NAME_LEN as u32;
        receive_header.msg_controllen = CONTROL_LEN;
        let headers = (0..OUTBOX_DATAGRAMS).map(|_| SendHeader {
            message: no_header(),
            vector: libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 },
            name: RawAddress::EMPTY,
        });
        Self {
            outbox: Outbox::new(mtu),
            datagrams: BufferRing::new(DATAGRAM_GROUP, DATAGRAM_BUFFERS, 0, PREFIX + datagram_capacity(mtu)),
            // One byte more than fits, by which a longer packet shows.
            packets: BufferRing::new(
                PACKET_GROUP,
                PACKET_BUFFERS,
                PACKET_OFFSET,
                virtio::HEADER + usize::from(mtu) + 1,
            ),
            delivering: (0..DATAGRAM_BUFFERS).map(|_| None).collect(),
            headers: headers.collect(),
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
    pub(crate) fn open(mtu: u16) -> io::Result<Self> {
        let ring = Ring::open()?;
        let mut memory = Memory::new(mtu);
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
    pub fn new(parts: Parts) -> io::Result<Self> {
        let core = Core::open(parts.mtu)?;
        core.attach(&parts)?;
        Ok(Self::assemble(core, parts))
    }

    /// Makes a back end of a ring to which `parts` are attached.
    pub(crate) fn assemble(core: Core, parts: Parts) -> Self {
        Self {
            ring: core.ring,
            memory: ManuallyDrop::new(core.memory),
            parts,
            receive: [Arm::default(); 2],
            read: Arm::default(),
            wake: Arm::default(),
            woken: false,
            stalled: false,
            outstanding: 0,
            fresh: 0,
            datagrams: VecDeque::with_capacity(usize::from(DATAGRAM_BUFFERS)),
            packets: VecDeque::with_capacity(usize::from(PACKET_BUFFERS)),
            returned: Vec::with_capacity(OUTBOX_DATAGRAMS),
            counters: Counters::default(),
        }
    }

    /// Submits what is queued, waits, and takes in all completions. `patience` is how many completions to wait for
    /// beyond those of what is queued, which is done at once.
    fn enter(&mut self, patience: u32, deadline: Option<Instant>) -> io::Result<Now> {
        let pauses = self.receive.iter().chain([&self.read, &self.wake]).filter_map(Arm::due_at);
        let until = pauses.chain(deadline).min();
        let timeout = until.map(|until| until.saturating_duration_since(Instant::now()));
        self.counters.system_calls += 1;
        let taken = self.ring.enter(mem::take(&mut self.fresh) + patience, timeout)?;
        self.counters.submissions += taken as u64;
        let now = Now::read();
        self.settle(now.monotonic)?;
        Ok(now)
    }

    /// Shows the handler what arrived.
    fn show(&mut self, handler: &mut impl Handler, now: Now) {
        if mem::take(&mut self.woken) {
            self.counters.wakes += 1;
            self.parts.waker.seen();
            handler.wake(&mut self.memory.outbox, now);
        }
        // The network first: acknowledgements it carries let TUN's senders go on.
        while let Some(received) = self.datagrams.pop_front() {
            self.show_datagram(received, handler, now);
        }
        while self.has_room() {
            let Some(received) = self.packets.pop_front() else { break };
            self.show_packet(received, handler, now);
        }
    }

    fn show_datagram(&mut self, received: Received, handler: &mut impl Handler, now: Now) {
        let Received { buffer, len } = received;
        let Memory { datagrams, outbox, .. } = &mut *self.memory;
        let (prefix, datagram) = datagrams.bytes_mut(&buffer, 0..PREFIX + len).split_at_mut(PREFIX);
        let Some(from) = sender(prefix) else {
            self.counters.datagrams_unfit += 1;
            self.memory.datagrams.give_back(buffer);
            return;
        };
        self.counters.datagrams_received += 1;
        let train = Train::new(datagram);
        let mut delivery = Delivery::new(outbox, &train);
        handler.datagrams(train, from, &mut delivery, now);
        let ranges = delivery.into_ranges();
        if ranges.is_empty() {
            self.memory.datagrams.give_back(buffer);
        } else {
            self.stage_delivery(buffer, &ranges);
        }
    }

    fn show_packet(&mut self, received: Received, handler: &mut impl Handler, now: Now) {
        let Received { buffer, len } = received;
        let Memory { packets, outbox, .. } = &mut *self.memory;
        let too_long = len == packets.buffer_len() as usize;
        match packets.bytes_mut(&buffer, 0..len).split_at_mut_checked(virtio::HEADER) {
            Some((header, packet)) if !too_long && virtio::is_plain(header) => {
                self.counters.packets_read += 1;
                handler.packets(SuperPacket::new(packet), outbox, now);
            }
            _ => self.counters.packets_unfit += 1,
        }
        packets.give_back(buffer);
    }

    fn has_room(&self) -> bool {
        self.memory.outbox.datagram_room() >= self.max_segments()
    }
}

/// The sender in what the kernel wrote in front of a datagram; `None` when the datagram was cut, being longer than any
/// of ours can be.
fn sender(prefix: &[u8]) -> Option<SocketAddr> {
    let word = |at: usize| prefix.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes);
    let (name_len, flags) = (word(0)?, word(12)?);
    if flags & libc::MSG_TRUNC as u32 != 0 {
        return None;
    }
    let len = NAME_LEN.min(name_len as usize);
    RawAddress::parse(prefix.get(OUT_LEN..OUT_LEN + len)?)
}

fn no_header() -> libc::msghdr {
    // SAFETY: a msghdr is integers and pointers, for which zero is a value.
    unsafe { mem::zeroed() }
}

impl PacketIo for UringIo {
    fn turn(&mut self, deadline: Option<Instant>, handler: &mut impl Handler) -> io::Result<()> {
        let patience = self.stage();
        let now = self.enter(patience, deadline)?;
        self.counters.turns += 1;
        self.show(handler, now);
        handler.idle(&mut self.memory.outbox, now);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stage_outbox();
        if self.fresh > 0 {
            self.enter(0, None)?;
        }
        Ok(())
    }

    fn outbox(&mut self) -> &mut Outbox {
        &mut self.memory.outbox
    }

    fn max_segments(&self) -> usize {
        1
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
        if self.end_operations().is_ok() && self.outstanding == 0 {
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
                self.outstanding -= usize::from(!cqueue::more(completed.flags));
            }
            if self.outstanding == 0 {
                break;
            }
            self.ring.enter(1, Some(FAREWELL))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_datagram_has_no_sender() {
        let from: SocketAddr = "192.0.2.1:7".parse().unwrap();
        let raw = RawAddress::emit(&from);
        let mut prefix = [0; PREFIX];
        prefix[..4].copy_from_slice(&raw.len.to_ne_bytes());
        prefix[OUT_LEN..OUT_LEN + raw.bytes.len()].copy_from_slice(&raw.bytes);
        assert_eq!(sender(&prefix), Some(from));
        prefix[12..16].copy_from_slice(&(libc::MSG_TRUNC as u32).to_ne_bytes());
        assert_eq!(sender(&prefix), None);
        prefix[12..16].fill(0);
        prefix[..4].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(sender(&prefix), Some(from), "a length beyond the field is cut to it");
        assert_eq!(sender(&prefix[..11]), None);
    }

    #[test]
    fn every_bound_together_fits_the_submission_queue() {
        let lasting = 4 + 2;
        let most = OUTBOX_DATAGRAMS + crate::outbox::OUTBOX_PACKETS + usize::from(DATAGRAM_BUFFERS) + lasting;
        assert!(most <= ring::SUBMISSIONS as usize);
    }
}
