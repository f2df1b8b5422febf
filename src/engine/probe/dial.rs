//! Connecting to the container: TCP, and TLS over it with the authorities that the check names.

use std::io;
use std::net::SocketAddrV4;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use crate::config::authorities::authorities;
use crate::types::ProbeTls;

/// Where a question goes.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The container.
    pub address: SocketAddrV4,
    /// The name that the other services reach it by.
    pub service: &'a str,
}

impl Target<'_> {
    /// The authority of a request's URL: the name that the certificate is to be for, or the address.
    pub fn authority(&self, tls: Option<&ProbeTls>) -> String {
        match tls {
            Some(tls) => format!("{}:{}", self.name(tls), self.address.port()),
            None => self.address.to_string(),
        }
    }

    fn name<'b>(&'b self, tls: &'b ProbeTls) -> &'b str {
        tls.server_name.as_deref().unwrap_or(self.service)
    }
}

/// Bytes both ways.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A container that was started again is quiet for a moment where nobody listens yet (`traffic::quiet`), and the kernel asks
/// again only after a second. It is on this host: an answer takes no time.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// Connects by TCP alone. Whoever calls sets the limit.
pub async fn dial(address: SocketAddrV4) -> io::Result<TcpStream> {
    loop {
        if let Ok(result) = tokio::time::timeout(ASK_AGAIN, TcpStream::connect(address)).await {
            return result;
        }
    }
}

/// Connects, and agrees on TLS where that is asked for. `protocol`: its name in ALPN.
pub async fn connect(
    target: &Target<'_>,
    tls: Option<&ProbeTls>,
    protocol: &[u8],
) -> Result<Box<dyn Stream>, String> {
    let stream = dial(target.address).await.map_err(|error| plain(&error))?;
    let Some(tls) = tls else { return Ok(Box::new(stream)) };
    let mut config = config(tls)?;
    config.alpn_protocols = vec![protocol.to_vec()];
    let name = target.name(tls).to_owned();
    let name = ServerName::try_from(name.clone()).map_err(|_| format!("`{name}` is not a server's name"))?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    stream.map(|stream| Box::new(stream) as Box<dyn Stream>).map_err(|error| plain(&error))
}

fn config(tls: &ProbeTls) -> Result<ClientConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS: {error}"))?;
    let builder = match (tls.skip_verify, &tls.ca) {
        (true, _) => builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider))),
        (false, Some(pem)) => builder.with_root_certificates(authorities(pem)?),
        (false, None) => builder.with_root_certificates(of_this_host()),
    };
    Ok(builder.with_no_client_auth())
}

/// Some hundred files: read once.
fn of_this_host() -> Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let read = || {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Arc::new(roots)
    };
    ROOTS.get_or_init(read).clone()
}

/// Takes any certificate, as the service file says so. That the other side has its key is still proved.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// What moves a connection's bytes; it ends with the question.
pub struct Driver(JoinHandle<()>);

impl Driver {
    /// Drives a connection that hyper has made. How it ends is told by the answer.
    pub fn of<E>(connection: impl Future<Output = Result<(), E>> + Send + 'static) -> Self {
        Self(tokio::spawn(async move {
            let _ = connection.await;
        }))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What went wrong on a connection, in a few words.
pub fn told(error: &hyper::Error, protocol: &str) -> String {
    if error.is_incomplete_message() {
        return "connection closed without an answer".to_owned();
    }
    if error.is_parse() {
        return format!("the answer is not {protocol}");
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut last = error.to_string();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return plain(error);
        }
        last = error.to_string();
        cause = error.source();
    }
    last
}

/// The kernel's words without its number.
pub fn plain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "connection reset".to_owned(),
        io::ErrorKind::HostUnreachable => "no route to the container".to_owned(),
        io::ErrorKind::UnexpectedEof => "connection closed without an answer".to_owned(),
        _ => error.to_string(),
    }
}
