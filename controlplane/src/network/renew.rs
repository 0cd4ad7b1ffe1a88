//! Signing anew what would expire, at half of its life; and dropping what has been over for long.

use std::time::Duration;

use ringmesh_tunnel::{UnixTime, key::NodeId};

use super::{
    Change, Plan,
    authority::{CERTIFICATE_LIFE, CannotSign, RECORD_LIFE, Signer},
    create,
    key::Part,
    row::{self, Blob, NodeRow},
    state::NetworkState,
    tokens,
};
use crate::store::{Compare, Op};

/// Renewals of one transaction, so that a large network does not hold up those who enrol.
const BATCH: usize = 50;

/// By how much revision and serials rise after a restoration: more than can have been counted since any backup.
pub(crate) const RESTORED_STEP: u64 = 1 << 32;

/// Why something is signed anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// Half of its life is over.
    Due,
    /// The state came from a backup: nodes have seen serials that it does not know of, and take none below.
    Restored,
}

impl Why {
    fn concerns(self, not_after: UnixTime, life: Duration, now: UnixTime) -> bool {
        self == Self::Restored || half_over(not_after, life, now)
    }

    const fn next(self, serial: u64) -> u64 {
        match self {
            Self::Due => serial.saturating_add(1),
            Self::Restored => serial.saturating_add(RESTORED_STEP),
        }
    }
}

/// Plans everything that is to be signed anew at `now`, in pieces that stand alone.
pub(crate) fn plan(state: &NetworkState, why: Why, now: UnixTime) -> Result<Vec<Change>, CannotSign> {
    let mut plans = Vec::new();
    plans.extend(certificates(state, why, now)?);
    plans.extend(policy(state, why, now)?);
    let due: Vec<NodeId> = state
        .nodes
        .values()
        .map(|node| &node.member.record)
        .filter(|m| why.concerns(m.not_after, RECORD_LIFE, now))
        .map(|m| m.id)
        .collect();
    for batch in due.chunks(BATCH) {
        let mut plan = Plan::default();
        for id in batch {
            members(state, *id, why, now, &mut plan)?;
        }
        plans.push(plan);
    }
    plans.extend(old_tokens(state, now));
    // The same is in force before and after.
    let mut changes: Vec<Change> = plans.into_iter().map(Plan::unremarkable).collect();
    changes.extend(state.events.prune(Some(state.id)));
    changes.extend(state.requests.prune(Some(state.id), now));
    Ok(changes)
}

/// Whether less than half of a life is left.
fn half_over(not_after: UnixTime, life: Duration, now: UnixTime) -> bool {
    not_after.saturating_since(now) < life / 2
}

fn certificates(state: &NetworkState, why: Why, now: UnixTime) -> Result<Option<Plan>, CannotSign> {
    let mut plan = Plan::default();
    for (role, held) in &state.certificates {
        if why.concerns(held.record.not_after, CERTIFICATE_LIFE, now)
            && state.authority.key(Signer::Root).is_ok()
        {
            let place = Part::Certificate(*role).of(state.id);
            let renewed = state.authority.certify(state.id, *role, why.next(held.record.serial), now)?;
            plan.compare.push(Compare::unchanged(&place, held.revision));
            plan.ops.push(Op::put(place, renewed.emit()));
        }
    }
    Ok((!plan.ops.is_empty()).then_some(plan))
}

fn policy(state: &NetworkState, why: Why, now: UnixTime) -> Result<Option<Plan>, CannotSign> {
    let Some(policy) = &state.policy else { return Ok(None) };
    let held = &policy.signed;
    if !why.concerns(held.record.not_after, RECORD_LIFE, now) {
        return Ok(None);
    }
    let leaves: Vec<_> = policy.leaves.iter().map(|held| held.leaf.clone()).collect();
    let serial = why.next(held.record.serial);
    let op = create::policy(state.id, &leaves, serial, policy.version, &state.authority, now)?;
    Ok(Some(Plan {
        compare: vec![Compare::unchanged(Part::Policy.of(state.id), held.revision)],
        ops: vec![op],
    }))
}

fn members(
    state: &NetworkState,
    id: NodeId,
    why: Why,
    now: UnixTime,
    plan: &mut Plan,
) -> Result<(), CannotSign> {
    let Some(node) = state.nodes.get(&id) else { return Ok(()) };
    let mut member = node.member.record.clone();
    member.serial = why.next(member.serial);
    member.not_after = now.saturating_add(RECORD_LIFE);
    let signed = state.authority.sign(ringmesh_tunnel::netmap::Role::Admission, &member)?;
    let row = NodeRow { member: Blob::from(&signed), ..node.row.clone() };
    let place = Part::Node(id).of(state.id);
    plan.compare.push(Compare::unchanged(&place, node.member.revision));
    plan.ops.push(Op::put(place, row::emit(&row)));
    Ok(())
}

/// Tokens whose end is long past, so that their number stays bounded.
fn old_tokens(state: &NetworkState, now: UnixTime) -> Option<Plan> {
    let over = |expires_ms| row::time(expires_ms).saturating_add(tokens::REMEMBERED) <= now;
    let old = state.tokens.iter().filter(|(_, token)| over(token.row.expires_ms)).take(BATCH);
    let mut plan = Plan::default();
    for (id, token) in old {
        let place = Part::Token(*id).of(state.id);
        plan.compare.push(Compare::unchanged(&place, token.revision));
        plan.ops.push(Op::delete(place));
    }
    (!plan.ops.is_empty()).then_some(plan)
}
