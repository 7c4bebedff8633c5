//! From a body to the bytes of each event: one object, or an array of them.
//!
//! The array is split without building a tree; each event's attributes are read later, one event at a time, so a
//! bad event fails alone. `data` stays a slice of the body all the way.

use crate::error::Refusal;
use serde::{
    Deserializer,
    de::{self, DeserializeSeed, SeqAccess, Visitor},
};
use serde_json::value::RawValue;
use std::fmt;

/// Least bytes of an event in an array, `{"type":"a"},`: bounds what is reserved for the events of a body.
const MIN_EVENT_BYTES: usize = 13;

/// The events of one request, in input order, each still in its JSON.
#[derive(Debug)]
pub(crate) enum Events<'a> {
    /// A body that is one object.
    One(&'a [u8]),
    /// A body that is an array.
    Many(Vec<&'a RawValue>),
}

impl<'a> Events<'a> {
    /// How many.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Many(events) => events.len(),
        }
    }

    /// Each event's JSON.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &'a [u8]> {
        let (one, many) = match self {
            Self::One(event) => (Some(*event), [].as_slice()),
            Self::Many(events) => (None, events.as_slice()),
        };
        one.into_iter().chain(many.iter().map(|event| event.get().as_bytes()))
    }
}

/// Splits a body into its events, at most `limit`.
pub(crate) fn split(body: &[u8], limit: usize) -> Result<Events<'_>, Refusal> {
    match body.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'{') => Ok(Events::One(body)),
        Some(b'[') => split_array(body, limit),
        Some(_) => Err(Refusal::Malformed("the body must be an event object or an array of them".to_owned())),
        None => Err(Refusal::Malformed("the body is empty".to_owned())),
    }
}

fn split_array(body: &[u8], limit: usize) -> Result<Events<'_>, Refusal> {
    let mut exceeded = false;
    let capacity = limit.min(body.len() / MIN_EVENT_BYTES);
    let mut json = serde_json::Deserializer::from_slice(body);
    let events = Elements { limit, capacity, exceeded: &mut exceeded }
        .deserialize(&mut json)
        .and_then(|events| json.end().map(|()| events));
    match events {
        Ok(events) if events.is_empty() => Err(Refusal::EmptyBatch),
        Ok(events) => Ok(Events::Many(events)),
        Err(_) if exceeded => Err(Refusal::BatchTooLarge { limit }),
        Err(error) => Err(Refusal::Malformed(format!("not valid JSON: {error}"))),
    }
}

/// The elements of an array, each untouched; reading stops at the first one over the limit.
struct Elements<'e> {
    limit: usize,
    capacity: usize,
    exceeded: &'e mut bool,
}

impl<'de> DeserializeSeed<'de> for Elements<'_> {
    type Value = Vec<&'de RawValue>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Elements<'_> {
    type Value = Vec<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of events")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut events = Vec::with_capacity(self.capacity);
        while let Some(event) = seq.next_element()? {
            if events.len() == self.limit {
                *self.exceeded = true;
                return Err(de::Error::custom("too many events"));
            }
            events.push(event);
        }
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn texts(body: &str) -> Result<Vec<&str>, Refusal> {
        split(body.as_bytes(), 3).map(|events| events.iter().map(|e| str::from_utf8(e).unwrap()).collect())
    }

    #[test]
    fn an_object_is_one_event_and_an_array_is_many_with_their_bytes_untouched() {
        assert_eq!(texts(" {\"a\" : 1}").unwrap(), [" {\"a\" : 1}"]);
        assert_eq!(texts("[{\"a\" : 1} ,2, [ ]]").unwrap(), ["{\"a\" : 1}", "2", "[ ]"]);
    }

    #[test]
    fn a_body_without_events_or_with_too_many_is_refused() {
        assert_eq!(texts("[]"), Err(Refusal::EmptyBatch));
        assert_eq!(texts("[1,2,3,4]"), Err(Refusal::BatchTooLarge { limit: 3 }));
        assert_eq!(texts("[1,2,3]").unwrap().len(), 3);
        for body in ["", "  ", "3", "\"a\"", "null", "[1", "[1,]", "[1]2", "[{]", "[\"\u{1}\"]"] {
            assert!(matches!(texts(body), Err(Refusal::Malformed(_))), "{body}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_split_or_refused_with_a_4xx(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Err(refusal) = split(&body, 10) {
                prop_assert!((400..500).contains(&refusal.problem().status));
            }
        }

        #[test]
        fn almost_json_is_split_or_refused_with_a_4xx(body in "[\\[\\]{}\",:a1 \\\\]{0,80}") {
            if let Err(refusal) = split(body.as_bytes(), 10) {
                prop_assert!((400..500).contains(&refusal.problem().status));
            }
        }
    }
}
