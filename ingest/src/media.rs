//! What the headers say of a body: how its events are written, and how it is compressed.
//!
//! The order is that of the CloudEvents HTTP binding 1.0.2, section 3: a content type of CloudEvents' own decides first,
//! then `ce-specversion`, which makes any other type the type of the event's data.

use crate::error::Refusal;
use floodway_schemas::conform::declares_json;
use http::{
    HeaderMap,
    header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName},
};

/// The content types that are read, as `Accept-Post` tells them. In binary mode every type is.
pub(crate) const ACCEPTED_TYPES: &str = "application/json, application/x-ndjson, application/cloudevents+json, application/cloudevents-batch+json";
/// The content codings that are read, as `Accept-Encoding` tells them.
pub(crate) const ACCEPTED_CODINGS: &str = "gzip, zstd";

/// Marks an event in binary mode.
pub(crate) const CE_SPECVERSION: HeaderName = HeaderName::from_static("ce-specversion");

/// What every content type of CloudEvents' own begins with.
const CLOUDEVENTS_PREFIX: &str = "application/cloudevents";
/// One event object per line. The first is what most producers send; none of them is registered.
const LINES_TYPES: [&str; 4] =
    ["application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"];

const UNKNOWN_TYPE: Refusal = Refusal::UnsupportedMedia(
    "the content type must be application/json, application/x-ndjson, application/cloudevents+json or \
     application/cloudevents-batch+json; with the header ce-specversion it may be any",
);
const OTHER_CHARSET: Refusal = Refusal::UnsupportedMedia("JSON must be in UTF-8");
const OTHER_FORMAT: Refusal = Refusal::UnsupportedMedia(
    "of CloudEvents' own types, application/cloudevents+json and application/cloudevents-batch+json are read",
);

/// How the events of a body are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// An event object or an array of them, by Floodway's rules.
    Json,
    /// An event object per line, by Floodway's rules.
    Lines,
    /// CloudEvents' structured mode: an event object.
    Structured,
    /// CloudEvents' batched mode: an array of event objects.
    Batched,
    /// CloudEvents' binary mode: the attributes in headers, the body is the data.
    Binary,
}

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

/// How the events of the body are written.
pub(crate) fn format(headers: &HeaderMap) -> Result<Format, Refusal> {
    let content_type = content_type(headers)?;
    let text = content_type.unwrap_or_default();
    let media_type = essence(text);
    let format = if has_prefix(media_type, CLOUDEVENTS_PREFIX) {
        match &media_type[CLOUDEVENTS_PREFIX.len()..] {
            suffix if suffix.eq_ignore_ascii_case("+json") => Format::Structured,
            suffix if suffix.eq_ignore_ascii_case("-batch+json") => Format::Batched,
            _ => return Err(OTHER_FORMAT),
        }
    } else if headers.contains_key(CE_SPECVERSION) {
        Format::Binary
    } else if media_type.eq_ignore_ascii_case("application/json") {
        Format::Json
    } else if LINES_TYPES.iter().any(|known| media_type.eq_ignore_ascii_case(known)) {
        Format::Lines
    } else {
        return Err(UNKNOWN_TYPE);
    };
    // In binary mode the data may be text in any charset, as long as it is not JSON.
    let is_json = format != Format::Binary || declares_json(text);
    if is_json && !has_utf8_charset(text) { Err(OTHER_CHARSET) } else { Ok(format) }
}

/// The body's compression; `None` when there is none.
pub(crate) fn coding(headers: &HeaderMap) -> Result<Option<Coding>, Refusal> {
    let mut found = None;
    for value in headers.get_all(CONTENT_ENCODING) {
        let names = value.to_str().map_err(|_| Refusal::UnsupportedCoding)?;
        for name in names.split(',').map(str::trim) {
            let coding = match name {
                _ if name.is_empty() || name.eq_ignore_ascii_case("identity") => continue,
                // RFC 9110, section 8.4.1.3: the same.
                _ if name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip") => Coding::Gzip,
                _ if name.eq_ignore_ascii_case("zstd") => Coding::Zstd,
                _ => return Err(Refusal::UnsupportedCoding),
            };
            // Nobody compresses twice but to get more out of a limit than it says.
            if found.replace(coding).is_some() {
                return Err(Refusal::UnsupportedCoding);
            }
        }
    }
    Ok(found)
}

/// The content type as sent; two of them are none to rely on.
pub(crate) fn content_type(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let mut values = headers.get_all(CONTENT_TYPE).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| UNKNOWN_TYPE),
        (Some(_), Some(_)) => Err(Refusal::UnsupportedMedia("the content type must be sent once")),
    }
}

/// The type without its parameters.
fn essence(content_type: &str) -> &str {
    content_type.split_once(';').map_or(content_type, |(essence, _)| essence).trim()
}

