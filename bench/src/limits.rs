//! What bounds everybody on this machine, measured in the same run: the cipher alone, a copy, a system call, a wake. The raw
//! link, which is the other bound, is a subject.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Result, ensure};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ringmesh_aead::{Choice, Cipher, Kernel, Key, Opening, Sealing, TAG_LEN, choose};
use serde::Serialize;

use crate::stats::Summary;

/// Of a full packet; and packets that are sealed together, as many as the AVX-512 kernel works on side by side.
const PACKET: usize = 1420;
const RUN: usize = 16;
/// Each bound is measured so often, the middle one counting, with so many runs of packets each time.
const USUAL: Extent = Extent { samples: 15, rounds: 100 };
/// The same where nothing is to be learnt but whether it works.
const QUICK: Extent = Extent { samples: 1, rounds: 4 };
/// What is copied: it stays in the second-level cache with its copy.
const COPIED: usize = 64 * 1024;

/// One bound.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Limit {
    /// What.
    pub(crate) name: String,
    /// Of its values.
    pub(crate) unit: &'static str,
    #[serde(flatten)]
    pub(crate) summary: Summary,
}

impl Limit {
    /// Formats it for people.
    pub(crate) fn to_text(&self) -> String {
        let Summary { median, min, max } = self.summary;
        format!("{}: {median:.2} ({min:.2} to {max:.2}) {}", self.name, self.unit)
    }
}

#[derive(Clone, Copy, Debug)]
struct Extent {
    samples: usize,
    rounds: usize,
}

/// Measures all of them; takes about a second, or less if it is to be quick.
///
/// # Errors
/// When a cipher refuses its own packets.
pub(crate) fn measure(quick: bool) -> Result<Vec<Limit>> {
    let extent = if quick { QUICK } else { USUAL };
    let mut limits = ciphers(extent)?;
    limits.push(limit("memcpy of 64 KiB", "GB/s", extent, copy));
    limits.push(limit("getppid", "ns", extent, system_call));
    limits.push(limit("waking a thread that sleeps", "us", extent, wake));
    Ok(limits)
}

fn limit(name: &str, unit: &'static str, extent: Extent, sample: fn() -> f64) -> Limit {
    sample();
    let values: Vec<_> = (0..extent.samples).map(|_| sample()).collect();
    let summary = Summary::of(&values).expect("invariant: there are samples");
    Limit { name: name.to_owned(), unit, summary }
}

/// Our kernels and a library, in turn, so that what changes on the box meanwhile hits them alike.
fn ciphers(extent: Extent) -> Result<Vec<Limit>> {
    let mut kernels = vec![Kernel::Portable];
    let chosen = choose(Choice::Auto).kernel;
    if !matches!(chosen, Kernel::Portable) {
        kernels.push(chosen);
    }
    let mut values = vec![[const { Vec::new() }; 2]; kernels.len() + 1];
    for _ in 0..=extent.samples {
        for (kernel, values) in kernels.iter().zip(&mut values) {
            let [sealed, opened] = ours(*kernel, extent.rounds)?;
            values[0].push(sealed);
            values[1].push(opened);
        }
        if let Some(values) = values.last_mut() {
            let [sealed, opened] = library(extent.rounds)?;
            values[0].push(sealed);
            values[1].push(opened);
        }
    }
    let names = kernels.iter().map(|kernel| kernel.as_str()).chain(["ring"]);
    let mut limits = Vec::new();
    for (name, values) in names.zip(values) {
        for (what, values) in ["seal", "open"].into_iter().zip(values) {
            // The first ones warm the caches up.
            let summary = Summary::of(&values[1..]).expect("invariant: there are samples");
            let name = format!("{what} {PACKET} bytes in runs of {RUN}, {name}");
            limits.push(Limit { name, unit: "ns per packet", summary });
        }
    }
    Ok(limits)
}

