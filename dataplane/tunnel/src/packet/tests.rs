use std::net::IpAddr;

use proptest::prelude::*;

use super::build::{ACK, FIN, PSH, RST, SYN, URG, add_up, fragment, icmp, packet, tcp, udp, with};
use super::transport::Query;
use super::*;

const V4: [&str; 2] = ["10.0.0.1", "10.0.0.2"];
const V6: [&str; 2] = ["fd00::1", "fd00::2"];

fn pair([source, destination]: [&str; 2]) -> [IpAddr; 2] {
    [source, destination].map(|address| address.parse().unwrap())
}

fn of(addresses: [&str; 2], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let [source, destination] = pair(addresses);
    with(source, destination, protocol, payload)
}

fn content(packet: &[u8]) -> Result<Content, DropReason> {
    Header::parse(packet).unwrap().content
}

fn transport(packet: &[u8]) -> Result<Transport, DropReason> {
    content(packet).map(|content| content.transport)
}

const fn flow(source: u16, destination: u16, segment: Option<Segment>) -> Transport {
    Transport::Flow { ends: Ends::Ports { source, destination }, segment }
}

#[test]
fn addresses_and_length_are_read_for_both_families() {
    for ([source, destination], header_len) in [(V4, 20), (V6, 40)] {
        let mut packet = packet(source, destination, b"hello");
        packet.extend([0; 9]);
        let header = Header::parse(&packet).unwrap();
        assert_eq!(header.source, source.parse::<IpAddr>().unwrap());
        assert_eq!(header.destination, destination.parse::<IpAddr>().unwrap());
        assert_eq!(header.len, header_len + 5);
        assert_eq!(transport(&packet), Ok(Transport::Flow { ends: Ends::Nothing, segment: None }));
    }
}

#[test]
fn lies_about_lengths_are_malformed() {
    let good = packet(V4[0], V4[1], &[1; 20]);
    for cut in 1..=good.len() {
        assert!(Header::parse(&good[..good.len() - cut]).is_err(), "{cut} bytes short");
    }
    let mut beyond = good.clone();
    beyond[3] += 1;
    assert!(Header::parse(&beyond).is_err(), "longer than there is");
    let mut short_header = good.clone();
    short_header[0] = 0x44;
    assert!(Header::parse(&short_header).is_err(), "a header of 16 bytes");
    let mut inside_header = good.clone();
    inside_header[3] = 19;
    assert!(Header::parse(&inside_header).is_err(), "ends inside its header");
    let mut options = good.clone();
    (options[0], options[3]) = (0x4f, 59);
    assert!(Header::parse(&options).is_err(), "a header longer than the packet");

    let good = packet(V6[0], V6[1], &[1; 20]);
    for cut in 1..=good.len() {
        assert!(Header::parse(&good[..good.len() - cut]).is_err(), "{cut} bytes short");
    }
}

#[test]
fn only_versions_four_and_six_are_packets() {
    for version in (0..16u8).filter(|version| ![4, 6].contains(version)) {
        let mut packet = packet(V6[0], V6[1], &[]);
        packet[0] = version << 4;
        assert_eq!(Header::parse(&packet), Err(DropReason::MalformedPacket));
    }
}

#[test]
fn ports_and_flags_are_read_for_both_families() {
    for addresses in [V4, V6] {
        for (flags, segment) in [
            (SYN, Segment::Open),
            (SYN | ACK, Segment::Agree),
            (ACK, Segment::Go),
            (ACK | PSH, Segment::Go),
            (FIN | ACK, Segment::Finish),
            (RST, Segment::Reset),
            (RST | ACK, Segment::Reset),
        ] {
            let packet = of(addresses, TCP, &tcp(50_000, 22, flags, b"data"));
            assert_eq!(transport(&packet), Ok(flow(50_000, 22, Some(segment))), "{flags:#x}");
        }
        assert_eq!(transport(&of(addresses, UDP, &udp(53, 1024, b"x"))), Ok(flow(53, 1024, None)));
    }
}

#[test]
fn flags_that_no_tcp_sends_are_refused_and_no_others() {
    // As nf_conntrack has them; PSH, ECE and CWR tell nothing.
    let possible = [SYN, SYN | URG, SYN | ACK, RST, RST | ACK, FIN | ACK, FIN | ACK | URG, ACK, ACK | URG];
    for flags in 0..=u8::MAX {
        let read = transport(&of(V4, TCP, &tcp(1, 2, flags, &[])));
        let is_possible = possible.contains(&(flags & (FIN | SYN | RST | ACK | URG)));
        assert_eq!(read.is_ok(), is_possible, "{flags:#x}");
        assert!(is_possible || read == Err(DropReason::ImpossibleFlags));
    }
}

