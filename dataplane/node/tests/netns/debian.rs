//! A small Debian on a machine of the lab, with one of those who keep names on Debian, and a node daemon inside.

use std::{path::Path, process::Command, time::Duration};

use ringmesh_lab::{
    Host,
    debian::{self, Boot, children},
};

use crate::{
    support::{daemon::Place, process::Process},
    world::within,
};

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

/// What whoever keeps the names has beside its package.
const PREPARE: &str = r#"
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
"#;

/// The running Debian.
pub struct Debian {
    debian: debian::Debian,
    pub place: Place,
}

impl Debian {
    /// Boots one on `host`, which asks `server` for names.
    pub fn boot(host: &Host, keeper: Keeper, server: &str) -> Self {
        let place = Place::new();
        let boot = Boot::new()
            .unwrap()
            .bind(std::env::current_exe().unwrap(), PROGRAM)
            .bind(place.directory.path(), place.directory.path())
            .variable("KEEPER", format!("{keeper:?}"))
            .variable("SERVER", server)
            .prepare(PREPARE);
        let boot = if keeper == Keeper::Resolved { boot.systemd() } else { boot };
        let debian = Self { debian: boot.on(host).unwrap(), place };
        if keeper == Keeper::Resolved {
            debian.debian.booted().unwrap();
            debian.sh(&format!("resolvectl dns eth0 {server} && resolvectl default-route eth0 yes"));
        }
        debian
    }

    /// Whether a line of shell succeeds.
    pub fn works(&self, line: &str) -> bool {
        self.debian.works(line)
    }

    /// Runs a line of shell that must succeed, and gives what it printed.
    #[track_caller]
    pub fn sh(&self, line: &str) -> String {
        self.debian.sh(line).unwrap()
    }

    /// This test program, to be run inside.
    pub fn this_program(&self) -> Command {
        self.debian.command(PROGRAM).unwrap()
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
        self.debian.read(path).unwrap()
    }
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
