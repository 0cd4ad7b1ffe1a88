//! Many flows: what makes room for what, and that a peer's flood is its own affair.

use super::*;

/// Opens flow `number` of a peer, from a port and an address behind it, to UDP port 53.
fn open(node: &mut Node, peer: u8, number: u32) -> Result<(), DropReason> {
    let far = format!("10.{peer}.{}.{}", number >> 24 & 0xff, number >> 16 & 0xff);
    let packet = between(["100.64.0.1", &far], In, UDP, &udp(number as u16, 53, &[]));
    node.judge_with(peer, In, &packet)
}

fn answer(node: &mut Node, peer: u8, number: u32) -> Result<(), DropReason> {
    let far = format!("10.{peer}.{}.{}", number >> 24 & 0xff, number >> 16 & 0xff);
    let packet = between(["100.64.0.1", &far], Out, UDP, &udp(53, number as u16, &[]));
    node.judge_with(peer, Out, &packet)
}

/// A segment of connection `number` of a peer to port 22.
fn connection(
    node: &mut Node,
    peer: u8,
    number: u32,
    direction: Direction,
    flags: u8,
) -> Result<(), DropReason> {
    let far = format!("10.{peer}.200.{}", number >> 16 & 0xff);
    let (source, destination) = if direction == In { (number as u16, 22) } else { (22, number as u16) };
    let packet = between(["100.64.0.1", &far], direction, TCP, &tcp(source, destination, flags, &[]));
    node.judge_with(peer, direction, &packet)
}

fn establish(node: &mut Node, peer: u8, number: u32) -> Result<(), DropReason> {
    for (direction, flags) in [(In, SYN), (Out, SYN | ACK), (In, ACK)] {
        connection(node, peer, number, direction, flags)?;
    }
    Ok(())
}

fn serving() -> Node {
    Node::new(&[rule(In, Protocol::Any, None)])
}

#[test]
fn million_flows_of_one_peer_leave_the_established_ones_of_all_alone() {
    let mut node = serving();
    for number in 0..1000 {
        establish(&mut node, 2, number).unwrap();
        establish(&mut node, 3, number).unwrap();
        open(&mut node, 3, number).unwrap();
    }
    let started = test_epoch();
    for number in 0..1_000_000 {
        open(&mut node, 2, number).unwrap();
        if number % 1000 == 0 {
            node.wait(Duration::from_millis(1));
        }
    }
    let took = test_epoch().saturating_duration_since(started);
    assert!(took < seconds(30), "openings must not cost more the more there are: {took:?}");
    assert_eq!((node.count(2), node.count(3)), (MAX_FLOWS, 2000));
    for number in 0..1000 {
        assert_eq!(connection(&mut node, 2, number, Out, ACK), Ok(()), "its own connection {number}");
        assert_eq!(connection(&mut node, 3, number, Out, ACK), Ok(()), "another peer's connection {number}");
        assert_eq!(answer(&mut node, 3, number), Ok(()), "another peer's flow {number}");
    }
    assert_eq!(answer(&mut node, 2, 999_999), Ok(()), "the newest is there");
    assert_eq!(answer(&mut node, 2, 0), Err(DropReason::Denied), "the oldest is not");
}

#[test]
fn unanswered_flows_make_room_oldest_first_and_answered_ones_after_them() {
    let mut node = serving();
    let most = MAX_FLOWS as u32;
    for number in 0..most {
        open(&mut node, 2, number).unwrap();
        if number < 100 {
            answer(&mut node, 2, number).unwrap();
        }
        if number % 64 == 0 {
            node.wait(TICK / 16);
        }
    }
    for number in 0..most {
        open(&mut node, 2, most + number).unwrap();
    }
    for number in 0..100 {
        assert_eq!(answer(&mut node, 2, number), Ok(()), "answered flow {number}");
    }
    assert_eq!(node.count(2), MAX_FLOWS);
    // Now all are answered, and the next takes the place of one of them.
    for number in 100..most {
        let _gone = answer(&mut node, 2, most + number);
    }
    assert_eq!(open(&mut node, 2, 5 * most), Ok(()));
    assert_eq!(node.count(2), MAX_FLOWS);
}

