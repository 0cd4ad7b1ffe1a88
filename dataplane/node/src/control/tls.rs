//! TCP and TLS to a coordinator. What the certificate is worth is decided one layer up, by the coordinator's statement.
//!
//! A join token pins the network's root key, not a certificate, so the verifier here lets every certificate through and only
//! checks that the server holds its key. Nothing but a challenge is sent before [`super::connect`] has judged the key.

use std::{sync::Arc, time::Duration};

use ringmesh_proto::control::Reason;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    version::TLS13,
};
use sha2::{Digest as _, Sha256};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

use ringmesh_tunnel::enroll::transcript;

use crate::error::Failure;

/// Time for TCP, and again for TLS.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);

/// An open TLS connection whose certificate nobody has judged yet.
#[derive(Debug)]
pub(crate) struct Dialled {
    pub(crate) stream: TlsStream<TcpStream>,
    pub(crate) server: ServerKey,
}

/// What is known of the server's TLS key and of this connection.
#[derive(Debug, Clone)]
pub(crate) struct ServerKey {
    /// SHA-256 over the certificate's SubjectPublicKeyInfo.
    pub(crate) spki: [u8; 32],
    /// Known to both ends of this connection and nobody between them.
    pub(crate) exporter: [u8; 32],
    chain: Vec<CertificateDer<'static>>,
    name: ServerName<'static>,
}

/// Opens TCP and TLS 1.3 to `address` (`host:port`).
///
/// # Errors
/// [`Reason::Unreachable`], naming the address and the step that failed.
pub(crate) async fn dial(address: &str) -> Result<Dialled, Failure> {
    let host = host_of(address)
        .ok_or_else(|| Failure::invalid(format!("`{address}` is not an address: write `host:port`")))?;
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| Failure::invalid(format!("`{host}` is neither a host name nor an address")))?;
    let tcp = match timeout(STEP_TIMEOUT, TcpStream::connect(address)).await {
        Ok(Ok(tcp)) => tcp,
        Ok(Err(error)) => return Err(unreachable(address, &error)),
        Err(_) => return Err(unreachable(address, &"no answer in 5 s (a firewall?)")),
    };
    // Heartbeats and acknowledgements are small and wanted at once; failing only costs latency.
    let _ = tcp.set_nodelay(true);
    let connector = TlsConnector::from(Arc::new(client_config(b"h2")?));
    let stream = match timeout(STEP_TIMEOUT, connector.connect(name.clone(), tcp)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(unreachable(address, &format!("TLS failed: {error}"))),
        Err(_) => return Err(unreachable(address, &"TLS did not finish in 5 s")),
    };
    let (_, session) = stream.get_ref();
    if session.alpn_protocol() != Some(b"h2") {
        return Err(unreachable(address, &"something answers there, but it does not speak HTTP/2"));
    }
    let chain: Vec<_> = session
        .peer_certificates()
        .unwrap_or_default()
        .iter()
        .map(|found| found.clone().into_owned())
        .collect();
    let first = chain.first().ok_or_else(|| unreachable(address, &"it showed no certificate"))?;
    let spki = spki_hash(first).ok_or_else(|| unreachable(address, &"its certificate cannot be read"))?;
    let exporter = session
        .export_keying_material([0; 32], transcript::EXPORTER_LABEL, None)
        .map_err(|error| unreachable(address, &format!("TLS exporter: {error}")))?;
    Ok(Dialled { server: ServerKey { spki, exporter, chain, name }, stream })
}

impl ServerKey {
    /// Whether the machine's own certificate authorities vouch for the server under the name we dialled.
    ///
    /// # Errors
    /// They do not, or the machine has none; the message says which.
    pub(crate) async fn verify_by_system_roots(&self) -> Result<(), String> {
        let roots = tokio::task::spawn_blocking(system_roots).await.map_err(|error| error.to_string())??;
        self.verify_by(roots)
    }

    fn verify_by(&self, roots: RootCertStore) -> Result<(), String> {
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|error| error.to_string())?;
        let (first, rest) = self.chain.split_first().ok_or("no certificate")?;
        verifier
            .verify_server_cert(first, rest, &self.name, &[], UnixTime::now())
            .map(|_| ())
            .map_err(|error| error.to_string())
    }
}

