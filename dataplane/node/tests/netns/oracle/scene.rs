//! Who there is and what the rules are: members and a policy by chance, and what both sides of the comparison make of them.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv6Addr},
};

use ringmesh_tunnel::{
    UnixTime,
    filter::Filter,
    ip::Prefix,
    key::{NetworkId, NodeId, SecretKey},
    netmap::{Member, MemberKind, PortRange, Protocol, Rule, Selector},
};

use super::dice::Dice;

/// Peers of the node under test.
pub const PEERS: usize = 3;
/// Ports that rules and packets meet at: those of rules, their ends, and their neighbours.
pub const PORTS: [u16; 16] = [1, 21, 22, 23, 53, 79, 80, 85, 90, 91, 443, 7999, 8000, 8050, 8100, 65535];
/// Protocols without a name of their own in rules. Those for which conntrack knows more than the number (GRE, SCTP, DCCP)
/// are left out: both sides would be right.
pub const OTHERS: [u8; 5] = [50, 89, 99, 4, 2];

const WORDS: [&str; 3] = ["red", "green", "blue"];

/// The node under test, its peers and the rules.
#[derive(Debug)]
pub struct Scene {
    pub me: Member,
    pub peers: Vec<Member>,
    pub rules: Vec<Rule>,
}

pub fn secret(number: usize) -> [u8; 32] {
    [number as u8 + 1; 32]
}

/// Member 0 is the node under test.
fn member(number: usize, routes: &[&str], dice: &mut Dice) -> Member {
    let mut words = || WORDS.iter().filter(|_| dice.chance(50)).map(|&word| word.to_owned()).collect();
    Member {
        network: NetworkId::from_bytes([1; 16]),
        id: NodeId::from_bytes([number as u8 + 1; 8]),
        name: format!("node{number}"),
        kind: MemberKind::Stock,
        relay: false,
        noise_key: SecretKey::from_bytes(secret(number)).public_key(),
        identity_key: None,
        ipv4: Some([100, 64, 0, number as u8 + 1].into()),
        ipv6: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number as u16 + 1),
        tags: words(),
        groups: words(),
        routes: routes.iter().map(|route| route.parse().unwrap()).collect(),
        serial: 1,
        not_after: UnixTime::from_secs(4_000_000_000),
    }
}

impl Scene {
    pub fn new(dice: &mut Dice) -> Self {
        let me = member(0, &["10.50.0.0/24", "fd50::/64"], dice);
        // The second peer's routes lie within the first's: the longest match decides whose an address is.
        let routes: [&[&str]; PEERS] =
            [&["10.1.0.0/16", "fd01::/48"], &["10.1.5.0/24", "fd01:0:0:5::/64"], &[]];
        let peers =
            routes.iter().enumerate().map(|(place, routes)| member(place + 1, routes, dice)).collect();
        let mut scene = Self { me, peers, rules: Vec::new() };
        scene.write_rules(dice);
        scene
    }

