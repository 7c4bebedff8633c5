//! Why the dispatcher cannot run.

use floodway_runtime::{kafka::KafkaError, topics::TopicsError};
use thiserror::Error;

/// Why the dispatcher could not be built, or had to end.
#[derive(Debug, Error)]
pub enum Error {
    /// A setting cannot be used: correct it and start again.
    #[error("setting {0}")]
    Settings(String),
    /// Topics break a promise that the dispatcher relies on: correct them and start again.
    #[error(transparent)]
    Topics(#[from] TopicsError),
    /// A Kafka client could not be made at all; an unreachable cluster is not among the reasons.
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// The thread that reads subscriptions ended before it knew all of them: a defect, see the log.
    #[error("the feed of subscriptions ended unexpectedly")]
    ConfigFeed,
    /// The TLS library refused its own defaults.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

impl From<rdkafka::error::KafkaError> for Error {
    fn from(error: rdkafka::error::KafkaError) -> Self {
        Self::Kafka(error.into())
    }
}
