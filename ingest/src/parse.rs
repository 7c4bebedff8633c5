//! From a body to the bytes of each event: one object, an array of them, or one per line.
//!
//! A body is only cut here; each event is read later, one at a time, so a bad event fails alone. `data` stays a slice of
//! the body all the way.

use crate::{error::Refusal, media::Format};
use floodway_schemas::{
    array::{self, ArrayError},
    event::{EventError, EventInput},
};
use memchr::memchr_iter;

/// Least bytes of an event on a line of its own, `{"type":"a"}` and its end: bounds what is reserved for a body's events.
const MIN_LINE_BYTES: usize = 13;
/// The byte order mark in UTF-8. RFC 8259 forbids senders to begin JSON with it.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// The events of one request, in input order, each still in its JSON.
#[derive(Debug)]
pub(crate) struct Events<'a> {
    pieces: Vec<&'a [u8]>,
    rules: Rules,
}

/// Which events are valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rules {
    /// Only `type` is required: Floodway fills in the rest.
    Floodway,
    /// Those of the CloudEvents specification: its required attributes are required.
    CloudEvents,
}

impl<'a> Events<'a> {
    /// How many.
    pub(crate) fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Each event's JSON.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &'a [u8]> {
        self.pieces.iter().copied()
    }

    /// What its events are held against.
    pub(crate) fn rules(&self) -> Rules {
        self.rules
    }
}

/// Reads one event and holds it against the rules of its request.
pub(crate) fn read_event(json: &[u8], rules: Rules) -> Result<EventInput<'_>, EventError> {
    let event = EventInput::parse(json)?;
    if rules == Rules::CloudEvents {
        event.check_conformance()?;
    }
    Ok(event)
}

/// Cuts a body into its events, at most `limit`.
pub(crate) fn split(body: &[u8], format: Format, limit: usize) -> Result<Events<'_>, Refusal> {
    if body.starts_with(BYTE_ORDER_MARK) {
        return malformed("the body begins with a byte order mark; send UTF-8 without one");
    }
    if format == Format::Lines {
        return split_lines(body, limit).map(|pieces| Events { pieces, rules: Rules::Floodway });
    }
    let rules = if format == Format::Json { Rules::Floodway } else { Rules::CloudEvents };
    let first = body.iter().find(|byte| !byte.is_ascii_whitespace());
    let pieces = match (first, format) {
        (None, _) => return malformed("the body is empty"),
        (Some(b'{'), Format::Batched) => {
            return malformed("a batch is an array; one event is sent as application/cloudevents+json");
        }
        (Some(b'['), Format::Structured) => {
            return malformed(
                "an event is an object; an array is sent as application/cloudevents-batch+json",
            );
        }
        (Some(b'{'), _) => vec![body],
        (Some(b'['), _) => split_array(body, limit)?,
        (Some(_), _) => return malformed("the body must be an event object or an array of them"),
    };
    // CloudEvents JSON format, section 4.3: an empty batch is valid in a request.
    if pieces.is_empty() && format != Format::Batched {
        return Err(Refusal::EmptyBatch);
    }
    Ok(Events { pieces, rules })
}

fn split_array(body: &[u8], limit: usize) -> Result<Vec<&[u8]>, Refusal> {
    array::elements(body, limit).map_err(|error| match error {
        ArrayError::TooMany(limit) => Refusal::BatchTooLarge { limit },
        _ => Refusal::Malformed(format!("not valid JSON: {error}")),
    })
}

/// One event per line; blank lines are none.
fn split_lines(body: &[u8], limit: usize) -> Result<Vec<&[u8]>, Refusal> {
    let mut lines = Vec::with_capacity(limit.min(body.len() / MIN_LINE_BYTES + 1));
    let mut start = 0;
    for end in memchr_iter(b'\n', body).chain([body.len()]) {
        // The carriage return of CRLF is white space to JSON, and so are the blanks around an event.
        let line = body[start..end].trim_ascii();
        start = end + 1;
        if line.is_empty() {
            continue;
        }
        if lines.len() == limit {
            return Err(Refusal::BatchTooLarge { limit });
        }
        lines.push(line);
    }
    if lines.is_empty() { Err(Refusal::EmptyBatch) } else { Ok(lines) }
}

