//! What this node's owner denies, kept in `denials.json`.
//!
//! A time to live is time that passes, not a date: while the daemon runs it is counted by the boot clock, which nobody can set
//! and which goes on while the machine sleeps. The file says how much of it was left, and when by the wall clock that was; at
//! the next start what passed in between is taken off. So a clock that is set makes no denial of a running daemon end early or
//! late. One that is set back while the daemon is stopped makes it end later, never earlier than it was to.

use std::{collections::BTreeSet, time::Duration};

use ringmesh_proto::control::Reason;
use ringmesh_tunnel::{
    filter::{Denial, Scope},
    key::{NetworkId, NodeId},
    netmap::{PortRange, Protocol},
    time::UnixTime,
};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::words::{parse_ports, parse_protocol, parse_scope, ports_text, scope_text};
use crate::{
    clock::Moment,
    error::Failure,
    state::{StateDir, StateFile},
};

/// The most denials of a node.
pub(crate) const DENIALS_MAX: usize = 256;
/// The longest time to live: ten years.
pub(crate) const TTL_MAX: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Clocks that drift apart by less are not noted.
const CLOCK_SET: Duration = Duration::from_secs(1);
/// The format written today; a greater one is of a newer program.
const VERSION: u32 = 1;

/// A denial that somebody asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) scope: Scope,
    /// With whom; none: with everybody.
    pub(crate) peer: Option<NodeId>,
    pub(crate) protocol: Protocol,
    pub(crate) ports: Vec<PortRange>,
    /// For how long; none: until it is removed.
    pub(crate) ttl: Option<Duration>,
}

/// A denial, and when it ends by the boot clock.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    denial: Denial,
    ends: Option<Duration>,
}

impl Entry {
    fn in_force(&self, now: Moment) -> bool {
        self.ends.is_none_or(|ends| ends > now.boot)
    }
}

/// Every denial of a node.
#[derive(Debug)]
pub(crate) struct Denials {
    network: NetworkId,
    /// The number given last; none is given twice.
    last_id: u32,
    entries: Vec<Entry>,
    /// When the file was written.
    noted: Moment,
}

/// The same, as written.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    v: u32,
    network: String,
    last_id: u32,
    /// When it was written, by the wall clock: what `left_ms` is counted from.
    noted_ms: u64,
    denials: Vec<Line>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: u32,
    direction: String,
    /// Absent: everybody.
    #[serde(skip_serializing_if = "Option::is_none")]
    peers: Option<Vec<String>>,
    protocol: String,
    ports: String,
    /// Absent: until it is removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    left_ms: Option<u64>,
}

impl Denials {
    /// Reads what was denied in `network` when the daemon last ran; what ended since is left out.
    ///
    /// # Errors
    /// The file cannot be understood: going on without it would allow what the owner denied. It is left as it is.
    pub(crate) fn load(state: &StateDir, network: NetworkId, now: Moment) -> Result<Self, Failure> {
        let none = Self { network, last_id: 0, entries: Vec::new(), noted: now };
        let Some(content) = state.read(StateFile::Denials)? else { return Ok(none) };
        let found = Self::parse(&content, now).map_err(|why| {
            let path = state.path_of(StateFile::Denials);
            let path = path.display();
            Failure::corrupt(format!(
                "what this node's owner denies, in {path}, cannot be used ({why}); restore it, or give the denials up: \
                 `mv {path} {path}.broken`, then add them again with `meshctl filter add`"
            ))
        })?;
        // A crash came between leaving that network and the removal of this file.
        Ok(if found.network == network { found } else { none })
    }

