//! How every role talks to Kafka.

use floodway_schemas::topic::{Topic, TopicPrefix};
use rdkafka::{ClientConfig, producer::BaseProducer};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use std::{fs::File, path::PathBuf, time::Duration};
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

/// The mechanisms that the client is built with, and for which a name and a password are all it takes.
const SASL_MECHANISMS: [&str; 3] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];
/// The one that is taken if none is set.
const DEFAULT_SASL_MECHANISM: &str = "SCRAM-SHA-512";

/// The section `[kafka]`: encryption and authentication of connections to brokers.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KafkaSecurity {
    /// `FLOODWAY_KAFKA__SECURITY_PROTOCOL`: default `plaintext`.
    pub security_protocol: SecurityProtocol,
    /// `FLOODWAY_KAFKA__SASL_MECHANISM`: `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`; default `SCRAM-SHA-512`.
    pub sasl_mechanism: Option<String>,
    /// `FLOODWAY_KAFKA__SASL_USERNAME`
    pub sasl_username: Option<String>,
    /// `FLOODWAY_KAFKA__SASL_PASSWORD`
    pub sasl_password: Option<SecretString>,
    /// `FLOODWAY_KAFKA__CA_FILE`: PEM file of the authorities to trust; default the system's.
    pub ca_file: Option<PathBuf>,
}

const CA_FILE: &str = "kafka.ca_file (FLOODWAY_KAFKA__CA_FILE)";

/// How connections to brokers are protected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecurityProtocol {
    /// Neither encrypted nor authenticated.
    #[default]
    Plaintext,
    /// TLS.
    Ssl,
    /// SASL without TLS.
    SaslPlaintext,
    /// SASL over TLS.
    SaslSsl,
}

impl SecurityProtocol {
    fn as_str(self) -> &'static str {
        match self {
            Self::Plaintext => "plaintext",
            Self::Ssl => "ssl",
            Self::SaslPlaintext => "sasl_plaintext",
            Self::SaslSsl => "sasl_ssl",
        }
    }

    fn uses_sasl(self) -> bool {
        matches!(self, Self::SaslPlaintext | Self::SaslSsl)
    }

    fn uses_tls(self) -> bool {
        matches!(self, Self::Ssl | Self::SaslSsl)
    }
}

impl KafkaSecurity {
    fn validate(&self) -> Result<(), KafkaError> {
        let known = |mechanism: &String| SASL_MECHANISMS.contains(&mechanism.as_str());
        if !self.sasl_mechanism.as_ref().is_none_or(known) {
            let reason = format!("must be one of {}", SASL_MECHANISMS.join(", "));
            return Err(KafkaError::Setting {
                name: "kafka.sasl_mechanism (FLOODWAY_KAFKA__SASL_MECHANISM)",
                reason,
            });
        }
        let password = self.sasl_password.as_ref().map(|password| password.expose_secret());
        for (name, value) in [
            ("kafka.sasl_username (FLOODWAY_KAFKA__SASL_USERNAME)", self.sasl_username.as_deref()),
            ("kafka.sasl_password (FLOODWAY_KAFKA__SASL_PASSWORD)", password),
        ] {
            if self.security_protocol.uses_sasl() && value.is_none_or(str::is_empty) {
                let reason = "is required by kafka.security_protocol".to_owned();
                return Err(KafkaError::Setting { name, reason });
            }
        }
        match self.ca_file.as_ref().map(File::open) {
            Some(Err(error)) => Err(KafkaError::Setting { name: CA_FILE, reason: error.to_string() }),
            _ => Ok(()),
        }
    }
}

impl KafkaSettings {
    /// Checks all that can be checked without a connection.
    ///
    /// # Errors
    /// [`KafkaError::Setting`], naming the setting.
    pub fn validate(&self) -> Result<(), KafkaError> {
        self.security.validate()?;
        // A client connects only when it is asked for something; what it refuses, it refuses when it is created.
        let Err(error) = self.client().create::<BaseProducer>() else { return Ok(()) };
        // Of what is left to go wrong, the content of this file is what an operator controls.
        let tls = self.security.security_protocol.uses_tls();
        let name = if tls && self.security.ca_file.is_some() { CA_FILE } else { "kafka (FLOODWAY_KAFKA_*)" };
        Err(KafkaError::Setting { name, reason: error.to_string() })
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
        let security = &self.security;
        config.set("security.protocol", security.security_protocol.as_str());
        if security.security_protocol.uses_sasl() {
            config
                .set("sasl.mechanism", security.sasl_mechanism.as_deref().unwrap_or(DEFAULT_SASL_MECHANISM));
            if let Some(username) = &security.sasl_username {
                config.set("sasl.username", username);
            }
            if let Some(password) = &security.sasl_password {
                config.set("sasl.password", password.expose_secret());
            }
        }
        if let Some(file) = &security.ca_file {
            config.set("ssl.ca.location", file.display().to_string());
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(security: KafkaSecurity) -> String {
        let brokers = "127.0.0.1:1".to_owned();
        let settings = KafkaSettings { brokers, security, ..KafkaSettings::default() };
        settings.validate().unwrap_err().to_string()
    }

    #[test]
    fn what_needs_no_connection_is_checked_without_one() {
        let brokers = "127.0.0.1:1".to_owned();
        KafkaSettings { brokers, ..KafkaSettings::default() }.validate().unwrap();

        let error =
            refusal(KafkaSecurity { sasl_mechanism: Some("hunter2".to_owned()), ..KafkaSecurity::default() });
        assert!(error.starts_with("setting kafka.sasl_mechanism (FLOODWAY_KAFKA__SASL_MECHANISM): must be"));
        assert!(!error.contains("hunter2"), "{error}");

        let security_protocol = SecurityProtocol::SaslPlaintext;
        let error = refusal(KafkaSecurity { security_protocol, ..KafkaSecurity::default() });
        assert!(
            error.starts_with("setting kafka.sasl_username (FLOODWAY_KAFKA__SASL_USERNAME): is required")
        );
        let sasl_username = Some("floodway".to_owned());
        let error = refusal(KafkaSecurity { security_protocol, sasl_username, ..KafkaSecurity::default() });
        assert!(
            error.starts_with("setting kafka.sasl_password (FLOODWAY_KAFKA__SASL_PASSWORD): is required")
        );
    }

    #[test]
    fn an_authorities_file_that_is_absent_or_not_pem_is_named() {
        let absent = KafkaSecurity { ca_file: Some("/nowhere.pem".into()), ..KafkaSecurity::default() };
        let not_pem = KafkaSecurity {
            security_protocol: SecurityProtocol::Ssl,
            ca_file: Some(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml").into()),
            ..KafkaSecurity::default()
        };
        for security in [absent, not_pem] {
            let error = refusal(security);
            assert!(error.starts_with("setting kafka.ca_file (FLOODWAY_KAFKA__CA_FILE): "), "{error}");
        }
    }
}
