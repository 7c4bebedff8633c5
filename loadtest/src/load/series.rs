//! Figures of every second, put together from those of all threads.

use super::{progress::Progress, report::Second};
use crate::send::record_latency;
use hdrhistogram::Histogram;
use std::{
    sync::{Mutex, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

/// Longest latency that a second's histogram tells apart, in microseconds: ten minutes.
const MAX_LATENCY_MICROS: u64 = 600 * 1_000_000;
/// Most seconds that are kept: a day.
const MAX_SECONDS: u64 = 24 * 3600;

/// One thread's figures of one second.
pub(super) struct SecondTally {
    /// Seconds since the start of the run.
    pub(super) second: u64,
    accepted: u64,
    errors: u64,
    latency: Histogram<u64>,
}

/// The seconds of a run.
#[derive(Debug)]
pub(super) struct Series {
    threads: usize,
    seconds: Mutex<Vec<Merged>>,
}

#[derive(Debug)]
struct Merged {
    figures: Second,
    /// Threads that have handed this second over.
    threads: usize,
    /// Until all have.
    latency: Option<Box<Histogram<u64>>>,
}

impl SecondTally {
    pub(super) fn new() -> Self {
        Self { second: 0, accepted: 0, errors: 0, latency: coarse_histogram() }
    }

    /// Takes in the end of a request, with its latency if that counts.
    pub(super) fn add(&mut self, accepted: u64, errors: u64, latency: Option<Duration>) {
        self.accepted += accepted;
        self.errors += errors;
        if let Some(latency) = latency {
            record_latency(&mut self.latency, latency);
        }
    }
}

impl Series {
    /// For so many threads.
    pub(super) fn new(threads: usize) -> Self {
        Self { threads, seconds: Mutex::default() }
    }

    /// Adds a thread's second, and makes the tally that of the next second.
    pub(super) fn merge(&self, tally: &mut SecondTally, progress: &Progress) {
        if tally.second < MAX_SECONDS {
            let mut seconds = self.seconds.lock().unwrap_or_else(PoisonError::into_inner);
            while seconds.len() as u64 <= tally.second {
                let figures = Second { second: seconds.len() as u64, ..Second::default() };
                seconds.push(Merged { figures, threads: 0, latency: None });
            }
            let merged = &mut seconds[tally.second as usize];
            merged.add(tally);
            if merged.threads == self.threads {
                merged.complete();
                progress.p99_micros.store(merged.figures.p99.unwrap_or(0), Relaxed);
            }
        }
        tally.second += 1;
        tally.accepted = 0;
        tally.errors = 0;
        tally.latency.reset();
    }

    /// All seconds; those that only some threads handed over are completed.
    pub(super) fn take(&self) -> Vec<Second> {
        let mut seconds = self.seconds.lock().unwrap_or_else(PoisonError::into_inner);
        seconds.drain(..).map(|mut merged| merged.complete()).collect()
    }
}

impl Merged {
    fn add(&mut self, tally: &SecondTally) {
        self.figures.accepted += tally.accepted;
        self.figures.errors += tally.errors;
        self.threads += 1;
        if !tally.latency.is_empty() {
            let latency = self.latency.get_or_insert_with(|| Box::new(coarse_histogram()));
            // Histograms of the same bounds always add up.
            let _ = latency.add(&tally.latency);
        }
    }

    fn complete(&mut self) -> Second {
        if let Some(latency) = self.latency.take() {
            self.figures.p99 = Some(latency.value_at_quantile(0.99));
        }
        self.figures
    }
}

/// Two digits instead of three: an eighth of the memory, and it is cleared every second.
fn coarse_histogram() -> Histogram<u64> {
    #[expect(clippy::expect_used, reason = "the arguments are constant, and every run covers them")]
    Histogram::new_with_bounds(1, MAX_LATENCY_MICROS, 2)
        .expect("two digits from 1 µs to ten minutes are allowed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_is_the_sum_of_all_threads() {
        let series = Series::new(2);
        let progress = Progress::default();
        let (mut fast, mut slow) = (SecondTally::new(), SecondTally::new());
        for _ in 0..2 {
            fast.add(5, 0, Some(Duration::from_micros(100)));
            series.merge(&mut fast, &progress);
        }
        assert_eq!(progress.p99_micros.load(Relaxed), 0, "the other thread is still in its first second");
        slow.add(1, 2, Some(Duration::from_micros(900)));
        series.merge(&mut slow, &progress);
        assert!(progress.p99_micros.load(Relaxed) >= 900);
        let seconds = series.take();
        assert_eq!((seconds[0].accepted, seconds[0].errors), (6, 2));
        assert!(seconds[0].p99.is_some_and(|p99| (900..1000).contains(&p99)));
        assert_eq!((seconds[1].second, seconds[1].accepted), (1, 5));
        assert!(
            seconds[1].p99.is_some_and(|p99| (100..110).contains(&p99)),
            "completed although one thread has not handed it over"
        );
    }

    #[test]
    fn a_second_without_answers_has_no_p99() {
        let (series, progress) = (Series::new(1), Progress::default());
        let mut tally = SecondTally::new();
        tally.add(0, 3, None);
        series.merge(&mut tally, &progress);
        series.merge(&mut tally, &progress);
        let seconds = series.take();
        assert_eq!((seconds[0].errors, seconds[0].p99, seconds[1].p99), (3, None, None));
    }
}
