//! Pages of a list, and where the next one starts.

use crate::DbInstant;
use std::{fmt, str::FromStr};
use thiserror::Error;

/// Part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// The items, in the list's order.
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
    /// Its offset in the shard.
    pub id: i64,
}

/// Text that is not a cursor.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
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
    fn only_a_page_with_more_behind_it_has_a_next_one() {
        let place = |id: &i64| HistoryCursor { recorded_at: DbInstant(0), shard: 0, id: *id };
        assert_eq!(Page::from_rows(vec![3, 2], 2, place).next_cursor, None);
        assert_eq!(Page::from_rows(vec![3, 2, 1], 2, place).next_cursor.as_deref(), Some("0.0.2"));
    }
}
