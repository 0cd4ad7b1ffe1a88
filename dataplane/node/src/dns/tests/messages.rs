//! What an answer looks like: sizes, EDNS, and what is refused or met with silence.

use hickory_proto::rr::DNSClass;

use super::*;
use crate::dns::message::{HEADER, same_question};

/// A query whose bytes are changed before it is sent.
fn changed(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut message = query("alice.mesh.", RecordType::A).to_vec().unwrap();
    change(&mut message);
    message
}

/// What is answered with a header and no more: its code.
fn bare(message: &[u8]) -> ResponseCode {
    let bytes = answer_bytes(message, Transport::Udp);
    assert_eq!((bytes.len(), &bytes[4..]), (12, &[0; 8][..]));
    assert_eq!(bytes[..2], message[..2]);
    assert_eq!(bytes[2] & 0x78, message[2] & 0x78, "the opcode is repeated");
    let answered = Message::from_vec(&bytes).unwrap();
    assert_eq!(answered.metadata.message_type, MessageType::Response);
    answered.metadata.response_code
}

#[test]
fn the_header_of_a_query_comes_back() {
    let mut message = query("alice.mesh.", RecordType::A);
    for (desired, checking) in [(true, false), (false, true)] {
        message.metadata.recursion_desired = desired;
        message.metadata.checking_disabled = checking;
        message.metadata.id = 0xfedc;
        let answered = answer(&message, Transport::Udp);
        assert_eq!(answered.metadata.id, 0xfedc);
        assert_eq!(answered.metadata.recursion_desired, desired);
        assert_eq!(answered.metadata.checking_disabled, checking);
        assert!(!answered.metadata.authentic_data);
        assert_eq!(answered.edns, None, "who did not speak EDNS is not spoken to in it");
    }
}

#[test]
fn what_has_no_header_or_is_an_answer_gets_nothing() {
    let whole = changed(|_| ());
    for len in 0..12 {
        assert_eq!(silence(&whole[..len]), Refusal::NoHeader);
    }
    assert_eq!(silence(&changed(|message| message[2] |= 0x80)), Refusal::Response);
    // Not even to complain of what is wrong with it otherwise.
    assert_eq!(
        silence(&changed(|message| {
            message[2] |= 0x80;
            message.truncate(12)
        })),
        Refusal::Response
    );
    let response = answer_bytes(&whole, Transport::Udp);
    assert_eq!(silence(&response), Refusal::Response);
}

#[test]
fn what_is_malformed_is_told_so() {
    let whole = changed(|_| ());
    for len in 12..whole.len() {
        assert_eq!(bare(&whole[..len]), ResponseCode::FormErr, "cut at {len}");
    }
    for (what, message) in [
        ("no question", changed(|message| message[5] = 0)),
        (
            "two questions",
            changed(|message| {
                message[5] = 2;
                let again = message[12..].to_vec();
                message.extend(again)
            }),
        ),
        ("65,535 questions", changed(|message| message[4..6].fill(0xff))),
        ("an answer in a query", changed(|message| message[7] = 1)),
        ("an authority in a query", changed(|message| message[9] = 1)),
        ("an additional that is not there", changed(|message| message[11] = 1)),
        ("something behind the end", changed(|message| message.push(0))),
        (
            "a pointer in the question",
            changed(|message| {
                message.splice(12..24, [0xc0, 0x04]);
            }),
        ),
        ("a label of an unknown kind", changed(|message| message[12] = 0x41)),
        (
            "a name of 256 bytes",
            changed(|message| {
                let label = [&[63][..], &[b'a'; 63]].concat();
                message.splice(12..23, label.repeat(4));
            }),
        ),
        ("two OPT records", {
            let mut message = query_with("alice.mesh.", RecordType::A, |_| ()).to_vec().unwrap();
            let opt = message[message.len() - 11..].to_vec();
            message.extend(opt);
            message[11] = 2;
            message
        }),
        ("4,097 bytes", {
            let mut message = query_with("alice.mesh.", RecordType::A, |edns| {
                let padding =
                    hickory_proto::rr::rdata::opt::EdnsOption::Unknown(12, vec![0; 4097 - 12 - 16 - 11 - 4]);
                edns.options_mut().insert(padding);
            });
            message.metadata.id = 1;
            let message = message.to_vec().unwrap();
            assert_eq!(message.len(), 4097);
            message
        }),
    ] {
        assert_eq!(bare(&message), ResponseCode::FormErr, "{what}");
    }
    let opt = answer(&query("alice.mesh.", RecordType::OPT), Transport::Udp);
    assert_eq!(opt.metadata.response_code, ResponseCode::FormErr);
}

#[test]
fn other_operations_are_not_implemented() {
    for opcode in 1..16 {
        assert_eq!(
            bare(&changed(|message| message[2] |= opcode << 3)),
            ResponseCode::NotImp,
            "opcode {opcode}"
        );
    }
}

#[test]
fn other_classes_and_transfers_are_refused() {
    for class in [DNSClass::CH, DNSClass::HS, DNSClass::ANY, DNSClass::NONE, DNSClass::Unknown(7)] {
        for name in ["alice.mesh.", "version.bind.", "example.com."] {
            let mut message = query(name, RecordType::TXT);
            message.queries[0].set_query_class(class);
            let answered = answer(&message, Transport::Udp);
            assert_eq!(answered.metadata.response_code, ResponseCode::Refused);
            assert!(answered.answers.is_empty() && answered.authorities.is_empty());
        }
    }
    for kind in [RecordType::AXFR, RecordType::IXFR] {
        for transport in [Transport::Udp, Transport::Tcp] {
            let answered = answer(&query("mesh.", kind), transport);
            assert_eq!(answered.metadata.response_code, ResponseCode::Refused, "{kind}");
            assert!(answered.answers.is_empty());
        }
    }
}

