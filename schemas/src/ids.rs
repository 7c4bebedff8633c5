//! Identifiers as newtypes, so that a tenant is never taken for a subscription.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use uuid::Uuid;

/// Longest producer-chosen identifier (`id`, `source`, `type`, `partitionkey`), in bytes.
pub const MAX_TEXT_ID_BYTES: usize = 256;

/// Defines a UUID newtype: hyphenated text in JSON, in keys and in logs.
macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }
    };
}

uuid_id!(
    /// A customer of the installation; owns keys and subscriptions.
    TenantId
);
uuid_id!(
    /// A tenant's interest in event types, delivered to one URL.
    SubscriptionId
);
uuid_id!(
    /// The public part of an API key.
    ApiKeyId
);
uuid_id!(
    /// One request to deliver dead letters again.
    ReplayId
);
uuid_id!(
    /// One command to pending retries.
    RetryCommandId
);
uuid_id!(
    /// One pass of a consumer group over a partition: kept across crashes and rebalances, new after its
    /// offsets were reset. It tells a deliberate replay from a redelivery.
    RunId
);

/// Whether `text` may be an identifier chosen by a producer: 1 to [`MAX_TEXT_ID_BYTES`] bytes of visible
/// ASCII (0x21–0x7E). Such text is safe in HTTP headers, Kafka keys, logs and URLs' query values.
pub fn is_text_id(text: &str) -> bool {
    (1..=MAX_TEXT_ID_BYTES).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}
