//! The seam between the worker, which never waits, and the tasks that pump streams, which do little else.
//!
//! ```text
//!   worker                    shared, one per link                  task
//!   Links::send ─► batch ─ flush ─► outgoing: whole frames ─────► LinkEnd::outgoing ─► stream
//!   Links::receive ◄────────────── arrivals: batches, events ◄─── LinkEnd::deliver  ◄─ stream
//! ```
//!
//! Outwards a link has two buffers that change places: the worker fills one while the task writes the other. What does not fit
//! into [`OUTGOING_BYTES`] is dropped, as a full socket buffer would drop it. Inwards a batch holds room, of its link and of all
//! links together, until the worker has done with it; a task that gets no room does not read on, and the stream's own flow
//! control slows the sender. In steady state buffers go round and nothing is allocated.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
};

use crossbeam::channel::{Receiver, Sender, unbounded};
use ringmesh_io::Waker;
use ringmesh_relay::frame;
use ringmesh_tunnel::{Carrier, Dial, Link, key::NodeId};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};

/// Bytes of frames that may wait for, or be on their way into, one stream.
pub(crate) const OUTGOING_BYTES: usize = 256 * 1024;
/// Bytes of received buffers of one link that may wait for the worker.
pub(crate) const INCOMING_BYTES_PER_LINK: usize = 256 * 1024;
/// Bytes of received buffers of all links that may wait for the worker.
pub(crate) const INCOMING_BYTES: usize = 8 * 1024 * 1024;
/// What a byte stream carries when there is nothing else to carry, so that either end notices the other's death. No message
/// has one byte.
pub(crate) const SIGN_OF_LIFE: [u8; 1] = [0];
/// What a received batch costs at least, so that tiny ones cannot be had for nothing.
const LEAST_CHARGE: usize = 1024;
/// Wishes of the tunnel that wait for the dialer; beyond it they fail at once.
pub(super) const DIALS: usize = 256;

/// Makes the worker's side and the tasks' side of all links, and the queue of what the tunnel wants dialled.
pub(crate) fn links(waker: Waker) -> (Links, Hub, mpsc::Receiver<DialOpen>) {
    let (posted, arrivals) = unbounded();
    let (dials, dials_in) = mpsc::channel(DIALS);
    let common = Arc::new(Common {
        posted,
        waker,
        next: AtomicU32::new(1),
        room: Arc::new(Semaphore::new(INCOMING_BYTES)),
    });
    let links = Links {
        arrivals,
        dials,
        hub: Hub { common: Arc::clone(&common) },
        outlets: BTreeMap::new(),
        closing: BTreeSet::new(),
        filled: Vec::new(),
    };
    (links, Hub { common }, dials_in)
}

/// A stream that the tunnel wants: [`Dial::Open`] as the dialer gets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DialOpen {
    pub(crate) peer: NodeId,
    pub(crate) candidate: u32,
    pub(crate) carrier: Carrier,
}

/// What comes to the worker, in the order in which it happened.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// For `Tunnel::link_opened`.
    Opened { peer: NodeId, candidate: u32, link: Link },
    /// For `Tunnel::link_failed`.
    Failed { peer: NodeId, candidate: u32 },
    /// Datagrams for `Tunnel::inbound`.
    Datagrams { link: Link, batch: Batch },
    /// For `Tunnel::link_closed`; nothing comes from this link any more. Not told of links that the tunnel never heard of: looking
    /// for them among all peers would let a stranger who connects and hangs up hold up the worker.
    Closed { link: Link },
}

/// Why a datagram did not go into a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SendError {
    /// The stream takes less than is sent.
    #[error("the link's queue is full")]
    Full,
    /// There is no such link, or no longer.
    #[error("there is no such link")]
    Unknown,
    /// Nothing, or more than fits into a frame.
    #[error("a frame cannot hold this datagram")]
    Unfit,
}

