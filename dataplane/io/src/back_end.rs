//! Which back end serves a worker, and why: io_uring where the kernel lets us, else poll.

use std::fmt::{self, Display};
use std::io;
use std::str::FromStr;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::uring::{Core, explain};
use crate::{Counters, Handler, Offloads, Outbox, PacketIo, PollIo, Tun, Udp, UringIo, Waker};

/// What the user asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// io_uring if the kernel lets us, else poll.
    #[default]
    Auto,
    /// io_uring or nothing.
    Uring,
    /// poll, recvmmsg and sendmmsg.
    Poll,
}

impl Choice {
    /// The word used in configuration and on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::Poll => "poll",
        }
    }
}

impl Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that is none of `auto`, `uring` and `poll`.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0:?} is no packet I/O back end: choose auto, uring or poll")]
pub struct UnknownChoice(String);

impl FromStr for Choice {
    type Err = UnknownChoice;

    fn from_str(word: &str) -> Result<Self, UnknownChoice> {
        match word {
            "auto" => Ok(Self::Auto),
            "uring" => Ok(Self::Uring),
            "poll" => Ok(Self::Poll),
            _ => Err(UnknownChoice(word.to_owned())),
        }
    }
}

/// A way to talk to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackEnd {
    /// [`UringIo`].
    Uring,
    /// [`PollIo`].
    Poll,
}

impl BackEnd {
    /// The word shown by `meshctl status`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Uring => "uring",
            Self::Poll => "poll",
        }
    }
}

impl Display for BackEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The back end in use, and a sentence that says why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The back end.
    pub back_end: BackEnd,
    /// Why, for people: "io_uring refused (…): likely kernel.io_uring_disabled or seccomp; using poll".
    pub reason: String,
}

/// The user insists on io_uring and the kernel does not have it for us.
#[derive(Debug, Error)]
#[error("{reason}; choose `auto` or `poll` to do without")]
pub struct Refused {
    /// What is missing, and the likely cause.
    pub reason: String,
    /// What the kernel said.
    pub source: io::Error,
}

/// What a back end is made of. It can be sent to the worker's thread, where the back end is opened.
#[derive(Debug)]
pub struct Parts {
    /// The TUN queue.
    pub tun: Tun,
    /// The sockets.
    pub udp: Udp,
    /// What ends a turn; keep a clone.
    pub waker: Waker,
    /// The TUN interface's MTU in bytes: sets the size of buffers. Longer packets are dropped and counted.
    pub mtu: u16,
    /// The offloads to use, as far as the kernel has them.
    pub offloads: Offloads,
    /// How long a turn looks for something to arrive before it sleeps. Waking a sleeping thread takes longer than all that is
    /// done for a packet; looking takes a processor.
    pub spin: Duration,
}

impl Parts {
    /// Switches the offloads on; what is left is what the kernel has.
    pub(crate) fn offer_offloads(&mut self) {
        let (tso, uso) = self.tun.offer(self.offloads.tso, self.offloads.uso);
        let udp_gro = self.udp.merge(self.offloads.udp_gro);
        self.offloads = Offloads { tso, uso, udp_gro, ..self.offloads };
    }
}

/// Says which back end `choice` leads to on this machine, by setting a ring up and tearing it down.
///
/// # Errors
///
/// When the choice is io_uring and the kernel does not have it for us.
pub fn probe(choice: Choice) -> Result<Chosen, Refused> {
    let (_, chosen) = choose(choice, || Core::open(PROBE_MTU, Offloads::NONE))?;
    Ok(chosen)
}

/// The MTU of a ring made to be torn down: the smallest that IPv6 allows.
const PROBE_MTU: u16 = 1280;

