//! Between the kernel and the protocol: what arrives is shown to the [`Tunnel`], what it answers goes where it belongs.
//!
//! A packet's verdict is the return value of one call; nothing waits here. Only handshakes, keepalives, notices and released
//! packets come out by [`Tunnel::poll_transmit`], at the end of each turn.

use std::{collections::BTreeMap, net::SocketAddr, time::Instant};

use ringmesh_io::{Delivery, Handler, Outbox, SuperPacket, Train};
use ringmesh_tunnel::{DropReason, Event, Hop, Inbound, Now, Outbound, Tunnel};
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
        let mut drops: BTreeMap<DropReason, u64> = self.tunnel.drops().iter().collect();
        drops.extend([
            (DropReason::OutboxFull, self.outbox_full),
            (DropReason::PacketUnfit, io.packets_unfit),
            (DropReason::PacketRefused, io.packets_refused),
            (DropReason::DatagramUnfit, io.datagrams_unfit),
            (DropReason::DatagramRefused, io.datagrams_refused),
            (DropReason::EventQueueFull, self.events_lost),
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
                Command::ExpireSessions => self.tunnel.expire_sessions(),
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
            match transmit.to {
                Hop::Udp(to) => slot.commit(transmit.len, to),
                // No link is ever opened yet.
                Hop::Link(_) => {}
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
                Ok(Outbound::Send { len, to: Hop::Udp(to) }) => slot.commit(len, to),
                Ok(Outbound::Send { to: Hop::Link(_), .. }) => continue,
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
            match self.tunnel.inbound(datagram, Hop::Udp(from), now) {
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

#[cfg(test)]
mod tests {
    use crossbeam::channel::{Receiver, Sender, bounded};
    use ringmesh_io::{MemoryIo, OUTBOX_DATAGRAMS, PacketIo as _};
    use ringmesh_tunnel::{
        Handshaker, Job, JobDone, Path, PeerConfig, Psk, Random,
        ip::Prefix,
        key::{NodeId, PresharedKey, PublicKey, SecretKey},
    };
    use tokio::sync::oneshot;

    use super::*;

    /// A pipeline whose kernel is memory and whose handshaker runs when it is told to.
    struct Side {
        number: u8,
        io: MemoryIo,
        pipeline: Pipeline,
        commands: mpsc::Sender<Command>,
        events: mpsc::Receiver<Event>,
        handshaker: Handshaker,
        jobs: Receiver<Job>,
        results: Sender<JobDone>,
    }

    fn address(number: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, number], 51820))
    }

    /// A UDP packet from one side to another.
    fn packet(from: u8, to: u8, length: usize) -> Vec<u8> {
        let mut packet = vec![0xaa; length];
        packet[..20]
            .copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 100, 64, 0, from, 100, 64, 0, to]);
        packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
        packet
    }

    impl Side {
        fn new(number: u8, jobs_bound: usize) -> (Self, PublicKey) {
            let secret = SecretKey::from_bytes([number; 32]);
            let (jobs_out, jobs) = bounded(jobs_bound);
            let (results, results_in) = bounded(16);
            let (commands, commands_in) = mpsc::channel(8);
            let (events_out, events) = mpsc::channel(8);
            let key = secret.public_key();
            let tunnel = Tunnel::new(0, key, Random::seeded(number.into())).unwrap();
            let handshakes = Handshakes { jobs: jobs_out, results: results_in };
            let side = Self {
                number,
                io: MemoryIo::new(1408).unwrap(),
                pipeline: Pipeline::new(tunnel, handshakes, commands_in, events_out),
                commands,
                events,
                handshaker: Handshaker::new(&secret, Random::seeded(u64::from(number) + 100)),
                jobs,
                results,
            };
            (side, key)
        }

        /// Makes `key` the only peer, at `number`'s address.
        fn apply(&mut self, number: u8, key: PublicKey, allowed: u8) {
            let peer = PeerConfig {
                id: NodeId::from_bytes([number; 8]),
                key,
                psk: Psk::Fixed(PresharedKey::from_bytes([7; 32])),
                mesh: true,
                allowed_ips: vec![Prefix::host([100, 64, 0, allowed].into())],
                candidates: vec![address(number)],
                links: Vec::new(),
                relay: false,
                persistent_keepalive: None,
            };
            self.handshaker.apply(std::slice::from_ref(&peer));
            let (installed, mut wait) = oneshot::channel();
            self.command(Command::Apply(vec![peer], installed));
            wait.try_recv().expect("it is installed when the turn is over");
        }

        fn command(&mut self, command: Command) {
            self.commands.try_send(command).unwrap();
            self.io.waker().wake();
            self.turn();
        }

        /// One turn at the present moment.
        fn turn(&mut self) {
            let now = self.io.now().monotonic;
            self.io.turn(Some(now), &mut self.pipeline).unwrap();
            self.pipeline.answer_reports(self.io.counters());
        }

        fn run_handshaker(&mut self) {
            let now = both_clocks(self.io.now());
            while let Ok(job) = self.jobs.try_recv() {
                self.results.send(self.handshaker.run(job, 0, now)).unwrap();
                self.io.waker().wake();
            }
        }

        fn report(&mut self) -> WorkerReport {
            let (report, mut wait) = oneshot::channel();
            self.command(Command::Report(report));
            wait.try_recv().unwrap()
        }
    }

    /// Two sides that know each other.
    fn pair() -> (Side, Side) {
        let ((mut one, one_key), (mut two, two_key)) = (Side::new(1, 16), Side::new(2, 16));
        one.apply(2, two_key, 2);
        two.apply(1, one_key, 1);
        (one, two)
    }

    /// Carries datagrams until neither side has any more.
    fn settle(one: &mut Side, two: &mut Side) {
        for _ in 0..20 {
            for side in [&mut *one, &mut *two] {
                side.turn();
                side.run_handshaker();
                side.turn();
                side.turn();
            }
            for (to, datagram) in one.io.take_datagrams() {
                assert_eq!(to, address(two.number));
                two.io.push_datagram(address(one.number), &datagram);
            }
            for (to, datagram) in two.io.take_datagrams() {
                assert_eq!(to, address(one.number));
                one.io.push_datagram(address(two.number), &datagram);
            }
        }
    }

    #[test]
    fn a_packet_crosses_two_pipelines_and_is_counted_on_both() {
        let (mut one, mut two) = pair();
        let first = packet(1, 2, 100);
        one.io.push_packet(&first);
        settle(&mut one, &mut two);
        assert_eq!(two.io.take_packets(), std::slice::from_ref(&first), "held while the handshake ran");
        let answer = packet(2, 1, 1408);
        two.io.push_packet(&answer);
        settle(&mut one, &mut two);
        assert_eq!(one.io.take_packets(), [answer]);

        let (one, two) = (one.report(), two.report());
        let expected =
            Traffic { sent_packets: 1, sent_bytes: 100, received_packets: 1, received_bytes: 1408 };
        assert_eq!(one.traffic, expected);
        assert_eq!((two.traffic.received_packets, two.traffic.received_bytes), (1, 100));
        assert_eq!(one.drops, BTreeMap::new());
        assert_eq!(one.peers.len(), 1);
        assert!(one.peers[0].received_bytes > 1408);
    }

    #[test]
    fn a_ping_comes_back_as_an_event() {
        let (mut one, mut two) = pair();
        let (sent, mut wait) = oneshot::channel();
        one.command(Command::Ping(NodeId::from_bytes([2; 8]), 77, sent));
        assert_eq!(wait.try_recv().unwrap(), Ok(()));
        settle(&mut one, &mut two);
        let mut pongs = 0;
        while let Ok(event) = one.events.try_recv() {
            if let Event::Pong { token, path, .. } = event {
                assert_eq!((token, path), (77, Path::Udp(address(2))));
                pongs += 1;
            }
        }
        assert_eq!(pongs, 1);
    }

    #[test]
    fn a_removed_peer_is_cut_off_by_the_same_turn() {
        let (mut one, mut two) = pair();
        one.io.push_packet(&packet(1, 2, 100));
        settle(&mut one, &mut two);
        let (installed, _wait) = oneshot::channel();
        two.io.take_packets();
        two.command(Command::Apply(Vec::new(), installed));
        one.io.push_packet(&packet(1, 2, 100));
        settle(&mut one, &mut two);
        assert!(two.io.take_packets().is_empty());
        assert!(two.report().drops[&DropReason::UnknownIndex] >= 1);
    }

    #[test]
    fn drops_are_named() {
        let (mut one, mut two) = pair();
        one.io.push_packet(&packet(1, 9, 100));
        one.io.push_packet(&[0x45, 0, 0]);
        one.io.push_datagram(address(9), b"hello");
        settle(&mut one, &mut two);
        let report = one.report();
        assert_eq!(
            (report.drops[&DropReason::NoAllowedIp], report.drops[&DropReason::UnknownMessage]),
            (1, 1)
        );
        assert!(report.drops.contains_key(&DropReason::MalformedPacket), "{:?}", report.drops);
        assert_eq!(report.traffic.sent_packets, 0);
    }

    #[test]
    fn jobs_beyond_the_handshakers_queue_are_dropped_and_counted() {
        let (mut one, mut two) = pair();
        one.io.push_packet(&packet(1, 2, 100));
        one.turn();
        one.run_handshaker();
        one.turn();
        one.turn();
        let (_, initiation) = one.io.take_datagrams().pop().expect("an initiation");
        // Nobody takes the jobs meanwhile.
        for _ in 0..20 {
            two.io.push_datagram(address(1), &initiation);
        }
        two.turn();
        assert_eq!(two.jobs.len(), 16);
        assert_eq!(two.report().drops[&DropReason::HandshakeQueueFull], 4);
    }

    #[test]
    fn packets_beyond_the_outbox_and_beyond_the_mtu_are_counted() {
        let (mut one, mut two) = pair();
        one.io.push_packet(&packet(1, 2, 100));
        settle(&mut one, &mut two);
        one.io.push_packet(&packet(1, 2, 1500));
        one.turn();
        // As the segments of one large packet do: between packets, a back end reads TUN only while there is room.
        let now = one.io.now();
        for _ in 0..OUTBOX_DATAGRAMS + 44 {
            let mut segment = packet(1, 2, 100);
            one.pipeline.packets(SuperPacket::new(&mut segment), one.io.outbox(), now);
        }
        let drops = one.report().drops;
        assert_eq!(drops, BTreeMap::from([(DropReason::OutboxFull, 44), (DropReason::PacketUnfit, 1)]));
    }

    #[test]
    fn events_beyond_the_daemons_queue_are_lost_and_counted() {
        let (mut one, mut two) = pair();
        one.io.push_packet(&packet(1, 2, 100));
        settle(&mut one, &mut two);
        while one.events.try_recv().is_ok() {}
        // Nobody takes the events meanwhile.
        for token in 0..11 {
            let (sent, mut wait) = oneshot::channel();
            one.command(Command::Ping(NodeId::from_bytes([2; 8]), token, sent));
            assert_eq!(wait.try_recv().unwrap(), Ok(()));
            settle(&mut one, &mut two);
        }
        assert_eq!(one.events.len(), 8);
        assert_eq!(one.report().drops, BTreeMap::from([(DropReason::EventQueueFull, 3)]));
    }

    #[test]
    fn a_stop_ends_the_loop_and_so_does_a_daemon_that_is_gone() {
        let (mut one, mut two) = pair();
        assert!(!one.pipeline.is_stopping());
        one.command(Command::Stop);
        assert!(one.pipeline.is_stopping());
        let (gone, _) = mpsc::channel(1);
        two.commands = gone;
        two.io.waker().wake();
        two.turn();
        assert!(two.pipeline.is_stopping());
    }
}
