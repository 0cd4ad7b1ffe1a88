//! Whether time tells something about keys and texts: the method of dudect (Reparaz, Balasch, Verbauwhede 2017).
//!
//! Two kinds of input take turns at random, one fixed and one random; Welch's t says whether the times of both are of one kind. Times
//! of the slowest tenth are left out: those are interrupts. It finds no proof, only leaks: a |t| above 10 in each of three tries is one.

use std::hint::black_box;
use std::time::Instant;

use ringmesh_aead::{Cipher as _, Kernel, Key, Opening, Sealing, TAG_LEN};

use crate::random::Random;
use crate::reference::{kernels, seal};

const LEN: usize = 1420;
const MEASUREMENTS: usize = 60_000;
/// Above this there is a leak, by dudect.
const LEAK: f64 = 10.0;

/// Welch's t of two kinds of times.
fn welch(times: &[Vec<f64>; 2]) -> f64 {
    let [a, b] = times.each_ref().map(|times| {
        let count = times.len() as f64;
        let mean = times.iter().sum::<f64>() / count;
        let variance = times.iter().map(|time| (time - mean).powi(2)).sum::<f64>() / (count - 1.0);
        (mean, variance / count)
    });
    (a.0 - b.0) / (a.1 + b.1).sqrt()
}

/// The smallest |t| of three tries in which `prepare` says what kind of input comes, and `work` is timed.
fn leak(mut prepare: impl FnMut(bool), mut work: impl FnMut(bool)) -> f64 {
    let mut random = Random::new(7);
    let mut smallest = f64::MAX;
    for _ in 0..3 {
        let mut all: Vec<(bool, f64)> = Vec::new();
        for _ in 0..MEASUREMENTS {
            let kind = random.one_in(2);
            prepare(kind);
            let begin = Instant::now();
            work(kind);
            all.push((kind, begin.elapsed().as_nanos() as f64));
        }
        let mut sorted: Vec<_> = all.iter().map(|(_, time)| *time).collect();
        sorted.sort_by(f64::total_cmp);
        let limit = sorted[sorted.len() * 9 / 10];
        let mut times = [const { Vec::new() }; 2];
        for (kind, time) in all.into_iter().filter(|(_, time)| *time <= limit) {
            times[usize::from(kind)].push(time);
        }
        smallest = smallest.min(welch(&times).abs());
    }
    smallest
}

/// Seals with a key and texts that are all zeros, or random.
fn sealing(kernel: Kernel, run: usize) -> f64 {
    let state = std::cell::RefCell::new((Random::new(8), Key::new(&[0; 32], kernel), vec![0; LEN * run]));
    let outs = std::cell::RefCell::new(vec![0; (LEN + TAG_LEN) * run]);
    let prepare = |fixed: bool| {
        let (random, key, texts) = &mut *state.borrow_mut();
        let mut bytes = random.key();
        random.fill(texts);
        // The same work for both kinds, or it would be that work's traces that are measured.
        let mask = if fixed { 0 } else { 0xff };
        bytes.iter_mut().chain(texts.iter_mut()).for_each(|byte| *byte &= mask);
        *key = Key::new(&bytes, kernel);
    };
    leak(prepare, |_| {
        let (_, key, texts) = &*state.borrow();
        let mut outs = outs.borrow_mut();
        let packets = texts.chunks_exact(LEN).zip(outs.chunks_exact_mut(LEN + TAG_LEN));
        let mut run: Vec<_> = packets.map(|(rest, out)| Sealing { head: &[], rest, out }).collect();
        black_box(key).seal_run(1, &mut run).unwrap();
    })
}

/// Opens packets whose tags are wrong in the first byte, or in the last.
fn opening(kernel: Kernel, run: usize) -> f64 {
    let bytes = [9; 32];
    let key = Key::new(&bytes, kernel);
    let sealed = seal(&bytes, 1, &[3; LEN]);
    let packets = std::cell::RefCell::new(vec![sealed.clone(); run]);
    let prepare = |first: bool| {
        // The same bytes are written for both kinds, or it would be that work's traces that are measured.
        let mut wrong = [0; TAG_LEN];
        wrong[0] = u8::from(first);
        wrong[TAG_LEN - 1] = u8::from(!first);
        for packet in &mut *packets.borrow_mut() {
            packet.copy_from_slice(&sealed);
            packet[LEN..].iter_mut().zip(black_box(wrong)).for_each(|(byte, wrong)| *byte ^= wrong);
        }
    };
    leak(prepare, |_| {
        let mut packets = packets.borrow_mut();
        let mut run: Vec<_> =
            packets.iter_mut().map(|bytes| Opening { counter: 1, bytes, opened: false }).collect();
        key.open_run(&mut run);
        assert!(run.iter().all(|packet| !packet.opened));
    })
}

/// Texts whose kind is told by the time of their length: the method does find leaks.
#[test]
#[ignore = "by hand, on a machine that does nothing else: it measures times"]
fn a_leak_is_found() {
    let key = Key::new(&[0; 32], Kernel::Portable);
    let t = leak(
        |_| {},
        |longer| {
            let mut out = vec![0; LEN + 64 + TAG_LEN];
            let len = if longer { LEN + 64 } else { LEN };
            let rest = vec![0; len];
            let mut run = [Sealing { head: &[], rest: &rest, out: &mut out[..len + TAG_LEN] }];
            key.seal_run(1, &mut run).unwrap();
        },
    );
    assert!(t > LEAK, "t = {t:.1}");
}

#[test]
#[ignore = "by hand, on a machine that does nothing else: it measures times"]
fn time_tells_nothing_of_keys_and_texts() {
    for kernel in kernels() {
        for run in [1, 2, 4, 8, 16] {
            let (sealing, opening) = (sealing(kernel, run), opening(kernel, run));
            println!("{kernel}, runs of {run}: |t| = {sealing:.1} sealing, {opening:.1} refusing");
            assert!(sealing < LEAK && opening < LEAK, "{kernel}, runs of {run}: {sealing:.1}, {opening:.1}");
        }
    }
}
