//! The command line.

use crate::{
    bench_command::{self, BenchCommand, FloorCommand},
    load_command::{self, LoadArgs},
};
use clap::{Args, Parser, Subcommand};
use floodway_loadtest::{
    demo::{self, DemoError, DemoOptions, environment::Listeners},
    receive::{LEDGER_PATH, Receiver, ReceiverConfig, ledger::Bounds},
    report,
    send::{
        SendError, SendPlan,
        payload::Payload,
        record::{MAX_EVENTS, SendRecord},
        send,
    },
};
use std::{
    fmt::Display,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};
use tokio_util::sync::CancellationToken;

const EXIT_CODES: &str = "\
Results go to stdout, progress and errors to stderr; there are no colours.
Exit codes: 0 done; 1 failed, or something does not add up (the reason is on stderr); 2 wrong usage or environment.";

/// Sends events to Floodway, receives its webhooks, and accounts for every one of them.
#[derive(Debug, Parser)]
#[command(name = "loadtest", version, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start Floodway with a healthy, a flaky and a dead endpoint, send events, and show what became of each
    #[command(after_help = EXIT_CODES)]
    Demo(DemoArgs),
    /// Send events and measure how they are accepted
    #[command(after_help = EXIT_CODES)]
    Send(SendArgs),
    /// Send events on a schedule or as fast as possible, and measure what ingest makes of it
    #[command(after_help = EXIT_CODES)]
    Load(Box<LoadArgs>),
    /// Receive webhooks; the path of a URL says how it answers
    #[command(after_help = RECEIVE_HELP)]
    Receive(ReceiveArgs),
    /// Measure Floodway's processes under load, and write a report
    Bench {
        #[command(subcommand)]
        command: BenchCommand,
    },
    /// Be what a benchmark compares with
    Floor {
        #[command(subcommand)]
        command: FloorCommand,
    },
}

const RECEIVE_HELP: &str = "\
Paths (what follows is a label, for example /ok/orders; labels are counted apart):
  /ok               200
  /fail/2           fails twice for each webhook-id, then 200; ?status=503 instead of 500
  /status/500       always this status
  /delay/100ms      200 after a wait, also /delay/2s
  /hang             never answers
  /drip             200, then a byte a second without end
  /gone             410
  /redirect         302
  /reset            closes the connection instead of answering
  /big              200, then a body without end
  ?retry-after=3    adds the header to every answer that is not a success
  /_ledger          what arrived so far, as JSON; it is also printed at the end

A refused signature is answered 401. Timestamps may be five minutes off.
Exit codes: 0 stopped by a signal; 1 failed; 2 wrong usage.";

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// End after the table: exit code 0 only if every delivery is accounted for
    #[arg(long)]
    once: bool,
    /// Events to send
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=300_000))]
    events: u64,
    /// Events of one request
    #[arg(long, default_value_t = 50)]
    batch: usize,
    /// Connections to ingest
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Events per second, at most; default: as fast as the answers come
    #[arg(long)]
    rate: Option<f64>,
    /// The floodway binary; default: beside this one
    #[arg(long, value_name = "PATH")]
    floodway: Option<PathBuf>,
    /// Where Kafka and PostgreSQL are, as scripts/stack writes it; variables of the environment win
    #[arg(long, value_name = "FILE", default_value = ".stack/env")]
    env_file: PathBuf,
    /// Directory for the log of Floodway and the sealing key of the stack
    #[arg(long, value_name = "DIR", default_value = ".stack")]
    stack_dir: PathBuf,
    /// Where ingest listens; a free port is taken instead of a taken one
    #[arg(long, default_value = "127.0.0.1:8080")]
    ingest: SocketAddr,
    /// Where the control plane listens, likewise
    #[arg(long, default_value = "127.0.0.1:8081")]
    control_plane: SocketAddr,
    /// Where health and metrics are served, likewise
    #[arg(long, default_value = "127.0.0.1:8082")]
    admin: SocketAddr,
    /// Port of the receiver; 0 takes a free one
    #[arg(long, default_value_t = 0)]
    receiver_port: u16,
    /// Seconds for Floodway to become ready
    #[arg(long, default_value_t = 60)]
    ready_deadline: u64,
    /// Seconds for all deliveries to end, from the first event on
    #[arg(long, default_value_t = 300)]
    deadline: u64,
}

