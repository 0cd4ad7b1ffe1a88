//! What passes an interface, as it is on the wire: to look for what must not be there.
//!
//! The only unsafe code here asks the kernel how many frames it had no room for. `tcpdump` would tell, but it cannot run in a
//! user namespace: it insists on changing its groups.

use std::{
    io::{self, PipeReader, PipeWriter},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    thread::{self, JoinHandle},
};

use nix::{
    errno::Errno,
    net::if_::if_nametoindex,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
    },
};

use crate::{error::LabError, host::Host};

/// How far the reader may fall behind before the kernel drops frames, in bytes as the kernel counts them.
const BACKLOG: usize = 64 << 20;
/// Longer than any frame, also one whose segments are still together.
const MAX_FRAME: usize = 1 << 18;

/// A capture of whole frames, in both directions, that goes on until it is [stopped](Capture::stop) or dropped.
#[derive(Debug)]
pub struct Capture {
    leash: Option<PipeWriter>,
    reader: Option<JoinHandle<io::Result<Captured>>>,
}

/// What was captured.
#[derive(Debug, Default)]
pub struct Captured {
    /// All frames, one after the other.
    bytes: Vec<u8>,
    /// Where each of them ends.
    ends: Vec<usize>,
    dropped: u32,
}

impl Captured {
    /// The frames in the order in which they passed.
    pub fn frames(&self) -> impl Iterator<Item = &[u8]> {
        let begins = std::iter::once(0).chain(self.ends.iter().copied());
        begins.zip(&self.ends).map(|(begin, end)| &self.bytes[begin..*end])
    }

    /// How many frames have `pattern` in them.
    #[must_use]
    pub fn count(&self, pattern: &[u8]) -> usize {
        self.frames().filter(|frame| contains(frame, pattern)).count()
    }

    /// How many frames came too fast to be kept: whoever looks for what must not be there wants none.
    #[must_use]
    pub fn dropped(&self) -> u32 {
        self.dropped
    }

    /// Bytes of all frames together.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }
}

/// Whether `pattern`, which is not empty, is somewhere in `bytes`.
fn contains(bytes: &[u8], pattern: &[u8]) -> bool {
    let Some((first, rest)) = pattern.split_first() else { return false };
    let mut left = bytes;
    // Most bytes are not the first one: looking for that alone is many times faster than comparing windows.
    while let Some(place) = left.iter().position(|byte| byte == first) {
        left = &left[place + 1..];
        if left.starts_with(rest) {
            return true;
        }
    }
    false
}

impl Capture {
    /// Begins to capture on an interface of `host`; frames sent after this has returned are in it.
    ///
    /// # Errors
    /// [`LabError::System`] if there is no such interface, or the kernel refuses.
    pub fn start(host: &Host, interface: &str) -> Result<Self, LabError> {
        let what = format!("capture on {interface} of {}", host.name());
        let started = host.enter(|| -> io::Result<Self> {
            let index = if_nametoindex(interface)? as usize;
            let (held, leash) = io::pipe()?;
            let ear = listen(BACKLOG)?;
            let name = "capture".to_owned();
            let reader = thread::Builder::new().name(name).spawn(move || read(&ear, index, &held))?;
            Ok(Self { leash: Some(leash), reader: Some(reader) })
        })?;
        started.map_err(|error| LabError::system(what, error))
    }

    /// Ends the capture, with all frames in it that were sent before.
    pub fn stop(mut self) -> Result<Captured, LabError> {
        drop(self.leash.take());
        let read = self.reader.take().map_or_else(|| Ok(Captured::default()), join);
        read.map_err(|error| LabError::system("capture", error))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        drop(self.leash.take());
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

fn join(reader: JoinHandle<io::Result<Captured>>) -> io::Result<Captured> {
    reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A socket that hears all frames of the calling thread's network namespace: it is not bound to an interface.
fn listen(backlog: usize) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let ear = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
    // Only root may have as much as it likes; without, the kernel's limit has to do.
    if setsockopt(&ear, sockopt::RcvBufForce, &backlog).is_err() {
        setsockopt(&ear, sockopt::RcvBuf, &backlog)?;
    }
    Ok(ear)
}

/// Keeps the frames of interface `index` until the leash is let go of.
fn read(ear: &OwnedFd, index: usize, leash: &PipeReader) -> io::Result<Captured> {
    let mut captured = Captured::default();
    let mut frame = vec![0; MAX_FRAME];
    loop {
        let mut fds =
            [PollFd::new(leash.as_fd(), PollFlags::empty()), PollFd::new(ear.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ended = fds[0].any().unwrap_or(true);
        loop {
            match recvfrom::<LinkAddr>(ear.as_raw_fd(), &mut frame) {
                Ok((length, from)) if from.is_some_and(|from| from.ifindex() == index) => {
                    captured.bytes.extend_from_slice(&frame[..length]);
                    captured.ends.push(captured.bytes.len());
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                // The interface is gone, or down: others may come.
                Err(Errno::ENETDOWN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        if ended {
            captured.dropped = dropped(ear)?;
            return Ok(captured);
        }
    }
}

/// How many frames a packet socket had no room for (packet(7), `PACKET_STATISTICS`).
fn dropped(ear: &OwnedFd) -> nix::Result<u32> {
    let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut length = size_of_val(&statistics) as libc::socklen_t;
    // SAFETY: both pointers are to locals that live through the call, and `length` says how long the first of them is.
    let result = unsafe {
        libc::getsockopt(
            ear.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &raw mut length,
        )
    };
    Errno::result(result).map(|_| statistics.tp_drops)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::{Lab, in_sandbox};

    #[test]
    fn frames_for_which_there_was_no_room_are_counted() {
        in_sandbox(|| {
            let lab = Lab::new().unwrap();
            let host = lab.host("alice").unwrap();
            let (heard, dropped) = host
                .enter(|| {
                    let ear = listen(0).unwrap();
                    let mouth = UdpSocket::bind("127.0.0.1:0").unwrap();
                    for _ in 0..100 {
                        mouth.send_to(&[0; 1_000], mouth.local_addr().unwrap()).unwrap();
                    }
                    let dropped = dropped(&ear).unwrap();
                    let mut frame = [0; 2_000];
                    let heard = std::iter::from_fn(|| recvfrom::<LinkAddr>(ear.as_raw_fd(), &mut frame).ok());
                    (heard.count(), dropped)
                })
                .unwrap();
            assert!(dropped > 0);
            // On a loopback each frame is seen twice: as it leaves and as it comes.
            assert_eq!(heard + dropped as usize, 200);
        });
    }

    #[test]
    fn a_pattern_is_found_wherever_it_is() {
        assert!(contains(b"canary", b"canary"));
        assert!(contains(b"cacacanary", b"canary"));
        assert!(contains(b"a canary here", b"canary"));
        assert!(!contains(b"canar", b"canary"));
        assert!(!contains(b"canarcanar", b"canary"));
        assert!(!contains(b"", b"canary"));
    }
}
