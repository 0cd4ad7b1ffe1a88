//! The filter at work: each packet is of a flow that may pass, opens one that may, or goes no further.
//!
//! [`Gate::judge`] is asked by both directions. It keeps to one rule: what passes without opening a flow passes because the
//! flow it belongs to is allowed by the filter in force, in the direction in which it was opened.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use std::sync::Arc;
use std::time::Instant;

use super::flow::{FlowHash, Flows, Key, New, Passed, Piece, RuleSlot, Step, Tick, Ticks};
use super::report::{Counters, FilterReport};
use super::{Decision, Direction, Filter, Opening};
use crate::drop_reason::DropReason;
use crate::key::NodeId;
use crate::packet::{Content, Ends, Header, Quoted, Segment, Transport};
use crate::random::{NoRandomness, Random};

/// A worker's filter, with what all flows have in common; the flows themselves are with their peers.
#[derive(Debug)]
pub(crate) struct Gate {
    filter: Arc<Filter>,
    /// Counts the filters there were: a flow that an earlier one judged is judged anew.
    generation: u32,
    counters: Counters,
    passed_in: u64,
    passed_out: u64,
    hash: FlowHash,
    ticks: Ticks,
}

/// A packet on its way, as the filter sees it.
#[derive(Clone, Copy)]
struct Passage<'a> {
    peer: NodeId,
    direction: Direction,
    header: &'a Header,
    content: &'a Content,
    now: Tick,
}

/// That a packet may pass, and what allows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "what passes is counted"]
pub(crate) struct Pass(Option<RuleSlot>);

impl Gate {
    /// Lets nothing pass until it is given a filter.
    pub(crate) fn new(random: &mut Random) -> Result<Self, NoRandomness> {
        Ok(Self {
            filter: Arc::new(Filter::deny_all()),
            generation: 0,
            counters: Counters::default(),
            passed_in: 0,
            passed_out: 0,
            hash: FlowHash::new(random)?,
            ticks: Ticks::default(),
        })
    }

    /// Judges by another filter from now on. An equal one changes nothing.
    pub(crate) fn apply(&mut self, filter: Arc<Filter>, now: Instant) {
        self.ticks.at(now);
        // By the pointer first: mostly it is the very same.
        if filter != self.filter {
            self.counters = self.counters.carried_over(&self.filter, &filter);
            self.generation = self.generation.wrapping_add(1);
            self.filter = filter;
        }
    }

    /// What was counted so far, without the flows.
    pub(crate) fn report(&self) -> FilterReport {
        let report = self.counters.report(&self.filter);
        FilterReport { passed_in: self.passed_in, passed_out: self.passed_out, ..report }
    }

    #[cfg(test)]
    pub(crate) fn filter(&self) -> &Filter {
        &self.filter
    }

    /// How many of a peer's flows are not over.
    pub(crate) fn count(&self, flows: &Flows) -> usize {
        flows.count(self.ticks.last())
    }

    /// Counts a packet that passed.
    #[inline]
    pub(crate) fn passed(&mut self, direction: Direction, pass: Pass) {
        let passed = match direction {
            Direction::In => &mut self.passed_in,
            Direction::Out => &mut self.passed_out,
        };
        *passed = passed.wrapping_add(1);
        if let Pass(Some(rule)) = pass {
            self.counters.passed(rule);
        }
    }

    /// Judges a packet to or from `peer`, whose flows are `flows`; `packet` has at least the bytes of which its header speaks.
    ///
    /// That the peer's address in it belongs to the peer is for the caller to know.
    #[inline]
    pub(crate) fn judge(
        &mut self,
        peer: NodeId,
        flows: &mut Flows,
        direction: Direction,
        header: &Header,
        packet: &[u8],
        now: Instant,
    ) -> Result<Pass, DropReason> {
        if self.filter.is_open() {
            return Ok(Pass(None));
        }
        let content = header.content.as_ref().map_err(|&reason| reason)?;
        let passage = Passage { peer, direction, header, content, now: self.ticks.at(now) };
        let rule = match content.transport {
            Transport::Flow { ends, segment } => self.flow(flows, &passage, ends, segment)?,
            Transport::Error => self.error(flows, &passage, packet)?,
            Transport::Later => self.later_fragment(flows, &passage)?,
            Transport::Unasked => return Err(DropReason::UnaskedIcmp),
        };
        Ok(Pass(Some(rule)))
    }

