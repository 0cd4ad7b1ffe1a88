//! Datagrams on a byte stream: a length in front of each, the same on SSH and on WebSockets.
//!
//! ```text
//!  byte 0..2            2..2+length
//! +--------------------+----------------------------+
//! | length, big-endian | one datagram, 1..=9216 B   |
//! +--------------------+----------------------------+
//! ```
//!
//! On an SSH channel frames follow each other and may be cut anywhere: [`whole`] tells how far they have come. A binary WebSocket message holds one or
//! more whole frames and at most [`MAX_MESSAGE_LEN`] bytes: [`frames_mut`]. Both are written with [`push`].
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use std::mem;

/// Bytes of the length in front of each datagram.
pub const HEADER_LEN: usize = 2;
/// Bytes of the longest datagram that travels in a stream: a jumbo frame's, with some to spare.
pub const MAX_DATAGRAM_LEN: usize = 9216;
/// Bytes of the longest WebSocket message.
pub const MAX_MESSAGE_LEN: usize = 64 << 10;

/// What comes in is not a run of frames. A stream that says so is of no further use: where the next frame begins is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A length of zero: no datagram is empty.
    #[error("the other side sent an empty frame")]
    Empty,
    /// A length above [`MAX_DATAGRAM_LEN`].
    #[error("the other side announced a frame of {0} bytes; at most {MAX_DATAGRAM_LEN} are allowed")]
    TooLong(usize),
    /// A WebSocket message ended within a frame.
    #[error("the other side sent a message that ends within a frame")]
    Cut,
}

/// A datagram that cannot be framed, because it is empty or longer than [`MAX_DATAGRAM_LEN`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a datagram of {0} bytes does not fit a frame")]
pub struct DoesNotFit(pub usize);

/// Appends `datagram` as one frame.
///
/// # Errors
///
/// If it is empty or too long; nothing is appended then.
pub fn push(stream: &mut Vec<u8>, datagram: &[u8]) -> Result<(), DoesNotFit> {
    let length = length_of(datagram).ok_or(DoesNotFit(datagram.len()))?;
    stream.reserve(HEADER_LEN.saturating_add(datagram.len()));
    stream.extend_from_slice(&length.to_be_bytes());
    stream.extend_from_slice(datagram);
    Ok(())
}

fn length_of(datagram: &[u8]) -> Option<u16> {
    if datagram.is_empty() || datagram.len() > MAX_DATAGRAM_LEN {
        return None;
    }
    u16::try_from(datagram.len()).ok()
}

/// The length that a header announces.
fn announced(header: [u8; HEADER_LEN]) -> Result<usize, FrameError> {
    match usize::from(u16::from_be_bytes(header)) {
        0 => Err(FrameError::Empty),
        length if length > MAX_DATAGRAM_LEN => Err(FrameError::TooLong(length)),
        length => Ok(length),
    }
}

/// The datagrams of one WebSocket message, to be opened or changed where they lie.
///
/// Ends after the first error.
pub fn frames_mut(message: &mut [u8]) -> FramesMut<'_> {
    FramesMut { rest: message }
}

/// Yields what [`frames_mut`] was given, datagram by datagram.
#[derive(Debug)]
pub struct FramesMut<'a> {
    rest: &'a mut [u8],
}

impl<'a> Iterator for FramesMut<'a> {
    type Item = Result<&'a mut [u8], FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        // Taken out, so that after an error there is nothing left.
        let rest = mem::take(&mut self.rest);
        if rest.is_empty() {
            return None;
        }
        let Some((header, rest)) = rest.split_first_chunk_mut::<HEADER_LEN>() else {
            return Some(Err(FrameError::Cut));
        };
        let length = match announced(*header) {
            Ok(length) => length,
            Err(error) => return Some(Err(error)),
        };
        let Some((datagram, rest)) = rest.split_at_mut_checked(length) else {
            return Some(Err(FrameError::Cut));
        };
        self.rest = rest;
        Some(Ok(datagram))
    }
}

