//! The map stream of one node: a task that sends what changed when there is room for it.
//!
//! The task computes a delta only when the node can take it, from what it sent last. So a slow node costs no memory, and
//! gets one merged delta in the end.

use std::time::Duration;

use futures_util::Stream;
use prost::Message as _;
use ringmesh_proto::control::{self as proto, sync_request, sync_response};
use ringmesh_tunnel::netmap::NodeRecord;
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::convert;
use crate::{
    auth::{Authed, NodeOf, random},
    coordinator::{Coordinator, Presence, SentHead},
    error::Refused,
    metrics::UpdateKind,
    network::{
        NetworkState, Signed,
        enroll::printable,
        map::{Delta, Outgoing, Place, SignedHead, Told},
    },
    server::{Admission, Connection},
};

/// Responses that wait for the node to read: one besides those in the connection's own buffers.
const BACKLOG: usize = 1;
/// How long the last word may take.
const LAST_WORD: Duration = Duration::from_secs(5);
/// Heartbeats that a node may miss.
const MISSED_HEARTBEATS: u32 = 3;
/// The shortest time between two node records of a node that its peers are told; the newest wins.
const RECORD_INTERVAL: Duration = Duration::from_millis(500);

type Sender = mpsc::Sender<Result<proto::SyncResponse, Status>>;

/// Begins the stream of a node that proved itself.
pub(super) fn begin(
    coordinator: &Coordinator,
    who: &Authed<NodeOf>,
    hello: proto::Hello,
    connection: &Connection,
    requests: Streaming<proto::SyncRequest>,
) -> Result<impl Stream<Item = Result<proto::SyncResponse, Status>> + use<>, Refused> {
    let admission = connection.admit(None).ok_or(Refused::TakenOver)?;
    let (sender, receiver) = mpsc::channel(BACKLOG);
    let session = random::<32>();
    let who = *who.who();
    let version = printable(&hello.version);
    let held = resume(coordinator, &who, &hello);
    let resumed = held.is_some();
    let owes_secrets = resumed && !holds_secrets(coordinator, &who, &hello);
    let number = coordinator.presence().begin(who, &session, version, coordinator.now());
    // An older stream of the node notices that this one took over; its connection goes with it.
    coordinator.wake();
    if let Some(former) = coordinator.presence().connect(&who, number, connection) {
        former.close_soon();
        if let Some((times, within)) = coordinator.presence().taken_over(&who) {
            tracing::warn!(
                event = "node_taken_over",
                network = %who.network,
                node = %who.node,
                times,
                seconds = within.as_secs(),
                "connections of one node take over from each other: two machines may be using the same identity"
            );
        }
    }
    let welcome = proto::Welcome {
        session: session.to_vec(),
        heartbeat_seconds: u32::try_from(coordinator.heartbeat().as_secs()).unwrap_or(u32::MAX).max(1),
    };
    let stream = MapStream {
        coordinator: coordinator.clone(),
        who,
        number,
        held,
        coordinators: Vec::new(),
        heard: Instant::now(),
        heartbeat_due: resumed,
        owes_secrets,
        staged: None,
        record_refused: false,
        record_after: Instant::now(),
        connection: connection.clone(),
        _admission: admission,
    };
    tracing::debug!(node = %who.node, peer = %connection.peer(), resumed, "a map stream began");
    tokio::spawn(stream.run(welcome, requests, sender));
    Ok(ReceiverStream::new(receiver))
}

/// What a node holds: differences are made to this.
#[derive(Debug, Clone)]
struct Held {
    /// The change up to which everything was sent.
    change: u64,
    /// Whom it sees.
    told: Told,
}

/// From where the node can go on: it names a map that this process sent it, and holds just that.
fn resume(coordinator: &Coordinator, who: &NodeOf, hello: &proto::Hello) -> Option<Held> {
    let position = hello.position.filter(|position| position.replica == coordinator.replica())?;
    let presence = coordinator.presence().get(who)?;
    let told = presence.told(position.ephemeral, &hello.digest)?;
    Some(Held { change: position.ephemeral, told })
}

/// Whether the node holds the secrets it is to hold.
fn holds_secrets(coordinator: &Coordinator, who: &NodeOf, hello: &proto::Hello) -> bool {
    let digest = coordinator.with_network(who.network, |state| state.secrets_digest(who.node).ok());
    digest.ok().flatten().is_some_and(|digest| hello.secrets == digest)
}

