//! What this node is an authority for: the network's names, and the reverse names of its pools.
//!
//! A zone is made once of a network map and never changes. Looking a name up walks a sorted map: neither a zone of ten
//! thousand names nor a strange query makes it slow.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};
use std::ops::Bound;

use hickory_proto::rr::{
    Name, RData, RecordType,
    rdata::{A, AAAA, HINFO, NS, PTR, SOA},
};
use ringmesh_tunnel::{UnixTime, ip::Prefix, netmap::NetworkMap};

use super::reverse::{self, Reverse};

/// How long an answer may be kept, seconds: names follow the map, which changes at any time.
pub(super) const ANSWER_TTL: u32 = 10;
/// How long it may be kept that there is no answer, seconds: not at all (RFC 2308 section 5). Asking again costs nothing on
/// the same machine, and a node that joins is found at once, also by who has just asked in vain.
pub(super) const NEGATIVE_TTL: u32 = 0;
/// The most names that the reverse name of one address leads to.
const REVERSE_NAMES_MAX: usize = 4;

// What a secondary server would go by (RFC 1912 §2.2); there is none, so these are only usual values, seconds.
const REFRESH: i32 = 3600;
const RETRY: i32 = 600;
const EXPIRE: i32 = 86_400;

/// The names that the network map gives, as DNS asks for them.
///
/// The default one has no name at all: an authority for nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Zone {
    origin: Option<Origin>,
    names: BTreeMap<Key, Addresses>,
    /// Whose an address of the pools is.
    owners: BTreeMap<IpAddr, Vec<Name>>,
    /// Ranges whose reverse names are ours, each cut at an octet or nibble.
    reverse: Vec<Prefix>,
}

/// The name that all names are below, and what is known of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Origin {
    text: String,
    key: Key,
    labels: usize,
    /// This node, which answers.
    server: Name,
    soa: SOA,
}

/// Labels from the root on, each with its length in front, in lower case: names below a name begin with its key, and
/// stand together.
type Key = Box<[u8]>;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Addresses {
    ipv4: Vec<Ipv4Addr>,
    ipv6: Vec<Ipv6Addr>,
}

/// What a zone is made of.
pub(super) struct Contents<'a, M, R> {
    /// The name of the zone.
    pub(super) zone: &'a str,
    /// Where the network's addresses are from.
    pub(super) pools: &'a [Prefix],
    /// What this node is called in the zone.
    pub(super) own: Option<&'a str>,
    /// Counts the versions of the zone.
    pub(super) serial: u32,
    /// Members with their addresses, each name once.
    pub(super) members: M,
    /// Further names: one goes before a member of the same name, and the first of two. Whoever may join chooses a name; what
    /// the policy says of one is the network's.
    pub(super) records: R,
}

/// What a zone has for a name and a type.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Lookup<'a> {
    /// The name is not below any name of ours.
    Elsewhere,
    /// Records, all owned by the name that was asked for.
    Found(Vec<RData>),
    /// The name exists, and has nothing of this type (RFC 2308 §2.2).
    NoData(Apex<'a>),
    /// There is no such name, nor one below it.
    NoName(Apex<'a>),
}

/// The zone that a negative answer comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Apex<'a> {
    /// How many labels of the asked name, from its end, are the zone's name.
    pub(super) labels: usize,
    pub(super) soa: &'a SOA,
}

impl Zone {
    /// Makes the zone that `map` gives at `now`: members and names in force, below the name `zone`; and the reverse names of
    /// `pools`. If this node's own membership is not in force there are no names; if `zone` is no name there is no zone.
    pub(crate) fn of_map(map: &NetworkMap, zone: &str, pools: &[Prefix], now: UnixTime) -> Self {
        let me = map.me().filter(|_| map.in_force(now));
        let members = me.into_iter().chain(map.peers(now)).map(|member| {
            let addresses = member.ipv4.map(IpAddr::from).into_iter().chain([member.ipv6.into()]);
            (member.name.as_str(), addresses.collect())
        });
        let records = map.names(now).map(|record| (record.name.as_str(), record.addresses.clone()));
        // Serials wrap (RFC 1982), revisions do not come that far.
        let durable = map.position().map_or(0, |position| position.durable);
        let serial = u32::try_from(durable & u64::from(u32::MAX)).unwrap_or(0);
        let own = me.map(|member| member.name.as_str());
        Self::new(Contents { zone, pools, own, serial, members, records })
    }