    /// Adds one, with a number of its own, and writes all down.
    ///
    /// # Errors
    /// There are too many, the time to live is too long, or the disk refuses; then nothing is changed.
    pub(crate) fn add(&mut self, state: &StateDir, wish: Wish, now: Moment) -> Result<Denial, Failure> {
        if wish.ttl.is_some_and(|ttl| ttl > TTL_MAX) {
            return Err(Failure::invalid(
                "a time to live of more than ten years: leave it out, and remove the denial when it is not wanted any more",
            ));
        }
        let mut entries: Vec<_> = self.entries.iter().filter(|entry| entry.in_force(now)).cloned().collect();
        if entries.len() >= DENIALS_MAX {
            return Err(Failure::new(
                Reason::Conflict,
                format!(
                    "this node has {DENIALS_MAX} denials, which are the most there may be: remove one first"
                ),
            ));
        }
        let id = self.last_id.checked_add(1).ok_or_else(|| {
            Failure::new(
                Reason::Conflict,
                "every number that a denial can have was used: leave the network and join again",
            )
        })?;
        let denial = Denial {
            id,
            scope: wish.scope,
            peers: wish.peer.map(|peer| BTreeSet::from([peer])),
            protocol: wish.protocol,
            ports: wish.ports,
        };
        entries
            .push(Entry { denial: denial.clone(), ends: wish.ttl.map(|ttl| now.boot.saturating_add(ttl)) });
        self.replace(state, id, entries, now)?;
        Ok(denial)
    }

    /// Removes one for good.
    ///
    /// # Errors
    /// There is none of that number, or the disk refuses; then nothing is changed.
    pub(crate) fn remove(&mut self, state: &StateDir, id: u32, now: Moment) -> Result<(), Failure> {
        let there = self.entries.iter().any(|entry| entry.denial.id == id && entry.in_force(now));
        if !there {
            return Err(Failure::invalid(format!(
                "this node has no denial {id} (any more); `meshctl filter list` shows those it has"
            )));
        }
        let keep = |entry: &&Entry| entry.denial.id != id && entry.in_force(now);
        let entries = self.entries.iter().filter(keep).cloned().collect();
        self.replace(state, self.last_id, entries, now)
    }

    /// Forgets those whose time is over, and tells whether there were any.
    pub(crate) fn drop_ended(&mut self, state: &StateDir, now: Moment) -> bool {
        let (kept, ended): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.entries).into_iter().partition(|entry| entry.in_force(now));
        self.entries = kept;
        for entry in &ended {
            info!(event = "denial_ended", id = entry.denial.id, "a denial has ended");
        }
        if !ended.is_empty() {
            self.note(state, now);
        }
        !ended.is_empty()
    }

    /// Writes the file anew if the wall clock was set since it was written: the next start would take that for time that passed.
    pub(crate) fn note_set_clock(&mut self, state: &StateDir, now: Moment) {
        let by_boot = now.boot.saturating_sub(self.noted.boot);
        let expected = self.noted.wall.saturating_add(by_boot);
        let apart = expected.saturating_since(now.wall).max(now.wall.saturating_since(expected));
        if apart > CLOCK_SET && self.next_end().is_some() {
            self.note(state, now);
        }
    }

    /// Those in force.
    pub(crate) fn in_force(&self, now: Moment) -> Vec<Denial> {
        self.list(now).map(|(denial, _)| denial.clone()).collect()
    }

    /// Those in force, and how long each still is; none: until it is removed.
    pub(crate) fn list(&self, now: Moment) -> impl Iterator<Item = (&Denial, Option<Duration>)> {
        let entries = self.entries.iter().filter(move |entry| entry.in_force(now));
        entries.map(move |entry| (&entry.denial, entry.ends.map(|ends| ends.saturating_sub(now.boot))))
    }

    /// When the next one ends, by the boot clock.
    pub(crate) fn next_end(&self) -> Option<Duration> {
        self.entries.iter().filter_map(|entry| entry.ends).min()
    }

    /// Writes the file, which nobody waits for: what is not written is over sooner than the file says, or counted anew.
    fn note(&mut self, state: &StateDir, now: Moment) {
        match self.write(state, self.last_id, &self.entries, now) {
            Ok(()) => self.noted = now,
            Err(failure) => {
                warn!(event = "state_write_failed", %failure, "the file of denials is not up to date")
            }
        }
    }

    /// Makes `entries` all there is, on disk and then here.
    fn replace(
        &mut self,
        state: &StateDir,
        last_id: u32,
        entries: Vec<Entry>,
        now: Moment,
    ) -> Result<(), Failure> {
        self.write(state, last_id, &entries, now)?;
        *self = Self { network: self.network, last_id, entries, noted: now };
        Ok(())
    }

    fn write(&self, state: &StateDir, last_id: u32, entries: &[Entry], now: Moment) -> Result<(), Failure> {
        let file = File {
            v: VERSION,
            network: self.network.to_string(),
            last_id,
            noted_ms: now.wall.as_millis(),
            denials: entries.iter().map(|entry| Line::of(entry, now)).collect(),
        };
        let content =
            serde_json::to_string_pretty(&file).expect("invariant: strings and numbers are always JSON");
        state.write(StateFile::Denials, content.as_bytes())
    }

    fn parse(content: &[u8], now: Moment) -> Result<Self, String> {
        let file: File = serde_json::from_slice(content).map_err(|error| error.to_string())?;
        if file.v != VERSION {
            return Err(format!("its version is {}, this program knows {VERSION}", file.v));
        }
        if file.denials.len() > DENIALS_MAX {
            return Err(format!("it has {} denials, at most {DENIALS_MAX} are allowed", file.denials.len()));
        }
        let passed = now.wall.saturating_since(UnixTime::from_millis(file.noted_ms));
        let mut seen = BTreeSet::new();
        let mut entries = Vec::new();
        for line in file.denials {
            let id = line.id;
            if id == 0 || id > file.last_id || !seen.insert(id) {
                return Err(format!("denial {id}: its number is 0, another's, or was not given yet"));
            }
            let entry = line.read(passed, now).map_err(|why| format!("denial {id}: {why}"))?;
            entries.extend(entry.in_force(now).then_some(entry));
        }
        let network = file.network.parse().map_err(|error| format!("`network`: {error}"))?;
        Ok(Self { network, last_id: file.last_id, entries, noted: now })
    }
}

