//! `meshctl nodes`: the members of a network, asked of its coordinator.

use ringmesh_proto::admin::{ListNodesRequest, RemoveNodeRequest};

use crate::{
    cli::{AdminSocket, NetworkName},
    connect::Connection,
    daemon::Daemon,
    failure::Failure,
    output::{
        self, Format,
        nodes::{Nodes, Removed},
    },
};

/// What can be done with members.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Lists all members, online or not
    List {
        #[command(flatten)]
        network: NetworkName,
        #[command(flatten)]
        socket: AdminSocket,
    },
    /// Removes a member: its peers drop its sessions, and it cannot come back without a new token
    Remove {
        /// The node's name or id
        node: String,
        #[command(flatten)]
        network: NetworkName,
        #[command(flatten)]
        socket: AdminSocket,
    },
}

/// `meshctl nodes ...`.
pub(crate) async fn run(format: Format, command: Command) -> Result<(), Failure> {
    match command {
        Command::List { network: NetworkName { network }, socket } => {
            let coordinator = Connection::open(Daemon::Coordinator, &socket.socket).await?;
            let mut nodes = coordinator.nodes();
            let response =
                coordinator.call("list the nodes", nodes.list_nodes(ListNodesRequest { network })).await?;
            output::result(format, &Nodes::from(response))
        }
        Command::Remove { node, network: NetworkName { network }, socket } => {
            let coordinator = Connection::open(Daemon::Coordinator, &socket.socket).await?;
            let doing = format!("remove node {node}");
            let mut nodes = coordinator.nodes();
            let response =
                coordinator.call(&doing, nodes.remove_node(RemoveNodeRequest { network, node })).await?;
            output::result(format, &Removed::from(response))
        }
    }
}
