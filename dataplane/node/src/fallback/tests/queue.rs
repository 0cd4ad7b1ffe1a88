//! The seam between the worker and the tasks: order, bounds, and what becomes of buffers.

use std::{collections::BTreeSet, time::Duration};

use ringmesh_io::Waker;
use ringmesh_relay::frame;
use ringmesh_tunnel::{Carrier, Dial, Link, key::NodeId};
use tokio::{sync::mpsc, time::timeout};

use crate::fallback::queue::{
    Arrival, DIALS, DialOpen, Hub, INCOMING_BYTES, INCOMING_BYTES_PER_LINK, Links, OUTGOING_BYTES,
    SIGN_OF_LIFE, SendError, links,
};

fn pair() -> (Links, Hub, mpsc::Receiver<DialOpen>) {
    links(Waker::new().unwrap())
}

fn framed(datagrams: &[&[u8]]) -> Vec<u8> {
    let mut frames = Vec::new();
    for datagram in datagrams {
        frame::push(&mut frames, datagram).unwrap();
    }
    frames
}

/// The datagrams that come next, and from which link.
fn datagrams(links: &mut Links) -> Option<(Link, Vec<Vec<u8>>)> {
    match links.receive()? {
        Arrival::Datagrams { link, mut batch } => {
            Some((link, batch.datagrams().map(|datagram| datagram.to_vec()).collect()))
        }
        other @ (Arrival::Opened { .. } | Arrival::Failed { .. } | Arrival::Closed { .. }) => {
            panic!("{other:?}")
        }
    }
}

const ASKED: DialOpen = DialOpen { peer: NodeId::from_bytes([7; 8]), candidate: 3, carrier: Carrier::Ssh };

#[tokio::test]
async fn datagrams_cross_the_seam_both_ways_in_order() {
    let (mut links, hub, _dials) = pair();
    let end = hub.accept(Carrier::WebSocket);
    assert!(links.receive().is_none(), "an accepted link is no event");
    links.send(end.link(), b"one").unwrap();
    links.send(end.link(), b"two").unwrap();
    links.flush();
    links.send(end.link(), b"three").unwrap();
    links.flush();
    let mut taken = Vec::new();
    end.outgoing(&mut taken).await;
    assert_eq!(taken, framed(&[b"one", b"two", b"three"]));

    let received = framed(&[b"four", &SIGN_OF_LIFE, b"five"]);
    end.deliver(received).await;
    let (link, came) = datagrams(&mut links).unwrap();
    assert_eq!((link, came), (end.link(), vec![b"four".to_vec(), b"five".to_vec()]));
}

#[tokio::test]
async fn what_becomes_of_a_dial_is_told_once_and_before_its_datagrams() {
    let (mut links, hub, mut dials) = pair();
    links.dial(Dial::Open { peer: ASKED.peer, candidate: 3, carrier: Carrier::Ssh });
    assert_eq!(dials.recv().await, Some(ASKED));
    let end = hub.open(ASKED);
    end.deliver(framed(&[b"early"])).await;
    let link = end.link();
    drop(end);
    let Some(Arrival::Opened { peer, candidate, link: told }) = links.receive() else { panic!() };
    assert_eq!((peer, candidate, told), (ASKED.peer, 3, link));
    assert_eq!(datagrams(&mut links).unwrap().0, link);
    assert!(matches!(links.receive(), Some(Arrival::Closed { link: gone }) if gone == link));
    assert!(links.receive().is_none());
    assert_eq!(links.send(link, b"late"), Err(SendError::Unknown));
}

#[tokio::test]
async fn dials_beyond_the_bound_fail_at_once() {
    let (mut links, _hub, _dials) = pair();
    for _ in 0..=DIALS {
        links.dial(Dial::Open { peer: ASKED.peer, candidate: 3, carrier: Carrier::Ssh });
    }
    assert!(matches!(links.receive(), Some(Arrival::Failed { peer, candidate: 3 }) if peer == ASKED.peer));
    assert!(links.receive().is_none());
}

#[tokio::test]
async fn a_stream_that_takes_nothing_costs_no_more_than_its_bound() {
    let (mut links, hub, _dials) = pair();
    let (slow, other) = (hub.accept(Carrier::Ssh), hub.accept(Carrier::Ssh));
    assert!(links.receive().is_none());
    let datagram = [9; 1400];
    let fit = OUTGOING_BYTES / (1400 + frame::HEADER_LEN);
    for sent in 0..2 * fit {
        let expected = if sent < fit { Ok(()) } else { Err(SendError::Full) };
        assert_eq!(links.send(slow.link(), &datagram), expected, "{sent}");
        links.flush();
    }
    links.send(other.link(), &datagram).expect("the others do not suffer");

    let mut buffer = Vec::new();
    slow.outgoing(&mut buffer).await;
    assert_eq!(links.send(slow.link(), &datagram), Err(SendError::Full), "what is being written counts");
    buffer.clear();
    assert!(timeout(Duration::from_millis(1), slow.outgoing(&mut buffer)).await.is_err());
    links.send(slow.link(), &datagram).expect("it was written");
}

