//! What a `now` brings back, on its way into a batch on `due` and out of it. Pure.
//!
//! A mark's `done` may pass a retry only when it is settled: acknowledged, told cancelled, or gone. So each place of a share is one of:
//!
//! - It waits in memory, or was read from the table: it goes into the batch.
//! - It is in the batch already, because it is due: it counts for the mark like those after it.
//! - Memory knows it, and it does not wait there: it was settled.
//! - It was sought in the table and is not there: it was settled, and its partition is gone.
//! - Memory knew it when the share was read and has forgotten it since: it is to be read, with all that follows it.

use crate::{
    marks::{Marks, Verdict},
    pending::Pending,
    recalls::Recall,
    subject::Subject,
};
use floodway_store::retry::{PendingRetry, Position};
use std::collections::{BTreeMap, HashSet};
use uuid::Uuid;

/// A share of a recall with its rows.
pub(super) struct Recalled {
    recall: Recall,
    places: Vec<Position>,
    /// What the table had at the places that memory did not know when they were read.
    rows: BTreeMap<Position, Option<PendingRetry>>,
}

/// The part of a batch on `due` that came before its time.
pub(super) struct Early {
    recall: Recall,
    /// The last id of the share.
    last: i64,
    /// Where it begins in the batch.
    first_index: usize,
    /// Indices before it, of rows that are due and belong to the share.
    due_too: HashSet<usize>,
    /// Ids of the share that were told cancelled.
    told: Vec<i64>,
}

/// What became of a share.
pub(super) struct Settled {
    pub(super) recall: Recall,
    /// Up to which id the mark's work is done.
    pub(super) done: i64,
    /// Ids beyond it that are settled too.
    pub(super) beyond: Vec<i64>,
    /// Rows that were not acknowledged, by id: they come again.
    pub(super) again: Vec<Position>,
}

impl Recalled {
    /// A share, of which the places `beyond` memory were read, as far as they fitted. The others are left for the next one, with all that
    /// follows them.
    pub(super) fn new(
        mut recall: Recall,
        places: Vec<Position>,
        beyond: &[Position],
        read: Vec<PendingRetry>,
    ) -> Self {
        let cut = read.last().filter(|_| read.len() < beyond.len()).map(|last| last.position.id);
        let is_within = |place: &Position| cut.is_none_or(|cut| place.id <= cut);
        let (places, left): (Vec<_>, Vec<_>) = places.into_iter().partition(is_within);
        recall.put_back(left);
        let mut rows: BTreeMap<_, _> =
            beyond.iter().filter(|place| is_within(place)).map(|place| (*place, None)).collect();
        rows.extend(read.into_iter().map(|row| (row.position, Some(row))));
        Self { recall, places, rows }
    }

    /// Adds the share to the rows that are due, which are in order. `cancel` is told of rows that were cancelled, by which command.
    pub(super) fn join(
        self,
        batch: &mut Vec<PendingRetry>,
        pending: &mut Pending,
        marks: &Marks,
        mut cancel: impl FnMut(&PendingRetry, Subject<'_>, Uuid),
    ) -> Early {
        let Self { mut recall, places, mut rows } = self;
        let first_index = batch.len();
        let (mut last, mut due_too, mut told) = (-1, HashSet::new(), Vec::new());
        let mut places = places.into_iter();
        while let Some(place) = places.next() {
            let is_known = place <= pending.loaded();
            let found = match rows.remove(&place) {
                _ if is_known => pending.withdraw(place),
                Some(read) => read,
                None => {
                    recall.put_back(std::iter::once(place).chain(places).collect());
                    break;
                }
            };
            last = place.id;
            let Some(row) = found else {
                due_too.extend(batch[..first_index].binary_search_by_key(&place, |row| row.position));
                continue;
            };
            let Some(subject) = Subject::of(&row.record).filter(|subject| !subject.is_lease) else {
                if is_known {
                    pending.give_back(row);
                }
                continue;
            };
            match marks.of_subject(place.id, &subject) {
                Verdict::Gone => {}
                Verdict::Fires => batch.push(row),
                Verdict::Cancelled(command) => {
                    told.push(place.id);
                    cancel(&row, subject, command);
                }
            }
        }
        Early { recall, last, first_index, due_too, told }
    }
}

impl Early {
    /// Where it begins in the batch.
    pub(super) fn first_index(&self) -> usize {
        self.first_index
    }

    /// Whether the row at this index of the batch belongs to the share.
    pub(super) fn has(&self, index: usize) -> bool {
        index >= self.first_index || self.due_too.contains(&index)
    }

