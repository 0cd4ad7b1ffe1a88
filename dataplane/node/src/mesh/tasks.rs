//! What a mesh does by itself: notices what ends, where the machine is, and that it slept.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use ringmesh_proto::control::Reason;
use ringmesh_tunnel::{
    netmap::{Envelope, NodeRecord},
    time::UnixTime,
};
use tokio::time::sleep;
use tracing::{error, info, warn};

use super::Mesh;
use crate::{
    clock::{self, SleepWatch},
    error::Failure,
    host::{self, AddressWatch},
    state::TIMESTAMP_RENEWAL,
};

/// When something cannot be put out of force, the next attempt follows after this.
const SECOND_TRY: Duration = Duration::from_secs(1);
/// How long a change that is not durable may be missing on disk.
const SAVE_DELAY: Duration = Duration::from_millis(500);
/// When the disk does not take the map, the next attempt follows after this.
const SAVE_RETRY: Duration = Duration::from_secs(5);
/// How often is looked whether the machine slept.
const SLEEP_CHECK: Duration = Duration::from_secs(2);

impl Mesh {
    /// Writes down timestamps and drops peers whose records ended, for as long as the mesh lives.
    pub(super) async fn keep(self: Arc<Self>) {
        let mut noted = Instant::now();
        loop {
            // Also when the wall clock is set: it is compared anew at least every 30 s.
            let wait = match self.held().until {
                Some(until) => until.saturating_since(clock::wall()).min(TIMESTAMP_RENEWAL),
                None => TIMESTAMP_RENEWAL,
            };
            tokio::select! {
                () = sleep(wait) => {}
                // Another map may end sooner.
                () = self.installed.notified() => {}
            }
            if self.held().until.is_some_and(|until| until <= clock::wall()) {
                info!("a record of the map ended");
                if let Err(failure) = self.install_again().await {
                    error!(%failure, "what ended in the map is still in force");
                    sleep(SECOND_TRY).await;
                }
            }
            if noted.elapsed() >= TIMESTAMP_RENEWAL {
                noted = Instant::now();
                self.note_timestamps().await;
                self.save_now().await;
            }
        }
    }

    /// Writes down where peers are soon after they told it: after a restart without a coordinator nobody else tells.
    pub(super) async fn save_what_was_put_off(self: Arc<Self>) {
        loop {
            self.put_off.notified().await;
            sleep(SAVE_DELAY).await;
            while !self.save_now().await {
                sleep(SAVE_RETRY).await;
            }
        }
    }

    /// Erases session keys after the machine slept, so that none outlives it and nobody waits for a dead session's timeout.
    pub(super) async fn watch_sleep(self: Arc<Self>) {
        let mut watch = SleepWatch::default();
        loop {
            if let Some(slept) = watch.slept()
                && let Some(plane) = self.plane()
            {
                info!(seconds = slept.as_secs(), "the machine slept; sessions begin anew");
                // The only failure is that there is no data plane, and then there are no sessions.
                let _ = plane.expire_sessions().await;
            }
            sleep(SLEEP_CHECK).await;
        }
    }

    /// Keeps [`endpoints`](Self::endpoints) true.
    pub(super) async fn watch_endpoints(self: Arc<Self>) {
        let mut changes = AddressWatch::open();
        let mut plane = self.plane.subscribe();
        loop {
            let port = plane.borrow_and_update().as_ref().map(|plane| plane.port());
            if let Some(port) = port {
                match self.look_for_endpoints(port).await {
                    Ok(found) => {
                        let found = Some(found);
                        self.endpoints.send_if_modified(|known| {
                            let changed = *known != found;
                            *known = found;
                            changed
                        });
                    }
                    Err(failure) => warn!(%failure, "cannot list this machine's addresses"),
                }
            }
            tokio::select! {
                () = changes.changed() => {}
                changed = plane.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn look_for_endpoints(&self, port: u16) -> Result<Vec<SocketAddr>, Failure> {
        let pools: Vec<_> = self.membership().pools().collect();
        let mut found = self.config.endpoints.clone();
        found.extend(host::local_endpoints(&self.netlink, &self.config.interface, &pools, port).await?);
        let mut seen = BTreeSet::new();
        found.retain(|endpoint| seen.insert(*endpoint));
        found.truncate(ringmesh_tunnel::netmap::ENDPOINTS_MAX);
        Ok(found)
    }

    /// What the node says of itself, signed, for `endpoints`.
    ///
    /// # Errors
    /// The record is beyond its bounds.
    pub(crate) fn node_record(&self, endpoints: Vec<SocketAddr>) -> Result<Envelope, Failure> {
        let now = clock::wall();
        let signed = self.held().map.head().map_or(UnixTime::EPOCH, |head| head.time);
        let serial = {
            let mut timestamps = self.timestamps.lock().unwrap_or_else(PoisonError::into_inner);
            timestamps.next_serial(&self.state, now.max(signed))
        };
        let membership = self.membership();
        let record = NodeRecord {
            network: membership.network,
            id: membership.node,
            serial,
            endpoints,
            time: now,
            websockets: Vec::new(),
            ssh: Vec::new(),
        };
        Envelope::sign(&record, self.identity.secret())
            .map_err(|error| Failure::new(Reason::Host, format!("signing this node's record: {error}")))
    }

    /// Writes down which handshake timestamps were used.
    pub(super) async fn note_timestamps(&self) {
        let plane = self.plane.borrow().clone();
        let Some(plane) = plane else { return };
        let Ok(used) = plane.floors().await else { return };
        let mut timestamps = self.timestamps.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(failure) = timestamps.note(&self.state, used) {
            error!(%failure, "handshake timestamps are not kept");
        }
    }
}
