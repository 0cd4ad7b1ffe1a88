//! The flows of one peer: a table of bounded size, in which an entry is one cache line.
//!
//! A hash of the key names a chain of entries; each entry is also in the queue of its class, in the order in which it was
//! put there, by which those that are over are found without a walk through all. A packet touches its own entry and nothing
//! else: that an entry was used since it came into its queue is a mark in it, and whoever finds it at the head looks at the
//! mark.

mod connection;
mod fragments;
mod hash;
mod key;
mod state;

use crate::filter::Direction;
use crate::packet::{Ends, Segment};

pub(crate) use connection::{Stage, Step};
pub(crate) use fragments::{Fragments, Passed, Piece};
pub(crate) use hash::FlowHash;
pub(crate) use key::Key;
pub(crate) use state::{Class, Tick, Ticks};

/// Flows of one peer; then the oldest unanswered one makes room, and where all are connections, none does.
pub const MAX_FLOWS: usize = 16_384;
/// Room for so many is made at first.
const FIRST_FLOWS: usize = 16;
/// How many entries at the head of a queue are looked at for one new flow.
const LOOKS: u32 = 2;
/// How often the oldest entry is spared because it was used since it was last looked at.
const SPARED: u32 = 8;

/// Where a flow is in its table.
type Place = u16;
/// No flow.
const NONE: Place = Place::MAX;

/// Names a rule by its place in the filter's list; or none, while everything passes.
pub(crate) type RuleSlot = u32;

/// A flow.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(crate) struct Flow {
    key: Key,
    class: Class,
    marks: u8,
    /// The next one with the same hash, or the next free one.
    chain: Place,
    /// Its neighbours in the queue of its class.
    before: Place,
    behind: Place,
    /// When a packet of it last passed.
    seen: Tick,
    /// What allows it.
    pub(crate) rule: RuleSlot,
    /// Of the filter that judged it last.
    pub(crate) generation: u32,
}

const _: () = assert!(size_of::<Flow>() == 64, "a flow is one cache line");

impl Flow {
    /// This node, or what is behind it, opened the flow.
    const OUTWARD: u8 = 1;
    /// A packet passed since the flow came into its queue.
    const USED: u8 = 2;
    /// Of TCP: who was asked has sent something.
    const ANSWERED: u8 = 4;
    /// Of TCP: who opened it has sent an ACK.
    const CONFIRMED: u8 = 8;
    /// Of TCP: where the number of the stage begins, and how long it is.
    const STAGE: u32 = 4;
    const STAGE_MASK: u8 = 0b111 << Self::STAGE;
    /// A changed filter does not allow it: it is kept so that its own packets do not open it again the other way round.
    const REFUSED: u8 = 1 << 7;

    /// Who opened it.
    pub(crate) const fn opened(&self) -> Direction {
        if self.marks & Self::OUTWARD != 0 { Direction::Out } else { Direction::In }
    }

    pub(crate) const fn key(&self) -> &Key {
        &self.key
    }

    const fn is_over(&self, now: Tick) -> bool {
        now.saturating_sub(self.seen) >= self.class.lasts()
    }

    /// Whether it was refused after it had been allowed.
    #[inline]
    pub(crate) const fn is_refused(&self) -> bool {
        self.marks & Self::REFUSED != 0
    }

    const fn is_tcp(&self) -> bool {
        matches!(self.class, Class::TcpOpening | Class::TcpEstablished | Class::TcpClosing)
    }

    const fn stage(&self) -> Stage {
        Stage::from_number((self.marks & Self::STAGE_MASK) >> Self::STAGE)
    }

    /// What a packet is to the flow; other than TCP's, all that belong to it pass.
    #[inline]
    pub(crate) const fn step(&self, from_opener: bool, segment: Option<Segment>) -> Step {
        match segment {
            Some(segment) => self.stage().step(from_opener, self.marks & Self::ANSWERED != 0, segment),
            None => Step::Pass(self.stage()),
        }
    }

    /// A packet passes, after which a connection is at `stage`; returns the class that the flow belongs to then.
    #[inline]
    fn pass(&mut self, from_opener: bool, segment: Option<Segment>, stage: Stage) -> Class {
        let Some(segment) = segment else {
            let class = self.class;
            return match class {
                Class::UdpOpening if !from_opener => Class::UdpAnswered,
                Class::OtherOpening if !from_opener => Class::OtherAnswered,
                Class::UdpOpening | Class::UdpAnswered | Class::OtherOpening | Class::OtherAnswered => class,
                Class::TcpOpening | Class::TcpEstablished | Class::TcpClosing | Class::Icmp => class,
            };
        };
        self.marks |= match (from_opener, segment) {
            (false, _) => Self::ANSWERED,
            (true, Segment::Go) => Self::CONFIRMED,
            (true, _) => 0,
        };
        self.marks = self.marks & !Self::STAGE_MASK | (stage as u8) << Self::STAGE;
        self.connection_class()
    }

