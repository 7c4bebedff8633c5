//! Producing outcomes. A delivery is settled when Kafka has acknowledged its outcome, and never before.
//!
//! One thread writes them, many at a time: each of them alone would wake the client's threads and be a request of its own. Until the
//! client has room for it, an outcome is what it was made of, most of which it shares with the event; from then on only the client
//! holds its bytes.
//!
//! An outcome that Kafka does not take is kept and produced again for as long as the dispatcher lives. Meanwhile
//! no new record is taken, so what is kept stays within the budget of deliveries.

use crate::{
    delivery::{Order, Settlement},
    kafka_health::KafkaHealth,
    metrics::Metrics,
    outcome_queue::{OutcomeQueue, Work},
    outcome_record::{Settled, Unacknowledged, Untaken},
    partition::Receipt,
};
use floodway_runtime::{
    kafka::{KafkaError, KafkaSettings},
    served_producer::ServedProducer,
    stall::AckWatch,
    witness::Witness,
};
use floodway_schemas::{outcome::KIND_HEADER, topic::Topic};
use rdkafka::{
    ClientContext, Message,
    error::{KafkaError as ClientError, RDKafkaErrorCode},
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseRecord, Producer, ProducerContext},
};
use std::{
    collections::VecDeque,
    mem,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Milliseconds that the client waits for more to send with an outcome: for those that are written with it.
const LINGER_MS: &str = "5";
/// Kilobytes that the client holds at most: some tenths of a second of what it sends. What it has no room for shares its event with
/// the event's other deliveries, and is not in memory twice.
const QUEUED_KBYTES: &str = "16384";
/// Pause before more is given to a client that has no room.
const FULL_PAUSE: Duration = Duration::from_millis(5);
/// First and longest pause before outcomes are produced again. Kafka's own message timeout comes on top.
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// Room that is kept for the next outcome to be encoded in, in bytes; large events are rare.
const KEPT_BYTES: usize = 64 * 1024;
/// Longest wait for acknowledgements before it is looked whether outcomes were given back.
const LOOK: Duration = Duration::from_millis(100);

type Queue = OutcomeQueue<Settled, Untaken>;

/// The producer of outcomes.
pub(crate) struct Outcomes {
    queue: Arc<Queue>,
    writer: Arc<Writer>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the writing thread works with.
struct Writer {
    kafka: KafkaSettings,
    topic: String,
    /// Replaced after a fatal error of the idempotent producer, and when Kafka answers others and not this one.
    producer: RwLock<Arc<ServedProducer<OutcomeContext>>>,
    context: OutcomeContext,
    witness: Witness,
}

#[derive(Clone)]
struct OutcomeContext {
    queue: Arc<Queue>,
    metrics: Arc<Metrics>,
    health: Arc<KafkaHealth>,
    acknowledged: Arc<AtomicU64>,
}

impl OutcomeContext {
    /// Keeps a record that was not taken, to be produced again.
    fn again(&self, key: &[u8], payload: &[u8], mut held: Unacknowledged) {
        if !mem::replace(&mut held.was_refused, true) {
            self.queue.refused();
        }
        self.metrics.outcome_retries.increment(1);
        self.queue.give_back(Untaken { key: key.to_vec(), payload: payload.to_vec(), held });
    }
}

impl ClientContext for OutcomeContext {
    fn error(&self, error: ClientError, reason: &str) {
        self.health.suspect("outcomes", &format!("{error}: {reason}"));
    }
}

impl ProducerContext for OutcomeContext {
    type DeliveryOpaque = Box<Unacknowledged>;

    fn delivery(&self, result: &DeliveryResult<'_>, held: Box<Unacknowledged>) {
        match result {
            Ok(_) => {
                // Relaxed: the count stands for itself.
                self.acknowledged.fetch_add(1, Ordering::Relaxed);
                held.receipt.iter().for_each(Receipt::settle);
                if held.was_refused {
                    self.queue.accepted();
                }
            }
            Err((error, record)) => {
                self.health.suspect("outcomes", &error.to_string());
                self.again(record.key().unwrap_or_default(), record.payload().unwrap_or_default(), *held);
            }
        }
    }
}

impl Outcomes {
    /// Creates the producer; Kafka need not be reachable yet.
    pub(crate) fn start(
        kafka: &KafkaSettings,
        metrics: Arc<Metrics>,
        health: Arc<KafkaHealth>,
    ) -> Result<Self, KafkaError> {
        let queue = Arc::new(Queue::default());
        let context =
            OutcomeContext { queue: Arc::clone(&queue), metrics, health, acknowledged: Arc::default() };
        let writer = Arc::new(Writer {
            kafka: kafka.clone(),
            topic: kafka.topic(Topic::Outcomes),
            producer: RwLock::new(Arc::new(new_producer(kafka, &context)?)),
            context,
            witness: Witness::new(kafka),
        });
        let writing = Arc::clone(&writer);
        let thread =
            std::thread::Builder::new().name("outcomes".to_owned()).spawn(move || writing.write_all())?;
        Ok(Self { queue, writer, thread: Mutex::new(Some(thread)) })
    }

    /// Produces the outcome of an order; never blocks and never fails for good.
    pub(crate) fn produce(&self, order: Order, settlement: Settlement) {
        self.queue.settle(Settled::now(order, settlement));
    }

    /// Whether there are outcomes that Kafka did not take: then no new records are to be taken.
    pub(crate) fn is_stalled(&self) -> bool {
        self.queue.is_stalled()
    }

    /// Whether deliveries are settled faster than their outcomes are written: then no new records are to be taken for a moment.
    pub(crate) fn is_crowded(&self) -> bool {
        self.queue.is_crowded()
    }

    /// From here on no outcome waits for others to be written with.
    pub(crate) fn hurry(&self) {
        self.queue.hurry();
    }

    /// Waits until every outcome is acknowledged; returns whether that came true in time. Blocks the thread.
    pub(crate) fn flush(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        self.hurry();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // In this order: what is with the client now is acknowledged, or given back to the queue.
            let is_written = self.queue.is_empty();
            if self.writer.producer().flush(left.min(LOOK)).is_ok() {
                if is_written && self.queue.is_empty() {
                    return true;
                }
                std::thread::sleep(left.min(FULL_PAUSE));
            }
            if left.is_zero() {
                return false;
            }
        }
    }

    /// Gives up what was not acknowledged, and waits for the thread. Blocks the thread.
    pub(crate) fn end(&self) {
        self.abandon();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that writes outcomes panicked");
        }
    }

    /// Gives up what was not acknowledged.
    pub(crate) fn abandon(&self) {
        self.queue.end();
    }
}

