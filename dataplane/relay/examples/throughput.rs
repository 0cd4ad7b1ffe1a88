//! How many datagrams a second of the relay's one thread passes on, over loopback: UDP to UDP, with senders that make trains
//! and with those that do not, and UDP to WebSocket.
//!
//! `cargo run --release -p ringmesh-relay --example throughput`
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement for people")]

#[path = "../tests/support/net.rs"]
mod net;
#[path = "../tests/support/mod.rs"]
mod support;

use std::io::IoSliceMut;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use net::{TestServer, UdpClient, loopback, message, websocket};
use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use ringmesh_relay::{Rates, ServerConfig};
use support::{Client, RELAY, node, sealed};

/// Bytes of an inner datagram of a full packet.
const INNER: usize = 1440;
const TRAIN: usize = 40;
const MEASURED: Duration = Duration::from_secs(3);

/// Processor time that the relay's thread has used.
fn relay_time() -> Duration {
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let path = task.unwrap().path();
        if std::fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "relay") {
            let stat = std::fs::read_to_string(path.join("schedstat")).unwrap();
            return Duration::from_nanos(stat.split_whitespace().next().unwrap().parse().unwrap());
        }
    }
    panic!("no relay thread");
}

/// Sends as fast as it can until told to stop.
fn flood(socket: UdpSocket, datagram: Vec<u8>, train: usize, stop: Arc<AtomicBool>) {
    let state = UdpSocketState::new(UdpSockRef::from(&socket)).unwrap();
    let contents = datagram.repeat(train);
    let transmit = Transmit {
        destination: socket.peer_addr().unwrap(),
        ecn: None,
        contents: &contents,
        segment_size: (train > 1).then_some(datagram.len()),
        src_ip: None,
    };
    while !stop.load(Ordering::Relaxed) {
        if state.try_send(UdpSockRef::from(&socket), &transmit).is_err() {
            std::thread::yield_now();
        }
    }
}

/// Takes all that comes.
fn sink(socket: UdpSocket, stop: Arc<AtomicBool>) {
    let state = UdpSocketState::new(UdpSockRef::from(&socket)).unwrap();
    let mut buffers = vec![vec![0u8; 65536]; quinn_udp::BATCH_SIZE];
    while !stop.load(Ordering::Relaxed) {
        let mut slices: Vec<_> = buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
        let mut meta = [RecvMeta::default(); quinn_udp::BATCH_SIZE];
        if state.recv(UdpSockRef::from(&socket), &mut slices, &mut meta).is_err() {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

async fn measure(server: &TestServer, label: &str) {
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (before, used, began) = (server.report().await, relay_time(), Instant::now());
    tokio::time::sleep(MEASURED).await;
    let (after, used, took) = (server.report().await, relay_time() - used, began.elapsed());
    let passed = after.networks[0].passed_on.datagrams - before.networks[0].passed_on.datagrams;
    let bytes = after.networks[0].passed_on.bytes - before.networks[0].passed_on.bytes;
    let reasons =
        after.networks[0].drops.iter().filter(|&(_, count)| count > 0).map(|(reason, _)| reason.as_str());
    let reasons = reasons.collect::<Vec<_>>().join(", ");
    let dropped = after.networks[0].drops.total() - before.networks[0].drops.total();
    println!(
        "{label:34} {:8.0} datagrams/s, {:5.2} Gbit/s; {:8.0} datagrams per second of the relay's processor ({:.0} % of one), {dropped} dropped ({reasons}), {} streams cut",
        passed as f64 / took.as_secs_f64(),
        bytes as f64 * 8.0 / took.as_secs_f64() / 1e9,
        passed as f64 / used.as_secs_f64(),
        100.0 * used.as_secs_f64() / took.as_secs_f64(),
        after.cut_websockets - before.cut_websockets,
    );
}

#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() {
    for (label, train, size) in [
        ("UDP to UDP, trains", TRAIN, INNER),
        ("UDP to UDP, one by one", 1, INNER),
        ("UDP to UDP, one by one, 100 bytes", 1, 100),
    ] {
        let rates = Rates { client: 100_000_000_000, total: None };
        let server = TestServer::start(ServerConfig { rates, ..loopback() }, 2).await;
        let mut one = UdpClient::meet(server.udp, 1, RELAY).await;
        let two = UdpClient::meet(server.udp, 2, RELAY).await;
        one.bind(2).await;
        let datagram = one.client.to(2, &sealed(size));
        let stop = Arc::new(AtomicBool::new(false));
        let (from, to) = (one.socket.into_std().unwrap(), two.socket.into_std().unwrap());
        let threads = [
            std::thread::spawn({
                let stop = stop.clone();
                move || flood(from, datagram, train, stop)
            }),
            std::thread::spawn({
                let stop = stop.clone();
                move || sink(to, stop)
            }),
        ];
        measure(&server, label).await;
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        server.stop().await;
    }

    // What a reader can take, so that what is measured is the relay and no cut.
    let server =
        TestServer::start(ServerConfig { rates: Rates { client: 40_000_000, total: None }, ..loopback() }, 2)
            .await;
    let mut one = UdpClient::meet(server.udp, 1, RELAY).await;
    let mut socket = websocket(server.tcp).await.unwrap();
    let mut two = Client::new(2, RELAY);
    socket.send(message(&[two.initiation()])).await.unwrap();
    for datagram in net::datagrams(&mut socket).await.unwrap() {
        let replies = two.take(&datagram);
        socket.send(message(&replies)).await.unwrap();
    }
    one.bind(2).await;
    while !one.client.bound[&node(2)].1 {
        one.turn().await;
    }
    let datagram = one.client.to(2, &sealed(INNER));
    let stop = Arc::new(AtomicBool::new(false));
    let reader =
        tokio::spawn(async move { while socket.next().await.is_some_and(|message| message.is_ok()) {} });
    let from = one.socket.into_std().unwrap();
    let flooding = std::thread::spawn({
        let stop = stop.clone();
        move || flood(from, datagram, TRAIN, stop)
    });
    measure(&server, "UDP to WebSocket, 320 Mbit/s").await;
    stop.store(true, Ordering::Relaxed);
    flooding.join().unwrap();
    reader.abort();
    server.stop().await;
}
