//! What TUN gave, before it is shown: how much room its segments may need, and whether it is what its offload header says.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use crate::offload::virtio::{self, HEADER, Header};
use crate::{Counters, DATAGRAM_OVERHEAD, Head, OUTBOX_BYTES, SuperPacket};

/// Bytes that a read may bring: an offload header, the longest packet, and one byte by which a longer one would show.
pub(crate) fn buffer_len(mtu: u16, super_packets: bool) -> usize {
    let longest = if super_packets { usize::from(u16::MAX) } else { usize::from(mtu) };
    HEADER.saturating_add(longest).saturating_add(1)
}

/// A super-packet that may need more of the outbox than this is not fit to be cut: 64 KiB in segments of 48 bytes, the least
/// that TCP takes, need less. Only who writes packets by hand asks for more, and must not stop those of others.
pub(crate) const MOST: usize = OUTBOX_BYTES / 2;

/// The most bytes of the outbox that what was read may need, by a look at its offload header: each of its segments padded
/// and with [`DATAGRAM_OVERHEAD`].
pub(crate) fn bound(read: &[u8]) -> usize {
    let Some((header, packet)) = read.split_first_chunk() else { return 0 };
    let header = Header::parse(header);
    let overhead = DATAGRAM_OVERHEAD.saturating_add(16);
    if header.kind() == virtio::GSO_NONE {
        return packet.len().saturating_add(overhead);
    }
    let size = usize::from(header.gso_size).max(1);
    let segments = packet.len().div_ceil(size).max(1);
    segments.saturating_mul(size.saturating_add(Head::CAPACITY).saturating_add(overhead))
}

/// Makes a packet of what was read, and counts it; `None` when it is not fit to be shown.
pub(crate) fn accept<'a>(read: &'a mut [u8], mtu: u16, counters: &mut Counters) -> Option<SuperPacket<'a>> {
    let can_be_cut = bound(read) <= MOST;
    let packet = read.split_first_chunk_mut().filter(|_| can_be_cut);
    let packet = packet.and_then(|(header, packet)| SuperPacket::parse(header, packet).ok());
    let Some(packet) = packet.filter(|packet| packet.segment_len(0) <= usize::from(mtu)) else {
        counters.packets_unfit = counters.packets_unfit.wrapping_add(1);
        return None;
    };
    let segments = packet.segments();
    counters.packets_read = counters.packets_read.wrapping_add(segments as u64);
    counters.super_packets_read = counters.super_packets_read.wrapping_add(u64::from(segments > 1));
    Some(packet)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(header: Header, len: usize) -> Vec<u8> {
        [&header.emit()[..], &vec![0; len]].concat()
    }

    #[test]
    fn the_bound_covers_every_segment_with_headers_and_overhead() {
        assert_eq!(bound(&read(Header::default(), 1408)), 1408 + 80);
        let header = Header { gso_type: virtio::GSO_TCPV4, gso_size: 1356, ..Header::default() };
        let segments = 65_000_usize.div_ceil(1356);
        assert!(bound(&read(header, 65_000)) >= segments * (1356 + 52 + 80));
        let header = Header { gso_type: virtio::GSO_TCPV4, gso_size: 0, ..Header::default() };
        assert!(bound(&read(header, 65_000)) > 65_000, "a size of 0 is no division by it");
        assert_eq!(bound(&[0; 9]), 0);
    }

    #[test]
    fn what_is_longer_than_the_mtu_or_no_packet_at_all_is_counted() {
        let mut counters = Counters::default();
        assert!(accept(&mut read(Header::default(), 1408), 1408, &mut counters).is_some());
        assert!(accept(&mut read(Header::default(), 1409), 1408, &mut counters).is_none());
        assert!(accept(&mut [0; 9], 1408, &mut counters).is_none());
        let lie = Header { gso_type: 77, ..Header::default() };
        assert!(accept(&mut read(lie, 100), 1408, &mut counters).is_none());
        assert_eq!((counters.packets_read, counters.packets_unfit), (1, 3));
    }
}
