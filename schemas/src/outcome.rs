//! What became of one attempt: the record that the dispatcher writes to `outcomes` for every delivery.
//!
//! The `outcomes` topic is keyed by `subscription/key`; its partition is the scheduler's shard. All kinds but
//! [`OutcomeKind::Delivered`] carry the event, so that the scheduler needs no other source.

use crate::{
    DecodeError, UnixMillis,
    batch::{Batched, Members},
    due::RetryKey,
    error::check_version,
    exchange::Exchange,
    ids::{ReplayId, RunId, SubscriptionId, TenantId},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::{borrow::Cow, fmt, str::FromStr};
use thiserror::Error;

/// Major version of outcome records.
pub const OUTCOME_VERSION: u32 = 1;
/// Most bytes of a response kept in an outcome.
pub const MAX_RESPONSE_BYTES: usize = 4 * 1024;
/// Kafka header of an outcome record that holds its [`OutcomeKind`], for consumers that want few of the kinds.
pub const KIND_HEADER: &str = "kind";

/// What made the dispatcher deliver. Outcomes with equal (cause, subscription, kind) are repeats of one another; those of
/// [`Cause::Due`] whatever their kind, unless it is [`OutcomeKind::InDoubt`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Cow<'_, str>", into = "String")]
pub enum Cause {
    /// A record of `events`, within one run of the group: `events:<run>:<partition>:<offset>`.
    Event {
        /// The run, see [`RunId`].
        run: RunId,
        /// Partition of `events`.
        partition: i32,
        /// Offset in the partition.
        offset: i64,
    },
    /// Several records of `events`, delivered together: `batch:<members>`.
    Batch(Members),
    /// A retry that fell due: `due:<shard>-<id>`.
    Due(RetryKey),
    /// A replay of one event: `replay:<replay>:<message id>`.
    Replay {
        /// The request to replay.
        replay: ReplayId,
        /// The event, see [`crate::event::message_id`].
        message_id: String,
    },
}

/// Text that is not a cause.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is not the cause of a delivery")]
pub struct InvalidCause(String);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Event { run, partition, offset } => write!(f, "events:{run}:{partition}:{offset}"),
            Self::Batch(members) => write!(f, "batch:{members}"),
            Self::Due(retry_key) => write!(f, "due:{retry_key}"),
            Self::Replay { replay, message_id } => write!(f, "replay:{replay}:{message_id}"),
        }
    }
}

impl FromStr for Cause {
    type Err = InvalidCause;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        fn parse(text: &str) -> Option<Cause> {
            let (kind, rest) = text.split_once(':')?;
            match kind {
                "events" => {
                    let mut parts = rest.splitn(3, ':');
                    Some(Cause::Event {
                        run: parts.next()?.parse().ok()?,
                        partition: parts.next()?.parse().ok()?,
                        offset: parts.next()?.parse().ok()?,
                    })
                }
                "batch" => rest.parse().ok().map(Cause::Batch),
                "due" => rest.parse().ok().map(Cause::Due),
                "replay" => {
                    let (replay, message_id) = rest.split_once(':')?;
                    Some(Cause::Replay { replay: replay.parse().ok()?, message_id: message_id.to_owned() })
                }
                _ => None,
            }
        }
        parse(text).ok_or_else(|| InvalidCause(text.to_owned()))
    }
}

impl TryFrom<Cow<'_, str>> for Cause {
    type Error = InvalidCause;

    fn try_from(text: Cow<'_, str>) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Cause> for String {
    fn from(cause: Cause) -> Self {
        cause.to_string()
    }
}

/// The decision about a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeKind {
    /// The endpoint answered 2xx. Final.
    Delivered,
    /// The attempt failed; the next one is due at `not_before`.
    Retry,
    /// No attempt was made (endpoint busy, subscription paused); the same attempt is due at `not_before`.
    Deferred,
    /// Given up, see `reason`. Final.
    Dead,
    /// The endpoint answered 410 Gone: given up, and the subscription is to be disabled. Final.
    Disable,
    /// The subscription no longer exists. Final, kept nowhere.
    Dropped,
    /// The attempt is still under way, and its record's progress is not to wait for it. Its own outcome follows, with the same cause;
    /// if none does, the same attempt is due at `not_before`.
    InDoubt,
}

