//! ChaCha20-Poly1305 as RFC 8439 writes it down, slow and plain: what the kernels are held to where no library can be asked.
//!
//! It is held to Wycheproof itself, of which no case has the shape of our packets: a nonce that begins with zeros, and no data but the
//! text.

/// 2¹³⁰-5 in words of 64 bits, little endian.
const PRIME: [u64; 3] = [u64::MAX - 4, u64::MAX, 3];

/// A block of key stream (§2.3).
pub(crate) fn block(key: &[u8; 32], counter: u32, nonce: &[u8; 12]) -> [u8; 64] {
    let mut start =
        [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574, 0, 0, 0, 0, 0, 0, 0, 0, counter, 0, 0, 0];
    let words = |bytes: &[u8]| -> Vec<u32> {
        bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
    };
    start[4..12].copy_from_slice(&words(key));
    start[13..].copy_from_slice(&words(nonce));
    let mut state = start;
    for _ in 0..10 {
        for column in 0..4 {
            quarter_round(&mut state, [column, column + 4, column + 8, column + 12]);
        }
        for diagonal in 0..4 {
            let place = |row: usize| 4 * row + (diagonal + row) % 4;
            quarter_round(&mut state, [place(0), place(1), place(2), place(3)]);
        }
    }
    let mut stream = [0; 64];
    for ((bytes, word), start) in stream.as_chunks_mut().0.iter_mut().zip(state).zip(start) {
        *bytes = word.wrapping_add(start).to_le_bytes();
    }
    stream
}

/// §2.1.
fn quarter_round(state: &mut [u32; 16], [a, b, c, d]: [usize; 4]) {
    for (x, y, z, by) in [(a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)] {
        state[x] = state[x].wrapping_add(state[y]);
        state[z] = (state[z] ^ state[x]).rotate_left(by);
    }
}

/// Poly1305 of a message (§2.5), by doubling and adding.
pub(crate) fn poly1305(key: &[u8; 32], message: &[u8]) -> [u8; 16] {
    let (r, s) = key.split_at(16);
    let r = u128::from_le_bytes(r.try_into().unwrap()) & 0x0fff_fffc_0fff_fffc_0fff_fffc_0fff_ffff;
    let mut sum = [0; 3];
    for block in message.chunks(16) {
        let mut bytes = [0; 24];
        bytes[..block.len()].copy_from_slice(block);
        bytes[block.len()] = 1;
        let number: Vec<u64> = bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let added = add(sum, number.try_into().unwrap());
        sum = [0; 3];
        for bit in (0..128).rev() {
            sum = add(sum, sum);
            if r >> bit & 1 == 1 {
                sum = add(sum, added);
            }
        }
    }
    let low = u128::from(sum[0]) | u128::from(sum[1]) << 64;
    low.wrapping_add(u128::from_le_bytes(s.try_into().unwrap())).to_le_bytes()
}

/// The sum of two numbers below twice the prime, below the prime.
fn add(a: [u64; 3], b: [u64; 3]) -> [u64; 3] {
    let mut carry = false;
    let mut sum = std::array::from_fn(|index| {
        let (word, over) = u64::carrying_add(a[index], b[index], carry);
        carry = over;
        word
    });
    while sum.iter().rev().ge(PRIME.iter().rev()) {
        let mut borrow = false;
        sum = std::array::from_fn(|index| {
            let (word, under) = u64::borrowing_sub(sum[index], PRIME[index], borrow);
            borrow = under;
            word
        });
    }
    sum
}

/// What `text` is sealed to, with its tag (§2.8).
pub(crate) fn seal(key: &[u8; 32], nonce: &[u8; 12], aad: &[u8], text: &[u8]) -> Vec<u8> {
    let mut sealed = text.to_vec();
    for (piece, counter) in sealed.chunks_mut(64).zip(1..) {
        piece.iter_mut().zip(block(key, counter, nonce)).for_each(|(byte, stream)| *byte ^= stream);
    }
    let mut message = aad.to_vec();
    message.resize(aad.len().next_multiple_of(16), 0);
    message.extend_from_slice(&sealed);
    message.resize(message.len().next_multiple_of(16), 0);
    message.extend_from_slice(&(aad.len() as u64).to_le_bytes());
    message.extend_from_slice(&(text.len() as u64).to_le_bytes());
    let one_time = block(key, 0, nonce);
    sealed.extend_from_slice(&poly1305(one_time[..32].try_into().unwrap(), &message));
    sealed
}

#[cfg(test)]
mod tests {
    use wycheproof::aead::{TestName, TestSet};

    use super::*;
    use crate::{Cipher as _, Kernel, Key, Opening, Sealing, TAG_LEN};

    #[test]
    fn wycheproof_agrees_with_the_plain_reference() {
        let set = TestSet::load(TestName::ChaCha20Poly1305).unwrap();
        let mut checked = 0;
        for test in set.test_groups.iter().flat_map(|group| &group.tests) {
            let Ok(nonce) = test.nonce.as_slice().try_into() else { continue };
            let sealed = seal(test.key.as_slice().try_into().unwrap(), nonce, &test.aad, &test.pt);
            let expected = [test.ct.as_slice(), &test.tag].concat();
            assert_eq!(sealed == expected, !test.result.must_fail(), "{test:?}");
            checked += 1;
        }
        assert_eq!(checked, 316);
    }

