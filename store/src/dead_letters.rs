//! Deliveries that were given up, with their events.

use crate::{
    DbInstant, Error,
    page::{HistoryCursor, Page},
};
use floodway_schemas::{
    UnixMillis,
    due::RetryKey,
    ids::{SubscriptionId, TenantId},
};
use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};
use uuid::Uuid;

/// A delivery that was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDeadLetter {
    /// Offset of the outcome in its shard.
    pub id: i64,
    /// When it was given up, by the dispatcher's clock.
    pub at: DbInstant,
    /// Where the delivery's age started.
    pub since: DbInstant,
    /// Owner of the event.
    pub tenant: Uuid,
    /// Who did not get it.
    pub subscription: Uuid,
    /// The event's id.
    pub event_id: String,
    /// The event's type.
    pub event_type: String,
    /// Kafka key under which the event is delivered again.
    pub record_key: String,
    /// Attempts made.
    pub attempts: i32,
    /// Name of the reason.
    pub reason: &'static str,
    /// HTTP status of the last attempt.
    pub status: Option<i32>,
    /// Class of the last failure.
    pub error: Option<&'static str>,
    /// What went wrong, for people.
    pub detail: Option<String>,
    /// Start of the last response body.
    pub response: Option<String>,
    /// The event's envelope, or the array of a batch's.
    pub event: Vec<u8>,
    /// Ids of a batch's events.
    pub members: Option<Vec<String>>,
}

pub(crate) const COPY: &str = "COPY dead_letter (recorded_at, shard, id, at, since, tenant_id, subscription_id, \
     event_id, event_type, record_key, attempts, reason, status, error, detail, response, event, members) \
     FROM STDIN BINARY";

pub(crate) const COLUMNS: [Type; 18] = [
    Type::TIMESTAMPTZ,
    Type::INT4,
    Type::INT8,
    Type::TIMESTAMPTZ,
    Type::TIMESTAMPTZ,
    Type::UUID,
    Type::UUID,
    Type::TEXT,
    Type::TEXT,
    Type::TEXT,
    Type::INT4,
    Type::TEXT,
    Type::INT4,
    Type::TEXT,
    Type::TEXT,
    Type::TEXT,
    Type::BYTEA,
    Type::TEXT_ARRAY,
];

impl NewDeadLetter {
    pub(crate) fn values<'v>(
        &'v self,
        recorded_at: &'v DbInstant,
        shard: &'v i32,
    ) -> [&'v (dyn ToSql + Sync); COLUMNS.len()] {
        [
            recorded_at,
            shard,
            &self.id,
            &self.at,
            &self.since,
            &self.tenant,
            &self.subscription,
            &self.event_id,
            &self.event_type,
            &self.record_key,
            &self.attempts,
            &self.reason,
            &self.status,
            &self.error,
            &self.detail,
            &self.response,
            &self.event,
            &self.members,
        ]
    }
}

/// A dead letter without its event, as lists show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetterSummary {
    /// Its identity; text form `<shard>-<offset>`.
    pub id: RetryKey,
    /// Its place in lists.
    pub place: HistoryCursor,
    /// When it was given up, by the dispatcher's clock.
    pub at: UnixMillis,
    /// Where the delivery's age started.
    pub since: UnixMillis,
    /// Owner of the event.
    pub tenant: TenantId,
    /// Who did not get it.
    pub subscription: SubscriptionId,
    /// The event's id.
    pub event_id: String,
    /// The event's type.
    pub event_type: String,
    /// Kafka key under which the event is delivered again.
    pub record_key: String,
    /// Attempts made.
    pub attempts: i32,
    /// Name of the reason.
    pub reason: String,
    /// HTTP status of the last attempt.
    pub status: Option<i32>,
    /// Class of the last failure.
    pub error: Option<String>,
    /// What went wrong, for people.
    pub detail: Option<String>,
    /// Start of the last response body.
    pub response: Option<String>,
    /// Ids of a batch's events.
    pub members: Option<Vec<String>>,
}

/// A dead letter with its event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// All but the event.
    pub summary: DeadLetterSummary,
    /// The event's envelope, or the array of a batch's, byte for byte.
    pub event: Vec<u8>,
}

/// Which dead letters to list. Fields that are `None` do not restrict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetterFilter {
    /// Whose; never left out.
    pub tenant: TenantId,
    /// Of this subscription.
    pub subscription: Option<SubscriptionId>,
    /// Recorded at this instant or later.
    pub from: Option<UnixMillis>,
    /// Recorded before this instant.
    pub to: Option<UnixMillis>,
}

