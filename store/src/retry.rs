//! Progress of the shards, and the transaction that stores a batch of outcomes together with the Kafka position it
//! came from.
//!
//! Every write is fenced: it names the epoch of its owner's takeover, and finds no row once another one took over.
//! The row lock taken by the first statement of a batch serialises owners, so a takeover waits for a batch that is
//! still open, and a batch begun later is refused.

use crate::{
    DbInstant, Error,
    copy::CopyWriter,
    dead_letters::{self, NewDeadLetter},
    deliveries::{self, CountDelta, NewDelivery},
    pool::{Client, LIMITS, TRANSACTION_TIMEOUT},
};
use deadpool_postgres::Transaction;
use futures_util::TryStreamExt;
use std::pin::pin;
use thiserror::Error as ThisError;
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

/// A place in the order in which a shard's retries fall due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// When.
    pub due: DbInstant,
    /// Among those due at the same instant: id of the outcome.
    pub id: i64,
}

impl Position {
    /// After everything that is due at `due`.
    pub fn end_of(due: DbInstant) -> Self {
        Self { due, id: i64::MAX }
    }

    /// The last place before this one.
    pub fn before(self) -> Self {
        match self.id.checked_sub(1) {
            Some(id) => Self { id, ..self },
            None => Self::end_of(DbInstant(self.due.0.saturating_sub(1))),
        }
    }
}

/// Ids that the outcomes of one log have at most. Those of a log made anew begin behind them, so that an id never comes again:
/// no partition of Kafka gets as far.
const IDS_PER_LOG: i64 = 1 << 44;

/// A shard as its row has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// Of the current owner.
    pub epoch: i64,
    /// Next offset of `outcomes` to read.
    pub next_offset: i64,
    /// Id of what came, or would have come, from offset 0 of the log as it is now.
    pub first_id: i64,
    /// Records before this offset may have been read before, when the log was longer: their outcomes had other ids then.
    pub read_again_to: i64,
    /// Everything up to here was produced and acknowledged.
    pub cursor: Position,
    /// When `next_offset` last moved.
    pub batched_at: DbInstant,
    /// The server's clock, read in the same statement.
    pub db_now: DbInstant,
}

/// A row to be delivered later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRetry {
    /// Place in the order of the shard.
    pub position: Position,
    /// Owner of the event.
    pub tenant: Uuid,
    /// Whom to deliver to.
    pub subscription: Uuid,
    /// The event's id.
    pub event_id: String,
    /// Number of the attempt to make.
    pub attempt: i32,
    /// Whether it is a delivery under way, see [`floodway_schemas::due::Due::lease`].
    pub lease: bool,
    /// Kafka key of the record on `due`.
    pub record_key: String,
    /// Its value.
    pub record: Vec<u8>,
}

/// What of a pending row is needed to produce it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingRetry {
    /// Place in the order of the shard.
    pub position: Position,
    /// Kafka key of the record on `due`.
    pub record_key: String,
    /// Its value.
    pub record: Vec<u8>,
}

/// Why a batch was not written.
#[derive(Debug, ThisError)]
pub enum WriteError {
    /// Another owner took over, or the row is not where this owner left it.
    #[error("another process owns the shard")]
    Fenced,
    /// A row's partition does not exist yet: create partitions, then try again.
    #[error("a partition is missing")]
    MissingPartition,
    /// The server refuses a row for what is in it: trying again does not help.
    #[error("the database refuses a row: {0}")]
    Refused(String),
    /// Anything else.
    #[error(transparent)]
    Store(#[from] Error),
}

impl From<tokio_postgres::Error> for WriteError {
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(answer) = error.as_db_error() else {
            return Self::Store(error.into());
        };
        // Text is the only thing that tells the two uses of check_violation apart; a constraint has a name.
        match answer.code().code() {
            "23514" if answer.constraint().is_none() => Self::MissingPartition,
            code if ["22", "23", "54"].iter().any(|class| code.starts_with(class)) => {
                Self::Refused(format!("{} (SQLSTATE {code})", answer.message()))
            }
            _ => Self::Store(error.into()),
        }
    }
}

