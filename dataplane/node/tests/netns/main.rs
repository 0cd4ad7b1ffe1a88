//! Real daemons with real TUN devices, each in network namespaces of its own, and the real coordinator: it works.

#![allow(
    unreachable_pub,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails by panicking, tells by what it printed, looks for one thing among many, and shares its parts"
)]

#[path = "../support/mod.rs"]
mod support;

mod acks;
mod amplification;
mod apart;
mod away;
mod canary;
mod debian;
mod dns;
mod fallback;
mod hostile_roads;
mod joining;
mod lost;
mod metrics;
mod moving;
mod names;
mod nat;
mod oracle;
mod own_relay;
mod pair;
mod policy;
mod policy_changes;
mod policy_denials;
mod probes;
mod removal;
mod roads;
mod roaming;
mod stock;
mod strangers;
mod world;

/// Not a test by itself: other tests run this program again to have a daemon that can be killed.
#[test]
fn be_a_daemon() {
    if let Ok(config) = std::env::var(support::process::BE_DAEMON) {
        support::process::be_daemon(&config);
    }
}

/// Not a test by itself: what `meshctl cleanup` does, as a process of its own.
#[test]
fn be_a_cleanup() {
    if let Ok(config) = std::env::var(names::BE_CLEANUP) {
        names::be_cleanup(&config);
    }
}

/// Not a test by itself either: the coordinator, as a process of its own.
#[test]
fn be_a_coordinator() {
    if let Ok(config) = std::env::var(apart::BE_COORDINATOR) {
        apart::be_coordinator(&config);
    }
}
