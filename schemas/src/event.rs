//! The CloudEvents 1.0 envelope in JSON, around a `data` slice that is never parsed and printed again.
//!
//! Two types, one per stage: [`EventInput`] is what a producer sent, every attribute checked; [`Event`] is what the
//! `events` topic holds, complete. Both borrow from the bytes they were read from. Format:
//! CloudEvents 1.0.2, "JSON Event Format", structured mode.

use crate::{
    DecodeError, UnixMillis,
    conform::declares_json,
    ids::{MAX_TEXT_ID_BYTES, TenantId, is_text_id},
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor},
};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use std::{borrow::Cow, fmt};
use thiserror::Error;

/// Content type of an event in structured mode; the one Kafka header of an event record.
pub const CLOUDEVENTS_JSON: &str = "application/cloudevents+json";
/// Content type of `data` when the producer names none.
pub const JSON: &str = "application/json";
/// Most extension attributes an event may carry.
pub const MAX_EXTENSIONS: usize = 32;
/// Longest name of an extension attribute, in bytes.
pub const MAX_EXTENSION_NAME_BYTES: usize = 64;
/// Longest text of `subject`, `dataschema`, `datacontenttype`, `traceparent` or an extension, in bytes.
pub const MAX_ATTRIBUTE_BYTES: usize = 1024;

/// Attributes that only Floodway sets.
const RESERVED: [&str; 2] = ["tenantid", "receivedat"];

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
    /// More extensions than [`MAX_EXTENSIONS`].
    #[error("more than {MAX_EXTENSIONS} extension attributes")]
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

/// The payload of an event.
#[derive(Debug, Clone)]
pub enum Data<'a> {
    /// No payload.
    None,
    /// JSON exactly as the producer wrote it.
    Json(&'a RawValue),
    /// Bytes, still in their base64 text, known to be valid.
    Base64(Cow<'a, str>),
}

/// One event as a producer sent it. Only `type` is required.
#[derive(Debug, Clone)]
pub struct EventInput<'a> {
    /// What happened; matched by subscriptions.
    pub event_type: Cow<'a, str>,
    /// Producer's identifier, unique within `source`.
    pub id: Option<Cow<'a, str>>,
    /// Where the event comes from.
    pub source: Option<Cow<'a, str>>,
    /// When it happened, RFC 3339.
    pub time: Option<Cow<'a, str>>,
    /// What it is about.
    pub subject: Option<Cow<'a, str>>,
    /// Media type of the data.
    pub datacontenttype: Option<Cow<'a, str>>,
    /// Schema of the data.
    pub dataschema: Option<Cow<'a, str>>,
    /// Orders events: equal keys go to one partition.
    pub partitionkey: Option<Cow<'a, str>>,
    /// W3C trace context.
    pub traceparent: Option<Cow<'a, str>>,
    /// Further attributes, in the order sent, values as written.
    pub extensions: Vec<(Cow<'a, str>, &'a RawValue)>,
    /// The payload.
    pub data: Data<'a>,
    /// Whether `specversion` was sent; if so it was "1.0".
    pub has_specversion: bool,
}

/// What ingest fills in where the producer was silent.
#[derive(Debug, Clone, Copy)]
pub struct Defaults<'d> {
    /// Owner of the API key.
    pub tenant: TenantId,
    /// A fresh UUIDv7.
    pub id: &'d str,
    /// The API key's id.
    pub source: &'d str,
    /// When ingest read the request.
    pub received_at: UnixMillis,
}

/// A complete event: the value of a record on the `events` topic.
#[derive(Debug, Clone)]
pub struct Event<'a> {
    /// Owner.
    pub tenant: TenantId,
    /// When ingest read the request.
    pub received_at: UnixMillis,
    /// Unique within `source`.
    pub id: Cow<'a, str>,
    /// Where the event comes from.
    pub source: Cow<'a, str>,
    /// What happened.
    pub event_type: Cow<'a, str>,
    /// When it happened, RFC 3339.
    pub time: Option<Cow<'a, str>>,
    /// What it is about.
    pub subject: Option<Cow<'a, str>>,
    /// Media type of the data.
    pub datacontenttype: Option<Cow<'a, str>>,
    /// Schema of the data.
    pub dataschema: Option<Cow<'a, str>>,
    /// Orders events.
    pub partitionkey: Option<Cow<'a, str>>,
    /// W3C trace context.
    pub traceparent: Option<Cow<'a, str>>,
    /// Further attributes, values as written.
    pub extensions: Vec<(Cow<'a, str>, &'a RawValue)>,
    /// The payload.
    pub data: Data<'a>,
}