#[tokio::test]
async fn buffers_go_round() {
    let (mut links, hub, _dials) = pair();
    let end = hub.accept(Carrier::Ssh);
    assert!(links.receive().is_none());
    let mut buffer = Vec::new();
    let mut places = BTreeSet::new();
    for _ in 0..20 {
        links.send(end.link(), &[1; 100]).unwrap();
        links.flush();
        end.outgoing(&mut buffer).await;
        places.insert(buffer.as_ptr());
        buffer.clear();
    }
    assert!(places.len() <= 3, "{places:?}");

    let mut places = BTreeSet::new();
    for _ in 0..20 {
        let mut received = end.buffer(4096);
        received.extend_from_slice(&framed(&[&[2; 100]]));
        places.insert(received.as_ptr());
        end.deliver(received).await;
        datagrams(&mut links).unwrap();
    }
    assert!(places.len() <= 2, "{places:?}");
}

#[tokio::test]
async fn a_link_that_the_worker_does_not_empty_waits_and_does_not_hold_up_another() {
    let (mut links, hub, _dials) = pair();
    let (full, other) = (hub.accept(Carrier::Ssh), hub.accept(Carrier::Ssh));
    let mut held = 0;
    let buffer = || {
        let mut buffer = Vec::with_capacity(64 * 1024);
        frame::push(&mut buffer, b"x").unwrap();
        buffer
    };
    while timeout(Duration::from_millis(20), full.deliver(buffer())).await.is_ok() {
        held += 1;
    }
    assert_eq!(held, INCOMING_BYTES_PER_LINK / (64 * 1024));
    other.deliver(buffer()).await;
    assert_eq!(datagrams(&mut links).unwrap().0, full.link());
    full.deliver(buffer()).await;
}

#[tokio::test]
async fn all_links_together_have_a_bound() {
    let (_links, hub, _dials) = pair();
    let per_link = INCOMING_BYTES_PER_LINK / (64 * 1024);
    let ends: Vec<_> =
        (0..INCOMING_BYTES / INCOMING_BYTES_PER_LINK).map(|_| hub.accept(Carrier::Ssh)).collect();
    for end in ends.iter().cycle().take(ends.len() * per_link) {
        end.deliver(Vec::with_capacity(64 * 1024)).await;
    }
    let one_more = hub.accept(Carrier::Ssh);
    let buffer = Vec::with_capacity(64 * 1024);
    assert!(timeout(Duration::from_millis(20), one_more.deliver(buffer)).await.is_err());
}

#[tokio::test]
async fn standing_is_told_to_the_task_and_only_grows() {
    let (mut links, hub, _dials) = pair();
    let end = hub.accept(Carrier::Ssh);
    assert!(links.receive().is_none());
    assert!(!end.is_proven());
    assert!(timeout(Duration::from_millis(1), end.proven()).await.is_err());
    links.confirm(end.link());
    end.proven().await;
    links.dial(Dial::Close { link: end.link() });
    end.closed().await;
    assert_eq!(links.count(), 0);
    assert_eq!(links.send(end.link(), b"x"), Err(SendError::Unknown));
    end.deliver(framed(&[b"late"])).await;
    assert!(links.receive().is_none(), "nothing comes by a link that was closed");
}

#[tokio::test]
async fn only_the_end_of_a_link_that_the_tunnel_used_is_told() {
    let (mut links, hub, _dials) = pair();
    for _ in 0..1000 {
        let stranger = hub.accept(Carrier::Ssh);
        stranger.deliver(framed(&[b"junk"])).await;
        drop(stranger);
        assert_eq!(datagrams(&mut links).unwrap().1, [b"junk"]);
        assert!(links.receive().is_none(), "the tunnel took nothing that came by it");
    }
    let end = |links: &mut Links| matches!(links.receive(), Some(Arrival::Closed { .. }));
    for heard in [Links::used, Links::confirm] {
        let accepted = hub.accept(Carrier::Ssh);
        assert!(links.receive().is_none());
        heard(&mut links, accepted.link());
        drop(accepted);
        assert!(end(&mut links));
    }
    let dialled = hub.open(ASKED);
    assert!(matches!(links.receive(), Some(Arrival::Opened { .. })));
    drop(dialled);
    assert!(end(&mut links));
    let unwanted = hub.open(ASKED);
    assert!(matches!(links.receive(), Some(Arrival::Opened { .. })));
    links.dial(Dial::Close { link: unwanted.link() });
    drop(unwanted);
    assert!(end(&mut links), "the tunnel held it when it had it closed");
    assert!(links.receive().is_none());
}

#[tokio::test]
async fn a_link_that_was_closed_without_a_session_never_had_one() {
    let (mut links, hub, _dials) = pair();
    let (used, unused) = (hub.open(ASKED), hub.open(ASKED));
    while links.receive().is_some() {}
    links.confirm(used.link());
    links.dial(Dial::Close { link: unused.link() });
    unused.proven().await;
    assert!(used.has_session() && !unused.has_session());
}

#[tokio::test]
async fn links_end_with_the_worker() {
    let (mut links, hub, _dials) = pair();
    let end = hub.accept(Carrier::Ssh);
    assert!(links.receive().is_none());
    drop(links);
    end.closed().await;
    hub.accept(Carrier::Ssh).closed().await;
}

#[test]
fn what_no_frame_holds_is_refused() {
    let (mut links, hub, _dials) = pair();
    let end = hub.accept(Carrier::Ssh);
    assert!(links.receive().is_none());
    assert_eq!(links.send(end.link(), &[]), Err(SendError::Unfit));
    assert_eq!(links.send(end.link(), &[0; frame::MAX_DATAGRAM_LEN + 1]), Err(SendError::Unfit));
    links.send(end.link(), &[0; frame::MAX_DATAGRAM_LEN]).unwrap();
}
