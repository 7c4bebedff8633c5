//! Batch delivery: many events in one request, for subscriptions that ask for it.
//!
//! A batch is the JSON array of its events' envelopes (CloudEvents 1.0.2, "JSON Batch Format"). In outcomes, due records, replays
//! and dead letters that array stands where a single event stands, which is always an object: the first byte tells the two apart.
//! So what is tried again is the batch as it was, byte for byte, whatever its subscription asks for by then.

use crate::{DecodeError, MAX_EVENT_BYTES, outcome::Cause};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use std::{borrow::Cow, fmt, ops::RangeInclusive, str::FromStr};
use thiserror::Error;

/// Content type of a batch.
pub const CLOUDEVENTS_BATCH_JSON: &str = "application/cloudevents-batch+json";
/// Type of a batch whose events are of several types, where a single one is to be named.
pub const MIXED_TYPES: &str = "*";
/// Events of a batch: one is no batch, and an outcome may have to name them all.
pub const BATCH_EVENTS: RangeInclusive<u32> = 2..=1_000;
/// Bytes of a batch: at most what every record that may carry it has room for.
pub const BATCH_BYTES: RangeInclusive<u32> = 1_024..=MAX_EVENT_BYTES as u32;
/// Milliseconds that a batch stays open: shorter ones hardly fill, and longer ones keep the progress of partitions open.
pub const BATCH_AGE_MS: RangeInclusive<u32> = 10..=30_000;

/// When a subscription's batches close: by whichever bound is reached first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct BatchPolicy {
    /// Most events, within [`BATCH_EVENTS`].
    pub max_events: u32,
    /// Most bytes of the array, within [`BATCH_BYTES`]. An event that is larger goes alone.
    pub max_bytes: u32,
    /// Milliseconds from the first event on, within [`BATCH_AGE_MS`].
    pub max_age_ms: u32,
}

/// A policy outside its bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("batch.{name} is {value}, it must be from {least} to {most}")]
pub struct InvalidBatchPolicy {
    name: &'static str,
    value: u32,
    least: u32,
    most: u32,
}

/// The wire form, before its bounds were checked.
#[derive(Deserialize)]
struct Unchecked {
    max_events: u32,
    max_bytes: u32,
    max_age_ms: u32,
}

impl TryFrom<Unchecked> for BatchPolicy {
    type Error = InvalidBatchPolicy;

    fn try_from(raw: Unchecked) -> Result<Self, Self::Error> {
        Self::new(raw.max_events, raw.max_bytes, raw.max_age_ms)
    }
}

impl Default for BatchPolicy {
    /// 100 events, 256 KiB, 1 s.
    fn default() -> Self {
        Self { max_events: 100, max_bytes: 256 * 1024, max_age_ms: 1_000 }
    }
}

impl BatchPolicy {
    /// Checks the bounds.
    ///
    /// # Errors
    /// Which field is out of which bounds.
    pub fn new(max_events: u32, max_bytes: u32, max_age_ms: u32) -> Result<Self, InvalidBatchPolicy> {
        let fields = [
            ("max_events", max_events, BATCH_EVENTS),
            ("max_bytes", max_bytes, BATCH_BYTES),
            ("max_age_ms", max_age_ms, BATCH_AGE_MS),
        ];
        for (name, value, bounds) in fields {
            if !bounds.contains(&value) {
                return Err(InvalidBatchPolicy { name, value, least: *bounds.start(), most: *bounds.end() });
            }
        }
        Ok(Self { max_events, max_bytes, max_age_ms })
    }
}

/// Whether an event's place in a record holds a batch.
pub fn is_batch(event: &[u8]) -> bool {
    event.first() == Some(&b'[')
}

/// The array of `events`, each the JSON of one.
pub fn array<'e>(events: impl Iterator<Item = &'e [u8]> + Clone) -> Vec<u8> {
    let mut array = Vec::with_capacity(events.clone().map(|event| event.len() + 1).sum::<usize>() + 1);
    array.push(b'[');
    for event in events {
        if array.len() > 1 {
            array.push(b',');
        }
        array.extend_from_slice(event);
    }
    array.push(b']');
    array
}

/// The `webhook-id` of a batch of events with these message ids: the same for the same events in the same order.
pub fn batch_id<'i>(message_ids: impl Iterator<Item = &'i str>) -> String {
    let mut id = String::with_capacity(26);
    id.push_str("msg_");
    URL_SAFE_NO_PAD.encode_string(digest("batch", message_ids).to_be_bytes(), &mut id);
    id
}

/// What stands for the causes of a batch's members; text form 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Members(pub u128);

impl Members {
    /// Of members with these causes: equal for the same records in the same order.
    pub fn of<'c>(causes: impl Iterator<Item = &'c Cause>) -> Self {
        Self(digest("causes", causes.map(Cause::to_string)))
    }
}

impl fmt::Display for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for Members {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u128::from_str_radix(text, 16).map(Self)
    }
}

