//! Making deliveries: through the lane, one attempt, one decision, one outcome.

use crate::{
    attempt::{self, Report},
    breaker::BreakerLimits,
    budget::{Amount, Budget},
    classify::{self, Reply, Situation},
    concurrency::Fared,
    config::Settings,
    connect::Connector,
    delivery::{Delivery, LaneId, Order, Settlement, Verdict},
    lane::{Limits, MIN_DEFERRAL, Offer, PutOff},
    lane_place::LanePlace,
    life::Life,
    metrics::{Deferral, Metrics},
    outcomes::Outcomes,
    partition::Receipt,
    pool::Pool,
    returns::ReturnLimits,
    shares::Shares,
    worker::{Worker, Workers},
};
use floodway_runtime::clock;
use floodway_schemas::{
    UnixMillis,
    config::Subscription,
    outcome::{Cause, DeadReason, ErrorClass, Via},
};
use metrics::Gauge;
use std::{
    future::poll_fn,
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::{Duration, Instant},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Wait before a delivery that panicked is made again: long enough for a person to notice before many of them repeat.
const PANIC_DEFERRAL: Duration = Duration::from_secs(60);

/// Time after which an attempt looks whether its partition's progress waits for it, and between two such looks. Most attempts end
/// long before.
const PRESSING_LOOK: Duration = Duration::from_secs(1);
/// How long after its deadline an attempt that was handed over is made again: time for its own outcome to arrive.
const LEASE_MARGIN: Duration = Duration::from_secs(30);

/// Longest wait in a lane while a partition's window is full.
const CROWDED_WAIT: Duration = Duration::from_secs(1);

/// Makes deliveries.
pub(crate) struct Deliverer {
    /// What bounds attempts.
    pub(crate) max_timeout: Duration,
    /// Longest wait that `Retry-After` is granted.
    pub(crate) max_retry_after: Duration,
    /// What bounds lanes.
    pub(crate) limits: Limits,
    /// Memory of all deliveries.
    pub(crate) budget: Arc<Budget>,
    /// Makes connections.
    pub(crate) connector: Connector,
    /// The threads that attempts are made on: they are begun from partition threads.
    pub(crate) workers: Workers,
    /// Where outcomes go.
    pub(crate) outcomes: Arc<Outcomes>,
    /// Counted here.
    pub(crate) metrics: Arc<Metrics>,
    /// The phase of the dispatcher.
    pub(crate) life: Arc<Life>,
    /// Every running attempt; at most `lane_in_flight` per subscription.
    pub(crate) tasks: TaskTracker,
    /// A partition's window is full: the next sweep of the lanes defers sooner.
    pub(crate) crowded: AtomicBool,
    /// Cancelled when the drain deadline has passed: the workers end, and drop what they have under way.
    pub(crate) cut_off: CancellationToken,
    /// Of rates that hold for the whole group, this process's part.
    pub(crate) shares: Shares,
}

impl Deliverer {
    /// With nothing under way. Its workers are to be started.
    pub(crate) fn new(
        settings: &Settings,
        connector: Connector,
        outcomes: Arc<Outcomes>,
        metrics: Arc<Metrics>,
        life: Arc<Life>,
    ) -> Self {
        Self {
            max_timeout: settings.max_timeout,
            max_retry_after: settings.max_retry_after,
            limits: Self::limits(settings),
            budget: Budget::new(Amount { count: settings.max_deliveries, bytes: settings.max_bytes }),
            connector,
            workers: Workers::new(settings.worker_threads()),
            outcomes,
            metrics,
            life,
            tasks: TaskTracker::new(),
            crowded: AtomicBool::new(false),
            cut_off: CancellationToken::new(),
            shares: Shares::default(),
        }
    }

    /// The bounds of lanes by the settings.
    fn limits(settings: &Settings) -> Limits {
        Limits {
            in_flight: settings.lane_in_flight,
            queue: settings.lane_queue,
            share: settings.lane_share,
            wait: settings.lane_wait,
            max_deferral: settings.max_deferral,
            breaker: BreakerLimits {
                failures: settings.breaker_failures,
                percent: settings.breaker_percent,
                pause: settings.breaker_pause,
                max_pause: settings.breaker_max_pause,
            },
            returns: ReturnLimits {
                rate: f64::from(settings.return_rate),
                longest: settings.max_return_wait,
            },
            rate: None,
        }
    }

    /// The bounds by which the lanes are swept next.
    pub(crate) fn sweep_limits(&self) -> Limits {
        // Relaxed: the flag stands for itself.
        let wait = if self.crowded.swap(false, Ordering::Relaxed) { CROWDED_WAIT } else { self.limits.wait };
        Limits { wait: wait.min(self.limits.wait), ..self.limits }
    }

    /// Puts a delivery into the lane of its endpoint, or of the one that stands in for it: it is made now, later, or deferred; or given
    /// back, when there is no room but soon will be. Never blocks. [`Workers::signal`] must follow.
    pub(crate) fn offer(&self, delivery: Delivery) -> Taken {
        if !self.life.is_running() {
            return Taken::Settled;
        }
        let offered = match self.offer_to(Via::Main, delivery) {
            Err(refused) if refused.endpoint.fallback.is_some() => self.offer_to(Via::Fallback, refused),
            offered => offered,
        };
        offered.unwrap_or_else(|refused| {
            self.put_off(refused);
            Taken::Settled
        })
    }

    /// Offers a delivery to the lane of one of its endpoints; an error when that gets nothing at present.
    #[allow(
        clippy::result_large_err,
        reason = "a delivery on its way is moved, not allocated for being refused"
    )]
    fn offer_to(&self, via: Via, mut delivery: Delivery) -> Result<Taken, Delivery> {
        delivery.via = via;
        let lane = Arc::clone(delivery.lane());
        let (part, id, limits) =
            (delivery.part(), delivery.lane_id(), self.limits_of(&delivery.endpoint.subscription));
        let free = self.budget.free_for(delivery.order.event.tenant);
        match lane.offer(delivery, part, free, &limits, Instant::now(), rand::random()) {
            Offer::Start(delivery) => {
                self.workers.begin(delivery, self.tasks.token());
                Ok(Taken::Passed(id))
            }
            Offer::Wait => {
                self.metrics.queued.increment(1.0);
                Ok(Taken::Passed(id))
            }
            Offer::Full(delivery) => Ok(Taken::Full(delivery)),
            Offer::Defer(put_off) => {
                self.defer(put_off);
                Ok(Taken::Settled)
            }
            Offer::Refused(delivery) => Err(delivery),
        }
    }

    /// The bounds of a subscription's lanes, by what it asks for.
    pub(crate) fn limits_of(&self, subscription: &Subscription) -> Limits {
        let share = if subscription.requests_per_second.is_some() { self.shares.share() } else { 1.0 };
        self.limits.of(subscription, share)
    }

    /// Defers a delivery that its lane did not take.
    pub(crate) fn put_off(&self, delivery: Delivery) {
        let lane = Arc::clone(delivery.lane());
        let limits = self.limits_of(&delivery.endpoint.subscription);
        self.defer(lane.put_off(delivery, &limits, Instant::now(), rand::random()));
    }

    fn defer(&self, PutOff { item, delay, is_open }: PutOff<Delivery>) {
        if self.is_next_owners(&item.order) {
            return;
        }
        let now = clock::now();
        let expires_at = item.endpoint.subscription.retry.expires_at(item.order.since);
        if now > expires_at {
            self.settle(item.order, Settlement::dead(DeadReason::Expired));
            return;
        }
        self.metrics.deferred(if is_open { Deferral::Open } else { Deferral::Busy });
        self.settle(item.order, Settlement::deferred(comes_back(now, delay, expires_at)));
    }

    /// Defers what waited in the lanes for too long, or for an endpoint that gets nothing any more, unless another one stands in.
    pub(crate) fn defer_overdue(&self, overdue: Vec<PutOff<Delivery>>) {
        // Counts far below 2^52.
        self.metrics.queued.decrement(overdue.len() as f64);
        for put_off in overdue {
            let item = &put_off.item;
            if put_off.is_open && item.via == Via::Main && item.endpoint.fallback.is_some() {
                self.turn_away(put_off);
            } else {
                self.defer(put_off);
            }
        }
        self.workers.signal();
    }

    /// Offers a delivery whose endpoint gets nothing any more to the one that stands in for it. Defers it when that has no room, or when
    /// nothing is begun any more.
    fn turn_away(&self, put_off: PutOff<Delivery>) {
        let mut turned_away = Some(put_off);
        self.life.while_running(|| {
            let Some(PutOff { item, .. }) = turned_away.take() else { return };
            match self.offer_to(Via::Fallback, item) {
                Ok(Taken::Full(delivery)) | Err(delivery) => self.put_off(delivery),
                Ok(Taken::Passed(_) | Taken::Settled) => {}
            }
        });
        if let Some(put_off) = turned_away {
            self.defer(put_off);
        }
    }

    /// Defers what waits in the lanes: its records are settled then, and nobody delivers them to their other subscriptions again.
    pub(crate) fn defer_waiting(&self, waiting: Vec<Delivery>) {
        // Counts far below 2^52.
        self.metrics.queued.decrement(waiting.len() as f64);
        waiting.into_iter().for_each(|delivery| self.leave(delivery));
    }

    /// Defers a delivery that is not begun any more.
    pub(crate) fn leave(&self, delivery: Delivery) {
        if self.is_next_owners(&delivery.order) {
            return;
        }
        self.metrics.deferred(Deferral::Leaving);
        self.settle(delivery.order, Settlement::deferred(clock::now().plus(MIN_DEFERRAL)));
    }

    /// Whether a delivery that has not begun is left to the next owner of its partition, and counts it then. An outcome of this one would
    /// make a second delivery of it.
    pub(crate) fn is_next_owners(&self, order: &Order) -> bool {
        let is_given_up = order.receipt.as_ref().is_some_and(Receipt::is_given_up);
        if is_given_up {
            self.metrics.given_up.increment(1);
        }
        is_given_up
    }

    /// Counts a decision and produces its outcome.
    pub(crate) fn settle(&self, order: Order, settlement: Settlement) {
        self.metrics.delivery(settlement.kind, settlement.verdict.error);
        self.outcomes.produce(order, settlement);
    }

    /// One place in a lane: makes one delivery after the other until none waits. It has the place before it is first polled.
    pub(crate) fn work(self: Arc<Self>, first: Delivery, worker: Arc<Worker>) -> impl Future<Output = ()> {
        let mut place = LanePlace::of(self, &first);
        async move {
            let mut next = Some(first);
            while let Some(delivery) = next {
                if let Some(turn) = place.turn() {
                    // Of its own on the heap: few subscriptions have a rate, and every delivery's task would have room for it.
                    Box::pin(tokio::time::sleep_until(turn.into())).await;
                }
                place.begin(Instant::now());
                let fared = place.deliverer().deliver(delivery, &worker.pool).await;
                let ended = Instant::now();
                worker.lag.look().await;
                if worker.lag.is_behind(ended) {
                    place.lane().lagged(ended);
                }
                next = place.finish(fared, ended);
            }
        }
    }

    async fn deliver(&self, mut delivery: Delivery, pool: &Pool) -> Fared {
        if self.is_next_owners(&delivery.order) {
            return Fared::Unknown;
        }
        let mut receipt = delivery.order.receipt.take();
        // A defect that one event or answer brings to light must not take the lane's place with it, nor leave the record open.
        let attempted = {
            // Pinned where it is made: moved from one future into the next it would be copied each time, some kilobytes.
            let attempt = pin!(self.attempt(&delivery, pool));
            self.hand_over_if_pressing(unless_panic(attempt), &delivery, &mut receipt).await
        };
        let (settlement, fared) = attempted.unwrap_or_else(|| {
            let subscription = delivery.endpoint.subscription.id;
            tracing::error!(%subscription, "a delivery panicked and is deferred");
            self.metrics.deferred(Deferral::Panic);
            (Settlement::deferred(clock::now().plus(PANIC_DEFERRAL)), Fared::Unknown)
        });
        delivery.order.receipt = receipt;
        let settle = || self.settle(delivery.order, settlement);
        if std::panic::catch_unwind(AssertUnwindSafe(settle)).is_err() {
            tracing::error!(
                "an outcome could not be produced: its delivery is left to the next owner of the partition"
            );
        }
        fared
    }

    /// Waits for an attempt. While its partition's progress ought not to wait with it, the delivery is handed to the retry scheduler,
    /// which makes it again if its own outcome does not follow: the record is settled then, and the attempt goes on.
    async fn hand_over_if_pressing<T>(
        &self,
        attempt: impl Future<Output = T>,
        delivery: &Delivery,
        receipt: &mut Option<Receipt>,
    ) -> T {
        let mut attempt = pin!(attempt);
        let deadline = Instant::now() + self.timeout(delivery);
        while receipt.is_some() {
            if let Ok(attempted) = tokio::time::timeout(PRESSING_LOOK, attempt.as_mut()).await {
                return attempted;
            }
            if !self.outcomes.is_stalled()
                && let Some(pressing) = receipt.take_if(|receipt| receipt.is_pressing())
            {
                let left = deadline.saturating_duration_since(Instant::now());
                let lease = Settlement::in_doubt(clock::now().plus(left + LEASE_MARGIN));
                self.settle(delivery.order.handed_over(pressing), lease);
            }
        }
        attempt.await
    }

    fn timeout(&self, delivery: &Delivery) -> Duration {
        Duration::from_millis(delivery.endpoint.subscription.timeout_ms.into()).min(self.max_timeout)
    }

    /// Makes the attempt, unless the delivery is too old for it, and decides what follows. Also says how the endpoint fared.
    async fn attempt(&self, delivery: &Delivery, pool: &Pool) -> (Settlement, Fared) {
        let Delivery { order, endpoint, received, via } = delivery;
        let policy = &endpoint.subscription.retry;
        if clock::now() > policy.expires_at(order.since) {
            return (Settlement::dead(DeadReason::Expired), Fared::Unknown);
        }
        let timeout = self.timeout(delivery);
        let report = {
            let _under_way = UnderWay::new(&self.metrics.in_flight);
            attempt::attempt(pool, delivery, timeout, clock::now()).await
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
                via: *via,
            },
        );
        if *via == Via::Fallback {
            self.metrics.fallback_attempts.increment(1);
        }
        let fared = fared(&report.reply);
        (settlement(decision, report, *via), fared)
    }
}

