//! `floodway dev` as a child process that never outlives the demo.
//!
//! The child has a process group of its own, so that Ctrl-C in a terminal reaches only the demo, which then ends the
//! child in order. Beside it runs a guard: a shell that reads words from a pipe held by the demo. A word is the name
//! of a signal to send to the child, or `done`. The end of the pipe without `done` means that the demo is gone, however
//! it ended (SIGKILL included): then the guard ends the child, first with SIGTERM, then with SIGKILL. This takes no
//! unsafe code and no system call that only Linux has.

use super::DemoError;
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt,
    process::{Child, ChildStdin, Command},
};

/// How long Floodway may take to drain after SIGTERM, in seconds: more than its own drain deadlines. The guard allows the
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

/// The running child.
pub struct Floodway {
    child: Child,
    guard: Child,
    orders: ChildStdin,
    log: PathBuf,
}

impl Floodway {
    /// Starts `program dev`; what it prints goes into the file `log`, which is emptied.
    pub fn start(
        program: &Path,
        variables: &BTreeMap<String, String>,
        log: &Path,
    ) -> Result<Self, DemoError> {
        let file = |reason| DemoError::File { path: log.to_owned(), reason };
        let output = File::create(log).map_err(file)?;
        let errors = output.try_clone().map_err(file)?;
        let start = |reason| DemoError::Start { program: program.to_owned(), reason };
        let child = Command::new(program)
            .arg("dev")
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
            .args(["-c", GUARD, "floodway-demo-guard", &pid, &STOP_SECONDS.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|reason| DemoError::Start { program: "sh".into(), reason })?;
        let orders = guard.stdin.take().ok_or_else(|| start(std::io::ErrorKind::BrokenPipe.into()))?;
        Ok(Self { child, guard, orders, log: log.to_owned() })
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Returns when it has ended, which it never does by itself unless something is wrong.
    pub async fn ended(&mut self) -> DemoError {
        let status = match self.child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        DemoError::Ended { status, log: last_lines(&self.log) }
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
