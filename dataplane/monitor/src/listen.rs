//! Where a daemon is to be asked: the `listen` of a configuration file's `[metrics]`, and the flag `--metrics`.

use std::{fmt, net::SocketAddr, str::FromStr};

use serde::{Deserialize, Deserializer, de::Error as _};

use crate::{BindError, Monitor};

/// How no address is written: `false`.
const NONE: &str = "false";

/// Where metrics are to be had.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Listen {
    /// The daemon's usual address, if it is free.
    #[default]
    Usual,
    /// This one, and no other.
    At(SocketAddr),
    /// Nowhere.
    Off,
}

impl Listen {
    /// Takes the address; `usual` if none was asked for. Needs no runtime. `None`: there is to be none, or the usual one is taken,
    /// which is worth a warning and no more: what the daemon is there for goes on.
    ///
    /// # Errors
    /// [`BindError`], if an address was asked for and cannot be had.
    pub fn bind(self, usual: SocketAddr) -> Result<Option<Monitor>, BindError> {
        match self {
            Self::At(address) => Monitor::bind(address).map(Some),
            Self::Off => Ok(None),
            Self::Usual => Ok(Monitor::bind(usual)
                .inspect_err(|error| {
                    tracing::warn!(event = "metrics_unavailable", %error, "there are no metrics: their usual address is taken");
                })
                .ok()),
        }
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == NONE {
            return Ok(Self::Off);
        }
        let usage = |_| {
            format!(
                "{text:?} is not an address: write 127.0.0.1:9464 or [::1]:9464, or {NONE} for no metrics"
            )
        };
        text.parse().map(Self::At).map_err(usage)
    }
}

/// As it is read back; what is usual is not written at all.
impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usual => Ok(()),
            Self::At(address) => address.fmt(f),
            Self::Off => f.write_str(NONE),
        }
    }
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Switch(bool),
            Address(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Switch(false) => Ok(Self::Off),
            Written::Switch(true) => Ok(Self::Usual),
            Written::Address(text) => text.parse().map_err(D::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_or_false_is_read_and_written_alike() {
        for (text, listen) in [
            ("127.0.0.1:9464", Listen::At(([127, 0, 0, 1], 9464).into())),
            ("[::1]:9465", Listen::At("[::1]:9465".parse().unwrap())),
            ("false", Listen::Off),
        ] {
            assert_eq!(text.parse(), Ok(listen));
            assert_eq!(listen.to_string(), text);
        }
        for wrong in ["", "true", "localhost:9464", "127.0.0.1", ":9464"] {
            assert!(wrong.parse::<Listen>().unwrap_err().contains("write 127.0.0.1:9464"), "{wrong}");
        }
        let from_file = |json: &str| serde_json::from_str::<Listen>(json).ok();
        assert_eq!(from_file("false"), Some(Listen::Off));
        assert_eq!(from_file("\"127.0.0.1:1\""), Some(Listen::At(([127, 0, 0, 1], 1).into())));
        assert_eq!(from_file("9464"), None);
    }

    #[test]
    fn a_usual_address_that_is_taken_is_done_without_and_one_asked_for_is_not() {
        let first = Monitor::bind(([127, 0, 0, 1], 0).into()).unwrap();
        let taken = first.address().unwrap();
        assert!(matches!(Listen::Usual.bind(taken), Ok(None)));
        assert_eq!(Listen::At(taken).bind(taken).unwrap_err().address, taken);
        assert!(matches!(Listen::Off.bind(taken), Ok(None)));
        drop(first);
        assert!(Listen::Usual.bind(taken).unwrap().is_some());
    }
}
