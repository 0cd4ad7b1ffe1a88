//! Names that are not ours go to the resolvers that were in place, as they came.
//!
//! A query is passed on byte for byte but for its id. Its answer is believed if it comes from the address that was asked, to
//! the port that asked, with our random id and the same question (RFC 5452 §9), and goes back byte for byte as well.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, timeout},
};

use super::message::{DATAGRAM_MAX, HEADER, Header, Transport, same_question, set_cut_short, set_id};

/// How long one resolver has for its answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// The most resolvers that are asked, one after the other.
const UPSTREAMS_MAX: usize = 3;
/// The most queries that wait for resolvers.
pub(super) const OUTSTANDING_MAX: usize = 256;
/// The most that wait with one and the same question: where a resolver asks us what we ask it, the circle ends here.
pub(super) const SAME_MAX: usize = 64;
/// The longest answer by UDP that is waited for, bytes, whatever the asker says that it takes.
const ANSWER_MAX: u16 = 4096;
/// The most messages that are not the answer before no more are looked at.
const STRANGE_MAX: usize = 32;
/// How long a resolver that answered when those before it did not is asked first.
const PREFERENCE: Duration = Duration::from_secs(30);

/// The resolvers that were in place before this node's, in the order in which to ask them.
#[derive(Debug, Clone)]
pub(crate) struct Upstreams(watch::Receiver<Vec<SocketAddr>>);

impl Upstreams {
    /// Follows a list that may change at any time.
    pub(crate) const fn new(list: watch::Receiver<Vec<SocketAddr>>) -> Self {
        Self(list)
    }

    /// Nobody: other names are refused.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self(watch::channel(Vec::new()).1)
    }
}

/// Asks resolvers.
#[derive(Debug)]
pub(super) struct Forwarder {
    upstreams: Upstreams,
    /// Where this server answers.
    own: BTreeSet<SocketAddr>,
    places: Arc<Semaphore>,
    /// How often each question waits.
    waiting: Mutex<BTreeMap<Box<[u8]>, usize>>,
    preferred: Mutex<Option<(SocketAddr, Instant)>>,
}

/// What a resolver answered.
#[derive(Debug)]
pub(super) struct Forwarded {
    pub(super) bytes: Vec<u8>,
    pub(super) by: SocketAddr,
}

/// Why there is no answer of a resolver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unanswered {
    /// There is none, but perhaps ourselves.
    NoUpstream,
    /// [`OUTSTANDING_MAX`] queries wait already.
    Busy,
    /// [`SAME_MAX`] queries wait with this question.
    Repeated,
    /// None of them answered.
    NoReply,
}

/// The right to wait for an answer.
#[derive(Debug)]
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    upstreams: Vec<SocketAddr>,
}

/// One of those that wait with a question.
struct Waiting<'a> {
    forwarder: &'a Forwarder,
    question: Box<[u8]>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waiting = self.forwarder.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = waiting.get_mut(&self.question) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                waiting.remove(&self.question);
            }
        }
    }
}

impl Forwarder {
    /// Asks `upstreams`, but never `own`: where this server answers.
    pub(super) fn new(upstreams: Upstreams, own: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self {
            upstreams,
            own: own.into_iter().collect(),
            places: Arc::new(Semaphore::new(OUTSTANDING_MAX)),
            waiting: Mutex::default(),
            preferred: Mutex::default(),
        }
    }

    /// Who would be asked now, in this order.
    pub(super) fn upstreams(&self) -> Vec<SocketAddr> {
        let mut list: Vec<SocketAddr> = Vec::new();
        for upstream in self.upstreams.0.borrow().iter() {
            let upstream = SocketAddr::new(upstream.ip().to_canonical(), upstream.port());
            // The unspecified address leads to this machine, and may lead to this server.
            let usable =
                !upstream.ip().is_unspecified() && !upstream.ip().is_multicast() && upstream.port() != 0;
            if usable && !self.own.contains(&upstream) && !list.contains(&upstream) {
                list.push(upstream);
            }
        }
        list.truncate(UPSTREAMS_MAX);
        let preferred = *self.preferred.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((preferred, until)) = preferred
            && Instant::now() < until
        {
            // A stable sort: the others keep their order.
            list.sort_by_key(|upstream| *upstream != preferred);
        }
        list
    }

    /// Takes one of the places of those who wait.
    pub(super) fn place(&self) -> Result<Place, Unanswered> {
        let upstreams = self.upstreams();
        if upstreams.is_empty() {
            return Err(Unanswered::NoUpstream);
        }
        let permit = Arc::clone(&self.places).try_acquire_owned().map_err(|_| Unanswered::Busy)?;
        Ok(Place { _permit: permit, upstreams })
    }

