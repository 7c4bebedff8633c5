//! Reading the rows that fall due next, a page at a time, while those of the page before are produced.
//!
//! A page shows the table as it was when it was asked for. A row stored since would be in neither the page nor the memory, so nothing is
//! stored while a page is on its way: whoever stores waits for it. (If something were, the memory would pass the page over.)

use super::{Owner, Trouble};
use crate::shared::{DATABASE_TIMEOUT, call, no_answer};
use floodway_store::{
    DbInstant, Error,
    retry::{self, PendingRetry},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::{JoinError, JoinSet};

/// Bytes of records read from the database at once. One page is on its way beside what waits in memory.
pub(super) const PAGE_BYTES: i64 = 8 << 20;

/// How soon a shard tries again that found other shards of the process reading.
pub(super) const PLACE_INTERVAL: Duration = Duration::from_millis(5);

/// A page on its way. Dropped, it is given up.
pub(super) struct Page {
    until: DbInstant,
    reading: JoinSet<Result<Vec<PendingRetry>, Error>>,
}

impl Owner<'_> {
    /// Whether a page is to be asked for.
    pub(super) fn wants_page(&self, now: Instant) -> bool {
        let horizon = self.shared.settings.horizon;
        // A quarter early, so that a page is not asked for at every turn.
        self.page.is_none()
            && self.pending.has_room()
            && self.pending.loaded().due < self.clock.now(now).plus(horizon - horizon / 4)
    }

    /// Takes in the page that has come, and asks for the next one.
    pub(super) fn extend_horizon(&mut self) -> Result<(), Trouble> {
        if let Some(page) = &mut self.page
            && let Some(read) = page.reading.try_join_next()
        {
            self.take_in(read)?;
        }
        let now = Instant::now();
        if self.wants_page(now) && self.page_after.is_none_or(|after| after <= now) {
            self.ask_for_page(now);
        }
        Ok(())
    }

    /// Waits for the page on its way, if there is one.
    pub(super) fn finish_page(&mut self) -> Result<(), Trouble> {
        let Some(page) = &mut self.page else { return Ok(()) };
        let read = call(self.shared, async { Ok::<_, Error>(page.reading.join_next().await) })?;
        read.map_or(Ok(()), |read| self.take_in(read))
    }

    fn ask_for_page(&mut self, now: Instant) {
        let (shared, shard) = (self.shared, self.shard);
        let Ok(place) = Arc::clone(&shared.pages).try_acquire_owned() else {
            self.page_after = Some(now + PLACE_INTERVAL);
            return;
        };
        let (pool, limit) = (shared.pool.clone(), i64::from(shared.settings.page_rows));
        let until = self.clock.now(now).plus(shared.settings.horizon);
        let after = self.pending.ask();
        let mut reading = JoinSet::new();
        let read = async move {
            let read = async {
                let client = pool.get().await?;
                retry::page(&client, shard, after, until, limit, PAGE_BYTES).await
            };
            let read = tokio::time::timeout(DATABASE_TIMEOUT, read).await;
            drop(place);
            read.unwrap_or_else(|_| Err(no_answer()))
        };
        reading.spawn_on(read, &shared.handle);
        self.page = Some(Page { until, reading });
    }

    fn take_in(&mut self, read: Result<Result<Vec<PendingRetry>, Error>, JoinError>) -> Result<(), Trouble> {
        let Some(Page { until, .. }) = self.page.take() else { return Ok(()) };
        let rows =
            read.unwrap_or_else(|error| Err(Error::Unavailable(format!("a page was not read: {error}"))))?;
        self.pending.load(rows, until);
        Ok(())
    }
}
