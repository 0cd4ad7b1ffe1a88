//! The commands, one module each.

pub(crate) mod cleanup;
pub(crate) mod coordinator;
pub(crate) mod demo;
pub(crate) mod dns;
pub(crate) mod events;
pub(crate) mod filter;
pub(crate) mod installed;
pub(crate) mod join;
pub(crate) mod key;
pub(crate) mod leave;
pub(crate) mod network;
pub(crate) mod node;
pub(crate) mod nodes;
pub(crate) mod ping;
pub(crate) mod policy;
pub(crate) mod policy_file;
pub(crate) mod reference;
pub(crate) mod relay;
pub(crate) mod service;
pub(crate) mod status;
pub(crate) mod token;
pub(crate) mod trace;
pub(crate) mod version;
pub(crate) mod wait;
pub(crate) mod why;

use crate::failure::{Exit, Failure};

/// Runs a client command to its end. One thread is enough for a question and its answer.
pub(crate) fn block_on<T>(command: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(no_runtime)?.block_on(command)
}

/// Runs a daemon to its end.
pub(crate) fn block_on_threads<T>(daemon: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(no_runtime)?.block_on(daemon)
}

fn no_runtime(error: std::io::Error) -> Failure {
    Failure::new(Exit::General, "cannot start the runtime").cause(error.to_string())
}
