//! One thread of the generator: a runtime of its own, its share of the connections, and the pace.

use super::{
    arrivals::Arrivals,
    connection::Connection,
    cost::ThreadTime,
    error::LoadError,
    ledger::ConnectionLedger,
    progress::Progress,
    request::arena_for,
    series::Series,
    tally::Tally,
    target::connect,
    timer::Timer,
    worker::{Requests, Shared, Worker},
    workload::Workload,
};
use std::{
    cell::Cell,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    net::TcpStream,
    sync::{oneshot, watch},
    task::{JoinSet, LocalSet},
    time::sleep_until,
};
use tokio_util::sync::CancellationToken;

/// Least time between two looks at the schedule. Beyond 4,000 requests per second several are sent at each, up to so much
/// after they were due, and that is part of their latency. Measured once each at 20,000 requests per second: 46 % of a CPU,
/// and 52 % with looks every 100 µs. Most of both is waking up for answers.
const TICK: Duration = Duration::from_micros(250);
/// How long answers are waited for after the run was stopped from outside.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// Connections that a thread makes at a time: below the backlog of a usual listener.
const CONNECTS_AT_ONCE: usize = 64;

/// What one thread needs to know.
pub(super) struct GeneratorPlan {
    pub(super) address: SocketAddr,
    pub(super) workload: Workload,
    pub(super) requests: Requests,
    /// Numbers of its connections.
    pub(super) connections: std::ops::Range<u32>,
    pub(super) arrivals: Arrivals,
    pub(super) warmup: Duration,
    /// When the measured time ends, from the start of the run; none in a run of so many events.
    pub(super) until: Option<Duration>,
    pub(super) timeout: Duration,
    pub(super) ledger: bool,
    pub(super) series: Arc<Series>,
    pub(super) progress: Arc<Progress>,
    /// Ends the run.
    pub(super) end: CancellationToken,
    /// Told when all connections are there.
    pub(super) ready: oneshot::Sender<()>,
    /// The start of the run, once it is known.
    pub(super) start: watch::Receiver<Option<Instant>>,
}

/// What one thread leaves.
pub(super) struct GeneratorResult {
    pub(super) tally: Tally,
    pub(super) dropped: u64,
    pub(super) ledgers: Vec<(u32, ConnectionLedger)>,
}

/// Runs on the calling thread from connecting to the last answer.
pub(super) fn generate(plan: GeneratorPlan) -> Result<GeneratorResult, LoadError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(LocalSet::new().run_until(Box::pin(run(plan))))
}

async fn run(plan: GeneratorPlan) -> Result<GeneratorResult, LoadError> {
    let end = plan.end.clone();
    let Some(streams) = end.run_until_cancelled(connect_all(plan.address, plan.connections.len())).await
    else {
        return Err(LoadError::Stopped);
    };
    let streams = streams.map_err(|error| LoadError::Connect { address: plan.address.to_string(), error })?;
    // Who waits for it may have gone: then the run has been cancelled.
    let _ = plan.ready.send(());
    let mut starts = plan.start;
    let Some(Ok(start)) = end
        .run_until_cancelled(starts.wait_for(Option::is_some))
        .await
        .map(|start| start.map(|start| *start))
    else {
        return Err(LoadError::Stopped);
    };
    let start = start.unwrap_or_else(Instant::now);
    let given_up = Rc::new(Cell::new(false));
    let tally = Tally::new(plan.warmup, plan.until, plan.series, Arc::clone(&plan.progress));
    let shared = Rc::new(Shared::new(
        start,
        streams.len(),
        plan.arrivals,
        tally,
        arena_for(&plan.workload, u64::from(plan.connections.start)),
        Rc::clone(&given_up),
        (end.clone(), plan.progress),
    ));
    sleep_until(start.into()).await;
    let mut workers = JoinSet::new();
    for (seat, (stream, number)) in streams.into_iter().zip(plan.connections).enumerate() {
        let worker = Worker {
            shared: Rc::clone(&shared),
            requests: plan.requests.clone(),
            connection: Connection::new(plan.address, stream, plan.timeout, Rc::clone(&given_up)),
            seat,
            number,
            ledger: ConnectionLedger::default(),
            keeps_ledger: plan.ledger,
        };
        workers.spawn_local(worker.run());
    }
    let mut ledgers = Vec::new();
    let collect = async {
        while let Some(worker) = workers.join_next().await {
            ledgers.push(worker.map_err(|_| LoadError::Thread)?);
        }
        Ok::<_, LoadError>(())
    };
    tokio::select! {
        result = collect => result?,
        error = pace(&shared) => return Err(error.into()),
        () = measure(&shared, plan.warmup, plan.until, plan.timeout) => {}
        () = give_up_after_stop(&shared, &end) => {}
    }
    finish(shared, ledgers)
}