/// The worker's side. Nothing here waits; dropping it closes every link.
#[derive(Debug)]
pub(crate) struct Links {
    arrivals: Receiver<Posted>,
    dials: mpsc::Sender<DialOpen>,
    hub: Hub,
    outlets: BTreeMap<u32, Outlet>,
    /// Links that the tunnel had closed and whose tasks have not ended yet.
    closing: BTreeSet<u32>,
    /// The links to flush.
    filled: Vec<u32>,
}

/// The worker's end of one link.
#[derive(Debug)]
struct Outlet {
    shared: Arc<Shared>,
    /// Frames since the last flush.
    batch: Vec<u8>,
    /// Whether the tunnel may hold the link: it asked for it, or took something that came by it.
    known: bool,
    proven: bool,
}

impl Links {
    /// Puts a datagram into the link's batch. Call [`flush`](Self::flush) at the end of the turn.
    ///
    /// # Errors
    /// The datagram is dropped: the stream is too slow, or gone.
    pub(crate) fn send(&mut self, link: Link, datagram: &[u8]) -> Result<(), SendError> {
        let outlet = self.outlets.get_mut(&link.number).ok_or(SendError::Unknown)?;
        let length = frame::HEADER_LEN + datagram.len();
        if outlet.shared.waiting.load(Ordering::Acquire) + outlet.batch.len() + length > OUTGOING_BYTES {
            return Err(SendError::Full);
        }
        let first = outlet.batch.is_empty();
        frame::push(&mut outlet.batch, datagram).map_err(|_| SendError::Unfit)?;
        if first {
            self.filled.push(link.number);
        }
        Ok(())
    }

    /// Hands all batches to the tasks.
    pub(crate) fn flush(&mut self) {
        for number in self.filled.drain(..) {
            let Some(outlet) = self.outlets.get_mut(&number) else { continue };
            outlet.shared.hand_over(&mut outlet.batch);
        }
    }

    /// The next thing that happened. Call it until it gives nothing, in every `wake`.
    pub(crate) fn receive(&mut self) -> Option<Arrival> {
        loop {
            match self.arrivals.try_recv().ok()? {
                Posted::Attached { shared, dialled } => {
                    let link = shared.link;
                    let known = dialled.is_some();
                    let outlet = Outlet { shared, batch: Vec::new(), known, proven: false };
                    self.outlets.insert(link.number, outlet);
                    if let Some((peer, candidate)) = dialled {
                        return Some(Arrival::Opened { peer, candidate, link });
                    }
                }
                Posted::Failed { peer, candidate } => return Some(Arrival::Failed { peer, candidate }),
                Posted::Datagrams { link, batch } => {
                    // What came before the worker closed the link is of no use to anybody.
                    if self.outlets.contains_key(&link.number) {
                        return Some(Arrival::Datagrams { link, batch });
                    }
                }
                Posted::Closed { link } => {
                    let outlet = self.outlets.remove(&link.number);
                    let closing = self.closing.remove(&link.number);
                    if closing || outlet.is_some_and(|outlet| outlet.known) {
                        return Some(Arrival::Closed { link });
                    }
                }
            }
        }
    }

    /// Passes a wish of the tunnel on. A dial that cannot be queued fails at the next [`receive`](Self::receive).
    pub(crate) fn dial(&mut self, dial: Dial) {
        match dial {
            Dial::Open { peer, candidate, carrier } => {
                if self.dials.try_send(DialOpen { peer, candidate, carrier }).is_err() {
                    self.hub.failed(peer, candidate);
                }
            }
            Dial::Close { link } => {
                if let Some(outlet) = self.outlets.remove(&link.number) {
                    outlet.shared.set(Standing::Closed);
                    self.closing.insert(link.number);
                }
            }
        }
    }

    /// The tunnel took something that came by the link, so it is told when the link ends.
    pub(crate) fn used(&mut self, link: Link) {
        if let Some(outlet) = self.outlets.get_mut(&link.number) {
            outlet.known = true;
        }
    }

    /// Something authentic came by the link: it may stay. Costs nothing when said again.
    pub(crate) fn confirm(&mut self, link: Link) {
        if let Some(outlet) = self.outlets.get_mut(&link.number)
            && !outlet.proven
        {
            outlet.known = true;
            outlet.proven = true;
            outlet.shared.set(Standing::Proven);
        }
    }