impl<'a> EventInput<'a> {
    /// Reads and checks one event object. Allocates only for text with escapes.
    pub fn parse(json: &'a [u8]) -> Result<Self, EventError> {
        let members = Members::parse(json)?;
        if let Some((name, _)) = members.0.iter().find(|(name, _)| RESERVED.contains(&name.as_ref())) {
            return Err(EventError::Reserved(name.to_string()));
        }
        Self::from_members(members)
    }

    /// Sorts members into attributes; reserved ones end up among the extensions.
    fn from_members(members: Members<'a>) -> Result<Self, EventError> {
        let mut event_type = None;
        let mut event = Self {
            event_type: Cow::Borrowed(""),
            id: None,
            source: None,
            time: None,
            subject: None,
            datacontenttype: None,
            dataschema: None,
            partitionkey: None,
            traceparent: None,
            extensions: Vec::new(),
            data: Data::None,
            has_specversion: false,
        };
        let mut seen_data = false;
        for (name, value) in members.0 {
            match name.as_ref() {
                "data" => {
                    event.set_data(Data::Json(value), &mut seen_data)?;
                    continue;
                }
                // CloudEvents JSON: a null attribute is an absent one.
                _ if value.get() == "null" => continue,
                "data_base64" => event.set_data(Data::Base64(base64_text(value)?), &mut seen_data)?,
                "specversion" => {
                    check_specversion(value)?;
                    if std::mem::replace(&mut event.has_specversion, true) {
                        return Err(EventError::Duplicate("specversion".to_owned()));
                    }
                }
                "type" => set_once(&mut event_type, "type", identifier("type", value)?)?,
                "id" => set_once(&mut event.id, "id", identifier("id", value)?)?,
                "source" => set_once(&mut event.source, "source", identifier("source", value)?)?,
                "partitionkey" => {
                    set_once(&mut event.partitionkey, "partitionkey", identifier("partitionkey", value)?)?;
                }
                "time" => set_once(&mut event.time, "time", timestamp(value)?)?,
                "subject" => set_once(&mut event.subject, "subject", text("subject", value)?)?,
                "datacontenttype" => {
                    set_once(&mut event.datacontenttype, "datacontenttype", text("datacontenttype", value)?)?;
                }
                "dataschema" => set_once(&mut event.dataschema, "dataschema", text("dataschema", value)?)?,
                "traceparent" => {
                    set_once(&mut event.traceparent, "traceparent", text("traceparent", value)?)?
                }
                _ => event.push_extension(name, value)?,
            }
        }
        event.event_type = event_type.ok_or(EventError::Missing("type"))?;
        Ok(event)
    }

    fn set_data(&mut self, data: Data<'a>, seen: &mut bool) -> Result<(), EventError> {
        if std::mem::replace(seen, true) {
            return Err(EventError::TwoPayloads);
        }
        self.data = data;
        Ok(())
    }

    fn push_extension(&mut self, name: Cow<'a, str>, value: &'a RawValue) -> Result<(), EventError> {
        let well_formed = (1..=MAX_EXTENSION_NAME_BYTES).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        if !well_formed {
            return Err(EventError::InvalidName(name.chars().take(MAX_EXTENSION_NAME_BYTES).collect()));
        }
        if self.extensions.iter().any(|(other, _)| *other == name) {
            return Err(EventError::Duplicate(name.into_owned()));
        }
        // What Floodway added to an event on its topic takes no place from what the producer may send.
        let is_reserved = |name: &str| RESERVED.contains(&name);
        let sent = self.extensions.iter().filter(|(other, _)| !is_reserved(other)).count();
        if !is_reserved(&name) && sent == MAX_EXTENSIONS {
            return Err(EventError::TooManyExtensions);
        }
        check_extension(&name, value)?;
        self.extensions.push((name, value));
        Ok(())
    }

