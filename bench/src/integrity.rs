//! Whether what comes out of a tunnel is what went in: random data both ways at once, through each back end, on each ground,
//! with equal checksums at both ends.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ring::digest::{Context as Digest, SHA256};
use ringmesh_lab::impair::Road;

use crate::compare::machine;
use crate::findings::Findings;
use crate::ground::Topology;
use crate::measure;
use crate::options::Options;
use crate::report::progress;
use crate::subject::{Order, Subject, SubjectKind, Tools};

/// Bytes per write.
const CHUNK: usize = 128 * 1024;
/// A stream that moves nothing for so long has failed.
const STALL: Duration = Duration::from_secs(30);
/// How long a datagram is held back that others overtake.
const HELD_BACK: Duration = Duration::from_millis(3);

/// Runs every cell, and tells what passed how quickly.
///
/// # Errors
/// When a cell cannot be set up, breaks, or delivers something else than was sent.
pub(crate) fn run(options: &Options) -> Result<()> {
    let tools = Tools::find(options.meshctl.as_deref(), None, &[])?;
    let road =
        Road { loss: options.loss, reorder: options.reorder, reorder_by: HELD_BACK, ..Road::default() };
    let impaired = options.loss > 0.0 || options.reorder > 0.0;
    let mut findings = Findings::new("integrity", machine()?);
    for ground in options.grounds() {
        if let Some(reason) = ground.missing() {
            ensure!(!options.insists_on_grounds(), "cannot lay {}: {reason}", ground.name());
            findings.remark(format!("{} was left out: {reason}", ground.name()));
            continue;
        }
        if impaired && ground.topology != Topology::Routed {
            ensure!(
                !options.insists_on_grounds(),
                "datagrams are lost on the routed ground only (--topology routed)"
            );
            continue;
        }
        for kind in [SubjectKind::Uring, SubjectKind::Poll] {
            let order = Order { kind, tuning: options.tuning() };
            let name = format!("{} ({})", order.name(), ground.name());
            if let Some(reason) = tools.missing_for(&order, ground) {
                bail!("cannot check {name}: {reason}");
            }
            progress(&format!("checking {name}"));
            let subject = if impaired {
                Subject::set_up_impaired(&order, ground.underlay, &tools, road)
            } else {
                Subject::set_up(&order, ground, &tools)
            };
            let subject = subject.with_context(|| format!("setting up {name}"))?;
            let rate = cell(&subject, options.bytes).with_context(|| format!("checking {name}"))?;
            progress(&format!("{name}: equal, {:.2} Gbit/s both ways", rate / 1e9));
            findings.add(name, "Gbit/s both ways, checksums equal", vec![rate / 1e9]);
        }
    }
    if impaired {
        findings.remark(format!(
            "{} of all datagrams were lost, {} overtaken; the proxy that does it passes datagrams one by one",
            options.loss, options.reorder
        ));
    }
    findings.remark(format!("{} bytes each way at once", options.bytes));
    options.put_out(&findings)
}

/// Sends and compares; returns bits per second of both directions together.
fn cell(subject: &Subject, bytes: u64) -> Result<f64> {
    measure::wait_until_ready(subject)?;
    measure::wait_until_direct(subject)?;
    let (first, second) = (subject.first(), subject.second());
    let at = SocketAddr::new(second.address(), 0);
    let listener = second.enter(move || TcpListener::bind(at))?.context("opening a listener")?;
    let to = listener.local_addr().context("asking for the listener's port")?;
    let near = first.enter(move || TcpStream::connect_timeout(&to, STALL))?.context("connecting")?;
    let (far, _) = listener.accept().context("accepting")?;
    for stream in [&near, &far] {
        stream.set_write_timeout(Some(STALL)).context("bounding writes")?;
        stream.set_read_timeout(Some(STALL)).context("bounding reads")?;
    }
    let began = Instant::now();
    // Either end's seed, so that the two directions carry different data.
    both_ways(&near, &far, bytes)?;
    let elapsed = began.elapsed();
    subject.ensure_direct()?;
    Ok(16.0 * bytes as f64 / elapsed.as_secs_f64())
}

/// Moves `bytes` each way at once, and fails unless what arrived is what was sent.
fn both_ways(near: &TcpStream, far: &TcpStream, bytes: u64) -> Result<()> {
    let join = |name: &str, sent: Result<[u8; 32]>, received: Result<[u8; 32]>| {
        let (sent, received) = (sent?, received?);
        ensure!(sent == received, "what arrived {name} is not what was sent");
        Ok(())
    };
    thread::scope(|scope| {
        let there = [scope.spawn(|| send(near, bytes, 1)), scope.spawn(|| receive(far, bytes))];
        let back = [scope.spawn(|| send(far, bytes, 2)), scope.spawn(|| receive(near, bytes))];
        for (name, [sent, received]) in [("there", there), ("back", back)] {
            let ended = |it: thread::ScopedJoinHandle<'_, Result<[u8; 32]>>| {
                it.join().unwrap_or_else(|_| bail!("a thread of the transfer panicked"))
            };
            join(name, ended(sent), ended(received))?;
        }
        Ok(())
    })
}

fn send(mut stream: &TcpStream, bytes: u64, seed: u64) -> Result<[u8; 32]> {
    let (mut digest, mut random) = (Digest::new(&SHA256), Random(seed));
    let (mut chunk, mut left) = (vec![0; CHUNK], bytes);
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        random.fill(&mut chunk);
        digest.update(&chunk[..length]);
        stream.write_all(&chunk[..length]).context("sending: the stream stalled or broke")?;
        left -= length as u64;
    }
    stream.shutdown(Shutdown::Write).context("ending a stream")?;
    sum(digest)
}

fn receive(mut stream: &TcpStream, bytes: u64) -> Result<[u8; 32]> {
    let mut digest = Digest::new(&SHA256);
    let (mut chunk, mut received) = (vec![0; CHUNK], 0);
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(length) => {
                digest.update(&chunk[..length]);
                received += length as u64;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("receiving: the stream stalled or broke"),
        }
    }
    ensure!(received == bytes, "{received} bytes arrived of {bytes}");
    sum(digest)
}

fn sum(digest: Digest) -> Result<[u8; 32]> {
    digest.finish().as_ref().try_into().context("invariant: SHA-256 has 32 bytes")
}

/// SplitMix64: quick, and no two chunks are alike.
struct Random(u64);

impl Random {
    fn fill(&mut self, chunk: &mut [u8]) {
        for word in chunk.chunks_exact_mut(8) {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            word.copy_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    #[test]
    fn what_passes_whole_is_equal() {
        let (near, far) = pair();
        both_ways(&near, &far, 3_000_001).unwrap();
    }

    #[test]
    fn one_bit_or_one_byte_less_is_noticed() {
        let deliver = |change: fn(&mut Vec<u8>)| {
            let (near, far) = pair();
            let sent = thread::spawn(move || send(&near, 100_000, 1));
            let mut data = Vec::new();
            (&far).read_to_end(&mut data).unwrap();
            change(&mut data);
            let (mut again, end) = pair();
            let received = thread::spawn(move || receive(&end, 100_000));
            again.write_all(&data).unwrap();
            drop(again);
            (sent.join().unwrap().unwrap(), received.join().unwrap())
        };
        let (sent, received) = deliver(|_| {});
        assert_eq!(sent, received.unwrap());
        let (sent, received) = deliver(|data| data[50_000] ^= 1);
        assert_ne!(sent, received.unwrap());
        let (_, received) = deliver(|data| data.truncate(99_999));
        received.unwrap_err();
    }
}
