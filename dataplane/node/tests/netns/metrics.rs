//! What Prometheus reads of real nodes and a real relay: each number moves with its cause, and the manual lists them all.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use ringmesh_io::Choice;
use ringmesh_lab::{Blocks, Router, in_sandbox};
use ringmesh_node::config::RelayMode;
use ringmesh_proto::{admin::CreateTokenRequest, local::AddDenialRequest};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

use crate::{
    roads::{Behind, first_answer, until_path},
    support::{block_on, daemon::Place},
    world::{Machine, Member, World, transfer},
};

/// Within this a number that was moved is seen to have moved.
const SOON: Duration = Duration::from_secs(15);
/// Within this a way that is left is noticed and another one taken.
const SECOND_ROAD: Duration = Duration::from_secs(15);
const NODE: &str = "127.0.0.1:9464";
const RELAY: &str = "127.0.0.1:9466";

/// Asks for `path` at `address` on a machine; the answer's status and body.
async fn get(machine: &mut Machine, address: &'static str, path: &'static str) -> (u16, String) {
    let answer = machine
        .run(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream
                .write_all(format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n").as_bytes())
                .await
                .unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        })
        .await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// What was told at one moment.
struct Page {
    /// By name and labels as they are written.
    values: BTreeMap<String, f64>,
    /// Of each metric: its type and its labels' names.
    kinds: BTreeMap<String, (String, BTreeSet<String>)>,
}

impl Page {
    async fn of(machine: &mut Machine, address: &'static str) -> Self {
        let (status, text) = get(machine, address, "/metrics").await;
        assert_eq!(status, 200, "{text}");
        Self::parse(&text)
    }

    fn parse(text: &str) -> Self {
        let (mut values, mut kinds) = (BTreeMap::new(), BTreeMap::new());
        let mut current = String::new();
        for line in text.lines() {
            if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').unwrap();
                name.clone_into(&mut current);
                kinds.insert(current.clone(), (kind.to_owned(), BTreeSet::new()));
            } else if !line.starts_with('#') {
                let (series, value) = line.rsplit_once(' ').unwrap();
                assert!(
                    values.insert(series.to_owned(), value.parse().unwrap()).is_none(),
                    "twice: {series}"
                );
                let labels = series.split_once('{').map_or("", |(_, labels)| labels.trim_end_matches('}'));
                let names = labels.split("\",").filter_map(|label| Some(label.split_once('=')?.0.to_owned()));
                kinds.get_mut(&current).unwrap().1.extend(names.filter(|name| name != "le"));
            }
        }
        Self { values, kinds }
    }

    #[track_caller]
    fn get(&self, series: &str) -> f64 {
        let series = format!("ringmesh_{series}");
        *self.values.get(&series).unwrap_or_else(|| panic!("no {series}: {:#?}", self.values))
    }

    /// The sum of the series of one name.
    fn sum(&self, name: &str) -> f64 {
        let of_name = |series: &str| series.strip_prefix("ringmesh_").is_some_and(|it| it.starts_with(name));
        self.values.iter().filter(|(series, _)| of_name(series)).map(|(_, value)| value).sum()
    }

    fn names(&self, what: &str) -> bool {
        self.values.keys().any(|series| series.contains(what))
    }
}

/// Scrapes until something holds.
async fn until(
    machine: &mut Machine,
    at: &'static str,
    what: &str,
    mut holds: impl FnMut(&Page) -> bool,
) -> Page {
    let began = Instant::now();
    loop {
        let page = Page::of(machine, at).await;
        if holds(&page) {
            return page;
        }
        assert!(began.elapsed() < SOON, "never: {what}; last: {:#?}", page.values);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Has Prometheus' own tool judge what is told.
async fn assert_promtool_accepts(machine: &mut Machine, address: &'static str) {
    let (_, text) = get(machine, address, "/metrics").await;
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = promtool.spawn().unwrap();
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let judged = promtool.wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&judged.stderr);
    assert!(judged.status.success() && words.is_empty(), "{words}\n{text}");
}

/// What the manual says of each metric of these sections: its type and its labels.
fn documented(sections: &[&str]) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let manual = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
    let manual = std::fs::read_to_string(manual).unwrap();
    let mut found = BTreeMap::new();
    for section in sections {
        let (_, text) =
            manual.split_once(&format!("\n## {section}\n")).unwrap_or_else(|| panic!("no {section}"));
        for row in text.split("\n## ").next().unwrap().lines().filter(|row| row.starts_with("| `")) {
            let cells: Vec<&str> = row.split(" | ").collect();
            let name = cells[0].trim_start_matches("| ").trim_matches('`').to_owned();
            // A label stands in front of its values.
            let labels = cells[2].trim_start_matches("| ").split(';').flat_map(|part| {
                let of_values = part.split_once(": ").map_or(part, |(label, _)| label);
                of_values.split(", ").map(str::trim).filter(|word| word.starts_with('`'))
            });
            let labels = labels.map(|label| label.trim_matches('`').to_owned()).collect();
            found.insert(name, (cells[1].to_owned(), labels));
        }
    }
    found
}

