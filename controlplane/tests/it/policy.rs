//! Policies as operators apply them: checked, put in force, told as a difference, remembered, taken back.

use std::time::Duration;

use ringmesh_proto::{admin, control::Reason};
use ringmesh_tunnel::netmap::{MapUpdate, NetworkMap, Selector};
use tonic::{Code, Status};

use crate::{
    client::{MapStream, TestNode, reason},
    harness::{Assembled, Operator, Running},
};

/// Everybody reaches everybody.
pub const ALL: &str = "[[allow]]\nfrom = [\"*\"]\nto = [\"*\"]\n";

/// `admins` may open SSH to b, and nobody else anything.
pub fn ssh_to_b(admins: &[&str]) -> String {
    format!(
        "[groups]\nadmins = {admins:?}\n\n[[allow]]\nfrom = [\"group:admins\"]\nto = [\"b\"]\nprotocol = \"tcp\"\nports = [22]\n"
    )
}

pub async fn apply_as(
    operator: &mut Operator,
    request: admin::ApplyPolicyRequest,
) -> Result<admin::ApplyPolicyResponse, Status> {
    operator.policy.apply_policy(request).await.map(tonic::Response::into_inner)
}

pub async fn apply(operator: &mut Operator, text: &str) -> Result<admin::ApplyPolicyResponse, Status> {
    apply_as(operator, admin::ApplyPolicyRequest { text: text.into(), ..Default::default() }).await
}

async fn show(operator: &mut Operator, revision: u64) -> Result<admin::GetPolicyResponse, Status> {
    let request = admin::GetPolicyRequest { revision, ..Default::default() };
    operator.policy.get_policy(request).await.map(tonic::Response::into_inner)
}

async fn history(operator: &mut Operator) -> Vec<admin::PolicyVersion> {
    let request = admin::ListPoliciesRequest::default();
    operator.policy.list_policies(request).await.unwrap().into_inner().policies
}

async fn rollback(operator: &mut Operator, revision: u64) -> Result<admin::ApplyPolicyResponse, Status> {
    let request = admin::RollbackPolicyRequest { revision, ..Default::default() };
    operator.policy.rollback_policy(request).await.map(tonic::Response::into_inner)
}

async fn plan(operator: &mut Operator, text: &str, most: u32) -> admin::PlanPolicyResponse {
    let request = admin::PlanPolicyRequest { text: text.into(), most, ..Default::default() };
    operator.policy.plan_policy(request).await.unwrap().into_inner()
}

fn names(map: &NetworkMap) -> Vec<&str> {
    let mut names: Vec<&str> = map.members().map(|member| member.name.as_str()).collect();
    names.sort_unstable();
    names
}

/// A member whose stream has its first map.
async fn synced(coordinator: &Running, name: &str) -> (TestNode, MapStream) {
    let mut node = coordinator.member(name).await;
    let mut stream = node.sync().await.unwrap();
    node.update(&mut stream).await;
    (node, stream)
}

/// Takes updates until the policy has this serial; all of them are differences. Returns the last.
async fn until_serial(node: &mut TestNode, stream: &mut MapStream, serial: u64) -> MapUpdate {
    loop {
        let update = node.update(stream).await;
        assert!(!update.full, "a difference is enough");
        if node.map.as_ref().unwrap().policy().unwrap().serial == serial {
            return update;
        }
    }
}

