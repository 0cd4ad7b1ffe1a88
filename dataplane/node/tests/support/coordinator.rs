//! A coordinator that does as the test tells it, right or wrong. It judges nobody; the real one has its own tests.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::Stream;
use rcgen::PublicKeyData as _;
use ringmesh_proto::control::{
    self as wire,
    control_service_server::{ControlService, ControlServiceServer},
    sync_request::Message as In,
    sync_response::Message as Out,
};
use ringmesh_tunnel::{
    key::{IdentityKey, NodeId},
    netmap::{Member, Record as _},
};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming, transport::server::Connected};

use super::authority::{Authority, MapBuilder, now, to_wire};

/// What the coordinator does differently from an honest one.
#[derive(Clone, Default)]
pub struct Mischief {
    /// The TLS key it claims to have.
    pub tls_key: Option<[u8; 32]>,
    /// The nonce it pretends to have been asked with.
    pub client_nonce: Option<[u8; 32]>,
    /// How far its clock is ahead, milliseconds.
    pub clock_ahead: i64,
    /// Refuses the enrolment with this.
    pub refuse_enroll: Option<Status>,
    /// Answers with the membership record of this key.
    pub enroll_as: Option<IdentityKey>,
    /// Calls the node by another id than its record does.
    pub other_id: bool,
    /// Refuses the stream with this.
    pub refuse_sync: Option<Status>,
    /// Sends no heartbeats.
    pub silent: bool,
    /// Sends no map by itself.
    pub mapless: bool,
}

pub struct Shared {
    pub authority: Authority,
    pub map: Mutex<MapBuilder>,
    pub mischief: Mutex<Mischief>,
    pub tls_key: [u8; 32],
    pub address: SocketAddr,
    /// Numbers of nodes enrolled, by key.
    pub enrolled: Mutex<BTreeMap<IdentityKey, u8>>,
    streams: Mutex<Vec<mpsc::Sender<Result<wire::SyncResponse, Status>>>>,
    heard: watch::Sender<Vec<In>>,
    /// Sessions that said goodbye.
    pub left: watch::Sender<u32>,
    pub heartbeat_seconds: Mutex<u32>,
    /// Whether the proof of each enrolment said that nobody is in between.
    pub directness: Mutex<Vec<bool>>,
}

/// A running coordinator; dead when dropped.
pub struct TestCoordinator {
    pub shared: Arc<Shared>,
    server: JoinHandle<()>,
}

impl Drop for TestCoordinator {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl TestCoordinator {
    pub async fn start() -> Self {
        Self::start_with(Authority::new(), "127.0.0.1:0".parse().unwrap()).await
    }

    pub async fn start_with(authority: Authority, at: SocketAddr) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
        Self::start_as(authority, at, key, certificate).await
    }

