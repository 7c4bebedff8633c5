//! Becoming the owner of a shard, and finding the place in the log to go on from.
//!
//! The epoch is raised first: from then on no earlier owner can write, so what is read afterwards holds. That goes for the
//! log's bounds too: read before, its end could lie before what an earlier owner read and stored meanwhile. The offset
//! in the shard's row is the source of truth. If the log no longer has it, outcomes were lost before they were read, or the
//! topic was made anew or cut short; both are said loudly (log, metric, health) and the shard goes on:
//!
//! - before the log's start: from its start; what lies between is lost.
//! - beyond the log's end: from the first record that is as new as the last batch, less a margin for clocks. For a topic
//!   made anew that is all of it, for one cut short by an unclean election it is its last minutes, of which nobody can tell which were
//!   handled before. Its outcomes get ids of their own, for offsets come again, and those of a second time are delivered again.
//!
//! A command among them may be one of a second time, too, also if its mark has expired. With its new id it would cover what was stored
//! *after* it the first time: a cancellation would lose that. So commands that are as old as the last batch, more or less that margin, and
//! in the log at this time, cover no ids but those that are given from now on: what is read again with them. What was stored before
//! has heeded them the first time. Where the topic was made anew that soon, a command given between that and the takeover is taken for one of
//! these: it may be given again.

use crate::{
    metrics::Loss,
    reader::Reader,
    shared::{Shared, call},
};
use floodway_schemas::UnixMillis;
use floodway_store::{
    DbInstant,
    retry::{self, Shard},
    retry_marks::{self, Mark},
};
use rdkafka::error::KafkaError;
use std::time::{Duration, Instant};
use thiserror::Error;

/// How far a record's time may be off the database's, when the place is looked up by time.
const TIME_MARGIN: Duration = Duration::from_secs(15 * 60);

/// How often the log's end is asked for before the log counts as made anew: a new leader may not know the end at once.
const BOUNDS_ASKED: u32 = 6;
/// Pause between two such questions.
const BOUNDS_PAUSE: Duration = Duration::from_millis(500);

/// A shard that was taken over.
pub(crate) struct TakenOver {
    /// Its row.
    pub(crate) row: Shard,
    /// What commands to its pending retries left.
    pub(crate) marks: Vec<Mark>,
    /// When the row's clock was received.
    pub(crate) at: Instant,
    /// When the statement that proved the ownership was sent.
    pub(crate) fenced_at: Instant,
    /// Started a little before the row's next offset, to recognise repeats.
    pub(crate) reader: Reader,
    /// Whether there is anything before it to be read.
    pub(crate) replays: bool,
}

