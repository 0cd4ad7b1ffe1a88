//! `meshctl service`: the daemons as units of systemd, which starts them with the machine and again when they end.
//!
//! The units are those of `deploy/systemd`, with the place where this executable is. What a package brought is left to the package.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use crate::{
    connect::Connection,
    daemon::Daemon,
    environment,
    failure::{Exit, Failure},
    launch,
    output::{
        self, Format,
        service::{Installed, Service, Services, Uninstalled},
    },
    rights,
};

/// What can be done with units.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Installs a daemon as a unit of systemd with a user of its own, and starts it now and with the machine
    Install {
        #[command(flatten)]
        role: Role,
        /// Only installs it: it is started by whoever says so
        #[arg(long, env = "MESH_NO_START")]
        no_start: bool,
    },
    /// Stops a daemon and removes its unit; what it knows, keys and membership too, stays
    Uninstall {
        #[command(flatten)]
        role: Role,
    },
    /// Tells how the units of this machine are; ends with 3 if one that was asked for does not run
    Status {
        /// Which [default: all that are installed]
        #[arg(value_enum)]
        role: Option<RoleName>,
    },
}

/// Which daemon is meant.
#[derive(Debug, clap::Args)]
pub(crate) struct Role {
    /// Which
    #[arg(value_enum, default_value_t)]
    role: RoleName,
}

/// The daemons, as a machine has them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum RoleName {
    /// This machine's part of a mesh
    #[default]
    Node,
    /// What machines join by
    Coordinator,
    /// Passes on what nodes cannot send each other
    Relay,
}

/// The executable in the units as they lie in `deploy/systemd`.
const PACKAGED: &str = "/usr/bin/meshctl";
/// By this line a file is known as one that may be replaced and removed.
const MARK: &str = "Written by `meshctl service install`";
/// Where the units of this machine's administrator lie.
const UNITS: &str = "/etc/systemd/system";
/// Where those of packages lie.
const PACKAGED_UNITS: [&str; 2] = ["/usr/lib/systemd/system", "/lib/systemd/system"];
/// The rule by which the node may tell systemd-resolved of its names; written where polkit is.
const RULES: &str = "/etc/polkit-1/rules.d";
const RULE_FILE: &str = "50-ringmesh.rules";
const RULE: &str = include_str!("../../../deploy/systemd/ringmesh.rules");
/// The last user id of system accounts, as systemd and the distributions have it (`SYS_UID_MAX` of login.defs(5)).
const LAST_SYSTEM_USER: u32 = 999;
/// Where a unit does not see the executable (`ProtectHome=`, `PrivateTmp=`), or not after the next start of the machine.
const OUT_OF_REACH: [&str; 6] = ["/home", "/root", "/run", "/tmp", "/var/tmp", "/dev"];

impl RoleName {
    const ALL: [Self; 3] = [Self::Node, Self::Coordinator, Self::Relay];

    const fn daemon(self) -> Daemon {
        match self {
            Self::Node => Daemon::Node,
            Self::Coordinator => Daemon::Coordinator,
            Self::Relay => Daemon::Relay,
        }
    }

    const fn unit(self) -> &'static str {
        self.daemon().unit()
    }

    /// The user, and what its state directory below `/var/lib` is called.
    const fn user(self) -> &'static str {
        match self {
            Self::Node => "mesh",
            Self::Coordinator => "mesh-coordinator",
            Self::Relay => "mesh-relay",
        }
    }

    fn state_dir(self) -> PathBuf {
        Path::new("/var/lib").join(self.user())
    }

    /// Its unit, and others that go with it.
    const fn units(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Node => &[
                ("meshd.service", include_str!("../../../deploy/systemd/meshd.service")),
                (
                    "mesh-wait-online.service",
                    include_str!("../../../deploy/systemd/mesh-wait-online.service"),
                ),
                ("mesh-online.target", include_str!("../../../deploy/systemd/mesh-online.target")),
            ],
            Self::Coordinator => &[(
                "mesh-coordinator.service",
                include_str!("../../../deploy/systemd/mesh-coordinator.service"),
            )],
            Self::Relay => {
                &[("mesh-relay.service", include_str!("../../../deploy/systemd/mesh-relay.service"))]
            }
        }
    }

    /// What to do next, for people.
    const fn next(self) -> &'static str {
        match self {
            Self::Node => "to join a network: sudo meshctl join --token TOKEN",
            Self::Coordinator => "to let a machine join: sudo meshctl token create",
            Self::Relay => {
                "to join a network: sudo meshctl join --socket /run/mesh-relay/meshd.sock --token TOKEN, with a token of: \
                 meshctl token create --relay"
            }
        }
    }

    /// The socket at which one answers that was started by hand with the usual places.
    fn socket(self) -> PathBuf {
        match self {
            Self::Node => ringmesh_node::config::DEFAULT_SOCKET.into(),
            Self::Coordinator => ringmesh_controlplane::Config::default().admin_socket,
            Self::Relay => ringmesh_node::config::DEFAULT_RELAY_SOCKET.into(),
        }
    }
}

