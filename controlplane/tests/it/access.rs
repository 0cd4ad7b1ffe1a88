//! Who may call what: every method there is, by every credential there is, as the table that is made from the descriptors says.

use std::{collections::BTreeSet, sync::LazyLock, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use ringmesh_controlplane::server::{Limits, MAX_MESSAGE, MAX_NODE_MESSAGE, MAX_STRANGER_MESSAGE};
use ringmesh_proto::{
    DESCRIPTORS,
    access::{Access, METHODS},
    admin::{self, ApiKeyRole},
    control::{self, Reason},
};
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::Channel,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};
use tonic_types::StatusExt as _;

use crate::{
    client::{Lie, TestNode, connect, reason},
    harness::{Assembled, unix_channel},
};

/// Passes messages on as bytes, so that any method can be called.
#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put(buf, item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = bytes::Buf::remaining(buf);
        Ok(Some(bytes::Buf::copy_to_bytes(buf, length)))
    }
}

/// A request with a credential.
pub fn with_bearer<T>(message: T, bearer: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(bearer) = bearer {
        request.metadata_mut().insert("authorization", format!("Bearer {bearer}").parse().unwrap());
    }
    request
}

/// Calls a method of any kind, and says how its answer begins.
pub async fn begin(
    channel: &Channel,
    path: &str,
    message: Bytes,
    bearer: Option<&str>,
) -> Result<(), Status> {
    let mut client = Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let request = with_bearer(message, bearer);
    client.server_streaming(request, path.parse().unwrap(), Raw).await.map(drop)
}

/// The field `network` of a method's request, if it has one, as the number of its tag.
fn network_field(path: &str) -> Option<u64> {
    static DESCRIBED: LazyLock<FileDescriptorSet> =
        LazyLock::new(|| FileDescriptorSet::decode(DESCRIPTORS).unwrap());
    let (service, method) = path.trim_start_matches('/').split_once('/').unwrap();
    let (package, service) = service.rsplit_once('.').unwrap();
    let file = DESCRIBED.file.iter().find(|file| file.package() == package)?;
    let service = file.service.iter().find(|found| found.name() == service).unwrap();
    let method = service.method.iter().find(|found| found.name() == method).unwrap();
    let input = method.input_type().rsplit_once('.').unwrap().1;
    let message = file.message_type.iter().find(|message| message.name() == input).unwrap();
    let field = message.field.iter().find(|field| field.name() == "network")?;
    Some(field.number() as u64)
}

/// The request of a method that names a network, if it can, and is otherwise empty.
fn naming(path: &str, network: &str) -> Bytes {
    let Some(number) = network_field(path) else { return Bytes::new() };
    let mut message = Vec::new();
    prost::encoding::encode_varint(number << 3 | 2, &mut message);
    prost::encoding::encode_varint(network.len() as u64, &mut message);
    message.extend(network.as_bytes());
    message.into()
}

/// What a caller shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shows {
    Nothing,
    Garbage,
    /// The id of a good key and another secret.
    WrongSecret,
    ExpiredKey,
    RevokedKey,
    /// Of an operator, for another network than the one that is asked for.
    OtherNetworksKey,
    JoinToken,
    /// What a node is given for its stream.
    Session,
    ReadOnlyKey,
    OperatorsKey,
}

/// What becomes of a request.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// The method looks at it.
    Let,
    /// For nodes: the method misses the proof in it.
    NoProof,
    NoSuchMethod,
    NoSuchNetwork,
    Refused(Code, Reason),
}

