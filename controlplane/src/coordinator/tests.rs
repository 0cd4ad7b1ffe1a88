//! What only happens when two things meet at one moment, put into that order by hand.

use std::sync::Arc;

use ringmesh_tunnel::{
    UnixTime,
    key::{IdentitySecret, NodeId},
    netmap::Envelope,
};

use super::{Coordinator, Options};
use crate::{
    auth::NodeOf,
    clock::Clock,
    config::NetworkConfig,
    network::{
        Plan, Registry, Signed,
        enroll::{self, Enrollment, Joiner},
        events::Origin,
        relay::Places,
        tokens::{self, Wish},
    },
    store::sqlite::SqliteStore,
    vault::Vault,
};

mod policy;

const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

fn options(relay: bool) -> Options {
    Options {
        clock: Clock::new(|| NOW),
        heartbeat: std::time::Duration::from_secs(20),
        endpoints: vec!["192.0.2.1:443".into()],
        tls_key: [0; 32],
        relay,
    }
}

pub(crate) async fn coordinator(directory: &std::path::Path, relay: bool) -> Coordinator {
    let store = Arc::new(SqliteStore::open(directory).unwrap());
    let vault = Vault::open(directory, true).unwrap();
    let coordinator = Coordinator::open(store, vault, options(relay)).await.unwrap();
    coordinator.ensure_network(&NetworkConfig::default()).await.unwrap();
    coordinator
}

async fn member(coordinator: &Coordinator, identity: &IdentitySecret) -> NodeOf {
    member_who_is(coordinator, identity, false).await
}

async fn member_who_is(coordinator: &Coordinator, identity: &IdentitySecret, relay: bool) -> NodeOf {
    let network = coordinator.with_registry(|registry| registry.networks().next().unwrap().id());
    let (token, secret) =
        (ringmesh_tunnel::key::TokenId::generate(), ringmesh_tunnel::enroll::TokenSecret::generate());
    let wish =
        Wish { life: std::time::Duration::ZERO, max_uses: 1, tags: Vec::new(), ephemeral: false, relay };
    let create = |registry: &Registry, now| {
        tokens::plan_create(registry.network(network).unwrap(), token, &secret, &wish, now)
            .map(|(_, change)| ((), change))
    };
    coordinator.transact(&Origin::coordinator(), create).await.unwrap();
    let joiner = Joiner {
        token,
        identity_key: identity.public_key(),
        name: String::new(),
        host_name: "a".into(),
        os: String::new(),
        version: String::new(),
        relay,
    };
    let node = NodeId::generate();
    let join = |registry: &Registry, now| {
        enroll::plan(registry.network(network).unwrap(), &joiner, node, now).map(
            |enrollment| match enrollment {
                Enrollment::New(_, change) => ((), change),
                Enrollment::Already(_) => ((), Plan::default().unremarkable()),
            },
        )
    };
    coordinator.transact(&Origin::coordinator(), join).await.unwrap();
    NodeOf { network, node }
}

#[tokio::test]
async fn a_node_record_staged_on_an_older_stream_never_lands_after_a_newer_one() {
    let directory = tempfile::tempdir().unwrap();
    let coordinator = coordinator(directory.path(), false).await;
    let identity = IdentitySecret::generate();
    let who = member(&coordinator, &identity).await;
    let record = |port: u16, serial: u64| -> Signed<_> {
        let record = super::NodeRecord {
            network: who.network,
            id: who.node,
            serial: NOW.as_millis() + serial,
            endpoints: vec![([192, 0, 2, 1], port).into()],
            time: NOW,
            websockets: Vec::new(),
            ssh: Vec::new(),
        };
        coordinator.check_node_record(&who, Envelope::sign(&record, &identity).unwrap()).unwrap()
    };
    let port = || {
        let held = |state: &crate::network::NetworkState| {
            state.node_records.get(&who.node).map(|held| held.record.endpoints[0].port())
        };
        coordinator.with_network(who.network, held).unwrap()
    };
    // All are checked before any is put, as on streams that run at the same time.
    let (older, newer, newest) = (record(1, 1), record(2, 2), record(3, 3));
    let begin = |session| coordinator.presence().begin(who, &[session; 32], String::new(), NOW);
    let (first, second) = (begin(1), begin(2));
    coordinator.put_node_record(&who, second, newer);
    assert_eq!(port(), Some(2));
    // On the stream that is current, but older: the serial decides.
    coordinator.put_node_record(&who, second, older);
    assert_eq!(port(), Some(2));
    // Newer, but of a stream that another took over from: whoever signs there may hold a stolen key, or be asleep.
    coordinator.put_node_record(&who, first, newest.clone());
    assert_eq!(port(), Some(2));
    coordinator.put_node_record(&who, second, newest);
    assert_eq!(port(), Some(3));
}

