//! What happened, as it is told: listed, watched, and resumed after anything.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use ringmesh_controlplane::{
    server::Limits,
    store::{Op, Store, sqlite::SqliteStore},
};
use ringmesh_proto::{admin, control::Reason};
use ringmesh_tunnel::key::{IdentitySecret, Label};
use tonic::{Code, Status, Streaming};

use crate::{
    access::with_bearer,
    client::{Lie, TestNode, connect, reason},
    harness::{Assembled, Operator, Running},
    policy::{ALL, apply, ssh_to_b},
};

type Told = Streaming<admin::WatchEventsResponse>;

async fn list(operator: &mut Operator, after: u64, most: u32) -> admin::ListEventsResponse {
    let request = admin::ListEventsRequest { after_revision: after, most, ..Default::default() };
    operator.events.list_events(request).await.unwrap().into_inner()
}

/// Everything that is kept.
pub async fn all(operator: &mut Operator) -> Vec<admin::Event> {
    let (mut events, mut after) = (Vec::new(), 0);
    loop {
        let page = list(operator, after, 1000).await;
        events.extend(page.events);
        after = page.revision;
        if !page.more {
            return events;
        }
    }
}

async fn watch(operator: &mut Operator, after: u64, names: &[&str]) -> Result<Told, Status> {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    let request = admin::WatchEventsRequest { after_revision: after, names, ..Default::default() };
    operator.events.watch_events(request).await.map(tonic::Response::into_inner)
}

async fn next(told: &mut Told) -> admin::WatchEventsResponse {
    let next = tokio::time::timeout(Duration::from_secs(20), told.message());
    next.await.expect("told in time").unwrap().expect("the watch goes on")
}

/// Reads up to the first message of the present; whoever watches from now on has nothing before it.
async fn live(told: &mut Told) -> u64 {
    let first = next(told).await;
    assert!(first.live && first.events.is_empty(), "{first:?}");
    first.revision
}

/// Events one at a time.
struct Heard {
    told: Told,
    waiting: VecDeque<admin::Event>,
}

impl Heard {
    /// What happens from now on.
    async fn from_now_on(operator: &mut Operator, names: &[&str]) -> Self {
        let mut told = watch(operator, 0, names).await.unwrap();
        live(&mut told).await;
        Self { told, waiting: VecDeque::new() }
    }

    async fn next(&mut self) -> admin::Event {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return event;
            }
            self.waiting.extend(next(&mut self.told).await.events);
        }
    }
}

async fn new_token(operator: &mut Operator) -> String {
    let response = operator.tokens.create_token(admin::CreateTokenRequest::default()).await.unwrap();
    response.into_inner().token.unwrap().id
}

async fn add_device(operator: &mut Operator, name: &str) -> admin::Node {
    let request = admin::AddStockDeviceRequest {
        name: name.into(),
        public_key: IdentitySecret::generate().public_key().noise_key().to_string(),
        ..Default::default()
    };
    operator.nodes.add_stock_device(request).await.unwrap().into_inner().node.unwrap()
}

fn user() -> admin::Actor {
    let name = nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().unwrap().name;
    admin::Actor { kind: "user".into(), id: name.clone(), name }
}

fn detail<'e>(event: &'e admin::Event, name: &str) -> &'e str {
    event.details.get(name).map_or("", String::as_str)
}

