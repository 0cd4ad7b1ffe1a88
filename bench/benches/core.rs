//! What single operations of the sans-IO core cost: a packet out, a datagram in, a refusal, a look-up, a handshake.
//!
//! Nothing here touches the kernel. One packet per call, a fresh counter each time, as the data path has it.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a bench that cannot be set up has nothing to say"
)]

use std::hint::black_box;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use criterion::{BatchSize, Bencher, Criterion, Throughput, criterion_group, criterion_main};
use ringmesh_tunnel::allowed_ips::AllowedIps;
use ringmesh_tunnel::ip::Prefix;
use ringmesh_tunnel::key::{NodeId, PresharedKey, SecretKey};
use ringmesh_tunnel::{
    DropReason, Handshaker, Hop, Inbound, Now, Outbound, PeerConfig, Psk, Random, Tunnel, UnixTime,
};

/// The smallest packet, an acknowledgement with timestamps, and a full one.
const LENGTHS: [usize; 3] = [20, 52, 1408];
const DATAGRAM: usize = 2048;

criterion_group!(benches, packets, refusals, lookups, handshakes);
criterion_main!(benches);

fn packets(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("packet");
    for length in LENGTHS {
        group.throughput(Throughput::Bytes(length as u64));
        group.bench_function(format!("seal {length}"), |bencher| {
            let (mut pair, packet) = (Pair::connected(), packet(length));
            let mut datagram = [0; DATAGRAM];
            bencher.iter(|| pair.near.seal(&packet, &mut datagram, pair.now));
        });
        group.bench_function(format!("open {length}"), |bencher| {
            let mut pair = Pair::connected();
            let (near, far, now) = (&mut pair.near, &mut pair.far, pair.now);
            open(bencher, length, near, |datagram| {
                let inbound = far.tunnel.inbound(datagram, Hop::Udp(NEAR), now);
                assert!(matches!(inbound, Ok(Inbound::Packet { .. })));
            });
        });
    }
    group.finish();
}

fn refusals(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("refuse");
    group.bench_function("a replayed datagram", |bencher| {
        let mut pair = Pair::connected();
        let mut captured = [0; DATAGRAM];
        let length = pair.near.seal(&packet(1408), &mut captured, pair.now);
        let mut first = captured;
        pair.far
            .tunnel
            .inbound(&mut first[..length], Hop::Udp(NEAR), pair.now)
            .expect("the original is taken");
        refuse(bencher, &mut pair, &captured[..length], DropReason::Replayed);
    });
    group.bench_function("a forged datagram", |bencher| {
        let mut pair = Pair::connected();
        let mut forged = [0; DATAGRAM];
        let length = pair.near.seal(&packet(1408), &mut forged, pair.now);
        forged[length - 1] ^= 1;
        refuse(bencher, &mut pair, &forged[..length], DropReason::BadSeal);
    });
    group.bench_function("a datagram of no session", |bencher| {
        let mut pair = Pair::connected();
        let mut stray = [0; DATAGRAM];
        let length = pair.near.seal(&packet(1408), &mut stray, pair.now);
        stray[4] ^= 1;
        refuse(bencher, &mut pair, &stray[..length], DropReason::UnknownIndex);
    });
    group.finish();
}

fn refuse(bencher: &mut Bencher<'_>, pair: &mut Pair, datagram: &[u8], reason: DropReason) {
    let fresh = || datagram.to_vec();
    bencher.iter_batched_ref(
        fresh,
        |datagram| {
            let refused = pair.far.tunnel.inbound(datagram, Hop::Udp(NEAR), pair.now);
            assert_eq!(refused, Err(reason));
        },
        BatchSize::SmallInput,
    );
}

fn lookups(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("allowed ips");
    for count in [10, 1_000, 100_000_u32] {
        let mut table = AllowedIps::default();
        let address = |index: u32| Ipv4Addr::from_bits(0x6440_0000 + index);
        for index in 0..count {
            table.insert(Prefix::host(address(index).into()), index);
            let v6 = Ipv6Addr::from_bits((0xfd00_u128 << 112) | u128::from(index));
            table.insert(Prefix::host(v6.into()), index);
        }
        group.bench_function(format!("look up one of {count}"), |bencher| {
            let mut index = 0_u32;
            bencher.iter(|| {
                // A stride prime to every count, so that neither cache nor branch predictor knows what comes.
                index = (index + 7_919) % count;
                table.lookup(black_box(address(index).into()))
            });
        });
    }
    group.finish();
}

fn handshakes(criterion: &mut Criterion) {
    criterion.bench_function("handshake, both sides", |bencher| {
        let mut pair = Pair::new();
        bencher.iter(|| pair.connect());
    });
}

