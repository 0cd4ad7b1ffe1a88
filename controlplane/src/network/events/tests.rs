//! What is kept of what happened, and told from where.

use std::fmt::Write as _;

use super::*;
use crate::{
    config::NetworkConfig,
    network::{authority::Authority, create},
    store::{Commit, Entry, Snapshot},
    vault::Vault,
};

const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

/// A registry that takes what is committed, as a store's followers do.
struct World {
    registry: Registry,
    entries: BTreeMap<String, (Vec<u8>, Revision)>,
    vault: Vault,
    networks: Vec<NetworkId>,
    _directory: tempfile::TempDir,
}

impl World {
    fn of(networks: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let vault = Vault::open(directory.path(), true).unwrap();
        let mut world = Self {
            registry: Registry::default(),
            entries: BTreeMap::new(),
            vault,
            networks: Vec::new(),
            _directory: directory,
        };
        for number in 0..networks {
            let config = NetworkConfig { name: format!("n{number}"), ..NetworkConfig::default() };
            let (id, change) =
                create::plan(&config, &Authority::generate(), None, &world.vault, NOW).unwrap();
            world.commit(change);
            world.networks.push(id);
        }
        world
    }

    /// Commits as the store does: all compares must hold.
    fn commit(&mut self, change: Change) -> Plan {
        let plan = change.with_events(&self.registry, &Origin::coordinator(), NOW);
        let held = |key: &str| self.entries.get(key).map_or(0, |(_, revision)| *revision);
        assert!(plan.compare.iter().all(|compare| held(&compare.key) == compare.revision), "{plan:?}");
        let revision = self.registry.revision + 1;
        let mut changes = Vec::new();
        for op in plan.ops.clone() {
            match op {
                Op::Put { key, value, .. } => {
                    self.entries.insert(key.clone(), (value.clone(), revision));
                    changes.push((key, Some(value)));
                }
                Op::Delete { key } => {
                    self.entries.remove(&key);
                    changes.push((key, None));
                }
            }
        }
        self.registry.apply(&Commit { revision, changes }, &self.vault).unwrap();
        plan
    }

    /// A change that is told by so many events.
    fn happen(&mut self, network: Option<NetworkId>, events: usize) -> Revision {
        let happening = |number| Happening::new(network, Name::TokenRevoked).about(number, "");
        self.commit(Plan::default().tells((0..events).map(happening)));
        self.registry.revision
    }

    fn after(&self, network: Option<NetworkId>, after: Revision, most: usize) -> Result<Page, Unknown> {
        self.registry.events_after(|asked| asked == network, after, most)
    }

    fn all_after(&self, after: Revision, most: usize) -> Result<Page, Unknown> {
        self.registry.events_after(|_| true, after, most)
    }

    fn reload(&self) -> Registry {
        let entry = |(key, (value, revision)): (&String, &(Vec<u8>, Revision))| Entry {
            key: key.clone(),
            value: value.clone(),
            revision: *revision,
        };
        let entries = self.entries.iter().map(entry).collect();
        Registry::load(&Snapshot { revision: self.registry.revision, entries }, &self.vault).unwrap()
    }
}

fn revisions(page: &Page) -> Vec<Revision> {
    page.events.iter().map(|event| event.revision).collect()
}

#[test]
fn every_name_is_another_word_and_reads_back() {
    let texts: std::collections::BTreeSet<&str> = Name::ALL.iter().map(|name| name.as_str()).collect();
    assert_eq!(texts.len(), Name::ALL.len());
    for name in Name::ALL {
        let text = name.as_str();
        assert!(text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{text}");
        assert_eq!(text.parse(), Ok(name));
    }
    assert_eq!("node_join".parse::<Name>(), Err(()));
}

/// The manual's table as this program has it: a name, whether it is kept, its details.
#[test]
fn the_manual_has_every_name_with_its_details() {
    let manual = include_str!("../../../../docs/events.md");
    let rows = manual.lines().filter(|line| line.starts_with("| `"));
    let mut told = String::new();
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kept, subject, details] = cells.as_slice() else { continue };
        assert!(!subject.is_empty(), "{row}");
        writeln!(told, "{name} {kept} {details}").unwrap();
    }
    let mut known = String::new();
    for name in Name::ALL {
        let details: Vec<String> = name.details().iter().map(|detail| format!("`{detail}`")).collect();
        let kept = if name.is_durable() { "kept" } else { "told" };
        writeln!(known, "`{}` {kept} {}", name.as_str(), details.join(", ")).unwrap();
    }
    let trim = |text: &str| text.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>();
    assert_eq!(trim(&told), trim(&known));
}

