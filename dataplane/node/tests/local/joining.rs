//! Joining and leaving: whole, or not at all.

use std::fs;

use ringmesh_lab::in_sandbox;
use ringmesh_proto::control::{Reason, sync_request::Message as In};
use ringmesh_tunnel::key::{IdentitySecret, NodeId};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{has_interface, reason};
use crate::support::{
    again::{ROLE, again},
    authority::Authority,
    block_on,
    coordinator::{Mischief, TestCoordinator},
    daemon::{Node, Place},
};

/// A refusal as a coordinator sends it.
fn refusal(reason: Reason, code: Code, message: &str) -> Status {
    Status::with_error_details(
        code,
        message,
        ErrorDetails::with_error_info(reason.as_str_name(), "ringmesh", []),
    )
}

/// Nothing is left of a join that failed.
async fn assert_untouched(place: &Place, node: &mut Node) {
    assert_eq!(node.status().await.state, "not-joined");
    assert!(!has_interface("mesh0"), "the interface is gone");
    let left: Vec<_> = fs::read_dir(&place.config.state_dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "lock")
        .collect();
    assert_eq!(left, [""; 0], "no file is left");
}

#[test]
fn a_joined_node_has_addresses_routes_and_files_and_a_left_one_has_none() {
    in_sandbox(|| {
        block_on(async {
            let coordinator = TestCoordinator::start().await;
            let place = Place::new();
            let mut node = place.start().await.unwrap();
            assert_untouched(&place, &mut node).await;

            let status = node.join(&coordinator.token(), "alpha").await.unwrap();
            assert_eq!(status.state, "running");
            let network = status.network.unwrap();
            let own = network.self_.unwrap();
            let pool = coordinator.shared.authority.network.ula();
            let ipv6 = NodeId::from_bytes([0, 0, 0, 0, 0, 0, 0, 1]).ipv6_in(pool).unwrap();
            assert_eq!((network.name.as_str(), network.zone.as_str(), network.epoch), ("lab", "mesh", 1));
            assert_eq!(
                (own.name.as_str(), own.ipv4.as_str(), own.ipv6.as_str()),
                ("alpha", "100.64.0.1", ipv6.to_string().as_str())
            );
            assert!(own.identity_fingerprint.starts_with("SHA256:"));
            assert_eq!(network.revision, network.installed_revision);
            let plane = status.data_plane.unwrap();
            assert_eq!((plane.interface.as_str(), plane.mtu, plane.listen_port), ("mesh0", 1408, 51820));
            assert!(!plane.back_end_reason.is_empty());
            coordinator.hear_acknowledgement(network.revision).await;

            let routes = sh("ip -4 route; ip -6 route; ip address show mesh0; ip link show mesh0");
            for line in [
                "100.64.0.0/10 dev mesh0",
                &format!("{pool} dev mesh0"),
                "100.64.0.1/32",
                &format!("{ipv6}/128"),
                "mtu 1408",
            ] {
                assert!(routes.contains(line), "{line}: {routes}");
            }
            assert!(!routes.contains("fe80"), "no link-local address is invented: {routes}");
            for file in ["identity", "network.json", "map", "secrets"] {
                assert!(place.state(file).exists(), "{file}");
            }

            assert!(node.leave().await.unwrap(), "the coordinator was told");
            assert_eq!(*coordinator.shared.left.borrow(), 1);
            assert_untouched(&place, &mut node).await;
            assert_eq!(reason(&node.leave().await.unwrap_err()), Reason::NotJoined);
            node.stop().await.unwrap();
            assert!(!place.config.socket.exists());
        });
    });
}

