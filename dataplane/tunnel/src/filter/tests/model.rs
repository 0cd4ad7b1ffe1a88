//! The filter against a model that keeps its flows in a list, in words of its own: who opened what, and what came since.

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

use super::*;
use crate::packet::build::{fragment, icmp, icmp_of};
use crate::packet::tests::almost_a_packet;

/// What a packet says, before it is bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Body {
    Tcp { ports: (u16, u16), flags: u8 },
    Udp { ports: (u16, u16) },
    Ask { id: u16, time: bool },
    Answer { id: u16, time: bool },
    Other(u8),
    Error(Box<Sent>),
    Redirect,
}

/// A packet: its way, its addresses (source first) and perhaps its place in a datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) addresses: [IpAddr; 2],
    body: Body,
    /// A number, and where it begins: all first fragments have 24 bytes.
    place: Option<(u16, u16)>,
}

impl Sent {
    fn is_v4(&self) -> bool {
        self.addresses[0].is_ipv4()
    }

    fn protocol(&self) -> u8 {
        match &self.body {
            Body::Tcp { .. } => TCP,
            Body::Udp { .. } => UDP,
            Body::Other(number) => *number,
            Body::Ask { .. } | Body::Answer { .. } | Body::Error(_) | Body::Redirect => {
                icmp_of(self.addresses[0])
            }
        }
    }

    fn payload(&self) -> Vec<u8> {
        let by_family = |v4, v6| if self.is_v4() { v4 } else { v6 };
        match &self.body {
            Body::Tcp { ports, flags } => tcp(ports.0, ports.1, *flags, &[0; 4]),
            Body::Udp { ports } => udp(ports.0, ports.1, &[0; 16]),
            Body::Ask { id, time: false } => icmp(by_family(8, 128), *id, &[0; 16]),
            Body::Answer { id, time: false } => icmp(by_family(0, 129), *id, &[0; 16]),
            Body::Ask { id, time: true } => icmp(by_family(13, 200), *id, &[0; 16]),
            Body::Answer { id, time: true } => icmp(by_family(14, 201), *id, &[0; 16]),
            Body::Other(_) => vec![0; 24],
            Body::Error(quoted) => icmp(by_family(11, 2), 0, &quoted.bytes()),
            Body::Redirect => icmp(by_family(5, 137), 0, &[0; 16]),
        }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let [source, destination] = self.addresses;
        match self.place {
            None => build::with(source, destination, self.protocol(), &self.payload()),
            Some((id, 0)) => {
                let first = [self.payload(), vec![0; 24]].concat()[..24].to_vec();
                fragment(self.addresses, self.protocol(), id, (0, true), &first)
            }
            Some((id, offset)) => fragment(self.addresses, self.protocol(), id, (offset, false), &[0; 8]),
        }
    }

    /// What rules see of it as an opening.
    fn opening(&self) -> Opening {
        let port = match self.body {
            Body::Tcp { ports, .. } | Body::Udp { ports } => Some(ports.1),
            Body::Ask { .. } | Body::Answer { .. } | Body::Other(_) | Body::Error(_) | Body::Redirect => None,
        };
        let [source, destination] = self.addresses;
        Opening { source, destination, protocol: self.protocol(), port }
    }

    /// Whether two packets that go the same way are of one flow.
    fn is_like(&self, other: &Self) -> bool {
        let same = match (&self.body, &other.body) {
            (Body::Tcp { ports: one, .. }, Body::Tcp { ports: other, .. })
            | (Body::Udp { ports: one }, Body::Udp { ports: other }) => one == other,
            (Body::Other(one), Body::Other(other)) => one == other,
            (Body::Ask { id: one, time: a }, Body::Ask { id: other, time: b }) => (one, a) == (other, b),
            _ => false,
        };
        same && self.addresses == other.addresses
    }

    /// The packet that this one would answer.
    fn asked(&self) -> Self {
        let [source, destination] = self.addresses;
        let body = match self.body.clone() {
            Body::Tcp { ports, flags } => Body::Tcp { ports: (ports.1, ports.0), flags },
            Body::Udp { ports } => Body::Udp { ports: (ports.1, ports.0) },
            Body::Answer { id, time } => Body::Ask { id, time },
            // A question answers nothing.
            Body::Ask { .. } => Body::Redirect,
            other @ (Body::Other(_) | Body::Error(_) | Body::Redirect) => other,
        };
        Self { addresses: [destination, source], body, place: None }
    }
}

