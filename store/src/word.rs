//! Closed sets of words (states, formats) and versions, as columns. The words are those of the JSON form, so that a
//! table and a record never say the same thing differently.

use crate::Error;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio_postgres::Row;

/// The word of a unit variant.
pub(crate) fn of(variant: &impl Serialize) -> Result<String, Error> {
    match serde_json::to_value(variant) {
        Ok(Value::String(word)) => Ok(word),
        _ => Err(Error::Other("a word was expected to be written as a JSON string".to_owned())),
    }
}

/// The variant of a column's word.
pub(crate) fn read<T: DeserializeOwned>(row: &Row, name: &'static str) -> Result<T, Error> {
    json(name, Value::String(row.try_get(name)?))
}

/// A `jsonb` column as the type that it was written from.
pub(crate) fn read_json<T: DeserializeOwned>(row: &Row, name: &'static str) -> Result<T, Error> {
    json(name, row.try_get(name)?)
}

/// The same for a column that may be NULL.
pub(crate) fn read_optional_json<T: DeserializeOwned>(
    row: &Row,
    name: &'static str,
) -> Result<Option<T>, Error> {
    row.try_get::<_, Option<Value>>(name)?.map(|value| json(name, value)).transpose()
}

/// A value as a `jsonb` parameter.
pub(crate) fn to_json(value: &impl Serialize) -> Result<Value, Error> {
    serde_json::to_value(value).map_err(|error| Error::Other(format!("jsonb: {error}")))
}

/// A version as a parameter.
pub(crate) fn version(version: u64) -> Result<i64, Error> {
    i64::try_from(version).map_err(|_| Error::Other("a version does not fit a bigint".to_owned()))
}

/// The column `version`.
pub(crate) fn read_version(row: &Row) -> Result<u64, Error> {
    let version: i64 = row.try_get("version")?;
    u64::try_from(version).map_err(|_| Error::Other("a version is negative".to_owned()))
}

fn json<T: DeserializeOwned>(column: &str, value: Value) -> Result<T, Error> {
    // The error quotes values, so only its category is told.
    serde_json::from_value(value).map_err(|error| {
        Error::Other(format!("column {column} holds {:?} that this version cannot read", error.classify()))
    })
}
