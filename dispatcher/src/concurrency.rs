//! How many requests an endpoint gets at a time: as many as it takes without becoming slower. Pure: time is an argument.
//!
//! The bound grows while more requests at a time do not make each of them take longer, and shrinks when they do, as TCP Vegas
//! does: time beyond the shortest one seen lately is time spent in the endpoint's own queue. An endpoint that is slow but takes
//! many at a time keeps many; one that works off one after the other gets few. No answer, or being asked to slow down, halves the
//! bound.

use std::time::{Duration, Instant};

/// Where an endpoint of which nothing is known begins: enough to find out soon, few enough to hang.
const FIRST: f64 = 8.0;
/// Requests in the endpoint's queue below which the bound grows, and above which it shrinks.
const FEW_QUEUED: f64 = 3.0;
const MANY_QUEUED: f64 = 6.0;
/// Time beyond the shortest that says nothing: networks and schedulers are not more exact.
const TOLERANCE: f64 = 0.025;
/// How long the shortest time counts: an endpoint may become slower for good.
const WINDOW: Duration = Duration::from_secs(60);

/// The bound of one endpoint.
#[derive(Debug, Clone)]
pub(crate) struct Concurrency {
    bound: f64,
    /// Shortest seconds of an answer in this window and in the one before.
    shortest: f32,
    shortest_before: f32,
    window_began: Option<Instant>,
    /// What began earlier says nothing about the bound as it is now.
    cut_at: Option<Instant>,
    /// Whether the bound was never too high: until then it grows by one with every answer, and later by one in the time of one.
    is_seeking: bool,
}

/// How the endpoint fared with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fared {
    /// It answered, whatever it said about the event.
    Well,
    /// It did not answer, or asked to slow down.
    Badly,
    /// The attempt says nothing about the endpoint.
    Unknown,
}

impl Default for Concurrency {
    fn default() -> Self {
        Self {
            bound: FIRST,
            shortest: f32::INFINITY,
            shortest_before: f32::INFINITY,
            window_began: None,
            cut_at: None,
            is_seeking: true,
        }
    }
}

impl Concurrency {
    /// Requests at a time, from 1 to `most`.
    pub(crate) fn bound(&self, most: usize) -> usize {
        // Between 1 and a setting.
        (self.bound as usize).clamp(1, most.max(1))
    }

    /// Takes in how a request fared that began at `began` beside `others` at its end.
    pub(crate) fn ended(&mut self, fared: Fared, began: Instant, now: Instant, others: usize, most: usize) {
        match fared {
            Fared::Unknown => {}
            Fared::Badly => {
                // What was sent together fails together, and is one failure.
                if self.cut_at.is_none_or(|cut| began >= cut) {
                    self.bound = (self.bound.min(most as f64) / 2.0).max(1.0);
                    self.cut_at = Some(now);
                    self.is_seeking = false;
                }
            }
            Fared::Well => self.adapt(now.saturating_duration_since(began).as_secs_f64(), others, most, now),
        }
    }

    fn adapt(&mut self, took: f64, others: usize, most: usize, now: Instant) {
        self.turn_window(now);
        self.shortest = self.shortest.min(took as f32);
        let shortest = f64::from(self.shortest.min(self.shortest_before));
        let queued = self.bound * (1.0 - shortest / took.max(1e-6));
        let is_slower = took - shortest > TOLERANCE;
        if is_slower && queued > MANY_QUEUED {
            self.bound = (self.bound - 1.0 / self.bound).max(1.0);
            self.is_seeking = false;
        } else if (!is_slower || queued < FEW_QUEUED) && (others + 1) as f64 >= self.bound / 2.0 {
            // A bound that is not used says nothing about a higher one.
            let step = if self.is_seeking { 1.0 } else { 1.0 / self.bound };
            self.bound = (self.bound + step).min(most as f64).max(1.0);
        }
    }

