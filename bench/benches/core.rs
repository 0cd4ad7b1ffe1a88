//! What single operations of the sans-IO core cost: a packet out, a datagram in, by each kind of path; what the filter adds; a
//! refusal, a look-up, a handshake.
//!
//! Nothing here touches the kernel. One packet per call, a fresh counter each time, as the data path has it.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a bench that cannot be set up has nothing to say"
)]

mod mesh;
mod star;

use std::hint::black_box;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use criterion::{BatchSize, Bencher, Criterion, Throughput, criterion_group, criterion_main};
use mesh::{DATAGRAM, End, Mesh, Road, Side};
use ringmesh_aead::{Cipher, Key};
use ringmesh_tunnel::allowed_ips::AllowedIps;
use ringmesh_tunnel::ip::Prefix;
use ringmesh_tunnel::{DropReason, Inbound, Now, Outbound, Packet};
use star::{Null, Star};

/// The smallest packet, an acknowledgement with timestamps, and a full one.
const LENGTHS: [usize; 3] = [20, 52, 1408];
/// A peer whose only address is the good one.
const PLAIN: Road = Road::Direct { candidates: 1 };
/// What the same packet is sent by, to see what keeping account of paths costs.
const ROADS: [(&str, Road); 4] = [
    ("to a stock device", Road::Stock),
    ("directly, 1 candidate", PLAIN),
    ("directly, 8 candidates", Road::Direct { candidates: 8 }),
    ("through a relay", Road::Relay),
];

criterion_group!(benches, packets, runs, spread, filters, paths, refusals, lookups, handshakes);
criterion_main!(benches);

fn packets(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("packet");
    for length in LENGTHS {
        group.throughput(Throughput::Bytes(length as u64));
        group.bench_function(format!("seal {length}"), |bencher| seal(bencher, PLAIN, length));
        group.bench_function(format!("open {length}"), |bencher| open(bencher, PLAIN, length));
    }
    group.finish();
}

/// What a packet of a run costs, with the cipher and without: one packet, a turn's worth of them, a super-packet cut into as many.
fn runs(criterion: &mut Criterion) {
    runs_with::<Key>(criterion, "run");
    runs_with::<Null>(criterion, "run without a cipher");
}

fn runs_with<C: Cipher>(criterion: &mut Criterion, name: &str) {
    let mut group = criterion.benchmark_group(name);
    let mut star = Star::<C>::new(1, 1);
    for length in [64, 1408] {
        for run in [1, 16, 45] {
            group.throughput(Throughput::Elements(run as u64));
            group.bench_function(format!("seal {run} x {length}"), |bencher| {
                bencher.iter_custom(|runs| star.seal(run, length, runs));
            });
            group.bench_function(format!("open {run} x {length}"), |bencher| {
                bencher.iter_custom(|runs| star.open(run, length, runs));
            });
        }
    }
    group.finish();
}

/// What a small packet costs when each is to or from another peer than the one before.
fn spread(criterion: &mut Criterion) {
    spread_with::<Key>(criterion, "spread");
    spread_with::<Null>(criterion, "spread without a cipher");
}

fn spread_with<C: Cipher>(criterion: &mut Criterion, name: &str) {
    let mut group = criterion.benchmark_group(name);
    for peers in [1, 1_000] {
        let mut star = Star::<C>::new(peers, 1);
        group.bench_function(format!("seal over {peers}"), |bencher| {
            bencher.iter_custom(|runs| star.seal(1, 64, runs));
        });
        group.bench_function(format!("open over {peers}"), |bencher| {
            bencher.iter_custom(|runs| star.open(1, 64, runs));
        });
    }
    group.finish();
}