    /// For each transport and direction a rule that concerns the node, and some that may or may not.
    fn write_rules(&mut self, dice: &mut Dice) {
        let number = || Protocol::Number(OTHERS[0]);
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp, Protocol::Tcp, Protocol::Udp, number()]
        {
            for inward in [true, false] {
                let peer = dice.below(PEERS);
                let (peer, me) = (selector_of(&self.peers[peer], dice), selector_of(&self.me, dice));
                let (source, destination) = if inward { (peer, me) } else { (me, peer) };
                let ports = ports(protocol, dice);
                self.rules.push(Rule {
                    sources: vec![source],
                    destinations: vec![destination],
                    protocol,
                    ports,
                });
            }
        }
        for _ in 0..dice.between(2, 8) {
            let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Icmp, Protocol::Any];
            let protocol =
                if dice.chance(30) { Protocol::Number(dice.pick(&OTHERS)) } else { dice.pick(&protocols) };
            let mut side = || (0..dice.between(1, 2)).map(|_| any_selector(dice)).collect();
            let (sources, destinations) = (side(), side());
            let ports = ports(protocol, dice);
            self.rules.push(Rule { sources, destinations, protocol, ports });
        }
    }

    /// What the node under test compiles.
    pub fn filter(&self) -> Filter {
        self.filter_of(&self.rules)
    }

    /// The same of other rules.
    pub fn filter_of(&self, rules: &[Rule]) -> Filter {
        Filter::of(&self.me, &self.peers, (0..).zip(rules), &[])
    }

    /// Whose an address is by the longest match: the place of a peer.
    pub fn owner(&self, address: IpAddr) -> Option<usize> {
        let owned = self.ranges().into_iter().find(|(range, _)| range.contains(address));
        owned.and_then(|(_, device)| device.checked_sub(1))
    }

    pub fn is_mine(&self, address: IpAddr) -> bool {
        self.me.allowed_ips().any(|range| range.contains(address))
    }

    /// Every range and the member it leads to (0 is the node under test), the longest first.
    pub fn ranges(&self) -> Vec<(Prefix, usize)> {
        let members = [&self.me].into_iter().chain(&self.peers).enumerate();
        let mut ranges: Vec<_> = members
            .flat_map(|(place, member)| member.allowed_ips().map(move |range| (range, place)))
            .collect();
        ranges.sort_by_key(|(range, _)| std::cmp::Reverse(range.len()));
        ranges
    }

    /// Addresses that member `number` uses, of one family.
    pub fn addresses(&self, number: usize, v4: bool) -> Vec<IpAddr> {
        let texts: &[&str] = match (number, v4) {
            (0, true) => &["100.64.0.1", "10.50.0.7", "10.50.0.200"],
            (0, false) => &["fd00::1", "fd50::7"],
            (1, true) => &["100.64.0.2", "10.1.0.9", "10.1.200.1"],
            (1, false) => &["fd00::2", "fd01::9", "fd01:0:0:6::1"],
            (2, true) => &["100.64.0.3", "10.1.5.9"],
            (2, false) => &["fd00::3", "fd01:0:0:5::9"],
            (_, true) => &["100.64.0.4"],
            (_, false) => &["fd00::4"],
        };
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// The rules as nftables says them, in a chain that only openings reach. It shares nothing with [`Filter::of`]: a member
    /// is a device here, as its source addresses were checked before and destinations are routed.
    pub fn nft_rules(&self) -> String {
        let mut text = String::new();
        for rule in &self.rules {
            for (place, peer) in self.peers.iter().enumerate() {
                let device = format!("peer{place}");
                self.nft_rule(&mut text, rule, (peer, &device), (&self.me, "near"));
                self.nft_rule(&mut text, rule, (&self.me, "near"), (peer, &device));
            }
        }
        text
    }

    fn nft_rule(&self, text: &mut String, rule: &Rule, from: (&Member, &str), to: (&Member, &str)) {
        let ports: Vec<_> = rule.ports.iter().map(ToString::to_string).collect();
        for (family, icmp) in [("ip", 1), ("ip6", 58)] {
            let sides = [("saddr", &rule.sources, from.0), ("daddr", &rule.destinations, to.0)];
            let [sources, destinations] =
                sides.map(|(side, selectors, member)| nft_side(family, side, selectors, member));
            let nfproto = if family == "ip" { "ipv4" } else { "ipv6" };
            let protocol = match rule.protocol {
                Protocol::Any => String::new(),
                Protocol::Tcp => "meta l4proto 6".into(),
                Protocol::Udp => "meta l4proto 17".into(),
                Protocol::Icmp => format!("meta l4proto {icmp}"),
                Protocol::Number(number) => format!("meta l4proto {number}"),
            };
            let ports =
                if ports.is_empty() { String::new() } else { format!("th dport {{ {} }}", ports.join(", ")) };
            let devices = format!("meta nfproto {nfproto} iifname {} oifname {}", from.1, to.1);
            for (source, destination) in
                sources.iter().flat_map(|source| destinations.iter().map(move |to| (source, to)))
            {
                let _ = writeln!(text, "{devices} {source} {destination} {protocol} {ports} accept");
            }
        }
    }
}

/// The matches of which one must hold on one side of a rule: an empty one if all of `member` is meant, none if nothing of it.
fn nft_side(family: &str, side: &str, selectors: &[Selector], member: &Member) -> Vec<String> {
    let whole = selectors.iter().any(|selector| match selector {
        Selector::All => true,
        Selector::Node(id) => member.id == *id,
        Selector::Group(name) => member.groups.contains(name),
        Selector::Tag(name) => member.tags.contains(name),
        Selector::Prefix(_) => false,
    });
    if whole {
        return vec![String::new()];
    }
    let ranges = selectors.iter().filter_map(|selector| match selector {
        Selector::Prefix(range) if range.is_ipv4() == (family == "ip") => Some(range),
        _ => None,
    });
    ranges.map(|range| format!("{family} {side} {range}")).collect()
}

/// A selector that `member` is meant by, at least with one of its addresses.
fn selector_of(member: &Member, dice: &mut Dice) -> Selector {
    let ranges: Vec<Prefix> = member.allowed_ips().collect();
    match dice.below(4) {
        0 if !member.groups.is_empty() => {
            Selector::Group(member.groups[dice.below(member.groups.len())].clone())
        }
        1 if !member.tags.is_empty() => Selector::Tag(member.tags[dice.below(member.tags.len())].clone()),
        2 => Selector::Prefix(dice.pick(&ranges)),
        _ => Selector::Node(member.id),
    }
}

fn any_selector(dice: &mut Dice) -> Selector {
    let ranges = [
        "100.64.0.0/29",
        "100.64.0.2/32",
        "10.1.0.0/17",
        "10.1.5.0/24",
        "10.50.0.0/25",
        "fd00::/126",
        "fd01::/32",
    ];
    match dice.below(20) {
        0 => Selector::All,
        1..5 => Selector::Node(NodeId::from_bytes([dice.between(1, PEERS + 1) as u8; 8])),
        5..9 => Selector::Group(WORDS[dice.below(3)].to_owned()),
        9..14 => Selector::Tag(WORDS[dice.below(3)].to_owned()),
        _ => Selector::Prefix(dice.pick(&ranges).parse().unwrap()),
    }
}

fn ports(protocol: Protocol, dice: &mut Dice) -> Vec<PortRange> {
    if !protocol.has_ports() || dice.chance(15) {
        return Vec::new();
    }
    let choices = [(22, 22), (53, 53), (80, 90), (443, 443), (8000, 8100), (1, 1), (65535, 65535), (1, 1023)];
    let mut ranges = Vec::new();
    for _ in 0..dice.between(1, 3) {
        let (first, last) = dice.pick(&choices);
        let range = PortRange::new(first, last).unwrap();
        // nft refuses intervals that overlap in one set.
        let apart = |other: &PortRange| other.last() < first || last < other.first();
        if ranges.iter().all(apart) {
            ranges.push(range);
        }
    }
    ranges
}
