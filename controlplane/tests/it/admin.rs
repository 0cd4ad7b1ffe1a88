//! The admin API on the unix socket: for operators of the machine, and for no other user. [`access`](crate::access) has who may call
//! what over the network.

use std::{
    fs::Permissions,
    io::Read as _,
    os::unix::{fs::PermissionsExt, process::CommandExt as _},
    process::{Command, Stdio},
};

use prost::Message as _;
use prost_types::FileDescriptorSet;
use ringmesh_proto::{DESCRIPTORS, admin, control::Reason};
use tonic::{Code, Request, Status, client::Grpc, transport::Channel};
use tonic_types::StatusExt as _;

use crate::{
    client::{connect, reason},
    harness::{Running, unix_channel},
};

/// Every method of the packages, as paths.
fn methods(packages: &[&str]) -> Vec<String> {
    let descriptors = FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let mut methods = Vec::new();
    for file in descriptors.file.iter().filter(|file| packages.contains(&file.package())) {
        for service in &file.service {
            for method in &service.method {
                methods.push(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
            }
        }
    }
    methods
}

/// Calls a method by its path with an empty message.
pub async fn call(channel: &Channel, path: &str) -> Result<(), Status> {
    let mut client = Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    client.unary(Request::new(()), path.parse().unwrap(), codec).await.map(drop)
}

#[tokio::test]
async fn the_unix_socket_serves_everything_for_operators_and_nothing_for_nodes() {
    let coordinator = Running::start().await;
    let local = unix_channel(&coordinator.ready.admin_socket).await;
    for path in methods(&["ringmesh.admin.v1"]) {
        let answer = crate::access::begin(&local, &path, Default::default(), None).await;
        let code = answer.map_or_else(|status| status.code(), |()| Code::Ok);
        assert_ne!(code, Code::Unimplemented, "{path}");
    }
    for path in methods(&["ringmesh.control.v1", "ringmesh.local.v1"]) {
        assert_eq!(call(&local, &path).await.unwrap_err().code(), Code::Unimplemented, "{path}");
    }
    // A credential of the network means nothing there: who asks is known by the kernel.
    let request = crate::access::with_bearer(admin::ListNetworksRequest {}, Some("garbage"));
    coordinator.operator().await.networks.list_networks(request).await.unwrap();
    coordinator.stop().await;
}

#[tokio::test]
async fn no_method_for_nodes_does_anything_without_a_proof() {
    let coordinator = Running::start().await;
    let channel = connect(coordinator.ready.address).await.unwrap().channel;
    for path in methods(&["ringmesh.control.v1"]) {
        let refused = call(&channel, &path).await.unwrap_err();
        let found = reason(&refused);
        assert!(matches!(found, Reason::InvalidArgument | Reason::ProofInvalid), "{path}: {refused}");
    }
    coordinator.stop().await;
}

/// As a test: an operator may list networks. As a child of the test below: says what another user is told.
#[tokio::test]
async fn the_coordinators_own_user_is_an_operator() {
    if let Some(socket) = std::env::var_os("RINGMESH_TEST_SOCKET") {
        let channel = unix_channel(socket.as_ref()).await;
        let health = "/grpc.health.v1.Health/Check".to_owned();
        for path in methods(&["ringmesh.admin.v1"]).into_iter().chain([health]) {
            let refused = call(&channel, &path).await.unwrap_err();
            let reason = refused.get_details_error_info().map(|info| info.reason).unwrap_or_default();
            println!("told {:?} {reason} {}", refused.code(), refused.message());
        }
        return;
    }
    let coordinator = Running::start().await;
    let networks =
        coordinator.operator().await.networks.list_networks(admin::ListNetworksRequest {}).await.unwrap();
    let [network] = networks.into_inner().networks.try_into().unwrap();
    assert_eq!((network.name.as_str(), network.zone.as_str(), network.epoch), ("mesh", "mesh", 1));
    coordinator.stop().await;
}

/// Needs root, to become somebody else; without it the socket's mode alone keeps others out, which `start` shows.
#[tokio::test(flavor = "multi_thread")]
async fn another_user_is_refused_every_method_even_if_the_socket_lets_it_in() {
    if !nix::unistd::geteuid().is_root() {
        let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let coordinator = Running::start().await;
        assert_eq!(mode(&coordinator.ready.admin_socket), 0o600);
        coordinator.stop().await;
        return;
    }
    let coordinator = Running::start().await;
    let socket = &coordinator.ready.admin_socket;
    let open =
        |path: &std::path::Path| std::fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
    // The modes that a careless administrator might give.
    open(coordinator.directory.path());
    open(socket.parent().unwrap());
    open(socket);
    // The test's own program may lie where the other user cannot go.
    let program = coordinator.directory.path().join("child");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    open(&program);
    let mut child = Command::new(&program)
        .args(["--exact", "admin::the_coordinators_own_user_is_an_operator", "--nocapture"])
        .env("RINGMESH_TEST_SOCKET", socket)
        .current_dir("/")
        .uid(65534)
        .gid(65534)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = String::new();
    child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
    assert!(child.wait().unwrap().success(), "{output}");
    let told: Vec<&str> =
        output.lines().filter_map(|line| line.split_once("told ").map(|(_, told)| told)).collect();
    assert_eq!(told.len(), methods(&["ringmesh.admin.v1"]).len() + 1, "{output}");
    for line in told {
        assert!(line.starts_with("PermissionDenied REASON_NOT_PERMITTED user 65534 may not"), "{line}");
    }
    coordinator.stop().await;
}

#[tokio::test]
async fn health_is_for_operators_and_for_anybody_over_the_network() {
    let coordinator = Running::start().await;
    let local = unix_channel(&coordinator.ready.admin_socket).await;
    call(&local, "/grpc.health.v1.Health/Check").await.unwrap();
    let remote = connect(coordinator.ready.address).await.unwrap().channel;
    call(&remote, "/grpc.health.v1.Health/Check").await.unwrap();
    coordinator.stop().await;
}

#[tokio::test]
async fn networks_nodes_tokens_and_policy_can_be_looked_at_and_named() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    let create = |name: &str, ipv4_pool: &str, zone: &str| admin::CreateNetworkRequest {
        name: name.into(),
        ipv4_pool: ipv4_pool.into(),
        zone: zone.into(),
        ..Default::default()
    };
    let lab = operator.networks.create_network(create("lab", "10.8.0.0/16", "lab.test")).await.unwrap();
    let lab = lab.into_inner().network.unwrap();
    assert_eq!((lab.ipv4_pool.as_str(), lab.zone.as_str()), ("10.8.0.0/16", "lab.test"));
    for (request, expected) in [
        (create("lab", "", ""), Reason::Conflict),
        (create("Lab", "", ""), Reason::InvalidArgument),
        (create("x", "10.8.0.0/31", ""), Reason::InvalidArgument),
        (create("x", "ten", ""), Reason::InvalidArgument),
        (create("x", "", "a b"), Reason::InvalidArgument),
        (create("", "", ""), Reason::InvalidArgument),
        (create("l_b", "", ""), Reason::InvalidArgument),
        (create("lab\u{1b}[2J", "", ""), Reason::InvalidArgument),
        (create("l\u{e4}b", "", ""), Reason::InvalidArgument),
        (create("x", "", "a\u{1b}[2J"), Reason::InvalidArgument),
        (create("x", "", "a_b.test"), Reason::InvalidArgument),
    ] {
        let refused = operator.networks.create_network(request.clone()).await.unwrap_err();
        assert_eq!(reason(&refused), expected, "{request:?}: {refused}");
        assert!(!refused.message().contains(char::is_control), "{refused:?}");
    }
    // With two networks, requests have to say which.
    let refused = operator.tokens.create_token(admin::CreateTokenRequest::default()).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::InvalidArgument);
    assert!(refused.message().contains("lab") && refused.message().contains("mesh"), "{refused}");
    for network in ["lab", lab.id.as_str()] {
        let request =
            admin::CreateTokenRequest { network: network.into(), reusable: true, ..Default::default() };
        let token = operator.token(request).await;
        assert_eq!(token.network().to_string(), lab.id);
        let mut node = crate::client::TestNode::new("");
        node.join(&token).await.unwrap();
        assert!(node.member.unwrap().ipv4.unwrap().to_string().starts_with("10.8.0."));
    }
    let unknown = admin::ListTokensRequest { network: "nope".into() };
    assert_eq!(reason(&operator.tokens.list_tokens(unknown).await.unwrap_err()), Reason::NetworkUnknown);
    let policy = operator
        .policy
        .get_policy(admin::GetPolicyRequest { network: "lab".into(), ..Default::default() })
        .await
        .unwrap();
    let all = admin::Rule {
        source: "*".into(),
        destination: "*".into(),
        protocol: "any".into(),
        ports: "*".into(),
        number: 1,
    };
    assert_eq!(policy.into_inner().rules, [all]);
    coordinator.stop().await;
}

