//! The HTTP check: a server is well if it answers a request with the right status, and a body that is as it should be.
//!
//! * One request a connection, HTTP/1.1 with `Connection: close`.
//! * A redirect is an answer as any other, and is not followed: it says nothing of how this server would do what it
//!   sends its clients elsewhere for.
//! * An answer must be complete: a server that breaks off in the middle is not well, even if its status was right.
//! * ... but only its first part is read, and looked at, [`MAX_BODY`] bytes: a check must cost little even if somebody
//!   points it at the image of a CD.

use std::error::Error;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Bytes};
use hyper::client::conn::http1;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::TokioIo;

use super::stage::note;
use super::stream::{CUT, broken, drive, open};
use super::tls::Connector;
use super::{Outcome, Probe};
use crate::config;
use crate::config::error::quoted;

/// How much of a body is read. Pages that are made for checks have some hundred bytes, and HAProxy looks at 16 KiB.
const MAX_BODY: usize = 256 << 10;

/// The longest head of an answer, status and headers, in bytes. hyper may take twice as much before it refuses it, and allows
/// a hundred headers in it.
const MAX_HEAD: usize = 64 << 10;

/// From this size on, a body is compared on another thread: a pattern may take milliseconds for it, and the main loop
/// has better things to do. For less, the way there costs more than the comparison.
const LARGE: usize = 16 << 10;

/// Who asks, unless the check's headers say otherwise.
const USER_AGENT: HeaderValue = HeaderValue::from_static("rvs");

/// Asks for a page.
pub(super) struct Http {
    settings: Arc<config::Http>,
    tls: Option<Connector>,
}

impl Http {
    pub(super) fn new(settings: &Arc<config::Http>, tls: Option<&config::Tls>) -> Http {
        let tls = tls.map(|tls| Connector::new(tls, &["http/1.1"]));
        Http { settings: Arc::clone(settings), tls }
    }

    async fn check(&self, address: SocketAddr) -> Result<Outcome, Outcome> {
        let stream = open(address, self.tls.as_ref()).await?;
        note("waiting for an answer");
        let mut builder = http1::Builder::new();
        builder.max_buf_size(MAX_HEAD);
        let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(failure)?;
        let exchange = async {
            let answer = sender.send_request(self.request(address)).await.map_err(failure)?;
            self.check_status(&answer)?;
            note("reading the answer");
            let status = answer.status().as_u16();
            let (body, whole) = first_part(answer.into_body()).await.map_err(failure)?;
            self.check_body(body, whole).await?;
            Ok(Outcome::passed(format!("status {status}")))
        };
        drive(connection, exchange).await
    }

    fn request(&self, address: SocketAddr) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        *request.method_mut() = self.settings.method.clone();
        *request.uri_mut() = Uri::from(self.settings.path.clone());
        let usual = if self.tls.is_some() { 443 } else { 80 };
        let host = self.settings.host.as_ref().map_or_else(|| host_of(address, usual), ToString::to_string);
        let headers = request.headers_mut();
        headers.insert(header::HOST, HeaderValue::try_from(host).expect("an authority is printable ASCII"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        headers.insert(header::USER_AGENT, USER_AGENT);
        // A method that may have a body says that there is none (RFC 9110, 8.6).
        if self.settings.method == Method::POST {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(0));
        }
        for (name, value) in &self.settings.headers {
            headers.insert(name, value.clone());
        }
        request
    }

    fn check_status<B>(&self, answer: &Response<B>) -> Result<(), Outcome> {
        let (status, expected) = (answer.status().as_u16(), &self.settings.status);
        if expected.contains(status) {
            return Ok(());
        }
        let to = answer.headers().get(header::LOCATION).filter(|_| answer.status().is_redirection());
        let to = to.map(|to| format!(" to {}", quoted(&String::from_utf8_lossy(to.as_bytes()))));
        Err(Outcome::failed(format!("status {status}{}; expected {expected}", to.unwrap_or_default())))
    }

    /// `whole`: whether nothing follows.
    async fn check_body(&self, body: Vec<u8>, whole: bool) -> Result<(), Outcome> {
        if body.len() < LARGE {
            return compare(&self.settings, &body, whole);
        }
        let settings = Arc::clone(&self.settings);
        match tokio::task::spawn_blocking(move || compare(&settings, &body, whole)).await {
            Ok(compared) => compared,
            Err(error) => Err(Outcome::Unknown(format!("body was not compared: {error}").into())),
        }
    }
}

impl Probe for Http {
    fn probe(&self, address: SocketAddr) -> BoxFuture<'_, Outcome> {
        self.check(address).map(|checked| checked.unwrap_or_else(|failed| failed)).boxed()
    }
}

/// Who is asked at this address, as in a URI: an IPv6 address in brackets, and no port that goes without saying (RFC 9110, 7.2).
fn host_of(address: SocketAddr, usual: u16) -> String {
    match address.ip() {
        _ if address.port() != usual => address.to_string(),
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// At most so much of a body as is looked at, and whether that is all of it.
async fn first_part<B>(mut body: B) -> Result<(Vec<u8>, bool), B::Error>
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut part = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        let room = MAX_BODY - part.len();
        part.extend_from_slice(&data[..data.len().min(room)]);
        if data.len() > room {
            return Ok((part, false));
        }
    }
    Ok((part, true))
}

fn compare(settings: &config::Http, body: &[u8], whole: bool) -> Result<(), Outcome> {
    let shown = |pattern: &config::Pattern| quoted(&pattern.to_string());
    if let Some(pattern) = &settings.body_not
        && pattern.is_in(body)
    {
        return Err(Outcome::failed(format!("body matches {}; expected not to", shown(pattern))));
    }
    if let Some(pattern) = &settings.body
        && !pattern.is_in(body)
    {
        let part = if whole { String::new() } else { format!(" in its first {} KiB", MAX_BODY >> 10) };
        return Err(Outcome::failed(format!("body does not match{part}; expected {}", shown(pattern))));
    }
    Ok(())
}

/// What an error of HTTP says of the server.
fn failure(error: hyper::Error) -> Outcome {
    if let Some(io) = error.source().and_then(|source| source.downcast_ref::<io::Error>()) {
        return broken(io);
    }
    match error {
        error if error.is_incomplete_message() || error.is_canceled() || error.is_closed() => {
            Outcome::failed(CUT)
        }
        error if error.is_parse_too_large() => {
            Outcome::failed(format!("head of more than {} KiB or a hundred headers", MAX_HEAD >> 10))
        }
        error if error.is_parse() => Outcome::failed("not an answer by HTTP/1"),
        error => Outcome::failed(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_as_in_a_uri() {
        for (address, usual, host) in [
            ("10.0.0.11:80", 80, "10.0.0.11"),
            ("10.0.0.11:8080", 80, "10.0.0.11:8080"),
            ("[2001:db8::11]:443", 443, "[2001:db8::11]"),
            ("[2001:db8::11]:80", 443, "[2001:db8::11]:80"),
        ] {
            assert_eq!(host_of(address.parse().unwrap(), usual), host);
        }
    }
}
