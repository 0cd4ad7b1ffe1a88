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

use std::{collections::BTreeMap, time::Duration};

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
        let number = u128::from_str_radix(text, 16).ok().filter(|_| text.len() == 32)?;
        Some(Self(number.to_be_bytes()))
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
        let former = match value {
            Some(value) => {
                let row: RequestRow = row::parse(key, value)?;
                self.bytes += row.answer.0.len();
                self.done.insert(request, Done { row, revision })
            }
            None => self.done.remove(&request),
        };
        self.bytes -= former.map_or(0, |former| former.row.answer.0.len());
        Ok(())
    }

    /// How many are remembered.
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.done.len()
    }

    fn over(&self, now: UnixTime) -> impl Iterator<Item = (RequestKey, &Done)> {
        let done = self.done.iter().map(|(key, done)| (*key, done));
        done.filter(move |(_, done)| done.is_over(now))
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

    /// What is known of a request of `caller`.
    ///
    /// # Errors
    /// If its id was used for another one.
    pub(crate) fn recall<A: DeserializeOwned>(
        &self,
        network: Option<NetworkId>,
        caller: &Actor,
        request: &Request,
        vault: &Vault,
        now: UnixTime,
    ) -> Result<Known<A>, Refusal> {
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
        network: Option<NetworkId>,
        caller: &Actor,
        request: &Request,
        answer: &impl Serialize,
        vault: &Vault,
        now: UnixTime,
        plan: &mut Plan,
    ) -> Result<(), Refusal> {
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
