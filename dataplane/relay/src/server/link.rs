//! Streams as the server sees them: a bounded queue of frames each, and whose they are.

use std::collections::{BTreeMap, VecDeque};
use std::task::Waker;
use std::time::Instant;

use ringmesh_tunnel::key::NodeId;
use ringmesh_tunnel::{Carrier, Link};

use super::Limits;
use crate::drops::RelayDrop;
use crate::frame::{self, HEADER_LEN, MAX_MESSAGE_LEN};

/// What a stream's task is to do.
#[derive(Debug)]
pub(super) enum Chunk {
    /// Write this as one message: whole frames.
    Message(Vec<u8>),
    /// There is nothing; the waker will be woken.
    Nothing,
    /// End: it does not drain, or whose it is may be here no more.
    Cut,
}

#[derive(Debug, Default)]
struct State {
    /// Messages of whole frames, each as full as its turn made it.
    queue: VecDeque<Vec<u8>>,
    /// Bytes in the queue.
    queued: usize,
    /// Bytes that the task took and has not written yet.
    in_flight: usize,
    /// When something was written last, or was there to be written after a while without.
    moved: Option<Instant>,
    waker: Option<Waker>,
    /// Networks that may remember it, a bit each.
    touched: u64,
    proven: bool,
    /// Network and node that it is charged to.
    owner: Option<(u8, NodeId)>,
    cut: bool,
}

/// All streams of a server.
#[derive(Debug)]
pub(super) struct Links {
    limits: Limits,
    states: BTreeMap<u32, State>,
    last: u32,
    cut: u64,
}

impl State {
    fn cut(&mut self) -> bool {
        self.queue = VecDeque::new();
        self.queued = 0;
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        !std::mem::replace(&mut self.cut, true)
    }
}