/// Nanoseconds to seal and to open a packet.
fn ours(kernel: Kernel, rounds: usize) -> Result<[f64; 2]> {
    let key = Key::new(&[7; 32], kernel);
    let text = vec![0x5a; PACKET * RUN];
    let mut sealed = vec![0; (PACKET + TAG_LEN) * RUN];
    let (mut sealing, mut opening) = (0.0, 0.0);
    for round in 0..rounds {
        let first = (round * RUN) as u64;
        let began = Instant::now();
        let packets = text.chunks_exact(PACKET).zip(sealed.chunks_exact_mut(PACKET + TAG_LEN));
        let mut run: Vec<_> = packets.map(|(head, out)| Sealing { head, rest: &[], out }).collect();
        key.seal_run(first, &mut run)?;
        sealing += began.elapsed().as_secs_f64();
        let began = Instant::now();
        let packets = (first..).zip(sealed.chunks_exact_mut(PACKET + TAG_LEN));
        let mut run: Vec<_> =
            packets.map(|(counter, bytes)| Opening { counter, bytes, opened: false }).collect();
        key.open_run(&mut run);
        opening += began.elapsed().as_secs_f64();
        ensure!(run.iter().all(|packet| packet.opened), "a packet of our own was refused");
    }
    Ok([sealing, opening].map(|seconds| seconds * 1e9 / (rounds * RUN) as f64))
}

/// The same by a library that everybody uses, one packet after the other, in place.
fn library(rounds: usize) -> Result<[f64; 2]> {
    let refused = |_| anyhow::anyhow!("ring refused a packet of its own");
    let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).map_err(refused)?);
    let nonce = |counter: u64| {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&counter.to_le_bytes());
        Nonce::assume_unique_for_key(nonce)
    };
    let mut packets = vec![[0x5a; PACKET + TAG_LEN]; RUN];
    let (mut sealing, mut opening) = (0.0, 0.0);
    for round in 0..rounds {
        let first = (round * RUN) as u64;
        let began = Instant::now();
        for (packet, counter) in packets.iter_mut().zip(first..) {
            let (text, tag) = packet.split_at_mut(PACKET);
            let sealed =
                key.seal_in_place_separate_tag(nonce(counter), Aad::empty(), text).map_err(refused)?;
            tag.copy_from_slice(sealed.as_ref());
        }
        sealing += began.elapsed().as_secs_f64();
        let began = Instant::now();
        for (packet, counter) in packets.iter_mut().zip(first..) {
            black_box(key.open_in_place(nonce(counter), Aad::empty(), packet).map_err(refused)?);
        }
        opening += began.elapsed().as_secs_f64();
    }
    Ok([sealing, opening].map(|seconds| seconds * 1e9 / (rounds * RUN) as f64))
}

/// Gigabytes per second.
fn copy() -> f64 {
    const COPIES: usize = 2000;
    let (from, mut to) = (vec![0x5a_u8; COPIED], vec![0; COPIED]);
    let began = Instant::now();
    for _ in 0..COPIES {
        to.copy_from_slice(black_box(&from));
        black_box(&mut to);
    }
    (COPIES * COPIED) as f64 / began.elapsed().as_secs_f64() / 1e9
}

/// Nanoseconds of a system call that does nothing.
fn system_call() -> f64 {
    const CALLS: u32 = 20_000;
    let began = Instant::now();
    for _ in 0..CALLS {
        black_box(nix::unistd::getppid());
    }
    began.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS)
}

/// Microseconds from one thread's call to the other's return from its sleep: half a round trip between two that wake
/// each other.
fn wake() -> f64 {
    const ROUND_TRIPS: u64 = 500;
    let turn = Arc::new(AtomicU64::new(0));
    let wait_for = |turn: &AtomicU64, value: u64| {
        while turn.load(Ordering::Acquire) < value {
            thread::park();
        }
    };
    let (theirs, caller) = (Arc::clone(&turn), thread::current());
    let other = thread::spawn(move || {
        for round in 0..ROUND_TRIPS {
            wait_for(&theirs, 2 * round + 1);
            theirs.store(2 * round + 2, Ordering::Release);
            caller.unpark();
        }
    });
    let began = Instant::now();
    for round in 0..ROUND_TRIPS {
        turn.store(2 * round + 1, Ordering::Release);
        other.thread().unpark();
        wait_for(&turn, 2 * round + 2);
    }
    let micros = began.elapsed().as_secs_f64() * 1e6 / (2 * ROUND_TRIPS) as f64;
    // It has nothing left to do.
    let _ = other.join();
    micros
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bound_is_a_finite_time_or_rate() {
        let limits = measure(true).unwrap();
        assert!(limits.len() >= 7, "{limits:?}");
        for limit in limits {
            assert!(limit.summary.min > 0.0 && limit.summary.max.is_finite(), "{limit:?}");
        }
    }
}
