//! What is compared: two hosts joined by a cable, and on them the raw link, our daemons or somebody else's; or our daemons
//! around a router that leaves them but one path.
//!
//! A cable (a veth pair) with nothing in between is the fastest link there is here, so that the daemons and not the link
//! are the limit. It passes super-packets whole, which flatters everybody who makes them; see `docs/benchmarks.md`.

mod flows;
mod ours;
mod star;
mod wireguard_go;

use std::fmt;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use nix::sys::socket::{getsockopt, sockopt::IpMtu};
use ringmesh_lab::{Host, Lab};

use self::flows::Flows;
use crate::cpu::box_pid;
use crate::report::Measured;

/// Addresses of the two hosts on the cable.
const UNDERLAY: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 99, 0, 1), Ipv4Addr::new(10, 99, 0, 2)];
const UNDERLAY_PREFIX: u8 = 24;

/// Who can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum SubjectKind {
    /// The cable itself.
    Raw,
    /// Our daemons on io_uring.
    Uring,
    /// Our daemons on the portable back end.
    Poll,
    /// The `wireguard-go` found in PATH.
    WireguardGo,
    /// Our daemons on io_uring, with a thousand rules and ten thousand flows.
    Rules,
    /// Another build of our daemons on io_uring, named by `--earlier`.
    Earlier,
    /// Our daemons around a router, straight over UDP.
    Direct,
    /// The same by way of the coordinator's relay, over UDP.
    Relay,
    /// The same by way of the coordinator's relay, over WebSockets.
    Websocket,
    /// The same over an SSH stream from node to node.
    Ssh,
}

/// One of our paths, as `meshctl peers` calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PathKind {
    /// UDP from node to node.
    Direct,
    /// UDP by way of a relay.
    Relay,
    /// A WebSocket to a relay, for both nodes.
    Websocket,
    /// SSH from node to node.
    Ssh,
}

impl PathKind {
    /// Returns the label.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relay => "relay",
            Self::Websocket => "websocket",
            Self::Ssh => "ssh",
        }
    }
}

/// A path other than the one that was to be measured, by the end that says so.
#[derive(Clone, Debug)]
pub(crate) struct Strayed {
    host: String,
    path: String,
    asked: &'static str,
}

impl Strayed {
    /// The host called `host` says `path`, where `asked` was to be measured.
    pub(crate) fn new(host: &str, path: &str, asked: PathKind) -> Self {
        Self { host: host.to_owned(), path: path.to_owned(), asked: asked.label() }
    }
}

impl fmt::Display for Strayed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, path, asked } = self;
        write!(out, "the path of the {host} end was {path:?} and not {asked:?}")
    }
}

impl SubjectKind {
    /// What is compared unless something else is asked for: ourselves with others and with the cable.
    pub(crate) const SYSTEMS: [Self; 4] = [Self::Raw, Self::Uring, Self::Poll, Self::WireguardGo];
    /// What is compared by `--paths`: our own ways to reach a peer.
    pub(crate) const PATHS: [Self; 4] = [Self::Direct, Self::Relay, Self::Websocket, Self::Ssh];
    /// What is compared by `--filter`: the policy that a network begins with, and a large one.
    pub(crate) const FILTER: [Self; 2] = [Self::Uring, Self::Rules];
    /// The same beside another build.
    pub(crate) const FILTER_AND_EARLIER: [Self; 3] = [Self::Uring, Self::Rules, Self::Earlier];

    /// Returns the name in the result and on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Uring => "uring",
            Self::Poll => "poll",
            Self::WireguardGo => "wireguard-go",
            Self::Rules => "rules",
            Self::Earlier => "earlier",
            Self::Direct | Self::Relay | Self::Websocket | Self::Ssh => {
                self.path().map_or("", PathKind::label)
            }
        }
    }

    /// Says whether our daemons are measured.
    pub(crate) fn is_ours(self) -> bool {
        matches!(self, Self::Uring | Self::Poll | Self::Rules | Self::Earlier) || self.path().is_some()
    }

    /// Returns the back end that our daemons use.
    fn back_end(self) -> &'static str {
        if self == Self::Poll { "poll" } else { "uring" }
    }

    /// Returns the path that all packets must take, if this is about one.
    pub(crate) fn path(self) -> Option<PathKind> {
        match self {
            Self::Direct => Some(PathKind::Direct),
            Self::Relay => Some(PathKind::Relay),
            Self::Websocket => Some(PathKind::Websocket),
            Self::Ssh => Some(PathKind::Ssh),
            Self::Raw | Self::Uring | Self::Poll | Self::WireguardGo | Self::Rules | Self::Earlier => None,
        }
    }

    /// Returns what its medians are divided by: only what stands on the same ground can be compared.
    pub(crate) fn references(self) -> &'static [Self] {
        match self {
            Self::Uring => &[Self::WireguardGo, Self::Raw, Self::Earlier],
            Self::Poll => &[Self::WireguardGo, Self::Raw],
            Self::Rules => &[Self::Uring, Self::Earlier],
            Self::Relay | Self::Websocket | Self::Ssh => &[Self::Direct],
            Self::Raw | Self::WireguardGo | Self::Direct | Self::Earlier => &[],
        }
    }
}

