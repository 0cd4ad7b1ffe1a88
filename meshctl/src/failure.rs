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
    /// It collides with what is there: a name, a key, a port, an address pool, a policy applied by somebody else meanwhile.
    Conflict = 9,
    /// What was asked about would change something; only where that was asked to be told so.
    Changes = 10,
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
            10 => Self::Changes,
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

    /// An exit code without a message: the result says already what there is to say.
    pub(crate) fn told(exit: Exit) -> Self {
        Self::new(exit, "")
    }

    /// Whether there is nothing left to print.
    pub(crate) fn is_told(&self) -> bool {
        self.error.is_empty()
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

    /// Adds a way out that only helps failures of this kind.
    #[must_use]
    pub(crate) fn attempt_if(self, exit: Exit, attempt: &str) -> Self {
        if self.exit == exit { self.attempt(attempt) } else { self }
    }

    /// Takes over what another process of ours reported in the form of [`Failure`]'s `Display`, the last report in `text`;
    /// text without one is taken by its last lines.
    #[must_use]
    pub(crate) fn caused_by_report(mut self, text: &str) -> Self {
        const LAST_LINES: usize = 5;
        let lines: Vec<&str> = text.lines().collect();
        let start = lines.iter().rposition(|line| line.starts_with("error: "));
        let (report, found) = match start {
            Some(start) => (lines.get(start..).unwrap_or_default(), true),
            None => (lines.get(lines.len().saturating_sub(LAST_LINES)..).unwrap_or_default(), false),
        };
        for line in report {
            match line.split_once(": ") {
                Some(("error" | "cause", cause)) if found => self.causes.push(cause.to_owned()),
                Some(("try", attempt)) if found => self.tries.push(attempt.to_owned()),
                _ if found => {}
                _ => self.causes.push((*line).to_owned()),
            }
        }
        self
    }

    /// The sentence that says what failed.
    pub(crate) fn error(&self) -> &str {
        &self.error
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_reads_as_error_cause_and_try() {
        let failure = Failure::new(Exit::Usage, "cannot read the token")
            .cause("it is truncated")
            .attempt("copy it whole");
        assert_eq!(
            failure.to_string(),
            "error: cannot read the token\ncause: it is truncated\ntry: copy it whole"
        );
    }

    #[test]
    fn exit_codes_survive_the_way_through_a_process() {
        for code in 1..=10 {
            assert_eq!(Exit::of_code(code).map(Exit::code).map(i32::from), Some(code));
        }
        assert_eq!(Exit::of_code(0), None);
        assert_eq!(Exit::of_code(101), None);
    }

    #[test]
    fn what_the_result_tells_already_is_not_told_again() {
        assert!(Failure::told(Exit::Refused).is_told());
        assert_eq!(Failure::told(Exit::Refused).exit(), Exit::Refused);
        assert!(!Failure::new(Exit::Refused, "no").is_told());
    }

    #[test]
    fn a_report_of_another_process_is_taken_over() {
        let told = Failure::new(Exit::Conflict, "the UDP port is taken")
            .cause("51820 in use")
            .attempt("another port");
        let log = format!("an older line\nerror: of an older start\n2026-01-01 INFO starting\n{told}\n");
        let failure = Failure::new(Exit::Conflict, "meshd did not start").caused_by_report(&log);
        assert_eq!(
            failure.to_string(),
            "error: meshd did not start\ncause: the UDP port is taken\ncause: 51820 in use\ntry: another port"
        );
    }

    #[test]
    fn a_log_without_a_report_is_taken_by_its_end() {
        let failure =
            Failure::new(Exit::General, "meshd did not start").caused_by_report("1\n2\n3\n4\n5\nboom\n");
        assert_eq!(
            failure.to_string(),
            "error: meshd did not start\ncause: 2\ncause: 3\ncause: 4\ncause: 5\ncause: boom"
        );
    }

    #[test]
    fn the_chain_of_an_unexpected_error_is_kept() {
        let error = anyhow::Error::msg("disk full").context("writing the map");
        assert_eq!(Failure::from(error).to_string(), "error: writing the map\ncause: disk full");
    }
}
