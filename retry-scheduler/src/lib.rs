//! The retry scheduler: consumes `outcomes` and keeps what they ask for, delayed retries, dead letters and history, in
//! partitioned PostgreSQL; produces retries to `due` when their time has come.
//!
//! In reading order: `members` learns which shards are this process's; `shard` is the life of one, with the protocol and
//! what happens at each crash point; `takeover` begins it; `read` decides what an outcome becomes; `clamp` when a retry
//! is due; `pending` what is in memory and what is in the table;
//! `leases` what becomes of deliveries in doubt; `admission` which commands to pending retries are kept, `marks` what they mean for those,
//! and `recalls` how those are brought back before their time; `maintain` keeps the partitions.

mod admission;
mod ahead;
mod batch;
mod circuit;
mod clamp;
pub mod config;
mod dependency;
pub mod error;
#[cfg(test)]
mod history;
mod intake;
mod leases;
mod maintain;
mod marks;
mod members;
mod metrics;
mod pending;
mod publish;
mod read;
mod reader;
mod recalls;
mod repeats;
mod shard;
mod shared;
mod stop;
mod subject;
mod takeover;
mod turns;

pub use config::Settings;
pub use error::Error;

use crate::{
    circuit::Circuit,
    dependency::{Dependency, Reporter},
    metrics::Metrics,
    publish::Publisher,
    shared::Shared,
    stop::{Ending, Stop},
};
use floodway_runtime::{
    Context,
    backoff::Backoff,
    topics::{self, TopicsError},
    witness::Witness,
};
use floodway_schemas::topic::Topic;
use floodway_store::{Pool, migrate::check_schema};
use std::{
    sync::{Arc, Mutex, atomic::AtomicI32},
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::{Notify, Semaphore, oneshot},
    task::JoinSet,
};

/// The topics that the role uses. `outcomes` and `due` must have equally many partitions: shard *s* produces to *s*.
const TOPICS: [Topic; 3] = [Topic::Outcomes, Topic::Due, Topic::DeadLetters];

/// Time beyond the drain timeout for threads to notice that they are to end, and for the cursor's last move.
const END_MARGIN: Duration = Duration::from_secs(5);

/// The role, built and not yet running.
#[derive(Debug)]
pub struct RetryScheduler {
    settings: Settings,
    context: Context,
    pool: Pool,
    dependencies: Dependencies,
}

/// What the role depends on, as health shows it: from the moment it is built, so that it is not ready before it runs.
#[derive(Debug)]
struct Dependencies {
    kafka: Dependency,
    database: Dependency,
    /// Lost outcomes are for people to look into; the role does its work.
    outcomes_log: Dependency,
}

impl RetryScheduler {
    /// Checks the settings and, as far as Kafka and PostgreSQL answer, topics and schema. Neither has to be there yet.
    ///
    /// # Errors
    /// [`Error::Settings`] naming the setting, [`Error::Topics`] when topics are missing or not as they have to be,
    /// [`Error::Database`] when the schema is not the one of this version.
    pub async fn bind(settings: Settings, context: Context, pool: Pool) -> Result<Self, Error> {
        settings.validate().map_err(Error::Settings)?;
        let dependencies = Dependencies {
            kafka: Dependency::new(context.health.component("kafka", true)),
            database: Dependency::new(context.health.component("postgresql", true)),
            outcomes_log: Dependency::new(context.health.component("outcomes log", false)),
        };
        match topics::check(&context.kafka, &TOPICS).await {
            Ok(_) => {}
            Err(error @ TopicsError::Unreachable { .. }) => tracing::warn!(%error, "starting without Kafka"),
            Err(error) => return Err(error.into()),
        }
        match check_schema(&pool).await {
            Ok(()) => {}
            Err(error) if error.is_unavailable() => tracing::warn!(%error, "starting without the database"),
            Err(error) => return Err(error.into()),
        }
        Ok(Self { settings, context, pool, dependencies })
    }

