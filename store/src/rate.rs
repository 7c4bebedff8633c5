//! Rates per second, as columns of integers.

use crate::Error;
use std::num::NonZeroU32;
use tokio_postgres::Row;

/// A rate as a parameter.
pub(crate) fn parameter(rate: Option<NonZeroU32>) -> Result<Option<i32>, Error> {
    let out_of_range = |_| Error::Other("a rate per second does not fit an integer".to_owned());
    rate.map(|rate| i32::try_from(rate.get()).map_err(out_of_range)).transpose()
}

/// A column with a rate or NULL.
pub(crate) fn read(row: &Row, column: &str) -> Result<Option<NonZeroU32>, Error> {
    let rate: Option<i32> = row.try_get(column)?;
    Ok(rate.and_then(|rate| NonZeroU32::new(rate.unsigned_abs())))
}
