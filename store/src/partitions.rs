//! Time partitions of the bulk tables: created ahead of their rows, dropped as a whole when their time has passed.
//!
//! A partition's name says what it holds (`delivery_20261121_15` is an hour, `_20261121` a day, `_202611` a month),
//! so its bounds are read from its name. None of the tables has a DEFAULT partition: with one, `DETACH … CONCURRENTLY`
//! is refused, and anything else waits behind readers with writers queueing behind it.
//!
//! Creation: a standalone table with the bounds as a CHECK, so that attaching it scans nothing, then `ATTACH`, which
//! blocks neither readers nor writers. Dropping: `DETACH … CONCURRENTLY`, which cannot run in a transaction and leaves
//! the partition half detached when it is interrupted, then `DROP`. The next pass completes what a crash left.

use crate::{
    DbInstant, Error, Pool, advisory,
    count_levels::{Level, Progress},
    pool::DedicatedClient,
    retry,
};
use floodway_schemas::UnixMillis;
use std::{fmt::Write as _, ops::Range, time::Duration};
use time::{Date, Month, OffsetDateTime, Time};
use tokio_postgres::types::{ToSql, Type};

const HOUR_US: i64 = 3_600_000_000;
const DAY_US: i64 = 24 * HOUR_US;

/// Partitions created in one transaction: enough that the transactions do not add up, few enough that the lock on
/// the parent, which only other maintenance waits for, is short.
const CREATED_AT_ONCE: usize = 32;

/// Longest wait for the lock under which an empty day is replaced by its hours, in milliseconds. Writers queue behind
/// it, so it is short; the next pass tries again.
const SPLIT_LOCK_TIMEOUT_MS: u32 = 500;

/// Longest wait for readers of a partition that is being detached, in milliseconds. Interrupted detaching is finished
/// by the next pass.
const DETACH_TIMEOUT_MS: u32 = 30_000;

/// A partitioned table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// Pending retries, by due time.
    Retry,
    /// What commands to them leave behind, by the due time of the last one covered.
    RetryMark,
    /// History, by the time it was recorded.
    Delivery,
    /// Counts, by minute.
    DeliveryCount,
    /// Counts, by hour.
    DeliveryCountHour,
    /// Counts, by day.
    DeliveryCountDay,
    /// Dead letters, by the time they were recorded.
    DeadLetter,
    /// Requests to deliver dead letters again, by the time of the request; kept as long as dead letters.
    DeadLetterReplay,
}

/// How far ahead partitions exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Hours for which retries have a partition per hour; the day that they end in is filled up with hours.
    pub retry_hours: u32,
    /// Days for which retries and their marks have partitions.
    pub retry_days: u32,
    /// Hours ahead for history.
    pub delivery_hours: u32,
    /// Days ahead for counts by minute and by hour.
    pub count_days: u32,
    /// Months ahead for dead letters and their replays, and for counts by day.
    pub letter_months: u32,
}

impl Default for Plan {
    fn default() -> Self {
        Self { retry_hours: 72, retry_days: 35, delivery_hours: 48, count_days: 3, letter_months: 1 }
    }
}

/// How long rows are kept after they were recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// History.
    pub deliveries: Duration,
    /// Counts by day; minutes and hours are kept for less, see [`crate::count_levels`].
    pub counts: Duration,
    /// Dead letters and their replays.
    pub dead_letters: Duration,
}

/// Length of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// An hour.
    Hour,
    /// A day.
    Day,
    /// A calendar month.
    Month,
}

/// The time that a partition covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Its first instant, a whole hour, day or month in UTC.
    pub start: DbInstant,
    /// Its length.
    pub step: Step,
}

/// What a pass of [`maintain`] did and found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Names of the partitions created.
    pub created: Vec<String>,
    /// Names of the partitions dropped.
    pub dropped: Vec<String>,
    /// How long partitions last from now, for the table where that is shortest.
    pub ahead: Duration,
    /// What kept a partition from being dropped; the next pass tries again.
    pub blocked: Option<String>,
}

