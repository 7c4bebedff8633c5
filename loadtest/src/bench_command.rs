//! The command line of benchmarks and floors.

use crate::command::{Failure, floodway_beside_this};
use clap::{Args, Subcommand, ValueEnum};
use floodway_loadtest::{
    bench::{
        BenchError,
        floor::{http::HttpFloor, producer::ProducerFloor},
        html,
        ingest::IngestBench,
        installation::Site,
        markdown,
        result::{BenchReport, FORMAT},
        scenario::Profile,
        summary, sweep,
    },
    demo::environment::read_env_file,
    live_line::LiveLine,
    load::Entropy,
    report,
};
use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Files of a report.
const JSON_FILE: &str = "report.json";
const HTML_FILE: &str = "report.html";

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 failed, or a scenario failed or lost events; 2 wrong usage or environment, or too small a disk.";

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Ingest: throughput, CPU per event against floors, latency versus load, spike, endurance
    #[command(after_help = EXIT_CODES)]
    Ingest(IngestArgs),
    /// Make the pages of a kept report again
    #[command(after_help = EXIT_CODES)]
    Page(PageArgs),
}

#[derive(Debug, Args)]
pub(crate) struct IngestArgs {
    /// The floodway binary; default: beside this one
    #[arg(long, value_name = "PATH")]
    floodway: Option<PathBuf>,
    /// How thoroughly: about four minutes, a quarter of an hour, or half an hour
    #[arg(long, value_enum, default_value = "quick")]
    profile: Profile,
    /// Where report and logs go
    #[arg(long, value_name = "DIR", default_value = "target/loadtest/ingest")]
    out: PathBuf,
    /// Also write the report as a Markdown page, and its figures beside it as JSON
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Only this scenario; several times for several. An unknown name is answered with the list
    #[arg(long = "scenario", value_name = "NAME")]
    scenarios: Vec<String>,
    /// How well the events' data can be compressed
    #[arg(long, value_enum, default_value = "text")]
    entropy: EntropyArg,
    /// Threads of the generator; default: one for every four cores
    #[arg(long)]
    threads: Option<usize>,
    /// Where Kafka and PostgreSQL are, as scripts/stack writes it; variables of the environment win
    #[arg(long, value_name = "FILE", default_value = ".stack/env")]
    env_file: PathBuf,
    /// Directory of the stack, to find Kafka's processes and data
    #[arg(long, value_name = "DIR", default_value = ".stack")]
    stack_dir: PathBuf,
    /// A process of Kafka; several times for several. Default: those of the stack
    #[arg(long = "broker-pid", value_name = "PID")]
    broker_pids: Vec<u32>,
    /// Directory of Kafka's data; default: that of the stack
    #[arg(long, value_name = "DIR")]
    kafka_data: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct PageArgs {
    /// The report
    #[arg(value_name = "report.json")]
    report: PathBuf,
    /// Write the HTML page here
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the Markdown page here, and the figures beside it as JSON
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum EntropyArg {
    /// Sentences, of which compression leaves a tenth
    Text,
    /// Random characters, of which compression leaves three quarters
    Random,
}

#[derive(Debug, Subcommand)]
pub(crate) enum FloorCommand {
    /// A bare HTTP server that reads requests and answers 202
    Http(HttpArgs),
    /// A bare Kafka producer that writes sampled records as fast as they are acknowledged
    Producer(ProducerArgs),
}

#[derive(Debug, Args)]
pub(crate) struct HttpArgs {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:9100")]
    listen: SocketAddr,
    /// Threads; default: one per core
    #[arg(long)]
    workers: Option<usize>,
    /// Events that every answer says were accepted
    #[arg(long, default_value_t = 1)]
    answer_events: usize,
}

#[derive(Debug, Args)]
pub(crate) struct ProducerArgs {
    /// Kafka, host:port, separated by commas
    #[arg(long, env = "FLOODWAY_KAFKA_BROKERS")]
    brokers: String,
    /// Topic whose last records are written again
    #[arg(long)]
    sample: String,
    /// Topic they are written to
    #[arg(long)]
    topic: String,
    /// Records of one request
    #[arg(long, default_value_t = 100)]
    batch: usize,
    /// Requests at a time
    #[arg(long, default_value_t = 64)]
    requests: usize,
    /// Seconds that no figure contains
    #[arg(long, default_value = "2", value_parser = seconds)]
    warmup: Duration,
    /// Seconds measured
    #[arg(long, default_value = "10", value_parser = seconds)]
    seconds: Duration,
    /// A process of Kafka whose CPU time is read; several times for several
    #[arg(long = "broker-pid", value_name = "PID")]
    broker_pids: Vec<u32>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| "must be a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(number).map_err(|error| error.to_string())
}

fn failure(error: BenchError) -> Failure {
    if error.is_usage() { Failure::usage(error) } else { Failure::failed(error) }
}

/// Runs a benchmark, or makes pages.
pub(crate) async fn bench(command: BenchCommand, stop: &CancellationToken) -> Result<ExitCode, Failure> {
    match command {
        BenchCommand::Ingest(args) => ingest(args, stop).await,
        BenchCommand::Page(args) => page(&args),
    }
}

async fn ingest(args: IngestArgs, stop: &CancellationToken) -> Result<ExitCode, Failure> {
    fs::create_dir_all(&args.out).map_err(|error| unusable(&args.out, error))?;
    let servers = Servers::find(&args.env_file)?;
    let mut broker_pids = args.broker_pids;
    let mut kafka_data = args.kafka_data;
    // The stack's files say something about these servers only if it is the stack that runs them.
    if servers.of_stack {
        if broker_pids.is_empty() {
            broker_pids = stack_broker_pids(&args.stack_dir);
        }
        kafka_data = kafka_data.or_else(|| stack_kafka_data(&args.stack_dir));
    }
    let bench = IngestBench {
        site: Site {
            floodway: args.floodway.map_or_else(floodway_beside_this, Ok)?,
            brokers: servers.brokers,
            database_url: servers.database_url,
            logs: args.out.clone(),
        },
        loadtest: std::env::current_exe().map_err(Failure::usage)?,
        profile: args.profile,
        only: args.scenarios,
        entropy: match args.entropy {
            EntropyArg::Text => Entropy::Text,
            EntropyArg::Random => Entropy::Random,
        },
        threads: args.threads,
        broker_pids,
        kafka_data,
        began: now(),
    };
    let mut live = LiveLine::on_stderr();
    let result = bench.run(&mut live, stop).await;
    live.clear();
    let report = result.map_err(failure)?;
    report::print(&summary::terminal(&report)).map_err(Failure::failed)?;
    let html = args.out.join(HTML_FILE);
    write(&args.out.join(JSON_FILE), &json(&report)?)?;
    write(&html, &html::page(&report))?;
    if let Some(path) = &args.markdown {
        write_markdown(path, &report)?;
    }
    report::print(&format!("\nThe report is {}\n", html.display())).map_err(Failure::failed)?;
    let faults = report.faults();
    if faults.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    Err(Failure::failed(faults.join("\n  ")))
}

fn page(args: &PageArgs) -> Result<ExitCode, Failure> {
    let text = fs::read_to_string(&args.report).map_err(|error| unusable(&args.report, error))?;
    let mut report: BenchReport = serde_json::from_str(&text).map_err(|error| failure(error.into()))?;
    if report.format != FORMAT {
        let message = format!("the report has format {}, this program reads {FORMAT}", report.format);
        return Err(Failure::usage(message));
    }
    sweep::find_again(&mut report);
    if let Some(path) = &args.html {
        write(path, &html::page(&report))?;
    }
    match &args.markdown {
        Some(path) => write_markdown(path, &report)?,
        None if args.html.is_none() => report::print(&summary::terminal(&report)).map_err(Failure::failed)?,
        None => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn write_markdown(path: &Path, report: &BenchReport) -> Result<(), Failure> {
    let json_path = path.with_extension("json");
    let name = json_path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    write(&json_path, &json(report)?)?;
    write(path, &markdown::page(report, &name))
}

fn json(report: &BenchReport) -> Result<String, Failure> {
    serde_json::to_string_pretty(report).map(|text| text + "\n").map_err(|error| failure(error.into()))
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    fs::write(path, text).map_err(|error| unusable(path, error))
}

fn unusable(path: &Path, reason: std::io::Error) -> Failure {
    failure(BenchError::File { path: path.to_owned(), reason })
}

struct Servers {
    brokers: String,
    database_url: String,
    /// Whether scripts/stack runs Kafka.
    of_stack: bool,
}

impl Servers {
    /// From the environment, and from the stack's file for what is not set there.
    fn find(env_file: &Path) -> Result<Self, Failure> {
        let file = match env_file.exists() {
            true => read_env_file(env_file).map_err(Failure::usage)?,
            false => BTreeMap::new(),
        };
        let setting = |name: &str| std::env::var(name).ok().or_else(|| file.get(name).cloned());
        let required = |name: &str| {
            let missing = || {
                Failure::usage(format!(
                    "{name} is not set: run scripts/stack up, or set it to a server of yours"
                ))
            };
            setting(name).ok_or_else(missing)
        };
        let brokers = required("FLOODWAY_KAFKA_BROKERS")?;
        let of_stack = setting("STACK_KAFKA_BROKERS").is_some_and(|stack| stack == brokers);
        Ok(Self { brokers, database_url: required("FLOODWAY_DATABASE_URL")?, of_stack })
    }
}

/// The stack's brokers, from the files in which it keeps their process ids.
fn stack_broker_pids(stack_dir: &Path) -> Vec<u32> {
    let Ok(files) = fs::read_dir(stack_dir.join("run")) else { return Vec::new() };
    let names = files.filter_map(|file| Some(file.ok()?.path()));
    let brokers = names.filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("kafka-") && name.ends_with(".pid")
    });
    brokers.filter_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok()).collect()
}

/// Data of the stack's first broker; the others' are beside it.
fn stack_kafka_data(stack_dir: &Path) -> Option<PathBuf> {
    let path = stack_dir.join("kafka-1").join("data");
    path.is_dir().then_some(path)
}

/// The time of a report, in UTC.
#[expect(clippy::disallowed_methods, reason = "a report says when it was made, and nothing is decided by it")]
fn now() -> String {
    let now = time::OffsetDateTime::from(std::time::SystemTime::now()).replace_nanosecond(0);
    let text = now.ok().and_then(|now| now.format(&time::format_description::well_known::Rfc3339).ok());
    text.unwrap_or_default()
}

/// Is a floor until `stop`, or until it is done.
pub(crate) async fn floor(command: FloorCommand, stop: &CancellationToken) -> Result<ExitCode, Failure> {
    let stop = stop.clone();
    // Both have threads of their own and block until they end.
    let work = move || match command {
        FloorCommand::Http(args) => http_floor(&args, &stop),
        FloorCommand::Producer(args) => producer_floor(args, &stop),
    };
    tokio::task::spawn_blocking(work).await.map_err(Failure::failed)?
}

fn http_floor(args: &HttpArgs, stop: &CancellationToken) -> Result<ExitCode, Failure> {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let workers = args.workers.unwrap_or_else(cores);
    let floor = HttpFloor::bind(args.listen, workers, args.answer_events)
        .map_err(|error| Failure::usage(format!("{}: {error}", args.listen)))?;
    let _ = writeln!(std::io::stderr().lock(), "listening on {}", floor.address());
    floor.serve(stop).map_err(Failure::failed)?;
    Ok(ExitCode::SUCCESS)
}

fn producer_floor(args: ProducerArgs, stop: &CancellationToken) -> Result<ExitCode, Failure> {
    let floor = ProducerFloor {
        brokers: args.brokers,
        sample: args.sample,
        topic: args.topic,
        events_per_request: args.batch,
        requests: args.requests,
        warmup: args.warmup,
        time: args.seconds,
        brokers_pids: args.broker_pids,
    };
    let figures = floor.run(stop).map_err(failure)?;
    let line = serde_json::to_string(&figures).map_err(Failure::failed)?;
    report::print(&format!("{line}\n")).map_err(Failure::failed)?;
    Ok(ExitCode::SUCCESS)
}