    /// How many links there are.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.outlets.len()
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        for outlet in self.outlets.values() {
            outlet.shared.set(Standing::Closed);
        }
    }
}

/// What tasks tell the worker.
#[derive(Debug)]
enum Posted {
    Attached { shared: Arc<Shared>, dialled: Option<(NodeId, u32)> },
    Failed { peer: NodeId, candidate: u32 },
    Datagrams { link: Link, batch: Batch },
    Closed { link: Link },
}

#[derive(Debug)]
struct Common {
    posted: Sender<Posted>,
    waker: Waker,
    next: AtomicU32,
    room: Arc<Semaphore>,
}

/// The tasks' side: makes links. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Hub {
    common: Arc<Common>,
}

impl Hub {
    /// A link for a stream that somebody else opened.
    pub(crate) fn accept(&self, carrier: Carrier) -> LinkEnd {
        self.attach(carrier, None)
    }

    /// A link for a stream that the tunnel asked for; it hears of it as [`Arrival::Opened`].
    pub(crate) fn open(&self, asked: DialOpen) -> LinkEnd {
        self.attach(asked.carrier, Some((asked.peer, asked.candidate)))
    }

    /// A stream that the tunnel asked for cannot be had.
    pub(crate) fn failed(&self, peer: NodeId, candidate: u32) {
        self.post(Posted::Failed { peer, candidate });
    }

    fn attach(&self, carrier: Carrier, dialled: Option<(NodeId, u32)>) -> LinkEnd {
        // 32 bits outlast 136 years of one link a second.
        let link = Link { number: self.common.next.fetch_add(1, Ordering::Relaxed), carrier };
        let shared = Arc::new(Shared {
            link,
            outgoing: Mutex::new(Outgoing::default()),
            waiting: AtomicUsize::new(0),
            ready: Notify::new(),
            standing: watch::Sender::new(Standing::Unproven),
            spare: Mutex::new(None),
        });
        let gone = self.post(Posted::Attached { shared: Arc::clone(&shared), dialled });
        if !gone {
            shared.set(Standing::Closed);
        }
        LinkEnd {
            standing: shared.standing.subscribe(),
            shared,
            hub: self.clone(),
            room: Arc::new(Semaphore::new(INCOMING_BYTES_PER_LINK)),
        }
    }

    /// Whether the worker still listens.
    fn post(&self, posted: Posted) -> bool {
        let heard = self.common.posted.send(posted).is_ok();
        self.common.waker.wake();
        heard
    }
}

/// What is known of whoever is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    /// Nothing authentic came yet.
    Unproven,
    /// A session runs over it.
    Proven,
    /// The worker wants no more of it.
    Closed,
}

/// What both sides of one link hold.
#[derive(Debug)]
struct Shared {
    link: Link,
    outgoing: Mutex<Outgoing>,
    /// Bytes handed over and not yet written, mirrored from `outgoing` so that the worker need not lock to see them.
    waiting: AtomicUsize,
    ready: Notify,
    standing: watch::Sender<Standing>,
    /// A buffer that the worker has done with, for the task's next read.
    spare: Mutex<Option<Vec<u8>>>,
}

#[derive(Debug, Default)]
struct Outgoing {
    /// Whole frames.
    frames: Vec<u8>,
    /// Bytes that the task took and has not written yet.
    writing: usize,
}

impl Shared {
    fn outgoing(&self) -> MutexGuard<'_, Outgoing> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, standing: Standing) {
        self.standing.send_if_modified(|present| {
            let later = standing > *present;
            *present = (*present).max(standing);
            later
        });
    }

    /// Moves `batch` behind what waits already, and leaves it empty.
    fn hand_over(&self, batch: &mut Vec<u8>) {
        let mut outgoing = self.outgoing();
        if outgoing.frames.is_empty() {
            std::mem::swap(&mut outgoing.frames, batch);
        } else {
            outgoing.frames.extend_from_slice(batch);
        }
        batch.clear();
        self.waiting.store(outgoing.frames.len() + outgoing.writing, Ordering::Release);
        drop(outgoing);
        self.ready.notify_one();
    }
}

