//! Requests that name themselves, made again: after a lost answer, a restart, or at the same moment.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use ringmesh_controlplane::{
    server::Limits,
    store::{Store, sqlite::SqliteStore},
};
use ringmesh_proto::{admin, control::Reason};
use ringmesh_tunnel::key::IdentitySecret;
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::{
    access::with_bearer,
    client::{connect, reason},
    events::all,
    harness::{Assembled, Operator, Running},
    policy::{ALL, ssh_to_b},
};

fn token_request(id: &str) -> admin::CreateTokenRequest {
    admin::CreateTokenRequest { tags: vec!["web".into()], request_id: id.into(), ..Default::default() }
}

async fn create_token(
    operator: &mut Operator,
    request: admin::CreateTokenRequest,
) -> Result<admin::CreateTokenResponse, Status> {
    operator.tokens.create_token(request).await.map(tonic::Response::into_inner)
}

fn device_request(name: &str, id: &str) -> admin::AddStockDeviceRequest {
    admin::AddStockDeviceRequest {
        name: name.into(),
        public_key: IdentitySecret::generate().public_key().noise_key().to_string(),
        request_id: id.into(),
        ..Default::default()
    }
}

/// Makes every request that changes something, each under an id of its own, and gives what was answered.
struct Everything {
    device: admin::AddStockDeviceRequest,
    token: String,
    key: String,
}

impl Everything {
    async fn prepare(operator: &mut Operator) -> Self {
        let token = create_token(operator, admin::CreateTokenRequest::default()).await.unwrap();
        let request = admin::CreateApiKeyRequest {
            name: "old".into(),
            role: admin::ApiKeyRole::ReadOnly.into(),
            ..Default::default()
        };
        let key = operator.keys.create_api_key(request).await.unwrap().into_inner();
        Self {
            device: device_request("phone", "device"),
            token: token.token.unwrap().id,
            key: key.key.unwrap().id,
        }
    }

    async fn ask(&self, operator: &mut Operator) -> Vec<String> {
        let mut answers = Vec::new();
        let network = |mut network: admin::Network| {
            // How far the store is has nothing to do with the request.
            network.revision = 0;
            network
        };
        let request = admin::CreateNetworkRequest {
            name: "lab".into(),
            request_id: "network".into(),
            ..Default::default()
        };
        let made = operator.networks.create_network(request).await.unwrap().into_inner();
        answers.push(format!("{:?}", network(made.network.unwrap())));
        let request = admin::AddStockDeviceRequest { network: "mesh".into(), ..self.device.clone() };
        answers.push(format!("{:?}", operator.nodes.add_stock_device(request).await.unwrap().into_inner()));
        let request = admin::CreateTokenRequest { network: "mesh".into(), ..token_request("token") };
        answers.push(format!("{:?}", create_token(operator, request).await.unwrap()));
        let request = admin::RevokeTokenRequest {
            network: "mesh".into(),
            id: self.token.clone(),
            request_id: "revoke-token".into(),
        };
        answers.push(format!("{:?}", operator.tokens.revoke_token(request).await.unwrap().into_inner()));
        for (id, text) in
            [("first", ssh_to_b(&["phone"]).replace("\"b\"", "\"phone\"")), ("second", ALL.into())]
        {
            let request = admin::ApplyPolicyRequest {
                network: "mesh".into(),
                text,
                request_id: id.into(),
                ..Default::default()
            };
            answers.push(format!("{:?}", operator.policy.apply_policy(request).await.unwrap().into_inner()));
        }
        let request = admin::RollbackPolicyRequest {
            network: "mesh".into(),
            request_id: "back".into(),
            ..Default::default()
        };
        answers.push(format!("{:?}", operator.policy.rollback_policy(request).await.unwrap().into_inner()));
        let request = admin::RemoveNodeRequest {
            network: "mesh".into(),
            node: "phone".into(),
            request_id: "remove".into(),
            ..Default::default()
        };
        answers.push(format!("{:?}", operator.nodes.remove_node(request).await.unwrap().into_inner()));
        let request = admin::CreateApiKeyRequest {
            name: "ci".into(),
            role: admin::ApiKeyRole::Operator.into(),
            network: "lab".into(),
            request_id: "key".into(),
            ..Default::default()
        };
        answers.push(format!("{:?}", operator.keys.create_api_key(request).await.unwrap().into_inner()));
        let request = admin::RevokeApiKeyRequest { id: self.key.clone(), request_id: "revoke-key".into() };
        answers.push(format!("{:?}", operator.keys.revoke_api_key(request).await.unwrap().into_inner()));
        answers
    }
}

