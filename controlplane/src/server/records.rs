//! Where the records of TLS begin and end in a stream of bytes (RFC 8446, section 5.1). A record is understood as a whole or not at all,
//! so what a stranger may send is counted in whole ones.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

/// Bytes in front of a record: its type, a version, and its length.
const HEADER: usize = 5;
/// The most that the text of a record takes when it is encrypted (section 5.2). TLS refuses longer ones.
const LONGEST: usize = (16 << 10) + 256;

/// Follows the records of a stream.
#[derive(Debug, Default)]
pub(super) struct Records {
    header: [u8; HEADER],
    /// Bytes of the header that are there.
    begun: usize,
    /// Bytes of the record's text that are to come.
    left: usize,
    /// Bytes of the record, header and all, that are there.
    inside: usize,
}

impl Records {
    /// Goes on by what was read.
    pub(super) fn advance(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.left > 0 {
                let (text, rest) = bytes.split_at(self.left.min(bytes.len()));
                self.left = self.left.saturating_sub(text.len());
                self.inside = self.inside.saturating_add(text.len());
                bytes = rest;
            } else {
                if let Some(byte) = self.header.get_mut(self.begun) {
                    *byte = *first;
                }
                self.begun = self.begun.saturating_add(1);
                self.inside = self.inside.saturating_add(1);
                bytes = rest;
                if self.begun < HEADER {
                    continue;
                }
                let [_, _, _, high, low] = self.header;
                self.begun = 0;
                self.left = usize::from(u16::from_be_bytes([high, low])).min(LONGEST);
            }
            if self.left == 0 {
                self.inside = 0;
            }
        }
    }

    /// Bytes that are there of a record whose end is not.
    pub(super) const fn inside(&self) -> usize {
        self.inside
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_followed_wherever_the_stream_is_cut() {
        let record =
            |length: usize| [&[23, 3, 3][..], &(length as u16).to_be_bytes(), &vec![7; length]].concat();
        let stream = [record(3), record(0), record(300), record(1)].concat();
        // How much of its record is there after each byte.
        let expected: Vec<usize> =
            [8_usize, 5, 305, 6].into_iter().flat_map(|length| (1..length).chain([0])).collect();
        for piece in [1, 2, 3, 5, 7, 64, stream.len()] {
            let mut records = Records::default();
            let mut read = 0;
            for bytes in stream.chunks(piece) {
                records.advance(bytes);
                read += bytes.len();
                assert_eq!(records.inside(), expected[read - 1], "after {read} bytes in pieces of {piece}");
            }
        }
    }

    #[test]
    fn a_record_that_says_to_be_longer_than_any_ends_where_the_longest_would() {
        let mut records = Records::default();
        records.advance(&[22, 3, 1, 0xff, 0xff]);
        records.advance(&vec![0; LONGEST - 1]);
        assert_eq!(records.inside(), HEADER + LONGEST - 1);
        records.advance(&[0]);
        assert_eq!(records.inside(), 0);
    }
}
