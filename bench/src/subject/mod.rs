//! What is compared: two hosts on some ground, and on them the raw link, our daemons or somebody else's; or our daemons around
//! a router that leaves them but one path.
//!
//! Each subject has its file here; who there is says `kind`, and what they are made of, `tools`.

mod bare;
mod boringtun;
pub(crate) mod crowd;
mod daemons;
mod flows;
mod gotatun;
mod kind;
mod n2n;
mod nebula;
mod ours;
mod star;
mod tinc;
mod tools;
mod wireguard;
mod wireguard_go;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use nix::sys::socket::{getsockopt, sockopt::IpMtu};
use ringmesh_lab::impair::{Road, Roads};
use ringmesh_lab::{Host, Impair, Lab};

use self::daemons::{Daemons, output};
use self::flows::Flows;
pub(crate) use self::kind::{PathKind, Strayed, SubjectKind};
pub(crate) use self::tools::{Newer, Tools};
use crate::ground::{Family, Ground, Laid, Topology};
use crate::report::Measured;
use crate::tuning::Tuning;

/// A subject to be set up: who, and with which settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    /// Who.
    pub(crate) kind: SubjectKind,
    /// How it is set.
    pub(crate) tuning: Tuning,
}

impl Order {
    /// Returns the name in the result.
    pub(crate) fn name(&self) -> String {
        format!("{}{}", self.kind.name(), self.tuning.suffix())
    }
}

impl From<SubjectKind> for Order {
    fn from(kind: SubjectKind) -> Self {
        Self { kind, tuning: Tuning::default() }
    }
}

impl FromStr for Order {
    type Err = String;

    /// Reads `KIND:NAME=VALUE:NAME=VALUE`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, tuning) = text.split_once(':').unwrap_or((text, ""));
        let kind = <SubjectKind as ValueEnum>::from_str(kind, false)?;
        let tuning: Tuning = tuning.parse()?;
        if !kind.is_ours() && tuning.variables().next().is_some() {
            return Err(format!("{} is none of ours: only txqueuelen can be set", kind.name()));
        }
        Ok(Self { kind, tuning })
    }
}

/// One end of what is measured.
#[derive(Debug)]
pub(crate) struct End {
    host: Host,
    address: IpAddr,
}

impl End {
    /// Returns the address by which the other end reaches this one through what is measured.
    pub(crate) fn address(&self) -> IpAddr {
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
    order: Order,
    ground: Ground,
    version: String,
    ends: [End; 2],
    daemons: Daemons,
    /// What to ask about the path, where it matters which it is.
    meshctl: Option<PathBuf>,
    /// What the filters are to remember while it is measured.
    flows: Option<Flows>,
    /// What loses and overtakes datagrams between the two.
    _road: Option<Impair>,
    _router: Option<Host>,
    // Last, so that everything in it has ended before it is taken down.
    _lab: Lab,
}

impl Subject {
    /// Lays the ground and starts what stands on it.
    ///
    /// # Errors
    /// With what could not be set up, and what the program in question said.
    pub(crate) fn set_up(order: &Order, ground: Ground, tools: &Tools) -> Result<Self> {
        let lab = Lab::new()?;
        let mut daemons = Daemons::default();
        let kind = order.kind;
        let ours = || tools.ours(kind).context("there is no meshctl to measure");
        let (hosts, router, up) = if let Some(path) = kind.path() {
            let (hosts, up) = star::set_up(&lab, path, ours()?, &mut daemons)?;
            (hosts, None, up)
        } else {
            let laid = ground.lay(&lab)?;
            let up = if kind.is_ours() {
                let plan = ours::Plan {
                    meshctl: ours()?,
                    null: (kind == SubjectKind::Null).then(|| tools.own()),
                    back_end: kind.back_end(),
                    tuning: &order.tuning,
                    coordinator: &laid.hosts[0],
                    coordinator_address: laid.underlay[0],
                    coordinator_relays: false,
                    nodes: &laid.hosts,
                    ssh: false,
                    policy: (kind == SubjectKind::Rules).then(|| flows::policy(&laid.hosts)),
                };
                plan.carry_out(&mut daemons)?
            } else {
                theirs(kind, &laid, tools, &mut daemons)?
            };
            (laid.hosts, laid.router, up)
        };
        if let (Some(length), Some(interface)) = (order.tuning.txqueuelen, &up.interface) {
            hosts.iter().try_for_each(|host| tools::set_queue(host, interface, length))?;
        }
        let [first, second] = hosts;
        let [near, far] = up.addresses;
        let ends = [End { host: first, address: near }, End { host: second, address: far }];
        let flows = if kind == SubjectKind::Rules { Some(Flows::open(&ends)?) } else { None };
        let meshctl = tools.ours(kind).filter(|_| kind.is_ours()).map(Path::to_owned);
        let (order, version) = (order.clone(), up.version);
        let (_router, _lab, _road) = (router, lab, None);
        Ok(Self { order, ground, version, ends, daemons, meshctl, flows, _road, _router, _lab })
    }

