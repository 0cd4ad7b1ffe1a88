//! Cutting, against the reference.

use proptest::prelude::*;

use super::packet::{ACK, CWR, ECE, FIN, Ip, PSH, Packet, Transport, noise, reference_sum};
use crate::offload::super_packet::{Head, SuperPacket, Unfit};
use crate::offload::virtio;

/// Cuts a super-packet as the packet path does: all of its segments, whole again.
fn segments(header: &[u8; 10], bytes: &mut [u8]) -> Result<Vec<Vec<u8>>, Unfit> {
    let whole = bytes.to_vec();
    let packet = SuperPacket::parse(header, bytes)?;
    let mut head = Head::new();
    let mut segments = Vec::new();
    for index in 0..packet.segments() {
        let (first, rest) = packet.segment(index, &mut head);
        assert!(
            first.len() % 64 == 0 || rest.is_empty(),
            "{} bytes of head, {} of rest",
            first.len(),
            rest.len()
        );
        assert!(packet.segments() > 1 || first.is_empty(), "a single packet is left where it is");
        let segment = [first, rest].concat();
        assert_eq!(segment.len(), packet.segment_len(index));
        segments.push(segment);
    }
    if packet.segments() > 1 {
        assert_eq!(packet.whole(), whole, "nothing is written into a super-packet");
    }
    for past in [packet.segments(), usize::MAX] {
        assert_eq!(packet.segment(past, &mut head), (&[][..], &[][..]));
        assert_eq!(packet.segment_len(past), 0);
    }
    Ok(segments)
}

fn check(packet: &Packet, size: u16) {
    let (header, mut bytes) = packet.emit_unfinished(Some(size));
    let got = segments(&header, &mut bytes).expect("the kernel makes such");
    let want: Vec<Vec<u8>> = packet.cut(usize::from(size)).iter().map(Packet::emit).collect();
    assert_eq!(got.len(), want.len());
    for (index, (got, want)) in got.iter().zip(&want).enumerate() {
        assert!(got == want, "segment {index} of {} is\n{got:02x?}, not\n{want:02x?}", packet.payload.len());
    }
}

fn families(payload: &[u8]) -> [Packet; 4] {
    [Packet::tcp4, Packet::tcp6, Packet::udp4, Packet::udp6].map(|new| new(payload.to_vec()))
}

#[test]
fn every_count_of_segments_is_cut_with_every_tail() {
    for count in 1..=128usize {
        let size = 1 + count * 5 % 431;
        for tail in [1, size / 2 + 1, size] {
            let payload = noise(count as u64, size * (count - 1) + tail);
            families(&payload).iter().for_each(|packet| check(packet, size as u16));
        }
    }
}

#[test]
fn every_size_of_segment_is_cut() {
    for size in (1..=300).chain([535, 536, 1_219, 1_220, 1_360, 1_399, 1_400, 8_860, 32_767, 65_535]) {
        let payload = noise(u64::from(size), 3 * usize::from(size).min(9_000) + 1);
        families(&payload).iter().for_each(|packet| check(packet, size));
    }
}

#[test]
fn a_super_packet_of_the_greatest_length_is_cut_into_segments_of_one_byte() {
    check(&Packet::tcp4(noise(1, 65_535 - 40)), 1);
    check(&Packet::udp6(noise(2, 65_535 - 8)), 1);
    check(&Packet::tcp4(noise(3, 65_535 - 40)), 48);
    check(&Packet::tcp6(noise(4, 65_535 - 20)), 1_380);
}

#[test]
fn every_length_of_options_finds_room_in_the_head() {
    let payload = noise(9, 777);
    for ip in 0..=10 {
        for tcp in 0..=10 {
            let mut packet = Packet::tcp4(payload.clone());
            let Ip::V4 { options, .. } = &mut packet.ip else { unreachable!() };
            *options = vec![1; ip * 4];
            let Transport::Tcp { options, .. } = &mut packet.transport else { unreachable!() };
            *options = noise(3, tcp * 4);
            check(&packet, 100);
        }
    }
}

