//! The key of a join: chosen before anything is asked, kept for as long as a coordinator may know it as a node's.

use ringmesh_proto::control::Reason;
use ringmesh_tunnel::enroll::JoinToken;
use tracing::{info, warn};

use crate::{
    error::Failure,
    state::{Identity, PendingJoin, StateDir, StateFile},
};

/// What to say when nobody knows whether the coordinator took this node.
const UNKNOWN: &str = "whether the coordinator took this node is not known, so its key is kept: join again with the same token, \
                       which counts as the same use";

/// The key a join uses, and what to do with it when the join fails.
#[derive(Debug)]
pub(crate) struct JoinKey {
    pub(crate) identity: Identity,
    /// The note of this join; absent while the note on disk is of an earlier one, with another token.
    note: Option<PendingJoin>,
}

impl JoinKey {
    /// The key given, or the one that an unfinished join left, or a new one; on disk, with a note of the join, before it is
    /// used, so that neither a crash nor a lost answer after enrolment loses it.
    ///
    /// # Errors
    /// The key given will not do, or another one is kept for a join that is not finished; or the disk refuses.
    pub(crate) fn choose(
        state: &StateDir,
        pem: &str,
        token: &JoinToken,
        name: &str,
        tell: &(dyn Fn(&str) + Sync),
    ) -> Result<Self, Failure> {
        let given = if pem.is_empty() { None } else { Some(Identity::import(pem)?) };
        let mut pending = PendingJoin::load(state)?;
        let mut kept = Identity::load(state)?;
        if given.is_none()
            && let Some(elsewhere) = pending.take_if(|pending| pending.network != token.network())
            && kept.take().is_some()
        {
            let path = state.keep_as(StateFile::Identity, &format!("of-{}", elsewhere.network))?;
            let path = path.display();
            tell(&format!("the key of an unfinished join to another network is kept as {path}"));
            warn!(event = "join_key_kept", %path, network = %elsewhere.network, "the key of an unfinished join to another network is kept");
        }
        let own_key = kept.is_none();
        let identity = match (given, kept) {
            (Some(given), Some(kept)) if given.public_key() != kept.public_key() => {
                return Err(another_key(state, &kept));
            }
            (_, Some(kept)) => {
                tell(&format!(
                    "going on with the key that is here already ({})",
                    kept.public_key().fingerprint()
                ));
                kept
            }
            (Some(given), None) => given,
            (None, None) => Identity::generate(),
        };
        let note = match pending.filter(|_| !own_key) {
            Some(pending) => Some(pending).filter(|pending| pending.token == token.token()),
            None => {
                let (network, name) = (token.network(), name.to_owned());
                let note = PendingJoin { network, token: token.token(), name, own_key };
                note.save(state)?;
                Some(note)
            }
        };
        if own_key {
            identity.save(state)?;
        }
        Ok(Self { identity, note })
    }

    /// After a join in which no coordinator took the node for sure. If none can have taken it, what this join brought is
    /// forgotten; else it is kept, and the failure says so.
    pub(crate) fn after_failure(&self, state: &StateDir, may_have_taken: bool, failure: Failure) -> Failure {
        if may_have_taken {
            info!(
                event = "join_key_kept",
                key = self.identity.public_key().fingerprint(),
                "the key of an unfinished join is kept"
            );
            return failure.with_hint(UNKNOWN);
        }
        if let Some(note) = &self.note {
            // The key first: a note without a key means nothing, a key without a note would be taken for somebody's own.
            let identity = note.own_key.then_some(StateFile::Identity);
            for file in identity.into_iter().chain([StateFile::Pending]) {
                if let Err(failure) = state.remove(file) {
                    warn!(event = "join_cleanup_failed", %failure, "cannot clean up after a join that failed");
                }
            }
        }
        failure
    }
}

/// A key is given, but an unfinished join may have made another one a node's.
fn another_key(state: &StateDir, kept: &Identity) -> Failure {
    let path = state.path_of(StateFile::Identity);
    let path = path.display();
    Failure::new(
        Reason::Conflict,
        format!(
            "an earlier join was not finished and kept its key {} in {path}: finish it with the same token and without \
             --identity, or give it up first (`mv {path} {path}.old`)",
            kept.public_key().fingerprint()
        ),
    )
}