impl OutcomeKind {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::Delivered,
        Self::Retry,
        Self::Deferred,
        Self::Dead,
        Self::Disable,
        Self::Dropped,
        Self::InDoubt,
    ];

    /// The kind's name, as in JSON, in [`KIND_HEADER`], in metrics and in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Retry => "retry",
            Self::Deferred => "deferred",
            Self::Dead => "dead",
            Self::Disable => "disable",
            Self::Dropped => "dropped",
            Self::InDoubt => "in_doubt",
        }
    }

    /// Whether nothing more happens to the delivery.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Retry | Self::Deferred | Self::InDoubt)
    }
}

/// Which of a subscription's endpoints an attempt was made at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Via {
    /// Its own URL.
    #[default]
    Main,
    /// The one that stands in while the other does not answer.
    Fallback,
}

impl Via {
    /// Whether it is the subscription's own URL.
    pub fn is_main(&self) -> bool {
        *self == Self::Main
    }

    /// Its name, as in JSON and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Fallback => "fallback",
        }
    }
}

/// Why an attempt failed, from the network's point of view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorClass {
    /// The host name did not resolve.
    Dns,
    /// The address is one that deliveries must not reach.
    ForbiddenAddress,
    /// The connection was refused.
    Refused,
    /// The connection could not be made for another reason.
    Connect,
    /// The TLS handshake or the certificate check failed.
    Tls,
    /// No complete response in time, the body included.
    Timeout,
    /// The connection ended before the response did.
    Reset,
    /// Something other than HTTP came back, or headers beyond the limits.
    Protocol,
    /// A redirect, which is never followed.
    Redirect,
    /// Another status than 2xx.
    Status,
    /// The subscription's secret could not be opened with the configured sealing keys.
    Secret,
}

impl ErrorClass {
    /// Every class.
    pub const ALL: [Self; 11] = [
        Self::Dns,
        Self::ForbiddenAddress,
        Self::Refused,
        Self::Connect,
        Self::Tls,
        Self::Timeout,
        Self::Reset,
        Self::Protocol,
        Self::Redirect,
        Self::Status,
        Self::Secret,
    ];

    /// The class's name, as in JSON, metrics and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::ForbiddenAddress => "forbidden_address",
            Self::Refused => "refused",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Reset => "reset",
            Self::Protocol => "protocol",
            Self::Redirect => "redirect",
            Self::Status => "status",
            Self::Secret => "secret",
        }
    }
}

/// Why a delivery was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeadReason {
    /// The last attempt of the schedule failed.
    AttemptsExhausted,
    /// Older than the policy's maximum age.
    Expired,
    /// The endpoint answered 410 Gone.
    EndpointGone,
    /// The subscription was disabled while the retry was pending.
    SubscriptionDisabled,
    /// The subscription's filter could not decide about the event, see `detail`. It was not delivered.
    FilterFailed,
}

impl DeadReason {
    /// Every reason.
    pub const ALL: [Self; 5] = [
        Self::AttemptsExhausted,
        Self::Expired,
        Self::EndpointGone,
        Self::SubscriptionDisabled,
        Self::FilterFailed,
    ];

    /// The reason's name, as in JSON, metrics and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AttemptsExhausted => "attempts_exhausted",
            Self::Expired => "expired",
            Self::EndpointGone => "endpoint_gone",
            Self::SubscriptionDisabled => "subscription_disabled",
            Self::FilterFailed => "filter_failed",
        }
    }
}