impl Line {
    fn of(Entry { denial, ends }: &Entry, now: Moment) -> Self {
        let millis = |left: Duration| u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        Self {
            id: denial.id,
            direction: scope_text(denial.scope).to_owned(),
            peers: denial.peers.as_ref().map(|peers| peers.iter().map(NodeId::to_string).collect()),
            protocol: denial.protocol.to_string(),
            ports: ports_text(&denial.ports),
            left_ms: ends.map(|ends| millis(ends.saturating_sub(now.boot))),
        }
    }

    fn read(self, passed: Duration, now: Moment) -> Result<Entry, String> {
        let say = |failure: Failure| failure.to_string();
        let protocol = parse_protocol(&self.protocol).map_err(say)?;
        let peers = self.peers.map(|peers| peers.iter().map(|id| id.parse()).collect::<Result<_, _>>());
        let denial = Denial {
            id: self.id,
            scope: parse_scope(&self.direction).map_err(say)?,
            peers: peers.transpose().map_err(|error| format!("`peers`: {error}"))?,
            protocol,
            ports: parse_ports(&self.ports, protocol).map_err(say)?,
        };
        let left = self.left_ms.map(|left| Duration::from_millis(left).min(TTL_MAX).saturating_sub(passed));
        Ok(Entry { denial, ends: left.map(|left| now.boot.saturating_add(left)) })
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    const NETWORK: NetworkId = NetworkId::from_bytes([4; 16]);
    const HOUR: Duration = Duration::from_secs(3600);

    /// A daemon's life: a state directory and two clocks.
    struct Life {
        _root: TempDir,
        state: StateDir,
        now: Moment,
    }

    impl Life {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let state = StateDir::open(&root.path().join("state")).unwrap();
            let now = Moment { wall: UnixTime::from_secs(1_767_225_600), boot: Duration::from_secs(5000) };
            Self { _root: root, state, now }
        }

        fn load(&self) -> Denials {
            Denials::load(&self.state, NETWORK, self.now).unwrap()
        }

        fn pass(&mut self, time: Duration) {
            self.now.wall = self.now.wall.saturating_add(time);
            self.now.boot += time;
        }

        /// The machine starts again: its boot clock begins anew.
        fn reboot(&mut self) {
            self.now.boot = Duration::from_secs(3);
        }

        fn add(&self, denials: &mut Denials, ttl: Option<Duration>) -> u32 {
            denials.add(&self.state, wish(ttl), self.now).unwrap().id
        }

        fn ids(&self, denials: &Denials) -> Vec<u32> {
            denials.in_force(self.now).iter().map(|denial| denial.id).collect()
        }

        fn written(&self) -> String {
            String::from_utf8(self.state.read(StateFile::Denials).unwrap().unwrap().to_vec()).unwrap()
        }
    }

