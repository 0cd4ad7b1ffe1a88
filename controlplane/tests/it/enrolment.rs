//! Becoming a node, and every reason not to.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use ringmesh_controlplane::{
    network::pool,
    server::Limits,
    store::{Compare, LeaseId, Op, Outcome, Snapshot, Store, StoreError, Watch, sqlite::SqliteStore},
};
use ringmesh_proto::{admin, control::Reason};
use ringmesh_tunnel::{
    enroll::JoinToken,
    key::{IdentitySecret, NetworkId},
    netmap::MemberKind,
};
use tonic::Code;

use crate::{
    client::{Lie, TestNode, connect, reason},
    harness::{Assembled, Operator, Running},
};

#[tokio::test]
async fn a_machine_with_a_token_becomes_a_node() {
    let coordinator = Running::start().await;
    let token = coordinator.token().await;
    let mut node = TestNode::new("laptop");
    node.join(&token).await.unwrap();
    let member = node.member.clone().unwrap();
    assert_eq!((member.name.as_str(), member.kind, member.serial), ("laptop", MemberKind::Mesh, 1));
    assert_eq!(member.ipv4.unwrap().to_string(), "100.64.0.1");
    let info = node.info.clone().unwrap();
    assert_eq!(
        (info.name.as_str(), info.zone.as_str(), info.ipv4_pool.as_str()),
        ("mesh", "mesh", "100.64.0.0/10")
    );
    let ula: ringmesh_tunnel::ip::Prefix = info.ipv6_pool.parse().unwrap();
    assert_eq!(ula.len(), 48);
    assert!(ula.contains(member.ipv6.into()));
    assert_eq!(node.secrets.iter().map(|(epoch, _)| *epoch).collect::<Vec<_>>(), [1]);

    let listed = coordinator.operator().await.node("laptop").await;
    assert_eq!(listed.id, node.id.to_string());
    assert_eq!(listed.identity_fingerprint, node.identity.public_key().fingerprint());
    assert!(!listed.online);
    coordinator.stop().await;
}

#[tokio::test]
async fn a_repeated_request_gives_the_same_node_and_no_second_use() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    let token = operator.token(admin::CreateTokenRequest::default()).await;
    let mut node = TestNode::new("laptop");
    node.join(&token).await.unwrap();
    let (id, member) = (node.id, node.member.clone());
    for _ in 0..3 {
        node.join(&token).await.unwrap();
        assert_eq!((node.id, &node.member), (id, &member));
    }
    let tokens =
        operator.tokens.list_tokens(admin::ListTokensRequest::default()).await.unwrap().into_inner().tokens;
    assert_eq!((tokens[0].uses, tokens[0].max_uses), (1, 1));
    assert_eq!(operator.list().await.len(), 1);
    coordinator.stop().await;
}

#[tokio::test]
async fn a_lie_in_a_proof_is_refused_and_nothing_is_kept() {
    let coordinator = Running::start().await;
    let token = coordinator.token().await;
    for (lie, expected) in [
        (Lie::OtherNonce, Reason::ProofInvalid),
        (Lie::OtherExporter, Reason::ProofInvalid),
        (Lie::OtherIdentity, Reason::ProofInvalid),
        (Lie::OtherName, Reason::ProofInvalid),
        (Lie::OtherRole, Reason::ProofInvalid),
        (Lie::OtherToken, Reason::TokenInvalid),
        (Lie::UnknownToken, Reason::TokenInvalid),
        (Lie::OtherNoiseKey, Reason::InvalidArgument),
        (Lie::NoProof, Reason::InvalidArgument),
        // The nonce was made for the right network.
        (Lie::OtherNetwork, Reason::ProofInvalid),
    ] {
        let refused = TestNode::new("liar").join_with(&token, lie).await.unwrap_err();
        assert_eq!(reason(&refused), expected, "{lie:?}: {refused}");
    }
    assert!(coordinator.operator().await.list().await.is_empty());
    TestNode::new("honest").join(&token).await.unwrap();
    coordinator.stop().await;
}