const HEALTH: [&str; 2] = ["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"];
const REFLECTION: [&str; 2] = [
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// All methods with their rules: ours from the table, those of others as the documentation says.
fn methods() -> impl Iterator<Item = (&'static str, Access)> {
    let ours = METHODS.iter().map(|method| (method.path, method.access));
    let health = HEALTH.map(|path| (path, Access::Anybody));
    ours.chain(health).chain(REFLECTION.map(|path| (path, Access::ReadOnly)))
}

/// What has to become of a request, by the rule of its method.
fn expected(path: &str, access: Access, shows: Shows) -> Outcome {
    let unauthenticated = |reason| Outcome::Refused(Code::Unauthenticated, reason);
    let denied = Outcome::Refused(Code::PermissionDenied, Reason::NotPermitted);
    let changes = match access {
        Access::Unspecified => panic!("{path} has no rule"),
        Access::Anybody if path.starts_with("/ringmesh.control") => return Outcome::NoProof,
        Access::Anybody => return Outcome::Let,
        Access::Node => return Outcome::NoProof,
        Access::ReadOnly => false,
        Access::Operator => true,
    };
    let served = !path.starts_with("/ringmesh.local.");
    let may = |shows: Shows| {
        if changes && shows == Shows::ReadOnlyKey {
            Err(Outcome::Refused(Code::PermissionDenied, Reason::NotPermitted))
        } else if served {
            Ok(())
        } else {
            Err(Outcome::NoSuchMethod)
        }
    };
    // What belongs to no network is not for who is of one.
    let of_none = path.contains("ApiKeyService") || path.ends_with("/CreateNetwork");
    match shows {
        Shows::Nothing => unauthenticated(Reason::CredentialMissing),
        Shows::Garbage | Shows::WrongSecret | Shows::JoinToken | Shows::Session => {
            unauthenticated(Reason::CredentialInvalid)
        }
        Shows::ExpiredKey => unauthenticated(Reason::CredentialExpired),
        Shows::RevokedKey => unauthenticated(Reason::CredentialRevoked),
        Shows::OtherNetworksKey => match may(shows) {
            Err(outcome) => outcome,
            Ok(()) if of_none => denied,
            Ok(()) if path.starts_with("/ringmesh.admin") && network_field(path).is_some() => {
                Outcome::NoSuchNetwork
            }
            Ok(()) => Outcome::Let,
        },
        Shows::ReadOnlyKey | Shows::OperatorsKey => may(shows).err().unwrap_or(Outcome::Let),
    }
}

fn outcome(path: &str, result: Result<(), Status>) -> Outcome {
    let Err(status) = result else { return Outcome::Let };
    let reason = status.get_details_error_info().map(|info| info.reason);
    let reason = reason.and_then(|reason| Reason::from_str_name(&reason));
    match (status.code(), reason) {
        (Code::Unimplemented, None) => Outcome::NoSuchMethod,
        (Code::NotFound, Some(Reason::NetworkUnknown)) => {
            assert!(status.message().contains("there is no network"), "{path}: {status}");
            Outcome::NoSuchNetwork
        }
        (code @ (Code::Unauthenticated | Code::PermissionDenied), Some(reason))
            if reason != Reason::ProofInvalid =>
        {
            Outcome::Refused(code, reason)
        }
        (_, Some(Reason::InvalidArgument | Reason::ProofInvalid))
            if path.starts_with("/ringmesh.control") =>
        {
            Outcome::NoProof
        }
        (Code::Unavailable, _) => panic!("{path}: the connection broke: {status}"),
        // Whatever a method says of an empty request, it has looked at it.
        (_, Some(_)) => Outcome::Let,
        (code, None) => panic!("{path}: {code:?} without a reason: {status}"),
    }
}

struct Credentials {
    read_only: String,
    operators: String,
    other_networks: String,
    expired: String,
    revoked: String,
    wrong_secret: String,
    join_token: String,
    session: String,
}

impl Credentials {
    fn of(&self, shows: Shows) -> Option<&str> {
        Some(match shows {
            Shows::Nothing => return None,
            Shows::Garbage => "garbage",
            Shows::WrongSecret => &self.wrong_secret,
            Shows::ExpiredKey => &self.expired,
            Shows::RevokedKey => &self.revoked,
            Shows::OtherNetworksKey => &self.other_networks,
            Shows::JoinToken => &self.join_token,
            Shows::Session => &self.session,
            Shows::ReadOnlyKey => &self.read_only,
            Shows::OperatorsKey => &self.operators,
        })
    }
}

pub fn wish(name: &str, role: ApiKeyRole) -> admin::CreateApiKeyRequest {
    admin::CreateApiKeyRequest { name: name.into(), role: role.into(), ..Default::default() }
}

impl Assembled {
    /// Makes a key, and returns its id and its text.
    pub async fn key(&mut self, wish: admin::CreateApiKeyRequest) -> (String, String) {
        let made = self.operator.keys.create_api_key(wish).await.unwrap().into_inner();
        (made.key.unwrap().id, made.secret)
    }

    async fn revoke(&mut self, id: &str) {
        let request = admin::RevokeApiKeyRequest { id: id.into(), ..Default::default() };
        let revoked = self.operator.keys.revoke_api_key(request).await.unwrap().into_inner();
        assert!(revoked.key.unwrap().revoked);
    }

    async fn channel(&self) -> Channel {
        connect(self.address).await.unwrap().channel
    }
}

/// The text of a key with the id of `text` and another secret.
fn with_other_secret(text: &str) -> String {
    let mut bytes = URL_SAFE_NO_PAD.decode(text.strip_prefix("meshkey1_").unwrap()).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    format!("meshkey1_{}", URL_SAFE_NO_PAD.encode(bytes))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_lets_in_whom_its_rule_names_and_nobody_else() {
    let mut coordinator = Assembled::start().await;
    let lab = admin::CreateNetworkRequest { name: "lab".into(), ..Default::default() };
    coordinator.operator.networks.create_network(lab).await.unwrap();
    let in_mesh = admin::CreateTokenRequest { network: "mesh".into(), reusable: true, ..Default::default() };
    let token = coordinator.operator.token(in_mesh).await;
    let mut node = TestNode::new("a");
    node.set_time(coordinator.now());
    node.join(&token).await.unwrap();
    let stream = node.sync().await.unwrap();

    let (_, read_only) = coordinator.key(wish("look", ApiKeyRole::ReadOnly)).await;
    let (_, operators) = coordinator.key(wish("all", ApiKeyRole::Operator)).await;
    let of_lab = admin::CreateApiKeyRequest { network: "lab".into(), ..wish("lab", ApiKeyRole::Operator) };
    let (_, other_networks) = coordinator.key(of_lab).await;
    let short = admin::CreateApiKeyRequest { ttl_seconds: 1, ..wish("short", ApiKeyRole::Operator) };
    let (_, expired) = coordinator.key(short).await;
    let (id, revoked) = coordinator.key(wish("gone", ApiKeyRole::Operator)).await;
    coordinator.revoke(&id).await;
    let credentials = Credentials {
        wrong_secret: with_other_secret(&operators),
        join_token: token.reveal().to_string(),
        session: URL_SAFE_NO_PAD.encode(&stream.session),
        read_only,
        operators,
        other_networks,
        expired,
        revoked,
    };

    let mut seen = BTreeSet::new();
    for (path, access) in methods() {
        // The failures of the method before are no matter any more.
        coordinator.advance(Duration::from_secs(61));
        for shows in [
            Shows::Nothing,
            Shows::Garbage,
            Shows::WrongSecret,
            Shows::ExpiredKey,
            Shows::RevokedKey,
            Shows::OtherNetworksKey,
            Shows::JoinToken,
            Shows::Session,
            Shows::ReadOnlyKey,
            Shows::OperatorsKey,
        ] {
            let channel = coordinator.channel().await;
            let result = begin(&channel, path, naming(path, "mesh"), credentials.of(shows)).await;
            let found = format!("{result:?}");
            let outcome = outcome(path, result);
            assert_eq!(outcome, expected(path, access, shows), "{path} {shows:?}: {found}");
            seen.insert(format!("{outcome:?}"));
        }
    }
    // Each kind of outcome was met, so that no row of the table stands for nothing.
    assert_eq!(seen.len(), 4 + 5, "{seen:?}");

    // Paths that only look like a method's lead nowhere, whoever asks.
    let channel = coordinator.channel().await;
    let _proven = open_stream(&channel, &credentials.operators).await;
    for path in METHODS.iter().map(|method| method.path).chain(REFLECTION) {
        let bare = path.trim_start_matches('/');
        for path in [format!("//{bare}"), format!("{path}/"), format!("{path}x"), path.replace('S', "%53")] {
            let answer = begin(&channel, &path, Bytes::new(), Some(&credentials.operators)).await;
            assert_eq!(answer.unwrap_err().code(), Code::Unimplemented, "{path}");
        }
    }
    drop(stream);
}

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

const fn hasty() -> Limits {
    Limits { time_to_prove: Duration::from_millis(1000), ..LIMITS }
}
const LIMITS: Limits = Limits {
    connections: 64,
    unproven_per_source: 32,
    handshake: Duration::from_secs(5),
    time_to_prove: Duration::from_secs(30),
    ..Limits::DEFAULT
};

/// Opens a stream that says nothing by itself: what ends it is the coordinator.
async fn open_stream(
    channel: &Channel,
    key: &str,
) -> tonic::Streaming<tonic_reflection::pb::v1::ServerReflectionResponse> {
    let request = with_bearer(tokio_stream::pending(), Some(key));
    ServerReflectionClient::new(channel.clone()).server_reflection_info(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn a_stream_of_a_key_outlives_the_time_of_strangers_and_ends_with_the_key() {
    let mut coordinator = Assembled::start_with_limits(hasty()).await;
    let (id, key) = coordinator.key(wish("ci", ApiKeyRole::ReadOnly)).await;
    let channel = coordinator.channel().await;
    let mut stream = open_stream(&channel, &key).await;
    let stranger = coordinator.channel().await;
    let check = async |channel: &Channel| begin(channel, HEALTH[0], Bytes::new(), None).await;
    // A connection that proved nothing has ended by then.
    let gone = async {
        while check(&stranger).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.unwrap();
    check(&channel).await.unwrap();
    coordinator.revoke(&id).await;
    let end = tokio::time::timeout(Duration::from_secs(5), stream.message()).await.unwrap().unwrap_err();
    assert_eq!((end.code(), reason(&end)), (Code::Unauthenticated, Reason::CredentialRevoked));
    // The connection is a stranger's again.
    let gone = async {
        while check(&channel).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.unwrap();
}

#[tokio::test]
async fn a_stream_ends_when_its_key_expires() {
    let mut coordinator = Assembled::start().await;
    let short = admin::CreateApiKeyRequest { ttl_seconds: 60, ..wish("short", ApiKeyRole::ReadOnly) };
    let (_, key) = coordinator.key(short).await;
    let (_, lasting) = coordinator.key(wish("long", ApiKeyRole::ReadOnly)).await;
    let channel = coordinator.channel().await;
    let mut stream = open_stream(&channel, &key).await;
    let mut other = open_stream(&channel, &lasting).await;
    coordinator.advance(Duration::from_secs(61));
    // The clock of a test turns without anybody noticing; a commit has them look.
    coordinator.token().await;
    let end = tokio::time::timeout(Duration::from_secs(5), stream.message()).await.unwrap().unwrap_err();
    assert_eq!((end.code(), reason(&end)), (Code::Unauthenticated, Reason::CredentialExpired));
    assert!(
        tokio::time::timeout(Duration::from_millis(100), other.message()).await.is_err(),
        "of a good key"
    );
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

#[tokio::test]
async fn a_stranger_is_refused_before_any_of_his_message_is_read() {
    let coordinator = Assembled::start().await;
    let channel = coordinator.channel().await;
    let mut client = Grpc::new(channel);
    client.ready().await.unwrap();
    // A message that never comes.
    let request = Request::new(tokio_stream::pending::<Bytes>());
    let path = "/ringmesh.admin.v1.PolicyService/ApplyPolicy".parse().unwrap();
    let answer = client.client_streaming::<_, Bytes, Bytes, _>(request, path, Raw);
    let refused = tokio::time::timeout(Duration::from_secs(5), answer).await.unwrap().unwrap_err();
    assert_eq!(reason(&refused), Reason::CredentialMissing);
}

#[tokio::test]
async fn who_proved_nothing_may_send_8_kib_and_who_has_a_key_a_mebibyte() {
    let mut coordinator = Assembled::start().await;
    let (_, key) = coordinator.key(wish("ci", ApiKeyRole::ReadOnly)).await;
    let large = |length: usize| {
        // Field 1000, which no message has.
        let mut message = Vec::new();
        prost::encoding::encode_varint(1000 << 3 | 2, &mut message);
        prost::encoding::encode_varint(length as u64, &mut message);
        message.resize(message.len() + length, b'x');
        Bytes::from(message)
    };
    for (path, access) in methods() {
        let most = match access {
            _ if path.starts_with("/ringmesh.local") => continue,
            _ if REFLECTION.contains(&path) => MAX_NODE_MESSAGE,
            Access::Anybody | Access::Node => MAX_STRANGER_MESSAGE,
            Access::ReadOnly | Access::Operator | Access::Unspecified => MAX_MESSAGE,
        };
        if access == Access::Operator {
            // The same services, and the key may not.
            continue;
        }
        // What is read of it may be refused for what is missing in it, but not for its length. Reflection answers the first message
        // after its headers, and so says nothing here.
        let channel = coordinator.channel().await;
        let refused =
            |result: Result<(), Status>| result.is_err_and(|status| status.code() == Code::OutOfRange);
        let fits = begin(&channel, path, large(most - 64), Some(&key)).await;
        assert!(!refused(fits), "{path}");
        let channel = coordinator.channel().await;
        let long = begin(&channel, path, large(most + 1), Some(&key)).await;
        let long = long.map_err(|status| (status.code(), status.message().to_owned()));
        assert!(matches!(long, Err((Code::OutOfRange, _))) || REFLECTION.contains(&path), "{path}: {long:?}");
    }
}

/// Calls `Sync` and never says who calls: the answer waits for that. Below gRPC, as a client would give up by itself.
async fn wait_for_sync(coordinator: &Assembled, timeout: Option<&str>) -> (Duration, http::HeaderMap) {
    let (mut requests, connection) =
        h2::client::handshake(crate::flood::tls(coordinator.address).await.unwrap()).await.unwrap();
    tokio::spawn(connection);
    let mut request = http::Request::post("https://coordinator/ringmesh.control.v1.ControlService/Sync")
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some(timeout) = timeout {
        request = request.header("grpc-timeout", timeout);
    }
    let begun = std::time::Instant::now();
    let (answer, _open) = requests.send_request(request.body(()).unwrap(), false).unwrap();
    let headers = answer.await.unwrap().headers().clone();
    (begun.elapsed(), headers)
}

#[tokio::test]
async fn a_request_takes_no_longer_than_its_sender_says_nor_than_is_good_for_the_coordinator() {
    let coordinator = Assembled::start().await;
    let short = wait_for_sync(&coordinator, Some("200m"));
    let never = wait_for_sync(&coordinator, None);
    let for_ever = wait_for_sync(&coordinator, Some("99999999H"));
    let unreadable = wait_for_sync(&coordinator, Some("tomorrow"));
    let (short, never, for_ever, unreadable) = tokio::join!(short, never, for_ever, unreadable);
    for ((took, headers), least, most) in
        [(short, 200, 5_000), (never, 9_990, 15_000), (for_ever, 9_990, 15_000), (unreadable, 9_990, 15_000)]
    {
        let range = Duration::from_millis(least)..Duration::from_millis(most);
        assert!(range.contains(&took), "{took:?}");
        let status = Status::from_header_map(&headers).unwrap();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    }
}

#[tokio::test]
async fn what_proves_a_node_opens_no_method_for_operators_and_the_reverse() {
    let mut coordinator = Assembled::start().await;
    let (_, key) = coordinator.key(wish("ci", ApiKeyRole::Operator)).await;
    // An operator's key is no join token.
    let token = coordinator.token().await;
    let mut node = TestNode::new("a");
    node.set_time(coordinator.now());
    (node.network, node.root) = (token.network(), Some(token.root()));
    let mut connection = connect(coordinator.address).await.unwrap();
    let (proof, _) = node.challenge(&mut connection).await.unwrap();
    let request = control::EnrollRequest {
        token_signature: vec![0; 64],
        ..node.enroll_request(&connection, &token, proof, Lie::None)
    };
    let refused = connection.control.enroll(with_bearer(request, Some(&key))).await.unwrap_err();
    assert!(matches!(reason(&refused), Reason::TokenInvalid | Reason::ProofInvalid), "{refused}");
    // Nor does a connection on which a node proved itself lend its standing to requests beside it.
    let mut member = coordinator.member("b").await;
    let stream = member.sync().await.unwrap();
    let beside =
        begin(&stream.connection.channel, "/ringmesh.admin.v1.NodeService/ListNodes", Bytes::new(), None);
    assert_eq!(reason(&beside.await.unwrap_err()), Reason::CredentialMissing);
    drop(stream);
    // A key of a request says nothing about the next one on the same connection.
    let channel = coordinator.channel().await;
    let list = "/ringmesh.admin.v1.NodeService/ListNodes";
    begin(&channel, list, Bytes::new(), Some(&key)).await.unwrap();
    assert_eq!(
        reason(&begin(&channel, list, Bytes::new(), None).await.unwrap_err()),
        Reason::CredentialMissing
    );
}
