//! `meshctl policy plan`, `apply` and `rollback`: what a policy changes, and how far it got.

use std::fmt::Write as _;

use ringmesh_proto::admin;
use serde::Serialize;

use super::{Document, installation::Installation, printable, problems::Problem};

/// What a policy changes for one pair of members, or for a member and a range of addresses.
#[derive(Debug, Serialize)]
pub(crate) struct Change {
    pub(crate) source: String,
    pub(crate) destination: String,
    pub(crate) protocol: String,
    pub(crate) ports: String,
}

impl From<admin::PolicyChange> for Change {
    fn from(change: admin::PolicyChange) -> Self {
        let admin::PolicyChange { source, destination, protocol, ports } = change;
        Self { source, destination, protocol, ports }
    }
}

impl Change {
    fn line(&self, sign: char) -> String {
        let service = service(&self.protocol, &self.ports);
        let line = format!("{sign} {} -> {} {service}", self.source, self.destination);
        format!("{}\n", printable(&line).replace('\n', " "))
    }
}

/// A transport with its ports: `tcp/443`, `udp/53,1000-2000`, `icmp`, `any`.
pub(crate) fn service(protocol: &str, ports: &str) -> String {
    let protocol = if protocol.is_empty() { "any" } else { protocol };
    match ports {
        "" | "*" => protocol.to_owned(),
        ports => format!("{protocol}/{ports}"),
    }
}

/// `1 rule`, `3 rules`.
pub(crate) fn rules(count: u32) -> String {
    format!("{count} rule{}", if count == 1 { "" } else { "s" })
}

/// `no tests`, `1 test passed`.
pub(crate) fn tests(count: u32) -> String {
    match count {
        0 => "no tests".to_owned(),
        1 => "1 test passed".to_owned(),
        count => format!("{count} tests passed"),
    }
}

/// What a policy would change: `schemas/policy-plan.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Plan {
    pub(crate) base_revision: u64,
    pub(crate) rules: u32,
    pub(crate) tests: u32,
    pub(crate) allowed_total: u64,
    pub(crate) stopped_total: u64,
    pub(crate) allowed: Vec<Change>,
    pub(crate) stopped: Vec<Change>,
    pub(crate) problems: Vec<Problem>,
}

impl From<admin::PlanPolicyResponse> for Plan {
    fn from(response: admin::PlanPolicyResponse) -> Self {
        Self {
            base_revision: response.base_revision,
            rules: response.rules,
            tests: response.tests,
            allowed_total: response.allowed_total,
            stopped_total: response.stopped_total,
            allowed: response.allowed.into_iter().map(Change::from).collect(),
            stopped: response.stopped.into_iter().map(Change::from).collect(),
            problems: response.problems.into_iter().map(Problem::from).collect(),
        }
    }
}

impl Plan {
    /// Whether it cannot be applied.
    pub(crate) fn is_refused(&self) -> bool {
        self.problems.iter().any(Problem::is_error)
    }

    /// Whether somebody may do what nobody could before, or the reverse.
    pub(crate) fn changes(&self) -> bool {
        self.allowed_total + self.stopped_total > 0
    }

    /// What changes, a line each.
    pub(crate) fn changes_text(&self) -> String {
        let mut text = String::new();
        let kinds = [('+', &self.allowed, self.allowed_total), ('-', &self.stopped, self.stopped_total)];
        for (sign, changes, total) in kinds {
            changes.iter().for_each(|change| text += &change.line(sign));
            let more = total.saturating_sub(changes.len() as u64);
            if more > 0 {
                let _ = writeln!(text, "{sign} ... and {more} more (--most)");
            }
        }
        text
    }

    /// How much changes, in a line: `1 becomes allowed, 2 stop; 3 rules, no tests`.
    pub(crate) fn totals(&self) -> String {
        let (rules, tests) = (rules(self.rules), tests(self.tests));
        if !self.changes() {
            return format!("no change in who may reach whom; {rules}, {tests}");
        }
        let allowed = match self.allowed_total {
            1 => "1 becomes allowed".to_owned(),
            total => format!("{total} become allowed"),
        };
        let stopped = match self.stopped_total {
            1 => "1 stops".to_owned(),
            total => format!("{total} stop"),
        };
        format!("{allowed}, {stopped}; {rules}, {tests}")
    }
}

impl Document for Plan {
    fn text(&self, _: u64) -> String {
        if self.is_refused() {
            return String::new();
        }
        let totals = self.totals();
        format!("{}{totals}; compared with r{}\n", self.changes_text(), self.base_revision)
    }
}

/// A policy that was put in force, or was in force already: `schemas/policy-applied.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Applied {
    pub(crate) revision: u64,
    pub(crate) serial: u64,
    pub(crate) changed: bool,
    /// What it changed; `null` where an earlier policy was taken back.
    pub(crate) allowed_total: Option<u64>,
    pub(crate) stopped_total: Option<u64>,
    pub(crate) warnings: Vec<Problem>,
    /// `null`: not waited for.
    pub(crate) installation: Option<Installation>,
    /// The line before the last: the plan's totals.
    #[serde(skip)]
    pub(crate) totals: Option<String>,
}