/// A task's end of one link. Dropping it tells the worker that the link is closed.
#[derive(Debug)]
pub(crate) struct LinkEnd {
    shared: Arc<Shared>,
    hub: Hub,
    room: Arc<Semaphore>,
    standing: watch::Receiver<Standing>,
}

impl LinkEnd {
    /// The link's name.
    pub(crate) fn link(&self) -> Link {
        self.shared.link
    }

    /// Waits for frames to write and puts them into `buffer`, which must be empty and whose memory the worker uses next.
    /// Until the next call they count as being written. Cancelling it loses nothing.
    pub(crate) async fn outgoing(&self, buffer: &mut Vec<u8>) {
        debug_assert!(buffer.is_empty(), "invariant: what was taken has been written");
        loop {
            {
                let mut outgoing = self.shared.outgoing();
                std::mem::swap(&mut outgoing.frames, buffer);
                outgoing.writing = buffer.len();
                self.shared.waiting.store(buffer.len(), Ordering::Release);
                if !buffer.is_empty() {
                    return;
                }
            }
            self.shared.ready.notified().await;
        }
    }

    /// An empty buffer with room for at least `capacity` bytes, of those that the worker has done with if it can be had.
    pub(crate) fn buffer(&self, capacity: usize) -> Vec<u8> {
        let spare = self.shared.spare.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut buffer = spare.filter(|spare| spare.capacity() <= 4 * capacity).unwrap_or_default();
        buffer.reserve_exact(capacity);
        buffer
    }

    /// Gives whole frames to the worker, once there is room for them.
    pub(crate) async fn deliver(&self, frames: Vec<u8>) {
        let charge = frames.capacity().clamp(LEAST_CHARGE, INCOMING_BYTES_PER_LINK);
        let charge = u32::try_from(charge).unwrap_or(u32::MAX);
        // Nobody closes these semaphores; were one closed, an unbounded queue would be the wrong answer.
        let Ok(own) = Arc::clone(&self.room).acquire_many_owned(charge).await else { return };
        let room = Arc::clone(&self.hub.common.room);
        let Ok(all) = room.acquire_many_owned(charge).await else { return };
        let batch = Batch { frames, shared: Arc::clone(&self.shared), _room: (own, all) };
        self.hub.post(Posted::Datagrams { link: self.link(), batch });
    }

    /// Waits until the worker wants the link closed.
    pub(crate) async fn closed(&self) {
        // An error means that the sender is gone, which `self` prevents.
        let _ = self.standing.clone().wait_for(|standing| *standing == Standing::Closed).await;
    }

    /// Waits until something authentic came by the link.
    pub(crate) async fn proven(&self) {
        let _ = self.standing.clone().wait_for(|standing| *standing >= Standing::Proven).await;
    }

    /// Whether a session runs over the link, which was not closed.
    pub(crate) fn has_session(&self) -> bool {
        *self.standing.borrow() == Standing::Proven
    }

    /// Whether something authentic came by the link.
    pub(crate) fn is_proven(&self) -> bool {
        *self.standing.borrow() >= Standing::Proven
    }
}

impl Drop for LinkEnd {
    fn drop(&mut self) {
        self.hub.post(Posted::Closed { link: self.link() });
    }
}

/// Datagrams that came by one link. It holds room until it is dropped.
#[derive(Debug)]
pub(crate) struct Batch {
    frames: Vec<u8>,
    shared: Arc<Shared>,
    _room: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

impl Batch {
    /// The datagrams, in order, to be opened in place. Signs of life are left out.
    pub(crate) fn datagrams(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let frames = frame::frames_mut(&mut self.frames);
        frames.map_while(Result::ok).filter(|datagram| *datagram != SIGN_OF_LIFE)
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.frames);
        buffer.clear();
        let mut spare = self.shared.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.as_ref().is_none_or(|spare| spare.capacity() < buffer.capacity()) {
            *spare = Some(buffer);
        }
    }
}
