//! Every metric of ingest: names, descriptions and handles, made once.
#![allow(clippy::disallowed_macros, reason = "this is the one place where ingest's metrics are made")]

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};

/// Every status that a request may be answered with.
const STATUSES: [(u16, &str); 13] = [
    (202, "202"),
    (207, "207"),
    (400, "400"),
    (401, "401"),
    (403, "403"),
    (404, "404"),
    (405, "405"),
    (408, "408"),
    (413, "413"),
    (414, "414"),
    (415, "415"),
    (429, "429"),
    (503, "503"),
];

/// The handles.
pub(crate) struct Metrics {
    requests: [Counter; STATUSES.len()],
    pub(crate) events_accepted: Counter,
    pub(crate) events_invalid: Counter,
    pub(crate) events_too_large: Counter,
    pub(crate) events_repeated: Counter,
    pub(crate) events_rate_limited: Counter,
    pub(crate) events_not_persisted: Counter,
    pub(crate) events_unknown: Counter,
    pub(crate) batch_events: Histogram,
    pub(crate) body_bytes: Histogram,
    pub(crate) publish_seconds: Histogram,
    pub(crate) reading_bytes: Gauge,
    pub(crate) reading_full: Counter,
    pub(crate) requests_in_flight: Gauge,
    pub(crate) queued_bytes: Gauge,
    pub(crate) producer_queue_full: Counter,
    pub(crate) partition_queue_full: Counter,
    pub(crate) producer_rebuilds: Counter,
    pub(crate) connections: Gauge,
    pub(crate) connections_over_limit: Counter,
    pub(crate) connections_over_address_limit: Counter,
    pub(crate) handshakes_done: Counter,
    pub(crate) handshakes_failed: Counter,
    pub(crate) handshakes_slow: Counter,
    pub(crate) certificates_replaced: Counter,
    pub(crate) certificates_refused: Counter,
    /// In seconds since 1970.
    pub(crate) certificate_end: Gauge,
}

impl Metrics {
    /// Describes the metrics and makes their handles.
    pub(crate) fn new() -> Self {
        describe();
        let refused =
            |reason: &'static str| counter!("floodway_ingest_events_refused_total", "reason" => reason);
        let full = |queue: &'static str| counter!("floodway_ingest_queue_full_total", "queue" => queue);
        let turned_away =
            |reason: &'static str| counter!("floodway_ingest_connections_refused_total", "reason" => reason);
        let handshakes =
            |result: &'static str| counter!("floodway_ingest_tls_handshakes_total", "result" => result);
        let reloads = |result: &'static str| counter!("floodway_ingest_tls_certificate_reloads_total", "result" => result);
        Self {
            requests: STATUSES
                .map(|(_, status)| counter!("floodway_ingest_requests_total", "status" => status)),
            events_accepted: counter!("floodway_ingest_events_accepted_total"),
            events_invalid: refused("invalid"),
            events_too_large: refused("too_large"),
            events_repeated: refused("repeated"),
            events_rate_limited: refused("rate_limited"),
            events_not_persisted: refused("not_persisted"),
            events_unknown: refused("unknown"),
            batch_events: histogram!("floodway_ingest_batch_events"),
            body_bytes: histogram!("floodway_ingest_body_bytes"),
            reading_bytes: gauge!("floodway_ingest_reading_bytes"),
            reading_full: counter!("floodway_ingest_reading_full_total"),
            publish_seconds: histogram!("floodway_ingest_publish_seconds"),
            requests_in_flight: gauge!("floodway_ingest_requests_in_flight"),
            queued_bytes: gauge!("floodway_ingest_queued_bytes"),
            producer_queue_full: full("producer"),
            partition_queue_full: full("partition"),
            producer_rebuilds: counter!("floodway_ingest_producer_rebuilds_total"),
            connections: gauge!("floodway_ingest_connections"),
            connections_over_limit: turned_away("limit"),
            connections_over_address_limit: turned_away("address_limit"),
            handshakes_done: handshakes("done"),
            handshakes_failed: handshakes("failed"),
            handshakes_slow: handshakes("timeout"),
            certificates_replaced: reloads("replaced"),
            certificates_refused: reloads("refused"),
            certificate_end: gauge!("floodway_ingest_tls_certificate_not_after_seconds"),
        }
    }

    /// Counts an answered request.
    pub(crate) fn answered(&self, status: u16) {
        if let Some(index) = STATUSES.iter().position(|(known, _)| *known == status) {
            self.requests[index].increment(1);
        }
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

fn describe() {
    describe_counter!("floodway_ingest_requests_total", "Requests answered, by status");
    describe_counter!(
        "floodway_ingest_events_accepted_total",
        "Events acknowledged by Kafka before the answer"
    );
    describe_counter!("floodway_ingest_events_refused_total", "Events not accepted, by reason");
    describe_histogram!("floodway_ingest_batch_events", "Events per request");
    describe_histogram!("floodway_ingest_body_bytes", Unit::Bytes, "Size of request bodies");
    describe_histogram!(
        "floodway_ingest_publish_seconds",
        Unit::Seconds,
        "From enqueueing a request's events to the last acknowledgement, or to giving up on it"
    );
    describe_gauge!(
        "floodway_ingest_reading_bytes",
        Unit::Bytes,
        "Bytes set aside for request bodies, from their announcement to their answer"
    );
    describe_counter!(
        "floodway_ingest_reading_full_total",
        "Requests refused because bodies took all the memory set aside for them"
    );
    describe_gauge!("floodway_ingest_requests_in_flight", "Requests being read, published or answered");
    describe_gauge!(
        "floodway_ingest_queued_bytes",
        Unit::Bytes,
        "Bytes of events waiting for an acknowledgement"
    );
    describe_counter!(
        "floodway_ingest_queue_full_total",
        "Events refused because a queue was full, by queue"
    );
    describe_counter!("floodway_ingest_producer_rebuilds_total", "Producers replaced after a fatal error");
    describe_gauge!("floodway_ingest_connections", "Open connections");
    describe_counter!(
        "floodway_ingest_connections_refused_total",
        "Connections refused because of the limit on all, or on those of an address, by reason"
    );
    describe_counter!("floodway_ingest_tls_handshakes_total", "TLS handshakes, by result");
    describe_counter!(
        "floodway_ingest_tls_certificate_reloads_total",
        "Changes of the certificate's files, by whether the new pair could be used"
    );
    describe_gauge!(
        "floodway_ingest_tls_certificate_not_after_seconds",
        Unit::Seconds,
        "When the certificate in use ends, in seconds since 1970"
    );
}
