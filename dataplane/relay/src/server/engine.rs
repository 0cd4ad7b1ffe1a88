//! What the server's one thread owns: the networks, the sockets, and the streams' queues.
//!
//! A datagram's way is a chain of calls, from the socket or stream it came by to the train or queue it leaves in; nothing
//! waits in between and nothing is allocated for it.

use std::collections::BTreeMap;
use std::task::Waker;
use std::time::{Duration, Instant};

use crossbeam::channel::Sender;
use ringmesh_tunnel::key::{NetworkId, PublicKey};
use ringmesh_tunnel::message::{INITIATION_LEN, MAX_OVERHEAD, receiver_worker};
use ringmesh_tunnel::{DropReason, Hop, Job, JobDone, Link, NoRandomness, Now, PeerConfig, Random, relayed};

use super::handshakes::Life;
use super::link::{Chunk, Links};
use super::report::{NetworkReport, Report};
use super::udp::{For, Outbox, Sockets};
use super::{Limits, StartError};
use crate::channels::network_of;
use crate::drops::{Dropped, RelayDrop, RelayDrops};
use crate::frame::{FrameError, frames_mut};
use crate::rate::{Limiter, Rates};
use crate::relay::{Relay, RelayEvent, Verdict};

/// Networks on one port: as many as a session's index has numbers for.
pub const MAX_NETWORKS: usize = 64;
/// Bytes of a datagram of the relay's own.
const OWN_DATAGRAM: usize = 2048 + MAX_OVERHEAD;
/// Without anything due, the loop looks about this often.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What became of a datagram, as far as whoever brought it is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// It was passed on, or dropped.
    Gone,
    /// A network's tunnel took it, and may remember where it came from. It proves nothing.
    Consumed(u8),
    /// It was a member's of this network, authentic and new.
    Heard(u8),
}

struct Network {
    id: NetworkId,
    key: PublicKey,
    life: Life,
    relay: Relay,
}

/// Everything but the tasks.
pub(super) struct Engine {
    networks: Vec<Option<Network>>,
    by_id: BTreeMap<NetworkId, u8>,
    lives: Life,
    limiter: Limiter,
    pub(super) sockets: std::rc::Rc<Sockets>,
    outbox: Outbox,
    links: Links,
    jobs: Sender<(Life, Job)>,
    /// Of datagrams for no network that is here.
    drops: RelayDrops,
    /// Networks that may have something to say, a bit each.
    stirred: u64,
    /// When the loop will look at deadlines.
    armed: Instant,
    /// Ends the loop's sleep.
    pub(super) earlier: std::rc::Rc<tokio::sync::Notify>,
    scratch: Vec<u8>,
}

impl Engine {
    pub(super) fn new(
        sockets: std::rc::Rc<Sockets>,
        rates: Rates,
        limits: Limits,
        jobs: Sender<(Life, Job)>,
    ) -> Self {
        let now = Instant::now();
        Self {
            networks: (0..MAX_NETWORKS).map(|_| None).collect(),
            by_id: BTreeMap::new(),
            lives: 0,
            limiter: Limiter::new(rates, now),
            sockets,
            outbox: Outbox::new(),
            links: Links::new(limits),
            jobs,
            drops: RelayDrops::default(),
            stirred: 0,
            armed: now,
            earlier: std::rc::Rc::default(),
            scratch: Vec::new(),
        }
    }

    /// Takes a network's members; begins with the network, or begins anew with it, if need be. Returns its number, and
    /// which life of that number it is.
    pub(super) fn apply(
        &mut self,
        id: NetworkId,
        key: PublicKey,
        peers: &[PeerConfig],
        now: Now,
    ) -> Result<(u8, Life), StartError> {
        let known = self.by_id.get(&id).copied();
        if let Some(worker) = known
            && let Some(network) = &mut self.networks[usize::from(worker)]
            && network.key == key
        {
            let gone = network.relay.apply(peers, &mut self.limiter, now);
            self.links.cut_owned(worker, &gone);
            self.stirred |= 1 << worker;
            return Ok((worker, network.life));
        }
        self.remove(id);
        let free = self.networks.iter().position(Option::is_none).ok_or(StartError::TooManyNetworks)?;
        let worker = free as u8;
        self.lives += 1;
        let relay = Relay::new(worker, key, Random::system(), now);
        let mut relay = relay.map_err(|NoRandomness| StartError::NoRandomness)?;
        relay.apply(peers, &mut self.limiter, now);
        self.networks[free] = Some(Network { id, key, life: self.lives, relay });
        self.by_id.insert(id, worker);
        self.stirred |= 1 << worker;
        Ok((worker, self.lives))
    }