    /// These rows of the share were acknowledged, and these were not.
    pub(super) fn settle(self, acknowledged: Vec<i64>, mut again: Vec<Position>) -> Settled {
        again.sort_unstable_by_key(|place| place.id);
        let done = again.first().map_or(self.last, |first| first.id - 1);
        let mut beyond = [acknowledged, self.told].concat();
        beyond.retain(|id| *id > done);
        Settled { recall: self.recall, done, beyond, again }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        pending::Bounds,
        recalls::{Recalls, Share},
    };
    use floodway_schemas::{
        UnixMillis,
        due::{DUE_VERSION, Due, Origin, RetryKey},
        ids::{SubscriptionId, TenantId},
        retry_command::RetryAction,
    };
    use floodway_store::{
        DbInstant,
        retry_marks::{Candidate, Mark},
    };
    use proptest::prelude::*;
    use std::{
        collections::BTreeSet,
        time::{Duration, Instant},
    };

    const MINE: Uuid = Uuid::from_u128(2);
    /// The command's place in the log.
    const NOW: i64 = 1_000;

    fn at(due: i64, id: i64) -> Position {
        Position { due: DbInstant(due), id }
    }

    fn row(position: Position) -> PendingRetry {
        let due = Due {
            v: DUE_VERSION,
            origin: Origin::RetryKey(RetryKey { shard: 0, id: position.id }),
            tenant: TenantId(Uuid::nil()),
            subscription: SubscriptionId(MINE),
            attempt: 2,
            since: UnixMillis(0),
            lease: false,
            event: serde_json::from_str(r#"{"type":"t","id":"e"}"#).unwrap(),
        };
        PendingRetry { position, record_key: format!("{MINE}/k"), record: due.encode().unwrap() }
    }

    /// A shard's memory, its table and its topic, as its owner's rounds go over them.
    struct World {
        now: i64,
        table: BTreeSet<Position>,
        pending: Pending,
        marks: Marks,
        recalls: Recalls,
        recalled: Option<Recalled>,
        acknowledged: BTreeSet<Position>,
        instant: Instant,
        next_id: i64,
    }

    impl World {
        /// With these retries in the table, all of them brought back by one command.
        fn new(rows: &[Position], heap_rows: usize) -> Self {
            let marks = Marks::new(vec![Mark {
                id: NOW,
                first_id: 0,
                until: DbInstant(i64::MAX),
                recorded_at: DbInstant(0),
                command: Uuid::from_u128(9),
                action: RetryAction::Now,
                tenant: Uuid::nil(),
                subscription: Some(MINE),
                event_id: None,
                retry_id: None,
                done: -1,
            }]);
            let instant = Instant::now();
            let mut world = Self {
                now: 0,
                table: rows.iter().copied().collect(),
                pending: Pending::new(at(-1, 0), Bounds { rows: heap_rows, bytes: 1 << 20 }),
                recalls: Recalls::new(&marks, 10_000, instant),
                marks,
                recalled: None,
                acknowledged: BTreeSet::new(),
                instant,
                next_id: NOW + 1,
            };
            world.seek();
            world
        }

        fn seek(&mut self) {
            let Some(after) = self.recalls.seek_after(self.pending.cursor()) else { return };
            let candidate = |position: &Position| Candidate {
                position: *position,
                tenant: Uuid::nil(),
                subscription: MINE,
                event_id: "e".to_owned(),
            };
            let page: Vec<_> = self.table.iter().filter(|place| **place > after).map(candidate).collect();
            for ended in self.recalls.saw(&self.marks, &page, true) {
                self.marks.advance(ended, ended);
            }
        }

        fn load(&mut self, limit: usize) {
            let until = self.now + 100;
            if self.pending.has_room() && self.pending.loaded().due.0 < until {
                let after = self.pending.ask();
                let page = self.table.iter().filter(|place| **place > after && place.due.0 < until);
                let page = page.take(limit).map(|place| row(*place)).collect();
                self.pending.load(page, DbInstant(until));
            }
        }

        fn store(&mut self, delay: i64) {
            let place = at((self.now + delay).max(self.pending.floor().due.0 + 1), self.next_id);
            self.next_id += 1;
            self.table.insert(place);
            self.pending.stored(|| row(place), place);
        }

        fn recall(&mut self, fits: usize) {
            self.instant += Duration::from_secs(1);
            if self.recalled.is_none()
                && let Some(Share { recall, places, .. }) = self.recalls.take(self.instant)
            {
                let beyond: Vec<_> =
                    places.iter().copied().filter(|place| *place > self.pending.loaded()).collect();
                let read = beyond.iter().take(fits).map(|place| row(*place)).collect();
                self.recalled = Some(Recalled::new(recall, places, &beyond, read));
            }
        }

        /// Produces and settles, as `Owner::fire` and `Owner::settle` do; rows whose bit is set fail.
        fn fire(&mut self, failing: u64) {
            let mut batch = self.pending.take_due(DbInstant(self.now), 10, 1 << 20);
            batch.retain(|row| self.marks.verdict(row) == Verdict::Fires);
            let recalled = self.recalled.take();
            let early = recalled.map(|recalled| {
                recalled.join(&mut batch, &mut self.pending, &self.marks, |_, _, _| unreachable!("no cancel"))
            });
            let (mut taken, mut again, mut back) = (Vec::new(), Vec::new(), Vec::new());
            for (index, row) in batch.into_iter().enumerate() {
                if failing & (1 << (index % 64)) == 0 {
                    assert!(self.acknowledged.insert(row.position), "produced again: {:?}", row.position);
                    if early.as_ref().is_some_and(|early| early.has(index)) {
                        taken.push(row.position.id);
                    }
                    continue;
                }
                if early.as_ref().is_some_and(|early| early.has(index)) {
                    again.push(row.position);
                }
                if row.position <= self.pending.loaded() {
                    back.push(row);
                }
            }
            self.pending.settle(back);
            if let Some(early) = early {
                let Settled { recall, done, beyond, again } = early.settle(taken, again);
                self.marks.advance(NOW, done);
                self.marks.settled_beyond(NOW, beyond);
                if self.recalls.back(recall, again) {
                    self.marks.advance(NOW, NOW);
                }
            }
        }

        fn move_cursor(&mut self) {
            let cursor = self.pending.watermark(DbInstant(self.now));
            self.pending.cursor_moved(cursor);
        }

        /// Lets time pass without faults until everything must have fired.
        fn finish(&mut self) {
            self.now += 10_000;
            for _ in 0..4 * self.table.len() + 8 {
                self.load(5);
                self.seek();
                self.recall(250);
                self.fire(0);
                self.move_cursor();
            }
        }

        fn done(&self) -> i64 {
            self.marks.get(NOW).unwrap().done
        }
    }

    #[test]
    fn a_recalled_row_that_is_due_and_is_not_acknowledged_comes_again() {
        let mut world = World::new(&[at(10, 1), at(11, 2), at(50, 3)], 100);
        world.load(10);
        world.recall(250);
        world.now = 20;
        // Of the two that are due the first fails, and so does the one that is not.
        world.fire(0b101);
        assert_eq!(world.done(), 0);
        world.finish();
        assert_eq!((&world.acknowledged, world.done()), (&world.table, NOW));
    }

    #[test]
    fn a_recalled_row_that_memory_forgot_before_it_was_produced_is_read_again() {
        let mut world = World::new(&[at(10, 1), at(90, 2), at(91, 3), at(12, 4)], 4);
        world.load(10);
        world.recall(250);
        // Nothing is produced for a moment, and what is stored meanwhile pushes the latest out of memory.
        (1..3).for_each(|delay| world.store(delay));
        assert!(world.pending.loaded() < at(90, 2));
        world.fire(0);
        assert_eq!((&world.acknowledged, world.done()), (&[at(10, 1)].into(), 1));
        world.finish();
        assert_eq!((&world.acknowledged, world.done()), (&world.table, NOW));
    }

    #[test]
    fn what_the_table_does_not_have_any_more_holds_nothing_up() {
        let mut world = World::new(&[at(200, 1), at(201, 2), at(202, 3)], 4);
        let Share { recall, places, .. } =
            world.recalls.take(world.instant + Duration::from_secs(1)).unwrap();
        let read = vec![row(at(201, 2))];
        world.recalled = Some(Recalled::new(recall, places.clone(), &places, read));
        world.fire(0);
        assert_eq!((&world.acknowledged, world.done()), (&[at(201, 2)].into(), 2));
        let Share { recall, places, .. } =
            world.recalls.take(world.instant + Duration::from_secs(2)).unwrap();
        assert_eq!(places, [at(202, 3)]);
        world.recalled = Some(Recalled::new(recall, places.clone(), &places, Vec::new()));
        world.fire(0);
        assert_eq!(world.done(), NOW);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Store(i64),
        Load(usize),
        Recall(usize),
        Fire(u64),
        MoveCursor,
        Clock(i64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (-10i64..150).prop_map(Step::Store),
            3 => (1usize..6).prop_map(Step::Load),
            3 => (1usize..8).prop_map(Step::Recall),
            3 => any::<u64>().prop_map(Step::Fire),
            2 => Just(Step::MoveCursor),
            3 => (0i64..40).prop_map(Step::Clock),
        ]
    }

    proptest! {
        #[test]
        fn everything_that_a_now_covers_comes_once_whatever_fails_or_is_forgotten(
            dues in proptest::collection::vec(0i64..150, 1..20),
            steps in proptest::collection::vec(step(), 0..60), heap_rows in 1usize..8,
        ) {
            let rows: Vec<_> = dues.iter().zip(0..).map(|(due, id)| at(*due, id)).collect();
            let mut world = World::new(&rows, heap_rows);
            for step in steps {
                match step {
                    Step::Store(delay) => world.store(delay),
                    Step::Load(limit) => world.load(limit),
                    Step::Recall(fits) => world.recall(fits),
                    Step::Fire(failing) => world.fire(failing),
                    Step::MoveCursor => world.move_cursor(),
                    Step::Clock(by) => world.now += by,
                }
            }
            world.finish();
            prop_assert_eq!(&world.acknowledged, &world.table);
            prop_assert_eq!(world.done(), NOW);
        }
    }
}
