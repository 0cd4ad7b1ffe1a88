//! Pumps frames through a stream of bytes: a channel of an SSH connection, or a unix socket.

use ringmesh_relay::frame::{self as frames, whole};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};

use super::{
    link::{Allowance, Ended, Opened, PIECE, QUIET, SIGN_OF_LIFE_AFTER, guard, in_time},
    queue::{LinkEnd, SIGN_OF_LIFE},
};

/// The first read of a link, and of every one that has been idle: a handshake fits.
const SMALLEST_READ: usize = 2 * 1024;
/// The largest read.
const LARGEST_READ: usize = 64 * 1024;
/// A writer's buffer of more than this is given back when the link is idle.
const IDLE_BUFFER: usize = 16 * 1024;
/// No message is so short: what is one frame of so few bytes is a sign of life.
const SHORTEST: usize = frames::HEADER_LEN + SIGN_OF_LIFE.len();

/// Carries frames both ways until the stream, the worker or a limit ends it.
pub(crate) async fn pump(stream: impl AsyncRead + AsyncWrite + Send, end: &LinkEnd, opened: Opened) -> Ended {
    let (reader, writer) = tokio::io::split(stream);
    let both = async {
        tokio::select! {
            ended = read(reader, end, opened) => ended,
            ended = write(writer, end) => ended,
        }
    };
    guard(end, opened, both).await
}

async fn read(stream: impl AsyncRead, end: &LinkEnd, opened: Opened) -> Ended {
    let mut stream = std::pin::pin!(stream);
    let mut allowance = Allowance::new(opened);
    let mut size = SMALLEST_READ;
    let mut buffer = end.buffer(size);
    loop {
        let read = match timeout(QUIET, stream.read_buf(&mut buffer)).await {
            Ok(Ok(0)) => return Ended::Eof,
            Ok(Ok(read)) => read,
            Ok(Err(error)) => return error.into(),
            Err(_) => return Ended::Quiet,
        };
        if let Err(ended) = allowance.spend(read, end) {
            return ended;
        }
        let whole = match whole(&buffer) {
            Ok(whole) => whole,
            Err(bad) => return bad.into(),
        };
        // Reads grow and shrink with what comes: a thousand idle links cost little, and a busy one few system calls.
        if buffer.len() == buffer.capacity() {
            size = (size * 4).min(LARGEST_READ);
        } else if buffer.len() < size / 8 {
            size = (size / 2).max(SMALLEST_READ);
        }
        if whole > SHORTEST {
            let rest = buffer.get(whole..).unwrap_or_default();
            let mut next = end.buffer(size.max(rest.len() + SMALLEST_READ));
            next.extend_from_slice(rest);
            buffer.truncate(whole);
            end.deliver(std::mem::replace(&mut buffer, next)).await;
        } else {
            buffer.drain(..whole);
            buffer.reserve_exact(size.max(SMALLEST_READ));
        }
    }
}

async fn write(stream: impl AsyncWrite, end: &LinkEnd) -> Ended {
    match write_on(stream, end).await {
        Ok(never) => match never {},
        Err(ended) => ended,
    }
}

async fn write_on(stream: impl AsyncWrite, end: &LinkEnd) -> Result<std::convert::Infallible, Ended> {
    let mut stream = std::pin::pin!(stream);
    let mut buffer = Vec::new();
    loop {
        if timeout(SIGN_OF_LIFE_AFTER, end.outgoing(&mut buffer)).await.is_err() {
            if buffer.capacity() > IDLE_BUFFER {
                buffer = Vec::new();
            }
            frames::push(&mut buffer, &SIGN_OF_LIFE).map_err(std::io::Error::other)?;
        }
        for piece in buffer.chunks(PIECE) {
            in_time(stream.write_all(piece)).await?;
        }
        in_time(stream.flush()).await?;
        buffer.clear();
    }
}
