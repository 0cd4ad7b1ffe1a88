//! Cryptokey routing: which peer an inner address belongs to (whitepaper §2).
//!
//! Outbound, the longest prefix that holds the destination names the peer. Inbound, the longest prefix that holds the
//! source must name the peer that sent it; being inside *some* prefix of that peer is not enough, since another peer may
//! own a part of it.

mod hosts;

use std::net::IpAddr;

use self::hosts::Hosts;
use crate::ip::Prefix;

/// A map from prefixes to values with longest-match lookup. For each address family: a table of single addresses, which are the
/// longest prefixes there are, and a path-compressed binary trie of all others.
#[derive(Debug)]
pub struct AllowedIps<T> {
    v4_hosts: Hosts<u32, T>,
    v6_hosts: Hosts<u128, T>,
    v4: Trie<T>,
    v6: Trie<T>,
}

impl<T: Copy> Default for AllowedIps<T> {
    fn default() -> Self {
        Self {
            v4_hosts: Hosts::default(),
            v6_hosts: Hosts::default(),
            v4: Trie::default(),
            v6: Trie::default(),
        }
    }
}

impl<T: Copy> AllowedIps<T> {
    /// Gives `prefix` to `value`; returns whose it was.
    pub fn insert(&mut self, prefix: Prefix, value: T) -> Option<T> {
        match (prefix.address(), prefix.len()) {
            (IpAddr::V4(v4), 32) => self.v4_hosts.insert(v4.to_bits(), value),
            (IpAddr::V6(v6), 128) => self.v6_hosts.insert(v6.to_bits(), value),
            (IpAddr::V4(_), _) => self.v4.insert(Key::of_prefix(prefix), value),
            (IpAddr::V6(_), _) => self.v6.insert(Key::of_prefix(prefix), value),
        }
    }

    /// Takes `prefix` away; returns whose it was. Longer and shorter prefixes stay.
    pub fn remove(&mut self, prefix: Prefix) -> Option<T> {
        match (prefix.address(), prefix.len()) {
            (IpAddr::V4(v4), 32) => self.v4_hosts.remove(v4.to_bits()),
            (IpAddr::V6(v6), 128) => self.v6_hosts.remove(v6.to_bits()),
            (IpAddr::V4(_), _) => self.v4.remove(Key::of_prefix(prefix)),
            (IpAddr::V6(_), _) => self.v6.remove(Key::of_prefix(prefix)),
        }
    }

    /// Whose the longest prefix is that holds `address`.
    #[must_use]
    pub fn lookup(&self, address: IpAddr) -> Option<T> {
        match address {
            IpAddr::V4(v4) => {
                let bits = v4.to_bits();
                self.v4_hosts.get(bits).or_else(|| self.v4.lookup(u128::from(bits) << 96))
            }
            IpAddr::V6(v6) => {
                let bits = v6.to_bits();
                self.v6_hosts.get(bits).or_else(|| self.v6.lookup(bits))
            }
        }
    }
}

/// The first `len` bits of `bits`, the others zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    bits: u128,
    len: u32,
}

impl Key {
    fn of_prefix(prefix: Prefix) -> Self {
        let bits = match prefix.address() {
            IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
            IpAddr::V6(v6) => v6.to_bits(),
        };
        Self { bits, len: u32::from(prefix.len()) }
    }

    fn truncated(bits: u128, len: u32) -> Self {
        Self { bits: if len == 0 { 0 } else { bits & (u128::MAX << (128 - len)) }, len }
    }

    fn holds(self, bits: u128) -> bool {
        Self::truncated(bits, self.len).bits == self.bits
    }

    /// The bit after this key: which child of a node with this key `bits` belongs to.
    fn branch(self, bits: u128) -> usize {
        debug_assert!(self.len < 128, "a full address has no children");
        (bits >> (127 - self.len)) as usize & 1
    }
}

type NodeId = u32;

#[derive(Debug)]
struct Node<T> {
    key: Key,
    value: Option<T>,
    children: [Option<NodeId>; 2],
}