#[tokio::test]
async fn a_policy_comes_in_force_with_its_groups_and_is_told_as_a_difference() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    let (mut a, mut to_a) = synced(&coordinator, "a").await;
    let (mut b, mut to_b) = synced(&coordinator, "b").await;
    let (mut c, mut to_c) = synced(&coordinator, "c").await;
    let applied = apply(&mut operator, &ssh_to_b(&["a"])).await.unwrap();
    assert!(applied.changed && applied.serial == 2, "{applied:?}");

    let update = until_serial(&mut a, &mut to_a, 2).await;
    // One commit: the position is that of the policy, and rules and groups come together.
    assert_eq!(update.position.durable, applied.revision);
    assert_eq!((update.members.len(), update.rules.len()), (1, 1), "its own record, with the group");
    assert_eq!(update.removed, [c.id]);
    let map = a.map.as_ref().unwrap();
    assert_eq!(names(map), ["a", "b"]);
    assert_eq!(map.me().unwrap().groups, ["admins"]);
    let rule = map.rules(a.now()).next().unwrap();
    assert_eq!(rule.sources, [Selector::Group("admins".into())]);
    assert_eq!(rule.destinations, [Selector::Node(b.id)], "names are bound to ids");

    let update = until_serial(&mut b, &mut to_b, 2).await;
    assert_eq!((update.members.len(), update.removed, update.rules.len()), (1, vec![c.id], 1));
    let update = until_serial(&mut c, &mut to_c, 2).await;
    assert_eq!((update.members.len(), update.removed.len(), update.rules.len()), (0, 2, 0));
    assert_eq!(names(c.map.as_ref().unwrap()), ["c"]);

    // Back to all: whoever becomes visible is told with its record, and with what it said of itself.
    to_b.tell(&b.record(22)).await;
    while a.map.as_ref().unwrap().node_record(b.id).is_none() {
        a.step(&mut to_a).await.unwrap();
    }
    assert!(apply(&mut operator, ALL).await.unwrap().changed);
    let update = until_serial(&mut c, &mut to_c, 3).await;
    assert_eq!((update.members.len(), update.node_records.len()), (2, 1));
    assert_eq!(names(c.map.as_ref().unwrap()), ["a", "b", "c"]);
    let update = until_serial(&mut a, &mut to_a, 3).await;
    assert_eq!(
        (update.members.len(), update.node_records.len()),
        (2, 0),
        "c, and its own record without the group"
    );
    assert!(a.map.as_ref().unwrap().me().unwrap().groups.is_empty());
    coordinator.stop().await;
}

#[tokio::test]
async fn a_node_that_was_away_resumes_with_the_difference_that_policies_made() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    let (mut a, to_a) = synced(&coordinator, "a").await;
    coordinator.member("b").await;
    coordinator.member("c").await;
    drop(to_a);
    let mut to_a = a.sync().await.unwrap();
    let joined = a.update(&mut to_a).await;
    assert_eq!((joined.full, joined.members.len()), (false, 2));
    drop(to_a);
    for policy in [ssh_to_b(&["a"]), ssh_to_b(&["c"]), ssh_to_b(&["a"])] {
        apply(&mut operator, &policy).await.unwrap();
    }
    let mut to_a = a.sync().await.unwrap();
    let missed = a.update(&mut to_a).await;
    assert_eq!(
        (missed.full, missed.members.len(), missed.removed.len()),
        (false, 1, 1),
        "one merged difference"
    );
    assert_eq!(names(a.map.as_ref().unwrap()), ["a", "b"]);
    // A node of which nothing is known gets everything it may see, and no more.
    drop(to_a);
    a.map = None;
    let mut to_a = a.sync().await.unwrap();
    assert!(a.update(&mut to_a).await.full);
    assert_eq!(names(a.map.as_ref().unwrap()), ["a", "b"]);
    coordinator.stop().await;
}

#[tokio::test]
async fn a_stock_devices_key_comes_with_the_policy_that_lets_a_node_reach_it() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    let (mut a, mut to_a) = synced(&coordinator, "a").await;
    coordinator.member("b").await;
    apply(&mut operator, &ssh_to_b(&["a"])).await.unwrap();
    let request = admin::AddStockDeviceRequest {
        name: "phone".into(),
        public_key: ringmesh_tunnel::key::IdentitySecret::generate().public_key().noise_key().to_string(),
        ..Default::default()
    };
    let phone = operator.nodes.add_stock_device(request).await.unwrap().into_inner();
    assert!(apply(&mut operator, ALL).await.unwrap().changed);
    until_serial(&mut a, &mut to_a, 3).await;
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let keys: Vec<String> = a.peer_secrets.values().map(|key| STANDARD.encode(key.expose())).collect();
    assert_eq!(keys, [phone.preshared_key]);
    // The client checks the digest of its secrets at every step: the key is gone with the device.
    apply(&mut operator, &ssh_to_b(&["a"])).await.unwrap();
    until_serial(&mut a, &mut to_a, 4).await;
    assert!(a.peer_secrets.is_empty());
    coordinator.stop().await;
}

