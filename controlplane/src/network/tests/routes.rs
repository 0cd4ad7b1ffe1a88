//! What is behind members, and traces to it.

use super::*;
use crate::network::trace::{Outcome, Question, Refusal, Standing, Trace, Transport};

fn trace(world: &World, source: &str, destination: &str, port: u16) -> Result<Trace, Refusal> {
    let question =
        Question { source: source.into(), destination: destination.into(), transport: Transport::Tcp(port) };
    let standing = |_| Standing { online: true, installed: u64::MAX };
    world.state().trace(&question, world.now, standing)
}

fn outcome(trace: &Trace, name: &str) -> Outcome {
    trace.stages.iter().find(|stage| stage.name == name).unwrap().outcome
}

/// n1 is in a group that may open HTTPS to a part of what is behind n2; n3 is nobody.
fn world() -> World {
    let mut world = World::new();
    for _ in 0..3 {
        world.join(&[], false);
    }
    let place = |world: &World, name: &str| {
        let id = world.state().names[name];
        world.state().node_ids().position(|other| other == id).unwrap()
    };
    let (one, two) = (place(&world, "n1"), place(&world, "n2"));
    world.retag(one, &[], &[2], false);
    world.retag(two, &[], &[], true);
    world.set_policy(&[(Pick::Group(2), Pick::Range)], true);
    world
}

#[test]
fn a_trace_goes_to_what_is_behind_a_member_as_far_as_the_rule_does() {
    let world = world();
    let allowed = trace(&world, "n1", "10.1.2.3", 443).unwrap();
    assert!(allowed.allowed, "{allowed:?}");
    assert_eq!(allowed.by, "rule 1: group:ops -> 10.1.2.0/24 tcp/443");
    assert!(allowed.stages[1].detail.starts_with("10.1.2.3, behind n2 ("), "{:?}", allowed.stages[1]);
    assert!(allowed.stages[1].detail.ends_with("by its route 10.1.0.0/16"));
    assert_eq!(outcome(&allowed, "installed"), Outcome::Ok);
    // Behind the same member, but beyond the rule's range; the member itself; the way back.
    for (source, destination) in [("n1", "10.1.3.3"), ("n1", "n2"), ("10.1.2.3", "n1")] {
        let denied = trace(&world, source, destination, 443).unwrap();
        assert!(!denied.allowed, "{source} {destination}");
        assert_eq!(outcome(&denied, "map"), Outcome::Ok);
        assert_eq!(outcome(&denied, "in-filter"), Outcome::Denied);
    }
    assert!(!trace(&world, "n1", "10.1.2.3", 444).unwrap().allowed);
    let stranger = trace(&world, "n3", "10.1.2.3", 443).unwrap();
    assert_eq!((stranger.allowed, outcome(&stranger, "map")), (false, Outcome::Denied));
    let nobody = trace(&world, "n1", "10.2.0.1", 443).unwrap();
    assert_eq!((nobody.allowed, nobody.stages.len()), (false, 2));
    assert!(matches!(trace(&world, "n1", "fd00::1", 443), Ok(trace) if !trace.allowed));
    assert!(matches!(trace(&world, "100.64.0.1", "fd00::1", 443), Err(Refusal::Question(_))));
    assert!(matches!(trace(&world, "n9", "n1", 443), Err(Refusal::Unknown(_))));
}

#[test]
fn nothing_is_allowed_once_a_membership_or_the_policy_has_ended() {
    let mut world = world();
    world.now = world.now.saturating_add(Duration::from_secs(31 * 24 * 3600));
    let ended = trace(&world, "n1", "10.1.2.3", 443).unwrap();
    assert!(!ended.allowed && ended.by.starts_with("membership ("), "{}", ended.by);
    // Members are renewed, the policy is not.
    for name in ["n1", "n2"] {
        let id = world.state().names[name];
        let node = &world.state().nodes[&id];
        let mut member = node.member.record.clone();
        member.serial += 1;
        member.not_after = world.now.saturating_add(Duration::from_secs(3600));
        let signed = world.state().authority.sign(Role::Admission, &member).unwrap();
        let row = NodeRow { member: Blob::from(&signed), ..node.row.clone() };
        let op = crate::store::Op::put(Part::Node(id).of(world.network), row::emit(&row));
        world.commit(Plan { compare: vec![], ops: vec![op] });
    }
    let ended = trace(&world, "n1", "10.1.2.3", 443).unwrap();
    assert_eq!(ended.by, "membership (the policy has ended)");
}

#[test]
fn a_node_that_is_behind_or_away_is_said_so_and_changes_no_verdict() {
    let world = world();
    let question =
        Question { source: "n1".into(), destination: "10.1.2.3".into(), transport: Transport::Tcp(443) };
    for (standing, said) in [
        (Standing { online: true, installed: 0 }, "n1 is online but behind: r0 of"),
        (Standing { online: false, installed: u64::MAX }, "n1 is offline"),
    ] {
        let trace = world.state().trace(&question, world.now, |_| standing).unwrap();
        let installed = trace.stages.iter().find(|stage| stage.name == "installed").unwrap();
        assert!(trace.allowed && installed.outcome == Outcome::Unknown);
        assert!(installed.detail.starts_with(said), "{}", installed.detail);
    }
}
