//! The relay without a server: who gets what, from where, and what is counted.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should end")]

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use ringmesh_relay::relay::{AWAY_AFTER, MAX_CHANNELS_PER_CLIENT, UNDER_WAY};
use ringmesh_relay::{Dropped, Limiter, Rates, Relay, RelayDrop, RelayEvent, Verdict};
use ringmesh_tunnel::key::NodeId;
use ringmesh_tunnel::{
    Carrier, DropReason, Handshaker, Hop, Link, Now, PeerConfig, Random, UnixTime, relayed,
};
use support::{Client, RELAY, address, member, node, sealed, secret};

struct World {
    relay: Relay,
    handshaker: Handshaker,
    limiter: Limiter,
    now: Now,
    clients: Vec<Client>,
    hops: Vec<Hop>,
    /// Relayed datagrams that were given to the relay.
    given: u64,
    /// Bytes that left for each hop.
    sent: BTreeMap<Hop, usize>,
    /// How many datagrams that was.
    count: BTreeMap<Hop, usize>,
}

fn hop(number: u8) -> Hop {
    Hop::Udp(address(number))
}

fn link(number: u32) -> Hop {
    Hop::Link(Link { number, carrier: Carrier::WebSocket })
}

impl World {
    /// Members 1 to `count`, each at its own address, none of them heard yet.
    fn new(count: u8, rates: Rates) -> Self {
        let wall = UnixTime::from_secs(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs());
        let now = Now::new(Instant::now(), wall);
        let mut world = Self {
            relay: Relay::new(5, secret(RELAY).public_key(), Random::seeded(1), now).unwrap(),
            handshaker: Handshaker::new(&secret(RELAY), Random::seeded(2)),
            limiter: Limiter::new(rates, now.monotonic),
            now,
            clients: (1..=count).map(|number| Client::new(number, RELAY)).collect(),
            hops: (1..=count).map(hop).collect(),
            given: 0,
            sent: BTreeMap::new(),
            count: BTreeMap::new(),
        };
        world.apply(1..=count);
        world
    }

    /// One in which all are here.
    fn met(count: u8) -> Self {
        let mut world = Self::new(count, Rates::default());
        (1..=count).for_each(|number| world.meet(number));
        world
    }

    fn apply(&mut self, members: impl Iterator<Item = u8>) -> Vec<NodeId> {
        self.apply_configs(&members.map(member).collect::<Vec<_>>())
    }

    fn apply_configs(&mut self, members: &[PeerConfig]) -> Vec<NodeId> {
        let gone = self.relay.apply(members, &mut self.limiter, self.now);
        self.handshaker.apply(members);
        self.settle();
        gone
    }

    fn client(&mut self, number: u8) -> &mut Client {
        &mut self.clients[usize::from(number) - 1]
    }

    fn meet(&mut self, number: u8) {
        // Initiations of one key need later timestamps, in steps of 16.8 ms; each client's are its own.
        let initiation = self.client(number).initiation();
        assert_eq!(self.from(number, &initiation), Ok(Verdict::Consumed));
        assert!(self.client(number).established);
    }

    /// Gives the relay a datagram from where a client is.
    fn from(&mut self, number: u8, datagram: &[u8]) -> Result<Verdict, Dropped> {
        self.at(self.hops[usize::from(number) - 1], datagram)
    }

    fn at(&mut self, hop: Hop, datagram: &[u8]) -> Result<Verdict, Dropped> {
        let mut bytes = datagram.to_vec();
        self.given += u64::from(relayed::parse(datagram).is_some());
        let result = self.relay.handle_datagram(&mut bytes, hop, &mut self.limiter, self.now);
        if let Ok(Verdict::Forward { to, .. }) = result {
            assert_eq!(bytes.len(), datagram.len());
            self.deliver(to, &bytes);
        }
        self.settle();
        result
    }

