//! Every alert in a real Prometheus: silent while all is well, and there when its cause is made.
//!
//! The rules are those that are shipped, with durations made short by textual substitution (`rules`), each of which must fit. What
//! the thresholds and durations are as shipped, `deploy/prometheus/tests.yml` holds.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use ringmesh_deploy_tests::executable::meshctl;
use ringmesh_lab::{Blocks, in_sandbox};
use ringmesh_tunnel::enroll::{JoinToken, TokenSecret};

use crate::{
    files, scraped,
    world::{Machine, Meanwhile, STATE, World, replaced, within},
};

/// Time in which nothing may fire before causes are made: longer than the windows of the substituted rules.
const SILENCE: Duration = Duration::from_millis(4500);

/// The rules as shipped, but for their times.
fn rules() -> String {
    let mut rules = files::read(&files::prometheus().join("ringmesh.rules.yml"));
    // Seconds that are compared with.
    for (from, to) in [
        ("ringmesh_coordinator_behind_seconds > 60", "ringmesh_coordinator_behind_seconds > 2"),
        ("ringmesh_node_map_age_seconds > 3600", "ringmesh_node_map_age_seconds > 8"),
        // Three starts of a debug build take their time.
        ("job=~\"ringmesh-.*\"}[15m]) > 2", "job=~\"ringmesh-.*\"}[60s]) > 2"),
    ] {
        rules = replaced(&rules, from, to);
    }
    let (mut windows, mut times) = (0, 0);
    let lines = rules.lines().map(|line| {
        let mut line = line.to_owned();
        for window in ["[10m]", "[15m]"] {
            windows += line.matches(window).count();
            line = line.replace(window, "[4s]");
        }
        if let Some(at) = line.find(" for: ") {
            times += 1;
            line.replace_range(at.., " for: 1s");
        }
        line + "\n"
    });
    let rules: String = lines.collect();
    assert!(windows > 10 && times > 15, "{windows} windows, {times} times");
    assert!(!rules.contains("m]"), "a window was left long");
    rules
}

/// What has fired, and since when it may have.
struct Fired {
    names: BTreeSet<String>,
    /// Before this everything was silent.
    silent: Instant,
}

/// Waits until an alert fires, or has fired since its cause was made a moment ago.
#[track_caller]
fn fires(world: &World, fired: &mut Fired, name: &str, matching: &str) {
    assert!(files::alerts().iter().any(|alert| alert.name == name), "{name}");
    let of = format!("ALERTS{{alertname=\"{name}\", alertstate=\"firing\"{matching}}}");
    let took = within(&format!("{name} fires"), || {
        let window = fired.silent.elapsed().as_millis().clamp(1, 12_000);
        world.holds(&format!("count_over_time({of}[{window}ms])"))
    });
    fired.names.insert(name.to_owned());
    println!("{name} fires after {took:?}");
}

/// Waits until nothing has fired, nor is about to, for [`SILENCE`].
fn falls_silent(world: &World) {
    let mut since = Instant::now();
    let mut last = String::new();
    within("nothing fires", || {
        let alerts = world.query("ALERTS");
        if !alerts.is_empty() {
            since = Instant::now();
            let now =
                format!("{:?}", alerts.iter().map(|alert| alert["metric"].to_string()).collect::<Vec<_>>());
            if now != last {
                println!("not silent: {now}");
                last = now;
            }
        }
        since.elapsed() > SILENCE
    });
}

/// A token of the same network whose secret is another: whoever joins by it guesses.
fn forged(head: &Machine) -> String {
    let token: JoinToken = head.run("token create").trim().parse().unwrap();
    let forged =
        JoinToken::new(token.root(), token.token(), TokenSecret::generate(), token.coordinators().to_vec());
    forged.unwrap().reveal().to_string()
}

