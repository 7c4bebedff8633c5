//! A delivery that was given up: the record on `dead-letters`, for the users' own consumers.

use crate::{
    DecodeError, UnixMillis,
    error::check_version,
    ids::{SubscriptionId, TenantId},
    outcome::{DeadReason, ErrorClass},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::borrow::Cow;

/// Major version of dead-letter records.
pub const DEAD_LETTER_VERSION: u32 = 1;

/// The value of a record on the `dead-letters` topic; its key is `tenant/subscription`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeadLetter<'a> {
    /// [`DEAD_LETTER_VERSION`].
    pub v: u32,
    /// Identity: `<shard>-<offset>` of the outcome that gave the delivery up. Equal ids are repeats.
    #[serde(borrow)]
    pub id: Cow<'a, str>,
    /// Owner of the event.
    pub tenant: TenantId,
    /// The subscription that did not get it.
    pub subscription: SubscriptionId,
    /// Why it was given up.
    pub reason: DeadReason,
    /// Attempts made.
    pub attempts: u32,
    /// Where the delivery's age started.
    pub since: UnixMillis,
    /// When it was given up, by the dispatcher's clock.
    pub at: UnixMillis,
    /// HTTP status of the last attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Why the last attempt failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorClass>,
    /// Start of the last response body.
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub response: Option<Cow<'a, str>>,
    /// The event's envelope, or the array of a batch's, see [`crate::batch`].
    #[serde(borrow)]
    pub event: &'a RawValue,
}

impl<'a> DeadLetter<'a> {
    /// Reads the value of a `dead-letters` record.
    pub fn decode(json: &'a [u8]) -> Result<Self, DecodeError> {
        check_version(json, DEAD_LETTER_VERSION)?;
        Ok(serde_json::from_slice(json)?)
    }

    /// The JSON of this record; the event's bytes go in as they are.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// Kafka key of the record.
    pub fn record_key(&self) -> String {
        format!("{}/{}", self.tenant, self.subscription)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::uuid;

    #[test]
    fn a_dead_letter_matches_its_golden_file() {
        let golden = include_str!("../golden/dead-letter.json").trim_end();
        let event: &RawValue = serde_json::from_str("{\"id\" : \"order-1\"}").unwrap();
        let letter = DeadLetter {
            v: DEAD_LETTER_VERSION,
            id: "3-1742".into(),
            tenant: TenantId(uuid!("01938f2e-0000-7000-8000-000000000001")),
            subscription: SubscriptionId(uuid!("01938f2e-0000-7000-8000-000000000002")),
            reason: DeadReason::AttemptsExhausted,
            attempts: 9,
            since: UnixMillis(1_795_275_240_123),
            at: UnixMillis(1_795_275_340_123),
            status: Some(503),
            error: Some(ErrorClass::Status),
            response: None,
            event,
        };
        assert_eq!(String::from_utf8(letter.encode().unwrap()).unwrap(), golden);
        let read = DeadLetter::decode(golden.as_bytes()).unwrap();
        assert_eq!((read.attempts, read.reason, read.event.get()), (9, letter.reason, event.get()));
    }
}