/// How many of the first bytes of `received`, a piece of a byte stream that begins with a frame, are whole frames.
///
/// # Errors
///
/// A frame, even one that has only begun, has a length that no frame has: the stream cannot be followed.
pub fn whole(received: &[u8]) -> Result<usize, FrameError> {
    let mut rest = received;
    while let Some((header, after)) = rest.split_first_chunk() {
        let Some((_, after)) = after.split_at_checked(announced(*header)?) else { break };
        rest = after;
    }
    Ok(received.len().saturating_sub(rest.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn datagrams() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let datagram = prop_oneof![
            4 => proptest::collection::vec(any::<u8>(), 1..200),
            1 => (any::<u8>(), 1000..=MAX_DATAGRAM_LEN).prop_map(|(byte, len)| vec![byte; len]),
        ];
        proptest::collection::vec(datagram, 0..40)
    }

    fn stream_of(datagrams: &[Vec<u8>]) -> Vec<u8> {
        let mut stream = Vec::new();
        datagrams.iter().for_each(|datagram| push(&mut stream, datagram).unwrap());
        stream
    }

    /// Feeds a stream in pieces of the given sizes, over and over, and takes whole frames as they come.
    fn in_pieces(stream: &[u8], pieces: &[usize]) -> Result<Vec<Vec<u8>>, FrameError> {
        let (mut received, mut taken, mut rest) = (Vec::new(), Vec::new(), stream);
        let mut pieces = pieces.iter().copied().cycle();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(pieces.next().unwrap().min(rest.len()));
            received.extend_from_slice(piece);
            rest = after;
            let mut frames: Vec<u8> = received.drain(..whole(&received)?).collect();
            for datagram in frames_mut(&mut frames) {
                taken.push(datagram?.to_vec());
            }
        }
        Ok(taken)
    }

    proptest! {
        #[test]
        fn datagrams_come_back_however_the_stream_is_cut(
            datagrams in datagrams(),
            pieces in proptest::collection::vec(1usize..20_000, 1..20),
        ) {
            let stream = stream_of(&datagrams);
            prop_assert_eq!(in_pieces(&stream, &pieces), Ok(datagrams));
        }

        #[test]
        fn a_message_of_whole_frames_comes_apart(datagrams in datagrams()) {
            let mut message = stream_of(&datagrams);
            let taken: Result<Vec<_>, _> = frames_mut(&mut message).map(|frame| frame.map(|f| f.to_vec())).collect();
            prop_assert_eq!(taken, Ok(datagrams));
        }

        #[test]
        fn a_message_that_ends_within_a_frame_is_an_error(datagrams in datagrams(), cut in 1usize..10_000) {
            prop_assume!(!datagrams.is_empty());
            let mut message = stream_of(&datagrams);
            let last = HEADER_LEN + datagrams.last().unwrap().len();
            message.truncate(message.len() - 1 - cut % (last - 1));
            prop_assert_eq!(frames_mut(&mut message).last(), Some(Err(FrameError::Cut)));
        }

        #[test]
        fn no_bytes_make_it_panic_and_nothing_follows_an_error(
            bytes in proptest::collection::vec(any::<u8>(), 0..600),
            pieces in proptest::collection::vec(1usize..100, 1..10),
        ) {
            let _ = in_pieces(&bytes, &pieces);
            let mut message = bytes;
            let mut frames = frames_mut(&mut message);
            if frames.any(|frame| frame.is_err()) {
                prop_assert!(frames.next().is_none());
            }
        }
    }

    #[test]
    fn empty_and_overlong_frames_are_refused_by_every_side() {
        let mut stream = Vec::new();
        assert_eq!(push(&mut stream, &[]), Err(DoesNotFit(0)));
        let longest = vec![7; MAX_DATAGRAM_LEN + 1];
        assert_eq!(push(&mut stream, &longest), Err(DoesNotFit(longest.len())));
        assert!(stream.is_empty());
        push(&mut stream, &longest[1..]).unwrap();
        assert_eq!(stream.len(), HEADER_LEN + MAX_DATAGRAM_LEN);

        let over = (MAX_DATAGRAM_LEN as u16 + 1).to_be_bytes();
        for (header, error) in
            [([0, 0], FrameError::Empty), (over, FrameError::TooLong(MAX_DATAGRAM_LEN + 1))]
        {
            let mut bytes = header.to_vec();
            bytes.resize(20_000, 0);
            assert_eq!(in_pieces(&bytes, &[1]), Err(error));
            assert_eq!(frames_mut(&mut bytes).next(), Some(Err(error)));
        }
    }

    #[test]
    fn only_whole_frames_count_and_a_bad_length_is_found_before_its_bytes_come() {
        let stream = stream_of(&[b"one".to_vec(), b"three".to_vec()]);
        for cut in 0..=stream.len() {
            let ends = [0, 5, 12].into_iter().filter(|end| *end <= cut).max();
            assert_eq!(whole(&stream[..cut]).ok(), ends, "{cut}");
        }
        assert_eq!(whole(&[&stream[..], &[0, 0]].concat()), Err(FrameError::Empty));
        assert_eq!(whole(&[&stream[..], &9217_u16.to_be_bytes()].concat()), Err(FrameError::TooLong(9217)));
        assert_eq!(whole(&[&stream[..], &9216_u16.to_be_bytes()].concat()), Ok(12));
    }
}