/// The manual's words for types are those of OpenMetrics, which has a type for what only informs.
fn assert_documented(page: &Page, sections: &[&str], not_here: &[&str]) {
    let mut listed = documented(sections);
    for name in not_here {
        assert!(listed.remove(*name).is_some(), "{name}");
    }
    for (kind, _) in listed.values_mut().filter(|(kind, _)| kind == "info") {
        "gauge".clone_into(kind);
    }
    assert_eq!(page.kinds, listed);
}

async fn member(world: &World, name: &str) -> Member {
    let mut place = Place::new();
    place.config.metrics.per_peer = true;
    world.member(Machine::new(&world.switch, name), place, name).await
}

#[test]
fn each_number_of_a_node_moves_with_its_cause_and_the_manual_lists_them_all() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let mut alice = member(&world, "alice").await;
            let mut bob = member(&world, "bob").await;
            let mut carol = member(&world, "carol").await;
            for member in [&mut alice, &mut bob, &mut carol] {
                member.until_peers(2).await;
            }
            assert_eq!(alice.node.status().await.metrics, NODE);
            alice.echo("bob").await;
            alice.echo("carol").await;

            // Packets by each family, straight: the other one leads nowhere.
            let (v4, v6) = (bob.machine.host.ipv4(), bob.machine.host.ipv6());
            for (kind, block, open) in [
                (
                    "udp4",
                    format!("ip -6 route add blackhole {v6}/128"),
                    format!("ip -6 route del blackhole {v6}/128"),
                ),
                (
                    "udp6",
                    format!("ip route add blackhole {v4}/32"),
                    format!("ip route del blackhole {v4}/32"),
                ),
            ] {
                alice.machine.sh(&block);
                let path = format!("peers{{path=\"{kind}\",state=\"active\"}}");
                until(&mut alice.machine, NODE, &path, |page| {
                    page.values.contains_key(&format!("ringmesh_peer_path{{peer=\"bob\",path=\"{kind}\"}}"))
                })
                .await;
                let series = |name: &str| format!("{name}{{path=\"{kind}\"}}");
                let (near, far) =
                    (Page::of(&mut alice.machine, NODE).await, Page::of(&mut bob.machine, NODE).await);
                alice.machine.ping(bob.ipv4);
                let (sent, received) =
                    (Page::of(&mut alice.machine, NODE).await, Page::of(&mut bob.machine, NODE).await);
                // Echo requests of 84 bytes.
                let more = |name: &str, before: &Page, after: &Page| {
                    after.get(&series(name)) - before.get(&series(name))
                };
                assert!(more("tx_packets_total", &near, &sent) >= 3.0, "{kind}");
                assert!(more("tx_bytes_total", &near, &sent) >= 3.0 * 84.0, "{kind}");
                assert!(more("rx_packets_total", &far, &received) >= 3.0, "{kind}");
                assert!(more("rx_bytes_total", &far, &received) >= 3.0 * 84.0, "{kind}");
                let allowed = "filter_packets_total{direction=\"out\",verdict=\"allowed\"}";
                assert!(sent.get(allowed) - near.get(allowed) >= 3.0);
                alice.machine.sh(&open);
            }
            let page = until(&mut alice.machine, NODE, "all that needs probes", |page| {
                page.names("path_rtt_seconds")
                    && page.names("path_loss_ratio")
                    && page.names("peer_rtt_seconds")
            })
            .await;
            let completed = |role: &str| format!("handshakes_total{{role=\"{role}\",result=\"completed\"}}");
            assert!(page.get(&completed("initiator")) + page.get(&completed("responder")) >= 2.0);
            assert_eq!(page.get("handshake_duration_seconds_count"), page.get(&completed("initiator")));
            assert!(page.get("path_rtt_seconds{quantile=\"1\"}") > 0.0);
            assert!(page.get("path_mtu_bytes") >= 1280.0);
            let revision = alice.node.status().await.network.unwrap().revision;
            assert_eq!(page.get("node_installed_revision"), revision as f64);
            assert!(page.get("node_map_age_seconds") < 30.0);
            assert!(page.get("key_expiry_seconds{of=\"membership\"}") > 86400.0);
            assert!(page.get("key_expiry_seconds{of=\"policy\"}") > 86400.0);

            // A transfer goes as super-packets through the device, and as trains over the network.
            let before = Page::of(&mut alice.machine, NODE).await;
            let before_there = Page::of(&mut bob.machine, NODE).await;
            transfer(&mut alice.machine, &mut bob.machine, bob.ipv4, 5_000_000).await;
            let after = Page::of(&mut alice.machine, NODE).await;
            let after_there = Page::of(&mut bob.machine, NODE).await;
            for name in ["io_super_packets_total", "io_trains_total"] {
                let (out, into) =
                    (format!("{name}{{direction=\"out\"}}"), format!("{name}{{direction=\"in\"}}"));
                assert!(after.get(&out) > before.get(&out) + 10.0, "{name}: {}", after.get(&out));
                assert!(after_there.get(&into) > before_there.get(&into) + 10.0, "{name}");
            }
            let best = ringmesh_aead::choose(ringmesh_aead::Choice::Auto).kernel;
            assert_eq!(after.get(&format!("data_plane_info{{crypto=\"{best}\",offloads=\"all\"}}")), 1.0);

            // A packet that the owner of the other side denies.
            let denial =
                AddDenialRequest { direction: "in".into(), peer: "alice".into(), ..Default::default() };
            bob.node.deny(denial).await.unwrap();
            let before = Page::of(&mut bob.machine, NODE).await;
            assert!(!alice.machine.reaches(bob.ipv4));
            let after = Page::of(&mut bob.machine, NODE).await;
            for series in [
                "drops_total{direction=\"in\",reason=\"denied_locally\"}",
                "filter_packets_total{direction=\"in\",verdict=\"denied\"}",
                "filter_denial_packets_total{denial=\"1\"}",
            ] {
                assert!(after.get(series) > before.get(series), "{series}");
            }
            // And one that has nowhere to go.
            let before = Page::of(&mut alice.machine, NODE).await;
            let _ = alice.machine.reaches("100.64.200.200".parse::<std::net::IpAddr>().unwrap());
            let nowhere = "drops_total{direction=\"out\",reason=\"no_allowed_ip\"}";
            assert!(Page::of(&mut alice.machine, NODE).await.get(nowhere) > before.get(nowhere));

            // A name that is asked for.
            let asked = "dns_queries_total{zone=\"own\",rcode=\"NOERROR\"}";
            let before = Page::of(&mut alice.machine, NODE).await.get(asked);
            alice.machine.sh(&format!("dig +short +tries=1 +time=5 @{} bob.mesh A", alice.ipv4));
            assert_eq!(Page::of(&mut alice.machine, NODE).await.get(asked), before + 1.0);

            let page = Page::of(&mut bob.machine, NODE).await;
            let uring = ["ringmesh_uring_sqe_total", "ringmesh_uring_cqe_overflow_total"];
            let not_here: &[&str] = if page.names("backend=\"uring\"") { &[] } else { &uring };
            let sections = ["Every daemon", "Node and relay", "Node", "Node, if `per_peer` is set"];
            assert_documented(&page, &sections, not_here);
            assert_promtool_accepts(&mut bob.machine, NODE).await;

            // A peer that is removed is named no more.
            assert!(Page::of(&mut alice.machine, NODE).await.names("peer=\"carol\""));
            world.remove("carol").await;
            let page = until(&mut alice.machine, NODE, "carol is gone", |page| !page.names("carol")).await;
            assert_eq!(page.sum("peers{"), 1.0);

            // Each answer on health, with its reason.
            assert_eq!(get(&mut alice.machine, NODE, "/livez").await.0, 200);
            let (status, body) = get(&mut alice.machine, NODE, "/readyz").await;
            assert_eq!(status, 200, "{body}");
            alice.machine.sh("ip link set mesh0 down");
            let (status, body) = get(&mut alice.machine, NODE, "/readyz").await;
            assert_eq!(status, 503, "{body}");
            assert!(body.contains("mesh0 is down"), "{body}");
            assert_eq!(Page::of(&mut alice.machine, NODE).await.get("ready{check=\"interface\"}"), 0.0);
            assert_eq!(get(&mut alice.machine, NODE, "/livez").await.0, 200, "a restart would not help");
            let (status, body) = get(&mut carol.machine, NODE, "/readyz").await;
            assert_eq!(status, 503, "{body}");
            assert!(body.contains("removed from its network"), "{body}");
        });
    });
}

