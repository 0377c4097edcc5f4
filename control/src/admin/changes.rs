//! Requests that change something without the file.

use std::net::SocketAddr;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::de::DeserializeOwned;

use super::{BODY_TIMEOUT, Backend, Failed, Order, api, bad_query, refuse_body, unprocessable};
use crate::config::value;
use crate::ids::ServiceKey;

/// A longer body is none of ours: a service with ten thousand servers takes half of it.
pub(super) const MAX_BODY: usize = 2 << 20;

type Answer = Result<Json<api::Changed>, Failed>;

pub(super) async fn add_service<B: Backend>(State(backend): State<B>, body: Body) -> Answer {
    let settings = json(body).await?;
    change(backend, Order::AddService(settings)).await
}

pub(super) async fn remove_service<B: Backend>(
    State(backend): State<B>,
    Path(path): Path<(String, String)>,
    body: Body,
) -> Answer {
    refuse_body(body).await?;
    let service = service(&path.0, &path.1)?;
    change(backend, Order::RemoveService(service)).await
}

pub(super) async fn add_server<B: Backend>(
    State(backend): State<B>,
    Path(path): Path<(String, String)>,
    body: Body,
) -> Answer {
    let service = service(&path.0, &path.1)?;
    let server = json(body).await?;
    change(backend, Order::AddServer { service, server }).await
}

pub(super) async fn patch_server<B: Backend>(
    State(backend): State<B>,
    Path(path): Path<(String, String, String)>,
    body: Body,
) -> Answer {
    let (service, server) = (service(&path.0, &path.1)?, server(&path.2)?);
    let patch = json(body).await?;
    change(backend, Order::Patch { service, server, patch }).await
}

pub(super) async fn remove_server<B: Backend>(
    State(backend): State<B>,
    Path(path): Path<(String, String, String)>,
    body: Body,
) -> Answer {
    refuse_body(body).await?;
    let (service, server) = (service(&path.0, &path.1)?, server(&path.2)?);
    change(backend, Order::RemoveServer { service, server }).await
}

pub(super) async fn flush<B: Backend>(
    State(backend): State<B>,
    query: Result<Query<api::Filter>, QueryRejection>,
    body: Body,
) -> Result<Json<api::Flushed>, Failed> {
    let Query(filter) = query.map_err(bad_query)?;
    refuse_body(body).await?;
    let flush = backend.flush(filter).await.map_err(unprocessable)?;
    let connections = tokio::task::spawn_blocking(flush).await.map_err(anyhow::Error::from)?;
    Ok(Json(api::Flushed { connections }))
}

async fn change<B: Backend>(backend: B, order: Order) -> Answer {
    backend.change(order).await.map(Json).map_err(unprocessable)
}

fn service(protocol: &str, address: &str) -> Result<ServiceKey, Failed> {
    let typed = format!("{protocol}/{address}");
    typed.parse().map_err(|wrong: String| bad_request(anyhow::anyhow!(wrong)))
}

fn server(address: &str) -> Result<SocketAddr, Failed> {
    value::socket_of_any_port(address)
        .map_err(|wrong| bad_request(anyhow::anyhow!("{wrong}; expected {}", value::SOCKET)))
}

/// The whole body, as what is expected.
async fn json<T: DeserializeOwned>(body: Body) -> Result<T, Failed> {
    let bytes = match tokio::time::timeout(BODY_TIMEOUT, axum::body::to_bytes(body, MAX_BODY)).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) => {
            let error = anyhow::anyhow!("the body broke off, or is longer than {MAX_BODY} bytes");
            return Err(Failed(StatusCode::PAYLOAD_TOO_LARGE, error));
        }
        Err(_) => {
            return Err(bad_request(anyhow::anyhow!("the request announces a body and does not send it")));
        }
    };
    serde_json::from_slice(&bytes)
        .map_err(|error| bad_request(anyhow::anyhow!("the body is not what is expected: {error}")))
}

fn bad_request(error: anyhow::Error) -> Failed {
    Failed(StatusCode::BAD_REQUEST, error)
}
