//! From the verified map to what the data plane needs: who are the peers, by which keys, addresses and candidates.

use ringmesh_tunnel::{
    PeerConfig, Psk,
    ip::Prefix,
    key::PublicKey,
    netmap::{Member, MemberKind, NetworkMap, candidate_is_allowed},
    time::UnixTime,
};
use tracing::warn;

use crate::state::Secrets;

/// The peers in force at `now`, whose candidates lie outside `pools`. A member for whom no pre-shared key is known is left
/// out: it is never reached without one.
pub(crate) fn of_map(
    map: &NetworkMap,
    secrets: &Secrets,
    own: &PublicKey,
    pools: &[Prefix],
    now: UnixTime,
) -> Vec<PeerConfig> {
    map.peers(now).filter_map(|member| peer(map, secrets, own, pools, member)).collect()
}

/// Whether a pre-shared key for this member is known; without one it is no peer.
pub(crate) fn has_key(secrets: &Secrets, member: &Member) -> bool {
    match member.kind {
        MemberKind::Mesh => secrets.epoch() != 0,
        MemberKind::Stock => secrets.peer_psk(member.id).is_some(),
    }
}

fn psk(map: &NetworkMap, secrets: &Secrets, own: &PublicKey, member: &Member) -> Option<Psk> {
    match member.kind {
        MemberKind::Mesh => secrets.epochs_psk(map.network(), own, &member.noise_key),
        MemberKind::Stock => secrets.peer_psk(member.id).map(Psk::Fixed),
    }
}

fn peer(
    map: &NetworkMap,
    secrets: &Secrets,
    own: &PublicKey,
    pools: &[Prefix],
    member: &Member,
) -> Option<PeerConfig> {
    let Some(psk) = psk(map, secrets, own, member) else {
        warn!(peer = %member.id, name = member.name, "no pre-shared key for this peer yet; it stays unreachable");
        return None;
    };
    // The peer says where it is, so it could have us send to somebody else.
    let said = map.node_record(member.id).map(|record| record.endpoints.as_slice()).unwrap_or_default();
    let candidates = said.iter().copied().filter(|address| candidate_is_allowed(*address, pools)).collect();
    Some(PeerConfig {
        id: member.id,
        key: member.noise_key,
        psk,
        mesh: member.kind == MemberKind::Mesh,
        allowed_ips: member.allowed_ips().collect(),
        candidates,
        links: Vec::new(),
        relay: false,
        persistent_keepalive: None,
    })
}