/// The value of a record on the `outcomes` topic.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome<'a> {
    /// [`OUTCOME_VERSION`].
    pub v: u32,
    /// What made the dispatcher deliver.
    pub cause: Cause,
    /// The decision.
    pub kind: OutcomeKind,
    /// Owner of the event.
    pub tenant: TenantId,
    /// The subscription delivered to.
    pub subscription: SubscriptionId,
    /// The event's id.
    #[serde(borrow)]
    pub event_id: Cow<'a, str>,
    /// The event's type.
    #[serde(borrow)]
    pub event_type: Cow<'a, str>,
    /// What orders the event, see [`crate::event::Event::ordering_key`].
    #[serde(borrow)]
    pub key: Cow<'a, str>,
    /// Number of the attempt that was made, from 1; for `deferred` of the one that was not, for `in_doubt` of the one under way.
    pub attempt: u32,
    /// Where the delivery's age starts: acceptance, or the request to replay.
    pub since: UnixMillis,
    /// When the attempt ended, or its outcome was written, by the dispatcher's clock.
    pub at: UnixMillis,
    /// For `retry`, `deferred` and `in_doubt`: when the next attempt is due, by the dispatcher's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<UnixMillis>,
    /// For `dead` and `disable`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<DeadReason>,
    /// HTTP status, when a response came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Why the attempt failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorClass>,
    /// Which endpoint the attempt was made at; absent for the subscription's own, and when none was made.
    #[serde(default, skip_serializing_if = "Via::is_main")]
    pub via: Via,
    /// What went wrong, for people: never a secret or a payload.
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub detail: Option<Cow<'a, str>>,
    /// Duration of the attempt in milliseconds, body included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u32>,
    /// Start of the response body, lossy UTF-8, at most [`MAX_RESPONSE_BYTES`].
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub response: Option<Cow<'a, str>>,
    /// What went over the wire; for successes only if `record`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exchange: Option<Box<Exchange>>,
    /// Whether the subscription asks for a history row even on success.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub record: bool,
    /// For a batch: how many events it has, and which. Its id stands for the event's then.
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub batch: Option<Batched<'a>>,
    /// The event's envelope, or the array of a batch's, see [`crate::batch`]; absent only for `delivered`.
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub event: Option<&'a RawValue>,
}

impl<'a> Outcome<'a> {
    /// Reads the value of an `outcomes` record.
    pub fn decode(json: &'a [u8]) -> Result<Self, DecodeError> {
        check_version(json, OUTCOME_VERSION)?;
        Ok(serde_json::from_slice(json)?)
    }

    /// The JSON of this outcome; the event's bytes go in as they are.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// Appends the JSON of this outcome, which has no event, with `envelope` as its event. That must be JSON: it is not read again, for a
    /// writer of outcomes decoded it before.
    pub fn encode_with_event(&self, envelope: &[u8], out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
        debug_assert!(self.event.is_none(), "the outcome would have two events");
        serde_json::to_writer(&mut *out, self)?;
        // The event is the last member.
        out.pop();
        out.extend_from_slice(b",\"event\":");
        out.extend_from_slice(envelope);
        out.push(b'}');
        Ok(())
    }

    /// Kafka key of outcomes, due records and replays: `subscription/key`.
    pub fn record_key(&self) -> String {
        record_key(self.subscription, &self.key)
    }
}

