//! CloudEvents' binary mode: attributes in `ce-*` headers, the body is the data.
//!
//! Such a request is rewritten as the JSON object that would have been sent in structured mode, so every rule about
//! attributes holds without being written twice. Sections are those of the HTTP binding 1.0.2.

use crate::{budget::Share, error::Refusal, media};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use floodway_schemas::{MAX_EVENT_BYTES, conform::declares_json};
use http::{HeaderMap, HeaderValue};
use serde_json::value::RawValue;
use std::borrow::Cow;

/// What the names of attributes begin with; header names are read in lower case.
const PREFIX: &str = "ce-";
/// Names that the JSON format gives a meaning, and that are no attributes; and the type, which has a header of its own.
const NO_ATTRIBUTES: [&str; 3] = ["data", "data_base64", "datacontenttype"];

/// Writes the event in structured mode.
pub(crate) fn to_structured(
    headers: &HeaderMap,
    body: &[u8],
    share: &mut Share<'_>,
) -> Result<Bytes, Refusal> {
    let mut event = Vec::with_capacity(256);
    event.push(b'{');
    for (name, value) in headers {
        let Some(attribute) = name.as_str().strip_prefix(PREFIX) else { continue };
        if NO_ATTRIBUTES.contains(&attribute) {
            return Err(invalid(format!("the header ce-{attribute} must not be sent")));
        }
        let text = decode(value).map_err(|reason| invalid(format!("the header ce-{attribute} {reason}")))?;
        put(&mut event, attribute, &text);
    }
    // Section 3.1.1.
    let content_type = media::content_type(headers)?.filter(|text| !text.is_empty());
    if let Some(text) = content_type {
        put(&mut event, "datacontenttype", text);
    }
    put_data(&mut event, content_type, body, share)?;
    // Every member was written with a comma behind it.
    event.pop();
    event.push(b'}');
    Ok(event.into())
}

/// Section 3.1.2: the body is the data; JSON stays JSON, everything else is bytes.
fn put_data(
    event: &mut Vec<u8>,
    content_type: Option<&str>,
    body: &[u8],
    share: &mut Share<'_>,
) -> Result<(), Refusal> {
    if body.is_empty() {
        return Ok(());
    }
    // What is larger as data is larger as an event.
    if body.len() > MAX_EVENT_BYTES {
        return Err(Refusal::BodyTooLarge { limit: MAX_EVENT_BYTES });
    }
    if content_type.is_some_and(declares_json) {
        // Nothing but one value: what follows one would become members of the event.
        let data: &RawValue = serde_json::from_slice(body)
            .map_err(|error| Refusal::Malformed(format!("the body is not valid JSON: {error}")))?;
        share.cover(body.len() + event.len() + data.get().len())?;
        event.reserve_exact(data.get().len() + 16);
        event.extend_from_slice(b"\"data\":");
        event.extend_from_slice(data.get().as_bytes());
    } else {
        event.extend_from_slice(b"\"data_base64\":\"");
        let (start, length) = (event.len(), body.len().div_ceil(3) * 4);
        share.cover(body.len() + start + length)?;
        event.reserve_exact(length + 4);
        event.resize(start + length, b'=');
        // The slice has exactly the room that padded base64 takes.
        let _ = STANDARD.encode_slice(body, &mut event[start..]);
        event.push(b'"');
    }
    event.push(b',');
    Ok(())
}

fn put(event: &mut Vec<u8>, name: &str, text: &str) {
    for (part, end) in [(name, b':'), (text, b',')] {
        // Writing text to memory cannot fail.
        let _ = serde_json::to_writer(&mut *event, part);
        event.push(end);
    }
}

fn invalid(detail: String) -> Refusal {
    Refusal::InvalidHeaders(detail)
}

/// Section 3.1.3.2: first the quotes of older senders, then one round of percent-decoding.
fn decode(value: &HeaderValue) -> Result<Cow<'_, str>, &'static str> {
    let text = value.to_str().map_err(|_| "must be printable ASCII, other characters percent-encoded")?;
    if !text.contains(['"', '%']) {
        return Ok(Cow::Borrowed(text));
    }
    let bytes = percent_decoded(&unquoted(text)?)?;
    String::from_utf8(bytes).map(Cow::Owned).map_err(|_| "is not UTF-8 after percent-decoding")
}

/// RFC 7230, section 3.2.6: what is between double quotes, with its backslashes resolved.
fn unquoted(text: &str) -> Result<String, &'static str> {
    let mut plain = String::with_capacity(text.len());
    let mut quoted = false;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => quoted = !quoted,
            '\\' if quoted => plain.push(characters.next().ok_or("ends within a quoted string")?),
            _ => plain.push(character),
        }
    }
    if quoted { Err("ends within a quoted string") } else { Ok(plain) }
}

