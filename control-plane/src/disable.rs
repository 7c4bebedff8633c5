//! Disables subscriptions whose endpoint answered 410 Gone.
//!
//! A consumer of `outcomes` in a group of its own. It looks at the kind in each record's header and decodes only the few
//! that say `disable`. The offset is committed after the change is in the database, so a crash repeats at most work
//! that is already done. An outcome older than the subscription's last change is ignored: whoever enabled the
//! subscription again knew of the 410, and the next one disables it anew.

use crate::metrics;
use floodway_runtime::{
    backoff::Backoff,
    clock,
    kafka::{KafkaError, KafkaSettings},
};
use floodway_schemas::{
    config::SubscriptionState,
    outcome::{KIND_HEADER, Outcome, OutcomeKind},
    topic::Topic,
};
use floodway_store::{Pool, outbox::ConfigurationWrite, subscriptions};
use rdkafka::{
    Message,
    consumer::{BaseConsumer, CommitMode, Consumer},
    message::{BorrowedMessage, Headers},
};
use std::{
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tokio::{runtime::Handle, sync::Notify};
use tokio_util::sync::CancellationToken;

/// Name of the consumer group, after the topic prefix.
const GROUP: &str = "control-plane";
/// Longest wait for a record before the thread looks at the shutdown token again.
const POLL_WAIT: Duration = Duration::from_millis(200);
/// How often positions are committed while nothing is disabled.
const COMMIT_EVERY: Duration = Duration::from_secs(5);

/// The consumer and what it needs to do its work.
pub(crate) struct Disabler {
    pool: Pool,
    changed: Arc<Notify>,
    consumer: BaseConsumer,
    stop: CancellationToken,
}

impl Disabler {
    /// Starts the consumer on a thread of its own; it ends when `stop` is cancelled. Kafka need not be reachable yet.
    /// `changed` is notified of every change, to be published.
    pub(crate) fn start(
        kafka: &KafkaSettings,
        pool: Pool,
        changed: Arc<Notify>,
        stop: CancellationToken,
    ) -> Result<JoinHandle<()>, KafkaError> {
        let consumer: BaseConsumer = kafka.consumer(GROUP).create()?;
        consumer.subscribe(&[&kafka.topic(Topic::Outcomes)])?;
        let disabler = Self { pool, changed, consumer, stop };
        let runtime = Handle::current();
        Ok(std::thread::Builder::new().name("disable".to_owned()).spawn(move || disabler.run(&runtime))?)
    }

    fn run(self, runtime: &Handle) {
        let mut committed_at = Instant::now();
        while !self.stop.is_cancelled() {
            match self.consumer.poll(POLL_WAIT) {
                None => {}
                Some(Err(error)) => tracing::debug!(%error, "outcomes are not readable now"),
                Some(Ok(record)) => {
                    let disables = is_disable(&record);
                    if disables && !runtime.block_on(self.disable(&record)) {
                        // Shutting down before the change was stored: the record comes again.
                        break;
                    }
                    if let Err(error) = self.consumer.store_offset_from_message(&record) {
                        // The partition was taken away meanwhile; its next owner starts at the commit.
                        tracing::debug!(%error, "position of outcomes not kept");
                    }
                    if disables {
                        self.commit(CommitMode::Async);
                    }
                }
            }
            if committed_at.elapsed() >= COMMIT_EVERY {
                self.commit(CommitMode::Async);
                committed_at = Instant::now();
            }
        }
        self.commit(CommitMode::Sync);
    }

    fn commit(&self, mode: CommitMode) {
        if let Err(error) = self.consumer.commit_consumer_state(mode) {
            // Nothing new to commit is an error too.
            tracing::debug!(%error, "position of outcomes not committed");
        }
    }

    /// Disables the record's subscription, for as long as it takes. `false` when the process ends first.
    async fn disable(&self, record: &BorrowedMessage<'_>) -> bool {
        let outcome = match Outcome::decode(record.payload().unwrap_or_default()) {
            Ok(outcome) => outcome,
            Err(error) => {
                tracing::warn!(partition = record.partition(), offset = record.offset(), %error, "outcome skipped");
                return true;
            }
        };
        let mut backoff = Backoff::default();
        loop {
            match self.store(&outcome).await {
                Ok(()) => return true,
                Err(error) => {
                    tracing::warn!(subscription = %outcome.subscription, %error, "subscription not disabled yet");
                }
            }
            if self.stop.run_until_cancelled(backoff.wait()).await.is_none() {
                return false;
            }
        }
    }

    async fn store(&self, outcome: &Outcome<'_>) -> Result<(), floodway_store::Error> {
        let mut client = self.pool.get().await?;
        // A gone endpoint gives many such outcomes until the dispatcher knows: most need no lock.
        let wanted = |row: &subscriptions::SubscriptionRow| {
            row.record.state != SubscriptionState::Disabled && outcome.at >= row.updated_at
        };
        match subscriptions::get(&**client, outcome.tenant, outcome.subscription).await {
            Ok(row) if wanted(&row) => {}
            Ok(_) | Err(floodway_store::Error::NotFound(_)) => return Ok(()),
            Err(error) => return Err(error),
        }
        let mut write = ConfigurationWrite::begin(&mut client).await?;
        match subscriptions::get(write.reader(), outcome.tenant, outcome.subscription).await {
            Ok(mut row) if wanted(&row) => {
                row.record.state = SubscriptionState::Disabled;
                subscriptions::update(&mut write, &mut row, clock::now()).await?;
            }
            Ok(_) | Err(floodway_store::Error::NotFound(_)) => return Ok(()),
            Err(error) => return Err(error),
        }
        write.commit().await?;
        self.changed.notify_one();
        metrics::disabled();
        tracing::info!(subscription = %outcome.subscription, "endpoint answered 410 Gone: subscription disabled");
        Ok(())
    }
}

fn is_disable(record: &BorrowedMessage<'_>) -> bool {
    let kind = OutcomeKind::Disable.as_str().as_bytes();
    record.headers().is_some_and(|headers| {
        headers.iter().any(|header| header.key == KIND_HEADER && header.value == Some(kind))
    })
}
