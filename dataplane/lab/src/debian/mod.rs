//! A small Debian of its own on a host of the lab: `/etc`, packages, users and, if wanted, systemd as its first process.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use ringmesh_lab::{Lab, debian::Boot};
//!
//! let lab = Lab::new()?;
//! let switch = lab.switch()?;
//! let web = switch.host("web")?;
//! let debian = Boot::new()?.systemd().bind("/tmp/meshctl", "/usr/bin/meshctl").on(&web)?;
//! debian.booted()?;
//! debian.sh("systemctl start ssh && ss -ltn")?;
//! print!("{}", debian.journal("ssh.service")?);
//! debian.shut_down()?;
//! # Ok(()) }
//! ```
//!
//! The root directory is made by `deploy/dev/test` and shared by all machines that were booted from it, of which there may be
//! many at once. What a machine changes stays in memory, and ends with it. It sees its host's network, and no process, cgroup or
//! file of anybody else's. Only root can boot one.

mod group;

use std::{
    env,
    ffi::OsStr,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    error::LabError,
    host::{Host, command_in},
    namespace::Namespace,
};
use group::Group;

/// Where `deploy/dev/test` keeps the root directory, unless this variable names another place.
pub const ROOT_VARIABLE: &str = "MESH_TEST_ROOT";
/// Where it is kept by default.
pub const ROOT: &str = "/var/cache/ringmesh/test-root";

/// Makes the machine, and becomes its first process.
const BOOT: &str = include_str!("boot.sh");
/// The first process of a machine without systemd: it does nothing.
const IDLE: &str = "/usr/bin/sleep infinity";
/// The first process of one with systemd.
const SYSTEMD: &str = "/usr/lib/systemd/systemd --unit=multi-user.target";
/// How long the first process may take to be there.
const BOOT_PATIENCE: Duration = Duration::from_secs(30);
/// How long systemd may take to start all units, in seconds.
const UNITS_PATIENCE: u32 = 90;
/// How long a machine may take to shut down before it is killed.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(30);
/// systemd powers off at this signal (systemd(1)); `SIGRTMIN` is 34 where libc keeps two for itself.
const POWER_OFF: i32 = 34 + 4;
/// How often it is looked whether something has come about.
const INTERVAL: Duration = Duration::from_millis(10);

/// What is to be booted.
#[derive(Debug, Clone)]
pub struct Boot {
    image: PathBuf,
    first: &'static str,
    binds: Vec<PathBuf>,
    prepare: String,
    variables: Vec<(String, String)>,
}

impl Boot {
    /// A machine without systemd, whose first process does nothing.
    ///
    /// # Errors
    /// [`LabError::NoDebian`] if `deploy/dev/test` has not made its root directory yet.
    pub fn new() -> Result<Self, LabError> {
        let image = env::var_os(ROOT_VARIABLE).map_or_else(|| ROOT.into(), PathBuf::from);
        if !image.join("etc").is_dir() {
            return Err(LabError::NoDebian(image));
        }
        Ok(Self { image, first: IDLE, binds: Vec::new(), prepare: String::new(), variables: Vec::new() })
    }

    /// With systemd as the first process; [`Debian::booted`] waits until it has started all units.
    #[must_use]
    pub fn systemd(mut self) -> Self {
        self.first = SYSTEMD;
        self
    }

    /// Shows a file or a folder of the lab's holder inside, where it may also be written. `inside` is absolute, and is made if
    /// it is missing.
    #[must_use]
    pub fn bind(mut self, outside: impl Into<PathBuf>, inside: impl Into<PathBuf>) -> Self {
        self.binds.extend([outside.into(), inside.into()]);
        self
    }

    /// Runs lines of shell before the first process, in the new root directory: `etc/hosts` there is the machine's own, and
    /// `chroot . update-ca-certificates` runs its program. One that fails ends the boot.
    #[must_use]
    pub fn prepare(mut self, lines: &str) -> Self {
        self.prepare.push_str(lines);
        self.prepare.push('\n');
        self
    }

    /// A variable for those lines.
    #[must_use]
    pub fn variable(mut self, name: &str, value: impl Into<String>) -> Self {
        self.variables.push((name.to_owned(), value.into()));
        self
    }

