//! Migrations: embedded in the binary, applied in order, each in its own transaction.
//!
//! Migrations are compatible with the version that still runs (expand first, contract in a later release), so a
//! database may be newer than a binary only during a rollout. A binary never starts work on one: it could write rows
//! that break the newer schema's rules.

use crate::{Error, Pool, advisory};
use refinery::error::Kind;
use secrecy::SecretString;
use std::time::Duration;
use tokio_postgres::{error::SqlState, types::Type};

/// Longest wait for another process that is migrating, in milliseconds.
const LOCK_TIMEOUT_MS: u32 = 60_000;
/// Longest wait for a table, in milliseconds: whoever wants to write it waits behind the migration meanwhile.
const TABLE_TIMEOUT_MS: u32 = 2_000;
/// How often a migration is begun while the tables that it changes are in use, and the pause in between, in which they are free for others.
const ATTEMPTS: u32 = 60;
const PAUSE: Duration = Duration::from_secs(1);

#[allow(missing_docs, unreachable_pub, clippy::unwrap_used)] // The macro writes this module.
mod embedded {
    refinery::embed_migrations!("migrations");
}

/// What a call of [`migrate`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Names of the migrations applied now, in order; empty when there was nothing to do.
    pub applied: Vec<String>,
    /// Version of the schema afterwards.
    pub version: i32,
}

/// The schema version that this binary was built for.
pub fn supported_version() -> i32 {
    embedded::migrations::runner()
        .get_migrations()
        .iter()
        .map(|migration| migration.version())
        .max()
        .unwrap_or(0)
}

/// Applies what is missing, on a session of its own: `url` must not lead through a pooler of transactions. Safe to call from several processes at once: they take turns by an advisory lock.
///
/// # Errors
/// [`Error::Schema`] when the database is newer than this binary, was migrated by edited files, or
/// when a table that is to be changed was in use for minutes; [`Error::Unavailable`] when it cannot be reached, or another process
/// migrates for more than a minute.
pub async fn migrate(url: &SecretString) -> Result<Report, Error> {
    let pool = Pool::new(url, "floodway-migrate", 1)?;
    // The session's limits are lifted and its lock is released with the connection.
    let mut client = pool.dedicated().await?;
    client
        .batch_execute(&format!(
            "-- migrate: limits\n\
             SET lock_timeout = {LOCK_TIMEOUT_MS}; SET statement_timeout = 0; SET transaction_timeout = 0"
        ))
        .await?;
    client
        .execute_typed(
            "-- migrate: lock\nSELECT pg_advisory_lock($1)",
            &[(&advisory::MIGRATIONS, Type::INT8)],
        )
        .await?;
    refuse_newer(applied_version(&client).await?)?;
    client.batch_execute(&format!("-- migrate: tables\nSET lock_timeout = {TABLE_TIMEOUT_MS}")).await?;
    let mut applied = Vec::new();
    let mut attempts = 1;
    while let Err(error) = apply(&mut client, &mut applied).await {
        if attempts == ATTEMPTS || !is_in_use(error.kind()) {
            return Err(classify(error.kind()));
        }
        attempts += 1;
        tracing::warn!("a table that is to be changed is in use: trying again in {} s", PAUSE.as_secs());
        tokio::time::sleep(PAUSE).await;
    }
    Ok(Report { applied, version: supported_version() })
}

/// Applies what is missing, and adds the names of what was applied, also when a later one fails.
async fn apply(
    client: &mut tokio_postgres::Client,
    applied: &mut Vec<String>,
) -> Result<(), refinery::Error> {
    let ran = embedded::migrations::runner().run_async(client).await;
    let report = match &ran {
        Ok(report) => Some(report),
        Err(error) => error.report(),
    };
    for migration in report.into_iter().flat_map(refinery::Report::applied_migrations) {
        let name = migration.to_string();
        tracing::info!(migration = %name, "applied migration {name}");
        applied.push(name);
    }
    ran.map(|_| ())
}

/// Whether a migration failed only because others use its tables.
fn is_in_use(kind: &Kind) -> bool {
    let Kind::Connection(_, source) = kind else { return false };
    let code = source.downcast_ref::<tokio_postgres::Error>().and_then(tokio_postgres::Error::code);
    [Some(&SqlState::LOCK_NOT_AVAILABLE), Some(&SqlState::T_R_DEADLOCK_DETECTED)].contains(&code)
}

/// Checks that the database has exactly the schema that this binary was built for.
///
/// # Errors
/// [`Error::Schema`] saying which side is older and what to do.
pub async fn check_schema(pool: &Pool) -> Result<(), Error> {
    let found = applied_version(&**pool.get().await?).await?;
    refuse_newer(found)?;
    let supported = supported_version();
    if found < supported {
        return Err(Error::Schema(format!(
            "it has version {found}, this binary needs version {supported}: run `floodway migrate` first"
        )));
    }
    Ok(())
}

fn refuse_newer(found: i32) -> Result<(), Error> {
    let supported = supported_version();
    if found <= supported {
        return Ok(());
    }
    Err(Error::Schema(format!(
        "it has version {found}, this binary knows versions up to {supported}: use a newer binary"
    )))
}

/// The version of the last applied migration; 0 for a database without any.
async fn applied_version(client: &tokio_postgres::Client) -> Result<i32, Error> {
    let sql = "-- applied_version\nSELECT coalesce(max(version), 0)::int4 FROM refinery_schema_history";
    match client.query_typed_one(sql, &[]).await {
        Ok(row) => Ok(row.try_get(0)?),
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

fn classify(kind: &Kind) -> Error {
    match kind {
        Kind::Connection(what, source) => match source.downcast_ref::<tokio_postgres::Error>() {
            Some(error) if error.is_closed() => Error::Unavailable(format!("{what}: {error}")),
            Some(error) => Error::Schema(match error.as_db_error() {
                Some(answer) => format!("{what}: {answer}"),
                None => format!("{what}: {error}"),
            }),
            None => Error::Other(format!("{what}: {source}")),
        },
        other => Error::Schema(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first version that was written with this rule.
    const SINCE: i32 = 13;
    const BULK_TABLES: [&str; 8] = [
        "retry",
        "retry_mark",
        "delivery",
        "delivery_count",
        "delivery_count_hour",
        "delivery_count_day",
        "dead_letter",
        "dead_letter_replay",
    ];

    #[test]
    fn no_migration_builds_or_drops_an_index_of_a_bulk_table_in_place() {
        for migration in embedded::migrations::runner().get_migrations() {
            let Some(sql) = migration.sql().filter(|_| migration.version() >= SINCE) else { continue };
            let statements: String =
                sql.lines().filter(|line| !line.trim_start().starts_with("--")).collect();
            for statement in statements.split(';').map(str::trim) {
                let made_here = |table: &str| statements.contains(&format!("CREATE TABLE {table} ("));
                let of_filled = BULK_TABLES
                    .iter()
                    .any(|table| statement.contains(&format!(" ON {table} ")) && !made_here(table));
                assert!(
                    !(statement.starts_with("CREATE") && statement.contains("INDEX") && of_filled),
                    "{migration}: create it ON ONLY, see missing_indexes.rs: {statement}"
                );
            }
        }
    }
}