    /// Fills in what the producer left out.
    pub fn complete(self, defaults: Defaults<'a>) -> Event<'a> {
        Event {
            tenant: defaults.tenant,
            received_at: defaults.received_at,
            id: self.id.unwrap_or(Cow::Borrowed(defaults.id)),
            source: self.source.unwrap_or(Cow::Borrowed(defaults.source)),
            event_type: self.event_type,
            time: self.time,
            subject: self.subject,
            datacontenttype: self.datacontenttype,
            dataschema: self.dataschema,
            partitionkey: self.partitionkey,
            traceparent: self.traceparent,
            extensions: self.extensions,
            data: self.data,
        }
    }
}

impl<'a> Event<'a> {
    /// Reads the value of an `events` record.
    pub fn decode(json: &'a [u8]) -> Result<Self, DecodeError> {
        let mut input = EventInput::from_members(Members::parse(json)?)?;
        let tenant = input.take_extension("tenantid")?;
        let received_at = input.take_extension("receivedat")?;
        Ok(Event {
            tenant: tenant.parse().map_err(|_| EventError::NotAnIdentifier("tenantid"))?,
            received_at: UnixMillis::parse_rfc3339(&received_at).ok_or(EventError::InvalidTime)?,
            id: input.id.take().ok_or(EventError::Missing("id"))?,
            source: input.source.take().ok_or(EventError::Missing("source"))?,
            event_type: input.event_type,
            time: input.time,
            subject: input.subject,
            datacontenttype: input.datacontenttype,
            dataschema: input.dataschema,
            partitionkey: input.partitionkey,
            traceparent: input.traceparent,
            extensions: input.extensions,
            data: input.data,
        })
    }

    /// Appends the structured-mode JSON of this event by concatenation: attributes first, `data` last and untouched.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"specversion\":\"1.0\"");
        put_text(out, "id", &self.id);
        put_text(out, "source", &self.source);
        put_text(out, "type", &self.event_type);
        let optional = [
            ("time", &self.time),
            ("subject", &self.subject),
            ("datacontenttype", &self.datacontenttype),
            ("dataschema", &self.dataschema),
            ("partitionkey", &self.partitionkey),
            ("traceparent", &self.traceparent),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                put_text(out, name, value);
            }
        }
        put_name(out, "tenantid");
        out.push(b'"');
        let mut hyphenated = uuid::Uuid::encode_buffer();
        out.extend_from_slice(self.tenant.0.as_hyphenated().encode_lower(&mut hyphenated).as_bytes());
        out.push(b'"');
        put_name(out, "receivedat");
        out.push(b'"');
        self.received_at.write_rfc3339(out);
        out.push(b'"');
        for (name, value) in &self.extensions {
            put_name(out, name);
            out.extend_from_slice(value.get().as_bytes());
        }
        match &self.data {
            Data::None => {}
            Data::Json(raw) => {
                put_name(out, "data");
                out.extend_from_slice(raw.get().as_bytes());
            }
            Data::Base64(text) => put_text(out, "data_base64", text),
        }
        out.push(b'}');
    }

    /// What orders this event: its partition key, else its id.
    pub fn ordering_key(&self) -> &str {
        self.partitionkey.as_deref().unwrap_or(&self.id)
    }

    /// Appends the Kafka key: `tenant/partitionkey`, else `tenant/id`.
    pub fn encode_key(&self, out: &mut Vec<u8>) {
        let mut hyphenated = uuid::Uuid::encode_buffer();
        out.extend_from_slice(self.tenant.0.as_hyphenated().encode_lower(&mut hyphenated).as_bytes());
        out.push(b'/');
        out.extend_from_slice(self.ordering_key().as_bytes());
    }

    /// The Standard Webhooks `webhook-id`: the same on every attempt, retry and replay of this event.
    pub fn message_id(&self) -> String {
        message_id(self.tenant, &self.source, &self.id)
    }

    /// The body that a subscriber receives: the `data` bytes as sent, base64 data decoded, empty without data. A string that
    /// `datacontenttype` declares to be something else than JSON is that something: CloudEvents JSON format, section 3.1.2.
    pub fn body(&self) -> Cow<'a, [u8]> {
        match &self.data {
            Data::None => Cow::Borrowed(&[]),
            Data::Json(raw) if self.datacontenttype.as_deref().is_none_or(declares_json) => {
                Cow::Borrowed(raw.get().as_bytes())
            }
            Data::Json(raw) => match string("data", raw) {
                Ok(Cow::Borrowed(text)) => Cow::Borrowed(text.as_bytes()),
                Ok(Cow::Owned(text)) => Cow::Owned(text.into_bytes()),
                Err(_not_a_string) => Cow::Borrowed(raw.get().as_bytes()),
            },
            // Checked when the event was read.
            Data::Base64(text) => Cow::Owned(STANDARD.decode(text.as_bytes()).unwrap_or_default()),
        }
    }

    /// Media type of [`Event::body`]; `None` without data and without a type.
    pub fn content_type(&self) -> Option<&str> {
        match (&self.datacontenttype, &self.data) {
            (Some(named), _) => Some(named),
            (None, Data::Json(_)) => Some(JSON),
            (None, Data::Base64(_)) => Some("application/octet-stream"),
            (None, Data::None) => None,
        }
    }
}

