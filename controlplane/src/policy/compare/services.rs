//! Sets of protocols and ports: what rules between two members come to, without a part counted twice.

use ringmesh_tunnel::netmap::{PortRange, Protocol, Rule};

use super::Service;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Ports, as ranges that neither touch nor overlap, ascending.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::policy) struct Ports(Vec<PortRange>);

impl Ports {
    /// A rule's list, of which none means all.
    pub(in crate::policy) fn of(ports: &[PortRange]) -> Self {
        if ports.is_empty() {
            return Self(vec![range(0, u16::MAX.into())]);
        }
        let mut all = Self(ports.to_vec());
        all.merge();
        all
    }

    /// Tells whether all of `other` is in it.
    pub(in crate::policy) fn covers(&self, other: &Self) -> bool {
        let inside = |range: &PortRange| {
            self.0.iter().any(|own| own.first() <= range.first() && range.last() <= own.last())
        };
        other.0.iter().all(inside)
    }

    fn is_all(&self) -> bool {
        *self == Self::of(&[])
    }

    fn add(&mut self, other: &Self) {
        let was_empty = self.0.is_empty();
        self.0.extend_from_slice(&other.0);
        if !was_empty && !other.0.is_empty() {
            self.merge();
        }
    }

    fn merge(&mut self) {
        self.0.sort_unstable();
        self.0.dedup_by(|next, kept| {
            let joins = u32::from(next.first()) <= u32::from(kept.last()) + 1;
            if joins {
                *kept = range(kept.first().into(), kept.last().max(next.last()).into());
            }
            joins
        });
    }

    fn minus(&self, other: &Self) -> Self {
        let mut left = Vec::new();
        for own in &self.0 {
            let mut first = u32::from(own.first());
            for gone in other.0.iter().filter(|gone| gone.last() >= own.first() && gone.first() <= own.last())
            {
                if u32::from(gone.first()) > first {
                    left.push(range(first, u32::from(gone.first()) - 1));
                }
                first = first.max(u32::from(gone.last()) + 1);
            }
            if first <= u32::from(own.last()) {
                left.push(range(first, own.last().into()));
            }
        }
        Self(left)
    }

    /// As a rule lists them: none if all.
    fn listed(&self) -> Vec<PortRange> {
        if self.is_all() { Vec::new() } else { self.0.clone() }
    }
}

fn range(first: u32, last: u32) -> PortRange {
    let port =
        |number: u32| u16::try_from(number).expect("invariant: within the ports of the ranges it is made of");
    PortRange::new(port(first), port(last)).expect("invariant: from the lower to the higher port")
}

/// What may be opened between two addresses: protocols, and ports of those that have them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Services {
    tcp: Ports,
    udp: Ports,
    icmp: bool,
    /// Protocols but TCP and UDP, a bit for each. 1 and 58 are here where they are not what rules call ICMP, which is the one over IPv6
    /// and the other over IPv4: only a rule for any protocol allows those.
    others: [u64; 4],
}

impl Services {
    /// What a rule allows.
    pub(super) fn of(rule: &Rule) -> Self {
        let mut services = Self::default();
        match rule.protocol {
            Protocol::Any => services = Self::any(),
            Protocol::Tcp => services.tcp = Ports::of(&rule.ports),
            Protocol::Udp => services.udp = Ports::of(&rule.ports),
            Protocol::Icmp => services.icmp = true,
            Protocol::Number(number) => services.others[usize::from(number / 64)] |= 1 << (number % 64),
        }
        services
    }

    /// Adds others to them.
    pub(super) fn add(&mut self, other: &Self) {
        self.tcp.add(&other.tcp);
        self.udp.add(&other.udp);
        self.icmp |= other.icmp;
        self.others.iter_mut().zip(other.others).for_each(|(own, more)| *own |= more);
    }

    /// Everything.
    fn any() -> Self {
        let mut others = [u64::MAX; 4];
        for ported in [TCP, UDP] {
            others[usize::from(ported / 64)] &= !(1 << (ported % 64));
        }
        Self { tcp: Ports::of(&[]), udp: Ports::of(&[]), icmp: true, others }
    }

    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What is in it and not in `other`.
    pub(super) fn minus(&self, other: &Self) -> Self {
        let mut others = self.others;
        others.iter_mut().zip(other.others).for_each(|(own, gone)| *own &= !gone);
        Self {
            tcp: self.tcp.minus(&other.tcp),
            udp: self.udp.minus(&other.udp),
            icmp: self.icmp && !other.icmp,
            others,
        }
    }

