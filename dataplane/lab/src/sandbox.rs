//! A place for a lab: new namespaces for the program itself, with root's rights inside and nothing left afterwards.

use std::{
    env,
    ffi::{CString, OsString},
    fs,
    io::{self, BufRead as _, BufReader},
    os::{fd::OwnedFd, unix::ffi::OsStringExt as _},
    path::Path,
    process, thread,
};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::CloneFlags,
    sys::signal::{Signal, kill},
    unistd::{Pid, getegid, geteuid, getppid},
};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    error::{Denial, EnterError},
    namespace::{Namespace, own_files},
    process::{Init, Program},
};

/// Set in the environment of the program inside, to the privilege it got its rights by.
const INSIDE: &str = "RINGMESH_SANDBOX";
/// Where the program inside finds the process table that it cannot see any more.
const OUTSIDE_PROC: &str = "/run/outside/proc";
/// Bits of the capability sets (capabilities(7)).
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;

/// How the rights that a lab needs were come by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privilege {
    /// The caller has the capabilities: root, or as good as.
    Root,
    /// The program is root in a user namespace, and nobody outside.
    UserNamespace,
}

impl Privilege {
    fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::UserNamespace => "user-namespace",
        }
    }

    /// Which of them this process can have: root's if it has the capabilities.
    fn available() -> Self {
        if has_capabilities() { Self::Root } else { Self::UserNamespace }
    }

    fn namespaces(self) -> CloneFlags {
        let own = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS;
        match self {
            Self::Root => own,
            Self::UserNamespace => own | CloneFlags::CLONE_NEWUSER,
        }
    }
}

/// Continues this program in a sandbox: own user (unless root), PID, mount, network and UTS namespaces.
///
/// The program is executed again with the same arguments, and **only the copy inside returns** from this function.
/// The caller outside passes SIGINT, SIGTERM, SIGHUP and SIGQUIT on, waits, and exits with the exit code of the copy;
/// if it is killed, everything inside dies with it. To be called first in `main`.
///
/// # Errors
/// [`EnterError::Denied`] says which setting of the system forbids user namespaces, and to use sudo.
pub fn enter() -> Result<Privilege, EnterError> {
    if let Some(privilege) = inside() {
        settle()?;
        return Ok(privilege);
    }
    let init = start(Privilege::available(), env::args_os().collect(), None)?;
    let pid = init.pid();
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || pass_signals_to(pid))
        .map_err(|source| EnterError::System { what: "start the signal thread", source })?;
    let code = init.wait().map_err(|source| EnterError::System { what: "wait", source })?;
    process::exit(code)
}

/// Runs a test's body in a sandbox, by running the test program again for this one test.
///
/// To be the outermost call of a `#[test]` function. Panics as the body did, with the output of the run inside, and
/// if there can be no sandbox: a test that is skipped proves nothing.
#[allow(clippy::panic, reason = "it is how a test fails")]
pub fn in_sandbox<F: FnOnce()>(body: F) {
    if inside().is_some() {
        if let Err(error) = settle() {
            panic!("{}", chain(&error));
        }
        return body();
    }
    #[allow(
        clippy::print_stdout,
        reason = "what a test says is shown or kept as the caller's runner wants it"
    )]
    let say = |line: &str| print!("{line}");
    let (code, output) = match run_test(&test_name::<F>(), Privilege::available(), say) {
        Ok(done) => done,
        Err(error) => panic!("{}", chain(&error)),
    };
    assert!(code == 0, "the test failed in its sandbox, see what it said above");
    assert!(output.contains("1 passed"), "no test ran in the sandbox, see what was said above");
}

/// How this process came by its rights; `None` if it has not the rights for a lab.
#[must_use]
pub fn privilege() -> Option<Privilege> {
    inside().or_else(|| has_capabilities().then_some(Privilege::Root))
}

/// The process id outside the sandbox of a process inside it, for commands to be typed into another terminal.
///
/// `None` if the process is gone or this program is not in a sandbox.
#[must_use]
pub fn outside_pid(inside: u32) -> Option<u32> {
    let own = fs::read_link("/proc/self/ns/pid").ok()?;
    fs::read_dir(OUTSIDE_PROC).ok()?.flatten().find_map(|entry| {
        let outside: u32 = entry.file_name().to_str()?.parse().ok()?;
        let status = fs::read_to_string(entry.path().join("status")).ok()?;
        let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
        let innermost: u32 = ids.split_whitespace().last()?.parse().ok()?;
        let same = innermost == inside && fs::read_link(entry.path().join("ns/pid")).ok()? == own;
        same.then_some(outside)
    })
}

/// Whether this is the program that a sandbox was made for: its parent is the sandbox's init.
pub(crate) fn inside() -> Option<Privilege> {
    let privilege = env::var(INSIDE).ok()?;
    if getppid() != Pid::from_raw(1) {
        return None;
    }
    [Privilege::Root, Privilege::UserNamespace].into_iter().find(|p| p.name() == privilege)
}

/// Whether the process may make namespaces and links without a user namespace of its own.
pub(crate) fn has_capabilities() -> bool {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .unwrap_or(0);
    [CAP_NET_ADMIN, CAP_SYS_ADMIN].iter().all(|bit| effective >> bit & 1 == 1)
}

