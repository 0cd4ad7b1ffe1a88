//! The node's own SSH endpoint: members' keys and nobody else's, one channel with our subsystem and nothing else.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use std::{
    collections::BTreeSet,
    io,
    net::{Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ringmesh_tunnel::{
    Carrier,
    key::{IdentityKey, IdentitySecret},
};
use russh::{
    Channel, ChannelId, MethodKind, MethodSet, Pty, Sig, SshId,
    keys::{Algorithm, PublicKey},
    server::{
        self, Auth, ChannelOpenHandle, Config, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey,
    },
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{oneshot, watch},
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::{
    PACKET, PIECES, SUBSYSTEM, WINDOW,
    crowd::{Crowd, Stranger},
    limits, preferred, private_key, wire,
};
use crate::{
    error::Failure,
    fallback::{
        link::{self, Ended, Opened, PROOF, QUIET},
        queue::Hub,
        stream,
    },
};

/// Keys or other methods that a client may try.
const MAX_ATTEMPTS: usize = 3;
/// How long a refusal is put off, so that its time tells nothing.
const REFUSAL: Duration = Duration::from_millis(300);
/// Requests for things that we do not do, after which a client is no client of ours.
const MAX_REFUSED: u32 = 16;
/// Waiting for the kernel when it has no file descriptor left.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// Connections that the kernel holds until they are accepted.
const BACKLOG: i32 = 128;

/// Whose keys open the endpoint: the identity keys of the present peers. Clones are the same set.
#[derive(Debug, Clone)]
pub(crate) struct Members {
    keys: Arc<watch::Sender<Arc<BTreeSet<IdentityKey>>>>,
}

impl Members {
    pub(crate) fn new() -> Self {
        Self { keys: Arc::new(watch::Sender::new(Arc::default())) }
    }

    /// Makes exactly these the members; links of all others end.
    pub(crate) fn set(&self, keys: impl IntoIterator<Item = IdentityKey>) {
        let keys: BTreeSet<_> = keys.into_iter().collect();
        self.keys.send_if_modified(|present| {
            let changed = **present != keys;
            if changed {
                *present = Arc::new(keys);
            }
            changed
        });
    }

    fn contains(&self, key: &IdentityKey) -> bool {
        self.keys.borrow().contains(key)
    }

    /// Waits until `key` is no member's.
    async fn lost(&self, key: IdentityKey) {
        // An error means that the sender is gone, which `self` prevents.
        let _ = self.keys.subscribe().wait_for(|keys| !keys.contains(&key)).await;
    }
}

/// Listens on `port` of all addresses, IPv6 and IPv4.
///
/// # Errors
/// The port is taken, or the system refuses.
pub(crate) fn listen(port: u16) -> io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let open = |domain, address: SocketAddr| {
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        if domain == Domain::IPV6 {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    match open(Domain::IPV6, (Ipv6Addr::UNSPECIFIED, port).into()) {
        // A machine without IPv6.
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            open(Domain::IPV4, ([0, 0, 0, 0], port).into())
        }
        opened => opened,
    }
}

/// The running endpoint. Dropping it closes the port and every connection.
#[derive(Debug)]
pub(crate) struct SshServer {
    task: JoinHandle<()>,
}

impl Drop for SshServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl SshServer {
    /// Serves `listener` with the node's identity as host key.
    ///
    /// # Errors
    /// The key cannot be used.
    pub(crate) fn start(
        listener: TcpListener,
        identity: &IdentitySecret,
        members: Members,
        hub: Hub,
    ) -> Result<Self, Failure> {
        let key = private_key(identity)
            .map_err(|error| Failure::corrupt(format!("the identity key as an SSH host key: {error}")))?;
        let config = Config {
            server_id: SshId::Standard(concat!("SSH-2.0-ringmesh_", env!("CARGO_PKG_VERSION")).into()),
            methods: MethodSet::from(&[MethodKind::PublicKey][..]),
            auth_rejection_time: REFUSAL,
            auth_rejection_time_initial: Some(Duration::ZERO),
            max_auth_attempts: MAX_ATTEMPTS,
            keys: vec![key],
            limits: limits(),
            preferred: preferred(vec![Algorithm::Ed25519]),
            window_size: WINDOW,
            maximum_packet_size: PACKET,
            channel_buffer_size: PIECES,
            event_buffer_size: 4,
            inactivity_timeout: Some(QUIET),
            ..Config::default()
        };
        let endpoint = Arc::new(Shared { config: Arc::new(config), members, hub, crowd: Crowd::default() });
        Ok(Self { task: tokio::spawn(accept(listener, endpoint)) })
    }
}

/// What all connections share.
struct Shared {
    config: Arc<Config>,
    members: Members,
    hub: Hub,
    crowd: Crowd,
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // Dropped with this task, and with it every connection.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((tcp, from)) => match shared.crowd.admit(from) {
                    Some(stranger) => {
                        let shared = Arc::clone(&shared);
                        connections.spawn(serve(tcp, from, stranger, shared));
                    }
                    None => debug!(%from, "an SSH connection was closed: there are too many that prove nothing"),
                },
                Err(error) => {
                    warn!(event = "accept_failed", %error, "cannot accept SSH connections");
                    sleep(ACCEPT_AGAIN).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(tcp: TcpStream, from: SocketAddr, stranger: Stranger, shared: Arc<Shared>) {
    link::prepare(&tcp);
    let (wire, _leash, gate) = wire::wire(tcp);
    let (open, opened) = oneshot::channel();
    let door =
        Door { members: shared.members.clone(), member: None, channel: None, open: Some(open), refused: 0 };
    let entering = async {
        server::run_stream(Arc::clone(&shared.config), wire, door).await?;
        // The sender goes with the session.
        opened.await.map_err(|_| Refused::Ssh(russh::Error::Disconnect))
    };
    let (channel, member) = match timeout(PROOF, entering).await {
        Ok(Ok(opened)) => opened,
        Ok(Err(why)) => return debug!(%from, %why, "an SSH connection ended before it was a link"),
        Err(_) => return debug!(%from, "an SSH connection did not become a link in time"),
    };
    let Some(_place) = stranger.become_known() else { return };
    let replaced = shared.crowd.register(member);
    let end = shared.hub.accept(Carrier::Ssh);
    debug!(%from, key = %member, link = %end.link(), "a member opened an SSH link");
    let stream = wire::Gated::new(channel.into_stream(), gate);
    let ended = tokio::select! {
        ended = stream::pump(stream, &end, Opened::There) => ended,
        () = shared.members.lost(member) => Ended::Closed,
        _ = replaced => Ended::Closed,
    };
    debug!(%from, key = %member, why = %ended, "an SSH link ended");
}

/// What a client may do before it is a link, which is almost nothing.
struct Door {
    members: Members,
    member: Option<IdentityKey>,
    channel: Option<Channel<Msg>>,
    open: Option<oneshot::Sender<(Channel<Msg>, IdentityKey)>>,
    refused: u32,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("{0}")]
    Ssh(#[from] russh::Error),
    #[error("it asked {MAX_REFUSED} times for what this endpoint does not do")]
    Pestered,
}

impl Door {
    fn member_of(&self, key: &PublicKey) -> Option<IdentityKey> {
        let key = IdentityKey::from_bytes(key.key_data().ed25519()?.0).ok()?;
        self.members.contains(&key).then_some(key)
    }

    fn refuse(&mut self) -> Result<(), Refused> {
        self.refused = self.refused.saturating_add(1);
        if self.refused > MAX_REFUSED { Err(Refused::Pestered) } else { Ok(()) }
    }

    /// Answers a request on a channel with no.
    fn refuse_on(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), Refused> {
        self.refuse()?;
        Ok(session.channel_failure(channel)?)
    }
}

impl Handler for Door {
    type Error = Refused;

    async fn auth_publickey_offered(
        &mut self,
        _user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Refused> {
        Ok(if self.member_of(offer.public_key).is_some() { Auth::Accept } else { Auth::reject() })
    }

    async fn auth_publickey(&mut self, _user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Refused> {
        self.member = self.member_of(key.public_key);
        Ok(if self.member.is_some() { Auth::Accept } else { Auth::reject() })
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Refused> {
        // One channel is all that there is, also after it was closed.
        if self.channel.is_some() || self.open.is_none() {
            return self.refuse();
        }
        self.channel = Some(channel);
        reply.accept().await;
        Ok(())
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), Refused> {
        if name != SUBSYSTEM {
            return self.refuse_on(channel, session);
        }
        let (Some(channel), Some(open), Some(member)) = (self.channel.take(), self.open.take(), self.member)
        else {
            return self.refuse_on(channel, session);
        };
        session.channel_success(channel.id())?;
        // Nobody waits any more: the time was up.
        open.send((channel, member)).map_err(|_| Refused::Ssh(russh::Error::Disconnect))
    }

    async fn channel_open_x11(
        &mut self,
        _channel: Channel<Msg>,
        _originator_address: &str,
        _originator_port: u32,
        _reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Refused> {
        self.refuse()
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        _channel: Channel<Msg>,
        _host_to_connect: &str,
        _port_to_connect: u32,
        _originator_address: &str,
        _originator_port: u32,
        _reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Refused> {
        self.refuse()
    }

    async fn channel_open_forwarded_tcpip(
        &mut self,
        _channel: Channel<Msg>,
        _host_to_connect: &str,
        _port_to_connect: u32,
        _originator_address: &str,
        _originator_port: u32,
        _reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Refused> {
        self.refuse()
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        _channel: Channel<Msg>,
        _socket_path: &str,
        _reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Refused> {
        self.refuse()
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        _term: &str,
        _col_width: u32,
        _row_height: u32,
        _pix_width: u32,
        _pix_height: u32,
        _modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Refused> {
        self.refuse_on(channel, session)
    }

    async fn x11_request(
        &mut self,
        channel: ChannelId,
        _single_connection: bool,
        _x11_auth_protocol: &str,
        _x11_auth_cookie: &str,
        _x11_screen_number: u32,
        session: &mut Session,
    ) -> Result<(), Refused> {
        self.refuse_on(channel, session)
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        _variable_name: &str,
        _variable_value: &str,
        session: &mut Session,
    ) -> Result<(), Refused> {
        self.refuse_on(channel, session)
    }

    async fn shell_request(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), Refused> {
        self.refuse_on(channel, session)
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        _data: &[u8],
        session: &mut Session,
    ) -> Result<(), Refused> {
        self.refuse_on(channel, session)
    }

    async fn window_change_request(
        &mut self,
        channel: ChannelId,
        _col_width: u32,
        _row_height: u32,
        _pix_width: u32,
        _pix_height: u32,
        session: &mut Session,
    ) -> Result<(), Refused> {
        self.refuse_on(channel, session)
    }

    async fn agent_request(&mut self, channel: ChannelId, session: &mut Session) -> Result<bool, Refused> {
        self.refuse_on(channel, session)?;
        Ok(false)
    }

    async fn signal(
        &mut self,
        channel: ChannelId,
        _signal: Sig,
        session: &mut Session,
    ) -> Result<(), Refused> {
        self.refuse_on(channel, session)
    }

    async fn tcpip_forward(
        &mut self,
        _address: &str,
        _port: &mut u32,
        _session: &mut Session,
    ) -> Result<bool, Refused> {
        self.refuse()?;
        Ok(false)
    }

    async fn cancel_tcpip_forward(
        &mut self,
        _address: &str,
        _port: u32,
        _session: &mut Session,
    ) -> Result<bool, Refused> {
        self.refuse()?;
        Ok(false)
    }

    async fn streamlocal_forward(
        &mut self,
        _socket_path: &str,
        _session: &mut Session,
    ) -> Result<bool, Refused> {
        self.refuse()?;
        Ok(false)
    }

    async fn cancel_streamlocal_forward(
        &mut self,
        _socket_path: &str,
        _session: &mut Session,
    ) -> Result<bool, Refused> {
        self.refuse()?;
        Ok(false)
    }
}