#[tokio::test]
async fn an_unknown_token_and_a_wrong_signature_are_refused_in_the_same_words() {
    let coordinator = Running::start().await;
    let token = coordinator.token().await;
    let unknown = TestNode::new("a").join_with(&token, Lie::UnknownToken).await.unwrap_err();
    let forged = TestNode::new("a").join_with(&token, Lie::OtherToken).await.unwrap_err();
    assert_eq!(
        (unknown.code(), unknown.message(), unknown.details()),
        (forged.code(), forged.message(), forged.details())
    );
    coordinator.stop().await;
}

#[tokio::test]
async fn a_coordinator_answers_no_challenge_of_a_network_it_does_not_serve() {
    let coordinator = Running::start().await;
    let mut node = TestNode::new("lost");
    node.network = NetworkId::from_bytes([9; 16]);
    let mut connection = connect(coordinator.ready.address).await.unwrap();
    let refused = node.challenge(&mut connection).await.unwrap_err();
    assert_eq!((reason(&refused), refused.code()), (Reason::NetworkUnknown, Code::NotFound));
    coordinator.stop().await;
}

#[tokio::test]
async fn a_proof_behind_a_proxy_needs_no_exporter_and_a_proof_of_a_direct_connection_does() {
    let coordinator = Running::start().await;
    let token = coordinator.token().await;
    let mut node = TestNode::new("behind");
    (node.network, node.root) = (token.network(), Some(token.root()));
    let mut connection = connect(coordinator.ready.address).await.unwrap();
    let (mut proof, _) = node.challenge(&mut connection).await.unwrap();
    proof.direct = false;
    let mut request = node.enroll_request(&connection, &token, proof, Lie::None);
    connection.control.enroll(request.clone()).await.unwrap();
    // The same signature does not serve as one of a direct connection.
    request.proof.as_mut().unwrap().direct = true;
    let refused = connection.control.enroll(request).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::ProofInvalid);
    coordinator.stop().await;
}

#[tokio::test]
async fn a_proof_does_not_serve_on_another_connection() {
    let coordinator = Running::start().await;
    let token = coordinator.token().await;
    let mut node = TestNode::new("a");
    (node.network, node.root) = (token.network(), Some(token.root()));
    let mut first = connect(coordinator.ready.address).await.unwrap();
    let (proof, _) = node.challenge(&mut first).await.unwrap();
    let request = node.enroll_request(&first, &token, proof, Lie::None);
    let mut second = connect(coordinator.ready.address).await.unwrap();
    let refused = second.control.enroll(request.clone()).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::ProofInvalid);
    first.control.enroll(request).await.unwrap();
    coordinator.stop().await;
}

#[tokio::test]
async fn a_proof_is_good_for_a_minute() {
    let mut coordinator = Assembled::start().await;
    let token = coordinator.token().await;
    let mut node = TestNode::new("late");
    node.set_time(coordinator.now());
    (node.network, node.root) = (token.network(), Some(token.root()));
    let mut connection = connect(coordinator.address).await.unwrap();
    let (proof, _) = node.challenge(&mut connection).await.unwrap();
    let request = node.enroll_request(&connection, &token, proof, Lie::None);
    coordinator.advance(Duration::from_secs(61));
    let refused = connection.control.enroll(request).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::ProofInvalid);
}

