//! One scenario of the benchmark of ingest.

use super::{
    super::{
        BenchError,
        disk::{self, Room},
        installation::Target,
        measure::{Measured, Observer, reconciled},
        result::{BenchReport, Finding, Floors, ScenarioResult, Step, Sweep},
        scenario::{
            ENDURANCE_SHARE, HALF, Question, SCENARIOS, SPIKE_BASE, SPIKE_FACTOR, SWEEP, Scenario, Timing,
        },
        sweep,
        topics::Topics,
    },
    DATA_BYTES, ENDURANCE_DISK_SHARE, IngestBench, KEYS,
};
use crate::{
    load::{Arrival, Encoding, KafkaTopic, Length, LoadPlan, Workload, reconcile_topic, topic_ends},
    report::{bytes, count, duration},
};
use std::time::Duration;

/// Time for a rate to be found that a scenario needs and that was not measured before.
const REFERENCE_TIME: Duration = Duration::from_secs(4);
/// Longest wait for what is due when a run in an open loop ends.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// What one scenario works with.
pub(super) struct Stage<'a, 'l> {
    pub(super) bench: &'a IngestBench,
    pub(super) timing: &'a Timing,
    pub(super) target: &'a Target,
    pub(super) topics: &'a Topics,
    pub(super) report: &'a BenchReport,
    pub(super) observer: Observer<'l>,
}

type Found = (Finding, Option<Floors>);

impl Stage<'_, '_> {
    pub(super) async fn run(&mut self, scenario: &Scenario) -> Result<Found, BenchError> {
        match scenario.question {
            Question::Saturation => self.saturation(scenario).await,
            Question::Latency => self.latency(scenario).await,
            Question::Sweep => self.sweep(scenario).await,
            Question::Spike => self.spike(scenario).await,
            Question::Compressed(encoding) => self.compressed(scenario, encoding).await,
            Question::Endurance => self.endurance(scenario).await,
        }
    }

    async fn saturation(&mut self, scenario: &Scenario) -> Result<Found, BenchError> {
        let mut runs = Vec::new();
        for number in 1..=self.timing.runs {
            let label = match self.timing.runs {
                1 => scenario.name.to_owned(),
                all => format!("{} {number}/{all}", scenario.name),
            };
            let plan = self.plan(scenario, Arrival::Closed, self.timing.saturation);
            runs.push(self.observer.measure(&label, &plan).await?.run);
        }
        let http = self.http_floor(scenario).await?;
        let producer = self.producer_floor(scenario).await?;
        Ok((Finding::Runs(runs), Some(Floors { http, producer })))
    }

    async fn latency(&mut self, scenario: &Scenario) -> Result<Found, BenchError> {
        let rate = HALF * self.saturation_of(scenario).await?;
        let plan = self.plan(scenario, Arrival::Open { rate }, self.timing.latency);
        let run = self.observer.measure(scenario.name, &plan).await?.run;
        Ok((Finding::Runs(vec![run]), None))
    }

    async fn sweep(&mut self, scenario: &Scenario) -> Result<Found, BenchError> {
        let saturation = self.saturation_of(scenario).await?;
        let mut steps = Vec::new();
        for share in SWEEP {
            let label =
                format!("{} at {:.0} % of {}/s", scenario.name, share * 100.0, count(saturation as u64));
            let arrival = Arrival::Open { rate: share * saturation };
            let plan = LoadPlan {
                warmup: self.timing.floor_warmup,
                ..self.plan(scenario, arrival, self.timing.step)
            };
            let run = self.observer.measure(&label, &plan).await?.run;
            steps.push(Step { share, run });
        }
        let knee = sweep::knee(&steps);
        Ok((Finding::Sweep(Sweep { saturation, steps, knee }), None))
    }

    async fn spike(&mut self, scenario: &Scenario) -> Result<Found, BenchError> {
        let rate = SPIKE_BASE * self.saturation_of(scenario).await?;
        let [before, lasts, after] = self.timing.spike;
        let arrival = Arrival::Spike { rate, factor: SPIKE_FACTOR, begins: before, lasts };
        let plan = self.plan(scenario, arrival, before + lasts + after);
        let run = self.observer.measure(scenario.name, &plan).await?.run;
        Ok((Finding::Runs(vec![run]), None))
    }

