//! One subscription's deliveries: so many at a time, so many waiting, the rest deferred.
//!
//! A lane is what keeps a slow or hung endpoint from delaying others: its deliveries wait here and nowhere else, and it never
//! holds more than a share of the budget that is free. With `n` lanes full and a share of 1/4, `4 / (4 + n)` of the budget
//! stays free for the others.

use crate::budget::Amount;
use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Shortest deferral: a trip through the scheduler is not worth less.
pub(crate) const MIN_DEFERRAL: Duration = Duration::from_secs(1);
/// Deferrals are spread by up to this share of themselves, so that they do not come back as one burst.
const SPREAD: f64 = 0.25;
/// Weight of the newest interval in the estimate of the drain rate.
const SMOOTHING: f64 = 0.1;

/// What bounds every lane.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Deliveries under way at a time.
    pub(crate) in_flight: usize,
    /// Deliveries that wait.
    pub(crate) queue: usize,
    /// Divisor of the free budget that the lane may hold.
    pub(crate) share: usize,
    /// Longest deferral.
    pub(crate) max_deferral: Duration,
}

/// The lane of one subscription; `T` is a delivery.
#[derive(Debug)]
pub(crate) struct Lane<T>(Mutex<State<T>>);

#[derive(Debug)]
struct State<T> {
    active: usize,
    waiting: VecDeque<(T, usize)>,
    /// Bytes under way and waiting.
    bytes: usize,
    drain: Drain,
}

/// How fast the lane drains, and how much it has put off.
#[derive(Debug, Default)]
struct Drain {
    /// Seconds per delivery, smoothed.
    interval: Option<f64>,
    last: Option<Instant>,
    /// Deliveries deferred and, as far as the lane can tell, not yet made up for. An estimate: it tells later deferrals how long the
    /// queue is that stands elsewhere. It shrinks with each delivery made and is forgotten when the lane has nothing to do.
    deferred: usize,
}

/// What becomes of a delivery that is offered to its lane.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Offer<T> {
    /// It is to be made now; [`Lane::finish`] must follow.
    Start(T),
    /// It waits in the lane.
    Wait,
    /// There is no room: it is to be deferred for so long.
    Defer(T, Duration),
}

impl<T> Default for Lane<T> {
    fn default() -> Self {
        Self(Mutex::new(State { active: 0, waiting: VecDeque::new(), bytes: 0, drain: Drain::default() }))
    }
}

impl<T> Lane<T> {
    /// Offers a delivery of `bytes`. `free` is what the whole budget has left, `random` is in `[0, 1)`.
    pub(crate) fn offer(
        &self,
        item: T,
        bytes: usize,
        free: Amount,
        limits: &Limits,
        now: Instant,
        random: f64,
    ) -> Offer<T> {
        let mut state = self.lock();
        let held = state.active + state.waiting.len();
        let within_share =
            held < free.count / limits.share && state.bytes + bytes <= free.bytes / limits.share;
        // An idle lane always takes one, so that a short budget or a large event never shuts a subscription out.
        if held > 0 && !(within_share && held < limits.in_flight + limits.queue) {
            let delay = state.drain.plan(held, limits, now);
            return Offer::Defer(item, delay.mul_f64(1.0 + SPREAD * random));
        }
        state.bytes += bytes;
        if state.active < limits.in_flight {
            state.active += 1;
            return Offer::Start(item);
        }
        state.waiting.push_back((item, bytes));
        Offer::Wait
    }

    /// Ends a delivery of `bytes` and gives the next one to be made in its place.
    pub(crate) fn finish(&self, bytes: usize, now: Instant) -> Option<T> {
        let mut state = self.lock();
        state.bytes = state.bytes.saturating_sub(bytes);
        state.drain.finished(now);
        if let Some((item, _)) = state.waiting.pop_front() {
            return Some(item);
        }
        state.active = state.active.saturating_sub(1);
        if state.active == 0 {
            // The pause that follows says nothing about how fast the endpoint is, and there is room for whatever comes.
            state.drain.last = None;
            state.drain.deferred = 0;
        }
        None
    }

    /// Takes everything that waits out of the lane.
    pub(crate) fn take_waiting(&self) -> Vec<T> {
        let mut state = self.lock();
        let (items, bytes): (Vec<T>, Vec<usize>) = std::mem::take(&mut state.waiting).into_iter().unzip();
        state.bytes = state.bytes.saturating_sub(bytes.into_iter().sum());
        items
    }

    /// No critical section calls out: a panic elsewhere cannot leave one half done.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drain {
    fn finished(&mut self, now: Instant) {
        self.deferred = self.deferred.saturating_sub(1);
        if let Some(last) = self.last.replace(now) {
            let newest = now.saturating_duration_since(last).as_secs_f64();
            self.interval = Some(self.interval.map_or(newest, |old| old + SMOOTHING * (newest - old)));
        }
    }

