//! Every metric of ingest: names, descriptions and handles, made once.
#![allow(clippy::disallowed_macros, reason = "this is the one place where ingest's metrics are made")]

use crate::error::REASONS;
use floodway_runtime::tally::{self, Measure};
use metrics::{Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, gauge};

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
    refused: [Counter; REASONS.len()],
    pub(crate) events_accepted: Counter,
    pub(crate) events_invalid: Counter,
    pub(crate) events_too_large: Counter,
    pub(crate) events_repeated: Counter,
    pub(crate) events_rate_limited: Counter,
    pub(crate) events_not_persisted: Counter,
    pub(crate) events_unknown: Counter,
    pub(crate) batch_events: Histogram,
    pub(crate) body_bytes: Histogram,
    pub(crate) request_seconds: Histogram,
    pub(crate) enqueue_seconds: Histogram,
    pub(crate) ack_seconds: Histogram,
    pub(crate) reading_bytes: Gauge,
    pub(crate) requests_in_flight: Gauge,
    pub(crate) queued_events: Gauge,
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
        let refused = |reason| {
            let name = "floodway_ingest_events_refused_total";
            tally::counter(name, Some(("reason", reason)), "Events not accepted, by reason")
        };
        let full = |queue: &'static str| counter!("floodway_ingest_queue_full_total", "queue" => queue);
        let turned_away =
            |reason: &'static str| counter!("floodway_ingest_connections_refused_total", "reason" => reason);
        let handshakes =
            |result: &'static str| counter!("floodway_ingest_tls_handshakes_total", "result" => result);
        let reloads = |result: &'static str| counter!("floodway_ingest_tls_certificate_reloads_total", "result" => result);
        Self {
            requests: STATUSES.map(|(_, status)| {
                let name = "floodway_ingest_requests_total";
                tally::counter(name, Some(("status", status)), "Requests answered, by status")
            }),
            refused: REASONS.map(|reason| {
                let name = "floodway_ingest_requests_refused_total";
                tally::counter(name, Some(("reason", reason)), "Requests refused as a whole, by reason")
            }),
            events_accepted: tally::counter(
                "floodway_ingest_events_accepted_total",
                None,
                "Events acknowledged by Kafka before the answer",
            ),
            events_invalid: refused("invalid"),
            events_too_large: refused("too_large"),
            events_repeated: refused("repeated"),
            events_rate_limited: refused("rate_limited"),
            events_not_persisted: refused("not_persisted"),
            events_unknown: refused("unknown"),
            batch_events: tally::histogram(
                "floodway_ingest_batch_events",
                None,
                "Events received, per request",
                Measure::Count,
            ),
            body_bytes: tally::histogram(
                "floodway_ingest_body_bytes",
                None,
                "Bytes received, per request body",
                Measure::Bytes,
            ),
            request_seconds: tally::histogram(
                "floodway_ingest_request_seconds",
                None,
                "From a request's header to its answer, refusals included",
                Measure::Seconds,
            ),
            enqueue_seconds: tally::histogram(
                "floodway_ingest_enqueue_seconds",
                None,
                "From a request's first event to its last one in the producer's queue",
                Measure::Seconds,
            ),
            ack_seconds: tally::histogram(
                "floodway_ingest_ack_seconds",
                None,
                "From a request's last event in the queue to the last acknowledgement, or to giving up on it",
                Measure::Seconds,
            ),
            reading_bytes: tally::gauge(
                "floodway_ingest_reading_bytes",
                None,
                "Bytes set aside for request bodies, from their announcement to their answer",
            ),
            requests_in_flight: tally::gauge(
                "floodway_ingest_requests_in_flight",
                None,
                "Requests being read, published or answered",
            ),
            queued_events: gauge!("floodway_ingest_queued_events"),
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

    /// Shows the bounds of the queue, beside which its contents are read.
    pub(crate) fn show_queue_bounds(&self, events: u32, bytes: usize) {
        gauge!("floodway_ingest_queue_limit_events").set(f64::from(events));
        // Far below 2^53.
        gauge!("floodway_ingest_queue_limit_bytes").set(bytes as f64);
    }

    /// Shows how long a broker takes; called now and then, for as many brokers as the cluster has.
    pub(crate) fn broker_time(&self, broker: i32, part: &'static str, quantile: &'static str, seconds: f64) {
        let broker = broker.to_string();
        gauge!("floodway_ingest_broker_seconds", "broker" => broker, "part" => part, "quantile" => quantile)
            .set(seconds);
    }

    /// Counts a request that was refused as a whole.
    pub(crate) fn refused(&self, reason: &str) {
        if let Some(index) = REASONS.iter().position(|known| *known == reason) {
            self.refused[index].increment(1);
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

/// Describes what is kept by the process's recorder; the others are described where they are made.
fn describe() {
    describe_gauge!(
        "floodway_ingest_queued_events",
        "Events in the producer, waiting for an acknowledgement or for their report"
    );
    describe_gauge!("floodway_ingest_queue_limit_events", "Events that the producer takes at once");
    describe_gauge!(
        "floodway_ingest_queue_limit_bytes",
        Unit::Bytes,
        "Bytes of events that the producer takes at once"
    );
    describe_gauge!(
        "floodway_ingest_broker_seconds",
        Unit::Seconds,
        "How long records wait in the queue, requests wait for being sent, and brokers take for an answer, by broker"
    );
    describe_gauge!(
        "floodway_ingest_queued_bytes",
        Unit::Bytes,
        "Bytes of events waiting for an acknowledgement"
    );
    describe_counter!(
        "floodway_ingest_queue_full_total",
        "Events refused because a queue was full, by queue"
    );
    describe_counter!(
        "floodway_ingest_producer_rebuilds_total",
        "Producers replaced: after a fatal error, or because they did not find Kafka although others did"
    );
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{REASONS, Refusal};

    #[test]
    fn every_answer_and_reason_that_is_met_daily_is_counted() {
        let refusals = [
            Refusal::NotFound,
            Refusal::Busy,
            Refusal::BadHost,
            Refusal::TargetTooLong { limit: 1 },
            Refusal::ReadingFull,
        ];
        for refusal in refusals {
            assert!(REASONS.contains(&refusal.reason()));
            assert!(STATUSES.iter().any(|(status, _)| *status == refusal.problem().status));
        }
    }
}
