//! `meshctl trace`: what a flow's first packet must get past, stage by stage, and what decides.

use serde::Serialize;

use super::{Document, installation::listed, printable, table::Columns};

/// One thing that a packet must get past.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Stage {
    /// Who tells: `coordinator`, or the name of this node.
    pub(crate) told_by: String,
    pub(crate) stage: String,
    /// `ok`, `allowed`, `denied`, or `unknown`.
    pub(crate) outcome: String,
    pub(crate) detail: String,
}

/// What one daemon says.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) stages: Vec<Stage>,
    pub(crate) allowed: bool,
    /// The rule that allows it, or what denies it.
    pub(crate) by: String,
}

/// A trace: `schemas/trace.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Trace {
    pub(crate) source: String,
    pub(crate) destination: String,
    /// As it was asked for: `tcp/443`, `icmp`.
    pub(crate) service: String,
    pub(crate) allowed: bool,
    pub(crate) by: String,
    pub(crate) stages: Vec<Stage>,
    /// Ends whose owners may deny it by themselves, which nobody who was asked can see.
    pub(crate) unseen: Vec<String>,
}

impl Trace {
    /// Puts together what was told: it is allowed if nobody denies it, and the first who denies it says why.
    pub(crate) fn new(
        source: String,
        destination: String,
        service: String,
        told: Vec<Told>,
        unseen: Vec<String>,
    ) -> Self {
        let allowed = !told.is_empty() && told.iter().all(|told| told.allowed);
        let decisive = told.iter().find(|told| told.allowed == allowed);
        let by = decisive.map(|told| told.by.clone()).unwrap_or_default();
        let stages = told.into_iter().flat_map(|told| told.stages).collect();
        Self { source, destination, service, allowed, by, stages, unseen }
    }
}

impl Document for Trace {
    fn text(&self, _: u64) -> String {
        let mut table = Columns::new(["STAGE", "OUTCOME", "TOLD BY", "DETAIL"]);
        for stage in &self.stages {
            table.row([
                stage.stage.clone(),
                stage.outcome.clone(),
                stage.told_by.clone(),
                stage.detail.clone(),
            ]);
        }
        let mut text = table.text();
        // What is denied already is not asked of others.
        if self.allowed && !self.unseen.is_empty() {
            let ends: Vec<&str> = self.unseen.iter().map(String::as_str).collect();
            text += &printable(&format!(
                "\nNot seen from here: what the owner of {} denies on the machine itself (meshctl trace there tells)\n",
                listed(&ends).replace(", ", " or ")
            ));
        }
        let verdict = if self.allowed { "ALLOWED" } else { "DENIED" };
        let by = printable(&self.by).replace('\n', " ");
        let by = match by.split_once(": ") {
            _ if by.is_empty() => String::new(),
            _ if !self.allowed && is_default(&by) => " by default: no rule allows it".to_owned(),
            Some((rule, text)) if rule.starts_with("rule ") => format!(" by {rule} ({text})"),
            Some(_) | None => format!(" by {by}"),
        };
        text + &format!("\nFinal disposition: {verdict}{by}\n")
    }
}

/// Whether what denies is that nothing allows: daemons name the stage where that showed, or say it in short.
fn is_default(by: &str) -> bool {
    // Over the other address family it may be another answer.
    let whole = !by.starts_with("over IPv4: ");
    whole && (by == "no rule" || by.contains("no rule allows it") || by.contains("no rule connects "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{json, tests::conforms};

    fn stage(told_by: &str, stage: &str, outcome: &str, detail: &str) -> Stage {
        Stage {
            told_by: told_by.to_owned(),
            stage: stage.to_owned(),
            outcome: outcome.to_owned(),
            detail: detail.to_owned(),
        }
    }

    fn coordinator() -> Told {
        let stages = vec![
            stage("coordinator", "source", "ok", "alice (100.64.0.1)"),
            stage("coordinator", "destination", "ok", "web1 (100.64.0.2)"),
            stage("coordinator", "out-filter", "allowed", "rule 3 (group:dev -> tag:web tcp/443)"),
            stage("coordinator", "in-filter", "allowed", "rule 3 (group:dev -> tag:web tcp/443)"),
            stage("coordinator", "installed", "ok", "both have r812"),
        ];
        Told { stages, allowed: true, by: "rule 3: group:dev -> tag:web tcp/443".to_owned() }
    }

    fn node(allowed: bool) -> Told {
        let (outcome, by) = if allowed {
            ("allowed", "rule 3 of alice")
        } else {
            ("denied", "denial 2 of alice (out tcp/443)")
        };
        let stages = vec![stage("alice", "out-filter", outcome, by)];
        Told { stages, allowed, by: by.to_owned() }
    }

    fn trace(told: Vec<Told>, unseen: &[&str]) -> Trace {
        let unseen = unseen.iter().map(|name| (*name).to_owned()).collect();
        Trace::new("alice".to_owned(), "web1".to_owned(), "tcp/443".to_owned(), told, unseen)
    }

    #[test]
    fn a_flow_that_is_allowed() {
        insta::assert_snapshot!(trace(vec![coordinator()], &["alice", "web1"]).text(0));
    }

    #[test]
    fn a_flow_that_the_nodes_owner_denies() {
        let trace = trace(vec![coordinator(), node(false)], &["web1"]);
        assert!(!trace.text(0).contains("Not seen"), "{}", trace.text(0));
        conforms("trace", &trace);
        insta::assert_snapshot!(trace.text(0));
        insta::assert_snapshot!(json(&trace).unwrap());
    }

    #[test]
    fn what_no_rule_allows_is_denied_in_the_same_words_whoever_tells() {
        let end = |by: &str| {
            let told = Told { stages: vec![], allowed: false, by: by.to_owned() };
            trace(vec![told], &[]).text(0).lines().last().unwrap().to_owned()
        };
        for by in [
            "no rule",
            "out-filter (at alice: no rule allows it)",
            "map (no rule connects alice and web1, so that neither has the other in its map)",
        ] {
            assert_eq!(end(by), "Final disposition: DENIED by default: no rule allows it", "{by}");
        }
        assert_eq!(end("denial 2"), "Final disposition: DENIED by denial 2");
        let families = "over IPv4: rule 1: * -> * any; over IPv6: in-filter (at web1: no rule allows it)";
        assert_eq!(end(families), format!("Final disposition: DENIED by {families}"));
    }

    #[test]
    fn it_is_allowed_only_if_everybody_who_was_asked_says_so() {
        assert!(trace(vec![coordinator(), node(true)], &[]).allowed);
        assert!(!trace(vec![node(false), coordinator()], &[]).allowed);
        assert!(!trace(vec![], &[]).allowed);
        let both = trace(vec![coordinator(), node(true)], &[]);
        assert_eq!(both.by, coordinator().by);
        assert!(
            both.text(0)
                .ends_with("\n\nFinal disposition: ALLOWED by rule 3 (group:dev -> tag:web tcp/443)\n")
        );
    }
}