fn percent_decoded(text: &str) -> Result<Vec<u8>, &'static str> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
                match (digit(), digit()) {
                    // Two hexadecimal digits are a byte.
                    (Some(high), Some(low)) => (high * 16 + low) as u8,
                    _ => return Err("has a percent sign without two hexadecimal digits"),
                }
            }
            _ => byte,
        });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        budget::{BodyBudget, TenantBytes},
        parse::{Rules, read_event},
    };
    use floodway_schemas::event::{Data, EventInput};
    use http::HeaderName;
    use metrics::Gauge;
    use proptest::prelude::*;

    fn structured(headers: &HeaderMap, body: &[u8]) -> Result<String, Refusal> {
        let (budget, tenant) = (BodyBudget::new(1 << 20, 1 << 20, Gauge::noop()), TenantBytes::default());
        let event = to_structured(headers, body, &mut budget.share(&tenant))?;
        Ok(String::from_utf8(event.to_vec()).unwrap())
    }

    /// The four required attributes, and more.
    fn headers(more: &[(&'static str, &str)]) -> HeaderMap {
        [("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "/s"), ("ce-type", "t")]
            .iter()
            .chain(more)
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    /// What the event is, or why it is none.
    fn judged(headers: &HeaderMap, body: &[u8]) -> Result<String, String> {
        let json = structured(headers, body).map_err(|refusal| refusal.problem().detail.unwrap())?;
        read_event(json.as_bytes(), Rules::CloudEvents).map_err(|error| error.to_string())?;
        Ok(json)
    }

    const REQUIRED: &str = r#"{"specversion":"1.0","id":"1","source":"/s","type":"t""#;

    /// Section, headers beside the required ones, body, and the event's JSON after the required attributes.
    #[test]
    fn requests_are_read_as_the_binding_says() {
        type Case = (&'static str, &'static [(&'static str, &'static str)], &'static [u8], &'static str);
        let table: [Case; 17] = [
            ("3.1.2: no body, no data", &[], b"", "}"),
            (
                "3.1.1",
                &[("content-type", "application/json")],
                b"{\"a\" : 1.0}",
                r#","datacontenttype":"application/json","data":{"a" : 1.0}}"#,
            ),
            (
                "3.1.1: parameters stay",
                &[("content-type", "application/vnd.x+JSON; charset=utf-8")],
                b" null\n",
                r#","datacontenttype":"application/vnd.x+JSON; charset=utf-8","data":null}"#,
            ),
            (
                "3.1.1: a type without data",
                &[("content-type", "application/json")],
                b"",
                r#","datacontenttype":"application/json"}"#,
            ),
            (
                "3.1.2: opaque",
                &[("content-type", "application/xml")],
                b"<a/>",
                r#","datacontenttype":"application/xml","data_base64":"PGEvPg=="}"#,
            ),
            (
                "3.1.2: bytes",
                &[("content-type", "text/plain; charset=latin1")],
                &[0xE9, 0, 0xFF],
                r#","datacontenttype":"text/plain; charset=latin1","data_base64":"6QD/"}"#,
            ),
            (
                "JSON 3.1.1: no type, no assumption",
                &[],
                b"{\"xyz\": 123}",
                r#","data_base64":"eyJ4eXoiOiAxMjN9"}"#,
            ),
            (
                "3.1.3.1: extensions, names in any case",
                &[("ce-comexampleothervalue", "5")],
                b"",
                r#","comexampleothervalue":"5"}"#,
            ),
            (
                "3.1.3.2: its example",
                &[("ce-subject", "Euro%20%E2%82%AC%20%F0%9F%98%80")],
                b"",
                ",\"subject\":\"Euro \u{20ac} \u{1f600}\"}",
            ),
            ("3.1.3.2: lower case", &[("ce-subject", "%e2%82%ac")], b"", ",\"subject\":\"\u{20ac}\"}"),
            ("3.1.3.2: needlessly encoded", &[("ce-subject", "%41%2Fb")], b"", r#","subject":"A/b"}"#),
            ("3.1.3.2: one round", &[("ce-subject", "%2541")], b"", r#","subject":"%41"}"#),
            ("3.1.3.2: older senders' spaces", &[("ce-subject", "a b")], b"", r#","subject":"a b"}"#),
            (
                "3.1.3.2: older senders' quotes",
                &[("ce-subject", r#""a \"b\" \\ c""#)],
                b"",
                r#","subject":"a \"b\" \\ c"}"#,
            ),
            ("3.1.3.2: quotes first", &[("ce-subject", r#""%22%5C""#)], b"", r#","subject":"\"\\"}"#),
            ("spec, time", &[("ce-time", "2018-04-05T03:56:24Z")], b"", r#","time":"2018-04-05T03:56:24Z"}"#),
            ("3.1.3: other headers are none", &[("x-ce-subject", "a"), ("cesubject", "b")], b"", "}"),
        ];
        for (section, more, body, expected) in table {
            assert_eq!(judged(&headers(more), body), Ok(format!("{REQUIRED}{expected}")), "{section}");
        }
    }

    #[test]
    fn what_the_binding_forbids_is_refused() {
        type Case = (&'static str, &'static [(&'static str, &'static str)], &'static [u8], &'static str);
        let table: [Case; 17] = [
            ("3.1.1", &[("ce-datacontenttype", "text/plain")], b"", "ce-datacontenttype must not be sent"),
            ("spec, naming", &[("ce-data", "1")], b"", "ce-data must not be sent"),
            ("spec, naming", &[("ce-data_base64", "AA==")], b"", "ce-data_base64 must not be sent"),
            ("spec, naming", &[("ce-my-ext", "1")], b"", "attribute name \"my-ext\""),
            ("spec, naming", &[("ce-", "1")], b"", "attribute name \"\""),
            ("3.1.2 with 3.1.1", &[("content-type", "application/json")], b"{", "the body is not valid JSON"),
            (
                "3.1.2 with 3.1.1",
                &[("content-type", "application/json")],
                b"\xFF",
                "the body is not valid JSON",
            ),
            (
                "3.1.2: data is no place for attributes",
                &[("content-type", "application/json")],
                b"1,\"tenantid\":\"x\"",
                "the body is not valid JSON",
            ),
            (
                "3.1.2: one value",
                &[("content-type", "application/json")],
                b"1 2",
                "the body is not valid JSON",
            ),
            ("3.1.3.2: overlong", &[("ce-subject", "%C0%A0")], b"", "ce-subject is not UTF-8"),
            ("3.1.3.2: lone surrogate", &[("ce-subject", "%ED%A0%80")], b"", "ce-subject is not UTF-8"),
            ("3.1.3.2: percent is encoded", &[("ce-subject", "100%")], b"", "ce-subject has a percent sign"),
            ("3.1.3.2: percent is encoded", &[("ce-subject", "%zz")], b"", "ce-subject has a percent sign"),
            ("RFC 7230", &[("ce-subject", "\"a")], b"", "ce-subject ends within a quoted string"),
            ("spec, String", &[("ce-subject", "%0A")], b"", "\"subject\" must be"),
            ("spec, subject", &[("ce-subject", "")], b"", "\"subject\" must be"),
            ("spec, time", &[("ce-time", "noon")], b"", "RFC 3339"),
        ];
        for (section, more, body, expected) in table {
            let reason = judged(&headers(more), body).unwrap_err();
            assert!(reason.contains(expected), "{section}: {reason}");
        }
    }

    #[test]
    fn required_attributes_are_required_once_and_of_version_1_0() {
        for name in ["specversion", "id", "source", "type"] {
            let header: HeaderName = format!("ce-{name}").parse().unwrap();
            let mut without = headers(&[]);
            without.remove(&header);
            assert_eq!(judged(&without, b""), Err(format!("attribute \"{name}\" is required")));
            let mut twice = headers(&[]);
            let value = twice[&header].clone();
            twice.append(&header, value);
            assert_eq!(judged(&twice, b""), Err(format!("attribute \"{name}\" appears twice")));
        }
        let mut older = headers(&[]);
        older.insert("ce-specversion", HeaderValue::from_static("0.3"));
        assert!(judged(&older, b"").unwrap_err().contains("\"0.3\" is not supported"));
        let mut raw = headers(&[]);
        raw.insert("ce-subject", HeaderValue::from_bytes("\u{e9}".as_bytes()).unwrap());
        assert!(judged(&raw, b"").unwrap_err().contains("must be printable ASCII"));
    }

    /// What a conformant sender writes.
    fn encoded(text: &str) -> String {
        text.bytes()
            .map(|byte| match byte {
                b'!'..=b'~' if !b"\"%".contains(&byte) => char::from(byte).to_string(),
                _ => format!("%{byte:02X}"),
            })
            .collect()
    }

    proptest! {
        #[test]
        fn what_a_conformant_sender_encodes_is_read_back(subject in "[^\\p{Cc}\\p{Cn}]{1,60}", body in proptest::collection::vec(any::<u8>(), 1..100)) {
            let json = judged(&headers(&[("ce-subject", &encoded(&subject)), ("content-type", "image/png")]), &body).unwrap();
            let event = EventInput::parse(json.as_bytes()).unwrap();
            prop_assert_eq!(event.subject.as_deref(), Some(subject.as_str()));
            let Data::Base64(text) = event.data else { panic!("no bytes") };
            prop_assert_eq!(STANDARD.decode(text.as_bytes()).unwrap(), body);
        }

        #[test]
        fn arbitrary_headers_and_bodies_are_read_or_refused_with_a_4xx(
            values in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..30), 3), near in "[\"\\\\%a0 ]{0,20}",
            body in proptest::collection::vec(any::<u8>(), 0..60), json in any::<bool>(),
        ) {
            let mut all = headers(&[("content-type", if json { "application/json" } else { "a/b" })]);
            for (name, value) in ["ce-subject", "ce-id", "ce-x"].into_iter().zip(&values) {
                if let Ok(value) = HeaderValue::from_bytes(value) { all.insert(name, value); }
            }
            all.insert("ce-y", HeaderValue::from_str(&near).unwrap());
            match structured(&all, &body) {
                Ok(event) => { serde_json::from_str::<&RawValue>(&event).unwrap(); }
                Err(refusal) => prop_assert!((400..500).contains(&refusal.problem().status)),
            }
        }
    }
}