    /// Makes a zone of its contents.
    pub(super) fn new<'a, M, R>(contents: Contents<'a, M, R>) -> Self
    where
        M: Iterator<Item = (&'a str, Vec<IpAddr>)>,
        R: Iterator<Item = (&'a str, Vec<IpAddr>)>,
    {
        let Contents { zone, pools, own, serial, members, records } = contents;
        let Some(origin) = Origin::new(zone, own, serial) else { return Self::default() };
        let reverse = pools.iter().flat_map(reverse::cut).collect::<BTreeSet<_>>().into_iter().collect();
        let mut made =
            Self { origin: Some(origin), names: BTreeMap::new(), owners: BTreeMap::new(), reverse };
        let records: Vec<(&str, Vec<IpAddr>)> = records.collect();
        let reserved: BTreeSet<Key> = records.iter().map(|(name, _)| below_zone(name)).collect();
        for (name, addresses) in members.filter(|(name, _)| !reserved.contains(&below_zone(name))) {
            made.add(name, &addresses, pools, |_| true);
        }
        // An address leads to the member who has it, not to that member's other names.
        let taken: BTreeSet<IpAddr> = made.owners.keys().copied().collect();
        for (name, addresses) in records {
            made.add(name, &addresses, pools, |address| !taken.contains(address));
        }
        made
    }

    /// Adds a name below the zone, unless it is there or too long to be a name; addresses that `reverses` get a reverse name.
    fn add(
        &mut self,
        name: &str,
        addresses: &[IpAddr],
        pools: &[Prefix],
        reverses: impl Fn(&IpAddr) -> bool,
    ) {
        let Some(origin) = &self.origin else { return };
        let Some(full) = full_name(&format!("{name}.{}", origin.text)) else { return };
        let Entry::Vacant(place) = self.names.entry(below_zone(name)) else { return };
        let mut held = Addresses::default();
        for address in addresses {
            match address {
                IpAddr::V4(address) => held.ipv4.push(*address),
                IpAddr::V6(address) => held.ipv6.push(*address),
            }
            if reverses(address) && pools.iter().any(|pool| pool.contains(*address)) {
                let names = self.owners.entry(*address).or_default();
                if names.len() < REVERSE_NAMES_MAX && !names.contains(&full) {
                    names.push(full.clone());
                }
            }
        }
        place.insert(held);
    }

    /// The name that all names are below, without a dot at the end; empty if there is none.
    pub(crate) fn name(&self) -> &str {
        self.origin.as_ref().map_or("", |origin| origin.text.as_str())
    }

    /// How many names it has, without reverse names.
    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    /// The reverse zones that it is an authority for, without a dot at the end: `64.100.in-addr.arpa`, ...
    pub(crate) fn reverse_zones(&self) -> impl Iterator<Item = String> + '_ {
        self.reverse.iter().map(reverse::name)
    }

    /// All names, in full and without a dot at the end, with their addresses, sorted by the labels from the root on.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = (String, Vec<IpAddr>)> + '_ {
        self.names.iter().map(|(key, addresses)| {
            let mut labels = labels(key);
            labels.reverse();
            let name =
                labels.iter().map(|label| String::from_utf8_lossy(label)).collect::<Vec<_>>().join(".");
            let ipv4 = addresses.ipv4.iter().copied().map(IpAddr::from);
            let ipv6 = addresses.ipv6.iter().copied().map(IpAddr::from);
            (format!("{name}.{}", self.name()), ipv4.chain(ipv6).collect())
        })
    }

    /// Looks up what there is of type `kind` at `name`, whose labels may have any case and any bytes.
    pub(super) fn lookup(&self, name: &Name, kind: RecordType) -> Lookup<'_> {
        let Some(origin) = &self.origin else { return Lookup::Elsewhere };
        let asked = key(name.iter().rev());
        if let Some(below) = asked.strip_prefix(&*origin.key) {
            return self.forward_lookup(origin, below, kind);
        }
        match Reverse::read(name.iter().rev()) {
            Some(asked) => self.reverse_lookup(origin, &asked, kind),
            None => Lookup::Elsewhere,
        }
    }

    fn forward_lookup<'a>(&'a self, origin: &'a Origin, below: &[u8], kind: RecordType) -> Lookup<'a> {
        let apex = Apex { labels: origin.labels, soa: &origin.soa };
        if below.is_empty() {
            return origin.at_apex(apex, kind);
        }
        let Some(addresses) = self.names.get(below) else {
            let from = (Bound::Excluded(below), Bound::Unbounded);
            let next = self.names.range::<[u8], _>(from).next();
            let exists = next.is_some_and(|(key, _)| key.starts_with(below));
            return if exists { Lookup::NoData(apex) } else { Lookup::NoName(apex) };
        };
        let ipv4 = addresses.ipv4.iter().map(|address| RData::A(A(*address)));
        let ipv6 = addresses.ipv6.iter().map(|address| RData::AAAA(AAAA(*address)));
        found(apex, kind, ipv4.chain(ipv6))
    }

    fn reverse_lookup<'a>(&'a self, origin: &'a Origin, asked: &Reverse, kind: RecordType) -> Lookup<'a> {
        let Some(zone) = self.reverse.iter().find(|zone| zone.covers(&asked.range)) else {
            return Lookup::Elsewhere;
        };
        let apex = Apex { labels: reverse::labels(zone), soa: &origin.soa };
        if !asked.whole {
            return Lookup::NoName(apex);
        }
        let is_apex = asked.range == *zone;
        let owners = self.owners.get(&asked.range.address()).filter(|_| asked.range.is_host());
        match owners {
            // A zone of a single address has its pointer where it has its start of authority.
            Some(owners) if !(is_apex && matches!(kind, RecordType::SOA | RecordType::NS)) => {
                found(apex, kind, owners.iter().map(|name| RData::PTR(PTR(name.clone()))))
            }
            _ if is_apex => origin.at_apex(apex, kind),
            _ => {
                let mut after = self.owners.range(asked.range.address()..);
                let exists = after.next().is_some_and(|(address, _)| asked.range.contains(*address));
                if exists { Lookup::NoData(apex) } else { Lookup::NoName(apex) }
            }
        }
    }
}