/// A flow: what opened it and whither, and what is known of it since.
#[derive(Clone, Debug)]
struct Flow {
    first: Sent,
    opened: Direction,
    answered: bool,
    /// Of TCP: what passed, in its order, with whether the opener sent it.
    passed: Vec<(bool, u8)>,
    last: Instant,
    filter: usize,
    /// A filter did not allow it any more.
    refused: bool,
}

impl Flow {
    fn lasts(&self) -> Duration {
        seconds(match self.first.body {
            Body::Tcp { .. } if self.refused => 240,
            Body::Tcp { .. } if self.fins() > 0 || self.is_broken() => 240,
            Body::Tcp { .. } if self.answered && self.passed.contains(&(true, ACK)) => 7440,
            Body::Tcp { .. } => 240,
            Body::Udp { .. } => {
                if self.answered {
                    120
                } else {
                    30
                }
            }
            Body::Ask { .. } => 30,
            Body::Answer { .. } | Body::Other(_) | Body::Error(_) | Body::Redirect => 600,
        })
    }
}

/// What the story of a connection says.
impl Flow {
    fn fins(&self) -> usize {
        self.passed.iter().filter(|(_, flags)| flags & FIN != 0).count()
    }

    fn is_broken(&self) -> bool {
        self.passed.iter().any(|(_, flags)| flags & RST != 0)
    }

    /// Whether both said that they had no more to say, and an ACK came after that.
    fn is_over(&self) -> bool {
        let fins = self.passed.iter().enumerate().filter(|(_, (_, flags))| flags & FIN != 0);
        let Some((second, _)) = fins.clone().nth(1) else { return false };
        self.passed[second..].iter().any(|&(_, flags)| flags == ACK)
    }

    /// Whether the other side agreed, or there was no need to.
    fn is_agreed(&self) -> bool {
        self.passed[0].1 == ACK || self.passed.contains(&(false, SYN | ACK))
    }

    /// Whether the opener's part of the handshake is still to come.
    fn is_unconfirmed(&self) -> bool {
        self.passed[0].1 == SYN
            && !self.passed.contains(&(true, ACK))
            && self.fins() == 0
            && !self.is_broken()
    }

    /// Whether it ends so that who was asked may ask, or who asked may ask again.
    fn makes_room(&self, by_opener: bool) -> bool {
        (self.is_over() && !self.is_broken()) || (self.is_broken() && by_opener)
    }

    fn fits(&self, by_opener: bool, flags: u8) -> bool {
        let agreed = self.is_agreed() || self.is_broken();
        match flags {
            SYN => by_opener,
            RST => true,
            ACK => !by_opener || agreed,
            _ if flags & FIN != 0 => agreed,
            // SYN and ACK
            _ => !by_opener || (agreed && self.is_unconfirmed()),
        }
    }
}

struct Begun {
    direction: Direction,
    addresses: [IpAddr; 2],
    protocol: u8,
    id: u16,
    at: Instant,
    flow: Flow,
}

#[derive(Default)]
struct Model {
    flows: Vec<Flow>,
    begun: Vec<Begun>,
    filters: Vec<Filter>,
}

impl Model {
    fn decide(&self, direction: Direction, first: &Sent) -> Result<(), DropReason> {
        let opening = first.opening();
        let filter = self.filters.last().unwrap();
        let ours = match direction {
            Out => opening.source,
            In => opening.destination,
        };
        let is_ours = member(1).allowed_ips().any(|own| own.contains(ours));
        match filter.decide(id(PEER), direction, &opening) {
            Decision::Allowed { .. } => Ok(()),
            Decision::DeniedLocally { .. } => Err(DropReason::DeniedLocally),
            Decision::Denied if is_ours => Err(DropReason::Denied),
            Decision::Denied => {
                Err(if direction == In { DropReason::NotForUs } else { DropReason::NotFromUs })
            }
        }
    }

    /// The flow that a packet belongs to.
    fn find(&mut self, direction: Direction, sent: &Sent, now: Instant) -> Option<usize> {
        self.flows.retain(|flow| now - flow.last < flow.lasts());
        self.flows.iter().position(|flow| {
            if flow.opened == direction {
                flow.first.is_like(sent)
            } else {
                flow.first.is_like(&sent.asked())
            }
        })
    }

