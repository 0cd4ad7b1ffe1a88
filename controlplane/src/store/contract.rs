//! What every [`Store`] must do, as one suite: an engine passes `suite` or is not one.

use std::time::Duration;

use futures_util::StreamExt as _;

use super::{Commit, Compare, MAX_KEY, MAX_OPS, MAX_VALUE, Op, Outcome, Store, StoreError, log::MAX_COMMITS};

/// Runs every test of the contract, each on a fresh store.
pub(super) async fn suite<S: Store>(fresh: impl AsyncFn() -> S) {
    a_transaction_is_all_or_nothing(&fresh().await).await;
    a_compare_knows_absent_present_and_overwritten(&fresh().await).await;
    revisions_grow_by_one_and_only_with_changes(&fresh().await).await;
    a_snapshot_holds_everything_at_its_revision(&fresh().await).await;
    a_watch_gives_every_commit_once_in_order(&fresh().await).await;
    a_watch_resumes_where_it_was_left(&fresh().await).await;
    a_watch_of_forgotten_commits_is_refused(&fresh().await).await;
    of_parallel_claims_exactly_one_wins(&fresh().await).await;
    bounds_are_refused_before_anything_is_written(&fresh().await).await;
    a_lease_takes_its_keys_with_it(&fresh().await).await;
    a_lease_lives_while_it_is_renewed(&fresh().await).await;
}

async fn commit(store: &impl Store, ops: Vec<Op>) -> u64 {
    match store.txn(vec![], ops).await {
        Ok(Outcome::Committed(revision)) => revision,
        other => panic!("{other:?}"),
    }
}

async fn values(store: &impl Store) -> Vec<(String, Vec<u8>)> {
    store.snapshot().await.unwrap().entries.into_iter().map(|entry| (entry.key, entry.value)).collect()
}

async fn a_transaction_is_all_or_nothing(store: &impl Store) {
    commit(store, vec![Op::put("a", b"1".into())]).await;
    let ops = vec![Op::put("b", b"2".into()), Op::delete("a")];
    let compare = vec![Compare::absent("b"), Compare::absent("a")];
    assert_eq!(store.txn(compare, ops.clone()).await, Ok(Outcome::Conflict(1)));
    assert_eq!(values(store).await, [("a".into(), b"1".to_vec())]);
    let compare = vec![Compare::absent("b"), Compare::unchanged("a", 1)];
    assert_eq!(store.txn(compare, ops).await, Ok(Outcome::Committed(2)));
    assert_eq!(values(store).await, [("b".into(), b"2".to_vec())]);
}

async fn a_compare_knows_absent_present_and_overwritten(store: &impl Store) {
    let holds = async |compare| matches!(store.txn(vec![compare], vec![]).await, Ok(Outcome::Committed(_)));
    assert!(holds(Compare::absent("k")).await);
    assert!(!holds(Compare::unchanged("k", 1)).await);
    commit(store, vec![Op::put("k", b"same".into())]).await;
    assert!(holds(Compare::unchanged("k", 1)).await);
    // The same value again is another writing of it.
    commit(store, vec![Op::put("k", b"same".into())]).await;
    assert!(!holds(Compare::unchanged("k", 1)).await);
    assert!(holds(Compare::unchanged("k", 2)).await);
    commit(store, vec![Op::delete("k")]).await;
    assert!(!holds(Compare::unchanged("k", 2)).await);
    assert!(holds(Compare::absent("k")).await);
}

async fn revisions_grow_by_one_and_only_with_changes(store: &impl Store) {
    assert_eq!(store.snapshot().await.unwrap().revision, 0);
    for expected in 1..=5 {
        assert_eq!(commit(store, vec![Op::put("k", vec![]), Op::put("l", vec![])]).await, expected);
    }
    assert_eq!(commit(store, vec![]).await, 5);
    assert_eq!(store.snapshot().await.unwrap().revision, 5);
}

async fn a_snapshot_holds_everything_at_its_revision(store: &impl Store) {
    for i in (0..20_u8).rev() {
        commit(store, vec![Op::put(format!("k/{i:02}"), vec![i])]).await;
    }
    commit(store, vec![Op::delete("k/07")]).await;
    let snapshot = store.snapshot().await.unwrap();
    assert_eq!(snapshot.revision, 21);
    let keys: Vec<&str> = snapshot.entries.iter().map(|entry| entry.key.as_str()).collect();
    assert!(keys.is_sorted());
    assert_eq!(keys.len(), 19);
    for entry in &snapshot.entries {
        let i = entry.value[0];
        assert_eq!((entry.key.clone(), entry.revision), (format!("k/{i:02}"), 20 - u64::from(i)));
    }
}

async fn a_watch_gives_every_commit_once_in_order(store: &impl Store) {
    let watch = store.watch(0).await.unwrap();
    let writes = async {
        for i in 1..=50_u8 {
            commit(store, vec![Op::put("k", vec![i]), Op::delete("never there")]).await;
        }
    };
    let seen = async { watch.take(50).map(|commit| commit.unwrap()).collect::<Vec<_>>().await };
    let ((), seen) = tokio::join!(writes, seen);
    for (i, seen) in (1_u8..).zip(seen) {
        let expected = Commit { revision: u64::from(i), changes: vec![("k".into(), Some(vec![i]))] };
        assert_eq!(*seen, expected);
    }
}

