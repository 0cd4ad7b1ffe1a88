//! Packets of every class, by chance, over flows that live: most of what matters to a stateful filter is what came before.

use std::{collections::BTreeSet, net::IpAddr};

use ringmesh_tunnel::filter::{Direction, Opening};

use super::{
    class::{Class, Why},
    dice::Dice,
    flow::{After, Flow, Key, Leg, Phase},
    packet::{self, ACK, CWR, ECE, FIN, PSH, RST, SYN, TCP, UDP, URG},
    scene::{OTHERS, PEERS, PORTS, Scene},
};

/// Flows that are remembered to be used again.
const LIVE: usize = 300;
/// Where openers' ports begin, few enough for flows to meet again.
const OPENERS: usize = 40_000;
/// Where ports begin that nobody opens a flow from.
const NOBODY: usize = 50_000;

/// One question: a packet, or the fragments of one.
#[derive(Debug, Clone)]
pub struct Case {
    pub class: Class,
    pub direction: Direction,
    /// Who sends it, or whom it is for.
    pub peer: usize,
    pub destination: IpAddr,
    /// What the node under test gets.
    pub ours: Vec<Vec<u8>>,
    /// What the router gets: of a datagram whose first fragment alone is judged, all of it.
    pub kernel: Vec<Vec<u8>>,
    /// Whether it counts as accepted if only one of ours passes: of fragments that are none of anything.
    pub any: bool,
    /// What it asks of the rules, if it asks.
    pub opening: Opening,
    pub key: Key,
    pub opens: Option<Flow>,
    /// What flags of TCP it has, and whether who sends it would open the flow.
    pub flags: u8,
    pub by_opener: bool,
    /// Why it may be that we deny what the router accepts.
    pub why: Option<Why>,
}

impl Case {
    pub fn of(class: Class, leg: &Leg, packets: Vec<Vec<u8>>) -> Self {
        Self {
            class,
            direction: leg.direction,
            peer: leg.peer,
            destination: leg.destination.0,
            ours: packets.clone(),
            kernel: packets,
            any: false,
            opening: leg.opening(),
            key: leg.key(),
            opens: None,
            flags: ACK,
            by_opener: leg.by_opener,
            why: None,
        }
    }
}

/// Makes packets.
#[derive(Debug)]
pub struct Traffic<'a> {
    pub(super) scene: &'a Scene,
    pub(super) dice: Dice,
    live: Vec<Flow>,
    /// Flows that the two sides know differently, for a reason that was told: what follows from that tells nothing new.
    shunned: BTreeSet<Key>,
    /// Numbers datagrams that are fragmented, and openers that are met once.
    made: u16,
}

impl<'a> Traffic<'a> {
    pub fn new(scene: &'a Scene, dice: Dice) -> Self {
        Self { scene, dice, live: Vec::new(), shunned: BTreeSet::new(), made: 0 }
    }

    /// The next packet, of a class by weight.
    pub fn next_case(&mut self) -> Case {
        loop {
            let case = self.any_case();
            if !self.shunned.contains(&case.key) {
                return case;
            }
        }
    }

    fn any_case(&mut self) -> Case {
        let total: usize = Class::ALL.iter().map(|class| class.weight()).sum();
        let mut drawn = self.dice.below(total);
        let mut classes = Class::ALL.iter();
        let class = loop {
            let class = *classes.next().unwrap();
            match drawn.checked_sub(class.weight()) {
                Some(rest) => drawn = rest,
                None => break class,
            }
        };
        self.made = self.made.wrapping_add(1);
        match class {
            Class::TcpSyn | Class::TcpAck | Class::TcpSynAck | Class::TcpRst | Class::TcpFin => {
                self.tcp(class)
            }
            Class::TcpOdd => self.odd_flags(),
            Class::UdpOpening | Class::EchoRequest => self.opening(class),
            Class::UdpReply | Class::EchoReply => self.reply(class),
            Class::OtherProtocol => self.other_protocol(),
            Class::ErrorLive
            | Class::ErrorDead
            | Class::ErrorForeign
            | Class::ErrorMalformed
            | Class::ErrorOther
            | Class::OtherIcmp => self.icmp(class),
            Class::Fragments
            | Class::FirstFragment
            | Class::LaterFragments
            | Class::Shuffled
            | Class::BadFragments => self.fragmented(class),
            Class::Extensions => self.extensions(),
            Class::Options => self.options(),
            Class::Short => self.short(),
            Class::Malformed => self.malformed(),
            Class::Spoofed => self.spoofed(),
            Class::Elsewhere => self.elsewhere(),
        }
    }

