//! The tests of a file: openings that must pass or must not, judged by the filter that the nodes run.

use std::{collections::BTreeMap, net::IpAddr};

use ringmesh_tunnel::{
    filter::{Decision, Direction, Filter, Opening},
    netmap::{Member, Rule},
};

use super::{
    compile::own_addresses,
    describe::describe,
    problem::{Report, quote},
    roster::has_filter,
    text::{Asked, At},
};

/// The most openings that the tests of one file may be about, all pairs and address families counted.
pub const OPENINGS_MAX: usize = 20_000;

/// The most words of rules that these openings may be compared with, each counted once for every opening: about a second's work.
pub(super) const COMPARISONS_MAX: usize = 100_000_000;

/// How many pairs of a rule and a member one filter is made for at a time, which bounds its memory.
const CLAUSES_MAX: usize = 1_000_000;

/// The longest description of a rule in a message, characters.
const RULE_TEXT_MAX: usize = 120;

/// A test, with its names bound.
#[derive(Debug)]
pub(super) struct Test<'f> {
    pub(super) at: usize,
    pub(super) from: Vec<Party>,
    pub(super) to: Vec<Party>,
    /// What is asked for, and whether it must pass.
    pub(super) asked: Vec<(&'f At<Asked>, bool)>,
}

/// A member at one end of a test, by its place among the members.
#[derive(Debug, Clone, Copy)]
pub(super) struct Party {
    pub(super) member: usize,
    /// None: each of its own.
    pub(super) address: Option<IpAddr>,
}

impl Party {
    fn addresses(self, members: &[Member]) -> Vec<IpAddr> {
        match self.address {
            Some(address) => vec![address],
            None => own_addresses(&members[self.member]).collect(),
        }
    }
}

/// An opening that a test is about.
#[derive(Debug, Clone, Copy)]
struct Pair {
    source: usize,
    destination: usize,
    addresses: (IpAddr, IpAddr),
}

/// Judges the tests; what fails is an error at the word that asked for it.
pub(super) fn judge(tests: &[Test<'_>], members: &[Member], rules: &[&Rule], report: &mut Report<'_>) {
    let mut left = Left { openings: OPENINGS_MAX, comparisons: COMPARISONS_MAX };
    let words =
        rules.iter().map(|rule| rule.sources.len() + rule.destinations.len() + rule.ports.len()).sum();
    for (number, test) in (1_u32..).zip(tests) {
        if let Err(what) = left.take(test, members, words) {
            report.error(test.at, || format!("test {number} makes it {what}: test fewer pairs"));
            return;
        }
        Judge { number, test, members, rules }.judge(report);
    }
}

/// What the tests of one file may still cost.
struct Left {
    openings: usize,
    comparisons: usize,
}

impl Left {
    /// Takes what a test costs at most, where every opening may be compared with each of `words`.
    fn take(&mut self, test: &Test<'_>, members: &[Member], words: usize) -> Result<(), String> {
        let ends =
            |parties: &[Party]| parties.iter().map(|party| party.addresses(members).len()).sum::<usize>();
        let openings = ends(&test.from).saturating_mul(ends(&test.to)).saturating_mul(test.asked.len());
        let too_many = |most: usize, what: &str| format!("more than {most} {what}");
        self.openings =
            self.openings.checked_sub(openings).ok_or_else(|| too_many(OPENINGS_MAX, "openings to judge"))?;
        self.comparisons = self
            .comparisons
            .checked_sub(openings.saturating_mul(words))
            .ok_or_else(|| too_many(COMPARISONS_MAX, "comparisons of openings with the words of rules"))?;
        Ok(())
    }
}

struct Judge<'j> {
    number: u32,
    test: &'j Test<'j>,
    members: &'j [Member],
    rules: &'j [&'j Rule],
}

/// What went wrong with one thing that a test asks for.
#[derive(Debug, Default)]
struct Failures {
    first: Option<(Pair, Option<u64>)>,
    others: usize,
}

