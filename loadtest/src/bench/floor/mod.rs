//! Floors: the least that parts of the work cost. For ingest, a bare HTTP server that reads and answers the same requests,
//! and a bare Kafka producer that writes the same records; ingest can hardly cost less than both together. For the
//! dispatcher, a bare HTTP client that signs and posts the same webhooks. How much more they cost is what their own code
//! adds.

pub mod client;
pub mod http;
pub mod producer;

use super::BenchError;
use crate::child::{GuardedChild, last_lines};
use serde::de::DeserializeOwned;
use std::{collections::BTreeMap, path::Path, time::Duration};

/// Runs a floor that ends by itself as a process of its own, and reads the figures that it prints as its last line.
///
/// # Errors
/// When it cannot be started, does not end within `limit`, or prints something else.
pub async fn run_floor<T: DeserializeOwned>(
    loadtest: &Path,
    name: &str,
    options: &[(&str, String)],
    log: &Path,
    limit: Duration,
) -> Result<T, BenchError> {
    let mut arguments = vec!["floor", name];
    arguments.extend(options.iter().flat_map(|(option, value)| [*option, value]));
    let failed = |reason| BenchError::Command { command: format!("loadtest floor {name}"), reason };
    let mut child = GuardedChild::start(loadtest, &arguments, &BTreeMap::new(), log)?;
    let ended = tokio::time::timeout(limit, child.ended()).await;
    let _ = child.stop().await;
    let Ok(ended) = ended else {
        return Err(failed(format!("it did not end in time:\n{}", last_lines(log))));
    };
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let figures = text.lines().next_back().and_then(|line| serde_json::from_str(line).ok());
    figures.ok_or_else(|| failed(ended.to_string()))
}
