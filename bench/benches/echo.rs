//! A worker's loop on three ways to reach the kernel: `UringIo`, `PollIo`, and the same loop on the `tokio-uring` crate,
//! which has neither multishot receive nor provided buffers. A burst of datagrams goes to an echo on a thread of its
//! own and comes back; what is compared is the echo, since the sender is the same.
//!
//! This is what the choice of the `io-uring` crate rests on (`docs/decisions`). It runs in namespaces of its own.

#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a bench that cannot be set up has nothing to say"
)]

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use criterion::{Criterion, Throughput};
use ringmesh_io::{
    Choice, Counters, Delivery, Handler, KernelIo, Now, Offloads, Outbox, PacketIo, Parts, SocketBuffers,
    SuperPacket, Train, Tun, Udp, Waker,
};
use tokio::sync::oneshot;
use tokio_uring::buf::BoundedBuf;

/// Datagrams in flight: a quarter of what an outbox holds.
const BURST: usize = 64;
const LENGTH: usize = 1408;
const MTU: u16 = 1500;

fn main() {
    // A TUN device is part of what a back end is opened with, and needs the rights that a sandbox gives.
    ringmesh_lab::enter().expect("namespaces are allowed here, or this is root");
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group(format!("echo of {BURST} datagrams"));
    group.throughput(Throughput::Elements(BURST as u64)).measurement_time(Duration::from_secs(5));
    for choice in [Choice::Uring, Choice::Poll] {
        let echo = Ours::start(choice);
        let client = Client::new(echo.port);
        group.bench_function(choice.as_str(), |bencher| bencher.iter(|| client.burst()));
        let counters = echo.stop();
        println!("{choice}: {} system calls in all", counters.system_calls);
    }
    let echo = TokioUring::start();
    let client = Client::new(echo.port);
    group.bench_function("tokio-uring", |bencher| bencher.iter(|| client.burst()));
    echo.stop();
    group.finish();
    criterion.final_summary();
}

/// Sends bursts and waits for all of each to come back.
struct Client(UdpSocket);

impl Client {
    fn new(port: u16) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        Self(socket)
    }

    fn burst(&self) {
        let mut datagram = [0x5a; LENGTH];
        for _ in 0..BURST {
            self.0.send(&datagram).unwrap();
        }
        for _ in 0..BURST {
            let length = self.0.recv(&mut datagram).expect("loopback loses nothing that fits its buffers");
            assert_eq!(length, LENGTH);
        }
    }
}

/// One of our back ends, with a handler that sends everything back.
struct Ours {
    port: u16,
    stop: Arc<AtomicBool>,
    waker: Waker,
    thread: JoinHandle<io::Result<Counters>>,
}

impl Ours {
    fn start(choice: Choice) -> Self {
        let waker = Waker::new().unwrap();
        let udp = Udp::bind(0, SocketBuffers::default()).unwrap();
        let port = udp.port();
        let tun = Tun::create("echo%d").unwrap();
        let parts =
            Parts { tun, udp, waker: waker.clone(), mtu: MTU, offloads: Offloads::ALL, spin: Duration::ZERO };
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let (mut io, _) = KernelIo::open(choice, parts).expect("the back end is there");
            while !stopped.load(Ordering::Relaxed) {
                io.turn(None, &mut Echo)?;
            }
            Ok(io.counters())
        });
        Self { port, stop, waker, thread }
    }

    fn stop(self) -> Counters {
        self.stop.store(true, Ordering::Relaxed);
        self.waker.wake();
        self.thread.join().unwrap().unwrap()
    }
}

struct Echo;

impl Handler for Echo {
    fn packets(&mut self, _: &[SuperPacket<'_>], _: &mut Outbox, _: Now) {}

    fn datagrams(&mut self, mut train: Train<'_>, from: SocketAddr, delivery: &mut Delivery<'_>, _: Now) {
        for index in 0..train.len() {
            let (Some(datagram), Some(mut slot)) = (train.datagram(index), delivery.outbox().datagram())
            else {
                continue;
            };
            slot[..datagram.len()].copy_from_slice(datagram);
            slot.commit(datagram.len(), from);
        }
    }

    fn wake(&mut self, _: &mut Outbox, _: Now) {}

    fn idle(&mut self, _: &mut Outbox, _: Now) {}
}

/// The crate's way: an operation per datagram and direction, as many tasks as a burst has datagrams.
struct TokioUring {
    port: u16,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl TokioUring {
    fn start() -> Self {
        let (stop, stopped) = oneshot::channel();
        let (ready, port) = mpsc::channel();
        let thread = thread::spawn(move || {
            tokio_uring::start(async move {
                let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
                ready.send(socket.local_addr().unwrap().port()).unwrap();
                let socket = Rc::new(tokio_uring::net::UdpSocket::from_std(socket));
                for _ in 0..BURST {
                    tokio_uring::spawn(echo(Rc::clone(&socket)));
                }
                // Its sender says nothing; it goes away.
                let _ = stopped.await;
            });
        });
        Self { port: port.recv().unwrap(), stop, thread }
    }

    fn stop(self) {
        drop(self.stop);
        self.thread.join().unwrap();
    }
}

async fn echo(socket: Rc<tokio_uring::net::UdpSocket>) {
    let mut buffer = vec![0; usize::from(MTU)];
    loop {
        let (received, full) = socket.recv_from(buffer).await;
        let Ok((length, from)) = received else { return };
        let (sent, part) = socket.send_to(full.slice(..length), from).await;
        if sent.is_err() {
            return;
        }
        buffer = part.into_inner();
    }
}
