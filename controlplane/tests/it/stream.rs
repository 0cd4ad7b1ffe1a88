//! The map stream: full maps, deltas, acknowledgements, endings.

use std::time::Duration;

use ringmesh_proto::{
    admin,
    control::{self as proto, Reason, sync_request, sync_response},
};
use ringmesh_tunnel::{
    enroll::seal::{Context, Purpose, open_secret},
    key::{IdentitySecret, Label},
    netmap::{NetworkMap, Rule, Selector},
};
use tonic::{Code, Status};

use crate::{
    client::{Lie, MapStream, TestNode, reason},
    harness::{Assembled, Running},
};

fn names(map: &NetworkMap) -> Vec<String> {
    let mut names: Vec<String> = map.members().map(|member| member.name.clone()).collect();
    names.sort();
    names
}

/// Runs a stream until `enough` of the map.
async fn until(node: &mut TestNode, stream: &mut MapStream, enough: impl Fn(&NetworkMap) -> bool) {
    while !node.map.as_ref().is_some_and(&enough) {
        node.step(stream).await.unwrap();
    }
}

/// The status with which a stream ends.
async fn ending(stream: &mut MapStream) -> Status {
    loop {
        if let Err(status) = stream.next().await {
            return status;
        }
    }
}

#[tokio::test]
async fn a_node_gets_the_whole_map_and_then_only_what_changes() {
    let coordinator = Running::start().await;
    let mut a = coordinator.member("a").await;
    let mut stream = a.sync().await.unwrap();
    let first = a.update(&mut stream).await;
    assert!(first.full);
    assert_eq!(names(a.map.as_ref().unwrap()), ["a"]);
    let everybody = Rule {
        sources: vec![Selector::All],
        destinations: vec![Selector::All],
        protocol: ringmesh_tunnel::netmap::Protocol::Any,
        ports: vec![],
    };
    assert_eq!(a.map.as_ref().unwrap().rules(a.now()).collect::<Vec<_>>(), [&everybody]);

    let b = coordinator.member("b").await;
    let second = a.update(&mut stream).await;
    assert!(!second.full);
    assert_eq!((second.members.len(), second.removed.len(), second.rules.len()), (1, 0, 0));
    assert_eq!(names(a.map.as_ref().unwrap()), ["a", "b"]);
    assert!(second.position.durable > first.position.durable);

    coordinator.operator().await.remove("b").await;
    let third = a.update(&mut stream).await;
    assert_eq!((third.full, third.members.len(), third.removed), (false, 0, vec![b.id]));
    assert_eq!(names(a.map.as_ref().unwrap()), ["a"]);
    coordinator.stop().await;
}

#[tokio::test]
async fn endpoints_reach_the_peers_and_are_never_stored() {
    let coordinator = Running::start().await;
    let mut a = coordinator.member("a").await;
    let mut b = coordinator.member("b").await;
    let (mut to_a, mut to_b) = (a.sync().await.unwrap(), b.sync().await.unwrap());
    a.update(&mut to_a).await;
    b.update(&mut to_b).await;
    let before =
        coordinator.operator().await.nodes.list_nodes(admin::ListNodesRequest::default()).await.unwrap();
    let revision = before.into_inner().revision;

    to_a.tell(&a.record(4711)).await;
    until(&mut b, &mut to_b, |map| map.node_record(a.id).is_some()).await;
    assert_eq!(b.map.as_ref().unwrap().node_record(a.id).unwrap().endpoints[0].port(), 4711);
    // A flood of them is merged into the newest.
    for port in 1..=50_u16 {
        to_a.tell(&a.record_at(port, a.now().as_millis() + u64::from(port), a.now())).await;
    }
    until(&mut b, &mut to_b, |map| map.node_record(a.id).unwrap().endpoints[0].port() == 50).await;

    let mut operator = coordinator.operator().await;
    assert_eq!(operator.node("a").await.endpoints, ["192.0.2.1:50"]);
    let after = operator.nodes.list_nodes(admin::ListNodesRequest::default()).await.unwrap().into_inner();
    assert_eq!(after.revision, revision);
    coordinator.stop().await;
}

