//! Very many subscriptions at once: records for the configuration's topic, made after one that the control plane has
//! published. Created one by one over the REST API they would take longer than everything that is measured with them.

use crate::bench::{
    BenchError,
    installation::{SEALING_KEY_ID, Target},
};
use aes_gcm::{
    Aes256Gcm, KeyInit,
    aead::{Aead, Payload},
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer},
    types::RDKafkaErrorCode,
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Longest wait for Kafka.
const PATIENCE: Duration = Duration::from_secs(60);
/// One wait for a record, and before one is offered again to a full queue.
const POLL: Duration = Duration::from_millis(50);

/// A subscription to be made.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// Number of its tenant; none for the benchmark's own.
    pub(super) tenant: Option<u32>,
    pub(super) url: String,
    pub(super) event_type: String,
}

/// Publishes subscriptions that are like `pattern` but for their names, places and secrets.
pub(super) async fn publish(
    brokers: &str,
    target: &Target,
    pattern: &str,
    wanted: Vec<Wanted>,
) -> Result<(), BenchError> {
    let (brokers, topic) = (brokers.to_owned(), target.config_topic());
    let (sealing_key, pattern) = (target.sealing_key, format!("subscription/{pattern}"));
    let work = move || {
        let pattern = read(&brokers, &topic, &pattern)?;
        let producer: ThreadedProducer<DefaultProducerContext> =
            client(&brokers).set("enable.idempotence", "true").create()?;
        for wanted in &wanted {
            let id = random_id();
            let record = record(&pattern, wanted, &id, &sealing_key)?;
            send(&producer, &topic, &format!("subscription/{id}"), &record)?;
        }
        producer.flush(PATIENCE)?;
        Ok(())
    };
    let ended = tokio::task::spawn_blocking(work).await;
    ended.unwrap_or_else(|_| Err(std::io::Error::other("publishing subscriptions panicked").into()))
}

fn client(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("client.id", "floodway-bench");
    config
}

/// The record of an entity.
fn read(brokers: &str, topic: &str, key: &str) -> Result<Value, BenchError> {
    let consumer: BaseConsumer = client(brokers).set("group.id", "floodway-bench-config").create()?;
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(topic, 0, Offset::Beginning)?;
    consumer.assign(&assignment)?;
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let Some(message) = consumer.poll(POLL) else { continue };
        let message = message?;
        if message.key() == Some(key.as_bytes()) {
            return Ok(serde_json::from_slice(message.payload().unwrap_or_default())?);
        }
    }
    Err(BenchError::Topic { topic: topic.to_owned(), reason: format!("there is no {key}") })
}

/// A UUID of version 7, as every id is, but with a random time.
fn random_id() -> String {
    let bits = rand::random::<u128>() & !(0xf000_u128 << 64) & !(0xc000_u128 << 48)
        | (0x7000 << 64)
        | (0x8000 << 48);
    let hex = format!("{bits:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

fn record(pattern: &Value, wanted: &Wanted, id: &str, sealing_key: &[u8; 32]) -> Result<Vec<u8>, BenchError> {
    let mut record = pattern.clone();
    record["id"] = json!(id);
    record["url"] = json!(wanted.url);
    record["types"] = json!([wanted.event_type]);
    record["secrets"] = json!([{ "sealed": sealed(sealing_key, id)? }]);
    if let Some(number) = wanted.tenant {
        record["tenant"] = json!(format!("01938f2e-0000-7000-8000-{number:012x}"));
    }
    Ok(serde_json::to_vec(&record)?)
}

/// A new secret in the form in which secrets are published: see `schemas/src/seal.rs`.
fn sealed(sealing_key: &[u8; 32], id: &str) -> Result<String, BenchError> {
    let secret = format!("whsec_{}", STANDARD.encode(rand::random::<[u8; 24]>()));
    let nonce: [u8; 12] = rand::random();
    let payload = Payload { msg: secret.as_bytes(), aad: id.as_bytes() };
    let text = Aes256Gcm::new(sealing_key.into())
        .encrypt(&nonce.into(), payload)
        .map_err(|_| std::io::Error::other("a secret could not be sealed"))?;
    Ok(format!("fws1.{SEALING_KEY_ID}.{}", URL_SAFE_NO_PAD.encode([&nonce[..], &text].concat())))
}

fn send(
    producer: &ThreadedProducer<DefaultProducerContext>,
    topic: &str,
    key: &str,
    value: &[u8],
) -> Result<(), BenchError> {
    let mut record = BaseRecord::to(topic).partition(0).key(key).payload(value);
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), refused)) => {
                record = refused;
                std::thread::sleep(POLL);
            }
            Err((error, _)) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_uuids_of_version_7() {
        for _ in 0..100 {
            let id = random_id();
            assert_eq!((id.len(), &id[14..15]), (36, "7"), "{id}");
            assert!(matches!(&id[19..20], "8" | "9" | "a" | "b"), "{id}");
        }
    }

    #[test]
    fn a_record_is_its_pattern_but_for_names_places_and_secrets() {
        let pattern: Value =
            serde_json::from_str(include_str!("../../../../schemas/golden/config-subscription.json"))
                .unwrap();
        let wanted = Wanted {
            tenant: Some(7),
            url: "http://127.1.0.1:9/ok".to_owned(),
            event_type: "a.00001".to_owned(),
        };
        let id = random_id();
        let made: Value = serde_json::from_slice(&record(&pattern, &wanted, &id, &[7; 32]).unwrap()).unwrap();
        assert_eq!((made["id"].as_str(), made["types"][0].as_str()), (Some(id.as_str()), Some("a.00001")));
        assert_eq!(made["retry"], pattern["retry"]);
        assert!(made["secrets"][0]["sealed"].as_str().unwrap().starts_with("fws1.bench."));
        assert_ne!(made["tenant"], pattern["tenant"]);
    }
}
