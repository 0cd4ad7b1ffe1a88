//! What both sides said, class by class, and what they may differ in.

use std::{collections::BTreeMap, fmt::Write as _};

use ringmesh_tunnel::{DropReason, filter::Direction};

use super::{
    class::{Class, Why},
    traffic::Case,
};

/// Surprises of a kind that are told in full.
const TOLD: u64 = 3;

/// Whether we and the router accept a case.
#[derive(Debug, Clone, Copy)]
pub struct Verdict {
    pub we: bool,
    pub it: bool,
}

#[derive(Debug, Default, Clone, Copy)]
struct Row {
    accepted: u64,
    denied: u64,
    only_it: u64,
    only_we: u64,
}

impl Row {
    fn total(&self) -> u64 {
        self.accepted + self.denied + self.only_it + self.only_we
    }
}

/// The comparison so far.
#[derive(Debug, Default)]
pub struct Tally {
    /// By class and direction (outward first).
    rows: BTreeMap<(Class, bool), Row>,
    reasons: BTreeMap<(Why, Class), u64>,
    /// What must not be, by what it is, with some examples.
    surprises: BTreeMap<String, (u64, Vec<String>)>,
}

impl Tally {
    pub fn count(&mut self, seed: u64, case: &Case, verdict: Verdict, reason: Option<DropReason>) {
        let row = self.rows.entry((case.class, case.direction == Direction::In)).or_default();
        let surprise = match (verdict.we, verdict.it) {
            (true, true) => {
                row.accepted += 1;
                None
            }
            (false, false) => {
                row.denied += 1;
                None
            }
            (true, false) => {
                row.only_we += 1;
                Some("we accept, the router denies")
            }
            (false, true) => {
                row.only_it += 1;
                match case.why {
                    Some(why) => {
                        *self.reasons.entry((why, case.class)).or_default() += 1;
                        None
                    }
                    None => Some("the router accepts, we deny"),
                }
            }
        };
        if let Some(surprise) = surprise {
            let direction = case.direction;
            let kind = format!("{surprise}: {}, {direction:?}, our reason {reason:?}", case.class.name());
            let (count, told) = self.surprises.entry(kind).or_default();
            *count += 1;
            if *count <= TOLD {
                let packets: Vec<_> = case.ours.iter().map(|packet| hex(packet)).collect();
                told.push(format!("seed {seed}, peer {}, {:?}: {packets:?}", case.peer, case.opens));
            }
        }
    }

    /// Cases of a class that we accept and the router denies.
    pub fn holes(&self, class: Class) -> u64 {
        [false, true]
            .iter()
            .filter_map(|&inward| self.rows.get(&(class, inward)))
            .map(|row| row.only_we)
            .sum()
    }

    /// Fails on what we accept and the router denies, on what we deny without one of the reasons, and on what passes of a
    /// class of which nothing may.
    pub fn assert_no_surprise(&self) {
        let passing: Vec<_> =
            self.rows.iter().filter(|((class, _), row)| !class.can_pass() && row.accepted > 0).collect();
        if self.surprises.is_empty() && passing.is_empty() {
            return;
        }
        let mut text = format!("passing though nothing of the class may: {passing:?}\n");
        for (kind, (count, told)) in &self.surprises {
            let _ = writeln!(text, "{count} times {kind}\n    {}", told.join("\n    "));
        }
        panic!("{text}");
    }

    /// Fails if there is a class and direction that does not have of each kind what can be: a comparison of packets that
    /// all are denied shows nothing.
    pub fn assert_both_happen(&self) {
        for class in Class::ALL {
            for inward in [false, true] {
                let row = self.rows.get(&(class, inward)).copied().unwrap_or_default();
                let enough = |count: u64| count > 0 && count * 100 >= row.total();
                let told = format!("{}, inward: {inward}: {row:?}", class.name());
                assert!(enough(row.denied + row.only_it), "too few are denied: {told}");
                assert!(!class.can_pass() || enough(row.accepted), "too few are accepted: {told}");
            }
        }
    }

    /// The table, and the reasons below it.
    pub fn table(&self) -> String {
        let mut text = String::from(
            "| class | direction | packets | both accept | both deny | only the router accepts | only we accept |\n\
             |---|---|---|---|---|---|---|\n",
        );
        let mut sum = Row::default();
        for ((class, inward), row) in &self.rows {
            let direction = if *inward { "in" } else { "out" };
            line(&mut text, class.name(), direction, row);
            sum.accepted += row.accepted;
            sum.denied += row.denied;
            sum.only_it += row.only_it;
            sum.only_we += row.only_we;
        }
        line(&mut text, "all", "both", &sum);
        for ((why, class), count) in &self.reasons {
            let _ = writeln!(text, "{count} of {}: {}", class.name(), why.name());
        }
        text
    }
}

fn line(text: &mut String, name: &str, direction: &str, row: &Row) {
    let Row { accepted, denied, only_it, only_we } = row;
    let _ = writeln!(
        text,
        "| {name} | {direction} | {} | {accepted} | {denied} | {only_it} | {only_we} |",
        row.total()
    );
}

fn hex(packet: &[u8]) -> String {
    packet.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
