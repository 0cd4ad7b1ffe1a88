//! A road between two addresses that loses, delays, doubles, reorders and alters datagrams, the same for the same seed.
//!
//! It is a UDP proxy on a host of the lab, since not every kernel has netem. Clients send to its address, and what the road
//! lets through goes on to the target from a socket of its own for each client, so that answers find their way back. With
//! [`Host::divert_udp`](crate::Host::divert_udp) on a router the clients need not know of it.
//!
//! The files: what becomes of a datagram (`road`), by which chance (`random`), when it is let go (`queue`).

mod queue;
mod random;
mod road;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, PipeReader, PipeWriter},
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use crate::{error::LabError, host::Host};

use self::queue::Queue;
pub use self::road::{Fate, Fates, Road};

/// Clients that a proxy serves at most; what others send is lost.
pub const MAX_CLIENTS: usize = 64;
/// The longest datagram there can be.
const MAX_DATAGRAM: usize = 65_535;
/// Datagrams taken from one socket before the others have their turn.
const BATCH: usize = 64;
/// Datagrams whose fates a trace holds; the later ones are not told.
const MAX_TRACED: usize = 100_000;

/// Both directions of a road.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Roads {
    /// From clients to the target.
    pub there: Road,
    /// From the target to clients.
    pub back: Road,
}

impl Roads {
    /// The same road in both directions.
    #[must_use]
    pub fn both(road: Road) -> Self {
        Self { there: road, back: road }
    }
}

/// What became of the datagrams of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Datagrams that came in.
    pub received: u64,
    /// Datagrams that went out, twins included.
    pub sent: u64,
    /// Datagrams lost, whether by the road or for want of room.
    pub lost: u64,
    /// Datagrams sent twice.
    pub doubled: u64,
    /// Datagrams held back.
    pub held_back: u64,
    /// Datagrams with a bit turned over.
    pub corrupted: u64,
}

/// A running proxy; it ends when it is dropped.
#[derive(Debug)]
pub struct Impair {
    address: SocketAddr,
    shared: Arc<Shared>,
    leash: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    roads: Roads,
    counters: [Counters; 2],
    trace: Option<Vec<(Direction, usize, Fate)>>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which way a datagram goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    There,
    Back,
}