#[tokio::test]
async fn every_change_is_told_with_who_made_it_and_whom_it_is_about() {
    let coordinator = Running::start_with_relay().await;
    let mut operator = coordinator.operator().await;
    let made = all(&mut operator).await;
    let names: Vec<&str> = made.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(names, ["network_created", "relay_added"]);
    assert!(made.iter().all(|event| event.actor.as_ref().unwrap().kind == "coordinator"));
    assert!(made.iter().all(|event| event.revision == made[0].revision && event.network == "mesh"));

    let token = operator.token(admin::CreateTokenRequest { max_uses: 2, ..Default::default() }).await;
    let mut node = TestNode::new("a");
    node.join(&token).await.unwrap();
    let joined = operator.node("a").await;
    let device = add_device(&mut operator, "phone").await;
    let request = admin::RevokeTokenRequest { id: token.token().to_string(), ..Default::default() };
    operator.tokens.revoke_token(request).await.unwrap();
    let with_comment = admin::ApplyPolicyRequest {
        text: ALL.into(),
        comment: "open it".into(),
        request_id: "apply-1".into(),
        ..Default::default()
    };
    let applied = operator.policy.apply_policy(with_comment).await.unwrap().into_inner();
    operator.remove("phone").await;
    let mut connection = connect(coordinator.ready.address).await.unwrap();
    let request = node.leave_request(&mut connection, Lie::None, Label::Leave).await;
    connection.control.leave(request).await.unwrap();
    let request = admin::CreateApiKeyRequest {
        name: "ci".into(),
        role: admin::ApiKeyRole::ReadOnly.into(),
        ..Default::default()
    };
    let key = operator.keys.create_api_key(request).await.unwrap().into_inner().key.unwrap();
    let request = admin::RevokeApiKeyRequest { id: key.id.clone(), ..Default::default() };
    operator.keys.revoke_api_key(request).await.unwrap();

    let events = all(&mut operator).await.split_off(made.len());
    let names: Vec<&str> = events.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "token_created",
            "node_joined",
            "stock_device_added",
            "token_revoked",
            "policy_applied",
            "node_removed",
            "node_left",
            "epoch_started",
            "api_key_created",
            "api_key_revoked",
        ]
    );
    assert!(events.is_sorted_by_key(|event| event.revision));
    assert!(events.iter().all(|event| event.time_ms > 0));
    let subjects: Vec<&str> = events.iter().map(|event| event.subject_id.as_str()).collect();
    let token_id = token.token().to_string();
    let (policy, network) = (applied.revision.to_string(), token.network().to_string());
    let expected: [&str; 10] = [
        &token_id, &joined.id, &device.id, &token_id, &policy, &device.id, &joined.id, &network, &key.id,
        &key.id,
    ];
    assert_eq!(subjects, expected);
    let by_node = admin::Actor { kind: "node".into(), id: joined.id.clone(), name: "a".into() };
    for (event, name) in events.iter().zip(&names) {
        let expected =
            if matches!(*name, "node_joined" | "node_left" | "epoch_started") { &by_node } else { &user() };
        assert_eq!(event.actor.as_ref(), Some(expected), "{name}");
        assert_eq!(event.network, if name.starts_with("api_key") { "" } else { "mesh" }, "{name}");
        assert_eq!(event.request_id, if *name == "policy_applied" { "apply-1" } else { "" });
    }
    assert_eq!(events[6].revision, events[7].revision, "a node goes and an epoch begins at one moment");
    assert_eq!((detail(&events[0], "max_uses"), detail(&events[3], "uses")), ("2", "1"));
    assert_eq!((detail(&events[1], "token"), detail(&events[1], "ipv4")), (&*token_id, &*joined.ipv4));
    assert_eq!((detail(&events[4], "comment"), detail(&events[4], "rules")), ("open it", "1"));
    assert_eq!((detail(&events[5], "kind"), detail(&events[6], "kind")), ("stock", "mesh"));
    assert_eq!(detail(&events[7], "because"), format!("node_left {}", joined.id));
    assert_eq!((detail(&events[8], "role"), detail(&events[8], "scope")), ("read-only", "all"));

    // All of it is there after a restart.
    let before = all(&mut operator).await;
    let directory = coordinator.stop().await;
    let coordinator = Running::start_in(directory, |config| config.relay.enabled = true).await;
    let mut operator = coordinator.operator().await;
    assert_eq!(all(&mut operator).await, before);
    coordinator.stop().await;
}

#[tokio::test]
async fn a_watch_tells_the_past_then_that_it_is_over_then_what_comes() {
    let coordinator = Running::start_with(|config| config.heartbeat_seconds = 1).await;
    let mut operator = coordinator.operator().await;
    let begun = list(&mut operator, 0, 0).await.revision;
    let mut now = watch(&mut operator, 0, &[]).await.unwrap();
    assert_eq!(live(&mut now).await, begun);
    for _ in 0..3 {
        new_token(&mut operator).await;
    }
    let kept = list(&mut operator, begun, 0).await;
    assert_eq!((kept.events.len(), kept.more), (3, false));
    // Who was there hears of it as it happens.
    let mut heard = Vec::new();
    while heard.len() < 3 {
        let message = next(&mut now).await;
        assert!(message.live && message.revision >= message.events.last().map_or(0, |event| event.revision));
        heard.extend(message.events);
    }
    assert_eq!(heard, kept.events);
    // Who comes later hears of it first, and then that this was the past.
    let mut later = watch(&mut operator, begun, &[]).await.unwrap();
    let past = next(&mut later).await;
    assert_eq!((past.live, &past.events), (false, &kept.events));
    let over = next(&mut later).await;
    assert_eq!((over.live, over.events.len(), over.revision), (true, 0, kept.revision));
    // Signs of life.
    let begun = std::time::Instant::now();
    for _ in 0..2 {
        let message = next(&mut now).await;
        assert!(message.live && message.events.is_empty() && message.revision == kept.revision);
    }
    assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
    coordinator.stop().await;
}

