//! What is promised whatever happens, and whether it is kept.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write;
use std::time::Duration;

use ringmesh_tunnel::key::NodeId;
use ringmesh_tunnel::peer::MAX_HELD_PACKETS;
use ringmesh_tunnel::{Event, Path};

use crate::theory::{Direct, Footing, roads};
use crate::world::{NodeIndex, World};

use super::excuses::{Excuse, Excuses};

/// After so long with a road and without a misfortune, every packet must arrive.
const CONNECTED_WITHIN: Duration = Duration::from_secs(10);
/// After so long, and where theory says that it can be, the path must be direct.
const DIRECT_WITHIN: Duration = Duration::from_secs(15);
/// How long a packet may take: streams retransmit, relays are a detour.
const ARRIVES_WITHIN: Duration = Duration::from_secs(2);
/// How long what was sent in another state of the network may still have effects.
const IN_FLIGHT: Duration = Duration::from_secs(3);
/// Datagrams to an address from which nothing came, in 60 s.
const MAX_UNVERIFIED: usize = 20;
/// When sessions may be renewed for their age (WireGuard begins at 120 s).
const REKEY_AGE: Duration = Duration::from_secs(110);
/// Sessions that follow an explained one this soon come of the same cause: handshakes that crossed.
const SAME_CAUSE: Duration = Duration::from_secs(12);
/// A cause explains a session that comes up this much later.
const CAUSE_LASTS: Duration = Duration::from_secs(30);
/// A pair is of interest to its nodes for so long after the last packet.
const ACTIVE_FOR: Duration = Duration::from_secs(12);
/// A road that is younger than this may not have been found.
const NEW_ROAD: Duration = Duration::from_secs(6);
/// Packets missing in a row, at two in a second, in the time of which three probes of every path may have gone unanswered.
const SILENT_PACKETS: usize = 4;
/// Packets of each direction that are remembered.
const REMEMBERED: usize = 64;
/// Idle for so long, a pair has said all that was left to say.
const SETTLED_IDLE: Duration = Duration::from_secs(45);
/// A pair that got no answer tries for 90 s to begin a session.
const GIVES_UP: Duration = Duration::from_secs(100);
/// Candidates and streams of one peer that a core may keep.
const MAX_PATHS: usize = 64;
/// Datagrams that a node may send in a second, on average, besides those for its packets.
const MAX_CONTROL_RATE: u64 = 12;

/// What the first second costs, as if it were so many.
const BEGINNING: u64 = 10;

/// Two nodes, or a node and a relay.
type Pair = (NodeIndex, NodeIndex);

/// What is known of a pair.
#[derive(Debug, Default)]
struct Watched {
    /// What its roads stand on, and since when.
    footings: BTreeMap<Footing, Duration>,
    direct: Option<(Direct, Duration)>,
    /// When something was last taken from it.
    settled: Duration,
    talking_since: Option<Duration>,
    last_talk: Option<Duration>,
    /// Packets of each direction, lower node first.
    sent: [VecDeque<(u64, Duration)>; 2],
    /// When each side's last session came up, and whether a restart or the want of a road since explains the next one.
    session: [Option<Duration>; 2],
    explained: [Option<Excuse>; 2],
}

/// A packet that must arrive.
#[derive(Clone, Copy, Debug)]
struct Owed {
    pair: Pair,
    number: u64,
    sent: Duration,
}

/// Compares what nodes do with what they must.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    pairs: BTreeMap<Pair, Watched>,
    owed: VecDeque<Owed>,
    /// Events of each node that were looked at.
    events_seen: Vec<usize>,
    losses_seen: Duration,
    quiet_since: Option<Duration>,
    /// Between nodes, and in all, when silence began.
    quiet_counts: Option<(u64, u64)>,
    /// Rare looks are due then.
    next_inspection: Duration,
    demanded: u64,
    single: u64,
    direct: u64,
    sessions: u64,
    excuses: Excuses,
}

impl Watch {
    pub(super) fn new(world: &World) -> Self {
        let mut watch = Self { events_seen: vec![0; world.indices().len()], ..Self::default() };
        let all = world.indices();
        for (at, &a) in all.iter().enumerate() {
            for &b in &all[at + 1..] {
                watch.pairs.insert((a, b), Watched::default());
            }
        }
        watch.survey(world);
        watch
    }

    pub(super) const fn demanded(&self) -> u64 {
        self.demanded
    }

    pub(super) const fn single(&self) -> u64 {
        self.single
    }

    pub(super) const fn direct(&self) -> u64 {
        self.direct
    }

