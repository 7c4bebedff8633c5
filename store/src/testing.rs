//! For integration tests: a database of their own on the real server.

use crate::{Error, Pool, migrate::migrate, pool::DEFAULT_POOL_SIZE};
use secrecy::{ExposeSecret, SecretString};
use std::{
    fmt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Connections of a test's pooler to the server: fewer than its clients have, so that they share sessions.
const POOLER_SIZE: u32 = 3;

/// How long a pooler may take to answer. Generous: the machine is shared.
const POOLER_PATIENCE: Duration = Duration::from_secs(60);

/// A migrated database with a random name.
pub struct TestDatabase {
    /// How to reach it.
    pub url: SecretString,
    name: String,
    server: Pool,
}

impl fmt::Debug for TestDatabase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestDatabase").field("name", &self.name).finish_non_exhaustive()
    }
}

impl TestDatabase {
    /// Creates a database on the server named by `FLOODWAY_DATABASE_URL` and migrates it.
    ///
    /// # Panics
    /// When the variable is not set or the server does not answer: a missing server fails a test, it never skips one.
    pub async fn create() -> Self {
        Self::create_empty().await.migrated().await
    }

    /// Creates a database on a server of the test's own and migrates it.
    ///
    /// # Panics
    /// When the server does not answer.
    pub async fn create_on(server_url: &str) -> Self {
        Self::create_empty_on(server_url).await.migrated().await
    }

    /// Creates a database without any table.
    ///
    /// # Panics
    /// As [`TestDatabase::create`].
    pub async fn create_empty() -> Self {
        let Ok(server_url) = std::env::var("FLOODWAY_DATABASE_URL") else {
            panic!("FLOODWAY_DATABASE_URL is not set: run `scripts/stack up` and `. .stack/env`")
        };
        Self::create_empty_on(&server_url).await
    }

    async fn create_empty_on(server_url: &str) -> Self {
        let name = format!("t{}", uuid::Uuid::new_v4().as_simple());
        let server = match Pool::new(&server_url.to_owned().into(), "floodway-test", 1) {
            Ok(pool) => pool,
            Err(error) => panic!("test database: {error}"),
        };
        create_database(&server, &name).await;
        Self { url: with_database(server_url, &name).into(), name, server }
    }

    async fn migrated(self) -> Self {
        if let Err(error) = migrate(&self.url).await {
            panic!("test database: {error}");
        }
        self
    }

    /// A pool on this database.
    ///
    /// # Panics
    /// Never: the URL was used before.
    pub fn pool(&self) -> Pool {
        match Pool::new(&self.url, "floodway-test", DEFAULT_POOL_SIZE) {
            Ok(pool) => pool,
            Err(error) => panic!("test database: {error}"),
        }
    }

    /// The URL in clear, for child processes.
    pub fn url_text(&self) -> &str {
        self.url.expose_secret()
    }

    /// Drops the database, whoever is still connected. Best effort: one left behind under a random name disturbs nobody.
    pub async fn drop(self) {
        let sql = format!("-- drop\nDROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        if let Err(error) = execute(&self.server, &sql).await {
            tracing::warn!(%error, database = self.name, "test database not dropped");
        }
    }
}

/// A PgBouncer in transaction mode before a test's database; it ends when dropped.
#[derive(Debug)]
pub struct TestPooler {
    /// How to reach the database through it.
    pub url: SecretString,
    /// How to reach the database past it.
    pub direct_url: SecretString,
    folder: PathBuf,
    process: Child,
}

impl TestPooler {
    /// Starts one.
    ///
    /// # Panics
    /// When there is no `pgbouncer` (`scripts/stack prerequisites` installs it), or it does not answer.
    pub async fn start(database: &TestDatabase) -> Self {
        Self::start_with(database, "", "").await
    }

    /// Starts one with parameters of its connections to the server, and more settings of its own.
    ///
    /// # Panics
    /// As [`TestPooler::start`].
    pub async fn start_with(database: &TestDatabase, connection: &str, settings: &str) -> Self {
        match Self::try_start(database, connection, settings).await {
            Ok(pooler) => pooler,
            Err(error) => panic!("pgbouncer: {error} (`scripts/stack prerequisites` installs it)"),
        }
    }

