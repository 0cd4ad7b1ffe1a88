//! `meshctl leave`.

use ringmesh_proto::local::LeaveRequest;

use super::status::Args;
use crate::{
    connect::Connection,
    daemon::Daemon,
    failure::Failure,
    output::{self, Format, leave::Left},
};

/// `meshctl leave`.
pub(crate) async fn run(format: Format, args: Args) -> Result<(), Failure> {
    let connection = Connection::open(Daemon::Node, &args.socket.socket).await?;
    let response = connection.call("leave the network", connection.local().leave(LeaveRequest {})).await?;
    output::result(format, &Left { coordinator_told: response.coordinator_told })?;
    if !response.coordinator_told {
        output::note("no coordinator could be told: remove this node there with `meshctl nodes remove NAME`");
    }
    Ok(())
}
