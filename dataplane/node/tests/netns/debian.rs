//! A small Debian of its own on a host of the lab: `/etc`, resolvers and, if wanted, systemd as its first process.
//!
//! The root directory is made by `deploy/dev/test`. Changes to it stay in memory, and end with the lab.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use crate::{
    support::{daemon::Place, process::Process},
    world::{Machine, within},
};

/// Where `deploy/dev/test` keeps the root directory, unless this variable says another place.
const ROOT_VARIABLE: &str = "MESH_TEST_ROOT";
const ROOT: &str = "/var/cache/ringmesh/test-root";
/// Where this test program is found inside.
const PROGRAM: &str = "/opt/program";

/// What keeps the names on the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeper {
    /// systemd as the first process, and its resolved.
    Resolved,
    /// openresolv, which is told of the interface `eth0` and its server.
    Openresolv,
    /// Debian's own resolvconf, likewise.
    Resolvconf,
    /// A file that somebody wrote by hand.
    Nobody,
}

/// Makes the root directory out of the one on disk and memory on top of it, and all that a machine has beside its files.
const BOOT: &str = r#"
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir /run/top /run/work /run/all
mount -t overlay overlay -o "lowerdir=$ROOT,upperdir=/run/top,workdir=/run/work" /run/all
cd /run/all
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
if [ "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs ]; then
    mount -t cgroup2 cgroup2 sys/fs/cgroup
else
    mount -t tmpfs tmpfs sys/fs/cgroup
    mkdir sys/fs/cgroup/systemd
    mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd
fi
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs dev
mkdir dev/pts dev/net dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
for node in null zero full random urandom tty net/tun; do
    touch "dev/$node"
    mount --bind "/dev/$node" "dev/$node"
done
touch ".$PROGRAM"
mount --bind "$SELF" ".$PROGRAM"
mkdir -p ".$PLACE"
mount --bind "$PLACE" ".$PLACE"
rm -f etc/resolv.conf etc/hosts
# Without an end of its line.
printf '127.0.0.1\tlocalhost\n::1 localhost ip6-localhost\n# kept by hand' > etc/hosts
chmod 0640 etc/hosts
unpack() {
    for folder in sbin lib; do
        [ ! -d "opt/$1/$folder" ] || cp -a --remove-destination "opt/$1/$folder/." "usr/$folder/"
    done
    cp -a --remove-destination "opt/$1/usr/." usr/
    cp -a "opt/$1/etc/." etc/
}
case "$KEEPER" in
    Resolved)
        ln -s ../run/systemd/resolve/stub-resolv.conf etc/resolv.conf
        exec env -i container=lxc PATH=/usr/sbin:/usr/bin chroot . /usr/lib/systemd/systemd --unit=multi-user.target
        ;;
    Openresolv)
        unpack openresolv
        touch etc/resolv.conf
        printf 'nameserver %s\nsearch office.example\n' "$SERVER" | chroot . resolvconf -a eth0.dhcp
        ;;
    Resolvconf)
        unpack resolvconf
        ln -s /run/resolvconf etc/resolvconf/run
        ln -s ../run/resolvconf/resolv.conf etc/resolv.conf
        mkdir -p run/resolvconf/interface
        chroot . resolvconf --enable-updates
        printf 'nameserver %s\nsearch office.example\n' "$SERVER" | chroot . resolvconf -a eth0.dhclient
        ;;
    Nobody)
        printf 'nameserver %s' "$SERVER" > etc/resolv.conf
        ;;
esac
exec env -i PATH=/usr/sbin:/usr/bin chroot . sleep infinity
"#;

/// The running Debian.
pub struct Debian {
    holder: Child,
    /// Its first process, as it is seen from here.
    init: u32,
    pub machine: Machine,
    pub place: Place,
}

