//! `EventService`: what happened, and what happens.

use std::{collections::BTreeSet, pin::Pin, sync::Arc, time::Duration};

use futures_util::Stream;
use ringmesh_proto::admin::{self as proto, event_service_server::EventService};
use tokio::{
    sync::{
        broadcast::{
            self,
            error::{RecvError, TryRecvError},
        },
        mpsc,
    },
    time::{Instant, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{
    admin::{Admin, Answer},
    convert,
};
use crate::{
    auth::{Authed, MayLook, Reader, Scope},
    coordinator::{Coordinator, Occurrence, Seat, Seen},
    error::Refused,
    network::{
        Registry,
        events::{Event, Name},
    },
    store::Revision,
};

/// Events that a list has unless asked for another number.
const LISTED: u32 = 100;
/// The most that it has.
const LISTED_MAX: u32 = 1000;
/// About how many events one message of a watch has.
const MESSAGE: usize = 256;
/// How long a watch is silent at most.
const SIGN_OF_LIFE: Duration = Duration::from_secs(20);
/// Messages that wait for the watcher to read: one besides those in the connection's own buffers.
const BACKLOG: usize = 1;
/// How long a watcher may leave a message unread.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the last word may take.
const LAST_WORD: Duration = Duration::from_secs(5);

impl Admin {
    /// What of a request's network is there for a caller; none named: all that is.
    fn seen(&self, by: &Authed<impl MayLook>, network: &str) -> Result<Seen, Refused> {
        match (network, by.who().scope()) {
            ("", Scope::Everything) => Ok(Seen::Everything),
            ("", Scope::Network(own)) => Ok(Seen::Network(own)),
            (name, _) => self.network(by, name).map(Seen::Network),
        }
    }
}

#[tonic::async_trait]
impl EventService for Admin {
    async fn list_events(
        &self,
        request: Request<proto::ListEventsRequest>,
    ) -> Answer<proto::ListEventsResponse> {
        let reader = Authed::<Reader>::of(&request)?;
        let proto::ListEventsRequest { network, after_revision, most } = request.into_inner();
        let seen = self.seen(&reader, &network)?;
        let most = if most == 0 { LISTED } else { most.min(LISTED_MAX) };
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let page = self.coordinator.events_after(seen, after_revision, most).map_err(Refused::from)?;
        Ok(Response::new(proto::ListEventsResponse {
            revision: page.upto,
            more: page.more,
            events: told(&self.coordinator, page.events),
        }))
    }

    type WatchEventsStream = Pin<Box<dyn Stream<Item = Result<proto::WatchEventsResponse, Status>> + Send>>;

    async fn watch_events(
        &self,
        request: Request<proto::WatchEventsRequest>,
    ) -> Answer<Self::WatchEventsStream> {
        let reader = Authed::<Reader>::of(&request)?;
        let proto::WatchEventsRequest { network, after_revision, names } = request.into_inner();
        let seen = self.seen(&reader, &network)?;
        let names = names.iter().map(|name| known(name)).collect::<Result<BTreeSet<Name>, _>>()?;
        let told = begin(&self.coordinator, seen, after_revision, names, PATIENCE)?;
        Ok(Response::new(Box::pin(told)))
    }
}

/// A misspelt name would be waited for in vain.
fn known(name: &str) -> Result<Name, Refused> {
    name.parse().map_err(|()| {
        let named = crate::network::enroll::quoted(name);
        Refused::field("names")(format!("there is no event {named}; see docs/events.md"))
    })
}

fn told(coordinator: &Coordinator, events: Vec<Event>) -> Vec<proto::Event> {
    coordinator.with_registry(|registry| {
        let network = |event: &Event| Some(registry.network(event.network?)?.name.clone());
        events.into_iter().map(|event| convert::event(network(&event), event)).collect()
    })
}

/// Begins a watch after a revision; 0: from now on.
fn begin(
    coordinator: &Coordinator,
    seen: Seen,
    after: Revision,
    names: BTreeSet<Name>,
    patience: Duration,
) -> Result<impl Stream<Item = Result<proto::WatchEventsResponse, Status>> + use<>, Refused> {
    let seat = coordinator.take_seat(seen)?;
    let place = match after {
        0 => coordinator.with_registry(Registry::revision),
        after => after,
    };
    // Refuses at once what the first look would refuse.
    coordinator.events_after(seen, place, 0)?;
    let (sender, receiver) = mpsc::channel(BACKLOG);
    let watch = Watch {
        coordinator: coordinator.clone(),
        seen,
        names,
        place,
        live: false,
        patience,
        sender,
        _seat: seat,
    };
    tokio::spawn(watch.run());
    Ok(ReceiverStream::new(receiver))
}

/// One watcher.
struct Watch {
    coordinator: Coordinator,
    seen: Seen,
    /// Empty: all.
    names: BTreeSet<Name>,
    /// Everything up to here was told.
    place: Revision,
    /// The past was told.
    live: bool,
    /// How long a message may be left unread.
    patience: Duration,
    sender: mpsc::Sender<Result<proto::WatchEventsResponse, Status>>,
    _seat: Seat,
}

/// Why a watch ends.
enum End {
    /// The watcher is gone.
    Gone,
    Because(Refused),
}

impl<R: Into<Refused>> From<R> for End {
    fn from(refused: R) -> Self {
        Self::Because(refused.into())
    }
}

impl Watch {
    async fn run(mut self) {
        let mut closing = self.coordinator.closing();
        let end = tokio::select! {
            // An end in sight is told before anything else.
            biased;
            _ = closing.wait_for(|closing| *closing) => Err(End::from(Refused::ShuttingDown)),
            end = self.serve() => end,
        };
        if let Err(End::Because(refused)) = end {
            // Who does not read does not hear why; the watch ends all the same.
            drop(timeout(self.patience.min(LAST_WORD), self.sender.send(Err(refused.into()))).await);
        }
    }

    /// Serves for ever.
    async fn serve(&mut self) -> Result<(), End> {
        let silence = self.coordinator.heartbeat().min(SIGN_OF_LIFE);
        let mut changed = self.coordinator.changed();
        // The past first: what is not durable waits for nobody, and is told from when the watcher can follow.
        self.tell_durable().await?;
        let mut occurrences = self.coordinator.listen();
        let mut occurred = Vec::new();
        let mut told = Instant::now();
        loop {
            changed.borrow_and_update();
            self.take(&mut occurrences, &mut occurred)?;
            // In this order, as what occurred did so after everything durable that it is about.
            let mut spoken = self.tell_durable().await?;
            for events in occurred.chunks(MESSAGE) {
                self.send(events.to_vec()).await?;
                spoken = true;
            }
            occurred.clear();
            if !self.live || (!spoken && told.elapsed() >= silence) {
                self.live = true;
                self.send(Vec::new()).await?;
                spoken = true;
            }
            if spoken {
                told = Instant::now();
            }
            tokio::select! {
                woken = changed.changed() => woken.map_err(|_| Refused::ShuttingDown)?,
                occurrence = occurrences.recv() => {
                    let occurrence = occurrence.map_err(|error| match error {
                        RecvError::Lagged(_) => Refused::TooSlow,
                        RecvError::Closed => Refused::ShuttingDown,
                    })?;
                    self.pick(&occurrence, &mut occurred);
                }
                () = sleep_until(told + silence) => {}
                () = self.sender.closed() => return Err(End::Gone),
            }
        }
    }

    /// Tells everything durable that was not told; whether there was something.
    async fn tell_durable(&mut self) -> Result<bool, End> {
        let mut spoken = false;
        loop {
            let page = self.coordinator.events_after(self.seen, self.place, MESSAGE)?;
            self.place = page.upto;
            let mut events = page.events;
            events.retain(|event| self.wants(event));
            if !events.is_empty() {
                self.send(events).await?;
                spoken = true;
            }
            if !page.more {
                return Ok(spoken);
            }
        }
    }

    /// What occurred since the last look.
    fn take(
        &self,
        from: &mut broadcast::Receiver<Arc<Occurrence>>,
        into: &mut Vec<Event>,
    ) -> Result<(), Refused> {
        loop {
            match from.try_recv() {
                Ok(occurrence) => self.pick(&occurrence, into),
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Lagged(_)) => return Err(Refused::TooSlow),
                Err(TryRecvError::Closed) => return Err(Refused::ShuttingDown),
            }
        }
    }

    fn pick(&self, occurrence: &Occurrence, into: &mut Vec<Event>) {
        let event = self.coordinator.event_of(self.seen, occurrence);
        into.extend(event.filter(|event| self.wants(event)));
    }

    fn wants(&self, event: &Event) -> bool {
        self.names.is_empty() || event.row.name.parse().is_ok_and(|name| self.names.contains(&name))
    }

    async fn send(&self, events: Vec<Event>) -> Result<(), End> {
        let message = proto::WatchEventsResponse {
            events: told(&self.coordinator, events),
            revision: self.place,
            live: self.live,
        };
        match timeout(self.patience, self.sender.send(Ok(message))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Gone),
            Err(_) => Err(Refused::TooSlow.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;
    use ringmesh_tunnel::{
        UnixTime,
        key::{NetworkId, NodeId},
    };

    use super::*;
    use crate::{
        auth::NodeOf,
        coordinator::{RING, WATCHERS_MAX, tests::coordinator},
    };

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

    fn network_of(coordinator: &Coordinator) -> NetworkId {
        coordinator.with_registry(|registry| registry.networks().next().unwrap().id())
    }

    /// A node that comes and goes.
    fn flicker(coordinator: &Coordinator, times: usize) {
        let who = NodeOf { network: network_of(coordinator), node: NodeId::from_bytes([7; 8]) };
        for _ in 0..times {
            let stream = coordinator.presence().begin(who, &[1; 32], "1.0".into(), NOW);
            coordinator.presence().end(&who, stream, NOW);
        }
    }

    fn names(message: &proto::WatchEventsResponse) -> Vec<&str> {
        message.events.iter().map(|event| event.name.as_str()).collect()
    }

    #[tokio::test]
    async fn what_is_not_durable_waits_in_a_ring_and_who_falls_behind_is_told_where_to_go_on() {
        let directory = tempfile::tempdir().unwrap();
        let coordinator = coordinator(directory.path(), false).await;
        let mut told = Box::pin(begin(&coordinator, Seen::Everything, 0, BTreeSet::new(), PATIENCE).unwrap());
        let live = told.next().await.unwrap().unwrap();
        assert!(live.live && live.events.is_empty());
        // A whole ring is not too much.
        flicker(&coordinator, RING / 2);
        let mut heard = 0;
        while heard < RING {
            let message = told.next().await.unwrap().unwrap();
            assert_eq!(message.revision, live.revision);
            assert!(message.events.len() <= MESSAGE);
            assert_eq!(names(&message)[..2], ["node_online", "node_offline"]);
            heard += message.events.len();
        }
        assert_eq!(heard, RING);
        flicker(&coordinator, RING / 2 + 1);
        let end = told.next().await.unwrap().unwrap_err();
        assert_eq!(end.code(), tonic::Code::Aborted);
        assert!(end.message().contains("after the last revision"), "{end}");
        assert!(told.next().await.is_none());
    }

    #[tokio::test]
    async fn a_watcher_that_does_not_read_is_ended() {
        let directory = tempfile::tempdir().unwrap();
        let coordinator = coordinator(directory.path(), false).await;
        let patience = Duration::from_millis(50);
        let mut told = Box::pin(begin(&coordinator, Seen::Everything, 0, BTreeSet::new(), patience).unwrap());
        // One message waits in the channel, the next one for room.
        while coordinator.watchers(Seen::Everything) > 0 {
            flicker(&coordinator, 1);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(told.next().await.unwrap().unwrap().live);
        assert!(told.next().await.is_none(), "what it did not read is not kept for it");
    }

    #[tokio::test]
    async fn so_many_may_watch_one_network_and_leave_room_for_the_watchers_of_others() {
        let directory = tempfile::tempdir().unwrap();
        let coordinator = coordinator(directory.path(), false).await;
        let seen = Seen::Network(network_of(&coordinator));
        let watch = || begin(&coordinator, seen, 0, BTreeSet::new(), PATIENCE);
        let mut watches: Vec<_> = (0..WATCHERS_MAX).map(|_| watch().unwrap()).collect();
        let refused = watch().err().unwrap();
        assert!(matches!(refused, Refused::TooManyWatchers { most: WATCHERS_MAX }), "{refused}");
        assert_eq!(Status::from(refused).code(), tonic::Code::ResourceExhausted);
        drop(begin(&coordinator, Seen::Everything, 0, BTreeSet::new(), PATIENCE).unwrap());
        // Who goes makes room.
        drop(watches.pop());
        while watch().is_err() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_watch_of_one_network_hears_of_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let coordinator = coordinator(directory.path(), false).await;
        let other = Seen::Network(NetworkId::from_bytes([9; 16]));
        let mut told = Box::pin(begin(&coordinator, other, 0, BTreeSet::new(), PATIENCE).unwrap());
        let mut all = Box::pin(begin(&coordinator, Seen::Everything, 0, BTreeSet::new(), PATIENCE).unwrap());
        assert!(told.next().await.unwrap().unwrap().live && all.next().await.unwrap().unwrap().live);
        flicker(&coordinator, 1);
        assert_eq!(names(&all.next().await.unwrap().unwrap())[0], "node_online");
        coordinator.close();
        let end = told.next().await.unwrap().unwrap_err();
        assert_eq!(end.code(), tonic::Code::Unavailable, "nothing came before its end");
    }
}
