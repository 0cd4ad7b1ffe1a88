//! The packet filter against an oracle: the same packets and the same rules, asked of a `Tunnel` and of nftables.
//!
//! Each round has members, rules and traffic by a seed. A packet goes to the node under test (outward from its host, or
//! inward from a peer) and to a Linux router in its place, with `ct state established,related accept` and the same rules for
//! what is new. Whatever we accept and the router denies is a hole and fails the test. What we deny and it accepts must be
//! one of the reasons of [`class::Why`].
//!
//! Both sides start a round with no state. A case is one packet, or the fragments of one datagram: the router puts
//! datagrams together before it judges them, so a case passes there if the datagram comes out, and here if every fragment
//! does; fragments that are none of a datagram count as accepted if a single one passes.
//!
//! Not asked, since both would be right to differ: GRE, SCTP and DCCP, for which conntrack has more than a number; broken
//! options in a hop-by-hop header, which routers look into and hosts judge; hop counts, which a tunnel does not touch.

mod class;
mod dice;
mod flow;
mod icmp;
mod kernel;
mod ours;
mod packet;
mod scene;
mod shapes;
mod tally;
mod traffic;

use std::panic::{AssertUnwindSafe, catch_unwind};

use ringmesh_lab::{Lab, in_sandbox};
use ringmesh_tunnel::{
    filter::{Direction, Filter, Opening},
    ip::Prefix,
    netmap::{Protocol, Rule, Selector},
};

use self::{
    class::Class,
    dice::Dice,
    flow::other,
    kernel::Kernel,
    ours::Ours,
    scene::{PEERS, PORTS, Scene},
    tally::{Tally, Verdict},
    traffic::{Case, Traffic},
};

/// Cases of a round: few enough for no flow to be forgotten, by age or for want of room.
const ROUND: usize = 5_000;
/// How many packets there are in all.
const PACKETS: &str = "RINGMESH_PACKETS";
/// The only round that is played, to see a failure again.
const SEED: &str = "RINGMESH_ORACLE_SEED";

/// What is let pass against the verdict of the node under test, by the label that the generator gave the packet: it shows that
/// a hole in a class is counted. That a filter's own mistake is found, [`Mistake`] shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Takes an RST for the opening of a connection.
    RstOpens,
    /// Lets be opened inward what may be opened outward, and the other way round.
    ForgetsDirection,
    /// Lets later fragments pass without a first.
    PassesLaterFragments,
    /// Lets be opened to every port what may be opened to one.
    IgnoresPorts,
    /// Takes what looks like a reply for one.
    BelievesReplies,
    /// Lets errors pass, whatever they quote.
    BelievesErrors,
    /// Does not look whose a source address is.
    BelievesSources,
}

impl Fault {
    /// Whether a filter with this fault lets a packet pass that the right one denies.
    fn accepts(self, case: &Case, filter: &Filter, scene: &Scene) -> bool {
        let opens = |direction, opening: Opening| {
            filter.decide(scene.peers[case.peer].id, direction, &opening).is_allowed()
        };
        let (direction, opening) = (case.direction, case.opening);
        match self {
            Self::None => false,
            Self::RstOpens => case.class == Class::TcpRst && opens(direction, opening),
            Self::ForgetsDirection => {
                let turned = Opening { source: opening.destination, destination: opening.source, ..opening };
                case.opens.is_some() && opens(other(direction), turned)
            }
            Self::PassesLaterFragments => case.class == Class::LaterFragments,
            Self::IgnoresPorts => {
                let mut ports = PORTS.iter().filter(|_| case.opens.is_some() && opening.port.is_some());
                ports.any(|&port| opens(direction, Opening { port: Some(port), ..opening }))
            }
            Self::BelievesReplies => {
                matches!(case.class, Class::UdpReply | Class::EchoReply | Class::TcpSynAck)
            }
            Self::BelievesErrors => {
                matches!(case.class, Class::ErrorLive | Class::ErrorDead | Class::ErrorForeign)
            }
            Self::BelievesSources => case.class == Class::Spoofed,
        }
    }
}

/// How the rules that the node under test is given differ from those that the router has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mistake {
    None,
    /// To every port what is to some.
    PortsForgotten,
    /// Who may open is who may be reached, and the other way round.
    DirectionTurned,
    /// Ranges of addresses are wider than they were written.
    PrefixesWidened,
    /// What is written of TCP is for every protocol.
    ProtocolsForgotten,
}

impl Mistake {
    fn of(self, rule: &Rule) -> Rule {
        let mut rule = rule.clone();
        match self {
            Self::None => {}
            Self::PortsForgotten => rule.ports.clear(),
            Self::DirectionTurned => std::mem::swap(&mut rule.sources, &mut rule.destinations),
            Self::PrefixesWidened => {
                for selector in rule.sources.iter_mut().chain(&mut rule.destinations) {
                    if let Selector::Prefix(range) = selector {
                        *range = Prefix::containing(range.address(), range.len().min(8)).unwrap();
                    }
                }
            }
            Self::ProtocolsForgotten if rule.protocol == Protocol::Tcp => {
                (rule.protocol, rule.ports) = (Protocol::Any, Vec::new());
            }
            Self::ProtocolsForgotten => {}
        }
        rule
    }
}

