//! Tokens as the real coordinator judges them, seen from a node.

use ringmesh_io::Choice;
use ringmesh_lab::in_sandbox;
use ringmesh_proto::{admin::CreateTokenRequest, control::Reason};
use tonic_types::StatusExt as _;

use crate::{
    support::{block_on, daemon::Place},
    world::{Machine, World},
};

/// Joins from a new host; gives the reason if it is refused.
async fn join(world: &World, host: &str, token: &str, name: &str) -> Option<Reason> {
    let mut machine = Machine::new(&world.switch, host);
    let place = Place::new();
    let (token, name) = (token.to_owned(), name.to_owned());
    let result = machine
        .run(async move {
            let mut node = place.start().await.unwrap();
            let result = node.join(&token, &name).await;
            if result.is_err() {
                assert_eq!(node.status().await.state, "not-joined");
                assert!(!place.state("network.json").exists() && !place.state("identity").exists());
            }
            node.stop().await.unwrap();
            result
        })
        .await;
    assert!(!machine.host.links().unwrap().contains(&"mesh0".to_owned()));
    let refused = result.err()?;
    assert!(refused.message().len() > 20, "a sentence: {refused}");
    let info = refused.get_details_error_info().unwrap();
    Some(Reason::from_str_name(&info.reason).unwrap())
}

#[test]
fn a_token_for_one_use_is_used_once() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let token = world.token_with(CreateTokenRequest::default()).await;
            assert_eq!(join(&world, "one", &token, "one").await, None);
            assert_eq!(join(&world, "two", &token, "two").await, Some(Reason::TokenUsed));
            assert_eq!(world.nodes().await.nodes.len(), 1);
        });
    });
}

#[test]
fn a_token_that_is_over_revoked_or_of_another_network_is_refused() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let short = world.token_with(CreateTokenRequest { ttl_seconds: 1, ..Default::default() }).await;
            let revoked = world.token().await;
            world.revoke_all_but(&short).await;
            tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
            assert_eq!(join(&world, "one", &short, "one").await, Some(Reason::TokenExpired));
            assert_eq!(join(&world, "two", &revoked, "two").await, Some(Reason::TokenRevoked));
            let other = crate::support::authority::Authority::new().token_text(&[world.address.to_string()]);
            let reason = join(&world, "three", &other, "three").await;
            assert!(matches!(reason, Some(Reason::NetworkUnknown | Reason::NotTrusted)), "{reason:?}");
            assert!(world.nodes().await.nodes.is_empty());
        });
    });
}

#[test]
fn a_name_that_is_taken_or_none_is_refused() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let _alice = world.node("alice", Choice::Auto).await;
            let token = world.token().await;
            assert_eq!(join(&world, "one", &token, "alice").await, Some(Reason::NameTaken));
            assert_eq!(join(&world, "two", &token, "not a name").await, Some(Reason::NameInvalid));
        });
    });
}
