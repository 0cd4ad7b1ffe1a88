//! Lets a measurement begin only while the box is quiet, and judges afterwards whether it stayed so.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::cpu::{Snapshot, Usage};

/// The largest share of the box that strangers may use.
pub(crate) const FOREIGN_LIMIT: f64 = 0.06;
/// How long the box is watched before a measurement: long enough for ticks of 10 ms to mean something.
const WATCH: Duration = Duration::from_millis(500);

/// Watches for strangers' load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gate {
    /// How long to wait for quiet before giving up.
    pub(crate) patience: Duration,
    /// Measure whatever strangers do.
    pub(crate) force: bool,
}

/// What strangers did, when it was too much.
#[derive(Debug)]
pub(crate) struct Busy {
    share: f64,
    strangers: Vec<(String, f64)>,
}

impl std::error::Error for Busy {}

impl Busy {
    /// Describes the usage that was too much.
    pub(crate) fn new(usage: &Usage) -> Self {
        Self { share: usage.foreign_share(), strangers: usage.strangers.clone() }
    }
}

impl fmt::Display for Busy {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (share, limit) = (self.share * 100.0, FOREIGN_LIMIT * 100.0);
        write!(out, "others use {share:.0} % of the box (limit {limit:.0} %)")?;
        for (name, seconds) in &self.strangers {
            write!(out, ", {name} {seconds:.2} s")?;
        }
        Ok(())
    }
}

impl Gate {
    /// Waits until strangers leave the box alone.
    ///
    /// # Errors
    /// [`Busy`] when they did not within the gate's patience.
    pub(crate) fn wait_for_quiet(&self) -> Result<()> {
        if self.force {
            return Ok(());
        }
        let give_up = Instant::now() + self.patience;
        loop {
            let before = Snapshot::take()?;
            thread::sleep(WATCH);
            let usage = Snapshot::take()?.since(&before, &[]);
            if Self::is_quiet(&usage) {
                return Ok(());
            }
            if Instant::now() >= give_up {
                return Err(Busy::new(&usage).into());
            }
        }
    }

    /// Says whether strangers stayed below the limit during a measurement.
    pub(crate) fn is_quiet(usage: &Usage) -> bool {
        usage.foreign_share() <= FOREIGN_LIMIT
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::cpus;

    fn usage(share: f64) -> Usage {
        let elapsed = Duration::from_secs(1);
        let foreign = share * cpus() as f64;
        Usage { elapsed, foreign, strangers: vec![("cc1 (12)".to_owned(), foreign)], ..Usage::default() }
    }

    #[test]
    fn a_sample_above_the_limit_is_not_quiet() {
        assert!(Gate::is_quiet(&usage(0.059)));
        assert!(!Gate::is_quiet(&usage(0.061)));
    }

    #[test]
    fn the_refusal_names_the_strangers() {
        let said = Busy::new(&usage(0.5)).to_string();
        assert!(said.contains("50 %") && said.contains("cc1 (12)"), "{said}");
    }
}
