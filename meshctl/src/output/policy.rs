//! `meshctl policy show` and `history`: the policy in force, and those before it.

use std::fmt::Write as _;

use ringmesh_controlplane::policy::FIRST;
use ringmesh_proto::admin;
use serde::Serialize;

use super::{
    Document, printable,
    rule::Rule,
    table::{Columns, moment},
};

/// A policy: `schemas/policy.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Policy {
    pub(crate) revision: u64,
    pub(crate) serial: u64,
    pub(crate) in_force: bool,
    pub(crate) applied_ms: u64,
    pub(crate) applied_by: String,
    pub(crate) comment: String,
    /// 0 for one that is not in force.
    pub(crate) expires_ms: u64,
    pub(crate) rules: Vec<Rule>,
    /// Why `rules` is empty although the file has rules; else empty.
    pub(crate) rules_unknown: String,
    /// The file as it was applied; empty for the one that the network was made with.
    pub(crate) text: String,
}

impl From<admin::GetPolicyResponse> for Policy {
    fn from(response: admin::GetPolicyResponse) -> Self {
        Self {
            revision: response.revision,
            serial: response.serial,
            in_force: response.expires_ms > 0,
            applied_ms: response.applied_ms,
            applied_by: response.applied_by,
            comment: response.comment,
            expires_ms: response.expires_ms,
            rules: response.rules.into_iter().map(Rule::from).collect(),
            rules_unknown: response.rules_unknown,
            text: response.text,
        }
    }
}

impl Policy {
    /// The file, as it can be applied again. Escapes have no business in a terminal, and TOML allows none.
    pub(crate) fn file(&self) -> &str {
        if self.text.is_empty() { FIRST } else { &self.text }
    }

    fn state(&self, now: u64) -> String {
        if !self.in_force {
            return "not in force".to_owned();
        }
        format!("in force; ends {} unless the coordinator renews it", moment(self.expires_ms, now))
    }
}

impl Document for Policy {
    fn text(&self, now: u64) -> String {
        let mut text = String::new();
        let mut head = Columns::bare();
        let applied = moment(self.applied_ms, now);
        let by = if self.applied_by.is_empty() { String::new() } else { format!(" by {}", self.applied_by) };
        head.row(["policy".to_owned(), format!("r{} (serial {})", self.revision, self.serial)]);
        head.row(["state".to_owned(), self.state(now)]);
        head.row(["applied".to_owned(), format!("{applied}{by}").trim().to_owned()]);
        if !self.comment.is_empty() {
            head.row(["comment".to_owned(), self.comment.clone()]);
        }
        text += &head.text();
        if self.text.is_empty() && self.in_force {
            text += "\nnone was applied yet: all members reach each other\n";
        } else if self.text.is_empty() {
            text += "\nwhat the network was made with: all members reach each other\n";
        } else if !self.rules_unknown.is_empty() {
            let why = printable(&self.rules_unknown).replace('\n', " ");
            let _ = writeln!(text, "\nits rules cannot be told: {why}");
        } else if self.rules.is_empty() {
            text += "\nno rule: nobody reaches anybody\n";
        }
        if !self.rules.is_empty() {
            let _ = writeln!(text);
            let mut table = Columns::new(Rule::HEADINGS);
            self.rules.iter().for_each(|rule| table.row(rule.cells()));
            text += &table.text();
        }
        text
    }
}

/// A policy that was applied once.
#[derive(Debug, Serialize)]
pub(crate) struct Version {
    pub(crate) revision: u64,
    pub(crate) in_force: bool,
    pub(crate) applied_ms: u64,
    pub(crate) applied_by: String,
    pub(crate) comment: String,
    pub(crate) rules: u32,
}

/// The policies applied so far, newest first: `schemas/policies.json`.
#[derive(Debug, Serialize)]
pub(crate) struct History {
    pub(crate) policies: Vec<Version>,
}

impl From<admin::ListPoliciesResponse> for History {
    fn from(response: admin::ListPoliciesResponse) -> Self {
        let versions = response.policies.into_iter().map(|version| Version {
            revision: version.revision,
            in_force: version.in_force,
            applied_ms: version.applied_ms,
            applied_by: version.applied_by,
            comment: version.comment,
            rules: version.rules,
        });
        Self { policies: versions.collect() }
    }
}

