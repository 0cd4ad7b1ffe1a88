//! The server: sockets that only this machine can reach, and what runs on them.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ringmesh_proto::control::Reason;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::{Semaphore, watch},
    task::JoinSet,
};

use super::{
    answering::{Answer, Resolver},
    counters::Report,
    forward::{Forwarder, Upstreams},
    tcp, udp,
    zone::Zone,
};
use crate::error::Failure;

/// Connections that the kernel keeps while all places are taken.
const BACKLOG: i32 = 16;
/// How often a free port is looked for that both protocols can have, when any will do.
const PORT_TRIES: usize = 16;

/// Whom to answer: the addresses at which this machine asks.
#[derive(Debug)]
pub(super) struct Machine(BTreeSet<IpAddr>);

impl Machine {
    pub(super) fn new(listen: &[SocketAddr]) -> Self {
        Self(listen.iter().map(SocketAddr::ip).collect())
    }

    /// Whether `address` is one of the machine's: one where the server answers, or a loopback address.
    pub(super) fn has(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.0.contains(&address)
    }
}

/// A DNS server for this machine, on its mesh addresses, by UDP and TCP. It ends when it is dropped.
///
/// Two checks keep strangers out. A filter in the kernel lets nothing to the sockets but what this machine sent itself, so
/// that others do not even learn that something listens (RFC 5358 is about what becomes of resolvers that answer everybody).
/// And of that, only queries from the addresses of [`Machine`] are read.
#[derive(Debug)]
pub(crate) struct Server {
    resolver: Arc<Resolver>,
    bound: Vec<SocketAddr>,
    tasks: JoinSet<()>,
}

impl Server {
    /// Answers at `listen`, from the newest `zone`, and asks `upstreams` for names of others. Port 0 is any free one. The
    /// addresses may be given to an interface later. To be called in a runtime of tokio.
    ///
    /// # Errors
    ///
    /// [`Reason::InvalidArgument`] for the unspecified address, which would listen to everybody; [`Reason::Host`] if the
    /// system does not give the sockets.
    pub(crate) fn start(
        listen: &[SocketAddr],
        zone: watch::Receiver<Arc<Zone>>,
        upstreams: Upstreams,
    ) -> Result<Self, Failure> {
        let sockets = listen.iter().map(|address| open(*address)).collect::<Result<Vec<_>, _>>()?;
        let bound: Vec<SocketAddr> = sockets.iter().map(|(address, ..)| *address).collect();
        let forwarder = Forwarder::new(upstreams, bound.iter().copied());
        let resolver = Arc::new(Resolver::new(zone, forwarder));
        let machine = Arc::new(Machine::new(&bound));
        let places = Arc::new(Semaphore::new(tcp::CONNECTIONS_MAX));
        let mut tasks = JoinSet::new();
        for (address, socket, listener) in sockets {
            let failed = |error| failure(address, &error);
            let socket = UdpSocket::from_std(socket.into()).map_err(failed)?;
            let listener = TcpListener::from_std(listener.into()).map_err(failed)?;
            tasks.spawn(udp::serve(socket, Arc::clone(&machine), Arc::clone(&resolver)));
            let (machine, resolver) = (Arc::clone(&machine), Arc::clone(&resolver));
            tasks.spawn(tcp::serve(listener, machine, resolver, Arc::clone(&places)));
        }
        Ok(Self { resolver, bound, tasks })
    }

    /// Where it answers, by UDP and TCP alike.
    pub(crate) fn bound(&self) -> &[SocketAddr] {
        &self.bound
    }

    /// Who is asked for names of others, in this order: never this server itself, nor more than three.
    pub(crate) fn upstreams(&self) -> Vec<SocketAddr> {
        self.resolver.forwarder.upstreams()
    }

    /// What it did since the start.
    pub(crate) fn report(&self) -> Report {
        self.resolver.counters.report()
    }

    /// Asks for records of type `kind` (`A`, `AAAA`, ...) at the full `name`, as a packet would, and is counted as one.
    ///
    /// # Errors
    ///
    /// [`Reason::InvalidArgument`] if either of them cannot be asked for, [`Reason::Unreachable`] if a resolver gave what
    /// cannot be read. That there is no answer is an [`Answer`] as well.
    pub(crate) async fn query(&self, name: &str, kind: &str) -> Result<Answer, Failure> {
        self.resolver.query(name, kind).await
    }

    /// Ends the server: when this returns its sockets are closed.
    pub(crate) async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

/// Opens both sockets of an address; the port is the same.
fn open(address: SocketAddr) -> Result<(SocketAddr, Socket, Socket), Failure> {
    if address.ip().is_unspecified() || address.ip().is_multicast() {
        return Err(Failure::invalid(format!(
            "DNS is not answered at {}, where everybody could ask: name an address of this machine",
            address.ip()
        )));
    }
    let mut tries = 0;
    loop {
        let socket = bind(address, Type::DGRAM).map_err(|error| failure(address, &error))?;
        let local = socket.local_addr().map_err(|error| failure(address, &error))?;
        let bound = local.as_socket().unwrap_or(address);
        tries += 1;
        match bind(bound, Type::STREAM) {
            Ok(listener) => return Ok((bound, socket, listener)),
            // Somebody has this port by TCP: there are others.
            Err(error)
                if address.port() == 0 && error.kind() == io::ErrorKind::AddrInUse && tries < PORT_TRIES => {}
            Err(error) => return Err(failure(bound, &error)),
        }
    }
}

fn bind(address: SocketAddr, kind: Type) -> io::Result<Socket> {
    let protocol = if kind == Type::STREAM { Protocol::TCP } else { Protocol::UDP };
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    // The interface may come later, and an IPv6 address may still be looked for on the link.
    if address.is_ipv4() {
        socket.set_freebind_v4(true)?;
    } else {
        socket.set_only_v6(true)?;
        socket.set_freebind_v6(true)?;
    }
    if kind == Type::STREAM {
        // Connections of a server that has ended do not keep the next one from listening.
        socket.set_reuse_address(true)?;
    }
    // Before the socket has a name: from its first moment nobody else reaches it.
    socket.attach_filter(&only_this_machine())?;
    socket.bind(&address.into())?;
    if kind == Type::STREAM {
        socket.listen(BACKLOG)?;
    }
    Ok(socket)
}

/// Lets pass what came in by the loopback interface, which is the way of all that a machine sends to its own addresses. The
/// rest is dropped by the kernel without a word: no answer, no handshake, no `port unreachable`.
const fn only_this_machine() -> [SockFilter; 4] {
    const LOAD_WORD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    // `SKF_AD_OFF + SKF_AD_IFINDEX` of linux/filter.h: the index of the interface.
    const INTERFACE: u32 = (-0x1000_i32 + 8) as u32;
    // The loopback interface has this one in every network namespace (`LOOPBACK_IFINDEX` of the kernel).
    const LOOPBACK: u32 = 1;
    [
        SockFilter::new(LOAD_WORD, 0, 0, INTERFACE),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, LOOPBACK),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

fn failure(address: SocketAddr, error: &io::Error) -> Failure {
    let doing = format!("answering DNS at {address}");
    if error.kind() == io::ErrorKind::AddrInUse {
        let (ip, port) = (address.ip(), address.port());
        return Failure::new(
            Reason::Host,
            format!(
                "{doing}: another DNS server has port {port} of this address, or of all addresses; let it listen on its own \
                 addresses only (not on {ip}), or set another `port` in [dns]"
            ),
        );
    }
    Failure::host(doing, error)
}