/// Makes the caller the owner of a shard, creating its row on first use with `first_offset` as the place to start.
/// Waits while an earlier owner's transaction is open.
///
/// Epochs follow the clock, not each other: a database that comes back without its last commits, a takeover among them,
/// would otherwise give the same epoch again, and the owner that it was taken from could write as if it were the new one.
pub async fn take_over(
    client: &tokio_postgres::Client,
    shard: i32,
    owner: &str,
    first_offset: i64,
) -> Result<Shard, Error> {
    let sql = "-- take_over
        INSERT INTO retry_shard (shard, epoch, owner, next_offset, cur_due, cur_id, batched_at)
        VALUES (
            $1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, $2, $3, clock_timestamp(), 0, clock_timestamp()
        )
        ON CONFLICT (shard) DO UPDATE
        SET epoch = greatest(retry_shard.epoch + 1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint),
            owner = excluded.owner
        RETURNING epoch, next_offset, first_id, read_again_to, cur_due, cur_id, batched_at, clock_timestamp()";
    let parameters: [(&(dyn ToSql + Sync), Type); 3] =
        [(&shard, Type::INT4), (&owner, Type::TEXT), (&first_offset, Type::INT8)];
    shard_from_row(&client.query_typed_one(sql, &parameters).await?)
}

/// Ends sessions that hold a shard's row for longer than any transaction may, and answers how many: their process hangs,
/// or its machine is gone, in the middle of a `COPY`. The server's own limits do not end these, for it does not look
/// at them while it waits for a client's data.
pub async fn end_hung_batches(client: &tokio_postgres::Client) -> Result<i64, Error> {
    let sql = "-- end_hung_batches
        SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()
          AND state = 'active' AND wait_event = 'ClientRead'
          AND query ~ '^COPY (retry|retry_mark|delivery|delivery_count|dead_letter) [(].*FROM STDIN BINARY'
          AND xact_start < clock_timestamp() - $1 * interval '1 millisecond'";
    let limit = TRANSACTION_TIMEOUT.as_millis() as f64;
    Ok(client.query_typed_one(sql, &[(&limit, Type::FLOAT8)]).await?.try_get(0)?)
}

/// The shard's row if `epoch` still owns it; `None` when another owner took over.
pub async fn read(client: &tokio_postgres::Client, shard: i32, epoch: i64) -> Result<Option<Shard>, Error> {
    let sql = "-- read_shard
        SELECT epoch, next_offset, first_id, read_again_to, cur_due, cur_id, batched_at, clock_timestamp()
        FROM retry_shard WHERE shard = $1 AND epoch = $2";
    let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&shard, Type::INT4), (&epoch, Type::INT8)];
    client.query_typed_opt(sql, &parameters).await?.map(|row| shard_from_row(&row)).transpose()
}

/// Moves the cursor, which may also stay where it is: a sign of life. Answers the server's clock, or `None` when
/// another owner took over or the row is not where this owner left it.
pub async fn move_cursor(
    client: &tokio_postgres::Client,
    shard: i32,
    epoch: i64,
    next_offset: i64,
    cursor: Position,
) -> Result<Option<DbInstant>, Error> {
    let sql = "-- move_cursor
        UPDATE retry_shard SET cur_due = $4, cur_id = $5
        WHERE shard = $1 AND epoch = $2 AND next_offset = $3
        RETURNING clock_timestamp()";
    let parameters: [(&(dyn ToSql + Sync), Type); 5] = [
        (&shard, Type::INT4),
        (&epoch, Type::INT8),
        (&next_offset, Type::INT8),
        (&cursor.due, Type::TIMESTAMPTZ),
        (&cursor.id, Type::INT8),
    ];
    Ok(client.query_typed_opt(sql, &parameters).await?.map(|row| row.try_get(0)).transpose()?)
}