/// Plays one round and adds what came of it.
fn play(lab: &Lab, seed: u64, cases: usize, mistake: Mistake, fault: Fault, tally: &mut Tally) {
    let mut dice = Dice::new(seed);
    let scene = Scene::new(&mut dice);
    let filter = scene.filter();
    let mut kernel = Kernel::new(lab, &format!("round{seed}"), &scene);
    let rules: Vec<Rule> = scene.rules.iter().map(|rule| mistake.of(rule)).collect();
    let mut ours = Ours::new(&scene, &rules);
    let mut traffic = Traffic::new(&scene, dice);
    for _ in 0..cases {
        let case = traffic.next_case();
        let passed = case.ours.iter().map(|packet| ours.judge(case.direction, case.peer, packet));
        let passed: Vec<_> = passed.collect();
        let right =
            if case.any { passed.iter().any(Result::is_ok) } else { passed.iter().all(Result::is_ok) };
        let we = right || fault.accepts(&case, &filter, &scene);
        let out = ask_router(&mut kernel, &scene, &case);
        // However it is cut now, a datagram comes out whole or not at all; lone pieces that conntrack would not take are nothing.
        let it = packet::is_whole(&out);
        if we && it {
            traffic.learn(&case);
        } else if we != it || !out.is_empty() || passed.iter().any(Result::is_ok) {
            traffic.shun(&case);
        }
        let reason = passed.into_iter().find_map(Result::err);
        tally.count(seed, &case, Verdict { we, it }, reason);
    }
    let rest = kernel.rest();
    assert!(rest.is_empty(), "seed {seed}: the router sent what nobody asked for: {rest:02x?}");
}

/// What comes out of the router for a case.
fn ask_router(kernel: &mut Kernel, scene: &Scene, case: &Case) -> Vec<Vec<u8>> {
    let from = match case.direction {
        Direction::In => case.peer + 1,
        Direction::Out => 0,
    };
    let to = if scene.is_mine(case.destination) {
        0
    } else {
        // By some device for what has no way at all; it will not come out there.
        scene.owner(case.destination).map_or((from + 1) % (PEERS + 1), |peer| peer + 1)
    };
    kernel.judge(from, to, &case.kernel)
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

#[test]
fn filter_accepts_nothing_that_nftables_denies() {
    in_sandbox(|| {
        let mut tally = Tally::default();
        let packets = number(PACKETS).unwrap_or(100_000);
        let seeds = match number(SEED) {
            Some(seed) => seed..seed + 1,
            None => 1..packets.div_ceil(ROUND as u64) + 1,
        };
        for seed in seeds {
            play(&Lab::new().unwrap(), seed, ROUND, Mistake::None, Fault::None, &mut tally);
        }
        println!("{}", tally.table());
        tally.assert_no_surprise();
        if number(SEED).is_none() {
            tally.assert_both_happen();
        }
    });
}

/// Whoever finds nothing must be able to find: a `Tunnel` with rules other than the router's fails the very assertion that
/// the comparison ends with, and because of what only it accepts.
#[test]
fn a_node_with_wrong_rules_is_noticed() {
    in_sandbox(|| {
        for mistake in [
            Mistake::None,
            Mistake::PortsForgotten,
            Mistake::DirectionTurned,
            Mistake::PrefixesWidened,
            Mistake::ProtocolsForgotten,
        ] {
            let mut tally = Tally::default();
            for seed in 1..4 {
                play(&Lab::new().unwrap(), seed, 1_500, mistake, Fault::None, &mut tally);
            }
            let told = catch_unwind(AssertUnwindSafe(|| tally.assert_no_surprise()));
            let told = told.map_err(|told| *told.downcast::<String>().unwrap());
            match mistake {
                Mistake::None => assert_eq!(told, Ok(())),
                _ => assert!(
                    told.as_ref().is_err_and(|told| told.contains("we accept, the router denies")),
                    "{mistake:?}: {told:?}"
                ),
            }
        }
    });
}

/// And a hole in any class is counted as one.
#[test]
fn a_broken_filter_is_noticed() {
    in_sandbox(|| {
        let faults = [
            (Fault::None, None),
            (Fault::RstOpens, Some(Class::TcpRst)),
            (Fault::ForgetsDirection, Some(Class::UdpOpening)),
            (Fault::PassesLaterFragments, Some(Class::LaterFragments)),
            (Fault::IgnoresPorts, Some(Class::TcpSyn)),
            (Fault::BelievesReplies, Some(Class::UdpReply)),
            (Fault::BelievesErrors, Some(Class::ErrorDead)),
            (Fault::BelievesSources, Some(Class::Spoofed)),
        ];
        for (fault, class) in faults {
            let mut tally = Tally::default();
            for seed in 1..4 {
                play(&Lab::new().unwrap(), seed, 1_500, Mistake::None, fault, &mut tally);
            }
            match class {
                Some(class) => assert!(tally.holes(class) > 0, "{fault:?} goes unnoticed"),
                None => tally.assert_no_surprise(),
            }
        }
    });
}
