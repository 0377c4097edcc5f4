//! Requests that take this router out of service: `withdraw`, `announce`, `stop`.

use std::convert::Infallible;
use std::net::IpAddr;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use serde::Deserialize;

use super::{Backend, Failed, Order, Stop, api, bad_query, refuse_body, unprocessable};

/// What of the router.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    address: Option<IpAddr>,
}

/// How it is to end.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct How {
    #[serde(default)]
    graceful: bool,
    #[serde(default = "thirty")]
    deadline: u32,
}

fn thirty() -> u32 {
    30
}

pub(super) async fn withdraw<B: Backend>(
    State(backend): State<B>,
    which: Result<Query<Which>, QueryRejection>,
    body: Body,
) -> Result<Json<api::Changed>, Failed> {
    change(backend, which, body, Order::Withdraw).await
}

pub(super) async fn announce<B: Backend>(
    State(backend): State<B>,
    which: Result<Query<Which>, QueryRejection>,
    body: Body,
) -> Result<Json<api::Changed>, Failed> {
    change(backend, which, body, Order::Announce).await
}

async fn change<B: Backend>(
    backend: B,
    which: Result<Query<Which>, QueryRejection>,
    body: Body,
    order: fn(Option<IpAddr>) -> Order,
) -> Result<Json<api::Changed>, Failed> {
    let Query(Which { address }) = which.map_err(bad_query)?;
    refuse_body(body).await?;
    backend.change(order(address)).await.map(Json).map_err(unprocessable)
}

/// The answer is open until RVS has ended, so that whoever asks knows when.
pub(super) async fn stop<B: Backend>(
    State(backend): State<B>,
    how: Result<Query<How>, QueryRejection>,
    body: Body,
) -> Result<Response, Failed> {
    let Query(How { graceful, deadline }) = how.map_err(bad_query)?;
    refuse_body(body).await?;
    let stop = match graceful {
        true => Stop::Gracefully(Duration::from_secs(deadline.into())),
        false => Stop::AtOnce,
    };
    let lines = backend.stop(stop).await.map_err(unprocessable)?.map(|leaving| {
        // Of these types none can fail to be written to memory.
        let mut line = serde_json::to_vec(&leaving).unwrap_or_default();
        line.push(b'\n');
        Ok::<_, Infallible>(Bytes::from(line))
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}
