//! `meshctl version`.

use serde::Serialize;

use super::Document;

/// This executable and the daemon that runs: `schemas/version.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Version {
    pub(crate) version: &'static str,
    pub(crate) target: String,
    /// Of the running node daemon; `null` if none answers.
    pub(crate) daemon: Option<String>,
}

impl Document for Version {
    fn text(&self, _: u64) -> String {
        let daemon = match self.daemon.as_deref() {
            None => "meshd is not running".to_owned(),
            Some(version) if version == self.version => format!("meshd {version}"),
            Some(version) => format!("meshd {version}: restart it to get {}", self.version),
        };
        format!("meshctl {} ({})\n{daemon}\n", self.version, self.target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_daemon_is_pointed_out() {
        let version = |daemon: Option<&str>| {
            Version { version: "0.2.0", target: "linux x86_64".to_owned(), daemon: daemon.map(str::to_owned) }
                .text(0)
        };
        assert_eq!(version(None), "meshctl 0.2.0 (linux x86_64)\nmeshd is not running\n");
        assert_eq!(version(Some("0.2.0")), "meshctl 0.2.0 (linux x86_64)\nmeshd 0.2.0\n");
        assert_eq!(
            version(Some("0.1.0")),
            "meshctl 0.2.0 (linux x86_64)\nmeshd 0.1.0: restart it to get 0.2.0\n"
        );
    }
}
