//! What is merged and what is not: one test for each condition, and the order of what is not.

use super::packet::{ACK, AE, CWR, ECE, FIN, Ip, PSH, Packet, RST, SYN, Transport, URG, noise};
use super::world::{World, restored};
use crate::offload::look::Class;

const SIZE: usize = 500;

/// The `index`th of packets that are all merged.
pub(super) fn nth(first: &Packet, index: usize) -> Packet {
    let mut packet = first.clone();
    if let Ip::V4 { id, .. } = &mut packet.ip {
        *id = id.wrapping_add(index as u16);
    }
    if packet.is_tcp() {
        let by = (index * first.payload.len()) as u32;
        let sequence = packet.sequence_mut();
        *sequence = sequence.wrapping_add(by);
    }
    packet.payload = noise(index as u64, first.payload.len());
    packet
}

fn families() -> [Packet; 4] {
    [Packet::tcp4, Packet::tcp6, Packet::udp4, Packet::udp6].map(|new| new(noise(0, SIZE)))
}

fn tcp_families() -> [Packet; 2] {
    [Packet::tcp4, Packet::tcp6].map(|new| new(noise(0, SIZE)))
}

/// How many packets each write has.
fn sizes(packets: &[Vec<u8>]) -> Vec<usize> {
    World::new().write(packets).iter().map(|write| write.packets).collect()
}

fn sizes_of(packets: &[Packet]) -> Vec<usize> {
    sizes(&packets.iter().map(Packet::emit).collect::<Vec<_>>())
}

/// Three packets merge; with the second altered, the first stays alone. Whether the third joins the second depends.
fn parts(first: &Packet, alter: impl Fn(&mut Packet)) {
    assert_eq!(sizes_of(&[first.clone(), nth(first, 1), nth(first, 2)]), [3]);
    let mut altered = nth(first, 1);
    alter(&mut altered);
    assert_eq!(sizes_of(&[first.clone(), altered.clone()]), [1, 1], "{altered:?}");
}

/// As [`parts`], for a packet that goes as it is: nothing joins it, and nothing goes past it.
fn goes_verbatim(first: &Packet, alter: impl Fn(&mut Packet)) {
    parts(first, &alter);
    let mut altered = nth(first, 2);
    alter(&mut altered);
    let packets = [first.clone(), nth(first, 1), altered, nth(first, 3), nth(first, 4)];
    assert_eq!(sizes_of(&packets), [2, 1, 2], "{:?}", packets[2]);
    // In front, where it might have been merged by mistake with what follows.
    let mut altered = first.clone();
    alter(&mut altered);
    assert_eq!(sizes_of(&[altered, nth(first, 1), nth(first, 2)]), [1, 2]);
    // Nor among its like.
    let altered: Vec<_> = (0..3)
        .map(|index| {
            let mut packet = nth(first, index);
            alter(&mut packet);
            packet
        })
        .collect();
    assert_eq!(sizes_of(&altered), [1, 1, 1], "{:?}", altered[0]);
}

#[test]
fn packets_that_follow_each_other_are_merged_and_come_out_again() {
    for first in families() {
        for count in 2..=64 {
            for tail in [1, SIZE - 1, SIZE] {
                let mut packets: Vec<Packet> = (0..count).map(|index| nth(&first, index)).collect();
                packets[count - 1].payload.truncate(tail);
                let packets: Vec<_> = packets.iter().map(Packet::emit).collect();
                let writes = World::new().write(&packets);
                assert_eq!(writes.len(), 1);
                assert_eq!(restored(&writes), packets);
            }
        }
    }
}

#[test]
fn a_merged_packet_says_what_the_kernel_wants_to_know() {
    for (first, class, gso_type, transport, headers, checksum_at) in [
        (Packet::tcp4(noise(0, SIZE)), Class::Tcp4, 1u8, 20u16, 40u16, 16u16),
        (Packet::tcp6(noise(0, SIZE)), Class::Tcp6, 4, 40, 60, 16),
        (Packet::udp4(noise(0, SIZE)), Class::Udp, 5, 20, 28, 6),
        (Packet::udp6(noise(0, SIZE)), Class::Udp, 5, 40, 48, 6),
    ] {
        let mut last = nth(&first, 2);
        last.payload.truncate(7);
        let packets = [first.emit(), nth(&first, 1).emit(), last.emit()];
        let writes = World::new().write(&packets);
        let [write] = writes.as_slice() else { panic!("{} writes", writes.len()) };
        assert_eq!(write.class, Some(class));
        let (header, packet) = write.bytes.split_at(10);
        let word = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        assert_eq!((header[0], header[1]), (1, gso_type));
        assert_eq!((word(2), word(4), word(6), word(8)), (headers, SIZE as u16, transport, checksum_at));
        let mut whole = first.clone();
        whole.payload = [&first.payload[..], &nth(&first, 1).payload, &nth(&first, 2).payload[..7]].concat();
        let (mut want_header, want) = whole.emit_unfinished(Some(SIZE as u16));
        want_header[2..4].copy_from_slice(&headers.to_ne_bytes());
        assert_eq!((header, packet), (&want_header[..], &want[..]), "as if the kernel had made it");
    }
}