#[test]
fn a_relay_tells_what_it_passes_on_and_nodes_by_which_way_they_reach_it() {
    in_sandbox(|| {
        block_on(async {
            let world = World::with(|config, _| config.relay.enabled = false).await;
            let mut machine = Machine::new(&world.switch, "relay");
            let mut place = Place::new();
            place.config.relay = Some(RelayMode {
                websocket_listen: Some("[::]:8443".parse().unwrap()),
                ..RelayMode::default()
            });
            let token = world.token_with(CreateTokenRequest { relay: true, ..Default::default() }).await;
            let (mut relay, _place) = machine
                .run(async move {
                    let mut node = place.start().await.unwrap();
                    node.join(&token, "carrier").await.unwrap();
                    (node, place)
                })
                .await;
            assert_eq!(relay.status().await.metrics, RELAY);
            let left = Behind::new(&world.lab, &world.switch, "alice", Router::symmetric);
            let right = Behind::new(&world.lab, &world.switch, "bob", Router::symmetric);
            let mut alice = world.member(left.machine, Place::new(), "alice").await;
            let bob = world.member(right.machine, Place::new(), "bob").await;

            let passed = |page: &Page| page.get("relay_bytes_total{direction=\"out\"}");
            for (kind, path) in [("relay_udp", "relay"), ("relay_ws", "websocket")] {
                if kind == "relay_ws" {
                    left.router.host().block(&Blocks::udp()).unwrap();
                }
                first_answer(&alice.machine, bob.ipv4, SECOND_ROAD);
                until_path(&mut alice, "bob", path, SECOND_ROAD).await;
                let (node, relay) =
                    (Page::of(&mut alice.machine, NODE).await, Page::of(&mut machine, RELAY).await);
                alice.machine.ping(bob.ipv4);
                let sent = format!("tx_packets_total{{path=\"{kind}\"}}");
                assert!(
                    Page::of(&mut alice.machine, NODE).await.get(&sent) >= node.get(&sent) + 3.0,
                    "{kind}"
                );
                let after = Page::of(&mut machine, RELAY).await;
                assert!(passed(&after) > passed(&relay) + 6.0 * 84.0, "{kind}");
                assert!(after.get("relay_bytes_total{direction=\"in\"}") >= passed(&after));
                assert_eq!(after.get("relay_clients"), 2.0);
                // Each way has packets of its own length: 1500 bytes without what is around them, or what a stream takes.
                let longest = Page::of(&mut alice.machine, NODE).await.get("path_mtu_bytes");
                let lengths: &[f64] = if kind == "relay_ws" { &[9000.0] } else { &[1432.0, 1412.0] };
                assert!(lengths.contains(&longest), "{kind}: {longest}");
            }
            let page = Page::of(&mut machine, RELAY).await;
            assert_documented(&page, &["Every daemon", "Node and relay", "Relay"], &[]);
            assert_promtool_accepts(&mut machine, RELAY).await;
            assert_eq!(get(&mut machine, RELAY, "/readyz").await.0, 200);
            let told = Page::of(&mut alice.machine, NODE).await;
            assert!(!told.names("peer=\"bob\""), "nobody asked for series of each peer");
        });
    });
}

#[test]
fn the_usual_address_may_be_another_programs_and_one_that_was_asked_for_may_not() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let mut machine = Machine::new(&world.switch, "alice");
            machine
                .run(async move {
                    let taken = std::net::TcpListener::bind(NODE).unwrap();
                    let usual = Place::new();
                    let mut node = usual.start().await.unwrap();
                    assert_eq!(node.status().await.metrics, "");
                    node.stop().await.unwrap();
                    let mut asked = Place::new();
                    asked.config.io = Choice::Poll;
                    asked.config.metrics.listen = NODE.parse().unwrap();
                    let failure = asked.start().await.err().unwrap();
                    assert!(failure.to_string().contains(NODE), "{failure}");
                    drop(taken);
                    assert_eq!(asked.start().await.unwrap().status().await.metrics, NODE);
                })
                .await;
        });
    });
}
