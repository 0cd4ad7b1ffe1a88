//! The HTTP/1.1 request by which a connection becomes a WebSocket (RFC 6455 §4.2), read and answered by hand: so little may be
//! in it that everything else can be refused, and no more memory is taken than it has bytes.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use httparse::{Header, Request};
use ringmesh_tunnel::ip::Prefix;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// What the WebSocket's messages are: frames of sealed datagrams.
pub const SUBPROTOCOL: &str = "ringmesh.relay.v1";
/// Where the WebSocket is, after any base path.
pub const PATH: &str = "/relay/v1";

/// Bytes of the longest request.
const MAX_HEAD: usize = 8 << 10;
/// Header lines of the longest request.
const MAX_HEADERS: usize = 64;
/// Bytes that are read at once.
const READ: usize = 1 << 10;
/// What ends the request's head.
const HEAD_END: &[u8] = b"\r\n\r\n";
/// Characters of a `Sec-WebSocket-Key`: 16 bytes in base64.
const KEY_LEN: usize = 24;

/// In which header a reverse proxy says where a connection comes from. The other one is passed on as the client wrote it, so it is
/// not looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`, which most proxies add by themselves.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// A name that is neither header's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a header that is understood: write x-forwarded-for or forwarded")]
pub struct UnknownHeader(String);

impl FromStr for ForwardedHeader {
    type Err = UnknownHeader;

    fn from_str(name: &str) -> Result<Self, UnknownHeader> {
        match name.to_ascii_lowercase().as_str() {
            "x-forwarded-for" => Ok(Self::XForwardedFor),
            "forwarded" => Ok(Self::Forwarded),
            _ => Err(UnknownHeader(name.to_owned())),
        }
    }
}

/// What the server asks of a request.
#[derive(Debug, Clone, Default)]
pub(super) struct Rules {
    /// In front of [`PATH`], beginning with a slash and not ending with one. A proxy may take it off; none: any is taken.
    pub(super) base_path: Option<String>,
    /// Whose word on where a connection comes from is believed.
    pub(super) trusted_proxies: Vec<Prefix>,
    /// Where they say it.
    pub(super) forwarded_header: ForwardedHeader,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    Malformed,
    /// It comes from a web page, and a page has no business here: its visitor did not ask for it.
    Origin,
    Path,
    Method,
    NotWebSocket,
    TooLong,
}

impl Refusal {
    const fn status(self) -> &'static str {
        match self {
            Self::Malformed => "400 Bad Request",
            Self::Origin => "403 Forbidden",
            Self::Path => "404 Not Found",
            Self::Method => "405 Method Not Allowed\r\nAllow: GET",
            Self::NotWebSocket => {
                "426 Upgrade Required\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: ringmesh.relay.v1"
            }
            Self::TooLong => "431 Request Header Fields Too Large",
        }
    }

    /// The same in plain words, for somebody at a browser or with `curl`.
    const fn words(self) -> &'static str {
        match self {
            Self::Malformed => "this is no request of HTTP/1.1",
            Self::Origin => "web pages have no business here",
            Self::Path => "there is nothing here to get; the WebSocket of the relay is at /relay/v1",
            Self::Method => "the WebSocket of the relay begins with a GET",
            Self::NotWebSocket => {
                "this is the WebSocket of the relay, for members of a network; a request has to ask for it"
            }
            Self::TooLong => "the head of the request is too long",
        }
    }

    fn answer(self) -> String {
        let (status, words) = (self.status(), self.words());
        let length = words.len().saturating_add(1);
        format!(
            "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n\r\n{words}\n"
        )
    }
}

/// A request that is granted.
#[derive(Debug, PartialEq, Eq)]
struct Granted {
    /// Bytes of the request; what follows belongs to the WebSocket.
    length: usize,
    accept: String,
    /// Where the connection comes from by the word of a trusted proxy.
    forwarded_for: Option<IpAddr>,
}

/// A connection that is a WebSocket now.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Upgraded {
    /// What came after the request already.
    pub(super) rest: Vec<u8>,
    /// Where the connection comes from by the word of a trusted proxy.
    pub(super) forwarded_for: Option<IpAddr>,
}

