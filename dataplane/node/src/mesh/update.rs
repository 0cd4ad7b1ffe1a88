//! The one way of a map: verified, written to disk, installed, and only then acknowledged.

use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Instant,
};

use ringmesh_proto::control::{self as wire, Reason};
use ringmesh_tunnel::{
    key::NodeId,
    netmap::{MapError, NetworkMap},
};
use tracing::error;

use super::{Mesh, Stage, durable};
use crate::{
    clock,
    control::convert,
    error::Failure,
    state::{Secrets, StateFile},
};

impl Mesh {
    /// Verifies an update, writes the result down and installs it. Gives the durable revision to acknowledge.
    ///
    /// # Errors
    /// Something in it does not hold, or the machine refuses; the last good map stays in force.
    pub(crate) async fn accept(&self, update: wire::MapUpdate) -> Result<u64, Failure> {
        let (update, beside) = convert::map_update(update).map_err(|error| refused(&error))?;
        let held = self.held();
        let base = Arc::clone(&held.map);
        let full = update.full;
        // Signatures of a full map may take a while; the heartbeats of other tasks go on meanwhile.
        let verified = tokio::task::spawn_blocking(move || base.verify(update, clock::wall())).await;
        let map = verified.map_err(|error| refused(&error))?.map_err(|error| map_refused(&error))?;
        let secrets = self.open_secrets(&held.secrets, beside.secrets, beside.peer_secrets, full, &map)?;
        let map = Arc::new(map);
        self.save(&map, &secrets).await;
        self.take_coordinators(beside.coordinators);
        self.install(Arc::clone(&map), secrets).await?;
        Ok(durable(&map))
    }

    /// Takes the head of a heartbeat: the map did not change.
    ///
    /// # Errors
    /// It does not hold, or names another map.
    pub(crate) fn renew(&self, head: wire::Envelope) -> Result<(), Failure> {
        let head = convert::envelope(head).map_err(|error| refused(&error))?;
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        held.map = Arc::new(held.map.renew(head, clock::wall()).map_err(|error| map_refused(&error))?);
        Ok(())
    }

    /// Notes that a coordinator just vouched for the map.
    pub(crate) fn vouch(&self) {
        self.held.write().unwrap_or_else(PoisonError::into_inner).vouched = Some(Instant::now());
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Notes that what a coordinator sent was refused; status shows it until something is taken.
    pub(crate) fn set_refusal(&self, failure: &Failure) {
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure.clone());
    }

    fn open_secrets(
        &self,
        held: &Arc<Secrets>,
        epochs: Vec<wire::SealedSecret>,
        peers: Vec<wire::PeerSecret>,
        full: bool,
        map: &NetworkMap,
    ) -> Result<Arc<Secrets>, Failure> {
        let members: BTreeSet<_> = map.members().map(|member| member.id).collect();
        if epochs.is_empty() && peers.is_empty() && held.has_only(&members) {
            return Ok(Arc::clone(held));
        }
        let key = self.identity.noise_secret();
        let network = map.network();
        let epochs = epochs.into_iter().map(|secret| (secret.epoch, secret.sealed));
        let peers = peers
            .into_iter()
            .map(|secret| {
                Ok((NodeId::from_bytes(convert::array(&secret.node_id, "a node id")?), secret.sealed))
            })
            .collect::<Result<Vec<_>, convert::Malformed>>()
            .map_err(|error| refused(&error))?;
        let mut next = held.with_epochs(network, &key, epochs).map_err(|error| refused(&error))?;
        if full && !peers.is_empty() {
            next.retain_peers(&BTreeSet::new());
        }
        let mut next = next.with_peers(network, &key, peers).map_err(|error| refused(&error))?;
        next.retain_peers(&members);
        Ok(Arc::new(next))
    }

    /// Writes down what was verified: at once if it is durable or leads to a peer that could not be found before, else a
    /// little later, so that a peer on the move does not wear out the disk. A full disk must not keep a revocation from being
    /// installed, so it is only reported.
    async fn save(&self, map: &Arc<NetworkMap>, secrets: &Arc<Secrets>) {
        let due = {
            let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
            durable(map) != durable(&held.map)
                || !Arc::ptr_eq(&held.secrets, secrets)
                || finds_a_peer(map, &held.map)
        };
        self.unsaved.store(!due, Ordering::Relaxed);
        if due {
            self.write(Arc::clone(map), Arc::clone(secrets)).await;
        }
    }

    /// Writes down what [`save`](Self::save) put off.
    pub(super) async fn save_now(&self) {
        if self.unsaved.swap(false, Ordering::Relaxed) {
            let held = self.held();
            self.write(held.map, held.secrets).await;
        }
    }

    async fn write(&self, map: Arc<NetworkMap>, secrets: Arc<Secrets>) {
        let state = Arc::clone(&self.state);
        let written = tokio::task::spawn_blocking(move || {
            state.write(StateFile::Map, &map.emit()).and_then(|()| secrets.save(&state))
        });
        let failure = match written.await {
            Ok(Ok(())) => return,
            Ok(Err(failure)) => failure.to_string(),
            Err(error) => error.to_string(),
        };
        error!(
            failure,
            "the map is used but not kept: a restart without a coordinator would use an older one"
        );
    }

    /// Takes the coordinators' addresses as they are told, and keeps the one in use: it is known to work from here.
    fn take_coordinators(&self, mut told: Vec<String>) {
        if told.is_empty() {
            return;
        }
        let in_use = self.link.borrow().address.clone();
        if !in_use.is_empty() && !told.contains(&in_use) {
            told.push(in_use);
        }
        let mut membership = self.membership.write().unwrap_or_else(PoisonError::into_inner);
        if membership.coordinators == told {
            return;
        }
        membership.coordinators = told;
        // While joining, the file is written last, by the joiner.
        if *self.stage.borrow() == Stage::Running
            && let Err(failure) = membership.save(&self.state)
        {
            error!(%failure, "the coordinators' new addresses are not kept");
        }
    }
}

/// Whether `map` knows where a peer is of which `held` does not: after a restart without a coordinator, the node would be
/// cut off from a peer whose endpoints were not written down.
fn finds_a_peer(map: &NetworkMap, held: &NetworkMap) -> bool {
    let mut peers = map.members().map(|member| member.id);
    peers.any(|id| map.node_record(id).is_some() && held.node_record(id).is_none())
}

pub(super) fn refused(why: &dyn std::fmt::Display) -> Failure {
    Failure::new(
        Reason::NotTrusted,
        format!("refused what the coordinator sent; the last good map stays in force: {why}"),
    )
}

fn map_refused(why: &MapError) -> Failure {
    let reason = if why.clock() { Reason::Clock } else { Reason::NotTrusted };
    Failure::new(
        reason,
        format!("refused what the coordinator sent; the last good map stays in force: {why}"),
    )
}
