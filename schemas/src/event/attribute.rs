//! What single attributes must be.

use crate::{
    UnixMillis,
    ids::{MAX_TEXT_ID_BYTES, is_text_id},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::value::RawValue;
use std::borrow::Cow;
use thiserror::Error;

/// Longest name of an extension attribute, in bytes.
pub const MAX_EXTENSION_NAME_BYTES: usize = 64;
/// Longest text of `subject`, `dataschema`, `datacontenttype`, `traceparent` or an extension, in bytes.
pub const MAX_ATTRIBUTE_BYTES: usize = 1024;

/// Why an event was refused. The text names the attribute and is meant for the producer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EventError {
    /// The bytes are not one JSON value.
    #[error("not valid JSON: {0}")]
    Malformed(String),
    /// A JSON value, but not an object.
    #[error("an event must be a JSON object")]
    NotAnObject,
    /// A required attribute is absent.
    #[error("attribute \"{0}\" is required")]
    Missing(&'static str),
    /// An attribute has the wrong JSON type.
    #[error("attribute \"{attribute}\" must be {expected}")]
    WrongType {
        /// Name of the attribute.
        attribute: String,
        /// What it should be.
        expected: &'static str,
    },
    /// An identifier that is not 1 to 256 bytes of visible ASCII.
    #[error("attribute \"{0}\" must be 1 to {MAX_TEXT_ID_BYTES} visible ASCII characters")]
    NotAnIdentifier(&'static str),
    /// Text with control characters, or too long.
    #[error("attribute \"{0}\" must be 1 to {MAX_ATTRIBUTE_BYTES} bytes without control characters")]
    NotText(String),
    /// An attribute that Floodway sets itself.
    #[error("attribute \"{0}\" is set by Floodway and must not be sent")]
    Reserved(String),
    /// A name that CloudEvents does not allow.
    #[error("attribute name {0:?} must be lower-case letters and digits, at most {MAX_EXTENSION_NAME_BYTES}")]
    InvalidName(String),
    /// The same attribute twice.
    #[error("attribute \"{0}\" appears twice")]
    Duplicate(String),
    /// More extensions than [`MAX_EXTENSIONS`](super::MAX_EXTENSIONS).
    #[error("more than {} extension attributes", super::MAX_EXTENSIONS)]
    TooManyExtensions,
    /// Both `data` and `data_base64`.
    #[error("\"data\" and \"data_base64\" exclude each other")]
    TwoPayloads,
    /// `data_base64` is not base64.
    #[error("attribute \"data_base64\" is not valid base64")]
    InvalidBase64,
    /// `time` is not RFC 3339.
    #[error("attribute \"time\" must be an RFC 3339 timestamp")]
    InvalidTime,
    /// A CloudEvents version other than 1.0.
    #[error("specversion {0:?} is not supported, use \"1.0\"")]
    UnsupportedVersion(String),
}

/// The text of a JSON string, borrowed unless it has escapes.
pub(crate) fn string<'a>(attribute: &str, value: &'a RawValue) -> Result<Cow<'a, str>, EventError> {
    let wrong = || EventError::WrongType { attribute: attribute.to_owned(), expected: "a string" };
    let raw = value.get();
    let inner = raw.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).ok_or_else(wrong)?;
    if inner.contains('\\') {
        return serde_json::from_str::<String>(raw).map(Cow::Owned).map_err(|_| wrong());
    }
    Ok(Cow::Borrowed(inner))
}

/// An identifier: 1 to 256 bytes of visible ASCII.
pub(super) fn identifier<'a>(
    attribute: &'static str,
    value: &'a RawValue,
) -> Result<Cow<'a, str>, EventError> {
    let text = string(attribute, value)?;
    if is_text_id(&text) { Ok(text) } else { Err(EventError::NotAnIdentifier(attribute)) }
}

/// Text without control characters, not too long.
pub(super) fn text<'a>(attribute: &str, value: &'a RawValue) -> Result<Cow<'a, str>, EventError> {
    let text = string(attribute, value)?;
    if (1..=MAX_ATTRIBUTE_BYTES).contains(&text.len()) && !text.chars().any(char::is_control) {
        Ok(text)
    } else {
        Err(EventError::NotText(attribute.to_owned()))
    }
}

/// A time of RFC 3339.
pub(super) fn timestamp(value: &RawValue) -> Result<Cow<'_, str>, EventError> {
    let text = text("time", value)?;
    if UnixMillis::parse_rfc3339(&text).is_some() { Ok(text) } else { Err(EventError::InvalidTime) }
}

/// Text in base64.
pub(super) fn base64_text(value: &RawValue) -> Result<Cow<'_, str>, EventError> {
    let text = string("data_base64", value)?;
    if STANDARD.decode(text.as_bytes()).is_ok() { Ok(text) } else { Err(EventError::InvalidBase64) }
}

/// The one version of CloudEvents that is supported.
pub(super) fn check_specversion(value: &RawValue) -> Result<(), EventError> {
    let version = string("specversion", value)?;
    if version == "1.0" {
        Ok(())
    } else {
        Err(EventError::UnsupportedVersion(version.chars().take(16).collect()))
    }
}

/// CloudEvents attribute types: text, a boolean or a 32-bit integer.
pub(super) fn check_extension(name: &str, value: &RawValue) -> Result<(), EventError> {
    let raw = value.get();
    if raw.starts_with('"') {
        return text(name, value).map(drop);
    }
    if matches!(raw, "true" | "false") || raw.parse::<i32>().is_ok() {
        return Ok(());
    }
    Err(EventError::WrongType {
        attribute: name.to_owned(),
        expected: "a string, a boolean or a 32-bit integer",
    })
}