    pub(super) const fn sessions(&self) -> u64 {
        self.sessions
    }

    pub(super) const fn excuses(&self) -> Excuses {
        self.excuses
    }

    /// The network has changed.
    pub(super) fn survey(&mut self, world: &World) {
        let now = world.elapsed();
        for (&(a, b), pair) in &mut self.pairs {
            let footings = world.footings(a, b);
            if pair.footings.keys().any(|footing| !footings.contains(footing)) {
                pair.settled = now;
            }
            pair.footings.retain(|footing, _| footings.contains(footing));
            for footing in footings {
                pair.footings.entry(footing).or_insert(now);
            }
            let direct = world.direct(a, b);
            // It may have been direct by luck.
            if pair.direct.is_some_and(|(before, _)| direct < before) {
                pair.settled = now;
            }
            if pair.direct.is_none_or(|(before, _)| before != direct) {
                pair.direct = Some((direct, now));
            }
        }
    }

    /// These nodes are seen from elsewhere now.
    pub(super) fn moved(&mut self, world: &World, nodes: &[NodeIndex]) {
        for (_, pair) in self.pairs.iter_mut().filter(|((a, b), _)| nodes.contains(a) || nodes.contains(b)) {
            pair.settled = world.elapsed();
        }
    }

    /// A process begins anew.
    pub(super) fn restarted(&mut self, world: &World, node: NodeIndex) {
        self.moved(world, &[node]);
        for (_, pair) in self.pairs.iter_mut().filter(|(pair, _)| pair.0 == node || pair.1 == node) {
            pair.explained = [Some(Excuse::Restarted); 2];
        }
    }

    /// These pairs talk from now on, and no others.
    pub(super) fn talking(&mut self, world: &World, talking: &[Pair]) {
        let now = world.elapsed();
        for (pair, watched) in &mut self.pairs {
            let talks = talking.contains(pair);
            if watched.talking_since.is_some() {
                watched.last_talk = Some(now);
            }
            watched.talking_since = talks.then(|| watched.talking_since.unwrap_or(now));
        }
        self.quiet_since = talking.is_empty().then_some(now);
        self.quiet_counts = None;
    }

    /// A packet was sent.
    pub(super) fn sent(&mut self, world: &World, from: NodeIndex, to: NodeIndex, number: u64) {
        let (pair, now) = ((from.min(to), from.max(to)), world.elapsed());
        let Some(watched) = self.pairs.get_mut(&pair) else { return };
        let direction = &mut watched.sent[usize::from(from > to)];
        direction.push_back((number, now));
        if direction.len() > REMEMBERED {
            direction.pop_front();
        }
        if watched.must_arrive(pair, now) {
            self.demanded += 1;
            self.owed.push_back(Owed { pair, number, sent: now });
        }
    }

    /// Looks whether all promises are kept.
    pub(super) fn look(&mut self, world: &World) -> Result<(), String> {
        self.note_losses(world);
        self.note_roadless(world);
        self.check_packets(world)?;
        self.check_events(world)?;
        self.check_quiet(world)?;
        if world.elapsed() >= self.next_inspection {
            self.next_inspection = world.elapsed() + Duration::from_secs(1);
            self.check_paths(world)?;
            self.check_bounds(world)?;
        }
        Ok(())
    }

    /// A handshake message that the weather took is tried again by WireGuard's timer, 5 s later: time counts from then.
    fn note_losses(&mut self, world: &World) {
        const HANDSHAKES: [usize; 6] = [148, 156, 92, 100, 64, 72];
        let since = std::mem::replace(&mut self.losses_seen, world.elapsed());
        let new = world.network.losses().take_while(|loss| loss.at >= since);
        for loss in new.filter(|loss| HANDSHAKES.contains(&loss.len)) {
            for ((a, b), pair) in &mut self.pairs {
                let concerns = |node| [*a, *b].contains(&node) || world.node(node).is_relay();
                if concerns(loss.sender) && loss.receiver.is_some_and(concerns) {
                    pair.settled = pair.settled.max(loss.at);
                }
            }
        }
    }

    /// A pair that wants to talk and has no road falls silent, and so does one whose only road is new: that a relay was started
    /// is not known to its clients at once. A silent session may be renewed.
    fn note_roadless(&mut self, world: &World) {
        let now = world.elapsed();
        for (&(a, b), pair) in &mut self.pairs {
            // A new session is of interest, too: the two tell each other where they are.
            let recent =
                pair.session.iter().flatten().chain(&pair.last_talk).any(|&at| at + ACTIVE_FOR > now);
            let wants = pair.talking_since.is_some() || recent;
            let footings = pair.since(now, NEW_ROAD);
            let relay = world.node(a).is_relay() || world.node(b).is_relay();
            let reached = if relay { !footings.is_empty() } else { !roads(a, b, &footings).is_empty() };
            if (wants || relay) && !reached {
                pair.explained.iter_mut().for_each(|side| *side = side.or(Some(Excuse::Roadless)));
            }
        }
    }