#[tokio::test]
async fn an_expired_a_used_and_a_revoked_token_are_told_apart_once_the_token_is_proved() {
    let mut coordinator = Assembled::start().await;
    let mut operator = coordinator.operator.clone();
    let request =
        |ttl_seconds, max_uses| admin::CreateTokenRequest { ttl_seconds, max_uses, ..Default::default() };
    let join = async |token: &JoinToken, now| {
        let mut node = TestNode::new("");
        node.set_time(now);
        node.join(token).await.map_err(|status| reason(&status))
    };

    let twice = operator.token(request(0, 2)).await;
    join(&twice, coordinator.now()).await.unwrap();
    join(&twice, coordinator.now()).await.unwrap();
    assert_eq!(join(&twice, coordinator.now()).await, Err(Reason::TokenUsed));

    let hour = operator.token(request(3600, 9)).await;
    coordinator.advance(Duration::from_secs(3599));
    join(&hour, coordinator.now()).await.unwrap();
    coordinator.advance(Duration::from_secs(1));
    assert_eq!(join(&hour, coordinator.now()).await, Err(Reason::TokenExpired));

    let revoked = coordinator.token().await;
    join(&revoked, coordinator.now()).await.unwrap();
    let id = revoked.token().to_string();
    let answer =
        operator.tokens.revoke_token(admin::RevokeTokenRequest { id, ..Default::default() }).await.unwrap();
    assert!(answer.into_inner().token.unwrap().revoked);
    assert_eq!(join(&revoked, coordinator.now()).await, Err(Reason::TokenRevoked));

    // Whoever does not hold the secret learns nothing of this.
    for token in [&twice, &hour, &revoked] {
        let mut liar = TestNode::new("");
        liar.set_time(coordinator.now());
        assert_eq!(reason(&liar.join_with(token, Lie::OtherToken).await.unwrap_err()), Reason::TokenInvalid);
    }
    // A token without a life of its own lives for a day.
    let day = operator.token(request(0, 9)).await;
    coordinator.advance(Duration::from_secs(24 * 3600 - 1));
    join(&day, coordinator.now()).await.unwrap();
    coordinator.advance(Duration::from_secs(1));
    assert_eq!(join(&day, coordinator.now()).await, Err(Reason::TokenExpired));
}

#[tokio::test]
async fn names_are_unique_labels_and_made_from_the_host_when_nobody_asks() {
    let coordinator = Running::start().await;
    let token = coordinator.token().await;
    let join = async |name: &str, host: &str| {
        let mut node = TestNode::new(name);
        node.host_name = host.into();
        node.join(&token).await.map(|()| node.member.unwrap().name).map_err(|status| reason(&status))
    };
    assert_eq!(join("web", "").await.unwrap(), "web");
    assert_eq!(join("web", "").await, Err(Reason::NameTaken));
    for bad in [
        "Web",
        "-web",
        "web-",
        "we b",
        "w\u{1b}[31m",
        "we_b",
        "w\0",
        "web\n",
        "w\u{202e}b",
        "caf\u{e9}",
        "a.b",
        "*",
        "localhost",
        "0123456789abcdef",
        &"a".repeat(64),
    ] {
        let refused = {
            let mut node = TestNode::new(bad);
            node.join(&token).await.unwrap_err()
        };
        assert_eq!(reason(&refused), Reason::NameInvalid, "{bad:?}");
        // It says why, and does nothing to a terminal.
        let message = refused.message();
        assert!(message.contains("cannot be used: a name has") || message.contains("a meaning of its own"));
        assert!(message.chars().all(|c| c.is_ascii_graphic() || c == ' '), "{message:?}");
    }
    assert_eq!(join("", "Web.example.org").await.unwrap(), "web-2");
    assert_eq!(join("", "web").await.unwrap(), "web-3");
    assert!(join("", "localhost").await.unwrap().starts_with("node-"));
    assert!(join("", "\u{540d}").await.unwrap().starts_with("node-"));
    coordinator.stop().await;
}

#[tokio::test]
async fn a_key_that_is_or_was_a_members_does_not_join_again() {
    let coordinator = Running::start().await;
    let token = coordinator.token().await;
    let mut operator = coordinator.operator().await;
    let mut node = coordinator.member("victim").await;
    let seed = *node.identity.seed();
    operator.remove("victim").await;
    // With another token and another name, too.
    assert_eq!(reason(&node.join(&token).await.unwrap_err()), Reason::KeyTaken);
    let mut again = TestNode::with_identity("other", IdentitySecret::from_seed(seed));
    assert_eq!(reason(&again.join(&token).await.unwrap_err()), Reason::KeyTaken);
    // Nor as a stock device's key.
    let request = admin::AddStockDeviceRequest {
        name: "phone".into(),
        public_key: node.identity.public_key().noise_key().to_string(),
        ..Default::default()
    };
    assert_eq!(reason(&operator.nodes.add_stock_device(request).await.unwrap_err()), Reason::KeyTaken);
    // The name is free again, for a new key.
    let newcomer = coordinator.member("victim").await;
    assert_ne!(newcomer.id, node.id);
    assert_ne!(newcomer.member.unwrap().ipv4, node.member.unwrap().ipv4);
    coordinator.stop().await;
}

