//! The machines of the demo and the daemons on them.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{BufRead as _, BufReader, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use ringmesh_lab::{Host, Lab};
use ringmesh_proto::{
    admin::{self, CreateTokenRequest, ListNodesRequest, ListNodesResponse},
    local::{PingRequest, PingResponse, StatusRequest, StatusResponse, WhyRequest},
};
use rustix::process::{Pid, Signal, kill_process};

use super::{
    Args,
    ground::{Ground, Terrain},
    lab_failure,
};
use crate::{
    command::block_on,
    connect::Connection,
    daemon::Daemon,
    failure::{Exit, Failure},
    launch::READY,
    token,
};

/// Where the daemons' logs are: in memory, gone with the sandbox.
pub(super) const LOGS: &str = "/run/ringmesh-demo";
/// Where the daemons answer, each on its own machine.
const NODE_SOCKET: &str = "/run/mesh/meshd.sock";
const ADMIN_SOCKET: &str = "/run/mesh-coordinator/coordinator.sock";
/// A daemon that is not ready by then does not start.
const START: Duration = Duration::from_secs(20);
/// A daemon asked to end gets this long.
const STOP: Duration = Duration::from_secs(10);

/// Everything that runs.
#[derive(Debug)]
pub(super) struct Mesh {
    pub(super) coordinator: Machine,
    pub(super) nodes: Vec<Node>,
    pub(super) terrain: Terrain,
    pub(super) ground: Ground,
    // Last, so that it is dropped last.
    pub(super) lab: Lab,
}

/// A node and its place in the mesh, known once it has joined.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) machine: Machine,
    pub(super) addresses: Vec<IpAddr>,
}

/// A host with one daemon.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) host: Host,
    arguments: Vec<OsString>,
    process: Option<Child>,
}

impl Mesh {
    /// Lays the cables; nothing runs yet.
    pub(super) fn new(args: &Args) -> Result<Self, Failure> {
        fs::create_dir_all(LOGS).map_err(|error| {
            Failure::new(Exit::General, format!("cannot create {LOGS}")).cause(error.to_string())
        })?;
        let lab = Lab::new().map_err(lab_failure)?;
        let terrain = args.terrain();
        let mut ground = Ground::new(&lab, terrain)?;
        let coordinator = Machine::new(ground.public("coordinator")?, Daemon::Coordinator, Vec::new());
        let cpus = usable_cpus();
        let nodes = (0..usize::from(args.nodes)).map(|number| {
            let mut flags: Vec<OsString> = vec!["--io".into(), args.io.clone().into()];
            // What would tell the machine otherwise belongs to the machine that the demo runs on; a hosts file each host has.
            flags.extend(["--dns".into(), "hosts".into()]);
            // Left alone, all would take the same one: each believes to be the only node of its machine.
            if let Some(cpu) = cpus.get(number % cpus.len().max(1)) {
                flags.extend(["--cpu".into(), cpu.to_string().into()]);
            }
            flags.extend(terrain.transport.flags().into_iter().map(OsString::from));
            let host = ground.private(&lab, &format!("node{}", number + 1))?;
            Ok(Node { machine: Machine::new(host, Daemon::Node, flags), addresses: Vec::new() })
        });
        let nodes = nodes.collect::<Result<_, Failure>>()?;
        ground.finish(&coordinator.host)?;
        Ok(Self { coordinator, nodes, terrain, ground, lab })
    }

    /// Every node with every other, both ways.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&Node, &Node)> {
        let pairs = self.nodes.iter().flat_map(|one| self.nodes.iter().map(move |other| (one, other)));
        pairs.filter(|(one, other)| one.name() != other.name())
    }

    /// A token that any number of nodes may use.
    pub(super) fn token(&self) -> Result<String, Failure> {
        let request =
            CreateTokenRequest { reusable: true, ttl_seconds: 3600, ..CreateTokenRequest::default() };
        self.admin(async |coordinator| {
            coordinator.call("create a token", coordinator.tokens().create_token(request)).await
        })
        .map(|created| created.secret)
    }

    /// The coordinator's revision, and the members as it knows them, but for its relay.
    pub(super) fn members(&self) -> Result<(u64, Vec<admin::Node>), Failure> {
        let ListNodesResponse { mut nodes, revision } = self.admin(async |coordinator| {
            let request = ListNodesRequest::default();
            coordinator.call("list the nodes", coordinator.nodes().list_nodes(request)).await
        })?;
        nodes.retain(|node| !node.relay);
        Ok((revision, nodes))
    }

    fn admin<T: Send>(
        &self,
        ask: impl AsyncFnOnce(&Connection) -> Result<T, Failure> + Send,
    ) -> Result<T, Failure> {
        self.coordinator.ask(Daemon::Coordinator, ADMIN_SOCKET, ask)
    }
}

