//! What CloudEvents 1.0.2 demands of an event beyond what Floodway demands of every event.
//!
//! Producers that send plain JSON are spared these rules: Floodway fills in what they left out. Whoever sends by the
//! CloudEvents HTTP binding gets the specification's answer.

use crate::event::{EventError, EventInput, string};
use serde_json::value::RawValue;

impl EventInput<'_> {
    /// Checks the event against the CloudEvents specification.
    ///
    /// # Errors
    /// A required attribute that is absent, or a value that is not of its attribute's type.
    pub fn check_conformance(&self) -> Result<(), EventError> {
        if !self.has_specversion {
            return Err(EventError::Missing("specversion"));
        }
        if self.id.is_none() {
            return Err(EventError::Missing("id"));
        }
        let source = self.source.as_deref().ok_or(EventError::Missing("source"))?;
        require(is_uri_reference(source), "source", "a URI-reference (RFC 3986)")?;
        if let Some(schema) = &self.dataschema {
            require(is_uri(schema), "dataschema", "an absolute URI (RFC 3986)")?;
        }
        if let Some(media_type) = &self.datacontenttype {
            require(is_media_type(media_type), "datacontenttype", "a media type (RFC 2046)")?;
        }
        if let Some(subject) = &self.subject {
            require(!has_noncharacter(subject), "subject", CHARACTERS)?;
        }
        self.extensions.iter().try_for_each(|(name, value)| check_characters(name, value))
    }
}

/// Whether a media type declares JSON: CloudEvents JSON format, section 3.1.1: `*/json` or `*/*+json`, parameters aside.
pub fn declares_json(media_type: &str) -> bool {
    let essence = media_type.split_once(';').map_or(media_type, |(essence, _)| essence).trim();
    essence.split_once('/').is_some_and(|(_, subtype)| {
        let suffix = subtype.rsplit_once('+').map_or(subtype, |(_, suffix)| suffix);
        suffix.eq_ignore_ascii_case("json")
    })
}

const CHARACTERS: &str = "without Unicode noncharacters";

fn require(holds: bool, attribute: &str, expected: &'static str) -> Result<(), EventError> {
    if holds { Ok(()) } else { Err(EventError::WrongType { attribute: attribute.to_owned(), expected }) }
}

fn check_characters(name: &str, value: &RawValue) -> Result<(), EventError> {
    let raw = value.get();
    // Plain ASCII holds none, and numbers and booleans are that.
    if raw.is_ascii() && !raw.contains('\\') {
        return Ok(());
    }
    require(!has_noncharacter(&string(name, value)?), name, CHARACTERS)
}

/// CloudEvents 1.0.2, "Type System": noncharacters, the last two code points of each plane and U+FDD0–U+FDEF, are not
/// allowed in a String.
fn has_noncharacter(text: &str) -> bool {
    text.chars().map(u32::from).any(|c| c & 0xFFFE == 0xFFFE || (0xFDD0..=0xFDEF).contains(&c))
}

/// RFC 3986, section 4.1: a URI, or a relative reference.
fn is_uri_reference(text: &str) -> bool {
    let (hierarchy, fragment) = text.split_once('#').unwrap_or((text, ""));
    let (hierarchy, query) = hierarchy.split_once('?').unwrap_or((hierarchy, ""));
    let path = match hierarchy.split_once(':') {
        Some((scheme, path)) if is_scheme(scheme) => path,
        // Section 4.2: the first segment of a relative path has no colon.
        Some((segment, _)) if !segment.contains('/') => return false,
        _ => hierarchy,
    };
    let (authority, path) = match path.strip_prefix("//") {
        Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
        None => ("", path),
    };
    // The brackets of an IPv6 address are the only ones.
    is_uri_text(authority, b":@[]")
        && is_uri_text(path, b":@/")
        && [query, fragment].iter().all(|part| is_uri_text(part, b":@/?"))
}

/// RFC 3986, section 4.3: with a scheme.
fn is_uri(text: &str) -> bool {
    text.split_once(':').is_some_and(|(scheme, _)| is_scheme(scheme)) && is_uri_reference(text)
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

/// Unreserved characters, sub-delimiters, percent-encoded bytes, and `more`.
fn is_uri_text(text: &str, more: &[u8]) -> bool {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let good = match byte {
            b'%' => (0..2).all(|_| bytes.next().is_some_and(|digit| digit.is_ascii_hexdigit())),
            _ => byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte) || more.contains(&byte),
        };
        if !good {
            return false;
        }
    }
    true
}