#[tokio::test]
async fn a_policy_with_errors_is_refused_with_every_place_and_the_last_one_stays() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    coordinator.member("a").await;
    coordinator.member("b").await;
    let good = apply(&mut operator, &ssh_to_b(&["a"])).await.unwrap();
    let bad = [
        (
            "an unknown member and an unknown group",
            "[[allow]]\nfrom = [\"nobody\"]\nto = [\"group:none\"]\n",
            vec![2, 3],
        ),
        ("an unknown key", "[[allow]]\nfrom = [\"a\"]\nto = [\"b\"]\nport = [22]\n", vec![4]),
        (
            "a port out of range",
            "[[allow]]\nfrom = [\"a\"]\nto = [\"b\"]\nprotocol = \"tcp\"\nports = [65536]\n",
            vec![5],
        ),
        ("no TOML", "[[allow]\n", vec![1]),
        ("a name that is no label", "[names]\nwe_b = \"a\"\n", vec![2]),
        ("a name with a control character", "[names]\n\"we\\u001bb\" = \"a\"\n", vec![2]),
        ("a name twice", "[names]\nweb = \"a\"\nweb = \"b\"\n", vec![3]),
        (
            "a failing test",
            "[[allow]]\nfrom = [\"a\"]\nto = [\"b\"]\n\n[[test]]\nfrom = \"b\"\nto = \"a\"\nallow = [\"tcp/22\"]\n",
            vec![8],
        ),
    ];
    for (what, text, lines) in bad {
        let refused = apply(&mut operator, text).await.unwrap_err();
        assert_eq!(
            (reason(&refused), refused.code()),
            (Reason::PolicyInvalid, Code::InvalidArgument),
            "{what}"
        );
        for line in &lines {
            assert!(refused.message().contains(&format!("line {line}, column ")), "{what}: {refused}");
        }
        assert!(!refused.message().contains('\u{1b}'), "{what}");
        let planned = plan(&mut operator, text, 0).await;
        let found: Vec<u32> = planned.problems.iter().map(|problem| problem.line).collect();
        assert_eq!(found, lines, "{what}: {:?}", planned.problems);
        assert!(planned.problems.iter().all(|problem| !problem.warning && problem.column > 0), "{what}");
        assert_eq!((planned.allowed_total, planned.stopped_total), (0, 0), "{what}");
    }
    // More problems than fit, and a text above the limit.
    let many: String =
        (0..500).map(|i| format!("[[allow]]\nfrom = [\"nobody-{i}\"]\nto = [\"b\"]\n")).collect();
    let refused = apply(&mut operator, &many).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::PolicyInvalid);
    assert!(
        refused.message().contains("line 2, column ") && refused.message().contains(" more"),
        "{refused}"
    );
    let long = format!("{ALL}{}", "# a comment\n".repeat(256 * 1024 / 12));
    let refused = apply(&mut operator, &long).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::PolicyInvalid);
    assert!(refused.message().contains("262144"), "{refused}");
    assert!(!plan(&mut operator, &long, 0).await.problems.is_empty());

    let shown = show(&mut operator, 0).await.unwrap();
    assert_eq!((shown.revision, shown.text), (good.revision, ssh_to_b(&["a"])));
    assert_eq!(history(&mut operator).await.len(), 1);
    coordinator.stop().await;
}

