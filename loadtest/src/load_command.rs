//! The command line of the load generator.

use crate::command::{Failure, plain_text};
use clap::{Args, ValueEnum};
use floodway_loadtest::{
    live_line::LiveLine,
    load::{
        self, Arrival, DEFAULT_MAX_BACKLOG, Encoding, Entropy, KafkaTopic, Length, LoadError, LoadPlan,
        Outcome, Progress, Reconciliation, TopicEnds, Workload, reconcile_topic, topic_ends,
    },
    report::{self, count, duration},
};
use std::{
    process::ExitCode,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;

/// Pause between two updates of the live line.
const UPDATE_PAUSE: Duration = Duration::from_millis(250);

#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// Base URL of ingest
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// API key of a tenant
    #[arg(long, env = "API_KEY", hide_env_values = true)]
    key: String,
    /// Events of one request
    #[arg(long, default_value_t = 1, value_name = "N")]
    events_per_request: usize,
    /// Bytes of each event's data
    #[arg(long, default_value_t = 500)]
    bytes: usize,
    /// How well the data can be compressed
    #[arg(long, value_enum, default_value_t = EntropyArg::Text)]
    entropy: EntropyArg,
    /// Different partition keys; 0 sends none
    #[arg(long, default_value_t = 0)]
    keys: u64,
    /// Content encoding of bodies; those other than identity are compressed before the run, so their ids repeat
    #[arg(long, value_enum, default_value_t = EncodingArg::Identity)]
    encoding: EncodingArg,
    /// Type of the events
    #[arg(long = "type", default_value = "load.event", value_parser = plain_text)]
    event_type: String,
    /// Connections, each with one request at a time
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Threads that send
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Open loop: events per second, however long answers take; default: as fast as the answers come
    #[arg(long, group = "arrival")]
    rate: Option<f64>,
    /// Open loop: events per second from the start to the end, for example 1000..50000
    #[arg(long, group = "arrival", value_name = "FROM..TO", value_parser = ramp)]
    ramp: Option<Arrival>,
    /// Open loop: events per second, multiplied by a factor for a while, for example 1000,10,20s,5s
    #[arg(long, group = "arrival", value_name = "RATE,FACTOR,BEGIN,LENGTH", value_parser = spike)]
    spike: Option<Arrival>,
    /// How long to measure, for example 30s, 10m
    #[arg(long, default_value = "30s", value_parser = time)]
    duration: Duration,
    /// How many events to measure, instead of how long
    #[arg(long, conflicts_with = "duration")]
    events: Option<u64>,
    /// Time before the figures start
    #[arg(long, default_value = "5s", value_parser = time)]
    warmup: Duration,
    /// Longest wait for an answer
    #[arg(long, default_value = "30s", value_parser = time)]
    timeout: Duration,
    /// Requests of an open loop that may wait for a connection; more are dropped, and the figures are not valid
    #[arg(long, default_value_t = DEFAULT_MAX_BACKLOG)]
    max_backlog: usize,
    /// Keep a ledger, and compare it with the topic after the run
    #[arg(long, requires = "brokers")]
    ledger: bool,
    /// Kafka brokers, for --ledger
    #[arg(long, env = "FLOODWAY_KAFKA_BROKERS")]
    brokers: Option<String>,
    /// Topic of the events, for --ledger
    #[arg(long, default_value = "floodway.events")]
    topic: String,
    /// Allow a target that is not this machine
    #[arg(long)]
    allow_remote: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum EntropyArg {
    Text,
    Random,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum EncodingArg {
    Identity,
    Gzip,
    Zstd,
}

impl LoadArgs {
    fn plan(&self) -> LoadPlan {
        let rate = self.rate.map(|rate| Arrival::Open { rate });
        LoadPlan {
            workload: Workload {
                events_per_request: self.events_per_request,
                data_bytes: self.bytes,
                entropy: match self.entropy {
                    EntropyArg::Text => Entropy::Text,
                    EntropyArg::Random => Entropy::Random,
                },
                keys: self.keys,
                encoding: match self.encoding {
                    EncodingArg::Identity => Encoding::Identity,
                    EncodingArg::Gzip => Encoding::Gzip,
                    EncodingArg::Zstd => Encoding::Zstd,
                },
                event_type: self.event_type.clone(),
                ..Workload::default()
            },
            arrival: rate.or(self.ramp).or(self.spike).unwrap_or(Arrival::Closed),
            connections: self.connections,
            threads: self.threads,
            warmup: self.warmup,
            length: self.events.map_or(Length::Time(self.duration), Length::Events),
            timeout: self.timeout,
            max_backlog: self.max_backlog,
            ledger: self.ledger,
            allow_remote: self.allow_remote,
            ..LoadPlan::new(&self.url, &self.key)
        }
    }

    /// Where the events end up, if the run is to be compared with it.
    fn topic(&self) -> Option<KafkaTopic> {
        let brokers = self.brokers.clone().filter(|_| self.ledger)?;
        Some(KafkaTopic { brokers, topic: self.topic.clone(), settings: Vec::new() })
    }
}

/// Runs the load generator and prints what came of it.
pub(crate) async fn load(args: LoadArgs, stop: &CancellationToken) -> Result<ExitCode, Failure> {
    let plan = args.plan();
    let topic = args.topic();
    let before = match topic.clone() {
        Some(topic) => Some(blocking(move || topic_ends(&topic)).await?),
        None => None,
    };
    let mut line = LiveLine::on_stderr();
    let outcome = watch(&plan, stop, &mut line).await;
    line.clear();
    let mut outcome = outcome.map_err(failure)?;
    let found = match topic.zip(before) {
        Some((topic, before)) => reconcile(&mut outcome, topic, before).await?,
        None => None,
    };
    print(&outcome, found.as_ref(), args.json)?;
    let mut faults = outcome.report.invalid_because;
    faults.extend(found.iter().flat_map(Reconciliation::faults));
    if faults.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    Err(Failure::failed(faults.join("; ")))
}

/// The run, with a line that shows how far it is.
async fn watch(plan: &LoadPlan, stop: &CancellationToken, line: &mut LiveLine) -> Result<Outcome, LoadError> {
    let progress = Arc::new(Progress::default());
    let mut running = std::pin::pin!(load::run(plan, &progress, stop));
    let mut update = tokio::time::interval(UPDATE_PAUSE);
    let mut rate = Rate::default();
    loop {
        tokio::select! {
            outcome = &mut running => return outcome,
            now = update.tick() => line.update(progress_text(&progress, &mut rate, now)),
        }
    }
}

/// Events per second between two looks.
#[derive(Default)]
struct Rate {
    last: Option<(tokio::time::Instant, u64)>,
}

impl Rate {
    fn update(&mut self, now: tokio::time::Instant, total: u64) -> f64 {
        let (before, last) = self.last.replace((now, total)).unwrap_or((now, total));
        (total - last) as f64 / (now - before).as_secs_f64().max(1e-3)
    }
}

fn progress_text(progress: &Progress, rate: &mut Rate, now: tokio::time::Instant) -> String {
    let accepted = progress.accepted.load(Relaxed);
    format!(
        "accepted {} ({}/s), failed {}, p99 {}, waiting {}, dropped {}",
        count(accepted),
        count(rate.update(now, accepted) as u64),
        count(progress.failed.load(Relaxed)),
        duration(Duration::from_micros(progress.p99_micros.load(Relaxed))),
        count(progress.backlog.load(Relaxed)),
        count(progress.dropped.load(Relaxed)),
    )
}

async fn reconcile(
    outcome: &mut Outcome,
    topic: KafkaTopic,
    before: TopicEnds,
) -> Result<Option<Reconciliation>, Failure> {
    match outcome.ledger.take() {
        Some(ledger) => blocking(move || reconcile_topic(&ledger, &topic, &before)).await.map(Some),
        None => Ok(None),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LoadError> + Send + 'static,
) -> Result<T, Failure> {
    let done: Result<_, JoinError> = tokio::task::spawn_blocking(work).await;
    done.map_err(Failure::failed)?.map_err(failure)
}

fn print(outcome: &Outcome, found: Option<&Reconciliation>, json: bool) -> Result<(), Failure> {
    let text = if json {
        let value = serde_json::json!({ "load": outcome.report, "reconciliation": found });
        format!("{value}\n")
    } else {
        let mut text = load::report_text(&outcome.report);
        if let Some(found) = found {
            text.push('\n');
            text.push_str(&load::reconciliation_text(found));
        }
        text
    };
    report::print(&text).map_err(Failure::failed)
}

fn failure(error: LoadError) -> Failure {
    if error.is_usage() { Failure::usage(error) } else { Failure::failed(error) }
}

/// `500ms`, `30s`, `10m`, `1h`; seconds without a unit.
fn time(text: &str) -> Result<Duration, String> {
    let units = [("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let (number, factor) = units
        .iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)))
        .unwrap_or((text, 1.0));
    let seconds: f64 = number.trim().parse().map_err(|_| "must be like 500ms, 30s, 10m or 1h".to_owned())?;
    Duration::try_from_secs_f64(seconds * factor).map_err(|error| error.to_string())
}

fn number(text: &str) -> Result<f64, String> {
    text.trim().parse().map_err(|_| format!("{text:?} is not a number"))
}

fn ramp(text: &str) -> Result<Arrival, String> {
    let (from, to) = text.split_once("..").ok_or("must be FROM..TO, for example 1000..50000")?;
    Ok(Arrival::Ramp { from: number(from)?, to: number(to)? })
}

fn spike(text: &str) -> Result<Arrival, String> {
    let parts: Vec<&str> = text.split(',').map(str::trim).collect();
    let [rate, factor, begins, lasts] = parts[..] else {
        return Err("must be RATE,FACTOR,BEGIN,LENGTH, for example 1000,10,20s,5s".to_owned());
    };
    Ok(Arrival::Spike {
        rate: number(rate)?,
        factor: number(factor)?,
        begins: time(begins)?,
        lasts: time(lasts)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        load: LoadArgs,
    }

    fn plan(arguments: &str) -> Result<LoadPlan, String> {
        let arguments = "loadtest --key k".split(' ').chain(arguments.split_whitespace());
        Cli::try_parse_from(arguments).map(|cli| cli.load.plan()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_options_are_the_plan() {
        let plan =
            plan("--events-per-request 100 --keys 10 --entropy random --warmup 500ms --duration 2m").unwrap();
        assert_eq!(plan.arrival, Arrival::Closed);
        assert_eq!((plan.workload.events_per_request, plan.workload.keys), (100, 10));
        assert_eq!(
            (plan.warmup, plan.length),
            (Duration::from_millis(500), Length::Time(Duration::from_secs(120)))
        );
        assert!(!plan.allow_remote);
    }

    #[test]
    fn each_arrival_has_its_form_and_they_exclude_each_other() {
        assert_eq!(plan("--rate 5e3").unwrap().arrival, Arrival::Open { rate: 5000.0 });
        assert_eq!(plan("--ramp 10..20").unwrap().arrival, Arrival::Ramp { from: 10.0, to: 20.0 });
        let spike = Arrival::Spike {
            rate: 100.0,
            factor: 10.0,
            begins: Duration::from_secs(20),
            lasts: Duration::from_secs(5),
        };
        assert_eq!(plan("--spike 100,10,20s,5").unwrap().arrival, spike);
        for (arguments, word) in [
            ("--rate 1 --ramp 1..2", "cannot be used with"),
            ("--ramp 1", "FROM..TO"),
            ("--ramp 1..x", "not a number"),
            ("--spike 1,2,3", "RATE,FACTOR,BEGIN,LENGTH"),
            ("--duration 3y", "30s"),
            ("--duration 3s --events 5", "cannot be used with"),
            ("--type a\"b", "letters"),
        ] {
            let error = plan(arguments).err().unwrap();
            assert!(error.contains(word), "{arguments}: {error}");
        }
    }
}