#[tokio::test]
async fn only_events_of_the_names_asked_for_are_told_and_the_place_moves_on_all_the_same() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    let mut told = watch(&mut operator, 0, &["token_revoked", "policy_applied"]).await.unwrap();
    live(&mut told).await;
    let token = new_token(&mut operator).await;
    coordinator.member("b").await;
    let applied = apply(&mut operator, &ssh_to_b(&["b"])).await.unwrap();
    let first = next(&mut told).await;
    assert_eq!(first.events.len(), 1);
    assert_eq!((&*first.events[0].name, first.events[0].revision), ("policy_applied", applied.revision));
    assert!(first.revision >= applied.revision);
    operator
        .tokens
        .revoke_token(admin::RevokeTokenRequest { id: token, ..Default::default() })
        .await
        .unwrap();
    let second = next(&mut told).await;
    assert_eq!(second.events.iter().map(|event| &*event.name).collect::<Vec<_>>(), ["token_revoked"]);

    let refused = watch(&mut operator, 0, &["token_revoked", "tokenrevoked"]).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused)), (Code::InvalidArgument, Reason::InvalidArgument));
    assert!(refused.message().contains("tokenrevoked"), "{refused}");
    coordinator.stop().await;
}

#[tokio::test]
async fn a_revision_that_is_yet_to_come_is_refused() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    let newest = list(&mut operator, 0, 0).await.revision;
    let request = admin::ListEventsRequest { after_revision: newest + 1, ..Default::default() };
    for refused in [
        operator.events.list_events(request).await.unwrap_err(),
        watch(&mut operator, newest + 1, &[]).await.unwrap_err(),
    ] {
        assert_eq!((refused.code(), reason(&refused)), (Code::InvalidArgument, Reason::InvalidArgument));
        assert!(refused.message().contains(&format!("the newest is r{newest}")), "{refused}");
    }
    let request = admin::ListEventsRequest { network: "nowhere".into(), ..Default::default() };
    let refused = operator.events.list_events(request).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::NetworkUnknown);
    coordinator.stop().await;
}

#[tokio::test]
async fn a_revision_whose_events_are_forgotten_is_refused() {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(directory.path()).unwrap());
    let mut coordinator = Assembled::start_on(store.clone(), directory, Limits::default()).await;
    let begun = list(&mut coordinator.operator, 0, 0).await.revision;
    let network = coordinator.token().await.network();
    // As after ten thousand events.
    let forgotten = list(&mut coordinator.operator, 0, 0).await.revision;
    let place = format!("network/{network}/events-forgotten");
    store.txn(Vec::new(), vec![Op::put(place, forgotten.to_string().into())]).await.unwrap();
    let mut operator = coordinator.operator.clone();
    new_token(&mut operator).await;
    let request = admin::ListEventsRequest { after_revision: begun, ..Default::default() };
    for refused in [
        operator.events.list_events(request).await.unwrap_err(),
        watch(&mut operator, begun, &[]).await.unwrap_err(),
    ] {
        assert_eq!((refused.code(), reason(&refused)), (Code::OutOfRange, Reason::EventsForgotten));
    }
    assert_eq!(list(&mut operator, forgotten, 0).await.events.len(), 1);
    watch(&mut operator, forgotten, &[]).await.unwrap();
}