    fn deliver(&mut self, to: Hop, datagram: &[u8]) {
        *self.sent.entry(to).or_default() += datagram.len();
        *self.count.entry(to).or_default() += 1;
        let Some(at) = self.hops.iter().position(|&hop| hop == to) else { return };
        for reply in self.clients[at].take(datagram) {
            let mut reply = reply;
            self.relay.handle_datagram(&mut reply, to, &mut self.limiter, self.now).unwrap();
        }
    }

    fn settle(&mut self) {
        loop {
            while let Some(job) = self.relay.poll_job() {
                let done = self.handshaker.run(job, 0, self.now);
                self.relay.handle_job(done, self.now);
            }
            let mut buffer = [0; 2048];
            let Some(transmit) = self.relay.poll_transmit(&mut buffer, self.now) else { return };
            self.deliver(transmit.to, &buffer[..transmit.len]);
        }
    }

    fn pass(&mut self, time: Duration) {
        let until = self.now.later(time);
        while self.relay.poll_deadline() <= until.monotonic {
            let wait = self.relay.poll_deadline().saturating_duration_since(self.now.monotonic);
            self.now = self.now.later(wait.max(Duration::from_millis(1)));
            self.relay.handle_deadline(self.now);
            self.settle();
        }
        self.now = until;
    }

    fn bind(&mut self, number: u8, target: u8) {
        let request = self.client(number).bind(node(target));
        assert_eq!(self.from(number, &request), Ok(Verdict::Heard));
    }

    /// A channel between two, asked for by both.
    fn pair(&mut self, one: u8, other: u8) {
        self.bind(one, other);
        self.bind(other, one);
    }

    fn hello(&mut self, number: u8) -> Result<Verdict, Dropped> {
        let hello = self.client(number).hello();
        self.from(number, &hello)
    }

    fn send(&mut self, number: u8, target: u8) -> Result<Verdict, Dropped> {
        let datagram = self.client(number).to(target, &sealed(100));
        self.from(number, &datagram)
    }
}

fn dropped(reason: RelayDrop) -> Result<Verdict, Dropped> {
    Err(Dropped::Relay(reason))
}

fn goes_to(result: Result<Verdict, Dropped>, hop: Hop) -> bool {
    matches!(result, Ok(Verdict::Forward { to, .. }) if to == hop)
}

#[test]
fn a_pair_exchanges_datagrams_and_each_end_sees_its_own_channel() {
    let mut world = World::met(3);
    world.pair(1, 2);
    let (one, present) = world.client(1).bound[&node(2)];
    let (two, _) = world.client(2).bound[&node(1)];
    assert!(present && one != two);
    assert!(goes_to(world.send(1, 2), hop(2)));
    assert!(goes_to(world.send(2, 1), hop(1)));
    assert_eq!(world.client(2).relayed, [(two, sealed(100))]);
    assert_eq!(world.client(1).relayed, [(one, sealed(100))]);
    assert!(world.client(3).relayed.is_empty());
}

#[test]
fn all_four_messages_pass_and_nothing_else_does() {
    let mut world = World::met(2);
    world.pair(1, 2);
    for (kind, length, passes) in [
        (1, 148, true),
        (2, 92, true),
        (3, 64, true),
        (4, 32, true),
        (4, 9000, true),
        (4, 31, false),
        (1, 149, false),
        (16, 148, false),
        (0x45, 100, false),
        (0, 1, false),
    ] {
        let mut inner = vec![0; length];
        inner[0] = kind;
        let datagram = world.client(1).to(2, &inner);
        let result = world.from(1, &datagram);
        let expected = if passes { goes_to(result, hop(2)) } else { result == dropped(RelayDrop::NotSealed) };
        assert!(expected, "type {kind}, {length} bytes: {result:?}");
    }
    let datagram = world.client(1).to(2, &sealed(9210));
    assert_eq!(world.from(1, &datagram), dropped(RelayDrop::TooLong));
}