    /// Takes note of a case that both sides let pass.
    pub fn learn(&mut self, case: &Case) {
        if case.class.is_error() {
            return;
        }
        let known = self.live.iter().position(|flow| flow.leg(true).key() == case.key);
        match (known, case.opens) {
            (Some(place), _) => {
                let after = self.live[place].passed(case.flags, case.by_opener);
                match after {
                    After::GoesOn => {}
                    After::Forgotten => drop(self.live.swap_remove(place)),
                    After::Unclear => self.retire(place),
                }
                // Connections that are over are less use than others.
                if after == After::GoesOn && case.flags & RST != 0 && self.dice.chance(60) {
                    self.retire(place);
                }
            }
            (None, Some(flow)) => {
                if self.live.len() == LIVE {
                    let place = self.dice.below(LIVE);
                    self.retire(place);
                }
                self.live.push(flow);
            }
            (None, None) => {}
        }
    }

    /// Of a connection that is not followed any more, nothing is asked again.
    fn retire(&mut self, place: usize) {
        let flow = self.live.swap_remove(place);
        if flow.protocol == TCP {
            self.shunned.insert(flow.leg(true).key());
        }
    }

    /// Takes note of a case that one side lets pass, or that passes in part: if it changes what is known of a flow, they part here.
    pub fn shun(&mut self, case: &Case) {
        if case.opens.is_some() || case.class.is_tcp() {
            self.shunned.insert(case.key);
            self.live.retain(|flow| flow.leg(true).key() != case.key);
        }
    }

    /// A flow that might be opened.
    pub(super) fn stranger(&mut self, protocol: u8, port: usize) -> Flow {
        let v4 = self.dice.chance(50);
        self.stranger_by(protocol, port, v4)
    }

    pub(super) fn stranger_by(&mut self, protocol: u8, port: usize, v4: bool) -> Flow {
        let peer = self.dice.below(PEERS);
        let mine = self.dice.pick(&self.scene.addresses(0, v4));
        let theirs = self.dice.pick(&self.scene.addresses(peer + 1, v4));
        let opener = self.dice.pick(&[Direction::In, Direction::Out]);
        let (from, to) = if opener == Direction::In { (theirs, mine) } else { (mine, theirs) };
        let ports = match protocol {
            TCP | UDP => (port as u16, self.dice.pick(&PORTS)),
            1 | 58 => (port as u16, 0),
            _ => (0, 0),
        };
        let protocol = if matches!(protocol, 1 | 58) { packet::icmp_of(from) } else { protocol };
        let (from, to) = ((from, ports.0), (to, ports.1));
        let stamp = protocol == packet::ICMP && self.dice.chance(15);
        Flow { peer, opener, protocol, from, to, stamp, phase: Phase::Asked, answered: false }
    }

    /// A port that a flow may have been opened from before, or hardly.
    pub(super) fn openers_port(&mut self) -> usize {
        if self.dice.chance(70) { OPENERS + self.dice.below(24) } else { self.dice.between(60_000, 65_535) }
    }

    /// A port that no flow was opened from.
    pub(super) fn nobodys_port(&mut self) -> usize {
        NOBODY + self.dice.below(10_000)
    }

    /// A port that is met once in a round.
    pub(super) fn fresh_port(&mut self) -> usize {
        10_000 + usize::from(self.made) % 30_000
    }

    /// Tells the datagrams that are fragmented apart.
    pub(super) fn id(&self) -> u16 {
        self.made
    }

    pub(super) fn live(&mut self, wanted: impl Fn(&Flow) -> bool) -> Option<Flow> {
        let fitting: Vec<&Flow> = self.live.iter().filter(|flow| wanted(flow)).collect();
        (!fitting.is_empty()).then(|| *fitting[self.dice.below(fitting.len())])
    }

    pub(super) fn data(&mut self) -> Vec<u8> {
        let length = if self.dice.chance(70) { self.dice.below(40) } else { self.dice.below(1200) };
        self.dice.bytes(length)
    }

