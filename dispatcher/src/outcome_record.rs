//! An outcome on its way into a record for Kafka, with what is held until it is there.

use crate::{
    budget::Permit,
    delivery::{Order, Settlement},
    partition::Receipt,
};
use floodway_runtime::clock;
use floodway_schemas::{
    UnixMillis,
    outcome::{OUTCOME_VERSION, Outcome, OutcomeKind},
};
use std::borrow::Cow;

/// A delivery whose outcome is decided.
pub(crate) struct Settled {
    /// What it was about.
    pub(crate) order: Order,
    /// What was decided.
    pub(crate) settlement: Settlement,
    /// When.
    pub(crate) at: UnixMillis,
}

impl Settled {
    /// Decided now.
    pub(crate) fn now(order: Order, settlement: Settlement) -> Self {
        Self { order, settlement, at: clock::now() }
    }

    /// Writes the outcome's JSON into `payload`, in place of what was there, and returns the record's key.
    pub(crate) fn encode(&self, payload: &mut Vec<u8>) -> Result<String, serde_json::Error> {
        let Self { order, settlement: Settlement { kind, verdict }, at } = self;
        let event = &order.event;
        let outcome = Outcome {
            v: OUTCOME_VERSION,
            cause: order.cause.clone(),
            kind: *kind,
            tenant: event.tenant,
            subscription: order.subscription,
            event_id: Cow::Borrowed(&event.id),
            event_type: Cow::Borrowed(&event.event_type),
            key: Cow::Borrowed(&event.key),
            attempt: order.attempt,
            since: order.since,
            at: *at,
            not_before: verdict.not_before,
            reason: verdict.reason,
            status: verdict.status,
            error: verdict.error,
            via: verdict.via,
            detail: verdict.detail.as_deref().map(Cow::Borrowed),
            duration_ms: verdict.duration_ms,
            response: verdict.response.as_deref().map(Cow::Borrowed),
            exchange: verdict.exchange.clone(),
            record: order.record,
            batch: event.batched(order.record && *kind == OutcomeKind::Delivered),
            event: None,
        };
        payload.clear();
        match kind {
            OutcomeKind::Delivered => serde_json::to_writer(payload, &outcome)?,
            // The envelope was JSON when it was decoded.
            _ => outcome.encode_with_event(&event.envelope, payload)?,
        }
        Ok(outcome.record_key())
    }
}

/// What is held until an outcome is acknowledged.
#[derive(Debug)]
pub(crate) struct Unacknowledged {
    /// What becomes of the delivery.
    pub(crate) kind: OutcomeKind,
    /// The record that it came from, if its progress waits for this outcome.
    pub(crate) receipt: Option<Receipt>,
    /// Its part of the budget.
    pub(crate) permit: Permit,
    /// Kafka has not taken it at least once.
    pub(crate) was_refused: bool,
}

/// A record that Kafka did not take.
#[derive(Debug)]
pub(crate) struct Untaken {
    /// Its key.
    pub(crate) key: Vec<u8>,
    /// Its value.
    pub(crate) payload: Vec<u8>,
    /// What is held for it.
    pub(crate) held: Unacknowledged,
}
