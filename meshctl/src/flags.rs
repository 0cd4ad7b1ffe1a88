//! Flags for a process of our own: what this process was told, said again to the daemon that it starts.

use std::{ffi::OsString, fmt::Display, path::Path};

use crate::{cli::absolute, failure::Failure};

/// Flags with their values, only those that were given.
#[derive(Debug, Default)]
pub(crate) struct Flags(Vec<OsString>);

impl Flags {
    /// Adds a path, as seen from `/`, where daemons live.
    pub(crate) fn path(mut self, name: &str, path: Option<&Path>) -> Result<Self, Failure> {
        if let Some(path) = path {
            self.0.extend([name.into(), absolute(path)?.into()]);
        }
        Ok(self)
    }

    /// Adds a value.
    pub(crate) fn value(self, name: &str, value: Option<impl Display>) -> Self {
        self.each(name, value)
    }

    /// Adds the flag once for each value.
    pub(crate) fn each(mut self, name: &str, values: impl IntoIterator<Item = impl Display>) -> Self {
        for value in values {
            self.0.extend([name.into(), value.to_string().into()]);
        }
        self
    }

    /// Adds a switch if it is on.
    pub(crate) fn switch(mut self, name: &str, on: bool) -> Self {
        self.0.extend(on.then(|| name.into()));
        self
    }

    /// The words of a command line.
    pub(crate) fn into_words(self) -> Vec<OsString> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_given_is_said_again_and_paths_from_the_root() {
        let none: Option<u16> = None;
        let flags = Flags::default()
            .path("--config", Some(Path::new("/etc/a.toml")))
            .and_then(|flags| flags.path("--socket", None))
            .unwrap()
            .value("--mtu", Some(1400))
            .value("--cpu", none)
            .each("--endpoint", ["a:1", "b:2"])
            .switch("--no-relay", true)
            .switch("--restored", false);
        let expected = [
            "--config",
            "/etc/a.toml",
            "--mtu",
            "1400",
            "--endpoint",
            "a:1",
            "--endpoint",
            "b:2",
            "--no-relay",
        ];
        assert_eq!(flags.into_words(), expected);
        let relative = Flags::default().path("--config", Some(Path::new("a.toml"))).unwrap().into_words();
        assert!(Path::new(&relative[1]).is_absolute(), "{relative:?}");
    }
}
