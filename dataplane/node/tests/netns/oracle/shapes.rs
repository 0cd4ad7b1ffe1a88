//! Packets of unusual shape: in fragments, with headers between, cut short, or wrong.

use super::{
    class::{Class, Why},
    flow::{Flow, Leg},
    packet::{self, AUTHENTICATION, DESTINATION_OPTIONS, HOP_BY_HOP, NOTHING, ROUTING, RST, SYN, TCP, UDP},
    traffic::{Case, Traffic},
};

impl Traffic<'_> {
    pub(super) fn fragmented(&mut self, class: Class) -> Case {
        let v4 = self.dice.chance(50);
        let (leg, opens) = self.harmless(v4);
        if class == Class::BadFragments {
            return self.bad_fragments(leg, opens);
        }
        let length = self.dice.between(200, 1000);
        let data = self.dice.bytes(length);
        let mut whole = leg.packet(SYN, &data);
        if !v4 && self.dice.chance(20) {
            // The fragmented part begins with one more header.
            let chain = [packet::pad(DESTINATION_OPTIONS, 8)];
            let transport = leg.transport(SYN, &data);
            whole =
                packet::with_extensions(leg.source.0, leg.destination.0, &chain, leg.protocol, &transport);
        }
        let mut starts = vec![0];
        while starts.last().is_some_and(|last| last + 32 < length) && starts.len() < 5 {
            let last = *starts.last().unwrap();
            starts.push((last + self.dice.between(32, length - last)).next_multiple_of(8));
        }
        starts.retain(|&start| start < length);
        if starts.len() < 2 {
            starts.push(104);
        }
        let mut pieces = packet::fragments(&whole, self.id(), &starts);
        match class {
            Class::FirstFragment => {
                let mut case = Case::of(class, &leg, pieces);
                case.ours.truncate(1);
                case.opens = opens;
                case
            }
            Class::LaterFragments => {
                let mut case = Case::of(class, &leg, pieces.split_off(1));
                case.any = true;
                case
            }
            Class::Shuffled => {
                for place in (1..pieces.len()).rev() {
                    pieces.swap(place, self.dice.below(place + 1));
                }
                let in_front = packet::place(&pieces[0]).0 == 0;
                let mut case = Case::of(class, &leg, pieces);
                case.opens = opens.filter(|_| in_front);
                case.why = (!in_front).then_some(Why::OutOfOrder);
                case
            }
            _ => {
                let mut case = Case::of(class, &leg, pieces);
                case.opens = opens;
                case
            }
        }
    }

    fn bad_fragments(&mut self, mut leg: Leg, mut opens: Option<Flow>) -> Case {
        let id = self.id();
        let data = self.dice.bytes(400);
        let whole = leg.packet(SYN, &data);
        let body = whole[packet::header_len(&whole)..].to_vec();
        let mut why = None;
        let pieces = match self.dice.below(4) {
            // The second says again, and otherwise, what the first said.
            0 => vec![
                packet::fragment(&whole, id, 0, &body[..48], true),
                packet::fragment(&whole, id, 40, &data[..300], false),
            ],
            // The flags, or even the ports' use, are left to the second.
            1 => {
                let v4 = leg.is_v4();
                let port = self.fresh_port();
                let flow = self.stranger_by(TCP, port, v4);
                (leg, opens) = (flow.leg(true), Some(flow));
                why = Some(Why::TinyFragment);
                let start = self.dice.pick(&[8, 16]);
                packet::fragments(&leg.packet(SYN, &data), id, &[0, start, 200])
            }
            // What is not the last ends between multiples of 8.
            2 => vec![
                packet::fragment(&whole, id, 0, &body[..44], true),
                packet::fragment(&whole, id, 48, &body[48..], false),
            ],
            // It would be longer than a datagram can be.
            _ => vec![
                packet::fragment(&whole, id, 0, &body[..48], true),
                packet::fragment(&whole, id, 65_528, &body[..100], false),
            ],
        };
        let mut case = Case::of(Class::BadFragments, &leg, pieces);
        (case.why, case.opens) = (why, opens);
        case
    }

    pub(super) fn extensions(&mut self) -> Case {
        let (leg, opens) = self.harmless(false);
        let mut case = Case::of(Class::Extensions, &leg, Vec::new());
        case.opens = opens;
        let (mut flags, mut chain, mut protocol) = (SYN, Vec::new(), leg.protocol);
        match self.dice.below(20) {
            0 => {
                let mut route = vec![0, 2, 0, 1, 0, 0, 0, 0];
                route.extend(self.dice.bytes(16));
                if self.dice.chance(30) {
                    // Another type, on its way to elsewhere.
                    route[2] = 4;
                }
                chain.push((ROUTING, route));
                case.why = Some(Why::RoutingHeader);
            }
            1 => {
                let count = self.dice.between(9, 12);
                chain = vec![packet::pad(DESTINATION_OPTIONS, 8); count];
                case.why = Some(Why::ManyExtensions);
            }
            2 => {
                chain.push(packet::pad(DESTINATION_OPTIONS, 8));
                (protocol, case.opens) = (NOTHING, None);
            }
            3 => {
                // One whole fragment (RFC 6946).
                let id = u32::from(self.id()).to_be_bytes();
                chain.push((packet::FRAGMENT, [vec![0; 4], id.to_vec()].concat()));
            }
            4 if leg.protocol == TCP => (flags, case.opens) = (RST, None),
            _ => {}
        }
        if chain.is_empty() {
            if self.dice.chance(40) {
                // A router refuses more than 7 bytes of padding here.
                chain.push(packet::pad(HOP_BY_HOP, 8));
            }
            for _ in 0..self.dice.between(1, 4) {
                let next = match self.dice.below(10) {
                    0..2 => (ROUTING, vec![0, 0, self.dice.pick(&[2, 4]), 0, 0, 0, 0, 0]),
                    // 24 bytes, of which the length counts words of 4, less 2.
                    2 => {
                        case.why = Some(Why::Authentication);
                        (AUTHENTICATION, [vec![0, 4], vec![0; 22]].concat())
                    }
                    _ => packet::pad(DESTINATION_OPTIONS, self.dice.pick(&[8, 16, 32])),
                };
                chain.push(next);
            }
        }
        let data = self.data();
        let packet = packet::with_extensions(
            leg.source.0,
            leg.destination.0,
            &chain,
            protocol,
            &leg.transport(flags, &data),
        );
        case.ours = vec![packet];
        case.kernel = case.ours.clone();
        case
    }

    pub(super) fn options(&mut self) -> Case {
        let (leg, mut opens) = self.harmless(true);
        let data = self.data();
        let options: &[u8] = match self.dice.below(8) {
            // By whom it has to go, loosely and strictly.
            0 => &[131, 7, 4, 10, 1, 0, 9, 0],
            1 => &[137, 7, 4, 10, 1, 0, 9, 0],
            // Padding, a record of the route, times, an alert to routers, and what nobody knows.
            2 => &[1, 1, 1, 1],
            3 => &[0, 0, 0, 0],
            4 => &[7, 7, 4, 0, 0, 0, 0, 0],
            5 => &[68, 8, 5, 0, 0, 0, 0, 0],
            6 => &[148, 4, 0, 0],
            _ => &[0x9e, 4, 0, 0],
        };
        opens = opens.filter(|_| !matches!(options[0], 131 | 137));
        let transport = leg.transport(SYN, &data);
        let (from, to) = (leg.source.0, leg.destination.0);
        let packet = packet::with_options(from, to, options, leg.protocol, 7, &transport);
        let mut case = Case::of(Class::Options, &leg, vec![packet]);
        case.opens = opens;
        case
    }

    /// Less than the headers say, or less than there are headers.
    pub(super) fn short(&mut self) -> Case {
        let v4 = self.dice.chance(50);
        let (leg, _) = self.harmless(v4);
        let data = self.dice.bytes(16);
        let mut packet = leg.packet(SYN, &data);
        if self.dice.chance(50) || leg.protocol == 99 {
            packet.truncate(self.dice.between(1, packet.len() - 1));
        } else {
            let least = if leg.protocol == TCP { 20 } else { 8 };
            packet::cut_transport(&mut packet, self.dice.below(least));
        }
        Case::of(Class::Short, &leg, vec![packet])
    }

    pub(super) fn malformed(&mut self) -> Case {
        let v4 = self.dice.chance(60);
        let (mut leg, _) = self.harmless(v4);
        let data = self.dice.bytes(16);
        let packet = match self.dice.below(9) {
            0 => {
                let mut packet = leg.packet(SYN, &data);
                let version = self.dice.pick(&[0, 1, 2, 3, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
                packet[0] = version << 4 | packet[0] & 15;
                packet
            }
            1 => {
                leg.protocol = if v4 { packet::ICMPV6 } else { packet::ICMP };
                let kind = self.dice.pick(&[0, 8, 13, 128, 129]);
                let message = packet::icmp(leg.source.0, leg.destination.0, kind, 0, [0, 9, 0, 1], &data);
                packet::packet(leg.source.0, leg.destination.0, leg.protocol, 7, &message)
            }
            2..5 => self.lies_of_transport(&mut leg),
            // Of a protocol that conntrack does not look into, it takes anything.
            _ if !v4 && !matches!(leg.protocol, TCP | UDP) => self.lies_of_transport(&mut leg),
            _ if v4 => self.lies_v4(&leg),
            _ => self.lies_v6(&leg),
        };
        Case::of(Class::Malformed, &leg, vec![packet])
    }

    fn lies_of_transport(&mut self, leg: &mut Leg) -> Vec<u8> {
        let v4 = leg.is_v4();
        let (protocol, port) = (self.dice.pick(&[TCP, UDP]), self.fresh_port());
        *leg = self.stranger_by(protocol, port, v4).leg(true);
        let data = self.dice.bytes(12);
        let mut transport = leg.transport(SYN, &data);
        if protocol == TCP {
            // Headers of less than 20 bytes, or of more than there are.
            transport[12] = self.dice.pick(&[0, 1, 2, 3, 4, 9, 12, 15]) << 4;
        } else {
            let length = self.dice.pick(&[0, 1, 7, 21, 100, 65_535_u16]);
            transport[4..6].copy_from_slice(&length.to_be_bytes());
        }
        packet::packet(leg.source.0, leg.destination.0, protocol, 7, &transport)
    }

    fn lies_v4(&mut self, leg: &Leg) -> Vec<u8> {
        let mut packet = leg.packet(SYN, b"a packet");
        let long = packet.len() as u16;
        match self.dice.below(6) {
            0 => packet[0] = 0x40 | self.dice.below(5) as u8,
            1 => packet[0] = 0x4f,
            2 => packet[2..4].copy_from_slice(&(long + self.dice.between(1, 500) as u16).to_be_bytes()),
            3 => packet[2..4].copy_from_slice(&(self.dice.below(20) as u16).to_be_bytes()),
            4 => {
                // The checksum is wrong, and nothing else.
                packet[10] ^= self.dice.between(1, 255) as u8;
                return packet;
            }
            _ => {
                // An option that ends beyond the header, or before it began.
                let options = [0x9e, self.dice.pick(&[0, 1, 5, 200]), 0, 0];
                let transport = leg.transport(SYN, b"a packet");
                let (from, to) = (leg.source.0, leg.destination.0);
                return packet::with_options(from, to, &options, leg.protocol, 7, &transport);
            }
        }
        packet::finish_v4(&mut packet);
        packet
    }

    fn lies_v6(&mut self, leg: &Leg) -> Vec<u8> {
        let mut packet = leg.packet(SYN, b"a packet");
        let long = packet.len() as u16 - 40;
        if self.dice.chance(40) {
            packet[4..6].copy_from_slice(&(long + self.dice.between(1, 500) as u16).to_be_bytes());
            return packet;
        }
        // A header that ends beyond the packet.
        let mut chain = vec![packet::pad(DESTINATION_OPTIONS, 8)];
        chain[0].1[1] = self.dice.between(20, 255) as u8;
        let transport = leg.transport(SYN, b"a packet");
        packet::with_extensions(leg.source.0, leg.destination.0, &chain, leg.protocol, &transport)
    }
}
