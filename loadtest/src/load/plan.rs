//! What a run does: where to, how much, how long, and when each request is due.

use super::{
    content::MIN_DATA_BYTES,
    error::LoadError,
    event_id::{MAX_CONNECTIONS, MAX_KEYS},
    schedule::Schedule,
    workload::{Encoding, Workload},
};
use serde::Serialize;
use std::time::Duration;

/// Most requests that wait for a free connection, unless a plan says otherwise.
pub const DEFAULT_MAX_BACKLOG: usize = 100_000;
/// Longest wait for an answer, unless a plan says otherwise: well beyond the time ingest gives Kafka.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// Most bytes of requests that may be on their way at once, over all connections: they are in memory while a server
/// does not read them.
const MAX_UNREAD_BYTES: usize = 4 * 1024 * 1024 * 1024;
/// Most threads; each takes 10 MB for its histograms and random characters.
const MAX_THREADS: usize = 64;

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
    /// Whether the target may be another machine: a load test must not meet strangers by accident.
    pub allow_remote: bool,
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
            allow_remote: false,
        }
    }
}

impl LoadPlan {
    /// Says which setting is impossible.
    pub(super) fn check(&self) -> Result<(), LoadError> {
        let workload = &self.workload;
        let unread =
            workload.events_per_request.saturating_mul(workload.data_bytes).saturating_mul(self.connections);
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        let error = match self {
            _ if workload.events_per_request == 0 => "a request must have at least one event".to_owned(),
            _ if workload.data_bytes < MIN_DATA_BYTES => {
                format!("data must have at least {MIN_DATA_BYTES} bytes")
            }
            _ if workload.keys > MAX_KEYS => format!("there can be at most {MAX_KEYS} keys"),
            _ if workload.event_type.is_empty() || !workload.event_type.bytes().all(plain) => {
                "the type must be letters, digits, '.', '-' or '_'".to_owned()
            }
            _ if !(1..=MAX_CONNECTIONS).contains(&self.connections) => {
                format!("connections must be 1 to {MAX_CONNECTIONS}")
            }
            _ if !(1..=MAX_THREADS.min(self.connections)).contains(&self.threads) => {
                format!("threads must be 1 to {MAX_THREADS}, and at most one per connection")
            }
            _ if unread > MAX_UNREAD_BYTES => {
                format!(
                    "the requests of all connections would have more than {MAX_UNREAD_BYTES} bytes at once"
                )
            }
            _ if self.ledger && workload.encoding != Encoding::Identity => {
                "a ledger needs unique ids, and those of encoded bodies repeat: use identity".to_owned()
            }
            _ if self.timeout.is_zero() => "the timeout must be more than 0".to_owned(),
            _ if self.length == Length::Time(Duration::ZERO) || self.length == Length::Events(0) => {
                "the run must be longer than nothing".to_owned()
            }
            _ => return self.check_arrival(),
        };
        Err(LoadError::Plan(error))
    }

    fn check_arrival(&self) -> Result<(), LoadError> {
        let positive = |rate: f64| rate.is_finite() && rate > 0.0;
        let not_negative = |rate: f64| rate.is_finite() && rate >= 0.0;
        let error = match self.arrival {
            Arrival::Closed => return Ok(()),
            Arrival::Open { .. } | Arrival::Ramp { .. } | Arrival::Spike { .. } if self.max_backlog == 0 => {
                "an open loop needs room for requests that wait: the backlog must be more than 0"
            }
            Arrival::Open { rate } if positive(rate) => return Ok(()),
            Arrival::Ramp { from, to } if not_negative(from) && not_negative(to) && from + to > 0.0 => {
                match self.length {
                    Length::Time(_) => return Ok(()),
                    Length::Events(_) => "a ramp needs a duration instead of a number of events",
                }
            }
            Arrival::Spike { rate, factor, .. } if positive(rate) && positive(factor) => return Ok(()),
            _ => "rates and factors must be more than 0",
        };
        Err(LoadError::Plan(error.to_owned()))
    }

    /// When each request is due; `None` for a closed loop.
    pub(super) fn schedule(&self) -> Option<Schedule> {
        let requests = |events: f64| events / self.workload.events_per_request as f64;
        match self.arrival {
            Arrival::Closed => None,
            Arrival::Open { rate } => Some(Schedule::constant(requests(rate))),
            Arrival::Ramp { from, to } => {
                let Length::Time(time) = self.length else { return None };
                Some(Schedule::ramp(requests(from), requests(to), self.warmup + time))
            }
            Arrival::Spike { rate, factor, begins, lasts } => {
                Some(Schedule::spike(requests(rate), factor, self.warmup + begins, lasts))
            }
        }
    }

    /// Requests after the warm-up, if their number is set and not their time.
    pub(super) fn measured_requests(&self) -> Option<u64> {
        match self.length {
            Length::Time(_) => None,
            Length::Events(events) => Some(events.div_ceil(self.workload.events_per_request as u64)),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> LoadPlan {
        LoadPlan::new("http://127.0.0.1:1", "key")
    }

    #[test]
    fn an_impossible_plan_is_refused_with_the_setting_in_its_text() {
        let workload = |change: fn(&mut Workload)| {
            let mut workload = Workload::default();
            change(&mut workload);
            LoadPlan { workload, ..plan() }
        };
        let arrival = |arrival| LoadPlan { arrival, ..plan() };
        for (plan, word) in [
            (workload(|w| w.events_per_request = 0), "event"),
            (workload(|w| w.data_bytes = 3), "data"),
            (workload(|w| w.keys = u64::MAX), "keys"),
            (workload(|w| w.event_type = "a\"b".to_owned()), "type"),
            (LoadPlan { connections: 0, ..plan() }, "connections"),
            (LoadPlan { connections: 100_000, ..plan() }, "connections"),
            (LoadPlan { connections: 2, threads: 3, ..plan() }, "threads"),
            (LoadPlan { timeout: Duration::ZERO, ..plan() }, "timeout"),
            (LoadPlan { length: Length::Events(0), ..plan() }, "longer"),
            (LoadPlan { max_backlog: 0, ..arrival(Arrival::Open { rate: 1.0 }) }, "backlog"),
            (arrival(Arrival::Open { rate: 0.0 }), "rates"),
            (arrival(Arrival::Open { rate: f64::NAN }), "rates"),
            (arrival(Arrival::Ramp { from: 0.0, to: 0.0 }), "rates"),
            (
                LoadPlan { length: Length::Events(1), ..arrival(Arrival::Ramp { from: 0.0, to: 1.0 }) },
                "duration",
            ),
        ] {
            let error = plan.check().unwrap_err();
            assert!(error.is_usage() && error.to_string().contains(word), "{error}");
        }
        let mut encoded = workload(|w| w.encoding = Encoding::Zstd);
        assert!(encoded.check().is_ok());
        encoded.ledger = true;
        assert!(encoded.check().unwrap_err().to_string().contains("ledger"));
        assert!(arrival(Arrival::Ramp { from: 0.0, to: 10.0 }).check().is_ok());
    }

    #[test]
    fn rates_are_in_events_and_a_spike_begins_after_the_warm_up() {
        let arrival = Arrival::Spike {
            rate: 1000.0,
            factor: 3.0,
            begins: Duration::from_secs(5),
            lasts: Duration::from_secs(1),
        };
        let workload = Workload { events_per_request: 100, ..Workload::default() };
        let schedule = LoadPlan { arrival, workload, ..plan() }.schedule().unwrap();
        assert_eq!(schedule.count_before(Duration::from_secs(15)), 150);
        assert_eq!(schedule.count_before(Duration::from_secs(16)), 180);
    }
}