#[tokio::test]
async fn what_an_operator_asks_for_wrongly_is_named() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    let token = |tags: &[&str], ttl_seconds| admin::CreateTokenRequest {
        tags: tags.iter().map(|tag| (*tag).into()).collect(),
        ttl_seconds,
        ..Default::default()
    };
    for request in [token(&["Web"], 0), token(&[""], 0), token(&["a"; 33], 0), token(&[], 367 * 24 * 3600)] {
        let refused = operator.tokens.create_token(request.clone()).await.unwrap_err();
        assert_eq!(reason(&refused), Reason::InvalidArgument, "{request:?}");
    }
    let node = admin::RemoveNodeRequest { node: "nobody".into(), ..Default::default() };
    assert_eq!(reason(&operator.nodes.remove_node(node).await.unwrap_err()), Reason::NodeUnknown);
    let revoke = |id: &str| admin::RevokeTokenRequest { id: id.into(), ..Default::default() };
    let refused = operator.tokens.revoke_token(revoke("xyz")).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::InvalidArgument);
    let refused = operator.tokens.revoke_token(revoke("0011223344556677")).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::TokenInvalid);
    // Tags of a token are the node's.
    let web = operator.token(token(&["web", "prod.eu"], 0)).await;
    let mut node = crate::client::TestNode::new("tagged");
    node.join(&web).await.unwrap();
    assert_eq!(node.member.unwrap().tags, ["web", "prod.eu"]);
    coordinator.stop().await;
}
