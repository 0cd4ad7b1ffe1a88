//! What happened, and who did it: the rows that durable changes write of themselves, and what is kept of them.
//!
//! An event is written by the transaction that makes the change: either both are there, or neither is. Its place is a number of its
//! own in its network (or among what belongs to no network), and two coordinators that take the same number conflict; so numbers and
//! revisions grow together, and whoever has seen everything up to a revision asks for what came after it.
//!
//! | what | most |
//! |---|---|
//! | events of one network, and of none | [`KEPT`]; the oldest go first |
//! | events that one change writes | [`AT_ONCE`] |
//! | one value among the details | [`DETAIL_MAX`] bytes |

use std::collections::{BTreeMap, VecDeque};

use ringmesh_tunnel::{UnixTime, key::NetworkId};
use serde::{Deserialize, Serialize};

use super::{
    Plan, Registry,
    key::{Key, Part},
    requests::Request,
    row::{self, Damage},
};
use crate::store::{Compare, Op, Revision};

/// How many events of a network are kept, and how many that belong to none.
pub(crate) const KEPT: usize = 10_000;
/// The most events of one change.
pub(crate) const AT_ONCE: usize = 4;
/// The longest value among the details of an event, in bytes; a longer one is cut.
pub(crate) const DETAIL_MAX: usize = 512;
/// How many of the oldest are forgotten in one transaction of maintenance.
const BATCH: usize = 500;
/// How many operations a change leaves to its events, to what they make forget, and to what is remembered of its request.
pub(crate) const RESERVED: usize = 32;

/// What sort of somebody made a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ActorKind {
    /// A user of the coordinator's machine.
    User,
    /// Whoever holds an API key.
    ApiKey,
    /// A member, about itself.
    Node,
    /// The coordinator, unasked.
    Coordinator,
}

/// Who made a change.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Actor {
    pub(crate) kind: ActorKind,
    /// Of a user his name, of an API key its id, of a node its id; empty for the coordinator.
    pub(crate) id: String,
    /// For people: a user's name, an API key's name, a node's name.
    pub(crate) name: String,
}

impl Actor {
    /// A user of the coordinator's machine.
    pub(crate) fn user(name: String) -> Self {
        Self { kind: ActorKind::User, id: name.clone(), name }
    }

    /// Whoever holds an API key.
    pub(crate) fn api_key(id: impl ToString, name: impl Into<String>) -> Self {
        Self { kind: ActorKind::ApiKey, id: id.to_string(), name: name.into() }
    }

    /// A member, about itself.
    pub(crate) fn node(id: impl ToString, name: impl Into<String>) -> Self {
        Self { kind: ActorKind::Node, id: id.to_string(), name: name.into() }
    }

    /// The coordinator, unasked.
    pub(crate) const fn coordinator() -> Self {
        Self { kind: ActorKind::Coordinator, id: String::new(), name: String::new() }
    }
}

impl ActorKind {
    /// As rows and the API have it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::ApiKey => "api-key",
            Self::Node => "node",
            Self::Coordinator => "coordinator",
        }
    }
}

/// From whom a change comes.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub(crate) actor: Actor,
    /// The request that asked for it, if it is to be known again.
    pub(crate) request: Option<Request>,
}

impl Origin {
    /// The coordinator, unasked.
    pub(crate) const fn coordinator() -> Self {
        Self { actor: Actor::coordinator(), request: None }
    }
}

/// What happened. A word once given keeps its meaning; docs/events.md says of each what it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Name {
    NetworkCreated,
    NodeJoined,
    RelayAdded,
    StockDeviceAdded,
    NodeRemoved,
    NodeLeft,
    EpochStarted,
    TokenCreated,
    TokenRevoked,
    PolicyApplied,
    ApiKeyCreated,
    ApiKeyRevoked,
    StateRestored,
    NodeOnline,
    NodeOffline,
    RevisionInstalled,
}

impl Name {
    pub(crate) const ALL: [Self; 16] = [
        Self::NetworkCreated,
        Self::NodeJoined,
        Self::RelayAdded,
        Self::StockDeviceAdded,
        Self::NodeRemoved,
        Self::NodeLeft,
        Self::EpochStarted,
        Self::TokenCreated,
        Self::TokenRevoked,
        Self::PolicyApplied,
        Self::ApiKeyCreated,
        Self::ApiKeyRevoked,
        Self::StateRestored,
        Self::NodeOnline,
        Self::NodeOffline,
        Self::RevisionInstalled,
    ];