#[test]
fn every_alert_fires_when_its_cause_is_made_and_not_before() {
    in_sandbox(|| {
        let began = Instant::now();
        let mut world = World::new(&rules());
        println!("started after {:?}", began.elapsed());
        within("all is scraped", || world.query("up == 1").len() == 5);
        let targets = world.targets();
        assert_eq!(targets["data"]["activeTargets"].as_array().unwrap().len(), 5, "{targets:#}");
        for machine in [&world.head, &world.relay].into_iter().chain(&world.nodes) {
            let (status, page) = machine.ask("/metrics").unwrap();
            assert_eq!(status, 200);
            let path = world.folder().join("page");
            std::fs::write(&path, page).unwrap();
            let check = format!("promtool check metrics < {}", path.display());
            machine.sh(&check);
        }
        let [bob, carol] = [1, 2].map(|number| world.nodes[number].mesh_address());
        // Sessions are there, and straight, before anything is measured. Alice and Carol do not know each other yet.
        let _steady = (
            world.nodes[0].meanwhile(&format!("ping -q -i 0.1 {bob}")),
            world.nodes[2].meanwhile(&format!("ping -q -i 0.1 {bob}")),
        );
        falls_silent(&world);
        let fired = &mut Fired { names: BTreeSet::new(), silent: Instant::now() };
        println!("silent after {:?}", began.elapsed());

        let still_asking = roads(&world, fired, bob);
        println!("roads after {:?}", began.elapsed());
        // Meanwhile, for that takes a while to be noticed.
        storing(&world, fired);
        println!("storing after {:?}", began.elapsed());
        fires(&world, fired, "RingmeshPathLoss", "");
        world.nodes[2].sh("PATH=$PATH:/usr/sbin nft delete table inet loss");
        drop(still_asking);
        println!("loss after {:?}", began.elapsed());
        standing_still(&world, fired, carol);
        println!("standing still after {:?}", began.elapsed());
        starting_again(&mut world, fired);
        println!("starting again after {:?}", began.elapsed());
        going_away(&mut world, fired);
        println!("all after {:?}", began.elapsed());

        let all: BTreeSet<String> = files::alerts().into_iter().map(|alert| alert.name).collect();
        assert_eq!(fired.names, all);
        scraped::expect_all_there_and_moved(&world);
    });
}

/// What can be wrong between nodes, and with what is asked of them; all at once, for they do not disturb each other.
fn roads(world: &World, fired: &mut Fired, bob: Ipv4Addr) -> Meanwhile {
    let (head, relay) = (&world.head.host, &world.relay.host);
    let [alice, _, carol] = &world.nodes[..] else { panic!("three nodes") };
    // Alice reaches nobody straight any more, and sends more by a relay than one node may: 2.4 Mbit/s.
    alice
        .host
        .block(
            &Blocks::udp()
                .but_for(head.ipv4())
                .but_for(head.ipv6())
                .but_for(relay.ipv4())
                .but_for(relay.ipv6()),
        )
        .unwrap();
    let much = alice.meanwhile(&format!("ping -q -i 0.004 -s 1200 {bob}"));
    // Of what Carol sends a part is lost: less than would make the nodes take a stream instead.
    carol.sh("PATH=$PATH:/usr/sbin nft 'table inet loss { chain out { type filter hook output priority 0; \
         meta l4proto udp numgen random mod 100 < 15 drop; }; }'");
    // Carol sends where nobody is, and asks for names that nobody answers.
    let nowhere = carol.meanwhile("ping -q -i 0.02 100.127.255.254");
    let names = carol
        .meanwhile(&format!("sh -c 'while :; do {} dns query nobody.example; done'", meshctl().display()));
    let wrong = forged(&world.head);
    let guesses = [(); 4].map(|()| {
        let stranger = world.head.meshctl(&format!("join --foreground --token {wrong} --state-dir /run/stranger --socket /run/stranger.sock --metrics false")).output();
        stranger.unwrap()
    });
    assert!(guesses.iter().all(|guess| !guess.status.success()));
    fires(world, fired, "RingmeshGuessing", "");
    fires(world, fired, "RingmeshDropsHigh", ", reason=\"no_allowed_ip\"");
    fires(world, fired, "RingmeshRelayShareHigh", "");
    fires(world, fired, "RingmeshRelayDropping", ", reason=\"client_rate\"");
    fires(world, fired, "RingmeshDnsServfail", "");
    drop((much, nowhere));
    names
}

