//! The producer: events into Kafka's queue, delivery reports back to the requests.
//!
//! One idempotent producer with its own poll thread serves all workers. Nothing here waits: a full queue refuses the
//! rest of the batch at once, and the client decides when to come again.

use crate::{
    broker_times,
    complete::{Completion, Fate, Ticket},
    config::{RECORD_OVERHEAD_BYTES, Settings},
    error::Refusal,
    metrics::Metrics,
    partition::Partitions,
};
use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use floodway_runtime::{
    kafka::{KafkaError, KafkaSettings},
    served_producer::ServedProducer,
};
use floodway_schemas::{event::CLOUDEVENTS_JSON, ids::MAX_TEXT_ID_BYTES, topic::Topic};
use rdkafka::{
    ClientConfig, ClientContext,
    config::RDKafkaLogLevel,
    error::KafkaError as ClientError,
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseRecord, Producer, ProducerContext},
    types::RDKafkaErrorCode as Code,
};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use thiserror::Error;
use tokio::time::Instant;

/// What a queued record costs besides its key and value, in bytes: the client's message and its header.
const BOOKKEEPING_BYTES: usize = 256;
const _: () = assert!(36 + 1 + MAX_TEXT_ID_BYTES + BOOKKEEPING_BYTES <= RECORD_OVERHEAD_BYTES);
type EventProducer = ServedProducer<Reports>;

/// Publishes events. Shared by all workers.
pub(crate) struct Publisher {
    config: ClientConfig,
    topic: String,
    live: ArcSwap<EventProducer>,
    /// `None` until Kafka was reached for the first time.
    partitions: ArcSwapOption<Partitions>,
    partition_limit: usize,
    deadline: Duration,
    /// Kafka has been away for so long that waiting for it is pointless.
    away: AtomicBool,
    tally: Arc<Tally>,
    metrics: Arc<Metrics>,
}

/// Why the partitions of the events topic are not known; told to operators.
#[derive(Debug, PartialEq, Eq, Error)]
pub(crate) enum NoPartitions {
    /// Kafka is away, or this client does not find it.
    #[error("no broker answers: {0}")]
    Unanswered(ClientError),
    #[error("topic {0} does not exist")]
    NoTopic(String),
    #[error("no partition of {0} has a leader")]
    NoLeader(String),
}

