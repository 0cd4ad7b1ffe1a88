//! `meshctl events`: one line for each, as they come.

use std::collections::BTreeMap;

use ringmesh_proto::admin;
use serde::Serialize;

use super::{Document, Format, JSON_VERSION, printable, table, write_line};
use crate::failure::{Exit, Failure};

/// Who made a change.
#[derive(Debug, Serialize)]
pub(crate) struct Actor {
    pub(crate) kind: String,
    pub(crate) id: String,
    pub(crate) name: String,
}

/// Whom or what it is about.
#[derive(Debug, Serialize)]
pub(crate) struct Subject {
    pub(crate) id: String,
    pub(crate) name: String,
}

/// Something that happened: `schemas/event.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) time_ms: u64,
    /// 0: nothing durable changed.
    pub(crate) revision: u64,
    /// Empty: it belongs to none.
    pub(crate) network: String,
    pub(crate) actor: Actor,
    pub(crate) subject: Subject,
    pub(crate) details: BTreeMap<String, String>,
    pub(crate) request_id: String,
}

impl From<admin::Event> for Event {
    fn from(event: admin::Event) -> Self {
        let admin::Actor { kind, id, name } = event.actor.unwrap_or_default();
        Self {
            name: event.name,
            time_ms: event.time_ms,
            revision: event.revision,
            network: event.network,
            actor: Actor { kind, id, name },
            subject: Subject { id: event.subject_id, name: event.subject_name },
            details: event.details.into_iter().collect(),
            request_id: event.request_id,
        }
    }
}

impl Actor {
    fn text(&self) -> String {
        let called = if self.name.is_empty() { &self.id } else { &self.name };
        match self.kind.as_str() {
            // Who is at the machine is known by his name alone.
            "user" => called.clone(),
            "api-key" => format!("API key {called}"),
            kind if called.is_empty() => kind.to_owned(),
            kind => format!("{kind} {called}"),
        }
    }
}

impl Subject {
    fn text(&self) -> String {
        match (self.name.as_str(), self.id.as_str()) {
            ("", "") => table::NONE.to_owned(),
            ("", only) | (only, "") => only.to_owned(),
            (name, id) => format!("{name} ({id})"),
        }
    }
}

impl Document for Event {
    /// The columns have the width of what usually stands in them, as nobody knows what will come.
    fn text(&self, _: u64) -> String {
        let revision = match self.revision {
            0 => table::NONE.to_owned(),
            revision => format!("r{revision}"),
        };
        let network = if self.network.is_empty() { table::NONE } else { &self.network };
        let time = table::utc(self.time_ms);
        let mut line = format!(
            "{time}  {revision:<6}  {network:<8}  {:<18}  {}  by {}",
            self.name,
            self.subject.text(),
            self.actor.text()
        );
        for (name, value) in &self.details {
            let value = if value.contains([' ', '"']) { format!("{value:?}") } else { value.clone() };
            line.push_str(&format!("  {name}={value}"));
        }
        if !self.request_id.is_empty() {
            line.push_str(&format!("  request={}", self.request_id));
        }
        let mut line = printable(&line).replace('\n', " ");
        line.push('\n');
        line
    }
}

/// Writes one event: a line of text, or of JSON (<https://jsonlines.org>). False: nobody reads any more.
pub(crate) fn write(format: Format, event: &Event) -> Result<bool, Failure> {
    match format {
        Format::Table => write_line(&event.text(0)),
        Format::Json => write_line(&json_line(event)?),
    }
}

fn json_line(event: &Event) -> Result<String, Failure> {
    let versioned = super::Versioned { v: JSON_VERSION, document: event };
    let mut line = serde_json::to_string(&versioned).map_err(|error| {
        Failure::new(Exit::General, "the event cannot be written as JSON").cause(error.to_string())
    })?;
    line.push('\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &str, name: &str) -> admin::Event {
        admin::Event {
            name: name.into(),
            time_ms: 1_795_278_665_250,
            revision: 812,
            network: "mesh".into(),
            actor: Some(admin::Actor {
                kind: kind.into(),
                id: "0123456789abcdef".into(),
                name: "web".into(),
            }),
            subject_id: "0123456789abcdef".into(),
            subject_name: "web".into(),
            details: [("ipv4", "100.64.0.7"), ("tags", "db, web")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            request_id: String::new(),
        }
    }

    #[test]
    fn events_line_by_line() {
        let mut applied = event("user", "policy_applied");
        (applied.subject_id, applied.subject_name) = ("813".into(), String::new());
        applied.details = [("comment".to_owned(), "say \"hi\"\u{1b}[2J".to_owned())].into();
        applied.request_id = "ci-7".into();
        let mut online = event("coordinator", "revision_installed");
        (online.revision, online.network, online.subject_id) = (0, String::new(), String::new());
        online.subject_name.clear();
        online.actor = Some(admin::Actor { kind: "coordinator".into(), ..Default::default() });
        let events = [event("node", "node_joined"), event("api-key", "node_removed"), applied, online];
        let text: String = events.into_iter().map(|event| Event::from(event).text(0)).collect();
        insta::assert_snapshot!(text);
    }

    #[test]
    fn an_event_is_one_line_of_json_that_conforms() {
        let event = Event::from(event("node", "node_joined"));
        super::super::tests::conforms("event", &event);
        let line = json_line(&event).unwrap();
        assert_eq!((line.matches('\n').count(), line.starts_with("{\"v\":1,")), (1, true), "{line}");
        insta::assert_snapshot!(line);
    }
}
