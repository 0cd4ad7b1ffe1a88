//! Between the kernel and the protocol: what arrives is shown to the [`Tunnel`], what it answers goes where it belongs.
//!
//! A packet's verdict is the return value of one call; nothing waits here. Only handshakes, keepalives, notices and released
//! packets come out by [`Tunnel::poll_transmit`], at the end of each turn.
//!
//! What came by links waits in their queue until there is room for its packets in the outbox: a turn takes what fits, and the
//! next one, which then does not wait, goes on from there.

mod runs;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use ringmesh_aead::{Cipher, Key};
use ringmesh_io::{Delivery, Handler, Outbox, SuperPacket, Train};
use ringmesh_tunnel::{DropReason, Event, Hop, Inbound, Link, Now, Tunnel, filter::Direction};
use tokio::sync::mpsc;

use self::runs::{Heads, Ways};
use crate::{
    clock,
    fallback::{Arrival, Batch, Links, SendError},
    handshaker::Handshakes,
    plane::{Command, LinkDrops, Traffic, WorkerReport},
};

/// Datagrams of links that one turn takes: TUN and UDP are not to wait for more.
const LINK_DATAGRAMS_PER_TURN: usize = 256;
/// When TUN takes nothing, it is tried again after this.
const TUN_RETRY: Duration = Duration::from_millis(1);
/// The first byte of a data message: that it was opened shows that its sender has a session.
const DATA: u8 = 4;

/// A protocol state, its queues, and its counters.
#[derive(Debug)]
pub(crate) struct Pipeline<C: Cipher = Key> {
    tunnel: Tunnel<C>,
    handshakes: Handshakes,
    links: Links,
    /// What a link brought and the outbox had no room for yet.
    unfinished: Option<Unfinished>,
    /// When to go on with what links brought, if this turn did not take all of it.
    behind: Option<Instant>,
    commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<Event>,
    traffic: Traffic,
    link_drops: LinkDrops,
    /// Reports that wait for the end of the turn, when the back end's counters are at hand.
    reports: Vec<tokio::sync::oneshot::Sender<WorkerReport>>,
    outbox_full: u64,
    events_lost: u64,
    stopping: bool,
    heads: Heads,
}

/// A batch of a link, of which the first datagrams have been taken.
#[derive(Debug)]
struct Unfinished {
    link: Link,
    batch: Batch,
    taken: usize,
}

impl<C: Cipher> Pipeline<C> {
    pub(crate) fn new(
        tunnel: Tunnel<C>,
        handshakes: Handshakes,
        links: Links,
        commands: mpsc::Receiver<Command>,
        events: mpsc::Sender<Event>,
    ) -> Self {
        Self {
            tunnel,
            handshakes,
            links,
            unfinished: None,
            behind: None,
            commands,
            events,
            traffic: Traffic::default(),
            link_drops: LinkDrops::default(),
            reports: Vec::new(),
            outbox_full: 0,
            events_lost: 0,
            stopping: false,
            heads: Heads::new(),
        }
    }