impl Table {
    /// Every partitioned table.
    pub const ALL: [Self; 8] = [
        Self::Retry,
        Self::RetryMark,
        Self::Delivery,
        Self::DeliveryCount,
        Self::DeliveryCountHour,
        Self::DeliveryCountDay,
        Self::DeadLetter,
        Self::DeadLetterReplay,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::RetryMark => "retry_mark",
            Self::Delivery => "delivery",
            Self::DeliveryCount => "delivery_count",
            Self::DeliveryCountHour => "delivery_count_hour",
            Self::DeliveryCountDay => "delivery_count_day",
            Self::DeadLetter => "dead_letter",
            Self::DeadLetterReplay => "dead_letter_replay",
        }
    }

    fn time_column(self) -> &'static str {
        match self {
            Self::Retry => "due_at",
            Self::RetryMark => "until",
            Self::Delivery | Self::DeadLetter => "recorded_at",
            Self::DeliveryCount => "minute",
            Self::DeliveryCountHour => "hour",
            Self::DeliveryCountDay => "day",
            Self::DeadLetterReplay => "requested_at",
        }
    }
}

impl Span {
    /// The partition of length `step` that `at` is in.
    pub fn containing(at: DbInstant, step: Step) -> Self {
        let start = match step {
            Step::Hour => DbInstant(at.0 - at.0.rem_euclid(HOUR_US)),
            Step::Day => DbInstant(at.0 - at.0.rem_euclid(DAY_US)),
            Step::Month => {
                let date = datetime(at).date();
                from_date(date.replace_day(1).unwrap_or(date))
            }
        };
        Self { start, step }
    }

    /// The first instant after it.
    pub fn end(self) -> DbInstant {
        match self.step {
            Step::Hour => DbInstant(self.start.0 + HOUR_US),
            Step::Day => DbInstant(self.start.0 + DAY_US),
            // 32 days after the first of a month is in the next one.
            Step::Month => Self::containing(DbInstant(self.start.0 + 32 * DAY_US), Step::Month).start,
        }
    }

    fn next(self) -> Self {
        Self { start: self.end(), step: self.step }
    }

    fn overlaps(self, other: Self) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    /// The name of a table's partition for this span.
    pub(crate) fn partition_of(self, table: Table) -> String {
        let at = datetime(self.start);
        let mut name = format!("{}_{:04}{:02}", table.name(), at.year(), u8::from(at.month()));
        // Writing to a String cannot fail.
        if self.step != Step::Month {
            let _ = write!(name, "{:02}", at.day());
        }
        if self.step == Step::Hour {
            let _ = write!(name, "_{:02}", at.hour());
        }
        name
    }

    /// The span of a table's partition by its name; `None` for other tables.
    fn of_partition(table: Table, name: &str) -> Option<Self> {
        let suffix = name.strip_prefix(table.name())?.strip_prefix('_')?;
        let (date, hour) = match suffix.split_once('_') {
            Some((date, hour)) if hour.len() == 2 => (date, Some(hour.parse::<u8>().ok()?)),
            Some(_) => return None,
            None => (suffix, None),
        };
        if !date.bytes().all(|byte| byte.is_ascii_digit()) || !matches!(date.len(), 6 | 8) {
            return None;
        }
        let month = Month::try_from(date[4..6].parse::<u8>().ok()?).ok()?;
        let (day, step) = match (date.len(), hour) {
            (6, None) => (1, Step::Month),
            (8, None) => (date[6..8].parse().ok()?, Step::Day),
            (8, Some(_)) => (date[6..8].parse().ok()?, Step::Hour),
            _ => return None,
        };
        let day = Date::from_calendar_date(date[..4].parse().ok()?, month, day).ok()?;
        let start = from_date(day).0 + i64::from(hour.unwrap_or(0)) * HOUR_US;
        Some(Self { start: DbInstant(start), step })
    }
}

fn datetime(at: DbInstant) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(at.0) * 1_000).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn from_date(date: Date) -> DbInstant {
    let at = OffsetDateTime::new_utc(date, Time::MIDNIGHT);
    DbInstant(at.unix_timestamp().saturating_mul(1_000_000))
}