    fn check_packets(&mut self, world: &World) -> Result<(), String> {
        let now = world.elapsed();
        while let Some(owed) = self.owed.front().copied().filter(|owed| owed.sent + ARRIVES_WITHIN < now) {
            self.owed.pop_front();
            let Some(entry) = world.ledger.get(owed.number) else { continue };
            let pair = &self.pairs[&owed.pair];
            let arrived = entry.delivered.is_some_and(|at| at <= owed.sent + ARRIVES_WITHIN);
            let disturbed = pair.settled >= owed.sent;
            if arrived || disturbed || taken_by_weather(world, owed) {
                continue;
            }
            self.single += 1;
            if pair.neighbour_missing(world, entry.from > entry.to, owed) {
                return Err(format!(
                    "packet {} from {:?} to {:?}, sent at {:?}, had a road ({:?}) and did not arrive (it did at {:?})",
                    owed.number,
                    entry.from,
                    entry.to,
                    owed.sent,
                    roads(owed.pair.0, owed.pair.1, &pair.since(owed.sent, CONNECTED_WITHIN)),
                    entry.delivered,
                ));
            }
        }
        Ok(())
    }

    fn check_events(&mut self, world: &World) -> Result<(), String> {
        for node in world.indices() {
            let events = &world.node(node).events;
            let new = &events[self.events_seen[node.number()].min(events.len())..];
            self.events_seen[node.number()] = events.len();
            for &(at, event) in new {
                match event {
                    Event::Established { peer, .. } => {
                        if let Some(peer) = NodeIndex::from_id(peer) {
                            self.sessions += 1;
                            self.check_session(world, node, peer, at)?;
                        }
                    }
                    Event::PathSelected { peer, path: Path::Udp(address) } => {
                        let pair = NodeIndex::from_id(peer).map(|peer| (node.min(peer), node.max(peer)));
                        let watched = pair.and_then(|pair| self.pairs.get(&pair));
                        let since = watched.and_then(|pair| pair.direct);
                        let impossible = since.is_some_and(|(direct, since)| {
                            direct == Direct::Impossible && since + IN_FLIGHT < at
                        });
                        // Without any road, where packets go is nobody's business.
                        let talks = |pair: &Watched| {
                            let old = pair.since(at, CONNECTED_WITHIN);
                            pair.talking_since.is_some_and(|since| since + IN_FLIGHT < at)
                                && !roads(node.min(peer_of(peer)), node.max(peer_of(peer)), &old).is_empty()
                        };
                        if impossible && watched.is_some_and(talks) {
                            return Err(format!(
                                "at {at:?}, {node:?} selected {address} for {peer}: impossible"
                            ));
                        }
                    }
                    Event::PathSelected { .. }
                    | Event::Unreachable { .. }
                    | Event::Expired { .. }
                    | Event::Pong { .. }
                    | Event::SeenFrom { .. }
                    | Event::BindRequested { .. } => {}
                }
            }
        }
        Ok(())
    }

    /// A session came up: its age, a restart or silence must have called for it, and nothing else.
    fn check_session(
        &mut self,
        world: &World,
        node: NodeIndex,
        peer: NodeIndex,
        at: Duration,
    ) -> Result<(), String> {
        let Some(pair) = self.pairs.get_mut(&(node.min(peer), node.max(peer))) else { return Ok(()) };
        let side = usize::from(node > peer);
        let before = pair.session[side].replace(at);
        let explained = std::mem::take(&mut pair.explained[side]);
        let Some(age) = before.map(|before| at.saturating_sub(before)) else { return Ok(()) };
        if age >= REKEY_AGE {
            return Ok(());
        }
        let relay = world.node(node).is_relay() || world.node(peer).is_relay();
        // Without packets there is nothing to tell silence by.
        let unseen = relay || pair.talking_since.is_none_or(|since| since + CAUSE_LASTS > at);
        let excuse = if explained.is_some() {
            explained
        } else if age <= SAME_CAUSE {
            Some(Excuse::SameCause)
        } else if unseen && at <= pair.settled + CAUSE_LASTS {
            Some(Excuse::Disturbed)
        } else if relay && !pair.stands_between(node, peer, at) {
            Some(Excuse::CutOff)
        } else {
            pair.was_silent(world, at).then_some(Excuse::Silent)
        };
        if let Some(excuse) = excuse {
            self.excuses.count(excuse);
            return Ok(());
        }
        Err(format!(
            "at {at:?}, {node:?} had another session with {peer:?} after {age:?}, and nothing explains it: disturbed at {:?}, \
             roads since {:?}",
            pair.settled, pair.footings
        ))
    }

