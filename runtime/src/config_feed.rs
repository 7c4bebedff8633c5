//! Reads the compacted `config` topic into memory, and keeps reading.
//!
//! The topic has one partition, so its order is total. The feed has no consumer group: every process reads all of it
//! from the beginning at start and never commits. Records are applied on the feed's own thread, one at a time.
//!
//! The feed says how old what it knows may be. The client reports the end of the partition once each time it gets there, so
//! silence may mean that nothing changed or that nothing arrives: the feed asks for the end every second and compares. A client
//! that stopped fetching is told from one that has nothing more ([`crate::stall`]), and fetches again from where it is; one that finds no
//! broker any more although others do is replaced.

use crate::{
    health::Component,
    kafka::{KafkaError, KafkaSettings},
    stall::{Blindness, Finding, StallWatch},
    witness::Witness,
};
use floodway_schemas::{config::ConfigChange, topic::Topic};
use rdkafka::{
    ClientContext, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::KafkaError as ClientError,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Longest wait for a record before the thread looks at the shutdown token again.
const POLL_WAIT: Duration = Duration::from_millis(500);

/// Milliseconds that the broker holds back an answer that says that there is nothing. A change is answered at once; the question for
/// the end waits for this answer, for a broker answers a connection in order.
const FETCH_WAIT_MS: &str = "250";

/// Time between two questions for the end of the topic.
const CHECK_PAUSE: Duration = Duration::from_secs(1);
/// Longest wait for the answer; changes are not applied meanwhile.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);

/// How often a component says what is waited for.
const TELL_PAUSE: Duration = Duration::from_secs(2);

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
    freshness: Freshness,
    trouble: watch::Receiver<Option<String>>,
    skipped: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

/// When the feed last was at the topic's end. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Freshness(watch::Receiver<Option<Instant>>);

impl Freshness {
    /// The instant as of which everything on the topic was applied; `None` before the end was reached for the first time.
    pub fn current_as_of(&self) -> Option<Instant> {
        *self.0.borrow()
    }

    /// Whether everything on the topic was applied not longer than `bound` ago.
    pub fn is_within(&self, bound: Duration) -> bool {
        self.current_as_of().is_some_and(|instant| instant.elapsed() <= bound)
    }
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
        let (caught_up_tx, caught_up) = watch::channel(false);
        let (current_tx, current) = watch::channel(None);
        let (trouble_tx, trouble) = watch::channel(None);
        let skipped = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&skipped);
        let mut position = Position::new(kafka, current_tx, trouble_tx)?;
        let thread = std::thread::Builder::new().name("config-feed".to_owned()).spawn(move || {
            let mut checked_at = Instant::now();
            while !shutdown.is_cancelled() {
                match position.consumer.poll(POLL_WAIT) {
                    None => {}
                    Some(Ok(record)) => {
                        match ConfigChange::decode(record.key().unwrap_or_default(), record.payload()) {
                            Ok(change) => apply(change, record.offset()),
                            Err(error) => {
                                tracing::warn!(offset = record.offset(), %error, "config record skipped");
                                count.fetch_add(1, Ordering::Release);
                            }
                        }
                        position.next = Some(record.offset() + 1);
                        position.at_end = false;
                        position.stall.read(record.offset());
                        position.answered();
                    }
                    Some(Err(ClientError::PartitionEOF(_))) => {
                        position.reached_end();
                        caught_up_tx.send_if_modified(|done| !std::mem::replace(done, true));
                    }
                    Some(Err(error)) => position.failed(&error),
                }
                if checked_at.elapsed() >= CHECK_PAUSE {
                    position.check();
                    checked_at = Instant::now();
                }
            }
        })?;
        Ok(Self { caught_up, freshness: Freshness(current), trouble, skipped, thread: Some(thread) })
    }

    /// How old what was applied may be.
    pub fn freshness(&self) -> Freshness {
        self.freshness.clone()
    }

    /// Whether everything that was on the topic at start has been applied.
    pub fn is_caught_up(&self) -> bool {
        *self.caught_up.borrow()
    }

    /// Waits until everything that was on the topic at start has been applied. Returns `false` if the feed ended before.
    pub async fn caught_up(&self) -> bool {
        self.caught_up.clone().wait_for(|done| *done).await.is_ok()
    }

    /// The same, while the component says what is waited for.
    pub async fn caught_up_telling(&self, component: &Component) -> bool {
        loop {
            tokio::select! {
                caught_up = self.caught_up() => return caught_up,
                () = tokio::time::sleep(TELL_PAUSE) => component.down(self.trouble().map_or_else(
                    || "the configuration is being read".to_owned(),
                    |trouble| format!("the configuration cannot be read: {trouble}"),
                )),
            }
        }
    }

    /// What the client said last, if it was no answer.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.borrow().clone()
    }

    /// A view of the progress for other tasks: becomes `true` once.
    pub fn progress(&self) -> watch::Receiver<bool> {
        self.caught_up.clone()
    }

    /// Records that could not be read, and so are of no effect here.
    pub fn skipped(&self) -> u64 {
        self.skipped.load(Ordering::Acquire)
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

/// A client that reads the topic from `next` on, or from its beginning.
fn reader(kafka: &KafkaSettings, next: Option<i64>) -> Result<BaseConsumer<FeedContext>, ClientError> {
    let consumer: BaseConsumer<FeedContext> = kafka
        .reader()
        // The client asks for a group's name even where none is joined.
        .set("group.id", kafka.group("config-feed"))
        .set("enable.partition.eof", "true")
        .set("fetch.wait.max.ms", FETCH_WAIT_MS)
        .set("auto.offset.reset", "earliest")
        .create_with_context(FeedContext)?;
    let mut partitions = TopicPartitionList::new();
    let from = next.map_or(Offset::Beginning, Offset::Offset);
    partitions.add_partition_offset(&kafka.topic(Topic::Config), 0, from)?;
    consumer.assign(&partitions)?;
    Ok(consumer)
}

/// Where the feed is on the topic.
struct Position {
    consumer: BaseConsumer<FeedContext>,
    kafka: KafkaSettings,
    topic: String,
    /// One more than the offset of the last record applied.
    next: Option<i64>,
    /// An end that was reached: offsets below it that were not applied hold no records, as far as the broker knew.
    quiet_to: Option<i64>,
    /// The client reported the end, and no record came after that.
    at_end: bool,
    /// The topic's end when what follows `next` was last fetched again.
    probed: Option<i64>,
    current: watch::Sender<Option<Instant>>,
    trouble: watch::Sender<Option<String>>,
    /// Whether the client still fetches.
    stall: StallWatch,
    /// Since when no broker answers the client.
    blindness: Blindness,
    witness: Witness,
}

impl Position {
    /// The topic's beginning.
    fn new(
        kafka: &KafkaSettings,
        current: watch::Sender<Option<Instant>>,
        trouble: watch::Sender<Option<String>>,
    ) -> Result<Self, ClientError> {
        Ok(Self {
            consumer: reader(kafka, None)?,
            kafka: kafka.clone(),
            topic: kafka.topic(Topic::Config),
            next: None,
            quiet_to: None,
            at_end: false,
            probed: None,
            current,
            trouble,
            stall: StallWatch::new(0, Instant::now()),
            blindness: Blindness::default(),
            witness: Witness::new(kafka),
        })
    }

    /// A record came, or the end.
    fn answered(&mut self) {
        self.blindness.answered();
        self.trouble.send_if_modified(|trouble| trouble.take().is_some());
    }

    fn failed(&self, error: &ClientError) {
        tracing::debug!(%error, "config feed waits for Kafka");
        self.trouble.send_replace(Some(error.to_string()));
    }

    /// The client reports that there is nothing more.
    fn reached_end(&mut self) {
        self.at_end = true;
        // Offsets up to the end that was probed hold no records: compaction or a transaction's marker took them.
        self.quiet_to = self.quiet_to.max(self.probed.take());
        self.stall.reached_end();
        self.answered();
        self.current.send_replace(Some(Instant::now()));
    }

    /// Compares the position with the topic's end.
    fn check(&mut self) {
        let asked = Instant::now();
        let (low, high) = match self.consumer.fetch_watermarks(&self.topic, 0, CHECK_TIMEOUT) {
            Ok(bounds) => bounds,
            Err(error) => {
                self.failed(&error);
                if self.blindness.unanswered(Instant::now())
                    && self.witness.finds_lost(self.consumer.client(), &mut self.blindness)
                {
                    self.read_anew();
                }
                return;
            }
        };
        self.blindness.answered();
        let next = self.next.unwrap_or(low);
        if self.quiet_to.map_or(next, |quiet_to| quiet_to.max(next)) >= high {
            self.current.send_replace(Some(asked));
        } else if std::mem::take(&mut self.at_end) {
            // Records are under way, or there are none between here and the end. Fetched again from here, the end is reported
            // again, which tells.
            self.probed = Some(high);
            let _ = self.consumer.seek(&self.topic, 0, Offset::Offset(next), Duration::ZERO);
        } else if self.stall.is_due(asked) {
            self.look(next, high, asked);
        }
    }

    /// Neither a record nor the end came for a while although there is more: fetches again if the client has stopped.
    fn look(&mut self, next: i64, high: i64, now: Instant) {
        let fetched = match self.stall.look(Some(high), now) {
            // Blindness is no finding of a look that was answered.
            Finding::ReadsOn | Finding::Blind => return,
            Finding::Stopped => self.consumer.seek(&self.topic, 0, Offset::Offset(next), Duration::ZERO),
            Finding::StoppedForGood => {
                let mut partitions = TopicPartitionList::new();
                partitions
                    .add_partition_offset(&self.topic, 0, Offset::Offset(next))
                    .and_then(|()| self.consumer.assign(&partitions))
            }
        };
        self.probed = Some(high);
        tracing::warn!(next, high, ?fetched, "the config feed had stopped and fetches again");
    }

    /// The client finds no broker, and others do: another one takes its place. The old one ends before it is asked again.
    fn read_anew(&mut self) {
        match reader(&self.kafka, self.next) {
            Ok(consumer) => {
                tracing::warn!(
                    next = self.next,
                    "the config feed found no broker, and others did: it reads with a new client"
                );
                self.consumer = consumer;
                self.blindness.replaced();
                self.stall = StallWatch::new(self.next.unwrap_or(0), Instant::now());
                (self.at_end, self.probed) = (false, None);
            }
            // Tried again at the next look.
            Err(error) => tracing::error!(%error, "no new client for the config feed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::{KafkaSecurity, SecurityProtocol};
    use rdkafka::mocking::MockCluster;

    #[test]
    fn a_client_that_could_not_be_replaced_is_tried_again_at_the_next_check() {
        let cluster = MockCluster::new(1).unwrap();
        let there = KafkaSettings { brokers: cluster.bootstrap_servers(), ..KafkaSettings::default() };
        // Reserved and closed on every sane machine.
        let nowhere = KafkaSettings { brokers: "127.0.0.1:1".to_owned(), ..KafkaSettings::default() };
        let mut position = Position::new(&nowhere, watch::channel(None).0, watch::channel(None).0).unwrap();
        position.witness = Witness::new(&there);
        let deadline = Instant::now() + Duration::from_secs(40);
        while !position.witness.judge(false, &mut Blindness::of_a_minute()) {
            assert!(Instant::now() < deadline);
        }
        position.blindness = Blindness::of_a_minute();
        // No client can be made.
        let security = KafkaSecurity {
            security_protocol: SecurityProtocol::Ssl,
            ca_file: Some("/nowhere.pem".into()),
            ..KafkaSecurity::default()
        };
        position.kafka.security = security;
        position.check();
        // It has not become more patient.
        assert!(position.blindness.unanswered(Instant::now()));
        position.kafka.security = KafkaSecurity::default();
        position.check();
        assert!(!position.blindness.is_blind());
    }
}