/// The peers never see a refused record, and the node gets its map all the same: with a wrong clock it sends one on every
/// stream.
#[tokio::test]
async fn a_refused_node_record_reaches_nobody_and_does_not_end_the_stream() {
    let mut coordinator = Assembled::start().await;
    let mut a = coordinator.member("a").await;
    let mut b = coordinator.member("b").await;
    let mut to_b = b.sync().await.unwrap();
    b.update(&mut to_b).await;
    let now = a.now();
    let ms = now.as_millis();
    let skewed = Duration::from_secs(601);
    let mut forged = a.record(1);
    forged.payload[40] ^= 1;
    let mut other_kind = a.record(1);
    other_kind.kind = ringmesh_tunnel::netmap::Kind::Member;
    let mut impostor = TestNode::with_identity("x", IdentitySecret::from_seed(*a.identity.seed()));
    (impostor.network, impostor.id) = (a.network, b.id);
    impostor.set_time(now);
    let later = now.saturating_add(skewed);
    let at = |endpoint: &str| a.record_of(vec![endpoint.parse().unwrap()], ms, now);
    let in_the_pool = at(&format!("{}:1", a.member.as_ref().unwrap().ipv4.unwrap()));
    let in_the_other_pool = at(&format!("[{}]:1", a.member.as_ref().unwrap().ipv6));
    let bad = [
        ("flipped byte", forged),
        ("another kind", other_kind),
        ("another signer", b.record(1)),
        ("about another node", impostor.record(1)),
        ("serial below its time", a.record_at(1, ms - 1, now)),
        ("old", a.record_at(1, ms, now.saturating_sub(skewed))),
        ("of the future", a.record_at(1, later.as_millis(), later)),
        ("wild serial", a.record_at(1, u64::MAX, now)),
        ("loopback", at("127.0.0.1:22")),
        ("multicast", at("239.255.255.250:1900")),
        ("link-local", at("169.254.169.254:80")),
        ("no port", at("192.0.2.1:0")),
        ("a mesh address", in_the_pool),
        ("an IPv6 mesh address", in_the_other_pool),
    ];
    for (what, record) in bad {
        // On a stream of its own, where it would be told at once.
        let mut stream = a.sync().await.unwrap();
        let durable = a.update(&mut stream).await.position.durable;
        stream.tell(&record).await;
        // The coordinator has dealt with the record when it has dealt with what came after it.
        stream.acknowledge(durable).await;
        let mut operator = coordinator.operator.clone();
        while operator.node("a").await.installed_revision != durable {
            tokio::task::yield_now().await;
        }
        for _ in 0..3 {
            assert_eq!(operator.node("a").await.endpoints, [""; 0], "{what}");
        }
        assert!(operator.node("a").await.online, "{what}");
    }
    // On one stream: a good one, an older one, another content under the same serial, and a good one again.
    let stream = a.sync().await.unwrap();
    stream.tell(&a.record_at(7, ms + 5, now)).await;
    until(&mut b, &mut to_b, |map| map.node_record(a.id).is_some()).await;
    assert_eq!(b.map.as_ref().unwrap().node_record(a.id).unwrap().endpoints[0].port(), 7);
    stream.tell(&a.record_at(8, ms + 4, now)).await;
    stream.tell(&a.record_at(8, ms + 5, now)).await;
    stream.tell(&a.record_at(9, ms + 6, now)).await;
    until(&mut b, &mut to_b, |map| map.node_record(a.id).unwrap().endpoints[0].port() != 7).await;
    assert_eq!(b.map.as_ref().unwrap().node_record(a.id).unwrap().endpoints[0].port(), 9);
    // The same record again is welcome, after a reconnection.
    let mut stream = a.sync().await.unwrap();
    stream.tell(&a.record_at(9, ms + 6, now)).await;
    a.update(&mut stream).await;
}

