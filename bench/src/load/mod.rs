//! The loads, all made by threads of this process on sockets that belong to the two namespaces: a socket stays in the
//! namespace it was opened in, whatever thread uses it.

pub(crate) mod batch;
pub(crate) mod calls;
pub(crate) mod pace;
pub(crate) mod ping;
pub(crate) mod tcp;
pub(crate) mod udp;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::cpu::{Snapshot, Usage};

/// How long a measurement takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    /// Load before anything is counted: slow start, first handshake, cold caches.
    pub(crate) warm_up: Duration,
    /// Load that counts.
    pub(crate) window: Duration,
}

/// What one counter did during the window, and what that cost.
#[derive(Clone, Debug)]
pub(crate) struct Windowed {
    /// The counter's growth.
    pub(crate) count: u64,
    /// The time in which it grew.
    pub(crate) elapsed: Duration,
    /// The box's CPU time from shortly before to shortly after.
    pub(crate) usage: Usage,
}

impl Windowed {
    /// Returns the counter's growth per second.
    pub(crate) fn rate(&self) -> f64 {
        self.count as f64 / self.elapsed.as_secs_f64()
    }
}

/// Reads `counter` at both ends of the window while a load runs, with the CPU's counters around it.
///
/// # Errors
/// When `/proc` cannot be read.
pub(crate) fn observe(timing: Timing, daemons: &[u32], counter: impl Fn() -> u64) -> Result<Windowed> {
    thread::sleep(timing.warm_up);
    let before = Snapshot::take()?;
    let (begin, first) = (Instant::now(), counter());
    thread::sleep(timing.window);
    let (last, elapsed) = (counter(), begin.elapsed());
    let usage = Snapshot::take()?.since(&before, daemons);
    Ok(Windowed { count: last - first, elapsed, usage })
}

/// Tells the load's threads to stop when it goes out of scope, whatever way its owner ends: a scope that waited for
/// threads nobody stops would wait for ever.
pub(crate) struct StopOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
