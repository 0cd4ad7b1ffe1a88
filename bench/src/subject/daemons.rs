//! Processes that end with their subject, and programs that are run to their end.

use std::io::Write;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::cpu::box_pid;

/// Processes that end with their subject.
#[derive(Debug, Default)]
pub(super) struct Daemons {
    children: Vec<Child>,
    /// Those that move packets: by their id in the whole box, and by the one that this program knows.
    pub(super) measured: Vec<u32>,
    pub(super) measured_here: Vec<u32>,
}

impl Daemons {
    /// Starts a process that is needed but not measured.
    pub(super) fn start(&mut self, mut command: Command) -> Result<()> {
        self.spawn(&mut command).map(|_| ())
    }

    /// Starts a process that moves packets, whose CPU time counts.
    pub(super) fn start_measured(&mut self, mut command: Command) -> Result<()> {
        let pid = self.spawn(&mut command)?;
        self.measured.push(box_pid(pid));
        self.measured_here.push(pid);
        Ok(())
    }

    fn spawn(&mut self, command: &mut Command) -> Result<u32> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let child = child.with_context(|| format!("starting {:?}", command.get_program()))?;
        let pid = child.id();
        self.children.push(child);
        Ok(pid)
    }

    /// Fails if one of them has ended, which explains better than a time-out what went wrong.
    pub(super) fn check(&mut self) -> Result<()> {
        for child in &mut self.children {
            if let Some(status) = child.try_wait().context("asking for a daemon's state")? {
                bail!("a daemon ended early ({status}); see what it said above");
            }
        }
        Ok(())
    }
}

impl Drop for Daemons {
    fn drop(&mut self) {
        // Last started, first stopped: a node would complain about its coordinator.
        for child in self.children.iter_mut().rev() {
            // It may have ended by itself; there is nothing more to be done about either failing.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Runs a program to its end and returns what it wrote to standard output.
pub(super) fn output(mut command: Command, input: &str) -> Result<String> {
    let program = command.get_program().to_owned();
    let running = || format!("running {} {:?}", program.display(), command.get_args().next());
    let what = running();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| what.clone())?;
    // Small enough for the pipe, and the pipe is closed when it goes out of scope.
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).with_context(|| what.clone())?;
    }
    let done = child.wait_with_output().with_context(|| what.clone())?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{what} failed ({}): {}", done.status, said.trim());
    String::from_utf8(done.stdout).with_context(|| format!("{what}: its output is not text"))
}
