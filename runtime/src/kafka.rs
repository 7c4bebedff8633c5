//! How every role talks to Kafka.

pub use crate::kafka_security::{KafkaSecurity, SecurityProtocol};

use floodway_schemas::topic::{Topic, TopicPrefix};
use rdkafka::{ClientConfig, producer::BaseProducer};
use std::time::Duration;
use thiserror::Error;

/// How long a request to a broker may take when a person or a start-up waits for it.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The time from enqueueing to giving up on a record, in milliseconds. Ingest's publish deadline is not shorter: otherwise a
/// record could be written after its failure was reported.
pub const MESSAGE_TIMEOUT_MS: u32 = 10_000;

/// Kafka did not do what was asked.
#[derive(Debug, Error)]
pub enum KafkaError {
    /// Correct the setting.
    #[error("setting {name}: {reason}")]
    Setting {
        /// Its name, and its variable.
        name: &'static str,
        /// What is wrong with it; never its value.
        reason: String,
    },
    /// The client refused its settings, or could not be created.
    #[error("Kafka client: {0}")]
    Client(#[from] rdkafka::error::KafkaError),
    /// The operating system did not give a thread.
    #[error("thread for Kafka: {0}")]
    Thread(#[from] std::io::Error),
}

/// Where Kafka is, and how to get in.
#[derive(Debug, Clone, Default)]
pub struct KafkaSettings {
    /// `host:port`, separated by commas.
    pub brokers: String,
    /// What every topic name, and every consumer group, starts with.
    pub topic_prefix: TopicPrefix,
    /// Encryption and authentication.
    pub security: KafkaSecurity,
}

impl KafkaSettings {
    /// Checks all that can be checked without a connection.
    ///
    /// # Errors
    /// [`KafkaError::Setting`], naming the setting.
    pub fn validate(&self) -> Result<(), KafkaError> {
        self.security.validate()?;
        // A client connects only when it is asked for something; what it refuses, it refuses when it is created.
        match self.client().create::<BaseProducer>() {
            Ok(_) => Ok(()),
            Err(error) => {
                Err(KafkaError::Setting { name: "kafka (FLOODWAY_KAFKA_*)", reason: error.to_string() })
            }
        }
    }

    /// The full name of a topic.
    pub fn topic(&self, topic: Topic) -> String {
        topic.name(&self.topic_prefix)
    }

    /// The full name of a consumer group.
    pub fn group(&self, name: &str) -> String {
        format!("{}{name}", self.topic_prefix)
    }

    /// What every client has in common.
    pub fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", "floodway")
            // Come back soon after an outage: the default backs off to 10 s.
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "2000")
            .set("socket.keepalive.enable", "true")
            .set("allow.auto.create.topics", "false");
        self.security.apply(&mut config);
        config
    }

    /// A producer whose acknowledgement means that all in-sync replicas have the record.
    pub fn producer(&self) -> ClientConfig {
        let mut config = self.client();
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            // Measured against 0, 2 and 5 ms: the best of throughput and of CPU per record.
            .set("linger.ms", "1")
            .set("compression.type", "lz4")
            // The Java client's partitioner, so that other producers of the same key meet in one partition.
            .set("partitioner", "murmur2_random")
            .set("message.timeout.ms", MESSAGE_TIMEOUT_MS.to_string())
            .set("message.max.bytes", Topic::Outcomes.max_record_bytes().to_string())
            .set("queue.buffering.max.messages", "500000");
        config
    }

    /// A member of a consumer group that commits what it decides itself.
    pub fn consumer(&self, group: &str) -> ClientConfig {
        let mut config = self.reader();
        config
            .set("group.id", self.group(group))
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", "15000")
            .set("heartbeat.interval.ms", "3000")
            .set("auto.offset.reset", "earliest");
        config
    }

    /// A consumer without a group, for `assign`.
    pub fn reader(&self) -> ClientConfig {
        let mut config = self.client();
        config
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // The default of 1 s pauses fetching for that long once the local queue is full.
            .set("fetch.queue.backoff.ms", "10")
            .set("fetch.wait.max.ms", "50")
            .set("queued.max.messages.kbytes", "16384")
            .set("queued.min.messages", "10000")
            .set("max.partition.fetch.bytes", "2097152");
        config
    }
}