    /// Whether a flow is still allowed; if not, it is kept in mind as one that is not.
    fn still(&mut self, at: usize) -> Result<(), DropReason> {
        let flow = self.flows[at].clone();
        if flow.refused || flow.filter < self.filters.len() {
            let judged = self.decide(flow.opened, &flow.first);
            self.flows[at].filter = self.filters.len();
            self.flows[at].refused = judged.is_err();
            return judged;
        }
        Ok(())
    }

    fn judge(&mut self, direction: Direction, sent: &Sent, now: Instant) -> Result<(), DropReason> {
        if let Some((id, offset @ 1..)) = sent.place {
            return self.later(direction, sent, id, offset, now);
        }
        let flags = match sent.body {
            Body::Tcp { flags, .. } => Some(flags),
            Body::Ask { time: true, .. } | Body::Answer { time: true, .. } if !sent.is_v4() => {
                return Err(DropReason::UnaskedIcmp);
            }
            Body::Redirect => return Err(DropReason::UnaskedIcmp),
            Body::Error(_) if sent.place.is_some() => return Err(DropReason::UnaskedIcmp),
            Body::Error(ref quoted) => return self.error(direction, sent, quoted, now),
            Body::Udp { .. } | Body::Ask { .. } | Body::Answer { .. } | Body::Other(_) => None,
        };
        let mut known = self.find(direction, sent, now);
        if let Some(at) = known
            && let Err(reason) = self.still(at)
        {
            if flags != Some(SYN) || self.decide(direction, sent).is_err() {
                let flow = &mut self.flows[at];
                if flags.is_some() || flow.opened == direction {
                    flow.last = now;
                }
                return Err(reason);
            }
            self.flows.remove(at);
            known = None;
        }
        if let (Some(at), Some(flags)) = (known, flags) {
            let flow = &self.flows[at];
            let by_opener = flow.opened == direction;
            if flags == SYN && flow.makes_room(by_opener) {
                self.flows.remove(at);
                known = None;
            } else if !flow.fits(by_opener, flags) {
                return Err(DropReason::UnaskedSegment);
            }
        }
        let at = match known {
            Some(at) => at,
            None => {
                match (&sent.body, flags) {
                    (_, Some(flags)) if ![SYN, ACK].contains(&flags) => {
                        return Err(DropReason::UnaskedSegment);
                    }
                    (Body::Answer { .. }, _) => return Err(DropReason::UnaskedIcmp),
                    _ => {}
                }
                self.decide(direction, sent)?;
                self.open(direction, sent, now)
            }
        };
        let flow = &mut self.flows[at];
        flow.last = now;
        let by_opener = flow.opened == direction;
        let was_answered = flow.answered;
        flow.answered |= !by_opener;
        flow.passed.extend(flags.map(|flags| (by_opener, flags)));
        let begun = flow.clone();
        if flags == Some(RST) && !was_answered {
            self.flows.remove(at);
        }
        if let Some((id, _)) = sent.place {
            self.begun.retain(|begun| {
                (begun.direction, begun.addresses, begun.protocol, begun.id)
                    != (direction, sent.addresses, sent.protocol(), id)
            });
            self.begun.push(Begun {
                direction,
                addresses: sent.addresses,
                protocol: sent.protocol(),
                id,
                at: now,
                flow: begun,
            });
        }
        Ok(())
    }

    fn open(&mut self, direction: Direction, first: &Sent, now: Instant) -> usize {
        self.flows.push(Flow {
            first: first.clone(),
            opened: direction,
            answered: false,
            passed: Vec::new(),
            last: now,
            filter: self.filters.len(),
            refused: false,
        });
        self.flows.len() - 1
    }

    fn error(
        &mut self,
        direction: Direction,
        sent: &Sent,
        quoted: &Sent,
        now: Instant,
    ) -> Result<(), DropReason> {
        let unasked = Err(DropReason::UnaskedIcmp);
        let later = quoted.place.is_some_and(|(_, offset)| offset > 0);
        if later
            || matches!(quoted.body, Body::Error(_) | Body::Redirect)
            || quoted.addresses[0] != sent.addresses[1]
        {
            return unasked;
        }
        if let (Body::Ask { time: true, .. } | Body::Answer { time: true, .. }, false) =
            (&quoted.body, quoted.is_v4())
        {
            return unasked;
        }
        let Some(at) = self.find(direction.other(), quoted, now) else { return unasked };
        if direction == Out && !member(1).allowed_ips().any(|own| own.contains(sent.addresses[0])) {
            return Err(DropReason::NotFromUs);
        }
        self.still(at)
    }

