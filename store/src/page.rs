//! Pages of a list, and where the next one starts.

use crate::DbInstant;
use std::{
    fmt,
    ops::Range,
    str::FromStr,
    time::{Duration, Instant},
};
use tokio_postgres::types::{ToSql, Type};

/// How long a page is looked for. What was found by then is the page, and its cursor leads on from there: a filter that
/// matches next to nothing costs several short requests, never one long one.
const LOOK_FOR: Duration = Duration::from_secs(1);
/// A stretch that took longer is followed by one of half its width, and not by a wider one: no statement takes much longer than a
/// page may.
const SLOW: Duration = Duration::from_millis(100);
/// Least width of a stretch, however slow the last one was: less than a partition saves little.
const LEAST_WIDTH: Duration = Duration::from_secs(600);

/// Part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// The items, in the list's order. Fewer than asked for, or none, also where looking for more would have taken long.
    pub items: Vec<T>,
    /// What to ask for to get the items after these. `None`: there are none.
    pub next_cursor: Option<String>,
}

/// Place of a row in a list by time, newest first. Text form `<microseconds>.<shard>.<id>`, opaque to clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HistoryCursor {
    /// When the row was written.
    pub recorded_at: DbInstant,
    /// Its shard.
    pub shard: i32,
    /// Its id in the shard.
    pub id: i64,
}

/// Text that is not a cursor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor of this list")]
pub struct InvalidCursor;

impl fmt::Display for HistoryCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.recorded_at.0, self.shard, self.id)
    }
}

impl FromStr for HistoryCursor {
    type Err = InvalidCursor;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        fn parse(text: &str) -> Option<HistoryCursor> {
            let mut parts = text.splitn(3, '.');
            let recorded_at = DbInstant(parts.next()?.parse().ok()?);
            // The server refuses what no clock of its own could have written.
            if DbInstant::from_millis(recorded_at.to_millis()).to_millis() != recorded_at.to_millis() {
                return None;
            }
            Some(HistoryCursor {
                recorded_at,
                shard: parts.next()?.parse().ok()?,
                id: parts.next()?.parse().ok()?,
            })
        }
        parse(text).ok_or(InvalidCursor)
    }
}

impl HistoryCursor {
    /// The place before everything that was recorded at `at` or later.
    fn before(at: DbInstant) -> Self {
        Self { recorded_at: at, shard: i32::MIN, id: i64::MIN }
    }
}

/// What a list by time selects of a stretch, by the parameters that [`Stretch::parameters`] yields: those from `$2` on.
pub(crate) const IN_STRETCH: &str = "recorded_at >= $2 AND recorded_at < $3
          AND ($4::timestamptz IS NULL OR (recorded_at, shard, id) < ($4, $5, $6))";

/// The order of a list by time.
pub(crate) const NEWEST_FIRST: &str = "ORDER BY recorded_at DESC, shard DESC, id DESC";

/// A stretch of time of a list, and the place that the page comes after.
#[derive(Debug)]
pub(crate) struct Stretch {
    span: Range<DbInstant>,
    recorded_at: Option<DbInstant>,
    shard: Option<i32>,
    id: Option<i64>,
}

impl Stretch {
    pub(crate) fn new(span: Range<DbInstant>, cursor: Option<HistoryCursor>) -> Self {
        Self {
            span,
            recorded_at: cursor.map(|cursor| cursor.recorded_at),
            shard: cursor.map(|cursor| cursor.shard),
            id: cursor.map(|cursor| cursor.id),
        }
    }

    /// What [`IN_STRETCH`] names.
    pub(crate) fn parameters(&self) -> [(&(dyn ToSql + Sync), Type); 5] {
        [
            (&self.span.start, Type::TIMESTAMPTZ),
            (&self.span.end, Type::TIMESTAMPTZ),
            (&self.recorded_at, Type::TIMESTAMPTZ),
            (&self.shard, Type::INT4),
            (&self.id, Type::INT8),
        ]
    }
}

/// A walk through a list by time, newest first, for one page of it. It goes in stretches of time, of which the last width
/// repeats: a statement locks every partition that it plans for, and reads no further back than it has to.
#[derive(Debug)]
pub(crate) struct Walk<'w> {
    /// What is still to be looked through.
    left: Range<DbInstant>,
    widths: &'w [Duration],
    /// Of the last stretch, and when it began.
    last: Option<(Duration, Instant)>,
    limit: usize,
    started: Instant,
}

impl<'w> Walk<'w> {
    /// Of what was recorded in `span`, what comes after `cursor`, at most `limit` items.
    pub(crate) fn new(
        span: Range<DbInstant>,
        cursor: Option<HistoryCursor>,
        limit: usize,
        widths: &'w [Duration],
    ) -> Self {
        // The end is exclusive, and rows of the cursor's own instant may come after it.
        let after = cursor.map_or(span.end, |cursor| DbInstant(cursor.recorded_at.0.saturating_add(1)));
        let left = span.start..span.end.min(after);
        Self { left, widths, last: None, limit, started: Instant::now() }
    }

