//! Where a join token comes from: a flag, a file, an environment variable or standard input.
//!
//! Wherever it came from, it is wiped from this program's memory when dropped, and reaches the daemon over its socket only.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    fs::File,
    io::{self, IsTerminal as _, Read, Write as _},
    os::unix::process::CommandExt as _,
    process::Stdio,
};

use ringmesh_tunnel::enroll::JoinToken;
use zeroize::Zeroizing;

use crate::{
    environment,
    failure::{Exit, Failure},
    rights,
};

/// The environment variable that may hold a token.
pub(crate) const VARIABLE: &str = "MESH_TOKEN";
/// A token has some hundred characters; a file far beyond that is another file.
const MAX_LENGTH: u64 = 8 * 1024;

/// Who wants to join: what is to be done about a missing token depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Newcomer {
    Node,
    Relay,
}

/// The value of `--token` as given: the token itself, `file:PATH`, or `-`.
#[derive(Clone)]
pub(crate) struct Source(Zeroizing<String>);

/// As for any secret: nothing of it.
impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Source(..)")
    }
}

impl From<String> for Source {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

/// Whether the environment holds a token itself, not only where to find one.
pub(crate) fn is_in_environment() -> bool {
    std::env::var_os(VARIABLE)
        .is_some_and(|value| Source::from(value.to_string_lossy().into_owned()).is_exposed())
}

impl Source {
    /// Whether the token itself was given, so that it stands in this process's arguments or environment.
    pub(crate) fn is_exposed(&self) -> bool {
        environment::is_secret(OsStr::new(self.0.as_str()))
    }

    /// The token, read from where it is and checked. Without a source it is read from standard input, unless that is a terminal.
    pub(crate) fn read(source: Option<&Self>, newcomer: Newcomer) -> Result<Token, Failure> {
        let text = match source.map(|source| source.0.as_str()) {
            None if io::stdin().is_terminal() => return Err(missing(newcomer)),
            None | Some("-") => read_bounded(io::stdin(), "standard input")?,
            Some(text) => match text.strip_prefix("file:") {
                Some(path) => {
                    let name = format!("the token file {path}");
                    let file = File::open(path).map_err(|error| unreadable(&name, &error))?;
                    read_bounded(file, &name)?
                }
                None => Zeroizing::new(text.to_owned()),
            },
        };
        if text.trim().is_empty() {
            return Err(missing(newcomer));
        }
        Token::parse(&text)
    }
}

/// A well-formed join token; whether it is accepted only a coordinator knows.
pub(crate) struct Token {
    text: Zeroizing<String>,
    parsed: JoinToken,
}

impl Token {
    fn parse(text: &str) -> Result<Self, Failure> {
        // Shells and mail wrap long lines: blanks inside are never part of a token.
        let text = Zeroizing::new(text.split_whitespace().collect::<String>());
        let parsed = text.parse::<JoinToken>().map_err(|error| {
            Failure::new(Exit::Usage, "the join token cannot be read")
                .cause(error.to_string())
                .attempt("copy the whole line that meshctl coordinator up or meshctl token create printed")
        })?;
        Ok(Self { text, parsed })
    }

    /// The token as text, for the daemon.
    pub(crate) fn reveal(&self) -> String {
        self.text.as_str().to_owned()
    }

    /// The network it is for, 32 hex digits.
    pub(crate) fn network(&self) -> String {
        self.parsed.network().to_string()
    }
}

fn read_bounded(from: impl Read, name: &str) -> Result<Zeroizing<String>, Failure> {
    let mut text = Zeroizing::new(String::with_capacity(MAX_LENGTH as usize + 1));
    from.take(MAX_LENGTH + 1).read_to_string(&mut text).map_err(|error| unreadable(name, &error))?;
    if text.len() as u64 > MAX_LENGTH {
        return Err(Failure::new(Exit::Usage, format!("{name} does not hold a join token"))
            .cause(format!("it is longer than {MAX_LENGTH} bytes")));
    }
    Ok(text)
}

fn unreadable(name: &str, error: &io::Error) -> Failure {
    rights::refused(format!("cannot read {name}"), error.to_string(), error, Exit::Usage)
}

fn missing(newcomer: Newcomer) -> Failure {
    let (join, create) = match newcomer {
        Newcomer::Node => ("meshctl join", "meshctl token create"),
        Newcomer::Relay => ("meshctl relay run", "meshctl token create --relay"),
    };
    Failure::new(Exit::Usage, "no join token was given")
        .attempt(format!(
            "{join} --token mesh1_... (from a person), --token file:PATH, MESH_TOKEN, or standard input"
        ))
        .attempt(format!("make one on the coordinator: {create}"))
}

/// Becomes this very command again, with the token on standard input instead of in the arguments or the environment, where any
/// process of this user could read it for as long as this one runs. Returns only if that fails.
pub(crate) fn hide(token: &Token, arguments: impl Iterator<Item = OsString>) -> Failure {
    let cannot = |error: io::Error| {
        Failure::new(Exit::General, "cannot hide the token from the process list").cause(error.to_string())
    };
    let (reader, mut writer) = match io::pipe() {
        Ok(pipe) => pipe,
        Err(error) => return cannot(error),
    };
    // A token fits the pipe's buffer (64 KiB): this does not block.
    if let Err(error) = writer.write_all(token.text.as_bytes()) {
        return cannot(error);
    }
    drop(writer);
    let executable = match std::env::current_exe() {
        Ok(executable) => executable,
        Err(error) => return cannot(error),
    };
    let error = environment::program(executable)
        .args(without_token(arguments))
        .args(["--token", "-"])
        .stdin(Stdio::from(reader))
        .exec();
    cannot(error)
}

/// The arguments without `--token` and its value.
fn without_token(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--token") => drop(arguments.next()),
            Some(text) if text.starts_with("--token=") => {}
            Some(_) | None => kept.push(argument),
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_not_printed() {
        assert_eq!(format!("{:?}", Source::from("mesh1_secret".to_owned())), "Source(..)");
    }

    #[test]
    fn only_a_token_given_itself_is_exposed() {
        for (text, exposed) in
            [("-", false), ("file:/run/token", false), ("mesh1_AAAA", true), ("rubbish", true)]
        {
            assert_eq!(Source::from(text.to_owned()).is_exposed(), exposed, "{text}");
        }
    }

    #[test]
    fn the_token_is_taken_out_of_the_arguments_in_both_spellings() {
        let arguments = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        let kept = |words: &[&str]| without_token(arguments(words).into_iter());
        assert_eq!(
            kept(&["join", "--token", "mesh1_A", "--foreground"]),
            arguments(&["join", "--foreground"])
        );
        assert_eq!(kept(&["join", "--foreground", "--token=mesh1_A"]), arguments(&["join", "--foreground"]));
        assert_eq!(kept(&["join", "--token"]), arguments(&["join"]));
    }

    #[test]
    fn a_file_too_long_is_no_token() {
        let failure = read_bounded(io::repeat(b'a'), "the file").err().unwrap();
        assert_eq!(failure.exit(), Exit::Usage);
        assert!(failure.to_string().contains("longer than 8192 bytes"), "{failure}");
    }
}
