//! Commands to pending retries, in a shard's rounds: what is told cancelled, and what comes before its time.
//!
//! What a `now` brings back goes into the same batch on `due` as what is due, after it. A row that memory knows is withdrawn from it;
//! one beyond is read from the table, and when its time comes its mark says that it is gone. How far a mark is, and the history of what
//! was cancelled, are stored with the cursor, in one transaction: after a crash both are done again or neither.

use super::{
    Owner, Trouble,
    early::{Early, Recalled, Settled},
    horizon::{PAGE_BYTES, PLACE_INTERVAL},
};
use crate::{
    admission::{Admission, PassedOver},
    batch::Batch,
    dependency::Reporter,
    marks::{Marks, Verdict},
    recalls::Share,
    shared::call,
    subject::{CANCELLED, Subject},
};
use floodway_schemas::retry_command::RetryAction;
use floodway_store::{
    DbInstant,
    deliveries::{CountDelta, NewDelivery},
    retry::{self, PendingRetry, Position, WriteError},
    retry_marks::{self, Mark},
};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};
use uuid::Uuid;

/// Pending retries that are looked through between two other things.
const SEEK_ROWS: i64 = 10_000;

/// How often what may be recalled is looked at.
pub(super) const RECALL_INTERVAL: Duration = Duration::from_millis(20);

/// Cancelled retries whose history waits to be stored. Beyond it the cursor moves at once, and all of it is stored whether the cursor
/// passes it or not: a crash could tell it twice.
const MAX_CANCELLED: usize = 5_000;

/// Longest deferral of a subscription whose deliveries were just asked for.
const RESUMED_DEFERRAL: Duration = Duration::from_secs(15);

/// A retry that was cancelled, until its history is stored.
pub(super) struct Cancelled {
    position: Position,
    events: i64,
    row: NewDelivery,
}