    fn tcp(&mut self, class: Class) -> Case {
        let flags = match class {
            Class::TcpSyn => self.dice.pick(&[SYN, SYN, SYN | ECE | CWR, SYN | URG]),
            Class::TcpAck => self.dice.pick(&[ACK, ACK, ACK | PSH, ACK | URG, ACK | ECE]),
            Class::TcpSynAck => self.dice.pick(&[SYN | ACK, SYN | ACK | ECE]),
            Class::TcpRst => self.dice.pick(&[RST, RST | ACK]),
            _ => self.dice.pick(&[FIN | ACK, FIN | ACK | PSH]),
        };
        if self.dice.chance(65) {
            // Mostly what would come next; else anything, by anyone.
            let fits = move |flow: &Flow| match class {
                Class::TcpSyn => matches!(flow.phase, Phase::Asked | Phase::Over | Phase::Reset),
                Class::TcpSynAck => flow.phase == Phase::Asked,
                Class::TcpAck => !matches!(flow.phase, Phase::Asked | Phase::Reset),
                Class::TcpFin => matches!(flow.phase, Phase::Open | Phase::HalfClosed),
                _ => true,
            };
            let usual = self.dice.chance(75);
            if let Some(flow) = self.live(|flow| flow.protocol == TCP && (!usual || fits(flow))) {
                let by_opener = match (class, flow.phase) {
                    (Class::TcpSyn, _) | (Class::TcpAck, Phase::Answered) if usual => true,
                    (Class::TcpSynAck, _) if usual => false,
                    _ => self.dice.chance(50),
                };
                let data = if class == Class::TcpAck { self.data() } else { Vec::new() };
                let leg = flow.leg(by_opener);
                let mut case = Case::of(class, &leg, vec![leg.packet(flags, &data)]);
                case.flags = flags;
                let turned = !by_opener && class == Class::TcpSyn;
                case.why = turned.then_some(Why::SimultaneousOpen);
                return case;
            }
        }
        // What opens goes the opener's way, what does not both: as if it did, and as an answer to nothing.
        let opens = matches!(class, Class::TcpSyn | Class::TcpAck);
        let port = if opens { self.openers_port() } else { self.nobodys_port() };
        let mut flow = self.stranger(TCP, port);
        let leg = flow.leg(opens || self.dice.chance(50));
        if class == Class::TcpAck {
            flow.phase = Phase::Open;
        }
        let mut case = Case::of(class, &leg, vec![leg.packet(flags, &[])]);
        (case.flags, case.opens) = (flags, opens.then_some(flow));
        case
    }

    /// Sets of flags that no TCP sends, in flows and outside.
    fn odd_flags(&mut self) -> Case {
        let right = |flags: u8| {
            matches!(flags & !(ECE | CWR | PSH), 0x02 | 0x22 | 0x12 | 0x04 | 0x14 | 0x11 | 0x31 | 0x10 | 0x30)
        };
        let flags = loop {
            let flags = self.dice.draw() as u8;
            if !right(flags) {
                break flags;
            }
        };
        let leg = self.some_leg(TCP);
        Case::of(Class::TcpOdd, &leg, vec![leg.packet(flags, &[])])
    }

    /// Of a live flow or, as often, of one that might be opened.
    pub(super) fn some_leg(&mut self, protocol: u8) -> Leg {
        if self.dice.chance(50)
            && let Some(flow) = self.live(|flow| flow.protocol == protocol)
        {
            return flow.leg(self.dice.chance(50));
        }
        let port = self.openers_port();
        self.stranger(protocol, port).leg(true)
    }

    fn opening(&mut self, class: Class) -> Case {
        let protocol = if class == Class::UdpOpening { UDP } else { packet::ICMP };
        let port = self.openers_port();
        let mut flow = self.stranger(protocol, port);
        // One more by who opened.
        if self.dice.chance(15)
            && let Some(live) = self.live(|live| live.protocol == protocol)
        {
            flow = live;
        }
        let (leg, data) = (flow.leg(true), self.data());
        let mut packet = leg.packet(0, &data);
        if protocol == UDP && self.dice.chance(4) {
            // More follows than the datagram is long.
            let at = packet::header_len(&packet) + 4;
            packet[at..at + 2].copy_from_slice(&8_u16.to_be_bytes());
        }
        let mut case = Case::of(class, &leg, vec![packet]);
        case.opens = Some(flow);
        case
    }

