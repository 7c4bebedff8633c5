//! An event as an HTTP message: CloudEvents 1.0.2, "HTTP Protocol Binding".
//!
//! Binary mode puts the attributes into `ce-*` headers and the data into the body; structured mode puts the whole envelope
//! into the body.

use bytes::Bytes;
use floodway_schemas::{
    batch::{self, Batched, CLOUDEVENTS_BATCH_JSON, MIXED_TYPES, Member},
    config::{Format, Subscription},
    event::{CLOUDEVENTS_JSON, Data, Event},
    ids::TenantId,
};
use http::{HeaderName, HeaderValue};
use std::{borrow::Cow, collections::BTreeMap, io::Write, ops::Range};

/// Room for the headers of a usual event at once.
const USUAL_BYTES: usize = 384;

/// An event, or a batch of them, made ready once for all its deliveries. Owned, for deliveries outlive the record's buffer.
#[derive(Debug)]
pub(crate) struct PreparedEvent {
    /// The envelope as the record had it, or the array of a batch's.
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
    /// Headers of binary mode, as lines of a request: written once, sent with every attempt.
    lines: Vec<u8>,
    /// Where among them the W3C trace context is.
    trace: Range<usize>,
    /// The events of a batch; of a single event, none.
    members: Box<[Member<'static>]>,
}

/// An event of a batch, by its names.
#[derive(Debug)]
pub(crate) struct Name {
    /// For the history.
    pub(crate) member: Member<'static>,
    /// Its own `webhook-id`.
    pub(crate) message_id: String,
}

/// What a delivery's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The event's data; its attributes are headers.
    Binary,
    /// The event's envelope.
    Structured,
    /// A batch, which is that already.
    Batched,
    /// The event's envelope, as a batch of one.
    BatchOfOne,
}

impl Mode {
    /// How `event` goes to `subscription`. What is a batch stays one, whatever is asked for by now.
    pub(crate) fn of(event: &PreparedEvent, subscription: &Subscription) -> Self {
        match (subscription.batch, subscription.format) {
            _ if !event.members.is_empty() => Self::Batched,
            (Some(_), _) => Self::BatchOfOne,
            (None, Format::Data) => Self::Binary,
            (None, Format::Cloudevents) => Self::Structured,
        }
    }
}

impl PreparedEvent {
    /// Prepares an event that was decoded from `envelope`.
    pub(crate) fn new(event: &Event<'_>, envelope: &Bytes) -> Self {
        let body = match &event.data {
            // A slice of the envelope: no copy.
            Data::Json(raw) => envelope.slice_ref(raw.get().as_bytes()),
            Data::None | Data::Base64(_) => Bytes::from(event.body().into_owned()),
        };
        let (lines, trace) = binary_mode(event);
        Self {
            envelope: envelope.clone(),
            tenant: event.tenant,
            id: event.id.clone().into_owned(),
            event_type: event.event_type.clone().into_owned(),
            key: event.ordering_key().to_owned(),
            message_id: event.message_id(),
            body,
            lines,
            trace,
            members: Box::default(),
        }
    }

    /// A batch of several events, whose envelopes `array` holds. Its own id is that of its deliveries.
    pub(crate) fn batch(array: Bytes, tenant: TenantId, names: Vec<Name>) -> Self {
        let message_id = batch::batch_id(names.iter().map(|name| name.message_id.as_str()));
        let members: Box<[Member<'static>]> = names.into_iter().map(|name| name.member).collect();
        let is_of_one_type = members.windows(2).all(|pair| pair[0].event_type == pair[1].event_type);
        let event_type = members.first().filter(|_| is_of_one_type);
        Self {
            body: array.clone(),
            envelope: array,
            tenant,
            id: message_id.clone(),
            event_type: event_type.map_or(MIXED_TYPES, |member| &member.event_type).to_owned(),
            key: message_id.clone(),
            message_id,
            lines: Vec::new(),
            trace: 0..0,
            members,
        }
    }

    /// What an outcome says about a batch, with the names of its events if they are `named`; `None` for a single event.
    pub(crate) fn batched(&self, named: bool) -> Option<Batched<'_>> {
        if self.members.is_empty() {
            return None;
        }
        let members = if named { self.members.to_vec() } else { Vec::new() };
        Some(Batched { events: u32::try_from(self.members.len()).unwrap_or(u32::MAX), members })
    }

