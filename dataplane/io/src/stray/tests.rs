use std::collections::VecDeque;
use std::sync::{LazyLock, Weak};
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::offload::virtio;
use crate::{Head, Waker};

fn small() -> (StraySender, StrayReceiver) {
    queue(LEAST, Waker::new().unwrap())
}

fn from(port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], port))
}

/// Bytes that differ from place to place.
fn noise(len: usize) -> Vec<u8> {
    static ALL: LazyLock<Vec<u8>> = LazyLock::new(|| {
        (0..2 * STRAY_BYTES as u32).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect()
    });
    ALL[..len].to_vec()
}

/// What a stray was, to compare.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Packet(Vec<u8>),
    Datagrams(Vec<u8>, usize, SocketAddr),
}

impl Seen {
    fn of(stray: Stray<'_>) -> Self {
        match stray {
            Stray::Packet(packet) => Self::Packet(packet.whole().to_vec()),
            Stray::Datagrams { mut train, from } => {
                let stride = train.stride();
                Self::Datagrams(train.bytes().to_vec(), stride, from)
            }
        }
    }

    fn push(&self, sender: &mut StraySender) -> Result<(), Full> {
        match self.clone() {
            Self::Packet(packet) => sender.push(Stray::Packet(SuperPacket::single(&packet))),
            Self::Datagrams(mut bytes, stride, from) => {
                sender.push(Stray::Datagrams { train: Train::of(&mut bytes, stride), from })
            }
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Packet(bytes) | Self::Datagrams(bytes, _, _) => bytes.len(),
        }
    }
}

fn push(sender: &mut StraySender, bytes: &[u8]) -> Result<(), Full> {
    sender.push(Stray::Packet(SuperPacket::single(bytes)))
}

fn pop(receiver: &mut StrayReceiver) -> Option<Seen> {
    receiver.pop(Seen::of)
}

#[test]
fn what_is_pushed_comes_out_in_order() {
    let (mut sender, mut receiver) = small();
    assert_eq!(pop(&mut receiver), None);
    let v6: SocketAddr = "[2001:db8::7%3]:9".parse().unwrap();
    let strays = [
        Seen::Packet(noise(1408)),
        Seen::Datagrams(noise(3000), 1440, from(7)),
        Seen::Datagrams(vec![], 1, v6),
        Seen::Packet(noise(STRAY_BYTES)),
    ];
    for stray in &strays {
        stray.push(&mut sender).unwrap();
    }
    for stray in strays {
        assert_eq!(receiver.peek().map(Seen::of).as_ref(), Some(&stray), "looking takes nothing away");
        assert_eq!(pop(&mut receiver), Some(stray));
    }
    assert_eq!(pop(&mut receiver), None);
}

/// A super-packet of UDP over IPv4, as TUN has it.
fn super_packet(payload: usize, size: u16) -> ([u8; virtio::HEADER], Vec<u8>) {
    let mut packet = vec![0x45, 0, 0, 0, 0, 7, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    packet.extend([0x30, 0x39, 0, 9, 0, 0, 0, 0]);
    packet.extend(noise(payload));
    let len = packet.len() as u16;
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet[24..26].copy_from_slice(&(len - 20).to_be_bytes());
    let header = virtio::Header {
        flags: virtio::NEEDS_CSUM,
        gso_type: virtio::GSO_UDP_L4,
        hdr_len: 28,
        gso_size: size,
        csum_start: 20,
        csum_offset: 6,
    };
    (header.emit(), packet)
}

#[test]
fn a_super_packet_is_cut_by_its_owner_as_by_who_read_it() {
    let (mut sender, mut receiver) = small();
    let segments = |packet: &SuperPacket<'_>| -> Vec<Vec<u8>> {
        let mut head = Head::new();
        let mut segment = |index| {
            let (first, rest) = packet.segment(index, &mut head);
            [first, rest].concat()
        };
        (0..packet.segments()).map(&mut segment).collect()
    };
    for (payload, size) in [(65_000, 1372), (1000, 100), (101, 100), (50, 100)] {
        let (header, mut bytes) = super_packet(payload, size);
        let packet = SuperPacket::parse(&header, &mut bytes).unwrap();
        let expected = segments(&packet);
        assert_eq!(expected.len(), payload.div_ceil(size.into()));
        sender.push(Stray::Packet(packet)).unwrap();
        let cut = receiver.pop(|stray| match stray {
            Stray::Packet(packet) => segments(&packet),
            Stray::Datagrams { .. } => panic!("it was a packet"),
        });
        assert_eq!(cut, Some(expected));
    }
}

