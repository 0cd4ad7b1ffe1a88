//! A relay's address: `wss://host[:port]/base/relay/v1`.

use std::{fmt, str::FromStr};

use http::Uri;

use crate::error::Failure;

/// The end of every relay's path.
pub(crate) const RELAY_PATH: &str = "/relay/v1";

/// Where a relay takes WebSockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RelayUrl {
    uri: Uri,
    host: String,
    port: u16,
}

impl RelayUrl {
    /// The name or address to connect to, an IPv6 address without its brackets.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn uri(&self) -> &Uri {
        &self.uri
    }
}

impl FromStr for RelayUrl {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let refuse = |why: &str| {
            Failure::invalid(format!(
                "`{text}` is not a relay's address: {why}; write `wss://host[:port]/relay/v1`"
            ))
        };
        let uri: Uri = text.parse().map_err(|_| refuse("it is no URL"))?;
        if uri.scheme_str() != Some("wss") {
            return Err(refuse("it does not begin with `wss://`"));
        }
        let authority = uri.authority().ok_or_else(|| refuse("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(refuse("a relay takes no user name"));
        }
        if uri.query().is_some() || !uri.path().ends_with(RELAY_PATH) {
            return Err(refuse("its path does not end with `/relay/v1`"));
        }
        let host = authority.host();
        let host = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host).to_owned();
        if host.is_empty() {
            return Err(refuse("it names no host"));
        }
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => 443,
            Some(rest) => rest
                .strip_prefix(':')
                .and_then(|port| port.parse().ok())
                .filter(|port| *port != 0)
                .ok_or_else(|| refuse("its port is no port"))?,
            None => return Err(refuse("it names no host")),
        };
        Ok(Self { host, port, uri })
    }
}

impl fmt::Display for RelayUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.uri.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relays_address_is_taken_apart() {
        for (text, host, port) in [
            ("wss://mesh.example/relay/v1", "mesh.example", 443),
            ("wss://mesh.example:8443/a/b/relay/v1", "mesh.example", 8443),
            ("wss://192.0.2.1:8443/relay/v1", "192.0.2.1", 8443),
            ("wss://[2001:db8::1]:8443/relay/v1", "2001:db8::1", 8443),
            ("wss://[2001:db8::1]/relay/v1", "2001:db8::1", 443),
        ] {
            let url: RelayUrl = text.parse().unwrap();
            assert_eq!((url.host(), url.port(), url.to_string().as_str()), (host, port, text));
        }
    }

    #[test]
    fn anything_else_is_refused_with_the_form_to_write() {
        for text in [
            "",
            "mesh.example",
            "ws://mesh.example/relay/v1",
            "https://mesh.example/relay/v1",
            "wss://mesh.example/",
            "wss://mesh.example/relay/v1?x=1",
            "wss://mesh.example/relay/v2",
            "wss:///relay/v1",
            "wss://user:secret@mesh.example/relay/v1",
            "wss://mesh.example:70000/relay/v1",
            "wss://mesh.example:/relay/v1\r\nX: y",
        ] {
            let failure = text.parse::<RelayUrl>().unwrap_err();
            assert!(failure.to_string().contains("wss://host[:port]/relay/v1"), "{text}: {failure}");
        }
    }
}
