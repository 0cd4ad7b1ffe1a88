//! Queries by TCP (RFC 7766): each with its length in front, several on a connection, answered as they are ready.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    answering::Resolver,
    counters::Refusal,
    message::{QUERY_MAX, Transport},
    server::Machine,
};

/// The most connections that are served; more of them wait.
pub(super) const CONNECTIONS_MAX: usize = 32;
/// How long a connection may be without a whole query, or an answer without being taken.
const IDLE: Duration = Duration::from_secs(5);
/// The most queries of a connection that are worked at; more of them wait.
const PIPELINE_MAX: usize = 16;
/// How long to leave a listener alone that the kernel gives nothing from.
const PAUSE: Duration = Duration::from_millis(100);
/// The length in front of a message, bytes.
const LENGTH: usize = 2;
/// The most that is read before it is looked at, bytes: one query.
const BUFFER_MAX: usize = LENGTH + QUERY_MAX;

/// Serves connections to `listener`, for ever; each needs one of the `places`.
pub(super) async fn serve(
    listener: TcpListener,
    machine: Arc<Machine>,
    resolver: Arc<Resolver>,
    places: Arc<Semaphore>,
) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
        };
        let Ok((stream, from)) = accepted else {
            sleep(PAUSE).await;
            continue;
        };
        if !machine.has(from.ip()) {
            resolver.counters.refused(Refusal::Stranger);
            continue;
        }
        // One connection waits here, the next ones in the kernel.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let resolver = Arc::clone(&resolver);
        connections.spawn(async move {
            let _place = place;
            if let Err(why) = converse(stream, &resolver).await {
                resolver.counters.refused(why);
            }
        });
    }
}

/// Answers the queries of one connection until either side has had enough.
async fn converse(mut stream: TcpStream, resolver: &Resolver) -> Result<(), Refusal> {
    let (mut reader, mut writer) = stream.split();
    let mut buffer = Vec::with_capacity(512);
    let mut pending = FuturesUnordered::new();
    let mut ended = false;
    let mut idle = Box::pin(sleep(IDLE));
    loop {
        while pending.len() < PIPELINE_MAX
            && let Some(message) = take(&mut buffer).ok_or(Refusal::TooLong)?
        {
            pending.push(async move { resolver.answer(&message, Transport::Tcp).await });
        }
        if ended && pending.is_empty() {
            return Ok(());
        }
        tokio::select! {
            Some(reply) = pending.next(), if !pending.is_empty() => {
                // What gets no answer was no query: nothing good follows.
                let Some(reply) = reply else { return Ok(()) };
                let written = timeout(IDLE, write(&mut writer, &reply.bytes)).await;
                written.map_err(|_| Refusal::Untaken)?.map_err(|_| Refusal::Untaken)?;
                idle = Box::pin(sleep_until(Instant::now().checked_add(IDLE).unwrap_or_else(Instant::now)));
            }
            read = read(&mut reader, &mut buffer), if !ended && pending.len() < PIPELINE_MAX => {
                ended = read.map_or(true, |len| len == 0);
            }
            () = &mut idle, if pending.is_empty() => return Ok(()),
        }
    }
}

/// Reads what there is, as far as there is room for it; cut short it loses nothing.
async fn read(reader: &mut (impl tokio::io::AsyncRead + Unpin), buffer: &mut Vec<u8>) -> io::Result<usize> {
    let room = BUFFER_MAX.saturating_sub(buffer.len());
    let room = u64::try_from(room).unwrap_or(0);
    reader.take(room).read_buf(buffer).await
}

/// Takes the first query out of the buffer: an inner `None` if it is not there yet, an outer one if it is too long.
fn take(buffer: &mut Vec<u8>) -> Option<Option<Vec<u8>>> {
    let Some(length) = buffer.first_chunk::<LENGTH>() else { return Some(None) };
    let length = usize::from(u16::from_be_bytes(*length));
    if length > QUERY_MAX {
        return None;
    }
    let end = LENGTH.saturating_add(length);
    let Some(message) = buffer.get(LENGTH..end) else { return Some(None) };
    let message = message.to_vec();
    buffer.drain(..end);
    Some(Some(message))
}

async fn write(writer: &mut (impl tokio::io::AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    writer.write_all(&[&length.to_be_bytes()[..], message].concat()).await
}
