//! Making deliveries: through the lane, one attempt, one decision, one outcome.

use crate::{
    attempt::{self, Report},
    budget::Budget,
    classify::{self, Situation},
    config::Settings,
    connect::EndpointClient,
    delivery::{Delivery, Order, Settlement, Verdict},
    lane::{Limits, MIN_DEFERRAL, Next, Offer},
    life::Life,
    metrics::{Deferral, Metrics},
    outcomes::Outcomes,
};
use floodway_runtime::clock;
use floodway_schemas::outcome::{Cause, DeadReason};
use metrics::Gauge;
use std::{
    future::poll_fn,
    panic::AssertUnwindSafe,
    pin::pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};
use tokio::runtime::Handle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Wait before a delivery that panicked is made again: long enough for a person to notice before many of them repeat.
const PANIC_DEFERRAL: Duration = Duration::from_secs(60);

/// Makes deliveries on the async runtime.
pub(crate) struct Deliverer {
    /// What bounds attempts.
    pub(crate) max_timeout: Duration,
    /// Longest wait that `Retry-After` is granted.
    pub(crate) max_retry_after: Duration,
    /// What bounds lanes.
    pub(crate) limits: Limits,
    /// Memory of all deliveries.
    pub(crate) budget: Arc<Budget>,
    /// Connections.
    pub(crate) client: EndpointClient,
    /// Where outcomes go.
    pub(crate) outcomes: Arc<Outcomes>,
    /// Counted here.
    pub(crate) metrics: Arc<Metrics>,
    /// The phase of the dispatcher.
    pub(crate) life: Arc<Life>,
    /// Every running attempt; at most `lane_in_flight` per subscription.
    pub(crate) tasks: TaskTracker,
    /// Cancelled when the drain deadline has passed.
    pub(crate) cut_off: CancellationToken,
    /// The runtime that attempts run on: they are started from partition threads.
    pub(crate) runtime: Handle,
}

impl Deliverer {
    /// The bounds of lanes by the settings.
    pub(crate) fn limits(settings: &Settings) -> Limits {
        Limits {
            in_flight: settings.lane_in_flight,
            queue: settings.lane_queue,
            share: settings.lane_share,
            wait: settings.lane_wait,
            max_deferral: settings.max_deferral,
        }
    }

    /// Puts a delivery into its lane: it is made now, later, or deferred. Never blocks.
    pub(crate) fn offer(self: &Arc<Self>, delivery: Delivery) {
        if !self.life.is_running() {
            return;
        }
        let lane = Arc::clone(&delivery.endpoint.lane);
        let bytes = delivery.bytes();
        match lane.offer(delivery, bytes, self.budget.free(), &self.limits, Instant::now(), rand::random()) {
            Offer::Start(delivery) => {
                self.tasks.spawn_on(Arc::clone(self).work(delivery), &self.runtime);
            }
            Offer::Wait => self.metrics.queued.increment(1.0),
            Offer::Defer(delivery, delay) => {
                self.metrics.deferred(Deferral::Busy);
                self.settle(delivery.order, Settlement::deferred(clock::now().plus(delay)));
            }
        }
    }

    /// Defers what waited in the lanes for too long.
    pub(crate) fn defer_overdue(&self, overdue: Vec<(Delivery, Duration)>) {
        // Counts far below 2^52.
        self.metrics.queued.decrement(overdue.len() as f64);
        for (delivery, delay) in overdue {
            self.metrics.deferred(Deferral::Busy);
            self.settle(delivery.order, Settlement::deferred(clock::now().plus(delay)));
        }
    }

    /// Defers what waits in the lanes: its records are settled then, and nobody delivers them to their other subscriptions again.
    pub(crate) fn defer_waiting(&self, waiting: Vec<Delivery>) {
        // Counts far below 2^52.
        self.metrics.queued.decrement(waiting.len() as f64);
        for delivery in waiting {
            self.metrics.deferred(Deferral::Leaving);
            self.settle(delivery.order, Settlement::deferred(clock::now().plus(MIN_DEFERRAL)));
        }
    }

