//! Compares a run's ledger with what is on the topic, or with what a receiver got.

use super::{
    bitmap::Bitmap,
    error::LoadError,
    event_id::{self, EventId, IdFinder},
    ledger::Ledger,
};
use crate::receive;
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    types::RDKafkaErrorCode,
};
use serde::Serialize;
use std::{
    thread,
    time::{Duration, Instant},
};

/// Longest wait for the brokers to say where a partition ends.
const METADATA_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time without a record before the reading counts as failed.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// One wait for records.
const POLL: Duration = Duration::from_millis(200);
/// Lost events that a reconciliation names.
const SAMPLES: usize = 10;

/// Where the events of a run end up.
#[derive(Debug, Clone)]
pub struct KafkaTopic {
    /// `host:port`, separated by commas.
    pub brokers: String,
    /// Name of the topic, prefix included.
    pub topic: String,
    /// Further settings of the client, such as those for encryption.
    pub settings: Vec<(String, String)>,
}

/// The ends of a topic's partitions at one moment: what is read afterwards is newer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicEnds(
    /// By partition.
    pub Vec<i64>,
);

/// What a reconciliation found.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Reconciliation {
    /// Events that were sent.
    pub sent: u64,
    /// Events that were acknowledged.
    pub acknowledged: u64,
    /// Of these, not found: must be 0.
    pub lost: u64,
    /// Ids of some of the lost events.
    pub lost_samples: Vec<String>,
    /// Found more often than once, counted once per repetition.
    pub repeated: u64,
    /// Neither acknowledged nor refused, and found.
    pub unacknowledged_found: u64,
    /// Refused with certainty, and found all the same: must be 0.
    pub refused_found: u64,
    /// Acknowledged and found behind a later event of the same connection and key: must be 0. Without keys nothing is
    /// promised, and it is 0.
    pub out_of_order: u64,
    /// Found on another partition than an earlier event of the same connection and key: must be 0.
    pub moved: u64,
    /// Records that are not of this run.
    pub foreign: u64,
    /// Records read.
    pub records: u64,
    /// Seconds that the reading took.
    pub seconds: f64,
}

