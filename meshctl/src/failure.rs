//! How a command fails: what was wrong, whose fault it likely is, what to try; and the exit code a script can act on.

use std::fmt;

/// Why a command ended, as the exit code of the process. `docs/cli.md` documents the list; it only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// None of the others: corrupt state, an internal fault.
    General = 1,
    /// The command line, a token or a config file cannot be understood.
    Usage = 2,
    /// The daemon that would answer is not running.
    NotRunning = 3,
    /// The node has not joined a network, or its map is stale.
    NotJoined = 4,
    /// The operating system refused; the message names the command that would be allowed.
    Permission = 5,
    /// Nobody answered.
    Unreachable = 6,
    /// Somebody answered, and said no.
    Refused = 7,
    /// It took too long.
    Timeout = 8,
    /// It collides with what is there: a name, a key, a port, an address pool.
    Conflict = 9,
}

impl Exit {
    /// The number for `exit(2)`.
    pub(crate) const fn code(self) -> u8 {
        self as u8
    }

    /// The reverse of [`Exit::code`], for a daemon that ended with one of ours.
    pub(crate) const fn of_code(code: i32) -> Option<Self> {
        Some(match code {
            1 => Self::General,
            2 => Self::Usage,
            3 => Self::NotRunning,
            4 => Self::NotJoined,
            5 => Self::Permission,
            6 => Self::Unreachable,
            7 => Self::Refused,
            8 => Self::Timeout,
            9 => Self::Conflict,
            _ => return None,
        })
    }
}

/// A failed command: printed as an `error:` line, then `cause:` and `try:` lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    exit: Exit,
    error: String,
    causes: Vec<String>,
    tries: Vec<String>,
}

impl Failure {
    /// Says in a sentence what failed.
    pub(crate) fn new(exit: Exit, error: impl Into<String>) -> Self {
        Self { exit, error: error.into(), causes: Vec::new(), tries: Vec::new() }
    }

    /// Adds what brought it about.
    #[must_use]
    pub(crate) fn cause(mut self, cause: impl Into<String>) -> Self {
        self.causes.push(cause.into());
        self
    }

    /// Adds a way out, best a command to copy.
    #[must_use]
    pub(crate) fn attempt(mut self, attempt: impl Into<String>) -> Self {
        self.tries.push(attempt.into());
        self
    }

    /// The exit code of the process.
    pub(crate) const fn exit(&self) -> Exit {
        self.exit
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.error)?;
        for cause in &self.causes {
            write!(f, "\ncause: {cause}")?;
        }
        for attempt in &self.tries {
            write!(f, "\ntry: {attempt}")?;
        }
        Ok(())
    }
}

/// For faults that no cure is known for; the chain of causes is kept.
impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        let failure = Self::new(Exit::General, error.to_string());
        error.chain().skip(1).fold(failure, |failure, cause| failure.cause(cause.to_string()))
    }
}