#[tokio::test]
async fn who_comes_and_goes_is_told_and_not_kept() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    let mut node = coordinator.member("a").await;
    let id = operator.node("a").await.id;
    let mut told = Heard::from_now_on(&mut operator, &["node_online", "node_offline", "node_removed"]).await;
    let stream = node.sync().await.unwrap();
    let came = told.next().await;
    assert_eq!((&*came.name, came.revision, &*came.subject_id), ("node_online", 0, &*id));
    assert_eq!((&*came.subject_name, &*came.network), ("a", "mesh"));
    assert_eq!(came.actor, Some(admin::Actor { kind: "node".into(), id: id.clone(), name: "a".into() }));
    // Another stream takes over: it was here all the time.
    let second = node.sync().await.unwrap();
    drop(stream);
    drop(second);
    assert_eq!(told.next().await.name, "node_offline");
    let _third = node.sync().await.unwrap();
    assert_eq!(told.next().await.name, "node_online");
    operator.remove("a").await;
    assert_eq!(told.next().await.name, "node_removed");
    assert!(all(&mut operator).await.iter().all(|event| event.revision > 0 && event.name != "node_online"));
    coordinator.stop().await;
}

#[tokio::test]
async fn a_revision_is_told_installed_when_the_last_node_that_is_online_has_it() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    let (mut a, mut b) = (coordinator.member("a").await, coordinator.member("b").await);
    coordinator.member("away").await;
    let (mut to_a, mut to_b) = (a.sync().await.unwrap(), b.sync().await.unwrap());
    for (node, stream) in [(&mut a, &mut to_a), (&mut b, &mut to_b)] {
        let update = node.update(stream).await;
        stream.acknowledge(update.position.durable).await;
    }
    let mut told =
        Heard::from_now_on(&mut operator, &["policy_applied", "node_removed", "revision_installed"]).await;
    let applied = apply(&mut operator, &ssh_to_b(&["a"])).await.unwrap();
    assert_eq!(told.next().await.name, "policy_applied");
    let with_policy = async |node: &mut TestNode, stream: &mut crate::client::MapStream| loop {
        let update = node.update(stream).await;
        if node.map.as_ref().unwrap().policy().unwrap().serial == 2 {
            return update.position.durable;
        }
    };
    let (in_a, in_b) = (with_policy(&mut a, &mut to_a).await, with_policy(&mut b, &mut to_b).await);
    to_a.acknowledge(in_a).await;
    // While b has it not, nothing is told: what comes next comes after b's word.
    while operator.node("a").await.installed_revision < applied.revision {
        tokio::task::yield_now().await;
    }
    let device = add_device(&mut operator, "phone").await;
    operator.remove("phone").await;
    assert_eq!(told.next().await.name, "node_removed");
    to_b.acknowledge(in_b).await;
    let installed = told.next().await;
    assert_eq!((&*installed.name, installed.revision), ("revision_installed", 0), "{installed:?} {device:?}");
    assert_eq!(installed.subject_id, applied.revision.to_string());
    let details: Vec<&str> = ["revision", "installed", "behind"].map(|name| detail(&installed, name)).into();
    assert_eq!(details, [&*applied.revision.to_string(), "2", "1"]);
    assert_eq!(installed.actor.unwrap().kind, "coordinator");
    // Where nobody is online, nobody is waited for.
    drop((to_a, to_b));
    while operator.list().await.iter().any(|node| node.online) {
        tokio::task::yield_now().await;
    }
    let applied = apply(&mut operator, ALL).await.unwrap();
    loop {
        let event = told.next().await;
        if event.name == "revision_installed" && event.subject_id == applied.revision.to_string() {
            assert_eq!((detail(&event, "installed"), detail(&event, "behind")), ("0", "3"));
            break;
        }
    }
    coordinator.stop().await;
}

/// A small generator, so that a failure can be replayed by its seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) % bound
    }
}

/// Makes changes of all sorts.
async fn churn(operator: &mut Operator, dice: &mut Dice, count: u64, named: &str) {
    for number in 0..count {
        match dice.below(4) {
            0 => drop(add_device(operator, &format!("{named}-{number}")).await),
            1 => drop(new_token(operator).await),
            2 => {
                let id = new_token(operator).await;
                let request = admin::RevokeTokenRequest { id, ..Default::default() };
                operator.tokens.revoke_token(request).await.unwrap();
            }
            _ => {
                // Another one each time: the same again is no change.
                let port = dice.below(60_000) + 1;
                let text = format!(
                    "[[allow]]\nfrom = [\"*\"]\nto = [\"*\"]\nprotocol = \"tcp\"\nports = [{port}]\n"
                );
                let request = admin::ApplyPolicyRequest { text, ..Default::default() };
                operator.policy.apply_policy(request).await.unwrap();
            }
        }
    }
}