    /// The body of a delivery.
    pub(crate) fn body(&self, mode: Mode) -> Cow<'_, Bytes> {
        match mode {
            Mode::Binary => Cow::Borrowed(&self.body),
            Mode::Structured | Mode::Batched => Cow::Borrowed(&self.envelope),
            Mode::BatchOfOne => Cow::Owned(batch::array(std::iter::once(&self.envelope[..])).into()),
        }
    }

    /// Writes the headers of a delivery that are the event's.
    pub(crate) fn put_headers(&self, mode: Mode, out: &mut Vec<u8>) {
        match mode {
            Mode::Binary => self.put_binary_mode(out),
            Mode::Structured => self.put_whole(CLOUDEVENTS_JSON, out),
            Mode::Batched | Mode::BatchOfOne => self.put_whole(CLOUDEVENTS_BATCH_JSON, out),
        }
    }

    /// Writes the headers of binary mode.
    fn put_binary_mode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.lines);
    }

    /// Writes the headers of a body that has the attributes itself.
    fn put_whole(&self, content_type: &str, out: &mut Vec<u8>) {
        put_line(out, "content-type", content_type.as_bytes());
        out.extend_from_slice(&self.lines[self.trace.clone()]);
    }
}

/// The headers of binary mode: content type, `ce-*` for every attribute, and the W3C trace context; and where that is.
fn binary_mode(event: &Event<'_>) -> (Vec<u8>, Range<usize>) {
    let mut lines = Vec::with_capacity(USUAL_BYTES);
    if let Some(value) = event.content_type().filter(|text| HeaderValue::from_bytes(text.as_bytes()).is_ok())
    {
        put_line(&mut lines, "content-type", value.as_bytes());
    }
    put_line(&mut lines, "ce-specversion", b"1.0");
    put_encoded(&mut lines, "ce-id", &event.id);
    put_encoded(&mut lines, "ce-source", &event.source);
    put_encoded(&mut lines, "ce-type", &event.event_type);
    let mut hyphenated = uuid::Uuid::encode_buffer();
    put_line(
        &mut lines,
        "ce-tenantid",
        event.tenant.0.as_hyphenated().encode_lower(&mut hyphenated).as_bytes(),
    );
    put_line(&mut lines, "ce-receivedat", event.received_at.to_rfc3339().as_bytes());
    let optional = [
        ("ce-time", &event.time),
        ("ce-subject", &event.subject),
        ("ce-dataschema", &event.dataschema),
        ("ce-partitionkey", &event.partitionkey),
        ("ce-traceparent", &event.traceparent),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            put_encoded(&mut lines, name, value);
        }
    }
    let trace = lines.len();
    if let Some(value) = &event.traceparent {
        put_encoded(&mut lines, "traceparent", value);
    }
    let trace = trace..lines.len();
    for (name, value) in &event.extensions {
        // Names are lower-case letters and digits, which headers allow.
        let name = format!("ce-{name}");
        if HeaderName::from_bytes(name.as_bytes()).is_err() {
            continue;
        }
        match serde_json::from_str::<String>(value.get()) {
            Ok(text) => put_encoded(&mut lines, &name, &text),
            Err(_) => put_encoded(&mut lines, &name, value.get()),
        }
    }
    (lines, trace)
}

/// Appends a header whose name and value are known to be ones.
pub(crate) fn put_line(lines: &mut Vec<u8>, name: &str, value: &[u8]) {
    for part in [name.as_bytes(), b": ", value, b"\r\n"] {
        lines.extend_from_slice(part);
    }
}

/// Appends a header with any text, which is encoded.
fn put_encoded(lines: &mut Vec<u8>, name: &str, value: &str) {
    lines.extend_from_slice(name.as_bytes());
    lines.extend_from_slice(b": ");
    percent_encode(lines, value);
    lines.extend_from_slice(b"\r\n");
}

/// The binding's encoding of attribute values: space, double quote, percent and everything but printable ASCII as `%XX` of
/// their UTF-8 bytes.
fn percent_encode(out: &mut Vec<u8>, value: &str) {
    for byte in value.bytes() {
        match byte {
            b' ' | b'"' | b'%' | ..=0x1f | 0x7f.. => {
                // Writing to memory cannot fail.
                let _ = write!(out, "%{byte:02X}");
            }
            _ => out.push(byte),
        }
    }
}

/// Names that belong to the connection, the message's framing or Floodway, never to a subscription.
const RESERVED: [&str; 10] = [
    "host",
    "content-length",
    "content-type",
    "transfer-encoding",
    "connection",
    "upgrade",
    "te",
    "trailer",
    "user-agent",
    "traceparent",
];
/// What such names begin with.
const RESERVED_PREFIXES: [&str; 3] = ["ce-", "webhook-", "proxy-"];

