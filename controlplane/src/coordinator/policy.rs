//! What operators do with policies: plan, apply, go back, look.
//!
//! Reading and compiling a file take as long as the file and the network are large, so they run on a thread of their own, on a copy of
//! the members. What was compiled comes in force only if the members are still those.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use ringmesh_tunnel::{
    key::{NetworkId, NodeId},
    netmap::{Member, NameRecord, Rule},
};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use super::{Coordinator, Done, MAX_TRIES, answers::AppliedPolicy};
use crate::{
    auth::{Authed, MayLook, NodeOf, Operator},
    error::Refused,
    network::{
        NetworkState, Plan, Registry,
        events::Origin,
        policies::{self, Wish},
        requests::Request,
        trace::{Question, Standing, Trace},
    },
    policy::{self, Allowances, Compiled, Problem, Roster},
    store::Revision,
};

/// A policy that shall come in force.
#[derive(Debug)]
pub(crate) struct Proposal {
    pub(crate) text: Arc<str>,
    /// The revision of the policy that must be in force; 0: any.
    pub(crate) base: Revision,
    pub(crate) comment: String,
    /// The revision of the earlier policy whose text it is; 0: of none.
    pub(crate) back_to: Revision,
}

/// What became of a policy that was to come in force.
#[derive(Debug)]
pub(crate) struct Applied {
    /// The revision of the policy in force now.
    pub(crate) revision: Revision,
    pub(crate) serial: u64,
    /// Whether another one was in force before.
    pub(crate) changed: bool,
    pub(crate) warnings: Vec<Problem>,
    /// When it was committed; if it was in force already, when that was found.
    pub(crate) at: Instant,
}

impl From<Done<AppliedPolicy>> for Applied {
    fn from(done: Done<AppliedPolicy>) -> Self {
        let AppliedPolicy { former, serial, warnings } = done.value;
        let revision = former.unwrap_or(done.revision);
        Self { revision, serial, changed: former.is_none(), warnings, at: done.at }
    }
}

/// What a policy would change.
#[derive(Debug)]
pub(crate) struct Forecast {
    /// What is wrong with the file, or worth knowing.
    pub(crate) problems: Vec<Problem>,
    /// `None`: it has an error.
    pub(crate) changes: Option<policy::Plan>,
    /// The names that would lead elsewhere, be there or be gone, in their order.
    pub(crate) names: Vec<NameChange>,
    pub(crate) tests: u32,
    pub(crate) rules: u32,
    /// The revision of the policy that it was compared with.
    pub(crate) base: Revision,
    /// The members that it was compiled for.
    pub(crate) members: Vec<Member>,
}

/// A name below the zone that a policy would change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NameChange {
    pub(crate) name: String,
    /// What it leads to now; empty: it is not there.
    pub(crate) before: Vec<IpAddr>,
    /// What it would lead to; empty: it would be gone.
    pub(crate) after: Vec<IpAddr>,
}

impl Coordinator {
    /// Puts a policy in force.
    ///
    /// # Errors
    /// If anything is wrong with it, or another policy than that of its base is in force.
    pub(crate) async fn apply_policy(
        &self,
        by: &Authed<Operator>,
        network: NetworkId,
        proposal: Proposal,
        request: Option<Request>,
    ) -> Result<Applied, Refused> {
        let origin = self.origin(by, request).await;
        match self.recall::<AppliedPolicy>(&origin, Some(network))? {
            Some(done) => Ok(done.into()),
            None => self.apply(&origin, network, proposal).await,
        }
    }

    async fn apply(
        &self,
        origin: &Origin,
        network: NetworkId,
        proposal: Proposal,
    ) -> Result<Applied, Refused> {
        let Proposal { text, base, comment, back_to } = proposal;
        for attempt in 0..MAX_TRIES {
            // Members who come and go may make what was compiled stale each time; they wait if that goes on.
            let permit = self.permit().await?;
            let turn = if attempt < FREE_TRIES { None } else { Some(self.0.turn.lock().await) };
            let (roster, at) = self.with_network(network, |state| (roster(state), state.roster))?;
            let compiled = compile(permit, text.clone(), roster).await?;
            let wish = Wish {
                leaves: &compiled.leaves,
                groups: &compiled.groups,
                rules: compiled.rules,
                text: &text,
                by: &origin.actor.name,
                comment: &comment,
                base,
                back_to,
            };
            let plan = |registry: &Registry, now| {
                let state = registry.network(network).ok_or(Refused::NetworkUnknown)?;
                if state.roster != at {
                    // Its names may mean somebody else by now.
                    return Ok((None, None));
                }
                let warnings = compiled.warnings.clone();
                let (former, serial, change) = match policies::plan(state, &wish, now)? {
                    Some((serial, change)) => (None, serial, change),
                    None => {
                        let serial = state.policy.as_ref().map(|policy| policy.signed.record.serial);
                        // Nothing changes; that it was asked is remembered all the same.
                        let nothing = Plan::default().unremarkable();
                        (Some(state.policy_revision()), serial.unwrap_or_default(), nothing)
                    }
                };
                Ok::<_, Refused>((Some(AppliedPolicy { former, serial, warnings }), Some(change)))
            };
            let turn = match turn {
                Some(turn) => turn,
                None => self.0.turn.lock().await,
            };
            let done = self.transact_once_in(&turn, origin, Some(network), plan).await?;
            drop(turn);
            let Done { value: Some(applied), revision, at, repeated } = done else { continue };
            let applied = Applied::from(Done { value: applied, revision, at, repeated });
            if applied.changed && !repeated {
                let Applied { revision, serial, .. } = applied;
                let by = &origin.actor.name;
                tracing::info!(event = "policy_applied", %network, revision, serial, rules = compiled.rules, by, "a policy came in force");
            }
            return Ok(applied);
        }
        Err(Refused::Contended)
    }

