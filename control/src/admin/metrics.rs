//! `GET /metrics`.

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::IntoResponse;

use super::{Backend, Failed};
use crate::metrics::Format;

pub(super) async fn metrics<B: Backend>(
    State(backend): State<B>,
    headers: HeaderMap,
) -> Result<impl IntoResponse, Failed> {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let format = Format::accepted(accept);
    Ok(([(header::CONTENT_TYPE, format.content_type())], backend.metrics(format).await?))
}
