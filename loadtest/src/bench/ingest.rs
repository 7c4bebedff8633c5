//! The benchmark of ingest: every scenario, one after the other, against an installation of its own.

use super::{
    BenchError,
    about::About,
    disk::{self, Room, Volume},
    floor::producer::ProducerFigures,
    installation::{Installation, PARTITIONS, Site, Target, free_ports},
    machine::{Conditions, Machine, Software},
    measure::{Measured, Observer, reconciled},
    process::{Subject, Watched},
    result::{BenchReport, FORMAT, Finding, Floor, Floors, Run, ScenarioResult, Step, Sweep},
    scenario::{
        ENDURANCE_SHARE, HALF, Profile, Question, SCENARIOS, SPIKE_BASE, SPIKE_FACTOR, SWEEP, Scenario,
        Timing,
    },
    sweep,
    topics::{Retention, Topics},
};
use crate::{
    child::{ChildError, GuardedChild, last_lines},
    file_error::FileError,
    live_line::LiveLine,
    load::{Arrival, Encoding, Entropy, KafkaTopic, Length, LoadPlan, Workload, reconcile_topic, topic_ends},
    report::{bytes, count, duration},
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
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
/// Time for a rate to be found that a scenario needs and that was not measured before.
const REFERENCE_TIME: Duration = Duration::from_secs(4);
/// How long a floor may take beside its own times: reading samples, starting, ending.
const FLOOR_PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks whether a floor listens.
const FLOOR_PAUSE: Duration = Duration::from_millis(20);
/// Longest wait for what is due when a run in an open loop ends.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

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
        let scenarios = self.chosen()?;
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

    fn chosen(&self) -> Result<Vec<Scenario>, BenchError> {
        let known = |name: &String| SCENARIOS.iter().any(|scenario| scenario.name == name);
        if let Some(name) = self.only.iter().find(|name| !known(name)) {
            let names = names(&SCENARIOS);
            return Err(BenchError::Setting(format!("there is no scenario {name}; there are {names}")));
        }
        let wanted =
            |scenario: &Scenario| self.only.is_empty() || self.only.iter().any(|n| n == scenario.name);
        Ok(SCENARIOS.into_iter().filter(wanted).collect())
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
        let Some(path) = &self.kafka_data else { return Ok(()) };
        let unreadable = |reason| FileError::at(path, reason);
        let available = Room::of(path).map_err(unreadable)?.free_bytes;
        let cores = Machine::here().cores as f64;
        let rate = |scenario: &Scenario| scenario.assumed_events_per_core() * cores;
        let event_bytes = self.event_bytes();
        // Of what passes, the most is on the disk when the fastest scenario has run until retention gets to it.
        let passing = || scenarios.iter().filter(|scenario| scenario.question != Question::Endurance);
        let seconds: f64 = passing().map(|scenario| scenario.duration(timing).as_secs_f64()).sum();
        let written: f64 = passing().map(|s| s.duration(timing).as_secs_f64() * rate(s)).sum();
        let average = if seconds > 0.0 { written / seconds } else { 0.0 };
        let passing = Volume { seconds, events_per_second: average, event_bytes, kept: false };
        disk::check("the benchmark", &[passing], available)?;
        if scenarios.iter().any(|scenario| scenario.question == Question::Endurance) {
            let seconds = timing.endurance.as_secs_f64() / ENDURANCE_DISK_SHARE;
            let kept = Volume { seconds, events_per_second: LEAST_ENDURANCE_RATE, event_bytes, kept: true };
            disk::check("the endurance scenario", &[kept], available)?;
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

/// What one scenario works with.
struct Stage<'a, 'l> {
    bench: &'a IngestBench,
    timing: &'a Timing,
    target: &'a Target,
    topics: &'a Topics,
    report: &'a BenchReport,
    observer: Observer<'l>,
}

type Found = (Finding, Option<Floors>);

impl Stage<'_, '_> {
    async fn run(&mut self, scenario: &Scenario) -> Result<Found, BenchError> {
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

    async fn http_floor(&mut self, scenario: &Scenario) -> Result<Floor, BenchError> {
        let [address] = free_ports()?;
        let log = self.log("floor-http");
        let (address_text, events) = (address.to_string(), scenario.events_per_request.to_string());
        let arguments = ["floor", "http", "--listen", &address_text, "--answer-events", &events];
        let mut child = GuardedChild::start(&self.bench.loadtest, &arguments, &BTreeMap::new(), &log)?;
        let plan = LoadPlan {
            url: format!("http://{address}"),
            warmup: self.timing.floor_warmup,
            ..self.plan(scenario, Arrival::Closed, self.timing.floor)
        };
        let watched = self.bench.watched(child.pid().unwrap_or_default());
        let before = std::mem::replace(&mut self.observer.watched, watched);
        let label = format!("{}: floor of HTTP", scenario.name);
        let measured = tokio::select! {
            measured = async {
                listening(address).await;
                self.observer.measure(&label, &plan).await
            } => measured,
            ended = child.ended() => Err(ended.into()),
        };
        self.observer.watched = before;
        let _ = child.stop().await;
        Ok(http_figures(&measured?.run))
    }

    async fn producer_floor(&mut self, scenario: &Scenario) -> Result<Floor, BenchError> {
        let topic = self.target.floor_topic(scenario.name);
        self.topics.create(&topic, PARTITIONS).await?;
        let log = self.log("floor-producer");
        let seconds = |duration: Duration| duration.as_secs_f64().to_string();
        let mut arguments: Vec<String> = ["floor", "producer"].map(str::to_owned).into();
        for (option, value) in [
            ("--brokers", self.bench.site.brokers.clone()),
            ("--sample", self.target.events_topic()),
            ("--topic", topic.clone()),
            ("--batch", scenario.events_per_request.to_string()),
            ("--requests", scenario.connections.to_string()),
            ("--warmup", seconds(self.timing.floor_warmup)),
            ("--seconds", seconds(self.timing.floor)),
        ] {
            arguments.extend([option.to_owned(), value]);
        }
        for pid in &self.bench.broker_pids {
            arguments.extend(["--broker-pid".to_owned(), pid.to_string()]);
        }
        self.observer.live.update(format!("{}: floor of the producer", scenario.name));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut child = GuardedChild::start(&self.bench.loadtest, &arguments, &BTreeMap::new(), &log)?;
        let limit = self.timing.floor_warmup + self.timing.floor + FLOOR_PATIENCE;
        let ended = tokio::time::timeout(limit, child.ended()).await;
        let _ = child.stop().await;
        self.topics.delete(&[&topic]).await?;
        producer_figures(&log, ended.ok())
    }

    fn log(&self, name: &str) -> PathBuf {
        self.bench.site.logs.join(format!("{name}.log"))
    }

    fn plan(&self, scenario: &Scenario, arrival: Arrival, time: Duration) -> LoadPlan {
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

/// Waits until somebody accepts connections; whoever waits has a way to give up.
async fn listening(address: std::net::SocketAddr) {
    while tokio::net::TcpStream::connect(address).await.is_err() {
        tokio::time::sleep(FLOOR_PAUSE).await;
    }
}

fn http_figures(run: &Run) -> Floor {
    Floor {
        seconds: run.seconds,
        events_per_second: run.events_per_second,
        usage: run.server,
        broker: None,
        record_bytes: None,
        valid: run.is_valid(),
    }
}

/// Reads what the floor printed as its last line.
fn producer_figures(log: &Path, ended: Option<ChildError>) -> Result<Floor, BenchError> {
    let failed =
        |reason: String| BenchError::Command { command: "loadtest floor producer".to_owned(), reason };
    let Some(ended) = ended else {
        return Err(failed(format!("it did not end in time:\n{}", last_lines(log))));
    };
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let figures =
        text.lines().next_back().and_then(|line| serde_json::from_str::<ProducerFigures>(line).ok());
    let figures = figures.ok_or_else(|| failed(ended.to_string()))?;
    Ok(Floor {
        seconds: figures.seconds,
        events_per_second: figures.acknowledged as f64 / figures.seconds.max(1e-6),
        usage: figures.usage,
        broker: figures.broker,
        record_bytes: Some(figures.record_bytes),
        valid: figures.failed == 0,
    })
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, BenchError> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.map_err(|_| BenchError::System(std::io::Error::other("reading the topic panicked")))
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
