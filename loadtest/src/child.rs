//! A child process that never outlives this one: a role of Floodway, all of them, or a floor of a benchmark.
//!
//! The child has a process group of its own, so that Ctrl-C in a terminal reaches only this process, which then ends the
//! child in order. Beside it runs a guard: a shell that reads words from a pipe held by this process. A word is the name
//! of a signal to send to the child, or `done`. The end of the pipe without `done` means that this process is gone,
//! however it ended (SIGKILL included): then the guard ends the child, first with SIGTERM, then with SIGKILL. This takes
//! no unsafe code and no system call that only Linux has.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};
use thiserror::Error;
use tokio::{
    io::AsyncWriteExt,
    process::{Child, ChildStdin, Command},
};

/// How long a child may take to drain after SIGTERM, in seconds: more than Floodway's own drain deadlines. The guard allows the
/// same.
const STOP_SECONDS: u64 = 40;
/// Most of the log's end that is shown, in bytes.
const TAIL_BYTES: u64 = 16 * 1024;

const GUARD: &str = r#"
trap '' HUP INT TERM
pid=$1 seconds=$2
while read -r word; do
  case $word in
    done) exit 0 ;;
    *) kill -s "$word" "$pid" 2>/dev/null ;;
  esac
done
kill -s TERM "$pid" 2>/dev/null || exit 0
while [ "$seconds" -gt 0 ]; do
  sleep 1
  kill -s 0 "$pid" 2>/dev/null || exit 0
  seconds=$((seconds - 1))
done
kill -s KILL "$pid" 2>/dev/null
"#;

/// Why a child does not run.
#[derive(Debug, Error)]
pub enum ChildError {
    /// Its log cannot be written.
    #[error("{}: {reason}", path.display())]
    Log {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: std::io::Error,
    },
    /// A program cannot be started.
    #[error("{} cannot be started: {reason}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        reason: std::io::Error,
    },
    /// It ended by itself.
    #[error("{command} ended by itself ({status}); its last lines were:\n{log}")]
    Ended {
        /// The program's name and its arguments.
        command: String,
        /// How it ended.
        status: String,
        /// End of its log.
        log: String,
    },
}

/// The running child.
pub struct GuardedChild {
    command: String,
    child: Child,
    guard: Child,
    orders: ChildStdin,
    log: PathBuf,
}

impl GuardedChild {
    /// Starts a program; what it prints goes into the file `log`, which is emptied.
    pub fn start(
        program: &Path,
        arguments: &[&str],
        variables: &BTreeMap<String, String>,
        log: &Path,
    ) -> Result<Self, ChildError> {
        let file = |reason| ChildError::Log { path: log.to_owned(), reason };
        let output = File::create(log).map_err(file)?;
        let errors = output.try_clone().map_err(file)?;
        let start = |reason| ChildError::Start { program: program.to_owned(), reason };
        let child = Command::new(program)
            .args(arguments)
            .envs(variables)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(start)?;
        // A child that was not awaited has an id.
        let pid = child.id().unwrap_or_default().to_string();
        let mut guard = Command::new("sh")
            .args(["-c", GUARD, "floodway-child-guard", &pid, &STOP_SECONDS.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|reason| ChildError::Start { program: "sh".into(), reason })?;
        let orders = guard.stdin.take().ok_or_else(|| start(std::io::ErrorKind::BrokenPipe.into()))?;
        let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy();
        let command = std::iter::once(&*name).chain(arguments.iter().copied()).collect::<Vec<_>>().join(" ");
        Ok(Self { command, child, guard, orders, log: log.to_owned() })
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Returns when it has ended, which it never does by itself unless something is wrong.
    pub async fn ended(&mut self) -> ChildError {
        let status = match self.child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        ChildError::Ended { command: self.command.clone(), status, log: last_lines(&self.log) }
    }

    /// SIGTERM, and SIGKILL if it has not drained in time. Returns its exit status, or `None` if it had to be killed.
    pub async fn stop(mut self) -> Option<ExitStatus> {
        // If the guard is gone, the deadline below ends the child all the same.
        let _ = self.orders.write_all(b"TERM\n").await;
        let ended = tokio::time::timeout(Duration::from_secs(STOP_SECONDS), self.child.wait()).await;
        if ended.is_err() {
            // Fails only if it has just ended.
            let _ = self.child.kill().await;
        }
        let _ = self.orders.write_all(b"done\n").await;
        drop(self.orders);
        let _ = self.guard.wait().await;
        ended.ok()?.ok()
    }
}

/// The last lines of a log, for an error message.
pub fn last_lines(log: &Path) -> String {
    const LINES: usize = 20;
    let read = || -> std::io::Result<String> {
        let mut file = File::open(log)?;
        let length = fs::metadata(log)?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut tail = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut tail)?;
        Ok(String::from_utf8_lossy(&tail).into_owned())
    };
    let text = read().unwrap_or_else(|error| format!("(cannot be read: {error})"));
    if text.is_empty() {
        return "  (it printed nothing)\n".to_owned();
    }
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].iter().map(|line| format!("  {line}\n")).collect()
}