#[test]
fn events_are_told_from_where_somebody_left_off_in_whole_revisions() {
    let mut world = World::of(2);
    let [one, two] = world.networks[..] else { panic!() };
    let begun = world.registry.revision;
    let first = world.happen(Some(one), 3);
    let second = world.happen(None, 1);
    let third = world.happen(Some(two), 2);
    let fourth = world.happen(Some(one), 1);

    // However few are asked for, those of one revision come together.
    let page = world.after(Some(one), begun, 1).unwrap();
    assert_eq!((revisions(&page), page.upto, page.more), (vec![first; 3], first, true));
    let numbers: Vec<&str> = page.events.iter().map(|event| event.row.subject_id.as_str()).collect();
    assert_eq!(numbers, ["0", "1", "2"], "in their order");
    let page = world.after(Some(one), page.upto, 1).unwrap();
    assert_eq!((revisions(&page), page.upto, page.more), (vec![fourth], fourth, false));
    // What was told up to the newest revision is told up to there, whoever's the newest events are.
    let page = world.after(None, second, 10).unwrap();
    assert_eq!((revisions(&page), page.upto, page.more), (vec![], fourth, false));

    let page = world.all_after(begun, 100).unwrap();
    assert_eq!(revisions(&page), [first, first, first, second, third, third, fourth]);
    let places: Vec<_> = page.events.iter().map(|event| event.network).collect();
    assert_eq!(places[3..6], [None, Some(two), Some(two)]);
    // Asked for piece by piece from anywhere, it is the same.
    for most in 1..6 {
        let (mut place, mut told) = (begun, Vec::new());
        loop {
            let next = world.all_after(place, most).unwrap();
            place = next.upto;
            told.extend(next.events);
            if !next.more {
                break;
            }
        }
        assert_eq!(told, page.events, "{most} at a time");
    }
    assert_eq!(world.all_after(0, 1).unwrap().events[0].row.name, "network_created");
    assert_eq!(world.all_after(fourth + 1, 1), Err(Unknown::Future { after: fourth + 1, newest: fourth }));
}

#[test]
fn the_newest_ten_thousand_are_kept_and_who_comes_too_late_is_told_so() {
    let mut world = World::of(1);
    let network = Some(world.networks[0]);
    let changes: Vec<Revision> = (0..KEPT + 300).map(|_| world.happen(network, 2)).collect();
    let count = |registry: &Registry| registry.events(network).unwrap().kept.len();
    assert!(count(&world.registry) <= KEPT, "{}", count(&world.registry));
    assert!(count(&world.registry) > KEPT - 3);
    let page = world.after(network, 0, usize::MAX).unwrap();
    let oldest = page.events[0].revision;
    assert_eq!(page.events.iter().filter(|event| event.revision == oldest).count(), 2, "none is cut");
    assert_eq!(revisions(&page).last(), changes.last());
    // Who heard of everything that is forgotten goes on, and nobody else.
    let forgotten = world.registry.events(network).unwrap().forgotten;
    assert_eq!(forgotten, oldest - 1);
    assert_eq!(world.after(network, forgotten, usize::MAX).unwrap().events, page.events);
    for after in [1, forgotten - 1] {
        assert_eq!(world.after(network, after, 1), Err(Unknown::Forgotten { after, forgotten }));
        assert!(world.all_after(after, 1).is_err());
        world.after(None, after, 1).expect("what belongs to no network is all there");
    }
    // A restart changes nothing of that.
    let again = world.reload();
    assert_eq!(again.events_after(|asked| asked == network, 0, usize::MAX).unwrap(), page);
    assert_eq!(again.events(network).unwrap().forgotten, forgotten);
    assert_eq!(again.events(network).unwrap().next(), world.registry.events(network).unwrap().next());
}

