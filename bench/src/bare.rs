//! A worker's loop and nothing else: what TUN gives leaves as datagrams, and what comes as datagrams is written to TUN. No key, no peer,
//! no filter. On our back ends, and on the `tokio-uring` crate, so that the choice of the `io-uring` crate rests on a measurement
//! (`docs/decisions`).
//!
//! `tokio-uring` has neither multishot operations nor provided buffers, and shows no control messages of what is received, so that there
//! is no `UDP_GRO` with it. It also has no order among operations: more than one at a time in each direction would reorder packets.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use ringmesh_io::{
    Choice, Delivery, Handler, Head, KernelIo, MAX_SEGMENTS, Now, Outbox, PacketIo, Parts, SocketBuffers,
    SuperPacket, Train, Tun, Udp, Waker,
};
use tokio_uring::buf::BoundedBuf;

/// What the TUN device is called, and its MTU: that of our daemons.
pub(crate) const INTERFACE: &str = "bare0";
pub(crate) const MTU: u16 = 1408;
/// Where both ends listen.
pub(crate) const PORT: u16 = 51822;
/// In front of every packet that is read from or written to TUN: `struct virtio_net_hdr`.
const OFFLOAD_HEADER: usize = 10;
/// The longest datagram of a train's bytes.
const LONGEST_TRAIN: usize = 65_507;

/// What the loop runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum On {
    /// Our io_uring back end
    Uring,
    /// Our portable back end
    Poll,
    /// The tokio-uring crate
    TokioUring,
}

/// How to run it.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// What it runs on
    #[arg(long, value_enum)]
    on: On,
    /// The other end
    #[arg(long)]
    peer: SocketAddr,
    /// The kernel's offloads to use
    #[arg(long, default_value = "all")]
    offloads: String,
    /// The CPU it is to stay on
    #[arg(long)]
    cpu: usize,
}

/// Runs until it is killed.
///
/// # Errors
/// When a device, a socket or a back end cannot be had, or breaks.
pub(crate) fn run(options: &Options) -> Result<()> {
    ringmesh_io::affinity::pin(options.cpu).context("pinning the loop")?;
    let tun = Tun::create(INTERFACE)?;
    let choice = match options.on {
        On::Uring => Choice::Uring,
        On::Poll => Choice::Poll,
        On::TokioUring => return tokio_uring_loop(&tun, options.peer),
    };
    let udp = Udp::bind(PORT, SocketBuffers::default())?;
    let (waker, offloads) = (Waker::new()?, options.offloads.parse()?);
    let parts = Parts { tun, udp, waker, mtu: MTU, offloads, spin: Duration::ZERO };
    let (mut io, _) = KernelIo::open(choice, parts)?;
    let mut forward = Forward { peer: options.peer, head: Head::new() };
    loop {
        io.turn(None, &mut forward)?;
    }
}

/// Sends everything from TUN to the other end, and everything from the other end to TUN.
struct Forward {
    peer: SocketAddr,
    head: Head,
}

impl Forward {
    /// Sends a run of segments as one train.
    fn send(&mut self, run: &[(&SuperPacket<'_>, usize)], stride: usize, outbox: &mut Outbox) {
        let bytes = run.iter().map(|(packet, index)| packet.segment_len(*index)).sum();
        // A turn does not begin without room for everything in it.
        let Some(mut slot) = outbox.train(bytes) else { return };
        let mut at = 0;
        for (packet, index) in run {
            let (head, rest) = packet.segment(*index, &mut self.head);
            for part in [head, rest] {
                slot[at..at + part.len()].copy_from_slice(part);
                at += part.len();
            }
        }
        slot.commit_train(at, stride, self.peer);
    }
}

impl Handler for Forward {
    fn packets(&mut self, packets: &[SuperPacket<'_>], outbox: &mut Outbox, _: Now) {
        // Neighbours of equal length leave together, a shorter one as the last of them.
        let all = packets.iter().flat_map(|packet| (0..packet.segments()).map(move |index| (packet, index)));
        let (mut run, mut stride, mut ended) = (Vec::with_capacity(MAX_SEGMENTS), 0, false);
        for (packet, index) in all {
            let length = packet.segment_len(index);
            let full = run.len() == MAX_SEGMENTS || (run.len() + 1) * stride > LONGEST_TRAIN;
            if !run.is_empty() && (ended || full || length > stride) {
                self.send(&run, stride, outbox);
                run.clear();
            }
            if run.is_empty() {
                stride = length;
            }
            ended = length < stride;
            run.push((packet, index));
        }
        if !run.is_empty() {
            self.send(&run, stride, outbox);
        }
    }

    fn datagrams(&mut self, mut train: Train<'_>, _: SocketAddr, delivery: &mut Delivery<'_>, _: Now) {
        for index in 0..train.len() {
            let length = train.datagram(index).map_or(0, |datagram| datagram.len());
            // An empty one is no packet.
            let _ = delivery.packet(index, 0..length);
        }
    }

    fn wake(&mut self, _: &mut Outbox, _: Now) {}

    fn idle(&mut self, _: &mut Outbox, _: Now) {}
}

/// The same on the crate: a task for each direction.
fn tokio_uring_loop(tun: &Tun, peer: SocketAddr) -> Result<()> {
    let file = tun.as_fd().try_clone_to_owned().context("taking the device")?;
    // With it the kernel would answer that there is nothing, and not wait.
    let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?);
    fcntl(&file, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).context("opening the socket")?;
    socket.connect(peer).context("connecting the socket")?;
    for (name, set) in [
        ("send", socket2::SockRef::from(&socket).set_send_buffer_size(4 << 20)),
        ("receive", socket2::SockRef::from(&socket).set_recv_buffer_size(4 << 20)),
    ] {
        set.with_context(|| format!("enlarging the {name} buffer"))?;
    }
    tokio_uring::start(async move {
        let device = Rc::new(tokio_uring::fs::File::from_std(File::from(file)));
        let socket = Rc::new(tokio_uring::net::UdpSocket::from_std(socket));
        let out = tokio_uring::spawn(send_all(Rc::clone(&device), Rc::clone(&socket)));
        receive_all(&device, &socket).await?;
        out.await.context("the task that sends panicked")?
    })
}

async fn send_all(device: Rc<tokio_uring::fs::File>, socket: Rc<tokio_uring::net::UdpSocket>) -> Result<()> {
    let mut buffer = vec![0; OFFLOAD_HEADER + usize::from(MTU)];
    loop {
        let (read, full) = device.read_at(buffer, 0).await;
        let length = read.context("reading TUN")?;
        if length <= OFFLOAD_HEADER {
            bail!("the device is gone");
        }
        // What the kernel does not take is lost, as on any network.
        let (_, part) = socket.send(full.slice(OFFLOAD_HEADER..length)).await;
        buffer = part.into_inner();
    }
}

async fn receive_all(device: &tokio_uring::fs::File, socket: &tokio_uring::net::UdpSocket) -> Result<()> {
    // Without any offload the header is zeros.
    let mut buffer = vec![0; OFFLOAD_HEADER + usize::from(u16::MAX)];
    loop {
        let (read, part) = socket.read(buffer.slice(OFFLOAD_HEADER..)).await;
        let full = part.into_inner();
        // The other end may not be there yet.
        let length = read.unwrap_or_default();
        if length == 0 {
            buffer = full;
            continue;
        }
        let (_, part) = device.write_at(full.slice(..OFFLOAD_HEADER + length), 0).submit().await;
        buffer = part.into_inner();
    }
}