/// Watches from `place` until some messages were read, or the stream ended; returns what was told and the place to resume from.
async fn watch_a_while(
    operator: &mut Operator,
    place: u64,
    messages: u64,
    into: &mut Vec<admin::Event>,
) -> u64 {
    let mut place = place;
    let Ok(mut told) = watch(operator, place, &[]).await else { return place };
    for _ in 0..messages {
        // In silence he goes as well.
        let Ok(message) = tokio::time::timeout(Duration::from_millis(100), told.message()).await else {
            return place;
        };
        match message {
            Ok(Some(message)) => {
                assert!(message.revision >= place, "it never goes back");
                place = message.revision;
                into.extend(message.events.into_iter().filter(|event| event.revision > 0));
            }
            // The coordinator stops.
            Ok(None) | Err(_) => return place,
        }
    }
    place
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_resumes_loses_nothing_and_hears_nothing_twice() {
    for seed in [1, 2, 3] {
        println!("seed {seed}");
        let mut dice = Dice(seed);
        let mut coordinator = Running::start().await;
        let mut operator = coordinator.operator().await;
        let begun = list(&mut operator, 0, 0).await.revision;
        let (mut place, mut heard) = (begun, Vec::new());
        for round in 0..3 {
            let changing = {
                let (mut operator, mut dice) = (operator.clone(), Dice(seed * 100 + round));
                tokio::spawn(async move { churn(&mut operator, &mut dice, 25, &format!("s{round}")).await })
            };
            while !changing.is_finished() {
                place = watch_a_while(&mut operator, place, 1 + dice.below(6), &mut heard).await;
            }
            changing.await.unwrap();
            // Cut off by a restart at some place.
            place = watch_a_while(&mut operator, place, dice.below(2), &mut heard).await;
            let directory = coordinator.stop().await;
            coordinator = Running::start_in(directory, |_| {}).await;
            operator = coordinator.operator().await;
        }
        let mut told = watch(&mut operator, place, &[]).await.unwrap();
        loop {
            let message = next(&mut told).await;
            heard.extend(message.events);
            if message.live {
                break;
            }
        }
        let kept: Vec<admin::Event> =
            all(&mut operator).await.into_iter().filter(|event| event.revision > begun).collect();
        assert!(kept.len() >= 75, "{}", kept.len());
        assert_eq!(heard, kept);
        coordinator.stop().await;
    }
}

#[tokio::test]
async fn a_watch_ends_with_word_to_come_back_when_the_coordinator_stops() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    let mut told = watch(&mut operator, 0, &[]).await.unwrap();
    live(&mut told).await;
    let stopping = tokio::spawn(coordinator.stop());
    let end = loop {
        match told.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("without a word"),
            Err(end) => break end,
        }
    };
    assert_eq!((end.code(), reason(&end)), (Code::Unavailable, Reason::Busy), "{end}");
    drop(stopping.await.unwrap());
}

#[tokio::test]
async fn a_network_has_its_own_events_and_what_belongs_to_none_is_told_apart() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    let request = admin::CreateNetworkRequest { name: "lab".into(), ..Default::default() };
    operator.networks.create_network(request).await.unwrap();
    for network in ["mesh", "lab"] {
        let request = admin::CreateTokenRequest { network: network.into(), ..Default::default() };
        operator.tokens.create_token(request).await.unwrap();
    }
    let key = |name: &str, network: &str| admin::CreateApiKeyRequest {
        name: name.into(),
        role: admin::ApiKeyRole::ReadOnly.into(),
        network: network.into(),
        ..Default::default()
    };
    operator.keys.create_api_key(key("all", "")).await.unwrap();
    operator.keys.create_api_key(key("of-lab", "lab")).await.unwrap();
    let mut of = async |network: &str| -> Vec<(String, String)> {
        let request = admin::ListEventsRequest { network: network.into(), ..Default::default() };
        let events = operator.events.list_events(request).await.unwrap().into_inner().events;
        events.into_iter().map(|event| (event.network, event.name)).collect()
    };
    let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        pairs.iter().map(|(network, name)| ((*network).to_owned(), (*name).to_owned())).collect()
    };
    assert_eq!(of("mesh").await, pairs(&[("mesh", "network_created"), ("mesh", "token_created")]));
    assert_eq!(
        of("lab").await,
        pairs(&[("lab", "network_created"), ("lab", "token_created"), ("lab", "api_key_created")])
    );
    assert_eq!(
        of("").await,
        pairs(&[
            ("mesh", "network_created"),
            ("lab", "network_created"),
            ("mesh", "token_created"),
            ("lab", "token_created"),
            ("", "api_key_created"),
            ("lab", "api_key_created"),
        ])
    );
    coordinator.stop().await;
}

