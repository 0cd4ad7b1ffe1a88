//! Enrolment: a join token and a key pair become a membership.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use ringmesh_proto::control::{EnrollRequest, EnrollResponse, Reason};
use ringmesh_tunnel::{
    enroll::{JoinToken, transcript},
    key::{Label, NodeId},
    netmap::{Chain, Member},
    time::UnixTime,
};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::{
    VERSION,
    backoff::Backoff,
    connect::{self, Connection, Pin},
    convert,
};
use crate::{
    clock,
    error::Failure,
    state::{Identity, Membership, Secrets, Standing},
};

/// A node that just came to be.
#[derive(Debug)]
pub(crate) struct Enrolled {
    pub(crate) membership: Membership,
    pub(crate) secrets: Secrets,
    /// The name it got.
    pub(crate) name: String,
    /// The coordinator that enrolled it.
    pub(crate) address: String,
}

/// Time for the answer to one request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Requests whose answer may be lost before the person who waits is told.
const TRIES: u32 = 5;

/// Whether a coordinator may have taken the node: a request went out, and none was answered with a definite no.
#[derive(Debug, Default)]
pub(crate) struct Asked(AtomicBool);

impl Asked {
    /// Whether the key must be kept, because somebody may know it as a node's.
    pub(crate) fn may_have_taken(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, may_have_taken: bool) {
        self.0.store(may_have_taken, Ordering::Relaxed);
    }
}

/// Redeems `token` for the key pair `identity`, to be a relay or an ordinary node, wishing for `name` (empty: the coordinator's
/// choice).
///
/// A request whose answer is lost is sent again: the coordinator answers the same key and token as it did at first. `asked`
/// stays true also for whoever drops this future.
///
/// # Errors
/// No coordinator is reached or trusted, or it refuses; `asked` tells whether one may have taken the node all the same.
pub(crate) async fn enroll(
    token: &JoinToken,
    identity: &Identity,
    relay: bool,
    name: &str,
    asked: &Asked,
) -> Result<Enrolled, Failure> {
    let mut backoff = Backoff::default();
    let mut tries = 0;
    loop {
        let failure = match enroll_once(token, identity, relay, name, asked).await {
            Ok(enrolled) => return Ok(enrolled),
            Err(failure) => failure,
        };
        tries += 1;
        let may_pass = matches!(failure.reason(), Reason::Unreachable | Reason::Busy | Reason::NoReply);
        if !asked.may_have_taken() || !may_pass || tries >= TRIES {
            return Err(failure);
        }
        let wait = backoff.next(getrandom::u32().unwrap_or(0), Duration::ZERO);
        warn!(event = "join_unanswered", %failure, next_try_ms = wait.as_millis() as u64, "whether the coordinator took this node is not known");
        sleep(wait).await;
    }
}

async fn enroll_once(
    token: &JoinToken,
    identity: &Identity,
    relay: bool,
    name: &str,
    asked: &Asked,
) -> Result<Enrolled, Failure> {
    let pin = Pin { network: token.network(), root: token.root() };
    let mut connection = connect::any(token.coordinators(), pin).await?;
    let here = |failure: Failure| failure.context(format!("coordinator {}", connection.address));
    let request = request(token, identity, relay, name, &connection);
    asked.set(true);
    let response = match timeout(ANSWER_TIMEOUT, connection.client.enroll(request)).await {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => {
            let failure = Failure::from_status(&status);
            if is_definite(failure.reason()) {
                debug!(%failure, "the coordinator refused");
                asked.set(false);
            }
            return Err(here(failure));
        }
        Err(_) => {
            return Err(here(Failure::new(Reason::NoReply, "no answer to the enrolment in 15 s")));
        }
    };
    accept(response, token, identity, &connection.address, clock::wall())
}

/// Whether an answer says that this key and token made nobody a node, now or earlier. Others may be about this request only.
fn is_definite(reason: Reason) -> bool {
    match reason {
        Reason::TokenInvalid
        | Reason::TokenExpired
        | Reason::TokenUsed
        | Reason::TokenRevoked
        | Reason::TokenRole
        | Reason::NameTaken
        | Reason::NameInvalid
        | Reason::KeyTaken
        | Reason::PoolExhausted => true,
        Reason::Unspecified
        | Reason::PolicyInvalid
        | Reason::ProofInvalid
        | Reason::NetworkUnknown
        | Reason::NodeRemoved
        | Reason::NotPermitted
        | Reason::InvalidArgument
        | Reason::NodeUnknown
        | Reason::Busy
        | Reason::AlreadyJoined
        | Reason::NotJoined
        | Reason::Host
        | Reason::Unreachable
        | Reason::NoReply
        | Reason::NotTrusted
        | Reason::Clock
        | Reason::Conflict
        | Reason::CredentialMissing
        | Reason::CredentialInvalid
        | Reason::CredentialExpired
        | Reason::CredentialRevoked
        | Reason::EventsForgotten
        | Reason::RequestIdReused => false,
    }
}

