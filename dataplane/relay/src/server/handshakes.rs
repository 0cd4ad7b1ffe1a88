//! The handshake thread: key agreement for all networks, away from the thread that passes datagrams on.
//!
//! Jobs come over a bounded queue and are done in order; while it is full they are dropped, and their senders repeat what
//! mattered. What the server is asked to change goes before any job.

use std::collections::BTreeMap;
use std::time::Instant;
use std::{io, thread};

use crossbeam::channel::{Receiver, Sender, bounded, select_biased, unbounded};
use ringmesh_tunnel::handshake::MAX_QUEUED_JOBS;
use ringmesh_tunnel::key::{NetworkId, SecretKey};
use ringmesh_tunnel::{Floors, Handshaker, Job, JobDone, Now, PeerConfig, Random};
use tokio::sync::{mpsc, oneshot};

use super::clock;

/// Results that wait for the server; then this thread waits, and it is jobs that are dropped.
const RESULTS: usize = 256;

/// Tells a network from one that had the same number before.
pub(super) type Life = u64;

/// What is asked of the thread. Whoever asks waits for the answer, so there are no more than there are askers.
pub(super) enum Request {
    Apply {
        network: NetworkId,
        life: Life,
        worker: u8,
        key: Box<SecretKey>,
        peers: Vec<PeerConfig>,
        done: oneshot::Sender<()>,
    },
    Remove {
        network: NetworkId,
    },
    Floors {
        network: NetworkId,
        answer: oneshot::Sender<Option<Floors>>,
    },
    Restore {
        network: NetworkId,
        floors: Floors,
        done: oneshot::Sender<()>,
    },
    #[cfg(test)]
    Panic,
}

/// The ends of the queues.
#[derive(Debug)]
pub(super) struct Queues {
    pub(super) requests: Sender<Request>,
    pub(super) jobs: Sender<(Life, Job)>,
    pub(super) results: mpsc::Receiver<(Life, JobDone)>,
}

struct Network {
    life: Life,
    worker: u8,
    handshaker: Handshaker,
}

#[derive(Default)]
struct Networks {
    by_id: BTreeMap<NetworkId, Network>,
    /// Stored before their network is known.
    floors: BTreeMap<NetworkId, Floors>,
}

/// Starts the thread. It ends when the queue of jobs or that of results is dropped at the other end.
pub(super) fn start() -> io::Result<(Queues, thread::JoinHandle<()>)> {
    let (requests, requests_in) = unbounded();
    let (jobs, jobs_in) = bounded(MAX_QUEUED_JOBS);
    let (results_out, results) = mpsc::channel(RESULTS);
    let thread = thread::Builder::new()
        .name("relay-handshake".to_owned())
        .spawn(move || run(&requests_in, &jobs_in, &results_out))?;
    Ok((Queues { requests, jobs, results }, thread))
}

fn run(requests: &Receiver<Request>, jobs: &Receiver<(Life, Job)>, results: &mpsc::Sender<(Life, JobDone)>) {
    let _tell = super::TellPanic("does handshakes");
    let never = crossbeam::channel::never();
    let mut requests = requests;
    let mut networks = Networks::default();
    loop {
        select_biased! {
            recv(requests) -> request => match request {
                Ok(request) => networks.serve(request),
                // Nobody can ask any more; the server decides when to end.
                Err(_) => requests = &never,
            },
            recv(jobs) -> job => {
                let Ok((life, job)) = job else { return };
                let now = Now::new(Instant::now(), clock::wall());
                let Some(result) = networks.run(life, job, jobs.len(), now) else { continue };
                if results.blocking_send((life, result)).is_err() {
                    return;
                }
            }
        }
    }
}

impl Networks {
    fn serve(&mut self, request: Request) {
        match request {
            Request::Apply { network, life, worker, key, peers, done } => {
                let entry = self.by_id.entry(network).or_insert_with(|| Network::new(life, worker, &key));
                if entry.life != life {
                    // Another key, or another number: what was under way is of no use, but the floors are.
                    let floors = entry.handshaker.floors().clone();
                    *entry = Network::new(life, worker, &key);
                    entry.handshaker.restore(floors);
                }
                if let Some(floors) = self.floors.remove(&network) {
                    entry.handshaker.restore(floors);
                }
                entry.handshaker.apply(&peers);
                let _ = done.send(());
            }
            Request::Remove { network } => {
                if let Some(network_) = self.by_id.remove(&network) {
                    // It may come back, and must not accept what it accepted before.
                    self.floors.insert(network, network_.handshaker.floors().clone());
                }
            }
            Request::Floors { network, answer } => {
                let known = self.by_id.get(&network).map(|network| network.handshaker.floors().clone());
                let _ = answer.send(known.or_else(|| self.floors.get(&network).cloned()));
            }
            Request::Restore { network, floors, done } => {
                match self.by_id.get_mut(&network) {
                    Some(network) => network.handshaker.restore(floors),
                    None => {
                        self.floors.insert(network, floors);
                    }
                }
                let _ = done.send(());
            }
            #[cfg(test)]
            Request::Panic => panic!("a test wants it"),
        }
    }

    fn run(&mut self, life: Life, job: Job, waiting: usize, now: Now) -> Option<JobDone> {
        let network =
            self.by_id.values_mut().find(|network| network.worker == job.worker() && network.life == life)?;
        Some(network.handshaker.run(job, waiting, now))
    }
}

impl Network {
    fn new(life: Life, worker: u8, key: &SecretKey) -> Self {
        Self { life, worker, handshaker: Handshaker::new(key, Random::system()) }
    }
}