struct MapStream {
    coordinator: Coordinator,
    who: NodeOf,
    number: u64,
    /// What the node holds once it has read what was sent; `None`: nothing that is known.
    held: Option<Held>,
    /// The coordinators that were sent last.
    coordinators: Vec<String>,
    heard: Instant,
    /// Whether a head has to be sent even if nothing changed.
    heartbeat_due: bool,
    /// Whether the node holds other secrets than it is to hold, so that the next update has them all.
    owes_secrets: bool,
    /// A verified node record that waits for its turn.
    staged: Option<Signed<NodeRecord>>,
    /// Whether a node record was refused already: the log gets one line per stream.
    record_refused: bool,
    record_after: Instant,
    connection: Connection,
    /// Lets the connection live on for as long as the stream does.
    _admission: Admission,
}

impl MapStream {
    async fn run(
        mut self,
        welcome: proto::Welcome,
        mut requests: Streaming<proto::SyncRequest>,
        sender: Sender,
    ) {
        let end = match sender.send(Ok(response(sync_response::Message::Welcome(welcome)))).await {
            Ok(()) => self.serve(&mut requests, &sender).await,
            Err(_) => None,
        };
        let Self { coordinator, who, number, connection, .. } = &self;
        coordinator.presence().end(who, *number, coordinator.now());
        if matches!(end, Some(Refused::NodeRemoved)) {
            coordinator.presence().forget(who);
            connection.close_soon();
        }
        tracing::debug!(node = %who.node, reason = end.as_ref().map(tracing::field::display), "a map stream ended");
        if let Some(refused) = end {
            // A node that does not read does not hear why; its stream ends all the same.
            drop(tokio::time::timeout(LAST_WORD, sender.send(Err(refused.into()))).await);
        }
    }