#[test]
fn its_owner_may_open_a_train_where_it_lies() {
    let (mut sender, mut receiver) = small();
    let mut bytes = noise(3000);
    sender.push(Stray::Datagrams { train: Train::of(&mut bytes, 1440), from: from(1) }).unwrap();
    push(&mut sender, b"what follows").unwrap();
    let lens = receiver.pop(|stray| match stray {
        Stray::Datagrams { mut train, .. } => {
            train.bytes().fill(0);
            [0, 1, 2].map(|index| train.datagram(index).map(|datagram| datagram.len()))
        }
        Stray::Packet(_) => panic!("it was a train"),
    });
    assert_eq!(lens, Some([Some(1440), Some(1440), Some(120)]));
    assert_eq!(pop(&mut receiver), Some(Seen::Packet(b"what follows".to_vec())));
}

#[test]
fn a_full_queue_takes_nothing_until_there_is_room_again() {
    let (mut sender, mut receiver) = small();
    let packet = noise(1408);
    let taken = (0..).take_while(|_| push(&mut sender, &packet).is_ok()).count();
    // Six blocks each.
    assert_eq!(taken, LEAST / BLOCK / 6);
    assert_eq!(push(&mut sender, &packet), Err(Full));
    push(&mut sender, &[1; 100]).expect("something smaller still fits");
    assert!(pop(&mut receiver).is_some());
    // What was left at the ring's end is skipped, so it takes another one's room.
    assert!(pop(&mut receiver).is_some());
    push(&mut sender, &packet).expect("room again");
    let rest = std::iter::from_fn(|| pop(&mut receiver)).collect::<Vec<_>>();
    assert_eq!(rest.len(), taken);
    assert_eq!(rest.iter().filter(|stray| **stray == Seen::Packet(packet.clone())).count(), taken - 1);
}

#[test]
fn a_stray_longer_than_any_is_refused() {
    let (mut sender, mut receiver) = small();
    assert_eq!(push(&mut sender, &noise(STRAY_BYTES + 1)), Err(Full));
    assert_eq!(pop(&mut receiver), None);
    push(&mut sender, b"later").unwrap();
    assert_eq!(pop(&mut receiver), Some(Seen::Packet(b"later".to_vec())));
}

#[test]
fn an_empty_queue_takes_the_longest_stray_wherever_it_begins() {
    let longest = noise(STRAY_BYTES);
    for start in 0..LEAST / BLOCK {
        let (mut sender, mut receiver) = small();
        for _ in 0..start {
            push(&mut sender, &[]).unwrap();
            pop(&mut receiver).unwrap();
        }
        for round in 0..5 {
            push(&mut sender, &longest)
                .unwrap_or_else(|full| panic!("from block {start}, round {round}: {full}"));
            let same = receiver.pop(|stray| matches!(stray, Stray::Packet(it) if it.whole() == longest));
            assert_eq!(same, Some(true));
        }
    }
}

#[test]
fn queues_are_bounded_together_and_each() {
    for workers in [1, 2, 3, 4, 5, 8, 16, 17, 64] {
        let wakers: Vec<_> = (0..workers).map(|_| Waker::new().unwrap()).collect();
        let all = strays(&wakers);
        assert_eq!(all.len(), workers);
        let bytes: Vec<_> = all.iter().map(|strays| strays.receiver.queue.finished.len() * BLOCK).collect();
        assert!(bytes.iter().all(|bytes| (LEAST..=MOST).contains(bytes) && bytes.is_power_of_two()));
        assert!(workers > 16 || bytes.iter().sum::<usize>() <= TOTAL, "{workers} workers: {bytes:?}");
    }
}