    /// The class of a connection, by what came of it.
    const fn connection_class(&self) -> Class {
        let both = Self::ANSWERED | Self::CONFIRMED;
        match self.stage().is_closing() {
            true => Class::TcpClosing,
            false if self.marks & both == both => Class::TcpEstablished,
            false => Class::TcpOpening,
        }
    }
}

/// A queue of flows: the one that came first, and last.
#[derive(Clone, Copy, Debug)]
struct Queue {
    first: Place,
    last: Place,
}

impl Queue {
    const EMPTY: Self = Self { first: NONE, last: NONE };
}

/// The table.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Flows {
    /// The first flow of each chain; two chains for each flow there is room for.
    heads: Vec<Place>,
    flows: Vec<Flow>,
    /// The first flow of those that are free.
    free: Place,
    /// How many are in use, those that are over and not yet found out included.
    live: usize,
    queues: [Queue; Class::COUNT],
    /// The queue that the next new flow takes a look at besides its own.
    look: usize,
    pub(crate) fragments: Fragments,
}

impl Default for Flows {
    fn default() -> Self {
        Self {
            heads: Vec::new(),
            flows: Vec::new(),
            free: NONE,
            live: 0,
            queues: [Queue::EMPTY; Class::COUNT],
            look: 0,
            fragments: Fragments::default(),
        }
    }
}

/// A flow to be opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct New {
    pub(crate) key: Key,
    pub(crate) class: Class,
    pub(crate) opened: Direction,
    pub(crate) confirmed: bool,
    pub(crate) rule: RuleSlot,
    pub(crate) generation: u32,
}

impl Flows {
    /// Where the flow is, if there is one and it is not over.
    #[inline]
    pub(crate) fn find(&mut self, key: &Key, hash: &FlowHash, now: Tick) -> Option<Place> {
        if self.heads.is_empty() {
            return None;
        }
        let mut place = self.heads[self.chain_of(key, hash)];
        while place != NONE {
            let flow = &self.flows[usize::from(place)];
            if flow.key == *key {
                if flow.is_over(now) {
                    self.remove(place, hash);
                    return None;
                }
                return Some(place);
            }
            place = flow.chain;
        }
        None
    }

    #[inline]
    pub(crate) fn get(&self, place: Place) -> &Flow {
        &self.flows[usize::from(place)]
    }

    /// The filter was changed, and allows the flow still.
    pub(crate) fn renew(&mut self, place: Place, rule: RuleSlot, generation: u32) {
        let flow = &mut self.flows[usize::from(place)];
        (flow.rule, flow.generation) = (rule, generation);
        if flow.is_refused() {
            flow.marks &= !Flow::REFUSED;
            if flow.is_tcp() {
                let class = flow.connection_class();
                self.requeue(place, class);
            }
        }
    }

    /// The filter was changed, and does not allow the flow any more. It stays for as long as it is tried, and no longer than others
    /// that are over.
    pub(crate) fn refuse(&mut self, place: Place, generation: u32) {
        let flow = &mut self.flows[usize::from(place)];
        flow.generation = generation;
        flow.marks |= Flow::REFUSED;
        if flow.class == Class::TcpEstablished {
            self.requeue(place, Class::TcpClosing);
        }
    }

    /// A packet of a refused flow was dropped. Of TCP every one shows that the connection is not given up; of others those of who
    /// opened it, since the other side may by now be allowed to open what looks like the answer.
    pub(crate) fn refused_again(&mut self, place: Place, direction: Direction, now: Tick) {
        let flow = &mut self.flows[usize::from(place)];
        if flow.is_tcp() || flow.opened() == direction {
            flow.seen = now;
            flow.marks |= Flow::USED;
        }
    }