/// `meshctl service ...`.
pub(crate) async fn run(format: Format, command: Command) -> Result<(), Failure> {
    match command {
        Command::Install { role, no_start } => install(format, role.role, no_start).await,
        Command::Uninstall { role } => uninstall(format, role.role),
        Command::Status { role } => status(format, role),
    }
}

async fn install(format: Format, role: RoleName, no_start: bool) -> Result<(), Failure> {
    allowed(&format!("install {}", role.unit()))?;
    let executable = executable()?;
    make_user(role)?;
    let mut changed = Vec::new();
    let packaged = packaged(role.unit());
    if packaged.is_none() {
        for (name, text) in role.units() {
            changed.extend(write(&Path::new(UNITS).join(name), &unit_text(text, &executable))?);
        }
        if role == RoleName::Node && Path::new(RULES).is_dir() {
            changed.extend(write(&Path::new(RULES).join(RULE_FILE), &format!("// {MARK}.\n{RULE}"))?);
        }
    }
    systemctl(&["daemon-reload"])?;
    stop_one_without_unit(role).await?;
    let was_active = is_active(role.unit());
    systemctl(&["enable", "--quiet", role.unit()])?;
    if !no_start {
        // Started by an older unit or not at all: `restart` is both.
        let verb = if was_active && changed.is_empty() { "start" } else { "restart" };
        systemctl(&[verb, role.unit()])?;
    }
    let service = show(role)?;
    let file = packaged.unwrap_or_else(|| Path::new(UNITS).join(role.unit()));
    output::note(role.next());
    output::result(
        format,
        &Installed { service, file, user: role.user(), state_dir: role.state_dir(), changed },
    )
}

fn uninstall(format: Format, role: RoleName) -> Result<(), Failure> {
    allowed(&format!("uninstall {}", role.unit()))?;
    let (state_dir, unit) = (role.state_dir(), role.unit());
    let names = role.units().iter().map(|(name, _)| *name);
    if let Some(file) = packaged(unit) {
        systemctl(&["disable", "--quiet", "--now", unit])?;
        output::note(format!("{} belongs to a package, which removes it: apt-get remove", file.display()));
        return output::result(format, &Uninstalled { unit, removed: Vec::new(), state_dir });
    }
    let mut removed = Vec::new();
    if Path::new(UNITS).join(unit).exists() {
        systemctl(&["disable", "--quiet", "--now", unit])?;
    }
    let files = names.map(|name| Path::new(UNITS).join(name));
    let rule = (role == RoleName::Node).then(|| Path::new(RULES).join(RULE_FILE));
    for file in files.chain(rule) {
        removed.extend(remove(&file)?);
    }
    systemctl(&["daemon-reload"])?;
    // A unit that had failed would be remembered.
    let _ = program("systemctl", &["reset-failed", unit]);
    output::result(format, &Uninstalled { unit, removed, state_dir })
}

fn status(format: Format, role: Option<RoleName>) -> Result<(), Failure> {
    needs_systemd("tell of units")?;
    let mut services = Vec::new();
    for one in RoleName::ALL.into_iter().filter(|one| role.is_none_or(|role| role == *one)) {
        let service = show(one)?;
        if service.installed || role.is_some() {
            services.push(service);
        }
    }
    let well = services.iter().all(|service| service.active == "active");
    output::result(format, &Services { services })?;
    if well { Ok(()) } else { Err(Failure::told(Exit::NotRunning)) }
}