#[tokio::test]
async fn a_policy_made_from_another_one_than_that_in_force_is_refused() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    coordinator.member("a").await;
    coordinator.member("b").await;
    let based = |base_revision, admin: &str| admin::ApplyPolicyRequest {
        text: ssh_to_b(&[admin]),
        base_revision,
        ..Default::default()
    };
    // The first policy of a network has a revision as well, and no text.
    let first = show(&mut operator, 0).await.unwrap();
    assert!(first.revision > 0 && first.text.is_empty() && first.rules.len() == 1, "{first:?}");
    let planned = plan(&mut operator, &ssh_to_b(&["a"]), 0).await;
    assert_eq!(planned.base_revision, first.revision);
    let second = apply_as(&mut operator, based(first.revision, "a")).await.unwrap();
    assert!(second.revision > first.revision);
    let refused = apply_as(&mut operator, based(first.revision, "b")).await.unwrap_err();
    assert_eq!((reason(&refused), refused.code()), (Reason::Conflict, Code::Aborted));
    for revision in [first.revision, second.revision] {
        assert!(refused.message().contains(&format!("r{revision}")), "{refused}");
    }
    // Joining members and renewals do not change which policy is in force.
    coordinator.member("c").await;
    assert_eq!(show(&mut operator, 0).await.unwrap().revision, second.revision);
    apply_as(&mut operator, based(second.revision, "b")).await.unwrap();
    coordinator.stop().await;
}

#[tokio::test]
async fn the_same_meaning_again_changes_nothing() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    coordinator.member("a").await;
    coordinator.member("b").await;
    let first = apply(&mut operator, &ssh_to_b(&["a"])).await.unwrap();
    let again = apply(&mut operator, &format!("# again\n{}", ssh_to_b(&["a"]))).await.unwrap();
    assert_eq!((again.changed, again.revision, again.serial), (false, first.revision, first.serial));
    assert_eq!(history(&mut operator).await.len(), 1);
    let list = operator.nodes.list_nodes(admin::ListNodesRequest::default()).await.unwrap().into_inner();
    assert_eq!(list.revision, first.revision, "nothing was written");
    // The same rules with another group are another policy.
    let other = apply(&mut operator, &ssh_to_b(&["a", "b"])).await.unwrap();
    assert!(other.changed && other.revision > first.revision);
    coordinator.stop().await;
}

#[tokio::test]
async fn policies_are_remembered_with_who_and_why_and_can_come_back() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    coordinator.member("a").await;
    coordinator.member("b").await;
    let none = rollback(&mut operator, 0).await.unwrap_err();
    assert_eq!((reason(&none), none.code()), (Reason::Conflict, Code::FailedPrecondition), "{none}");
    let with_comment = admin::ApplyPolicyRequest {
        text: ssh_to_b(&["a"]),
        comment: "first round".into(),
        ..Default::default()
    };
    let first = apply_as(&mut operator, with_comment).await.unwrap();
    let second = apply(&mut operator, ALL).await.unwrap();

    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().unwrap().name;
    let listed = history(&mut operator).await;
    let short = |version: &admin::PolicyVersion| (version.revision, version.rules, version.in_force);
    assert_eq!(
        listed.iter().map(short).collect::<Vec<_>>(),
        [(second.revision, 1, true), (first.revision, 1, false)]
    );
    assert!(listed.iter().all(|version| version.applied_by == user && version.applied_ms > 0));
    assert_eq!(listed[1].comment, "first round");
    let earlier = show(&mut operator, first.revision).await.unwrap();
    assert_eq!(
        (earlier.text.as_str(), earlier.expires_ms, earlier.serial),
        (ssh_to_b(&["a"]).as_str(), 0, 2)
    );
    assert_eq!(earlier.rules[0].source, "group:admins");
    assert_eq!(earlier.rules[0].destination, "b");

    // To the one before, as a new one; then by its number.
    let third = rollback(&mut operator, 0).await.unwrap();
    assert!(third.changed && third.revision > second.revision);
    let now = show(&mut operator, 0).await.unwrap();
    assert_eq!((now.text, now.revision), (ssh_to_b(&["a"]), third.revision));
    assert_eq!(now.comment, format!("back to r{}", first.revision));
    assert!(!rollback(&mut operator, first.revision).await.unwrap().changed, "it is in force");
    let fourth = rollback(&mut operator, second.revision).await.unwrap();
    assert_eq!(show(&mut operator, 0).await.unwrap().text, ALL);
    assert_eq!(history(&mut operator).await.len(), 4);
    for unknown in [fourth.revision + 1, 1_000_000] {
        let refused = rollback(&mut operator, unknown).await.unwrap_err();
        assert_eq!(
            (reason(&refused), refused.code()),
            (Reason::InvalidArgument, Code::NotFound),
            "{refused}"
        );
        assert_eq!(show(&mut operator, unknown).await.unwrap_err().code(), Code::NotFound);
    }
    for comment in ["x".repeat(201), "a\u{1b}[2Jb".into()] {
        let request = admin::ApplyPolicyRequest { text: ALL.into(), comment, ..Default::default() };
        let refused = apply_as(&mut operator, request).await.unwrap_err();
        assert_eq!(reason(&refused), Reason::InvalidArgument);
    }

    // All of it survives a restart.
    let before = (history(&mut operator).await, show(&mut operator, 0).await.unwrap());
    let directory = coordinator.stop().await;
    let coordinator = Running::start_in(directory, |_| {}).await;
    let mut operator = coordinator.operator().await;
    assert_eq!((history(&mut operator).await, show(&mut operator, 0).await.unwrap()), before);
    coordinator.stop().await;
}

