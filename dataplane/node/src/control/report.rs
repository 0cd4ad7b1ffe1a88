//! What the node tells of itself for operators to read.

use ringmesh_proto::control::{PeerReport, ReportRequest};
use ringmesh_tunnel::{PeerState, PeerStatus};
use tracing::debug;

use crate::mesh::{Live, Mesh};

/// Peers that a report names: with more it would not fit into what a coordinator reads.
const MAX_PEERS: usize = 1000;

/// Sends one report. A report that is lost is followed by another, so failing is only worth a line.
pub(crate) async fn send(mesh: &Mesh, live: Live) {
    let Some(plane) = mesh.plane() else { return };
    let Ok(report) = plane.report().await else { return };
    let Live { mut client, session } = live;
    let chosen = plane.chosen();
    let request = ReportRequest {
        session,
        back_end: chosen.back_end.to_string(),
        back_end_reason: chosen.reason.clone(),
        durable: mesh.held().installed,
        peers: report.peers.iter().take(MAX_PEERS).map(peer_report).collect(),
    };
    if let Err(status) = client.report(request).await {
        debug!(%status, "a report was not taken");
    }
}

fn peer_report(peer: &PeerStatus) -> PeerReport {
    let path = match (peer.state, peer.endpoint) {
        (PeerState::Established, Some(_)) => "direct",
        _ => "none",
    };
    PeerReport {
        node_id: peer.id.as_bytes().to_vec(),
        path: path.to_owned(),
        sent_bytes: peer.sent_bytes,
        received_bytes: peer.received_bytes,
        rtt_us: peer.rtt.map_or(0, |rtt| u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX)),
    }
}