fn finish(shared: Rc<Shared>, ledgers: Vec<(u32, ConnectionLedger)>) -> Result<GeneratorResult, LoadError> {
    if let Some(status) = shared.unauthorized.get() {
        return Err(LoadError::Unauthorized(status));
    }
    let now = shared.now();
    let dropped = shared.arrivals.borrow().dropped();
    // All workers have ended, and with them their references.
    let shared = Rc::into_inner(shared).ok_or(LoadError::Thread)?;
    let mut tally = shared.tally.into_inner();
    tally.begin.get_or_insert((now, ThreadTime::now()));
    tally.end.get_or_insert((now, ThreadTime::now()));
    tally.roll(tally.last_end);
    tally.finish();
    Ok(GeneratorResult { tally, dropped, ledgers })
}

async fn connect_all(address: SocketAddr, count: usize) -> io::Result<Vec<TcpStream>> {
    let mut streams = Vec::with_capacity(count);
    while streams.len() < count {
        let mut connecting = JoinSet::new();
        for _ in streams.len()..count.min(streams.len() + CONNECTS_AT_ONCE) {
            connecting.spawn(connect(address));
        }
        while let Some(stream) = connecting.join_next().await {
            streams.push(stream.map_err(io::Error::other)??);
        }
    }
    Ok(streams)
}

/// Gives requests to free connections when they become due; never ends, except when there is no timer.
async fn pace(shared: &Shared) -> io::Error {
    let mut timer = match Timer::new() {
        Ok(timer) => timer,
        Err(error) => return error,
    };
    loop {
        let now = shared.now();
        let Some(due) = shared.dispatch(now) else { return std::future::pending().await };
        // What is due now has been given out.
        if let Err(error) = timer.sleep(due.saturating_sub(now).max(TICK)).await {
            return error;
        }
    }
}

/// Reads the thread's time at both ends of the measured time, and ends the waiting for answers some time after it; never
/// ends itself.
async fn measure(shared: &Shared, warmup: Duration, until: Option<Duration>, timeout: Duration) {
    sleep_until((shared.start + warmup).into()).await;
    shared.tally.borrow_mut().begin = Some((shared.now(), ThreadTime::now()));
    if let Some(until) = until {
        sleep_until((shared.start + until).into()).await;
        shared.tally.borrow_mut().end = Some((shared.now(), ThreadTime::now()));
        // What was due in time may still wait for a connection: as long as an answer may take, then it is dropped.
        sleep_until((shared.start + until + timeout).into()).await;
        shared.stop();
    }
    std::future::pending().await
}

/// Ends the run when it is stopped from outside; never ends itself.
async fn give_up_after_stop(shared: &Shared, end: &CancellationToken) {
    end.cancelled().await;
    {
        let mut tally = shared.tally.borrow_mut();
        let now = (shared.now(), ThreadTime::now());
        tally.begin.get_or_insert(now);
        tally.end.get_or_insert(now);
    }
    shared.stop();
    tokio::time::sleep(STOP_GRACE).await;
    shared.give_up();
    std::future::pending().await
}