/// Delivery reports so far; their growth tells whether Kafka takes events.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Acknowledged events.
    pub(crate) acknowledged: AtomicU64,
    /// Events that were reported as failed, their size aside.
    pub(crate) failed: AtomicU64,
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl Publisher {
    /// A publisher; Kafka need not be reachable. `partitions` is what is known of the events topic.
    pub(crate) fn new(
        kafka: &KafkaSettings,
        settings: &Settings,
        partitions: Option<i32>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, KafkaError> {
        let mut config = kafka.producer();
        config
            .set("statistics.interval.ms", broker_times::STATISTICS_INTERVAL_MS.to_string())
            .set("message.timeout.ms", settings.publish_timeout.as_millis().to_string())
            .set("queue.buffering.max.messages", settings.queue_events.to_string())
            .set("queue.buffering.max.kbytes", (settings.queue_bytes / 1024).to_string());
        metrics.show_queue_bounds(settings.queue_events, settings.queue_bytes);
        let tally = Arc::new(Tally::default());
        let publisher = Self {
            topic: kafka.topic(Topic::Events),
            live: ArcSwap::from_pointee(create(&config, &tally, &metrics)?),
            config,
            partitions: ArcSwapOption::empty(),
            partition_limit: settings.partition_queue_bytes,
            deadline: settings.publish_deadline(),
            away: AtomicBool::new(false),
            tally,
            metrics,
        };
        if let Some(count) = partitions {
            publisher.set_partitions(count);
        }
        Ok(publisher)
    }

    /// Whether publishing is worth a try: otherwise a request is refused before its body is read.
    pub(crate) fn check_reachable(&self) -> Result<(), Refusal> {
        if self.away.load(Ordering::Relaxed) || self.partitions.load().is_none() {
            return Err(Refusal::KafkaAway);
        }
        Ok(())
    }

    /// Starts publishing a request's events.
    pub(crate) fn begin(&self, events: usize) -> Result<Publication<'_>, Refusal> {
        let partitions = self.partitions.load_full().ok_or(Refusal::KafkaAway)?;
        Ok(Publication {
            completion: Completion::new(events, Arc::clone(&partitions)),
            producer: self.live.load(),
            publisher: self,
            partitions,
            stopped: false,
            full_partitions: Vec::new(),
        })
    }

    /// Asks Kafka for the events topic and its number of partitions; blocks.
    pub(crate) fn probe(&self, patience: Duration) -> Result<i32, NoPartitions> {
        let metadata = self
            .live
            .load_full()
            .client()
            .fetch_metadata(Some(&self.topic), patience)
            .map_err(NoPartitions::Unanswered)?;
        let topic = metadata.topics().iter().find(|topic| topic.name() == self.topic);
        let partitions = topic.map_or(&[][..], |topic| topic.partitions());
        if partitions.is_empty() {
            return Err(NoPartitions::NoTopic(self.topic.clone()));
        }
        if partitions.iter().all(|partition| partition.leader() < 0) {
            return Err(NoPartitions::NoLeader(self.topic.clone()));
        }
        Ok(i32::try_from(partitions.len()).unwrap_or(i32::MAX))
    }

    /// Takes over the topic's number of partitions. What is in flight keeps its account with the old ones.
    pub(crate) fn set_partitions(&self, count: i32) {
        let known = self.partitions.load().as_ref().map(|partitions| partitions.count());
        if known != usize::try_from(count).ok() {
            self.partitions.store(Some(Arc::new(Partitions::new(count, self.partition_limit))));
        }
    }

    /// Refuses requests early, or stops doing so.
    pub(crate) fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::Relaxed);
    }

    /// Delivery reports so far.
    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Updates the gauges of what is waiting for an acknowledgement.
    pub(crate) fn report_waiting_bytes(&self) {
        // A gauge is a float; bytes in memory are far below 2^53.
        self.metrics.queued_bytes.set(self.waiting_bytes() as f64);
        self.metrics.queued_events.set(f64::from(self.live.load_full().in_flight_count()));
    }

    fn waiting_bytes(&self) -> usize {
        self.partitions.load().as_ref().map_or(0, |partitions| partitions.waiting_bytes())
    }

    /// Whether records wait for their acknowledgement.
    #[cfg(test)]
    pub(crate) fn waits(&self) -> bool {
        self.live.load_full().in_flight_count() > 0
    }

    /// From now on no producer can be made.
    #[cfg(test)]
    pub(crate) fn refuse_to_replace(&mut self) {
        self.config.set("acks", "never");
    }

    /// Replaces the producer after a fatal error, which it never recovers from; blocks.
    pub(crate) fn replace_if_dead(&self) {
        let Some((code, reason)) = self.live.load_full().client().fatal_error() else { return };
        tracing::error!(?code, %reason, "the producer failed for good and is replaced");
        self.replace();
    }

    /// Puts a new producer in the place of the present one, whose requests get the answers that their events' reports make; blocks. Whether
    /// there was one to be had.
    pub(crate) fn replace(&self) -> bool {
        match create(&self.config, &self.tally, &self.metrics) {
            Ok(producer) => {
                self.metrics.producer_rebuilds.increment(1);
                EventProducer::retire(self.live.swap(Arc::new(producer)));
                true
            }
            // Tried again at the next look; requests are refused meanwhile.
            Err(error) => {
                tracing::error!(%error, "the producer could not be replaced");
                false
            }
        }
    }

    /// Writes what is still queued, within `patience`; blocks.
    pub(crate) fn close(&self, patience: Duration) {
        if let Err(error) = self.live.load_full().flush(patience) {
            tracing::warn!(%error, "events were still unacknowledged at the end; their requests were answered 503 or cut off");
        }
    }
}

