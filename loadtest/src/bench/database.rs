//! A database of the benchmark's own, on the server that the environment names.

use super::BenchError;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};
use url::Url;

/// How often dropping it is tried again, and the pause before each time.
const DROP_TRIES: usize = 10;
const DROP_PAUSE: Duration = Duration::from_millis(500);

/// The database; it stays until it is dropped by name.
pub struct Database {
    client: Client,
    /// Ends with the client.
    connection: JoinHandle<()>,
    name: String,
    /// How to reach it.
    pub url: String,
    /// Version of the server.
    pub version: String,
}

impl Database {
    /// Creates it. `name` needs no quoting in SQL.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn create(server: &str, name: &str) -> Result<Self, BenchError> {
        let url = with_database(server, name)?;
        let (client, connection) = tokio_postgres::connect(server, NoTls).await?;
        let tasks = tokio_util::task::TaskTracker::new();
        // The reason for its end is told by the query that fails.
        let connection = tasks.spawn(async { drop(connection.await) });
        let version = client.query_one("SHOW server_version", &[]).await?.get(0);
        client.batch_execute(&format!("CREATE DATABASE {name}")).await?;
        Ok(Self { client, connection, name: name.to_owned(), url, version })
    }

    /// Drops it, whoever is still connected.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn drop(self) -> Result<(), BenchError> {
        let plain = format!("DROP DATABASE IF EXISTS {}", self.name);
        let forced = format!("{plain} WITH (FORCE)");
        let mut dropped = self.client.batch_execute(&forced).await;
        for _ in 0..DROP_TRIES {
            if dropped.is_ok() {
                break;
            }
            // The server's own vacuum is not ours to end, and FORCE refuses where it works; without FORCE the server ends it.
            if self.client.batch_execute(&plain).await.is_ok() {
                dropped = Ok(());
                break;
            }
            tokio::time::sleep(DROP_PAUSE).await;
            dropped = self.client.batch_execute(&forced).await;
        }
        drop(self.client);
        // It ends by itself when its client is gone.
        let _ = self.connection.await;
        Ok(dropped?)
    }
}

fn with_database(server: &str, name: &str) -> Result<String, BenchError> {
    let unusable = |_| BenchError::Setting("FLOODWAY_DATABASE_URL is not a URL".to_owned());
    let mut url = Url::parse(server).map_err(unusable)?;
    url.set_path(name);
    Ok(url.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_database_of_a_url_changes() {
        let url = with_database("postgres://u:p%26@h:5/x?sslmode=disable", "y").unwrap();
        assert_eq!(url, "postgres://u:p%26@h:5/y?sslmode=disable");
        assert!(with_database("host=x", "y").is_err());
    }
}
