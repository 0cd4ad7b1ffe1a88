//! Canaries: every secret that passed through a coordinator, looked for in its files and in its log at TRACE.

use std::{fs, path::Path, time::Duration};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use ringmesh_controlplane::{
    network::{Registry, authority::Signer},
    store::{Store as _, sqlite::SqliteStore},
    vault::Vault,
};
use ringmesh_proto::admin;
use ringmesh_tunnel::{
    enroll::{JoinToken, TokenSecret},
    key::IdentitySecret,
    netmap::Role,
};

use crate::{
    access::with_bearer,
    client::{Lie, TestNode, connect},
    crash,
    harness::{Operator, config},
    tunnel::{DataPlane, relay_of},
};

/// A secret and all the ways in which it might be written.
struct Canary {
    what: String,
    forms: Vec<Vec<u8>>,
}

impl Canary {
    fn new(what: impl Into<String>, secret: &[u8]) -> Self {
        let hex = |upper: bool| -> String {
            let byte = |byte: &u8| if upper { format!("{byte:02X}") } else { format!("{byte:02x}") };
            secret.iter().map(byte).collect()
        };
        // As `{:?}` of bytes begins; twelve of them are no coincidence.
        let list: Vec<String> = secret.iter().take(12).map(ToString::to_string).collect();
        let texts = [
            hex(false),
            hex(true),
            STANDARD.encode(secret),
            STANDARD_NO_PAD.encode(secret),
            URL_SAFE_NO_PAD.encode(secret),
            list.join(", "),
        ];
        let mut forms: Vec<Vec<u8>> = texts.into_iter().map(String::into_bytes).collect();
        forms.push(secret.to_vec());
        Self { what: what.into(), forms }
    }

    fn is_in(&self, bytes: &[u8]) -> bool {
        self.forms.iter().any(|form| bytes.windows(form.len()).any(|window| window == form))
    }
}

/// The seed inside a token's text: the 32 bytes that make its public key.
fn seed_of(token: &JoinToken) -> [u8; 32] {
    let text = token.reveal();
    let bytes = URL_SAFE_NO_PAD.decode(text.strip_prefix("mesh1_").unwrap()).unwrap();
    let seeds = bytes.windows(32).map(|window| <[u8; 32]>::try_from(window).unwrap());
    let mut seeds =
        seeds.filter(|seed| TokenSecret::from_seed(*seed).public_key() == token.secret().public_key());
    seeds.next().unwrap()
}

