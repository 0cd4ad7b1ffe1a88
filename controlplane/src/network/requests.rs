//! Requests that are to be done once, however often they are made: what is remembered of those that were done.
//!
//! A caller names a request (`request_id`). What was answered lies beside the change, written by the same transaction, so a repeat
//! finds it whatever happened in between: a lost answer, a restart, another coordinator. An answer is wrapped like every secret,
//! as it may have one.
//!
//! | what | most |
//! |---|---|
//! | requests of one network, and of none | [`MOST`], and [`BYTES`] of answers |
//! | time that one is remembered | [`REMEMBERED`] |

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ringmesh_tunnel::{UnixTime, key::NetworkId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::{
    Plan, Registry,
    events::{Actor, ActorKind, Change},
    key::{Key, Part},
    row::{self, Blob, Damage},
};
use crate::{
    store::{Compare, Op, Revision},
    vault::Vault,
};

/// How long a request is remembered.
pub(crate) const REMEMBERED: Duration = Duration::from_secs(24 * 3600);
/// How many requests of a network are remembered at a time, and how many that belong to none.
pub(crate) const MOST: usize = 10_000;
/// How many bytes of answers are remembered of them.
pub(crate) const BYTES: usize = 16 << 20;
/// The longest id.
pub(crate) const ID_MAX: usize = 64;
/// How many that are over a request forgets.
const FORGOTTEN_BY_ONE: usize = 8;
/// How many that are over are forgotten in one transaction of maintenance.
const BATCH: usize = 500;

/// A request with an id of the caller's choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) id: String,
    /// As `/package.Service/Method`.
    pub(crate) method: &'static str,
    /// SHA-256 of the request without its id.
    pub(crate) content: [u8; 32],
}

/// A request with where it belongs and who makes it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    /// `None`: it belongs to no network.
    pub(crate) network: Option<NetworkId>,
    pub(crate) caller: &'a Actor,
    pub(crate) request: &'a Request,
}

/// The name under which a request is remembered: another caller's id is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RequestKey([u8; 16]);

impl RequestKey {
    fn of(caller: &Actor, id: &str) -> Self {
        let mut hash = Sha256::new();
        for part in [caller.kind.as_str(), &caller.id, id] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let hash: [u8; 32] = hash.finalize().into();
        let (first, _) = hash.split_first_chunk().expect("invariant: 32 bytes are more than 16");
        Self(*first)
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let key = Self(u128::from_str_radix(text, 16).ok()?.to_be_bytes());
        // One spelling only, as a place in the store has one name.
        (key.to_string() == text).then_some(key)
    }
}

impl std::fmt::Display for RequestKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// A request that was done, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RequestRow {
    caller_kind: ActorKind,
    caller: String,
    id: String,
    method: String,
    content: Blob,
    expires_ms: u64,
    /// Wrapped.
    answer: Blob,
}

#[derive(Debug)]
struct Done {
    row: RequestRow,
    revision: Revision,
}

impl Done {
    fn is_over(&self, now: UnixTime) -> bool {
        row::time(self.row.expires_ms) <= now
    }
}

/// The requests that are remembered of one network, or of none.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    done: BTreeMap<RequestKey, Done>,
    /// By when they are over, in milliseconds since 1970.
    ends: BTreeSet<(u64, RequestKey)>,
    /// Of all answers.
    bytes: usize,
}

/// Why a request with an id is not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(
        "the request id {0:?} was used for another request in the last 24 hours; choose a new one for each request, and repeat only \
         with the same content"
    )]
    Reused(String),
    #[error(
        "{MOST} requests with an id, or {} MiB of answers, are remembered already, and each is for 24 hours; leave request_id out, or \
         wait",
        BYTES >> 20
    )]
    TooMany,
    #[error("what was answered to the request {0:?} does not open: {1}")]
    Damaged(String, String),
}

/// What is known of a request.
#[derive(Debug)]
pub(crate) enum Known<A> {
    /// It was done, at this revision, and answered so.
    Done(A, Revision),
    /// Nothing.
    New,
}

impl Requests {
    /// Takes over what a commit says of a request.
    pub(super) fn apply(
        &mut self,
        request: RequestKey,
        key: &str,
        value: Option<&[u8]>,
        revision: Revision,
    ) -> Result<(), Damage> {
        if let Some(former) = self.done.remove(&request) {
            self.bytes -= former.row.answer.0.len();
            self.ends.remove(&(former.row.expires_ms, request));
        }
        if let Some(value) = value {
            let row: RequestRow = row::parse(key, value)?;
            self.bytes += row.answer.0.len();
            self.ends.insert((row.expires_ms, request));
            self.done.insert(request, Done { row, revision });
        }
        Ok(())
    }

