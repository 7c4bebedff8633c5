//! The load generator: requests on an absolute schedule or in a closed loop, at a cost far below that of the server.
//!
//! In an open loop the instants at which requests are due follow from the start of the run alone. A request that
//! finds no free connection waits in a bounded backlog, and its latency counts from the instant it was due: a server
//! that stalls is charged for every request that had to wait, not only for those it was asked.

mod plan;
mod workload;

mod answer;
mod arrivals;
mod connection;
mod content;
mod event_id;
mod generator;
pub mod monotonic;
mod request;
mod schedule;
mod target;
mod timer;
mod worker;

mod cost;
mod progress;
mod report;
mod series;
mod tally;
mod text;
mod verdict;

mod bitmap;
mod ledger;
mod reconcile;

mod error;

use self::{
    answer::Classifier,
    arrivals::{Arrivals, Backlog, Until},
    event_id::Keys,
    generator::{GeneratorPlan, GeneratorResult, generate},
    request::{EncodedPool, Template},
    series::Series,
    target::Target,
    verdict::RunFacts,
    worker::Requests,
};
pub use self::{
    error::LoadError,
    ledger::Ledger,
    plan::{Arrival, DEFAULT_MAX_BACKLOG, DEFAULT_TIMEOUT, Length, LoadPlan},
    progress::Progress,
    reconcile::{KafkaTopic, Reconciliation, TopicEnds, reconcile_receiver, reconcile_topic, topic_ends},
    report::{Errors, Generator, GeneratorThread, LoadReport, Quantiles, Second, Totals},
    text::{reconciliation_text, report_text},
    workload::{Encoding, Entropy, Workload},
};
use hdrhistogram::Histogram;
use std::{
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

/// Time between the last connection and the start of the run, for all threads to hear of it.
const START_DELAY: Duration = Duration::from_millis(20);

/// What a run leaves.
#[derive(Debug)]
pub struct Outcome {
    /// The figures.
    pub report: LoadReport,
    /// The microseconds behind the report's `latency`, to be merged with other runs'.
    pub latency: Histogram<u64>,
    /// Every event's end, if the plan asked for it.
    pub ledger: Option<Ledger>,
}

/// Runs a plan on threads of its own; ends when the plan has, or soon after `stop`. A run that was stopped has a report too,
/// which says that it is not valid.
pub async fn run(
    plan: &LoadPlan,
    progress: &Arc<Progress>,
    stop: &CancellationToken,
) -> Result<Outcome, LoadError> {
    plan.check()?;
    let target = Target::new(&plan.url, &plan.key)?;
    let address = target.resolve(plan.allow_remote).await?;
    let run = format!("load-{:016x}", rand::random::<u64>());
    let keys = Keys::new(plan.workload.keys, plan.connections);
    let requests = requests(plan, &target, &run, keys)?;
    let body_bytes = requests.pool.as_ref().map_or(requests.template.body_bytes(), |pool| pool.body_bytes);
    let series = Arc::new(Series::new(plan.threads));
    // Also cancelled when this future is dropped, so that no thread outlives it for long.
    let end = stop.child_token();
    let _guard = end.clone().drop_guard();
    let (start, starts) = watch::channel(None);
    let mut threads = Vec::with_capacity(plan.threads);
    for number in 0..plan.threads {
        let (ready, is_ready) = oneshot::channel();
        let plan = GeneratorPlan {
            address,
            workload: plan.workload.clone(),
            requests: requests.clone(),
            connections: connections(plan, number),
            arrivals: arrivals(plan, number),
            warmup: plan.warmup,
            until: match plan.length {
                Length::Time(time) => Some(plan.warmup + time),
                Length::Events(_) => None,
            },
            timeout: plan.timeout,
            ledger: plan.ledger,
            series: Arc::clone(&series),
            progress: Arc::clone(progress),
            end: end.clone(),
            ready,
            start: starts.clone(),
        };
        threads.push(GeneratorHandle::spawn(number, plan, is_ready)?);
    }
    for thread in &mut threads {
        // A thread that failed ends the others, and says why when it is joined.
        let _ = (&mut thread.is_ready).await;
    }
    // Without receivers all threads have failed.
    let _ = start.send(Some(Instant::now() + START_DELAY));
    let results = collect(threads).await?;
    let facts = RunFacts {
        run: run.clone(),
        body_bytes: body_bytes as u64,
        series: series.take(),
        was_stopped: stop.is_cancelled(),
    };
    let (report, latency) = verdict::report(plan, facts, &results);
    let ledger = plan.ledger.then(|| Ledger::new(run, keys, ledgers(results)));
    Ok(Outcome { report, latency, ledger })
}

fn requests(plan: &LoadPlan, target: &Target, run: &str, keys: Keys) -> Result<Requests, LoadError> {
    let template = Template::new(&plan.workload, target, run, keys);
    let pool = match plan.workload.encoding {
        Encoding::Identity => None,
        Encoding::Gzip | Encoding::Zstd => {
            Some(Arc::new(EncodedPool::new(&template, &plan.workload, target)?))
        }
    };
    Ok(Requests {
        template: Arc::new(template),
        pool,
        classifier: Classifier::new(plan.workload.events_per_request),
        events: plan.workload.events_per_request as u64,
    })
}

/// The connections of one thread: an even share, in one piece.
fn connections(plan: &LoadPlan, thread: usize) -> std::ops::Range<u32> {
    let first = |thread: usize| (plan.connections * thread / plan.threads) as u32;
    first(thread)..first(thread + 1)
}

/// The requests of one thread.
fn arrivals(plan: &LoadPlan, thread: usize) -> Arrivals {
    let (first, step) = (thread as u64, plan.threads as u64);
    let Some(schedule) = plan.schedule() else {
        let until = match (plan.length, plan.measured_requests()) {
            (_, Some(requests)) => Until::Requests(requests / step + u64::from(first < requests % step)),
            (Length::Time(time), None) => Until::Time(plan.warmup + time),
            (Length::Events(_), None) => Until::Requests(0),
        };
        return Arrivals::Closed { warmup: plan.warmup, until };
    };
    let end = match plan.length {
        Length::Time(time) => schedule.count_before(plan.warmup + time),
        Length::Events(_) => {
            schedule.count_before(plan.warmup).saturating_add(plan.measured_requests().unwrap_or(0))
        }
    };
    let limit = plan.max_backlog.div_ceil(plan.threads);
    Arrivals::Open(Backlog::new(schedule, (first, step), end, limit, plan.warmup))
}

/// A thread of the generator.
struct GeneratorHandle {
    is_ready: oneshot::Receiver<()>,
    has_ended: oneshot::Receiver<()>,
    thread: JoinHandle<Result<GeneratorResult, LoadError>>,
}

impl GeneratorHandle {
    fn spawn(number: usize, plan: GeneratorPlan, is_ready: oneshot::Receiver<()>) -> Result<Self, LoadError> {
        let (ended, has_ended) = oneshot::channel();
        let thread = std::thread::Builder::new().name(format!("load-{number}")).spawn(move || {
            // Dropped at the end, also by a panic: that is the message.
            let _ended: oneshot::Sender<()> = ended;
            let end = plan.end.clone().drop_guard();
            let result = generate(plan);
            if result.is_ok() {
                // The others go on to their own ends.
                end.disarm();
            }
            result
        })?;
        Ok(Self { is_ready, has_ended, thread })
    }
}

/// What all threads leave. A failure of one has ended the others.
async fn collect(threads: Vec<GeneratorHandle>) -> Result<Vec<GeneratorResult>, LoadError> {
    let mut results = Ok(Vec::with_capacity(threads.len()));
    for thread in threads {
        let _ = thread.has_ended.await;
        // It has just ended, so this does not wait.
        let result = thread.thread.join().unwrap_or(Err(LoadError::Thread));
        match (&mut results, result) {
            (Ok(results), Ok(result)) => results.push(result),
            // That one was stopped is no reason: another one failed, or the caller stopped them.
            (Ok(_) | Err(LoadError::Stopped), Err(error)) => results = Err(error),
            (Err(_), _) => {}
        }
    }
    results
}

/// The ledgers of all connections, in the order of their numbers.
fn ledgers(results: Vec<GeneratorResult>) -> Vec<ledger::ConnectionLedger> {
    let mut ledgers: Vec<_> = results.into_iter().flat_map(|result| result.ledgers).collect();
    ledgers.sort_unstable_by_key(|(number, _)| *number);
    ledgers.into_iter().map(|(_, ledger)| ledger).collect()
}
