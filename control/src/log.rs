//! Logs: one line an event, to stderr, where systemd and people look for them.

use std::io::{IsTerminal, stderr};

use anyhow::Context;
use tracing_subscriber::EnvFilter;

/// The environment variable with the filter, for when the command line says nothing.
pub const VARIABLE: &str = "RVS_LOG";

/// What a line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Time, level, message, `key=value`.
    Text,
    /// A JSON object.
    Json,
}

/// Starts logging. The filter is a level, or more: `info,rvs::health=debug`.
pub fn start(filter: Option<&str>, format: Format) -> anyhow::Result<()> {
    let variable = std::env::var(VARIABLE).ok().filter(|value| !value.is_empty());
    let filter = filter.or(variable.as_deref()).unwrap_or("info");
    let filter = EnvFilter::try_new(filter).with_context(|| {
        format!("{filter:?} is no log filter; expected e.g. \"debug\" or \"info,rvs::health=debug\"")
    })?;
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    let started = match format {
        Format::Text => logs.with_target(false).with_ansi(stderr().is_terminal()).try_init(),
        Format::Json => logs.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))
}
