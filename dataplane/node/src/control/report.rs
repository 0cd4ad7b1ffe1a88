//! What the node tells of itself for operators to read.

use ringmesh_proto::control::ReportRequest;
use tracing::debug;

use crate::mesh::{Live, Mesh};

/// Sends one report. A report that is lost is followed by another, so failing is only worth a line.
pub(crate) async fn send(mesh: &Mesh, live: Live) {
    let Some(plane) = mesh.plane() else { return };
    let Live { mut client, session } = live;
    let back_end =
        plane.packets().map_or_else(|| "relay".to_owned(), |plane| plane.chosen().back_end.to_string());
    let request = ReportRequest { session, back_end };
    if let Err(status) = client.report(request).await {
        debug!(%status, "a report was not taken");
    }
}
