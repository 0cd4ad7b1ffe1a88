//! `meshctl ping`: which path answered, in what time.

use ringmesh_proto::local;
use serde::Serialize;

use super::{Document, table::round_trip};

/// All echoes of one call: `schemas/ping.json`.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Ping {
    pub(crate) node: String,
    pub(crate) ipv4: String,
    pub(crate) sent: u64,
    pub(crate) answered: u64,
    pub(crate) replies: Vec<Reply>,
}

/// One echo: answered over a path, or not, and why.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Reply {
    pub(crate) sequence: u32,
    pub(crate) path: Option<String>,
    pub(crate) endpoint: Option<String>,
    pub(crate) rtt_us: Option<u32>,
    pub(crate) error: Option<String>,
}

impl From<&local::PingResponse> for Reply {
    fn from(response: &local::PingResponse) -> Self {
        let answered = !response.path.is_empty();
        Self {
            sequence: response.sequence,
            path: answered.then(|| response.path.clone()),
            endpoint: (answered && !response.endpoint.is_empty()).then(|| response.endpoint.clone()),
            rtt_us: answered.then_some(response.rtt_us),
            error: (!answered).then(|| {
                if response.error.is_empty() { "no reply in time".to_owned() } else { response.error.clone() }
            }),
        }
    }
}

impl Reply {
    /// `via direct 203.0.113.7:51820 in 0.420 ms`, or `None` if nobody answered.
    pub(crate) fn way(&self) -> Option<String> {
        let path = self.path.as_deref()?;
        let endpoint = self.endpoint.as_deref().map_or_else(String::new, |endpoint| format!(" {endpoint}"));
        Some(format!("via {path}{endpoint} in {}", round_trip(self.rtt_us?)))
    }
}

impl Ping {
    /// Takes an answer in, and gives its line.
    pub(crate) fn add(&mut self, response: &local::PingResponse) -> String {
        if self.node.is_empty() {
            self.node.clone_from(&response.node);
            self.ipv4.clone_from(&response.ipv4);
        }
        let reply = Reply::from(response);
        self.sent += 1;
        let line = match reply.way() {
            Some(way) => {
                self.answered += 1;
                format!("pong from {} ({}) {way}\n", self.node, self.ipv4)
            }
            None => format!(
                "no reply from {} ({}): {}\n",
                self.node,
                self.ipv4,
                reply.error.as_deref().unwrap_or("?")
            ),
        };
        self.replies.push(reply);
        line
    }

    /// The line under several echoes; nothing under a single one.
    pub(crate) fn summary(&self) -> String {
        if self.sent < 2 {
            return String::new();
        }
        let times: Vec<u32> = self.replies.iter().filter_map(|reply| reply.rtt_us).collect();
        let mut line = format!("{} sent, {} answered", self.sent, self.answered);
        if let (Some(least), Some(most)) = (times.iter().min(), times.iter().max()) {
            let sum: u64 = times.iter().copied().map(u64::from).sum();
            let mean = u32::try_from(sum / times.len() as u64).unwrap_or(u32::MAX);
            line.push_str(&format!(
                ", least {}, mean {}, most {}",
                round_trip(*least),
                round_trip(mean),
                round_trip(*most)
            ));
        }
        line.push('\n');
        line
    }
}

impl Document for Ping {
    // The command prints each line when its answer comes; this is the form of the whole.
    fn text(&self, _: u64) -> String {
        self.summary()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::json;

    fn answer(sequence: u32, rtt_us: u32) -> local::PingResponse {
        local::PingResponse {
            via: String::new(),
            loss_percent: None,
            sequence,
            node: "web1".to_owned(),
            ipv4: "100.64.0.1".to_owned(),
            path: "direct".to_owned(),
            endpoint: "203.0.113.1:51820".to_owned(),
            rtt_us,
            error: String::new(),
        }
    }

    fn silence(sequence: u32, error: &str) -> local::PingResponse {
        local::PingResponse {
            path: String::new(),
            endpoint: String::new(),
            rtt_us: 0,
            error: error.to_owned(),
            ..answer(sequence, 0)
        }
    }

    fn three() -> (Ping, String) {
        let mut ping = Ping::default();
        let lines = [answer(0, 9_130), silence(1, "no handshake with web1 in 5 s"), answer(2, 420)]
            .map(|r| ping.add(&r));
        (ping, lines.concat())
    }

    #[test]
    fn ping_of_three_with_one_lost() {
        let (ping, lines) = three();
        insta::assert_snapshot!(format!("{lines}{}", ping.summary()));
    }

    #[test]
    fn ping_as_json() {
        insta::assert_snapshot!(json(&three().0).unwrap());
    }

    #[test]
    fn a_single_ping_is_a_single_line() {
        let mut ping = Ping::default();
        let line = ping.add(&answer(0, 420));
        assert_eq!(
            line + &ping.summary(),
            "pong from web1 (100.64.0.1) via direct 203.0.113.1:51820 in 0.420 ms\n"
        );
    }

    #[test]
    fn silence_without_a_reason_is_said_to_be_silence() {
        assert_eq!(
            Ping::default().add(&silence(0, "")),
            "no reply from web1 (100.64.0.1): no reply in time\n"
        );
    }
}
