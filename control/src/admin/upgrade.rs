//! `/v1/upgrade`: to hand over to another program, and what became of that.
//!
//! The answer to POST means that the other program has proven itself and that the hand-over begins; whoever asks GET
//! meanwhile waits until the new program answers, since it inherits the socket.

use std::path::PathBuf;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use serde::{Deserialize, Serialize};

use super::{Backend, Failed, api, bad_query, refuse_body, unprocessable};

/// What is asked for; the query of the request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// The program, by an absolute path; without this what is now where the running one was started from.
    pub binary: Option<PathBuf>,
    /// Also if the new program will not know the connections.
    #[serde(default)]
    pub lose_connections: bool,
}

pub(super) async fn ask<B: Backend>(
    State(backend): State<B>,
    question: Result<Query<Question>, QueryRejection>,
    body: Body,
) -> Result<Json<api::Upgrading>, Failed> {
    let Query(question) = question.map_err(bad_query)?;
    refuse_body(body).await?;
    backend.upgrade(question).await.map(Json).map_err(unprocessable)
}

pub(super) async fn last<B: Backend>(State(backend): State<B>) -> Json<api::Upgrades> {
    Json(backend.upgraded())
}
