//! The processes in a lab: found by the namespace they are in, so that also strangers to us are.

use std::{
    fs, process, thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{error::LabError, namespace::Namespace};

/// How long processes may take to end after SIGKILL: those in a system call end when it does.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often they are looked for meanwhile.
const INTERVAL: Duration = Duration::from_millis(5);

/// Kills every process in `namespaces` but our own, and waits until none is left; answers how many there were.
pub(crate) fn evict(namespaces: &[&Namespace]) -> Result<usize, LabError> {
    let started = Instant::now();
    let mut left = residents(namespaces);
    let found = left.len();
    loop {
        if left.is_empty() {
            return Ok(found);
        }
        if started.elapsed() > PATIENCE {
            return Err(LabError::Survivors(left.len()));
        }
        for pid in left {
            let _ = kill(pid, Signal::SIGKILL);
        }
        thread::sleep(INTERVAL);
        left = residents(namespaces);
    }
}

/// Processes that are in one of `namespaces`; a zombie is in none.
pub(crate) fn residents(namespaces: &[&Namespace]) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != process::id() && namespaces.iter().any(|namespace| namespace.holds(*pid)))
        .filter_map(|pid| Some(Pid::from_raw(i32::try_from(pid).ok()?)))
        .collect()
}