/// Moves the place to read from without storing anything, because the log no longer has it. Back in the log, its offsets may
/// be given to other outcomes: ids begin anew behind all that there are, and records before `read_again_to` may have been read before.
/// Answers the id of offset 0 from now on, or `None` when fenced.
pub async fn skip_to(
    client: &tokio_postgres::Client,
    shard: i32,
    epoch: i64,
    from: i64,
    to: i64,
    read_again_to: i64,
) -> Result<Option<i64>, Error> {
    let sql = "-- skip_to
        UPDATE retry_shard SET next_offset = $4, batched_at = clock_timestamp(),
            first_id = first_id + CASE WHEN $4 < $3 THEN $5 ELSE 0 END, read_again_to = $6
        WHERE shard = $1 AND epoch = $2 AND next_offset = $3
        RETURNING first_id";
    let parameters: [(&(dyn ToSql + Sync), Type); 6] = [
        (&shard, Type::INT4),
        (&epoch, Type::INT8),
        (&from, Type::INT8),
        (&to, Type::INT8),
        (&IDS_PER_LOG, Type::INT8),
        (&read_again_to, Type::INT8),
    ];
    Ok(client.query_typed_opt(sql, &parameters).await?.map(|row| row.try_get(0)).transpose()?)
}

/// The next rows after a position that are due before `until`, at most `limit` of them, and at most `max_bytes` of
/// records but at least one row.
///
/// The bounds are values, not a join with the shard's row, and the statement is planned anew each time: only then
/// are partitions pruned while planning, and their locks not taken. How many rows fit is found out first, without
/// fetching `rec` from its side table and without carrying it along: measuring the rows on their way took a third of a page's time.
pub async fn page(
    client: &tokio_postgres::Client,
    shard: i32,
    after: Position,
    until: DbInstant,
    limit: i64,
    max_bytes: i64,
) -> Result<Vec<PendingRetry>, Error> {
    let sql = "-- retry_page
        SELECT due_at, id, record_key, rec FROM (
            SELECT due_at, id, record_key, rec FROM retry
            WHERE shard = $1 AND due_at >= $2 AND (due_at, id) > ($2, $3) AND due_at < $4
            ORDER BY due_at, id LIMIT $5
        ) AS candidates
        ORDER BY due_at, id
        LIMIT (
            SELECT greatest(count(*), 1) FROM (
                SELECT sum(octet_length(rec)) OVER (ORDER BY due_at, id ROWS UNBOUNDED PRECEDING) AS bytes FROM (
                    SELECT due_at, id, rec FROM retry
                    WHERE shard = $1 AND due_at >= $2 AND (due_at, id) > ($2, $3) AND due_at < $4
                    ORDER BY due_at, id LIMIT $5
                ) AS sized
            ) AS measured
            WHERE bytes <= $6
        )";
    let parameters: [(&(dyn ToSql + Sync), Type); 6] = [
        (&shard, Type::INT4),
        (&after.due, Type::TIMESTAMPTZ),
        (&after.id, Type::INT8),
        (&until, Type::TIMESTAMPTZ),
        (&limit, Type::INT8),
        (&max_bytes, Type::INT8),
    ];
    // A row at a time: what was received of it goes once it is decoded, so a page is not in memory twice.
    let mut rows = pin!(client.query_typed_raw(sql, parameters).await?);
    let mut page = Vec::new();
    while let Some(row) = rows.try_next().await? {
        page.push(pending_from_row(&row)?);
    }
    Ok(page)
}

/// A row of `due_at, id, record_key, record`.
pub(crate) fn pending_from_row(row: &tokio_postgres::Row) -> Result<PendingRetry, Error> {
    Ok(PendingRetry {
        position: Position { due: row.try_get(0)?, id: row.try_get(1)? },
        record_key: row.try_get(2)?,
        record: row.try_get(3)?,
    })
}

