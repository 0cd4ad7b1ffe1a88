//! Records: every one reads what it writes, and cannot be made to say what it must not.

use std::net::{IpAddr, SocketAddr};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::ip::Prefix;
use crate::key::PublicKey;

fn time() -> impl Strategy<Value = UnixTime> {
    any::<u64>().prop_map(UnixTime::from_millis)
}

fn network_id() -> impl Strategy<Value = NetworkId> {
    any::<[u8; 16]>().prop_map(NetworkId::from_bytes)
}

fn id() -> impl Strategy<Value = NodeId> {
    any::<[u8; 8]>().prop_map(NodeId::from_bytes)
}

fn identity() -> impl Strategy<Value = IdentityKey> {
    any::<[u8; 32]>().prop_map(|seed| IdentitySecret::from_seed(seed).public_key())
}

fn word() -> impl Strategy<Value = String> {
    vec(prop::sample::select(b"abcxyz0189-_.@".as_slice()), 0..NAME_MAX)
        .prop_map(|rest| format!("a{}", String::from_utf8(rest).unwrap()))
}

fn label() -> impl Strategy<Value = String> {
    vec(prop::sample::select(b"abcxyz0189-".as_slice()), 0..=61)
        .prop_map(|middle| format!("n{}9", String::from_utf8(middle).unwrap()))
}

fn prefix() -> impl Strategy<Value = Prefix> {
    (any::<IpAddr>(), any::<u8>()).prop_map(|(address, len)| {
        Prefix::containing(address, len % if address.is_ipv4() { 33 } else { 129 }).unwrap()
    })
}

fn endpoint() -> impl Strategy<Value = SocketAddr> {
    any::<(IpAddr, u16)>().prop_map(SocketAddr::from)
}

fn role() -> impl Strategy<Value = Role> {
    prop::sample::select([Role::Admission, Role::Policy, Role::Head, Role::Coordinator].as_slice())
}

fn keys() -> impl Strategy<Value = (MemberKind, PublicKey, Option<IdentityKey>)> {
    let mesh = identity().prop_map(|key| (MemberKind::Mesh, key.noise_key(), Some(key)));
    let bare = any::<[u8; 32]>().prop_map(|key| (MemberKind::Stock, PublicKey::from_bytes(key), None));
    prop_oneof![mesh, bare]
}

prop_compose! {
    fn member()(
        (network, id, name, relay) in (network_id(), id(), label(), any::<bool>()),
        (kind, noise_key, identity_key) in keys(),
        (ipv4, ipv6) in any::<(Option<Ipv4Addr>, std::net::Ipv6Addr)>(),
        tags in vec(word(), 0..=TAGS_MAX),
        groups in vec(word(), 0..=GROUPS_MAX),
        routes in vec(prefix(), 0..=ROUTES_MAX),
        (serial, not_after) in (any::<u64>(), time()),
    ) -> Member {
        Member {
            network, id, name, kind, relay, noise_key, identity_key, ipv4, ipv6, tags, groups, routes, serial, not_after,
        }
    }
}

fn selector() -> impl Strategy<Value = Selector> {
    prop_oneof![
        Just(Selector::All),
        id().prop_map(Selector::Node),
        word().prop_map(Selector::Group),
        word().prop_map(Selector::Tag),
        prefix().prop_map(Selector::Prefix),
    ]
}

fn transport() -> impl Strategy<Value = (Protocol, Vec<PortRange>)> {
    let range = any::<(u16, u16)>().prop_map(|(a, b)| PortRange::new(a.min(b), a.max(b)).unwrap());
    let ported = (prop::sample::select([Protocol::Tcp, Protocol::Udp].as_slice()), vec(range, 0..=PORTS_MAX));
    let number = any::<u8>().prop_filter("has a name", |number| ![1, 6, 17, 58].contains(number));
    let bare = prop_oneof![Just(Protocol::Any), Just(Protocol::Icmp), number.prop_map(Protocol::Number)];
    prop_oneof![ported, bare.prop_map(|protocol| (protocol, Vec::new()))]
}

