//! Whole lives of small meshes, with everything that can go wrong; what is promised whatever happens is in
//! [`ringmesh_sim::life::watch`].

use ringmesh_sim::life::{Broken, Excuses, Options, Summary, live};
use ringmesh_sim::{Fault, seeds};

/// How many lives are lived: 500 unless set; 10,000 before a release.
const RUNS_VARIABLE: &str = "RINGMESH_SIM_RUNS";

fn runs() -> u64 {
    std::env::var(RUNS_VARIABLE).map_or(500, |runs| runs.parse().expect("RINGMESH_SIM_RUNS is a number"))
}

/// Names the seeds that failed, tells the first one's story, and how to live it again.
fn tell(broken: &[Broken]) -> String {
    let seeds: Vec<u64> = broken.iter().map(|broken| broken.seed).collect();
    let promises: Vec<String> =
        broken.iter().take(500).map(|broken| format!("{}: {}", broken.seed, broken.promise)).collect();
    let first = &broken[0];
    format!(
        "{} lives broke a promise, with seeds {seeds:?}\n{}\n\nseed {}:\n{}\n{}\n\n\
         again: {}={} cargo nextest run -p ringmesh-sim --test lives promises",
        broken.len(),
        promises.join("\n"),
        first.seed,
        first.story,
        first.promise,
        seeds::SEED_VARIABLE,
        first.seed
    )
}

#[test]
fn promises_are_kept_whatever_happens() {
    let lives = seeds::check_at_once(0..runs(), |seed| live(seed, Options::default()));
    let lives = lives.unwrap_or_else(|broken| panic!("{}", tell(&broken)));
    // A seed that is replayed says nothing about shares.
    if lives.len() < 100 {
        return;
    }
    // What is never asked for is never broken.
    let sum = |count: fn(&Summary) -> u64| lives.iter().map(count).sum::<u64>();
    let (packets, demanded) = (sum(|life| life.packets), sum(|life| life.demanded));
    assert!(demanded * 10 > packets, "only {demanded} of {packets} packets had to arrive");
    let single = sum(|life| life.single);
    assert!(single * 2000 <= demanded, "{single} of {demanded} packets were lost one by one");
    assert!(sum(|life| life.direct) > 0, "some pair had to be direct");
    let excuses = lives.iter().fold(Excuses::default(), |sum, life| sum + life.excuses);
    println!("excused: {excuses}");
    let sessions = sum(|life| life.sessions);
    let Excuses { restarted, roadless, same_cause, disturbed, cut_off, silent } = excuses;
    // An excuse that is used ever more often hides something. In a thousand sessions there are about 300, 48, 8, 3 and 0.3.
    let shares = [(restarted, 400), (roadless, 80), (same_cause, 16), (disturbed, 8), (cut_off + silent, 3)];
    assert!(
        shares.iter().all(|(count, most)| count * 1000 <= sessions * most),
        "{sessions} sessions: {excuses}"
    );
    println!(
        "{} lives, {packets} packets, {demanded} had to arrive and {single} did not, {} datagrams, {} sessions, {} looks at a direct path",
        lives.len(),
        sum(|life| life.datagrams),
        sum(|life| life.sessions),
        sum(|life| life.direct)
    );
}

#[test]
fn a_life_replays_identically_from_its_seed() {
    for seed in 0..3 {
        let twice = [(); 2].map(|()| live(seed, Options::default()).map_err(|broken| broken.story));
        assert_eq!(twice[0], twice[1]);
    }
}

/// Asserts that in more than `least` of the first `lives` nodes with this fault are found to break a promise in these words.
fn assert_caught(fault: Fault, words: &str, least: usize, lives: u64) {
    let options = Options { fault };
    let broken = seeds::check_at_once(0..lives, |seed| live(seed, options)).err().unwrap_or_default();
    let found = broken.iter().filter(|broken| broken.promise.contains(words)).count();
    let others: Vec<_> = broken.iter().map(|broken| (broken.seed, &broken.promise)).collect();
    assert!(found > least, "{fault:?}: {found} of {lives} lives: {others:#?}");
}

#[test]
fn a_node_that_never_retries_is_caught() {
    assert_caught(Fault::NeverRetries, "did not arrive", 20, 40);
}

#[test]
fn a_node_that_never_dials_is_caught() {
    assert_caught(Fault::NeverDials, "did not arrive", 10, 100);
}

#[test]
fn a_handshake_at_each_change_of_path_is_caught() {
    assert_caught(Fault::RenewsSessions, "had another session", 10, 40);
}

#[test]
fn a_replay_window_that_is_off_is_caught() {
    assert_caught(Fault::ForgetsCounters, "arrived again", 10, 40);
}

#[test]
fn a_packet_for_another_node_is_caught() {
    assert_caught(Fault::Misroutes, "arrived at", 10, 40);
}

#[test]
fn an_idle_pair_that_keeps_probing_is_caught() {
    assert_caught(Fault::NeverRests, "nobody has talked", 1, 150);
}

#[test]
fn a_direct_path_that_is_none_is_caught() {
    assert_caught(Fault::ClaimsDirect, "impossible", 10, 40);
}

#[test]
fn a_detour_where_there_is_a_direct_path_is_caught() {
    assert_caught(Fault::ShunsDirect, "and could directly", 10, 40);
}

#[test]
fn datagrams_without_end_to_addresses_that_never_answer_are_caught() {
    assert_caught(Fault::Floods, "which never answered", 10, 40);
}
