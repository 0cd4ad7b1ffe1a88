//! A node daemon as a process of its own, which can be killed and looked at from outside.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
};

use tokio::{runtime::Builder, sync::oneshot};

use super::daemon::{Node, Place, connect};

/// What a daemon calls the thread that moves packets.
pub const WORKER: &str = "mesh-worker-0";

/// Tells this test program, run again, to be a node daemon with the configuration in that file.
pub const BE_DAEMON: &str = "RINGMESH_NODE_TEST_DAEMON";

/// A node daemon as a process of its own, to be killed.
pub struct Process {
    child: Child,
    pub node: Node,
}

impl Process {
    /// Starts a daemon with the state at `place` by `command`, which runs this test program, and waits until it is ready.
    pub async fn start(mut command: Command, place: &Place) -> Self {
        let config = place.directory.path().join("node.toml");
        let text =
            format!(
                "state_dir = {:?}\nsocket = {:?}\nio = \"{}\"\n",
                place.config.state_dir, place.config.socket, place.config.io
            ) + &place.config.log.as_ref().map(|filter| format!("log = {filter:?}\n")).unwrap_or_default();
        let text = text + &format!("[dns]\nport = {}\n", place.config.dns.port);
        fs::write(&config, text).unwrap();
        let mut child = command
            .args(["be_a_daemon", "--exact", "--nocapture"])
            .env(BE_DAEMON, &config)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let ready = (&mut output).lines().map_while(Result::ok).any(|line| line.ends_with(READY));
        assert!(ready, "the daemon is not ready: {:?}", child.wait());
        std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
        Self { child, node: Node::of_process(connect(place.config.socket.clone()).await) }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// `SIGTERM`; it must end in time and without error.
    pub fn terminate(&mut self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").arg(pid).status().unwrap().success());
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a daemon process prints when it is ready.
const READY: &str = "the daemon is ready";

/// Is the daemon, if this process was started as one.
pub fn be_daemon(config: &str) {
    let config = ringmesh_node::Config::load(config.as_ref()).unwrap();
    if let Some(filter) = &config.log {
        let filter = tracing_subscriber::EnvFilter::new(filter);
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (ready, is_ready) = oneshot::channel();
        let mut terminate =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
        let shutdown = async move {
            terminate.recv().await;
        };
        tokio::spawn(async move {
            is_ready.await.unwrap();
            println!("{READY}");
        });
        ringmesh_node::run(config, shutdown, ready).await.unwrap();
    });
}
