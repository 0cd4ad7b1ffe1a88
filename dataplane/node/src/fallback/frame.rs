//! Datagrams on a byte stream: a length of two bytes, big endian, then so many bytes.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

/// Bytes before each datagram.
pub(crate) const HEADER_LEN: usize = 2;
/// The longest datagram.
pub(crate) const MAX_DATAGRAM: usize = 9216;

/// A length of zero, or one of more than [`MAX_DATAGRAM`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {0} bytes; there are only such of 1 to {MAX_DATAGRAM}")]
pub(crate) struct BadLength(pub(crate) usize);

/// Puts `datagram` behind `frames` as a frame.
///
/// # Errors
/// It is empty or too long; nothing is written.
pub(crate) fn append(frames: &mut Vec<u8>, datagram: &[u8]) -> Result<(), BadLength> {
    let length = u16::try_from(datagram.len()).map_err(|_| BadLength(datagram.len()))?;
    if length == 0 || datagram.len() > MAX_DATAGRAM {
        return Err(BadLength(datagram.len()));
    }
    frames.extend_from_slice(&length.to_be_bytes());
    frames.extend_from_slice(datagram);
    Ok(())
}

/// How many of the first bytes of `received` are whole frames.
///
/// # Errors
/// A frame has a length that no frame has: the stream is not ours.
pub(crate) fn whole(received: &[u8]) -> Result<usize, BadLength> {
    let mut rest = received;
    while let Some((header, after)) = rest.split_first_chunk::<HEADER_LEN>() {
        let length = usize::from(u16::from_be_bytes(*header));
        if length == 0 || length > MAX_DATAGRAM {
            return Err(BadLength(length));
        }
        let Some((_, after)) = after.split_at_checked(length) else { break };
        rest = after;
    }
    Ok(received.len().saturating_sub(rest.len()))
}

/// The datagrams of whole frames, in order. Ends at the first that is not whole.
pub(crate) fn datagrams(frames: &mut [u8]) -> impl Iterator<Item = &mut [u8]> {
    let mut rest = frames;
    std::iter::from_fn(move || {
        let (header, after) = std::mem::take(&mut rest).split_first_chunk_mut::<HEADER_LEN>()?;
        let (datagram, after) = after.split_at_mut_checked(usize::from(u16::from_be_bytes(*header)))?;
        rest = after;
        Some(datagram)
    })
}
