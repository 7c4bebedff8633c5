//! Why a record could not be decoded.

use thiserror::Error;

/// A record that this version cannot use. The caller skips it with a counter, or dead-letters it; it never retries.
#[derive(Debug, Error)]
pub enum DecodeError {
    /// Not valid JSON, or JSON of another shape.
    #[error("malformed record: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Written by a newer, incompatible version of Floodway.
    #[error("record has major version {found}, this version reads {supported}")]
    UnknownVersion {
        /// Version in the record.
        found: u32,
        /// Version that this build reads.
        supported: u32,
    },
    /// The envelope is JSON but not a valid Floodway event.
    #[error("invalid event: {0}")]
    Event(#[from] crate::event::EventError),
    /// The Kafka key does not name an entity of the config topic.
    #[error("unknown config key {0:?}")]
    UnknownConfigKey(String),
}

/// The one field that every versioned record has.
#[derive(serde::Deserialize)]
struct Version {
    v: u32,
}

/// Checks a record's major version before the rest is decoded, so that a newer record reads as
/// [`DecodeError::UnknownVersion`] and not as a missing field.
pub(crate) fn check_version(record: &[u8], supported: u32) -> Result<(), DecodeError> {
    let Version { v: found } = serde_json::from_slice(record)?;
    if found == supported { Ok(()) } else { Err(DecodeError::UnknownVersion { found, supported }) }
}