/// The lowest cursor of all shards: retries due earlier are done. `None` before the first shard.
pub async fn lowest_cursor(client: &tokio_postgres::Client) -> Result<Option<DbInstant>, Error> {
    let sql = "-- lowest_cursor\nSELECT min(cur_due) FROM retry_shard";
    Ok(client.query_typed_one(sql, &[]).await?.try_get(0)?)
}

/// Shards with this number or a higher one.
pub async fn shards_from(client: &tokio_postgres::Client, first: i32) -> Result<Vec<i32>, Error> {
    let sql = "-- shards_from\nSELECT shard FROM retry_shard WHERE shard >= $1 ORDER BY shard";
    let rows = client.query_typed(sql, &[(&first, Type::INT4)]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// About how many retries are stored, done ones included until their partition is dropped: the planner's estimate.
pub async fn stored_estimate(client: &tokio_postgres::Client) -> Result<f64, Error> {
    let sql = "-- stored_estimate
        SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::float8
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'retry'::regclass";
    Ok(client.query_typed_one(sql, &[]).await?.try_get(0)?)
}

/// An open transaction of one shard's owner.
pub struct Batch<'c> {
    transaction: Transaction<'c>,
    /// The server's clock when the transaction had taken the shard's row.
    pub db_now: DbInstant,
    /// The cursor, which nothing else can move while this transaction is open.
    pub cursor: Position,
}

/// Opens the transaction that stores the outcomes from offset `from` up to, not including, `to`.
///
/// # Errors
/// [`WriteError::Fenced`] when another owner took over, or the row is not where this owner left it.
pub async fn begin(
    client: &mut Client,
    shard: i32,
    epoch: i64,
    from: i64,
    to: i64,
) -> Result<Batch<'_>, WriteError> {
    let transaction = client.transaction().await?;
    let sql = format!(
        "-- begin_batch
        UPDATE retry_shard SET next_offset = $4, batched_at = clock_timestamp()
        WHERE shard = $1 AND epoch = $2 AND next_offset = $3
        RETURNING clock_timestamp(), cur_due, cur_id, {LIMITS}"
    );
    let parameters: [(&(dyn ToSql + Sync), Type); 4] =
        [(&shard, Type::INT4), (&epoch, Type::INT8), (&from, Type::INT8), (&to, Type::INT8)];
    let row = transaction.query_typed_opt(&sql, &parameters).await?.ok_or(WriteError::Fenced)?;
    let db_now = row.try_get(0)?;
    let cursor = Position { due: row.try_get(1)?, id: row.try_get(2)? };
    Ok(Batch { transaction, db_now, cursor })
}

/// Opens a transaction that moves the cursor and stores what goes with that.
///
/// # Errors
/// As [`begin`].
pub async fn begin_move(
    client: &mut Client,
    shard: i32,
    epoch: i64,
    next_offset: i64,
    cursor: Position,
) -> Result<Batch<'_>, WriteError> {
    let transaction = client.transaction().await?;
    let sql = format!(
        "-- begin_move
        UPDATE retry_shard SET cur_due = $4, cur_id = $5
        WHERE shard = $1 AND epoch = $2 AND next_offset = $3
        RETURNING clock_timestamp(), {LIMITS}"
    );
    let parameters: [(&(dyn ToSql + Sync), Type); 5] = [
        (&shard, Type::INT4),
        (&epoch, Type::INT8),
        (&next_offset, Type::INT8),
        (&cursor.due, Type::TIMESTAMPTZ),
        (&cursor.id, Type::INT8),
    ];
    let row = transaction.query_typed_opt(&sql, &parameters).await?.ok_or(WriteError::Fenced)?;
    let db_now = row.try_get(0)?;
    Ok(Batch { transaction, db_now, cursor })
}

