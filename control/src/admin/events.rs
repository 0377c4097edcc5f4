//! `GET /v1/events`.
//!
//! Each follower reads from the ring when its client has taken what it was sent before, so a client that does not read
//! costs what fits into its socket.

use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::{Backend, Failed, api};
use crate::events::Event;

/// The header of an answer that names the run whose events it has.
pub(super) const RUN: HeaderName = HeaderName::from_static("rvs-run");

/// What is asked for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    since: Option<u64>,
    /// The run that `since` is a number of; that of another one counts for nothing.
    run: Option<String>,
    #[serde(default)]
    follow: bool,
}

pub(super) async fn events<B: Backend>(
    State(backend): State<B>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, Failed> {
    let Query(Wanted { since, run, follow }) = wanted.map_err(|error| {
        let error = anyhow::anyhow!("{error}; expected since=N, a number, run=R, and follow=true or false");
        Failed(StatusCode::BAD_REQUEST, error)
    })?;
    let events = backend.events();
    let another = run.is_some_and(|run| run != events.run());
    let reader = events.read(if another { Some(0) } else { since }, follow);
    let run = events.run().to_owned();
    let lines = futures_util::stream::unfold(reader, |mut reader| async {
        let batch = reader.batch().await?;
        let mut lines = Vec::new();
        for event in batch {
            // Of these types none can fail to be written to memory.
            if serde_json::to_writer(&mut lines, &describe(&event)).is_ok() {
                lines.push(b'\n');
            }
        }
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(lines)), reader))
    });
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson".to_owned()), (RUN, run)];
    Ok((headers, Body::from_stream(lines)).into_response())
}

fn describe(event: &Event) -> api::Event {
    let details = match serde_json::to_value(&event.kind) {
        Ok(serde_json::Value::Object(details)) => details,
        // Every kind is an object.
        _ => serde_json::Map::new(),
    };
    api::Event {
        sequence: event.sequence,
        time: humantime::format_rfc3339_millis(event.time).to_string(),
        event: event.kind.name().to_owned(),
        text: event.kind.to_string(),
        details: details.into_iter().filter(|(key, _)| key != "event").collect(),
    }
}