/// Kafka key of outcomes, due records and replays: `subscription/key`.
pub fn record_key(subscription: SubscriptionId, ordering_key: &str) -> String {
    format!("{subscription}/{ordering_key}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::{Uuid, uuid};

    pub(crate) const TENANT: TenantId = TenantId(uuid!("01938f2e-0000-7000-8000-000000000001"));
    pub(crate) const SUBSCRIPTION: SubscriptionId =
        SubscriptionId(uuid!("01938f2e-0000-7000-8000-000000000002"));

    fn retry(event: &RawValue) -> Outcome<'_> {
        Outcome {
            v: OUTCOME_VERSION,
            cause: Cause::Event {
                run: RunId(uuid!("01938f2e-0000-4000-8000-000000000003")),
                partition: 5,
                offset: 42,
            },
            kind: OutcomeKind::Retry,
            tenant: TENANT,
            subscription: SUBSCRIPTION,
            event_id: "order-1".into(),
            event_type: "order.created".into(),
            key: "customer-9".into(),
            attempt: 1,
            since: UnixMillis(1_795_275_240_123),
            at: UnixMillis(1_795_275_240_456),
            not_before: Some(UnixMillis(1_795_275_245_456)),
            reason: None,
            status: Some(500),
            error: Some(ErrorClass::Status),
            via: Via::Main,
            detail: None,
            duration_ms: Some(12),
            response: Some("oh \"no\"".into()),
            exchange: None,
            record: false,
            batch: None,
            event: Some(event),
        }
    }

    #[test]
    fn an_outcome_matches_its_golden_file_and_carries_the_event_untouched() {
        let golden = include_str!("../golden/outcome-retry.json").trim_end();
        let event: &RawValue = serde_json::from_str("{\"id\" : \"order-1\",\"n\":1.0}").unwrap();
        let mut spliced = Vec::new();
        let without = Outcome { event: None, ..retry(event) };
        without.encode_with_event(event.get().as_bytes(), &mut spliced).unwrap();
        assert_eq!(spliced, retry(event).encode().unwrap());
        assert_eq!(String::from_utf8(retry(event).encode().unwrap()).unwrap(), golden);
        let read = Outcome::decode(golden.as_bytes()).unwrap();
        assert_eq!(read.event.unwrap().get(), event.get());
        assert_eq!(read.cause, retry(event).cause);
        assert_eq!(read.record_key(), format!("{SUBSCRIPTION}/customer-9"));
    }

    #[test]
    fn the_largest_outcome_fits_beside_the_largest_event() {
        use crate::{MAX_EVENT_BYTES, RECORD_MARGIN_BYTES, exchange};
        let event = format!("\"{}\"", "x".repeat(MAX_EVENT_BYTES - 2));
        let event: &RawValue = serde_json::from_str(&event).unwrap();
        // Every byte is written as two; a response's may be written as six.
        let value = vec![b'"'; 10_000];
        let headers = || exchange::headers(std::iter::repeat_n(("x-quote", value.as_slice()), 100));
        let exchange = exchange::Exchange {
            address: Some("x".repeat(60)),
            request_headers: headers(),
            response_headers: headers(),
            ..Default::default()
        };
        let id = "\"".repeat(crate::ids::MAX_TEXT_ID_BYTES);
        let outcome = Outcome {
            event_id: id.as_str().into(),
            event_type: id.as_str().into(),
            key: id.as_str().into(),
            detail: Some("\"".repeat(1_000).into()),
            response: Some("\u{1}".repeat(MAX_RESPONSE_BYTES).into()),
            exchange: Some(exchange.into()),
            ..retry(event)
        };
        assert!(outcome.encode().unwrap().len() <= MAX_EVENT_BYTES + RECORD_MARGIN_BYTES);
    }

    #[test]
    fn unknown_fields_are_tolerated_and_unknown_major_versions_refused() {
        let golden = include_str!("../golden/outcome-retry.json").trim_end();
        let extended = golden.replacen("{\"v\":1", "{\"v\":1,\"new_field\":{\"a\":[1]}", 1);
        assert!(Outcome::decode(extended.as_bytes()).is_ok());
        let newer = golden.replacen("{\"v\":1", "{\"v\":2", 1);
        assert!(matches!(
            Outcome::decode(newer.as_bytes()),
            Err(DecodeError::UnknownVersion { found: 2, supported: 1 })
        ));
    }

    #[test]
    fn names_in_json_are_the_names_in_tables() {
        for kind in OutcomeKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
        for class in ErrorClass::ALL {
            assert_eq!(serde_json::to_value(class).unwrap(), class.as_str());
        }
        for reason in DeadReason::ALL {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
        }
        for via in [Via::Main, Via::Fallback] {
            assert_eq!(serde_json::to_value(via).unwrap(), via.as_str());
        }
    }

    proptest! {
        #[test]
        fn causes_round_trip_as_text(partition in 0i32..1000, offset in 0i64.., bits in any::<u128>(), id in "[!-~]{1,30}") {
            let uuid = Uuid::from_u128(bits);
            for cause in [
                Cause::Event { run: RunId(uuid), partition, offset },
                Cause::Batch(Members(bits)),
                Cause::Due(RetryKey { shard: partition, id: offset }),
                Cause::Replay { replay: ReplayId(uuid), message_id: id },
            ] {
                prop_assert_eq!(cause.to_string().parse::<Cause>().unwrap(), cause);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Outcome::decode(&bytes);
        }
    }
}