#[test]
fn asking_again_gives_the_same_channel() {
    let mut world = World::met(2);
    world.bind(1, 2);
    let first = world.client(1).bound[&node(2)];
    world.bind(1, 2);
    world.bind(2, 1);
    world.bind(1, 2);
    assert_eq!(world.client(1).bound[&node(2)], first);
    assert_eq!(world.relay.pairs(), 1);
    let made: Vec<_> = world.relay.clients().map(|client| client.channels).collect();
    assert_eq!(made, [1, 0], "it is charged to whoever made it");
    assert_eq!(world.client(1).told, 3, "an answer to each request");
}

#[test]
fn one_that_did_not_ask_is_reached_and_is_told_what_changes() {
    let mut world = World::met(2);
    world.bind(1, 2);
    assert_eq!(world.client(2).told, 0);
    assert!(goes_to(world.send(1, 2), hop(2)));
    let (channel, _) = world.client(2).relayed[0];
    let answer = [relayed::emit(channel).as_slice(), &sealed(50)].concat();
    assert!(goes_to(world.from(2, &answer), hop(1)));
    for _ in 0..12 {
        world.pass(Duration::from_secs(10));
        let _ = world.hello(2);
    }
    assert_eq!(world.client(2).bound[&node(1)], (channel, false), "the other went");
}

#[test]
fn self_and_strangers_are_refused() {
    let mut world = World::met(2);
    world.bind(1, 1);
    world.bind(1, 9);
    assert_eq!(world.client(1).refused, [(node(1), 1), (node(9), 1)]);
    assert_eq!(world.relay.pairs(), 0);
}

#[test]
fn a_channel_is_taken_only_from_where_its_owner_is() {
    let mut world = World::met(3);
    world.pair(1, 2);
    let datagram = world.client(1).to(2, &sealed(100));
    for wrong in [hop(2), hop(3), hop(77), link(1)] {
        assert_eq!(world.at(wrong, &datagram), dropped(RelayDrop::WrongHop), "{wrong}");
    }
    assert!(goes_to(world.from(1, &datagram), hop(2)));
    let strangers = world.relay.clients().map(|client| client.drops.total()).sum::<u64>();
    assert_eq!(strangers, 0, "a stranger's datagrams are charged to no client");
}

#[test]
fn a_channel_moves_with_its_owner_and_not_before_the_owner_is_heard_there() {
    let mut world = World::met(2);
    world.pair(1, 2);
    let datagram = world.client(1).to(2, &sealed(100));
    assert_eq!(world.at(link(8), &datagram), dropped(RelayDrop::WrongHop));
    world.hops[0] = link(8);
    assert_eq!(world.hello(1), Ok(Verdict::Heard));
    assert!(goes_to(world.from(1, &datagram), hop(2)));
    assert!(goes_to(world.send(2, 1), link(8)), "at once");
    world.pass(UNDER_WAY);
    assert_eq!(world.at(hop(1), &datagram), dropped(RelayDrop::WrongHop), "the old place is no more");
}

#[test]
fn what_is_under_way_from_the_former_place_is_taken_for_a_second() {
    let mut world = World::met(2);
    world.pair(1, 2);
    let datagram = world.client(1).to(2, &sealed(100));
    world.hops[0] = link(8);
    assert_eq!(world.hello(1), Ok(Verdict::Heard));
    assert!(goes_to(world.at(hop(1), &datagram), hop(2)));
    world.pass(UNDER_WAY - Duration::from_millis(1));
    assert!(goes_to(world.at(hop(1), &datagram), hop(2)));
    assert!(goes_to(world.at(link(8), &datagram), hop(2)));
    world.pass(Duration::from_millis(1));
    assert_eq!(world.at(hop(1), &datagram), dropped(RelayDrop::WrongHop), "not after that");

    // From the stream back to UDP, which is what overtakes.
    world.hops[0] = hop(1);
    assert_eq!(world.hello(1), Ok(Verdict::Heard));
    assert!(goes_to(world.at(link(8), &datagram), hop(2)));
    world.pass(Duration::from_secs(3));
    assert_eq!(world.at(link(8), &datagram), dropped(RelayDrop::WrongHop));
    assert_eq!(world.hello(1), Ok(Verdict::Heard));
    assert!(goes_to(world.send(2, 1), hop(1)), "it is back");
    assert_eq!(UNDER_WAY, Duration::from_secs(1));
}

