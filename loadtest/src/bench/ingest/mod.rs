//! The benchmark of ingest: every scenario, one after the other, against an installation of its own.

mod floors;
mod stage;

use self::stage::Stage;
use super::{
    BenchError,
    about::About,
    disk::{self, Volume},
    installation::{Installation, Site, Target},
    machine::{Conditions, Machine, Software},
    measure::Observer,
    process::{Subject, Watched},
    result::{BenchReport, FORMAT, Finding, ScenarioResult},
    scenario::{Profile, Question, SCENARIOS, Scenario, Timing, choose},
    topics::{Retention, Topics},
};
use crate::{
    live_line::LiveLine,
    load::Entropy,
    report::{count, duration},
};
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// Different partition keys: enough for all partitions to be used evenly.
pub const KEYS: u64 = 10_000;
/// Bytes of each event's `data`.
pub const DATA_BYTES: usize = 500;
/// Where the processes are.
const PLACEMENT: &str =
    "generator, ingest, control plane, Kafka and PostgreSQL share this machine and its CPUs";
/// Threads of the generator for each of this many cores: it takes a small share of what it measures.
const CORES_PER_THREAD: usize = 4;
/// A rate below which an endurance run says nothing; a disk that cannot hold this much is refused before the start.
const LEAST_ENDURANCE_RATE: f64 = 10_000.0;
/// Share of the free disk that an endurance run may fill.
const ENDURANCE_DISK_SHARE: f64 = 0.6;

/// What is measured, with what, and where.
#[derive(Debug, Clone)]
pub struct IngestBench {
    /// Where the servers and the binary are.
    pub site: Site,
    /// This program, which is also the floors.
    pub loadtest: PathBuf,
    /// How thoroughly.
    pub profile: Profile,
    /// Names of scenarios; empty for all.
    pub only: Vec<String>,
    /// How well the events' data can be compressed.
    pub entropy: Entropy,
    /// Threads of the generator; `None` for a share of the cores.
    pub threads: Option<usize>,
    /// Processes of Kafka on this machine.
    pub broker_pids: Vec<u32>,
    /// Directory of Kafka's data on this machine.
    pub kafka_data: Option<PathBuf>,
    /// When it begins, in UTC.
    pub began: String,
}

impl IngestBench {
    /// Runs everything and returns the report. `stop` ends it in order at any time.
    ///
    /// # Errors
    /// When it cannot be carried through; what was created is gone all the same.
    pub async fn run(
        &self,
        live: &mut LiveLine,
        stop: &CancellationToken,
    ) -> Result<BenchReport, BenchError> {
        let begun = Instant::now();
        let scenarios = choose(&SCENARIOS, |scenario| scenario.name, &self.only)?;
        let timing = self.profile.timing();
        self.check_disk(&scenarios, &timing)?;
        let mut report = self.report();
        let topics = Topics::new(&self.site.brokers)?;
        let (lasting, passing): (Vec<_>, Vec<_>) =
            scenarios.into_iter().partition(|scenario| scenario.question == Question::Endurance);
        // What an endurance run writes is kept until it has been read, so it gets topics of its own, and the others' are
        // gone by then.
        for (scenarios, retention) in [(passing, Retention::Short), (lasting, Retention::Whole)] {
            if scenarios.is_empty() {
                continue;
            }
            live.note(&format!("starting an installation for {}", names(&scenarios)));
            let mut installation = Installation::new(&self.site);
            let target = tokio::select! {
                target = installation.start(&topics, retention) => target,
                () = stop.cancelled() => Err(BenchError::Interrupted),
            };
            let result = match target {
                Ok(target) => {
                    report.about.software.postgres.clone_from(&target.postgres);
                    tokio::select! {
                        result = self.run_scenarios(&scenarios, &timing, &target, &topics, &mut report, live, stop) => result,
                        ended = installation.ended() => Err(ended),
                        () = stop.cancelled() => Err(BenchError::Interrupted),
                    }
                }
                Err(error) => Err(error),
            };
            let removed = installation.remove(&topics).await;
            result?;
            if let Err(error) = removed {
                live.note(&format!("something is left behind: {error}"));
            }
        }
        report.about.took_seconds = begun.elapsed().as_secs_f64();
        Ok(report)
    }

    fn report(&self) -> BenchReport {
        let mut remarks = Vec::new();
        if self.broker_pids.is_empty() {
            remarks.push("What Kafka used is not known: name its processes with --broker-pid.".to_owned());
        }
        if self.kafka_data.is_none() {
            remarks.push(
                "The disk of Kafka's data is not known, neither its room nor its speed: name its directory with --kafka-data."
                    .to_owned(),
            );
        }
        let about = About {
            format: FORMAT,
            subject: "ingest".to_owned(),
            profile: self.profile,
            began: self.began.clone(),
            took_seconds: 0.0,
            data_bytes: DATA_BYTES,
            generator_threads: self.threads(),
            software: Software::here(&self.site.floodway, self.broker_pids.first().copied()),
            machine: Machine::here(),
            conditions: Conditions::now(PLACEMENT, self.kafka_data.as_deref()),
            remarks,
        };
        let (entropy, keys) = (self.entropy_text().to_owned(), KEYS);
        BenchReport { about, entropy, keys, scenarios: Vec::new() }
    }