fn create(
    config: &ClientConfig,
    tally: &Arc<Tally>,
    metrics: &Arc<Metrics>,
) -> Result<EventProducer, KafkaError> {
    let (tally, metrics) = (Arc::clone(tally), Arc::clone(metrics));
    Ok(config.create_with_context(Reports { tally, metrics })?)
}

/// One request's events on their way to the producer.
pub(crate) struct Publication<'p> {
    publisher: &'p Publisher,
    completion: Arc<Completion>,
    producer: Guard<Arc<EventProducer>>,
    partitions: Arc<Partitions>,
    /// The producer's queue was full, or it is dead: the rest of the batch is not even tried.
    stopped: bool,
    /// Partitions that had no room: what follows in them is refused too, so that a repeat of the refused events
    /// cannot be overtaken by their successors.
    full_partitions: Vec<usize>,
}

impl Publication<'_> {
    /// Offers one record; what becomes of it is noted in the completion slot.
    pub(crate) fn send(&mut self, index: usize, key: &[u8], value: &[u8]) {
        if let Err(fate) = self.enqueue(index, key, value) {
            self.completion.settle(index, fate);
        }
    }

    /// No more records: lets go of the producer, and gives the slot and the deadline to wait for. The deadline runs from here, so
    /// that it is later than the client's own for the last record, too.
    pub(crate) fn finish(self) -> (Arc<Completion>, Instant) {
        self.completion.seal();
        (self.completion, Instant::now() + self.publisher.deadline)
    }

    fn enqueue(&mut self, index: usize, key: &[u8], value: &[u8]) -> Result<(), Fate> {
        if self.stopped {
            return Err(Fate::NotPersisted);
        }
        let partition = self.partitions.of(key);
        let bytes = key.len() + value.len() + BOOKKEEPING_BYTES;
        if self.full_partitions.contains(&partition) {
            return Err(Fate::NotPersisted);
        }
        if !self.partitions.reserve(partition, bytes) {
            self.full_partitions.push(partition);
            self.publisher.metrics.partition_queue_full.increment(1);
            return Err(Fate::NotPersisted);
        }
        let record = BaseRecord::with_opaque_to(
            &self.publisher.topic,
            self.completion.ticket(index, partition, bytes),
        )
        // Partition counts are far below 2^31.
        .partition(partition as i32)
        .key(key)
        .payload(value)
        .headers(content_type());
        // On an error the ticket comes back with the record, and gives its room back when dropped.
        let sent = self.producer.send(record).map_err(|(error, _record)| error);
        sent.map_err(|error| self.refused(&error))
    }

    /// The client did not take the record, so it is certainly not written.
    fn refused(&mut self, error: &ClientError) -> Fate {
        match error.rdkafka_error_code() {
            Some(Code::MessageSizeTooLarge) => return Fate::TooLarge,
            Some(Code::QueueFull) => self.publisher.metrics.producer_queue_full.increment(1),
            _ => {}
        }
        self.stopped = true;
        Fate::NotPersisted
    }
}

fn content_type() -> OwnedHeaders {
    OwnedHeaders::new_with_capacity(1).insert(Header { key: "content-type", value: Some(CLOUDEVENTS_JSON) })
}

/// Takes delivery reports on the producer's thread.
struct Reports {
    tally: Arc<Tally>,
    metrics: Arc<Metrics>,
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::error!(facility, "{message}");
            }
            // Connections come and go; what matters of it is in the health report.
            _ => tracing::debug!(facility, "{message}"),
        }
    }

    fn error(&self, error: ClientError, reason: &str) {
        tracing::debug!(%error, reason, "Kafka client");
    }

    fn stats_raw(&self, statistics: &[u8]) {
        broker_times::show(statistics, &self.metrics);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Ticket>;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Box<Ticket>) {
        let fate = match result {
            Ok(_) => Fate::Delivered,
            Err((error, _)) => fate_of_failure(error.rdkafka_error_code()),
        };
        match fate {
            Fate::Delivered => self.tally.acknowledged.fetch_add(1, Ordering::Relaxed),
            Fate::TooLarge => 0,
            _ => self.tally.failed.fetch_add(1, Ordering::Relaxed),
        };
        ticket.report(fate);
    }
}

