//! The relay that a coordinator runs for a network: a member with a key of its own, and what it has to know of its clients.
//!
//! It is a member like any other: signed by the admission key, renewed with the rest, told to every node. What differs is that its
//! secret key lies here, wrapped, and that it says where it is without a map stream.

use std::{collections::BTreeMap, net::SocketAddr};

use ringmesh_tunnel::{
    PeerConfig, Psk, UnixTime,
    key::{IdentitySecret, NetworkId, NetworkSecret, NodeId, PublicKey, SecretKey},
    netmap::{Envelope, Member, MemberKind, NodeRecord, Role},
};

use super::{
    Change, Signed,
    authority::{Authority, CannotSign, RECORD_LIFE},
    changes::Item,
    enroll,
    events::Name,
    key::Part,
    map::is_mesh,
    row::{Blob, NodeRow},
    state::NetworkState,
};
use crate::{store::Op, vault::Vault};

/// What the relay is called, unless somebody else is.
pub(super) const NAME: &str = "relay";

/// Who a relay is to be.
#[derive(Debug)]
pub(crate) struct Newcomer {
    id: NodeId,
    key: IdentitySecret,
}

impl Newcomer {
    /// One with a new id and a new key.
    pub(crate) fn generate() -> Self {
        Self { id: NodeId::generate(), key: IdentitySecret::generate() }
    }
}

/// Where a relay can be reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Places {
    /// UDP, most promising first.
    pub(crate) endpoints: Vec<SocketAddr>,
    /// URLs of the WebSocket.
    pub(crate) websockets: Vec<String>,
}

/// Plans the relay of a network that has none.
pub(crate) fn plan(
    state: &NetworkState,
    newcomer: &Newcomer,
    vault: &Vault,
    now: UnixTime,
) -> Result<Change, enroll::Refusal> {
    let name = enroll::free_name(state, NAME)?;
    let (mut plan, told) = plan_named(state.id, &state.authority, name, newcomer, vault, now)?.into_parts();
    plan.compare.extend(state.names_of_policy_unchanged());
    Ok(plan.tells(told))
}

/// Plans the relay of a network that may not be there yet. It has no IPv4 address: nobody talks to it but in sessions, and the
/// pool is for nodes.
pub(super) fn plan_named(
    network: NetworkId,
    authority: &Authority,
    name: String,
    newcomer: &Newcomer,
    vault: &Vault,
    now: UnixTime,
) -> Result<Change, CannotSign> {
    let identity_key = newcomer.key.public_key();
    let member = Member {
        network,
        id: newcomer.id,
        name,
        kind: MemberKind::Mesh,
        relay: true,
        noise_key: identity_key.noise_key(),
        identity_key: Some(identity_key),
        ipv4: None,
        ipv6: newcomer.id.ipv6_in(network.ula()).expect("invariant: a /48 has room for 64 bits"),
        tags: Vec::new(),
        groups: Vec::new(),
        routes: Vec::new(),
        serial: 1,
        not_after: now.saturating_add(RECORD_LIFE),
    };
    let row = NodeRow {
        member: Blob::from(&authority.sign(Role::Admission, &member)?),
        enrolled_ms: now.as_millis(),
        host_name: String::new(),
        os: String::new(),
        version: env!("CARGO_PKG_VERSION").into(),
        ephemeral: false,
        psk: None,
    };
    let mut plan = enroll::admit(&member, &row, 0);
    let place = Part::Relay(member.id).of(network);
    plan.ops.push(Op::put(&place, vault.seal(&place, newcomer.key.seed())));
    Ok(plan.tells([enroll::joined(&member, Name::RelayAdded)]))
}

impl NetworkState {
    /// The relay that coordinators run for this network, with its secret key. Should several have made one at the same time, all run
    /// the same.
    #[must_use]
    pub fn own_relay(&self) -> Option<(NodeId, &IdentitySecret)> {
        self.relays.first_key_value().map(|(id, key)| (*id, key))
    }

    /// Whether a member or an epoch came, went or changed after `since`.
    pub(crate) fn clients_changed(&self, since: u64) -> bool {
        self.changes.since(since).any(|item| matches!(item, Item::Member(_) | Item::Secrets))
    }

    /// Signs where the relay is, with a serial above any that was told.
    pub(crate) fn relay_record(
        &self,
        places: &Places,
        now: UnixTime,
    ) -> Result<Signed<NodeRecord>, CannotSign> {
        let (id, key) = self.own_relay().ok_or(CannotSign::NoRelay)?;
        let told = self.node_records.get(&id).map_or(0, |held| held.record.serial);
        let record = NodeRecord {
            network: self.id,
            id,
            serial: now.as_millis().max(told.saturating_add(1)),
            endpoints: places.endpoints.clone(),
            time: now,
            websockets: places.websockets.clone(),
            ssh: Vec::new(),
        };
        let envelope = Envelope::sign(&record, key)?;
        Ok(Signed::new(record, envelope, 0))
    }
}

/// The clients of a relay as its tunnel takes them, each with the keys of the epochs in force.
///
/// Keys once derived are kept: in a large network they take longer than everything else about a change.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    epochs: Vec<u64>,
    psks: BTreeMap<PublicKey, Psk>,
}

impl Clients {
    /// Every mesh node of `state` that is a member at `now`, but the relay itself, whose secret key is `own`. They have no inner addresses:
    /// a relay takes no packet, it passes on what others sealed.
    pub(crate) fn of(&mut self, state: &NetworkState, own: &SecretKey, now: UnixTime) -> Vec<PeerConfig> {
        let epochs: Vec<u64> = state.secrets.keys().rev().copied().collect();
        if epochs != self.epochs {
            self.psks.clear();
            self.epochs = epochs;
        }
        let own = own.public_key();
        let members = state.nodes.values().map(|node| &node.member.record);
        let clients: Vec<&Member> = members
            .filter(|member| is_mesh(member) && member.not_after > now && member.noise_key != own)
            .collect();
        let mut psks = std::mem::take(&mut self.psks);
        let configs = clients.into_iter().filter_map(|member| {
            let known = psks.remove(&member.noise_key);
            let psk = known.or_else(|| epochs_psk(state, &own, &member.noise_key))?;
            self.psks.insert(member.noise_key, psk.clone());
            Some(client(member, psk))
        });
        configs.collect()
    }
}

fn client(member: &Member, psk: Psk) -> PeerConfig {
    PeerConfig {
        id: member.id,
        key: member.noise_key,
        psk,
        mesh: true,
        allowed_ips: Vec::new(),
        relay: false,
        candidates: Vec::new(),
        links: Vec::new(),
        persistent_keepalive: None,
    }
}

fn epochs_psk(state: &NetworkState, own: &PublicKey, peer: &PublicKey) -> Option<Psk> {
    let derive =
        |(epoch, (secret, _)): (&u64, &(NetworkSecret, _))| secret.derive_psk(state.id, *epoch, own, peer);
    let mut newest = state.secrets.iter().rev().map(derive);
    Some(Psk::Epochs { current: newest.next()?, previous: newest.next() })
}
