use proptest::prelude::*;

use super::*;

fn to(port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], port))
}

fn fill(outbox: &mut Outbox, byte: u8) {
    let mut slot = outbox.datagram().expect("room");
    slot[0] = byte;
    slot.commit(1, to(u16::from(byte)));
}

fn start(outbox: &mut Outbox, most: usize) -> Option<Piece> {
    outbox.datagrams.start(|_| most)
}

#[test]
fn an_outbox_that_everything_left_has_all_its_room_again() {
    let mut outbox = Outbox::new(1408);
    let half = OUTBOX_BYTES / 2;
    outbox.train(half).expect("room").commit_train(half, 1408, to(1));
    assert!(outbox.room() < OUTBOX_BYTES - half + 1);
    while let Some(piece) = start(&mut outbox, 128) {
        outbox.datagrams.complete(&piece);
    }
    assert_eq!(
        outbox.room(),
        OUTBOX_BYTES,
        "a back end that reads TUN only when there is room would read it no more"
    );
}

#[test]
fn the_outbox_has_room_for_its_bounds_and_no_more() {
    let mut outbox = Outbox::new(1408);
    for number in 0..OUTBOX_TRAINS {
        assert_eq!(outbox.train_room(), OUTBOX_TRAINS - number);
        fill(&mut outbox, 1);
    }
    assert_eq!((outbox.train_room(), outbox.room()), (0, 0));
    assert!(outbox.datagram().is_none());
    for _ in 0..OUTBOX_PACKETS {
        outbox.packet().expect("room").commit(1);
    }
    assert_eq!(outbox.packet_room(), 0);
    assert!(outbox.packet().is_none());
}

#[test]
fn a_train_longer_than_the_room_is_refused_and_what_has_gone_makes_room() {
    let mut outbox = Outbox::new(1408);
    assert_eq!(outbox.room(), OUTBOX_BYTES);
    assert!(outbox.train(OUTBOX_BYTES + 1).is_none());
    outbox.train(OUTBOX_BYTES).expect("all of it").commit_train(OUTBOX_BYTES, 1000, to(1));
    assert_eq!(outbox.room(), 0);
    assert!(outbox.train(1).is_none());
    while let Some(piece) = start(&mut outbox, 127) {
        outbox.datagrams.complete(&piece);
    }
    assert!(outbox.train(OUTBOX_BYTES).is_some());
}

#[test]
fn what_is_not_committed_is_not_sent() {
    let mut outbox = Outbox::new(1408);
    outbox.datagram().expect("room").fill(1);
    assert!(!outbox.datagrams.is_waiting());
    assert!(start(&mut outbox, 1).is_none());
    assert_eq!((outbox.train_room(), outbox.room()), (OUTBOX_TRAINS, OUTBOX_BYTES));
}

#[test]
fn a_train_is_cut_at_what_one_send_takes() {
    let mut outbox = Outbox::new(1408);
    let len = 100 * 1440 + 7;
    outbox.train(len).expect("room").commit_train(len, 1440, to(1));
    let mut sent = Vec::new();
    while let Some(piece) = start(&mut outbox, 127) {
        assert!(piece.len <= 65_507);
        sent.push(piece.datagrams());
        outbox.datagrams.complete(&piece);
    }
    assert_eq!(sent, [45, 45, 11]);
    outbox.train(300).expect("room").commit_train(300, 100, to(1));
    let sizes: Vec<_> = std::iter::from_fn(|| start(&mut outbox, 2)).map(|piece| piece.len).collect();
    assert_eq!(sizes, [200, 100]);
    assert_eq!(outbox.datagrams.in_flight(), 2);
}

#[test]
fn an_empty_datagram_is_sent() {
    let mut outbox = Outbox::new(1408);
    outbox.datagram().expect("room").commit(0, to(1));
    let piece = start(&mut outbox, 1).expect("one");
    assert_eq!((piece.len, piece.datagrams()), (0, 1));
    outbox.datagrams.complete(&piece);
    assert!(!outbox.datagrams.is_waiting());
    assert_eq!(outbox.train_room(), OUTBOX_TRAINS);
}

#[test]
fn what_was_taken_back_goes_first_and_in_order() {
    let mut outbox = Outbox::new(1408);
    for byte in 0..5 {
        fill(&mut outbox, byte);
    }
    let first: Vec<_> = (0..3).map(|_| start(&mut outbox, 1).expect("ready")).collect();
    outbox.datagrams.complete(&first[0]);
    outbox.datagrams.take_back(first[2]);
    outbox.datagrams.take_back(first[1]);
    let mut order = Vec::new();
    while let Some(piece) = start(&mut outbox, 1) {
        order.push(outbox.datagrams.bytes(&piece)[0]);
    }
    assert_eq!(order, [1, 2, 3, 4]);
    assert_eq!(outbox.datagrams.in_flight(), 4);
}

