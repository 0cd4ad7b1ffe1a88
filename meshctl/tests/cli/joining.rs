//! From a token to packets that pass, and out again.

use std::process::Stdio;

use ringmesh_lab::in_sandbox;

use crate::support::{MESHCTL, Machine, Site, run_with};

/// A coordinator and two nodes that joined by token.
fn pair() -> (Site, Machine, Machine, Machine) {
    let site = Site::new();
    let coordinator = site.coordinator();
    let (one, two) = (site.machine("one"), site.machine("two"));
    one.join(&coordinator);
    two.join(&coordinator);
    (site, coordinator, one, two)
}

#[test]
fn join_ends_with_a_check_that_packets_pass() {
    in_sandbox(|| {
        let site = Site::new();
        let coordinator = site.coordinator();
        let (one, two) = (site.machine("one"), site.machine("two"));
        let first = one.join(&coordinator);
        assert!(first.contains("joined     network mesh as one"), "{first}");
        assert!(first.contains("\nping       no peer yet\n"), "{first}");
        assert!(first.contains("installed in the data plane"), "{first}");
        assert!(first.contains("\nmtu        1408\n"), "{first}");

        let second = two.run(&["join", "--token", &coordinator.token(), "--io", "poll", "-o", "json"]);
        assert_eq!(second.code, 0, "{second:?}");
        let joined = second.json("join");
        assert_eq!(joined["ok"], true);
        assert_eq!(joined["ping"]["node"], "one");
        assert_eq!(joined["ping"]["path"], "direct");
        assert_eq!(joined["status"]["data_plane"]["back_end"], "poll");
        assert_eq!(joined["status"]["network"]["self"]["name"], "two");

        let path = two.run(&["ping", "one", "-c", "2", "-i", "50"]).ok();
        assert_eq!(path.lines().count(), 3, "{path}");
        // Either family is as good as the other on a cable.
        let (ipv4, ipv6) = (one.host.ipv4(), one.host.ipv6());
        let endpoints = [format!("via direct {ipv4}:51820 in "), format!("via direct [{ipv6}]:51820 in ")];
        let direct = endpoints.iter().any(|endpoint| path.contains(endpoint));
        assert!(path.starts_with("pong from one (100.") && direct, "{path}");
    });
}

#[test]
fn status_peers_ping_and_nodes_conform_to_their_schemas() {
    in_sandbox(|| {
        let (_site, coordinator, one, _two) = pair();
        let status = one.json("status", &["status"]);
        assert_eq!(status["state"], "running");
        assert_eq!(status["peers"][0]["name"], "two");
        assert_eq!(status["coordinator"]["state"], "connected");
        assert_eq!(status["peers"][0]["path"], "direct");
        let why = one.json("why", &["why", "two"]);
        assert_eq!(why["peer"]["id"], status["peers"][0]["id"]);
        assert!(
            why["candidates"].as_array().unwrap().iter().any(|candidate| candidate["selected"] == true),
            "{why:#}"
        );
        let message = one.run(&["why", "nobody"]).failed(2);
        assert!(message.contains("nobody"), "{message}");
        let peers = one.json("peers", &["peers"]);
        assert_eq!(peers["peers"][0]["id"], status["peers"][0]["id"]);
        let ping = one.json("ping", &["ping", "two"]);
        assert_eq!((&ping["sent"], &ping["answered"]), (&1.into(), &1.into()));
        let nodes = coordinator.members();
        let names: Vec<_> = nodes.iter().map(|node| &node["name"]).collect();
        assert_eq!(names, ["one", "two"]);
        assert_eq!(nodes[0]["online"], true);
        let version = one.json("version", &["version"]);
        assert_eq!(version["daemon"], env!("CARGO_PKG_VERSION"));
        // The same for people.
        let text = one.run(&["status"]).ok();
        assert!(text.contains("network      mesh (zone mesh, id ") && text.contains("\ntwo "), "{text}");
        assert!(one.run(&["peers"]).ok().starts_with("peer           two (id "));
    });
}

