//! How long, and how long a message, a connection may last by what was proved on it.

use std::time::Duration;

use bytes::Bytes;
use ringmesh_controlplane::server::{Limits, MAX_MESSAGE, MAX_NODE_MESSAGE, MAX_STRANGER_MESSAGE};
use ringmesh_proto::{
    access::Access,
    admin::{self, ApiKeyRole},
    control::Reason,
};
use tonic::{Code, Request, Status, client::Grpc, transport::Channel};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;

use super::{HEALTH, REFLECTION, begin, calls::Raw, methods, wish, with_bearer};
use crate::{client::reason, harness::Assembled};

const fn hasty() -> Limits {
    Limits { time_to_prove: Duration::from_millis(1000), ..LIMITS }
}
const LIMITS: Limits = Limits {
    connections: 64,
    unproven_per_source: 32,
    unproven_patience: Duration::ZERO,
    handshake: Duration::from_secs(5),
    time_to_prove: Duration::from_secs(30),
    ..Limits::DEFAULT
};

/// Opens a stream that says nothing by itself: what ends it is the coordinator.
pub async fn open_stream(
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