    /// Forgets a network, its sessions and channels.
    pub(super) fn remove(&mut self, id: NetworkId) {
        let Some(worker) = self.by_id.remove(&id) else { return };
        if let Some(network) = self.networks[usize::from(worker)].take() {
            network.relay.close(&mut self.limiter);
        }
        self.links.cut_network(worker);
    }

    /// Takes a datagram and sends it on, if it is to go anywhere.
    pub(super) fn datagram(&mut self, datagram: &mut [u8], from: Hop, now: Now) -> Taken {
        let number = relayed::parse(datagram).map(network_of).or_else(|| receiver_worker(datagram));
        let Some(worker) = number else { return self.initiation(datagram, from, now) };
        let Some(Some(network)) = self.networks.get_mut(usize::from(worker)) else {
            self.drops.add(RelayDrop::UnknownNetwork, 1);
            return Taken::Gone;
        };
        match network.relay.handle_datagram(datagram, from, &mut self.limiter, now) {
            Ok(Verdict::Forward { to, receiver }) => {
                self.send(datagram, to, Some((worker, receiver)), now);
                Taken::Gone
            }
            Ok(Verdict::Consumed) => {
                self.stirred |= 1 << worker;
                Taken::Consumed(worker)
            }
            Ok(Verdict::Heard) | Err(Dropped::Relay(RelayDrop::PlainPacket)) => {
                self.stirred |= 1 << worker;
                Taken::Heard(worker)
            }
            Err(_) => Taken::Gone,
        }
    }

    /// An initiation says in the clear neither who sends it nor to which network; its first MAC fits one network's key.
    fn initiation(&mut self, datagram: &mut [u8], from: Hop, now: Now) -> Taken {
        if datagram.len() != INITIATION_LEN || datagram.first() != Some(&1) {
            self.drops.add(RelayDrop::UnknownNetwork, 1);
            return Taken::Gone;
        }
        for (worker, network) in self.networks.iter_mut().enumerate() {
            let Some(network) = network else { continue };
            match network.relay.handle_datagram(datagram, from, &mut self.limiter, now) {
                Err(Dropped::Session(DropReason::BadMac1)) => {}
                _ => {
                    self.stirred |= 1 << worker;
                    return Taken::Consumed(worker as u8);
                }
            }
        }
        Taken::Gone
    }

    fn send(&mut self, datagram: &[u8], to: Hop, receiver: For, now: Now) {
        match to {
            Hop::Udp(to) => {
                self.outbox.push(&self.sockets, to, datagram, receiver);
                self.count_failed();
            }
            Hop::Link(link) => {
                if let Err(reason) = self.links.push(link, datagram, now.monotonic)
                    && let Some((worker, receiver)) = receiver
                    && let Some(Some(network)) = self.networks.get_mut(usize::from(worker))
                {
                    network.relay.not_sent(receiver, datagram.len(), reason);
                }
            }
        }
    }

    /// Sends what waits in trains.
    pub(super) fn flush(&mut self) {
        self.outbox.flush(&self.sockets);
        self.count_failed();
    }

    fn count_failed(&mut self) {
        for (worker, receiver, bytes) in self.outbox.failed() {
            if let Some(Some(network)) = self.networks.get_mut(usize::from(worker)) {
                network.relay.not_sent(receiver, bytes, RelayDrop::SendFailed);
            }
        }
    }

