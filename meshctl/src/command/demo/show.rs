//! How the demo looks: a line for each step when it is done, and what is going on meanwhile on a terminal.

use std::{
    fmt::Write as _,
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use ringmesh_lab::Privilege;
use serde::Serialize;
use serde_json::{Map, Value};

use super::ground::{Nat, Terrain};
use crate::{
    failure::Failure,
    output::{self, Document, Format},
};

/// Width of the column with the steps' names.
const NAMES: usize = 20;

/// The demo as it is told.
#[derive(Debug)]
pub(super) struct Show {
    format: Format,
    colours: bool,
    bar: ProgressBar,
    report: Report,
}

/// What programs get: `schemas/demo.json`.
#[derive(Debug, Serialize)]
struct Report {
    ok: bool,
    privilege: &'static str,
    nodes: u8,
    transport: &'static str,
    nat: Nat,
    steps: Vec<Step>,
}

#[derive(Debug, Serialize)]
struct Step {
    name: &'static str,
    ok: bool,
    milliseconds: u128,
    text: String,
    facts: Map<String, Value>,
}

/// How a step ended well.
#[derive(Debug)]
pub(super) struct Outcome {
    text: String,
    facts: Map<String, Value>,
}

impl Outcome {
    /// Says in a line what was seen; further lines are indented under it.
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), facts: Map::new() }
    }

    /// Puts words before what was seen.
    #[must_use]
    pub(super) fn after(mut self, words: &str) -> Self {
        self.text.insert_str(0, words);
        self
    }

    /// Adds a measured value for programs.
    #[must_use]
    pub(super) fn fact(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.facts.insert(name.to_owned(), value.into());
        self
    }
}

impl Document for Report {
    fn text(&self, _: u64) -> String {
        String::new()
    }
}

impl Show {
    pub(super) fn new(format: Format, privilege: Privilege, nodes: u8, terrain: Terrain) -> Self {
        let Terrain { transport, nat } = terrain;
        let transport = transport.label();
        let bar = ProgressBar::new_spinner();
        let style = ProgressStyle::with_template("  {spinner}     {msg}  ({elapsed})");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()).tick_chars("|/-\\ "));
        let privilege = match privilege {
            Privilege::Root => "root",
            Privilege::UserNamespace => "user-namespace",
        };
        let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self {
            format,
            colours,
            bar,
            report: Report { ok: true, privilege, nodes, transport, nat, steps: Vec::new() },
        }
    }

    /// The first line.
    pub(super) fn title(&self, text: &str) -> Result<(), Failure> {
        self.line(&format!("{}\n\n", self.paint("1", text)))
    }

    /// Does a step and tells how it went; `doing` is shown meanwhile.
    pub(super) fn step(
        &mut self,
        name: &'static str,
        doing: &str,
        work: impl FnOnce() -> Result<Outcome, Failure>,
    ) -> Result<(), Failure> {
        let started = Instant::now();
        self.bar.reset_elapsed();
        self.bar.set_message(doing.to_owned());
        self.bar.enable_steady_tick(Duration::from_millis(100));
        let result = work();
        self.bar.disable_steady_tick();
        let milliseconds = started.elapsed().as_millis();
        let (outcome, failed) = match result {
            Ok(outcome) => (outcome, None),
            Err(failure) => (Outcome::new(failure.error()), Some(failure)),
        };
        let ok = failed.is_none();
        self.line(&self.step_line(name, ok, &outcome.text, milliseconds))?;
        self.report.ok &= ok;
        self.report.steps.push(Step { name, ok, milliseconds, text: outcome.text, facts: outcome.facts });
        failed.map_or(Ok(()), |failure| {
            let named = Failure::new(failure.exit(), format!("the demo failed at: {name}"));
            Err(named.caused_by_report(&failure.to_string()))
        })
    }

    /// Lines that are no step.
    pub(super) fn remark(&self, text: &str) -> Result<(), Failure> {
        self.line(text)
    }

    /// The end: the report, if a program asked.
    pub(super) fn end(&self) -> Result<(), Failure> {
        self.bar.finish_and_clear();
        match self.format {
            Format::Table => Ok(()),
            Format::Json => output::result(self.format, &self.report),
        }
    }

    fn step_line(&self, name: &str, ok: bool, text: &str, milliseconds: u128) -> String {
        let mark = if ok { self.paint("32", "ok  ") } else { self.paint("31", "FAIL") };
        let mut lines = text.lines();
        let first = lines.next().unwrap_or_default();
        let name = self.paint("1", &format!("{name:<NAMES$}"));
        let time = self.paint("2", &format!("[{}]", duration(milliseconds)));
        let mut line = format!("  {mark}  {name}  {first}  {time}\n");
        for more in lines {
            let _ = writeln!(line, "{:indent$}{more}", "", indent = NAMES + 10);
        }
        line
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn line(&self, text: &str) -> Result<(), Failure> {
        match self.format {
            Format::Table => self.bar.suspend(|| output::write_result(text)),
            // Programs get the report on standard output; who watches gets the lines.
            Format::Json => {
                self.bar.suspend(|| output::note(text.trim_end()));
                Ok(())
            }
        }
    }
}

