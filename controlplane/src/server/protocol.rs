//! What a connection is for. The port serves gRPC, which is HTTP/2, the same methods as JSON, over HTTP/2 and HTTP/1.1, and the
//! WebSocket of the relay, which begins as a GET of HTTP/1.1.
//!
//! ALPN tells HTTP/2 from HTTP/1.1 (RFC 7301). Some reverse proxies name no protocol at all, and on a unix socket there is no ALPN;
//! then the first bytes do, for the preface of HTTP/2 (RFC 9113, section 3.4) begins as no other request does. They also tell a GET.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

/// The name of HTTP/2 in ALPN.
pub(crate) const H2: &[u8] = b"h2";
/// The name of HTTP/1.1 in ALPN.
pub(crate) const HTTP_1_1: &[u8] = b"http/1.1";

/// What is spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// HTTP/2: gRPC or JSON.
    Http2,
    /// HTTP/1.1 that begins with anything but a GET: JSON.
    Http1,
    /// HTTP/1.1 that begins with a GET: if there is a relay, it is for the relay.
    WebSocket,
}

/// As much of the preface of HTTP/2 as tells it from all methods of HTTP/1.1.
const PREFACE: &[u8; 3] = b"PRI";

impl Protocol {
    /// Tells it by what ALPN came to, or else by the first bytes, for which it waits. What was read of `stream` is put back.
    pub(super) async fn tell<S: AsyncRead + Unpin>(
        mut stream: S,
        agreed: Option<&[u8]>,
    ) -> io::Result<(Self, Rewound<S>)> {
        if agreed == Some(H2) {
            return Ok((Self::Http2, Rewound::untouched(stream)));
        }
        let mut read = [0; PREFACE.len()];
        let mut length = 0;
        let protocol = loop {
            let Some(next) = read.get_mut(length) else { break Self::Http2 };
            *next = stream.read_u8().await?;
            let expected = PREFACE.get(length);
            let is_preface = agreed.is_none() && Some(&*next) == expected;
            let first = length == 0;
            length += 1;
            if first && *next == b'G' {
                break Self::WebSocket;
            }
            if !is_preface {
                break Self::Http1;
            }
        };
        Ok((protocol, Rewound { read, given: 0, length, stream }))
    }
}

/// A stream whose first bytes were read and are read again.
#[derive(Debug)]
pub struct Rewound<S> {
    read: [u8; PREFACE.len()],
    given: usize,
    length: usize,
    stream: S,
}

impl<S> Rewound<S> {
    /// A stream of which nothing was read.
    const fn untouched(stream: S) -> Self {
        Self { read: [0; PREFACE.len()], given: 0, length: 0, stream }
    }

    pub(super) const fn get_ref(&self) -> &S {
        &self.stream
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { read, given, length, .. } = &mut *self;
        if let Some(left) = read.get(*given..*length).filter(|left| !left.is_empty())
            && buf.remaining() > 0
        {
            let now = left.len().min(buf.remaining());
            buf.put_slice(left.get(..now).unwrap_or(left));
            *given += now;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn told(agreed: Option<&[u8]>, sent: &[u8]) -> io::Result<(Protocol, Vec<u8>)> {
        let (protocol, mut stream) = Protocol::tell(sent, agreed).await?;
        let mut read = Vec::new();
        stream.read_to_end(&mut read).await?;
        Ok((protocol, read))
    }

    #[tokio::test]
    async fn alpn_decides_and_without_it_the_first_bytes_which_are_not_lost() {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice();
        let upgrade = b"GET /relay/v1 HTTP/1.1\r\n".as_slice();
        let post = b"POST /ringmesh.admin.v1.NodeService/ListNodes HTTP/1.1\r\n".as_slice();
        for (agreed, sent, expected) in [
            (Some(H2), preface, Protocol::Http2),
            // Whoever agreed on HTTP/2 and speaks something else is the HTTP/2 server's to refuse.
            (Some(H2), upgrade, Protocol::Http2),
            (Some(HTTP_1_1), upgrade, Protocol::WebSocket),
            (Some(HTTP_1_1), post, Protocol::Http1),
            // And the other way round.
            (Some(HTTP_1_1), preface, Protocol::Http1),
            (None, preface, Protocol::Http2),
            (None, upgrade, Protocol::WebSocket),
            (None, post, Protocol::Http1),
            (None, b"PRX".as_slice(), Protocol::Http1),
            (None, b"\0".as_slice(), Protocol::Http1),
        ] {
            let (protocol, read) = told(agreed, sent).await.unwrap();
            assert_eq!((protocol, read.as_slice()), (expected, sent), "{agreed:?}");
        }
        assert!(told(None, b"").await.is_err(), "gone before it said anything");
        assert!(told(None, b"PR").await.is_err(), "gone before it said enough");
    }
}
