//! The figures of a benchmark, as `report.json` has them. The pages are made from this file alone, so they can be made
//! again from a kept one.

use super::{about::About, process::Usage};
use crate::load::Quantiles;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;

/// Version of the format. A reader refuses another one.
pub const FORMAT: u32 = 1;

/// Everything about one benchmark of ingest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchReport {
    /// Circumstances.
    #[serde(flatten)]
    pub about: About,
    /// How well `data` can be compressed.
    pub entropy: String,
    /// Different partition keys.
    pub keys: u64,
    /// What every scenario found, in the order in which they ran.
    pub scenarios: Vec<ScenarioResult>,
}

/// What one scenario found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScenarioResult {
    /// Name of the scenario.
    pub name: String,
    /// What it does, in a few words.
    pub title: String,
    /// Events of one request.
    pub events_per_request: usize,
    /// Connections.
    pub connections: usize,
    /// How it ended.
    pub finding: Finding,
    /// The least that HTTP and Kafka cost for the same, where that was measured.
    pub floors: Option<Floors>,
}

/// How a scenario ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// Figures of each run.
    Runs(Vec<Run>),
    /// Figures of each step.
    Sweep(Sweep),
    /// The server does not do what is asked here.
    NotSupported(String),
    /// There are no figures.
    Failed(String),
}

/// Figures of one run, without its warm-up.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Seconds measured.
    pub seconds: f64,
    /// Events per second that were offered; none in a closed loop, which offers what it can.
    pub offered: Option<f64>,
    /// Events acknowledged, per second.
    pub events_per_second: f64,
    /// Requests answered, per second.
    pub requests_per_second: f64,
    /// Events sent.
    pub events: u64,
    /// Events acknowledged.
    pub accepted: u64,
    /// Requests that were due and never sent.
    pub dropped_requests: u64,
    /// Events that were not acknowledged, by class; none of zero.
    pub errors: BTreeMap<String, u64>,
    /// Time from when a request was due to its whole answer, or until it was given up; without requests that were refused.
    pub latency: Quantiles,
    /// The same from when a request was sent.
    pub service: Quantiles,
    /// The distribution of `latency`: share of the requests, and microseconds that they took at most.
    pub distribution: Vec<(f64, u64)>,
    /// What happened in each second, warm-up included.
    pub series: Vec<SecondOf>,
    /// Seconds of the series that are the warm-up.
    pub warmup_seconds: f64,
    /// Seconds of the series at which a spike began and ended, if there was one.
    pub spike: Option<(f64, f64)>,
    /// What the server used.
    pub server: Usage,
    /// What Kafka used, if its processes are known.
    pub broker: Option<Usage>,
    /// What the generator used.
    pub generator: Usage,
    /// Share of the machine's CPU time that was used, 0 to 1.
    pub machine_busy: f64,
    /// Why the generator was the limit; empty if it was not.
    pub generator_limit: String,
    /// Why the figures cannot be used; empty if they can.
    pub invalid_because: Vec<String>,
    /// What was found on the topic, if it was read.
    pub reconciliation: Option<Reconciled>,
}

/// One second of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecondOf {
    /// Seconds since the start, warm-up included.
    pub second: u64,
    /// Events acknowledged.
    pub accepted: u64,
    /// Events not acknowledged.
    pub errors: u64,
    /// 99 % of its requests took at most this, in microseconds; none if none ended with an answer that counts, or was given up.
    #[serde(default, deserialize_with = "none_if_zero")]
    pub p99: Option<u64>,
}

/// Older reports have 0 for a second without answers.
fn none_if_zero<'de, D: Deserializer<'de>>(micros: D) -> Result<Option<u64>, D::Error> {
    Ok(Option::deserialize(micros)?.filter(|&micros| micros > 0))
}

/// What was found on the topic after a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Reconciled {
    /// Events that were sent, warm-up included.
    pub sent: u64,
    /// Events that were acknowledged.
    pub acknowledged: u64,
    /// Of these, not found.
    pub lost: u64,
    /// Found more often than once.
    pub repeated: u64,
    /// Not acknowledged, and found.
    pub unacknowledged_found: u64,
    /// Refused with certainty, and found.
    pub refused_found: u64,
    /// Found behind a later event of the same key.
    pub out_of_order: u64,
    /// Found on another partition than an earlier event of the same key.
    pub moved: u64,
    /// Seconds that the reading took.
    pub seconds: f64,
}

/// The least that the same requests and the same records cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Floors {
    /// A bare HTTP server.
    pub http: Floor,
    /// A bare Kafka producer.
    pub producer: Floor,
}

/// One floor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Floor {
    /// Seconds measured.
    pub seconds: f64,
    /// Events or records per second.
    pub events_per_second: f64,
    /// What its process used.
    pub usage: Usage,
    /// What Kafka used for it, if its processes are known.
    pub broker: Option<Usage>,
    /// Bytes of one record with its key, before compression, if records were written.
    pub record_bytes: Option<f64>,
    /// Whether the figures can be used.
    pub valid: bool,
}

