//! The retries that fall due soon, in memory, and what may be said about those that are not.
//!
//! `loaded` is the boundary of what memory knows: every stored row up to it is waiting here, or was taken to be
//! produced, or was acknowledged. Rows beyond it are in the table only. Everything follows from this one statement:
//! a new row up to `loaded` must be added here; when memory is full the latest rows are forgotten and `loaded`
//! is lowered to just before them; and the cursor may move to just before the first row that is waiting or taken,
//! or to `loaded`, whichever is earlier.

use floodway_store::{
    DbInstant,
    retry::{PendingRetry, Position},
};
use std::collections::BTreeMap;

/// What a waiting row takes besides its key and record: its entry in the tree and two allocations, in bytes.
const ROW_OVERHEAD: usize = 128;

/// How much may wait in memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Rows.
    pub(crate) rows: usize,
    /// Their bytes.
    pub(crate) bytes: usize,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Pending {
    waiting: BTreeMap<Position, PendingRetry>,
    bytes: usize,
    loaded: Position,
    /// Where the page begins that is on its way, as long as nothing was stored that it may lack.
    asked: Option<Position>,
    /// First and last of the rows taken and not yet settled.
    taken: Option<(Position, Position)>,
    /// The furthest place that a row was taken from.
    furthest_taken: Position,
    /// As stored.
    cursor: Position,
    bounds: Bounds,
}

impl Pending {
    /// Nothing in memory, everything after `cursor` in the table.
    pub(crate) fn new(cursor: Position, bounds: Bounds) -> Self {
        Self {
            waiting: BTreeMap::new(),
            bytes: 0,
            loaded: cursor,
            asked: None,
            taken: None,
            furthest_taken: cursor,
            cursor,
            bounds,
        }
    }

    /// No row may be stored at or before this place.
    pub(crate) fn floor(&self) -> Position {
        self.cursor.max(self.furthest_taken)
    }

    /// The cursor as last stored.
    pub(crate) fn cursor(&self) -> Position {
        self.cursor
    }

    /// Everything stored up to here is known.
    pub(crate) fn loaded(&self) -> Position {
        self.loaded
    }

    /// Rows waiting.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether there is room for another page. Half of the bounds, so that a page is not loaded just to be forgotten.
    pub(crate) fn has_room(&self) -> bool {
        self.waiting.len() <= self.bounds.rows / 2 && self.bytes <= self.bounds.bytes / 2
    }

    /// When the first waiting row is due.
    pub(crate) fn next_due(&self) -> Option<DbInstant> {
        self.waiting.first_key_value().map(|(position, _)| position.due)
    }

    /// A row that was just stored. Keeps it if memory is to know it.
    pub(crate) fn stored(&mut self, row: impl FnOnce() -> PendingRetry, position: Position) {
        if position <= self.loaded {
            self.insert(row());
            self.forget_latest();
        } else {
            self.asked = None;
        }
    }

    /// Begins a page: the place that its rows follow, in the table as it is now.
    pub(crate) fn ask(&mut self) -> Position {
        self.asked = Some(self.loaded);
        self.loaded
    }

    /// The rows that follow the place asked for, in order; none if there are none before `until`. A page that the memory has moved on
    /// from, or that may lack a row stored since, is passed over: it is to be asked for again.
    pub(crate) fn load(&mut self, rows: Vec<PendingRetry>, until: DbInstant) {
        if self.asked.take() != Some(self.loaded) {
            return;
        }
        let loaded = match rows.last() {
            Some(last) => last.position,
            None => Position::end_of(DbInstant(until.0.saturating_sub(1))),
        };
        self.loaded = self.loaded.max(loaded);
        rows.into_iter().for_each(|row| self.insert(row));
        self.forget_latest();
    }

    /// Takes the rows that are due, in order, within the given size but at least one. Rows of an earlier call must be
    /// settled first.
    pub(crate) fn take_due(&mut self, now: DbInstant, rows: usize, bytes: usize) -> Vec<PendingRetry> {
        debug_assert!(self.taken.is_none(), "one batch at a time");
        let mut taken: Vec<PendingRetry> = Vec::new();
        let mut size = 0;
        while let Some(first) = self.waiting.first_entry() {
            let row_size = size_of(first.get());
            if first.key().due > now || taken.len() == rows || (!taken.is_empty() && size + row_size > bytes)
            {
                break;
            }
            size += row_size;
            taken.push(first.remove());
        }
        self.bytes -= size;
        if let (Some(first), Some(last)) = (taken.first(), taken.last()) {
            self.taken = Some((first.position, last.position));
            self.furthest_taken = self.furthest_taken.max(last.position);
        }
        taken
    }

    /// The rows taken are settled: acknowledged, except those that come back.
    pub(crate) fn settle(&mut self, failed: Vec<PendingRetry>) {
        self.taken = None;
        // Not forgotten even if there are too many for a moment: rows after them are done, and would come twice.
        failed.into_iter().for_each(|row| self.insert(row));
    }