    fn wait(&self, question: &[u8]) -> Result<Waiting<'_>, Unanswered> {
        let question: Box<[u8]> = question.to_ascii_lowercase().into();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let count = waiting.entry(question.clone()).or_insert(0);
        if *count >= SAME_MAX {
            return Err(Unanswered::Repeated);
        }
        *count = count.saturating_add(1);
        drop(waiting);
        Ok(Waiting { forwarder: self, question })
    }

    /// Asks one resolver after the other what `message` asks, of which `question` is a part, until one answers. An asker by
    /// UDP takes answers of `takes` bytes.
    pub(super) async fn ask(
        &self,
        place: Place,
        message: &[u8],
        question: &[u8],
        transport: Transport,
        takes: u16,
    ) -> Result<Forwarded, Unanswered> {
        let _waiting = self.wait(question)?;
        let Some(id) = Header::parse(message).map(|header| header.id) else {
            return Err(Unanswered::NoReply);
        };
        let mut poor = None;
        for (place, by) in place.upstreams.iter().copied().enumerate() {
            let Some(mut bytes) = ask_one(by, message, question, transport, takes).await else { continue };
            set_id(&mut bytes, id);
            // As the C library does: another resolver may know what this one cannot tell.
            let may_be_known_elsewhere = Header::parse(&bytes).is_some_and(|header| {
                let code = header.code();
                matches!(code, ResponseCode::ServFail | ResponseCode::Refused | ResponseCode::NotImp)
            });
            let answer = Forwarded { bytes, by };
            if may_be_known_elsewhere {
                poor = poor.or(Some(answer));
                continue;
            }
            if place > 0 {
                self.prefer(by);
            }
            return Ok(answer);
        }
        poor.ok_or(Unanswered::NoReply)
    }

    fn prefer(&self, upstream: SocketAddr) {
        let until = Instant::now().checked_add(PREFERENCE);
        *self.preferred.lock().unwrap_or_else(PoisonError::into_inner) = until.map(|until| (upstream, until));
    }
}

/// Asks one resolver; `None` if it does not answer in time, or cannot be reached.
async fn ask_one(
    to: SocketAddr,
    message: &[u8],
    question: &[u8],
    transport: Transport,
    takes: u16,
) -> Option<Vec<u8>> {
    let by_tcp = || async { timeout(PATIENCE, by_tcp(to, message, question)).await.ok()?.ok() };
    if transport == Transport::Tcp {
        return by_tcp().await;
    }
    let takes = takes.min(ANSWER_MAX);
    let answer = timeout(PATIENCE, by_udp(to, message, question, takes)).await.ok()?.ok()?;
    let truncated = Header::parse(&answer).is_some_and(|header| header.is_truncated());
    // Who takes more than resolvers send by UDP is spared to ask again.
    if truncated
        && takes > DATAGRAM_MAX
        && let Some(whole) = by_tcp().await.filter(|whole| whole.len() <= usize::from(takes))
    {
        return Some(whole);
    }
    Some(answer)
}

/// A random id, and the query with it. Without randomness nothing is asked: a forged answer would be easy.
fn with_own_id(message: &[u8]) -> io::Result<(u16, Vec<u8>)> {
    let mut id = [0; 2];
    getrandom::fill(&mut id).map_err(io::Error::other)?;
    let id = u16::from_be_bytes(id);
    let mut message = message.to_vec();
    set_id(&mut message, id);
    Ok((id, message))
}

async fn by_udp(to: SocketAddr, message: &[u8], question: &[u8], takes: u16) -> io::Result<Vec<u8>> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // A socket for this one question: the kernel gives it a random port, and tells if nobody listens there.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(to).await?;
    let (id, query) = with_own_id(message)?;
    socket.send(&query).await?;
    let mut buffer = vec![0; usize::from(takes).saturating_add(1)];
    for _ in 0..STRANGE_MAX {
        let (len, from) = socket.recv_from(&mut buffer).await?;
        // What came in before the socket was connected may be from anybody.
        let is_believed = |answer: &&[u8]| is_from(from, to) && answers(answer, id, question);
        let Some(answer) = buffer.get(..len).filter(is_believed) else { continue };
        let mut answer = answer.to_vec();
        if len > usize::from(takes) {
            answer.truncate(HEADER.saturating_add(question.len()));
            set_cut_short(&mut answer);
        }
        return Ok(answer);
    }
    Err(io::ErrorKind::InvalidData.into())
}

async fn by_tcp(to: SocketAddr, message: &[u8], question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(to).await?;
    let (id, query) = with_own_id(message)?;
    let len = u16::try_from(query.len()).map_err(io::Error::other)?;
    stream.write_all(&[&len.to_be_bytes()[..], &query].concat()).await?;
    for _ in 0..STRANGE_MAX {
        let len = stream.read_u16().await?;
        let mut answer = vec![0; usize::from(len)];
        stream.read_exact(&mut answer).await?;
        if answers(&answer, id, question) {
            return Ok(answer);
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

/// Whether a datagram from `from` is from whom was asked. The flow label of an IPv6 address says nothing of who it is.
fn is_from(from: SocketAddr, asked: SocketAddr) -> bool {
    from.ip() == asked.ip() && from.port() == asked.port()
}

/// Whether a message answers the query with this id and question.
fn answers(message: &[u8], id: u16, question: &[u8]) -> bool {
    let Some(header) = Header::parse(message).filter(|header| header.is_response()) else { return false };
    if header.id != id || header.opcode() != 0 {
        return false;
    }
    match header.questions() {
        1 => {
            let end = HEADER.saturating_add(question.len());
            message.get(HEADER..end).is_some_and(|answered| same_question(answered, question))
        }
        // Some do not repeat a question that they do not understand.
        0 => header.code() == ResponseCode::FormErr || header.code() == ResponseCode::NotImp,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_address_that_was_asked_answers() {
        let asked: SocketAddr = "[fe80::1%3]:53".parse().unwrap();
        assert!(is_from("[fe80::1%3]:53".parse().unwrap(), asked));
        for other in ["[fe80::2%3]:53", "[fe80::1%3]:54", "192.0.2.1:53"] {
            assert!(!is_from(other.parse().unwrap(), asked), "{other}");
        }
    }
}