    /// A packet that has its flow's name in it.
    #[inline]
    fn flow(
        &mut self,
        flows: &mut Flows,
        passage: &Passage<'_>,
        ends: Ends,
        segment: Option<Segment>,
    ) -> Result<RuleSlot, DropReason> {
        let Passage { direction, header, content, now, .. } = *passage;
        let key = Key::of(header.source, header.destination, content.protocol, ends, direction);
        let Some(place) = flows.find(&key, &self.hash, now) else {
            return self.open(flows, passage, key, ends, segment);
        };
        let rule = match self.still_allowed(flows, passage.peer, place) {
            Ok(rule) => rule,
            Err(reason) => {
                let anew = segment == Some(Segment::Open);
                // Whoever asks for a connection anew is judged by that alone. One that is denied has nothing forgotten.
                if anew && self.new_flow(passage, key, ends, segment).is_ok() {
                    flows.remove(place, &self.hash);
                    return self.open(flows, passage, key, ends, segment);
                }
                flows.refused_again(place, direction, now);
                return Err(reason);
            }
        };
        let flow = flows.get(place);
        let opened = flow.opened();
        match flow.step(opened == direction, segment) {
            Step::Pass(stage) => flows.pass(place, direction, segment, stage, now),
            Step::Last => flows.remove(place, &self.hash),
            Step::Anew => {
                // Whoever asks for a connection opens it, whatever there was between the same ports.
                flows.remove(place, &self.hash);
                return self.open(flows, passage, key, ends, segment);
            }
            Step::Unasked => return Err(DropReason::UnaskedSegment),
        }
        if content.fragment.is_some() {
            self.first_fragment(flows, passage, &key, opened, rule);
        }
        Ok(rule)
    }

    /// A packet of no flow opens one, if it can and may.
    #[cold]
    fn open(
        &mut self,
        flows: &mut Flows,
        passage: &Passage<'_>,
        key: Key,
        ends: Ends,
        segment: Option<Segment>,
    ) -> Result<RuleSlot, DropReason> {
        let new = self.new_flow(passage, key, ends, segment)?;
        flows.open(&new, &self.hash, passage.now).ok_or(DropReason::FlowTableFull)?;
        self.counters.opened(new.rule);
        if passage.content.fragment.is_some() {
            self.first_fragment(flows, passage, &key, new.opened, new.rule);
        }
        Ok(new.rule)
    }

    fn new_flow(
        &mut self,
        passage: &Passage<'_>,
        key: Key,
        ends: Ends,
        segment: Option<Segment>,
    ) -> Result<New, DropReason> {
        let unasked = if segment.is_some() { DropReason::UnaskedSegment } else { DropReason::UnaskedIcmp };
        let class = New::class_of(passage.content.protocol, ends, segment).ok_or(unasked)?;
        let rule = self.decide(passage.peer, passage.direction, &key.opening(passage.direction))?;
        Ok(New {
            key,
            class,
            opened: passage.direction,
            confirmed: segment == Some(Segment::Go),
            rule,
            generation: self.generation,
        })
    }