    /// A packet of the flow passes, after which a connection is at `stage`. Tells whether the flow stays in its queue: then
    /// another packet at the same time that leads to the same stage would change nothing.
    #[inline]
    pub(crate) fn pass(
        &mut self,
        place: Place,
        direction: Direction,
        segment: Option<Segment>,
        stage: Stage,
        now: Tick,
    ) -> bool {
        let flow = &mut self.flows[usize::from(place)];
        flow.seen = now;
        flow.marks |= Flow::USED;
        let from_opener = flow.opened() == direction;
        let class = flow.pass(from_opener, segment, stage);
        let stays = class == flow.class;
        if !stays {
            self.requeue(place, class);
        }
        stays
    }

    /// Opens a flow that is not there. Nothing if there is no room, and all that there are must stay.
    pub(crate) fn open(&mut self, new: &New, hash: &FlowHash, now: Tick) -> Option<()> {
        self.reap(new.class, LOOKS, now, hash);
        self.look = (self.look + 1) % Class::COUNT;
        self.reap(Class::ALL[self.look], LOOKS, now, hash);
        let place = self.make_room(hash, now)?;
        let chain = self.chain_of(&new.key, hash);
        let head = std::mem::replace(&mut self.heads[chain], place);
        self.flows[usize::from(place)] = Flow {
            key: new.key,
            class: new.class,
            marks: new.marks(),
            chain: head,
            before: NONE,
            behind: NONE,
            seen: now,
            rule: new.rule,
            generation: new.generation,
        };
        self.live += 1;
        self.enqueue(place);
        Some(())
    }

    /// Forgets a flow.
    pub(crate) fn remove(&mut self, place: Place, hash: &FlowHash) {
        self.dequeue(place);
        let Flow { key, chain: next, .. } = self.flows[usize::from(place)];
        let head = self.chain_of(&key, hash);
        if self.heads[head] == place {
            self.heads[head] = next;
        } else {
            let mut at = self.heads[head];
            while self.flows[usize::from(at)].chain != place {
                at = self.flows[usize::from(at)].chain;
            }
            self.flows[usize::from(at)].chain = next;
        }
        self.flows[usize::from(place)].chain = std::mem::replace(&mut self.free, place);
        self.live -= 1;
    }

    /// How many flows are not over. Looks at each: for reports.
    pub(crate) fn count(&self, now: Tick) -> usize {
        let queued = Class::ALL.iter().flat_map(|&class| self.queued(class));
        queued.filter(|flow| !flow.is_over(now) && !flow.is_refused()).count()
    }

    fn queued(&self, class: Class) -> impl Iterator<Item = &Flow> {
        let mut place = self.queues[class as usize].first;
        std::iter::from_fn(move || {
            let flow = self.flows.get(usize::from(place))?;
            place = flow.behind;
            Some(flow)
        })
    }

    #[inline]
    fn chain_of(&self, key: &Key, hash: &FlowHash) -> usize {
        hash.of(key) as usize & (self.heads.len() - 1)
    }

    /// A free entry: a new one, one of a flow that is over, one of a table twice as large, or of a flow that must go.
    fn make_room(&mut self, hash: &FlowHash, now: Tick) -> Option<Place> {
        let room = self.heads.len() / 2;
        if self.free == NONE && self.flows.len() == room {
            Class::ALL.into_iter().for_each(|class| self.reap(class, SPARED, now, hash));
        }
        if self.free == NONE && self.flows.len() == room {
            if room == MAX_FLOWS {
                let gone = self.dispensable()?;
                self.remove(gone, hash);
            } else {
                self.grow((2 * room).max(FIRST_FLOWS), hash);
            }
        }
        if self.free == NONE {
            self.flows.push(Flow::vacant());
            return Some((self.flows.len() - 1) as Place);
        }
        let place = self.free;
        self.free = self.flows[usize::from(place)].chain;
        Some(place)
    }

    /// Makes room for `room` flows, all of which there are now being in use.
    fn grow(&mut self, room: usize, hash: &FlowHash) {
        self.flows.reserve_exact(room - self.flows.len());
        self.heads.clear();
        self.heads.resize(2 * room, NONE);
        for place in 0..self.flows.len() {
            let chain = self.chain_of(&self.flows[place].key, hash);
            self.flows[place].chain = std::mem::replace(&mut self.heads[chain], place as Place);
        }
    }

    /// Forgets flows of a class that are over, from the head of its queue on.
    fn reap(&mut self, class: Class, looks: u32, now: Tick, hash: &FlowHash) {
        for _ in 0..looks {
            let place = self.queues[class as usize].first;
            let Some(flow) = self.flows.get(usize::from(place)) else { return };
            if flow.is_over(now) {
                self.remove(place, hash);
            } else if flow.marks & Flow::USED != 0 {
                self.requeue(place, class);
            } else {
                return;
            }
        }
    }

