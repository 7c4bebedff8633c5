//! For integration tests: a database of their own on the real server.

use crate::{Error, Pool, migrate::migrate, pool::DEFAULT_POOL_SIZE};
use secrecy::{ExposeSecret, SecretString};
use std::{fmt, time::Duration};

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