impl Judge<'_> {
    fn judge(&self, report: &mut Report<'_>) {
        let pairs: Vec<(Party, Party)> = self
            .test
            .from
            .iter()
            .flat_map(|from| self.test.to.iter().map(move |to| (*from, *to)))
            .filter(|(from, to)| self.is_judged(*from, *to))
            .collect();
        let (outward, inward) = (self.verdicts(&pairs, Direction::Out), self.verdicts(&pairs, Direction::In));
        let mut failures: Vec<Failures> = self.test.asked.iter().map(|_| Failures::default()).collect();
        let mut verdicts = outward.into_iter().zip(inward);
        let mut meet = 0_usize;
        for (from, to) in &pairs {
            for addresses in self.addresses(*from, *to) {
                meet += 1;
                let pair = Pair { source: from.member, destination: to.member, addresses };
                for (((_, must_pass), failures), (out, inward)) in
                    self.test.asked.iter().zip(&mut failures).zip(&mut verdicts)
                {
                    if (out.passes && inward.passes) != *must_pass {
                        failures.add(pair, out.rule.or(inward.rule).filter(|_| !must_pass));
                    }
                }
            }
        }
        let pairs = pairs.len();
        if pairs == 0 {
            return report
                .warning(self.test.at, || format!("test {} tests nothing: {}", self.number, self.why()));
        }
        if meet == 0 {
            return report.error(self.test.at, || {
                format!(
                    "test {} is about addresses of different families, between which no packet can go: name others",
                    self.number
                )
            });
        }
        for ((asked, must_pass), failures) in self.test.asked.iter().zip(failures) {
            if let Some((pair, rule)) = failures.first {
                report.error(asked.at, || self.message(asked.it, *must_pass, pair, rule, failures.others));
            }
        }
    }

    /// Whether the mesh judges packets between the two: not those that a member sends to itself, nor those between two devices
    /// without a filter.
    fn is_judged(&self, from: Party, to: Party) -> bool {
        let filtered = [from, to].into_iter().any(|party| has_filter(&self.members[party.member]));
        from.member != to.member && filtered
    }

    fn why(&self) -> &'static str {
        let (from, to) = (&self.test.from, &self.test.to);
        if from.is_empty() {
            "nobody is meant by its `from` now"
        } else if to.is_empty() {
            "nobody is meant by its `to` now"
        } else if from.iter().all(|one| to.iter().all(|other| one.member == other.member)) {
            "both ends are one member, and what a member sends to itself passes no filter"
        } else {
            "both ends are stock WireGuard devices, which have no filter"
        }
    }

    /// The addresses between which packets can go from one party to the other.
    fn addresses(&self, from: Party, to: Party) -> impl Iterator<Item = (IpAddr, IpAddr)> + use<> {
        let far = to.addresses(self.members);
        from.addresses(self.members).into_iter().flat_map(move |near| {
            let far = far.clone().into_iter().filter(move |far| far.is_ipv4() == near.is_ipv4());
            far.map(move |far| (near, far))
        })
    }

    /// What one end of each pair says to everything asked for, in the order of pairs, addresses and what is asked. Each member's
    /// filter is made once for all pairs that it judges, and only one is there at a time.
    fn verdicts(&self, pairs: &[(Party, Party)], direction: Direction) -> Vec<Verdict> {
        let ends = |(from, to): &(Party, Party)| match direction {
            Direction::Out => (from.member, to.member),
            Direction::In => (to.member, from.member),
        };
        let (mut starts, mut verdicts) = (Vec::with_capacity(pairs.len()), Vec::new());
        let mut judged_by: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (place, pair) in pairs.iter().enumerate() {
            starts.push(verdicts.len());
            let openings = self.addresses(pair.0, pair.1).count() * self.test.asked.len();
            verdicts.extend(std::iter::repeat_n(Verdict::UNFILTERED, openings));
            judged_by.entry(ends(pair).0).or_default().push(place);
        }
        let rules = || (0_u64..).zip(self.rules.iter().copied());
        let at_once = CLAUSES_MAX / self.rules.len().max(1) + 1;
        for (judge, places) in judged_by {
            let judge = &self.members[judge];
            if !has_filter(judge) {
                continue;
            }
            for places in places.chunks(at_once) {
                let peers = places.iter().map(|place| &self.members[ends(&pairs[*place]).1]);
                let filter = Filter::of(judge, peers, rules(), &[]);
                for place in places {
                    let peer = self.members[ends(&pairs[*place]).1].id;
                    let (from, to) = pairs[*place];
                    let openings = self.addresses(from, to).flat_map(|(near, far)| {
                        self.test.asked.iter().map(move |(asked, _)| opening(asked.it, near, far))
                    });
                    for (verdict, opening) in verdicts[starts[*place]..].iter_mut().zip(openings) {
                        *verdict = filter.decide(peer, direction, &opening).into();
                    }
                }
            }
        }
        verdicts
    }

    fn message(&self, asked: Asked, must_pass: bool, pair: Pair, rule: Option<u64>, others: usize) -> String {
        let name = |place: usize| quote(&self.members[place].name);
        let family = if pair.addresses.0.is_ipv4() { "IPv4" } else { "IPv6" };
        let (verb, cause) = if must_pass {
            ("may not open", "no rule allows it".to_owned())
        } else {
            ("may open", self.rule_text(rule))
        };
        let others = match others {
            0 => String::new(),
            others => format!(", and {others} more such openings"),
        };
        format!(
            "test {} fails: {} {verb} {asked} to {} over {family} ({} -> {}): {cause}{others}",
            self.number,
            name(pair.source),
            name(pair.destination),
            pair.addresses.0,
            pair.addresses.1,
        )
    }

    fn rule_text(&self, rule: Option<u64>) -> String {
        let found = rule.and_then(|rule| Some((rule, self.rules.get(usize::try_from(rule).ok()?)?)));
        let Some((place, rule)) = found else { return "a rule allows it".into() };
        let name_of =
            |id| self.members.iter().find(|member| member.id == id).map(|member| member.name.as_str());
        let text = describe(rule, name_of);
        let more = if text.chars().nth(RULE_TEXT_MAX).is_some() { "…" } else { "" };
        let text: String = text.chars().take(RULE_TEXT_MAX).collect();
        format!("rule {} allows it ({text}{more})", place + 1)
    }
}