prop_compose! {
    fn rule()(
        sources in vec(selector(), 0..20),
        destinations in vec(selector(), 0..20),
        (protocol, ports) in transport(),
    ) -> Rule {
        Rule { sources, destinations, protocol, ports }
    }
}

prop_compose! {
    fn name()(labels in vec(label(), 1..=3), addresses in vec(any::<IpAddr>(), 1..=NAME_ADDRESSES_MAX)) -> NameRecord {
        NameRecord { name: labels.join("."), addresses }
    }
}

#[track_caller]
fn round_trip<R: Record + PartialEq + std::fmt::Debug>(record: &R) {
    let bytes = record.emit().unwrap();
    assert_eq!(&R::parse(&bytes).unwrap(), record);
    // A field of the future that may be skipped changes nothing; one that may not is refused.
    let low = [&bytes[..], &[0x7f, 0, 1, 0]].concat();
    assert_eq!(&R::parse(&low).unwrap(), record);
    let high = [&bytes[..], &[0x80, 0, 0]].concat();
    assert_eq!(R::parse(&high).unwrap_err(), RecordError::Critical { tag: 0x80 });
    let signer = node_secret(9);
    let envelope = Envelope::sign(record, &signer).unwrap();
    assert_eq!((envelope.kind, envelope.signer, &envelope.payload), (R::KIND, signer.public_key(), &bytes));
    assert_eq!(envelope.check_signature(), Ok(()));
    assert_eq!(Envelope::parse(&envelope.emit()).unwrap(), envelope);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn members_read_what_they_write(member in member()) {
        round_trip(&member);
    }

    #[test]
    fn certificates_read_what_they_write(
        network in network_id(), role in role(), key in identity(), serial: u64, not_after in time(),
    ) {
        round_trip(&Certificate { network, role, key, serial, not_after });
    }

    #[test]
    fn policies_read_what_they_write(
        network in network_id(), serial: u64, not_after in time(), root: [u8; 32], size: u64,
    ) {
        round_trip(&Policy { network, serial, not_after, root, size });
    }

    #[test]
    fn heads_read_what_they_write(
        network in network_id(), (durable, replica, ephemeral) in any::<(u64, u32, u64)>(), digest: [u8; 32],
        time in time(), not_after in time(), epoch: u64, secrets: [u8; 32],
    ) {
        let position = Position { durable, replica, ephemeral };
        round_trip(&Head { network, position, digest, time, not_after, epoch, secrets });
    }

    #[test]
    fn node_records_read_what_they_write(
        network in network_id(), id in id(), serial: u64, endpoints in vec(endpoint(), 0..=ENDPOINTS_MAX), time in time(),
        websockets in vec("wss://[a-z]{1,20}(:443)?/[!-~]{0,40}", 0..=WEBSOCKETS_MAX), ssh in vec(endpoint(), 0..=SSH_ENDPOINTS_MAX),
    ) {
        round_trip(&NodeRecord { network, id, serial, endpoints, time, websockets, ssh });
    }

    #[test]
    fn statements_read_what_they_write(
        network in network_id(), replica: u32, tls_key: [u8; 32], client_nonce: [u8; 32],
        server_nonce in vec(any::<u8>(), 0..=SERVER_NONCE_MAX), time in time(),
    ) {
        round_trip(&Statement { network, replica, tls_key, client_nonce, server_nonce, time });
    }

    #[test]
    fn leaves_read_what_they_write(leaf in prop_oneof![rule().prop_map(Leaf::Rule), name().prop_map(Leaf::Name)]) {
        let bytes = leaf.emit().unwrap();
        prop_assert_eq!(Leaf::parse(&bytes), Ok(leaf));
        prop_assert_eq!(Leaf::parse(&[&bytes[..], &[0x80, 0, 0]].concat()), Err(RecordError::Critical { tag: 0x80 }));
    }
}

