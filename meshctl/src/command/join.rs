//! `meshctl join`: from a token to packets that pass.

use std::{fs, path::PathBuf, time::Duration};

use clap::builder::{StringValueParser, TypedValueParser as _};
use ringmesh_node::{Bound, Config, Failure as NodeFailure};
use ringmesh_proto::local::{self, JoinRequest, PingRequest, StatusResponse, join_progress::Step};
use tokio::{
    sync::oneshot,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use zeroize::Zeroizing;

use super::{node, status};
use crate::{
    connect::Connection,
    daemon::Daemon,
    failure::{Exit, Failure},
    launch::Started,
    output::{
        self, Format,
        join::{Check, FirstPing, Joined},
        ping::Reply,
        status::Status,
    },
    process, rights,
    signals::Signals,
    supervisor,
    token::{self, Source, Token},
};

/// How to join.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    newcomer: Newcomer,
    /// Stays, and is the node daemon itself, for containers and supervisors
    #[arg(long, env = "MESH_FOREGROUND")]
    foreground: bool,
    #[command(flatten)]
    options: node::Options,
    #[command(flatten)]
    log: process::Log,
}

/// Who joins, and what lets it in.
#[derive(Debug, clap::Args)]
pub(crate) struct Newcomer {
    /// The join token: itself, file:PATH, or - for standard input
    #[arg(long, env = token::VARIABLE, value_name = "TOKEN", hide_env_values = true)]
    #[arg(value_parser = StringValueParser::new().map(Source::from))]
    token: Option<Source>,
    /// The name of this node in the network [default: this machine's host name]
    #[arg(long, env = "MESH_NAME", value_name = "NAME")]
    name: Option<String>,
    /// An OpenSSH Ed25519 private key to be this node's identity [default: a new one]
    #[arg(long, env = "MESH_IDENTITY", value_name = "FILE")]
    identity: Option<PathBuf>,
}

/// The file that a member has in its state directory.
const MEMBERSHIP: &str = "network.json";
/// How long an enrolment may take, retries of the daemon included.
const JOIN_TIMEOUT: Duration = Duration::from_secs(90);
/// How long the first map may take from the coordinator into the data plane.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait for a first answer of a peer: two handshake attempts (REKEY_TIMEOUT is 5 s) and some.
const PING_TIMEOUT: Duration = Duration::from_secs(12);
/// How many peers are asked at once; one answer is enough.
const MAX_ASKED: usize = 16;

/// What is asked of the daemon.
pub(crate) struct Wish {
    token: Token,
    name: String,
    identity_pem: Zeroizing<String>,
}

impl Newcomer {
    /// What to ask of the daemon; all that can be wrong on this side is found here.
    fn wish(&self, newcomer: token::Newcomer) -> Result<Wish, Failure> {
        let identity_pem = self.identity.as_ref().map_or_else(|| Ok(Zeroizing::default()), read_identity)?;
        let token = Source::read(self.token.as_ref(), newcomer)?;
        Ok(Wish { token, name: self.name.clone().unwrap_or_default(), identity_pem })
    }

    /// The same, for a process that stays: a token that could be read in its arguments or its environment is moved out of sight,
    /// by which the process begins anew.
    fn hidden_wish(&self, newcomer: token::Newcomer) -> Result<Wish, Failure> {
        let exposed = self.token.as_ref().is_some_and(Source::is_exposed) || token::is_in_environment();
        let wish = self.wish(newcomer)?;
        if exposed {
            return Err(token::hide(&wish.token, std::env::args_os().skip(1)));
        }
        Ok(wish)
    }

    /// Whether a token is given.
    pub(crate) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// The same for a relay, or `None` if no token is given and none is needed, because this machine has joined before.
    pub(crate) fn relay_wish_unless_member(&self, config: &Config) -> Result<Option<Wish>, Failure> {
        if self.token.is_none() && config.state_dir.join(MEMBERSHIP).exists() {
            return Ok(None);
        }
        self.hidden_wish(token::Newcomer::Relay).map(Some)
    }
}

/// `meshctl join`. Called before any thread is started.
pub(crate) fn run(format: Format, args: Args) -> Result<(), Failure> {
    // All that can be wrong on this side is found before anything is started.
    let config = args.options.config()?;
    if args.foreground {
        let wish = args.newcomer.hidden_wish(token::Newcomer::Node)?;
        args.log.start(config.log.as_deref())?;
        let socket = config.socket.clone();
        let bound = process::bind_node(config)?;
        return super::block_on_threads(in_foreground(
            format,
            bound,
            socket,
            Some(wish),
            supervisor::tell_ready,
        ));
    }
    let wish = args.newcomer.wish(token::Newcomer::Node)?;
    super::block_on(with_daemon(format, args.options, &args.log, config, wish))
}

