//! From the outbox to the `config` topic, in order.
//!
//! Of all replicas one publishes: the one whose session holds the advisory lock. It reads rows after the recorded
//! position, writes them to the topic, waits for their acknowledgement and records the new position. Whatever fails, it
//! begins again from the recorded position:
//!
//! - Dies between acknowledgement and recording: the same records are written again. Consumers ignore a version that is
//!   not newer. A batch never holds two records of one entity, so the repeat cannot bring back a state in between,
//!   which matters for deletions, because a tombstone has no version.
//! - Loses its session without noticing: the server gives the lock of a silent session away after 30 s, that of a
//!   session cut off at once. The successor shuts the old producer out (see [`crate::fenced`]) *before* it reads the
//!   recorded position, so nothing older can reach the topic behind what it writes, however late it was sent. That
//!   matters for tombstones, too: an older record that came after one would bring the entity back for good. The old
//!   publisher's next read goes over its lost session and fails.
//! - Takes over so slowly that it lost the lock again meanwhile: it may shut its successor out. But then its session is
//!   gone, and with it the read of the position, so it writes nothing; the successor's next batch fails, and it takes
//!   over anew.
//! - Stands by: follows the recorded position every 50 ms, and tries for the lock once a second.
//!
//! Handlers wait for their change's row by [`Publication::settled`]: told at once when the publisher is in this process, by
//! following the recorded position otherwise. They need no connection while they wait.

use crate::{fenced::FencedRecords, metrics};
use floodway_runtime::{backoff::Backoff, health::Component, kafka::KafkaSettings};
use floodway_store::{
    Pool,
    migrate::check_schema,
    outbox::{self, OutboxRow, Published},
    pool::DedicatedClient,
};
use rdkafka::error::KafkaError;
use std::{collections::HashSet, sync::Arc, time::Duration};
use thiserror::Error;
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// Most rows read at once. A row is at most the size of a subscription, tens of kilobytes.
const BATCH_ROWS: i64 = 100;
/// Rows kept after their publication, for whoever looks into what happened.
const KEPT_ROWS: i64 = 10_000;
/// How often the publisher looks for rows of other replicas. Rows of its own process wake it at once.
const IDLE_WAIT: Duration = Duration::from_millis(100);
/// How often a replica that stands by looks at the recorded position.
const STANDBY_POLL: Duration = Duration::from_millis(50);
/// Looks after which it tries to become the publisher: once a second.
const STANDBY_POLLS: u32 = 20;

/// What handlers hold: wakes the publisher and waits for it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Publication {
    deadline: Duration,
    position: watch::Receiver<Published>,
    wake: Arc<Notify>,
}