/// What a failed delivery means. A message that timed out may have been written by a request whose answer was lost; and
/// so may one that the broker refused, on another try, for a reason that did not hold before: a right withdrawn, a topic
/// deleted. Only what is wrong with the record itself was wrong at every try.
fn fate_of_failure(code: Option<Code>) -> Fate {
    match code {
        Some(Code::MessageSizeTooLarge) => Fate::TooLarge,
        Some(Code::InvalidRecord) => Fate::NotPersisted,
        _ => Fate::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::{
        mocking::MockCluster,
        producer::DefaultProducerContext,
        types::{RDKafkaApiKey, RDKafkaRespErr},
    };

    const KEY: &[u8] = b"tenant/key";

    /// Gives up soon: for what cannot succeed.
    fn settings() -> Settings {
        Settings { publish_timeout: Duration::from_secs(1), ..Settings::default() }
    }

    /// A cluster in this process, and a publisher on it with enough time for its first connection.
    fn mocked(publish_timeout: Duration) -> (MockCluster<'static, DefaultProducerContext>, Publisher) {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("floodway.events", 4, 1).unwrap();
        let publisher = publisher(&cluster.bootstrap_servers(), &Settings { publish_timeout, ..settings() });
        (cluster, publisher)
    }

    const AMPLE: Duration = Duration::from_secs(20);

    fn publisher(brokers: &str, settings: &Settings) -> Publisher {
        let kafka = KafkaSettings { brokers: brokers.to_owned(), ..KafkaSettings::default() };
        Publisher::new(&kafka, settings, Some(4), Arc::new(Metrics::new())).unwrap()
    }

    /// An address where nothing listens.
    const NOWHERE: &str = "127.0.0.1:1";

    async fn fates(publisher: &Publisher, values: &[Vec<u8>]) -> Vec<Fate> {
        let mut publication = publisher.begin(values.len()).unwrap();
        values.iter().enumerate().for_each(|(index, value)| publication.send(index, KEY, value));
        let (completion, deadline) = publication.finish();
        completion.wait(deadline).await;
        completion.fates()
    }

    #[tokio::test]
    async fn a_full_queue_refuses_the_rest_of_the_batch_at_once() {
        let publisher = publisher(NOWHERE, &Settings { queue_events: 3, ..settings() });
        let fates = fates(&publisher, &vec![vec![b'x'; 10]; 10]).await;
        assert_eq!(fates[3..], [Fate::NotPersisted; 7]);
        // Nobody can tell from a time-out alone that the first three were never sent.
        assert_eq!(fates[..3], [Fate::Unknown; 3]);
        assert_eq!(publisher.waiting_bytes(), 0);
    }

    #[tokio::test]
    async fn a_full_partition_refuses_and_leaves_the_queue_to_the_others() {
        let record = 2 * (KEY.len() + 10 + BOOKKEEPING_BYTES);
        let publisher = publisher(NOWHERE, &Settings { partition_queue_bytes: record, ..settings() });
        let mut publication = publisher.begin(5).unwrap();
        let partition = publication.partitions.of(KEY);
        let other = (0..)
            .map(|n| format!("tenant/{n}"))
            .find(|k| publication.partitions.of(k.as_bytes()) != partition);
        for index in 0..3 {
            publication.send(index, KEY, &[b'x'; 10]);
        }
        // Smaller, and it would fit: but it must not overtake its predecessor.
        publication.send(3, KEY, b"");
        publication.send(4, other.unwrap().as_bytes(), &[b'x'; 10]);
        let (completion, _) = publication.finish();
        assert_eq!(
            completion.fates(),
            [Fate::Pending, Fate::Pending, Fate::NotPersisted, Fate::NotPersisted, Fate::Pending]
        );
    }

    #[tokio::test]
    async fn an_acknowledged_event_is_delivered_and_one_without_an_answer_is_unknown() {
        let (cluster, publisher) = mocked(Duration::from_secs(5));
        assert_eq!(fates(&publisher, &[vec![b'x'; 10]]).await, [Fate::Delivered]);
        assert_eq!(publisher.probe(Duration::from_secs(5)), Ok(4));
        cluster.broker_round_trip_time(1, Duration::from_secs(30)).unwrap();
        assert_eq!(fates(&publisher, &[vec![b'x'; 10]]).await, [Fate::Unknown]);
    }

    #[tokio::test]
    async fn an_event_larger_than_the_broker_takes_fails_alone() {
        let (_cluster, publisher) = mocked(AMPLE);
        let values = [vec![b'x'; 10], vec![b'x'; 3 * 1024 * 1024], vec![b'x'; 10]];
        assert_eq!(fates(&publisher, &values).await, [Fate::Delivered, Fate::TooLarge, Fate::Delivered]);
    }

    #[tokio::test]
    async fn a_producer_that_failed_for_good_is_replaced() {
        let (cluster, publisher) = mocked(AMPLE);
        assert_eq!(fates(&publisher, &[vec![b'x'; 10]]).await, [Fate::Delivered]);
        // A broker that has lost track of the producer's sequence.
        cluster.request_errors(
            RDKafkaApiKey::Produce,
            &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER],
        );
        assert_eq!(fates(&publisher, &[vec![b'x'; 10]]).await, [Fate::Unknown]);
        assert_eq!(fates(&publisher, &[vec![b'x'; 10]]).await, [Fate::NotPersisted]);
        publisher.replace_if_dead();
        assert_eq!(fates(&publisher, &[vec![b'x'; 10]]).await, [Fate::Delivered]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_replaced_producer_leaves_no_request_without_an_answer_and_no_room_taken() {
        let (cluster, publisher) = mocked(AMPLE);
        assert_eq!(fates(&publisher, &[vec![b'x'; 10]]).await, [Fate::Delivered]);
        cluster.broker_round_trip_time(1, Duration::from_secs(60)).unwrap();
        let mut publication = publisher.begin(2).unwrap();
        (0..2).for_each(|index| publication.send(index, KEY, &[b'x'; 10]));
        let (completion, deadline) = publication.finish();
        assert!(publisher.waits());
        tokio::task::block_in_place(|| publisher.replace());
        completion.wait(deadline).await;
        // Long before the deadline: whether the broker has them, nobody knows.
        assert!(Instant::now() < deadline);
        assert_eq!(completion.fates(), [Fate::Unknown; 2]);
        assert_eq!((publisher.waiting_bytes(), publisher.waits()), (0, false));
        cluster.broker_round_trip_time(1, Duration::ZERO).unwrap();
        assert_eq!(fates(&publisher, &[vec![b'x'; 10]]).await, [Fate::Delivered]);
    }

    #[test]
    fn without_a_known_topic_nothing_is_tried() {
        let kafka = KafkaSettings { brokers: NOWHERE.to_owned(), ..KafkaSettings::default() };
        let publisher = Publisher::new(&kafka, &settings(), None, Arc::new(Metrics::new())).unwrap();
        assert_eq!(publisher.check_reachable(), Err(Refusal::KafkaAway));
        assert!(matches!(publisher.probe(Duration::from_millis(200)), Err(NoPartitions::Unanswered(_))));
    }

    #[test]
    fn only_certain_refusals_count_as_not_persisted() {
        assert_eq!(fate_of_failure(Some(Code::MessageTimedOut)), Fate::Unknown);
        assert_eq!(fate_of_failure(Some(Code::NotEnoughReplicasAfterAppend)), Fate::Unknown);
        assert_eq!(fate_of_failure(Some(Code::TopicAuthorizationFailed)), Fate::Unknown);
        assert_eq!(fate_of_failure(Some(Code::UnknownTopic)), Fate::Unknown);
        assert_eq!(fate_of_failure(Some(Code::InvalidRecord)), Fate::NotPersisted);
        assert_eq!(fate_of_failure(Some(Code::MessageSizeTooLarge)), Fate::TooLarge);
        assert_eq!(fate_of_failure(None), Fate::Unknown);
    }
}
