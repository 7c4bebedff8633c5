//! The benchmark of the dispatcher: every scenario, one after the other, with ingest before it, a sink behind it, and the
//! retry scheduler beside it.

mod backlog;
mod config_records;
pub mod endpoints;
mod isolation;
mod latency;
mod many;
pub mod page;
mod saturation;
pub mod scenario;
mod stage;

use self::{
    endpoints::SinkProcess,
    scenario::{Badness, Question, SCENARIOS, Scenario, Timing},
    stage::Stage,
};
use super::{
    BenchError,
    about::About,
    disk::{self, Volume},
    figures::{FORMAT, Found, GoalReport},
    goals,
    ingest::DATA_BYTES,
    installation::{Installation, Site},
    machine::{Conditions, Machine, Software},
    scenario::{Profile, choose},
    sink::certificate::CertificateFiles,
    topics::{Retention, Topics},
};
use crate::live_line::LiveLine;
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// Where the processes are.
const PLACEMENT: &str = "generator, ingest, dispatcher, retry scheduler, control plane, sink, Kafka and PostgreSQL share this \
    machine and its CPUs";
/// Share of an event's data that compression leaves: it is text that repeats.
const COMPRESSED_SHARE: f64 = 0.2;
/// How often an event is written: to its topic, and with an outcome that carries it.
const COPIES: u64 = 2;

/// What is measured, with what, and where.
#[derive(Debug, Clone)]
pub struct DispatcherBench {
    /// Where the servers and the binary are.
    pub site: Site,
    /// This program, which is also the sink and the floor.
    pub loadtest: PathBuf,
    /// How thoroughly.
    pub profile: Profile,
    /// Instead of the profile's number of events in the log.
    pub events: Option<u64>,
    /// Instead of each of the profile's times.
    pub time: Option<Duration>,
    /// Names of scenarios; empty for all.
    pub only: Vec<String>,
    /// Processes of Kafka on this machine.
    pub broker_pids: Vec<u32>,
    /// Directory of Kafka's data on this machine.
    pub kafka_data: Option<PathBuf>,
    /// When it begins, in UTC.
    pub began: String,
}

impl DispatcherBench {
    /// Runs everything and returns the report. `stop` ends it in order at any time.
    ///
    /// # Errors
    /// When it cannot be carried through; what was created is gone all the same.
    pub async fn run(&self, live: &mut LiveLine, stop: &CancellationToken) -> Result<GoalReport, BenchError> {
        let begun = Instant::now();
        let scenarios = choose(&SCENARIOS, |scenario| scenario.name, &self.only)?;
        let timing = self.timing();
        self.check_disk(&timing)?;
        let mut report = self.report();
        let certificate = CertificateFiles::make(&self.site.logs, &["127.0.0.1".to_owned()])?;
        let topics = Topics::new(&self.site.brokers)?;
        let sink = SinkProcess::start(&self.loadtest, &self.site.logs, &certificate).await?;
        let mut result = Ok(());
        for group in scenarios.chunk_by(|one, other| one.installation() == other.installation()) {
            let mut installation = Installation::new(&self.site);
            installation
                .set("FLOODWAY_DISPATCHER__CA_FILE", certificate.authority.to_string_lossy().into_owned());
            result = tokio::select! {
                result = self.run_group(group, &timing, &mut installation, &topics, &sink, &mut report, live) => result,
                () = stop.cancelled() => Err(BenchError::Interrupted),
            };
            if let Err(error) = installation.remove(&topics).await {
                live.note(&format!("something is left behind: {error}"));
            }
            if result.is_err() {
                break;
            }
        }
        sink.stop().await;
        certificate.remove();
        report.about.took_seconds = begun.elapsed().as_secs_f64();
        result.map(|()| report)
    }

    fn timing(&self) -> Timing {
        let mut timing = scenario::timing(self.profile);
        if let Some(events) = self.events {
            (timing.events, timing.backlog) = (events, events);
        }
        if let Some(time) = self.time {
            let times = [
                &mut timing.warmup,
                &mut timing.floor,
                &mut timing.latency,
                &mut timing.idle,
                &mut timing.isolation,
                &mut timing.beside_backlog,
                &mut timing.among_many,
            ];
            times.into_iter().for_each(|of| *of = time);
        }
        timing
    }

    fn check_disk(&self, timing: &Timing) -> Result<(), BenchError> {
        let events = timing.backlog.max(3 * timing.events * timing.runs as u64);
        let event_bytes = COPIES * disk::stored_event_bytes(DATA_BYTES, COMPRESSED_SHARE);
        let volume = Volume { seconds: 1.0, events_per_second: events as f64, event_bytes, kept: true };
        disk::check_at(self.kafka_data.as_deref(), "the benchmark", &[volume])
    }

