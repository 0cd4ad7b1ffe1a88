//! What there is at a name, of a type.

use super::*;

const SOA: &str = "mesh. 0 SOA alice.mesh. hostmaster.mesh. 7 3600 600 86400 0";

fn soa_of(name: &str) -> String {
    SOA.replacen("mesh.", name, 1)
}

/// Asks by TCP, where nothing is cut short, and takes code, answers and authority.
fn ask(name: &str, kind: RecordType) -> (ResponseCode, Vec<String>, Vec<String>) {
    let message = answer(&query(name, kind), Transport::Tcp);
    assert!(
        message.metadata.authoritative
            && message.metadata.recursion_available
            && !message.metadata.truncation
    );
    assert_eq!(message.queries, query(name, kind).queries);
    assert!(
        message.queries[0].name().eq_case(&Name::from_ascii(name).unwrap()),
        "the name is as it was asked"
    );
    (message.metadata.response_code, words(&message.answers), words(&message.authorities))
}

#[test]
fn a_name_has_its_addresses_for_ten_seconds() {
    for (name, kind, expected) in [
        ("alice.mesh.", RecordType::A, vec!["alice.mesh. 10 A 100.64.0.1"]),
        ("alice.mesh.", RecordType::AAAA, vec!["alice.mesh. 10 AAAA fd00:1::1"]),
        ("bob.mesh.", RecordType::A, vec!["bob.mesh. 10 A 100.64.0.2"]),
        ("BoB.mEsH.", RecordType::A, vec!["BoB.mEsH. 10 A 100.64.0.2"]),
        ("six.mesh.", RecordType::AAAA, vec!["six.mesh. 10 AAAA fd00:1::3"]),
        ("git.mesh.", RecordType::A, vec!["git.mesh. 10 A 100.64.0.2"]),
        ("git.mesh.", RecordType::AAAA, vec!["git.mesh. 10 AAAA fd00:1::2"]),
        ("printer.mesh.", RecordType::A, vec!["printer.mesh. 10 A 10.1.0.9"]),
        ("db.eu.mesh.", RecordType::A, vec!["db.eu.mesh. 10 A 100.64.9.9"]),
        ("mesh.", RecordType::NS, vec!["mesh. 10 NS alice.mesh."]),
        ("MESH.", RecordType::SOA, vec!["MESH. 10 SOA alice.mesh. hostmaster.mesh. 7 3600 600 86400 0"]),
        ("2.0.64.100.in-addr.arpa.", RecordType::PTR, vec!["2.0.64.100.in-addr.arpa. 10 PTR bob.mesh."]),
        ("9.9.64.100.IN-ADDR.arpa.", RecordType::PTR, vec!["9.9.64.100.IN-ADDR.arpa. 10 PTR db.eu.mesh."]),
        ("64.100.in-addr.arpa.", RecordType::NS, vec!["64.100.in-addr.arpa. 10 NS alice.mesh."]),
    ] {
        let (code, answers, authority) = ask(name, kind);
        assert_eq!(
            (code, answers),
            (ResponseCode::NoError, expected.iter().map(ToString::to_string).collect())
        );
        assert!(authority.is_empty(), "{authority:?}");
    }
    let (_, many, _) = ask("many.mesh.", RecordType::AAAA);
    assert_eq!((many.len(), many[15].as_str()), (16, "many.mesh. 10 AAAA fd00:9::10"));
}

#[test]
fn an_ipv6_address_leads_to_its_names() {
    let reverse = |address: &str| {
        let nibbles =
            address.parse::<std::net::Ipv6Addr>().unwrap().octets().map(|octet| format!("{octet:02x}"));
        let nibbles: Vec<String> = nibbles.concat().chars().rev().map(String::from).collect();
        format!("{}.ip6.arpa.", nibbles.join("."))
    };
    for (address, owners) in [
        ("fd00:1::1", vec!["alice.mesh."]),
        // Not to its other name `git`.
        ("fd00:1::2", vec!["bob.mesh."]),
        ("fd00:1:0:ffff::9", vec!["printer.mesh.", "copier.mesh."]),
    ] {
        let name = reverse(address);
        let expected: Vec<_> = owners.iter().map(|owner| format!("{name} 10 PTR {owner}")).collect();
        assert_eq!(ask(&name, RecordType::PTR), (ResponseCode::NoError, expected, vec![]));
        let upper = name.to_ascii_uppercase();
        assert_eq!(ask(&upper, RecordType::PTR).1.len(), owners.len());
    }
    let nobody = ask(&reverse("fd00:1::4"), RecordType::PTR);
    assert_eq!(nobody, (ResponseCode::NXDomain, vec![], vec![soa_of("0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa.")]));
}