/// A node that is there and does nothing.
fn standing_still(world: &World, fired: &mut Fired, carol: Ipv4Addr) {
    world.nodes[0].host.block(&Blocks::nothing()).unwrap();
    world.nodes[2].stop();
    let _calls = world.nodes[0].meanwhile(&format!("ping -q -i 0.2 {carol}"));
    // Something that Carol has to hear of.
    let policy = world.folder().join("policy.toml");
    std::fs::write(&policy, "[[allow]]\nfrom = \"*\"\nto = \"*\"\n").unwrap();
    world.head.run(&format!("policy apply --wait 0 {}", policy.display()));
    fires(world, fired, "RingmeshNodesBehind", "");
    fires(world, fired, "RingmeshNodeDown", "");
    // Meanwhile, for handshakes are tried every five seconds only.
    lapsing(world, fired);
    fires(world, fired, "RingmeshHandshakesFailing", "");
    world.nodes[2].go_on();
}

/// A node that ends and starts again, in the end without io_uring.
fn starting_again(world: &mut World, fired: &mut Fired) {
    world.nodes[2].kill();
    fires(world, fired, "RingmeshNodeAbsent", "");
    let began = format!("process_start_time_seconds{{instance=\"{}\"}}", world.nodes[2].metrics);
    let mut last = world.query(&format!("last_over_time({began}[1m])"))[0]["value"][1].clone();
    for flags in ["", "", "--io poll"] {
        world.start_node(2, flags);
        within("it is scraped again", || {
            let now = world.query(&began).first().map(|series| series["value"][1].clone());
            now.filter(|now| *now != last).map(|now| last = now).is_some()
        });
        if flags.is_empty() {
            world.nodes[2].kill();
        }
    }
    fires(world, fired, "RingmeshRestarting", "");
    fires(world, fired, "RingmeshPortableBackEnd", "");
    // Nobody needs her any more: an epoch begins, and relays have a member less.
    world.head.run("nodes remove carol --wait 10");
    within("the epoch is scraped", || world.holds("ringmesh_coordinator_epoch == 2"));
}

/// What is in force for a time only, on a day when less than a week of it is left.
fn lapsing(world: &World, fired: &mut Fired) {
    world.nodes[1].turn(25);
    fires(world, fired, "RingmeshExpiryNear", "");
    world.nodes[1].turn(0);
    world.head.turn(25);
    fires(world, fired, "RingmeshCoordinatorExpiryNear", "");
    world.head.turn(0);
}

/// Another program holds the database; then the disk is full.
fn storing(world: &World, fired: &mut Fired) {
    let held = world.head.host.enter(|| {
        let database = rusqlite::Connection::open(format!("{STATE}/coordinator.db")).unwrap();
        for _ in 0..4 {
            database.execute_batch("BEGIN IMMEDIATE").unwrap();
            let waits = world.head.meshctl("token create").spawn().unwrap();
            thread::sleep(Duration::from_millis(900));
            database.execute_batch("ROLLBACK").unwrap();
            assert!(waits.wait_with_output().unwrap().status.success());
        }
    });
    held.unwrap();
    fires(world, fired, "RingmeshStoreSlow", "");
    world.head.sh(&format!("dd if=/dev/zero of={STATE}/filler bs=1M 2>/dev/null || true"));
    let refused = world.head.meshctl("token create").output().unwrap();
    assert!(!refused.status.success(), "{refused:?}");
    fires(world, fired, "RingmeshStoreFailing", ", reason=\"full\"");
    fires(world, fired, "RingmeshStoreSpaceLow", "");
    fires(world, fired, "RingmeshNotReady", ", check=\"store\"");
    let (status, why) = world.head.ask("/readyz").unwrap();
    assert!(status == 503 && why.contains("free some space"), "{status} {why}");
    world.head.sh(&format!("rm {STATE}/filler"));
    world.head.run("token create");
    within("it is ready again", || matches!(world.head.ask("/readyz"), Ok((200, _))));
}

/// Who is gone.
fn going_away(world: &mut World, fired: &mut Fired) {
    world.relay.kill();
    world.head.kill();
    fires(world, fired, "RingmeshRelayDown", "");
    fires(world, fired, "RingmeshCoordinatorDown", "");
    fires(world, fired, "RingmeshMapStale", "");
}
