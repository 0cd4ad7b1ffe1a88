//! Mesh DNS of real daemons: what the network and its policy name is answered to the machine, and to no peer.

use std::{
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use ringmesh_io::Choice;
use ringmesh_lab::{Capture, Captured, in_sandbox};
use ringmesh_proto::local::DnsStatusRequest;

use crate::{
    support::block_on,
    world::{Machine, Member, World, within},
};

/// Everybody may open everything to everybody.
const OPEN: &str = "[[allow]]\nfrom = \"*\"\nto = \"*\"\n";
/// Within this, what a policy names is answered.
const SOON: Duration = Duration::from_secs(1);
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Waits until the node answers on both of its addresses.
async fn until_answering(member: &mut Member) {
    let began = Instant::now();
    loop {
        let status = member.node.client.dns_status(DnsStatusRequest {}).await.unwrap().into_inner();
        if status.listen.len() == 2 {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "{status:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What `dig` finds at one of the node's own addresses, on the node's machine; sorted.
fn dig(member: &Member, at: IpAddr, words: &str) -> Vec<String> {
    let said = member.machine.sh(&format!("dig @{at} +short +time=5 +tries=1 {words}"));
    let mut lines: Vec<_> = said.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn what_the_network_and_its_policy_name_is_answered() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let mut alpha = world.node("alpha", Choice::Auto).await;
            let beta = world.node("beta", Choice::Auto).await;
            alpha.until_peers(1).await;
            until_answering(&mut alpha).await;
            let (v4, v6) = (beta.ipv4.to_string(), beta.ipv6.to_string());
            for at in [alpha.ipv4, alpha.ipv6] {
                for transport in ["+notcp", "+tcp"] {
                    assert_eq!(dig(&alpha, at, &format!("{transport} beta.mesh A")), [v4.as_str()]);
                    assert_eq!(dig(&alpha, at, &format!("{transport} BETA.mesh AAAA")), [v6.as_str()]);
                    assert_eq!(dig(&alpha, at, &format!("{transport} -x {v4}")), ["beta.mesh."]);
                    assert_eq!(dig(&alpha, at, &format!("{transport} -x {v6}")), ["beta.mesh."]);
                    assert_eq!(dig(&alpha, at, &format!("{transport} git.mesh A")), [""; 0]);
                }
            }
            let names = "[names]\ngit = \"beta\"\n\"db.eu\" = [\"192.0.2.9\", \"2001:db8::9\"]\n";
            world.apply(&format!("{OPEN}{names}")).await;
            within(SOON, "the policy's names are answered", || {
                dig(&alpha, alpha.ipv4, "git.mesh A") == [v4.clone()]
            });
            assert_eq!(dig(&alpha, alpha.ipv6, "git.mesh AAAA"), [v6]);
            assert_eq!(dig(&alpha, alpha.ipv4, "db.eu.mesh A"), ["192.0.2.9"]);
            assert_eq!(dig(&alpha, alpha.ipv4, "db.eu.mesh AAAA"), ["2001:db8::9"]);
            assert_eq!(dig(&alpha, alpha.ipv4, &format!("-x {v4}")), ["beta.mesh."]);
            world.apply(OPEN).await;
            within(SOON, "they are gone with it", || dig(&alpha, alpha.ipv4, "git.mesh A").is_empty());

            world.remove("beta").await;
            within(Duration::from_secs(10), "a removed node has no name", || {
                dig(&alpha, alpha.ipv4, "beta.mesh A").is_empty()
            });
            let said = alpha.machine.sh(&format!("dig @{} +noall +comments beta.mesh", alpha.ipv4));
            assert!(said.contains("status: NXDOMAIN"), "{said}");
            alpha.node.stop().await.unwrap();
        });
    });
}

/// Packets on a TUN device that came from `from`: protocol and source port, for those that have ports.
fn sent_from(captured: &Captured, from: IpAddr) -> Vec<(u8, u16)> {
    assert_eq!(captured.dropped(), 0);
    let source = match from {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let (protocol, place, header) = if from.is_ipv4() { (9, 12, 20) } else { (6, 8, 40) };
    let packets = captured.frames().filter(|packet| {
        packet[0] >> 4 == if from.is_ipv4() { 4 } else { 6 }
            && packet.get(place..place + source.len()) == Some(source.as_slice())
    });
    packets
        .map(|packet| match packet[protocol] {
            TCP | UDP => (packet[protocol], u16::from_be_bytes([packet[header], packet[header + 1]])),
            other => (other, 0),
        })
        .collect()
}

/// Asks for `beta.mesh`: whether an answer came by UDP, and a handshake by TCP.
fn asks(machine: &Machine, to: SocketAddr) -> (bool, bool) {
    let query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x04beta\x04mesh\0\0\x01\0\x01";
    let asked = machine.host.enter(|| {
        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let socket = UdpSocket::bind((any, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        socket.send_to(query, to).unwrap();
        let answered = socket.recv(&mut [0; 512]).is_ok();
        (answered, TcpStream::connect_timeout(&to, Duration::from_millis(500)).is_ok())
    });
    asked.unwrap()
}

#[test]
fn an_open_policy_makes_no_open_resolver() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let mut alpha = world.node("alpha", Choice::Auto).await;
            let mut beta = world.node("beta", Choice::Auto).await;
            world.apply(OPEN).await;
            alpha.until_peers(1).await;
            beta.echo("alpha").await;
            until_answering(&mut alpha).await;
            for own in [alpha.ipv4, alpha.ipv6] {
                assert_eq!(
                    asks(&alpha.machine, (own, 53).into()),
                    (true, true),
                    "the machine itself, at {own}"
                );
            }
            // The peer may reach everything there: a server beside it answers, and a port without one says so.
            let beside = alpha.machine.host.enter(|| {
                let sockets = [alpha.ipv4, alpha.ipv6].map(|own| UdpSocket::bind((own, 54)).unwrap());
                let listeners = [alpha.ipv4, alpha.ipv6].map(|own| TcpListener::bind((own, 54)).unwrap());
                (sockets, listeners)
            });
            let (sockets, _listeners) = beside.unwrap();
            for (own, socket) in [alpha.ipv4, alpha.ipv6].into_iter().zip(&sockets) {
                socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                assert_eq!(asks(&beta.machine, (own, 54).into()), (false, true));
                socket.recv(&mut [0; 512]).expect("the query came in");
            }
            let capture = Capture::start(&alpha.machine.host, "mesh0").unwrap();
            for own in [alpha.ipv4, alpha.ipv6] {
                assert_eq!(asks(&beta.machine, (own, 53).into()), (false, false), "a peer, at {own}");
            }
            let captured = capture.stop().unwrap();
            assert!(captured.count(b"\x04beta\x04mesh") >= 2, "its queries came in");
            for own in [alpha.ipv4, alpha.ipv6] {
                // The connection beside it may still be ending.
                let answers = sent_from(&captured, own).into_iter().filter(|(_, port)| *port != 54);
                assert_eq!(
                    answers.collect::<Vec<_>>(),
                    [],
                    "nothing went back, not even that there is nobody"
                );
            }
            for member in [alpha, beta] {
                member.node.stop().await.unwrap();
            }
        });
    });
}