impl<'a> EventInput<'a> {
    fn take_extension(&mut self, name: &'static str) -> Result<Cow<'a, str>, EventError> {
        let index = self.extensions.iter().position(|(other, _)| other == name);
        let (_, value) = self.extensions.swap_remove(index.ok_or(EventError::Missing(name))?);
        text(name, value)
    }
}

/// `msg_` and 16 bytes of SHA-256 over (tenant, source, id), length-prefixed so that no two triples collide by concatenation.
pub fn message_id(tenant: TenantId, source: &str, id: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(tenant.0.as_bytes());
    for part in [source, id] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    let mut message_id = String::with_capacity(26);
    message_id.push_str("msg_");
    URL_SAFE_NO_PAD.encode_string(&hash.finalize()[..16], &mut message_id);
    message_id
}

/// The members of a JSON object in order, values untouched.
struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Members<'a> {
    fn parse(json: &'a [u8]) -> Result<Self, EventError> {
        let first = json.iter().find(|byte| !byte.is_ascii_whitespace());
        serde_json::from_slice(json).map_err(|error| match (first, error.classify()) {
            (Some(b'{'), _) | (_, serde_json::error::Category::Syntax | serde_json::error::Category::Eof) => {
                EventError::Malformed(error.to_string())
            }
            _ => EventError::NotAnObject,
        })
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor;

        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::with_capacity(8);
                while let Some(Name(name)) = map.next_key()? {
                    // Known attributes, both payloads and the extensions, with room to report what is one too many.
                    if members.len() > MAX_EXTENSIONS + 16 {
                        return Err(de::Error::custom("too many attributes"));
                    }
                    members.push((name, map.next_value()?));
                }
                Ok(members)
            }
        }

        deserializer.deserialize_map(MembersVisitor).map(Members)
    }
}

/// A member's name, borrowed unless it has escapes.
#[derive(Deserialize)]
#[serde(transparent)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

fn set_once<T>(slot: &mut Option<T>, name: &str, value: T) -> Result<(), EventError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(EventError::Duplicate(name.to_owned())),
    }
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

fn identifier<'a>(attribute: &'static str, value: &'a RawValue) -> Result<Cow<'a, str>, EventError> {
    let text = string(attribute, value)?;
    if is_text_id(&text) { Ok(text) } else { Err(EventError::NotAnIdentifier(attribute)) }
}

fn text<'a>(attribute: &str, value: &'a RawValue) -> Result<Cow<'a, str>, EventError> {
    let text = string(attribute, value)?;
    if (1..=MAX_ATTRIBUTE_BYTES).contains(&text.len()) && !text.chars().any(char::is_control) {
        Ok(text)
    } else {
        Err(EventError::NotText(attribute.to_owned()))
    }
}

fn timestamp(value: &RawValue) -> Result<Cow<'_, str>, EventError> {
    let text = text("time", value)?;
    if UnixMillis::parse_rfc3339(&text).is_some() { Ok(text) } else { Err(EventError::InvalidTime) }
}

fn base64_text(value: &RawValue) -> Result<Cow<'_, str>, EventError> {
    let text = string("data_base64", value)?;
    if STANDARD.decode(text.as_bytes()).is_ok() { Ok(text) } else { Err(EventError::InvalidBase64) }
}

