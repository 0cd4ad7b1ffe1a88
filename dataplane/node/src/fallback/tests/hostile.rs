//! Many strangers at once: what they cost, and what those who belong here notice of them.
//!
//! Memory is that of this process, in which the strangers live too, so that the bounds are if anything too strict. In CI there
//! are a hundred of each kind; by hand a thousand: `cargo nextest run -p ringmesh-node --run-ignored only --no-capture hostile`.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use ringmesh_tunnel::{Carrier, key::NodeId};
use russh::keys::{
    PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate,
    ssh_key::private::{Ed25519Keypair, KeypairData},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixStream},
    task::JoinSet,
};

use super::*;
use crate::fallback::{
    link::{Opened, PROOF, STALLED},
    link_socket::LinkSocket,
    ssh::{Members, SshServer, dial_endpoint},
    stream,
};

const ASKED: DialOpen = DialOpen { peer: NodeId::from_bytes([7; 8]), candidate: 3, carrier: Carrier::Ssh };
/// A thousand of each kind may cost so much, at any time.
const MOST: usize = 64 << 20;
/// And a minute later so much of it may be left.
const LEFT: usize = 8 << 20;

/// How late a busy machine may be.
const LATE: Duration = Duration::from_secs(1);

/// What a stranger does once it is connected.
const KINDS: [&[u8]; 5] = [
    b"",
    b"SSH-2.0-nobody\r\n",
    b"SSH-2.0-nobody\r\n\x00\x03\xff\xfc\x04",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x24\x00",
];

/// Says what its kind says, goes on with noise, and never reads. Gives how long it was borne.
async fn pester(mut stream: impl AsyncRead + AsyncWrite + Unpin, kind: usize) -> Duration {
    let begun = Instant::now();
    let _ = stream.write_all(KINDS[kind]).await;
    if kind % 2 == 1 {
        let noise = vec![kind as u8; 4096];
        while begun.elapsed() < Duration::from_secs(2) {
            if timeout(Duration::from_millis(100), stream.write_all(&noise))
                .await
                .is_ok_and(|sent| sent.is_err())
            {
                return begun.elapsed();
            }
            sleep(Duration::from_millis(5)).await;
        }
    }
    let mut answer = Vec::new();
    let _ = timeout(SOON, stream.read_to_end(&mut answer)).await.expect("a stranger was not cut");
    begun.elapsed()
}

/// A link that is there before the strangers come; sends without pause and counts what arrives.
struct Established {
    near: Side,
    link: Link,
    far: Side,
}

impl Established {
    /// Datagrams that arrive in `time`, paced at about 4,000 a second.
    async fn rate(&mut self, time: Duration) -> usize {
        let begun = Instant::now();
        let (mut sent, mut came) = (0, 0);
        while begun.elapsed() < time {
            let due = (begun.elapsed().as_secs_f64() * 4000.0) as usize;
            while sent < due && self.near.links.send(self.link, &[7; 1452]).is_ok() {
                sent += 1;
            }
            self.near.links.flush();
            while let Some(arrival) = self.far.links.receive() {
                match arrival {
                    Arrival::Datagrams { mut batch, .. } => {
                        came += batch.datagrams().filter(|datagram| datagram.len() == 1452).count();
                    }
                    Arrival::Closed { .. } => {}
                    other @ (Arrival::Opened { .. } | Arrival::Failed { .. }) => panic!("{other:?}"),
                }
            }
            while self.near.links.receive().is_some() {}
            sleep(Duration::from_millis(1)).await;
        }
        came
    }
}

/// Looks at this process's memory all the time, and keeps the most that was seen.
struct Watch {
    most: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
    looking: std::thread::JoinHandle<()>,
}

