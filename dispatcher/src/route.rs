//! From a record to deliveries: decode, find the subscriptions, decide what needs no attempt.

use crate::{
    backlog::{Backlog, Reading},
    batches::Batches,
    budget::{Amount, Source},
    config::Settings,
    deliver::{Deliverer, Taken, comes_back},
    delivery::{Delivery, Order, Settlement},
    filter_time::Payer,
    filters::{Filters, Verdict},
    headers::{Name, PreparedEvent},
    life::Phase,
    metrics::{Deferral, Filtered, Metrics, Skip},
    partition::{Partition, Receipt},
    paused,
    repeats::{Fingerprint, Repeats},
    subscriptions::{Endpoint, Subscriptions},
};
use bytes::Bytes;
use floodway_runtime::{clock, config_feed::Freshness};
use floodway_schemas::{
    DecodeError, MAX_EVENT_BYTES, UnixMillis, array,
    batch::{self, BATCH_EVENTS, BatchPolicy, Member},
    config::SubscriptionState,
    due::{Due, NOT_FILTERED, Origin},
    event::{Event, EventError},
    filter::Subject,
    ids::TenantId,
    outcome::{Cause, DeadReason, Via},
    topic::Topic,
};
use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

/// Jitter of rechecks, as a share of the wait: what was deferred together does not come back together.
const SPREAD: f64 = 0.2;

/// How old the configuration may be for events to be matched against it. It is a second old at most while Kafka answers.
const MAX_CONFIG_AGE: Duration = Duration::from_secs(10);
/// Wait while deliveries are settled faster than their outcomes are written: a thousand of them, a part of those that wait.
const CROWDED_WAIT: Duration = Duration::from_millis(10);
/// Longest wait for room before a thread looks whether it is to end.
const ROOM_WAIT: Duration = Duration::from_millis(100);

/// A record as it was received.
#[derive(Debug)]
pub(crate) struct Record {
    /// Its topic.
    pub(crate) topic: Topic,
    /// Its offset.
    pub(crate) offset: i64,
    /// Its time: for events the broker's.
    pub(crate) timestamp: UnixMillis,
    /// Its value.
    pub(crate) payload: Bytes,
}

/// Turns records into deliveries. Waits for room, and for nothing else.
pub(crate) struct Router {
    /// Who gets what.
    pub(crate) subscriptions: Arc<Subscriptions>,
    /// What events are for them besides their type.
    pub(crate) filters: Filters,
    /// What waits for further events.
    pub(crate) batches: Batches,
    /// Where deliveries go.
    pub(crate) deliverer: Arc<Deliverer>,
    /// Least wait before a paused subscription is looked at again.
    pub(crate) paused_recheck: Duration,
    /// Age up to which an unknown subscription may still be on its way.
    pub(crate) config_grace: Duration,
    /// How old the configuration is.
    pub(crate) freshness: Freshness,
}

/// What a record asks for: one event, and what to do with it for each subscription.
struct Plan {
    event: Arc<PreparedEvent>,
    steps: Vec<Step>,
}

struct Step {
    cause: Cause,
    attempt: u32,
    since: UnixMillis,
    target: Target,
}

enum Target {
    Endpoint(Arc<Endpoint>),
    /// The subscription's filter could not decide, for this reason.
    Undecided(Arc<Endpoint>, String),
    /// The subscription's filter is not asked before so much time has passed.
    NotFiltered(Arc<Endpoint>, Duration),
    Unknown(floodway_schemas::ids::SubscriptionId),
}

impl Target {
    /// Whether the subscription's filter, if there is one, has been asked.
    fn is_filtered(&self) -> bool {
        matches!(self, Self::Endpoint(_) | Self::Undecided(..))
    }
}

impl Router {
    /// A router with the settings' waits.
    pub(crate) fn new(
        subscriptions: Arc<Subscriptions>,
        deliverer: Arc<Deliverer>,
        settings: &Settings,
        freshness: Freshness,
    ) -> Self {
        let budget = Amount { count: settings.max_deliveries, bytes: settings.max_bytes };
        Self {
            subscriptions,
            filters: Filters::default(),
            batches: Batches::new(budget, Arc::clone(&deliverer.metrics)),
            deliverer,
            paused_recheck: settings.paused_recheck,
            config_grace: settings.config_grace,
            freshness,
        }
    }

