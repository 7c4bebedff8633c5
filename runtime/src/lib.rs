//! Process life, shared by every role: settings, logs, metrics, health, shutdown, and the clients of Kafka that
//! all roles set up alike.

pub mod admin;
pub mod backoff;
pub mod clock;
pub mod config_feed;
pub mod disk;
pub mod health;
pub mod kafka;
mod kafka_diagnosis;
mod kafka_security;
pub mod logging;
pub mod replaceable_producer;
pub mod retry_commands;
pub mod served_producer;
pub mod settings;
pub mod shutdown;
pub mod stall;
pub mod tally;
#[cfg(feature = "testing")]
pub mod testing;
pub mod topics;
pub mod witness;

use floodway_schemas::seal::SealingKeys;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// What every role is given when it is built.
#[derive(Debug, Clone)]
pub struct Context {
    /// How to reach Kafka.
    pub kafka: kafka::KafkaSettings,
    /// Opens and seals subscriptions' secrets.
    pub sealing: Arc<SealingKeys>,
    /// Where the role reports the state of what it depends on.
    pub health: health::Health,
    /// Cancelled when the process is to end: the role stops accepting, drains and returns.
    pub shutdown: CancellationToken,
}