#[derive(Debug, Args)]
pub(crate) struct SendArgs {
    /// Base URL of ingest
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// API key of a tenant
    #[arg(long, env = "API_KEY", hide_env_values = true)]
    key: String,
    /// Events to send
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=MAX_EVENTS))]
    events: u64,
    /// Events of one request
    #[arg(long, default_value_t = 100)]
    batch: usize,
    /// Connections, each with one request at a time
    #[arg(long, default_value_t = 8)]
    connections: usize,
    /// Bytes of each event's data; default: sample events of about 500 bytes
    #[arg(long)]
    bytes: Option<usize>,
    /// Type of events with --bytes
    #[arg(long = "type", default_value = "load.event", value_parser = plain_text)]
    event_type: String,
    /// Events per second, at most
    #[arg(long)]
    rate: Option<f64>,
    /// Times that an event is sent before it counts as never acknowledged
    #[arg(long, default_value_t = 8)]
    tries: u32,
    /// Start of the events' ids, which go on with their number; default: random
    #[arg(long, value_parser = plain_text)]
    run: Option<String>,
    /// Print the result as one line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ReceiveArgs {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:9000")]
    listen: SocketAddr,
    /// Require signatures with this secret on a path; several for one path allow any of them
    #[arg(long = "secret", value_name = "PATH=whsec_…", value_parser = path_and_secret)]
    secrets: Vec<(String, String)>,
    /// Webhook-ids to remember, in all paths together; about 250 bytes each
    #[arg(long, default_value_t = Bounds::default().entries)]
    entries: usize,
    /// Connections at a time
    #[arg(long, default_value_t = ReceiverConfig::default().connections)]
    connections: usize,
}

/// What to say, and how to exit.
pub(crate) struct Failure {
    pub(crate) message: String,
    pub(crate) code: ExitCode,
}

impl Failure {
    pub(crate) fn failed(message: impl Display) -> Self {
        Self { message: message.to_string(), code: ExitCode::from(1) }
    }

    pub(crate) fn usage(message: impl Display) -> Self {
        Self { message: message.to_string(), code: ExitCode::from(2) }
    }
}

/// Runs one command to its end, or until `stop`.
pub(crate) async fn execute(command: Command, stop: &CancellationToken) -> Result<ExitCode, Failure> {
    match command {
        Command::Demo(args) => Box::pin(run_demo(args, stop)).await,
        Command::Send(args) => run_send(args, stop).await,
        Command::Load(args) => Box::pin(load_command::load(*args, stop)).await,
        Command::Receive(args) => run_receive(args, stop).await,
        Command::Bench { command } => Box::pin(bench_command::bench(command, stop)).await,
        Command::Floor { command } => bench_command::floor(command, stop).await,
    }
}

async fn run_demo(args: DemoArgs, stop: &CancellationToken) -> Result<ExitCode, Failure> {
    let wanted = Listeners { ingest: args.ingest, control_plane: args.control_plane, admin: args.admin };
    let options = DemoOptions {
        floodway: args.floodway.map_or_else(floodway_beside_this, Ok)?,
        // Without the file the environment has to say where the servers are; if it does not, the error names what to do.
        env_file: args.env_file.exists().then_some(args.env_file),
        stack_dir: args.stack_dir,
        listeners: wanted.or_free().map_err(Failure::failed)?,
        receiver_port: args.receiver_port,
        events: args.events,
        batch: args.batch,
        connections: args.connections,
        rate: args.rate,
        once: args.once,
        ready_deadline: Duration::from_secs(args.ready_deadline),
        deadline: Duration::from_secs(args.deadline),
    };
    std::fs::create_dir_all(&options.stack_dir).map_err(Failure::usage)?;
    let faults = demo::run(&options, stop).await.map_err(|error| match error {
        error if error.is_usage() => Failure::usage(error),
        DemoError::Send(SendError::Zero(_)) => Failure::usage(error),
        error => Failure::failed(error),
    })?;
    if faults.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    Err(Failure::failed(format!("not everything adds up:\n  {}", faults.join("\n  "))))
}

