//! A node daemon on its own, with a real TUN device, against a coordinator that does as the test tells it.

#![allow(
    unreachable_pub,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails by panicking, tells by what it printed, looks for one thing among many, and shares its parts"
)]

#[path = "../support/mod.rs"]
mod support;

mod canary;
mod filter;
mod host;
mod joining;
mod keeping;
mod refusals;
mod restart;
mod stream;

use ringmesh_proto::control::Reason;
use tonic::Status;
use tonic_types::StatusExt as _;

/// The reason in a refusal of ours.
fn reason(status: &Status) -> Reason {
    let info = status.get_details_error_info().expect("a refusal of ours has a reason");
    assert_eq!(info.domain, "ringmesh");
    Reason::from_str_name(&info.reason).expect("the reason is in the list")
}

/// Whether this network namespace has an interface.
fn has_interface(name: &str) -> bool {
    std::path::Path::new("/proc/sys/net/ipv4/conf").join(name).exists()
}

/// Not a test by itself: other tests run this program again to have a daemon that can be looked at from outside.
#[test]
fn be_a_daemon() {
    if let Ok(config) = std::env::var(support::process::BE_DAEMON) {
        support::process::be_daemon(&config);
    }
}
