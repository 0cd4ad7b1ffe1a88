//! `meshctl wait`: until this machine is in its mesh, for scripts and for what systemd starts afterwards.

use std::{str::FromStr, time::Duration};

use ringmesh_proto::local::StatusResponse;
use tokio::time::{Instant, sleep, timeout_at};

use super::{installed, status};
use crate::{
    cli::NodeSocket,
    connect::Connection,
    failure::{Exit, Failure},
    output::{self, Format, wait::Waited},
};

/// How often the daemon is asked.
const INTERVAL: Duration = Duration::from_millis(200);

/// How long the first question may take.
const FIRST_LOOK: Duration = Duration::from_secs(2);

/// What is waited for, and how long.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// joined: in a network; online: besides, its map in force and confirmed by a coordinator since the daemon started; or `peer NAME`:
    /// besides, that peer reached; or `revision N`: besides, that revision of the network, or a later one, in the data plane
    #[arg(
        long = "for",
        env = "MESH_WAIT_FOR",
        value_name = "WHAT",
        num_args = 1..=2,
        value_delimiter = ' ',
        default_value = "online"
    )]
    what: Vec<String>,
    /// How long to wait at most: 30s, 500ms, 5m
    #[arg(long, env = "MESH_TIMEOUT", value_name = "TIME", value_parser = installed::wait, default_value = "30s")]
    timeout: Duration,
    #[command(flatten)]
    socket: NodeSocket,
}

/// What can be waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Goal {
    Joined,
    Online,
    Peer(String),
    Revision(u64),
}

impl Goal {
    fn read(words: &[String]) -> Result<Self, Failure> {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["joined"] => Some(Self::Joined),
            ["online"] => Some(Self::Online),
            ["peer", name] if !name.is_empty() => Some(Self::Peer((*name).to_owned())),
            ["revision", number] => u64::from_str(number).ok().map(Self::Revision),
            _ => None,
        }
        .ok_or_else(|| {
            Failure::new(Exit::Usage, format!("nobody can wait for `{}`", words.join(" ")))
                .attempt("--for joined, --for online, --for peer NAME, or --for revision NUMBER")
        })
    }

    fn text(&self) -> String {
        match self {
            Self::Joined => "joined".to_owned(),
            Self::Online => "online".to_owned(),
            Self::Peer(name) => format!("peer {name}"),
            Self::Revision(number) => format!("revision {number}"),
        }
    }

    /// What is missing, in words; `None`: nothing.
    fn missing(&self, status: &StatusResponse) -> Option<String> {
        let Some(network) = &status.network else { return Some("this machine is in no network".to_owned()) };
        if *self == Self::Joined {
            return None;
        }
        if status.state != "running" || network.revision == 0 {
            return Some(format!("the node is {}", status.state));
        }
        if network.map_age_ms.is_none() {
            return Some("no coordinator has confirmed the map since the daemon started".to_owned());
        }
        if network.installed_revision < network.revision {
            let (has, knows) = (network.installed_revision, network.revision);
            return Some(format!("the data plane has revision {has}, and {knows} is known"));
        }
        match self {
            Self::Joined | Self::Online => None,
            Self::Revision(number) => (network.installed_revision < *number)
                .then(|| format!("the data plane has revision {}", network.installed_revision)),
            Self::Peer(name) => (!status
                .peers
                .iter()
                .any(|peer| [&peer.name, &peer.id, &peer.ipv4, &peer.ipv6].contains(&name)))
            .then(|| format!("this node knows no peer {name}")),
        }
    }
}

/// `meshctl wait`.
pub(crate) async fn run(format: Format, args: Args) -> Result<(), Failure> {
    let goal = Goal::read(&args.what)?;
    let began = Instant::now();
    let deadline = began + args.timeout;
    let mut last = None;
    // A daemon that answers gets to do so, however little time there is.
    let mut until = deadline.max(began + FIRST_LOOK);
    loop {
        match timeout_at(std::mem::replace(&mut until, deadline), look(&goal, &args.socket, deadline)).await {
            Ok(Ok(None)) => {
                let waited_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                return output::result(format, &Waited { reached: goal.text(), waited_ms });
            }
            Ok(Ok(Some(missing))) => last = Some(missing),
            // Neither rights nor a place in the network come by waiting.
            Ok(Err(failure)) => return Err(failure),
            Err(_) => {}
        }
        if Instant::now() + INTERVAL >= deadline {
            return Err(too_late(&goal, args.timeout, last));
        }
        sleep(INTERVAL).await;
    }
}

/// What is missing, and the exit code if it stays so.
type Missing = (Exit, String);

