//! Secrets stay where they belong: in no log at TRACE, no error, no argument list, no environment.

use std::{
    fs::{self, File},
    process::Command,
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use ringmesh_lab::in_sandbox;
use ringmesh_tunnel::{
    enroll::JoinToken,
    key::{IdentitySecret, PublicKey},
};

use crate::support::{block_on, coordinator::TestCoordinator, daemon::Place, process::Process};

/// All the ways in which 32 bytes are usually printed.
fn spellings(secret: &[u8; 32]) -> Vec<Vec<u8>> {
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let list: Vec<_> = secret.iter().map(u8::to_string).collect();
    let list_hex: Vec<_> = secret.iter().map(|byte| format!("{byte:#x}")).collect();
    // Neighbouring bytes shift the base64 of a whole message, so only the middle of each phase is the same.
    let shifted = (0..3).map(|phase| {
        let text = STANDARD_NO_PAD.encode([&vec![0; phase][..], secret].concat());
        text[4..text.len() - 4].to_owned()
    });
    let text = [
        hex.to_uppercase(),
        hex,
        STANDARD.encode(secret),
        STANDARD_NO_PAD.encode(secret),
        URL_SAFE_NO_PAD.encode(secret),
        list.join(", "),
        list_hex.join(", "),
    ];
    let escaped = format!("{:?}", String::from_utf8_lossy(secret)).into_bytes();
    let ascii: Vec<u8> = secret.escape_ascii().collect();
    let text = text.into_iter().chain(shifted).map(String::into_bytes);
    text.chain([secret.to_vec(), ascii, escaped]).filter(|spelling| spelling.len() > 20).collect()
}

fn assert_absent(what: &str, secret: &[u8; 32], from: &[(&str, Vec<u8>)]) {
    for spelling in spellings(secret) {
        for (place, text) in from {
            let found = text.windows(spelling.len()).any(|part| part == spelling);
            assert!(!found, "{what} is in {place}, spelled {}", spelling.escape_ascii());
        }
    }
}

#[test]
fn every_new_and_every_changed_peer_key_is_in_the_log() {
    in_sandbox(|| {
        block_on(async {
            let coordinator = TestCoordinator::start().await;
            let authority = &coordinator.shared.authority;
            let mut place = Place::new();
            place.config.log = Some("info".to_owned());
            let log = place.directory.path().join("log");
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.stderr(File::create(&log).unwrap());
            let mut daemon = Process::start(command, &place).await;
            daemon.node.join(&coordinator.token(), "alpha").await.unwrap();
            let keys = [(); 2].map(|()| IdentitySecret::generate().public_key());
            for (serial, key) in (1..).zip(keys) {
                let mut peer = authority.member(7, "newcomer", key);
                peer.serial = serial;
                let envelope = authority.sign_member(&peer);
                coordinator.shared.map.lock().unwrap().put(peer.id, envelope);
                // Twice: what is known is not told again.
                for _ in 0..2 {
                    coordinator.send_map().await;
                }
                let noise_key = key.noise_key().to_string();
                let has_it = move |status: &ringmesh_proto::local::StatusResponse| {
                    status.peers.first().is_some_and(|peer| peer.noise_key == noise_key)
                };
                daemon.node.until("the key is known", has_it).await;
            }
            daemon.terminate();
            let log = fs::read_to_string(&log).unwrap();
            let lines: Vec<_> = log.lines().filter(|line| line.contains("newcomer")).collect();
            assert_eq!(lines.len(), 2, "{log}");
            let [first, second] = keys.map(|key| key.fingerprint());
            let id = "0000000000000007";
            assert!(lines.iter().all(|line| line.contains("INFO") && line.contains(id)), "{lines:?}");
            assert!(lines[0].contains("a new peer") && lines[0].contains(&first), "{lines:?}");
            assert!(lines[1].contains("another key") && lines[1].contains(&second), "{lines:?}");
            assert!(lines[1].contains(&first), "and the one before: {lines:?}");
        });
    });
}

#[test]
fn no_secret_leaves_the_daemon_even_at_trace() {
    in_sandbox(|| {
        block_on(async {
            let coordinator = TestCoordinator::start().await;
            let authority = &coordinator.shared.authority;
            let mut place = Place::new();
            place.config.log = Some("trace".to_owned());
            let log = place.directory.path().join("log");
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.stderr(File::create(&log).unwrap());
            let mut daemon = Process::start(command, &place).await;

            let token = coordinator.token();
            // A refusal first: errors are a place, too.
            let mut wrong = token.clone();
            wrong.truncate(token.len() - 2);
            let error = daemon.node.join(&wrong, "").await.unwrap_err();
            let own = IdentitySecret::generate();
            let pair = ssh_key::private::Ed25519Keypair::from_seed(own.seed());
            let key = ssh_key::PrivateKey::from(pair).to_openssh(ssh_key::LineEnding::LF).unwrap();
            daemon.node.join_with(&token, "alpha", &key).await.unwrap();
            let peer = authority.member(7, "peer", IdentitySecret::generate().public_key());
            let peer_key: PublicKey = peer.noise_key;
            let envelope = authority.sign_member(&peer);
            coordinator.shared.map.lock().unwrap().put(peer.id, envelope);
            coordinator.send_map().await;
            let status = daemon.node.until("the peer is known", |status| status.peers.len() == 1).await;
            daemon.node.ping("peer", 1, 200).await.unwrap();
            let pid = daemon.pid();
            let outside = |name: &str| fs::read(format!("/proc/{pid}/{name}")).unwrap();
            let (arguments, environment) = (outside("cmdline"), outside("environ"));
            daemon.terminate();

            let log = fs::read(&log).unwrap();
            let text = String::from_utf8_lossy(&log);
            assert!(text.contains("TRACE") && text.contains("h2"), "the log is at TRACE, libraries included");
            assert!(log.len() > 10_000, "and long enough to tell");
            let state = |file: &str| fs::read(place.state(file)).unwrap();
            let everywhere = [
                ("the log", log),
                ("an error", format!("{error:?}").into_bytes()),
                ("the status", format!("{status:?}").into_bytes()),
                ("the arguments", arguments),
                ("the environment", environment),
                ("network.json", state("network.json")),
                ("the map", state("map")),
                ("the secrets", state("secrets")),
            ];
            let secret = token.parse::<JoinToken>().unwrap();
            assert_eq!(
                secret.secret().public_key(),
                IdentitySecret::from_seed(authority.token_seed).public_key()
            );
            assert_absent("the token's secret", &authority.token_seed, &everywhere);
            assert_absent("the identity key", own.seed(), &everywhere);
            assert_absent("the noise key", own.noise_secret().expose(), &everywhere);
            assert_absent("the network's secret", authority.secret.expose(), &everywhere);
            let psk = authority.secret.derive_psk(
                authority.network,
                1,
                &own.noise_secret().public_key(),
                &peer_key,
            );
            assert_absent("a pre-shared key", psk.expose(), &everywhere);
            for (place, text) in &everywhere {
                let token = token.trim_start_matches("mesh1_").as_bytes();
                assert!(
                    !text.windows(24).any(|part| part == &token[token.len() - 24..]),
                    "the token is in {place}"
                );
            }

            // And the search would find one.
            let shown = [("a log", format!("key={}", STANDARD.encode(own.seed())).into_bytes())];
            assert!(std::panic::catch_unwind(|| assert_absent("", own.seed(), &shown)).is_err());
        });
    });
}
