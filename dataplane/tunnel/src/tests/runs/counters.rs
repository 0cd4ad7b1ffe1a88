//! That no counter is ever used twice, whatever becomes of runs.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::path::{Carrier, Link};
use crate::peer::LinkCandidate;

/// What the near end does in the story of its counters.
#[derive(Clone, Debug)]
enum Act {
    Run(usize),
    One,
    Settle,
    /// Nothing arrives for so long, but by the stream, if it is not cut as well.
    Cut(u64, bool),
    Pass(u64),
    Forget,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (1..=MAX_RUN).prop_map(Act::Run),
        4 => Just(Act::One),
        3 => Just(Act::Settle),
        2 => (1..30_u64, any::<bool>()).prop_map(|(time, all)| Act::Cut(time, all)),
        3 => prop_oneof![1..5_u64, 60..130_u64].prop_map(Act::Pass),
        1 => Just(Act::Forget),
    ]
}

/// Data messages by session and counter.
type Messages = BTreeMap<(Vec<u8>, u64), Vec<u8>>;

/// Plays the acts; returns every data message that the near end sealed, by session and counter, and how often one was sent
/// twice, which only twins are.
fn play(acts: &[Act]) -> (Messages, usize) {
    const SSH: LinkCandidate = LinkCandidate { number: 1, carrier: Carrier::Ssh };
    const LINKS: [Link; 2] =
        [Link { number: 1, carrier: Carrier::Ssh }, Link { number: 7, carrier: Carrier::Ssh }];
    let mut pair = Pair::with(12, |_| {}, |far| far.links = vec![SSH]);
    pair.near.tunnel.link_opened(pair.far.config.id, SSH.number, LINKS[0], pair.now);
    pair.send_near(b"first");
    pair.settle();
    let (mut sealed, mut twins) = (Messages::new(), 0);
    let mut seen = 0;
    for act in acts {
        match *act {
            Act::Run(count) => {
                let sent = pair.near.send_run(&marked(count, 60), pair.now);
                let sent = sent.unwrap_or_default().into_iter().flatten();
                pair.put(sent.collect::<Vec<_>>());
                pair.work();
            }
            Act::One => pair.send_near(b"one"),
            Act::Settle => through_both(&mut pair, LINKS, false),
            Act::Cut(time, all) => {
                pair.pass(seconds(time), |pair| {
                    if all {
                        pair.wire.clear();
                    }
                    through_both(pair, LINKS, true);
                });
            }
            Act::Pass(time) => pair.run(seconds(time)),
            Act::Forget => pair.near.tunnel.expire_sessions(),
        }
        for (_, datagram) in &pair.sent[seen..] {
            if datagram.from == pair.near.path && datagram.kind() == 4 {
                let key = (datagram.bytes[4..8].to_vec(), counter_of(&datagram.bytes));
                let before = sealed.insert(key.clone(), datagram.bytes.clone());
                assert!(before.is_none_or(|before| before == datagram.bytes), "{key:?} sealed two things");
                twins += usize::from(datagram.to == Path::Link(LINKS[0]));
            }
        }
        seen = pair.sent.len();
    }
    (sealed, twins)
}

/// Carries what lies on the wire: over UDP, unless that is cut, and by the stream.
fn through_both(pair: &mut Pair, links: [Link; 2], cut: bool) {
    let [near, far] = links.map(Path::Link);
    for _ in 0..1000 {
        let Some(datagram) = pair.wire.pop_front() else { return };
        if datagram.to == near {
            let _ = pair.far.take(&Datagram { from: far, ..datagram }, pair.now);
        } else if datagram.to == far {
            let _ = pair.near.take(&Datagram { from: near, ..datagram }, pair.now);
        } else if !cut {
            pair.deliver(&datagram);
        }
        pair.work();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_counter_of_a_session_is_ever_used_twice(acts in prop::collection::vec(act(), 1..40)) {
        play(&acts);
    }
}

#[test]
fn the_stories_of_counters_have_sessions_runs_and_twins_in_them() {
    let cut = [Act::Cut(4, false), Act::Run(128), Act::One, Act::Cut(2, false), Act::Run(5), Act::Settle];
    let forget = [
        Act::Run(20),
        Act::Forget,
        Act::Run(7),
        Act::Settle,
        Act::Run(128),
        Act::Pass(125),
        Act::Run(9),
        Act::Settle,
        Act::One,
    ];
    let (sealed, twins) = play(&[&cut[..], &forget].concat());
    let sessions: BTreeSet<&Vec<u8>> = sealed.keys().map(|(session, _)| session).collect();
    assert!(
        sealed.len() > 300 && sessions.len() >= 3 && twins > 100,
        "{} {sessions:?} {twins}",
        sealed.len()
    );
}
