//! Writing records to Kafka and waiting for their acknowledgement.

use floodway_runtime::{
    kafka::KafkaSettings,
    replaceable_producer::{Look, ReplaceableProducer},
    served_producer::ServedProducer,
    witness::Witness,
};
use rdkafka::{
    ClientConfig, ClientContext, Message,
    error::KafkaError,
    message::DeliveryResult,
    producer::{BaseRecord, Producer, ProducerContext},
    types::RDKafkaErrorCode,
};
use std::{sync::Arc, time::Duration};
use tokio::sync::oneshot;

/// Longest time from sending a record to its acknowledgement, in milliseconds: a person waits for it.
pub(crate) const MESSAGE_TIMEOUT_MS: &str = "5000";
/// Longest wait for records in flight when the process ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

type Answer = oneshot::Sender<Result<i64, KafkaError>>;

/// Answers each record's sender with its offset.
#[derive(Clone)]
pub(crate) struct Acknowledgements;

impl ClientContext for Acknowledgements {}

impl ProducerContext for Acknowledgements {
    type DeliveryOpaque = Box<Answer>;

    fn delivery(&self, result: &DeliveryResult<'_>, answer: Self::DeliveryOpaque) {
        let offset = match result {
            Ok(record) => Ok(record.offset()),
            Err((error, _)) => Err(error.clone()),
        };
        // Nobody waits any more when the request was cancelled.
        let _ = answer.send(offset);
    }
}

/// A producer for few records, each awaited. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Records(Arc<ReplaceableProducer<Acknowledgements>>);

/// A record that was handed over and not yet acknowledged.
pub(crate) struct InFlight(oneshot::Receiver<Result<i64, KafkaError>>);

impl Records {
    pub(crate) fn new(kafka: &KafkaSettings) -> Result<Self, KafkaError> {
        let mut config = kafka.producer();
        config.set("message.timeout.ms", MESSAGE_TIMEOUT_MS);
        Self::from_config(config)
    }

    pub(crate) fn from_config(config: ClientConfig) -> Result<Self, KafkaError> {
        Ok(Self(Arc::new(ReplaceableProducer::new(config, Acknowledgements)?)))
    }

    /// For what only the client itself can do. Not to be kept: [`Records::look`] may put another one in its place.
    pub(crate) fn producer(&self) -> Arc<ServedProducer<Acknowledgements>> {
        self.0.live()
    }

    /// Hands a record over; records of one partition are written in the order of these calls. Without a value it is a
    /// tombstone.
    pub(crate) fn send(&self, topic: &str, key: &str, value: Option<&[u8]>) -> Result<InFlight, KafkaError> {
        let (answer, acknowledged) = oneshot::channel();
        let mut record = BaseRecord::with_opaque_to(topic, Box::new(answer)).key(key);
        if let Some(value) = value {
            record = record.payload(value);
        }
        self.producer().send(record).map_err(|(error, _)| error)?;
        Ok(InFlight(acknowledged))
    }

    /// Asks the brokers for a topic, and replaces a client that has lost them. Blocks for some seconds.
    pub(crate) fn look(&self, topic: &str, witness: &Witness) -> Look {
        self.0.look(topic, witness)
    }

    /// Waits for records in flight. Call before the process ends.
    pub(crate) async fn flush(&self) {
        let producer = self.producer();
        let flushed = tokio::task::spawn_blocking(move || producer.flush(FLUSH_TIMEOUT)).await;
        if !matches!(flushed, Ok(Ok(()))) {
            tracing::warn!("records were still in flight at the end");
        }
    }
}

impl InFlight {
    const ABANDONED: Result<i64, KafkaError> =
        Err(KafkaError::MessageProduction(RDKafkaErrorCode::PurgeInflight));

    /// The record's offset, once all in-sync replicas have it.
    pub(crate) async fn acknowledged(self) -> Result<i64, KafkaError> {
        // The producer answers every record, at the latest when its timeout passes; it only vanishes at the end.
        self.0.await.unwrap_or(Self::ABANDONED)
    }

    /// The same, for a thread that may wait.
    pub(crate) fn blocking_acknowledged(self) -> Result<i64, KafkaError> {
        self.0.blocking_recv().unwrap_or(Self::ABANDONED)
    }
}