    /// Serves until the node goes (`None`) or has to go, and says why.
    async fn serve(
        &mut self,
        requests: &mut Streaming<proto::SyncRequest>,
        sender: &Sender,
    ) -> Option<Refused> {
        let mut heartbeat = tokio::time::interval(self.coordinator.heartbeat());
        heartbeat.reset();
        let (mut changes, mut closing) = (self.coordinator.changed(), self.coordinator.closing());
        if *closing.borrow() {
            return Some(Refused::ShuttingDown);
        }
        let patience = self.coordinator.heartbeat() * MISSED_HEARTBEATS;
        // Whether there may be something to send.
        let mut pending = true;
        loop {
            tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(request)) => {
                        self.heard = Instant::now();
                        if let Err(refused) = self.handle(request) {
                            return Some(refused);
                        }
                    }
                    // Its connection or its patience ended.
                    Ok(None) | Err(_) => return None,
                },
                permit = sender.reserve(), if pending => {
                    let Ok(permit) = permit else { return None };
                    match self.next() {
                        Ok(Some(message)) => permit.send(Ok(response(message))),
                        Ok(None) => {}
                        Err(refused) => return Some(refused),
                    }
                    pending = false;
                }
                changed = changes.changed() => {
                    if changed.is_err() {
                        return Some(Refused::ShuttingDown);
                    }
                    if let Err(refused) = self.check_standing() {
                        return Some(refused);
                    }
                    pending = true;
                }
                _ = heartbeat.tick() => {
                    self.heartbeat_due = true;
                    pending = true;
                }
                () = tokio::time::sleep_until(self.record_after), if self.staged.is_some() => self.tell_record(),
                () = tokio::time::sleep_until(self.heard + patience) => return Some(Refused::Silent),
                _ = closing.changed() => return Some(Refused::ShuttingDown),
            }
        }
    }

    /// Ends the stream at once, whether or not the node reads, if it has no right to it any more.
    fn check_standing(&self) -> Result<(), Refused> {
        let presence = self.coordinator.presence().get(&self.who);
        let member =
            self.coordinator.with_network(self.who.network, |state| state.member(self.who.node).is_some())?;
        match presence {
            _ if !member => Err(Refused::NodeRemoved),
            Some(presence) if presence.stream == self.number => Ok(()),
            Some(_) => Err(Refused::TakenOver),
            None => Err(Refused::NodeRemoved),
        }
    }

    fn handle(&mut self, request: proto::SyncRequest) -> Result<(), Refused> {
        match request.message {
            Some(sync_request::Message::Hello(_)) => return Err(Refused::NoHello),
            Some(sync_request::Message::Acknowledgement(acknowledgement)) => {
                let durable = acknowledgement.durable;
                self.presence(|presence| presence.acknowledge(durable));
            }
            Some(sync_request::Message::NodeRecord(envelope)) => self.stage(envelope),
            // A message of a newer node is a sign of life like any other.
            Some(sync_request::Message::Heartbeat(_)) | None => {}
        }
        let now = self.coordinator.now();
        self.presence(|presence| presence.last_seen = now);
        Ok(())
    }

    /// Changes what is known of the node, unless another stream took over.
    fn presence(&self, change: impl FnOnce(&mut Presence)) {
        self.coordinator.presence().update_by(&self.who, self.number, change);
    }

    /// Keeps a node record to tell, if it may be told. A refused one does not end the stream: the node would send it again on
    /// the next one and never get a map, say for as long as its clock is wrong.
    fn stage(&mut self, envelope: proto::Envelope) {
        let parsed = convert::parse_envelope(envelope).map_err(Refused::field("node_record"));
        match parsed.and_then(|envelope| self.coordinator.check_node_record(&self.who, envelope)) {
            Ok(record) => self.staged = Some(record),
            Err(reason) if !self.record_refused => {
                self.record_refused = true;
                tracing::warn!(event = "node_record_refused", node = %self.who.node, %reason, "ignored a node record; further ones of this stream at debug level");
            }
            Err(reason) => tracing::debug!(node = %self.who.node, %reason, "ignored a node record"),
        }
    }

    fn tell_record(&mut self) {
        if let Some(record) = self.staged.take() {
            self.record_after = Instant::now() + RECORD_INTERVAL;
            self.coordinator.put_node_record(&self.who, self.number, record);
        }
    }

    /// What to send now, if anything.
    fn next(&mut self) -> Result<Option<sync_response::Message>, Refused> {
        let coordinators = self.coordinator.endpoints();
        let moved = coordinators != self.coordinators;
        // Only what needs the registry is done while it is held.
        let (next, change, durable) = self.coordinator.with_place(self.who.network, |state, place| {
            let next = self.choose(state, place, moved)?;
            Ok::<_, Refused>((next, state.newest_change(), place.durable))
        })??;
        let is_update = matches!(next, Next::Update(..));
        let (message, head) = match next {
            Next::Nothing => (None, None),
            Next::Head(head) => {
                let told = self.held.take().map(|held| held.told).unwrap_or_default();
                let message = sync_response::Message::Head(convert::envelope(&head.envelope));
                (Some(message), Some(SentHead { change, digest: head.digest, told }))
            }
            Next::Update(outgoing, network) => {
                let head = SentHead { change, digest: outgoing.digest, told: outgoing.told.clone() };
                let kind = if outgoing.update.full { UpdateKind::Full } else { UpdateKind::Delta };
                let update = convert::map_update(*outgoing, network, coordinators.clone());
                self.coordinator.counters().update_sent(self.who.network, kind, update.encoded_len());
                (Some(sync_response::Message::Update(update)), Some(head))
            }
        };
        self.coordinators = coordinators;
        match head {
            Some(head) => {
                self.held = Some(Held { change, told: head.told.clone() });
                self.presence(|presence| presence.sent(head, durable, is_update));
            }
            None => {
                if let Some(held) = &mut self.held {
                    held.change = change;
                }
                self.presence(|presence| presence.scanned(durable));
            }
        }
        self.heartbeat_due &= message.is_none();
        self.owes_secrets &= message.is_none();
        Ok(message)
    }

    /// What the node has to hear, `moved` if the coordinators are not those that it was told.
    fn choose(&self, state: &NetworkState, place: Place, moved: bool) -> Result<Next, Refused> {
        let (node, now) = (self.who.node, self.coordinator.now());
        let delta = match &self.held {
            Some(held) => Some(state.delta(node, held.change, &held.told, place, now)?),
            None => None,
        };
        let outgoing = match delta {
            None => state.full(node, place, now)?,
            Some(Delta::Update(outgoing)) if self.owes_secrets => state.with_secrets(node, *outgoing)?,
            Some(Delta::Update(outgoing)) => *outgoing,
            Some(Delta::Nothing) if self.owes_secrets => {
                state.with_secrets(node, state.unchanged(node, place, now)?)?
            }
            Some(Delta::Nothing) if moved => state.unchanged(node, place, now)?,
            Some(Delta::Nothing) if self.heartbeat_due => {
                return Ok(Next::Head(state.head(node, place, now)?));
            }
            Some(Delta::Nothing) => return Ok(Next::Nothing),
        };
        Ok(Next::Update(Box::new(outgoing), convert::network_info(state)))
    }
}

/// What is sent next.
enum Next {
    Nothing,
    Head(SignedHead),
    Update(Box<Outgoing>, proto::Network),
}

const fn response(message: sync_response::Message) -> proto::SyncResponse {
    proto::SyncResponse { message: Some(message) }
}
