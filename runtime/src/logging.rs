//! Logs on standard error.

use serde::Deserialize;
use std::io::IsTerminal;
use thiserror::Error;
use tracing_subscriber::{EnvFilter, fmt};

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The filter does not parse.
#[derive(Debug, Error)]
#[error("setting log (FLOODWAY_LOG): {0}")]
pub struct InvalidFilter(String);

/// Starts logging to standard error. `filter` is a level or `tracing` directives, for example `info,floodway_ingest=debug`.
pub fn start(filter: &str, format: LogFormat) -> Result<(), InvalidFilter> {
    let filter = EnvFilter::try_new(filter).map_err(|error| InvalidFilter(error.to_string()))?;
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| InvalidFilter(error.to_string()))
}