    /// As rows and the API have it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::NetworkCreated => "network_created",
            Self::NodeJoined => "node_joined",
            Self::RelayAdded => "relay_added",
            Self::StockDeviceAdded => "stock_device_added",
            Self::NodeRemoved => "node_removed",
            Self::NodeLeft => "node_left",
            Self::EpochStarted => "epoch_started",
            Self::TokenCreated => "token_created",
            Self::TokenRevoked => "token_revoked",
            Self::PolicyApplied => "policy_applied",
            Self::ApiKeyCreated => "api_key_created",
            Self::ApiKeyRevoked => "api_key_revoked",
            Self::StateRestored => "state_restored",
            Self::NodeOnline => "node_online",
            Self::NodeOffline => "node_offline",
            Self::RevisionInstalled => "revision_installed",
        }
    }

    /// Whether it is kept. What is not changes nothing durable, and is told to who watches then.
    pub(crate) const fn is_durable(self) -> bool {
        !matches!(self, Self::NodeOnline | Self::NodeOffline | Self::RevisionInstalled)
    }

    /// The names of the details that it may have.
    pub(crate) const fn details(self) -> &'static [&'static str] {
        match self {
            Self::NetworkCreated => &["ipv4_pool", "zone"],
            Self::NodeJoined => &["ephemeral", "ipv4", "ipv6", "os", "relay", "tags", "token", "version"],
            Self::RelayAdded => &["ipv6"],
            Self::StockDeviceAdded => &["ipv4", "ipv6"],
            Self::NodeRemoved | Self::NodeLeft => &["ipv4", "ipv6", "kind", "policy_names"],
            Self::EpochStarted => &["because", "epoch"],
            Self::TokenCreated => &["ephemeral", "expires_ms", "max_uses", "relay", "tags"],
            Self::TokenRevoked => &["uses"],
            Self::PolicyApplied => &["back_to", "comment", "rules", "serial"],
            Self::ApiKeyCreated => &["expires_ms", "role", "scope"],
            Self::ApiKeyRevoked => &["role", "scope"],
            Self::NodeOnline => &["version"],
            Self::StateRestored | Self::NodeOffline => &[],
            Self::RevisionInstalled => &["behind", "installed", "revision"],
        }
    }

    /// Whether members hear of it in their maps, so that it takes time to be everywhere.
    pub(crate) const fn is_installed(self) -> bool {
        matches!(self, Self::PolicyApplied | Self::NodeRemoved | Self::NodeLeft)
    }
}

impl std::str::FromStr for Name {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|name| name.as_str() == text).ok_or(())
    }
}

/// Something that happened, as whoever plans a change says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Happening {
    /// `None`: it belongs to no network.
    network: Option<NetworkId>,
    name: Name,
    subject_id: String,
    subject_name: String,
    details: BTreeMap<String, String>,
    /// Who did it, if not whoever asked for the change.
    actor: Option<Actor>,
}

impl Happening {
    /// Something of a network, or of none.
    pub(crate) fn new(network: impl Into<Option<NetworkId>>, name: Name) -> Self {
        let (subject_id, subject_name, details) = (String::new(), String::new(), BTreeMap::new());
        Self { network: network.into(), name, subject_id, subject_name, details, actor: None }
    }

    /// Whom or what it is about.
    pub(crate) fn about(mut self, id: impl ToString, name: impl Into<String>) -> Self {
        (self.subject_id, self.subject_name) = (id.to_string(), name.into());
        self
    }

    /// Says more; an empty value says nothing. Never a secret: events are there for everybody who may look.
    pub(crate) fn with(mut self, key: &'static str, value: impl ToString) -> Self {
        debug_assert!(self.name.details().contains(&key), "{:?} has no {key}: see Name::details", self.name);
        let value = value.to_string();
        if !value.is_empty() {
            self.details.insert(key.into(), cut(value));
        }
        self
    }

    /// Says who did it, where only the plan knows.
    pub(crate) fn by(mut self, actor: Actor) -> Self {
        self.actor = Some(actor);
        self
    }

    /// As it is told, at a revision; 0: nothing durable changed.
    pub(crate) fn told(self, actor: Actor, now: UnixTime) -> (Option<NetworkId>, EventRow) {
        let Self { network, name, subject_id, subject_name, details, actor: own } = self;
        let row = EventRow {
            name: name.as_str().into(),
            time_ms: now.as_millis(),
            actor: own.unwrap_or(actor),
            subject_id,
            subject_name,
            details,
            request_id: String::new(),
        };
        (network, row)
    }
}

fn cut(mut value: String) -> String {
    const MORE: &str = "...";
    if value.len() > DETAIL_MAX {
        value.truncate(value.floor_char_boundary(DETAIL_MAX - MORE.len()));
        value.push_str(MORE);
    }
    value
}