    fn later(
        &mut self,
        direction: Direction,
        sent: &Sent,
        id: u16,
        offset: u16,
        now: Instant,
    ) -> Result<(), DropReason> {
        self.begun.retain(|begun| now - begun.at < seconds(30));
        let is_it = |begun: &Begun| {
            (begun.direction, begun.addresses, begun.protocol, begun.id)
                == (direction, sent.addresses, sent.protocol(), id)
        };
        let at = self.begun.iter().position(is_it).ok_or(DropReason::UnaskedFragment)?;
        let flow = self.begun[at].flow.clone();
        if flow.filter < self.filters.len() {
            if let Err(reason) = self.decide(flow.opened, &flow.first) {
                self.begun.remove(at);
                return Err(reason);
            }
            self.begun[at].flow.filter = self.filters.len();
        }
        if offset < 24 { Err(DropReason::OverlappingFragment) } else { Ok(()) }
    }
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    Packet(Direction, Sent),
    /// Eighths of a second.
    Wait(u64),
    Apply(usize),
}

pub(super) fn filters() -> Vec<Filter> {
    let everything = [rule(Out, Protocol::Any, None), rule(In, Protocol::Any, None)];
    let usual = [
        rule(Out, Protocol::Any, None),
        rule(In, Protocol::Tcp, Some(22)),
        rule(In, Protocol::Icmp, None),
        rule(In, Protocol::Number(47), None),
    ];
    vec![
        filter(&usual, &[]),
        filter(&everything, &[]),
        filter(&[rule(In, Protocol::Udp, Some(53)), rule(Out, Protocol::Icmp, None)], &[]),
        filter(
            &everything,
            &[denial(1, Scope::Only(In), Protocol::Tcp), denial(2, Scope::Only(Out), Protocol::Udp)],
        ),
    ]
}

fn body(quoted: Option<BoxedStrategy<Sent>>) -> BoxedStrategy<Body> {
    let port = || prop::sample::select(vec![22_u16, 53]);
    let flags = prop::sample::select(vec![SYN, SYN, SYN | ACK, ACK, ACK, ACK, FIN | ACK, RST]);
    let plain = prop_oneof![
        6 => (port(), port(), flags).prop_map(|(from, to, flags)| Body::Tcp { ports: (from, to), flags }),
        4 => (port(), port()).prop_map(|(from, to)| Body::Udp { ports: (from, to) }),
        2 => (0..2_u16, prop::bool::weighted(0.2)).prop_map(|(id, time)| Body::Ask { id, time }),
        2 => (0..2_u16, prop::bool::weighted(0.2)).prop_map(|(id, time)| Body::Answer { id, time }),
        2 => prop::sample::select(vec![47, 132]).prop_map(Body::Other),
        1 => Just(Body::Redirect),
    ];
    match quoted {
        None => plain.boxed(),
        Some(quoted) => {
            prop_oneof![8 => plain, 2 => quoted.prop_map(|sent| Body::Error(Box::new(sent)))].boxed()
        }
    }
}

fn sent(quoted: Option<BoxedStrategy<Sent>>, v4: bool) -> BoxedStrategy<(Direction, Sent)> {
    let near = if v4 {
        ["100.64.0.1", "100.64.0.1", "100.64.0.1", "192.168.0.1"]
    } else {
        ["fd00::1", "fd00::1", "fd00::1", "fd00::9"]
    };
    let far = if v4 { ["100.64.0.2", "100.64.0.2", "10.2.0.1"] } else { ["fd00::2", "fd00::2", "fd00::22"] };
    let parse = |text: &str| text.parse::<IpAddr>().unwrap();
    let place = prop_oneof![
        7 => Just(None),
        2 => (0..2_u16, Just(0_u16)).prop_map(Some),
        2 => (0..2_u16, prop::sample::select(vec![8_u16, 16, 24, 32])).prop_map(Some),
    ];
    (
        prop::sample::select(near.to_vec()),
        prop::sample::select(far.to_vec()),
        any::<bool>(),
        body(quoted),
        place,
    )
        .prop_map(move |(near, far, out, body, place)| {
            let (near, far) = (parse(near), parse(far));
            let (direction, addresses) = if out { (Out, [near, far]) } else { (In, [far, near]) };
            // Fragments of those that have 24 bytes at once.
            (direction, Sent { addresses, body, place })
        })
        .boxed()
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let packet = any::<bool>().prop_flat_map(|v4| {
        let quoted = sent(Some(sent(None, v4).prop_map(|(_, sent)| sent).boxed()), v4);
        sent(Some(quoted.prop_map(|(_, sent)| sent).boxed()), v4)
    });
    let eighths = prop_oneof![
        4 => 0..40_u64,
        2 => prop::sample::select(vec![239_u64, 240, 241, 959, 960, 961]),
        1 => prop::sample::select(vec![1919_u64, 1920, 4799, 4800, 59_519, 59_520]),
    ];
    prop_oneof![
        12 => packet.prop_map(|(direction, sent)| Step::Packet(direction, sent)),
        2 => eighths.prop_map(Step::Wait),
        1 => (0..4_usize).prop_map(Step::Apply),
    ]
}

