//! `meshctl leave`.

use ringmesh_proto::local::LeaveRequest;

use super::status::{self, Args};
use crate::{
    failure::Failure,
    output::{self, Format, leave::Left},
};

/// `meshctl leave`.
pub(crate) async fn run(format: Format, args: Args) -> Result<(), Failure> {
    let connection = args.socket.connect().await?;
    let before = status::ask(&connection).await?;
    let removed = before.state == "removed";
    let name = before.network.and_then(|network| network.self_).map(|me| me.name);
    let response = connection.call("leave the network", connection.local().leave(LeaveRequest {})).await?;
    output::result(format, &Left { coordinator_told: response.coordinator_told })?;
    // Who was removed is unknown there already.
    if !response.coordinator_told && !removed {
        let name = name.filter(|name| !name.is_empty()).unwrap_or_else(|| "NAME".to_owned());
        output::note(format!(
            "no coordinator could be told; remove this node there: meshctl nodes remove {name}"
        ));
    }
    Ok(())
}
