//! From what TUN gave to sealed trains: which packets go together.
//!
//! All segments of a super-packet share one decision. Packets of one peer that are equally long once padded, or of which the
//! last is shorter, are sealed as one run and leave as one train, whichever flow they belong to: their order within a
//! peer stays, between peers it may change within a turn.

use ringmesh_aead::Cipher;
use ringmesh_io::{Head, MAX_PACKETS, Outbox, SuperPacket};
use ringmesh_tunnel::{Hop, MAX_RUN, Now, Outbound, Packet, Route, Tunnel, message::MAX_OVERHEAD};

use super::{LinkDrops, send_by_link};
use crate::{fallback::Links, plane::Traffic};

/// Where the headers of a run's segments are written. Made once, used for every run.
#[derive(Debug)]
pub(super) struct Heads(Box<[Head]>);

impl Heads {
    pub(super) fn new() -> Self {
        Self(vec![Head::new(); MAX_RUN].into_boxed_slice())
    }
}

/// Where what was sealed goes, and what counts it.
pub(super) struct Ways<'a, C: Cipher> {
    pub(super) tunnel: &'a mut Tunnel<C>,
    pub(super) outbox: &'a mut Outbox,
    pub(super) links: &'a mut Links,
    pub(super) link_drops: &'a mut LinkDrops,
    pub(super) traffic: &'a mut Traffic,
    pub(super) outbox_full: &'a mut u64,
    pub(super) now: Now,
}

/// Packets of one peer, by their places in what TUN gave.
struct Run {
    members: heapless::Vec<(u16, u32), MAX_RUN>,
    /// Bytes of each but the last, padded.
    padded: usize,
    /// Bytes of all, not padded.
    bytes: usize,
    /// The last one is shorter.
    closed: bool,
}

impl<C: Cipher> Ways<'_, C> {
    /// Decides about each packet, and seals those that may go.
    pub(super) fn send(&mut self, packets: &[SuperPacket<'_>], heads: &mut Heads) {
        let mut routes = heapless::Vec::<Option<Route>, MAX_PACKETS>::new();
        for packet in packets.iter().take(MAX_PACKETS) {
            let route = self.tunnel.route(packet.whole(), packet.segments(), self.now).ok();
            // Cannot fail: there are not more packets than that.
            let _ = routes.push(route);
        }
        for index in 0..routes.len() {
            let Some(route) = routes[index] else { continue };
            let mut run = Run::new();
            for other in index..routes.len() {
                if routes[other] == Some(route) {
                    routes[other] = None;
                    self.collect(packets, other, route, &mut run, heads);
                }
            }
            self.seal(packets, route, &mut run, heads);
        }
    }

    /// Adds the segments of a packet to the run, sealing it whenever the next one does not fit.
    fn collect(
        &mut self,
        packets: &[SuperPacket<'_>],
        index: usize,
        route: Route,
        run: &mut Run,
        heads: &mut Heads,
    ) {
        let packet = &packets[index];
        for segment in 0..packet.segments() {
            let len = packet.segment_len(segment);
            if !run.fits(len) {
                self.seal(packets, route, run, heads);
            }
            run.add(index as u16, segment as u32, len);
        }
    }

    /// Seals a run into the outbox, and empties it.
    fn seal(&mut self, packets: &[SuperPacket<'_>], route: Route, run: &mut Run, heads: &mut Heads) {
        let count = run.members.len();
        if count == 0 {
            return;
        }
        let (bytes, room) = (run.bytes, run.bytes + count * MAX_OVERHEAD);
        let Some(mut train) = self.outbox.train(room) else {
            *self.outbox_full += count as u64;
            run.clear();
            return;
        };
        let mut pieces = heapless::Vec::<Packet<'_>, MAX_RUN>::new();
        for ((index, segment), head) in run.members.iter().zip(&mut heads.0) {
            let (head, rest) = packets[usize::from(*index)].segment(*segment as usize, head);
            // Cannot fail: there are not more members than that.
            let _ = pieces.push(Packet { head, rest });
        }
        run.clear();
        match self.tunnel.seal_run(route, &pieces, &mut train, self.now) {
            Ok(Outbound::Send { len, stride, to: Hop::Udp(to) }) => train.commit_train(len, stride, to),
            Ok(Outbound::Send { len, stride, to: Hop::Link(link) }) => {
                for (datagram, piece) in train[..len].chunks(stride).zip(&pieces) {
                    if send_by_link(self.links, self.link_drops, link, datagram) {
                        self.traffic.sent_packets += 1;
                        self.traffic.sent_bytes += piece.len() as u64;
                    }
                }
                return;
            }
            Ok(Outbound::Held) => {}
            Err(_) => return,
        }
        self.traffic.sent_packets += count as u64;
        self.traffic.sent_bytes += bytes as u64;
    }
}

impl Run {
    const fn new() -> Self {
        Self { members: heapless::Vec::new(), padded: 0, bytes: 0, closed: false }
    }

    /// Whether a packet of this length may be the next.
    fn fits(&self, len: usize) -> bool {
        self.members.is_empty()
            || !self.closed && !self.members.is_full() && len.next_multiple_of(16) <= self.padded
    }

    fn add(&mut self, index: u16, segment: u32, len: usize) {
        let padded = len.next_multiple_of(16);
        if self.members.is_empty() {
            self.padded = padded;
        }
        self.closed = padded < self.padded;
        self.bytes += len;
        // Cannot fail: it fits.
        let _ = self.members.push((index, segment));
    }

    fn clear(&mut self) {
        self.members.clear();
        (self.padded, self.bytes, self.closed) = (0, 0, false);
    }
}