/// What one end says to an opening.
#[derive(Debug, Clone, Copy)]
struct Verdict {
    passes: bool,
    /// The place of the rule that allows it.
    rule: Option<u64>,
}

impl Verdict {
    /// Of a device that has no filter.
    const UNFILTERED: Self = Self { passes: true, rule: None };
}

impl From<Decision> for Verdict {
    fn from(decision: Decision) -> Self {
        match decision {
            Decision::Allowed { rule } => Self { passes: true, rule },
            Decision::Denied | Decision::DeniedLocally { .. } => Self { passes: false, rule: None },
        }
    }
}

impl Failures {
    fn add(&mut self, pair: Pair, rule: Option<u64>) {
        match self.first {
            None => self.first = Some((pair, rule)),
            Some(_) => self.others += 1,
        }
    }
}

/// The opening that a test asks for, between two addresses.
const fn opening(asked: Asked, source: IpAddr, destination: IpAddr) -> Opening {
    let (protocol, port) = match asked {
        Asked::Tcp(port) => (6, Some(port)),
        Asked::Udp(port) => (17, Some(port)),
        Asked::Icmp if source.is_ipv4() => (1, None),
        Asked::Icmp => (58, None),
        Asked::Number(number) => (number, None),
    };
    Opening { source, destination, protocol, port }
}
