//! The link socket, and strangers of this machine.

use std::{
    fs::{self, Permissions},
    io::ErrorKind,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::PathBuf,
};

use ringmesh_proto::control::Reason;
use ringmesh_tunnel::{Carrier, key::NodeId};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

use super::*;
use crate::fallback::{
    link::{Opened, PROOF},
    link_socket::LinkSocket,
    stream,
};

struct Place {
    _root: tempfile::TempDir,
    path: PathBuf,
}

impl Place {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("link.sock");
        Self { _root: root, path }
    }
}

#[tokio::test]
async fn a_stream_to_the_link_socket_is_a_link() {
    let place = Place::new();
    let (mut here, mut there) = (Side::new(), Side::new());
    let _socket = LinkSocket::bind(&place.path, there.hub.clone()).await.unwrap();
    let stream = UnixStream::connect(&place.path).await.unwrap();
    let asked = DialOpen { peer: NodeId::from_bytes([7; 8]), candidate: 3, carrier: Carrier::Ssh };
    let end = here.hub.open(asked);
    let link = end.link();
    assert!(matches!(here.arrival().await, Arrival::Opened { .. }));
    tokio::spawn(async move { stream::pump(stream, &end, Opened::Here).await });
    let incoming = exchange((&mut here, link), &mut there).await;
    assert_eq!(incoming.carrier, Carrier::Ssh);
}

#[tokio::test]
async fn everybody_may_connect_and_the_file_goes_with_the_daemon() {
    let place = Place::new();
    let socket = LinkSocket::bind(&place.path, Side::new().hub).await.unwrap();
    assert_eq!(fs::metadata(&place.path).unwrap().mode() & 0o777, 0o666);
    let refused = LinkSocket::bind(&place.path, Side::new().hub).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::Conflict, "{refused}");
    drop(socket);
    assert!(!place.path.exists());
    drop(std::os::unix::net::UnixListener::bind(&place.path).unwrap());
    assert!(place.path.exists(), "a dead daemon's file");
    LinkSocket::bind(&place.path, Side::new().hub).await.unwrap();
}

#[tokio::test]
async fn a_place_that_is_not_ours_alone_is_refused() {
    let place = Place::new();
    fs::write(&place.path, "precious").unwrap();
    let refused = LinkSocket::bind(&place.path, Side::new().hub).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::Conflict, "{refused}");
    assert_eq!(fs::read_to_string(&place.path).unwrap(), "precious");

    let directory = place.path.parent().unwrap();
    for mode in [0o775, 0o757, 0o1777] {
        fs::set_permissions(directory, Permissions::from_mode(mode)).unwrap();
        let refused = LinkSocket::bind(&directory.join("s"), Side::new().hub).await.unwrap_err();
        assert!(refused.to_string().contains("chmod 755"), "{refused}");
    }
    fs::set_permissions(directory, Permissions::from_mode(0o755)).unwrap();
    let inner = directory.join("inner");
    fs::create_dir(&inner).unwrap();
    fs::set_permissions(directory, Permissions::from_mode(0o777)).unwrap();
    let refused = LinkSocket::bind(&inner.join("s"), Side::new().hub).await.unwrap_err();
    assert!(refused.to_string().contains("written by others"), "whoever renames `inner`: {refused}");
    fs::set_permissions(directory, Permissions::from_mode(0o1777)).unwrap();
    LinkSocket::bind(&inner.join("s"), Side::new().hub).await.unwrap();
    // A link leads where it leads: that place is judged.
    let open = tempfile::tempdir().unwrap();
    fs::set_permissions(open.path(), Permissions::from_mode(0o777)).unwrap();
    std::os::unix::fs::symlink(open.path(), inner.join("away")).unwrap();
    let refused = LinkSocket::bind(&inner.join("away/s"), Side::new().hub).await.unwrap_err();
    assert!(refused.to_string().contains(open.path().to_str().unwrap()), "{refused}");
    let missing = LinkSocket::bind(&directory.join("no/s"), Side::new().hub).await.unwrap_err();
    assert!(missing.to_string().contains("No such file"), "{missing}");
}

