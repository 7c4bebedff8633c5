//! The command line.

use crate::{
    config::Settings,
    error::Error,
    operate, process,
    process::Role,
    recover,
    retries::{self, RetriesCommand},
};
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Accepts events over HTTP, keeps them in Kafka, delivers them to webhooks, retries on schedule.
#[derive(Debug, Parser)]
#[command(name = "floodway", version, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    /// Settings in TOML; every one can be overridden by a FLOODWAY_* variable.
    #[arg(long, short, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 wrong usage, 69 Kafka or PostgreSQL not reachable, \
                          78 a setting is missing or wrong (the line on standard error names it).";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Accept events: POST /v1/events
    Ingest,
    /// Deliver events to subscribers' webhooks
    Dispatcher,
    /// Keep retries, dead letters and history in PostgreSQL
    RetryScheduler,
    /// Serve the REST API for tenants, keys, subscriptions and replays
    ControlPlane,
    /// Run all roles in one process; creates topics and tables first
    Dev,
    /// Bring the database's tables up to date
    Migrate,
    /// After PostgreSQL was restored from a backup: bring tenants, keys and subscriptions up to what the config topic has
    RecoverConfiguration {
        /// Say what would be done, and do nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Work with the Kafka topics
    Topics {
        #[command(subcommand)]
        command: TopicsCommand,
    },
    /// Look at pending retries, make them now, cancel them
    Retries {
        #[command(subcommand)]
        command: RetriesCommand,
    },
    /// Check the settings of all roles together, so all of them must be there; print nothing if they are right
    Validate,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TopicsCommand {
    /// Create missing topics and check all of them
    Apply(TopicsApply),
}

#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct TopicsApply {
    /// Partitions of every topic but `config`, which has one
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(i32).range(1..=10_000))]
    pub(crate) partitions: i32,
    /// Replicas of every topic
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(i32).range(1..=100))]
    pub(crate) replication: i32,
    /// Accept fewer than 3 replicas: an acknowledged event may then be lost with one broker
    #[arg(long)]
    pub(crate) dev: bool,
}

/// Runs one command to its end.
pub(crate) async fn execute(command: Command, settings: Settings) -> Result<(), Error> {
    match command {
        Command::Ingest => process::run(&[Role::Ingest], settings).await,
        Command::Dispatcher => process::run(&[Role::Dispatcher], settings).await,
        Command::RetryScheduler => process::run(&[Role::RetryScheduler], settings).await,
        Command::ControlPlane => process::run(&[Role::ControlPlane], settings).await,
        Command::Dev => {
            operate::prepare_dev(&settings).await?;
            process::run(&Role::ALL, settings).await
        }
        Command::Migrate => operate::migrate(&settings).await,
        Command::RecoverConfiguration { dry_run } => recover::recover_configuration(&settings, dry_run).await,
        Command::Topics { command: TopicsCommand::Apply(plan) } => {
            operate::apply_topics(&settings, plan).await
        }
        Command::Retries { command } => retries::execute(command, &settings).await,
        Command::Validate => settings.validate(&Role::ALL),
    }
}