fn new_producer(
    kafka: &KafkaSettings,
    context: &OutcomeContext,
) -> Result<ServedProducer<OutcomeContext>, ClientError> {
    kafka
        .producer()
        .set("linger.ms", LINGER_MS)
        .set("queue.buffering.max.kbytes", QUEUED_KBYTES)
        .create_with_context(context.clone())
}

impl Writer {
    fn producer(&self) -> Arc<ServedProducer<OutcomeContext>> {
        Arc::clone(&self.producer.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The body of the thread.
    fn write_all(&self) {
        let mut work = Work::default();
        let mut payload = Vec::new();
        let mut again = Again::default();
        let mut acks = AckWatch::default();
        loop {
            let pause = if work.settled.is_empty() { again.left() } else { FULL_PAUSE };
            if !self.context.queue.take(&mut work, pause) {
                return;
            }
            while let Some(settled) = work.settled.pop_front() {
                if let Err(settled) = self.write(settled, &mut payload) {
                    work.settled.push_front(settled);
                    break;
                }
            }
            payload.shrink_to(KEPT_BYTES);
            if again.is_time(!work.untaken.is_empty()) {
                self.replace_if_of_no_use(&mut acks);
                self.write_again(&mut work.untaken);
            }
        }
    }

    /// Gives an outcome to the client; gives it back when the client has no room.
    #[expect(
        clippy::result_large_err,
        reason = "once per outcome, and seldom an error: moving it costs less than a box for each"
    )]
    fn write(&self, settled: Settled, payload: &mut Vec<u8>) -> Result<(), Settled> {
        // Strings, numbers and JSON always encode. If not, the record is left to the next owner, and the thread goes on.
        let encoded = std::panic::catch_unwind(AssertUnwindSafe(|| settled.encode(payload)));
        let Ok(Ok(key)) = encoded else {
            tracing::error!("an outcome could not be encoded");
            self.context.queue.sent();
            return Ok(());
        };
        let Settled { order, settlement, at } = settled;
        let Order { event, subscription, record, cause, attempt, since, receipt, permit } = order;
        let held = Unacknowledged { kind: settlement.kind, receipt, permit, was_refused: false };
        match self.send(key.as_bytes(), payload, held) {
            Ok(()) => {}
            Err((ClientError::MessageProduction(RDKafkaErrorCode::QueueFull), held)) => {
                let Unacknowledged { receipt, permit, .. } = held;
                let order = Order { event, subscription, record, cause, attempt, since, receipt, permit };
                return Err(Settled { order, settlement, at });
            }
            Err((_, held)) => self.context.again(key.as_bytes(), payload, held),
        }
        self.context.queue.sent();
        Ok(())
    }

    /// Gives as many records to the client again as it takes.
    fn write_again(&self, untaken: &mut VecDeque<Untaken>) {
        while let Some(Untaken { key, payload, held }) = untaken.pop_front() {
            if let Err((_, held)) = self.send(&key, &payload, held) {
                untaken.push_front(Untaken { key, payload, held });
                return;
            }
        }
    }

