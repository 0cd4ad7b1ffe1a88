//! What the policy allows passes, with all that belongs to it; nothing else does.

use std::io;

use ringmesh_lab::in_sandbox;

use crate::{
    probes::{Echo, ask_tcp, ask_udp, is_silence, members, serve_tcp, until_tcp, until_udp},
    stock::{RIGHT, Stock},
    support::block_on,
    world::{Member, World},
};

/// A policy of one rule.
pub fn rule(from: &str, to: &str, protocol: &str, ports: &str) -> String {
    let ports = if ports.is_empty() { String::new() } else { format!("ports = [{ports}]\n") };
    format!("[[allow]]\nfrom = {from:?}\nto = {to:?}\nprotocol = {protocol:?}\n{ports}")
}

/// What a node's filter dropped.
pub async fn dropped(member: &mut Member) -> u64 {
    member.node.filter().await.drops.values().sum()
}

#[test]
fn a_rule_bites_on_its_port_in_its_direction_and_the_reply_passes() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let [mut alice, mut bob] = members(&world, ["alice", "bob"]).await;
            serve_tcp(&mut bob.machine, &[22, 23]).await;
            serve_tcp(&mut alice.machine, &[22]).await;
            // Before any policy is applied all members reach each other.
            until_tcp(&mut alice.machine, bob.ipv4, 23).await;
            world.apply(&rule("alice", "bob", "tcp", "22")).await;
            let before = (dropped(&mut alice).await, dropped(&mut bob).await);
            for to in [bob.ipv4, bob.ipv6] {
                ask_tcp(&mut alice.machine, to, 22).await.unwrap();
                assert!(is_silence(ask_tcp(&mut alice.machine, to, 23).await), "{to}");
                assert!(is_silence(ask_udp(&mut alice.machine, to, 22, 8).await), "{to}");
                assert!(!alice.machine.reaches(to));
            }
            assert!(dropped(&mut alice).await >= before.0 + 6, "the sender's node stopped them");
            assert_eq!(dropped(&mut bob).await, before.1, "so that nothing came to the receiver's");
            for to in [alice.ipv4, alice.ipv6] {
                assert!(is_silence(ask_tcp(&mut bob.machine, to, 22).await), "not the other way");
            }
            // And with no rule at all nothing.
            world.apply("# nothing is allowed").await;
            assert!(is_silence(ask_tcp(&mut alice.machine, bob.ipv4, 22).await));
        });
    });
}

#[test]
fn a_sender_that_has_no_filter_is_stopped_by_the_receivers() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let mut alice = world.node("alice", ringmesh_io::Choice::Auto).await;
            let mut stock = Stock::new(&world, &mut alice, RIGHT).await;
            serve_tcp(&mut alice.machine, &[22, 23]).await;
            let echo = Echo::start(&mut alice.machine, &[22]).await;
            until_tcp(&mut stock.machine, alice.ipv4, 23).await;
            world.apply(&rule("stock", "alice", "tcp", "22")).await;
            let before = dropped(&mut alice).await;
            for to in [alice.ipv4, alice.ipv6] {
                ask_tcp(&mut stock.machine, to, 22).await.unwrap();
                assert!(is_silence(ask_tcp(&mut stock.machine, to, 23).await), "{to}");
                assert!(is_silence(ask_udp(&mut stock.machine, to, 22, 8).await), "{to}");
                assert!(!stock.machine.reaches(to));
            }
            assert_eq!(echo.count(stock.ipv4, 22), 0);
            assert!(dropped(&mut alice).await >= before + 6);
            // Nor does the node itself open a flow to it that no rule allows.
            assert!(!alice.machine.reaches(stock.ipv4));
        });
    });
}

