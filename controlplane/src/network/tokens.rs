//! Making and revoking join tokens.

use std::time::Duration;

use ringmesh_tunnel::{UnixTime, enroll::TokenSecret, key::TokenId, netmap::TAGS_MAX};

use super::{
    Change, Plan,
    events::{Happening, Name},
    key::Part,
    row::{self, Blob, TokenRow},
    state::NetworkState,
};
use crate::store::{Compare, Op};

/// How long a token lives unless said otherwise.
pub(crate) const DEFAULT_LIFE: Duration = Duration::from_secs(24 * 3600);
/// The longest life of a token.
pub(crate) const MAX_LIFE: Duration = Duration::from_secs(366 * 24 * 3600);
/// The most tokens of a network, used and expired ones included until they are dropped.
pub(crate) const MAX_TOKENS: usize = 10_000;
/// How long a token is listed after its end.
pub(crate) const REMEMBERED: Duration = Duration::from_secs(30 * 24 * 3600);

/// What a new token shall allow.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    /// Zero: [`DEFAULT_LIFE`].
    pub(crate) life: Duration,
    /// 0: unlimited.
    pub(crate) max_uses: u32,
    pub(crate) tags: Vec<String>,
    pub(crate) ephemeral: bool,
    /// Whether the nodes that join with it are relays.
    pub(crate) relay: bool,
}

/// Why there is no such token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("a token lives at most 366 days, and one of {0} s was asked for")]
    Life(u64),
    #[error(
        "the tag {} cannot be used: 1 to 63 lower-case letters, digits and -_.@, beginning with a letter or digit, at \
         most 32 tags",
        super::enroll::quoted(.0)
    )]
    Tag(String),
    #[error("there are {MAX_TOKENS} tokens already; revoke some, they are dropped 30 days after their end")]
    TooMany,
    #[error("there is no token {0}; see: meshctl token list")]
    Unknown(String),
}

/// Plans a token. The secret stays with the caller; only its public key is written.
pub(crate) fn plan_create(
    state: &NetworkState,
    id: TokenId,
    secret: &TokenSecret,
    wish: &Wish,
    now: UnixTime,
) -> Result<(TokenRow, Change), Refusal> {
    if wish.life > MAX_LIFE {
        return Err(Refusal::Life(wish.life.as_secs()));
    }
    let bad_tag = wish.tags.iter().enumerate().find(|(i, tag)| *i >= TAGS_MAX || !is_tag(tag));
    if let Some((_, tag)) = bad_tag {
        return Err(Refusal::Tag(tag.clone()));
    }
    if state.tokens.len() >= MAX_TOKENS {
        return Err(Refusal::TooMany);
    }
    let life = if wish.life.is_zero() { DEFAULT_LIFE } else { wish.life };
    let row = TokenRow {
        public_key: Blob(secret.public_key().as_bytes().to_vec()),
        created_ms: now.as_millis(),
        expires_ms: now.saturating_add(life).as_millis(),
        max_uses: wish.max_uses,
        uses: 0,
        tags: wish.tags.clone(),
        ephemeral: wish.ephemeral,
        revoked: false,
        relay: wish.relay,
    };
    let place = Part::Token(id).of(state.id);
    let plan = Plan { compare: vec![Compare::absent(&place)], ops: vec![Op::put(place, row::emit(&row))] };
    let told = Happening::new(state.id, Name::TokenCreated)
        .about(id, "")
        .with("expires_ms", row.expires_ms)
        .with("max_uses", row.max_uses)
        .with("tags", row.tags.join(", "))
        .with("ephemeral", row.ephemeral)
        .with("relay", row.relay);
    Ok((row, plan.tells([told])))
}

/// Plans a revocation. Nodes that joined with the token stay.
pub(crate) fn plan_revoke(state: &NetworkState, id: TokenId) -> Result<(TokenRow, Change), Refusal> {
    let token = state.tokens.get(&id).ok_or_else(|| Refusal::Unknown(id.to_string()))?;
    let place = Part::Token(id).of(state.id);
    let row = TokenRow { revoked: true, ..token.row.clone() };
    let compare = vec![Compare::unchanged(&place, token.revision)];
    let told = Happening::new(state.id, Name::TokenRevoked).about(id, "").with("uses", row.uses);
    let plan = Plan { compare, ops: vec![Op::put(place, row::emit(&row))] };
    Ok((row, plan.tells([told])))
}

/// As records have them, so that what is accepted here can be signed later.
fn is_tag(tag: &str) -> bool {
    let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = tag.as_bytes();
    bytes.len() <= 63
        && bytes.first().is_some_and(plain)
        && bytes.iter().all(|byte| plain(byte) || b"-_.@".contains(byte))
}