#[tokio::test]
async fn the_newest_hundred_policies_are_kept() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    coordinator.member("b").await;
    let text = |port: u32| {
        format!("[[allow]]\nfrom = [\"*\"]\nto = [\"b\"]\nprotocol = \"tcp\"\nports = [{port}]\n")
    };
    let first = apply(&mut operator, &text(1)).await.unwrap();
    for port in 2..=103 {
        apply(&mut operator, &text(port)).await.unwrap();
    }
    let kept = history(&mut operator).await;
    assert_eq!(kept.len(), 100);
    assert!(kept.is_sorted_by_key(|version| std::cmp::Reverse(version.revision)) && kept[0].in_force);
    assert_eq!(
        rollback(&mut operator, first.revision).await.unwrap_err().code(),
        Code::NotFound,
        "forgotten"
    );
    let some = admin::ListPoliciesRequest { most: 3, ..Default::default() };
    let some = operator.policy.list_policies(some).await.unwrap().into_inner().policies;
    assert_eq!(some, kept[..3]);
    coordinator.stop().await;
}

#[tokio::test]
async fn a_later_node_of_a_removed_ones_name_inherits_nothing() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    coordinator.member("a").await;
    let (mut b, mut to_b) = synced(&coordinator, "b").await;
    let policy = format!("{}\n[names]\nssh = \"a\"\n", ssh_to_b(&["a"]));
    let applied = apply(&mut operator, &policy).await.unwrap();
    until_serial(&mut b, &mut to_b, 2).await;
    assert_eq!(names(b.map.as_ref().unwrap()), ["a", "b"]);
    operator.remove("a").await;
    let shown = show(&mut operator, 0).await.unwrap();
    assert_eq!(
        (shown.text.as_str(), shown.revision),
        (policy.as_str(), applied.revision),
        "the file is untouched"
    );
    // Its text does not compile any more, and says why.
    let second = apply(&mut operator, ALL).await.unwrap();
    let refused = rollback(&mut operator, applied.revision).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::PolicyInvalid);
    let message = refused.message();
    assert!(
        message.contains("\"a\"") && message.contains("line 2, column ") && message.contains("r"),
        "{refused}"
    );
    assert_eq!(show(&mut operator, 0).await.unwrap().revision, second.revision);

    apply(&mut operator, &ssh_to_b(&["b"])).await.unwrap();
    until_serial(&mut b, &mut to_b, 5).await;
    operator.remove("b").await;
    let (heir, _stream) = synced(&coordinator, "b").await;
    let map = heir.map.as_ref().unwrap();
    assert!(map.me().unwrap().groups.is_empty());
    assert_eq!(map.rules(heir.now()).count(), 0, "neither as b nor as an admin");
    // The same file again binds the name anew, by an operator's will.
    let again = apply(&mut operator, &ssh_to_b(&["b"])).await.unwrap();
    assert!(again.changed);
    coordinator.stop().await;
}

