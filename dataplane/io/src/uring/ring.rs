//! The ring itself: set-up with what we rely on, one way to submit and wait, and refusals explained.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, Probe, opcode, squeue};

use super::completion::Operation;

/// Submission entries: the sends and writes of most turns. What is more is submitted on the way.
const SUBMISSIONS: u32 = 512;

/// Completion entries: each buffer of both rings, the endings of lasting operations, and failures. The kernel keeps more.
const COMPLETIONS: u32 = 1024;

/// How often a full queue is submitted for the sake of one operation.
const PUSH_TRIES: usize = 1000;

/// One completion, copied out of the ring.
#[derive(Clone, Copy, Debug)]
pub(super) struct Completed {
    pub(super) name: u64,
    pub(super) result: i32,
    pub(super) flags: u32,
}

impl Completed {
    /// The operation that this is about.
    ///
    /// # Panics
    ///
    /// When the name is none of ours.
    pub(super) fn operation(&self) -> Operation {
        Operation::parse(self.name).expect("invariant: the kernel returns the names it was given")
    }
}

/// A ring that only the thread which made it may use.
pub(super) struct Ring {
    inner: IoUring,
    enter_flags: EnterFlags,
    overflowed: u64,
    /// Keeps the ring from being sent to another thread.
    thread: std::marker::PhantomData<*const ()>,
}

impl Ring {
    /// Sets up a ring for the calling thread.
    pub(super) fn open() -> io::Result<Self> {
        Self::open_of(SUBMISSIONS, COMPLETIONS)
    }

    /// The same with so many places in the queues.
    pub(super) fn open_of(submissions: u32, completions: u32) -> io::Result<Self> {
        let inner = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_no_sqarray()
            .setup_cqsize(completions)
            .dontfork()
            .build(submissions)?;
        let mut probe = Probe::new();
        inner.submitter().register_probe(&mut probe)?;
        if !probe.is_supported(opcode::ReadMulti::CODE) || !inner.params().is_feature_submit_stable() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let mut enter_flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG;
        // Without it, waiting for packets would be shown as waiting for a disk.
        if inner.params().is_feature_no_iowait() {
            enter_flags |= EnterFlags::NO_IOWAIT;
        }
        Ok(Self { inner, enter_flags, overflowed: 0, thread: std::marker::PhantomData })
    }

    /// Registers the files that operations name by position.
    pub(super) fn register_files(&self, files: &[RawFd]) -> io::Result<()> {
        self.inner.submitter().register_files(files)
    }

    /// Lets go of the registered files, so that they close when the caller closes them.
    pub(super) fn unregister_files(&self) -> io::Result<()> {
        self.inner.submitter().unregister_files()
    }

    /// Registers a ring of buffers.
    ///
    /// # Safety
    ///
    /// `address` must be page aligned and hold `entries` buffer entries until the ring is gone.
    pub(super) unsafe fn register_buffers(
        &self,
        address: *const u8,
        entries: u16,
        group: u16,
    ) -> io::Result<()> {
        // SAFETY: the caller's promise is the one asked for.
        unsafe { self.inner.submitter().register_buf_ring_with_flags(address as u64, entries, group, 0) }
    }

    /// Queues an operation for the next [`Ring::enter`]; if there is no place in the queue, what is in it is submitted
    /// at once.
    ///
    /// # Safety
    ///
    /// What the operation points to must stay valid, and must not be written by us, until its (last) completion.
    ///
    /// # Panics
    ///
    /// When the kernel takes nothing of a full queue: it is out of memory, or the ring is broken.
    pub(super) unsafe fn push(&mut self, entry: &squeue::Entry) {
        for _ in 0..PUSH_TRIES {
            let mut queue = self.inner.submission();
            // SAFETY: the caller promises that the operation is valid until it completes.
            if unsafe { queue.push(entry) }.is_ok() {
                return;
            }
            drop(queue);
            // What went wrong shows at the next try, and at the next `enter`.
            let _ = self.enter(0, None);
        }
        panic!("io_uring takes nothing of what is queued");
    }

