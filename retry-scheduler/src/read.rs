//! What an outcome asks for: a pure function from the bytes of a record to the rows it becomes.
//!
//! | kind | counted | history row | besides |
//! |---|---|---|---|
//! | delivered | yes | if `record` | |
//! | retry | yes | yes | the next attempt is stored |
//! | deferred | yes | no | the same attempt is stored |
//! | in_doubt | yes | no | the same attempt is stored, see [`crate::leases`] |
//! | dead, disable | yes | yes | dead letter |
//! | dropped | yes | no | |
//!
//! Of a batch there is one row, which names its events; counts are of events.
//!
//! A record that cannot be used is *poison*: it is counted and passed over, never retried, so that it cannot hold up
//! its shard. If it names its delivery it gets a history row that says so, and if it has its event, a dead letter.

use crate::{leases::Doubt, repeats::Fingerprint};
use floodway_schemas::{
    DecodeError, UnixMillis,
    batch::{Batched, Member},
    dead_letter::{DEAD_LETTER_VERSION, DeadLetter},
    due::{DUE_VERSION, Due, Origin, RetryKey},
    ids::is_text_id,
    outcome::{DeadReason, MAX_RESPONSE_BYTES, Outcome, OutcomeKind},
};
use floodway_store::{
    DbInstant,
    dead_letters::NewDeadLetter,
    deliveries::{JsonText, NewDelivery},
    retry::{NewRetry, Position},
};
use serde_json::value::RawValue;
use std::time::Duration;
use uuid::Uuid;

/// What rows take besides the outcome, in bytes: a rough constant, for the size of a batch.
const ROW_OVERHEAD_BYTES: usize = 512;

/// A record that can be used.
#[derive(Debug)]
pub(crate) struct Read {
    /// Tells repeats.
    pub(crate) fingerprint: Fingerprint,
    /// The delivery it is about.
    pub(crate) delivery: Fingerprint,
    /// What it means for leases.
    pub(crate) doubt: Doubt,
    /// Whether nothing more happens to the delivery.
    pub(crate) is_final: bool,
    /// What it becomes.
    pub(crate) entry: Entry,
    /// Why it is poison, if it is.
    pub(crate) poison: Option<Poison>,
}

/// The rows that one outcome becomes.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Its offset.
    pub(crate) offset: i64,
    /// The delivery whose lease it made void.
    pub(crate) voids: Option<Fingerprint>,
    /// About the size of its rows.
    pub(crate) bytes: usize,
    /// What is counted.
    pub(crate) count: Count,
    /// How many events it is about.
    pub(crate) events: i64,
    /// The attempt to make later.
    pub(crate) retry: Option<Later>,
    /// The row of history; `next_at` follows from the retry.
    pub(crate) delivery: Option<NewDelivery>,
    /// The dead letter.
    pub(crate) letter: Option<Letter>,
}

/// One outcome of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Count {
    pub(crate) tenant: Uuid,
    pub(crate) subscription: Uuid,
    pub(crate) kind: &'static str,
}

/// A row whose due time is not decided yet.
#[derive(Debug)]
pub(crate) struct Later {
    /// From the end of the attempt to the next.
    pub(crate) delay: Duration,
    /// When the outcome was produced; `None` when the delay counts from its storing. A lease's does: its delivery's own outcome is
    /// behind it in the log, so a shard that reads late reads that late, too.
    pub(crate) produced_at: Option<UnixMillis>,
    /// The row.
    pub(crate) row: NewRetry,
}

/// A dead letter for the topic and for the table.
#[derive(Debug)]
pub(crate) struct Letter {
    pub(crate) key: String,
    pub(crate) record: Vec<u8>,
    pub(crate) row: NewDeadLetter,
}

/// Why a record cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Poison {
    /// Not an outcome.
    Malformed,
    /// Written by a newer, incompatible version.
    UnknownVersion,
    /// The event is missing where one is needed.
    NoEvent,
    /// A retry, a deferral or a lease without `not_before`.
    NoDueTime,
    /// An identifier that is not one.
    InvalidId,
    /// The database refused its rows.
    Refused,
}

impl Poison {
    /// Every reason.
    pub(crate) const ALL: [Self; 6] = [
        Self::Malformed,
        Self::UnknownVersion,
        Self::NoEvent,
        Self::NoDueTime,
        Self::InvalidId,
        Self::Refused,
    ];

