//! Starting and stopping the daemons of this machine: by systemd where a unit is installed, else as a background process.
//!
//! A background daemon is this executable again, in a session of its own (no terminal can take it along), its log in the state
//! directory. It says `ready` on its standard output, which is a pipe to here: no polling, and its end is noticed at once.
//! Secrets do not travel this way: the environment is passed on without them.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal},
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use crate::{
    connect::Connection,
    daemon::{Daemon, systemd_unit_is_installed},
    environment,
    failure::{Exit, Failure},
    rights,
};

/// What a daemon writes to its standard output once its socket answers.
pub(crate) const READY: &str = "ready";
/// A daemon that has not said so by then does not start.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// A daemon asked to stop gets this long to tell its peers and close its files.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How much of a log's end is searched for the reason of a failed start.
const LOG_TAIL: u64 = 16 * 1024;

/// Which daemon to start, and with what.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) daemon: Daemon,
    pub(crate) socket: PathBuf,
    pub(crate) state_dir: PathBuf,
    /// Flags for `node run` or `coordinator run`; no secrets.
    pub(crate) flags: Vec<OsString>,
}

/// A daemon that was started here, and how to undo that.
#[derive(Debug)]
pub(crate) struct Started {
    plan: Plan,
    by: By,
    /// Files and folders that were not there before, in the order in which they can be removed.
    fresh: Vec<PathBuf>,
}

#[derive(Debug)]
enum By {
    Systemd,
    Process(Child),
}

impl Plan {
    /// Whether the systemd unit would do just this: it is installed, and nothing was asked that it does not know.
    fn fits_the_unit(&self) -> bool {
        self.flags.is_empty() && systemd_unit_is_installed(self.daemon.unit())
    }

    /// Starts the daemon and waits until its socket answers.
    pub(crate) async fn start(self) -> Result<(Connection, Started), Failure> {
        let mut started = if self.fits_the_unit() {
            systemctl("start", self.daemon).await?;
            Started { by: By::Systemd, fresh: Vec::new(), plan: self }
        } else {
            self.start_in_background().await?
        };
        match started.answer().await {
            Ok(connection) => Ok((connection, started)),
            Err(failure) => {
                started.undo().await;
                Err(failure)
            }
        }
    }

    async fn start_in_background(self) -> Result<Started, Failure> {
        let log_path = self.daemon.log(&self.state_dir);
        // What any start leaves; a key or a membership that the daemon chose to keep is not among it.
        let mut fresh: Vec<PathBuf> =
            vec![log_path.clone(), self.socket.clone(), self.state_dir.join("lock")];
        fresh.extend(self.state_dir.ancestors().map(Path::to_path_buf));
        fresh.extend(self.socket.ancestors().skip(1).map(Path::to_path_buf));
        fresh.retain(|path| !path.exists());

        let (log, offset) =
            open_log(&self.state_dir, &log_path).map_err(|error| self.no_log(&log_path, &error))?;
        let mut child = self.spawn(log)?;
        let said = match child.stdout.take() {
            Some(stdout) => {
                let mut line = String::new();
                let mut stdout = BufReader::new(stdout);
                tokio::time::timeout(START_TIMEOUT, stdout.read_line(&mut line)).await.map(|_| line)
            }
            None => Ok(String::new()),
        };
        let daemon = self.daemon;
        let mut started = Started { plan: self, by: By::Process(child), fresh };
        match said {
            Ok(line) if line.trim() == READY => Ok(started),
            Ok(_) => {
                let exit = started.exit_code().await;
                let failure = failed_start(daemon, exit, &log_path, offset);
                started.undo().await;
                Err(failure)
            }
            Err(_) => {
                let failure = failed_start(daemon, None, &log_path, offset);
                started.undo().await;
                Err(Failure::new(Exit::Timeout, failure.error())
                    .cause(format!("it was not ready within {} s", START_TIMEOUT.as_secs())))
            }
        }
    }

    fn spawn(&self, log: File) -> Result<Child, Failure> {
        let cannot = |error: io::Error| {
            Failure::new(Exit::General, format!("cannot start {}", self.daemon.name()))
                .cause(error.to_string())
        };
        let executable = std::env::current_exe().map_err(cannot)?;
        Command::from(environment::program(executable))
            .args(self.daemon.arguments())
            .arg("--background")
            .args(&self.flags)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::from(log))
            .kill_on_drop(false)
            .spawn()
            .map_err(cannot)
    }

    fn no_log(&self, path: &Path, error: &io::Error) -> Failure {
        let doing = format!("cannot start {} in the background", self.daemon.name());
        rights::refused(doing, format!("its log {}: {error}", path.display()), error, Exit::General)
    }
}

