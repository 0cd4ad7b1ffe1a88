//! What the names inside a file refer to inside it: tags, groups and hosts; and who is in which group in the end.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use std::collections::{BTreeMap, BTreeSet};

use ringmesh_tunnel::netmap::GROUPS_MAX;

use super::{
    super::problem::{Report, did_you_mean, quote},
    At, Group, PolicyFile, Selection,
};

/// The longest circle of groups that is written out.
const CIRCLE_MAX: usize = 8;

/// The members of every group by name, those of groups inside it included.
#[derive(Debug, Clone, Default)]
pub(in crate::policy) struct Membership(BTreeMap<String, BTreeSet<String>>);

impl Membership {
    /// Every group, with its members.
    pub(in crate::policy) fn groups(&self) -> impl Iterator<Item = (&str, &BTreeSet<String>)> {
        self.0.iter().map(|(name, members)| (name.as_str(), members))
    }

    /// Who is in which group; groups that contain themselves are told.
    pub(in crate::policy) fn of(file: &PolicyFile, report: &mut Report<'_>) -> Self {
        membership(file, report)
    }

    /// The members of a group.
    pub(in crate::policy) fn members(&self, group: &str) -> Option<&BTreeSet<String>> {
        self.0.get(group)
    }
}

/// Checks what the file says of itself, and says who is in which group.
pub(super) fn resolve(file: &PolicyFile, report: &mut Report<'_>) -> Membership {
    for rule in &file.rules {
        for word in rule.from.who.iter().chain(&rule.to.who) {
            selection(file, word, report);
        }
    }
    for test in &file.tests {
        selection(file, &test.from, report);
        selection(file, &test.to, report);
    }
    for group in file.groups.values() {
        for inner in &group.groups {
            known_group(file, inner.at, &inner.it, report);
        }
    }
    Membership::of(file, report)
}

fn selection(file: &PolicyFile, word: &At<Selection>, report: &mut Report<'_>) {
    match &word.it {
        Selection::Group(name) => known_group(file, word.at, name, report),
        Selection::Tag(name) if !file.tags.contains_key(name) => report.error(word.at, || {
            let cure = "add it to `tags`, at the top of the file, if join tokens may give it";
            let known = file.tags.keys().map(String::as_str);
            format!("unknown tag {}: {}", quote(name), did_you_mean(name, known, cure))
        }),
        Selection::Host(name) if !file.hosts.contains_key(name) => report.error(word.at, || {
            let cure = "add it below [hosts], with its addresses";
            let known = file.hosts.keys().map(String::as_str);
            format!("unknown host {}: {}", quote(name), did_you_mean(name, known, cure))
        }),
        Selection::All
        | Selection::Member(_)
        | Selection::Tag(_)
        | Selection::Host(_)
        | Selection::Range(_) => {}
    }
}

fn known_group(file: &PolicyFile, at: usize, name: &str, report: &mut Report<'_>) {
    if !file.groups.contains_key(name) {
        report.error(at, || {
            let cure = "add it below [groups], with its members";
            let known = file.groups.keys().map(String::as_str);
            format!("unknown group {}: {}", quote(name), did_you_mean(name, known, cure))
        });
    }
}

/// Fills groups from the innermost out; those that contain themselves are told.
///
/// Without recursion: a file has room for a chain of ten thousand groups.
fn membership(file: &PolicyFile, report: &mut Report<'_>) -> Membership {
    // For each group, for how many it still waits; and who waits for it.
    let mut missing: BTreeMap<&str, usize> = BTreeMap::new();
    let mut outer: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, group) in &file.groups {
        let inner: BTreeSet<&str> = inner(file, group).collect();
        missing.insert(name, inner.len());
        inner.into_iter().for_each(|inner| outer.entry(inner).or_default().push(name));
    }
    let mut ready: Vec<&str> =
        missing.iter().filter(|(_, missing)| **missing == 0).map(|(name, _)| *name).collect();
    let mut filling = Filling::default();
    while let Some(name) = ready.pop() {
        filling.fill(file, name, report);
        missing.remove(name);
        for waiting in outer.get(name).into_iter().flatten() {
            if let Some(count) = missing.get_mut(waiting) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    ready.push(waiting);
                }
            }
        }
    }
    circles(file, &missing, report);
    missing.into_keys().for_each(|name| filling.fill(file, name, report));
    filling.groups
}

/// The groups inside a group that there are.
fn inner<'f>(file: &'f PolicyFile, group: &'f Group) -> impl Iterator<Item = &'f str> {
    let names = group.groups.iter().map(|inner| inner.it.as_str());
    names.filter(|name| file.groups.contains_key(*name))
}

/// Tells each circle among groups of which every one waits for another one of them.
fn circles(file: &PolicyFile, waiting: &BTreeMap<&str, usize>, report: &mut Report<'_>) {
    let mut seen = BTreeSet::new();
    for start in waiting.keys() {
        let mut way: Vec<&str> = Vec::new();
        let mut next = Some(*start);
        while let Some(name) = next.filter(|name| seen.insert(*name)) {
            way.push(name);
            let group = file.groups.get(name);
            next = group.and_then(|group| inner(file, group).find(|inner| waiting.contains_key(inner)));
        }
        // Where this way met an earlier one, the circle behind was told with that.
        let again = next.and_then(|met| way.iter().position(|name| *name == met));
        let Some(circle) = again.and_then(|again| way.get(again..)) else { continue };
        let Some(first) = circle.iter().min() else { continue };
        let at = file.groups.get(*first).map_or(0, |group| group.at);
        report.error(at, || {
            let before = circle.iter().take_while(|name| *name != first).count();
            let names = circle.iter().cycle().skip(before).take(circle.len().saturating_add(1));
            let mut names: Vec<String> = names.map(|name| quote(name)).collect();
            if names.len() > CIRCLE_MAX {
                names.truncate(CIRCLE_MAX);
                names.push("…".into());
            }
            format!(
                "the group {} contains itself: {}; break the circle",
                quote(first),
                names.join(" contains ")
            )
        });
    }
}

/// Groups as they become complete.
#[derive(Debug, Default)]
struct Filling {
    /// How many groups each member is in.
    counts: BTreeMap<String, usize>,
    groups: Membership,
}

impl Filling {
    fn fill(&mut self, file: &PolicyFile, name: &str, report: &mut Report<'_>) {
        let Some(group) = file.groups.get(name) else { return };
        let mut members: BTreeSet<String> = group.members.iter().map(|member| member.it.clone()).collect();
        for inner in inner(file, group) {
            members.extend(self.groups.members(inner).into_iter().flatten().cloned());
        }
        // Who is beyond the bound was told, and is left out of what follows: the file is refused anyhow.
        members.retain(|member| {
            let count = self.counts.entry(member.clone()).or_default();
            *count = count.saturating_add(1);
            if *count == GROUPS_MAX.saturating_add(1) {
                report.error(group.at, || {
                    format!(
                        "{} is in more than {GROUPS_MAX} groups, the most that a member can be in: take it out of one",
                        quote(member)
                    )
                });
            }
            *count <= GROUPS_MAX
        });
        self.groups.0.insert(name.to_owned(), members);
    }
}
