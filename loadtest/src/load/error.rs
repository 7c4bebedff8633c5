//! Why a run or a reconciliation did not happen.

use crate::send::InvalidTarget;
use rdkafka::error::KafkaError;
use thiserror::Error;

/// Why there is no result.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The plan contradicts itself; the text names the setting.
    #[error("{0}")]
    Plan(String),
    /// No request can be made.
    #[error(transparent)]
    Target(#[from] InvalidTarget),
    /// No connection could be made at the start.
    #[error("cannot connect to {address}: {error}")]
    Connect {
        /// Host and port.
        address: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// It was stopped before it began.
    #[error("stopped before the first request")]
    Stopped,
    /// The first answers say that the key is not accepted.
    #[error("ingest answered {0}: is the API key right?")]
    Unauthorized(u16),
    /// The system refused a thread, a timer or a socket's setting.
    #[error("the generator cannot run: {0}")]
    System(#[from] std::io::Error),
    /// A thread of the generator panicked.
    #[error("a thread of the generator failed")]
    Thread,
    /// The topic cannot be read.
    #[error("cannot read the topic: {0}")]
    Kafka(#[from] KafkaError),
    /// The topic can be read, but does not tell the whole run.
    #[error("the topic does not tell the whole run: {0}")]
    Incomplete(String),
}

impl LoadError {
    /// Whether the caller asked for something impossible, rather than something failed.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Plan(_) | Self::Target(_))
    }
}
