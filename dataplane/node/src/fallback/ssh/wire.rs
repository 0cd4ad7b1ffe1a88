//! The bytes under an SSH connection: what russh writes waits here and never in russh, and the connection can be cut.
//!
//! The library's loop reads nothing while it waits for the socket to take what it has to write. Two ends that both have much to
//! send would so wait for each other until they time out. Here writing succeeds at once, into a buffer that is emptied
//! whenever the connection is polled, and it is the link's own writer that is held back, by [`Gate`], while the buffer is long.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use futures_util::task::AtomicWaker;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::oneshot,
};

/// More is not buffered: the peer announced a window that it does not serve.
const MOST: usize = 2 * 1024 * 1024;
/// While so much waits, the link writes nothing more.
const ENOUGH: usize = 64 * 1024;
/// The longest piece that a channel message carries: what lies in the library's own queue stays small.
const PIECE: usize = 16 * 1024;

/// Takes a transport apart into what russh gets, what ends it when it is dropped, and what tells how much of it waits.
pub(super) fn wire<S>(stream: S) -> (Wire<S>, Leash, Gate) {
    let (leash, cut) = oneshot::channel();
    let gate = Gate::default();
    let wire = Wire { stream, waiting: Vec::new(), start: 0, cut, is_cut: false, gate: gate.clone() };
    (wire, Leash { _cut: leash }, gate)
}

/// Cuts the connection when it is dropped.
#[derive(Debug)]
pub(super) struct Leash {
    _cut: oneshot::Sender<()>,
}

/// How much waits in a [`Wire`], for the one task that writes.
#[derive(Debug, Clone, Default)]
pub(super) struct Gate {
    shared: Arc<Level>,
}

#[derive(Debug, Default)]
struct Level {
    waiting: AtomicUsize,
    writer: AtomicWaker,
}

impl Gate {
    fn set(&self, waiting: usize) {
        let before = self.shared.waiting.swap(waiting, Ordering::AcqRel);
        if before >= ENOUGH && waiting < ENOUGH {
            self.shared.writer.wake();
        }
    }

    fn poll_open(&self, cx: &Context<'_>) -> Poll<()> {
        let open = || self.shared.waiting.load(Ordering::Acquire) < ENOUGH;
        if open() {
            return Poll::Ready(());
        }
        self.shared.writer.register(cx.waker());
        // It may have opened before the waker was in place.
        if open() { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// A transport whose writes never wait, within a bound. All its polls must come from one task.
#[derive(Debug)]
pub(super) struct Wire<S> {
    stream: S,
    waiting: Vec<u8>,
    /// What of `waiting` was written.
    start: usize,
    cut: oneshot::Receiver<()>,
    is_cut: bool,
    gate: Gate,
}

impl<S: AsyncWrite + Unpin> Wire<S> {
    /// Whether somebody dropped the leash; else that wakes the task.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        self.is_cut = self.is_cut || Pin::new(&mut self.cut).poll(cx).is_ready();
        if self.is_cut { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }

    /// Writes what waits as far as the stream takes it; ready when nothing is left.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.waiting.get(self.start..).filter(|rest| !rest.is_empty()) {
            let written = match Pin::new(&mut self.stream).poll_write(cx, rest) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => written,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.gate.set(self.waiting.len() - self.start);
                    return Poll::Pending;
                }
            };
            self.start += written;
        }
        self.start = 0;
        self.waiting.clear();
        self.waiting.shrink_to(ENOUGH);
        self.gate.set(0);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        if let Poll::Ready(result) = self.poll_drain(cx) {
            result?;
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        if let Poll::Ready(result) = self.poll_drain(cx) {
            result?;
        }
        let waiting = self.waiting.len() - self.start;
        if waiting >= MOST {
            return Poll::Pending;
        }
        // What was written is forgotten before the buffer has to grow for it.
        let start = std::mem::take(&mut self.start);
        self.waiting.drain(..start);
        let taken = buf.len().min(MOST - waiting);
        self.waiting.extend_from_slice(buf.get(..taken).unwrap_or_default());
        if let Poll::Ready(result) = self.poll_drain(cx) {
            result?;
        }
        Poll::Ready(Ok(taken))
    }

    /// What the library takes for flushed is on its way, and goes on with every poll.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        match self.poll_drain(cx) {
            Poll::Ready(result) => Poll::Ready(result),
            Poll::Pending => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A channel whose writer waits while much is buffered under it.
#[derive(Debug)]
pub(super) struct Gated<S> {
    stream: S,
    gate: Gate,
}

impl<S> Gated<S> {
    pub(super) fn new(stream: S, gate: Gate) -> Self {
        Self { stream, gate }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gated<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gated<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.gate.poll_open(cx));
        let piece = buf.get(..PIECE).unwrap_or(buf);
        Pin::new(&mut self.stream).poll_write(cx, piece)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
        time::timeout,
    };

    use super::*;

    const A_WHILE: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn writing_waits_for_nobody_up_to_the_bound_and_reading_empties_the_buffer() {
        let (near, mut far) = duplex(1000);
        let (mut wire, _leash, _gate) = wire(near);
        let all: Vec<u8> = (0..MOST + 1000).map(|index| (index * 7 % 251) as u8).collect();
        timeout(A_WHILE, wire.write_all(&all)).await.expect("it waited").unwrap();
        timeout(A_WHILE, wire.flush()).await.expect("it waited").unwrap();
        timeout(A_WHILE, wire.write_all(b"more")).await.expect_err("there is no bound");
        let reading = tokio::spawn(async move {
            let mut byte = [0; 1];
            let _ = wire.read(&mut byte).await;
        });
        let mut came = vec![0; all.len()];
        far.read_exact(&mut came).await.unwrap();
        assert!(came == all);
        reading.abort();
    }

    #[tokio::test]
    async fn the_writer_waits_at_the_gate_while_much_is_buffered() {
        let (near, mut far) = duplex(1000);
        let (mut wire, _leash, gate) = wire(near);
        let (inside, mut outside) = duplex(1 << 20);
        let mut gated = Gated::new(inside, gate);
        timeout(A_WHILE, gated.write_all(b"open")).await.expect("the gate is shut").unwrap();
        wire.write_all(&vec![1; ENOUGH + 2000]).await.unwrap();
        let mut writing = tokio::spawn(async move { gated.write_all(b"later").await });
        assert!(timeout(A_WHILE, &mut writing).await.is_err());
        let reading = tokio::spawn(async move {
            let mut byte = [0; 1];
            let _ = wire.read(&mut byte).await;
        });
        far.read_exact(&mut vec![0; 4000]).await.unwrap();
        writing.await.unwrap().unwrap();
        let mut came = [0; 9];
        outside.read_exact(&mut came).await.unwrap();
        assert_eq!(&came, b"openlater");
        reading.abort();
    }

    #[tokio::test]
    async fn a_cut_connection_fails_for_ever_and_wakes_who_waits() {
        let (near, _far) = duplex(1000);
        let (mut wire, leash, _gate) = wire(near);
        let waiting = tokio::spawn(async move {
            let result = wire.read_u8().await;
            (wire, result)
        });
        tokio::task::yield_now().await;
        drop(leash);
        let (mut wire, result) = timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap();
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        assert_eq!(wire.write(b"x").await.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        assert_eq!(wire.shutdown().await.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }
}