fn read_identity(path: &PathBuf) -> Result<Zeroizing<String>, Failure> {
    fs::read_to_string(path).map(Zeroizing::new).map_err(|error| {
        let doing = format!("cannot read the identity key {}", path.display());
        rights::refused(doing, error.to_string(), &error, Exit::Usage)
    })
}

/// Joins by the daemon that runs, or by one that is started for it and stopped again if joining fails.
async fn with_daemon(
    format: Format,
    options: node::Options,
    log: &process::Log,
    config: Config,
    wish: Wish,
) -> Result<(), Failure> {
    let (connection, started) = match Connection::open(Daemon::Node, &config.socket).await {
        Ok(connection) => {
            let late = options.only_at_start();
            if !late.is_empty() {
                output::note(format!("meshd runs already: {} are read when it starts", late.join(", ")));
            }
            (connection, None)
        }
        Err(failure) if failure.exit() == Exit::NotRunning => {
            let (connection, started) = options.plan(&config, log)?.start().await?;
            output::note(started.whereabouts());
            (connection, Some(started))
        }
        Err(failure) => return Err(failure),
    };
    let interrupted = async {
        Signals::listen()?.end().await;
        Err(Failure::new(Exit::General, "joining was interrupted"))
    };
    let joined = tokio::select! {
        joined = join_with(&connection, &wish, started.is_some()) => joined,
        interrupted = interrupted => interrupted,
    };
    match joined {
        Ok((status, enrolled)) => finish(format, &connection, status, enrolled).await,
        Err(failure) => {
            undo(connection, started).await;
            Err(failure)
        }
    }
}

/// Stops the daemon if it was started here.
async fn undo(connection: Connection, started: Option<Started>) {
    drop(connection);
    if let Some(started) = started {
        started.undo().await;
        output::note("meshd was stopped again");
    }
}

/// Is the daemon, and joins through its own socket as anybody would; without a wish this machine must have joined before.
///
/// `tell_ready` is called once the daemon answers.
pub(crate) async fn in_foreground(
    format: Format,
    bound: Bound,
    socket: PathBuf,
    wish: Option<Wish>,
    tell_ready: impl FnOnce(),
) -> Result<(), Failure> {
    let signals = Signals::listen()?;
    let (stop, stopped) = oneshot::channel::<()>();
    let (ready, is_ready) = oneshot::channel();
    let end = async move {
        tokio::select! {
            () = signals.end() => {}
            _ = stopped => {}
        }
    };
    let mut daemon = tokio::spawn(bound.run(end, ready));
    let client = async {
        // An error means that the daemon ended before it was ready, and its own failure tells more.
        let Ok(subject) = is_ready.await else { return std::future::pending().await };
        tell_ready();
        let described = socket.clone();
        tokio::spawn(async move {
            supervisor::keep_told(subject, || node::described(described.clone())).await;
        });
        let connection = Connection::open(Daemon::Node, &socket).await?;
        let (status, enrolled) = match &wish {
            Some(wish) => join_with(&connection, wish, true).await?,
            None => (membership(&connection).await?, false),
        };
        if let Err(failure) = finish(format, &connection, status, enrolled).await {
            // The node is in the network: a peer that does not answer yet is no reason to end.
            output::failure(&failure);
        }
        Ok(())
    };
    let outcome = tokio::select! {
        outcome = client => outcome,
        ended = &mut daemon => return ended_early(ended),
    };
    if outcome.is_err() {
        drop(stop);
        let _ = daemon.await;
        return outcome;
    }
    // Kept until here: dropping it would ask the daemon to end.
    let ended = daemon.await;
    drop(stop);
    ended_early(ended)
}

fn ended_early(ended: Result<Result<(), NodeFailure>, tokio::task::JoinError>) -> Result<(), Failure> {
    match ended {
        Ok(Ok(())) => Ok(()),
        Ok(Err(failure)) => Err(process::node_failure("run the node", &failure)),
        Err(_) => Err(Failure::new(Exit::General, "the node daemon failed; see its log")),
    }
}

/// Joins, and tells whether that took the token. A daemon that was just started (`fresh`) may find itself a member of that
/// very network, as after a restart of the machine or a container: then all is well without.
async fn join_with(
    connection: &Connection,
    wish: &Wish,
    fresh: bool,
) -> Result<(StatusResponse, bool), Failure> {
    if fresh {
        let status = status::ask(connection).await?;
        if status.network.as_ref().is_some_and(|network| network.id == wish.token.network()) {
            status::not_removed(&status)?;
            return Ok((status, false));
        }
    }
    Ok((ask_to_join(connection, wish).await?, true))
}

/// The status of a daemon that is in a network already.
async fn membership(connection: &Connection) -> Result<StatusResponse, Failure> {
    let status = status::ask(connection).await?;
    status::not_removed(&status)?;
    if status.network.is_none() {
        return Err(Failure::new(Exit::NotJoined, "this machine is in no network")
            .attempt("give a token; make one on the coordinator: meshctl token create"));
    }
    Ok(status)
}