    /// Schedules until the context's shutdown is cancelled, then waits for what is in flight and returns. Dropping the
    /// future instead ends everything at once, as a crash would.
    ///
    /// # Errors
    /// When a client or a thread cannot be made, or the producer failed for good.
    pub async fn run(self) -> Result<(), Error> {
        let Self { settings, context, pool, dependencies } = self;
        let shared = Arc::new(Shared {
            publisher: Publisher::new(&context.kafka)?,
            witness: Witness::new(&context.kafka),
            kafka: context.kafka.clone(),
            pages: Arc::new(Semaphore::new((pool.max_size() / 2).max(1))),
            pool,
            handle: Handle::current(),
            metrics: Metrics::new(),
            kafka_health: dependencies.kafka,
            database_health: dependencies.database,
            circuit: Circuit::new(),
            outcomes_log: dependencies.outcomes_log,
            partitions_wanted: Notify::new(),
            positions: Mutex::default(),
            partitions: AtomicI32::new(0),
            owner: format!("{}-{:08x}", std::process::id(), rand::random::<u32>()),
            settings,
        });
        shared.outcomes_log.up(Reporter::Role);
        let mut tasks = JoinSet::new();
        tasks.spawn(maintain::run(Arc::clone(&shared), context.shutdown.clone()));
        if !await_topics(&shared, &context).await || !await_schema(&shared, &context).await {
            tasks.shutdown().await;
            return Ok(());
        }
        let stop = Arc::new(Stop::default());
        let _abort = AbortOnDrop(Arc::clone(&stop));
        let ended = start_members(&shared, &stop)?;
        tokio::pin!(ended);
        let result = tokio::select! {
            result = &mut ended => result,
            () = context.shutdown.cancelled() => {
                stop.request(Ending::Drain);
                let limit = shared.settings.drain_timeout + END_MARGIN;
                match tokio::time::timeout(limit, ended).await {
                    Ok(result) => result,
                    Err(_) => {
                        // What is in flight counts as after a crash: the next owner repeats it.
                        tracing::warn!("shards did not end in time and are given up");
                        Ok(Ok(()))
                    }
                }
            }
        };
        flush(&shared).await;
        tasks.shutdown().await;
        // The sender is dropped without a word only by a panic.
        result.unwrap_or(Err(Error::Panicked("the group's thread")))
    }
}

/// Ends the threads at once when the role's future is dropped.
struct AbortOnDrop(Arc<Stop>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.request(Ending::Abort);
    }
}

/// Waits until the topics are there and right; `false` when the role is to end.
async fn await_topics(shared: &Shared, context: &Context) -> bool {
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(10));
    loop {
        let checked = tokio::select! {
            () = context.shutdown.cancelled() => return false,
            checked = topics::check(&shared.kafka, &TOPICS) => checked,
        };
        let error = match checked {
            Ok(facts) => {
                shared.kafka_health.up(Reporter::Role);
                shared.learn_partitions(facts.partitions(Topic::Outcomes).unwrap_or(0));
                return true;
            }
            Err(error) => error,
        };
        shared.kafka_health.down(Reporter::Role, error.to_string());
        tokio::select! {
            () = context.shutdown.cancelled() => return false,
            () = tokio::time::sleep(backoff.next(rand::random())) => {}
        }
    }
}

/// Waits until the database answers and has the schema of this version: an owner that wrote to another one could break
/// its rules. `false` when the role is to end.
async fn await_schema(shared: &Shared, context: &Context) -> bool {
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(10));
    loop {
        let checked = tokio::select! {
            () = context.shutdown.cancelled() => return false,
            checked = check_schema(&shared.pool) => checked,
        };
        match checked {
            Ok(()) => {
                shared.database_health.up(Reporter::Role);
                return true;
            }
            Err(error) => shared.database_health.down(Reporter::Role, error.to_string()),
        }
        tokio::select! {
            () = context.shutdown.cancelled() => return false,
            () = tokio::time::sleep(backoff.next(rand::random())) => {}
        }
    }
}

fn start_members(
    shared: &Arc<Shared>,
    stop: &Arc<Stop>,
) -> Result<oneshot::Receiver<Result<(), Error>>, Error> {
    let (ended, receiver) = oneshot::channel();
    let (shared, stop) = (Arc::clone(shared), Arc::clone(stop));
    std::thread::Builder::new().name("retry-members".to_owned()).spawn(move || {
        let result = members::run(&shared, &shared.kafka, &stop);
        // Nobody listens any more when the role's future was dropped.
        let _ = ended.send(result);
    })?;
    Ok(receiver)
}

async fn flush(shared: &Arc<Shared>) {
    let (shared, timeout) = (Arc::clone(shared), shared.settings.drain_timeout);
    if tokio::task::spawn_blocking(move || shared.publisher.flush(timeout)).await.is_err() {
        tracing::error!("flushing the producer panicked");
    }
}