    /// Answers to what was asked, and to what was not.
    fn reply(&mut self, class: Class) -> Case {
        let protocols: &[u8] =
            if class == Class::UdpReply { &[UDP] } else { &[packet::ICMP, packet::ICMPV6] };
        let data = self.data();
        let live = self.live(|flow| protocols.contains(&flow.protocol));
        let Some(flow) = live.filter(|_| self.dice.chance(60)) else {
            let port = self.nobodys_port();
            let leg = self.stranger(protocols[0], port).leg(false);
            return Case::of(class, &leg, vec![leg.packet(0, &data)]);
        };
        let mut leg = flow.leg(false);
        if self.dice.chance(10) {
            // From another port, or to another question.
            leg.source.1 = leg.source.1.wrapping_add(3);
            leg.destination.1 = leg.destination.1.wrapping_add(3);
        }
        if leg.protocol == packet::ICMP && self.dice.chance(10) {
            // An echo for who asked the time, and the other way round.
            leg.stamp = !leg.stamp;
        }
        let mut transport = leg.transport(0, &data);
        if class == Class::EchoReply && self.dice.chance(5) {
            let [kind, _, _, _, word @ ..] = *transport.first_chunk::<8>().unwrap();
            transport = packet::icmp(leg.source.0, leg.destination.0, kind, 1, word, &data);
        }
        let packet = packet::packet(leg.source.0, leg.destination.0, leg.protocol, 7, &transport);
        Case::of(class, &leg, vec![packet])
    }

    fn other_protocol(&mut self) -> Case {
        let protocol = self.dice.pick(&OTHERS);
        let data = self.data();
        if self.dice.chance(40)
            && let Some(flow) = self.live(|flow| OTHERS.contains(&flow.protocol))
        {
            let leg = flow.leg(self.dice.chance(30));
            return Case::of(Class::OtherProtocol, &leg, vec![leg.packet(0, &data)]);
        }
        let flow = self.stranger(protocol, 0);
        let leg = flow.leg(true);
        let mut case = Case::of(Class::OtherProtocol, &leg, vec![leg.packet(0, &data)]);
        case.opens = Some(flow);
        case
    }

    /// A packet with a source that the sender has not: another's, or nobody's here.
    fn spoofed(&mut self) -> Case {
        let protocol = self.dice.pick(&[TCP, UDP, packet::ICMP]);
        let mut leg = self.some_leg(protocol);
        let v4 = leg.is_v4();
        if leg.direction == Direction::In {
            // Words of one peer come from another.
            if self.dice.chance(60) {
                leg.peer = (leg.peer + 1 + self.dice.below(PEERS - 1)) % PEERS;
            } else {
                let member = self.dice.below(PEERS + 1);
                leg.source.0 = match (member.checked_sub(1), v4) {
                    (Some(peer), _) if peer != leg.peer => self.dice.pick(&self.scene.addresses(member, v4)),
                    (None, _) => self.dice.pick(&self.scene.addresses(0, v4)),
                    (_, true) => [198, 51, 100, 7].into(),
                    (_, false) => "2001:db8:99::7".parse().unwrap(),
                };
            }
        } else {
            let member = self.dice.below(PEERS + 1);
            leg.source.0 = match (member, v4) {
                (0, true) => [198, 51, 100, 7].into(),
                (0, false) => "2001:db8:99::7".parse().unwrap(),
                _ => self.dice.pick(&self.scene.addresses(member, v4)),
            };
        }
        Case::of(Class::Spoofed, &leg, vec![leg.packet(SYN, &[])])
    }

    /// A packet for an address that is not behind the node, or behind no peer.
    fn elsewhere(&mut self) -> Case {
        let protocol = self.dice.pick(&[TCP, UDP, packet::ICMP]);
        let mut leg = self.some_leg(protocol);
        let v4 = leg.is_v4();
        let foreign: IpAddr = if v4 { [198, 51, 100, 9].into() } else { "2001:db8:99::9".parse().unwrap() };
        leg.destination.0 = match (leg.direction, self.dice.below(3)) {
            (_, 0) => foreign,
            (Direction::In, _) => {
                let member = self.dice.between(1, PEERS);
                self.dice.pick(&self.scene.addresses(member, v4))
            }
            (Direction::Out, _) => self.dice.pick(&self.scene.addresses(0, v4)),
        };
        Case::of(Class::Elsewhere, &leg, vec![leg.packet(SYN, &[])])
    }

    /// A leg on which a datagram may pass without changing what is known of a connection: an opening by a port that is met
    /// once, or one more word in a live flow that is not TCP's.
    pub(super) fn harmless(&mut self, v4: bool) -> (Leg, Option<Flow>) {
        if self.dice.chance(35)
            && let Some(flow) = self.live(|flow| flow.protocol == UDP && flow.from.0.is_ipv4() == v4)
        {
            return (flow.leg(self.dice.chance(50)), None);
        }
        let (protocol, port) = (self.dice.pick(&[TCP, TCP, UDP, UDP, packet::ICMP, 99]), self.fresh_port());
        let flow = self.stranger_by(protocol, port, v4);
        (flow.leg(true), Some(flow))
    }
}
