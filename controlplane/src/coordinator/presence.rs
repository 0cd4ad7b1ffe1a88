//! What is known of a node while, and since, it has a map stream. Never stored.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ringmesh_tunnel::{UnixTime, key::NetworkId};
use sha2::{Digest as _, Sha256};
use tokio::{sync::watch, time::Instant};

use super::{
    convergence::{Online, Track},
    events::{Herald, What},
    takeovers::Takeovers,
};
use crate::{
    auth::NodeOf,
    network::{map::Told, trace::Standing},
    server::Connection,
    store::Revision,
};

/// How many of the heads last sent to a node it may resume from.
const REMEMBERED_HEADS: usize = 8;

/// A head that was sent, and with it all that a difference to it needs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SentHead {
    /// The number of the newest change that it contains.
    pub(crate) change: u64,
    pub(crate) digest: [u8; 32],
    /// Whom the node sees by then.
    pub(crate) told: Told,
}

/// What is known of one node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Presence {
    /// The number of its open stream; 0: none.
    pub(crate) stream: u64,
    /// SHA-256 of the secret by which it may report.
    session: Option<[u8; 32]>,
    /// What its open stream runs on.
    connection: Option<Connection>,
    takeovers: Takeovers,
    /// The heads last sent.
    heads: VecDeque<SentHead>,
    /// The durable revision of the last update that was sent.
    sent: Revision,
    /// The durable revision that it acknowledged.
    acknowledged: Revision,
    /// Up to here there was nothing more to send it.
    scanned: Revision,
    pub(crate) last_seen: UnixTime,
    pub(crate) version: String,
    pub(crate) back_end: String,
}

impl Presence {
    /// Remembers that a head was sent; `update` if it came with a changed map.
    pub(crate) fn sent(&mut self, head: SentHead, durable: Revision, update: bool) {
        if self.heads.back() != Some(&head) {
            self.heads.push_back(head);
        }
        if self.heads.len() > REMEMBERED_HEADS {
            self.heads.pop_front();
        }
        if update {
            self.sent = durable;
        }
        self.scanned = self.scanned.max(durable);
    }

    /// Remembers that nothing up to `durable` concerns the node but what was sent.
    pub(crate) fn scanned(&mut self, durable: Revision) {
        self.scanned = self.scanned.max(durable);
    }

    /// Whom a node sees whose map was sent by this process with this change number and digest; `None`: there was no such.
    pub(crate) fn told(&self, change: u64, digest: &[u8]) -> Option<Told> {
        let mut heads = self.heads.iter();
        heads.find(|head| head.change == change && head.digest == digest).map(|head| head.told.clone())
    }

    /// Takes an acknowledgement; what was not sent cannot be installed.
    pub(crate) fn acknowledge(&mut self, durable: Revision) {
        self.acknowledged = self.acknowledged.max(durable.min(self.sent));
    }

    /// As convergence is measured by it.
    fn online(&self) -> Option<Online> {
        (self.stream != 0).then(|| Online { stream: self.stream, installed: self.installed() })
    }

    /// Whether it has a stream, and what it has installed.
    fn standing(&self) -> Standing {
        Standing { online: self.stream != 0, installed: self.installed() }
    }

    /// The durable revision installed in the node's data plane: a change that does not touch it counts as installed.
    pub(crate) fn installed(&self) -> Revision {
        if self.acknowledged >= self.sent && self.sent != 0 { self.scanned } else { self.acknowledged }
    }
}

#[derive(Debug, Default)]
struct Table {
    nodes: BTreeMap<NodeOf, Presence>,
    /// By the hash, so that looking one up tells nothing about the secret by its time.
    sessions: HashMap<[u8; 32], NodeOf>,
    streams: u64,
    /// Who is behind, in each network.
    tracks: BTreeMap<NetworkId, Track>,
}

impl Table {
    /// Changes what is known of a node, if there is anything.
    fn change<T>(&mut self, who: &NodeOf, change: impl FnOnce(&mut Presence) -> T) -> Option<T> {
        let presence = self.nodes.get_mut(who)?;
        let before = presence.online();
        let changed = change(presence);
        let after = presence.online();
        self.tracks.entry(who.network).or_default().moved(before, after, Instant::now());
        Some(changed)
    }
}

/// What is known of all nodes.
#[derive(Debug, Default)]
pub(crate) struct Presences {
    table: Mutex<Table>,
    /// Counts what may have changed of what is installed where.
    moved: watch::Sender<u64>,
    /// Tells who came and went.
    herald: Herald,
}