#[test]
fn short_and_untruthful_transports_cannot_be_read() {
    let unreadable = Err(DropReason::UnreadablePacket);
    for addresses in [V4, V6] {
        for len in 0..20 {
            assert_eq!(
                transport(&of(addresses, TCP, &tcp(1, 2, SYN, &[])[..len])),
                unreadable,
                "TCP of {len}"
            );
        }
        for len in 0..8 {
            assert_eq!(transport(&of(addresses, UDP, &udp(1, 2, &[])[..len])), unreadable, "UDP of {len}");
            let protocol = if addresses == V4 { 1 } else { 58 };
            let echo = icmp(if addresses == V4 { 8 } else { 128 }, 1, &[]);
            assert_eq!(transport(&of(addresses, protocol, &echo[..len])), unreadable, "ICMP of {len}");
        }
        let mut offset = tcp(1, 2, SYN, &[0; 8]);
        for words in [0, 4, 8, 15] {
            offset[12] = words << 4;
            assert_eq!(transport(&of(addresses, TCP, &offset)), unreadable, "a TCP header of {words} words");
        }
        offset[12] = 7 << 4;
        assert!(transport(&of(addresses, TCP, &offset)).is_ok());
        for len in [0, 7, 11, u16::MAX] {
            let mut long = udp(1, 2, b"ab");
            long[4..6].copy_from_slice(&len.to_be_bytes());
            assert_eq!(transport(&of(addresses, UDP, &long)), unreadable, "UDP that says {len}");
        }
    }
}

#[test]
fn requests_answers_and_errors_of_icmp_are_told_apart() {
    let query = |query, reply| Transport::Flow { ends: Ends::Query { query, id: 7, reply }, segment: None };
    for kind in 0..=u8::MAX {
        let expected = match kind {
            8 => query(Query::Echo, false),
            0 => query(Query::Echo, true),
            13 => query(Query::Timestamp, false),
            14 => query(Query::Timestamp, true),
            3 | 11 | 12 => Transport::Error,
            _ => Transport::Unasked,
        };
        assert_eq!(transport(&of(V4, 1, &icmp(kind, 7, &[]))), Ok(expected), "type {kind}");
        let expected = match kind {
            128 => query(Query::Echo, false),
            129 => query(Query::Echo, true),
            1..=4 => Transport::Error,
            _ => Transport::Unasked,
        };
        assert_eq!(transport(&of(V6, 58, &icmp(kind, 7, &[]))), Ok(expected), "ICMPv6 type {kind}");
    }
    for kind in [0, 1, 3, 8, 128, 129] {
        assert_eq!(
            transport(&of(V4, 58, &icmp(kind, 7, &[]))),
            Ok(Transport::Unasked),
            "of the other family"
        );
        assert_eq!(transport(&of(V6, 1, &icmp(kind, 7, &[]))), Ok(Transport::Unasked), "of the other family");
    }
    for (addresses, protocol, kind) in [(V4, 1, 8), (V4, 1, 0), (V4, 1, 14), (V6, 58, 128), (V6, 58, 129)] {
        let mut coded = icmp(kind, 7, &[]);
        coded[1] = 1;
        assert_eq!(
            transport(&of(addresses, protocol, &coded)),
            Ok(Transport::Unasked),
            "type {kind}, code 1"
        );
    }
}

/// An IPv4 packet with options.
fn with_options(options: &[u8]) -> Vec<u8> {
    let mut packet = of(V4, UDP, &udp(1, 2, &[]));
    assert_eq!(options.len() % 4, 0);
    packet[0] = 0x45 + (options.len() / 4) as u8;
    packet[3] += options.len() as u8;
    packet.splice(20..20, options.iter().copied());
    add_up(&mut packet);
    packet
}

