//! Making a node out of a join token: check, consumption and allocation as one plan, so that no two can win one use.

use ringmesh_tunnel::{
    UnixTime,
    key::{IdentityKey, NodeId, TokenId},
    netmap::{Member, MemberKind, Role},
};

use super::{
    Change, Plan,
    authority::{CannotSign, RECORD_LIFE},
    events::{Actor, Happening, Name},
    key::Part,
    pool,
    row::{self, AddressRow, Blob, NodeRow},
    state::{NetworkState, Token},
};
use crate::{
    config::check_label,
    store::{Compare, Op},
};

/// The longest text that a node tells of itself and that is stored, in characters.
const MAX_TEXT: usize = 128;

/// A machine that wants to be a node. Its token and its key have been proved.
#[derive(Debug, Clone)]
pub(crate) struct Joiner {
    pub(crate) token: TokenId,
    pub(crate) identity_key: IdentityKey,
    /// The name it asks for; empty: any.
    pub(crate) name: String,
    pub(crate) host_name: String,
    pub(crate) os: String,
    pub(crate) version: String,
    /// Whether it wants to be a relay.
    pub(crate) relay: bool,
}

/// Why somebody does not become a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the join token is not valid for this network; ask for a new one (meshctl token create)")]
    TokenInvalid,
    #[error("the join token has expired; ask for a new one (meshctl token create)")]
    TokenExpired,
    #[error("the join token was used as often as it may be; ask for a new one (meshctl token create)")]
    TokenUsed,
    #[error("the join token was revoked; ask for a new one (meshctl token create)")]
    TokenRevoked,
    #[error(
        "this is a relay's token, and this machine is to be an ordinary node; the token was not used: start a relay with it \
         (meshctl relay run, or [relay] in the node's configuration), or ask for a node's token (meshctl token create)"
    )]
    TokenForRelays,
    #[error(
        "this is the token of an ordinary node, and this machine is to be a relay; the token was not used: join a node with it \
         (meshctl join), or ask for a relay's token (meshctl token create --relay)"
    )]
    TokenForNodes,
    #[error("the name {0:?} is taken by another node; choose another one (--name)")]
    NameTaken(String),
    #[error(
        "the name {0:?} is one of the policy's names, and who asks for it must get what the policy says; choose another one (--name), or \
         take the record out of the policy first (see: meshctl policy show)"
    )]
    NameOfPolicy(String),
    #[error("the name {} cannot be used: {reason}", quoted(.name))]
    NameInvalid { name: String, reason: String },
    #[error("the key belongs to another node, or to one that was removed; join with a new identity key")]
    KeyTaken,
    #[error("the address pool {0} has no free address; remove nodes, or make a network with a larger pool")]
    PoolExhausted(ringmesh_tunnel::ip::Prefix),
    #[error(transparent)]
    CannotSign(#[from] CannotSign),
}

/// What enrolling somebody comes to.
#[derive(Debug)]
pub(crate) enum Enrollment {
    /// It is a node already: the answer to its first request was lost.
    Already(NodeId),
    /// It becomes this node if the change is committed.
    New(NodeId, Change),
}