    async fn try_start(
        database: &TestDatabase,
        connection: &str,
        more: &str,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let parts =
            UrlParts::of(database.url_text()).ok_or("the database's URL has no user, password or port")?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let folder =
            std::env::temp_dir().join(format!("floodway-pgbouncer-{}", uuid::Uuid::new_v4().as_simple()));
        std::fs::create_dir(&folder)?;
        let users = folder.join("users.txt");
        std::fs::write(&users, format!("\"{}\" \"{}\"\n", parts.user, parts.password))?;
        let settings = folder.join("pgbouncer.ini");
        std::fs::write(
            &settings,
            format!(
                "[databases]\n* = host={} port={} {connection}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
                 unix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {}\npool_mode = transaction\n\
                 default_pool_size = {POOLER_SIZE}\nmax_client_conn = 200\n{more}\n",
                parts.host,
                parts.port,
                users.display()
            ),
        )?;
        let mut command = Command::new("pgbouncer");
        // Where Debian puts it, which not everybody's path has.
        command.env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default()));
        if Command::new("id").arg("-u").output()?.stdout == b"0\n" {
            // It refuses to run as root.
            command.args(["-u", "nobody"]);
        }
        let log = std::fs::File::create(folder.join("log"))?;
        command.arg(&settings).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = command.spawn()?;
        let url = format!("postgres://{}:{}@127.0.0.1:{port}/{}", parts.user, parts.password, parts.database);
        let pooler = Self { url: url.into(), direct_url: database.url.clone(), folder, process };
        let pool = pooler.pool("floodway-test", 1);
        let deadline = Instant::now() + POOLER_PATIENCE;
        while let Err(error) = pool.get().await {
            if Instant::now() > deadline {
                let log = std::fs::read_to_string(pooler.folder.join("log")).unwrap_or_default();
                return Err(format!("{error}\n{log}").into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(pooler)
    }

    /// A pool that goes through it.
    ///
    /// # Panics
    /// Never: both URLs were used before.
    pub fn pool(&self, application_name: &str, size: usize) -> Pool {
        match Pool::behind_pooler(&self.url, &self.direct_url, application_name, size) {
            Ok(pool) => pool,
            Err(error) => panic!("test pooler: {error}"),
        }
    }
}

impl Drop for TestPooler {
    fn drop(&mut self) {
        // Nothing to do for one that ended by itself; a folder that stays disturbs nobody.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A database's URL, taken apart.
struct UrlParts<'u> {
    user: &'u str,
    password: &'u str,
    host: &'u str,
    port: &'u str,
    database: &'u str,
}

impl<'u> UrlParts<'u> {
    fn of(url: &'u str) -> Option<Self> {
        let (credentials, address) = url.split_once("://")?.1.split_once('@')?;
        let (user, password) = credentials.split_once(':')?;
        let (authority, database) = address.split_once('/')?;
        let (host, port) = authority.split_once(':')?;
        let database = database.split('?').next()?;
        Some(Self { user, password, host, port, database })
    }
}

async fn execute(server: &Pool, sql: &str) -> Result<(), Error> {
    let client = server.get().await?;
    let limits = "-- execute: limits\nSET statement_timeout = '60s'; SET transaction_timeout = 0";
    client.batch_execute(limits).await?;
    Ok(client.batch_execute(sql).await?)
}

/// Creates a database; a server that is busy with other tests is asked again.
async fn create_database(server: &Pool, name: &str) {
    const TRIES: u32 = 10;
    let sql = format!("-- create_database\nCREATE DATABASE {name}");
    for last in (0..TRIES).map(|n| n + 1 == TRIES) {
        match execute(server, &sql).await {
            Ok(()) => return,
            Err(error) if error.is_unavailable() && !last => tokio::time::sleep(Duration::from_secs(1)).await,
            Err(error) => panic!("test database: {error}"),
        }
    }
}

/// The URL with its path replaced; a query stays.
fn with_database(url: &str, name: &str) -> String {
    let (address, query) = match url.split_once('?') {
        Some((address, query)) => (address, format!("?{query}")),
        None => (url, String::new()),
    };
    let authority_start = address.find("://").map_or(0, |at| at + 3);
    let authority_end = address[authority_start..].find('/').map_or(address.len(), |at| authority_start + at);
    format!("{}/{name}{query}", &address[..authority_end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_database_of_a_url_is_replaced() {
        assert_eq!(with_database("postgres://u:p@h:1/a?x=y", "b"), "postgres://u:p@h:1/b?x=y");
        assert_eq!(with_database("postgres://u:p@h:1", "b"), "postgres://u:p@h:1/b");
    }
}