#[test]
fn headers_of_ipv4_must_add_up() {
    let longest: Vec<u8> = (0..40).map(|place| if place < 39 { 1 } else { 0 }).collect();
    for good in [of(V4, UDP, &udp(1, 2, b"data")), with_options(&longest), with_options(&[1; 4])] {
        assert_eq!(transport(&good), Ok(flow(1, 2, None)));
        let header_len = usize::from(good[0] & 0xf) * 4;
        for (byte, bit) in (0..header_len).flat_map(|byte| (0..8).map(move |bit| (byte, bit))) {
            let mut bad = good.clone();
            bad[byte] ^= 1 << bit;
            let read = Header::parse(&bad).map(|header| header.content);
            assert!(!matches!(read, Ok(Ok(_))), "byte {byte}, bit {bit}");
        }
        let mut other = good;
        other[header_len + 7] ^= 1;
        assert!(transport(&other).is_ok(), "what is behind the header is for its receiver");
    }
}

#[test]
fn source_routes_are_refused_among_any_options() {
    for kind in [131, 137] {
        for options in [vec![kind, 7, 4, 1, 2, 3, 4, 0], vec![1, kind, 3, 4], vec![7, 3, 4, kind, 3, 4, 0, 0]]
        {
            assert_eq!(content(&with_options(&options)), Err(DropReason::SourceRouted), "{options:?}");
        }
    }
    for options in
        [vec![1, 1, 1, 1], vec![148, 4, 0, 0], vec![0, 131, 3, 4], vec![7, 7, 4, 131, 131, 131, 131, 0]]
    {
        assert_eq!(transport(&with_options(&options)), Ok(flow(1, 2, None)), "{options:?}");
    }
    for options in
        [vec![7, 0, 0, 0], vec![7, 1, 0, 0], vec![7, 5, 0, 0], vec![1, 1, 1, 7], vec![7, 255, 0, 0]]
    {
        assert_eq!(content(&with_options(&options)), Err(DropReason::UnreadablePacket), "{options:?}");
    }
}

/// Extension headers in front of a UDP header: each a number and its bytes, whose first will name the next.
fn with_extensions(extensions: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut payload = udp(1, 2, &[]);
    let mut next = UDP;
    for (number, bytes) in extensions.iter().rev() {
        let mut bytes = bytes.clone();
        bytes[0] = next;
        next = *number;
        payload.splice(0..0, bytes);
    }
    of(V6, next, &payload)
}

#[test]
fn extension_headers_are_walked_through() {
    let eight = vec![0; 8];
    let long: Vec<u8> = [vec![0, 2], vec![0; 22]].concat();
    let routing: Vec<u8> = [vec![0, 2, 4, 0], vec![0; 20]].concat();
    for extensions in [
        vec![(0, eight.clone())],
        vec![(60, long.clone())],
        vec![(43, routing.clone())],
        vec![(44, eight.clone())],
        vec![(0, long.clone()), (60, eight.clone()), (43, routing), (44, eight.clone()), (60, long)],
        vec![(60, eight.clone()); 8],
    ] {
        let read = content(&with_extensions(&extensions)).unwrap();
        assert_eq!((read.protocol, read.transport), (UDP, flow(1, 2, None)), "{extensions:?}");
        assert_eq!(read.fragment, None, "one that begins and ends its datagram is whole");
    }
}

#[test]
fn extension_headers_that_are_too_many_short_or_misplaced_are_refused() {
    let unreadable = Err(DropReason::UnreadablePacket);
    let eight = vec![0; 8];
    assert_eq!(content(&with_extensions(&vec![(60, eight.clone()); 9])), unreadable, "nine");
    assert_eq!(
        content(&with_extensions(&[(60, eight.clone()), (0, eight.clone())])),
        unreadable,
        "not first"
    );
    assert_eq!(content(&with_extensions(&[(0, eight.clone()), (0, eight.clone())])), unreadable, "twice");
    assert_eq!(content(&with_extensions(&[(44, eight.clone()), (44, eight.clone())])), unreadable);
    assert_eq!(content(&of(V6, 59, &[0; 16])), unreadable, "nothing follows");
    let authentication = [vec![0, 4], vec![0; 22]].concat();
    assert_eq!(
        content(&with_extensions(&[(51, authentication)])),
        unreadable,
        "neither header nor transport"
    );
    for number in [0, 43, 44, 51, 60] {
        for len in 0..8 {
            assert_eq!(content(&of(V6, number, &vec![UDP; len])), unreadable, "{number} of {len}");
        }
    }
    for number in [0, 51, 60] {
        let mut beyond = eight.clone();
        beyond[1] = 9;
        assert_eq!(content(&with_extensions(&[(number, beyond)])), unreadable, "{number} beyond the packet");
    }
    assert_eq!(content(&of(V6, 4, &[0; 16])).unwrap().protocol, 4, "what is no extension is a transport");
}

