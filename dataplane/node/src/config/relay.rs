//! `[relay]`: this daemon is a relay and nothing else.

use std::net::SocketAddr;

use ringmesh_relay::{
    ForwardedHeader,
    rate::{DEFAULT_CLIENT_MBIT, DEFAULT_TOTAL_MBIT},
};
use ringmesh_tunnel::{
    ip::Prefix,
    netmap::{URL_MAX, WEBSOCKETS_MAX},
};
use serde::{Deserialize, Deserializer, de::Error as _};

use crate::error::Failure;

/// Makes the daemon a relay: it joins with a relay's token, has no TUN device and changes nothing on the machine, and passes
/// on what the network's nodes seal for each other.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table `[relay]`")]
pub struct RelayMode {
    /// Where nodes whose UDP is blocked connect by WebSocket over TLS; not given: nowhere.
    pub websocket_listen: Option<SocketAddr>,
    /// URLs (`wss://host:port/relay/v1`) to tell nodes instead of this machine's addresses: what a reverse proxy shows.
    pub websockets: Vec<String>,
    /// Ranges of reverse proxies whose word on a client's address is believed.
    #[serde(deserialize_with = "prefixes")]
    pub trusted_proxies: Vec<Prefix>,
    /// The header in which they give it: `x-forwarded-for` or `forwarded` (RFC 7239). The first by default.
    #[serde(deserialize_with = "header")]
    pub forwarded_header: ForwardedHeader,
    /// What one node may have relayed, in Mbit/s (10^6 bits a second); 0: no bound of its own. 1000 by default.
    pub client_rate_mbit: u32,
    /// What all together may have relayed, in Mbit/s (10^6 bits a second), shared fairly; 0: no bound. 2000 by default, which is
    /// more than one node may have, so that none ever takes all.
    pub total_rate_mbit: u32,
}

impl Default for RelayMode {
    fn default() -> Self {
        Self {
            websocket_listen: None,
            websockets: Vec::new(),
            trusted_proxies: Vec::new(),
            forwarded_header: ForwardedHeader::default(),
            client_rate_mbit: DEFAULT_CLIENT_MBIT,
            total_rate_mbit: DEFAULT_TOTAL_MBIT,
        }
    }
}

impl RelayMode {
    /// Checks what types cannot say.
    pub(super) fn check(&self) -> Result<(), Failure> {
        if self.websockets.len() > WEBSOCKETS_MAX {
            return Err(Failure::invalid(format!("relay.websockets: at most {WEBSOCKETS_MAX} URLs")));
        }
        for url in &self.websockets {
            if !url.starts_with("wss://") || url.len() > URL_MAX || url.contains(char::is_whitespace) {
                return Err(Failure::invalid(format!(
                    "relay.websockets: `{url}` must be `wss://host:port/path` of at most {URL_MAX} bytes"
                )));
            }
        }
        Ok(())
    }
}

fn header<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ForwardedHeader, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

fn prefixes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Prefix>, D::Error> {
    let parse = |text: &String| {
        let parsed: Result<Prefix, _> = text.parse();
        parsed
            .map_err(|error| D::Error::custom(format!("`{text}`: {error}; write a range like 192.0.2.0/24")))
    };
    Vec::<String>::deserialize(deserializer)?.iter().map(parse).collect()
}