#[test]
fn replies_and_fragments_of_an_allowed_udp_flow_pass_and_unasked_datagrams_do_not() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let [mut alice, mut bob] = members(&world, ["alice", "bob"]).await;
            let at_bob = Echo::start(&mut bob.machine, &[4000]).await;
            let at_alice = Echo::start(&mut alice.machine, &[4000]).await;
            world.apply(&rule("alice", "bob", "udp", "4000")).await;
            for (to, from) in [(bob.ipv4, alice.ipv4), (bob.ipv6, alice.ipv6)] {
                until_udp(&mut alice.machine, to, 4000, 100).await;
                // Three fragments each way: the reply's pass by the flow's state alone.
                until_udp(&mut alice.machine, to, 4000, 4000).await;
                assert!(at_bob.count(from, 4000) >= 2);
            }
            for (to, from) in [(alice.ipv4, bob.ipv4), (alice.ipv6, bob.ipv6)] {
                assert!(is_silence(ask_udp(&mut bob.machine, to, 4000, 100).await), "{to}");
                assert!(is_silence(ask_udp(&mut bob.machine, to, 4000, 4000).await), "{to}");
                assert_eq!(at_alice.count(from, 4000), 0);
            }
        });
    });
}

#[test]
fn ping_passes_by_its_rule_and_in_its_direction() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let [alice, bob] = members(&world, ["alice", "bob"]).await;
            world.apply(&rule("alice", "bob", "icmp", "")).await;
            for to in [bob.ipv4, bob.ipv6] {
                alice.machine.ping(to);
            }
            for to in [alice.ipv4, alice.ipv6] {
                assert!(!bob.machine.reaches(to));
            }
            world.apply(&rule("alice", "bob", "tcp", "")).await;
            assert!(!alice.machine.reaches(bob.ipv4));
            // An echo inside the session is no packet of anybody's: it tells whether the peer is reached.
            let mut alice = alice;
            alice.echo("bob").await;
        });
    });
}

#[test]
fn an_error_about_an_allowed_flow_comes_back() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let [mut alice, mut bob] = members(&world, ["alice", "bob"]).await;
            world.apply(&rule("alice", "bob", "udp", "\"4000-4001\"")).await;
            let _echo = Echo::start(&mut bob.machine, &[4000]).await;
            for to in [bob.ipv4, bob.ipv6] {
                until_udp(&mut alice.machine, to, 4000, 8).await;
                // Nobody listens there, and no rule lets ICMP pass by itself.
                let refused = ask_udp(&mut alice.machine, to, 4001, 8).await.unwrap_err();
                assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "{to}: {refused}");
                assert!(!alice.machine.reaches(to));
            }
        });
    });
}

#[test]
fn groups_tags_and_addresses_select_as_written() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let [mut alice, mut bob, mut carol] = members(&world, ["alice", "bob", "carol"]).await;
            serve_tcp(&mut bob.machine, &[22, 80]).await;
            let text = format!(
                "[groups]\nadmins = [\"alice\"]\n[hosts]\nbob4 = \"{}\"\n{}{}",
                bob.ipv4,
                rule("group:admins", "bob", "tcp", "22"),
                rule("carol", "host:bob4", "tcp", "80"),
            );
            world.apply(&text).await;
            until_tcp(&mut alice.machine, bob.ipv6, 22).await;
            until_tcp(&mut carol.machine, bob.ipv4, 80).await;
            assert!(is_silence(ask_tcp(&mut carol.machine, bob.ipv6, 80).await), "only that address");
            assert!(is_silence(ask_tcp(&mut carol.machine, bob.ipv4, 22).await));
            assert!(is_silence(ask_tcp(&mut alice.machine, bob.ipv4, 80).await));
            // Who may not talk to each other at all do not even know each other.
            alice.until_peers(1).await;
        });
    });
}