/// The programs that subjects are made of.
#[derive(Debug)]
pub(crate) struct Tools {
    meshctl: Option<PathBuf>,
    /// Another build.
    earlier: Option<PathBuf>,
}

impl Tools {
    /// Takes the `meshctl` that was named, or the one beside this program.
    ///
    /// # Errors
    /// When one that was named does not exist.
    pub(crate) fn find(meshctl: Option<&Path>, earlier: Option<&Path>) -> Result<Self> {
        let named = |path: &Path| {
            ensure!(path.is_file(), "there is no {}", path.display());
            path.canonicalize().with_context(|| format!("finding {}", path.display()))
        };
        let earlier = earlier.map(named).transpose()?;
        if let Some(path) = meshctl {
            return Ok(Self { meshctl: Some(named(path)?), earlier });
        }
        let own = std::env::current_exe().context("asking for this program's path")?;
        Ok(Self { meshctl: Some(own.with_file_name("meshctl")).filter(|path| path.is_file()), earlier })
    }

    /// The program that a subject of ours is made of.
    fn of(&self, kind: SubjectKind) -> Option<&Path> {
        if kind == SubjectKind::Earlier { self.earlier.as_deref() } else { self.meshctl.as_deref() }
    }

    /// Says why a subject cannot be set up here, if it cannot.
    pub(crate) fn missing_for(&self, kind: SubjectKind) -> Option<&'static str> {
        let runs = |program: &str| {
            let mut command = Command::new(program);
            command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok()
        };
        match kind {
            SubjectKind::Raw => None,
            SubjectKind::Earlier => {
                self.earlier.is_none().then_some("no other build was named; name one with --earlier")
            }
            _ if kind.is_ours() && self.meshctl.is_none() => {
                Some("there is no meshctl beside this program; cargo build it, or name one with --meshctl")
            }
            SubjectKind::Uring | SubjectKind::Poll | SubjectKind::Rules => None,
            SubjectKind::Direct | SubjectKind::Relay | SubjectKind::Websocket | SubjectKind::Ssh => {
                (!star::can_block()).then_some("there is no nft (apt-get install nftables)")
            }
            SubjectKind::WireguardGo => {
                let installed = runs("wireguard-go") && runs("wg");
                (!installed).then_some("not installed (apt-get install wireguard-go wireguard-tools)")
            }
        }
    }
}

/// One end of what is measured.
#[derive(Debug)]
pub(crate) struct End {
    host: Host,
    address: Ipv4Addr,
}

impl End {
    /// Returns the address by which the other end reaches this one through what is measured.
    pub(crate) fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Runs a closure in this end's network namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.host.enter(work).with_context(|| format!("entering host {}", self.host.name()))
    }
}

/// A subject that is up. What it started ends with it.
#[derive(Debug)]
pub(crate) struct Subject {
    kind: SubjectKind,
    version: String,
    ends: [End; 2],
    daemons: Daemons,
    /// What to ask about the path, where it matters which it is.
    meshctl: Option<PathBuf>,
    /// What the filters are to remember while it is measured.
    flows: Option<Flows>,
    // Last, so that everything in it has ended before it is taken down.
    _lab: Lab,
}

impl Subject {
    /// Lays the cable and starts what goes over it.
    ///
    /// # Errors
    /// With what could not be set up, and what the program in question said.
    pub(crate) fn set_up(kind: SubjectKind, tools: &Tools) -> Result<Self> {
        let lab = Lab::new()?;
        let mut daemons = Daemons::default();
        let ours = || tools.of(kind).context("there is no meshctl to measure");
        let (hosts, Up { addresses, version }) = match kind.path() {
            Some(path) => star::set_up(&lab, path, ours()?, &mut daemons)?,
            None => {
                let hosts = cabled(&lab)?;
                let up = if kind == SubjectKind::WireguardGo {
                    wireguard_go::set_up(&hosts, &mut daemons)?
                } else if kind.is_ours() {
                    let plan = ours::Plan {
                        meshctl: ours()?,
                        back_end: kind.back_end(),
                        coordinator: &hosts[0],
                        coordinator_address: UNDERLAY[0],
                        coordinator_relays: false,
                        nodes: &hosts,
                        ssh: false,
                        policy: (kind == SubjectKind::Rules).then(|| flows::policy(&hosts)),
                    };
                    plan.carry_out(&mut daemons)?
                } else {
                    Up { addresses: UNDERLAY, version: "veth pair".to_owned() }
                };
                (hosts, up)
            }
        };
        let [first, second] = hosts;
        let ends = [End { host: first, address: addresses[0] }, End { host: second, address: addresses[1] }];
        let flows = if kind == SubjectKind::Rules { Some(Flows::open(&ends)?) } else { None };
        let meshctl = tools.of(kind).map(Path::to_owned);
        Ok(Self { kind, version, ends, daemons, meshctl, flows, _lab: lab })
    }