/// An event as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EventRow {
    /// A [`Name`], or one of a newer version of this program.
    pub(crate) name: String,
    pub(crate) time_ms: u64,
    pub(crate) actor: Actor,
    /// Empty, where it is about the revision that the change made.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) subject_id: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) subject_name: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) details: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) request_id: String,
}

/// A change: what to write, and what is to be said about it. Only this can be committed, and it is made in two ways alone:
/// [`Plan::tells`] and [`Plan::unremarkable`]. So whoever plans a change cannot forget to say which event it is.
#[derive(Debug)]
pub(crate) struct Change {
    plan: Plan,
    happenings: Vec<Happening>,
}

impl Plan {
    /// The change that these events tell.
    pub(crate) fn tells(self, happenings: impl IntoIterator<Item = Happening>) -> Change {
        Change { plan: self, happenings: happenings.into_iter().collect() }
    }

    /// A change that nobody asked for and nobody would look for: the same signed anew, what is long over dropped.
    pub(crate) const fn unremarkable(self) -> Change {
        Change { plan: self, happenings: Vec::new() }
    }
}

/// What to write, the events apart.
#[cfg(test)]
impl From<Change> for Plan {
    fn from(change: Change) -> Self {
        change.plan
    }
}

impl Change {
    /// What to write, the events apart. For what is put into a larger plan.
    pub(super) fn into_parts(self) -> (Plan, Vec<Happening>) {
        (self.plan, self.happenings)
    }

    /// What to write, with the events that tell it.
    pub(crate) fn with_events(self, registry: &Registry, origin: &Origin, now: UnixTime) -> Plan {
        let Self { mut plan, happenings } = self;
        debug_assert!(happenings.len() <= AT_ONCE, "{happenings:?}");
        debug_assert!(happenings.iter().all(|happening| happening.name.is_durable()), "{happenings:?}");
        let mut places: BTreeMap<Option<NetworkId>, Vec<EventRow>> = BTreeMap::new();
        for happening in happenings {
            let (network, mut row) = happening.told(origin.actor.clone(), now);
            row.request_id = origin.request.as_ref().map_or_else(String::new, |request| request.id.clone());
            places.entry(network).or_default().push(row);
        }
        for (network, rows) in places {
            static NONE: Events = Events::new();
            let kept = registry.events(network).unwrap_or(&NONE);
            for (number, row) in (kept.next()..).zip(&rows) {
                let place = event_key(network, number);
                plan.compare.push(Compare::absent(&place));
                plan.ops.push(Op::put(place, row::emit(row)));
            }
            plan.ops.extend(kept.forget(network, KEPT.saturating_sub(rows.len()), AT_ONCE * 2));
        }
        plan
    }
}

fn event_key(network: Option<NetworkId>, number: u64) -> String {
    match network {
        Some(network) => Part::Event(number).of(network),
        None => Key::Event(number).to_string(),
    }
}

fn forgotten_key(network: Option<NetworkId>) -> String {
    match network {
        Some(network) => Part::EventsForgotten.of(network),
        None => Key::EventsForgotten.to_string(),
    }
}

/// An event in memory: as it was written, for there may be many.
#[derive(Debug)]
struct Kept {
    number: u64,
    revision: Revision,
    row: Box<[u8]>,
}

/// The events of one network, or of none: the newest [`KEPT`].
#[derive(Debug, Default)]
pub(crate) struct Events {
    /// By number, and so by revision too.
    kept: VecDeque<Kept>,
    /// The newest revision of which events were forgotten; 0: none were.
    forgotten: Revision,
}

impl Events {
    const fn new() -> Self {
        Self { kept: VecDeque::new(), forgotten: 0 }
    }

    /// Takes over what a commit says of the event `number`.
    pub(super) fn apply(
        &mut self,
        number: u64,
        key: &str,
        value: Option<&[u8]>,
        revision: Revision,
    ) -> Result<(), Damage> {
        let place = self.kept.binary_search_by_key(&number, |kept| kept.number);
        match (place, value) {
            (Err(place), Some(value)) => {
                row::parse::<EventRow>(key, value)?;
                self.kept.insert(place, Kept { number, revision, row: value.into() });
            }
            (Ok(_), Some(_)) => return Err(Damage::at(key, "an event was written twice")),
            (Ok(place), None) => drop(self.kept.remove(place)),
            (Err(_), None) => {}
        }
        Ok(())
    }

    /// Takes over up to where events were forgotten.
    pub(super) fn apply_forgotten(&mut self, key: &str, value: Option<&[u8]>) -> Result<(), Damage> {
        self.forgotten = value.map_or(Ok(0), |value| row::parse(key, value))?;
        Ok(())
    }

