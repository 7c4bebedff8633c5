//! Reading a whole topic, as any user's own consumer group can.

use anyhow::{Result, ensure};
use floodway_schemas::event::Event;
use rdkafka::{
    ClientConfig, Message,
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
            Some(Err(error)) => return Err(error.into()),
            None => {}
        }
    }
    Ok(ids)
}