#[test]
fn connections_make_room_for_nothing() {
    let mut node = serving();
    let most = MAX_FLOWS as u32;
    for number in 0..most {
        establish(&mut node, 2, number).unwrap();
    }
    assert_eq!(open(&mut node, 2, 1), Err(DropReason::FlowTableFull));
    assert_eq!(connection(&mut node, 2, most, In, SYN), Err(DropReason::FlowTableFull));
    assert_eq!(open(&mut node, 3, 1), Ok(()), "another peer has its own room");
    for number in [0, most / 2, most - 1] {
        assert_eq!(connection(&mut node, 2, number, Out, ACK), Ok(()));
    }
    connection(&mut node, 2, 7, In, FIN | ACK).unwrap();
    assert_eq!(open(&mut node, 2, 1), Ok(()), "one that is closing does");
    assert_eq!(connection(&mut node, 2, 7, Out, ACK), Err(DropReason::Denied));
    assert_eq!(node.count(2), MAX_FLOWS);
}

#[test]
fn flows_that_are_over_make_room_before_the_table_grows() {
    let mut node = serving();
    for round in 0..50 {
        for number in 0..500 {
            open(&mut node, 2, round * 500 + number).unwrap();
        }
        node.wait(seconds(30));
    }
    assert_eq!(node.count(2), 0);
    assert!(node.flows[&2].room() <= 1024, "25,000 flows, but never more than 500 at once");
}

#[test]
fn table_finds_what_is_in_it_after_any_number_of_openings_and_endings() {
    let mut node = serving();
    // Many rounds of different sizes and times, so that entries are reused in every order.
    let mut random = Random::seeded(5);
    let mut live: BTreeMap<u32, Instant> = BTreeMap::new();
    for number in 0..60_000 {
        open(&mut node, 2, number).unwrap();
        live.insert(number, node.now);
        if random.up_to(99) == 0 {
            node.wait(seconds(random.up_to(8).into()));
        }
        if random.up_to(9) == 0 {
            let asked = random.up_to(number);
            let now = node.now;
            let alive = live.get(&asked).is_some_and(|&at| now - at < seconds(30));
            // An answer would let it live longer; an error about it does not.
            let far = format!("10.2.{}.{}", asked >> 24 & 0xff, asked >> 16 & 0xff);
            let question = between(["100.64.0.1", &far], In, UDP, &udp(asked as u16, 53, &[]));
            let error = between(["100.64.0.1", &far], Out, 1, &build::icmp(3, 0, &question));
            assert_eq!(node.judge_with(2, Out, &error).is_ok(), alive, "flow {asked} of {number}");
        }
    }
    let now = node.now;
    assert_eq!(node.count(2), live.values().filter(|&&at| now - at < seconds(30)).count());
}

#[test]
fn no_secret_makes_the_chains_of_orderly_flows_long() {
    for seed in 0..20 {
        let mut node = serving();
        node.gate = Gate::new(&mut Random::seeded(seed)).unwrap();
        node.apply(filter(&[rule(In, Protocol::Any, None)], &[]));
        for number in 0..MAX_FLOWS as u32 {
            // One port after the other, as scanners and load tests have them.
            open(&mut node, 2, number).unwrap();
        }
        let longest = node.flows[&2].longest_chain();
        assert!(longest < 64, "seed {seed}: a chain of {longest}");
    }
}

#[test]
fn secret_decides_which_flows_share_a_chain() {
    let places = |seed| {
        let hash = flow::FlowHash::new(&mut Random::seeded(seed)).unwrap();
        let [near, far] = addresses(ENDS[0]);
        let key = |port| {
            let ends = crate::packet::Ends::Ports { source: port, destination: 53 };
            flow::Key::of(near, far, UDP, ends, Out)
        };
        (0..1000).map(|port| hash.of(&key(port)) & 0xff).collect::<Vec<u32>>()
    };
    let (one, other) = (places(1), places(2));
    let meet_the_first = |places: &[u32]| {
        let with = places.iter().enumerate().filter(|(_, place)| **place == places[0]);
        with.map(|(port, _)| port).collect::<Vec<usize>>()
    };
    assert_ne!(
        meet_the_first(&one),
        meet_the_first(&other),
        "who does not know the secret does not know who meets whom"
    );
    assert_eq!(one, places(1));
}
