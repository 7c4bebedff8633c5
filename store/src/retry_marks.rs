//! What commands to pending retries leave behind, and finding the retries that they are about.
//!
//! Retries have one index, by due time. So those that a command is about are found by going through all that are pending in a shard, a
//! page at a time and without their records; their owner does so only while a command asks for it.

use crate::{
    DbInstant, Error,
    retry::{Batch, PendingRetry, Position, WriteError, pending_from_row},
};
use floodway_schemas::retry_command::RetryAction;
use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};
use uuid::Uuid;

/// A command as a shard keeps it. Fields that are `None` do not restrict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Its place in the log, as an outcome's id.
    pub id: i64,
    /// It covers no retry with a lower id. Not 0 where the log was cut short: a command that is read again covers what is read again
    /// with it, for it was heeded before by what was there before.
    pub first_id: i64,
    /// No retry that it covers is due later.
    pub until: DbInstant,
    /// When it was stored.
    pub recorded_at: DbInstant,
    /// The command's identity.
    pub command: Uuid,
    /// What is to become of the retries.
    pub action: RetryAction,
    /// Whose they are.
    pub tenant: Uuid,
    /// To this subscription.
    pub subscription: Option<Uuid>,
    /// Of the event with this id.
    pub event_id: Option<String>,
    /// The one with this id.
    pub retry_id: Option<i64>,
    /// For [`RetryAction::Now`]: up to here its work is done.
    pub done: i64,
}

/// What of a pending retry says whether a mark covers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its place.
    pub position: Position,
    /// Owner of the event.
    pub tenant: Uuid,
    /// Whom to deliver to.
    pub subscription: Uuid,
    /// The event's id.
    pub event_id: String,
}

const COPY: &str = "COPY retry_mark (until, shard, id, recorded_at, command, action, tenant_id, subscription_id, event_id, \
     retry_id, done, first_id) FROM STDIN BINARY";

const COLUMNS: [Type; 12] = [
    Type::TIMESTAMPTZ,
    Type::INT4,
    Type::INT8,
    Type::TIMESTAMPTZ,
    Type::UUID,
    Type::TEXT,
    Type::UUID,
    Type::UUID,
    Type::TEXT,
    Type::INT8,
    Type::INT8,
    Type::INT8,
];

impl Batch<'_> {
    /// When the last retry of the shard is due that the cursor has not passed, those of this transaction included.
    pub async fn last_due(&self, shard: i32) -> Result<Option<DbInstant>, WriteError> {
        let sql = "-- last_due
            SELECT due_at FROM retry WHERE shard = $1 AND due_at >= $2 ORDER BY due_at DESC LIMIT 1";
        let parameters: [(&(dyn ToSql + Sync), Type); 2] =
            [(&shard, Type::INT4), (&self.cursor.due, Type::TIMESTAMPTZ)];
        let row = self.transaction().query_typed_opt(sql, &parameters).await?;
        Ok(row.map(|row| row.try_get(0)).transpose()?)
    }

    /// Appends marks.
    pub async fn add_marks(&self, shard: i32, rows: &[&Mark]) -> Result<(), WriteError> {
        self.copy(COPY, &COLUMNS, rows, async |writer, row| {
            let action = row.action.as_str();
            let values: [&(dyn ToSql + Sync); COLUMNS.len()] = [
                &row.until,
                &shard,
                &row.id,
                &row.recorded_at,
                &row.command,
                &action,
                &row.tenant,
                &row.subscription,
                &row.event_id,
                &row.retry_id,
                &row.done,
                &row.first_id,
            ];
            writer.write(&values).await
        })
        .await
    }
}