async fn a_watch_resumes_where_it_was_left(store: &impl Store) {
    for i in 1..=10 {
        commit(store, vec![Op::put("k", vec![i])]).await;
    }
    let mut watch = store.watch(7).await.unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap().revision, 8);
    let mut watch = store.watch(10).await.unwrap();
    commit(store, vec![Op::delete("k")]).await;
    let commit = watch.next().await.unwrap().unwrap();
    assert_eq!(*commit, Commit { revision: 11, changes: vec![("k".into(), None)] });
}

async fn a_watch_of_forgotten_commits_is_refused(store: &impl Store) {
    let mut slow = store.watch(0).await.unwrap();
    let write = |_| store.txn(vec![], vec![Op::put("k", vec![])]);
    let writes = futures_util::stream::iter(0..=MAX_COMMITS).map(write).buffered(64);
    assert!(writes.all(async |outcome| outcome.is_ok()).await);
    assert!(matches!(store.watch(0).await.err(), Some(StoreError::Compacted { oldest: 2 })));
    assert_eq!(slow.next().await.unwrap().err(), Some(StoreError::Compacted { oldest: 2 }));
    assert!(slow.next().await.is_none());
    assert_eq!(store.watch(1).await.unwrap().next().await.unwrap().unwrap().revision, 2);
}

async fn of_parallel_claims_exactly_one_wins(store: &impl Store) {
    let claims =
        (0..100_u8).map(|i| store.txn(vec![Compare::absent("claim")], vec![Op::put("claim", vec![i])]));
    let outcomes = futures_util::future::join_all(claims).await;
    let winners: Vec<usize> =
        (0..100).filter(|i| matches!(outcomes[*i], Ok(Outcome::Committed(_)))).collect();
    let losers = outcomes.iter().filter(|outcome| **outcome == Ok(Outcome::Conflict(1))).count();
    assert_eq!((winners.len(), losers), (1, 99));
    assert_eq!(values(store).await, [("claim".into(), vec![winners[0] as u8])]);
}

async fn bounds_are_refused_before_anything_is_written(store: &impl Store) {
    let refused = async |ops| matches!(store.txn(vec![], ops).await, Err(StoreError::TooLarge { .. }));
    assert!(!refused(vec![Op::put("k".repeat(MAX_KEY), vec![0; MAX_VALUE])]).await);
    assert!(refused(vec![Op::put("a", vec![]), Op::put("k".repeat(MAX_KEY + 1), vec![])]).await);
    assert!(refused(vec![Op::put("a", vec![]), Op::put("k", vec![0; MAX_VALUE + 1])]).await);
    assert!(refused((0..=MAX_OPS).map(|i| Op::put(format!("{i}"), vec![])).collect()).await);
    assert!(!refused((0..MAX_OPS).map(|i| Op::put(format!("{i}"), vec![])).collect()).await);
    assert_eq!(store.snapshot().await.unwrap().entries.len(), 1 + MAX_OPS);
}

fn leased(key: &str, lease: super::LeaseId) -> Op {
    Op::Put { key: key.into(), value: vec![], lease: Some(lease) }
}

async fn a_lease_takes_its_keys_with_it(store: &impl Store) {
    let lease = store.lease(Duration::from_millis(20)).await.unwrap();
    commit(store, vec![Op::put("stays", vec![]), leased("goes", lease), leased("kept", lease)]).await;
    // Put again without the lease, it is no longer bound to it.
    let revision = commit(store, vec![Op::put("kept", vec![])]).await;
    let mut watch = store.watch(revision).await.unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap().changes, [("goes".into(), None)]);
    assert_eq!(store.keep_alive(lease).await, Err(StoreError::LeaseExpired));
    assert_eq!(store.txn(vec![], vec![leased("late", lease)]).await, Err(StoreError::LeaseExpired));
    let keys: Vec<String> = values(store).await.into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["kept", "stays"]);
}

async fn a_lease_lives_while_it_is_renewed(store: &impl Store) {
    let (short, renewed) = (Duration::from_millis(40), Duration::from_millis(400));
    let renewed = store.lease(renewed).await.unwrap();
    commit(store, vec![leased("renewed", renewed)]).await;
    // Three short leases end, one after the other, while the other is renewed: an order of events, not of clocks.
    for _ in 0..3 {
        let lease = store.lease(short).await.unwrap();
        let revision = commit(store, vec![leased("short", lease)]).await;
        let mut watch = store.watch(revision).await.unwrap();
        assert_eq!(watch.next().await.unwrap().unwrap().changes, [("short".into(), None)]);
        store.keep_alive(renewed).await.unwrap();
    }
    assert_eq!(values(store).await.len(), 1);
}