    /// Our daemons at both ends of a road that loses and overtakes datagrams in both directions: a proxy on the router, which
    /// forwards nothing, so that there is no other way. The coordinator is on the router.
    ///
    /// # Errors
    /// With what could not be set up; `nft` is needed.
    pub(crate) fn set_up_impaired(
        order: &Order,
        underlay: Family,
        tools: &Tools,
        road: Road,
    ) -> Result<Self> {
        let lab = Lab::new()?;
        let mut daemons = Daemons::default();
        let ground = Ground { topology: Topology::Routed, underlay };
        let Laid { hosts, underlay: [_, far], router } = ground.lay(&lab)?;
        let router = router.context("invariant: this ground has a router")?;
        router.sysctl("net/ipv4/ip_forward", "0")?;
        router.sysctl("net/ipv6/conf/all/forwarding", "0")?;
        let target = SocketAddr::new(far, ours::NODE_PORT);
        let any: IpAddr =
            if far.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let proxy = Impair::start(&router, SocketAddr::new(any, 0), target, Roads::both(road), SEED)?;
        router.divert_udp(target, proxy.address().port())?;
        let plan = ours::Plan {
            meshctl: tools.meshctl()?,
            null: None,
            back_end: order.kind.back_end(),
            tuning: &order.tuning,
            coordinator: &router,
            coordinator_address: ground.gateway(),
            coordinator_relays: false,
            nodes: &hosts,
            ssh: false,
            policy: None,
        };
        let Up { addresses: [near, far], version, .. } = plan.carry_out(&mut daemons)?;
        let [first, second] = hosts;
        let ends = [End { host: first, address: near }, End { host: second, address: far }];
        let meshctl = Some(tools.meshctl()?.to_owned());
        let (order, _road, _router, _lab) = (order.clone(), Some(proxy), Some(router), lab);
        Ok(Self { order, ground, version, ends, daemons, meshctl, flows: None, _road, _router, _lab })
    }

    /// Fails unless both ends reach each other straight, over UDP.
    ///
    /// # Errors
    /// With the end that does not, or when a daemon does not say.
    pub(crate) fn ensure_direct(&self) -> Result<()> {
        let Some(meshctl) = self.meshctl.as_deref() else { return Ok(()) };
        for End { host, .. } in &self.ends {
            let found = ours::path(host, meshctl)?;
            ensure!(found == "direct", "{}", Strayed::new(host.name(), &found, PathKind::Direct));
        }
        Ok(())
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
        let path = self.order.kind.path();
        let Some((path, meshctl)) = path.zip(self.meshctl.as_deref()) else { return Ok(None) };
        for End { host, .. } in &self.ends {
            let found = ours::path(host, meshctl)?;
            if found != path.label() {
                return Ok(Some(Strayed::new(host.name(), &found, path)));
            }
        }
        Ok(None)
    }