impl Origin {
    /// `None` if `zone` is no name, or the root's: nobody gives us the whole name space.
    fn new(zone: &str, own: Option<&str>, serial: u32) -> Option<Self> {
        let text = zone.strip_suffix('.').unwrap_or(zone).to_ascii_lowercase();
        let apex = full_name(&text)?;
        let server = own.and_then(|own| full_name(&format!("{own}.{text}"))).unwrap_or_else(|| apex.clone());
        let person = full_name(&format!("hostmaster.{text}")).unwrap_or_else(|| apex.clone());
        let soa = SOA::new(server.clone(), person, serial, REFRESH, RETRY, EXPIRE, NEGATIVE_TTL);
        Some(Self { key: key(apex.iter().rev()), labels: apex.iter().len(), text, server, soa })
    }

    /// What there is at a zone's own name.
    fn at_apex<'a>(&self, apex: Apex<'a>, kind: RecordType) -> Lookup<'a> {
        found(apex, kind, [RData::SOA(self.soa.clone()), RData::NS(NS(self.server.clone()))].into_iter())
    }
}

/// What a name has of a type, of `all` there is. To `ANY` there is one answer that says nothing (RFC 8482 §4.2).
fn found(apex: Apex<'_>, kind: RecordType, all: impl Iterator<Item = RData>) -> Lookup<'_> {
    let records = if kind == RecordType::ANY {
        vec![RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new()))]
    } else {
        all.filter(|data| data.record_type() == kind).collect()
    };
    if records.is_empty() { Lookup::NoData(apex) } else { Lookup::Found(records) }
}

/// The name that `text`, letters, digits, hyphens and dots without one at the end, stands for.
fn full_name(text: &str) -> Option<Name> {
    let labels = || text.split('.').map(str::as_bytes);
    let plain = |label: &[u8]| label.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-');
    labels().all(|label| (1..=63).contains(&label.len()) && plain(label)).then_some(())?;
    Name::from_labels(labels()).ok()
}

/// The key of labels that come from the root on.
fn key<'a>(labels: impl Iterator<Item = &'a [u8]>) -> Key {
    let mut key = Vec::new();
    for label in labels {
        // No label is longer than 63 bytes.
        key.push(u8::try_from(label.len()).unwrap_or(u8::MAX));
        key.extend(label.iter().map(u8::to_ascii_lowercase));
    }
    key.into()
}

/// The key of a name as it is below the zone.
fn below_zone(name: &str) -> Key {
    key(name.rsplit('.').map(str::as_bytes))
}

/// The labels of a key, from the root on.
fn labels(mut key: &[u8]) -> Vec<&[u8]> {
    let mut labels = Vec::new();
    while let Some((len, rest)) = key.split_first() {
        let Some((label, rest)) = rest.split_at_checked(usize::from(*len)) else { break };
        labels.push(label);
        key = rest;
    }
    labels
}