    /// Starts one that shows a certificate of the test's making.
    pub async fn start_as(
        authority: Authority,
        at: SocketAddr,
        key: rcgen::KeyPair,
        certificate: rcgen::Certificate,
    ) -> Self {
        let listener = TcpListener::bind(at).await.unwrap();
        let shared = Arc::new(Shared {
            map: Mutex::new(MapBuilder::new(&authority)),
            mischief: Mutex::default(),
            tls_key: Sha256::digest(key.subject_public_key_info()).into(),
            address: listener.local_addr().unwrap(),
            enrolled: Mutex::default(),
            streams: Mutex::default(),
            heard: watch::Sender::new(Vec::new()),
            left: watch::Sender::new(0),
            heartbeat_seconds: Mutex::new(20),
            directness: Mutex::default(),
            authority,
        });
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let mut config = rustls::ServerConfig::builder_with_provider(provider.into())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            )
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let service = ControlServiceServer::new(Service(Arc::clone(&shared)));
        let (connections, incoming) = mpsc::channel(16);
        let server = tokio::spawn(async move {
            let serve = tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(ReceiverStream::new(incoming));
            let accept = async {
                loop {
                    let Ok((tcp, _)) = listener.accept().await else { continue };
                    if let Ok(stream) = acceptor.accept(tcp).await {
                        let _ = connections.send(Ok::<_, io::Error>(Connection(Box::new(stream)))).await;
                    }
                }
            };
            tokio::select! { _ = serve => {}, () = accept => {} }
        });
        Self { shared, server }
    }

    pub fn token(&self) -> String {
        self.shared.authority.token_text(&[self.shared.address.to_string()])
    }

    /// Sends a response on every open stream.
    pub async fn send(&self, message: Out) {
        let streams = self.shared.streams.lock().unwrap().clone();
        for stream in streams {
            let _ = stream.send(Ok(wire::SyncResponse { message: Some(message.clone()) })).await;
        }
    }

    /// Ends every open stream with an error.
    pub async fn fail_streams(&self, status: Status) {
        let streams = std::mem::take(&mut *self.shared.streams.lock().unwrap());
        for stream in streams {
            let _ = stream.send(Err(status.clone())).await;
        }
    }

    /// Sends the map as it is now, whole.
    pub async fn send_map(&self) {
        let update = self.shared.map.lock().unwrap().full(&self.shared.authority);
        self.send(Out::Update(update)).await;
    }

    /// Waits for a request that `wanted` recognises, among all that came so far and will come.
    pub async fn hear<T>(&self, what: &str, mut wanted: impl FnMut(&In) -> Option<T>) -> T {
        let mut heard = self.shared.heard.subscribe();
        let found = async {
            loop {
                let found = heard.borrow_and_update().iter().rev().find_map(&mut wanted);
                if let Some(found) = found {
                    return found;
                }
                heard.changed().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(20), found)
            .await
            .unwrap_or_else(|_| panic!("never heard: {what}"))
    }

    pub async fn hear_acknowledgement(&self, durable: u64) {
        self.hear(&format!("acknowledgement of {durable}"), |message| match message {
            In::Acknowledgement(wire::Acknowledgement { durable: found }) if *found >= durable => Some(()),
            _ => None,
        })
        .await;
    }

    pub fn heard(&self) -> Vec<In> {
        self.shared.heard.borrow().clone()
    }

    /// Follows what is heard.
    pub fn watch_heard(&self) -> watch::Receiver<Vec<In>> {
        self.shared.heard.subscribe()
    }

    pub fn forget_heard(&self) {
        self.shared.heard.send_replace(Vec::new());
    }

    pub fn hellos(&self) -> Vec<wire::Hello> {
        self.heard()
            .into_iter()
            .filter_map(|message| if let In::Hello(hello) = message { Some(hello) } else { None })
            .collect()
    }
}

/// The time in so many milliseconds.
fn ahead(milliseconds: i64) -> ringmesh_tunnel::UnixTime {
    ringmesh_tunnel::UnixTime::from_millis(now().as_millis().saturating_add_signed(milliseconds))
}

struct Service(Arc<Shared>);

#[tonic::async_trait]
impl ControlService for Service {
    type SyncStream = Pin<Box<dyn Stream<Item = Result<wire::SyncResponse, Status>> + Send>>;

    async fn challenge(
        &self,
        request: Request<wire::ChallengeRequest>,
    ) -> Result<Response<wire::ChallengeResponse>, Status> {
        let mischief = self.0.mischief.lock().unwrap().clone();
        let asked: [u8; 32] = request.into_inner().client_nonce.try_into().unwrap();
        let server_nonce = vec![9; 40];
        let statement = self.0.authority.statement(
            mischief.tls_key.unwrap_or(self.0.tls_key),
            mischief.client_nonce.unwrap_or(asked),
            server_nonce.clone(),
            ahead(mischief.clock_ahead),
        );
        Ok(Response::new(wire::ChallengeResponse {
            server_nonce,
            statement: Some(to_wire(&statement)),
            certificates: self.0.authority.certificates().iter().map(to_wire).collect(),
        }))
    }

    async fn enroll(
        &self,
        request: Request<wire::EnrollRequest>,
    ) -> Result<Response<wire::EnrollResponse>, Status> {
        let mischief = self.0.mischief.lock().unwrap().clone();
        if let Some(refusal) = mischief.refuse_enroll {
            return Err(refusal);
        }
        let request = request.into_inner();
        let identity = IdentityKey::from_bytes(request.identity_key.try_into().unwrap()).unwrap();
        self.0.directness.lock().unwrap().push(request.proof.as_ref().unwrap().direct);
        let identity = mischief.enroll_as.unwrap_or(identity);
        let number = {
            let mut enrolled = self.0.enrolled.lock().unwrap();
            let next = enrolled.len() as u8 + 1;
            *enrolled.entry(identity).or_insert(next)
        };
        let name = if request.name.is_empty() { format!("node{number}") } else { request.name };
        let member = self.0.authority.member(number, &name, identity);
        let envelope = self.0.authority.sign_member(&member);
        self.0.map.lock().unwrap().put(member.id, envelope.clone());
        Ok(Response::new(wire::EnrollResponse {
            node_id: if mischief.other_id { vec![9; 8] } else { member.id.as_bytes().to_vec() },
            member: Some(to_wire(&envelope)),
            certificates: self.0.authority.certificates().iter().map(to_wire).collect(),
            secrets: self.0.map.lock().unwrap().secrets(&self.0.authority, &member.noise_key),
            coordinators: vec![self.0.address.to_string()],
            network: Some(self.0.authority.network_message()),
        }))
    }

