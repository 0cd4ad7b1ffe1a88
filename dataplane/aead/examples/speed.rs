//! How long a packet takes to seal and to open: `ring`, the bare library, and both kernels, beside each other in one process.
//!
//! ```text
//! cargo run --release -p ringmesh-aead --example speed            # all sizes and runs, half a minute
//! cargo run --release -p ringmesh-aead --example speed 1420 16    # one size, one run
//! ```
//!
//! Who is compared takes turns, a walk over 64 packets each, and the medians of all walks are shown in nanoseconds per packet: what else
//! happens on the machine happens to all alike. Sealing is out of place, but for `ring`, which has nothing but in place and is
//! spared the copy that its users make; opening is in place. Then follow the ratios: how many times `ring`'s speed the AVX-512
//! kernel has, and the portable kernel's time in parts of the bare library's.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "it is a program that shows figures to who started it"
)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use heapless::Vec as Fixed;
use ringmesh_aead::{Choice, Cipher as _, Kernel, Key, Opening, Sealing, TAG_LEN, choose};

const SIZES: [usize; 4] = [64, 512, 1420, 8900];
const RUNS: [usize; 7] = [1, 2, 4, 8, 16, 44, 64];
/// Packets that are walked over, so that not the same is always in the nearest cache.
const PACKETS: usize = 64;
/// Room between packets, as in a datagram: the header.
const HEADER_LEN: usize = 16;
/// Walks of each candidate.
const WALKS: usize = 301;

/// What can be timed: walks over all packets.
trait Candidate {
    fn seal(&self, buffers: &mut Buffers, run: usize);
    fn open(&self, buffers: &mut Buffers, run: usize);
}

/// The texts, and the datagrams they are sealed into.
struct Buffers {
    len: usize,
    texts: Vec<u8>,
    datagrams: Vec<u8>,
}

impl Buffers {
    fn new(len: usize) -> Self {
        let texts = (0..len * PACKETS).map(|index| index as u8).collect();
        Self { len, texts, datagrams: vec![0; (HEADER_LEN + len + TAG_LEN) * PACKETS] }
    }

    fn packets(&mut self) -> impl Iterator<Item = (&[u8], &mut [u8])> {
        let datagrams = self.datagrams.chunks_exact_mut(HEADER_LEN + self.len + TAG_LEN);
        self.texts.chunks_exact(self.len).zip(datagrams.map(|datagram| &mut datagram[HEADER_LEN..]))
    }
}

struct Ring(ring::aead::LessSafeKey);

impl Candidate for Ring {
    /// What is sealed lies there since it was opened, the walk before.
    fn seal(&self, buffers: &mut Buffers, _run: usize) {
        for (counter, (text, out)) in buffers.packets().enumerate() {
            let (sealed, tag) = out.split_at_mut(text.len());
            let nonce = ring::aead::Nonce::assume_unique_for_key(nonce(counter));
            let made = self.0.seal_in_place_separate_tag(nonce, ring::aead::Aad::empty(), sealed).unwrap();
            tag.copy_from_slice(made.as_ref());
        }
    }

    fn open(&self, buffers: &mut Buffers, _run: usize) {
        for (counter, (_, out)) in buffers.packets().enumerate() {
            let nonce = ring::aead::Nonce::assume_unique_for_key(nonce(counter));
            black_box(self.0.open_in_place(nonce, ring::aead::Aad::empty(), out).unwrap());
        }
    }
}

struct Library(aws_lc_rs::aead::LessSafeKey);

impl Candidate for Library {
    fn seal(&self, buffers: &mut Buffers, _run: usize) {
        for (counter, (text, out)) in buffers.packets().enumerate() {
            let (sealed, tag) = out.split_at_mut(text.len());
            let nonce = aws_lc_rs::aead::Nonce::assume_unique_for_key(nonce(counter));
            let none = aws_lc_rs::aead::Aad::empty();
            self.0.seal_out_of_place_scatter(nonce, none, text, sealed, &[], tag).unwrap();
        }
    }

    fn open(&self, buffers: &mut Buffers, _run: usize) {
        for (counter, (_, out)) in buffers.packets().enumerate() {
            let nonce = aws_lc_rs::aead::Nonce::assume_unique_for_key(nonce(counter));
            black_box(self.0.open_in_place(nonce, aws_lc_rs::aead::Aad::empty(), out).unwrap());
        }
    }
}