    /// The wait until the lane has drained `backlog` and what it deferred before, at its present rate: so deferrals come back about
    /// as fast as the endpoint takes them, and a passing stall lengthens only the waits that are planned during it.
    fn plan(&mut self, backlog: usize, limits: &Limits, now: Instant) -> Duration {
        let longest = limits.max_deferral.as_secs_f64();
        let stalled = self.last.map_or(0.0, |last| now.saturating_duration_since(last).as_secs_f64());
        let interval = self.interval.unwrap_or(0.0).max(stalled / backlog.max(1) as f64);
        let wait = interval * (backlog + self.deferred) as f64;
        // Beyond the longest deferral a longer queue changes nothing; counting on would only make it slow to forget.
        if wait < longest {
            self.deferred += 1;
        }
        Duration::from_secs_f64(wait.min(longest)).max(MIN_DEFERRAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { in_flight: 2, queue: 3, share: 8, max_deferral: Duration::from_secs(60) };
    const PLENTY: Amount = Amount { count: 1_000, bytes: 1_000_000 };

    #[test]
    fn a_lane_starts_then_queues_then_defers() {
        let lane = Lane::default();
        let now = Instant::now();
        let offer = |item| lane.offer(item, 1, PLENTY, &LIMITS, now, 0.0);
        assert_eq!(offer(1), Offer::Start(1));
        assert_eq!(offer(2), Offer::Start(2));
        for item in 3..=5 {
            assert_eq!(offer(item), Offer::Wait);
        }
        assert_eq!(offer(6), Offer::Defer(6, MIN_DEFERRAL));
        assert_eq!(lane.finish(1, now), Some(3));
        assert_eq!(offer(7), Offer::Wait);
        assert_eq!(lane.take_waiting(), [4, 5, 7]);
        assert_eq!(lane.finish(1, now), None);
        assert_eq!(lane.finish(1, now), None);
        assert_eq!(offer(8), Offer::Start(8));
    }

    #[test]
    fn a_lane_holds_no_more_than_its_share_of_what_is_free() {
        let lane = Lane::default();
        let now = Instant::now();
        let scarce = Amount { count: 8, bytes: 80 };
        assert!(matches!(lane.offer(1, 50, scarce, &LIMITS, now, 0.0), Offer::Start(_)));
        assert!(matches!(lane.offer(2, 1, scarce, &LIMITS, now, 0.0), Offer::Defer(..)));
        let large = Amount { count: 1_000, bytes: 480 };
        assert!(matches!(lane.offer(3, 20, large, &LIMITS, now, 0.0), Offer::Defer(..)));
        assert!(matches!(lane.offer(4, 10, large, &LIMITS, now, 0.0), Offer::Start(_)));
    }

    #[test]
    fn deferrals_follow_the_drain_rate_and_do_not_bunch() {
        let lane = Lane::default();
        let start = Instant::now();
        for item in 0..5 {
            lane.offer(item, 1, PLENTY, &LIMITS, start, 0.0);
        }
        // One delivery per 2 s, so five of them take 10 s.
        for second in [2, 4, 6] {
            let now = start + Duration::from_secs(second);
            lane.finish(1, now);
            lane.offer(9, 1, PLENTY, &LIMITS, now, 0.0);
        }
        let now = start + Duration::from_secs(6);
        let mut delays = (0..3).map(|item| match lane.offer(item, 1, PLENTY, &LIMITS, now, 0.0) {
            Offer::Defer(_, delay) => delay.as_secs(),
            other => panic!("{other:?}"),
        });
        assert_eq!((delays.next(), delays.next(), delays.next()), (Some(10), Some(12), Some(14)));
    }

    #[test]
    fn a_stall_that_passed_does_not_lengthen_later_deferrals() {
        let lane = Lane::default();
        let start = Instant::now();
        let limits = Limits { queue: 1_000, ..LIMITS };
        let plenty = Amount { count: 100_000, bytes: 1_000_000 };
        for item in 0..1_002 {
            lane.offer(item, 1, plenty, &limits, start, 0.0);
        }
        let defer = |now| match lane.offer(0, 1, plenty, &limits, now, 0.0) {
            Offer::Defer(_, delay) => delay,
            other => panic!("{other:?}"),
        };
        // One delivery after 40 s, then one per millisecond.
        let mut now = start + Duration::from_secs(40);
        lane.finish(1, start);
        lane.finish(1, now);
        for _ in 0..500 {
            lane.offer(0, 1, plenty, &limits, now, 0.0);
        }
        assert_eq!(defer(now), limits.max_deferral);
        for _ in 0..600 {
            now += Duration::from_millis(1);
            lane.finish(1, now);
            lane.offer(0, 1, plenty, &limits, now, 0.0);
        }
        assert!(defer(now) < Duration::from_secs(3), "{:?}", defer(now));
    }

    proptest! {
        #[test]
        fn deferrals_stay_within_their_bounds(finishes in proptest::collection::vec(0u64..100_000, 0..20), offers in 1usize..200, random in 0.0f64..1.0) {
            let lane = Lane::default();
            let mut now = Instant::now();
            for item in 0..5 {
                lane.offer(item, 1, PLENTY, &LIMITS, now, random);
            }
            for millis in finishes {
                now += Duration::from_millis(millis);
                lane.finish(1, now);
                lane.offer(0, 1, PLENTY, &LIMITS, now, random);
            }
            for item in 0..offers {
                if let Offer::Defer(_, delay) = lane.offer(item, 1, PLENTY, &LIMITS, now, random) {
                    prop_assert!(delay >= MIN_DEFERRAL && delay <= LIMITS.max_deferral.mul_f64(1.0 + SPREAD));
                }
            }
        }
    }
}