fn malformed<T>(reason: &str) -> Result<T, Refusal> {
    Err(Refusal::Malformed(reason.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FORMATS: [Format; 5] =
        [Format::Json, Format::Lines, Format::Structured, Format::Batched, Format::Binary];

    fn pieces(body: &str, format: Format) -> Result<Vec<&str>, Refusal> {
        split(body.as_bytes(), format, 3)
            .map(|events| events.iter().map(|e| str::from_utf8(e).unwrap()).collect())
    }

    fn json(body: &str) -> Result<Vec<&str>, Refusal> {
        pieces(body, Format::Json)
    }

    #[test]
    fn an_object_is_one_event_and_an_array_is_many_with_their_bytes_untouched() {
        assert_eq!(json(" {\"a\" : 1}").unwrap(), [" {\"a\" : 1}"]);
        assert_eq!(json("[{\"a\" : 1} ,2, [ ]]").unwrap(), ["{\"a\" : 1}", "2", "[ ]"]);
    }

    #[test]
    fn a_body_without_events_or_with_too_many_is_refused() {
        assert_eq!(json("[]"), Err(Refusal::EmptyBatch));
        assert_eq!(json("[1,2,3,4]"), Err(Refusal::BatchTooLarge { limit: 3 }));
        assert_eq!(json("[1,2,3]").unwrap().len(), 3);
        for body in ["", "  ", "3", "\"a\"", "null", "[1", "[1,]", "[1]2", "[{]", "\u{feff}{}", "\u{feff}[]"]
        {
            assert!(matches!(json(body), Err(Refusal::Malformed(_))), "{body}");
        }
    }

    #[test]
    fn a_line_is_an_event_and_blank_lines_are_none() {
        let lines = |body| pieces(body, Format::Lines);
        assert_eq!(lines("{\"a\":1}\r\n\r\n \t \n[nope\n{}").unwrap(), ["{\"a\":1}", "[nope", "{}"]);
        assert_eq!(lines("{}\n{}\n{}\n\n").unwrap().len(), 3);
        assert_eq!(lines("{}\n{}\n{}\n{}"), Err(Refusal::BatchTooLarge { limit: 3 }));
        for body in ["", "\n", " \r\n\n"] {
            assert_eq!(lines(body), Err(Refusal::EmptyBatch));
        }
        assert!(matches!(lines("\u{feff}{}"), Err(Refusal::Malformed(_))));
    }

    /// CloudEvents HTTP binding, sections 3.2.2 and 3.3.2; JSON format, sections 3, 4.1 and 4.3.
    #[test]
    fn structured_mode_is_one_object_and_batched_mode_is_an_array() {
        assert_eq!(pieces("{}", Format::Structured).unwrap(), ["{}"]);
        assert_eq!(pieces("[{},{}]", Format::Batched).unwrap(), ["{}", "{}"]);
        assert_eq!(pieces("[ ]", Format::Batched).unwrap(), [""; 0]);
        for (body, format) in [
            ("[{}]", Format::Structured),
            ("{}", Format::Batched),
            ("", Format::Batched),
            ("7", Format::Structured),
        ] {
            assert!(matches!(pieces(body, format), Err(Refusal::Malformed(_))), "{body}");
        }
        assert_eq!(pieces("[1,2,3,4]", Format::Batched), Err(Refusal::BatchTooLarge { limit: 3 }));
    }

    #[test]
    fn only_the_binding_of_cloudevents_requires_its_attributes() {
        let rules = FORMATS.map(|format| {
            let body: &[u8] = if format == Format::Batched { b"[{}]" } else { b"{}" };
            split(body, format, 3).unwrap().rules()
        });
        assert_eq!(
            rules,
            [Rules::Floodway, Rules::Floodway, Rules::CloudEvents, Rules::CloudEvents, Rules::CloudEvents]
        );
        assert!(read_event(br#"{"type":"a"}"#, Rules::Floodway).is_ok());
        assert!(read_event(br#"{"type":"a"}"#, Rules::CloudEvents).is_err());
    }

    fn check_any(body: &[u8]) -> Result<(), TestCaseError> {
        for format in FORMATS {
            match split(body, format, 10) {
                Ok(events) => {
                    prop_assert!(events.len() <= 10);
                    for event in events.iter() {
                        let _ = read_event(event, events.rules());
                    }
                }
                Err(refusal) => prop_assert!((400..500).contains(&refusal.problem().status)),
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_split_or_refused_with_a_4xx(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            check_any(&body)?;
        }

        #[test]
        fn almost_json_is_split_or_refused_with_a_4xx(body in "[\\[\\]{}\",:a1 \\\\\\n]{0,80}") {
            check_any(body.as_bytes())?;
        }

        #[test]
        fn lines_and_arrays_hold_the_same_events(numbers in proptest::collection::vec(0..1000, 1..10), crlf in any::<bool>()) {
            let events: Vec<String> = numbers.iter().map(|n| format!("{{\"type\":\"a\",\"data\":{n}}}")).collect();
            let lines = events.join(if crlf { "\r\n" } else { "\n" });
            let array = format!("[{}]", events.join(","));
            let (lines, array) = (split(lines.as_bytes(), Format::Lines, 10).unwrap(), split(array.as_bytes(), Format::Json, 10).unwrap());
            prop_assert_eq!(lines.pieces, array.pieces);
        }
    }
}
