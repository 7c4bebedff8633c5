//! A backlog of retries that are all due: from the table to `due`.

use super::{
    rows::{BATCH_ROWS, fill},
    stage::{Stage, costs},
    track::MEASURED,
};
use crate::bench::{
    BenchError,
    figures::{Figure, Found, Goal, Unit},
    topics::Growth,
};
use std::time::Instant;

/// Rows a second from the table to `due`.
const DUE_GOAL: Goal = Goal::AtLeast(200_000.0);

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
               AND due_at < to_timestamp($1::float8) + interval '1 minute' ORDER BY due_at, id LIMIT 5000";
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
