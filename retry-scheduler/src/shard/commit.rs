//! Storing a batch: its dead letters on their topic first, then one transaction for the position and every row.

use super::{FLUSH, LONGEST_WAIT, Owner, RETRY_LONGEST, Trouble};
use crate::{
    admission,
    ahead::{Ahead, Seen, while_reading},
    batch::{self, Batch, Letters},
    clamp::DbClock,
    read::Poison,
    shared::{call, lock},
};
use floodway_store::retry::{self, PendingRetry, WriteError};
use std::time::Instant;

impl Owner<'_> {
    /// Whether the open batch is to be stored: it is full, or it lingered and no more is there to be read, or it is old.
    fn is_ready(&self, now: Instant) -> bool {
        let settings = &self.shared.settings;
        let is_older = |age| self.intake.open.deadline(age).is_some_and(|deadline| deadline <= now);
        self.intake.open.is_full(settings.batch_rows, settings.batch_bytes)
            || (self.caught_up && is_older(settings.linger))
            || is_older(FLUSH)
    }

    /// Stores what is ready to be stored.
    pub(super) fn commit(&mut self) -> Result<(), Trouble> {
        let now = Instant::now();
        if self.closed.is_empty() && self.is_ready(now) {
            let next = Batch::new(self.intake.open.to);
            self.intake.log_poison();
            self.closed.push_back(std::mem::replace(&mut self.intake.open, next));
        }
        while self.commit_after.is_none_or(|after| after <= now) && self.publish_letters(now) {
            self.commit_after = None;
            self.finish_page()?;
            match self.store_first() {
                Ok(()) => self.first_is_stored(),
                Err(WriteError::MissingPartition) => self.wait_for_partition(now),
                Err(WriteError::Refused(reason)) => self.split_first(&reason),
                Err(WriteError::Store(error)) => return Err(Trouble::Database(error)),
                Err(WriteError::Fenced) => return Err(Trouble::Fenced),
            }
        }
        Ok(())
    }

    /// Brings the dead letters of the first closed batch onto their topic. Whether there is a batch and all are there.
    fn publish_letters(&mut self, now: Instant) -> bool {
        let Some(first) = self.closed.front_mut() else { return false };
        if let Letters::Unsent(after) = first.letters {
            let letters = first.letters();
            if letters.is_empty() {
                first.letters = Letters::Done;
            } else if after.is_none_or(|after| after <= now) {
                let records = letters.iter().map(|letter| (letter.key.as_str(), letter.record.as_slice()));
                let acks = self.shared.publisher.dead_letters(records);
                first.letters = Letters::Sent(acks);
            }
        }
        if let Letters::Sent(acks) = &first.letters
            && let Some(failed) = acks.result()
        {
            // A letter that the topic will never take must not hold up the shard: the table has it.
            let (lost, failed): (Vec<_>, Vec<_>) = failed.into_iter().partition(|failed| failed.too_large);
            if !lost.is_empty() {
                self.shared.metrics.letters_unpublished.increment(lost.len() as u64);
                tracing::error!(
                    shard = self.shard,
                    n = lost.len(),
                    "dead letters are too large for their topic"
                );
            }
            // Those that were acknowledged come again with the others: equal ids are repeats.
            first.letters =
                if failed.is_empty() { Letters::Done } else { Letters::Unsent(Some(now + RETRY_LONGEST)) };
        }
        matches!(first.letters, Letters::Done)
    }

    /// One transaction: the position and every row of the first closed batch.
    fn store_first(&mut self) -> Result<(), WriteError> {
        let Some(first) = self.closed.front_mut() else { return Ok(()) };
        let (shared, shard, epoch) = (self.shared, self.shard, self.epoch);
        let (clock, commit_sent, floor) = (&mut self.clock, &mut self.commit_sent, self.pending.floor());
        // A shard that has caught up has nothing to read meanwhile.
        let ahead = (!self.caught_up).then_some(Ahead {
            shared,
            reader: &self.reader,
            intake: &mut self.intake,
            stall: &mut self.stall,
        });
        let marks = &self.marks;
        let sent_at = Instant::now();
        let store = || {
            call(shared, async {
                let mut client = shared.pool.get().await?;
                let transaction = retry::begin(&mut client, shard, epoch, first.from, first.to).await?;
                *clock = DbClock::new(transaction.db_now, Instant::now());
                let floor = floor.max(transaction.cursor);
                let mut admission = admission::admit(&first.commands, marks, transaction.db_now);
                let new = &mut admission.marks;
                Self::shorten_deferrals(first, marks, transaction.db_now, new);
                batch::place(&mut first.entries, transaction.db_now, floor, shared.settings.limits());
                let rows = batch::rows(&first.entries);
                transaction.add_retries(shard, &rows.retries).await?;
                transaction.add_deliveries(shard, &rows.deliveries).await?;
                transaction.add_dead_letters(shard, &rows.dead_letters).await?;
                transaction.add_counts(&rows.counts.iter().collect::<Vec<_>>()).await?;
                if !new.is_empty() {
                    let last_due = transaction.last_due(shard).await?;
                    new.iter_mut()
                        .for_each(|mark| mark.until = last_due.map_or(mark.until, |due| due.max(mark.until)));
                    transaction.add_marks(shard, &new.iter().collect::<Vec<_>>()).await?;
                }
                first.admission = admission;
                *commit_sent = true;
                transaction.commit().await
            })
        };
        let (stored, seen) = while_reading(ahead, store);
        self.note(seen);
        stored?;
        self.fenced_at = sent_at;
        shared.metrics.transaction_seconds.record(sent_at.elapsed());
        Ok(())
    }

    /// What reading ahead found.
    fn note(&mut self, seen: Seen) {
        match seen {
            Seen::NotAsked => {}
            Seen::OutOfRange => self.left_log = true,
            Seen::UpTo { next, caught_up } => {
                self.caught_up = caught_up;
                self.has_read_up_to(next);
            }
        }
    }

    /// The first closed batch is in the database: what is due soon goes into memory.
    pub(super) fn first_is_stored(&mut self) {
        self.commit_sent = false;
        let Some(first) = self.closed.pop_front() else { return };
        self.shared.metrics.batch_rows.record(first.entries.len() as f64);
        lock(&self.shared.positions).insert(self.shard, first.to);
        for entry in first.entries {
            self.shared.metrics.outcomes(entry.count.kind, 1);
            if let Some(letter) = &entry.letter {
                self.shared.metrics.dead_letter(letter.row.reason);
            }
            if let Some(later) = entry.retry {
                let row = later.row;
                let position = row.position;
                let pending = || PendingRetry { position, record_key: row.record_key, record: row.record };
                self.pending.stored(pending, position);
            }
        }
        self.commands_are_stored(first.admission);
    }

    fn wait_for_partition(&mut self, now: Instant) {
        self.commit_sent = false;
        self.shared.metrics.partitions_missing.increment(1);
        tracing::warn!(shard = self.shard, "a partition is missing, the batch waits for it");
        self.shared.partitions_wanted.notify_one();
        self.commit_after = Some(now + LONGEST_WAIT);
    }

    /// The database refuses a row: halves the batch until its record is alone. A command is passed over; of an outcome the history is
    /// left out, and it is passed over if it is refused even so. Then a lease that it ended is open again: the delivery is made once more.
    fn split_first(&mut self, reason: &str) {
        self.commit_sent = false;
        let Some(first) = self.closed.pop_front() else { return };
        match first.split() {
            Ok((one, other)) => {
                self.closed.push_front(other);
                self.closed.push_front(one);
            }
            Err(mut single) => {
                let (shard, offset) = (self.shard, single.from);
                self.shared.metrics.poison(Poison::Refused);
                if single.leave_out_history() {
                    tracing::error!(shard, offset, reason, "history of an outcome left out: {reason}");
                } else if single.leave_out_commands() {
                    tracing::error!(
                        shard,
                        offset,
                        reason,
                        "command to pending retries passed over: {reason}"
                    );
                } else {
                    tracing::error!(shard, offset, reason, "outcome passed over: {reason}");
                    let voided = single.entries.drain(..).filter_map(|entry| entry.voids);
                    for delivery in voided {
                        self.intake.leases.reopen(delivery);
                    }
                }
                self.closed.push_front(*single);
            }
        }
    }
}
