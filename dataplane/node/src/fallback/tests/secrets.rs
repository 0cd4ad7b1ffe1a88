//! What is written into the log, by us and by the libraries, at the finest level there is.

use std::{
    io,
    sync::{Arc, Mutex},
};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use ringmesh_tunnel::key::IdentitySecret;
use tokio::net::TcpListener;

use super::*;
use crate::fallback::{
    ssh::{Members, SshServer, dial_endpoint},
    websocket::Proxies,
};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn spellings(secret: &[u8]) -> Vec<String> {
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let list: Vec<_> = secret.iter().map(u8::to_string).collect();
    vec![hex.to_uppercase(), hex, list.join(", "), STANDARD_NO_PAD.encode(secret)]
}

#[tokio::test]
async fn neither_keys_nor_passwords_are_in_any_log() {
    let log = Log::default();
    let sink = log.clone();
    let logging = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || sink.clone())
        .try_init();
    assert!(logging.is_ok(), "the libraries' own log is needed too, and one process has one");

    let seed = |first: u8| -> [u8; 32] {
        std::array::from_fn(|index| first.wrapping_add((index as u8).wrapping_mul(29)))
    };
    let (host, user) = (seed(0x5a), seed(0xc3));
    let (host_key, user_key) = (IdentitySecret::from_seed(host), IdentitySecret::from_seed(user));
    let mut far = Side::new();
    let members = Members::new();
    members.set([user_key.public_key()]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let _server = SshServer::start(listener, &host_key, members, far.hub.clone()).unwrap();
    let stream = dial_endpoint(address, &host_key.public_key(), &user_key, None).await.unwrap();
    let mut near = Side::new();
    let asked = DialOpen {
        peer: ringmesh_tunnel::key::NodeId::from_bytes([7; 8]),
        candidate: 3,
        carrier: ringmesh_tunnel::Carrier::Ssh,
    };
    let end = near.hub.open(asked);
    let link = end.link();
    assert!(matches!(near.arrival().await, Arrival::Opened { .. }));
    tokio::spawn(async move { stream.pump(&end).await });
    exchange((&mut near, link), &mut far).await;

    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let named = format!("http://me:hunter2secret@{proxy}");
    let proxies = Proxies::from_variables(|name| (name == "HTTPS_PROXY").then(|| named.clone()));
    let url = "wss://relay.invalid/relay/v1".parse().unwrap();
    let refused = crate::fallback::websocket::dial(&url, &proxies, None).await.unwrap_err();
    tracing::debug!(%refused, ?proxies, "as a daemon would say it");

    let text = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    assert!(
        text.contains("russh") && text.contains("as a daemon would say it"),
        "the log has what it should"
    );
    for secret in [&host[..], &user] {
        for spelling in spellings(secret) {
            // The last byte of a list or of base64 may be cut differently.
            let part = &spelling[..spelling.len() - 4];
            assert!(!text.contains(part), "{part} is in the log");
        }
    }
    assert!(!text.contains("hunter2secret") && !text.contains(&STANDARD_NO_PAD.encode("me:hunter2secret")));
}