#[tokio::test]
async fn a_key_for_one_network_hears_of_that_one_alone_until_it_is_revoked() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    let request = admin::CreateNetworkRequest { name: "lab".into(), ..Default::default() };
    operator.networks.create_network(request).await.unwrap();
    let request = admin::CreateApiKeyRequest {
        name: "lab-reader".into(),
        role: admin::ApiKeyRole::ReadOnly.into(),
        network: "lab".into(),
        ..Default::default()
    };
    let made = operator.keys.create_api_key(request).await.unwrap().into_inner();
    let channel = connect(coordinator.ready.address).await.unwrap().channel;
    let mut events = admin::event_service_client::EventServiceClient::new(channel);
    let by_key = |request| with_bearer(request, Some(&made.secret));
    let listed =
        events.list_events(with_bearer(admin::ListEventsRequest::default(), Some(&made.secret))).await;
    let listed = listed.unwrap().into_inner().events;
    let names: Vec<(&str, &str)> = listed.iter().map(|event| (&*event.network, &*event.name)).collect();
    assert_eq!(names, [("lab", "network_created"), ("lab", "api_key_created")]);
    let other = admin::WatchEventsRequest { network: "mesh".into(), ..Default::default() };
    assert_eq!(reason(&events.watch_events(by_key(other)).await.unwrap_err()), Reason::NetworkUnknown);

    let mut told = events.watch_events(by_key(Default::default())).await.unwrap().into_inner();
    live(&mut told).await;
    // In the other network somebody comes, and goes.
    let token = operator
        .token(admin::CreateTokenRequest { network: "mesh".into(), reusable: true, ..Default::default() })
        .await;
    let mut node = TestNode::new("a");
    node.join(&token).await.unwrap();
    drop(node.sync().await.unwrap());
    let request = admin::CreateTokenRequest { network: "lab".into(), ..Default::default() };
    operator.tokens.create_token(request).await.unwrap();
    let message = next(&mut told).await;
    let names: Vec<(&str, &str)> =
        message.events.iter().map(|event| (&*event.network, &*event.name)).collect();
    assert_eq!(names, [("lab", "token_created")]);
    let request = admin::RevokeApiKeyRequest { id: made.key.unwrap().id, ..Default::default() };
    operator.keys.revoke_api_key(request).await.unwrap();
    let end = loop {
        match told.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("without a word"),
            Err(end) => break end,
        }
    };
    assert_eq!((end.code(), reason(&end)), (Code::Unauthenticated, Reason::CredentialRevoked), "{end}");
    coordinator.stop().await;
}

#[tokio::test]
async fn a_watch_ends_when_its_key_expires_though_nothing_else_happens() {
    let mut coordinator = Assembled::start().await;
    let request = admin::CreateApiKeyRequest {
        name: "short".into(),
        role: admin::ApiKeyRole::ReadOnly.into(),
        ttl_seconds: 1,
        ..Default::default()
    };
    let made = coordinator.operator.keys.create_api_key(request).await.unwrap().into_inner();
    let channel = connect(coordinator.address).await.unwrap().channel;
    let mut events = admin::event_service_client::EventServiceClient::new(channel);
    let request = with_bearer(admin::WatchEventsRequest::default(), Some(&made.secret));
    let mut told = events.watch_events(request).await.unwrap().into_inner();
    live(&mut told).await;
    // By now the coordinator waits for the end of the key, by a clock that goes on by itself.
    let quiet = tokio::time::timeout(Duration::from_millis(500), told.message()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    coordinator.advance(Duration::from_secs(1));
    let end = tokio::time::timeout(Duration::from_secs(10), told.message()).await.unwrap().unwrap_err();
    assert_eq!((end.code(), reason(&end)), (Code::Unauthenticated, Reason::CredentialExpired));
}
