//! Traces through the admin API: stage by stage, to a rule or to what denies.

use std::collections::BTreeMap;

use ringmesh_proto::{admin, control::Reason};

use crate::{
    client::reason,
    harness::{Operator, Running},
    policy::{apply, ssh_to_b},
};

fn ask(source: &str, destination: &str, protocol: &str, port: u32) -> admin::TraceRequest {
    admin::TraceRequest {
        source: source.into(),
        destination: destination.into(),
        protocol: protocol.into(),
        port,
        ..Default::default()
    }
}

async fn trace(operator: &mut Operator, request: admin::TraceRequest) -> admin::TraceResponse {
    operator.policy.trace(request).await.unwrap().into_inner()
}

fn outcomes(trace: &admin::TraceResponse) -> BTreeMap<&str, &str> {
    trace.stages.iter().map(|stage| (stage.stage.as_str(), stage.outcome.as_str())).collect()
}

#[tokio::test]
async fn a_trace_goes_stage_by_stage_and_ends_with_a_rule_or_with_what_denies() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    let mut a = coordinator.member("a").await;
    let b = coordinator.member("b").await;
    coordinator.member("c").await;
    apply(&mut operator, &ssh_to_b(&["a"])).await.unwrap();

    let allowed = trace(&mut operator, ask("a", "b", "tcp", 22)).await;
    assert!(allowed.allowed);
    assert_eq!(allowed.by, "rule 1: group:admins -> b tcp/22");
    let stages: Vec<(&str, &str)> =
        allowed.stages.iter().map(|stage| (stage.stage.as_str(), stage.outcome.as_str())).collect();
    let expected = [
        ("source", "ok"),
        ("destination", "ok"),
        ("membership", "ok"),
        ("map", "ok"),
        ("out-filter", "allowed"),
        ("in-filter", "allowed"),
        ("installed", "unknown"),
        ("local-denials", "unknown"),
    ];
    assert_eq!(stages, expected);
    let [source, destination] = [&allowed.stages[0].detail, &allowed.stages[1].detail];
    assert!(source.contains(&a.id.to_string()) && destination.contains("b ("), "{source} {destination}");
    assert!(allowed.stages[6].detail.contains("offline"), "{}", allowed.stages[6].detail);

    for (request, by) in [
        (ask("a", "b", "tcp", 23), "out-filter (at a: no rule allows it)"),
        (ask("a", "b", "udp", 22), "out-filter (at a: no rule allows it)"),
        (ask("a", "b", "icmp", 0), "out-filter (at a: no rule allows it)"),
        (ask("b", "a", "tcp", 22), "out-filter (at b: no rule allows it)"),
        (
            ask("c", "b", "tcp", 22),
            "map (no rule connects c and b, so that neither has the other in its map)",
        ),
        (ask("a", "10.9.9.9", "tcp", 22), "destination (10.9.9.9: no member has it, and none a route to it)"),
    ] {
        let denied = trace(&mut operator, request).await;
        assert!(!denied.allowed);
        assert_eq!(denied.by, by);
    }
    // By id, by address of either family, by full name; all the same.
    let member = b.member.as_ref().unwrap();
    for to in [b.id.to_string(), member.ipv4.unwrap().to_string(), member.ipv6.to_string(), "b.mesh".into()] {
        assert!(trace(&mut operator, ask("a", &to, "6", 22)).await.allowed, "{to}");
    }
    let itself = trace(&mut operator, ask("a", "a", "tcp", 1)).await;
    assert!(itself.allowed && itself.by == "the node itself");

    // Once both have it installed, that is said.
    let mut b = b;
    let (mut to_a, mut to_b) = (a.sync().await.unwrap(), b.sync().await.unwrap());
    for (node, stream) in [(&mut a, &mut to_a), (&mut b, &mut to_b)] {
        let durable = node.update(stream).await.position.durable;
        let behind = trace(&mut operator, ask("a", "b", "tcp", 22)).await;
        assert_eq!(outcomes(&behind)["installed"], "unknown");
        stream.acknowledge(durable).await;
    }
    loop {
        let trace = trace(&mut operator, ask("a", "b", "tcp", 22)).await;
        if outcomes(&trace)["installed"] == "ok" {
            break;
        }
        tokio::task::yield_now().await;
    }
    coordinator.stop().await;
}

