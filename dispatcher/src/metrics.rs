//! The dispatcher's metrics: names, descriptions and handles, made once. No label names a tenant or a subscription.
#![allow(clippy::disallowed_macros, reason = "this is the file that the ban points to")]

use crate::{breaker::Turn, open_batches::Closing};
use floodway_schemas::{
    outcome::{ErrorClass, OutcomeKind},
    topic::Topic,
};
use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};

const DELIVERIES: &str = "floodway_dispatcher_deliveries_total";
const ATTEMPT_SECONDS: &str = "floodway_dispatcher_attempt_duration_seconds";
const FIRST_ATTEMPT_SECONDS: &str = "floodway_dispatcher_receipt_to_first_attempt_seconds";
const IN_FLIGHT: &str = "floodway_dispatcher_in_flight";
const QUEUED: &str = "floodway_dispatcher_queued";
const DEFERRED: &str = "floodway_dispatcher_deferred_total";
const TRACKER_WINDOW: &str = "floodway_dispatcher_tracker_window";
const PARTITIONS: &str = "floodway_dispatcher_assigned_partitions";
const COMMIT_FAILURES: &str = "floodway_dispatcher_commit_failures_total";
const STALLS: &str = "floodway_dispatcher_partition_stalls_total";
const LOST_CLIENTS: &str = "floodway_dispatcher_lost_clients_total";
const OUTCOME_RETRIES: &str = "floodway_dispatcher_outcome_produce_retries_total";
const SKIPPED: &str = "floodway_dispatcher_skipped_records_total";
const BREAKERS: &str = "floodway_dispatcher_breaker_changes_total";
const FALLBACK_ATTEMPTS: &str = "floodway_dispatcher_fallback_attempts_total";
const CONNECTIONS: &str = "floodway_dispatcher_connections";
const HTTP1_REQUIRED: &str = "floodway_dispatcher_http1_required_total";
const FILTERED: &str = "floodway_dispatcher_filtered_total";
const BATCHES: &str = "floodway_dispatcher_batches_total";
const BATCH_EVENTS: &str = "floodway_dispatcher_batch_events";
const GIVEN_UP: &str = "floodway_dispatcher_given_up_deliveries_total";
const SUBSCRIPTIONS: &str = "floodway_dispatcher_subscriptions";

/// Why a record was not turned into deliveries, and its offset just settled.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Skip {
    /// It is not a record of its topic's format.
    Undecodable,
    /// An earlier owner of the partition settled it.
    Settled,
    /// Its producer sent the same event shortly before, or the scheduler the same retry.
    Repeat,
}

/// What a filter made of an event that its subscription would have got.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Filtered {
    /// It did not let it pass.
    Out,
    /// It could not decide.
    Failed,
}

/// Why a delivery was deferred.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Deferral {
    /// Its subscription's lane is full, or its turn would not come in time.
    Busy,
    /// Its subscription is paused.
    Paused,
    /// Its subscription is not known yet.
    Unknown,
    /// Its endpoint gets no requests at present.
    Open,
    /// This process ends and its lane would not drain in time.
    Leaving,
    /// Its attempt panicked.
    Panic,
    /// It has not been filtered: its tenant's filters have taken more time than they get.
    Filter,
}

/// Handles of all metrics.
pub(crate) struct Metrics {
    deliveries: Vec<Counter>,
    deferred: [Counter; 7],
    skipped: [Counter; 3],
    filtered: [Counter; 2],
    breakers: [Counter; 2],
    batches: [Counter; 5],
    batch_events: Histogram,
    /// Seconds of an attempt, body included.
    pub(crate) attempt_seconds: Histogram,
    /// Seconds from the receipt of an event to the end of its first attempt.
    pub(crate) first_attempt_seconds: Histogram,
    /// Attempts at endpoints that stand in for others.
    pub(crate) fallback_attempts: Counter,
    /// Attempts under way.
    pub(crate) in_flight: Gauge,
    /// Deliveries that wait in lanes.
    pub(crate) queued: Gauge,
    /// Outcomes that had to be produced again.
    pub(crate) outcome_retries: Counter,
    /// Producers that found no broker any more while others did, and were replaced.
    pub(crate) lost_producers: Counter,
    /// Deliveries that waited for their turn when their partition was given up: they are left to its next owner.
    pub(crate) given_up: Counter,
    /// Subscriptions known.
    pub(crate) subscriptions: Gauge,
}

