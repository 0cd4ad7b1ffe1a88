//! API keys: how automation proves over the network that it may ask.
//!
//! The text is `meshkey1_` and, in base64url without padding (RFC 4648 §5), the key's id (8 bytes) and its secret (32). The secret
//! is random, so that its plain SHA-256 is all that is stored, and nothing is gained by a slow hash.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use std::{fmt, str::FromStr, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ringmesh_tunnel::{UnixTime, key::NetworkId};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::{
    Change, Plan, Registry,
    events::{Happening, Name},
    key::Key,
    row::{self, Blob, Damage},
};
use crate::store::{Compare, Op, Revision};

/// How long a key lives unless said otherwise.
pub(crate) const DEFAULT_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
/// The longest life of a key.
pub(crate) const MAX_LIFE: Duration = Duration::from_secs(366 * 24 * 3600);
/// The most keys of a coordinator, those that ended included until they are dropped.
pub(crate) const MAX_KEYS: usize = 1_000;
/// How long a key is listed after its end.
pub(crate) const REMEMBERED: Duration = Duration::from_secs(30 * 24 * 3600);
/// The longest name, in bytes.
pub(crate) const MAX_NAME: usize = 63;
/// Keys that one transaction drops.
const BATCH: usize = 50;

/// What every key begins with.
const MARK: &str = "meshkey1_";
/// Length of what follows, decoded: an id and a secret.
const LENGTH: usize = 8 + 32;
/// Length of the text.
const TEXT_LENGTH: usize = 9 + 54;

/// The public name of an API key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ApiKeyId([u8; 8]);

impl fmt::Display for ApiKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The text is not an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the id of an API key is 16 hex digits; see: meshctl key list")]
pub(crate) struct NotAnId;

impl FromStr for ApiKeyId {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, NotAnId> {
        let lower = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != 16 || !text.bytes().all(lower) {
            return Err(NotAnId);
        }
        let number = u64::from_str_radix(text, 16).map_err(|_| NotAnId)?;
        Ok(Self(number.to_be_bytes()))
    }
}

/// What whoever holds a key sends: its id and its secret. The secret is wiped when this is dropped, and cannot be printed.
pub(crate) struct Credential {
    id: ApiKeyId,
    secret: Zeroizing<[u8; 32]>,
}

impl Credential {
    /// A new one.
    pub(crate) fn generate() -> Self {
        Self { id: ApiKeyId(crate::auth::random()), secret: Zeroizing::new(crate::auth::random()) }
    }

    pub(crate) const fn id(&self) -> ApiKeyId {
        self.id
    }

    /// What is stored of the secret.
    fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.secret.as_slice()).into()
    }

    /// The text, secret and all. For the one time it is handed to whoever made the key.
    pub(crate) fn reveal(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(LENGTH));
        bytes.extend(self.id.0);
        bytes.extend(self.secret.iter());
        // Room for all of it at once, so that growing leaves no copy of the secret behind.
        let mut text = Zeroizing::new(String::with_capacity(TEXT_LENGTH));
        text.push_str(MARK);
        URL_SAFE_NO_PAD.encode_string(bytes.as_slice(), &mut text);
        text
    }

    /// Reads what a caller sent.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let encoded = text.strip_prefix(MARK.as_bytes())?;
        // Into a buffer of ours, so that no text is too long and no copy of the secret stays behind unwiped.
        let mut bytes = Zeroizing::new([0; LENGTH + 2]);
        let length = URL_SAFE_NO_PAD.decode_slice(encoded, bytes.as_mut_slice()).ok()?;
        let (id, secret) = bytes.get(..length)?.split_first_chunk::<8>()?;
        let secret = Zeroizing::new(<[u8; 32]>::try_from(secret).ok()?);
        Some(Self { id: ApiKeyId(*id), secret })
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credential({})", self.id)
    }
}

/// What the holder of a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Role {
    /// What changes nothing.
    ReadOnly,
    Operator,
}

/// A key, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ApiKeyRow {
    secret_sha256: Blob,
    pub(crate) name: String,
    pub(crate) role: Role,
    /// The id of the network that it is for; `None`: all, and what belongs to none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) network: Option<String>,
    pub(crate) created_ms: u64,
    pub(crate) expires_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) revoked_ms: Option<u64>,
    /// The name of a user or of an API key.
    pub(crate) created_by: String,
}

/// A key as it is held in memory.
#[derive(Debug, Clone)]
pub(crate) struct ApiKey {
    pub(crate) row: ApiKeyRow,
    pub(crate) network: Option<NetworkId>,
    hash: [u8; 32],
    revision: Revision,
}

/// Why a credential does not let its holder in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denied {
    /// No such key: a wrong secret and an unknown id are not told apart.
    #[error("the API key is not valid here")]
    Invalid,
    #[error("the API key has expired")]
    Expired,
    #[error("the API key was revoked")]
    Revoked,
}

