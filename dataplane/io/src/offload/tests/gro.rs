//! The cases by which the kernel tests its own merging (`tools/testing/selftests/net/gro.c`), by their names there. What
//! is to come out is told as there: the payload of each packet. Where we merge less or more, the case says so.

use super::packet::{ACK, Ip, PSH, Packet, RST, SYN, Transport, URG, noise};
use super::world::{World, restored};

const LEN: usize = 100;
/// As long as packets of an Ethernet of 4,096 bytes.
const MSS: usize = 4_096 - 60;

fn packet(v4: bool, offset: usize, len: usize) -> Packet {
    let mut packet = if v4 { Packet::tcp4(noise(9, len)) } else { Packet::tcp6(noise(9, len)) };
    packet.ttl = 8;
    if let Ip::V4 { id, .. } = &mut packet.ip {
        *id = 0;
    }
    let Transport::Tcp { sequence, acknowledgement, flags, window, .. } = &mut packet.transport else {
        unreachable!()
    };
    (*sequence, *acknowledgement, *flags, *window) = (100 + offset as u32, 100, ACK, u16::MAX);
    packet
}

fn with(mut packet: Packet, alter: impl FnOnce(&mut Packet)) -> Packet {
    alter(&mut packet);
    packet
}

/// The payload of every write.
fn payloads(packets: &[Vec<u8>], headers: usize) -> Vec<usize> {
    let writes = World::new().write(packets);
    let mut numbers: Vec<_> = writes.iter().flat_map(|write| write.unmerged.clone()).collect();
    assert!(numbers.is_sorted(), "one flow stays in order");
    numbers.dedup();
    assert_eq!(numbers.len(), packets.len());
    assert_eq!(restored(&writes).len(), packets.len());
    writes.iter().map(|write| write.bytes.len() - 10 - headers).collect()
}

fn check(packets: &[Packet], want: &[usize]) {
    let bytes: Vec<_> = packets.iter().map(Packet::emit).collect();
    assert_eq!(payloads(&bytes, packets[0].header_len()), want);
}

fn both(case: impl Fn(bool)) {
    [true, false].into_iter().for_each(case);
}

#[test]
fn pure_data_packet_of_same_size() {
    both(|v4| check(&[packet(v4, 0, LEN), packet(v4, LEN, LEN)], &[2 * LEN]));
}

#[test]
fn large_data_packets_followed_by_a_smaller_one() {
    both(|v4| check(&[packet(v4, 0, LEN), packet(v4, LEN, LEN / 2)], &[LEN + LEN / 2]));
}

#[test]
fn small_data_packets_followed_by_a_larger_one() {
    both(|v4| check(&[packet(v4, 0, LEN / 2), packet(v4, LEN / 2, LEN)], &[LEN / 2, LEN]));
}

#[test]
fn duplicate_ack_and_pure_ack() {
    both(|v4| {
        let last = with(packet(v4, 0, 0), |packet| {
            let Transport::Tcp { acknowledgement, .. } = &mut packet.transport else { unreachable!() };
            *acknowledgement += 1;
        });
        check(&[packet(v4, 0, 0), packet(v4, 0, 0), last], &[0, 0, 0]);
    });
}

/// Five packets, of which the third has a flag, and payload only if that is PSH.
fn flagged(v4: bool, flag: u16) -> [Packet; 5] {
    std::array::from_fn(|index| match index {
        2 => {
            let (offset, len) = if flag == PSH { (2 * LEN, LEN) } else { (0, 0) };
            with(packet(v4, offset, len), |packet| *packet.flags_mut() |= flag)
        }
        _ => packet(v4, index * LEN, LEN),
    })
}

#[test]
fn psh_flag_ends_coalescing() {
    both(|v4| check(&flagged(v4, PSH), &[3 * LEN, 2 * LEN]));
}

#[test]
fn syn_rst_and_urg_flag_end_coalescing() {
    for flag in [SYN, RST, URG] {
        both(|v4| check(&flagged(v4, flag), &[2 * LEN, 0, 2 * LEN]));
    }
}

#[test]
fn changed_checksum_does_not_coalesce() {
    both(|v4| {
        let first = packet(v4, 0, LEN);
        let mut second = packet(v4, LEN, LEN).emit();
        second[first.ip_len() + 17] = second[first.ip_len() + 17].wrapping_sub(1);
        assert_eq!(payloads(&[first.emit(), second], first.header_len()), [LEN, LEN]);
    });
}

#[test]
fn wrong_seq_number_does_not_coalesce() {
    both(|v4| check(&[packet(v4, 0, LEN), packet(v4, LEN + 1, LEN)], &[LEN, LEN]));
}

/// Timestamps with two paddings in front, around, or behind.
fn timestamps(value: u32, order: usize) -> Vec<u8> {
    let mut option = vec![8, 10];
    option.extend(value.to_be_bytes());
    option.extend([0; 4]);
    let padding = [[2, 0], [1, 1], [0, 2]][order];
    [vec![1; padding[0]], option, vec![1; padding[1]]].concat()
}

fn with_options(v4: bool, index: usize, bytes: Vec<u8>) -> Packet {
    with(packet(v4, index * LEN, LEN), |packet| {
        let Transport::Tcp { options, .. } = &mut packet.transport else { unreachable!() };
        *options = bytes;
    })
}