/// The partitions to create so that every instant from `now` to the plan's end has one, none overlapping another.
fn missing(table: Table, plan: Plan, now: DbInstant, existing: &[Span]) -> Vec<Span> {
    let mut wanted = Vec::new();
    match table {
        Table::Retry => {
            let hours_end = hours_end(plan, now);
            let end = DbInstant(now.0 + i64::from(plan.retry_days) * DAY_US);
            fill(&mut wanted, now, hours_end, Step::Hour, existing);
            fill(&mut wanted, hours_end, end, Step::Day, existing);
        }
        Table::RetryMark => {
            // As far as retries reach, whose days are whole.
            let end = DbInstant(now.0 + (i64::from(plan.retry_days) + 1) * DAY_US);
            fill(&mut wanted, now, end, Step::Month, existing);
        }
        Table::Delivery => {
            let end = DbInstant(now.0 + i64::from(plan.delivery_hours) * HOUR_US);
            fill(&mut wanted, now, end, Step::Hour, existing);
        }
        Table::DeliveryCount | Table::DeliveryCountHour => {
            let end = DbInstant(now.0 + i64::from(plan.count_days) * DAY_US);
            fill(&mut wanted, now, end, Step::Day, existing);
        }
        Table::DeliveryCountDay | Table::DeadLetter | Table::DeadLetterReplay => {
            let mut end = Span::containing(now, Step::Month);
            (0..plan.letter_months).for_each(|_| end = end.next());
            fill(&mut wanted, now, end.end(), Step::Month, existing);
        }
    }
    wanted
}

/// Up to where retries are to have a partition per hour: whole days, so that a day is either hours or one partition.
fn hours_end(plan: Plan, now: DbInstant) -> DbInstant {
    Span::containing(DbInstant(now.0 + i64::from(plan.retry_hours) * HOUR_US), Step::Day).end()
}

/// Adds what is uncovered between `from` and `to`: whole steps where nothing exists, hours around what does.
fn fill(wanted: &mut Vec<Span>, from: DbInstant, to: DbInstant, step: Step, existing: &[Span]) {
    let mut span = Span::containing(from, step);
    while span.start < to {
        if !existing.iter().any(|other| other.overlaps(span)) {
            wanted.push(span);
        } else if step == Step::Day {
            fill(wanted, span.start, span.end(), Step::Hour, existing);
        }
        span = span.next();
    }
}

/// Takes the maintenance lock on a connection of its own, or answers `None` when another process holds it.
/// The lock ends with the connection.
pub async fn lock(pool: &Pool) -> Result<Option<DedicatedClient>, Error> {
    let client = pool.dedicated().await?;
    let sql = "-- maintenance_lock\nSELECT pg_try_advisory_lock($1)";
    let row = client.query_typed_one(sql, &[(&advisory::PARTITIONS, Type::INT8)]).await?;
    if !row.try_get::<_, bool>(0)? {
        return Ok(None);
    }
    // Detaching waits for readers, and does so outside of any transaction.
    let limits = format!(
        "-- maintenance_limits\nSET statement_timeout = {DETACH_TIMEOUT_MS}; SET transaction_timeout = 0"
    );
    client.batch_execute(&limits).await?;
    Ok(Some(client))
}

/// How long partitions last from now, for the table where that is shortest.
pub async fn ahead(client: &tokio_postgres::Client) -> Result<Duration, Error> {
    let mut shortest = Duration::MAX;
    for table in Table::ALL {
        let (spans, now) = existing(client, table).await?;
        let end = spans.iter().map(|span| span.end()).max().unwrap_or(now);
        shortest = shortest.min(end.since(now));
    }
    Ok(shortest)
}

/// One pass: creates partitions ahead, then drops those whose time has passed. Retries are dropped behind the lowest
/// cursor only, everything else by age. What keeps a drop from succeeding, a long reader usually, is reported and does
/// not fail the pass: rows that stay are harmless, partitions that are missing are not.
pub async fn maintain(
    client: &mut DedicatedClient,
    plan: Plan,
    retention: Retention,
) -> Result<Report, Error> {
    let mut report = Report { ahead: Duration::MAX, ..Report::default() };
    for table in Table::ALL {
        let ahead = create_ahead(client, table, plan, &mut report.created).await?;
        report.ahead = report.ahead.min(ahead);
    }
    match finish_interrupted(client).await {
        Ok(dropped) => report.dropped = dropped,
        Err(error) => report.blocked = Some(error.to_string()),
    }
    for table in Table::ALL {
        if let Err(error) = drop_behind(client, table, retention, &mut report.dropped).await {
            report.blocked = Some(error.to_string());
        }
    }
    Ok(report)
}

