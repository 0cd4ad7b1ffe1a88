//! ICMP beyond echoes: errors that quote what passed, and errors that only say so.

use std::net::IpAddr;

use ringmesh_tunnel::filter::Direction;

use super::{
    class::{Class, Why},
    flow::{Flow, Leg, other},
    packet::{self, TCP, UDP},
    scene::PEERS,
    traffic::{Case, Traffic},
};

impl Traffic<'_> {
    pub(super) fn icmp(&mut self, class: Class) -> Case {
        if class == Class::OtherIcmp {
            return self.unasked_icmp();
        }
        let quoted = self.quoted_flow(class).leg(self.dice.chance(50));
        let data = self.dice.bytes(30);
        let mut quote = quoted.ordinary(&data);
        let mut why = (class == Class::ErrorOther).then_some(Why::OtherError);
        let (mut kind, mut code) = self.error_kind(quoted.is_v4());
        match class {
            Class::ErrorMalformed => quote = self.broken(&quoted, quote, &mut why),
            Class::ErrorOther => (kind, code) = (self.dice.pick(other_errors(quoted.is_v4())), 0),
            Class::ErrorLive if self.dice.chance(20) => quote = self.in_disguise(&quoted, quote),
            _ if self.dice.chance(60) => quote.truncate(packet::header_len(&quote) + 8),
            _ => {}
        }
        let mut leg = Leg {
            peer: quoted.peer,
            direction: other(quoted.direction),
            protocol: packet::icmp_of(quoted.source.0),
            source: (quoted.destination.0, 0),
            destination: (quoted.source.0, 0),
            stamp: false,
            by_opener: false,
        };
        match class {
            Class::ErrorForeign => self.quote_others(&quoted, &mut leg, &mut quote),
            Class::ErrorLive => self.send_from_elsewhere(&mut leg, &mut why),
            _ => {}
        }
        let message = packet::icmp(leg.source.0, leg.destination.0, kind, code, [0, 0, 5, 0], &quote);
        let packet = packet::packet(leg.source.0, leg.destination.0, leg.protocol, 7, &message);
        let mut case = Case::of(class, &leg, vec![packet]);
        (case.key, case.why) = (quoted.key(), why);
        case
    }

    fn quoted_flow(&mut self, class: Class) -> Flow {
        let ports = matches!(class, Class::ErrorMalformed);
        let live = match class {
            Class::ErrorDead | Class::ErrorForeign => None,
            _ => self.live(|flow| !ports || matches!(flow.protocol, TCP | UDP)),
        };
        live.unwrap_or_else(|| {
            let (protocol, port) = (self.dice.pick(&[TCP, UDP, UDP]), self.nobodys_port());
            self.stranger(protocol, port)
        })
    }

    fn error_kind(&mut self, v4: bool) -> (u8, u8) {
        if v4 {
            self.dice.pick(&[(3, 0), (3, 1), (3, 3), (3, 4), (3, 13), (11, 0), (11, 1), (12, 0)])
        } else {
            self.dice.pick(&[(1, 0), (1, 1), (1, 4), (2, 0), (3, 0), (3, 1), (4, 0), (4, 1)])
        }
    }

    /// The quoted packet as the first of some fragments, or with headers in front of its transport's.
    fn in_disguise(&mut self, quoted: &Leg, quote: Vec<u8>) -> Vec<u8> {
        let (from, to) = (quoted.source.0, quoted.destination.0);
        let transport = &quote[packet::header_len(&quote)..];
        match (quoted.is_v4(), self.dice.chance(50)) {
            (_, true) => packet::fragment(&quote, self.id(), 0, &transport[..24], true),
            (true, false) => packet::with_options(from, to, &[1, 1, 1, 1], quoted.protocol, 7, transport),
            (false, false) => {
                let chain = [
                    packet::pad(packet::DESTINATION_OPTIONS, 8),
                    packet::pad(packet::DESTINATION_OPTIONS, 16),
                ];
                packet::with_extensions(from, to, &chain, quoted.protocol, transport)
            }
        }
    }

    /// An error of a router on the way, one for an address that the quoted packet did not come from, or one of a peer whose
    /// business it is not.
    fn send_from_elsewhere(&mut self, leg: &mut Leg, why: &mut Option<Why>) {
        let v4 = leg.is_v4();
        let (sender, receiver) =
            if leg.direction == Direction::In { (leg.peer + 1, 0) } else { (0, leg.peer + 1) };
        match self.dice.below(10) {
            0..3 => leg.source.0 = self.dice.pick(&self.scene.addresses(sender, v4)),
            3 => leg.destination.0 = self.dice.pick(&self.scene.addresses(receiver, v4)),
            4 if leg.direction == Direction::In => {
                leg.peer = (leg.peer + 1) % PEERS;
                leg.source.0 = self.dice.pick(&self.scene.addresses(leg.peer + 1, v4));
                *why = Some(Why::AnotherPeer);
            }
            _ => {}
        }
    }

    /// Makes the quote one of a packet that never passed here.
    fn quote_others(&mut self, quoted: &Leg, leg: &mut Leg, quote: &mut Vec<u8>) {
        let foreign: IpAddr =
            if leg.is_v4() { [198, 51, 100, 9].into() } else { "2001:db8:99::9".parse().unwrap() };
        let mut theirs = *quoted;
        if self.dice.chance(50) {
            theirs.source.0 = foreign;
        }
        theirs.destination.0 = foreign;
        *quote = theirs.ordinary(b"01234567");
        // The error itself comes from where the sender may send from.
        leg.destination.0 = quoted.source.0;
    }

    fn broken(&mut self, quoted: &Leg, mut quote: Vec<u8>, why: &mut Option<Why>) -> Vec<u8> {
        let header = packet::header_len(&quote);
        match self.dice.below(7) {
            0 => quote.truncate(0),
            1 => quote.truncate(self.dice.below(header)),
            2 => quote.truncate(header + self.dice.below(4)),
            3 => {
                quote[0] ^= 0x20;
                *why = Some(Why::QuotedVersion);
            }
            4 if quoted.is_v4() => quote[0] = 0x40 | self.dice.below(5) as u8,
            5 => quote = packet::fragment(&quote, 9, 64, &quote[header..], false),
            _ => {
                // An error that quotes an error.
                let (from, to) = (quoted.source.0, quoted.destination.0);
                let kind = if quoted.is_v4() { 3 } else { 1 };
                let inner = packet::icmp(from, to, kind, 0, [0; 4], &quote);
                quote = packet::packet(from, to, packet::icmp_of(from), 7, &inner);
            }
        }
        quote
    }

    /// Answers, announcements and nonsense that nobody asked for, and requests that nobody makes any more.
    fn unasked_icmp(&mut self) -> Case {
        let (mut leg, _) = {
            let v4 = self.dice.chance(50);
            self.harmless(v4)
        };
        leg.protocol = packet::icmp_of(leg.source.0);
        let old: &[u8] = if leg.is_v4() { &[15, 17] } else { &[139] };
        let unasked: &[u8] = if leg.is_v4() {
            &[1, 2, 6, 7, 9, 10, 14, 16, 18, 19, 30, 40, 42, 43, 255]
        } else {
            &[130, 131, 132, 133, 134, 135, 136, 137, 138, 140, 141, 142, 143, 144, 148, 150, 200, 255]
        };
        let is_old = self.dice.chance(10);
        let kind = self.dice.pick(if is_old { old } else { unasked });
        let data = self.dice.bytes(24);
        // What only the router lets pass must not be answered by what follows.
        let id = if is_old { self.id() } else { 0 }.to_be_bytes();
        let message = packet::icmp(leg.source.0, leg.destination.0, kind, 0, [id[0], id[1], 0, 0], &data);
        let packet = packet::packet(leg.source.0, leg.destination.0, leg.protocol, 7, &message);
        (leg.source.1, leg.destination.1) = (0, 0);
        let mut case = Case::of(Class::OtherIcmp, &leg, vec![packet]);
        case.why = is_old.then_some(Why::OldRequest);
        case
    }
}

fn other_errors(v4: bool) -> &'static [u8] {
    if v4 { &[4, 5] } else { &[5, 100, 101, 127] }
}