impl Presences {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a stream, which takes over from an older one; returns its number.
    pub(crate) fn begin(&self, who: NodeOf, session: &[u8; 32], version: String, now: UnixTime) -> u64 {
        let mut table = self.lock();
        table.streams += 1;
        let (stream, session) = (table.streams, Sha256::digest(session).into());
        table.nodes.entry(who).or_default();
        let mut came = false;
        let former = table.change(&who, |presence| {
            came = presence.stream == 0;
            presence.stream = stream;
            presence.version.clone_from(&version);
            presence.last_seen = now;
            // Its data plane may have restarted empty.
            (presence.sent, presence.acknowledged, presence.scanned) = (0, 0, 0);
            presence.session.replace(session)
        });
        if let Some(former) = former.flatten() {
            table.sessions.remove(&former);
        }
        table.sessions.insert(session, who);
        if came {
            // While the table is held, so that it is told in the order in which it happened.
            self.herald.tell(now, What::Online { who, version });
        }
        stream
    }

    /// Notes what stream number `stream` runs on, and gives the connection that is superfluous now: a node has one. That of an
    /// older stream, or this one if a newer stream began meanwhile.
    pub(crate) fn connect(&self, who: &NodeOf, stream: u64, connection: &Connection) -> Option<Connection> {
        let mut table = self.lock();
        let superfluous = match table.nodes.get_mut(who) {
            Some(presence) if presence.stream == stream => presence.connection.replace(connection.clone())?,
            Some(presence) if presence.connection.as_ref().is_some_and(|other| other.is(connection)) => {
                return None;
            }
            _ => return Some(connection.clone()),
        };
        (!superfluous.is(connection)).then_some(superfluous)
    }

    /// Counts that one connection of a node took over from another. Answers how often that happened within how long if it goes on,
    /// and was not told of late.
    pub(crate) fn taken_over(&self, who: &NodeOf) -> Option<(u32, Duration)> {
        self.lock().nodes.get_mut(who)?.takeovers.note(Instant::now())
    }

    /// Ends a stream, unless a newer one took over.
    pub(crate) fn end(&self, who: &NodeOf, stream: u64, now: UnixTime) {
        let mut table = self.lock();
        if table.nodes.get(who).is_none_or(|presence| presence.stream != stream) {
            return;
        }
        let session = table.change(who, |presence| {
            presence.stream = 0;
            presence.connection = None;
            presence.last_seen = now;
            presence.session.take()
        });
        if let Some(session) = session.flatten() {
            table.sessions.remove(&session);
        }
        self.herald.tell(now, What::Offline { who: *who });
        drop(table);
        self.note_move();
    }

    /// Forgets a node that was removed.
    pub(crate) fn forget(&self, who: &NodeOf) {
        let mut table = self.lock();
        table.change(who, |presence| presence.stream = 0);
        if let Some(session) = table.nodes.remove(who).and_then(|presence| presence.session) {
            table.sessions.remove(&session);
        }
    }

    /// Changes what is known of a node, unless it is forgotten.
    pub(crate) fn update(&self, who: &NodeOf, change: impl FnOnce(&mut Presence)) {
        self.lock().change(who, change);
        self.note_move();
    }

    /// Changes what is known of a node by its stream number `stream`, unless another one took over.
    pub(crate) fn update_by(&self, who: &NodeOf, stream: u64, change: impl FnOnce(&mut Presence)) {
        self.lock().change(who, |presence| {
            if presence.stream == stream {
                change(presence);
            }
        });
        self.note_move();
    }

    /// Takes note of a commit that changed the maps of `networks`.
    pub(super) fn committed(&self, networks: impl IntoIterator<Item = NetworkId>, revision: Revision) {
        let mut table = self.lock();
        for network in networks {
            table.tracks.entry(network).or_default().committed(revision, Instant::now());
        }
    }

    /// Looks at who is behind, in each network.
    pub(crate) fn with_tracks<T>(&self, look: impl FnOnce(&BTreeMap<NetworkId, Track>) -> T) -> T {
        look(&self.lock().tracks)
    }

    /// How nodes stand, in the order asked.
    pub(crate) fn standing(&self, nodes: impl IntoIterator<Item = NodeOf>) -> Vec<Standing> {
        let table = self.lock();
        let of = |who: NodeOf| table.nodes.get(&who).map(Presence::standing).unwrap_or_default();
        nodes.into_iter().map(of).collect()
    }

