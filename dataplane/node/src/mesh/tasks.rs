//! What a mesh does by itself: notices what ends, where the machine is, and that it slept.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use ringmesh_proto::control::Reason;
use ringmesh_tunnel::{
    netmap::{Envelope, NodeRecord},
    time::UnixTime,
};
use tokio::{
    sync::watch,
    time::{sleep, sleep_until},
};
use tracing::{error, info, warn};

use super::Mesh;
use crate::{
    candidates::{OwnAddresses, OwnRecord, Pace},
    clock::{self, Moment, SleepWatch},
    error::Failure,
    host::{AddressWatch, Surroundings},
    plane::{DataPlane, Plane},
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
    /// Writes down timestamps, drops peers whose records ended, lets go of a policy that ended, and of denials, for as long as
    /// the mesh lives.
    pub(super) async fn keep(self: Arc<Self>) {
        let mut noted = Instant::now();
        let mut denial_ended = false;
        loop {
            tokio::select! {
                () = sleep(self.time_to_next_end()) => {}
                // Another map, or another denial, may end sooner.
                () = self.installed.notified() => {}
            }
            let record_ended = self.held().until.is_some_and(|until| until <= clock::wall());
            denial_ended |= self.denials().drop_ended(&self.state, Moment::now());
            if record_ended || denial_ended {
                info!(
                    event = "expired_in_force",
                    record_ended, denial_ended, "something that was in force has ended"
                );
                match self.install_again().await {
                    Ok(()) => denial_ended = false,
                    Err(failure) => {
                        error!(event = "install_failed", %failure, "what ended is still in force");
                        sleep(SECOND_TRY).await;
                        self.installed.notify_one();
                    }
                }
            }
            self.denials().note_set_clock(&self.state, Moment::now());
            if noted.elapsed() >= TIMESTAMP_RENEWAL {
                noted = Instant::now();
                self.note_timestamps().await;
                self.save_now().await;
            }
        }
    }

    /// Until a record, the policy or a denial ends. Also when the wall clock is set: it is compared anew at least every 30 s.
    fn time_to_next_end(&self) -> Duration {
        let now = Moment::now();
        let record = self.held().until.map(|until| until.saturating_since(now.wall));
        let denial = self.denials().next_end().map(|ends| ends.saturating_sub(now.boot));
        [record, denial].into_iter().flatten().fold(TIMESTAMP_RENEWAL, Duration::min)
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
                && let Some(plane) = plane.packets()
            {
                info!(
                    event = "machine_slept",
                    seconds = slept.as_secs(),
                    "the machine slept; sessions begin anew"
                );
                // The only failure is that there is no data plane, and then there are no sessions.
                let _ = plane.expire_sessions().await;
            }
            sleep(SLEEP_CHECK).await;
        }
    }

    /// Follows this machine's addresses and ways out and what relays say of them: tells the data plane and, through
    /// [`own_record`](Self::own_record), the network. Nothing is ever torn down by a change: paths are only doubted.
    pub(super) async fn watch_surroundings(self: Arc<Self>) {
        let mut changes = AddressWatch::open();
        let mut planes = self.plane.subscribe();
        loop {
            let Some(plane) = planes.borrow_and_update().clone() else {
                if planes.changed().await.is_err() {
                    return;
                }
                continue;
            };
            tokio::select! {
                Err(_) = self.follow_surroundings(&plane, &mut changes) => {
                    // The worker is gone, and another one will come, or the daemon ends.
                    if planes.changed().await.is_err() {
                        return;
                    }
                }
                changed = planes.changed() => if changed.is_err() { return },
            }
        }
    }

    /// For as long as this data plane lives.
    async fn follow_surroundings(
        &self,
        plane: &Plane,
        changes: &mut AddressWatch,
    ) -> Result<Infallible, Failure> {
        let pools: Vec<_> = self.membership().pools().collect();
        let packets = plane.packets();
        // A relay asks nobody how it is seen.
        let unseen = watch::Sender::new(BTreeMap::new());
        let mut seen = packets.map_or_else(|| unseen.subscribe(), DataPlane::seen);
        let mut pace = Pace::default();
        let mut around: Option<Surroundings> = None;
        loop {
            match Surroundings::look(&self.netlink, &self.config.interface, &pools).await {
                Ok(now) if around.as_ref() == Some(&now) => {}
                Ok(now) => {
                    let changed = around.replace(now).is_some();
                    if let Some(packets) = packets.filter(|_| changed) {
                        info!(
                            event = "network_changed",
                            "this machine's addresses or routes changed; all paths are tried anew"
                        );
                        packets.network_changed().await?;
                    }
                }
                Err(failure) => {
                    warn!(event = "host_unreadable", %failure, "cannot list this machine's addresses and routes")
                }
            }
            // Until something changes that only the kernel can tell.
            loop {
                let own = OwnAddresses {
                    configured: self.config.endpoints.clone(),
                    host: around.as_ref().map(|around| around.addresses.clone()).unwrap_or_default(),
                    seen: seen.borrow_and_update().clone(),
                    port: plane.port(),
                    ssh_port: self.config.ssh_port,
                    pools: pools.clone(),
                };
                let mut record = own.record();
                if let Some(packets) = packets {
                    packets.set_own_candidates(own.offered()).await?;
                }
                if let (Some(relay), Some(mode)) = (plane.relay(), &self.config.relay) {
                    record.websockets = relay.websocket_urls(mode, &own.host);
                }
                let due = self.tell_record(record, &mut pace);
                tokio::select! {
                    () = changes.changed() => break,
                    changed = seen.changed() => if changed.is_err() { std::future::pending().await },
                    () = sleep_until_or_never(due) => {}
                }
            }
        }
    }

    /// Tells the network if there is something new and it was not told too lately; else gives when to come again.
    fn tell_record(&self, record: OwnRecord, pace: &mut Pace) -> Option<Instant> {
        if self.own_record.borrow().as_ref() == Some(&record) {
            return None;
        }
        let now = Instant::now();
        if let Some(due) = pace.next().filter(|due| *due > now) {
            return Some(due);
        }
        pace.told(now);
        self.own_record.send_replace(Some(record));
        None
    }

    /// What the node says of itself, signed.
    ///
    /// # Errors
    /// The record is beyond its bounds.
    pub(crate) fn node_record(&self, own: OwnRecord) -> Result<Envelope, Failure> {
        let now = clock::wall();
        let signed = self.held().map.head().map_or(UnixTime::EPOCH, |head| head.time);
        let serial = {
            let mut timestamps = self.timestamps.lock().unwrap_or_else(PoisonError::into_inner);
            timestamps.next_serial(&self.state, now.max(signed))
        };
        let membership = self.membership();
        let OwnRecord { endpoints, websockets, ssh } = own;
        let (network, id) = (membership.network, membership.node);
        let record = NodeRecord { network, id, serial, endpoints, time: now, websockets, ssh };
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
            error!(event = "state_write_failed", %failure, "handshake timestamps are not kept");
        }
    }
}

async fn sleep_until_or_never(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
