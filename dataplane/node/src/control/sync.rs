//! The map stream: opened with a proof, resumed from the held position, supervised by heartbeats, opened again when it ends.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use ringmesh_proto::control::{
    Acknowledgement, Envelope, Heartbeat, Hello, Reason, SyncRequest, SyncResponse, Welcome,
    sync_request::Message as Out, sync_response::Message as In,
};
use ringmesh_tunnel::{enroll::transcript, key::Label};
use tokio::{
    sync::{mpsc, watch},
    time::{Interval, MissedTickBehavior, interval, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tracing::{debug, info, warn};

use super::{
    VERSION,
    backoff::Backoff,
    connect::{self, Connection},
    convert, report,
};
use crate::{
    candidates::OwnRecord,
    error::Failure,
    mesh::{Held, Link, Live, Mesh},
};

/// Time for the first response of a stream.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests that wait for the connection.
const REQUESTS: usize = 16;
/// Time between reports.
const REPORT_INTERVAL: Duration = Duration::from_secs(30);
/// Heartbeats that may be missed.
const MISSED_HEARTBEATS: u32 = 3;
/// Bounds of what a coordinator may ask for, seconds.
const HEARTBEAT_SECONDS: std::ops::RangeInclusive<u32> = 1..=300;
/// A stream that lasted this long was a good one: the next failure begins with the shortest wait.
const GOOD_STREAM: Duration = Duration::from_secs(10);

/// Mean time between attempts of a node that was told that it is removed.
const REMOVED_WAIT: Duration = Duration::from_secs(300);

/// Keeps a stream open until the mesh stops; never gives up by itself.
///
/// That a node was removed is said by an unsigned status, so that whoever stands in between can say it as well. It is obeyed
/// at once, and asked about again, slowly: only what is signed ends a membership for good.
pub(crate) async fn keep_in_step(mesh: Arc<Mesh>) -> Infallible {
    let mut backoff = Backoff::default();
    // A removed node may have missed anything.
    let mut attempt = Attempt { wants_full: mesh.is_removed(), ..Attempt::default() };
    let mut lost = Instant::now();
    loop {
        let began = Instant::now();
        let failure = match attempt.run(&mesh).await {
            Err(failure) => failure,
            Ok(never) => match never {},
        };
        if std::mem::take(&mut attempt.welcome) {
            lost = Instant::now();
        }
        if began.elapsed() >= GOOD_STREAM {
            backoff.reset();
        }
        let removed = failure.reason() == Reason::NodeRemoved;
        let wait = if removed { removed_wait(random()) } else { backoff.next(random(), lost.elapsed()) };
        if removed {
            attempt.wants_full = true;
            mesh.set_stuck(&failure, true);
            mesh.removed(Instant::now() + wait).await;
        } else {
            warn!(event = "coordinator_lost", %failure, next_try_ms = wait.as_millis() as u64, "not in step with a coordinator");
            mesh.set_stuck(&failure, false);
            mesh.set_link(Link::failed(&attempt.address, failure, Instant::now() + wait), None);
        }
        tokio::time::sleep(wait).await;
    }
}

/// Between four and six minutes. `random` is uniform over all `u32`.
fn removed_wait(random: u32) -> Duration {
    REMOVED_WAIT.mul_f64(0.8 + 0.4 * f64::from(random) / f64::from(u32::MAX))
}

fn random() -> u32 {
    // Without random numbers the wait is the shortest; nothing hangs on it.
    getrandom::u32().unwrap_or(0)
}

/// What one attempt leaves for the next.
#[derive(Debug, Default)]
struct Attempt {
    /// The coordinator that answered last.
    address: String,
    /// An update was refused: ask for the whole map, not for the next difference.
    wants_full: bool,
    /// A coordinator welcomed us.
    welcome: bool,
}

/// An open stream.
struct Stream {
    requests: mpsc::Sender<SyncRequest>,
    responses: Streaming<SyncResponse>,
    live: Live,
    heartbeat: Duration,
}

impl Attempt {
    async fn run(&mut self, mesh: &Arc<Mesh>) -> Result<Infallible, Failure> {
        let mut addresses = mesh.membership().coordinators;
        // The one that served last goes first.
        addresses.sort_by_key(|address| *address != self.address);
        let connection = connect::any(&addresses, mesh.pin()).await?;
        self.address.clone_from(&connection.address);
        let stream = self.open(mesh, connection).await?;
        self.welcome = true;
        info!(event = "coordinator_connected", coordinator = self.address, "in touch with a coordinator");
        mesh.set_link(Link::connected(&self.address), Some(stream.live.clone()));
        self.follow(mesh, stream).await
    }

    /// Says who we are and what we hold; gives the stream once we are welcome.
    async fn open(&self, mesh: &Mesh, mut connection: Connection) -> Result<Stream, Failure> {
        let here = |failure: Failure| failure.context(format!("coordinator {}", self.address));
        let (requests, queue) = mpsc::channel(REQUESTS);
        let hello = SyncRequest { message: Some(Out::Hello(self.hello(mesh, &connection))) };
        requests.try_send(hello).expect("invariant: a new queue has room");
        let welcome = async {
            let mut responses = connection.client.sync(ReceiverStream::new(queue)).await?.into_inner();
            let first = responses.message().await?;
            Ok::<_, tonic::Status>((responses, first))
        };
        let (responses, first) = timeout(WELCOME_TIMEOUT, welcome)
            .await
            .map_err(|_| here(Failure::new(Reason::Unreachable, "no welcome in 10 s")))?
            .map_err(|status| here(Failure::from_status(&status)))?;
        let Some(In::Welcome(Welcome { session, heartbeat_seconds, .. })) =
            first.and_then(|first| first.message)
        else {
            return Err(here(Failure::new(Reason::Unreachable, "the stream did not begin with a welcome")));
        };
        let seconds = heartbeat_seconds.clamp(*HEARTBEAT_SECONDS.start(), *HEARTBEAT_SECONDS.end());
        let live = Live { client: connection.client, session };
        Ok(Stream { requests, responses, live, heartbeat: Duration::from_secs(seconds.into()) })
    }

    fn hello(&self, mesh: &Mesh, connection: &Connection) -> Hello {
        let membership = mesh.membership();
        let Held { map, secrets, .. } = mesh.held();
        let transcript = transcript::sync(&transcript::Sync {
            connection: connection.transcript(membership.network),
            id: membership.node,
            identity_key: mesh.identity().public_key(),
        });
        // Onto a map that could not be installed no difference helps.
        let installed = mesh.plane().is_some();
        let position = map.position().filter(|_| installed && !self.wants_full);
        Hello {
            network_id: membership.network.as_bytes().to_vec(),
            node_id: membership.node.as_bytes().to_vec(),
            proof: Some(connection.proof()),
            signature: mesh.identity().secret().sign(Label::Sync, &transcript).as_bytes().to_vec(),
            position: position.map(convert::position_to_wire),
            digest: position.map(|_| map.digest().to_vec()).unwrap_or_default(),
            version: VERSION.to_owned(),
            secrets: secrets.digest(membership.network).to_vec(),
        }
    }

    /// Serves the stream until it fails.
    async fn follow(&mut self, mesh: &Arc<Mesh>, mut stream: Stream) -> Result<Infallible, Failure> {
        let mut own = mesh.watch_own_record();
        // Tells what is known now, too.
        own.mark_changed();
        let mut beat = interval(stream.heartbeat);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reports = interval(REPORT_INTERVAL);
        reports.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first report follows the first map, or comes at once if there is none to come.
        let mut reported = false;
        let silence = stream.heartbeat * MISSED_HEARTBEATS;
        let mut supervised = tokio::time::Instant::now() + silence;
        loop {
            tokio::select! {
                response = stream.responses.message() => {
                    let response = response.map_err(|status| Failure::from_status(&status))?;
                    let response = response.and_then(|response| response.message)
                        .ok_or_else(|| Failure::new(Reason::Unreachable, "the coordinator closed the stream"))?;
                    let is_map = matches!(response, In::Update(_));
                    let taken = self.take(mesh, &stream.requests, response);
                    beating(&stream.requests, &mut beat, taken).await?;
                    // Counted from here: what came meanwhile waits to be read.
                    supervised = tokio::time::Instant::now() + silence;
                    if is_map && !reported {
                        reported = true;
                        reports.reset_immediately();
                    }
                }
                () = tokio::time::sleep_until(supervised) => {
                    let seconds = silence.as_secs();
                    return Err(Failure::new(Reason::Unreachable, format!("the coordinator was silent for {seconds} s")));
                }
                _ = beat.tick() => {
                    send(&stream.requests, Out::Heartbeat(Heartbeat {}))?;
                }
                _ = reports.tick() => {
                    let (mesh, live) = (Arc::clone(mesh), stream.live.clone());
                    tokio::spawn(async move { report::send(&mesh, live).await });
                }
                record = own_record(mesh, &mut own) => {
                    send(&stream.requests, Out::NodeRecord(record?))?;
                }
            }
        }
    }

    async fn take(
        &mut self,
        mesh: &Arc<Mesh>,
        requests: &mpsc::Sender<SyncRequest>,
        response: In,
    ) -> Result<(), Failure> {
        match response {
            In::Update(update) => {
                let durable = self.unless_refused(mesh, mesh.accept(update).await)?;
                debug!(durable, "a map is installed");
                send(requests, Out::Acknowledgement(Acknowledgement { durable }))
            }
            In::Head(head) => self.unless_refused(mesh, mesh.renew(head)),
            In::Heartbeat(_) => Ok(()),
            In::Welcome(_) => Err(Failure::new(Reason::NotTrusted, "the coordinator welcomed us twice")),
        }
    }

    /// After a refusal the next stream asks for everything: what a difference applied to may be what was wrong.
    fn unless_refused<T>(&mut self, mesh: &Mesh, result: Result<T, Failure>) -> Result<T, Failure> {
        match &result {
            Ok(_) => mesh.vouch(),
            Err(failure) => mesh.set_refusal(failure),
        }
        self.wants_full = result.is_err();
        result
    }
}

/// Goes on with heartbeats until `work` is done: a node whose worker takes its time over a map is behind, not away.
async fn beating<T>(
    requests: &mpsc::Sender<SyncRequest>,
    beat: &mut Interval,
    work: impl Future<Output = T>,
) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            // What is begun is ended, whatever became of the stream: the next request finds out.
            _ = beat.tick() => { let _ = send(requests, Out::Heartbeat(Heartbeat {})); }
        }
    }
}

/// Waits for something to say of this node that the coordinator has not heard of, and signs it.
async fn own_record(mesh: &Mesh, own: &mut watch::Receiver<Option<OwnRecord>>) -> Result<Envelope, Failure> {
    loop {
        if own.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        // Before the data plane runs there is nothing to tell.
        let known = own.borrow_and_update().clone();
        if let Some(known) = known {
            return mesh.node_record(known).map(|record| convert::envelope_to_wire(&record));
        }
    }
}

/// Queues a request. A full queue means that the connection takes nothing: as good as broken.
fn send(requests: &mpsc::Sender<SyncRequest>, message: Out) -> Result<(), Failure> {
    requests
        .try_send(SyncRequest { message: Some(message) })
        .map_err(|_| Failure::new(Reason::Unreachable, "the coordinator takes nothing any more"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_node_asks_again_in_four_to_six_minutes() {
        assert_eq!(removed_wait(0), Duration::from_secs(240));
        assert_eq!(removed_wait(u32::MAX), Duration::from_secs(360));
    }
}
