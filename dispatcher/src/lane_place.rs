//! A delivery's place in its lane, which is given back whatever becomes of the work that has it.

use crate::{
    budget::Amount,
    concurrency::Fared,
    deliver::Deliverer,
    delivery::Delivery,
    lane::{Lane, Next},
    subscriptions::Endpoint,
};
use floodway_schemas::outcome::Via;
use std::{panic::AssertUnwindSafe, sync::Arc, time::Instant};

/// One of a lane's deliveries under way. Dropped before [`LanePlace::finish`], as with the task that a panic ends, it finishes: a place that
/// is lost would be lost for as long as the process runs, and a probe that never ends keeps everything from its endpoint.
pub(crate) struct LanePlace {
    deliverer: Arc<Deliverer>,
    /// Of the delivery that has the place.
    endpoint: Arc<Endpoint>,
    via: Via,
    part: Amount,
    began: Option<Instant>,
    /// Whether [`Lane::finish`] has to follow.
    is_taken: bool,
}

impl LanePlace {
    /// The place of a delivery that its lane let begin.
    pub(crate) fn of(deliverer: Arc<Deliverer>, delivery: &Delivery) -> Self {
        let (endpoint, via, part) = (Arc::clone(&delivery.endpoint), delivery.via, delivery.part());
        Self { deliverer, endpoint, via, part, began: None, is_taken: true }
    }

    /// Who makes the delivery.
    pub(crate) fn deliverer(&self) -> &Arc<Deliverer> {
        &self.deliverer
    }

    /// The lane.
    pub(crate) fn lane(&self) -> &Arc<Lane<Delivery>> {
        self.endpoint.lane(self.via)
    }

    /// When the delivery may begin, if the rate of its subscription is limited.
    pub(crate) fn turn(&self) -> Option<Instant> {
        self.endpoint.subscription.requests_per_second.and_then(|_| self.lane().turn())
    }

    /// The delivery begins.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.began = Some(now);
    }

    /// The delivery ended. Returns the one that has the place from here on.
    pub(crate) fn finish(&mut self, fared: Fared, ended: Instant) -> Option<Delivery> {
        let limits = self.deliverer.limits_of(&self.endpoint.subscription);
        let began = self.began.take().unwrap_or(ended);
        self.is_taken = false;
        let Next { start, more, overdue, turn } =
            self.lane().finish(self.part, fared, &limits, began, ended, rand::random());
        // What else may panic comes after who has the places is settled.
        if let Some(delivery) = &start {
            self.pass_to(delivery);
        }
        let Deliverer { metrics, workers, tasks, .. } = &*self.deliverer;
        if start.is_some() {
            metrics.queued.decrement(1.0);
        }
        if let Some(delivery) = more {
            metrics.queued.decrement(1.0);
            workers.begin(delivery, tasks.token());
            workers.signal();
        }
        if let Some(turn) = turn {
            metrics.turned(turn);
        }
        if !overdue.is_empty() {
            self.deliverer.defer_overdue(overdue);
        }
        start
    }

    fn pass_to(&mut self, delivery: &Delivery) {
        (self.endpoint, self.via, self.part) =
            (Arc::clone(&delivery.endpoint), delivery.via, delivery.part());
        self.is_taken = true;
    }
}

impl Drop for LanePlace {
    fn drop(&mut self) {
        // When the work is cut off nothing begins any more.
        if !self.is_taken || self.deliverer.cut_off.is_cancelled() {
            return;
        }
        let finish = AssertUnwindSafe(|| {
            if let Some(next) = self.finish(Fared::Unknown, Instant::now()) {
                self.is_taken = false;
                self.deliverer.workers.begin(next, self.deliverer.tasks.token());
                self.deliverer.workers.signal();
            }
        });
        // A second panic, out of a drop, would end the process.
        if std::panic::catch_unwind(finish).is_err() {
            tracing::error!("a place in a lane is lost");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        lag::Lag,
        lane::{Limits, Offer},
        pool::{Pool, PoolLimits},
        testing::{TestDeliverer, delivery, endpoint, partition},
        worker::Worker,
    };
    use std::time::Duration;

    /// Ways in which work ends before its delivery does.
    const WAYS: [fn(&Arc<Deliverer>, Delivery); 2] = [never_polled, panics];

    fn never_polled(deliverer: &Arc<Deliverer>, delivery: Delivery) {
        let idle_timeout = Duration::from_secs(1);
        let limits = PoolLimits { connections: 1, per_host: 1, idle_per_host: 1, idle_timeout };
        let pool = Pool::new(deliverer.connector.clone(), limits);
        drop(Arc::clone(deliverer).work(delivery, Arc::new(Worker { pool, lag: Arc::<Lag>::default() })));
    }

    fn panics(deliverer: &Arc<Deliverer>, delivery: Delivery) {
        let place = LanePlace::of(Arc::clone(deliverer), &delivery);
        let panics = || {
            let _place = place;
            panic!("as meant by the test");
        };
        assert!(std::panic::catch_unwind(AssertUnwindSafe(panics)).is_err());
    }

    #[test]
    fn a_place_goes_to_the_next_delivery_when_its_work_is_dropped_or_panics() {
        let (world, endpoint, partition) = (TestDeliverer::start(), endpoint(), partition());
        let deliverer = &world.deliverer;
        let limits = Limits { in_flight: 1, ..deliverer.limits_of(&endpoint.subscription) };
        let free = Amount { count: 1_000, bytes: 1_000_000 };
        let offer = |offset| {
            let delivery = delivery(&deliverer.budget, &endpoint, &partition, offset);
            let part = delivery.part();
            endpoint.lane.offer(delivery, part, free, &limits, Instant::now(), 0.0)
        };
        for (end, from) in WAYS.into_iter().zip([0, 10]) {
            let Offer::Start(first) = offer(from) else { panic!("the lane is idle") };
            assert!(matches!(offer(from + 1), Offer::Wait));
            end(deliverer, first);
            assert_eq!(deliverer.tasks.len(), 1, "the one that waited begins");
            assert!(matches!(offer(from + 2), Offer::Wait), "it has the place");
            assert_eq!(endpoint.lane.take_waiting().len(), 1);
            deliverer.workers.take_begun().into_iter().for_each(|delivery| end(deliverer, delivery));
            assert!(deliverer.tasks.is_empty());
        }
        assert!(matches!(offer(20), Offer::Start(_)), "the lane is idle again");
    }

    #[test]
    fn an_endpoint_is_probed_again_when_the_work_of_a_probe_is_dropped_or_panics() {
        let (world, partition) = (TestDeliverer::start(), partition());
        let deliverer = &world.deliverer;
        for end in WAYS {
            let endpoint = endpoint();
            let limits = deliverer.limits_of(&endpoint.subscription);
            let offer = |at| {
                let delivery = delivery(&deliverer.budget, &endpoint, &partition, 0);
                let part = delivery.part();
                endpoint.lane.offer(delivery, part, Amount::default(), &limits, at, 0.0)
            };
            let now = Instant::now();
            for _ in 0..limits.breaker.failures {
                let Offer::Start(failed) = offer(now) else { panic!("the lane is idle") };
                endpoint.lane.finish(failed.part(), Fared::Badly, &limits, now, now, 0.0);
            }
            assert!(matches!(offer(now), Offer::Refused(_)));
            let later = now + limits.breaker.max_pause;
            let Offer::Start(probe) = offer(later) else { panic!("it is time for a probe") };
            assert!(matches!(offer(later), Offer::Refused(_)), "one at a time");
            end(deliverer, probe);
            assert!(matches!(offer(later), Offer::Start(_)));
        }
    }
}
