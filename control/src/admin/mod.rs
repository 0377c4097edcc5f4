//! The admin API: HTTP and JSON over a Unix socket, and over TCP with TLS and a token if the file says so (`tcp`).
//!
//! ```text
//! GET    /v1/services                            what `rvs list` shows
//! GET    /v1/connections                         the connection table, one JSON object a line, streamed
//! GET    /v1/counters                            what the workers count
//! GET    /v1/snat                                pools of source NAT, and who has ports of them
//! GET    /v1/events?since=N&run=R&follow=true    what has happened, one JSON object a line
//! GET    /metrics                                all of that for Prometheus
//! GET    /v1/capture?filter=host+A&seconds=10    packets as they pass, in pcapng, see [`capture::Question`]
//! GET    /v1/explain?source=A:P&destination=V:P  what would become of a packet, see [`explain::Question`]
//! POST   /v1/reload?dry_run=true                 read the configuration file again; 422 if it is refused
//! GET    /v1/diff                                what is running and the file does not say
//! POST   /v1/save                                write what is running into the file
//! POST   /v1/withdraw?address=A                  take the router, or one virtual address, out of service
//! POST   /v1/announce?address=A                  take that back
//! POST   /v1/stop?graceful=true&deadline=30      end RVS, at once or when its traffic has left; how far it is, a line each
//! GET    /v1/sync                                how things stand with peer routers
//! POST   /v1/upgrade?binary=PATH                 hand over to another program, see [`upgrade::Question`]
//! GET    /v1/upgrade                             what became of the last one
//! GET    /v1/openapi.json                        all of this for programs, as OpenAPI 3.1, see [`openapi`]
//!
//! POST   /v1/services                            add a service; its settings as in the file, as JSON
//! DELETE /v1/services/tcp/A:P                    remove it
//! POST   /v1/services/tcp/A:P/servers            add a server: {"address": "A:P", "weight": 1}
//! PATCH  /v1/services/tcp/A:P/servers/A:P        {"weight": 3}, {"state": "drained", "deadline": 60}
//! DELETE /v1/services/tcp/A:P/servers/A:P        remove it
//! DELETE /v1/connections?client=A                forget connections; also service, server; all=true
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
mod changes;
pub mod client;
mod events;
pub mod explain;
pub mod follow;
mod leaving;
mod metrics;
mod openapi;
pub mod remote;
mod socket;
pub mod tcp;
mod token;
pub mod upgrade;
mod visitor;

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, patch, post};
use axum::{Json, Router};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::config::error::shortened;
use crate::ids::ServiceKey;
pub use socket::{Heirloom, Socket, bind, inherit};

use crate::events::Events;
use crate::metrics::Format;

/// What the server asks: a handle of the director, so that the server does not depend on it.
pub trait Backend: Clone + Send + Sync + 'static {
    /// All services with their real servers.
    fn services(&self) -> impl Future<Output = anyhow::Result<Vec<api::Service>>> + Send;

    /// The connection table. The iterator is lazy and may block: it is read in a thread of its own.
    fn connections(&self) -> impl Future<Output = anyhow::Result<Connections>> + Send;

    /// What the workers count.
    fn counters(&self) -> impl Future<Output = anyhow::Result<api::Counters>> + Send;

    /// Pools of source NAT, and who has ports of them: a function that reads them, and may block.
    fn snat(&self) -> impl Future<Output = anyhow::Result<Pools>> + Send;

    /// Reads the configuration file again and applies it, or says what that would do.
    fn reload(&self, dry_run: bool) -> impl Future<Output = anyhow::Result<api::Reloaded>> + Send;

    /// Changes something without the file.
    fn change(&self, order: Order) -> impl Future<Output = anyhow::Result<api::Changed>> + Send;

    /// What is running and the file does not say.
    fn diff(&self) -> impl Future<Output = anyhow::Result<Vec<api::Change>>> + Send;

    /// Writes what is running into the file.
    fn save(&self) -> impl Future<Output = anyhow::Result<api::Saved>> + Send;

    /// Forgets connections: a function that does it, may block, and says how many there were.
    fn flush(&self, filter: api::Filter) -> impl Future<Output = anyhow::Result<Flush>> + Send;

    /// All metrics, as text.
    fn metrics(&self, format: Format) -> impl Future<Output = anyhow::Result<String>> + Send;

    /// How things stand with peer routers.
    fn sync(&self) -> impl Future<Output = anyhow::Result<api::Sync>> + Send;

    /// Hands over to another program, once that has proven itself.
    fn upgrade(
        &self,
        question: upgrade::Question,
    ) -> impl Future<Output = anyhow::Result<api::Upgrading>> + Send;

    /// The upgrade that this process has come from.
    fn upgraded(&self) -> api::Upgrades;

    /// Ends RVS, as far as it has come.
    fn stop(&self, stop: Stop) -> impl Future<Output = anyhow::Result<Departure>> + Send;

    /// What has happened.
    fn events(&self) -> &Events;

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
}

