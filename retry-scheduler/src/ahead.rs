//! Reading ahead: while a batch is being stored, the next one is read and decoded.
//!
//! A shard does one thing at a time (see [`crate::shard`]), and storing keeps that promise: nothing is produced, no cursor
//! moves and no page is read meanwhile. Only the next batch is filled, which nothing of that looks at. It takes a thread for
//! as long as the transaction lasts, because the client of Kafka blocks; a shard that has caught up does without.

use crate::{
    intake::Intake,
    reader::{Polled, Reader},
    shared::Shared,
};
use floodway_runtime::stall::StallWatch;
use rdkafka::Message;
use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// Longest wait for a record, and so for the end of reading once the batch is stored.
const PAUSE: Duration = Duration::from_millis(1);

/// What reading ahead works with.
pub(crate) struct Ahead<'o> {
    pub(crate) shared: &'o Shared,
    pub(crate) reader: &'o Reader,
    pub(crate) intake: &'o mut Intake,
    pub(crate) stall: &'o mut StallWatch,
}

/// How reading ahead ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Nobody read.
    NotAsked,
    /// All before this offset was read; `i64::MAX` at the end of the log.
    UpTo {
        /// The offset.
        next: i64,
        /// Whether the log had nothing more for now.
        caught_up: bool,
    },
    /// The next offset is no longer in the log, which the client says once.
    OutOfRange,
}

/// Does the work, and reads ahead until it is done or the batch is full.
pub(crate) fn while_reading<T>(ahead: Option<Ahead<'_>>, work: impl FnOnce() -> T) -> (T, Seen) {
    let Some(ahead) = ahead else { return (work(), Seen::NotAsked) };
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let reading = thread::Builder::new()
            .name("retry-ahead".to_owned())
            // Without a thread the work is done all the same.
            .spawn_scoped(scope, || ahead.read_until(&done))
            .ok();
        let result = work();
        // Relaxed: the flag stands for itself, and the thread is joined.
        done.store(true, Ordering::Relaxed);
        // One that panicked has said so, and may have left out a record: that reads as a place that is lost.
        let seen = reading.map_or(Seen::NotAsked, |thread| thread.join().unwrap_or(Seen::OutOfRange));
        (result, seen)
    })
}

impl Ahead<'_> {
    fn read_until(self, done: &AtomicBool) -> Seen {
        let settings = &self.shared.settings;
        let (mut next, mut caught_up) = (i64::MIN, false);
        while !done.load(Ordering::Relaxed)
            && !self.intake.open.is_full(settings.batch_rows, settings.batch_bytes)
        {
            match self.reader.poll(PAUSE) {
                Polled::Nothing => caught_up = true,
                Polled::End => {
                    (next, caught_up) = (i64::MAX, true);
                    self.stall.reached_end();
                }
                Polled::OutOfRange => return Seen::OutOfRange,
                Polled::Record(record) => {
                    (next, caught_up) = (next.max(record.offset().saturating_add(1)), false);
                    self.stall.read(record.offset());
                    self.intake.take(&self.shared.metrics, &record, Instant::now());
                }
            }
        }
        Seen::UpTo { next, caught_up }
    }
}