#[test]
fn different_timestamp_does_not_coalesce() {
    both(|v4| {
        let stamps = [(0, 0), (0, 0), (100, 0), (100, 1), (100, 2)];
        let packets: Vec<_> = stamps
            .iter()
            .enumerate()
            .map(|(index, (value, order))| with_options(v4, index, timestamps(*value, *order)))
            .collect();
        check(&packets, &[2 * LEN, LEN, LEN, LEN]);
    });
}

#[test]
fn different_options_do_not_coalesce() {
    both(|v4| {
        let first = with_options(v4, 0, timestamps(0, 0));
        let second = with_options(v4, 1, timestamps(0, 0));
        let third = with_options(v4, 2, vec![1, 3, 3, 0]);
        let shorter = first.header_len() - third.header_len();
        check(&[first, second, third], &[2 * LEN, LEN - shorter]);
    });
}

#[test]
fn different_ecn_or_tos_does_not_coalesce() {
    both(|v4| {
        for tos in [2, 1, 0xf0] {
            check(&[packet(v4, 0, LEN), with(packet(v4, LEN, LEN), |packet| packet.tos = tos)], &[LEN, LEN]);
        }
    });
}

#[test]
fn different_ttl_does_not_coalesce() {
    // The kernel does not look at IPv6's. We do: it is not ours to change.
    both(|v4| check(&[packet(v4, 0, LEN), with(packet(v4, LEN, LEN), |packet| packet.ttl = 7)], &[LEN, LEN]));
}

#[test]
fn ip_options_do_not_coalesce() {
    let odd = with(packet(true, LEN, LEN), |packet| {
        let Ip::V4 { options, .. } = &mut packet.ip else { unreachable!() };
        *options = [&[68, 36, 5, 0][..], &[0; 32]].concat();
    });
    check(&[packet(true, 0, LEN), odd, packet(true, 2 * LEN, LEN)], &[LEN, LEN + 36, LEN]);
}

#[test]
fn fragmented_ip4_does_not_coalesce() {
    let fragment = with(packet(true, LEN, LEN), |packet| {
        let Ip::V4 { fragment, .. } = &mut packet.ip else { unreachable!() };
        *fragment = 0x6000;
    });
    check(&[packet(true, 0, LEN), fragment], &[LEN, LEN]);
}

fn identified(df: bool, ids: &[u16]) -> Vec<Packet> {
    ids.iter()
        .enumerate()
        .map(|(index, value)| {
            with(packet(true, index * LEN, LEN), |packet| {
                let Ip::V4 { id, fragment, .. } = &mut packet.ip else { unreachable!() };
                (*id, *fragment) = (*value, if df { 0x4000 } else { 0 });
            })
        })
        .collect()
}

#[test]
fn df_1_incrementing_and_fixed_and_df_0_incrementing_coalesce() {
    check(&identified(true, &[8, 9]), &[2 * LEN]);
    check(&identified(true, &[8, 8]), &[2 * LEN]);
    check(&identified(false, &[8, 9]), &[2 * LEN]);
}

#[test]
fn df_0_fixed_does_not_coalesce_here() {
    // The kernel remembers that they were the same, for which the offload header has no word.
    check(&identified(false, &[8, 8]), &[LEN, LEN]);
}

#[test]
fn df_1_with_any_identifications_coalesces_here() {
    // Of packets that are never fragmented the field means nothing (RFC 6864 §4.1); the kernel keeps it nevertheless.
    check(&identified(true, &[8, 9, 9]), &[3 * LEN]);
    check(&identified(true, &[8, 8, 9]), &[3 * LEN]);
}

fn extended(index: usize, kind: u8, byte: u8) -> Packet {
    with(packet(false, index * LEN, LEN), |packet| {
        let Ip::V6 { extensions, .. } = &mut packet.ip else { unreachable!() };
        *extensions = vec![(kind, vec![byte; 6])];
    })
}

#[test]
fn fragmented_ip6_does_not_coalesce() {
    let packets =
        [packet(false, 0, LEN), packet(false, LEN, LEN), extended(2, 44, 0), packet(false, 3 * LEN, LEN)];
    check(&packets, &[2 * LEN, LEN + 8, LEN]);
}

#[test]
fn ipv6_with_ext_header_does_not_coalesce_here() {
    // The kernel merges those whose extension headers are the same.
    check(&[extended(0, 0, 0), extended(1, 0, 0)], &[LEN, LEN]);
}

#[test]
fn ipv6_with_ext_header_with_different_payloads_does_not_coalesce() {
    check(&[extended(0, 0, 0), extended(1, 0, 0x11)], &[LEN, LEN]);
}

#[test]
fn does_not_coalesce_if_exceeding_ip_max_pkt_size() {
    both(|v4| {
        // As a packet may have it over IPv4, whose length counts its header; we keep to that over IPv6.
        let most = 65_535 - packet(v4, 0, 0).header_len();
        let count = most / MSS;
        for (rest, whole) in [(most % MSS, count * MSS + most % MSS), (most % MSS + 1, count * MSS)] {
            let mut packets: Vec<_> = (0..count).map(|index| packet(v4, index * MSS, MSS)).collect();
            packets.push(packet(v4, count * MSS, rest));
            packets.push(packet(v4, count * MSS + rest, rest));
            // What is left over is one packet behind the longest, or two that are merged: the kernel lets go of each.
            let want = if whole > count * MSS { vec![whole, rest] } else { vec![whole, 2 * rest] };
            check(&packets, &want);
        }
    });
}