#[tokio::test]
async fn a_lie_in_a_hello_is_refused() {
    let coordinator = Running::start().await;
    let mut node = coordinator.member("a").await;
    for (lie, expected) in [
        (Lie::OtherNonce, Reason::ProofInvalid),
        (Lie::OtherExporter, Reason::ProofInvalid),
        (Lie::OtherIdentity, Reason::ProofInvalid),
        (Lie::NoProof, Reason::InvalidArgument),
    ] {
        let refused = node.sync_with(lie).await.err().unwrap();
        assert_eq!(reason(&refused), expected, "{lie:?}");
    }
    let id = std::mem::replace(&mut node.id, ringmesh_tunnel::key::NodeId::from_bytes([9; 8]));
    assert_eq!(reason(&node.sync().await.err().unwrap()), Reason::NodeUnknown);
    node.id = id;
    node.sync().await.unwrap();
    coordinator.stop().await;
}

#[tokio::test]
async fn a_stock_device_has_no_stream() {
    let coordinator = Running::start().await;
    let mut node = coordinator.member("a").await;
    let key = IdentitySecret::generate();
    let request = admin::AddStockDeviceRequest {
        name: "phone".into(),
        public_key: key.public_key().noise_key().to_string(),
        ..Default::default()
    };
    let phone = coordinator
        .operator()
        .await
        .nodes
        .add_stock_device(request)
        .await
        .unwrap()
        .into_inner()
        .node
        .unwrap();
    node.id = phone.id.parse().unwrap();
    node.identity = key;
    assert_eq!(reason(&node.sync().await.err().unwrap()), Reason::ProofInvalid);
    coordinator.stop().await;
}

#[tokio::test]
async fn a_stream_begins_with_one_hello() {
    let coordinator = Running::start().await;
    let mut node = coordinator.member("a").await;
    let mut stream = node.sync().await.unwrap();
    stream.say(sync_request::Message::Hello(proto::Hello::default())).await;
    assert_eq!(reason(&ending(&mut stream).await), Reason::InvalidArgument);
    let (sender, requests) = tokio::sync::mpsc::channel(1);
    let first = sync_request::Message::Acknowledgement(proto::Acknowledgement { durable: 1 });
    sender.send(crate::client::request(first)).await.unwrap();
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let refused = stream.connection.control.sync(requests).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::InvalidArgument);
    coordinator.stop().await;
}

#[tokio::test]
async fn a_removed_nodes_stream_ends_and_its_key_is_refused_for_good() {
    let coordinator = Running::start().await;
    let mut gone = coordinator.member("gone").await;
    let mut stays = coordinator.member("stays").await;
    let (mut to_gone, mut to_stays) = (gone.sync().await.unwrap(), stays.sync().await.unwrap());
    gone.update(&mut to_gone).await;
    stays.update(&mut to_stays).await;
    let session = to_gone.session.clone();
    coordinator.operator().await.remove(&gone.id.to_string()).await;

    let end = ending(&mut to_gone).await;
    assert_eq!((reason(&end), end.code()), (Reason::NodeRemoved, Code::PermissionDenied));
    assert_eq!(reason(&gone.sync().await.err().unwrap()), Reason::NodeRemoved);
    let report = proto::ReportRequest { session, ..Default::default() };
    assert_eq!(reason(&to_gone.connection.control.report(report).await.unwrap_err()), Reason::ProofInvalid);
    assert_eq!(reason(&gone.join(&coordinator.token().await).await.unwrap_err()), Reason::KeyTaken);
    // Only whoever holds the key hears that the node was removed.
    assert_eq!(reason(&gone.sync_with(Lie::OtherIdentity).await.err().unwrap()), Reason::ProofInvalid);

    // Those who stay begin a new epoch of the network's secret, and keep the last one for the change-over.
    let (old, update) = (stays.secrets.clone(), stays.update(&mut to_stays).await);
    assert_eq!(update.removed, [gone.id]);
    assert_eq!(stays.secrets.iter().map(|(epoch, _)| *epoch).collect::<Vec<_>>(), [2, 1]);
    assert!(stays.secrets[1].1 == old[0].1 && stays.secrets[0].1 != old[0].1);
    coordinator.stop().await;
}

