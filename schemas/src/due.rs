//! A delivery to be made now: the record on `due` (retries and deferrals) and on `replays`.

use crate::{
    DecodeError, UnixMillis,
    error::check_version,
    ids::{ReplayId, SubscriptionId, TenantId},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::{borrow::Cow, fmt, str::FromStr};
use thiserror::Error;

/// Major version of due records and replays.
pub const DUE_VERSION: u32 = 1;

/// A pending retry's identity: the shard that owns it and the id of the outcome that asked for it. Deterministic, so that
/// a retry produced twice is recognised. Text form `<shard>-<id>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Cow<'_, str>", into = "String")]
pub struct RetryKey {
    /// Partition of `outcomes`.
    pub shard: i32,
    /// The outcome's offset in that partition, and more if the topic was made anew: no id comes twice.
    pub id: i64,
}

/// Text that is not a retry key.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is not a retry key, which looks like 3-1742")]
pub struct InvalidRetryKey(String);

impl fmt::Display for RetryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.shard, self.id)
    }
}

impl FromStr for RetryKey {
    type Err = InvalidRetryKey;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split_once('-')
            .and_then(|(shard, id)| Some(Self { shard: shard.parse().ok()?, id: id.parse().ok()? }))
            .filter(|key| key.shard >= 0 && key.id >= 0)
            .ok_or_else(|| InvalidRetryKey(text.to_owned()))
    }
}

impl TryFrom<Cow<'_, str>> for RetryKey {
    type Error = InvalidRetryKey;

    fn try_from(text: Cow<'_, str>) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<RetryKey> for String {
    fn from(key: RetryKey) -> Self {
        key.to_string()
    }
}

/// Stands for the number of the first attempt while it is not known whether there is one: the event was put off before the
/// subscription's filter was asked about it.
pub const NOT_FILTERED: u32 = 0;

/// Who asked for the delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The retry scheduler.
    RetryKey(RetryKey),
    /// A person or program, through the control plane.
    ReplayId(ReplayId),
}

/// The value of a record on `due` and `replays`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Due<'a> {
    /// [`DUE_VERSION`].
    pub v: u32,
    /// Who asked for it.
    pub origin: Origin,
    /// Owner of the event.
    pub tenant: TenantId,
    /// The one subscription to deliver to.
    pub subscription: SubscriptionId,
    /// Number of the attempt to make, from 1; or [`NOT_FILTERED`].
    pub attempt: u32,
    /// Where the delivery's age starts: acceptance, or the request to replay.
    pub since: UnixMillis,
    /// Whether it is the lease of a delivery that was under way when it was handed over. Commands to pending retries pass it by.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lease: bool,
    /// The event's envelope, or the array of a batch's, see [`crate::batch`].
    #[serde(borrow)]
    pub event: &'a RawValue,
}

impl<'a> Due<'a> {
    /// Reads the value of a `due` or `replays` record.
    pub fn decode(json: &'a [u8]) -> Result<Self, DecodeError> {
        check_version(json, DUE_VERSION)?;
        Ok(serde_json::from_slice(json)?)
    }

    /// The JSON of this record; the event's bytes go in as they are.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::{Uuid, uuid};

    #[test]
    fn a_due_record_matches_its_golden_file() {
        let golden = include_str!("../golden/due.json").trim_end();
        let event: &RawValue = serde_json::from_str("{\"id\" : \"order-1\"}").unwrap();
        let due = Due {
            v: DUE_VERSION,
            origin: Origin::RetryKey(RetryKey { shard: 3, id: 1742 }),
            tenant: TenantId(uuid!("01938f2e-0000-7000-8000-000000000001")),
            subscription: SubscriptionId(uuid!("01938f2e-0000-7000-8000-000000000002")),
            attempt: 2,
            since: UnixMillis(1_795_275_240_123),
            lease: false,
            event,
        };
        assert_eq!(String::from_utf8(due.encode().unwrap()).unwrap(), golden);
        assert_eq!(Due::decode(golden.as_bytes()).unwrap().origin, due.origin);
    }

    proptest! {
        #[test]
        fn due_records_round_trip(shard in 0i32..1000, id in 0i64.., attempt in 1u32.., bits in any::<u128>(), text in ".{0,40}") {
            let event = serde_json::value::to_raw_value(&text).unwrap();
            for origin in [Origin::RetryKey(RetryKey { shard, id }), Origin::ReplayId(ReplayId(Uuid::from_u128(bits)))] {
                let due = Due {
                    v: DUE_VERSION, origin, attempt,
                    tenant: TenantId(Uuid::from_u128(bits)), subscription: SubscriptionId(Uuid::from_u128(!bits)),
                    since: UnixMillis(id), lease: false, event: &event,
                };
                let json = due.encode().unwrap();
                let read = Due::decode(&json).unwrap();
                prop_assert_eq!(read.origin, origin);
                prop_assert_eq!(read.attempt, attempt);
                prop_assert_eq!(read.subscription, due.subscription);
                prop_assert_eq!(read.event.get(), event.get());
            }
        }
    }
}
