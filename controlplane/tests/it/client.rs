//! A node without a data plane: proves itself, verifies what it is told, and can lie about everything it says.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use ringmesh_controlplane::DOMAIN;
use ringmesh_proto::control::{
    self as proto, Reason, control_service_client::ControlServiceClient, sync_request, sync_response,
};
use ringmesh_tunnel::{
    UnixTime,
    enroll::{
        JoinToken,
        seal::{Context, Purpose, open_secret},
        transcript,
    },
    key::{
        IdentityKey, IdentitySecret, Label, NetworkId, NetworkSecret, NodeId, PresharedKey, TokenId,
        secrets_digest,
    },
    netmap::{
        Chain, Envelope, MapError, MapUpdate, Member, NetworkMap, NodeRecord, Position, ProvenRule, Statement,
    },
};
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, ServerName, UnixTime as TlsTime},
};
use sha2::{Digest as _, Sha256};
use tokio::{net::TcpStream, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint, Uri},
};
use tonic_types::StatusExt as _;

/// Believes any certificate and remembers its key, as nodes do: the statement is what counts.
#[derive(Debug)]
struct Remember {
    provider: Arc<CryptoProvider>,
    seen: Mutex<Option<[u8; 32]>>,
}

impl ServerCertVerifier for Remember {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: TlsTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let key = webpki::EndEntityCert::try_from(certificate).unwrap().subject_public_key_info();
        *self.seen.lock().unwrap() = Some(Sha256::digest(key).into());
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The verifier of nodes, for a client that wants nothing else of them.
pub fn believe() -> Arc<dyn ServerCertVerifier> {
    Arc::new(Remember { provider: Arc::new(aws_lc_rs::default_provider()), seen: Mutex::default() })
}

/// Bytes that a stream may send before the node reads.
const WINDOW: u32 = 64 << 10;

/// One TLS connection with its gRPC channel.
pub struct Connection {
    pub channel: Channel,
    pub control: ControlServiceClient<Channel>,
    pub tls_key: [u8; 32],
    pub exporter: [u8; 32],
}

pub async fn connect(address: SocketAddr) -> Result<Connection, Box<dyn std::error::Error + Send + Sync>> {
    connect_offering(address, &[b"h2"]).await
}

/// A gRPC connection that offers these protocols in ALPN.
pub async fn connect_offering(
    address: SocketAddr,
    protocols: &[&[u8]],
) -> Result<Connection, Box<dyn std::error::Error + Send + Sync>> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Arc::new(Remember { provider: provider.clone(), seen: Mutex::default() });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone())
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    let stream = TcpStream::connect(address).await?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = connector.connect(ServerName::IpAddress(address.ip().into()), stream).await?;
    let exporter = stream.get_ref().1.export_keying_material([0; 32], transcript::EXPORTER_LABEL, None)?;
    let tls_key = verifier.seen.lock().unwrap().unwrap();
    let mut once = Some(hyper_util::rt::TokioIo::new(stream));
    let connector = tower::service_fn(move |_: Uri| {
        let stream = once.take().ok_or_else(|| std::io::Error::other("one channel, one connection"));
        async move { stream }
    });
    // A small window, so that a test sees what happens when a node does not read.
    let endpoint = Endpoint::from_static("http://coordinator").initial_stream_window_size(WINDOW);
    let channel = endpoint.connect_with_connector(connector).await?;
    let control = ControlServiceClient::new(channel.clone()).max_decoding_message_size(16 << 20);
    Ok(Connection { channel, control, tls_key, exporter })
}

/// The reason that a refusal names.
pub fn reason(status: &Status) -> Reason {
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
    assert_eq!(info.domain, DOMAIN);
    Reason::from_str_name(&info.reason).unwrap()
}

/// What a node may say wrongly.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lie {
    None,
    /// The nonce of another challenge, with another client nonce.
    OtherNonce,
    /// The exporter of another connection.
    OtherExporter,
    /// Another key signs for the node.
    OtherIdentity,
    /// Another key signs for the token.
    OtherToken,
    /// A token id that does not exist, signed for all the same.
    UnknownToken,
    /// A noise key that is not that of the identity.
    OtherNoiseKey,
    /// The name is changed after signing.
    OtherName,
    /// Whether it wants to be a relay is changed after signing.
    OtherRole,
    /// Another network's id.
    OtherNetwork,
    /// The proof is missing.
    NoProof,
}