#[tokio::test]
async fn a_removed_members_address_leaves_the_policys_names_with_it() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    let gone = coordinator.member("a").await;
    coordinator.member("c").await;
    let (mut b, mut to_b) = synced(&coordinator, "b").await;
    let own = gone.member.as_ref().unwrap();
    let policy = format!(
        "{ALL}[names]\ngit = \"a\"\nboth = [\"a\", \"10.1.0.9\"]\nwritten = \"{}\"\nother = \"c\"\n",
        own.ipv4.unwrap()
    );
    let applied = apply(&mut operator, &policy).await.unwrap();
    until_serial(&mut b, &mut to_b, 2).await;
    let records = |node: &TestNode| {
        let map = node.map.as_ref().unwrap();
        let records = map.names(node.now()).map(|record| (record.name.clone(), record.addresses.clone()));
        records.collect::<std::collections::BTreeMap<_, _>>()
    };
    let before = records(&b);
    assert_eq!(before.len(), 4);

    let removal = operator.remove("a").await;
    // It is one commit: nobody meets a map in which the member is gone and its names are there.
    let update = until_serial(&mut b, &mut to_b, 3).await;
    assert_eq!((update.position.durable, update.removed), (removal, vec![gone.id]));
    let after = records(&b);
    assert_eq!(after.keys().collect::<Vec<_>>(), ["both", "other"]);
    assert_eq!(after["both"], ["10.1.0.9".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(after["other"], before["other"]);
    assert_eq!(b.map.as_ref().unwrap().rules(b.now()).count(), 1);
    let shown = show(&mut operator, 0).await.unwrap();
    assert_eq!((shown.text, shown.revision), (policy, applied.revision), "the file is as it was written");

    // One that no name leads to leaves the policy alone.
    coordinator.member("d").await;
    operator.remove("d").await;
    assert_eq!(show(&mut operator, 0).await.unwrap().serial, 3);
    coordinator.stop().await;
}

#[tokio::test]
async fn a_plan_says_what_would_change_and_changes_nothing() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    for name in ["a", "b", "c"] {
        coordinator.member(name).await;
    }
    let planned = plan(&mut operator, &ssh_to_b(&["a"]), 0).await;
    assert!(planned.problems.is_empty() && planned.rules == 1, "{planned:?}");
    // All that all may do goes, but for a's SSH to b.
    assert_eq!((planned.allowed_total, planned.stopped_total), (0, 6), "{:?}", planned.stopped);
    assert!(planned.stopped.iter().any(|change| change.source == "c" && change.destination == "b"));
    apply(&mut operator, &ssh_to_b(&["a"])).await.unwrap();
    let planned = plan(&mut operator, &ssh_to_b(&["c"]), 0).await;
    let change = |source: &str| admin::PolicyChange {
        source: source.into(),
        destination: "b".into(),
        protocol: "tcp".into(),
        ports: "22".into(),
    };
    assert_eq!((planned.allowed, planned.stopped), (vec![change("c")], vec![change("a")]));
    let few = plan(&mut operator, ALL, 1).await;
    assert_eq!(few.allowed.len(), 1);
    assert_eq!(few.allowed_total, 6);
    assert_eq!(history(&mut operator).await.len(), 1);
    coordinator.stop().await;
}