/// What became of a delivery that was offered.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "a delivery on its way is moved, not allocated for being refused"
)]
pub(crate) enum Taken {
    /// It is made, or waits for its turn in this lane.
    Passed(LaneId),
    /// It is not made: its outcome is on its way.
    Settled,
    /// There is no room for it yet.
    Full(Delivery),
}

/// When a deferred delivery comes back: not long after it is too old, so that it is given up in time.
pub(crate) fn comes_back(now: UnixMillis, delay: Duration, expires_at: UnixMillis) -> UnixMillis {
    let too_old = expires_at.plus(Duration::from_millis(1));
    now.plus(delay).min(too_old).max(now.plus(MIN_DEFERRAL))
}

/// What a reply says about the endpoint. An answer about the event, whatever it is, comes from an endpoint that is there; how often
/// the event is sent again is the schedule's matter.
fn fared(reply: &Reply) -> Fared {
    match reply {
        Reply::Answered { status: 429 | 502..=504, .. } => Fared::Badly,
        Reply::Answered { .. } => Fared::Well,
        Reply::Failed { class: ErrorClass::Secret, .. } => Fared::Unknown,
        Reply::Failed { .. } => Fared::Badly,
    }
}

/// The result of `work`, `None` when it panicked. Whatever it had under way is dropped with it.
async fn unless_panic<T>(mut work: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    poll_fn(|context| {
        std::panic::catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context)))
            .map_or(Poll::Ready(None), |poll| poll.map(Some))
    })
    .await
}

