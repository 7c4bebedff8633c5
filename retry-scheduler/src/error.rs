//! What can stop the role.

use thiserror::Error;

/// Why the role did not start, or ended.
#[derive(Debug, Error)]
pub enum Error {
    /// A setting is out of its range.
    #[error("[retry_scheduler] {0}")]
    Settings(String),
    /// The topics are not as the role needs them.
    #[error(transparent)]
    Topics(#[from] floodway_runtime::topics::TopicsError),
    /// The database's schema is not the one of this version, or the database refuses to work.
    #[error(transparent)]
    Database(#[from] floodway_store::Error),
    /// The Kafka client refused its settings, or failed for good.
    #[error("Kafka client: {0}")]
    Kafka(#[from] rdkafka::error::KafkaError),
    /// The operating system did not give a thread.
    #[error("thread: {0}")]
    Thread(#[from] std::io::Error),
    /// A thread or task of the role panicked.
    #[error("{0} panicked")]
    Panicked(&'static str),
}