impl ApiKey {
    pub(super) fn parse(key: &str, value: &[u8], revision: Revision) -> Result<Self, Damage> {
        let row: ApiKeyRow = row::parse(key, value)?;
        let network = row.network.as_ref().map(|id| id.parse()).transpose();
        let network = network.map_err(|error| Damage::at(key, error))?;
        let hash = row.secret_sha256.0.as_slice().try_into();
        let hash = hash.map_err(|_| Damage::at(key, "the hash is not 32 bytes"))?;
        Ok(Self { row, network, hash, revision })
    }

    /// Whether it still opens anything at `now`.
    pub(crate) fn standing(&self, now: UnixTime) -> Result<(), Denied> {
        if self.row.revoked_ms.is_some() {
            Err(Denied::Revoked)
        } else if self.row.expires_ms <= now.as_millis() {
            Err(Denied::Expired)
        } else {
            Ok(())
        }
    }

    /// When it ended, or will.
    fn end(&self) -> UnixTime {
        row::time(self.row.revoked_ms.map_or(self.row.expires_ms, |revoked| revoked.min(self.row.expires_ms)))
    }
}

impl Registry {
    /// Finds the key of a credential, if it fits and opens something at `now`.
    pub(crate) fn api_key(&self, credential: &Credential, now: UnixTime) -> Result<&ApiKey, Denied> {
        let known = self.api_keys.get(&credential.id);
        // An id that does not exist takes as long as a wrong secret.
        let hash = known.map_or(&[0; 32], |key| &key.hash);
        let fits = bool::from(credential.hash().ct_eq(hash));
        let key = known.filter(|_| fits).ok_or(Denied::Invalid)?;
        // Only who has the secret is told more.
        key.standing(now)?;
        Ok(key)
    }
}

/// What a new key shall allow.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    pub(crate) name: String,
    pub(crate) role: Role,
    /// `None`: all, and what belongs to none.
    pub(crate) network: Option<NetworkId>,
    /// Zero: [`DEFAULT_LIFE`].
    pub(crate) life: Duration,
}

/// Why there is no such key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("an API key lives at most 366 days, and one of {0} s was asked for")]
    Life(u64),
    #[error("an API key is named by 1 to {MAX_NAME} letters, digits and -_., so that its holder can be told")]
    Name,
    #[error("there are {MAX_KEYS} API keys already; those that ended are dropped 30 days later: revoke some")]
    TooMany,
    #[error("there is no API key {0}; see: meshctl key list")]
    Unknown(String),
}

