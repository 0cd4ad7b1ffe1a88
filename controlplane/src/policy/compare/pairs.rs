//! What changes between pairs of classes, and then between pairs of members.

use std::{
    collections::{BTreeMap, HashMap},
    rc::Rc,
};

use ringmesh_tunnel::ip::Prefix;

use super::{
    Change, Plan,
    classes::{AFTER, BEFORE, Class, Classes, Part, Subject, ones},
    services::Services,
};

/// How many sets of rules are remembered with what they come to.
const SUMS_MAX: usize = 16_384;
/// Up to how many rules a set is summed up anew, which is less work than to look for it.
const FEW_RULES: u32 = 8;

/// What becomes allowed, and what stops.
const ALLOWED: usize = 0;
const STOPPED: usize = 1;

/// What changes between two sets of addresses; none of a kind if nothing does.
type Diff = [Option<Rc<Services>>; 2];

/// Parts of a member: all, or some.
type Chosen = Option<Vec<usize>>;

/// The same change between parts of two members.
#[derive(Debug)]
struct Group {
    sources: Chosen,
    destinations: Chosen,
    services: Rc<Services>,
}

/// What changes from a class to another one: what becomes allowed, and what stops.
type Cell = [Vec<Group>; 2];

pub(super) fn compare(classes: &Classes<'_>, most: usize) -> Plan {
    let mut members: Vec<Vec<usize>> = vec![Vec::new(); classes.classes.len()];
    for (place, subject) in classes.subjects.iter().enumerate() {
        members[subject.class].push(place);
    }
    let mut sums = Sums {
        rules: classes.rules.iter().map(|rule| Services::of(rule)).collect(),
        known: HashMap::new(),
        key: Vec::new(),
    };
    let mut plan = Plan::default();
    // The changes from each class, until nothing more is to be listed from its members.
    let mut rows: BTreeMap<usize, Vec<(usize, Cell)>> = BTreeMap::new();
    for (place, subject) in classes.subjects.iter().enumerate() {
        let of_class = &members[subject.class];
        if of_class.first() == Some(&place) {
            let row = row(classes, subject.class, &mut sums);
            count(classes, &members, subject.class, &row, &mut plan);
            if !row.is_empty() {
                rows.insert(subject.class, row);
            }
        }
        if let Some(row) = rows.get(&subject.class) {
            list(classes, &members, (place, subject), row, &mut plan, most);
        }
        let full = plan.allowed.len() >= most && plan.stopped.len() >= most;
        if full || of_class.last() == Some(&place) {
            rows.remove(&subject.class);
        }
    }
    plan
}

/// What changes from one class to each of them.
fn row(classes: &Classes<'_>, from: usize, sums: &mut Sums) -> Vec<(usize, Cell)> {
    let source = &classes.classes[from];
    let as_before = source.sends_as_before();
    let mut row = Vec::new();
    for (to, destination) in classes.classes.iter().enumerate() {
        if as_before && destination.takes_as_before() {
            continue;
        }
        let cell = cell(source, destination, sums);
        if cell.iter().any(|groups| !groups.is_empty()) {
            row.push((to, cell));
        }
    }
    row
}

fn cell(source: &Class, destination: &Class, sums: &mut Sums) -> Cell {
    // Two devices without filters judge nothing, before or after.
    let judged = [BEFORE, AFTER].map(|policy| source.has_filter[policy] || destination.has_filter[policy]);
    if let ([from], [to]) = (source.parts.as_slice(), destination.parts.as_slice()) {
        let diff = if meet(from, to) { sums.diff(from, to, judged) } else { [None, None] };
        let whole = |services| vec![Group { sources: None, destinations: None, services }];
        return diff.map(|services| services.map(whole).unwrap_or_default());
    }
    let mut differ = false;
    let grid: Vec<Vec<Option<Diff>>> = source
        .parts
        .iter()
        .map(|from| {
            let row = destination.parts.iter().map(|to| {
                let diff = meet(from, to).then(|| sums.diff(from, to, judged));
                differ |= diff.as_ref().is_some_and(|diff| diff.iter().any(Option::is_some));
                diff
            });
            row.collect()
        })
        .collect();
    if !differ {
        return [Vec::new(), Vec::new()];
    }
    [ALLOWED, STOPPED].map(|kind| groups(&grid, kind))
}

