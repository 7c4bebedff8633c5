//! `loadtest`: a webhook sink, an event sender, the demo of Floodway, and its benchmarks.

mod bench_command;
mod command;
mod load_command;

use clap::Parser;
use std::{io::Write, process::ExitCode};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

#[tokio::main]
async fn main() -> ExitCode {
    let cli = command::Cli::parse();
    let stop = CancellationToken::new();
    let signals = TaskTracker::new();
    signals.spawn(cancel_on_signal(stop.clone()));
    match command::execute(cli.command, &stop).await {
        Ok(code) => code,
        Err(failure) => {
            // Nobody can be told that stderr is gone.
            let _ = writeln!(std::io::stderr().lock(), "loadtest: {}", failure.message);
            failure.code
        }
    }
}

/// Ctrl-C, SIGTERM, and the end of the terminal.
async fn cancel_on_signal(stop: CancellationToken) {
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let [Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)] = kinds.map(signal) else {
        // Without handlers the signals keep their default: they end the process.
        return;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    stop.cancel();
}