#[test]
fn a_name_without_the_type_has_no_data() {
    for (name, kind, apex) in [
        ("six.mesh.", RecordType::A, "mesh."),
        ("db.eu.mesh.", RecordType::AAAA, "mesh."),
        ("alice.mesh.", RecordType::TXT, "mesh."),
        ("alice.mesh.", RecordType::HTTPS, "mesh."),
        ("alice.mesh.", RecordType::SOA, "mesh."),
        ("alice.mesh.", RecordType::Unknown(65_400), "mesh."),
        ("mesh.", RecordType::A, "mesh."),
        ("mesh.", RecordType::DS, "mesh."),
        // Nothing but a place in between: RFC 8020.
        ("eu.mesh.", RecordType::A, "mesh."),
        ("EU.Mesh.", RecordType::A, "Mesh."),
        ("2.0.64.100.in-addr.arpa.", RecordType::A, "64.100.in-addr.arpa."),
        ("0.64.100.in-addr.arpa.", RecordType::PTR, "64.100.in-addr.arpa."),
        ("64.100.in-addr.arpa.", RecordType::PTR, "64.100.in-addr.arpa."),
        ("127.100.in-addr.arpa.", RecordType::PTR, "127.100.in-addr.arpa."),
        ("f.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa.", RecordType::PTR, "0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa."),
        ("0.0.0.0.0.0.0.1.0.0.0.0.0.d.f.IP6.arpa.", RecordType::PTR, "0.0.0.0.1.0.0.0.0.0.d.f.IP6.arpa."),
    ] {
        assert_eq!(ask(name, kind), (ResponseCode::NoError, vec![], vec![soa_of(apex)]), "{name} {kind}");
    }
}

#[test]
fn a_name_that_nobody_has_does_not_exist() {
    for (name, apex) in [
        ("nobody.mesh.", "mesh."),
        ("a.alice.mesh.", "mesh."),
        ("x.eu.mesh.", "mesh."),
        ("e.mesh.", "mesh."),
        ("eu.mesh.mesh.", "mesh."),
        ("*.mesh.", "mesh."),
        ("_http._tcp.alice.mesh.", "mesh."),
        ("3.0.64.100.in-addr.arpa.", "64.100.in-addr.arpa."),
        ("1.64.100.in-addr.arpa.", "64.100.in-addr.arpa."),
        ("255.255.127.100.in-addr.arpa.", "127.100.in-addr.arpa."),
        ("02.0.64.100.in-addr.arpa.", "64.100.in-addr.arpa."),
        ("x.2.0.64.100.in-addr.arpa.", "64.100.in-addr.arpa."),
        ("e.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa.", "0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa."),
        ("zz.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa.", "0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa."),
    ] {
        for kind in [RecordType::A, RecordType::PTR, RecordType::ANY] {
            let expected = (ResponseCode::NXDomain, vec![], vec![soa_of(apex)]);
            assert_eq!(ask(name, kind), expected, "{name} {kind}");
        }
    }
}

