//! What stands between nodes, and what else can carry their datagrams: routers, an SSH server, a reverse proxy; and a
//! transfer that watches how smoothly it goes.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ringmesh_lab::{Host, Lab, Router, Switch};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
    time::MissedTickBehavior,
};

use crate::world::{Machine, Member, within};

/// A host on a switch of its own, with a router between it and the outside.
pub struct Behind {
    pub machine: Machine,
    pub router: Router,
}

impl Behind {
    /// `translate` makes the router a NAT.
    pub fn new(
        lab: &Lab,
        outside: &Switch,
        name: &str,
        translate: impl FnOnce(&Router) -> Result<(), ringmesh_lab::LabError>,
    ) -> Self {
        let inside = lab.switch().unwrap();
        let router = lab.router(&format!("{name}-router"), &inside, outside).unwrap();
        translate(&router).unwrap();
        let machine = Machine::new(&inside, name);
        router.serve(&machine.host).unwrap();
        Self { machine, router }
    }
}

/// Asserts that nobody on `hosts` could send anything to the addresses of `inside`, whatever it tried.
pub fn assert_unreachable<'a>(hosts: impl IntoIterator<Item = &'a Host>, inside: &Host) {
    for host in hosts {
        for address in [IpAddr::from(inside.ipv4()), inside.ipv6().into()] {
            let name = host.name();
            assert!(
                !host.has_route(address).unwrap(),
                "{name} has a route to {address} of {}",
                inside.name()
            );
        }
    }
}

/// Pings ten times a second until the first answer comes, which must be within `limit`; tells how long it took.
pub fn first_answer(from: &Machine, to: IpAddr, limit: Duration) -> Duration {
    let began = Instant::now();
    let seconds = limit.as_secs() + 1;
    // With a deadline, ping asks until it has as many answers as were wished for.
    let output = from.shell(&format!("ping -n -i 0.1 -c 1 -w {seconds} {to}"));
    let took = began.elapsed();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && took <= limit,
        "{}: no answer after {took:?}: {text}",
        from.host.name()
    );
    took
}

/// A program that ends when this does.
pub struct Server(Child);

