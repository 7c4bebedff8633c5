//! Outcomes as the dispatcher writes them, produced without a dispatcher.

use super::scenario::Shape;
use crate::bench::{BenchError, ingest::DATA_BYTES};
use rdkafka::{
    ClientConfig, ClientContext,
    error::KafkaError,
    message::DeliveryResult,
    producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer},
    types::RDKafkaErrorCode,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// Whose deliveries they are.
pub(super) const TENANT: &str = "01938f2e-0000-7000-8000-000000000001";
/// Subscriptions that they are spread over.
const SUBSCRIPTIONS: u64 = 100;
/// What the event says of itself: when its retry is due, in milliseconds, so that whoever reads it at the end knows.
pub(super) const DUE_ATTRIBUTE: &str = "\"duems\":";
/// Pause before a record is offered again to a full queue.
const FULL_PAUSE: Duration = Duration::from_millis(1);
/// Longest wait for what is in flight.
const FLUSH: Duration = Duration::from_secs(30);

/// The attempt's headers and timings, as a dispatcher notes them.
const EXCHANGE: &str = r#"{"address":"127.0.0.1:9200","reused":true,"timings":{"first_byte_us":1834,"total_us":1911},"request_headers":[{"name":"content-type","value":"application/json"},{"name":"user-agent","value":"Floodway"},{"name":"webhook-id","value":"order-1"},{"name":"webhook-timestamp","value":"1795275240"},{"name":"webhook-signature","value":"[redacted]"}],"response_headers":[{"name":"content-type","value":"text/plain"},{"name":"content-length","value":"2"}]}"#;

/// The id of one of the subscriptions.
pub(super) fn subscription(number: u64) -> String {
    format!("01938f2e-0000-7000-8000-{:012x}", 2 + number % SUBSCRIPTIONS)
}

/// An event's envelope; its retry is due at `due_ms`.
pub(super) fn event(number: u64, due_ms: u64) -> String {
    format!(
        "{{\"specversion\":\"1.0\",\"id\":\"order-{number:010}\",\"source\":\"/bench\",\"type\":\"load.test\",\
         \"time\":\"2026-11-22T01:02:03.456Z\",\"subject\":\"customer-{}\",\"datacontenttype\":\"application/json\",\
         {DUE_ATTRIBUTE}{due_ms:013},\"data\":{{\"text\":\"{}\"}}}}",
        number % 1000,
        data()
    )
}

fn data() -> String {
    const TEXT: &str = "the quick brown fox jumps over the lazy dog and runs on ";
    TEXT.chars().cycle().take(DATA_BYTES - 12).collect()
}

/// The value of an `outcomes` record: the attempt ended at `at_ms`, the next one is due at `due_ms`.
pub(super) fn outcome(shape: Shape, number: u64, at_ms: u64, due_ms: u64) -> String {
    let head = |kind: &str| {
        format!(
            "{{\"v\":1,\"cause\":\"events:01938f2e-0000-4000-8000-000000000003:5:{number}\",\"kind\":\"{kind}\",\
             \"tenant\":\"{TENANT}\",\"subscription\":\"{}\",\"event_id\":\"order-{number:010}\",\
             \"event_type\":\"load.test\",\"key\":\"customer-{}\",\"attempt\":1,\"since\":{at_ms},\"at\":{at_ms}",
            subscription(number),
            number % 1000,
        )
    };
    let failed =
        || "\"status\":503,\"error\":\"status\",\"duration_ms\":12,\"response\":\"upstream unavailable\"";
    match shape {
        Shape::Retry => {
            format!("{},\"not_before\":{due_ms},\"event\":{}}}", head("deferred"), event(number, due_ms))
        }
        Shape::RetryAndHistory => format!(
            "{},\"not_before\":{due_ms},{},\"event\":{}}}",
            head("retry"),
            failed(),
            event(number, due_ms)
        ),
        Shape::History => {
            format!("{},\"status\":200,\"duration_ms\":12,\"record\":true}}", head("delivered"))
        }
        Shape::Exchange => format!(
            "{},\"status\":200,\"duration_ms\":12,\"exchange\":{EXCHANGE},\"record\":true}}",
            head("delivered")
        ),
    }
}

/// What counts deliveries.
#[derive(Default)]
struct Reports {
    failed: Arc<AtomicU64>,
}

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if result.is_err() {
            self.failed.fetch_add(1, Relaxed);
        }
    }
}

/// Writes to `outcomes`.
pub(super) struct OutcomesProducer {
    producer: ThreadedProducer<Reports>,
    failed: Arc<AtomicU64>,
    topic: String,
    partitions: u64,
}

impl OutcomesProducer {
    /// One for the topic of an installation.
    ///
    /// # Errors
    /// When the client cannot be created.
    pub(super) fn new(brokers: &str, prefix: &str, partitions: i32) -> Result<Self, BenchError> {
        let reports = Reports::default();
        let failed = Arc::clone(&reports.failed);
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", brokers)
            .set("client.id", "floodway-bench")
            .set("enable.idempotence", "true")
            .set("compression.type", "lz4")
            .set("linger.ms", "5")
            .set("queue.buffering.max.kbytes", "131072");
        Ok(Self {
            producer: config.create_with_context(reports)?,
            failed,
            topic: format!("{prefix}outcomes"),
            partitions: u64::try_from(partitions.max(1)).unwrap_or(1),
        })
    }

    /// Writes one, to the partitions in turn. Blocks while the queue is full.
    ///
    /// # Errors
    /// When the client refuses it for another reason.
    pub(super) fn write(&self, number: u64, value: &str) -> Result<(), BenchError> {
        let key = format!("{}/customer-{}", subscription(number), number % 1000);
        let partition = i32::try_from(number % self.partitions).unwrap_or(0);
        let mut record: BaseRecord<'_, str, str> =
            BaseRecord::to(&self.topic).partition(partition).key(key.as_str()).payload(value);
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    record = back;
                    std::thread::sleep(FULL_PAUSE);
                }
                Err((error, _)) => return Err(error.into()),
            }
        }
    }

    /// Waits until Kafka has everything.
    ///
    /// # Errors
    /// When it does not take all of it.
    pub(super) fn flush(&self) -> Result<(), BenchError> {
        self.producer.flush(FLUSH)?;
        match self.failed.load(Relaxed) {
            0 => Ok(()),
            failed => Err(BenchError::Topic {
                topic: self.topic.clone(),
                reason: format!("{failed} outcomes were not taken"),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_json_and_carry_what_their_kind_needs() {
        for (shape, has_event) in [
            (Shape::Retry, true),
            (Shape::RetryAndHistory, true),
            (Shape::History, false),
            (Shape::Exchange, false),
        ] {
            let text = outcome(shape, 7, 1_795_275_240_123, 1_795_275_250_123);
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(value["event"]["duems"].as_u64(), has_event.then_some(1_795_275_250_123));
            assert_eq!(value.get("not_before").is_some(), has_event, "{text}");
        }
    }
}
