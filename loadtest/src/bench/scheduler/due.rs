//! Retries on their way out: a backlog that is all due, how late single ones are, and a start with very many pending.

use super::{
    outcomes::{OutcomesProducer, outcome},
    rows::{BATCH_ROWS, CopyBatch, due_in},
    scenario::{LATENESS_PENDING, LATENESS_RATE, Shape},
    stage::{ROLE, Stage, costs},
    track::{MEASURED, Track},
};
use crate::{
    bench::{
        BenchError,
        figures::{Figure, Found, Goal, Unit},
        process::forget_peak,
        topics::Growth,
    },
    report::count,
};
use hdrhistogram::Histogram;
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
};
use std::{
    sync::mpsc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Rows a second from the table to `due`.
const DUE_GOAL: Goal = Goal::AtLeast(200_000.0);
/// Lateness of 99 % of the retries, in microseconds.
const LATENESS_GOAL: Goal = Goal::AtMost(250_000.0);
/// Time until the role is ready, in microseconds.
const READY_GOAL: Goal = Goal::AtMost(10_000_000.0);
/// From filling the table to the first retry's time: enough to fill it and to start.
const HEAD_START: Duration = Duration::from_secs(8);
/// Retries of the first seconds are not in the figures: the scheduler has just started.
const SETTLING: Duration = Duration::from_secs(2);
/// Time over which a large number of pending retries is spread.
const SPREAD: Duration = Duration::from_secs(2 * 3600);
/// Pause between two pieces of outcomes.
const PIECE: Duration = Duration::from_millis(10);
/// How long after its start the memory of the scheduler is looked at.
const AFTER_START: Duration = Duration::from_secs(10);
/// Longest wait for shards to be taken over, and for the first retry.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(50);
/// Longest lateness that is told apart, in milliseconds.
const LONGEST_MS: u64 = 600_000;

/// Rows that are all due when the scheduler starts.
pub(super) async fn backlog(stage: &mut Stage<'_>, name: &str) -> Result<Found, BenchError> {
    let number = stage.sizes.due_rows / BATCH_ROWS as u64 * BATCH_ROWS as u64;
    let start = stage.now_micros().await?;
    let place = |id: u64| (0, start + i64::try_from(id).unwrap_or(0));
    fill(stage, number, true, place).await?;
    let alone = read_alone(stage, start, number).await?;
    let growth = Growth::watch(&stage.bench.site.brokers, &format!("{}due", stage.ground.prefix))?;
    let track = stage.run_until(name, number, async |_: &Stage<'_>| Ok(growth.added())).await?;
    let grown = growth.stop();
    let mut figures = Vec::new();
    figures.extend(
        grown
            .rate(MEASURED, number as f64)
            .map(|rate| Figure::new("rows/s from table to `due`", Unit::PerSecond, rate).goal(DUE_GOAL)),
    );
    figures.push(Figure::new("rows/s of a bare SELECT in pages", Unit::PerSecond, alone));
    if let Some(window) = track.window(MEASURED, number) {
        figures.extend(costs(&track, &window));
    }
    Ok(Found { figures, ..Found::default() })
}

/// Reads all rows as the scheduler does, a page of them at a time, and does nothing with them.
async fn read_alone(stage: &Stage<'_>, start: i64, number: u64) -> Result<f64, BenchError> {
    let sql = "SELECT id, record_key, rec FROM retry WHERE shard = 0 AND due_at > to_timestamp($1::float8) \
               ORDER BY due_at, id LIMIT 5000";
    let begun = Instant::now();
    let (mut read, mut bytes) = (0_u64, 0);
    while read < number {
        // Rows are a microsecond apart, so a page begins where the one before ended.
        let after = (start + i64::try_from(read).unwrap_or(0) - 1) as f64 / 1e6;
        let rows = stage.client.query(sql, &[&after]).await?;
        if rows.is_empty() {
            break;
        }
        read += rows.len() as u64;
        bytes += rows.iter().map(|row| row.get::<_, &[u8]>(2).len()).sum::<usize>();
    }
    debug_assert!(bytes > 0, "there was something to read");
    Ok(read as f64 / begun.elapsed().as_secs_f64())
}

/// Retries that become due one after the other, while as many are stored.
pub(super) async fn lateness(stage: &mut Stage<'_>) -> Result<Found, BenchError> {
    let spread = Duration::from_secs_f64(LATENESS_PENDING as f64 / LATENESS_RATE as f64);
    let start = stage.now_micros().await? + micros(HEAD_START);
    let shards = u64::try_from(stage.partitions).unwrap_or(1);
    let step = 1_000_000 / i64::try_from(LATENESS_RATE).unwrap_or(1);
    let place =
        |id: u64| (i32::try_from(id % shards).unwrap_or(0), start + i64::try_from(id).unwrap_or(0) * step);
    fill(stage, LATENESS_PENDING, true, place).await?;

    let begin_ms = u64::try_from((start + micros(SETTLING)) / 1_000).unwrap_or(0);
    let end = start + micros(spread) + micros(stage.sizes.lateness);
    let end_ms = u64::try_from(end / 1_000).unwrap_or(0);
    let arrivals = Arrivals::watch(
        &stage.bench.site.brokers,
        &format!("{}due", stage.ground.prefix),
        stage.partitions,
        (begin_ms, end_ms),
    )?;
    stage.installation.start_role(ROLE).await?;
    let pid = stage.installation.pid(ROLE).unwrap_or_default();
    forget_peak(pid);
    let producer = OutcomesProducer::new(&stage.bench.site.brokers, &stage.ground.prefix, stage.partitions)?;
    let (mut track, mut number) = (Track::default(), 0);
    loop {
        let now = stage.now_micros().await?;
        if now >= end + micros(SETTLING) {
            break;
        }
        // As many are written as have become due, each for the time when those that are there end.
        let wanted = u64::try_from((now - start) / step).unwrap_or(0);
        while number < wanted && now < end {
            let at = start + i64::try_from(number).unwrap_or(0) * step;
            let due = at + micros(spread);
            let ms = |micros: i64| u64::try_from(micros / 1_000).unwrap_or(0);
            producer.write(number, &outcome(Shape::Retry, number, ms(at), ms(due)))?;
            number += 1;
        }
        if now >= start + micros(SETTLING) && now < end {
            track.0.push(stage.look(number));
        }
        stage.live.update(format!("lateness: {} stored, {} s left", count(number), (end - now) / 1_000_000));
        stage.installation.check().await?;
        tokio::time::sleep(PIECE).await;
    }
    producer.flush()?;
    let seen = arrivals.stop()?;
    let quantile = |of: &Histogram<u64>, q: f64| of.value_at_quantile(q) as f64 * 1_000.0;
    let wanted = (end_ms - begin_ms) / 1_000 * LATENESS_RATE;
    let time = |name: &str, micros: f64| Figure::new(name, Unit::Micros, micros);
    let mut figures = vec![
        time("lateness at `due`, p50", quantile(&seen.written, 0.5)),
        time("lateness at `due`, p99", quantile(&seen.written, 0.99)).goal(LATENESS_GOAL),
        time("lateness at `due`, longest", quantile(&seen.written, 1.0)),
        time("lateness at a consumer of `due`, p50", quantile(&seen.read, 0.5)),
        time("lateness at a consumer of `due`, p99", quantile(&seen.read, 0.99)),
        Figure::new("retries measured", Unit::Count, seen.written.len() as f64),
        Figure::new("retries too early", Unit::Count, seen.early as f64).goal(Goal::AtMost(0.0)),
    ];
    if let Some(window) = track.whole() {
        let core = |name: &str, micros| Figure::new(name, Unit::Percent, window.core_percent(micros));
        figures.extend([
            core("scheduler's CPU, of one core", window.scheduler_micros),
            core("PostgreSQL's CPU, of one core", window.postgres_micros),
        ]);
    }
    figures.push(Figure::new("peak RSS", Unit::Bytes, track.peak_bytes() as f64));
    let missing = wanted.saturating_sub(seen.written.len());
    let doubt = format!("{missing} of about {} retries did not arrive in time to be counted", count(wanted));
    let doubts = (missing > wanted / 100).then_some(doubt).into_iter().collect();
    Ok(Found { figures, doubts, ..Found::default() })
}

/// A start with very many retries in the table.
pub(super) async fn pending(stage: &mut Stage<'_>) -> Result<Found, BenchError> {
    let number = stage.sizes.pending_rows;
    let start = stage.now_micros().await?;
    let shards = u64::try_from(stage.partitions).unwrap_or(1);
    let step = SPREAD.as_nanos() / u128::from(number.max(1));
    let place = |id: u64| {
        let after = i64::try_from(u128::from(id) * step / 1_000).unwrap_or(0);
        (i32::try_from(id % shards).unwrap_or(0), start + after)
    };
    let begun = Instant::now();
    fill(stage, number, false, place).await?;
    let filled = number as f64 / begun.elapsed().as_secs_f64();
    let growth = Growth::watch(&stage.bench.site.brokers, &format!("{}due", stage.ground.prefix))?;
    let epochs = "SELECT max(epoch) FROM retry_shard";
    let epoch: i64 = stage.client.query_one(epochs, &[]).await?.get(0);

    let begun = Instant::now();
    stage.installation.start_role(ROLE).await?;
    let ready = begun.elapsed();
    let owned = "SELECT count(*) FROM retry_shard WHERE epoch > $1";
    while stage.client.query_one(owned, &[&epoch]).await?.get::<_, i64>(0) < i64::from(stage.partitions) {
        stage.before(begun + PATIENCE, "the shards", "not all were taken over".to_owned())?;
        tokio::time::sleep(PAUSE).await;
    }
    let taken = begun.elapsed();
    while growth.added() == 0 {
        stage.before(begun + PATIENCE, "the first retry", "none was produced".to_owned())?;
        tokio::time::sleep(PAUSE).await;
    }
    let first = begun.elapsed();
    tokio::time::sleep(AFTER_START.saturating_sub(begun.elapsed())).await;
    let peak = stage.look(0).scheduler.peak_bytes;
    let fired = growth.added();
    let time = |name: &str, time: Duration| Figure::new(name, Unit::Micros, time.as_secs_f64() * 1e6);
    let ready = ready.max(taken);
    let figures = vec![
        time("until ready, all shards taken over", ready).goal(READY_GOAL),
        time("until the first retry is on `due`", first),
        Figure::new("peak RSS in the first ten seconds", Unit::Bytes, peak as f64),
        Figure::new("retries on `due` by then", Unit::Count, fired as f64),
        Figure::new("rows/s while the table was filled", Unit::PerSecond, filled),
    ];
    Ok(Found { figures, ..Found::default() })
}

/// Writes rows of pending retries by COPY.
async fn fill(
    stage: &mut Stage<'_>,
    number: u64,
    whole: bool,
    place: impl Fn(u64) -> (i32, i64),
) -> Result<(), BenchError> {
    let mut batch = CopyBatch::new(whole);
    let mut first = 0;
    while first < number {
        stage.live.update(format!("writing rows: {} of {}", count(first), count(number)));
        batch.write(&stage.client, first, &place).await?;
        first += BATCH_ROWS as u64;
    }
    Ok(())
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

/// What arrives on `due`, seen from a thread of its own.
struct Arrivals {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<Seen>,
}

/// How late records were, in milliseconds.
struct Seen {
    /// By their timestamp: when the scheduler produced them.
    written: Histogram<u64>,
    /// When they were read.
    read: Histogram<u64>,
    /// Records produced before their time.
    early: u64,
}

impl Arrivals {
    /// Begins to look at records that are due between two instants, in milliseconds.
    fn watch(
        brokers: &str,
        topic: &str,
        partitions: i32,
        (from, until): (u64, u64),
    ) -> Result<Self, BenchError> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("client.id", "floodway-bench")
            .set("group.id", "floodway-bench-due")
            .set("enable.auto.commit", "false")
            .set("fetch.wait.max.ms", "10")
            .create()?;
        let mut assignment = TopicPartitionList::new();
        for partition in 0..partitions {
            assignment.add_partition_offset(topic, partition, Offset::Beginning)?;
        }
        consumer.assign(&assignment)?;
        let bounds = || Histogram::new_with_bounds(1, LONGEST_MS, 3).map_err(|error| unusable(&error));
        let mut seen = Seen { written: bounds()?, read: bounds()?, early: 0 };
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::Builder::new().name("arrivals".into()).spawn(move || {
            while let Err(mpsc::TryRecvError::Empty) = stopped.try_recv() {
                let Some(Ok(record)) = consumer.poll(PAUSE) else { continue };
                let Some(due) = record.payload().and_then(due_in) else { continue };
                if (from..until).contains(&due) {
                    let written = record.timestamp().to_millis().and_then(|ms| u64::try_from(ms).ok());
                    seen.note(due, written.unwrap_or(0), now_ms());
                }
            }
            seen
        })?;
        Ok(Self { stop, thread })
    }

    fn stop(self) -> Result<Seen, BenchError> {
        // A thread that is gone needs no word.
        let _ = self.stop.send(());
        let gone =
            |_| BenchError::Command { command: "reading `due`".to_owned(), reason: "it panicked".to_owned() };
        self.thread.join().map_err(gone)
    }
}

impl Seen {
    fn note(&mut self, due: u64, written: u64, read: u64) {
        self.early += u64::from(written < due);
        self.written.saturating_record(written.saturating_sub(due));
        self.read.saturating_record(read.saturating_sub(due));
    }
}

fn unusable(error: &hdrhistogram::CreationError) -> BenchError {
    BenchError::Command { command: "counting".to_owned(), reason: error.to_string() }
}

/// This machine's clock, which the server's is, too.
#[expect(
    clippy::disallowed_methods,
    reason = "lateness is by the clock of records, and nothing is decided by it"
)]
fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
