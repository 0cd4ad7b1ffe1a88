//! Whether a kernel of our own does what the library does, asked at every start: a compiler or a CPU may be at odds with it where
//! none of our tests has run.

use std::iter;

use thiserror::Error;

use crate::choice::Kernel;
use crate::key::{Cipher, Key};
use crate::run::{Opening, Sealing, TAG_LEN};

/// Lengths of text, in bytes: around blocks, short ones, full packets, and jumbo frames.
const LENGTHS: [usize; 12] = [0, 1, 15, 16, 17, 63, 64, 65, 250, 576, 1420, 8900];
/// Packets in a run: all ways in which runs are cut.
const RUNS: [usize; 6] = [1, 2, 3, 5, 8, 30];
/// The counters cross 2³², where the second word of the nonce begins.
const FIRST_COUNTER: u64 = (1 << 32) - 3;

/// What a kernel did otherwise than the library.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum Wrong {
    #[error("seals {run} packets of {len} bytes otherwise than the library")]
    Sealed { run: usize, len: usize },
    #[error("does not open {run} packets of {len} bytes as the library does")]
    Opened { run: usize, len: usize },
    #[error("opens packets that were changed, or does not open others in a run of {run} with {len} bytes")]
    Forged { run: usize, len: usize },
}

/// Holds `C` with `kernel` to the library.
pub(crate) fn check<C: Cipher>(kernel: Kernel) -> Result<(), Wrong> {
    let key = std::array::from_fn(|index| index as u8 ^ 0x5a);
    let (ours, library) = (C::new(&key, kernel), Key::new(&key, Kernel::Portable));
    LENGTHS.iter().try_for_each(|len| RUNS.iter().try_for_each(|run| check_run(&ours, &library, *run, *len)))
}

/// Seals a run by both, opens it by one, and opens it again after changes. Its last packet is shorter, as that of most trains is,
/// when it has several.
fn check_run(ours: &impl Cipher, library: &Key, run: usize, len: usize) -> Result<(), Wrong> {
    let last = if run > 1 { len - len / 3 } else { len };
    let lens = || iter::repeat_n(len, run - 1).chain([last]);
    let texts: Vec<Vec<u8>> = iter::zip(0.., lens())
        .map(|(number, len)| (number..number + len).map(|index| (index ^ (index >> 8)) as u8).collect())
        .collect();
    let sealed = seal(library, &texts);
    if seal(ours, &texts) != sealed {
        return Err(Wrong::Sealed { run, len });
    }

    let mut opened = sealed.clone();
    let answers = open(ours, &mut opened);
    let as_they_were = opened.iter().map(|packet| text_of(packet)).eq(texts.iter().map(Vec::as_slice));
    if !answers.iter().all(|opened| *opened) || !as_they_were {
        return Err(Wrong::Opened { run, len });
    }

    // Every third is changed: its tag, or its text where there is one.
    let mut forged = sealed;
    for (index, packet) in forged.iter_mut().enumerate().step_by(3) {
        let place = if index % 2 == 0 { packet.last_mut() } else { packet.first_mut() };
        if let Some(byte) = place {
            *byte ^= 0x80;
        }
    }
    let mut opened = forged.clone();
    let answers = open(ours, &mut opened);
    let all_right = answers.iter().enumerate().all(|(index, opened)| *opened == (index % 3 != 0));
    // The library zeroes what does not open, and we leave it as it was.
    let shows_nothing = |after: &[u8], before: &[u8]| after == before || after.iter().all(|byte| *byte == 0);
    let both = iter::zip(&opened, &forged);
    let unwritten = both.step_by(3).all(|(after, before)| shows_nothing(text_of(after), text_of(before)));
    if all_right && unwritten { Ok(()) } else { Err(Wrong::Forged { run, len }) }
}

fn seal(cipher: &impl Cipher, texts: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut sealed: Vec<_> = texts.iter().map(|text| vec![0; text.len() + TAG_LEN]).collect();
    let packets = iter::zip(texts, &mut sealed).map(|(text, out)| {
        // What is longer than a block has a head.
        let (head, rest) = text.split_at_checked(64).unwrap_or((&[], text));
        Sealing { head, rest, out }
    });
    // A run that is refused leaves zeros, which no library makes.
    let _ = cipher.seal_run(FIRST_COUNTER, &mut packets.collect::<Vec<_>>());
    sealed
}

fn open(cipher: &impl Cipher, sealed: &mut [Vec<u8>]) -> Vec<bool> {
    let packets = iter::zip(sealed, FIRST_COUNTER..);
    let mut run: Vec<_> = packets.map(|(bytes, counter)| Opening { counter, bytes, opened: false }).collect();
    cipher.open_run(&mut run);
    run.iter().map(|packet| packet.opened).collect()
}

/// What lies before the tag.
fn text_of(packet: &[u8]) -> &[u8] {
    &packet[..packet.len() - TAG_LEN]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::RunError;

    #[test]
    fn the_library_agrees_with_itself() {
        assert_eq!(check::<Key>(Kernel::Portable), Ok(()));
    }

    /// A kernel with a fault of its own.
    macro_rules! faulty {
        ($name:ident, $key:ident, $run:ident, seal: $seal:expr, open: $open:expr) => {
            struct $name(Key);

            impl Cipher for $name {
                fn new(key: &[u8; 32], kernel: Kernel) -> Self {
                    Self(Key::new(key, kernel))
                }

                fn seal_run(&self, first: u64, $run: &mut [Sealing<'_>]) -> Result<(), RunError> {
                    self.0.seal_run(first, $run)?;
                    $seal;
                    Ok(())
                }

                fn open_run(&self, $run: &mut [Opening<'_>]) {
                    let $key = &self.0;
                    $open;
                }
            }
        };
    }

    faulty!(WrongBit, key, run, seal: {
        // One bit of the last packet, in runs of full packets only.
        if let [first, .., last] = run && first.out.len() == 1420 + TAG_LEN { last.out[900] ^= 1; }
    }, open: key.open_run(run));
    faulty!(OpensAll, key, run, seal: {}, open: {
        key.open_run(run);
        run.iter_mut().for_each(|packet| packet.opened = true);
    });
    faulty!(OpensNone, key, run, seal: {}, open: {
        key.open_run(run);
        run.iter_mut().for_each(|packet| packet.opened = false);
    });
    faulty!(LeavesSealed, key, run, seal: {}, open: {
        let before: Vec<_> = run.iter().map(|packet| packet.bytes.to_vec()).collect();
        key.open_run(run);
        for (packet, before) in run.iter_mut().zip(before) {
            packet.bytes.copy_from_slice(&before);
        }
    });

    #[test]
    fn a_kernel_that_is_wrong_by_a_bit_is_refused() {
        assert_eq!(check::<WrongBit>(Kernel::Portable), Err(Wrong::Sealed { run: 2, len: 1420 }));
    }

    #[test]
    fn a_kernel_that_opens_what_was_changed_is_refused() {
        assert_eq!(check::<OpensAll>(Kernel::Portable), Err(Wrong::Forged { run: 1, len: 0 }));
    }

    #[test]
    fn a_kernel_that_opens_nothing_or_wrongly_is_refused() {
        assert_eq!(check::<OpensNone>(Kernel::Portable), Err(Wrong::Opened { run: 1, len: 0 }));
        assert_eq!(check::<LeavesSealed>(Kernel::Portable), Err(Wrong::Opened { run: 1, len: 1 }));
    }
}