pub struct TestNode {
    pub identity: IdentitySecret,
    pub name: String,
    pub host_name: String,
    /// Whether it wants to be a relay.
    pub relay: bool,
    pub network: NetworkId,
    pub root: Option<IdentityKey>,
    pub address: Option<SocketAddr>,
    pub id: NodeId,
    pub member: Option<Member>,
    pub map: Option<NetworkMap>,
    pub secrets: Vec<(u64, NetworkSecret)>,
    /// Keys of stock devices.
    pub peer_secrets: BTreeMap<NodeId, PresharedKey>,
    pub info: Option<proto::Network>,
    /// A position to claim instead of the map's.
    pub claimed: Option<Position>,
    now: Option<UnixTime>,
}

impl TestNode {
    pub fn new(name: &str) -> Self {
        Self::with_identity(name, IdentitySecret::generate())
    }

    pub fn with_identity(name: &str, identity: IdentitySecret) -> Self {
        Self {
            identity,
            name: name.into(),
            host_name: String::new(),
            relay: false,
            network: NetworkId::from_bytes([0; 16]),
            root: None,
            address: None,
            id: NodeId::from_bytes([0; 8]),
            member: None,
            map: None,
            secrets: Vec::new(),
            peer_secrets: BTreeMap::new(),
            info: None,
            claimed: None,
            now: None,
        }
    }

    pub fn set_time(&mut self, now: UnixTime) {
        self.now = Some(now);
    }

    pub fn now(&self) -> UnixTime {
        self.now.unwrap_or_else(|| ringmesh_controlplane::clock::Clock::system().now())
    }

    fn map(&self) -> NetworkMap {
        let empty = || NetworkMap::empty(self.network, self.root.unwrap(), self.id);
        self.map.clone().unwrap_or_else(empty)
    }

    /// Challenges a coordinator and verifies its answer.
    pub async fn challenge(&self, connection: &mut Connection) -> Result<(proto::Proof, Statement), Status> {
        let client_nonce: [u8; 32] = IdentitySecret::generate().seed().to_owned();
        let request = proto::ChallengeRequest {
            network_id: self.network.as_bytes().to_vec(),
            client_nonce: client_nonce.to_vec(),
        };
        let response = connection.control.challenge(request).await?.into_inner();
        let mut chain = Chain::new(self.network, self.root.unwrap());
        for certificate in response.certificates {
            chain.add(envelope(certificate), self.now()).unwrap();
        }
        let nonce = &response.server_nonce;
        let statement = envelope(response.statement.unwrap());
        let statement = chain.open_statement(&statement, &client_nonce, nonce, self.now()).unwrap();
        assert_eq!(statement.tls_key, connection.tls_key, "a direct connection");
        let proof = proto::Proof {
            client_nonce: client_nonce.to_vec(),
            server_nonce: response.server_nonce,
            direct: true,
        };
        Ok((proof, statement))
    }

    pub async fn join(&mut self, token: &JoinToken) -> Result<(), Status> {
        self.join_with(token, Lie::None).await
    }

    pub async fn join_with(&mut self, token: &JoinToken, lie: Lie) -> Result<(), Status> {
        let address = token.coordinators()[0].parse().unwrap();
        (self.network, self.root, self.address) = (token.network(), Some(token.root()), Some(address));
        let mut connection =
            connect(address).await.map_err(|error| Status::unavailable(error.to_string()))?;
        self.join_on(&mut connection, token, lie).await
    }

    pub async fn join_on(
        &mut self,
        connection: &mut Connection,
        token: &JoinToken,
        lie: Lie,
    ) -> Result<(), Status> {
        (self.network, self.root) = (token.network(), Some(token.root()));
        let (proof, _) = self.challenge(connection).await?;
        let request = self.enroll_request(connection, token, proof, lie);
        let response = connection.control.enroll(request).await?.into_inner();
        self.enrolled(response);
        Ok(())
    }

