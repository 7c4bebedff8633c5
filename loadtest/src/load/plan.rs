//! What a run does: where to, how much, how long, and when each request is due.

use super::workload::Workload;
use serde::Serialize;
use std::time::Duration;

/// Most requests that wait for a free connection, unless a plan says otherwise.
pub const DEFAULT_MAX_BACKLOG: usize = 100_000;
/// Longest wait for an answer, unless a plan says otherwise: well beyond the time ingest gives Kafka.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// One run of the load generator.
#[derive(Clone)]
pub struct LoadPlan {
    /// Base URL of ingest: `http://host:port`.
    pub url: String,
    /// API key of the tenant; never part of a report.
    pub key: String,
    /// What each request holds.
    pub workload: Workload,
    /// When requests are due.
    pub arrival: Arrival,
    /// Connections, each with one request at a time.
    pub connections: usize,
    /// Threads that send; each has its share of the connections and of the schedule.
    pub threads: usize,
    /// Time at the start that no figure contains.
    pub warmup: Duration,
    /// How long the run is, warm-up not counted.
    pub length: Length,
    /// Longest time for one request and its answer; then the connection is closed and the events are unknown.
    pub timeout: Duration,
    /// Requests that may wait for a free connection, over all threads. Those that find no room are dropped and make
    /// the run invalid.
    pub max_backlog: usize,
    /// Whether to keep a ledger of every event, for a reconciliation afterwards.
    pub ledger: bool,
}

impl LoadPlan {
    /// A plan of one minute in a closed loop after ten seconds of warm-up, one thread, sixteen connections.
    pub fn new(url: impl Into<String>, key: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            key: key.into(),
            workload: Workload::default(),
            arrival: Arrival::Closed,
            connections: 16,
            threads: 1,
            warmup: Duration::from_secs(10),
            length: Length::Time(Duration::from_secs(60)),
            timeout: DEFAULT_TIMEOUT,
            max_backlog: DEFAULT_MAX_BACKLOG,
            ledger: false,
        }
    }
}

/// When requests are due. Rates are events per second over all threads.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrival {
    /// Each connection sends its next request when it has its answer: the most that these connections can do.
    Closed,
    /// A constant rate, however long the answers take.
    Open {
        /// Events per second.
        rate: f64,
    },
    /// A rate that changes evenly from the start of the run, warm-up included, to its end.
    Ramp {
        /// Events per second at the start.
        from: f64,
        /// Events per second at the end.
        to: f64,
    },
    /// A constant rate, multiplied for a while.
    Spike {
        /// Events per second outside the spike.
        rate: f64,
        /// What the rate is multiplied by during the spike.
        factor: f64,
        /// When the spike begins, after the warm-up.
        begins: Duration,
        /// How long it lasts.
        lasts: Duration,
    },
}

/// How long a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Length {
    /// This long after the warm-up.
    Time(Duration),
    /// Until this many events have been sent after the warm-up, rounded up to whole requests of every thread.
    Events(u64),
}