/// Latency at growing rates.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sweep {
    /// Events per second that a closed loop reached: what the steps are shares of.
    pub saturation: f64,
    /// The steps.
    pub steps: Vec<Step>,
    /// The highest step that was still usable, if any was.
    pub knee: Option<usize>,
}

/// One step of a sweep.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Share of the saturation.
    pub share: f64,
    /// Its figures.
    pub run: Run,
}

impl Run {
    /// CPU microseconds of the server per acknowledged event.
    pub fn micros_per_event(&self) -> Option<f64> {
        per(self.server, self.events_per_second * self.seconds)
    }

    /// CPU microseconds of the server per answered request.
    pub fn micros_per_request(&self) -> Option<f64> {
        per(self.server, self.requests_per_second * self.seconds)
    }

    /// CPU microseconds of the generator per acknowledged event.
    pub fn generator_micros_per_event(&self) -> Option<f64> {
        per(self.generator, self.events_per_second * self.seconds)
    }

    /// CPU microseconds of Kafka per acknowledged event.
    pub fn broker_micros_per_event(&self) -> Option<f64> {
        per(self.broker?, self.events_per_second * self.seconds)
    }

    /// Share of the machine's CPU time that was used by other processes than server, Kafka and generator; Kafka counts
    /// as another one if its processes are not known.
    pub fn busy_with_others(&self, cores: usize) -> f64 {
        let known = [Some(self.server), self.broker, Some(self.generator)];
        let micros: f64 = known.iter().flatten().map(Usage::cpu_micros).sum();
        let share = micros / (self.seconds * cores as f64 * 1e6).max(1.0);
        (self.machine_busy - share).max(0.0)
    }

    /// Events that were sent and not acknowledged.
    pub fn not_acknowledged(&self) -> u64 {
        self.events.saturating_sub(self.accepted)
    }

    /// Whether the figures can be used.
    pub fn is_valid(&self) -> bool {
        self.invalid_because.is_empty()
    }

    /// What a spike did to latency, if there was one with whole seconds before and after it.
    pub fn spike_effect(&self) -> Option<SpikeEffect> {
        let (begins, ends) = self.spike?;
        let p99 = |from: f64, until: f64| {
            let within =
                move |second: &&SecondOf| second.second as f64 >= from && (second.second + 1) as f64 <= until;
            self.series.iter().filter(within).map(|second| second.p99)
        };
        // A second without answers says nothing of how fast they were: it is neither the measure of calm nor calm itself.
        let before = p99(self.warmup_seconds, begins).flatten().max()?;
        let during = p99(begins, ends).max()?;
        let end = self.warmup_seconds + self.seconds;
        let after: Vec<Option<u64>> = p99(ends.ceil(), end).collect();
        // Calm is when it is as before until the end, a factor of two allowed: one good second may be chance.
        let is_unrest = |p99: &Option<u64>| p99.is_none_or(|p99| p99 > 2 * before);
        let unrest = after.iter().rposition(is_unrest).map_or(0, |last| last + 1);
        Some(SpikeEffect { before, during, calm_after: (unrest < after.len()).then_some(unrest) })
    }
}

/// What a spike did to latency, by the 99th percentiles of single seconds, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpikeEffect {
    /// The highest before it.
    pub before: u64,
    /// The highest during it; none if nothing was answered.
    pub during: Option<u64>,
    /// Seconds after its end from which on none was without answers, or had more than twice the highest before it, if that
    /// came to be.
    pub calm_after: Option<usize>,
}

impl Floor {
    /// CPU microseconds per event.
    pub fn micros_per_event(&self) -> Option<f64> {
        per(self.usage, self.events_per_second * self.seconds)
    }
}

fn per(usage: Usage, number: f64) -> Option<f64> {
    (number >= 1.0).then(|| usage.cpu_micros() / number)
}

impl Floors {
    /// CPU microseconds per event of both together.
    pub fn micros_per_event(&self) -> Option<f64> {
        Some(self.http.micros_per_event()? + self.producer.micros_per_event()?)
    }
}

impl ScenarioResult {
    /// The run in the middle by speed, if there are runs.
    pub fn median(&self) -> Option<&Run> {
        let Finding::Runs(runs) = &self.finding else { return None };
        let mut runs: Vec<&Run> = runs.iter().collect();
        runs.sort_by(|a, b| a.events_per_second.total_cmp(&b.events_per_second));
        runs.get(runs.len().checked_sub(1)? / 2).copied()
    }

    /// The slowest and the fastest run's events per second.
    pub fn spread(&self) -> Option<(f64, f64)> {
        let Finding::Runs(runs) = &self.finding else { return None };
        let rates = || runs.iter().map(|run| run.events_per_second);
        Some((rates().reduce(f64::min)?, rates().reduce(f64::max)?))
    }

    /// How often the cost of both floors together the server's cost is.
    pub fn ratio(&self) -> Option<f64> {
        Some(self.median()?.micros_per_event()? / self.floors?.micros_per_event()?)
    }
}

impl BenchReport {
    /// The result of a scenario by its name.
    pub fn scenario(&self, name: &str) -> Option<&ScenarioResult> {
        self.scenarios.iter().find(|scenario| scenario.name == name)
    }

