//! Links: reliable, ordered streams of frames, as WebSocket and SSH over TCP give them.
//!
//! What TCP is known for is here: nothing is lost while the stream lives, and everything is late. When the network is cut,
//! what is written waits and is tried again at growing intervals; when a host moves, its streams are of no use any more but
//! nobody says so; and only after 60 s without a sign of life does each end close its own.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ringmesh_tunnel::key::NodeId;
use ringmesh_tunnel::{Carrier, Link};

use crate::agenda::Agenda;
use crate::network::Network;
use crate::rng::Rng;
use crate::world::NodeIndex;

/// After so long without a sign of life an end closes its stream.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How often the end that opened a stream asks for a sign of life.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// How long a node tries to open a WebSocket, and an SSH stream.
const WEBSOCKET_TIMEOUT: Duration = Duration::from_secs(5);
const SSH_TIMEOUT: Duration = Duration::from_secs(8);
/// Frames that wait in an end's queue; further ones are dropped.
const MAX_QUEUED: usize = 256;
/// TCP's first retransmission (RFC 6298 allows 1 s, Linux takes 200 ms).
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(8);

/// What streams report to their nodes.
#[derive(Debug)]
pub(crate) enum Report {
    /// A stream that the node dialled is there.
    Opened { at: NodeIndex, peer: NodeId, candidate: u32, link: Link },
    /// A stream that the node dialled cannot be had.
    Failed { at: NodeIndex, peer: NodeId, candidate: u32 },
    /// A frame came.
    Frame { at: NodeIndex, link: Link, payload: Vec<u8> },
    /// A stream ended.
    Closed { at: NodeIndex, link: Link },
}

/// One end of a stream.
#[derive(Debug)]
struct End {
    node: NodeIndex,
    link: Link,
    attachment: u32,
    /// Written and not yet under way, since nothing passes.
    queue: VecDeque<Vec<u8>>,
    /// Frames at the front of the queue that were under way before.
    returned: usize,
    retry: Duration,
    retrying: bool,
    /// When the last frame written here arrives over there.
    last_arrival: Duration,
    last_heard: Duration,
    open: bool,
}

#[derive(Debug)]
enum Step {
    Connect(Dialled),
    Arrive { stream: u64, end: usize, payload: Vec<u8> },
    Retry { stream: u64, end: usize },
    Ping { stream: u64 },
    Check { stream: u64, end: usize },
    Finish { stream: u64, end: usize },
}

/// A stream that is being opened.
#[derive(Clone, Copy, Debug)]
struct Dialled {
    from: NodeIndex,
    to: NodeIndex,
    candidate: u32,
    carrier: Carrier,
    /// The process that asked, and where its host was then.
    life: u32,
    attachment: u32,
    give_up: Duration,
    retry: Duration,
}

/// All streams there are.
#[derive(Debug)]
pub struct Streams {
    rng: Rng,
    agenda: Agenda<Step>,
    streams: BTreeMap<u64, [End; 2]>,
    by_link: BTreeMap<(NodeIndex, Link), (u64, usize)>,
    opened: u64,
    dropped: u64,
    /// Of every node: how often its process was started, whether it runs, and the next number of a link.
    processes: BTreeMap<NodeIndex, Process>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Process {
    life: u32,
    running: bool,
    next_link: u32,
}

impl Streams {
    pub(crate) fn new(rng: Rng) -> Self {
        Self {
            rng,
            agenda: Agenda::default(),
            streams: BTreeMap::new(),
            by_link: BTreeMap::new(),
            opened: 0,
            dropped: 0,
            processes: BTreeMap::new(),
        }
    }

    /// Streams that were opened so far.
    #[must_use]
    pub const fn opened(&self) -> u64 {
        self.opened
    }

    /// Frames dropped because a queue was full.
    #[must_use]
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Streams that have at least one open end.
    #[must_use]
    pub fn count(&self) -> usize {
        self.streams.len()
    }

    /// A process begins: it has no streams.
    pub(crate) fn start_process(&mut self, node: NodeIndex) {
        let process = self.processes.entry(node).or_default();
        process.life += 1;
        process.running = true;
    }

    /// A process ends: its kernel closes its streams.
    pub(crate) fn end_process(&mut self, node: NodeIndex, network: &Network, now: Duration) {
        if let Some(process) = self.processes.get_mut(&node) {
            process.running = false;
        }
        let own = self.by_link.keys().filter(|(at, _)| *at == node).map(|&(_, link)| link);
        for link in own.collect::<Vec<_>>() {
            self.close(node, link, network, now);
        }
    }

