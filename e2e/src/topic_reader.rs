//! Reading a whole topic, as any user's own consumer group can.

use anyhow::{Result, ensure};
use floodway_schemas::{
    due::Due,
    event::Event,
    outcome::{Outcome, OutcomeKind, Via},
};
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
};
use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

/// Reads `topic` as the consumer group `group` from its beginning to its end, and returns every event's id, in no order.
/// Blocks; call it off the runtime.
///
/// # Errors
/// When the end is not reached within a minute, or a record is no event.
pub fn event_ids(brokers: &str, topic: &str, group: &str) -> Result<Vec<String>> {
    const DEADLINE: Duration = Duration::from_secs(60);
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", group)
        .set("auto.offset.reset", "earliest")
        .set("enable.partition.eof", "true")
        .create()?;
    let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(10))?;
    let partitions = metadata.topics().iter().map(|topic| topic.partitions().len()).sum::<usize>();
    consumer.subscribe(&[topic])?;
    let (mut ids, mut ended, started) = (Vec::new(), HashSet::new(), Instant::now());
    while ended.len() < partitions {
        ensure!(started.elapsed() < DEADLINE, "{topic}: the end was not reached");
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(record)) => {
                ids.push(Event::decode(record.payload().unwrap_or_default())?.id.into_owned())
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                ended.insert(partition);
            }
            // Of an error the client recovers by itself, or the deadline ends this.
            Some(Err(_)) | None => {}
        }
    }
    Ok(ids)
}

/// Where an event lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The event's id.
    pub id: String,
    /// The partition that has it.
    pub partition: i32,
    /// Its place in it.
    pub offset: i64,
    /// The one subscription that it is for; `None` when that is found out by the dispatcher.
    pub subscription: Option<String>,
}

impl Record {
    /// Of a record on `events`.
    fn of_event(partition: i32, offset: i64, payload: &[u8]) -> Result<Self> {
        Ok(Self { id: Event::decode(payload)?.id.into_owned(), partition, offset, subscription: None })
    }

    /// Of a record on `due`.
    fn of_due(partition: i32, offset: i64, payload: &[u8]) -> Result<Self> {
        let due = Due::decode(payload)?;
        let id = Event::decode(due.event.get().as_bytes())?.id.into_owned();
        Ok(Self { id, partition, offset, subscription: Some(due.subscription.to_string()) })
    }
}

/// Reads a topic of events from its beginning to its end, without a group. Blocks; call it off the runtime.
///
/// # Errors
/// When the end is not reached within a minute, or a record is no event.
pub fn records(brokers: &str, topic: &str) -> Result<Vec<Record>> {
    read(brokers, topic, Record::of_event)
}

/// The same of a topic of deliveries that are due.
///
/// # Errors
/// When the end is not reached within a minute, or a record is no such delivery.
pub fn due_records(brokers: &str, topic: &str) -> Result<Vec<Record>> {
    read(brokers, topic, Record::of_due)
}

/// What an outcome says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// The event's id.
    pub id: String,
    /// The decision.
    pub kind: OutcomeKind,
    /// Where the attempt was made.
    pub via: Via,
}

/// The same of `outcomes`, as long as nobody commanded anything about pending retries.
///
/// # Errors
/// When the end is not reached within a minute, or a record is no outcome.
pub fn outcomes(brokers: &str, topic: &str) -> Result<Vec<Decided>> {
    read(brokers, topic, |_, _, payload| {
        let outcome = Outcome::decode(payload)?;
        Ok(Decided { id: outcome.event_id.into_owned(), kind: outcome.kind, via: outcome.via })
    })
}

fn read<T>(brokers: &str, topic: &str, decode: impl Fn(i32, i64, &[u8]) -> Result<T>) -> Result<Vec<T>> {
    const DEADLINE: Duration = Duration::from_secs(60);
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "reads-without-a-group")
        .set("enable.partition.eof", "true")
        .create()?;
    let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(10))?;
    let mut partitions = TopicPartitionList::new();
    for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
        partitions.add_partition_offset(topic, partition.id(), Offset::Beginning)?;
    }
    ensure!(partitions.count() > 0, "{topic} does not exist");
    consumer.assign(&partitions)?;
    let (mut records, mut ended, started) = (Vec::new(), HashSet::new(), Instant::now());
    while ended.len() < partitions.count() {
        ensure!(started.elapsed() < DEADLINE, "{topic}: the end was not reached");
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(record)) => {
                let payload = record.payload().unwrap_or_default();
                records.push(decode(record.partition(), record.offset(), payload)?);
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                ended.insert(partition);
            }
            // A broker that has just come back is found at another try.
            Some(Err(_)) | None => {}
        }
    }
    Ok(records)
}
