//! A TCP connection to a name: its addresses are tried beside each other, so that a broken IPv6 costs no time (RFC 8305).

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    net::{TcpStream, lookup_host},
    task::JoinSet,
    time::sleep,
};

use super::{
    doors::{Door, Visit},
    link,
};

/// How long an attempt stays alone (RFC 8305 §8, Connection Attempt Delay).
const HEAD_START: Duration = Duration::from_millis(250);
/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 8;

/// Connects to the first address of `host` that answers. The caller bounds the time. `visit` judges each address, if it was not the
/// user who named the host.
///
/// # Errors
/// The name has no address, or the failure of the attempt that ended last.
pub(super) async fn connect(host: &str, port: u16, visit: Option<&Visit<'_>>) -> io::Result<TcpStream> {
    let found: Vec<_> = lookup_host((host, port)).await?.collect();
    let tcp = race(alternate(found), visit).await?;
    if let Some(visit) = visit {
        visit.entered(Door::Address(tcp.peer_addr()?));
    }
    link::prepare(&tcp);
    Ok(tcp)
}

/// IPv6 and IPv4 by turns, beginning with the family that the resolver put first (RFC 8305 §4).
fn alternate(found: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let Some(first) = found.first().map(SocketAddr::is_ipv6) else { return found };
    let (mut one, mut other): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|address| address.is_ipv6() == first);
    one.reverse();
    other.reverse();
    let mut addresses = Vec::new();
    while addresses.len() < MAX_ADDRESSES && !(one.is_empty() && other.is_empty()) {
        addresses.extend(one.pop());
        addresses.extend(other.pop());
    }
    addresses.truncate(MAX_ADDRESSES);
    addresses
}

async fn race(addresses: Vec<SocketAddr>, visit: Option<&Visit<'_>>) -> io::Result<TcpStream> {
    let mut attempts = JoinSet::new();
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let mut waiting = addresses.into_iter();
    loop {
        let more = match waiting.next() {
            Some(address) => {
                if let Some(Err(refused)) = visit.map(|visit| visit.to_address(address)) {
                    failure = refused;
                    continue;
                }
                attempts.spawn(TcpStream::connect(address));
                true
            }
            None => false,
        };
        // One that fails lets the next begin at once.
        let ended = tokio::select! {
            ended = attempts.join_next() => ended,
            () = sleep(HEAD_START), if more => continue,
        };
        match ended {
            Some(Ok(Ok(tcp))) => return Ok(tcp),
            Some(Ok(Err(error))) => failure = error,
            Some(Err(error)) => failure = io::Error::other(error),
            None => return Err(failure),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn families_take_turns_and_the_list_is_bounded() {
        let v4 = |last: u8| SocketAddr::from(([192, 0, 2, last], 1));
        let v6 = |last: u16| SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, last], 1));
        assert_eq!(alternate(vec![v6(1), v6(2), v6(3), v4(1)]), [v6(1), v4(1), v6(2), v6(3)]);
        assert_eq!(alternate(vec![v4(1), v6(1)]), [v4(1), v6(1)]);
        assert_eq!(alternate((0..200).map(v4).collect()).len(), MAX_ADDRESSES);
        assert!(alternate(Vec::new()).is_empty());
    }

    #[tokio::test]
    async fn a_dead_address_costs_a_moment_and_not_the_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let alive = listener.local_addr().unwrap();
        let refused = {
            let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
            gone.local_addr().unwrap()
        };
        // A listener whose queue is full answers nothing, as a firewall would.
        let silent = tokio::net::TcpSocket::new_v4().unwrap();
        silent.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let silent = silent.listen(0).unwrap();
        let full = silent.local_addr().unwrap();
        let mut filling: Vec<_> = (0..4).map(|_| Box::pin(TcpStream::connect(full))).collect();
        for attempt in &mut filling {
            let _ = tokio::time::timeout(Duration::from_millis(50), attempt).await;
        }
        let tcp = race(vec![refused, full, alive], None).await.unwrap();
        assert_eq!(tcp.peer_addr().unwrap(), alive);
        assert_eq!(race(vec![refused], None).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(race(Vec::new(), None).await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn what_a_member_named_is_judged_by_what_it_resolves_to() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (doors, pools) = (super::super::doors::Doors::default(), ["198.51.100.0/24".parse().unwrap()]);
        let visit = Visit::new(&doors, &pools, ringmesh_tunnel::key::NodeId::from_bytes([1; 8]), false);
        for host in [
            "localhost",
            "127.0.0.1",
            "127.1",
            "2130706433",
            "0x7f.1",
            "0",
            "169.254.169.254",
            "::1",
            "::ffff:127.0.0.1",
            "fd00:ec2::254",
            "198.51.100.7",
        ] {
            let refused = connect(host, port, Some(&visit)).await.unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied, "{host}: {refused}");
            assert!(refused.to_string().contains("no member may"), "{host}: {refused}");
        }
        assert!(visit.door().is_none());
        // The resolver makes this machine of them, and who configured them may go there.
        for host in ["localhost", "127.1", "2130706433", "0x7f.1"] {
            connect(host, port, None).await.unwrap();
        }
    }
}
