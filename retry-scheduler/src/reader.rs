//! Reading one partition of `outcomes` from a given offset on.
//!
//! Every shard has a consumer of its own that is told its partition and offset and is in no group; the member of the
//! group (see [`crate::members`]) only learns which partitions are assigned. Why: the place to read from is in the
//! database, and is known only after a takeover that may have to wait for it, long after the rebalance callback has to
//! have returned. With split queues of the member's consumer this would need a pause, a seek and the filtering of
//! what was fetched before, over queues that have lost wake-ups, and every return to an earlier offset the same again.
//! A consumer of its own starts exactly where it is told, is dropped to forget everything it fetched, and bounds its
//! memory per shard; not polling it stops its fetching when its queue is full. The price is its threads and connections,
//! which are idle most of the time.

use floodway_runtime::{
    kafka::{KafkaSettings, REQUEST_TIMEOUT},
    stall::Blindness,
    witness::Witness,
};
use floodway_schemas::{UnixMillis, topic::Topic};
use rdkafka::{
    ClientContext, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::{KafkaError, RDKafkaErrorCode},
    message::BorrowedMessage,
};
use std::time::{Duration, Instant};

/// Most fetched data that waits in memory, in KiB.
const QUEUE_KBYTES: &str = "8192";

/// Longest wait of a fetch for data that is not there yet, in milliseconds; data that arrives is answered at once.
const FETCH_WAIT_MS: &str = "500";

/// Longest wait for the log's end.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// Longest wait of a poll while the time of one record is looked up.
const POLL: Duration = Duration::from_millis(100);

/// One partition of `outcomes`.
pub(crate) struct Reader {
    consumer: BaseConsumer<Quiet>,
    topic: String,
    shard: i32,
}

/// What a poll yields.
pub(crate) enum Polled<'r> {
    /// A record.
    Record(BorrowedMessage<'r>),
    /// The log's end: nothing more for now.
    End,
    /// Nothing in time, or a passing error.
    Nothing,
    /// The next offset is no longer in the log.
    OutOfRange,
}

/// Sends the client's errors where they disturb nobody: the role's own probe says when Kafka is away.
struct Quiet;

impl ClientContext for Quiet {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "outcomes reader: {reason}");
    }
}

impl ConsumerContext for Quiet {}

impl Reader {
    /// A reader that has not started.
    pub(crate) fn new(kafka: &KafkaSettings, shard: i32) -> Result<Self, KafkaError> {
        use rdkafka::config::FromClientConfigAndContext;
        let mut config = kafka.reader();
        config
            // The client asks for a group's name even where none is joined.
            .set("group.id", kafka.group("retry-scheduler-reader"))
            // A place that is not in the log is an error to be told, not to be papered over.
            .set("auto.offset.reset", "error")
            // Tells a log that has nothing more from a client that stopped.
            .set("enable.partition.eof", "true")
            .set("queued.max.messages.kbytes", QUEUE_KBYTES)
            .set("fetch.wait.max.ms", FETCH_WAIT_MS);
        let consumer = BaseConsumer::from_config_and_context(&config, Quiet)?;
        Ok(Self { consumer, topic: kafka.topic(Topic::Outcomes), shard })
    }

    /// First offset in the log, and the one after the last.
    pub(crate) fn bounds(&self) -> Result<(i64, i64), KafkaError> {
        self.consumer.fetch_watermarks(&self.topic, self.shard, REQUEST_TIMEOUT)
    }

    /// The offset after the log's last one. Waits only briefly: whoever asks has other work.
    pub(crate) fn end(&self) -> Result<i64, KafkaError> {
        self.consumer.fetch_watermarks(&self.topic, self.shard, END_PATIENCE).map(|(_, end)| end)
    }

    /// Whether its client, of which nothing was heard for long, finds no broker while others do.
    pub(crate) fn is_lost(&self, witness: &Witness, blindness: &mut Blindness) -> bool {
        witness.finds_lost(self.consumer.client(), blindness)
    }

    /// Offset of the first record with this time or a later one; `None` if there is no such record.
    pub(crate) fn offset_at(&self, at: UnixMillis) -> Result<Option<i64>, KafkaError> {
        let mut wanted = TopicPartitionList::new();
        wanted.add_partition_offset(&self.topic, self.shard, Offset::Offset(at.0.max(0)))?;
        let found = self.consumer.offsets_for_times(wanted, REQUEST_TIMEOUT)?;
        match found.find_partition(&self.topic, self.shard).map(|partition| partition.offset()) {
            Some(Offset::Offset(offset)) => Ok(Some(offset)),
            _ => Ok(None),
        }
    }

    /// The time of the first record at `offset` or behind it, if it has one and comes in time. For a reader that reads nothing else.
    pub(crate) fn time_at(self, offset: i64) -> Result<Option<UnixMillis>, KafkaError> {
        self.start(offset)?;
        let deadline = Instant::now() + REQUEST_TIMEOUT;
        while Instant::now() < deadline {
            match self.poll(POLL) {
                Polled::Record(record) => return Ok(record_millis(&record).map(UnixMillis)),
                Polled::Nothing => {}
                Polled::End | Polled::OutOfRange => break,
            }
        }
        Ok(None)
    }

    /// Starts reading at `offset`, wherever it read before.
    pub(crate) fn start(&self, offset: i64) -> Result<(), KafkaError> {
        let mut partitions = TopicPartitionList::new();
        partitions.add_partition_offset(&self.topic, self.shard, Offset::Offset(offset))?;
        self.consumer.assign(&partitions)
    }

    /// The next record, waiting for at most `timeout`.
    pub(crate) fn poll(&self, timeout: Duration) -> Polled<'_> {
        match self.consumer.poll(timeout) {
            None => Polled::Nothing,
            Some(Ok(record)) => Polled::Record(record),
            Some(Err(KafkaError::PartitionEOF(_))) => Polled::End,
            Some(Err(error)) => match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                    Polled::OutOfRange
                }
                _ => {
                    tracing::debug!(shard = self.shard, %error, "outcomes reader waits for Kafka");
                    Polled::Nothing
                }
            },
        }
    }
}

/// A record's timestamp, if it has one.
pub(crate) fn record_millis(record: &BorrowedMessage<'_>) -> Option<i64> {
    record.timestamp().to_millis().filter(|millis| *millis >= 0)
}