    async fn sync(
        &self,
        request: Request<Streaming<wire::SyncRequest>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let mischief = self.0.mischief.lock().unwrap().clone();
        if let Some(refusal) = mischief.refuse_sync {
            return Err(refusal);
        }
        let heartbeat_seconds = *self.0.heartbeat_seconds.lock().unwrap();
        let (out, responses) = mpsc::channel(64);
        let send = |message| Ok(wire::SyncResponse { message: Some(message) });
        out.try_send(send(Out::Welcome(wire::Welcome { session: vec![5; 32], heartbeat_seconds }))).unwrap();
        let mut requests = request.into_inner();
        let Some(Ok(wire::SyncRequest { message: Some(In::Hello(hello)) })) = requests.next().await else {
            panic!("a stream begins with a hello")
        };
        self.0.heard.send_modify(|heard| heard.push(In::Hello(hello.clone())));
        if !mischief.mapless {
            let update = full_for(&self.0, &hello);
            out.try_send(send(Out::Update(update))).unwrap();
        }
        self.0.streams.lock().unwrap().push(out.clone());
        if !mischief.silent {
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(Duration::from_secs(heartbeat_seconds.into())).await;
                    let beat = Out::Heartbeat(wire::Heartbeat {});
                    if out.send(Ok(wire::SyncResponse { message: Some(beat) })).await.is_err() {
                        return;
                    }
                }
            });
        }
        let shared = Arc::clone(&self.0);
        tokio::spawn(async move {
            while let Some(Ok(wire::SyncRequest { message: Some(message) })) = requests.next().await {
                if let In::NodeRecord(record) = &message {
                    take_node_record(&shared, record.clone());
                }
                shared.heard.send_modify(|heard| heard.push(message));
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(responses))))
    }

    async fn report(
        &self,
        _request: Request<wire::ReportRequest>,
    ) -> Result<Response<wire::ReportResponse>, Status> {
        Ok(Response::new(wire::ReportResponse {}))
    }

    async fn leave(
        &self,
        request: Request<wire::LeaveRequest>,
    ) -> Result<Response<wire::LeaveResponse>, Status> {
        let request = request.into_inner();
        let (proof, signature) = (request.proof.unwrap(), request.signature.as_slice().try_into().unwrap());
        assert_eq!((proof.server_nonce.len(), proof.client_nonce.len()), (40, 32));
        assert_eq!(request.node_id.len(), 8);
        let _: [u8; 64] = signature;
        self.0.left.send_modify(|left| *left += 1);
        Ok(Response::new(wire::LeaveResponse {}))
    }
}

/// The whole map, and the secrets if the node holds others.
fn full_for(shared: &Shared, hello: &wire::Hello) -> wire::MapUpdate {
    let map = shared.map.lock().unwrap();
    let mut update = map.full(&shared.authority);
    let id = NodeId::from_bytes(hello.node_id.clone().try_into().unwrap());
    if hello.secrets != map.secrets_digest(&shared.authority)
        && let Some(envelope) = map.members.get(&id)
    {
        let member = Member::parse(&envelope.payload).unwrap();
        update.secrets = map.secrets(&shared.authority, &member.noise_key);
    }
    update
}

fn take_node_record(shared: &Shared, record: wire::Envelope) {
    use ringmesh_tunnel::netmap::{Envelope, NodeRecord};
    let envelope =
        Envelope::from_parts(record.kind, record.payload, &record.signer, &record.signature).unwrap();
    envelope.check_signature().unwrap();
    let parsed = NodeRecord::parse(&envelope.payload).unwrap();
    let id: NodeId = parsed.id;
    let mut map = shared.map.lock().unwrap();
    map.node_records.insert(id, envelope);
    map.position.ephemeral += 1;
    if shared.mischief.lock().unwrap().mapless {
        return;
    }
    // Every other node hears of it, as a whole map for simplicity.
    let update = Out::Update(map.full(&shared.authority));
    for stream in shared.streams.lock().unwrap().iter() {
        let _ = stream.try_send(Ok(wire::SyncResponse { message: Some(update.clone()) }));
    }
}

/// A TLS connection in a form that the gRPC server takes.
struct Connection(Box<TlsStream<TcpStream>>);

impl Connected for Connection {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_shutdown(cx)
    }
}
