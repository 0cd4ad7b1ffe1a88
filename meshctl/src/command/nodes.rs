//! `meshctl nodes`: the members of a network, asked of its coordinator.

use std::time::Duration;

use ringmesh_proto::admin::{ListNodesRequest, RemoveNodeRequest};

use super::installed;
use crate::{
    cli::NetworkName,
    failure::Failure,
    output::{
        self, Format,
        nodes::{Nodes, Removed},
    },
    remote::CoordinatorAt,
};

/// What can be done with members.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Lists all members, online or not
    List {
        #[command(flatten)]
        network: NetworkName,
        #[command(flatten)]
        at: CoordinatorAt,
    },
    /// Removes a member: its peers drop its sessions, and it cannot come back without a new token.
    /// Ends with 8 if a node that is online has not installed the removal in time
    Remove {
        /// The node's name or id
        node: String,
        /// How long to wait until every node that is online has installed the removal: 10s, 500ms, 0; a bare number is seconds
        #[arg(long, env = "MESH_WAIT", value_name = "TIME", default_value = "5s", value_parser = installed::wait)]
        wait: Duration,
        #[command(flatten)]
        network: NetworkName,
        #[command(flatten)]
        at: CoordinatorAt,
    },
}

/// `meshctl nodes ...`.
pub(crate) async fn run(format: Format, command: Command) -> Result<(), Failure> {
    match command {
        Command::List { network: NetworkName { network }, at } => {
            let coordinator = at.open().await?;
            let mut nodes = coordinator.nodes();
            let response =
                coordinator.call("list the nodes", nodes.list_nodes(ListNodesRequest { network })).await?;
            output::result(format, &Nodes::from(response))
        }
        Command::Remove { node, wait, network: NetworkName { network }, at } => {
            let coordinator = at.open().await?;
            let doing = format!("remove node {node}");
            let mut nodes = coordinator.nodes();
            let wait_ms = installed::first(wait);
            let request = RemoveNodeRequest { network: network.clone(), node, wait_ms, ..Default::default() };
            let mut removed = Removed::from(coordinator.call(&doing, nodes.remove_node(request)).await?);
            let waited = installed::rest(&coordinator, &network, wait, &mut removed.installation).await;
            output::result(format, &removed)?;
            waited?;
            installed::verdict(&format!("{} is removed", removed.node.name), wait, &removed.installation)
        }
    }
}