    /// The number of the event that comes next. The newest one is never forgotten, so none comes twice.
    fn next(&self) -> u64 {
        self.kept.back().map_or(0, |kept| kept.number).saturating_add(1)
    }

    /// Events after a revision, oldest first.
    fn after(&self, revision: Revision) -> impl Iterator<Item = &Kept> {
        let first = self.kept.partition_point(|kept| kept.revision <= revision);
        self.kept.range(first..)
    }

    /// Forgets the oldest but `most`, though at most about `at_once`; those of one revision together, and never the newest.
    fn forget(&self, network: Option<NetworkId>, most: usize, at_once: usize) -> Vec<Op> {
        let excess = self.kept.len().saturating_sub(most).min(at_once);
        let Some(last) = excess.checked_sub(1).and_then(|last| self.kept.get(last)) else {
            return Vec::new();
        };
        let upto = last.revision;
        if self.kept.back().is_none_or(|newest| newest.revision <= upto) {
            return Vec::new();
        }
        let old = self.kept.iter().take_while(|kept| kept.revision <= upto);
        let mut ops: Vec<Op> = old.map(|kept| Op::delete(event_key(network, kept.number))).collect();
        ops.push(Op::put(forgotten_key(network), row::emit(&upto)));
        ops
    }

    /// Plans to forget what is too much, in pieces that stand alone. Changes do so by themselves; what is left to this is what an
    /// earlier version kept.
    pub(crate) fn prune(&self, network: Option<NetworkId>) -> Option<Change> {
        let ops = self.forget(network, KEPT, BATCH);
        (!ops.is_empty()).then(|| Plan { compare: Vec::new(), ops }.unremarkable())
    }
}

/// An event with where it belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// 0: nothing durable changed.
    pub(crate) revision: Revision,
    /// `None`: it belongs to no network.
    pub(crate) network: Option<NetworkId>,
    pub(crate) row: EventRow,
}

/// Why events cannot be told from where somebody left off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unknown {
    #[error(
        "events up to r{forgotten} are forgotten, and those after r{after} were asked for: list everything anew, and go on from there"
    )]
    Forgotten { after: Revision, forgotten: Revision },
    #[error(
        "r{after} is yet to come, the newest is r{newest}: was the coordinator restored from a backup? List everything anew, and go on \
         from there"
    )]
    Future { after: Revision, newest: Revision },
}

/// Events after a revision.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Page {
    /// Whole revisions, oldest first.
    pub(crate) events: Vec<Event>,
    /// Up to here everything is told.
    pub(crate) upto: Revision,
    /// There are more.
    pub(crate) more: bool,
}

impl Registry {
    /// The events of a network, or of none; `None`: there is no such network.
    pub(crate) fn events(&self, network: Option<NetworkId>) -> Option<&Events> {
        match network {
            Some(network) => self.networks.get(&network).map(|state| &state.events),
            None => Some(&self.events),
        }
    }

    /// The events after `after` of the places that `is_seen` picks, about `most` of them: those of one revision come together.
    /// `after` 0 is the beginning of what is kept.
    pub(crate) fn events_after(
        &self,
        is_seen: impl Fn(Option<NetworkId>) -> bool,
        after: Revision,
        most: usize,
    ) -> Result<Page, Unknown> {
        if after > self.revision {
            return Err(Unknown::Future { after, newest: self.revision });
        }
        let networks = self.networks.iter().map(|(id, state)| (Some(*id), &state.events));
        let places = networks.chain([(None, &self.events)]).filter(|(network, _)| is_seen(*network));
        let mut sources = Vec::new();
        for (network, events) in places {
            if after != 0 && after < events.forgotten {
                return Err(Unknown::Forgotten { after, forgotten: events.forgotten });
            }
            sources.push((network, events.after(after).peekable()));
        }
        let mut page = Page { upto: after, ..Page::default() };
        loop {
            let heads = sources.iter_mut().filter_map(|(_, source)| source.peek().map(|kept| kept.revision));
            let Some(revision) = heads.min() else {
                page.upto = self.revision;
                return Ok(page);
            };
            if page.events.len() >= most {
                page.more = true;
                return Ok(page);
            }
            for (network, source) in &mut sources {
                while let Some(kept) = source.next_if(|kept| kept.revision == revision) {
                    // Every row was read once when it was taken over.
                    let Ok(row) = serde_json::from_slice(&kept.row) else { continue };
                    page.events.push(Event { revision, network: *network, row });
                }
            }
            page.upto = revision;
        }
    }
}

#[cfg(test)]
mod tests;