    /// Whether Kafka does not take outcomes, so that no record is taken.
    pub(crate) fn is_stalled(&self) -> bool {
        self.deliverer.outcomes.is_stalled()
    }

    /// Whether the configuration is as new as it must be: an event matched against an old one would miss a subscription for good.
    pub(crate) fn is_config_current(&self) -> bool {
        self.freshness.is_within(MAX_CONFIG_AGE)
    }

    /// Whether another record of `topic` may be taken; waits for that up to about [`ROOM_WAIT`]. Blocks the thread.
    pub(crate) fn wait_for_room(&self, topic: Topic) -> bool {
        if self.is_stalled() || (topic == Topic::Events && !self.is_config_current()) {
            self.signal();
            std::thread::sleep(ROOM_WAIT);
            return false;
        }
        let source = match topic {
            Topic::Due => Source::Due,
            Topic::Replays => Source::Replays,
            _ => Source::Events,
        };
        if self.deliverer.outcomes.is_crowded() {
            self.signal();
            std::thread::sleep(CROWDED_WAIT);
            return false;
        }
        let budget = &self.deliverer.budget;
        budget.wait_for_room(source, Duration::ZERO) || {
            self.signal();
            budget.wait_for_room(source, ROOM_WAIT)
        }
    }

    /// Takes a record: counts its deliveries in the partition's tracker, then sets them off as there is room for them. Blocks the
    /// thread for that. When taking ends meanwhile, the rest is left to the next owner, for the record is not settled then.
    /// What its lane has no room for goes to the partition's backlog.
    pub(crate) fn accept(
        &self,
        partition: &Arc<Partition>,
        record: &Record,
        repeats: &mut Repeats,
        backlog: &mut Backlog,
    ) {
        let life = &self.deliverer.life;
        let received = Instant::now();
        let Some(Some(Plan { event, steps })) = life.while_running(|| self.begin(partition, record, repeats))
        else {
            return;
        };
        let mut others = false;
        for (taken, step) in steps.into_iter().enumerate() {
            // There was room for the first one before the record was taken.
            if taken > 0 && !self.wait_for_budget(partition, Source::of(&step.cause)) {
                return;
            }
            let receipt = Receipt::new(partition, record.offset);
            match life.while_running(|| self.carry_out(step, &event, receipt, received, backlog)) {
                Some(Taken::Passed(lane)) => others |= backlog.passed(lane, record.timestamp),
                Some(Taken::Settled) => {}
                Some(Taken::Full(delivery)) => backlog.take(delivery, &self.deliverer),
                None => return,
            }
        }
        backlog.note(others, record.timestamp);
    }

    /// Offers what is held back of a partition again, and says whether to read on.
    pub(crate) fn work_off(&self, backlog: &mut Backlog) -> Reading {
        backlog.work(&self.deliverer)
    }

    /// Lets go of what a partition's thread holds back when it ends. If the partition was given up, that is the next owner's, but for
    /// what it closed with events of partitions that stayed, which is deferred. When the dispatcher ends all of it is, for nobody
    /// delivers its records to their other subscriptions again then.
    pub(crate) fn leave(&self, partition: &Arc<Partition>, backlog: Backlog) {
        match self.deliverer.life.phase() {
            Phase::Running => {
                self.batches.forget(partition);
                backlog.leave(&self.deliverer);
            }
            Phase::Draining => backlog.leave(&self.deliverer),
            Phase::Leaving | Phase::Abandoned => {}
        }
    }

    /// Sends batches off when their time is over, until all have ended: the body of a thread.
    pub(crate) fn close_batches(&self) {
        while self.batches.wait_for_old() {
            let close = || self.send_all_off(self.batches.take_old(Instant::now()));
            // Defects of one batch must not keep the others open.
            let closed =
                std::panic::catch_unwind(AssertUnwindSafe(|| self.deliverer.life.while_running(close)));
            match closed {
                Ok(Some(())) => self.signal(),
                Ok(None) => return,
                Err(_) => tracing::error!("a batch could not be sent off"),
            }
        }
    }

