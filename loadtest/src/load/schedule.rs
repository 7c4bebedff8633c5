//! The instants at which requests are due: a function of their number, computed from the start of the run. Pure.

use std::time::Duration;

/// When each request of an open loop is due, as time since the start of the run. Requests are numbered from 0 over all
/// threads; the first is due at once.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Schedule {
    phases: Vec<Phase>,
}

/// A time in which the rate changes evenly, or not at all.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Phase {
    /// Seconds from the start of the run.
    begins: f64,
    /// Seconds.
    lasts: f64,
    /// Requests per second at the beginning.
    from: f64,
    /// Requests per second at the end.
    to: f64,
    /// Requests that are due before it, not always a whole number.
    before: f64,
}

impl Schedule {
    /// The same rate for ever, in requests per second.
    pub(super) fn constant(rate: f64) -> Self {
        Self::of(&[(f64::INFINITY, rate, rate)])
    }

    /// A rate that changes evenly over `lasts` and then stays.
    pub(super) fn ramp(from: f64, to: f64, lasts: Duration) -> Self {
        Self::of(&[(lasts.as_secs_f64(), from, to), (f64::INFINITY, to, to)])
    }

    /// A constant rate, multiplied by `factor` from `begins` on for `lasts`.
    pub(super) fn spike(rate: f64, factor: f64, begins: Duration, lasts: Duration) -> Self {
        let high = rate * factor;
        Self::of(&[
            (begins.as_secs_f64(), rate, rate),
            (lasts.as_secs_f64(), high, high),
            (f64::INFINITY, rate, rate),
        ])
    }

    /// Phases one after the other: how long, and the rates at both ends.
    fn of(phases: &[(f64, f64, f64)]) -> Self {
        let (mut begins, mut before) = (0.0, 0.0);
        let phases = phases
            .iter()
            .filter(|(lasts, ..)| *lasts > 0.0)
            .map(|&(lasts, from, to)| {
                let phase = Phase { begins, lasts, from, to, before };
                begins += lasts;
                before += phase.requests();
                phase
            })
            .collect();
        Self { phases }
    }

    /// When request `number` is due; `Duration::MAX` if never.
    pub(super) fn due(&self, number: u64) -> Duration {
        let number = number as f64;
        let phase = self.phases.iter().rev().find(|phase| phase.before <= number);
        // Numbers are never negative and the first phase begins with 0.
        let seconds = phase.map_or(0.0, |phase| phase.begins + phase.seconds_until(number - phase.before));
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }

    /// Requests that are due before this time: the number of the first one that is not.
    pub(super) fn count_before(&self, time: Duration) -> u64 {
        let seconds = time.as_secs_f64();
        let Some(phase) = self.phases.iter().rev().find(|phase| phase.begins <= seconds) else { return 0 };
        let mut count = (phase.before + phase.requests_after(seconds - phase.begins)).ceil() as u64;
        // Rounding may miss by one; what `due` says is what counts.
        while count > 0 && self.due(count - 1) >= time {
            count -= 1;
        }
        while self.due(count) < time {
            count += 1;
        }
        count
    }
}

impl Phase {
    /// Requests over its whole time.
    fn requests(&self) -> f64 {
        if self.lasts.is_infinite() {
            return f64::INFINITY;
        }
        (self.from + self.to) / 2.0 * self.lasts
    }

    /// Requests within its first seconds: the integral of the rate.
    fn requests_after(&self, seconds: f64) -> f64 {
        self.from * seconds + self.slope() / 2.0 * seconds * seconds
    }

    /// Seconds until it has had so many requests: the inverse of `requests_after`, in the form that also holds where
    /// the slope is 0 and loses no digits where it is small.
    fn seconds_until(&self, requests: f64) -> f64 {
        if requests <= 0.0 {
            return 0.0;
        }
        let root = (self.from * self.from + 2.0 * self.slope() * requests).max(0.0).sqrt();
        (2.0 * requests / (self.from + root)).min(self.lasts)
    }