    /// When the next turn is to end even if nothing arrives.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.behind.or_else(|| self.tunnel.poll_deadline())
    }

    /// Whether the loop is to end.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// Answers those who asked for counters.
    pub(crate) fn answer_reports(&mut self, io: ringmesh_io::Counters) {
        if self.reports.is_empty() {
            return;
        }
        let report = self.report(io, both_clocks(ringmesh_io::Now::read()));
        for asked in self.reports.drain(..) {
            let _ = asked.send(report.clone());
        }
    }

    fn report(&self, io: ringmesh_io::Counters, now: Now) -> WorkerReport {
        let mut dropped = self.tunnel.drops().clone();
        let links = self.link_drops;
        for (direction, reason, times) in [
            (Direction::Out, DropReason::OutboxFull, self.outbox_full),
            (Direction::Out, DropReason::PacketUnfit, io.packets_unfit + links.unfit),
            (Direction::In, DropReason::PacketUnfit, links.unfit_in),
            (Direction::In, DropReason::PacketRefused, io.packets_refused),
            (Direction::In, DropReason::DatagramUnfit, io.datagrams_unfit),
            (Direction::Out, DropReason::DatagramRefused, io.datagrams_refused),
            (Direction::Out, DropReason::LinkFull, links.full),
            (Direction::Out, DropReason::LinkGone, links.gone),
            (Direction::In, DropReason::EventQueueFull, self.events_lost),
        ] {
            dropped.add(direction, reason, times);
        }
        WorkerReport {
            io,
            traffic: self.traffic,
            drops: dropped.iter().filter(|(_, count)| *count > 0).collect(),
            dropped,
            carried: *self.tunnel.carried(),
            handshakes: *self.tunnel.handshakes(),
            peers: self.tunnel.peers(now).collect(),
            filter: self.tunnel.filter_report(),
        }
    }

    fn handle_commands(&mut self, now: Now) {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Apply(peers, filter, installed) => {
                    // No packet is looked at in between, so none sees the one without the other.
                    self.tunnel.apply(&peers, now);
                    self.tunnel.apply_filter(filter, now);
                    let _ = installed.send(());
                }
                Command::Ping(peer, token, sent) => {
                    let _ = sent.send(self.tunnel.ping(peer, token, now));
                }
                Command::ExpireSessions => self.tunnel.expire_sessions(),
                Command::NetworkChanged => self.tunnel.network_changed(now),
                Command::OwnCandidates(candidates) => self.tunnel.set_own_candidates(&candidates),
                Command::Pools(pools) => self.tunnel.set_pools(&pools),
                Command::Report(asked) => self.reports.push(asked),
                Command::Stop => self.stopping = true,
            }
        }
        if self.commands.is_closed() {
            self.stopping = true;
        }
    }

    fn handle_results(&mut self, now: Now) {
        while let Some(result) = self.handshakes.result() {
            self.tunnel.handle_job(result, now);
        }
    }

    /// Takes what links brought and what became of them, as far as the outbox has room for packets.
    fn take_from_links(&mut self, outbox: &mut Outbox, now: Now) {
        // Without any, TUN does not even take what the last turn gave it.
        let wait = if outbox.packet_room() == 0 { TUN_RETRY } else { Duration::ZERO };
        let mut left = LINK_DATAGRAMS_PER_TURN;
        self.behind = None;
        loop {
            if let Some(mut unfinished) = self.unfinished.take()
                && !self.take_batch(&mut unfinished, &mut left, outbox, now)
            {
                self.unfinished = Some(unfinished);
                self.behind = Some(now.monotonic + wait);
                return;
            }
            match self.links.receive() {
                Some(Arrival::Datagrams { link, batch }) => {
                    self.unfinished = Some(Unfinished { link, batch, taken: 0 });
                }
                Some(Arrival::Opened { peer, candidate, link }) => {
                    self.tunnel.link_opened(peer, candidate, link, now);
                }
                Some(Arrival::Failed { peer, candidate }) => self.tunnel.link_failed(peer, candidate, now),
                Some(Arrival::Closed { link }) => self.tunnel.link_closed(link, now),
                None => return,
            }
        }
    }

    /// Opens the datagrams of a batch in place and copies their packets for TUN; tells whether that was all of them.
    fn take_batch(
        &mut self,
        unfinished: &mut Unfinished,
        left: &mut usize,
        outbox: &mut Outbox,
        now: Now,
    ) -> bool {
        let Unfinished { link, batch, taken } = unfinished;
        for datagram in batch.datagrams().skip(*taken) {
            // Asked for first: what was opened cannot be opened again.
            let Some(mut slot) = outbox.packet().filter(|_| *left > 0) else { return false };
            *left -= 1;
            *taken += 1;
            let is_data = datagram.first() == Some(&DATA);
            let Ok(inbound) = self.tunnel.inbound(datagram, Hop::Link(*link), now) else { continue };
            if is_data {
                self.links.confirm(*link);
            } else {
                self.links.used(*link);
            }
            let Inbound::Packet { range, .. } = inbound else { continue };
            let length = range.len();
            let Some((place, packet)) = slot.get_mut(..length).zip(datagram.get(range)) else {
                self.link_drops.unfit_in += 1;
                continue;
            };
            place.copy_from_slice(packet);
            slot.commit(length);
            self.traffic.received_packets += 1;
            self.traffic.received_bytes += length as u64;
        }
        true
    }

    /// Lets out what the tunnel has to say: jobs, datagrams, events. What the outbox has no room for stays in the tunnel.
    fn drain(&mut self, outbox: &mut Outbox, now: Now) {
        while let Some(job) = self.tunnel.poll_job() {
            if let Err(refused) = self.handshakes.jobs.try_send(job) {
                self.tunnel.drop_job(refused.into_inner());
            }
        }
        while let Some(mut slot) = outbox.datagram() {
            let Some(transmit) = self.tunnel.poll_transmit(&mut slot, now) else { break };
            match transmit.to {
                Hop::Udp(to) => slot.commit(transmit.len, to),
                Hop::Link(link) => {
                    send_by_link(&mut self.links, &mut self.link_drops, link, &slot[..transmit.len]);
                }
            }
        }
        while let Some(dial) = self.tunnel.poll_dial() {
            self.links.dial(dial);
        }
        self.links.flush();
        while let Some(event) = self.tunnel.poll_event() {
            if self.events.try_send(event).is_err() {
                self.events_lost += 1;
            }
        }
    }
}

