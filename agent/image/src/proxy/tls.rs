//! TLS: who is trusted, and the connection (rustls, with ring).
//!
//! A registry of one's own often shows a certificate that it has signed itself, of an authority's kind (`openssl req -x509` makes them so).
//! webpki takes none such for a server's. Who names this very certificate as trusted means it, so it is taken for the names in it.

use std::fmt;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme, StreamOwned};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport, TransportAdapter,
};

use crate::error::{Error, Kind, Result};

/// Where a system keeps the certificates that it trusts.
const SYSTEM: &str = "/etc/ssl/certs/ca-certificates.crt";

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(20);

/// The largest file of certificates.
const MAX_PEM: u64 = 4 << 20;

type Certificates = Vec<CertificateDer<'static>>;

/// Makes connections of ureq's encrypted.
pub(super) struct Tls(Arc<ClientConfig>);

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

/// Whom to trust, and who we are.
pub(super) struct Trust {
    /// The system's authorities and those that are named.
    roots: Arc<RootCertStore>,
    named: Certificates,
    client: Client,
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust").field("roots", &self.roots.len()).finish_non_exhaustive()
    }
}

impl Trust {
    /// Reads the system's certificates and those of `directory` (containers-certs.d(5)).
    pub(super) fn load(directory: Option<&Path>) -> Result<Trust> {
        let (named, client) = directory.map_or(Ok((Vec::new(), None)), own_certificates)?;
        let mut roots = RootCertStore::empty();
        let asked = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
        if let Some(path) = asked.or_else(|| Some(SYSTEM.into())).filter(|path| path.exists()) {
            roots.add_parsable_certificates(certificates(&path)?);
        }
        roots.add_parsable_certificates(named.iter().cloned());
        Ok(Trust { roots: Arc::new(roots), named, client })
    }
}

impl Tls {
    /// Trusts whom `trust` does, or anybody if `insecure`.
    pub(super) fn new(trust: &Trust, insecure: bool) -> Result<Tls> {
        let internal = |error: rustls::Error| Error::new(Kind::Internal, format!("set TLS up: {error}"));
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(trust.roots.clone(), provider.clone()).build();
        let inner = match (insecure, verifier) {
            (true, _) => None,
            (false, Ok(verifier)) => Some(verifier),
            (false, Err(error)) => {
                let reason = format!("nobody is trusted: give a CA (--tls-ca FILE) [{error}]");
                return Err(Error::new(Kind::UntrustedCa, reason));
            }
        };
        let verifier = Arc::new(Verifier { inner, named: trust.named.clone(), provider: provider.clone() });
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.map_err(internal)?.dangerous().with_custom_certificate_verifier(verifier);
        let config = match &trust.client {
            Some((chain, key)) => builder.with_client_auth_cert(chain.clone(), key.clone_key()).map_err(internal)?,
            None => builder.with_no_client_auth(),
        };
        Ok(Tls(Arc::new(config)))
    }
}

type Client = Option<(Certificates, PrivateKeyDer<'static>)>;

/// `*.crt`, whom to trust; `*.cert` with `*.key`, who we are.
fn own_certificates(directory: &Path) -> Result<(Certificates, Client)> {
    let fail = |error| Error::system(format!("list {}", directory.display()), error);
    let (mut named, mut client) = (Vec::new(), None);
    for entry in fs::read_dir(directory).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => named.extend(certificates(&path)?),
            Some("cert") => {
                let key = path.with_extension("key");
                let bytes = crate::limited::read(&key, MAX_PEM)?;
                client = Some((
                    certificates(&path)?,
                    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| broken(&key, error))?,
                ));
            }
            _ => {}
        }
    }
    Ok((named, client))
}

fn certificates(path: &Path) -> Result<Certificates> {
    let bytes = crate::limited::read(path, MAX_PEM)?;
    let parsed: std::result::Result<_, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    parsed.map_err(|error| broken(path, error))
}

fn broken(path: &Path, error: rustls::pki_types::pem::Error) -> Error {
    Error::new(Kind::BadRequest, format!("{}: {error}", path.display()))
}

/// See the module's description.
#[derive(Debug)]
struct Verifier {
    /// None takes any.
    inner: Option<Arc<WebPkiServerVerifier>>,
    named: Certificates,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let Some(inner) = &self.inner else { return Ok(ServerCertVerified::assertion()) };
        match inner.verify_server_cert(end_entity, intermediates, name, ocsp, now) {
            // webpki looks at the time first, and at the name last.
            Err(error) if is_authority(&error) && self.named.iter().any(|named| named == end_entity) => {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            result => result,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Whether a certificate was refused for being an authority's; rustls has no name for that.
fn is_authority(error: &rustls::Error) -> bool {
    format!("{error:?}").contains("CaUsedAsEndEntity")
}

impl<In: Transport> Connector<In> for Tls {
    type Out = Either<In, Encrypted>;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> std::result::Result<Option<Self::Out>, ureq::Error> {
        let Some(transport) = chained else { return Ok(None) };
        if !details.needs_tls() || transport.is_tls() {
            return Ok(Some(Either::A(transport)));
        }
        let host = details.uri.host().unwrap_or_default().trim_matches(['[', ']']).to_string();
        let name = ServerName::try_from(host).map_err(|_| ureq::Error::Tls("the host's name is no name"))?;
        let mut connection = ClientConnection::new(self.0.clone(), name).map_err(std::io::Error::other)?;
        let boxed: Box<dyn Transport> = Box::new(transport);
        let mut socket = TransportAdapter::new(boxed, details.current_time.clone());
        socket.set_timeout(details.timeout);
        shake_hands(&mut connection, &mut socket)?;
        let buffers = LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Some(Either::B(Encrypted { buffers, stream: StreamOwned::new(connection, socket) })))
    }
}

/// Each read has a limit already; here is one for all of them.
fn shake_hands(
    connection: &mut ClientConnection,
    socket: &mut TransportAdapter,
) -> std::result::Result<(), ureq::Error> {
    let begun = Instant::now();
    while connection.is_handshaking() {
        while connection.wants_write() {
            connection.write_tls(socket)?;
        }
        if begun.elapsed() > HANDSHAKE {
            return Err(ureq::Error::Timeout(ureq::Timeout::Connect));
        }
        if connection.is_handshaking() && connection.read_tls(socket)? == 0 {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
        if let Err(error) = connection.process_new_packets() {
            let _ = connection.write_tls(socket); // the alert, for who is still there
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, error).into());
        }
    }
    while connection.wants_write() {
        connection.write_tls(socket)?;
    }
    Ok(())
}

/// An encrypted connection.
pub(super) struct Encrypted {
    buffers: LazyBuffers,
    stream: StreamOwned<ClientConnection, TransportAdapter>,
}

impl fmt::Debug for Encrypted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Encrypted")
    }
}

impl Transport for Encrypted {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> std::result::Result<(), ureq::Error> {
        self.stream.get_mut().set_timeout(timeout);
        let output = self.buffers.output().get(..amount).unwrap_or_default();
        Ok(self.stream.write_all(output)?)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> std::result::Result<bool, ureq::Error> {
        self.stream.get_mut().set_timeout(timeout);
        let amount = self.stream.read(self.buffers.input_append_buf())?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.get_mut().get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}
