//! The gRPC check: a server is well if its service `grpc.health.v1.Health` says `SERVING`.
//!
//! The protocol is two messages of one field each
//! (<https://github.com/grpc/grpc/blob/master/doc/health-checking.md>):
//!
//! ```text
//! message HealthCheckRequest  { string service = 1; }
//! message HealthCheckResponse { enum { UNKNOWN = 0; SERVING = 1; NOT_SERVING = 2; SERVICE_UNKNOWN = 3; } status = 1; }
//! ```
//!
//! so they are written and read here by hand. HTTP/2 is the crate `h2` rather than hyper's client over it: that one spawns
//! its connection, which would outlive a probe that is dropped at its timeout.

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use h2::RecvStream;
use h2::client::Builder;
use hyper::body::Bytes;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::http::uri::{Authority, Scheme};
use hyper::{Method, Request, StatusCode, Uri};

use super::stage::note;
use super::stream::{CUT, broken, drive, open};
use super::tls::Connector;
use super::{Outcome, Probe};
use crate::config;
use crate::config::error::quoted;

const PATH: &str = "/grpc.health.v1.Health/Check";

/// The longest answer that is read, in bytes: one has 7.
const MAX_ANSWER: usize = 4096;

/// The longest headers, in bytes.
const MAX_HEADERS: u32 = 16 << 10;

/// The statuses of gRPC by number.
const STATUSES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];
const OK: usize = 0;
const NOT_FOUND: usize = 5;
const UNIMPLEMENTED: usize = 12;

/// Asks for the health of a service.
pub(super) struct Grpc {
    settings: Arc<config::Grpc>,
    tls: Option<Connector>,
}

impl Grpc {
    pub(super) fn new(settings: &Arc<config::Grpc>) -> Grpc {
        let tls = settings.tls.as_ref().map(|tls| Connector::new(tls, &["h2"]));
        Grpc { settings: Arc::clone(settings), tls }
    }

    async fn check(&self, address: SocketAddr) -> Result<Outcome, Outcome> {
        let stream = open(address, self.tls.as_ref()).await?;
        note("waiting for an answer");
        let mut builder = Builder::new();
        builder.enable_push(false).max_header_list_size(MAX_HEADERS);
        let (sender, connection) = builder.handshake(stream).await.map_err(failure)?;
        let exchange = async {
            let mut sender = sender.ready().await.map_err(failure)?;
            let (answer, mut body) = sender.send_request(self.request(address), false).map_err(failure)?;
            body.send_data(question(&self.settings.service), true).map_err(failure)?;
            let (head, body) = answer.await.map_err(failure)?.into_parts();
            if head.status != StatusCode::OK {
                return Err(Outcome::failed(format!(
                    "HTTP status {}; expected gRPC, and 200",
                    head.status.as_u16()
                )));
            }
            // An answer without a message has its status in the head.
            if head.headers.contains_key("grpc-status") {
                self.check_status(&head.headers)?;
            }
            let kind = head.headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
            if !kind.starts_with(b"application/grpc") {
                return Err(Outcome::failed(format!(
                    "content-type {}; expected application/grpc",
                    quoted(&String::from_utf8_lossy(kind))
                )));
            }
            let (message, trailers) = read(body).await?;
            self.check_status(&trailers)?;
            self.check_health(&message)
        };
        drive(connection, exchange).await
    }

    fn request(&self, address: SocketAddr) -> Request<()> {
        let scheme = if self.tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP };
        let host = self.settings.host.clone();
        let host = host.unwrap_or_else(|| {
            Authority::try_from(address.to_string()).expect("an address with a port is an authority")
        });
        let uri = Uri::builder().scheme(scheme).authority(host).path_and_query(PATH).build();
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri.expect("it has all of its parts");
        let headers = request.headers_mut();
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(header::USER_AGENT, HeaderValue::from_static("rvs"));
        request
    }

    /// What gRPC says of the call.
    fn check_status(&self, headers: &HeaderMap) -> Result<(), Outcome> {
        let text = |name| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
        let Some(status) = text("grpc-status") else {
            return Err(Outcome::failed("no grpc-status; expected one at the end of the answer"));
        };
        let number = status.parse().unwrap_or(usize::MAX);
        let name = STATUSES.get(number).copied().unwrap_or("no status of gRPC");
        Err(Outcome::failed(match number {
            OK => return Ok(()),
            NOT_FOUND => format!("{} is unknown to the health service ({name})", self.subject()),
            UNIMPLEMENTED => format!("server has no service grpc.health.v1.Health ({name})"),
            _ => match text("grpc-message").filter(|message| !message.is_empty()) {
                Some(message) => format!("gRPC status {status} ({name}): {}", quoted(&message)),
                None => format!("gRPC status {status} ({name})"),
            },
        }))
    }

    /// What the server says of the service.
    fn check_health(&self, message: &[u8]) -> Result<Outcome, Outcome> {
        let health = match serving_status(message) {
            Some(1) => return Ok(Outcome::passed("SERVING")),
            Some(0) => "UNKNOWN",
            Some(2) => "NOT_SERVING",
            Some(3) => "SERVICE_UNKNOWN",
            Some(_) => "something unheard of",
            None => return Err(Outcome::failed("answer is no HealthCheckResponse")),
        };
        Err(Outcome::failed(format!("{} is {health}; expected SERVING", self.subject())))
    }

    fn subject(&self) -> String {
        match self.settings.service.as_str() {
            "" => "server".to_owned(),
            service => format!("service {}", quoted(service)),
        }
    }
}