#[tokio::test]
async fn a_stranger_is_cut_whatever_it_does_and_hears_nothing() {
    let place = Place::new();
    let mut side = Side::new();
    let _socket = LinkSocket::bind(&place.path, side.hub.clone()).await.unwrap();
    let begun = Instant::now();
    let mut strangers = Vec::new();
    for said in
        [&b""[..], b"\x00", b"\x24\x00half a frame", b"\x00\x04junk", b"GET / HTTP/1.1\r\n\r\n", b"\x00\x00"]
    {
        let mut stream = UnixStream::connect(&place.path).await.unwrap();
        stream.write_all(said).await.unwrap();
        strangers.push((said, stream));
    }
    for (said, mut stream) in strangers {
        let mut answer = Vec::new();
        let _ = timeout(SOON, stream.read_to_end(&mut answer)).await.expect("it was not cut");
        assert_eq!(answer, b"", "{said:?}");
    }
    assert!(begun.elapsed() < PROOF + Duration::from_secs(1));
    let (mut datagrams, mut closed) = (Vec::new(), 0);
    while let Some(arrival) = side.links.receive() {
        match arrival {
            Arrival::Datagrams { mut batch, .. } => datagrams.extend(batch.datagrams().map(|d| d.to_vec())),
            Arrival::Closed { .. } => closed += 1,
            other @ (Arrival::Opened { .. } | Arrival::Failed { .. }) => panic!("{other:?}"),
        }
    }
    assert_eq!(datagrams, [b"junk"]);
    assert_eq!(closed, 0, "the worker is not asked to look for links that nobody used");
    assert_eq!(side.links.count(), 0);
}

#[tokio::test]
async fn strangers_of_one_user_are_few_and_proven_streams_make_room() {
    let place = Place::new();
    let mut side = Side::new();
    let _socket = LinkSocket::bind(&place.path, side.hub.clone()).await.unwrap();
    let mut streams = Vec::new();
    let mut links = Vec::new();
    for _ in 0..16 {
        let mut stream = UnixStream::connect(&place.path).await.unwrap();
        stream.write_all(b"\x00\x02hi").await.unwrap();
        links.push(side.datagrams(1).await.0);
        streams.push(stream);
    }
    let mut refused = UnixStream::connect(&place.path).await.unwrap();
    let answer = timeout(PROOF / 2, refused.read(&mut [0; 1])).await.expect("it is not cut at once");
    assert!(
        matches!(&answer, Ok(0)) || answer.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
    );

    side.links.confirm(links[0]);
    // The place is free once the task has heard of it.
    streams.push(until_taken(&place.path, &mut side).await.0);
}

/// Connects until there is a place for it; gives the stream and its link.
async fn until_taken(path: &std::path::Path, side: &mut Side) -> (UnixStream, Link) {
    let until = Instant::now() + SOON;
    loop {
        let mut stream = UnixStream::connect(path).await.unwrap();
        let _ = stream.write_all(b"\x00\x02hi").await;
        match side.arrival_within(Duration::from_millis(100)).await {
            Some(Arrival::Datagrams { link, .. }) => return (stream, link),
            _ => assert!(Instant::now() < until, "no room was made"),
        }
    }
}

#[tokio::test]
async fn who_connects_and_hangs_up_without_pause_is_soon_not_heard() {
    let place = Place::new();
    let mut side = Side::new();
    let _socket = LinkSocket::bind(&place.path, side.hub.clone()).await.unwrap();
    let begun = Instant::now();
    let mut links = std::collections::BTreeSet::new();
    for _ in 0..1500 {
        let mut stream = UnixStream::connect(&place.path).await.unwrap();
        let _ = stream.write_all(b"\x00\x02hi").await;
        drop(stream);
        while let Some(arrival) = side.links.receive() {
            let Arrival::Datagrams { link, .. } = arrival else { panic!("{arrival:?}") };
            links.insert(link.number);
        }
    }
    let allowed = 64 + 32 * (begun.elapsed().as_secs() as usize + 1);
    assert!(!links.is_empty() && links.len() <= allowed, "{} of 1500, {allowed} allowed", links.len());
    until_taken(&place.path, &mut side).await;
}

#[tokio::test]
async fn even_proven_streams_of_one_user_have_a_bound() {
    let place = Place::new();
    let mut side = Side::new();
    let _socket = LinkSocket::bind(&place.path, side.hub.clone()).await.unwrap();
    let mut streams = Vec::new();
    for _ in 0..192 {
        let (stream, link) = until_taken(&place.path, &mut side).await;
        side.links.confirm(link);
        streams.push(stream);
    }
    let mut refused = UnixStream::connect(&place.path).await.unwrap();
    let answer = timeout(PROOF / 2, refused.read(&mut [0; 1])).await.expect("it is not cut at once");
    assert!(
        matches!(&answer, Ok(0)) || answer.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
    );
}
