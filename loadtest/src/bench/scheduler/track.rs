//! How far something had got at which moments, and what had been used by then.

use crate::bench::process::Reading;
use std::time::Instant;

/// The part of the progress that rates and costs are over: without start and end of the process.
pub(super) const MEASURED: (f64, f64) = (0.1, 0.9);

/// One look.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    /// When.
    pub at: Instant,
    /// How many were done.
    pub done: u64,
    /// What the scheduler had used.
    pub scheduler: Reading,
    /// CPU time of PostgreSQL until then, in microseconds.
    pub postgres_micros: u64,
    /// CPU time of Kafka until then, in microseconds.
    pub broker_micros: u64,
}

/// All looks, in order.
#[derive(Debug, Clone, Default)]
pub(super) struct Track(pub Vec<Look>);

/// What happened between two looks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Window {
    /// Seconds between them.
    pub seconds: f64,
    /// How many were done.
    pub number: f64,
    /// CPU time, in microseconds.
    pub scheduler_micros: f64,
    /// CPU time, in microseconds.
    pub postgres_micros: f64,
    /// CPU time, in microseconds.
    pub broker_micros: f64,
}

impl Track {
    /// From the look that saw the first share of `whole` to the one that saw the second; `None` if one of them is missing,
    /// or both are the same.
    pub(super) fn window(&self, (from, until): (f64, f64), whole: u64) -> Option<Window> {
        let first = self.0.iter().find(|look| look.done as f64 >= from * whole as f64)?;
        let last = self.0.iter().find(|look| look.done as f64 >= until * whole as f64)?;
        Window::between(first, last)
    }

    /// From the first look to the last.
    pub(super) fn whole(&self) -> Option<Window> {
        Window::between(self.0.first()?, self.0.last()?)
    }

    /// Most memory that the scheduler used, in bytes.
    pub(super) fn peak_bytes(&self) -> u64 {
        self.0.iter().map(|look| look.scheduler.peak_bytes).max().unwrap_or(0)
    }
}

impl Window {
    fn between(first: &Look, last: &Look) -> Option<Self> {
        let spent = |micros: fn(&Look) -> u64| micros(last).saturating_sub(micros(first)) as f64;
        let seconds = (last.at - first.at).as_secs_f64();
        (seconds > 0.0).then(|| Self {
            seconds,
            number: spent(|look| look.done),
            scheduler_micros: spent(|look| look.scheduler.cpu_micros()),
            postgres_micros: spent(|look| look.postgres_micros),
            broker_micros: spent(|look| look.broker_micros),
        })
    }

    /// How many a second.
    pub(super) fn rate(&self) -> f64 {
        self.number / self.seconds
    }

    /// Some CPU time for each of them.
    pub(super) fn each(&self, micros: f64) -> f64 {
        micros / self.number.max(1.0)
    }

    /// Some CPU time as a share of one core, in per cent.
    pub(super) fn core_percent(&self, micros: f64) -> f64 {
        micros / self.seconds / 1e4
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_window_is_between_the_looks_that_saw_its_shares() {
        let begin = Instant::now();
        let look = |second, done| Look {
            at: begin + Duration::from_secs(second),
            done,
            scheduler: Reading { user_micros: 10 * done, ..Reading::default() },
            postgres_micros: 0,
            broker_micros: done,
        };
        let track = Track(vec![look(0, 0), look(1, 0), look(2, 30), look(3, 60), look(5, 100)]);
        let window = track.window(MEASURED, 100).unwrap();
        assert!((window.rate() - 70.0 / 3.0).abs() < 1e-9);
        assert!((window.each(window.scheduler_micros) - 10.0).abs() < 1e-9);
        assert_eq!(track.window(MEASURED, 1_000), None);
    }
}
