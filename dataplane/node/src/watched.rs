//! The daemon as those see it who watch it: systemd's watchdog and whoever asks over HTTP.

use std::{sync::Arc, time::Duration};

use ringmesh_monitor::{COMMIT, Check, Registry, Subject, Version};
use tokio::time::timeout;

use crate::{control::VERSION, daemon::Daemon, plane::Plane};

/// How long a thread may take to answer: a worker does so between two turns, which last milliseconds. Less than the five seconds for
/// which whoever asks waits, so that it hears which one it is.
const PATIENCE: Duration = Duration::from_secs(4);

/// A daemon that is watched.
#[derive(Debug)]
pub(crate) struct Watched {
    daemon: Arc<Daemon>,
}

impl Watched {
    pub(crate) const fn new(daemon: Arc<Daemon>) -> Self {
        Self { daemon }
    }

    fn plane(&self) -> Option<Arc<Plane>> {
        self.daemon.mesh()?.plane()
    }
}

#[async_trait::async_trait]
impl Subject for Watched {
    fn version(&self) -> Version {
        let plane = self.plane();
        let backend = plane.as_ref().and_then(|plane| plane.packets());
        Version {
            daemon: if self.daemon.is_relay() { "mesh-relay" } else { "meshd" },
            version: VERSION.to_owned(),
            commit: COMMIT.to_owned(),
            backend: backend.map(|packets| packets.chosen().back_end.to_string()).unwrap_or_default(),
        }
    }

    async fn measure(&self, registry: &mut Registry) {
        if let Some(mesh) = self.daemon.mesh() {
            mesh.measure(registry).await;
        }
    }

    async fn live(&self) -> Vec<Check> {
        let Some(plane) = self.plane() else {
            let detail = "none is needed yet".to_owned();
            return vec![Check { name: "workers", ok: true, detail }];
        };
        let worker = async {
            match &*plane {
                Plane::Packets(packets) => packets.report().await.map(drop),
                Plane::Relay(relay) => relay.report().await.map(drop),
            }
        };
        let handshaker = async { plane.floors().await.map(drop) };
        let (worker, handshaker) = tokio::join!(timeout(PATIENCE, worker), timeout(PATIENCE, handshaker));
        [("workers", worker), ("handshaker", handshaker)]
            .into_iter()
            .map(|(name, answer)| match answer {
                Ok(Ok(())) => Check { name, ok: true, detail: "answers".to_owned() },
                Ok(Err(failure)) => Check { name, ok: false, detail: failure.to_string() },
                Err(_) => {
                    Check { name, ok: false, detail: format!("no answer within {} s", PATIENCE.as_secs()) }
                }
            })
            .collect()
    }

    async fn ready(&self) -> Vec<Check> {
        match self.daemon.mesh() {
            Some(mesh) => mesh.ready().await,
            None => {
                let detail = "in no network: meshctl join --token TOKEN".to_owned();
                vec![Check { name: "joined", ok: false, detail }]
            }
        }
    }
}
