//! What every report says of itself, whatever it measures.

use super::{
    machine::{Conditions, Machine, Software},
    scenario::Profile,
};
use serde::{Deserialize, Serialize};

/// Circumstances of a benchmark.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// Version of the report's format. A reader refuses another one.
    pub format: u32,
    /// What was measured: `ingest`, `dispatcher` or `scheduler`.
    pub subject: String,
    /// How thoroughly.
    pub profile: Profile,
    /// When it began, in UTC.
    pub began: String,
    /// How long it took, in seconds.
    pub took_seconds: f64,
    /// Bytes of each event's `data`.
    pub data_bytes: usize,
    /// Threads of the generator.
    pub generator_threads: usize,
    /// What was measured, and with what.
    pub software: Software,
    /// On what.
    pub machine: Machine,
    /// How busy it was otherwise.
    pub conditions: Conditions,
    /// What the figures lack, in sentences.
    pub remarks: Vec<String>,
}
