//! Pending retries, for people: lists, counts and the progress of shards.
//!
//! A retry is pending behind its shard's cursor, unless a mark says that it was cancelled or made before its time, or it is a lease: its
//! delivery is under way, or over, which its row does not tell. So these are what a command would be about. Retries have one index, by shard and due time. So lists go forward through stretches of due time, wider ones while that is quick, and end where looking
//! on would take long: they are for people who look now and then, and pay for it themselves, not for every row that is stored.

use crate::{
    DbInstant, Error,
    page::{InvalidCursor, Page},
};
use floodway_schemas::{
    UnixMillis,
    due::RetryKey,
    ids::{SubscriptionId, TenantId},
};
use std::{
    fmt,
    ops::Range,
    str::FromStr,
    time::{Duration, Instant},
};
use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};

/// How long a page is looked for: what was found by then is the page.
const LOOK_FOR: Duration = Duration::from_secs(1);
/// Width of the first stretch of due time, and the least.
const FIRST_WIDTH: Duration = Duration::from_secs(60);
const LEAST_WIDTH: Duration = Duration::from_secs(1);
/// A stretch that took less is followed by a wider one, one that took more by a narrower one.
const QUICK: Duration = Duration::from_millis(30);
const SLOW: Duration = Duration::from_millis(150);

/// Most retries of a shard that are counted: beyond it, it is known that they are many.
pub const MAX_COUNTED: i64 = 1_000_000;

/// Which pending retries. Fields that are `None` do not restrict.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PendingFilter {
    /// Whose.
    pub tenant: Option<TenantId>,
    /// To this subscription.
    pub subscription: Option<SubscriptionId>,
    /// Of the event with this id; a batch goes by its own.
    pub event_id: Option<String>,
}

/// A delivery to be made later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingDelivery {
    /// Its place in lists.
    pub place: DuePlace,
    /// Owner of the event.
    pub tenant: TenantId,
    /// Whom to deliver to.
    pub subscription: SubscriptionId,
    /// The event's id.
    pub event_id: String,
    /// Number of the attempt to make.
    pub attempt: i32,
}

/// Place in the list of pending retries, soonest first. Text form `<microseconds>.<shard>.<id>`, opaque to clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DuePlace {
    /// When.
    pub due: DbInstant,
    /// Its shard.
    pub shard: i32,
    /// Its offset in the shard.
    pub id: i64,
}

impl DuePlace {
    /// The retry's identity.
    pub fn key(&self) -> RetryKey {
        RetryKey { shard: self.shard, id: self.id }
    }
}

impl fmt::Display for DuePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.due.0, self.shard, self.id)
    }
}

impl FromStr for DuePlace {
    type Err = InvalidCursor;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // The other list's place has the same form and the same bounds.
        let place: crate::page::HistoryCursor = text.parse()?;
        Ok(Self { due: place.recorded_at, shard: place.shard, id: place.id })
    }
}

/// A page of pending retries, soonest first, after `cursor`. Fewer than asked for, or none, also where looking on would take long:
/// its cursor alone tells.
pub async fn list(
    client: &tokio_postgres::Client,
    filter: &PendingFilter,
    cursor: Option<DuePlace>,
    limit: usize,
) -> Result<Page<PendingDelivery>, Error> {
    let Some(span) = span(client).await? else { return Ok(Page { items: Vec::new(), next_cursor: None }) };
    let mut from = cursor.map_or(span.start, |place| place.due.max(span.start));
    let (started, mut width, mut items) = (Instant::now(), FIRST_WIDTH, Vec::new());
    while from < span.end && items.len() <= limit && started.elapsed() < LOOK_FOR {
        let began = Instant::now();
        let to = from.plus(width).min(span.end);
        let wanted = limit.saturating_add(1) - items.len();
        for row in stretch(client, filter, cursor, from..to, wanted).await? {
            items.push(delivery_from_row(&row)?);
        }
        from = to;
        width = match began.elapsed() {
            quick if quick < QUICK => width * 4,
            slow if slow > SLOW => (width / 4).max(LEAST_WIDTH),
            _ => width,
        };
    }
    let more = items.len() > limit;
    items.truncate(limit);
    let last = items.last().map(|item: &PendingDelivery| item.place);
    let next = match last.filter(|_| more) {
        Some(last) => Some(last),
        None => (from < span.end).then_some(DuePlace { due: from, shard: i32::MIN, id: i64::MIN }),
    };
    Ok(Page { items, next_cursor: next.map(|place| place.to_string()) })
}