/// What the filter adds to a packet: two ends without a filter and two with one take turns, packet after packet of flows from
/// many addresses, so that what else the machine does concerns both. The time is the median difference of their turns.
fn filters(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("filter adds");
    for (name, rules, flows) in [("1 rule, 1 flow", 1, 1), ("1000 rules, 10000 flows", 1000, FLOWS)] {
        for (run, length) in [(1, 20), (1, 1408), (45, 1408)] {
            let (mut bare, mut filtered) =
                (Traffic::new(None, flows, run, length), Traffic::new(Some(rules), flows, run, length));
            for (what, turn) in
                [("seal", Traffic::seal_some as fn(&mut Traffic) -> Duration), ("open", Traffic::open_some)]
            {
                group.bench_function(format!("to {what} {length} in runs of {run}, {name}"), |bencher| {
                    bencher.iter_custom(|packets| {
                        let turns = packets.div_ceil(TURN as u64).max(9);
                        let mut added: Vec<f64> = (0..turns)
                            .map(|_| {
                                let bare = turn(&mut bare).as_secs_f64();
                                turn(&mut filtered).as_secs_f64() - bare
                            })
                            .collect();
                        added.sort_by(f64::total_cmp);
                        let one = added[added.len() / 2].max(0.0) / TURN as f64;
                        Duration::from_secs_f64(one * packets as f64)
                    });
                });
            }
        }
    }
    group.finish();
}

/// Packets in one turn: whole runs.
const TURN: usize = 90;
/// Flows of one peer, all at work.
const FLOWS: u16 = 10_000;

/// Packets of one length from the near end to the far one, run after run, of one flow after the other.
struct Traffic {
    mesh: Mesh,
    packet: Vec<u8>,
    train: Vec<u8>,
    run: usize,
    flows: u16,
    next: u16,
}

impl Traffic {
    fn new(rules: Option<u16>, flows: u16, run: usize, length: usize) -> Self {
        let mut mesh = Mesh::connected(PLAIN);
        if let Some(rules) = rules {
            mesh.police(rules);
        }
        let (packet, train) = (End::Near.packet(length), vec![0; run * DATAGRAM]);
        let mut traffic = Self { mesh, packet, train, run, flows, next: 0 };
        for _ in 0..flows {
            let sealed = traffic.seal();
            let mut train = traffic.train[..sealed.0].to_vec();
            traffic.open(&mut train, sealed.1);
        }
        if rules.is_some() {
            let report = traffic.mesh.far.tunnel.filter_report();
            assert_eq!(report.flows.values().sum::<u64>(), u64::from(flows), "all are tracked");
        }
        traffic
    }

    /// Seals some packets; how long that took.
    fn seal_some(&mut self) -> Duration {
        let start = Instant::now();
        for _ in 0..TURN / self.run {
            black_box(self.seal());
        }
        start.elapsed()
    }

    /// Opens some packets, sealed before; how long that took.
    fn open_some(&mut self) -> Duration {
        let mut trains: Vec<(Vec<u8>, usize)> = (0..TURN / self.run)
            .map(|_| {
                let (len, stride) = self.seal();
                (self.train[..len].to_vec(), stride)
            })
            .collect();
        let start = Instant::now();
        for (train, stride) in &mut trains {
            self.open(train, *stride);
        }
        start.elapsed()
    }

    fn open(&mut self, train: &mut [u8], stride: usize) {
        let (from, now) = (self.mesh.last_hop_to(End::Far), self.mesh.now);
        let mut delivered = 0;
        self.mesh.far.tunnel.inbound_run(train, stride, from, now, &mut |_, _| delivered += 1);
        assert_eq!(delivered, self.run);
    }

    /// Seals a run of one flow; returns its length and stride.
    fn seal(&mut self) -> (usize, usize) {
        // A stride prime to the count, so that neither cache nor branch predictor knows what comes.
        self.next = ((u32::from(self.next) + 7919) % u32::from(self.flows)) as u16;
        End::Near.send_from(self.next, &mut self.packet);
        let (tunnel, now) = (&mut self.mesh.near.tunnel, self.mesh.now);
        let route = tunnel.route(&self.packet, self.run, now).expect("it passes");
        let packets = [Packet::whole(&self.packet); 45];
        match tunnel.seal_run(route, &packets[..self.run], &mut self.train, now) {
            Ok(Outbound::Send { len, stride, .. }) => (len, stride),
            other => panic!("there is no session: {other:?}"),
        }
    }
}

