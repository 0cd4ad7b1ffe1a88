//! Reads the text of a policy file into what it says, each word with its place.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

mod read;
mod resolve;
mod word;

pub(super) use self::{
    resolve::Membership,
    word::{Asked, Selection, Target, everybody},
};

use std::collections::BTreeMap;

use ringmesh_tunnel::{
    ip::Prefix,
    netmap::{PortRange, Protocol},
};

use super::problem::{Problem, Report};

/// The longest policy file, bytes.
pub const TEXT_MAX: usize = 256 * 1024;

/// A word, and the byte of the text at which it stands.
#[derive(Debug, Clone)]
pub(super) struct At<T> {
    pub(super) at: usize,
    pub(super) it: T,
}

/// What a policy file says, without what its names mean now: that is for a [`Roster`](super::Roster) to say.
#[derive(Debug, Clone, Default)]
pub struct PolicyFile {
    text: String,
    pub(super) tags: BTreeMap<String, usize>,
    pub(super) groups: BTreeMap<String, Group>,
    pub(super) hosts: BTreeMap<String, Vec<Prefix>>,
    pub(super) rules: Vec<RuleText>,
    pub(super) names: Vec<NameText>,
    pub(super) tests: Vec<TestText>,
}

/// A group as written.
#[derive(Debug, Clone)]
pub(super) struct Group {
    pub(super) at: usize,
    pub(super) members: Vec<At<String>>,
    pub(super) groups: Vec<At<String>>,
}

/// An `[[allow]]`.
#[derive(Debug, Clone)]
pub(super) struct RuleText {
    pub(super) at: usize,
    pub(super) from: Side,
    pub(super) to: Side,
    pub(super) protocol: Protocol,
    pub(super) ports: Vec<PortRange>,
}

/// One side of a rule: where it stands, and whom it selects.
#[derive(Debug, Clone, Default)]
pub(super) struct Side {
    pub(super) at: usize,
    pub(super) who: Vec<At<Selection>>,
}

/// A line of `[names]`.
#[derive(Debug, Clone)]
pub(super) struct NameText {
    pub(super) at: usize,
    pub(super) name: String,
    pub(super) targets: Vec<At<Target>>,
}

/// A `[[test]]`.
#[derive(Debug, Clone)]
pub(super) struct TestText {
    pub(super) at: usize,
    pub(super) from: At<Selection>,
    pub(super) to: At<Selection>,
    pub(super) allow: Vec<At<Asked>>,
    pub(super) deny: Vec<At<Asked>>,
}

impl PolicyFile {
    /// Reads a file as far as that goes without knowing the members.
    ///
    /// # Errors
    /// Everything that is wrong with it. [`check`](super::check) tells what is wrong with its members' names as well.
    pub fn parse(text: &str) -> Result<Self, Vec<Problem>> {
        let mut report = Report::of(text);
        match Self::read(text, &mut report) {
            Some((file, _)) if !report.failed() => Ok(file),
            _ => Err(report.finish()),
        }
    }

    /// Reads what can be read: all that is wrong goes to the report. None if it is not even TOML.
    pub(super) fn read(text: &str, report: &mut Report<'_>) -> Option<(Self, Membership)> {
        if text.len() > TEXT_MAX {
            report.error(0, || {
                format!("the file has {} bytes, and at most {TEXT_MAX} are read: name ranges and groups in place of machines", text.len())
            });
            return None;
        }
        let mut file = read::file(text, report)?;
        file.text = text.to_owned();
        let membership = resolve::resolve(&file, report);
        Some((file, membership))
    }

    /// The text as it was read.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Tags that members may have, as the file declares them.
    pub fn tags(&self) -> impl Iterator<Item = &str> {
        self.tags.keys().map(String::as_str)
    }
}
