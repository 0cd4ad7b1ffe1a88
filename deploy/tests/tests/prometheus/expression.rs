//! Which metrics and labels an expression of Prometheus names. Not a parser of the language: promtool is that, and accepts only what
//! is valid.

use std::collections::{BTreeMap, BTreeSet};

/// Words of the language that stand where a metric could.
const WORDS: [&str; 8] = ["and", "or", "unless", "bool", "offset", "inf", "nan", "atan2"];
/// Words before a list of labels.
const GROUPING: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];

/// A metric with the labels that must have, or may have, some value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    pub(crate) metric: String,
    /// Label, operator and value.
    pub(crate) labels: Vec<(String, String, String)>,
}

/// The metrics that `text` selects, and the labels by which it groups.
pub(crate) fn named(text: &str) -> (Vec<Selector>, BTreeSet<String>) {
    let (mut selectors, mut grouped) = (Vec::new(), BTreeSet::new());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if first.is_ascii_alphabetic() || first == '_' {
            let (word, after) = word(rest);
            let next = after.trim_start();
            if GROUPING.contains(&word) && next.starts_with('(') {
                let (list, after) = enclosed(next, ')');
                grouped.extend(
                    list.split(',').map(|label| label.trim().to_owned()).filter(|label| !label.is_empty()),
                );
                rest = after;
            } else if WORDS.contains(&word)
                || next.starts_with('(')
                || ["by", "without"].contains(&self::word(next).0)
            {
                rest = after;
            } else {
                let mut selector = Selector { metric: word.to_owned(), ..Selector::default() };
                rest = after;
                if next.starts_with('{') {
                    let (list, after) = enclosed(next, '}');
                    selector.labels = matchers(list);
                    rest = after;
                }
                selectors.push(selector);
            }
        } else if first == '[' {
            rest = enclosed(rest, ']').1;
        } else if first == '"' {
            rest = quoted(rest).1;
        } else if first.is_ascii_digit() {
            // A number, or a duration, whose letters name nothing.
            rest = rest.trim_start_matches(|letter: char| letter.is_ascii_alphanumeric() || letter == '.');
        } else {
            rest = &rest[first.len_utf8()..];
        }
    }
    (selectors, grouped)
}

/// The values that a label is compared with, by metric: those by `=`, and the alternatives of a plain `=~`.
pub(crate) fn values(selectors: &[Selector]) -> BTreeMap<(String, String), BTreeSet<String>> {
    let mut values = BTreeMap::<_, BTreeSet<String>>::new();
    for selector in selectors {
        for (label, operator, value) in &selector.labels {
            if operator == "=" {
                values.entry((selector.metric.clone(), label.clone())).or_default().insert(value.clone());
            }
        }
    }
    values
}

fn word(text: &str) -> (&str, &str) {
    let end = text.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_' && letter != ':');
    text.split_at(end.unwrap_or(text.len()))
}

/// What stands between the bracket at the beginning and `closing`, and what comes after it. Strings may hold brackets.
fn enclosed(text: &str, closing: char) -> (&str, &str) {
    let (mut at, mut rest) = (1, &text[1..]);
    while let Some(next) = rest.chars().next() {
        if next == closing {
            return (&text[1..at], &rest[1..]);
        }
        let step = if next == '"' { rest.len() - quoted(rest).1.len() } else { next.len_utf8() };
        at += step;
        rest = &rest[step..];
    }
    panic!("no {closing} in {text}");
}

/// The string at the beginning, and what comes after it.
fn quoted(text: &str) -> (&str, &str) {
    let mut escaped = false;
    for (at, letter) in text.char_indices().skip(1) {
        match letter {
            '"' if !escaped => return (&text[1..at], &text[at + 1..]),
            _ => escaped = letter == '\\' && !escaped,
        }
    }
    panic!("no end of the string in {text}");
}

fn matchers(list: &str) -> Vec<(String, String, String)> {
    let mut found = Vec::new();
    let mut rest = list.trim();
    while !rest.is_empty() {
        let (label, after) = word(rest);
        let operator_end = after.find('"').expect("a matcher has a string");
        let (value, after) = quoted(&after[operator_end..]);
        let operator = rest[label.len()..label.len() + operator_end].trim();
        found.push((label.to_owned(), operator.to_owned(), value.to_owned()));
        rest = after.trim_start().trim_start_matches(',').trim_start();
    }
    found
}

#[test]
fn metrics_and_labels_are_found_wherever_they_stand() {
    let text = "histogram_quantile(0.9, sum by (le, job) (rate(a_bucket{x=\"}\", y=~\"b|c\"}[10m]))) > 7 * 86400 \
                and on(z) max_over_time(d:e[5m] offset 1h) unless f or vector(0)";
    let (selectors, grouped) = named(text);
    let metrics: Vec<_> = selectors.iter().map(|selector| selector.metric.as_str()).collect();
    assert_eq!(metrics, ["a_bucket", "d:e", "f"]);
    let labels = |list: &[(&str, &str, &str)]| -> Vec<(String, String, String)> {
        list.iter().map(|(a, b, c)| ((*a).into(), (*b).into(), (*c).into())).collect()
    };
    assert_eq!(selectors[0].labels, labels(&[("x", "=", "}"), ("y", "=~", "b|c")]));
    assert_eq!(grouped.into_iter().collect::<Vec<_>>(), ["job", "le", "z"]);
    let values = values(&selectors);
    assert_eq!(values.into_keys().collect::<Vec<_>>(), [("a_bucket".to_owned(), "x".to_owned())]);
}
