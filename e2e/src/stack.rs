//! The servers under the pipeline: the shared ones, or a stack of the test's own that it may break.

use anyhow::{Context, Result, ensure};
use std::{
    path::{Path, PathBuf},
    process::Output,
};
use tokio::process::Command;

/// Addresses of Kafka and PostgreSQL, and the script that runs them.
#[derive(Debug)]
pub struct Stack {
    /// `host:port` of Kafka.
    pub brokers: String,
    /// URL of PostgreSQL.
    pub database_url: String,
    /// The folder of a stack of our own; the shared one has none, so that no test breaks it.
    own: Option<PathBuf>,
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
        })
    }

    /// Starts servers of the test's own, in a fresh folder. Stop them with [`Stack::remove`].
    ///
    /// # Errors
    /// When the script does not bring them up.
    pub async fn own(name: &str) -> Result<Self> {
        let folder = root().join(".stack").join(format!("{name}-{:08x}", rand::random::<u32>()));
        let mut stack = Self { brokers: String::new(), database_url: String::new(), own: Some(folder) };
        stack.script(&["up"]).await?;
        let env = String::from_utf8(stack.script(&["env"]).await?.stdout)?;
        let value = |name: &str| -> Result<String> {
            let line = env
                .lines()
                .find_map(|line| line.strip_prefix("export ")?.strip_prefix(name)?.strip_prefix('='));
            Ok(line
                .with_context(|| format!("{name} is not in the stack's env file"))?
                .trim_matches('\'')
                .to_owned())
        };
        stack.brokers = value("FLOODWAY_KAFKA_BROKERS")?;
        stack.database_url = value("FLOODWAY_DATABASE_URL")?;
        Ok(stack)
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
    pub async fn remove(self) -> Result<()> {
        if let Some(folder) = &self.own {
            self.script(&["reset"]).await?;
            tokio::fs::remove_dir_all(folder).await?;
        }
        Ok(())
    }

    async fn script(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(root().join("scripts/stack"));
        command.args(arguments);
        if let Some(folder) = &self.own {
            // Its servers are this folder's, whatever the environment names.
            command.env("STACK_DIR", folder);
            command
                .env_remove("FLOODWAY_KAFKA_BROKERS")
                .env_remove("FLOODWAY_DATABASE_URL")
                .env_remove("STACK_ENV");
        }
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
}
