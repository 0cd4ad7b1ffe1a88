//! What each of our daemon's means is worth: the same daemon without it, beside itself with all of them.

use crate::quantity::Step;
use crate::subject::{Order, SubjectKind};
use crate::tuning::Tuning;

/// What is measured of each.
pub(crate) const STEPS: [Step; 5] = [Step::Tcp1, Step::Calls, Step::Udp64, Step::Ping, Step::Ping20];

/// All offloads but one, by the name of the one that is off.
const OFFLOADS: [&str; 6] = [
    "none",
    // Without TSO and USO.
    "tun-gro,udp-gro,udp-gso",
    // Without merging what is written to TUN.
    "tso,uso,udp-gro,udp-gso",
    // Without UDP_GRO.
    "tso,uso,tun-gro,udp-gso",
    // Without UDP_SEGMENT.
    "tso,uso,tun-gro,udp-gro",
    // Without USO alone.
    "tso,tun-gro,udp-gro,udp-gso",
];

/// The raw link, and on each back end everything, and everything but one thing.
pub(crate) fn orders() -> Vec<Order> {
    let mut orders = vec![Order::from(SubjectKind::Raw)];
    let some = |value: &str| Some(value.to_owned());
    for kind in [SubjectKind::Uring, SubjectKind::Poll] {
        let mut tunings = vec![Tuning::default()];
        tunings.extend(OFFLOADS.map(|on| Tuning { offloads: some(on), ..Tuning::default() }));
        tunings.push(Tuning { crypto: some("portable"), ..Tuning::default() });
        tunings.push(Tuning { workers: some("2"), ..Tuning::default() });
        tunings.push(Tuning { spin_us: some("50"), ..Tuning::default() });
        orders.extend(tunings.into_iter().map(|tuning| Order { kind, tuning }));
    }
    orders
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_differs_from_every_other() {
        let names: Vec<_> = orders().iter().map(Order::name).collect();
        let different: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(different.len(), names.len(), "{names:?}");
        assert!(names.contains(&"poll offloads=tso,uso,tun-gro,udp-gso".to_owned()), "{names:?}");
    }
}
