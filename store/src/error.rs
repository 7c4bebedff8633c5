//! What went wrong in the database, by what the caller can do about it.

use deadpool_postgres::{PoolError, TimeoutType};
use std::error::Error as _;
use thiserror::Error;
use tokio_postgres::error::SqlState;

/// An error of this crate. Messages never hold values of rows, which may be a user's data.
#[derive(Debug, Error)]
pub enum Error {
    /// The server cannot be reached or is too busy, or a timeout passed: the same call may succeed later.
    #[error("the database is unavailable: {0}")]
    Unavailable(String),
    /// Every connection of the pool is in use and none came free in time: the same call may succeed later.
    #[error("the database is busy: {0}")]
    Busy(String),
    /// The row exists already, has another version, or is in a state that does not allow the change.
    #[error("conflict: {0}")]
    Conflict(String),
    /// There is no such row.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// The schema does not fit this binary. Retrying does not help; migrating or another binary does.
    #[error("the database schema does not fit: {0}")]
    Schema(String),
    /// A bug or a fault of the server: report it.
    #[error("database error: {0}")]
    Other(String),
}

impl Error {
    /// Whether the same call may succeed later without anyone doing anything.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Busy(_))
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        let text = describe(&error);
        match error.code() {
            Some(code) if is_passing(code) || lacks_partition(&error) => Self::Unavailable(text),
            Some(code) if is_integrity(code) => Self::Conflict(text),
            Some(code) if is_missing_object(code) => {
                Self::Schema(format!("{text}; apply this version's migrations first"))
            }
            Some(_) => Self::Other(text),
            // Without an answer from the server it is the connection that failed, or a value that did not convert.
            None if error.is_closed() || has_io_source(&error) => Self::Unavailable(text),
            None => Self::Other(text),
        }
    }
}

impl From<PoolError> for Error {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Backend(error) => match Self::from(error) {
                // Whatever stops a connection from being made may be repaired while the service waits.
                Self::Other(text) => Self::Unavailable(text),
                known => known,
            },
            PoolError::Timeout(TimeoutType::Wait) => Self::Busy("no connection came free in time".to_owned()),
            PoolError::Timeout(kind) => {
                Self::Unavailable(format!("timed out waiting for a connection ({kind:?})"))
            }
            other => Self::Other(other.to_string()),
        }
    }
}

/// The server's own message with its code and constraint, without the detail, which quotes values.
fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(answer) = error.as_db_error() {
        let constraint = answer.constraint().map(|name| format!(", constraint {name}")).unwrap_or_default();
        return format!("{} (SQLSTATE {}{constraint})", answer.message(), answer.code().code());
    }
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn has_io_source(error: &tokio_postgres::Error) -> bool {
    error.source().is_some_and(|source| source.is::<std::io::Error>())
}

/// Conditions that pass: lost connections, a server that starts or stops, too many connections, timeouts, deadlocks.
fn is_passing(code: &SqlState) -> bool {
    let passing = [
        SqlState::T_R_SERIALIZATION_FAILURE,
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::LOCK_NOT_AVAILABLE,
        SqlState::QUERY_CANCELED,
        SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
    ];
    // 08 connection, 53 resources, 57 operator intervention; 25P04 is transaction_timeout.
    let classes = ["08", "53", "57"];
    passing.contains(code)
        || code.code() == "25P04"
        || classes.iter().any(|class| code.code().starts_with(class))
}

/// A row's partition does not exist: the retry scheduler creates it when it comes. Only the missing name of a constraint
/// tells this from a violated one.
fn lacks_partition(error: &tokio_postgres::Error) -> bool {
    error
        .as_db_error()
        .is_some_and(|answer| *answer.code() == SqlState::CHECK_VIOLATION && answer.constraint().is_none())
}

/// Class 23: unique, foreign key, check and not-null constraints.
fn is_integrity(code: &SqlState) -> bool {
    code.code().starts_with("23")
}

fn is_missing_object(code: &SqlState) -> bool {
    [SqlState::UNDEFINED_TABLE, SqlState::UNDEFINED_COLUMN, SqlState::UNDEFINED_FUNCTION].contains(code)
}