/// Seals as many datagrams as are opened, outside the time that counts.
fn open(bencher: &mut Bencher<'_>, length: usize, near: &mut Side, mut open: impl FnMut(&mut [u8])) {
    let packet = packet(length);
    let now = near.now;
    let sealed = || {
        let mut datagram = vec![0; DATAGRAM];
        let length = near.seal(&packet, &mut datagram, now);
        datagram.truncate(length);
        datagram
    };
    bencher.iter_batched_ref(sealed, |datagram| open(datagram), BatchSize::SmallInput);
}

const NEAR: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 51820);
const FAR: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)), 51820);
const NEAR_INSIDE: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);
const FAR_INSIDE: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);

/// A packet from the near side to the far one.
fn packet(length: usize) -> Vec<u8> {
    let mut packet = vec![0x5a; length];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
    packet[12..16].copy_from_slice(&NEAR_INSIDE.octets());
    packet[16..20].copy_from_slice(&FAR_INSIDE.octets());
    packet
}

/// One node without a kernel.
struct Side {
    tunnel: Tunnel,
    handshaker: Handshaker,
    now: Now,
}

impl Side {
    fn new(secret: &SecretKey, peer: PeerConfig, now: Now) -> Self {
        let mut handshaker = Handshaker::new(secret, Random::system());
        handshaker.apply(std::slice::from_ref(&peer));
        let mut tunnel = Tunnel::new(0, secret.public_key(), Random::system()).unwrap();
        tunnel.apply(&[peer], now);
        Self { tunnel, handshaker, now }
    }

    fn seal(&mut self, packet: &[u8], datagram: &mut [u8], now: Now) -> usize {
        match self.tunnel.outbound(black_box(packet), datagram, now) {
            Ok(Outbound::Send { len, .. }) => len,
            other => panic!("there is no session: {other:?}"),
        }
    }

    fn do_jobs(&mut self, now: Now) {
        while let Some(job) = self.tunnel.poll_job() {
            let done = self.handshaker.run(job, 0, now);
            self.tunnel.handle_job(done, now);
        }
        while self.tunnel.poll_event().is_some() {}
    }
}

/// Two nodes and a link that loses nothing and takes no time.
struct Pair {
    near: Side,
    far: Side,
    now: Now,
}

impl Pair {
    fn new() -> Self {
        let (near, far) = (SecretKey::generate(), SecretKey::generate());
        let psk = PresharedKey::generate();
        let peer = |id, key: &SecretKey, inside: Ipv4Addr, candidate| PeerConfig {
            id: NodeId::from_bytes([id; 8]),
            key: key.public_key(),
            psk: Psk::Fixed(psk.clone()),
            mesh: true,
            allowed_ips: vec![Prefix::host(inside.into())],
            candidates: vec![candidate],
            links: Vec::new(),
            relay: false,
            persistent_keepalive: None,
        };
        let now = Now::new(Instant::now(), UnixTime::from_secs(1_700_000_000));
        let (to_far, to_near) = (peer(2, &far, FAR_INSIDE, FAR), peer(1, &near, NEAR_INSIDE, NEAR));
        Self { near: Side::new(&near, to_far, now), far: Side::new(&far, to_near, now), now }
    }

    fn connected() -> Self {
        let mut pair = Self::new();
        pair.connect();
        pair
    }

    /// A new session, whatever there was: both Diffie-Hellman halves and the first packet, which confirms it.
    fn connect(&mut self) {
        // Initiations are told from replayed ones by their time, and from floods by their distance.
        self.now.monotonic += Duration::from_secs(1);
        self.now.wall = self.now.wall.saturating_add(Duration::from_secs(1));
        let (near, far, now) = (&mut self.near, &mut self.far, self.now);
        (near.now, far.now) = (now, now);
        near.tunnel.expire_sessions();
        let mut datagram = [0; DATAGRAM];
        assert_eq!(near.tunnel.outbound(&packet(20), &mut datagram, now), Ok(Outbound::Held));
        let mut arrived = false;
        while !arrived {
            near.do_jobs(now);
            let mut moved = carry(near, far, NEAR, now, &mut arrived);
            far.do_jobs(now);
            moved |= carry(far, near, FAR, now, &mut arrived);
            assert!(moved || arrived, "the handshake came to a halt");
        }
        near.do_jobs(now);
        far.do_jobs(now);
    }
}

/// Carries over what one side has to send; says whether there was anything.
fn carry(from: &mut Side, to: &mut Side, source: SocketAddr, now: Now, arrived: &mut bool) -> bool {
    let (mut datagram, mut moved) = ([0; DATAGRAM], false);
    while let Some(transmit) = from.tunnel.poll_transmit(&mut datagram, now) {
        moved = true;
        let inbound = to.tunnel.inbound(&mut datagram[..transmit.len], Hop::Udp(source), now);
        *arrived |= matches!(inbound.expect("nothing is refused"), Inbound::Packet { .. });
    }
    moved
}
