//! When a retry is stored as due, and what time it is in the database.
//!
//! A row behind the shard's cursor would never fire, so none may ever be stored there. Three rules see to that, with
//! the database's clock as the only judge:
//!
//! 1. A row is stored at `max(wanted, db_now + 250 ms, floor + 1 µs)`, where `db_now` was read in the row's own
//!    transaction and `floor` is the furthest place that this owner took a row from, or moved the cursor to.
//! 2. Rows are taken, and the cursor is moved, up to [`DbClock::now`] only, which is never ahead of the server's clock.
//! 3. The cursor's move is fenced, so an owner that was replaced cannot undo the second rule.
//!
//! The first two alone suffice while the server's clock runs; the floor covers a clock that steps back, as after a
//! failover to a server whose clock is behind.
//!
//! # Whose clock says when a retry is due
//!
//! The dispatcher writes `at` and `not_before` by its own clock, so only their difference, the delay, is trusted. It
//! counts from the receipt of the outcome, less the time that the outcome waited in the log: `db_now` minus the
//! record's timestamp. That age again compares two machines' clocks, so its first seconds ([`Limits::tolerance`]) are
//! not credited. Clocks that differ by less than the tolerance have no effect at all; after an outage a retry is
//! late by the tolerance at most; and clocks that differ by more bring a retry forward by the excess, never into the past.

use floodway_schemas::UnixMillis;
use floodway_store::{DbInstant, retry::Position};
use std::time::{Duration, Instant};

/// Least time between storing a row and its due time. Longer than a transaction normally takes, so that a row is
/// committed before it is due.
pub(crate) const LEAST_DELAY: Duration = Duration::from_millis(250);

/// Bounds of due times.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Age of an outcome that may as well be a difference between clocks.
    pub(crate) tolerance: Duration,
    /// Longest delay; partitions exist for longer.
    pub(crate) max_delay: Duration,
}

/// When a retry is wanted that is to come `delay` after its attempt, if its outcome was produced at `produced_at`.
pub(crate) fn wanted(
    db_now: DbInstant,
    delay: Duration,
    produced_at: UnixMillis,
    limits: Limits,
) -> DbInstant {
    let age = db_now.since(DbInstant::from_millis(produced_at)).saturating_sub(limits.tolerance);
    db_now.plus(delay.saturating_sub(age).min(limits.max_delay))
}

/// Where a row is stored that is wanted at `wanted`.
pub(crate) fn clamp(wanted: DbInstant, db_now: DbInstant, floor: Position) -> DbInstant {
    wanted.max(db_now.plus(LEAST_DELAY)).max(DbInstant(floor.due.0.saturating_add(1)))
}

/// The database's clock between transactions: the last value seen, carried on by this machine's monotonic clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DbClock {
    seen: DbInstant,
    at: Instant,
}

impl DbClock {
    /// A value of the server's clock that arrived at `at`. It was read before that, so [`DbClock::now`] is a lower bound.
    pub(crate) fn new(seen: DbInstant, at: Instant) -> Self {
        Self { seen, at }
    }

    /// What the server's clock shows at least.
    pub(crate) fn now(self, at: Instant) -> DbInstant {
        self.seen.plus(at.saturating_duration_since(self.at))
    }

    /// When, by this machine's monotonic clock, the server's clock reaches `due`.
    pub(crate) fn instant_of(self, due: DbInstant) -> Instant {
        self.at + due.since(self.seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits =
        Limits { tolerance: Duration::from_secs(5), max_delay: Duration::from_secs(30 * 86_400) };
    const NOW_MS: i64 = 1_795_275_240_000;

    fn wanted_after(delay_ms: u64, age_ms: i64) -> i64 {
        let now = DbInstant(NOW_MS * 1_000);
        let due = wanted(now, Duration::from_millis(delay_ms), UnixMillis(NOW_MS - age_ms), LIMITS);
        (due.0 - now.0) / 1_000
    }

    #[test]
    fn small_differences_between_clocks_have_no_effect() {
        for age in [-3_600_000, -4_000, 0, 40, 4_999] {
            assert_eq!(wanted_after(10_000, age), 10_000, "age {age}");
        }
    }

    #[test]
    fn time_spent_in_the_log_counts() {
        assert_eq!(wanted_after(3_600_000, 605_000), 3_000_000);
        assert_eq!(wanted_after(1_000, 605_000), 0);
    }

    #[test]
    fn delays_are_capped() {
        assert_eq!(wanted_after(u64::MAX / 2, 0), 30 * 86_400_000);
    }

    #[test]
    fn the_estimate_runs_with_the_monotonic_clock() {
        let at = Instant::now();
        let clock = DbClock::new(DbInstant(1_000_000), at);
        let later = at + Duration::from_millis(7);
        assert_eq!(clock.now(later), DbInstant(1_007_000));
        assert_eq!(clock.instant_of(DbInstant(1_007_000)), later);
        assert_eq!(clock.instant_of(DbInstant(0)), at);
    }

    #[test]
    fn a_server_whose_clock_steps_back_an_hour_stores_behind_nothing_and_late_by_the_step_at_most() {
        let before = DbInstant(NOW_MS * 1_000);
        let floor = Position { due: before, id: 7 };
        let now = before.minus(Duration::from_secs(3_600));
        let wanted = wanted(now, Duration::from_secs(10), now.to_millis(), LIMITS);
        let stored = clamp(wanted, now, floor);
        assert!(stored > floor.due);
        assert!(stored.since(wanted) <= Duration::from_secs(3_600));
    }

    #[test]
    fn a_server_whose_clock_steps_forward_an_hour_is_believed_at_its_next_answer() {
        let (at, before) = (Instant::now(), DbInstant(NOW_MS * 1_000));
        let hour = Duration::from_secs(3_600);
        let retry = before.plus(Duration::from_secs(60));
        assert!(DbClock::new(before, at).now(at) < retry, "unknown until the server says so");
        assert!(DbClock::new(before.plus(hour), at).now(at) > retry);
        // An outcome that was written before the step seems to have waited for an hour: it is due at once, not lost.
        let now = before.plus(hour);
        let due = clamp(
            wanted(now, Duration::from_secs(10), before.to_millis(), LIMITS),
            now,
            Position { due: before, id: 0 },
        );
        assert_eq!(due, now.plus(LEAST_DELAY));
    }

    proptest! {
        #[test]
        fn nothing_is_stored_at_or_behind_the_floor_or_the_present(
            wanted in any::<i32>(), now in any::<i32>(), floor in any::<i32>(), id in any::<i64>(),
        ) {
            let [wanted, now, due] = [wanted, now, floor].map(|at| DbInstant(i64::from(at) * 1_000));
            let stored = clamp(wanted, now, Position { due, id });
            prop_assert!(stored > due && stored >= wanted && stored >= now.plus(LEAST_DELAY));
        }
    }
}