fn sh(line: &str) -> String {
    let output = std::process::Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_node_joins_one_network_at_a_time() {
    in_sandbox(|| {
        block_on(async {
            let coordinator = TestCoordinator::start().await;
            let place = Place::new();
            let mut node = place.start().await.unwrap();
            node.join(&coordinator.token(), "alpha").await.unwrap();
            let refused = node.join(&coordinator.token(), "beta").await.unwrap_err();
            assert_eq!(reason(&refused), Reason::AlreadyJoined);
            assert!(refused.message().contains("meshctl leave"), "{}", refused.message());
            assert_eq!(node.status().await.network.unwrap().self_.unwrap().name, "alpha");
        });
    });
}

#[test]
fn a_token_that_is_none_is_told_apart_from_one_cut_short() {
    in_sandbox(|| {
        block_on(async {
            let coordinator = TestCoordinator::start().await;
            let place = Place::new();
            let mut node = place.start().await.unwrap();
            let token = coordinator.token();
            for (text, word) in [
                ("hello", "not a join token"),
                (&token[..token.len() - 3], "truncated"),
                ("", "not a join token"),
            ] {
                let refused = node.join(text, "").await.unwrap_err();
                assert_eq!(refused.code(), Code::InvalidArgument, "{text}");
                assert!(refused.message().contains(word), "{}", refused.message());
            }
            assert_untouched(&place, &mut node).await;
            assert!(coordinator.shared.enrolled.lock().unwrap().is_empty());
        });
    });
}

#[test]
fn an_unreachable_coordinator_is_named_with_every_address_tried() {
    in_sandbox(|| {
        block_on(async {
            let place = Place::new();
            let mut node = place.start().await.unwrap();
            let token = Authority::new().token_text(&["127.0.0.1:9".to_owned(), "[::1]:9".to_owned()]);
            let refused = node.join(&token, "").await.unwrap_err();
            assert_eq!(reason(&refused), Reason::Unreachable);
            assert!(
                refused.message().contains("127.0.0.1:9") && refused.message().contains("[::1]:9"),
                "{refused}"
            );
            assert_untouched(&place, &mut node).await;
        });
    });
}

#[test]
fn a_coordinator_that_cannot_prove_itself_hears_nothing() {
    in_sandbox(|| {
        block_on(async {
            let coordinator = TestCoordinator::start().await;
            let place = Place::new();
            let mut node = place.start().await.unwrap();
            let mischiefs = [
                ("another TLS key", Mischief { tls_key: Some([1; 32]), ..Mischief::default() }),
                ("an old statement", Mischief { client_nonce: Some([1; 32]), ..Mischief::default() }),
            ];
            for (what, mischief) in mischiefs {
                *coordinator.shared.mischief.lock().unwrap() = mischief;
                let refused = node.join(&coordinator.token(), "").await.unwrap_err();
                assert_eq!(reason(&refused), Reason::NotTrusted, "{what}: {refused}");
            }
            // The pin of another network: its root key certified nothing here.
            *coordinator.shared.mischief.lock().unwrap() = Mischief::default();
            let other = Authority::new().token_text(&[coordinator.shared.address.to_string()]);
            let refused = node.join(&other, "").await.unwrap_err();
            assert_eq!(reason(&refused), Reason::NotTrusted, "{refused}");
            assert!(coordinator.shared.enrolled.lock().unwrap().is_empty(), "no enrolment was sent");
            assert_untouched(&place, &mut node).await;

            node.join(&coordinator.token(), "").await.unwrap();
        });
    });
}

#[test]
fn a_clock_far_off_is_refused_naming_both_times() {
    in_sandbox(|| {
        block_on(async {
            let coordinator = TestCoordinator::start().await;
            let place = Place::new();
            let mut node = place.start().await.unwrap();
            for clock_ahead in [400_000, -400_000] {
                *coordinator.shared.mischief.lock().unwrap() =
                    Mischief { clock_ahead, ..Mischief::default() };
                let refused = node.join(&coordinator.token(), "").await.unwrap_err();
                assert_eq!(reason(&refused), Reason::Clock);
                assert_eq!(refused.message().matches(" UTC").count(), 2, "{refused}");
            }
            assert_untouched(&place, &mut node).await;
        });
    });
}

#[test]
fn a_stranger_gives_no_advice_about_clocks() {
    in_sandbox(|| {
        block_on(async {
            let coordinator = TestCoordinator::start().await;
            let place = Place::new();
            let mut node = place.start().await.unwrap();
            // One without the network's keys, whose statement nobody certified.
            *coordinator.shared.mischief.lock().unwrap() =
                Mischief { clock_ahead: 400_000, ..Mischief::default() };
            let other = Authority::new().token_text(&[coordinator.shared.address.to_string()]);
            let refused = node.join(&other, "").await.unwrap_err();
            assert_eq!(reason(&refused), Reason::NotTrusted, "{refused}");
            assert!(!refused.message().contains("clock"), "{refused}");
            assert_untouched(&place, &mut node).await;
        });
    });
}

#[test]
fn what_the_coordinator_refuses_reaches_the_caller_as_it_is() {
    in_sandbox(|| {
        block_on(async {
            let coordinator = TestCoordinator::start().await;
            let place = Place::new();
            let mut node = place.start().await.unwrap();
            for (sent, code) in [
                (Reason::TokenExpired, Code::PermissionDenied),
                (Reason::TokenUsed, Code::PermissionDenied),
                (Reason::TokenInvalid, Code::Unauthenticated),
                (Reason::NameTaken, Code::AlreadyExists),
                (Reason::PoolExhausted, Code::ResourceExhausted),
            ] {
                coordinator.shared.mischief.lock().unwrap().refuse_enroll =
                    Some(refusal(sent, code, "because"));
                let refused = node.join(&coordinator.token(), "alpha").await.unwrap_err();
                assert_eq!((reason(&refused), refused.code()), (sent, code));
                assert!(refused.message().contains("because"), "{refused}");
            }
            assert_untouched(&place, &mut node).await;
        });
    });
}

#[test]
fn a_join_that_fails_after_enrolment_keeps_its_key_and_can_be_repeated() {
    in_sandbox(|| {
        block_on(async {
            let coordinator = TestCoordinator::start().await;
            let place = Place::new();
            let mut node = place.start().await.unwrap();
            coordinator.shared.mischief.lock().unwrap().refuse_sync =
                Some(refusal(Reason::ProofInvalid, Code::Unauthenticated, "no"));
            let refused = node.join(&coordinator.token(), "alpha").await.unwrap_err();
            assert_eq!(reason(&refused), Reason::ProofInvalid);
            assert!(refused.message().contains("same token"), "{refused}");
            assert_eq!(node.status().await.state, "not-joined");
            assert!(!has_interface("mesh0"));
            for file in ["network.json", "map", "secrets"] {
                assert!(!place.state(file).exists(), "{file}");
            }

            *coordinator.shared.mischief.lock().unwrap() = Mischief::default();
            let status = node.join(&coordinator.token(), "alpha").await.unwrap();
            assert_eq!(status.network.unwrap().self_.unwrap().ipv4, "100.64.0.1");
            assert_eq!(coordinator.shared.enrolled.lock().unwrap().len(), 1, "the same key, the same node");
        });
    });
}

#[test]
fn a_daemon_told_to_end_while_it_waits_for_its_first_map_ends_at_once() {
    in_sandbox(|| {
        block_on(async {
            let coordinator = TestCoordinator::start().await;
            coordinator.shared.mischief.lock().unwrap().mapless = true;
            let place = Place::new();
            let node = place.start().await.unwrap();
            let (mut joiner, token) = (Node::of_process(node.client.clone()), coordinator.token());
            let joining = tokio::spawn(async move { joiner.join(&token, "alpha").await });
            coordinator.hear("a hello", |message| matches!(message, In::Hello(_)).then_some(())).await;
            let began = std::time::Instant::now();
            node.stop().await.unwrap();
            assert!(began.elapsed() < std::time::Duration::from_secs(2), "{:?}", began.elapsed());
            joining.await.unwrap().unwrap_err();
            assert!(!has_interface("mesh0"));
            for file in ["network.json", "map", "secrets"] {
                assert!(!place.state(file).exists(), "{file}");
            }
            assert!(place.state("identity").exists() && place.state("join.json").exists());
        });
    });
}

#[test]
fn the_key_of_an_unfinished_join_is_kept_when_another_network_is_joined() {
    in_sandbox(|| {
        block_on(async {
            let coordinator = TestCoordinator::start().await;
            let place = Place::new();
            let mut node = place.start().await.unwrap();
            coordinator.shared.mischief.lock().unwrap().refuse_enroll = Some(Status::unavailable("broken"));
            let refused = node.join(&coordinator.token(), "alpha").await.unwrap_err();
            assert_eq!(reason(&refused), Reason::Unreachable);
            assert!(refused.message().contains("its key is kept"), "{refused}");
            let kept = fs::read(place.state("identity")).unwrap();

            let other = TestCoordinator::start().await;
            node.join(&other.token(), "alpha").await.unwrap();
            let aside = place.state(&format!("identity.of-{}", coordinator.shared.authority.network));
            assert_eq!(fs::read(aside).unwrap(), kept);
            assert_ne!(
                fs::read(place.state("identity")).unwrap(),
                kept,
                "networks do not learn of each other"
            );
        });
    });
}

#[test]
fn a_key_of_the_users_own_is_used_and_an_unsupported_one_refused() {
    in_sandbox(|| {
        block_on(async {
            let coordinator = TestCoordinator::start().await;
            let place = Place::new();
            let mut node = place.start().await.unwrap();
            let rsa = include_str!("../../src/state/testdata/rsa");
            let refused = node.join_with(&coordinator.token(), "", rsa).await.unwrap_err();
            assert_eq!(reason(&refused), Reason::InvalidArgument);
            assert!(
                refused.message().contains("RSA") && refused.message().contains("ssh-keygen"),
                "{refused}"
            );
            assert_untouched(&place, &mut node).await;

            let own = include_str!("../../src/state/testdata/ed25519");
            let status = node.join_with(&coordinator.token(), "", own).await.unwrap();
            let public =
                ssh_key::PublicKey::from_openssh(include_str!("../../src/state/testdata/ed25519.pub"))
                    .unwrap();
            let fingerprint = public.fingerprint(ssh_key::HashAlg::Sha256).to_string();
            assert_eq!(status.network.unwrap().self_.unwrap().identity_fingerprint, fingerprint);
        });
    });
}

#[test]
fn a_member_record_of_another_node_is_no_enrolment() {
    in_sandbox(|| {
        block_on(async {
            let coordinator = TestCoordinator::start().await;
            let place = Place::new();
            let mut node = place.start().await.unwrap();
            let other = Some(IdentitySecret::generate().public_key());
            let mischiefs = [
                Mischief { enroll_as: other, ..Mischief::default() },
                Mischief { other_id: true, ..Mischief::default() },
            ];
            for mischief in mischiefs {
                *coordinator.shared.mischief.lock().unwrap() = mischief;
                let refused = node.join(&coordinator.token(), "alpha").await.unwrap_err();
                assert_eq!(reason(&refused), Reason::NotTrusted, "{refused}");
            }
            assert_eq!(node.status().await.state, "not-joined");
            assert!(!has_interface("mesh0") && !place.state("network.json").exists());
            assert!(place.state("identity").exists(), "somebody who is no liar may have taken it before");
        });
    });
}

#[test]
fn behind_a_proxy_the_machines_authorities_decide() {
    if let Ok(token) = std::env::var(ROLE) {
        // SSL_CERT_FILE names the authorities of this process.
        block_on(async move {
            let place = Place::new();
            let mut node = place.start().await.unwrap();
            node.join(&token, "").await.unwrap();
        });
        return;
    }
    in_sandbox(|| {
        block_on(async {
            let authority_key = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            let authority = params.self_signed(&authority_key).unwrap();
            let issuer = rcgen::Issuer::from_params(&params, &authority_key);
            // The proxy's certificate is good; the coordinator behind it states its own TLS key, which nobody sees here.
            let key = rcgen::KeyPair::generate().unwrap();
            let proxy = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
            let proxy = proxy.signed_by(&key, &issuer).unwrap();
            let at = "127.0.0.1:0".parse().unwrap();
            let coordinator = TestCoordinator::start_as(Authority::new(), at, key, proxy).await;
            coordinator.shared.mischief.lock().unwrap().tls_key = Some([3; 32]);

            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("authorities.pem");
            fs::write(&file, authority.pem()).unwrap();
            let test = "joining::behind_a_proxy_the_machines_authorities_decide";
            let (passed, text) = again(test, &coordinator.token(), |command| {
                command.env("SSL_CERT_FILE", &file);
            });
            assert!(passed, "{text}");
            assert_eq!(*coordinator.shared.directness.lock().unwrap(), [false], "no exporter is claimed");

            // Another authority: refused before anything is told.
            let other_key = rcgen::KeyPair::generate().unwrap();
            fs::write(&file, params.self_signed(&other_key).unwrap().pem()).unwrap();
            let (passed, text) = again(test, &coordinator.token(), |command| {
                command.env("SSL_CERT_FILE", &file);
            });
            assert!(!passed && text.contains("certificate authorities do not vouch"), "{text}");
            assert_eq!(coordinator.shared.directness.lock().unwrap().len(), 1, "nothing more was sent");
        });
    });
}

#[test]
fn a_dead_address_does_not_keep_a_node_from_the_next() {
    in_sandbox(|| {
        block_on(async {
            let coordinator = TestCoordinator::start().await;
            // One refuses, one never answers, one works.
            let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let addresses = [
                "127.0.0.1:9".to_owned(),
                silent.local_addr().unwrap().to_string(),
                coordinator.shared.address.to_string(),
            ];
            let token = coordinator.shared.authority.token_text(&addresses);
            let place = Place::new();
            let mut node = place.start().await.unwrap();
            let began = std::time::Instant::now();
            node.join(&token, "").await.unwrap();
            assert!(began.elapsed() < std::time::Duration::from_secs(3), "{:?}", began.elapsed());
            assert_eq!(*coordinator.shared.directness.lock().unwrap(), [true]);
        });
    });
}