/// Plans an enrolment; `id` is the node's id unless it has one.
pub(crate) fn plan(
    state: &NetworkState,
    joiner: &Joiner,
    id: NodeId,
    now: UnixTime,
) -> Result<Enrollment, Refusal> {
    let noise_key = joiner.identity_key.noise_key();
    if let Some(owner) = state.noise_keys.get(&noise_key) {
        let node = state.nodes.get(owner).ok_or(Refusal::KeyTaken)?;
        let same = node.member.record.identity_key == Some(joiner.identity_key);
        return if same { Ok(Enrollment::Already(*owner)) } else { Err(Refusal::KeyTaken) };
    }
    let token = state.tokens.get(&joiner.token).ok_or(Refusal::TokenInvalid)?;
    check(token, now)?;
    match (token.row.relay, joiner.relay) {
        (true, false) => return Err(Refusal::TokenForRelays),
        (false, true) => return Err(Refusal::TokenForNodes),
        (true, true) | (false, false) => {}
    }
    let name = choose_name(state, joiner, id)?;
    let (ipv4, former) = pool::choose(state.ipv4_pool, &state.addresses, now)
        .ok_or(Refusal::PoolExhausted(state.ipv4_pool))?;
    let member = Member {
        network: state.id,
        id,
        name: name.clone(),
        kind: MemberKind::Mesh,
        relay: token.row.relay,
        noise_key,
        identity_key: Some(joiner.identity_key),
        ipv4: Some(ipv4),
        ipv6: id.ipv6_in(state.ipv6_pool()).ok_or_else(|| Refusal::PoolExhausted(state.ipv6_pool()))?,
        tags: token.row.tags.clone(),
        groups: Vec::new(),
        routes: Vec::new(),
        serial: 1,
        not_after: now.saturating_add(RECORD_LIFE),
    };
    let node = NodeRow {
        member: Blob::from(&state.authority.sign(Role::Admission, &member)?),
        enrolled_ms: now.as_millis(),
        host_name: printable(&joiner.host_name),
        os: printable(&joiner.os),
        version: printable(&joiner.version),
        ephemeral: token.row.ephemeral,
        psk: None,
    };
    let token_place = Part::Token(joiner.token).of(state.id);
    let mut used = token.row.clone();
    used.uses = used.uses.saturating_add(1);
    let mut plan = admit(&member, &node, former);
    plan.compare.extend(state.names_of_policy_unchanged());
    plan.compare.push(Compare::unchanged(&token_place, token.revision));
    plan.ops.push(Op::put(token_place, row::emit(&used)));
    let told = joined(&member, Name::NodeJoined)
        .by(Actor::node(id, &name))
        .with("token", joiner.token)
        .with("tags", member.tags.join(", "))
        .with("relay", member.relay)
        .with("ephemeral", node.ephemeral)
        .with("os", &node.os)
        .with("version", &node.version);
    Ok(Enrollment::New(id, plan.tells([told])))
}

/// That somebody became a member, with what can be said of each.
pub(super) fn joined(member: &Member, name: Name) -> Happening {
    let told = Happening::new(member.network, name).about(member.id, &member.name).with("ipv6", member.ipv6);
    match member.ipv4 {
        Some(ipv4) => told.with("ipv4", ipv4),
        None => told,
    }
}

/// Writes a new member and takes its name, key and address, each of which must be nobody's.
pub(super) fn admit(member: &Member, row: &NodeRow, former: u64) -> Plan {
    let at = |part: Part| part.of(member.network);
    let (node, name, key) = (
        at(Part::Node(member.id)),
        at(Part::Name(member.name.clone())),
        at(Part::NoiseKey(member.noise_key)),
    );
    let owner = || member.id.to_string().into_bytes();
    let mut plan = Plan {
        compare: vec![
            Compare::absent(&node),
            Compare::absent(at(Part::Removed(member.id))),
            Compare::absent(&name),
            Compare::absent(&key),
        ],
        ops: vec![Op::put(node, row::emit(row)), Op::put(name, owner()), Op::put(key, owner())],
    };
    if let Some(ipv4) = member.ipv4 {
        let place = at(Part::Ipv4(ipv4));
        let row = AddressRow { node: member.id.to_string(), released_ms: None };
        plan.compare.push(Compare::unchanged(&place, former));
        plan.ops.push(Op::put(place, row::emit(&row)));
    }
    plan
}

/// Whether a token may be used once more.
fn check(token: &Token, now: UnixTime) -> Result<(), Refusal> {
    if token.row.revoked {
        return Err(Refusal::TokenRevoked);
    }
    if row::time(token.row.expires_ms) <= now {
        return Err(Refusal::TokenExpired);
    }
    if token.row.max_uses != 0 && token.row.uses >= token.row.max_uses {
        return Err(Refusal::TokenUsed);
    }
    Ok(())
}

/// The wished-for name if it is free, or one made from the host's name.
fn choose_name(state: &NetworkState, joiner: &Joiner, id: NodeId) -> Result<String, Refusal> {
    if !joiner.name.is_empty() {
        check_name(state, &joiner.name)?;
        return Ok(joiner.name.clone());
    }
    let base = match label(&joiner.host_name) {
        Some(label) => label,
        None => format!("node-{}", &id.to_string()[..6]),
    };
    free_name(state, &base)
}