#[test]
fn labels_of_any_bytes_match_nothing() {
    // Labels that would read as two of ours if their bytes were only strung together.
    let odd: [&[&[u8]]; 6] = [
        &[b"db.eu", b"mesh"],
        &[b"alice\0", b"mesh"],
        &[b"\x05alice", b"mesh"],
        &[b"b\x03ob", b"mesh"],
        &[b"\xff\x00\xfe", b"mesh"],
        &[&[b'a'; 63], &[b'b'; 63], &[b'c'; 63], b"mesh"],
    ];
    for labels in odd {
        let mut asked = query("x.", RecordType::A);
        asked.queries[0].set_name(Name::from_labels(labels.iter().copied()).unwrap());
        let answered = answer(&asked, Transport::Udp);
        assert_eq!(answered.metadata.response_code, ResponseCode::NXDomain, "{labels:?}");
        assert_eq!(answered.queries, asked.queries);
    }
    // Not below our zone at all.
    let mut asked = query("x.", RecordType::A);
    asked.queries[0].set_name(Name::from_labels([&b"alice.mesh"[..]]).unwrap());
    assert!(matches!(decide(&asked.to_vec().unwrap(), &zone(), Transport::Udp), Decision::Forward(_)));
}

#[test]
fn any_gets_one_answer_that_says_nothing() {
    for name in ["alice.mesh.", "mesh.", "2.0.64.100.in-addr.arpa."] {
        let (code, answers, _) = ask(name, RecordType::ANY);
        assert_eq!((code, answers.len()), (ResponseCode::NoError, 1));
        assert!(
            answers[0].starts_with(&format!("{name} 10 HINFO")) && answers[0].contains("RFC8482"),
            "{answers:?}"
        );
    }
}

#[test]
fn names_of_others_are_passed_on() {
    for name in [
        "example.com.",
        "com.",
        ".",
        "mesh.example.com.",
        "alicemesh.",
        "xmesh.",
        "8.8.8.8.in-addr.arpa.",
        "100.in-addr.arpa.",
        "128.100.in-addr.arpa.",
        "63.100.in-addr.arpa.",
        "in-addr.arpa.",
        "arpa.",
        "9.0.1.10.in-addr.arpa.",
        "1.0.0.0.0.1.0.0.0.0.0.e.f.ip6.arpa.",
        "d.f.ip6.arpa.",
        "x.test.",
        "router.home.arpa.",
    ] {
        let message = query(name, RecordType::A).to_vec().unwrap();
        assert!(matches!(decide(&message, &zone(), Transport::Udp), Decision::Forward(_)), "{name}");
    }
}

#[test]
fn special_names_are_not_passed_on() {
    let soa = |name: &str| vec![format!("{name} 0 SOA {name} {name} 1 3600 600 86400 0")];
    for name in ["localhost.", "x.y.LocalHost."] {
        let last = name.rsplit('.').nth(1).unwrap();
        let ipv4 = vec![format!("{name} 10 A 127.0.0.1")];
        assert_eq!(ask(name, RecordType::A), (ResponseCode::NoError, ipv4, vec![]));
        let ipv6 = vec![format!("{name} 10 AAAA ::1")];
        assert_eq!(ask(name, RecordType::AAAA), (ResponseCode::NoError, ipv6, vec![]));
        assert_eq!(ask(name, RecordType::MX), (ResponseCode::NoError, vec![], soa(&format!("{last}."))));
    }
    for name in ["onion.", "a.b.Onion.", "x.invalid."] {
        let last = name.rsplit('.').nth(1).unwrap();
        let expected = (ResponseCode::NXDomain, vec![], soa(&format!("{last}.")));
        assert_eq!(ask(name, RecordType::A), expected);
    }
}

#[test]
fn a_zone_below_a_special_name_is_ours_all_the_same() {
    let members = [("alice", addresses(&["100.64.0.1"]))];
    let contents = Contents {
        zone: "Corp.Invalid.",
        pools: &[],
        own: Some("alice"),
        serial: 1,
        members: members.into_iter(),
        records: std::iter::empty(),
    };
    let zone = Zone::new(contents);
    assert_eq!((zone.name(), zone.len()), ("corp.invalid", 1));
    let message = query("alice.corp.invalid.", RecordType::A).to_vec().unwrap();
    let Decision::Answer(bytes, code) = decide(&message, &zone, Transport::Udp) else { panic!("no answer") };
    assert_eq!(code, ResponseCode::NoError);
    assert_eq!(words(&Message::from_vec(&bytes).unwrap().answers), ["alice.corp.invalid. 10 A 100.64.0.1"]);
}

