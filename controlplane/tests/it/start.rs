//! Starting: what is made, what is kept, and what is said when it cannot work.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    sync::Arc,
};

use ringmesh_controlplane::{Config, certificate_pem, run};
use ringmesh_proto::control::sync_response;
use ringmesh_tunnel::netmap::MapError;

use crate::{
    client::TestNode,
    harness::{Running, config},
};

/// The words with which a coordinator does not start.
async fn failure(config: Config) -> String {
    let never = std::future::pending();
    run(config, never, |_| panic!("it serves")).await.unwrap_err().to_string()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn the_first_start_makes_a_network_and_the_second_keeps_it() {
    let coordinator = Running::start_with(|config| config.network.name = "home".into()).await;
    let networks =
        |list: tonic::Response<ringmesh_proto::admin::ListNetworksResponse>| list.into_inner().networks;
    let request = ringmesh_proto::admin::ListNetworksRequest {};
    let before = networks(coordinator.operator().await.networks.list_networks(request).await.unwrap());
    let mut node = coordinator.member("a").await;
    let certificate = coordinator.ready.certificate_pem.clone();
    let state = coordinator.state_dir();
    assert_eq!(mode(&state), 0o700);
    for secret in ["key", "tls.key", "coordinator.db", "lock"] {
        assert_eq!(mode(&state.join(secret)), 0o600, "{secret}");
    }
    let directory = coordinator.stop().await;
    assert_eq!(certificate_pem(&directory.path().join("state")).unwrap(), certificate);

    // Other words in the configuration make no second network and change nothing of the first.
    let change = |config: &mut Config| {
        config.network.name = "home".into();
        config.network.ipv4_pool = "10.1.0.0/16".parse().unwrap();
    };
    let coordinator = Running::start_in(directory, change).await;
    let after = networks(coordinator.operator().await.networks.list_networks(request).await.unwrap());
    assert_eq!((after.len(), &after[0].id, &after[0].ipv4_pool), (1, &before[0].id, &before[0].ipv4_pool));
    assert_eq!(coordinator.ready.certificate_pem, certificate);
    node.address = Some(coordinator.ready.address);
    let mut stream = node.sync().await.unwrap();
    assert!(node.update(&mut stream).await.full);
    coordinator.stop().await;
}

#[tokio::test]
async fn a_taken_port_is_named_with_the_cure() {
    let coordinator = Running::start().await;
    let directory = tempfile::tempdir().unwrap();
    let taken = Config { listen: coordinator.ready.address, ..config(directory.path()) };
    let text = failure(taken).await;
    assert!(text.contains(&coordinator.ready.address.to_string()), "{text}");
    assert!(text.contains("another program listens on this port") && text.contains("listen = "), "{text}");
    assert!(!directory.path().join("run/coordinator.sock").exists(), "nothing half-done");
    coordinator.stop().await;
}

#[tokio::test]
async fn an_address_of_another_machine_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let text = failure(Config { listen: "192.0.2.77:0".parse().unwrap(), ..config(directory.path()) }).await;
    assert!(text.contains("192.0.2.77:0") && text.contains("is this an address of this machine?"), "{text}");
}

#[tokio::test]
async fn a_second_coordinator_of_the_same_state_or_socket_is_refused() {
    let coordinator = Running::start().await;
    let other = Config {
        admin_socket: coordinator.directory.path().join("run/other.sock"),
        ..config(coordinator.directory.path())
    };
    let text = failure(other).await;
    assert!(text.contains("another coordinator is using this state directory"), "{text}");
    let other = Config {
        state_dir: coordinator.directory.path().join("other"),
        ..config(coordinator.directory.path())
    };
    let text = failure(other).await;
    assert!(text.contains("another coordinator answers on this socket"), "{text}");
    coordinator.stop().await;
}