#[test]
fn a_former_place_is_one_where_the_client_was_and_only_the_last_of_them() {
    let mut world = World::met(3);
    world.pair(1, 2);
    let datagram = world.client(1).to(2, &sealed(100));
    // Somebody repeats from elsewhere what the client said: that makes no place of the client's.
    let hello = world.client(1).hello();
    assert_eq!(world.at(hop(66), &hello), Ok(Verdict::Heard));
    assert_eq!(world.at(hop(66), &datagram), dropped(RelayDrop::WrongHop));
    for place in [link(8), link(9)] {
        world.hops[0] = place;
        assert_eq!(world.hello(1), Ok(Verdict::Heard));
    }
    for never in [hop(66), hop(77), hop(2), hop(3), link(7)] {
        assert_eq!(world.at(never, &datagram), dropped(RelayDrop::WrongHop), "{never}");
    }
    assert_eq!(world.at(hop(1), &datagram), dropped(RelayDrop::WrongHop), "two moves ago");
    assert!(goes_to(world.at(link(8), &datagram), hop(2)));
    let strangers = world.relay.clients().map(|client| client.drops.total()).sum::<u64>();
    assert_eq!(strangers, 0, "a stranger's datagrams are charged to no client");
}

#[test]
fn a_client_that_roams_is_followed_within_one_round_trip() {
    let mut world = World::met(2);
    world.pair(1, 2);
    let datagram = world.client(1).to(2, &sealed(100));
    world.hops[0] = hop(11);
    // The clock stands still: what the relay asks leaves with what came, and the answer is all it waits for.
    assert_eq!(world.hello(1), Ok(Verdict::Heard));
    assert_eq!(world.count[&hop(11)], 2, "its echo's reply, and the relay's own question");
    assert!(goes_to(world.send(2, 1), hop(11)));
    assert!(goes_to(world.at(hop(11), &datagram), hop(2)));
}

/// What a victim got in a minute in which a client's words came from the victim's address, again and again.
fn a_minute_of_forged_sources(world: &mut World, victim: Hop, mut each: impl FnMut(&mut World)) {
    for _ in 0..60 {
        let hello = world.client(1).hello();
        assert_eq!(hello.len(), 45);
        let _ = (world.hello(1), world.hello(2));
        assert_eq!(world.at(victim, &hello), Ok(Verdict::Heard));
        for _ in 0..20 {
            each(world);
            world.pass(Duration::from_millis(50));
        }
    }
}

#[test]
fn a_forged_source_gets_a_few_probes_and_never_what_is_relayed() {
    let mut world = World::met(2);
    world.pair(1, 2);
    let victim = hop(66);
    let hello = world.client(1).hello();
    assert_eq!(world.at(victim, &hello), Ok(Verdict::Heard));
    world.pass(Duration::from_secs(60));
    // The reply to what it seems to have said, and a burst of questions.
    assert!((2..=4).contains(&world.count[&victim]), "{}", world.count[&victim]);
    let (_, before) = (world.hello(1), world.count[&victim]);
    a_minute_of_forged_sources(&mut world, victim, |world| {
        assert!(goes_to(world.send(2, 1), hop(1)), "it stays where it is");
    });
    let replies = 60;
    let probes = world.count[&victim] - before - replies;
    assert!(probes <= 20, "{probes}");
    assert_eq!(world.client(1).relayed.len(), 1200);
}