    #[expect(
        clippy::result_large_err,
        reason = "once per outcome, and seldom an error: moving it costs less than a box for each"
    )]
    fn send(
        &self,
        key: &[u8],
        payload: &[u8],
        held: Unacknowledged,
    ) -> Result<(), (ClientError, Unacknowledged)> {
        let headers =
            OwnedHeaders::new().insert(Header { key: KIND_HEADER, value: Some(held.kind.as_str()) });
        let record = BaseRecord::with_opaque_to(&self.topic, Box::new(held))
            .key(key)
            .payload(payload)
            .headers(headers);
        self.producer().send(record).map_err(|(error, record)| {
            if !matches!(error, ClientError::MessageProduction(RDKafkaErrorCode::QueueFull)) {
                self.context.health.suspect("outcomes", &error.to_string());
            }
            (error, *record.delivery_opaque)
        })
    }

    /// The idempotent producer is of no use after a fatal error, nor when it gets no acknowledgement any more although Kafka answers others: a
    /// new one takes its place. What the old one held comes back as failed. Called when outcomes were not taken.
    fn replace_if_of_no_use(&self, acks: &mut AckWatch) {
        let producer = self.producer();
        let is_silent = acks.look(self.context.acknowledged.load(Ordering::Relaxed), 0, true, Instant::now());
        if let Some((code, reason)) = producer.client().fatal_error() {
            tracing::error!(%code, reason, "the producer of outcomes failed for good and is replaced");
        } else if is_silent && self.witness.finds_lost(producer.client(), acks.blindness()) {
            self.context.metrics.lost_producers.increment(1);
            tracing::error!("the producer of outcomes gets no answer, and others do: it is replaced");
        } else {
            return;
        }
        match new_producer(&self.kafka, &self.context) {
            Ok(fresh) => {
                *self.producer.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
                acks.replaced(0);
                ServedProducer::retire(producer);
            }
            Err(error) => self.context.health.down(format!("producer of outcomes: {error}")),
        }
    }
}

/// When records that were not taken are produced again: after pauses that grow as long as there are any.
struct Again {
    pause: Duration,
    at: Option<Instant>,
}

impl Default for Again {
    fn default() -> Self {
        Self { pause: MIN_PAUSE, at: None }
    }
}

impl Again {
    /// The time until then.
    fn left(&self) -> Duration {
        self.at.map_or(self.pause, |at| at.saturating_duration_since(Instant::now()))
    }

    /// Whether it is time, when there are `any`.
    fn is_time(&mut self, any: bool) -> bool {
        if !any {
            *self = Self::default();
            return false;
        }
        let now = Instant::now();
        let is_time = now >= *self.at.get_or_insert(now + self.pause);
        if is_time {
            self.at = None;
            self.pause = (self.pause * 2).min(MAX_PAUSE);
        }
        is_time
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        budget::{Amount, Budget, Source},
        partition::Partition,
        tracker::Progress,
    };
    use floodway_runtime::testing;
    use floodway_schemas::{
        ids::{RunId, TenantId},
        outcome::OutcomeKind,
    };
    use rdkafka::{
        mocking::MockCluster,
        types::{RDKafkaApiKey, RDKafkaRespErr},
    };
    use uuid::Uuid;

    /// How long the test waits for anything.
    const DEADLINE: Duration = Duration::from_secs(60);

    #[test]
    fn an_outcome_that_was_refused_stops_intake_until_kafka_has_it_also_while_it_is_on_its_way_again() {
        let cluster = MockCluster::new(1).unwrap();
        let kafka = KafkaSettings { brokers: cluster.bootstrap_servers(), ..testing::kafka() };
        cluster.create_topic(&kafka.topic(Topic::Outcomes), 1, 1).unwrap();
        cluster
            .request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE]);
        // Every answer takes that long: there is a time in which the outcome is on its way again.
        cluster.broker_round_trip_time(1, Duration::from_secs(1)).unwrap();
        let component = testing::context(kafka.clone()).health.component("kafka", true);
        let (metrics, health) = (Arc::new(Metrics::new()), Arc::new(KafkaHealth::new(component)));
        let outcomes = Outcomes::start(&kafka, metrics, health).unwrap();
        let partition = Arc::new(Partition::new(0, RunId(Uuid::nil()), Progress::starting_at(0), 10));
        partition.receive(0, 1);
        let budget = Budget::new(Amount { count: 10, bytes: 1_000 });
        let held = Unacknowledged {
            kind: OutcomeKind::Delivered,
            receipt: Some(Receipt::new(&partition, 0)),
            permit: budget.take(Source::Events, TenantId(Uuid::nil()), 10),
            was_refused: false,
        };
        assert!(outcomes.writer.send(b"", b"{}", held).is_ok());

        let end = Instant::now() + DEADLINE;
        while !outcomes.is_stalled() {
            assert!(Instant::now() < end, "it was not refused");
            std::thread::sleep(Duration::from_millis(5));
        }
        loop {
            let (is_stalled, is_open) = (outcomes.is_stalled(), partition.window_len() > 0);
            assert!(is_stalled || !is_open, "records would be taken");
            if !is_open {
                break;
            }
            assert!(Instant::now() < end, "it was not produced again");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(outcomes.flush(DEADLINE), "nothing is left");
        outcomes.end();
    }
}