fn system_roots() -> Result<RootCertStore, String> {
    let loaded = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(loaded.certs);
    if added == 0 { Err("this machine has no certificate authorities".to_owned()) } else { Ok(roots) }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// TLS 1.3 that judges no certificate and speaks `alpn`.
///
/// # Errors
/// The library has no cipher suite to offer.
pub(crate) fn client_config(alpn: &[u8]) -> Result<ClientConfig, Failure> {
    let provider = provider();
    let verifier = Arc::new(HoldsItsKey { provider: Arc::clone(&provider) });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| Failure::new(Reason::Host, format!("setting up TLS: {error}")))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    // Each connection is judged anew, by a certificate that it shows itself.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Checks that the server holds the key of the certificate it shows, and nothing about the certificate.
#[derive(Debug)]
struct HoldsItsKey {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for HoldsItsKey {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Err(TlsError::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn spki_hash(certificate: &CertificateDer<'_>) -> Option<[u8; 32]> {
    let parsed = webpki::EndEntityCert::try_from(certificate).ok()?;
    Some(Sha256::digest(parsed.subject_public_key_info().as_ref()).into())
}

/// The host part of `host:port`, without an IPv6 address's brackets.
fn host_of(address: &str) -> Option<&str> {
    let (host, port) = address.rsplit_once(':')?;
    port.parse::<u16>().ok()?;
    let host = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    (!host.is_empty()).then_some(host)
}

fn unreachable(address: &str, why: &dyn std::fmt::Display) -> Failure {
    Failure::new(Reason::Unreachable, format!("coordinator {address}: {why}"))
}

#[cfg(test)]
mod tests {
    use rustls::{
        ServerConfig,
        server::{ClientHello, ResolvesServerCert},
        sign::CertifiedKey,
    };
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    #[derive(Debug)]
    struct Shows(Arc<CertifiedKey>);

    impl ResolvesServerCert for Shows {
        fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            Some(Arc::clone(&self.0))
        }
    }

    /// A server that shows the certificate of one key and signs with another.
    async fn server(shown: &rcgen::KeyPair, held: &rcgen::KeyPair, alpn: &[u8]) -> String {
        let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate = params.self_signed(shown).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::Pkcs8(held.serialize_der().into());
        let key = provider().key_provider.load_private_key(key).unwrap();
        let certified = CertifiedKey::new(vec![certificate.der().clone()], key);
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Shows(Arc::new(certified))));
        config.alpn_protocols = vec![alpn.to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let (tcp, _) = listener.accept().await.unwrap();
            let _stream = TlsAcceptor::from(Arc::new(config)).accept(tcp).await;
            std::future::pending::<()>().await;
        });
        address
    }

    #[tokio::test]
    async fn the_key_of_the_certificate_is_the_one_reported() {
        use rcgen::PublicKeyData as _;
        let key = rcgen::KeyPair::generate().unwrap();
        let dialled = dial(&server(&key, &key, b"h2").await).await.unwrap();
        let expected: [u8; 32] = Sha256::digest(key.subject_public_key_info()).into();
        assert_eq!(dialled.server.spki, expected);
        assert_ne!(dialled.server.exporter, [0; 32]);
    }

    #[tokio::test]
    async fn a_certificate_shown_without_its_key_is_worth_nothing() {
        let (shown, held) = (rcgen::KeyPair::generate().unwrap(), rcgen::KeyPair::generate().unwrap());
        let failure = dial(&server(&shown, &held, b"h2").await).await.unwrap_err();
        assert_eq!(failure.reason(), Reason::Unreachable);
        assert!(failure.to_string().contains("TLS failed"), "{failure}");
    }

    #[tokio::test]
    async fn something_else_than_http2_is_named() {
        let key = rcgen::KeyPair::generate().unwrap();
        let failure = dial(&server(&key, &key, b"http/1.1").await).await.unwrap_err();
        assert_eq!(failure.reason(), Reason::Unreachable);
    }

    #[tokio::test]
    async fn what_is_no_address_is_said_to_be_none() {
        for address in ["", "host", "host:port", ":443", "host:70000"] {
            let failure = dial(address).await.unwrap_err();
            assert_eq!(failure.reason(), Reason::InvalidArgument, "{address}: {failure}");
        }
        assert_eq!(host_of("[2001:db8::1]:443"), Some("2001:db8::1"));
        assert_eq!(host_of("mesh.example:443"), Some("mesh.example"));
    }
}