/// Checks that a record can neither be written nor, had someone written it, be read.
#[track_caller]
fn refuses(change: impl Fn(&mut Member)) -> RecordError {
    let mut member = Network::new().member(2);
    change(&mut member);
    let error = member.emit().unwrap_err();
    assert_eq!(Envelope::sign(&member, &node_secret(1)).unwrap_err(), error);
    error
}

#[test]
fn members_name_is_one_dns_label() {
    let longest = "a".repeat(NAME_MAX);
    for good in ["a", "0", "a-b", "xn--bcher-kva", &longest] {
        assert!(Member { name: good.into(), ..Network::new().member(2) }.emit().is_ok(), "{good}");
    }
    for bad in ["", "-", "-a", "a-", "A", "a.b", "a_b", "a b", "bücher", "a\0", &"a".repeat(NAME_MAX + 1)] {
        assert!(
            matches!(refuses(|member| member.name = bad.into()), RecordError::Value { field: "name", .. }),
            "{bad}"
        );
    }
}

#[test]
fn members_lists_reach_their_bounds_and_not_beyond() {
    let mut full = Network::new().member(2);
    full.tags = (0..TAGS_MAX).map(|i| format!("{i:063}")).collect();
    full.groups = (0..GROUPS_MAX).map(|i| format!("{i:063}")).collect();
    full.routes = vec!["fd00::/16".parse().unwrap(); ROUTES_MAX];
    full.name = "a".repeat(NAME_MAX);
    round_trip(&full);
    let too_many = |field, most| RecordError::TooMany { field, most };
    assert_eq!(refuses(|m| m.tags = vec!["a".into(); TAGS_MAX + 1]), too_many("tags", TAGS_MAX));
    assert_eq!(refuses(|m| m.groups = vec!["a".into(); GROUPS_MAX + 1]), too_many("groups", GROUPS_MAX));
    let route = "10.0.0.0/8".parse().unwrap();
    assert_eq!(refuses(|m| m.routes = vec![route; ROUTES_MAX + 1]), too_many("routes", ROUTES_MAX));
    for bad in ["", "A", " ", "-a", "a b", &"a".repeat(NAME_MAX + 1)] {
        assert!(
            matches!(refuses(|m| m.tags = vec![bad.into()]), RecordError::Value { field: "tag", .. }),
            "{bad}"
        );
        assert!(
            matches!(refuses(|m| m.groups = vec![bad.into()]), RecordError::Value { field: "group", .. }),
            "{bad}"
        );
    }
}

#[test]
fn mesh_member_has_an_identity_key_that_is_its_noise_key() {
    assert_eq!(refuses(|m| m.identity_key = None), RecordError::Missing { field: "identity key" });
    let other = node_secret(9).public_key();
    let differs = |error| matches!(error, RecordError::Value { field: "identity key", .. });
    assert!(differs(refuses(|m| m.identity_key = Some(other))));
    assert!(differs(refuses(|m| m.noise_key = other.noise_key())));
    assert!(differs(refuses(|m| (m.kind, m.noise_key) = (MemberKind::Stock, other.noise_key()))));
}

/// Finds the field `tag` of a record and puts another value in its place.
fn with_field(bytes: &[u8], tag: u8, value: &[u8]) -> Vec<u8> {
    let mut place = 1;
    while bytes[place] != tag {
        place += 3 + usize::from(u16::from_be_bytes([bytes[place + 1], bytes[place + 2]]));
    }
    let length = usize::from(u16::from_be_bytes([bytes[place + 1], bytes[place + 2]]));
    let header = [&[tag], &(value.len() as u16).to_be_bytes()[..]].concat();
    [&bytes[..place], &header, value, &bytes[place + 3 + length..]].concat()
}

