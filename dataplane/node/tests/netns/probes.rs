//! Programs that talk to each other through the mesh, and tell what got through.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    task::AbortHandle,
    time::{interval, sleep, timeout},
};

use crate::world::{Machine, Member, World};

/// What is not answered within this was dropped: everything here is on one machine, and sessions are there.
pub const SILENCE: Duration = Duration::from_millis(700);
/// Within this what is allowed gets through, handshake and all.
pub const SOON: Duration = Duration::from_secs(5);
/// The longest datagram of these programs: four fragments.
const LONGEST: usize = 5000;

/// How many datagrams came, by their source and the port they came to.
type Counts = BTreeMap<(IpAddr, u16), u64>;

/// UDP ports of a machine that count what comes and answer with the same.
pub struct Echo {
    counts: Arc<Mutex<Counts>>,
    tasks: Vec<AbortHandle>,
}

impl Echo {
    pub async fn start(machine: &mut Machine, ports: &[u16]) -> Self {
        let counts = Arc::default();
        let mut tasks = Vec::new();
        let anywhere: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        for (port, address) in ports.iter().flat_map(|port| anywhere.map(|address| (*port, address))) {
            let counts: Arc<Mutex<Counts>> = Arc::clone(&counts);
            let socket = machine.run(async move { udp_socket(address, port) }).await.unwrap();
            let answer = async move {
                let mut buffer = vec![0; LONGEST];
                loop {
                    // An error is an ICMP error that came for an answer.
                    let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
                    *counts.lock().unwrap().entry((from.ip(), port)).or_default() += 1;
                    let _ = socket.send_to(&buffer[..length], from).await;
                }
            };
            tasks.push(machine.handle().spawn(answer).abort_handle());
        }
        Self { counts, tasks }
    }

    /// How many came from an address to a port.
    pub fn count(&self, from: IpAddr, port: u16) -> u64 {
        self.counts.lock().unwrap().get(&(from, port)).copied().unwrap_or(0)
    }

    /// Waits until more come from an address to a port.
    pub async fn more(&self, from: IpAddr, port: u16) {
        let (before, began) = (self.count(from, port), Instant::now());
        while self.count(from, port) == before {
            assert!(began.elapsed() < SOON, "nothing from {from} to port {port} in {SOON:?}");
            sleep(Duration::from_millis(1)).await;
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

/// A socket that takes one family only, so that there can be one of each on a port.
fn udp_socket(address: IpAddr, port: u16) -> io::Result<UdpSocket> {
    let domain = socket2::Domain::for_address(SocketAddr::new(address, port));
    let socket = socket2::Socket::new(domain, socket2::Type::DGRAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(address, port).into())?;
    UdpSocket::from_std(socket.into())
}

/// The wildcard address of a family.
fn any(like: IpAddr) -> SocketAddr {
    let address: IpAddr =
        if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    SocketAddr::new(address, 0)
}

/// Sends `length` bytes to a UDP port and waits for the same to come back.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] if nothing came in [`SILENCE`], and what ICMP errors say.
pub async fn ask_udp(machine: &mut Machine, to: IpAddr, port: u16, length: usize) -> io::Result<()> {
    machine
        .run(async move {
            let socket = UdpSocket::bind(any(to)).await?;
            socket.connect((to, port)).await?;
            let sent: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            socket.send(&sent).await?;
            let mut buffer = vec![0; LONGEST];
            let answer = timeout(SILENCE, socket.recv(&mut buffer)).await;
            let read = answer.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            assert_eq!(buffer[..read], sent);
            Ok(())
        })
        .await
}

/// The same, again until it works.
pub async fn until_udp(machine: &mut Machine, to: IpAddr, port: u16, length: usize) {
    let began = Instant::now();
    while let Err(error) = ask_udp(machine, to, port, length).await {
        assert!(began.elapsed() < SOON, "no answer from {to}, UDP port {port}: {error}");
    }
}

/// TCP ports of a machine that answer with what they get.
pub async fn serve_tcp(machine: &mut Machine, ports: &[u16]) {
    for port in ports {
        let at = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), *port);
        let listener = machine.run(async move { TcpListener::bind(at).await.unwrap() }).await;
        machine.handle().spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
    }
}

/// Connects to a TCP port and has a few bytes answered.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] if nothing came in [`SILENCE`].
pub async fn ask_tcp(machine: &mut Machine, to: IpAddr, port: u16) -> io::Result<()> {
    machine
        .run(async move {
            let asked = async {
                let mut stream = TcpStream::connect((to, port)).await?;
                round_trip(&mut stream, b"hello").await
            };
            timeout(SILENCE, asked).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
        })
        .await
}

/// The same, again until it works.
pub async fn until_tcp(machine: &mut Machine, to: IpAddr, port: u16) {
    let began = Instant::now();
    while let Err(error) = ask_tcp(machine, to, port).await {
        assert!(began.elapsed() < SOON, "no answer from {to}, TCP port {port}: {error}");
    }
}

/// Sends a few bytes and reads them back.
pub async fn round_trip(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    let mut read = vec![0; bytes.len()];
    stream.read_exact(&mut read).await?;
    assert_eq!(read, bytes);
    Ok(())
}

/// Whether something was dropped on the way: neither an answer nor an error came.
pub fn is_silence(result: io::Result<()>) -> bool {
    matches!(result, Err(error) if error.kind() == io::ErrorKind::TimedOut)
}

/// Datagrams to each of `to`, `pause` apart, until the task is aborted. What the machine refuses is only not sent.
pub async fn keep_sending(machine: &mut Machine, to: Vec<SocketAddr>, pause: Duration) -> AbortHandle {
    let socket =
        machine.run(async move { UdpSocket::bind(any(to[0].ip())).await.map(|socket| (socket, to)) }).await;
    let (socket, to) = socket.unwrap();
    let send = async move {
        let mut ticks = interval(pause);
        loop {
            ticks.tick().await;
            for to in &to {
                let _ = socket.send_to(b"probe", to).await;
            }
        }
    };
    machine.handle().spawn(send).abort_handle()
}

/// Nodes of one world that know each other, by their names.
pub async fn members<const N: usize>(world: &World, names: [&str; N]) -> [Member; N] {
    let mut members = Vec::new();
    for name in names {
        members.push(world.node(name, ringmesh_io::Choice::Auto).await);
    }
    for member in &mut members {
        member.until_peers(N - 1).await;
    }
    members.try_into().unwrap_or_else(|_| panic!("as many as names"))
}
