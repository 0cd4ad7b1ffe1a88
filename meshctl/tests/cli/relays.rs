//! Relays as people see them: the coordinator's own and one that runs alone, and the paths that lead through them.

use std::{
    fs::File,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use ringmesh_lab::{Blocks, in_sandbox};
use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::support::{Machine, Ran, Site, foreign_token, run_with, shows};

/// What comes about at all comes about within this.
const PATIENCE: Duration = Duration::from_secs(20);
const LOG: &str = "/run/relay.log";

/// Asks until `found` has what it looks for.
#[track_caller]
fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Lets no UDP pass between a machine and any other but `relay`.
fn only_to(machine: &Machine, relay: &Machine) {
    let blocks = Blocks::udp().but_for(relay.host.ipv4()).but_for(relay.host.ipv6());
    machine.host.block(&blocks).unwrap();
}

/// Pings until the path is `path`, and gives that reply.
#[track_caller]
fn reached_by(path: &str, from: &Machine, to: &str) -> Value {
    until(&format!("{to} is not reached by {path}"), || {
        let ran = from.run(&["ping", to, "-o", "json"]);
        let reply = ran.json("ping")["replies"][0].clone();
        (reply["path"] == path).then_some(reply)
    })
}

/// `meshctl relay run` as a supervisor would start it.
fn relay_run(machine: &Machine, arguments: &[&str]) -> Child {
    let mut command = machine.meshctl(&[&["relay", "run"], arguments].concat());
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"MESH_")) {
        command.env_remove(name);
    }
    let log = machine.host.enter(|| File::create(LOG).unwrap()).unwrap();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap()
}

/// Waits until a daemon says that it is in its network.
#[track_caller]
fn running(machine: &Machine) -> Value {
    until("the relay does not run", || {
        let ran = machine.run(&["status", "-o", "json"]);
        (ran.code == 0).then(|| ran.json("status")).filter(|status| status["state"] == "running")
    })
}

#[track_caller]
fn ends(mut relay: Child, machine: &Machine) -> Ran {
    let status = until("the relay does not end", || relay.try_wait().unwrap());
    let stderr = machine.read(LOG).unwrap_or_default();
    Ran { code: status.code().unwrap_or(-1), stdout: String::new(), stderr }
}

#[test]
fn the_coordinators_relay_is_shown_with_its_clients_and_why_it_is_used() {
    in_sandbox(|| {
        let site = Site::new();
        let coordinator = site.coordinator();
        let (one, two) = (site.machine("one"), site.machine("two"));
        only_to(&two, &coordinator);
        one.join(&coordinator);
        two.join(&coordinator);
        let reply = reached_by("relay", &one, "two");
        assert_eq!(reply["via"], "relay");
        let text = one.run(&["ping", "two"]).ok();
        assert!(text.contains(" via relay \"relay\" at ") && text.contains(":443 in "), "{text}");

        let status = one.json("status", &["status"]);
        let relay = &status["relays"][0];
        assert_eq!(
            (&relay["name"], &relay["state"], &relay["path"]),
            (&"relay".into(), &"connected".into(), &"direct".into())
        );
        assert_eq!(status["peers"][0]["via"], "relay");
        assert!(status["peers"][0]["rtt_us"].as_u64().is_some_and(|rtt| rtt > 0), "{status:#}");
        assert_eq!(status["relay_service"], Value::Null);
        let seen = until("the relay does not tell how it sees us", || {
            let seen = one.json("status", &["status"])["relays"][0]["seen_as"].as_str().unwrap().to_owned();
            (!seen.is_empty()).then_some(seen)
        });
        let (v4, v6) = (one.host.ipv4().to_string(), one.host.ipv6().to_string());
        assert!(seen.contains(&v4) || seen.contains(&v6), "{seen}");
        let text = one.run(&["status"]).ok();
        assert!(
            text.contains("\nrelay  connected  direct ") && text.contains("relay \"relay\" at "),
            "{text}"
        );

        let why = one.json("why", &["why", "two"]);
        assert!(why["verdict"].as_str().unwrap().contains("relay"), "{why:#}");
        let candidates = why["candidates"].as_array().unwrap();
        let selected: Vec<_> = candidates.iter().filter(|candidate| candidate["selected"] == true).collect();
        assert_eq!((selected.len(), &selected[0]["kind"]), (1, &"relay".into()), "{why:#}");
        let direct = format!("{}:51820", two.host.ipv4());
        let direct = until("no error of the direct path is told", || {
            let why = one.json("why", &["why", "two"]);
            let candidates = why["candidates"].as_array().unwrap();
            let direct = candidates.iter().find(|candidate| candidate["address"] == direct.as_str()).cloned();
            direct.filter(|direct| direct["last_error"] != "" && direct["next_try_ms"].is_u64())
        });
        assert_eq!((&direct["kind"], &direct["selected"]), (&"udp".into(), &false.into()));
        assert_ne!(direct["state"], "working");
        let text = one.run(&["why", "two"]).ok();
        assert!(text.contains("LAST ERROR") && text.contains("working, selected"), "{text}");

        let clients = coordinator.json("relay-clients", &["relay", "clients"]);
        let names: Vec<_> =
            clients["clients"].as_array().unwrap().iter().map(|client| &client["name"]).collect();
        assert_eq!(names, ["one", "two"]);
        let mut channels = 0;
        for client in clients["clients"].as_array().unwrap() {
            assert_eq!((&client["path"], &client["state"]), (&"udp".into(), &"here".into()), "{clients:#}");
            assert!(client["from_bytes"].as_u64().unwrap() > 0, "{clients:#}");
            channels += client["channels"].as_u64().unwrap();
        }
        assert!(channels >= 1, "{clients:#}");
        assert!(clients["relayed_datagrams"].as_u64().unwrap() > 0, "{clients:#}");
        let text = coordinator.run(&["relay", "clients"]).ok();
        assert!(text.starts_with("CLIENT ") && text.contains("\nrelayed "), "{text}");
    });
}

