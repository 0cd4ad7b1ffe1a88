//! API keys: what one sees, how they are listed, how long they hold, and what becomes of guesses.

use std::{collections::BTreeSet, time::Duration};

use ringmesh_proto::{
    admin::{self, ApiKeyRole},
    control::Reason,
};
use tonic::{Code, Status, transport::Channel};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use super::{wish, with_bearer, with_other_secret};
use crate::{
    client::{connect, reason},
    harness::{Assembled, unix_channel},
};

#[tokio::test]
async fn a_key_for_one_network_sees_that_one_and_no_other() {
    let mut coordinator = Assembled::start().await;
    let lab = admin::CreateNetworkRequest { name: "lab".into(), ..Default::default() };
    let lab = coordinator.operator.networks.create_network(lab).await.unwrap().into_inner().network.unwrap();
    let of_lab = admin::CreateApiKeyRequest { network: lab.id.clone(), ..wish("lab", ApiKeyRole::Operator) };
    let (_, key) = coordinator.key(of_lab).await;
    let channel = coordinator.channel().await;
    let mut networks = admin::network_service_client::NetworkServiceClient::new(channel.clone());
    let request = with_bearer(admin::ListNetworksRequest {}, Some(&key));
    let seen = networks.list_networks(request).await.unwrap().into_inner().networks;
    assert_eq!(seen.iter().map(|network| network.name.as_str()).collect::<Vec<_>>(), ["lab"]);

    // It is the only one, and so needs no name.
    let mut tokens = admin::token_service_client::TokenServiceClient::new(channel.clone());
    let request = with_bearer(admin::CreateTokenRequest::default(), Some(&key));
    let token = tokens.create_token(request).await.unwrap().into_inner().secret;
    assert_eq!(token.parse::<ringmesh_tunnel::enroll::JoinToken>().unwrap().network().to_string(), lab.id);
    // Another network is refused as one is that does not exist, by its name and by its id.
    let all = coordinator.operator.networks.list_networks(admin::ListNetworksRequest {}).await.unwrap();
    let other = all.into_inner().networks.into_iter().find(|network| network.name == "mesh").unwrap();
    let mut told = BTreeSet::new();
    for name in [other.name.as_str(), other.id.as_str(), "nothing"] {
        let request = admin::CreateTokenRequest { network: name.into(), ..Default::default() };
        let refused = tokens.create_token(with_bearer(request, Some(&key))).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused)), (Code::NotFound, Reason::NetworkUnknown));
        told.insert(refused.message().replace(&format!("{name:?}"), "NAME"));
    }
    assert_eq!(told.len(), 1, "{told:?}");
}

#[tokio::test]
async fn a_key_can_be_listed_and_shows_when_it_was_used() {
    let mut coordinator = Assembled::start().await;
    let (id, key) = coordinator.key(wish("ci", ApiKeyRole::ReadOnly)).await;
    let of_one = admin::CreateApiKeyRequest { network: "mesh".into(), ..wish("ci", ApiKeyRole::Operator) };
    let (other, _) = coordinator.key(of_one).await;
    coordinator.advance(Duration::from_secs(5));
    let mut nodes = admin::node_service_client::NodeServiceClient::new(coordinator.channel().await);
    nodes.list_nodes(with_bearer(admin::ListNodesRequest::default(), Some(&key))).await.unwrap();
    let list = coordinator.operator.keys.list_api_keys(admin::ListApiKeysRequest {}).await.unwrap();
    let mut keys = list.into_inner().keys;
    keys.sort_by_key(|key| key.id != id);
    let [used, unused] = keys.try_into().unwrap();
    assert_eq!((used.id.clone(), used.role(), used.network.as_str()), (id, ApiKeyRole::ReadOnly, ""));
    assert_eq!(used.last_used_ms, coordinator.now().as_millis());
    assert_eq!(used.expires_ms - used.created_ms, 90 * 24 * 3600 * 1000);
    let maker = nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().unwrap().name;
    assert_eq!((used.created_by.as_str(), used.revoked), (maker.as_str(), false));
    assert_eq!(
        (unused.id.clone(), unused.role(), unused.network.as_str()),
        (other, ApiKeyRole::Operator, "mesh")
    );
    assert_eq!(unused.last_used_ms, 0);

    for (request, expected) in [
        (wish("x", ApiKeyRole::Unspecified), Reason::InvalidArgument),
        (wish("", ApiKeyRole::ReadOnly), Reason::InvalidArgument),
        (
            admin::CreateApiKeyRequest { ttl_seconds: 367 * 24 * 3600, ..wish("x", ApiKeyRole::ReadOnly) },
            Reason::InvalidArgument,
        ),
        (
            admin::CreateApiKeyRequest { network: "nope".into(), ..wish("x", ApiKeyRole::ReadOnly) },
            Reason::NetworkUnknown,
        ),
    ] {
        let refused = coordinator.operator.keys.create_api_key(request.clone()).await.unwrap_err();
        assert_eq!(reason(&refused), expected, "{request:?}: {refused}");
    }
    for (id, expected) in [("xyz", Reason::InvalidArgument), ("0011223344556677", Reason::CredentialInvalid)]
    {
        let request = admin::RevokeApiKeyRequest { id: id.into(), ..Default::default() };
        let refused = coordinator.operator.keys.revoke_api_key(request).await.unwrap_err();
        assert_eq!(reason(&refused), expected, "{refused}");
    }
}