impl Watch {
    fn start() -> Self {
        let (most, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (high, done) = (Arc::clone(&most), Arc::clone(&over));
        let looking = std::thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                high.fetch_max(resident(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        Self { most, over, looking }
    }

    fn most(self) -> usize {
        self.over.store(true, Ordering::Relaxed);
        self.looking.join().unwrap();
        self.most.load(Ordering::Relaxed)
    }
}

/// Runs `count` strangers of every kind and checks what they cost.
async fn bear<S>(count: usize, mut established: Established, connect: impl AsyncFn() -> std::io::Result<S>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let calm = established.rate(Duration::from_secs(3)).await;
    let before = resident();
    let watch = Watch::start();
    let (mut strangers, mut missed) = (JoinSet::new(), 0);
    let coming = async {
        // Mixed, so that every kind meets every other.
        for kind in (0..count).flat_map(|_| 0..KINDS.len()) {
            match timeout(SOON, connect()).await {
                Ok(Ok(stream)) => drop(strangers.spawn(pester(stream, kind))),
                Ok(Err(_)) | Err(_) => missed += 1,
            }
        }
    };
    let (busy, ()) = tokio::join!(established.rate(Duration::from_secs(3)), coming);
    let (mut longest, mut held) = (Duration::ZERO, 0);
    while let Some(borne) = strangers.join_next().await {
        let borne = borne.unwrap();
        longest = longest.max(borne);
        held += usize::from(borne + LATE >= PROOF);
        established.rate(Duration::from_millis(5)).await;
    }
    let grown = watch.most().saturating_sub(before);
    println!(
        "{count} of each kind: {missed} not connected, {held} held, the longest for {longest:.2?}; \
         {busy} of {calm} datagrams; {} KiB more",
        grown >> 10
    );
    assert_eq!(missed, 0, "strangers keep others from connecting");
    assert!(held > 0, "nobody was let in");
    assert!(longest <= PROOF + LATE, "one was borne for {longest:?}");
    assert!(busy * 10 >= calm * 9, "{calm} datagrams before, {busy} beside {count} strangers of each kind");
    assert!(grown <= MOST, "{count} strangers of each kind cost {grown} bytes");
    let until = Instant::now() + Duration::from_secs(60);
    while resident().saturating_sub(before) > LEFT {
        assert!(Instant::now() < until, "{} bytes are left", resident() - before);
        established.rate(Duration::from_millis(100)).await;
    }
}

async fn socket_bears(count: usize) {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("link.sock");
    let (mut near, mut far) = (Side::new(), Side::new());
    let _socket = LinkSocket::bind(&path, far.hub.clone()).await.unwrap();
    let stream = UnixStream::connect(&path).await.unwrap();
    let end = near.hub.open(ASKED);
    let link = end.link();
    assert!(matches!(near.arrival().await, Arrival::Opened { .. }));
    tokio::spawn(async move { stream::pump(stream, &end, Opened::Here).await });
    exchange((&mut near, link), &mut far).await;
    let path: &Path = &path;
    let connect = async || loop {
        match UnixStream::connect(path).await {
            // Others wait to be let in already; TCP waits by itself.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                sleep(Duration::from_millis(1)).await;
            }
            done => return done,
        }
    };
    bear(count, Established { near, link, far }, connect).await;
}

async fn endpoint_bears(count: usize) {
    let (mut near, mut far) = (Side::new(), Side::new());
    let (address, _server) = endpoint(&far).await;
    let stream = dial_endpoint(address, &identity(1).public_key(), &identity(2), None).await.unwrap();
    let end = near.hub.open(ASKED);
    let link = end.link();
    assert!(matches!(near.arrival().await, Arrival::Opened { .. }));
    tokio::spawn(async move { stream.pump(&end).await });
    exchange((&mut near, link), &mut far).await;
    // From many addresses, so that it is not the bound of one source that helps.
    let next = std::cell::Cell::new(0_u32);
    let connect = async || {
        next.set(next.get() + 1);
        let socket = tokio::net::TcpSocket::new_v4()?;
        let [_, b, c, d] = (next.get() % 1000 + 2).to_be_bytes();
        socket.bind((std::net::Ipv4Addr::from([127, b, c, d]), 0).into())?;
        socket.connect(address).await
    };
    bear(count, Established { near, link, far }, connect).await;
}

async fn endpoint(side: &Side) -> (SocketAddr, SshServer) {
    let members = Members::new();
    members.set([identity(2).public_key()]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (address, SshServer::start(listener, &identity(1), members, side.hub.clone()).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_strangers_of_each_kind_on_the_link_socket_cost_little_and_disturb_nobody() {
    socket_bears(100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_strangers_of_each_kind_at_the_ssh_endpoint_cost_little_and_disturb_nobody() {
    endpoint_bears(100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "full size: by hand"]
async fn a_thousand_strangers_of_each_kind_on_the_link_socket_cost_little_and_disturb_nobody() {
    socket_bears(1000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "full size: by hand"]
async fn a_thousand_strangers_of_each_kind_at_the_ssh_endpoint_cost_little_and_disturb_nobody() {
    endpoint_bears(1000).await;
}

/// Checks nothing.
struct Anybody;

impl russh::client::Handler for Anybody {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _shown: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

/// A member that has gone bad: opens a link, never reads, and says it could take four gigabytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_never_reads_costs_a_bounded_queue_and_is_cut() {
    let mut side = Side::new();
    let (address, _server) = endpoint(&side).await;
    let (near, mut far) = tokio::io::duplex(1 << 16);
    let config = russh::client::Config { window_size: u32::MAX, ..Default::default() };
    let mut tcp = TcpStream::connect(address).await.unwrap();
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let carrying = tokio::spawn(async move {
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut far, &mut tcp) => {}
            _ = &mut stopped => {}
        }
        // From now on nothing is read, and the connection stays open.
        (far, tcp)
    });
    let mut handle = russh::client::connect_stream(Arc::new(config), near, Anybody).await.unwrap();
    let pair = Ed25519Keypair::from_seed(identity(2).seed());
    let key = PrivateKey::new(KeypairData::Ed25519(pair), "").unwrap();
    let key = PrivateKeyWithHashAlg::new(Arc::new(key), None);
    assert!(handle.authenticate_publickey("x", key).await.unwrap().success());
    let channel = handle.channel_open_session().await.unwrap();
    channel.request_subsystem(true, "ringmesh").await.unwrap();
    channel.data(&[0, 2, 5, 5][..]).await.unwrap();
    let (link, _) = side.datagrams(1).await;
    side.links.confirm(link);
    stop.send(()).unwrap();
    let _kept = carrying.await.unwrap();

    let before = resident();
    let begun = Instant::now();
    let (mut taken, mut grown) = (0_usize, 0);
    while begun.elapsed() < Duration::from_secs(30) {
        while side.links.send(link, &[7; 1452]).is_ok() {
            taken += 1454;
            side.links.flush();
        }
        grown = grown.max(resident().saturating_sub(before));
        if matches!(side.links.receive(), Some(Arrival::Closed { link: closed }) if closed == link) {
            break;
        }
        sleep(Duration::from_millis(5)).await;
    }
    println!("cut after {:.2?}; {taken} bytes were taken, {grown} of memory", begun.elapsed());
    assert!(begun.elapsed() <= STALLED + LATE, "it was not cut in time");
    // The queue, what the kernel holds of a loopback connection, and what lies between.
    assert!(taken < 12 << 20, "{taken} bytes were taken");
    assert!(grown < 8 << 20, "{grown} bytes of memory");
}
