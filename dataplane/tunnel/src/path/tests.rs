//! Paths as a table of events and times: no session, no peer, only what is sent by which path and when.

use std::collections::{BTreeMap, BTreeSet};

use super::budget::Budgets;
use super::set::{Action, Context, MAX_PATHS, Paths, RelayView, RelayViews};
use super::*;
use crate::peer::LinkCandidate;
use crate::time::test_epoch;
use std::time::{Duration, Instant};

const RELAY: NodeId = NodeId::from_bytes([9; 8]);
const SSH: LinkCandidate = LinkCandidate { number: 1, carrier: Carrier::Ssh };

fn address(last: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, last], 1000))
}

fn udp(last: u8) -> Path {
    Path::Udp(address(last))
}

fn relayed() -> Path {
    Path::Relay(Channel { relay: RELAY, number: 5 })
}

/// One peer's paths, and a world in which some of them answer.
struct World {
    paths: Paths,
    relays: RelayViews,
    now: Instant,
    start: Instant,
    wanted: bool,
    kept: bool,
    session: bool,
    /// Round trip of each path that answers.
    answers: BTreeMap<Path, Duration>,
    /// Of every ten probes by a path, how many are lost.
    lossy: Option<(Path, u64)>,
    under_way: Vec<(Instant, Path, u64)>,
    /// All that was asked for, with its time.
    done: Vec<(Duration, Action)>,
    selected: Vec<(Duration, Path)>,
    lost: Vec<Duration>,
    tokens: u64,
    budgets: Budgets,
}

impl World {
    fn new(addresses: &[u8], links: &[LinkCandidate], relays: &[NodeId]) -> Self {
        let start = test_epoch();
        let addresses: Vec<SocketAddr> = addresses.iter().map(|&last| address(last)).collect();
        let mut paths = Paths::default();
        paths.configure(&addresses, links, relays, start);
        let view = |&id: &NodeId| RelayView { id, hop: Some(Hop::Udp(address(200))) };
        Self {
            paths,
            relays: relays.iter().map(view).collect(),
            now: start,
            start,
            wanted: true,
            kept: false,
            session: true,
            answers: BTreeMap::new(),
            lossy: None,
            under_way: Vec::new(),
            done: Vec::new(),
            selected: Vec::new(),
            lost: Vec::new(),
            tokens: 0,
            budgets: Budgets::default(),
        }
    }

    /// A session that came about by `path`, which answers from now on.
    fn established(mut self, path: Path) -> Self {
        self.works(path);
        self.paths.proved(path, self.now);
        self.paths.revive(self.now);
        self
    }

    fn works(&mut self, path: Path) {
        self.answers.insert(path, Duration::from_millis(20));
    }

    fn at(&self) -> Duration {
        self.now - self.start
    }

    fn run(&mut self, millis: u64) {
        let end = self.now + Duration::from_millis(millis);
        for _ in 0..1_000_000 {
            let answer = self.under_way.iter().map(|(at, ..)| *at).min();
            let next = [answer, self.paths.next()].into_iter().flatten().min().filter(|&next| next <= end);
            let Some(next) = next else {
                self.now = end;
                return;
            };
            self.now = self.now.max(next);
            self.step();
        }
        panic!("time stands still");
    }

    fn step(&mut self) {
        let (now, mut arrived) = (self.now, Vec::new());
        self.under_way.retain(|&(at, path, token)| {
            if at <= now {
                arrived.push((path, token));
            }
            at > now
        });
        for (path, token) in arrived {
            self.paths.heard(path, false, false, now);
            self.paths.answered(path, token, now);
        }
        if self.paths.next().is_none_or(|next| next > now) {
            return;
        }
        let context =
            Context { relays: &self.relays, wanted: self.wanted, kept: self.kept, session: self.session };
        let mut actions = Vec::new();
        let tokens = &mut self.tokens;
        let token = || {
            *tokens += 1;
            Some(*tokens)
        };
        let outcome = self.paths.due(context, &mut self.budgets, token, &mut actions, now);
        for action in actions {
            if let Action::Probe { path, token, .. } = action
                && let Some(&rtt) = self.answers.get(&path)
                && self
                    .lossy
                    .is_none_or(|(lossy, of_ten)| lossy != path || token.wrapping_mul(7) % 10 >= of_ten)
            {
                self.under_way.push((now + rtt, path, token));
            }
            self.done.push((self.at(), action));
        }
        if outcome.changed {
            self.selected.push((self.at(), self.paths.selected().unwrap()));
        }
        if outcome.lost {
            self.lost.push(self.at());
        }
    }

