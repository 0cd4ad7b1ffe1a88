//! Bytes of any kind: nothing fails, nothing grows, and what is answered fits what was asked.

use proptest::prelude::*;

use super::*;
use crate::dns::message::{DATAGRAM_MAX, HEADER, Header, question_end, same_question};

/// Decides, and checks what holds whatever was sent.
fn judge(message: &[u8]) {
    for transport in [Transport::Udp, Transport::Tcp] {
        match decide(message, &zone(), transport) {
            Decision::Silence(why) => {
                let header = Header::parse(message);
                assert_eq!(why == Refusal::NoHeader, header.is_none());
                assert!(header.is_none_or(|header| header.is_response()));
            }
            Decision::Answer(bytes, _) => {
                let (asked, answered) = (Header::parse(message).unwrap(), Header::parse(&bytes).unwrap());
                assert!(!asked.is_response() && answered.is_response());
                assert_eq!((answered.id, answered.opcode()), (asked.id, asked.opcode()));
                assert!(transport == Transport::Tcp || bytes.len() <= usize::from(DATAGRAM_MAX));
                // Whatever is said is said well.
                let read = Message::from_vec(&bytes).unwrap();
                assert!(read.queries.len() <= 1);
                if let [question] = &read.queries[..] {
                    let end = question_end(message).unwrap();
                    assert!(same_question(
                        &message[HEADER..end],
                        &bytes[HEADER..question_end(&bytes).unwrap()]
                    ));
                    assert!(read.answers.iter().all(|record| record.name.eq_case(question.name())));
                }
            }
            Decision::Forward(query) => {
                let question = query.question_bytes(message);
                assert_eq!(question.len() + HEADER, question_end(message).unwrap());
                assert!(!query.question.name().to_ascii().to_ascii_lowercase().ends_with(".mesh."));
            }
        }
    }
}

/// Names that are nearly ours, and odd ones.
fn labels() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let known = prop::sample::select(vec![
        "mesh",
        "alice",
        "bob",
        "eu",
        "db",
        "arpa",
        "in-addr",
        "ip6",
        "100",
        "64",
        "0",
        "1",
        "d",
        "f",
        "local",
        "localhost",
        "onion",
        "com",
        "MESH",
        "In-Addr",
    ]);
    let label = prop_oneof![
        8 => known.prop_map(|label| label.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 1..70),
    ];
    prop::collection::vec(label, 0..40)
}

fn message_of(labels: &[Vec<u8>], tail: &[u8], flags: [u8; 2], counts: [u8; 8]) -> Vec<u8> {
    let mut message = vec![0xab, 0xcd];
    message.extend(flags);
    message.extend(counts);
    for label in labels {
        message.push(label.len() as u8);
        message.extend(label);
    }
    message.push(0);
    message.extend(tail);
    message
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_bytes_are_survived(message in prop::collection::vec(any::<u8>(), 0..600)) {
        judge(&message);
    }

    #[test]
    fn any_question_is_survived(
        labels in labels(),
        kind in prop_oneof![Just(1_u16), Just(28), Just(12), Just(255), Just(6), Just(41), Just(250), Just(249), any::<u16>()],
        class in prop_oneof![4 => Just(1_u16), 1 => any::<u16>()],
        flags in prop_oneof![4 => Just([1_u8, 0]), 1 => any::<[u8; 2]>()],
        counts in prop_oneof![8 => Just([0_u8, 1, 0, 0, 0, 0, 0, 0]), 1 => any::<[u8; 8]>()],
        rest in prop_oneof![4 => Just(vec![]), 1 => prop::collection::vec(any::<u8>(), 0..40)],
    ) {
        let mut tail = [kind.to_be_bytes(), class.to_be_bytes()].concat();
        tail.extend(rest);
        judge(&message_of(&labels, &tail, flags, counts));
    }

    #[test]
    fn any_record_behind_a_question_is_survived(
        name in prop_oneof![Just(vec![0_u8]), Just(vec![0xc0, 12]), Just(vec![0xc0, 40]), prop::collection::vec(any::<u8>(), 1..6)],
        kind in prop_oneof![4 => Just(41_u16), 1 => 0_u16..270, 1 => any::<u16>()],
        class in any::<u16>(), ttl in any::<u32>(),
        length in prop_oneof![3 => Just(None), 1 => any::<u16>().prop_map(Some)],
        data in prop::collection::vec(any::<u8>(), 0..60), copies in 1_u8..4,
    ) {
        let mut record = name;
        record.extend(kind.to_be_bytes());
        record.extend(class.to_be_bytes());
        record.extend(ttl.to_be_bytes());
        record.extend(length.unwrap_or(data.len() as u16).to_be_bytes());
        record.extend(data);
        let tail = [vec![0, 1, 0, 1], record.repeat(copies.into())].concat();
        let labels = [b"alice".to_vec(), b"mesh".to_vec()];
        judge(&message_of(&labels, &tail, [1, 0], [0, 1, 0, 0, 0, 0, 0, copies]));
    }

    #[test]
    fn a_good_query_with_a_few_flipped_bytes_is_survived(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), which in 0_usize..3,
    ) {
        let mut message = match which {
            0 => query("alice.mesh.", RecordType::A),
            1 => query_with("db.eu.mesh.", RecordType::AAAA, |edns| { edns.set_dnssec_ok(true); }),
            _ => query_with("2.0.64.100.in-addr.arpa.", RecordType::PTR, |edns| { edns.set_max_payload(4096); }),
        }
        .to_vec()
        .unwrap();
        for (place, byte) in flips {
            let place = place.index(message.len());
            message[place] ^= byte;
        }
        judge(&message);
    }
}

#[test]
fn a_header_that_promises_much_costs_nothing() {
    // 65,535 of everything, in messages of twelve bytes and of the longest that is read.
    for len in [12, 4096] {
        let mut message = vec![0; len];
        message[4..12].fill(0xff);
        judge(&message);
        message[4..6].copy_from_slice(&[0, 1]);
        message[6..10].fill(0);
        judge(&message);
    }
    // The longest chain of labels there can be, and one more.
    for count in [126, 127, 128] {
        judge(&message_of(&vec![vec![b'a']; count], &[0, 1, 0, 1], [1, 0], [0, 1, 0, 0, 0, 0, 0, 0]));
    }
}
