//! Dialling: a peer's own endpoint, or an ordinary OpenSSH server beside a peer.
//!
//! A failure says which step failed and what to do about it, for `meshctl why`.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ringmesh_proto::control::Reason;
use ringmesh_tunnel::key::{IdentityKey, IdentitySecret};
use russh::{
    Channel, ChannelMsg, ChannelOpenFailure, SshId,
    client::{self, AuthResult, Config, Handle, Handler, Msg},
    keys::{
        HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKey,
        agent::{AgentIdentity, client::AgentClient},
    },
};
use tokio::time::timeout;

use super::{
    PACKET, PIECES, SUBSYSTEM, WINDOW, host_key::Expected, key, limits, preferred, private_key, wire,
};
use crate::{
    config::SshRoad,
    error::Failure,
    fallback::{
        doors::Visit,
        link::{Ended, Opened, QUIET},
        queue::LinkEnd,
        stream, tcp,
    },
};

/// Time for everything from the name to the stream.
const DIAL: Duration = Duration::from_secs(8);
/// The user name towards a node's own endpoint, which does not look at it.
const USER: &str = "ringmesh";
/// Keys of an agent that are tried: servers count attempts, and usually allow six.
const MAX_AGENT_KEYS: usize = 5;

/// A stream of bytes in a channel. Dropping it ends the connection.
pub(crate) struct SshStream {
    stream: wire::Gated<russh::ChannelStream<Msg>>,
    _handle: Handle<Judge>,
    _leash: wire::Leash,
}

impl std::fmt::Debug for SshStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SshStream").finish_non_exhaustive()
    }
}

impl SshStream {
    /// Carries frames both ways until the stream, the worker or a limit ends it.
    pub(crate) async fn pump(self, end: &LinkEnd) -> Ended {
        stream::pump(self.stream, end, Opened::Here).await
    }
}

/// Opens a stream to a peer's own endpoint, whose host key is the identity key of the peer's record; `visit` judges where to.
///
/// # Errors
/// [`Reason::Unreachable`], with the step that failed and the cure.
pub(crate) async fn dial_endpoint(
    address: SocketAddr,
    host_key: &IdentityKey,
    own: &IdentitySecret,
    visit: Option<&Visit<'_>>,
) -> Result<SshStream, Failure> {
    let what = format!("the peer's SSH endpoint {address}");
    in_time(&what, async {
        let expected = Expected::Keys(vec![public_key(host_key)]);
        let (host, port) = (address.ip().to_string(), address.port());
        let mut dialled = connect(&host, port, expected, visit).await?;
        let own = private_key(own).map_err(|error| format!("this node's own key: {error}"))?;
        if !log_in(&mut dialled.handle, USER, own).await? {
            return Err(
                "it does not accept this node's key: it has not heard of this node yet, or does not count it as a peer \
                 (see its `meshctl peers`)"
                    .to_owned(),
            );
        }
        let mut channel = dialled
            .handle
            .channel_open_session()
            .await
            .map_err(|error| format!("opening a channel: {error}"))?;
        channel
            .request_subsystem(true, SUBSYSTEM)
            .await
            .map_err(|error| format!("asking for a link: {error}"))?;
        granted(&mut channel).await?;
        Ok(dialled.into_stream(channel))
    })
    .await
}

/// Waits for the answer to the one request there was.
async fn granted(channel: &mut Channel<Msg>) -> Result<(), String> {
    loop {
        match channel.wait().await {
            Some(ChannelMsg::Success) => return Ok(()),
            Some(ChannelMsg::WindowAdjusted { .. }) => {}
            _ => return Err("it has no subsystem `ringmesh`: no node's endpoint answers there".to_owned()),
        }
    }
}

/// Opens a stream to a peer's link socket through an OpenSSH server.
///
/// # Errors
/// [`Reason::Unreachable`], with the step that failed and the cure.
pub(crate) async fn dial_road(road: &SshRoad) -> Result<SshStream, Failure> {
    let what = format!("the SSH server {}", road.host);
    in_time(&what, async {
        let pinned = road.clone();
        let expected = blocking(move || Expected::of(&pinned)).await?;
        let mut dialled = connect(&road.host.host, road.host.port, expected, None).await?;
        authenticate(&mut dialled.handle, road).await?;
        let socket = road.socket.to_str().ok_or("the socket's path is not text")?;
        let channel = dialled
            .handle
            .channel_open_direct_streamlocal(socket)
            .await
            .map_err(|error| refused_socket(&error, road))?;
        Ok(dialled.into_stream(channel))
    })
    .await
}

