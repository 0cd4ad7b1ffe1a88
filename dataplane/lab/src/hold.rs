//! A thread of another process, held where it is: neither dead nor stopped, it just does nothing.

use std::{
    fs,
    sync::mpsc::{self, Sender},
    thread::{self, JoinHandle},
};

use nix::{
    sys::{
        ptrace::{self, Options},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use crate::error::LabError;

/// A thread that is held until this is dropped, or its process ends.
#[derive(Debug)]
pub struct HeldThread {
    release: Option<Sender<()>>,
    tracer: Option<JoinHandle<()>>,
}

impl HeldThread {
    /// Holds the thread called `name` of the process with this id. Takes the right to trace it (`CAP_SYS_PTRACE`, or being its
    /// user).
    ///
    /// # Errors
    /// [`LabError::Refused`]: there is no such thread, or more than one, or the system does not let it be traced.
    pub fn of(process: u32, name: &str) -> Result<Self, LabError> {
        let thread = thread_of(process, name)?;
        let (release, released) = mpsc::channel();
        let (holds, is_held) = mpsc::channel();
        // Who traces is a thread (ptrace(2)), and all it asks for has to come from it.
        let tracer = thread::spawn(move || {
            let held = hold(thread);
            let is_held = held.is_ok();
            // Whoever asked has gone only if it panicked.
            let _ = holds.send(held);
            if is_held {
                let _ = released.recv();
                // A process that has ended meanwhile needs nothing.
                let _ = ptrace::detach(thread, None);
            }
        });
        let held = is_held.recv().unwrap_or_else(|_| Err("the tracing thread ended".to_owned()));
        held.map_err(|said| refused(process, name, said))?;
        Ok(Self { release: Some(release), tracer: Some(tracer) })
    }
}

impl Drop for HeldThread {
    fn drop(&mut self) {
        drop(self.release.take());
        if let Some(tracer) = self.tracer.take() {
            let _ = tracer.join();
        }
    }
}

/// Called by the thread that is to trace.
fn hold(thread: Pid) -> Result<(), String> {
    let failed = |what: &'static str| move |error| format!("{what}: {error}");
    ptrace::seize(thread, Options::empty()).map_err(failed("ptrace"))?;
    ptrace::interrupt(thread).map_err(failed("ptrace"))?;
    let stopped = waitpid(thread, Some(WaitPidFlag::__WALL)).map_err(failed("waitpid"))?;
    if matches!(stopped, WaitStatus::PtraceEvent(..)) { Ok(()) } else { Err(format!("{stopped:?}")) }
}

/// The thread of that name.
fn thread_of(process: u32, name: &str) -> Result<Pid, LabError> {
    let tasks = fs::read_dir(format!("/proc/{process}/task"));
    let tasks = tasks.map_err(|e| LabError::system(format!("look at process {process}"), e))?;
    let called = |task: &fs::DirEntry| {
        fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name)
    };
    let found: Vec<i32> =
        tasks.flatten().filter(called).filter_map(|task| task.file_name().to_str()?.parse().ok()).collect();
    match found.as_slice() {
        [thread] => Ok(Pid::from_raw(*thread)),
        found => Err(refused(process, name, format!("{} threads are called so", found.len()))),
    }
}

fn refused(process: u32, name: &str, said: String) -> LabError {
    LabError::Refused { what: format!("hold the thread {name} of process {process}"), said }
}