#[test]
fn what_is_no_zone_is_an_authority_for_nothing() {
    let long = format!("{}mesh", "a.".repeat(130));
    for odd in ["", ".", "mesh..", "a..b", "me sh", "me\0sh", "mésh", long.as_str(), &"x".repeat(64)] {
        let members = [("alice", addresses(&["100.64.0.1"]))];
        let zone = Zone::new(Contents {
            zone: odd,
            pools: &["100.64.0.0/10".parse().unwrap()],
            own: Some("alice"),
            serial: 1,
            members: members.into_iter(),
            records: std::iter::empty(),
        });
        assert_eq!(zone, Zone::default(), "{odd:?}");
        assert_eq!((zone.name(), zone.len(), zone.reverse_zones().count()), ("", 0, 0));
        for name in ["alice.mesh.", "1.0.64.100.in-addr.arpa.", "."] {
            let message = query(name, RecordType::A).to_vec().unwrap();
            assert!(matches!(decide(&message, &zone, Transport::Udp), Decision::Forward(_)));
        }
    }
}

#[test]
fn a_name_too_long_with_its_zone_is_left_out() {
    let (long, fits) = ("a.".repeat(124) + "a", "a.".repeat(123) + "a");
    let members = [(long.as_str(), addresses(&["100.64.0.1"])), (fits.as_str(), addresses(&["100.64.0.2"]))];
    let zone = Zone::new(Contents {
        zone: "mesh",
        pools: &["100.64.0.0/10".parse().unwrap()],
        own: None,
        serial: 1,
        members: members.into_iter(),
        records: std::iter::empty(),
    });
    assert_eq!(zone.len(), 1);
    assert_eq!(zone.hosts().collect::<Vec<_>>(), [(format!("{fits}.mesh"), addresses(&["100.64.0.2"]))]);
}

#[test]
fn a_zone_lists_its_hosts_and_its_reverse_zones() {
    let zone = zone();
    let hosts: Vec<_> = zone.hosts().map(|(name, _)| name).collect();
    // By the labels from the root on, shorter labels first.
    let expected =
        ["db.eu.mesh", "bob.mesh", "git.mesh", "six.mesh", "many.mesh", "alice.mesh", "copier.mesh"];
    assert_eq!(hosts[..7], expected);
    assert_eq!((zone.len(), zone.name(), hosts[7].as_str()), (8, "mesh", "printer.mesh"));
    assert_eq!(zone.hosts().nth(1).unwrap().1, addresses(&["100.64.0.2", "fd00:1::2"]));
    let reverse: Vec<_> = zone.reverse_zones().collect();
    assert_eq!(reverse.len(), 64 + 1);
    assert_eq!(
        (reverse[0].as_str(), reverse[64].as_str()),
        ("64.100.in-addr.arpa", "0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa")
    );
}

