//! A policy file as it was named on the command line: its text, and what is wrong with it before anybody is asked.

use std::{
    fs::File,
    io::{self, Read},
};

use ringmesh_controlplane::policy::TEXT_MAX;

use crate::{
    failure::{Exit, Failure},
    output::problems::Problem,
    rights,
};

/// What stands for standard input.
const STDIN: &str = "-";

/// A policy file that was read.
#[derive(Debug)]
pub(crate) struct PolicyFile {
    /// What it is called in messages.
    pub(crate) name: String,
    pub(crate) text: String,
}

/// Why a file holds no text that could be a policy.
#[derive(Debug)]
pub(crate) enum NoText {
    /// It cannot be read, or is too large.
    Unusable(Failure),
    /// There is a place in it that is no text.
    NotUtf8 { name: String, problem: Problem },
}

impl From<NoText> for Failure {
    fn from(no_text: NoText) -> Self {
        match no_text {
            NoText::Unusable(failure) => failure,
            NoText::NotUtf8 { name, problem: Problem { line, column, message, .. } } => {
                Self::new(Exit::Usage, format!("{name} cannot be used"))
                    .cause(format!("{name}:{line}:{column}: {message}"))
            }
        }
    }
}

impl PolicyFile {
    /// Reads the file of this name; `-` is standard input.
    pub(crate) fn read(path: &str) -> Result<Self, NoText> {
        if path == STDIN {
            return Self::of("standard input", io::stdin().lock());
        }
        let file = File::open(path).map_err(|error| unreadable(path, &error))?;
        Self::of(path, file)
    }

    fn of(name: &str, mut source: impl Read) -> Result<Self, NoText> {
        let mut bytes = Vec::new();
        let most = u64::try_from(TEXT_MAX).unwrap_or(u64::MAX) + 1;
        source.by_ref().take(most).read_to_end(&mut bytes).map_err(|error| unreadable(name, &error))?;
        if bytes.len() > TEXT_MAX {
            let failure = Failure::new(Exit::Usage, format!("{name} is too large for a policy"))
                .cause(format!("it has more than {} KiB", TEXT_MAX / 1024))
                .attempt("name machines by group or tag rather than one by one");
            return Err(NoText::Unusable(failure));
        }
        match String::from_utf8(bytes) {
            Ok(text) if text.trim().is_empty() => {
                // It would be a policy without rules: what is left of a pipe of which the first part failed.
                let failure = Failure::new(Exit::Usage, format!("{name} is empty"))
                    .cause("as a policy it would let nobody reach anybody")
                    .attempt("if that is meant, say so in it: # nothing is allowed");
                Err(NoText::Unusable(failure))
            }
            Ok(text) => Ok(Self { name: name.to_owned(), text }),
            Err(error) => {
                let valid = error.utf8_error().valid_up_to();
                let problem = not_utf8(&error.as_bytes()[..valid]);
                Err(NoText::NotUtf8 { name: name.to_owned(), problem })
            }
        }
    }
}

fn unreadable(name: &str, error: &io::Error) -> NoText {
    let failure =
        rights::refused("cannot read the policy file", format!("{name}: {error}"), error, Exit::Usage);
    NoText::Unusable(failure)
}

/// The problem of a file that is text as far as `valid`.
fn not_utf8(valid: &[u8]) -> Problem {
    let valid = String::from_utf8_lossy(valid);
    let line = valid.matches('\n').count() + 1;
    let column = valid.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let message = "this is not UTF-8; save the file in that encoding".to_owned();
    Problem::new(false, number(line), number(column), message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_text_is_told_by_its_place() {
        let not_utf8 = PolicyFile::of("p.toml", &b"# f\xc3\xbcr\nb = \"\xff\"\n"[..]).unwrap_err();
        let NoText::NotUtf8 { problem, .. } = &not_utf8 else { panic!("{not_utf8:?}") };
        assert_eq!((problem.line, problem.column), (2, 6));
        let failure = Failure::from(not_utf8);
        assert_eq!(failure.exit(), Exit::Usage);
        assert!(failure.to_string().contains("p.toml:2:6: this is not UTF-8"), "{failure}");
    }

    #[test]
    fn the_largest_file_is_read_and_one_more_byte_is_too_much() {
        let file = PolicyFile::of("p.toml", io::repeat(b'#').take(TEXT_MAX as u64)).unwrap();
        assert_eq!(file.text.len(), TEXT_MAX);
        // An endless one is not read to its end.
        let NoText::Unusable(failure) = PolicyFile::of("p.toml", io::repeat(b'#')).unwrap_err() else {
            panic!("it is text")
        };
        assert!(failure.exit() == Exit::Usage && failure.to_string().contains("256 KiB"), "{failure}");
    }

    #[test]
    fn an_empty_file_is_taken_for_a_mishap_and_one_that_says_so_for_a_policy() {
        for text in ["", "\n", " \n\t\n"] {
            let failure = Failure::from(PolicyFile::of("p.toml", text.as_bytes()).unwrap_err());
            assert_eq!(failure.exit(), Exit::Usage);
            assert!(failure.to_string().contains("p.toml is empty"), "{failure}");
        }
        PolicyFile::of("p.toml", &b"# nothing is allowed\n"[..]).unwrap();
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let failure = Failure::from(PolicyFile::read("/nonexistent/p.toml").unwrap_err());
        assert_eq!(failure.exit(), Exit::Usage);
        assert!(failure.to_string().contains("/nonexistent/p.toml: No such file"), "{failure}");
    }
}
