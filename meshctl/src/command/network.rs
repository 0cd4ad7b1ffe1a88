//! `meshctl network`: what a coordinator serves.

use ringmesh_proto::admin::ListNetworksRequest;

use crate::{
    failure::Failure,
    output::{self, Format, networks::Networks},
    remote::CoordinatorAt,
};

/// What can be done with networks.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Lists them with their address pools
    List {
        #[command(flatten)]
        at: CoordinatorAt,
    },
}

/// `meshctl network ...`.
pub(crate) async fn run(format: Format, command: Command) -> Result<(), Failure> {
    let Command::List { at } = command;
    let coordinator = at.open().await?;
    let mut networks = coordinator.networks();
    let response =
        coordinator.call("list the networks", networks.list_networks(ListNetworksRequest {})).await?;
    output::result(format, &Networks::from(response))
}
