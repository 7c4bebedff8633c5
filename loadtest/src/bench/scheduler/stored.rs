//! How many rows a second become of outcomes, beside a bare COPY, and with somebody's snapshot open.

use super::{
    outcomes::{OutcomesProducer, outcome},
    rows::{BATCH_ROWS, CopyBatch},
    scenario::Shape,
    stage::{ROLE, Session, Stage, costs},
    track::{Look, MEASURED, Track},
};
use crate::bench::{
    BenchError,
    figures::{Figure, Found, Goal, Unit, together},
};
use std::time::{Duration, Instant};

/// Name of the figure that a bare COPY and the scheduler share.
pub(super) const RATE: &str = "rows/s";
/// Rows of retries on one connection.
const RETRY_GOAL: Goal = Goal::AtLeast(100_000.0);
/// Rows of history on one connection.
const HISTORY_GOAL: Goal = Goal::AtLeast(200_000.0);
/// What a snapshot may cost, in per cent of the rate.
const SNAPSHOT_GOAL: Goal = Goal::AtMost(10.0);
/// Outcomes a second while a snapshot grows old, written in pieces at this pause, so that each makes a transaction.
const TRICKLE_PAUSE: Duration = Duration::from_millis(25);
const TRICKLE: u64 = 8;
/// Far beyond what is held in memory: only storing is measured.
const DELAY_MS: u64 = 3_600_000;

/// A bare COPY of rows of the scheduler's shape, in transactions of its size.
pub(super) async fn floor(stage: &mut Stage<'_>) -> Result<Found, BenchError> {
    let mut batch = CopyBatch::new(true);
    let mut runs = Vec::new();
    let mut first = 0;
    for _ in 0..stage.sizes.runs {
        let due = stage.now_micros().await? + i64::try_from(DELAY_MS * 1_000).unwrap_or(i64::MAX);
        let mut track = Track::default();
        let begun = first;
        while first - begun <= stage.sizes.floor_rows {
            track.0.push(stage.look(first - begun));
            batch.write(&stage.client, first, |_| (0, due)).await?;
            first += BATCH_ROWS as u64;
        }
        let window = track.window(MEASURED, stage.sizes.floor_rows);
        let window = window.ok_or_else(|| too_fast("copy-floor"))?;
        runs.push(vec![
            Figure::new(RATE, Unit::PerSecond, window.rate()),
            Figure::new("PostgreSQL's CPU-µs/row", Unit::CpuMicros, window.each(window.postgres_micros)),
        ]);
    }
    Ok(Found { figures: together(runs), ..Found::default() })
}

/// Outcomes in the log, stored by the scheduler.
pub(super) async fn measure(stage: &mut Stage<'_>, name: &str, shape: Shape) -> Result<Found, BenchError> {
    let goal = match shape {
        Shape::Retry => Some(RETRY_GOAL),
        Shape::History | Shape::Exchange => Some(HISTORY_GOAL),
        Shape::RetryAndHistory => None,
    };
    let mut runs = Vec::new();
    for _ in 0..stage.sizes.runs {
        let track = run(stage, name, shape).await?;
        let window = track.window(MEASURED, stage.sizes.outcomes).ok_or_else(|| too_fast(name))?;
        // One with two rows is told by its outcomes.
        let rate = if shape == Shape::RetryAndHistory { "outcomes/s" } else { RATE };
        let rate = Figure { goal, ..Figure::new(rate, Unit::PerSecond, window.rate()) };
        runs.push([vec![rate], costs(&track, &window)].concat());
    }
    Ok(Found { figures: together(runs), ..Found::default() })
}

/// The same rate before and while another session holds a snapshot.
pub(super) async fn snapshot(stage: &mut Stage<'_>, name: &str) -> Result<Found, BenchError> {
    let number = stage.sizes.outcomes;
    let rate = |track: &Track| track.window(MEASURED, number).map(|window| window.rate());
    // Once unmeasured: the first run meets files that have yet to grow.
    run(stage, name, Shape::Retry).await?;
    let before = rate(&run(stage, name, Shape::Retry).await?).ok_or_else(|| too_fast(name))?;

    let holder = Session::open(&stage.ground.database_url).await?;
    holder.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM retry_shard").await?;
    stage.installation.start_role(ROLE).await?;
    trickle(stage).await?;
    stage.installation.stop_role(ROLE).await;
    let during = rate(&run(stage, name, Shape::Retry).await?).ok_or_else(|| too_fast(name))?;
    let dead = dead_rows(stage).await?;
    drop(holder);
    let cost = (1.0 - during / before) * 100.0;
    let figures = vec![
        Figure::new("cost of the snapshot", Unit::Percent, cost.max(0.0)).goal(SNAPSHOT_GOAL),
        Figure::new("rows/s before it", Unit::PerSecond, before),
        Figure::new("rows/s during it", Unit::PerSecond, during),
        Figure::new("dead rows beside the shards' own", Unit::Count, dead.1).goal(Goal::AtMost(0.0)),
        Figure::new("dead rows of the shards' table", Unit::Count, dead.0),
    ];
    Ok(Found { figures, ..Found::default() })
}

/// Outcomes a few at a time, for as long as the snapshot grows old.
async fn trickle(stage: &mut Stage<'_>) -> Result<(), BenchError> {
    let producer = OutcomesProducer::new(&stage.bench.site.brokers, &stage.ground.prefix, stage.partitions)?;
    let until = Instant::now() + stage.sizes.snapshot;
    let now_ms = u64::try_from(stage.now_micros().await? / 1_000).unwrap_or(0);
    let mut number = u64::from(u32::MAX);
    while Instant::now() < until {
        for _ in 0..TRICKLE {
            producer.write(number, &outcome(Shape::Retry, number, now_ms, now_ms + DELAY_MS))?;
            number += 1;
        }
        stage.live.update(format!("a snapshot grows old: {} s left", (until - Instant::now()).as_secs()));
        stage.installation.check().await?;
        tokio::time::sleep(TRICKLE_PAUSE).await;
    }
    producer.flush()
}

/// Dead rows of the shards' table, and of all others.
async fn dead_rows(stage: &Stage<'_>) -> Result<(f64, f64), BenchError> {
    let sql = "SELECT coalesce(sum(n_dead_tup) FILTER (WHERE relname = 'retry_shard'), 0)::float8, \
               coalesce(sum(n_dead_tup) FILTER (WHERE relname <> 'retry_shard'), 0)::float8 FROM pg_stat_user_tables";
    let row = stage.client.query_one(sql, &[]).await?;
    Ok((row.get(0), row.get(1)))
}

/// Fills the log, starts the scheduler, and stops it when everything is stored.
async fn run(stage: &mut Stage<'_>, name: &str, shape: Shape) -> Result<Track, BenchError> {
    let before = stage.stored().await?;
    let now_ms = u64::try_from(stage.now_micros().await? / 1_000).unwrap_or(0);
    let make = move |number| outcome(shape, number, now_ms, now_ms + DELAY_MS);
    let number = stage.sizes.outcomes;
    stage.produce(before, number, make).await?;
    // Everything that lies in the log counts, also what a trickle left.
    let track = stage
        .run_until(name, number, async |stage: &Stage<'_>| Ok(stage.stored().await?.saturating_sub(before)))
        .await?;
    stage.installation.stop_role(ROLE).await;
    let began = track.0.first().map_or(0, |look: &Look| look.done);
    debug_assert!(began < number, "it had not begun");
    Ok(track)
}

fn too_fast(name: &str) -> BenchError {
    BenchError::Command { command: name.to_owned(), reason: "it was over before it could be seen".to_owned() }
}
