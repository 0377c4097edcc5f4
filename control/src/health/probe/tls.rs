//! The TLS check, and how the checks that go over TLS make their connections.
//!
//! Every check makes a whole handshake: to resume an earlier session would not show a certificate that has expired since.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, InvalidMessage, SignatureScheme,
};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::stage::note;
use super::stream::connect;
use super::{Outcome, Probe};
use crate::config::{self, Trust};

/// Makes a handshake, takes leave and closes.
pub(super) struct Tls(Connector);

impl Tls {
    pub(super) fn new(settings: &config::Tls) -> Tls {
        Tls(Connector::new(settings, &[]))
    }
}

impl Probe for Tls {
    fn probe(&self, address: SocketAddr) -> BoxFuture<'_, Outcome> {
        async move {
            let stream = match connect(address).await {
                Ok(stream) => self.0.connect(address, stream).await,
                Err(outcome) => Err(outcome),
            };
            match stream {
                Ok(mut stream) => {
                    // Servers log a connection that ends without leave as an error. Whether they hear it is theirs.
                    let _ = stream.shutdown().await;
                    Outcome::passed("TLS handshake")
                }
                Err(outcome) => outcome,
            }
        }
        .boxed()
    }
}

/// Makes TLS connections with one check's settings.
pub(super) struct Connector {
    tls: TlsConnector,
    name: Option<ServerName<'static>>,
}

impl Connector {
    /// `protocols`: what is to be spoken over it (ALPN), the best first.
    pub(super) fn new(settings: &config::Tls, protocols: &[&str]) -> Connector {
        let mut config = client_config(&settings.trust);
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        config.resumption = Resumption::disabled();
        Connector { tls: TlsConnector::from(Arc::new(config)), name: settings.name.clone() }
    }

    /// Makes the handshake, or says why it has failed.
    pub(super) async fn connect(
        &self,
        address: SocketAddr,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, Outcome> {
        note("negotiating TLS");
        let name = self.name.clone().unwrap_or_else(|| ServerName::from(address.ip()));
        self.tls.connect(name, stream).await.map_err(|error| match cause(&error) {
            Some(cause) => Outcome::failed(reason(cause)),
            None if error.kind() == io::ErrorKind::UnexpectedEof => {
                Outcome::failed("closed during the TLS handshake")
            }
            None => Outcome::of_error(&error),
        })
    }
}

/// How a client trusts those, and shows no certificate of its own.
pub(crate) fn client_config(trust: &Trust) -> ClientConfig {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("ring has ciphers for TLS 1.2 and 1.3");
    let builder = match trust {
        Trust::Authorities(authorities) => builder.with_root_certificates(authorities.roots()),
        Trust::Anyone => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider))),
    };
    builder.with_no_client_auth()
}

/// The error of TLS in an error of its stream, if it is one.
pub(crate) fn cause(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// What an error of TLS says of the server.
pub(crate) fn reason(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(wrong) => wrong_certificate(wrong),
        rustls::Error::NoCertificatesPresented => "no certificate".to_owned(),
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => "not TLS".to_owned(),
        rustls::Error::NoApplicationProtocol
        | rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol) => {
            "TLS without the protocol of the check (ALPN)".to_owned()
        }
        rustls::Error::AlertReceived(AlertDescription::UnrecognisedName) => {
            "server does not know the name asked for (SNI)".to_owned()
        }
        rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => {
            "server asks for a certificate of the client".to_owned()
        }
        rustls::Error::AlertReceived(alert) => format!("server refuses TLS: {alert:?}"),
        other => format!("TLS: {other}"),
    }
}

fn wrong_certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "certificate has expired".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "certificate is not valid yet".to_owned()
        }
        CertificateError::UnknownIssuer => "certificate has an unknown issuer".to_owned(),
        CertificateError::BadSignature => {
            "certificate has a wrong signature; expected that of its issuer (another CA of the same name?)"
                .to_owned()
        }
        CertificateError::NotValidForNameContext { expected, .. } => {
            format!("certificate is not for {}", expected.to_str())
        }
        CertificateError::Other(other) => match other.to_string().as_str() {
            // The verifier's own error, of which rustls has no name.
            "CaUsedAsEndEntity" => {
                "certificate is a CA's own (CA:TRUE); expected one of a server, or skip_verify = true"
                    .to_owned()
            }
            other => format!("certificate is refused: {other}"),
        },
        other => format!("certificate is refused: {other}"),
    }
}

/// Takes any certificate, and any signature with it: only whose key it is could make one worth something. So
/// certificates pass that could not be verified at all, as those of X.509 version 1 that `openssl x509 -req` makes.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
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
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