#[allow(clippy::wildcard_enum_match_arm, reason = "the others explain themselves")]
fn refused_socket(error: &russh::Error, road: &SshRoad) -> String {
    let socket = road.socket.display();
    match error {
        russh::Error::ChannelOpenFailure(ChannelOpenFailure::AdministrativelyProhibited) => format!(
            "it forbids {} to reach {socket}: its sshd_config has `AllowStreamLocalForwarding no` or `DisableForwarding yes`, or \
             the key's line in authorized_keys is restricted",
            road.user
        ),
        // OpenSSH gives this answer for both.
        russh::Error::ChannelOpenFailure(ChannelOpenFailure::ConnectFailed) => format!(
            "it does not connect {} with {socket}: no node runs there (start it, or name its socket by `socket`), or its \
             sshd_config forbids it (`AllowStreamLocalForwarding no`, `DisableForwarding yes`)",
            road.user
        ),
        other => format!("opening {socket} there: {other}"),
    }
}

async fn in_time(
    what: &str,
    dial: impl Future<Output = Result<SshStream, String>>,
) -> Result<SshStream, Failure> {
    let unreachable = |why: String| Failure::new(Reason::Unreachable, format!("{what}: {why}"));
    match timeout(DIAL, dial).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(why)) => Err(unreachable(why)),
        Err(_) => Err(unreachable(format!("no answer in {} s (a firewall?)", DIAL.as_secs()))),
    }
}

/// Reads files where it holds up nobody.
async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(read).await.map_err(|error| error.to_string())?
}

/// An identity key as SSH writes it.
fn public_key(key: &IdentityKey) -> PublicKey {
    use russh::keys::ssh_key::public::{Ed25519PublicKey, KeyData};
    PublicKey::new(KeyData::Ed25519(Ed25519PublicKey(*key.as_bytes())), "")
}

/// A connection whose server has shown the right key.
struct Dialled {
    handle: Handle<Judge>,
    leash: wire::Leash,
    gate: wire::Gate,
}

impl Dialled {
    fn into_stream(self, channel: Channel<Msg>) -> SshStream {
        let stream = wire::Gated::new(channel.into_stream(), self.gate);
        SshStream { stream, _handle: self.handle, _leash: self.leash }
    }
}

/// Says whether the server shows the key it should, and remembers it if not.
struct Judge {
    expected: Expected,
    wrong: Arc<Mutex<Option<PublicKey>>>,
}

impl Handler for Judge {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        shown: &russh::keys::PublicKeyOrCertificate,
    ) -> Result<bool, russh::Error> {
        // Certificates are not asked for, and none is accepted.
        let russh::keys::PublicKeyOrCertificate::PublicKey { key, .. } = shown else { return Ok(false) };
        let accepted = self.expected.accepts(key);
        if !accepted {
            *self.wrong.lock().unwrap_or_else(PoisonError::into_inner) = Some(key.clone());
        }
        Ok(accepted)
    }
}

async fn connect(
    host: &str,
    port: u16,
    expected: Expected,
    visit: Option<&Visit<'_>>,
) -> Result<Dialled, String> {
    let algorithms = expected.algorithms();
    if algorithms.is_empty() {
        return Err("the host key it should have is of a kind not used here; pin its Ed25519 key".to_owned());
    }
    let tcp = tcp::connect(host, port, visit).await.map_err(|error| format!("TCP failed: {error}"))?;
    let (wire, leash, gate) = wire::wire(tcp);
    let wrong = Arc::new(Mutex::new(None));
    let judge = Judge { expected: expected.clone(), wrong: Arc::clone(&wrong) };
    let config = Config {
        client_id: SshId::Standard(concat!("SSH-2.0-ringmesh_", env!("CARGO_PKG_VERSION")).into()),
        limits: limits(),
        preferred: preferred(algorithms),
        window_size: WINDOW,
        maximum_packet_size: PACKET,
        channel_buffer_size: PIECES,
        inactivity_timeout: Some(QUIET),
        ..Config::default()
    };
    let handle = client::connect_stream(Arc::new(config), wire, judge).await.map_err(|error| {
        let wrong = wrong.lock().unwrap_or_else(PoisonError::into_inner).take();
        match wrong {
            Some(key) => format!(
                "WRONG HOST KEY: it shows {} {}, expected {}. Somebody may be in between, or it was set up anew; compare the key \
                 on the server itself before you pin another",
                key.algorithm(),
                key.fingerprint(HashAlg::Sha256),
                shown_expected(&expected),
            ),
            None => handshake_failure(&error),
        }
    })?;
    Ok(Dialled { handle, leash, gate })
}

