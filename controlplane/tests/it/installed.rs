//! Who has a revision in its data plane: real streams, of nodes that acknowledge, that do not, and that are away.

use ringmesh_proto::{
    admin,
    control::{Reason, sync_response},
};

use crate::{
    client::{MapStream, TestNode, reason},
    harness::{Operator, Running},
    policy::{ALL, apply, apply_as, ssh_to_b},
};

/// Reads a stream and acknowledges every update, until it ends.
fn acknowledging(mut node: TestNode, mut stream: MapStream) -> tokio::task::JoinHandle<TestNode> {
    tokio::spawn(async move {
        loop {
            match stream.next().await {
                Ok(sync_response::Message::Update(update)) => {
                    let update = crate::client::map_update(update);
                    stream.acknowledge(update.position.durable).await;
                    node.map = Some(node.verify(update).unwrap());
                }
                Ok(_) => {}
                Err(_) => return node,
            }
        }
    })
}

async fn wait(operator: &mut Operator, revision: u64, wait_ms: u32) -> admin::WaitInstalledResponse {
    let request = admin::WaitInstalledRequest { revision, wait_ms, ..Default::default() };
    operator.nodes.wait_installed(request).await.unwrap().into_inner()
}

fn sorted(response: &admin::WaitInstalledResponse) -> (Vec<&str>, Vec<(&str, bool)>) {
    let mut installed: Vec<&str> = response.installed.iter().map(String::as_str).collect();
    installed.sort_unstable();
    let mut behind: Vec<_> = response.behind.iter().map(|node| (node.name.as_str(), node.online)).collect();
    behind.sort_unstable();
    (installed, behind)
}

#[tokio::test]
async fn a_node_that_does_not_acknowledge_is_behind_and_online_and_one_without_a_stream_offline() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    let (mut a, mut b) = (coordinator.member("a").await, coordinator.member("b").await);
    coordinator.member("away").await;
    let stock = admin::AddStockDeviceRequest {
        name: "phone".into(),
        public_key: ringmesh_tunnel::key::IdentitySecret::generate().public_key().noise_key().to_string(),
        ..Default::default()
    };
    operator.nodes.add_stock_device(stock).await.unwrap();
    let to_a = a.sync().await.unwrap();
    let mut to_b = b.sync().await.unwrap();
    let before = b.update(&mut to_b).await.position.durable;
    to_b.acknowledge(before).await;
    let following = acknowledging(a, to_a);

    // b reads what it is told and says nothing.
    let request = admin::ApplyPolicyRequest { text: ssh_to_b(&["a"]), wait_ms: 300, ..Default::default() };
    let applied = apply_as(&mut operator, request).await.unwrap();
    let installation = applied.installation.as_ref().unwrap();
    assert_eq!(installation.revision, applied.revision);
    assert_eq!(sorted(installation), (vec!["a"], vec![("away", false), ("b", true)]));
    assert!(installation.waited_ms >= 300, "{installation:?}");
    // What it acknowledged before is not this; nor is what it was never sent.
    let durable = loop {
        let update = b.update(&mut to_b).await;
        if b.map.as_ref().unwrap().policy().unwrap().serial == 2 {
            break update.position.durable;
        }
        to_b.acknowledge(update.position.durable).await;
    };
    let now = wait(&mut operator, applied.revision, 0).await;
    assert_eq!(sorted(&now), (vec!["a"], vec![("away", false), ("b", true)]));
    // It catches up while somebody waits.
    let mut waiting = operator.clone();
    let waiter = tokio::spawn(async move { wait(&mut waiting, applied.revision, 8000).await });
    to_b.acknowledge(durable).await;
    let reached = waiter.await.unwrap();
    assert_eq!(
        sorted(&reached),
        (vec!["a", "b"], vec![("away", false)]),
        "nobody waits for the one that is away"
    );
    assert!(reached.waited_ms < 8000);
    // Its stream ends: it is behind, whatever it had, and nobody waits for it.
    drop(to_b);
    while operator.node("b").await.online {
        tokio::task::yield_now().await;
    }
    let gone = wait(&mut operator, applied.revision, 8000).await;
    assert_eq!(sorted(&gone), (vec!["a"], vec![("away", false), ("b", false)]));
    assert!(gone.waited_ms < 8000);
    coordinator.stop().await;
    drop(following.await);
}

