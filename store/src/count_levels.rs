//! Counts by minute, rolled up to hours and days.
//!
//! Minutes are kept for two days, hours for thirty, days as long as the retention says. A period is rolled up when it has
//! ended and no transaction can add to it any more: the sums and the mark behind which they are complete are written in one
//! transaction, which moves the mark from where the period starts to where it ends and finds no row if somebody did. Readers
//! take each stretch of time from one level only ([`Progress::cover`]), the coarsest that has it, so what is stored twice
//! until its partition is dropped is counted once.
//!
//! A partition is dropped a minute after `minutes_from` or `hours_from` passed it, when no reader that saw the value before
//! is still at work.

use crate::{
    DbInstant, Error,
    partitions::{self, Span, Step, Table},
    pool::{DedicatedClient, TRANSACTION_TIMEOUT},
};
use std::{ops::Range, time::Duration};
use tokio_postgres::{
    GenericClient,
    types::{ToSql, Type},
};

const MINUTE_US: i64 = 60_000_000;
const HOUR_US: i64 = 60 * MINUTE_US;
const DAY_US: i64 = 24 * HOUR_US;

/// How long minutes are kept: the last two days can be asked for by the minute.
pub const MINUTES_KEPT: Duration = Duration::from_secs(48 * 3_600);

/// How long hours are kept.
pub const HOURS_KEPT: Duration = Duration::from_secs(30 * 86_400);

/// Wait after the end of a period before it is rolled up: steps of the server's clock are smaller.
const SETTLE: Duration = Duration::from_secs(60);

/// Wait between moving the place from which finer counts are kept and dropping what is before it.
const READERS_GONE: Duration = Duration::from_secs(60);
const _: () = assert!(READERS_GONE.as_secs() > 2 * TRANSACTION_TIMEOUT.as_secs());

/// Periods rolled up in one pass at most, so that a pass ends after a long pause; the next one goes on.
const AT_ONCE: usize = 1_000;

/// Longest time for one period, in milliseconds: an hour of the busiest installation has millions of rows.
const PERIOD_TIMEOUT_MS: u32 = 600_000;

/// How finely counts are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// By minute, as they were appended.
    Minute,
    /// By hour.
    Hour,
    /// By day, in UTC.
    Day,
}

impl Level {
    pub(crate) fn table(self) -> &'static str {
        match self {
            Self::Minute => "delivery_count",
            Self::Hour => "delivery_count_hour",
            Self::Day => "delivery_count_day",
        }
    }

    pub(crate) fn column(self) -> &'static str {
        match self {
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
        }
    }

    fn us(self) -> i64 {
        match self {
            Self::Minute => MINUTE_US,
            Self::Hour => HOUR_US,
            Self::Day => DAY_US,
        }
    }

    fn floor(self, at: DbInstant) -> DbInstant {
        DbInstant(at.0 - at.0.rem_euclid(self.us()))
    }

    fn ceil(self, at: DbInstant) -> DbInstant {
        self.floor(DbInstant(at.0.saturating_add(self.us() - 1)))
    }
}

/// How far counts were rolled up, and from where on the finer ones are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Hours that start earlier are rolled up.
    pub(crate) hours_to: DbInstant,
    /// Days that start earlier are rolled up.
    pub(crate) days_to: DbInstant,
    /// Minutes that start earlier may be gone.
    pub(crate) minutes_from: DbInstant,
    /// Hours that start earlier may be gone.
    pub(crate) hours_from: DbInstant,
    /// When one of the last two moved.
    pub(crate) moved_at: DbInstant,
    /// The server's clock, read in the same statement.
    pub(crate) now: DbInstant,
}

/// From which levels a stretch of time is counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cover {
    /// What is covered: the time asked for and what had to be added at its ends.
    pub(crate) widened: Range<DbInstant>,
    /// Stretches that do not overlap and leave nothing out, in order of time; at most five.
    pub(crate) spans: Vec<(Level, Range<DbInstant>)>,
}

/// What a call of [`roll_up`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RolledUp {
    /// Hours whose minutes were summed up.
    pub hours: usize,
    /// Days whose hours were summed up.
    pub days: usize,
}

impl Progress {
    pub(crate) async fn read(client: &impl GenericClient) -> Result<Self, Error> {
        let sql = "-- count_progress
            SELECT hours_to, days_to, minutes_from, hours_from, moved_at, clock_timestamp() FROM delivery_count_progress";
        let row = client.query_typed_one(sql, &[]).await?;
        Ok(Self {
            hours_to: row.try_get(0)?,
            days_to: row.try_get(1)?,
            minutes_from: row.try_get(2)?,
            hours_from: row.try_get(3)?,
            moved_at: row.try_get(4)?,
            now: row.try_get(5)?,
        })
    }

    /// Before which instant a level's rows may be dropped; `None` when readers may still be at what is to go.
    pub(crate) fn droppable(self, level: Level, days_from: DbInstant) -> Option<DbInstant> {
        let settled = self.now.since(self.moved_at) >= READERS_GONE;
        match level {
            Level::Minute => settled.then_some(self.minutes_from),
            Level::Hour => settled.then_some(self.hours_from),
            Level::Day => Some(days_from),
        }
    }