#[test]
fn a_single_packet_goes_as_it_came() {
    let mut padded = Packet::tcp4(noise(1, 5)).emit();
    padded.extend([7; 11]);
    let garbage = noise(3, 33);
    for packet in [Packet::udp6(noise(1, 99)).emit(), padded, garbage, Vec::new()] {
        let writes = World::new().write(std::slice::from_ref(&packet));
        assert_eq!(writes.len(), 1);
        assert_eq!(writes[0].class, None);
        assert_eq!(writes[0].bytes, [&[0; 10][..], &packet].concat());
    }
}

#[test]
fn padding_is_no_payload() {
    for first in families() {
        let padded = |index| [nth(&first, index).emit(), vec![7; 13]].concat();
        let writes = World::new().write(&[padded(0), padded(1), padded(2)]);
        assert_eq!(writes.len(), 1);
        assert_eq!(restored(&writes), [0, 1, 2].map(|index| nth(&first, index).emit()));
    }
}

#[test]
fn another_flow_is_not_merged() {
    for first in families() {
        parts(&first, |packet| packet.source_port ^= 1);
        parts(&first, |packet| packet.destination_port ^= 0x100);
        for address in 0..4 {
            parts(&first, |packet| match &mut packet.ip {
                Ip::V4 { source, .. } if address < 2 => source[address * 3] ^= 1,
                Ip::V4 { destination, .. } => destination[(address - 2) * 3] ^= 1,
                Ip::V6 { source, .. } if address < 2 => source[address * 15] ^= 1,
                Ip::V6 { destination, .. } => destination[(address - 2) * 15] ^= 1,
            });
        }
    }
}

#[test]
fn udp_and_tcp_between_the_same_ports_are_two_flows() {
    let tcp = Packet::tcp4(noise(0, SIZE));
    let udp = Packet::udp4(noise(0, SIZE));
    let packets = [tcp.clone(), udp.clone(), nth(&tcp, 1), nth(&udp, 1)];
    assert_eq!(sizes_of(&packets), [2, 2]);
}

#[test]
fn another_type_of_service_is_not_merged() {
    for first in families() {
        parts(&first, |packet| packet.tos = 0x10);
    }
}

#[test]
fn congestion_that_was_experienced_is_told_of_the_packet_that_experienced_it() {
    for mut first in families() {
        first.tos = 2;
        parts(&first, |packet| packet.tos = 3);
        parts(&first, |packet| packet.tos = 1);
        parts(&first, |packet| packet.tos = 0);
    }
}

#[test]
fn another_hop_limit_is_not_merged() {
    for first in families() {
        parts(&first, |packet| packet.ttl = 63);
    }
}

#[test]
fn another_flow_label_is_not_merged() {
    for first in [Packet::tcp6(noise(0, SIZE)), Packet::udp6(noise(0, SIZE))] {
        parts(&first, |packet| {
            let Ip::V6 { label, .. } = &mut packet.ip else { unreachable!() };
            *label ^= 1;
        });
    }
}

#[test]
fn packets_that_may_be_fragmented_are_not_merged_with_those_that_may_not() {
    for first in [Packet::tcp4(noise(0, SIZE)), Packet::udp4(noise(0, SIZE))] {
        parts(&first, |packet| {
            let Ip::V4 { fragment, .. } = &mut packet.ip else { unreachable!() };
            *fragment = 0;
        });
        // The bit that is reserved.
        parts(&first, |packet| {
            let Ip::V4 { fragment, .. } = &mut packet.ip else { unreachable!() };
            *fragment |= 0x8000;
        });
    }
}