fn has_prefix(text: &str, prefix: &str) -> bool {
    text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

/// Whether every charset that is named is UTF-8, or its subset ASCII. Other parameters mean nothing here, and RFC 2045 says
/// to ignore them.
fn has_utf8_charset(content_type: &str) -> bool {
    content_type.split(';').skip(1).filter_map(|parameter| parameter.split_once('=')).all(|(name, value)| {
        let value = value.trim().trim_matches('"');
        !name.trim().eq_ignore_ascii_case("charset")
            || value.eq_ignore_ascii_case("utf-8")
            || value.eq_ignore_ascii_case("us-ascii")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    fn format_of(content_type: &str) -> Result<Format, Refusal> {
        format(&headers(&[("content-type", content_type)]))
    }

    #[test]
    fn the_content_type_says_how_events_are_written() {
        let table = [
            ("application/json", Format::Json),
            ("Application/JSON; charset=UTF-8", Format::Json),
            ("application/json;profile=x; charset=us-ascii;", Format::Json),
            ("application/x-ndjson", Format::Lines),
            ("application/ndjson; charset=utf-8", Format::Lines),
            ("application/jsonl", Format::Lines),
            ("application/x-jsonlines", Format::Lines),
            ("application/cloudevents+json;charset=\"utf-8\"", Format::Structured),
            ("Application/CloudEvents+JSON", Format::Structured),
            ("application/cloudevents-batch+json; charset=utf-8;", Format::Batched),
        ];
        for (value, expected) in table {
            assert_eq!(format_of(value), Ok(expected), "{value}");
        }
        for (value, expected) in [
            ("text/plain", UNKNOWN_TYPE),
            ("application/jso", UNKNOWN_TYPE),
            ("", UNKNOWN_TYPE),
            ("application/json; charset=latin1", OTHER_CHARSET),
            ("application/x-ndjson; charset=utf-16", OTHER_CHARSET),
            ("application/cloudevents+json; charset=utf-16", OTHER_CHARSET),
            ("application/cloudevents", OTHER_FORMAT),
            ("application/cloudevents+avro", OTHER_FORMAT),
            ("application/cloudevents-batch+xml", OTHER_FORMAT),
        ] {
            assert_eq!(format_of(value), Err(expected), "{value}");
        }
        assert_eq!(format(&HeaderMap::new()), Err(UNKNOWN_TYPE));
        let mut twice = headers(&[("content-type", "application/json")]);
        twice.append(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        assert!(format(&twice).is_err());
    }

    /// HTTP binding, section 3: the content type first, else binary mode.
    #[test]
    fn ce_specversion_makes_every_other_type_that_of_the_data() {
        let with =
            |content_type| format(&headers(&[("content-type", content_type), ("ce-specversion", "1.0")]));
        for value in
            ["application/json", "text/plain; charset=latin1", "application/x-ndjson", "image/png", ""]
        {
            assert_eq!(with(value), Ok(Format::Binary), "{value}");
        }
        assert_eq!(format(&headers(&[("ce-specversion", "1.0")])), Ok(Format::Binary));
        assert_eq!(with("application/cloudevents+json"), Ok(Format::Structured));
        assert_eq!(with("application/cloudevents+avro"), Err(OTHER_FORMAT));
        assert_eq!(with("application/problem+json; charset=utf-16"), Err(OTHER_CHARSET));
    }

    #[test]
    fn one_known_coding_is_read_and_nothing_else() {
        let coding_of = |value| coding(&headers(&[("content-encoding", value)]));
        for (value, expected) in [
            ("gzip", Some(Coding::Gzip)),
            ("X-GZIP", Some(Coding::Gzip)),
            ("zstd, identity", Some(Coding::Zstd)),
            ("identity", None),
            ("", None),
        ] {
            assert_eq!(coding_of(value), Ok(expected), "{value}");
        }
        for value in ["br", "deflate", "gzip, gzip", "gzip,zstd", "gzip;q=1"] {
            assert_eq!(coding_of(value), Err(Refusal::UnsupportedCoding), "{value}");
        }
        let mut twice = headers(&[("content-encoding", "gzip")]);
        twice.append(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        assert_eq!(coding(&twice), Err(Refusal::UnsupportedCoding));
    }

    proptest! {
        #[test]
        fn arbitrary_headers_are_read_or_refused_with_415(
            content_type in proptest::collection::vec(any::<u8>(), 0..60),
            encoding in proptest::collection::vec(any::<u8>(), 0..20), binary in any::<bool>(),
        ) {
            let mut headers = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_bytes(&content_type) { headers.insert(CONTENT_TYPE, value); }
            if let Ok(value) = HeaderValue::from_bytes(&encoding) { headers.insert(CONTENT_ENCODING, value); }
            if binary { headers.insert(CE_SPECVERSION, HeaderValue::from_static("1.0")); }
            for refusal in [format(&headers).err(), coding(&headers).err()].into_iter().flatten() {
                prop_assert_eq!(refusal.problem().status, 415);
            }
        }
    }
}