impl Links {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, states: BTreeMap::new(), last: 0, cut: 0 }
    }

    /// A new stream; none if there are too many.
    pub(super) fn open(&mut self) -> Option<Link> {
        if self.states.len() >= self.limits.websockets {
            return None;
        }
        // After four thousand million of them numbers come again, but never one that is in use.
        loop {
            self.last = self.last.wrapping_add(1);
            if !self.states.contains_key(&self.last) {
                break;
            }
        }
        self.states.insert(self.last, State::default());
        Some(Link { number: self.last, carrier: Carrier::WebSocket })
    }

    /// Forgets a stream; returns the networks that may remember it, a bit each.
    pub(super) fn close(&mut self, link: Link) -> u64 {
        self.states.remove(&link.number).map_or(0, |state| state.touched)
    }

    /// A network's tunnel took something that came by it.
    pub(super) fn touched(&mut self, link: Link, worker: u8) {
        if let Some(state) = self.states.get_mut(&link.number) {
            state.touched |= 1 << worker;
        }
    }

    /// Queues a datagram. When there is no room it is dropped, as on any network; when there is none and nothing was written for a
    /// while, the stream is cut. So a burst, or a sender who means harm, ends nobody's stream that drains.
    pub(super) fn push(&mut self, link: Link, datagram: &[u8], now: Instant) -> Result<(), RelayDrop> {
        let state = self.states.get_mut(&link.number).ok_or(RelayDrop::NoLink)?;
        if state.cut {
            return Err(RelayDrop::NoLink);
        }
        let length = HEADER_LEN + datagram.len();
        let waiting = state.queued + state.in_flight;
        let moved = *if waiting == 0 { state.moved.insert(now) } else { state.moved.get_or_insert(now) };
        if waiting + length > self.limits.send_queue {
            if now.saturating_duration_since(moved) >= self.limits.stalled {
                self.cut += u64::from(state.cut());
            }
            return Err(RelayDrop::SlowReader);
        }
        if state.queue.back().is_none_or(|last| last.len() + length > MAX_MESSAGE_LEN) {
            state.queue.push_back(Vec::new());
        }
        if let Some(last) = state.queue.back_mut() {
            frame::push(last, datagram).map_err(|_| RelayDrop::TooLong)?;
        }
        state.queued += length;
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
        Ok(())
    }

    pub(super) fn next_chunk(&mut self, link: Link, waker: &Waker) -> Chunk {
        let Some(state) = self.states.get_mut(&link.number) else { return Chunk::Cut };
        if state.cut {
            return Chunk::Cut;
        }
        match state.queue.pop_front() {
            Some(message) => {
                state.queued -= message.len();
                state.in_flight += message.len();
                Chunk::Message(message)
            }
            None => {
                if !state.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
                    state.waker = Some(waker.clone());
                }
                Chunk::Nothing
            }
        }
    }

    /// Sees that the task hears of a cut while it has something to write.
    pub(super) fn wake_when_cut(&mut self, link: Link, waker: &Waker) -> bool {
        let Some(state) = self.states.get_mut(&link.number) else { return true };
        state.waker = Some(waker.clone());
        state.cut
    }

    pub(super) fn written(&mut self, link: Link, now: Instant) {
        if let Some(state) = self.states.get_mut(&link.number) {
            state.in_flight = 0;
            state.moved = Some(now);
        }
    }

    pub(super) fn is_proven(&self, link: Link) -> bool {
        self.states.get(&link.number).is_some_and(|state| state.proven)
    }

    pub(super) fn is_owned(&self, link: Link) -> bool {
        self.states.get(&link.number).is_some_and(|state| state.owner.is_some())
    }

    /// The stream is a member's. Of too many of one member, the oldest is cut.
    pub(super) fn prove(&mut self, link: Link, worker: u8, owner: Option<NodeId>) {
        let Some(state) = self.states.get_mut(&link.number) else { return };
        state.proven = true;
        let Some(owner) = owner else { return };
        state.owner = Some((worker, owner));
        let owned = |state: &State| state.owner == Some((worker, owner)) && !state.cut;
        let count = self.states.values().filter(|state| owned(state)).count();
        if count > self.limits.websockets_per_client
            && let Some((_, oldest)) = self.states.iter_mut().find(|(_, state)| owned(state))
        {
            self.cut += u64::from(oldest.cut());
        }
    }

    /// Cuts a stream.
    pub(super) fn cut(&mut self, link: Link) {
        if let Some(state) = self.states.get_mut(&link.number) {
            self.cut += u64::from(state.cut());
        }
    }

    /// Cuts the streams of nodes that are no members any more.
    pub(super) fn cut_owned(&mut self, worker: u8, owners: &[NodeId]) {
        self.cut_if(|(network, node)| network == worker && owners.contains(&node));
    }

    /// Cuts the streams of a network that is gone.
    pub(super) fn cut_network(&mut self, worker: u8) {
        self.cut_if(|(network, _)| network == worker);
    }

    fn cut_if(&mut self, gone: impl Fn((u8, NodeId)) -> bool) {
        for state in self.states.values_mut() {
            if state.owner.is_some_and(&gone) {
                self.cut += u64::from(state.cut());
            }
        }
    }

    pub(super) fn count(&self) -> usize {
        self.states.len()
    }

    pub(super) fn cut_count(&self) -> u64 {
        self.cut
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LIMITS: Limits =
        Limits { send_queue: 200 << 10, websockets: 3, websockets_per_client: 2, ..Limits::DEFAULT };

    fn node(number: u8) -> NodeId {
        NodeId::from_bytes([number; 8])
    }

    #[test]
    fn frames_leave_in_order_in_messages_no_longer_than_allowed() {
        let (mut links, now) = (Links::new(LIMITS), Instant::now());
        let link = links.open().unwrap();
        for number in 0..100u8 {
            links.push(link, &[number; 1500], now).unwrap();
        }
        let mut next = 0;
        while let Chunk::Message(mut message) = links.next_chunk(link, Waker::noop()) {
            assert!(message.len() <= MAX_MESSAGE_LEN);
            for datagram in frame::frames_mut(&mut message) {
                assert_eq!(datagram.unwrap(), [next; 1500]);
                next += 1;
            }
        }
        assert_eq!(next, 100);
    }

    #[test]
    fn who_does_not_read_is_cut_and_what_was_taken_but_not_written_counts() {
        let (mut links, now) = (Links::new(LIMITS), Instant::now());
        let link = links.open().unwrap();
        let mut pushed = 0;
        while links.push(link, &[0; 1000], now).is_ok() {
            pushed += 1002;
            // The task takes what there is and never gets it written.
            let _ = links.next_chunk(link, Waker::noop());
        }
        assert!(pushed <= LIMITS.send_queue && pushed > LIMITS.send_queue - 1002, "{pushed}");
        let later = now + LIMITS.stalled;
        assert_eq!(
            links.push(link, &[0; 1000], later - Duration::from_millis(1)),
            Err(RelayDrop::SlowReader)
        );
        assert_eq!(links.cut_count(), 0, "not for a burst");
        assert_eq!(links.push(link, &[0; 1000], later), Err(RelayDrop::SlowReader));
        assert!(matches!(links.next_chunk(link, Waker::noop()), Chunk::Cut));
        assert_eq!(links.push(link, &[0], later), Err(RelayDrop::NoLink));
        assert_eq!(links.cut_count(), 1);
    }

    #[test]
    fn a_flood_ends_no_stream_that_drains() {
        let (mut links, mut now) = (Links::new(LIMITS), Instant::now());
        let link = links.open().unwrap();
        let mut dropped = 0;
        for _ in 0..100 {
            for _ in 0..500 {
                dropped += u32::from(links.push(link, &[0; 1000], now).is_err());
            }
            now += LIMITS.stalled / 2;
            let _ = links.next_chunk(link, Waker::noop());
            links.written(link, now);
        }
        assert!(dropped > 10_000, "{dropped}");
        assert_eq!(links.cut_count(), 0);
        // A rest is no stall: what counts is how long something waits.
        while let Chunk::Message(_) = links.next_chunk(link, Waker::noop()) {}
        links.written(link, now);
        now += 10 * LIMITS.stalled;
        for _ in 0..500 {
            let _ = links.push(link, &[0; 1000], now);
        }
        assert_eq!(links.cut_count(), 0);
    }

    #[test]
    fn streams_are_bounded_in_all_and_per_member() {
        let mut links = Links::new(LIMITS);
        let all: Vec<_> = std::iter::from_fn(|| links.open()).collect();
        assert_eq!(all.len(), 3);
        all.iter().for_each(|&link| links.prove(link, 1, Some(node(1))));
        let cut: Vec<_> =
            all.iter().map(|&link| matches!(links.next_chunk(link, Waker::noop()), Chunk::Cut)).collect();
        assert_eq!(cut, [true, false, false], "the oldest");
        links.close(all[0]);
        assert_eq!(links.open().map(|link| link.number), Some(4), "no number is used twice");
    }

    #[test]
    fn a_members_streams_end_with_its_membership_and_no_others() {
        let mut links = Links::new(LIMITS);
        let [a, b, c] = std::array::from_fn(|_| links.open().unwrap());
        links.prove(a, 1, Some(node(1)));
        links.prove(b, 2, Some(node(1)));
        links.prove(c, 1, Some(node(2)));
        links.cut_owned(1, &[node(1)]);
        let cut = |links: &mut Links, link| matches!(links.next_chunk(link, Waker::noop()), Chunk::Cut);
        assert_eq!([a, b, c].map(|link| cut(&mut links, link)), [true, false, false]);
        links.cut_network(2);
        assert_eq!([a, b, c].map(|link| cut(&mut links, link)), [true, true, false]);
    }
}
