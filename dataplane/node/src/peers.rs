//! From the verified map to what the data plane needs: who are the peers, by which keys, addresses and candidates.

use std::time::Duration;

use ringmesh_tunnel::{
    PeerConfig, Psk,
    key::PublicKey,
    netmap::{Member, MemberKind, NetworkMap},
    time::UnixTime,
};
use tracing::warn;

use crate::state::Secrets;

/// The peers in force at `now`. A member for whom no pre-shared key is known is left out: it is never reached without one.
pub(crate) fn of_map(map: &NetworkMap, secrets: &Secrets, own: &PublicKey, now: UnixTime) -> Vec<PeerConfig> {
    map.peers(now).filter_map(|member| peer(map, secrets, own, member)).collect()
}

fn peer(map: &NetworkMap, secrets: &Secrets, own: &PublicKey, member: &Member) -> Option<PeerConfig> {
    let mesh = match member.kind {
        MemberKind::Mesh => true,
        MemberKind::Stock => false,
    };
    let psk = if mesh {
        secrets.epochs_psk(map.network(), own, &member.noise_key)
    } else {
        secrets.peer_psk(member.id).map(Psk::Fixed)
    };
    let Some(psk) = psk else {
        warn!(peer = %member.id, name = member.name, "no pre-shared key for this peer yet; it stays unreachable");
        return None;
    };
    let candidates = map.node_record(member.id).map(|record| record.endpoints.clone()).unwrap_or_default();
    Some(PeerConfig {
        id: member.id,
        key: member.noise_key,
        psk,
        mesh,
        allowed_ips: member.allowed_ips().collect(),
        candidates,
        persistent_keepalive: None,
    })
}

/// How long until the set of peers changes by itself because something expires; at most `most`.
pub(crate) fn until_next_expiry(map: &NetworkMap, now: UnixTime, most: Duration) -> Duration {
    map.next_expiry(now).map_or(most, |end| end.saturating_since(now).min(most))
}
