//! The one producer that may write to `config`, fenced by Kafka.
//!
//! Records are written in transactions under a transactional id that all replicas share. Taking over raises the id's
//! epoch and ends the transaction that an earlier producer left: whatever that one still sends, however late, Kafka
//! refuses. Readers see committed records only, which is the client's default, so a batch cut off appears to nobody.

use crate::records::{MESSAGE_TIMEOUT_MS, Records};
use floodway_runtime::kafka::KafkaSettings;
use floodway_store::outbox::OutboxRow;
use rdkafka::{
    error::{KafkaError, RDKafkaErrorCode},
    producer::Producer,
};
use std::time::Duration;
use tokio::runtime::Handle;

/// The transactional id, without the prefix.
const TRANSACTIONAL_ID: &str = "config-publisher";
/// Longest time that a transaction stays open when its producer is gone and nobody takes over, in milliseconds: for as
/// long, readers get nothing that comes after it. Not below the time that a record may take.
const TRANSACTION_TIMEOUT_MS: &str = "10000";
/// Wait before the coordinator is asked again, in milliseconds. It still ends a transaction when the next one begins, and
/// says so for a moment: with the default of 100 ms, changes in quick succession took twice as long (48 instead of 23 ms).
const RETRY_BACKOFF_MS: &str = "10";
/// Longest wait for the coordinator's answer. What takes longer is given up, and begins with another takeover.
const COORDINATOR_TIMEOUT: Duration = Duration::from_secs(10);

/// The right to write, until another process takes over.
pub(crate) struct FencedRecords {
    topic: String,
    /// Present until it is dropped.
    records: Option<Records>,
}

impl FencedRecords {
    /// Shuts every earlier producer out.
    pub(crate) async fn take_over(kafka: &KafkaSettings, topic: String) -> Result<Self, KafkaError> {
        let mut config = kafka.producer();
        config
            .set("transactional.id", kafka.group(TRANSACTIONAL_ID))
            .set("transaction.timeout.ms", TRANSACTION_TIMEOUT_MS)
            .set("retry.backoff.ms", RETRY_BACKOFF_MS)
            .set("message.timeout.ms", MESSAGE_TIMEOUT_MS);
        let fenced = Self { topic, records: Some(Records::from_config(config)?) };
        fenced.blocking(|_, records| records.producer().init_transactions(COORDINATOR_TIMEOUT)).await?;
        Ok(fenced)
    }

    /// Writes rows in their order, all or none, and answers the last one's offset. After an error this is of no more use:
    /// only another takeover tells what became of them.
    pub(crate) async fn write(&self, rows: Vec<OutboxRow>) -> Result<Option<i64>, KafkaError> {
        self.blocking(move |topic, records| {
            records.producer().begin_transaction()?;
            let in_flight = rows
                .iter()
                .map(|row| records.send(topic, &row.entity_key, row.value.as_deref()))
                .collect::<Result<Vec<_>, _>>()?;
            let mut last = None;
            for record in in_flight {
                last = Some(record.blocking_acknowledged()?);
            }
            records.producer().commit_transaction(COORDINATOR_TIMEOUT)?;
            Ok(last)
        })
        .await
    }

    /// Runs calls that wait for Kafka where waiting disturbs nobody.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&str, &Records) -> Result<T, KafkaError> + Send + 'static,
    ) -> Result<T, KafkaError> {
        let Some(records) = self.records.clone() else { return Err(KafkaError::Canceled) };
        let topic = self.topic.clone();
        let done = tokio::task::spawn_blocking(move || work(&topic, &records)).await;
        done.unwrap_or(Err(KafkaError::MessageProduction(RDKafkaErrorCode::Fail)))
    }
}

impl Drop for FencedRecords {
    /// Ending a client waits for its threads.
    fn drop(&mut self) {
        let records = self.records.take();
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn_blocking(move || drop(records));
        }
    }
}
