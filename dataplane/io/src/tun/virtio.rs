//! The offload header (`struct virtio_net_hdr`) in front of every packet on a TUN queue opened with `IFF_VNET_HDR`.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used)]

/// Bytes of the header.
pub(crate) const HEADER: usize = 10;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the packet's checksum is unfinished.
const NEEDS_CSUM: u8 = 1;

/// The header of a packet that is complete as it is.
pub(crate) const PLAIN: [u8; HEADER] = [0; HEADER];

/// Whether the packet behind this header is one complete packet: nothing to segment, no checksum to finish.
///
/// Always so while no offload was offered to the device.
pub(crate) fn is_plain(header: &[u8]) -> bool {
    matches!(header, [flags, 0, ..] if header.len() >= HEADER && flags & NEEDS_CSUM == 0)
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "tests may panic")]
mod tests {
    use super::*;

    #[test]
    fn only_complete_packets_are_plain() {
        assert!(is_plain(&PLAIN));
        assert!(!is_plain(&PLAIN[..9]), "truncated");
        let mut header = PLAIN;
        header[0] = 2;
        assert!(is_plain(&header), "a valid checksum needs nothing");
        header[0] = NEEDS_CSUM;
        assert!(!is_plain(&header), "unfinished checksum");
        header = PLAIN;
        header[1] = 4;
        assert!(!is_plain(&header), "super-packet");
    }
}