    fn report(&self) -> GoalReport {
        let mut remarks = Vec::new();
        if self.broker_pids.is_empty() {
            remarks.push("What Kafka used is not known: name its processes with --broker-pid.".to_owned());
        }
        if self.events.is_some() || self.time.is_some() {
            remarks.push("Numbers of events or times are not those of the profile.".to_owned());
        }
        let about = About {
            format: FORMAT,
            subject: "dispatcher".to_owned(),
            profile: self.profile,
            began: self.began.clone(),
            took_seconds: 0.0,
            data_bytes: DATA_BYTES,
            generator_threads: 1,
            software: Software::here(&self.site.floodway, self.broker_pids.first().copied()),
            machine: Machine::here(),
            conditions: Conditions::now(PLACEMENT, self.kafka_data.as_deref()),
            remarks,
        };
        GoalReport { about, scenarios: Vec::new() }
    }

    /// Starts an installation, and runs scenarios in it.
    #[expect(clippy::too_many_arguments, reason = "it ties the benchmark's parts together, once")]
    async fn run_group(
        &self,
        scenarios: &[Scenario],
        timing: &Timing,
        installation: &mut Installation,
        topics: &Topics,
        sink: &SinkProcess,
        report: &mut GoalReport,
        live: &mut LiveLine,
    ) -> Result<(), BenchError> {
        let names = scenarios.iter().map(|scenario| scenario.name).collect::<Vec<_>>().join(", ");
        live.note(&format!("starting an installation for {names}"));
        let target = installation.start(topics, Retention::Short).await?;
        report.about.software.postgres.clone_from(&target.postgres);
        installation.start_role("retry-scheduler").await?;
        // The benchmark ends by dropping this future, so no run is asked to stop.
        let stop = CancellationToken::new();
        let mut stage = Stage { bench: self, timing, installation, target: &target, sink, live, stop: &stop };
        let bad: Vec<(Scenario, Badness)> = scenarios.iter().filter_map(isolated).collect();
        for scenario in scenarios.iter().filter(|scenario| isolated(scenario).is_none()) {
            stage.live.note(&format!("{}: {}", scenario.name, scenario.title(timing)));
            let found = run(&mut stage, scenario).await;
            keep(report, stage.live, named(scenario, timing, found)?);
        }
        if !bad.is_empty() {
            let names = bad.iter().map(|(scenario, _)| scenario.name).collect::<Vec<_>>().join(", ");
            stage.live.note(&format!("{names}: and twice without a bad endpoint"));
            let seen = isolation::measure(&mut stage, &bad).await;
            for (index, (scenario, _)) in bad.iter().enumerate() {
                let found = match &seen {
                    Ok(seen) => Ok(seen.get(index).cloned().unwrap_or_default()),
                    Err(error) => Err(BenchError::Command {
                        command: "isolation".to_owned(),
                        reason: error.to_string(),
                    }),
                };
                keep(report, stage.live, named(scenario, timing, found)?);
            }
        }
        Ok(())
    }
}

fn isolated(scenario: &Scenario) -> Option<(Scenario, Badness)> {
    match scenario.question {
        Question::Isolation(badness) => Some((*scenario, badness)),
        _ => None,
    }
}

async fn run(stage: &mut Stage<'_>, scenario: &Scenario) -> Result<Found, BenchError> {
    match scenario.question {
        Question::Saturation { endpoints, tls } => {
            Box::pin(saturation::measure(stage, scenario, endpoints, tls)).await
        }
        Question::Latency { rate } => Box::pin(latency::at_rate(stage, scenario, rate)).await,
        Question::Idle => latency::idle(stage).await,
        Question::Backlog => Box::pin(backlog::measure(stage, scenario)).await,
        Question::Subscriptions => Box::pin(many::measure(stage, scenario)).await,
        // They share runs, see `run_group`.
        Question::Isolation(_) => Ok(Found::default()),
    }
}

/// What a scenario found, or why it found nothing; an error that ends the benchmark stays one.
fn named(
    scenario: &Scenario,
    timing: &Timing,
    found: Result<Found, BenchError>,
) -> Result<Found, BenchError> {
    let found = match found {
        Ok(found) => found,
        Err(error @ (BenchError::Load(_) | BenchError::Command { .. } | BenchError::NotReady { .. })) => {
            Found { failed: Some(error.to_string()), ..Found::default() }
        }
        Err(error) => return Err(error),
    };
    Ok(Found { name: scenario.name.to_owned(), title: scenario.title(timing), ..found })
}

/// Adds what was found to the report, and shows it.
fn keep(report: &mut GoalReport, live: &LiveLine, found: Found) {
    live.note(&format!("  {}", goals::in_short(&found)));
    report.scenarios.push(found);
}
