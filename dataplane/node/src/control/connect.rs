//! Finds a coordinator that proves to be one: the only way to a channel on which anything is asked.
//!
//! TCP, TLS and a challenge; then the coordinator's statement must be signed by a key that the network's root certified, must
//! answer *our* nonce, and must name the TLS key of *this* connection. If a proxy ends TLS before the coordinator, the last
//! cannot be; then the proxy's certificate must hold by this machine's own certificate authorities, or we hang up.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use hyper_util::rt::TokioIo;
use ringmesh_proto::control::{
    self as wire, ChallengeRequest, ChallengeResponse, Reason, control_service_client::ControlServiceClient,
};
use ringmesh_tunnel::{
    enroll::transcript,
    key::{IdentityKey, NetworkId},
    netmap::{Chain, Statement},
    time::UnixTime,
};
use tokio::time::{sleep, timeout};
use tonic::transport::{Channel, Endpoint, Uri};
use tracing::debug;

use super::{
    convert,
    tls::{self, ServerKey},
};
use crate::{clock, error::Failure};

/// Time for the challenge once TLS stands.
const CHALLENGE_TIMEOUT: Duration = Duration::from_secs(5);
/// The next address is tried this much later, or as soon as the one before failed.
const STAGGER: Duration = Duration::from_millis(300);
/// Clocks further apart than this make expiry meaningless.
const MAX_CLOCK_DIFFERENCE: Duration = Duration::from_secs(300);
/// A server nonce is 40 bytes; some room for later forms.
const MAX_SERVER_NONCE: usize = 64;
/// A full map of some ten thousand members.
const MAX_MESSAGE: usize = 64 << 20;

/// The network whose coordinators are looked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pin {
    pub(crate) network: NetworkId,
    pub(crate) root: IdentityKey,
}

/// A channel to a coordinator that proved itself, and what the node has to sign to prove itself in turn.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) client: ControlServiceClient<Channel>,
    /// The address that answered.
    pub(crate) address: String,
    pub(crate) client_nonce: [u8; 32],
    pub(crate) server_nonce: Vec<u8>,
    /// TLS exporter, if nobody stands between us and the coordinator.
    pub(crate) exporter: Option<[u8; 32]>,
}

impl Connection {
    /// What a signature on this connection covers.
    pub(crate) fn transcript(&self, network: NetworkId) -> transcript::Connection<'_> {
        transcript::Connection {
            network,
            client_nonce: &self.client_nonce,
            server_nonce: &self.server_nonce,
            exporter: self.exporter.as_ref(),
        }
    }

    /// The proof's public part.
    pub(crate) fn proof(&self) -> wire::Proof {
        wire::Proof {
            client_nonce: self.client_nonce.to_vec(),
            server_nonce: self.server_nonce.clone(),
            direct: self.exporter.is_some(),
        }
    }
}

/// Tries the addresses in order, each a little after the one before, and gives the first that proves itself.
///
/// # Errors
/// The failure that says most: a coordinator that is not to be trusted before one that cannot be reached.
pub(crate) async fn any(addresses: &[String], pin: Pin) -> Result<Connection, Failure> {
    if addresses.is_empty() {
        return Err(Failure::new(
            Reason::Unreachable,
            "no coordinator's address is known; join again with a new token",
        ));
    }
    let mut failures = Vec::new();
    let mut attempts = FuturesUnordered::new();
    let mut waiting = addresses.iter();
    loop {
        if attempts.is_empty() {
            match waiting.next() {
                Some(address) => attempts.push(one(address, pin)),
                None => return Err(worst(failures)),
            }
        }
        tokio::select! {
            Some(result) = attempts.next() => match result {
                Ok(connection) => return Ok(connection),
                Err(failure) => {
                    debug!(%failure, "a coordinator's address did not serve");
                    failures.push(failure);
                }
            },
            () = sleep(STAGGER), if waiting.len() > 0 => {
                if let Some(address) = waiting.next() {
                    attempts.push(one(address, pin));
                }
            }
        }
    }
}

/// Tries one address.
async fn one(address: &str, pin: Pin) -> Result<Connection, Failure> {
    let dialled = tls::dial(address).await?;
    let server = dialled.server;
    let channel = channel_over(address, dialled.stream).await?;
    let mut client = ControlServiceClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let mut client_nonce = [0; 32];
    getrandom::fill(&mut client_nonce).map_err(|error| {
        Failure::new(Reason::Host, format!("the system gives no random numbers: {error}"))
    })?;
    let request =
        ChallengeRequest { network_id: pin.network.as_bytes().to_vec(), client_nonce: client_nonce.to_vec() };
    let answer = match timeout(CHALLENGE_TIMEOUT, client.challenge(request)).await {
        Ok(Ok(answer)) => answer.into_inner(),
        Ok(Err(status)) => {
            return Err(Failure::from_status(&status).context(format!("coordinator {address}")));
        }
        Err(_) => {
            return Err(Failure::new(
                Reason::Unreachable,
                format!("coordinator {address}: no answer to the challenge in 5 s"),
            ));
        }
    };
    let judged = judge(&answer, &client_nonce, &server, pin, clock::wall()).await;
    let exporter = judged.map_err(|failure| failure.context(format!("coordinator {address}")))?;
    Ok(Connection {
        client,
        address: address.to_owned(),
        client_nonce,
        server_nonce: answer.server_nonce,
        exporter,
    })
}