#[test]
fn extension_headers_of_ipv6_stay_in_front_of_every_segment_as_far_as_they_fit() {
    for (kind, units) in [(0, 1), (60, 2), (43, 3), (60, 11), (0, 13)] {
        let mut packet = Packet::tcp6(noise(5, 1_000));
        let Ip::V6 { extensions, .. } = &mut packet.ip else { unreachable!() };
        *extensions = vec![(kind, noise(6, units * 8 - 2)), (60, vec![0; 6])];
        check(&packet, 300);
    }
    let mut packet = Packet::tcp6(noise(5, 1_000));
    let Ip::V6 { extensions, .. } = &mut packet.ip else { unreachable!() };
    *extensions = vec![(0, vec![0; 17 * 8 - 2])];
    let (header, mut bytes) = packet.emit_unfinished(Some(300));
    assert_eq!(segments(&header, &mut bytes), Err(Unfit::LongHeaders));
}

#[test]
fn what_is_said_once_is_said_once() {
    for flags in [FIN | PSH | CWR, FIN, PSH, CWR, ECE | CWR | PSH, ECE, 0x100 | CWR] {
        let mut packet = Packet::tcp4(noise(7, 1_000));
        *packet.flags_mut() = ACK | flags;
        check(&packet, 300);
        let (mut header, mut bytes) = packet.emit_unfinished(Some(300));
        header[1] |= virtio::GSO_ECN;
        let got = segments(&header, &mut bytes).expect("the kernel marks those that have CWR");
        assert_eq!(got[0], packet.cut(300)[0].emit());
    }
}

#[test]
fn identifications_and_sequence_numbers_go_round() {
    let mut packet = Packet::tcp4(noise(8, 5_000));
    *packet.sequence_mut() = u32::MAX - 999;
    let Ip::V4 { id, fragment, .. } = &mut packet.ip else { unreachable!() };
    (*id, *fragment) = (u16::MAX - 1, 0);
    check(&packet, 1_000);
}

#[test]
fn a_checksum_of_zero_is_sent_as_its_other_zero_in_udp() {
    // The payload's last word makes the sum of everything else zero.
    let mut packet = Packet::udp4(vec![0; 200]);
    let bytes = packet.cut(100)[1].emit();
    let checksum = u16::from_be_bytes([bytes[26], bytes[27]]);
    packet.payload[198..].copy_from_slice(&checksum.to_be_bytes());
    packet.payload[98..100].copy_from_slice(&checksum.to_be_bytes());
    let second = packet.cut(100)[1].emit();
    assert_eq!(&second[26..28], &[0xff, 0xff], "the case is the one meant");
    check(&packet, 100);
    let single = packet.cut(100)[1].clone();
    let (header, mut bytes) = single.emit_unfinished(None);
    assert_eq!(segments(&header, &mut bytes).expect("one"), vec![second]);
}

#[test]
fn a_single_packet_has_its_checksum_finished() {
    for len in (0..=130).chain([1_399, 1_400, 1_401]) {
        for packet in families(&noise(len as u64, len)) {
            for size in [None, Some(len as u16 + 1)] {
                let (header, mut bytes) = packet.emit_unfinished(size);
                assert_eq!(segments(&header, &mut bytes).expect("one"), vec![packet.emit()], "{len}");
            }
        }
    }
}