/// From the lowest cursor to after the last retry; `None` when nothing is pending.
async fn span(client: &tokio_postgres::Client) -> Result<Option<Range<DbInstant>>, Error> {
    let sql = "-- pending_span
        SELECT min(s.cur_due), max(last.due_at)
        FROM retry_shard s CROSS JOIN LATERAL (
            SELECT due_at FROM retry WHERE shard = s.shard AND due_at >= s.cur_due ORDER BY due_at DESC LIMIT 1
        ) AS last";
    let row = client.query_typed_one(sql, &[]).await?;
    let (from, last): (Option<DbInstant>, Option<DbInstant>) = (row.try_get(0)?, row.try_get(1)?);
    Ok(from.zip(last).map(|(from, last)| from..DbInstant(last.0.saturating_add(1))))
}

/// Rows of one stretch of due time. Planned anew for its values each time: partitions are pruned, filters that are NULL fold away.
async fn stretch(
    client: &tokio_postgres::Client,
    filter: &PendingFilter,
    cursor: Option<DuePlace>,
    span: Range<DbInstant>,
    limit: usize,
) -> Result<Vec<Row>, Error> {
    let sql = "-- list_pending
        WITH mark AS MATERIALIZED (
            SELECT m.shard, m.id, m.first_id, m.action, m.tenant_id, m.subscription_id, m.event_id, m.retry_id,
                   max(m.done) AS done
            FROM retry_mark m WHERE m.until >= $1 AND ($3::uuid IS NULL OR m.tenant_id = $3)
            GROUP BY m.shard, m.id, m.first_id, m.action, m.tenant_id, m.subscription_id, m.event_id, m.retry_id
        )
        SELECT r.due_at, r.shard, r.id, r.tenant_id, r.subscription_id, r.event_id, r.attempt
        FROM retry r JOIN retry_shard s ON s.shard = r.shard
        WHERE r.due_at >= $1 AND r.due_at < $2 AND (r.due_at, r.id) > (s.cur_due, s.cur_id) AND NOT r.lease
          AND ($3::uuid IS NULL OR r.tenant_id = $3)
          AND ($4::uuid IS NULL OR r.subscription_id = $4)
          AND ($5::text IS NULL OR r.event_id = $5)
          AND ($6::timestamptz IS NULL OR (r.due_at, r.shard, r.id) > ($6, $7, $8))
          AND NOT EXISTS (
              SELECT FROM mark m
              WHERE m.shard = r.shard AND r.id >= m.first_id AND r.id < m.id AND (m.action = 'cancel' OR r.id <= m.done)
                AND m.tenant_id = r.tenant_id
                AND (m.subscription_id IS NULL OR m.subscription_id = r.subscription_id)
                AND (m.event_id IS NULL OR m.event_id = r.event_id)
                AND (m.retry_id IS NULL OR m.retry_id = r.id))
        ORDER BY r.due_at, r.shard, r.id
        LIMIT $9";
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let parameters: [(&(dyn ToSql + Sync), Type); 9] = [
        (&span.start, Type::TIMESTAMPTZ),
        (&span.end, Type::TIMESTAMPTZ),
        (&filter.tenant.map(|tenant| tenant.0), Type::UUID),
        (&filter.subscription.map(|subscription| subscription.0), Type::UUID),
        (&filter.event_id, Type::TEXT),
        (&cursor.map(|place| place.due), Type::TIMESTAMPTZ),
        (&cursor.map(|place| place.shard), Type::INT4),
        (&cursor.map(|place| place.id), Type::INT8),
        (&limit, Type::INT8),
    ];
    Ok(client.query_typed(sql, &parameters).await?)
}

