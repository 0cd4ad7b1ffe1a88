//! Who asks, where only this machine should: not the page of a stranger in this machine's browser.
//!
//! A page may make its name stand for 127.0.0.1 (DNS rebinding) and then reads the answers, as the browser takes them for the page's
//! own. But the browser says that name in `Host`, and nobody can rebind an address or `localhost`.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use axum::{
    extract::Request,
    http::{HeaderMap, StatusCode, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse as _, Response},
};

/// Answers whoever may ask a listener on a loopback address, and tells the others why they may not.
pub(crate) async fn only_of_this_machine(request: Request, next: Next) -> Response {
    let hosts = request.headers().get_all(header::HOST).iter().map(|host| host.to_str().unwrap_or("?"));
    if !hosts.chain(request.uri().authority().map(Authority::as_str)).all(is_this_machine) {
        let why =
            "this listener is for this machine: ask for an IP address or localhost, not for another name\n";
        return (StatusCode::MISDIRECTED_REQUEST, why).into_response();
    }
    if is_of_another_page(request.headers()) {
        return (StatusCode::FORBIDDEN, "this listener is not for other pages\n").into_response();
    }
    next.run(request).await
}

/// Whether a listener is reached from this machine alone.
pub(crate) fn is_loopback(listener: SocketAddr) -> bool {
    listener.ip().to_canonical().is_loopback()
}

/// Whether a `Host` (RFC 9110, section 7.2) is a name that nobody can rebind; an empty one is none.
fn is_this_machine(host: &str) -> bool {
    if host.is_empty() {
        return true;
    }
    let (name, port) = match host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        Some((address, port)) if address.parse::<Ipv6Addr>().is_ok() => ("localhost", port),
        Some(_) => return false,
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let has_port = port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    has_port && (name.eq_ignore_ascii_case("localhost") || name.parse::<Ipv4Addr>().is_ok())
}

/// Whether a browser says that a page from elsewhere asks (Fetch Metadata).
fn is_of_another_page(headers: &HeaderMap) -> bool {
    headers.get_all("sec-fetch-site").iter().any(|site| site.as_bytes().eq_ignore_ascii_case(b"cross-site"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_localhost_are_this_machine() {
        for host in [
            "",
            "localhost",
            "LocalHost:9464",
            "127.0.0.1",
            "127.0.0.1:9464",
            "[::1]",
            "[::1]:9464",
            "192.0.2.1",
        ] {
            assert!(is_this_machine(host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9464",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.1@evil.example",
            "evil.example@127.0.0.1",
            "[::1].evil.example",
            "[evil.example]",
            "::1",
            "2130706433",
            " ",
            "?",
        ] {
            assert!(!is_this_machine(host), "{host}");
        }
    }

    #[test]
    fn a_listener_on_a_loopback_address_is_for_this_machine() {
        for (address, is) in [
            ("127.0.0.1:1", true),
            ("127.9.9.9:1", true),
            ("[::1]:1", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("0.0.0.0:1", false),
            ("[::]:1", false),
            ("192.0.2.1:1", false),
        ] {
            assert_eq!(is_loopback(address.parse().unwrap()), is, "{address}");
        }
    }
}
