//! Reverse names: addresses written backwards below `in-addr.arpa` and `ip6.arpa` (RFC 1035 §3.5, RFC 3596 §2.5).

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ringmesh_tunnel::ip::Prefix;

/// Labels above the first octet or nibble: `in-addr.arpa` and `ip6.arpa`.
const ARPA_LABELS: usize = 2;
/// Bits that one label of a reverse name stands for.
const OCTET: u8 = 8;
const NIBBLE: u8 = 4;

/// A name below `in-addr.arpa` or `ip6.arpa`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reverse {
    /// What the labels say, from the root on, as far as they can be read.
    pub(super) range: Prefix,
    /// Whether they say nothing but that: no label is left that is no octet or nibble, or one too many.
    pub(super) whole: bool,
}

impl Reverse {
    /// Reads labels that come from the root on; `None` if they are no reverse name, or no more than `in-addr.arpa`.
    pub(super) fn read<'a>(mut labels: impl Iterator<Item = &'a [u8]>) -> Option<Self> {
        let (first, second) = (labels.next()?, labels.next()?);
        if !first.eq_ignore_ascii_case(b"arpa") {
            return None;
        }
        if second.eq_ignore_ascii_case(b"in-addr") {
            return Self::collect(labels, octet, OCTET, |bits, len| {
                // Thirty-two bits at most were collected; they stand at the right end.
                let bits = u32::try_from(bits).ok()?;
                let shift = 32_u32.checked_sub(len.into())?;
                Some(Ipv4Addr::from_bits(bits.checked_shl(shift).unwrap_or(0)).into())
            });
        }
        if second.eq_ignore_ascii_case(b"ip6") {
            return Self::collect(labels, nibble, NIBBLE, |bits, len| {
                let shift = 128_u32.checked_sub(len.into())?;
                Some(Ipv6Addr::from_bits(bits.checked_shl(shift).unwrap_or(0)).into())
            });
        }
        None
    }

    fn collect<'a>(
        labels: impl Iterator<Item = &'a [u8]>,
        value: fn(&[u8]) -> Option<u8>,
        step: u8,
        address: impl Fn(u128, u8) -> Option<IpAddr>,
    ) -> Option<Self> {
        let width = if step == OCTET { 32 } else { 128 };
        let (mut bits, mut len, mut whole) = (0_u128, 0_u8, true);
        for label in labels {
            let Some(part) = value(label).filter(|_| len < width) else {
                whole = false;
                break;
            };
            bits = bits.checked_shl(step.into())? | u128::from(part);
            len = len.checked_add(step)?;
        }
        (len > 0).then_some(())?;
        let range = Prefix::new(address(bits, len)?, len).ok()?;
        Some(Self { range, whole })
    }
}

/// An octet as it is written, in the one way there is: no zeros in front.
fn octet(label: &[u8]) -> Option<u8> {
    let plain = label.iter().all(u8::is_ascii_digit) && (label.len() == 1 || label.first() != Some(&b'0'));
    str::from_utf8(label).ok().filter(|_| plain)?.parse().ok()
}

fn nibble(label: &[u8]) -> Option<u8> {
    let [digit] = label else { return None };
    let value = char::from(*digit).to_digit(16)?;
    u8::try_from(value).ok()
}

/// Cuts a pool at the next octet (IPv4) or nibble (IPv6): the zones whose names are all of the pool, at most 256.
pub(super) fn cut(pool: &Prefix) -> Vec<Prefix> {
    let step = if pool.is_ipv4() { OCTET } else { NIBBLE };
    // A zone has at least one label of its own: nobody's pool is all there is.
    let len = pool.len().max(1).checked_next_multiple_of(step).unwrap_or(pool.len());
    let width = if pool.is_ipv4() { 32 } else { 128 };
    let more = len.saturating_sub(pool.len());
    let zones = 0..1_u128.checked_shl(more.into()).unwrap_or(1);
    let shift = u32::from(u8::saturating_sub(width, len));
    zones
        .filter_map(|zone| {
            let bits = zone.checked_shl(shift).unwrap_or(0);
            let address = match pool.address() {
                IpAddr::V4(base) => Ipv4Addr::from_bits(base.to_bits() | u32::try_from(bits).ok()?).into(),
                IpAddr::V6(base) => Ipv6Addr::from_bits(base.to_bits() | bits).into(),
            };
            Prefix::new(address, len).ok()
        })
        .collect()
}

/// How many labels the reverse name of a range has, which was cut at an octet or nibble.
pub(super) fn labels(range: &Prefix) -> usize {
    let step = if range.is_ipv4() { OCTET } else { NIBBLE };
    usize::from(range.len().checked_div(step).unwrap_or(0)).saturating_add(ARPA_LABELS)
}

