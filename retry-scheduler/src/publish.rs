//! Producing due retries and dead letters, and knowing what was acknowledged.
//!
//! One producer serves all shards. A batch of records shares one [`Acks`]; nobody waits in line for a single record, and
//! a shard looks at its batch between other work. The producer gives every record up after its message timeout, so
//! each batch completes.
//!
//! A producer that gets no acknowledgement and finds no broker any more although Kafka answers others is replaced, see
//! [`floodway_runtime::stall`]. What it held counts as given up and is produced again.

use floodway_runtime::{
    kafka::{KafkaSettings, MESSAGE_TIMEOUT_MS},
    served_producer::ServedProducer,
    stall::AckWatch,
    witness::Witness,
};
use floodway_schemas::topic::Topic;
use floodway_store::retry::PendingRetry;
use rdkafka::{
    ClientConfig, ClientContext,
    error::{KafkaError, RDKafkaErrorCode},
    message::DeliveryResult,
    producer::{BaseRecord, Producer, ProducerContext},
};
use std::{
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// Several times what the client takes to give a record up.
const LOST_AFTER: Duration = Duration::from_millis(3 * MESSAGE_TIMEOUT_MS as u64);

/// The records of a batch that were not acknowledged.
#[derive(Debug)]
pub(crate) struct Acks {
    since: Instant,
    open: AtomicUsize,
    failed: Mutex<Vec<Failed>>,
}

/// A record that was not acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failed {
    /// Its place in the batch.
    pub(crate) index: usize,
    /// The brokers will never take it.
    pub(crate) too_large: bool,
}

impl Acks {
    fn of(records: usize) -> Arc<Self> {
        Arc::new(Self { since: Instant::now(), open: AtomicUsize::new(records), failed: Mutex::default() })
    }

    /// What failed, once every record was acknowledged or given up.
    pub(crate) fn result(&self) -> Option<Vec<Failed>> {
        // Acquire: pairs with the release of each record's settling, whose failure was noted before.
        if self.open.load(Ordering::Acquire) > 0 {
            return None;
        }
        Some(self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Whether the client ought to have said long ago what became of the records. Nothing would ever be produced after them.
    pub(crate) fn is_overdue(&self, now: Instant) -> bool {
        self.open.load(Ordering::Acquire) > 0 && now.saturating_duration_since(self.since) > LOST_AFTER
    }

    fn settle(&self, index: usize, error: Option<&KafkaError>) {
        if let Some(error) = error {
            let too_large = error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge);
            self.failed.lock().unwrap_or_else(PoisonError::into_inner).push(Failed { index, too_large });
        }
        self.open.fetch_sub(1, Ordering::Release);
    }
}

/// What travels with a record to its delivery report.
pub(crate) struct Ticket {
    acks: Arc<Acks>,
    index: usize,
}

/// Counts reports.
#[derive(Debug, Clone, Default)]
struct Reports {
    acknowledged: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
}

impl ClientContext for Reports {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "retry producer: {reason}");
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Ticket>;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Box<Ticket>) {
        let error = result.as_ref().err().map(|(error, _)| error);
        // Relaxed: the counts stand for themselves.
        match error.map(KafkaError::rdkafka_error_code) {
            None => self.acknowledged.fetch_add(1, Ordering::Relaxed),
            // Says nothing about the producer.
            Some(Some(RDKafkaErrorCode::MessageSizeTooLarge)) => 0,
            Some(_) => self.failed.fetch_add(1, Ordering::Relaxed),
        };
        ticket.acks.settle(ticket.index, error);
    }
}

/// Produces for all shards.
pub(crate) struct Publisher {
    config: ClientConfig,
    reports: Reports,
    live: RwLock<Arc<ServedProducer<Reports>>>,
    watch: Mutex<AckWatch>,
    due: String,
    dead_letters: String,
}

impl Publisher {
    pub(crate) fn new(kafka: &KafkaSettings) -> Result<Self, KafkaError> {
        let (config, reports) = (kafka.producer(), Reports::default());
        Ok(Self {
            live: RwLock::new(Arc::new(config.create_with_context(reports.clone())?)),
            config,
            reports,
            watch: Mutex::default(),
            due: kafka.topic(Topic::Due),
            dead_letters: kafka.topic(Topic::DeadLetters),
        })
    }