/// `base`, or `base` with the lowest number behind it that makes it free.
pub(super) fn free_name(state: &NetworkState, base: &str) -> Result<String, Refusal> {
    // With n names taken, one of n + 1 is free.
    let records = state.policy.as_ref().map_or(0, |policy| policy.names.len());
    let numbered = (2_u32..).map(|number| format!("{base}-{number}"));
    let mut names = std::iter::once(base.to_owned()).chain(numbered).take(state.names.len() + records + 1);
    names
        .find(|name| !state.names.contains_key(name) && !state.is_name_of_policy(name))
        .ok_or_else(|| Refusal::NameTaken(base.into()))
}

/// Checks a name that somebody asks for.
pub(super) fn check_name(state: &NetworkState, name: &str) -> Result<(), Refusal> {
    let reason = match check_label(name) {
        Err(reason) => Some(reason),
        Ok(()) if is_reserved(name) => Some("it has a meaning of its own".into()),
        Ok(()) => None,
    };
    if let Some(reason) = reason {
        return Err(Refusal::NameInvalid { name: name.into(), reason });
    }
    if state.names.contains_key(name) {
        return Err(Refusal::NameTaken(name.into()));
    }
    if state.is_name_of_policy(name) {
        return Err(Refusal::NameOfPolicy(name.into()));
    }
    Ok(())
}

/// Every machine calls itself that, and resolvers answer it themselves (RFC 6761). An id must not be a name either.
fn is_reserved(name: &str) -> bool {
    name == "localhost" || name.parse::<NodeId>().is_ok()
}

/// A label out of the first part of a host name, short enough for a number behind it.
fn label(host_name: &str) -> Option<String> {
    let first = host_name.split('.').next().unwrap_or_default();
    let letters = first.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' });
    let label: String = letters.skip_while(|c| *c == '-').take(52).collect();
    let label = label.trim_end_matches('-');
    (check_label(label).is_ok() && !is_reserved(label)).then(|| label.into())
}

/// Text for operators to read: one line of printable ASCII, so that it can do nothing to a terminal or a log.
pub(crate) fn printable(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(MAX_TEXT).collect()
}

/// What somebody wrote, in quotes: every character that is not plain ASCII is there as its escape, so that a name that cannot be used is
/// never shown as one that could; and at most [`MAX_TEXT`] characters of it.
pub(crate) fn quoted(text: &str) -> String {
    let more = if text.chars().nth(MAX_TEXT).is_some() { "..." } else { "" };
    let shown: String = text.chars().take(MAX_TEXT).flat_map(char::escape_default).collect();
    format!("\"{shown}\"{more}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_becomes_a_label() {
        for (host, expected) in [
            ("Laptop.example.org", Some("laptop")),
            ("anna_s MacBook", Some("anna-s-macbook")),
            ("--x--", Some("x")),
            ("", None),
            ("...", None),
            ("localhost", None),
            ("0123456789abcdef", None),
            ("\u{1b}[31mred", Some("31mred")),
            ("名前", None),
        ] {
            assert_eq!(label(host).as_deref(), expected, "{host}");
        }
        assert_eq!(label(&"a".repeat(300)).unwrap().len(), 52);
    }

    #[test]
    fn a_bad_name_is_shown_with_every_character_that_makes_it_bad() {
        assert_eq!(quoted("web\u{200b}1\u{1b}[2J\n"), r#""web\u{200b}1\u{1b}[2J\n""#);
        assert_eq!(quoted("we\u{431} \"1\\"), r#""we\u{431} \"1\\""#);
        let long = quoted(&"\u{10ffff}".repeat(10_000));
        assert!(long.ends_with("\"...") && long.len() == 10 * MAX_TEXT + 5, "{}", long.len());
        let refusal = Refusal::NameInvalid { name: "web\u{202e}1".into(), reason: "x".into() };
        assert_eq!(refusal.to_string(), r#"the name "web\u{202e}1" cannot be used: x"#);
        let unknown = crate::network::members::Refusal::Unknown("web\u{202e}1".into());
        assert!(unknown.to_string().starts_with(r#"there is no node "web\u{202e}1" in"#), "{unknown}");
    }

    #[test]
    fn text_for_operators_is_one_printable_line() {
        assert_eq!(printable("Linux 6.18\u{1b}[2J\n\u{202e}x\0"), "Linux 6.18[2Jx");
        assert_eq!(printable(&"a".repeat(10_000)).len(), MAX_TEXT);
    }
}
