//! The control plane's metrics: names, descriptions and labels, in one place.

// This file is where metrics are named; everywhere else they are used through these functions.
#![allow(clippy::disallowed_macros)]

use floodway_schemas::retry_command::RetryAction;
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use std::time::Duration;

const REQUESTS: &str = "floodway_control_plane_requests_total";
const REQUEST_SECONDS: &str = "floodway_control_plane_request_seconds";
const PUBLISHED: &str = "floodway_control_plane_config_records_published_total";
const PUBLISH_FAILURES: &str = "floodway_control_plane_config_publish_failures_total";
const PUBLISHED_ID: &str = "floodway_control_plane_config_published_outbox_id";
const PUBLISHER: &str = "floodway_control_plane_config_publisher";
const DISABLED: &str = "floodway_control_plane_subscriptions_disabled_total";
const COMMANDS: &str = "floodway_control_plane_retry_command_records_total";
const REPLAYS: &str = "floodway_control_plane_replay_records_total";
const LOST_CLIENTS: &str = "floodway_control_plane_lost_clients_total";

/// Describes all metrics; call once at start.
pub(crate) fn describe() {
    describe_counter!(REQUESTS, Unit::Count, "Requests by route, method and status.");
    describe_histogram!(
        REQUEST_SECONDS,
        Unit::Seconds,
        "Time from a request's header to its response, by route."
    );
    describe_counter!(PUBLISHED, Unit::Count, "Records written to the config topic, repeats included.");
    describe_counter!(
        PUBLISH_FAILURES,
        Unit::Count,
        "Times that publishing stopped for an error and began anew."
    );
    describe_gauge!(
        PUBLISHED_ID,
        Unit::Count,
        "Last outbox row that this publisher wrote to the config topic."
    );
    describe_gauge!(PUBLISHER, Unit::Count, "1 while this process is the one that publishes, else 0.");
    describe_counter!(
        DISABLED,
        Unit::Count,
        "Subscriptions disabled because their endpoint answered 410 Gone."
    );
    describe_counter!(
        COMMANDS,
        Unit::Count,
        "Commands to pending retries written to the outcomes topic, a record for each partition, by action."
    );
    describe_counter!(REPLAYS, Unit::Count, "Records written to the replays topic, by kind: replay or test.");
    describe_counter!(
        LOST_CLIENTS,
        Unit::Count,
        "Kafka clients replaced because no broker answered them while others were answered, by client: disabler, replays or retry_commands."
    );
}

/// An answered request. `route` is the route's pattern, never the path itself.
pub(crate) fn request(route: String, method: &'static str, status: u16, took: Duration) {
    counter!(REQUESTS, "route" => route.clone(), "method" => method, "status" => status.to_string())
        .increment(1);
    histogram!(REQUEST_SECONDS, "route" => route).record(took.as_secs_f64());
}

/// Records acknowledged by the config topic.
pub(crate) fn published(records: u64, outbox_id: i64) {
    counter!(PUBLISHED).increment(records);
    // Exact up to 2^53, far beyond any number of administrative changes.
    gauge!(PUBLISHED_ID).set(outbox_id as f64);
}

/// Publishing stopped for an error.
pub(crate) fn publish_failure() {
    counter!(PUBLISH_FAILURES).increment(1);
}

/// Whether this process is the publisher.
pub(crate) fn publisher(active: bool) {
    gauge!(PUBLISHER).set(if active { 1.0 } else { 0.0 });
}

/// A subscription was disabled for its endpoint's 410.
pub(crate) fn disabled() {
    counter!(DISABLED).increment(1);
}

/// Why a record was written to `replays`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReplayKind {
    /// Dead letters asked for again.
    Replay,
    /// A test event.
    Test,
}

/// Records acknowledged by the replays topic.
pub(crate) fn replayed(kind: ReplayKind, records: u64) {
    let kind = match kind {
        ReplayKind::Replay => "replay",
        ReplayKind::Test => "test",
    };
    counter!(REPLAYS, "kind" => kind).increment(records);
}

/// Records of a command that the outcomes topic acknowledged.
pub(crate) fn commanded(action: RetryAction, records: u64) {
    counter!(COMMANDS, "action" => action.as_str()).increment(records);
}

/// A client of Kafka that lives as long as the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Client {
    /// Reads outcomes that disable subscriptions.
    Disabler,
    /// Writes to `replays`.
    Replays,
    /// Writes commands to pending retries.
    RetryCommands,
}

/// A client had lost its brokers, and was replaced.
pub(crate) fn lost_client(client: Client) {
    let client = match client {
        Client::Disabler => "disabler",
        Client::Replays => "replays",
        Client::RetryCommands => "retry_commands",
    };
    counter!(LOST_CLIENTS, "client" => client).increment(1);
}
