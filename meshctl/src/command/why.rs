//! `meshctl why`: the candidates of a peer, and what became of each.

use ringmesh_proto::local::WhyRequest;

use crate::{
    cli::NodeSocket,
    failure::Failure,
    output::{self, Format, why::Why},
};

/// Whom it is about.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The peer: its name, one of its addresses, or its id
    node: String,
    #[command(flatten)]
    socket: NodeSocket,
}

/// `meshctl why`. That a peer is not reached is an answer, and no failure of the question.
pub(crate) async fn run(format: Format, args: Args) -> Result<(), Failure> {
    let connection = args.socket.connect().await?;
    let doing = format!("tell how {} is reached", args.node);
    let request = WhyRequest { node: args.node };
    let answer = connection.call(&doing, connection.local().why(request)).await?;
    output::result(format, &Why::from(answer))
}
