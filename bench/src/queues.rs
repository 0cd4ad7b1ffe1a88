//! What the length of the TUN device's queue does: a short one drops trains of inner datagrams, a long one makes every packet
//! wait behind what is in it.

use crate::quantity::Step;
use crate::subject::{Order, SubjectKind};
use crate::tuning::Tuning;

/// What is measured of each.
pub(crate) const STEPS: [Step; 5] = [Step::Tcp1, Step::Tcp4, Step::Udp64, Step::Overload, Step::Loaded];

/// The raw link, and our daemons with each length.
pub(crate) fn orders(lengths: &[u32]) -> Vec<Order> {
    let ours = lengths.iter().map(|length| Order {
        kind: SubjectKind::Uring,
        tuning: Tuning { txqueuelen: Some(*length), ..Tuning::default() },
    });
    std::iter::once(Order::from(SubjectKind::Raw)).chain(ours).collect()
}
