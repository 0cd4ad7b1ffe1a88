//! The answer to an enrolment is lost: the real coordinator has taken the node, and the node has not heard of it.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use ringmesh_lab::in_sandbox;
use ringmesh_proto::{
    admin::{
        CreateTokenRequest, ListNodesRequest, ListTokensRequest, node_service_client::NodeServiceClient,
        token_service_client::TokenServiceClient,
    },
    control::Reason,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixStream},
    sync::oneshot,
    time::sleep,
};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic_types::StatusExt as _;

use crate::support::{block_on, daemon::Place};

/// What becomes of answers once there is a node.
const PASS: u32 = 0;
const CUT_ALL: u32 = u32::MAX;
/// The answer never comes, and the connection stays.
const HOLD: u32 = u32::MAX - 1;

/// The real coordinator, and in front of it a proxy that breaks connections when the node is there and does not know.
struct Scene {
    directory: TempDir,
    /// How many more connections to break, or [`PASS`], [`CUT_ALL`], [`HOLD`].
    cuts: Arc<AtomicU32>,
    /// Connections that were broken or held.
    cut: Arc<AtomicU32>,
}

impl Scene {
    async fn new(cuts: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let advertise = listener.local_addr().unwrap().to_string().parse().unwrap();
        let config = ringmesh_controlplane::Config {
            listen: "127.0.0.1:0".parse().unwrap(),
            advertise: vec![advertise],
            state_dir: directory.path().join("coordinator"),
            admin_socket: directory.path().join("coordinator.sock"),
            ..Default::default()
        };
        let (ready, is_ready) = oneshot::channel();
        tokio::spawn(async move {
            let run = ringmesh_controlplane::run(config, std::future::pending(), |serving| {
                let _ = ready.send(serving.address);
            });
            panic!("the coordinator ended: {:?}", run.await);
        });
        let to = is_ready.await.unwrap();
        let scene = Self { directory, cuts: Arc::new(cuts.into()), cut: Arc::default() };
        let (admin, cuts, cut) = (scene.admin().await, Arc::clone(&scene.cuts), Arc::clone(&scene.cut));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let pass = pass(client, to, admin.clone(), Arc::clone(&cuts), Arc::clone(&cut));
                tokio::spawn(pass);
            }
        });
        scene
    }

    fn admin_socket(&self) -> PathBuf {
        self.directory.path().join("coordinator.sock")
    }

    async fn admin(&self) -> Channel {
        let socket = self.admin_socket();
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        Endpoint::from_static("http://localhost").connect_with_connector(connector).await.unwrap()
    }

    /// A token for one use.
    async fn token(&self) -> String {
        let request = CreateTokenRequest::default();
        TokenServiceClient::new(self.admin().await).create_token(request).await.unwrap().into_inner().secret
    }

    /// Names of the nodes there are, and uses of all tokens.
    async fn taken(&self) -> (Vec<String>, u32) {
        let admin = self.admin().await;
        let mut tokens = TokenServiceClient::new(admin.clone());
        let tokens = tokens.list_tokens(ListTokensRequest::default()).await;
        let uses = tokens.unwrap().into_inner().tokens.iter().map(|token| token.uses).sum();
        (nodes(admin).await, uses)
    }
}

async fn nodes(admin: Channel) -> Vec<String> {
    let nodes = NodeServiceClient::new(admin).list_nodes(ListNodesRequest::default()).await.unwrap();
    // The coordinator's own relay is one of them.
    nodes.into_inner().nodes.into_iter().filter(|node| !node.relay).map(|node| node.name).collect()
}

/// Passes bytes on, until an answer comes after the coordinator took a node and there are cuts left.
async fn pass(
    mut client: TcpStream,
    to: SocketAddr,
    admin: Channel,
    cuts: Arc<AtomicU32>,
    cut: Arc<AtomicU32>,
) {
    let mut server = TcpStream::connect(to).await.unwrap();
    let (mut asked, mut answered) = (vec![0; 1 << 14], vec![0; 1 << 14]);
    loop {
        tokio::select! {
            read = client.read(&mut asked) => match read {
                Ok(1..) if server.write_all(&asked[..read.unwrap()]).await.is_ok() => {}
                _ => return,
            },
            read = server.read(&mut answered) => match read {
                Ok(1..) => {
                    let left = cuts.load(Ordering::SeqCst);
                    if left != PASS && !nodes(admin.clone()).await.is_empty() {
                        cut.fetch_add(1, Ordering::SeqCst);
                        match left {
                            HOLD => sleep(Duration::from_secs(60)).await,
                            CUT_ALL => {}
                            left => cuts.store(left - 1, Ordering::SeqCst),
                        }
                        return;
                    }
                    if client.write_all(&answered[..read.unwrap()]).await.is_err() {
                        return;
                    }
                }
                _ => return,
            },
        }
    }
}