/// The reverse name of a range that was cut at an octet or nibble, without a dot at the end.
pub(super) fn name(range: &Prefix) -> String {
    let own = labels(range).saturating_sub(ARPA_LABELS);
    let (parts, end): (Vec<String>, _) = match range.address() {
        IpAddr::V4(address) => (address.octets().iter().map(u8::to_string).collect(), "in-addr.arpa"),
        IpAddr::V6(address) => {
            let nibbles = |octet: u8| [octet >> NIBBLE, octet & 0x0f];
            let parts = address.octets().into_iter().flat_map(nibbles).map(|nibble| format!("{nibble:x}"));
            (parts.collect(), "ip6.arpa")
        }
    };
    let own: Vec<&str> = parts.iter().take(own).rev().map(String::as_str).collect();
    format!("{}.{end}", own.join("."))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(name: &str) -> Option<Reverse> {
        Reverse::read(name.split('.').rev().map(str::as_bytes))
    }

    fn range(text: &str, whole: bool) -> Option<Reverse> {
        Some(Reverse { range: text.parse().unwrap(), whole })
    }

    #[test]
    fn a_reverse_name_is_read_as_far_as_it_makes_sense() {
        assert_eq!(read("7.0.64.100.in-addr.arpa"), range("100.64.0.7/32", true));
        assert_eq!(read("64.100.IN-ADDR.Arpa"), range("100.64.0.0/16", true));
        assert_eq!(read("0.in-addr.arpa"), range("0.0.0.0/8", true));
        assert_eq!(read("x.64.100.in-addr.arpa"), range("100.64.0.0/16", false));
        assert_eq!(read("1.7.0.64.100.in-addr.arpa"), range("100.64.0.7/32", false));
        // Only one way of writing an octet is the name of an address.
        for odd in ["007", "07", "256", "+7", "7-", "", " 7", "0x7"] {
            assert_eq!(read(&format!("{odd}.0.64.100.in-addr.arpa")), range("100.64.0.0/24", false), "{odd}");
        }
        assert_eq!(read("D.f.ip6.arpa"), range("fd00::/8", true));
        assert_eq!(read("10.d.f.ip6.arpa"), range("fd00::/8", false));
        for other in ["arpa", "in-addr.arpa", "ip6.arpa", "alice.mesh", "1.e164.arpa", "x.in-addr.arpa", ""] {
            assert_eq!(read(other), None, "{other}");
        }
    }

    #[test]
    fn pools_are_cut_at_octets_and_nibbles() {
        let zones = |pool: &str| cut(&pool.parse().unwrap()).iter().map(name).collect::<Vec<_>>();
        assert_eq!(zones("10.0.0.0/8"), ["10.in-addr.arpa"]);
        assert_eq!(zones("192.168.7.0/24"), ["7.168.192.in-addr.arpa"]);
        assert_eq!(zones("192.168.7.254/31"), ["254.7.168.192.in-addr.arpa", "255.7.168.192.in-addr.arpa"]);
        assert_eq!(zones("fd00:1::/32"), ["1.0.0.0.0.0.d.f.ip6.arpa"]);
        assert_eq!(zones("fc00::/7"), ["c.f.ip6.arpa", "d.f.ip6.arpa"]);
        let carrier = zones("100.64.0.0/10");
        assert_eq!(carrier.len(), 64);
        assert_eq!(
            (carrier[0].as_str(), carrier[63].as_str()),
            ("64.100.in-addr.arpa", "127.100.in-addr.arpa")
        );
        assert_eq!((zones("0.0.0.0/0").len(), zones("::/0").len()), (256, 16));
    }

    proptest! {
        #[test]
        fn an_address_is_below_exactly_one_zone_of_a_pool_that_has_it(
            bits in any::<u128>(), len in 0_u8..=128, v4 in any::<bool>(), other in any::<u128>()
        ) {
            let address = |bits: u128| -> IpAddr {
                if v4 { Ipv4Addr::from_bits(bits as u32).into() } else { Ipv6Addr::from_bits(bits).into() }
            };
            let pool = Prefix::containing(address(bits), if v4 { len % 33 } else { len }).unwrap();
            let zones = cut(&pool);
            for probe in [address(bits), address(other), address(bits ^ 1)] {
                let own = Prefix::host(probe);
                prop_assert_eq!(read(&name(&own)), Some(Reverse { range: own, whole: true }));
                let covering = zones.iter().filter(|zone| zone.contains(probe)).count();
                prop_assert_eq!(covering, usize::from(pool.contains(probe)));
            }
            for zone in zones {
                let text = name(&zone);
                prop_assert_eq!(text.split('.').count(), labels(&zone));
                prop_assert_eq!(read(&text), Some(Reverse { range: zone, whole: true }));
            }
        }

        #[test]
        fn no_labels_make_it_fail(labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..8), 0..40)) {
            let arpa = [b"arpa".to_vec(), if labels.len() % 2 == 0 { b"ip6".to_vec() } else { b"in-addr".to_vec() }];
            let _ = Reverse::read(arpa.iter().chain(&labels).map(Vec::as_slice));
        }
    }
}