/// Whether there can be a packet between two parts: whether they have a family in common.
fn meet(from: &Part, to: &Part) -> bool {
    from.ranges.iter().zip(to.ranges).any(|(from, to)| *from > 0 && to > 0)
}

/// Puts parts together between which the same changes. A part that never meets the others goes with any of them.
fn groups(grid: &[Vec<Option<Diff>>], kind: usize) -> Vec<Group> {
    let mut groups: Vec<(Vec<usize>, Chosen, Rc<Services>)> = Vec::new();
    for (from, row) in grid.iter().enumerate() {
        let mut of_row: Vec<(Vec<usize>, &Rc<Services>)> = Vec::new();
        for (to, diff) in row.iter().enumerate() {
            let Some(services) = diff.as_ref().and_then(|diff| diff[kind].as_ref()) else { continue };
            match of_row.iter_mut().find(|(_, known)| *known == services) {
                Some((places, _)) => places.push(to),
                None => of_row.push((vec![to], services)),
            }
        }
        for (places, services) in of_row {
            let all = (0..row.len()).all(|to| row[to].is_none() || places.contains(&to));
            let places = (!all).then_some(places);
            match groups.iter_mut().find(|(_, to, known)| *to == places && known == services) {
                Some((sources, ..)) => sources.push(from),
                None => groups.push((vec![from], places, Rc::clone(services))),
            }
        }
    }
    let whole = |sources: &[usize], to: &Chosen| {
        let never_meets = |row: &[Option<Diff>]| match to {
            None => row.iter().all(Option::is_none),
            Some(to) => to.iter().all(|to| row[*to].is_none()),
        };
        (0..grid.len()).all(|from| sources.contains(&from) || never_meets(&grid[from]))
    };
    let groups = groups.into_iter().map(|(sources, destinations, services)| {
        let sources = (!whole(&sources, &destinations)).then_some(sources);
        Group { sources, destinations, services }
    });
    groups.collect()
}

/// Counts the services from all members of a class.
fn count(classes: &Classes<'_>, members: &[Vec<usize>], from: usize, row: &[(usize, Cell)], plan: &mut Plan) {
    let number = |class: usize| members[class].len() as u64;
    for (to, cell) in row {
        let pairs = number(from) * if from == *to { number(*to) - 1 } else { number(*to) };
        let (source, destination) = (&classes.classes[from], &classes.classes[*to]);
        let services = |groups: &[Group]| {
            let each = groups.iter().map(|group| ranges(group, source, destination) * group.services.count());
            each.sum::<u64>() * pairs
        };
        plan.allowed_total += services(&cell[ALLOWED]);
        plan.stopped_total += services(&cell[STOPPED]);
    }
}

/// How many pairs of ranges a group is listed with.
fn ranges(group: &Group, source: &Class, destination: &Class) -> u64 {
    let sum = |class: &Class, parts: &Chosen| {
        let of = |family: usize| match parts {
            None => class.parts.iter().map(|part| part.ranges[family]).sum::<usize>(),
            Some(parts) => parts.iter().map(|part| class.parts[*part].ranges[family]).sum(),
        };
        [of(0), of(1)]
    };
    let (from, to) = (sum(source, &group.sources), sum(destination, &group.destinations));
    let families = || from.into_iter().zip(to);
    let count: usize = match (&group.sources, &group.destinations) {
        (None, None) => 1,
        (None, Some(_)) => families().map(|(from, to)| if from > 0 { to } else { 0 }).sum(),
        (Some(_), None) => families().map(|(from, to)| if to > 0 { from } else { 0 }).sum(),
        (Some(_), Some(_)) => families().map(|(from, to)| from * to).sum(),
    };
    count as u64
}

