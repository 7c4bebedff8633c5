//! The event sender: connections that each send a batch, wait for the answer, and send the next.
//!
//! Every event has an id that follows from its number, and every event's end is recorded: acknowledged, refused,
//! or never acknowledged. What ingest did not acknowledge is sent again under the same id, a bounded number of
//! times, and not before a `Retry-After` has passed.

pub mod answer;
mod connection;
pub mod payload;
pub mod record;

pub use self::connection::InvalidTarget;
use self::{
    answer::{Fate, read_answer},
    connection::{Connection, Response, Target},
    payload::Payload,
    record::{SendRecord, Tally},
};
use hdrhistogram::Histogram;
use http::{HeaderMap, StatusCode, header};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use thiserror::Error;
use tokio::task::JoinSet;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// First wait before a repetition, when the answer names none; it doubles with each try.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// Longest latency that the histogram tells apart, in microseconds: ten minutes.
const MAX_LATENCY_MICROS: u64 = 600 * 1_000_000;

/// What to send, and how.
#[derive(Debug, Clone)]
pub struct SendPlan {
    /// Base URL of ingest: `http://host:port`.
    pub url: String,
    /// API key of the tenant.
    pub key: String,
    /// What the events hold.
    pub payload: Payload,
    /// Events of one request.
    pub batch: usize,
    /// Connections, each with one request at a time.
    pub connections: usize,
    /// Events per second, at most; without it as fast as the answers come.
    pub rate: Option<f64>,
    /// Times that an event is sent before it counts as never acknowledged.
    pub tries: u32,
    /// Longest wait before a repetition, whatever `Retry-After` says.
    pub longest_wait: Duration,
    /// Longest time for one request and its response.
    pub timeout: Duration,
}

impl Default for SendPlan {
    fn default() -> Self {
        Self {
            url: String::new(),
            key: String::new(),
            payload: Payload::Sample,
            batch: 100,
            connections: 8,
            rate: None,
            tries: 8,
            longest_wait: Duration::from_secs(10),
            timeout: Duration::from_secs(30),
        }
    }
}

/// What came of a run.
#[derive(Debug, Clone)]
pub struct SendReport {
    /// How many events ended how.
    pub tally: Tally,
    /// From the first request to the last answer.
    pub elapsed: Duration,
    /// Microseconds from sending a request to having its answer, for requests with an event that was accepted.
    pub latency: Histogram<u64>,
}

/// Why a run ended early.
#[derive(Debug, Error)]
pub enum SendError {
    /// No request can be made.
    #[error(transparent)]
    Target(#[from] InvalidTarget),
    /// A number of the plan is zero, or not a number.
    #[error("{0} must be more than 0")]
    Zero(&'static str),
    /// The key is not accepted: neither will it be for the events to come.
    #[error("ingest answered {0}: is the API key right?")]
    Unauthorized(StatusCode),
    /// A worker panicked.
    #[error("a sender failed: {0}")]
    Worker(#[from] tokio::task::JoinError),
}

/// Sends the events of a record; ends when all have ended, or soon after `stop`.
pub async fn send(
    plan: &SendPlan,
    record: &Arc<SendRecord>,
    stop: &CancellationToken,
) -> Result<SendReport, SendError> {
    check(plan)?;
    let target = Target::new(&plan.url, &plan.key, plan.timeout)?;
    let started = Instant::now();
    let next = Arc::new(AtomicU64::new(0));
    let tasks = TaskTracker::new();
    let mut workers = JoinSet::new();
    // A worker without events would only open a connection.
    let useful = record.events().div_ceil(plan.batch as u64).min(plan.connections as u64);
    for _ in 0..useful {
        let worker = Worker {
            plan: plan.clone(),
            record: Arc::clone(record),
            next: Arc::clone(&next),
            started,
            connection: Connection::new(target.clone(), tasks.clone()),
            latency: latency_histogram(),
            stop: stop.clone(),
        };
        workers.spawn(worker.run());
    }
    let mut latency = latency_histogram();
    while let Some(worker) = workers.join_next().await {
        // Leaving here on an error drops the set, which ends the other workers.
        // Histograms of the same bounds always add up.
        let _ = latency.add(worker??);
    }
    tasks.close();
    tasks.wait().await;
    Ok(SendReport { tally: record.tally(), elapsed: started.elapsed(), latency })
}

/// An empty histogram of microseconds, as all of this crate's latencies are kept.
pub fn latency_histogram() -> Histogram<u64> {
    #[expect(
        clippy::expect_used,
        reason = "the arguments are constant, and every test that sends covers them"
    )]
    Histogram::new_with_bounds(1, MAX_LATENCY_MICROS, 3)
        .expect("three digits from 1 µs to ten minutes are allowed")
}

/// Adds a duration to a histogram of microseconds; what is beyond its bounds counts as the bound.
pub fn record_latency(histogram: &mut Histogram<u64>, latency: Duration) {
    histogram.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
}

fn check(plan: &SendPlan) -> Result<(), SendError> {
    match plan {
        SendPlan { batch: 0, .. } => Err(SendError::Zero("the batch size")),
        SendPlan { connections: 0, .. } => Err(SendError::Zero("the number of connections")),
        SendPlan { tries: 0, .. } => Err(SendError::Zero("the number of tries")),
        SendPlan { rate: Some(rate), .. } if !rate.is_finite() || *rate <= 0.0 => {
            Err(SendError::Zero("the rate"))
        }
        _ => Ok(()),
    }
}

struct Worker {
    plan: SendPlan,
    record: Arc<SendRecord>,
    /// First number that no worker has taken.
    next: Arc<AtomicU64>,
    started: Instant,
    connection: Connection,
    latency: Histogram<u64>,
    stop: CancellationToken,
}

impl Worker {
    async fn run(mut self) -> Result<Histogram<u64>, SendError> {
        let mut body = Vec::new();
        while let Some(batch) = self.take_batch().await {
            self.send_batch(batch, &mut body).await?;
        }
        Ok(self.latency)
    }

