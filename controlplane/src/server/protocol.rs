//! What a TLS connection is for. The port serves two protocols: gRPC, which is HTTP/2, and the WebSocket of the relay, which
//! begins as a GET of HTTP/1.1.
//!
//! ALPN tells them apart (RFC 7301). Some reverse proxies name no protocol at all; then the first byte does, for an upgrade is always
//! a GET, and the preface of HTTP/2 begins with a P (RFC 9113, section 3.4).

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
    Grpc,
    WebSocket,
}

impl Protocol {
    /// Tells it by what ALPN came to, or else by the first byte, for which it waits. What was read of `stream` is put back.
    pub(super) async fn tell<S: AsyncRead + Unpin>(
        mut stream: S,
        agreed: Option<&[u8]>,
    ) -> io::Result<(Self, Rewound<S>)> {
        match agreed {
            Some(H2) => Ok((Self::Grpc, Rewound { first: None, stream })),
            Some(_) => Ok((Self::WebSocket, Rewound { first: None, stream })),
            None => {
                let first = stream.read_u8().await?;
                let protocol = if first == b'G' { Self::WebSocket } else { Self::Grpc };
                Ok((protocol, Rewound { first: Some(first), stream }))
            }
        }
    }
}

/// A stream whose first byte was read and is read again.
#[derive(Debug)]
pub struct Rewound<S> {
    first: Option<u8>,
    stream: S,
}

impl<S> Rewound<S> {
    /// A stream of which nothing was read.
    pub(super) const fn untouched(stream: S) -> Self {
        Self { first: None, stream }
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
        if buf.remaining() > 0
            && let Some(first) = self.first.take()
        {
            buf.put_slice(&[first]);
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
    async fn alpn_decides_and_without_it_the_first_byte_which_is_not_lost() {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice();
        let upgrade = b"GET /relay/v1 HTTP/1.1\r\n".as_slice();
        for (agreed, sent, expected) in [
            (Some(H2), preface, Protocol::Grpc),
            // Whoever agreed on HTTP/2 and speaks something else is the HTTP/2 server's to refuse.
            (Some(H2), upgrade, Protocol::Grpc),
            (Some(HTTP_1_1), upgrade, Protocol::WebSocket),
            (Some(HTTP_1_1), preface, Protocol::WebSocket),
            (None, preface, Protocol::Grpc),
            (None, upgrade, Protocol::WebSocket),
            (None, b"\0".as_slice(), Protocol::Grpc),
        ] {
            let (protocol, read) = told(agreed, sent).await.unwrap();
            assert_eq!((protocol, read.as_slice()), (expected, sent), "{agreed:?}");
        }
        assert!(told(None, b"").await.is_err(), "gone before it said anything");
    }
}
