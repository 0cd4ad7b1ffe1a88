//! `PolicyService`: who may reach whom, before, now, and by a file that is not in force yet.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use ringmesh_proto::admin::{self as proto, policy_service_server::PolicyService};
use ringmesh_tunnel::{
    ip::Prefix,
    key::{NetworkId, NodeId},
};
use tokio::time::Instant;
use tonic::{Request, Response};

use super::{
    admin::{Admin, Answer},
    convert,
    request::named,
};
use crate::{
    auth::{Authed, Operator, Reader},
    coordinator::{Applied, Forecast, NameChange, Proposal},
    error::Refused,
    network::{
        PolicyVersion,
        trace::{Outcome, Question, Trace, Transport},
    },
    policy::{Change, Problem, ports_text},
};

/// Changes of each kind that a plan lists unless asked for another number.
const CHANGES: u32 = 200;
/// The most that it lists.
const CHANGES_MAX: u32 = 10_000;

impl Admin {
    async fn applied(
        &self,
        operator: &Authed<Operator>,
        network: NetworkId,
        applied: Applied,
        wait_ms: u32,
        begun: Instant,
    ) -> Result<proto::ApplyPolicyResponse, Refused> {
        let Applied { revision, serial, changed, warnings, at } = applied;
        let installation = if wait_ms == 0 {
            None
        } else {
            // What compiling took of the time that a request has is not there for waiting.
            let patience = Duration::from_millis(wait_ms.into()).min(REQUEST.saturating_sub(at - begun));
            Some(self.coordinator.installation(operator, network, revision, at, patience).await?)
        };
        Ok(proto::ApplyPolicyResponse {
            revision,
            serial,
            warnings: problems(warnings),
            installation: installation.map(convert::installation),
            changed,
        })
    }
}

/// What a request has of its time limit for compiling and waiting.
const REQUEST: Duration = Duration::from_secs(9);

#[tonic::async_trait]
impl PolicyService for Admin {
    async fn get_policy(
        &self,
        request: Request<proto::GetPolicyRequest>,
    ) -> Answer<proto::GetPolicyResponse> {
        let reader = Authed::<Reader>::of(&request)?;
        let proto::GetPolicyRequest { network, revision } = request.into_inner();
        let network = self.network(&reader, &network)?;
        let mut response = self.coordinator.with_network(network, |state| {
            let held = state.policy.as_ref().map(|policy| &policy.signed.record);
            let is_in_force = revision == 0 || revision == state.policy_revision();
            let found = state.policy_at(revision)?;
            let (number, version) = found.unzip();
            let serial = if is_in_force { held.map(|policy| policy.serial) } else { number };
            let expires = held.filter(|_| is_in_force).map(|policy| policy.not_after.as_millis());
            let row = version.map(|version| &version.row);
            let text = |text: fn(&crate::network::row::PolicyVersionRow) -> &String| {
                row.map(text).cloned().unwrap_or_default()
            };
            Ok::<_, Refused>(proto::GetPolicyResponse {
                // Of the network's first, which is not in force any more.
                serial: serial.unwrap_or(1),
                expires_ms: expires.unwrap_or_default(),
                rules: if is_in_force {
                    convert::rules(state.rules().map(|(_, rule)| rule), state)
                } else {
                    Vec::new()
                },
                text: text(|row| &row.text),
                revision: version.map_or(state.made, |version| version.revision),
                applied_ms: row.map(|row| row.applied_ms).unwrap_or_default(),
                applied_by: text(|row| &row.applied_by),
                comment: text(|row| &row.comment),
                rules_unknown: String::new(),
            })
        })??;
        // The rules in force are those that were bound when it was applied; they may be none.
        if response.expires_ms == 0 && !response.text.is_empty() {
            match self.coordinator.rules_of(network, response.text.clone()).await? {
                Ok(rules) => {
                    response.rules =
                        self.coordinator.with_network(network, |state| convert::rules(&rules, state))?;
                }
                Err(reason) => response.rules_unknown = reason,
            }
        }
        Ok(Response::new(response))
    }

    async fn plan_policy(
        &self,
        request: Request<proto::PlanPolicyRequest>,
    ) -> Answer<proto::PlanPolicyResponse> {
        let reader = Authed::<Reader>::of(&request)?;
        let proto::PlanPolicyRequest { network, text, most } = request.into_inner();
        let network = self.network(&reader, &network)?;
        let most = match most {
            0 => CHANGES,
            most => most.min(CHANGES_MAX),
        };
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let forecast = self.coordinator.plan_policy(&reader, network, text, most).await?;
        Ok(Response::new(planned(forecast)))
    }

    async fn apply_policy(
        &self,
        request: Request<proto::ApplyPolicyRequest>,
    ) -> Answer<proto::ApplyPolicyResponse> {
        let begun = Instant::now();
        let operator = Authed::<Operator>::of(&request)?;
        let named = named(request.get_ref())?;
        let proto::ApplyPolicyRequest { network, text, base_revision, wait_ms, comment, request_id: _ } =
            request.into_inner();
        let network = self.network(&operator, &network)?;
        let proposal = Proposal { text: text.into(), base: base_revision, comment, back_to: 0 };
        let applied = self.coordinator.apply_policy(&operator, network, proposal, named).await?;
        Ok(Response::new(self.applied(&operator, network, applied, wait_ms, begun).await?))
    }