    fn entropy_text(&self) -> &'static str {
        match self.entropy {
            Entropy::Text => "text, of which compression leaves about a tenth",
            Entropy::Random => "random characters, of which compression leaves about three quarters",
        }
    }

    fn threads(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        self.threads.unwrap_or((cores / CORES_PER_THREAD).max(1))
    }

    /// Bytes of a stored event; compression works on whole batches, so the smaller ones take more.
    fn event_bytes(&self) -> u64 {
        let share = match self.entropy {
            Entropy::Text => 0.2,
            Entropy::Random => 0.8,
        };
        disk::stored_event_bytes(DATA_BYTES, share)
    }

    /// Refuses a disk on which the run cannot end.
    fn check_disk(&self, scenarios: &[Scenario], timing: &Timing) -> Result<(), BenchError> {
        let disk = self.kafka_data.as_deref();
        let cores = Machine::here().cores as f64;
        let rate = |scenario: &Scenario| scenario.assumed_events_per_core() * cores;
        let event_bytes = self.event_bytes();
        // Of what passes, the most is on the disk when the fastest scenario has run until retention gets to it.
        let passing = || scenarios.iter().filter(|scenario| scenario.question != Question::Endurance);
        let seconds: f64 = passing().map(|scenario| scenario.duration(timing).as_secs_f64()).sum();
        let written: f64 = passing().map(|s| s.duration(timing).as_secs_f64() * rate(s)).sum();
        let average = if seconds > 0.0 { written / seconds } else { 0.0 };
        let passing = Volume { seconds, events_per_second: average, event_bytes, kept: false };
        disk::check_at(disk, "the benchmark", &[passing])?;
        if scenarios.iter().any(|scenario| scenario.question == Question::Endurance) {
            let seconds = timing.endurance.as_secs_f64() / ENDURANCE_DISK_SHARE;
            let kept = Volume { seconds, events_per_second: LEAST_ENDURANCE_RATE, event_bytes, kept: true };
            disk::check_at(disk, "the endurance scenario", &[kept])?;
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "it ties the benchmark's parts together, once")]
    async fn run_scenarios(
        &self,
        scenarios: &[Scenario],
        timing: &Timing,
        target: &Target,
        topics: &Topics,
        report: &mut BenchReport,
        live: &mut LiveLine,
        stop: &CancellationToken,
    ) -> Result<(), BenchError> {
        for scenario in scenarios {
            live.note(&format!("{}: {}", scenario.name, scenario.title()));
            let observer = Observer {
                watched: self.watched(target.ingest_pid),
                kafka_data: self.kafka_data.as_deref(),
                live: &mut *live,
                stop,
            };
            let mut stage = Stage { bench: self, timing, target, topics, report, observer };
            let (finding, floors) = match stage.run(scenario).await {
                Ok(found) => found,
                Err(error @ BenchError::Load(_)) => (Finding::Failed(error.to_string()), None),
                Err(error) => return Err(error),
            };
            let result = ScenarioResult {
                name: scenario.name.to_owned(),
                title: scenario.title(),
                events_per_request: scenario.events_per_request,
                connections: scenario.connections,
                finding,
                floors,
            };
            live.note(&format!("  {}", in_short(&result)));
            report.scenarios.push(result);
        }
        Ok(())
    }

    fn watched(&self, server: u32) -> Vec<Watched> {
        let brokers = self.broker_pids.iter().map(|&pid| Watched { subject: Subject::Broker, pid });
        brokers.chain([Watched { subject: Subject::Server, pid: server }]).collect()
    }
}

fn names(scenarios: &[Scenario]) -> String {
    scenarios.iter().map(|scenario| scenario.name).collect::<Vec<_>>().join(", ")
}

/// One line for the terminal as soon as a scenario has ended.
fn in_short(result: &ScenarioResult) -> String {
    match &result.finding {
        Finding::NotSupported(reason) => format!("not supported: {reason}"),
        Finding::Failed(reason) => format!("failed: {reason}"),
        Finding::Sweep(sweep) => match sweep.knee.and_then(|knee| sweep.steps.get(knee)) {
            Some(step) => format!("the knee is at {} events/s", count(step.run.events_per_second as u64)),
            None => "no step was usable".to_owned(),
        },
        Finding::Runs(_) => result.median().map_or_else(String::new, |run| {
            let micros = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.2}"));
            let ratio =
                result.ratio().map_or(String::new(), |ratio| format!(", {ratio:.2} times the floors"));
            let invalid = run.invalid_because.iter().map(|reason| format!("; INVALID: {reason}"));
            format!(
                "{} events/s, p50 {}, p99 {}, {} CPU-µs/event{ratio}{}",
                count(run.events_per_second as u64),
                duration(Duration::from_micros(run.latency.p50)),
                duration(Duration::from_micros(run.latency.p99)),
                micros(run.micros_per_event()),
                invalid.collect::<String>(),
            )
        }),
    }
}