#[test]
fn a_removed_node_is_shown_and_gone() {
    in_sandbox(|| {
        let (_site, coordinator, _one, _two) = pair();
        let removed = coordinator.json("node-removed", &["nodes", "remove", "two"]);
        assert_eq!(removed["node"]["name"], "two");
        assert_eq!(coordinator.members().len(), 1);
        coordinator.run(&["nodes", "remove", "two"]).failed(2);
    });
}

#[test]
fn leave_forgets_the_network_here_and_at_the_coordinator() {
    in_sandbox(|| {
        let (_site, coordinator, _one, two) = pair();
        let left = two.json("leave", &["leave"]);
        assert_eq!(left["coordinator_told"], true);
        let status = two.run(&["status", "-o", "json"]);
        assert_eq!(status.code, 4);
        assert_eq!(status.json("status")["state"], "not-joined");
        two.run(&["leave"]).failed(4);
        let ping = two.run(&["ping", "one"]);
        assert_eq!(ping.code, 4, "{ping:?}");
        two.run(&["why", "one"]).failed(4);
        assert_eq!(coordinator.members().len(), 1);
        // And in again.
        two.join(&coordinator);
    });
}

#[test]
fn leave_works_without_the_coordinator_and_says_what_is_left_to_do() {
    in_sandbox(|| {
        let (_site, coordinator, _one, two) = pair();
        coordinator.run(&["coordinator", "down"]).ok();
        let left = two.run(&["leave", "-o", "json"]);
        assert_eq!(left.code, 0, "{left:?}");
        assert_eq!(left.json("leave")["coordinator_told"], false);
        assert!(left.stderr.contains("meshctl nodes remove two"), "{left:?}");
        two.run(&["leave"]).failed(4);
    });
}

