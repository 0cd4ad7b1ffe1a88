//! What is refused: runs that cannot be sealed, and packets that are not the peer's.

use ringmesh_aead::{Cipher as _, Kernel, Key, MAX_TEXT_LEN, Opening, RunError, Sealing, TAG_LEN};

use crate::reference::{Packet, kernels, seal};

/// Asks for a run of a good packet and then another one, and that nothing of either is written.
fn refused(kernel: Kernel, counter: u64, head: usize, rest: usize, room: usize) -> RunError {
    let key = Key::new(&[1; 32], kernel);
    let (mut first, mut second) = (vec![0x77; 100], vec![0x77; room]);
    let mut run = [
        Sealing { head: &[], rest: &[2; 84], out: &mut first },
        Sealing { head: &vec![3; head], rest: &vec![4; rest], out: &mut second },
    ];
    let error = key.seal_run(counter, &mut run).unwrap_err();
    assert!(first.iter().chain(&second).all(|byte| *byte == 0x77), "{kernel} wrote of what it refused");
    error
}

#[test]
fn a_run_with_one_bad_packet_is_not_sealed_at_all() {
    for kernel in kernels() {
        assert_eq!(refused(kernel, 0, 0, 0, TAG_LEN - 1), RunError::NoRoom);
        assert_eq!(refused(kernel, 0, 0, 1, TAG_LEN), RunError::NoRoom);
        assert_eq!(refused(kernel, 0, 64, 36, 99 + TAG_LEN), RunError::NoRoom);
        assert_eq!(refused(kernel, 0, 63, 1, 200), RunError::UnevenHead);
        assert_eq!(refused(kernel, 0, 0, 10, MAX_TEXT_LEN + 1 + TAG_LEN), RunError::TooLong);
        assert_eq!(refused(kernel, u64::MAX, 0, 1, 1 + TAG_LEN), RunError::CountersExhausted);
    }
}

#[test]
fn an_empty_run_is_sealed_and_opened_with_any_counter() {
    for kernel in kernels() {
        let key = Key::new(&[1; 32], kernel);
        assert_eq!(key.seal_run(u64::MAX, &mut []), Ok(()));
        key.open_run(&mut []);
    }
}

#[test]
fn bytes_that_hold_no_tag_do_not_open() {
    for kernel in kernels() {
        let key = Key::new(&[1; 32], kernel);
        for len in 0..TAG_LEN {
            let mut bytes = vec![9; len];
            let mut run = [Opening { counter: 1, bytes: &mut bytes, opened: true }];
            key.open_run(&mut run);
            assert!(!run[0].opened, "{kernel} opened {len} bytes");
        }
    }
}

#[test]
fn a_packet_longer_than_any_datagram_does_not_open() {
    let bytes = [1; 32];
    let sealed = seal(&bytes, 5, &vec![7; MAX_TEXT_LEN + 1]);
    for kernel in kernels() {
        let mut copy = sealed.clone();
        let mut run = [Opening { counter: 5, bytes: &mut copy, opened: true }];
        Key::new(&bytes, kernel).open_run(&mut run);
        assert!(!run[0].opened);
        assert_eq!(copy, sealed);
    }
}

/// Every bit of the text and the tag counts, and so does every bit of the counter; in each place of a run.
#[test]
fn one_wrong_bit_anywhere_is_refused_and_the_others_open() {
    const LEN: usize = 75;
    for kernel in kernels() {
        let key = Key::new(&[1; 32], kernel);
        for run_len in [1, 2, 4, 8, 16] {
            for bit in 0..(LEN + TAG_LEN) * 8 + 64 {
                let mut packets: Vec<_> = (0..run_len).map(|_| Packet::new(&[8; LEN], 64, 0)).collect();
                let mut run: Vec<_> = packets.iter_mut().map(Packet::sealing).collect();
                key.seal_run(1000, &mut run).unwrap();
                let bad = bit % run_len;
                let mut wrong_counter = 0;
                match bit.checked_sub((LEN + TAG_LEN) * 8) {
                    Some(counter_bit) => wrong_counter = 1 << counter_bit,
                    None => packets[bad].damage(bit),
                }
                let before = packets[bad].sealed().to_vec();
                let mut run: Vec<_> =
                    packets.iter_mut().zip(1000..).map(|(packet, counter)| packet.opening(counter)).collect();
                run[bad].counter ^= wrong_counter;
                key.open_run(&mut run);
                for (index, packet) in run.iter().enumerate() {
                    assert_eq!(
                        packet.opened,
                        index != bad,
                        "{kernel}, bit {bit} of packet {bad} of {run_len}"
                    );
                }
                let written = &packets[bad].sealed()[..LEN];
                assert!(written == &before[..LEN] || written.iter().all(|byte| *byte == 0));
            }
        }
    }
}

#[test]
fn keys_and_packets_show_nothing_when_printed() {
    let key = Key::new(&[0xab; 32], Kernel::Portable);
    assert_eq!(format!("{key:?}"), "Key(..)");
    let mut packet = Packet::new(b"a secret", 0, 8);
    assert_eq!(format!("{:?}", packet.sealing()), "Sealing { head: 0, rest: 8, out: 32 }");
    assert_eq!(format!("{:?}", packet.opening(7)), "Opening { counter: 7, bytes: 32, opened: false }");
}