#[test]
fn an_answer_is_no_longer_than_the_asker_takes() {
    let ask = |transport, edns: Option<u16>| {
        let message = match edns {
            // The library would not send less than 512.
            Some(size) => {
                let mut bytes = query_with("many.mesh.", RecordType::AAAA, |_| ()).to_vec().unwrap();
                let end = bytes.len();
                bytes[end - 8..end - 6].copy_from_slice(&size.to_be_bytes());
                bytes
            }
            None => query("many.mesh.", RecordType::AAAA).to_vec().unwrap(),
        };
        let bytes = answer_bytes(&message, transport);
        (bytes.len(), Message::from_vec(&bytes).unwrap())
    };
    // Sixteen addresses make an answer of 496 bytes: 475 with the name as short as here, and an OPT record.
    let whole = ask(Transport::Tcp, None).0;
    assert!((450..512).contains(&whole), "{whole}");
    for edns in [None, Some(0), Some(511), Some(512), Some(1232), Some(4096), Some(65_535)] {
        let (len, message) = ask(Transport::Udp, edns);
        assert!(len <= 512 && !message.metadata.truncation);
        assert_eq!(message.answers.len(), 16);
        assert_eq!(message.edns.map(|edns| edns.max_payload()), edns.map(|_| 1232));
    }
}

#[test]
fn an_answer_too_long_is_cut_short_and_marked() {
    let name = format!("{}.mesh", "a".repeat(60));
    let many: Vec<String> = (1..=16).map(|host| format!("fd00:9::{host:x}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let label = "a".repeat(60);
    let zone = Zone::new(Contents {
        zone: "mesh",
        pools: &[],
        own: None,
        serial: 1,
        members: std::iter::once((label.as_str(), addresses(&many))),
        records: std::iter::empty(),
    });
    let ask = |message: &Message, transport| match decide(&message.to_vec().unwrap(), &zone, transport) {
        Decision::Answer(bytes, _) => (bytes.len(), Message::from_vec(&bytes).unwrap()),
        other @ (Decision::Silence(_) | Decision::Forward(_)) => panic!("{other:?}"),
    };
    let plain = query(&format!("{name}."), RecordType::AAAA);
    let (len, cut) = ask(&plain, Transport::Udp);
    assert!(cut.metadata.truncation && cut.answers.is_empty() && len <= 512);
    assert_eq!((cut.queries, cut.metadata.response_code), (plain.queries.clone(), ResponseCode::NoError));
    let (len, whole) = ask(&plain, Transport::Tcp);
    assert!(!whole.metadata.truncation && whole.answers.len() == 16 && len > 512);
    for (size, answers) in [(512, 0), (len as u16 + 10, 0), (len as u16 + 11, 16), (1232, 16), (4096, 16)] {
        let message = query_with(&format!("{name}."), RecordType::AAAA, |edns| {
            edns.set_max_payload(size);
        });
        let (got, answered) = ask(&message, Transport::Udp);
        assert_eq!((answered.answers.len(), answered.metadata.truncation), (answers, answers == 0), "{size}");
        assert!(got <= usize::from(size) && answered.edns.is_some());
    }
}

#[test]
fn edns_is_answered_in_edns() {
    let message = query_with("alice.mesh.", RecordType::A, |edns| {
        edns.set_dnssec_ok(true).set_max_payload(4096);
        edns.options_mut().insert(hickory_proto::rr::rdata::opt::EdnsOption::Unknown(65_001, vec![1, 2, 3]));
    });
    let edns = answer(&message, Transport::Udp).edns.unwrap();
    assert_eq!((edns.version(), edns.max_payload(), edns.flags().dnssec_ok), (0, 1232, true));
    assert!(edns.options().as_ref().is_empty());
    let plain = query_with("alice.mesh.", RecordType::A, |_| ());
    assert!(!answer(&plain, Transport::Udp).edns.unwrap().flags().dnssec_ok);
}

#[test]
fn a_newer_edns_is_told_the_version_spoken_here() {
    for name in ["alice.mesh.", "example.com."] {
        let message = query_with(name, RecordType::A, |edns| {
            edns.set_version(1);
        });
        let answered = answer(&message, Transport::Udp);
        // 16 by its number, which TSIG has another name for.
        assert_eq!(u16::from(answered.metadata.response_code), u16::from(ResponseCode::BADVERS));
        assert_eq!(answered.edns.unwrap().version(), 0);
        assert!(answered.answers.is_empty());
    }
}

#[test]
fn questions_are_one_in_any_case_of_the_name_and_of_nothing_else() {
    let question = |name: &str, kind: u16, class: DNSClass| {
        let mut message = query(name, kind.into());
        message.queries[0].set_query_class(class);
        message.to_vec().unwrap()[HEADER..].to_vec()
    };
    let asked = question("a.example.", 65, DNSClass::IN);
    assert!(same_question(&asked, &question("A.eXample.", 65, DNSClass::IN)));
    for other in [
        // Numbers that would be one letter in two cases, were they letters.
        question("a.example.", 97, DNSClass::IN),
        question("a.example.", 65 + 256, DNSClass::IN),
        question("a.example.", 65, DNSClass::CH),
        question("b.example.", 65, DNSClass::IN),
        question("a.example.org.", 65, DNSClass::IN),
        asked[..3].to_vec(),
        Vec::new(),
    ] {
        assert!(!same_question(&asked, &other) && !same_question(&other, &asked), "{other:?}");
    }
}