#[tokio::test]
async fn a_stock_devices_key_does_not_join_as_a_node() {
    let coordinator = Running::start().await;
    let mut node = TestNode::new("node");
    let request = admin::AddStockDeviceRequest {
        name: "phone".into(),
        public_key: node.identity.public_key().noise_key().to_string(),
        ..Default::default()
    };
    coordinator.operator().await.nodes.add_stock_device(request).await.unwrap();
    assert_eq!(reason(&node.join(&coordinator.token().await).await.unwrap_err()), Reason::KeyTaken);
    coordinator.stop().await;
}

#[tokio::test]
async fn a_full_pool_is_said_and_a_released_address_rests_for_30_days() {
    let coordinator =
        Running::start_with(|config| config.network.ipv4_pool = "10.9.0.0/29".parse().unwrap()).await;
    let token = coordinator.token().await;
    for i in 1..=6 {
        let mut node = TestNode::new(&format!("n{i}"));
        node.join(&token).await.unwrap();
        assert_eq!(node.member.unwrap().ipv4.unwrap().to_string(), format!("10.9.0.{i}"));
    }
    let full = TestNode::new("n7").join(&token).await.unwrap_err();
    assert_eq!((reason(&full), full.code()), (Reason::PoolExhausted, Code::ResourceExhausted));
    coordinator.operator().await.remove("n3").await;
    assert_eq!(reason(&TestNode::new("n7").join(&token).await.unwrap_err()), Reason::PoolExhausted);
    coordinator.stop().await;
}

#[tokio::test]
async fn an_address_comes_back_after_its_rest() {
    let mut coordinator = Assembled::start().await;
    let gone = coordinator.member("gone").await.member.unwrap().ipv4;
    coordinator.operator.remove("gone").await;
    assert_ne!(coordinator.member("next").await.member.unwrap().ipv4, gone);
    coordinator.advance(pool::REST);
    coordinator.coordinator.maintain().await.unwrap();
    assert_eq!(coordinator.member("later").await.member.unwrap().ipv4, gone);
}

/// Joins `count` machines at once, at the token's coordinators in turn, and returns the reasons of those that lost.
async fn race(token: &JoinToken, count: usize) -> (usize, Vec<(Reason, String)>) {
    let tasks: Vec<_> = (0..count)
        .map(|i| {
            let token: JoinToken = token.reveal().parse().unwrap();
            let coordinator = token.coordinators()[i % token.coordinators().len()].parse().unwrap();
            tokio::spawn(async move {
                let mut node = TestNode::new("");
                // One address may have so many connections that prove nothing yet; the others come again.
                let mut connection = loop {
                    if let Ok(connection) = connect(coordinator).await {
                        break connection;
                    }
                };
                let joined = node.join_on(&mut connection, &token, Lie::None).await;
                joined.map_err(|status| (reason(&status), status.message().to_owned()))
            })
        })
        .collect();
    let (mut won, mut lost) = (0, Vec::new());
    for task in tasks {
        match task.await.unwrap() {
            Ok(()) => won += 1,
            Err(refusal) => lost.push(refusal),
        }
    }
    (won, lost)
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_hundred_parallel_joins_with_a_single_use_token_exactly_one_wins() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    let token = operator.token(admin::CreateTokenRequest::default()).await;
    let (won, lost) = race(&token, 100).await;
    assert_eq!(won, 1);
    let lost: BTreeSet<_> = lost.into_iter().map(|(reason, text)| (reason as i32, text)).collect();
    assert_eq!(lost.len(), 1, "one and the same refusal: {lost:?}");
    assert_eq!(lost.first().unwrap().0, Reason::TokenUsed as i32);
    assert_eq!(operator.list().await.len(), 1);
    coordinator.stop().await;
}

