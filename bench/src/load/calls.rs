//! How many system calls processes make, counted by the kernel's own trace point: perf(1) reads it without stopping
//! anyone, as strace would.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

const EVENT: &str = "raw_syscalls:sys_enter";

/// Says whether they can be counted here: that needs perf, and root outside of a user namespace.
pub(crate) fn can_count() -> bool {
    count(&[std::process::id()], Duration::from_millis(1)).is_ok()
}

/// Counts the system calls of processes and all their threads for a while; returns how many there were per second.
///
/// # Errors
/// When perf is not installed or may not count.
pub(crate) fn count(processes: &[u32], time: Duration) -> Result<f64> {
    let list: Vec<String> = processes.iter().map(u32::to_string).collect();
    let mut command = Command::new("perf");
    command.args(["stat", "-x", ",", "-e", EVENT, "-p", &list.join(","), "--"]);
    command.args(["sleep", &time.as_secs_f64().to_string()]);
    // Its numbers are written as the locale wants it, otherwise.
    command.env("LC_ALL", "C").stdin(Stdio::null());
    let done = command.output().context("running perf")?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "perf failed ({}): {}", done.status, said.trim());
    let counted = said.lines().find_map(parse).with_context(|| format!("perf counted nothing: {said}"))?;
    Ok(counted as f64 / time.as_secs_f64())
}

/// Reads a line such as `3,,raw_syscalls:sys_enter,49895,100.00,,`. In a user namespace perf sees only what user code does,
/// and marks that at the event's name.
fn parse(line: &str) -> Option<u64> {
    let mut fields = line.split(',');
    let (count, event) = (fields.next()?, fields.nth(1)?);
    match count {
        _ if event != EVENT => None,
        // Not once did any of them run.
        "<not counted>" => Some(0),
        count => count.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_count_of_all_calls_is_taken() {
        assert_eq!(parse("3,,raw_syscalls:sys_enter,49895,100.00,,"), Some(3));
        assert_eq!(parse("0,,raw_syscalls:sys_enteru,38267,100.00,,"), None);
        assert_eq!(parse("<not counted>,,raw_syscalls:sys_enter,0,100.00,,"), Some(0));
        assert_eq!(parse("<not supported>,,raw_syscalls:sys_enter,0,100.00,,"), None);
        assert_eq!(parse("sleep: invalid time"), None);
    }
}