#[test]
fn reader_of_members_trusts_no_writer() {
    let member = Network::new().member(2);
    let bytes = member.emit().unwrap();
    assert_eq!(Member::parse(&with_field(&bytes, 0x03, b"node-2")), Ok(member.clone()));
    let other = node_secret(9).public_key();
    let wrong: [(u8, &[u8], &str); 12] = [
        (0x03, b"Node", "name"),
        (0x03, &[0xff, 0xfe], "name"),
        (0x04, &[0], "kind"),
        (0x04, &[3], "kind"),
        (0x06, &[9; 32], "identity key"),
        (0x07, &[0; 32], "identity key"),
        (0x07, other.as_bytes(), "identity key"),
        (0x09, &[0; 15], "IPv6 address"),
        (0x0a, &[1, b' '], "tag"),
        (0x0b, &[0], "group"),
        (0x0c, &[4, 10, 1, 0, 1, 16], "route"),
        (0x0c, &[5, 10, 1, 0, 0, 16], "address family"),
    ];
    for (tag, value, at) in wrong {
        let error = Member::parse(&with_field(&bytes, tag, value)).unwrap_err();
        assert!(matches!(error, RecordError::Value { field, .. } if field == at), "{tag:#x}: {error}");
    }
    assert_eq!(Member::parse(&with_field(&bytes, 0x0a, &[9, b'a'])), Err(RecordError::Truncated));
    let many = |item: &[u8], count: usize| item.repeat(count);
    for (tag, item, field, most) in [
        (0x0a, &[1, b'a'][..], "tags", TAGS_MAX),
        (0x0b, &[1, b'a'], "groups", GROUPS_MAX),
        (0x0c, &[4, 10, 0, 0, 0, 8], "routes", ROUTES_MAX),
    ] {
        assert!(Member::parse(&with_field(&bytes, tag, &many(item, most))).is_ok());
        let error = Member::parse(&with_field(&bytes, tag, &many(item, most + 1)));
        assert_eq!(error, Err(RecordError::TooMany { field, most }));
    }
    // Relay has one form for each answer.
    let relay = Member { relay: true, ..member }.emit().unwrap();
    for value in [0, 2] {
        let error = Member::parse(&with_field(&relay, 0x05, &[value])).unwrap_err();
        assert!(matches!(error, RecordError::Value { field: "relay", .. }));
    }
}

#[test]
fn records_reach_their_bounds_and_not_beyond() {
    let network = Network::new();
    let mut record = network.node_record(2, 1);
    record.endpoints = vec![([192, 0, 2, 1], 1).into(); ENDPOINTS_MAX + 1];
    let error = RecordError::TooMany { field: "endpoints", most: ENDPOINTS_MAX };
    assert_eq!(record.emit(), Err(error));
    let value = [4, 192, 0, 2, 1, 0, 1].repeat(ENDPOINTS_MAX + 1);
    let bytes = network.node_record(2, 1).emit().unwrap();
    assert_eq!(NodeRecord::parse(&with_field(&bytes, 0x04, &value)), Err(error));
    assert!(NodeRecord::parse(&with_field(&bytes, 0x04, &value[7..])).is_ok());
    let statement = Statement {
        network: network.id(),
        replica: 0,
        tls_key: [0; 32],
        client_nonce: [0; 32],
        server_nonce: vec![0; SERVER_NONCE_MAX],
        time: NOW,
    };
    let bytes = statement.emit().unwrap();
    let error = RecordError::TooMany { field: "server nonce", most: SERVER_NONCE_MAX };
    let long = vec![0; SERVER_NONCE_MAX + 1];
    assert_eq!(Statement::parse(&with_field(&bytes, 0x05, &long)), Err(error));
    assert_eq!(Statement { server_nonce: long, ..statement }.emit(), Err(error));
    // Padding that may be skipped does not carry a record beyond its bound.
    let padding = |bytes: &[u8], most: usize| {
        let length = most - bytes.len() - 3;
        [bytes, &[0x7f], &(length as u16).to_be_bytes(), &vec![0; length]].concat()
    };
    let bytes = network.member(2).emit().unwrap();
    assert!(Member::parse(&padding(&bytes, PAYLOAD_MAX)).is_ok());
    let error = RecordError::TooMany { field: "record", most: PAYLOAD_MAX };
    assert_eq!(Member::parse(&padding(&bytes, PAYLOAD_MAX + 1)), Err(error));
    let bytes = leaves()[0].emit().unwrap();
    assert!(Leaf::parse(&padding(&bytes, LEAF_MAX)).is_ok());
    let error = RecordError::TooMany { field: "record", most: LEAF_MAX };
    assert_eq!(Leaf::parse(&padding(&bytes, LEAF_MAX + 1)), Err(error));
}