#[tokio::test]
async fn a_trace_by_names_judges_every_family_that_both_ends_have_and_tells_them_apart() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    coordinator.member("a").await;
    let b = coordinator.member("b").await;
    let member = b.member.as_ref().unwrap();
    let (ipv4, ipv6) = (member.ipv4.unwrap().to_string(), member.ipv6.to_string());
    // Whoever opens `b` by its name may take IPv6 first, which only one of the two policies allows.
    for (allowed_to, by) in [
        (&ipv4, ["over IPv4: rule 1: a -> ", "; over IPv6: out-filter (at a: no rule allows it)"]),
        (&ipv6, ["over IPv4: out-filter (at a: no rule allows it)", "; over IPv6: rule 1: a -> "]),
    ] {
        let policy = format!("[[allow]]\nfrom = \"a\"\nto = \"{allowed_to}\"\n[names]\nalias = \"b\"\n");
        apply(&mut operator, &policy).await.unwrap();
        for name in ["b", "alias", "alias.mesh"] {
            let told = trace(&mut operator, ask("a", name, "tcp", 22)).await;
            assert!(!told.allowed, "{told:?}");
            assert!(by.iter().all(|part| told.by.contains(part)), "{}", told.by);
            let outcomes = outcomes(&told);
            assert_eq!(
                (outcomes["map"], outcomes["out-filter"], outcomes["in-filter"]),
                ("ok", "denied", "denied")
            );
            let destination = &told.stages[1].detail;
            assert!(destination.contains(&ipv4) && destination.contains(&ipv6), "{destination}");
        }
        for address in [&ipv4, &ipv6] {
            let told = trace(&mut operator, ask("a", address, "tcp", 22)).await;
            assert_eq!(told.allowed, address == allowed_to, "{}", told.by);
            assert!(!told.by.contains("over IPv"), "one family was asked about: {}", told.by);
        }
    }
    // An address of each family in the rule, and both are allowed by one and the same.
    apply(&mut operator, &format!("[[allow]]\nfrom = \"a\"\nto = [\"{ipv4}\", \"{ipv6}\"]\n")).await.unwrap();
    let told = trace(&mut operator, ask("a", "b", "tcp", 22)).await;
    assert!(told.allowed && told.by.starts_with("rule 1: a -> "), "{}", told.by);
    coordinator.stop().await;
}

#[tokio::test]
async fn the_other_end_of_a_stock_device_decides_alone() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    coordinator.member("a").await;
    let stock = async |name: &str| {
        let request = admin::AddStockDeviceRequest {
            name: name.into(),
            public_key: ringmesh_tunnel::key::IdentitySecret::generate().public_key().noise_key().to_string(),
            ..Default::default()
        };
        coordinator.operator().await.nodes.add_stock_device(request).await.unwrap();
    };
    stock("phone").await;
    stock("tablet").await;
    let to_phone = trace(&mut operator, ask("a", "phone", "tcp", 80)).await;
    assert!(to_phone.allowed);
    assert_eq!((outcomes(&to_phone)["out-filter"], outcomes(&to_phone)["in-filter"]), ("allowed", "unknown"));
    let from_phone = trace(&mut operator, ask("phone", "a", "tcp", 80)).await;
    assert!(from_phone.allowed && from_phone.by.starts_with("rule 1: "), "{}", from_phone.by);
    let between = trace(&mut operator, ask("phone", "tablet", "tcp", 80)).await;
    assert!(!between.allowed && between.by.starts_with("map ("), "{}", between.by);
    apply(&mut operator, "[[allow]]\nfrom = [\"a\"]\nto = [\"phone\"]\n").await.unwrap();
    let from_phone = trace(&mut operator, ask("phone", "a", "tcp", 80)).await;
    assert!(!from_phone.allowed);
    assert_eq!(from_phone.by, "in-filter (at a: no rule allows it)");
    coordinator.stop().await;
}

#[tokio::test]
async fn a_question_that_makes_no_sense_is_refused_with_the_cure() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    coordinator.member("a").await;
    coordinator.member("b").await;
    for (request, expected, cure) in [
        (ask("a", "nobody", "tcp", 22), Reason::NodeUnknown, "meshctl nodes list"),
        (ask("a", "b", "tcp", 0), Reason::InvalidArgument, "tcp needs a port"),
        (ask("a", "b", "tcp", 65536), Reason::InvalidArgument, "1 to 65535"),
        (ask("a", "b", "icmp", 1), Reason::InvalidArgument, "only tcp and udp have ports"),
        (ask("a", "b", "any", 0), Reason::InvalidArgument, "say which protocol"),
        (ask("a", "b", "sctp", 0), Reason::InvalidArgument, "a number up to 255"),
        (ask("100.64.0.1", "fd00::1", "tcp", 1), Reason::InvalidArgument, "one family"),
    ] {
        let refused = operator.policy.trace(request.clone()).await.unwrap_err();
        assert_eq!(reason(&refused), expected, "{request:?}");
        assert!(refused.message().contains(cure), "{refused}");
    }
    coordinator.stop().await;
}
