//! What every pump of a stream keeps to, whatever the stream is made of.

use std::{io, time::Duration};

use ringmesh_relay::frame::{FrameError, MAX_MESSAGE_LEN};
use tokio::{net::TcpStream, time::timeout};
use tracing::debug;

use super::queue::LinkEnd;

/// A link on which nothing came for so long is closed.
pub(super) const QUIET: Duration = Duration::from_secs(60);
/// A side that had nothing to send for so long shows that it lives.
pub(super) const SIGN_OF_LIFE_AFTER: Duration = Duration::from_secs(20);
/// A stream that did not take [`PIECE`] bytes in so long is closed: its reader is stuck, or too slow to be of use.
pub(super) const STALLED: Duration = Duration::from_secs(10);
/// Bytes written at a time.
pub(super) const PIECE: usize = MAX_MESSAGE_LEN;
/// Time in which a stream that was accepted must bring something authentic.
pub(super) const PROOF: Duration = Duration::from_secs(10);
/// Bytes that a stream may bring before anything authentic. A session that moves here may send at full speed before the worker
/// has looked at its first datagram; a stranger gets no further with as much.
pub(super) const UNPROVEN_BYTES: usize = 1024 * 1024;
/// Bytes in the kernel that TCP has not sent yet. More would only make every datagram later, and inner TCP would see seconds
/// of delay where it should see loss.
const UNSENT: u32 = 128 * 1024;

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ended {
    #[error("it was not needed any more")]
    Closed,
    #[error("the other side closed it")]
    Eof,
    #[error("nothing came for {} s", QUIET.as_secs())]
    Quiet,
    #[error("it took nothing for {} s", STALLED.as_secs())]
    Stalled,
    #[error("nothing authentic came in {} s", PROOF.as_secs())]
    Unproven,
    #[error("{UNPROVEN_BYTES} bytes came and nothing authentic")]
    Flood,
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Who opened the stream, and so who has to prove something first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opened {
    /// This node.
    Here,
    /// Somebody.
    There,
}

/// Runs a pump until it ends, the worker closes the link, or a stranger's time is up.
pub(super) async fn guard(end: &LinkEnd, opened: Opened, pump: impl Future<Output = Ended>) -> Ended {
    let unproven = async {
        match opened {
            Opened::Here => std::future::pending().await,
            Opened::There if timeout(PROOF, end.proven()).await.is_err() => {}
            Opened::There => std::future::pending().await,
        }
    };
    let ended = tokio::select! {
        ended = pump => ended,
        () = end.closed() => Ended::Closed,
        () = unproven => Ended::Unproven,
    };
    debug!(link = %end.link(), why = %ended, "a link ended");
    ended
}

/// Counts what a stranger sends.
#[derive(Debug)]
pub(super) struct Allowance {
    left: Option<usize>,
}

impl Allowance {
    pub(super) fn new(opened: Opened) -> Self {
        Self { left: (opened == Opened::There).then_some(UNPROVEN_BYTES) }
    }

    /// Takes `bytes` off, unless the link is proven.
    pub(super) fn spend(&mut self, bytes: usize, end: &LinkEnd) -> Result<(), Ended> {
        if let Some(left) = &mut self.left {
            if end.is_proven() {
                self.left = None;
            } else {
                *left = left.checked_sub(bytes).ok_or(Ended::Flood)?;
            }
        }
        Ok(())
    }
}

/// Something must be written in time.
pub(super) async fn in_time<T>(write: impl Future<Output = io::Result<T>>) -> Result<T, Ended> {
    match timeout(STALLED, write).await {
        Ok(written) => Ok(written?),
        Err(_) => Err(Ended::Stalled),
    }
}

/// Makes TCP send at once and keep little unsent.
pub(super) fn prepare(tcp: &TcpStream) {
    // Failing only costs latency.
    let _ = tcp.set_nodelay(true);
    let _ = socket2::SockRef::from(tcp).set_tcp_notsent_lowat(UNSENT);
}