impl Debian {
    /// Boots one on `machine`, which asks `server` for names.
    pub fn boot(machine: Machine, keeper: Keeper, server: &str) -> Self {
        let root = std::env::var(ROOT_VARIABLE).map_or_else(|_| ROOT.into(), PathBuf::from);
        assert!(root.join("etc").is_dir(), "{} is missing: deploy/dev/test makes it", root.display());
        let place = Place::new();
        let mut command = machine.host.command("unshare").unwrap();
        command
            .args(["--pid", "--fork", "--kill-child", "--mount", "--ipc", "--cgroup", "sh", "-c", BOOT])
            .env("ROOT", &root)
            .env("PROGRAM", PROGRAM)
            .env("SELF", std::env::current_exe().unwrap())
            .env("PLACE", place.directory.path())
            .env("KEEPER", format!("{keeper:?}"))
            .env("SERVER", server)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let mut holder = command.spawn().unwrap();
        let mut init = None;
        within(Duration::from_secs(30), "the Debian boots", || {
            assert!(holder.try_wait().unwrap().is_none(), "the Debian ended, see above");
            init = children(holder.id()).first().copied();
            let name = init.and_then(|init| fs::read_to_string(format!("/proc/{init}/comm")).ok());
            let expected = if keeper == Keeper::Resolved { "systemd" } else { "sleep" };
            name.is_some_and(|name| name.trim_end() == expected)
        });
        let debian = Self { holder, init: init.unwrap(), machine, place };
        if keeper == Keeper::Resolved {
            within(Duration::from_secs(30), "resolved runs", || debian.works("resolvectl status"));
            debian.sh(&format!("resolvectl dns eth0 {server} && resolvectl default-route eth0 yes"));
        }
        debian
    }

    /// A program to be run inside, where it is the child of the process that is started, and ends with it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = self.machine.host.command("nsenter").unwrap();
        let init = self.init.to_string();
        command.args(["--target", &init, "--mount", "--pid", "--ipc", "--cgroup", "--root", "--wd=/"]);
        command.args(["setpriv", "--pdeathsig", "KILL", program]);
        command.env("PATH", "/usr/sbin:/usr/bin").stdin(Stdio::null());
        command
    }

    fn shell(&self, line: &str) -> Output {
        self.command("sh").args(["-c", line]).output().unwrap()
    }

    /// Whether a line of shell succeeds.
    pub fn works(&self, line: &str) -> bool {
        self.shell(line).status.success()
    }

    /// Runs a line of shell that must succeed, and gives what it printed.
    #[track_caller]
    pub fn sh(&self, line: &str) -> String {
        let output = self.shell(line);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {text}{errors}");
        text
    }

    /// This test program, to be run inside.
    pub fn this_program(&self) -> Command {
        self.command(PROGRAM)
    }

    /// Starts the daemon inside.
    pub async fn start(&self) -> Process {
        Process::start(self.this_program(), &self.place).await
    }

    /// Every file, its mode, owner and content, below `/etc` and of what resolvconf keeps.
    pub fn files(&self) -> String {
        let names = "find /etc /run/resolvconf -printf '%p %y %m %u %g %s %l\\n' 2>/dev/null | sort";
        let sums = "find /etc /run/resolvconf -type f -print0 2>/dev/null | sort -z | xargs -0 sha256sum";
        self.sh(&format!("{names}; {sums}"))
    }

    /// The whole of a file inside.
    pub fn read(&self, path: &str) -> Vec<u8> {
        let path = Path::new(path).strip_prefix("/").unwrap();
        fs::read(Path::new(&format!("/proc/{}/root", self.init)).join(path)).unwrap()
    }
}

impl Drop for Debian {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// The children of a process.
pub fn children(of: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
    list.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// Ends a daemon that was started inside by `SIGTERM`, and waits for it.
pub fn terminate(mut daemon: Process) {
    let inside = children(daemon.pid());
    let [inside] = inside.as_slice() else { panic!("{inside:?}") };
    assert!(Command::new("kill").arg(inside.to_string()).status().unwrap().success());
    let ended = || !Path::new(&format!("/proc/{inside}")).exists();
    within(Duration::from_secs(15), "the daemon ends", ended);
    daemon.kill();
}
