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

/// What the worker's thread is called.
const WORKER: &str = "mesh-worker-0";

/// A worker's thread that is held until this is dropped.
pub struct HeldWorker {
    release: Option<Sender<()>>,
    tracer: Option<JoinHandle<()>>,
}

impl HeldWorker {
    /// Holds the worker of the node daemon with this process id.
    pub fn of(process: u32) -> Self {
        let thread = thread_of(process, WORKER);
        let (release, released) = mpsc::channel();
        let (holds, is_held) = mpsc::channel();
        // Who traces is a thread (ptrace(2)), and all it asks for has to come from it.
        let tracer = thread::spawn(move || {
            ptrace::seize(thread, Options::empty()).unwrap();
            ptrace::interrupt(thread).unwrap();
            let stopped = waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
            assert!(matches!(stopped, WaitStatus::PtraceEvent(..)), "{stopped:?}");
            holds.send(()).unwrap();
            let _ = released.recv();
            ptrace::detach(thread, None).unwrap();
        });
        is_held.recv().expect("the worker is held");
        Self { release: Some(release), tracer: Some(tracer) }
    }
}

impl Drop for HeldWorker {
    fn drop(&mut self) {
        drop(self.release.take());
        if let Some(tracer) = self.tracer.take() {
            tracer.join().expect("the worker is let go");
        }
    }
}

/// The thread of that name.
fn thread_of(process: u32, name: &str) -> Pid {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let mut found = tasks.flatten().filter(|task| {
        fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name)
    });
    let task = found.next().unwrap_or_else(|| panic!("process {process} has no thread {name}"));
    assert!(found.next().is_none(), "one thread is called {name}");
    Pid::from_raw(task.file_name().to_str().unwrap().parse().unwrap())
}