fn shown_expected(expected: &Expected) -> String {
    match expected {
        Expected::Fingerprint(fingerprint) => fingerprint.to_string(),
        Expected::Keys(keys) => {
            let shown: Vec<_> = keys.iter().map(|key| key.fingerprint(HashAlg::Sha256).to_string()).collect();
            shown.join(" or ")
        }
    }
}

#[allow(clippy::wildcard_enum_match_arm, reason = "the others explain themselves")]
fn handshake_failure(error: &russh::Error) -> String {
    match error {
        russh::Error::NoCommonAlgo { kind, theirs, .. } => {
            format!("no {kind:?} algorithm in common; it offers {}", theirs.join(", "))
        }
        russh::Error::HUP | russh::Error::Disconnect | russh::Error::Version => {
            format!("it speaks no SSH, or is too busy to ({error})")
        }
        other => format!("the SSH handshake failed: {other}"),
    }
}

/// Whether the key was accepted.
async fn log_in(handle: &mut Handle<Judge>, user: &str, key: PrivateKey) -> Result<bool, String> {
    let key = PrivateKeyWithHashAlg::new(Arc::new(key), None);
    let result =
        handle.authenticate_publickey(user, key).await.map_err(|error| format!("logging in: {error}"))?;
    Ok(result.success())
}

/// Shows the key of the file, or those of the agent.
async fn authenticate(handle: &mut Handle<Judge>, road: &SshRoad) -> Result<(), String> {
    let tried = match (&road.key, &road.agent) {
        (Some(path), _) => {
            let file = path.clone();
            let key = blocking(move || key::load(&file)).await?;
            let tried = format!("{} ({})", path.display(), key.fingerprint(HashAlg::Sha256));
            if log_in(handle, &road.user, key).await? {
                return Ok(());
            }
            tried
        }
        (None, Some(agent)) => match log_in_by_agent(handle, &road.user, agent).await? {
            None => return Ok(()),
            Some(tried) => tried,
        },
        (None, None) => return Err("there is neither a key nor an agent to log in with".to_owned()),
    };
    Err(format!(
        "it refuses {tried} for {user}: put the public key into ~{user}/.ssh/authorized_keys there",
        user = road.user,
    ))
}

/// Tries the keys of an agent in turn; gives those that were refused, if none was accepted.
async fn log_in_by_agent(
    handle: &mut Handle<Judge>,
    user: &str,
    path: &Path,
) -> Result<Option<String>, String> {
    let failed = |error: russh::keys::Error| format!("the SSH agent at {}: {error}", path.display());
    let mut agent = AgentClient::connect_uds(path).await.map_err(failed)?;
    let identities = agent.request_identities().await.map_err(failed)?;
    if identities.is_empty() {
        return Err(format!("the SSH agent at {} has no key: add one with `ssh-add`", path.display()));
    }
    let mut tried = Vec::new();
    for identity in identities.into_iter().take(MAX_AGENT_KEYS) {
        let AgentIdentity::PublicKey { key, .. } = identity else { continue };
        let hash = key.algorithm().is_rsa().then_some(HashAlg::Sha512);
        tried.push(format!("the agent's {}", key.fingerprint(HashAlg::Sha256)));
        match handle.authenticate_publickey_with(user, key, hash, &mut agent).await {
            Ok(AuthResult::Success) => return Ok(None),
            Ok(AuthResult::Failure { .. }) => {}
            Err(error) => return Err(format!("logging in by the agent at {}: {error}", path.display())),
        }
    }
    Ok(Some(tried.join(" and ")))
}