pub(crate) fn floodway_beside_this() -> Result<PathBuf, Failure> {
    let this = std::env::current_exe().map_err(Failure::usage)?;
    let path = this.parent().unwrap_or(Path::new("")).join("floodway");
    if path.exists() {
        return Ok(path);
    }
    Err(Failure::usage(format!("there is no {}: build it, or name it with --floodway", path.display())))
}

async fn run_send(args: SendArgs, stop: &CancellationToken) -> Result<ExitCode, Failure> {
    let payload = match args.bytes {
        Some(bytes) => Payload::Sized { event_type: args.event_type, bytes },
        None => Payload::Sample,
    };
    let plan = SendPlan {
        url: args.url,
        key: args.key,
        payload,
        batch: args.batch,
        connections: args.connections,
        rate: args.rate,
        tries: args.tries,
        ..SendPlan::default()
    };
    let run = args.run.unwrap_or_else(|| format!("load-{:08x}", rand::random::<u32>()));
    let record = Arc::new(SendRecord::new(run, args.events));
    let sent = send(&plan, &record, stop).await.map_err(|error| match error {
        SendError::Target(_) | SendError::Zero(_) => Failure::usage(error),
        SendError::Unauthorized(_) | SendError::Worker(_) => Failure::failed(error),
    })?;
    let text = if args.json { report::send_json(&sent) } else { report::send_text(&sent) };
    report::print(&text).map_err(Failure::failed)?;
    if sent.tally.accepted == args.events {
        return Ok(ExitCode::SUCCESS);
    }
    let missed = args.events - sent.tally.accepted;
    Err(Failure::failed(format!("{} of {} events were not accepted", missed, args.events)))
}

async fn run_receive(args: ReceiveArgs, stop: &CancellationToken) -> Result<ExitCode, Failure> {
    let config = ReceiverConfig {
        ledger: Bounds { entries: args.entries, ..Bounds::default() },
        connections: args.connections,
        captured: 0,
    };
    let receiver = Receiver::bind(args.listen, config)
        .await
        .map_err(|error| Failure::failed(format!("{}: {error}", args.listen)))?;
    for (path, _) in &args.secrets {
        let of_path: Vec<&str> = args
            .secrets
            .iter()
            .filter(|(other, _)| other == path)
            .map(|(_, secret)| secret.as_str())
            .collect();
        receiver.set_secrets(path, &of_path).map_err(Failure::usage)?;
    }
    let _ = writeln!(std::io::stderr().lock(), "receiving; the ledger is {}", receiver.url(LEDGER_PATH));
    stop.cancelled().await;
    receiver.stop().await;
    // Maps of strings to integers: always serialisable.
    let summary = serde_json::to_string_pretty(&receiver.summary()).map_err(Failure::failed)?;
    report::print(&format!("{summary}\n")).map_err(Failure::failed)?;
    Ok(ExitCode::SUCCESS)
}

fn path_and_secret(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((path, secret)) if path.starts_with('/') => Ok((path.to_owned(), secret.to_owned())),
        _ => Err("must be PATH=SECRET, for example /ok=whsec_…".to_owned()),
    }
}

/// Text that goes into JSON and identifiers as it is.
pub(crate) fn plain_text(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    if (1..=100).contains(&text.len()) && text.bytes().all(plain) {
        return Ok(text.to_owned());
    }
    Err("must be 1 to 100 letters, digits, '.', '-' or '_'".to_owned())
}
