//! History: what became of each delivery, and how many there were.

use crate::{
    DbInstant, Error,
    page::{HistoryCursor, Page},
    partitions::{self, Table},
};
use floodway_schemas::{
    UnixMillis,
    exchange::Exchange,
    ids::{SubscriptionId, TenantId},
};
use serde_json::Value;
use std::{collections::BTreeMap, time::Duration};
use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};
use uuid::Uuid;

/// Widths of the stretches of time that a list looks through, newest first; the last one repeats. History has a
/// partition per hour, and a statement locks every partition that it plans for, so none plans for all of them.
const WINDOWS: [Duration; 4] = [
    Duration::from_secs(3_600),
    Duration::from_secs(6 * 3_600),
    Duration::from_secs(24 * 3_600),
    Duration::from_secs(7 * 24 * 3_600),
];

const MINUTE_US: i64 = 60_000_000;

/// What became of one delivery at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDelivery {
    /// Offset of the outcome in its shard.
    pub id: i64,
    /// When the attempt ended, by the dispatcher's clock.
    pub at: DbInstant,
    /// Owner of the event.
    pub tenant: Uuid,
    /// Whom it was delivered to.
    pub subscription: Uuid,
    /// The event's id, or a batch's.
    pub event_id: String,
    /// The event's type, or that of a batch.
    pub event_type: String,
    /// Number of the attempt.
    pub attempt: i32,
    /// The decision's name.
    pub kind: &'static str,
    /// Why it was given up.
    pub reason: Option<&'static str>,
    /// HTTP status.
    pub status: Option<i32>,
    /// Class of the failure.
    pub error: Option<&'static str>,
    /// What went wrong, for people.
    pub detail: Option<String>,
    /// Duration of the attempt, milliseconds.
    pub duration_ms: Option<i32>,
    /// When the next attempt is due.
    pub next_at: Option<DbInstant>,
    /// Start of the response body.
    pub response: Option<String>,
    /// What went over the wire.
    pub exchange: Option<Value>,
    /// Ids of a batch's events.
    pub members: Option<Vec<String>>,
    /// Types of a batch's events, each once.
    pub member_types: Option<Vec<String>>,
}

pub(crate) const COPY: &str = "COPY delivery (recorded_at, shard, id, at, tenant_id, subscription_id, event_id, \
     event_type, attempt, kind, reason, status, error, detail, duration_ms, next_at, response, exchange, members, member_types) \
     FROM STDIN BINARY";

pub(crate) const COLUMNS: [Type; 20] = [
    Type::TIMESTAMPTZ,
    Type::INT4,
    Type::INT8,
    Type::TIMESTAMPTZ,
    Type::UUID,
    Type::UUID,
    Type::TEXT,
    Type::TEXT,
    Type::INT4,
    Type::TEXT,
    Type::TEXT,
    Type::INT4,
    Type::TEXT,
    Type::TEXT,
    Type::INT4,
    Type::TIMESTAMPTZ,
    Type::TEXT,
    Type::JSONB,
    Type::TEXT_ARRAY,
    Type::TEXT_ARRAY,
];

impl NewDelivery {
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
            &self.tenant,
            &self.subscription,
            &self.event_id,
            &self.event_type,
            &self.attempt,
            &self.kind,
            &self.reason,
            &self.status,
            &self.error,
            &self.detail,
            &self.duration_ms,
            &self.next_at,
            &self.response,
            &self.exchange,
            &self.members,
            &self.member_types,
        ]
    }
}

/// A number of outcomes to add to a subscription's count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CountDelta {
    /// Owner of the subscription.
    pub tenant: Uuid,
    /// The subscription.
    pub subscription: Uuid,
    /// The decision's name.
    pub kind: &'static str,
    /// How many events.
    pub n: i64,
}

pub(crate) const COPY_COUNTS: &str =
    "COPY delivery_count (minute, tenant_id, subscription_id, kind, n) FROM STDIN BINARY";

pub(crate) const COUNT_COLUMNS: [Type; 5] =
    [Type::TIMESTAMPTZ, Type::UUID, Type::UUID, Type::TEXT, Type::INT8];

impl CountDelta {
    pub(crate) fn values<'v>(
        &'v self,
        minute: &'v DbInstant,
    ) -> [&'v (dyn ToSql + Sync); COUNT_COLUMNS.len()] {
        [minute, &self.tenant, &self.subscription, &self.kind, &self.n]
    }
}

/// Start of the minute that an instant is in.
pub(crate) fn minute_of(at: DbInstant) -> DbInstant {
    DbInstant(at.0 - at.0.rem_euclid(MINUTE_US))
}

