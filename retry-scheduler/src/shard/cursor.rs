//! Moving a shard's cursor past what was acknowledged.

use super::{Owner, Trouble};
use crate::{clamp::DbClock, shared::call};
use floodway_store::{
    DbInstant,
    retry::{self, Position},
};
use std::time::Instant;

impl Owner<'_> {
    /// Moves the cursor, soon after acknowledgements and now and then on an idle shard.
    pub(super) fn move_cursor(&mut self) -> Result<(), Trouble> {
        let settings = &self.shared.settings;
        let interval = if self.acknowledged { settings.cursor_interval } else { settings.idle_interval };
        if self.cursor_moved_at.elapsed() < interval && !self.has_much_to_tell() {
            return Ok(());
        }
        self.store_cursor()
    }

    /// Stores the cursor, moved or not: proves that the shard is still this owner's.
    pub(super) fn store_cursor(&mut self) -> Result<(), Trouble> {
        let sent_at = Instant::now();
        let cursor = self.pending.watermark(self.clock.now(sent_at));
        let db_now = match self.store_marked(cursor) {
            Some(result) => result?,
            None => self.store_bare(cursor)?,
        };
        self.clock = DbClock::new(db_now, Instant::now());
        self.fenced_at = sent_at;
        self.cursor_moved_at = sent_at;
        self.acknowledged = false;
        self.pending.cursor_moved(cursor);
        self.marks.expire(cursor);
        Ok(())
    }

    fn store_bare(&self, cursor: Position) -> Result<DbInstant, Trouble> {
        let next_offset = self.stored_offset();
        let (shared, shard, epoch) = (self.shared, self.shard, self.epoch);
        let db_now = call(shared, async {
            let client = shared.pool.get().await?;
            retry::move_cursor(&client, shard, epoch, next_offset, cursor).await
        })?;
        db_now.ok_or(Trouble::Fenced)
    }

    /// Next offset as the database has it.
    pub(super) fn stored_offset(&self) -> i64 {
        self.closed.front().map_or(self.intake.open.from, |first| first.from)
    }
}
