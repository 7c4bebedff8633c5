//! What every scenario works with: topics and a database of its own, the scheduler, and ways to look at both.

use super::{
    SchedulerBench,
    outcomes::OutcomesProducer,
    scenario::Sizes,
    server::ServerProcesses,
    track::{Look, Track},
};
use crate::{
    bench::{
        BenchError,
        figures::{Figure, Unit},
        installation::{Ground, Installation},
        process::{Reading, forget_peak},
    },
    live_line::LiveLine,
    report::count,
};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};

/// The role's name.
pub(super) const ROLE: &str = "retry-scheduler";
/// Pause between two looks.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// Longest time for the scheduler to take its shards and to make partitions.
const PREPARE_PATIENCE: Duration = Duration::from_secs(60);
/// Partitions for retries that are there once its first pass of maintenance is over: one for each of the next hours.
const LEAST_PARTITIONS: i64 = 72;
/// Without any progress for so long something is wrong.
const STALL: Duration = Duration::from_secs(30);

/// One scenario's surroundings.
pub(super) struct Stage<'a> {
    pub(super) bench: &'a SchedulerBench,
    pub(super) sizes: &'a Sizes,
    pub(super) installation: &'a mut Installation,
    pub(super) ground: &'a Ground,
    pub(super) partitions: i32,
    pub(super) live: &'a mut LiveLine,
    pub(super) client: Session,
    /// None if PostgreSQL is on another machine.
    pub(super) server: Option<ServerProcesses>,
}

/// A session with the scenario's database.
pub(super) struct Session {
    client: Client,
    connection: JoinHandle<()>,
}

impl Session {
    /// Opens one.
    ///
    /// # Errors
    /// When the server refuses.
    pub(super) async fn open(url: &str) -> Result<Self, BenchError> {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        // The reason for its end is told by the query that fails.
        let connection = tokio_util::task::TaskTracker::new().spawn(async { drop(connection.await) });
        Ok(Self { client, connection })
    }
}

impl std::ops::Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Stage<'_> {
    /// Lets the scheduler make its shards' rows and the partitions, and stops it.
    pub(super) async fn prepare(&mut self) -> Result<(), BenchError> {
        self.live.update("the scheduler makes its tables".to_owned());
        self.installation.start_role(ROLE).await?;
        let deadline = Instant::now() + PREPARE_PATIENCE;
        // The tables are looked after one by one: the last one has partitions when none lacks them.
        let sql = "SELECT (SELECT count(*) FROM retry_shard), \
                   (SELECT count(*) FROM pg_inherits WHERE inhparent = 'retry'::regclass), \
                   (SELECT count(*) FROM pg_class c WHERE relkind = 'p' \
                    AND NOT EXISTS (SELECT FROM pg_inherits WHERE inhparent = c.oid))";
        loop {
            let row = self.client.query_one(sql, &[]).await?;
            let (shards, partitions, bare): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
            if shards == i64::from(self.partitions) && partitions >= LEAST_PARTITIONS && bare == 0 {
                break;
            }
            self.before(
                deadline,
                "its tables",
                format!("{shards} shards, {partitions} partitions, {bare} tables without any"),
            )?;
            tokio::time::sleep(LOOK_PAUSE).await;
        }
        self.installation.stop_role(ROLE).await;
        Ok(())
    }

    /// An error when the deadline has passed.
    pub(super) fn before(&self, deadline: Instant, what: &str, state: String) -> Result<(), BenchError> {
        if Instant::now() < deadline {
            return Ok(());
        }
        Err(BenchError::NotReady { what: what.to_owned(), seconds: 0, health: state, log: String::new() })
    }

    /// Writes so many outcomes to the log; `make` is called with numbers from `first` on.
    pub(super) async fn produce(
        &mut self,
        first: u64,
        number: u64,
        make: impl Fn(u64) -> String + Send + 'static,
    ) -> Result<(), BenchError> {
        self.live.update(format!("writing {} outcomes", count(number)));
        let (brokers, prefix) = (self.bench.site.brokers.clone(), self.ground.prefix.clone());
        let partitions = self.partitions;
        let write = move || {
            let producer = OutcomesProducer::new(&brokers, &prefix, partitions)?;
            (first..first + number).try_for_each(|number| producer.write(number, &make(number)))?;
            producer.flush()
        };
        tokio::task::spawn_blocking(write).await.unwrap_or_else(|error| {
            Err(BenchError::Command { command: "writing outcomes".to_owned(), reason: error.to_string() })
        })
    }

    /// How many outcomes are stored, of all shards.
    pub(super) async fn stored(&self) -> Result<u64, BenchError> {
        let row = self.client.query_one("SELECT sum(next_offset)::bigint FROM retry_shard", &[]).await?;
        Ok(row.get::<_, Option<i64>>(0).and_then(|sum| u64::try_from(sum).ok()).unwrap_or(0))
    }

    /// One look at everything.
    pub(super) fn look(&self, done: u64) -> Look {
        let reading = |pid| Reading::of(pid).unwrap_or_default();
        Look {
            at: Instant::now(),
            done,
            scheduler: self.installation.pid(ROLE).map(reading).unwrap_or_default(),
            postgres_micros: self.server.map_or(0, ServerProcesses::cpu_micros),
            broker_micros: self.bench.broker_pids.iter().map(|&pid| reading(pid).cpu_micros()).sum(),
        }
    }

    /// Starts the scheduler and looks at it until `done` says that there are `whole`.
    pub(super) async fn run_until(
        &mut self,
        label: &str,
        whole: u64,
        done: impl AsyncFn(&Self) -> Result<u64, BenchError>,
    ) -> Result<Track, BenchError> {
        let pid = self.installation.spawn_role(ROLE)?;
        forget_peak(pid);
        let mut track = Track::default();
        let mut news = (Instant::now(), 0);
        loop {
            let number = done(self).await?;
            track.0.push(self.look(number));
            if number >= whole {
                return Ok(track);
            }
            if number > news.1 {
                news = (Instant::now(), number);
            }
            self.before(news.0 + STALL, label, format!("{} of {}", count(number), count(whole)))?;
            self.live.update(format!("{label}: {} of {}", count(number), count(whole)));
            self.installation.check().await?;
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }

    /// The database's clock, in microseconds since 1970.
    pub(super) async fn now_micros(&self) -> Result<i64, BenchError> {
        let sql = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
        Ok(self.client.query_one(sql, &[]).await?.get(0))
    }
}

/// Memory and costs of each row, as figures.
pub(super) fn costs(track: &Track, window: &super::track::Window) -> Vec<Figure> {
    let cost = |name: &str, micros: f64| Figure::new(name, Unit::CpuMicros, window.each(micros));
    vec![
        cost("scheduler's CPU-µs/row", window.scheduler_micros),
        cost("PostgreSQL's CPU-µs/row", window.postgres_micros),
        cost("Kafka's CPU-µs/row", window.broker_micros),
        Figure::new("peak RSS", Unit::Bytes, track.peak_bytes() as f64),
    ]
}