/// The first half of SHA-256 over texts, length-prefixed so that no two lists collide by concatenation.
fn digest(purpose: &str, texts: impl Iterator<Item = impl AsRef<str>>) -> u128 {
    let mut hash = Sha256::new();
    hash.update(purpose);
    for text in texts {
        let text = text.as_ref();
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text);
    }
    let hash: [u8; 32] = hash.finalize().into();
    let mut first = [0; 16];
    first.copy_from_slice(&hash[..16]);
    u128::from_be_bytes(first)
}

/// An event of a batch, by what history finds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member<'a> {
    /// The event's id.
    #[serde(borrow)]
    pub id: Cow<'a, str>,
    /// The event's type.
    #[serde(borrow, rename = "type")]
    pub event_type: Cow<'a, str>,
}

impl<'a> Member<'a> {
    /// The events of the batch that `event` is.
    ///
    /// # Errors
    /// When it is not an array of events.
    pub fn all(event: &'a RawValue) -> Result<Vec<Self>, DecodeError> {
        Ok(serde_json::from_str(event.get())?)
    }
}

/// What an outcome says about a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batched<'a> {
    /// How many events it has.
    pub events: u32,
    /// The events, where history is to name them and the outcome does not carry the batch.
    #[serde(default, borrow, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<Member<'a>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::RunId;
    use proptest::prelude::*;
    use uuid::Uuid;

    #[test]
    fn bounds_are_refused_by_the_name_of_the_field() {
        let table = [
            ((1, 2_048, 100), "batch.max_events is 1, it must be from 2 to 1000"),
            ((1_001, 2_048, 100), "batch.max_events is 1001, it must be from 2 to 1000"),
            ((2, 1_023, 100), "batch.max_bytes is 1023, it must be from 1024 to 1048576"),
            ((2, 1_048_577, 100), "batch.max_bytes is 1048577, it must be from 1024 to 1048576"),
            ((2, 2_048, 9), "batch.max_age_ms is 9, it must be from 10 to 30000"),
            ((2, 2_048, 30_001), "batch.max_age_ms is 30001, it must be from 10 to 30000"),
        ];
        for ((events, bytes, age), text) in table {
            assert_eq!(BatchPolicy::new(events, bytes, age).unwrap_err().to_string(), text);
            let json = format!(r#"{{"max_events":{events},"max_bytes":{bytes},"max_age_ms":{age}}}"#);
            assert!(serde_json::from_str::<BatchPolicy>(&json).is_err());
        }
        let BatchPolicy { max_events, max_bytes, max_age_ms } = BatchPolicy::default();
        assert!(BatchPolicy::new(max_events, max_bytes, max_age_ms).is_ok());
    }

    #[test]
    fn an_array_keeps_the_bytes_of_its_events_and_is_told_from_an_event() {
        let events = [r#"{"id" : "1","type":"a\u0062"}"#, r#"{"type":"b","id":"2"}"#];
        let array = array(events.iter().map(|event| event.as_bytes()));
        assert_eq!(String::from_utf8(array.clone()).unwrap(), format!("[{},{}]", events[0], events[1]));
        assert!(is_batch(&array) && !is_batch(events[0].as_bytes()) && !is_batch(b""));
        let raw: &RawValue = serde_json::from_slice(&array).unwrap();
        let members = Member::all(raw).unwrap();
        let found: Vec<_> = members.iter().map(|member| (&*member.id, &*member.event_type)).collect();
        assert_eq!(found, [("1", "ab"), ("2", "b")]);
    }

    #[test]
    fn an_id_follows_from_the_events_and_their_order() {
        let id = |ids: &[&str]| batch_id(ids.iter().copied());
        assert_eq!(id(&["msg_a", "msg_b"]), id(&["msg_a", "msg_b"]));
        assert_eq!(id(&["msg_a", "msg_b"]), "msg_5IWfoWaNZIxKoDk4po92-Q");
        for other in [&["msg_b", "msg_a"][..], &["msg_a"], &["msg_amsg_b"], &["msg_a", "msg_b", "msg_c"]] {
            assert_ne!(id(other), id(&["msg_a", "msg_b"]));
        }
    }

    proptest! {
        #[test]
        fn members_by_their_causes_round_trip_as_text(bits in any::<u128>(), offsets in proptest::collection::vec(0i64.., 2..5)) {
            let cause = |offset| Cause::Event { run: RunId(Uuid::from_u128(bits)), partition: 1, offset };
            let causes: Vec<Cause> = offsets.into_iter().map(cause).collect();
            let members = Members::of(causes.iter());
            prop_assert_eq!(members.to_string().parse::<Members>().unwrap(), members);
            prop_assert_eq!(Members(bits).to_string().parse::<Members>().unwrap(), Members(bits));
            prop_assert_ne!(Members::of(causes[1..].iter()), members);
        }
    }
}
