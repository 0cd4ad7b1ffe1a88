//! What is SQLite's own: the file, its permissions, its lock, its version and its damage.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use super::*;
use crate::store::contract;

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

async fn filled(directory: &Path) -> SqliteStore {
    let store = SqliteStore::open(directory).unwrap();
    for i in 0..200_u32 {
        store.txn(vec![], vec![Op::put(format!("key/{i}"), vec![i as u8; 300])]).await.unwrap();
    }
    store
}

#[tokio::test]
async fn sqlite_keeps_the_contract_of_a_store() {
    let (directory, next) = (directory(), std::cell::Cell::new(0));
    contract::suite(async || {
        next.set(next.get() + 1);
        let path = directory.path().join(next.get().to_string());
        fs::create_dir(&path).unwrap();
        SqliteStore::open(&path).unwrap()
    })
    .await;
}

#[tokio::test]
async fn what_was_committed_is_there_after_reopening() {
    let directory = directory();
    let store = filled(directory.path()).await;
    let before = store.snapshot().await.unwrap();
    store.close().await;
    let store = SqliteStore::open(directory.path()).unwrap();
    assert_eq!(store.snapshot().await.unwrap(), before);
    assert_eq!(before.revision, 200);
    assert!(matches!(store.watch(199).await.err(), Some(StoreError::Compacted { .. })));
    store.watch(200).await.map(drop).unwrap();
}

#[tokio::test]
async fn a_closed_store_takes_nothing_more() {
    let directory = directory();
    let store = SqliteStore::open(directory.path()).unwrap();
    let waiting = store.txn(vec![], vec![Op::put("before", vec![])]);
    let (before, ()) = tokio::join!(waiting, store.close());
    assert_eq!(before, Ok(Outcome::Committed(1)), "what waited is committed");
    assert!(matches!(store.txn(vec![], vec![Op::put("after", vec![])]).await, Err(StoreError::Failed(_))));
    store.close().await;
    let store = SqliteStore::open(directory.path()).unwrap();
    assert_eq!(store.snapshot().await.unwrap().entries.len(), 1);
}

#[tokio::test]
async fn leased_keys_do_not_outlive_the_process() {
    let directory = directory();
    let store = SqliteStore::open(directory.path()).unwrap();
    let lease = Some(store.lease(Duration::from_secs(3600)).await.unwrap());
    let put = |key: &str, lease| Op::Put { key: key.into(), value: vec![], lease };
    store.txn(vec![], vec![put("mine", lease), put("all", None)]).await.unwrap();
    store.close().await;
    let store = SqliteStore::open(directory.path()).unwrap();
    let entries = store.snapshot().await.unwrap().entries;
    assert_eq!(entries.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(), ["all"]);
}

#[tokio::test]
async fn a_second_coordinator_is_kept_out_while_the_first_lives() {
    let directory = directory();
    let store = SqliteStore::open(directory.path()).unwrap();
    let error = SqliteStore::open(directory.path()).unwrap_err();
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    assert!(error.to_string().contains("another coordinator is using this state directory"));
    store.close().await;
    SqliteStore::open(directory.path()).unwrap();
}

#[tokio::test]
async fn the_files_are_for_the_owner_alone() {
    let directory = directory();
    let _store = filled(directory.path()).await;
    let mut files = 0;
    for entry in fs::read_dir(directory.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o077, 0, "{:?}", entry.path());
        files += 1;
    }
    // The database, its WAL, its shared memory, the lock.
    assert_eq!(files, 4);
}

#[tokio::test]
async fn a_newer_schema_is_refused_with_the_cure() {
    let directory = directory();
    filled(directory.path()).await.close().await;
    let connection = rusqlite::Connection::open(directory.path().join(FILE)).unwrap();
    connection.pragma_update(None, "user_version", 7).unwrap();
    drop(connection);
    let error = SqliteStore::open(directory.path()).unwrap_err();
    assert!(matches!(error, OpenError::Newer { found: 7, known: 1, .. }), "{error}");
    assert!(error.to_string().contains("install that version again"), "{error}");
}

#[tokio::test]
async fn a_database_of_something_else_is_left_alone() {
    let directory = directory();
    let connection = rusqlite::Connection::open(directory.path().join(FILE)).unwrap();
    connection.execute_batch("CREATE TABLE music (title TEXT)").unwrap();
    drop(connection);
    let before = fs::read(directory.path().join(FILE)).unwrap();
    let error = SqliteStore::open(directory.path()).unwrap_err();
    assert!(matches!(error, OpenError::NotOurs { .. }), "{error}");
    assert_eq!(fs::read(directory.path().join(FILE)).unwrap(), before);
}

#[tokio::test]
async fn a_file_that_is_no_database_is_named_corrupted() {
    let directory = directory();
    fs::write(directory.path().join(FILE), "hello, this is not SQLite".repeat(100)).unwrap();
    let error = SqliteStore::open(directory.path()).unwrap_err();
    assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains(FILE) && error.to_string().contains("backup"), "{error}");
}

/// Whatever single byte flips: either the damage is named, or it lies where nothing is and every entry is as written.
#[tokio::test]
async fn a_flipped_byte_is_never_served() {
    let directory = directory();
    let store = filled(directory.path()).await;
    let before = store.snapshot().await.unwrap();
    store.close().await;
    let path = directory.path().join(FILE);
    let good = fs::read(&path).unwrap();
    let (mut refused, mut harmless) = (0, 0);
    for offset in (0..good.len()).step_by(211) {
        let mut bad = good.clone();
        bad[offset] ^= 0x10;
        fs::write(&path, &bad).unwrap();
        match SqliteStore::open(directory.path()) {
            Ok(store) => {
                assert_eq!(store.snapshot().await.unwrap(), before, "offset {offset}");
                store.close().await;
                harmless += 1;
            }
            Err(error) => {
                assert!(error.to_string().contains(FILE), "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > harmless, "{refused} refused, {harmless} harmless");
}

#[tokio::test]
async fn a_missing_directory_is_named() {
    let error = SqliteStore::open(Path::new("/nonexistent/ringmesh")).unwrap_err();
    assert!(error.to_string().starts_with("/nonexistent/ringmesh/lock: "), "{error}");
}
