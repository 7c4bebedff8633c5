//! The servers under the pipeline: the shared ones, or a stack of the test's own that it may break.

use anyhow::{Context, Result, ensure};
use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
};
use tokio::process::Command;

/// Stands in the place of PostgreSQL's URL where a stack is to run Kafka only.
const NO_DATABASE: &str = "postgres://none@127.0.0.1:1/none";

/// Stands in the place of Kafka's address where a stack is to run PostgreSQL only.
const NO_KAFKA: &str = "127.0.0.1:1";

/// Addresses of Kafka and PostgreSQL, and the script that runs them.
#[derive(Debug)]
pub struct Stack {
    /// `host:port` of Kafka.
    pub brokers: String,
    /// URL of PostgreSQL.
    pub database_url: String,
    /// The folder of a stack of our own; the shared one has none, so that no test breaks it.
    own: Option<PathBuf>,
    /// Whether Kafka is part of it.
    with_kafka: bool,
    /// Whether PostgreSQL is part of it.
    with_database: bool,
    /// What the stack's env file says.
    env: String,
}

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/")).to_owned()
}

impl Stack {
    /// The servers named by `FLOODWAY_KAFKA_BROKERS` and `FLOODWAY_DATABASE_URL`. Tests must not stop them.
    ///
    /// # Errors
    /// When a variable is not set: a missing server fails a test, it never skips one.
    pub fn shared() -> Result<Self> {
        let variable = |name: &str| {
            std::env::var(name)
                .with_context(|| format!("{name} is not set: run `scripts/stack up` and `. .stack/env`"))
        };
        Ok(Self {
            brokers: variable("FLOODWAY_KAFKA_BROKERS")?,
            database_url: variable("FLOODWAY_DATABASE_URL")?,
            own: None,
            with_kafka: true,
            with_database: true,
            env: String::new(),
        })
    }

    /// Starts servers of the test's own, in a fresh folder. Stop them with [`Stack::remove`].
    ///
    /// # Errors
    /// When the script does not bring them up.
    pub async fn own(name: &str) -> Result<Self> {
        Self::start_own(name, true, true, &[]).await
    }

    /// The same, with a PostgreSQL that archives what it writes, for [`crate::backup`].
    ///
    /// # Errors
    /// When the script does not bring them up.
    pub async fn archiving(name: &str) -> Result<Self> {
        Self::start_own(name, true, true, &["--archive"]).await
    }

    /// Starts PostgreSQL alone, in a fresh folder. Stop it with [`Stack::remove`].
    ///
    /// # Errors
    /// When the script does not bring it up.
    pub async fn postgres(name: &str) -> Result<Self> {
        Self::start_own(name, false, true, &["--archive"]).await
    }

    /// Starts Kafka alone, in a fresh folder, with options of `scripts/stack up`. Stop it with [`Stack::remove`].
    ///
    /// # Errors
    /// When the script does not bring it up.
    pub async fn kafka(name: &str, options: &[&str]) -> Result<Self> {
        Self::start_own(name, true, false, options).await
    }

    async fn start_own(name: &str, with_kafka: bool, with_database: bool, options: &[&str]) -> Result<Self> {
        let folder = root().join(".stack").join(format!("{name}-{:08x}", rand::random::<u32>()));
        let own = Some(folder);
        let mut stack = Self {
            brokers: String::new(),
            database_url: String::new(),
            own,
            with_kafka,
            with_database,
            env: String::new(),
        };
        stack.script(&[&["up"], options].concat()).await?;
        stack.env = String::from_utf8(stack.script(&["env"]).await?.stdout)?;
        stack.brokers = stack.value("FLOODWAY_KAFKA_BROKERS")?;
        stack.database_url = stack.value("FLOODWAY_DATABASE_URL")?;
        Ok(stack)
    }

    /// A value of the stack's env file.
    ///
    /// # Errors
    /// When it is not there.
    pub fn value(&self, name: &str) -> Result<String> {
        let line = self
            .env
            .lines()
            .find_map(|line| line.strip_prefix("export ")?.strip_prefix(name)?.strip_prefix('='));
        let value = line.with_context(|| format!("{name} is not in the stack's env file"))?;
        Ok(value.trim_matches('\'').to_owned())
    }

    /// Does something to servers of the test's own, such as `kill kafka-1`, `pause kafka` or `start kafka-1 kafka-2`.
    ///
    /// # Errors
    /// When the stack is the shared one, or the script fails.
    pub async fn fault(&self, command: &str) -> Result<()> {
        ensure!(self.own.is_some(), "the shared servers must not be disturbed");
        self.script(&command.split_whitespace().collect::<Vec<_>>()).await.map(drop)
    }

    /// Stops a server (`kafka` or `postgres`); its data stays.
    ///
    /// # Errors
    /// When the stack is the shared one, or the script fails.
    pub async fn stop(&self, server: &str) -> Result<()> {
        ensure!(self.own.is_some(), "the shared servers must not be stopped");
        self.script(&["stop", server]).await.map(drop)
    }

    /// Starts a stopped server on the same port, and waits until it answers.
    ///
    /// # Errors
    /// When the stack is the shared one, or the script fails.
    pub async fn start(&self, server: &str) -> Result<()> {
        ensure!(self.own.is_some(), "the shared servers run already");
        self.script(&["start", server]).await.map(drop)
    }

    /// Runs one of Kafka's own tools and returns what it prints.
    ///
    /// # Errors
    /// When the tool fails; the error has its output.
    pub async fn kafka_tool(&self, arguments: &[&str]) -> Result<String> {
        let arguments = [&["kafka-tool"], arguments].concat();
        Ok(String::from_utf8_lossy(&self.script(&arguments).await?.stdout).into_owned())
    }

    /// Stops the test's own servers and removes their data.
    ///
    /// # Errors
    /// When the script fails.
    pub async fn remove(mut self) -> Result<()> {
        if self.own.is_some() {
            self.script(&["reset"]).await?;
        }
        if let Some(folder) = self.own.take() {
            tokio::fs::remove_dir_all(folder).await?;
        }
        Ok(())
    }

    async fn script(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::from(self.command());
        command.args(arguments);
        let output = command.output().await?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(
            output.status.success(),
            "scripts/stack {}: {}\n{out}\n{err}",
            arguments.join(" "),
            output.status
        );
        Ok(output)
    }

    fn command(&self) -> std::process::Command {
        let mut command = std::process::Command::new(root().join("scripts/stack"));
        if let Some(folder) = &self.own {
            // Its servers are this folder's, whatever the environment names.
            command.env("STACK_DIR", folder);
            command.env_remove("FLOODWAY_KAFKA_BROKERS").env_remove("FLOODWAY_DATABASE_URL");
            if !self.with_kafka {
                command.env("FLOODWAY_KAFKA_BROKERS", NO_KAFKA).env_remove("STACK_KAFKA_BROKERS");
            }
            if !self.with_database {
                command.env("FLOODWAY_DATABASE_URL", NO_DATABASE).env_remove("STACK_DATABASE_URL");
            }
        }
        command
    }
}

/// A test that failed leaves the data and the logs of its servers, and not the servers.
impl Drop for Stack {
    fn drop(&mut self) {
        if self.own.is_some() {
            let _ = self.command().arg("down").stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
    }
}