fn needs_systemd(doing: &str) -> Result<(), Failure> {
    // sd_booted(3).
    if Path::new("/run/systemd/system").is_dir() {
        return Ok(());
    }
    Err(Failure::new(Exit::Conflict, format!("cannot {doing}"))
        .cause("systemd does not run this machine")
        .attempt("without it, in the background: meshctl node up, or meshctl coordinator up"))
}

fn allowed(doing: &str) -> Result<(), Failure> {
    needs_systemd(doing)?;
    if rights::is_root() {
        return Ok(());
    }
    Err(Failure::new(Exit::Permission, format!("only root may {doing}")).attempt(rights::with_sudo()))
}

/// Where this executable is, which must be a place that a unit sees, and that nobody but root can change.
fn executable() -> Result<PathBuf, Failure> {
    let unfit = |path: &Path, cause: String| {
        Failure::new(Exit::Conflict, "this executable cannot be a service's")
            .cause(format!("{}: {cause}", path.display()))
            .attempt(format!(
                "sudo install -m 0755 {} /usr/local/bin/meshctl, and then that one",
                path.display()
            ))
    };
    let path = std::env::current_exe().and_then(fs::canonicalize).map_err(|error| {
        Failure::new(Exit::General, "cannot find this executable").cause(error.to_string())
    })?;
    if OUT_OF_REACH.iter().any(|folder| path.starts_with(folder)) {
        return Err(unfit(&path, "services see no programs there".to_owned()));
    }
    for part in path.ancestors() {
        let found = fs::metadata(part).map_err(|error| unfit(part, error.to_string()))?;
        if found.uid() != 0 || found.mode() & 0o022 != 0 {
            return Err(unfit(&path, format!("others than root may change {}", part.display())));
        }
    }
    if path.to_str().is_none_or(|text| text.contains(|c: char| c.is_whitespace() || "%$\"'\\;".contains(c))) {
        return Err(unfit(&path, "a unit cannot name it".to_owned()));
    }
    Ok(path)
}

/// A unit for this machine.
fn unit_text(packaged: &str, executable: &Path) -> String {
    let text = packaged.replace(PACKAGED, &executable.display().to_string());
    format!("# {MARK}, which replaces it; what is yours goes into a drop-in: systemctl edit UNIT\n{text}")
}

/// The unit that a package brought.
fn packaged(unit: &str) -> Option<PathBuf> {
    PACKAGED_UNITS.iter().map(|folder| Path::new(folder).join(unit)).find(|file| file.exists())
}

/// Makes the daemon's user and group, if they are not there. An account that is somebody's is not taken for it: it would own the
/// daemon's keys and be believed on its socket.
fn make_user(role: RoleName) -> Result<(), Failure> {
    let (user, home) = (role.user(), role.state_dir().display().to_string());
    let (users, groups) = (entries("/etc/passwd")?, entries("/etc/group")?);
    if let Some(cause) = somebodys(&users, user) {
        return Err(Failure::new(Exit::Conflict, format!("the account {user} cannot be the daemon's"))
            .cause(cause)
            .attempt(format!("give that account another name: usermod --login NAME {user}")));
    }
    if entry(&users, user).is_some() && entry(&groups, user).is_some() {
        return Ok(());
    }
    let line = format!("u {user} - \"Ringmesh {}\" {home}", role.daemon().name());
    let made = program("systemd-sysusers", &["--inline", &line]);
    let made = match made {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let arguments = [
                "--system",
                "--user-group",
                "--no-create-home",
                "--home-dir",
                &home,
                "--shell",
                "/usr/sbin/nologin",
                user,
            ];
            program("useradd", &arguments)
        }
        made => made,
    };
    succeeded(&format!("make the user {user}"), made).map(drop)
}

/// A file in the form of passwd(5); nothing if there is none.
fn entries(file: &str) -> Result<String, Failure> {
    match fs::read_to_string(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Failure::new(Exit::General, format!("cannot read {file}")).cause(error.to_string()))
        }
        read => Ok(read.unwrap_or_default()),
    }
}