/// Lists what changes from one member, to members in the order of their names, as far as there is room.
fn list(
    classes: &Classes<'_>,
    members: &[Vec<usize>],
    (place, source): (usize, &Subject),
    row: &[(usize, Cell)],
    plan: &mut Plan,
    most: usize,
) {
    for kind in [ALLOWED, STOPPED] {
        let listed = if kind == ALLOWED { &mut plan.allowed } else { &mut plan.stopped };
        if listed.len() >= most {
            continue;
        }
        let cells = row.iter().filter(|(_, cell)| !cell[kind].is_empty());
        let mut pairs: Vec<(usize, &[Group])> = cells
            .flat_map(|(class, cell)| members[*class].iter().map(|to| (*to, cell[kind].as_slice())))
            .filter(|(to, _)| *to != place)
            .collect();
        pairs.sort_unstable_by_key(|(to, _)| *to);
        for (to, groups) in pairs {
            let destination = &classes.subjects[to];
            for group in groups {
                list_group(classes, group, source, destination, listed, most);
            }
        }
    }
}

fn list_group(
    classes: &Classes<'_>,
    group: &Group,
    source: &Subject,
    destination: &Subject,
    listed: &mut Vec<Change>,
    most: usize,
) {
    let chosen = |subject: &Subject, parts: &Chosen| -> Vec<Option<Prefix>> {
        match parts {
            None => vec![None],
            Some(parts) => {
                parts.iter().flat_map(|part| subject.parts[*part].iter().copied().map(Some)).collect()
            }
        }
    };
    let has = |subject: &Subject, family: usize| {
        classes.classes[subject.class].parts.iter().any(|part| part.ranges[family] > 0)
    };
    let family = |range: &Prefix| usize::from(!range.is_ipv4());
    let meet = |from: &Option<Prefix>, to: &Option<Prefix>| match (from, to) {
        (None, None) => true,
        (Some(from), None) => has(destination, family(from)),
        (None, Some(to)) => has(source, family(to)),
        (Some(from), Some(to)) => family(from) == family(to),
    };
    let services = group.services.listed();
    let destinations = chosen(destination, &group.destinations);
    for from in chosen(source, &group.sources) {
        for to in destinations.iter().filter(|to| meet(&from, to)) {
            for (service, except) in &services {
                if listed.len() >= most {
                    return;
                }
                listed.push(Change {
                    source: source.id,
                    destination: destination.id,
                    within: (from.is_some() || to.is_some()).then_some((from, *to)),
                    protocol: service.protocol,
                    ports: service.ports.clone(),
                    except: except.clone(),
                });
            }
        }
    }
}

/// What sets of rules come to, each summed up once.
struct Sums {
    /// What each rule allows.
    rules: Vec<Services>,
    known: HashMap<Vec<u64>, Diff>,
    /// The rules in question, before and then after.
    key: Vec<u64>,
}

impl Sums {
    /// What changes between two parts of members.
    fn diff(&mut self, from: &Part, to: &Part, judged: [bool; 2]) -> Diff {
        let masks = judged.map(|judged| if judged { u64::MAX } else { 0 });
        let both = |policy: usize| {
            let bits = from.as_source[policy].iter().zip(&to.as_destination[policy]);
            bits.map(move |(source, destination)| source & destination & masks[policy])
        };
        // Most pairs are as before: without a branch a word, so that the processor takes several at once.
        if both(BEFORE).zip(both(AFTER)).fold(0, |differ, (before, after)| differ | (before ^ after)) == 0 {
            return [None, None];
        }
        self.key.clear();
        self.key.extend(both(BEFORE).chain(both(AFTER)));
        let few = self.key.iter().map(|bits| bits.count_ones()).sum::<u32>() <= FEW_RULES;
        if let Some(known) = (!few).then(|| self.known.get(&self.key)).flatten() {
            return known.clone();
        }
        let sum = |bits: &[u64]| {
            let mut services = Services::default();
            ones(bits).for_each(|rule| services.add(&self.rules[rule]));
            services
        };
        let (before, after) = self.key.split_at(self.key.len() / 2);
        let (before, after) = (sum(before), sum(after));
        let some = |services: Services| (!services.is_empty()).then(|| Rc::new(services));
        let diff = [some(after.minus(&before)), some(before.minus(&after))];
        if few {
            return diff;
        }
        if self.known.len() >= SUMS_MAX {
            self.known.clear();
        }
        self.known.insert(self.key.clone(), diff.clone());
        diff
    }
}