    /// The next stretch and how many rows to read of it, when `found` are there; `None` when the page is full, nothing is
    /// left, or looking has taken long.
    pub(crate) fn next(&mut self, found: usize) -> Option<(Range<DbInstant>, usize)> {
        if found > self.limit || self.left.start >= self.left.end || self.started.elapsed() >= LOOK_FOR {
            return None;
        }
        let now = Instant::now();
        let width = match (self.last, self.widths) {
            (Some((width, began)), _) if now.saturating_duration_since(began) > SLOW => {
                (width / 2).max(LEAST_WIDTH)
            }
            (_, [width, rest @ ..]) => {
                self.widths = if rest.is_empty() { self.widths } else { rest };
                *width
            }
            (_, []) => LOOK_FOR,
        };
        self.last = Some((width, now));
        let end = self.left.end;
        self.left.end = end.minus(width).max(self.left.start);
        Some((self.left.end..end, self.limit.saturating_add(1) - found))
    }

    /// The page, from all rows that were read.
    pub(crate) fn page<T>(self, items: Vec<T>, place: impl Fn(&T) -> HistoryCursor) -> Page<T> {
        if items.len() > self.limit || self.left.start >= self.left.end {
            return Page::from_rows(items, self.limit, place);
        }
        Page { items, next_cursor: Some(HistoryCursor::before(self.left.end).to_string()) }
    }
}

impl<T> Page<T> {
    /// A page from up to `limit + 1` rows: the one too many tells that there is a next page.
    pub(crate) fn from_rows(mut items: Vec<T>, limit: usize, place: impl Fn(&T) -> HistoryCursor) -> Self {
        let more = items.len() > limit;
        items.truncate(limit);
        let next_cursor = items.last().filter(|_| more).map(|last| place(last).to_string());
        Self { items, next_cursor }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_round_trip_as_text() {
        let cursor = HistoryCursor { recorded_at: DbInstant(1_795_275_240_123_456), shard: 3, id: 1742 };
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        assert_eq!("1.2".parse::<HistoryCursor>(), Err(InvalidCursor));
        for instant in [i64::MIN, -62_135_596_800_000_001, 253_402_300_800_000_000, i64::MAX] {
            assert_eq!(format!("{instant}.0.0").parse::<HistoryCursor>(), Err(InvalidCursor));
        }
        assert_eq!("yesterday".parse::<HistoryCursor>(), Err(InvalidCursor));
    }

    #[test]
    fn a_list_is_looked_through_once_in_widening_stretches_until_the_page_is_full() {
        let at = |id: i64| HistoryCursor { recorded_at: DbInstant(id), shard: 0, id };
        let widths = [Duration::from_micros(10), Duration::from_micros(50)];
        let look = |cursor: Option<HistoryCursor>| {
            let (mut items, mut stretches) = (Vec::new(), Vec::new());
            let mut walk = Walk::new(DbInstant(0)..DbInstant(200), cursor, 2, &widths);
            while let Some((span, wanted)) = walk.next(items.len()) {
                stretches.push((span.start.0, span.end.0));
                let rows = (0..200i64).rev().filter(|id| span.contains(&DbInstant(*id)) && id % 40 == 0);
                items.extend(rows.take(wanted));
            }
            (walk.page(items, |id| at(*id)), stretches)
        };
        let (page, stretches) = look(None);
        assert_eq!((page.items, page.next_cursor.as_deref()), (vec![160, 120], Some("120.0.120")));
        assert_eq!(stretches, [(190, 200), (140, 190), (90, 140), (40, 90)]);
        let (page, _) = look(Some(at(39)));
        assert_eq!((page.items, page.next_cursor), (vec![0], None));
    }

    #[test]
    fn a_page_that_takes_long_is_shown_as_far_as_it_came() {
        let widths = [Duration::from_micros(100)];
        let mut walk = Walk::new(DbInstant(0)..DbInstant(1_000), None, 2, &widths);
        walk.next(0).unwrap();
        walk.started -= LOOK_FOR;
        assert_eq!(walk.next(1), None);
        let page = walk.page(vec![950], |_| HistoryCursor::before(DbInstant(950)));
        let cursor: HistoryCursor = page.next_cursor.unwrap().parse().unwrap();
        assert_eq!((page.items, cursor), (vec![950], HistoryCursor::before(DbInstant(900))));
    }

    #[test]
    fn only_a_page_with_more_behind_it_has_a_next_one() {
        let place = |id: &i64| HistoryCursor { recorded_at: DbInstant(0), shard: 0, id: *id };
        assert_eq!(Page::from_rows(vec![3, 2], 2, place).next_cursor, None);
        assert_eq!(Page::from_rows(vec![3, 2, 1], 2, place).next_cursor.as_deref(), Some("0.0.2"));
    }
}
