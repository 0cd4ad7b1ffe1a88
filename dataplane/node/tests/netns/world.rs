//! Hosts on a switch, with a coordinator on one of them and node daemons on the others.

use std::{
    net::{IpAddr, SocketAddr},
    process::{Output, Stdio},
};

use ringmesh_io::Choice;
use ringmesh_lab::{Host, Lab, Switch};
use tokio::runtime::{Builder, Handle, Runtime};

use crate::support::{
    authority::Authority,
    coordinator::TestCoordinator,
    daemon::{Node, Place},
};

/// A host and a runtime whose threads are on it.
pub struct Machine {
    pub host: Host,
    runtime: Option<Runtime>,
}

impl Machine {
    pub fn new(switch: &Switch, name: &str) -> Self {
        let host = switch.host(name).unwrap();
        // Threads inherit the namespaces of the thread that starts them.
        let runtime =
            host.enter(|| Builder::new_multi_thread().worker_threads(2).enable_all().build()).unwrap();
        Self { host, runtime: Some(runtime.unwrap()) }
    }

    pub fn handle(&self) -> Handle {
        self.runtime.as_ref().expect("a machine has a runtime until it is dropped").handle().clone()
    }

    /// Runs something on this host.
    pub async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        self.handle().spawn(work).await.unwrap()
    }

    /// Runs a program on this host.
    pub fn shell(&self, line: &str) -> Output {
        let mut command = self.host.command("sh").unwrap();
        command.args(["-c", line]).stdin(Stdio::null()).output().unwrap()
    }

    /// Runs a program that must succeed, and gives what it printed.
    pub fn sh(&self, line: &str) -> String {
        let output = self.shell(line);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {line}: {text}{errors}", self.host.name());
        text
    }

    /// Sends three echo requests by the system's ping, which must all be answered.
    pub fn ping(&self, to: impl Into<IpAddr>) {
        self.sh(&format!("ping -n -c 3 -i 0.05 -W 5 {}", to.into()));
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A coordinator and hosts for nodes.
pub struct World {
    pub coordinator: TestCoordinator,
    pub head: Machine,
    pub switch: Switch,
    _lab: Lab,
}

impl World {
    pub async fn new() -> Self {
        let lab = Lab::new().unwrap();
        let switch = lab.switch().unwrap();
        let head = Machine::new(&switch, "head");
        let at = SocketAddr::new(head.host.ipv4().into(), 0);
        let coordinator = head.run(TestCoordinator::start_with(Authority::new(), at)).await;
        Self { coordinator, head, switch, _lab: lab }
    }

    /// A host with a daemon on it that has joined.
    pub async fn node(&self, name: &str, io: Choice) -> Member {
        let machine = Machine::new(&self.switch, name);
        let mut place = Place::new();
        place.config.io = io;
        let place = std::sync::Arc::new(place);
        let (token, wish) = (self.coordinator.token(), name.to_owned());
        let start = std::sync::Arc::clone(&place);
        let (node, status) = machine
            .run(async move {
                let mut node = start.start().await.unwrap();
                let status = node.join(&token, &wish).await.unwrap();
                (node, status)
            })
            .await;
        self.coordinator.send_map().await;
        let own = status.network.unwrap().self_.unwrap();
        Member { machine, place, node, ipv4: own.ipv4.parse().unwrap(), ipv6: own.ipv6.parse().unwrap() }
    }
}

/// A host whose daemon has joined.
pub struct Member {
    pub machine: Machine,
    pub place: std::sync::Arc<Place>,
    pub node: Node,
    pub ipv4: IpAddr,
    pub ipv6: IpAddr,
}
