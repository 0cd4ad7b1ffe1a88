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

/// A packet that asks to pass, or segments that differ in nothing the filter looks at and are judged as the one packet that
/// they were cut from.
#[derive(Clone, Copy)]
pub(crate) struct Passage<'a> {
    pub(crate) direction: Direction,
    pub(crate) header: &'a Header,
    /// At least the bytes of which the header speaks.
    pub(crate) packet: &'a [u8],
    /// How many packets are judged; 1 unless it is a super-packet.
    pub(crate) packets: u64,
}

/// A passage as it is judged.
#[derive(Clone, Copy)]
struct Case<'a> {
    peer: NodeId,
    direction: Direction,
    header: &'a Header,
    content: &'a Content,
    packets: u64,
    now: Tick,
}

/// That a packet may pass, and what allows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "what passes is counted"]
pub(crate) struct Pass {
    rule: Option<RuleSlot>,
    /// Whether the flow is as it was before: the same packet again would pass, too, and change nothing.
    steady: bool,
}

/// The last packet that was judged, if another like it behind it need not be: of a train, most are of one flow, and between
/// two neighbours of it nothing happens.
///
/// Good for one peer and direction, and as long as neither the time nor the filter changes and nothing else is judged.
#[derive(Debug, Default)]
pub(crate) struct Neighbour(Option<(Header, Pass)>);

impl Neighbour {
    /// What was said of the packet before, if this one is like it in all that the filter looks at.
    #[inline]
    pub(crate) fn pass_of(&self, header: &Header) -> Option<Pass> {
        let (before, pass) = self.0.as_ref()?;
        let same = before.content == header.content
            && before.source == header.source
            && before.destination == header.destination;
        same.then_some(*pass)
    }

    /// Nothing is known any more: another packet is about to be judged.
    #[inline]
    pub(crate) fn forget(&mut self) {
        self.0 = None;
    }