/// The fields of the line of that name.
fn entry<'a>(entries: &'a str, name: &str) -> Option<Vec<&'a str>> {
    entries
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&name))
}

/// Why an account of passwd(5) is a person's or root's and not a daemon's, if it is.
fn somebodys(users: &str, name: &str) -> Option<String> {
    let fields = entry(users, name)?;
    let id = fields.get(2).and_then(|id| id.parse::<u32>().ok());
    let shell = fields.get(6).copied().unwrap_or_default();
    match id {
        Some(1..=LAST_SYSTEM_USER) => {}
        Some(id) => {
            return Some(format!("its user id is {id}, and those of daemons are 1 to {LAST_SYSTEM_USER}"));
        }
        None => return Some("its line in /etc/passwd cannot be read".to_owned()),
    }
    // An empty one stands for /bin/sh (passwd(5)).
    let refuses = Path::new(shell).file_name().is_some_and(|name| name == "nologin" || name == "false");
    (!refuses).then(|| format!("somebody can log in to it: its shell is {shell:?}"))
}

/// Writes a file of ours if it is not there as it should be; answers its path if anything changed.
fn write(path: &Path, text: &str) -> Result<Option<PathBuf>, Failure> {
    let failed = |error: io::Error| {
        rights::refused(format!("cannot write {}", path.display()), error.to_string(), &error, Exit::General)
    };
    match fs::read_to_string(path) {
        Ok(found) if found == text => return Ok(None),
        Ok(found) if !found.contains(MARK) => return Err(not_ours(path)),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    // As a whole: a unit cut in half would be started like that.
    let fresh = path.with_file_name(name);
    fs::write(&fresh, text)
        .and_then(|()| fs::set_permissions(&fresh, fs::Permissions::from_mode(0o644)))
        .and_then(|()| fs::rename(&fresh, path))
        .map_err(failed)?;
    Ok(Some(path.to_owned()))
}

/// Removes a file of ours; answers its path if it was there.
fn remove(path: &Path) -> Result<Option<PathBuf>, Failure> {
    let failed = |error: io::Error| {
        rights::refused(format!("cannot remove {}", path.display()), error.to_string(), &error, Exit::General)
    };
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.contains(MARK) => return Err(not_ours(path)),
        Ok(_) => {}
    }
    fs::remove_file(path).map(|()| Some(path.to_owned())).map_err(failed)
}

fn not_ours(path: &Path) -> Failure {
    Failure::new(Exit::Conflict, format!("{} was not written by meshctl", path.display()))
        .attempt("move it away, if it is not needed; or keep it, and start it with systemctl")
}

/// A daemon that was started by hand has the state and the ports.
async fn stop_one_without_unit(role: RoleName) -> Result<(), Failure> {
    if is_active(role.unit()) {
        return Ok(());
    }
    match Connection::open(role.daemon(), &role.socket()).await {
        Ok(connection) => {
            output::note(format!("{} that runs in the background is stopped first", role.daemon().name()));
            launch::stop(role.daemon(), connection).await
        }
        Err(_) => Ok(()),
    }
}

fn is_active(unit: &str) -> bool {
    program("systemctl", &["--quiet", "is-active", unit]).is_ok_and(|output| output.status.success())
}

/// What systemd knows of a unit.
fn show(role: RoleName) -> Result<Service, Failure> {
    const PROPERTIES: &str = "--property=LoadState,ActiveState,SubState,StatusText,MainPID,UnitFileState,NRestarts,FragmentPath,User";
    let output = systemctl(&["show", "--no-pager", PROPERTIES, role.unit()])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let value = |name: &str| {
        let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        found.unwrap_or_default().to_owned()
    };
    Ok(Service {
        unit: role.unit(),
        installed: value("LoadState") == "loaded",
        active: value("ActiveState"),
        sub: value("SubState"),
        enabled: matches!(value("UnitFileState").as_str(), "enabled" | "enabled-runtime"),
        pid: value("MainPID").parse().ok().filter(|pid| *pid > 0),
        restarts: value("NRestarts").parse().unwrap_or(0),
        status: value("StatusText"),
    })
}