impl Reconciliation {
    /// What must not be, in words; empty if everything adds up.
    pub fn faults(&self) -> Vec<String> {
        [
            (self.lost, "acknowledged events are lost"),
            (self.refused_found, "events are stored that were refused"),
            (self.out_of_order, "events are behind a later one of their key"),
            (self.moved, "events are on another partition than earlier ones of their key"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect()
    }
}

/// Notes where a topic ends, before a run. Blocks: call it on a thread of its own.
pub fn topic_ends(topic: &KafkaTopic) -> Result<TopicEnds, LoadError> {
    let consumer = topic.consumer()?;
    let metadata = consumer.fetch_metadata(Some(&topic.topic), METADATA_TIMEOUT)?;
    let partitions = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
    if partitions == 0 {
        return Err(LoadError::Incomplete(format!("there is no topic {:?}", topic.topic)));
    }
    let end = |partition| watermarks(&consumer, &topic.topic, partition).map(|(_, end)| end);
    Ok(TopicEnds((0..partitions as i32).map(end).collect::<Result<_, _>>()?))
}

/// Where a partition begins and ends; asked again while its leader changes, as it does right after the topic was made.
fn watermarks(consumer: &BaseConsumer, topic: &str, partition: i32) -> Result<(i64, i64), KafkaError> {
    let began = Instant::now();
    loop {
        match consumer.fetch_watermarks(topic, partition, METADATA_TIMEOUT) {
            Err(error) if is_electing(&error) && began.elapsed() < METADATA_TIMEOUT => thread::sleep(POLL),
            result => return result,
        }
    }
}

fn is_electing(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{LeaderNotAvailable, NotLeaderForPartition};
    matches!(error.rdkafka_error_code(), Some(LeaderNotAvailable | NotLeaderForPartition))
}

/// Reads what a run left on the topic, from the ends noted before it to the present ends. Blocks: call it on a thread
/// of its own.
pub fn reconcile_topic(
    ledger: &Ledger,
    topic: &KafkaTopic,
    before: &TopicEnds,
) -> Result<Reconciliation, LoadError> {
    let began = Instant::now();
    let consumer = topic.consumer()?;
    // An acknowledged record is below the end: all replicas that count have it.
    let after = topic_ends(topic)?;
    if after.0.len() != before.0.len() {
        return Err(LoadError::Incomplete("its partitions became more during the run".to_owned()));
    }
    let mut comparison = Comparison::new(ledger);
    let finder = IdFinder::new(ledger.run());
    read(&consumer, &topic.topic, before, &after, |partition, record| {
        comparison.record(partition, finder.find(record));
    })?;
    Ok(Reconciliation { seconds: began.elapsed().as_secs_f64(), ..comparison.finish() })
}

/// Compares a run with what arrived at one path of a receiver in this process. Order is not compared: retries change it.
pub fn reconcile_receiver(
    ledger: &Ledger,
    receiver: &receive::ledger::Ledger,
    path: &str,
) -> Result<Reconciliation, LoadError> {
    let began = Instant::now();
    if receiver.untracked() > 0 {
        return Err(LoadError::Incomplete(format!(
            "the receiver had no room for {} arrivals",
            receiver.untracked()
        )));
    }
    let mut comparison = Comparison::new(ledger);
    receiver.for_each(path, |_, entry| {
        let id = entry.event_id.as_deref().and_then(|id| event_id::read(id, ledger.run()));
        for _ in 0..entry.successes {
            comparison.found(id);
        }
    });
    Ok(Reconciliation { seconds: began.elapsed().as_secs_f64(), ..comparison.finish() })
}

impl KafkaTopic {
    fn consumer(&self) -> Result<BaseConsumer, KafkaError> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            // Never joined: the client insists on a name even for partitions that are assigned by hand.
            .set("group.id", "floodway-loadtest-reconcile")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("fetch.wait.max.ms", "100")
            .set("fetch.message.max.bytes", "8388608")
            .set("queued.max.messages.kbytes", "131072")
            .set("queued.min.messages", "1000000");
        for (name, value) in &self.settings {
            config.set(name, value);
        }
        config.create()
    }
}

/// Shows every record between the two ends of a topic.
fn read(
    consumer: &BaseConsumer,
    topic: &str,
    from: &TopicEnds,
    to: &TopicEnds,
    mut show: impl FnMut(i32, &[u8]),
) -> Result<(), LoadError> {
    let mut open = vec![false; from.0.len()];
    let mut assignment = TopicPartitionList::new();
    for (partition, (&from, &to)) in from.0.iter().zip(&to.0).enumerate() {
        if from < to {
            let (low, _) = watermarks(consumer, topic, partition as i32)?;
            if low > from {
                return Err(LoadError::Incomplete(format!("records of partition {partition} were deleted")));
            }
            assignment.add_partition_offset(topic, partition as i32, Offset::Offset(from))?;
            open[partition] = true;
        }
    }
    let mut left = open.iter().filter(|open| **open).count();
    if left == 0 {
        return Ok(());
    }
    consumer.assign(&assignment)?;
    let mut quiet = Duration::ZERO;
    while left > 0 {
        match consumer.poll(POLL) {
            None => {
                quiet += POLL;
                if quiet > STALL_TIMEOUT {
                    return Err(LoadError::Incomplete("its records do not arrive".to_owned()));
                }
            }
            Some(Err(error)) if is_passing(&error) => {}
            Some(Err(error)) => return Err(error.into()),
            Some(Ok(record)) => {
                quiet = Duration::ZERO;
                let (partition, offset) = (record.partition(), record.offset());
                let end = to.0[partition as usize];
                if offset < end {
                    show(partition, record.payload().unwrap_or_default());
                }
                if offset + 1 >= end && std::mem::replace(&mut open[partition as usize], false) {
                    left -= 1;
                }
            }
        }
    }
    Ok(())
}

/// Whether the client goes on by itself.
fn is_passing(error: &KafkaError) -> bool {
    !error.rdkafka_error_code().is_some_and(|code| {
        matches!(
            code,
            RDKafkaErrorCode::Fatal
                | RDKafkaErrorCode::AutoOffsetReset
                | RDKafkaErrorCode::OffsetOutOfRange
                | RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::TopicAuthorizationFailed
        )
    })
}

/// A comparison under way.
struct Comparison<'l> {
    ledger: &'l Ledger,
    seen: Vec<Bitmap>,
    /// By connection and key: the last event, see [`Last`].
    last: Vec<Box<[Last]>>,
    found: Reconciliation,
}