/// Creates what is missing of a table. Answers how long its partitions last from now.
async fn create_ahead(
    client: &mut DedicatedClient,
    table: Table,
    plan: Plan,
    created: &mut Vec<String>,
) -> Result<Duration, Error> {
    let (mut existing, now) = existing(client, table).await?;
    if table == Table::Retry {
        existing = split_empty_days(client, existing, hours_end(plan, now)).await?;
    }
    let wanted = missing(table, plan, now, &existing);
    create(client, table, &wanted).await?;
    created.extend(wanted.iter().map(|span| span.partition_of(table)));
    let end = existing.iter().chain(&wanted).map(|span| span.end()).max().unwrap_or(now);
    Ok(end.since(now))
}

async fn drop_behind(
    client: &DedicatedClient,
    table: Table,
    retention: Retention,
    dropped: &mut Vec<String>,
) -> Result<(), Error> {
    let (existing, now) = existing(client, table).await?;
    let keep_from = match table {
        Table::Retry | Table::RetryMark => retry::lowest_cursor(client).await?.unwrap_or(DbInstant(i64::MIN)),
        Table::Delivery => now.minus(retention.deliveries),
        Table::DeliveryCount => counts_from(client, Level::Minute, retention, now).await?,
        Table::DeliveryCountHour => counts_from(client, Level::Hour, retention, now).await?,
        Table::DeliveryCountDay => counts_from(client, Level::Day, retention, now).await?,
        Table::DeadLetter | Table::DeadLetterReplay => now.minus(retention.dead_letters),
    };
    for span in existing.iter().filter(|span| span.end() <= keep_from && span.end() <= now) {
        let name = span.partition_of(table);
        detach(client, table, &name).await?;
        drop_table(client, &name).await?;
        dropped.push(name);
    }
    Ok(())
}

/// From where on counts of a level are kept: minutes and hours go when they were rolled up, and no reader needs them.
async fn counts_from(
    client: &DedicatedClient,
    level: Level,
    retention: Retention,
    now: DbInstant,
) -> Result<DbInstant, Error> {
    let progress = Progress::read(&**client).await?;
    Ok(progress.droppable(level, now.minus(retention.counts)).unwrap_or(DbInstant(i64::MIN)))
}

/// Creates the partition for a span unless something covers part of it.
pub(crate) async fn ensure(client: &mut DedicatedClient, table: Table, span: Span) -> Result<(), Error> {
    let (existing, _) = existing(client, table).await?;
    if existing.iter().any(|other| other.overlaps(span)) {
        return Ok(());
    }
    create(client, table, &[span]).await
}

/// The spans of a table's attached partitions, and the server's clock.
pub(crate) async fn existing(
    client: &tokio_postgres::Client,
    table: Table,
) -> Result<(Vec<Span>, DbInstant), Error> {
    let sql = "-- partitions
        SELECT c.relname::text, clock_timestamp()
        FROM (SELECT 1) AS one LEFT JOIN pg_inherits i ON i.inhparent = $1::text::regclass AND NOT i.inhdetachpending
        LEFT JOIN pg_class c ON c.oid = i.inhrelid";
    let rows = client.query_typed(sql, &[(&table.name(), Type::TEXT)]).await?;
    let mut now = DbInstant(i64::MIN);
    let mut spans = Vec::with_capacity(rows.len());
    for row in &rows {
        now = now.max(row.try_get(1)?);
        let name: Option<String> = row.try_get(0)?;
        spans.extend(name.and_then(|name| Span::of_partition(table, &name)));
    }
    Ok((spans, now))
}

/// The stretch from `from` to `to`, as far as a table can have rows in it; `None` when it has no partitions yet.
pub(crate) async fn recorded_within(
    client: &tokio_postgres::Client,
    table: Table,
    from: Option<UnixMillis>,
    to: Option<UnixMillis>,
) -> Result<Option<Range<DbInstant>>, Error> {
    let (spans, now) = existing(client, table).await?;
    let Some(first) = spans.iter().map(|span| span.start).min() else { return Ok(None) };
    let oldest = first.max(from.map_or(first, DbInstant::from_millis));
    // Nothing is recorded in the future; one microsecond more, because the end is exclusive.
    let newest = DbInstant(now.0.saturating_add(1));
    Ok(Some(oldest..newest.min(to.map_or(newest, DbInstant::from_millis))))
}

async fn create(client: &mut DedicatedClient, table: Table, spans: &[Span]) -> Result<(), Error> {
    for chunk in spans.chunks(CREATED_AT_ONCE) {
        let transaction = client.transaction().await?;
        let sql: String = chunk.iter().map(|span| create_sql(table, *span)).collect();
        transaction.batch_execute(&sql).await?;
        transaction.commit().await?;
    }
    Ok(())
}

