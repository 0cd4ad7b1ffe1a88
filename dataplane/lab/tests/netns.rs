//! Hosts on a switch, as a user of the crate sees them.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::{
    env, fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use ringmesh_lab::{Host, Lab, LabError, Privilege, in_sandbox, privilege};

/// The user and group `nobody`, who has no rights anywhere.
const NOBODY: u32 = 65534;
const DEADLINE: Duration = Duration::from_secs(10);

fn receive(from: &TcpListener) -> String {
    let mut text = String::new();
    from.accept().unwrap().0.read_to_string(&mut text).unwrap();
    text
}

fn send(from: &Host, to: SocketAddr, text: &str) {
    let mut stream = from.enter(|| TcpStream::connect_timeout(&to, DEADLINE)).unwrap().unwrap();
    stream.write_all(text.as_bytes()).unwrap();
}

fn output(host: &Host, script: &str) -> String {
    let output = host.command("sh").unwrap().args(["-c", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn hosts_on_a_switch_reach_each_other_over_both_families() {
    in_sandbox(|| {
        let lab = Lab::new().unwrap();
        let switch = lab.switch().unwrap();
        let (alice, bob) = (switch.host("alice").unwrap(), switch.host("bob").unwrap());
        for address in [IpAddr::from(bob.ipv4()), IpAddr::from(bob.ipv6())] {
            let listener = bob.enter(|| TcpListener::bind((address, 0))).unwrap().unwrap();
            send(&alice, listener.local_addr().unwrap(), "hello");
            assert_eq!(receive(&listener), "hello");
        }
    });
}

#[test]
fn hosts_on_different_switches_do_not_reach_each_other() {
    in_sandbox(|| {
        let lab = Lab::new().unwrap();
        let (left, right) = (lab.switch().unwrap(), lab.switch().unwrap());
        let (alice, bob) = (left.host("alice").unwrap(), right.host("bob").unwrap());
        let listener = bob.enter(|| TcpListener::bind((bob.ipv4(), 0))).unwrap().unwrap();
        let address = listener.local_addr().unwrap();
        let refused = alice.enter(|| TcpStream::connect(address)).unwrap().unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::NetworkUnreachable);
    });
}

#[test]
fn a_host_between_two_switches_routes() {
    in_sandbox(|| {
        let lab = Lab::new().unwrap();
        let (left, right) = (lab.switch().unwrap(), lab.switch().unwrap());
        let (alice, bob) = (left.host("alice").unwrap(), right.host("bob").unwrap());
        let mut router = left.host("router").unwrap();
        router.attach(&right).unwrap();
        router.sysctl("net/ipv4/ip_forward", "1").unwrap();
        let everywhere = ([0, 0, 0, 0].into(), 0);
        let [near, far] = router.interfaces() else { unreachable!("it has two interfaces") };
        alice.add_route(everywhere, "eth0", Some(near.ipv4().into())).unwrap();
        bob.add_route(everywhere, "eth0", Some(far.ipv4().into())).unwrap();
        let listener = bob.enter(|| TcpListener::bind((bob.ipv4(), 0))).unwrap().unwrap();
        send(&alice, listener.local_addr().unwrap(), "routed");
        assert_eq!(receive(&listener), "routed");
    });
}

#[test]
fn an_unplugged_host_is_cut_off_until_it_is_plugged_in_again() {
    in_sandbox(|| {
        let lab = Lab::new().unwrap();
        let switch = lab.switch().unwrap();
        let (alice, bob) = (switch.host("alice").unwrap(), switch.host("bob").unwrap());
        let ear = bob.enter(|| UdpSocket::bind((bob.ipv6(), 7))).unwrap().unwrap();
        let mouth = alice.enter(|| UdpSocket::bind((alice.ipv6(), 0))).unwrap().unwrap();
        ear.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let heard = || {
            // Without a carrier the kernel may refuse to send at all.
            let _ = mouth.send_to(b"hello", (bob.ipv6(), 7));
            ear.recv(&mut [0; 16]).is_ok()
        };
        assert!(heard());
        bob.interfaces()[0].unplug().unwrap();
        assert!(!heard());
        bob.interfaces()[0].plug().unwrap();
        let started = Instant::now();
        while !heard() {
            assert!(started.elapsed() < DEADLINE, "never heard again");
        }
    });
}

#[test]
fn a_cable_joins_two_hosts_without_a_switch() {
    in_sandbox(|| {
        let lab = Lab::new().unwrap();
        let (alice, bob) = (lab.host("alice").unwrap(), lab.host("bob").unwrap());
        let (near, far) = lab.cable(&alice, &bob).unwrap();
        alice.add_address(&near, [192, 0, 2, 1].into(), 24).unwrap();
        bob.add_address(&far, [192, 0, 2, 2].into(), 24).unwrap();
        let listener = bob.enter(|| TcpListener::bind(("192.0.2.2", 0))).unwrap().unwrap();
        send(&alice, listener.local_addr().unwrap(), "direct");
        assert_eq!(receive(&listener), "direct");
        bob.remove_address(&far, [192, 0, 2, 2].into()).unwrap();
        bob.enter(|| TcpListener::bind(("192.0.2.2", 0))).unwrap().unwrap_err();
    });
}

#[test]
fn programs_run_on_their_host_with_its_name_and_its_own_state() {
    in_sandbox(|| {
        let lab = Lab::new().unwrap();
        let switch = lab.switch().unwrap();
        let (alice, bob) = (switch.host("alice").unwrap(), switch.host("bob").unwrap());
        assert_eq!(output(&alice, "cat /proc/sys/kernel/hostname"), "alice\n");
        let addresses = output(&alice, "cat /proc/net/fib_trie");
        assert!(addresses.contains(&format!(" {}\n", alice.ipv4())), "{addresses}");
        assert!(!addresses.contains(&format!(" {}\n", bob.ipv4())), "{addresses}");
        assert_eq!(output(&alice, "echo kept > /run/note; echo kept > /var/lib/note; ls /run"), "note\n");
        assert_eq!(output(&alice, "cat /run/note /var/lib/note"), "kept\nkept\n");
        assert_eq!(alice.enter(|| fs::read_to_string("/run/note")).unwrap().unwrap(), "kept\n");
        assert_eq!(output(&bob, "ls /run /var/lib"), "/run:\n\n/var/lib:\n");
        let here = env::current_dir().unwrap();
        assert_eq!(output(&alice, "pwd").trim_end(), here.to_str().unwrap());
        assert_eq!(alice.enter(env::current_dir).unwrap().unwrap(), here);
    });
}

#[test]
fn what_a_program_writes_into_its_hosts_file_stays_on_its_host() {
    in_sandbox(|| {
        let of_the_machine = fs::read("/etc/hosts").unwrap();
        let lab = Lab::new().unwrap();
        let (alice, bob) = (lab.host("alice").unwrap(), lab.host("bob").unwrap());
        output(
            &alice,
            "echo 192.0.2.7 somewhere >> /etc/hosts; echo nameserver 192.0.2.8 >> /etc/resolv.conf",
        );
        assert!(output(&alice, "cat /etc/hosts").ends_with("192.0.2.7 somewhere\n"));
        assert!(output(&alice, "cat /etc/resolv.conf").ends_with("192.0.2.8\n"));
        assert_eq!(output(&bob, "cat /etc/hosts").into_bytes(), of_the_machine);
        assert_eq!(fs::read("/etc/hosts").unwrap(), of_the_machine);
    });
}

#[test]
fn closing_a_lab_ends_programs_that_nobody_waits_for() {
    in_sandbox(|| {
        let lab = Lab::new().unwrap();
        let host = lab.switch().unwrap().host("alice").unwrap();
        let pid = output(&host, "setsid sleep 1000 >/dev/null 2>&1 & echo $!");
        let executable = format!("/proc/{}/exe", pid.trim_end());
        assert!(fs::read_link(&executable).is_ok());
        assert_eq!(lab.close().unwrap(), 1);
        assert!(fs::read_link(&executable).is_err());
        assert!(host.links().unwrap().is_empty());
    });
}

#[test]
fn a_panic_on_a_host_goes_on_in_the_caller() {
    in_sandbox(|| {
        let lab = Lab::new().unwrap();
        let host = lab.host("alice").unwrap();
        let caught = thread::spawn(move || host.enter(|| assert_eq!(1, 2, "on the host"))).join();
        caught.unwrap_err();
    });
}

/// Runs a test of this file as nobody, from a folder that everybody may read.
fn as_nobody(test: &str) -> String {
    let folder = env::temp_dir().join(format!("ringmesh-lab-nobody-{}-{test}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.join("test");
    fs::copy(env::current_exe().unwrap(), &program).unwrap();
    let output = Command::new(&program)
        .args([test, "--exact", "--nocapture"])
        .current_dir("/")
        .gid(NOBODY)
        .uid(NOBODY)
        .output();
    fs::remove_dir_all(&folder).unwrap();
    let output = output.unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    text
}

#[test]
fn without_rights_a_lab_says_how_to_get_them() {
    if privilege() == Some(Privilege::Root) {
        assert!(as_nobody("without_rights_a_lab_says_how_to_get_them").contains("1 passed"));
        return;
    }
    let error = Lab::new().unwrap_err();
    assert!(matches!(error, LabError::NotPrivileged), "{error}");
    assert!(error.to_string().contains("enter()"), "{error}");
}

#[test]
fn nobody_gets_a_lab_in_a_user_namespace() {
    let name = "nobody_gets_a_lab_in_a_user_namespace";
    if privilege() == Some(Privilege::Root) {
        assert!(as_nobody(name).contains("1 passed"));
        return;
    }
    in_sandbox(|| {
        assert_eq!(privilege(), Some(Privilege::UserNamespace));
        let lab = Lab::new().unwrap();
        let switch = lab.switch().unwrap();
        let (alice, bob) = (switch.host("alice").unwrap(), switch.host("bob").unwrap());
        let listener = bob.enter(|| TcpListener::bind((bob.ipv6(), 0))).unwrap().unwrap();
        send(&alice, listener.local_addr().unwrap(), "hello");
        assert_eq!(receive(&listener), "hello");
        fs::File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    });
}
