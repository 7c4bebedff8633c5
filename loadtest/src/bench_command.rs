//! The command line of benchmarks and floors.

use crate::command::{Failure, floodway_beside_this};
use clap::{Args, Subcommand, ValueEnum};
use floodway_loadtest::{
    bench::{
        BenchError,
        dispatcher::{self, DispatcherBench},
        document::Document,
        figures::{self, GoalReport},
        floor::{client::ClientFloor, http::HttpFloor, producer::ProducerFloor},
        html,
        ingest::IngestBench,
        installation::Site,
        markdown,
        result::{BenchReport, FORMAT},
        scenario::Profile,
        scheduler::{self, SchedulerBench},
        sink::{Sink, certificate::acceptor},
        summary, sweep,
    },
    demo::environment::read_env_file,
    file_error::FileError,
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
use url::Url;

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
    /// Dispatcher: throughput, CPU per delivery against a floor, latency, bad endpoints, backlogs, many subscriptions
    #[command(after_help = EXIT_CODES)]
    Dispatcher(DispatcherArgs),
    /// Retry scheduler: rows stored per second beside a bare COPY, lateness, snapshots, a start with many pending retries
    #[command(after_help = EXIT_CODES)]
    Scheduler(SchedulerArgs),
    /// Be the endpoints of the dispatcher's benchmark; paths are those of `loadtest receive`, and ?group=NAME counts apart
    Sink(SinkArgs),
    /// Make the pages of a kept report again, or of several with goals as one
    #[command(after_help = EXIT_CODES)]
    Page(PageArgs),
}