    fn probes(&self, path: Path) -> Vec<Duration> {
        let to = |action: &Action| matches!(action, Action::Probe { path: probed, .. } if *probed == path);
        self.done.iter().filter(|(_, action)| to(action)).map(|(at, _)| *at).collect()
    }

    fn count(&self, is: impl Fn(&Action) -> bool) -> usize {
        self.done.iter().filter(|(_, action)| is(action)).count()
    }

    fn state(&self, path: Path) -> PathState {
        let status = self.paths.status(&self.relays);
        let is = |status: &&PathStatus| match (status.candidate, path) {
            (Candidate::Udp(known), Path::Udp(address)) => known == address,
            (Candidate::Relay(_), Path::Relay(_)) => true,
            (Candidate::Link(_) | Candidate::Incoming(_), Path::Link(link)) => status.link == Some(link),
            _ => false,
        };
        status.iter().find(is).unwrap().state
    }
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A world with a direct path in use and a relayed one beside it, both working.
fn direct_and_relayed() -> World {
    let mut world = World::new(&[1], &[], &[RELAY]).established(udp(1));
    world.paths.bound(RELAY, 5, true, world.now);
    world.works(relayed());
    world.run(10_000);
    assert_eq!(world.paths.selected(), Some(udp(1)));
    assert_eq!(world.state(relayed()), PathState::Working);
    world.selected.clear();
    world.done.clear();
    world
}

#[test]
fn the_path_in_use_is_probed_every_second_and_others_less_often() {
    let mut world = direct_and_relayed();
    world.run(60_000);
    let (direct, relayed) = (world.probes(udp(1)).len(), world.probes(relayed()).len());
    assert!((57..=62).contains(&direct), "{direct}");
    assert!((10..=13).contains(&relayed), "{relayed}");
    assert!(world.selected.is_empty());
}

#[test]
fn one_missed_probe_makes_a_twin_and_three_make_the_next_best_the_path() {
    let mut world = direct_and_relayed();
    world.answers.remove(&udp(1));
    let cut = world.now;
    while world.paths.twin().is_none() {
        assert!(world.now - cut < millis(1_500));
        world.run(10);
    }
    assert_eq!(world.paths.twin(), Some(relayed()));
    assert_eq!(world.paths.selected(), Some(udp(1)), "not given up yet");
    world.run(2_500);
    assert_eq!(world.selected.len(), 1);
    assert_eq!(world.selected[0].1, relayed());
    assert!(world.now - cut < millis(4_100), "within three intervals of a second");
    assert_eq!(world.paths.twin(), None);
    assert_eq!(world.state(udp(1)), PathState::Dead);
    assert!(world.lost.is_empty(), "something works");
}

#[test]
fn a_direct_path_that_comes_back_is_taken_within_fifteen_seconds_without_a_pause() {
    let mut world = direct_and_relayed();
    world.answers.remove(&udp(1));
    world.run(120_000);
    world.selected.clear();
    world.works(udp(1));
    let back = world.now;
    while world.selected.is_empty() {
        assert!(world.now - back < millis(15_000));
        world.run(10);
    }
    assert_eq!(world.selected[0].1, udp(1));
    world.run(60_000);
    assert_eq!(world.selected.len(), 1, "and stays");
}

#[test]
fn a_dead_path_is_tried_for_ever_at_growing_intervals() {
    let mut world = direct_and_relayed();
    world.answers.remove(&udp(1));
    world.run(30_000);
    world.done.clear();
    world.run(3_600_000);
    let tries = world.probes(udp(1));
    assert!((600..=3_000).contains(&tries.len()), "{} probes in an hour", tries.len());
    let last = *tries.last().unwrap();
    assert!(world.at() - last < millis(11_000));
}

#[test]
fn an_address_that_never_answered_gets_at_most_twenty_probes_a_minute() {
    let mut world = World::new(&[1, 2], &[], &[RELAY]).established(relayed());
    for _ in 0..600 {
        // A peer that asks for more all the time changes nothing.
        world.paths.offered([address(1), address(3)].into_iter(), world.now);
        world.run(1_000);
    }
    for last in [1, 2, 3] {
        let probes = world.probes(udp(last));
        assert!(probes.len() > 20, "tried again and again");
        let most = probes
            .iter()
            .map(|&from| probes.iter().filter(|&&at| at >= from && at < from + millis(60_000)).count());
        assert!(most.max().unwrap() <= 20);
    }
}

#[test]
fn nothing_is_sent_to_a_peer_that_nobody_talks_to() {
    let mut world = direct_and_relayed();
    world.wanted = false;
    world.run(5_000);
    world.done.clear();
    world.run(3_600_000);
    assert_eq!(world.done, []);
    assert_eq!(world.paths.selected(), Some(udp(1)));
}

#[test]
fn after_a_long_rest_packets_go_both_ways_until_the_path_answers() {
    let mut world = direct_and_relayed();
    world.wanted = false;
    world.run(100_000);
    world.wanted = true;
    world.paths.revive(world.now);
    assert_eq!(world.paths.twin(), Some(relayed()));
    world.run(100);
    assert_eq!(world.paths.twin(), None);
}

#[test]
fn a_better_path_is_taken_once_it_has_answered_twice() {
    let mut world = World::new(&[1], &[], &[RELAY]).established(relayed());
    world.works(udp(1));
    world.run(2_000);
    assert_eq!(world.selected.len(), 1);
    assert_eq!(world.selected[0].1, udp(1));
    assert!(world.selected[0].0 < millis(500));
    assert!(world.probes(udp(1)).iter().filter(|&&at| at <= world.selected[0].0).count() >= 2);
}

#[test]
fn without_a_direct_path_both_sides_are_asked_to_try_again_and_again() {
    let mut world = World::new(&[1], &[], &[RELAY]).established(relayed());
    world.run(60_000);
    let offers = world.count(|action| *action == Action::Offer);
    assert!((5..=9).contains(&offers), "{offers}");
    world.works(udp(1));
    world.run(30_000);
    let direct_since = world.done.len();
    world.run(60_000);
    assert!(
        !world.done[direct_since..].iter().any(|(_, action)| *action == Action::Offer),
        "no need any more"
    );
}

#[test]
fn streams_are_opened_when_nothing_as_good_works_and_closed_when_long_unneeded() {
    let mut world = World::new(&[1], &[SSH], &[]).established(udp(1));
    world.run(60_000);
    assert_eq!(world.count(|action| matches!(action, Action::Open(_))), 0);
    world.answers.remove(&udp(1));
    let cut = world.now;
    world.run(4_000);
    let opened = world.done.iter().find(|(_, action)| *action == Action::Open(SSH)).unwrap().0;
    assert!(opened - (cut - world.start) < millis(2_500), "{:?}", opened - (cut - world.start));
    let link = Link { number: 77, carrier: Carrier::Ssh };
    world.works(Path::Link(link));
    assert!(world.paths.link_opened(SSH.number, link, world.now));
    world.run(1_000);
    assert_eq!(world.paths.selected(), Some(Path::Link(link)));

    world.works(udp(1));
    world.run(30_000);
    assert_eq!(world.paths.selected(), Some(udp(1)));
    world.run(70_000);
    assert!(world.count(|action| *action == Action::Close(link)) >= 1);
    assert!(world.paths.link_closed(link, world.now));
    world.done.clear();
    world.run(600_000);
    assert_eq!(world.count(|action| matches!(action, Action::Open(_))), 0, "nobody needs it");
}

#[test]
fn a_stream_that_cannot_be_opened_is_asked_for_again_and_again() {
    let mut world = World::new(&[], &[SSH], &[]);
    world.paths.wake(world.now);
    for _ in 0..300 {
        let before = world.count(|action| matches!(action, Action::Open(_)));
        world.run(1_000);
        if world.count(|action| matches!(action, Action::Open(_))) > before {
            world.paths.link_failed(SSH.number, world.now);
        }
    }
    let opened = world.count(|action| matches!(action, Action::Open(_)));
    assert!((60..=160).contains(&opened), "{opened} times in five minutes, as nothing else works");
}

#[test]
fn a_channel_is_asked_for_until_the_relay_answers_and_again_after_a_new_session_with_it() {
    let mut world = World::new(&[], &[], &[RELAY]);
    world.session = false;
    world.paths.wake(world.now);
    world.run(5_500);
    let asked = world.count(|action| *action == Action::Bind { relay: RELAY });
    assert!((4..=7).contains(&asked), "{asked}");
    assert!(world.paths.bound(RELAY, 5, true, world.now), "a handshake can go by it now");
    assert!(!world.paths.bound(RELAY, 5, true, world.now), "no news");
    world.session = true;
    world.works(relayed());
    world.run(1_000);
    assert_eq!(world.paths.selected(), Some(relayed()));
    world.done.clear();
    world.paths.rebind(RELAY, world.now);
    world.run(100);
    assert_eq!(world.count(|action| *action == Action::Bind { relay: RELAY }), 1);
    // Another number for the same pair is the same path.
    let other = Path::Relay(Channel { relay: RELAY, number: 6 });
    world.works(other);
    world.paths.bound(RELAY, 6, true, world.now);
    assert_eq!(world.paths.selected(), Some(other));
}

#[test]
fn a_relay_that_is_not_reached_is_no_path() {
    let mut world = direct_and_relayed();
    world.relays = [RelayView { id: RELAY, hop: None }].into_iter().collect();
    world.answers.clear();
    world.run(10_000);
    assert_eq!(world.paths.selected(), Some(udp(1)), "there is nothing better");
    assert_eq!(world.lost.len(), 1, "a handshake is due");
}

#[test]
fn a_peer_that_moved_is_followed_and_one_with_two_addresses_is_not() {
    let mut world = World::new(&[1], &[], &[]).established(udp(1));
    world.works(udp(2));
    world.run(5_000);
    // Both addresses are heard: the one in use stays.
    for _ in 0..20 {
        world.paths.heard(udp(2), true, false, world.now);
        world.run(200);
    }
    assert_eq!(world.paths.selected(), Some(udp(1)));
    world.answers.remove(&udp(1));
    let moved = world.now;
    for _ in 0..20 {
        world.paths.heard(udp(2), true, false, world.now);
        if world.paths.selected() == Some(udp(2)) {
            break;
        }
        world.run(100);
    }
    assert_eq!(world.paths.selected(), Some(udp(2)));
    assert!(world.now - moved < millis(2_000));
}

#[test]
fn a_relayed_packet_on_a_good_direct_path_changes_nothing() {
    let mut world = direct_and_relayed();
    for _ in 0..100 {
        world.paths.heard(relayed(), true, false, world.now);
        world.run(100);
        assert_eq!(world.paths.selected(), Some(udp(1)));
    }
}

#[test]
fn a_change_of_the_network_doubts_everything_over_udp_and_drops_nothing() {
    let mut world = direct_and_relayed();
    world.paths.network_changed(world.now);
    assert_eq!(world.paths.selected(), Some(udp(1)));
    assert_eq!(world.state(udp(1)), PathState::Suspect);
    world.run(10);
    assert_eq!(world.paths.twin(), Some(relayed()), "in doubt, by both");
    world.run(200);
    assert_eq!(world.state(udp(1)), PathState::Working);
    assert_eq!(world.paths.twin(), None);
    assert!(world.selected.is_empty());
}

#[test]
fn a_lossy_direct_path_gives_way_to_a_clean_relay() {
    let mut world = direct_and_relayed();
    world.lossy = Some((udp(1), 5));
    world.run(120_000);
    assert_eq!(world.paths.selected(), Some(relayed()));
}

#[test]
fn candidates_are_bounded_and_what_is_in_use_is_kept() {
    let mut world = World::new(&[1], &[], &[]).established(udp(1));
    for number in 0..1_000u32 {
        let heard = SocketAddr::from(([198, 51, (number >> 8) as u8, number as u8], 7));
        world.paths.heard(Path::Udp(heard), false, false, world.now);
    }
    let status = world.paths.status(&world.relays);
    assert!(status.len() <= MAX_PATHS);
    assert_eq!(world.paths.selected(), Some(udp(1)));
    let different: BTreeSet<Candidate> = status.iter().map(|status| status.candidate).collect();
    assert_eq!(different.len(), status.len());
}

#[test]
fn a_candidate_that_the_map_no_longer_names_goes_and_its_stream_is_closed() {
    let mut world = World::new(&[1, 2], &[SSH], &[]).established(udp(1));
    let link = Link { number: 3, carrier: Carrier::Ssh };
    world.paths.link_opened(SSH.number, link, world.now);
    assert_eq!(world.paths.configure(&[], &[], &[], world.now), [link]);
    let left: Vec<Candidate> =
        world.paths.status(&world.relays).iter().map(|status| status.candidate).collect();
    assert_eq!(left, [Candidate::Udp(address(1))], "what is in use and answers stays");
}

/// A world in which a stream that the peer opened, and was heard on once, has just made room for other candidates.
fn stream_crowded_out() -> (World, Link) {
    let mut world = World::new(&[1], &[], &[]).established(udp(1));
    let link = Link { number: 3, carrier: Carrier::Ssh };
    world.paths.heard(Path::Link(link), false, false, world.now);
    for number in 0..MAX_PATHS as u8 {
        world.now += millis(1);
        let heard = SocketAddr::from(([198, 51, 100, number], 7));
        world.paths.heard(Path::Udp(heard), false, false, world.now);
    }
    let status = world.paths.status(&world.relays);
    assert!(status.iter().all(|status| status.candidate != Candidate::Incoming(link)));
    (world, link)
}

#[test]
fn a_stream_whose_candidate_makes_room_is_closed_once() {
    let (mut world, link) = stream_crowded_out();
    assert_eq!(world.paths.links().collect::<Vec<_>>(), [link], "a peer that is removed takes it along");
    world.run(10);
    assert_eq!(world.count(|action| *action == Action::Close(link)), 1);
    assert_eq!(world.paths.links().count(), 0);
    world.run(10_000);
    assert_eq!(world.count(|action| *action == Action::Close(link)), 1);
}

#[test]
fn a_stream_that_made_room_and_is_heard_again_stays_open() {
    let (mut world, link) = stream_crowded_out();
    world.paths.heard(Path::Link(link), false, false, world.now);
    assert_eq!(world.paths.links().collect::<Vec<_>>(), [link]);
    world.run(1_000);
    assert_eq!(world.count(|action| matches!(action, Action::Close(_))), 0);
}

#[test]
fn a_stream_that_made_room_and_has_ended_needs_no_closing() {
    let (mut world, link) = stream_crowded_out();
    assert!(!world.paths.link_closed(link, world.now), "it is no path any more");
    world.run(1_000);
    assert_eq!(world.count(|action| matches!(action, Action::Close(_))), 0);
}

#[test]
fn a_stream_that_makes_room_for_what_the_map_names_is_closed() {
    let mut world = World::new(&[], &[SSH], &[]);
    let link = Link { number: 3, carrier: Carrier::Ssh };
    assert!(world.paths.link_opened(SSH.number, link, world.now));
    let addresses: Vec<SocketAddr> = (0..MAX_PATHS as u8).map(address).collect();
    assert_eq!(world.paths.configure(&addresses, &[SSH], &[], world.now), [link]);
    assert_eq!(world.paths.links().count(), 0);
}

#[test]
fn packets_fit_the_path_they_take() {
    let v6: SocketAddr = "[2001:db8::1]:1".parse().unwrap();
    let mut paths = Paths::default();
    paths.configure(&[address(1), v6], &[SSH], &[RELAY], test_epoch());
    let hop = |hop| -> RelayViews { [RelayView { id: RELAY, hop: Some(hop) }].into_iter().collect() };
    let mtu = |relays: &RelayViews, candidate: Candidate| {
        paths.status(relays).iter().find(|status| status.candidate == candidate).unwrap().mtu
    };
    let relays = hop(Hop::Udp(v6));
    assert_eq!(mtu(&relays, Candidate::Udp(address(1))), 1440);
    assert_eq!(mtu(&relays, Candidate::Udp(v6)), 1420);
    assert_eq!(mtu(&relays, Candidate::Relay(RELAY)), 1412, "a device MTU of 1408 fits");
    let by_stream = hop(Hop::Link(Link { number: 1, carrier: Carrier::WebSocket }));
    assert!(mtu(&by_stream, Candidate::Relay(RELAY)) > 1412);
}

#[test]
fn a_forged_source_moves_no_idle_side_until_it_answers() {
    let mut world = direct_and_relayed();
    world.wanted = false;
    world.run(5_000);
    world.done.clear();
    let victim = udp(66);
    for _ in 0..600 {
        world.paths.heard(victim, true, true, world.now);
        world.run(100);
    }
    assert_eq!(world.paths.selected(), Some(udp(1)));
    assert!(world.probes(victim).len() <= 20, "{} in a minute", world.probes(victim).len());
    // The same address, once somebody is there who answers.
    world.works(victim);
    world.run(60_000);
    world.paths.heard(victim, true, true, world.now);
    world.run(20_000);
    assert_eq!(world.paths.selected(), Some(victim));
}

#[test]
fn an_idle_side_stays_where_the_peer_led_it() {
    let mut world = direct_and_relayed();
    world.wanted = false;
    world.run(5_000);
    world.works(udp(2));
    world.paths.heard(udp(2), true, true, world.now);
    world.run(1_000);
    assert_eq!(world.paths.selected(), Some(udp(2)));
    for _ in 0..100 {
        world.run(10_000);
        assert_eq!(
            world.paths.selected(),
            Some(udp(2)),
            "the former one is no better for having worked once"
        );
    }
}

#[test]
fn two_addresses_of_one_peer_do_not_take_turns() {
    for wanted in [true, false] {
        let mut world = World::new(&[1, 2], &[], &[]).established(udp(1));
        world.answers.insert(udp(1), millis(10));
        world.answers.insert(udp(2), millis(60));
        world.wanted = wanted;
        world.kept = true;
        world.run(3_600_000);
        assert!(world.selected.len() <= 2, "{:?}", world.selected);
    }
}

#[test]
fn a_peer_that_names_ever_new_ports_of_one_machine_earns_no_more_probes() {
    let mut world = World::new(&[], &[], &[RELAY]).established(relayed());
    for round in 0..600u16 {
        let ports = (0..16).map(|port| SocketAddr::from(([203, 0, 113, 9], 1 + 16 * (round % 2) + port)));
        world.paths.offered(ports, world.now);
        world.run(100);
    }
    let to_victim = world.count(|action| match action {
        Action::Probe { path: Path::Udp(address), .. } => address.ip() == IpAddr::from([203, 0, 113, 9]),
        Action::Probe { .. } | Action::Bind { .. } | Action::Open(_) | Action::Close(_) | Action::Offer => {
            false
        }
    });
    assert!(to_victim <= 80, "{to_victim} in a minute");
}

#[test]
fn both_sides_of_a_relayed_path_rank_it_by_its_worse_half() {
    let mut world = World::new(&[], &[SSH], &[RELAY]).established(relayed());
    world.run(5_000);
    assert_eq!(
        world.count(|action| matches!(action, Action::Open(_))),
        0,
        "relayed over UDP is better than SSH"
    );
    // The peer's UDP is blocked: it reaches the relay over a WebSocket.
    world.paths.probed(relayed(), true, world.now);
    world.run(5_000);
    assert_eq!(world.count(|action| matches!(action, Action::Open(_))), 1);
}

#[test]
fn a_handshake_is_due_only_after_three_seconds_of_silence_on_every_path() {
    let mut world = direct_and_relayed();
    let cut = world.at();
    world.answers.clear();
    world.run(60_000);
    assert_eq!(world.lost.len(), 1, "once for one outage");
    assert!(world.lost[0] - cut >= millis(2_000) && world.lost[0] - cut < millis(5_000));
    world.works(udp(1));
    world.run(30_000);
    world.answers.clear();
    world.run(30_000);
    assert_eq!(world.lost.len(), 2, "and again for the next");
}

#[test]
fn a_stream_that_ends_while_nobody_talks_brings_no_handshake() {
    let link = Link { number: 1, carrier: Carrier::Ssh };
    let mut world = World::new(&[1], &[SSH], &[]).established(udp(1));
    world.run(5_000);
    world.answers.clear();
    world.works(Path::Link(link));
    world.run(3_000);
    world.paths.link_opened(SSH.number, link, world.now);
    world.run(5_000);
    assert_eq!(world.paths.selected(), Some(Path::Link(link)));
    world.wanted = false;
    world.run(60_000);
    assert!(world.paths.link_closed(link, world.now));
    world.paths.wake(world.now);
    world.run(60_000);
    assert_eq!(world.lost, [], "a peer that nobody asked has not failed to answer");
    // With traffic it is asked, and then its silence counts.
    world.wanted = true;
    world.paths.wake(world.now);
    world.run(10_000);
    assert_eq!(world.lost.len(), 1);
}
