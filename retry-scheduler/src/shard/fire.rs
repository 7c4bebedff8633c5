//! Producing what is due, and settling what was acknowledged.

use super::{Owner, RETRY_FIRST, Trouble, early::Early};
use crate::{batch::Letters, publish::Acks};
use floodway_store::retry::PendingRetry;
use std::{collections::HashMap, sync::Arc, time::Instant};

/// Why a shard starts over that waits for the producer in vain.
const UNANSWERED: &str = "the producer does not say what became of its records";

/// Retries that were produced and not all acknowledged yet.
pub(super) struct Firing {
    rows: Vec<PendingRetry>,
    acks: Arc<Acks>,
    /// The last part of the rows, which came before its time.
    early: Option<Early>,
}

impl Owner<'_> {
    /// Produces what is due.
    pub(super) fn fire(&mut self) -> Result<(), Trouble> {
        let now = Instant::now();
        let is_due = self.pending.next_due().is_some_and(|due| due <= self.clock.now(now));
        let is_wanted = is_due || self.recalled.is_some();
        if !is_wanted || self.firing.is_some() || self.fire_after.is_some_and(|after| after > now) {
            return Ok(());
        }
        let settings = &self.shared.settings;
        if now.saturating_duration_since(self.fenced_at) >= settings.fence_age {
            self.store_cursor()?;
        }
        let rows = self.pending.take_due(self.clock.now(now), settings.fire_rows, settings.fire_bytes);
        let mut rows = self.unless_void(rows);
        self.unless_marked(&mut rows);
        let early = self.add_recalled(&mut rows);
        let acks = self.shared.publisher.due(self.shard, &rows);
        self.firing = Some(Firing { rows, acks, early });
        Ok(())
    }

    /// Leaves out the leases of deliveries whose own outcome came: they count as acknowledged.
    fn unless_void(&mut self, mut rows: Vec<PendingRetry>) -> Vec<PendingRetry> {
        let (leases, metrics) = (&mut self.intake.leases, &self.shared.metrics);
        let before = rows.len();
        rows.retain(|row| match leases.fire(row.position.id) {
            None => true,
            Some(fires) => {
                metrics.lease(fires);
                fires
            }
        });
        self.acknowledged |= rows.len() < before;
        rows
    }

    /// Starts over when the producer never answers: what it was given is produced again, and a repeat is told by its key.
    pub(super) fn check_producer(&self) -> Result<(), Trouble> {
        let now = Instant::now();
        let letters = self.closed.front().and_then(|batch| match &batch.letters {
            Letters::Sent(acks) => Some(acks),
            _ => None,
        });
        let mut waiting = self.firing.iter().map(|firing| &firing.acks).chain(letters);
        if waiting.any(|acks| acks.is_overdue(now)) { Err(Trouble::StartOver(UNANSWERED)) } else { Ok(()) }
    }

    /// Looks at what became of the rows produced. Rows that were not acknowledged go back and are tried again.
    pub(super) fn settle(&mut self) {
        let Some(failed) = self.firing.as_ref().and_then(|firing| firing.acks.result()) else { return };
        let Some(Firing { rows, early, .. }) = self.firing.take() else { return };
        let first_early = early.as_ref().map_or(rows.len(), Early::first_index);
        let (mut again, mut taken) = (Vec::new(), Vec::new());
        let (early_rows, mut early_failed) = (rows.len() - first_early, 0);
        let now = Instant::now();
        let db_now = self.clock.now(now);
        let total = rows.len();
        let mut back = Vec::with_capacity(failed.len());
        // Thousands of rows, and when Kafka refuses, all of them.
        let refused: HashMap<usize, bool> =
            failed.iter().map(|failed| (failed.index, failed.too_large)).collect();
        let mut is_stuck = false;
        for (index, row) in rows.into_iter().enumerate() {
            let is_shared = early.as_ref().is_some_and(|early| early.has(index));
            if let Some(too_large) = refused.get(&index) {
                early_failed += usize::from(index >= first_early);
                if is_shared {
                    is_stuck |= too_large;
                    again.push(row.position);
                }
                // One beyond what memory knows is in the table only.
                if row.position <= self.pending.loaded() {
                    back.push(row);
                }
                continue;
            }
            if is_shared {
                taken.push(row.position.id);
            }
            if index < first_early {
                self.intake.leases.fired(row.position.id);
                self.shared.metrics.lateness_seconds.record(db_now.since(row.position.due));
            }
        }
        self.shared.metrics.due_produced.increment((total - failed.len()) as u64);
        self.shared.metrics.due_failed.increment(failed.len() as u64);
        self.acknowledged |= failed.len() < total;
        if failed.is_empty() {
            self.fire_backoff.reset();
            self.fire_after = None;
        } else {
            if failed.iter().any(|failed| failed.too_large) {
                tracing::error!(shard = self.shard, "a retry is too large for the topic of due records");
            }
            // A record that is refused alone must not slow the others down more than a little.
            let wait =
                if failed.len() < total { RETRY_FIRST } else { self.fire_backoff.next(rand::random()) };
            self.fire_after = Some(now + wait);
        }
        self.pending.settle(back);
        if let Some(early) = early {
            self.settle_early(early.settle(taken, again), early_rows - early_failed, is_stuck);
        }
    }
}
