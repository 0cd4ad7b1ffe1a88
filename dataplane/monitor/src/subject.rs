//! The seam between a daemon and those who watch it.

use prometheus_client::registry::Registry;
use serde::Serialize;

/// A daemon that can be watched.
#[async_trait::async_trait]
pub trait Subject: Send + Sync + 'static {
    /// What it is, for `/version` and `ringmesh_build_info`.
    fn version(&self) -> Version;

    /// Puts its numbers, as they are now, into `registry`, which has the prefix [`PREFIX`](crate::PREFIX) already.
    async fn measure(&self, registry: &mut Registry);

    /// Whether it goes on by itself: one that does not must be restarted. Asked by `/livez`, and by systemd's watchdog.
    async fn live(&self) -> Vec<Check>;

    /// Whether it does what it is there for at the moment. Asked by `/readyz`.
    async fn ready(&self) -> Vec<Check>;
}

/// One thing that must hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What, in a word that never changes its meaning: `workers`, `map`, `store`, ...
    pub name: &'static str,
    /// Whether it holds.
    pub ok: bool,
    /// Why not, or what there is to know, for people.
    pub detail: String,
}

/// What program this is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Version {
    /// `meshd`, `mesh-coordinator` or `mesh-relay`.
    pub daemon: &'static str,
    /// As in `meshctl version`.
    pub version: String,
    /// The commit it was built of; `unknown` if that was not to be had.
    pub commit: String,
    /// The packet back end in use; empty for who has none.
    pub backend: String,
}
