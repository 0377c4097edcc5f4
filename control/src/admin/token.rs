//! Who may ask over TCP, and what: a token in the header `Authorization: Bearer ...` (RFC 6750), looked at for every request,
//! so that one that is taken out of its file counts no longer after the next reload.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::sync::watch;

use super::Failed;
use super::visitor::Visitor;
use crate::config::AdminTcp;
use crate::config::tcp::Access;

/// What a token that may only look does not open: packets of clients, of which there is also one capture at a time.
const NOT_FOR_READERS: &str = "/v1/capture";

/// Lets a request in, or answers why not.
pub(super) async fn guard(
    State(settings): State<watch::Receiver<AdminTcp>>,
    request: Request,
    next: Next,
) -> Response {
    let access = shown(request.headers()).map(|shown| settings.borrow().tokens.access(shown));
    let known = match access {
        None => return refused(StatusCode::UNAUTHORIZED, "Bearer realm=\"rvs\"", NO_TOKEN),
        Some(None) => return refused(StatusCode::UNAUTHORIZED, INVALID, UNKNOWN_TOKEN),
        Some(Some(known)) => known,
    };
    let looks =
        [Method::GET, Method::HEAD].contains(request.method()) && request.uri().path() != NOT_FOR_READERS;
    if known == Access::Read && !looks {
        return refused(StatusCode::FORBIDDEN, INSUFFICIENT, READ_TOKEN);
    }
    let visitor = request.extensions().get::<Arc<Visitor>>();
    if visitor.is_some_and(|visitor| !visitor.is_admitted()) {
        return Failed(StatusCode::SERVICE_UNAVAILABLE, anyhow::anyhow!(FULL)).into_response();
    }
    next.run(request).await
}

const INVALID: &str = "Bearer realm=\"rvs\", error=\"invalid_token\"";
const INSUFFICIENT: &str = "Bearer realm=\"rvs\", error=\"insufficient_scope\"";

const NO_TOKEN: &str = "the request shows no token; expected the header Authorization: Bearer TOKEN, with one of \
     admin.tcp.token_file or, to look, of admin.tcp.read_token_file";
const UNKNOWN_TOKEN: &str = "nobody knows this token; expected one of admin.tcp.token_file or, to look, of \
     admin.tcp.read_token_file, as they were at the last reload";
const READ_TOKEN: &str = "this token may only look, and not at packets; expected one of admin.tcp.token_file";
const FULL: &str = "too many connections are open; expected to be asked again when some have ended";

/// The token that a request shows.
fn shown(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

fn refused(status: StatusCode, challenge: &'static str, error: &'static str) -> Response {
    let mut answer = Failed(status, anyhow::anyhow!(error)).into_response();
    answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    answer
}