#[test]
fn identifications_count_up_where_packets_may_be_fragmented() {
    for mut first in [Packet::tcp4(noise(0, SIZE)), Packet::udp4(noise(0, SIZE))] {
        let fragment_of = |packet: &mut Packet, value| {
            let Ip::V4 { fragment, .. } = &mut packet.ip else { unreachable!() };
            *fragment = value;
        };
        let change_id = |packet: &mut Packet| {
            let Ip::V4 { id, .. } = &mut packet.ip else { unreachable!() };
            *id = id.wrapping_add(1);
        };
        fragment_of(&mut first, 0);
        parts(&first, change_id);
        // Where they may not, the field means nothing (RFC 6864).
        fragment_of(&mut first, 0x4000);
        let mut second = nth(&first, 1);
        change_id(&mut second);
        assert_eq!(sizes_of(&[first, second]), [2]);
    }
}

#[test]
fn another_acknowledgement_window_or_urgent_pointer_is_not_merged() {
    for first in tcp_families() {
        for field in 0..3 {
            parts(&first, |packet| {
                let Transport::Tcp { acknowledgement, window, urgent, .. } = &mut packet.transport else {
                    unreachable!()
                };
                match field {
                    0 => *acknowledgement += 1,
                    1 => *window -= 1,
                    _ => *urgent = 1,
                }
            });
        }
    }
}

#[test]
fn other_options_of_tcp_are_not_merged() {
    const TIMESTAMPS: [u8; 12] = [1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 8];
    for mut first in tcp_families() {
        let options_of = |packet: &mut Packet, bytes: &[u8]| {
            let Transport::Tcp { options, .. } = &mut packet.transport else { unreachable!() };
            *options = bytes.to_vec();
        };
        parts(&first, |packet| options_of(packet, &[1, 1, 1, 1]));
        options_of(&mut first, &TIMESTAMPS);
        for at in 0..TIMESTAMPS.len() {
            let mut other = TIMESTAMPS;
            other[at] ^= 0x80;
            parts(&first, |packet| options_of(packet, &other));
        }
        parts(&first, |packet| options_of(packet, &TIMESTAMPS[..8]));
        options_of(&mut first, &[1; 40]);
        let packets: Vec<_> = (0..3).map(|index| nth(&first, index).emit()).collect();
        assert_eq!(restored(&World::new().write(&packets)), packets);
    }
}

#[test]
fn what_is_missing_repeated_or_out_of_order_is_not_merged() {
    for first in tcp_families() {
        let by = |value: i32| {
            move |packet: &mut Packet| {
                let sequence = packet.sequence_mut();
                *sequence = sequence.wrapping_add_signed(value);
            }
        };
        parts(&first, by(1));
        parts(&first, by(-1));
        parts(&first, by(SIZE as i32));
        parts(&first, by(-(SIZE as i32)));
        let order = |order: [usize; 4]| sizes_of(&order.map(|index| nth(&first, index)));
        assert_eq!(order([0, 2, 1, 3]), [1, 1, 1, 1]);
        assert_eq!(order([2, 0, 1, 3]), [1, 2, 1]);
        assert_eq!(order([0, 1, 1, 2]), [2, 2], "what was sent again");
    }
}

#[test]
fn a_longer_packet_begins_anew() {
    for first in families() {
        parts(&first, |packet| packet.payload.push(1));
    }
}

#[test]
fn a_shorter_packet_is_the_last() {
    for first in families() {
        let mut short = nth(&first, 1);
        short.payload.pop();
        let mut next = nth(&first, 2);
        if next.is_tcp() {
            *next.sequence_mut() = next.sequence_mut().wrapping_sub(1);
        }
        let mut shorter = next.clone();
        shorter.payload.truncate(SIZE - 1);
        assert_eq!(sizes_of(&[first.clone(), short.clone(), shorter]), [2, 1]);
        assert_eq!(sizes_of(&[first, short, next]), [2, 1]);
    }
}

