//! Reading a whole topic, as any user's own consumer group can.

use anyhow::{Result, ensure};
use floodway_schemas::event::Event;
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
}

/// Reads `topic` from its beginning to its end, without a group. Blocks; call it off the runtime.
///
/// # Errors
/// When the end is not reached within a minute, or a record is no event.
pub fn records(brokers: &str, topic: &str) -> Result<Vec<Record>> {
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
            Some(Ok(record)) => records.push(Record {
                id: Event::decode(record.payload().unwrap_or_default())?.id.into_owned(),
                partition: record.partition(),
            }),
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                ended.insert(partition);
            }
            // A broker that has just come back is found at another try.
            Some(Err(_)) | None => {}
        }
    }
    Ok(records)
}