#[tokio::test]
async fn a_pool_that_does_not_fit_is_named_before_anything_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let mut bad = config(directory.path());
    bad.network.ipv4_pool = "127.0.0.0/8".parse().unwrap();
    let text = failure(bad).await;
    assert!(text.contains("network.ipv4_pool") && text.contains("100.64.0.0/10"), "{text}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_state_directory_that_cannot_be_used_is_named_with_the_cure() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("state"), "a file").unwrap();
    let text = failure(config(directory.path())).await;
    assert!(text.contains("/state: "), "{text}");
    let open = tempfile::tempdir().unwrap();
    fs::create_dir(open.path().join("state")).unwrap();
    fs::set_permissions(open.path().join("state"), Permissions::from_mode(0o777)).unwrap();
    let text = failure(config(open.path())).await;
    assert!(text.contains("chmod go-w"), "{text}");
}

#[tokio::test]
async fn corrupted_state_is_named_and_never_served() {
    let coordinator = Running::start().await;
    coordinator.member("a").await;
    let directory = coordinator.stop().await;
    let database = directory.path().join("state/coordinator.db");
    let checkpoint = rusqlite::Connection::open(&database).unwrap();
    checkpoint.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    drop(checkpoint);
    let good = fs::read(&database).unwrap();
    let key = b"/node/";
    let at = good.windows(key.len()).position(|window| window == key).unwrap();
    let mut bad = good.clone();
    bad[at + 300] ^= 1;
    fs::write(&database, &bad).unwrap();
    let text = failure(config(directory.path())).await;
    assert!(text.contains("coordinator.db: the database is corrupted") && text.contains("backup"), "{text}");
    fs::write(&database, &good).unwrap();
    fs::remove_file(directory.path().join("state/key")).unwrap();
    let text = failure(config(directory.path())).await;
    assert!(text.contains("/key: missing") && text.contains("backup"), "{text}");
    // Another key file than the one the secrets were sealed with.
    fs::write(directory.path().join("state/key"), [7; 32]).unwrap();
    let text = failure(config(directory.path())).await;
    assert!(
        text.contains("the file `key`") && text.ends_with("; restore the state directory from a backup"),
        "{text}"
    );
    assert_eq!(text.matches("restore").count(), 1, "one cure: {text}");
}

#[tokio::test]
async fn a_new_address_gets_a_new_certificate_for_the_same_key() {
    let coordinator =
        Running::start_with(|config| config.advertise = vec!["a.example.org".parse().unwrap()]).await;
    let before = coordinator.ready.certificate_pem.clone();
    assert_eq!(coordinator.ready.endpoints, [format!("a.example.org:{}", coordinator.ready.address.port())]);
    let directory = coordinator.stop().await;
    let key = fs::read(directory.path().join("state/tls.key")).unwrap();
    let change = |config: &mut Config| config.advertise = vec!["b.example.org:8443".parse().unwrap()];
    let coordinator = Running::start_in(directory, change).await;
    assert_ne!(coordinator.ready.certificate_pem, before);
    assert_eq!(fs::read(coordinator.state_dir().join("tls.key")).unwrap(), key);
    assert_eq!(coordinator.ready.endpoints, ["b.example.org:8443"]);
    let token = coordinator.operator().await.token(Default::default()).await;
    assert_eq!(token.coordinators(), ["b.example.org:8443"]);
    coordinator.stop().await;
}

/// What other clients than nodes do: take the printed certificate as trust anchor, and check the name.
#[tokio::test]
async fn the_certificate_serves_ordinary_clients_as_trust_anchor() {
    let coordinator = Running::start().await;
    use rustls::pki_types::pem::PemObject as _;
    let certificate =
        rustls::pki_types::CertificateDer::from_pem_slice(coordinator.ready.certificate_pem.as_bytes());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.unwrap()).unwrap();
    let connect = async |name: &'static str, versions: &[&'static rustls::SupportedProtocolVersion]| {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        let stream = tokio::net::TcpStream::connect(coordinator.ready.address).await.unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name.try_into().unwrap(), stream).await
    };
    connect("127.0.0.1", &[&rustls::version::TLS13]).await.unwrap();
    connect("localhost", &[&rustls::version::TLS13]).await.unwrap();
    connect("other.example.org", &[&rustls::version::TLS13]).await.unwrap_err();
    coordinator.stop().await;
}