fn paths(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("path");
    for (name, road) in ROADS {
        for length in [20, 1408] {
            group.bench_function(format!("seal {length} {name}"), |bencher| seal(bencher, road, length));
            group.bench_function(format!("open {length} {name}"), |bencher| open(bencher, road, length));
        }
    }
    for length in [20, 1408] {
        group.bench_function(format!("pass on {length} at the relay"), |bencher| pass_on(bencher, length));
    }
    group.finish();
}

fn refusals(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("refuse");
    let captured = |mesh: &mut Mesh| {
        let mut datagram = vec![0; DATAGRAM];
        let (length, _) = mesh.seal(End::Near, &End::Near.packet(1408), &mut datagram);
        datagram.truncate(length);
        datagram
    };
    group.bench_function("a replayed datagram", |bencher| {
        let mut mesh = Mesh::connected(PLAIN);
        let captured = captured(&mut mesh);
        mesh.open(End::Far, &mut captured.clone());
        refuse(bencher, &mut mesh, &captured, DropReason::Replayed);
    });
    group.bench_function("a forged datagram", |bencher| {
        let mut mesh = Mesh::connected(PLAIN);
        let mut forged = captured(&mut mesh);
        *forged.last_mut().expect("a datagram is not empty") ^= 1;
        refuse(bencher, &mut mesh, &forged, DropReason::BadSeal);
    });
    group.bench_function("a datagram of no session", |bencher| {
        let mut mesh = Mesh::connected(PLAIN);
        let mut stray = captured(&mut mesh);
        stray[4] ^= 1;
        refuse(bencher, &mut mesh, &stray, DropReason::UnknownIndex);
    });
    group.finish();
}

fn refuse(bencher: &mut Bencher<'_>, mesh: &mut Mesh, datagram: &[u8], reason: DropReason) {
    let (from, now) = (mesh.last_hop_to(End::Far), mesh.now);
    let fresh = || datagram.to_vec();
    bencher.iter_batched_ref(
        fresh,
        |datagram| assert_eq!(mesh.far.tunnel.inbound(datagram, from, now), Err(reason)),
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
        let mut mesh = Mesh::new(PLAIN);
        bencher.iter(|| mesh.reconnect());
    });
}

fn seal(bencher: &mut Bencher<'_>, road: Road, length: usize) {
    let (mut mesh, packet) = (Mesh::connected(road), End::Near.packet(length));
    let mut datagram = [0; DATAGRAM];
    bencher.iter(|| mesh.seal(End::Near, black_box(&packet), &mut datagram));
}

/// Seals as many datagrams as are opened, outside the time that counts.
fn open(bencher: &mut Bencher<'_>, road: Road, length: usize) {
    let mut mesh = Mesh::connected(road);
    let (from, now) = (mesh.last_hop_to(End::Far), mesh.now);
    let Mesh { near, far, relay, .. } = &mut mesh;
    let packet = End::Near.packet(length);
    let arriving = || {
        let mut datagram = sealed(near, &packet, now);
        if road == Road::Relay {
            relay.take(&mut datagram, End::Near.address(), now).expect("it is passed on");
        }
        datagram
    };
    bencher.iter_batched_ref(
        arriving,
        |datagram| {
            let opened = far.tunnel.inbound(datagram, from, now);
            assert!(matches!(opened, Ok(Inbound::Packet { .. })));
        },
        BatchSize::SmallInput,
    );
}

fn pass_on(bencher: &mut Bencher<'_>, length: usize) {
    let mut mesh = Mesh::connected(Road::Relay);
    let now = mesh.now;
    let Mesh { near, relay, .. } = &mut mesh;
    let packet = End::Near.packet(length);
    bencher.iter_batched_ref(
        || sealed(near, &packet, now),
        |datagram| relay.take(datagram, End::Near.address(), now).expect("it is passed on"),
        BatchSize::SmallInput,
    );
}

fn sealed(side: &mut Side, packet: &[u8], now: Now) -> Vec<u8> {
    let mut datagram = vec![0; DATAGRAM];
    match side.tunnel.outbound(packet, &mut datagram, now) {
        Ok(Outbound::Send { len, .. }) => datagram.truncate(len),
        other => panic!("there is no session: {other:?}"),
    }
    datagram
}
