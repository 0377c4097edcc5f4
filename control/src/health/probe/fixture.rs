//! For the tests of the kinds: checks as an operator writes them, servers on loopback, a CA of our own.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::Uid;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{Outcome, Stage};
use crate::config::Check;
use crate::config::checks::fixture::check as as_typed;

/// Longer than anything here takes.
pub(super) const LONG: Duration = Duration::from_secs(30);

/// The check with these keys, and so much time unless they say otherwise.
pub(super) fn kind(keys: &str) -> Check {
    let time = if keys.contains("timeout") { "" } else { "timeout = \"30s\"\n" };
    as_typed(&format!("{time}{keys}"))
}

/// What comes of it within its time.
pub(super) async fn outcome(check: &Check, server: SocketAddr) -> Outcome {
    let probe = super::ready(check);
    let stage = Stage::default();
    let checked = tokio::time::timeout(check.timeout, stage.of(probe.probe(server))).await;
    checked.unwrap_or_else(|_| stage.late(check.timeout))
}

/// What comes of a check with these keys.
pub(super) async fn check(keys: &str, server: SocketAddr) -> Outcome {
    outcome(&kind(keys), server).await
}

/// The check has not ended within its timeout, and is dropped.
pub(super) async fn check_in_vain(keys: &str, server: SocketAddr) {
    let outcome = check(&format!("timeout = \"300ms\"\n{keys}"), server).await;
    let Outcome::Failed(reason) = outcome else { panic!("{keys}: {outcome:?}") };
    assert!(reason.starts_with("timed out after 300ms while "), "{keys}: {reason}");
}

/// What comes of a check in a network namespace of its own, which a script of the shell has furnished; nothing if this
/// user may not make one.
pub(super) fn outcome_in_namespace(furnish: &str, check: &Check, server: SocketAddr) -> Option<Outcome> {
    if !Uid::effective().is_root() {
        eprintln!("SKIPPED: only root may make a network namespace");
        return None;
    }
    // It ends with its thread.
    let within = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let furnished = Command::new("/bin/sh").args(["-ec", furnish]).status().unwrap();
        assert!(furnished.success(), "{furnish}");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(outcome(check, server))
    };
    Some(std::thread::scope(|scope| scope.spawn(within).join().unwrap()))
}

/// The loopback address of each family that this machine has.
pub(super) fn loopbacks() -> Vec<IpAddr> {
    let mut loopbacks = vec![Ipv4Addr::LOCALHOST.into()];
    match std::net::UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)) {
        Ok(_) => loopbacks.push(Ipv6Addr::LOCALHOST.into()),
        Err(error) => eprintln!("SKIPPED for IPv6: {error}"),
    }
    loopbacks
}

/// A server that does this with every connection.
pub(super) async fn serve<F, R>(each: F) -> SocketAddr
where
    F: Fn(TcpStream) -> R + Send + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    serve_at(Ipv4Addr::LOCALHOST.into(), each).await
}

/// ... at this address.
pub(super) async fn serve_at<F, R>(host: IpAddr, each: F) -> SocketAddr
where
    F: Fn(TcpStream) -> R + Send + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind((host, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(each(stream));
        }
    });
    address
}

/// A server of a dialogue: it waits for each of these, and says each of those. At the end it closes, or is silent if the
/// dialogue is to be left hanging. A line that starts with `<` is what it waits for.
pub(super) async fn dialogue(turns: &'static [&'static str], hang: bool) -> SocketAddr {
    dialogue_at(Ipv4Addr::LOCALHOST.into(), turns, hang).await
}

/// ... at this address.
pub(super) async fn dialogue_at(host: IpAddr, turns: &'static [&'static str], hang: bool) -> SocketAddr {
    let each = move |mut stream: TcpStream| async move {
        for turn in turns {
            match turn.strip_prefix('<') {
                Some(expected) => {
                    let mut got = vec![0; expected.len()];
                    stream.read_exact(&mut got).await.unwrap();
                    assert_eq!(String::from_utf8_lossy(&got), expected);
                }
                None => stream.write_all(turn.as_bytes()).await.unwrap(),
            }
        }
        if hang {
            std::future::pending().await
        }
    };
    serve_at(host, each).await
}

/// The head of a request, up to its empty line.
pub(super) async fn head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// A CA, with its certificate in a file.
pub(super) struct Ca {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    directory: tempfile::TempDir,
}

impl Ca {
    pub(super) fn new() -> Ca {
        Ca::named("RVS test CA")
    }

    pub(super) fn named(name: &str) -> Ca {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let directory = tempfile::tempdir().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(directory.path().join("ca.pem"), certificate.pem()).unwrap();
        Ca { certificate: certificate.der().clone(), issuer: Issuer::new(params, key), directory }
    }

    pub(super) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The key of a check that trusts it.
    pub(super) fn key(&self) -> String {
        format!("ca = {:?}", self.directory.path().join("ca.pem").display().to_string())
    }

    /// The settings of a server with a certificate for these names from the first of one year to that of another.
    pub(super) fn server(&self, names: &[&str], (from, to): (i32, i32)) -> ServerConfig {
        self.strict_server(names, (from, to), None)
    }

    /// ... which may ask its clients for certificates.
    pub(super) fn strict_server(
        &self,
        names: &[&str],
        (from, to): (i32, i32),
        clients: Option<Arc<dyn ClientCertVerifier>>,
    ) -> ServerConfig {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        configured(certificate.der().clone(), &key, clients)
    }

    /// ... of a server that presents the CA's own certificate.
    pub(super) fn itself(&self) -> ServerConfig {
        configured(self.certificate.clone(), self.issuer.key(), None)
    }
}

fn configured(
    certificate: CertificateDer<'static>,
    key: &KeyPair,
    clients: Option<Arc<dyn ClientCertVerifier>>,
) -> ServerConfig {
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients {
        Some(clients) => builder.with_client_cert_verifier(clients),
        None => builder.with_no_client_auth(),
    };
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    builder.with_single_cert(vec![certificate], key).unwrap()
}

/// Years in which we all are.
pub(super) const NOW: (i32, i32) = (2000, 3000);