/// Takes the steps in both; returns what became of each packet.
fn compare(steps: &[Step]) -> Result<Vec<Result<(), DropReason>>, TestCaseError> {
    let filters = filters();
    let mut node = Node::new(&[]);
    let mut model = Model::default();
    let apply = |node: &mut Node, model: &mut Model, which: usize| {
        // One that is equal is no change.
        if model.filters.last() != Some(&filters[which]) {
            model.filters.push(filters[which].clone());
        }
        node.apply(filters[which].clone());
    };
    apply(&mut node, &mut model, 0);
    let mut outcomes = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        match step {
            Step::Wait(eighths) => node.wait(TICK * u32::try_from(*eighths).unwrap()),
            Step::Apply(which) => apply(&mut node, &mut model, *which),
            Step::Packet(direction, sent) => {
                let judged = node.judge(*direction, &sent.bytes());
                let expected = model.judge(*direction, sent, node.now);
                prop_assert_eq!(judged, expected, "step {}: {:?}", number, step);
                outcomes.push(judged);
            }
        }
    }
    Ok(outcomes)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn filter_judges_as_a_list_of_flows_would(steps in prop::collection::vec(step(), 1..150)) {
        compare(&steps)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn no_bytes_make_the_filter_panic_and_what_it_cannot_read_does_not_pass(
        packets in prop::collection::vec((any::<bool>(), almost_a_packet()), 1..20),
    ) {
        let everything = [rule(Out, Protocol::Any, None), rule(In, Protocol::Any, None)];
        let mut node = Node::new(&everything);
        for (out, mut packet) in packets {
            let direction = if out { Out } else { In };
            // With the addresses of a real one, it gets further.
            if packet[0] >> 4 == 4 && packet.len() >= 20 {
                let (source, destination) = if out { (1, 2) } else { (2, 1) };
                packet[12..20].copy_from_slice(&[100, 64, 0, source, 100, 64, 0, destination]);
                build::add_up(&mut packet);
            }
            let readable = Header::parse(&packet).is_ok_and(|header| header.content.is_ok());
            let judged = node.judge(direction, &packet);
            prop_assert!(readable || judged.is_err());
        }
    }
}

#[test]
fn sequences_against_the_model_meet_every_outcome_of_the_filter() {
    let mut runner = TestRunner::deterministic();
    let steps = prop::collection::vec(step(), 150);
    let mut outcomes: BTreeMap<Option<DropReason>, u64> = BTreeMap::new();
    for _ in 0..300 {
        let steps = steps.new_tree(&mut runner).unwrap().current();
        for outcome in compare(&steps).unwrap() {
            *outcomes.entry(outcome.err()).or_default() += 1;
        }
    }
    let total: u64 = outcomes.values().sum();
    assert!(outcomes[&None] * 5 > total, "a fifth passes: {outcomes:?}");
    for reason in [
        DropReason::Denied,
        DropReason::DeniedLocally,
        DropReason::NotForUs,
        DropReason::NotFromUs,
        DropReason::UnaskedSegment,
        DropReason::UnaskedIcmp,
        DropReason::UnaskedFragment,
        DropReason::OverlappingFragment,
    ] {
        assert!(outcomes.get(&Some(reason)).is_some_and(|&count| count >= 20), "{reason}: {outcomes:?}");
    }
}