impl Impair {
    /// Starts a proxy on `host` that listens at `at` (port 0: any) and passes on to `target`.
    ///
    /// `seed` decides everything that is left to chance; the directions do not influence each other.
    ///
    /// # Errors
    /// [`LabError::System`] if the address cannot be listened at.
    pub fn start(
        host: &Host,
        at: SocketAddr,
        target: SocketAddr,
        roads: Roads,
        seed: u64,
    ) -> Result<Self, LabError> {
        let what = format!("start an impaired road from {at} to {target} on {}", host.name());
        let failed = |error: io::Error| LabError::system(what, error);
        let started = host.enter(|| {
            let front = UdpSocket::bind(at)?;
            front.set_nonblocking(true)?;
            let address = front.local_addr()?;
            let (held, leash) = io::pipe()?;
            let shared = Arc::new(Shared::default());
            shared.state().roads = roads;
            let proxy = Proxy::new(front, target, seed, Arc::clone(&shared));
            // It inherits this thread's namespaces, in which it opens a socket for each client.
            let thread = thread::Builder::new().name("impair".to_owned()).spawn(move || proxy.run(&held))?;
            Ok(Self { address, shared, leash: Some(leash), thread: Some(thread) })
        })?;
        started.map_err(failed)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the roads for datagrams that come from now on; chance goes on where it was.
    pub fn set(&self, roads: Roads) {
        self.shared.state().roads = roads;
    }

    /// What became of datagrams so far: from clients to the target, and back.
    #[must_use]
    pub fn counters(&self) -> [Counters; 2] {
        self.shared.state().counters
    }

    /// Begins to write down what becomes of each datagram, at most the next 100,000.
    pub fn trace(&self) {
        self.shared.state().trace = Some(Vec::new());
    }

    /// What was written down since [`Impair::trace`]: a line for each datagram, with its way, length and fate.
    #[must_use]
    pub fn traced(&self) -> String {
        let mut text = String::new();
        for (direction, length, fate) in self.shared.state().trace.iter().flatten() {
            let way = match direction {
                Direction::There => "there",
                Direction::Back => "back",
            };
            let _ = match fate.after {
                None => writeln!(text, "{way} {length} lost"),
                Some(after) => writeln!(
                    text,
                    "{way} {length} after {} us{}{}{}",
                    after.as_micros(),
                    if fate.held_back { ", held back" } else { "" },
                    if fate.twice { ", twice" } else { "" },
                    if fate.flip.is_some() { ", corrupted" } else { "" },
                ),
            };
        }
        text
    }
}

impl Drop for Impair {
    fn drop(&mut self) {
        drop(self.leash.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The thread's own part.
struct Proxy {
    front: UdpSocket,
    target: SocketAddr,
    /// Each client's socket towards the target; the place is the client's number.
    clients: Vec<(SocketAddr, UdpSocket)>,
    numbers: BTreeMap<SocketAddr, usize>,
    there: Way,
    back: Way,
    shared: Arc<Shared>,
}

/// One direction: what is decided, and what is on its way.
struct Way {
    direction: Direction,
    fates: Fates,
    queue: Queue,
}

impl Way {
    fn new(direction: Direction, seed: u64) -> Self {
        Self { direction, fates: Fates::new(seed), queue: Queue::default() }
    }

    fn take(&mut self, client: usize, datagram: &[u8], shared: &Shared, now: Instant) {
        let mut state = shared.state();
        let road = match self.direction {
            Direction::There => state.roads.there,
            Direction::Back => state.roads.back,
        };
        let fate = self.fates.next(&road.for_datagram(datagram));
        let queued = self.queue.push(client, datagram, fate, now);
        let counters = &mut state.counters[self.direction as usize];
        counters.received += 1;
        counters.lost += u64::from(queued == 0);
        counters.doubled += u64::from(queued == 2);
        counters.held_back += u64::from(queued > 0 && fate.held_back);
        counters.corrupted += u64::from(queued > 0 && fate.flip.is_some());
        if let Some(trace) = &mut state.trace
            && trace.len() < MAX_TRACED
        {
            trace.push((self.direction, datagram.len(), fate));
        }
    }
}

impl Proxy {
    fn new(front: UdpSocket, target: SocketAddr, seed: u64, shared: Arc<Shared>) -> Self {
        let (there, back) = (Way::new(Direction::There, seed), Way::new(Direction::Back, !seed));
        Self { front, target, clients: Vec::new(), numbers: BTreeMap::new(), there, back, shared }
    }

    fn run(mut self, leash: &PipeReader) {
        let mut buffer = vec![0; MAX_DATAGRAM];
        loop {
            let now = Instant::now();
            self.send_due(now);
            let wait = [&self.there, &self.back].into_iter().filter_map(|way| way.queue.wait(now)).min();
            let Ok(ended) = self.wait(leash, wait) else { return };
            if ended {
                return;
            }
            self.receive_front(&mut buffer);
            self.receive_back(&mut buffer);
        }
    }

    /// Waits until something comes or is due; answers whether the proxy is to end.
    fn wait(&self, leash: &PipeReader, wait: Option<Duration>) -> nix::Result<bool> {
        let mut fds = vec![
            PollFd::new(leash.as_fd(), PollFlags::empty()),
            PollFd::new(self.front.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(self.clients.iter().map(|(_, socket)| PollFd::new(socket.as_fd(), PollFlags::POLLIN)));
        match ppoll(&mut fds, wait.map(TimeSpec::from), None) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
        Ok(fds.first().and_then(PollFd::any).unwrap_or(true))
    }

    fn receive_front(&mut self, buffer: &mut [u8]) {
        for _ in 0..BATCH {
            // An error is an earlier datagram's that could not be delivered: the road has no use for it.
            let Ok((length, client)) = self.front.recv_from(buffer) else { return };
            if let Some(number) = self.number_of(client) {
                self.there.take(number, &buffer[..length], &self.shared, Instant::now());
            } else {
                let mut state = self.shared.state();
                let counters = &mut state.counters[Direction::There as usize];
                counters.received += 1;
                counters.lost += 1;
            }
        }
    }

    fn receive_back(&mut self, buffer: &mut [u8]) {
        for (number, (_, socket)) in self.clients.iter().enumerate() {
            for _ in 0..BATCH {
                let Ok(length) = socket.recv(buffer) else { break };
                self.back.take(number, &buffer[..length], &self.shared, Instant::now());
            }
        }
    }

    fn send_due(&mut self, now: Instant) {
        let mut sent = [0, 0];
        while let Some((client, datagram)) = self.there.queue.pop(now) {
            sent[0] += u64::from(self.clients[client].1.send(&datagram).is_ok());
        }
        while let Some((client, datagram)) = self.back.queue.pop(now) {
            sent[1] += u64::from(self.front.send_to(&datagram, self.clients[client].0).is_ok());
        }
        if sent != [0, 0] {
            let mut state = self.shared.state();
            state.counters[0].sent += sent[0];
            state.counters[1].sent += sent[1];
        }
    }

    /// The number of a client, who gets one if there is room.
    fn number_of(&mut self, client: SocketAddr) -> Option<usize> {
        if let Some(number) = self.numbers.get(&client) {
            return Some(*number);
        }
        if self.clients.len() == MAX_CLIENTS {
            return None;
        }
        let any = if self.target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).ok()?;
        socket.connect(self.target).ok()?;
        socket.set_nonblocking(true).ok()?;
        self.clients.push((client, socket));
        let number = self.clients.len() - 1;
        self.numbers.insert(client, number);
        Some(number)
    }
}
