//! The figures of a benchmark, as `report.json` has them. The pages are made from this file alone, so they can be made
//! again from a kept one.

use super::{
    machine::{Conditions, Machine, Software},
    process::Usage,
    scenario::Profile,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of the format. A reader refuses another one.
pub const FORMAT: u32 = 1;

/// Everything about one benchmark.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchReport {
    /// [`FORMAT`].
    pub format: u32,
    /// What was measured: `ingest`.
    pub subject: String,
    /// How thoroughly.
    pub profile: Profile,
    /// When it began, in UTC.
    pub began: String,
    /// How long it took, in seconds.
    pub took_seconds: f64,
    /// Bytes of each event's `data`.
    pub data_bytes: usize,
    /// How well `data` can be compressed.
    pub entropy: String,
    /// Different partition keys.
    pub keys: u64,
    /// Threads of the generator.
    pub generator_threads: usize,
    /// What was measured, and with what.
    pub software: Software,
    /// On what.
    pub machine: Machine,
    /// How busy it was otherwise.
    pub conditions: Conditions,
    /// What every scenario found, in the order in which they ran.
    pub scenarios: Vec<ScenarioResult>,
    /// What the figures lack, in sentences.
    pub remarks: Vec<String>,
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
    /// Time from when a request was due to its whole answer.
    pub latency: Latency,
    /// Time from when a request was sent to its whole answer.
    pub service: Latency,
    /// The distribution of `latency`: share of the answers, and microseconds that they took at most.
    pub distribution: Vec<(f64, u64)>,
    /// What happened in each second, warm-up included.
    pub series: Vec<SecondOf>,
    /// Seconds of the series that are the warm-up.
    pub warmup_seconds: f64,
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

/// Quantiles in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// Answers.
    pub count: u64,
    /// Half took at most this.
    pub p50: u64,
    /// 90 %.
    pub p90: u64,
    /// 99 %.
    pub p99: u64,
    /// 99.9 %.
    pub p99_9: u64,
    /// 99.99 %.
    pub p99_99: u64,
    /// All.
    pub max: u64,
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
    /// 99 % of its answers took at most this, in microseconds.
    pub p99: u64,
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

    /// Whether the figures can be used.
    pub fn is_valid(&self) -> bool {
        self.invalid_because.is_empty()
    }
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
