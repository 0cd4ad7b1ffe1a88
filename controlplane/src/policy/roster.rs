//! Who the members are at the moment, and what their names and addresses mean.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ringmesh_tunnel::{
    ip::Prefix,
    netmap::{Member, MemberKind},
};

/// What names mean now: the members of the network. Their groups are of no matter here, as a file gives them anew.
#[derive(Debug, Clone, Default)]
pub struct Roster {
    /// Every member, stock devices and relays included.
    pub members: Vec<Member>,
}

/// A roster by names and by addresses. Members are their places in it.
#[derive(Debug)]
pub(super) struct Index<'a> {
    pub(super) members: &'a [Member],
    names: BTreeMap<&'a str, usize>,
    /// Names that several members have.
    ambiguous: BTreeSet<&'a str>,
    addresses: Owners,
}

impl<'a> Index<'a> {
    pub(super) fn of(members: &'a [Member]) -> Self {
        let mut names = BTreeMap::new();
        let mut ambiguous = BTreeSet::new();
        for (place, member) in members.iter().enumerate() {
            if names.insert(member.name.as_str(), place).is_some() {
                ambiguous.insert(member.name.as_str());
            }
        }
        Self { members, names, ambiguous, addresses: Owners::of(members) }
    }

    /// The member of a name, and whether others have the name too.
    pub(super) fn named(&self, name: &str) -> Option<(usize, bool)> {
        self.names.get(name).map(|place| (*place, self.ambiguous.contains(name)))
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &'a str> {
        self.names.keys().copied()
    }

    pub(super) const fn addresses(&self) -> &Owners {
        &self.addresses
    }
}

/// Which members have which addresses, their own and those of their routes.
#[derive(Debug, Default)]
pub(super) struct Owners(BTreeMap<Prefix, Vec<usize>>);

impl Owners {
    pub(super) fn of(members: &[Member]) -> Self {
        let mut owners: BTreeMap<Prefix, Vec<usize>> = BTreeMap::new();
        for (place, member) in members.iter().enumerate() {
            for prefix in member.allowed_ips() {
                let these = owners.entry(prefix).or_default();
                if these.last() != Some(&place) {
                    these.push(place);
                }
            }
        }
        Self(owners)
    }

    /// To whom packets to an address go: the members with the longest range that holds it, as in routing.
    pub(super) fn of_address(&self, address: IpAddr) -> &[usize] {
        let width = Prefix::host(address).len();
        let ranges = (0..=width).rev().filter_map(|len| Prefix::containing(address, len).ok());
        ranges.into_iter().find_map(|range| self.0.get(&range)).map_or(&[], Vec::as_slice)
    }

    /// Everybody with an address in a range, once for each range of theirs that shares one with it.
    pub(super) fn within(&self, range: Prefix) -> impl Iterator<Item = (Prefix, usize)> + '_ {
        let around = (0..range.len()).filter_map(move |len| Prefix::containing(range.address(), len).ok());
        let around = around.filter_map(|outer| self.0.get_key_value(&outer));
        // Ranges are ordered by address, then length: what lies inside follows in one piece.
        let inside = self.0.range(range..).take_while(move |(inner, _)| range.covers(inner));
        around.chain(inside).flat_map(|(prefix, members)| members.iter().map(|member| (*prefix, *member)))
    }
}

/// Whether a member takes and sends packets of its own: relays only pass on what others sealed.
pub(super) const fn takes_packets(member: &Member) -> bool {
    !member.relay
}

/// Whether a member judges packets by the policy: stock devices know of none.
pub(super) const fn has_filter(member: &Member) -> bool {
    matches!(member.kind, MemberKind::Mesh)
}
