//! `GET /v1/capture`: packets as they pass, a pcapng file that is sent while it grows.

use std::pin::Pin;

use anyhow::anyhow;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt};
use serde::{Deserialize, Serialize};

use super::{Backend, Failed};

/// What is to be captured; the query of the request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// Words that a packet has to fit, e.g. `host 198.51.100.7 and dropped`; none: every packet.
    #[serde(default)]
    pub filter: String,
    /// One packet in so many of each worker is looked at; 1000 by default, with a filter every one.
    pub one_in: Option<u32>,
    /// Packets after which it ends; a million by default.
    pub count: Option<u64>,
    /// Seconds after which it ends; 60 by default.
    pub seconds: Option<u32>,
}

/// The file, in pieces, as they come.
pub type Pieces = Pin<Box<dyn Stream<Item = Vec<u8>> + Send>>;

pub(super) async fn answer<B: Backend>(
    State(backend): State<B>,
    question: Result<Query<Question>, QueryRejection>,
) -> Result<Response, Failed> {
    let refused = |rejection: QueryRejection| {
        let text = rejection.body_text();
        Failed(
            StatusCode::BAD_REQUEST,
            anyhow!("{text}; expected filter, one_in, count and seconds at the most"),
        )
    };
    let Query(question) = question.map_err(refused)?;
    let pieces = backend.capture(question).await;
    let pieces = pieces.map_err(|error| Failed(StatusCode::UNPROCESSABLE_ENTITY, error))?;
    let pieces = pieces.map(|piece| Ok::<_, std::convert::Infallible>(Bytes::from(piece)));
    Ok(([(header::CONTENT_TYPE, "application/x-pcapng")], Body::from_stream(pieces)).into_response())
}