#[test]
fn a_stray_goes_to_the_worker_it_is_pushed_to_and_its_wake_too() {
    let wakers: Vec<_> = (0..3).map(|_| Waker::new().unwrap()).collect();
    let mut all = strays(&wakers);
    let mut thirds = all.pop().unwrap();
    for (number, to) in thirds.to.iter_mut().enumerate().take(2) {
        push(to, &[number as u8; 9]).unwrap();
        push(to, &[number as u8; 8]).unwrap();
    }
    assert!(wakers.iter().all(|waker| !waker.is_pending()), "a batch is not over before it is");
    thirds.to[1].wake();
    assert_eq!(wakers.iter().map(Waker::is_pending).collect::<Vec<_>>(), [false, true, false]);
    wakers[1].seen();
    thirds.to[1].wake();
    assert!(!wakers[1].is_pending(), "nothing was pushed since");
    push(&mut thirds.to[1], &[1; 7]).unwrap();
    drop(thirds);
    assert!(wakers[0].is_pending() && wakers[1].is_pending(), "what a worker left is found after its end");
    for (number, strays) in all.iter_mut().enumerate() {
        let lens: Vec<_> =
            std::iter::from_fn(|| strays.receiver.pop(|stray| Seen::of(stray).len())).collect();
        assert_eq!(lens, [&[9, 8][..], &[9, 8, 7]][number]);
    }
}

#[test]
fn a_pusher_that_is_held_up_delays_those_behind_it_and_loses_nothing() {
    let (slow, mut receiver) = small();
    let mut quick = slow.clone();
    push(&mut quick, b"first").unwrap();
    let (gap, first) = slow.queue.reserve(2).unwrap();
    assert_eq!(gap, 0);
    push(&mut quick, b"third").unwrap();
    assert_eq!(pop(&mut receiver), Some(Seen::Packet(b"first".to_vec())));
    assert_eq!(pop(&mut receiver), None, "the second is being copied");
    assert!(receiver.peek().is_none());
    let record = Record { blocks: 2, len: 200, kind: Kind::Packet(SuperPacket::single(&[]).shape()) };
    // SAFETY: two blocks were reserved here and are not finished.
    unsafe { slow.queue.record(first).write(record) };
    // SAFETY: the record's bytes, as above.
    unsafe { slow.queue.bytes(first).write_bytes(7, 200) };
    slow.queue.finish(first);
    assert_eq!(pop(&mut receiver), Some(Seen::Packet(vec![7; 200])));
    assert_eq!(pop(&mut receiver), Some(Seen::Packet(b"third".to_vec())));
}

/// Bytes that look like marks and records are bytes.
#[test]
fn no_content_is_taken_for_a_record() {
    let (mut sender, mut receiver) = small();
    for round in 0..3000_u64 {
        // Whatever number a mark could have, at every place.
        let guess = sender.queue.reserved.load(Ordering::Relaxed) + round % 9;
        let forged: Vec<u8> = guess.to_ne_bytes().repeat(200);
        push(&mut sender, &forged).unwrap();
        let same = receiver.pop(|stray| matches!(stray, Stray::Packet(it) if it.whole() == forged));
        assert_eq!(same, Some(true));
        assert!(receiver.peek().is_none(), "nothing after number {round}");
    }
}

#[test]
fn the_memory_lives_until_the_last_end_is_dropped() {
    for receiver_first in [true, false] {
        let (mut sender, mut receiver) = small();
        let mut other = sender.clone();
        let memory: Weak<Queue> = Arc::downgrade(&sender.queue);
        push(&mut sender, &noise(5000)).unwrap();
        push(&mut other, &noise(50)).unwrap();
        if receiver_first {
            assert!(pop(&mut receiver).is_some());
            drop(receiver);
            push(&mut sender, &noise(500)).expect("nobody will read it, and that is all");
            while push(&mut sender, &noise(5000)).is_ok() {}
            drop((sender, other));
        } else {
            drop((sender, other));
            assert_eq!(pop(&mut receiver), Some(Seen::Packet(noise(5000))));
            drop(receiver);
        }
        assert_eq!(memory.strong_count(), 0);
    }
}

#[test]
fn a_reader_that_panics_leaves_the_queue_whole() {
    let (mut sender, mut receiver) = small();
    push(&mut sender, b"first").unwrap();
    push(&mut sender, b"second").unwrap();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        receiver.pop(|_| panic!("by intention"));
    }));
    assert!(panicked.is_err());
    assert_eq!(pop(&mut receiver), Some(Seen::Packet(b"first".to_vec())));
    assert_eq!(pop(&mut receiver), Some(Seen::Packet(b"second".to_vec())));
}