fn request(
    token: &JoinToken,
    identity: &Identity,
    relay: bool,
    name: &str,
    connection: &Connection,
) -> EnrollRequest {
    let identity_key = identity.public_key();
    let transcript = transcript::enroll(&transcript::Enroll {
        connection: connection.transcript(token.network()),
        token: token.token(),
        noise_key: identity_key.noise_key(),
        identity_key,
        name,
        relay,
    });
    EnrollRequest {
        network_id: token.network().as_bytes().to_vec(),
        proof: Some(connection.proof()),
        token_id: token.token().as_bytes().to_vec(),
        token_signature: token.secret().sign(&transcript).as_bytes().to_vec(),
        noise_key: identity_key.noise_key().as_bytes().to_vec(),
        identity_key: identity_key.as_bytes().to_vec(),
        identity_signature: identity.secret().sign(Label::Enroll, &transcript).as_bytes().to_vec(),
        name: name.to_owned(),
        host_name: host_name(),
        os: os_name(),
        version: VERSION.to_owned(),
        relay,
    }
}

/// Believes an answer only as far as the token's root key vouches for it.
fn accept(
    response: EnrollResponse,
    token: &JoinToken,
    identity: &Identity,
    address: &str,
    now: UnixTime,
) -> Result<Enrolled, Failure> {
    let not_trusted = |why: String| {
        Failure::new(
            Reason::NotTrusted,
            format!("coordinator {address}: its answer does not hold, so nothing was kept: {why}"),
        )
    };
    let node = convert::array(&response.node_id, "the node id")
        .map(NodeId::from_bytes)
        .map_err(|error| not_trusted(error.to_string()))?;
    let member = own_record(&response, token, now).map_err(not_trusted)?;
    if member.id != node || member.identity_key != Some(identity.public_key()) {
        return Err(not_trusted("the membership record is another node's".to_owned()));
    }
    let network =
        response.network.ok_or_else(|| not_trusted("it does not describe the network".to_owned()))?;
    let network = convert::network(network).map_err(|error| not_trusted(error.to_string()))?;
    let coordinators =
        convert::coordinators(response.coordinators).map_err(|error| not_trusted(error.to_string()))?;
    let sealed = response.secrets.into_iter().map(|secret| (secret.epoch, secret.sealed));
    let secrets = Secrets::default()
        .with_epochs(token.network(), &identity.noise_secret(), sealed)
        .map_err(|error| not_trusted(error.to_string()))?;
    // Those told, and the one that answered: it is known to work from here.
    let mut coordinators = coordinators;
    if !coordinators.iter().any(|known| known == address) {
        coordinators.push(address.to_owned());
    }
    let membership = Membership {
        network: token.network(),
        root: token.root(),
        node,
        network_name: network.name,
        zone: network.zone,
        ipv4_pool: network.ipv4_pool,
        coordinators,
        standing: Standing::Member,
    };
    Ok(Enrolled { membership, secrets, name: member.name, address: address.to_owned() })
}

fn own_record(response: &EnrollResponse, token: &JoinToken, now: UnixTime) -> Result<Member, String> {
    let mut chain = Chain::new(token.network(), token.root());
    for certificate in convert::envelopes(response.certificates.clone()).map_err(|error| error.to_string())? {
        chain.add(certificate, now).map_err(|error| error.to_string())?;
    }
    let member = response.member.clone().ok_or("it holds no membership record")?;
    let member = convert::envelope(member).map_err(|error| error.to_string())?;
    chain.open(&member, now).map_err(|error| error.to_string())
}

/// The machine's name, as operators will see it.
fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().chars().take(64).collect()
}

/// The operating system's name for people (os-release(5)), and the kernel's release.
fn os_name() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let pretty = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let name = pretty.map_or("Linux", |name| name.trim_matches('"'));
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    format!("{name}, Linux {kernel}").chars().take(128).collect()
}