/// Which deliveries to list. Fields that are `None` do not restrict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryFilter {
    /// Whose; never left out.
    pub tenant: TenantId,
    /// To this subscription.
    pub subscription: Option<SubscriptionId>,
    /// With this decision.
    pub kind: Option<String>,
    /// Of the event with this id, alone or in a batch.
    pub event_id: Option<String>,
    /// Of events of this type, alone or in a batch.
    pub event_type: Option<String>,
    /// Recorded at this instant or later.
    pub from: Option<UnixMillis>,
    /// Recorded before this instant.
    pub to: Option<UnixMillis>,
}

impl DeliveryFilter {
    /// All deliveries of a tenant.
    pub fn of(tenant: TenantId) -> Self {
        Self {
            tenant,
            subscription: None,
            kind: None,
            event_id: None,
            event_type: None,
            from: None,
            to: None,
        }
    }
}

/// A row of history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Its place in lists.
    pub place: HistoryCursor,
    /// When the attempt ended, by the dispatcher's clock.
    pub at: UnixMillis,
    /// Whom it was delivered to.
    pub subscription: SubscriptionId,
    /// The event's id.
    pub event_id: String,
    /// The event's type.
    pub event_type: String,
    /// Number of the attempt.
    pub attempt: i32,
    /// The decision's name.
    pub kind: String,
    /// Why it was given up.
    pub reason: Option<String>,
    /// HTTP status.
    pub status: Option<i32>,
    /// Class of the failure.
    pub error: Option<String>,
    /// What went wrong, for people.
    pub detail: Option<String>,
    /// Duration of the attempt, milliseconds.
    pub duration_ms: Option<i32>,
    /// When the next attempt is due.
    pub next_at: Option<UnixMillis>,
    /// Start of the response body.
    pub response: Option<String>,
    /// What went over the wire.
    pub exchange: Option<Exchange>,
    /// Ids of a batch's events.
    pub members: Option<Vec<String>>,
}

/// A page of history, newest first, after `cursor`.
pub async fn list(
    client: &tokio_postgres::Client,
    filter: &DeliveryFilter,
    cursor: Option<HistoryCursor>,
    limit: usize,
) -> Result<Page<Delivery>, Error> {
    let Some(stored) = partitions::stored_span(client, Table::Delivery).await? else {
        return Ok(Page { items: Vec::new(), next_cursor: None });
    };
    let oldest = stored.from.max(filter.from.map_or(stored.from, DbInstant::from_millis));
    // Nothing is recorded in the future; one microsecond more, because the end is exclusive.
    let newest = DbInstant(stored.now.0.saturating_add(1));
    let mut end = newest.min(filter.to.map_or(newest, DbInstant::from_millis));
    if let Some(cursor) = cursor {
        end = end.min(DbInstant(cursor.recorded_at.0.saturating_add(1)));
    }
    let mut widths = WINDOWS.iter().chain(std::iter::repeat(&WINDOWS[WINDOWS.len() - 1]));
    let mut items = Vec::new();
    // Each round moves `end` down by a window, so this ends after (retention / last window) rounds at most.
    while items.len() <= limit && end > oldest {
        let width = widths.next().copied().unwrap_or(WINDOWS[0]);
        let start = end.minus(width).max(oldest);
        let wanted = limit.saturating_add(1) - items.len();
        items.extend(list_window(client, filter, cursor, start, end, wanted).await?);
        end = start;
    }
    Ok(Page::from_rows(items, limit, |delivery| delivery.place))
}

async fn list_window(
    client: &tokio_postgres::Client,
    filter: &DeliveryFilter,
    cursor: Option<HistoryCursor>,
    start: DbInstant,
    end: DbInstant,
    limit: usize,
) -> Result<Vec<Delivery>, Error> {
    // Planned anew for its values each time: filters that are NULL fold away, and partitions are pruned.
    let sql = "-- list_deliveries
        SELECT recorded_at, shard, id, at, subscription_id, event_id, event_type, attempt, kind, reason, status,
               error, detail, duration_ms, next_at, response, exchange, members
        FROM delivery
        WHERE tenant_id = $1 AND recorded_at >= $2 AND recorded_at < $3
          AND ($4::timestamptz IS NULL OR (recorded_at, shard, id) < ($4, $5, $6))
          AND ($7::uuid IS NULL OR subscription_id = $7)
          AND ($8::text IS NULL OR kind = $8)
          AND ($9::text IS NULL OR event_id = $9 OR $9 = ANY (members))
          AND ($10::text IS NULL OR event_type = $10 OR $10 = ANY (member_types))
        ORDER BY recorded_at DESC, shard DESC, id DESC
        LIMIT $11";
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let parameters: [(&(dyn ToSql + Sync), Type); 11] = [
        (&filter.tenant.0, Type::UUID),
        (&start, Type::TIMESTAMPTZ),
        (&end, Type::TIMESTAMPTZ),
        (&cursor.map(|cursor| cursor.recorded_at), Type::TIMESTAMPTZ),
        (&cursor.map(|cursor| cursor.shard), Type::INT4),
        (&cursor.map(|cursor| cursor.id), Type::INT8),
        (&filter.subscription.map(|subscription| subscription.0), Type::UUID),
        (&filter.kind, Type::TEXT),
        (&filter.event_id, Type::TEXT),
        (&filter.event_type, Type::TEXT),
        (&limit, Type::INT8),
    ];
    client.query_typed(sql, &parameters).await?.iter().map(delivery_from_row).collect()
}