impl Server {
    /// Starts a program and waits until it listens at `at`.
    pub fn start(mut command: Command, host: &Host, at: SocketAddr) -> Self {
        let server = Self(command.stdin(Stdio::null()).spawn().unwrap());
        within(Duration::from_secs(10), &format!("{command:?} listens"), || {
            host.enter(|| std::net::TcpStream::connect(at)).unwrap().is_ok()
        });
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // What it started ends with the lab.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A user that a host's own `/etc/passwd` has, and nobody else's.
const USER: &str = "traveller";

/// Debian's SSH server with Debian's configuration, and a user without rights who may log in by a key.
pub struct Sshd {
    pub user: &'static str,
    pub key: PathBuf,
    /// The server's key, as `ssh-keygen -lf` shows it.
    pub fingerprint: String,
    pub port: u16,
    _server: Server,
}

impl Sshd {
    /// Starts it on `machine`; the user's key is kept in `folder`. Only root can: it becomes the user who logs in.
    pub fn start(machine: &Machine, folder: &Path) -> Self {
        let port = 22;
        let key = folder.join(format!("key-for-{}", machine.host.name()));
        let id = key.display();
        // The host's own folder and its own mounts: they are gone with it. The server believes no file below a folder
        // that everybody may write to, such as /tmp.
        let own = "/var/lib/sshd";
        machine.sh(&format!(
            "set -e; mkdir -p /run/sshd {own}; \
             {{ cat /etc/passwd; echo '{USER}:x:4242:4242::/nonexistent:/bin/sh'; }} > {own}/passwd; \
             {{ cat /etc/shadow; echo '{USER}:*:19000:0:99999:7:::'; }} > {own}/shadow; chmod 600 {own}/shadow; \
             mount --bind {own}/passwd /etc/passwd; mount --bind {own}/shadow /etc/shadow; \
             ssh-keygen -q -t ed25519 -N '' -f {own}/host; ssh-keygen -q -t ed25519 -N '' -f {id}; \
             cp {id}.pub {own}/authorized; chmod 644 {own}/authorized"
        ));
        let listing = machine.sh(&format!("ssh-keygen -lf {own}/host.pub"));
        let fingerprint = listing.split_whitespace().nth(1).unwrap().to_owned();
        let mut command = machine.host.command("/usr/sbin/sshd").unwrap();
        command
            .args(["-D", "-E", &format!("{own}/log"), "-f", "/etc/ssh/sshd_config"])
            .args(["-o", &format!("HostKey={own}/host")])
            .args(["-o", &format!("AuthorizedKeysFile={own}/authorized")])
            .args(["-o", "PidFile=none"]);
        let at = SocketAddr::new(machine.host.ipv4().into(), port);
        let server = Server::start(command, &machine.host, at);
        Self { user: USER, key, fingerprint, port, _server: server }
    }

    /// The road to `peer` through this server on `host`.
    pub fn road(&self, peer: &str, host: &Host, socket: &Path) -> ringmesh_node::config::SshRoad {
        ringmesh_node::config::SshRoad {
            peer: peer.to_owned(),
            host: format!("{}:{}", host.ipv4(), self.port).parse().unwrap(),
            user: self.user.to_owned(),
            key: Some(self.key.clone()),
            agent: None,
            host_key: Some(self.fingerprint.clone()),
            known_hosts: None,
            socket: socket.to_owned(),
        }
    }
}

/// Debian's nginx as a reverse proxy with TLS of its own, that serves the coordinator's WebSocket under a base path.
pub fn nginx(machine: &Machine, folder: &Path, base: &str, to: SocketAddr) -> Server {
    let folder = folder.join(format!("nginx-{}", machine.host.name()));
    fs::create_dir(&folder).unwrap();
    let path = folder.display();
    let key = rcgen::KeyPair::generate().unwrap();
    let names = vec![machine.host.ipv4().to_string()];
    let certificate = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    fs::write(folder.join("key"), key.serialize_pem()).unwrap();
    fs::write(folder.join("certificate"), certificate.pem()).unwrap();
    // What its documentation says a WebSocket needs, and TLS 1.3, which Debian's own configuration allows to clients but not to
    // itself as a client; time-outs are the usual ones.
    fs::write(
        folder.join("conf"),
        format!(
            "daemon off; pid {path}/pid; error_log {path}/log; user root; worker_processes 1;
             events {{ }}
             http {{
                 access_log off;
                 client_body_temp_path {path}/b; proxy_temp_path {path}/p; fastcgi_temp_path {path}/f;
                 uwsgi_temp_path {path}/u; scgi_temp_path {path}/s;
                 ssl_protocols TLSv1.2 TLSv1.3; proxy_ssl_protocols TLSv1.2 TLSv1.3;
                 server {{
                     listen 443 ssl; ssl_certificate {path}/certificate; ssl_certificate_key {path}/key;
                     location {base}/ {{
                         proxy_pass https://{to}; proxy_http_version 1.1; proxy_set_header Host $host;
                         proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;
                         proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
                     }}
                 }}
             }}"
        ),
    )
    .unwrap();
    let mut command = machine.host.command("/usr/sbin/nginx").unwrap();
    command.args(["-c", &format!("{path}/conf"), "-e", &format!("{path}/log")]).process_group(0);
    Server::start(command, &machine.host, SocketAddr::new(machine.host.ipv4().into(), 443))
}

/// A TCP transfer at an even pace, from one host to another's address, that goes on until it is ended.
pub struct Paced {
    end: Arc<AtomicBool>,
    sent: JoinHandle<Vec<u8>>,
    received: JoinHandle<(Vec<u8>, Arrivals)>,
}

/// What a [`Paced`] transfer was like.
pub struct Course {
    pub whole: bool,
    arrivals: Arrivals,
}

/// When bytes were received, and how many there were by then.
type Arrivals = Vec<(Instant, u64)>;

/// How often a paced sender writes.
const TICK: Duration = Duration::from_millis(5);

impl Paced {
    /// Starts to send `mbit` Mbit/s, and returns when the first bytes have arrived.
    pub async fn start(from: &mut Machine, to: &mut Machine, at: IpAddr, mbit: u64) -> Self {
        let (listens, is_listening) = oneshot::channel();
        let (begins, has_begun) = oneshot::channel();
        let received = to.handle().spawn(async move {
            let listener = TcpListener::bind((at, 0)).await.unwrap();
            listens.send(listener.local_addr().unwrap()).unwrap();
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut begins = Some(begins);
            let (mut hash, mut total, mut arrivals) = (Sha256::new(), 0, Vec::new());
            let mut buffer = vec![0; 1 << 16];
            loop {
                let read = stream.read(&mut buffer).await.unwrap();
                if read == 0 {
                    return (hash.finalize().to_vec(), arrivals);
                }
                hash.update(&buffer[..read]);
                total += read as u64;
                arrivals.push((Instant::now(), total));
                if let Some(begins) = begins.take() {
                    let _ = begins.send(());
                }
            }
        });
        let end = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&end);
        let sent = from.handle().spawn(async move {
            let mut stream = TcpStream::connect(is_listening.await.unwrap()).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let block = mbit * 1_000_000 / 8 * TICK.as_millis() as u64 / 1_000;
            let mut data = vec![0; block as usize];
            let (mut hash, mut total) = (Sha256::new(), 0_u64);
            let mut clock = tokio::time::interval(TICK);
            // What was missed during a stall is not made up for: the pace is even.
            clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while !ended.load(Ordering::Relaxed) {
                clock.tick().await;
                for (word, place) in data.chunks_exact_mut(4).zip(total..) {
                    word.copy_from_slice(&(place as u32).wrapping_mul(0x9e37_79b9).to_le_bytes());
                }
                stream.write_all(&data).await.unwrap();
                hash.update(&data);
                total += block;
            }
            stream.shutdown().await.unwrap();
            hash.finalize().to_vec()
        });
        tokio::time::timeout(Duration::from_secs(20), has_begun).await.expect("bytes arrive").unwrap();
        Self { end, sent, received }
    }

    /// Ends the transfer and waits until the last byte has arrived.
    pub async fn end(self) -> Course {
        self.end.store(true, Ordering::Relaxed);
        let both = async { (self.sent.await.unwrap(), self.received.await.unwrap()) };
        let limit = Duration::from_secs(60);
        let (sent, (received, arrivals)) =
            tokio::time::timeout(limit, both).await.expect("the transfer ends");
        Course { whole: sent == received, arrivals }
    }
}

impl Course {
    /// The longest that nothing was received, of the gaps that reach into the time from `begin` to `end`.
    pub fn stall(&self, begin: Instant, end: Instant) -> Duration {
        let gaps = self.arrivals.windows(2).map(|pair| (pair[0].0, pair[1].0));
        let within = gaps.filter(|(from, to)| *to >= begin && *from <= end);
        within.map(|(from, to)| to - from).max().unwrap_or_default()
    }