    /// Sends the open batches off, and keeps nothing waiting in lanes for long: a partition has no room before some of its records are
    /// settled. Tells the workers, too.
    pub(crate) fn make_way(&self) {
        // Relaxed: the flag stands for itself.
        self.deliverer.crowded.store(true, Ordering::Relaxed);
        self.deliverer.life.while_running(|| self.send_all_off(self.batches.take_all()));
        self.signal();
    }

    fn send_all_off(&self, batches: Vec<Delivery>) {
        for batch in batches {
            if let Taken::Full(batch) = self.send_off(batch, None) {
                self.deliverer.put_off(batch);
            }
        }
    }

    /// Defers the open batches: the dispatcher ends, and takes no more records.
    pub(crate) fn leave_batches(&self) {
        self.batches.end().into_iter().for_each(|batch| self.deliverer.leave(batch));
    }

    /// Drops the open batches: the dispatcher was abandoned.
    pub(crate) fn drop_batches(&self) {
        drop(self.batches.end());
    }

    /// Tells the workers of deliveries that may begin.
    pub(crate) fn signal(&self) {
        self.deliverer.workers.signal();
    }

    /// Waits for room in the budget; `false` when taking ends before.
    fn wait_for_budget(&self, partition: &Partition, source: Source) -> bool {
        if self.deliverer.budget.wait_for_room(source, Duration::ZERO) {
            return true;
        }
        self.signal();
        loop {
            if partition.is_stopped() || !self.deliverer.life.is_running() {
                return false;
            }
            if self.deliverer.budget.wait_for_room(source, ROOM_WAIT) {
                return true;
            }
        }
    }

    /// Counts a record's deliveries in the partition's tracker and returns them, if there are any.
    fn begin(&self, partition: &Partition, record: &Record, repeats: &mut Repeats) -> Option<Plan> {
        if partition.is_settled_or_seen(record.offset) {
            self.remember(record, repeats);
            self.metrics().skipped(Skip::Settled);
            partition.receive(record.offset, 0);
            return None;
        }
        let plan = match record.topic {
            Topic::Due | Topic::Replays => self.plan_due(partition, record, repeats),
            _ => self.plan_event(partition, record, repeats),
        };
        let plan = plan.unwrap_or_else(|error| {
            let topic = record.topic.base_name();
            tracing::warn!(topic, partition = partition.id(), offset = record.offset, %error, "record skipped");
            self.metrics().skipped(Skip::Undecodable);
            None
        });
        // A record has fewer subscriptions than a number has values.
        let deliveries = plan.as_ref().map_or(0, |plan| u32::try_from(plan.steps.len()).unwrap_or(u32::MAX));
        partition.receive(record.offset, deliveries);
        plan
    }

    /// One step for every subscription that wants the event; nothing when there is none.
    fn plan_event(
        &self,
        partition: &Partition,
        record: &Record,
        repeats: &mut Repeats,
    ) -> Result<Option<Plan>, DecodeError> {
        let event = decode(&record.payload)?;
        let endpoints = self.subscriptions.matching(event.tenant, &event.event_type, record.timestamp);
        if endpoints.is_empty() {
            return Ok(None);
        }
        let prepared = PreparedEvent::new(&event, &record.payload);
        let fingerprint = Fingerprint::of(&prepared.message_id);
        if fingerprint.is_some_and(|print| repeats.is_repeat(print, record.offset, record.timestamp)) {
            self.metrics().skipped(Skip::Repeat);
            return Ok(None);
        }
        let cause = Cause::Event { run: partition.run(), partition: partition.id(), offset: record.offset };
        let step = |target: Target| {
            let attempt = if target.is_filtered() { 1 } else { NOT_FILTERED };
            Step { cause: cause.clone(), attempt, since: event.received_at, target }
        };
        let payer = (event.tenant, record.topic, partition.id());
        let mut subject = None;
        let steps: Vec<Step> = endpoints
            .into_iter()
            .filter_map(|endpoint| self.filter(endpoint, &event, &mut subject, payer))
            .map(step)
            .collect();
        if steps.is_empty() {
            return Ok(None);
        }
        Ok(Some(Plan { event: Arc::new(prepared), steps }))
    }