/// Makes a ring if the choice is not against it. No ring and no error means poll.
fn choose(
    choice: Choice,
    open: impl FnOnce() -> io::Result<Core>,
) -> Result<(Option<Core>, Chosen), Refused> {
    if choice == Choice::Poll {
        let reason = "poll was chosen in the configuration".to_owned();
        return Ok((None, Chosen { back_end: BackEnd::Poll, reason }));
    }
    match open() {
        Ok(core) => {
            let reason = "io_uring with multishot receive works here".to_owned();
            Ok((Some(core), Chosen { back_end: BackEnd::Uring, reason }))
        }
        Err(error) if choice == Choice::Auto => {
            let reason = format!("{}; using poll", explain(&error));
            Ok((None, Chosen { back_end: BackEnd::Poll, reason }))
        }
        Err(source) => Err(Refused { reason: explain(&source), source }),
    }
}

/// The back end that the machine allows, behind one type.
#[derive(Debug)]
pub struct KernelIo(Kind);

#[derive(Debug)]
enum Kind {
    Uring(Box<UringIo>),
    Poll(Box<PollIo>),
}

/// Does the same with whichever back end there is.
macro_rules! with {
    ($kind:expr, $io:ident => $do:expr) => {
        match $kind {
            Kind::Uring($io) => $do,
            Kind::Poll($io) => $do,
        }
    };
}

impl KernelIo {
    /// Opens the back end for `choice`, falling back where the choice allows it. Call on the worker's thread: a ring
    /// belongs to the thread that made it.
    ///
    /// # Errors
    ///
    /// When the choice is io_uring and the kernel does not have it for us.
    pub fn open(choice: Choice, mut parts: Parts) -> Result<(Self, Chosen), Refused> {
        parts.offer_offloads();
        let attached =
            || Core::open(parts.mtu, parts.offloads).and_then(|core| core.attach(&parts).map(|()| core));
        let (core, chosen) = choose(choice, attached)?;
        let kind = match core {
            Some(core) => Kind::Uring(Box::new(UringIo::assemble(core, parts))),
            None => Kind::Poll(Box::new(PollIo::new(parts))),
        };
        Ok((Self(kind), chosen))
    }

    /// The offloads in use: those asked for that the kernel has. What it refuses later, for a destination, is in
    /// [`Counters::offloads_refused`].
    #[must_use]
    pub fn offloads(&self) -> Offloads {
        with!(&self.0, io => io.offloads())
    }
}

impl PacketIo for KernelIo {
    fn turn(&mut self, deadline: Option<Instant>, handler: &mut impl Handler) -> io::Result<()> {
        with!(&mut self.0, io => io.turn(deadline, handler))
    }

    fn flush(&mut self) -> io::Result<()> {
        with!(&mut self.0, io => io.flush())
    }

    fn outbox(&mut self) -> &mut Outbox {
        with!(&mut self.0, io => io.outbox())
    }

    fn counters(&self) -> Counters {
        with!(&self.0, io => io.counters())
    }

    fn waker(&self) -> Waker {
        with!(&self.0, io => io.waker())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forbidden() -> io::Result<Core> {
        Err(io::Error::from_raw_os_error(libc::EPERM))
    }

    #[test]
    fn words_are_read_as_they_are_written() {
        for choice in [Choice::Auto, Choice::Uring, Choice::Poll] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        let error = "epoll".parse::<Choice>().unwrap_err();
        assert!(error.to_string().contains("auto, uring or poll"));
    }

    #[test]
    fn a_forbidden_ring_means_poll_and_says_why() {
        let (core, chosen) = choose(Choice::Auto, forbidden).unwrap();
        assert!(core.is_none());
        assert_eq!(chosen.back_end, BackEnd::Poll);
        assert!(chosen.reason.starts_with("io_uring refused: likely kernel.io_uring_disabled or seccomp"));
        assert!(chosen.reason.ends_with("; using poll"));
    }

    #[test]
    fn who_insists_on_a_forbidden_ring_is_told_what_to_choose() {
        let refused = choose(Choice::Uring, forbidden).unwrap_err();
        assert!(refused.to_string().contains("seccomp"));
        assert!(refused.to_string().contains("choose `auto` or `poll`"));
    }

    #[test]
    fn who_asks_for_poll_gets_no_ring() {
        let (core, chosen) = choose(Choice::Poll, || panic!("no ring was asked for")).unwrap();
        assert!(core.is_none());
        assert_eq!(chosen.back_end, BackEnd::Poll);
    }
}
