//! Policies that meet members who come in at the same moment.

use std::{collections::BTreeMap, time::Duration};

use ringmesh_tunnel::{
    enroll::TokenSecret,
    key::{NetworkId, PresharedKey, TokenId},
    netmap::{Leaf, NameRecord},
};

use super::*;
use crate::{
    auth::{Authed, Operator, Pass},
    coordinator::Proposal,
    error::Refused,
    network::{Change, NetworkState, members, policies},
    server::Caller,
    store::Outcome,
};

fn network_of(coordinator: &Coordinator) -> NetworkId {
    coordinator.with_registry(|registry| registry.networks().next().unwrap().id())
}

async fn token(coordinator: &Coordinator) -> TokenId {
    let network = network_of(coordinator);
    let (token, secret) = (TokenId::generate(), TokenSecret::generate());
    let wish = Wish { life: Duration::ZERO, max_uses: 0, tags: Vec::new(), ephemeral: false, relay: false };
    let create = |registry: &Registry, now| {
        tokens::plan_create(registry.network(network).unwrap(), token, &secret, &wish, now)
            .map(|(_, change)| ((), change))
    };
    coordinator.transact(&Origin::coordinator(), create).await.unwrap();
    token
}

/// What a machine that asks for this name, or suggests one by its host name, comes to.
fn joining(
    state: &NetworkState,
    token: TokenId,
    name: &str,
    host_name: &str,
) -> Result<(NodeId, Change), enroll::Refusal> {
    let joiner = Joiner {
        token,
        identity_key: IdentitySecret::generate().public_key(),
        name: name.into(),
        host_name: host_name.into(),
        os: String::new(),
        version: String::new(),
        relay: false,
    };
    match enroll::plan(state, &joiner, NodeId::generate(), NOW)? {
        Enrollment::New(id, change) => Ok((id, change)),
        Enrollment::Already(_) => panic!("its key is new"),
    }
}

async fn join(coordinator: &Coordinator, token: TokenId, name: &str, host: &str) -> Result<NodeId, Refused> {
    let network = network_of(coordinator);
    let plan = |registry: &Registry, _| joining(registry.network(network).unwrap(), token, name, host);
    coordinator.transact(&Origin::coordinator(), plan).await.map(|(id, _)| id)
}

/// What a policy of these names and no rule comes to.
fn naming(state: &NetworkState, names: &[&str]) -> Result<Change, policies::Refusal> {
    let record =
        |name: &&str| Leaf::Name(NameRecord { name: (*name).into(), addresses: vec![[10, 1, 0, 9].into()] });
    let (leaves, groups): (Vec<Leaf>, _) = (names.iter().map(record).collect(), BTreeMap::new());
    let wish = policies::Wish {
        leaves: &leaves,
        groups: &groups,
        rules: 0,
        text: "",
        by: "root",
        comment: "",
        base: 0,
        back_to: 0,
    };
    policies::plan(state, &wish, NOW).map(|planned| planned.expect("it is another one").1)
}

async fn name_in_policy(coordinator: &Coordinator, names: &[&str]) -> Result<(), Refused> {
    let network = network_of(coordinator);
    let plan =
        |registry: &Registry, _| naming(registry.network(network).unwrap(), names).map(|plan| ((), plan));
    coordinator.transact(&Origin::coordinator(), plan).await.map(drop)
}

#[tokio::test]
async fn nobody_takes_a_name_of_the_policy() {
    let directory = tempfile::tempdir().unwrap();
    let coordinator = coordinator(directory.path(), false).await;
    let (network, token) = (network_of(&coordinator), token(&coordinator).await);
    name_in_policy(&coordinator, &["git", "git-2", "a.wiki"]).await.unwrap();
    let name_of = |id: NodeId| {
        coordinator.with_network(network, |state| state.member(id).unwrap().name.clone()).unwrap()
    };

    let refused = join(&coordinator, token, "git", "").await.unwrap_err();
    assert!(matches!(refused, Refused::Enroll(enroll::Refusal::NameOfPolicy(_))), "{refused:?}");
    assert!(refused.to_string().contains("\"git\" is one of the policy's names"), "{refused}");

    let stock = |name: &str| {
        let key = ringmesh_tunnel::key::SecretKey::generate().public_key();
        let plan = |state: &NetworkState| {
            let (id, psk) = (NodeId::generate(), PresharedKey::generate());
            members::plan_stock(state, name, key, id, &psk, &coordinator.0.vault, NOW)
        };
        coordinator.with_network(network, plan).unwrap()
    };
    assert_eq!(
        stock("git").map(drop),
        Err(members::Refusal::Enroll(enroll::Refusal::NameOfPolicy("git".into())))
    );
    stock("wiki").expect("a record of two labels is another name");

    // What a host name suggests gives way.
    assert_eq!(name_of(join(&coordinator, token, "", "Git.example.org").await.unwrap()), "git-3");
    assert_eq!(name_of(join(&coordinator, token, "wiki", "").await.unwrap()), "wiki");

    // Once the policy does not have it any more, it is free.
    name_in_policy(&coordinator, &["other"]).await.unwrap();
    assert_eq!(name_of(join(&coordinator, token, "git", "").await.unwrap()), "git");
    let refused = name_in_policy(&coordinator, &["git"]).await.unwrap_err();
    assert!(
        matches!(refused, Refused::PolicyRequest(policies::Refusal::NameOfMember(ref name)) if name == "git"),
        "{refused:?}"
    );
}