impl Document for History {
    fn text(&self, now: u64) -> String {
        if self.policies.is_empty() {
            return "no policy was applied yet; all members reach each other\n".to_owned();
        }
        let mut table = Columns::new(["POLICY", "STATE", "APPLIED", "BY", "RULES", "COMMENT"]);
        for version in &self.policies {
            table.row([
                format!("r{}", version.revision),
                if version.in_force { "in force" } else { "" }.to_owned(),
                moment(version.applied_ms, now),
                version.applied_by.clone(),
                version.rules.to_string(),
                version.comment.clone(),
            ]);
        }
        table.text()
    }
}

/// The text of a policy file, safe for a terminal. Redirected to a file it is the same bytes: TOML allows no control characters
/// but tabs and line ends.
pub(crate) fn file_text(policy: &Policy) -> String {
    let safe = |c: char| if c.is_control() && !matches!(c, '\t' | '\r' | '\n') { '?' } else { c };
    policy.file().chars().map(safe).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{json, tests::conforms};

    const NOW: u64 = 1_790_000_000_000;

    fn policy() -> admin::GetPolicyResponse {
        let rule = |number, source: &str, destination: &str, protocol: &str, ports: &str| admin::Rule {
            number,
            source: source.to_owned(),
            destination: destination.to_owned(),
            protocol: protocol.to_owned(),
            ports: ports.to_owned(),
        };
        admin::GetPolicyResponse {
            serial: 5,
            expires_ms: NOW + 29 * 86_400_000,
            rules: vec![
                rule(1, "group:admins,tag:ci", "*", "any", "*"),
                rule(2, "group:dev", "tag:web", "tcp", "22,8000-8100"),
                rule(3, "100.64.0.7/32", "printer", "icmp", "*"),
            ],
            text: "[[allow]]\nfrom = [\"*\"]\n".to_owned(),
            revision: 812,
            applied_ms: NOW - 3_600_000,
            applied_by: "root".to_owned(),
            comment: "web for dev".to_owned(),
            rules_unknown: String::new(),
        }
    }

    #[test]
    fn a_policy_with_its_rules() {
        insta::assert_snapshot!(Policy::from(policy()).text(NOW));
    }

    #[test]
    fn a_policy_as_json() {
        let policy = Policy::from(policy());
        conforms("policy", &policy);
        insta::assert_snapshot!(json(&policy).unwrap());
    }

    #[test]
    fn a_policy_without_rules_or_a_text_says_what_that_means() {
        let empty = admin::GetPolicyResponse { rules: vec![], expires_ms: 0, ..policy() };
        let text = Policy::from(empty).text(NOW);
        assert!(text.contains("nobody reaches anybody") && text.contains("not in force"), "{text}");
        let original = Policy::from(admin::GetPolicyResponse { text: String::new(), ..policy() });
        assert!(original.text(NOW).contains("none was applied yet"), "{}", original.text(NOW));
        assert_eq!(original.file(), FIRST);
        let over = Policy {
            in_force: false,
            ..Policy::from(admin::GetPolicyResponse { text: String::new(), ..policy() })
        };
        assert!(over.text(NOW).contains("what the network was made with"), "{}", over.text(NOW));
        let stale = admin::GetPolicyResponse {
            rules: vec![],
            rules_unknown: "no member is called \"web\"".to_owned(),
            ..policy()
        };
        let stale = Policy::from(stale);
        conforms("policy", &stale);
        let text = stale.text(NOW);
        assert!(text.ends_with("\nits rules cannot be told: no member is called \"web\"\n"), "{text}");
        conforms("policy", &original);
    }

    #[test]
    fn a_file_is_shown_as_it_was_applied() {
        let text = "# f\u{fc}r alle\r\n\t[[allow]]\r\n";
        let policy = Policy::from(admin::GetPolicyResponse { text: text.to_owned(), ..policy() });
        assert_eq!(file_text(&policy), text);
        let hostile = Policy { text: "a\u{1b}[2J".to_owned(), ..policy };
        assert_eq!(file_text(&hostile), "a?[2J");
    }

    #[test]
    fn the_history_of_policies() {
        let version = |revision, in_force, comment: &str| admin::PolicyVersion {
            revision,
            applied_ms: NOW - 86_400_000,
            applied_by: "root".to_owned(),
            comment: comment.to_owned(),
            rules: 3,
            in_force,
        };
        let policies = vec![version(812, true, "web for dev"), version(640, false, "")];
        let history = History::from(admin::ListPoliciesResponse { policies });
        conforms("policies", &history);
        insta::assert_snapshot!(history.text(NOW));
        let none = History::from(admin::ListPoliciesResponse::default());
        assert_eq!(none.text(NOW), "no policy was applied yet; all members reach each other\n");
    }
}
