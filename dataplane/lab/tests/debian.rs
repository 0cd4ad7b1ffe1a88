//! Small Debians on hosts of the lab, with systemd as their first process.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and tells how long it took"
)]

use std::{collections::BTreeSet, fs, os::unix::fs::MetadataExt as _, path::Path, time::Instant};

use ringmesh_lab::{Host, Lab, LabError, debian::Boot, in_sandbox};

/// Where a cgroup of that name is, at the top of whatever trees this machine has.
fn cgroups(name: &str) -> usize {
    let trees = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].iter().map(|tree| Path::new(tree).join(name));
    trees.filter(|path| path.exists()).count()
}

/// What a machine's cgroup is called, by the network namespace of its host.
fn cgroup_of(host: &Host) -> String {
    let inode = host.enter(|| fs::metadata("/proc/thread-self/ns/net").unwrap().ino()).unwrap();
    format!("ringmesh-lab-{inode}")
}

#[test]
fn three_debians_boot_beside_each_other_and_leave_nothing() {
    in_sandbox(|| {
        let lab = Lab::new().unwrap();
        let switch = lab.switch().unwrap();
        let hosts = ["one", "two", "three"].map(|name| switch.host(name).unwrap());
        let began = Instant::now();
        let debians = hosts.each_ref().map(|host| Boot::new().unwrap().systemd().on(host).unwrap());
        for debian in &debians {
            debian.booted().unwrap();
        }
        println!("three booted in {:?}", began.elapsed());
        let groups = hosts.each_ref().map(cgroup_of);
        // Where this program is in a cgroup of its own they are below that.
        let at_the_top = fs::read_to_string("/proc/self/cgroup").unwrap().lines().any(|line| line == "0::/");
        assert!(!at_the_top || groups.iter().all(|group| cgroups(group) == 1), "{groups:?}");
        let machine_ids: BTreeSet<_> =
            debians.iter().map(|debian| debian.sh("cat /etc/machine-id").unwrap()).collect();
        assert_eq!(machine_ids.len(), 3, "each has an identity of its own: {machine_ids:?}");
        for (debian, host) in debians.iter().zip(&hosts) {
            assert_eq!(debian.sh("hostname").unwrap().trim(), host.name());
            assert_eq!(debian.sh("cat /proc/1/comm").unwrap(), "systemd\n");
            assert_eq!(debian.sh("systemctl is-active dbus.service").unwrap(), "active\n");
            for other in &hosts {
                debian.sh(&format!("ping -n -c 1 -W 5 {}", other.ipv4())).unwrap();
            }
        }
        // A unit is in its own cgroup, of this machine alone.
        let [one, two, three] = debians;
        one.sh("systemd-run --unit lonely sleep infinity && systemctl is-active lonely").unwrap();
        assert!(one.sh("systemd-cgls --no-pager /system.slice").unwrap().contains("lonely.service"));
        assert!(!two.works("systemctl is-active lonely"));
        assert!(one.journal("lonely.service").unwrap().contains("Started lonely.service"));
        // What one changes is its own, and gone with it.
        one.write("/etc/of-one", "one", 0o640).unwrap();
        assert_eq!(one.sh("stat -c %a /etc/of-one").unwrap(), "640\n");
        assert_eq!(one.read("/etc/of-one").unwrap(), b"one");
        assert!(!two.path("/etc/of-one").exists());
        // The settings of the one kernel are nobody's.
        assert!(!one.works("echo 1 > /proc/sys/kernel/sysrq"));
        one.sh("echo 1 > /proc/sys/net/ipv4/ip_forward").unwrap();
        assert_eq!(two.sh("cat /proc/sys/net/ipv4/ip_forward").unwrap(), "0\n");

        let (orderly, killed) = (one.init(), two.init());
        one.shut_down().unwrap();
        drop(two);
        for init in [orderly, killed] {
            assert!(!Path::new(&format!("/proc/{init}")).exists());
        }
        assert!(three.works("true"), "others go on");
        drop(three);
        assert_eq!(lab.close().unwrap(), 0, "no process is left");
        assert!(groups.iter().all(|group| cgroups(group) == 0), "{groups:?}");
    });
}

#[test]
fn a_debian_without_systemd_shows_what_was_bound_and_prepared() {
    in_sandbox(|| {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "from outside").unwrap();
        let lab = Lab::new().unwrap();
        let host = lab.host("alone").unwrap();
        let debian = Boot::new()
            .unwrap()
            .bind(folder.path(), "/srv/shared")
            .variable("WORDS", "prepared it's")
            .prepare("printf '%s' \"$WORDS\" > etc/prepared")
            .on(&host)
            .unwrap();
        assert_eq!(debian.sh("cat /srv/shared/file /etc/prepared").unwrap(), "from outsideprepared it's");
        debian.sh("echo inside > /srv/shared/answer").unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("answer")).unwrap(), "inside\n");
        let mounts = debian.sh("cut -d ' ' -f 2 /proc/mounts").unwrap();
        assert!(!mounts.contains("/run/"), "nothing of whoever booted it: {mounts}");
        assert_eq!(debian.sh("env | grep -v -e ^PATH= -e ^HOME= -e ^LANG= -e ^PWD=; true").unwrap(), "");

        let Err(LabError::Refused { said, .. }) = debian.sh("echo heard; echo words >&2; exit 3") else {
            panic!("it failed")
        };
        assert!(said.contains("heard") && said.contains("words") && said.contains('3'), "{said}");
        drop(debian);
        let refused = Boot::new().unwrap().prepare("exit 7").on(&host).unwrap_err();
        assert!(refused.to_string().contains("exit status: 7"), "{refused}");
    });
}