fn some_rule() -> Rule {
    let Leaf::Rule(rule) = leaves().remove(0) else { unreachable!() };
    rule
}

#[test]
fn rules_reach_their_bounds_and_not_beyond() {
    let longest = Selector::Group("g".repeat(NAME_MAX));
    let mut rule = some_rule();
    rule.sources = vec![longest.clone(); SELECTORS_MAX];
    rule.destinations = vec![longest.clone(); SELECTORS_MAX];
    rule.ports = vec![1.into(); PORTS_MAX];
    let leaf = Leaf::Rule(rule.clone());
    assert_eq!(Leaf::parse(&leaf.emit().unwrap()), Ok(leaf));
    let refuses = |rule: Rule, field, most| {
        assert_eq!(Leaf::Rule(rule).emit(), Err(RecordError::TooMany { field, most }));
    };
    refuses(
        Rule { sources: vec![Selector::All; SELECTORS_MAX + 1], ..rule.clone() },
        "sources",
        SELECTORS_MAX,
    );
    refuses(
        Rule { destinations: vec![Selector::All; SELECTORS_MAX + 1], ..rule.clone() },
        "destinations",
        SELECTORS_MAX,
    );
    refuses(Rule { ports: vec![1.into(); PORTS_MAX + 1], ..rule }, "ports", PORTS_MAX);
    let bytes = Leaf::Rule(some_rule()).emit().unwrap();
    for (tag, item, field, most) in [
        (0x02, &[0][..], "sources", SELECTORS_MAX),
        (0x03, &[0], "destinations", SELECTORS_MAX),
        (0x05, &[0, 1, 0, 1], "ports", PORTS_MAX),
    ] {
        assert!(Leaf::parse(&with_field(&bytes, tag, &item.repeat(most))).is_ok());
        let error = Leaf::parse(&with_field(&bytes, tag, &item.repeat(most + 1)));
        assert_eq!(error, Err(RecordError::TooMany { field, most }));
    }
}

#[test]
fn rule_has_one_reading() {
    let rule = some_rule();
    for protocol in [Protocol::Any, Protocol::Icmp, Protocol::Number(47)] {
        let error = Leaf::Rule(Rule { protocol, ..rule.clone() }).emit().unwrap_err();
        assert!(matches!(error, RecordError::Value { field: "ports", .. }), "{protocol}");
    }
    for number in [1, 6, 17, 58] {
        let rule = Rule { protocol: Protocol::Number(number), ports: Vec::new(), ..rule.clone() };
        assert!(
            matches!(Leaf::Rule(rule).emit(), Err(RecordError::Value { field: "protocol", .. })),
            "{number}"
        );
    }
    let bytes = Leaf::Rule(rule).emit().unwrap();
    let wrong: [(u8, &[u8], &str); 7] = [
        (0x01, &[3], "leaf kind"),
        (0x02, &[5], "selector"),
        (0x02, &[2, 1, b'!'], "group"),
        (0x04, &[1, 58], "protocol"),
        (0x04, &[0, 6], "protocol"),
        (0x04, &[0, 0], "ports"),
        (0x05, &[0, 2, 0, 1], "port range"),
    ];
    for (tag, value, at) in wrong {
        let error = Leaf::parse(&with_field(&bytes, tag, value)).unwrap_err();
        assert!(
            matches!(error, RecordError::Value { field, .. } if field == at),
            "{tag:#x} {value:?}: {error}"
        );
    }
}

