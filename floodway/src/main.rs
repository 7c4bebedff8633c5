//! `floodway`: one binary, a subcommand per role, and the operator's commands.

mod command;
mod config;
mod error;
mod operate;
mod process;
mod recover;
mod retries;
mod table;

use clap::Parser;
use command::Cli;
use error::Error;
use std::{process::ExitCode, time::Duration};

/// Allocation is a large part of the hot paths' cost; jemalloc keeps it low and returns memory after a burst.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// How long blocking work may take to end once the command has: longer waits are bounded where they are begun, and a thread that
/// hangs must not keep the process.
const END_PATIENCE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error.report();
            error.exit_code()
        }
    }
}

/// The life of the process: settings, logs, runtime, then the command until it ends.
fn run(cli: Cli) -> Result<(), Error> {
    let settings = config::Settings::load(cli.config.as_deref())?;
    floodway_runtime::logging::start(&settings.log, settings.log_format).map_err(Error::settings)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Error::Runtime)?;
    let result = runtime.block_on(command::execute(cli.command, settings));
    runtime.shutdown_timeout(END_PATIENCE);
    result
}
