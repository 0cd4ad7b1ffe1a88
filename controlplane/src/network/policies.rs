//! Policies as operators apply them: what is written when one comes in force, and which earlier ones are kept.
//!
//! A policy comes in force in one transaction: its signed leaves, the text it was compiled from, and anew signed records of the
//! members whose groups it changes. So at no moment do rules of one policy meet groups of another.

use std::collections::BTreeMap;

use ringmesh_tunnel::{
    UnixTime,
    key::NodeId,
    netmap::{Leaf, Role},
};

use super::{
    Change, Plan,
    authority::CannotSign,
    create,
    events::{Happening, Name, RESERVED},
    key::Part,
    row::{self, Blob, NodeRow, PolicyVersionRow},
    state::{HeldLeaf, NetworkState, PolicyVersion},
};
use crate::{
    policy::FIRST,
    store::{Compare, MAX_OPS, MAX_VALUE, Op, Revision},
};

/// How many of the policies applied so far are kept, the one in force included.
pub(crate) const KEPT: usize = 100;
/// The longest comment, in bytes.
pub(crate) const COMMENT_MAX: usize = 200;

/// A compiled policy that shall come in force.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wish<'a> {
    pub(crate) leaves: &'a [Leaf],
    /// The groups of every member that has any.
    pub(crate) groups: &'a BTreeMap<NodeId, Vec<String>>,
    pub(crate) rules: u32,
    pub(crate) text: &'a str,
    /// A user of the coordinator's machine, or an API key.
    pub(crate) by: &'a str,
    pub(crate) comment: &'a str,
    /// The revision of the policy that must be in force; 0: any.
    pub(crate) base: Revision,
    /// The revision of the earlier policy whose text it is; 0: of none.
    pub(crate) back_to: Revision,
}

/// Operations of a change that are left to a policy.
const ROOM: usize = MAX_OPS - RESERVED;

/// Why a policy does not come in force, or is not found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(
        "the policy was changed meanwhile: the one in force is of r{in_force}, and this one was made from r{base}; look at the \
         difference (meshctl policy show, meshctl policy plan) and apply again"
    )]
    Conflict { base: Revision, in_force: Revision },
    #[error("there is no policy of r{0}, or no longer; see: meshctl policy history")]
    Unknown(Revision),
    #[error("there is no earlier policy to go back to; see: meshctl policy history")]
    NoEarlier,
    #[error(
        "before the policy in force there was only the one that the network was made with (r{first}), by which all members reach each \
         other; if that is meant, say so: name its revision ({first}), or that of the policy in force as base_revision ({in_force})"
    )]
    BackToFirst { first: Revision, in_force: Revision },
    #[error(
        "compiled, the policy has {size} bytes, and at most {MAX_VALUE} can be stored; name groups and ranges instead of many single \
         members and addresses"
    )]
    TooLarge { size: usize },
    #[error(
        "the policy changes the groups of {members} members at once, and at most {most} can change in one step; apply it in several \
         steps, each with a part of the groups"
    )]
    TooManyMembers { members: usize, most: usize },
    #[error(
        "{0:?} is the name of a member by now, and it cannot be a name of the policy as well: choose another one in [names], or remove \
         the member (meshctl nodes remove)"
    )]
    NameOfMember(String),
    #[error(
        "the policy has {names} new names, and at most {most} can come in one step; apply it in several steps, each with a part of them"
    )]
    TooManyNames { names: usize, most: usize },
    #[error("a comment has at most {COMMENT_MAX} bytes and no control characters")]
    Comment,
    #[error(transparent)]
    CannotSign(#[from] CannotSign),
}

/// Plans that a policy comes in force, with its serial; `None` if it means what is in force already, and somebody wrote that.
pub(crate) fn plan(
    state: &NetworkState,
    wish: &Wish<'_>,
    now: UnixTime,
) -> Result<Option<(u64, Change)>, Refusal> {
    check_comment(wish.comment)?;
    let in_force = state.policy_revision();
    if wish.base != 0 && wish.base != in_force {
        return Err(Refusal::Conflict { base: wish.base, in_force });
    }
    // It was compiled before this turn, and a member may have joined since.
    let records = || {
        wish.leaves.iter().filter_map(|leaf| match leaf {
            Leaf::Name(record) => Some(&record.name),
            Leaf::Rule(_) => None,
        })
    };
    if let Some(taken) = records().find(|name| state.names.contains_key(*name)) {
        return Err(Refusal::NameOfMember(taken.clone()));
    }
    let regrouped = regrouped(state, wish.groups);
    let held = state.policy.as_ref();
    let leaves = held.map_or(&[][..], |policy| &policy.leaves);
    let same = leaves.iter().map(|held| &held.leaf).eq(wish.leaves);
    if same && regrouped.is_empty() && state.policy_in_force().is_some() {
        return Ok(None);
    }
    let serial = held.map_or(1, |policy| policy.signed.record.serial.saturating_add(1));
    let place = Part::Policy.of(state.id);
    let mut plan = Plan {
        compare: vec![Compare::unchanged(place, held.map_or(0, |policy| policy.signed.revision))],
        ops: vec![create::policy(state.id, wish.leaves, serial, Some(serial), &state.authority, now)?],
    };
    // Nor may one join through another coordinator at this moment. Names of several labels are nobody's, and those that are in
    // force are kept from members already.
    let labels = records().filter(|name| !name.contains('.') && !state.is_name_of_policy(name));
    plan.compare.extend(labels.map(|name| Compare::absent(Part::Name(name.clone()).of(state.id))));
    if plan.compare.len() > ROOM {
        return Err(Refusal::TooManyNames { names: plan.compare.len(), most: ROOM });
    }
    let version = PolicyVersionRow {
        text: wish.text.into(),
        applied_ms: now.as_millis(),
        applied_by: wish.by.into(),
        comment: wish.comment.into(),
        rules: wish.rules,
    };
    plan.ops.push(Op::put(Part::PolicyVersion(serial).of(state.id), row::emit(&version)));
    let too_many = state.policies.len().saturating_sub(KEPT - 1);
    plan.ops.extend(
        state.policies.keys().take(too_many).map(|old| Op::delete(Part::PolicyVersion(*old).of(state.id))),
    );
    let most = ROOM.saturating_sub(plan.ops.len().max(plan.compare.len()));
    if regrouped.len() > most {
        return Err(Refusal::TooManyMembers { members: regrouped.len(), most });
    }
    for (id, groups) in regrouped {
        regroup(state, id, groups, &mut plan)?;
    }
    let largest =
        plan.ops.iter().map(|op| if let Op::Put { value, .. } = op { value.len() } else { 0 }).max();
    match largest {
        Some(size) if size > MAX_VALUE => Err(Refusal::TooLarge { size }),
        _ => {
            // What it is about is the revision that the commit will have.
            let mut told = Happening::new(state.id, Name::PolicyApplied)
                .with("serial", serial)
                .with("rules", wish.rules)
                .with("comment", wish.comment);
            if wish.back_to != 0 {
                told = told.with("back_to", wish.back_to);
            }
            Ok(Some((serial, plan.tells([told]))))
        }
    }
}