    /// Takes a row before its time, beside those taken because they are due; `None` when none waits there. It does not count for the
    /// furthest place: what is stored before it meanwhile is to fire before it.
    pub(crate) fn withdraw(&mut self, position: Position) -> Option<PendingRetry> {
        let row = self.waiting.remove(&position)?;
        self.bytes -= size_of(&row);
        let (first, last) = self.taken.unwrap_or((position, position));
        self.taken = Some((first.min(position), last.max(position)));
        Some(row)
    }

    /// A row that was withdrawn waits on.
    pub(crate) fn give_back(&mut self, row: PendingRetry) {
        self.insert(row);
    }

    /// How far the cursor may move, given that the server's clock shows `now` at least.
    pub(crate) fn watermark(&self, now: DbInstant) -> Position {
        let first_waiting = self.waiting.first_key_value().map(|(position, _)| *position);
        let first_open = first_waiting.into_iter().chain(self.taken.map(|(first, _)| first)).min();
        let open = first_open.map_or(self.loaded, Position::before);
        open.min(self.loaded).min(Position::end_of(now)).max(self.cursor)
    }

    /// The cursor was stored.
    pub(crate) fn cursor_moved(&mut self, cursor: Position) {
        self.cursor = cursor;
        // Rows up to the cursor are acknowledged, and none is stored there any more.
        self.loaded = self.loaded.max(cursor);
    }

    fn insert(&mut self, row: PendingRetry) {
        self.bytes += size_of(&row);
        if let Some(replaced) = self.waiting.insert(row.position, row) {
            self.bytes -= size_of(&replaced);
        }
    }

    fn forget_latest(&mut self) {
        while self.waiting.len() > 1
            && (self.waiting.len() > self.bounds.rows || self.bytes > self.bounds.bytes)
            && let Some((position, row)) = self.waiting.pop_last()
        {
            self.bytes -= size_of(&row);
            self.loaded = self.loaded.min(position.before());
        }
    }
}