/// `834 ms`, `2.1 s`.
fn duration(milliseconds: u128) -> String {
    if milliseconds < 1000 {
        format!("{milliseconds} ms")
    } else {
        format!("{}.{} s", milliseconds / 1000, milliseconds % 1000 / 100)
    }
}

/// A short time as people read it: `0.18 ms`, `12.3 ms`.
pub(super) fn short(time: Duration) -> String {
    let milliseconds = time.as_secs_f64() * 1000.0;
    if milliseconds < 10.0 { format!("{milliseconds:.2} ms") } else { format!("{milliseconds:.0} ms") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::demo::ground::Transport;

    const PLAIN: Terrain = Terrain { transport: Transport::Direct, nat: Nat::None };

    #[test]
    fn a_step_is_a_line_with_its_details_under_it() {
        let mut show = Show::new(Format::Table, Privilege::Root, 2, PLAIN);
        show.colours = false;
        let line = show.step_line("node joins", true, "node1 in 80 ms\nno peer yet", 1234);
        let expected = "  ok    node joins            node1 in 80 ms  [1.2 s]\n                              no peer yet\n";
        assert_eq!(line, expected);
        assert!(show.step_line("pings", false, "no reply", 7).starts_with("  FAIL  pings"));
    }

    #[test]
    fn the_failure_of_a_step_names_it_and_is_in_the_report() {
        let mut show = Show::new(Format::Json, Privilege::Root, 2, PLAIN);
        show.step("one", "", || Ok(Outcome::new("fine").fact("count", 1))).unwrap();
        let failed = show.step("two", "", || {
            Err(Failure::new(crate::failure::Exit::Timeout, "too slow")
                .cause("a busy machine")
                .attempt("wait"))
        });
        let failure = failed.unwrap_err();
        assert_eq!(failure.exit(), crate::failure::Exit::Timeout);
        let text = "error: the demo failed at: two\ncause: too slow\ncause: a busy machine\ntry: wait";
        assert_eq!(failure.to_string(), text);
        let report = serde_json::to_value(&show.report).unwrap();
        assert_eq!(report["ok"], false);
        assert_eq!(report["steps"][0]["facts"]["count"], 1);
        assert_eq!(report["steps"][1]["ok"], false);
    }

    #[test]
    fn times_are_short_and_have_their_unit() {
        assert_eq!(short(Duration::from_micros(180)), "0.18 ms");
        assert_eq!(short(Duration::from_millis(123)), "123 ms");
        assert_eq!(duration(999), "999 ms");
        assert_eq!(duration(61_050), "61.0 s");
    }
}