/// RFC 2045, section 5.1: type, subtype, and parameters of the form name=value.
fn is_media_type(text: &str) -> bool {
    let (essence, parameters) = text.split_once(';').unwrap_or((text, ""));
    let Some((main, sub)) = essence.trim_end().split_once('/') else { return false };
    let parameters = parameters.split(';').map(str::trim).filter(|parameter| !parameter.is_empty());
    is_token(main)
        && is_token(sub)
        // A quoted value may hold a semicolon: then its pieces are not judged.
        && (text.contains('"') || parameters.into_iter().all(|p| p.split_once('=').is_some_and(|(name, value)| is_token(name) && is_token(value))))
}

fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?=".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Section of the CloudEvents specification or JSON format, the event, and what is said of it, if it is refused.
    const CASES: [(&str, &str, Option<&str>); 35] = [
        (
            "spec, example",
            r#"{"specversion":"1.0","type":"com.github.pull_request.opened","source":"https://github.com/cloudevents/spec/pull","subject":"123","id":"A234-1234-1234","time":"2018-04-05T17:31:00Z","comexampleextension1":"value","comexampleothervalue":5,"datacontenttype":"text/xml","data":"<much wow=\"xml\"/>"}"#,
            None,
        ),
        (
            "JSON 3.2, example",
            r#"{"specversion":"1.0","type":"com.example.someevent","source":"/mycontext","id":"A234-1234-1234","datacontenttype":"application/vnd.apache.thrift.binary","data_base64":"AP8="}"#,
            None,
        ),
        (
            "JSON 3.2, example",
            r#"{"specversion":"1.0","type":"com.example.someevent","source":"/mycontext","subject":null,"id":"C","unsetextension":null,"data":1.5}"#,
            None,
        ),
        (
            "JSON 3.1.1: null is a payload",
            r#"{"specversion":"1.0","type":"t","source":"s","id":"1","data":null}"#,
            None,
        ),
        (
            "REQUIRED: specversion",
            r#"{"type":"t","source":"s","id":"1"}"#,
            Some("\"specversion\" is required"),
        ),
        ("REQUIRED: id", r#"{"specversion":"1.0","type":"t","source":"s"}"#, Some("\"id\" is required")),
        ("REQUIRED: source", r#"{"specversion":"1.0","type":"t","id":"1"}"#, Some("\"source\" is required")),
        ("REQUIRED: type", r#"{"specversion":"1.0","source":"s","id":"1"}"#, Some("\"type\" is required")),
        (
            "JSON 2.2: null is absent",
            r#"{"specversion":null,"type":"t","source":"s","id":"1"}"#,
            Some("\"specversion\" is required"),
        ),
        (
            "JSON 2.2: null is absent",
            r#"{"specversion":"1.0","type":"t","source":"s","id":null}"#,
            Some("\"id\" is required"),
        ),
        ("id: non-empty", r#"{"specversion":"1.0","type":"t","source":"s","id":""}"#, Some("\"id\" must be")),
        (
            "id: String",
            r#"{"specversion":"1.0","type":"t","source":"s","id":1}"#,
            Some("\"id\" must be a string"),
        ),
        (
            "specversion: String",
            r#"{"specversion":1.0,"type":"t","source":"s","id":"1"}"#,
            Some("\"specversion\" must be a string"),
        ),
        (
            "specversion: 1.0",
            r#"{"specversion":"1.1","type":"t","source":"s","id":"1"}"#,
            Some("specversion \"1.1\""),
        ),
        (
            "specversion: 1.0",
            r#"{"specversion":"0.3","type":"t","source":"s","id":"1"}"#,
            Some("specversion \"0.3\""),
        ),
        (
            "RFC 8259: names are unique",
            r#"{"specversion":"1.0","specversion":"1.0","type":"t","source":"s","id":"1"}"#,
            Some("appears twice"),
        ),
        (
            "source: non-empty URI-reference",
            r#"{"specversion":"1.0","type":"t","source":"","id":"1"}"#,
            Some("\"source\" must be"),
        ),
        (
            "source: URI-reference",
            r#"{"specversion":"1.0","type":"t","source":"a|b","id":"1"}"#,
            Some("\"source\" must be a URI-reference"),
        ),
        (
            "source: URI-reference",
            r#"{"specversion":"1.0","type":"t","source":"/%4","id":"1"}"#,
            Some("\"source\" must be a URI-reference"),
        ),
        (
            "dataschema: URI",
            r#"{"specversion":"1.0","type":"t","source":"s","id":"1","dataschema":"https://example.com/s.json#a"}"#,
            None,
        ),
        (
            "dataschema: URI",
            r#"{"specversion":"1.0","type":"t","source":"s","id":"1","dataschema":"/s.json"}"#,
            Some("\"dataschema\" must be an absolute URI"),
        ),
        (
            "dataschema: non-empty",
            r#"{"specversion":"1.0","type":"t","source":"s","id":"1","dataschema":""}"#,
            Some("\"dataschema\" must be"),
        ),
        (
            "datacontenttype: RFC 2046",
            r#"{"specversion":"1.0","type":"t","source":"s","id":"1","datacontenttype":"TEXT/Plain; CharSet=utf-8"}"#,
            None,
        ),
        (
            "datacontenttype: RFC 2046",
            r#"{"specversion":"1.0","type":"t","source":"s","id":"1","datacontenttype":"json"}"#,
            Some("\"datacontenttype\" must be a media type"),
        ),
        (
            "subject: non-empty",
            r#"{"specversion":"1.0","type":"t","source":"s","id":"1","subject":""}"#,
            Some("\"subject\" must be"),
        ),
        (
            "Type System: noncharacters",
            r#"{"specversion":"1.0","type":"t","source":"s","id":"1","subject":"\uFFFE"}"#,
            Some("noncharacters"),
        ),
        (
            "Type System: surrogates in pairs",
            r#"{"specversion":"1.0","type":"t","source":"s","id":"1","subject":"\uD83D\uDE00"}"#,
            None,
        ),
        (
            "Type System: lone surrogates",
            r#"{"specversion":"1.0","type":"t","source":"s","id":"1","subject":"\uDEAD"}"#,
            Some("\"subject\" must be"),
        ),
        (
            "time: RFC 3339",
            r#"{"specversion":"1.0","type":"t","source":"s","id":"1","time":"2018-04-05"}"#,
            Some("RFC 3339"),
        ),
        (
            "Naming: lower-case letters and digits",
            r#"{"specversion":"1.0","type":"t","source":"s","id":"1","my_ext":"x"}"#,
            Some("attribute name \"my_ext\""),
        ),
        (
            "Type System: Boolean, Integer, String",
            r#"{"specversion":"1.0","type":"t","source":"s","id":"1","a":true,"b":-2147483648,"c":"\u20ac"}"#,
            None,
        ),
        (
            "Type System: Integer of 32 bits",
            r#"{"specversion":"1.0","type":"t","source":"s","id":"1","a":2147483648}"#,
            Some("\"a\" must be"),
        ),
        (
            "JSON 2.2: Integer without fraction",
            r#"{"specversion":"1.0","type":"t","source":"s","id":"1","a":1.0}"#,
            Some("\"a\" must be"),
        ),
        (
            "Type System: no objects",
            r#"{"specversion":"1.0","type":"t","source":"s","id":"1","a":{"b":1}}"#,
            Some("\"a\" must be"),
        ),
        (
            "JSON 3.1.1: one payload",
            r#"{"specversion":"1.0","type":"t","source":"s","id":"1","data":1,"data_base64":"AA=="}"#,
            Some("exclude each other"),
        ),
    ];

    #[test]
    fn events_are_judged_as_the_specification_says() {
        for (section, json, expected) in CASES {
            let verdict = EventInput::parse(json.as_bytes()).and_then(|event| event.check_conformance());
            match (verdict, expected) {
                (Ok(()), None) => {}
                (Err(error), Some(part)) if error.to_string().contains(part) => {}
                (verdict, _) => panic!("{section}: {json}: {verdict:?}"),
            }
        }
    }

    #[test]
    fn json_is_told_by_the_subtype() {
        for value in ["application/json", "TEXT/JSON; a=b", "application/problem+JSON", "a/b+c+json"] {
            assert!(declares_json(value), "{value}");
        }
        for value in ["application/jsonx", "application/xml", "json", "a/json+xml", "", "a/\u{e9}json"] {
            assert!(!declares_json(value), "{value}");
        }
    }

    #[test]
    fn uri_references_follow_rfc_3986() {
        let good = [
            "https://github.com/cloudevents",
            "mailto:cncf-wg-serverless@lists.cncf.io",
            "urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66",
            "/cloudevents/spec/pull/123",
            "1-555-123-4567",
            "//host/path?a=b/c?d#e",
            "http://[2001:db8::1]:8080/",
            "a/b:c",
            "%C3%A9",
            "#",
        ];
        for text in good {
            assert!(is_uri_reference(text), "{text}");
        }
        for text in ["1a:b", "a b", "a\\b", "a#b#c", "a[1]", "%zz", "%", "<a>", "\u{e9}"] {
            assert!(!is_uri_reference(text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_is_judged_without_a_panic(text in "\\PC{0,40}") {
            let _ = (is_uri(&text), is_uri_reference(&text), is_media_type(&text), has_noncharacter(&text));
        }
    }
}
