//! The CloudEvents 1.0 envelope in JSON, around a `data` slice that is never parsed and printed again.
//!
//! Two types, one per stage: [`EventInput`] is what a producer sent, every attribute checked; [`Event`] is what the
//! `events` topic holds, complete. Both borrow from the bytes they were read from. Format:
//! CloudEvents 1.0.2, "JSON Event Format", structured mode.

mod attribute;
mod input;

pub(crate) use attribute::string;
pub use attribute::{EventError, MAX_ATTRIBUTE_BYTES, MAX_EXTENSION_NAME_BYTES};
pub use input::{Defaults, EventInput, MAX_EXTENSIONS};

use crate::{DecodeError, UnixMillis, conform::declares_json, ids::TenantId};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use std::borrow::Cow;

/// Content type of an event in structured mode; the one Kafka header of an event record.
pub const CLOUDEVENTS_JSON: &str = "application/cloudevents+json";
/// Content type of `data` when the producer names none.
pub const JSON: &str = "application/json";

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

impl<'a> Event<'a> {
    /// Reads the value of an `events` record.
    pub fn decode(json: &'a [u8]) -> Result<Self, DecodeError> {
        let mut input = EventInput::parse_completed(json)?;
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
        assert_eq!(encoded(r#"{"type":"a"}"#), include_str!("../../golden/event-minimal.json").trim_end());
    }

    #[test]
    fn a_full_event_keeps_every_attribute_and_its_data_bytes() {
        let input = include_str!("../../golden/event-full-input.json");
        assert_eq!(encoded(input), include_str!("../../golden/event-full.json").trim_end());
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