/// Everything that a coordinator wrote, but for the two files whose content is a secret by design.
fn written(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(written(&path));
        } else if path.is_file() && !["key", "tls.key"].contains(&path.file_name().unwrap().to_str().unwrap())
        {
            files.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_the_database_or_in_the_log_at_trace() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let (process, address) = crash::start_logged(directory.path(), &log).await;
    let mut operator = Operator::connect(&config(directory.path()).admin_socket).await;
    // Requests that name themselves: what was answered is remembered with its secret.
    let wish = admin::CreateTokenRequest { reusable: true, request_id: "token".into(), ..Default::default() };
    let token = operator.token(wish.clone()).await;
    assert_eq!(operator.token(wish).await.reveal(), token.reveal());
    let mut canaries = vec![
        Canary::new("token", token.reveal().as_bytes()),
        Canary { what: "token text".into(), forms: vec![token.reveal().as_bytes().to_vec()] },
        Canary::new("token seed", &seed_of(&token)),
    ];

    // What a coordinator does in its life.
    let mut node = TestNode::new("a");
    node.join(&token).await.unwrap();
    let mut stream = node.sync().await.unwrap();
    node.update(&mut stream).await;
    stream.tell(&node.record(4711)).await;
    canaries.push(Canary::new("session", &stream.session));
    canaries.push(Canary::new("exporter", &stream.connection.exporter));
    canaries.push(Canary::new("node's seed", node.identity.seed()));
    let mut data = DataPlane::over_udp(&node).await;
    assert!(data.is_served(Duration::from_secs(10)).await);
    let own = node.identity.public_key().noise_key();
    for (epoch, secret) in &node.secrets {
        let psk = secret.derive_psk(node.network, *epoch, &own, &relay_of(&node).0.noise_key);
        canaries.push(Canary::new("key with the relay", psk.expose()));
    }
    TestNode::new("b").join(&token).await.unwrap();
    let stock = admin::AddStockDeviceRequest {
        name: "phone".into(),
        public_key: IdentitySecret::generate().public_key().noise_key().to_string(),
        request_id: "phone".into(),
        ..Default::default()
    };
    operator.nodes.add_stock_device(stock.clone()).await.unwrap();
    let psk = operator.nodes.add_stock_device(stock).await.unwrap().into_inner().preshared_key;
    canaries.push(Canary::new("stock device's key", &STANDARD.decode(psk).unwrap()));
    operator.remove("b").await;
    // Automation: a key that is used, and one that is wrong.
    let wish = admin::CreateApiKeyRequest {
        name: "ci".into(),
        role: admin::ApiKeyRole::ReadOnly.into(),
        request_id: "once".into(),
        ..Default::default()
    };
    let key = operator.keys.create_api_key(wish).await.unwrap().into_inner().secret;
    canaries.push(Canary { what: "API key's text".into(), forms: vec![key.as_bytes()[20..].to_vec()] });
    let bytes = URL_SAFE_NO_PAD.decode(key.strip_prefix("meshkey1_").unwrap()).unwrap();
    let key_id: String = bytes[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    canaries.push(Canary::new("API key's secret", &bytes[8..]));
    let mut wrong = bytes.clone();
    wrong[39] ^= 1;
    let wrong = format!("meshkey1_{}", URL_SAFE_NO_PAD.encode(&wrong));
    for (bearer, is_good) in [(&key, true), (&wrong, false)] {
        let channel = connect(address).await.unwrap().channel;
        let mut nodes = admin::node_service_client::NodeServiceClient::new(channel);
        let request = with_bearer(admin::ListNodesRequest::default(), Some(bearer));
        assert_eq!(nodes.list_nodes(request).await.is_ok(), is_good);
        let remove = admin::RemoveNodeRequest { node: "a".into(), ..Default::default() };
        nodes.remove_node(with_bearer(remove, Some(bearer))).await.unwrap_err();
    }
    while node.secrets.len() < 2 {
        node.step(&mut stream).await.unwrap();
    }
    for (epoch, secret) in &node.secrets {
        canaries.push(Canary::new(format!("network secret {epoch}"), secret.expose()));
    }
    for lie in [Lie::OtherToken, Lie::OtherIdentity, Lie::OtherExporter, Lie::NoProof] {
        let mut connection = connect(address).await.unwrap();
        TestNode::new("liar").join_on(&mut connection, &token, lie).await.unwrap_err();
    }
    drop((process, stream));

    // With the key file, the secrets are there: so this test would find them if they lay open.
    let state = directory.path().join("state");
    let files = written(directory.path());
    let store = SqliteStore::open(&state).unwrap();
    let vault = Vault::open(&state, false).unwrap();
    let registry = Registry::load(&store.snapshot().await.unwrap(), &vault).unwrap();
    let network = registry.networks().next().unwrap();
    assert_eq!(network.epoch(), 2);
    for signer in [
        Signer::Root,
        Signer::Role(Role::Admission),
        Signer::Role(Role::Policy),
        Signer::Role(Role::Head),
        Signer::Role(Role::Coordinator),
    ] {
        canaries.push(Canary::new(signer.to_string(), network.authority().key(signer).unwrap().seed()));
    }
    let (_, relay) = network.own_relay().unwrap();
    canaries.push(Canary::new("relay's seed", relay.seed()));
    canaries.push(Canary::new("relay's noise key", relay.noise_secret().expose()));
    canaries.push(Canary::new("wrapping key", &fs::read(state.join("key")).unwrap()));
    let tls_key = fs::read_to_string(state.join("tls.key")).unwrap();
    let line = tls_key.lines().nth(1).unwrap();
    canaries.push(Canary { what: "TLS key".into(), forms: vec![line.as_bytes().to_vec()] });

    let traced = fs::read(&log).unwrap();
    let text = String::from_utf8_lossy(&traced);
    for expected in [
        "TRACE",
        "a node joined",
        "a join token was made",
        "an API key was made",
        "a proof failed",
        "told where the relay is",
        // Who knocked in vain.
        "event=\"request_refused\" method=\"/ringmesh.admin.v1.NodeService/ListNodes\" caller=a stranger",
        "reason=\"REASON_CREDENTIAL_INVALID\"",
        &format!("method=\"/ringmesh.admin.v1.NodeService/RemoveNode\" caller=API key {key_id} (ci) "),
        "reason=\"REASON_NOT_PERMITTED\"",
        "reason=\"REASON_TOKEN_INVALID\"",
    ] {
        assert!(text.contains(expected), "the log is not what it should be: no {expected:?}");
    }
    assert!(canaries.len() >= 17);
    // What may be stored is found, so that what may not be would be.
    let public = Canary::new("token's public key", token.secret().public_key().as_bytes());
    assert!(files.iter().any(|(path, bytes)| path.contains("coordinator.db") && public.is_in(bytes)));
    for canary in &canaries {
        for (path, bytes) in &files {
            assert!(!canary.is_in(bytes), "{} is in {path}", canary.what);
        }
    }
}
