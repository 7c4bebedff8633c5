//! One role as a process that can be killed, asked to end, and started again.

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use std::{
    collections::BTreeMap,
    fs::File,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::{
        LazyLock,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

/// How long a role may take to become ready, or to end when asked.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// How often readiness is asked for.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// A role's process.
#[derive(Debug)]
pub struct Role {
    /// The subcommand of `floodway`.
    pub name: &'static str,
    environment: BTreeMap<String, String>,
    admin: SocketAddr,
    log: PathBuf,
    child: Option<Child>,
}

/// The `floodway` binary of the same build as this test.
///
/// # Errors
/// When it has not been built.
pub fn binary() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let folder = test.parent().and_then(|deps| deps.parent()).context("the test has no build folder")?;
    let binary = folder.join("floodway");
    ensure!(binary.exists(), "{} is not there: run `cargo build --package floodway`", binary.display());
    Ok(binary)
}

/// Ports that roles listen on: below those that the system takes for outgoing connections, so that none is taken between
/// choosing it and listening, nor while a role is down; and below those of `scripts/stack`.
const PORTS: std::ops::Range<u16> = 10_000..20_000;

/// A loopback port that is free, and that this process does not give out again soon.
///
/// # Errors
/// When there is none.
pub fn free_port() -> Result<u16> {
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(rand::random()));
    for _ in PORTS {
        let port = PORTS.start + NEXT.fetch_add(1, Ordering::Relaxed) % (PORTS.end - PORTS.start);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no port between {} and {} is free", PORTS.start, PORTS.end)
}

/// A command of the binary with only the given settings.
///
/// # Errors
/// When the binary has not been built.
pub fn command(environment: &BTreeMap<String, String>) -> Result<Command> {
    let mut command = Command::new(binary()?);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("FLOODWAY_")) {
        command.env_remove(name);
    }
    command.envs(environment);
    Ok(command)
}

impl Role {
    /// A role with its settings, not started yet. Its log goes to a file in `folder`.
    ///
    /// # Errors
    /// When no port is free.
    pub fn new(
        name: &'static str,
        mut environment: BTreeMap<String, String>,
        folder: &std::path::Path,
    ) -> Result<Self> {
        let admin = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        environment.insert("FLOODWAY_ADMIN__LISTEN".to_owned(), admin.to_string());
        Ok(Self { name, environment, admin, log: folder.join(format!("{name}.log")), child: None })
    }

    /// Overrides a setting for the next start.
    pub fn set(&mut self, variable: &str, value: impl ToString) {
        self.environment.insert(variable.to_owned(), value.to_string());
    }

    /// Starts the process, without waiting for it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "{} runs already", self.name);
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = command(&self.environment)?;
        command.arg(self.name).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        self.child = Some(command.spawn()?);
        Ok(())
    }

    /// Waits until the process says that it is ready.
    ///
    /// # Errors
    /// When it ends instead, or takes longer than [`DEADLINE`]; the error has the end of its log.
    pub async fn ready(&mut self) -> Result<()> {
        self.answers("ready").await
    }

    /// Waits until `/health/<name>` answers 200.
    ///
    /// # Errors
    /// As [`Role::ready`].
    pub async fn answers(&mut self, health: &str) -> Result<()> {
        let end = Instant::now() + DEADLINE;
        while self.health(health).await != Some(200) {
            self.runs()?;
            if Instant::now() >= end {
                let report = self.report().await;
                bail!("{} did not become {health}:\n{report}\n{}", self.name, self.log_tail());
            }
            sleep(ASK_EVERY).await;
        }
        Ok(())
    }

    /// Status of `/health/<name>`; `None` without an answer.
    pub async fn health(&self, name: &str) -> Option<u16> {
        let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        let url = format!("http://{}/health/{name}", self.admin).parse().ok()?;
        Some(client.get(url).await.ok()?.status().as_u16())
    }

    /// The detailed health report, as text; empty without an answer.
    pub async fn report(&self) -> String {
        self.get("/health/detailed").await.unwrap_or_default()
    }

    /// Waits until the detailed health report has all of `words`.
    ///
    /// # Errors
    /// When it has not within [`DEADLINE`], or the process ended.
    pub async fn reports(&mut self, words: &[&str]) -> Result<String> {
        let end = Instant::now() + DEADLINE;
        loop {
            let report = self.report().await;
            if words.iter().all(|word| report.contains(word)) {
                return Ok(report);
            }
            self.runs()?;
            ensure!(Instant::now() < end, "{} does not report {words:?}: {report}", self.name);
            sleep(ASK_EVERY).await;
        }
    }

    /// The process's id.
    ///
    /// # Errors
    /// When it ended.
    pub fn runs(&mut self) -> Result<u32> {
        let child = self.child.as_mut().context("not started")?;
        if let Some(status) = child.try_wait()? {
            bail!("{} ended with {status}:\n{}", self.name, self.log_tail());
        }
        child.id().context("ended already")
    }

    /// Value of a metric, by its name and labels; `None` without an answer or without the metric.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let text = self.get("/metrics").await?;
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }

    async fn get(&self, path: &str) -> Option<String> {
        let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        let url = format!("http://{}{path}", self.admin).parse().ok()?;
        let text = client.get(url).await.ok()?.into_body().collect().await.ok()?.to_bytes();
        Some(String::from_utf8_lossy(&text).into_owned())
    }

    /// SIGKILL: what a crash looks like.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("not started")?;
        child.kill().await?;
        Ok(())
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// When it does not run, or does not end within [`DEADLINE`].
    pub async fn terminate(&mut self) -> Result<ExitStatus> {
        let mut child = self.child.take().context("not started")?;
        let pid = child.id().context("ended already")?.to_string();
        ensure!(Command::new("kill").args(["-TERM", &pid]).status().await?.success(), "kill -TERM {pid}");
        let status = timeout(DEADLINE, child.wait()).await;
        status
            .with_context(|| format!("{} did not end after SIGTERM:\n{}", self.name, self.log_tail()))?
            .map_err(Into::into)
    }

    /// The process's log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The end of the process's log, for failures.
    pub fn log_tail(&self) -> String {
        const LINES: usize = 30;
        let text = self.log();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }
}
