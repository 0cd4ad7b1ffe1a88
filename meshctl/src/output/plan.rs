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

/// What a policy changes for a name below the zone.
#[derive(Debug, Serialize)]
pub(crate) struct NameChange {
    pub(crate) name: String,
    /// Addresses, comma separated; empty: it is not there.
    pub(crate) before: String,
    pub(crate) after: String,
}

impl From<admin::NameChange> for NameChange {
    fn from(change: admin::NameChange) -> Self {
        let admin::NameChange { name, before, after } = change;
        Self { name, before, after }
    }
}

impl NameChange {
    fn line(&self) -> String {
        let Self { name, before, after } = self;
        let line = match (before.is_empty(), after.is_empty()) {
            (true, _) => format!("+ name {name}: {after}"),
            (false, true) => format!("- name {name}: {before}"),
            (false, false) => format!("~ name {name}: {before} -> {after}"),
        };
        format!("{}\n", printable(&line).replace('\n', " "))
    }
}

/// A protocol with its ports: `tcp/443`, `udp/53,1000-2000`, `icmp`, `any`.
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
    pub(crate) names: Vec<NameChange>,
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
            names: response.names.into_iter().map(NameChange::from).collect(),
            problems: response.problems.into_iter().map(Problem::from).collect(),
        }
    }
}

impl Plan {
    /// Whether it cannot be applied.
    pub(crate) fn is_refused(&self) -> bool {
        self.problems.iter().any(Problem::is_error)
    }

    /// Whether somebody may do what nobody could before, or the reverse, or a name would mean something else.
    pub(crate) fn changes(&self) -> bool {
        self.changes_reach() || !self.names.is_empty()
    }

    fn changes_reach(&self) -> bool {
        self.allowed_total + self.stopped_total > 0
    }

    /// What changes, a line each; `cure` says how to see what is left out.
    pub(crate) fn changes_text(&self, cure: &str) -> String {
        let mut text = String::new();
        let kinds = [('+', &self.allowed, self.allowed_total), ('-', &self.stopped, self.stopped_total)];
        for (sign, changes, total) in kinds {
            changes.iter().for_each(|change| text += &change.line(sign));
            let more = total.saturating_sub(changes.len() as u64);
            if more > 0 {
                let _ = writeln!(text, "{sign} ... and {more} more{cure}");
            }
        }
        self.names.iter().for_each(|name| text += &name.line());
        text
    }

    /// How much changes, in a line: `1 becomes allowed, 2 stop; 3 rules, no tests`.
    pub(crate) fn totals(&self) -> String {
        let (rules, tests) = (rules(self.rules), tests(self.tests));
        let names = match self.names.len() {
            0 => String::new(),
            1 => ", 1 name changes".to_owned(),
            count => format!(", {count} names change"),
        };
        if !self.changes_reach() {
            return format!("no change in who may reach whom{names}; {rules}, {tests}");
        }
        let allowed = match self.allowed_total {
            1 => "1 becomes allowed".to_owned(),
            total => format!("{total} become allowed"),
        };
        let stopped = match self.stopped_total {
            1 => "1 stops".to_owned(),
            total => format!("{total} stop"),
        };
        format!("{allowed}, {stopped}{names}; {rules}, {tests}")
    }
}

impl Document for Plan {
    fn text(&self, _: u64) -> String {
        if self.is_refused() {
            return String::new();
        }
        let totals = self.totals();
        format!("{}{totals}; compared with r{}\n", self.changes_text(" (--most)"), self.base_revision)
    }
}

/// What is gone back to, by its revision; 0: the policy that the network was made with.
pub(crate) fn back_to(revision: u64) -> String {
    match revision {
        0 => "the network's first policy".to_owned(),
        revision => format!("r{revision}"),
    }
}

/// A policy that was put in force, or was in force already: `schemas/policy-applied.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Applied {
    pub(crate) revision: u64,
    pub(crate) serial: u64,
    pub(crate) changed: bool,
    pub(crate) allowed_total: u64,
    pub(crate) stopped_total: u64,
    /// Of an earlier policy that was taken back: its revision, 0 for the network's first.
    pub(crate) back_to: Option<u64>,
    pub(crate) warnings: Vec<Problem>,
    /// `null`: not waited for.
    pub(crate) installation: Option<Installation>,
    /// The line before the last: the plan's totals.
    #[serde(skip)]
    pub(crate) totals: String,
}

impl Applied {
    /// What came of applying what `plan` told.
    pub(crate) fn new(response: admin::ApplyPolicyResponse, plan: &Plan, back_to: Option<u64>) -> Self {
        Self {
            revision: response.revision,
            serial: response.serial,
            changed: response.changed,
            allowed_total: plan.allowed_total,
            stopped_total: plan.stopped_total,
            back_to,
            warnings: response.warnings.into_iter().map(Problem::from).collect(),
            installation: response.installation.map(Installation::from),
            totals: plan.totals(),
        }
    }
}

impl Document for Applied {
    fn text(&self, _: u64) -> String {
        let mut text = String::new();
        if let Some(revision) = self.back_to {
            let _ = write!(text, "back to {}: ", back_to(revision));
        }
        if self.changed {
            let _ = writeln!(text, "{}", self.totals);
        } else {
            let _ = writeln!(text, "no change: r{} is in force and means the same", self.revision);
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
            ..Default::default()
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
        Applied::new(response, &Plan::from(planned()), None)
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
        let applied = Applied::new(response, &Plan::from(planned()), None);
        conforms("policy-applied", &applied);
        assert!(
            applied.text(0).ends_with("\nr9 is in force; not waited until it is installed\n"),
            "{}",
            applied.text(0)
        );
    }

    #[test]
    fn a_name_that_comes_goes_or_leads_elsewhere_is_a_change() {
        let name = |name: &str, before: &str, after: &str| admin::NameChange {
            name: name.to_owned(),
            before: before.to_owned(),
            after: after.to_owned(),
        };
        let names = vec![
            name("git", "", "100.64.0.4"),
            name("old", "10.1.0.9", ""),
            name("db", "10.0.0.1", "10.0.0.2"),
        ];
        let plan = Plan::from(admin::PlanPolicyResponse { names, base_revision: 4, ..Default::default() });
        conforms("policy-plan", &plan);
        assert!(plan.changes());
        assert_eq!(
            plan.text(0),
            "+ name git: 100.64.0.4\n- name old: 10.1.0.9\n~ name db: 10.0.0.1 -> 10.0.0.2\n\
             no change in who may reach whom, 3 names change; 0 rules, no tests; compared with r4\n"
        );
    }

    #[test]
    fn what_was_gone_back_to_is_named() {
        for (back_to, start) in
            [(811, "back to r811: 2 become"), (0, "back to the network's first policy: 2")]
        {
            let applied = Applied { back_to: Some(back_to), ..applied(true, Some(installation())) };
            conforms("policy-applied", &applied);
            assert!(applied.text(0).starts_with(start), "{}", applied.text(0));
        }
    }

    #[test]
    fn only_a_command_that_has_the_flag_is_named_it() {
        let plan = Plan::from(planned());
        assert!(plan.text(0).contains("and 310 more (--most)\n"), "{}", plan.text(0));
        assert!(plan.changes_text("").contains("and 310 more\n"), "{}", plan.changes_text(""));
    }
}
