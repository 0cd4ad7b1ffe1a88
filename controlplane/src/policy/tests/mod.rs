//! A network with members of every kind, and files about it.

mod compare;
mod compile;
mod judge;
mod manual;
mod text;
mod warn;

use std::{net::IpAddr, sync::LazyLock};

use ringmesh_tunnel::{
    UnixTime,
    key::{IdentityKey, IdentitySecret, NetworkId, NodeId},
    netmap::{Member, MemberKind},
};

use super::{Compiled, Problem, Roster, check};

/// The key of every member: keys are of no matter to policies.
static KEY: LazyLock<IdentityKey> = LazyLock::new(|| IdentitySecret::from_seed([7; 32]).public_key());

/// A member called `name`, with the addresses 100.64.x.y and fd00::x:y of its number.
fn member(number: u16, name: &str) -> Member {
    let mut id = [0; 8];
    id[..2].copy_from_slice(&number.to_be_bytes());
    let [high, low] = number.to_be_bytes();
    Member {
        network: NetworkId::from_bytes([1; 16]),
        id: NodeId::from_bytes(id),
        name: name.into(),
        kind: MemberKind::Mesh,
        relay: false,
        noise_key: KEY.noise_key(),
        identity_key: Some(*KEY),
        ipv4: Some([100, 64, high, low].into()),
        ipv6: [0xfd00, 0, 0, 0, 0, 0, 0, number].into(),
        tags: Vec::new(),
        groups: Vec::new(),
        routes: Vec::new(),
        serial: 1,
        not_after: UnixTime::from_secs(2_000_000_000),
    }
}

fn tagged(number: u16, name: &str, tags: &[&str]) -> Member {
    Member { tags: tags.iter().map(ToString::to_string).collect(), ..member(number, name) }
}

fn id(number: u16) -> NodeId {
    member(number, "x").id
}

/// alice (1), bob (2), carol (3), web1 (4, tag web), web2 (5, tag web), gateway (6, with 10.1.0.0/16 and fd00:1::/48 behind it),
/// phone (7) and printer (8), both stock, six (9, without IPv4), relay (10).
fn roster() -> Roster {
    let gateway = ["10.1.0.0/16", "fd00:1::/48"].map(|route| route.parse().unwrap()).to_vec();
    let stock = |number, name| Member { kind: MemberKind::Stock, identity_key: None, ..member(number, name) };
    Roster {
        members: vec![
            member(1, "alice"),
            member(2, "bob"),
            member(3, "carol"),
            tagged(4, "web1", &["web"]),
            tagged(5, "web2", &["web"]),
            Member { routes: gateway, ..member(6, "gateway") },
            stock(7, "phone"),
            stock(8, "printer"),
            Member { ipv4: None, ..member(9, "six") },
            Member { relay: true, ipv4: None, ..member(10, "relay") },
        ],
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Compiles a file that must be good.
fn good(text: &str) -> Compiled {
    check(text, &roster()).unwrap_or_else(|problems| panic!("{text}\n{}", lines(&problems).join("\n")))
}

/// The problems of a file that must be bad, one a line.
fn bad(text: &str) -> Vec<String> {
    match check(text, &roster()) {
        Ok(_) => panic!("this was taken:\n{text}"),
        Err(problems) => lines(&problems),
    }
}

fn warnings(text: &str) -> Vec<String> {
    lines(&good(text).warnings)
}

fn lines(problems: &[Problem]) -> Vec<String> {
    let kind = |problem: &Problem| if problem.warning { "warning: " } else { "" };
    problems.iter().map(|it| format!("{}:{} {}{}", it.line, it.column, kind(it), it.message)).collect()
}