    fn wish(ttl: Option<Duration>) -> Wish {
        Wish {
            scope: Scope::Only(ringmesh_tunnel::filter::Direction::In),
            peer: Some(NodeId::from_bytes([9; 8])),
            protocol: Protocol::Tcp,
            ports: vec![22.into(), PortRange::new(8000, 8100).unwrap()],
            ttl,
        }
    }

    #[test]
    fn denials_survive_a_restart_as_they_were() {
        let mut life = Life::new();
        let mut denials = life.load();
        let anybody =
            Wish { scope: Scope::Both, peer: None, protocol: Protocol::Any, ports: Vec::new(), ttl: None };
        denials.add(&life.state, wish(Some(HOUR)), life.now).unwrap();
        denials.add(&life.state, anybody, life.now).unwrap();
        life.pass(HOUR / 2);
        life.reboot();
        let again = life.load();
        assert_eq!(
            again.in_force(life.now),
            denials.entries.iter().map(|it| it.denial.clone()).collect::<Vec<_>>()
        );
        let left: Vec<_> = again.list(life.now).map(|(_, left)| left).collect();
        assert_eq!(left, [Some(HOUR / 2), None]);
    }

    #[test]
    fn a_denial_ends_when_its_time_has_passed_in_this_life_or_between_two() {
        let mut life = Life::new();
        let mut denials = life.load();
        life.add(&mut denials, Some(HOUR));
        life.pass(HOUR - Duration::from_millis(1));
        assert_eq!(life.ids(&denials), [1]);
        assert!(!denials.drop_ended(&life.state, life.now));
        life.pass(Duration::from_millis(1));
        assert!(life.ids(&denials).is_empty(), "also before it is cleared away");
        assert!(denials.drop_ended(&life.state, life.now));
        assert!(!life.written().contains("\"id\""), "{}", life.written());

        life.add(&mut denials, Some(HOUR));
        life.pass(HOUR);
        life.reboot();
        assert!(life.ids(&life.load()).is_empty());
    }

    #[test]
    fn a_clock_that_is_set_ends_no_denial_early() {
        let mut life = Life::new();
        let mut denials = life.load();
        life.add(&mut denials, Some(HOUR));
        // Forward and back, while the daemon runs.
        for wall in [2_000_000_000, 1_000_000_000] {
            life.now.wall = UnixTime::from_secs(wall);
            assert!(!denials.drop_ended(&life.state, life.now));
            assert_eq!(life.ids(&denials), [1]);
            denials.note_set_clock(&life.state, life.now);
            assert_eq!(life.ids(&life.load()), [1], "nor at the next start, since it was noted");
        }
        life.pass(HOUR / 2);
        assert_eq!(denials.list(life.now).next().unwrap().1, Some(HOUR / 2), "nor late");
        // Back, while the daemon is stopped.
        life.now.wall = UnixTime::from_secs(900_000_000);
        life.reboot();
        assert_eq!(life.load().list(life.now).next().unwrap().1, Some(HOUR), "what was noted, at most");
    }

    #[test]
    fn a_clock_that_nobody_set_writes_nothing() {
        let mut life = Life::new();
        let mut denials = life.load();
        life.add(&mut denials, Some(HOUR));
        let before = life.written();
        life.pass(HOUR / 4);
        denials.note_set_clock(&life.state, life.now);
        assert_eq!(life.written(), before);
    }

