//! A tunnel's filter: how it is given one, asks it, and reports.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use std::sync::Arc;

use ringmesh_aead::Cipher;

use crate::drop_reason::DropReason;
use crate::filter::{Filter, FilterReport, Pass, Passage};
use crate::time::Now;
use crate::tunnel::{Slot, Tunnel};

impl<C: Cipher> Tunnel<C> {
    /// Judges packets by another filter from now on; a new tunnel has [`Filter::deny_all`].
    ///
    /// The next packet of each flow is judged anew, as its opening; packets that are held are when they are released. A filter
    /// equal to the one in force changes nothing.
    pub fn apply_filter(&mut self, filter: Arc<Filter>, now: Now) {
        self.gate.apply(filter, now.monotonic);
    }

    /// What the filter let pass and denied so far. Looks at each flow: for people and metrics, not for each packet.
    #[must_use]
    pub fn filter_report(&self) -> FilterReport {
        let mut report = self.gate.report();
        let flows = self.peers.iter().map(|(_, peer)| (peer.id, self.gate.count(&peer.flows) as u64));
        report.flows = flows.collect();
        report
    }

    /// Judges a packet to or from the peer in `slot`, whose address in it is known to be its own.
    #[inline]
    pub(crate) fn judge(&mut self, slot: Slot, passage: Passage<'_>, now: Now) -> Result<Pass, DropReason> {
        let peer = self.peers.get_mut(slot).ok_or(DropReason::PeerRemoved)?;
        self.gate.judge(peer.id, &mut peer.flows, passage, now.monotonic)
    }
}