    pub fn enroll_request(
        &self,
        connection: &Connection,
        token: &JoinToken,
        mut proof: proto::Proof,
        lie: Lie,
    ) -> proto::EnrollRequest {
        if lie == Lie::OtherNonce {
            proof.client_nonce[0] ^= 1;
        }
        let exporter = if lie == Lie::OtherExporter { [7; 32] } else { connection.exporter };
        let identity_key = self.identity.public_key();
        let other = IdentitySecret::generate();
        let noise_key =
            if lie == Lie::OtherNoiseKey { other.public_key().noise_key() } else { identity_key.noise_key() };
        let mut token_id = *token.token().as_bytes();
        if lie == Lie::UnknownToken {
            token_id[0] ^= 1;
        }
        let parts = transcript::Enroll {
            connection: transcript::Connection {
                network: token.network(),
                client_nonce: &proof.client_nonce.clone().try_into().unwrap(),
                server_nonce: &proof.server_nonce.clone(),
                exporter: proof.direct.then_some(&exporter),
            },
            token: TokenId::from_bytes(token_id),
            noise_key,
            identity_key,
            name: &self.name,
            relay: self.relay,
        };
        let signed = transcript::enroll(&parts);
        let signer = if lie == Lie::OtherIdentity { &other } else { &self.identity };
        let token_signature = if lie == Lie::OtherToken {
            other.sign(Label::EnrollToken, &signed)
        } else {
            token.secret().sign(&signed)
        };
        let mut network_id = token.network().as_bytes().to_vec();
        if lie == Lie::OtherNetwork {
            network_id[0] ^= 1;
        }
        proto::EnrollRequest {
            network_id,
            proof: (lie != Lie::NoProof).then_some(proof),
            token_id: token_id.to_vec(),
            token_signature: token_signature.as_bytes().to_vec(),
            noise_key: noise_key.as_bytes().to_vec(),
            identity_key: identity_key.as_bytes().to_vec(),
            identity_signature: signer.sign(Label::Enroll, &signed).as_bytes().to_vec(),
            name: if lie == Lie::OtherName { "another".into() } else { self.name.clone() },
            host_name: self.host_name.clone(),
            os: "Test".into(),
            version: "0".into(),
            relay: self.relay != (lie == Lie::OtherRole),
        }
    }

    /// Verifies the answer to an enrolment and takes it over.
    fn enrolled(&mut self, response: proto::EnrollResponse) {
        let mut chain = Chain::new(self.network, self.root.unwrap());
        for certificate in response.certificates {
            chain.add(envelope(certificate), self.now()).unwrap();
        }
        let member: Member = chain.open(&envelope(response.member.unwrap()), self.now()).unwrap();
        assert_eq!(member.id.as_bytes().as_slice(), response.node_id);
        assert_eq!(member.identity_key, Some(self.identity.public_key()));
        self.id = member.id;
        self.member = Some(member);
        self.info = response.network;
        self.take_secrets(response.secrets);
    }

    fn take_secrets(&mut self, secrets: Vec<proto::SealedSecret>) {
        if secrets.is_empty() {
            return;
        }
        let key = self.identity.noise_secret();
        let open = |secret: proto::SealedSecret| {
            let context = Context { network: self.network, epoch: secret.epoch, purpose: Purpose::Network };
            (secret.epoch, NetworkSecret::from_bytes(*open_secret(&key, context, &secret.sealed).unwrap()))
        };
        self.secrets = secrets.into_iter().map(open).collect();
    }

    /// Takes the keys of stock devices, and forgets those of devices that the map does not have.
    fn take_peer_secrets(&mut self, secrets: Vec<proto::PeerSecret>) {
        let key = self.identity.noise_secret();
        for secret in secrets {
            let id = NodeId::from_bytes(secret.node_id.try_into().unwrap());
            let context = Context { network: self.network, epoch: 0, purpose: Purpose::Peer(id) };
            let psk = PresharedKey::from_bytes(*open_secret(&key, context, &secret.sealed).unwrap());
            self.peer_secrets.insert(id, psk);
        }
        let map = self.map.as_ref().unwrap();
        self.peer_secrets.retain(|id, _| map.member(*id).is_some());
    }

    /// The digest of the secrets held.
    pub fn secrets_digest(&self) -> [u8; 32] {
        let epochs = self.secrets.iter().map(|(epoch, secret)| (*epoch, secret));
        secrets_digest(self.network, epochs, self.peer_secrets.iter().map(|(id, psk)| (*id, psk)))
    }

