//! What a node's owner sees of the filter, denies beyond the policy, and finds out by a trace.

use std::{
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use ringmesh_lab::in_sandbox;
use serde_json::Value;

use crate::support::{Machine, Site, mesh, meshctl, run_with};

const POLICY: &[u8] = br#"
[[allow]]
from = ["alice"]
to = ["web"]
protocol = "tcp"
ports = ["8000-8100"]
"#;

/// A coordinator, and `alice` who may reach `web` on a few ports.
fn filtered_mesh() -> (Site, Machine, Machine, Machine) {
    let mesh = mesh(&[]);
    run_with(mesh.1.meshctl(&["policy", "apply", "-"]), POLICY).ok();
    mesh
}

impl Machine {
    /// Its IPv4 address in the mesh.
    fn address(&self) -> IpAddr {
        let status = self.json("status", &["status"]);
        status["network"]["self"]["ipv4"].as_str().unwrap().parse().unwrap()
    }

    fn connects(&self, to: SocketAddr, patience: Duration) -> bool {
        self.host.enter(|| TcpStream::connect_timeout(&to, patience).is_ok()).unwrap()
    }

    fn rule(&self, number: u64) -> Value {
        let filter = self.json("filter", &["filter", "list"]);
        let rule = filter["rules"].as_array().unwrap().iter().find(|rule| rule["number"] == number);
        rule.unwrap_or_else(|| panic!("no rule {number}: {filter:#}")).clone()
    }
}

const SOON: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_millis(500);

#[test]
fn hits_are_counted_and_a_denial_cuts_until_it_is_removed() {
    in_sandbox(|| {
        let (_site, _coordinator, alice, web) = filtered_mesh();
        let address = SocketAddr::new(web.address(), 8080);
        let _listener = web.host.enter(|| TcpListener::bind(address).unwrap()).unwrap();
        let before = [&alice, &web].map(|node| node.rule(1)["flows"].as_u64().unwrap());
        assert!(alice.connects(address, SOON));
        let after = [&alice, &web].map(|node| node.rule(1)["flows"].as_u64().unwrap());
        assert_eq!(after, before.map(|flows| flows + 1), "one flow, on both ends");
        assert!(alice.rule(1)["packets"].as_u64() > Some(0));
        let listed = alice.run(&["filter", "list"]).ok();
        assert!(listed.contains("\nRULE ") && listed.contains("8000-8100"), "{listed}");

        let added = [
            "filter",
            "add",
            "--in",
            "--peer",
            "alice",
            "--protocol",
            "tcp",
            "--port",
            "8080",
            "--ttl",
            "1h",
        ];
        let added = web.json("denial", &added);
        let id = added["denial"]["id"].as_u64().unwrap().to_string();
        assert_eq!(
            (&added["denial"]["peer"], &added["denial"]["direction"]),
            (&"alice".into(), &"in".into())
        );
        assert!(!alice.connects(address, SILENCE));
        let filter = web.json("filter", &["filter", "list"]);
        assert!(filter["denials"][0]["packets"].as_u64() > Some(0), "{filter:#}");
        assert!(
            filter["drops"].as_object().unwrap().values().any(|count| count.as_u64() > Some(0)),
            "{filter:#}"
        );
        let listed = web.run(&["filter", "list"]).ok();
        assert!(listed.contains("\nDENIAL ") && listed.contains("\nDROPPED "), "{listed}");

        let removed = web.json("denial-removed", &["filter", "remove", &id]);
        assert_eq!(removed["id"].to_string(), id);
        assert!(alice.connects(address, SOON));
        web.run(&["filter", "remove", &id]).failed(2);
    });
}

#[test]
fn a_denial_that_makes_no_sense_is_refused() {
    for (arguments, word) in [
        (&["--in", "--out"][..], "--out"),
        (&["--port", "22"], "only tcp and udp"),
        (&["--protocol", "tcp", "--port", "65536"], "65536"),
        (&["--protocol", "ssh"], "ssh"),
        (&["--ttl", "forever"], "forever"),
        (&[], "nothing says what to deny"),
        (&["--ttl", "1h"], "--all"),
        (&["--all", "--peer", "web"], "--all"),
    ] {
        let message = meshctl(&[&["filter", "add"], arguments].concat()).failed(2);
        assert!(message.contains(word), "{message}");
    }
    for number in ["x", "0", "4294967296"] {
        let message = meshctl(&["filter", "remove", number]).failed(2);
        assert!(message.contains(number) && message.contains("meshctl filter list"), "{message}");
    }
    in_sandbox(|| {
        let (_site, _coordinator, alice, _web) = filtered_mesh();
        let message = alice.run(&["filter", "add", "--peer", "nobody"]).failed(2);
        assert!(message.contains("nobody"), "{message}");
        assert_eq!(alice.json("filter", &["filter", "list"])["denials"], serde_json::json!([]));
    });
}

/// The last line.
fn disposition(text: &str) -> &str {
    text.lines().last().unwrap()
}

#[test]
fn a_trace_ends_with_what_decides_whoever_is_asked() {
    in_sandbox(|| {
        let (site, coordinator, alice, web) = filtered_mesh();
        let allowed = coordinator.run(&["trace", "alice", "web", "tcp/8080"]).ok();
        assert!(disposition(&allowed).starts_with("Final disposition: ALLOWED by rule 1"), "{allowed}");
        assert!(allowed.contains("owner of alice or web denies"), "{allowed}");
        let denied = coordinator.run(&["trace", "web", "alice", "tcp/8080"]);
        assert_eq!((denied.code, denied.stderr.as_str()), (7, ""), "{denied:?}");
        assert!(disposition(&denied.stdout).starts_with("Final disposition: DENIED"), "{denied:?}");
        let json = coordinator.run(&["trace", "alice", "web", "tcp/22", "-o", "json"]);
        assert_eq!((json.code, &json.json("trace")["allowed"]), (7, &false.into()));

        // A node knows of itself what no coordinator does.
        let here = alice.run(&["trace", "alice", "web", "tcp/8080"]).ok();
        assert!(disposition(&here).starts_with("Final disposition: ALLOWED by rule 1"), "{here}");
        assert!(here.contains("owner of web denies") && !here.contains("alice or web"), "{here}");
        alice.run(&["trace", "alice.mesh", "web.mesh.", "tcp/8080"]).ok();
        coordinator.run(&["trace", "alice.mesh", "web.mesh.", "tcp/8080"]).ok();
        web.run(&["filter", "add", "--in", "--protocol", "tcp"]).ok();
        let there = web.run(&["trace", "alice", &web.address().to_string(), "tcp/8080", "-o", "json"]);
        assert_eq!(there.code, 7, "{there:?}");
        let there = there.json("trace");
        assert_eq!(there["unseen"], serde_json::json!(["alice"]));
        assert!(
            there["stages"].as_array().unwrap().iter().all(|stage| stage["told_by"] == "web"),
            "{there:#}"
        );
        coordinator.run(&["trace", "alice", "web", "tcp/8080"]).ok();

        for (machine, arguments, code, word) in [
            (&coordinator, &["alice", "nobody", "icmp"][..], 2, "nobody"),
            (&alice, &["web", "nobody", "icmp"], 2, "neither of both"),
            (&alice, &["alice", "web", "tcp"], 2, "which port"),
            (&alice, &["alice", "web", "icmp/8"], 2, "only tcp and udp"),
        ] {
            let message = machine.run(&[&["trace"], arguments].concat()).failed(code);
            assert!(message.contains(word), "{message}");
        }
        // Whom no rule is about a node does not know, be there such a member or not.
        let unknown = alice.run(&["trace", "alice", "nobody", "icmp"]).failed(2);
        assert!(unknown.contains("no node that this one may talk to has the name"), "{unknown}");
        let stranger = site.machine("stranger");
        let message = stranger.run(&["trace", "alice", "web", "icmp"]).failed(3);
        assert!(message.contains("coordinator's machine"), "{message}");
    });
}

#[test]
fn a_trace_where_coordinator_and_node_are_one_machine_asks_both() {
    in_sandbox(|| {
        let (_site, coordinator, _alice, _web) = filtered_mesh();
        coordinator.join(&coordinator);
        // No rule is about both, so the node does not know the other; the coordinator does.
        run_with(
            coordinator.meshctl(&["policy", "apply", "-"]),
            b"[[allow]]\nfrom = [\"alice\"]\nto = [\"web\"]\n",
        )
        .ok();
        let apart = coordinator.run(&["trace", "coordinator", "web", "tcp/8080"]);
        assert!(apart.code == 7 && apart.stdout.contains("no rule"), "{apart:?}");
        run_with(
            coordinator.meshctl(&["policy", "apply", "-"]),
            b"[[allow]]\nfrom = [\"*\"]\nto = [\"*\"]\n",
        )
        .ok();
        let both = coordinator.json("trace", &["trace", "coordinator", "web", "tcp/8080"]);
        let told: Vec<&str> =
            both["stages"].as_array().unwrap().iter().filter_map(|stage| stage["told_by"].as_str()).collect();
        assert!(told.contains(&"coordinator"), "{both:#}");
        assert_eq!(both["unseen"], serde_json::json!(["web"]));
        coordinator.run(&["filter", "add", "--out", "--peer", "web"]).ok();
        let denied = coordinator.run(&["trace", "coordinator", "web", "tcp/8080"]);
        assert_eq!(denied.code, 7, "{denied:?}");
    });
}