impl Probe for Grpc {
    fn probe(&self, address: SocketAddr) -> BoxFuture<'_, Outcome> {
        self.check(address).map(|checked| checked.unwrap_or_else(|failed| failed)).boxed()
    }
}

/// All of an answer, which must be short, and what follows it.
async fn read(mut body: RecvStream) -> Result<(Vec<u8>, HeaderMap), Outcome> {
    let mut message = Vec::new();
    while let Some(data) = body.data().await {
        message.extend_from_slice(&data.map_err(failure)?);
        if message.len() > MAX_ANSWER {
            return Err(Outcome::failed(format!("answer of more than {MAX_ANSWER} bytes")));
        }
    }
    let trailers = body.trailers().await.map_err(failure)?;
    Ok((message, trailers.unwrap_or_default()))
}

/// A HealthCheckRequest in gRPC's frame: a byte that says that it is not compressed, the length, the message.
fn question(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        // Field 1, of type "length-delimited".
        message.push(1 << 3 | 2);
        let mut length = service.len();
        while length >= 0x80 {
            message.push(length as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let length = u32::try_from(message.len()).expect("a name has at most 255 bytes");
    [&[0][..], &length.to_be_bytes(), &message].concat().into()
}

/// The `status` of a HealthCheckResponse in gRPC's frame. Fields that we do not know are skipped, as the encoding wants
/// (<https://protobuf.dev/programming-guides/encoding/>). None: it is none.
fn serving_status(frame: &[u8]) -> Option<u64> {
    let (head, mut message) = frame.split_at_checked(5)?;
    if head[0] != 0 || u32::from_be_bytes(head[1..].try_into().ok()?) as usize != message.len() {
        return None;
    }
    // What is not sent is 0.
    let mut status = 0;
    while !message.is_empty() {
        let key = varint(&mut message)?;
        match (key >> 3, key & 7) {
            (1, 0) => status = varint(&mut message)?,
            (_, 0) => _ = varint(&mut message)?,
            (_, 1) => message = message.get(8..)?,
            (_, 2) => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            (_, 5) => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

/// Seven bits a byte, the lowest first; the highest bit says that more follow.
fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// What an error of HTTP/2 says of the server.
fn failure(error: h2::Error) -> Outcome {
    let reason = error.reason().map(|reason| reason.description().to_owned());
    match error.get_io() {
        Some(io) => broken(io),
        None if error.is_remote() => {
            Outcome::failed(format!("server ends HTTP/2: {}", reason.unwrap_or_default()))
        }
        None if error.is_library() => Outcome::failed("not an answer by HTTP/2"),
        None => Outcome::failed(CUT),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn framed(message: &[u8]) -> Vec<u8> {
        [&[0][..], &(message.len() as u32).to_be_bytes(), message].concat()
    }

    #[test]
    fn a_question_is_what_protoc_makes_of_it() {
        assert_eq!(&question("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&question("shop")[..], b"\x00\x00\x00\x00\x06\x0a\x04shop");
        // 200 = 0b1_1001000
        assert_eq!(question(&"x".repeat(200))[..8], *b"\x00\x00\x00\x00\xcb\x0a\xc8\x01");
    }

    #[test]
    fn answers() {
        assert_eq!(serving_status(&framed(b"\x08\x01")), Some(1));
        assert_eq!(serving_status(&framed(b"\x08\x02")), Some(2));
        assert_eq!(serving_status(&framed(b"")), Some(0), "what is not sent is 0");
        // Fields 2 to 5, one of each type, around the one that counts; the last one of equal ones counts.
        let all = b"\x12\x02ab\x18\x96\x01\x08\x02\x21\0\0\0\0\0\0\0\0\x2d\0\0\0\0\x08\x01";
        assert_eq!(serving_status(&framed(all)), Some(1));
        for wrong in [
            &b""[..],
            b"\x00\x00\x00\x00",
            b"\x01\x00\x00\x00\x02\x08\x01",
            b"\x00\x00\x00\x00\x03\x08\x01",
            b"\x00\x00\x00\x00\x01\x08",
            b"\x00\x00\x00\x00\x02\x0b\x01",
            b"\x00\x00\x00\x00\x03\x12\x05a",
            b"\x00\x00\x00\x00\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        ] {
            assert_eq!(serving_status(wrong), None, "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn noise_is_no_panic(message: Vec<u8>) {
            serving_status(&message);
            serving_status(&framed(&message));
        }
    }
}