    fn turn_window(&mut self, now: Instant) {
        let began = *self.window_began.get_or_insert(now);
        if now.saturating_duration_since(began) >= WINDOW {
            self.shortest_before = std::mem::replace(&mut self.shortest, f32::INFINITY);
            self.window_began = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MOST: usize = 64;

    /// Keeps an endpoint busy for a while that works on `workers` requests at a time, each for `service` seconds. Returns the bound
    /// in the end and the answers per second.
    fn busy(concurrency: &mut Concurrency, workers: usize, service: f64, seconds: f64) -> (usize, f64) {
        let start = Instant::now();
        let at = |second: f64| start + Duration::from_secs_f64(second);
        // When each worker is free; requests under way by their ends.
        let mut free = vec![0.0f64; workers];
        let mut under_way: Vec<(f64, f64)> = Vec::new();
        let (mut now, mut answers) = (0.0, 0);
        while now < seconds {
            while under_way.len() < concurrency.bound(MOST) {
                let worker = free.iter_mut().min_by(|a, b| a.total_cmp(b)).unwrap();
                let end = worker.max(now) + service;
                *worker = end;
                under_way.push((end, now));
            }
            let next =
                (0..under_way.len()).min_by(|&a, &b| under_way[a].0.total_cmp(&under_way[b].0)).unwrap();
            let (end, began) = under_way.swap_remove(next);
            now = end;
            answers += 1;
            concurrency.ended(Fared::Well, at(began), at(end), under_way.len(), MOST);
        }
        (concurrency.bound(MOST), f64::from(answers) / seconds)
    }

    #[test]
    fn an_endpoint_gets_as_many_at_a_time_as_it_works_on() {
        // workers, seconds of service → least and greatest bound, share of what it can do
        let table = [
            (1, 0.2, 1, 9, 0.9),
            (4, 0.1, 4, 13, 0.9),
            (16, 0.5, 14, 26, 0.9),
            // As many as it likes: all it may have.
            (1_000, 0.05, 64, 64, 0.0),
            (1_000, 5.0, 50, 64, 0.0),
            // Fast ones queue for no time worth speaking of.
            (2, 0.0001, 64, 64, 0.9),
        ];
        for (workers, service, least, greatest, share) in table {
            let (bound, speed) = busy(&mut Concurrency::default(), workers, service, 200.0 * service);
            let possible = workers as f64 / service;
            assert!((least..=greatest).contains(&bound), "{workers} × {service} s: {bound}");
            assert!(speed >= share * possible, "{workers} × {service} s: {speed} of {possible} a second");
        }
    }

    #[test]
    fn an_endpoint_that_does_not_answer_shrinks_to_one_and_grows_again_when_it_does() {
        let mut concurrency = Concurrency::default();
        busy(&mut concurrency, 1_000, 0.01, 2.0);
        assert_eq!(concurrency.bound(MOST), MOST);
        let mut now = Instant::now();
        for round in 0..6 {
            let began = now;
            now += Duration::from_secs(15);
            for _ in 0..concurrency.bound(MOST) {
                concurrency.ended(Fared::Badly, began, now, 0, MOST);
            }
            assert_eq!(concurrency.bound(MOST), MOST >> (round + 1), "what failed together is one failure");
        }
        assert_eq!(concurrency.bound(MOST), 1);
        for _ in 0..20_000 {
            let others = concurrency.bound(MOST) - 1;
            concurrency.ended(Fared::Well, now, now + Duration::from_millis(10), others, MOST);
        }
        assert_eq!(concurrency.bound(MOST), MOST);
    }

    #[test]
    fn an_endpoint_that_became_slower_for_good_is_not_held_to_its_old_speed() {
        let mut concurrency = Concurrency::default();
        busy(&mut concurrency, 1_000, 0.05, 10.0);
        let mut now = Instant::now();
        let (mut least, mut bound) = (MOST, MOST);
        for _ in 0..40_000 {
            let began = now;
            now += Duration::from_millis(10);
            concurrency.ended(Fared::Well, began - Duration::from_millis(400), now, bound - 1, MOST);
            bound = concurrency.bound(MOST);
            least = least.min(bound);
        }
        assert!(least < 16, "{least}");
        assert!(bound > 48, "{bound}");
    }

    proptest! {
        #[test]
        fn the_bound_stays_within_its_bounds(
            requests in proptest::collection::vec((0u8..3, 0u64..30_000, 0usize..100), 0..300), most in 1usize..100,
        ) {
            let mut concurrency = Concurrency::default();
            let mut now = Instant::now();
            for (fared, millis, others) in requests {
                let began = now;
                now += Duration::from_millis(millis);
                let fared = [Fared::Well, Fared::Badly, Fared::Unknown][usize::from(fared)];
                let before = concurrency.bound(most);
                concurrency.ended(fared, began, now, others, most);
                let after = concurrency.bound(most);
                prop_assert!((1..=most).contains(&after));
                prop_assert!(fared != Fared::Badly || after <= before);
                prop_assert!(fared != Fared::Unknown || after == before);
            }
        }
    }
}