/// Plans a key. The secret stays with the caller; only its hash is written.
pub(crate) fn plan_create(
    registry: &Registry,
    credential: &Credential,
    wish: &Wish,
    created_by: &str,
    now: UnixTime,
) -> Result<(ApiKeyRow, Change), Refusal> {
    if wish.life > MAX_LIFE {
        return Err(Refusal::Life(wish.life.as_secs()));
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if wish.name.is_empty() || wish.name.len() > MAX_NAME || !wish.name.bytes().all(plain) {
        return Err(Refusal::Name);
    }
    if registry.api_keys.len() >= MAX_KEYS {
        return Err(Refusal::TooMany);
    }
    let life = if wish.life.is_zero() { DEFAULT_LIFE } else { wish.life };
    let row = ApiKeyRow {
        secret_sha256: Blob(credential.hash().to_vec()),
        name: wish.name.clone(),
        role: wish.role,
        network: wish.network.map(|network| network.to_string()),
        created_ms: now.as_millis(),
        expires_ms: now.saturating_add(life).as_millis(),
        revoked_ms: None,
        created_by: created_by.into(),
    };
    let place = Key::Api(credential.id).to_string();
    let told = happening(Name::ApiKeyCreated, credential.id, &row, wish.network);
    let told = told.with("expires_ms", row.expires_ms);
    let plan = Plan { compare: vec![Compare::absent(&place)], ops: vec![Op::put(place, row::emit(&row))] };
    Ok((row, plan.tells([told])))
}

/// Plans a revocation; one that was revoked stays as it is.
pub(crate) fn plan_revoke(
    registry: &Registry,
    id: ApiKeyId,
    now: UnixTime,
) -> Result<(ApiKeyRow, Change), Refusal> {
    let key = registry.api_keys.get(&id).ok_or_else(|| Refusal::Unknown(id.to_string()))?;
    if key.row.revoked_ms.is_some() {
        return Ok((key.row.clone(), Plan::default().unremarkable()));
    }
    let place = Key::Api(id).to_string();
    let row = ApiKeyRow { revoked_ms: Some(now.as_millis()), ..key.row.clone() };
    let compare = vec![Compare::unchanged(&place, key.revision)];
    let told = happening(Name::ApiKeyRevoked, id, &row, key.network);
    let plan = Plan { compare, ops: vec![Op::put(place, row::emit(&row))] };
    Ok((row, plan.tells([told])))
}

/// What becomes of a key, told among what happened to that for which it is.
fn happening(name: Name, id: ApiKeyId, row: &ApiKeyRow, network: Option<NetworkId>) -> Happening {
    let told = Happening::new(network, name).about(id, &row.name);
    let role = match row.role {
        Role::ReadOnly => "read-only",
        Role::Operator => "operator",
    };
    told.with("role", role).with("scope", if network.is_some() { "network" } else { "all" })
}

/// Plans to drop keys whose end is long past, so that their number stays bounded.
pub(crate) fn plan_drop_old(registry: &Registry, now: UnixTime) -> Option<Change> {
    let over = |key: &ApiKey| key.end().saturating_add(REMEMBERED) <= now;
    let old = registry.api_keys.iter().filter(|(_, key)| over(key)).take(BATCH);
    let mut plan = Plan::default();
    for (id, key) in old {
        let place = Key::Api(*id).to_string();
        plan.compare.push(Compare::unchanged(&place, key.revision));
        plan.ops.push(Op::delete(place));
    }
    (!plan.ops.is_empty()).then(|| plan.unremarkable())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{store::Commit, vault::Vault};

    const NOW: UnixTime = UnixTime::from_secs(1_000_000);
    const DAY: Duration = Duration::from_secs(24 * 3600);

    struct Keys {
        registry: Registry,
        vault: Vault,
        _directory: tempfile::TempDir,
    }

    impl Keys {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let vault = Vault::open(directory.path(), true).unwrap();
            Self { registry: Registry::default(), vault, _directory: directory }
        }

        fn commit(&mut self, plan: impl Into<Plan>) {
            let change = |op| match op {
                Op::Put { key, value, .. } => (key, Some(value)),
                Op::Delete { key } => (key, None),
            };
            let changes = plan.into().ops.into_iter().map(change).collect();
            let commit = Commit { revision: self.registry.revision + 1, changes };
            self.registry.apply(&commit, &self.vault).unwrap();
        }

        fn create(&mut self, wish: &Wish, now: UnixTime) -> Result<Credential, Refusal> {
            let credential = Credential::generate();
            let (_, change) = plan_create(&self.registry, &credential, wish, "root", now)?;
            self.commit(change);
            Ok(credential)
        }

        fn denied(&self, credential: &Credential, now: UnixTime) -> Option<Denied> {
            self.registry.api_key(credential, now).err()
        }
    }

    fn wish() -> Wish {
        Wish { name: "ci".into(), role: Role::Operator, network: None, life: Duration::ZERO }
    }

    fn other_secret(credential: &Credential, flipped: usize) -> Credential {
        let mut secret = credential.secret.clone();
        secret[flipped] ^= 1;
        Credential { id: credential.id, secret }
    }

    #[test]
    fn the_text_of_a_key_reads_back_in_one_spelling_only() {
        let made = Credential::generate();
        let text = made.reveal();
        assert_eq!(text.len(), TEXT_LENGTH);
        let read = Credential::parse(text.as_bytes()).unwrap();
        assert_eq!((read.id, *read.secret), (made.id, *made.secret));
        for length in 0..text.len() {
            assert!(Credential::parse(&text.as_bytes()[..length]).is_none(), "{length}");
        }
        let other_mark = text.replacen("meshkey1_", "meshkey2_", 1);
        let zeros = format!("{MARK}{}", "A".repeat(54));
        assert!(Credential::parse(zeros.as_bytes()).is_some());
        // The last four bits of the last letter carry nothing, and must be zero.
        let spelt_otherwise = format!("{MARK}{}B", "A".repeat(53));
        let long = [format!("{}A", *text), format!("{}AA", *text), format!("{MARK}{}", "A".repeat(1 << 20))];
        let padded = format!("{}==", *text);
        for bad in long.iter().chain([&other_mark, &spelt_otherwise, &padded]) {
            assert!(Credential::parse(bad.as_bytes()).is_none());
        }
        assert!(Credential::parse(b"mesh1_AAAA").is_none());
        assert!(!format!("{made:?}").contains(&text[MARK.len() + 11..]), "it cannot be printed");
    }

    #[test]
    fn a_key_opens_with_its_own_secret_until_its_end() {
        let mut keys = Keys::new();
        let credential = keys.create(&wish(), NOW).unwrap();
        assert_eq!(keys.denied(&credential, NOW), None);
        for flipped in 0..32 {
            assert_eq!(keys.denied(&other_secret(&credential, flipped), NOW), Some(Denied::Invalid));
        }
        let unknown = Credential::generate();
        assert_eq!(keys.denied(&unknown, NOW), Some(Denied::Invalid));
        // All of the hash counts.
        for flipped in 0..32 {
            let flip = |keys: &mut Keys| {
                keys.registry.api_keys.get_mut(&credential.id).unwrap().hash[flipped] ^= 1;
            };
            flip(&mut keys);
            assert_eq!(keys.denied(&credential, NOW), Some(Denied::Invalid), "{flipped}");
            flip(&mut keys);
        }
        let end = NOW.saturating_add(DEFAULT_LIFE);
        assert_eq!(keys.denied(&credential, end.saturating_sub(Duration::from_millis(1))), None);
        assert_eq!(keys.denied(&credential, end), Some(Denied::Expired));
        // Whoever has not the secret is not told that it expired, or was revoked.
        assert_eq!(keys.denied(&other_secret(&credential, 0), end), Some(Denied::Invalid));
        let (_, revoke) = plan_revoke(&keys.registry, credential.id, NOW).unwrap();
        keys.commit(revoke);
        assert_eq!(keys.denied(&credential, NOW), Some(Denied::Revoked));
        assert_eq!(keys.denied(&other_secret(&credential, 0), NOW), Some(Denied::Invalid));
        let again = Plan::from(plan_revoke(&keys.registry, credential.id, end).unwrap().1);
        assert!(again.ops.is_empty(), "the first revocation stands");
        assert_eq!(
            plan_revoke(&keys.registry, unknown.id, NOW).err(),
            Some(Refusal::Unknown(unknown.id.to_string()))
        );
    }

    #[test]
    fn what_is_stored_is_the_hash_of_the_secret() {
        let keys = Keys::new();
        let credential = Credential::generate();
        let plan = Plan::from(plan_create(&keys.registry, &credential, &wish(), "root", NOW).unwrap().1);
        let [Op::Put { value, .. }] = plan.ops.as_slice() else { panic!("{plan:?}") };
        let row: ApiKeyRow = row::parse("", value).unwrap();
        assert_eq!(row.secret_sha256.0, Sha256::digest(credential.secret.as_slice()).to_vec());
        let text = String::from_utf8(value.clone()).unwrap();
        use base64::engine::general_purpose::STANDARD;
        for secret in [STANDARD.encode(credential.secret.as_slice()), credential.reveal()[20..].to_owned()] {
            assert!(!text.contains(&secret));
        }
    }

    #[test]
    fn keys_are_bounded_in_number_life_and_name() {
        let mut keys = Keys::new();
        let refused = |keys: &mut Keys, wish: Wish| keys.create(&wish, NOW).err();
        let long = MAX_LIFE + Duration::from_secs(1);
        assert_eq!(refused(&mut keys, Wish { life: long, ..wish() }), Some(Refusal::Life(long.as_secs())));
        assert_eq!(refused(&mut keys, Wish { life: MAX_LIFE, ..wish() }), None);
        for name in ["", "a b", "a\u{1b}[2J", "\u{e4}", "a/b", &"x".repeat(MAX_NAME + 1)] {
            assert_eq!(
                refused(&mut keys, Wish { name: name.into(), ..wish() }),
                Some(Refusal::Name),
                "{name:?}"
            );
        }
        assert_eq!(refused(&mut keys, Wish { name: "x".repeat(MAX_NAME), ..wish() }), None);
        while keys.registry.api_keys.len() < MAX_KEYS {
            keys.create(&wish(), NOW).unwrap();
        }
        assert_eq!(refused(&mut keys, wish()), Some(Refusal::TooMany));
    }

    #[test]
    fn a_key_is_dropped_30_days_after_its_end() {
        let mut keys = Keys::new();
        let lasting = keys.create(&Wish { life: MAX_LIFE, ..wish() }, NOW).unwrap();
        let short = keys.create(&Wish { life: DAY, ..wish() }, NOW).unwrap();
        let revoked = keys.create(&Wish { life: MAX_LIFE, ..wish() }, NOW).unwrap();
        let (_, revoke) = plan_revoke(&keys.registry, revoked.id, NOW.saturating_add(2 * DAY)).unwrap();
        keys.commit(revoke);
        let mut dropped = Vec::new();
        for day in 0..40 {
            while let Some(plan) = plan_drop_old(&keys.registry, NOW.saturating_add(day * DAY)) {
                let plan = Plan::from(plan);
                dropped.push((day, plan.ops.len()));
                keys.commit(plan);
            }
        }
        assert_eq!(dropped, [(31, 1), (32, 1)]);
        assert_eq!(keys.denied(&short, NOW), Some(Denied::Invalid));
        assert_eq!(keys.denied(&lasting, NOW.saturating_add(300 * DAY)), None);
    }
}