struct Ours {
    key: Key,
    /// Bytes of each text that are given as its head.
    head: usize,
}

impl Candidate for Ours {
    fn seal(&self, buffers: &mut Buffers, run: usize) {
        let mut packets = buffers.packets().map(|(text, out)| {
            let (head, rest) = text.split_at(self.head.min(text.len()));
            Sealing { head, rest, out }
        });
        for first in (0..PACKETS as u64).step_by(run) {
            let mut run: Fixed<_, PACKETS> = packets.by_ref().take(run).collect();
            self.key.seal_run(first, &mut run).unwrap();
        }
    }

    fn open(&self, buffers: &mut Buffers, run: usize) {
        let packets = (0..).zip(buffers.packets());
        let mut packets = packets.map(|(counter, (_, bytes))| Opening { counter, bytes, opened: false });
        for _ in (0..PACKETS).step_by(run) {
            let mut run: Fixed<_, PACKETS> = packets.by_ref().take(run).collect();
            self.key.open_run(&mut run);
            assert!(run.iter().all(|packet| packet.opened));
        }
    }
}

fn nonce(counter: usize) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&(counter as u64).to_le_bytes());
    nonce
}

/// Nanoseconds per packet to seal and to open, of each candidate.
fn measure(candidates: &[Box<dyn Candidate>], len: usize, run: usize) -> Vec<[f64; 2]> {
    let mut buffers: Vec<_> = candidates.iter().map(|_| Buffers::new(len)).collect();
    let mut samples = vec![[const { Vec::new() }; 2]; candidates.len()];
    for _ in 0..WALKS {
        for ((candidate, buffers), samples) in candidates.iter().zip(&mut buffers).zip(&mut samples) {
            let begin = Instant::now();
            candidate.seal(buffers, run);
            let between = Instant::now();
            candidate.open(buffers, run);
            samples[0].push(between - begin);
            samples[1].push(between.elapsed());
        }
    }
    let median = |mut samples: Vec<Duration>| {
        samples.sort_unstable();
        samples[samples.len() / 2].as_secs_f64() * 1e9 / PACKETS as f64
    };
    samples.into_iter().map(|both| both.map(median)).collect()
}

fn main() {
    let mut asked = std::env::args().skip(1).map(|word| word.parse::<usize>().unwrap());
    let (size, run) = (asked.next(), asked.next());
    let sizes = size.map_or_else(|| SIZES.to_vec(), |size| vec![size]);
    let runs = run.map_or_else(|| RUNS.to_vec(), |run| vec![run]);

    let bytes = &[7; 32];
    let chosen = choose(Choice::Auto);
    println!("{}: {}", chosen.kernel, chosen.reason);
    let ours = |kernel, head| Box::new(Ours { key: Key::new(bytes, kernel), head });
    let ring = ring::aead::UnboundKey::new(&ring::aead::CHACHA20_POLY1305, bytes).unwrap();
    let library = aws_lc_rs::aead::UnboundKey::new(&aws_lc_rs::aead::CHACHA20_POLY1305, bytes).unwrap();
    let candidates: [Box<dyn Candidate>; 5] = [
        Box::new(Ring(ring::aead::LessSafeKey::new(ring))),
        Box::new(Library(aws_lc_rs::aead::LessSafeKey::new(library))),
        ours(Kernel::Portable, 0),
        ours(chosen.kernel, 0),
        ours(chosen.kernel, 64),
    ];

    println!(
        "{:>27}{:>14}{:>14}{:>14}{:>14}    vs ring      portable",
        "ring",
        "library",
        "portable",
        chosen.kernel.as_str(),
        "with a head"
    );
    for len in sizes {
        for &run in &runs {
            let ns = measure(&candidates, len, run);
            print!("{len:>5} x {run:<4}");
            for [seal, open] in &ns {
                print!("  {seal:>5.0}/{open:<5.0} ");
            }
            let ratio = |of: usize, to: usize, what: usize| ns[of][what] / ns[to][what];
            print!(" {:>5.2}/{:<5.2}", ratio(0, 3, 0), ratio(0, 3, 1));
            println!(" {:>5.3}/{:<5.3}", ratio(2, 1, 0), ratio(2, 1, 1));
        }
    }
}