#[tokio::test]
async fn a_removal_waits_for_the_nodes_that_are_online_and_names_those_behind() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    let mut a = coordinator.member("a").await;
    let mut b = coordinator.member("b").await;
    for name in ["away", "gone", "gone2"] {
        coordinator.member(name).await;
    }
    let (mut to_a, mut to_b) = (a.sync().await.unwrap(), b.sync().await.unwrap());
    a.update(&mut to_a).await;
    b.update(&mut to_b).await;
    let remove = |node: &str, wait_ms: u32| admin::RemoveNodeRequest {
        node: node.into(),
        wait_ms,
        ..Default::default()
    };
    // One does not acknowledge.
    let mut waiting = operator.clone();
    let removal = tokio::spawn(async move { waiting.nodes.remove_node(remove("gone", 300)).await });
    let durable = a.update(&mut to_a).await.position.durable;
    to_a.acknowledge(durable).await;
    b.update(&mut to_b).await;
    let removed = removal.await.unwrap().unwrap().into_inner();
    assert_eq!(removed.installed, ["a"]);
    let mut behind: Vec<_> = removed.behind.iter().map(|node| (node.name.as_str(), node.online)).collect();
    behind.sort_unstable();
    assert_eq!(behind, [("away", false), ("b", true), ("gone2", false)]);
    assert!(removed.waited_ms >= 300, "{}", removed.waited_ms);
    // Both do: nobody waits for the one that is away.
    let removal = tokio::spawn(async move { operator.nodes.remove_node(remove("gone2", 8_000)).await });
    let durable = a.update(&mut to_a).await.position.durable;
    to_a.acknowledge(durable).await;
    let durable = b.update(&mut to_b).await.position.durable;
    to_b.acknowledge(durable).await;
    let mut removed = removal.await.unwrap().unwrap().into_inner();
    removed.installed.sort_unstable();
    assert_eq!(removed.installed, ["a", "b"]);
    assert!(removed.waited_ms < 8_000, "{}", removed.waited_ms);
    assert_eq!(removed.behind.len(), 1);
    coordinator.stop().await;
}

#[tokio::test]
async fn only_the_last_two_epochs_are_kept() {
    let coordinator = Running::start().await;
    let mut stays = coordinator.member("stays").await;
    let mut stream = stays.sync().await.unwrap();
    for name in ["x", "y", "z"] {
        coordinator.member(name).await;
        coordinator.operator().await.remove(name).await;
    }
    until(&mut stays, &mut stream, |map| map.members().count() == 1).await;
    while stays.secrets[0].0 != 4 {
        stays.step(&mut stream).await.unwrap();
    }
    assert_eq!(stays.secrets.iter().map(|(epoch, _)| *epoch).collect::<Vec<_>>(), [4, 3]);
    coordinator.stop().await;
}

