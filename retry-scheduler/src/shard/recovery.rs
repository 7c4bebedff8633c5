//! Going on after the database failed, and ending in good order.

use super::{ACK_INTERVAL, Owner, Trouble};
use crate::{circuit::Turn, clamp::DbClock, dependency::Reporter, shared::call};
use floodway_store::retry;
use std::time::Instant;

impl Owner<'_> {
    /// The database failed: waits until it answers, then compares its row with what this owner believes. A commit
    /// whose answer was lost is found out here.
    pub(super) fn reconcile(&mut self, error: floodway_store::Error) -> Result<(), Trouble> {
        self.page = None;
        let circuit = &self.shared.circuit;
        self.shared.database_health.down(Reporter::Shard(self.shard), error.to_string());
        if error.is_unavailable() {
            circuit.failed(Turn::Free, Instant::now(), rand::random());
        }
        // A server that can be read and takes no writes is not asked all the time either.
        self.stop.wait(self.database_backoff.next(rand::random()));
        loop {
            self.troubled_at = Some(Instant::now());
            self.settle();
            if self.stop.requested().is_some() {
                return Ok(());
            }
            let turn = circuit.wait(self.stop);
            if turn == Turn::Wait {
                continue;
            }
            let (shared, shard, epoch) = (self.shared, self.shard, self.epoch);
            let row = call(shared, async {
                let client = shared.pool.get().await?;
                retry::read(&client, shard, epoch).await
            });
            match row {
                Err(error) => {
                    circuit.failed(turn, Instant::now(), rand::random());
                    shared.database_health.down(Reporter::Shard(shard), error.to_string());
                }
                Ok(row) => {
                    circuit.closed();
                    return row.map_or(Err(Trouble::Fenced), |row| self.go_on_from(row));
                }
            }
        }
    }

    fn go_on_from(&mut self, row: retry::Shard) -> Result<(), Trouble> {
        self.clock = DbClock::new(row.db_now, Instant::now());
        let committed =
            self.commit_sent && self.closed.front().is_some_and(|first| first.to == row.next_offset);
        if committed {
            self.first_is_stored();
        }
        // Under this epoch only this owner moves the cursor, to places that were acknowledged: further is fine.
        if row.next_offset != self.stored_offset() || row.cursor < self.pending.cursor() {
            return Err(Trouble::StartOver("the database is not where this owner left it"));
        }
        if self.may_be_told {
            // The position says nothing about it, and history that is told again is counted twice.
            return Err(Trouble::StartOver("history of cancelled retries may be stored already"));
        }
        self.commit_sent = false;
        self.pending.cursor_moved(row.cursor);
        self.cursor_was_stored(row.cursor);
        // A write soon, to know whether the database takes them.
        self.acknowledged = true;
        self.shared.metrics.reconciled.increment(1);
        tracing::info!(shard = self.shard, committed, "shard {} goes on", self.shard);
        Ok(())
    }

    /// Waits for the acknowledgements in flight and moves the cursor past them, so that the next owner repeats nothing.
    /// What was read and not stored is read again by it.
    pub(super) fn drain(&mut self) {
        let deadline = Instant::now() + self.shared.settings.drain_timeout;
        while self.firing.is_some() && Instant::now() < deadline {
            std::thread::sleep(ACK_INTERVAL);
            self.settle();
        }
        if self.may_be_told || self.store_cursor().is_err() {
            tracing::info!(
                shard = self.shard,
                "the cursor was not moved at the end; the next owner repeats a little"
            );
        }
    }
}