#[test]
fn a_piece_that_is_refused_whole_goes_in_parts() {
    let mut outbox = Outbox::new(1408);
    outbox.train(250).expect("room").commit_train(250, 100, to(1));
    let whole = start(&mut outbox, 127).expect("one");
    assert_eq!(whole.datagrams(), 3);
    outbox.datagrams.take_back(whole);
    let mut lens = Vec::new();
    while let Some(part) = start(&mut outbox, 1) {
        lens.push(part.len);
        outbox.datagrams.complete(&part);
    }
    assert_eq!(lens, [100, 100, 50]);
    assert_eq!(outbox.train_room(), OUTBOX_TRAINS);
}

#[test]
#[should_panic(expected = "invariant")]
fn a_piece_completes_once() {
    let mut outbox = Outbox::new(1408);
    fill(&mut outbox, 1);
    let piece = start(&mut outbox, 1).expect("ready");
    outbox.datagrams.complete(&piece);
    outbox.datagrams.complete(&piece);
}

#[test]
fn packets_carry_an_empty_offload_header() {
    let mut outbox = Outbox::new(1408);
    let mut slot = outbox.packet().expect("room");
    assert_eq!(slot.len(), 1408);
    slot.fill(0x45);
    slot.commit(3);
    let sending = outbox.packets.start().expect("ready");
    let mut expected = vec![0; virtio::HEADER];
    expected.extend([0x45; 3]);
    assert_eq!(outbox.packets.sent_bytes(&sending), expected);
    outbox.packets.complete(sending.slot);
    assert_eq!(outbox.packet_room(), OUTBOX_PACKETS);
}

#[test]
fn a_place_for_a_datagram_fits_the_mtu_and_handshakes() {
    assert_eq!(datagram_capacity(1280), 1504);
    assert_eq!(datagram_capacity(1408), 1504);
    assert_eq!(datagram_capacity(8920), 8992);
    assert!(datagram_capacity(u16::MAX) > usize::from(u16::MAX));
}

/// What may happen to an outbox.
#[derive(Clone, Debug)]
enum Step {
    Commit { len: usize, stride: usize },
    Start { most: usize },
    Complete { which: usize },
    TakeBackLast,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0usize..200_000, 1usize..3000).prop_map(|(len, stride)| Step::Commit { len, stride }),
        4 => (1usize..128).prop_map(|most| Step::Start { most }),
        4 => any::<prop::sample::Index>().prop_map(|which| Step::Complete { which: which.index(1 << 16) }),
        1 => Just(Step::TakeBackLast),
    ]
}

proptest! {
    /// Every byte committed leaves once, from where it was written, and no train is written over one that is not done.
    #[test]
    fn bytes_are_never_lost_doubled_or_overwritten(steps in prop::collection::vec(step(), 1..200)) {
        let mut outbox = Outbox::new(1408);
        let mut in_flight: Vec<Piece> = Vec::new();
        let (mut committed, mut completed, mut number) = (0usize, 0usize, 0u8);
        let finish = |outbox: &mut Outbox, piece: Piece| {
            let bytes = outbox.datagrams.bytes(&piece);
            prop_assert!(bytes.iter().all(|byte| *byte == piece.to.port() as u8));
            outbox.datagrams.complete(&piece);
            Ok(piece.len)
        };
        for step in steps {
            match step {
                Step::Commit { len, stride } => {
                    number = number.wrapping_add(1);
                    let Some(mut slot) = outbox.train(len) else { continue };
                    slot.fill(number);
                    slot.commit_train(len, stride, to(u16::from(number)));
                    committed += len;
                }
                Step::Start { most } => in_flight.extend(start(&mut outbox, most)),
                Step::Complete { which } if !in_flight.is_empty() => {
                    let piece = in_flight.remove(which % in_flight.len());
                    completed += finish(&mut outbox, piece)?;
                }
                Step::TakeBackLast => {
                    if let Some(piece) = in_flight.pop() {
                        outbox.datagrams.take_back(piece);
                    }
                }
                Step::Complete { .. } => {}
            }
        }
        while let Some(piece) = in_flight.pop().or_else(|| start(&mut outbox, 127)) {
            completed += finish(&mut outbox, piece)?;
        }
        prop_assert_eq!(completed, committed);
        prop_assert_eq!(outbox.train_room(), OUTBOX_TRAINS);
        prop_assert!(outbox.train(OUTBOX_BYTES).is_some());
    }
}