    /// Remembers a record that was settled: an event only if anybody wanted it, for what nobody wanted then may be wanted when it is
    /// sent again.
    fn remember(&self, record: &Record, repeats: &mut Repeats) {
        if record.topic == Topic::Events {
            let Ok(event) = decode(&record.payload) else { return };
            let wanted = self.subscriptions.matching(event.tenant, &event.event_type, record.timestamp);
            if let Some(print) = Fingerprint::of(&event.message_id()).filter(|_| !wanted.is_empty()) {
                repeats.is_repeat(print, record.offset, record.timestamp);
            }
        } else if let Ok(due) = Due::decode(&record.payload)
            && let Origin::RetryKey(key) = due.origin
            && let Ok(event) = prepare(&record.payload.slice_ref(due.event.get().as_bytes()), due.tenant)
            && let Some(print) = Fingerprint::of_retry(&event.message_id, key, due.subscription)
        {
            repeats.is_repeat(print, record.offset, record.timestamp);
        }
    }

    /// What becomes of an event for a subscription that wants its type, by the subscription's filter; nothing when it does not pass.
    fn filter<'e>(
        &self,
        endpoint: Arc<Endpoint>,
        event: &'e Event<'e>,
        subject: &mut Option<Subject<'e>>,
        payer: Payer,
    ) -> Option<Target> {
        let Some(filter) = &endpoint.subscription.filter else { return Some(Target::Endpoint(endpoint)) };
        match self.filters.ask(filter, payer, subject.get_or_insert_with(|| Subject::new(event))) {
            Verdict::Decided(Ok(true)) => Some(Target::Endpoint(endpoint)),
            Verdict::Decided(Ok(false)) => {
                self.metrics().filtered(Filtered::Out);
                None
            }
            Verdict::Decided(Err(error)) => {
                self.metrics().filtered(Filtered::Failed);
                Some(Target::Undecided(endpoint, error.to_string()))
            }
            Verdict::NotYet(wait) => Some(Target::NotFiltered(endpoint, wait)),
        }
    }

    /// The one step of a retry or a replay; none for a retry that was produced again, or that its filter, which had not been asked
    /// before, does not let pass.
    fn plan_due(
        &self,
        partition: &Partition,
        record: &Record,
        repeats: &mut Repeats,
    ) -> Result<Option<Plan>, DecodeError> {
        let due = Due::decode(&record.payload)?;
        let envelope = record.payload.slice_ref(due.event.get().as_bytes());
        let event = prepare(&envelope, due.tenant)?;
        let endpoint =
            self.subscriptions.get(due.subscription).filter(|known| known.subscription.tenant == due.tenant);
        let cause = match due.origin {
            Origin::RetryKey(key) => {
                let print = Fingerprint::of_retry(&event.message_id, key, due.subscription);
                if print.is_some_and(|print| repeats.is_repeat(print, record.offset, record.timestamp)) {
                    self.metrics().skipped(Skip::Repeat);
                    return Ok(None);
                }
                Cause::Due(key)
            }
            Origin::ReplayId(replay) => Cause::Replay { replay, message_id: event.message_id.clone() },
        };
        let target = match endpoint {
            Some(endpoint) if due.attempt == NOT_FILTERED => {
                let payer = (due.tenant, record.topic, partition.id());
                let Some(target) = self.filter(endpoint, &decode(&envelope)?, &mut None, payer) else {
                    return Ok(None);
                };
                target
            }
            Some(endpoint) => Target::Endpoint(endpoint),
            None => Target::Unknown(due.subscription),
        };
        let attempt = if target.is_filtered() { due.attempt.max(1) } else { due.attempt };
        let step = Step { cause, attempt, since: due.since, target };
        Ok(Some(Plan { event: Arc::new(event), steps: vec![step] }))
    }

    fn carry_out(
        &self,
        step: Step,
        event: &Arc<PreparedEvent>,
        receipt: Receipt,
        received: Instant,
        backlog: &mut Backlog,
    ) -> Taken {
        let Step { cause, attempt, since, target } = step;
        let (subscription, record) = match &target {
            Target::Endpoint(endpoint)
            | Target::Undecided(endpoint, _)
            | Target::NotFiltered(endpoint, _) => {
                (endpoint.subscription.id, endpoint.subscription.history.keeps(&event.id))
            }
            Target::Unknown(id) => (*id, false),
        };
        let permit = self.deliverer.budget.take(Source::of(&cause), event.tenant, event.envelope.len());
        let event = Arc::clone(event);
        let receipt = Some(receipt);
        let order = Order { event, subscription, record, cause, attempt, since, receipt, permit };
        match target {
            Target::Endpoint(endpoint)
                if let Some(policy) = endpoint.subscription.batch
                    && matches!(order.cause, Cause::Event { .. }) =>
            {
                self.join(Delivery { order, endpoint, received, via: Via::Main }, &policy, backlog)
            }
            target => self.dispose(order, target, received, Some(backlog)),
        }
    }

    /// Puts a delivery into its subscription's batch, and sends off what that closes.
    fn join(&self, delivery: Delivery, policy: &BatchPolicy, backlog: &mut Backlog) -> Taken {
        let lane = delivery.lane_id();
        for batch in self.batches.add(delivery, policy, Instant::now()) {
            if let Taken::Full(batch) = self.send_off(batch, Some(backlog)) {
                backlog.take(batch, &self.deliverer);
            }
        }
        Taken::Passed(lane)
    }

    /// What becomes of a batch that is closed, by what its subscription is by now.
    fn send_off(&self, batch: Delivery, backlog: Option<&Backlog>) -> Taken {
        let Delivery { order, received, .. } = batch;
        let (id, tenant) = (order.subscription, order.event.tenant);
        let target = match self.subscriptions.get(id).filter(|known| known.subscription.tenant == tenant) {
            Some(endpoint) => Target::Endpoint(endpoint),
            None => Target::Unknown(id),
        };
        self.dispose(order, target, received, backlog)
    }

    /// Offers a delivery to its lane, unless others in the partition's backlog wait for that, or settles it without an attempt. Drops it
    /// when its partition was given up meanwhile.
    fn dispose(&self, order: Order, target: Target, received: Instant, backlog: Option<&Backlog>) -> Taken {
        if self.deliverer.is_next_owners(&order) {
            return Taken::Settled;
        }
        let (since, now) = (order.since, clock::now());
        match target {
            Target::Endpoint(endpoint) => match endpoint.subscription.state {
                SubscriptionState::Active => {
                    let delivery = Delivery { order, endpoint, received, via: Via::Main };
                    if backlog.is_some_and(|backlog| backlog.is_ahead_of(&delivery, &self.deliverer)) {
                        return Taken::Full(delivery);
                    }
                    return self.deliverer.offer(delivery);
                }
                _ if now > endpoint.subscription.retry.expires_at(since) => {
                    self.deliverer.settle(order, Settlement::dead(DeadReason::Expired));
                }
                SubscriptionState::Paused => {
                    let since = endpoint.subscription.paused_since;
                    let wait = paused::deferral(self.paused_recheck, since, now);
                    let expires_at = endpoint.subscription.retry.expires_at(order.since);
                    self.defer(order, Deferral::Paused, wait, now, Some(expires_at));
                }
                SubscriptionState::Disabled => {
                    self.deliverer.settle(order, Settlement::dead(DeadReason::SubscriptionDisabled));
                }
            },
            // Neither delivered nor forgotten: a dead letter can be replayed, and history says why.
            Target::Undecided(_, why) => self.deliverer.settle(order, Settlement::undecided(why)),
            Target::NotFiltered(endpoint, wait) => {
                let expires_at = endpoint.subscription.retry.expires_at(since);
                if now > expires_at {
                    self.deliverer.settle(order, Settlement::dead(DeadReason::Expired));
                } else {
                    self.metrics().deferred(Deferral::Filter);
                    self.deliverer.settle(order, Settlement::not_filtered(comes_back(now, wait, expires_at)));
                }
            }
            // A test event or a replay may overtake the subscription that it is for, all the more when the feed is late.
            Target::Unknown(_) if now.since(since) < self.config_grace || !self.is_config_current() => {
                self.defer(order, Deferral::Unknown, crate::lane::MIN_DEFERRAL, now, None);
            }
            Target::Unknown(_) => self.deliverer.settle(order, Settlement::dropped()),
        }
        Taken::Settled
    }

    fn defer(
        &self,
        order: Order,
        reason: Deferral,
        wait: Duration,
        now: UnixMillis,
        expires_at: Option<UnixMillis>,
    ) {
        self.metrics().deferred(reason);
        let wait = wait.mul_f64(1.0 + SPREAD * rand::random::<f64>());
        let until = expires_at.map_or(now.plus(wait), |expires_at| comes_back(now, wait, expires_at));
        self.deliverer.settle(order, Settlement::deferred(until));
    }

    fn metrics(&self) -> &Metrics {
        &self.deliverer.metrics
    }
}

