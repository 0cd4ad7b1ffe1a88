//! A cipher that encrypts nothing: the data plane with it is the limit of what a faster cipher could bring.
//!
//! It moves bytes exactly as a cipher must (text to its place, padding behind it, a tag), so that the difference to the real one
//! is the arithmetic alone. Nothing else than this program can make one; no daemon that is installed has it.

use ringmesh_aead::{Cipher, Kernel, Opening, RunError, Sealing, TAG_LEN};

/// Moves text and encrypts nothing.
#[derive(Debug)]
pub(crate) struct NullCipher;

/// What stands in the place of a tag.
const TAG: [u8; TAG_LEN] = *b"not a tag at all";

impl Cipher for NullCipher {
    fn new(_: &[u8; 32], _: Kernel) -> Self {
        Self
    }

    fn seal_run(&self, _: u64, run: &mut [Sealing<'_>]) -> Result<(), RunError> {
        let fits = |packet: &Sealing<'_>| packet.out.len() >= packet.head.len() + packet.rest.len() + TAG_LEN;
        if !run.iter().all(fits) {
            return Err(RunError::NoRoom);
        }
        for Sealing { head, rest, out } in run {
            let (text, tag) = out.split_at_mut(out.len() - TAG_LEN);
            let (start, more) = text.split_at_mut(head.len());
            let (middle, padding) = more.split_at_mut(rest.len());
            start.copy_from_slice(head);
            middle.copy_from_slice(rest);
            padding.fill(0);
            tag.copy_from_slice(&TAG);
        }
        Ok(())
    }

    fn open_run(&self, run: &mut [Opening<'_>]) {
        for packet in run {
            packet.opened = packet.bytes.ends_with(&TAG);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_comes_out_as_it_went_in_with_padding_and_a_tag() {
        let (head, mut out) = ([1; 64], [0xff; 64 + 3 + 5 + TAG_LEN]);
        let cipher = NullCipher::new(&[0; 32], Kernel::Portable);
        let mut run = [Sealing { head: &head, rest: &[2; 3], out: &mut out }];
        cipher.seal_run(0, &mut run).unwrap();
        assert_eq!(out[60..72], [1, 1, 1, 1, 2, 2, 2, 0, 0, 0, 0, 0]);
        let mut short = [0; 70];
        let mut opening = [
            Opening { counter: 0, bytes: &mut out, opened: false },
            Opening { counter: 1, bytes: &mut short, opened: true },
        ];
        cipher.open_run(&mut opening);
        assert_eq!(opening.each_ref().map(|packet| packet.opened), [true, false]);
    }

    #[test]
    fn a_run_that_does_not_fit_is_refused_whole() {
        let (mut first, mut second) = ([0xff; 20], [0xff; 18]);
        let mut run = [
            Sealing { head: &[1; 4], rest: &[], out: &mut first },
            Sealing { head: &[1; 4], rest: &[], out: &mut second },
        ];
        assert_eq!(NullCipher.seal_run(0, &mut run), Err(RunError::NoRoom));
        assert_eq!(first, [0xff; 20], "nothing was written");
    }
}