    /// Boots it on `host`, whose network and name it has. Nothing else should run on that host, and one machine at a time.
    ///
    /// # Errors
    /// [`LabError::Refused`] if it ended at once: the lines to [`prepare`](Self::prepare) say why on standard error.
    pub fn on(self, host: &Host) -> Result<Debian, LabError> {
        let namespace = Arc::clone(host.namespace());
        let group = Group::new(&namespace)?;
        let mut command = command_in(&namespace, "sh")?;
        command
            .args(["-c", r#"echo $$ >"$GROUP" && unset GROUP && exec "$@""#, "sh"])
            .args(["unshare", "--pid", "--fork", "--kill-child", "--mount", "--ipc", "--cgroup"])
            .args(["sh", "-c", BOOT, "sh"])
            .args(&self.binds)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .envs(self.variables)
            .env("GROUP", group.door())
            .env("IMAGE", &self.image)
            .env("NAME", host.name())
            .env("PREPARE", &self.prepare)
            .env("FIRST", self.first)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let child = command.spawn().map_err(|e| LabError::starting("unshare", "util-linux", e))?;
        let mut holder = Holder { child, init: None };
        let init = holder.await_first(self.first)?;
        Ok(Debian { init, namespace, holder, _group: group })
    }
}

/// A Debian that runs. Dropping it kills all that runs in it and leaves nothing, as does the end of whoever booted it.
#[derive(Debug)]
pub struct Debian {
    /// Its first process, as it is seen from here.
    init: u32,
    namespace: Arc<Namespace>,
    // In this order: the cgroup can be removed when nothing is in it.
    holder: Holder,
    _group: Group,
}

/// The process that waits for the machine's first one, and takes it along.
#[derive(Debug)]
struct Holder {
    child: Child,
    /// The machine's first process, as it is seen from here, once it is there.
    init: Option<u32>,
}

impl Holder {
    /// Whether it has ended, and with it the machine.
    fn has_ended(&mut self) -> Result<Option<ExitStatus>, LabError> {
        self.child.try_wait().map_err(|e| LabError::system("wait for a machine", e))
    }

    fn await_first(&mut self, first: &str) -> Result<u32, LabError> {
        let expected = Path::new(first.split(' ').next().unwrap_or_default()).file_name();
        let began = Instant::now();
        loop {
            if let Some(status) = self.has_ended()? {
                return Err(refused("boot a Debian", format!("it ended ({status}), see standard error")));
            }
            for child in children(self.child.id()) {
                let name = fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
                if expected == Some(OsStr::new(name.trim_end())) {
                    self.init = Some(child);
                    return Ok(child);
                }
            }
            if began.elapsed() > BOOT_PATIENCE {
                return Err(refused("boot a Debian", format!("no first process after {BOOT_PATIENCE:?}")));
            }
            thread::sleep(INTERVAL);
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // With its first process the kernel ends all others, and the holder when it has reaped that one: nothing is left then.
        // While the holder is not reaped the number is nobody else's.
        let init = self.init.and_then(|init| i32::try_from(init).ok());
        match init {
            Some(init) if matches!(self.child.try_wait(), Ok(None)) => {
                let _ = kill(Pid::from_raw(init), Signal::SIGKILL);
            }
            _ => {
                let _ = self.child.kill();
            }
        }
        let _ = self.child.wait();
    }
}

impl Debian {
    /// Waits until systemd has started all units, which must have worked.
    ///
    /// # Errors
    /// [`LabError::Refused`] names the units that failed, with their journals.
    pub fn booted(&self) -> Result<(), LabError> {
        let began = Instant::now();
        // Until systemd listens nobody can be told.
        while !self.path("/run/systemd/private").exists() {
            if began.elapsed() > BOOT_PATIENCE {
                return Err(refused(
                    "boot a Debian",
                    format!("systemd does not listen after {BOOT_PATIENCE:?}"),
                ));
            }
            thread::sleep(INTERVAL);
        }
        let state = self.run(&format!("timeout {UNITS_PATIENCE} systemctl is-system-running --wait"))?;
        let state = String::from_utf8_lossy(&state.stdout).trim().to_owned();
        if state == "running" {
            return Ok(());
        }
        let failed = self.run(
            "systemctl list-jobs --no-pager; \
             for unit in $(systemctl list-units --failed --plain --no-legend | cut -d ' ' -f 1); do \
             systemctl status --no-pager --lines 40 $unit; done",
        )?;
        Err(refused("start all units", format!("{state}\n{}", String::from_utf8_lossy(&failed.stdout))))
    }

    /// A program to be run inside as root, with an environment of its own. It is a child of the process that is started, and ends
    /// with it; it is in no unit of the machine's systemd.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command, LabError> {
        let mut command = command_in(&self.namespace, "nsenter")?;
        command
            .args(["--target", &self.init.to_string()])
            .args(["--mount", "--pid", "--ipc", "--cgroup", "--root", "--wd"])
            .args(["setpriv", "--pdeathsig", "KILL"])
            .arg(program)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/root")
            .env("LANG", "C.UTF-8")
            .stdin(Stdio::null());
        Ok(command)
    }

    /// Runs lines of shell inside, whatever comes of them.
    pub fn run(&self, lines: &str) -> Result<Output, LabError> {
        let output = self.command("sh")?.args(["-c", lines]).output();
        output.map_err(|e| LabError::starting("nsenter", "util-linux", e))
    }

    /// Whether lines of shell succeed.
    pub fn works(&self, lines: &str) -> bool {
        self.run(lines).is_ok_and(|output| output.status.success())
    }

    /// Runs lines of shell that must succeed; answers what they printed.
    ///
    /// # Errors
    /// [`LabError::Refused`] has all that they said.
    pub fn sh(&self, lines: &str) -> Result<String, LabError> {
        let output = self.run(lines)?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(said);
        }
        let errors = String::from_utf8_lossy(&output.stderr);
        Err(refused(format!("run `{lines}`"), format!("{}: {said}{errors}", output.status)))
    }

    /// What a unit has logged since the boot.
    pub fn journal(&self, unit: &str) -> Result<String, LabError> {
        self.sh(&format!("journalctl --no-pager --output short-precise --unit '{unit}'"))
    }

    /// Where a path inside is seen from here. Symbolic links are not the machine's when they are absolute.
    #[must_use]
    pub fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.init));
        let inside = inside.as_ref();
        root.join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// The whole of a file inside.
    pub fn read(&self, inside: &str) -> Result<Vec<u8>, LabError> {
        fs::read(self.path(inside)).map_err(|e| LabError::system(format!("read {inside}"), e))
    }

    /// Writes a file inside, with its folder; `mode` as of chmod(2).
    pub fn write(&self, inside: &str, content: impl AsRef<[u8]>, mode: u32) -> Result<(), LabError> {
        let path = self.path(inside);
        let write = || {
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            fs::write(&path, content)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))
        };
        write().map_err(|e| LabError::system(format!("write {inside}"), e))
    }

    /// The process id, as seen from here, of its first process.
    #[must_use]
    pub fn init(&self) -> u32 {
        self.init
    }

    /// Shuts it down as `poweroff` would, every unit in its order, and waits for that; one without systemd is killed.
    ///
    /// # Errors
    /// [`LabError::Refused`] if it was not down in time, and so was killed.
    pub fn shut_down(mut self) -> Result<(), LabError> {
        let name = fs::read_to_string(format!("/proc/{}/comm", self.init)).unwrap_or_default();
        if name.trim_end() != "systemd" {
            return Ok(());
        }
        // nix knows no real-time signals.
        let (init, signal) = (self.init.to_string(), POWER_OFF.to_string());
        let told = Command::new("kill").args(["-s", &signal, &init]).status();
        told.map_err(|e| LabError::starting("kill", "procps", e))?;
        let began = Instant::now();
        loop {
            if self.holder.has_ended()?.is_some() {
                return Ok(());
            }
            if began.elapsed() > SHUTDOWN_PATIENCE {
                return Err(refused("shut down a Debian", format!("it runs after {SHUTDOWN_PATIENCE:?}")));
            }
            thread::sleep(INTERVAL);
        }
    }
}

/// The children of a process, as far as its first thread has started them.
#[must_use]
pub fn children(of: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

fn refused(what: impl Into<String>, said: String) -> LabError {
    LabError::Refused { what: what.into(), said }
}
