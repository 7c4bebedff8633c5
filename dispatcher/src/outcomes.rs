//! Producing outcomes. A delivery is settled when Kafka has acknowledged its outcome, and never before.
//!
//! An outcome that Kafka does not take is kept and produced again for as long as the dispatcher lives. Meanwhile
//! no new record is taken, so what is kept stays within the budget of deliveries.

use crate::{
    budget::Permit,
    delivery::{Order, Settlement},
    kafka_health::KafkaHealth,
    metrics::Metrics,
    partition::Receipt,
};
use floodway_runtime::{
    clock,
    kafka::{KafkaError, KafkaSettings},
};
use floodway_schemas::{
    outcome::{KIND_HEADER, OUTCOME_VERSION, Outcome, OutcomeKind},
    topic::Topic,
};
use rdkafka::{
    ClientContext,
    error::KafkaError as ClientError,
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer},
};
use std::{
    borrow::Cow,
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Milliseconds that an outcome waits for others to be sent with. At a few hundred deliveries a second each would else be a request of
/// its own, which cost more CPU than the delivery.
const LINGER_MS: &str = "20";
/// First and longest pause before outcomes are produced again. Kafka's own message timeout comes on top.
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// How often the thread that produces again looks whether it is to end.
const LOOK: Duration = Duration::from_millis(100);

/// The producer of outcomes.
pub(crate) struct Outcomes {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    kafka: KafkaSettings,
    topic: String,
    /// Replaced after a fatal error of the idempotent producer.
    producer: RwLock<Arc<ThreadedProducer<OutcomeContext>>>,
    context: OutcomeContext,
    ended: AtomicBool,
}

/// An outcome on its way to Kafka, with what is held until it is there.
struct Pending {
    key: String,
    payload: Vec<u8>,
    kind: OutcomeKind,
    receipt: Receipt,
    _permit: Permit,
    /// Kafka has not taken it at least once.
    refused: AtomicBool,
}

#[derive(Clone)]
struct OutcomeContext {
    failed: Sender<Arc<Pending>>,
    /// Outcomes that Kafka did not take, until it has them. Those on their way again count as well, or records would be taken with
    /// every try.
    stalled: Arc<AtomicUsize>,
    metrics: Arc<Metrics>,
    health: Arc<KafkaHealth>,
}

impl OutcomeContext {
    /// Hands an outcome that was not taken to the thread that produces again. The channel is bounded by the budget.
    fn again(&self, pending: Arc<Pending>) {
        if !pending.refused.swap(true, Ordering::AcqRel) {
            self.stalled.fetch_add(1, Ordering::AcqRel);
        }
        self.metrics.outcome_retries.increment(1);
        // Without a receiver the dispatcher is ending: the record stays unsettled for the next owner.
        let _ = self.failed.send(pending);
    }
}

impl ClientContext for OutcomeContext {
    fn error(&self, error: ClientError, reason: &str) {
        self.health.suspect("outcomes", &format!("{error}: {reason}"));
    }
}

impl ProducerContext for OutcomeContext {
    type DeliveryOpaque = Arc<Pending>;

    fn delivery(&self, result: &DeliveryResult<'_>, pending: Arc<Pending>) {
        match result {
            Ok(_) => {
                pending.receipt.settle();
                if pending.refused.load(Ordering::Acquire) {
                    self.stalled.fetch_sub(1, Ordering::AcqRel);
                }
            }
            Err((error, _)) => {
                self.health.suspect("outcomes", &error.to_string());
                self.again(pending);
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
        let (failed, receiver) = mpsc::channel();
        let context = OutcomeContext { failed, stalled: Arc::default(), metrics, health };
        let shared = Arc::new(Shared {
            kafka: kafka.clone(),
            topic: kafka.topic(Topic::Outcomes),
            producer: RwLock::new(Arc::new(new_producer(kafka, &context)?)),
            context,
            ended: AtomicBool::new(false),
        });
        let retrying = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("outcomes-again".to_owned())
            .spawn(move || retrying.produce_again(&receiver))?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Produces the outcome of an order; never blocks and never fails for good.
    pub(crate) fn produce(&self, order: Order, mut settlement: Settlement) {
        let key;
        let payload;
        {
            let exchange = settlement.verdict.exchange.take();
            let Settlement { kind, verdict } = &settlement;
            let event = &order.event;
            let outcome = Outcome {
                v: OUTCOME_VERSION,
                cause: order.cause.clone(),
                kind: *kind,
                tenant: event.tenant,
                subscription: order.subscription,
                event_id: Cow::Borrowed(&event.id),
                event_type: Cow::Borrowed(&event.event_type),
                key: Cow::Borrowed(&event.key),
                attempt: order.attempt,
                since: order.since,
                at: clock::now(),
                not_before: verdict.not_before,
                reason: verdict.reason,
                status: verdict.status,
                error: verdict.error,
                detail: verdict.detail.as_deref().map(Cow::Borrowed),
                duration_ms: verdict.duration_ms,
                response: verdict.response.as_deref().map(Cow::Borrowed),
                exchange,
                record: order.record,
                batch: event.batched(order.record && *kind == OutcomeKind::Delivered),
                // The envelope was JSON when it was decoded.
                event: match kind {
                    OutcomeKind::Delivered => None,
                    _ => serde_json::from_slice(&event.envelope).ok(),
                },
            };
            key = outcome.record_key();
            payload = match outcome.encode() {
                Ok(payload) => payload,
                Err(error) => {
                    // Strings, numbers and JSON always encode; if not, the record is left to the next owner.
                    tracing::error!(%error, "an outcome could not be encoded");
                    return;
                }
            };
        }
        let pending = Arc::new(Pending {
            key,
            payload,
            kind: settlement.kind,
            receipt: order.receipt,
            _permit: order.permit,
            refused: AtomicBool::new(false),
        });
        if let Err(pending) = self.shared.send(pending) {
            self.shared.context.again(pending);
        }
    }

    /// Whether there are outcomes that Kafka did not take: then no new records are to be taken.
    pub(crate) fn is_stalled(&self) -> bool {
        self.shared.context.stalled.load(Ordering::Acquire) > 0
    }

    /// Waits until every outcome is acknowledged; returns whether that came true in time. Blocks the thread.
    pub(crate) fn flush(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let flushed = self.shared.producer().flush(left.min(LOOK)).is_ok();
            if flushed && !self.is_stalled() {
                return true;
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
            tracing::error!("the thread that produces outcomes again panicked");
        }
    }

    /// Gives up what was not acknowledged.
    pub(crate) fn abandon(&self) {
        self.shared.ended.store(true, Ordering::Release);
    }
}

/// A producer of outcomes. Nobody waits for a single one, so many go into one request.
fn new_producer(
    kafka: &KafkaSettings,
    context: &OutcomeContext,
) -> Result<ThreadedProducer<OutcomeContext>, ClientError> {
    kafka.producer().set("linger.ms", LINGER_MS).create_with_context(context.clone())
}

impl Shared {
    fn producer(&self) -> Arc<ThreadedProducer<OutcomeContext>> {
        Arc::clone(&self.producer.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Enqueues an outcome; gives it back when the local queue is full.
    fn send(&self, pending: Arc<Pending>) -> Result<(), Arc<Pending>> {
        let held = Arc::clone(&pending);
        let headers =
            OwnedHeaders::new().insert(Header { key: KIND_HEADER, value: Some(held.kind.as_str()) });
        let record = BaseRecord::with_opaque_to(&self.topic, pending)
            .key(&held.key)
            .payload(&held.payload)
            .headers(headers);
        self.producer().send(record).map_err(|(error, record)| {
            self.context.health.suspect("outcomes", &error.to_string());
            record.delivery_opaque
        })
    }

    /// The body of the thread that produces again what Kafka did not take.
    fn produce_again(&self, failed: &Receiver<Arc<Pending>>) {
        let mut waiting = VecDeque::new();
        let mut pause = MIN_PAUSE;
        let mut resume_at = None;
        while !self.ended.load(Ordering::Acquire) {
            match failed.recv_timeout(LOOK) {
                Ok(pending) => {
                    waiting.push_back(pending);
                    waiting.extend(failed.try_iter());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if waiting.is_empty() {
                pause = MIN_PAUSE;
                resume_at = None;
                continue;
            }
            if Instant::now() < *resume_at.get_or_insert_with(|| Instant::now() + pause) {
                continue;
            }
            resume_at = None;
            pause = (pause * 2).min(MAX_PAUSE);
            self.replace_after_fatal_error();
            while let Some(pending) = waiting.pop_front() {
                if let Err(pending) = self.send(pending) {
                    waiting.push_front(pending);
                    break;
                }
            }
        }
    }

    /// The idempotent producer is of no use after a fatal error: a new one takes its place. What the old one held comes back as failed.
    fn replace_after_fatal_error(&self) {
        let producer = self.producer();
        let Some((code, reason)) = producer.client().fatal_error() else { return };
        tracing::error!(%code, reason, "the producer of outcomes failed for good and is replaced");
        match new_producer(&self.kafka, &self.context) {
            Ok(fresh) => *self.producer.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh),
            Err(error) => self.context.health.down(format!("producer of outcomes: {error}")),
        }
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
    use floodway_schemas::ids::{RunId, TenantId};
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
        let pending = Pending {
            key: String::new(),
            payload: b"{}".to_vec(),
            kind: OutcomeKind::Delivered,
            receipt: Receipt::new(&partition, 0),
            _permit: budget.take(Source::Events, TenantId(Uuid::nil()), 10),
            refused: AtomicBool::new(false),
        };
        assert!(outcomes.shared.send(Arc::new(pending)).is_ok());

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