    /// When nobody talks, nodes say nothing to each other, and without a relay nothing at all.
    fn check_quiet(&mut self, world: &World) -> Result<(), String> {
        let Some(since) = self.quiet_since.filter(|&since| world.elapsed() > since + SETTLED_IDLE) else {
            return Ok(());
        };
        let unanswered = |pair: &Watched| {
            let missing = |number| world.ledger.get(number).is_some_and(|sent| sent.delivered.is_none());
            // A probe may be what got no answer.
            let cut_off = pair.settled + CAUSE_LASTS > since;
            pair.last_talk.is_some_and(|last| last + GIVES_UP > since)
                && (cut_off || pair.sent.iter().flatten().any(|&(number, _)| missing(number)))
        };
        if self.pairs.values().any(unanswered) {
            return Ok(());
        }
        let relays = world.relays();
        let straight = world.network.between_nodes(&relays);
        let relayed = relays.iter().map(|&relay| world.node(relay).passed_on()).sum::<u64>();
        let counts = (straight, if relays.is_empty() { world.network.sent() } else { relayed });
        let before = *self.quiet_counts.get_or_insert(counts);
        if before == counts {
            return Ok(());
        }
        Err(format!(
            "nobody has talked since {since:?}, and still {before:?} datagrams, straight and relayed, became {counts:?}"
        ))
    }

    fn check_paths(&mut self, world: &World) -> Result<(), String> {
        let now = world.elapsed();
        for (&(a, b), pair) in &self.pairs {
            if pair.talking_since.is_none_or(|since| since + CONNECTED_WITHIN > now) {
                continue;
            }
            let direct = pair.must_be_direct(now) && world.network.weather.loss == 0.0;
            let (known, since) = pair.direct.unwrap_or((Direct::Unclear, now));
            let long_impossible =
                known == Direct::Impossible && since.max(pair.settled) + CONNECTED_WITHIN < now;
            let elsewhere = !roads(a, b, &pair.since(now, CONNECTED_WITHIN)).is_empty();
            for (node, peer) in [(a, b), (b, a)] {
                let Some(status) = world.peer(node, peer) else { continue };
                let udp = matches!(status.endpoint, Some(Path::Udp(_)));
                if direct && !udp {
                    return Err(format!(
                        "{node:?} reaches {peer:?} by {:?}, and could directly",
                        status.endpoint
                    ));
                }
                if long_impossible && elsewhere && udp {
                    return Err(format!(
                        "{node:?} says it reaches {peer:?} by {:?}: impossible",
                        status.endpoint
                    ));
                }
                self.direct += u64::from(direct);
            }
        }
        Ok(())
    }

    fn check_bounds(&self, world: &World) -> Result<(), String> {
        if let Some((node, to, count)) = world.network.most_unverified()
            && count > MAX_UNVERIFIED
        {
            return Err(format!("{node:?} sent {count} datagrams in a minute to {to}, which never answered"));
        }
        let seconds = world.elapsed().as_secs() + 1;
        let nodes = world.indices().len() as u64;
        // A packet may go twice while in doubt, and a relay sends it on.
        let most = 4 * world.ledger.len() as u64 + MAX_CONTROL_RATE * (seconds + BEGINNING) * nodes;
        if world.network.sent() > most {
            return Err(format!("{} datagrams for {} packets", world.network.sent(), world.ledger.len()));
        }
        for node in world.indices() {
            for status in world.statuses(node) {
                if status.paths.len() > MAX_PATHS || status.held_packets > MAX_HELD_PACKETS {
                    return Err(format!("{node:?} keeps too much: {status:?}"));
                }
                if status.paths.iter().filter(|path| path.selected).count() > 1 {
                    return Err(format!("{node:?} selects two paths: {status:?}"));
                }
            }
        }
        Ok(())
    }

    /// What is known of the pairs that talk, for whoever looks for the fault.
    pub(super) fn describe(&self, world: &World) -> String {
        let mut text = String::new();
        for (&(a, b), pair) in self.pairs.iter().filter(|(_, pair)| pair.talking_since.is_some()) {
            let _ = writeln!(
                text,
                "{a:?} - {b:?}: settled {:?}, {:?}, {:?}",
                pair.settled, pair.direct, pair.footings
            );
            for (node, peer) in [(a, b), (b, a)] {
                describe_peer(world, node, peer, &mut text);
                world.relays().into_iter().for_each(|relay| describe_peer(world, node, relay, &mut text));
            }
        }
        text
    }
}