    /// A packet was judged and may pass.
    #[inline]
    pub(crate) fn remember(&mut self, header: &Header, pass: Pass) {
        self.0 = pass.steady.then_some((*header, pass));
    }
}

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

    /// Counts packets that passed.
    #[inline]
    pub(crate) fn passed(&mut self, direction: Direction, pass: Pass, packets: u64) {
        let passed = match direction {
            Direction::In => &mut self.passed_in,
            Direction::Out => &mut self.passed_out,
        };
        *passed = passed.wrapping_add(packets);
        if let Some(rule) = pass.rule {
            self.counters.passed(rule, packets);
        }
    }

    /// Judges a packet to or from `peer`, whose flows are `flows`.
    ///
    /// That the peer's address in it belongs to the peer is for the caller to know.
    #[inline]
    pub(crate) fn judge(
        &mut self,
        peer: NodeId,
        flows: &mut Flows,
        passage: Passage<'_>,
        now: Instant,
    ) -> Result<Pass, DropReason> {
        if self.filter.is_open() {
            return Ok(Pass { rule: None, steady: true });
        }
        let Passage { direction, header, packet, packets } = passage;
        let content = header.content.as_ref().map_err(|&reason| reason)?;
        let case = Case { peer, direction, header, content, packets, now: self.ticks.at(now) };
        let judged_anew = |rule| Pass { rule: Some(rule), steady: false };
        match content.transport {
            Transport::Flow { ends, segment } => self.flow(flows, &case, ends, segment),
            Transport::Error => self.error(flows, &case, packet).map(judged_anew),
            Transport::Later => self.later_fragment(flows, &case).map(judged_anew),
            Transport::Unasked => Err(DropReason::UnaskedIcmp),
        }
    }

    /// A packet that has its flow's name in it.
    #[inline]
    fn flow(
        &mut self,
        flows: &mut Flows,
        case: &Case<'_>,
        ends: Ends,
        segment: Option<Segment>,
    ) -> Result<Pass, DropReason> {
        let Case { direction, header, content, now, .. } = *case;
        let key = Key::of(header.source, header.destination, content.protocol, ends, direction);
        let Some(place) = flows.find(&key, &self.hash, now) else {
            return self.open(flows, case, key, ends, segment);
        };
        let rule = match self.still_allowed(flows, case, place) {
            Ok(rule) => rule,
            Err(reason) => {
                let anew = segment == Some(Segment::Open);
                // Whoever asks for a connection anew is judged by that alone. One that is denied has nothing forgotten.
                if anew && self.new_flow(case, key, ends, segment).is_ok() {
                    flows.remove(place, &self.hash);
                    return self.open(flows, case, key, ends, segment);
                }
                flows.refused_again(place, direction, now);
                return Err(reason);
            }
        };
        let flow = flows.get(place);
        let opened = flow.opened();
        let mut steady = false;
        match flow.step(opened == direction, segment) {
            Step::Pass(stage) => {
                let settled = flows.pass(place, direction, segment, stage, now);
                // Of a connection a second FIN, say, is more than the first; a second ACK is not.
                steady = settled && matches!(segment, None | Some(Segment::Go)) && content.fragment.is_none();
            }
            Step::Last => flows.remove(place, &self.hash),
            Step::Anew => {
                // Whoever asks for a connection opens it, whatever there was between the same ports.
                flows.remove(place, &self.hash);
                return self.open(flows, case, key, ends, segment);
            }
            Step::Unasked => return Err(DropReason::UnaskedSegment),
        }
        if content.fragment.is_some() {
            self.first_fragment(flows, case, &key, opened, rule);
        }
        Ok(Pass { rule: Some(rule), steady })
    }

    /// A packet of no flow opens one, if it can and may.
    #[cold]
    fn open(
        &mut self,
        flows: &mut Flows,
        case: &Case<'_>,
        key: Key,
        ends: Ends,
        segment: Option<Segment>,
    ) -> Result<Pass, DropReason> {
        let new = self.new_flow(case, key, ends, segment)?;
        flows.open(&new, &self.hash, case.now).ok_or(DropReason::FlowTableFull)?;
        self.counters.opened(new.rule);
        if case.content.fragment.is_some() {
            self.first_fragment(flows, case, &key, new.opened, new.rule);
        }
        Ok(Pass { rule: Some(new.rule), steady: false })
    }

    fn new_flow(
        &mut self,
        case: &Case<'_>,
        key: Key,
        ends: Ends,
        segment: Option<Segment>,
    ) -> Result<New, DropReason> {
        let unasked = if segment.is_some() { DropReason::UnaskedSegment } else { DropReason::UnaskedIcmp };
        let class = New::class_of(case.content.protocol, ends, segment).ok_or(unasked)?;
        let rule = self.decide(case, case.direction, &key.opening(case.direction))?;
        Ok(New {
            key,
            class,
            opened: case.direction,
            confirmed: segment == Some(Segment::Go),
            rule,
            generation: self.generation,
        })
    }

    /// An ICMP error passes if it quotes a packet of a flow with this peer, which went the other way: the error goes back to
    /// who sent it.
    #[cold]
    fn error(&mut self, flows: &mut Flows, case: &Case<'_>, packet: &[u8]) -> Result<RuleSlot, DropReason> {
        let Case { direction, header, now, .. } = *case;
        let quoted = packet.get(..header.len).and_then(|packet| Quoted::parse(header.family(), packet));
        let quoted = quoted.filter(|quoted| quoted.source == header.destination);
        let quoted = quoted.ok_or(DropReason::UnaskedIcmp)?;
        let went = direction.other();
        let key = Key::of(quoted.source, quoted.destination, quoted.protocol, quoted.ends, went);
        let place = flows.find(&key, &self.hash, now).ok_or(DropReason::UnaskedIcmp)?;
        if direction == Direction::Out && !self.filter.owns(header.source) {
            return Err(DropReason::NotFromUs);
        }
        self.still_allowed(flows, case, place)
    }

    /// The rule that allows a flow, by the filter in force. One that it does not allow is kept as refused: forgotten, the next
    /// packet of the side that answered would open it again the other way round, wherever that side may open flows.
    #[inline]
    fn still_allowed(
        &mut self,
        flows: &mut Flows,
        case: &Case<'_>,
        place: u16,
    ) -> Result<RuleSlot, DropReason> {
        let flow = flows.get(place);
        if flow.generation == self.generation && !flow.is_refused() {
            return Ok(flow.rule);
        }
        let (opened, opening) = (flow.opened(), flow.key().opening(flow.opened()));
        let judged = self.decide(case, opened, &opening);
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
        case: &Case<'_>,
        key: &Key,
        opened: Direction,
        rule: RuleSlot,
    ) {
        let Some(piece) = case.piece() else { return };
        let passed = Passed { opening: key.opening(opened), opened, rule, generation: self.generation };
        flows.fragments.begin(&piece, passed, &self.hash, case.now);
    }

    /// A later fragment passes if the first one did, and it leaves alone what was judged.
    #[cold]
    fn later_fragment(&mut self, flows: &mut Flows, case: &Case<'_>) -> Result<RuleSlot, DropReason> {
        let piece = case.piece().ok_or(DropReason::UnaskedFragment)?;
        let found = flows.fragments.find(&piece, &self.hash, case.now);
        let (mut passed, follows) = found.ok_or(DropReason::UnaskedFragment)?;
        if passed.generation != self.generation {
            let judged = self.decide(case, passed.opened, &passed.opening);
            let rule = judged.inspect_err(|_| flows.fragments.renew(&piece, None, &self.hash))?;
            (passed.rule, passed.generation) = (rule, self.generation);
            flows.fragments.renew(&piece, Some(passed), &self.hash);
        }
        if follows { Ok(passed.rule) } else { Err(DropReason::OverlappingFragment) }
    }

    /// Asks the filter, and counts what this node's owner denies.
    fn decide(
        &mut self,
        case: &Case<'_>,
        direction: Direction,
        opening: &Opening,
    ) -> Result<RuleSlot, DropReason> {
        match self.filter.decide(case.peer, direction, opening) {
            Decision::Allowed { rule } => {
                Ok(rule.and_then(|rule| self.filter.slot_of(rule)).unwrap_or(RuleSlot::MAX))
            }
            Decision::DeniedLocally { denial } => {
                self.counters.denied(denial, case.packets);
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

impl Case<'_> {
    fn piece(&self) -> Option<Piece> {
        let Header { source, destination, .. } = *self.header;
        self.content.fragment.map(|fragment| Piece::of(source, destination, fragment, self.direction))
    }
}