    /// The reason's name, in metrics, logs and details.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownVersion => "unknown_version",
            Self::NoEvent => "no_event",
            Self::NoDueTime => "no_due_time",
            Self::InvalidId => "invalid_id",
            Self::Refused => "refused",
        }
    }
}

/// Reads the value of the `outcomes` record at `offset`; `record_ms` is its timestamp, if it has one. Its rows get the id `key`.
///
/// # Errors
/// The reason, for a record that does not even name its delivery.
pub(crate) fn read(key: RetryKey, offset: i64, value: &[u8], record_ms: Option<i64>) -> Result<Read, Poison> {
    let outcome = decode(value)?;
    let delivery_print = Fingerprint::of_delivery(&outcome);
    let fingerprint = delivery_print.with_kind(&outcome, outcome.kind);
    let mut entry = Entry {
        offset,
        voids: None,
        bytes: ROW_OVERHEAD_BYTES + value.len(),
        count: Count {
            tenant: outcome.tenant.0,
            subscription: outcome.subscription.0,
            kind: outcome.kind.as_str(),
        },
        events: outcome.batch.as_ref().map_or(1, |batch| batch.events.into()),
        retry: None,
        delivery: has_history(&outcome).then(|| delivery(&outcome, key.id)),
        letter: None,
    };
    let poison = match needs(&outcome) {
        Ok(Needs::Nothing) => None,
        Ok(Needs::Later(event, delay)) => {
            let produced_at = (outcome.kind != OutcomeKind::InDoubt)
                .then_some(UnixMillis(record_ms.unwrap_or(outcome.at.0)));
            entry.retry = later(&outcome, key, event, delay, produced_at);
            None
        }
        Ok(Needs::Letter(event)) => {
            entry.letter = letter(&outcome, key, event, None);
            None
        }
        Err(poison) => {
            let mut row = delivery(&outcome, key.id);
            row.detail = Some(format!("unusable outcome: {}", poison.as_str()));
            entry.delivery = Some(row);
            entry.letter = outcome.event.and_then(|event| letter(&outcome, key, event, Some(poison)));
            Some(poison)
        }
    };
    let (doubt, is_final) = (doubt(&outcome, delivery_print), outcome.kind.is_final());
    Ok(Read { fingerprint, delivery: delivery_print, doubt, is_final, entry, poison })
}

/// What is remembered of a record that was handled earlier; `None` for one that cannot be used.
pub(crate) fn remember(value: &[u8]) -> Option<(Fingerprint, Fingerprint, Doubt)> {
    let outcome = decode(value).ok()?;
    let delivery = Fingerprint::of_delivery(&outcome);
    Some((delivery.with_kind(&outcome, outcome.kind), delivery, doubt(&outcome, delivery)))
}

fn doubt(outcome: &Outcome<'_>, delivery: Fingerprint) -> Doubt {
    if outcome.kind != OutcomeKind::InDoubt {
        return Doubt::Ends;
    }
    let others = OutcomeKind::ALL.into_iter().filter(|&kind| kind != OutcomeKind::InDoubt);
    Doubt::Begins(others.map(|kind| delivery.with_kind(outcome, kind)).collect())
}

fn decode(value: &[u8]) -> Result<Outcome<'_>, Poison> {
    let outcome = Outcome::decode(value).map_err(|error| match error {
        DecodeError::UnknownVersion { .. } => Poison::UnknownVersion,
        _ => Poison::Malformed,
    })?;
    // Columns and indexes rely on these bounds.
    let ids = [&outcome.event_id, &outcome.event_type, &outcome.key];
    if ids.iter().all(|id| is_text_id(id)) { Ok(outcome) } else { Err(Poison::InvalidId) }
}

/// What has to be done besides counting and history.
enum Needs<'a> {
    Nothing,
    Later(&'a RawValue, Duration),
    Letter(&'a RawValue),
}

fn needs<'a>(outcome: &Outcome<'a>) -> Result<Needs<'a>, Poison> {
    match outcome.kind {
        OutcomeKind::Delivered | OutcomeKind::Dropped => Ok(Needs::Nothing),
        OutcomeKind::Retry | OutcomeKind::Deferred | OutcomeKind::InDoubt => {
            let event = outcome.event.ok_or(Poison::NoEvent)?;
            let not_before = outcome.not_before.ok_or(Poison::NoDueTime)?;
            Ok(Needs::Later(event, not_before.since(outcome.at)))
        }
        OutcomeKind::Dead | OutcomeKind::Disable => Ok(Needs::Letter(outcome.event.ok_or(Poison::NoEvent)?)),
    }
}

