//! Disables subscriptions whose endpoint answered 410 Gone.
//!
//! A consumer of `outcomes` in a group of its own. It looks at the kind in each record's header and decodes only the few
//! that say `disable`. The offset is committed after the change is in the database, so a crash repeats at most work
//! that is already done. An outcome older than the subscription's last change is ignored: whoever enabled the
//! subscription again knew of the 410, and the next one disables it anew.

use crate::{metrics, outcomes::Outcomes};
use floodway_runtime::{
    backoff::Backoff,
    clock,
    kafka::{KafkaError, KafkaSettings},
};
use floodway_schemas::{
    config::SubscriptionState,
    outcome::{KIND_HEADER, Outcome, OutcomeKind},
};
use floodway_store::{Pool, outbox::ConfigurationWrite, subscriptions};
use rdkafka::{
    Message,
    consumer::CommitMode,
    message::{BorrowedMessage, Headers},
};
use std::{
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tokio::{runtime::Handle, sync::Notify};
use tokio_util::sync::CancellationToken;

/// How often positions are committed while nothing is disabled.
const COMMIT_EVERY: Duration = Duration::from_secs(5);

/// What the consumer needs to do its work.
pub(crate) struct Disabler {
    pool: Pool,
    changed: Arc<Notify>,
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
        let (outcomes, runtime) = (Outcomes::new(kafka)?, Handle::current());
        let disabler = Self { pool, changed, stop };
        let thread = std::thread::Builder::new().name("disable".to_owned());
        Ok(thread.spawn(move || disabler.run(outcomes, &runtime))?)
    }

    fn run(self, mut outcomes: Outcomes, runtime: &Handle) {
        let mut committed_at = Instant::now();
        while !self.stop.is_cancelled() {
            if let Some(record) = outcomes.next() {
                let disables = is_disable(&record);
                if disables && !runtime.block_on(self.disable(&record)) {
                    // Shutting down before the change was stored: the record comes again.
                    break;
                }
                outcomes.is_done(&record);
                if disables {
                    outcomes.commit(CommitMode::Async);
                }
            }
            if committed_at.elapsed() >= COMMIT_EVERY {
                outcomes.commit(CommitMode::Async);
                committed_at = Instant::now();
            }
            outcomes.look_after_client();
        }
        outcomes.commit(CommitMode::Sync);
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
