//! The node's own SSH endpoint, from peers and from everybody else. Both ends are real and on the loopback.

use std::{net::SocketAddr, sync::Arc};

use ringmesh_proto::control::Reason;
use ringmesh_tunnel::{
    Carrier,
    key::{IdentitySecret, NodeId},
};
use russh::{
    ChannelMsg,
    client::{self, AuthResult, Handle},
    keys::{
        PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate,
        ssh_key::private::{Ed25519Keypair, KeypairData},
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::fallback::{
    link::{Ended, PROOF},
    ssh::{Members, SshServer, SshStream, dial_endpoint, listen},
};

const ASKED: DialOpen = DialOpen { peer: NodeId::from_bytes([7; 8]), candidate: 3, carrier: Carrier::Ssh };

/// A node whose identity is 1 and whose only member is 2.
struct Node {
    side: Side,
    members: Members,
    address: SocketAddr,
    _server: SshServer,
}

impl Node {
    async fn start() -> Self {
        let side = Side::new();
        let members = Members::new();
        members.set([identity(2).public_key()]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = SshServer::start(listener, &identity(1), members.clone(), side.hub.clone()).unwrap();
        Self { side, members, address, _server: server }
    }

    async fn dial(&self, own: &IdentitySecret) -> Result<SshStream, crate::error::Failure> {
        dial_endpoint(self.address, &identity(1).public_key(), own, None).await
    }
}

/// The tunnel's side of a stream that was dialled.
async fn carry(side: &mut Side, stream: SshStream) -> (Link, tokio::task::JoinHandle<Ended>) {
    let end = side.hub.open(ASKED);
    let link = end.link();
    assert!(matches!(side.arrival().await, Arrival::Opened { .. }));
    (link, tokio::spawn(async move { stream.pump(&end).await }))
}

#[tokio::test]
async fn datagrams_cross_between_a_node_and_its_peers_endpoint() {
    let mut node = Node::start().await;
    let mut side = Side::new();
    let (link, pump) = carry(&mut side, node.dial(&identity(2)).await.unwrap()).await;
    let incoming = exchange((&mut side, link), &mut node.side).await;
    assert_eq!(incoming.carrier, Carrier::Ssh);
    side.links.dial(ringmesh_tunnel::Dial::Close { link });
    assert!(matches!(pump.await.unwrap(), Ended::Closed));
    node.side.closed(incoming).await;
}

#[tokio::test]
async fn an_endpoint_that_shows_another_key_gets_nothing() {
    let mut node = Node::start().await;
    let failure =
        dial_endpoint(node.address, &identity(3).public_key(), &identity(2), None).await.unwrap_err();
    let text = failure.to_string();
    assert_eq!(failure.reason(), Reason::Unreachable);
    assert!(text.contains("WRONG HOST KEY"), "{text}");
    assert!(text.contains(&identity(1).public_key().fingerprint()), "what it shows: {text}");
    assert!(text.contains(&identity(3).public_key().fingerprint()), "what was expected: {text}");
    assert!(node.side.arrival_within(Duration::from_millis(50)).await.is_none());
}

#[tokio::test]
async fn who_is_no_member_is_refused_until_it_is_one_and_cut_when_it_is_none() {
    let mut node = Node::start().await;
    let failure = node.dial(&identity(3)).await.unwrap_err();
    assert!(failure.to_string().contains("does not accept this node's key"), "{failure}");

    node.members.set([identity(2).public_key(), identity(3).public_key()]);
    let mut side = Side::new();
    let (link, pump) = carry(&mut side, node.dial(&identity(3)).await.unwrap()).await;
    let incoming = exchange((&mut side, link), &mut node.side).await;
    node.members.set([identity(2).public_key()]);
    node.side.closed(incoming).await;
    let ended = timeout(SOON, pump).await.unwrap().unwrap();
    assert!(matches!(ended, Ended::Eof | Ended::Io(_)), "{ended}");
    node.dial(&identity(3)).await.unwrap_err();
}

#[tokio::test]
async fn a_members_new_link_takes_the_place_of_its_oldest() {
    let mut node = Node::start().await;
    let mut sides = Vec::new();
    for _ in 0..4 {
        let mut side = Side::new();
        let (link, pump) = carry(&mut side, node.dial(&identity(2)).await.unwrap()).await;
        let incoming = exchange((&mut side, link), &mut node.side).await;
        sides.push((side, incoming, pump));
    }
    let mut side = Side::new();
    let (link, _pump) = carry(&mut side, node.dial(&identity(2)).await.unwrap()).await;
    node.side.closed(sides[0].1).await;
    exchange((&mut side, link), &mut node.side).await;
    assert!(!sides[1].2.is_finished(), "the others stay");
}

#[tokio::test]
async fn a_member_that_brings_no_session_is_cut() {
    let mut node = Node::start().await;
    let mut side = Side::new();
    let begun = Instant::now();
    let (link, _pump) = carry(&mut side, node.dial(&identity(2)).await.unwrap()).await;
    side.send(link, &[vec![0xff; 100]]);
    let (incoming, _) = node.side.datagrams(1).await;
    node.side.links.used(incoming);
    node.side.closed(incoming).await;
    side.closed(link).await;
    assert!(begun.elapsed() < PROOF + Duration::from_secs(1));
}

/// Two that both send as much as they can, as two downloads in opposite directions do, must not wait for each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_speed_both_ways_at_once_goes_on() {
    const COUNT: usize = 12_000;
    let mut node = Node::start().await;
    let mut side = Side::new();
    let (link, _pump) = carry(&mut side, node.dial(&identity(2)).await.unwrap()).await;
    let incoming = exchange((&mut side, link), &mut node.side).await;
    let push = |mut side: Side, link: Link| async move {
        let (mut sent, mut came) = (0, 0);
        while sent < COUNT || came < COUNT {
            while sent < COUNT && side.links.send(link, &[7; 1452]).is_ok() {
                sent += 1;
            }
            side.links.flush();
            match side.links.receive() {
                Some(Arrival::Datagrams { mut batch, .. }) => came += batch.datagrams().count(),
                Some(other) => panic!("{other:?} after {sent} sent and {came} received"),
                None => sleep(Duration::from_micros(200)).await,
            }
        }
        side
    };
    let both =
        async { tokio::join!(tokio::spawn(push(side, link)), tokio::spawn(push(node.side, incoming))) };
    let (one, two) = timeout(Duration::from_secs(60), both).await.expect("it came to a stop");
    one.unwrap();
    two.unwrap();
}

/// A client that checks nothing: what a stranger would use.
struct Anybody;

impl client::Handler for Anybody {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _shown: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

async fn stranger(node: &Node) -> Handle<Anybody> {
    let tcp = TcpStream::connect(node.address).await.unwrap();
    client::connect_stream(Arc::default(), tcp, Anybody).await.unwrap()
}

async fn log_in(node: &Node, number: u8) -> (Handle<Anybody>, AuthResult) {
    let mut handle = stranger(node).await;
    let pair = Ed25519Keypair::from_seed(identity(number).seed());
    let key = PrivateKey::new(KeypairData::Ed25519(pair), "").unwrap();
    let key = PrivateKeyWithHashAlg::new(Arc::new(key), None);
    let result = handle.authenticate_publickey("root", key).await.unwrap();
    (handle, result)
}

#[tokio::test]
async fn only_a_public_key_opens_the_door_and_few_are_tried() {
    let node = Node::start().await;
    let mut handle = stranger(&node).await;
    assert!(!handle.authenticate_none("root").await.unwrap().success());
    let AuthResult::Failure { remaining_methods, .. } =
        handle.authenticate_password("root", "").await.unwrap()
    else {
        panic!("a password was accepted")
    };
    assert!(!remaining_methods.contains(&russh::MethodKind::Password));
    assert!(!log_in(&node, 3).await.1.success());
    assert!(handle.channel_open_session().await.is_err(), "nothing without a key");

    let mut handle = stranger(&node).await;
    let mut tries = 0;
    while tries < 20
        && handle.authenticate_password("root", "guess").await.is_ok_and(|result| !result.success())
    {
        tries += 1;
        if handle.is_closed() {
            break;
        }
    }
    assert!(tries <= 5, "{tries} tries");
}

#[tokio::test]
async fn a_member_gets_nothing_but_a_link() {
    let mut node = Node::start().await;
    let (handle, result) = log_in(&node, 2).await;
    assert!(result.success());
    assert!(handle.channel_open_direct_tcpip("127.0.0.1", 22, "127.0.0.1", 1).await.is_err());
    assert!(handle.channel_open_direct_streamlocal("/run/mesh/link.sock").await.is_err());
    assert!(handle.channel_open_x11("127.0.0.1", 1).await.is_err());
    assert!(handle.tcpip_forward("127.0.0.1", 0).await.is_err());
    assert!(handle.streamlocal_forward("/tmp/never").await.is_err());

    let mut channel = handle.channel_open_session().await.unwrap();
    assert!(handle.channel_open_session().await.is_err(), "one channel is all there is");
    let mut refused = 0;
    channel.exec(true, "id").await.unwrap();
    refused += usize::from(failed(&mut channel).await);
    channel.request_shell(true).await.unwrap();
    refused += usize::from(failed(&mut channel).await);
    channel.request_pty(true, "xterm", 80, 24, 0, 0, &[]).await.unwrap();
    refused += usize::from(failed(&mut channel).await);
    channel.set_env(true, "LD_PRELOAD", "/tmp/x.so").await.unwrap();
    refused += usize::from(failed(&mut channel).await);
    channel.agent_forward(true).await.unwrap();
    refused += usize::from(failed(&mut channel).await);
    channel.request_x11(true, false, "MIT", "00", 0).await.unwrap();
    refused += usize::from(failed(&mut channel).await);
    channel.request_subsystem(true, "sftp").await.unwrap();
    refused += usize::from(failed(&mut channel).await);
    assert_eq!(refused, 7);
    assert!(node.side.arrival_within(Duration::from_millis(20)).await.is_none());

    channel.request_subsystem(true, "ringmesh").await.unwrap();
    assert!(matches!(channel.wait().await, Some(ChannelMsg::Success)));
    channel.request_subsystem(true, "ringmesh").await.unwrap();
    assert!(failed(&mut channel).await, "once");
    channel.data(&[0, 2, 5, 5][..]).await.unwrap();
    assert_eq!(node.side.datagrams(1).await.1, [vec![5, 5]]);
}

/// Whether the next answer is no.
async fn failed(channel: &mut russh::Channel<client::Msg>) -> bool {
    loop {
        match channel.wait().await {
            Some(ChannelMsg::Failure) => return true,
            Some(ChannelMsg::WindowAdjusted { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn who_asks_too_often_for_what_there_is_not_is_cut() {
    let node = Node::start().await;
    let (handle, _) = log_in(&node, 2).await;
    let mut refused = 0;
    while refused < 100 && !handle.is_closed() {
        let _ =
            timeout(SOON, handle.channel_open_direct_tcpip("127.0.0.1", 22, "127.0.0.1", 1)).await.unwrap();
        refused += 1;
    }
    assert!((10..30).contains(&refused), "{refused}");
}

#[tokio::test]
async fn strangers_are_few_and_gone_after_ten_seconds() {
    let node = Node::start().await;
    let begun = Instant::now();
    let mut idle = Vec::new();
    for _ in 0..8 {
        let mut tcp = TcpStream::connect(node.address).await.unwrap();
        let mut banner = [0; 8];
        tcp.read_exact(&mut banner).await.unwrap();
        assert_eq!(&banner, b"SSH-2.0-");
        idle.push(tcp);
    }
    // Some say nothing, some half of something, some a length that never comes.
    for (index, tcp) in idle.iter_mut().enumerate() {
        let said: &[u8] = match index % 3 {
            0 => b"",
            1 => b"SSH-2.0-x\r\n",
            _ => b"SSH-2.0-x\r\n\x00\x03\xff\xff\x04",
        };
        tcp.write_all(said).await.unwrap();
    }
    let mut ninth = TcpStream::connect(node.address).await.unwrap();
    let mut answer = Vec::new();
    let _ = ninth.read_to_end(&mut answer).await;
    assert_eq!(answer, b"", "one more of the same source is closed without a word");
    for mut tcp in idle {
        let _ = timeout(SOON, tcp.read_to_end(&mut Vec::new())).await.expect("it was not cut");
    }
    let took = begun.elapsed();
    assert!(took < PROOF + Duration::from_secs(1), "{took:?}");
    assert!(node.dial(&identity(2)).await.is_ok(), "and then there is room again");
}

#[tokio::test]
async fn an_endpoint_listens_on_both_families_and_says_if_it_cannot() {
    let listener = listen(0).unwrap();
    let port = listener.local_addr().unwrap().port();
    TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    if let Ok(v6) = std::net::TcpListener::bind("[::1]:0") {
        drop(v6);
        TcpStream::connect(("::1", port)).await.unwrap();
    }
    assert_eq!(listen(port).unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
}

#[tokio::test]
async fn what_is_no_endpoint_is_said_to_be_none() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answering = tokio::spawn(async move {
        for _ in 0..2 {
            let (mut tcp, _) = listener.accept().await.unwrap();
            tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        }
    });
    let failure = dial_endpoint(address, &identity(1).public_key(), &identity(2), None).await.unwrap_err();
    assert!(failure.to_string().contains("SSH"), "{failure}");
    answering.abort();
    let _ = answering.await;
    let failure = dial_endpoint(address, &identity(1).public_key(), &identity(2), None).await.unwrap_err();
    assert!(failure.to_string().contains("TCP failed"), "{failure}");
}
