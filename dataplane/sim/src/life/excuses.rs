//! Why a session may be renewed before its time, and how often that was so.

use std::fmt;
use std::ops::{Add, AddAssign};

/// What excused a session that came up while the one before was young.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Excuse {
    Restarted,
    Roadless,
    SameCause,
    Disturbed,
    CutOff,
    Silent,
}

/// Sessions that came up while the one before was young, by what excused them: the first that applies, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Excuses {
    /// One of the two began anew.
    pub restarted: u64,
    /// They had no road that was old enough to be known.
    pub roadless: u64,
    /// It followed within seconds on another one: handshakes that crossed.
    pub same_cause: u64,
    /// Something was lately taken from a pair that was not watched by its packets.
    pub disturbed: u64,
    /// A node and its relay had no way to each other.
    pub cut_off: u64,
    /// Packets of the pair had gone missing for as long as three probes take.
    pub silent: u64,
}

impl Excuses {
    pub(super) const fn count(&mut self, excuse: Excuse) {
        let count = match excuse {
            Excuse::Restarted => &mut self.restarted,
            Excuse::Roadless => &mut self.roadless,
            Excuse::SameCause => &mut self.same_cause,
            Excuse::Disturbed => &mut self.disturbed,
            Excuse::CutOff => &mut self.cut_off,
            Excuse::Silent => &mut self.silent,
        };
        *count += 1;
    }
}

impl AddAssign for Excuses {
    fn add_assign(&mut self, other: Self) {
        self.restarted += other.restarted;
        self.roadless += other.roadless;
        self.same_cause += other.same_cause;
        self.disturbed += other.disturbed;
        self.cut_off += other.cut_off;
        self.silent += other.silent;
    }
}

impl Add for Excuses {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        self += other;
        self
    }
}

impl fmt::Display for Excuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { restarted, roadless, same_cause, disturbed, cut_off, silent } = self;
        write!(
            f,
            "{restarted} restarted, {roadless} roadless, {same_cause} of the same cause, {disturbed} disturbed, {cut_off} cut off, {silent} silent"
        )
    }
}