fn delivery_from_row(row: &Row) -> Result<PendingDelivery, Error> {
    Ok(PendingDelivery {
        place: DuePlace { due: row.try_get(0)?, shard: row.try_get(1)?, id: row.try_get(2)? },
        tenant: TenantId(row.try_get(3)?),
        subscription: SubscriptionId(row.try_get(4)?),
        event_id: row.try_get(5)?,
        attempt: row.try_get(6)?,
    })
}

/// What a shard has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardStats {
    /// Its number.
    pub shard: i32,
    /// Which process took it over last.
    pub owner: String,
    /// Next offset of `outcomes` to read.
    pub next_offset: i64,
    /// Stored retries behind the cursor without leases, cancelled ones included until their time; at most [`MAX_COUNTED`].
    pub pending: i64,
    /// When the first of them is due.
    pub next_due: Option<UnixMillis>,
    /// When the last of them is due.
    pub last_due: Option<UnixMillis>,
    /// By how much the cursor is behind the server's clock.
    pub cursor_lag: Duration,
    /// Commands whose retries are being brought back before their time.
    pub recalls: i64,
}

/// What all shards have to do.
pub async fn stats(client: &tokio_postgres::Client) -> Result<Vec<ShardStats>, Error> {
    let shards = "-- stats_shards\nSELECT shard FROM retry_shard ORDER BY shard";
    let mut stats = Vec::new();
    for row in client.query_typed(shards, &[]).await? {
        // One at a time, so that each statement is short.
        stats.extend(of_shard(client, row.try_get(0)?).await?);
    }
    Ok(stats)
}

async fn of_shard(client: &tokio_postgres::Client, shard: i32) -> Result<Option<ShardStats>, Error> {
    let sql = "-- stats_shard
        SELECT s.owner, s.next_offset, s.cur_due, clock_timestamp(),
            (SELECT count(*) FROM (
                SELECT FROM retry r
                WHERE r.shard = $1 AND r.due_at >= s.cur_due AND (r.due_at, r.id) > (s.cur_due, s.cur_id) AND NOT r.lease
                LIMIT $2
            ) AS pending),
            (SELECT r.due_at FROM retry r
                WHERE r.shard = $1 AND r.due_at >= s.cur_due AND (r.due_at, r.id) > (s.cur_due, s.cur_id) AND NOT r.lease
                ORDER BY r.due_at LIMIT 1),
            (SELECT r.due_at FROM retry r
                WHERE r.shard = $1 AND r.due_at >= s.cur_due AND (r.due_at, r.id) > (s.cur_due, s.cur_id) AND NOT r.lease
                ORDER BY r.due_at DESC LIMIT 1),
            (SELECT count(*) FROM (
                SELECT FROM retry_mark m
                WHERE m.shard = $1 AND m.action = 'now' AND m.until >= s.cur_due
                GROUP BY m.id HAVING max(m.done) < m.id
            ) AS recalls)
        FROM retry_shard s WHERE s.shard = $1";
    let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&shard, Type::INT4), (&MAX_COUNTED, Type::INT8)];
    let Some(row) = client.query_typed_opt(sql, &parameters).await? else { return Ok(None) };
    let (cursor, now): (DbInstant, DbInstant) = (row.try_get(2)?, row.try_get(3)?);
    let millis = |column| -> Result<Option<UnixMillis>, Error> {
        Ok(row.try_get::<_, Option<DbInstant>>(column)?.map(DbInstant::to_millis))
    };
    Ok(Some(ShardStats {
        shard,
        owner: row.try_get(0)?,
        next_offset: row.try_get(1)?,
        pending: row.try_get(4)?,
        next_due: millis(5)?,
        last_due: millis(6)?,
        cursor_lag: now.since(cursor),
        recalls: row.try_get(7)?,
    }))
}