    /// Returns who it is.
    pub(crate) fn name(&self) -> String {
        self.order.name()
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

    /// Returns the same by the id that this program knows.
    pub(crate) fn daemons_here(&self) -> &[u32] {
        &self.daemons.measured_here
    }

    /// Asks our daemons how many system calls their workers made so far; nothing if this is none of ours.
    ///
    /// # Errors
    /// When a daemon does not say.
    pub(crate) fn system_calls(&self) -> Result<Option<u64>> {
        let Some(meshctl) = self.meshctl.as_deref() else { return Ok(None) };
        let calls = self.ends.iter().map(|end| ours::system_calls(&end.host, meshctl));
        calls.sum::<Result<u64>>().map(Some)
    }

    /// Describes it for the report.
    ///
    /// # Errors
    /// When the kernel has no route from one end to the other.
    pub(crate) fn describe(&self) -> Result<Measured> {
        let to = self.second().address;
        let mtu = self.first().enter(move || match to {
            IpAddr::V4(to) => {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                socket.connect((to, 9))?;
                Ok::<_, std::io::Error>(getsockopt(&socket, IpMtu)?)
            }
            // Only the raw link is measured by IPv6, and this is its end.
            IpAddr::V6(_) => {
                let mtu = std::fs::read_to_string("/proc/sys/net/ipv6/conf/eth0/mtu")?;
                mtu.trim().parse().map_err(std::io::Error::other)
            }
        })?;
        let mtu = u32::try_from(mtu.context("asking for the MTU")?).context("the MTU is negative")?;
        Ok(Measured { order: self.order.clone(), ground: self.ground, version: self.version.clone(), mtu })
    }
}

/// Starts a program of somebody else's, or nothing for the cable itself.
#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "what is said of some kinds concerns no other, nor those to come"
)]
fn theirs(kind: SubjectKind, laid: &Laid, tools: &Tools, daemons: &mut Daemons) -> Result<Up> {
    let program = tools.theirs(kind);
    let program = || program.as_deref().with_context(|| format!("there is no {}", kind.name()));
    match kind {
        SubjectKind::WireguardGo | SubjectKind::WireguardGoNewer => {
            wireguard_go::set_up(laid, program()?, daemons)
        }
        SubjectKind::Boringtun => boringtun::set_up(laid, program()?, daemons),
        SubjectKind::Gotatun => gotatun::set_up(laid, program()?, daemons),
        SubjectKind::Nebula | SubjectKind::NebulaNewer => nebula::set_up(laid, program()?, daemons),
        SubjectKind::Tinc => tinc::set_up(laid, program()?, daemons),
        SubjectKind::N2n => n2n::set_up(laid, program()?, daemons),
        _ if kind.is_bare() => bare::set_up(kind, laid, tools, daemons),
        _ => Ok(Up { addresses: laid.underlay, version: "veth pair".to_owned(), interface: None }),
    }
}

/// What runs on two hosts.
#[derive(Debug)]
struct Up {
    /// By which each is reached through what is measured.
    addresses: [IpAddr; 2],
    version: String,
    /// The TUN device, of the same name on both.
    interface: Option<String>,
}

/// Of the chance by which an impaired road loses datagrams: the same in every run.
const SEED: u64 = 6;
/// By which the ends of others' tunnels are reached.
const INNER: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 98, 0, 1), Ipv4Addr::new(10, 98, 0, 2)];
const INNER_PREFIX: u8 = 24;

/// The same, as an [`Up`] has it.
fn inner_addresses() -> [IpAddr; 2] {
    INNER.map(IpAddr::V4)
}

/// The first word of a program's answer that begins with a digit, possibly after a `v` or `v.`.
fn version_in(text: &str) -> Option<&str> {
    let words = text.split_whitespace().map(|word| word.trim_start_matches(['v', '.']).trim_end_matches(','));
    let mut numbers = words.filter(|word| word.starts_with(|first: char| first.is_ascii_digit()));
    numbers.next()
}
