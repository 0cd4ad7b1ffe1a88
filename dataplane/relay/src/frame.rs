//! Datagrams on a byte stream: a length in front of each, the same on SSH and on WebSockets.
//!
//! ```text
//!  byte 0..2            2..2+length
//! +--------------------+----------------------------+
//! | length, big-endian | one datagram, 1..=9216 B   |
//! +--------------------+----------------------------+
//! ```
//!
//! On an SSH channel frames follow each other and may be cut anywhere: [`Deframer`]. A binary WebSocket message holds one or
//! more whole frames and at most [`MAX_MESSAGE_LEN`] bytes: [`frames_mut`]. Both are written with [`push`].
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use std::mem;

/// Bytes of the length in front of each datagram.
pub const HEADER_LEN: usize = 2;
/// Bytes of the longest datagram that travels in a stream: a jumbo frame's, with some to spare.
pub const MAX_DATAGRAM_LEN: usize = 9216;
/// Bytes of the longest frame.
pub const MAX_FRAME_LEN: usize = HEADER_LEN + MAX_DATAGRAM_LEN;
/// Bytes of the longest WebSocket message, and of what a [`Deframer`] holds.
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

/// Cuts a byte stream into datagrams, however the bytes arrive.
///
/// Read into [`space`](Self::space), say how much with [`filled`](Self::filled), then take datagrams with
/// [`next_datagram`](Self::next_datagram) until there is none. It holds [`MAX_MESSAGE_LEN`] bytes from the first byte on, and
/// nothing before.
#[derive(Debug, Default)]
pub struct Deframer {
    buffer: Vec<u8>,
    /// What was taken already.
    start: usize,
    /// Where the bytes that came end.
    end: usize,
}

impl Deframer {
    /// One that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Where to put what comes next. Never empty once all datagrams were taken: what is left is less than a frame.
    pub fn space(&mut self) -> &mut [u8] {
        if self.buffer.is_empty() {
            self.buffer.resize(MAX_MESSAGE_LEN, 0);
        }
        // Moved only when a whole frame might not fit behind: mostly nothing is left to move.
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.buffer.len().saturating_sub(self.start) < MAX_FRAME_LEN
            || self.end == self.buffer.len()
        {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end.saturating_sub(self.start));
        }
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }

    /// The first `count` bytes of [`space`](Self::space) were filled.
    pub fn filled(&mut self, count: usize) {
        self.end = self.end.saturating_add(count).min(self.buffer.len());
    }

    /// Takes the next whole datagram, to be opened in place.
    ///
    /// # Errors
    ///
    /// If a length is not allowed; the same error comes again then, as the stream cannot be followed any more.
    pub fn next_datagram(&mut self) -> Result<Option<&mut [u8]>, FrameError> {
        let Some((header, rest)) = self
            .buffer
            .get_mut(self.start..self.end)
            .and_then(|bytes| bytes.split_first_chunk_mut::<HEADER_LEN>())
        else {
            return Ok(None);
        };
        let length = announced(*header)?;
        let Some(datagram) = rest.get_mut(..length) else { return Ok(None) };
        self.start = self.start.saturating_add(HEADER_LEN).saturating_add(length);
        Ok(Some(datagram))
    }
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

    /// Feeds a stream in pieces of the given sizes, over and over.
    fn deframe(stream: &[u8], pieces: &[usize]) -> Result<Vec<Vec<u8>>, FrameError> {
        let (mut deframer, mut taken, mut rest) = (Deframer::new(), Vec::new(), stream);
        let mut pieces = pieces.iter().copied().cycle();
        while !rest.is_empty() {
            let space = deframer.space();
            let count = pieces.next().unwrap().min(space.len()).min(rest.len());
            assert!(count > 0, "there is always room for more");
            space[..count].copy_from_slice(&rest[..count]);
            deframer.filled(count);
            rest = &rest[count..];
            while let Some(datagram) = deframer.next_datagram()? {
                taken.push(datagram.to_vec());
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
            prop_assert_eq!(deframe(&stream, &pieces), Ok(datagrams));
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
            let _ = deframe(&bytes, &pieces);
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
        assert_eq!(stream.len(), MAX_FRAME_LEN);

        let over = (MAX_DATAGRAM_LEN as u16 + 1).to_be_bytes();
        for (header, error) in
            [([0, 0], FrameError::Empty), (over, FrameError::TooLong(MAX_DATAGRAM_LEN + 1))]
        {
            let mut bytes = header.to_vec();
            bytes.resize(20_000, 0);
            assert_eq!(deframe(&bytes, &[1]), Err(error));
            assert_eq!(frames_mut(&mut bytes).next(), Some(Err(error)));
        }
    }

    #[test]
    fn an_error_of_a_stream_stays() {
        let mut deframer = Deframer::new();
        deframer.space()[..4].copy_from_slice(&[0, 0, 0, 1]);
        deframer.filled(4);
        assert_eq!(deframer.next_datagram(), Err(FrameError::Empty));
        assert_eq!(deframer.next_datagram(), Err(FrameError::Empty));
    }

    #[test]
    fn a_deframer_holds_nothing_before_the_first_byte_and_never_more_than_a_message() {
        let mut deframer = Deframer::new();
        assert_eq!(deframer.buffer.capacity(), 0);
        for _ in 0..50 {
            let space = deframer.space();
            space.fill(0x11);
            let count = space.len();
            deframer.filled(count);
            while deframer.next_datagram().unwrap().is_some() {}
        }
        assert_eq!(deframer.buffer.capacity(), MAX_MESSAGE_LEN);
    }
}
