//! Adding stock devices and removing members.

use std::net::IpAddr;

use ringmesh_tunnel::{
    UnixTime,
    ip::Prefix,
    key::{NetworkSecret, NodeId, PresharedKey, PublicKey, SecretKey},
    netmap::{Leaf, Member, MemberKind, NameRecord, Role},
};

use super::{
    Change, Plan,
    authority::{CannotSign, RECORD_LIFE},
    create, enroll,
    events::{Happening, Name},
    key::{Key, Part},
    map::is_mesh,
    pool,
    renew::RESTORED_STEP,
    row::{self, AddressRow, Blob, NodeRow, RemovedRow},
    state::NetworkState,
};
use crate::{
    store::{Compare, Op},
    vault::Vault,
};

/// Why a member cannot be added or removed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("there is no node {} in this network; see: meshctl nodes list", enroll::quoted(.0))]
    Unknown(String),
    #[error("the public key cannot be used: {0}")]
    Key(&'static str),
    #[error(transparent)]
    Enroll(#[from] enroll::Refusal),
}

impl From<CannotSign> for Refusal {
    fn from(error: CannotSign) -> Self {
        Self::Enroll(error.into())
    }
}

/// Plans a stock WireGuard device: its key is all it has, and one random pre-shared key is for all its peers.
pub(crate) fn plan_stock(
    state: &NetworkState,
    name: &str,
    noise_key: PublicKey,
    id: NodeId,
    psk: &PresharedKey,
    vault: &Vault,
    now: UnixTime,
) -> Result<(NodeRow, Change), Refusal> {
    if SecretKey::generate().agree(&noise_key).is_none() {
        return Err(Refusal::Key("it is of low order; generate one with: wg genkey | wg pubkey"));
    }
    if state.noise_keys.contains_key(&noise_key) {
        return Err(enroll::Refusal::KeyTaken.into());
    }
    enroll::check_name(state, name)?;
    let exhausted = |pool: Prefix| Refusal::Enroll(enroll::Refusal::PoolExhausted(pool));
    let (ipv4, former) =
        pool::choose(state.ipv4_pool, &state.addresses, now).ok_or_else(|| exhausted(state.ipv4_pool))?;
    let member = Member {
        network: state.id,
        id,
        name: name.into(),
        kind: MemberKind::Stock,
        relay: false,
        noise_key,
        identity_key: None,
        ipv4: Some(ipv4),
        ipv6: id.ipv6_in(state.ipv6_pool()).ok_or_else(|| exhausted(state.ipv6_pool()))?,
        tags: Vec::new(),
        groups: Vec::new(),
        routes: Vec::new(),
        serial: 1,
        not_after: now.saturating_add(RECORD_LIFE),
    };
    let wrapped = vault.seal(&Key::psk(state.id, id), psk.expose());
    let row = NodeRow {
        member: Blob::from(&state.authority.sign(Role::Admission, &member)?),
        enrolled_ms: now.as_millis(),
        host_name: String::new(),
        os: String::new(),
        version: String::new(),
        ephemeral: false,
        psk: Some(Blob(wrapped)),
    };
    let mut plan = enroll::admit(&member, &row, former);
    plan.compare.extend(state.names_of_policy_unchanged());
    let told = enroll::joined(&member, Name::StockDeviceAdded);
    Ok((row, plan.tells([told])))
}

/// Plans a removal: the name becomes free, the address rests, the key never comes back, and what the member knew of the
/// network's secret is worth nothing from now on. `name` is whether it was removed or left.
pub(crate) fn plan_removal(
    state: &NetworkState,
    id: NodeId,
    name: Name,
    vault: &Vault,
    now: UnixTime,
) -> Result<Change, Refusal> {
    let node = state.nodes.get(&id).ok_or_else(|| Refusal::Unknown(id.to_string()))?;
    let member = &node.member.record;
    let at = |part: Part| part.of(state.id);
    let place = at(Part::Node(id));
    let removed = RemovedRow {
        name: member.name.clone(),
        identity_key: member.identity_key.map(|key| Blob(key.as_bytes().to_vec())),
        removed_ms: now.as_millis(),
    };
    let mut plan = Plan {
        compare: vec![Compare::unchanged(&place, node.member.revision)],
        ops: vec![
            Op::delete(place),
            Op::delete(at(Part::Name(member.name.clone()))),
            Op::put(at(Part::Removed(id)), row::emit(&removed)),
        ],
    };
    if let Some(ipv4) = member.ipv4 {
        let row = AddressRow { node: id.to_string(), released_ms: Some(now.as_millis()) };
        plan.ops.push(Op::put(at(Part::Ipv4(ipv4)), row::emit(&row)));
    }
    if state.relays.contains_key(&id) {
        plan.ops.push(Op::delete(at(Part::Relay(id))));
    }
    let names = drop_names(state, member, now, &mut plan);
    let told = Happening::new(state.id, name)
        .about(id, &member.name)
        .with("kind", if is_mesh(member) { "mesh" } else { "stock" })
        .with("ipv4", member.ipv4.map(|address| address.to_string()).unwrap_or_default())
        .with("ipv6", member.ipv6)
        .with("policy_names", names.join(", "));
    let mut happenings = vec![told];
    // A stock device never knew the network's secret.
    if is_mesh(member) {
        let because = format!("{} {id}", name.as_str());
        happenings.extend(begin_epoch(state, vault, 1, &because, &mut plan));
    }
    Ok(plan.tells(happenings))
}

/// Takes the own addresses of a member that goes out of the policy's names, and names that lead nowhere without them: whoever gets the
/// address after it would inherit the name. The file stays as it was written. Returns the names.
fn drop_names(state: &NetworkState, member: &Member, now: UnixTime, plan: &mut Plan) -> Vec<String> {
    let Some(policy) = &state.policy else { return Vec::new() };
    let is_own = |address: &IpAddr| member.ipv4.is_some_and(|own| *address == own) || *address == member.ipv6;
    let led_there = state.names_of_policy().filter(|record| record.addresses.iter().any(is_own));
    let names: Vec<String> = led_there.map(|record| record.name.clone()).collect();
    if names.is_empty() {
        return names;
    }
    let without = |leaf: &Leaf| match leaf {
        Leaf::Rule(_) => Some(leaf.clone()),
        Leaf::Name(record) => {
            let addresses: Vec<IpAddr> =
                record.addresses.iter().filter(|address| !is_own(address)).copied().collect();
            (!addresses.is_empty()).then(|| Leaf::Name(NameRecord { name: record.name.clone(), addresses }))
        }
    };
    // Rules come before names, so that none gets another place.
    let leaves: Vec<Leaf> = policy.leaves.iter().filter_map(|held| without(&held.leaf)).collect();
    let serial = policy.signed.record.serial.saturating_add(1);
    match create::policy(state.id, &leaves, serial, policy.version, &state.authority, now) {
        Ok(op) => {
            let held = policy.signed.revision;
            plan.compare.push(Compare::unchanged(Part::Policy.of(state.id), held));
            plan.ops.push(op);
            names
        }
        // A removal does not wait for a key.
        Err(error) => {
            tracing::warn!(
                event = "policy_names_removed_node", node = %member.id,
                %error,
                "names of the policy still lead to a member that was removed: apply the policy without them"
            );
            Vec::new()
        }
    }
}

/// Plans an epoch beyond any that was in force after the backup from which the state came: nodes take none below.
pub(crate) fn plan_restored_epoch(state: &NetworkState, vault: &Vault) -> Change {
    let mut plan = Plan::default();
    let epoch = begin_epoch(state, vault, RESTORED_STEP, Name::StateRestored.as_str(), &mut plan);
    let told = Happening::new(state.id, Name::StateRestored).about(state.id, &state.name);
    plan.tells([told].into_iter().chain(epoch))
}

/// Begins the epoch of the network secret that is `step` after the present one, and ends the one before the present one.
fn begin_epoch(
    state: &NetworkState,
    vault: &Vault,
    step: u64,
    because: &str,
    plan: &mut Plan,
) -> Option<Happening> {
    let (current, (_, revision)) = state.secrets.last_key_value()?;
    let at = |epoch| Part::Epoch(epoch).of(state.id);
    plan.compare.push(Compare::unchanged(at(*current), *revision));
    let next = current.saturating_add(step);
    plan.ops.push(create::epoch(state.id, next, &NetworkSecret::generate(), vault));
    let ended = state.secrets.keys().filter(|epoch| *epoch < current);
    plan.ops.extend(ended.map(|epoch| Op::delete(at(*epoch))));
    let told = Happening::new(state.id, Name::EpochStarted).about(state.id, &state.name);
    Some(told.with("epoch", next).with("because", because))
}
