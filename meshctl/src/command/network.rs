//! `meshctl network`: what a coordinator serves.

use ringmesh_proto::admin::ListNetworksRequest;

use crate::{
    cli::AdminSocket,
    connect::Connection,
    daemon::Daemon,
    failure::Failure,
    output::{self, Format, networks::Networks},
};

/// What can be done with networks.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Lists them with their address pools
    List {
        #[command(flatten)]
        socket: AdminSocket,
    },
}

/// `meshctl network ...`.
pub(crate) async fn run(format: Format, command: Command) -> Result<(), Failure> {
    let Command::List { socket } = command;
    let coordinator = Connection::open(Daemon::Coordinator, &socket.socket).await?;
    let mut networks = coordinator.networks();
    let response =
        coordinator.call("list the networks", networks.list_networks(ListNetworksRequest {})).await?;
    output::result(format, &Networks::from(response))
}