    /// Begins to open a stream.
    pub(crate) fn dial(
        &mut self,
        from: NodeIndex,
        to: NodeIndex,
        candidate: u32,
        carrier: Carrier,
        network: &Network,
        now: Duration,
    ) {
        let (life, attachment) = (self.life(from), network.attachment(from));
        // TCP, then TLS or SSH: three round trips.
        let took = self.delay(network) * 6;
        let timeout = match carrier {
            Carrier::WebSocket => WEBSOCKET_TIMEOUT,
            Carrier::Ssh => SSH_TIMEOUT,
        };
        let (give_up, retry) = (now + timeout, FIRST_RETRY);
        let dialled = Dialled { from, to, candidate, carrier, life, attachment, give_up, retry };
        self.agenda.enter(now + took, Step::Connect(dialled));
    }

    /// Writes a frame; if the queue is full it is dropped, as a node does with what a slow stream cannot take.
    pub(crate) fn send(
        &mut self,
        from: NodeIndex,
        link: Link,
        payload: Vec<u8>,
        network: &Network,
        now: Duration,
    ) {
        let Some(&(stream, end)) = self.by_link.get(&(from, link)) else { return };
        let Some(ends) = self.streams.get_mut(&stream) else { return };
        if ends[end].queue.len() >= MAX_QUEUED {
            self.dropped += 1;
            return;
        }
        ends[end].queue.push_back(payload);
        if !ends[end].retrying {
            self.flush(stream, end, network, now);
        }
    }

    /// One end closes; the other hears of it if anything passes.
    pub(crate) fn close(&mut self, at: NodeIndex, link: Link, network: &Network, now: Duration) {
        let Some((stream, end)) = self.by_link.remove(&(at, link)) else { return };
        let passes = self.passes(stream, network);
        let delay = self.delay(network);
        let Some(ends) = self.streams.get_mut(&stream) else { return };
        ends[end].open = false;
        ends[end].queue.clear();
        if !ends[1 - end].open {
            self.streams.remove(&stream);
        } else if passes {
            let at = (now + delay).max(ends[end].last_arrival);
            self.agenda.enter(at, Step::Finish { stream, end: 1 - end });
        }
    }

    pub(crate) fn next(&self) -> Option<Duration> {
        self.agenda.next()
    }

    /// Works through what is due until there is something to report.
    pub(crate) fn step(&mut self, network: &Network, now: Duration) -> Option<Report> {
        while let Some(step) = self.agenda.take(now) {
            let report = match step {
                Step::Connect(dialled) => self.connect(dialled, network, now),
                Step::Arrive { stream, end, payload } => self.arrive(stream, end, payload, network, now),
                Step::Retry { stream, end } => {
                    self.flush(stream, end, network, now);
                    None
                }
                Step::Ping { stream } => {
                    self.ping(stream, network, now);
                    None
                }
                Step::Check { stream, end } => self.check(stream, end, network, now),
                Step::Finish { stream, end } => self.finish(stream, end),
            };
            if report.is_some() {
                return report;
            }
        }
        None
    }

    fn connect(&mut self, dialled: Dialled, network: &Network, now: Duration) -> Option<Report> {
        let Dialled { from, to, candidate, carrier, .. } = dialled;
        // Whoever asked is gone.
        if self.life(from) != dialled.life || !self.runs(from) {
            return None;
        }
        let failed = Report::Failed { at: from, peer: to.id(), candidate };
        if !network.tcp_passes(from, to) || network.attachment(from) != dialled.attachment {
            if now >= dialled.give_up {
                return Some(failed);
            }
            let retry = dialled.retry;
            let again = Dialled { retry: (2 * retry).min(LAST_RETRY), ..dialled };
            self.agenda.enter((now + retry).min(dialled.give_up), Step::Connect(again));
            return None;
        }
        if !self.runs(to) {
            return Some(failed);
        }
        let links = [from, to].map(|node| self.new_link(node, carrier));
        self.opened += 1;
        let stream = self.opened;
        let end = |node: NodeIndex, link| End {
            node,
            link,
            attachment: network.attachment(node),
            queue: VecDeque::new(),
            returned: 0,
            retry: FIRST_RETRY,
            retrying: false,
            last_arrival: now,
            last_heard: now,
            open: true,
        };
        self.streams.insert(stream, [end(from, links[0]), end(to, links[1])]);
        for (end, (node, link)) in [(from, links[0]), (to, links[1])].into_iter().enumerate() {
            self.by_link.insert((node, link), (stream, end));
            self.agenda.enter(now + IDLE_TIMEOUT, Step::Check { stream, end });
        }
        self.agenda.enter(now + PING_INTERVAL, Step::Ping { stream });
        Some(Report::Opened { at: from, peer: to.id(), candidate, link: links[0] })
    }