#[test]
fn a_join_whose_answer_is_lost_succeeds_by_asking_again() {
    in_sandbox(|| {
        block_on(async {
            let scene = Scene::new(1).await;
            let place = Place::new();
            let mut node = place.start().await.unwrap();
            let status = node.join(&scene.token().await, "alpha").await.unwrap();
            assert_eq!(status.network.unwrap().self_.unwrap().name, "alpha");
            assert_eq!(scene.cut.load(Ordering::SeqCst), 1, "an answer was lost");
            assert_eq!(scene.taken().await, (vec!["alpha".to_owned()], 1));
            assert!(!place.state("join.json").exists(), "the join is done");
        });
    });
}

#[test]
fn a_join_that_hears_nothing_keeps_its_key_and_the_next_is_the_same_join() {
    in_sandbox(|| {
        block_on(async {
            let scene = Scene::new(CUT_ALL).await;
            let place = Place::new();
            let mut node = place.start().await.unwrap();
            let token = scene.token().await;
            let refused = node.join(&token, "alpha").await.unwrap_err();
            assert!(refused.message().contains("same token"), "{refused}");
            assert!(scene.cut.load(Ordering::SeqCst) > 2, "it asked again");
            assert_eq!(scene.taken().await, (vec!["alpha".to_owned()], 1), "the coordinator took it");
            assert_eq!(node.status().await.state, "not-joined");
            let kept = std::fs::read(place.state("identity")).unwrap();

            // Another key is not taken in its place.
            let own = include_str!("../../src/state/testdata/ed25519");
            let refused = node.join_with(&token, "alpha", own).await.unwrap_err();
            let info = refused.get_details_error_info().unwrap();
            assert_eq!(info.reason, Reason::Conflict.as_str_name());
            assert!(refused.message().contains("without --identity"), "{refused}");
            assert_eq!(std::fs::read(place.state("identity")).unwrap(), kept);

            // Nor does a restart lose it.
            node.stop().await.unwrap();
            scene.cuts.store(PASS, Ordering::SeqCst);
            let mut node = place.start().await.unwrap();
            node.join(&token, "alpha").await.unwrap();
            assert_eq!(std::fs::read(place.state("identity")).unwrap(), kept);
            assert_eq!(scene.taken().await, (vec!["alpha".to_owned()], 1), "one node, one use");
        });
    });
}

#[test]
fn a_daemon_told_to_end_during_a_join_ends_at_once_and_can_finish_it_later() {
    in_sandbox(|| {
        block_on(async {
            let scene = Scene::new(HOLD).await;
            let place = Place::new();
            let node = place.start().await.unwrap();
            let token = scene.token().await;
            let mut joiner = crate::support::daemon::Node::of_process(node.client.clone());
            let wish = token.clone();
            let joining = tokio::spawn(async move { joiner.join(&wish, "alpha").await });
            let began = Instant::now();
            while scene.cut.load(Ordering::SeqCst) == 0 {
                assert!(began.elapsed() < Duration::from_secs(20), "the join never came to its enrolment");
                sleep(Duration::from_millis(10)).await;
            }
            let began = Instant::now();
            node.stop().await.unwrap();
            assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
            joining.await.unwrap().unwrap_err();
            assert!(!place.state("network.json").exists());
            assert!(place.state("identity").exists() && place.state("join.json").exists());

            scene.cuts.store(PASS, Ordering::SeqCst);
            let mut node = place.start().await.unwrap();
            assert_eq!(node.status().await.state, "not-joined");
            node.join(&token, "alpha").await.unwrap();
            assert_eq!(scene.taken().await, (vec!["alpha".to_owned()], 1));
        });
    });
}
