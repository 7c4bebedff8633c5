//! The batches that the process fills, whichever partitions their events come from: so they fill as fast as they can.
//!
//! What a batch holds is not settled, and no part of any lane. Closed, it becomes one delivery that settles all of its records:
//! its outcome carries the whole batch, so that a failed one comes back as it was.
//!
//! A partition that is given up takes its events out of the open batches, for its next owner delivers them. A dispatcher that ends
//! defers the open batches without a request.

use crate::{
    budget::Amount,
    delivery::{Delivery, Order},
    headers::{Name, PreparedEvent},
    metrics::Metrics,
    open_batches::{Closed, Closing, OpenBatches},
    partition::Partition,
};
use bytes::Bytes;
use floodway_schemas::{
    batch::{self, BatchPolicy, Member, Members},
    outcome::Cause,
};
use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

/// The open batches hold at most this fraction of the budget, written as its divisor.
const SHARE: usize = 8;

/// The open batches of the process.
pub(crate) struct Batches {
    state: Mutex<State>,
    /// A batch closes earlier than any before, or all have ended.
    changed: Condvar,
    metrics: Arc<Metrics>,
}

struct State {
    open: OpenBatches<Delivery>,
    has_ended: bool,
}

impl Batches {
    /// None open, with a part of this budget.
    pub(crate) fn new(budget: Amount, metrics: Arc<Metrics>) -> Self {
        let most = Amount { count: (budget.count / SHARE).max(1), bytes: budget.bytes / SHARE };
        let state = State { open: OpenBatches::new(most), has_ended: false };
        Self { state: Mutex::new(state), changed: Condvar::new(), metrics }
    }

    /// Adds a delivery to its subscription's batch, and returns what is to be sent now.
    pub(crate) fn add(&self, delivery: Delivery, policy: &BatchPolicy, now: Instant) -> Vec<Delivery> {
        let (subscription, bytes) = (delivery.order.subscription, delivery.bytes());
        let mut state = self.lock();
        let before = state.open.next_end();
        let closed = state.open.add(subscription, delivery, bytes, policy, now);
        let is_sooner = state.open.next_end().is_some_and(|end| before.is_none_or(|before| end < before));
        drop(state);
        if is_sooner {
            self.changed.notify_all();
        }
        self.merged(closed)
    }

    /// Waits until a batch's time is over; `false` when all have ended. Blocks the thread, and costs nothing while none is open.
    pub(crate) fn wait_for_old(&self) -> bool {
        let mut state = self.lock();
        loop {
            if state.has_ended {
                return false;
            }
            state = match state.open.next_end() {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(end) => {
                    let left = end.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return true;
                    }
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Takes the batches whose time is over.
    pub(crate) fn take_old(&self, now: Instant) -> Vec<Delivery> {
        let closed = self.lock().open.close_old(now);
        self.merged(closed)
    }

    /// Takes all batches: a partition has no room for more records before some are settled.
    pub(crate) fn take_all(&self) -> Vec<Delivery> {
        let closed = self.lock().open.close_all(Closing::Room);
        self.merged(closed)
    }

    /// Drops what came from a partition that is given up.
    pub(crate) fn forget(&self, partition: &Arc<Partition>) {
        let is_of =
            |delivery: &Delivery| delivery.order.receipt.iter().any(|receipt| receipt.is_of(partition));
        let taken = self.lock().open.retain(|delivery| !is_of(delivery));
        drop(taken);
    }

    /// Ends: takes all batches, and lets go of who waits for old ones.
    pub(crate) fn end(&self) -> Vec<Delivery> {
        let mut state = self.lock();
        state.has_ended = true;
        let closed = state.open.close_all(Closing::Leaving);
        drop(state);
        self.changed.notify_all();
        self.merged(closed)
    }

    fn merged(&self, closed: Vec<Closed<Delivery>>) -> Vec<Delivery> {
        let merge_counted = |Closed { items, why }: Closed<Delivery>| {
            self.metrics.batch(why, items.len());
            merge(items)
        };
        closed.into_iter().filter_map(merge_counted).collect()
    }

    /// Each critical section is one operation of the open batches: a panic elsewhere cannot leave it half done.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The one delivery of several to one subscription. A single one stays what it is.
fn merge(deliveries: Vec<Delivery>) -> Option<Delivery> {
    if deliveries.len() < 2 {
        return deliveries.into_iter().next();
    }
    let array = batch::array(deliveries.iter().map(|delivery| &delivery.order.event.envelope[..]));
    let name = |delivery: &Delivery| Name {
        member: Member {
            id: delivery.order.event.id.clone().into(),
            event_type: delivery.order.event.event_type.clone().into(),
        },
        message_id: delivery.order.event.message_id.clone(),
    };
    let cause = Cause::Batch(Members::of(deliveries.iter().map(|delivery| &delivery.order.cause)));
    let since = deliveries.iter().map(|delivery| delivery.order.since).min()?;
    let names = deliveries.iter().map(name).collect();
    let mut deliveries = deliveries.into_iter();
    // The first one was received first.
    let Delivery { mut order, endpoint, received, via } = deliveries.next()?;
    let mut receipts = Vec::with_capacity(deliveries.len());
    for Delivery { order: Order { receipt, permit, .. }, .. } in deliveries {
        order.permit.join(permit);
        receipts.extend(receipt);
    }
    order.receipt.as_mut()?.join(receipts);
    let event = Arc::new(PreparedEvent::batch(Bytes::from(array), order.event.tenant, names));
    Some(Delivery { order: Order { event, cause, since, ..order }, endpoint, received, via })
}