/// Replaces days of retries that have come within the range of hours by their hours, if they are still empty: days are
/// made long ahead, and rows that far ahead are rare. A day with rows stays as it is. Answers what is there afterwards.
async fn split_empty_days(
    client: &mut DedicatedClient,
    existing: Vec<Span>,
    hours_end: DbInstant,
) -> Result<Vec<Span>, Error> {
    let mut spans = Vec::with_capacity(existing.len());
    for span in existing {
        if span.step == Step::Day && span.start < hours_end && split_if_empty(client, span).await? {
            let hours =
                std::iter::successors(Some(Span { step: Step::Hour, ..span }), |hour| Some(hour.next()));
            spans.extend(hours.take_while(|hour| hour.start < span.end()));
        } else {
            spans.push(span);
        }
    }
    Ok(spans)
}

/// The parent is locked first, as writers do, so that nobody waits for each other in a circle. `false` when there are
/// rows, or the lock was not to be had.
async fn split_if_empty(client: &mut DedicatedClient, day: Span) -> Result<bool, Error> {
    let name = day.partition_of(Table::Retry);
    let occupied = format!("-- split_day: look\nSELECT EXISTS (SELECT FROM {name})");
    // Without a lock first: the common answer for a day with rows costs nobody anything.
    if client.query_typed_one(&occupied, &[]).await?.try_get(0)? {
        return Ok(false);
    }
    let transaction = client.transaction().await?;
    let lock = format!(
        "-- split_day: lock\nSET LOCAL lock_timeout = {SPLIT_LOCK_TIMEOUT_MS}; LOCK TABLE retry IN ACCESS EXCLUSIVE MODE"
    );
    match transaction.batch_execute(&lock).await.map_err(Error::from) {
        Err(error) if error.is_unavailable() => return Ok(false),
        result => result?,
    }
    if transaction.query_typed_one(&occupied, &[]).await?.try_get(0)? {
        return Ok(false);
    }
    let mut sql = format!("-- split_day\nDROP TABLE {name};\n");
    let mut hour = Span { step: Step::Hour, ..day };
    while hour.start < day.end() {
        sql.push_str(&create_sql(Table::Retry, hour));
        hour = hour.next();
    }
    transaction.batch_execute(&sql).await?;
    transaction.commit().await?;
    Ok(true)
}

/// Names and instants are made from numbers here, so nothing needs quoting.
fn create_sql(table: Table, span: Span) -> String {
    let (parent, column, name) = (table.name(), table.time_column(), span.partition_of(table));
    let from = span.start.to_millis().to_rfc3339();
    let to = span.end().to_millis().to_rfc3339();
    let with = match table {
        // A row is read once or twice and goes with its partition. Vacuuming what was just written writes it all once more,
        // and into the WAL as well, while the next rows come. Statistics are kept as ever.
        Table::Retry => " WITH (autovacuum_vacuum_insert_threshold = -1)",
        _ => "",
    };
    format!(
        "-- create_partition
        CREATE TABLE {name} (LIKE {parent} INCLUDING ALL,
            CONSTRAINT {name}_bounds CHECK ({column} >= '{from}' AND {column} < '{to}')){with};
        ALTER TABLE {parent} ATTACH PARTITION {name} FOR VALUES FROM ('{from}') TO ('{to}');
        ALTER TABLE {name} DROP CONSTRAINT {name}_bounds;\n"
    )
}

async fn detach(client: &DedicatedClient, table: Table, name: &str) -> Result<(), Error> {
    let sql = format!("ALTER TABLE {} DETACH PARTITION {name} CONCURRENTLY", table.name());
    Ok(client.batch_execute(&sql).await?)
}

async fn drop_table(client: &DedicatedClient, name: &str) -> Result<(), Error> {
    Ok(client.batch_execute(&format!("DROP TABLE IF EXISTS {name}")).await?)
}