#[tokio::test]
async fn a_key_outlives_the_coordinators_process() {
    let coordinator = crate::harness::Running::start().await;
    let mut operator = coordinator.operator().await;
    let made = operator.keys.create_api_key(wish("ci", ApiKeyRole::ReadOnly)).await.unwrap().into_inner();
    let directory = coordinator.stop().await;
    let coordinator = crate::harness::Running::start_in(directory, |_| {}).await;
    let channel = connect(coordinator.ready.address).await.unwrap().channel;
    let mut nodes = admin::node_service_client::NodeServiceClient::new(channel);
    let list = |bearer: &str| with_bearer(admin::ListNodesRequest::default(), Some(bearer));
    nodes.list_nodes(list(&made.secret)).await.unwrap();
    nodes.list_nodes(list(&with_other_secret(&made.secret))).await.unwrap_err();
    coordinator.stop().await;
}

#[tokio::test]
async fn guesses_are_counted_and_who_has_a_key_is_let_in_all_the_same() {
    let mut coordinator = Assembled::start().await;
    let (_, key) = coordinator.key(wish("ci", ApiKeyRole::ReadOnly)).await;
    let list = async |bearer: Option<&str>| {
        let mut nodes = admin::node_service_client::NodeServiceClient::new(coordinator.channel().await);
        nodes.list_nodes(with_bearer(admin::ListNodesRequest::default(), bearer)).await
    };
    let wrong = with_other_secret(&key);
    for _ in 0..10 {
        assert_eq!(reason(&list(Some(&wrong)).await.unwrap_err()), Reason::CredentialInvalid);
    }
    // From now on a guess is told nothing.
    let refused = list(Some(&wrong)).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused)), (Code::Unavailable, Reason::Busy));
    // Who shows nothing guesses nothing, and who has the secret is let in.
    assert_eq!(reason(&list(None).await.unwrap_err()), Reason::CredentialMissing);
    list(Some(&key)).await.unwrap();
    coordinator.advance(Duration::from_secs(61));
    assert_eq!(reason(&list(Some(&wrong)).await.unwrap_err()), Reason::CredentialInvalid);
}

/// Asks by reflection for the services of a coordinator.
async fn services(channel: Channel, bearer: Option<&str>) -> Result<Vec<String>, Status> {
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let request = with_bearer(tokio_stream::iter([request]), bearer);
    let mut answers =
        ServerReflectionClient::new(channel).server_reflection_info(request).await?.into_inner();
    let answer = answers.message().await?.unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else { panic!("{answer:?}") };
    Ok(list.service.into_iter().map(|service| service.name).collect())
}

#[tokio::test]
async fn reflection_lists_the_services_to_who_has_a_key_and_to_no_stranger() {
    let mut coordinator = Assembled::start().await;
    let packages = ["ringmesh.admin.v1.", "ringmesh.control.v1.", "grpc.health.v1."];
    for role in [ApiKeyRole::ReadOnly, ApiKeyRole::Operator] {
        let (_, key) = coordinator.key(wish("ci", role)).await;
        let services = services(coordinator.channel().await, Some(&key)).await.unwrap();
        for package in packages {
            assert!(services.iter().any(|service| service.starts_with(package)), "{package}: {services:?}");
        }
    }
    let refused = services(coordinator.channel().await, None).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused)), (Code::Unauthenticated, Reason::CredentialMissing));
    let local = services(unix_channel(&coordinator.socket).await, None).await.unwrap();
    assert!(local.iter().any(|service| service.starts_with("ringmesh.admin.v1.")), "{local:?}");
}

#[tokio::test]
async fn a_key_that_revokes_itself_is_told_that_it_is_done() {
    let mut coordinator = Assembled::start().await;
    let (id, key) = coordinator.key(wish("ci", ApiKeyRole::Operator)).await;
    let mut keys = admin::api_key_service_client::ApiKeyServiceClient::new(coordinator.channel().await);
    let request = admin::RevokeApiKeyRequest { id: id.clone(), ..Default::default() };
    let revoked = keys.revoke_api_key(with_bearer(request, Some(&key))).await.unwrap().into_inner();
    assert!(revoked.key.unwrap().revoked);
    let refused =
        keys.list_api_keys(with_bearer(admin::ListApiKeysRequest {}, Some(&key))).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::CredentialRevoked);
}