fn size_of(row: &PendingRetry) -> usize {
    row.record.len() + row.record_key.len() + ROW_OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clamp;
    use proptest::prelude::*;
    use std::{collections::BTreeSet, time::Duration};

    fn at(due: i64, id: i64) -> Position {
        Position { due: DbInstant(due), id }
    }

    fn row(position: Position) -> PendingRetry {
        PendingRetry { position, record_key: String::new(), record: vec![0; 8] }
    }

    fn load(pending: &mut Pending, rows: Vec<PendingRetry>, until: i64) {
        pending.ask();
        pending.load(rows, DbInstant(until));
    }

    fn pending(cursor: Position) -> Pending {
        Pending::new(cursor, Bounds { rows: 3, bytes: 10_000 })
    }

    #[test]
    fn rows_beyond_what_is_loaded_stay_in_the_table() {
        let mut pending = pending(at(0, 0));
        load(&mut pending, Vec::new(), 100);
        pending.stored(|| row(at(99, 7)), at(99, 7));
        pending.stored(|| row(at(100, 8)), at(100, 8));
        assert_eq!((pending.len(), pending.next_due()), (1, Some(DbInstant(99))));
    }

    #[test]
    fn a_full_memory_forgets_the_latest_and_remembers_that_it_did() {
        let mut pending = pending(at(0, 0));
        load(&mut pending, (1..=5).map(|due| row(at(due, 9))).collect(), 100);
        assert_eq!((pending.len(), pending.loaded()), (3, at(4, 8)));
        // Nothing after the boundary counts as done, whatever happens to the rows before it.
        pending.take_due(DbInstant(50), 10, 10_000);
        pending.settle(Vec::new());
        assert_eq!(pending.watermark(DbInstant(50)), at(4, 8));
    }

    #[test]
    fn the_cursor_waits_for_the_first_row_that_is_not_acknowledged() {
        let mut pending = pending(at(0, 0));
        load(&mut pending, vec![row(at(1, 1)), row(at(2, 2)), row(at(3, 3))], 100);
        let taken = pending.take_due(DbInstant(3), 10, 10_000);
        assert_eq!(pending.watermark(DbInstant(3)), at(1, 0));
        pending.settle(vec![taken[1].clone()]);
        assert_eq!(pending.watermark(DbInstant(3)), at(2, 1));
        pending.take_due(DbInstant(3), 10, 10_000);
        pending.settle(Vec::new());
        assert_eq!(pending.watermark(DbInstant(3)), at(3, 3));
    }

    #[test]
    fn the_cursor_of_an_idle_shard_follows_the_clock() {
        let mut pending = pending(at(0, 0));
        load(&mut pending, Vec::new(), 100);
        assert_eq!(pending.watermark(DbInstant(50)), Position::end_of(DbInstant(50)));
        assert_eq!(pending.watermark(DbInstant(500)), Position::end_of(DbInstant(99)));
    }

    #[test]
    fn a_page_that_may_lack_a_row_is_passed_over() {
        let mut pending = pending(at(0, 0));
        pending.ask();
        pending.stored(|| row(at(7, 1)), at(7, 1));
        pending.load(vec![row(at(8, 2))], DbInstant(100));
        assert_eq!((pending.len(), pending.loaded()), (0, at(0, 0)));
    }

    /// The table, the server's clock and the acknowledgements, as they would be without any cleverness.
    #[derive(Debug, Default)]
    struct World {
        db_now: i64,
        table: BTreeSet<Position>,
        cursor: Option<Position>,
        acknowledged: BTreeSet<Position>,
        next_id: i64,
        /// A page on its way, and until when it reaches.
        page: Option<(Vec<PendingRetry>, i64)>,
    }

    #[derive(Debug, Clone)]
    enum Step {
        /// Stores a batch of rows with these delays.
        Store(Vec<i64>),
        /// Asks for a page of at most so many rows.
        Ask(usize),
        /// The page arrives.
        Load,
        /// Takes due rows; those whose bit is set fail.
        Fire(u32),
        /// Stores the cursor.
        MoveCursor,
        /// The server's clock goes on, or steps back.
        Clock(i64),
        /// Another owner starts from the table.
        TakeOver,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => proptest::collection::vec(-500_000i64..4_000_000, 1..6).prop_map(Step::Store),
            3 => (1usize..5).prop_map(Step::Ask),
            3 => Just(Step::Load),
            4 => any::<u32>().prop_map(Step::Fire),
            3 => Just(Step::MoveCursor),
            4 => (0i64..1_500_000).prop_map(Step::Clock),
            1 => (-2_000_000i64..0).prop_map(Step::Clock),
            1 => Just(Step::TakeOver),
        ]
    }

    impl World {
        fn cursor(&self) -> Position {
            self.cursor.unwrap_or(at(0, 0))
        }

        fn apply(&mut self, pending: &mut Pending, step: &Step) {
            match step {
                Step::Store(delays) => {
                    for delay in delays {
                        let now = DbInstant(self.db_now);
                        let due = clamp::clamp(DbInstant(self.db_now + delay), now, pending.floor());
                        let position = Position { due, id: self.next_id };
                        self.next_id += 1;
                        assert!(position > self.cursor(), "stored behind the cursor");
                        self.table.insert(position);
                        pending.stored(|| row(position), position);
                    }
                }
                Step::Ask(limit) => self.ask(pending, *limit),
                Step::Load => {
                    if let Some((rows, until)) = self.page.take() {
                        pending.load(rows, DbInstant(until));
                    }
                }
                Step::Fire(failing) => {
                    let taken = pending.take_due(DbInstant(self.db_now), 4, 10_000);
                    let (failed, done): (Vec<_>, Vec<_>) =
                        taken.into_iter().enumerate().partition(|(index, _)| failing & (1 << index) != 0);
                    self.acknowledged.extend(done.iter().map(|(_, row)| row.position));
                    pending.settle(failed.into_iter().map(|(_, row)| row).collect());
                }
                Step::MoveCursor => {
                    let cursor = pending.watermark(DbInstant(self.db_now));
                    assert!(cursor >= self.cursor(), "the cursor moved back");
                    let lost = self.table.range(..=cursor).find(|row| !self.acknowledged.contains(row));
                    assert_eq!(lost, None, "the cursor passed a row that was not acknowledged");
                    self.cursor = Some(cursor);
                    pending.cursor_moved(cursor);
                }
                Step::Clock(by) => self.db_now = (self.db_now + by).max(0),
                Step::TakeOver => {
                    self.page = None;
                    *pending = Pending::new(self.cursor(), pending.bounds);
                }
            }
        }

        fn ask(&mut self, pending: &mut Pending, limit: usize) {
            let until = self.db_now + 2_000_000;
            if self.page.is_none() && pending.has_room() && pending.loaded().due.0 < until {
                let after = (std::ops::Bound::Excluded(pending.ask()), std::ops::Bound::Unbounded);
                let page =
                    self.table.range(after).filter(|row| row.due.0 < until).take(limit).map(|p| row(*p));
                self.page = Some((page.collect(), until));
            }
        }

        /// Lets time pass without faults until everything must have fired.
        fn finish(&mut self, pending: &mut Pending) {
            self.db_now += Duration::from_secs(3600).as_micros() as i64;
            for _ in 0..4 * self.table.len() + 8 {
                self.ask(pending, 5);
                self.apply(pending, &Step::Load);
                self.apply(pending, &Step::Fire(0));
                self.apply(pending, &Step::MoveCursor);
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_is_lost_between_memory_and_table(steps in proptest::collection::vec(step(), 0..80), rows in 1usize..7) {
            let mut world = World::default();
            let mut pending = Pending::new(world.cursor(), Bounds { rows, bytes: 10_000 });
            for step in &steps {
                world.apply(&mut pending, step);
            }
            world.finish(&mut pending);
            prop_assert_eq!(&world.acknowledged, &world.table);
            prop_assert_eq!(pending.len(), 0);
            prop_assert_eq!(pending.bytes, 0);
        }
    }
}