#[tokio::test]
async fn a_node_sends_its_peers_only_where_they_may_be_sent() {
    let directory = tempfile::tempdir().unwrap();
    let coordinator = coordinator(directory.path(), false).await;
    let (node_key, relay_key) = (IdentitySecret::generate(), IdentitySecret::generate());
    let node = member_who_is(&coordinator, &node_key, false).await;
    let relay = member_who_is(&coordinator, &relay_key, true).await;
    let check = |who: &NodeOf, endpoint: &str, ssh: &str, websockets: &[&str]| {
        let record = super::NodeRecord {
            network: who.network,
            id: who.node,
            serial: NOW.as_millis(),
            endpoints: vec![endpoint.parse().unwrap()],
            time: NOW,
            websockets: websockets.iter().map(|&url| url.to_owned()).collect(),
            ssh: vec!["192.0.2.1:22".parse().unwrap(), ssh.parse().unwrap()],
        };
        let key = if *who == relay { &relay_key } else { &node_key };
        let checked = coordinator.check_node_record(who, Envelope::sign(&record, key).unwrap());
        checked.map(drop).map_err(|refused| refused.to_string())
    };
    let (good, url) = ("192.0.2.1:443", "wss://192.0.2.1/relay/v1");
    check(&node, good, "[2001:db8::1]:22", &[]).unwrap();
    check(&relay, good, "[2001:db8::1]:22", &[url]).unwrap();
    for bad in [
        "127.0.0.1:22",
        "[::1]:22",
        "[::ffff:127.0.0.1]:22",
        "169.254.169.254:80",
        "[fe80::1]:22",
        "224.0.0.1:22",
        "255.255.255.255:22",
        "0.0.0.0:22",
        "192.0.2.1:0",
        // In the network's own pool.
        "100.64.0.1:22",
    ] {
        for who in [&node, &relay] {
            let refused = check(who, good, bad, &[]).unwrap_err();
            assert!(refused.contains("SSH endpoint"), "{bad}: {refused}");
            check(who, bad, good, &[]).expect_err(bad);
        }
    }
    let refused = check(&node, good, good, &[url]).unwrap_err();
    assert!(refused.contains("only a relay has"), "{refused}");
}

#[tokio::test]
async fn nodes_are_told_where_the_relay_is_when_that_changes_and_only_then() {
    let directory = tempfile::tempdir().unwrap();
    let coordinator = coordinator(directory.path(), true).await;
    let told = || {
        coordinator.with_registry(|registry| {
            let state = registry.networks().next().unwrap();
            let (id, key) = state.own_relay().unwrap();
            let held = state.node_records.get(&id)?;
            held.envelope.check_signature().unwrap();
            assert_eq!(held.envelope.signer, key.public_key());
            Some((held.record.endpoints.clone(), held.record.serial, state.newest_change()))
        })
    };
    let places = |port: u16| Places {
        endpoints: vec![([192, 0, 2, 1], port).into()],
        websockets: vec!["wss://192.0.2.1/relay/v1".into()],
    };
    assert_eq!(told(), None, "nobody knows yet");
    coordinator.place_relay(places(1));
    let first = told().unwrap();
    assert_eq!(first.0, places(1).endpoints);
    coordinator.place_relay(places(1));
    assert_eq!(told().unwrap(), first);
    coordinator.place_relay(places(2));
    let second = told().unwrap();
    assert_eq!(second.0, places(2).endpoints);
    // Later than the first, although the clock stands still.
    assert!(second.1 > first.1);
    // A network that is made later is told of at once.
    let lab = NetworkConfig { name: "lab".into(), ..NetworkConfig::default() };
    let id = coordinator.create_network(&crate::auth::Authed::itself(), &lab, None).await.unwrap().value.id;
    let known = |state: &crate::network::NetworkState| {
        let (relay, _) = state.own_relay().unwrap();
        state.node_records.get(&relay).map(|held| held.record.endpoints.clone())
    };
    assert_eq!(coordinator.with_network(id, known).unwrap(), Some(places(2).endpoints));
}

#[tokio::test]
async fn coordinators_of_one_store_make_one_relay() {
    let directory = tempfile::tempdir().unwrap();
    // A network from before there were relays.
    let first = coordinator(directory.path(), false).await;
    let store = first.0.store.clone();
    let open = || async {
        let vault = Vault::open(directory.path(), false).unwrap();
        Coordinator::open(store.clone(), vault, options(true)).await.unwrap()
    };
    let (a, b) = (open().await, open().await);
    let (made_by_a, made_by_b) = tokio::join!(a.ensure_relays(), b.ensure_relays());
    made_by_a.unwrap();
    made_by_b.unwrap();
    b.ensure_relays().await.unwrap();
    let relays = |coordinator: &Coordinator| {
        coordinator.with_registry(|registry| {
            let state = registry.networks().next().unwrap();
            state.relays.keys().copied().collect::<Vec<_>>()
        })
    };
    assert_eq!(relays(&b).len(), 1);
    assert_eq!(relays(&a), relays(&b));
}

#[tokio::test]
async fn who_comes_too_late_for_events_is_told_so_and_where_they_begin() {
    let directory = tempfile::tempdir().unwrap();
    let coordinator = coordinator(directory.path(), false).await;
    let network = coordinator.with_registry(|registry| registry.networks().next().unwrap().id());
    let forgotten = coordinator.with_registry(Registry::revision);
    let ops = vec![crate::store::Op::put(
        format!("network/{network}/events-forgotten"),
        forgotten.to_string().into_bytes(),
    )];
    coordinator.commit_if_unchanged(Plan { compare: Vec::new(), ops }.unremarkable()).await.unwrap().unwrap();
    for seen in [super::Seen::Network(network), super::Seen::Everything] {
        let refused = coordinator.events_after(seen, forgotten - 1, 1).unwrap_err();
        let status = tonic::Status::from(crate::error::Refused::from(refused));
        assert_eq!(status.code(), tonic::Code::OutOfRange);
        assert!(status.message().contains(&format!("up to r{forgotten} are forgotten")), "{status}");
        let info = tonic_types::StatusExt::get_details_error_info(&status).unwrap();
        assert_eq!(info.reason, "REASON_EVENTS_FORGOTTEN");
        coordinator.events_after(seen, forgotten, 1).expect("who heard of all of them goes on");
        coordinator.events_after(seen, 0, 1).expect("who wants what is kept gets it");
    }
}
