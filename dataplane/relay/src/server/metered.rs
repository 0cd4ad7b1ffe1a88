//! What strangers may make the server hold of messages that are not whole yet.
//!
//! A message may be 64 KiB long, and its beginning has to be kept until it is whole. Before a stream is proven that is more than
//! a stranger is worth, a thousand times over; so beyond a little that is each stream's own, all unproven ones share a budget.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of an unfinished message that each unproven stream may have: a handshake and some notices, many times over.
const OWN: usize = 4 << 10;
/// Bytes beyond that of all unproven streams together.
const SHARED: usize = 4 << 20;

/// What unproven streams have taken of the bytes that they share.
#[derive(Debug, Clone, Default)]
pub(super) struct Budget(Rc<Cell<usize>>);

/// A stream whose unfinished message is counted until it is proven.
#[derive(Debug)]
pub(super) struct Metered<S> {
    stream: S,
    budget: Budget,
    /// Bytes since the last whole message.
    unfinished: usize,
    /// Bytes taken of the shared budget.
    charged: usize,
    proven: bool,
}

impl<S> Metered<S> {
    pub(super) fn new(stream: S, budget: Budget) -> Self {
        Self { stream, budget, unfinished: 0, charged: 0, proven: false }
    }

    /// A message is whole: what was kept of it is gone.
    pub(super) fn message_ended(&mut self) {
        self.unfinished = 0;
        self.budget.0.set(self.budget.0.get() - std::mem::take(&mut self.charged));
    }

    /// From now on nothing is counted.
    pub(super) fn prove(&mut self) {
        self.message_ended();
        self.proven = true;
    }

    /// Counts what was read. `false`: there is no room for it.
    fn count(&mut self, bytes: usize) -> bool {
        if self.proven {
            return true;
        }
        self.unfinished += bytes;
        let over = self.unfinished.saturating_sub(OWN) - self.charged;
        let used = self.budget.0.get() + over;
        if used > SHARED {
            return false;
        }
        self.budget.0.set(used);
        self.charged += over;
        true
    }
}

impl<S> Drop for Metered<S> {
    fn drop(&mut self) {
        self.message_ended();
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let fits = self.count(buffer.filled().len() - before);
        let error = || io::Error::new(io::ErrorKind::QuotaExceeded, "unproven streams bring too much");
        Poll::Ready(if fits { Ok(()) } else { Err(error()) })
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unproven_streams_share_a_budget_and_give_it_back() {
        let budget = Budget::default();
        let most = SHARED / (60 << 10);
        let mut streams: Vec<_> = (0..=most).map(|_| Metered::new((), budget.clone())).collect();
        let kept: Vec<_> = streams.iter_mut().map(|stream| stream.count(OWN + (60 << 10))).collect();
        assert_eq!(kept.iter().filter(|&&kept| kept).count(), most);
        assert!(!kept[most], "the last");
        let mut small = Metered::new((), budget.clone());
        assert!(small.count(OWN), "a little is each one's own");
        small.message_ended();
        assert!(small.count(OWN), "message by message");

        streams[0].message_ended();
        let mut late = Metered::new((), budget.clone());
        assert!(late.count(60 << 10));
        streams[1].prove();
        assert!(streams[1].count(10 << 20), "a member is not counted");
        drop((streams, late, small));
        assert_eq!(budget.0.get(), 0);
    }
}