#[test]
fn the_filter_tells_its_rules_their_hits_and_its_flows() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let [mut alice, mut bob] = members(&world, ["alice", "bob"]).await;
            serve_tcp(&mut bob.machine, &[22]).await;
            let _echo = Echo::start(&mut bob.machine, &[4000]).await;
            let text = rule("bob", "alice", "any", "")
                + &rule("alice", "bob", "tcp", "22, \"8000-8080\"")
                + &rule("*", "bob", "udp", "4000");
            let applied = world.apply(&text).await;
            until_tcp(&mut alice.machine, bob.ipv4, 22).await;
            until_udp(&mut alice.machine, bob.ipv4, 4000, 8).await;
            assert!(is_silence(ask_tcp(&mut alice.machine, bob.ipv4, 23).await));
            for member in [&mut alice, &mut bob] {
                let told = member.node.filter().await;
                assert_eq!(told.policy_serial, applied.serial);
                let words: Vec<_> = told
                    .rules
                    .iter()
                    .map(|it| (it.number, &*it.source, &*it.destination, &*it.protocol, &*it.ports))
                    .collect();
                assert_eq!(
                    words,
                    [
                        (1, "bob", "alice", "any", "*"),
                        (2, "alice", "bob", "tcp", "22,8000-8080"),
                        (3, "*", "bob", "udp", "4000"),
                    ]
                );
                assert_eq!((told.rules[0].packets, told.rules[0].flows), (0, 0));
                // Data and acknowledgements of a connection are many packets, and one flow.
                assert!(told.rules[1].packets >= 4 && told.rules[1].flows >= 1, "{:?}", told.rules[1]);
                assert!(told.rules[1].flows < told.rules[1].packets, "{:?}", told.rules[1]);
                assert!(told.rules[2].packets >= 1 && told.rules[2].flows >= 1, "{:?}", told.rules[2]);
                assert!(told.flows >= 1);
                let [peer] = told.peers.as_slice() else { panic!("{:?}", told.peers) };
                assert!(peer.flows >= 1 && peer.most >= peer.flows, "{peer:?}");
            }
            let told = alice.node.filter().await;
            assert!(told.drops.values().sum::<u64>() >= 1, "{:?}", told.drops);
            let status = alice.node.status().await.data_plane.unwrap().drops;
            for (reason, count) in told.drops {
                assert!(status[&reason] >= count, "status shows {reason} by itself: {status:?}");
            }
        });
    });
}