    /// Submits what is queued and waits for `want` completions, for at most `timeout`.
    ///
    /// Returns early without error on a signal and at the timeout. Gives how many operations the kernel took.
    pub(super) fn enter(&mut self, want: u32, timeout: Option<Duration>) -> io::Result<usize> {
        let queue = self.inner.submission();
        let queued = queue.len() as u32;
        self.overflowed += u64::from(queue.cq_overflow());
        drop(queue);
        let timespec = timeout.map(Timespec::from);
        let mut args = SubmitArgs::new();
        if let Some(timespec) = &timespec {
            args = args.timespec(timespec);
        }
        let submitter = self.inner.submitter();
        // SAFETY: the flags say that the argument is an extended one, which lives through the call, as does the time
        // it points to; what is queued was vouched for by whoever pushed it.
        let result = unsafe { submitter.enter(queued, want, self.enter_flags.bits(), Some(&args)) };
        match result {
            Ok(taken) => Ok(taken),
            // ETIME: the deadline. EINTR: a signal. EBUSY and EAGAIN: completions must be taken before more is
            // submitted, which is what the caller does next.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)
                ) =>
            {
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the kernel has taken everything that was queued, and holds no completion for which there was no room.
    pub(super) fn is_settled(&mut self) -> bool {
        let queue = self.inner.submission();
        queue.is_empty() && !queue.cq_overflow()
    }

    /// Whether `enter` would find something: a completion, or work of the kernel's that leads to one. No system call.
    pub(super) fn has_news(&mut self) -> bool {
        self.inner.submission().taskrun() || !self.inner.completion().is_empty()
    }

    /// How often more completions waited than their queue has room for, as seen when entering; the kernel keeps them until there
    /// is some.
    pub(super) const fn overflowed(&self) -> u64 {
        self.overflowed
    }

    /// The next completion that has arrived.
    pub(super) fn completed(&mut self) -> Option<Completed> {
        let entry = self.inner.completion().next()?;
        Some(Completed { name: entry.user_data(), result: entry.result(), flags: entry.flags() })
    }

    /// Asks the kernel to end every operation; their completions still have to be taken.
    pub(super) fn cancel_all(&self) -> io::Result<()> {
        self.inner.submitter().register_sync_cancel(None, io_uring::types::CancelBuilder::any())
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("enter_flags", &self.enter_flags).finish_non_exhaustive()
    }
}

/// A sentence about why there is no ring: what the kernel said, and what is likely behind it.
pub(crate) fn explain(error: &io::Error) -> String {
    let cause = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES | libc::ENOSYS) => {
            "io_uring refused: likely kernel.io_uring_disabled or seccomp"
        }
        Some(libc::EINVAL) => "io_uring of this kernel is too old: Linux 6.7 is needed",
        Some(libc::ENOMEM) => "io_uring refused: no memory, likely the limit of `ulimit -l`",
        _ => "io_uring failed",
    };
    format!("{cause} ({error})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_name_the_likely_cause() {
        let text = |code| explain(&io::Error::from_raw_os_error(code));
        assert!(text(libc::EPERM).contains("kernel.io_uring_disabled or seccomp"));
        assert!(text(libc::ENOSYS).contains("kernel.io_uring_disabled or seccomp"));
        assert!(text(libc::EINVAL).contains("Linux 6.7"));
        assert!(text(libc::ENOMEM).contains("ulimit -l"));
        assert!(text(libc::EMFILE).contains("open files"));
    }

    #[test]
    fn an_empty_ring_waits_no_longer_than_asked() {
        let mut ring = Ring::open().unwrap();
        let start = std::time::Instant::now();
        ring.enter(1, Some(Duration::from_millis(20))).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(20));
        assert!(ring.completed().is_none());
    }

    #[test]
    fn completions_above_what_their_queue_holds_are_counted_and_not_lost() {
        let mut ring = Ring::open_of(2, 2).unwrap();
        for round in 0..3 {
            for operation in 0..2 {
                let nothing = opcode::Nop::new().build().user_data(round * 2 + operation);
                // SAFETY: it points to nothing.
                unsafe { ring.push(&nothing) };
            }
            ring.enter(0, None).unwrap();
        }
        // Six completed, two have room.
        assert!(ring.overflowed() <= 1, "seen when entering: {}", ring.overflowed());
        let mut completed = Vec::new();
        while completed.len() < 6 {
            match ring.completed() {
                Some(done) => completed.push(done.name),
                None => drop(ring.enter(1, Some(Duration::from_secs(5))).unwrap()),
            }
        }
        completed.sort_unstable();
        assert_eq!(completed, (0..6).collect::<Vec<_>>());
        assert!(ring.overflowed() >= 1, "they waited for room");
        let all = ring.overflowed();
        ring.enter(0, None).unwrap();
        assert_eq!(ring.overflowed(), all, "nothing waits any more");
    }
}
