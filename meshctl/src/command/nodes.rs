//! `meshctl nodes`: the members of a network, asked of its coordinator.

use ringmesh_proto::admin::{ListNodesRequest, RemoveNodeRequest};

use crate::{
    cli::{AdminSocket, NetworkName},
    connect::Connection,
    daemon::Daemon,
    failure::{Exit, Failure},
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
    /// Removes a member: its peers drop its sessions, and it cannot come back without a new token.
    /// Ends with 8 if a node that is online has not installed the removal in time
    Remove {
        /// The node's name or id
        node: String,
        /// How many seconds to wait until every node that is online has installed the removal
        #[arg(long, env = "MESH_WAIT", value_name = "SECONDS", default_value_t = 5,
            value_parser = clap::value_parser!(u32).range(0..=8))]
        wait: u32,
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
        Command::Remove { node, wait, network: NetworkName { network }, socket } => {
            let coordinator = Connection::open(Daemon::Coordinator, &socket.socket).await?;
            let doing = format!("remove node {node}");
            let mut nodes = coordinator.nodes();
            let request = RemoveNodeRequest { network, node, wait_ms: wait * 1000 };
            let removed = Removed::from(coordinator.call(&doing, nodes.remove_node(request)).await?);
            output::result(format, &removed)?;
            verdict(&removed)
        }
    }
}

/// Success if every node that is online has the removal in its data plane.
fn verdict(removed: &Removed) -> Result<(), Failure> {
    let late: Vec<&str> =
        removed.behind.iter().filter(|node| node.online).map(|node| node.name.as_str()).collect();
    if late.is_empty() {
        return Ok(());
    }
    let error =
        format!("{} is removed, but nodes that are online have not installed that yet", removed.node.name);
    Err(Failure::new(Exit::Timeout, error)
        .cause(format!("after {} ms still behind: {}", removed.waited_ms, late.join(", ")))
        .attempt("meshctl nodes list, which shows when they have; or look at their logs"))
}

#[cfg(test)]
mod tests {
    use ringmesh_proto::admin::{BehindNode, RemoveNodeResponse};

    use super::*;

    #[test]
    fn only_a_node_that_is_online_makes_a_removal_late() {
        let behind = |online| BehindNode { id: "00000000000000ff".into(), name: "carol".into(), online };
        let verdict = |behind| verdict(&Removed::from(RemoveNodeResponse { behind, ..Default::default() }));
        assert_eq!(verdict(vec![]), Ok(()));
        assert_eq!(verdict(vec![behind(false)]), Ok(()));
        let late = verdict(vec![behind(false), behind(true)]).unwrap_err();
        assert_eq!(late.exit(), Exit::Timeout);
        assert!(late.to_string().contains("carol"), "{late}");
    }
}