#[test]
fn what_an_earlier_version_kept_too_much_is_forgotten_in_pieces() {
    let mut world = World::of(1);
    let network = Some(world.networks[0]);
    let first = world.registry.events(network).unwrap().next();
    for number in first..first + (KEPT + 2 * BATCH) as u64 {
        let (_, row) = Happening::new(network, Name::TokenRevoked).told(Actor::coordinator(), NOW);
        let ops = vec![Op::put(event_key(network, number), row::emit(&row))];
        world.commit(Plan { compare: Vec::new(), ops }.unremarkable());
    }
    let mut pieces = 0;
    while let Some(change) = world.registry.events(network).unwrap().prune(network) {
        let ops = world.commit(change).ops.len();
        assert!(ops <= BATCH + 2, "{ops}");
        pieces += 1;
    }
    assert_eq!((pieces, world.registry.events(network).unwrap().kept.len()), (3, KEPT));
}

#[test]
fn a_change_leaves_room_for_all_that_its_events_bring() {
    let mut world = World::of(1);
    let network = Some(world.networks[0]);
    for _ in 0..KEPT / AT_ONCE + 10 {
        world.happen(network, AT_ONCE);
    }
    let happening = |_| Happening::new(network, Name::TokenRevoked);
    let plan = world.commit(Plan::default().tells((0..AT_ONCE).map(happening)));
    assert!(plan.ops.len() > AT_ONCE, "some are forgotten: {plan:?}");
    // Besides, a request and what it makes forget.
    assert!(plan.ops.len() + 9 <= RESERVED && plan.compare.len() + 9 <= RESERVED, "{plan:?}");
}

#[test]
fn two_coordinators_do_not_write_the_same_event() {
    let world = World::of(1);
    let network = world.networks[0];
    let plan = |subject: &str| {
        let happening = Happening::new(network, Name::TokenRevoked).about(subject, "");
        Plan::default().tells([happening]).with_events(&world.registry, &Origin::coordinator(), NOW)
    };
    let (first, second) = (plan("a"), plan("b"));
    let [Op::Put { key, .. }] = first.ops.as_slice() else { panic!("{first:?}") };
    assert_eq!(first.compare, [Compare::absent(key)]);
    assert_eq!(second.compare, first.compare, "one of them conflicts, and is planned anew");
}

#[test]
fn a_long_detail_is_cut_between_characters() {
    let told = |value: &str| {
        let happening = Happening::new(None, Name::PolicyApplied).with("comment", value);
        happening.told(Actor::coordinator(), NOW).1.details
    };
    let long = "ä".repeat(DETAIL_MAX);
    let cut = &told(&long)["comment"];
    assert!(cut.len() <= DETAIL_MAX && cut.ends_with("ä..."), "{}", cut.len());
    let whole = "x".repeat(DETAIL_MAX);
    assert_eq!(told(&whole)["comment"], whole);
    assert!(told("").is_empty(), "nothing is nothing");
}

#[test]
fn an_event_of_a_newer_version_is_told_as_it_is() {
    let mut world = World::of(1);
    let network = Some(world.networks[0]);
    let number = world.registry.events(network).unwrap().next();
    let row =
        br#"{"name":"moon_landed","time_ms":1,"actor":{"kind":"node","id":"a","name":"b"},"later":{"x":1}}"#;
    let ops = vec![Op::put(event_key(network, number), row.to_vec())];
    world.commit(Plan { compare: Vec::new(), ops }.unremarkable());
    let page = world.after(network, world.registry.revision - 1, 9).unwrap();
    assert_eq!(page.events[0].row.name, "moon_landed");
    let broken = Commit {
        revision: world.registry.revision + 1,
        changes: vec![(event_key(network, number + 1), Some(b"{}".to_vec()))],
    };
    assert!(world.registry.apply(&broken, &world.vault).is_err(), "half an event is damage");
}
