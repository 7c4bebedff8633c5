//! Deliveries that were given up, with their events.

use crate::{
    DbInstant, Error,
    page::{HistoryCursor, IN_STRETCH, NEWEST_FIRST, Page, Stretch, Walk},
    partitions::{self, Table},
};
use floodway_schemas::{
    UnixMillis,
    due::RetryKey,
    ids::{SubscriptionId, TenantId},
};
use std::time::Duration;
use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};
use uuid::Uuid;

/// Widths of the stretches of time that a list looks through, newest first; the last one repeats. There is a partition per
/// month.
const WINDOWS: [Duration; 3] = [
    Duration::from_secs(24 * 3_600),
    Duration::from_secs(7 * 24 * 3_600),
    Duration::from_secs(31 * 24 * 3_600),
];

/// A delivery that was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDeadLetter {
    /// Id of the outcome in its shard.
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
    /// Of the event with this id, alone or in a batch.
    pub event_id: Option<String>,
    /// Of events of this type.
    pub event_type: Option<String>,
    /// Given up for this reason.
    pub reason: Option<String>,
    /// Whose last answer had this HTTP status.
    pub status: Option<i32>,
    /// Whose last failure was of this class.
    pub error: Option<String>,
    /// Whether it was asked for again.
    pub replayed: Option<bool>,
    /// Recorded at this instant or later.
    pub from: Option<UnixMillis>,
    /// Recorded before this instant.
    pub to: Option<UnixMillis>,
}

impl DeadLetterFilter {
    /// All dead letters of a tenant.
    pub fn of(tenant: TenantId) -> Self {
        Self {
            tenant,
            subscription: None,
            event_id: None,
            event_type: None,
            reason: None,
            status: None,
            error: None,
            replayed: None,
            from: None,
            to: None,
        }
    }
}

/// Where a dead letter is, and whom it was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its place in lists, which is also its identity.
    pub place: HistoryCursor,
    /// Who did not get it.
    pub subscription: SubscriptionId,
}

impl Place {
    /// The dead letter's id.
    pub fn id(&self) -> RetryKey {
        RetryKey { shard: self.place.shard, id: self.place.id }
    }
}

/// A page of dead letters, newest first, after `cursor`.
pub async fn list(
    client: &tokio_postgres::Client,
    filter: &DeadLetterFilter,
    cursor: Option<HistoryCursor>,
    limit: usize,
) -> Result<Page<DeadLetterSummary>, Error> {
    let columns = "recorded_at, shard, id, at, since, tenant_id, subscription_id, event_id, event_type, record_key, attempts,
               reason, status, error, detail, response, members";
    matching(client, columns, filter, cursor, limit, summary_from_row).await
}

/// The same page without the letters themselves.
pub async fn places(
    client: &tokio_postgres::Client,
    filter: &DeadLetterFilter,
    cursor: Option<HistoryCursor>,
    limit: usize,
) -> Result<Page<Place>, Error> {
    let columns = "recorded_at, shard, id, subscription_id";
    let place =
        |row: &Row| Ok(Place { place: place_from_row(row)?, subscription: SubscriptionId(row.try_get(3)?) });
    matching(client, columns, filter, cursor, limit, place).await
}

/// Rows that a filter matches, newest first. Their first three columns are the place.
async fn matching<T: Placed>(
    client: &tokio_postgres::Client,
    columns: &str,
    filter: &DeadLetterFilter,
    cursor: Option<HistoryCursor>,
    limit: usize,
    read: impl Fn(&Row) -> Result<T, Error>,
) -> Result<Page<T>, Error> {
    let Some(span) = partitions::recorded_within(client, Table::DeadLetter, filter.from, filter.to).await?
    else {
        return Ok(Page { items: Vec::new(), next_cursor: None });
    };
    // Planned anew for its values each time: filters that are NULL fold away.
    let sql = format!(
        "-- list_dead_letters
        SELECT {columns}
        FROM dead_letter d
        WHERE tenant_id = $1 AND {IN_STRETCH}
          AND ($7::uuid IS NULL OR subscription_id = $7)
          AND ($8::text IS NULL OR event_id = $8 OR members @> ARRAY[$8])
          AND ($9::text IS NULL OR event_type = $9)
          AND ($10::text IS NULL OR reason = $10)
          AND ($11::int4 IS NULL OR status = $11)
          AND ($12::text IS NULL OR error = $12)
          AND ($13::bool IS NULL OR $13 = EXISTS (
              SELECT FROM dead_letter_replay r WHERE r.shard = d.shard AND r.outcome_offset = d.id))
        {NEWEST_FIRST}
        LIMIT $14"
    );
    let subscription = filter.subscription.map(|id| id.0);
    let mut walk = Walk::new(span, cursor, limit, &WINDOWS);
    let mut items = Vec::new();
    while let Some((span, wanted)) = walk.next(items.len()) {
        let wanted = i64::try_from(wanted).unwrap_or(i64::MAX);
        let stretch = Stretch::new(span, cursor);
        let mut parameters: Vec<(&(dyn ToSql + Sync), Type)> = vec![(&filter.tenant.0, Type::UUID)];
        parameters.extend(stretch.parameters());
        let of_filter: [(&(dyn ToSql + Sync), Type); 8] = [
            (&subscription, Type::UUID),
            (&filter.event_id, Type::TEXT),
            (&filter.event_type, Type::TEXT),
            (&filter.reason, Type::TEXT),
            (&filter.status, Type::INT4),
            (&filter.error, Type::TEXT),
            (&filter.replayed, Type::BOOL),
            (&wanted, Type::INT8),
        ];
        parameters.extend(of_filter);
        for row in client.query_typed(&sql, &parameters).await? {
            items.push(read(&row)?);
        }
    }
    Ok(walk.page(items, T::place))
}

/// A row that has a place in a list.
trait Placed {
    fn place(&self) -> HistoryCursor;
}

impl Placed for DeadLetterSummary {
    fn place(&self) -> HistoryCursor {
        self.place
    }
}

impl Placed for Place {
    fn place(&self) -> HistoryCursor {
        self.place
    }
}

fn place_from_row(row: &Row) -> Result<HistoryCursor, Error> {
    Ok(HistoryCursor { recorded_at: row.try_get(0)?, shard: row.try_get(1)?, id: row.try_get(2)? })
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
    let place = place_from_row(row)?;
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
