//! `meshctl dns`: how mesh names are answered on this machine.

use std::{collections::BTreeMap, fmt::Write as _};

use ringmesh_proto::local;
use serde::Serialize;

use super::{
    Document, printable,
    table::{Columns, round_trip},
};

/// How names are answered: `schemas/dns-status.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    /// Where the machine was told of it: `resolved`, `resolvconf`, `hosts`, `off`.
    pub(crate) mode: String,
    pub(crate) reason: String,
    pub(crate) zone: String,
    pub(crate) listen: Vec<String>,
    pub(crate) upstreams: Vec<String>,
    pub(crate) names: u32,
    pub(crate) answers: BTreeMap<String, u64>,
}

impl From<local::DnsStatusResponse> for Status {
    fn from(response: local::DnsStatusResponse) -> Self {
        Self {
            mode: response.mode,
            reason: response.reason,
            zone: response.zone,
            listen: response.listen,
            upstreams: response.upstreams,
            names: response.names,
            answers: response.answers.into_iter().collect(),
        }
    }
}

impl Document for Status {
    fn text(&self, _: u64) -> String {
        let reason = if self.reason.is_empty() { String::new() } else { format!(" ({})", self.reason) };
        let or =
            |list: &[String], none: &str| if list.is_empty() { none.to_owned() } else { list.join(", ") };
        let mut table = Columns::bare();
        table.row(["zone".to_owned(), self.zone.clone()]);
        table.row(["names".to_owned(), self.names.to_string()]);
        table.row(["mode".to_owned(), format!("{}{reason}", self.mode)]);
        table.row(["answers at".to_owned(), or(&self.listen, "nowhere")]);
        table.row(["other names".to_owned(), or(&self.upstreams, "nobody is asked")]);
        let mut text = table.text();
        if !self.answers.is_empty() {
            let mut table = Columns::new(["ANSWER", "COUNT"]);
            for (answer, count) in &self.answers {
                table.row([answer.clone(), count.to_string()]);
            }
            let _ = write!(text, "\n{}", table.text());
        }
        text
    }
}

/// A record of an answer.
#[derive(Debug, Serialize)]
pub(crate) struct Record {
    pub(crate) name: String,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) ttl: u32,
    pub(crate) data: String,
}

/// The answer to a query: `schemas/dns-query.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Answer {
    pub(crate) name: String,
    /// `NOERROR`, `NXDOMAIN`, ...
    pub(crate) code: String,
    pub(crate) records: Vec<Record>,
    /// `zone`, or the resolver that answered; empty: none did.
    pub(crate) source: String,
    pub(crate) took_us: u32,
}

impl Answer {
    pub(crate) fn new(name: String, response: local::DnsQueryResponse) -> Self {
        let record = |record: local::DnsRecord| Record {
            name: record.name,
            kind: record.r#type,
            ttl: record.ttl,
            data: record.data,
        };
        Self {
            name,
            code: response.code,
            records: response.records.into_iter().map(record).collect(),
            source: response.source,
            took_us: response.took_us,
        }
    }

    /// Whether there is an answer, be it that there is no such name.
    pub(crate) fn is_answered(&self) -> bool {
        matches!(self.code.as_str(), "NOERROR" | "NXDOMAIN")
    }
}

impl Document for Answer {
    fn text(&self, _: u64) -> String {
        let mut text = String::new();
        if !self.records.is_empty() {
            let mut table = Columns::new(["NAME", "TYPE", "TTL", "DATA"]);
            for record in &self.records {
                table.row([
                    record.name.clone(),
                    record.kind.clone(),
                    record.ttl.to_string(),
                    record.data.clone(),
                ]);
            }
            text = table.text();
            text.push('\n');
        }
        let meaning = match (self.code.as_str(), self.records.is_empty()) {
            ("NOERROR", true) => ": the name exists, and has no such record",
            ("NXDOMAIN", _) => ": there is no such name",
            _ => "",
        };
        let source = match self.source.as_str() {
            "zone" => "; from the mesh's zone in",
            "" => ": no resolver answered, after",
            source => &format!("; from {source} in"),
        };
        let end = format!("{}{meaning}{source} {}", self.code, round_trip(self.took_us));
        let _ = writeln!(text, "{}", printable(&end));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{json, tests::conforms};

    fn status() -> local::DnsStatusResponse {
        local::DnsStatusResponse {
            mode: "resolved".to_owned(),
            reason: "systemd-resolved answers on D-Bus".to_owned(),
            zone: "mesh".to_owned(),
            listen: vec!["100.64.0.1:53".to_owned(), "[fd12:3456:789a::1]:53".to_owned()],
            upstreams: vec!["192.0.2.53".to_owned()],
            names: 51,
            answers: [("NOERROR".to_owned(), 312), ("NXDOMAIN".to_owned(), 2)].into(),
        }
    }

    fn record(kind: &str, data: &str) -> local::DnsRecord {
        local::DnsRecord {
            name: "web1.mesh.".to_owned(),
            r#type: kind.to_owned(),
            ttl: 10,
            data: data.to_owned(),
        }
    }

    fn answer(code: &str, records: Vec<local::DnsRecord>, source: &str) -> Answer {
        let response = local::DnsQueryResponse {
            code: code.to_owned(),
            records,
            source: source.to_owned(),
            took_us: 84,
        };
        let answer = Answer::new("web1".to_owned(), response);
        conforms("dns-query", &answer);
        answer
    }

    #[test]
    fn where_names_are_answered() {
        conforms("dns-status", &Status::from(status()));
        insta::assert_snapshot!(Status::from(status()).text(0));
    }

    #[test]
    fn names_that_are_answered_nowhere() {
        let off = local::DnsStatusResponse {
            mode: "off".to_owned(),
            zone: "mesh".to_owned(),
            ..Default::default()
        };
        let off = Status::from(off);
        conforms("dns-status", &off);
        assert!(
            off.text(0).contains("nowhere") && off.text(0).contains("nobody is asked"),
            "{}",
            off.text(0)
        );
    }

    #[test]
    fn an_answer_with_its_records() {
        let answer =
            answer("NOERROR", vec![record("A", "100.64.0.2"), record("AAAA", "fd12:3456:789a::2")], "zone");
        assert!(answer.is_answered());
        insta::assert_snapshot!(answer.text(0));
        insta::assert_snapshot!(json(&answer).unwrap());
    }

    #[test]
    fn no_record_no_name_and_no_answer_are_told_apart() {
        let text = |code, source| answer(code, vec![], source).text(0);
        assert_eq!(
            text("NOERROR", "zone"),
            "NOERROR: the name exists, and has no such record; from the mesh's zone in 0.084 ms\n"
        );
        assert_eq!(
            text("NXDOMAIN", "zone"),
            "NXDOMAIN: there is no such name; from the mesh's zone in 0.084 ms\n"
        );
        assert_eq!(text("SERVFAIL", "192.0.2.53"), "SERVFAIL; from 192.0.2.53 in 0.084 ms\n");
        assert_eq!(text("SERVFAIL", ""), "SERVFAIL: no resolver answered, after 0.084 ms\n");
        assert!(answer("NXDOMAIN", vec![], "zone").is_answered());
        assert!(!answer("SERVFAIL", vec![], "").is_answered());
    }
}