/// Handles of the metrics of one consumer.
pub(crate) struct IntakeMetrics {
    /// Records between the oldest unsettled and the newest received one, in all its partitions.
    pub(crate) tracker_window: Gauge,
    /// Partitions owned.
    pub(crate) partitions: Gauge,
    /// Commits that failed.
    pub(crate) commit_failures: Counter,
    /// Times that the client had stopped fetching a partition.
    pub(crate) stalls: Counter,
    /// Consumers that found no broker any more while others did, and were replaced.
    pub(crate) lost: Counter,
}

/// Handles of the metrics of one worker's connections.
pub(crate) struct PoolMetrics {
    /// Connections to endpoints, those that are being made included.
    pub(crate) connections: Gauge,
    /// Servers that speak HTTP/2 and asked for HTTP/1.1.
    pub(crate) http1_required: Counter,
}

impl PoolMetrics {
    /// Registers them.
    pub(crate) fn new() -> Self {
        Self { connections: gauge!(CONNECTIONS), http1_required: counter!(HTTP1_REQUIRED) }
    }
}

impl Metrics {
    /// Describes and registers everything.
    pub(crate) fn new() -> Self {
        describe();
        let mut deliveries = Vec::with_capacity(OutcomeKind::ALL.len() * (ErrorClass::ALL.len() + 1));
        for kind in OutcomeKind::ALL {
            deliveries.push(counter!(DELIVERIES, "kind" => kind.as_str(), "error" => "none"));
            for class in ErrorClass::ALL {
                deliveries.push(counter!(DELIVERIES, "kind" => kind.as_str(), "error" => class.as_str()));
            }
        }
        Self {
            deliveries,
            deferred: ["busy", "paused", "unknown_subscription", "open", "leaving", "panic", "filter"]
                .map(|reason| counter!(DEFERRED, "reason" => reason)),
            skipped: ["undecodable", "settled", "repeat"].map(|reason| counter!(SKIPPED, "reason" => reason)),
            filtered: ["out", "failed"].map(|result| counter!(FILTERED, "result" => result)),
            breakers: ["opened", "closed"].map(|change| counter!(BREAKERS, "change" => change)),
            batches: ["count", "bytes", "age", "room", "leaving"]
                .map(|reason| counter!(BATCHES, "reason" => reason)),
            batch_events: histogram!(BATCH_EVENTS),
            attempt_seconds: histogram!(ATTEMPT_SECONDS),
            first_attempt_seconds: histogram!(FIRST_ATTEMPT_SECONDS),
            fallback_attempts: counter!(FALLBACK_ATTEMPTS),
            in_flight: gauge!(IN_FLIGHT),
            queued: gauge!(QUEUED),
            outcome_retries: counter!(OUTCOME_RETRIES),
            lost_producers: counter!(LOST_CLIENTS, "topic" => Topic::Outcomes.base_name()),
            given_up: counter!(GIVEN_UP),
            subscriptions: gauge!(SUBSCRIPTIONS),
        }
    }

    /// Counts a decision about a delivery.
    pub(crate) fn delivery(&self, kind: OutcomeKind, error: Option<ErrorClass>) {
        let kind = OutcomeKind::ALL.iter().position(|&known| known == kind).unwrap_or(0);
        let error = error
            .and_then(|class| ErrorClass::ALL.iter().position(|&known| known == class))
            .map_or(0, |at| at + 1);
        self.deliveries[kind * (ErrorClass::ALL.len() + 1) + error].increment(1);
    }