    /// Change of the rate per second.
    fn slope(&self) -> f64 {
        // Also for an infinite phase: its rates are equal.
        (self.to - self.from) / self.lasts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NANOSECOND: Duration = Duration::from_nanos(1);

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_constant_rate_is_due_at_even_steps_from_the_start() {
        let schedule = Schedule::constant(1000.0);
        assert_eq!(schedule.due(0), Duration::ZERO);
        assert_eq!(schedule.due(1), Duration::from_millis(1));
        assert_eq!(schedule.due(3_600_000), Duration::from_secs(3600), "an hour later nothing has drifted");
        assert_eq!(schedule.count_before(Duration::from_secs(2)), 2000);
        assert_eq!(schedule.count_before(Duration::ZERO), 0);
    }

    #[test]
    fn a_ramp_sends_the_mean_of_its_rates() {
        let schedule = Schedule::ramp(100.0, 300.0, Duration::from_secs(10));
        assert_eq!(schedule.count_before(Duration::from_secs(10)), 2000);
        assert_eq!(schedule.count_before(Duration::from_secs(5)), 750);
        assert_eq!(schedule.count_before(Duration::from_secs(11)), 2300, "then the rate stays");
        let from_nothing = Schedule::ramp(0.0, 200.0, Duration::from_secs(10));
        assert_eq!(from_nothing.count_before(Duration::from_secs(10)), 1000);
        let to_nothing = Schedule::ramp(200.0, 0.0, Duration::from_secs(10));
        assert_eq!(to_nothing.count_before(Duration::from_secs(10)), 1000);
        assert_eq!(to_nothing.due(2_000_000), Duration::MAX, "a rate of 0 has no further request");
    }

    #[test]
    fn a_spike_multiplies_the_rate_for_its_time_only() {
        let schedule = Schedule::spike(100.0, 5.0, Duration::from_secs(10), Duration::from_secs(2));
        let until = |time: u64| schedule.count_before(Duration::from_secs(time));
        assert_eq!([until(10), until(11), until(12), until(13)], [1000, 1500, 2000, 2100]);
        let at_once = Schedule::spike(100.0, 5.0, Duration::ZERO, Duration::from_secs(1));
        assert_eq!(at_once.count_before(Duration::from_secs(1)), 500);
    }

    fn any_schedule() -> impl Strategy<Value = Schedule> {
        let rate = || 0.1..2e6;
        prop_oneof![
            rate().prop_map(Schedule::constant),
            (rate(), rate(), 0.1..4000.0).prop_map(|(from, to, lasts)| Schedule::ramp(
                from,
                to,
                seconds(lasts)
            )),
            (rate(), 1.0..50.0, 0.0..600.0, 0.1..60.0).prop_map(|(rate, factor, begins, lasts)| {
                Schedule::spike(rate, factor, seconds(begins), seconds(lasts))
            }),
        ]
    }

    proptest! {
        #[test]
        fn a_later_number_is_never_due_earlier(schedule in any_schedule(), number in 0u64..1_000_000_000, step in 0u64..1000) {
            prop_assert!(schedule.due(number) <= schedule.due(number + step) + NANOSECOND);
        }

        #[test]
        fn counting_and_due_times_agree(schedule in any_schedule(), time in 0.0..4000.0) {
            let time = seconds(time);
            let count = schedule.count_before(time);
            prop_assert!(schedule.due(count) >= time);
            prop_assert!(count == 0 || schedule.due(count - 1) < time);
        }

        #[test]
        fn the_distance_between_neighbours_is_the_inverse_of_the_rate(rate in 1.0..1e6, number in 0u64..1_000_000_000) {
            let schedule = Schedule::constant(rate);
            let distance = (schedule.due(number + 1) - schedule.due(number)).as_secs_f64();
            prop_assert!((distance - 1.0 / rate).abs() < 2e-9 + 1e-15 * number as f64);
        }
    }
}