/// The highest number of a key so far, plus one, in the lower 48 bits, and its partition above; 0 before the first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Last(u64);

const NUMBER_BITS: u32 = 48;

impl<'l> Comparison<'l> {
    fn new(ledger: &'l Ledger) -> Self {
        let connections = ledger.connections.len();
        let slots = |connection| ledger.keys.of_connection(connection as u32) as usize;
        Self {
            ledger,
            seen: vec![Bitmap::default(); connections],
            last: (0..connections)
                .map(|connection| vec![Last::default(); slots(connection)].into())
                .collect(),
            found: Reconciliation::default(),
        }
    }

    /// Takes in a record of the topic, in the order of its partition.
    fn record(&mut self, partition: i32, id: Option<EventId>) {
        if self.found(id)
            && let Some(id) = id
        {
            self.order(partition, id);
        }
    }

    /// Takes in something found; whether it is an event of this run that was not found before.
    fn found(&mut self, id: Option<EventId>) -> bool {
        self.found.records += 1;
        let connection = id.and_then(|id| Some((id, self.ledger.connections.get(id.connection as usize)?)));
        let Some((id, _)) = connection.filter(|(id, connection)| id.number < connection.sent) else {
            self.found.foreign += 1;
            return false;
        };
        let is_new = self.seen[id.connection as usize].insert(id.number);
        self.found.repeated += u64::from(!is_new);
        is_new
    }

    /// Compares an event's place with those of its key before. A connection sends its next request when it has the
    /// answer to the one before, so an event that was acknowledged is on the topic before the next one is sent. One whose
    /// answer never came may come later.
    fn order(&mut self, partition: i32, id: EventId) {
        let slots = &mut self.last[id.connection as usize];
        if slots.is_empty() {
            return;
        }
        let slot = &mut slots[self.ledger.keys.slot(id) as usize];
        if *slot != Last::default() {
            self.found.moved += u64::from(slot.partition() != partition);
        }
        if id.number + 1 > slot.number() {
            *slot = Last::new(partition, id.number + 1);
        } else if self.ledger.connections[id.connection as usize].acknowledged.contains(id.number) {
            self.found.out_of_order += 1;
        }
    }

    fn finish(self) -> Reconciliation {
        let mut found = self.found;
        found.sent = self.ledger.sent();
        found.acknowledged = self.ledger.acknowledged();
        for (number, (connection, seen)) in self.ledger.connections.iter().zip(&self.seen).enumerate() {
            found.lost += connection.acknowledged.len() - connection.acknowledged.common(seen);
            found.unacknowledged_found += connection.unknown.common(seen);
            found.refused_found += connection.refused.common(seen);
            let missing = SAMPLES - found.lost_samples.len();
            let lost = connection.acknowledged.without(seen).take(missing);
            found.lost_samples.extend(
                lost.map(|lost| EventId { connection: number as u32, number: lost }.text(self.ledger.run())),
            );
        }
        found
    }
}

impl Last {
    fn new(partition: i32, number: u64) -> Self {
        Self((partition as u64) << NUMBER_BITS | number)
    }

    fn partition(self) -> i32 {
        (self.0 >> NUMBER_BITS) as i32
    }

