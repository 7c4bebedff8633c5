//! Ids for events whose producer gave none: UUIDv7, growing in the order of the batch.

use floodway_schemas::UnixMillis;
use uuid::Uuid;

/// Random bits of a UUIDv7 that are drawn; the 74th is left as room to count without a carry into the time.
const RANDOM_BITS: u32 = 73;
const LOW_BITS: u32 = 62;

/// The ids of one request: one draw of randomness, then counted up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestIds {
    millis: u64,
    random: u128,
}

impl RequestIds {
    /// Ids of a request received at `now`.
    pub(crate) fn new(now: UnixMillis, random: u128) -> Self {
        Self { millis: u64::try_from(now.0).unwrap_or(0), random: random & ((1 << RANDOM_BITS) - 1) }
    }

    /// The id of the event at `index`.
    pub(crate) fn nth(&self, index: usize) -> Uuid {
        let value = self.random + index as u128;
        let time = u128::from(self.millis & ((1 << 48) - 1)) << 80;
        let (high, low) = (value >> LOW_BITS, value & ((1 << LOW_BITS) - 1));
        Uuid::from_u128(time | 7 << 76 | high << 64 | 0b10 << LOW_BITS | low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ids_are_version_7_and_grow_within_a_request(millis in 0i64..1 << 48, random in any::<u128>(), index in 0usize..1_000_000) {
            let ids = RequestIds::new(UnixMillis(millis), random);
            let (id, next) = (ids.nth(index), ids.nth(index + 1));
            prop_assert_eq!(id.get_version_num(), 7);
            prop_assert_eq!(id.get_variant(), uuid::Variant::RFC4122);
            prop_assert_eq!(id.as_u128() >> 80, millis as u128);
            prop_assert!(id < next);
        }
    }
}