#[test]
fn a_forged_echo_while_the_stream_closes_aims_the_relay_at_nobody() {
    for echo_first in [true, false] {
        let mut world = World::met(2);
        world.pair(1, 2);
        world.hops[0] = link(8);
        assert_eq!(world.hello(1), Ok(Verdict::Heard));
        // Its UDP is blocked: nothing answers there any more.
        world.pass(Duration::from_secs(30));
        assert!(goes_to(world.send(2, 1), link(8)));
        let victim = hop(66);
        let close = |world: &mut World| {
            world.relay.link_closed(Link { number: 8, carrier: Carrier::WebSocket }, world.now);
            world.settle();
        };
        let echo = world.client(1).hello();
        if !echo_first {
            close(&mut world);
        }
        assert_eq!(world.at(victim, &echo), Ok(Verdict::Heard));
        if echo_first {
            close(&mut world);
        }
        let mut forwarded = Vec::new();
        for _ in 0..1200 {
            for _ in 0..4 {
                if let Ok(Verdict::Forward { to, .. }) = world.send(2, 1) {
                    forwarded.push(to);
                }
            }
            world.pass(Duration::from_millis(50));
        }
        assert!(!forwarded.contains(&victim), "nothing relayed");
        let (count, bytes) = (world.count[&victim], world.sent[&victim]);
        assert!((1..=21).contains(&count) && bytes <= 21 * 64, "{count} datagrams, {bytes} bytes");
    }
}

#[test]
fn guessed_channels_lead_nowhere() {
    let mut world = World::met(2);
    world.pair(1, 2);
    let (one, two) = (world.client(1).bound[&node(2)].0, world.client(2).bound[&node(1)].0);
    assert_eq!((one & 63, two & 63), (5, 5), "channels name their network");
    for bit in 0..32 {
        let guess = [relayed::emit(one ^ (1 << bit)).as_slice(), &sealed(40)].concat();
        let result = world.from(1, &guess);
        assert!(
            result == dropped(RelayDrop::UnknownChannel)
                || (one ^ (1 << bit) == two && result == dropped(RelayDrop::WrongHop)),
            "bit {bit}: {result:?}"
        );
    }
}

#[test]
fn a_removed_member_has_no_session_and_no_channel_at_once() {
    let mut world = World::met(3);
    world.pair(1, 2);
    world.pair(1, 3);
    let (to_removed, from_removed) =
        (world.client(1).to(2, &sealed(100)), world.client(2).to(1, &sealed(100)));
    let hello = world.client(2).hello();
    assert_eq!(world.apply([1, 3].into_iter()), [node(2)]);
    assert_eq!(world.from(1, &to_removed), dropped(RelayDrop::UnknownChannel));
    assert_eq!(world.from(2, &from_removed), dropped(RelayDrop::UnknownChannel));
    assert_eq!(world.from(2, &hello), Err(Dropped::Session(DropReason::UnknownIndex)));
    assert!(goes_to(world.send(1, 3), hop(3)), "the others keep theirs");

    // Back again, it has to begin anew, and its old channel stays dead.
    world.apply(1..=3);
    assert_eq!(world.from(2, &from_removed), dropped(RelayDrop::UnknownChannel));
    let made: BTreeMap<_, _> = world.relay.clients().map(|client| (client.id, client.channels)).collect();
    assert_eq!(made, BTreeMap::from([(node(1), 1), (node(2), 0), (node(3), 0)]));
}

#[test]
fn a_new_key_is_a_new_member() {
    let mut world = World::met(2);
    world.pair(1, 2);
    let mut configs = [member(1), member(2)];
    configs[1].key = secret(99).public_key();
    assert_eq!(world.apply_configs(&configs), [node(2)]);
    assert_eq!(world.send(2, 1), dropped(RelayDrop::UnknownChannel));
    assert_eq!(world.send(1, 2), dropped(RelayDrop::UnknownChannel));
}

#[test]
fn an_unchanged_list_changes_nothing() {
    let mut world = World::met(2);
    world.pair(1, 2);
    assert!(world.apply(1..=2).is_empty());
    assert!(goes_to(world.send(1, 2), hop(2)));
}