/// Copies a datagram into a link's batch; tells whether it was taken.
fn send_by_link(links: &mut Links, drops: &mut LinkDrops, link: Link, datagram: &[u8]) -> bool {
    match links.send(link, datagram) {
        Ok(()) => return true,
        Err(SendError::Full) => drops.full += 1,
        Err(SendError::Unknown) => drops.gone += 1,
        Err(SendError::Unfit) => drops.unfit += 1,
    }
    false
}

fn both_clocks(now: ringmesh_io::Now) -> Now {
    Now::new(now.monotonic, clock::from_system(now.wall))
}

impl<C: Cipher> Handler for Pipeline<C> {
    fn packets(&mut self, packets: &[SuperPacket<'_>], outbox: &mut Outbox, now: ringmesh_io::Now) {
        let mut ways = Ways {
            tunnel: &mut self.tunnel,
            outbox,
            links: &mut self.links,
            link_drops: &mut self.link_drops,
            traffic: &mut self.traffic,
            outbox_full: &mut self.outbox_full,
            now: both_clocks(now),
        };
        ways.send(packets, &mut self.heads);
    }

    fn datagrams(
        &mut self,
        mut train: Train<'_>,
        from: SocketAddr,
        delivery: &mut Delivery<'_>,
        now: ringmesh_io::Now,
    ) {
        let stride = train.stride();
        let traffic = &mut self.traffic;
        self.tunnel.inbound_run(
            train.bytes(),
            stride,
            Hop::Udp(from),
            both_clocks(now),
            &mut |index, range| {
                let bytes = range.len() as u64;
                let delivered = delivery.packet(index, range);
                debug_assert!(delivered.is_ok(), "invariant: the tunnel gives ranges inside the datagram");
                if delivered.is_ok() {
                    traffic.received_packets += 1;
                    traffic.received_bytes += bytes;
                }
            },
        );
    }

    fn wake(&mut self, _outbox: &mut Outbox, now: ringmesh_io::Now) {
        let now = both_clocks(now);
        self.handle_results(now);
        self.handle_commands(now);
    }

    fn idle(&mut self, outbox: &mut Outbox, now: ringmesh_io::Now) {
        let now = both_clocks(now);
        if self.tunnel.poll_deadline().is_some_and(|deadline| deadline <= now.monotonic) {
            self.tunnel.handle_deadline(now);
        }
        self.take_from_links(outbox, now);
        self.drain(outbox, now);
    }
}

#[cfg(test)]
mod tests;
