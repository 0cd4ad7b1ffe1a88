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
        tokens::{self, Wish},
    },
    store::sqlite::SqliteStore,
    vault::Vault,
};

const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

async fn coordinator(directory: &std::path::Path) -> Coordinator {
    let options = Options {
        clock: Clock::new(|| NOW),
        heartbeat: std::time::Duration::from_secs(20),
        endpoints: vec!["192.0.2.1:443".into()],
        tls_key: [0; 32],
        relay: false,
    };
    let store = Arc::new(SqliteStore::open(directory).unwrap());
    let coordinator = Coordinator::open(store, Vault::open(directory, true).unwrap(), options).await.unwrap();
    coordinator.ensure_network(&NetworkConfig::default()).await.unwrap();
    coordinator
}

async fn member(coordinator: &Coordinator, identity: &IdentitySecret) -> NodeOf {
    let network = coordinator.with_registry(|registry| registry.networks().next().unwrap().id());
    let (token, secret) =
        (ringmesh_tunnel::key::TokenId::generate(), ringmesh_tunnel::enroll::TokenSecret::generate());
    let wish = Wish {
        life: std::time::Duration::ZERO,
        max_uses: 1,
        tags: Vec::new(),
        ephemeral: false,
        relay: false,
    };
    let create = |registry: &Registry, now| {
        tokens::plan_create(registry.network(network).unwrap(), token, &secret, &wish, now)
            .map(|plan| ((), plan))
    };
    coordinator.transact(create).await.unwrap();
    let joiner = Joiner {
        token,
        identity_key: identity.public_key(),
        name: "a".into(),
        host_name: String::new(),
        os: String::new(),
        version: String::new(),
    };
    let node = NodeId::generate();
    let join = |registry: &Registry, now| {
        enroll::plan(registry.network(network).unwrap(), &joiner, node, now).map(
            |enrollment| match enrollment {
                Enrollment::New(_, plan) => ((), plan),
                Enrollment::Already(_) => ((), Plan::default()),
            },
        )
    };
    coordinator.transact(join).await.unwrap();
    NodeOf { network, node }
}

#[tokio::test]
async fn a_node_record_staged_on_an_older_stream_never_lands_after_a_newer_one() {
    let directory = tempfile::tempdir().unwrap();
    let coordinator = coordinator(directory.path()).await;
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