#[test]
fn both_ends_hear_when_the_other_comes_and_goes() {
    let mut world = World::new(2, Rates::default());
    world.meet(1);
    world.bind(1, 2);
    assert!(!world.client(1).bound[&node(2)].1, "not heard yet");
    assert_eq!(world.send(1, 2), dropped(RelayDrop::Away));
    world.meet(2);
    assert!(world.client(1).bound[&node(2)].1, "told anew");
    world.bind(2, 1);
    assert!(goes_to(world.send(1, 2), hop(2)));

    for _ in 0..12 {
        world.pass(Duration::from_secs(10));
        let _ = world.hello(1);
    }
    assert!(!world.client(1).bound[&node(2)].1, "not heard for 90 s");
    assert_eq!(world.send(1, 2), dropped(RelayDrop::Away));
    assert_eq!(world.send(2, 1), dropped(RelayDrop::WrongHop), "it has to be heard first");

    assert_eq!(world.hello(2), Ok(Verdict::Heard), "the session is the same");
    world.pass(Duration::from_secs(6));
    assert!(world.client(1).bound[&node(2)].1);
    assert!(goes_to(world.send(2, 1), hop(1)));
    let events: Vec<_> = std::iter::from_fn(|| world.relay.poll_event()).collect();
    assert_eq!(
        events,
        [
            RelayEvent::Came(node(1)),
            RelayEvent::Came(node(2)),
            RelayEvent::Went(node(2)),
            RelayEvent::Came(node(2))
        ]
    );
    assert!(AWAY_AFTER >= Duration::from_secs(90));
}

#[test]
fn channels_of_one_client_are_bounded_and_those_of_others_are_not_taken() {
    let mut world = World::met(3);
    let many: Vec<PeerConfig> = (0..MAX_CHANNELS_PER_CLIENT as u32 + 50)
        .map(|number| {
            let mut config = member(1);
            let [.., c, d] = number.to_be_bytes();
            config.id = NodeId::from_bytes([7, 7, 7, 7, 7, 7, c, d]);
            let mut key = [9; 32];
            (key[0], key[1]) = (c, d);
            config.key = ringmesh_tunnel::key::SecretKey::from_bytes(key).public_key();
            config.allowed_ips.clear();
            config
        })
        .collect();
    let all: Vec<_> = (1..=3).map(member).chain(many.iter().cloned()).collect();
    world.apply_configs(&all);
    for config in &many {
        let request = world.client(1).bind(config.id);
        world.from(1, &request).unwrap();
    }
    assert_eq!(world.client(1).bound.len(), MAX_CHANNELS_PER_CLIENT);
    assert_eq!(world.client(1).refused.len(), 50);
    assert!(world.client(1).refused.iter().all(|&(_, why)| why == 2), "full");
    world.bind(2, 1);
    assert!(world.client(2).bound.contains_key(&node(1)), "being asked for costs nothing");
    assert_eq!(world.relay.pairs(), MAX_CHANNELS_PER_CLIENT + 1);
}

#[test]
fn a_packet_for_the_relay_itself_goes_nowhere() {
    let mut world = World::met(2);
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 100, 64, 0, 1, 100, 64, 0, 2];
    packet.resize(28, 0);
    let datagram = world.client(1).seal(&packet);
    assert_eq!(world.from(1, &datagram), dropped(RelayDrop::PlainPacket));
    assert!(world.client(2).relayed.is_empty());
}

#[test]
fn replays_and_strangers_messages_are_the_sessions_to_refuse() {
    let mut world = World::met(1);
    let hello = world.client(1).hello();
    assert_eq!(world.from(1, &hello), Ok(Verdict::Heard));
    assert_eq!(world.at(hop(9), &hello), Err(Dropped::Session(DropReason::Replayed)));
    let mut stranger = Client::new(50, RELAY);
    let initiation = stranger.initiation();
    assert_eq!(world.at(hop(50), &initiation), Ok(Verdict::Consumed));
    assert!(!world.sent.contains_key(&hop(50)), "no answer");
    let drops = world.relay.session_drops();
    assert_eq!((drops.get(DropReason::UnknownPeer), drops.get(DropReason::Replayed)), (1, 1));
}

