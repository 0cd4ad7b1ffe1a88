//! `meshctl ping`: an echo inside the session, which tells the path.

use std::time::Duration;

use ringmesh_proto::local::PingRequest;

use crate::{
    cli::NodeSocket,
    failure::{Exit, Failure},
    output::{self, Format, ping::Ping},
};

/// Whom to ping, and how often.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The peer: its name, one of its addresses, or its id
    node: String,
    /// How many echoes to ask for
    #[arg(short = 'c', long, env = "MESH_PING_COUNT", value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// Milliseconds from one echo to the next
    #[arg(short, long, env = "MESH_PING_INTERVAL", value_name = "MS", default_value_t = 1000)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    interval: u32,
    /// Milliseconds to wait for an answer, a first handshake included
    #[arg(short = 'W', long, env = "MESH_PING_TIMEOUT", value_name = "MS", default_value_t = 5000)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=60_000))]
    timeout: u32,
    #[command(flatten)]
    socket: NodeSocket,
}

/// `meshctl ping`; succeeds if any echo was answered.
pub(crate) async fn run(format: Format, args: Args) -> Result<(), Failure> {
    let connection = args.socket.connect().await?;
    let doing = format!("ping {}", args.node);
    let request = PingRequest {
        node: args.node,
        count: args.count,
        interval_ms: args.interval,
        timeout_ms: args.timeout,
    };
    let mut answers = connection.call(&doing, connection.local().ping(request)).await?;

    let mut ping = Ping::default();
    // The daemon reports each echo within its timeout; the rest is for a daemon that hangs.
    let patience =
        Duration::from_millis(u64::from(args.interval) + u64::from(args.timeout)) + Duration::from_secs(5);
    loop {
        let answer = tokio::time::timeout(patience, answers.message())
            .await
            .map_err(|_| {
                Failure::new(Exit::Timeout, format!("cannot {doing}")).cause("meshd does not answer")
            })?
            .map_err(|status| connection.refused(&doing, &status))?;
        let Some(answer) = answer else { break };
        let line = ping.add(&answer);
        if format == Format::Table {
            output::write_result(&line)?;
        }
    }
    output::result(format, &ping)?;
    if ping.answered > 0 {
        return Ok(());
    }
    let why = ping.replies.last().and_then(|reply| reply.error.clone());
    let failure = Failure::new(Exit::Unreachable, format!("{} does not reply", ping.node));
    let failure = why.into_iter().fold(failure, Failure::cause);
    Err(failure.attempt("meshctl peers shows its last endpoint; on that machine: meshctl status"))
}