/// What a takeover waits for.
#[derive(Debug, Error)]
pub(crate) enum Obstacle {
    #[error("{0}")]
    Kafka(#[from] KafkaError),
    #[error("{0}")]
    Database(#[from] floodway_store::Error),
    #[error("another process took over at the same time")]
    Fenced,
}

/// One try.
pub(crate) fn take_over(shared: &Shared, shard: i32) -> Result<TakenOver, Obstacle> {
    let reader = Reader::new(&shared.kafka, shard)?;
    // Only the very first owner of a shard starts here.
    let (first_offset, _) = reader.bounds()?;
    let fenced_at = Instant::now();
    let mut row = call(shared, async {
        let client = shared.pool.get().await?;
        // One that hangs while it stores a batch would hold the shard's row for as long as it hangs.
        let ended = retry::end_hung_batches(&client).await?;
        if ended > 0 {
            tracing::warn!(shard, ended, "ended {ended} sessions that hang in the middle of storing a batch");
        }
        retry::take_over(&client, shard, &shared.owner, first_offset).await
    })?;
    let at = Instant::now();
    let bounds = bounds(&reader, row.next_offset)?;
    if let Some(Misplaced { loss, place, read_again_to }) = misplaced(&reader, bounds, &row)? {
        report(shared, shard, loss, bounds, &row, place);
        let moved = call(shared, async {
            let client = shared.pool.get().await?;
            retry::skip_to(&client, shard, row.epoch, row.next_offset, place, read_again_to).await
        })?;
        row.first_id = moved.ok_or(Obstacle::Fenced)?;
        (row.next_offset, row.read_again_to) = (place, read_again_to);
    } else {
        shared.outcomes_log.up(crate::dependency::Reporter::Shard(shard));
    }
    let cursor = row.cursor;
    let marks = call(shared, async {
        let client = shared.pool.get().await?;
        retry_marks::marks(&client, shard, cursor).await
    })?;
    let start = replay_from(shared, shard, &reader, bounds, &row)?;
    reader.start(start)?;
    Ok(TakenOver { row, marks, at, fenced_at, reader, replays: start < row.next_offset })
}

/// The first offset of the log, and one more than its last. Asks again when that speaks against what was read before.
fn bounds(reader: &Reader, next_offset: i64) -> Result<(i64, i64), KafkaError> {
    let mut bounds = reader.bounds()?;
    for _ in 1..BOUNDS_ASKED {
        if next_offset <= bounds.1 {
            break;
        }
        std::thread::sleep(BOUNDS_PAUSE);
        bounds = reader.bounds()?;
    }
    Ok(bounds)
}

/// The log does not have a shard's next offset.
struct Misplaced {
    loss: Loss,
    /// Where to go on.
    place: i64,
    /// Up to where it may have been read before.
    read_again_to: i64,
}

fn misplaced(reader: &Reader, (low, high): (i64, i64), row: &Shard) -> Result<Option<Misplaced>, KafkaError> {
    if row.next_offset < low {
        let read_again_to = row.read_again_to;
        return Ok(Some(Misplaced { loss: Loss::Retention, place: low, read_again_to }));
    }
    if row.next_offset > high {
        let at = |time: DbInstant| Ok::<_, KafkaError>(reader.offset_at(time.to_millis())?.unwrap_or(high));
        let place = at(row.batched_at.minus(TIME_MARGIN))?.clamp(low, high);
        let read_again_to = at(row.batched_at.plus(TIME_MARGIN))?.clamp(place, high);
        return Ok(Some(Misplaced { loss: Loss::CutShort, place, read_again_to }));
    }
    Ok(None)
}

/// Where to start reading so that the set of repeats knows what came before the row's next offset.
fn replay_from(
    shared: &Shared,
    shard: i32,
    reader: &Reader,
    (low, high): (i64, i64),
    row: &Shard,
) -> Result<i64, KafkaError> {
    if row.next_offset == low {
        return Ok(low);
    }
    let now = row.db_now.to_millis();
    // A shard that is behind has a window that ends where it reads on, not now.
    let behind = if row.next_offset < high {
        Reader::new(&shared.kafka, shard)?.time_at(row.next_offset)?
    } else {
        None
    };
    let window = i64::try_from(shared.settings.repeats_window.as_millis()).unwrap_or(i64::MAX);
    let window_start = behind.map_or(now.0, |time| time.0.min(now.0)).saturating_sub(window);
    let by_time = reader.offset_at(UnixMillis(window_start))?.unwrap_or(row.next_offset);
    let by_number =
        row.next_offset.saturating_sub(i64::try_from(shared.settings.repeats).unwrap_or(i64::MAX));
    Ok(by_time.max(by_number).clamp(low, row.next_offset))
}

fn report(shared: &Shared, shard: i32, loss: Loss, (low, high): (i64, i64), row: &Shard, place: i64) {
    shared.metrics.log_lost(loss);
    let next = row.next_offset;
    let reason = match loss {
        Loss::Retention => {
            format!("shard {shard}: the log starts at {low}, offsets from {next} on were lost unread")
        }
        _ => format!(
            "shard {shard}: the log ends at {high}, before the next offset {next}: made anew or cut short"
        ),
    };
    tracing::error!(shard, next_offset = next, low, high, place, "{reason}; going on from {place}");
    shared.outcomes_log.down(crate::dependency::Reporter::Shard(shard), reason);
}
