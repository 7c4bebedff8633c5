//! Reading outcomes into the open batch, and looking after the reader.

use super::{ACK_INTERVAL, FLUSH, Owner, Trouble};
use crate::reader::Polled;
use floodway_runtime::stall::Finding;
use rdkafka::Message;
use std::time::{Duration, Instant};

/// Records are read for this long at least while there are any, even when something else is to be done all the time.
const READ_AT_LEAST: Duration = Duration::from_millis(5);

/// Why a shard starts over whose next record is gone.
const OUT_OF_RANGE: &str = "its next offset left the log";

/// Why a shard starts over that reads nothing and cannot ask.
const BLIND: &str = "its reader finds no broker, and others do";

impl Owner<'_> {
    /// Reads records until the batch is full or something else is to be done.
    pub(super) fn ingest(&mut self) -> Result<(), Trouble> {
        let mut now = Instant::now();
        let wake = self.next_wake(now);
        let read_until = wake.max(now + READ_AT_LEAST);
        if self.left_log {
            return Err(Trouble::StartOver(OUT_OF_RANGE));
        }
        if !self.closed.is_empty() {
            // A batch waits for its dead letters, or for a partition: what else is due goes on meanwhile.
            self.stop.wait(wake.saturating_duration_since(now).min(ACK_INTERVAL));
            self.stall.not_asked(now);
            return Ok(());
        }
        let settings = &self.shared.settings;
        while !self.intake.open.is_full(settings.batch_rows, settings.batch_bytes) {
            let wait_until =
                self.intake.open.deadline(settings.linger).map_or(wake, |deadline| deadline.min(wake));
            match self.reader.poll(wait_until.saturating_duration_since(now)) {
                Polled::Nothing => {
                    self.caught_up = true;
                    return self.check_reader();
                }
                Polled::End => {
                    now = Instant::now();
                    self.caught_up = true;
                    self.stall.reached_end();
                    self.has_read_up_to(i64::MAX);
                }
                Polled::OutOfRange => return Err(Trouble::StartOver(OUT_OF_RANGE)),
                Polled::Record(record) => {
                    now = Instant::now();
                    self.caught_up = false;
                    let next = record.offset().saturating_add(1);
                    self.stall.read(record.offset());
                    self.intake.take(&self.shared.metrics, &record, now);
                    self.has_read_up_to(next);
                }
            }
            if now >= read_until || self.intake.open.deadline(FLUSH).is_some_and(|deadline| deadline <= now) {
                break;
            }
        }
        Ok(())
    }

    /// Lets retries fire that waited until all that is to be read again was read.
    pub(super) fn has_read_up_to(&mut self, next: i64) {
        if self.replayed_at.is_some_and(|replayed_at| next >= replayed_at) {
            self.replayed_at = None;
            self.fire_after = None;
        }
    }

    /// Fetches again when the reader yields nothing although the log goes on, and starts over when that does not help.
    fn check_reader(&mut self) -> Result<(), Trouble> {
        if !self.stall.is_due(Instant::now()) {
            return Ok(());
        }
        let end = self.reader.end().ok();
        match self.stall.look(end, Instant::now()) {
            Finding::ReadsOn => Ok(()),
            Finding::Stopped => {
                let from = self.stall.next();
                self.shared.metrics.reader_stalls.increment(1);
                let fetched = self.reader.start(from);
                tracing::warn!(shard = self.shard, from, ?fetched, "the reader had stopped: fetched again");
                Ok(())
            }
            Finding::StoppedForGood => {
                self.shared.metrics.reader_stalls.increment(1);
                Err(Trouble::StartOver("its reader stopped although the log goes on"))
            }
            Finding::Blind if self.reader.is_lost(&self.shared.witness, self.stall.blindness()) => {
                self.shared.metrics.reader_stalls.increment(1);
                Err(Trouble::StartOver(BLIND))
            }
            // The partition has no leader, or Kafka is away, or was a moment ago: what is in memory fires all the same.
            Finding::Blind => Ok(()),
        }
    }
}