/// The connection table, read as it is asked for.
pub type Connections = Box<dyn Iterator<Item = api::Connection> + Send>;

/// Reads pools of source NAT.
pub type Pools = Box<dyn FnOnce() -> Vec<api::SnatPool> + Send>;

/// How far a router that stops has come, until it has ended.
pub type Departure = BoxStream<'static, api::Leaving>;

/// Forgets connections.
pub type Flush = Box<dyn FnOnce() -> u64 + Send>;

/// A change without the file.
#[derive(Clone, Debug, PartialEq)]
pub enum Order {
    /// Changes a server.
    Patch {
        /// Its service.
        service: ServiceKey,
        /// Its address.
        server: SocketAddr,
        /// What of it.
        patch: api::ServerPatch,
    },
    /// Adds a server.
    AddServer {
        /// Its service.
        service: ServiceKey,
        /// The server.
        server: api::NewServer,
    },
    /// Removes a server.
    RemoveServer {
        /// Its service.
        service: ServiceKey,
        /// Its address.
        server: SocketAddr,
    },
    /// Adds a service, by its settings as in the file.
    AddService(serde_json::Value),
    /// Removes a service.
    RemoveService(ServiceKey),
    /// Takes a virtual address out of service, or the whole router.
    Withdraw(Option<IpAddr>),
    /// Takes that back.
    Announce(Option<IpAddr>),
}

/// How RVS is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// As with SIGTERM.
    AtOnce,
    /// When its traffic has left, or after this time.
    Gracefully(Duration),
}

/// Bytes of JSON that are sent in one piece.
const CHUNK: usize = 32 << 10;

/// Chunks that wait for a slow client before reading stops.
const CHUNKS: usize = 4;

/// How long a client may take to send what none of our requests has.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection that is being served, until it ends.
pub type Connection = BoxFuture<'static, ()>;

/// How long no connection is accepted after one could not be.
const PAUSE: Duration = Duration::from_secs(1);