    /// Panics unless the secrets held are what the map's head names.
    fn check_secrets(&self) {
        let epoch = self.secrets.iter().map(|(epoch, _)| *epoch).max().unwrap_or(0);
        self.map().check_secrets(epoch, &self.secrets_digest()).unwrap();
    }

    /// Opens a map stream.
    pub async fn sync(&mut self) -> Result<MapStream, Status> {
        self.sync_with(Lie::None).await
    }

    /// A signed wish to leave, on `connection`; `label` is the one it is signed under.
    pub async fn leave_request(
        &self,
        connection: &mut Connection,
        lie: Lie,
        label: Label,
    ) -> proto::LeaveRequest {
        let (mut proof, _) = self.challenge(connection).await.unwrap();
        if lie == Lie::OtherNonce {
            proof.client_nonce[0] ^= 1;
        }
        let exporter = if lie == Lie::OtherExporter { [7; 32] } else { connection.exporter };
        let signed = transcript::leave(&transcript::Leave {
            connection: transcript::Connection {
                network: self.network,
                client_nonce: &proof.client_nonce.clone().try_into().unwrap(),
                server_nonce: &proof.server_nonce.clone(),
                exporter: Some(&exporter),
            },
            id: self.id,
            identity_key: self.identity.public_key(),
        });
        let other = IdentitySecret::generate();
        let signer = if lie == Lie::OtherIdentity { &other } else { &self.identity };
        proto::LeaveRequest {
            network_id: self.network.as_bytes().to_vec(),
            node_id: self.id.as_bytes().to_vec(),
            proof: (lie != Lie::NoProof).then_some(proof),
            signature: signer.sign(label, &signed).as_bytes().to_vec(),
        }
    }

    pub async fn sync_with(&mut self, lie: Lie) -> Result<MapStream, Status> {
        let connection = connect(self.address.unwrap()).await;
        self.sync_on(connection.map_err(|error| Status::unavailable(error.to_string()))?, lie).await
    }

    /// Opens a map stream on a connection that is there.
    pub async fn sync_on(&mut self, mut connection: Connection, lie: Lie) -> Result<MapStream, Status> {
        let (mut proof, _) = self.challenge(&mut connection).await?;
        if lie == Lie::OtherNonce {
            proof.client_nonce[0] ^= 1;
        }
        let exporter = if lie == Lie::OtherExporter { [7; 32] } else { connection.exporter };
        let signed = transcript::sync(&transcript::Sync {
            connection: transcript::Connection {
                network: self.network,
                client_nonce: &proof.client_nonce.clone().try_into().unwrap(),
                server_nonce: &proof.server_nonce.clone(),
                exporter: Some(&exporter),
            },
            id: self.id,
            identity_key: self.identity.public_key(),
        });
        let other = IdentitySecret::generate();
        let signer = if lie == Lie::OtherIdentity { &other } else { &self.identity };
        let position = self.claimed.or_else(|| self.map.as_ref().and_then(NetworkMap::position));
        let hello = proto::Hello {
            network_id: self.network.as_bytes().to_vec(),
            node_id: self.id.as_bytes().to_vec(),
            proof: (lie != Lie::NoProof).then_some(proof),
            signature: signer.sign(Label::Sync, &signed).as_bytes().to_vec(),
            position: position.map(|Position { durable, replica, ephemeral }| proto::Position {
                durable,
                replica,
                ephemeral,
            }),
            digest: self.map.as_ref().map(|map| map.digest().to_vec()).unwrap_or_default(),
            version: "0".into(),
            secrets: self.secrets_digest().to_vec(),
        };
        let (sender, requests) = mpsc::channel(16);
        sender.send(request(sync_request::Message::Hello(hello))).await.unwrap();
        let responses = connection.control.sync(ReceiverStream::new(requests)).await?.into_inner();
        let mut stream =
            MapStream { sender, responses, connection, session: Vec::new(), heartbeat_seconds: 0 };
        let first = stream.next().await?;
        let sync_response::Message::Welcome(welcome) = first else { panic!("not a welcome: {first:?}") };
        stream.session = welcome.session;
        stream.heartbeat_seconds = welcome.heartbeat_seconds;
        Ok(stream)
    }

    /// Takes the next update, verified; panics on anything else.
    pub async fn update(&mut self, stream: &mut MapStream) -> MapUpdate {
        loop {
            if let Some(update) = self.step(stream).await.unwrap() {
                return update;
            }
        }
    }