    /// Divides a stretch of time among the levels. Its ends are moved outwards to what the finest level that is kept there
    /// can tell: minutes, or whole hours, or whole days.
    pub(crate) fn cover(self, asked: Range<DbInstant>) -> Cover {
        let start = match asked.start {
            at if at < self.hours_from => Level::Day.floor(at),
            at if at < self.minutes_from => Level::Hour.floor(at),
            at => Level::Minute.floor(at),
        };
        let end = match asked.end {
            at if at <= self.hours_from => Level::Day.ceil(at),
            at if at <= self.minutes_from => Level::Hour.ceil(at),
            at => Level::Minute.ceil(at),
        };
        let mut spans = Vec::new();
        if asked.start < asked.end {
            self.divide(Level::Day, start..end, &mut spans);
        }
        Cover { widened: start..end, spans }
    }

    /// Takes whole periods of `level` from the middle and leaves what is before and after them to the finer level.
    fn divide(self, level: Level, span: Range<DbInstant>, spans: &mut Vec<(Level, Range<DbInstant>)>) {
        let (finer, complete_to) = match level {
            _ if span.start >= span.end => return,
            Level::Minute => return spans.push((level, span)),
            Level::Hour => (Level::Minute, self.hours_to),
            Level::Day => (Level::Hour, self.days_to),
        };
        let whole = level.ceil(span.start)..level.floor(span.end).min(complete_to);
        if whole.start >= whole.end {
            return self.divide(finer, span, spans);
        }
        self.divide(finer, span.start..whole.start, spans);
        spans.push((level, whole.clone()));
        self.divide(finer, whole.end..span.end, spans);
    }
}

/// Rolls up every period that has ended, then moves the places from which finer counts are kept. Each period is a
/// transaction of its own: a crash leaves it done or not done. The caller holds the maintenance lock.
pub async fn roll_up(client: &mut DedicatedClient) -> Result<RolledUp, Error> {
    let mut progress = Progress::read(&**client).await?;
    let ended = Level::Hour.floor(progress.now.minus(SETTLE));
    let mut done = RolledUp::default();
    if progress.hours_to < ended {
        wait_for_open_batches(client).await?;
    }
    while progress.hours_to < ended && done.hours < AT_ONCE {
        let hour = progress.hours_to..DbInstant(progress.hours_to.0 + HOUR_US);
        roll_up_period(client, Level::Hour, &hour).await?;
        progress.hours_to = hour.end;
        done.hours += 1;
    }
    while progress.days_to.0 + DAY_US <= progress.hours_to.0 && done.days < AT_ONCE {
        let day = progress.days_to..DbInstant(progress.days_to.0 + DAY_US);
        roll_up_period(client, Level::Day, &day).await?;
        progress.days_to = day.end;
        done.days += 1;
    }
    move_kept(client, progress).await?;
    Ok(done)
}

/// Waits until every batch of outcomes that is open now has ended: each holds its shard's row, and its minute may be in a
/// period that has just ended. One row at a time, so that a slow batch holds up no other shard.
async fn wait_for_open_batches(client: &DedicatedClient) -> Result<(), Error> {
    let shards = client.query_typed("-- count_shards\nSELECT shard FROM retry_shard", &[]).await?;
    for shard in &shards {
        let shard: i32 = shard.try_get(0)?;
        let sql = "-- wait_for_open_batch\nSELECT 1 FROM retry_shard WHERE shard = $1 FOR SHARE";
        client.query_typed(sql, &[(&shard, Type::INT4)]).await?;
    }
    Ok(())
}

/// Sums up one hour's minutes or one day's hours, and moves the mark over it.
async fn roll_up_period(
    client: &mut DedicatedClient,
    level: Level,
    period: &Range<DbInstant>,
) -> Result<(), Error> {
    let (table, step, mark, finer) = match level {
        Level::Day => (Table::DeliveryCountDay, Step::Month, "days_to", Level::Hour),
        Level::Hour | Level::Minute => (Table::DeliveryCountHour, Step::Day, "hours_to", Level::Minute),
    };
    // Ahead of time there is one as a rule; not for what was counted before this version.
    partitions::ensure(client, table, Span::containing(period.start, step)).await?;
    let transaction = client.transaction().await?;
    let limit = format!("-- roll_up: limit\nSET LOCAL statement_timeout = {PERIOD_TIMEOUT_MS}");
    transaction.batch_execute(&limit).await?;
    let bounds: [(&(dyn ToSql + Sync), Type); 2] =
        [(&period.start, Type::TIMESTAMPTZ), (&period.end, Type::TIMESTAMPTZ)];
    let sql = format!(
        "-- roll_up: mark
        UPDATE delivery_count_progress SET {mark} = $2 WHERE {mark} = $1 RETURNING 1"
    );
    if transaction.query_typed_opt(&sql, &bounds).await?.is_none() {
        return Err(Error::Conflict("counts were rolled up by another process".to_owned()));
    }
    let sql = format!(
        "-- roll_up: sums
        INSERT INTO {} ({}, tenant_id, subscription_id, kind, n)
        SELECT $1, tenant_id, subscription_id, kind, sum(n)::bigint FROM {}
        WHERE {column} >= $1 AND {column} < $2 GROUP BY tenant_id, subscription_id, kind",
        level.table(),
        level.column(),
        finer.table(),
        column = finer.column(),
    );
    transaction.execute_typed(&sql, &bounds).await?;
    Ok(transaction.commit().await?)
}