/// Has the daemon join, telling its progress.
async fn ask_to_join(connection: &Connection, wish: &Wish) -> Result<StatusResponse, Failure> {
    const DOING: &str = "join the network";
    let request = JoinRequest {
        token: wish.token.reveal(),
        name: wish.name.clone(),
        identity_pem: wish.identity_pem.as_str().to_owned(),
    };
    let deadline = Instant::now() + JOIN_TIMEOUT;
    let mut progress = connection.call(DOING, connection.local().join(request)).await?;
    loop {
        let step = tokio::time::timeout_at(deadline, progress.message())
            .await
            .map_err(|_| Failure::new(Exit::Timeout, format!("cannot {DOING}")).cause("it took too long"))?
            .map_err(|status| connection.refused(DOING, &status))?;
        match step.map(|progress| progress.step) {
            Some(Some(Step::Doing(line))) => output::note(line),
            Some(Some(Step::Done(done))) => return Ok(done.status.unwrap_or_default()),
            // A step of a newer daemon.
            Some(None) => {}
            None => {
                return Err(Failure::new(Exit::General, format!("cannot {DOING}"))
                    .cause("meshd ended the conversation without a result"));
            }
        }
    }
}

/// The real check: is the map installed, does a peer answer over the tunnel?
async fn finish(
    format: Format,
    connection: &Connection,
    status: StatusResponse,
    enrolled: bool,
) -> Result<(), Failure> {
    let (status, installed) = wait_installed(connection, status).await?;
    let (asked, ping) = first_answer(connection, &status).await;
    let answered = ping.as_ref().is_some_and(|ping| ping.reply.path.is_some());
    let check = Check { ok: installed && (asked == 0 || answered), installed, asked, ping };
    let verdict = verdict(&check);
    output::result(format, &Joined { enrolled, check, status: Status::from(status) })?;
    verdict
}

fn verdict(check: &Check) -> Result<(), Failure> {
    if !check.installed {
        return Err(Failure::new(Exit::Timeout, "joined, but the network map is not installed yet")
            .attempt("meshctl status tells when it is, and what keeps it"));
    }
    if !check.ok {
        let failure = Failure::new(Exit::Unreachable, "joined, but no peer answers over the tunnel");
        let why = check.ping.as_ref().and_then(|ping| ping.reply.error.clone());
        return Err(why
            .into_iter()
            .fold(failure, Failure::cause)
            .attempt("see that a firewall on either side lets the UDP port pass; then: meshctl ping NODE"));
    }
    Ok(())
}

/// Waits until the data plane has the map that the coordinator sent.
async fn wait_installed(
    connection: &Connection,
    mut status: StatusResponse,
) -> Result<(StatusResponse, bool), Failure> {
    let deadline = Instant::now() + INSTALL_TIMEOUT;
    loop {
        let installed = status
            .network
            .as_ref()
            .is_some_and(|network| network.revision > 0 && network.installed_revision >= network.revision);
        if installed || Instant::now() >= deadline {
            return Ok((status, installed));
        }
        sleep(Duration::from_millis(50)).await;
        status = status::ask(connection).await?;
    }
}

/// Asks all peers (up to a bound) at once for an echo; tells how many, and the first that answered, or else one that did not.
async fn first_answer(connection: &Connection, status: &StatusResponse) -> (usize, Option<FirstPing>) {
    // Stock devices speak WireGuard only, and cannot answer an echo; that a relay answers says nothing of the other peers.
    let is_node =
        |peer: &&local::Peer| peer.kind == "mesh" && !status.relays.iter().any(|relay| relay.id == peer.id);
    let peers: Vec<_> = status.peers.iter().filter(is_node).take(MAX_ASKED).collect();
    let mut asking = JoinSet::new();
    for peer in &peers {
        let request = PingRequest {
            node: peer.id.clone(),
            count: 1,
            interval_ms: 0,
            timeout_ms: u32::try_from(PING_TIMEOUT.as_millis()).unwrap_or(u32::MAX),
        };
        let mut local = connection.local();
        asking.spawn(async move {
            let mut answers = local.ping(request).await.ok()?.into_inner();
            answers.message().await.ok()?
        });
    }
    let mut silent = None;
    let answer = timeout(PING_TIMEOUT + Duration::from_secs(3), async {
        while let Some(answer) = asking.join_next().await {
            let Ok(Some(answer)) = answer else { continue };
            let ping = FirstPing { reply: Reply::from(&answer), node: answer.node, ipv4: answer.ipv4 };
            if ping.reply.path.is_some() {
                return Some(ping);
            }
            silent.get_or_insert(ping);
        }
        None
    })
    .await;
    let none = || {
        let peer = peers.first()?;
        let reply = Reply::default();
        Some(FirstPing { node: peer.name.clone(), ipv4: peer.ipv4.clone(), reply })
    };
    (peers.len(), answer.ok().flatten().or(silent).or_else(none))
}