#[test]
fn name_record_is_a_dns_name_with_addresses() {
    let record =
        |name: &str, count| NameRecord { name: name.into(), addresses: vec![[10, 0, 0, 1].into(); count] };
    let longest = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)].join(".");
    for good in ["a", "a.b.c", longest.as_str()] {
        assert!(Leaf::Name(record(good, NAME_ADDRESSES_MAX)).emit().is_ok(), "{good}");
    }
    for bad in ["", ".", "a.", ".a", "a..b", "A.b", "a b", "*.a"] {
        let error = Leaf::Name(record(bad, 1)).emit().unwrap_err();
        assert!(matches!(error, RecordError::Value { field: "name", .. }), "{bad}");
    }
    let error = Leaf::Name(record(&format!("{longest}d"), 1)).emit();
    assert_eq!(error, Err(RecordError::TooMany { field: "name", most: DOMAIN_MAX }));
    assert_eq!(Leaf::Name(record("a", 0)).emit(), Err(RecordError::Missing { field: "address" }));
    let error = Leaf::Name(record("a", NAME_ADDRESSES_MAX + 1)).emit();
    assert_eq!(error, Err(RecordError::TooMany { field: "addresses", most: NAME_ADDRESSES_MAX }));
    let bare = [&[1, 1, 0, 1, 2, 2, 0, 1, b'a'][..]].concat();
    assert_eq!(Leaf::parse(&bare), Err(RecordError::Missing { field: "address" }));
}

#[test]
fn certificate_has_a_proper_key() {
    let bytes = Network::new().certificate(Role::Head).emit().unwrap();
    let error = Certificate::parse(&with_field(&bytes, 0x03, &[0; 32])).unwrap_err();
    assert!(matches!(error, RecordError::Value { field: "key", .. }));
}

#[test]
fn member_may_send_from_its_addresses_and_routes() {
    let member = Network::new().member(2);
    let allowed: Vec<_> = member.allowed_ips().map(|prefix| prefix.to_string()).collect();
    assert_eq!(allowed, ["100.64.0.2/32".into(), format!("{}/128", member.ipv6), "10.1.0.0/16".into()]);
    assert_eq!(Member { ipv4: None, routes: Vec::new(), ..member }.allowed_ips().count(), 1);
}

#[test]
fn port_range_has_both_its_ends() {
    let range = PortRange::new(80, 90).unwrap();
    assert_eq!([79, 80, 85, 90, 91].map(|port| range.contains(port)), [false, true, true, true, false]);
    assert_eq!((range.first(), range.last()), (80, 90));
    assert_eq!([range.to_string(), PortRange::from(22).to_string()], ["80-90", "22"]);
    assert!(PortRange::from(22).contains(22) && !PortRange::from(22).contains(23));
    assert_eq!(PortRange::new(2, 1), None);
    assert!(PortRange::new(0, u16::MAX).unwrap().contains(0));
}

#[test]
fn protocols_and_kinds_have_names() {
    let protocols = [Protocol::Any, Protocol::Tcp, Protocol::Udp, Protocol::Icmp, Protocol::Number(47)];
    assert_eq!(protocols.map(|protocol| protocol.to_string()), ["any", "tcp", "udp", "icmp", "47"]);
    assert_eq!(protocols.map(Protocol::has_ports), [false, true, true, false, false]);
    assert_eq!([MemberKind::Mesh, MemberKind::Stock].map(|kind| kind.to_string()), ["mesh", "stock"]);
    for number in 0..=u8::MAX {
        assert!(Kind::from_number(number).is_none_or(|kind| kind.number() == number));
        assert!(Role::from_number(number).is_none_or(|role| role.number() == number));
        assert!(MemberKind::from_number(number).is_none_or(|kind| kind.number() == number));
    }
    let known = |from: fn(u8) -> bool| (0..=u8::MAX).filter(|number| from(*number)).count();
    assert_eq!(known(|number| Kind::from_number(number).is_some()), 6);
    assert_eq!(known(|number| Role::from_number(number).is_some()), 4);
    assert_eq!(known(|number| MemberKind::from_number(number).is_some()), 2);
}
