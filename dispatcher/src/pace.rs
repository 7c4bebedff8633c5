//! The pace of one lane whose subscription limits its requests per second. Pure: time is an argument.
//!
//! Each request has its turn, `1 / rate` after the one before; turns that were not used are worth [`BURST`] and no more. What finds too
//! many before it is put off to where its turn would be, so that it makes one trip through the retry scheduler and not one for each
//! time that it finds the lane full.

use crate::lane::MIN_DEFERRAL;
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Requests may be ahead of their turn by so much: in a time of `t`, no more begin than `rate * (t + BURST) + 1`.
const BURST: Duration = Duration::from_millis(100);

/// Rates that differ by a smaller part are the same.
const SAME_RATE: f64 = 0.05;

/// What was given out of turns.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// The next turn.
    next: Option<Instant>,
    /// The turn after those of what was put off, and the rate that they were planned with.
    put_off: Option<(Instant, f64)>,
    /// When requests begin that the lane has started and a worker has not begun yet.
    given: VecDeque<Instant>,
}

impl Pace {
    /// When a request begins before which there are `others`.
    pub(crate) fn begins(&self, rate: f64, others: usize, now: Instant) -> Instant {
        let next = self.next.map_or(now, |next| next.max(now));
        let turn = next + Duration::from_secs_f64(others as f64 / rate);
        turn.checked_sub(BURST).map_or(now, |turn| turn.max(now))
    }

    /// Gives a request its turn.
    pub(crate) fn give(&mut self, rate: f64, now: Instant) {
        self.given.push_back(self.begins(rate, 0, now));
        let turn = self.next.map_or(now, |next| next.max(now));
        self.next = Some(turn + Duration::from_secs_f64(1.0 / rate));
    }

    /// When the next of the requests begins that were given their turn.
    pub(crate) fn take(&mut self) -> Option<Instant> {
        self.given.pop_front()
    }

    /// How long a delivery is put off before which there are `others` in the lane, `longest` at most.
    pub(crate) fn put_off(&mut self, rate: f64, others: usize, longest: Duration, now: Instant) -> Duration {
        let own = self.begins(rate, others, now).max(now + MIN_DEFERRAL);
        // A plan for another rate says nothing.
        let planned = self.put_off.filter(|(_, planned_with)| (planned_with / rate - 1.0).abs() < SAME_RATE);
        let turn = planned.map_or(own, |(last, _)| last.max(own));
        let wait = turn.saturating_duration_since(now);
        if wait >= longest {
            return longest.max(MIN_DEFERRAL);
        }
        self.put_off = Some((turn + Duration::from_secs_f64(1.0 / rate), rate));
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_was_planned_with_another_rate_does_not_count() {
        let (mut pace, now, hour) = (Pace::default(), Instant::now(), Duration::from_secs(3_600));
        for _ in 0..600 {
            pace.put_off(1.0, 0, hour, now);
        }
        assert_eq!(pace.put_off(1.0, 0, hour, now), Duration::from_secs(601));
        assert_eq!(pace.put_off(1_000.0, 0, hour, now), MIN_DEFERRAL);
    }

    proptest! {
        #[test]
        fn no_more_requests_begin_than_the_rate_allows_in_any_time(
            gaps in proptest::collection::vec(0u64..300, 2..300), rate in 0.5f64..500.0,
        ) {
            let start = Instant::now();
            let mut now = start;
            let mut pace = Pace::default();
            let mut begun = Vec::new();
            for gap in gaps {
                now += Duration::from_millis(gap);
                pace.give(rate, now);
                begun.push(pace.take().unwrap().duration_since(start).as_secs_f64());
            }
            prop_assert!(pace.take().is_none());
            for (first, from) in begun.iter().enumerate() {
                for (last, to) in begun.iter().enumerate().skip(first) {
                    let most = rate * (to - from + BURST.as_secs_f64()) + 1.0;
                    prop_assert!((last - first + 1) as f64 <= most + 1e-3, "{} in {} s", last - first + 1, to - from);
                }
            }
        }

        #[test]
        fn what_is_put_off_comes_back_in_order_and_at_the_rate(count in 2usize..300, rate in 0.5f64..500.0) {
            let now = Instant::now();
            let longest = Duration::from_secs(10_000);
            let mut pace = Pace::default();
            let waits: Vec<Duration> = (0..count).map(|_| pace.put_off(rate, 5, longest, now)).collect();
            prop_assert!(waits[0] >= MIN_DEFERRAL);
            for pair in waits.windows(2) {
                prop_assert!((pair[1].as_secs_f64() - pair[0].as_secs_f64() - 1.0 / rate).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn nothing_is_put_off_for_longer_than_the_longest_wait() {
        let mut pace = Pace::default();
        let now = Instant::now();
        let longest = Duration::from_secs(60);
        let last = (0..1_000).map(|_| pace.put_off(1.0, 0, longest, now)).last();
        assert_eq!(last, Some(longest));
        // And the turns that were planned are forgotten when they have passed.
        assert!(pace.put_off(1.0, 0, longest, now + Duration::from_secs(61)) <= 2 * MIN_DEFERRAL);
    }
}