/// Nodes live in one array and name each other by position; a child's key always extends its parent's.
#[derive(Debug)]
struct Trie<T> {
    nodes: Vec<Node<T>>,
    free: Vec<NodeId>,
    root: Option<NodeId>,
}

impl<T> Default for Trie<T> {
    fn default() -> Self {
        Self { nodes: Vec::new(), free: Vec::new(), root: None }
    }
}

/// Where a node hangs: the root, or a branch of a parent.
#[derive(Clone, Copy)]
enum Place {
    Root,
    Child(NodeId, usize),
}

impl<T: Copy> Trie<T> {
    fn lookup(&self, bits: u128) -> Option<T> {
        let mut best = None;
        let mut next = self.root;
        while let Some(id) = next {
            let node = &self.nodes[id as usize];
            if !node.key.holds(bits) {
                break;
            }
            if node.value.is_some() {
                best = node.value;
            }
            if node.key.len == 128 {
                break;
            }
            next = node.children[node.key.branch(bits)];
        }
        best
    }

    fn insert(&mut self, key: Key, value: T) -> Option<T> {
        let mut place = Place::Root;
        loop {
            let Some(id) = self.at(place) else {
                let leaf = self.add(key, Some(value));
                self.put(place, Some(leaf));
                return None;
            };
            let node = &mut self.nodes[id as usize];
            if node.key == key {
                return node.value.replace(value);
            }
            if node.key.len < key.len && node.key.holds(key.bits) {
                place = Place::Child(id, node.key.branch(key.bits));
                continue;
            }
            // The two part ways here: a node with what they share takes this place and gets both as children.
            let other = node.key;
            let shared = (key.bits ^ other.bits).leading_zeros().min(key.len).min(other.len);
            let fork = Key::truncated(key.bits, shared);
            let new = if fork == key {
                self.add(key, Some(value))
            } else {
                let fork_id = self.add(fork, None);
                let leaf = self.add(key, Some(value));
                self.put(Place::Child(fork_id, fork.branch(key.bits)), Some(leaf));
                fork_id
            };
            self.put(Place::Child(new, fork.branch(other.bits)), Some(id));
            self.put(place, Some(new));
            return None;
        }
    }

    fn remove(&mut self, key: Key) -> Option<T> {
        let mut above = Place::Root;
        let mut place = Place::Root;
        loop {
            let id = self.at(place)?;
            let node = &mut self.nodes[id as usize];
            if node.key == key {
                let value = node.value.take()?;
                self.prune(place);
                // A fork that lost a child may have no reason left either.
                self.prune(above);
                return Some(value);
            }
            if node.key.len >= key.len || !node.key.holds(key.bits) {
                return None;
            }
            above = place;
            place = Place::Child(id, node.key.branch(key.bits));
        }
    }

    /// Takes out the node at `place` if it has no value and fewer than two children, lifting an only child.
    fn prune(&mut self, place: Place) {
        let Some(id) = self.at(place) else { return };
        let node = &self.nodes[id as usize];
        let (None, [None, only] | [only, None]) = (node.value, node.children) else { return };
        self.put(place, only);
        self.free.push(id);
    }

    fn at(&self, place: Place) -> Option<NodeId> {
        match place {
            Place::Root => self.root,
            Place::Child(parent, branch) => self.nodes[parent as usize].children[branch],
        }
    }

    fn put(&mut self, place: Place, id: Option<NodeId>) {
        match place {
            Place::Root => self.root = id,
            Place::Child(parent, branch) => self.nodes[parent as usize].children[branch] = id,
        }
    }

