//! The handshake thread: key agreement away from the packet path, so that a flood of handshakes never takes its time.
//!
//! Jobs come from the worker over a bounded queue and are done in order; results go back over another, with a wake. What the
//! asynchronous side asks (a new list of peers, the timestamps to store) goes before any job.

use std::{io, thread};

use crossbeam::channel::{Receiver, Sender, bounded, select_biased};
use ringmesh_io::Waker;
use ringmesh_tunnel::{
    Floors, Handshaker, Job, JobDone, Now, PeerConfig, Random, handshake::MAX_QUEUED_JOBS, key::SecretKey,
};
use tokio::sync::oneshot;

use crate::clock;

/// Results that wait for the worker; then the handshaker waits, and it is jobs that are dropped.
const RESULTS: usize = 256;
/// Requests of the asynchronous side that wait.
const REQUESTS: usize = 4;

/// What the asynchronous side asks of the handshaker.
#[derive(Debug)]
pub(crate) enum Request {
    /// These are all peers from now on.
    Apply(Vec<PeerConfig>, oneshot::Sender<()>),
    /// The timestamps that a restart must not go behind.
    Floors(oneshot::Sender<Floors>),
}

/// The worker's ends of the queues.
#[derive(Debug)]
pub(crate) struct Handshakes {
    pub(crate) jobs: Sender<Job>,
    pub(crate) results: Receiver<JobDone>,
}

/// Starts the thread. It ends when the worker's ends of the queues are dropped.
///
/// # Errors
/// The system gives no thread.
pub(crate) fn start(
    key: &SecretKey,
    floors: Floors,
    waker: Waker,
) -> io::Result<(Handshakes, Sender<Request>, thread::JoinHandle<()>)> {
    let mut handshaker = Handshaker::new(key, Random::system());
    handshaker.restore(floors);
    let (jobs, jobs_in) = bounded(MAX_QUEUED_JOBS);
    let (results_out, results) = bounded(RESULTS);
    let (requests, requests_in) = bounded(REQUESTS);
    let thread = thread::Builder::new()
        .name("mesh-handshake".to_owned())
        .spawn(move || run(handshaker, &requests_in, &jobs_in, &results_out, &waker))?;
    Ok((Handshakes { jobs, results }, requests, thread))
}

fn run(
    mut handshaker: Handshaker,
    requests: &Receiver<Request>,
    jobs: &Receiver<Job>,
    results: &Sender<JobDone>,
    waker: &Waker,
) {
    let never = crossbeam::channel::never();
    let mut requests = requests;
    loop {
        select_biased! {
            recv(requests) -> request => match request {
                Ok(Request::Apply(peers, known)) => {
                    handshaker.apply(&peers);
                    let _ = known.send(());
                }
                Ok(Request::Floors(answer)) => {
                    let _ = answer.send(handshaker.floors().clone());
                }
                // The asynchronous side is gone; the worker decides when to end.
                Err(_) => requests = &never,
            },
            recv(jobs) -> job => {
                let Ok(job) = job else { return };
                let now = Now::new(std::time::Instant::now(), clock::wall());
                let result = handshaker.run(job, jobs.len(), now);
                if results.send(result).is_err() {
                    return;
                }
                waker.wake();
            }
        }
    }
}

impl Handshakes {
    /// The next result, if one is there.
    pub(crate) fn result(&self) -> Option<JobDone> {
        self.results.try_recv().ok()
    }
}