    /// Makes sure that the filters of both ends remember all flows that they are to remember.
    ///
    /// # Errors
    /// When they do not.
    pub(crate) fn refresh_flows(&self) -> Result<()> {
        let Some((flows, meshctl)) = self.flows.as_ref().zip(self.meshctl.as_deref()) else { return Ok(()) };
        flows.refresh()?;
        for End { host, .. } in &self.ends {
            let tracked = ours::flows(host, meshctl)?;
            let least = flows::COUNT;
            ensure!(tracked >= least, "{} remembers {tracked} flows and not {least}", host.name());
        }
        Ok(())
    }

    /// Tells of an end whose packets take another path than the one that is to be measured.
    ///
    /// # Errors
    /// When a daemon does not say.
    pub(crate) fn strayed(&self) -> Result<Option<Strayed>> {
        let Some((path, meshctl)) = self.kind.path().zip(self.meshctl.as_deref()) else { return Ok(None) };
        for End { host, .. } in &self.ends {
            let found = ours::path(host, meshctl)?;
            if found != path.label() {
                return Ok(Some(Strayed::new(host.name(), &found, path)));
            }
        }
        Ok(None)
    }

    /// Returns who it is.
    pub(crate) fn kind(&self) -> SubjectKind {
        self.kind
    }

    /// Returns the end that sends, unless a measurement is of the way back.
    pub(crate) fn first(&self) -> &End {
        &self.ends[0]
    }

    /// Returns the other end.
    pub(crate) fn second(&self) -> &End {
        &self.ends[1]
    }

    /// Returns the processes that move packets, by their id in the whole box.
    pub(crate) fn daemons(&self) -> &[u32] {
        &self.daemons.measured
    }

    /// Describes it for the report.
    ///
    /// # Errors
    /// When the kernel has no route from one end to the other.
    pub(crate) fn describe(&self) -> Result<Measured> {
        let to = SocketAddrV4::new(self.second().address, 9);
        let mtu = self.first().enter(move || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(to)?;
            Ok::<_, std::io::Error>(getsockopt(&socket, IpMtu)?)
        })?;
        let mtu = u32::try_from(mtu.context("asking for the MTU")?).context("the MTU is negative")?;
        Ok(Measured { kind: self.kind, version: self.version.clone(), mtu })
    }
}

/// What runs on two hosts.
#[derive(Debug)]
struct Up {
    /// By which each is reached through what is measured.
    addresses: [Ipv4Addr; 2],
    version: String,
}

/// Two hosts, and a cable between them.
fn cabled(lab: &Lab) -> Result<[Host; 2]> {
    let hosts = [lab.host("first")?, lab.host("second")?];
    let (near, far) = lab.cable(&hosts[0], &hosts[1])?;
    for ((host, link), address) in hosts.iter().zip([near, far]).zip(UNDERLAY) {
        host.add_address(&link, address.into(), UNDERLAY_PREFIX)?;
    }
    Ok(hosts)
}

/// Processes that end with their subject.
#[derive(Debug, Default)]
struct Daemons {
    children: Vec<Child>,
    measured: Vec<u32>,
}

impl Daemons {
    /// Starts a process that is needed but not measured.
    fn start(&mut self, mut command: Command) -> Result<()> {
        self.spawn(&mut command).map(|_| ())
    }

    /// Starts a process that moves packets, whose CPU time counts.
    fn start_measured(&mut self, mut command: Command) -> Result<()> {
        let pid = self.spawn(&mut command)?;
        self.measured.push(box_pid(pid));
        Ok(())
    }

    fn spawn(&mut self, command: &mut Command) -> Result<u32> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let child = child.with_context(|| format!("starting {:?}", command.get_program()))?;
        let pid = child.id();
        self.children.push(child);
        Ok(pid)
    }

    /// Fails if one of them has ended, which explains better than a time-out what went wrong.
    fn check(&mut self) -> Result<()> {
        for child in &mut self.children {
            if let Some(status) = child.try_wait().context("asking for a daemon's state")? {
                bail!("a daemon ended early ({status}); see what it said above");
            }
        }
        Ok(())
    }
}

impl Drop for Daemons {
    fn drop(&mut self) {
        // Last started, first stopped: a node would complain about its coordinator.
        for child in self.children.iter_mut().rev() {
            // It may have ended by itself; there is nothing more to be done about either failing.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Runs a program to its end and returns what it wrote to standard output.
fn output(mut command: Command, input: &str) -> Result<String> {
    let program = command.get_program().to_owned();
    let running = || format!("running {} {:?}", program.display(), command.get_args().next());
    let what = running();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| what.clone())?;
    // Small enough for the pipe, and the pipe is closed when it goes out of scope.
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).with_context(|| what.clone())?;
    }
    let done = child.wait_with_output().with_context(|| what.clone())?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{what} failed ({}): {}", done.status, said.trim());
    String::from_utf8(done.stdout).with_context(|| format!("{what}: its output is not text"))
}