#[tokio::test]
async fn removing_a_stock_device_begins_no_epoch_and_its_key_is_sealed_to_every_peer() {
    let coordinator = Running::start().await;
    let mut a = coordinator.member("a").await;
    let mut stream = a.sync().await.unwrap();
    a.update(&mut stream).await;
    let mut operator = coordinator.operator().await;
    let public_key = IdentitySecret::generate().public_key().noise_key();
    let request = admin::AddStockDeviceRequest {
        name: "phone".into(),
        public_key: public_key.to_string(),
        ..Default::default()
    };
    let added = operator.nodes.add_stock_device(request).await.unwrap().into_inner();
    let id = added.node.unwrap().id.parse().unwrap();
    let (network, key) = (a.network, a.identity.noise_secret());
    let open = |update: &proto::MapUpdate| {
        let [secret] = update.peer_secrets.as_slice() else {
            panic!("{} secrets", update.peer_secrets.len())
        };
        assert_eq!(secret.node_id, ringmesh_tunnel::key::NodeId::as_bytes(&id));
        let context = Context { network, epoch: 0, purpose: Purpose::Peer(id) };
        *open_secret(&key, context, &secret.sealed).unwrap()
    };
    let sync_response::Message::Update(update) = stream.next().await.unwrap() else { panic!() };
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    assert_eq!(STANDARD.encode(open(&update)), added.preshared_key);
    assert!(update.secrets.is_empty());
    // A full map has it, too.
    a.map = None;
    let mut stream = a.sync().await.unwrap();
    let sync_response::Message::Update(update) = stream.next().await.unwrap() else { panic!() };
    assert_eq!(STANDARD.encode(open(&update)), added.preshared_key);
    assert_eq!(update.secrets.len(), 1);

    operator.remove("phone").await;
    let sync_response::Message::Update(update) = stream.next().await.unwrap() else { panic!() };
    assert_eq!((update.removed.len(), update.secrets.len()), (1, 0));
    coordinator.stop().await;
}

#[tokio::test]
async fn a_node_resumes_from_its_position_with_what_it_missed() {
    let coordinator = Running::start().await;
    let mut a = coordinator.member("a").await;
    let mut stream = a.sync().await.unwrap();
    a.update(&mut stream).await;
    drop(stream);
    coordinator.member("b").await;
    coordinator.member("c").await;
    coordinator.operator().await.remove("b").await;
    let mut stream = a.sync().await.unwrap();
    let missed = a.update(&mut stream).await;
    assert!(!missed.full);
    assert_eq!(
        (missed.members.len(), missed.removed.len()),
        (1, 0),
        "one merged delta, without who came and went"
    );
    assert_eq!(names(a.map.as_ref().unwrap()), ["a", "c"]);

    // Nothing missed: the map is vouched for, and nothing is sent again.
    drop(stream);
    let mut stream = a.sync().await.unwrap();
    let nothing = a.update(&mut stream).await;
    assert_eq!((nothing.full, nothing.members.len(), nothing.node_records.len()), (false, 0, 0));
    assert_eq!((nothing.certificates.len(), nothing.policy), (0, None));

    // Another digest, or a position of another process: everything.
    drop(stream);
    let map = a.map.take();
    let mut stream = a.sync().await.unwrap();
    assert!(a.update(&mut stream).await.full);
    let directory = coordinator.stop().await;
    let coordinator = Running::start_in(directory, |_| {}).await;
    a.map = map;
    a.address = Some(coordinator.ready.address);
    let mut stream = a.sync().await.unwrap();
    assert!(a.update(&mut stream).await.full);
    assert_eq!(names(a.map.as_ref().unwrap()), ["a", "c"]);
    coordinator.stop().await;
}

