//! Another implementation of the protocol: `wireguard-go`, configured as any WireGuard device would be.

use std::{fs, net::IpAddr, process::Child, time::Duration};

use ringmesh_io::Choice;
use ringmesh_lab::in_sandbox;

use crate::{
    support::block_on,
    world::{Machine, Member, World, transfer, within},
};

/// A host with `wireguard-go` on it.
pub struct Stock {
    pub machine: Machine,
    pub ipv4: IpAddr,
    _daemon: Daemon,
    directory: tempfile::TempDir,
}

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a stock peer is told of the node it talks to.
pub struct Terms<'a> {
    /// `None`: the right one.
    psk: Option<&'a str>,
    /// Whether it knows where the node is.
    knows_endpoint: bool,
}

impl Stock {
    pub async fn new(world: &World, node: &mut Member, terms: Terms<'_>) -> Self {
        Self::of(world, node, terms, 1).await
    }

    /// The same, as one of so many peers of the node.
    pub async fn of(world: &World, node: &mut Member, terms: Terms<'_>, peers: usize) -> Self {
        let machine = Machine::new(&world.switch, "stock");
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        let private = machine.sh("wg genkey");
        fs::write(path("private"), &private).unwrap();
        let public = machine.sh(&format!("wg pubkey < {}", path("private")));
        let device = world.add_stock_device("stock", public.trim()).await;
        fs::write(path("psk"), terms.psk.unwrap_or(&device.preshared_key)).unwrap();
        let own = device.node.unwrap();

        let daemon = machine
            .host
            .command("wireguard-go")
            .unwrap()
            .args(["--foreground", "wg0"])
            .env("LOG_LEVEL", "error")
            .spawn()
            .unwrap();
        let daemon = Daemon(daemon);
        within(Duration::from_secs(5), "wireguard-go is up", || {
            machine.shell("wg show wg0").status.success()
        });
        let status = node.node.status().await;
        let key = status.network.unwrap().self_.unwrap().noise_key;
        let endpoint = if terms.knows_endpoint {
            format!("endpoint {}:51820", node.machine.host.ipv4())
        } else {
            String::new()
        };
        machine.sh(&format!(
            "set -e; wg set wg0 listen-port 51821 private-key {} peer {key} preshared-key {} {endpoint} \
             allowed-ips {}/32,{}/128; ip link set wg0 mtu 1408 up; ip address add {}/32 dev wg0; \
             ip -6 address add {}/128 dev wg0 nodad; ip route add {}/32 dev wg0; ip route add {}/128 dev wg0",
            path("private"),
            path("psk"),
            node.ipv4,
            node.ipv6,
            own.ipv4,
            own.ipv6,
            node.ipv4,
            node.ipv6,
        ));
        node.until_peers(peers).await;
        Self { ipv4: own.ipv4.parse().unwrap(), machine, _daemon: daemon, directory }
    }

    /// Removes the node and adds it anew without an endpoint: no session is left, and nothing to begin one with.
    fn forget_sessions(&self, key: &str, node: &Member) {
        self.add_anew(key, node, "");
    }

    /// The same, and it knows where the node is: its next packet begins a session.
    pub fn begin_anew(&self, key: &str, node: &Member) {
        self.add_anew(key, node, &format!("endpoint {}:51820", node.machine.host.ipv4()));
    }

    fn add_anew(&self, key: &str, node: &Member, endpoint: &str) {
        let psk = self.directory.path().join("psk").display().to_string();
        self.machine.sh(&format!(
            "set -e; wg set wg0 peer {key} remove; \
             wg set wg0 peer {key} preshared-key {psk} {endpoint} allowed-ips {}/32,{}/128",
            node.ipv4, node.ipv6
        ));
    }

    /// Whether there was a handshake, by its own account.
    fn has_handshake(&self) -> bool {
        let text = self.machine.sh("wg show wg0 latest-handshakes");
        text.split_whitespace().last().is_some_and(|seconds| seconds != "0")
    }
}

pub const RIGHT: Terms<'_> = Terms { psk: None, knows_endpoint: true };

#[test]
fn wireguard_go_initiates_and_transfers_a_hundred_megabytes() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let mut node = world.node("alice", Choice::Auto).await;
            let stock = Stock::new(&world, &mut node, RIGHT).await;
            stock.machine.ping(node.ipv4);
            stock.machine.ping(node.ipv6);
            assert!(stock.has_handshake());
            // Now that its address is known, the other way as well.
            node.machine.ping(stock.ipv4);

            let mut stock = stock;
            transfer(&mut stock.machine, &mut node.machine, node.ipv4, 100_000_000).await;
        });
    });
}

#[test]
fn wireguard_go_responds_and_transfers_a_hundred_megabytes() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let mut node = world.node("alice", Choice::Auto).await;
            let stock = Stock::new(&world, &mut node, RIGHT).await;
            // It says once where it is. Then its sessions and its knowledge of where the node is are gone, so that only the
            // node can begin.
            stock.machine.ping(node.ipv4);
            let public = node.node.status().await.network.unwrap().self_.unwrap().noise_key;
            stock.forget_sessions(&public, &node);
            assert!(!stock.has_handshake());
            within(Duration::from_secs(30), "the node begins a handshake", || {
                node.machine.reaches(stock.ipv4)
            });
            assert!(stock.has_handshake());
            let mut stock = stock;
            let at = stock.ipv4;
            transfer(&mut node.machine, &mut stock.machine, at, 100_000_000).await;
        });
    });
}

#[test]
fn a_stock_peer_with_another_psk_is_refused() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let mut node = world.node("alice", Choice::Auto).await;
            let wrong = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
            let stock = Stock::new(&world, &mut node, Terms { psk: Some(wrong), ..RIGHT }).await;
            assert!(!stock.machine.reaches(node.ipv4));
            assert!(!stock.has_handshake());
            let status = node.node.status().await;
            assert_eq!(status.peers[0].state, "no-session");
        });
    });
}

#[test]
fn an_echo_to_a_stock_device_points_to_the_systems_ping() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let mut node = world.node("alice", Choice::Auto).await;
            let _stock = Stock::new(&world, &mut node, RIGHT).await;
            let answers = node.node.ping("stock", 1, 500).await.unwrap();
            assert!(answers[0].error.contains("stock WireGuard device"), "{answers:?}");
        });
    });
}
