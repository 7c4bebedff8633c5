//! What each request holds.

use serde::Serialize;

/// The shape of every request of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Workload {
    /// Events of one request. One is sent as an object, more as an array.
    pub events_per_request: usize,
    /// Bytes of each event's `data`, a JSON string with its quotes.
    pub data_bytes: usize,
    /// How well `data` can be compressed.
    pub entropy: Entropy,
    /// Different partition keys over all connections; 0 sends none.
    pub keys: u64,
    /// Content encoding of the body.
    pub encoding: Encoding,
    /// Type of every event.
    pub event_type: String,
    /// What types end with, in turns: a dot and a number in five digits. None if all events have the same type.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub numbers: Vec<u32>,
    /// Whether events carry the instant at which their request was due, as the extension `sentat`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stamped: bool,
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            events_per_request: 1,
            data_bytes: 500,
            entropy: Entropy::Text,
            keys: 0,
            encoding: Encoding::Identity,
            event_type: "load.event".to_owned(),
            numbers: Vec::new(),
            stamped: false,
        }
    }
}

/// How well `data` can be compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Entropy {
    /// Sentences that repeat: about a tenth remains.
    Text,
    /// Random characters of base64: about three quarters remain.
    Random,
}

/// Content encoding of bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// As it is.
    Identity,
    /// `content-encoding: gzip`.
    Gzip,
    /// `content-encoding: zstd`.
    Zstd,
}