/// Two coordinators of one store: nothing but the compare of the transaction decides.
#[tokio::test(flavor = "multi_thread")]
async fn a_single_use_is_won_once_among_replicas() {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(directory.path()).unwrap());
    let mut one = Assembled::start_on(store.clone(), directory.clone(), Limits::default()).await;
    let other = Assembled::start_on(store, directory, Limits::default()).await;
    for _ in 0..5 {
        let token = one.operator.token(admin::CreateTokenRequest::default()).await;
        // The token names both coordinators; the machines take them in turn.
        assert_eq!(token.coordinators(), [one.address.to_string(), other.address.to_string()]);
        let before = one.operator.list().await.len();
        let (won, lost) = race(&token, 20).await;
        assert_eq!((won, lost.len()), (1, 19));
        assert!(lost.iter().all(|(reason, _)| *reason == Reason::TokenUsed), "{lost:?}");
        assert_eq!(one.operator.list().await.len(), before + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_joins_get_names_and_addresses_of_their_own() {
    let coordinator = Running::start().await;
    let token = coordinator.token().await;
    let (won, lost) = race(&token, 40).await;
    assert_eq!((won, lost), (40, vec![]));
    let nodes = coordinator.operator().await.list().await;
    let distinct = |part: fn(&admin::Node) -> String| nodes.iter().map(part).collect::<BTreeSet<_>>().len();
    assert_eq!(distinct(|node| node.name.clone()), 40);
    assert_eq!(distinct(|node| node.ipv4.clone()), 40);
    assert_eq!(distinct(|node| node.ipv6.clone()), 40);
    assert!(nodes.iter().all(|node| node.ipv4.parse::<IpAddr>().is_ok()));
    coordinator.stop().await;
}

/// A store in which somebody else writes first, every time until `left` is used up.
#[derive(Debug)]
struct Contended {
    inner: SqliteStore,
    left: AtomicUsize,
}

#[async_trait]
impl Store for Contended {
    async fn txn(&self, compare: Vec<Compare>, ops: Vec<Op>) -> Result<Outcome, StoreError> {
        let token = ops.iter().find_map(|op| {
            let Op::Put { key, .. } = op else { return None };
            key.contains("/token/").then(|| key.clone())
        });
        let spoil = |left: usize| left.checked_sub(1);
        if let Some(key) = token
            && !compare.iter().any(|compare| compare.revision == 0 && compare.key == key)
            && self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spoil).is_ok()
        {
            let entries = self.inner.snapshot().await?.entries;
            let value = entries.into_iter().find(|entry| entry.key == key).unwrap().value;
            self.inner.txn(vec![], vec![Op::put(key, value)]).await?;
        }
        self.inner.txn(compare, ops).await
    }

    async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        self.inner.snapshot().await
    }

    async fn watch(&self, after: u64) -> Result<Watch, StoreError> {
        self.inner.watch(after).await
    }

    async fn lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.inner.lease(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.keep_alive(lease).await
    }
}

#[tokio::test]
async fn a_conflict_is_planned_anew_and_endless_ones_are_put_off() {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let inner = SqliteStore::open(directory.path()).unwrap();
    let store = Arc::new(Contended { inner, left: AtomicUsize::new(0) });
    let mut coordinator = Assembled::start_on(store.clone(), directory, Limits::default()).await;
    let token = coordinator.token().await;
    store.left.store(5, Ordering::Relaxed);
    TestNode::new("patient").join(&token).await.unwrap();
    assert_eq!(store.left.load(Ordering::Relaxed), 0);
    store.left.store(usize::MAX, Ordering::Relaxed);
    let refused = TestNode::new("unlucky").join(&token).await.unwrap_err();
    assert_eq!((reason(&refused), refused.code()), (Reason::Busy, Code::Unavailable));
    store.left.store(0, Ordering::Relaxed);
    assert_eq!(coordinator.operator.list().await.len(), 1);
}

