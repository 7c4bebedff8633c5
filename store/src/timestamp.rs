//! Floodway's instants as `timestamptz`.

use floodway_schemas::UnixMillis;
use time::OffsetDateTime;
use tokio_postgres::Row;

/// The instant as a parameter.
pub(crate) fn parameter(at: UnixMillis) -> OffsetDateTime {
    at.to_datetime()
}

/// A column that is never NULL.
pub(crate) fn column(row: &Row, name: &str) -> Result<UnixMillis, tokio_postgres::Error> {
    row.try_get(name).map(UnixMillis::from_datetime)
}

/// A column that may be NULL.
pub(crate) fn optional_column(row: &Row, name: &str) -> Result<Option<UnixMillis>, tokio_postgres::Error> {
    row.try_get::<_, Option<OffsetDateTime>>(name).map(|at| at.map(UnixMillis::from_datetime))
}