/// Makes a single event, or a batch of a tenant's, ready for delivery.
fn prepare(envelope: &Bytes, tenant: TenantId) -> Result<PreparedEvent, DecodeError> {
    if !batch::is_batch(envelope) {
        return Ok(PreparedEvent::new(&decode(envelope)?, envelope));
    }
    let elements = array::elements(envelope, *BATCH_EVENTS.end() as usize);
    let elements = elements.map_err(|error| EventError::Malformed(error.to_string()))?;
    let name = |element| {
        let event = Event::decode(element)?;
        let message_id = event.message_id();
        let id = event.id.into_owned().into();
        Ok(Name { member: Member { id, event_type: event.event_type.into_owned().into() }, message_id })
    };
    let names = elements.into_iter().map(name).collect::<Result<Vec<Name>, DecodeError>>()?;
    if names.is_empty() {
        return Err(EventError::Malformed("a batch without events".to_owned()).into());
    }
    Ok(PreparedEvent::batch(envelope.clone(), tenant, names))
}

/// Reads an envelope. One beyond ingest's limit is not ours, and no topic could take its outcome.
fn decode(envelope: &Bytes) -> Result<Event<'_>, DecodeError> {
    if envelope.len() > MAX_EVENT_BYTES {
        return Err(EventError::Malformed(format!("{} bytes", envelope.len())).into());
    }
    Event::decode(envelope)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Parts,
        testing::{cluster_of, delivery, dispatcher, endpoint, partition, until},
    };
    use floodway_schemas::ids::SubscriptionId;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_needs_no_attempt_is_settled_unless_its_partition_was_given_up() {
        let (_cluster, kafka) = cluster_of(1);
        let parts = Parts::start(&dispatcher(&kafka)).unwrap();
        let (router, endpoint) = (&parts.router, endpoint());
        let undecided = || Target::Undecided(Arc::clone(&endpoint), "why".to_owned());
        let not_filtered = || Target::NotFiltered(Arc::clone(&endpoint), Duration::from_secs(1));
        let unknown = || Target::Unknown(SubscriptionId(uuid::Uuid::nil()));
        let targets: [&dyn Fn() -> Target; 3] = [&undecided, &not_filtered, &unknown];
        for target in targets {
            let (gone, kept) = (partition(), partition());
            gone.stop();
            for partition in [&gone, &kept] {
                let order = delivery(&router.deliverer.budget, &endpoint, partition, 0).order;
                assert!(matches!(router.dispose(order, target(), Instant::now(), None), Taken::Settled));
            }
            assert!(gone.abandoned_for().is_some() && gone.window_len() == 1);
            until("the outcome is acknowledged", || kept.window_len() == 0);
        }
        parts.stop(Vec::new(), Duration::ZERO).await.unwrap();
    }
}
