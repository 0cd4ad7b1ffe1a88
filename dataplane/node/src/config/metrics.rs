//! `[metrics]`: where the daemon tells how it is, and how much.

use std::{fmt, net::SocketAddr, str::FromStr};

use serde::{Deserialize, Deserializer, de::Error as _};

/// Where a node tells its metrics unless it is told otherwise.
pub const DEFAULT_METRICS: &str = "127.0.0.1:9464";
/// The same of a relay.
pub const DEFAULT_RELAY_METRICS: &str = "127.0.0.1:9466";

/// How the daemon can be watched over HTTP.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table `[metrics]`")]
pub struct Metrics {
    /// Where: an address and port, or `false` for nowhere.
    #[serde(deserialize_with = "listen")]
    pub listen: MetricsListen,
    /// Whether there are series of each peer and rule besides. `false` by default: a network of thousands makes thousands of them.
    pub per_peer: bool,
}

/// Where metrics are told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MetricsListen {
    /// At [`DEFAULT_METRICS`] or [`DEFAULT_RELAY_METRICS`]; if another program listens there, nowhere.
    #[default]
    Usual,
    /// There.
    At(SocketAddr),
    /// Nowhere.
    Off,
}

/// What is no place for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("metrics.listen must be an address and port (127.0.0.1:9464), or false for none")]
pub struct BadMetricsListen;

impl FromStr for MetricsListen {
    type Err = BadMetricsListen;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "false" => Ok(Self::Off),
            "true" => Ok(Self::Usual),
            address => address.parse().map(Self::At).map_err(|_| BadMetricsListen),
        }
    }
}

impl fmt::Display for MetricsListen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usual => f.write_str("true"),
            Self::At(address) => address.fmt(f),
            Self::Off => f.write_str("false"),
        }
    }
}

fn listen<'de, D: Deserializer<'de>>(deserializer: D) -> Result<MetricsListen, D::Error> {
    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "metrics.listen must be an address and port (127.0.0.1:9464), or false for none"
    )]
    enum Value {
        Address(String),
        Switch(bool),
    }
    match Value::deserialize(deserializer)? {
        Value::Address(text) => match text.parse() {
            Ok(address) => Ok(MetricsListen::At(address)),
            Err(_) => Err(D::Error::custom(BadMetricsListen)),
        },
        Value::Switch(false) => Ok(MetricsListen::Off),
        Value::Switch(true) => Ok(MetricsListen::Usual),
    }
}
