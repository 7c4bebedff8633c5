//! The benchmark of the retry scheduler: every scenario with topics and a database of its own, outcomes written by the
//! benchmark, and the scheduler as a process.

mod arrivals;
mod due;
mod lateness;
mod outcomes;
pub mod page;
mod pending;
mod rows;
pub mod scenario;
mod server;
mod stage;
mod stored;
mod track;

use self::{
    scenario::{Question, SCENARIOS, Scenario, Sizes},
    server::ServerProcesses,
    stage::{Session, Stage},
};
use super::{
    BenchError,
    about::About,
    disk::{self, Volume},
    figures::{FORMAT, Figure, Found, GoalReport, Unit},
    goals,
    ingest::DATA_BYTES,
    installation::{Installation, Site},
    machine::{Conditions, Machine, Software},
    scenario::{Profile, choose},
    topics::{Retention, Topics},
};
use crate::live_line::LiveLine;
use std::{path::PathBuf, time::Instant};
use tokio_util::sync::CancellationToken;

/// Where the processes are.
const PLACEMENT: &str = "benchmark, retry scheduler, Kafka and PostgreSQL share this machine and its CPUs";
/// What a row takes with everything that is written for it: outcome, row, index, log of the database.
const WRITTEN_BYTES: u64 = 4 * 1024;
/// The same of a short row that waits.
const PENDING_BYTES: u64 = 700;

/// What is measured, with what, and where.
#[derive(Debug, Clone)]
pub struct SchedulerBench {
    /// Where the servers and the binary are.
    pub site: Site,
    /// How thoroughly.
    pub profile: Profile,
    /// Instead of the profile's numbers of outcomes and rows.
    pub rows: Option<u64>,
    /// Names of scenarios; empty for all.
    pub only: Vec<String>,
    /// Processes of Kafka on this machine.
    pub broker_pids: Vec<u32>,
    /// Directory of Kafka's data on this machine.
    pub kafka_data: Option<PathBuf>,
    /// When it begins, in UTC.
    pub began: String,
}

impl SchedulerBench {
    /// Runs everything and returns the report. `stop` ends it in order at any time.
    ///
    /// # Errors
    /// When it cannot be carried through; what was created is gone all the same.
    pub async fn run(&self, live: &mut LiveLine, stop: &CancellationToken) -> Result<GoalReport, BenchError> {
        let begun = Instant::now();
        let scenarios = choose(&SCENARIOS, |scenario| scenario.name, &self.only)?;
        let sizes = self.sizes();
        self.check_disk(&scenarios, &sizes)?;
        let mut report = self.report();
        let topics = Topics::new(&self.site.brokers)?;
        for scenario in &scenarios {
            live.note(&format!("{}: {}", scenario.name, scenario.title(&sizes)));
            let mut installation = Installation::new(&self.site);
            let found = tokio::select! {
                found = self.run_scenario(scenario, &sizes, &mut installation, &topics, &mut report, live) => found,
                () = stop.cancelled() => Err(BenchError::Interrupted),
            };
            if let Err(error) = installation.remove(&topics).await {
                live.note(&format!("something is left behind: {error}"));
            }
            let mut found = match found {
                Ok(found) => found,
                Err(BenchError::Interrupted) => return Err(BenchError::Interrupted),
                Err(error) => Found { failed: Some(error.to_string()), ..Found::default() },
            };
            found.name = scenario.name.to_owned();
            found.title = scenario.title(&sizes);
            if scenario.name == "retry-rows" {
                found.figures.extend(ratio(&report, &found));
            }
            live.note(&format!("  {}", goals::in_short(&found)));
            report.scenarios.push(found);
        }
        report.about.took_seconds = begun.elapsed().as_secs_f64();
        Ok(report)
    }

    fn sizes(&self) -> Sizes {
        let sizes = scenario::sizes(self.profile);
        match self.rows {
            None => sizes,
            Some(rows) => Sizes {
                outcomes: rows,
                floor_rows: rows,
                due_rows: rows,
                pending_rows: rows,
                outage_events: rows,
                ..sizes
            },
        }
    }

    fn check_disk(&self, scenarios: &[Scenario], sizes: &Sizes) -> Result<(), BenchError> {
        let volume = |rows: u64, event_bytes: u64| Volume {
            seconds: 1.0,
            events_per_second: rows as f64,
            event_bytes,
            kept: true,
        };
        let volumes: Vec<_> = scenarios
            .iter()
            .map(|scenario| match scenario.question {
                Question::Pending => volume(sizes.pending_rows, PENDING_BYTES),
                _ => volume(scenario.rows(sizes), WRITTEN_BYTES),
            })
            .collect();
        disk::check_at(self.kafka_data.as_deref(), "the benchmark", &volumes)
    }

    fn report(&self) -> GoalReport {
        let mut remarks = Vec::new();
        if self.broker_pids.is_empty() {
            remarks.push("What Kafka used is not known: name its processes with --broker-pid.".to_owned());
        }
        if self.rows.is_some() {
            remarks.push("Numbers of rows are not those of the profile.".to_owned());
        }
        let about = About {
            format: FORMAT,
            subject: SUBJECT.to_owned(),
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

    async fn run_scenario(
        &self,
        scenario: &Scenario,
        sizes: &Sizes,
        installation: &mut Installation,
        topics: &Topics,
        report: &mut GoalReport,
        live: &mut LiveLine,
    ) -> Result<Found, BenchError> {
        let ground = installation.lay(scenario.partitions).await?;
        topics.keep(&format!("{}outcomes", ground.prefix), Retention::Whole).await?;
        report.about.software.postgres.clone_from(&ground.postgres);
        let client = Session::open(&ground.database_url).await?;
        let server = ServerProcesses::of(&client).await;
        let partitions = scenario.partitions;
        let mut stage =
            Stage { bench: self, sizes, installation, ground: &ground, partitions, live, client, server };
        stage.prepare().await?;
        match scenario.question {
            Question::CopyFloor => stored::floor(&mut stage).await,
            Question::Stored(shape) => stored::measure(&mut stage, scenario.name, shape).await,
            Question::Snapshot => stored::snapshot(&mut stage, scenario.name).await,
            Question::Due => due::backlog(&mut stage, scenario.name).await,
            Question::Lateness => Box::pin(lateness::lateness(&mut stage)).await,
            Question::Pending => pending::pending(&mut stage).await,
            Question::Outage => Box::pin(lateness::beside_burst(&mut stage)).await,
        }
    }
}

/// What reports call it.
pub const SUBJECT: &str = "scheduler";

/// How near the scheduler comes to a bare COPY of the same run.
fn ratio(report: &GoalReport, found: &Found) -> Option<Figure> {
    let floor = report.scenarios.iter().find(|found| found.name == "copy-floor")?;
    let rate = |found: &Found| found.figure(stored::RATE).and_then(Figure::median);
    Some(Figure::new("÷ a bare COPY", Unit::Times, rate(found)? / rate(floor)?.max(1.0)))
}