    /// Counts a decision and produces its outcome.
    pub(crate) fn settle(&self, order: Order, settlement: Settlement) {
        self.metrics.delivery(settlement.kind, settlement.verdict.error);
        self.outcomes.produce(order, settlement);
    }

    /// One place in a lane: makes one delivery after the other until none waits.
    async fn work(self: Arc<Self>, first: Delivery) {
        let mut next = Some(first);
        while let Some(delivery) = next {
            let lane = Arc::clone(&delivery.endpoint.lane);
            let (bytes, began) = (delivery.bytes(), Instant::now());
            tokio::select! {
                biased;
                () = self.cut_off.cancelled() => {}
                () = self.deliver(delivery) => {}
            }
            let Next { start, overdue } =
                lane.finish(bytes, &self.limits, began, Instant::now(), rand::random());
            self.defer_overdue(overdue);
            if start.is_some() {
                self.metrics.queued.decrement(1.0);
            }
            next = start;
        }
    }

    async fn deliver(&self, delivery: Delivery) {
        // A defect that one event or answer brings to light must not take the lane's place with it, nor leave the record open.
        let settlement = unless_panic(self.attempt(&delivery)).await.unwrap_or_else(|| {
            let subscription = delivery.endpoint.subscription.id;
            tracing::error!(%subscription, "a delivery panicked and is deferred");
            self.metrics.deferred(Deferral::Panic);
            Settlement::deferred(clock::now().plus(PANIC_DEFERRAL))
        });
        let settle = || self.settle(delivery.order, settlement);
        if std::panic::catch_unwind(AssertUnwindSafe(settle)).is_err() {
            tracing::error!(
                "an outcome could not be produced: its delivery is left to the next owner of the partition"
            );
        }
    }

    /// Makes the attempt, unless the delivery is too old for it, and decides what follows.
    async fn attempt(&self, delivery: &Delivery) -> Settlement {
        let Delivery { order, endpoint, received } = delivery;
        let policy = &endpoint.subscription.retry;
        if clock::now() > policy.expires_at(order.since) {
            return Settlement::dead(DeadReason::Expired);
        }
        let timeout = Duration::from_millis(endpoint.subscription.timeout_ms.into()).min(self.max_timeout);
        let report = {
            let _under_way = UnderWay::new(&self.metrics.in_flight);
            attempt::attempt(&self.client, endpoint, &order.event, order.record, timeout, clock::now()).await
        };
        self.metrics.attempt_seconds.record(report.duration);
        if order.attempt == 1 && matches!(order.cause, Cause::Event { .. }) {
            self.metrics.first_attempt_seconds.record(received.elapsed());
        }
        let decision = classify::classify(
            &report.reply,
            &Situation {
                policy,
                attempt: order.attempt,
                since: order.since,
                now: clock::now(),
                random: rand::random(),
                max_retry_after: self.max_retry_after,
            },
        );
        settlement(decision, report)
    }
}

/// The result of `work`, `None` when it panicked. Whatever it had under way is dropped with it.
async fn unless_panic<T>(work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    poll_fn(|context| {
        std::panic::catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context)))
            .map_or(Poll::Ready(None), |poll| poll.map(Some))
    })
    .await
}

fn settlement(decision: classify::Decision, report: Report) -> Settlement {
    Settlement {
        kind: decision.kind,
        verdict: Verdict {
            not_before: decision.not_before,
            reason: decision.reason,
            status: report.reply.status(),
            error: decision.error,
            detail: report.detail,
            duration_ms: Some(u32::try_from(report.duration.as_millis()).unwrap_or(u32::MAX)),
            response: report.response,
            exchange: report.exchange,
        },
    }
}

/// Counts an attempt as under way until dropped, also when it is cut off.
struct UnderWay<'g>(&'g Gauge);

impl<'g> UnderWay<'g> {
    fn new(gauge: &'g Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_ends_the_work_that_panicked_and_nothing_else() {
        let panics = async {
            tokio::task::yield_now().await;
            assert!(Instant::now().elapsed() > Duration::from_secs(3600), "as meant by the test");
        };
        assert_eq!(unless_panic(panics).await, None);
        let works = async {
            tokio::task::yield_now().await;
            5
        };
        assert_eq!(unless_panic(works).await, Some(5));
    }
}