    fn add(&mut self, key: Key, value: Option<T>) -> NodeId {
        let node = Node { key, value, children: [None; 2] };
        if let Some(id) = self.free.pop() {
            self.nodes[id as usize] = node;
            return id;
        }
        self.nodes.push(node);
        (self.nodes.len() - 1) as NodeId
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_longest_prefix_wins() {
        let mut ips = AllowedIps::default();
        for (value, text) in ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "::/0", "fd00::/8"]
            .into_iter()
            .enumerate()
        {
            assert_eq!(ips.insert(prefix(text), value), None);
        }
        for (text, value) in [
            ("9.9.9.9", 0),
            ("10.2.0.1", 1),
            ("10.1.2.4", 2),
            ("10.1.2.3", 3),
            ("2001:db8::1", 4),
            ("fd12::1", 5),
        ] {
            assert_eq!(ips.lookup(address(text)), Some(value), "{text}");
        }
        assert_eq!(ips.remove(prefix("10.1.0.0/16")), Some(2));
        assert_eq!(ips.lookup(address("10.1.2.4")), Some(1));
        assert_eq!(ips.lookup(address("10.1.2.3")), Some(3));
    }

    #[test]
    fn families_do_not_mix() {
        let mut ips = AllowedIps::default();
        ips.insert(prefix("::/0"), 6);
        assert_eq!(ips.lookup(address("10.0.0.1")), None);
        ips.insert(prefix("0.0.0.0/0"), 4);
        assert_eq!(ips.lookup(address("::a00:1")), Some(6));
        assert_eq!(ips.lookup(address("::ffff:10.0.0.1")), Some(6), "mapped addresses are IPv6 here");
    }

    #[test]
    fn an_emptied_trie_holds_no_nodes() {
        let mut ips = AllowedIps::default();
        let prefixes: Vec<Prefix> =
            (0..=255u8).map(|i| Prefix::new(Ipv4Addr::new(10, i, i ^ 0x55, 0).into(), 31).unwrap()).collect();
        for _ in 0..10 {
            prefixes.iter().for_each(|&p| assert_eq!(ips.insert(p, ()), None));
            prefixes.iter().for_each(|&p| assert_eq!(ips.remove(p), Some(())));
            assert_eq!(ips.v4.root, None);
            assert_eq!(ips.v4.free.len(), ips.v4.nodes.len());
            assert!(ips.v4.nodes.len() < 512);
        }
    }

    /// Addresses and lengths that meet often: few bits vary.
    fn any_prefix() -> impl Strategy<Value = Prefix> {
        let v4 = (0u32..64, 0u32..4, 0u8..=32)
            .prop_map(|(high, low, len)| (IpAddr::V4(Ipv4Addr::from_bits((high << 26) | low)), len));
        let v6 = (0u128..64, 0u128..4, 0u8..=128)
            .prop_map(|(high, low, len)| (IpAddr::V6(Ipv6Addr::from_bits((high << 122) | low)), len));
        prop_oneof![v4, v6].prop_map(|(address, len)| Prefix::containing(address, len).unwrap())
    }

    #[derive(Debug, Clone)]
    enum Step {
        Insert(Prefix, u8),
        Remove(Prefix),
        RemoveKnown(usize),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (any_prefix(), any::<u8>()).prop_map(|(prefix, value)| Step::Insert(prefix, value)),
            1 => any_prefix().prop_map(Step::Remove),
            1 => any::<usize>().prop_map(Step::RemoveKnown),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        #[test]
        fn lookup_equals_a_list_of_prefixes(
            steps in proptest::collection::vec(any_step(), 1..60),
            probes in proptest::collection::vec(any_prefix(), 30),
        ) {
            let mut ips = AllowedIps::default();
            let mut model: BTreeMap<Prefix, u8> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Insert(prefix, value) => {
                        prop_assert_eq!(ips.insert(prefix, value), model.insert(prefix, value));
                    }
                    Step::Remove(prefix) => prop_assert_eq!(ips.remove(prefix), model.remove(&prefix)),
                    Step::RemoveKnown(pick) if !model.is_empty() => {
                        let prefix = *model.keys().nth(pick % model.len()).unwrap();
                        prop_assert_eq!(ips.remove(prefix), model.remove(&prefix));
                    }
                    Step::RemoveKnown(_) => {}
                }
                for address in probes.iter().map(Prefix::address) {
                    let naive = model.iter().filter(|(prefix, _)| prefix.contains(address));
                    let naive = naive.max_by_key(|(prefix, _)| prefix.len()).map(|(_, &value)| value);
                    prop_assert_eq!(ips.lookup(address), naive);
                }
            }
        }
    }
}
