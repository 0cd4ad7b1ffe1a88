//! What is wrong with a file, and where.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use std::fmt;

use serde::{Deserialize, Serialize};

/// The most problems that are told of one file; a last one counts the others.
pub const PROBLEMS_MAX: usize = 200;

/// The longest quotation of a file in a message, characters.
const QUOTE_MAX: usize = 64;

/// Something about a policy file: an error, which refuses it, or a warning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Whether the file can be applied all the same.
    pub warning: bool,
    /// Where: the line, from 1 on.
    pub line: u32,
    /// Where in the line: characters, from 1 on.
    pub column: u32,
    /// The cause and the cure: one line, in which nothing of the file stands unescaped.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.warning { "warning" } else { "error" };
        write!(f, "line {}, column {}: {kind}: {}", self.line, self.column, self.message)
    }
}

/// Collects the problems of one text.
#[derive(Debug)]
pub(super) struct Report<'t> {
    text: &'t str,
    problems: Vec<Problem>,
    untold: usize,
    failed: bool,
}

impl<'t> Report<'t> {
    pub(super) const fn of(text: &'t str) -> Self {
        Self { text, problems: Vec::new(), untold: 0, failed: false }
    }

    /// Notes what refuses the file, at a byte of the text.
    pub(super) fn error(&mut self, at: usize, message: impl FnOnce() -> String) {
        self.failed = true;
        self.note(false, at, message);
    }

    /// Notes what the author should know, at a byte of the text.
    pub(super) fn warning(&mut self, at: usize, message: impl FnOnce() -> String) {
        self.note(true, at, message);
    }

    fn note(&mut self, warning: bool, at: usize, message: impl FnOnce() -> String) {
        if self.is_full() {
            self.untold = self.untold.saturating_add(1);
            return;
        }
        let (line, column) = place(self.text, at);
        self.problems.push(Problem { warning, line, column, message: message() });
    }

    /// Whether the file is refused.
    pub(super) const fn failed(&self) -> bool {
        self.failed
    }

    /// Whether nothing more will be told.
    pub(super) fn is_full(&self) -> bool {
        self.problems.len() >= PROBLEMS_MAX
    }

    /// Everything, in the order of the text.
    pub(super) fn finish(self) -> Vec<Problem> {
        let Self { mut problems, untold, failed, .. } = self;
        problems.sort_by_key(|problem| (problem.line, problem.column));
        if let Some(last) = problems.last().filter(|_| untold > 0) {
            let message = format!("and {untold} more, not told: correct these first");
            problems.push(Problem { warning: !failed, message, ..*last });
        }
        problems
    }
}

/// The line and column of a byte, both from 1 on; columns count characters.
fn place(text: &str, at: usize) -> (u32, u32) {
    let before = text.get(..text.floor_char_boundary(at)).unwrap_or_default();
    let line = before.matches('\n').count();
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count();
    let from_one = |count: usize| u32::try_from(count).unwrap_or(u32::MAX).saturating_add(1);
    (from_one(line), from_one(column))
}

/// Text of a file within a message: in quotes, not too long, and so that it can do nothing to a terminal or a log.
pub(super) fn quote(text: &str) -> String {
    let more = if text.chars().nth(QUOTE_MAX).is_some() { "…" } else { "" };
    let shown: String = text.chars().take(QUOTE_MAX).collect();
    format!("\"{}\"{more}", shown.escape_debug())
}

/// Which of `known` a misspelled name may have meant.
pub(super) fn near<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let length = name.len();
    if !(1..=QUOTE_MAX).contains(&length) {
        return None;
    }
    let most = if length < 4 { 1 } else { 2 };
    let close = known.into_iter().filter(|other| other.len().abs_diff(length) <= most && *other != name);
    let distances = close.map(|other| (strsim::osa_distance(&name.to_ascii_lowercase(), other), other));
    // A word of which nothing is left is not near.
    distances.filter(|(distance, _)| *distance <= most && *distance < length).min().map(|(_, other)| other)
}

/// `: did you mean "x"?`, or what to do if nothing is near.
pub(super) fn did_you_mean<'a>(
    name: &str,
    known: impl IntoIterator<Item = &'a str>,
    otherwise: impl fmt::Display,
) -> String {
    match near(name, known) {
        Some(meant) => format!("did you mean {}?", quote(meant)),
        None => otherwise.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_characters_and_lines_begin_at_one() {
        let text = "ä = 1\nöü \u{1f980}x\n";
        assert_eq!(place(text, 0), (1, 1));
        assert_eq!(place(text, 2), (1, 2), "after a letter of two bytes");
        assert_eq!(place(text, text.find('x').unwrap()), (2, 5));
        assert_eq!(place(text, 1), (1, 1), "within a letter is at it");
        assert_eq!(place(text, 10_000), (3, 1), "past the end is the end");
        assert_eq!(place("", 0), (1, 1));
    }

    #[test]
    fn quotations_are_escaped_and_bounded() {
        assert_eq!(quote("a\u{1b}[2J\n\u{202e}b\""), "\"a\\u{1b}[2J\\n\\u{202e}b\\\"\"");
        assert_eq!(quote("müller"), "\"müller\"");
        assert_eq!(quote(&"a".repeat(10_000)).chars().count(), QUOTE_MAX + 3);
    }

    #[test]
    fn near_names_are_near() {
        let known = ["allow", "groups", "web", "db"];
        assert_eq!(near("alow", known), Some("allow"));
        assert_eq!(near("gruops", known), Some("groups"));
        assert_eq!(near("WEB", known), Some("web"));
        assert_eq!(near("wbe", known), Some("web"));
        for far in ["", "x", "other", "allowance", &"a".repeat(1_000)] {
            assert_eq!(near(far, known), None, "{far}");
        }
    }

    #[test]
    fn what_is_not_told_is_counted() {
        let mut report = Report::of("x\ny");
        for _ in 0..PROBLEMS_MAX + 5 {
            report.error(2, || "bad".into());
        }
        let problems = report.finish();
        assert_eq!(problems.len(), PROBLEMS_MAX + 1);
        let last = problems.last().unwrap();
        assert_eq!((last.line, last.warning), (2, false));
        assert!(last.message.contains("and 5 more"), "{last}");
    }
}