/// Answers requests until it is dropped. `run` has each connection run beside.
///
/// One would expect `axum::serve`, which makes each connection a task of the runtime. That put every answer four times
/// behind thousands of health checks that had become ready together: a fifth of a second.
pub async fn serve<B: Backend>(socket: Socket, backend: B, run: impl Fn(Connection)) {
    // The socket's file goes with `socket`, that is, when this future is dropped.
    let Socket { listener, file: _file } = socket;
    let service = TowerToHyperService::new(router(backend));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let connection =
                    http1::Builder::new().serve_connection(TokioIo::new(stream), service.clone());
                // It fails when its client hangs up, which is the client's affair.
                run(connection.map(drop).boxed());
            }
            // No descriptor, most likely: it may get better.
            Err(error) => {
                tracing::error!(%error, "cannot accept on the admin socket; trying again");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

fn router<B: Backend>(backend: B) -> Router {
    let mut router = Router::new();
    for (path, methods) in routes::<B>() {
        router = router.route(path, methods);
    }
    router.fallback(no_such_path::<B>).method_not_allowed_fallback(wrong_method).with_state(backend)
}

fn routes<B: Backend>() -> Vec<(&'static str, MethodRouter<B>)> {
    vec![
        ("/v1/services", get(services::<B>).post(changes::add_service::<B>)),
        ("/v1/services/{protocol}/{service}", delete(changes::remove_service::<B>)),
        ("/v1/services/{protocol}/{service}/servers", post(changes::add_server::<B>)),
        (
            "/v1/services/{protocol}/{service}/servers/{server}",
            patch(changes::patch_server::<B>).delete(changes::remove_server::<B>),
        ),
        ("/v1/connections", get(connections::<B>).delete(changes::flush::<B>)),
        ("/v1/counters", get(counters::<B>)),
        ("/v1/snat", get(snat::<B>)),
        ("/v1/events", get(events::events::<B>)),
        ("/v1/capture", get(capture::answer::<B>)),
        ("/v1/explain", get(explain::answer::<B>)),
        ("/metrics", get(metrics::metrics::<B>)),
        ("/v1/reload", post(reload::<B>)),
        ("/v1/diff", get(diff::<B>)),
        ("/v1/save", post(save::<B>)),
        ("/v1/withdraw", post(leaving::withdraw::<B>)),
        ("/v1/announce", post(leaving::announce::<B>)),
        ("/v1/stop", post(leaving::stop::<B>)),
        ("/v1/sync", get(sync::<B>)),
        ("/v1/upgrade", get(upgrade::last::<B>).post(upgrade::ask::<B>)),
        ("/v1/openapi.json", get(openapi::answer)),
    ]
}

async fn services<B: Backend>(State(backend): State<B>) -> Result<Response, Failed> {
    large(backend.services().await?).await
}

/// An answer that may have megabytes: written by a thread that may take its time.
async fn large<T: Serialize + Send + 'static>(answer: T) -> Result<Response, Failed> {
    let written = tokio::task::spawn_blocking(move || serde_json::to_vec(&answer)).await;
    let json = written.map_err(anyhow::Error::from)?.map_err(anyhow::Error::from)?;
    Ok(([(header::CONTENT_TYPE, "application/json")], json).into_response())
}

async fn counters<B: Backend>(State(backend): State<B>) -> Result<Json<api::Counters>, Failed> {
    Ok(Json(backend.counters().await?))
}

async fn snat<B: Backend>(State(backend): State<B>) -> Result<Response, Failed> {
    let read = backend.snat().await?;
    large(tokio::task::spawn_blocking(read).await.map_err(anyhow::Error::from)?).await
}

async fn reload<B: Backend>(
    State(backend): State<B>,
    query: Result<Query<ReloadQuery>, QueryRejection>,
    body: Body,
) -> Result<Response, Failed> {
    let Query(ReloadQuery { dry_run }) = query.map_err(bad_query)?;
    refuse_body(body).await?;
    large(backend.reload(dry_run).await.map_err(unprocessable)?).await
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct ReloadQuery {
    #[serde(default)]
    dry_run: bool,
}

async fn diff<B: Backend>(State(backend): State<B>) -> Result<Response, Failed> {
    large(backend.diff().await.map_err(unprocessable)?).await
}

async fn sync<B: Backend>(State(backend): State<B>) -> Result<Json<api::Sync>, Failed> {
    Ok(Json(backend.sync().await?))
}

async fn save<B: Backend>(State(backend): State<B>, body: Body) -> Result<Response, Failed> {
    refuse_body(body).await?;
    large(backend.save().await.map_err(unprocessable)?).await
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

async fn no_such_path<B: Backend>(uri: Uri) -> Failed {
    let paths: Vec<&str> = routes::<B>().into_iter().map(|(path, _)| path).collect();
    let error =
        anyhow::anyhow!("no such path: {}; expected one of {}", shortened(uri.path()), paths.join(", "));
    Failed(StatusCode::NOT_FOUND, error)
}

/// The header `Allow` says which are expected.
async fn wrong_method(method: Method, uri: Uri) -> Failed {
    let error = anyhow::anyhow!("{} does not answer to {method}", shortened(uri.path()));
    Failed(StatusCode::METHOD_NOT_ALLOWED, error)
}

fn bad_query(rejection: QueryRejection) -> Failed {
    Failed(StatusCode::BAD_REQUEST, anyhow::anyhow!("{}", rejection.body_text()))
}

/// What was asked for is understood, and cannot be done.
fn unprocessable(error: anyhow::Error) -> Failed {
    Failed(StatusCode::UNPROCESSABLE_ENTITY, error)
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
mod follow_tests;
#[cfg(test)]
mod tcp_tests;
#[cfg(test)]
mod tests;
