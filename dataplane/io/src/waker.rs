//! Ends a turn from another thread: an eventfd in the ring or the poll set.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::sys;

/// Ends the current turn of the worker it belongs to, or makes the next one short. Clones wake the same worker.
#[derive(Clone, Debug)]
pub struct Waker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    event: File,
    /// Set by the first wake of a turn, so that the following ones cost no system call.
    pending: AtomicBool,
}

impl Waker {
    /// Creates a waker to give to a back end.
    ///
    /// # Errors
    ///
    /// When the process has no file descriptor left.
    pub fn new() -> io::Result<Self> {
        let event = File::from(sys::event_fd()?);
        Ok(Self { shared: Arc::new(Shared { event, pending: AtomicBool::new(false) }) })
    }

    /// Makes the worker call [`crate::Handler::wake`] soon, once for any number of wakes since the last call.
    ///
    /// What was put into a channel before `wake` is visible to the handler's `wake`.
    pub fn wake(&self) {
        if self.shared.pending.swap(true, Ordering::AcqRel) {
            return;
        }
        // The only failure is a counter at its maximum, and then the worker is awake already.
        let _ = (&self.shared.event).write(&1u64.to_ne_bytes());
    }

    /// Notes that the worker saw the wake. Call before looking at what was asked, so that nothing asked later is lost.
    pub(crate) fn seen(&self) {
        self.shared.pending.swap(false, Ordering::AcqRel);
    }

    /// Whether a wake waits to be seen.
    pub(crate) fn is_pending(&self) -> bool {
        self.shared.pending.load(Ordering::Acquire)
    }

    /// Empties the eventfd of a back end that has no ring to do so.
    pub(crate) fn drain(&self) {
        // Empty is an error of a non-blocking eventfd and means what we want.
        let _ = (&self.shared.event).read(&mut [0; 8]);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_wakes_are_one_until_seen() {
        let waker = Waker::new().unwrap();
        assert!(!waker.is_pending());
        waker.clone().wake();
        waker.wake();
        assert!(waker.is_pending());
        let mut count = [0; 8];
        assert_eq!((&waker.shared.event).read(&mut count).unwrap(), 8);
        assert_eq!(u64::from_ne_bytes(count), 1);
        waker.seen();
        waker.wake();
        waker.drain();
        assert_eq!((&waker.shared.event).read(&mut count).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