    /// Takes the next message of a stream; an update is returned once it is verified and held.
    pub async fn step(&mut self, stream: &mut MapStream) -> Result<Option<MapUpdate>, Status> {
        match stream.next().await? {
            sync_response::Message::Update(update) => {
                self.take_secrets(update.secrets.clone());
                let peer_secrets = update.peer_secrets.clone();
                let update = map_update(update);
                self.map = Some(self.verify(update.clone()).unwrap());
                self.take_peer_secrets(peer_secrets);
                self.check_secrets();
                Ok(Some(update))
            }
            sync_response::Message::Head(head) => {
                self.map = Some(self.map().renew(envelope(head), self.now()).unwrap());
                self.check_secrets();
                Ok(None)
            }
            sync_response::Message::Heartbeat(_) => Ok(None),
            sync_response::Message::Welcome(_) => panic!("a second welcome"),
        }
    }

    pub fn verify(&self, update: MapUpdate) -> Result<NetworkMap, MapError> {
        self.map().verify(update, self.now())
    }

    /// Signs where this node may be reached.
    pub fn record(&self, port: u16) -> Envelope {
        self.record_at(port, self.now().as_millis(), self.now())
    }

    pub fn record_at(&self, port: u16, serial: u64, time: UnixTime) -> Envelope {
        self.record_of(vec![SocketAddr::from(([192, 0, 2, 1], port))], serial, time)
    }

    pub fn record_of(&self, endpoints: Vec<SocketAddr>, serial: u64, time: UnixTime) -> Envelope {
        let record = NodeRecord {
            network: self.network,
            id: self.id,
            serial,
            endpoints,
            time,
            websockets: Vec::new(),
            ssh: Vec::new(),
        };
        Envelope::sign(&record, &self.identity).unwrap()
    }
}

/// An open map stream.
pub struct MapStream {
    pub sender: mpsc::Sender<proto::SyncRequest>,
    pub responses: Streaming<proto::SyncResponse>,
    pub connection: Connection,
    pub session: Vec<u8>,
    pub heartbeat_seconds: u32,
}

impl MapStream {
    /// The next message; it must come within a few seconds.
    pub async fn next(&mut self) -> Result<sync_response::Message, Status> {
        let message = tokio::time::timeout(Duration::from_secs(20), self.responses.message()).await;
        let message = message.map_err(|_| Status::deadline_exceeded("nothing came"))??;
        message.and_then(|message| message.message).ok_or_else(|| Status::cancelled("the stream ended"))
    }

    pub async fn acknowledge(&self, durable: u64) {
        self.say(sync_request::Message::Acknowledgement(proto::Acknowledgement { durable })).await;
    }

    pub async fn tell(&self, record: &Envelope) {
        self.say(sync_request::Message::NodeRecord(ringmesh_controlplane::api::convert::envelope(record)))
            .await;
    }

    pub async fn say(&self, message: sync_request::Message) {
        self.sender.send(request(message)).await.unwrap();
    }
}

pub const fn request(message: sync_request::Message) -> proto::SyncRequest {
    proto::SyncRequest { message: Some(message) }
}

pub fn envelope(envelope: proto::Envelope) -> Envelope {
    ringmesh_controlplane::api::convert::parse_envelope(envelope).unwrap()
}

/// An update as nodes read it.
pub fn map_update(update: proto::MapUpdate) -> MapUpdate {
    let envelopes = |list: Vec<proto::Envelope>| list.into_iter().map(envelope).collect();
    let position = update.position.unwrap();
    MapUpdate {
        full: update.full,
        position: Position {
            durable: position.durable,
            replica: position.replica,
            ephemeral: position.ephemeral,
        },
        certificates: envelopes(update.certificates),
        members: envelopes(update.members),
        removed: update.removed.iter().map(|id| NodeId::try_from(id.as_slice()).unwrap()).collect(),
        policy: update.policy.map(envelope),
        rules: update
            .rules
            .into_iter()
            .map(|rule| ProvenRule {
                leaf: rule.leaf,
                index: rule.index,
                siblings: rule.siblings.iter().map(|hash| hash.as_slice().try_into().unwrap()).collect(),
            })
            .collect(),
        node_records: envelopes(update.node_records),
        head: envelope(update.head.unwrap()),
    }
}