impl Applied {
    /// What came of applying what `plan` told.
    pub(crate) fn new(response: admin::ApplyPolicyResponse, plan: Option<&Plan>) -> Self {
        Self {
            revision: response.revision,
            serial: response.serial,
            changed: response.changed,
            allowed_total: plan.map(|plan| plan.allowed_total),
            stopped_total: plan.map(|plan| plan.stopped_total),
            warnings: response.warnings.into_iter().map(Problem::from).collect(),
            installation: response.installation.map(Installation::from),
            totals: plan.map(Plan::totals),
        }
    }
}

impl Document for Applied {
    fn text(&self, _: u64) -> String {
        let mut text = String::new();
        if !self.changed {
            let _ = writeln!(text, "no change: r{} is in force and means the same", self.revision);
        } else if let Some(totals) = &self.totals {
            let _ = writeln!(text, "{totals}");
        }
        match &self.installation {
            Some(installation) => text += &printable(&installation.text()),
            None => {
                let _ = write!(text, "r{} is in force; not waited until it is installed", self.revision);
            }
        }
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{installation::tests::behind, json, tests::conforms};

    fn change(source: &str, destination: &str, protocol: &str, ports: &str) -> admin::PolicyChange {
        admin::PolicyChange {
            source: source.to_owned(),
            destination: destination.to_owned(),
            protocol: protocol.to_owned(),
            ports: ports.to_owned(),
        }
    }

    fn planned() -> admin::PlanPolicyResponse {
        admin::PlanPolicyResponse {
            problems: vec![],
            allowed: vec![
                change("alice", "web1", "tcp", "443"),
                change("carol", "10.1.0.0/16", "udp", "53,1000-2000"),
            ],
            stopped: vec![change("bob", "db", "any", "*"), change("bob\n", "nas", "icmp", "")],
            allowed_total: 2,
            stopped_total: 312,
            base_revision: 811,
            tests: 2,
            rules: 3,
        }
    }

    #[test]
    fn what_becomes_allowed_and_what_stops() {
        insta::assert_snapshot!(Plan::from(planned()).text(0));
    }

    #[test]
    fn a_plan_as_json() {
        let plan = Plan::from(planned());
        conforms("policy-plan", &plan);
        insta::assert_snapshot!(json(&plan).unwrap());
    }

    #[test]
    fn a_plan_that_changes_nothing_says_so() {
        let same = admin::PlanPolicyResponse { base_revision: 4, rules: 1, ..Default::default() };
        let same = Plan::from(same);
        assert!(!same.changes());
        assert_eq!(same.text(0), "no change in who may reach whom; 1 rule, no tests; compared with r4\n");
        let one = Plan::from(admin::PlanPolicyResponse { allowed_total: 1, tests: 1, ..Default::default() });
        assert_eq!(one.totals(), "1 becomes allowed, 0 stop; 0 rules, 1 test passed");
    }

    #[test]
    fn a_plan_of_a_file_with_errors_has_no_text() {
        let problem = admin::PolicyProblem { line: 1, column: 1, message: "no".to_owned(), warning: false };
        let refused = Plan::from(admin::PlanPolicyResponse { problems: vec![problem], ..planned() });
        assert!(refused.is_refused());
        assert_eq!(refused.text(0), "");
        conforms("policy-plan", &refused);
    }

    fn applied(changed: bool, installation: Option<admin::WaitInstalledResponse>) -> Applied {
        let warning =
            admin::PolicyProblem { warning: true, line: 7, column: 3, message: "adds nothing".to_owned() };
        let response = admin::ApplyPolicyResponse {
            revision: 812,
            serial: 5,
            warnings: vec![warning],
            installation,
            changed,
        };
        Applied::new(response, Some(&Plan::from(planned())))
    }

    fn installation() -> admin::WaitInstalledResponse {
        admin::WaitInstalledResponse {
            revision: 812,
            installed: vec!["web1".to_owned(), "db".to_owned()],
            behind: vec![behind("nas", false)],
            waited_ms: 640,
        }
    }

    #[test]
    fn an_applied_policy_tells_its_totals_and_how_far_it_got() {
        let applied = applied(true, Some(installation()));
        conforms("policy-applied", &applied);
        assert_eq!(
            applied.text(0),
            "2 become allowed, 312 stop; 3 rules, 2 tests passed\n\
             r812 installed on 2 of 3 nodes in 640 ms; 1 behind: 1 offline (nas)\n"
        );
        insta::assert_snapshot!(json(&applied).unwrap());
    }

    #[test]
    fn a_policy_that_was_in_force_already_is_no_change() {
        let applied = applied(false, Some(installation()));
        assert!(
            applied
                .text(0)
                .starts_with("no change: r812 is in force and means the same\nr812 installed on 2")
        );
    }

    #[test]
    fn what_nobody_waited_for_is_not_claimed() {
        let response =
            admin::ApplyPolicyResponse { revision: 9, serial: 2, changed: true, ..Default::default() };
        let applied = Applied::new(response, None);
        conforms("policy-applied", &applied);
        assert_eq!(applied.text(0), "r9 is in force; not waited until it is installed\n");
    }
}