#[test]
fn a_removed_node_is_told_so_and_leaves() {
    in_sandbox(|| {
        let (_site, coordinator, _one, two) = pair();
        coordinator.run(&["nodes", "remove", "two"]).ok();
        let status = loop {
            let status = two.run(&["status", "-o", "json"]);
            if status.code != 0 {
                break status;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        };
        assert_eq!(status.code, 4, "{status:?}");
        assert_eq!(status.json("status")["state"], "removed");
        assert!(status.stderr.contains("meshctl leave"), "{status:?}");
        two.run(&["node", "down"]).ok();
        let message = two.run(&["join", "--foreground", "--token", &coordinator.token()]).failed(4);
        assert!(message.contains("was removed"), "{message}");
        two.run(&["node", "up"]).ok();
        let left = two.run(&["leave"]);
        assert_eq!(left.code, 0, "{left:?}");
        assert!(!left.stderr.contains("nodes remove"), "who is removed already need not be: {left:?}");
        two.join(&coordinator);
    });
}

#[test]
fn a_token_is_taken_from_a_file_a_variable_and_standard_input() {
    in_sandbox(|| {
        let site = Site::new();
        let coordinator = site.coordinator();

        let from_file = site.machine("file");
        from_file.write("/run/token", format!("{}\n", coordinator.token()).as_bytes());
        from_file.run(&["join", "--token", "file:/run/token"]).ok();

        let from_variable = site.machine("variable");
        let mut join = from_variable.meshctl(&["join"]);
        join.env("MESH_TOKEN", coordinator.token());
        run_with(join, b"").ok();

        let from_input = site.machine("input");
        run_with(from_input.meshctl(&["join", "--token", "-"]), coordinator.token().as_bytes()).ok();

        let piped = site.machine("piped");
        run_with(piped.meshctl(&["join"]), format!("  {}\n", coordinator.token()).as_bytes()).ok();

        assert_eq!(coordinator.members().len(), 4);
    });
}

#[test]
fn a_peer_that_does_not_answer_fails_the_check_but_not_the_membership() {
    in_sandbox(|| {
        let site = Site::new();
        let coordinator = site.coordinator();
        let (one, two) = (site.machine("one"), site.machine("two"));
        one.join(&coordinator);
        one.host.interfaces()[0].unplug().unwrap();
        let ran = two.run(&["join", "--token", &coordinator.token()]);
        assert_eq!(ran.code, 6, "{ran:?}");
        assert!(ran.stdout.contains("no reply from one"), "{ran:?}");
        assert!(ran.stderr.contains("error: joined, but no peer answers"), "{ran:?}");
        two.run(&["status"]).ok();
        let ping = two.run(&["ping", "one", "-W", "300"]);
        assert_eq!(ping.code, 6, "{ping:?}");
        assert!(ping.stdout.starts_with("no reply from one"), "{ping:?}");
    });
}

#[test]
fn a_node_goes_down_and_up_and_is_still_a_member() {
    in_sandbox(|| {
        let (_site, coordinator, one, two) = pair();
        two.run(&["node", "down"]).ok();
        assert_eq!(two.processes().len(), 0);
        two.run(&["status"]).failed(3);
        two.run(&["node", "up"]).ok();
        two.run(&["node", "up"]).ok();
        assert_eq!(two.processes().len(), 1);
        two.run(&["ping", "one"]).ok();
        one.run(&["ping", "two"]).ok();

        // Whoever does not remember that it has joined may say so again.
        two.run(&["node", "down"]).ok();
        let again = two.run(&["join", "--token", &coordinator.token()]).ok();
        assert!(again.starts_with("was in     network mesh as two"), "{again}");
        let tokens = coordinator.json("tokens", &["token", "list"]);
        assert_eq!(
            tokens["tokens"].as_array().unwrap().last().unwrap()["uses"],
            0,
            "the token was not spent"
        );
    });
}

#[test]
fn join_in_the_foreground_is_the_daemon_and_survives_a_restart_with_the_same_token() {
    in_sandbox(|| {
        let site = Site::new();
        let coordinator = site.coordinator();
        let node = site.machine("node");
        let token = coordinator.token();
        for _ in 0..2 {
            let mut join = node.meshctl(&["join", "--foreground", "--token", &token]);
            let mut join =
                join.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
            let mut lines = std::io::BufRead::lines(std::io::BufReader::new(join.stdout.take().unwrap()));
            let last = lines.find(|line| line.as_ref().unwrap().starts_with("mtu")).unwrap().unwrap();
            assert!(last.ends_with("1408"));
            node.run(&["status"]).ok();
            let daemons = node.processes();
            assert_eq!(daemons.len(), 1, "it is the daemon itself");
            assert_eq!(daemons[0].id, join.id());
            assert!(!crate::support::shows(&daemons[0].arguments, &token));
            node.run(&["node", "down"]).ok();
            assert_eq!(join.wait().unwrap().code(), Some(0));
        }
        assert_eq!(coordinator.members().len(), 1);
    });
}

#[test]
fn called_as_meshd_it_is_the_node_daemon() {
    in_sandbox(|| {
        let site = Site::new();
        let machine = site.machine("node");
        let link = tempfile::tempdir().unwrap();
        let meshd = link.path().join("meshd");
        std::os::unix::fs::symlink(MESHCTL, &meshd).unwrap();
        let mut daemon = machine.host.command(&meshd).unwrap();
        let mut daemon =
            daemon.arg("--background").stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut ready = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(daemon.stdout.take().unwrap()), &mut ready)
            .unwrap();
        assert_eq!(ready, "ready\n");
        let status = machine.run(&["status", "-o", "json"]);
        assert_eq!(status.code, 4, "{status:?}");
        assert_eq!(status.json("status")["state"], "not-joined");
        machine.run(&["node", "down"]).ok();
        assert_eq!(daemon.wait().unwrap().code(), Some(0));
    });
}