impl Node {
    pub(super) fn name(&self) -> &str {
        self.machine.host.name()
    }

    /// `meshctl join` as anybody would type it; the token is in its environment, where `ps` does not show it.
    pub(super) fn join(&mut self, token: &str) -> Result<serde_json::Value, Failure> {
        let output = self.machine.meshctl(["join", "--output", "json"], Some(token))?;
        let joined = serde_json::from_slice(&output.stdout).map_err(|error| {
            Failure::new(Exit::General, "meshctl join did not print JSON").cause(error.to_string())
        })?;
        let status = self.status()?;
        let me = status.network.and_then(|network| network.self_);
        let me =
            me.ok_or_else(|| Failure::new(Exit::General, format!("{} is in no network", self.name())))?;
        self.addresses =
            [me.ipv4, me.ipv6].iter().map(|address| address.parse()).collect::<Result<_, _>>().map_err(
                |error| Failure::new(Exit::General, "meshd has no proper address").cause(format!("{error}")),
            )?;
        Ok(joined)
    }

    /// What `meshctl status` shows.
    pub(super) fn status(&self) -> Result<StatusResponse, Failure> {
        self.machine.ask(Daemon::Node, NODE_SOCKET, async |node| {
            node.call("read the status", node.local().status(StatusRequest {})).await
        })
    }

    /// What `meshctl ping` asks: an echo inside the session.
    pub(super) fn ping(&self, peer: &Self) -> Result<PingResponse, Failure> {
        let request = PingRequest { node: peer.name().to_owned(), count: 1, ..PingRequest::default() };
        self.machine.ask(Daemon::Node, NODE_SOCKET, async |node| {
            let mut answers = node.call("ping", node.local().ping(request)).await?;
            let answer = answers.message().await.map_err(|status| node.refused("ping", &status))?;
            answer.ok_or_else(|| Failure::new(Exit::Unreachable, "meshd answered a ping with nothing"))
        })
    }

    /// What `meshctl why` tells in its first line; empty if the daemon has no verdict.
    pub(super) fn why(&self, peer: &Self) -> Result<String, Failure> {
        let request = WhyRequest { node: peer.name().to_owned() };
        let answer = self.machine.ask(Daemon::Node, NODE_SOCKET, async |node| {
            node.call("tell how a peer is reached", node.local().why(request)).await
        });
        answer.map(|answer| answer.verdict)
    }
}

impl Machine {
    fn new(host: Host, daemon: Daemon, flags: Vec<OsString>) -> Self {
        let run = daemon.arguments().map(OsString::from);
        let arguments = run.into_iter().chain(["--background".into()]).chain(flags).collect();
        Self { host, arguments, process: None }
    }

    /// Where its daemon logs to.
    pub(super) fn log(&self) -> PathBuf {
        Path::new(LOGS).join(self.host.name()).with_extension("log")
    }