/// Needs root to give up its rights; the port is taken by nobody.
#[test]
fn a_privileged_port_without_the_privilege_is_named_with_the_cure() {
    if !nix::unistd::geteuid().is_root() {
        println!("NOT RUN: a privileged port without the privilege: only root can give up its rights");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("child");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    for path in [directory.path(), &program] {
        fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
    }
    let state = directory.path().join("own");
    fs::create_dir(&state).unwrap();
    std::os::unix::fs::chown(&state, Some(65534), Some(65534)).unwrap();
    // In a network namespace of its own every port below 1024 is privileged again, whatever the machine's setting.
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"])
        .arg(&program)
        .args(["--exact", "crash::a_coordinator_serves_until_it_is_told_to_stop", "--nocapture"])
        .env("RINGMESH_TEST_COORDINATOR", &state)
        .env("RINGMESH_TEST_LISTEN", "127.0.0.1:443")
        .current_dir("/")
        .output()
        .unwrap();
    let text =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("ports below 1024 need a privilege") && text.contains("setcap"), "{text}");
}

#[tokio::test]
async fn a_token_names_the_coordinator_that_made_it() {
    let coordinator = Running::start().await;
    let token = coordinator.token().await;
    assert_eq!(token.coordinators(), [coordinator.ready.address.to_string()]);
    let mut node = TestNode::new("a");
    node.join(&token).await.unwrap();
    coordinator.stop().await;
}

/// Without the flag the same backup is refused by every node, which is what the flag is for.
#[tokio::test]
async fn a_restored_backup_serves_the_nodes_that_saw_what_came_after_it() {
    let coordinator = Running::start().await;
    let mut a = coordinator.member("a").await;
    let directory = coordinator.stop().await;
    let state = directory.path().join("state");
    let backup = tempfile::tempdir().unwrap();
    let copy = |from: &Path, to: &Path| {
        for entry in fs::read_dir(from).unwrap().flatten() {
            if entry.file_type().unwrap().is_file() {
                fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
            }
        }
    };
    copy(&state, backup.path());
    // Life goes on, and is lost.
    let coordinator = Running::start_in(directory, |_| {}).await;
    coordinator.member("b").await;
    coordinator.operator().await.remove("b").await;
    a.address = Some(coordinator.ready.address);
    let mut stream = a.sync().await.unwrap();
    a.update(&mut stream).await;
    let seen = a.map.as_ref().unwrap().position().unwrap().durable;
    // The removal began an epoch that the backup knows nothing of.
    assert_eq!(a.map.as_ref().unwrap().head().unwrap().epoch, 2);
    let directory = coordinator.stop().await;
    fs::remove_dir_all(&state).unwrap();
    fs::create_dir(&state).unwrap();
    fs::set_permissions(&state, Permissions::from_mode(0o700)).unwrap();
    copy(backup.path(), &state);

    let coordinator = Running::start_in(directory, |_| {}).await;
    a.address = Some(coordinator.ready.address);
    let mut stream = a.sync().await.unwrap();
    let sync_response::Message::Update(update) = stream.next().await.unwrap() else { panic!() };
    let error = a.verify(crate::client::map_update(update)).unwrap_err();
    assert!(matches!(error, MapError::OlderPosition { .. }), "{error}");
    let directory = coordinator.stop().await;

    let coordinator = Running::start_in(directory, |config| config.restored = true).await;
    a.address = Some(coordinator.ready.address);
    let mut stream = a.sync().await.unwrap();
    a.update(&mut stream).await;
    let map = a.map.as_ref().unwrap();
    assert!(map.position().unwrap().durable > seen + (1 << 31));
    assert_eq!(map.head().unwrap().epoch, 1 + (1 << 32));
    assert_eq!(map.me().unwrap().serial, 1 + (1 << 32));
    assert_eq!(map.policy().unwrap().serial, 1 + (1 << 32));
    assert!(map.chain().certificates().all(|certificate| certificate.serial == 1 + (1 << 32)));
    assert_eq!(map.members().count(), 1);
    // Later starts go on from there.
    let directory = coordinator.stop().await;
    let coordinator = Running::start_in(directory, |_| {}).await;
    a.address = Some(coordinator.ready.address);
    let mut stream = a.sync().await.unwrap();
    a.update(&mut stream).await;
    assert_eq!(a.map.as_ref().unwrap().me().unwrap().serial, 1 + (1 << 32));
    coordinator.stop().await;
}