#[test]
fn a_trace_follows_a_flow_through_both_nodes() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let [mut alice, mut bob, carol] = members(&world, ["alice", "bob", "carol"]).await;
            world.apply(&(rule("alice", "bob", "tcp", "22") + &rule("carol", "bob", "tcp", "80"))).await;
            let stages = |told: &ringmesh_proto::local::TraceResponse| -> Vec<(String, String)> {
                told.stages.iter().map(|it| (it.stage.clone(), it.outcome.clone())).collect()
            };
            let of = |stages: &[(&str, &str)]| -> Vec<(String, String)> {
                stages.iter().map(|(stage, outcome)| (stage.to_string(), outcome.to_string())).collect()
            };

            let out = alice.node.trace("alice", "bob", "tcp/22").await.unwrap();
            let expected = [
                ("source", "ok"),
                ("destination", "ok"),
                ("map", "ok"),
                ("out-filter", "allowed"),
                ("path", "ok"),
                ("in-filter", "unknown"),
            ];
            assert_eq!(stages(&out), of(&expected), "{out:#?}");
            assert!(out.allowed && out.by == "rule 1 (alice -> bob tcp/22)", "{out:#?}");
            let arriving = bob.node.trace("alice", "bob.mesh", "tcp/22").await.unwrap();
            assert_eq!(arriving.stages[3].outcome, "unknown");
            assert_eq!(arriving.stages[5].outcome, "allowed");
            assert!(
                arriving.allowed && arriving.stages[5].detail.contains("alice -> bob tcp/22"),
                "{arriving:#?}"
            );

            let denied = alice.node.trace(&alice.ipv6.to_string(), "bob", "tcp/23").await.unwrap();
            assert!(!denied.allowed && denied.by == "no rule", "{denied:#?}");
            assert!(denied.stages[1].detail.contains(&bob.ipv6.to_string()), "by the family asked about");
            let backwards = alice.node.trace("bob", "alice", "icmp").await.unwrap();
            assert!(!backwards.allowed);

            let request = ringmesh_proto::local::AddDenialRequest {
                peer: "bob".into(),
                protocol: "tcp".into(),
                ..Default::default()
            };
            let denial = alice.node.deny(request).await.unwrap();
            let narrowed = alice.node.trace("alice", "bob", "tcp/22").await.unwrap();
            assert!(!narrowed.allowed && narrowed.by == format!("denial {}", denial.id), "{narrowed:#?}");
            assert!(bob.node.trace("alice", "bob", "tcp/22").await.unwrap().allowed, "bob cannot see that");

            // No rule lets alice and carol talk, so they do not know each other.
            alice.until_peers(1).await;
            for name in ["carol", "nobody"] {
                let unknown = alice.node.trace("alice", name, "tcp/80").await.unwrap_err();
                assert_eq!(unknown.code(), tonic::Code::NotFound);
                assert!(
                    unknown
                        .message()
                        .contains(&format!("no node that this one may talk to has the name or id `{name}`"))
                );
            }
            let unknown = alice.node.trace("alice", &carol.ipv4.to_string(), "tcp/80").await.unwrap();
            assert!(!unknown.allowed && unknown.by == "the map", "{unknown:#?}");
            assert_eq!(unknown.stages.last().unwrap().stage, "map");

            for (source, destination, flow, why) in [
                ("bob", "carol", "tcp/80", "neither"),
                ("alice", "alice", "tcp/80", "both"),
                ("alice", "bob", "tcp/0", "1 to 65535"),
                ("alice", "bob", "any", "a flow has a protocol"),
                ("alice", "bob", "icmp/8", "only tcp and udp"),
                ("alice", "bob", "sctp", "`sctp`"),
            ] {
                let refused = alice.node.trace(source, destination, flow).await.unwrap_err();
                assert!(refused.message().contains(why), "{source} {destination} {flow}: {refused}");
            }
            let mixed = alice.node.trace(&alice.ipv4.to_string(), &bob.ipv6.to_string(), "icmp").await;
            assert!(mixed.unwrap_err().message().contains("one family"));
        });
    });
}

#[test]
fn a_trace_judges_both_families_and_follows_a_name_of_the_policy() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let [mut alice, bob] = members(&world, ["alice", "bob"]).await;
            let names = format!("[names]\ngit = \"bob\"\nsix = \"{}\"\nfar = \"192.0.2.9\"\n", bob.ipv6);
            let four = rule("alice", &format!("{}/32", bob.ipv4), "tcp", "22");
            world.apply(&(names.clone() + &four)).await;
            let half = alice.node.trace("alice", "bob", "tcp/22").await.unwrap();
            assert!(!half.allowed && half.by == "no rule over IPv6", "{half:#?}");
            let filters: Vec<_> = half.stages.iter().filter(|it| it.stage == "out-filter").collect();
            assert_eq!(filters.iter().map(|it| &*it.outcome).collect::<Vec<_>>(), ["allowed", "denied"]);
            assert!(filters[1].detail.ends_with(&format!("{}): no rule allows it", bob.ipv6)), "{half:#?}");
            assert!(alice.node.trace("alice", &bob.ipv4.to_string(), "tcp/22").await.unwrap().allowed);
            assert!(!alice.node.trace("alice", "six", "tcp/22").await.unwrap().allowed);

            world.apply(&(names + &four + &rule("alice", "bob", "tcp", "22"))).await;
            for name in ["bob", "git", "git.mesh", "GIT", "six"] {
                let told = alice.node.trace("alice", name, "tcp/22").await.unwrap();
                assert!(told.allowed && told.stages[1].detail.starts_with("bob, "), "{name}: {told:#?}");
                assert!(!alice.node.trace("alice", name, "tcp/23").await.unwrap().allowed, "{name}");
            }
            let far = alice.node.trace("alice", "far", "tcp/22").await.unwrap();
            assert!(!far.allowed && far.by == "the map", "nobody's address: {far:#?}");
        });
    });
}