    /// An ICMP error passes if it quotes a packet of a flow with this peer, which went the other way: the error goes back to
    /// who sent it.
    #[cold]
    fn error(
        &mut self,
        flows: &mut Flows,
        passage: &Passage<'_>,
        packet: &[u8],
    ) -> Result<RuleSlot, DropReason> {
        let Passage { peer, direction, header, now, .. } = *passage;
        let quoted = packet.get(..header.len).and_then(|packet| Quoted::parse(header.family(), packet));
        let quoted = quoted.filter(|quoted| quoted.source == header.destination);
        let quoted = quoted.ok_or(DropReason::UnaskedIcmp)?;
        let went = direction.other();
        let key = Key::of(quoted.source, quoted.destination, quoted.protocol, quoted.ends, went);
        let place = flows.find(&key, &self.hash, now).ok_or(DropReason::UnaskedIcmp)?;
        if direction == Direction::Out && !self.filter.owns(header.source) {
            return Err(DropReason::NotFromUs);
        }
        self.still_allowed(flows, peer, place)
    }

    /// The rule that allows a flow, by the filter in force. One that it does not allow is kept as refused: forgotten, the next
    /// packet of the side that answered would open it again the other way round, wherever that side may open flows.
    #[inline]
    fn still_allowed(&mut self, flows: &mut Flows, peer: NodeId, place: u16) -> Result<RuleSlot, DropReason> {
        let flow = flows.get(place);
        if flow.generation == self.generation && !flow.is_refused() {
            return Ok(flow.rule);
        }
        let (opened, opening) = (flow.opened(), flow.key().opening(flow.opened()));
        let judged = self.decide(peer, opened, &opening);
        match judged {
            Ok(rule) => flows.renew(place, rule, self.generation),
            Err(_) => flows.refuse(place, self.generation),
        }
        judged
    }

    /// The first fragment of a datagram passes, so what follows it may.
    #[cold]
    fn first_fragment(
        &self,
        flows: &mut Flows,
        passage: &Passage<'_>,
        key: &Key,
        opened: Direction,
        rule: RuleSlot,
    ) {
        let Some(piece) = passage.piece() else { return };
        let passed = Passed { opening: key.opening(opened), opened, rule, generation: self.generation };
        flows.fragments.begin(&piece, passed, &self.hash, passage.now);
    }

    /// A later fragment passes if the first one did, and it leaves alone what was judged.
    #[cold]
    fn later_fragment(&mut self, flows: &mut Flows, passage: &Passage<'_>) -> Result<RuleSlot, DropReason> {
        let piece = passage.piece().ok_or(DropReason::UnaskedFragment)?;
        let found = flows.fragments.find(&piece, &self.hash, passage.now);
        let (mut passed, follows) = found.ok_or(DropReason::UnaskedFragment)?;
        if passed.generation != self.generation {
            let judged = self.decide(passage.peer, passed.opened, &passed.opening);
            let rule = judged.inspect_err(|_| flows.fragments.renew(&piece, None, &self.hash))?;
            (passed.rule, passed.generation) = (rule, self.generation);
            flows.fragments.renew(&piece, Some(passed), &self.hash);
        }
        if follows { Ok(passed.rule) } else { Err(DropReason::OverlappingFragment) }
    }

    /// Asks the filter, and counts what this node's owner denies.
    fn decide(
        &mut self,
        peer: NodeId,
        direction: Direction,
        opening: &Opening,
    ) -> Result<RuleSlot, DropReason> {
        match self.filter.decide(peer, direction, opening) {
            Decision::Allowed { rule } => {
                Ok(rule.and_then(|rule| self.filter.slot_of(rule)).unwrap_or(RuleSlot::MAX))
            }
            Decision::DeniedLocally { denial } => {
                self.counters.denied(denial);
                Err(DropReason::DeniedLocally)
            }
            Decision::Denied => Err(match direction {
                Direction::In if !self.filter.owns(opening.destination) => DropReason::NotForUs,
                Direction::Out if !self.filter.owns(opening.source) => DropReason::NotFromUs,
                Direction::In | Direction::Out => DropReason::Denied,
            }),
        }
    }
}

impl Passage<'_> {
    fn piece(&self) -> Option<Piece> {
        let Header { source, destination, .. } = *self.header;
        self.content.fragment.map(|fragment| Piece::of(source, destination, fragment, self.direction))
    }
}
