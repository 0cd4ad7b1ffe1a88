//! How our daemons are set: the same daemon with other settings stands as another subject beside itself.

use std::str::FromStr;

use serde::Serialize;

/// Settings of our daemons that differ from what they do by themselves. Each is handed over by the variable of that name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Tuning {
    /// `MESH_OFFLOADS`: `all`, `none`, or those that are on of `tso`, `uso`, `tun-gro`, `udp-gro` and `udp-gso`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) offloads: Option<String>,
    /// `MESH_CRYPTO`: `auto` or `portable`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) crypto: Option<String>,
    /// `MESH_WORKERS`: `auto` or a number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) workers: Option<String>,
    /// `MESH_SPIN_US`: for how long a worker looks again before it sleeps, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) spin_us: Option<String>,
    /// Length of the TUN device's queue in packets; set from outside, so that it can be set for any subject.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) txqueuelen: Option<u32>,
}

impl Tuning {
    /// The variables for a daemon.
    pub(crate) fn variables(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let all = [
            ("MESH_OFFLOADS", &self.offloads),
            ("MESH_CRYPTO", &self.crypto),
            ("MESH_WORKERS", &self.workers),
            ("MESH_SPIN_US", &self.spin_us),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?)))
    }

    /// What is written behind a subject's name; empty without any setting.
    pub(crate) fn suffix(&self) -> String {
        let queue = self.txqueuelen.map(|length| length.to_string());
        let all = [
            ("offloads", self.offloads.as_deref()),
            ("crypto", self.crypto.as_deref()),
            ("workers", self.workers.as_deref()),
            ("spin_us", self.spin_us.as_deref()),
            ("txqueuelen", queue.as_deref()),
        ];
        let set = all.into_iter().filter_map(|(name, value)| Some(format!(" {name}={}", value?)));
        set.collect()
    }
}

impl FromStr for Tuning {
    type Err = String;

    /// Reads `name=value:name=value`; offloads are joined by `+`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut tuning = Self::default();
        for setting in text.split(':').filter(|setting| !setting.is_empty()) {
            let (name, value) =
                setting.split_once('=').ok_or_else(|| format!("{setting:?} is not NAME=VALUE"))?;
            let value = Some(value.replace('+', ","));
            match name {
                "offloads" => tuning.offloads = value,
                "crypto" => tuning.crypto = value,
                "workers" => tuning.workers = value,
                "spin_us" => tuning.spin_us = value,
                "txqueuelen" => {
                    let length = value.as_deref().and_then(|value| value.parse().ok());
                    tuning.txqueuelen = Some(length.ok_or("txqueuelen is a number of packets")?);
                }
                _ => return Err(format!("there is no setting {name:?}")),
            }
        }
        Ok(tuning)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_and_written_by_name() {
        let tuning: Tuning = "offloads=tso+uso:spin_us=50:txqueuelen=1000".parse().unwrap();
        assert_eq!(tuning.suffix(), " offloads=tso,uso spin_us=50 txqueuelen=1000");
        let variables: Vec<_> = tuning.variables().collect();
        assert_eq!(variables, [("MESH_OFFLOADS", "tso,uso"), ("MESH_SPIN_US", "50")]);
        assert_eq!("".parse::<Tuning>().unwrap().suffix(), "");
    }

    #[test]
    fn unknown_settings_are_refused() {
        for nonsense in ["colour=red", "spin_us", "txqueuelen=long"] {
            nonsense.parse::<Tuning>().unwrap_err();
        }
    }
}