    /// How many are remembered.
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.done.len()
    }

    fn over(&self, now: UnixTime) -> impl Iterator<Item = (RequestKey, &Done)> {
        let over = self.ends.iter().take_while(move |(end, _)| row::time(*end) <= now);
        over.filter_map(|(_, key)| Some((*key, self.done.get(key)?)))
    }

    /// Plans to forget those that are over, some at a time.
    pub(crate) fn prune(&self, network: Option<NetworkId>, now: UnixTime) -> Option<Change> {
        let mut plan = Plan::default();
        for (request, done) in self.over(now).take(BATCH) {
            forget(&mut plan, network, request, done);
        }
        (!plan.ops.is_empty()).then(|| plan.unremarkable())
    }
}

fn forget(plan: &mut Plan, network: Option<NetworkId>, request: RequestKey, done: &Done) {
    let place = request_key(network, request);
    plan.compare.push(Compare::unchanged(&place, done.revision));
    plan.ops.push(Op::delete(place));
}

fn request_key(network: Option<NetworkId>, request: RequestKey) -> String {
    match network {
        Some(network) => Part::Request(request).of(network),
        None => Key::Request(request).to_string(),
    }
}

impl Registry {
    fn requests(&self, network: Option<NetworkId>) -> Option<&Requests> {
        match network {
            Some(network) => self.networks.get(&network).map(|state| &state.requests),
            None => Some(&self.requests),
        }
    }

    /// What is known of a request.
    ///
    /// # Errors
    /// If its id was used for another one.
    pub(crate) fn recall<A: DeserializeOwned>(
        &self,
        asked: Asked<'_>,
        vault: &Vault,
        now: UnixTime,
    ) -> Result<Known<A>, Refusal> {
        let Asked { network, caller, request } = asked;
        let key = RequestKey::of(caller, &request.id);
        let found = self.requests(network).and_then(|requests| requests.done.get(&key));
        let Some(done) = found.filter(|done| !done.is_over(now)) else { return Ok(Known::New) };
        if done.row.method != request.method || done.row.content.0 != request.content {
            return Err(Refusal::Reused(request.id.clone()));
        }
        let damaged = |error: &dyn std::fmt::Display| Refusal::Damaged(request.id.clone(), error.to_string());
        let place = request_key(network, key);
        let answer = vault.open_sealed(&place, &done.row.answer.0).map_err(|error| damaged(&error))?;
        let answer = serde_json::from_slice(&answer).map_err(|error| damaged(&error))?;
        Ok(Known::Done(answer, done.revision))
    }

    /// Adds to the plan of what a request asks for that it was done, and what is answered.
    ///
    /// # Errors
    /// If too many are remembered.
    pub(crate) fn remember(
        &self,
        asked: Asked<'_>,
        answer: &impl Serialize,
        vault: &Vault,
        now: UnixTime,
        plan: &mut Plan,
    ) -> Result<(), Refusal> {
        let Asked { network, caller, request } = asked;
        let key = RequestKey::of(caller, &request.id);
        let place = request_key(network, key);
        static NONE: std::sync::LazyLock<Requests> = std::sync::LazyLock::new(Requests::default);
        let requests = self.requests(network).unwrap_or(&NONE);
        let answer = Zeroizing::new(row::emit(answer));
        let sealed = Blob(vault.seal(&place, &answer));
        let former = requests.done.get(&key);
        plan.compare.push(Compare::unchanged(&place, former.map_or(0, |former| former.revision)));
        let over = requests.over(now).filter(|(over, _)| *over != key).take(FORGOTTEN_BY_ONE);
        let (mut left, mut bytes) = (requests.done.len(), requests.bytes.saturating_add(sealed.0.len()));
        for (old, done) in over {
            forget(plan, network, old, done);
            left = left.saturating_sub(1);
            bytes = bytes.saturating_sub(done.row.answer.0.len());
        }
        if left >= MOST || bytes > BYTES {
            return Err(Refusal::TooMany);
        }
        let row = RequestRow {
            caller_kind: caller.kind,
            caller: caller.id.clone(),
            id: request.id.clone(),
            method: request.method.into(),
            content: Blob(request.content.to_vec()),
            expires_ms: now.saturating_add(REMEMBERED).as_millis(),
            answer: sealed,
        };
        plan.ops.push(Op::put(place, row::emit(&row)));
        Ok(())
    }
}