    /// Puts the text of an earlier policy in force again; 0: that of the one before. `base` is the revision of the policy that must be
    /// in force; 0: the one that is when this is decided.
    ///
    /// # Errors
    /// If there is no such policy, its text does not compile any more, another policy is in force, or it would be the network's first
    /// and the caller shows by nothing that he knows.
    pub(crate) async fn rollback_policy(
        &self,
        by: &Authed<Operator>,
        network: NetworkId,
        revision: Revision,
        base: Revision,
        request: Option<Request>,
    ) -> Result<Applied, Refused> {
        let origin = self.origin(by, request).await;
        if let Some(done) = self.recall::<AppliedPolicy>(&origin, Some(network))? {
            return Ok(done.into());
        }
        let (text, to, base) = self.with_network(network, |state| {
            let (text, to) = state.policy_to_go_back_to(revision, base)?;
            // "The one before" means something only while the one in force stays.
            let base = if base == 0 && revision == 0 { state.policy_revision() } else { base };
            Ok::<_, Refused>((text.into(), to, base))
        })??;
        let proposal = Proposal { text, base, comment: format!("back to r{to}"), back_to: to };
        let applied = self.apply(&origin, network, proposal).await;
        applied.map_err(|refused| {
            if let Refused::Policy(problems) = refused { Refused::Rollback { to, problems } } else { refused }
        })
    }

    /// Says what is wrong with a policy file and what it would change, and changes nothing.
    pub(crate) async fn plan_policy(
        &self,
        _by: &Authed<impl MayLook>,
        network: NetworkId,
        text: String,
        most: usize,
    ) -> Result<Forecast, Refused> {
        let (roster, rules, names, base) = self.with_network(network, |state| {
            let rules: Vec<Rule> = state.rules().map(|(_, rule)| rule.clone()).collect();
            let names: Vec<NameRecord> = state.names_of_policy().cloned().collect();
            (roster(state), rules, names, state.policy_revision())
        })?;
        let permit = self.permit().await?;
        blocking(move || {
            let _permit = permit;
            let compiled = match check(&text, &roster) {
                Ok(compiled) => compiled,
                Err(problems) => {
                    let (members, names) = (roster.members, Vec::new());
                    return Forecast { problems, changes: None, names, tests: 0, rules: 0, base, members };
                }
            };
            let (members, after) = (compiled.members(&roster), compiled.rules().cloned().collect::<Vec<_>>());
            let before = Allowances { members: &roster.members, rules: &rules };
            let after = Allowances { members: &members, rules: &after };
            let changes = Some(policy::compare(&before, &after, most));
            let names = renamed(&names, compiled.names());
            let Compiled { warnings: problems, tests, rules, .. } = compiled;
            Forecast { problems, changes, names, tests, rules, base, members }
        })
        .await
    }

    /// The rules of an earlier policy by the members of now, or why its text means nothing any more.
    pub(crate) async fn rules_of(
        &self,
        network: NetworkId,
        text: String,
    ) -> Result<Result<Vec<Rule>, String>, Refused> {
        let roster = self.with_network(network, roster)?;
        let permit = self.permit().await?;
        let compiled = blocking(move || {
            let _permit = permit;
            check(&text, &roster)
        })
        .await?;
        Ok(compiled.map(|compiled| compiled.rules().cloned().collect()).map_err(|problems| list(&problems)))
    }

    /// Follows a packet from one member to another.
    pub(crate) fn trace(
        &self,
        _by: &Authed<impl MayLook>,
        network: NetworkId,
        question: &Question,
    ) -> Result<Trace, Refused> {
        let now = self.now();
        self.with_network(network, |state| {
            let standing = |node: NodeId| match self.relay_standing(state, node) {
                Some(installed) => Standing { online: true, installed },
                None => self.0.presences.standing([NodeOf { network, node }]).pop().unwrap_or_default(),
            };
            Ok(state.trace(question, now, standing)?)
        })?
    }
}

/// How many policies are compiled at one time.
pub(super) const COMPILING_MAX: usize = 2;
/// How long a policy waits for others to be compiled before its author is put off.
const COMPILING_WAIT: Duration = Duration::from_secs(3);
/// How often a policy is compiled beside other changes before they must wait for it.
const FREE_TRIES: usize = 3;