/// Reads the request and answers it.
///
/// # Errors
///
/// If the connection ends or the request is refused; that has been answered then.
pub(super) async fn accept<S>(stream: &mut S, peer: SocketAddr, rules: &Rules) -> io::Result<Upgraded>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut head = Vec::new();
    let refusal = loop {
        if head.len() >= MAX_HEAD {
            break Refusal::TooLong;
        }
        head.reserve(READ);
        let known = head.len();
        if stream.read_buf(&mut head).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // Who sends byte by byte must not have the whole head read for each.
        if !has_end(&head, known) {
            continue;
        }
        match read(&head, peer, rules) {
            Ok(granted) => {
                let answer = format!(
                    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                     Sec-WebSocket-Accept: {}\r\nSec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n",
                    granted.accept
                );
                stream.write_all(answer.as_bytes()).await?;
                stream.flush().await?;
                let rest = head.get(granted.length..).unwrap_or_default().to_vec();
                return Ok(Upgraded { rest, forwarded_for: granted.forwarded_for });
            }
            Err(refusal) => break refusal,
        }
    };
    stream.write_all(refusal.answer().as_bytes()).await?;
    stream.shutdown().await?;
    Err(io::Error::new(io::ErrorKind::InvalidData, format!("upgrade refused: {}", refusal.status())))
}

/// Whether a head's end is there, of which nothing was seen in the first `known` bytes.
fn has_end(head: &[u8], known: usize) -> bool {
    let from = known.saturating_sub(HEAD_END.len().saturating_sub(1));
    head.get(from..).is_some_and(|news| news.windows(HEAD_END.len()).any(|window| window == HEAD_END))
}

/// Judges a request whose end has come.
fn read(head: &[u8], peer: SocketAddr, rules: &Rules) -> Result<Granted, Refusal> {
    #[cfg(test)]
    tests::READS.with(|reads| reads.set(reads.get() + 1));
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = Request::new(&mut headers);
    let length = match request.parse(head) {
        Ok(httparse::Status::Complete(length)) => length,
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal::TooLong),
        Ok(httparse::Status::Partial) | Err(_) => return Err(Refusal::Malformed),
    };
    let headers = Headers(request.headers);
    if !is_ours(request.path.unwrap_or_default(), rules.base_path.as_deref()) {
        return Err(Refusal::Path);
    }
    if headers.all("origin").next().is_some() {
        return Err(Refusal::Origin);
    }
    if request.method != Some("GET") {
        return Err(Refusal::Method);
    }
    let upgrade = request.version == Some(1)
        && headers.has_token("upgrade", "websocket")
        && headers.has_token("connection", "upgrade")
        && headers.one("sec-websocket-version") == Some("13")
        && headers.has_token("sec-websocket-protocol", SUBPROTOCOL);
    if !upgrade {
        return Err(Refusal::NotWebSocket);
    }
    let key = headers.one("sec-websocket-key").filter(|key| key.len() == KEY_LEN);
    let accept = derive_accept_key(key.ok_or(Refusal::Malformed)?.as_bytes());
    let trusted = |address: IpAddr| rules.trusted_proxies.iter().any(|proxy| proxy.contains(address));
    let forwarded_for = if trusted(peer.ip().to_canonical()) {
        headers.forwarded_for(rules.forwarded_header, trusted)
    } else {
        None
    };
    Ok(Granted { length, accept, forwarded_for })
}

/// Whether a request's target is the relay's, with or without what a proxy may take off.
fn is_ours(target: &str, base_path: Option<&str>) -> bool {
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    match (path.strip_suffix(PATH), base_path) {
        (Some(base), None) => base.is_empty() || base.starts_with('/'),
        (Some(base), Some(expected)) => base.is_empty() || base == expected,
        (None, _) => false,
    }
}