#[tokio::test]
async fn a_node_that_lost_its_secrets_gets_them_again_beside_a_delta() {
    let coordinator = Running::start().await;
    let mut a = coordinator.member("a").await;
    let mut stream = a.sync().await.unwrap();
    a.update(&mut stream).await;
    let mut operator = coordinator.operator().await;
    let request = admin::AddStockDeviceRequest {
        name: "phone".into(),
        public_key: IdentitySecret::generate().public_key().noise_key().to_string(),
        ..Default::default()
    };
    operator.nodes.add_stock_device(request).await.unwrap();
    a.update(&mut stream).await;
    let held = a.secrets_digest();

    let next_update = async |node: &mut TestNode| {
        let mut stream = node.sync().await.unwrap();
        let sync_response::Message::Update(update) = stream.next().await.unwrap() else { panic!() };
        (update.full, update.secrets.len(), update.peer_secrets.len())
    };
    assert_eq!(next_update(&mut a).await, (false, 0, 0), "who has them does not get them again");
    // Nothing of the map changed; the network's secret is lost, then the device's key, then both are and more was missed.
    let secrets = std::mem::take(&mut a.secrets);
    assert_eq!(next_update(&mut a).await, (false, 1, 1));
    a.secrets = secrets;
    let keys = std::mem::take(&mut a.peer_secrets);
    assert_eq!(next_update(&mut a).await, (false, 1, 1));
    a.peer_secrets = keys;
    assert_eq!(next_update(&mut a).await, (false, 0, 0));
    a.secrets.clear();
    a.peer_secrets.clear();
    coordinator.member("b").await;
    let mut stream = a.sync().await.unwrap();
    let update = a.update(&mut stream).await;
    assert_eq!((update.full, update.members.len()), (false, 1));
    assert_eq!(a.secrets_digest(), held);
    coordinator.stop().await;
}

#[tokio::test]
async fn a_position_with_another_digest_gets_the_whole_map() {
    let coordinator = Running::start().await;
    let mut a = coordinator.member("a").await;
    let mut stream = a.sync().await.unwrap();
    a.update(&mut stream).await;
    let older = a.map.clone();
    coordinator.member("c").await;
    a.update(&mut stream).await;
    a.claimed = a.map.as_ref().unwrap().position();
    a.map = older;
    let mut stream = a.sync().await.unwrap();
    assert!(a.update(&mut stream).await.full);
    coordinator.stop().await;
}

/// The test's client grants a stream 64 KiB: far less than what changes while the node does not read.
#[tokio::test]
async fn a_node_that_does_not_read_gets_one_merged_delta_in_the_end() {
    let coordinator = Running::start().await;
    let mut slow = coordinator.member("slow").await;
    let mut stream = slow.sync().await.unwrap();
    slow.update(&mut stream).await;
    let mut operator = coordinator.operator().await;
    for i in 0..200 {
        let request = admin::AddStockDeviceRequest {
            name: format!("phone-{i}"),
            public_key: IdentitySecret::generate().public_key().noise_key().to_string(),
            ..Default::default()
        };
        operator.nodes.add_stock_device(request).await.unwrap();
        if i % 2 == 0 {
            operator.remove(&format!("phone-{i}")).await;
        }
    }
    let mut position = slow.map.as_ref().unwrap().position().unwrap().durable;
    let (mut updates, mut longest) = (0, 0);
    while slow.map.as_ref().unwrap().members().count() != 101 {
        let next = slow.update(&mut stream).await.position.durable;
        longest = longest.max(next - position);
        position = next;
        updates += 1;
    }
    assert!(longest > 50 && updates < 250, "{updates} updates, the longest of {longest} revisions");
    coordinator.stop().await;
}

#[tokio::test]
async fn a_change_that_does_not_touch_a_node_counts_as_installed() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    let mut a = coordinator.member("a").await;
    let mut stream = a.sync().await.unwrap();
    let update = a.update(&mut stream).await;
    assert_eq!(operator.node("a").await.installed_revision, 0);
    assert!(operator.node("a").await.online);
    stream.acknowledge(update.position.durable + 1000).await;
    let mut installed = 0;
    while installed == 0 {
        tokio::task::yield_now().await;
        installed = operator.node("a").await.installed_revision;
    }
    assert_eq!(installed, update.position.durable, "what was not sent cannot be installed");
    // A token concerns no node's map.
    let token = operator.token(admin::CreateTokenRequest::default()).await;
    let revision =
        operator.nodes.list_nodes(admin::ListNodesRequest::default()).await.unwrap().into_inner().revision;
    assert!(revision > installed);
    while operator.node("a").await.installed_revision != revision {
        tokio::task::yield_now().await;
    }
    // A new peer does, until it is acknowledged.
    TestNode::new("b").join(&token).await.unwrap();
    let update = a.update(&mut stream).await;
    assert_eq!(operator.node("a").await.installed_revision, installed);
    stream.acknowledge(update.position.durable).await;
    while operator.node("a").await.installed_revision < update.position.durable {
        tokio::task::yield_now().await;
    }
    coordinator.stop().await;
}

