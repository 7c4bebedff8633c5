//! A start with very many retries in the table.

use super::{
    rows::fill,
    stage::{ROLE, Stage},
};
use crate::bench::{
    BenchError,
    figures::{Figure, Found, Goal, Unit},
    topics::Growth,
};
use std::time::{Duration, Instant};

/// Time until the role is ready, in microseconds.
const READY_GOAL: Goal = Goal::AtMost(10_000_000.0);
/// Time over which they are spread.
const SPREAD: Duration = Duration::from_secs(2 * 3600);
/// How long after its start the memory of the scheduler is looked at.
const AFTER_START: Duration = Duration::from_secs(10);
/// Longest wait for shards to be taken over, and for the first retry.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(50);

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
