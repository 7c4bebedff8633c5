//! The outbox: every change of configuration, in order, on its way to the `config` topic.
//!
//! A change and its outbox row are one transaction, and all such transactions take turns by one advisory lock. So ids
//! have no gaps, and whoever reads ids above *n* sees every change after *n*: none becomes visible late. The lock costs
//! nothing that matters: configuration changes at the pace of people and scripts.

use crate::{
    Error, advisory,
    pool::{Client, LIMITS},
};
use deadpool_postgres::Transaction;
use floodway_schemas::config::{ConfigChange, ConfigKey};
use tokio_postgres::{
    Client as Session, GenericClient,
    types::{ToSql, Type},
};

/// A transaction that may write configuration: it holds the lock. Dropped without [`ConfigurationWrite::commit`], it
/// changes nothing.
pub struct ConfigurationWrite<'client> {
    transaction: Transaction<'client>,
    last_id: i64,
}

/// A row to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxRow {
    /// Position, from 1 without gaps.
    pub id: i64,
    /// Kafka key.
    pub entity_key: String,
    /// Kafka value; `None` is a tombstone.
    pub value: Option<Vec<u8>>,
}

/// How far the outbox was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Published {
    /// Last published row; 0 before the first.
    pub outbox_id: i64,
    /// Its offset in the `config` topic; `None` before the first.
    pub kafka_offset: Option<i64>,
}

impl<'client> ConfigurationWrite<'client> {
    /// Begins a transaction and waits for its turn.
    pub async fn begin(client: &'client mut Client) -> Result<Self, Error> {
        let transaction = client.transaction().await?;
        let sql = format!("-- begin\nSELECT {LIMITS}, pg_advisory_xact_lock($1)");
        transaction.execute_typed(&sql, &[(&advisory::CONFIGURATION, Type::INT8)]).await?;
        Ok(Self { transaction, last_id: 0 })
    }

    /// For reading within the transaction: what was read stays true until it ends, for no one else can write.
    pub fn reader(&self) -> &tokio_postgres::Transaction<'client> {
        &self.transaction
    }

    /// Appends a change to the outbox.
    pub async fn append(&mut self, change: &ConfigChange) -> Result<(), Error> {
        let key = change.key().to_string();
        let value = change.encode().map_err(|error| Error::Other(format!("config record: {error}")))?;
        // Published rows may have been pruned, so the position also counts.
        let sql = "-- append
            INSERT INTO config_outbox (id, entity_key, value)
            SELECT greatest(
                (SELECT coalesce(max(id), 0) FROM config_outbox),
                (SELECT outbox_id FROM config_publication)
            ) + 1, $1, $2
            RETURNING id";
        let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&key, Type::TEXT), (&value, Type::BYTEA)];
        let row = self.transaction.query_typed_one(sql, &parameters).await?;
        self.last_id = row.try_get(0)?;
        Ok(())
    }

    /// Appends deletions, in this order. One statement, however many: a tenant may have thousands of subscriptions.
    pub async fn append_deletions(&mut self, deleted: &[ConfigKey]) -> Result<(), Error> {
        if deleted.is_empty() {
            return Ok(());
        }
        let keys: Vec<String> = deleted.iter().map(ToString::to_string).collect();
        let sql = "-- append_deletions
            WITH appended AS (
                INSERT INTO config_outbox (id, entity_key, value)
                SELECT greatest(
                    (SELECT coalesce(max(id), 0) FROM config_outbox),
                    (SELECT outbox_id FROM config_publication)
                ) + place, key, NULL
                FROM unnest($1::text[]) WITH ORDINALITY AS deleted (key, place)
                RETURNING id
            )
            SELECT max(id) FROM appended";
        let row = self.transaction.query_typed_one(sql, &[(&keys, Type::TEXT_ARRAY)]).await?;
        self.last_id = row.try_get(0)?;
        Ok(())
    }

    /// Commits, and returns the id of the last appended change; 0 when nothing was appended.
    pub async fn commit(self) -> Result<i64, Error> {
        self.transaction.commit().await?;
        Ok(self.last_id)
    }
}

/// Tries to become the one publisher; the session holds the right until it ends. Also makes the server notice within
/// half a minute that the publisher's machine is gone, for a lost session would otherwise block its successors for hours.
pub async fn try_become_publisher(session: &Session) -> Result<bool, Error> {
    session
        .batch_execute(
            "-- try_become_publisher: keepalive
            SET tcp_keepalives_idle = 15; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3",
        )
        .await?;
    let row = session
        .query_typed_one(
            "-- try_become_publisher\nSELECT pg_try_advisory_lock($1)",
            &[(&advisory::PUBLISHER, Type::INT8)],
        )
        .await?;
    Ok(row.try_get(0)?)
}

/// How far the outbox was published.
pub async fn published(client: &impl GenericClient) -> Result<Published, Error> {
    let sql = "-- published\nSELECT outbox_id, kafka_offset FROM config_publication";
    let row = client.query_typed_one(sql, &[]).await?;
    Ok(Published { outbox_id: row.try_get(0)?, kafka_offset: row.try_get(1)? })
}

/// The next rows after `id`, in order.
pub async fn rows_after(client: &impl GenericClient, id: i64, limit: i64) -> Result<Vec<OutboxRow>, Error> {
    let sql = "-- rows_after
        SELECT id, entity_key, value FROM config_outbox WHERE id > $1 ORDER BY id LIMIT $2";
    let rows = client.query_typed(sql, &[(&id, Type::INT8), (&limit, Type::INT8)]).await?;
    rows.iter()
        .map(|row| Ok(OutboxRow { id: row.try_get(0)?, entity_key: row.try_get(1)?, value: row.try_get(2)? }))
        .collect()
}

/// Records that all rows up to `position` are on the topic. Never moves backwards, so that a publisher that lost its
/// session and does not know it yet cannot undo its successor's work.
pub async fn record_published(client: &impl GenericClient, position: Published) -> Result<(), Error> {
    let sql = "-- record_published
        UPDATE config_publication SET outbox_id = $1, kafka_offset = $2, published_at = now() WHERE outbox_id <= $1";
    let parameters: [(&(dyn ToSql + Sync), Type); 2] =
        [(&position.outbox_id, Type::INT8), (&position.kafka_offset, Type::INT8)];
    client.execute_typed(sql, &parameters).await?;
    Ok(())
}

/// Deletes published rows, except for the last `keep`.
pub async fn prune(client: &impl GenericClient, keep: i64) -> Result<u64, Error> {
    let sql = "-- prune
        DELETE FROM config_outbox WHERE id <= (SELECT outbox_id FROM config_publication) - $1";
    Ok(client.execute_typed(sql, &[(&keep, Type::INT8)]).await?)
}