    /// The next numbers to send, at the time the rate sets for them; `None` when there are none, or on stop.
    async fn take_batch(&self) -> Option<Vec<u64>> {
        let size = self.plan.batch as u64;
        let first = self.next.fetch_add(size, Relaxed);
        let end = first.saturating_add(size).min(self.record.events());
        if let Some(rate) = self.plan.rate {
            let due = Duration::try_from_secs_f64(first as f64 / rate).unwrap_or(Duration::MAX);
            let wait = due.saturating_sub(self.started.elapsed());
            self.stop.run_until_cancelled(tokio::time::sleep(wait)).await?;
        }
        (first < end && !self.stop.is_cancelled()).then(|| (first..end).collect())
    }

    /// Sends a batch until each of its events has ended, at most as often as the plan says.
    async fn send_batch(&mut self, mut open: Vec<u64>, body: &mut Vec<u8>) -> Result<(), SendError> {
        for attempt in 1..=self.plan.tries {
            let asked = self.try_batch(&mut open, body).await?;
            if open.is_empty() || attempt == self.plan.tries {
                break;
            }
            let wait = asked.unwrap_or_else(|| backoff(attempt)).min(self.plan.longest_wait);
            if self.stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// One request. Leaves in `open` what is to be sent again; returns the wait that the answer asks for.
    async fn try_batch(
        &mut self,
        open: &mut Vec<u64>,
        body: &mut Vec<u8>,
    ) -> Result<Option<Duration>, SendError> {
        write_body(body, &self.plan.payload, self.record.run(), open);
        let begun = Instant::now();
        self.record.sending(open, begun);
        let response = self.connection.post(bytes::Bytes::copy_from_slice(body)).await;
        let Ok(Response { status, headers, body }) = response else {
            open.iter().for_each(|&number| self.record.settle(number, Fate::Unknown(0)));
            return Ok(None);
        };
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            open.iter().for_each(|&number| self.record.settle(number, Fate::NotPersisted(status.as_u16())));
            return Err(SendError::Unauthorized(status));
        }
        let fates = read_answer(status.as_u16(), &body, open.len());
        if fates.contains(&Fate::Accepted) {
            record_latency(&mut self.latency, begun.elapsed());
        }
        if fates.contains(&Fate::NotPersisted(429)) {
            self.record.throttled();
        }
        let mut fates = fates.into_iter();
        open.retain(|&number| {
            // There is a fate for each number.
            let fate = fates.next().unwrap_or(Fate::Unknown(status.as_u16()));
            self.record.settle(number, fate);
            matches!(fate, Fate::NotPersisted(_) | Fate::Unknown(_))
        });
        Ok(retry_after(&headers))
    }
}

/// An array of events; one event alone goes as an object, as most producers send it.
fn write_body(body: &mut Vec<u8>, payload: &Payload, run: &str, numbers: &[u64]) {
    body.clear();
    if let [number] = numbers {
        return payload.write(body, run, *number);
    }
    for (position, &number) in numbers.iter().enumerate() {
        body.push(if position == 0 { b'[' } else { b',' });
        payload.write(body, run, number);
    }
    body.push(b']');
}

/// `Retry-After` in seconds; its other form, a date, is left to the backoff.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// Doubles with each attempt and varies by a quarter, so that connections do not return in step.
fn backoff(attempt: u32) -> Duration {
    let doubled = FIRST_WAIT.saturating_mul(1 << attempt.saturating_sub(1).min(10));
    doubled.mul_f64(rand::random_range(0.75..1.25))
}
