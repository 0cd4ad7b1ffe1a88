//! A coordinator from its first start on: up, tokens, networks, down, up again.

use ringmesh_lab::in_sandbox;
use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::support::{Site, shows};

/// The token in a join line.
fn token_of(line: &str) -> &str {
    line.trim().strip_prefix("meshctl join --token ").unwrap_or_else(|| panic!("no join line: {line}"))
}

#[test]
fn up_starts_a_coordinator_once_and_prints_a_join_line_each_time() {
    in_sandbox(|| {
        let site = Site::new();
        let machine = site.machine("coordinator");
        let first = machine.run(&["coordinator", "up"]);
        assert!(first.stderr.contains("/var/lib/mesh-coordinator/coordinator.log"), "{first:?}");
        assert!(
            first.stderr.contains(&format!("nodes will connect to {}:443 or [", machine.host.ipv4())),
            "{first:?}"
        );
        assert!(first.stderr.contains("for one node, expires in 24 h"), "{first:?}");
        let first = first.ok();
        assert_eq!(first.lines().count(), 1, "the result is the line alone: {first}");
        let daemons = machine.processes();
        assert_eq!(daemons.len(), 1, "one daemon is left running");

        let again = machine.run(&["coordinator", "up", "--reusable", "--ttl", "7d"]);
        assert!(
            again.stderr.contains("running already") && again.stderr.contains("any number of nodes"),
            "{again:?}"
        );
        let again = again.ok();
        assert_ne!(token_of(&first), token_of(&again));
        assert_eq!(machine.processes().len(), 1);
        assert_eq!(machine.processes()[0].id, daemons[0].id);

        let tokens = machine.json("tokens", &["token", "list"]);
        assert_eq!(tokens["tokens"].as_array().unwrap().len(), 2);
        assert_eq!(tokens["tokens"][0]["max_uses"], 1);
        assert_eq!(tokens["tokens"][1]["max_uses"], Value::Null);
    });
}

#[test]
fn up_as_json_is_the_token_created() {
    in_sandbox(|| {
        let site = Site::new();
        let machine = site.machine("coordinator");
        let created = machine.json("token-created", &["coordinator", "up", "--listen", "127.0.0.1:8443"]);
        assert_eq!(
            created["join"].as_str().unwrap(),
            format!("meshctl join --token {}", created["secret"].as_str().unwrap())
        );
        let again = machine.run(&["coordinator", "up"]);
        assert!(again.stderr.contains("127.0.0.1:8443, which only this machine can"), "{again:?}");
    });
}

