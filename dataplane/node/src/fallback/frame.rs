//! How far a stream of bytes has whole frames; all else about them is in [`ringmesh_relay::frame`].
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use ringmesh_relay::frame::{FrameError, HEADER_LEN, MAX_DATAGRAM_LEN};

/// How many of the first bytes of `received` are whole frames.
///
/// # Errors
/// A frame, even one that has only begun, has a length that no frame has: the stream cannot be followed.
pub(super) fn whole(received: &[u8]) -> Result<usize, FrameError> {
    let mut rest = received;
    while let Some((header, after)) = rest.split_first_chunk::<HEADER_LEN>() {
        let length = match usize::from(u16::from_be_bytes(*header)) {
            0 => return Err(FrameError::Empty),
            length if length > MAX_DATAGRAM_LEN => return Err(FrameError::TooLong(length)),
            length => length,
        };
        let Some((_, after)) = after.split_at_checked(length) else { break };
        rest = after;
    }
    Ok(received.len().saturating_sub(rest.len()))
}

#[cfg(test)]
mod tests {
    use ringmesh_relay::frame;

    use super::*;

    #[test]
    fn only_whole_frames_count() {
        let mut stream = Vec::new();
        frame::push(&mut stream, b"one").unwrap();
        frame::push(&mut stream, b"three").unwrap();
        let ends = |cut| {
            if cut < 5 {
                0
            } else if cut < 12 {
                5
            } else {
                12
            }
        };
        for cut in 0..=stream.len() {
            assert_eq!(whole(&stream[..cut]), Ok(ends(cut)), "{cut}");
        }
    }

    #[test]
    fn a_length_that_no_frame_has_is_found_behind_good_frames_and_before_its_bytes_came() {
        let mut stream = Vec::new();
        frame::push(&mut stream, b"good").unwrap();
        let cut = [&stream[..], &[0, 0]].concat();
        assert_eq!(whole(&cut), Err(FrameError::Empty));
        let long = [&stream[..], &9217_u16.to_be_bytes()].concat();
        assert_eq!(whole(&long), Err(FrameError::TooLong(9217)));
        assert_eq!(whole(&[&stream[..], &9216_u16.to_be_bytes()].concat()), Ok(6));
    }
}