/// The marks of a shard that may still cover a retry behind `cursor`, in the order of the log.
pub async fn marks(
    client: &tokio_postgres::Client,
    shard: i32,
    cursor: Position,
) -> Result<Vec<Mark>, Error> {
    let sql = "-- retry_marks
        SELECT DISTINCT ON (m.id) m.id, m.until, m.recorded_at, m.command, m.action, m.tenant_id, m.subscription_id,
               m.event_id, m.retry_id, m.done, m.first_id
        FROM retry_mark m
        WHERE m.shard = $1 AND m.until >= $2 AND m.action IN ('now', 'cancel')
        ORDER BY m.id, m.done DESC";
    let parameters: [(&(dyn ToSql + Sync), Type); 2] =
        [(&shard, Type::INT4), (&cursor.due, Type::TIMESTAMPTZ)];
    client.query_typed(sql, &parameters).await?.iter().map(mark_from_row).collect()
}

/// Pending retries of a shard after a place, in order, without their records and without leases.
pub async fn candidates(
    client: &tokio_postgres::Client,
    shard: i32,
    after: Position,
    limit: i64,
) -> Result<Vec<Candidate>, Error> {
    let sql = "-- retry_candidates
        SELECT due_at, id, tenant_id, subscription_id, event_id FROM retry
        WHERE shard = $1 AND due_at >= $2 AND (due_at, id) > ($2, $3) AND NOT lease
        ORDER BY due_at, id LIMIT $4";
    let parameters: [(&(dyn ToSql + Sync), Type); 4] = [
        (&shard, Type::INT4),
        (&after.due, Type::TIMESTAMPTZ),
        (&after.id, Type::INT8),
        (&limit, Type::INT8),
    ];
    let rows = client.query_typed(sql, &parameters).await?;
    rows.iter()
        .map(|row| {
            Ok(Candidate {
                position: Position { due: row.try_get(0)?, id: row.try_get(1)? },
                tenant: row.try_get(2)?,
                subscription: row.try_get(3)?,
                event_id: row.try_get(4)?,
            })
        })
        .collect()
}

/// The retries at some places, in the order of their ids, at most `max_bytes` of records but at least one.
///
/// Each place is looked up in the index by itself: what the planner believes of the partitions does not matter.
pub async fn at_places(
    client: &tokio_postgres::Client,
    shard: i32,
    places: &[Position],
    max_bytes: i64,
) -> Result<Vec<PendingRetry>, Error> {
    let sql = "-- retries_at_places
        SELECT due_at, id, record_key, rec FROM (
            SELECT wanted.due_at, wanted.id, found.record_key, found.rec,
                   sum(octet_length(found.rec)) OVER (ORDER BY wanted.id ROWS UNBOUNDED PRECEDING) AS bytes,
                   row_number() OVER (ORDER BY wanted.id) AS place
            FROM unnest($2::timestamptz[], $3::int8[]) AS wanted (due_at, id)
            CROSS JOIN LATERAL (
                SELECT record_key, rec FROM retry
                WHERE shard = $1 AND due_at = wanted.due_at AND id = wanted.id LIMIT 1
            ) AS found
        ) AS measured
        WHERE bytes <= $4 OR place = 1
        ORDER BY id";
    let dues: Vec<DbInstant> = places.iter().map(|place| place.due).collect();
    let ids: Vec<i64> = places.iter().map(|place| place.id).collect();
    let parameters: [(&(dyn ToSql + Sync), Type); 4] = [
        (&shard, Type::INT4),
        (&dues, Type::TIMESTAMPTZ_ARRAY),
        (&ids, Type::INT8_ARRAY),
        (&max_bytes, Type::INT8),
    ];
    let rows = client.query_typed(sql, &parameters).await?;
    rows.iter().map(pending_from_row).collect()
}

fn mark_from_row(row: &Row) -> Result<Mark, Error> {
    Ok(Mark {
        id: row.try_get(0)?,
        until: row.try_get(1)?,
        recorded_at: row.try_get(2)?,
        command: row.try_get(3)?,
        action: if row.try_get::<_, &str>(4)? == "now" { RetryAction::Now } else { RetryAction::Cancel },
        tenant: row.try_get(5)?,
        subscription: row.try_get(6)?,
        event_id: row.try_get(7)?,
        retry_id: row.try_get(8)?,
        done: row.try_get(9)?,
        first_id: row.try_get(10)?,
    })
}