fn check_comment(comment: &str) -> Result<(), Refusal> {
    let fits = comment.len() <= COMMENT_MAX && !comment.chars().any(char::is_control);
    if fits { Ok(()) } else { Err(Refusal::Comment) }
}

/// The members whose groups are to be others, with those.
fn regrouped<'a>(
    state: &NetworkState,
    groups: &'a BTreeMap<NodeId, Vec<String>>,
) -> Vec<(NodeId, &'a [String])> {
    let wanted = |id: &NodeId| groups.get(id).map_or(&[][..], Vec::as_slice);
    let members = state.nodes.iter().map(|(id, node)| (*id, &node.member.record.groups, wanted(id)));
    members.filter(|(_, held, wanted)| held != wanted).map(|(id, _, wanted)| (id, wanted)).collect()
}

fn regroup(state: &NetworkState, id: NodeId, groups: &[String], plan: &mut Plan) -> Result<(), CannotSign> {
    let Some(node) = state.nodes.get(&id) else { return Ok(()) };
    let mut member = node.member.record.clone();
    member.groups = groups.to_vec();
    member.serial = member.serial.saturating_add(1);
    let row =
        NodeRow { member: Blob::from(&state.authority.sign(Role::Admission, &member)?), ..node.row.clone() };
    let place = Part::Node(id).of(state.id);
    plan.compare.push(Compare::unchanged(&place, node.member.revision));
    plan.ops.push(Op::put(place, row::emit(&row)));
    Ok(())
}

impl NetworkState {
    /// The policy that came in force with the commit `revision`; 0: the one in force. `None`: the network's first, which has no text.
    pub(crate) fn policy_at(&self, revision: Revision) -> Result<Option<(u64, &PolicyVersion)>, Refusal> {
        if revision == 0 || revision == self.policy_revision() {
            let version = self.policy.as_ref().and_then(|policy| policy.version);
            return Ok(version.and_then(|serial| Some((serial, self.policies.get(&serial)?))));
        }
        if revision == self.made {
            return Ok(None);
        }
        let mut versions = self.policies.iter();
        let found = versions.find(|(_, version)| version.revision == revision);
        found.map(|(serial, version)| Some((*serial, version))).ok_or(Refusal::Unknown(revision))
    }

    /// What a node is called, for rules as people read them.
    pub(crate) fn name_of(&self, id: NodeId) -> Option<&str> {
        self.member(id).map(|member| member.name.as_str())
    }

    /// What to go back to: the text and revision of the policy of `revision`; 0: of the one before the one in force.
    pub(crate) fn policy_before(&self, revision: Revision) -> Result<(&str, Revision), Refusal> {
        let found = if revision == 0 {
            let in_force =
                self.policy.as_ref().and_then(|policy| policy.version).ok_or(Refusal::NoEarlier)?;
            let earlier = self.policies.range(..in_force).next_back().map(|(_, version)| version);
            if earlier.is_none() && self.policies.len() >= KEPT {
                // Older ones were forgotten; it was not the first.
                return Err(Refusal::NoEarlier);
            }
            earlier
        } else {
            self.policy_at(revision)?.map(|(_, version)| version)
        };
        Ok(found.map_or((FIRST, self.made), |version| (&version.row.text, version.revision)))
    }

    /// As [`policy_before`](Self::policy_before), for a caller who takes `base` for the revision of the policy in force; 0: who did not
    /// look. That all members reach each other again is nothing that happens to somebody who only meant the last change.
    pub(crate) fn policy_to_go_back_to(
        &self,
        revision: Revision,
        base: Revision,
    ) -> Result<(&str, Revision), Refusal> {
        let in_force = self.policy_revision();
        if base != 0 && base != in_force {
            return Err(Refusal::Conflict { base, in_force });
        }
        let (text, to) = self.policy_before(revision)?;
        if to == self.made && revision == 0 && base == 0 {
            return Err(Refusal::BackToFirst { first: self.made, in_force });
        }
        Ok((text, to))
    }
}

/// The number by which traces and counters name a rule, from 1 on: its place among the rules.
pub(crate) fn number_of(leaves: &[HeldLeaf], place: u64) -> usize {
    let upto = usize::try_from(place).map_or(leaves.len(), |place| place.saturating_add(1));
    leaves.iter().take(upto).filter(|held| held.rule().is_some()).count()
}