#[tokio::test]
async fn heartbeats_renew_the_head_and_a_silent_node_is_let_go() {
    let coordinator = Running::start_with(|config| config.heartbeat_seconds = 1).await;
    let mut a = coordinator.member("a").await;
    let mut stream = a.sync().await.unwrap();
    assert_eq!(stream.heartbeat_seconds, 1);
    a.update(&mut stream).await;
    let first = a.map.as_ref().unwrap().head().unwrap().time;
    assert!(a.step(&mut stream).await.unwrap().is_none());
    let second = a.map.as_ref().unwrap().head().unwrap().time;
    assert!(second > first);
    // Three heartbeats without a word from the node.
    let end = ending(&mut stream).await;
    assert_eq!(reason(&end), Reason::NoReply);
    assert!(!coordinator.operator().await.node("a").await.online);

    // With one word in each, it stays.
    let mut stream = a.sync().await.unwrap();
    for _ in 0..5 {
        a.step(&mut stream).await.unwrap();
        stream.say(sync_request::Message::Heartbeat(proto::Heartbeat {})).await;
    }
    assert!(coordinator.operator().await.node("a").await.online);
    coordinator.stop().await;
}

#[tokio::test]
async fn a_second_stream_of_a_node_takes_over() {
    let coordinator = Running::start().await;
    let mut a = coordinator.member("a").await;
    let mut first = a.sync().await.unwrap();
    let mut second = a.sync().await.unwrap();
    let end = ending(&mut first).await;
    assert_eq!((reason(&end), end.code()), (Reason::Conflict, Code::Aborted));
    a.update(&mut second).await;
    let report =
        |session: &[u8]| proto::ReportRequest { session: session.to_vec(), back_end: "uring".into() };
    let old = first.connection.control.report(report(&first.session)).await.unwrap_err();
    assert_eq!(reason(&old), Reason::ProofInvalid);
    second.connection.control.report(report(&second.session)).await.unwrap();
    let listed = coordinator.operator().await.node("a").await;
    assert!(listed.online);
    assert_eq!(listed.back_end, "uring");
    coordinator.stop().await;
}

#[tokio::test]
async fn a_node_removes_itself_by_a_proof_of_its_key_and_by_nothing_else() {
    let coordinator = Running::start().await;
    let mut a = coordinator.member("a").await;
    let b = coordinator.member("b").await;
    let mut stream = a.sync().await.unwrap();
    let on = &mut stream.connection;
    for (lie, label, expected) in [
        (Lie::OtherNonce, Label::Leave, Reason::ProofInvalid),
        (Lie::OtherExporter, Label::Leave, Reason::ProofInvalid),
        (Lie::OtherIdentity, Label::Leave, Reason::ProofInvalid),
        (Lie::None, Label::Sync, Reason::ProofInvalid),
        (Lie::NoProof, Label::Leave, Reason::InvalidArgument),
    ] {
        let request = a.leave_request(on, lie, label).await;
        let refused = on.control.leave(request).await.unwrap_err();
        assert_eq!(reason(&refused), expected, "{lie:?} {label:?}");
    }
    let mut another = a.leave_request(on, Lie::None, Label::Leave).await;
    another.node_id = b.id.as_bytes().to_vec();
    assert_eq!(reason(&on.control.leave(another).await.unwrap_err()), Reason::ProofInvalid);
    let request = a.leave_request(on, Lie::None, Label::Leave).await;
    on.control.leave(request).await.unwrap();
    assert_eq!(reason(&ending(&mut stream).await), Reason::NodeRemoved);
    let left: Vec<String> =
        coordinator.operator().await.list().await.into_iter().map(|node| node.name).collect();
    assert_eq!(left, ["b"]);
    coordinator.stop().await;
}

