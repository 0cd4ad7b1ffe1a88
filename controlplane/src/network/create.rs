//! Making a network.

use ringmesh_tunnel::{
    UnixTime,
    key::{NetworkId, NetworkSecret},
    netmap::{Leaf, MerkleTree, Policy, Protocol, Role, Rule, Selector},
};

use super::{
    Change, Plan,
    authority::{Authority, CannotSign, RECORD_LIFE, Signer},
    events::{Happening, Name},
    key::{Key, Part},
    relay,
    row::{self, Blob, NetworkRow, PolicyRow},
};
use crate::{
    config::NetworkConfig,
    store::{Compare, Op},
    vault::Vault,
};

/// Plans a network with new keys, a first secret, a policy that lets its members reach each other, and its relay, if there is to be
/// one.
pub(crate) fn plan(
    config: &NetworkConfig,
    authority: &Authority,
    relay: Option<&relay::Newcomer>,
    vault: &Vault,
    now: UnixTime,
) -> Result<(NetworkId, Change), CannotSign> {
    let root_key = authority.root_key()?;
    let id = NetworkId::of_root(&root_key);
    let network = NetworkRow {
        name: config.name.clone(),
        root_key: Blob(root_key.as_bytes().to_vec()),
        ipv4_pool: config.ipv4_pool.to_string(),
        zone: config.zone.clone(),
        created_ms: now.as_millis(),
    };
    let name = Key::NetworkName(config.name.clone()).to_string();
    let place = Key::Network(id).to_string();
    let mut compare = vec![Compare::absent(&name), Compare::absent(&place)];
    // The network first: what follows belongs to it.
    let mut ops = vec![Op::put(place, row::emit(&network)), Op::put(name, id.to_string().into_bytes())];
    for (signer, key) in authority.iter() {
        let place = Part::Seed(signer).of(id);
        ops.push(Op::put(&place, vault.seal(&place, key.seed())));
        if let Signer::Role(role) = signer {
            let certificate = authority.certify(id, role, 1, now)?;
            ops.push(Op::put(Part::Certificate(role).of(id), certificate.emit()));
        }
    }
    ops.push(epoch(id, 1, &NetworkSecret::generate(), vault));
    ops.push(policy(id, &[members_reach_each_other()], 1, None, authority, now)?);
    let told = Happening::new(id, Name::NetworkCreated)
        .about(id, &config.name)
        .with("ipv4_pool", config.ipv4_pool)
        .with("zone", &config.zone);
    let mut happenings = vec![told];
    if let Some(newcomer) = relay {
        let member = relay::plan_named(id, authority, relay::NAME.into(), newcomer, vault, now)?;
        let (member, told) = member.into_parts();
        compare.extend(member.compare);
        ops.extend(member.ops);
        happenings.extend(told);
    }
    Ok((id, Plan { compare, ops }.tells(happenings)))
}

/// Writes the secret of an epoch.
pub(super) fn epoch(id: NetworkId, number: u64, secret: &NetworkSecret, vault: &Vault) -> Op {
    let place = Part::Epoch(number).of(id);
    let sealed = vault.seal(&place, secret.expose());
    Op::put(place, sealed)
}

/// Writes a policy of these leaves; `version` is the serial with which it came in force, if somebody wrote it.
pub(super) fn policy(
    id: NetworkId,
    leaves: &[Leaf],
    serial: u64,
    version: Option<u64>,
    authority: &Authority,
    now: UnixTime,
) -> Result<Op, CannotSign> {
    let leaves: Vec<Vec<u8>> = leaves.iter().map(Leaf::emit).collect::<Result<_, _>>()?;
    let tree = MerkleTree::new(&leaves);
    let not_after = now.saturating_add(RECORD_LIFE);
    let policy = Policy { network: id, serial, not_after, root: tree.root(), size: tree.size() };
    let signed = authority.sign(Role::Policy, &policy)?;
    let row =
        PolicyRow { policy: Blob::from(&signed), leaves: leaves.into_iter().map(Blob).collect(), version };
    Ok(Op::put(Part::Policy.of(id), row::emit(&row)))
}

fn members_reach_each_other() -> Leaf {
    Leaf::Rule(Rule {
        sources: vec![Selector::All],
        destinations: vec![Selector::All],
        protocol: Protocol::Any,
        ports: Vec::new(),
    })
}
