//! A host: a machine as far as networks, mounts and names go, where programs and closures run.

use std::{
    ffi::OsStr,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    os::unix::process::CommandExt as _,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
};

use nix::sys::{prctl, signal::Signal};

use crate::{
    error::LabError, lab::Shared, namespace::Namespace, process::before_exec, sandbox, switch::Switch,
};

/// What the kernel says for want of a route.
const NO_ROUTE: [io::ErrorKind; 2] = [io::ErrorKind::NetworkUnreachable, io::ErrorKind::HostUnreachable];

/// A host of the lab: own links, host name, `/run` and `/var/lib` (both empty, and gone with the lab), and a hosts file and
/// `/etc/resolv.conf` that begin as the machine's.
#[derive(Debug)]
pub struct Host {
    name: String,
    namespace: Arc<Namespace>,
    interfaces: Vec<Interface>,
    links: AtomicU16,
}

/// Where a host is attached to a switch.
#[derive(Debug, Clone)]
pub struct Interface {
    name: String,
    addresses: (Ipv4Addr, Ipv6Addr),
    switch: Arc<Namespace>,
    port: String,
}

impl Host {
    pub(crate) fn new(shared: &Shared, name: &str) -> Result<Self, LabError> {
        let namespace = shared.namespace(name)?;
        let host =
            Self { name: name.to_owned(), namespace, interfaces: Vec::new(), links: AtomicU16::new(0) };
        // Lets programs send echo requests without CAP_NET_RAW, as distributions do; group 0 is all there is in
        // a user namespace.
        host.sysctl("net/ipv4/ping_group_range", "0 0")?;
        Ok(host)
    }

    /// Its name, which is also its host name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The IPv4 address on the first switch it was attached to; unspecified if on none.
    #[must_use]
    pub fn ipv4(&self) -> Ipv4Addr {
        self.interfaces.first().map_or(Ipv4Addr::UNSPECIFIED, Interface::ipv4)
    }

    /// The IPv6 address on the first switch it was attached to; unspecified if on none.
    #[must_use]
    pub fn ipv6(&self) -> Ipv6Addr {
        self.interfaces.first().map_or(Ipv6Addr::UNSPECIFIED, Interface::ipv6)
    }

    /// The interfaces on switches, in the order of [`attach`](Self::attach).
    #[must_use]
    pub fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    /// Plugs the host into a switch: a new interface `eth<n>`, up and with addresses of the switch's subnets.
    pub fn attach(&mut self, switch: &Switch) -> Result<&Interface, LabError> {
        let link = self.next_link();
        let interface = switch.connect(&self.namespace, &link)?;
        let (v4, v6) = Switch::PREFIX_LENGTHS;
        self.namespace.link_up(&link)?;
        self.namespace.await_carrier(&link)?;
        interface.switch.await_carrier(&interface.port)?;
        self.namespace.add_address(&link, interface.ipv4().into(), v4)?;
        self.namespace.add_address(&link, interface.ipv6().into(), v6)?;
        let place = self.interfaces.len();
        self.interfaces.push(interface);
        Ok(&self.interfaces[place])
    }

    pub(crate) fn cable_to(&self, other: &Self) -> Result<(String, String), LabError> {
        let (near, far) = (self.next_link(), other.next_link());
        self.namespace.add_cable(&near, other.namespace.net(), &far)?;
        self.namespace.link_up(&near)?;
        other.namespace.link_up(&far)?;
        self.namespace.await_carrier(&near)?;
        other.namespace.await_carrier(&far)?;
        Ok((near, far))
    }