    /// §2.8.2, and §2.5.2 within.
    #[test]
    fn the_rfcs_own_example_agrees_with_the_plain_reference() {
        let key = std::array::from_fn(|index| 0x80 + index as u8);
        let nonce = [7, 0, 0, 0, 0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47];
        let aad = [0x50, 0x51, 0x52, 0x53, 0xc0, 0xc1, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7];
        let sealed = seal(&key, &nonce, &aad, SUNSCREEN);
        assert_eq!(sealed[..4], [0xd3, 0x1a, 0x8d, 0x34]);
        let tag =
            [0x1a, 0xe1, 0x0b, 0x59, 0x4f, 0x09, 0xe2, 0x6a, 0x7e, 0x90, 0x2e, 0xcb, 0xd0, 0x60, 0x06, 0x91];
        assert_eq!(sealed[SUNSCREEN.len()..], tag);
    }

    const SUNSCREEN: &[u8] =
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, \
        sunscreen would be it.";

    /// §2.4.2 has a nonce of our shape, and a text begins with block 1 as it does there.
    #[test]
    fn kernels_make_the_rfcs_key_stream() {
        const EXPECTED: [u8; 114] = [
            0x6e, 0x2e, 0x35, 0x9a, 0x25, 0x68, 0xf9, 0x80, 0x41, 0xba, 0x07, 0x28, 0xdd, 0x0d, 0x69, 0x81,
            0xe9, 0x7e, 0x7a, 0xec, 0x1d, 0x43, 0x60, 0xc2, 0x0a, 0x27, 0xaf, 0xcc, 0xfd, 0x9f, 0xae, 0x0b,
            0xf9, 0x1b, 0x65, 0xc5, 0x52, 0x47, 0x33, 0xab, 0x8f, 0x59, 0x3d, 0xab, 0xcd, 0x62, 0xb3, 0x57,
            0x16, 0x39, 0xd6, 0x24, 0xe6, 0x51, 0x52, 0xab, 0x8f, 0x53, 0x0c, 0x35, 0x9f, 0x08, 0x61, 0xd8,
            0x07, 0xca, 0x0d, 0xbf, 0x50, 0x0d, 0x6a, 0x61, 0x56, 0xa3, 0x8e, 0x08, 0x8a, 0x22, 0xb6, 0x5e,
            0x52, 0xbc, 0x51, 0x4d, 0x16, 0xcc, 0xf8, 0x06, 0x81, 0x8c, 0xe9, 0x1a, 0xb7, 0x79, 0x37, 0x36,
            0x5a, 0xf9, 0x0b, 0xbf, 0x74, 0xa3, 0x5b, 0xe6, 0xb4, 0x0b, 0x8e, 0xed, 0xf2, 0x78, 0x5e, 0x42,
            0x87, 0x4d,
        ];
        let key = std::array::from_fn(|index| index as u8);
        for kernel in [Kernel::Portable, Kernel::Avx512] {
            let mut outs = [[0; SUNSCREEN.len() + TAG_LEN]; 16];
            let mut run: Vec<_> =
                outs.iter_mut().map(|out| Sealing { head: &[], rest: SUNSCREEN, out }).collect();
            Key::new(&key, kernel).seal_run(0x4a00_0000, &mut run).unwrap();
            assert_eq!(outs[0][..SUNSCREEN.len()], EXPECTED, "{kernel}");
        }
    }

    /// The reference that Wycheproof was asked about, for texts of all sorts of lengths in our shape.
    #[test]
    fn kernels_agree_with_the_plain_reference() {
        for (len, counter) in (0..300).zip((u64::from(u32::MAX) - 100..).step_by(7)) {
            let key = std::array::from_fn(|index| (index * len) as u8);
            let text: Vec<_> = (0..len).map(|index| (index * index + len) as u8).collect();
            for (kernel, run) in [(Kernel::Portable, 1), (Kernel::Avx512, 2), (Kernel::Avx512, 16)] {
                let cipher = Key::new(&key, kernel);
                let mut outs = vec![0; run * (len + TAG_LEN)];
                let mut packets: Vec<_> = outs
                    .chunks_exact_mut(len + TAG_LEN)
                    .map(|out| Sealing { head: &[], rest: &text, out })
                    .collect();
                cipher.seal_run(counter, &mut packets).unwrap();
                for (out, counter) in outs.chunks_exact_mut(len + TAG_LEN).zip(counter..) {
                    let mut nonce = [0; 12];
                    nonce[4..].copy_from_slice(&counter.to_le_bytes());
                    assert_eq!(out, seal(&key, &nonce, &[], &text), "{kernel}, {len} bytes");
                    let mut opening = [Opening { counter, bytes: out, opened: false }];
                    cipher.open_run(&mut opening);
                    assert!(opening[0].opened);
                }
            }
        }
    }
}