    /// Counts a deferral.
    pub(crate) fn deferred(&self, reason: Deferral) {
        self.deferred[reason as usize].increment(1);
    }

    /// Counts that requests to an endpoint stopped or go on.
    pub(crate) fn turned(&self, turn: Turn) {
        self.breakers[turn as usize].increment(1);
    }

    /// Counts an event that a filter kept from its subscription.
    pub(crate) fn filtered(&self, result: Filtered) {
        self.filtered[result as usize].increment(1);
    }

    /// Counts a batch that was closed, and its events.
    pub(crate) fn batch(&self, why: Closing, events: usize) {
        self.batches[why as usize].increment(1);
        // Counts far below 2^52.
        self.batch_events.record(events as f64);
    }

    /// Counts a record that was skipped.
    pub(crate) fn skipped(&self, reason: Skip) {
        self.skipped[reason as usize].increment(1);
    }
}

impl IntakeMetrics {
    /// Registers the metrics of the consumer of `topic`.
    pub(crate) fn new(topic: Topic) -> Self {
        let topic = topic.base_name();
        Self {
            tracker_window: gauge!(TRACKER_WINDOW, "topic" => topic),
            partitions: gauge!(PARTITIONS, "topic" => topic),
            commit_failures: counter!(COMMIT_FAILURES, "topic" => topic),
            stalls: counter!(STALLS, "topic" => topic),
            lost: counter!(LOST_CLIENTS, "topic" => topic),
        }
    }
}

fn describe() {
    describe_counter!(DELIVERIES, "Decisions about deliveries by kind of outcome and error class");
    describe_histogram!(
        ATTEMPT_SECONDS,
        "Duration of an attempt, connecting and the body included, in seconds"
    );
    describe_histogram!(
        FIRST_ATTEMPT_SECONDS,
        "Time from the receipt of an event to the end of its first attempt, in seconds"
    );
    describe_gauge!(IN_FLIGHT, "Attempts under way");
    describe_gauge!(QUEUED, "Deliveries that wait in memory for their subscription");
    describe_counter!(DEFERRED, "Deliveries handed to the retry scheduler without an attempt, by reason");
    describe_gauge!(
        TRACKER_WINDOW,
        "Records from the oldest unsettled to the newest received one, all partitions, by topic"
    );
    describe_gauge!(PARTITIONS, "Partitions owned, by topic");
    describe_counter!(COMMIT_FAILURES, "Commits of progress that failed, by topic");
    describe_counter!(
        STALLS,
        "Times that the Kafka client had stopped fetching a partition although it goes on, by topic"
    );
    describe_counter!(
        LOST_CLIENTS,
        "Kafka clients that found no broker any more while others did, and were replaced, by topic"
    );
    describe_counter!(OUTCOME_RETRIES, "Outcomes that Kafka did not take and that were produced again");
    describe_counter!(
        GIVEN_UP,
        "Deliveries that waited for their turn when their partition was given up, left to its next owner"
    );
    describe_counter!(SKIPPED, "Records settled without a delivery, by reason");
    describe_counter!(BREAKERS, "Endpoints that get no requests any more, or get them again, by change");
    describe_counter!(
        FALLBACK_ATTEMPTS,
        "Attempts at a fallback URL, while the subscription's own endpoint gets none"
    );
    describe_gauge!(CONNECTIONS, "Connections to endpoints, those that are being made included");
    describe_counter!(
        HTTP1_REQUIRED,
        "Endpoints that chose HTTP/2 and then asked for HTTP/1.1, which they are spoken to in from then on"
    );
    describe_counter!(
        FILTERED,
        "Events that a subscription's filter did not let pass, or could not decide about, by result"
    );
    describe_counter!(BATCHES, "Batches closed, by reason");
    describe_histogram!(BATCH_EVENTS, "Events of a batch when it was closed");
    describe_gauge!(SUBSCRIPTIONS, "Subscriptions known");
}
