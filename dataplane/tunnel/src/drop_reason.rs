//! Why a packet or datagram went no further: the metric label, the status row and the test assertion in one.

use std::fmt;

use crate::filter::Direction;

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// The reason for which a packet or datagram, or word of one, was dropped. Never an error and never a reply: a
        /// stranger learns nothing, we count. The protocol counts its own; the node adds those of the queues and back ends
        /// around it, so that there is one list.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl DropReason {
            /// Every reason there is, in the order of their counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name used as a metric label and in status tables.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

impl DropReason {
    /// Whether the packet filter dropped the packet: what was neither damaged nor in want of a way, but not to pass.
    #[must_use]
    pub const fn is_of_filter(self) -> bool {
        (self as usize) >= (Self::Denied as usize) && (self as usize) <= (Self::FlowTableFull as usize)
    }
}

drop_reasons! {
    /// Not an IPv4 or IPv6 packet with a whole header and a truthful length.
    MalformedPacket = "malformed_packet",
    /// No peer has an allowed address range with this destination.
    NoAllowedIp = "no_allowed_ip",
    /// The peer has neither a confirmed endpoint nor a candidate.
    NoPath = "no_path",
    /// The caller's buffer cannot hold the sealed packet.
    BufferTooSmall = "buffer_too_small",
    /// The oldest of too many packets held for one peer while it had no session.
    HeldTooMany = "held_too_many",
    /// A packet held for a peer that did not answer for 90 s.
    PeerUnreachable = "peer_unreachable",
    /// A packet or message for a peer that was removed.
    PeerRemoved = "peer_removed",
    /// Neither the size nor the type of any of WireGuard's four messages.
    UnknownMessage = "unknown_message",
    /// The first MAC does not prove knowledge of our public key.
    BadMac1 = "bad_mac1",
    /// No session or handshake of ours has this index.
    UnknownIndex = "unknown_index",
    /// A handshake message beyond what the queue to the handshaker holds.
    HandshakeQueueFull = "handshake_queue_full",
    /// Under load: a handshake message without a proof of its source address; a cookie was sent.
    CookieRequired = "cookie_required",
    /// Under load: more handshake messages than one source address may send.
    RateLimited = "rate_limited",
    /// A handshake message that does not decrypt: forged, or of a peer with another key or preshared key.
    BadHandshake = "bad_handshake",
    /// A Diffie-Hellman result that is zero, because one side's public key has low order.
    LowOrderKey = "low_order_key",
    /// A valid initiation of a key that is not a peer.
    UnknownPeer = "unknown_peer",
    /// An initiation that is not newer than the last one accepted from that peer.
    OldTimestamp = "old_timestamp",
    /// More than 50 initiations a second from one peer.
    InitiationFlood = "initiation_flood",
    /// A handshake result that nobody waits for any more.
    SupersededHandshake = "superseded_handshake",
    /// A cookie reply that answers no message of ours or does not decrypt.
    BadCookieReply = "bad_cookie_reply",
    /// The operating system gave no random bytes.
    NoRandomness = "no_randomness",
    /// No free session index is left on this worker.
    NoFreeIndex = "no_free_index",
    /// A datagram of a session older than 180 s.
    SessionExpired = "session_expired",
    /// A sealed datagram that does not decrypt.
    BadSeal = "bad_seal",
    /// A datagram that was delivered before, or is too old to tell.
    Replayed = "replayed",
    /// An inner source address that does not belong to the sending peer.
    SpoofedSource = "spoofed_source",
    /// No rule of the policy allows the flow that the packet belongs to or would open.
    Denied = "denied",
    /// This node's owner forbids the flow that the packet belongs to or would open.
    DeniedLocally = "denied_locally",
    /// A packet from a peer to an address that is neither this node's nor one of its routes.
    NotForUs = "not_for_us",
    /// A packet to a peer from an address that is neither this node's nor one of its routes.
    NotFromUs = "not_from_us",
    /// A transport's header that is short or untruthful, or IPv6 extension headers that are, or are more than eight.
    UnreadablePacket = "unreadable_packet",
    /// A packet that is to be led elsewhere than its header says: source routes of IPv4, routing headers of IPv6.
    SourceRouted = "source_routed",
    /// A TCP segment with flags that no TCP sends together, or none.
    ImpossibleFlags = "impossible_flags",
    /// A TCP segment of no connection, that asks for none: SYN and ACK, FIN or RST.
    UnaskedSegment = "unasked_segment",
    /// ICMP that asks nothing, and neither answers nor quotes a flow with this peer.
    UnaskedIcmp = "unasked_icmp",
    /// A later fragment of a datagram whose first fragment did not pass in the last 30 s.
    UnaskedFragment = "unasked_fragment",
    /// A first fragment that ends before its transport's header does.
    TinyFragment = "tiny_fragment",
    /// A later fragment that would write over the first.
    OverlappingFragment = "overlapping_fragment",
    /// A flow beyond those that one peer may have, while none of them can make room.
    FlowTableFull = "flow_table_full",
    /// A notice from a peer that is not one of our nodes.
    NoticeFromStock = "notice_from_stock",
    /// A relayed datagram from where no relay of ours is heard.
    UnknownRelay = "unknown_relay",
    /// A notice whose length or body is not what its type demands.
    MalformedNotice = "malformed_notice",
    /// A notice of a type that this version does not know.
    UnknownNotice = "unknown_notice",
    /// A packet that found as many datagrams waiting to be sent as the back end has room for.
    OutboxFull = "outbox_full",
    /// A packet from TUN that was longer than the MTU, asked for an offload that we did not offer, or was to be sealed as one with
    /// packets of other lengths.
    PacketUnfit = "packet_unfit",
    /// A packet that TUN refused: not an IP packet, or the interface is down.
    PacketRefused = "packet_refused",
    /// A datagram longer than any of ours can be.
    DatagramUnfit = "datagram_unfit",
    /// A datagram that the network refused: no route, too long for the device, no socket of that family.
    DatagramRefused = "datagram_refused",
    /// A datagram for a stream that takes less than is sent.
    LinkFull = "link_full",
    /// A datagram for a stream that had ended, of which the tunnel had not heard yet.
    LinkGone = "link_gone",
    /// An event that found the daemon's queue full. No packet is lost, but the answer to a ping may be.
    EventQueueFull = "event_queue_full",
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How often each [`DropReason`] occurred, by direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropCounters {
    /// Of what came from the network, or was to go to TUN.
    inbound: [u64; DropReason::ALL.len()],
    /// Of what came from TUN, or was to go to the network.
    outbound: [u64; DropReason::ALL.len()],
}

impl Default for DropCounters {
    fn default() -> Self {
        Self { inbound: [0; DropReason::ALL.len()], outbound: [0; DropReason::ALL.len()] }
    }
}

impl DropCounters {
    /// How often `reason` occurred, in both directions together.
    #[must_use]
    pub fn get(&self, reason: DropReason) -> u64 {
        self.by(Direction::In, reason) + self.by(Direction::Out, reason)
    }

    /// How often `reason` occurred in one direction.
    #[must_use]
    pub fn by(&self, direction: Direction, reason: DropReason) -> u64 {
        let counts = match direction {
            Direction::In => &self.inbound,
            Direction::Out => &self.outbound,
        };
        counts.get(reason as usize).copied().unwrap_or(0)
    }

    /// Every reason with its count, zeros included.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().map(|&reason| (reason, self.get(reason)))
    }

    /// The sum over all reasons.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.inbound.iter().chain(&self.outbound).sum()
    }

    /// Counts `times` drops.
    pub fn add(&mut self, direction: Direction, reason: DropReason, times: u64) {
        let counts = match direction {
            Direction::In => &mut self.inbound,
            Direction::Out => &mut self.outbound,
        };
        if let Some(count) = counts.get_mut(reason as usize) {
            *count += times;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_of_the_filter_are_told_from_the_others() {
        let of_filter: Vec<&str> = DropReason::ALL
            .iter()
            .filter(|reason| reason.is_of_filter())
            .map(|reason| reason.as_str())
            .collect();
        let expected = [
            "denied",
            "denied_locally",
            "not_for_us",
            "not_from_us",
            "unreadable_packet",
            "source_routed",
            "impossible_flags",
            "unasked_segment",
            "unasked_icmp",
            "unasked_fragment",
            "tiny_fragment",
            "overlapping_fragment",
            "flow_table_full",
        ];
        assert_eq!(of_filter, expected);
    }

    #[test]
    fn every_reason_has_its_own_counter_and_name() {
        let mut counters = DropCounters::default();
        for &reason in DropReason::ALL {
            counters.add(Direction::In, reason, 1);
            counters.add(Direction::Out, reason, 2);
        }
        assert!(counters.iter().all(|(_, count)| count == 3));
        assert!(DropReason::ALL.iter().all(|&reason| counters.by(Direction::Out, reason) == 2));
        let mut names: Vec<_> = DropReason::ALL.iter().map(|reason| reason.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DropReason::ALL.len());
    }
}