    async fn list_policies(
        &self,
        request: Request<proto::ListPoliciesRequest>,
    ) -> Answer<proto::ListPoliciesResponse> {
        let reader = Authed::<Reader>::of(&request)?;
        let proto::ListPoliciesRequest { network, most } = request.into_inner();
        let network = self.network(&reader, &network)?;
        let most = if most == 0 { usize::MAX } else { usize::try_from(most).unwrap_or(usize::MAX) };
        let policies = self.coordinator.with_network(network, |state| {
            let in_force = state.policy.as_ref().and_then(|policy| policy.version);
            let newest = state.policies.iter().rev().take(most);
            newest.map(|(serial, version)| listed(version, in_force == Some(*serial))).collect()
        })?;
        Ok(Response::new(proto::ListPoliciesResponse { policies }))
    }

    async fn rollback_policy(
        &self,
        request: Request<proto::RollbackPolicyRequest>,
    ) -> Answer<proto::ApplyPolicyResponse> {
        let begun = Instant::now();
        let operator = Authed::<Operator>::of(&request)?;
        let named = named(request.get_ref())?;
        let proto::RollbackPolicyRequest { network, revision, wait_ms, request_id: _, base_revision: base } =
            request.into_inner();
        let network = self.network(&operator, &network)?;
        let applied = self.coordinator.rollback_policy(&operator, network, revision, base, named).await?;
        Ok(Response::new(self.applied(&operator, network, applied, wait_ms, begun).await?))
    }

    async fn trace(&self, request: Request<proto::TraceRequest>) -> Answer<proto::TraceResponse> {
        let reader = Authed::<Reader>::of(&request)?;
        let proto::TraceRequest { network, source, destination, protocol, port } = request.into_inner();
        let network = self.network(&reader, &network)?;
        let transport = Transport::parse(&protocol, port).map_err(Refused::from)?;
        let question = Question { source, destination, transport };
        Ok(Response::new(traced(self.coordinator.trace(&reader, network, &question)?)))
    }
}

fn problems(problems: Vec<Problem>) -> Vec<proto::PolicyProblem> {
    let told = problems.into_iter().map(|problem| proto::PolicyProblem {
        warning: problem.warning,
        line: problem.line,
        column: problem.column,
        message: problem.message,
    });
    told.collect()
}

fn planned(forecast: Forecast) -> proto::PlanPolicyResponse {
    let Forecast { problems: found, changes, names: renamed, tests, rules, base, members } = forecast;
    let names: BTreeMap<NodeId, &str> =
        members.iter().map(|member| (member.id, member.name.as_str())).collect();
    let name = |id: NodeId| names.get(&id).map_or_else(|| id.to_string(), |name| (*name).to_owned());
    let change = |change: &Change| self::change(change, name);
    let mut response = proto::PlanPolicyResponse {
        problems: problems(found),
        base_revision: base,
        tests,
        rules,
        names: renamed.into_iter().map(name_change).collect(),
        ..proto::PlanPolicyResponse::default()
    };
    if let Some(changes) = changes {
        response.allowed = changes.allowed.iter().map(change).collect();
        response.stopped = changes.stopped.iter().map(change).collect();
        (response.allowed_total, response.stopped_total) = (changes.allowed_total, changes.stopped_total);
    }
    response
}

fn change(change: &Change, name: impl Fn(NodeId) -> String) -> proto::PolicyChange {
    let (from, to) = change.within.unwrap_or_default();
    let side = |node: NodeId, range: Option<Prefix>| match range {
        Some(range) => format!("{} ({})", name(node), range_text(range)),
        None => name(node),
    };
    proto::PolicyChange {
        source: side(change.source, from),
        destination: side(change.destination, to),
        protocol: change.protocol_text(),
        ports: ports_text(&change.ports),
    }
}

fn name_change(change: NameChange) -> proto::NameChange {
    let text =
        |addresses: Vec<IpAddr>| addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    proto::NameChange { name: change.name, before: text(change.before), after: text(change.after) }
}

fn range_text(range: Prefix) -> String {
    if range.is_host() { range.address().to_string() } else { range.to_string() }
}

fn listed(version: &PolicyVersion, in_force: bool) -> proto::PolicyVersion {
    let PolicyVersion { row, revision } = version;
    proto::PolicyVersion {
        revision: *revision,
        applied_ms: row.applied_ms,
        applied_by: row.applied_by.clone(),
        comment: row.comment.clone(),
        rules: row.rules,
        in_force,
    }
}

fn traced(trace: Trace) -> proto::TraceResponse {
    let stages = trace.stages.into_iter().map(|stage| proto::TraceStage {
        stage: stage.name.into(),
        outcome: match stage.outcome {
            Outcome::Ok => "ok",
            Outcome::Allowed => "allowed",
            Outcome::Denied => "denied",
            Outcome::Unknown => "unknown",
        }
        .into(),
        detail: stage.detail,
    });
    proto::TraceResponse { stages: stages.collect(), allowed: trace.allowed, by: trace.by }
}