#[test]
fn a_background_daemon_outlives_its_terminal() {
    in_sandbox(|| {
        let site = Site::new();
        let machine = site.machine("coordinator");
        machine.run(&["coordinator", "up", "--log", "debug", "--log-format", "json"]).ok();
        let daemon = Pid::from_raw(machine.processes()[0].id.cast_signed()).unwrap();
        assert_eq!(rustix::process::getsid(Some(daemon)).unwrap(), daemon, "it leads a session of its own");
        rustix::process::kill_process(daemon, Signal::HUP).unwrap();
        machine.run(&["token", "list"]).ok();
        rustix::process::kill_process(daemon, Signal::TERM).unwrap();
        while machine
            .processes()
            .iter()
            .any(|process| process.id == daemon.as_raw_nonzero().get().cast_unsigned())
        {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let log = machine.read("/var/lib/mesh-coordinator/coordinator.log").unwrap();
        let events: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let seen =
            |message: &str| events.iter().any(|event| event["message"].as_str().unwrap().contains(message));
        assert!(seen("SIGHUP") && seen("ending"), "{log}");
    });
}

#[test]
fn tokens_are_made_listed_and_revoked() {
    in_sandbox(|| {
        let site = Site::new();
        let machine = site.coordinator();
        let created = machine.json(
            "token-created",
            &[
                "token",
                "create",
                "--uses",
                "3",
                "--ttl",
                "15m",
                "--tag",
                "web",
                "--tag",
                "prod",
                "--ephemeral",
            ],
        );
        let id = created["token"]["id"].as_str().unwrap();
        assert_eq!(created["token"]["max_uses"], 3);
        assert_eq!(created["token"]["ephemeral"], true);
        assert_eq!(created["token"]["tags"], serde_json::json!(["web", "prod"]));
        let life = created["token"]["expires_ms"].as_u64().unwrap()
            - created["token"]["created_ms"].as_u64().unwrap();
        assert_eq!(life, 900_000);

        let listed = machine.run(&["token", "list"]).ok();
        assert!(
            listed
                .lines()
                .any(|line| line.starts_with(id) && line.contains("valid") && line.contains("0 of 3"))
        );
        assert!(!shows(listed.as_bytes(), created["secret"].as_str().unwrap()));

        let revoked = machine.json("token-revoked", &["token", "revoke", id]);
        assert_eq!(revoked["token"]["revoked"], true);
        let listed = machine.run(&["token", "list"]).ok();
        assert!(listed.lines().any(|line| line.starts_with(id) && line.contains("revoked")), "{listed}");

        let message = machine.run(&["token", "revoke", "00000000000000ff"]).failed(2);
        assert!(message.contains("cause: ") && message.contains("meshctl token list"), "{message}");
    });
}

#[test]
fn a_new_network_has_its_pools_and_no_node() {
    in_sandbox(|| {
        let site = Site::new();
        let machine = site.machine("coordinator");
        machine
            .run(&[
                "coordinator",
                "up",
                "--network-name",
                "home",
                "--ipv4-pool",
                "10.42.0.0/16",
                "--zone",
                "lab",
            ])
            .ok();
        let networks = machine.json("networks", &["network", "list"]);
        let network = &networks["networks"][0];
        assert_eq!(
            (&network["name"], &network["ipv4_pool"], &network["zone"]),
            (&"home".into(), &"10.42.0.0/16".into(), &"lab".into())
        );
        let nodes = machine.json("nodes", &["nodes", "list"]);
        let [relay] = nodes["nodes"].as_array().unwrap().as_slice() else { panic!("{nodes}") };
        assert_eq!(
            (&relay["name"], &relay["relay"]),
            (&"relay".into(), &true.into()),
            "its own, and nobody else"
        );
        let listed = machine.run(&["nodes", "list"]).ok();
        assert!(listed.lines().count() == 2 && listed.contains("\nrelay "), "{listed}");
        let message = machine.run(&["nodes", "remove", "nobody"]).failed(2);
        assert!(message.contains("nobody"), "{message}");
    });
}

#[test]
fn without_a_relay_a_new_network_is_empty() {
    in_sandbox(|| {
        let site = Site::new();
        let machine = site.machine("coordinator");
        machine.run(&["coordinator", "up", "--no-relay"]).ok();
        assert_eq!(machine.json("nodes", &["nodes", "list"])["nodes"], serde_json::json!([]));
        assert_eq!(machine.run(&["nodes", "list"]).ok(), "no node has joined yet\n");
    });
}

#[test]
fn a_relays_token_says_so_and_how_it_is_used() {
    in_sandbox(|| {
        let site = Site::new();
        let machine = site.coordinator();
        let created = machine.run(&["token", "create", "--relay", "-o", "json"]);
        assert!(created.stderr.contains("for one relay, expires in 24 h"), "{created:?}");
        assert!(created.stderr.contains("meshctl relay run --token TOKEN"), "{created:?}");
        let created = created.json("token-created");
        assert_eq!(created["token"]["relay"], true);
        assert!(created["join"].as_str().unwrap().starts_with("meshctl relay run --token mesh1_"));
        let tokens = machine.json("tokens", &["token", "list"]);
        let relays: Vec<_> =
            tokens["tokens"].as_array().unwrap().iter().map(|token| &token["relay"]).collect();
        assert_eq!(relays, [false, true], "the coordinator's first token was for a node");
        let listed = machine.run(&["token", "list"]).ok();
        assert!(listed.contains(" relays  valid "), "{listed}");
    });
}

#[test]
fn state_outlives_the_process() {
    in_sandbox(|| {
        let site = Site::new();
        let machine = site.coordinator();
        let network = machine.json("networks", &["network", "list"])["networks"][0]["id"].clone();
        let tokens = machine.json("tokens", &["token", "list"]);
        let certificate = machine.run(&["coordinator", "ca"]).ok();
        assert!(certificate.starts_with("-----BEGIN CERTIFICATE-----\n"), "{certificate}");
        assert_eq!(certificate.matches("-----BEGIN").count(), 1, "no key beside it");

        machine.run(&["coordinator", "down"]).ok();
        assert_eq!(machine.processes().len(), 0);
        machine.run(&["token", "list"]).failed(3);
        assert_eq!(machine.run(&["coordinator", "ca"]).ok(), certificate, "readable while it is down");

        machine.run(&["coordinator", "up"]).ok();
        assert_eq!(machine.json("networks", &["network", "list"])["networks"][0]["id"], network);
        let after = machine.json("tokens", &["token", "list"]);
        assert_eq!(after["tokens"][0], tokens["tokens"][0]);
    });
}

#[test]
fn a_taken_port_is_a_conflict_and_nothing_is_left_running() {
    in_sandbox(|| {
        let site = Site::new();
        let machine = site.machine("coordinator");
        let _listener = machine.host.enter(|| std::net::TcpListener::bind("[::]:443").unwrap()).unwrap();
        let message = machine.run(&["coordinator", "up"]).failed(9);
        assert!(message.contains("mesh-coordinator did not start") && message.contains("443"), "{message}");
        assert_eq!(machine.processes().len(), 0);
        assert!(
            machine.read("/var/lib/mesh-coordinator/coordinator.log").is_none(),
            "{:?}",
            machine.traces()
        );
        // Another port will do.
        machine.run(&["coordinator", "up", "--listen", "[::]:8443"]).ok();
    });
}

#[test]
fn a_damaged_database_is_named_and_left_alone() {
    in_sandbox(|| {
        let site = Site::new();
        let machine = site.machine("coordinator");
        machine.run(&["coordinator", "up"]).ok();
        machine.run(&["coordinator", "down"]).ok();
        let database = machine
            .traces()
            .into_iter()
            .find(|path| path.extension().is_some_and(|extension| extension == "db" || extension == "sqlite"))
            .unwrap();
        let database = database.to_str().unwrap();
        machine.write(
            database,
            b"this is no database, and long enough to be read as the header of one, or so it seems.....",
        );
        let message = machine.run(&["coordinator", "up"]).failed(1);
        assert!(message.contains(database), "{message}");
        assert!(machine.read(database).unwrap().starts_with("this is no database"));
    });
}
