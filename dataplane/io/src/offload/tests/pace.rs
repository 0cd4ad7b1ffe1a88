//! How long it takes, per packet and per byte. Run by hand, on a quiet machine:
//! `cargo test --release -p ringmesh-io --lib pace -- --ignored --nocapture`.

use std::hint::black_box;
use std::time::Instant;

use super::merge::nth;
use super::packet::{Packet, noise};
use crate::offload::candidate::Class;
use crate::offload::checksum::Sum;
use crate::offload::coalesce::{Coalescer, Place};
use crate::offload::super_packet::{Head, SuperPacket};

/// Nanoseconds of one `work`: the least of several rounds, as what else runs only ever adds.
fn pace(mut work: impl FnMut()) -> f64 {
    const ROUNDS: usize = 15;
    const TIMES: u32 = 400;
    let mut least = f64::MAX;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        (0..TIMES).for_each(|_| work());
        least = least.min(start.elapsed().as_nanos() as f64 / f64::from(TIMES));
    }
    least
}

#[test]
#[ignore = "measures"]
fn sums() {
    for len in [20, 40, 64, 128, 255, 256, 512, 1_380, 1_420, 8_920, 65_000] {
        let bytes = noise(1, len);
        let ns = pace(|| (0..10).for_each(|_| _ = black_box(Sum::of(black_box(&bytes))))) / 10.0;
        println!("sum of {len} bytes: {ns:.1} ns, {:.1} GB/s", len as f64 / ns);
    }
}

#[test]
#[ignore = "measures"]
fn segments() {
    for (what, new, size) in [
        ("tcp4", Packet::tcp4 as fn(_) -> Packet, 1_380),
        ("tcp6", Packet::tcp6, 1_360),
        ("udp4", Packet::udp4, 1_392),
        ("udp4", Packet::udp4, 512),
        ("udp4", Packet::udp4, 64),
    ] {
        let whole = new(noise(1, (size * 127).min(65_000)));
        let (header, mut bytes) = whole.emit_unfinished(Some(size as u16));
        let mut heads = vec![Head::new(); 128];
        let mut count = 0;
        let ns = pace(|| {
            let packet = SuperPacket::parse(&header, black_box(&mut bytes)).expect("fit");
            count = packet.segments();
            for (index, head) in (0..count).zip(&mut heads) {
                black_box(packet.segment(index, head));
            }
        });
        println!("{what} of {size} bytes: {:.1} ns a segment ({count})", ns / count as f64);
    }
}

#[test]
#[ignore = "measures"]
fn merging() {
    for (what, new, size, flows) in [
        ("tcp4", Packet::tcp4 as fn(_) -> Packet, 1_380, 1),
        ("tcp4", Packet::tcp4, 1_380, 4),
        ("tcp4", Packet::tcp4, 1_380, 32),
        ("tcp4, bare acknowledgements", Packet::tcp4, 0, 1),
        ("tcp6", Packet::tcp6, 1_360, 1),
        ("udp4", Packet::udp4, 1_392, 1),
        ("udp4", Packet::udp4, 64, 1),
        ("udp4", Packet::udp4, 64, 1_000),
    ] {
        const COUNT: usize = 256;
        let packets: Vec<_> = (0..COUNT)
            .map(|index| {
                let mut first = new(noise(0, size));
                first.source_port = (index % flows) as u16;
                nth(&first, index / flows).emit()
            })
            .collect();
        let mut coalescer = Coalescer::new();
        coalescer.set_merging(Class::Udp, true);
        let mut writes = 0;
        let mut pieces = 0;
        let ns = pace(|| {
            for packet in black_box(&packets) {
                let place = Place { buffer: 0, start: 0, len: packet.len() as u16 };
                coalescer.push(place, packet).expect("room");
            }
            let groups = coalescer.finish();
            writes = groups.len();
            pieces = groups
                .iter()
                .map(|group| group.pieces().map(|piece| usize::from(piece.len)).sum::<usize>())
                .sum();
            coalescer.clear();
        });
        println!(
            "{what}, {size} bytes, {flows} flows: {:.1} ns a packet ({writes} writes, {pieces} bytes)",
            ns / COUNT as f64
        );
    }
}