#[tokio::test]
async fn every_request_that_changes_something_is_done_once_and_answered_as_the_first_time() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    let everything = Everything::prepare(&mut operator).await;
    let first = everything.ask(&mut operator).await;
    let told = all(&mut operator).await;
    // The device is gone, the policy another, the token revoked: a repeat is answered all the same, and changes nothing.
    assert_eq!(everything.ask(&mut operator).await, first);
    assert_eq!(all(&mut operator).await, told);
    let directory = coordinator.stop().await;
    let coordinator = Running::start_in(directory, |_| {}).await;
    let mut operator = coordinator.operator().await;
    assert_eq!(everything.ask(&mut operator).await, first);
    assert_eq!(all(&mut operator).await, told);
    let named: BTreeSet<&str> =
        told.iter().map(|event| &*event.request_id).filter(|id| !id.is_empty()).collect();
    assert_eq!(named.len(), 10, "each is in the event that it made: {named:?}");
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_at_once_with_one_id_make_one_token() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    let mut asking = JoinSet::new();
    for _ in 0..100 {
        let mut operator = coordinator.operator().await;
        asking.spawn(async move { create_token(&mut operator, token_request("one")).await.unwrap() });
    }
    let answers = asking.join_all().await;
    assert!(answers.iter().all(|answer| *answer == answers[0]), "one secret for all");
    let listed = operator.tokens.list_tokens(admin::ListTokensRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.tokens, [answers[0].token.clone().unwrap()]);
    let made = all(&mut operator).await.into_iter().filter(|event| event.name == "token_created");
    assert_eq!(made.map(|event| event.request_id).collect::<Vec<_>>(), ["one"]);
    // Without an id, each is another one.
    let free = [
        create_token(&mut operator, token_request("")).await,
        create_token(&mut operator, token_request("")).await,
    ];
    assert_ne!(free[0].as_ref().unwrap().secret, free[1].as_ref().unwrap().secret);
    coordinator.stop().await;
}

#[tokio::test]
async fn an_id_is_for_one_request_of_one_caller() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    let first = create_token(&mut operator, token_request("one")).await.unwrap();
    let other = admin::CreateTokenRequest { max_uses: 7, ..token_request("one") };
    let revoke = admin::RevokeTokenRequest {
        id: first.token.as_ref().unwrap().id.clone(),
        request_id: "one".into(),
        ..Default::default()
    };
    let refused = [
        create_token(&mut operator, other.clone()).await.unwrap_err(),
        operator.tokens.revoke_token(revoke).await.unwrap_err(),
    ];
    for refused in refused {
        assert_eq!(
            (refused.code(), reason(&refused)),
            (Code::AlreadyExists, Reason::RequestIdReused),
            "{refused}"
        );
    }
    // Another caller knows nothing of it.
    let request = admin::CreateApiKeyRequest {
        name: "ci".into(),
        role: admin::ApiKeyRole::Operator.into(),
        ..Default::default()
    };
    let secret = operator.keys.create_api_key(request).await.unwrap().into_inner().secret;
    let channel = connect(coordinator.ready.address).await.unwrap().channel;
    let mut over_the_network = admin::token_service_client::TokenServiceClient::new(channel);
    let mut by_key = async |request| {
        over_the_network
            .create_token(with_bearer(request, Some(&secret)))
            .await
            .map(tonic::Response::into_inner)
    };
    let second = by_key(other.clone()).await.unwrap();
    assert_ne!(second.secret, first.secret);
    assert_eq!(by_key(other).await.unwrap(), second);
    assert_eq!(reason(&by_key(token_request("one")).await.unwrap_err()), Reason::RequestIdReused);
    assert_eq!(create_token(&mut operator, token_request("one")).await.unwrap(), first);

    for bad in ["a b".to_owned(), "x".repeat(65), "é".into()] {
        let refused = create_token(&mut operator, token_request(&bad)).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused)), (Code::InvalidArgument, Reason::InvalidArgument));
        assert!(refused.message().contains("request_id"), "{refused}");
    }
    coordinator.stop().await;
}

