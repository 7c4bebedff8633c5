//! A delivery on its way: one event to one subscription, from a record to the acknowledgement of its outcome.

use crate::{
    budget::{Amount, Permit},
    headers::PreparedEvent,
    lane::{Lane, Returning},
    partition::Receipt,
    subscriptions::Endpoint,
    target::Target,
};
use floodway_schemas::{
    UnixMillis,
    exchange::Exchange,
    ids::SubscriptionId,
    outcome::{Cause, DeadReason, ErrorClass, OutcomeKind, Via},
};
use std::{sync::Arc, time::Instant};

/// What an outcome is about. Dropping it unsettled leaves the record to the next owner of the partition.
#[derive(Debug)]
pub(crate) struct Order {
    /// The event, or a batch of them.
    pub(crate) event: Arc<PreparedEvent>,
    /// The subscription; it may be unknown by now.
    pub(crate) subscription: SubscriptionId,
    /// Whether history wants a row even on success.
    pub(crate) record: bool,
    /// What made the dispatcher deliver.
    pub(crate) cause: Cause,
    /// Number of the attempt, from 1; or [`floodway_schemas::due::NOT_FILTERED`].
    pub(crate) attempt: u32,
    /// Where the delivery's age starts.
    pub(crate) since: UnixMillis,
    /// The record it came from, or those of a batch; `None` when their progress does not wait for this outcome any more.
    pub(crate) receipt: Option<Receipt>,
    /// Its part of the budget.
    pub(crate) permit: Permit,
}

impl Order {
    /// The same delivery, for an outcome that settles its record before its own does.
    pub(crate) fn handed_over(&self, receipt: Receipt) -> Self {
        Self {
            event: Arc::clone(&self.event),
            cause: self.cause.clone(),
            receipt: Some(receipt),
            permit: self.permit.nothing(),
            ..*self
        }
    }
}

/// An order with the endpoint that it goes to.
#[derive(Debug)]
pub(crate) struct Delivery {
    /// What is delivered and why.
    pub(crate) order: Order,
    /// Where to, by the configuration at the time of the record.
    pub(crate) endpoint: Arc<Endpoint>,
    /// When the record was received.
    pub(crate) received: Instant,
    /// To which of its endpoints. Decided anew whenever it is offered.
    pub(crate) via: Via,
}

/// Tells lanes apart, as long as they live.
pub(crate) type LaneId = usize;

impl Delivery {
    /// Its lane.
    pub(crate) fn lane(&self) -> &Arc<Lane<Self>> {
        self.endpoint.lane(self.via)
    }

    /// Tells its lane from others.
    pub(crate) fn lane_id(&self) -> LaneId {
        Arc::as_ptr(self.lane()).addr()
    }

    /// Where its request goes.
    pub(crate) fn target(&self) -> Option<&Target> {
        self.endpoint.target(self.via)
    }

    /// What it counts for in budgets, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.order.event.envelope.len()
    }

    /// What it counts for in its lane: a batch as much as all of its events.
    pub(crate) fn part(&self) -> Amount {
        Amount { count: self.order.permit.count(), bytes: self.bytes() }
    }
}

impl Returning for Delivery {
    fn came_back(&self) -> bool {
        matches!(self.order.cause, Cause::Due(_))
    }
}

/// The decision about an order, with what history wants to know.
#[derive(Debug, Clone, Default)]
pub(crate) struct Verdict {
    /// When the next attempt is due.
    pub(crate) not_before: Option<UnixMillis>,
    /// Why it was given up.
    pub(crate) reason: Option<DeadReason>,
    /// HTTP status.
    pub(crate) status: Option<u16>,
    /// Why the attempt failed.
    pub(crate) error: Option<ErrorClass>,
    /// Which endpoint it was made at.
    pub(crate) via: Via,
    /// What went wrong, for people.
    pub(crate) detail: Option<String>,
    /// Duration of the attempt.
    pub(crate) duration_ms: Option<u32>,
    /// Start of the response body.
    pub(crate) response: Option<String>,
    /// What went over the wire, if history is to know.
    pub(crate) exchange: Option<Box<Exchange>>,
}

/// A kind of outcome with its verdict.
#[derive(Debug, Clone)]
pub(crate) struct Settlement {
    /// What becomes of the delivery.
    pub(crate) kind: OutcomeKind,
    /// The rest.
    pub(crate) verdict: Verdict,
}

impl Settlement {
    /// To be tried again without an attempt having been made.
    pub(crate) fn deferred(not_before: UnixMillis) -> Self {
        Self {
            kind: OutcomeKind::Deferred,
            verdict: Verdict { not_before: Some(not_before), ..Verdict::default() },
        }
    }

    /// To be filtered later.
    pub(crate) fn not_filtered(not_before: UnixMillis) -> Self {
        let mut settlement = Self::deferred(not_before);
        settlement.verdict.detail =
            Some("this tenant's filters have taken more time than they get".to_owned());
        settlement
    }

    /// Under way, and to be made again if its own outcome does not follow until then.
    pub(crate) fn in_doubt(not_before: UnixMillis) -> Self {
        Self { kind: OutcomeKind::InDoubt, ..Self::deferred(not_before) }
    }

    /// Given up without an attempt.
    pub(crate) fn dead(reason: DeadReason) -> Self {
        Self { kind: OutcomeKind::Dead, verdict: Verdict { reason: Some(reason), ..Verdict::default() } }
    }

    /// Given up because the subscription's filter could not decide.
    pub(crate) fn undecided(why: String) -> Self {
        let mut settlement = Self::dead(DeadReason::FilterFailed);
        settlement.verdict.detail = Some(why);
        settlement
    }

    /// The subscription is gone.
    pub(crate) fn dropped() -> Self {
        Self { kind: OutcomeKind::Dropped, verdict: Verdict::default() }
    }
}
