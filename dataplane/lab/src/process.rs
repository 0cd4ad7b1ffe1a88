//! The only unsafe code of the lab: a first process in new namespaces, and a hook between fork and exec.
//!
//! A program that is already running cannot move itself into a new PID namespace, and one with threads cannot
//! enter a user namespace. So the kernel is asked for a child that starts in new ones. It stays behind as the init
//! of its PID namespace; its child becomes the program. When either of them ends, the kernel kills all others.

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    process::Command,
    ptr,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout},
    sched::CloneFlags,
    sys::{
        prctl,
        signal::{SigSet, SigmaskHow, Signal, kill, pthread_sigmask},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

/// Exit code of a program that could not be executed, as in shells.
const CANNOT_EXECUTE: i32 = 127;
/// Added to the number of the signal that ended a program, as in shells.
const ENDED_BY_SIGNAL: i32 = 128;

/// A program to execute, in the form that needs no allocation after `clone`.
#[derive(Debug)]
pub(crate) struct Program {
    path: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    output: Option<OwnedFd>,
}

impl Program {
    /// `output` takes the place of both standard output and standard error.
    pub(crate) fn new(
        path: CString,
        arguments: Vec<CString>,
        environment: Vec<CString>,
        output: Option<OwnedFd>,
    ) -> Self {
        Self { path, arguments, environment, output }
    }
}

/// The first process of a new PID namespace, which waits to be [released](Init::release) before it starts its program.
///
/// It dies with the thread that made it.
#[derive(Debug)]
pub(crate) struct Init {
    pid: Pid,
    leash: io::PipeWriter,
}

impl Init {
    /// Creates the process in the namespaces that `flags` names, besides its PID namespace.
    pub(crate) fn clone_into(flags: CloneFlags, program: &Program) -> io::Result<Self> {
        let (released, leash) = io::pipe()?;
        let arguments = pointers(&program.arguments);
        let environment = pointers(&program.environment);
        let exec = Exec {
            path: &program.path,
            arguments: &arguments,
            environment: &environment,
            output: program.output.as_ref(),
        };

        // The child must not run this process's signal handlers: they would speak to its threads.
        let mut mask = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut mask))?;
        let flags = flags | CloneFlags::CLONE_NEWPID;
        let cloned = clone(flags);
        if let Ok(None) = cloned {
            drop(leash);
            be_init(&exec, &released, &mask);
        }
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?;
        let pid = cloned?.ok_or(Errno::ECHILD)?;
        Ok(Self { pid, leash })
    }

    /// Its process id, as seen from here.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Lets it start its program.
    pub(crate) fn release(&mut self) -> io::Result<()> {
        io::Write::write_all(&mut self.leash, b"!")
    }

    /// Waits for the end of the program, and with it of the namespace; answers its exit code.
    pub(crate) fn wait(self) -> io::Result<i32> {
        loop {
            match waitpid(self.pid, None) {
                Ok(WaitStatus::Exited(_, code)) => return Ok(code),
                Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(ENDED_BY_SIGNAL + signal as i32),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

struct Exec<'a> {
    path: &'a CStr,
    arguments: &'a [*const libc::c_char],
    environment: &'a [*const libc::c_char],
    output: Option<&'a OwnedFd>,
}

/// The null-terminated array that `execve` takes; valid as long as `strings` is.
fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
}

/// `fork` into new namespaces: `None` in the child, which shares no memory with the parent.
///
/// The child has one thread and a copy of whatever locks the others held, so it must not allocate or panic.
fn clone(flags: CloneFlags) -> nix::Result<Option<Pid>> {
    let flags = libc::c_long::from(flags.bits() | libc::SIGCHLD);
    // SAFETY: without CLONE_VM and with a null stack the call is `fork`: no memory of ours is passed or shared.
    // The raw call is needed because libc's `fork` takes no flags and runs handlers that may wait for locks
    // which threads of the parent hold; our only children call async-signal-safe functions until they end.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    let pid = Errno::result(pid)?;
    Ok(i32::try_from(pid).ok().filter(|pid| *pid != 0).map(Pid::from_raw))
}

/// Starts the program once released, then reaps orphans and passes signals on until the program ends.
fn be_init(exec: &Exec<'_>, released: &io::PipeReader, mask: &SigSet) -> ! {
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    let mut byte = [0];
    loop {
        match nix::unistd::read(released, &mut byte) {
            Ok(1) => break,
            Err(Errno::EINTR) => {}
            Ok(_) | Err(_) => exit(CANNOT_EXECUTE),
        }
    }
    // The parent may have died before the death signal was set; then its end of the pipe is closed.
    let mut fds = [PollFd::new(released.as_fd(), PollFlags::empty())];
    if nix::poll::poll(&mut fds, PollTimeout::ZERO) != Ok(0) {
        exit(CANNOT_EXECUTE);
    }
    match clone(CloneFlags::empty()) {
        Ok(Some(main)) => reap(main),
        Ok(None) => execute(exec, mask),
        Err(_) => exit(CANNOT_EXECUTE),
    }
}

fn execute(exec: &Exec<'_>, mask: &SigSet) -> ! {
    if let Some(output) = exec.output {
        for standard in [libc::STDOUT_FILENO, libc::STDERR_FILENO] {
            // SAFETY: both are descriptors; a failure leaves the inherited one in place.
            unsafe { libc::dup2(output.as_raw_fd(), standard) };
        }
    }
    let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(mask), None);
    // SAFETY: the path is a C string, and both arrays are null-terminated and point to C strings that the
    // parent made before `clone`; this process has its own copy of them.
    unsafe { libc::execve(exec.path.as_ptr(), exec.arguments.as_ptr(), exec.environment.as_ptr()) };
    exit(CANNOT_EXECUTE)
}

fn reap(main: Pid) -> ! {
    // What the parent has open is none of our business: a pipe that we hold would never be seen to end.
    // SAFETY: this process uses no descriptor any more.
    unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    let all = SigSet::all();
    loop {
        match all.wait() {
            Ok(Signal::SIGCHLD) => {
                while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                    if status == WaitStatus::StillAlive {
                        break;
                    }
                    if let WaitStatus::Exited(pid, code) = status
                        && pid == main
                    {
                        exit(code);
                    }
                    if let WaitStatus::Signaled(pid, signal, _) = status
                        && pid == main
                    {
                        exit(ENDED_BY_SIGNAL + signal as i32);
                    }
                }
            }
            Ok(signal) => {
                let _ = kill(main, signal);
            }
            Err(_) => {}
        }
    }
}

fn exit(code: i32) -> ! {
    // SAFETY: ends the process without running anything of the parent's.
    unsafe { libc::_exit(code) }
}

/// Has `hook` run in the child between fork and exec.
///
/// The hook must only make system calls: another thread's lock may be held forever in the child. It is
/// crate-private so that all hooks can be seen at a glance: there is one, in `host.rs`.
pub(crate) fn before_exec(
    command: &mut Command,
    hook: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) -> &mut Command {
    use std::os::unix::process::CommandExt as _;
    // SAFETY: the hook makes system calls only, as said above.
    unsafe { command.pre_exec(hook) }
}
