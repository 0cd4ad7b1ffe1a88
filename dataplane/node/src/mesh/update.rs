//! The one way of a map: verified, written to disk, installed, and only then acknowledged.

use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Instant,
};

use ringmesh_proto::control::{self as wire, Reason};
use ringmesh_tunnel::{
    key::NodeId,
    netmap::{MapError, Member, NetworkMap},
};
use tracing::{error, info};

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
        check_secrets(&map, &secrets).map_err(|error| map_refused(&error))?;
        // Before it is written down: the next start must not begin with a map that cannot be used.
        self.plan(&map)?;
        let map = Arc::new(map);
        let saved = self.save(&map, &secrets).await;
        self.take_coordinators(beside.coordinators);
        self.belongs();
        self.install(Arc::clone(&map), secrets).await?;
        if !saved {
            self.unsaved.store(true, Ordering::Relaxed);
            self.put_off.notify_one();
        }
        tell_of_keys(&held.map, &map);
        Ok(durable(&map))
    }

    /// Takes the head of a heartbeat: the map did not change.
    ///
    /// # Errors
    /// It does not hold, or names another map.
    pub(crate) fn renew(&self, head: wire::Envelope) -> Result<(), Failure> {
        let head = convert::envelope(head).map_err(|error| refused(&error))?;
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        let renewed = held.map.renew(head, clock::wall()).map_err(|error| map_refused(&error))?;
        check_secrets(&renewed, &held.secrets).map_err(|error| map_refused(&error))?;
        held.map = Arc::new(renewed);
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
    /// installed, so it is reported and tried again. Tells whether the disk has it.
    async fn save(&self, map: &Arc<NetworkMap>, secrets: &Arc<Secrets>) -> bool {
        let due = {
            let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
            durable(map) != durable(&held.map)
                || !Arc::ptr_eq(&held.secrets, secrets)
                || finds_a_peer(map, &held.map)
        };
        if due {
            let _saving = self.saving.lock().await;
            let written = self.write(Arc::clone(map), Arc::clone(secrets)).await;
            self.unsaved.store(!written, Ordering::Relaxed);
            return written;
        }
        false
    }

    /// Writes down what [`save`](Self::save) put off or could not write. Tells whether nothing is left to be written.
    pub(super) async fn save_now(&self) -> bool {
        let _saving = self.saving.lock().await;
        if !self.unsaved.load(Ordering::Relaxed) {
            return true;
        }
        let held = self.held();
        let written = self.write(held.map, held.secrets).await;
        self.unsaved.store(!written, Ordering::Relaxed);
        written
    }

    /// Writes the secrets and then the map. After a crash in between, the secrets that the older map's head names are missed at
    /// the next start, and asked for.
    async fn write(&self, map: Arc<NetworkMap>, secrets: Arc<Secrets>) -> bool {
        let state = Arc::clone(&self.state);
        let written = tokio::task::spawn_blocking(move || {
            secrets.save(&state).and_then(|()| state.write(StateFile::Map, &map.emit()))
        });
        let failure = match written.await {
            Ok(Ok(())) => return true,
            Ok(Err(failure)) => failure.to_string(),
            Err(error) => error.to_string(),
        };
        error!(
            event = "state_write_failed",
            failure,
            "the map is used but not kept yet: a restart without a coordinator would use an older one"
        );
        false
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
            error!(event = "state_write_failed", %failure, "the coordinators' new addresses are not kept");
        }
    }
}

/// Writes into the log which keys peers have from now on: a coordinator with stolen keys that adds nodes cannot do it unseen.
fn tell_of_keys(held: &NetworkMap, map: &NetworkMap) {
    for (member, before) in new_keys(held, map) {
        let (id, name) = (member.id, member.name.as_str());
        let key = fingerprint(member);
        match before {
            None => info!(event = "peer_added", %id, name, key, "a new peer"),
            Some(before) => {
                info!(event = "peer_key_changed", %id, name, key, before = fingerprint(before), "a peer has another key")
            }
        }
    }
}

/// The other members whose key `held` does not know, and who had the place before.
fn new_keys<'a>(
    held: &'a NetworkMap,
    map: &'a NetworkMap,
) -> impl Iterator<Item = (&'a Member, Option<&'a Member>)> {
    let own = map.id();
    let others = map.members().filter(move |member| member.id != own);
    others.filter_map(|member| match held.member(member.id) {
        Some(before)
            if before.noise_key == member.noise_key && before.identity_key == member.identity_key =>
        {
            None
        }
        before => Some((member, before)),
    })
}

/// The identity key's fingerprint, or a stock device's WireGuard key.
fn fingerprint(member: &Member) -> String {
    member.identity_key.map_or_else(|| member.noise_key.to_string(), |key| key.fingerprint())
}

/// Whether `map` knows where a peer is of which `held` does not: after a restart without a coordinator, the node would be
/// cut off from a peer whose endpoints were not written down.
fn finds_a_peer(map: &NetworkMap, held: &NetworkMap) -> bool {
    let mut peers = map.members().map(|member| member.id);
    peers.any(|id| map.node_record(id).is_some() && held.node_record(id).is_none())
}

/// Checks that the secrets held beside a map are those its head names.
pub(super) fn check_secrets(map: &NetworkMap, secrets: &Secrets) -> Result<(), MapError> {
    map.check_secrets(secrets.epoch(), &secrets.digest(map.network()))
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
