//! How long brokers take, from the client's own statistics.

use crate::metrics::Metrics;
use serde::Deserialize;
use std::collections::HashMap;

/// How often the client tells its statistics, in milliseconds: often enough for a scrape, and rare beside the work.
pub(crate) const STATISTICS_INTERVAL_MS: u32 = 10_000;

/// The part of librdkafka's statistics that is shown; the topics, which are most of it, are passed over.
#[derive(Debug, Deserialize)]
struct Statistics {
    #[serde(default)]
    brokers: HashMap<String, Broker>,
}

#[derive(Debug, Deserialize)]
struct Broker {
    #[serde(rename = "nodeid")]
    id: i32,
    /// From sending a request to its answer.
    rtt: Option<Window>,
    /// In the producer's queue.
    int_latency: Option<Window>,
    /// From a request's making to its sending.
    outbuf_latency: Option<Window>,
}

/// What was measured since the last statistics, in microseconds.
#[derive(Debug, Deserialize)]
struct Window {
    p50: i64,
    p99: i64,
}

/// A way that a record takes, as labelled.
const PARTS: [&str; 3] = ["queue", "send", "round_trip"];

/// Shows the statistics' times.
pub(crate) fn show(statistics: &[u8], metrics: &Metrics) {
    let statistics: Statistics = match serde_json::from_slice(statistics) {
        Ok(statistics) => statistics,
        Err(error) => return tracing::debug!(%error, "the client's statistics cannot be read"),
    };
    // Addresses that were given for the first contact have no id, and no events go there.
    for broker in statistics.brokers.values().filter(|broker| broker.id >= 0) {
        let windows = [&broker.int_latency, &broker.outbuf_latency, &broker.rtt];
        for (part, window) in PARTS.into_iter().zip(windows) {
            let Some(window) = window else { continue };
            for (quantile, micros) in [("0.5", window.p50), ("0.99", window.p99)] {
                metrics.broker_time(broker.id, part, quantile, micros as f64 / 1e6);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_of_brokers_with_an_id_are_read() {
        let json = r#"{"name":"x","msg_cnt":1,"topics":{"t":{"partitions":{}}},"brokers":{
            "GroupCoordinator":{"nodeid":-1,"rtt":{"p50":1,"p99":2}},
            "b:9092/1":{"nodeid":1,"state":"UP","rtt":{"min":1,"p50":700,"p99":2500,"p99_99":9}}}}"#;
        let statistics: Statistics = serde_json::from_str(json).unwrap();
        let broker = &statistics.brokers["b:9092/1"];
        assert_eq!(broker.rtt.as_ref().map(|window| (window.p50, window.p99)), Some((700, 2500)));
        assert!(broker.int_latency.is_none());
        show(json.as_bytes(), &Metrics::new());
        show(b"nonsense", &Metrics::new());
    }
}
