//! The way to a running `rvs` on another machine.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use hyper::Uri;
use hyper::http::uri::Authority;
use rustls::CertificateError;
use rustls::pki_types::ServerName;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::tcp::keep_alive;
use crate::config::error::quoted;
use crate::config::tcp::{Token, tokens};
use crate::config::{Authorities, Trust};
use crate::health::tls;

/// How long connecting may take, and then the handshake.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Where it is, and how each knows that the other is who it should be.
///
/// The files are read for each connection: whoever follows events for months goes on with the token of today.
#[derive(Clone, Debug)]
pub struct Remote {
    /// `https://HOST:PORT`.
    pub url: String,
    /// A PEM file with the CAs that may have signed its certificate; without one those that this machine trusts.
    pub ca: Option<PathBuf>,
    /// A file whose first token is shown.
    pub token_file: Option<PathBuf>,
}

impl Remote {
    /// Who is asked, as it stands in the URL.
    pub(super) fn authority(&self) -> Result<Authority> {
        authority(&self.url).map_err(|wrong| anyhow!(wrong))
    }

    /// What is shown as a token.
    pub(super) fn token(&self) -> Result<Token> {
        let Some(file) = &self.token_file else {
            bail!(
                "{} wants a token; pass the file that has it by --token-file FILE (RVS_TOKEN_FILE)",
                self.url
            );
        };
        let tokens =
            tokens(&absolute(file)?).map_err(|wrong| anyhow!("{wrong}; expected a file with a token"))?;
        tokens.into_iter().next().context("a file with tokens has a first one")
    }

    /// A connection over which HTTP can be spoken.
    pub(super) async fn connect(&self) -> Result<TlsStream<TcpStream>> {
        let (url, authority) = (&self.url, self.authority()?);
        // A URL has an IPv6 address in brackets, all else has not.
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let port = authority.port_u16().context("a URL without a port")?;
        let name = ServerName::try_from(host.to_owned())
            .with_context(|| format!("no server can be called {host}"))?;
        let config = tls::client_config(&Trust::Authorities(self.authorities()?));

        let late = || format!("cannot reach rvs at {url}: no answer within {} s", TIMEOUT.as_secs());
        let stream = timeout(TIMEOUT, TcpStream::connect((host, port))).await.with_context(late)?;
        let stream = stream.with_context(|| {
            format!("cannot reach rvs at {url} (is it running, and is this its admin.tcp.listen?)")
        })?;
        stream
            .set_nodelay(true)
            .and_then(|()| keep_alive(&SockRef::from(&stream)))
            .context("cannot set up a socket")?;
        let connector = TlsConnector::from(Arc::new(config));
        let handshake = timeout(TIMEOUT, connector.connect(name, stream)).await.with_context(late)?;
        handshake.map_err(|error| match tls::cause(&error) {
            Some(rustls::Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            )) => self.unknown_issuer(),
            Some(cause) => anyhow!("cannot speak TLS with rvs at {url}: {}", tls::reason(cause)),
            None => anyhow::Error::new(error).context(format!(
                "rvs at {url} has closed the connection during the TLS handshake (too many connections from here?)"
            )),
        })
    }

    fn unknown_issuer(&self) -> anyhow::Error {
        let url = &self.url;
        match &self.ca {
            None => anyhow!(
                "rvs at {url} has a certificate of an issuer that this machine does not know; \
                 pass the certificate of its CA by --ca FILE (RVS_CA)"
            ),
            Some(ca) => anyhow!(
                "rvs at {url} has a certificate of an issuer that is not in {}; expected the certificate of its CA there",
                ca.display()
            ),
        }
    }

    fn authorities(&self) -> Result<Authorities> {
        match &self.ca {
            Some(ca) => Authorities::load(&absolute(ca)?)
                .map_err(|wrong| anyhow!("{wrong}; expected a PEM file with certificates of CAs")),
            None => Authorities::of_system().context(
                "this machine has no certificates of CAs; pass that of the CA of rvs by --ca FILE (RVS_CA)",
            ),
        }
    }
}

/// A URL that can be asked, or what is wrong with it.
pub fn check_url(typed: &str) -> Result<String, String> {
    authority(typed).map(|_| typed.to_owned())
}

fn authority(url: &str) -> Result<Authority, String> {
    let wrong = || format!("{} is not where an admin API is; expected https://HOST:PORT", quoted(url));
    let uri: Uri = url.parse().map_err(|_| wrong())?;
    let bare = uri.scheme_str() == Some("https") && uri.path() == "/" && uri.query().is_none();
    let authority =
        uri.authority().filter(|one| bare && one.port_u16().is_some() && !one.as_str().contains('@'));
    authority.cloned().ok_or_else(wrong)
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot tell where {} is", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for good in ["https://192.0.2.1:9443", "https://lb.example.org:443/", "https://[2001:db8::1]:9443"] {
            assert_eq!(check_url(good).as_deref(), Ok(good));
        }
        for bad in [
            "",
            "lb:9443",
            "http://lb:9443",
            "https://lb",
            "https://lb:x",
            "https://lb:99999",
            "https://me:secret@lb:9443",
            "https://lb:9443/v1",
            "https://lb:9443/?a",
        ] {
            let expected = format!("{bad:?} is not where an admin API is; expected https://HOST:PORT");
            assert_eq!(check_url(bad), Err(expected));
        }
    }
}