    fn producer(&self) -> Arc<ServedProducer<Reports>> {
        Arc::clone(&self.live.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the producer if it gets neither an acknowledgement nor another answer any more, and the witness does get answers. Returns whether
    /// it did. Blocks.
    pub(crate) fn replace_if_lost(&self, witness: &Witness) -> Result<bool, KafkaError> {
        let failed = || self.reports.failed.load(Ordering::Relaxed);
        let acknowledged = self.reports.acknowledged.load(Ordering::Relaxed);
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        let producer = self.producer();
        let waits = producer.in_flight_count() > 0;
        if !watch.look(acknowledged, failed(), waits, Instant::now())
            || !witness.finds_lost(producer.client(), watch.blindness())
        {
            return Ok(false);
        }
        // Retiring waits until nobody else has it.
        drop(producer);
        let fresh = Arc::new(self.config.create_with_context(self.reports.clone())?);
        let lost = std::mem::replace(&mut *self.live.write().unwrap_or_else(PoisonError::into_inner), fresh);
        ServedProducer::retire(lost);
        watch.replaced(failed());
        Ok(true)
    }

    /// Produces due retries of a shard, to the partition of its number.
    pub(crate) fn due(&self, shard: i32, rows: &[PendingRetry]) -> Arc<Acks> {
        let producer = self.producer();
        let acks = Acks::of(rows.len());
        for (index, row) in rows.iter().enumerate() {
            let ticket = Box::new(Ticket { acks: Arc::clone(&acks), index });
            let record = BaseRecord::with_opaque_to(&self.due, ticket)
                .partition(shard)
                .key(row.record_key.as_bytes())
                .payload(row.record.as_slice());
            send(&producer, record);
        }
        acks
    }

    /// Produces dead letters: pairs of key and value.
    pub(crate) fn dead_letters<'l>(
        &self,
        letters: impl ExactSizeIterator<Item = (&'l str, &'l [u8])>,
    ) -> Arc<Acks> {
        let producer = self.producer();
        let acks = Acks::of(letters.len());
        for (index, (key, value)) in letters.enumerate() {
            let ticket = Box::new(Ticket { acks: Arc::clone(&acks), index });
            let record = BaseRecord::with_opaque_to(&self.dead_letters, ticket);
            send(&producer, record.key(key.as_bytes()).payload(value));
        }
        acks
    }

    /// Why the producer will never produce again, if so: the process has to start anew.
    pub(crate) fn fatal(&self) -> Option<KafkaError> {
        self.producer().client().fatal_error().map(|(code, _)| KafkaError::MessageProduction(code))
    }

    /// Waits until nothing is in flight. Best effort: what is not acknowledged is produced again by the next owner.
    pub(crate) fn flush(&self, timeout: Duration) {
        let _ = self.producer().flush(timeout);
    }
}

fn send(producer: &ServedProducer<Reports>, record: BaseRecord<'_, [u8], [u8], Box<Ticket>>) {
    if let Err((error, record)) = producer.send(record) {
        let Ticket { acks, index } = *record.delivery_opaque;
        acks.settle(index, Some(&error));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_overdue_when_the_client_says_nothing_about_a_record_for_long() {
        let acks = Acks::of(2);
        acks.settle(0, None);
        let late = acks.since + LOST_AFTER + Duration::from_millis(1);
        assert!(acks.is_overdue(late) && !acks.is_overdue(acks.since + LOST_AFTER));
        acks.settle(1, None);
        assert!(!acks.is_overdue(late));
    }

    #[test]
    fn a_batch_is_complete_when_every_record_is_settled() {
        let acks = Acks::of(2);
        acks.settle(1, Some(&KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge)));
        assert_eq!(acks.result(), None);
        acks.settle(0, None);
        assert_eq!(acks.result(), Some(vec![Failed { index: 1, too_large: true }]));
        assert_eq!(Acks::of(0).result(), Some(Vec::new()));
    }
}