impl Coordinator {
    /// The right to compile. It goes with the thread that does, which runs on when the one who asked is gone.
    pub(super) async fn permit(&self) -> Result<OwnedSemaphorePermit, Refused> {
        let waiting = tokio::time::timeout(COMPILING_WAIT, self.0.compiling.clone().acquire_owned());
        waiting.await.map_err(|_| Refused::Compiling)?.map_err(|_| Refused::ShuttingDown)
    }
}

fn roster(state: &NetworkState) -> Roster {
    Roster { members: state.nodes.values().map(|node| node.member.record.clone()).collect() }
}

/// The names that differ from one policy to another; the order of addresses means nothing.
fn renamed<'a>(
    before: impl IntoIterator<Item = &'a NameRecord>,
    after: impl IntoIterator<Item = &'a NameRecord>,
) -> Vec<NameChange> {
    type Addresses = BTreeSet<IpAddr>;
    let mut names = BTreeMap::<&str, (Addresses, Addresses)>::new();
    for record in before {
        names.entry(&record.name).or_default().0.extend(&record.addresses);
    }
    for record in after {
        names.entry(&record.name).or_default().1.extend(&record.addresses);
    }
    let changed = names.into_iter().filter(|(_, (before, after))| before != after);
    let change = |(name, (before, after)): (&str, (Addresses, Addresses))| NameChange {
        name: name.into(),
        before: before.into_iter().collect(),
        after: after.into_iter().collect(),
    };
    changed.map(change).collect()
}

fn check(text: &str, roster: &Roster) -> Result<Compiled, Vec<Problem>> {
    if text.trim().is_empty() {
        // Most likely a mistake, and the one that cuts everybody off. An empty text also stands for the policy that nobody wrote.
        let message = "the policy is empty, which denies everything; if that is meant, say so in it: # nothing is allowed";
        return Err(vec![Problem { warning: false, line: 1, column: 1, message: message.into() }]);
    }
    policy::check(text, roster)
}

async fn compile(permit: OwnedSemaphorePermit, text: Arc<str>, roster: Roster) -> Result<Compiled, Refused> {
    let checked = blocking(move || {
        let _permit = permit;
        check(&text, &roster)
    })
    .await?;
    checked.map_err(|problems| Refused::Policy(list(&problems)))
}

/// How much of a refusal is said: it travels in a header, twice.
const LIST_MAX: usize = 4096;

/// Problems as one text, each with its place; those that do not fit are counted.
fn list(problems: &[Problem]) -> String {
    let mut text = String::new();
    let errors: Vec<String> =
        problems.iter().filter(|problem| !problem.warning).map(ToString::to_string).collect();
    for (told, error) in errors.iter().enumerate() {
        if text.len() + error.len() > LIST_MAX && told > 0 {
            text.push_str(&format!(
                "\nand {} more: meshctl policy check tells them all",
                errors.len() - told
            ));
            break;
        }
        if told > 0 {
            text.push('\n');
        }
        text.push_str(error);
    }
    text
}

/// Runs what takes its time beside the tasks that serve.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refused> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Refused::ShuttingDown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_come_go_or_lead_elsewhere_are_told_and_others_not() {
        let record = |name: &str, addresses: &[&str]| NameRecord {
            name: name.into(),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        };
        let before = [
            record("same", &["fd00::1", "10.0.0.1"]),
            record("moved", &["10.0.0.2"]),
            record("gone", &["10.0.0.3"]),
        ];
        let after = [
            record("new", &["10.0.0.4"]),
            record("same", &["10.0.0.1", "fd00::1"]),
            record("moved", &["10.0.0.2", "fd00::2"]),
        ];
        let told: Vec<(String, usize, usize)> = renamed(&before, &after)
            .into_iter()
            .map(|change| (change.name, change.before.len(), change.after.len()))
            .collect();
        assert_eq!(told, [("gone".into(), 1, 0), ("moved".into(), 1, 2), ("new".into(), 0, 1)]);
        assert_eq!(renamed(&before, &before), []);
    }

    #[test]
    fn a_refusal_has_each_problem_with_its_place_and_fits_a_header() {
        let problem = |line: u32, warning| Problem {
            warning,
            line,
            column: 7,
            message: format!("no member is called \"x{line}\""),
        };
        let few = list(&[problem(3, false), problem(4, true), problem(9, false)]);
        let lines: Vec<&str> = few.lines().collect();
        assert!(
            lines[0].starts_with("line 3, column 7") && lines[1].starts_with("line 9, column 7"),
            "{few}"
        );
        assert_eq!(lines.len(), 2, "a warning refuses nothing");
        let many: Vec<Problem> = (1..=1000).map(|line| problem(line, false)).collect();
        let text = list(&many);
        assert!(text.len() < LIST_MAX + 100, "{}", text.len());
        let told = text.lines().count() - 1;
        assert!(text.ends_with(&format!("and {} more: meshctl policy check tells them all", 1000 - told)));
        let long = Problem { message: "x".repeat(2 * LIST_MAX), ..problem(1, false) };
        assert!(list(&[long]).contains("line 1, column 7"), "a single one is told, however long");
    }
}