    /// A program to run on this host, found in PATH as usual.
    ///
    /// It is in a process group of its own, so a terminal's Ctrl-C is for the lab's holder to handle, and ends with
    /// the sandbox or, outside one, with the thread that started it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command, LabError> {
        command_in(&self.namespace, program)
    }

    pub(crate) fn namespace(&self) -> &Arc<Namespace> {
        &self.namespace
    }

    /// Runs `work` on this host, on a thread of its own, and answers its result.
    ///
    /// A socket opened in it stays on this host, also when it is used elsewhere afterwards:
    /// `host.enter(|| TcpListener::bind("[::]:80"))??`.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        self.namespace.run(work)
    }

    /// Sets one of the host's own kernel settings: `net/ipv4/ip_forward`, `1`.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<(), LabError> {
        self.enter(|| fs::write(format!("/proc/sys/{name}"), value))?
            .map_err(|e| LabError::system(format!("set {name} to {value}"), e))
    }

    /// Brings an interface up.
    pub fn link_up(&self, interface: &str) -> Result<(), LabError> {
        self.namespace.link_up(interface)
    }

    /// Takes an interface down, by which it loses its IPv6 addresses; see [`Interface::unplug`] for a pulled cable.
    pub fn link_down(&self, interface: &str) -> Result<(), LabError> {
        self.namespace.link_down(interface)
    }

    /// Names of the host's interfaces, without the loopback, also those that programs made.
    pub fn links(&self) -> Result<Vec<String>, LabError> {
        self.namespace.links()
    }

    /// Gives an interface one more address, usable at once.
    pub fn add_address(&self, interface: &str, address: IpAddr, prefix_len: u8) -> Result<(), LabError> {
        self.namespace.add_address(interface, address, prefix_len)
    }

    /// Takes an address from an interface.
    pub fn remove_address(&self, interface: &str, address: IpAddr) -> Result<(), LabError> {
        self.namespace.remove_address(interface, address)
    }

    /// Adds a route to a prefix, by way of a router or, without one, straight out of the interface.
    pub fn add_route(
        &self,
        prefix: (IpAddr, u8),
        interface: &str,
        via: Option<IpAddr>,
    ) -> Result<(), LabError> {
        self.namespace.add_route(prefix, interface, via)
    }

    /// Whether packets to `to` would leave this host at all; nothing is sent.
    pub fn has_route(&self, to: impl Into<IpAddr>) -> Result<bool, LabError> {
        let to = to.into();
        let any =
            if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { IpAddr::from(Ipv6Addr::UNSPECIFIED) };
        // Connecting a UDP socket is a question to the routing table and no more; the port does not matter.
        let asked = self.enter(|| UdpSocket::bind((any, 0)).and_then(|socket| socket.connect((to, 9))))?;
        match asked {
            Ok(()) => Ok(true),
            Err(error) if NO_ROUTE.contains(&error.kind()) => Ok(false),
            Err(error) => Err(LabError::system(format!("look for a route to {to}"), error)),
        }
    }

    fn next_link(&self) -> String {
        format!("eth{}", self.links.fetch_add(1, Ordering::Relaxed))
    }
}

impl Interface {
    pub(crate) fn new(
        name: String,
        addresses: (Ipv4Addr, Ipv6Addr),
        switch: Arc<Namespace>,
        port: String,
    ) -> Self {
        Self { name, addresses, switch, port }
    }

    /// Its name on the host.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its IPv4 address, in a /24.
    #[must_use]
    pub fn ipv4(&self) -> Ipv4Addr {
        self.addresses.0
    }

    /// Its IPv6 address, in a /64.
    #[must_use]
    pub fn ipv6(&self) -> Ipv6Addr {
        self.addresses.1
    }

    pub(crate) fn shares_switch_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.switch, &other.switch)
    }

    /// Pulls the cable out of the switch: the host sees its carrier go, and keeps its addresses.
    pub fn unplug(&self) -> Result<(), LabError> {
        self.switch.link_down(&self.port)
    }

    /// Puts the cable back.
    pub fn plug(&self) -> Result<(), LabError> {
        self.switch.link_up(&self.port)?;
        self.switch.await_carrier(&self.port)
    }
}

/// A program to run in `namespace`; see [`Host::command`].
pub(crate) fn command_in(namespace: &Namespace, program: impl AsRef<OsStr>) -> Result<Command, LabError> {
    let join = namespace.joiner().map_err(|e| LabError::system("hold namespaces", e))?;
    let mortal = sandbox::inside().is_none();
    let mut command = Command::new(program);
    command.process_group(0);
    before_exec(&mut command, move || {
        if mortal {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
        }
        join()
    });
    Ok(command)
}
