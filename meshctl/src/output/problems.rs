//! What is wrong with a policy file, as compilers tell it: file, line, column, and the line itself with a caret.

use std::fmt::Write as _;

use ringmesh_proto::admin;
use serde::Serialize;

use super::{Document, printable};

/// Characters of a source line that are shown, around the column.
const WIDTH: usize = 100;

/// Something about a policy file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Problem {
    /// `error` or `warning`.
    pub(crate) severity: &'static str,
    pub(crate) line: u32,
    pub(crate) column: u32,
    pub(crate) message: String,
}

impl From<admin::PolicyProblem> for Problem {
    fn from(problem: admin::PolicyProblem) -> Self {
        let admin::PolicyProblem { warning, line, column, message } = problem;
        Self::new(warning, line, column, message)
    }
}

impl Problem {
    pub(crate) fn new(warning: bool, line: u32, column: u32, message: String) -> Self {
        let severity = if warning { "warning" } else { "error" };
        // One line for one problem: what splits this output relies on it.
        let message = message.trim_end().replace('\n', " ");
        Self { severity, line: line.max(1), column: column.max(1), message }
    }

    pub(crate) fn is_error(&self) -> bool {
        self.severity == "error"
    }

    /// `policy.toml:4:9: error: ...`, and below it the line of `source` with a caret, if there is such a line.
    fn text(&self, file: &str, source: &str) -> String {
        let Self { severity, line, column, message } = self;
        let mut text = printable(&format!("{file}:{line}:{column}: {severity}: {message}"));
        text.push('\n');
        let before = usize::try_from(*line).unwrap_or(usize::MAX) - 1;
        if let Some(shown) = source.lines().nth(before) {
            let (shown, caret) = window(shown, usize::try_from(*column).unwrap_or(usize::MAX) - 1);
            let margin = line.to_string().len();
            let _ = writeln!(text, " {line} | {}", shown.trim_end());
            let _ = writeln!(text, " {:margin$} | {:caret$}^", "", "");
        }
        text
    }
}

/// The part of a line around the character at `place`, safe for a terminal, and where that character is in it.
fn window(line: &str, place: usize) -> (String, usize) {
    let characters: Vec<char> = line.chars().map(|c| if c == '\t' { ' ' } else { c }).collect();
    let place = place.min(characters.len());
    // The end of a long line is shown whole if the place is near it.
    let start = place.saturating_sub(WIDTH / 2).min(characters.len().saturating_sub(WIDTH));
    let shown: String = characters.iter().skip(start).take(WIDTH).collect();
    (printable_same_length(&shown), place - start)
}

/// What could do something to a terminal as `?`, and everything else as it is, so that the caret stays under its character.
fn printable_same_length(text: &str) -> String {
    // Marks and embeddings by which text runs from right to left: they would turn the line around.
    let turns =
        |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|c| if c.is_control() || turns(c) { '?' } else { c }).collect()
}

/// All of them, one after the other.
pub(crate) fn text(problems: &[Problem], file: &str, source: &str) -> String {
    problems.iter().map(|problem| problem.text(file, source)).collect()
}

/// `1 error, 2 warnings`, or `no problem`.
pub(crate) fn count(problems: &[Problem]) -> String {
    let errors = problems.iter().filter(|problem| problem.is_error()).count();
    let counts = [(errors, "error"), (problems.len() - errors, "warning")];
    let counts = counts.into_iter().filter(|(count, _)| *count > 0);
    let counts: Vec<String> =
        counts.map(|(count, what)| format!("{count} {what}{}", if count == 1 { "" } else { "s" })).collect();
    if counts.is_empty() { "no problem".to_owned() } else { counts.join(", ") }
}

