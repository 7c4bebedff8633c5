//! An event as an HTTP message: CloudEvents 1.0.2, "HTTP Protocol Binding".
//!
//! Binary mode puts the attributes into `ce-*` headers and the data into the body; structured mode puts the whole envelope
//! into the body.

use bytes::Bytes;
use floodway_schemas::{
    event::{CLOUDEVENTS_JSON, Event},
    ids::TenantId,
};
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE},
};
use std::{borrow::Cow, collections::BTreeMap, fmt::Write};

/// An event made ready once for all its deliveries. Owned, for deliveries outlive the record's buffer.
#[derive(Debug)]
pub(crate) struct PreparedEvent {
    /// The envelope as the record had it.
    pub(crate) envelope: Bytes,
    /// Owner.
    pub(crate) tenant: TenantId,
    /// The event's id.
    pub(crate) id: String,
    /// The event's type.
    pub(crate) event_type: String,
    /// What orders it.
    pub(crate) key: String,
    /// `webhook-id`.
    pub(crate) message_id: String,
    /// The data bytes as sent.
    pub(crate) body: Bytes,
    /// Headers of binary mode.
    pub(crate) headers: HeaderMap,
}

impl PreparedEvent {
    /// Prepares an event that was decoded from `envelope`.
    pub(crate) fn new(event: &Event<'_>, envelope: &Bytes) -> Self {
        let body = match event.body() {
            // A slice of the envelope: no copy.
            Cow::Borrowed(bytes) => envelope.slice_ref(bytes),
            Cow::Owned(bytes) => Bytes::from(bytes),
        };
        Self {
            envelope: envelope.clone(),
            tenant: event.tenant,
            id: event.id.clone().into_owned(),
            event_type: event.event_type.clone().into_owned(),
            key: event.ordering_key().to_owned(),
            message_id: event.message_id(),
            body,
            headers: binary_mode(event),
        }
    }

    /// Headers of structured mode.
    pub(crate) fn structured_headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(8);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(CLOUDEVENTS_JSON));
        if let Some(trace) = self.headers.get("traceparent") {
            headers.insert("traceparent", trace.clone());
        }
        headers
    }
}

/// The headers of binary mode: content type, `ce-*` for every attribute, and the W3C trace context.
fn binary_mode(event: &Event<'_>) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(16);
    if let Some(value) = event.content_type().and_then(|text| HeaderValue::from_bytes(text.as_bytes()).ok()) {
        headers.insert(CONTENT_TYPE, value);
    }
    put(&mut headers, HeaderName::from_static("ce-specversion"), "1.0");
    put(&mut headers, HeaderName::from_static("ce-id"), &event.id);
    put(&mut headers, HeaderName::from_static("ce-source"), &event.source);
    put(&mut headers, HeaderName::from_static("ce-type"), &event.event_type);
    put(&mut headers, HeaderName::from_static("ce-tenantid"), &event.tenant.to_string());
    put(&mut headers, HeaderName::from_static("ce-receivedat"), &event.received_at.to_rfc3339());
    let optional = [
        ("ce-time", &event.time),
        ("ce-subject", &event.subject),
        ("ce-dataschema", &event.dataschema),
        ("ce-partitionkey", &event.partitionkey),
        ("ce-traceparent", &event.traceparent),
        ("traceparent", &event.traceparent),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            put(&mut headers, HeaderName::from_static(name), value);
        }
    }
    for (name, value) in &event.extensions {
        // Names are lower-case letters and digits, which headers allow.
        let Ok(name) = HeaderName::try_from(format!("ce-{name}")) else { continue };
        match serde_json::from_str::<String>(value.get()) {
            Ok(text) => put(&mut headers, name, &text),
            Err(_) => put(&mut headers, name, value.get()),
        }
    }
    headers
}

fn put(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    // Encoded text is visible ASCII, which a header value may always be.
    if let Ok(value) = HeaderValue::try_from(percent_encode(value)) {
        headers.insert(name, value);
    }
}