/// Checks an id of a caller's choice.
pub(crate) fn check_id(id: &str) -> Result<(), &'static str> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if id.len() <= ID_MAX && id.bytes().all(plain) {
        Ok(())
    } else {
        Err("at most 64 letters, digits and -_. are one")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::NetworkConfig,
        network::{authority::Authority, create},
        store::Commit,
    };

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

    struct World {
        registry: Registry,
        vault: Vault,
        _directory: tempfile::TempDir,
    }

    impl World {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let vault = Vault::open(directory.path(), true).unwrap();
            Self { registry: Registry::default(), vault, _directory: directory }
        }

        fn remember(
            &mut self,
            by: &Actor,
            request: &Request,
            answer: &str,
            now: UnixTime,
        ) -> Result<Plan, Refusal> {
            let mut plan = Plan::default();
            self.registry.remember(asked(by, request), &answer, &self.vault, now, &mut plan)?;
            self.commit(plan.ops.clone());
            Ok(plan)
        }

        fn commit(&mut self, ops: Vec<Op>) {
            let change = |op| match op {
                Op::Put { key, value, .. } => (key, Some(value)),
                Op::Delete { key } => (key, None),
            };
            let changes = ops.into_iter().map(change).collect();
            let commit = Commit { revision: self.registry.revision + 1, changes };
            self.registry.apply(&commit, &self.vault).unwrap();
        }

        fn recall(&self, by: &Actor, request: &Request, now: UnixTime) -> Result<Option<String>, Refusal> {
            Ok(match self.registry.recall(asked(by, request), &self.vault, now)? {
                Known::Done(answer, _) => Some(answer),
                Known::New => None,
            })
        }
    }

    fn asked<'a>(caller: &'a Actor, request: &'a Request) -> Asked<'a> {
        Asked { network: None, caller, request }
    }

    fn request(id: &str) -> Request {
        Request { id: id.into(), method: "/a", content: [1; 32] }
    }

    fn root() -> Actor {
        Actor::user("root".into())
    }

    #[test]
    fn a_request_is_known_again_by_its_caller_with_its_content_for_a_day() {
        let mut world = World::new();
        world.remember(&root(), &request("x"), "secret answer", NOW).unwrap();
        assert_eq!(world.recall(&root(), &request("x"), NOW), Ok(Some("secret answer".into())));
        assert_eq!(world.recall(&root(), &request("y"), NOW), Ok(None));
        // Another caller's id is another one, also if he is called the same.
        for other in
            [Actor::user("rooty".into()), Actor::api_key("root", "root"), Actor::node("root", "root")]
        {
            assert_eq!(world.recall(&other, &request("x"), NOW), Ok(None), "{other:?}");
        }
        let joined = (Actor::user("roo".into()), request("tx"));
        assert_eq!(
            world.recall(&joined.0, &joined.1, NOW),
            Ok(None),
            "where one ends and the other begins is told"
        );
        for other in [Request { method: "/b", ..request("x") }, Request { content: [2; 32], ..request("x") }]
        {
            assert_eq!(world.recall(&root(), &other, NOW), Err(Refusal::Reused("x".into())));
        }
        let end = NOW.saturating_add(REMEMBERED);
        assert!(
            world
                .recall(&root(), &request("x"), end.saturating_sub(Duration::from_millis(1)))
                .unwrap()
                .is_some()
        );
        assert_eq!(world.recall(&root(), &request("x"), end), Ok(None));
        // Then the id is free, for anything.
        let other = Request { content: [2; 32], ..request("x") };
        let plan = world.remember(&root(), &other, "another", end).unwrap();
        assert!(plan.compare[0].revision > 0, "it takes the place of the one before");
        assert_eq!(world.recall(&root(), &other, end), Ok(Some("another".into())));
        assert_eq!(world.registry.requests.count(), 1);
    }

    #[test]
    fn an_answer_lies_wrapped_and_opens_in_its_place_alone() {
        let mut world = World::new();
        let plan = world.remember(&root(), &request("x"), "secret answer", NOW).unwrap();
        let [Op::Put { value, .. }] = plan.ops.as_slice() else { panic!("{plan:?}") };
        let text = String::from_utf8(value.clone()).unwrap();
        assert!(!text.contains("secret"), "{text}");
        // Put in the place of another request, it is nobody's answer.
        let other = request_key(None, RequestKey::of(&root(), "y"));
        let mut row: RequestRow = serde_json::from_slice(value).unwrap();
        row.id = "y".into();
        world.commit(vec![Op::put(other, row::emit(&row))]);
        assert!(matches!(world.recall(&root(), &request("y"), NOW), Err(Refusal::Damaged(..))));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_what_is_over_makes_room() {
        let mut world = World::new();
        let later = NOW.saturating_add(Duration::from_secs(3600));
        for number in 0..MOST {
            let now = if number < 20 { NOW } else { later };
            world.remember(&root(), &request(&format!("r{number}")), "", now).unwrap();
        }
        assert_eq!(world.remember(&root(), &request("more"), "", later).err(), Some(Refusal::TooMany));
        let end = NOW.saturating_add(REMEMBERED);
        let plan = world.remember(&root(), &request("more"), "", end).unwrap();
        assert_eq!(plan.ops.len(), FORGOTTEN_BY_ONE + 1);
        assert_eq!(world.registry.requests.count(), MOST + 1 - FORGOTTEN_BY_ONE);
        // Maintenance forgets the others.
        let prune = |world: &World, now| world.registry.requests.prune(None, now).map(Plan::from);
        let mut forgotten = 0;
        while let Some(plan) = prune(&world, end) {
            assert!(plan.ops.len() <= BATCH);
            forgotten += plan.ops.len();
            world.commit(plan.ops);
        }
        assert_eq!(forgotten, 20 - FORGOTTEN_BY_ONE);
        while let Some(plan) = prune(&world, end.saturating_add(2 * REMEMBERED)) {
            assert!(plan.ops.len() <= BATCH);
            world.commit(plan.ops);
        }
        assert_eq!((world.registry.requests.count(), world.registry.requests.bytes), (0, 0));
        // Few large answers are as much as many small ones.
        let plan = world.remember(&root(), &request("large"), "", NOW).unwrap();
        let [Op::Put { key, value, .. }] = plan.ops.as_slice() else { panic!("{plan:?}") };
        let mut row: RequestRow = serde_json::from_slice(value).unwrap();
        row.answer = Blob(vec![0; BYTES - 1000]);
        world.commit(vec![Op::put(key, row::emit(&row))]);
        let answer = "x".repeat(2000);
        let refused = world.remember(&root(), &request("more"), &answer, NOW).err();
        assert_eq!(refused, Some(Refusal::TooMany));
        world.remember(&root(), &request("more"), "fits", NOW).unwrap();
    }

    #[test]
    fn each_network_has_a_bound_of_its_own() {
        for is_full in [true, false] {
            let mut world = World::new();
            let config = NetworkConfig::default();
            let (network, change) =
                create::plan(&config, &Authority::generate(), None, &world.vault, NOW).unwrap();
            world.commit(Plan::from(change).ops);
            let (full, other) = if is_full { (Some(network), None) } else { (None, Some(network)) };
            let remember = |world: &World, network, id: &str| {
                let mut plan = Plan::default();
                let (caller, request) = (root(), request(id));
                let asked = Asked { network, ..asked(&caller, &request) };
                world.registry.remember(asked, &"", &world.vault, NOW, &mut plan).map(|()| plan)
            };
            let plan = remember(&world, full, "large").unwrap();
            let [Op::Put { key, value, .. }] = plan.ops.as_slice() else { panic!("{plan:?}") };
            let mut row: RequestRow = serde_json::from_slice(value).unwrap();
            row.answer = Blob(vec![0; BYTES]);
            world.commit(vec![Op::put(key, row::emit(&row))]);
            assert_eq!(remember(&world, full, "more").err(), Some(Refusal::TooMany));
            remember(&world, other, "more").unwrap();
        }
    }

    #[test]
    fn a_key_reads_back_in_one_spelling() {
        let key = RequestKey::of(&root(), "x");
        assert_eq!(RequestKey::parse(&key.to_string()), Some(key));
        for bad in
            ["", "0", &"A".repeat(32), "+0112233445566778899aabbccddeeff", &"f".repeat(33), &"g".repeat(32)]
        {
            assert_eq!(RequestKey::parse(bad), None, "{bad}");
        }
    }
}