fn delivery_from_row(row: &Row) -> Result<Delivery, Error> {
    Ok(Delivery {
        place: HistoryCursor { recorded_at: row.try_get(0)?, shard: row.try_get(1)?, id: row.try_get(2)? },
        at: row.try_get::<_, DbInstant>(3)?.to_millis(),
        subscription: SubscriptionId(row.try_get(4)?),
        event_id: row.try_get(5)?,
        event_type: row.try_get(6)?,
        attempt: row.try_get(7)?,
        kind: row.try_get(8)?,
        reason: row.try_get(9)?,
        status: row.try_get(10)?,
        error: row.try_get(11)?,
        detail: row.try_get(12)?,
        duration_ms: row.try_get(13)?,
        next_at: row.try_get::<_, Option<DbInstant>>(14)?.map(DbInstant::to_millis),
        response: row.try_get(15)?,
        // What a newer version wrote is nothing that this one has to show.
        exchange: row.try_get::<_, Option<Value>>(16)?.and_then(|value| serde_json::from_value(value).ok()),
        members: row.try_get(17)?,
    })
}

/// Which outcomes to count. Fields that are `None` do not restrict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CountFilter {
    /// Whose; never left out.
    pub tenant: TenantId,
    /// To this subscription.
    pub subscription: Option<SubscriptionId>,
    /// Recorded in this minute or later.
    pub from: Option<UnixMillis>,
    /// Recorded in a minute that starts before this instant.
    pub to: Option<UnixMillis>,
}

/// Events that one subscription had an outcome of, by the decision's name. A name without outcomes is absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionCounts {
    /// The subscription.
    pub subscription: SubscriptionId,
    /// How many events of each kind of outcome.
    pub by_kind: BTreeMap<String, i64>,
}

/// Numbers of outcomes, by subscription.
pub async fn counts(
    client: &tokio_postgres::Client,
    filter: &CountFilter,
) -> Result<Vec<SubscriptionCounts>, Error> {
    let sql = "-- count_deliveries
        SELECT subscription_id, kind, sum(n)::bigint
        FROM delivery_count
        WHERE tenant_id = $1
          AND ($2::uuid IS NULL OR subscription_id = $2)
          AND ($3::timestamptz IS NULL OR minute >= $3)
          AND ($4::timestamptz IS NULL OR minute < $4)
        GROUP BY subscription_id, kind
        ORDER BY subscription_id, kind";
    let from = filter.from.map(|from| minute_of(DbInstant::from_millis(from)));
    let to = filter.to.map(DbInstant::from_millis);
    let parameters: [(&(dyn ToSql + Sync), Type); 4] = [
        (&filter.tenant.0, Type::UUID),
        (&filter.subscription.map(|subscription| subscription.0), Type::UUID),
        (&from, Type::TIMESTAMPTZ),
        (&to, Type::TIMESTAMPTZ),
    ];
    let mut counts: Vec<SubscriptionCounts> = Vec::new();
    for row in client.query_typed(sql, &parameters).await? {
        let (subscription, kind, n): (Uuid, String, i64) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let subscription = SubscriptionId(subscription);
        match counts.last_mut() {
            Some(last) if last.subscription == subscription => {
                last.by_kind.insert(kind, n);
            }
            _ => counts.push(SubscriptionCounts { subscription, by_kind: BTreeMap::from([(kind, n)]) }),
        }
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minutes_start_at_whole_minutes() {
        assert_eq!(minute_of(DbInstant(MINUTE_US * 7 + 5)), DbInstant(MINUTE_US * 7));
        assert_eq!(minute_of(DbInstant(MINUTE_US * 7)), DbInstant(MINUTE_US * 7));
        assert_eq!(minute_of(DbInstant(-1)), DbInstant(-MINUTE_US));
    }
}