impl Owner<'_> {
    // ---- Storing commands

    /// Cuts the deferrals of subscriptions that were just resumed: who wrote them had not heard of it.
    pub(super) fn shorten_deferrals(batch: &mut Batch, marks: &Marks, now: DbInstant, new: &[Mark]) {
        for entry in &mut batch.entries {
            if let Some(later) = &mut entry.retry
                && entry.count.kind == "deferred"
                && later.delay > RESUMED_DEFERRAL
                && marks.is_resumed(entry.count.subscription, now, new)
            {
                later.delay = RESUMED_DEFERRAL;
            }
        }
    }

    /// The commands of a batch are stored.
    pub(super) fn commands_are_stored(&mut self, admission: Admission) {
        let Admission { marks, passed_over } = admission;
        self.tell_passed_over(&passed_over);
        for mark in marks {
            self.shared.metrics.command(mark.action);
            tracing::info!(
                shard = self.shard,
                id = mark.id,
                first_id = mark.first_id,
                command = %mark.command,
                action = mark.action.as_str(),
                "a command to pending retries"
            );
            if mark.action == RetryAction::Now {
                self.recalls.begin(mark.tenant, mark.id);
            }
            self.marks.add(mark);
        }
    }

    /// One line for each reason: commands may come by the thousand.
    fn tell_passed_over(&self, passed_over: &[(Uuid, PassedOver)]) {
        for reason in PassedOver::ALL {
            let mut tenants = passed_over.iter().filter(|(_, why)| *why == reason).map(|(tenant, _)| *tenant);
            let Some(tenant) = tenants.next() else { continue };
            let n = 1 + tenants.count();
            self.shared.metrics.commands_passed_over(reason, n as u64);
            tracing::warn!(
                shard = self.shard,
                %tenant,
                n,
                reason = reason.as_str(),
                "{n} commands to pending retries passed over, the first of them tenant {tenant}'s: {}",
                reason.told()
            );
        }
    }

    // ---- Recalling

    /// Looks through some pending retries for what is to come before its time.
    pub(super) fn seek(&mut self) -> Result<(), Trouble> {
        if self.seek_after.is_some_and(|after| after > Instant::now()) {
            return Ok(());
        }
        let Some(after) = self.recalls.seek_after(self.pending.cursor()) else { return Ok(()) };
        let (shared, shard) = (self.shared, self.shard);
        let Ok(place) = shared.pages.try_acquire() else {
            self.seek_after = Some(Instant::now() + PLACE_INTERVAL);
            return Ok(());
        };
        let page = call(shared, async {
            let client = shared.pool.get().await?;
            retry_marks::candidates(&client, shard, after, SEEK_ROWS).await
        })?;
        drop(place);
        // The place is free for as long as others take to look for one: a walk has many pages.
        self.seek_after = Some(Instant::now() + PLACE_INTERVAL);
        let is_last = i64::try_from(page.len()).unwrap_or(i64::MAX) < SEEK_ROWS;
        for mark in self.recalls.saw(&self.marks, &page, is_last) {
            self.recall_ended(mark);
        }
        Ok(())
    }

    /// Reads what may come before its time now.
    pub(super) fn recall(&mut self) -> Result<(), Trouble> {
        if self.recalled.is_some() || self.firing.is_some() {
            return Ok(());
        }
        let Some(share) = self.recalls.take(Instant::now()) else { return Ok(()) };
        let loaded = self.pending.loaded();
        let beyond: Vec<Position> = share.places.iter().copied().filter(|place| *place > loaded).collect();
        match self.read_places(&beyond) {
            Ok(Some(rows)) => {
                let Share { recall, places, .. } = share;
                self.recalled = Some(Recalled::new(recall, places, &beyond, rows));
                Ok(())
            }
            Ok(None) => {
                self.recalls.not_now(share);
                Ok(())
            }
            Err(error) => {
                self.recalls.not_now(share);
                Err(error.into())
            }
        }
    }

    /// The rows at these places that the table has; `None` while others of this process read.
    fn read_places(&self, places: &[Position]) -> Result<Option<Vec<PendingRetry>>, floodway_store::Error> {
        let (shared, shard) = (self.shared, self.shard);
        if places.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let Ok(_place) = shared.pages.try_acquire() else { return Ok(None) };
        call(shared, async {
            let client = shared.pool.get().await?;
            retry_marks::at_places(&client, shard, places, PAGE_BYTES).await.map(Some)
        })
    }

    /// Adds what was recalled to a batch for `due`.
    pub(super) fn add_recalled(&mut self, batch: &mut Vec<PendingRetry>) -> Option<Early> {
        let recalled = self.recalled.take()?;
        let now = self.clock.now(Instant::now());
        let cancelled = &mut self.cancelled;
        Some(recalled.join(batch, &mut self.pending, &self.marks, |row, subject, command| {
            cancelled.push(Self::cancelled(row, subject, command, now));
        }))
    }

    /// So many of what was recalled were acknowledged. `is_stuck` if another one is too large, now and later: then its command ends here, for
    /// its progress must not pass it, and what it still covers comes at its own time. A new owner tries it again.
    pub(super) fn settle_early(&mut self, settled: Settled, acknowledged: usize, is_stuck: bool) {
        let Settled { recall, done, beyond, again } = settled;
        let mark = recall.mark;
        self.marks.advance(mark, done);
        self.marks.settled_beyond(mark, beyond);
        self.shared.metrics.recalled.increment(acknowledged as u64);
        // Its progress is to be stored soon.
        self.acknowledged = true;
        if is_stuck {
            tracing::error!(
                shard = self.shard,
                id = mark,
                done,
                "a command ends early: a retry that it covers is too large for the topic of due records"
            );
            self.recalls.gave_up(recall);
        } else if self.recalls.back(recall, again) {
            self.recall_ended(mark);
        }
    }

    fn recall_ended(&mut self, mark: i64) {
        self.marks.advance(mark, mark);
        self.acknowledged = true;
        tracing::info!(shard = self.shard, id = mark, "every retry that the command covers was recalled");
    }

    // ---- Cancelling

    /// Leaves out rows that are due and were cancelled, or settled before their time.
    pub(super) fn unless_marked(&mut self, rows: &mut Vec<PendingRetry>) {
        let now = self.clock.now(Instant::now());
        let (marks, cancelled) = (&self.marks, &mut self.cancelled);
        let before = rows.len();
        rows.retain(|row| match marks.verdict(row) {
            Verdict::Fires => true,
            Verdict::Gone => false,
            Verdict::Cancelled(command) => match Subject::of(&row.record) {
                Some(subject) => {
                    cancelled.push(Self::cancelled(row, subject, command, now));
                    false
                }
                None => true,
            },
        });
        self.acknowledged |= rows.len() < before;
    }

    fn cancelled(row: &PendingRetry, subject: Subject<'_>, command: Uuid, at: DbInstant) -> Cancelled {
        let (position, events) = (row.position, subject.events());
        Cancelled { position, events, row: subject.cancelled(row, at, command) }
    }

    /// Whether so much history waits that the cursor is to move at once.
    pub(super) fn has_much_to_tell(&self) -> bool {
        self.cancelled.len() >= MAX_CANCELLED
    }

    /// Moves the cursor together with what commands left to be stored; `None` when there is nothing of that kind.
    pub(super) fn store_marked(&mut self, cursor: Position) -> Option<Result<DbInstant, Trouble>> {
        let progress = self.marks.unsaved();
        let told: Vec<usize> =
            (0..self.cancelled.len()).filter(|&index| self.is_told(index, cursor)).collect();
        if progress.is_empty() && told.is_empty() {
            return None;
        }
        let mut commit_sent = false;
        let result = self.store_progress(cursor, &progress, &told, &mut commit_sent);
        if let Err(WriteError::Store(error)) = &result {
            self.may_be_told = commit_sent && error.is_unavailable() && !told.is_empty();
        }
        if result.is_ok() {
            self.marks.saved();
            self.forget_told(&told);
        }
        Some(match result {
            Ok(db_now) => Ok(db_now),
            Err(WriteError::Fenced) => Err(Trouble::Fenced),
            Err(WriteError::Store(error)) => Err(Trouble::Database(error)),
            Err(WriteError::MissingPartition) => {
                self.shared.partitions_wanted.notify_one();
                let text = "a partition for history is missing".to_owned();
                Err(Trouble::Database(floodway_store::Error::Unavailable(text)))
            }
            Err(WriteError::Refused(reason)) => {
                // Better without their history than not at all.
                tracing::error!(
                    shard = self.shard,
                    n = told.len(),
                    reason,
                    "history of cancelled retries is refused"
                );
                self.shared.database_health.up(Reporter::Shard(self.shard));
                self.forget_told(&told);
                Err(Trouble::Database(floodway_store::Error::Other(reason)))
            }
        })
    }

    /// Whether a cancelled retry's history goes with this cursor: the cursor passes it, or the progress of any mark, after which nobody
    /// would come to it again.
    fn is_told(&self, index: usize, cursor: Position) -> bool {
        let Cancelled { position, row, .. } = &self.cancelled[index];
        *position <= cursor
            || self.has_much_to_tell()
            || self.marks.is_done(position.id, row.tenant, row.subscription, &row.event_id)
    }

    fn forget_told(&mut self, told: &[usize]) {
        self.shared.metrics.cancelled.increment(told.len() as u64);
        let mut index = 0;
        self.cancelled.retain(|_| {
            index += 1;
            told.binary_search(&(index - 1)).is_err()
        });
    }

    fn store_progress(
        &self,
        cursor: Position,
        progress: &[Mark],
        told: &[usize],
        commit_sent: &mut bool,
    ) -> Result<DbInstant, WriteError> {
        let (shared, shard, epoch) = (self.shared, self.shard, self.epoch);
        let next_offset = self.stored_offset();
        let told: Vec<&Cancelled> = told.iter().map(|&index| &self.cancelled[index]).collect();
        let deliveries: Vec<&NewDelivery> = told.iter().map(|cancelled| &cancelled.row).collect();
        let counts = counts(&told);
        call(shared, async {
            let mut client = shared.pool.get().await?;
            let transaction = retry::begin_move(&mut client, shard, epoch, next_offset, cursor).await?;
            let db_now = transaction.db_now;
            transaction.add_marks(shard, &progress.iter().collect::<Vec<_>>()).await?;
            transaction.add_deliveries(shard, &deliveries).await?;
            transaction.add_counts(&counts.iter().collect::<Vec<_>>()).await?;
            *commit_sent = true;
            transaction.commit().await?;
            Ok(db_now)
        })
    }

    /// The database has this cursor: what it passed was told with it, though the answer was lost.
    pub(super) fn cursor_was_stored(&mut self, cursor: Position) {
        self.cancelled.retain(|cancelled| cancelled.position > cursor);
    }
}

fn counts(told: &[&Cancelled]) -> Vec<CountDelta> {
    let mut counts: BTreeMap<(Uuid, Uuid), i64> = BTreeMap::new();
    for cancelled in told {
        *counts.entry((cancelled.row.tenant, cancelled.row.subscription)).or_default() += cancelled.events;
    }
    let delta = |((tenant, subscription), n)| CountDelta { tenant, subscription, kind: CANCELLED, n };
    counts.into_iter().map(delta).collect()
}