fn check_specversion(value: &RawValue) -> Result<(), EventError> {
    let version = string("specversion", value)?;
    if version == "1.0" {
        Ok(())
    } else {
        Err(EventError::UnsupportedVersion(version.chars().take(16).collect()))
    }
}

/// CloudEvents attribute types: text, a boolean or a 32-bit integer.
fn check_extension(name: &str, value: &RawValue) -> Result<(), EventError> {
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

fn put_name(out: &mut Vec<u8>, name: &str) {
    // Names are fixed or checked to be lower-case letters and digits: nothing to escape.
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

fn put_text(out: &mut Vec<u8>, name: &str, value: &str) {
    put_name(out, name);
    let plain = !value.bytes().any(|byte| byte == b'"' || byte == b'\\' || byte < 0x20);
    if plain {
        out.push(b'"');
        out.extend_from_slice(value.as_bytes());
        out.push(b'"');
    } else if serde_json::to_writer(&mut *out, value).is_err() {
        // Writing a string to a Vec cannot fail; an empty string keeps the JSON well-formed all the same.
        out.extend_from_slice(b"\"\"");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TENANT: TenantId = TenantId(uuid::uuid!("01938f2e-0000-7000-8000-000000000001"));

    fn defaults() -> Defaults<'static> {
        Defaults {
            tenant: TENANT,
            id: "generated",
            source: "key",
            received_at: UnixMillis(1_795_275_240_123),
        }
    }

    fn encoded(json: &str) -> String {
        let mut out = Vec::new();
        EventInput::parse(json.as_bytes()).unwrap().complete(defaults()).encode(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_smallest_event_gets_every_default() {
        assert_eq!(encoded(r#"{"type":"a"}"#), include_str!("../golden/event-minimal.json").trim_end());
    }

    #[test]
    fn a_full_event_keeps_every_attribute_and_its_data_bytes() {
        let input = include_str!("../golden/event-full-input.json");
        assert_eq!(encoded(input), include_str!("../golden/event-full.json").trim_end());
    }

    #[test]
    fn data_stays_as_written() {
        let data = "{ \"b\" :1.0e2,\n\"a\":\"\\u00e9\", \"a\":null }";
        let record = encoded(&format!("{{\"type\":\"t\",\"data\": {data} }}"));
        assert_eq!(&*Event::decode(record.as_bytes()).unwrap().body(), data.as_bytes());
    }

    /// CloudEvents JSON format, sections 3.1.2 and 3.2.
    #[test]
    fn text_of_a_declared_type_is_delivered_as_that_text() {
        for (event, body) in [
            (
                r#"{"type":"t","datacontenttype":"application/xml","data":"<much wow=\"xml\"/>"}"#,
                r#"<much wow="xml"/>"#,
            ),
            (r#"{"type":"t","datacontenttype":"text/plain; charset=utf-8","data":"plain"}"#, "plain"),
            (r#"{"type":"t","datacontenttype":"text/plain","data":{"a":1}}"#, r#"{"a":1}"#),
            (
                r#"{"type":"t","datacontenttype":"Application/Problem+JSON","data":"a string"}"#,
                r#""a string""#,
            ),
            (r#"{"type":"t","data":"I'm just a string"}"#, r#""I'm just a string""#),
        ] {
            let record = encoded(event);
            assert_eq!(&*Event::decode(record.as_bytes()).unwrap().body(), body.as_bytes(), "{event}");
        }
    }

    #[test]
    fn base64_data_is_delivered_as_bytes() {
        let record = encoded(r#"{"type":"t","data_base64":"AP8="}"#);
        let event = Event::decode(record.as_bytes()).unwrap();
        assert_eq!(&*event.body(), &[0, 255]);
        assert_eq!(event.content_type(), Some("application/octet-stream"));
    }

    fn with_extensions(count: usize) -> String {
        let extensions: String = (0..count).map(|number| format!(r#","ext{number}":{number}"#)).collect();
        // Every other attribute as well: none of them takes an extension's place.
        let others = r#""type":"t","specversion":"1.0","id":"i","source":"s","time":"2026-01-01T00:00:00Z","subject":"s","datacontenttype":"a/b","dataschema":"d","partitionkey":"p","traceparent":"t","data":1"#;
        format!("{{{others}{extensions}}}")
    }

    #[test]
    fn what_is_accepted_with_the_most_extensions_is_read_again() {
        let record = encoded(&with_extensions(MAX_EXTENSIONS));
        let event = Event::decode(record.as_bytes()).unwrap();
        assert_eq!(event.extensions.len(), MAX_EXTENSIONS);
        let refused = EventInput::parse(with_extensions(MAX_EXTENSIONS + 1).as_bytes()).unwrap_err();
        assert_eq!(refused, EventError::TooManyExtensions);
    }

    #[test]
    fn bad_events_are_refused_with_the_attribute_named() {
        let table = [
            ("[]", "must be a JSON object"),
            ("3", "must be a JSON object"),
            ("{", "not valid JSON"),
            ("", "not valid JSON"),
            ("{}", "\"type\" is required"),
            (r#"{"type":null}"#, "\"type\" is required"),
            (r#"{"type":1}"#, "\"type\" must be a string"),
            (r#"{"type":""}"#, "\"type\" must be 1 to 256"),
            (r#"{"type":"t","id":"a\nb"}"#, "\"id\" must be 1 to 256 visible ASCII"),
            (r#"{"type":"t","id":"a\u0000"}"#, "\"id\" must be 1 to 256 visible ASCII"),
            (r#"{"type":"t","source":"ö"}"#, "\"source\" must be 1 to 256"),
            (r#"{"type":"t","type":"u"}"#, "\"type\" appears twice"),
            (r#"{"type":"t","tenantid":"x"}"#, "\"tenantid\" is set by Floodway"),
            (r#"{"type":"t","Upper":"x"}"#, "attribute name \"Upper\""),
            (r#"{"type":"t","ext":{}}"#, "\"ext\" must be a string, a boolean"),
            (r#"{"type":"t","ext":1.5}"#, "\"ext\" must be a string, a boolean"),
            (r#"{"type":"t","data":1,"data_base64":"AA=="}"#, "exclude each other"),
            (r#"{"type":"t","data_base64":"?"}"#, "not valid base64"),
            (r#"{"type":"t","time":"noon"}"#, "RFC 3339"),
            (r#"{"type":"t","specversion":"0.3"}"#, "specversion \"0.3\""),
            (r#"{"type":"t","subject":"a\u0007"}"#, "\"subject\" must be 1 to 1024"),
        ];
        for (json, expected) in table {
            let error = EventInput::parse(json.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{json}: {error}");
        }
    }

    #[test]
    fn message_ids_are_stable_and_tell_boundaries_apart() {
        assert_eq!(message_id(TENANT, "s", "1"), message_id(TENANT, "s", "1"));
        assert_ne!(message_id(TENANT, "s1", "1"), message_id(TENANT, "s", "11"));
        assert!(message_id(TENANT, "s", "1").starts_with("msg_"));
    }

    proptest! {
        #[test]
        fn encoding_round_trips(
            id in "[!-~]{1,40}", source in "[!-~]{1,40}", event_type in "[!-~]{1,40}",
            subject in proptest::option::of("[^\\p{Cc}]{1,40}"), key in proptest::option::of("[!-~]{1,20}"),
            number in any::<f64>(), name in "x[a-z0-9]{1,12}", flag in any::<bool>(),
        ) {
            let data = serde_json::json!({"n": number, "s": subject}).to_string();
            let sent = serde_json::json!({
                "id": id, "source": source, "type": event_type, "subject": subject, "partitionkey": key, name: flag,
            }).to_string();
            let sent = format!("{},\"data\":{data}}}", &sent[..sent.len() - 1]);
            let record = encoded(&sent);
            let event = Event::decode(record.as_bytes()).unwrap();
            prop_assert_eq!(event.id.as_ref(), id.as_str());
            prop_assert_eq!(event.source.as_ref(), source.as_str());
            prop_assert_eq!(event.event_type.as_ref(), event_type.as_str());
            prop_assert_eq!(event.subject.as_deref(), subject.as_deref());
            prop_assert_eq!(event.ordering_key(), key.as_deref().unwrap_or(&id));
            prop_assert_eq!(event.tenant, TENANT);
            prop_assert_eq!(&*event.body(), data.as_bytes());
            let mut again = Vec::new();
            event.encode(&mut again);
            prop_assert_eq!(again, record.into_bytes());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = EventInput::parse(&bytes);
            let _ = Event::decode(&bytes);
        }
    }
}