#[tokio::test]
async fn guessing_is_slowed_down_and_a_used_token_is_no_guess() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    let used = operator.token(admin::CreateTokenRequest::default()).await;
    TestNode::new("first").join(&used).await.unwrap();
    for _ in 0..12 {
        assert_eq!(reason(&TestNode::new("x").join(&used).await.unwrap_err()), Reason::TokenUsed);
    }
    for _ in 0..10 {
        assert_eq!(
            reason(&TestNode::new("x").join_with(&used, Lie::OtherToken).await.unwrap_err()),
            Reason::TokenInvalid
        );
    }
    let barred = TestNode::new("x").join_with(&used, Lie::OtherToken).await.unwrap_err();
    assert_eq!((reason(&barred), barred.code()), (Reason::Busy, Code::Unavailable));
    coordinator.stop().await;
}

/// As behind a NAT or a proxy: all have one address, and one of them guesses.
#[tokio::test]
async fn junk_from_an_address_keeps_no_honest_node_of_that_address_out() {
    let coordinator = Running::start().await;
    let token = coordinator.token().await;
    let mut member = coordinator.member("member").await;
    for _ in 0..11 {
        member.sync_with(Lie::OtherIdentity).await.err().unwrap();
    }
    let junk = member.sync_with(Lie::OtherIdentity).await.err().unwrap();
    assert_eq!(reason(&junk), Reason::Busy, "a further guess is not even told what was wrong");
    let mut joins = TestNode::new("joins");
    joins.join(&token).await.unwrap();
    let mut stream = joins.sync().await.unwrap();
    joins.update(&mut stream).await;
    let mut stream = member.sync().await.unwrap();
    member.update(&mut stream).await;
    coordinator.stop().await;
}

#[tokio::test]
async fn an_unknown_node_is_no_guess() {
    let coordinator = Running::start().await;
    let mut node = coordinator.member("a").await;
    let id = std::mem::replace(&mut node.id, ringmesh_tunnel::key::NodeId::from_bytes([9; 8]));
    for _ in 0..12 {
        assert_eq!(reason(&node.sync().await.err().unwrap()), Reason::NodeUnknown);
    }
    node.id = id;
    assert_eq!(reason(&node.sync_with(Lie::OtherIdentity).await.err().unwrap()), Reason::ProofInvalid);
    coordinator.stop().await;
}

#[tokio::test]
async fn a_stock_device_gets_an_address_and_a_key_of_its_own() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    let add = async |operator: &mut Operator, name: &str, public_key: String| {
        let request = admin::AddStockDeviceRequest { name: name.into(), public_key, ..Default::default() };
        operator.nodes.add_stock_device(request).await.map(tonic::Response::into_inner)
    };
    let key = || IdentitySecret::generate().public_key().noise_key().to_string();
    let phone = add(&mut operator, "phone", key()).await.unwrap();
    let tablet = add(&mut operator, "tablet", key()).await.unwrap();
    assert_ne!(phone.preshared_key, tablet.preshared_key);
    assert_eq!(phone.preshared_key.len(), 44);
    let node = phone.node.unwrap();
    assert_eq!((node.kind, node.identity_fingerprint.as_str()), (admin::NodeKind::Stock as i32, ""));
    assert_ne!(node.ipv4, tablet.node.unwrap().ipv4);
    for (name, key, expected) in [
        ("phone", key(), Reason::NameTaken),
        ("Phone", key(), Reason::NameInvalid),
        ("", key(), Reason::NameInvalid),
        ("pho_ne", key(), Reason::NameInvalid),
        ("pho\u{1b}[2Jne", key(), Reason::NameInvalid),
        ("ph\u{f6}ne", key(), Reason::NameInvalid),
        ("-phone", key(), Reason::NameInvalid),
        ("localhost", key(), Reason::NameInvalid),
        ("other", "nonsense".into(), Reason::InvalidArgument),
        // The neutral element: anybody could shake hands with it.
        ("other", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".into(), Reason::InvalidArgument),
        ("other", node.noise_key, Reason::KeyTaken),
    ] {
        let refused = add(&mut operator, name, key).await.unwrap_err();
        assert_eq!(reason(&refused), expected, "{name}");
        assert!(!refused.message().contains(char::is_control), "{refused:?}");
    }
    coordinator.stop().await;
}