#[tokio::test]
async fn what_does_not_concern_a_node_is_installed_there_without_a_word() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    let (a, b) = (coordinator.member("a").await, coordinator.member("b").await);
    let mut following = Vec::new();
    for mut node in [a, b] {
        let stream = node.sync().await.unwrap();
        following.push(acknowledging(node, stream));
    }
    apply(&mut operator, &ssh_to_b(&["a"])).await.unwrap();
    // A node that nobody of them sees, and that is no business of theirs.
    coordinator.member("stranger").await;
    let newest = wait(&mut operator, 0, 8000).await;
    assert_eq!(sorted(&newest), (vec!["a", "b"], vec![("stranger", false)]));
    let list = operator.nodes.list_nodes(admin::ListNodesRequest::default()).await.unwrap().into_inner();
    assert_eq!(newest.revision, list.revision, "0 is the newest");
    // A policy signed anew is everybody's business, as its proofs are others.
    let request = admin::ApplyPolicyRequest { text: ALL.into(), wait_ms: 8000, ..Default::default() };
    let applied = apply_as(&mut operator, request).await.unwrap();
    assert_eq!(sorted(applied.installation.as_ref().unwrap()).0, ["a", "b"]);
    // The same again is installed already, and not waited for unless asked.
    let again = apply(&mut operator, ALL).await.unwrap();
    assert!(!again.changed && again.installation.is_none());
    let refused = operator
        .nodes
        .wait_installed(admin::WaitInstalledRequest {
            revision: newest.revision + 1000,
            ..Default::default()
        })
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), Reason::InvalidArgument, "{refused}");
    coordinator.stop().await;
}

#[tokio::test]
async fn the_coordinators_own_relay_is_not_counted() {
    let coordinator = Running::start_with_relay().await;
    let mut operator = coordinator.operator().await;
    let mut a = coordinator.member("a").await;
    let stream = a.sync().await.unwrap();
    let _following = acknowledging(a, stream);
    let request = admin::ApplyPolicyRequest {
        text: "# nothing is allowed".into(),
        wait_ms: 8000,
        ..Default::default()
    };
    let applied = apply_as(&mut operator, request).await.unwrap();
    assert_eq!(sorted(applied.installation.as_ref().unwrap()), (vec!["a"], vec![]));
    coordinator.stop().await;
}

/// Prints how long it takes until fifty streams acknowledged a policy, in a process that serves and reads them all.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a figure for a quiet machine, not a check"]
async fn how_long_fifty_nodes_take_to_acknowledge_a_policy() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    for number in 0..50 {
        let mut node = coordinator.member(&format!("n{number}")).await;
        let stream = node.sync().await.unwrap();
        drop(acknowledging(node, stream));
    }
    let names: Vec<String> = (0..50).map(|number| format!("n{number}")).collect();
    let mut waited = Vec::new();
    for round in 0..100 {
        let rules: String = (0..100)
            .map(|rule| {
                format!(
                    "[[allow]]\nfrom = [\"group:g\"]\nto = [\"n{}\"]\nprotocol = \"tcp\"\nports = [{}]\n",
                    rule % 50,
                    rule + 1
                )
            })
            .collect();
        let text = format!("[groups]\ng = {:?}\n{rules}", &names[round % 2..]);
        let request = admin::ApplyPolicyRequest { text, wait_ms: 8000, ..Default::default() };
        let applied = apply_as(&mut operator, request).await.unwrap();
        let installation = applied.installation.unwrap();
        assert_eq!(installation.installed.len(), 50, "{:?}", installation.behind);
        waited.push(installation.waited_ms);
    }
    waited.sort_unstable();
    println!("50 nodes, 100 rules, 100 applies: median {} ms, p99 {} ms", waited[50], waited[98]);
    coordinator.stop().await;
}