fn settlement(decision: classify::Decision, report: Report, via: Via) -> Settlement {
    Settlement {
        kind: decision.kind,
        verdict: Verdict {
            not_before: decision.not_before,
            reason: decision.reason,
            status: report.reply.status(),
            error: decision.error,
            via,
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
    use crate::{
        partition::Partition,
        testing::{TestDeliverer, delivery, endpoint, partition, until},
    };
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_deferred_delivery_comes_back_before_it_is_too_old_or_to_be_given_up(
            delay_ms in 0u64..100_000_000, age_ms in 0i64..10_000_000,
        ) {
            let now = UnixMillis(1_795_275_240_000);
            let expires_at = UnixMillis(now.0 - age_ms + 10_000_000);
            let back = comes_back(now, Duration::from_millis(delay_ms), expires_at);
            prop_assert!(back >= now.plus(MIN_DEFERRAL));
            prop_assert!(back <= expires_at.plus(Duration::from_millis(1)).max(now.plus(MIN_DEFERRAL)));
            prop_assert!(back <= now.plus(Duration::from_millis(delay_ms).max(MIN_DEFERRAL)));
        }
    }

    /// Ways in which a delivery that waits is let go of.
    const WAYS: [fn(&Deliverer, Delivery); 5] = [
        |deliverer, delivery| deliverer.put_off(delivery),
        |deliverer, delivery| deliverer.leave(delivery),
        |deliverer, delivery| deliverer.defer_waiting(vec![delivery]),
        |deliverer, item| deliverer.defer_overdue(vec![PutOff { item, delay: MIN_DEFERRAL, is_open: false }]),
        |deliverer, item| deliverer.defer_overdue(vec![PutOff { item, delay: MIN_DEFERRAL, is_open: true }]),
    ];

    #[test]
    fn what_waits_is_deferred_unless_its_partitions_were_all_given_up() {
        let (world, endpoint) = (TestDeliverer::start(), endpoint());
        let deliverer = &*world.deliverer;
        let make =
            |partition: &Arc<Partition>, offset| delivery(&deliverer.budget, &endpoint, partition, offset);
        let batch = |partition: &Arc<Partition>, other: &Arc<Partition>| {
            let mut delivery = make(partition, 0);
            delivery.order.receipt.as_mut().unwrap().join(make(other, 1).order.receipt);
            delivery
        };
        for let_go in WAYS {
            for is_batch in [false, true] {
                let (gone, kept) = (partition(), partition());
                gone.stop();
                let_go(deliverer, if is_batch { batch(&gone, &gone) } else { make(&gone, 0) });
                // Without an outcome: its receipt would live until that is acknowledged.
                assert!(gone.abandoned_for().is_some());
                assert_eq!(gone.window_len(), 1 + usize::from(is_batch));
                let gone = partition();
                gone.stop();
                let_go(deliverer, if is_batch { batch(&gone, &kept) } else { make(&kept, 0) });
                until("its outcome is acknowledged", || kept.window_len() + gone.window_len() == 0);
                assert_eq!((gone.abandoned_for(), kept.abandoned_for()), (None, None));
            }
        }
    }

    #[test]
    fn the_task_of_a_delivery_is_small() {
        fn size<R>(_: fn(Arc<Deliverer>, Delivery, Arc<Worker>) -> R) -> usize {
            size_of::<R>()
        }
        // It is moved and initialised several times, and there are thousands of them.
        assert!(size(Deliverer::work) <= 4096, "{} bytes", size(Deliverer::work));
    }

    #[tokio::test]
    async fn a_panic_ends_the_work_that_panicked_and_nothing_else() {
        let panics = async {
            tokio::task::yield_now().await;
            assert!(Instant::now().elapsed() > Duration::from_secs(3600), "as meant by the test");
        };
        assert_eq!(unless_panic(pin!(panics)).await, None);
        let works = async {
            tokio::task::yield_now().await;
            5
        };
        assert_eq!(unless_panic(pin!(works)).await, Some(5));
    }
}