    fn number(self) -> u64 {
        self.0 & ((1 << NUMBER_BITS) - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        load::{event_id::Keys, ledger::ConnectionLedger},
        send::answer::Fate,
    };

    /// Two connections with a key each: 0 has five acknowledged events, 1 an acknowledged, a refused and an unknown one.
    fn ledger(keys: u64) -> Ledger {
        let mut first = ConnectionLedger { sent: 5, ..ConnectionLedger::default() };
        first.settle_all(0, 5, Fate::Accepted);
        let mut second = ConnectionLedger { sent: 3, ..ConnectionLedger::default() };
        second.settle_each(0, &[Fate::Accepted, Fate::Refused(400), Fate::Unknown(503)]);
        Ledger::new("run".to_owned(), Keys::new(keys, 2), vec![first, second])
    }

    fn compare(keys: u64, records: &[(i32, u32, u64)]) -> Reconciliation {
        let ledger = ledger(keys);
        let mut comparison = Comparison::new(&ledger);
        for &(partition, connection, number) in records {
            comparison.record(partition, Some(EventId { connection, number }));
        }
        comparison.finish()
    }

    const COMPLETE: [(i32, u32, u64); 6] = [(0, 0, 0), (1, 1, 0), (0, 0, 1), (0, 0, 2), (0, 0, 3), (0, 0, 4)];

    #[test]
    fn what_was_acknowledged_and_is_there_once_and_in_order_adds_up() {
        let found = compare(2, &COMPLETE);
        assert!(found.faults().is_empty());
        assert_eq!((found.sent, found.acknowledged, found.records), (8, 6, 6));
        assert_eq!((found.repeated, found.foreign), (0, 0));
    }

    #[test]
    fn an_acknowledged_event_that_is_not_there_is_lost() {
        let found = compare(2, &COMPLETE[..4]);
        assert_eq!((found.lost, found.lost_samples.len()), (2, 2));
        assert_eq!(found.lost_samples[0], "run-00000-000000000003");
        assert_eq!(found.faults(), ["2 acknowledged events are lost"]);
    }

    #[test]
    fn repeats_are_counted_and_are_not_out_of_order() {
        let found = compare(2, &[&COMPLETE[..], &[(0, 0, 1), (0, 0, 1)]].concat());
        assert_eq!((found.repeated, found.out_of_order, found.lost), (2, 0, 0));
    }

    #[test]
    fn what_was_not_acknowledged_may_be_there_and_what_was_refused_must_not() {
        let found = compare(2, &[&COMPLETE[..], &[(1, 1, 2), (1, 1, 1)]].concat());
        assert_eq!((found.unacknowledged_found, found.refused_found), (1, 1));
        assert_eq!(found.faults().len(), 1, "{:?}", found.faults());
    }

    #[test]
    fn an_acknowledged_event_behind_a_later_one_of_its_key_is_out_of_order() {
        let swapped = [(0, 0, 0), (1, 1, 0), (0, 0, 2), (0, 0, 1), (0, 0, 3), (0, 0, 4)];
        assert_eq!(compare(2, &swapped).out_of_order, 1);
        assert_eq!(compare(0, &swapped).out_of_order, 0, "without keys no order is promised");
        // Numbers 0, 2 and 4 have another key than 1 and 3.
        assert_eq!(compare(4, &swapped).out_of_order, 0);
    }

    #[test]
    fn a_key_that_changes_its_partition_is_seen() {
        let mut moved = COMPLETE;
        moved[5].0 = 3;
        assert_eq!(compare(2, &moved).moved, 1);
    }

    #[test]
    fn records_of_others_are_foreign() {
        let ledger = ledger(2);
        let mut comparison = Comparison::new(&ledger);
        for id in [None, Some((7, 0)), Some((0, 5))] {
            comparison.record(0, id.map(|(connection, number)| EventId { connection, number }));
        }
        assert_eq!(comparison.finish().foreign, 3);
    }
}
