//! Frames through a stream of bytes, and every way in which a link ends. Time is the test's own.

use ringmesh_relay::frame;
use ringmesh_tunnel::{Carrier, Dial, key::NodeId};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    task::JoinHandle,
};

use super::*;
use crate::fallback::{
    link::{Ended, Opened, PROOF, QUIET, SIGN_OF_LIFE_AFTER, STALLED, UNPROVEN_BYTES},
    queue::{OUTGOING_BYTES, SendError},
    stream,
};

const ASKED: DialOpen = DialOpen { peer: NodeId::from_bytes([7; 8]), candidate: 3, carrier: Carrier::Ssh };

/// A link that somebody else opened, and the task that pumps it.
fn accepted(side: &mut Side, stream: DuplexStream) -> (Link, JoinHandle<Ended>) {
    let end = side.hub.accept(Carrier::Ssh);
    let link = end.link();
    assert!(side.links.receive().is_none());
    (link, tokio::spawn(async move { stream::pump(stream, &end, Opened::There).await }))
}

/// A link that this side opened.
async fn dialled(side: &mut Side, stream: DuplexStream) -> (Link, JoinHandle<Ended>) {
    let end = side.hub.open(ASKED);
    let link = end.link();
    assert!(matches!(side.arrival().await, Arrival::Opened { .. }));
    (link, tokio::spawn(async move { stream::pump(stream, &end, Opened::Here).await }))
}

#[tokio::test(start_paused = true)]
async fn datagrams_cross_however_the_stream_is_cut() {
    for cut in [1, 7, 1000, 100_000] {
        let (one, two) = duplex(cut);
        let (mut here, mut there) = (Side::new(), Side::new());
        let (link, _) = dialled(&mut here, one).await;
        accepted(&mut there, two);
        exchange((&mut here, link), &mut there).await;
    }
}

#[tokio::test(start_paused = true)]
async fn two_sides_with_nothing_to_say_stay_together_and_no_sign_of_life_is_a_datagram() {
    let (one, two) = duplex(4096);
    let (mut here, mut there) = (Side::new(), Side::new());
    let (link, pump) = dialled(&mut here, one).await;
    accepted(&mut there, two);
    let incoming = exchange((&mut here, link), &mut there).await;
    assert!(here.arrival_within(QUIET * 10).await.is_none());
    assert!(there.arrival_within(QUIET).await.is_none());
    assert!(!pump.is_finished());
    there.send(incoming, &[vec![5; 32]]);
    assert_eq!(here.datagrams(1).await, (link, vec![vec![5; 32]]));
}

#[tokio::test(start_paused = true)]
async fn the_death_of_the_other_side_is_noticed_in_a_minute() {
    let (one, mut two) = duplex(4096);
    let mut side = Side::new();
    let (link, pump) = dialled(&mut side, one).await;
    let begun = Instant::now();
    let mut signs = Vec::new();
    two.read_to_end(&mut signs).await.unwrap();
    assert!(matches!(pump.await.unwrap(), Ended::Quiet));
    assert_eq!(begun.elapsed().as_secs(), QUIET.as_secs());
    let sign = [0, 1, 0];
    assert!(signs.starts_with(&sign.repeat(2)) && signs.chunks(3).all(|chunk| chunk == sign), "{signs:?}");
    assert!(signs.len() as u64 / 3 <= QUIET.as_secs() / SIGN_OF_LIFE_AFTER.as_secs());
    side.closed(link).await;
}