    /// What a benchmark cannot end with: figures that are missing, events that are lost.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for scenario in &self.scenarios {
            match &scenario.finding {
                Finding::Failed(reason) => faults.push(format!("{}: {reason}", scenario.name)),
                Finding::Runs(runs) => {
                    let found = runs.iter().filter_map(|run| run.reconciliation.as_ref());
                    let faulty = found.flat_map(Reconciled::faults);
                    faults.extend(faulty.map(|fault| format!("{}: {fault}", scenario.name)));
                }
                Finding::Sweep(_) | Finding::NotSupported(_) => {}
            }
        }
        faults
    }
}

impl Reconciled {
    /// What must not be, in words.
    pub fn faults(&self) -> Vec<String> {
        let facts = [
            (self.lost, "acknowledged events are not on the topic"),
            (self.refused_found, "refused events are on the topic"),
            (self.out_of_order, "events are behind a later one of their key"),
            (self.moved, "events are on another partition than their key's others"),
        ];
        facts
            .iter()
            .filter(|(number, _)| *number > 0)
            .map(|(number, what)| format!("{number} {what}"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_with(p99: &[u64]) -> Run {
        let second = |(second, &p99): (usize, &u64)| SecondOf {
            second: second as u64,
            p99: Some(p99).filter(|&p99| p99 > 0),
            ..SecondOf::default()
        };
        let series = p99.iter().enumerate().map(second).collect();
        Run { series, warmup_seconds: 1.0, seconds: 7.0, spike: Some((3.0, 5.0)), ..Run::default() }
    }

    #[test]
    fn a_spikes_effect_is_how_high_latency_went_and_when_it_was_as_before() {
        let effect = run_with(&[9_999, 100, 110, 500, 900, 300, 220, 120]).spike_effect().unwrap();
        assert_eq!(effect, SpikeEffect { before: 110, during: Some(900), calm_after: Some(1) });
        let unrest = run_with(&[9_999, 100, 110, 500, 900, 100, 100, 400]).spike_effect().unwrap();
        assert_eq!(unrest.calm_after, None, "calm that did not last is none");
        assert_eq!(Run::default().spike_effect(), None);
    }

    #[test]
    fn a_second_without_answers_is_unrest_and_no_measure_of_calm() {
        let silent_after = run_with(&[9_999, 100, 110, 500, 900, 100, 0, 100]).spike_effect().unwrap();
        assert_eq!(silent_after.calm_after, Some(2));
        let silent_to_the_end = run_with(&[9_999, 100, 110, 500, 900, 100, 100, 0]).spike_effect().unwrap();
        assert_eq!(silent_to_the_end.calm_after, None);
        let silent_before = run_with(&[9_999, 0, 110, 500, 900, 100, 100, 100]).spike_effect().unwrap();
        assert_eq!((silent_before.before, silent_before.calm_after), (110, Some(0)));
        assert_eq!(run_with(&[9_999, 0, 0, 500, 900, 100, 100, 100]).spike_effect(), None);
        let silent_during = run_with(&[9_999, 100, 110, 0, 0, 100, 100, 100]).spike_effect().unwrap();
        assert_eq!(silent_during.during, None);
    }

    #[test]
    fn a_second_without_answers_is_read_from_older_reports_too() {
        let read = |p99: &str| {
            let text = format!(r#"{{"second":1,"accepted":0,"errors":0,"p99":{p99}}}"#);
            serde_json::from_str::<SecondOf>(&text).unwrap().p99
        };
        assert_eq!((read("0"), read("null"), read("7")), (None, None, Some(7)));
    }

    #[test]
    fn the_median_run_is_the_one_in_the_middle_by_speed() {
        let run = |events_per_second| Run { events_per_second, ..Run::default() };
        let scenario = ScenarioResult {
            name: String::new(),
            title: String::new(),
            events_per_request: 1,
            connections: 1,
            finding: Finding::Runs(vec![run(30.0), run(10.0), run(20.0)]),
            floors: None,
        };
        assert_eq!(scenario.median().unwrap().events_per_second, 20.0);
        assert_eq!(scenario.spread(), Some((10.0, 30.0)));
        assert_eq!(scenario.ratio(), None);
    }

    #[test]
    fn cost_is_cpu_time_over_what_was_acknowledged_in_the_same_seconds() {
        let server = Usage { user_micros: 1_500.0, system_micros: 500.0, ..Usage::default() };
        let run = Run {
            seconds: 2.0,
            events_per_second: 500.0,
            requests_per_second: 5.0,
            server,
            ..Run::default()
        };
        assert_eq!(run.micros_per_event(), Some(2.0));
        assert_eq!(run.micros_per_request(), Some(200.0));
        assert_eq!(run.broker_micros_per_event(), None, "what is not known costs not nothing");
        let busy = Run { machine_busy: 0.25, ..run.clone() };
        assert!((busy.busy_with_others(1) - 0.249).abs() < 1e-9 && run.busy_with_others(1) == 0.0);
        assert_eq!(Run::default().micros_per_event(), None);
    }
}
