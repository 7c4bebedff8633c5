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
    // Floodway writes the version first. Looking for it elsewhere means to read the whole record, events and all.
    let first = record.strip_prefix(b"{\"v\":").and_then(|rest| match rest {
        [digit @ b'0'..=b'9', b',', ..] => Some(u32::from(digit - b'0')),
        _ => None,
    });
    let found = match first {
        Some(found) => found,
        None => serde_json::from_slice::<Version>(record)?.v,
    };
    if found == supported { Ok(()) } else { Err(DecodeError::UnknownVersion { found, supported }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_found_wherever_it_stands() {
        let found = |record: &str| match check_version(record.as_bytes(), 1) {
            Ok(()) => Some(1),
            Err(DecodeError::UnknownVersion { found, .. }) => Some(found),
            Err(_) => None,
        };
        for (record, version) in [
            (r#"{"v":1,"a":{"v":3}}"#, Some(1)),
            (r#"{"v":2,"a":0}"#, Some(2)),
            (r#"{"v":12,"a":0}"#, Some(12)),
            (r#"{"v":1}"#, Some(1)),
            (r#"{ "a" : {"v":1}, "v" : 4 }"#, Some(4)),
            (r#"{"a":{"v":1}}"#, None),
            (r#"{"v":"1"}"#, None),
            ("", None),
        ] {
            assert_eq!(found(record), version, "{record}");
        }
    }
}