/// The binding's encoding of attribute values: space, double quote, percent and everything but printable ASCII as `%XX` of
/// their UTF-8 bytes.
fn percent_encode(value: &str) -> String {
    let mut encoded = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b' ' | b'"' | b'%' | ..=0x1f | 0x7f.. => {
                // Writing to a string cannot fail.
                let _ = write!(encoded, "%{byte:02X}");
            }
            _ => encoded.push(char::from(byte)),
        }
    }
    encoded
}

/// Headers that belong to the connection or the message's framing, never to a subscription.
const FRAMING: [HeaderName; 7] = [HOST, CONTENT_LENGTH, TRANSFER_ENCODING, CONNECTION, UPGRADE, TE, TRAILER];

/// A subscription's own headers, without those that it must not set. The control plane refuses them; this is the second lock.
pub(crate) fn custom_headers(configured: BTreeMap<String, String>) -> Box<[(HeaderName, HeaderValue)]> {
    let usable = configured.into_iter().filter_map(|(name, value)| {
        let (name, value) = (HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?);
        (!FRAMING.contains(&name)).then_some((name, value))
    });
    usable.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepare(json: &str) -> PreparedEvent {
        let envelope = Bytes::copy_from_slice(json.as_bytes());
        let event = Event::decode(&envelope).unwrap();
        PreparedEvent::new(&event, &envelope)
    }

    #[test]
    fn binary_mode_carries_every_attribute_and_the_data_untouched() {
        let golden = include_str!("../../schemas/golden/event-full.json").trim_end();
        let prepared = prepare(golden);
        let expected = [
            ("content-type", "application/json"),
            ("ce-specversion", "1.0"),
            ("ce-id", "order-1"),
            ("ce-source", "/shop/eu"),
            ("ce-type", "order.created"),
            ("ce-time", "2026-11-21T15:34:00Z"),
            ("ce-subject", "caf%C3%A9%20%227%22"),
            ("ce-dataschema", "https://example.com/order.json"),
            ("ce-partitionkey", "customer-9"),
            ("ce-tenantid", "01938f2e-0000-7000-8000-000000000001"),
            ("ce-receivedat", "2026-11-21T15:34:00.123Z"),
            ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            ("ce-traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            ("ce-priority", "7"),
            ("ce-urgent", "true"),
            ("ce-region", "eu"),
        ];
        for (name, value) in expected {
            assert_eq!(prepared.headers.get(name).unwrap().to_str().unwrap(), value, "{name}");
        }
        assert_eq!(prepared.headers.len(), expected.len());
        assert_eq!(&prepared.body[..], br#"{"total" : 12.50, "items":["a","b"]}"#);
        assert_eq!(prepared.key, "customer-9");
        assert_eq!(prepared.structured_headers()["content-type"], CLOUDEVENTS_JSON);
    }

    #[test]
    fn attribute_values_are_percent_encoded_as_the_binding_says() {
        let table = [
            ("Euro \u{20ac} \u{1f600}", "Euro%20%E2%82%AC%20%F0%9F%98%80"),
            ("100%", "100%25"),
            ("a\"b", "a%22b"),
            ("tab\there\u{7f}", "tab%09here%7F"),
            ("!#$&'()*+,-./:;<=>?@[]^_`{|}~", "!#$&'()*+,-./:;<=>?@[]^_`{|}~"),
        ];
        for (value, expected) in table {
            assert_eq!(percent_encode(value), expected);
        }
    }

    #[test]
    fn base64_data_becomes_its_bytes() {
        let prepared = prepare(
            r#"{"specversion":"1.0","id":"1","source":"s","type":"t","tenantid":"01938f2e-0000-7000-8000-000000000001","receivedat":"2026-11-21T15:34:00.123Z","data_base64":"AP8="}"#,
        );
        assert_eq!(&prepared.body[..], [0, 255]);
        assert_eq!(prepared.headers["content-type"], "application/octet-stream");
    }

    #[test]
    fn a_subscription_does_not_set_framing_headers() {
        let configured = [
            ("Host", "x"),
            ("Content-Length", "1"),
            ("X-Team", "blue"),
            ("bad name", "x"),
            ("x-bad", "a\nb"),
        ];
        let configured = configured.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let headers = custom_headers(configured);
        assert_eq!(*headers, [(HeaderName::from_static("x-team"), HeaderValue::from_static("blue"))]);
    }
}