#[tokio::test]
async fn a_request_that_was_refused_may_be_made_again() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    let remove = || admin::RemoveNodeRequest {
        node: "phone".into(),
        request_id: "remove".into(),
        ..Default::default()
    };
    assert_eq!(reason(&operator.nodes.remove_node(remove()).await.unwrap_err()), Reason::NodeUnknown);
    operator.nodes.add_stock_device(device_request("phone", "")).await.unwrap();
    let removed = operator.nodes.remove_node(remove()).await.unwrap().into_inner();
    // A device that is called the same is not removed by a repeat.
    operator.nodes.add_stock_device(device_request("phone", "")).await.unwrap();
    assert_eq!(operator.nodes.remove_node(remove()).await.unwrap().into_inner(), removed);
    assert_eq!(operator.list().await.len(), 1);
    coordinator.stop().await;
}

#[tokio::test]
async fn a_policy_that_changed_nothing_is_not_applied_by_a_late_repeat() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    coordinator.member("b").await;
    let apply = |text: &str, id: &str| admin::ApplyPolicyRequest {
        text: text.into(),
        request_id: id.into(),
        ..Default::default()
    };
    let first = operator.policy.apply_policy(apply(ALL, "")).await.unwrap().into_inner();
    let same = operator.policy.apply_policy(apply(ALL, "same")).await.unwrap().into_inner();
    assert_eq!((same.changed, same.revision), (false, first.revision));
    let other = operator.policy.apply_policy(apply(&ssh_to_b(&["b"]), "")).await.unwrap().into_inner();
    assert_eq!(operator.policy.apply_policy(apply(ALL, "same")).await.unwrap().into_inner(), same);
    let request = admin::GetPolicyRequest::default();
    let in_force = operator.policy.get_policy(request).await.unwrap().into_inner();
    assert_eq!(in_force.revision, other.revision);
    coordinator.stop().await;
}

#[tokio::test]
async fn a_request_is_remembered_for_a_day() {
    let mut coordinator = Assembled::start().await;
    let first = create_token(&mut coordinator.operator, token_request("one")).await.unwrap();
    coordinator.advance(Duration::from_secs(24 * 3600 - 1));
    assert_eq!(create_token(&mut coordinator.operator, token_request("one")).await.unwrap(), first);
    // Maintenance forgets none before its time.
    coordinator.coordinator.maintain().await.unwrap();
    assert_eq!(create_token(&mut coordinator.operator, token_request("one")).await.unwrap(), first);
    coordinator.advance(Duration::from_secs(1));
    let second = create_token(&mut coordinator.operator, token_request("one")).await.unwrap();
    assert_ne!(second.secret, first.secret);
    coordinator.advance(Duration::from_secs(24 * 3600));
    coordinator.coordinator.maintain().await.unwrap();
    let other = admin::CreateTokenRequest { max_uses: 3, ..token_request("one") };
    create_token(&mut coordinator.operator, other).await.expect("the id is free");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_coordinators_of_one_store_do_a_request_once() {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(directory.path()).unwrap());
    let first = Assembled::start_on(store.clone(), directory.clone(), Limits::default()).await;
    let second = Assembled::start_on(store, directory, Limits::default()).await;
    for round in 0..5 {
        let id = format!("round-{round}");
        let mut asking = JoinSet::new();
        for operator in [&first.operator, &second.operator].into_iter().cycle().take(20) {
            let (mut operator, id) = (operator.clone(), id.clone());
            asking.spawn(async move { create_token(&mut operator, token_request(&id)).await.unwrap() });
        }
        let answers = asking.join_all().await;
        assert!(answers.iter().all(|answer| *answer == answers[0]), "one secret for all");
    }
    // Changes without an id, at both at once: each is told once, in the order of revisions.
    let mut asking = JoinSet::new();
    for operator in [&first.operator, &second.operator].into_iter().cycle().take(20) {
        let mut operator = operator.clone();
        asking.spawn(async move { create_token(&mut operator, token_request("")).await.unwrap() });
    }
    asking.join_all().await;
    let mut operators = [first.operator.clone(), second.operator.clone()];
    let told = all(&mut operators[0]).await;
    assert_eq!(told.iter().filter(|event| event.name == "token_created").count(), 25);
    assert!(told.windows(2).all(|pair| pair[0].revision < pair[1].revision), "{told:#?}");
    assert_eq!(all(&mut operators[1]).await, told);
}
