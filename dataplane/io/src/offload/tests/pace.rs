//! How long it takes, per packet and per byte. Run by hand, on a quiet machine:
//! `cargo test --release -p ringmesh-io --lib pace -- --ignored --nocapture`.

use std::hint::black_box;
use std::time::Instant;

use super::merge::nth;
use super::packet::{Packet, noise};
use crate::offload::checksum::Sum;
use crate::offload::coalesce::{Coalescer, Place};
use crate::offload::look::Class;
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
fn sums_from_the_second_cache() {
    let bytes = noise(1, 400_000);
    let aligned = bytes.as_ptr().align_offset(64);
    for shift in [0, 2, 16, 32, 62] {
        let packets: Vec<_> =
            (0..256).map(|index| &bytes[aligned + shift + index * 1_472..][..1_380]).collect();
        let ns = pace(|| black_box(&packets).iter().for_each(|packet| _ = black_box(Sum::of(packet))));
        println!("sum of 1380 bytes, {shift} from a line: {:.1} ns", ns / 256.0);
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
        // As they lie in a train of datagrams.
        let stride = (packets[0].len() + 32).next_multiple_of(16);
        let mut train = vec![0; stride * COUNT];
        for (datagram, packet) in train.chunks_mut(stride).zip(&packets) {
            datagram[16..16 + packet.len()].copy_from_slice(packet);
        }
        let len = packets[0].len();
        let mut coalescer = Coalescer::new();
        coalescer.set_merging(Class::Udp, true);
        let mut writes = 0;
        let mut pieces = 0;
        let ns = pace(|| {
            for (index, datagram) in black_box(&train).chunks(stride).enumerate() {
                let place = Place { buffer: 0, start: (index * stride + 16) as u32, len: len as u16 };
                coalescer.push(place, &datagram[16..16 + len]).expect("room");
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
