//! How peers are reached: the tunnel's side of the path engine, and a relay's side of its channels.

use std::net::SocketAddr;

use crate::ip::Prefix;
use crate::key::NodeId;
use crate::notice::{BindRefusal, Notice};
use crate::path::{Carrier, Hop, Link};
use crate::peer::{MAX_NOTICES, QueuedNotice};
use crate::time::Now;
use crate::tunnel::Tunnel;

/// What a caller is to do about links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dial {
    /// Open a stream to a peer; answer with [`Tunnel::link_opened`] or [`Tunnel::link_failed`].
    Open {
        /// To whom.
        peer: NodeId,
        /// The number of one of its [`LinkCandidate`](crate::LinkCandidate)s.
        candidate: u32,
        /// What the stream is to be made of.
        carrier: Carrier,
    },
    /// Close a stream: it is not needed, or nothing comes through it.
    Close {
        /// Which.
        link: Link,
    },
}

/// What a relay answers to a node that asks for a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindAnswer {
    /// There is one.
    Bound {
        /// The asker's name for the pair.
        channel: u32,
        /// Whether the other node is at the relay now. When that changes, the same is said again.
        present: bool,
    },
    /// There is none.
    Refused(BindRefusal),
}

impl Tunnel {
    /// Takes the next wish about links.
    pub fn poll_dial(&mut self) -> Option<Dial> {
        self.dials.pop_front()
    }

    /// A stream that [`Dial::Open`] asked for is there.
    pub fn link_opened(&mut self, _peer: NodeId, _candidate: u32, _link: Link, _now: Now) {}

    /// A stream that [`Dial::Open`] asked for cannot be had now.
    pub fn link_failed(&mut self, _peer: NodeId, _candidate: u32, _now: Now) {}

    /// A stream has ended, whoever opened it.
    pub fn link_closed(&mut self, _link: Link, _now: Now) {}

    /// This machine's addresses or routes changed: every path over UDP is doubted and tried at once, and none is given up.
    pub fn network_changed(&mut self, _now: Now) {}

    /// Tells where this node may be reached besides what its relays see: offered to peers inside sessions, 16 at most.
    pub fn set_own_candidates(&mut self, _candidates: &[SocketAddr]) {}

    /// Tells the network's own ranges: no address in them is a candidate.
    pub fn set_pools(&mut self, _pools: &[Prefix]) {}

    /// Where datagrams to a peer leave this machine at present.
    #[must_use]
    pub fn hop_to(&self, peer: NodeId) -> Option<Hop> {
        let peer = self.peers.get(self.peers.by_id(peer)?)?;
        self.hop(peer.endpoint?)
    }

    /// Answers [`Event::BindRequested`](crate::Event::BindRequested), or tells anew when the other node came or went.
    pub fn answer_bind(&mut self, client: NodeId, target: NodeId, answer: BindAnswer) {
        let notice = match answer {
            BindAnswer::Bound { channel, present } => Notice::Bound { target, channel, present },
            BindAnswer::Refused(refusal) => Notice::BindRefused { target, refusal },
        };
        let Some(slot) = self.peers.by_id(client) else { return };
        let Some(peer) = self.peers.get_mut(slot) else { return };
        if peer.mesh && peer.notices.len() < MAX_NOTICES {
            peer.notices.push_back(QueuedNotice { notice, path: None });
            self.list(slot);
        }
    }

    /// The relay that is heard at `from`.
    pub(crate) fn relay_at(&self, from: Hop) -> Option<NodeId> {
        let relays = self.relays.iter().filter_map(|&slot| self.peers.get(slot));
        relays.into_iter().find(|relay| relay.endpoint == Some(from.into())).map(|relay| relay.id)
    }
}