/// Why publishing stopped; it begins anew after a pause.
#[derive(Debug, Error)]
enum PublishError {
    #[error(transparent)]
    Store(#[from] floodway_store::Error),
    #[error("config topic: {0}")]
    Kafka(#[from] KafkaError),
}

/// Publishes while it is this process's turn.
pub(crate) struct Publisher {
    pool: Pool,
    settings: KafkaSettings,
    topic: String,
    position: watch::Sender<Published>,
    wake: Arc<Notify>,
    postgresql: Component,
    kafka: Component,
}

impl Publication {
    /// Wakes the publisher of this process, for changes that nobody waits for.
    pub(crate) fn waker(&self) -> Arc<Notify> {
        Arc::clone(&self.wake)
    }

    /// Waits until the outbox row `id` is on the topic. Answers the offset by which it is: a consumer that has read so far
    /// knows the change. `None` when the deadline passes first; the change is stored and will be published.
    pub(crate) async fn settled(&self, id: i64) -> Option<i64> {
        self.wake.notify_one();
        let mut position = self.position.clone();
        let reached = position.wait_for(|position| position.outbox_id >= id);
        // The sender only vanishes with the process.
        timeout(self.deadline, reached).await.ok()?.ok()?.kafka_offset
    }
}

impl Publisher {
    pub(crate) fn new(
        pool: Pool,
        settings: KafkaSettings,
        topic: String,
        deadline: Duration,
        postgresql: Component,
        kafka: Component,
    ) -> (Self, Publication) {
        let wake = Arc::new(Notify::new());
        let (sender, position) = watch::channel(Published::default());
        let publication = Publication { deadline, position, wake: Arc::clone(&wake) };
        (Self { pool, settings, topic, position: sender, wake, postgresql, kafka }, publication)
    }

    /// Publishes until `stop` is cancelled.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut backoff = Backoff::default();
        loop {
            let result = stop.run_until_cancelled(self.hold_session(&mut backoff)).await;
            metrics::publisher(false);
            let Some(Err(error)) = result else { return };
            metrics::publish_failure();
            tracing::warn!(%error, "publishing of configuration stopped, trying again");
            match error {
                PublishError::Store(error) => self.postgresql.down(error.to_string()),
                PublishError::Kafka(error) => self.kafka.down(error.to_string()),
            }
            if stop.run_until_cancelled(backoff.wait()).await.is_none() {
                return;
            }
        }
    }

    /// Waits for this process's turn, then publishes until something fails.
    async fn hold_session(&self, backoff: &mut Backoff) -> Result<(), PublishError> {
        check_schema(&self.pool).await?;
        let session = self.pool.dedicated().await?;
        while !outbox::try_become_publisher(&session).await? {
            self.postgresql.up();
            self.stand_by(&session).await?;
        }
        let records = FencedRecords::take_over(&self.settings, self.topic.clone()).await?;
        metrics::publisher(true);
        tracing::info!("this process publishes configuration");
        let mut position = outbox::published(&*session).await?;
        loop {
            self.position.send_replace(position);
            let mut rows = outbox::rows_after(&*session, position.outbox_id, BATCH_ROWS).await?;
            self.postgresql.up();
            if rows.is_empty() {
                // A permit left by a change that came meanwhile makes this return at once.
                let _ = timeout(IDLE_WAIT, self.wake.notified()).await;
                continue;
            }
            rows.truncate(distinct_entities(&rows));
            position = publish(&session, &records, rows).await?;
            self.kafka.up();
            backoff.reset();
        }
    }

    /// Follows the publisher's progress for a while, so that changes made in this process are answered.
    async fn stand_by(&self, session: &DedicatedClient) -> Result<(), PublishError> {
        for _ in 0..STANDBY_POLLS {
            self.position.send_replace(outbox::published(&**session).await?);
            tokio::time::sleep(STANDBY_POLL).await;
        }
        Ok(())
    }
}

async fn publish(
    session: &DedicatedClient,
    records: &FencedRecords,
    rows: Vec<OutboxRow>,
) -> Result<Published, PublishError> {
    let (n, outbox_id) = (rows.len(), rows.last().map_or(0, |row| row.id));
    let position = Published { outbox_id, kafka_offset: records.write(rows).await? };
    outbox::record_published(&**session, position).await?;
    outbox::prune(&**session, KEPT_ROWS).await?;
    metrics::published(n as u64, outbox_id);
    Ok(position)
}

/// How many rows come before the first that repeats an entity.
fn distinct_entities(rows: &[OutboxRow]) -> usize {
    let mut seen = HashSet::with_capacity(rows.len());
    rows.iter().position(|row| !seen.insert(&row.entity_key)).unwrap_or(rows.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_ends_before_an_entity_repeats() {
        let row = |id: i64, key: &str| OutboxRow { id, entity_key: key.to_owned(), value: None };
        let rows = [row(1, "a"), row(2, "b"), row(3, "a"), row(4, "c")];
        assert_eq!(distinct_entities(&rows), 2);
        assert_eq!(distinct_entities(&rows[2..]), 2);
        assert_eq!(distinct_entities(&rows[..1]), 1);
    }
}