    /// Sends all that waits at an end, if anything passes; else tries again later.
    fn flush(&mut self, stream: u64, end: usize, network: &Network, now: Duration) {
        let passes = self.passes(stream, network);
        let delay = self.delay(network);
        let weather = network.weather.loss;
        let Some(ends) = self.streams.get_mut(&stream) else { return };
        let this = &mut ends[end];
        this.retrying = false;
        if this.queue.is_empty() || !this.open {
            return;
        }
        if !passes {
            this.retrying = true;
            self.agenda.enter(now + this.retry, Step::Retry { stream, end });
            this.retry = (2 * this.retry).min(LAST_RETRY);
            return;
        }
        this.retry = FIRST_RETRY;
        this.returned = 0;
        for payload in std::mem::take(&mut this.queue) {
            // A lost segment is late, and so is all that was written after it.
            let late = if self.rng.chance(weather) { FIRST_RETRY } else { Duration::ZERO };
            this.last_arrival = this.last_arrival.max(now + delay + late);
            self.agenda.enter(this.last_arrival, Step::Arrive { stream, end: 1 - end, payload });
        }
    }

    fn arrive(
        &mut self,
        stream: u64,
        end: usize,
        payload: Vec<u8>,
        network: &Network,
        now: Duration,
    ) -> Option<Report> {
        let passes = self.passes(stream, network);
        let ends = self.streams.get_mut(&stream)?;
        if !ends[end].open {
            return None;
        }
        if !passes {
            // It was under way when the network was cut: its sender still has it, before all that it wrote later.
            let from = 1 - end;
            let returned = ends[from].returned;
            ends[from].queue.insert(returned, payload);
            ends[from].returned = returned + 1;
            if !ends[from].retrying {
                self.flush(stream, from, network, now);
            }
            return None;
        }
        let End { node, link, last_heard, .. } = &mut ends[end];
        *last_heard = now;
        Some(Report::Frame { at: *node, link: *link, payload })
    }

    /// The end that opened the stream asks for a sign of life, and is answered.
    fn ping(&mut self, stream: u64, network: &Network, now: Duration) {
        let passes = self.passes(stream, network);
        let Some(ends) = self.streams.get_mut(&stream) else { return };
        if passes && ends.iter().all(|end| end.open) {
            ends.iter_mut().for_each(|end| end.last_heard = now);
        }
        self.agenda.enter(now + PING_INTERVAL, Step::Ping { stream });
    }

    fn check(&mut self, stream: u64, end: usize, network: &Network, now: Duration) -> Option<Report> {
        let this = &self.streams.get(&stream)?[end];
        let (node, link, deadline) = (this.node, this.link, this.last_heard + IDLE_TIMEOUT);
        if !this.open {
            return None;
        }
        if now < deadline {
            self.agenda.enter(deadline, Step::Check { stream, end });
            return None;
        }
        self.close(node, link, network, now);
        Some(Report::Closed { at: node, link })
    }

    fn finish(&mut self, stream: u64, end: usize) -> Option<Report> {
        let this = &mut self.streams.get_mut(&stream)?[end];
        if !this.open {
            return None;
        }
        let (at, link) = (this.node, this.link);
        this.open = false;
        self.by_link.remove(&(at, link));
        self.streams.remove(&stream);
        Some(Report::Closed { at, link })
    }

    /// Whether the stream makes progress: both hosts are where they were when it was opened, and nothing is between them.
    fn passes(&self, stream: u64, network: &Network) -> bool {
        self.streams.get(&stream).is_some_and(|ends| {
            ends.iter().all(|end| end.attachment == network.attachment(end.node))
                && network.tcp_passes(ends[0].node, ends[1].node)
        })
    }

    fn delay(&mut self, network: &Network) -> Duration {
        self.rng.duration(&network.weather.delay)
    }

    fn new_link(&mut self, node: NodeIndex, carrier: Carrier) -> Link {
        let process = self.processes.entry(node).or_default();
        process.next_link += 1;
        Link { number: process.next_link, carrier }
    }

    fn life(&self, node: NodeIndex) -> u32 {
        self.processes.get(&node).map_or(0, |process| process.life)
    }