async fn look(goal: &Goal, socket: &NodeSocket, deadline: Instant) -> Result<Option<Missing>, Failure> {
    let connection = match socket.connect().await {
        Ok(connection) => connection,
        Err(failure) if failure.exit() == Exit::NotRunning => {
            return Ok(Some((Exit::NotRunning, "the node daemon does not run".to_owned())));
        }
        Err(failure) => return Err(failure),
    };
    let status = match status::ask(&connection).await {
        Ok(status) => status,
        Err(failure)
            if matches!(
                failure.exit(),
                Exit::NotRunning | Exit::Unreachable | Exit::Timeout | Exit::General
            ) =>
        {
            return Ok(Some((Exit::Timeout, failure.error().to_owned())));
        }
        Err(failure) => return Err(failure),
    };
    status::not_removed(&status)?;
    if let Some(missing) = goal.missing(&status) {
        let exit = if status.network.is_none() { Exit::NotJoined } else { Exit::Timeout };
        return Ok(Some((exit, missing)));
    }
    match goal {
        Goal::Peer(name) => Ok(reach(&connection, name, deadline).await),
        Goal::Joined | Goal::Online | Goal::Revision(_) => Ok(None),
    }
}

/// Whether a peer answers an echo.
async fn reach(connection: &Connection, name: &str, deadline: Instant) -> Option<Missing> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout_ms = u32::try_from(left.as_millis().clamp(1, 5_000)).unwrap_or(5_000);
    let request =
        ringmesh_proto::local::PingRequest { node: name.to_owned(), count: 1, interval_ms: 0, timeout_ms };
    let answer = async { connection.local().ping(request).await?.into_inner().message().await };
    let silent = |why: String| Some((Exit::Timeout, format!("{name} does not answer: {why}")));
    match answer.await {
        Ok(Some(answer)) if answer.error.is_empty() => None,
        Ok(Some(answer)) => silent(answer.error),
        Ok(None) => silent("the daemon ended the conversation".to_owned()),
        Err(status) => silent(status.message().to_owned()),
    }
}

fn too_late(goal: &Goal, limit: Duration, last: Option<Missing>) -> Failure {
    let (exit, why) = last.unwrap_or_else(|| (Exit::Timeout, "the node daemon did not answer".to_owned()));
    let failure =
        Failure::new(exit, format!("not {} within {} s", goal.text(), limit.as_secs_f64())).cause(why);
    if exit == Exit::NotJoined {
        return failure.attempt("meshctl join --token TOKEN");
    }
    if exit == Exit::NotRunning {
        return failure.attempt(crate::daemon::Daemon::Node.how_to_start());
    }
    failure.attempt("meshctl status")
}

#[cfg(test)]
mod tests {
    use ringmesh_proto::local::{Network, Peer};

    use super::*;

    fn read(words: &str) -> Result<Goal, Failure> {
        Goal::read(&words.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn what_is_waited_for_is_read_with_its_object() {
        for words in ["joined", "online", "peer web", "revision 7"] {
            assert_eq!(read(words).unwrap().text(), words);
        }
        for words in ["", "up", "peer", "revision", "revision x", "joined now", "peer web now", "revision -1"]
        {
            assert_eq!(read(words).unwrap_err().exit(), Exit::Usage, "{words}");
        }
    }

    #[test]
    fn each_goal_is_reached_only_with_all_before_it() {
        let missing = |words: &str, status: &StatusResponse| read(words).unwrap().missing(status);
        let none = StatusResponse::default();
        for words in ["joined", "online", "peer web", "revision 1"] {
            assert!(missing(words, &none).unwrap().contains("no network"), "{words}");
        }
        let network =
            Network { revision: 7, installed_revision: 7, map_age_ms: Some(5), ..Network::default() };
        let peers = vec![Peer { name: "web".to_owned(), ..Peer::default() }];
        let online = StatusResponse {
            state: "running".to_owned(),
            network: Some(network.clone()),
            peers,
            ..StatusResponse::default()
        };
        for words in ["joined", "online", "peer web", "revision 6", "revision 7"] {
            assert_eq!(missing(words, &online), None, "{words}");
        }
        assert!(missing("revision 8", &online).is_some() && missing("peer db", &online).is_some());
        for lacking in [
            StatusResponse { state: "expired".to_owned(), ..online.clone() },
            StatusResponse {
                network: Some(Network { map_age_ms: None, ..network.clone() }),
                ..online.clone()
            },
            StatusResponse {
                network: Some(Network { installed_revision: 6, ..network.clone() }),
                ..online.clone()
            },
        ] {
            assert_eq!(missing("joined", &lacking), None);
            for words in ["online", "peer web", "revision 1"] {
                assert!(missing(words, &lacking).is_some(), "{words}: {lacking:?}");
            }
        }
    }

    #[test]
    fn the_exit_code_tells_what_was_missing_at_the_end() {
        let late = |last| too_late(&Goal::Online, Duration::from_secs(1), last).exit();
        assert_eq!(late(None), Exit::Timeout);
        for exit in [Exit::NotJoined, Exit::NotRunning, Exit::Timeout] {
            assert_eq!(late(Some((exit, String::new()))), exit);
        }
    }
}
