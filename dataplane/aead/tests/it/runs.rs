//! Whole runs are sealed as another implementation seals them one by one, and open again.

use ringmesh_aead::{Cipher as _, Kernel, Key};

use crate::random::Random;
use crate::reference::{Packet, kernels, seal};

/// Seals a run, holds it to the reference, damages some of it, opens it, and holds it to what it was.
fn round_trip(random: &mut Random, kernel: Kernel, first_counter: u64, mut packets: Vec<Packet>) {
    let bytes = random.key();
    let key = Key::new(&bytes, kernel);
    let mut run: Vec<_> = packets.iter_mut().map(Packet::sealing).collect();
    key.seal_run(first_counter, &mut run).unwrap();
    let counters = (0..packets.len() as u64).map(|index| first_counter + index);

    for (packet, counter) in packets.iter().zip(counters.clone()) {
        let text = packet.text();
        assert_eq!(packet.sealed(), seal(&bytes, counter, &text), "{kernel}, {} bytes", text.len());
    }

    let damaged: Vec<bool> = packets.iter().map(|_| random.one_in(8)).collect();
    for (packet, _) in packets.iter_mut().zip(&damaged).filter(|(_, damaged)| **damaged) {
        packet.damage(random.below(packet.sealed().len() * 8));
    }
    let before: Vec<_> = packets.iter().map(|packet| packet.sealed().to_vec()).collect();
    let mut run: Vec<_> =
        packets.iter_mut().zip(counters).map(|(packet, counter)| packet.opening(counter)).collect();
    key.open_run(&mut run);
    let opened: Vec<bool> = run.iter().map(|packet| packet.opened).collect();
    let good: Vec<bool> = damaged.iter().map(|damaged| !damaged).collect();
    assert_eq!(opened, good, "{kernel}");

    for ((packet, opened), before) in packets.iter().zip(opened).zip(before) {
        let text = packet.text();
        let written = &packet.sealed()[..text.len()];
        if opened {
            assert_eq!(written, text, "{kernel}");
        } else {
            let unwritten = written == &before[..text.len()];
            assert!(unwritten || written.iter().all(|byte| *byte == 0), "{kernel} wrote what it refused");
        }
    }
}

/// A packet of `len` bytes, of which up to `padding` are zeros that the caller does not give.
fn packet(random: &mut Random, len: usize, padding: usize, edges: bool) -> Packet {
    let padding = random.below(padding + 1).min(len);
    let mut text = vec![if edges && random.one_in(2) { 0xff } else { 0 }; len - padding];
    if !edges {
        random.fill(&mut text);
    }
    let head = match random.below(4) {
        0 => 0,
        1 => 64,
        2 => 128,
        // All of it, of whatever length.
        _ => text.len(),
    };
    let head = if head < text.len() { head } else { text.len() };
    Packet::new(&text, head, padding)
}

fn lengths(lengths: impl Iterator<Item = usize>, seed: u64) {
    let mut random = Random::new(seed);
    for len in lengths {
        for kernel in kernels() {
            for run in [1, 2, 4, 8, 16] {
                let packets = (0..run).map(|_| packet(&mut random, len, 15, false)).collect();
                let first_counter = random.word() >> 1;
                round_trip(&mut random, kernel, first_counter, packets);
            }
        }
    }
}

#[test]
fn every_length_up_to_a_full_packet_is_sealed_and_opened() {
    lengths(0..=1536, 1);
}

#[test]
fn every_length_up_to_a_long_packet_is_sealed_and_opened() {
    lengths(1537..=9000, 2);
}

#[test]
fn a_text_as_long_as_allowed_is_sealed_and_opened() {
    lengths([ringmesh_aead::MAX_TEXT_LEN - 1, ringmesh_aead::MAX_TEXT_LEN].into_iter(), 3);
}

/// Runs as a user makes them: equal lengths, of which the last is often shorter; now and then lengths as they come.
fn mixed(random: &mut Random, runs: usize) {
    for _ in 0..runs {
        let count = 1 + random.below(64);
        let longest = if random.one_in(2) { 1600 } else { 9000 };
        let len = random.below(longest + 1);
        let as_they_come = random.one_in(8);
        let shorter = random.one_in(2);
        let edges = random.one_in(8);
        let padding = if random.one_in(8) { 200 } else { 15 };
        let lens: Vec<_> = (0..count)
            .map(|index| {
                let cut = as_they_come || (shorter && index + 1 == count);
                if cut { random.below(len + 1) } else { len }
            })
            .collect();
        let first_counter = match random.below(4) {
            0 => 0,
            1 => (1 << 32) - 1 - random.below(count) as u64,
            2 => u64::MAX - (count - 1) as u64,
            _ => random.word() >> 1,
        };
        for kernel in kernels() {
            let packets = lens.iter().map(|len| packet(random, *len, padding, edges)).collect();
            round_trip(random, kernel, first_counter, packets);
        }
    }
}

#[test]
fn runs_of_all_kinds_are_sealed_and_opened() {
    mixed(&mut Random::new(4), 600);
}

/// By hand: 500,000 packets, as many as a session has in some seconds.
#[test]
#[ignore = "takes a minute; the same with fewer runs is in every run of the tests"]
fn half_a_million_packets_are_sealed_and_opened() {
    mixed(&mut Random::new(5), 15_500);
}