/// A subscription's own headers, names in lower case, without those that it must not set. The control plane refuses them; this is
/// the second lock.
pub(crate) fn custom_headers(configured: &BTreeMap<String, String>) -> Vec<(String, String)> {
    let mut headers: Vec<(String, String)> = Vec::with_capacity(configured.len());
    for (name, value) in configured {
        let (Ok(name), true) = (HeaderName::try_from(name), HeaderValue::try_from(value).is_ok()) else {
            continue;
        };
        let name = name.as_str();
        let is_reserved =
            RESERVED.contains(&name) || RESERVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
        if !is_reserved && headers.iter().all(|(known, _)| known != name) {
            headers.push((name.to_owned(), value.clone()));
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepare(json: &str) -> PreparedEvent {
        let envelope = Bytes::copy_from_slice(json.as_bytes());
        let event = Event::decode(&envelope).unwrap();
        PreparedEvent::new(&event, &envelope)
    }

    /// Names and values of header lines.
    fn parsed(write: impl FnOnce(&mut Vec<u8>)) -> BTreeMap<String, String> {
        let mut lines = Vec::new();
        write(&mut lines);
        let lines = String::from_utf8(lines).unwrap();
        let parsed: BTreeMap<_, _> = lines
            .split_terminator("\r\n")
            .map(|line| {
                line.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned())).unwrap()
            })
            .collect();
        assert_eq!(parsed.len(), lines.matches("\r\n").count(), "{lines}");
        parsed
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
        let headers = parsed(|out| prepared.put_headers(Mode::Binary, out));
        for (name, value) in expected {
            assert_eq!(headers[name], value, "{name}");
        }
        assert_eq!(headers.len(), expected.len());
        assert_eq!(&prepared.body[..], br#"{"total" : 12.50, "items":["a","b"]}"#);
        assert_eq!(prepared.key, "customer-9");
        let headers = parsed(|out| prepared.put_headers(Mode::Structured, out));
        assert_eq!((headers.len(), &*headers["content-type"]), (2, CLOUDEVENTS_JSON));
        assert!(headers["traceparent"].starts_with("00-0af"));
    }

    #[test]
    fn a_batch_is_named_by_its_events_and_stays_one_whatever_its_subscription_asks_for() {
        let golden = include_str!("../../schemas/golden/event-full.json").trim_end();
        let (one, other) = (prepare(golden), prepare(&golden.replace("order-1", "order-2")));
        let name = |event: &PreparedEvent| Name {
            member: Member { id: event.id.clone().into(), event_type: event.event_type.clone().into() },
            message_id: event.message_id.clone(),
        };
        let array = Bytes::from(batch::array([&one.envelope[..], &other.envelope[..]].into_iter()));
        let batch = PreparedEvent::batch(array.clone(), one.tenant, vec![name(&one), name(&other)]);
        assert_eq!(
            (&*batch.event_type, &batch.id, &batch.key),
            ("order.created", &batch.message_id, &batch.id)
        );
        assert_eq!(batch.batched(true).unwrap().members[1].id, "order-2");
        assert_eq!(batch.batched(false).unwrap(), Batched { events: 2, members: Vec::new() });
        assert_eq!(one.batched(true), None);

        let json = include_str!("../../schemas/golden/config-subscription.json");
        let single: Subscription = serde_json::from_str(json).unwrap();
        let batching = Subscription { batch: Some(Default::default()), ..single.clone() };
        let whole = Subscription { format: Format::Cloudevents, ..single.clone() };
        for (event, subscription, mode, body) in [
            (&batch, &single, Mode::Batched, &array[..]),
            (&batch, &batching, Mode::Batched, &array[..]),
            (&one, &batching, Mode::BatchOfOne, format!("[{golden}]").as_bytes()),
            (&one, &whole, Mode::Structured, golden.as_bytes()),
            (&one, &single, Mode::Binary, &one.body[..]),
        ] {
            assert_eq!(Mode::of(event, subscription), mode);
            assert_eq!(&event.body(mode)[..], body);
        }
        for (event, mode, lines) in [(&batch, Mode::Batched, 1), (&one, Mode::BatchOfOne, 2)] {
            let headers = parsed(|out| event.put_headers(mode, out));
            assert_eq!((headers.len(), &*headers["content-type"]), (lines, CLOUDEVENTS_BATCH_JSON));
        }
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
            let mut encoded = Vec::new();
            percent_encode(&mut encoded, value);
            assert_eq!(String::from_utf8(encoded).unwrap(), expected);
        }
    }

    #[test]
    fn base64_data_becomes_its_bytes() {
        let prepared = prepare(
            r#"{"specversion":"1.0","id":"1","source":"s","type":"t","tenantid":"01938f2e-0000-7000-8000-000000000001","receivedat":"2026-11-21T15:34:00.123Z","data_base64":"AP8="}"#,
        );
        assert_eq!(&prepared.body[..], [0, 255]);
        assert_eq!(
            parsed(|out| prepared.put_headers(Mode::Binary, out))["content-type"],
            "application/octet-stream"
        );
    }

    #[test]
    fn a_subscription_does_not_set_headers_of_others() {
        let configured = [
            ("Host", "x"),
            ("Content-Length", "1"),
            ("Webhook-Id", "forged"),
            ("User-Agent", "x"),
            ("x-team", "twice"),
            ("X-Team", "blue"),
            ("bad name", "x"),
            ("x-bad", "a\nb"),
        ];
        let configured = configured.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let headers = custom_headers(&configured);
        assert_eq!(headers, [("x-team".to_owned(), "blue".to_owned())]);
    }
}
