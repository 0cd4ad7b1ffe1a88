//! An answer that was granted to an API key: while it is open its connection is no stranger's, and it ends with the key.
//!
//! The body of an answer is asked for more only while its reader takes it, so it cannot look after itself: a task does, which lives as
//! long as the answer. It ends the connection when the key ends, and gives up its place when nobody takes the answer.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use tokio::sync::oneshot;
use tonic::{Status, body::Body};

use crate::{error::Refused, network::api_keys::Denied, server::Admission};

/// How long a reader has for the word that its key ended.
const LAST_WORD: Duration = Duration::from_secs(5);
/// Bytes that a connection takes at least while it takes an answer, in the time in which strangers have to prove something.
const PROGRESS: u64 = 16 << 10;

/// An answer that was granted to an API key.
pub(super) struct Granted {
    pub(super) body: Body,
    /// Told so far.
    pub(super) messages: usize,
    pub(super) grant: Grant,
    pub(super) taking: Taking,
}

pub(super) enum Grant {
    /// The key is good; says when it ends.
    Holds(oneshot::Receiver<Denied>),
    /// The key ended.
    Ended(Denied),
    /// The answer was ended by it.
    Cut,
}

/// What the reader of an answer does; the task ends when this is dropped.
pub(super) struct Taking {
    state: Arc<State>,
    _open: oneshot::Sender<()>,
}

#[derive(Default)]
struct State {
    /// How often it was asked for more.
    asked: AtomicU64,
    /// Whether there was nothing to give when it was asked last: it is not the reader who is waited for.
    idle: AtomicBool,
}

/// Looks after an answer: says when `end` comes, and keeps `admission` until then, or until nobody takes the answer.
pub(super) fn watch(
    end: impl Future<Output = Denied> + Send + 'static,
    admission: Admission,
) -> (oneshot::Receiver<Denied>, Taking) {
    let ((denied, told), (open, dropped)) = (oneshot::channel(), oneshot::channel());
    let state = Arc::<State>::default();
    let taking = Taking { state: state.clone(), _open: open };
    tokio::spawn(async move {
        let mut dropped = dropped;
        let mut admission = Some(admission);
        let mut end = std::pin::pin!(end);
        loop {
            let reads = async {
                match &admission {
                    Some(admission) => is_given_up(&state, admission).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = &mut dropped => return,
                () = reads => admission = None,
                reason = &mut end => {
                    // If it is gone, so is the answer.
                    denied.send(reason).ok();
                    break;
                }
            }
        }
        drop(tokio::time::timeout(LAST_WORD, dropped).await);
        if let Some(admission) = admission {
            admission.end();
        }
    });
    (told, taking)
}

/// Is ready once nobody takes the answer: it has something to give and is not asked for it, and the connection takes nothing else.
async fn is_given_up(state: &State, admission: &Admission) {
    let now = || (state.asked.load(Ordering::Relaxed), admission.written());
    let mut before = now();
    loop {
        tokio::time::sleep(admission.patience()).await;
        let after = now();
        let waits = !state.idle.load(Ordering::Relaxed) && after.0 == before.0;
        if waits && after.1.saturating_sub(before.1) < PROGRESS {
            return;
        }
        before = after;
    }
}

/// Only a stream has more than one message. The answer to a single request is not taken back: what was asked is done, and be it that
/// the key was revoked by itself.
const MESSAGES_OF_A_CALL: usize = 1;

impl Granted {
    /// Ends the answer, with word why.
    fn cut(&mut self, denied: Denied) -> Option<Result<Frame<Bytes>, Status>> {
        (self.body, self.grant) = (Body::empty(), Grant::Cut);
        let mut trailers = HeaderMap::new();
        let told = Status::from(Refused::Credential(denied)).add_header(&mut trailers);
        Some(told.map(|()| Frame::trailers(trailers)))
    }
}

impl http_body::Body for Granted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.taking.state.asked.fetch_add(1, Ordering::Relaxed);
        if let Grant::Holds(end) = &mut self.grant
            && let Poll::Ready(end) = Pin::new(end).poll(cx)
        {
            // Nobody watches any more: the coordinator goes down.
            self.grant = end.map_or(Grant::Cut, Grant::Ended);
        }
        let ended = match self.grant {
            Grant::Holds(_) => None,
            Grant::Ended(denied) if self.messages > MESSAGES_OF_A_CALL => {
                return Poll::Ready(self.cut(denied));
            }
            Grant::Ended(denied) => Some(denied),
            Grant::Cut => return Poll::Ready(None),
        };
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        self.taking.state.idle.store(frame.is_pending(), Ordering::Relaxed);
        match (frame, ended) {
            (Poll::Pending, Some(denied)) => Poll::Ready(self.cut(denied)),
            (Poll::Pending, None) => Poll::Pending,
            (Poll::Ready(frame), _) => {
                if matches!(&frame, Some(Ok(frame)) if frame.is_data()) {
                    self.messages = self.messages.saturating_add(1);
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.grant, Grant::Cut) || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
