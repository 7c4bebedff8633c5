//! Why a benchmark was not carried through.

use super::disk::DiskFull;
use crate::{
    admin_client::AdminError, child::ChildError, file_error::FileError, load::LoadError, send::SendError,
};
use thiserror::Error;

/// Why there is no report.
#[derive(Debug, Error)]
pub enum BenchError {
    /// The command line or the environment is to be changed.
    #[error("{0}")]
    Setting(String),
    /// The disk is too small.
    #[error(transparent)]
    Disk(#[from] DiskFull),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A process cannot be started, or ended by itself.
    #[error(transparent)]
    Child(#[from] ChildError),
    /// A command failed.
    #[error("{command} failed: {reason}")]
    Command {
        /// The command.
        command: String,
        /// What it said.
        reason: String,
    },
    /// Something did not become ready.
    #[error("{what} was not ready after {seconds} s: {health}\n{log}")]
    NotReady {
        /// What.
        what: String,
        /// The deadline.
        seconds: u64,
        /// What it says of itself.
        health: String,
        /// End of its log.
        log: String,
    },
    /// The control plane did not do what it was asked.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The probe could not be sent.
    #[error(transparent)]
    Send(#[from] SendError),
    /// The load could not be generated, or the topic not be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Kafka did not do what it was asked.
    #[error("Kafka: {0}")]
    Kafka(#[from] rdkafka::error::KafkaError),
    /// Kafka refused something about a topic.
    #[error("topic {topic}: {reason}")]
    Topic {
        /// Its name.
        topic: String,
        /// Why.
        reason: String,
    },
    /// PostgreSQL did not do what it was asked.
    #[error("PostgreSQL: {0}")]
    Database(#[from] tokio_postgres::Error),
    /// The operating system did not give what was asked.
    #[error(transparent)]
    System(#[from] std::io::Error),
    /// A kept report cannot be read, or a result cannot be written as JSON.
    #[error("the report is not usable: {0}")]
    Report(#[from] serde_json::Error),
    /// A signal came before the end.
    #[error("interrupted")]
    Interrupted,
}

impl BenchError {
    /// Whether the command line or the environment is to be changed, rather than anything that ran.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Setting(_) | Self::Disk(_) | Self::File(_) | Self::Report(_) => true,
            Self::Child(error) => !matches!(error, ChildError::Ended { .. }),
            Self::Load(error) => error.is_usage(),
            _ => false,
        }
    }
}
