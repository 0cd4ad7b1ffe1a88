//! The tests of a file: openings that must pass or must not, judged by the filter that the nodes run.

use std::net::IpAddr;

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
    let mut left = OPENINGS_MAX;
    for (number, test) in (1_u32..).zip(tests) {
        if let Err(what) = enough(test, members, &mut left) {
            report.error(test.at, || {
                format!("test {number} makes it more than {OPENINGS_MAX} {what} to judge: test fewer pairs")
            });
            return;
        }
        Judge { number, test, members, rules }.judge(report);
    }
}

/// Takes what a test costs at most from what may still be judged.
fn enough(test: &Test<'_>, members: &[Member], left: &mut usize) -> Result<(), &'static str> {
    let ends = |parties: &[Party]| parties.iter().map(|party| party.addresses(members).len()).sum::<usize>();
    let openings = ends(&test.from).saturating_mul(ends(&test.to)).saturating_mul(test.asked.len());
    *left = left.checked_sub(openings).ok_or("openings")?;
    Ok(())
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
        let mut failures: Vec<Failures> = self.test.asked.iter().map(|_| Failures::default()).collect();
        let (mut pairs, mut meet) = (0_usize, 0_usize);
        for from in &self.test.from {
            for to in &self.test.to {
                if !self.is_judged(*from, *to) {
                    continue;
                }
                pairs += 1;
                meet += self.pair(*from, *to, &mut failures);
            }
        }
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

    /// Judges everything asked for between two members; returns how many pairs of addresses there are.
    fn pair(&self, from: Party, to: Party, failures: &mut [Failures]) -> usize {
        let (source, destination) = (&self.members[from.member], &self.members[to.member]);
        let rules = || (0_u64..).zip(self.rules.iter().copied());
        let outward = has_filter(source).then(|| Filter::of(source, [destination], rules(), &[]));
        let inward = has_filter(destination).then(|| Filter::of(destination, [source], rules(), &[]));
        let mut pairs = 0;
        for near in from.addresses(self.members) {
            for far in to.addresses(self.members).into_iter().filter(|far| far.is_ipv4() == near.is_ipv4()) {
                pairs += 1;
                let pair = Pair { source: from.member, destination: to.member, addresses: (near, far) };
                for ((asked, must_pass), failures) in self.test.asked.iter().zip(failures.iter_mut()) {
                    let opening = opening(asked.it, near, far);
                    let decisions = [
                        outward
                            .as_ref()
                            .map(|filter| filter.decide(destination.id, Direction::Out, &opening)),
                        inward.as_ref().map(|filter| filter.decide(source.id, Direction::In, &opening)),
                    ];
                    let decisions = || decisions.iter().flatten();
                    if decisions().all(|decision| decision.is_allowed()) != *must_pass {
                        let rule = decisions().find_map(|decision| match decision {
                            Decision::Allowed { rule } => *rule,
                            Decision::Denied | Decision::DeniedLocally { .. } => None,
                        });
                        failures.add(pair, rule.filter(|_| !must_pass));
                    }
                }
            }
        }
        pairs
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