/// Decides whether the answer comes from a coordinator of the network; gives the exporter if it is at the other end of TLS.
async fn judge(
    answer: &ChallengeResponse,
    client_nonce: &[u8; 32],
    server: &ServerKey,
    pin: Pin,
    now: UnixTime,
) -> Result<Option<[u8; 32]>, Failure> {
    // First without regard to time: only a coordinator of the network, answering our nonce, may say that a clock is wrong.
    // Then again at the time that both agree on, by which nothing may have ended.
    check_clock(verify_statement(answer, client_nonce, pin, UnixTime::EPOCH)?.time, now)?;
    let stated = verify_statement(answer, client_nonce, pin, now)?;
    if stated.tls_key == server.spki {
        return Ok(Some(server.exporter));
    }
    server.verify_by_system_roots().await.map_err(|why| {
        not_trusted(format!(
            "it is a coordinator of the network, but the TLS key seen is not its own, and this machine's certificate \
             authorities do not vouch for who holds it ({why}): somebody may be in between"
        ))
    })?;
    Ok(None)
}

/// What the coordinator says of itself, once everything about it is verified; nothing has ended yet in 1970.
fn verify_statement(
    answer: &ChallengeResponse,
    client_nonce: &[u8; 32],
    pin: Pin,
    now: UnixTime,
) -> Result<Statement, Failure> {
    if answer.server_nonce.is_empty() || answer.server_nonce.len() > MAX_SERVER_NONCE {
        return Err(not_trusted("its nonce has no sensible length"));
    }
    let mut chain = Chain::new(pin.network, pin.root);
    for certificate in convert::envelopes(answer.certificates.clone()).map_err(not_trusted)? {
        chain.add(certificate, now).map_err(not_trusted)?;
    }
    let statement = answer.statement.clone().ok_or_else(|| not_trusted("it states nothing"))?;
    let statement = convert::envelope(statement).map_err(not_trusted)?;
    chain.open_statement(&statement, client_nonce, &answer.server_nonce, now).map_err(not_trusted)
}

/// Refuses clocks that are far apart, naming both.
fn check_clock(theirs: UnixTime, ours: UnixTime) -> Result<(), Failure> {
    let difference = theirs.saturating_since(ours).max(ours.saturating_since(theirs));
    if difference <= MAX_CLOCK_DIFFERENCE {
        return Ok(());
    }
    Err(Failure::new(
        Reason::Clock,
        format!(
            "this machine's clock says {}, the coordinator's {}: set the wrong one (`timedatectl set-ntp true`)",
            clock::format(ours),
            clock::format(theirs)
        ),
    ))
}

fn not_trusted(why: impl std::fmt::Display) -> Failure {
    Failure::new(
        Reason::NotTrusted,
        format!("it could not prove that it belongs to the network, so nothing was told to it: {why}"),
    )
}

/// A gRPC channel over exactly this connection: when it breaks, the channel is done.
async fn channel_over<S>(address: &str, stream: S) -> Result<Channel, Failure>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let broken = |error: &dyn std::fmt::Display| {
        Failure::new(Reason::Unreachable, format!("coordinator {address}: HTTP/2 failed: {error}"))
    };
    // Told to a proxy as what it is; that TLS is done already is our business.
    let origin: Uri = format!("https://{address}").parse().map_err(|error| broken(&error))?;
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| broken(&error))?
        .origin(origin)
        .http2_keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10));
    let once = Arc::new(Mutex::new(Some(stream)));
    let connector = tower::service_fn(move |_: Uri| {
        let stream = once.lock().unwrap_or_else(PoisonError::into_inner).take();
        async move { stream.map(TokioIo::new).ok_or_else(|| std::io::Error::other("the connection is gone")) }
    });
    timeout(CHALLENGE_TIMEOUT, endpoint.connect_with_connector(connector))
        .await
        .map_err(|_| broken(&"no answer in 5 s"))?
        .map_err(|error| broken(&error))
}

/// Of several failures the one that a person should hear.
fn worst(failures: Vec<Failure>) -> Failure {
    const BY_WEIGHT: [Reason; 4] = [Reason::Unreachable, Reason::Busy, Reason::NotTrusted, Reason::Clock];
    let weight =
        |failure: &Failure| BY_WEIGHT.iter().position(|reason| *reason == failure.reason()).unwrap_or(4);
    let reasons: Vec<_> = failures.iter().map(ToString::to_string).collect();
    let Some(worst) = failures.into_iter().max_by_key(weight) else {
        return Failure::new(Reason::Unreachable, "no coordinator's address was tried");
    };
    if worst.reason() == Reason::Unreachable && reasons.len() > 1 {
        return Failure::new(Reason::Unreachable, format!("no coordinator answers: {}", reasons.join("; ")));
    }
    worst
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_five_minutes_apart_are_refused_with_both_times() {
        let ours = UnixTime::from_secs(1_800_000_000);
        check_clock(ours, ours).unwrap();
        check_clock(ours.saturating_add(MAX_CLOCK_DIFFERENCE), ours).unwrap();
        let beyond = MAX_CLOCK_DIFFERENCE + Duration::from_secs(1);
        for theirs in [ours.saturating_add(beyond), ours.saturating_sub(beyond)] {
            let failure = check_clock(theirs, ours).unwrap_err();
            assert_eq!(failure.reason(), Reason::Clock);
            assert!(failure.to_string().contains(&clock::format(ours)), "{failure}");
            assert!(failure.to_string().contains(&clock::format(theirs)), "{failure}");
        }
    }

    #[test]
    fn distrust_is_told_before_silence() {
        let silent = || Failure::new(Reason::Unreachable, "a: no answer");
        let distrusted = Failure::new(Reason::NotTrusted, "b: forged");
        assert_eq!(worst(vec![silent(), distrusted.clone(), silent()]), distrusted);
        let both = worst(vec![silent(), silent()]).to_string();
        assert_eq!(both.matches("a: no answer").count(), 2, "{both}");
    }
}
