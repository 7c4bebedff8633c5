//! Reads the compacted `config` topic into memory, and keeps reading.
//!
//! The topic has one partition, so its order is total. The feed has no consumer group: every process reads all of it
//! from the beginning at start and never commits. Records are applied on the feed's own thread, one at a time.

use crate::kafka::{KafkaError, KafkaSettings};
use floodway_schemas::{config::ConfigChange, topic::Topic};
use rdkafka::{
    ClientContext, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::KafkaError as ClientError,
};
use std::{thread::JoinHandle, time::Duration};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Longest wait for a record before the thread looks at the shutdown token again.
const POLL_WAIT: Duration = Duration::from_millis(200);

/// Keeps the client from logging the end of the partition, which is news here and no error.
struct FeedContext;

impl ClientContext for FeedContext {
    fn error(&self, error: ClientError, reason: &str) {
        tracing::debug!(%error, reason, "config feed");
    }
}

impl ConsumerContext for FeedContext {}

/// The feed's thread and its progress. Ends when the shutdown token is cancelled.
#[derive(Debug)]
pub struct ConfigFeed {
    caught_up: watch::Receiver<bool>,
    thread: Option<JoinHandle<()>>,
}

impl ConfigFeed {
    /// Starts the feed; `apply` gets every change with its offset. Kafka need not be reachable yet.
    ///
    /// # Errors
    /// When the client refuses its settings or no thread can be had.
    pub fn start(
        kafka: &KafkaSettings,
        shutdown: CancellationToken,
        mut apply: impl FnMut(ConfigChange, i64) + Send + 'static,
    ) -> Result<Self, KafkaError> {
        let consumer: BaseConsumer<FeedContext> = kafka
            .reader()
            // The client asks for a group's name even where none is joined.
            .set("group.id", kafka.group("config-feed"))
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "earliest")
            .create_with_context(FeedContext)?;
        let mut partitions = TopicPartitionList::new();
        partitions.add_partition_offset(&kafka.topic(Topic::Config), 0, Offset::Beginning)?;
        consumer.assign(&partitions)?;
        let (caught_up_tx, caught_up) = watch::channel(false);
        let thread = std::thread::Builder::new().name("config-feed".to_owned()).spawn(move || {
            while !shutdown.is_cancelled() {
                match consumer.poll(POLL_WAIT) {
                    None => {}
                    Some(Ok(record)) => {
                        match ConfigChange::decode(record.key().unwrap_or_default(), record.payload()) {
                            Ok(change) => apply(change, record.offset()),
                            Err(error) => {
                                tracing::warn!(offset = record.offset(), %error, "config record skipped")
                            }
                        }
                    }
                    Some(Err(ClientError::PartitionEOF(_))) => {
                        caught_up_tx.send_if_modified(|done| !std::mem::replace(done, true));
                    }
                    Some(Err(error)) => tracing::debug!(%error, "config feed waits for Kafka"),
                }
            }
        })?;
        Ok(Self { caught_up, thread: Some(thread) })
    }

    /// Whether everything that was on the topic at start has been applied.
    pub fn is_caught_up(&self) -> bool {
        *self.caught_up.borrow()
    }

    /// Waits until everything that was on the topic at start has been applied. Returns `false` if the feed ended before.
    pub async fn caught_up(&self) -> bool {
        self.caught_up.clone().wait_for(|done| *done).await.is_ok()
    }

    /// A view of the progress for other tasks: becomes `true` once.
    pub fn progress(&self) -> watch::Receiver<bool> {
        self.caught_up.clone()
    }

    /// Waits for the thread to end; call after the shutdown token was cancelled, and not on the runtime's threads.
    pub fn join(mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the config feed panicked");
        }
    }
}