#[tokio::test]
async fn a_plan_tells_which_names_would_come_go_or_lead_elsewhere() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    for name in ["a", "b"] {
        coordinator.member(name).await;
    }
    let with = |names: &str| format!("{ALL}[names]\n{names}");
    let first = with("git = \"a\"\nprinter = [\"10.1.0.9\", \"fd00:1::9\"]\nkept = \"10.1.0.8\"\n");
    apply(&mut operator, &first).await.unwrap();
    let second = with("git = \"b\"\nscanner = \"10.1.0.7\"\nkept = \"10.1.0.8\"\n");
    let planned = plan(&mut operator, &second, 0).await;
    assert_eq!((planned.allowed_total, planned.stopped_total), (0, 0), "{planned:?}");
    let told: Vec<&str> = planned.names.iter().map(|change| change.name.as_str()).collect();
    assert_eq!(told, ["git", "printer", "scanner"]);
    let change = |name: &str, before: &str, after: &str| admin::NameChange {
        name: name.into(),
        before: before.into(),
        after: after.into(),
    };
    assert_eq!(planned.names[1], change("printer", "10.1.0.9, fd00:1::9", ""));
    assert_eq!(planned.names[2], change("scanner", "", "10.1.0.7"));
    let git = &planned.names[0];
    assert!(git.before != git.after && git.before.contains(", fd") && git.after.contains(", fd"), "{git:?}");
    assert_eq!(plan(&mut operator, &first, 0).await.names, []);
    let broken = plan(&mut operator, &with("git = \"nobody\"\n"), 0).await;
    assert_eq!((broken.names.len(), broken.problems.len()), (0, 1), "an error, and nothing else");
    coordinator.stop().await;
}

#[tokio::test]
async fn an_empty_policy_is_refused_and_one_that_says_it_allows_nothing_is_not() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    for empty in ["", " \n\t\n"] {
        let refused = apply(&mut operator, empty).await.unwrap_err();
        assert_eq!(reason(&refused), Reason::PolicyInvalid);
        assert!(refused.message().contains("# nothing is allowed"), "{refused}");
        assert_eq!(plan(&mut operator, empty, 0).await.problems.len(), 1);
    }
    assert!(apply(&mut operator, "# nothing is allowed\n").await.unwrap().changed);
    assert_eq!(show(&mut operator, 0).await.unwrap().rules, []);
    coordinator.stop().await;
}

#[tokio::test]
async fn an_earlier_policy_that_means_nothing_any_more_is_shown_with_the_reason() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    for name in ["a", "b"] {
        coordinator.member(name).await;
    }
    let earlier = apply(&mut operator, &ssh_to_b(&["a"])).await.unwrap().revision;
    apply(&mut operator, "# Nobody reaches anybody.\n").await.unwrap();
    let shown = show(&mut operator, earlier).await.unwrap();
    assert_eq!((shown.rules.len(), shown.rules_unknown.as_str()), (1, ""));
    operator.remove("a").await;
    let shown = show(&mut operator, earlier).await.unwrap();
    assert_eq!((shown.text, shown.rules), (ssh_to_b(&["a"]), vec![]));
    assert!(
        shown.rules_unknown.contains("line 2, column ") && shown.rules_unknown.contains("\"a\""),
        "{}",
        shown.rules_unknown
    );
    // One that has no rules says nothing of the kind.
    let none = show(&mut operator, 0).await.unwrap();
    assert_eq!((none.rules.len(), none.rules_unknown.as_str()), (0, ""));
    coordinator.stop().await;
}

