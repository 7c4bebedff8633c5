//! For integration tests: topics of their own on the real broker, and a way to it that can be disturbed.

mod relay;

pub use relay::KafkaRelay;

use crate::{
    Context, admin,
    health::Health,
    kafka::KafkaSettings,
    topics::{self, TopicPlan},
};
use floodway_schemas::{seal::SealingKeys, topic::Topic};
use metrics_exporter_prometheus::PrometheusHandle;
use rdkafka::{
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
};
use std::sync::{Arc, OnceLock};
use tokio_util::sync::CancellationToken;

/// Sealing keys of tests: 32 zero bytes.
pub const SEALING_KEY: &str = "test:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// A set of Floodway's topics under a prefix of its own.
#[derive(Debug)]
pub struct TestTopics {
    /// How to reach them.
    pub kafka: KafkaSettings,
}

impl TestTopics {
    /// Creates all topics with `partitions` partitions on the broker named by `FLOODWAY_KAFKA_BROKERS`.
    ///
    /// # Panics
    /// When the variable is not set or the broker does not answer: a missing server fails a test, it never skips one.
    pub async fn create(partitions: i32) -> Self {
        let kafka = kafka();
        let plan = TopicPlan { partitions, replication: 1, dev: true };
        if let Err(error) = topics::apply(&kafka, plan).await {
            panic!("test topics: {error}");
        }
        Self { kafka }
    }

    /// The same topics by a way that can be disturbed.
    ///
    /// # Panics
    /// When the broker's address is not one of IPv4 with a port, or no port is free.
    pub fn relayed(&self) -> (KafkaRelay, KafkaSettings) {
        match KafkaRelay::start(&self.kafka.brokers) {
            Ok(relay) => {
                let kafka = KafkaSettings { brokers: relay.brokers(), ..self.kafka.clone() };
                (relay, kafka)
            }
            Err(error) => panic!("a relay to {}: {error}", self.kafka.brokers),
        }
    }

    /// A role's context on these topics, with a health and a shutdown token of its own.
    pub fn context(&self) -> Context {
        context(self.kafka.clone())
    }

    /// Deletes the topics, as far as the broker lets it.
    pub async fn delete(self) {
        let Ok(admin) = self.kafka.client().create::<AdminClient<DefaultClientContext>>() else { return };
        let names: Vec<String> = Topic::ALL.iter().map(|topic| self.kafka.topic(*topic)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        // Best effort: a topic left behind under a random prefix disturbs nobody.
        let _ = admin.delete_topics(&names, &AdminOptions::new()).await;
    }
}

/// The sum of a counter of this process over all its labels. Only what is made after the first call is counted.
///
/// # Panics
/// When the process has another recorder of metrics.
pub fn counted(name: &str) -> f64 {
    static METRICS: OnceLock<PrometheusHandle> = OnceLock::new();
    let metrics = METRICS.get_or_init(|| match admin::install_metrics() {
        Ok(metrics) => metrics,
        Err(error) => panic!("metrics of tests: {error}"),
    });
    let text = metrics.render();
    let of_name = text.lines().filter_map(|line| line.strip_prefix(name));
    let values =
        of_name.filter(|rest| rest.starts_with([' ', '{'])).filter_map(|rest| rest.rsplit(' ').next());
    values.filter_map(|value| value.parse::<f64>().ok()).sum()
}

/// Settings for the broker named by `FLOODWAY_KAFKA_BROKERS`, with a random topic prefix; creates nothing.
///
/// # Panics
/// When the variable is not set.
pub fn kafka() -> KafkaSettings {
    let Ok(brokers) = std::env::var("FLOODWAY_KAFKA_BROKERS") else {
        panic!("FLOODWAY_KAFKA_BROKERS is not set: run `scripts/stack up` and `. .stack/env`")
    };
    let prefix = format!("t{:016x}-", rand::random::<u64>());
    match prefix.parse() {
        Ok(topic_prefix) => KafkaSettings { brokers, topic_prefix, security: Default::default() },
        Err(error) => panic!("{error}"),
    }
}

/// A role's context with a health and a shutdown token of its own.
///
/// # Panics
/// Never: the sealing key of tests is well-formed.
pub fn context(kafka: KafkaSettings) -> Context {
    match SealingKeys::parse(&SEALING_KEY.to_owned().into()) {
        Ok(keys) => Context {
            kafka,
            sealing: Arc::new(keys),
            health: Health::default(),
            shutdown: CancellationToken::new(),
        },
        Err(error) => panic!("{error}"),
    }
}