    #[test]
    fn a_number_is_never_given_twice() {
        let life = Life::new();
        let mut denials = life.load();
        assert_eq!(life.add(&mut denials, None), 1);
        assert_eq!(life.add(&mut denials, None), 2);
        denials.remove(&life.state, 2, life.now).unwrap();
        let mut denials = life.load();
        assert_eq!(life.add(&mut denials, None), 3);
        assert_eq!(life.ids(&denials), [1, 3]);
        for gone in [0, 2, 4] {
            let refused = denials.remove(&life.state, gone, life.now).unwrap_err();
            assert!(refused.to_string().contains(&format!("no denial {gone}")), "{refused}");
        }
        denials.last_id = u32::MAX;
        assert!(denials.add(&life.state, wish(None), life.now).is_err(), "rather than begin anew");
    }

    #[test]
    fn there_are_at_most_256_and_what_ended_makes_room() {
        let mut life = Life::new();
        let mut denials = life.load();
        life.add(&mut denials, Some(HOUR));
        for _ in 1..DENIALS_MAX {
            life.add(&mut denials, None);
        }
        let refused = denials.add(&life.state, wish(None), life.now).unwrap_err();
        assert!(refused.to_string().contains("256"), "{refused}");
        assert_eq!(life.load().in_force(life.now).len(), DENIALS_MAX);
        life.pass(HOUR);
        assert_eq!(life.add(&mut denials, None), 257);
    }

    #[test]
    fn a_time_to_live_has_an_end() {
        let life = Life::new();
        let mut denials = life.load();
        for ttl in [TTL_MAX + Duration::from_secs(1), Duration::MAX] {
            assert!(denials.add(&life.state, wish(Some(ttl)), life.now).is_err());
        }
        denials.add(&life.state, wish(Some(TTL_MAX)), life.now).unwrap();
    }

    #[test]
    fn what_the_disk_refuses_is_not_in_force_either() {
        let life = Life::new();
        let mut denials = life.load();
        life.add(&mut denials, None);
        let folder = life.state.path_of(StateFile::Denials);
        std::fs::remove_file(&folder).unwrap();
        // A folder in the way cannot be replaced by a file, whoever asks.
        std::fs::create_dir_all(folder.join("in the way")).unwrap();
        assert!(denials.add(&life.state, wish(None), life.now).is_err());
        assert!(denials.remove(&life.state, 1, life.now).is_err());
        assert_eq!(life.ids(&denials), [1]);
    }

    #[test]
    fn a_file_that_cannot_be_understood_stops_the_start_and_is_left_alone() {
        let life = Life::new();
        let mut denials = life.load();
        life.add(&mut denials, Some(HOUR));
        let good = life.written();
        for (broken, why) in [
            (good[..good.len() / 2].to_owned(), "EOF"),
            (good.replace("\"v\": 1", "\"v\": 2"), "version is 2"),
            (good.replace("\"id\": 1", "\"id\": 2"), "not given yet"),
            (good.replace("\"id\": 1", "\"id\": 0"), "number is 0"),
            (good.replace("\"in\"", "\"inwards\""), "inwards"),
            (good.replace("\"tcp\"", "\"tcpip\""), "tcpip"),
            (good.replace("\"tcp\"", "\"icmp\""), "only tcp and udp"),
            (good.replace("8000-8100", "8000-80"), "lower port"),
            (good.replace("0909", "09"), "peers"),
            (good.replace("\"direction\"", "\"way\""), "way"),
            (good.replace("0404", "xx"), "network"),
        ] {
            life.state.write(StateFile::Denials, broken.as_bytes()).unwrap();
            let failure = Denials::load(&life.state, NETWORK, life.now).unwrap_err();
            let text = failure.to_string();
            assert!(text.contains(why) && text.contains("mv "), "{why}: {text}");
            assert_eq!(failure.code(), tonic::Code::DataLoss);
            assert_eq!(life.written(), broken);
        }
    }

    #[test]
    fn denials_of_a_network_that_was_left_do_not_count_in_another() {
        let life = Life::new();
        let mut denials = life.load();
        life.add(&mut denials, None);
        let other = Denials::load(&life.state, NetworkId::from_bytes([5; 16]), life.now).unwrap();
        assert!(other.in_force(life.now).is_empty());
    }
}
