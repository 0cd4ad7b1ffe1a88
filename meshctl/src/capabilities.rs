//! Rights given up for good: what a daemon needs no more once it has its ports.
//!
//! Capabilities belong to a thread, and a new thread has those of the one that starts it. So they are dropped while the process has
//! one thread, and nobody who takes a daemon over finds more than was kept: not in a thread, not by executing a program.

use std::fs;

use rustix::{
    io::Errno,
    thread::{
        CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
        remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
    },
};

use crate::failure::{Exit, Failure};

/// What a coordinator and a relay keep: nothing. Their sockets are open.
pub(crate) const NONE: CapabilitySet = CapabilitySet::empty();
/// What a node keeps: its device, addresses and routes come and go with its networks, and so do the addresses on which it answers
/// for names, at port 53.
pub(crate) const NETWORK: CapabilitySet = CapabilitySet::NET_ADMIN.union(CapabilitySet::NET_BIND_SERVICE);

/// Gives up, for good, every capability but those in `keep` that are there, and the way to any other: by programs with more rights
/// (`no_new_privs`), by what children inherit, and by the bounding set as far as this process may narrow it.
///
/// To be called before there is a second thread, which would keep its own; that there is one is an error.
pub(crate) fn keep_only(keep: CapabilitySet) -> Result<(), Failure> {
    let failed =
        |cause: String| Failure::new(Exit::General, "cannot give up rights that are not needed").cause(cause);
    let threads = fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads > 1 {
        return Err(failed(format!("{threads} threads run already")));
    }
    let refused = |what: &'static str| move |error: Errno| failed(format!("{what}: {error}"));
    set_no_new_privs(true).map_err(refused("no_new_privs"))?;
    clear_ambient_capability_set().map_err(refused("the ambient set"))?;
    narrow_bounding_set(keep).map_err(refused("the bounding set"))?;
    let permitted = capabilities(None).map_err(refused("capabilities"))?.permitted & keep;
    let sets = CapabilitySets { effective: permitted, permitted, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(refused("capabilities"))?;
    if capabilities(None).map_err(refused("capabilities"))? != sets {
        return Err(failed("the kernel still shows some".to_owned()));
    }
    Ok(())
}

/// Only who has `CAP_SETPCAP` may; a process without it was given a set by whoever started it (systemd's `CapabilityBoundingSet`).
fn narrow_bounding_set(keep: CapabilitySet) -> Result<(), Errno> {
    // Beyond those that have a name here, up to the last that the kernel knows.
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if keep.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::PERM) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
