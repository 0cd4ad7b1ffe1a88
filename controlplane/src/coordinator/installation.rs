//! Who has a revision in its data plane: the one wait behind policies, removals and `WaitInstalled`.
//!
//! Mesh nodes count, stock devices do not. A node has a revision installed once it acknowledged it, or once it is established that
//! nothing of it concerns the node beyond what it acknowledged; both can only be said of a node with a map stream. One without is
//! behind and offline, whatever it had before: it hears of the revision when it comes back, and nobody waits for it. The relay that a
//! coordinator runs itself has no stream and is never counted as installed; it is named only while it lags.

use std::time::Duration;

use ringmesh_tunnel::{
    key::{NetworkId, NodeId},
    netmap::MemberKind,
};
use tokio::time::{Instant, timeout_at};

use super::Coordinator;
use crate::{
    auth::{Authed, MayLook, NodeOf},
    error::Refused,
    store::Revision,
};

/// The longest wait: a request has 10 s in all.
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(8);

/// Who has a revision in its data plane.
#[derive(Debug, Default)]
pub(crate) struct Installation {
    pub(crate) revision: Revision,
    /// Names.
    pub(crate) installed: Vec<String>,
    pub(crate) behind: Vec<Behind>,
    /// From the beginning of the wait until nobody was online and behind, or all of it.
    pub(crate) waited: Duration,
}

/// A node that lags.
#[derive(Debug)]
pub(crate) struct Behind {
    pub(crate) node: NodeId,
    pub(crate) name: String,
    pub(crate) online: bool,
}

impl Coordinator {
    /// Waits until every node that is online has installed `revision`, and tells who has; until `patience` (at most [`MAX_WAIT`])
    /// after `since`, when what is waited for began.
    ///
    /// # Errors
    /// If there is no such network, or no such revision yet.
    pub(crate) async fn installation(
        &self,
        _by: &Authed<impl MayLook>,
        network: NetworkId,
        revision: Revision,
        since: Instant,
        patience: Duration,
    ) -> Result<Installation, Refused> {
        let newest = self.with_place(network, |_, place| place.durable)?;
        if revision > newest {
            return Err(Refused::field("revision")(format!(
                "r{revision} is yet to come, the newest is r{newest}"
            )));
        }
        let deadline = since + patience.min(MAX_WAIT);
        let mut moved = self.0.presences.moved();
        loop {
            moved.borrow_and_update();
            let mut now = self.installation_now(network, revision)?;
            let lagging: Vec<NodeId> =
                now.behind.iter().filter(|behind| behind.online).map(|behind| behind.node).collect();
            let in_time = async {
                // Only those that lag are looked at again, however many others come and go.
                while self.any_lags(network, revision, &lagging)? {
                    // The sender lives as long as this coordinator.
                    drop(moved.changed().await);
                }
                Ok::<_, Refused>(())
            };
            if !lagging.is_empty() {
                match timeout_at(deadline, in_time).await {
                    // Somebody may have come meanwhile who lags as well.
                    Ok(settled) => {
                        settled?;
                        continue;
                    }
                    Err(_) => now = self.installation_now(network, revision)?,
                }
            }
            now.waited = since.elapsed();
            return Ok(now);
        }
    }

    fn any_lags(&self, network: NetworkId, revision: Revision, nodes: &[NodeId]) -> Result<bool, Refused> {
        self.with_network(network, |state| {
            let nodes = nodes.iter().filter(|node| state.nodes.contains_key(node));
            let (relays, others): (Vec<NodeId>, Vec<NodeId>) =
                nodes.partition(|node| state.relays.contains_key(node));
            let relay_lags =
                |node: NodeId| self.relay_standing(state, node).is_some_and(|has| has < revision);
            let others = others.into_iter().map(|node| NodeOf { network, node });
            let mut standing = self.0.presences.standing(others).into_iter();
            standing.any(|standing| standing.online && standing.installed < revision)
                || relays.into_iter().any(relay_lags)
        })
    }

    pub(super) fn installation_now(
        &self,
        network: NetworkId,
        revision: Revision,
    ) -> Result<Installation, Refused> {
        self.with_network(network, |state| {
            let mut now = Installation { revision, ..Installation::default() };
            let members = state.nodes.values().map(|node| &node.member.record);
            let (relays, nodes): (Vec<_>, Vec<_>) = members
                .filter(|member| member.kind == MemberKind::Mesh)
                .partition(|member| state.relays.contains_key(&member.id));
            let standing =
                self.0.presences.standing(nodes.iter().map(|member| NodeOf { network, node: member.id }));
            for (member, standing) in nodes.into_iter().zip(standing) {
                let name = member.name.clone();
                if standing.online && standing.installed >= revision {
                    now.installed.push(name);
                } else {
                    now.behind.push(Behind { node: member.id, name, online: standing.online });
                }
            }
            for relay in relays {
                let has = self.relay_standing(state, relay.id);
                if self.runs(state, relay.id) && has.is_none_or(|has| has < revision) {
                    now.behind.push(Behind {
                        node: relay.id,
                        name: relay.name.clone(),
                        online: has.is_some(),
                    });
                }
            }
            now
        })
    }
}
