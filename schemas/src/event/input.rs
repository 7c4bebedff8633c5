//! An event as a producer sent it, every attribute checked.

use super::{
    Data, Event, EventError, MAX_EXTENSION_NAME_BYTES,
    attribute::{base64_text, check_extension, check_specversion, identifier, text, timestamp},
};
use crate::{UnixMillis, ids::TenantId};
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor},
};
use serde_json::value::RawValue;
use std::{borrow::Cow, fmt};

/// Most extension attributes an event may carry.
pub const MAX_EXTENSIONS: usize = 32;
/// Attributes that only Floodway sets.
const RESERVED: [&str; 2] = ["tenantid", "receivedat"];

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

impl<'a> EventInput<'a> {
    /// Reads and checks one event object. Allocates only for text with escapes.
    pub fn parse(json: &'a [u8]) -> Result<Self, EventError> {
        let members = Members::parse(json)?;
        if let Some((name, _)) = members.0.iter().find(|(name, _)| RESERVED.contains(&name.as_ref())) {
            return Err(EventError::Reserved(name.to_string()));
        }
        Self::from_members(members)
    }

    /// Reads an event on its topic: what Floodway added ends up among the extensions.
    pub(super) fn parse_completed(json: &'a [u8]) -> Result<Self, EventError> {
        Self::from_members(Members::parse(json)?)
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

    /// Takes out an attribute that Floodway added.
    pub(super) fn take_extension(&mut self, name: &'static str) -> Result<Cow<'a, str>, EventError> {
        let index = self.extensions.iter().position(|(other, _)| other == name);
        let (_, value) = self.extensions.swap_remove(index.ok_or(EventError::Missing(name))?);
        text(name, value)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
