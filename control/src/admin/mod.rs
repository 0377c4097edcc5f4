//! The admin API: HTTP and JSON over a Unix socket.
//!
//! ```text
//! GET  /v1/services       what `rvs list` shows
//! GET  /v1/connections    the connection table, one JSON object a line, streamed
//! GET  /v1/counters       what the workers count
//! GET  /v1/capture        packets as they pass, in pcapng: ?filter=host+A&seconds=10, see [`capture::Question`]
//! GET  /v1/explain        what would become of a packet: ?source=A:P&destination=V:P, see [`explain::Question`]
//! POST /v1/reload         read the configuration file again; 422 if it is refused
//! ```
//!
//! HTTP, because `curl --unix-socket` and every language speak it; a Unix socket, because the file's
//! owner and mode are access control enough and no port is opened. Whatever fails answers with a status
//! and `{"error": "..."}`, also a wrong path or method.
//!
//! A table of ten million connections is neither collected in memory nor read in one go: a blocking thread
//! reads it a chunk ahead of what the client takes, and stops when the client hangs up. So neither the
//! control thread nor a worker notices a listing.

pub mod api;
pub mod capture;
pub mod client;
pub mod explain;
mod socket;

use std::future::Future;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use tokio::sync::mpsc;

pub use socket::{Socket, bind};

/// What the server asks: a handle of the director, so that the server does not depend on it.
pub trait Backend: Clone + Send + Sync + 'static {
    /// All services with their real servers.
    fn services(&self) -> impl Future<Output = anyhow::Result<Vec<api::Service>>> + Send;

    /// The connection table. The iterator is lazy and may block: it is read in a thread of its own.
    fn connections(&self) -> impl Future<Output = anyhow::Result<Connections>> + Send;

    /// What the workers count.
    fn counters(&self) -> impl Future<Output = anyhow::Result<api::Counters>> + Send;

    /// Packets as they pass, until enough have or the stream is dropped.
    fn capture(
        &self,
        question: capture::Question,
    ) -> impl Future<Output = anyhow::Result<capture::Pieces>> + Send;

    /// What would become of a packet.
    fn explain(
        &self,
        question: explain::Question,
    ) -> impl Future<Output = anyhow::Result<explain::Explanation>> + Send;

    /// Reads the configuration file again and applies it.
    fn reload(&self) -> impl Future<Output = anyhow::Result<api::Reloaded>> + Send;
}

/// The connection table, read as it is asked for.
pub type Connections = Box<dyn Iterator<Item = api::Connection> + Send>;

/// Bytes of JSON that are sent in one piece.
const CHUNK: usize = 32 << 10;

/// Chunks that wait for a slow client before reading stops.
const CHUNKS: usize = 4;

/// How long a client may take to send what none of our requests has.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// Answers requests until it is dropped.
pub async fn serve<B: Backend>(socket: Socket, backend: B) {
    // The socket's file goes with `socket`, that is, when this future is dropped.
    let Socket { listener, _file } = socket;
    if let Err(error) = axum::serve(listener, router(backend)).await {
        tracing::error!(%error, "the admin socket is closed");
    }
}

fn router<B: Backend>(backend: B) -> Router {
    Router::new()
        .route("/v1/services", get(services::<B>))
        .route("/v1/connections", get(connections::<B>))
        .route("/v1/counters", get(counters::<B>))
        .route("/v1/capture", get(capture::answer::<B>))
        .route("/v1/explain", get(explain::answer::<B>))
        .route("/v1/reload", post(reload::<B>))
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .with_state(backend)
}

async fn services<B: Backend>(State(backend): State<B>) -> Result<Json<Vec<api::Service>>, Failed> {
    Ok(Json(backend.services().await?))
}

async fn counters<B: Backend>(State(backend): State<B>) -> Result<Json<api::Counters>, Failed> {
    Ok(Json(backend.counters().await?))
}

async fn reload<B: Backend>(State(backend): State<B>, body: Body) -> Result<Json<api::Reloaded>, Failed> {
    refuse_body(body).await?;
    backend.reload().await.map(Json).map_err(|error| Failed(StatusCode::UNPROCESSABLE_ENTITY, error))
}

async fn connections<B: Backend>(State(backend): State<B>) -> Result<Response, Failed> {
    let connections = backend.connections().await?;
    let (sender, receiver) = mpsc::channel(CHUNKS);
    tokio::task::spawn_blocking(move || {
        let mut chunk = Vec::with_capacity(CHUNK + 512);
        for connection in connections {
            // Of these types none can fail to be written to memory.
            if serde_json::to_writer(&mut chunk, &connection).is_ok() {
                chunk.push(b'\n');
            }
            if chunk.len() >= CHUNK {
                let full = std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK + 512));
                if sender.blocking_send(full).is_err() {
                    return; // The client has hung up.
                }
            }
        }
        // Nobody may be there to take the rest, and then nobody misses it.
        let _ = sender.blocking_send(chunk);
    });
    let chunks = futures_util::stream::unfold(receiver, |mut receiver| async {
        let chunk = receiver.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(chunk)), receiver))
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(chunks)).into_response())
}

/// A body would be ignored, and with it what its sender believes to have asked for.
async fn refuse_body(body: Body) -> Result<(), Failed> {
    let refused = |error| Failed(StatusCode::BAD_REQUEST, error);
    match tokio::time::timeout(BODY_TIMEOUT, axum::body::to_bytes(body, 0)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) => Err(refused(anyhow::anyhow!("the request has a body; expected none"))),
        Err(_) => {
            Err(refused(anyhow::anyhow!("the request announces a body and does not send it; expected none")))
        }
    }
}

async fn no_such_path(uri: Uri) -> Failed {
    let expected = "/v1/services, /v1/connections, /v1/counters, /v1/capture, /v1/explain or /v1/reload";
    Failed(StatusCode::NOT_FOUND, anyhow::anyhow!("no such path: {}; expected {expected}", uri.path()))
}

async fn wrong_method(method: Method, uri: Uri) -> Failed {
    let path = uri.path();
    let expected = if path == "/v1/reload" { "POST" } else { "GET" };
    let error = anyhow::anyhow!("{path} does not answer to {method}; expected {expected}");
    Failed(StatusCode::METHOD_NOT_ALLOWED, error)
}

/// What a failed request answers.
struct Failed(StatusCode, anyhow::Error);

impl From<anyhow::Error> for Failed {
    fn from(error: anyhow::Error) -> Self {
        Failed(StatusCode::INTERNAL_SERVER_ERROR, error)
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let Failed(status, error) = self;
        (status, Json(api::Failure { error: format!("{error:#}") })).into_response()
    }
}

#[cfg(test)]
mod tests;
