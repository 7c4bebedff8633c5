//! Where a sweep has its knee.

use super::result::{BenchReport, Finding, Step};

/// Share of the offered rate that has to be acknowledged for a step to count as kept up with.
const KEPT_UP: f64 = 0.98;
/// How much larger than at the lowest rate the 99th percentile may be before a step.
const TOLERATED_GROWTH: f64 = 10.0;

/// The highest step such that it and all below it are valid, kept up, dropped nothing, had every event acknowledged, and
/// answered without a latency out of proportion to that of the lowest step.
pub fn knee(steps: &[Step]) -> Option<usize> {
    let lowest = steps.first()?.run.latency.p99.max(1) as f64;
    let usable = |step: &Step| {
        let offered = step.run.offered.unwrap_or(f64::INFINITY);
        step.run.events_per_second >= KEPT_UP * offered
            && step.run.is_valid()
            && step.run.dropped_requests == 0
            && step.run.not_acknowledged() == 0
            && step.run.latency.p99 as f64 <= TOLERATED_GROWTH * lowest
    };
    steps.iter().take_while(|step| usable(step)).count().checked_sub(1)
}

/// Finds the knees of a kept report again: when it was made, another rule may have held.
pub fn find_again(report: &mut BenchReport) {
    for scenario in &mut report.scenarios {
        if let Finding::Sweep(sweep) = &mut scenario.finding {
            sweep.knee = knee(&sweep.steps);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{bench::result::Run, load::Quantiles};

    fn step(offered: f64, achieved: f64, p99: u64) -> Step {
        let latency = Quantiles { p99, ..Quantiles::default() };
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

    #[test]
    fn a_step_that_is_not_valid_or_has_errors_is_beyond_the_knee() {
        let sound = [step(10.0, 10.0, 100), step(20.0, 20.0, 100), step(30.0, 30.0, 100)];
        assert_eq!(knee(&sound), Some(2));
        let mut invalid = sound.clone();
        invalid[1].run.invalid_because.push("the generator was saturated".to_owned());
        assert_eq!(knee(&invalid), Some(0));
        let mut erroneous = sound;
        (erroneous[2].run.events, erroneous[2].run.accepted) = (1_000, 999);
        assert_eq!(knee(&erroneous), Some(1));
    }

    #[test]
    fn the_knee_of_a_kept_report_follows_from_its_steps() {
        let kept = include_str!("../../tests/fixtures/bench-report.json");
        let mut report: BenchReport = serde_json::from_str(kept).unwrap();
        let found = |report: &BenchReport| crate::bench::summary::sweep_of(report).unwrap().knee;
        let before = found(&report);
        for scenario in &mut report.scenarios {
            if let Finding::Sweep(sweep) = &mut scenario.finding {
                sweep.knee = None;
            }
        }
        find_again(&mut report);
        assert!(before.is_some() && found(&report) == before);
    }
}