#[test]
fn routing_headers_that_lead_elsewhere_are_refused() {
    for (kind, left, refused) in [(0, 0, true), (0, 1, true), (2, 1, true), (4, 3, true), (4, 0, false)] {
        let read = content(&with_extensions(&[(43, vec![0, 0, kind, left, 0, 0, 0, 0])]));
        assert_eq!(read == Err(DropReason::SourceRouted), refused, "type {kind}, {left} left");
    }
}

#[test]
fn places_of_fragments_are_read_for_both_families() {
    let datagram = udp(9, 10, &[0; 32]);
    for addresses in [V4, V6] {
        let addresses = pair(addresses);
        let first = content(&fragment(addresses, UDP, 77, (0, true), &datagram[..24])).unwrap();
        assert_eq!(first.transport, flow(9, 10, None));
        let place = Fragment { id: 77, offset: 0, end: 24, more: true, protocol: UDP };
        assert_eq!(first.fragment, Some(place));
        let last = content(&fragment(addresses, UDP, 77, (24, false), &datagram[24..])).unwrap();
        assert_eq!(last.transport, Transport::Later);
        assert_eq!(last.fragment, Some(Fragment { offset: 24, end: 40, more: false, ..place }));
        let whole = content(&fragment(addresses, UDP, 77, (0, false), &datagram)).unwrap();
        assert_eq!((whole.transport, whole.fragment), (flow(9, 10, None), None));
    }
}

#[test]
fn first_fragments_without_a_whole_transport_header_are_refused() {
    let tiny = Err(DropReason::TinyFragment);
    for addresses in [V4, V6].map(pair) {
        let of = |protocol, part: &[u8]| transport(&fragment(addresses, protocol, 1, (0, true), part));
        let long = [tcp(1, 2, SYN, &[]), vec![0; 40]].concat();
        assert_eq!(of(TCP, &long[..8]), tiny);
        assert_eq!(of(TCP, &long[..16]), tiny);
        assert!(of(TCP, &long[..24]).is_ok());
        let mut options = long.clone();
        options[12] = 0xa0;
        assert_eq!(of(TCP, &options[..32]), tiny, "its options are in the next one");
        assert!(of(TCP, &options[..40]).is_ok());
        assert!(of(UDP, &udp(1, 2, &[])).is_ok());
    }
    // The chain of headers of IPv6 must be in the first one as a whole (RFC 7112).
    let destination_options = [UDP, 1, 0, 0, 0, 0, 0, 0];
    assert_eq!(transport(&fragment(pair(V6), 60, 1, (0, true), &destination_options)), tiny);
    let ends_behind_them = [destination_options, [0; 8]].concat();
    assert_eq!(transport(&fragment(pair(V6), 60, 1, (0, true), &ends_behind_them)), tiny);
    let with_ports = [&ends_behind_them[..], &udp(3, 4, &[])].concat();
    assert_eq!(transport(&fragment(pair(V6), 60, 1, (0, true), &with_ports)), Ok(flow(3, 4, None)));
}

#[test]
fn fragments_that_cannot_be_are_refused() {
    let unreadable = Err(DropReason::UnreadablePacket);
    for addresses in [V4, V6].map(pair) {
        let of = |place, part: &[u8]| transport(&fragment(addresses, UDP, 1, place, part));
        assert_eq!(of((8, true), &[0; 12]), unreadable, "not of whole eights");
        assert_eq!(of((8, false), &[]), unreadable, "empty");
        assert_eq!(of((65_528, false), &[0; 16]), unreadable, "beyond the longest datagram");
        assert_eq!(of((8, true), &[0; 16]), Ok(Transport::Later));
        assert_eq!(of((8, false), &[0; 13]), Ok(Transport::Later));
    }
    // Beside its header, a packet of IPv4 has less room than one of IPv6.
    let long = |addresses| transport(&fragment(pair(addresses), UDP, 1, (65_512, false), &[0; 16]));
    assert_eq!((long(V4), long(V6)), (unreadable, Ok(Transport::Later)));
    // A fragmented error would not quote what tells its flow in one piece.
    assert_eq!(transport(&fragment(pair(V4), 1, 1, (0, true), &icmp(3, 0, &[0; 8]))), Ok(Transport::Unasked));
}

