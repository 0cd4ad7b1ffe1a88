//! DNS as a program sees it: messages in, messages out, by the decision alone and by real sockets.

mod dig;
mod forwarding;
mod hostile;
mod map;
mod messages;
mod netns;
mod sockets;
mod zones;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query as Question, ResponseCode},
    rr::{Name, RecordType},
};
use tokio::sync::watch;

use super::{
    answering::{Decision, decide},
    counters::Refusal,
    message::Transport,
    zone::{Contents, Zone},
};

/// What a test waits for comes much sooner.
const SOON: Duration = Duration::from_secs(20);

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// A small network, seen by its member `alice`.
fn zone() -> Zone {
    let members = [
        ("alice", addresses(&["100.64.0.1", "fd00:1::1"])),
        ("bob", addresses(&["100.64.0.2", "fd00:1::2"])),
        ("six", addresses(&["fd00:1::3"])),
    ];
    let printers: Vec<String> = (1..=16).map(|host| format!("fd00:9::{host:x}")).collect();
    let printers: Vec<&str> = printers.iter().map(String::as_str).collect();
    let records = [
        ("git", addresses(&["100.64.0.2", "fd00:1::2"])),
        ("printer", addresses(&["10.1.0.9", "fd00:1:0:ffff::9"])),
        ("copier", addresses(&["fd00:1:0:ffff::9"])),
        ("db.eu", addresses(&["100.64.9.9"])),
        ("many", addresses(&printers)),
        // A policy cannot give a name twice.
        ("git", addresses(&["10.6.6.6"])),
    ];
    Zone::new(Contents {
        zone: "mesh",
        pools: &["100.64.0.0/10".parse().unwrap(), "fd00:1::/48".parse().unwrap()],
        own: Some("alice"),
        serial: 7,
        members: members.into_iter(),
        records: records.into_iter(),
    })
}

/// A query as programs send it.
fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Question::query(Name::from_ascii(name).unwrap(), kind));
    message
}

/// The same with EDNS.
fn query_with(name: &str, kind: RecordType, edns: impl FnOnce(&mut Edns)) -> Message {
    let (mut message, mut offer) = (query(name, kind), Edns::new());
    edns(&mut offer);
    message.set_edns(offer);
    message
}

/// What the example network answers; there must be an answer.
fn answer(message: &Message, transport: Transport) -> Message {
    Message::from_vec(&answer_bytes(&message.to_vec().unwrap(), transport)).unwrap()
}

fn answer_bytes(message: &[u8], transport: Transport) -> Vec<u8> {
    match decide(message, &zone(), transport) {
        Decision::Answer(bytes, _) => bytes,
        other @ (Decision::Silence(_) | Decision::Forward(_)) => panic!("{other:?}"),
    }
}

/// Records of a section in words: owner, life, type and data.
fn words(records: &[hickory_proto::rr::Record]) -> Vec<String> {
    records
        .iter()
        .map(|record| {
            let (name, kind) = (record.name.to_ascii(), record.record_type());
            format!("{name} {} {kind} {}", record.ttl, record.data)
        })
        .collect()
}

fn silence(message: &[u8]) -> Refusal {
    match decide(message, &zone(), Transport::Udp) {
        Decision::Silence(why) => why,
        other @ (Decision::Answer(..) | Decision::Forward(_)) => panic!("{other:?}"),
    }
}

/// The example network, as a server is given it.
fn published() -> watch::Receiver<Arc<Zone>> {
    watch::channel(Arc::new(zone())).1
}

fn loopback() -> [SocketAddr; 2] {
    ["127.0.0.1:0".parse().unwrap(), "[::1]:0".parse().unwrap()]
}