/// What every benchmark is told.
#[derive(Debug, Args)]
struct BenchArgs {
    /// The floodway binary; default: beside this one
    #[arg(long, value_name = "PATH")]
    floodway: Option<PathBuf>,
    /// How thoroughly: about four minutes, a quarter of an hour, or half an hour
    #[arg(long, value_enum, default_value = "quick")]
    profile: Profile,
    /// Where report and logs go; default: target/loadtest/ and what is measured
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Also write the report as a Markdown page, and its figures beside it as JSON
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Only this scenario; several times for several. An unknown name is answered with the list
    #[arg(long = "scenario", value_name = "NAME")]
    scenarios: Vec<String>,
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
pub(crate) struct IngestArgs {
    #[command(flatten)]
    bench: BenchArgs,
    /// How well the events' data can be compressed
    #[arg(long, value_enum, default_value = "text")]
    entropy: EntropyArg,
    /// Threads of the generator; default: one for every four cores
    #[arg(long)]
    threads: Option<usize>,
}

#[derive(Debug, Args)]
pub(crate) struct DispatcherArgs {
    #[command(flatten)]
    bench: BenchArgs,
    /// Events in the log, instead of the profile's number
    #[arg(long, value_parser = clap::value_parser!(u64).range(100..=10_000_000))]
    events: Option<u64>,
    /// Seconds of every measurement, instead of the profile's
    #[arg(long, value_parser = seconds)]
    seconds: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct SchedulerArgs {
    #[command(flatten)]
    bench: BenchArgs,
    /// Outcomes and rows of every measurement, instead of the profile's numbers
    #[arg(long, value_parser = clap::value_parser!(u64).range(10_000..=20_000_000))]
    rows: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct SinkArgs {
    /// Where to listen; 0.0.0.0 is every loopback address, and nobody from elsewhere is served
    #[arg(long, default_value = "127.0.0.1:9200")]
    listen: SocketAddr,
    /// Where to listen for TLS
    #[arg(long, requires = "certificate", requires = "key")]
    listen_tls: Option<SocketAddr>,
    /// PEM file of the certificate for TLS
    #[arg(long, value_name = "FILE")]
    certificate: Option<PathBuf>,
    /// PEM file of its private key
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Threads; default: one per core
    #[arg(long)]
    workers: Option<usize>,
}

#[derive(Debug, Args)]
pub(crate) struct PageArgs {
    /// The report; several of the dispatcher, or of the scheduler, are put together, and of a scenario that two have the later one is taken
    #[arg(value_name = "report.json", required = true)]
    reports: Vec<PathBuf>,
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
    /// A bare HTTP client that signs and posts webhooks as fast as they are answered
    Client(ClientArgs),
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

#[derive(Debug, Args)]
pub(crate) struct ClientArgs {
    /// Where to: http://host:port/path
    #[arg(long)]
    url: Url,
    /// Connections, each with one request at a time
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Threads; default: one per core
    #[arg(long)]
    threads: Option<usize>,
    /// Bytes of a body
    #[arg(long, default_value_t = 500)]
    bytes: usize,
    /// Seconds that no figure contains
    #[arg(long, default_value = "1", value_parser = seconds)]
    warmup: Duration,
    /// Seconds measured
    #[arg(long, default_value = "5", value_parser = seconds)]
    seconds: Duration,
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
        BenchCommand::Dispatcher(args) => dispatcher(args, stop).await,
        BenchCommand::Scheduler(args) => scheduler(args, stop).await,
        BenchCommand::Sink(args) => {
            let stop = stop.clone();
            // It has threads of its own, and blocks until they end.
            tokio::task::spawn_blocking(move || sink(&args, &stop)).await.map_err(Failure::failed)?
        }
        BenchCommand::Page(args) => page(&args),
    }
}

/// What a benchmark is run with, found out from its arguments.
struct Surroundings {
    site: Site,
    loadtest: PathBuf,
    broker_pids: Vec<u32>,
    kafka_data: Option<PathBuf>,
    out: PathBuf,
}

impl Surroundings {
    fn find(args: &BenchArgs, subject: &str) -> Result<Self, Failure> {
        let out = args.out.clone().unwrap_or_else(|| Path::new("target/loadtest").join(subject));
        fs::create_dir_all(&out).map_err(|error| unusable(&out, error))?;
        let servers = Servers::find(&args.env_file)?;
        let mut broker_pids = args.broker_pids.clone();
        let mut kafka_data = args.kafka_data.clone();
        // The stack's files say something about these servers only if it is the stack that runs them.
        if servers.of_stack {
            if broker_pids.is_empty() {
                broker_pids = stack_broker_pids(&args.stack_dir);
            }
            kafka_data = kafka_data.or_else(|| stack_kafka_data(&args.stack_dir));
        }
        let site = Site {
            floodway: args.floodway.clone().map_or_else(floodway_beside_this, Ok)?,
            brokers: servers.brokers,
            database_url: servers.database_url,
            logs: out.clone(),
        };
        let loadtest = std::env::current_exe().map_err(Failure::usage)?;
        Ok(Self { site, loadtest, broker_pids, kafka_data, out })
    }
}

async fn ingest(args: IngestArgs, stop: &CancellationToken) -> Result<ExitCode, Failure> {
    let IngestArgs { bench: args, entropy, threads } = args;
    let Surroundings { site, loadtest, broker_pids, kafka_data, out } = Surroundings::find(&args, "ingest")?;
    let bench = IngestBench {
        site,
        loadtest,
        profile: args.profile,
        only: args.scenarios,
        entropy: match entropy {
            EntropyArg::Text => Entropy::Text,
            EntropyArg::Random => Entropy::Random,
        },
        threads,
        broker_pids,
        kafka_data,
        began: now(),
    };
    let mut live = LiveLine::on_stderr();
    let result = bench.run(&mut live, stop).await;
    live.clear();
    let report = result.map_err(failure)?;
    report::print(&summary::terminal(&report)).map_err(Failure::failed)?;
    write_report(&out, &json(&report)?, &html::page(&report))?;
    if let Some(path) = &args.markdown {
        write_markdown(path, &json(&report)?, |json| markdown::page(&report, json))?;
    }
    ended(&report.faults())
}

async fn dispatcher(args: DispatcherArgs, stop: &CancellationToken) -> Result<ExitCode, Failure> {
    let DispatcherArgs { bench: args, events, seconds } = args;
    let Surroundings { site, loadtest, broker_pids, kafka_data, out } =
        Surroundings::find(&args, "dispatcher")?;
    let bench = DispatcherBench {
        site,
        loadtest,
        profile: args.profile,
        events,
        time: seconds,
        only: args.scenarios,
        broker_pids,
        kafka_data,
        began: now(),
    };
    let mut live = LiveLine::on_stderr();
    let result = Box::pin(bench.run(&mut live, stop)).await;
    live.clear();
    let report = result.map_err(failure)?;
    present(&report, &dispatcher::page::document(&report), &out, args.markdown.as_deref())
}

async fn scheduler(args: SchedulerArgs, stop: &CancellationToken) -> Result<ExitCode, Failure> {
    let SchedulerArgs { bench: args, rows } = args;
    let Surroundings { site, broker_pids, kafka_data, out, .. } = Surroundings::find(&args, "scheduler")?;
    let bench = SchedulerBench {
        site,
        profile: args.profile,
        rows,
        only: args.scenarios,
        broker_pids,
        kafka_data,
        began: now(),
    };
    let mut live = LiveLine::on_stderr();
    let result = Box::pin(bench.run(&mut live, stop)).await;
    live.clear();
    let report = result.map_err(failure)?;
    present(&report, &scheduler::page::document(&report), &out, args.markdown.as_deref())
}

/// Shows a report beside its goals, and keeps it.
fn present(
    report: &GoalReport,
    document: &Document,
    out: &Path,
    markdown: Option<&Path>,
) -> Result<ExitCode, Failure> {
    report::print(&document.terminal()).map_err(Failure::failed)?;
    write_report(out, &json(report)?, &document.html(&report.about))?;
    if let Some(path) = markdown {
        write_markdown(path, &json(report)?, |json| document.markdown(&report.about, json))?;
    }
    ended(&report.faults())
}

/// A benchmark with faults has failed.
fn ended(faults: &[String]) -> Result<ExitCode, Failure> {
    if faults.is_empty() { Ok(ExitCode::SUCCESS) } else { Err(Failure::failed(faults.join("\n  "))) }
}

fn sink(args: &SinkArgs, stop: &CancellationToken) -> Result<ExitCode, Failure> {
    let workers = args.workers.unwrap_or_else(cores);
    let tls = match (&args.listen_tls, &args.certificate, &args.key) {
        (Some(address), Some(certificate), Some(key)) => {
            Some((*address, acceptor(certificate, key).map_err(Failure::usage)?))
        }
        _ => None,
    };
    let sink = Sink::bind(args.listen, workers, tls).map_err(Failure::usage)?;
    let _ = writeln!(std::io::stderr().lock(), "listening on {}", sink.address());
    sink.serve(stop).map_err(Failure::failed)?;
    Ok(ExitCode::SUCCESS)
}

fn page(args: &PageArgs) -> Result<ExitCode, Failure> {
    let mut reports = args.reports.iter().map(|path| read(path));
    // At least one is required.
    let Some(first) = reports.next() else { return Ok(ExitCode::SUCCESS) };
    match first? {
        AnyReport::Ingest(mut report) => {
            if reports.next().is_some() {
                return Err(Failure::usage("reports of ingest cannot be put together"));
            }
            sweep::find_again(&mut report);
            let markdown = |json: &str| markdown::page(&report, json);
            write_pages(args, &json(&report)?, &html::page(&report), markdown, &summary::terminal(&report))
        }
        AnyReport::WithGoals(mut report) => {
            for other in reports {
                match other? {
                    AnyReport::WithGoals(other) if other.about.subject == report.about.subject => {
                        report.merge(other);
                    }
                    _ => return Err(Failure::usage("reports of different subjects have no common page")),
                }
            }
            let document = match report.about.subject.as_str() {
                scheduler::SUBJECT => scheduler::page::document(&report),
                _ => dispatcher::page::document(&report),
            };
            let markdown = |json: &str| document.markdown(&report.about, json);
            write_pages(args, &json(&report)?, &document.html(&report.about), markdown, &document.terminal())
        }
    }
}

/// A kept report.
enum AnyReport {
    Ingest(BenchReport),
    WithGoals(GoalReport),
}

fn read(path: &Path) -> Result<AnyReport, Failure> {
    #[derive(serde::Deserialize)]
    struct Kind {
        format: u32,
        subject: String,
    }
    let text = fs::read_to_string(path).map_err(|error| unusable(path, error))?;
    let Kind { format, subject } = serde_json::from_str(&text).map_err(|error| failure(error.into()))?;
    let has_goals = subject == "dispatcher" || subject == scheduler::SUBJECT;
    let known = if has_goals { figures::FORMAT } else { FORMAT };
    if format != known {
        return Err(Failure::usage(format!("the report has format {format}, this program reads {known}")));
    }
    let report = match has_goals {
        true => serde_json::from_str(&text).map(AnyReport::WithGoals),
        false => serde_json::from_str(&text).map(AnyReport::Ingest),
    };
    report.map_err(|error| failure(error.into()))
}

/// Writes what the arguments ask for; with nothing asked for, the terminal gets it.
fn write_pages(
    args: &PageArgs,
    json: &str,
    html: &str,
    markdown: impl Fn(&str) -> String,
    terminal: &str,
) -> Result<ExitCode, Failure> {
    if let Some(path) = &args.html {
        write(path, html)?;
    }
    match &args.markdown {
        Some(path) => write_markdown(path, json, markdown)?,
        None if args.html.is_none() => report::print(terminal).map_err(Failure::failed)?,
        None => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn write_report(out: &Path, json: &str, html: &str) -> Result<(), Failure> {
    let page = out.join(HTML_FILE);
    write(&out.join(JSON_FILE), json)?;
    write(&page, html)?;
    report::print(&format!("\nThe report is {}\n", page.display())).map_err(Failure::failed)
}

/// Writes a page, and the figures beside it; `page` is told how to name them.
fn write_markdown(path: &Path, json: &str, page: impl Fn(&str) -> String) -> Result<(), Failure> {
    let json_path = path.with_extension("json");
    let name = json_path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    write(&json_path, json)?;
    write(path, &page(&name))
}

fn json(report: &impl serde::Serialize) -> Result<String, Failure> {
    serde_json::to_string_pretty(report).map(|text| text + "\n").map_err(|error| failure(error.into()))
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    fs::write(path, text).map_err(|error| unusable(path, error))
}

fn unusable(path: &Path, reason: std::io::Error) -> Failure {
    failure(FileError::at(path, reason).into())
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
    // They have threads of their own and block until they end.
    let work = move || match command {
        FloorCommand::Http(args) => http_floor(&args, &stop),
        FloorCommand::Producer(args) => producer_floor(args, &stop),
        FloorCommand::Client(args) => client_floor(args, &stop),
    };
    tokio::task::spawn_blocking(work).await.map_err(Failure::failed)?
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn http_floor(args: &HttpArgs, stop: &CancellationToken) -> Result<ExitCode, Failure> {
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
    print_line(&floor.run(stop).map_err(failure)?)
}

fn client_floor(args: ClientArgs, stop: &CancellationToken) -> Result<ExitCode, Failure> {
    let floor = ClientFloor {
        url: args.url,
        connections: args.connections,
        threads: args.threads.unwrap_or_else(cores),
        body_bytes: args.bytes,
        warmup: args.warmup,
        time: args.seconds,
    };
    print_line(&floor.run(stop).map_err(failure)?)
}

/// Figures as one line, for the process that started this one.
fn print_line(figures: &impl serde::Serialize) -> Result<ExitCode, Failure> {
    let line = serde_json::to_string(figures).map_err(Failure::failed)?;
    report::print(&format!("{line}\n")).map_err(Failure::failed)?;
    Ok(ExitCode::SUCCESS)
}