#[tokio::test(start_paused = true)]
async fn a_link_ends_with_its_stream() {
    let (one, two) = duplex(4096);
    let mut side = Side::new();
    let (link, pump) = accepted(&mut side, one);
    side.links.used(link);
    drop(two);
    assert!(matches!(pump.await.unwrap(), Ended::Eof | Ended::Io(_)));
    side.closed(link).await;
    assert_eq!(side.links.send(link, b"late"), Err(SendError::Unknown));
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_when_the_tunnel_closes_its_link() {
    let (one, mut two) = duplex(4096);
    let mut side = Side::new();
    let (link, pump) = accepted(&mut side, one);
    side.links.dial(Dial::Close { link });
    assert!(matches!(pump.await.unwrap(), Ended::Closed));
    side.closed(link).await;
    assert_eq!(two.read(&mut [0; 10]).await.unwrap(), 0, "the other side sees the end");
}

#[tokio::test(start_paused = true)]
async fn a_frame_that_cannot_be_ends_the_link() {
    for header in [[0, 0], (frame::MAX_DATAGRAM_LEN as u16 + 1).to_be_bytes(), [255, 255]] {
        let (one, mut two) = duplex(4096);
        let mut side = Side::new();
        let (link, pump) = accepted(&mut side, one);
        side.links.confirm(link);
        two.write_all(&header).await.unwrap();
        assert!(matches!(pump.await.unwrap(), Ended::Frame(_)), "{header:?}");
        side.closed(link).await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_proves_nothing_in_time_is_cut_and_is_sent_nothing() {
    let (one, mut two) = duplex(4096);
    let mut side = Side::new();
    let (link, pump) = accepted(&mut side, one);
    let begun = Instant::now();
    two.write_all(&[0, 4, 1, 2, 3, 4]).await.unwrap();
    assert_eq!(side.datagrams(1).await.0, link);
    assert!(matches!(pump.await.unwrap(), Ended::Unproven));
    assert_eq!(begun.elapsed().as_secs(), PROOF.as_secs());
    let mut answer = Vec::new();
    two.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"");
}

#[tokio::test(start_paused = true)]
async fn who_proves_itself_stays() {
    let (one, _two) = duplex(4096);
    let mut side = Side::new();
    let (link, pump) = accepted(&mut side, one);
    side.links.confirm(link);
    sleep(PROOF * 2).await;
    assert!(!pump.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_stranger_may_not_send_much() {
    let flood: Vec<u8> = [&[0x04, 0x00][..], &[9; 1024]].concat();
    let count = UNPROVEN_BYTES / flood.len();
    for (proven, frames, survives) in
        [(false, count, true), (false, count + 1, false), (true, count + 1, true)]
    {
        let (one, mut two) = duplex(4096);
        let mut side = Side::new();
        let (link, pump) = accepted(&mut side, one);
        if proven {
            side.links.confirm(link);
        }
        let (mut sent, mut came) = (0, 0);
        while sent < frames && two.write_all(&flood).await.is_ok() {
            sent += 1;
            while side.links.receive().is_some() {
                came += 1;
            }
        }
        assert!(came > 0);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(!pump.is_finished(), survives, "{frames} frames, proven: {proven}");
        if !survives {
            assert!(matches!(pump.await.unwrap(), Ended::Flood));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_does_not_read_is_cut_and_costs_no_more_than_the_bound() {
    const KERNEL: usize = 4096;
    let (one, mut two) = duplex(KERNEL);
    let mut side = Side::new();
    let (link, pump) = accepted(&mut side, one);
    side.links.confirm(link);
    let talking = tokio::spawn(async move {
        // It talks on, so it is the unread that ends the link.
        loop {
            if two.write_all(&[0, 2, 7, 7]).await.is_err() {
                return;
            }
            sleep(Duration::from_secs(1)).await;
        }
    });
    let begun = Instant::now();
    let mut taken = 0;
    while side.links.send(link, &[1; 1400]).is_ok() {
        taken += 1402;
        side.links.flush();
        tokio::task::yield_now().await;
    }
    assert!(taken <= OUTGOING_BYTES + KERNEL, "{taken}");
    side.closed(link).await;
    assert!(matches!(pump.await.unwrap(), Ended::Stalled));
    assert!(begun.elapsed() < STALLED + Duration::from_secs(2), "{:?}", begun.elapsed());
    talking.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_busy_worker_slows_the_sender_and_loses_nothing() {
    let (one, mut two) = duplex(4096);
    let mut side = Side::new();
    let (link, _pump) = accepted(&mut side, one);
    side.links.confirm(link);
    let all = datagrams(2000, 3);
    let stream: Vec<u8> = all.iter().fold(Vec::new(), |mut stream, datagram| {
        frame::push(&mut stream, datagram).unwrap();
        stream
    });
    let mut sender = tokio::spawn(async move {
        two.write_all(&stream).await.unwrap();
        two
    });
    // The worker does not look for a while.
    assert!(timeout(Duration::from_secs(30), &mut sender).await.is_err(), "nobody buffers all that");
    let (_, came) = side.datagrams(all.len()).await;
    assert!(came == all);
    sender.await.unwrap();
}