fn systemctl(arguments: &[&str]) -> Result<Output, Failure> {
    let arguments = [&["--no-ask-password"], arguments].concat();
    succeeded(&format!("run systemctl {}", arguments.join(" ")), program("systemctl", &arguments))
}

fn program(name: &str, arguments: &[&str]) -> io::Result<Output> {
    environment::program(name).args(arguments).stdin(Stdio::null()).output()
}

fn succeeded(doing: &str, output: io::Result<Output>) -> Result<Output, Failure> {
    let failure = |cause: String| Failure::new(Exit::General, format!("cannot {doing}")).cause(cause);
    match output {
        Ok(output) if output.status.success() => Ok(output),
        Ok(output) => Err(failure(String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; "))
            .attempt("journalctl --no-pager -n 20 -u 'mesh*'")),
        Err(error) => Err(failure(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_name_this_executable_and_nothing_of_a_packages_place() {
        for role in RoleName::ALL {
            for (name, packaged) in role.units() {
                let text = unit_text(packaged, Path::new("/opt/mesh/meshctl"));
                assert!(text.starts_with(&format!("# {MARK}")), "{name}");
                assert!(!text.contains(PACKAGED), "{name}");
                assert_eq!(text.contains("=/opt/mesh/meshctl "), name.ends_with(".service"), "{name}");
            }
        }
    }

    #[test]
    fn the_units_run_the_daemons_as_their_users() {
        for role in RoleName::ALL {
            let (name, text) = role.units()[0];
            assert_eq!(name, role.unit());
            let words = role.daemon().arguments().join(" ");
            assert!(text.contains(&format!("\nExecStart=/usr/bin/meshctl {words}")), "{name}");
            for line in [format!("User={}", role.user()), format!("StateDirectory={}", role.user())] {
                assert!(text.lines().any(|found| found == line), "{name}: {line}");
            }
            let sysusers = include_str!("../../../deploy/systemd/ringmesh.sysusers");
            let user =
                sysusers.lines().find(|line| line.split_whitespace().nth(1) == Some(role.user())).unwrap();
            assert!(user.ends_with(role.state_dir().to_str().unwrap()), "{user}");
            assert_eq!(role.socket().parent().unwrap().file_name().unwrap(), role.user());
        }
    }

    #[test]
    fn only_an_account_that_is_nobodys_is_a_daemons() {
        let users = "root:x:0:0:root:/root:/bin/bash\nmesh:x:995:995:Ringmesh:/var/lib/mesh:/usr/sbin/nologin\n\
                     false:x:101:101::/:/bin/false\nperson:x:1000:1000::/home/person:/usr/sbin/nologin\n\
                     shell:x:998:998::/:/bin/sh\nempty:x:997:997::/:\nnobody:x:65534:65534::/:/usr/sbin/nologin\n\
                     short:x\nmesh2:x:1000:1000::/:/bin/sh\n";
        for name in ["mesh", "false", "nowhere"] {
            assert_eq!(somebodys(users, name), None, "{name}");
        }
        for (name, why) in [
            ("root", "user id is 0"),
            ("person", "user id is 1000"),
            ("nobody", "user id is 65534"),
            ("shell", "/bin/sh"),
            ("empty", "log in"),
            ("short", "cannot be read"),
        ] {
            let cause = somebodys(users, name).unwrap();
            assert!(cause.contains(why), "{name}: {cause}");
        }
    }

    #[test]
    fn what_somebody_else_wrote_is_neither_replaced_nor_removed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("meshd.service");
        let ours = |number: u32| format!("# {MARK}\n{number}\n");
        assert_eq!(remove(&file).unwrap(), None);
        assert_eq!(write(&file, &ours(1)).unwrap(), Some(file.clone()));
        assert_eq!(write(&file, &ours(1)).unwrap(), None, "it is as it should be");
        assert_eq!(write(&file, &ours(2)).unwrap(), Some(file.clone()));
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(remove(&file).unwrap(), Some(file.clone()));
        fs::write(&file, "[Service]\n").unwrap();
        for failure in [write(&file, &ours(3)).unwrap_err(), remove(&file).unwrap_err()] {
            assert_eq!(failure.exit(), Exit::Conflict);
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), "[Service]\n");
    }
}
