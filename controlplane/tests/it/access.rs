//! Who may call what: every method there is, by every credential there is, as the table that is made from the descriptors says.

mod calls;
mod keys;
mod streams;

use std::{collections::BTreeSet, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use ringmesh_proto::{
    access::{Access, METHODS},
    admin::{self, ApiKeyRole},
    control::{self, Reason},
};
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt as _;

pub use self::calls::{begin, with_bearer};
use self::{
    calls::{answers_with_a_stream, begin_json, begin_json_http1, names_a_network, naming, takes_a_stream},
    streams::open_stream,
};
use crate::{
    client::{Lie, TestNode, connect, reason},
    harness::Assembled,
};

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

impl Shows {
    const ALL: [Self; 10] = [
        Self::Nothing,
        Self::Garbage,
        Self::WrongSecret,
        Self::ExpiredKey,
        Self::RevokedKey,
        Self::OtherNetworksKey,
        Self::JoinToken,
        Self::Session,
        Self::ReadOnlyKey,
        Self::OperatorsKey,
    ];
}

/// How a method is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Grpc,
    Json,
    /// Only methods with one answer: what begins a stream is the same by both versions.
    JsonOverHttp1,
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
    /// Asked for with JSON, which cannot say what the method is to be told.
    OnlyGrpc,
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
fn expected(path: &str, access: Access, shows: Shows, by: By) -> Outcome {
    if by != By::Grpc && REFLECTION.contains(&path) {
        return Outcome::NoSuchMethod;
    }
    if by != By::Grpc && takes_a_stream(path) {
        return Outcome::OnlyGrpc;
    }
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
            Ok(()) if path.starts_with("/ringmesh.admin") && names_a_network(path) => Outcome::NoSuchNetwork,
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
        (Code::InvalidArgument, None) if status.message().contains("only gRPC") => Outcome::OnlyGrpc,
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
        for by in [By::Grpc, By::Json, By::JsonOverHttp1] {
            if by == By::JsonOverHttp1 && answers_with_a_stream(path) {
                continue;
            }
            // The failures of before are no matter any more.
            coordinator.advance(Duration::from_secs(61));
            for shows in Shows::ALL {
                let bearer = credentials.of(shows);
                let result = match by {
                    By::Grpc => begin(&coordinator.channel().await, path, naming(path, "mesh"), bearer).await,
                    By::Json => begin_json(&coordinator.channel().await, path, "mesh", bearer).await,
                    By::JsonOverHttp1 => begin_json_http1(&coordinator, path, "mesh", bearer).await,
                };
                let found = format!("{result:?}");
                let outcome = outcome(path, result);
                assert_eq!(outcome, expected(path, access, shows, by), "{path} {by:?} {shows:?}: {found}");
                seen.insert(format!("{outcome:?}"));
            }
        }
    }
    // Each kind of outcome was met, so that no row of the table stands for nothing.
    assert_eq!(seen.len(), 5 + 5, "{seen:?}");

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
    // A key of a request says nothing about the next one on the same connection.
    let channel = coordinator.channel().await;
    let list = "/ringmesh.admin.v1.NodeService/ListNodes";
    begin(&channel, list, Bytes::new(), Some(&key)).await.unwrap();
    assert_eq!(
        reason(&begin(&channel, list, Bytes::new(), None).await.unwrap_err()),
        Reason::CredentialMissing
    );
}

#[tokio::test]
async fn a_connection_on_which_a_node_proved_itself_lends_its_standing_to_no_request_beside_it() {
    let mut coordinator = Assembled::start().await;
    let mut member = coordinator.member("a").await;
    let mut stream = member.sync().await.unwrap();
    member.update(&mut stream).await;
    let channel = stream.connection.channel.clone();
    for (path, access) in methods() {
        for by in [By::Grpc, By::Json] {
            let result = match by {
                By::Grpc => begin(&channel, path, naming(path, "mesh"), None).await,
                By::Json | By::JsonOverHttp1 => begin_json(&channel, path, "mesh", None).await,
            };
            let found = format!("{result:?}");
            let expected = expected(path, access, Shows::Nothing, by);
            assert_eq!(outcome(path, result), expected, "{path} {by:?}: {found}");
        }
    }
    // And it is the node's all the same.
    stream.tell(&member.record(1)).await;
    member.update(&mut stream).await;
}
