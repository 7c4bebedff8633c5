//! Where a sweep has its knee.

use super::result::Step;

/// Share of the offered rate that has to be acknowledged for a step to count as kept up with.
const KEPT_UP: f64 = 0.98;
/// How much larger than at the lowest rate the 99th percentile may be before a step.
const TOLERATED_GROWTH: f64 = 10.0;

/// The highest step such that it and all below it kept up, dropped nothing, and answered without a latency out of
/// proportion to that of the lowest step.
pub fn knee(steps: &[Step]) -> Option<usize> {
    let lowest = steps.first()?.run.latency.p99.max(1) as f64;
    let usable = |step: &Step| {
        let offered = step.run.offered.unwrap_or(f64::INFINITY);
        step.run.events_per_second >= KEPT_UP * offered
            && step.run.dropped_requests == 0
            && step.run.latency.p99 as f64 <= TOLERATED_GROWTH * lowest
    };
    steps.iter().take_while(|step| usable(step)).count().checked_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::result::{Latency, Run};

    fn step(offered: f64, achieved: f64, p99: u64) -> Step {
        let latency = Latency { p99, ..Latency::default() };
        let run = Run { offered: Some(offered), events_per_second: achieved, latency, ..Run::default() };
        Step { share: 0.0, run }
    }

    #[test]
    fn the_knee_is_the_last_step_before_throughput_or_latency_gives_way() {
        let slow = [step(10.0, 10.0, 100), step(20.0, 20.0, 900), step(30.0, 29.9, 5_000)];
        assert_eq!(knee(&slow), Some(1));
        let short = [step(10.0, 10.0, 100), step(20.0, 19.0, 200), step(30.0, 30.0, 200)];
        assert_eq!(knee(&short), Some(0), "a step above one that failed does not count");
        assert_eq!(knee(&slow[..2]), Some(1), "without a step that fails the knee is not below the highest");
        assert_eq!(knee(&[step(10.0, 5.0, 100)]), None);
        assert_eq!(knee(&[]), None);
    }

    #[test]
    fn a_step_that_drops_requests_is_beyond_the_knee() {
        let mut steps = [step(10.0, 10.0, 100), step(20.0, 20.0, 100)];
        steps[1].run.dropped_requests = 1;
        assert_eq!(knee(&steps), Some(0));
    }
}