    async fn compressed(&mut self, scenario: &Scenario, encoding: Encoding) -> Result<Found, BenchError> {
        let mut plan = self.plan(scenario, Arrival::Closed, self.timing.encoding);
        plan.workload.encoding = encoding;
        let probe = LoadPlan {
            connections: 1,
            warmup: Duration::ZERO,
            length: Length::Events(scenario.events_per_request as u64),
            ..plan.clone()
        };
        let probed = self.observer.measure(scenario.name, &probe).await?.run;
        if probed.accepted == 0 {
            let reason = "ingest refuses this content encoding".to_owned();
            return Ok((Finding::NotSupported(reason), None));
        }
        let run = self.observer.measure(scenario.name, &plan).await?.run;
        Ok((Finding::Runs(vec![run]), None))
    }

    async fn endurance(&mut self, scenario: &Scenario) -> Result<Found, BenchError> {
        let time = self.timing.endurance;
        let rate = ENDURANCE_SHARE * self.saturation_of(scenario).await?;
        let rate = self.rate_for_disk(rate, time)?;
        let plan = LoadPlan { ledger: true, ..self.plan(scenario, Arrival::Open { rate }, time) };
        let topic = KafkaTopic {
            brokers: self.bench.site.brokers.clone(),
            topic: self.target.events_topic(),
            settings: Vec::new(),
        };
        let of = topic.clone();
        let before = blocking(move || topic_ends(&of)).await??;
        let Measured { mut run, ledger } = self.observer.measure(scenario.name, &plan).await?;
        if let Some(ledger) = ledger {
            self.observer.live.note("  reading the topic");
            let found = blocking(move || reconcile_topic(&ledger, &topic, &before)).await??;
            run.reconciliation = Some(reconciled(&found));
        }
        Ok((Finding::Runs(vec![run]), None))
    }

    /// The rate, or what the disk holds of it for so long.
    fn rate_for_disk(&self, rate: f64, time: Duration) -> Result<f64, BenchError> {
        let Some(path) = self.bench.kafka_data.as_deref() else { return Ok(rate) };
        let available = Room::of(path)?.free_bytes;
        let usable = available.saturating_sub(disk::RESERVE_BYTES) as f64 * ENDURANCE_DISK_SHARE;
        let seconds = (time + self.timing.warmup).as_secs_f64();
        let most = usable / seconds / self.bench.event_bytes() as f64;
        if most < rate {
            let text = format!(
                "  {} free on Kafka's disk hold {} events/s for {}: the rate is lowered to it",
                bytes(available),
                count(most as u64),
                duration(time),
            );
            self.observer.live.note(&text);
        }
        Ok(rate.min(most))
    }

    /// Events per second of a closed loop in a scenario's shape: as measured, or measured now.
    async fn saturation_of(&mut self, scenario: &Scenario) -> Result<f64, BenchError> {
        let same_shape = |other: &&ScenarioResult| {
            other.events_per_request == scenario.events_per_request
                && other.connections == scenario.connections
                && SCENARIOS.iter().any(|s| s.name == other.name && s.question == Question::Saturation)
        };
        let measured = self.report.scenarios.iter().find(same_shape).and_then(ScenarioResult::median);
        if let Some(run) = measured {
            return Ok(run.events_per_second);
        }
        let label = format!("{}: finding the saturation", scenario.name);
        let plan = self.plan(scenario, Arrival::Closed, REFERENCE_TIME);
        Ok(self.observer.measure(&label, &plan).await?.run.events_per_second)
    }

    pub(super) fn plan(&self, scenario: &Scenario, arrival: Arrival, time: Duration) -> LoadPlan {
        LoadPlan {
            workload: Workload {
                events_per_request: scenario.events_per_request,
                data_bytes: DATA_BYTES,
                entropy: self.bench.entropy,
                keys: KEYS,
                ..Workload::default()
            },
            arrival,
            connections: scenario.connections,
            threads: self.bench.threads(),
            warmup: self.timing.warmup,
            length: Length::Time(time),
            timeout: REQUEST_TIMEOUT,
            ..LoadPlan::new(&self.target.ingest_url, &self.target.key)
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, BenchError> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.map_err(|_| BenchError::System(std::io::Error::other("reading the topic panicked")))
}
