//! HTTP proxies, as the environment names them: some networks let nothing out but through one.
//!
//! `HTTPS_PROXY`, else `ALL_PROXY`, names the proxy; `NO_PROXY` names hosts that are reached without it. Lower case counts too,
//! and first. A proxy sees where we go and how much, nothing else: TLS runs through it (`CONNECT`, RFC 9110 §9.3.6).
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use std::{fmt, net::IpAddr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use zeroize::Zeroizing;

use crate::fallback::tcp;

/// A proxy's answer may be so long.
const MAX_ANSWER: usize = 8 * 1024;

/// What the environment says of proxies.
#[derive(Debug, Clone, Default)]
pub(crate) struct Proxies {
    proxy: Option<Result<Proxy, String>>,
    except: Vec<Exception>,
}

/// One HTTP proxy.
#[derive(Clone)]
pub(crate) struct Proxy {
    host: String,
    port: u16,
    /// `user:password`.
    credentials: Option<Zeroizing<String>>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

impl fmt::Display for Proxy {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Hosts that are reached without a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Exception {
    All,
    Name(String),
    Addresses(ringmesh_tunnel::ip::Prefix),
}

impl Proxies {
    /// Reads the process's environment.
    pub(crate) fn from_env() -> Self {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// Reads an environment that `variable` gives.
    pub(crate) fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let either = |name: &str| {
            let lower = variable(&name.to_ascii_lowercase());
            lower.or_else(|| variable(name)).filter(|value| !value.is_empty())
        };
        let named = ["HTTPS_PROXY", "ALL_PROXY"].into_iter().find_map(|name| Some((name, either(name)?)));
        let proxy =
            named.map(|(name, value)| parse(Zeroizing::new(value)).map_err(|why| format!("{name}: {why}")));
        let except = either("NO_PROXY").unwrap_or_default();
        let except = except.split([',', ' ']).map(str::trim).filter(|part| !part.is_empty());
        Self { proxy, except: except.map(exception).collect() }
    }

    /// The proxy through which `host` is reached; none if directly.
    ///
    /// # Errors
    /// The environment names one that we cannot use, and why.
    pub(crate) fn for_host(&self, host: &str) -> Result<Option<&Proxy>, String> {
        let Some(proxy) = &self.proxy else { return Ok(None) };
        let address: Option<IpAddr> = host.parse().ok();
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let excepted = self.except.iter().any(|exception| match exception {
            Exception::All => true,
            Exception::Addresses(prefix) => address.is_some_and(|address| prefix.contains(address)),
            Exception::Name(name) => {
                host.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
        });
        // As everywhere: what runs on this machine is not asked of a proxy.
        if excepted || host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
            return Ok(None);
        }
        proxy.as_ref().map(Some).map_err(Clone::clone)
    }
}

/// One part of `NO_PROXY`: `*`, a name with all below it, an address, or a range.
fn exception(part: &str) -> Exception {
    if part == "*" {
        return Exception::All;
    }
    let bare = part.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Exception::Addresses(address.into());
    }
    if let Ok(prefix) = part.parse() {
        return Exception::Addresses(prefix);
    }
    let name = part.strip_prefix('*').unwrap_or(part);
    Exception::Name(name.trim_start_matches('.').trim_end_matches('.').to_ascii_lowercase())
}

/// Takes `[http://][user:password@]host[:port][/]` apart.
fn parse(value: Zeroizing<String>) -> Result<Proxy, String> {
    let rest = match value.split_once("://") {
        None => value.as_str(),
        Some(("http", rest)) => rest,
        Some((scheme, _)) => {
            // The value is not repeated: it may hold a password.
            return Err(format!("a proxy of the kind `{scheme}://` cannot be used; only `http://host:port`"));
        }
    };
    let rest = rest.trim_end_matches('/');
    let (credentials, authority) = match rest.rsplit_once('@') {
        Some((credentials, authority)) => (Some(unescape(credentials)?), authority),
        None => (None, rest),
    };
    let authority: http::uri::Authority =
        authority.parse().map_err(|_| "it names no host; write `http://host:port`".to_owned())?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    if host.is_empty() {
        return Err("it names no host; write `http://host:port`".to_owned());
    }
    Ok(Proxy { host, port: authority.port_u16().unwrap_or(80), credentials })
}

/// Takes percent encoding back (RFC 3986 §2.1): a password may hold any character.
fn unescape(text: &str) -> Result<Zeroizing<String>, String> {
    let wrong = || "its user name or password is not percent-encoded as it should be".to_owned();
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
        let (high, low) = (digit().ok_or_else(wrong)?, digit().ok_or_else(wrong)?);
        bytes.push(u8::try_from(high << 4 | low).map_err(|_| wrong())?);
    }
    std::str::from_utf8(&bytes).map(|text| Zeroizing::new(text.to_owned())).map_err(|_| wrong())
}

impl Proxy {
    /// Opens TCP to the proxy and has it connected with `host:port`. The caller bounds the time.
    ///
    /// # Errors
    /// A sentence that names the proxy and what it answered.
    pub(super) async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, String> {
        let mut stream = tcp::connect(&self.host, self.port, None)
            .await
            .map_err(|error| format!("the proxy {self} is not reached: {error}"))?;
        let answer = self
            .ask(&mut stream, host, port)
            .await
            .map_err(|error| format!("the proxy {self} broke off: {error}"))?;
        match status(&answer) {
            Some(200..=299) => Ok(stream),
            Some(407) if self.credentials.is_none() => Err(format!(
                "the proxy {self} wants a user name and password (407): write them into HTTPS_PROXY as `http://user:password@host:port`"
            )),
            Some(407) => Err(format!("the proxy {self} refuses the user name and password (407)")),
            Some(403) => Err(format!("the proxy {self} does not allow {host}:{port} (403)")),
            Some(code) => Err(format!("the proxy {self} cannot connect to {host}:{port} (status {code})")),
            None => Err(format!("the proxy {self} does not speak HTTP")),
        }
    }

    async fn ask(&self, stream: &mut TcpStream, host: &str, port: u16) -> std::io::Result<Vec<u8>> {
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let mut request =
            Zeroizing::new(format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n"));
        if let Some(credentials) = &self.credentials {
            let encoded = Zeroizing::new(STANDARD.encode(credentials.as_bytes()));
            request.push_str("Proxy-Authorization: Basic ");
            request.push_str(&encoded);
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::with_capacity(256);
        // Byte by byte: what follows the header belongs to TLS.
        while !answer.ends_with(b"\r\n\r\n") {
            if answer.len() >= MAX_ANSWER {
                return Err(std::io::Error::other(format!("its answer is longer than {MAX_ANSWER} bytes")));
            }
            answer.push(stream.read_u8().await?);
        }
        Ok(answer)
    }
}

/// The status code of an HTTP/1 answer.
fn status(answer: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(answer.split(|byte| *byte == b'\r').next()?).ok()?;
    let mut words = line.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    let code = words.next()?;
    (code.len() == 3 && code.bytes().all(|digit| digit.is_ascii_digit())).then(|| code.parse().ok())?
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tokio::net::TcpListener;

    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Proxies {
        let variables: BTreeMap<_, _> = variables.iter().copied().collect();
        Proxies::from_variables(|name| variables.get(name).map(|value| (*value).to_owned()))
    }

    fn named(proxies: &Proxies, host: &str) -> Option<String> {
        proxies.for_host(host).unwrap().map(ToString::to_string)
    }

    #[test]
    fn the_environment_names_the_proxy_as_for_other_programs() {
        assert_eq!(named(&proxies(&[]), "relay.example"), None);
        let all = ("ALL_PROXY", "http://all.example:3128");
        assert_eq!(named(&proxies(&[all]), "relay.example").unwrap(), "all.example:3128");
        let https = ("HTTPS_PROXY", "one.example:8080/");
        assert_eq!(named(&proxies(&[all, https]), "relay.example").unwrap(), "one.example:8080");
        let lower = ("https_proxy", "http://[2001:db8::1]");
        assert_eq!(named(&proxies(&[all, https, lower]), "relay.example").unwrap(), "2001:db8::1:80");
        assert_eq!(named(&proxies(&[("HTTPS_PROXY", "")]), "relay.example"), None);
    }

    #[test]
    fn hosts_that_are_excepted_are_reached_directly() {
        let list = "internal.example, .corp,*.wild.example 192.0.2.0/24,2001:db8::1";
        let proxies = proxies(&[("HTTPS_PROXY", "http://p:1"), ("NO_PROXY", list)]);
        for direct in [
            "internal.example",
            "INTERNAL.example.",
            "a.internal.example",
            "x.corp",
            "a.wild.example",
            "192.0.2.77",
            "2001:db8::1",
            "localhost",
            "127.0.0.1",
            "::1",
        ] {
            assert_eq!(named(&proxies, direct), None, "{direct}");
        }
        for proxied in ["notinternal.example", "example", "192.0.3.1", "2001:db8::2", "xcorp"] {
            assert!(named(&proxies, proxied).is_some(), "{proxied}");
        }
    }

    #[test]
    fn one_star_excepts_everything() {
        let proxies = proxies(&[("HTTPS_PROXY", "http://p:1"), ("no_proxy", "*")]);
        assert_eq!(named(&proxies, "relay.example"), None);
    }

    #[test]
    fn a_proxy_of_another_kind_is_refused_by_name_and_without_its_password() {
        for (value, part) in [
            ("socks5://user:hunter2@p:1080", "socks5://"),
            ("https://user:hunter2@p:443", "https://"),
            ("http://user:hunter2@", "names no host"),
            ("http://user:hunter2%zz@p:1", "percent-encoded"),
        ] {
            let proxies = proxies(&[("HTTPS_PROXY", value)]);
            let why = proxies.for_host("relay.example").unwrap_err();
            assert!(why.contains(part) && why.contains("HTTPS_PROXY"), "{why}");
            assert!(!why.contains("hunter2") && !format!("{proxies:?}").contains("hunter2"), "{why}");
        }
        let good = proxies(&[("HTTPS_PROXY", "http://user:hunter2@p:1")]);
        assert!(!format!("{good:?}").contains("hunter2"));
    }

    /// A proxy that answers `answer` and gives back what it was asked.
    async fn answering(answer: Vec<u8>) -> (u16, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                asked.push(stream.read_u8().await.unwrap());
            }
            let _ = stream.write_all(&answer).await;
            let _ = stream.write_all(b"behind").await;
            String::from_utf8(asked).unwrap()
        });
        (port, asked)
    }

    async fn through(credentials: &str, answer: &[u8]) -> (Result<TcpStream, String>, String) {
        let (port, asked) = answering(answer.to_vec()).await;
        let proxy = parse(Zeroizing::new(format!("http://{credentials}127.0.0.1:{port}"))).unwrap();
        let result = proxy.connect("2001:db8::1", 443).await;
        (result, asked.await.unwrap())
    }

    #[tokio::test]
    async fn a_proxy_connects_and_what_follows_is_the_others() {
        let (stream, asked) = through("", b"HTTP/1.1 200 Connection established\r\nX: y\r\n\r\n").await;
        let mut behind = [0; 6];
        stream.unwrap().read_exact(&mut behind).await.unwrap();
        assert_eq!(&behind, b"behind");
        assert_eq!(asked, "CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n\r\n");
    }

    #[tokio::test]
    async fn a_password_goes_to_the_proxy_and_nowhere_else() {
        let (stream, asked) = through("me:a%3Ab%40c@", b"HTTP/1.0 200 OK\r\n\r\n").await;
        stream.unwrap();
        let expected = format!("Proxy-Authorization: Basic {}\r\n", STANDARD.encode("me:a:b@c"));
        assert!(asked.contains(&expected), "{asked}");
        let (refused, _) = through("me:hunter2@", b"HTTP/1.1 407 No\r\n\r\n").await;
        let why = refused.unwrap_err();
        assert!(why.contains("refuses the user name") && !why.contains("hunter2"), "{why}");
    }

    #[tokio::test]
    async fn what_a_proxy_refuses_is_said() {
        for (answer, part) in [
            (&b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"[..], "user:password@host"),
            (b"HTTP/1.1 403 Forbidden\r\n\r\n", "does not allow"),
            (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "status 502"),
            (b"SSH-2.0-x\r\n\r\n", "does not speak HTTP"),
            (b"HTTP/1.1 2000 OK\r\n\r\n", "does not speak HTTP"),
            (b"HTTP/1.1 +20 OK\r\n\r\n", "does not speak HTTP"),
            (&vec![b'x'; 100_000], "longer than 8192"),
            (b"HTTP/1.1 200", "broke off"),
        ] {
            let (refused, _) = through("", answer).await;
            let why = refused.unwrap_err();
            assert!(why.contains(part), "{why}");
        }
    }
}
