//! `[admin.tcp]`: the admin API for other machines, over TLS and with a token.
//!
//! There is no switch for plain HTTP, and none to do without a token: who may ask may also take servers away.
//! Certificate, key and tokens are files, read with the configuration. A file that cannot be used is an error of the key
//! that names it, found by `rvs check`; a reload after a renewal brings what is new into force, and refuses what is bad.

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;
mod token;

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, RootCertStore, ServerConfig};

use super::error::quoted;
use super::raw::Section;
use super::{Service, file};
use crate::ids::Face;
use dataplane::service::Protocol;

pub use token::{Access, Token, Tokens, load as tokens};

/// Where the admin API listens besides its socket, as whom, and whom it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminTcp {
    /// An address of this machine, or the unspecified one for all of them.
    pub listen: SocketAddr,
    /// What it shows to its clients.
    pub identity: Identity,
    /// Whom it answers.
    pub tokens: Tokens,
}

/// A certificate with its key, as rustls serves it. Copies share it.
#[derive(Clone)]
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    server: Arc<ServerConfig>,
}

const LISTEN: &str = "ADDRESS:PORT, 1 to 65535, e.g. \"192.0.2.1:9443\"; with 0.0.0.0 or [::] as its address all of this machine's";
const CERTIFICATE: &str =
    "the absolute path of a PEM file with a server's certificate, then those between it and its CA";
const KEY: &str = "the absolute path of a PEM file with the private key of the certificate";

/// Reads the table.
pub(super) fn read(section: &Section<'_>) -> Option<AdminTcp> {
    section.known(&["listen", "certificate", "key", "token_file", "read_token_file"]);
    let listen = section.require("listen", LISTEN).and_then(|field| field.parse(LISTEN, address));
    let chain = section
        .require("certificate", CERTIFICATE)
        .and_then(|field| field.parse(CERTIFICATE, |typed| chain(Path::new(typed))));
    let identity = section.require("key", KEY).and_then(|field| {
        let key = field.parse(KEY, |typed| private_key(Path::new(typed)));
        let (chain, key) = (chain?, key?);
        field.parse(KEY, |typed| Identity::new(chain, key, typed))
    });
    let full = section
        .require("token_file", token::EXPECTED)
        .and_then(|field| field.parse(token::EXPECTED, |typed| token::load(Path::new(typed))));
    let read = section.or("read_token_file", Vec::new(), |field| {
        field.parse(token::EXPECTED, |typed| match token::load(Path::new(typed))? {
            read if full.as_ref().is_some_and(|full| full.iter().any(|token| read.contains(token))) => {
                Err(format!("{} has a token of token_file, which may do everything", quoted(typed)))
            }
            read => Ok(read),
        })
    });
    Some(AdminTcp { listen: listen?, identity: identity?, tokens: Tokens { full: full?, read: read? } })
}

/// What a service takes from the API: packets to its address and port are balanced, and never come to it.
pub(super) fn compare<'a>(
    tcp: &AdminTcp,
    section: &Section<'_>,
    mut services: impl Iterator<Item = &'a Service>,
) {
    let face = Face { address: tcp.listen.ip(), protocol: Protocol::Tcp };
    let taken = services.any(|service| match &service.mark {
        Some(marked) => marked.has_port(face, tcp.listen.port()),
        None => service.protocol == Protocol::Tcp && service.address == tcp.listen,
    });
    if taken && let Some(field) = section.get("listen") {
        field.error::<()>(format_args!(
            "{} is a service's, which takes all that is sent there; expected another port, or another address",
            tcp.listen
        ));
    }
}

fn address(typed: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr =
        typed.parse().map_err(|_| format!("{} is no address with a port", quoted(typed)))?;
    match address {
        _ if address.port() == 0 => Err("port 0 is out of range".to_owned()),
        _ if address.ip().is_multicast() => Err(format!("{} is a multicast address", address.ip())),
        _ => Ok(address),
    }
}

/// A server's certificate that clients can take, with those that lead to its CA.
fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain = file::certificates(path)?;
    let shown = quoted(&path.display().to_string());
    match flaw(&chain, UnixTime::now()) {
        // Time passes by itself: a router that would not start because of it would be worse.
        None | Some(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => Ok(chain),
        Some(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => Ok(chain),
        // The verifier's own error, of which rustls has no name.
        Some(CertificateError::Other(other)) if other.to_string() == "CaUsedAsEndEntity" => {
            Err(format!("{shown} has the certificate of a CA (CA:TRUE) first, which many clients refuse"))
        }
        Some(other) => Err(format!("{shown} has a certificate first that clients refuse ({other})")),
    }
}

/// What is wrong with a certificate at this time, whoever has signed it: its form, its purpose, its time.
fn flaw(chain: &[CertificateDer<'static>], time: UnixTime) -> Option<CertificateError> {
    let certificate = match ParsedCertificate::try_from(&chain[0]) {
        Ok(certificate) => certificate,
        Err(rustls::Error::InvalidCertificate(flaw)) => return Some(flaw),
        Err(_) => return Some(CertificateError::BadEncoding),
    };
    let algorithms = ring::default_provider().signature_verification_algorithms.all;
    // Without a CA that could have signed it, all else is looked at.
    let nobody = RootCertStore::empty();
    match verify_server_cert_signed_by_trust_anchor(&certificate, &nobody, &[], time, algorithms) {
        Err(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) | Ok(()) => None,
        Err(rustls::Error::InvalidCertificate(flaw)) => Some(flaw),
        Err(_) => Some(CertificateError::BadEncoding),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let pem = file::secret(path)?;
    let shown = quoted(&path.display().to_string());
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| {
        format!("{shown} has no private key that can be read (PKCS#8, PKCS#1 or SEC1, without a passphrase)")
    })
}

impl Identity {
    fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        key_file: &str,
    ) -> Result<Identity, String> {
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring has ciphers for TLS 1.2 and 1.3")
            .with_no_client_auth();
        let mut server = builder.with_single_cert(chain.clone(), key).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                format!("{} does not fit the certificate", quoted(key_file))
            }
            other => format!("{} cannot be used ({other})", quoted(key_file)),
        })?;
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Identity { chain, server: Arc::new(server) })
    }

    /// How connections are accepted.
    pub fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// Why clients refuse it, as they do any certificate some day; so long ahead of now.
    pub fn flaw(&self, ahead: Duration) -> Option<&'static str> {
        let now = UnixTime::now().as_secs();
        match flaw(&self.chain, UnixTime::since_unix_epoch(Duration::from_secs(now) + ahead))? {
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Some("is not valid yet")
            }
            _ => Some("has expired"),
        }
    }
}

/// Of equal certificates the keys are equal, too.
impl PartialEq for Identity {
    fn eq(&self, other: &Identity) -> bool {
        self.chain == other.chain
    }
}

impl Eq for Identity {}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({} certificates)", self.chain.len())
    }
}