#[test]
fn what_hurries_its_reader_is_the_last_and_hurries_still() {
    for first in tcp_families() {
        let push = |index| {
            let mut packet = nth(&first, index);
            *packet.flags_mut() |= PSH;
            packet
        };
        let packets = [first.clone(), push(1), nth(&first, 2)].map(|packet| packet.emit());
        let writes = World::new().write(&packets);
        assert_eq!(writes.iter().map(|write| write.packets).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(restored(&writes), packets);
        assert_eq!(sizes_of(&[push(0), nth(&first, 1), nth(&first, 2)]), [1, 2]);
        // The one before does not wait for what comes behind the hurried one.
        let mut odd = push(1);
        odd.ttl = 1;
        assert_eq!(sizes_of(&[first.clone(), odd, nth(&first, 1)]), [1, 1, 1]);
    }
}

#[test]
fn what_begins_ends_or_interrupts_a_stream_goes_as_it_is() {
    for first in tcp_families() {
        for flag in [SYN, FIN, RST, URG, CWR, AE, 0x200, 0x400, 0x800, FIN | PSH] {
            goes_verbatim(&first, |packet| *packet.flags_mut() |= flag);
        }
        goes_verbatim(&first, |packet| *packet.flags_mut() &= !ACK);
    }
}

#[test]
fn the_echo_of_congestion_is_merged_with_its_like_only() {
    for mut first in tcp_families() {
        parts(&first, |packet| *packet.flags_mut() |= ECE);
        *first.flags_mut() |= ECE;
        parts(&first, |packet| *packet.flags_mut() &= !ECE);
    }
}

#[test]
fn packets_without_payload_go_as_they_are() {
    for first in families() {
        goes_verbatim(&first, |packet| packet.payload.clear());
        assert_eq!(sizes_of(&[0, 1].map(|_| Packet { payload: Vec::new(), ..first.clone() })), [1, 1]);
    }
}

#[test]
fn datagrams_without_checksum_go_as_they_are() {
    let first = Packet::udp4(noise(0, SIZE));
    let bare = |index| {
        let mut packet = nth(&first, index).emit();
        packet[26..28].fill(0);
        packet
    };
    let whole = |index| nth(&first, index).emit();
    assert_eq!(sizes(&[whole(0), whole(1), bare(2), whole(3), whole(4)]), [2, 1, 2]);
    assert_eq!(sizes(&[bare(0), bare(1)]), [1, 1]);
    // Not even those that a field of zero fits, since the sum of all else is a zero.
    let bare = |index| {
        let mut packet = nth(&first, index);
        packet.payload[..2].fill(0);
        let checksum: [u8; 2] = packet.emit()[26..28].try_into().expect("two bytes");
        packet.payload[..2].copy_from_slice(&checksum);
        let mut packet = packet.emit();
        assert_eq!(packet[26..28], [0xff, 0xff], "the case is the one meant");
        packet[26..28].fill(0);
        packet
    };
    assert_eq!(sizes(&[bare(0), bare(1)]), [1, 1]);
}

#[test]
fn datagrams_of_another_length_than_they_say_go_as_they_are() {
    for first in [Packet::udp4(noise(0, SIZE)), Packet::udp6(noise(0, SIZE))] {
        let at = first.ip_len() + 4;
        let mut short = nth(&first, 1).emit();
        // The checksum is right for what is said: twice the length's change.
        short[at + 1] -= 2;
        short[at + 2..at + 4].fill(0);
        let sum =
            crate::offload::checksum::Sum::of(&short[first.ip_len() - if first.is_v4() { 8 } else { 32 }..]);
        let word = crate::offload::checksum::Sum::of_word;
        let checksum = sum.plus(word(17)).plus(word((SIZE + 8) as u16)).checksum_udp();
        short[at + 2..at + 4].copy_from_slice(&checksum.to_be_bytes());
        assert_eq!(sizes(&[first.emit(), short, nth(&first, 2).emit()]), [1, 1, 1]);
    }
}

#[test]
fn headers_of_tcp_that_are_too_short_go_as_they_are() {
    use crate::offload::checksum::Sum;

    for first in tcp_families() {
        let short = |index| {
            let mut packet = nth(&first, index).emit();
            let at = first.ip_len();
            packet[at + 12] = 4 << 4;
            packet[at + 16..at + 18].fill(0);
            let addresses = if first.is_v4() { 8 } else { 32 };
            let len = (packet.len() - at) as u16;
            let sum = Sum::of(&packet[at - addresses..]).plus(Sum::of_word(6)).plus(Sum::of_word(len));
            packet[at + 16..at + 18].copy_from_slice(&sum.checksum().to_be_bytes());
            packet
        };
        assert_eq!(sizes(&[short(0), short(1), short(2)]), [1, 1, 1]);
        // Who knows whose it is.
        let other = Packet { source_port: 1, ..first.clone() };
        assert_eq!(sizes(&[other.emit(), short(0), nth(&other, 1).emit()]), [1, 1, 1]);
    }
}

#[test]
fn no_more_is_merged_than_the_kernel_takes() {
    for first in [Packet::tcp4, Packet::tcp6, Packet::udp4, Packet::udp6].map(|new| new(noise(0, 10))) {
        let most = if first.is_tcp() { 64 } else { 127 };
        let packets: Vec<_> = (0..2 * most + 1).map(|index| nth(&first, index)).collect();
        assert_eq!(sizes_of(&packets), [most, most, 1]);
    }
    for (first, size, header) in [
        (Packet::tcp4 as fn(_) -> _, 1_400, 40),
        (Packet::tcp6, 1_400, 60),
        (Packet::udp4, 1_400, 28),
        (Packet::udp6, 1_400, 48),
    ] {
        let fit = (65_535 - header) / size;
        let first = first(noise(0, size));
        let packets: Vec<_> = (0..=fit).map(|index| nth(&first, index)).collect();
        assert_eq!(sizes_of(&packets), [fit, 1]);
        // To the byte.
        let mut packets = packets[..=fit].to_vec();
        packets[fit].payload.truncate((65_535 - header) % size);
        assert_eq!(sizes_of(&packets), [fit + 1]);
        packets[fit].payload.push(0);
        assert_eq!(sizes_of(&packets), [fit, 1]);
    }
}

#[test]
fn fragments_and_options_of_ip_let_nothing_go_past_them() {
    for first in families() {
        let other = Packet { source_port: 1, ..first.clone() };
        let mut packets: Vec<_> =
            [&first, &other, &nth(&first, 1), &nth(&other, 1)].iter().map(|packet| packet.emit()).collect();
        let mut odd = nth(&first, 2);
        match &mut odd.ip {
            Ip::V4 { options, .. } => *options = vec![1; 4],
            Ip::V6 { extensions, .. } => *extensions = vec![(60, vec![0; 6])],
        }
        let mut fragment = nth(&first, 2);
        match &mut fragment.ip {
            Ip::V4 { fragment, .. } => *fragment = 0x2000,
            Ip::V6 { extensions, .. } => *extensions = vec![(44, vec![0; 6])],
        }
        let mut truncated = nth(&first, 2).emit();
        truncated.truncate(first.header_len() - 1);
        for odd in [odd.emit(), fragment.emit(), truncated, vec![0x50; 60], Vec::new()] {
            packets.truncate(4);
            packets.extend([odd, nth(&first, 3).emit(), nth(&other, 2).emit(), nth(&other, 3).emit()]);
            assert_eq!(sizes(&packets), [2, 2, 1, 1, 2], "{:02x?}", packets[4]);
        }
    }
}

#[test]
fn other_protocols_keep_nobody_from_being_merged() {
    for first in families() {
        let mut icmp = first.emit();
        match &first.ip {
            Ip::V4 { .. } => icmp[9] = 1,
            Ip::V6 { .. } => icmp[6] = 58,
        }
        let packets = [first.emit(), icmp.clone(), nth(&first, 1).emit(), icmp, nth(&first, 2).emit()];
        assert_eq!(sizes(&packets), [3, 1, 1]);
    }
}

#[test]
fn a_damaged_packet_is_neither_merged_nor_repaired() {
    for first in families() {
        let good: Vec<_> = (0..5).map(|index| nth(&first, index).emit()).collect();
        // The transport's ports are another flow's; everything else is summed and belongs to this one.
        let bits = (0..good[2].len() * 8).filter(|bit| bit / 8 >= first.ip_len() + 4);
        for bit in bits.step_by(7).chain([(first.header_len() + SIZE) * 8 - 1]) {
            let mut packets = good.clone();
            packets[2][bit / 8] ^= 0x80 >> (bit % 8);
            let writes = World::new().write(&packets);
            let sizes: Vec<_> = writes.iter().map(|write| write.packets).collect();
            // A damaged data offset may have cut the header off, so that it cannot be told whose it is.
            assert_eq!(sizes, [2, 1, 2], "bit {bit}");
            assert_eq!(writes[1].bytes[10..], packets[2], "as it came");
            assert_eq!(restored(&writes), packets);
            // In front of others, too.
            assert_eq!(self::sizes(&packets[2..]), [1, 2]);
        }
    }
}

#[test]
fn a_damaged_header_of_ipv4_is_neither_merged_nor_repaired() {
    for first in [Packet::tcp4(noise(0, SIZE)), Packet::udp4(noise(0, SIZE))] {
        let good: Vec<_> = (0..3).map(|index| nth(&first, index).emit()).collect();
        for at in [1, 4, 8, 10, 11] {
            let mut packets = good.clone();
            packets[1][at] ^= 4;
            let writes = World::new().write(&packets);
            assert_eq!(writes.len(), 3, "byte {at}");
            assert_eq!(restored(&writes), packets);
            let mut packets = good.clone();
            packets[0][at] ^= 4;
            assert_eq!(sizes(&packets), [1, 2], "byte {at}");
        }
    }
}