#[test]
fn a_flood_of_one_client_leaves_the_others_their_share() {
    let mut world = World::new(4, Rates { client: 100_000_000, total: Some(4_000_000) });
    (1..=4).for_each(|number| world.meet(number));
    world.pair(1, 2);
    world.pair(3, 4);
    let flood = world.client(1).to(2, &sealed(1392));
    let modest = world.client(3).to(4, &sealed(1392));
    let (mut flooded, mut passed) = (0, 0);
    for _ in 0..2000 {
        world.now = world.now.later(Duration::from_millis(1));
        for _ in 0..30 {
            flooded += u64::from(world.from(1, &flood).is_ok());
        }
        passed += u64::from(world.from(3, &modest).is_ok());
    }
    assert!(passed >= 1990, "{passed} of 2000");
    assert!(flooded * 1400 < 4_000_000 * 2, "{flooded}");
    let drops = world.relay.clients().find(|client| client.id == node(1)).unwrap().drops;
    assert_eq!(drops.get(RelayDrop::SharedRate), 60_000 - flooded);
}

#[test]
fn what_could_not_be_sent_is_not_counted_as_passed_on() {
    let mut world = World::met(2);
    world.pair(1, 2);
    let mut datagram = world.client(1).to(2, &sealed(100));
    let verdict = world.relay.handle_datagram(&mut datagram, hop(1), &mut world.limiter, world.now);
    let Ok(Verdict::Forward { receiver, .. }) = verdict else { panic!("{verdict:?}") };
    world.relay.not_sent(receiver, datagram.len(), RelayDrop::SendFailed);
    let clients: Vec<_> = world.relay.clients().collect();
    assert_eq!((clients[0].from.datagrams, clients[1].to.datagrams), (1, 0));
    assert_eq!(clients[1].drops.get(RelayDrop::SendFailed), 1);
    assert_eq!(world.relay.passed_on().datagrams, 0);
}