/// Runs one test of this test program in a sandbox; answers its exit code and what it printed. `say` gets each line of that
/// when it comes: some tests take minutes.
pub(crate) fn run_test(
    name: &str,
    privilege: Privilege,
    say: impl Fn(&str),
) -> Result<(i32, String), EnterError> {
    let failed = |what| move |source| EnterError::System { what, source };
    let own = env::args_os().next().unwrap_or_default();
    let options = ["--exact", "--nocapture", "--include-ignored", "--test-threads=1"];
    let arguments = [own, name.into()].into_iter().chain(options.map(OsString::from)).collect();
    let (output, write) = io::pipe().map_err(failed("make a pipe"))?;
    let init = start(privilege, arguments, Some(write.into()))?;
    let (mut output, mut text, mut line) = (BufReader::new(output), String::new(), Vec::new());
    while output.read_until(b'\n', &mut line).map_err(failed("read the output"))? > 0 {
        let said = String::from_utf8_lossy(&line);
        say(&said);
        text.push_str(&said);
        line.clear();
    }
    let code = init.wait().map_err(failed("wait"))?;
    Ok((code, text))
}

/// The name by which libtest knows the function that the closure `F` is written in.
pub(crate) fn test_name<F>() -> String {
    let path = std::any::type_name::<F>();
    let path = path.split_once("::").map_or(path, |(_crate, rest)| rest);
    path.trim_end_matches("::{{closure}}").to_owned()
}

/// Starts this program's executable with `arguments` in a sandbox.
fn start(
    privilege: Privilege,
    arguments: Vec<OsString>,
    output: Option<OwnedFd>,
) -> Result<Init, EnterError> {
    let failed = |what| move |source| EnterError::System { what, source };
    let environment = env::vars_os()
        .filter(|(name, _)| name != INSIDE)
        .chain([(INSIDE.into(), privilege.name().into())])
        .map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            name
        });
    let program = Program::new(
        c"/proc/self/exe".to_owned(),
        c_strings(arguments).map_err(failed("pass the arguments"))?,
        c_strings(environment).map_err(failed("pass the environment"))?,
        output,
    );
    let mut init = Init::clone_into(privilege.namespaces(), &program).map_err(refused)?;
    if privilege == Privilege::UserNamespace {
        map_ids(init.pid()).map_err(refused)?;
    }
    init.release().map_err(failed("start the program"))?;
    Ok(init)
}

fn c_strings(strings: impl IntoIterator<Item = OsString>) -> io::Result<Vec<CString>> {
    strings.into_iter().map(|s| Ok(CString::new(s.into_vec())?)).collect()
}

/// Makes this user root inside the user namespace of `pid`. A user without rights may map no one else.
fn map_ids(pid: Pid) -> io::Result<()> {
    let proc = Path::new("/proc").join(pid.to_string());
    fs::write(proc.join("setgroups"), "deny")?;
    fs::write(proc.join("uid_map"), format!("0 {} 1", geteuid()))?;
    fs::write(proc.join("gid_map"), format!("0 {} 1", getegid()))
}

/// Gives the program inside its own `/proc`, `/run` and hosts file, and its loopback. Once a process.
fn settle() -> Result<(), EnterError> {
    static SETTLED: std::sync::Mutex<bool> = std::sync::Mutex::new(false);
    let mut settled = SETTLED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if *settled {
        return Ok(());
    }
    mount_own().map_err(|errno| refused(errno.into()))?;
    Namespace::own()
        .and_then(|own| own.link_up("lo"))
        .map_err(|error| EnterError::System { what: "bring lo up", source: io::Error::other(error) })?;
    *settled = true;
    Ok(())
}

fn mount_own() -> nix::Result<()> {
    const NONE: Option<&str> = None;
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    own_files().map_err(errno)?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), plain, Some("mode=0755"))?;
    fs::create_dir_all(OUTSIDE_PROC).map_err(errno)?;
    mount(Some("/proc"), OUTSIDE_PROC, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)?;
    mount(Some("proc"), "/proc", Some("proc"), plain | MsFlags::MS_NOEXEC, NONE)
}

fn errno(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// Explains a refusal by the settings that are known to cause it.
fn refused(source: io::Error) -> EnterError {
    let command = env::args().collect::<Vec<_>>().join(" ");
    EnterError::Denied { denial: diagnose(Path::new("/proc/sys"), &source), command, source }
}

pub(crate) fn diagnose(sysctl: &Path, source: &io::Error) -> Denial {
    let setting =
        |name: &str| fs::read_to_string(sysctl.join(name)).ok().map(|value| value.trim().to_owned());
    if setting("kernel/unprivileged_userns_clone").as_deref() == Some("0") {
        Denial::UnprivilegedUserns
    } else if setting("kernel/apparmor_restrict_unprivileged_userns").as_deref() == Some("1") {
        Denial::AppArmor
    } else if setting("user/max_user_namespaces").as_deref() == Some("0") || errno_of(source) == Errno::ENOSPC
    {
        Denial::MaxUserNamespaces
    } else {
        Denial::Unknown
    }
}

fn errno_of(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

/// Passes on what asks a program to end; a terminal's Ctrl-C reaches it twice, which it must bear anyway.
fn pass_signals_to(pid: Pid) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_io().build() else {
        return;
    };
    runtime.block_on(async {
        let listen = |kind| async move {
            let Ok(mut signals) = signal(kind) else { return };
            while signals.recv().await.is_some() {
                if let Ok(which) = Signal::try_from(kind.as_raw_value()) {
                    let _ = kill(pid, which);
                }
            }
        };
        tokio::join!(
            listen(SignalKind::interrupt()),
            listen(SignalKind::terminate()),
            listen(SignalKind::hangup()),
            listen(SignalKind::quit()),
        )
    });
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