#[test]
fn a_complete_packet_is_left_as_it_is() {
    let bytes = noise(1, 100);
    for flags in [0, 2, 4] {
        let header = [flags, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(segments(&header, &mut bytes.clone()), Ok(vec![bytes.clone()]));
    }
    let packet = SuperPacket::single(&bytes);
    assert_eq!((packet.segments(), packet.segment_len(0)), (1, 100));
    assert_eq!(segments(&[0; 10], &mut []), Ok(vec![vec![]]));
}

/// A super-packet that is cut, and what is altered about it: of the offload header, or of the packet.
fn lie(packet: &Packet, alter: impl FnOnce(&mut [u8; 10], &mut Vec<u8>)) -> Unfit {
    let (mut header, mut bytes) = packet.emit_unfinished(Some(100));
    assert!(segments(&header, &mut bytes.clone()).is_ok());
    alter(&mut header, &mut bytes);
    segments(&header, &mut bytes).expect_err("a lie")
}

#[test]
fn lies_about_the_kind_are_refused() {
    let [tcp4, tcp6, udp4, udp6] = families(&noise(1, 300));
    for kind in [2, 3, 6, 7, 0x7f] {
        assert_eq!(lie(&tcp4, |header, _| header[1] = kind), Unfit::Kind(kind));
    }
    for (packet, kind) in
        [(&tcp4, 4), (&tcp4, 5), (&tcp6, 1), (&tcp6, 5), (&udp4, 1), (&udp4, 4), (&udp6, 4), (&udp6, 1)]
    {
        assert_eq!(lie(packet, |header, _| header[1] = kind), Unfit::Mismatch);
    }
    assert_eq!(lie(&tcp4, |_, bytes| bytes[0] = 0x35), Unfit::Mismatch);
    assert_eq!(lie(&tcp4, |_, bytes| bytes.clear()), Unfit::Mismatch);
}

#[test]
fn lies_about_lengths_are_refused() {
    for packet in families(&noise(1, 300)) {
        assert_eq!(lie(&packet, |_, bytes| bytes.push(0)), Unfit::Mismatch);
        assert_eq!(lie(&packet, |_, bytes| bytes.truncate(bytes.len() - 1)), Unfit::Mismatch);
        assert_eq!(lie(&packet, |header, _| header[6] += 4), Unfit::Mismatch, "where the checksum starts");
        assert_eq!(lie(&packet, |header, _| header[8] ^= 4), Unfit::Checksum, "where the checksum is");
        assert_eq!(lie(&packet, |header, _| header[0] = 0), Unfit::Checksum, "a checksum of its own");
        assert_eq!(lie(&packet, |header, _| header[4..6].fill(0)), Unfit::Empty);
    }
    let [tcp4, _, udp4, _] = families(&noise(1, 300));
    // The ports lie where the length would be, and fit.
    let fits = Packet { source_port: 12 + 300, ..udp4.clone() };
    let short = lie(&fits, |header, bytes| (header[6], bytes[0]) = (16, 0x44));
    assert_eq!(short, Unfit::Mismatch, "IPv4's header is too short");
    let long = lie(&tcp4, |header, bytes| {
        header[6] = 60;
        bytes[0] = 0x4f;
        bytes[3] = 59;
        bytes[2] = 0;
        bytes.truncate(59);
    });
    assert_eq!(long, Unfit::Short, "IPv4's header is longer than the packet");
    assert_eq!(lie(&tcp4, |_, bytes| bytes[32] = 0x40), Unfit::Mismatch, "TCP's header is too short");
    assert_eq!(lie(&udp4, |_, bytes| bytes[25] += 1), Unfit::Mismatch, "UDP's length");
    assert_eq!(lie(&tcp4, |_, bytes| bytes[6] = 0x20), Unfit::Mismatch, "a fragment");
    assert_eq!(lie(&tcp4, |_, bytes| bytes[7] = 1), Unfit::Mismatch, "a later fragment");
    // Headers that reach past the end of the packet.
    let short = Packet::tcp4(noise(1, 8));
    let (header, mut bytes) = short.emit_unfinished(Some(2));
    bytes[32] = 0xf0;
    assert_eq!(segments(&header, &mut bytes), Err(Unfit::Short));
}

#[test]
fn lies_about_extension_headers_are_refused() {
    let mut packet = Packet::tcp6(noise(5, 1_000));
    let Ip::V6 { extensions, .. } = &mut packet.ip else { unreachable!() };
    *extensions = vec![(0, vec![0; 6])];
    assert_eq!(lie(&packet, |_, bytes| bytes[41] = 255), Unfit::Mismatch, "past the end");
    assert_eq!(lie(&packet, |_, bytes| bytes[41] = 1), Unfit::Mismatch, "into TCP");
    let past = lie(&packet, |header, bytes| {
        bytes[41] = 200;
        header[6..8].copy_from_slice(&(40u16 + 201 * 8).to_ne_bytes());
    });
    assert_eq!(past, Unfit::Short, "past the end, where the checksum is said to start");
    assert_eq!(lie(&packet, |_, bytes| bytes[6] = 44), Unfit::Mismatch, "a fragment");
    assert_eq!(lie(&packet, |_, bytes| bytes[40] = 17), Unfit::Mismatch, "another protocol");
}

#[test]
fn a_checksum_outside_of_the_packet_is_refused() {
    let packet = Packet::udp4(noise(1, 20));
    let (header, bytes) = packet.emit_unfinished(None);
    for (start, offset) in [(48, 0), (47, 0), (46, 1), (u16::MAX, 6), (20, u16::MAX), (20, 27), (49, 0)] {
        let mut header = header;
        header[6..8].copy_from_slice(&u16::to_ne_bytes(start));
        header[8..10].copy_from_slice(&u16::to_ne_bytes(offset));
        let mut damaged = bytes.clone();
        assert_eq!(segments(&header, &mut damaged), Err(Unfit::Short), "{start} {offset}");
        assert_eq!(damaged, bytes);
    }
    let mut header = header;
    header[6..8].copy_from_slice(&46u16.to_ne_bytes());
    header[8..10].copy_from_slice(&0u16.to_ne_bytes());
    let mut summed = bytes.clone();
    assert!(segments(&header, &mut summed).is_ok(), "the last word of the packet");
    assert_eq!(reference_sum(&summed[46..]), !reference_sum(&bytes[46..]));
}

prop_compose! {
    fn any_packet()(
        kind in 0..4usize,
        payload in 1..4_000usize,
        seed in any::<u64>(),
        (tos, ttl, id, df) in any::<(u8, u8, u16, bool)>(),
        (sequence, acknowledgement, flags, window, urgent) in any::<(u32, u32, u16, u16, u16)>(),
        (ip_options, tcp_options) in (0..=10usize, 0..=10usize),
        extensions in prop::collection::vec((prop::sample::select(vec![0u8, 43, 60]), 1..5usize), 0..3),
        ports in any::<(u16, u16)>(),
    ) -> Packet {
        let mut packet = families(&noise(seed, payload))[kind].clone();
        (packet.tos, packet.ttl, packet.source_port, packet.destination_port) = (tos, ttl, ports.0, ports.1);
        match &mut packet.ip {
            Ip::V4 { id: its_id, fragment, options, .. } => {
                *its_id = id;
                *fragment = if df { 0x4000 } else { 0 };
                *options = vec![1; ip_options * 4];
            }
            Ip::V6 { label, extensions: its, .. } => {
                *label = acknowledgement & 0xf_ffff;
                *its = extensions.iter().map(|(kind, units)| (*kind, noise(seed, units * 8 - 2))).collect();
            }
        }
        if packet.is_tcp() {
            packet.transport = Transport::Tcp {
                sequence,
                acknowledgement,
                flags: flags & 0xfff,
                window,
                urgent,
                options: noise(seed ^ 1, tcp_options * 4),
            };
        }
        packet
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn cutting_is_what_the_reference_does(packet in any_packet(), size in 1..1_500u16) {
        prop_assume!(packet.payload.len() / usize::from(size) < 300);
        check(&packet, size);
    }

    #[test]
    fn no_bytes_make_cutting_panic(
        header: [u8; 10],
        packet in any_packet(),
        size in 1..1_500u16,
        damage in prop::collection::vec((0..200usize, any::<u8>()), 0..6),
        garbage in prop::collection::vec(any::<u8>(), 0..300),
        cut in any::<prop::sample::Index>(),
    ) {
        let _ = segments(&header, &mut garbage.clone());
        let (mut truth, mut bytes) = packet.emit_unfinished(Some(size));
        let len = bytes.len();
        for (at, byte) in damage {
            if at < 10 { truth[at] = byte } else { bytes[(at - 10) % len] = byte }
        }
        bytes.truncate(cut.index(len + 1));
        let _ = segments(&truth, &mut bytes);
        let _ = segments(&header, &mut bytes);
    }
}