    fn runs(&self, node: NodeIndex) -> bool {
        self.processes.get(&node).is_some_and(|process| process.running)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Realm;
    use crate::weather::Weather;

    const A: NodeIndex = NodeIndex::FIRST;
    const B: NodeIndex = NodeIndex::SECOND;
    const SECOND: Duration = Duration::from_secs(1);

    fn two_hosts() -> (Network, Streams) {
        let (mut network, mut streams) = (Network::new(Rng::new(1)), Streams::new(Rng::new(2)));
        for node in [A, B] {
            let place = network.fresh_place(Realm::INTERNET, true, false);
            network.add_host(place);
            streams.start_process(node);
        }
        (network, streams)
    }

    fn reports(streams: &mut Streams, network: &Network, until: Duration) -> Vec<(Duration, Report)> {
        let mut reports = Vec::new();
        while let Some(now) = streams.next().filter(|&now| now <= until) {
            reports.extend(streams.step(network, now).map(|report| (now, report)));
        }
        reports
    }

    fn opened(streams: &mut Streams, network: &Network) -> Link {
        streams.dial(A, B, 7, Carrier::Ssh, network, Duration::ZERO);
        let Some((_, Report::Opened { at: A, candidate: 7, link, .. })) =
            reports(streams, network, SECOND).into_iter().next()
        else {
            panic!("it opens")
        };
        link
    }

    fn frames(reports: &[(Duration, Report)]) -> Vec<u8> {
        let frame = |(_, report): &(Duration, Report)| match report {
            Report::Frame { payload, .. } => Some(payload[0]),
            Report::Opened { .. } | Report::Failed { .. } | Report::Closed { .. } => None,
        };
        reports.iter().filter_map(frame).collect()
    }

    #[test]
    fn frames_arrive_in_order_whatever_the_weather() {
        let (mut network, mut streams) = two_hosts();
        network.weather = Weather::foul();
        let link = opened(&mut streams, &network);
        (0..100).for_each(|byte| streams.send(A, link, vec![byte], &network, SECOND));
        let arrived = reports(&mut streams, &network, 10 * SECOND);
        assert_eq!(frames(&arrived), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_written_in_a_cut_arrives_after_it_and_in_order() {
        let (mut network, mut streams) = two_hosts();
        let link = opened(&mut streams, &network);
        (0..3).for_each(|byte| streams.send(A, link, vec![byte], &network, SECOND));
        network.cut(B, A);
        (3..6).for_each(|byte| streams.send(A, link, vec![byte], &network, SECOND));
        assert_eq!(frames(&reports(&mut streams, &network, 11 * SECOND)), []);
        network.heal();
        assert_eq!(frames(&reports(&mut streams, &network, 25 * SECOND)), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn stream_of_a_host_that_moved_is_stuck_and_ends_after_a_minute() {
        let (mut network, mut streams) = two_hosts();
        let link = opened(&mut streams, &network);
        let place = network.fresh_place(Realm::INTERNET, true, false);
        network.move_host(A, place);
        streams.send(A, link, vec![1], &network, SECOND);
        let all = reports(&mut streams, &network, 200 * SECOND);
        assert_eq!(frames(&all), []);
        let closed: Vec<Duration> = all.iter().map(|(at, _)| *at).collect();
        assert_eq!(closed.len(), 2, "both ends");
        assert!(closed.iter().all(|at| (IDLE_TIMEOUT..IDLE_TIMEOUT + 2 * SECOND).contains(at)), "{closed:?}");
        assert_eq!(streams.count(), 0);
    }

    #[test]
    fn idle_stream_is_kept_by_its_pings() {
        let (network, mut streams) = two_hosts();
        opened(&mut streams, &network);
        assert!(reports(&mut streams, &network, 3600 * SECOND).is_empty());
        assert_eq!(streams.count(), 1);
    }

    #[test]
    fn dial_fails_at_once_where_nobody_listens_and_in_time_where_nothing_passes() {
        let (mut network, mut streams) = two_hosts();
        streams.end_process(B, &network, Duration::ZERO);
        streams.dial(A, B, 1, Carrier::WebSocket, &network, Duration::ZERO);
        let all = reports(&mut streams, &network, SECOND);
        assert!(matches!(all[..], [(_, Report::Failed { at: A, candidate: 1, .. })]));
        streams.start_process(B);
        network.block_tcp(B, true);
        streams.dial(A, B, 1, Carrier::WebSocket, &network, SECOND);
        let all = reports(&mut streams, &network, 20 * SECOND);
        assert!(matches!(all[..], [(at, Report::Failed { .. })] if at == SECOND + WEBSOCKET_TIMEOUT));
    }

    #[test]
    fn other_end_hears_of_a_process_that_ended() {
        let (network, mut streams) = two_hosts();
        let link = opened(&mut streams, &network);
        streams.end_process(B, &network, SECOND);
        let all = reports(&mut streams, &network, 2 * SECOND);
        assert!(matches!(all[..], [(_, Report::Closed { at: A, link: closed })] if closed == link));
        assert_eq!(streams.count(), 0);
    }

    #[test]
    fn queue_is_bounded() {
        let (mut network, mut streams) = two_hosts();
        let link = opened(&mut streams, &network);
        network.block_tcp(A, true);
        (0..300).for_each(|_| streams.send(A, link, vec![0], &network, SECOND));
        assert_eq!(streams.dropped(), 300 - MAX_QUEUED as u64);
    }
}