#[derive(Debug, Clone)]
enum Step {
    /// Client and target ask for a channel.
    Bind(u8, u8),
    /// From the place of one client, a datagram on the channel of another.
    Send {
        at: u8,
        owner: u8,
        target: u8,
        sealed: bool,
        flip: Option<u8>,
    },
    /// A client moves, and is heard.
    Move(u8, u8),
    Members(Vec<bool>),
    Meet(u8),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let client = || 1u8..5;
    let send = (
        client(),
        client(),
        client(),
        prop::bool::weighted(0.9),
        prop::option::weighted(0.1, 0u8..32),
        any::<bool>(),
    );
    prop_oneof![
        3 => (client(), client()).prop_map(|(a, b)| Step::Bind(a, b)),
        8 => send.prop_map(|(at, owner, target, sealed, flip, right)| {
            Step::Send { at: if right { owner } else { at }, owner, target, sealed, flip }
        }),
        1 => (client(), 0u8..4).prop_map(|(who, to)| Step::Move(who, to)),
        1 => prop::collection::vec(prop::bool::weighted(0.8), 4).prop_map(Step::Members),
        1 => client().prop_map(Step::Meet),
        1 => (1u64..40).prop_map(Step::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens, a datagram reaches the other end of its channel or nobody, comes only from its owner's place, and is
    /// counted once.
    #[test]
    fn only_the_other_end_of_the_pair_is_ever_reached(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::met(4);
        let mut members = [true; 4];
        let (mut passed_on, mut anybody_left) = (0, false);
        for step in steps {
            match step {
                Step::Bind(one, other) if members[usize::from(one) - 1] && world.client(one).established => {
                    let request = world.client(one).bind(node(other));
                    let _ = world.from(one, &request);
                }
                Step::Send { at, owner, target, sealed: is_sealed, flip } => {
                    let Some(&(channel, _)) = world.client(owner).bound.get(&node(target)) else { continue };
                    let mut inner = sealed(64);
                    inner[1] = u8::from(!is_sealed);
                    let channel = flip.map_or(channel, |bit| channel ^ (1 << bit));
                    let datagram = [relayed::emit(channel).as_slice(), &inner].concat();
                    let before: Vec<_> = world.clients.iter().map(|client| client.relayed.len()).collect();
                    let places: BTreeMap<_, _> =
                        world.relay.clients().map(|client| (client.id, client.hop)).collect();
                    let result = world.from(at, &datagram);
                    let reached: Vec<_> = (0..4).filter(|&at| world.clients[at].relayed.len() > before[at]).collect();
                    if let Ok(Verdict::Forward { to, .. }) = result {
                        passed_on += 1;
                        prop_assert!(is_sealed);
                        if flip.is_some() {
                            // Another live channel: then it is one of whoever is there.
                            prop_assert!(places.values().any(|&hop| hop == Some(world.hops[usize::from(at) - 1])));
                            continue;
                        }
                        prop_assert!(members[usize::from(owner) - 1] && members[usize::from(target) - 1]);
                        prop_assert_eq!(Some(world.hops[usize::from(at) - 1]), places[&node(owner)]);
                        prop_assert_eq!(Some(to), places[&node(target)]);
                        let at_home = to == world.hops[usize::from(target) - 1];
                        prop_assert_eq!(reached, if at_home { vec![usize::from(target) - 1] } else { vec![] });
                    } else {
                        prop_assert!(reached.is_empty());
                    }
                }
                Step::Move(who, to) if world.client(who).established => {
                    world.hops[usize::from(who) - 1] = if to == 0 { link(who.into()) } else { hop(who + 10 * to) };
                    let _ = world.hello(who);
                }
                Step::Members(now_members) => {
                    members.copy_from_slice(&now_members);
                    anybody_left |= members != [true; 4];
                    let list: Vec<u8> = (1..=4).filter(|&number| members[usize::from(number) - 1]).collect();
                    world.apply(list.into_iter());
                    for number in 1..=4u8 {
                        if !members[usize::from(number) - 1] {
                            // Its keys are of no use any more; what it knows of channels it still knows.
                            world.client(number).established = false;
                        }
                    }
                }
                Step::Meet(who) if members[usize::from(who) - 1] => {
                    let fresh = Client::new(who, RELAY);
                    let bound = std::mem::replace(world.client(who), fresh).bound;
                    world.client(who).bound = bound;
                    let initiation = world.client(who).initiation();
                    let _ = world.from(who, &initiation);
                }
                Step::Pass(seconds) => world.pass(Duration::from_secs(seconds)),
                Step::Bind(..) | Step::Move(..) | Step::Meet(_) => {}
            }
            prop_assert_eq!(world.relay.passed_on().datagrams, passed_on);
            prop_assert_eq!(world.given, passed_on + world.relay.drops().total());
            for number in 1..=4u8 {
                let entries = world.relay.clients().filter(|client| client.id == node(number)).count();
                prop_assert_eq!(entries, usize::from(members[usize::from(number) - 1]));
            }
        }
        if !anybody_left {
            let sum = |of: fn(&ringmesh_relay::ClientReport) -> u64| world.relay.clients().map(|c| of(&c)).sum::<u64>();
            prop_assert_eq!(sum(|client| client.from.datagrams), passed_on);
            prop_assert_eq!(sum(|client| client.to.datagrams), passed_on);
            prop_assert_eq!(sum(|client| client.to.bytes), world.relay.passed_on().bytes);
        }
    }

    #[test]
    fn no_bytes_make_it_panic_or_answer(
        kind in prop::sample::select(vec![0u8, 1, 2, 3, 4, 16]),
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        exact in any::<bool>(),
    ) {
        let mut world = World::met(2);
        world.pair(1, 2);
        let sent: usize = world.sent.values().sum();
        let mut datagram = vec![kind, 0, 0, 0];
        datagram.extend(&bytes);
        if exact {
            datagram.resize(match kind { 1 => 148, 2 => 92, 3 => 64, 4 => 32, _ => 100 }, 0);
        }
        prop_assert!(world.at(hop(88), &datagram).is_err());
        prop_assert!(world.at(hop(88), &bytes).is_err());
        prop_assert_eq!(world.sent.values().sum::<usize>(), sent, "strangers hear nothing");
    }
}