#[test]
fn quotations_are_read_as_far_as_they_go() {
    for (addresses, family, protocol, kind) in [(V4, Family::V4, 1, 3), (V6, Family::V6, 58, 1)] {
        let [source, destination] = pair(addresses);
        let quoting = |quoted: &[u8]| {
            Quoted::parse(family, &of([addresses[1], addresses[0]], protocol, &icmp(kind, 0, quoted)))
        };
        let header_len = if family == Family::V4 { 20 } else { 40 };
        let sent = with(source, destination, UDP, &udp(5, 6, &[0; 100]));
        let ends = Ends::Ports { source: 5, destination: 6 };
        let expected = Some(Quoted { source, destination, protocol: UDP, ends });
        for len in 0..sent.len() {
            let enough = len >= header_len + 8;
            assert_eq!(quoting(&sent[..len]), expected.filter(|_| enough), "{len} bytes");
        }
        let reset = with(source, destination, TCP, &tcp(5, 6, RST, &[])[..8]);
        assert_eq!(quoting(&reset).map(|quoted| quoted.ends), Some(ends));
        let error = with(source, destination, protocol, &icmp(kind, 0, &sent));
        assert_eq!(quoting(&error), None, "no error answers an error");
        let first = fragment([source, destination], UDP, 1, (0, true), &udp(5, 6, &[0; 8]));
        assert_eq!(quoting(&first).map(|quoted| quoted.ends), Some(ends));
        assert_eq!(quoting(&first[..first.len() - 3]).map(|quoted| quoted.ends), Some(ends));
        let later = fragment([source, destination], UDP, 1, (8, true), &udp(5, 6, &[0; 8]));
        assert_eq!(quoting(&later), None, "it names no ports");
        let mut other = sent;
        other[0] = if family == Family::V4 { 0x65 } else { 0x40 };
        assert_eq!(quoting(&other), None, "of the other family");
    }
}

/// Bytes that look like a packet more often than random ones do.
pub(crate) fn almost_a_packet() -> impl Strategy<Value = Vec<u8>> {
    let numbers = prop_oneof![
        4 => prop::sample::select(vec![0_u8, 1, 6, 17, 43, 44, 51, 58, 59, 60]),
        1 => any::<u8>()
    ];
    let first = prop::sample::select(vec![0x45_u8, 0x46, 0x4f, 0x60, 0x60]);
    let bytes =
        prop::collection::vec(prop_oneof![2 => numbers.clone(), 1 => 0..=2_u8, 1 => any::<u8>()], 0..160);
    (first, numbers, bytes, any::<bool>()).prop_map(|(first, number, bytes, honest)| {
        let mut packet = [vec![first], bytes].concat();
        let len = packet.len() as u16;
        if honest && packet.len() >= 40 {
            if first == 0x60 {
                packet[4..6].copy_from_slice(&(len - 40).to_be_bytes());
                packet[6] = number;
            } else {
                packet[2..4].copy_from_slice(&len.to_be_bytes());
                let place = [packet[6] & 0x20, packet[7] & 3, 64, number];
                packet[6..10].copy_from_slice(&place);
                add_up(&mut packet);
            }
        }
        packet
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5_000))]

    #[test]
    fn no_bytes_make_parsing_panic_or_overrun(
        packet in prop_oneof![almost_a_packet(), prop::collection::vec(any::<u8>(), 0..80)],
    ) {
        if let Ok(header) = Header::parse(&packet) {
            prop_assert!(header.len <= packet.len() && header.len >= 20);
            let _ = Quoted::parse(header.family(), &packet[..header.len]);
            if let Ok(Content { transport: Transport::Flow { .. } | Transport::Error, fragment, .. }) = header.content {
                prop_assert!(fragment.is_none_or(|fragment| fragment.offset == 0));
            }
        }
        for family in [Family::V4, Family::V6] {
            let _ = Quoted::parse(family, &packet);
        }
    }

    #[test]
    fn what_lies_behind_the_packet_changes_nothing(packet in almost_a_packet(), padding in prop::collection::vec(any::<u8>(), 0..40)) {
        if let Ok(header) = Header::parse(&packet) {
            let padded = [&packet[..header.len], &padding].concat();
            prop_assert_eq!(Header::parse(&padded), Ok(header));
        }
    }
}