    /// Takes one WebSocket message of a stream.
    pub(super) fn message(&mut self, link: Link, message: &[u8], now: Now) -> Result<(), FrameError> {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        scratch.extend_from_slice(message);
        let mut result = Ok(());
        for frame in frames_mut(&mut scratch) {
            match frame {
                Ok(datagram) => match self.datagram(datagram, Hop::Link(link), now) {
                    Taken::Gone => {}
                    Taken::Consumed(worker) => self.links.touched(link, worker),
                    Taken::Heard(worker) => {
                        self.links.touched(link, worker);
                        self.prove(link, worker, now);
                    }
                },
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        self.scratch = scratch;
        result
    }

    /// Somebody's own datagram came by a stream: it may stay, and is charged to them.
    fn prove(&mut self, link: Link, worker: u8, now: Now) {
        if self.links.is_owned(link) {
            return;
        }
        let Some(Some(network)) = self.networks.get(usize::from(worker)) else { return };
        let owner = network.relay.client_on(link, now);
        self.links.prove(link, worker, owner);
    }

    /// Takes a result of the handshake thread.
    pub(super) fn job_done(&mut self, life: Life, done: JobDone, now: Now) {
        let worker = done.worker();
        if let Some(Some(network)) = self.networks.get_mut(usize::from(worker))
            && network.life == life
        {
            network.relay.handle_job(done, now);
            self.stirred |= 1 << worker;
        }
    }

    /// Lets out what the networks have to say, sends all that waits, and sees that no deadline is slept through.
    pub(super) fn settle(&mut self, now: Now) {
        while self.stirred != 0 {
            let worker = self.stirred.trailing_zeros() as u8;
            self.stirred &= self.stirred - 1;
            self.drain(worker, now);
        }
        self.flush();
        let next = self.next_deadline(now);
        if next < self.armed {
            self.armed = next;
            self.earlier.notify_one();
        }
    }

    fn drain(&mut self, worker: u8, now: Now) {
        let mut datagram = [0; OWN_DATAGRAM];
        loop {
            let Some(Some(network)) = self.networks.get_mut(usize::from(worker)) else { return };
            while let Some(job) = network.relay.poll_job() {
                if let Err(refused) = self.jobs.try_send((network.life, job)) {
                    network.relay.drop_job(refused.into_inner().1);
                }
            }
            while let Some(link) = network.relay.poll_close() {
                self.links.cut(link);
            }
            while let Some(event) = network.relay.poll_event() {
                let network = network.id;
                match event {
                    RelayEvent::Came(node) => tracing::debug!(%network, %node, "node is at the relay"),
                    RelayEvent::Went(node) => tracing::debug!(%network, %node, "node left the relay"),
                }
            }
            let Some(transmit) = network.relay.poll_transmit(&mut datagram, now) else { return };
            self.send(&datagram[..transmit.len], transmit.to, None, now);
        }
    }

    fn next_deadline(&self, now: Now) -> Instant {
        let deadlines = self.networks.iter().flatten().map(|network| network.relay.poll_deadline());
        deadlines.min().unwrap_or(now.monotonic + LOOK_EVERY)
    }

    /// Does what is due; returns when to come again.
    pub(super) fn due(&mut self, now: Now) -> Instant {
        for (worker, network) in self.networks.iter_mut().enumerate() {
            if let Some(network) = network
                && network.relay.poll_deadline() <= now.monotonic
            {
                network.relay.handle_deadline(now);
                self.stirred |= 1 << worker;
            }
        }
        self.sockets.renew(now.monotonic);
        self.armed = now.monotonic;
        self.settle(now);
        self.armed = self.next_deadline(now);
        self.armed
    }

    /// A stream was upgraded: it gets its number. `None` if there are as many as there may be.
    pub(super) fn open_link(&mut self) -> Option<Link> {
        self.links.open()
    }

    /// A stream has ended.
    pub(super) fn close_link(&mut self, link: Link, now: Now) {
        let touched = self.links.close(link);
        for (worker, network) in self.networks.iter_mut().enumerate() {
            if let Some(network) = network
                && touched & (1 << worker) != 0
            {
                network.relay.link_closed(link, now);
                self.stirred |= 1 << worker;
            }
        }
        self.settle(now);
    }

    /// What a stream's task is to write next, or what it is to be woken by.
    pub(super) fn next_chunk(&mut self, link: Link, waker: &Waker) -> Chunk {
        self.links.next_chunk(link, waker)
    }

    /// Sees that a stream's task hears of a cut while it has something to write; whether it is cut already.
    pub(super) fn wake_when_cut(&mut self, link: Link, waker: &Waker) -> bool {
        self.links.wake_when_cut(link, waker)
    }

    /// All that was taken from a stream's queue was written.
    pub(super) fn written(&mut self, link: Link) {
        self.links.written(link, Instant::now());
    }

    /// Whether something authentic of a member came by a stream.
    pub(super) fn is_proven(&self, link: Link) -> bool {
        self.links.is_proven(link)
    }

    /// What can be said about everything.
    pub(super) fn report(&self, unproven: usize) -> Report {
        let networks = self.networks.iter().flatten().map(|network| NetworkReport {
            id: network.id,
            clients: network.relay.clients().collect(),
            pairs: network.relay.pairs(),
            taken: network.relay.taken(),
            passed_on: network.relay.passed_on(),
            drops: network.relay.drops().clone(),
            session_drops: network.relay.session_drops().clone(),
        });
        Report {
            networks: networks.collect(),
            websockets: self.links.count(),
            unproven_connections: unproven,
            cut_websockets: self.links.cut_count(),
            udp_sent: self.outbox.sent,
            drops: self.drops.clone(),
        }
    }
}
