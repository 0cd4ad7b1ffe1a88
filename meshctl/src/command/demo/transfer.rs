//! A TCP transfer through the mesh, with a checksum on both ends.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use ringmesh_lab::Host;
use sha2::{Digest as _, Sha256};

use super::lab_failure;
use crate::failure::{Exit, Failure};

/// What is sent in one go, bytes. It is made before and hashed after, so that the clock sees the network only.
pub(super) const ROUND: usize = 64 << 20;
/// The same where streams or a relay make it slower.
pub(super) const SMALL_ROUND: usize = 8 << 20;
/// After this much time on the clock no more rounds are begun.
const ENOUGH: Duration = Duration::from_secs(2);
/// Rounds at most, on a fast machine.
const MAX_ROUNDS: u32 = 8;
/// A transfer that stands still this long has failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// What the receiver says when it has taken in a round: there will be another, or not.
const MORE: u8 = b'+';
const DONE: u8 = b'.';

/// What came of it.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) bytes: u64,
    pub(super) time: Duration,
    pub(super) sent: [u8; 32],
    pub(super) received: [u8; 32],
}

impl Transfer {
    /// Bits in a second.
    pub(super) fn rate(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.time.as_secs_f64()
    }
}

/// Sends rounds of `round` bytes from one host to another, whose address in the mesh is `address`.
pub(super) fn run(from: &Host, to: &Host, address: IpAddr, round: usize) -> Result<Transfer, Failure> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| Failure::new(Exit::General, what).cause(error.to_string())
    };
    let listener = to
        .enter(|| TcpListener::bind(SocketAddr::new(address, 0)))
        .map_err(lab_failure)?
        .map_err(failed("cannot listen on an address of the mesh"))?;
    let target = listener.local_addr().map_err(failed("the listener has no address"))?;
    // Once connected, the kernel holds the connection for the listener: accepting it does not wait.
    let sending = from
        .enter(|| TcpStream::connect_timeout(&target, PATIENCE))
        .map_err(lab_failure)?
        .map_err(failed("the sender cannot connect"))?;
    let (receiving, _) = listener.accept().map_err(failed("the receiver cannot accept"))?;
    thread::scope(|scope| {
        let sender = scope.spawn(|| send(sending, round).map_err(failed("the sender failed")));
        let received = receive(receiving, round).map_err(failed("the receiver failed"));
        // The sender's failure is the cause if there are two.
        let (starts, sent) = sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let received = received?;
        let time = starts.iter().zip(&received.ends).map(|(start, end)| end.duration_since(*start)).sum();
        Ok(Transfer { bytes: received.bytes, time, sent, received: received.hash })
    })
}

/// Sends rounds until told that it is enough; answers when each began, and the hash of all.
fn send(mut stream: TcpStream, round: usize) -> io::Result<(Vec<Instant>, [u8; 32])> {
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut random = Random(0x5EED);
    let mut data = vec![0; round];
    let mut hash = Sha256::new();
    let mut starts = Vec::new();
    loop {
        random.fill(&mut data);
        hash.update(&data);
        starts.push(Instant::now());
        stream.write_all(&data)?;
        let mut answer = [0];
        stream.read_exact(&mut answer)?;
        if answer == [DONE] {
            return Ok((starts, hash.finalize().into()));
        }
    }
}

struct Received {
    bytes: u64,
    ends: Vec<Instant>,
    hash: [u8; 32],
}

fn receive(mut stream: TcpStream, round: usize) -> io::Result<Received> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut data = vec![0; round];
    let mut hash = Sha256::new();
    let mut received = Received { bytes: 0, ends: Vec::new(), hash: [0; 32] };
    let mut time = Duration::ZERO;
    for number in 1..=MAX_ROUNDS {
        // Making the data takes the sender longer than the first byte takes to arrive.
        stream.read_exact(&mut data[..1])?;
        let first = Instant::now();
        stream.read_exact(&mut data[1..])?;
        received.ends.push(Instant::now());
        time += first.elapsed();
        received.bytes += data.len() as u64;
        hash.update(&data);
        let done = number == MAX_ROUNDS || time >= ENOUGH;
        stream.write_all(&[if done { DONE } else { MORE }])?;
        if done {
            break;
        }
    }
    received.hash = hash.finalize().into();
    Ok(received)
}

/// Xorshift (Marsaglia 2003): data that no layer can compress, at the speed of memory.
struct Random(u64);

impl Random {
    fn fill(&mut self, data: &mut [u8]) {
        for chunk in data.chunks_exact_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            chunk.copy_from_slice(&self.0.to_le_bytes());
        }
    }
}