#[tokio::test]
async fn a_renewed_and_a_restored_policy_is_still_the_one_that_was_written() {
    let mut coordinator = Assembled::start().await;
    coordinator.member("a").await;
    coordinator.member("b").await;
    let applied = apply(&mut coordinator.operator, &ssh_to_b(&["a"])).await.unwrap();
    let before = show(&mut coordinator.operator, 0).await.unwrap();
    coordinator.advance(Duration::from_secs(16 * 24 * 3600));
    coordinator.coordinator.maintain().await.unwrap();
    let renewed = show(&mut coordinator.operator, 0).await.unwrap();
    assert_eq!(renewed.serial, before.serial + 1);
    assert!(renewed.expires_ms > before.expires_ms);
    let same = |one: &admin::GetPolicyResponse, other: &admin::GetPolicyResponse| {
        assert_eq!((one.revision, &one.text, &one.rules), (other.revision, &other.text, &other.rules));
    };
    same(&renewed, &before);
    coordinator.coordinator.heal_restored().await.unwrap();
    let told = crate::events::all(&mut coordinator.operator).await;
    let names: Vec<&str> = told.iter().rev().take(2).map(|event| &*event.name).collect();
    assert_eq!(names, ["epoch_started", "state_restored"]);
    let restored = show(&mut coordinator.operator, 0).await.unwrap();
    assert!(restored.serial > renewed.serial + (1 << 31));
    same(&restored, &before);
    let listed = history(&mut coordinator.operator).await;
    assert_eq!((listed.len(), listed[0].revision, listed[0].in_force), (1, applied.revision, true));
    // Members keep their groups, and the next policy follows.
    let mut a = TestNode::new("unused");
    a.set_time(coordinator.now());
    assert!(!apply(&mut coordinator.operator, &ssh_to_b(&["a"])).await.unwrap().changed);
    let next = apply(&mut coordinator.operator, ALL).await.unwrap();
    assert!(next.changed && next.serial == restored.serial + 1);
    let back = rollback(&mut coordinator.operator, 0).await.unwrap();
    assert_eq!(
        (back.changed, show(&mut coordinator.operator, 0).await.unwrap().text),
        (true, ssh_to_b(&["a"]))
    );
}

#[tokio::test]
async fn nobody_goes_back_to_all_reaching_all_without_having_said_so() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    coordinator.member("b").await;
    let made = show(&mut operator, 0).await.unwrap().revision;
    let first = apply(&mut operator, &ssh_to_b(&["b"])).await.unwrap();
    let refused = rollback(&mut operator, 0).await.unwrap_err();
    assert_eq!((reason(&refused), refused.code()), (Reason::Conflict, Code::FailedPrecondition), "{refused}");
    assert!(refused.message().contains("all members reach each other"), "{refused}");
    assert!(refused.message().contains(&format!("name its revision ({made})")), "{refused}");
    assert_eq!(show(&mut operator, 0).await.unwrap().revision, first.revision);

    // Who names it, means it.
    let by_number = rollback(&mut operator, made).await.unwrap();
    assert!(by_number.changed);
    let second = apply(&mut operator, &ssh_to_b(&["b"])).await.unwrap();
    // So does who says that he knows what is in force, if it is.
    let mut based = async |revision, base_revision| {
        let request = admin::RollbackPolicyRequest { revision, base_revision, ..Default::default() };
        operator.policy.rollback_policy(request).await.map(tonic::Response::into_inner)
    };
    let refused = based(0, first.revision).await.unwrap_err();
    assert_eq!((reason(&refused), refused.code()), (Reason::Conflict, Code::Aborted), "{refused}");
    let refused = based(made, first.revision).await.unwrap_err();
    assert_eq!((reason(&refused), refused.code()), (Reason::Conflict, Code::Aborted), "{refused}");
    assert!(based(0, second.revision).await.unwrap().changed);
    assert!(!show(&mut operator, 0).await.unwrap().rules.is_empty());
    coordinator.stop().await;
}

#[tokio::test]
async fn who_takes_back_the_only_policy_says_which_one_he_saw() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    coordinator.member("b").await;
    let only = apply(&mut operator, &ssh_to_b(&["b"])).await.unwrap();
    let request = admin::RollbackPolicyRequest { base_revision: only.revision, ..Default::default() };
    let back = operator.policy.rollback_policy(request).await.unwrap().into_inner();
    assert!(back.changed);
    let now = show(&mut operator, 0).await.unwrap();
    assert_eq!((now.rules.len(), &*now.rules[0].source, &*now.rules[0].destination), (1, "*", "*"));
    coordinator.stop().await;
}