    /// The process of its daemon.
    pub(super) fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// Starts the daemon and waits until it answers.
    pub(super) fn start(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + START;
        let ready = self.spawn()?;
        let name = self.host.name();
        match ready.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) if line.trim() == READY => Ok(()),
            Ok(_) | Err(mpsc::RecvTimeoutError::Disconnected) => {
                let log = fs::read_to_string(self.log()).unwrap_or_default();
                Err(Failure::new(Exit::General, format!("the daemon of {name} did not start"))
                    .caused_by_report(&log))
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let seconds = START.as_secs();
                Err(Failure::new(
                    Exit::Timeout,
                    format!("the daemon of {name} was not ready within {seconds} s"),
                ))
            }
        }
    }

    /// Starts the daemon; what it says first comes out of the channel.
    pub(super) fn spawn(&mut self) -> Result<mpsc::Receiver<String>, Failure> {
        let name = self.host.name().to_owned();
        let failed = |error: std::io::Error| {
            Failure::new(Exit::General, format!("cannot start the daemon of {name}")).cause(error.to_string())
        };
        let log: File = OpenOptions::new().create(true).append(true).open(self.log()).map_err(failed)?;
        let mut child = self
            .program()?
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(failed)?;
        let (say, ready) = mpsc::channel();
        if let Some(stdout) = child.stdout.take() {
            thread::spawn(move || {
                let mut line = String::new();
                // The end of the daemon is the end of its output: the channel closes without a word.
                if BufReader::new(stdout).read_line(&mut line).is_ok_and(|length| length > 0) {
                    let _ = say.send(line);
                }
            });
        }
        self.process = Some(child);
        Ok(ready)
    }

    /// Ends the daemon as `kill -9` does.
    pub(super) fn kill(&mut self) -> Result<(), Failure> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        process.kill().and_then(|()| process.wait()).map(drop).map_err(|error| {
            Failure::new(Exit::General, format!("cannot kill the daemon of {}", self.host.name()))
                .cause(error.to_string())
        })
    }

    /// Asks the daemon to end, and expects that it does, in good order.
    pub(super) fn stop(&mut self) -> Result<(), Failure> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        let name = self.host.name();
        if let Some(pid) = i32::try_from(process.id()).ok().and_then(Pid::from_raw) {
            kill_process(pid, Signal::TERM).map_err(|error| {
                Failure::new(Exit::General, format!("cannot end the daemon of {name}"))
                    .cause(error.to_string())
            })?;
        }
        let started = Instant::now();
        loop {
            match process.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => {
                    return Err(Failure::new(
                        Exit::General,
                        format!("the daemon of {name} ended badly: {status}"),
                    ));
                }
                Ok(None) if started.elapsed() < STOP => thread::sleep(Duration::from_millis(5)),
                Ok(None) | Err(_) => {
                    return Err(Failure::new(Exit::Timeout, format!("the daemon of {name} does not end")));
                }
            }
        }
    }

    /// Runs `meshctl` on this machine to its end; its failure is ours.
    pub(super) fn meshctl<const N: usize>(
        &self,
        arguments: [&str; N],
        token: Option<&str>,
    ) -> Result<Output, Failure> {
        let mut program = self.program()?;
        if let Some(token) = token {
            program.env(token::VARIABLE, token);
        }
        self.finish(program, arguments, b"")
    }

    /// The same with something on its standard input.
    pub(super) fn meshctl_given<const N: usize>(
        &self,
        arguments: [&str; N],
        input: &[u8],
    ) -> Result<Output, Failure> {
        self.finish(self.program()?, arguments, input)
    }

    fn finish<const N: usize>(
        &self,
        mut program: Command,
        arguments: [&str; N],
        input: &[u8],
    ) -> Result<Output, Failure> {
        program.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let what = format!("meshctl {} failed on {}", arguments.join(" "), self.host.name());
        let failed = |error: std::io::Error| Failure::new(Exit::General, &what).cause(error.to_string());
        let mut child = program.spawn().map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            // What does not read it has its reasons, and says them.
            let _ = stdin.write_all(input);
        }
        let output = child.wait_with_output().map_err(failed)?;
        if output.status.success() {
            return Ok(output);
        }
        let exit = output.status.code().and_then(Exit::of_code).unwrap_or(Exit::General);
        Err(Failure::new(exit, what).caused_by_report(&String::from_utf8_lossy(&output.stderr)))
    }

    /// This executable, on this machine, with nothing of our caller's settings but the log filter.
    fn program(&self) -> Result<Command, Failure> {
        let executable = std::env::current_exe().map_err(|error| {
            Failure::new(Exit::General, "cannot find this executable").cause(error.to_string())
        })?;
        let mut command = self.host.command(executable).map_err(lab_failure)?;
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("MESH_") && name != "MESH_LOG" {
                command.env_remove(name);
            }
        }
        Ok(command)
    }

    /// Asks the machine's daemon over its socket.
    fn ask<T: Send>(
        &self,
        daemon: Daemon,
        socket: &str,
        ask: impl AsyncFnOnce(&Connection) -> Result<T, Failure> + Send,
    ) -> Result<T, Failure> {
        let answer = self.host.enter(|| {
            block_on(async {
                let connection = Connection::open(daemon, Path::new(socket)).await?;
                ask(&connection).await
            })
        });
        answer.map_err(lab_failure)?
    }
}

/// The CPUs that this process may use.
fn usable_cpus() -> Vec<usize> {
    let set = rustix::thread::sched_getaffinity(None);
    set.map_or_else(
        |_| Vec::new(),
        |set| (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect(),
    )
}
