//! Cutting a member's addresses into parts that rules treat alike.

use ringmesh_tunnel::ip::Prefix;
use std::net::IpAddr;

/// Ranges without those that lie in another one.
pub(super) fn disjoint(ranges: impl IntoIterator<Item = Prefix>) -> Vec<Prefix> {
    let mut all: Vec<Prefix> = ranges.into_iter().collect();
    // Ordered by address, then length, whatever holds a range comes before it, and nothing else comes between.
    all.sort_unstable();
    all.dedup_by(|next, kept| kept.covers(next));
    all
}

/// Cuts a range so that no part of it has only a part in one of `cuts`, into as few parts as there are.
pub(super) fn cut(range: Prefix, cuts: &[Prefix], parts: &mut Vec<Prefix>) {
    let inside: Vec<Prefix> = cuts.iter().copied().filter(|cut| range.covers(cut) && *cut != range).collect();
    match halves(range).filter(|_| !inside.is_empty()) {
        Some(halves) => halves.into_iter().for_each(|half| cut(half, &inside, parts)),
        None => parts.push(range),
    }
}

/// The two halves of a range; none of a single address.
fn halves(range: Prefix) -> Option<[Prefix; 2]> {
    let longer = range.len().checked_add(1)?;
    let upper = match range.address() {
        IpAddr::V4(v4) => {
            IpAddr::V4((v4.to_bits() | 1_u32.checked_shl(32_u32.checked_sub(longer.into())?)?).into())
        }
        IpAddr::V6(v6) => {
            IpAddr::V6((v6.to_bits() | 1_u128.checked_shl(128_u32.checked_sub(longer.into())?)?).into())
        }
    };
    Some([Prefix::new(range.address(), longer).ok()?, Prefix::new(upper, longer).ok()?])
}

/// Joins halves to wholes, so that people read as few ranges as there can be. The ranges do not overlap.
pub(super) fn join(parts: &mut Vec<Prefix>) {
    parts.sort_unstable();
    let mut joined: Vec<Prefix> = Vec::with_capacity(parts.len());
    for part in parts.drain(..) {
        let mut whole = part;
        while let Some(sibling) = joined.last().copied() {
            let Some(shorter) = whole.len().checked_sub(1) else { break };
            let parent = Prefix::containing(whole.address(), shorter).ok();
            let Some(parent) = parent.filter(|parent| halves(*parent) == Some([sibling, whole])) else {
                break;
            };
            joined.pop();
            whole = parent;
        }
        joined.push(whole);
    }
    *parts = joined;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn cut_all(range: &str, cuts: &[&str]) -> Vec<String> {
        let cuts: Vec<Prefix> = cuts.iter().map(|cut| prefix(cut)).collect();
        let mut parts = Vec::new();
        cut(prefix(range), &cuts, &mut parts);
        parts.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_range_is_cut_only_where_it_must() {
        assert_eq!(cut_all("10.0.0.0/8", &[]), ["10.0.0.0/8"]);
        assert_eq!(cut_all("10.0.0.0/8", &["10.0.0.0/8", "0.0.0.0/0", "11.0.0.0/9", "::/0"]), ["10.0.0.0/8"]);
        assert_eq!(cut_all("10.0.0.0/30", &["10.0.0.2/32"]), ["10.0.0.0/31", "10.0.0.2/32", "10.0.0.3/32"]);
        assert_eq!(cut_all("fd00::/127", &["fd00::1/128"]), ["fd00::/128", "fd00::1/128"]);
        assert_eq!(cut_all("0.0.0.0/0", &["0.0.0.0/32"]).len(), 33);
        assert_eq!(cut_all("::/0", &["::/128"]).len(), 129);
    }

    #[test]
    fn ranges_in_others_go() {
        let ranges =
            ["10.1.0.0/16", "10.0.0.0/8", "10.1.2.3/32", "fd00::/8", "::/0", "10.0.0.0/8"].map(prefix);
        assert_eq!(disjoint(ranges), ["10.0.0.0/8", "::/0"].map(prefix));
    }

    proptest! {
        #[test]
        fn parts_join_to_what_was_cut(
            address: u32, len in 0_u8..=32,
            cuts in proptest::collection::vec((any::<u32>(), 0_u8..=32), 0..8),
        ) {
            let of = |address: u32, len| Prefix::containing(IpAddr::V4(address.into()), len).unwrap();
            let range = of(address, len);
            let keep = u32::MAX.checked_shr(len.into()).unwrap_or(0);
            // Cuts that lie inside, else most would do nothing.
            let cuts: Vec<Prefix> =
                cuts.into_iter().map(|(cut, len)| of(address & !keep | cut & keep, len)).collect();
            let mut parts = Vec::new();
            cut(range, &cuts, &mut parts);
            for cut in &cuts {
                prop_assert!(parts.iter().all(|part| cut.covers(part) || !cut.overlaps(part)));
            }
            join(&mut parts);
            prop_assert_eq!(parts, vec![range]);
        }
    }
}
