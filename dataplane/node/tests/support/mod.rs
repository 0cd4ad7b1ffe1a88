//! What several test programs share: a network's keys in one hand, a coordinator that does as it is told, a daemon to test.
#![allow(dead_code, unreachable_pub, reason = "each test program uses its part")]

pub mod again;
pub mod authority;
pub mod coordinator;
pub mod daemon;
pub mod process;

/// Runs a test on a runtime of its own; the body of [`ringmesh_lab::in_sandbox`], which wants to be called by the test itself.
pub fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(test);
}