#[test]
fn who_joins_by_the_name_of_a_record_gets_neither_that_name_nor_a_way_back_to_it() {
    let members = [
        ("web1", addresses(&["100.64.0.7"])),
        // An intruder, twice: names have no case.
        ("git", addresses(&["100.64.0.66", "fd00:1::66"])),
        ("Printer", addresses(&["100.64.0.67"])),
        ("eu", addresses(&["100.64.0.68"])),
    ];
    let records = [
        ("git", addresses(&["100.64.0.7"])),
        ("printer", addresses(&["10.1.0.9", "100.64.7.7"])),
        ("db.eu", addresses(&["10.1.0.8"])),
    ];
    let zone = Zone::new(Contents {
        zone: "mesh",
        pools: &["100.64.0.0/10".parse().unwrap(), "fd00:1::/48".parse().unwrap()],
        own: Some("web1"),
        serial: 1,
        members: members.into_iter(),
        records: records.into_iter(),
    });
    let ask = |name: &str, kind| {
        let message = query(name, kind).to_vec().unwrap();
        let Decision::Answer(bytes, code) = decide(&message, &zone, Transport::Udp) else { panic!("{name}") };
        let answers = Message::from_vec(&bytes).unwrap().answers;
        (code, answers.into_iter().map(|record| record.data.to_string()).collect::<Vec<_>>())
    };
    let found = |data: &[&str]| (ResponseCode::NoError, data.iter().map(ToString::to_string).collect());
    assert_eq!(ask("git.mesh.", RecordType::A), found(&["100.64.0.7"]));
    assert_eq!(ask("git.mesh.", RecordType::AAAA), found(&[]), "and nothing of the intruder's beside it");
    assert_eq!(ask("printer.mesh.", RecordType::A), found(&["10.1.0.9", "100.64.7.7"]));
    for intruder in ["66.0.64.100.in-addr.arpa.", "67.0.64.100.in-addr.arpa."] {
        assert_eq!(ask(intruder, RecordType::PTR), (ResponseCode::NXDomain, vec![]), "{intruder}");
    }
    assert_eq!(ask("7.0.64.100.in-addr.arpa.", RecordType::PTR), found(&["web1.mesh."]));
    assert_eq!(ask("7.7.64.100.in-addr.arpa.", RecordType::PTR), found(&["printer.mesh."]));
    // A name above or below another is another name.
    assert_eq!(ask("eu.mesh.", RecordType::A), found(&["100.64.0.68"]));
    assert_eq!(ask("68.0.64.100.in-addr.arpa.", RecordType::PTR), found(&["eu.mesh."]));
    // What the hosts file gets.
    let hosts: Vec<_> =
        zone.hosts().filter(|(name, _)| name == "git.mesh" || name == "printer.mesh").collect();
    assert_eq!(
        hosts,
        [
            ("git.mesh".to_owned(), addresses(&["100.64.0.7"])),
            ("printer.mesh".to_owned(), addresses(&["10.1.0.9", "100.64.7.7"]))
        ]
    );
}

#[test]
fn ten_thousand_names_are_found_as_fast_as_ten() {
    let named: Vec<(String, Vec<IpAddr>)> = (0_u32..10_000)
        .map(|n| (format!("node-{n}"), vec![IpAddr::from(std::net::Ipv4Addr::from_bits(0x6440_0000 + n))]))
        .collect();
    let of = |count: usize| {
        Zone::new(Contents {
            zone: "mesh",
            pools: &["100.64.0.0/10".parse().unwrap()],
            own: Some("node-0"),
            serial: 1,
            members: named[..count].iter().map(|(name, addresses)| (name.as_str(), addresses.clone())),
            records: std::iter::empty(),
        })
    };
    let (small, large) = (of(10), of(10_000));
    assert_eq!(large.len(), 10_000);
    let messages: Vec<Vec<u8>> =
        ["node-7.mesh.", "7.0.64.100.in-addr.arpa.", "nobody.mesh.", "9.9.100.in-addr.arpa."]
            .iter()
            .map(|name| query(name, RecordType::ANY).to_vec().unwrap())
            .collect();
    let time = |zone: &Zone| {
        let run = || {
            let began = std::time::Instant::now();
            for message in messages.iter().cycle().take(2_000) {
                std::hint::black_box(decide(message, zone, Transport::Udp));
            }
            began.elapsed()
        };
        (0..5).map(|_| run()).min().unwrap()
    };
    let (few, many) = (time(&small), time(&large));
    assert!(many < few * 10, "{few:?} for ten names, {many:?} for ten thousand");
    for (place, n) in [(0, "0.0"), (9_999, "15.39")] {
        let mut octets: Vec<_> =
            format!("100.64.{}", if place == 0 { n } else { "39.15" }).split('.').map(String::from).collect();
        octets.reverse();
        let message =
            query(&format!("{}.in-addr.arpa.", octets.join(".")), RecordType::PTR).to_vec().unwrap();
        let Decision::Answer(bytes, _) = decide(&message, &large, Transport::Udp) else {
            panic!("no answer")
        };
        let answers = words(&Message::from_vec(&bytes).unwrap().answers);
        assert!(answers[0].ends_with(&format!("PTR node-{place}.mesh.")), "{answers:?}");
    }
}