#[tokio::test]
async fn streams_end_with_word_to_come_back_when_the_coordinator_stops() {
    let coordinator = Running::start().await;
    let mut a = coordinator.member("a").await;
    let mut stream = a.sync().await.unwrap();
    a.update(&mut stream).await;
    coordinator.stop().await;
    let end = ending(&mut stream).await;
    assert_eq!((reason(&end), end.code()), (Reason::Busy, Code::Unavailable));
}

#[tokio::test]
async fn records_policy_and_certificates_are_renewed_at_half_of_their_life() {
    let mut coordinator = Assembled::start().await;
    let mut a = coordinator.member("a").await;
    let mut stream = a.sync().await.unwrap();
    a.update(&mut stream).await;
    let serials = |node: &TestNode| {
        let map = node.map.as_ref().unwrap();
        let certificate = map.chain().certificates().map(|certificate| certificate.serial).max().unwrap();
        (map.me().unwrap().serial, map.policy().unwrap().serial, certificate)
    };
    let day = Duration::from_secs(24 * 3600);
    let turn = async |coordinator: &Assembled, a: &mut TestNode, by: Duration| {
        coordinator.advance(by);
        coordinator.coordinator.maintain().await.unwrap();
        a.set_time(coordinator.now());
        coordinator.coordinator.with_registry(|registry| registry.revision())
    };
    let before = turn(&coordinator, &mut a, Duration::ZERO).await;
    assert_eq!(turn(&coordinator, &mut a, day * 15).await, before, "nothing is due yet");
    turn(&coordinator, &mut a, Duration::from_secs(1)).await;
    until(&mut a, &mut stream, |map| map.me().unwrap().serial == 2 && map.policy().unwrap().serial == 2)
        .await;
    assert_eq!(serials(&a), (2, 2, 1));
    let member = a.map.as_ref().unwrap().me().unwrap();
    assert_eq!(member.not_after, a.now().saturating_add(day * 30));
    assert_eq!(member.ipv4, a.member.as_ref().unwrap().ipv4);
    // Certificates live for 360 days; records are renewed on the way, as the daemon does.
    for serial in 3..=13 {
        turn(&coordinator, &mut a, day * 16).await;
        let renewed =
            |map: &NetworkMap| map.me().unwrap().serial == serial && map.policy().unwrap().serial == serial;
        until(&mut a, &mut stream, renewed).await;
    }
    until(&mut a, &mut stream, |map| map.chain().certificates().all(|certificate| certificate.serial == 2))
        .await;
    assert_eq!(serials(&a), (13, 13, 2));
}

#[tokio::test]
async fn an_ephemeral_node_that_stays_away_is_removed() {
    let mut coordinator = Assembled::start().await;
    let request = admin::CreateTokenRequest { reusable: true, ephemeral: true, ..Default::default() };
    let token = coordinator.operator.token(request).await;
    let mut job = TestNode::new("job");
    job.set_time(coordinator.now());
    job.join(&token).await.unwrap();
    coordinator.member("server").await;
    let stream = job.sync().await.unwrap();
    let minutes = |n: u64| Duration::from_secs(n * 60);
    coordinator.advance(minutes(120));
    coordinator.coordinator.maintain().await.unwrap();
    assert_eq!(coordinator.operator.list().await.len(), 2, "it is here");
    drop(stream);
    while coordinator.operator.node("job").await.online {
        tokio::task::yield_now().await;
    }
    coordinator.advance(minutes(29));
    coordinator.coordinator.maintain().await.unwrap();
    assert_eq!(coordinator.operator.list().await.len(), 2);
    coordinator.advance(minutes(1));
    coordinator.coordinator.maintain().await.unwrap();
    let left: Vec<String> = coordinator.operator.list().await.into_iter().map(|node| node.name).collect();
    assert_eq!(left, ["server"]);
}