    /// Tells what is not durable.
    pub(crate) const fn herald(&self) -> &Herald {
        &self.herald
    }

    /// Wakes whenever a node may have installed something, or has come or gone.
    pub(crate) fn moved(&self) -> watch::Receiver<u64> {
        self.moved.subscribe()
    }

    pub(super) fn note_move(&self) {
        self.moved.send_modify(|count| *count += 1);
    }

    /// Begins to count the absence of a node that was not seen since the start.
    pub(crate) fn notice(&self, who: &NodeOf, now: UnixTime) {
        self.lock().nodes.entry(*who).or_insert_with(|| Presence { last_seen: now, ..Presence::default() });
    }

    /// What is known of a node.
    pub(crate) fn get(&self, who: &NodeOf) -> Option<Presence> {
        self.lock().nodes.get(who).cloned()
    }

    /// Whose session this is.
    pub(crate) fn by_session(&self, session: &[u8]) -> Option<NodeOf> {
        let hash: [u8; 32] = Sha256::digest(session).into();
        self.lock().sessions.get(&hash).copied()
    }
}

#[cfg(test)]
mod tests {
    use ringmesh_tunnel::key::{NetworkId, NodeId};

    use super::*;

    fn node() -> NodeOf {
        NodeOf { network: NetworkId::from_bytes([1; 16]), node: NodeId::from_bytes([2; 8]) }
    }

    fn head(number: u8) -> SentHead {
        SentHead { change: number.into(), digest: [number; 32], told: Told::default() }
    }

    #[test]
    fn a_change_that_does_not_touch_a_node_counts_as_installed() {
        let mut presence = Presence::default();
        assert_eq!(presence.installed(), 0);
        presence.sent(head(1), 5, true);
        assert_eq!(presence.installed(), 0);
        presence.acknowledge(5);
        assert_eq!(presence.installed(), 5);
        presence.scanned(9);
        assert_eq!(presence.installed(), 9);
        presence.sent(head(2), 10, true);
        assert_eq!(presence.installed(), 5);
        presence.acknowledge(u64::MAX);
        assert_eq!(presence.installed(), 10, "what was not sent cannot be installed");
    }

    #[test]
    fn a_node_resumes_from_one_of_the_last_heads() {
        let mut presence = Presence::default();
        for change in 1..=20_u8 {
            presence.sent(head(change), change.into(), false);
        }
        assert!(presence.told(20, &[20; 32]).is_some() && presence.told(13, &[13; 32]).is_some());
        assert_eq!(presence.told(12, &[12; 32]), None, "forgotten");
        assert_eq!(presence.told(20, &[19; 32]), None, "another digest");
        assert_eq!(presence.told(20, &[20; 31]), None, "a part of the digest");
    }

    #[test]
    fn a_stream_that_was_taken_over_says_nothing_more_of_its_node() {
        let presences = Presences::default();
        let first = presences.begin(node(), &[1; 32], String::new(), UnixTime::EPOCH);
        let second = presences.begin(node(), &[2; 32], String::new(), UnixTime::EPOCH);
        let installed = || presences.standing([node()]).first().map(|standing| standing.installed);
        presences.update_by(&node(), second, |presence| presence.sent(head(1), 7, true));
        presences.update_by(&node(), first, |presence| presence.acknowledge(7));
        assert_eq!(installed(), Some(0));
        presences.update_by(&node(), second, |presence| presence.acknowledge(7));
        assert_eq!(installed(), Some(7));
    }

    #[test]
    fn a_session_ends_with_its_stream_or_when_another_takes_over() {
        let presences = Presences::default();
        let now = UnixTime::EPOCH;
        let first = presences.begin(node(), &[1; 32], String::new(), now);
        assert_eq!(presences.by_session(&[1; 32]), Some(node()));
        assert_eq!(presences.by_session(&[2; 32]), None);
        let second = presences.begin(node(), &[2; 32], String::new(), now);
        assert_eq!(presences.by_session(&[1; 32]), None);
        presences.end(&node(), first, now);
        assert_eq!(presences.by_session(&[2; 32]), Some(node()));
        presences.end(&node(), second, now);
        assert_eq!(presences.by_session(&[2; 32]), None);
        presences.begin(node(), &[3; 32], String::new(), now);
        presences.forget(&node());
        assert_eq!(presences.by_session(&[3; 32]), None);
    }
}