    /// Which flow makes room for another: the oldest of those that nobody answered, then of those that are closing, then of
    /// those that are no connections. Connections stay.
    fn dispensable(&mut self) -> Option<Place> {
        for classes in Class::DISPENSABLE {
            let mut oldest = self.oldest(classes);
            for _ in 0..SPARED {
                let Some(place) = oldest else { break };
                let flow = self.flows[usize::from(place)];
                if flow.marks & Flow::USED == 0 {
                    break;
                }
                self.requeue(place, flow.class);
                oldest = self.oldest(classes);
            }
            if oldest.is_some() {
                return oldest;
            }
        }
        None
    }

    /// At the heads of some queues, the flow whose last packet is longest ago.
    fn oldest(&self, classes: &[Class]) -> Option<Place> {
        let heads = classes.iter().map(|&class| self.queues[class as usize].first);
        let heads = heads.filter(|&place| place != NONE);
        heads.min_by_key(|&place| self.flows[usize::from(place)].seen)
    }

    /// Puts a flow at the end of the queue of a class.
    fn requeue(&mut self, place: Place, class: Class) {
        self.dequeue(place);
        let flow = &mut self.flows[usize::from(place)];
        flow.class = class;
        flow.marks &= !Flow::USED;
        self.enqueue(place);
    }

    fn enqueue(&mut self, place: Place) {
        let queue = &mut self.queues[self.flows[usize::from(place)].class as usize];
        let last = std::mem::replace(&mut queue.last, place);
        if last == NONE {
            queue.first = place;
        } else {
            self.flows[usize::from(last)].behind = place;
        }
        let flow = &mut self.flows[usize::from(place)];
        (flow.before, flow.behind) = (last, NONE);
    }

    fn dequeue(&mut self, place: Place) {
        let Flow { class, before, behind, .. } = self.flows[usize::from(place)];
        let queue = &mut self.queues[class as usize];
        if before == NONE {
            queue.first = behind;
        }
        if behind == NONE {
            queue.last = before;
        }
        if before != NONE {
            self.flows[usize::from(before)].behind = behind;
        }
        if behind != NONE {
            self.flows[usize::from(behind)].before = before;
        }
    }
}

#[cfg(test)]
impl Flows {
    /// For how many flows there is room, without growing.
    pub(crate) const fn room(&self) -> usize {
        self.heads.len() / 2
    }

    pub(crate) fn longest_chain(&self) -> usize {
        let length = |&head: &Place| {
            let next = |place: &Place| self.flows.get(usize::from(*place)).map(|flow| flow.chain);
            std::iter::successors(Some(head), next).filter(|&place| place != NONE).count()
        };
        self.heads.iter().map(length).max().unwrap_or_default()
    }
}

impl Flow {
    /// An entry before its first flow.
    const fn vacant() -> Self {
        Self {
            key: Key::ZERO,
            class: Class::OtherOpening,
            marks: 0,
            chain: NONE,
            before: NONE,
            behind: NONE,
            seen: 0,
            rule: 0,
            generation: 0,
        }
    }
}

impl New {
    const fn marks(&self) -> u8 {
        let opened = match self.opened {
            Direction::Out => Flow::OUTWARD,
            Direction::In => 0,
        };
        let (confirmed, stage) =
            if self.confirmed { (Flow::CONFIRMED, Stage::Open) } else { (0, Stage::Asked) };
        opened | confirmed | (stage as u8) << Flow::STAGE
    }

    /// What a first packet opens, if it may open anything: a request of ICMP, a SYN or an ACK of TCP, everything else of others.
    ///
    /// An ACK, because a daemon that was started anew must not cut connections: what they were allowed by may still be there.
    pub(crate) fn class_of(protocol: u8, ends: Ends, segment: Option<Segment>) -> Option<Class> {
        Some(match (ends, segment) {
            (_, Some(Segment::Open | Segment::Go)) => Class::TcpOpening,
            (_, Some(Segment::Agree | Segment::Finish | Segment::Reset)) => return None,
            (Ends::Query { reply: false, .. }, None) => Class::Icmp,
            (Ends::Query { reply: true, .. }, None) => return None,
            (Ends::Ports { .. }, None) if protocol == crate::packet::UDP => Class::UdpOpening,
            (Ends::Ports { .. } | Ends::Nothing, None) => Class::OtherOpening,
        })
    }
}
