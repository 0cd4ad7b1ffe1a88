//! What the relay is told, and what becomes of it when it ends by itself.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use ringmesh_relay::{Handle, Rates};
use ringmesh_tunnel::key::NetworkId;
use tokio::{net::UdpSocket, sync::mpsc, time::timeout};

use super::{Relay, bind, server_config};
use crate::{
    config::{Config, RelayConfig},
    coordinator::{Coordinator, tests::coordinator},
    network::NetworkState,
    server::WebSocket,
};

/// For what must come: a rest or two, and the work in between.
const PATIENCE: Duration = Duration::from_secs(20);

/// A coordinator, and a relay that it runs once [`Site::run`] does.
struct Site {
    directory: tempfile::TempDir,
    coordinator: Coordinator,
    relay: Relay,
    handle: Handle,
    network: NetworkId,
    _websockets: mpsc::Sender<WebSocket>,
    offered: Option<mpsc::Receiver<WebSocket>>,
}

impl Site {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let coordinator = coordinator(directory.path(), true).await;
        let network = coordinator.with_registry(|registry| registry.networks().next().unwrap().id());
        let config = Config { state_dir: directory.path().into(), ..Config::default() };
        let ports = bind(&config.relay, ([127, 0, 0, 1], 0).into()).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], ports.port()));
        let relay = Relay::start(ports, &config, address, &[address.to_string()]).unwrap();
        let handle = relay.running().unwrap();
        let (websockets, offered) = mpsc::channel(1);
        Self {
            directory,
            coordinator,
            relay,
            handle,
            network,
            _websockets: websockets,
            offered: Some(offered),
        }
    }

    /// Runs the relay for as long as `scenario` takes.
    async fn run(&mut self, scenario: impl AsyncFnOnce(&Self)) {
        let offered = self.offered.take().unwrap();
        tokio::select! {
            () = self.relay.run(&self.coordinator, offered) => panic!("it ended"),
            () = scenario(self) => {}
        }
    }

    fn revision(&self) -> u64 {
        self.coordinator.with_registry(|registry| registry.revision())
    }

    /// What `nodes list` says that the relay has; `None`: it is not online.
    fn standing(&self) -> Option<u64> {
        let read = |state: &NetworkState| {
            let (id, _) = state.own_relay().unwrap();
            self.coordinator.relay_standing(state, id)
        };
        self.coordinator.with_network(self.network, read).unwrap()
    }

    /// Waits until the relay stands so.
    async fn until(&self, standing: Option<u64>) {
        let mut moved = self.coordinator.presence().moved();
        let reached = async {
            while {
                moved.borrow_and_update();
                self.standing()
            } != standing
            {
                moved.changed().await.unwrap();
            }
        };
        timeout(PATIENCE, reached)
            .await
            .unwrap_or_else(|_| panic!("{:?}, not {standing:?}", self.standing()));
    }

    fn floors(&self) -> PathBuf {
        self.directory.path().join(format!("relay-{}.floors", self.network))
    }
}

#[tokio::test]
async fn a_relay_that_ends_by_itself_is_noticed_and_started_again_on_its_port() {
    let mut site = Site::new().await;
    site.relay.prepare(&site.coordinator).await;
    assert_eq!(site.standing(), Some(site.revision()));
    let scenario = async |site: &Site| {
        // Twice, as what was started again must be watched as well.
        for _ in 0..2 {
            let handle = site.relay.running().unwrap();
            assert_eq!(handle.port(), site.handle.port());
            tokio::task::spawn_blocking(move || handle.stop()).await.unwrap();
            site.until(None).await;
            site.until(Some(site.revision())).await;
            // It is there, and serves the network: what it did not take is not said to be there.
            let report = site.relay.running().unwrap().report().await.unwrap();
            let served: Vec<NetworkId> = report.networks.iter().map(|report| report.id).collect();
            assert_eq!(served, [site.network]);
            UdpSocket::bind(("127.0.0.1", site.handle.port())).await.expect_err("its port is taken");
        }
    };
    site.run(scenario).await;
    site.relay.stop(&site.coordinator).await;
}

#[tokio::test]
async fn what_the_relay_did_not_take_is_told_again_and_not_said_to_be_there() {
    let mut site = Site::new().await;
    // What it must begin with cannot be read.
    std::fs::create_dir(site.floors()).unwrap();
    site.relay.prepare(&site.coordinator).await;
    assert_eq!(site.standing(), Some(0), "it runs and knows nothing");
    assert!(site.handle.report().await.unwrap().networks.is_empty());
    let scenario = async |site: &Site| {
        std::fs::remove_dir(site.floors()).unwrap();
        site.until(Some(site.revision())).await;
        assert_eq!(site.handle.report().await.unwrap().networks.len(), 1);
    };
    site.run(scenario).await;
    site.relay.stop(&site.coordinator).await;
}

#[test]
fn limits_are_in_force_unless_they_are_lifted_expressly() {
    let rates = |config: &RelayConfig| server_config(config, ([127, 0, 0, 1], 1).into()).rates;
    assert_eq!(rates(&RelayConfig::default()), Rates { client: 125_000_000, total: Some(250_000_000) });
    let told = RelayConfig { client_rate_mbit: 8, total_rate_mbit: 80, ..RelayConfig::default() };
    assert_eq!(rates(&told), Rates { client: 1_000_000, total: Some(10_000_000) });
    let lifted = RelayConfig { client_rate_mbit: 0, total_rate_mbit: 0, ..RelayConfig::default() };
    assert_eq!(rates(&lifted).total, None);
}