fn has_history(outcome: &Outcome<'_>) -> bool {
    match outcome.kind {
        OutcomeKind::Delivered => outcome.record,
        OutcomeKind::Retry | OutcomeKind::Dead | OutcomeKind::Disable => true,
        OutcomeKind::Deferred | OutcomeKind::Dropped | OutcomeKind::InDoubt => false,
    }
}

fn later(
    outcome: &Outcome<'_>,
    key: RetryKey,
    event: &RawValue,
    delay: Duration,
    produced_at: Option<UnixMillis>,
) -> Option<Later> {
    // A deferral used up no attempt.
    let attempt = match outcome.kind {
        OutcomeKind::Retry => outcome.attempt.saturating_add(1),
        _ => outcome.attempt,
    };
    let due = Due {
        v: DUE_VERSION,
        origin: Origin::RetryKey(key),
        tenant: outcome.tenant,
        subscription: outcome.subscription,
        attempt,
        since: outcome.since,
        lease: outcome.kind == OutcomeKind::InDoubt,
        event,
    };
    // Encoding what was just decoded cannot fail: there is no map with keys other than strings.
    let record = due.encode().ok()?;
    let row = NewRetry {
        // Decided in the transaction that stores the row.
        position: Position { due: DbInstant(0), id: key.id },
        tenant: outcome.tenant.0,
        subscription: outcome.subscription.0,
        event_id: outcome.event_id.to_string(),
        attempt: bounded(attempt),
        lease: due.lease,
        record_key: outcome.record_key(),
        record,
    };
    Some(Later { delay, produced_at, row })
}

fn letter(outcome: &Outcome<'_>, key: RetryKey, event: &RawValue, poison: Option<Poison>) -> Option<Letter> {
    let reason = outcome.reason.unwrap_or(match outcome.kind {
        OutcomeKind::Disable => DeadReason::EndpointGone,
        _ => DeadReason::AttemptsExhausted,
    });
    let letter = DeadLetter {
        v: DEAD_LETTER_VERSION,
        id: key.to_string().into(),
        tenant: outcome.tenant,
        subscription: outcome.subscription,
        reason,
        attempts: outcome.attempt,
        since: outcome.since,
        at: outcome.at,
        status: outcome.status,
        error: outcome.error,
        response: outcome.response.as_deref().map(|response| truncated(response).into()),
        event,
    };
    let detail = match poison {
        Some(poison) => Some(format!("unusable outcome: {}", poison.as_str())),
        None => outcome.detail.as_deref().map(clean),
    };
    let row = NewDeadLetter {
        id: key.id,
        at: DbInstant::from_millis(outcome.at),
        since: DbInstant::from_millis(outcome.since),
        tenant: outcome.tenant.0,
        subscription: outcome.subscription.0,
        event_id: outcome.event_id.to_string(),
        event_type: outcome.event_type.to_string(),
        record_key: outcome.record_key(),
        attempts: bounded(outcome.attempt),
        reason: reason.as_str(),
        status: outcome.status.map(i32::from),
        error: outcome.error.map(|error| error.as_str()),
        detail,
        response: outcome.response.as_deref().map(clean),
        event: event.get().as_bytes().to_vec(),
        members: members(outcome).map(|members| members.ids),
    };
    Some(Letter { key: letter.record_key(), record: letter.encode().ok()?, row })
}

/// The events of a batch, as columns.
struct Members {
    ids: Vec<String>,
    /// Each once.
    types: Vec<String>,
}

/// Those that the outcome names, or else those of the batch that it carries. `None` for a single event.
fn members(outcome: &Outcome<'_>) -> Option<Members> {
    let Batched { members, .. } = outcome.batch.as_ref()?;
    let carried =
        if members.is_empty() { outcome.event.and_then(|event| Member::all(event).ok()) } else { None };
    let members = carried.as_ref().unwrap_or(members);
    let mut types: Vec<String> = members.iter().map(|member| clean(&member.event_type)).collect();
    types.sort_unstable();
    types.dedup();
    Some(Members { ids: members.iter().map(|member| clean(&member.id)).collect(), types })
}