/// The result of `meshctl policy check`: `schemas/policy-checked.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Checked {
    pub(crate) file: String,
    /// No error; there may be warnings.
    pub(crate) ok: bool,
    /// Whether a coordinator was asked; otherwise nobody knows whether its members exist.
    pub(crate) members_checked: bool,
    /// `null`: they can only be counted, and the tests only run, by who knows the members.
    pub(crate) rules: Option<u32>,
    pub(crate) tests: Option<u32>,
    pub(crate) problems: Vec<Problem>,
    #[serde(skip)]
    pub(crate) source: String,
}

impl Document for Checked {
    fn text(&self, _: u64) -> String {
        let mut text = text(&self.problems, &self.file, &self.source);
        if !self.ok {
            return text;
        }
        let mut parts = vec![count(&self.problems)];
        if let (Some(rules), Some(tests)) = (self.rules, self.tests) {
            parts.extend([super::plan::rules(rules), super::plan::tests(tests)]);
        }
        if !self.members_checked {
            parts.push("names of members were not checked, and its tests not run (offline)".to_owned());
        }
        let _ = writeln!(text, "{}: ok: {}", printable(&self.file), parts.join("; "));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{json, tests::conforms};

    const SOURCE: &str =
        "[groups]\nadmins = [\"alice\"]\n\n[[allow]]\nfrom = [\"group:amdins\"]\n\tto = [\"web1\"]\n";

    fn problems() -> Vec<Problem> {
        vec![
            Problem::new(false, 5, 9, "there is no group `amdins`;\nthere is `admins`\n".to_owned()),
            Problem::new(true, 6, 8, "this rule can never match".to_owned()),
        ]
    }

    fn checked(problems: Vec<Problem>) -> Checked {
        Checked {
            file: "policy.toml".to_owned(),
            ok: !problems.iter().any(Problem::is_error),
            members_checked: true,
            rules: Some(3),
            tests: Some(1),
            problems,
            source: SOURCE.to_owned(),
        }
    }

    #[test]
    fn problems_are_told_with_their_place_and_line() {
        insta::assert_snapshot!(checked(problems()).text(0));
    }

    #[test]
    fn problems_as_json() {
        conforms("policy-checked", &checked(problems()));
        insta::assert_snapshot!(json(&checked(problems())).unwrap());
    }

    #[test]
    fn a_good_file_is_said_to_be_good_and_how_far_that_was_checked() {
        assert_eq!(checked(vec![]).text(0), "policy.toml: ok: no problem; 3 rules; 1 test passed\n");
        let warned = checked(problems().split_off(1)).text(0);
        assert!(warned.ends_with("\npolicy.toml: ok: 1 warning; 3 rules; 1 test passed\n"), "{warned}");
        let offline = Checked { members_checked: false, rules: None, tests: None, ..checked(vec![]) };
        conforms("policy-checked", &offline);
        assert!(offline.text(0).contains("names of members were not checked"), "{}", offline.text(0));
    }

    #[test]
    fn a_place_that_is_not_there_or_hides_an_escape_does_no_harm() {
        let at = |line, column, source: &str| {
            Problem::new(false, line, column, "x\u{1b}[2J".to_owned()).text("f", source)
        };
        assert_eq!(at(9, 9, SOURCE), "f:9:9: error: x?[2J\n");
        assert_eq!(at(0, 0, "a\u{1b}b"), "f:1:1: error: x?[2J\n 1 | a?b\n   | ^\n");
        assert_eq!(at(1, 2, "\u{202e}b\u{2066}"), "f:1:2: error: x?[2J\n 1 | ?b?\n   |  ^\n");
        assert_eq!(at(1, 99, "ab"), "f:1:99: error: x?[2J\n 1 | ab\n   |   ^\n");
        let long = format!("{}X{}", "a".repeat(300), "b".repeat(300));
        let text = at(1, 301, &long);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.iter().all(|line| line.len() < WIDTH + 10), "{text}");
        assert_eq!(lines[1].find('X'), lines[2].find('^'), "{text}");
    }

    #[test]
    fn problems_are_counted_by_kind() {
        assert_eq!(count(&problems()), "1 error, 1 warning");
        assert_eq!(count(&[]), "no problem");
    }
}
