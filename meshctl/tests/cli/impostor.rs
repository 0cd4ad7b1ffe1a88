//! A coordinator that answers for a network which is not its own: real TLS, a fresh statement, and another root key.

use std::{
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::SystemTime,
};

use rcgen::PublicKeyData as _;
use ringmesh_node::ERROR_DOMAIN;
use ringmesh_proto::control::{
    self as wire,
    control_service_server::{ControlService, ControlServiceServer},
};
use ringmesh_tunnel::{
    UnixTime,
    key::{IdentitySecret, NetworkId},
    netmap::{Certificate, Envelope, Role, Statement},
};
use sha2::{Digest as _, Sha256};
use tokio::{io::copy_bidirectional, runtime::Runtime};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, crypto::aws_lc_rs, pki_types::PrivateKeyDer, version::TLS13},
};
use tonic::{
    Code, Request, Response, Status, Streaming,
    codegen::{BoxStream, tokio_stream},
    transport::Server,
};
use tonic_types::{ErrorDetails, StatusExt as _};

/// A running impostor; gone when dropped.
pub(crate) struct Impostor {
    asked: Arc<Asked>,
    _runtime: Runtime,
}

/// How often it was asked what.
#[derive(Default)]
struct Asked {
    challenges: AtomicU32,
    anything_else: AtomicU32,
}

impl Impostor {
    /// Answers on `listener` as a coordinator of `network`, certified by `root`. Whoever believes it is refused in the end.
    pub(crate) fn start(listener: TcpListener, network: NetworkId, root: IdentitySecret) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let asked = Arc::new(Asked::default());
        let service = ControlServiceServer::new(Service {
            asked: Arc::clone(&asked),
            network,
            root,
            coordinator: IdentitySecret::generate(),
            tls_key: Sha256::digest(key.subject_public_key_info()).into(),
        });
        let acceptor = TlsAcceptor::from(Arc::new(tls(&key)));
        listener.set_nonblocking(true).unwrap();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let Ok(mut stream) = acceptor.accept(tcp).await else { continue };
                let (mut near, far) = tokio::io::duplex(1 << 16);
                tokio::spawn(async move { copy_bidirectional(&mut stream, &mut near).await });
                let connection = tokio_stream::once(Ok::<_, std::io::Error>(far));
                tokio::spawn(Server::builder().add_service(service.clone()).serve_with_incoming(connection));
            }
        });
        Self { asked, _runtime: runtime }
    }

    /// How often somebody asked it to prove itself.
    pub(crate) fn challenges(&self) -> u32 {
        self.asked.challenges.load(Ordering::Relaxed)
    }

    /// How often somebody believed it and went on.
    pub(crate) fn believed(&self) -> u32 {
        self.asked.anything_else.load(Ordering::Relaxed)
    }
}

fn tls(key: &rcgen::KeyPair) -> ServerConfig {
    let certificate = rcgen::CertificateParams::new(["coordinator".to_owned()]).unwrap();
    let certificate = certificate.self_signed(key).unwrap();
    let mut config = ServerConfig::builder_with_provider(aws_lc_rs::default_provider().into())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

struct Service {
    asked: Arc<Asked>,
    network: NetworkId,
    root: IdentitySecret,
    coordinator: IdentitySecret,
    tls_key: [u8; 32],
}

impl Service {
    fn believed<T>(&self) -> Result<Response<T>, Status> {
        self.asked.anything_else.fetch_add(1, Ordering::Relaxed);
        let details =
            ErrorDetails::with_error_info(wire::Reason::TokenInvalid.as_str_name(), ERROR_DOMAIN, []);
        Err(Status::with_error_details(Code::Unauthenticated, "it was believed", details))
    }
}

#[tonic::async_trait]
impl ControlService for Service {
    type SyncStream = BoxStream<wire::SyncResponse>;

    /// Everything is right and fresh, but for the root that signed the certificate.
    async fn challenge(
        &self,
        request: Request<wire::ChallengeRequest>,
    ) -> Result<Response<wire::ChallengeResponse>, Status> {
        self.asked.challenges.fetch_add(1, Ordering::Relaxed);
        let asked = request.into_inner();
        assert_eq!(asked.network_id, self.network.as_bytes());
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let time = UnixTime::from_millis(since_1970.as_millis().try_into().unwrap());
        let certificate = Certificate {
            network: self.network,
            role: Role::Coordinator,
            key: self.coordinator.public_key(),
            serial: 1,
            not_after: time.saturating_add(std::time::Duration::from_secs(3600)),
        };
        let statement = Statement {
            network: self.network,
            replica: 1,
            tls_key: self.tls_key,
            client_nonce: asked.client_nonce.try_into().unwrap(),
            server_nonce: vec![9; 40],
            time,
        };
        let mut response = Response::new(wire::ChallengeResponse::default());
        let answer = response.get_mut();
        answer.statement = Some(to_wire(&Envelope::sign(&statement, &self.coordinator).unwrap()));
        answer.certificates = vec![to_wire(&Envelope::sign(&certificate, &self.root).unwrap())];
        answer.server_nonce = statement.server_nonce;
        Ok(response)
    }

    async fn enroll(
        &self,
        _: Request<wire::EnrollRequest>,
    ) -> Result<Response<wire::EnrollResponse>, Status> {
        self.believed()
    }

    async fn sync(
        &self,
        _: Request<Streaming<wire::SyncRequest>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        self.believed()
    }

    async fn report(
        &self,
        _: Request<wire::ReportRequest>,
    ) -> Result<Response<wire::ReportResponse>, Status> {
        self.believed()
    }

    async fn leave(&self, _: Request<wire::LeaveRequest>) -> Result<Response<wire::LeaveResponse>, Status> {
        self.believed()
    }
}

fn to_wire(envelope: &Envelope) -> wire::Envelope {
    wire::Envelope {
        kind: envelope.kind.number().into(),
        payload: envelope.payload.clone(),
        signer: envelope.signer.as_bytes().to_vec(),
        signature: envelope.signature.as_bytes().to_vec(),
    }
}
