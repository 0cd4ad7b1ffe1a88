//! Control messages (`struct cmsghdr`) of the two UDP offloads: the segment size of a send, and of what was received.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used)]

/// Bytes of `struct cmsghdr`.
const HEADER: usize = size_of::<libc::cmsghdr>();

/// Bytes that [`segment_size`] writes: header, two bytes, and padding (`CMSG_SPACE(2)`).
pub(crate) const SEGMENT_SIZE_LEN: usize = HEADER + size_of::<usize>();

/// The length that the header of [`segment_size`] tells (`CMSG_LEN(2)`).
const SEGMENT_SIZE_TOLD: usize = HEADER + size_of::<u16>();

/// `UDP_SEGMENT`: cut what is sent every `size` bytes.
pub(crate) fn segment_size(size: u16) -> [u8; SEGMENT_SIZE_LEN] {
    let mut bytes = [0; SEGMENT_SIZE_LEN];
    let fields = SEGMENT_SIZE_TOLD
        .to_ne_bytes()
        .into_iter()
        .chain(libc::SOL_UDP.to_ne_bytes())
        .chain(libc::UDP_SEGMENT.to_ne_bytes())
        .chain(size.to_ne_bytes());
    for (byte, value) in bytes.iter_mut().zip(fields) {
        *byte = value;
    }
    bytes
}

/// The size every `UDP_GRO` datagram but the last has, if the kernel merged what was received. What else is there is
/// skipped, what is cut or lies about its length ends the search.
pub(crate) fn gro_size(mut control: &[u8]) -> Option<u16> {
    loop {
        let (told, rest) = control.split_first_chunk()?;
        let told = usize::from_ne_bytes(*told);
        let (level, rest) = rest.split_first_chunk()?;
        let (kind, _) = rest.split_first_chunk()?;
        let value = control.get(HEADER..told)?;
        if i32::from_ne_bytes(*level) == libc::SOL_UDP && i32::from_ne_bytes(*kind) == libc::UDP_GRO {
            let size = i32::from_ne_bytes(*value.first_chunk()?);
            return u16::try_from(size).ok().filter(|size| *size > 0);
        }
        control = control.get(told.checked_next_multiple_of(size_of::<usize>())?..)?;
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "tests may panic")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(level: i32, kind: i32, value: &[u8]) -> Vec<u8> {
        let mut bytes = (HEADER + value.len()).to_ne_bytes().to_vec();
        bytes.extend(level.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    #[test]
    fn a_size_is_told_as_the_kernel_reads_it() {
        let bytes = segment_size(1440);
        assert_eq!(bytes[..18], message(libc::SOL_UDP, libc::UDP_SEGMENT, &1440u16.to_ne_bytes())[..18]);
        assert_eq!(bytes[18..], [0; 6]);
    }

    #[test]
    fn the_size_is_found_behind_other_messages() {
        let gro = message(libc::SOL_UDP, libc::UDP_GRO, &1440i32.to_ne_bytes());
        let other = message(libc::SOL_SOCKET, libc::SO_TIMESTAMP, &[1; 13]);
        assert_eq!(gro_size(&gro), Some(1440));
        assert_eq!(gro_size(&[other.clone(), gro.clone()].concat()), Some(1440));
        assert_eq!(gro_size(&other), None);
        assert_eq!(gro_size(&[]), None);
        assert_eq!(gro_size(&message(libc::SOL_UDP, libc::UDP_GRO, &0i32.to_ne_bytes())), None);
        assert_eq!(gro_size(&message(libc::SOL_UDP, libc::UDP_GRO, &(-1i32).to_ne_bytes())), None);
        for len in 0..gro.len() - 4 {
            assert_eq!(gro_size(&gro[..len]), None, "cut at {len}");
        }
    }

    #[test]
    fn a_length_that_leads_nowhere_ends_the_search() {
        for told in [0usize, 1, HEADER - 1, usize::MAX, usize::MAX - 6] {
            let mut bytes = message(libc::SOL_SOCKET, libc::SO_TIMESTAMP, &[0; 4]);
            bytes[..8].copy_from_slice(&told.to_ne_bytes());
            assert_eq!(gro_size(&bytes), None);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_harmless(bytes: Vec<u8>) {
            let _ = gro_size(&bytes);
        }
    }
}