struct Headers<'a>(&'a [Header<'a>]);

impl<'a> Headers<'a> {
    fn all(&self, name: &'static str) -> impl DoubleEndedIterator<Item = &'a [u8]> + use<'a> {
        self.0.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
    }

    /// The value, if there is exactly one.
    fn one(&self, name: &'static str) -> Option<&'a str> {
        let mut values = self.all(name);
        let value = values.next().filter(|_| values.next().is_none())?;
        std::str::from_utf8(value).ok().map(str::trim)
    }

    /// The entries of a list, over as many lines as it has.
    fn list(&self, name: &'static str) -> impl DoubleEndedIterator<Item = &'a str> + use<'a> {
        self.all(name)
            .flat_map(|value| value.split(|&byte| byte == b','))
            .map(|entry| std::str::from_utf8(entry).unwrap_or_default().trim())
    }

    fn has_token(&self, name: &'static str, token: &str) -> bool {
        self.list(name).any(|entry| entry.eq_ignore_ascii_case(token))
    }

    /// Each proxy adds whom it saw at the end: the last that is not a trusted proxy itself is the one to believe in.
    fn forwarded_for(&self, header: ForwardedHeader, trusted: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        let not_trusted = |entry: &Option<IpAddr>| !entry.is_some_and(&trusted);
        match header {
            ForwardedHeader::XForwardedFor => {
                self.list("x-forwarded-for").rev().map(address).find(not_trusted).flatten()
            }
            ForwardedHeader::Forwarded => {
                let entries = self.list("forwarded").rev();
                entries.map(|entry| forwarded_for(entry).and_then(address)).find(not_trusted).flatten()
            }
        }
    }
}

/// The `for` parameter of one element of a `Forwarded` header (RFC 7239 §4).
fn forwarded_for(element: &str) -> Option<&str> {
    element
        .split(';')
        .filter_map(|pair| pair.split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("for"))
        .map(|(_, value)| value.trim().trim_matches('"'))
}

/// An address, as proxies write it: with a port or without, IPv6 in brackets or without.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = || text.parse().ok();
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    let in_brackets = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    bare().or_else(with_port).or_else(in_brackets).map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    thread_local! {
        /// How often this thread has read a head.
        pub(super) static READS: Cell<usize> = const { Cell::new(0) };
    }

    const GOOD: [&str; 7] = [
        "GET /relay/v1 HTTP/1.1",
        "Host: mesh.example",
        "Upgrade: websocket",
        "Connection: keep-alive, Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Protocol: other, ringmesh.relay.v1",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ];

    fn peer() -> SocketAddr {
        "192.0.2.9:1234".parse().unwrap()
    }

    fn head(lines: &[&str]) -> String {
        format!("{}\r\n\r\n", lines.join("\r\n"))
    }

    fn judge(lines: &[&str], rules: &Rules) -> Result<Granted, Refusal> {
        read(head(lines).as_bytes(), peer(), rules)
    }

    /// The good request with one line replaced, or left out if the other is empty.
    fn with(from: &str, to: &str) -> Result<Granted, Refusal> {
        let lines: Vec<_> = GOOD
            .iter()
            .map(|&line| if line.starts_with(from) { to } else { line })
            .filter(|line| !line.is_empty())
            .collect();
        assert_ne!(lines, GOOD);
        judge(&lines, &Rules::default())
    }

    #[test]
    fn a_good_request_is_granted_with_the_answer_of_the_standard() {
        let granted = judge(&GOOD, &Rules::default()).unwrap();
        assert_eq!(granted.accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", "RFC 6455 §1.3");
        assert_eq!(granted.length, head(&GOOD).len());
        assert_eq!(granted.forwarded_for, None);
    }

    #[test]
    fn everything_that_must_be_there_is_missed() {
        for (line, refusal) in [
            ("Upgrade", Refusal::NotWebSocket),
            ("Connection", Refusal::NotWebSocket),
            ("Sec-WebSocket-Version", Refusal::NotWebSocket),
            ("Sec-WebSocket-Protocol", Refusal::NotWebSocket),
            ("Sec-WebSocket-Key", Refusal::Malformed),
        ] {
            assert_eq!(with(line, ""), Err(refusal), "{line}");
            assert_eq!(with(line, &format!("{line}: else")), Err(refusal), "{line}");
        }
        assert_eq!(with("GET", "POST /relay/v1 HTTP/1.1"), Err(Refusal::Method));
        assert_eq!(with("GET", "GET /relay/v1 HTTP/1.0"), Err(Refusal::NotWebSocket));
        assert_eq!(with("GET", "GET /relay/v1 HTTP/9.9"), Err(Refusal::Malformed));
    }

    #[test]
    fn a_web_page_is_refused_whatever_its_origin() {
        for origin in ["https://evil.example", "https://mesh.example", "null", ""] {
            let line = format!("oRiGiN: {origin}");
            let lines = [GOOD.as_slice(), &[&line]].concat();
            assert_eq!(judge(&lines, &Rules::default()), Err(Refusal::Origin), "{origin}");
        }
    }

    #[test]
    fn the_path_ends_in_ours_after_a_base_path_that_a_proxy_may_take_off() {
        let any = |path| is_ours(path, None);
        assert!(any("/relay/v1") && any("/mesh/relay/v1") && any("/a/b/relay/v1?x=1"));
        assert!(
            !any("/") && !any("/relay/v2") && !any("/relay/v1/") && !any("/relay/v1/x") && !any("/xrelay/v1")
        );
        assert!(!any("mesh/relay/v1") && !any("/?/relay/v1"));
        let based = |path| is_ours(path, Some("/mesh"));
        assert!(based("/relay/v1") && based("/mesh/relay/v1"));
        assert!(!based("/other/relay/v1") && !based("/mesh/mesh/relay/v1"));
        assert_eq!(with("GET", "GET /other HTTP/1.1"), Err(Refusal::Path));
    }

    #[test]
    fn only_a_trusted_proxy_is_believed_and_only_what_it_saw_itself() {
        let trusting = |proxies: &[&str]| Rules {
            trusted_proxies: proxies.iter().map(|proxy| proxy.parse().unwrap()).collect(),
            ..Rules::default()
        };
        let seen = |lines: &[&str], proxies: &[&str]| {
            judge(&[GOOD.as_slice(), lines].concat(), &trusting(proxies)).unwrap().forwarded_for
        };
        let x = ["X-Forwarded-For: 203.0.113.66, 198.51.100.7"];
        let is = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        assert_eq!(seen(&x, &[]), None);
        assert_eq!(seen(&x, &["10.0.0.0/8"]), None, "the peer is another");
        assert_eq!(seen(&x, &["192.0.2.9/32"]), is("198.51.100.7"));
        assert_eq!(
            seen(&x, &["192.0.2.0/24", "198.51.100.7/32"]),
            is("203.0.113.66"),
            "two proxies in a row"
        );
        assert_eq!(seen(&["X-Forwarded-For: 192.0.2.10"], &["192.0.2.0/24"]), None);
        assert_eq!(
            seen(&["X-Forwarded-For: 203.0.113.1", "X-Forwarded-For: nonsense"], &["192.0.2.9/32"]),
            None
        );
        let standard = |lines: &[&str]| {
            let rules = Rules { forwarded_header: ForwardedHeader::Forwarded, ..trusting(&["192.0.2.9/32"]) };
            judge(&[GOOD.as_slice(), lines].concat(), &rules).unwrap().forwarded_for
        };
        for (text, address) in [
            ("Forwarded: for=203.0.113.5;proto=https", "203.0.113.5"),
            ("Forwarded: by=x;FOR=\"203.0.113.5:99\"", "203.0.113.5"),
            ("Forwarded: for=9.9.9.9, for=\"[2001:db8::7]:4711\"", "2001:db8::7"),
            ("Forwarded: for=\"[2001:db8::7]\"", "2001:db8::7"),
        ] {
            assert_eq!(standard(&[text]), is(address), "{text}");
            // The header that the proxy does not write is the client's own word.
            assert_eq!(standard(&[text, x[0]]), is(address), "{text}");
            assert_eq!(seen(&[text, x[0]], &["192.0.2.9/32"]), is("198.51.100.7"), "{text}");
            assert_eq!(seen(&[text], &["192.0.2.9/32"]), None, "{text}");
        }
        assert_eq!(standard(&["Forwarded: for=_hidden"]), None);
        assert_eq!(standard(&x), None);
    }

    #[test]
    fn headers_are_known_by_their_names_alone() {
        assert_eq!("X-Forwarded-For".parse(), Ok(ForwardedHeader::XForwardedFor));
        assert_eq!("forwarded".parse(), Ok(ForwardedHeader::Forwarded));
        let unknown = "x-real-ip".parse::<ForwardedHeader>().unwrap_err();
        assert_eq!(
            unknown.to_string(),
            "`x-real-ip` is not a header that is understood: write x-forwarded-for or forwarded"
        );
    }

    #[test]
    fn too_many_header_lines_are_too_long() {
        let many: Vec<_> = (0..MAX_HEADERS).map(|number| format!("X-{number}: 1")).collect();
        let lines: Vec<_> = GOOD.iter().copied().chain(many.iter().map(String::as_str)).collect();
        assert_eq!(judge(&lines, &Rules::default()), Err(Refusal::TooLong));
    }

    async fn talk(request: &[u8]) -> (io::Result<Upgraded>, String) {
        let (mut ours, mut theirs) = tokio::io::duplex(64 << 10);
        theirs.write_all(request).await.unwrap();
        let result = accept(&mut ours, peer(), &Rules::default()).await;
        drop(ours);
        let mut answer = String::new();
        theirs.read_to_string(&mut answer).await.unwrap();
        (result, answer)
    }

    #[tokio::test]
    async fn requests_are_answered_and_what_follows_is_kept() {
        let request = [head(&GOOD).as_bytes(), b"more"].concat();
        let (result, answer) = talk(&request).await;
        assert_eq!(result.unwrap().rest, b"more");
        assert!(answer.starts_with("HTTP/1.1 101 ") && answer.contains("Protocol: ringmesh.relay.v1\r\n"));

        let (result, answer) = talk(head(&["GET / HTTP/1.1"]).as_bytes()).await;
        assert!(result.is_err() && answer.starts_with("HTTP/1.1 404 Not Found\r\n"), "{answer}");
        let (answered, words) = answer.split_once("\r\n\r\n").unwrap();
        assert!(answered.contains(&format!("Content-Length: {}", words.len())), "{answer}");
        assert!(words.contains("nothing here") && words.ends_with('\n'), "{answer}");
        let origin = [GOOD.as_slice(), &["Origin: https://evil.example"]].concat();
        let (result, answer) = talk(head(&origin).as_bytes()).await;
        assert!(result.is_err() && answer.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{answer}");
        let endless = format!("GET /relay/v1 HTTP/1.1\r\nX: {}", "a".repeat(20_000));
        let (result, answer) = talk(endless.as_bytes()).await;
        assert!(result.is_err() && answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }

    /// Takes a request from a peer that sends `step` bytes at a time; tells how often its head was read.
    async fn in_steps(request: &[u8], step: usize) -> (io::Result<Upgraded>, usize) {
        let (mut ours, theirs) = tokio::io::duplex(step);
        let (mut answer, mut theirs) = tokio::io::split(theirs);
        let before = READS.get();
        let send = theirs.write_all(request);
        // What is answered is to find room.
        let mut answered = Vec::new();
        let listen = answer.read_to_end(&mut answered);
        let take = async {
            let result = accept(&mut ours, peer(), &Rules::default()).await;
            drop(ours);
            result
        };
        let (result, _, _) = tokio::join!(take, send, listen);
        (result, READS.get() - before)
    }

    #[tokio::test]
    async fn a_head_is_read_once_however_small_the_pieces_are_that_it_comes_in() {
        let long = format!("X: {}", "a".repeat(MAX_HEAD - 500));
        let request = head(&[GOOD.as_slice(), &[&long]].concat());
        for step in [1, 2, 3, 4, 5, 1000] {
            let (result, reads) = in_steps(request.as_bytes(), step).await;
            assert!(result.is_ok(), "{step}: {result:?}");
            assert_eq!(reads, 1, "{step}");
        }
        let endless = format!("GET /relay/v1 HTTP/1.1\r\nX: {}", "a".repeat(20_000));
        let (result, reads) = in_steps(endless.as_bytes(), 1).await;
        assert!(result.is_err() && reads == 0, "{reads}");
    }

    #[tokio::test]
    async fn an_end_without_a_request_is_refused_and_not_waited_upon() {
        let (result, answer) = talk(b"\r\n\r\n").await;
        assert!(result.is_err() && answer.starts_with("HTTP/1.1 400 "), "{answer}");
        let (result, answer) = talk(b"GET /relay/v1 HTTP/1.1\r\nX y\r\n\r\n").await;
        assert!(result.is_err() && answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), line in 0usize..7) {
            let trusting = Rules { trusted_proxies: vec!["0.0.0.0/0".parse().unwrap()], ..Rules::default() };
            let _ = read(&bytes, peer(), &trusting);
            let mut lines = GOOD.map(|line| line.as_bytes().to_vec()).to_vec();
            lines[line] = [b"Forwarded: ".as_slice(), &bytes].concat();
            let request = [lines.join(b"\r\n".as_slice()), b"\r\n\r\n".to_vec()].concat();
            let _ = read(&request, peer(), &trusting);
        }
    }
}
