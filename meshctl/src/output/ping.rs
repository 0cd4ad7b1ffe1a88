//! `meshctl ping`: which path answered, in what time.

use ringmesh_proto::local;
use serde::Serialize;

use super::{
    Document,
    path::{loss, named},
    table::round_trip,
};

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
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Reply {
    pub(crate) sequence: u32,
    pub(crate) path: Option<String>,
    pub(crate) via: Option<String>,
    pub(crate) endpoint: Option<String>,
    pub(crate) rtt_us: Option<u32>,
    pub(crate) loss_percent: Option<u32>,
    pub(crate) error: Option<String>,
}

impl From<&local::PingResponse> for Reply {
    fn from(response: &local::PingResponse) -> Self {
        let answered = !response.path.is_empty();
        let told = |text: &String| (answered && !text.is_empty()).then(|| text.clone());
        Self {
            sequence: response.sequence,
            path: told(&response.path),
            via: told(&response.via),
            endpoint: told(&response.endpoint),
            rtt_us: answered.then_some(response.rtt_us),
            loss_percent: response.loss_percent.filter(|_| answered),
            error: (!answered).then(|| {
                if response.error.is_empty() { "no reply in time".to_owned() } else { response.error.clone() }
            }),
        }
    }
}

impl Reply {
    /// `via direct 203.0.113.7:51820 in 0.420 ms, loss 0%`, or `None` if nobody answered.
    pub(crate) fn way(&self) -> Option<String> {
        let part = |part: &'_ Option<String>| part.clone().unwrap_or_default();
        let path = named(self.path.as_deref()?, &part(&self.via), &part(&self.endpoint));
        let loss = match loss(self.loss_percent) {
            loss if loss.is_empty() => loss,
            loss => format!(", loss {loss}"),
        };
        Some(format!("via {path} in {}{loss}", round_trip(self.rtt_us?)))
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
    use crate::output::{json, tests::conforms};

    fn answer(sequence: u32, rtt_us: u32) -> local::PingResponse {
        local::PingResponse {
            via: String::new(),
            loss_percent: Some(0),
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
            loss_percent: None,
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
        conforms("ping", &three().0);
        insta::assert_snapshot!(json(&three().0).unwrap());
    }

    #[test]
    fn a_single_ping_is_a_single_line() {
        let mut ping = Ping::default();
        let line = ping.add(&answer(0, 420));
        assert_eq!(
            line + &ping.summary(),
            "pong from web1 (100.64.0.1) via direct 203.0.113.1:51820 in 0.420 ms, loss 0%\n"
        );
    }

    #[test]
    fn a_relayed_answer_names_the_relay_and_an_unprobed_path_no_loss() {
        let relayed = local::PingResponse {
            path: "relay".to_owned(),
            via: "fra".to_owned(),
            endpoint: "198.51.100.2:443".to_owned(),
            loss_percent: None,
            ..answer(0, 32_100)
        };
        let mut ping = Ping::default();
        assert_eq!(
            ping.add(&relayed),
            "pong from web1 (100.64.0.1) via relay \"fra\" at 198.51.100.2:443 in 32.1 ms\n"
        );
        conforms("ping", &ping);
    }

    #[test]
    fn silence_without_a_reason_is_said_to_be_silence() {
        assert_eq!(
            Ping::default().add(&silence(0, "")),
            "no reply from web1 (100.64.0.1): no reply in time\n"
        );
    }
}