impl Started {
    /// Connects to the daemon just started. A unit may be "started" before its socket answers.
    async fn answer(&mut self) -> Result<Connection, Failure> {
        let deadline = tokio::time::Instant::now() + START_TIMEOUT;
        loop {
            match Connection::open(self.plan.daemon, &self.plan.socket).await {
                Err(failure)
                    if failure.exit() == Exit::NotRunning && tokio::time::Instant::now() < deadline =>
                {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                result => return result,
            }
        }
    }

    /// How the process ended that should have become the daemon.
    async fn exit_code(&mut self) -> Option<i32> {
        match &mut self.by {
            By::Systemd => None,
            By::Process(child) => tokio::time::timeout(STOP_TIMEOUT, child.wait())
                .await
                .ok()?
                .ok()
                .and_then(|status| status.code()),
        }
    }

    /// Where the daemon logs to, in words.
    pub(crate) fn whereabouts(&self) -> String {
        let name = self.plan.daemon.name();
        match &self.by {
            By::Systemd => {
                format!("{name} started by systemd; its log: journalctl -u {}", self.plan.daemon.unit())
            }
            By::Process(child) => format!(
                "{name} started in the background (process {}); its log: {}",
                child.id().unwrap_or_default(),
                self.plan.daemon.log(&self.plan.state_dir).display()
            ),
        }
    }

    /// Stops the daemon again, and removes what its start left: the log and empty folders that were not there before.
    pub(crate) async fn undo(mut self) {
        match &mut self.by {
            By::Systemd => {
                // The failure that led here is the one to tell.
                let _ = systemctl("stop", self.plan.daemon).await;
            }
            By::Process(child) => {
                if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
                    // The child is not reaped yet, so the number is still its own.
                    let _ = rustix::process::kill_process(pid, Signal::TERM);
                }
                if tokio::time::timeout(STOP_TIMEOUT, child.wait()).await.is_err() {
                    let _ = child.kill().await;
                }
            }
        }
        for path in &self.fresh {
            // Never recursive: what the daemon chose to keep stays.
            let _ = if path.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) };
        }
    }
}

/// Stops the daemon that answers on `connection`, and waits until it has gone.
pub(crate) async fn stop(daemon: Daemon, connection: Connection) -> Result<(), Failure> {
    let cannot =
        |cause: String| Failure::new(Exit::General, format!("cannot stop {}", daemon.name())).cause(cause);
    let pid = connection.pid().and_then(Pid::from_raw).ok_or_else(|| {
        cannot("its process cannot be seen from here; it runs in another container".to_owned())
    })?;
    if is_run_by_systemd(daemon).await {
        return systemctl("stop", daemon).await;
    }
    // A descriptor of the process, so that a number reused meanwhile is not hit. The socket still answers through it now.
    let process = rustix::process::pidfd_open(pid, PidfdFlags::empty())
        .and_then(|process| rustix::process::pidfd_send_signal(&process, Signal::TERM).map(|()| process))
        .map_err(|error| match error {
            rustix::io::Errno::PERM => {
                Failure::new(Exit::Permission, format!("this user may not stop {}", daemon.name()))
                    .attempt(rights::with_sudo())
            }
            error => cannot(format!("process {}: {error}", pid.as_raw_nonzero())),
        })?;
    drop(connection);
    let ended = tokio::task::spawn_blocking(move || has_ended(&process))
        .await
        .map_err(|error| cannot(error.to_string()))?
        .map_err(|error| cannot(error.to_string()))?;
    if ended {
        return Ok(());
    }
    Err(Failure::new(Exit::Timeout, format!("{} does not stop", daemon.name())).cause(format!(
        "process {} still runs after {} s",
        pid.as_raw_nonzero(),
        STOP_TIMEOUT.as_secs()
    )))
}

/// Waits for the end of a process, up to [`STOP_TIMEOUT`]: its descriptor is readable from then on (pidfd_open(2)).
fn has_ended(process: &OwnedFd) -> rustix::io::Result<bool> {
    let deadline = std::time::Instant::now() + STOP_TIMEOUT;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let left = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(0),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&left)) {
            Err(rustix::io::Errno::INTR) => {}
            ready => return ready.map(|ready| ready > 0),
        }
    }
}

/// Whether the unit is what runs; stopping its process alone would only make systemd restart it.
async fn is_run_by_systemd(daemon: Daemon) -> bool {
    systemd_unit_is_installed(daemon.unit())
        && Command::from(environment::program("systemctl"))
            .args(["--quiet", "is-active", daemon.unit()])
            .stdin(Stdio::null())
            .status()
            .await
            .is_ok_and(|status| status.success())
}

async fn systemctl(verb: &str, daemon: Daemon) -> Result<(), Failure> {
    let unit = daemon.unit();
    let failure = |cause: String| {
        let failure = Failure::new(Exit::General, format!("systemd cannot {verb} {unit}")).cause(cause);
        failure.attempt(format!("journalctl -u {unit} --no-pager -n 20"))
    };
    let output = Command::from(environment::program("systemctl"))
        .args(["--no-ask-password", verb, unit])
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(|error| failure(format!("systemctl: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    if !rights::is_root() {
        return Err(Failure::new(Exit::Permission, format!("this user may not {verb} {unit}"))
            .attempt(rights::with_sudo()));
    }
    Err(failure(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// Opens the log for appending, its folder made if missing (0700), and tells its length so far.
fn open_log(state_dir: &Path, path: &Path) -> io::Result<(File, u64)> {
    DirBuilder::new().recursive(true).mode(0o700).create(state_dir)?;
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    let offset = log.metadata()?.len();
    Ok((log, offset))
}

/// The reason for a failed start, as the daemon wrote it to its log after `offset`.
fn failed_start(daemon: Daemon, exit: Option<i32>, log: &Path, offset: u64) -> Failure {
    let text = tail(log, offset).unwrap_or_default();
    let exit = exit.and_then(Exit::of_code).unwrap_or(Exit::General);
    let failure = Failure::new(exit, format!("{} did not start", daemon.name()));
    failure.caused_by_report(&text)
}

fn tail(path: &Path, offset: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(offset.max(length.saturating_sub(LOG_TAIL))))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