impl Watched {
    /// What there was for at least `long` at `now`.
    fn since(&self, now: Duration, long: Duration) -> BTreeSet<Footing> {
        let old = self.footings.iter().filter(|&(_, &since)| since + long <= now);
        old.map(|(&footing, _)| footing).collect()
    }

    /// Whether a node and a relay have had a way to each other for long enough to find it.
    fn stands_between(&self, a: NodeIndex, b: NodeIndex, now: Duration) -> bool {
        self.since(now, NEW_ROAD).iter().any(|footing| match *footing {
            Footing::Udp(node, relay) | Footing::WebSocket(node, relay) => {
                (node, relay) == (a, b) || (node, relay) == (b, a)
            }
            Footing::Direct | Footing::Ssh => false,
        })
    }

    fn must_arrive(&self, (a, b): Pair, now: Duration) -> bool {
        let ready = |since: Duration| since + CONNECTED_WITHIN <= now;
        self.talking_since.is_some_and(ready)
            && ready(self.settled)
            && !roads(a, b, &self.since(now, CONNECTED_WITHIN)).is_empty()
    }

    fn must_be_direct(&self, now: Duration) -> bool {
        let ready = |since: Duration| since + DIRECT_WITHIN <= now;
        self.talking_since.is_some_and(ready)
            && ready(self.settled)
            && self.since(now, DIRECT_WITHIN).contains(&Footing::Direct)
    }

    /// Whether the packet before or after this one is missing, too: what is under way when a relay's client changes to a faster
    /// way can be overtaken by the change, and then one is lost.
    fn neighbour_missing(&self, world: &World, upwards: bool, owed: Owed) -> bool {
        let neighbours = self.sent[usize::from(upwards)].iter().filter(|(number, sent)| {
            *number != owed.number && sent.abs_diff(owed.sent) < 2 * super::PACKET_INTERVAL
        });
        let is_missing =
            |number: u64| world.ledger.get(number).is_some_and(|entry| entry.delivered.is_none());
        neighbours
            .filter(|(_, sent)| *sent + ARRIVES_WITHIN / 2 < world.elapsed())
            .any(|&(number, _)| is_missing(number))
    }

    /// Whether one side heard nothing of the other for three probes' time, lately.
    fn was_silent(&self, world: &World, at: Duration) -> bool {
        self.sent.iter().any(|sent| {
            let mut missing = 0;
            sent.iter().filter(|(_, sent)| *sent + CAUSE_LASTS >= at).any(|(number, _)| {
                let arrived = world.ledger.get(*number).is_some_and(|entry| {
                    entry.delivered.is_some_and(|delivered| delivered <= entry.sent + ARRIVES_WITHIN)
                });
                missing = if arrived { 0 } else { missing + 1 };
                missing >= SILENT_PACKETS
            })
        })
    }
}

/// The node with this name in the map.
fn peer_of(id: NodeId) -> NodeIndex {
    NodeIndex::from_id(id).expect("invariant: nodes of a world know nobody else")
}

/// What a node knows of a peer.
fn describe_peer(world: &World, node: NodeIndex, peer: NodeIndex, text: &mut String) {
    let Some(status) = world.peer(node, peer) else { return };
    let _ = writeln!(text, "  {node:?} to {peer:?}: {:?} by {:?}", status.state, status.endpoint);
    let time = |at: Option<std::time::Instant>| at.map(|at| world.time_of(at));
    for path in &status.paths {
        let _ = writeln!(
            text,
            "    {:?} {:?} {:?}{} rtt {:?} loss {:?} heard {:?} failure {:?} next {:?} {:?}",
            path.candidate,
            path.origin,
            path.state,
            if path.selected { " SELECTED" } else { "" },
            path.rtt,
            path.loss,
            time(path.last_heard),
            path.failure,
            time(path.next_try),
            path.link,
        );
    }
}

/// Whether the weather took a datagram that this packet may have been in.
fn taken_by_weather(world: &World, owed: Owed) -> bool {
    let (a, b) = owed.pair;
    let concerns = |node| node == a || node == b || world.node(node).is_relay();
    let lately = world.network.losses().take_while(|loss| loss.at >= owed.sent);
    lately.into_iter().any(|loss| concerns(loss.sender) && loss.receiver.is_none_or(concerns))
}