/// Completes detaching and dropping that a crash or a timeout interrupted. Answers the tables it dropped.
async fn finish_interrupted(client: &DedicatedClient) -> Result<Vec<String>, Error> {
    let mut dropped = Vec::new();
    for table in Table::ALL {
        let pending = "-- partitions_half_detached
            SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
            WHERE i.inhparent = $1::text::regclass AND i.inhdetachpending";
        for name in partition_names(client, table, pending).await? {
            let sql = format!("ALTER TABLE {} DETACH PARTITION {name} FINALIZE", table.name());
            client.batch_execute(&sql).await?;
        }
        // A table is created and attached in one transaction, so one that is not attached was detached.
        let detached = "-- partitions_detached
            SELECT c.relname::text FROM pg_class c
            WHERE c.relkind = 'r' AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = $1::text::regclass)
              AND starts_with(c.relname::text, $1 || '_')
              AND NOT EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = c.oid)";
        for name in partition_names(client, table, detached).await? {
            drop_table(client, &name).await?;
            dropped.push(name);
        }
    }
    Ok(dropped)
}

/// Names that a query yields, as far as they have the form of the table's partitions.
async fn partition_names(
    client: &tokio_postgres::Client,
    table: Table,
    sql: &str,
) -> Result<Vec<String>, Error> {
    let parameters: [(&(dyn ToSql + Sync), Type); 1] = [(&table.name(), Type::TEXT)];
    let rows = client.query_typed(sql, &parameters).await?;
    let names: Vec<String> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    Ok(names.into_iter().filter(|name| Span::of_partition(table, name).is_some()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> DbInstant {
        DbInstant::from_millis(UnixMillis::parse_rfc3339(text).unwrap())
    }

    #[test]
    fn names_tell_the_span() {
        let now = at("2026-11-21T15:34:00Z");
        for (step, name) in [
            (Step::Hour, "delivery_20261121_15"),
            (Step::Day, "delivery_20261121"),
            (Step::Month, "delivery_202611"),
        ] {
            let span = Span::containing(now, step);
            assert_eq!(span.partition_of(Table::Delivery), name);
            assert_eq!(Span::of_partition(Table::Delivery, name), Some(span));
        }
        for other in
            ["delivery_count_20261121", "delivery_x", "delivery", "delivery_20261121_15_pkey", "retry_shard"]
        {
            assert_eq!(Span::of_partition(Table::Delivery, other), None, "{other}");
        }
        assert_eq!(Span::of_partition(Table::Retry, "retry_shard"), None);
        assert_eq!(Span::of_partition(Table::DeadLetter, "dead_letter_replay_202611"), None);
        assert_eq!(Span::of_partition(Table::DeliveryCount, "delivery_count_hour_20261121"), None);
        assert_eq!(Span::of_partition(Table::DeliveryCount, "delivery_count_day_202611"), None);
    }

    #[test]
    fn months_end_where_the_next_begins() {
        let december = Span::containing(at("2026-12-31T23:59:59Z"), Step::Month);
        assert_eq!(december.end(), at("2027-01-01T00:00:00Z"));
        assert_eq!(december.next().end(), at("2027-02-01T00:00:00Z"));
    }

    #[test]
    fn retries_have_hours_for_days_and_then_days() {
        let now = at("2026-11-21T15:34:00Z");
        let spans = missing(Table::Retry, Plan::default(), now, &[]);
        let hours = spans.iter().filter(|span| span.step == Step::Hour).count();
        assert_eq!((spans[0].start, hours), (at("2026-11-21T15:00:00Z"), 9 + 3 * 24));
        assert_eq!(spans.last().unwrap().end(), at("2026-12-27T00:00:00Z"));
    }

    proptest! {
        #[test]
        fn every_instant_of_the_plan_gets_exactly_one_partition(
            passes in proptest::collection::vec((1i64..400, 1u32..80, 2u32..20), 1..6),
            probe in 0.0f64..1.0,
        ) {
            let mut now = at("2026-11-21T15:34:00Z");
            let mut existing: Vec<Span> = Vec::new();
            for (hours_later, retry_hours, retry_days) in passes {
                now = DbInstant(now.0 + hours_later * HOUR_US / 7);
                let plan = Plan { retry_hours, retry_days, ..Plan::default() };
                existing.extend(missing(Table::Retry, plan, now, &existing));
                let instant = DbInstant(now.0 + (probe * retry_days as f64 * DAY_US as f64) as i64 - 1);
                let instant = instant.max(now);
                let covering = existing.iter().filter(|s| s.start <= instant && instant < s.end()).count();
                prop_assert_eq!(covering, 1);
                for (index, span) in existing.iter().enumerate() {
                    prop_assert!(existing[index + 1..].iter().all(|other| !other.overlaps(*span)));
                }
            }
        }
    }
}
