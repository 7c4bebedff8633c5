//! The figures of a run.

use super::{
    plan::{Arrival, Length},
    workload::Workload,
};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// The figures of a run. Without the warm-up, except where a field says otherwise.
#[derive(Debug, Clone, Serialize)]
pub struct LoadReport {
    /// What each request held.
    pub workload: Workload,
    /// When requests were due.
    pub arrival: Arrival,
    /// How long the run was to be.
    pub length: Length,
    /// Connections over all threads.
    pub connections: usize,
    /// Name of the run: what the ids of its events start with.
    pub run: String,
    /// Bytes of one request's body on the wire.
    pub body_bytes: u64,
    /// Seconds that the figures are over, from the end of the warm-up.
    pub seconds: f64,
    /// Requests and events that were due in these seconds, and what became of them.
    pub totals: Totals,
    /// Events that were acknowledged within these seconds, per second.
    pub events_per_second: f64,
    /// Answers within these seconds, per second.
    pub requests_per_second: f64,
    /// From the instant a request was due (closed loop: was sent) to its complete answer, or to when it was given up. Counted
    /// are requests of which an event was acknowledged, and those that left an event's fate open: without an answer, or with
    /// one that does not say. What was refused is in `totals` alone.
    pub latency: Quantiles,
    /// The same from the instant a request was sent: what a closed look at the same run would say.
    pub service: Quantiles,
    /// What happened in each second from the start of the run, warm-up included.
    pub series: Vec<Second>,
    /// Whether the generator itself was the limit.
    pub generator: Generator,
    /// Whether the figures can be used. Not if a request was dropped, an event not acknowledged, or the generator saturated.
    pub valid: bool,
    /// Why not, in words; empty when valid.
    pub invalid_because: Vec<String>,
}

/// What became of the requests and events that were due in the measured time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Requests that were sent.
    pub requests: u64,
    /// Events that were sent.
    pub events: u64,
    /// Events that were acknowledged.
    pub accepted: u64,
    /// Requests that were due while the backlog was full, and were never sent.
    pub dropped_requests: u64,
    /// What went wrong, by class.
    pub errors: Errors,
}

/// Events that were not acknowledged, by class. Their sum and `accepted` is `events`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Errors {
    /// Refused for good: a 4xx other than 408 and 429, as a whole or in a 207.
    pub refused: u64,
    /// 429: over the tenant's rate, nothing stored.
    pub throttled: u64,
    /// 503 that says that nothing was stored.
    pub not_persisted: u64,
    /// Another answer, after which nobody knows whether the event is stored.
    pub unknown: u64,
    /// No answer: no connection, a connection that ended, no answer in time, or one that is not HTTP.
    pub transport: u64,
}

impl Errors {
    /// All classes together.
    pub fn sum(&self) -> u64 {
        self.refused + self.throttled + self.not_persisted + self.unknown + self.transport
    }

    /// The classes that have any, by name.
    pub fn by_class(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let Self { refused, throttled, not_persisted, unknown, transport } = *self;
        [
            ("refused", refused),
            ("throttled", throttled),
            ("not persisted", not_persisted),
            ("unknown", unknown),
            ("transport", transport),
        ]
        .into_iter()
        .filter(|(_, number)| *number > 0)
    }
}

/// Quantiles of a latency, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quantiles {
    /// Values.
    pub count: u64,
    /// Half are at most this.
    pub p50: u64,
    /// 90 %.
    pub p90: u64,
    /// 99 %.
    pub p99: u64,
    /// 99.9 %.
    pub p99_9: u64,
    /// 99.99 %.
    pub p99_99: u64,
    /// The largest.
    pub max: u64,
}

impl From<&Histogram<u64>> for Quantiles {
    fn from(values: &Histogram<u64>) -> Self {
        Self {
            count: values.len(),
            p50: values.value_at_quantile(0.5),
            p90: values.value_at_quantile(0.9),
            p99: values.value_at_quantile(0.99),
            p99_9: values.value_at_quantile(0.999),
            p99_99: values.value_at_quantile(0.9999),
            max: values.max(),
        }
    }
}

/// One second of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Second {
    /// Seconds since the start of the run; the first ones are the warm-up.
    pub second: u64,
    /// Events acknowledged in this second.
    pub accepted: u64,
    /// Events that got another answer or none in this second.
    pub errors: u64,
    /// 99 % of the requests that ended in this second, and count for latency, took at most this many microseconds; `None`
    /// if there were none.
    pub p99: Option<u64>,
}

/// What the run cost on the generator's side, and whether that limited it.
#[derive(Debug, Clone, Serialize)]
pub struct Generator {
    /// Whether the figures say more about the generator than about the server.
    pub saturated: bool,
    /// Why, in words; empty when not saturated.
    pub reason: String,
    /// CPU microseconds per request over all threads, system calls included.
    pub cpu_micros_per_request: f64,
    /// Each thread of the generator.
    pub threads: Vec<GeneratorThread>,
}

/// One thread of the generator during the measured time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct GeneratorThread {
    /// Requests that it sent.
    pub requests: u64,
    /// Share of the time in which it ran on a CPU, 0 to 1.
    pub busy_share: f64,
    /// Share of the time in which it was ready to run and had no CPU, 0 to 1; 0 if the kernel does not say.
    pub waiting_share: f64,
    /// How much later than it could have been a request was sent: after it was due and its connection was free.
    pub lag: Quantiles,
}