fn delivery(outcome: &Outcome<'_>, id: i64) -> NewDelivery {
    let members = members(outcome);
    let (members, member_types) = members.map(|Members { ids, types }| (ids, types)).unzip();
    NewDelivery {
        id,
        at: DbInstant::from_millis(outcome.at),
        tenant: outcome.tenant.0,
        subscription: outcome.subscription.0,
        event_id: outcome.event_id.to_string(),
        event_type: outcome.event_type.to_string(),
        attempt: bounded(outcome.attempt),
        kind: outcome.kind.as_str(),
        reason: outcome.reason.map(|reason| reason.as_str()),
        status: outcome.status.map(i32::from),
        error: outcome.error.map(|error| error.as_str()),
        via: (!outcome.via.is_main()).then(|| outcome.via.as_str()),
        detail: outcome.detail.as_deref().map(clean),
        duration_ms: outcome.duration_ms.map(bounded),
        next_at: None,
        response: outcome.response.as_deref().map(clean),
        exchange: outcome.exchange.as_deref().and_then(JsonText::of),
        members,
        member_types,
    }
}

fn bounded(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// Text as the database takes it: bounded, and without the NUL that `text` cannot hold.
fn clean(text: &str) -> String {
    truncated(text).replace('\0', "\u{fffd}")
}

fn truncated(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_RESPONSE_BYTES)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use floodway_schemas::{
        ids::{RunId, SubscriptionId, TenantId},
        outcome::{Cause, ErrorClass, OUTCOME_VERSION, Via},
    };
    use proptest::prelude::*;

    const KEY: RetryKey = RetryKey { shard: 0, id: 0 };

    const EVENT: &str = "{\"id\" : \"order-1\",\"n\":1.0}";

    fn outcome(kind: OutcomeKind) -> Outcome<'static> {
        Outcome {
            v: OUTCOME_VERSION,
            cause: Cause::Event { run: RunId(Uuid::from_u128(3)), partition: 5, offset: 42 },
            kind,
            tenant: TenantId(Uuid::from_u128(1)),
            subscription: SubscriptionId(Uuid::from_u128(2)),
            event_id: "order-1".into(),
            event_type: "order.created".into(),
            key: "customer-9".into(),
            attempt: 2,
            since: UnixMillis(1_000),
            at: UnixMillis(5_000),
            not_before: Some(UnixMillis(7_500)),
            reason: None,
            status: Some(500),
            error: Some(ErrorClass::Status),
            via: Via::Main,
            detail: None,
            duration_ms: Some(12),
            response: Some("oh".into()),
            exchange: None,
            record: false,
            batch: None,
            event: Some(serde_json::from_str(EVENT).unwrap()),
        }
    }

    fn read_outcome(outcome: &Outcome<'_>) -> Read {
        read(RetryKey { shard: 3, id: 1742 }, 42, &outcome.encode().unwrap(), Some(5_010)).unwrap()
    }

    #[test]
    fn a_retry_asks_for_the_next_attempt_and_a_deferral_for_the_same() {
        let kinds = [
            (OutcomeKind::Retry, 3, true),
            (OutcomeKind::Deferred, 2, false),
            (OutcomeKind::InDoubt, 2, false),
        ];
        for (kind, attempt, history) in kinds {
            let entry = read_outcome(&Outcome { via: Via::Fallback, ..outcome(kind) }).entry;
            assert!(entry.delivery.as_ref().is_none_or(|delivery| delivery.via == Some("fallback")));
            let later = entry.retry.unwrap();
            let due = Due::decode(&later.row.record).unwrap();
            assert_eq!((due.attempt, later.delay), (attempt, Duration::from_millis(2_500)));
            assert_eq!(due.origin, Origin::RetryKey(RetryKey { shard: 3, id: 1742 }));
            assert_eq!(due.event.get(), EVENT);
            assert_eq!(entry.delivery.is_some(), history);
            assert!(entry.letter.is_none());
        }
    }

    #[test]
    fn a_final_failure_becomes_a_dead_letter_with_its_reason() {
        for (kind, reason) in
            [(OutcomeKind::Dead, "attempts_exhausted"), (OutcomeKind::Disable, "endpoint_gone")]
        {
            let entry = read_outcome(&outcome(kind)).entry;
            let letter = entry.letter.unwrap();
            assert_eq!(letter.row.reason, reason);
            assert_eq!(letter.row.event, EVENT.as_bytes());
            assert_eq!(DeadLetter::decode(&letter.record).unwrap().id, "3-1742");
            assert!(entry.delivery.is_some() && entry.retry.is_none());
        }
    }

    #[test]
    fn a_batch_names_its_events_whether_the_outcome_carries_it_or_not() {
        let array =
            r#"[{"id":"1","type":"b","data":{"id":"x"}},{"type":"a","id":"2"},{"id":"3","type":"b"}]"#;
        let member = |id: &'static str, event_type: &'static str| Member {
            id: id.into(),
            event_type: event_type.into(),
        };
        let named = vec![member("1", "b"), member("2", "a"), member("3", "b")];
        for (kind, members, event) in [
            (OutcomeKind::Retry, Vec::new(), Some(serde_json::from_str(array).unwrap())),
            (OutcomeKind::Dead, Vec::new(), Some(serde_json::from_str(array).unwrap())),
            (OutcomeKind::Delivered, named, None),
        ] {
            let batch = Some(Batched { events: 3, members });
            let entry = read_outcome(&Outcome { record: true, batch, event, ..outcome(kind) }).entry;
            assert_eq!(entry.events, 3);
            let row = entry.delivery.unwrap();
            assert_eq!(row.members.unwrap(), ["1", "2", "3"]);
            assert_eq!(row.member_types.unwrap(), ["a", "b"]);
            if let Some(later) = entry.retry {
                assert_eq!(Due::decode(&later.row.record).unwrap().event.get(), array);
            }
            if let Some(letter) = entry.letter {
                assert_eq!((letter.row.members.unwrap().len(), &*letter.row.event), (3, array.as_bytes()));
            }
        }
        assert_eq!(read_outcome(&outcome(OutcomeKind::Retry)).entry.delivery.unwrap().members, None);
    }

    #[test]
    fn a_success_is_counted_and_stored_only_where_asked() {
        for record in [false, true] {
            let entry = read_outcome(&Outcome { record, ..outcome(OutcomeKind::Delivered) }).entry;
            assert_eq!((entry.delivery.is_some(), entry.count.kind), (record, "delivered"));
        }
    }

    #[test]
    fn a_retry_that_cannot_be_made_is_kept_as_a_dead_letter() {
        let read = read_outcome(&Outcome { not_before: None, ..outcome(OutcomeKind::Retry) });
        assert_eq!(read.poison, Some(Poison::NoDueTime));
        assert!(read.entry.letter.is_some() && read.entry.retry.is_none());
        let read = read_outcome(&Outcome { event: None, ..outcome(OutcomeKind::Retry) });
        assert_eq!(read.poison, Some(Poison::NoEvent));
        assert_eq!(read.entry.delivery.unwrap().detail.as_deref(), Some("unusable outcome: no_event"));
        assert!(read.entry.letter.is_none());
    }

    #[test]
    fn text_that_the_database_would_refuse_is_cleaned() {
        let response = format!("a\0{}", "é".repeat(4_000));
        let outcome = Outcome { response: Some(response.into()), ..outcome(OutcomeKind::Dead) };
        let stored = read_outcome(&outcome).entry.delivery.unwrap().response.unwrap();
        assert!(stored.starts_with("a\u{fffd}é") && stored.len() <= MAX_RESPONSE_BYTES + 2);
        let outcome = Outcome { event_id: "a\0b".into(), ..outcome };
        assert_eq!(read(KEY, 0, &outcome.encode().unwrap(), None).unwrap_err(), Poison::InvalidId);
    }

    #[test]
    fn equal_cause_subscription_and_kind_make_a_repeat() {
        let first = read_outcome(&outcome(OutcomeKind::Retry)).fingerprint;
        let again = Outcome { at: UnixMillis(9_999), attempt: 7, ..outcome(OutcomeKind::Retry) };
        assert_eq!(read_outcome(&again).fingerprint, first);
        assert_ne!(read_outcome(&outcome(OutcomeKind::Dead)).fingerprint, first);
    }

    #[test]
    fn a_retry_has_one_outcome_of_whatever_kind() {
        let of = |kind, id| {
            let cause = Cause::Due(RetryKey { shard: 3, id });
            read_outcome(&Outcome { cause, ..outcome(kind) }).fingerprint
        };
        assert_eq!(of(OutcomeKind::Retry, 7), of(OutcomeKind::Deferred, 7));
        assert_eq!(of(OutcomeKind::Retry, 7), of(OutcomeKind::Delivered, 7));
        assert_ne!(of(OutcomeKind::Retry, 7), of(OutcomeKind::InDoubt, 7));
        assert_ne!(of(OutcomeKind::Retry, 7), of(OutcomeKind::Retry, 8));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(KEY, 0, &bytes, None);
        }
    }
}