    /// As people read it: each service, and what is to be left out of it. A set that a rule for any protocol left its mark on is one
    /// service, less what is missing.
    pub(super) fn listed(&self) -> Vec<(Service, Vec<Service>)> {
        if self.is_of_any() {
            let missing = Self::any().minus(self);
            let except = missing.listed().into_iter().map(|(service, _)| service).collect();
            return vec![(Service { protocol: Protocol::Any, ports: Vec::new() }, except)];
        }
        let mut services = Vec::new();
        for (protocol, ports) in [(Protocol::Tcp, &self.tcp), (Protocol::Udp, &self.udp)] {
            if !ports.0.is_empty() {
                services.push(Service { protocol, ports: ports.listed() });
            }
        }
        services.extend(self.icmp.then(|| Service { protocol: Protocol::Icmp, ports: Vec::new() }));
        let numbers = (0..=u8::MAX).filter(|number| self.has(*number));
        services
            .extend(numbers.map(|number| Service { protocol: Protocol::Number(number), ports: Vec::new() }));
        services.into_iter().map(|service| (service, Vec::new())).collect()
    }

    /// How many services are listed.
    pub(super) fn count(&self) -> u64 {
        if self.is_of_any() {
            return 1;
        }
        let named = [!self.tcp.0.is_empty(), !self.udp.0.is_empty(), self.icmp].map(u64::from);
        let numbers: u32 = self.others.iter().map(|bits| bits.count_ones()).sum();
        named.iter().sum::<u64>() + u64::from(numbers)
    }

    /// Whether it comes from a rule for any protocol.
    const fn is_of_any(&self) -> bool {
        self.has(1) && self.has(58)
    }

    const fn has(&self, number: u8) -> bool {
        self.others[(number / 64) as usize] >> (number % 64) & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn ranges() -> impl Strategy<Value = Vec<PortRange>> {
        let edge = prop_oneof![8 => 0_u16..40, 1 => u16::MAX - 3..=u16::MAX];
        let one = (edge, 0_u16..6).prop_map(|(a, b)| PortRange::new(a, a.saturating_add(b)).unwrap());
        proptest::collection::vec(one, 1..6)
    }

    fn naive(ranges: &[PortRange]) -> BTreeSet<u16> {
        ranges.iter().flat_map(|range| range.first()..=range.last()).collect()
    }

    proptest! {
        #[test]
        fn ports_are_sets(a in ranges(), b in ranges()) {
            let (sets, expected) = ((Ports::of(&a), Ports::of(&b)), (naive(&a), naive(&b)));
            prop_assert_eq!(naive(&sets.0.0), expected.0.clone());
            prop_assert!(sets.0.0.windows(2).all(|pair| u32::from(pair[0].last()) + 1 < u32::from(pair[1].first())));
            let minus = sets.0.minus(&sets.1);
            prop_assert_eq!(naive(&minus.0), &expected.0 - &expected.1);
            prop_assert_eq!(sets.0.covers(&sets.1), expected.1.is_subset(&expected.0));
            let mut both = sets.0.clone();
            both.add(&sets.1);
            prop_assert_eq!(naive(&both.0), &expected.0 | &expected.1);
        }
    }

    fn rule(protocol: Protocol, ports: &[u16]) -> Rule {
        let ports = ports.iter().map(|port| (*port).into()).collect();
        Rule { sources: vec![], destinations: vec![], protocol, ports }
    }

    fn services(rules: &[Rule]) -> Services {
        let mut services = Services::default();
        rules.iter().for_each(|rule| services.add(&Services::of(rule)));
        assert_eq!(services.count(), services.listed().len() as u64);
        services
    }

    fn text(services: &Services) -> Vec<String> {
        let text = |(service, except): &(Service, Vec<Service>)| {
            let except: Vec<String> = except.iter().map(ToString::to_string).collect();
            format!("{service} but [{}]", except.join(" "))
        };
        services.listed().iter().map(text).collect()
    }

    #[test]
    fn everything_less_something_is_one_service() {
        let any = services(&[rule(Protocol::Any, &[])]);
        assert_eq!(text(&any), ["any but []"]);
        let some = services(&[
            rule(Protocol::Tcp, &[22]),
            rule(Protocol::Udp, &[]),
            rule(Protocol::Icmp, &[]),
            rule(Protocol::Number(47), &[]),
        ]);
        assert_eq!(text(&any.minus(&some)), ["any but [tcp/22 udp icmp 47]"]);
        assert_eq!(text(&some), ["tcp/22 but []", "udp but []", "icmp but []", "47 but []"]);
        assert!(some.minus(&any).is_empty());
        assert!(any.minus(&any).is_empty());
    }
}