/// Moves the places from which minutes and hours are kept, by whole days.
async fn move_kept(client: &DedicatedClient, progress: Progress) -> Result<(), Error> {
    let minutes_from = Level::Day.floor(progress.now.minus(MINUTES_KEPT).min(progress.hours_to));
    let hours_from = Level::Day.floor(progress.now.minus(HOURS_KEPT).min(progress.days_to));
    let sql = "-- move_kept_counts
        UPDATE delivery_count_progress
        SET minutes_from = greatest(minutes_from, $1), hours_from = greatest(hours_from, $2), moved_at = clock_timestamp()
        WHERE minutes_from < $1 OR hours_from < $2";
    let bounds: [(&(dyn ToSql + Sync), Type); 2] =
        [(&minutes_from, Type::TIMESTAMPTZ), (&hours_from, Type::TIMESTAMPTZ)];
    client.execute_typed(sql, &bounds).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn progress(hours_from: i64, days_to: i64, minutes_from: i64, hours_to: i64) -> Progress {
        Progress {
            hours_from: DbInstant(hours_from),
            days_to: DbInstant(days_to),
            minutes_from: DbInstant(minutes_from),
            hours_to: DbInstant(hours_to),
            moved_at: DbInstant(0),
            now: DbInstant(0),
        }
    }

    #[test]
    fn whole_periods_come_from_the_coarsest_level_and_the_ends_from_finer_ones() {
        let progress = progress(0, 3 * DAY_US, 2 * DAY_US, 3 * DAY_US + 5 * HOUR_US);
        let (from, to) = (22 * HOUR_US, 3 * DAY_US + 7 * HOUR_US + 30 * MINUTE_US);
        let at = DbInstant;
        assert_eq!(
            progress.cover(at(from)..at(to)).spans,
            [
                (Level::Hour, at(from)..at(DAY_US)),
                (Level::Day, at(DAY_US)..at(3 * DAY_US)),
                (Level::Hour, at(3 * DAY_US)..at(3 * DAY_US + 5 * HOUR_US)),
                (Level::Minute, at(3 * DAY_US + 5 * HOUR_US)..at(to)),
            ]
        );
    }

    #[test]
    fn where_nothing_finer_is_kept_the_ends_move_outwards() {
        let progress = progress(5 * DAY_US, 9 * DAY_US, 8 * DAY_US, 10 * DAY_US);
        let at = DbInstant;
        let asked = at(DAY_US + 1)..at(6 * DAY_US + HOUR_US + 1);
        assert_eq!(progress.cover(asked).widened, at(DAY_US)..at(6 * DAY_US + 2 * HOUR_US));
        assert_eq!(progress.cover(at(5)..at(5)).spans, []);
    }

    proptest! {
        #[test]
        fn a_cover_leaves_nothing_out_counts_nothing_twice_and_reads_only_what_is_kept(
            (hours_from, days, hours) in (0i64..40, 0i64..40, 0i64..100),
            minutes_days in 0i64..40,
            (from, length) in (-5 * DAY_US..90 * DAY_US, 0..60 * DAY_US),
        ) {
            let days_to = (hours_from + days) * DAY_US;
            let hours_to = days_to + hours * HOUR_US;
            let minutes_from = (minutes_days * DAY_US).min(Level::Day.floor(DbInstant(hours_to)).0);
            let progress = progress(hours_from * DAY_US, days_to, minutes_from, hours_to);
            let asked = DbInstant(from)..DbInstant(from + length);
            let Cover { widened, spans } = progress.cover(asked.clone());
            prop_assert!(widened.start <= asked.start && widened.end >= asked.end);
            prop_assert!(asked.start.0 - widened.start.0 < DAY_US && widened.end.0 - asked.end.0 < DAY_US);
            prop_assert!(spans.len() <= 5);
            let mut next = widened.start;
            for (level, span) in &spans {
                prop_assert!(span.start == next && span.start < span.end);
                next = span.end;
                prop_assert!(level.floor(span.start) == span.start && level.floor(span.end) == span.end);
                let (kept_from, complete_to) = match level {
                    Level::Minute => (minutes_from, i64::MAX),
                    Level::Hour => (hours_from * DAY_US, hours_to),
                    Level::Day => (i64::MIN, days_to),
                };
                prop_assert!(span.start.0 >= kept_from && span.end.0 <= complete_to, "{level:?} {span:?}");
            }
            prop_assert!(length == 0 || next == widened.end);
        }
    }
}
