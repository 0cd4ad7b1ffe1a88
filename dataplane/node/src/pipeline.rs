//! Between the kernel and the protocol: what arrives is shown to the [`Tunnel`], what it answers goes where it belongs.
//!
//! A packet's verdict is the return value of one call; nothing waits here. Only handshakes, keepalives, notices and released
//! packets come out by [`Tunnel::poll_transmit`], at the end of each turn.

use std::{collections::BTreeMap, net::SocketAddr, time::Instant};

use ringmesh_io::{Delivery, Handler, Outbox, SuperPacket, Train};
use ringmesh_tunnel::{Event, Inbound, Now, Outbound, Path, Tunnel};
use tokio::sync::mpsc;

use crate::{
    clock,
    handshaker::Handshakes,
    plane::{Command, Traffic, WorkerReport},
};

/// A protocol state, its queues, and its counters.
#[derive(Debug)]
pub(crate) struct Pipeline {
    tunnel: Tunnel,
    handshakes: Handshakes,
    commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<Event>,
    traffic: Traffic,
    /// Reports that wait for the end of the turn, when the back end's counters are at hand.
    reports: Vec<tokio::sync::oneshot::Sender<WorkerReport>>,
    outbox_full: u64,
    events_lost: u64,
    stopping: bool,
}

impl Pipeline {
    pub(crate) fn new(
        tunnel: Tunnel,
        handshakes: Handshakes,
        commands: mpsc::Receiver<Command>,
        events: mpsc::Sender<Event>,
    ) -> Self {
        Self {
            tunnel,
            handshakes,
            commands,
            events,
            traffic: Traffic::default(),
            reports: Vec::new(),
            outbox_full: 0,
            events_lost: 0,
            stopping: false,
        }
    }

    /// When the tunnel wants to be called even if nothing arrives.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.tunnel.poll_deadline()
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
        let mut drops: BTreeMap<&'static str, u64> =
            self.tunnel.drops().iter().map(|(reason, count)| (reason.as_str(), count)).collect();
        drops.extend([
            ("outbox_full", self.outbox_full),
            ("packet_unfit", io.packets_unfit),
            ("packet_refused", io.packets_refused),
            ("datagram_unfit", io.datagrams_unfit),
            ("datagram_refused", io.datagrams_refused),
        ]);
        drops.retain(|_, count| *count > 0);
        WorkerReport { io, traffic: self.traffic, drops, peers: self.tunnel.peers(now).collect() }
    }

    fn handle_commands(&mut self, now: Now) {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Apply(peers, installed) => {
                    self.tunnel.apply(&peers, now);
                    let _ = installed.send(());
                }
                Command::Ping(peer, token, sent) => {
                    let _ = sent.send(self.tunnel.ping(peer, token, now));
                }
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

    /// Lets out what the tunnel has to say: jobs, datagrams, events. What the outbox has no room for stays in the tunnel.
    fn drain(&mut self, outbox: &mut Outbox, now: Now) {
        while let Some(job) = self.tunnel.poll_job() {
            if let Err(refused) = self.handshakes.jobs.try_send(job) {
                self.tunnel.drop_job(refused.into_inner());
            }
        }
        while let Some(mut slot) = outbox.datagram() {
            let Some(transmit) = self.tunnel.poll_transmit(&mut slot, now) else { break };
            match transmit.path {
                Path::Udp(to) => slot.commit(transmit.len, to),
            }
        }
        while let Some(event) = self.tunnel.poll_event() {
            if self.events.try_send(event).is_err() {
                self.events_lost += 1;
            }
        }
    }
}

fn both_clocks(now: ringmesh_io::Now) -> Now {
    Now::new(now.monotonic, clock::from_system(now.wall))
}

impl Handler for Pipeline {
    fn packets(&mut self, mut packets: SuperPacket<'_>, outbox: &mut Outbox, now: ringmesh_io::Now) {
        let now = both_clocks(now);
        while let Some(packet) = packets.next_packet() {
            let Some(mut slot) = outbox.datagram() else {
                self.outbox_full += 1;
                continue;
            };
            let bytes = packet.len() as u64;
            match self.tunnel.outbound(packet, &mut slot, now) {
                Ok(Outbound::Send { len, path: Path::Udp(to) }) => slot.commit(len, to),
                Ok(Outbound::Held) => {}
                Err(_) => continue,
            }
            self.traffic.sent_packets += 1;
            self.traffic.sent_bytes += bytes;
        }
    }

    fn datagrams(
        &mut self,
        mut train: Train<'_>,
        from: SocketAddr,
        delivery: &mut Delivery<'_>,
        now: ringmesh_io::Now,
    ) {
        let now = both_clocks(now);
        for index in 0..train.len() {
            let Some(datagram) = train.datagram(index) else { break };
            match self.tunnel.inbound(datagram, Path::Udp(from), now) {
                Ok(Inbound::Packet { range, .. }) => {
                    let bytes = range.len() as u64;
                    let delivered = delivery.packet(index, range);
                    debug_assert!(
                        delivered.is_ok(),
                        "invariant: the tunnel gives ranges inside the datagram"
                    );
                    if delivered.is_ok() {
                        self.traffic.received_packets += 1;
                        self.traffic.received_bytes += bytes;
                    }
                }
                Ok(Inbound::Consumed) | Err(_) => {}
            }
        }
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
        self.drain(outbox, now);
    }
}