#[tokio::test]
async fn of_a_member_and_a_record_of_one_name_at_the_same_moment_only_one_comes_in() {
    for member_first in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        let coordinator = coordinator(directory.path(), false).await;
        let (network, token) = (network_of(&coordinator), token(&coordinator).await);
        // Both are planned from one state, as on two coordinators that have not heard of each other.
        let (record, (_, member)) = coordinator
            .with_network(network, |state| {
                (naming(state, &["git"]).unwrap(), joining(state, token, "git", "").unwrap())
            })
            .unwrap();
        let (first, second) = if member_first { (member, record) } else { (record, member) };
        let commit = |change: Change| {
            let plan = Plan::from(change);
            coordinator.0.store.txn(plan.compare, plan.ops)
        };
        assert!(matches!(commit(first).await.unwrap(), Outcome::Committed(_)));
        assert!(
            matches!(commit(second).await.unwrap(), Outcome::Conflict(_)),
            "member first: {member_first}"
        );
    }
}

#[tokio::test]
async fn only_so_many_policies_are_compiled_at_one_time() {
    let directory = tempfile::tempdir().unwrap();
    let coordinator = coordinator(directory.path(), false).await;
    let network = network_of(&coordinator);
    let held = [coordinator.permit().await.unwrap(), coordinator.permit().await.unwrap()];
    let rules = || coordinator.rules_of(network, "[[allow]]\nfrom='*'\nto='*'\n".into());
    let refused = rules().await.unwrap_err();
    assert!(matches!(refused, Refused::Compiling), "{refused:?}");
    let status = tonic::Status::from(refused);
    assert_eq!(status.code(), tonic::Code::Unavailable);
    drop(held);
    assert_eq!(rules().await.unwrap().unwrap().len(), 1);
}

#[tokio::test]
async fn renewals_and_regrouping_are_of_no_matter_to_a_policy_that_is_compiled() {
    let directory = tempfile::tempdir().unwrap();
    let coordinator = coordinator(directory.path(), false).await;
    let (network, token) = (network_of(&coordinator), token(&coordinator).await);
    let count = || coordinator.with_network(network, |state| state.roster).unwrap();
    let before = count();
    let id = join(&coordinator, token, "a", "").await.unwrap();
    assert_eq!(count(), before + 1, "a new member may be named");
    let groups = BTreeMap::from([(id, vec!["staff".to_owned()])]);
    let wish = policies::Wish {
        leaves: &[],
        groups: &groups,
        rules: 0,
        text: "",
        by: "root",
        comment: "",
        base: 0,
        back_to: 0,
    };
    let regroup = |registry: &Registry, now| {
        policies::plan(registry.network(network).unwrap(), &wish, now).map(|planned| ((), planned.unwrap().1))
    };
    coordinator.transact(&Origin::coordinator(), regroup).await.unwrap();
    let groups = coordinator.with_network(network, |state| state.member(id).unwrap().groups.clone()).unwrap();
    assert_eq!((groups, count()), (vec!["staff".to_owned()], before + 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_who_come_and_go_do_not_hold_a_policy_off() {
    let directory = tempfile::tempdir().unwrap();
    let coordinator = coordinator(directory.path(), false).await;
    let (network, token) = (network_of(&coordinator), token(&coordinator).await);
    let churning = {
        let coordinator = coordinator.clone();
        tokio::spawn(async move {
            loop {
                let id = join(&coordinator, token, "", "churn").await.unwrap();
                coordinator.remove(&Authed::itself(), network, id).await.unwrap();
            }
        })
    };
    // It takes so long to compile that somebody comes or goes each time.
    let rule = "[[allow]]\nfrom='*'\nto='*'\nprotocol='tcp'\nports=[1,3,5,7,9]\n";
    let user = Caller { uid: nix::unistd::geteuid().as_raw(), pid: None };
    let operator: Authed<Operator> = Pass::of_user(&user).unwrap().try_into().unwrap();
    let before = coordinator.with_network(network, |state| state.roster).unwrap();
    let proposal = Proposal { text: rule.repeat(2000).into(), base: 0, comment: String::new(), back_to: 0 };
    let applied = coordinator.apply_policy(&operator, network, proposal, None).await.unwrap();
    let after = coordinator.with_network(network, |state| state.roster).unwrap();
    churning.abort();
    assert!(applied.changed && after > before + 6, "{before} {after}");
}
