//! Rights: who we are, and the exact line that would have more of them.

use std::{env, io};

use crate::{
    failure::{Exit, Failure},
    output::redact,
};

/// Whether this process runs as root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// This very command again, under sudo, to copy; a token in it is cut.
pub(crate) fn with_sudo() -> String {
    let mut arguments = env::args_os();
    let program = arguments.next().unwrap_or_else(|| "meshctl".into());
    let words =
        std::iter::once(program).chain(arguments).map(|word| quoted(&redact(&word.to_string_lossy())));
    format!("sudo {}", words.collect::<Vec<_>>().join(" "))
}

/// The failure for what the system refused: for want of rights if it says so, else of the kind `otherwise`.
pub(crate) fn refused(
    doing: impl Into<String>,
    cause: String,
    error: &io::Error,
    otherwise: Exit,
) -> Failure {
    if error.kind() == io::ErrorKind::PermissionDenied {
        let failure = Failure::new(Exit::Permission, doing).cause(cause);
        return if is_root() { failure } else { failure.attempt(with_sudo()) };
    }
    Failure::new(otherwise, doing).cause(cause)
}

/// A word as a POSIX shell reads it back.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_shell() {
        assert_eq!(quoted("--token=mesh1_..."), "--token=mesh1_...");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("$(reboot)"), "'$(reboot)'");
    }
}