    /// Bits a second received from `begin` to `end`.
    pub fn rate(&self, begin: Instant, end: Instant) -> f64 {
        let by = |when: Instant| {
            let before = self.arrivals.iter().take_while(|(at, _)| *at <= when);
            before.last().map_or(0, |(_, total)| *total)
        };
        (by(end) - by(begin)) as f64 * 8.0 / (end - begin).as_secs_f64()
    }
}

/// By which path `of` reaches the peer `name` at the moment, in the words of its status; empty: by none.
pub async fn path_to(of: &mut Member, name: &str) -> String {
    let status = of.node.status().await;
    status.peers.into_iter().find(|peer| peer.name == name).map(|peer| peer.path).unwrap_or_default()
}

/// Waits until `of` reaches the peer `name` by `path`, for at most `limit`; tells how long it took.
pub async fn until_path(of: &mut Member, name: &str, path: &str, limit: Duration) -> Duration {
    let began = Instant::now();
    loop {
        let now = path_to(of, name).await;
        if now == path {
            return began.elapsed();
        }
        if began.elapsed() > limit {
            panic!("not by {path} to {name} within {limit:?}, but by {now:?}:\n{}", why(of, name).await);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What a node has to say of the ways to a peer and to its relays, for whoever reads why a test failed.
pub async fn why(of: &mut Member, name: &str) -> String {
    let request = ringmesh_proto::local::WhyRequest { node: name.to_owned() };
    let why = match of.node.client.why(request).await {
        Ok(why) => why.into_inner(),
        Err(status) => return status.to_string(),
    };
    let paths = why.paths.iter().map(|path| format!("\n  {path:?}"));
    let relays = why.relays.iter().map(|relay| format!("\n  {relay:?}"));
    why.verdict + &paths.chain(relays).collect::<String>()
}
