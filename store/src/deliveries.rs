//! History: what became of each delivery.

use crate::{
    DbInstant, Error,
    page::{HistoryCursor, IN_STRETCH, NEWEST_FIRST, Page, Stretch, Walk},
    partitions::{self, Table},
};
use bytes::{BufMut, BytesMut};
use floodway_schemas::{
    UnixMillis,
    exchange::Exchange,
    ids::{SubscriptionId, TenantId},
};
use serde::Serialize;
use std::{ops::Range, time::Duration};
use tokio_postgres::{
    Row,
    types::{IsNull, ToSql, Type, to_sql_checked},
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
    /// Id of the outcome in its shard.
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
    /// Which endpoint the attempt was made at, unless it was the subscription's own.
    pub via: Option<&'static str>,
    /// What went wrong, for people.
    pub detail: Option<String>,
    /// Duration of the attempt, milliseconds.
    pub duration_ms: Option<i32>,
    /// When the next attempt is due.
    pub next_at: Option<DbInstant>,
    /// Start of the response body.
    pub response: Option<String>,
    /// What went over the wire.
    pub exchange: Option<JsonText>,
    /// Ids of a batch's events.
    pub members: Option<Vec<String>>,
    /// Types of a batch's events, each once.
    pub member_types: Option<Vec<String>>,
}

/// JSON as text, for a column of type `text`: nobody reads it before somebody asks for the row. It has no NUL, which JSON writes as an escape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonText(Vec<u8>);

impl JsonText {
    /// The JSON of a value; `None` if it has none.
    pub fn of(value: &impl Serialize) -> Option<Self> {
        serde_json::to_vec(value).ok().map(Self)
    }
}

impl ToSql for JsonText {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.put_slice(&self.0);
        Ok(IsNull::No)
    }

    fn accepts(column: &Type) -> bool {
        *column == Type::TEXT
    }

    to_sql_checked!();
}

pub(crate) const COPY: &str = "COPY delivery (recorded_at, shard, id, at, tenant_id, subscription_id, event_id, \
     event_type, attempt, kind, reason, status, error, detail, duration_ms, next_at, response, wire, members, member_types, via) \
     FROM STDIN BINARY";

pub(crate) const COLUMNS: [Type; 21] = [
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
    Type::TEXT,
    Type::TEXT_ARRAY,
    Type::TEXT_ARRAY,
    Type::TEXT,
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
            &self.via,
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
    /// Answered with this HTTP status.
    pub status: Option<i32>,
    /// Failed with this class of error.
    pub error: Option<String>,
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
            status: None,
            error: None,
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
    /// Which endpoint the attempt was made at, unless it was the subscription's own.
    pub via: Option<String>,
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
    let Some(span) = partitions::recorded_within(client, Table::Delivery, filter.from, filter.to).await?
    else {
        return Ok(Page { items: Vec::new(), next_cursor: None });
    };
    let mut walk = Walk::new(span, cursor, limit, &WINDOWS);
    let mut items = Vec::new();
    while let Some((span, wanted)) = walk.next(items.len()) {
        for row in list_window(client, "", filter, cursor, span, wanted).await? {
            items.push(delivery_from_row(&row)?);
        }
    }
    Ok(walk.page(items, |delivery| delivery.place))
}

/// How the server carries out a list of what was recorded within the last `width`, line by line: for benchmarks.
pub async fn explain(
    client: &tokio_postgres::Client,
    filter: &DeliveryFilter,
    width: Duration,
) -> Result<Vec<String>, Error> {
    let row = client.query_typed_one("-- explain_deliveries: now\nSELECT clock_timestamp()", &[]).await?;
    let now: DbInstant = row.try_get(0)?;
    let explain = "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY) ";
    let rows = list_window(client, explain, filter, None, now.minus(width)..now, 101).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Rows of one stretch of time, or what `before` makes of the statement.
async fn list_window(
    client: &tokio_postgres::Client,
    before: &str,
    filter: &DeliveryFilter,
    cursor: Option<HistoryCursor>,
    span: Range<DbInstant>,
    limit: usize,
) -> Result<Vec<Row>, Error> {
    let by_event = filter.event_id.is_some() || filter.event_type.is_some();
    let sql = format!("{before}{}", list_statement(by_event));
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let (stretch, subscription) = (Stretch::new(span, cursor), filter.subscription.map(|id| id.0));
    let mut parameters: Vec<(&(dyn ToSql + Sync), Type)> = vec![(&filter.tenant.0, Type::UUID)];
    parameters.extend(stretch.parameters());
    let of_filter: [(&(dyn ToSql + Sync), Type); 7] = [
        (&subscription, Type::UUID),
        (&filter.kind, Type::TEXT),
        (&filter.event_id, Type::TEXT),
        (&filter.event_type, Type::TEXT),
        (&filter.status, Type::INT4),
        (&filter.error, Type::TEXT),
        (&limit, Type::INT8),
    ];
    parameters.extend(of_filter);
    Ok(client.query_typed(&sql, &parameters).await?)
}

/// The statement that lists a stretch of time. It is planned anew for its values each time: filters that are NULL fold away,
/// and partitions are pruned. Single events and batches are looked up apart if an event is asked for: together they would be
/// an OR, which no index yields in the order of the list.
fn list_statement(by_event: bool) -> String {
    let part = |condition: &str| {
        format!(
            "SELECT recorded_at, shard, id, at, subscription_id, event_id, event_type, attempt, kind, reason, status,
                   error, detail, duration_ms, next_at, response, coalesce(wire, exchange::text), members, via
            FROM delivery
            WHERE tenant_id = $1 AND {IN_STRETCH}
              AND ($7::uuid IS NULL OR subscription_id = $7)
              AND ($8::text IS NULL OR kind = $8)
              AND ($11::int4 IS NULL OR status = $11)
              AND ($12::text IS NULL OR error = $12)
              AND {condition}
            {NEWEST_FIRST}
            LIMIT $13"
        )
    };
    let single = part(
        "($9::text IS NULL OR event_id = $9) AND ($10::text IS NULL OR event_type = $10)
              AND (members IS NULL OR ($9 IS NULL AND $10 IS NULL))",
    );
    if !by_event {
        return format!("-- list_deliveries\n{single}");
    }
    let batch = part(
        "members IS NOT NULL AND ($9 IS NULL OR event_id = $9 OR members @> ARRAY[$9])
              AND ($10 IS NULL OR event_type = $10 OR member_types @> ARRAY[$10])",
    );
    format!(
        "-- list_deliveries: by event
        SELECT * FROM (({single}) UNION ALL ({batch})) AS found
        {NEWEST_FIRST}
        LIMIT $13"
    )
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
        exchange: row.try_get::<_, Option<&str>>(16)?.and_then(|json| serde_json::from_str(json).ok()),
        members: row.try_get(17)?,
        via: row.try_get(18)?,
    })
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