#[test]
fn without_a_relay_there_are_no_clients_to_list() {
    in_sandbox(|| {
        let site = Site::new();
        let coordinator = site.machine("coordinator");
        coordinator.run(&["coordinator", "up", "--no-relay"]).ok();
        let ran = coordinator.run(&["relay", "clients"]);
        assert_ne!(ran.code, 0, "{ran:?}");
        assert!(
            ran.stderr.contains("error: cannot list the relay's clients") && ran.stderr.contains("relay"),
            "{ran:?}"
        );
    });
}

#[test]
fn a_relay_of_its_own_joins_serves_and_starts_again_without_a_token() {
    in_sandbox(|| {
        let site = Site::new();
        let coordinator = site.machine("coordinator");
        coordinator.run(&["coordinator", "up", "--no-relay"]).ok();
        let token = coordinator.run(&["token", "create", "--relay"]).ok().trim().to_owned();
        let fra = site.machine("fra");
        let mut relay = relay_run(&fra, &["--token", &token]);
        running(&fra);
        let daemon = fra.processes();
        assert_eq!(daemon.len(), 1);
        assert!(!shows(&daemon[0].arguments, &token), "the token is in no argument");
        assert!(
            fra.host.links().unwrap().iter().all(|link| !link.starts_with("mesh")),
            "a relay has no device"
        );
        let nodes = coordinator.json("nodes", &["nodes", "list"]);
        assert_eq!((&nodes["nodes"][0]["name"], &nodes["nodes"][0]["relay"]), (&"fra".into(), &true.into()));

        let (one, two) = (site.machine("one"), site.machine("two"));
        only_to(&two, &fra);
        one.join(&coordinator);
        two.join(&coordinator);
        assert_eq!(reached_by("relay", &one, "two")["via"], "fra");
        let status = fra.json("status", &["status"]);
        let clients = status["relay_service"]["clients"].as_array().unwrap();
        let names: Vec<_> = clients.iter().map(|client| &client["name"]).collect();
        assert_eq!(names, ["one", "two"]);
        assert!(status["relay_service"]["passed_on_datagrams"].as_u64().unwrap() > 0, "{status:#}");
        let text = fra.run(&["status"]).ok();
        assert!(text.contains("\nrelay        udp port 51820") && text.contains("\none "), "{text}");

        rustix::process::kill_process(Pid::from_child(&relay), Signal::TERM).unwrap();
        assert!(relay.wait().unwrap().success(), "{:?}", fra.read(LOG));
        let again = relay_run(&fra, &[]);
        assert_eq!(running(&fra)["network"]["self"]["name"], "fra");
        assert_eq!(reached_by("relay", &one, "two")["via"], "fra");
        rustix::process::kill_process(Pid::from_child(&again), Signal::TERM).unwrap();
        assert_eq!(ends(again, &fra).code, 0);
    });
}

#[test]
fn a_nodes_token_makes_no_relay_and_a_relays_token_no_node() {
    in_sandbox(|| {
        let site = Site::new();
        let coordinator = site.coordinator();
        let fra = site.machine("fra");
        let nodes_token = coordinator.token();
        let ran = ends(relay_run(&fra, &["--token", &nodes_token]), &fra);
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(ran.stderr.contains("error: ") && ran.stderr.contains("relay's token"), "{ran:?}");
        assert_eq!(fra.processes().len(), 0);

        let node = site.machine("node");
        let relays_token = coordinator.run(&["token", "create", "--relay"]).ok();
        let ran = node.run(&["join", "--token", relays_token.trim()]);
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(ran.stderr.contains("meshctl relay run"), "{ran:?}");
        assert_eq!(node.processes().len(), 0);
        // Neither was used, nor anybody left behind.
        let nodes = coordinator.json("nodes", &["nodes", "list"]);
        let names: Vec<_> = nodes["nodes"].as_array().unwrap().iter().map(|node| &node["name"]).collect();
        assert_eq!(names, ["relay"], "the coordinator's own");
        node.run(&["join", "--token", &nodes_token]).ok();
        let relay = relay_run(&fra, &["--token", relays_token.trim()]);
        running(&fra);
        rustix::process::kill_process(Pid::from_child(&relay), Signal::TERM).unwrap();
        assert_eq!(ends(relay, &fra).code, 0);
    });
}

#[test]
fn a_relay_without_a_token_or_with_a_strangers_leaves_nothing_running() {
    in_sandbox(|| {
        let site = Site::new();
        let fra = site.machine("fra");
        let message = run_with(fra.meshctl(&["relay", "run"]), b"").failed(2);
        assert!(message.contains("no join token"), "{message}");
        assert!(
            message.contains("try: meshctl relay run --token") && message.ends_with("token create --relay\n"),
            "{message}"
        );
        assert!(fra.traces().iter().all(|path| !path.ends_with("identity")), "{:?}", fra.traces());
        let token = foreign_token(&format!("{}:1", fra.host.ipv4()));
        let ran = ends(relay_run(&fra, &["--token", &token]), &fra);
        assert_eq!(ran.code, 6, "{ran:?}");
        assert!(!shows(ran.stderr.as_bytes(), &token), "{ran:?}");
        assert_eq!(fra.processes().len(), 0);
    });
}