impl<'c> Batch<'c> {
    pub(crate) fn transaction(&self) -> &Transaction<'c> {
        &self.transaction
    }

    /// Appends pending retries.
    pub async fn add_retries(&self, shard: i32, rows: &[&NewRetry]) -> Result<(), WriteError> {
        const TYPES: [Type; 10] = [
            Type::INT4,
            Type::TIMESTAMPTZ,
            Type::INT8,
            Type::UUID,
            Type::UUID,
            Type::TEXT,
            Type::INT4,
            Type::TEXT,
            Type::BYTEA,
            Type::BOOL,
        ];
        let sql = "COPY retry (shard, due_at, id, tenant_id, subscription_id, event_id, attempt, record_key, rec, lease) \
                   FROM STDIN BINARY";
        self.copy(sql, &TYPES, rows, async |writer, row| {
            let values: [&(dyn ToSql + Sync); 10] = [
                &shard,
                &row.position.due,
                &row.position.id,
                &row.tenant,
                &row.subscription,
                &row.event_id,
                &row.attempt,
                &row.record_key,
                &row.record,
                &row.lease,
            ];
            writer.write(&values).await
        })
        .await
    }

    /// Appends history, recorded at [`Batch::db_now`].
    pub async fn add_deliveries(&self, shard: i32, rows: &[&NewDelivery]) -> Result<(), WriteError> {
        let recorded_at = self.db_now;
        self.copy(deliveries::COPY, &deliveries::COLUMNS, rows, async |writer, row| {
            writer.write(&row.values(&recorded_at, &shard)).await
        })
        .await
    }

    /// Appends counts, for the minute of [`Batch::db_now`].
    pub async fn add_counts(&self, rows: &[&CountDelta]) -> Result<(), WriteError> {
        let minute = deliveries::minute_of(self.db_now);
        self.copy(deliveries::COPY_COUNTS, &deliveries::COUNT_COLUMNS, rows, async |writer, row| {
            writer.write(&row.values(&minute)).await
        })
        .await
    }

    /// Appends dead letters, recorded at [`Batch::db_now`].
    pub async fn add_dead_letters(&self, shard: i32, rows: &[&NewDeadLetter]) -> Result<(), WriteError> {
        let recorded_at = self.db_now;
        self.copy(dead_letters::COPY, &dead_letters::COLUMNS, rows, async |writer, row| {
            writer.write(&row.values(&recorded_at, &shard)).await
        })
        .await
    }

    /// Makes everything durable at once. After an error it is unknown whether it happened: see [`read`].
    pub async fn commit(self) -> Result<(), WriteError> {
        Ok(self.transaction.commit().await?)
    }

    pub(crate) async fn copy<T>(
        &self,
        sql: &str,
        types: &[Type],
        rows: &[&T],
        write: impl AsyncFn(&mut CopyWriter<'_>, &T) -> Result<(), WriteError>,
    ) -> Result<(), WriteError> {
        if rows.is_empty() {
            return Ok(());
        }
        let mut writer = CopyWriter::begin(&self.transaction, sql, types).await?;
        for row in rows {
            write(&mut writer, row).await?;
        }
        writer.finish().await
    }
}

fn shard_from_row(row: &tokio_postgres::Row) -> Result<Shard, Error> {
    Ok(Shard {
        epoch: row.try_get(0)?,
        next_offset: row.try_get(1)?,
        first_id: row.try_get(2)?,
        read_again_to: row.try_get(3)?,
        cursor: Position { due: row.try_get(4)?, id: row.try_get(5)? },
        batched_at: row.try_get(6)?,
        db_now: row.try_get(7)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_before_the_first_of_an_instant_is_after_the_last_of_the_one_before() {
        let at = |due, id| Position { due: DbInstant(due), id };
        assert_eq!(at(5, 7).before(), at(5, 6));
        assert_eq!(at(5, i64::MIN).before(), at(4, i64::MAX));
        assert!(at(5, 0).before() < at(5, 0));
        assert!(at(4, i64::MAX) < at(5, 0));
    }
}
