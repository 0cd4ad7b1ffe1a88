//! What needs a look behind the public face: that nothing is left, and why a sandbox is refused.

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{self, Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{
    Denial, EnterError, Lab, Privilege, enter, in_sandbox,
    namespace::Namespace,
    outside_pid,
    sandbox::{diagnose, has_capabilities, inside, run_test, test_name},
};

/// Tells a test that it was started by itself, and as what.
const ROLE: &str = "RINGMESH_LAB_TEST_ROLE";
/// The process whose network namespace a holder lays a witness cable into.
const WITNESS: &str = "RINGMESH_LAB_TEST_WITNESS";
/// The end of that cable, which lives as long as the lab does.
const WITNESS_LINK: &str = "witness";
const DEADLINE: Duration = Duration::from_secs(10);

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < DEADLINE, "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Runs the calling test again in a process of its own, in which `ROLE` is set.
fn again(test: &str, role: &str) -> Child {
    Command::new(env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .env(WITNESS, process::id().to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn wait_for_line(child: &mut Child, expected: &str) {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.contains(expected)), "no `{expected}`");
}

/// Says something to the test that started this process, past libtest's capture.
fn say(text: &str) {
    writeln!(std::io::stdout(), "\n{text}").unwrap();
}

/// A lab with a program on a host and a cable to whoever watches; held until killed.
fn hold_a_lab(proc: &str) -> ! {
    let lab = Lab::new().unwrap();
    let switch = lab.switch().unwrap();
    let host = switch.host("alice").unwrap();
    // A child and its child: the second is nobody's `Command`.
    let mut program = host.command("sh").unwrap();
    let mut child = program.args(["-c", "sleep 1000 & sleep 1000"]).spawn().unwrap();
    let witness = fs::File::open(format!("{proc}/{}/ns/net", env::var(WITNESS).unwrap())).unwrap();
    host.enter(|| Namespace::own().unwrap().add_cable("watched", &witness, WITNESS_LINK).unwrap()).unwrap();
    say("holding");
    child.wait().unwrap();
    unreachable!("the program outlives its holder's patience");
}

fn other_processes() -> Vec<String> {
    let pids =
        fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let others = pids.filter(|pid| pid.parse::<u32>().is_ok_and(|pid| pid != 1 && pid != process::id()));
    others.filter(|pid| fs::read_link(format!("/proc/{pid}/exe")).is_ok()).collect()
}

fn links() -> Vec<String> {
    Namespace::own().unwrap().links().unwrap()
}

/// Kills `child`, and expects that nothing of the lab it held stays.
fn kill_and_look(mut child: Child, signal: Signal) {
    wait_for_line(&mut child, "holding");
    assert_eq!(links(), [WITNESS_LINK], "the lab is up");
    assert!(other_processes().len() >= 3, "{:?}", other_processes());
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
    child.wait().unwrap();
    eventually("no process is left", || other_processes().is_empty());
    eventually("no link is left", || links().is_empty());
}

#[test]
fn killing_the_holder_of_a_sandbox_leaves_no_process_and_no_link() {
    let name = test_name_of(killing_the_holder_of_a_sandbox_leaves_no_process_and_no_link);
    if env::var_os(ROLE).is_some() {
        enter().unwrap();
        hold_a_lab("/run/outside/proc");
    }
    in_sandbox(|| kill_and_look(again(&name, "holder"), Signal::SIGKILL));
}

#[test]
fn interrupting_the_holder_of_a_sandbox_leaves_no_process_and_no_link() {
    let name = test_name_of(interrupting_the_holder_of_a_sandbox_leaves_no_process_and_no_link);
    if env::var_os(ROLE).is_some() {
        enter().unwrap();
        hold_a_lab("/run/outside/proc");
    }
    in_sandbox(|| kill_and_look(again(&name, "holder"), Signal::SIGTERM));
}

#[test]
fn killing_a_holder_without_a_sandbox_leaves_no_program_that_it_started() {
    let name = test_name_of(killing_a_holder_without_a_sandbox_leaves_no_program_that_it_started);
    if env::var_os(ROLE).is_some() {
        let lab = Lab::new().unwrap();
        let host = lab.host("alice").unwrap();
        let mut child = host.command("sleep").unwrap().arg("1000").spawn().unwrap();
        say("holding");
        child.wait().unwrap();
    }
    in_sandbox(|| {
        let mut child = again(&name, "holder");
        wait_for_line(&mut child, "holding");
        assert_eq!(other_processes().len(), 2);
        child.kill().unwrap();
        child.wait().unwrap();
        eventually("no process is left", || other_processes().is_empty());
    });
}

#[test]
fn a_sandbox_ends_with_the_exit_code_of_its_program() {
    let name = test_name_of(a_sandbox_ends_with_the_exit_code_of_its_program);
    if env::var_os(ROLE).is_some() {
        enter().unwrap();
        process::exit(42);
    }
    assert_eq!(again(&name, "exits").wait().unwrap().code(), Some(42));
}

#[test]
fn signals_reach_the_program_in_the_sandbox() {
    let name = test_name_of(signals_reach_the_program_in_the_sandbox);
    if env::var_os(ROLE).is_some() {
        enter().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        runtime.block_on(async {
            let kind = tokio::signal::unix::SignalKind::terminate();
            let mut terminate = tokio::signal::unix::signal(kind).unwrap();
            say("listening");
            terminate.recv().await;
        });
        process::exit(43);
    }
    let mut child = again(&name, "listens");
    wait_for_line(&mut child, "listening");
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(43));
}

#[test]
fn a_user_namespace_gives_the_rights_and_a_test_that_fails_in_it_fails() {
    let name = test_name_of(a_user_namespace_gives_the_rights_and_a_test_that_fails_in_it_fails);
    if inside().is_some() {
        in_sandbox(|| assert!(!has_capabilities(), "as it should be: there are capabilities"));
    }
    let (code, output) = run_test(&name, Privilege::UserNamespace, |_| {}).unwrap();
    assert_ne!(code, 0, "{output}");
    assert!(output.contains("as it should be"), "{output}");
}

#[test]
fn where_user_namespaces_are_used_up_the_setting_and_sudo_are_named() {
    let name = test_name_of(where_user_namespaces_are_used_up_the_setting_and_sudo_are_named);
    if inside() == Some(Privilege::UserNamespace) {
        return in_sandbox(|| {
            // The limit of this user namespace, not the system's.
            fs::write("/proc/sys/user/max_user_namespaces", "0").unwrap();
            let error = run_test("none", Privilege::UserNamespace, |_| {}).unwrap_err();
            let EnterError::Denied { denial, .. } = &error else { unreachable!("{error}") };
            assert_eq!(*denial, Denial::MaxUserNamespaces);
            assert!(error.to_string().contains("user.max_user_namespaces"), "{error}");
            assert!(error.to_string().contains("sudo "), "{error}");
        });
    }
    let (code, output) = run_test(&name, Privilege::UserNamespace, |_| {}).unwrap();
    assert_eq!(code, 0, "{output}");
}

#[test]
fn each_setting_that_forbids_user_namespaces_is_recognised() {
    let refused = std::io::Error::from_raw_os_error(libc::EPERM);
    let cases = [
        ("kernel/unprivileged_userns_clone", "0\n", Denial::UnprivilegedUserns),
        ("kernel/unprivileged_userns_clone", "1\n", Denial::Unknown),
        ("kernel/apparmor_restrict_unprivileged_userns", "1\n", Denial::AppArmor),
        ("kernel/apparmor_restrict_unprivileged_userns", "0\n", Denial::Unknown),
        ("user/max_user_namespaces", "0\n", Denial::MaxUserNamespaces),
        ("user/max_user_namespaces", "1000\n", Denial::Unknown),
    ];
    for (number, (name, value, expected)) in cases.into_iter().enumerate() {
        let tree = env::temp_dir().join(format!("ringmesh-lab-{}-{number}", process::id()));
        let file = tree.join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, value).unwrap();
        assert_eq!(diagnose(&tree, &refused), expected, "{name} = {value}");
        fs::remove_dir_all(&tree).unwrap();
    }
    let used_up = std::io::Error::from_raw_os_error(libc::ENOSPC);
    assert_eq!(diagnose(Path::new("/nonexistent"), &used_up), Denial::MaxUserNamespaces);
}

#[test]
fn a_process_inside_is_found_outside() {
    in_sandbox(|| {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let outside = outside_pid(child.id()).unwrap();
        assert_ne!(outside, child.id());
        let line = fs::read(format!("/run/outside/proc/{outside}/cmdline")).unwrap();
        assert_eq!(line, b"sleep\x001000\0");
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(outside_pid(child.id()), None);
    });
}

fn test_name_of<F: Fn()>(_test: F) -> String {
    test_name::<F>()
}