/// A page of dead letters, newest first, after `cursor`.
pub async fn list(
    client: &tokio_postgres::Client,
    filter: &DeadLetterFilter,
    cursor: Option<HistoryCursor>,
    limit: usize,
) -> Result<Page<DeadLetterSummary>, Error> {
    // There is a partition per month, few enough to plan for all. Planned anew for its values each time.
    let sql = "-- list_dead_letters
        SELECT recorded_at, shard, id, at, since, tenant_id, subscription_id, event_id, event_type, record_key,
               attempts, reason, status, error, detail, response, members
        FROM dead_letter
        WHERE tenant_id = $1
          AND ($2::uuid IS NULL OR subscription_id = $2)
          AND ($3::timestamptz IS NULL OR recorded_at >= $3)
          AND ($4::timestamptz IS NULL OR recorded_at < $4)
          AND ($5::timestamptz IS NULL OR (recorded_at <= $5 AND (recorded_at, shard, id) < ($5, $6, $7)))
        ORDER BY recorded_at DESC, shard DESC, id DESC
        LIMIT $8";
    let rows_wanted = i64::try_from(limit.saturating_add(1)).unwrap_or(i64::MAX);
    let parameters: [(&(dyn ToSql + Sync), Type); 8] = [
        (&filter.tenant.0, Type::UUID),
        (&filter.subscription.map(|subscription| subscription.0), Type::UUID),
        (&filter.from.map(DbInstant::from_millis), Type::TIMESTAMPTZ),
        (&filter.to.map(DbInstant::from_millis), Type::TIMESTAMPTZ),
        (&cursor.map(|cursor| cursor.recorded_at), Type::TIMESTAMPTZ),
        (&cursor.map(|cursor| cursor.shard), Type::INT4),
        (&cursor.map(|cursor| cursor.id), Type::INT8),
        (&rows_wanted, Type::INT8),
    ];
    let rows = client.query_typed(sql, &parameters).await?;
    let items = rows.iter().map(summary_from_row).collect::<Result<Vec<_>, Error>>()?;
    Ok(Page::from_rows(items, limit, |summary| summary.place))
}

/// One dead letter of a tenant.
///
/// # Errors
/// [`Error::NotFound`] when there is none with this id, or it is another tenant's.
pub async fn get(
    client: &tokio_postgres::Client,
    tenant: TenantId,
    id: RetryKey,
) -> Result<DeadLetter, Error> {
    by_ids(client, tenant, &[id]).await?.pop().ok_or(Error::NotFound("dead letter"))
}

/// The dead letters of a tenant among `ids`, in no particular order. Ids that do not exist, or are another tenant's,
/// are left out. The answer holds every event in memory: callers bound the number of ids.
pub async fn by_ids(
    client: &tokio_postgres::Client,
    tenant: TenantId,
    ids: &[RetryKey],
) -> Result<Vec<DeadLetter>, Error> {
    let sql = "-- dead_letters_by_ids
        SELECT recorded_at, d.shard, d.id, at, since, tenant_id, subscription_id, event_id, event_type, record_key,
               attempts, reason, status, error, detail, response, members, event
        FROM unnest($2::int[], $3::bigint[]) AS wanted (shard, id)
        JOIN dead_letter d ON d.shard = wanted.shard AND d.id = wanted.id
        WHERE d.tenant_id = $1";
    let shards: Vec<i32> = ids.iter().map(|id| id.shard).collect();
    let offsets: Vec<i64> = ids.iter().map(|id| id.id).collect();
    let parameters: [(&(dyn ToSql + Sync), Type); 3] =
        [(&tenant.0, Type::UUID), (&shards, Type::INT4_ARRAY), (&offsets, Type::INT8_ARRAY)];
    let rows = client.query_typed(sql, &parameters).await?;
    rows.iter()
        .map(|row| Ok(DeadLetter { summary: summary_from_row(row)?, event: row.try_get(17)? }))
        .collect()
}

/// The subscriptions that the dead letters of a tenant among `ids` were for, each once.
pub async fn receivers(
    client: &tokio_postgres::Client,
    tenant: TenantId,
    ids: &[RetryKey],
) -> Result<Vec<SubscriptionId>, Error> {
    let sql = "-- dead_letter_receivers
        SELECT DISTINCT d.subscription_id
        FROM unnest($2::int[], $3::bigint[]) AS wanted (shard, id)
        JOIN dead_letter d ON d.shard = wanted.shard AND d.id = wanted.id
        WHERE d.tenant_id = $1";
    let (shards, offsets): (Vec<i32>, Vec<i64>) = ids.iter().map(|id| (id.shard, id.id)).unzip();
    let parameters: [(&(dyn ToSql + Sync), Type); 3] =
        [(&tenant.0, Type::UUID), (&shards, Type::INT4_ARRAY), (&offsets, Type::INT8_ARRAY)];
    let rows = client.query_typed(sql, &parameters).await?;
    rows.iter().map(|row| Ok(SubscriptionId(row.try_get(0)?))).collect()
}

fn summary_from_row(row: &Row) -> Result<DeadLetterSummary, Error> {
    let place = HistoryCursor { recorded_at: row.try_get(0)?, shard: row.try_get(1)?, id: row.try_get(2)? };
    Ok(DeadLetterSummary {
        id: RetryKey { shard: place.shard, id: place.id },
        place,
        at: row.try_get::<_, DbInstant>(3)?.to_millis(),
        since: row.try_get::<_, DbInstant>(4)?.to_millis(),
        tenant: TenantId(row.try_get(5)?),
        subscription: SubscriptionId(row.try_get(6)?),
        event_id: row.try_get(7)?,
        event_type: row.try_get(8)?,
        record_key: row.try_get(9)?,
        attempts: row.try_get(10)?,
        reason: row.try_get(11)?,
        status: row.try_get(12)?,
        error: row.try_get(13)?,
        detail: row.try_get(14)?,
        response: row.try_get(15)?,
        members: row.try_get(16)?,
    })
}
