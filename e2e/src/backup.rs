//! Backups of a stack's PostgreSQL, taken and brought back by the scripts that operators use.

use crate::stack::{Stack, root};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use tokio::process::Command;

/// A base backup.
#[derive(Debug)]
pub struct Backup {
    folder: PathBuf,
    archive: String,
}

/// Where a stack's PostgreSQL listens, and the password of its users.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// `host:port`.
    pub address: String,
    /// Of `floodway` and `floodway_backup`.
    pub password: String,
}

/// What a backup is brought back as.
#[derive(Debug, Clone, Copy)]
pub enum How<'h> {
    /// As the server was when its archive ends.
    Latest,
    /// As it was at this time.
    Until(&'h str),
    /// A replica of this server.
    StandbyOf(&'h Server),
}

impl Server {
    /// The server of a URL like `postgres://floodway:password@host:port/database`.
    ///
    /// # Errors
    /// When the URL is another.
    pub fn of(url: &str) -> Result<Self> {
        let rest = url.strip_prefix("postgres://floodway:").context("not a URL of scripts/stack")?;
        let (password, rest) = rest.split_once('@').context("no password")?;
        let (address, _) = rest.split_once('/').context("no database")?;
        Ok(Self { address: address.to_owned(), password: password.to_owned() })
    }

    /// The URL of the user for backups.
    pub fn backup_url(&self) -> String {
        format!("postgres://floodway_backup:{}@{}/postgres", self.password, self.address)
    }

    fn host_and_port(&self) -> (&str, &str) {
        self.address.rsplit_once(':').unwrap_or((&self.address, "5432"))
    }
}

impl Backup {
    /// Takes a backup of a stack that archives, while it works.
    ///
    /// # Errors
    /// When the script fails; the error has its output.
    pub async fn take(stack: &Stack) -> Result<Self> {
        let data = stack.value("STACK_POSTGRES_DATA")?;
        let folder = Path::new(&data).with_file_name("backup");
        let server = Server::of(&stack.database_url)?;
        let (host, port) = server.host_and_port();
        let mut command = Command::new(root().join("scripts/backup"));
        command.args(["--data", &data, "--to"]).arg(&folder);
        command.env("PGHOST", host).env("PGPORT", port).env("PGUSER", "floodway_backup");
        command.env("PGPASSWORD", &server.password).env("PGDATABASE", "postgres");
        run(command).await?;
        Ok(Self { folder, archive: stack.value("STACK_POSTGRES_ARCHIVE")? })
    }

    /// Makes a data folder of it.
    ///
    /// # Errors
    /// When the script fails; the error has its output.
    pub async fn restore(&self, data: &str, how: How<'_>) -> Result<()> {
        let mut command = Command::new(root().join("scripts/restore"));
        command.arg("--from").arg(&self.folder).args(["--archive", &self.archive, "--data", data]);
        if let How::Until(time) = how {
            command.args(["--until", time]);
        }
        if let How::StandbyOf(server) = how {
            let (host, port) = server.host_and_port();
            let from = format!("host={host} port={port} user=floodway_backup password={}", server.password);
            command.args(["--standby-of", &from]);
        }
        run(command).await
    }
}

async fn run(mut command: Command) -> Result<()> {
    let output = command.output().await?;
    ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(())
}