/// All bytes of a stray follow from who pushed it, and its number.
#[test]
fn threads_push_millions_and_one_reads_them_whole_and_in_order() {
    const EACH: u64 = 1_000_000;
    const PUSHERS: u64 = 2;
    // So that one that fails does not leave the others waiting.
    let deadline = Instant::now() + Duration::from_secs(60);
    let pattern = noise(STRAY_BYTES + 4096);
    let len_of = |number: u64| -> usize {
        let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        // Mostly short, so that there are many; now and then the longest.
        if number.is_multiple_of(2003) { STRAY_BYTES } else { 16 + mixed as usize % 700 }
    };
    let (sender, mut receiver) = small();
    thread::scope(|scope| {
        for pusher in 0..PUSHERS {
            let (mut sender, pattern) = (sender.clone(), &pattern);
            scope.spawn(move || {
                let mut bytes = Vec::with_capacity(STRAY_BYTES);
                let mut full = 0_u64;
                for number in 0..EACH {
                    bytes.clear();
                    bytes.extend(pusher.to_ne_bytes());
                    bytes.extend(number.to_ne_bytes());
                    let start = (number % 4096) as usize;
                    bytes.extend(&pattern[start..start + len_of(number) - 16]);
                    let from = from(number as u16);
                    while sender.push(Stray::Datagrams { train: Train::of(&mut bytes, 16), from }).is_err() {
                        full += 1;
                        assert!(Instant::now() < deadline, "nobody reads");
                        sender.wake();
                        thread::yield_now();
                    }
                }
                full
            });
        }
        let mut next = [0; PUSHERS as usize];
        let mut read = 0;
        while read < EACH * PUSHERS {
            let one = receiver.pop(|stray| {
                let Stray::Datagrams { mut train, from: sender } = stray else { panic!("all are trains") };
                let bytes = train.bytes();
                let pusher = u64::from_ne_bytes(*bytes.first_chunk().unwrap()) as usize;
                let number = u64::from_ne_bytes(*bytes[8..].first_chunk().unwrap());
                assert_eq!(number, next[pusher], "none lost, none twice, in the order of pusher {pusher}");
                assert_eq!((bytes.len(), sender), (len_of(number), from(number as u16)));
                let start = (number % 4096) as usize;
                assert!(bytes[16..] == pattern[start..start + bytes.len() - 16]);
                // So that a piece of it could not pass for what comes next.
                bytes.fill(0xee);
                next[pusher] += 1;
            });
            match one {
                Some(()) => read += 1,
                None => {
                    assert!(Instant::now() < deadline, "{read} were read");
                    thread::yield_now();
                }
            }
        }
        assert_eq!(pop(&mut receiver), None);
    });
}

fn any_stray() -> impl Strategy<Value = Seen> {
    let len = prop_oneof![6 => 0..3000_usize, 2 => 3000..STRAY_BYTES, 1 => STRAY_BYTES - 2..=STRAY_BYTES];
    (len, any::<bool>(), 1..2000_usize, any::<SocketAddr>()).prop_map(|(len, packet, stride, from)| {
        if packet { Seen::Packet(noise(len)) } else { Seen::Datagrams(noise(len), stride, from) }
    })
}

proptest! {
    #[test]
    fn queue_equals_a_deque(
        steps in proptest::collection::vec((proptest::option::weighted(0.6, any_stray()), any::<bool>()), 1..300)
    ) {
        let ends = small();
        let (mut senders, mut receiver) = ([ends.0.clone(), ends.0], ends.1);
        let mut model = VecDeque::new();
        for (stray, which) in steps {
            let Some(stray) = stray else {
                prop_assert_eq!(pop(&mut receiver), model.pop_front());
                continue;
            };
            let blocks = |stray: &Seen| (stray.len() + BYTES_AT).div_ceil(BLOCK);
            let held: usize = model.iter().map(blocks).sum();
            match stray.push(&mut senders[usize::from(which)]) {
                Ok(()) => {
                    prop_assert!((held + blocks(&stray)) * BLOCK <= LEAST);
                    model.push_back(stray);
                }
                // Besides what is held: a gap among it, and one that this stray would have needed.
                Err(Full) => {
                    let longest = (STRAY_BYTES + BYTES_AT).div_ceil(BLOCK);
                    prop_assert!((held + longest + 2 * blocks(&stray)) * BLOCK > LEAST);
                }
            }
        }
        for stray in model {
            prop_assert_eq!(pop(&mut receiver), Some(stray));
        }
        prop_assert!(pop(&mut receiver).is_none());
    }
}
