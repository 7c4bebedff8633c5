//! The work of `now`: finding the retries that a mark covers and handing them out in the order of their arrival. Pure.
//!
//! The table is ordered by due time, so a mark's retries are sought by going through all that are pending, a page at a time, for
//! several marks at once. Only their places are kept, the lowest ids first and no more than a bound; what is beyond it is sought again
//! when those are done. Tenants take turns, with their marks to be sought and with what was found, and all of a shard share one rate, so
//! that one tenant's million retries or thousand commands neither fill memory nor keep another's single retry, or what is due, waiting.

use crate::{
    marks::{Marks, covers},
    turns::Turns,
};
use floodway_store::{DbInstant, retry::Position, retry_marks::Candidate};
use std::{
    collections::{BTreeMap, BinaryHeap, HashSet, VecDeque},
    time::{Duration, Instant},
};
use uuid::Uuid;

/// Places of one mark that are kept, 16 bytes each.
const MAX_FOUND: usize = 100_000;
/// Marks that are sought together, and that are handed out in turn; more wait, unless their tenant has nothing to be handed out.
const MAX_TOGETHER: usize = 8;
/// Marks of tenants that had nothing else, and are handed out besides; more tenants wait.
const MAX_BESIDES: usize = 56;
/// Of places there are fewer for each of these: 15 MB for all of them.
const FEWER: usize = 6;
/// Retries of one mark that are handed out at once.
pub(crate) const AT_ONCE: usize = 250;
/// How long the rate is saved up for: longer would be a burst, shorter many small batches.
const SAVED_FOR: Duration = Duration::from_millis(250);

/// See the module.
#[derive(Debug)]
pub(crate) struct Recalls {
    /// Marks to be sought.
    waiting: Turns<i64>,
    seek: Option<Seek>,
    /// To be handed out.
    ready: Turns<Recall>,
    /// Whose recall is being handed out.
    under_way: Option<Uuid>,
    allowance: Allowance,
    most: usize,
}

/// A mark whose retries were found.
#[derive(Debug)]
pub(crate) struct Recall {
    pub(crate) mark: i64,
    tenant: Uuid,
    /// Places, by id.
    found: VecDeque<Position>,
    /// So many of the first ones come again. They are handed out alone, so that no more than a share is settled beyond what is refused.
    again: usize,
    /// Whether there may be more than these.
    has_more: bool,
}

/// What a round of firing gets.
#[derive(Debug)]
pub(crate) struct Share {
    pub(crate) recall: Recall,
    /// In the order of their ids; at least one.
    pub(crate) places: Vec<Position>,
    /// So many of the first ones come again.
    again: usize,
}

/// A walk through the pending retries.
#[derive(Debug)]
struct Seek {
    after: Position,
    marks: BTreeMap<i64, Lowest>,
    /// Places of each that are kept.
    most: usize,
}

/// The lowest ids found, and whether some were left out.
#[derive(Debug)]
struct Lowest {
    tenant: Uuid,
    heap: BinaryHeap<(i64, DbInstant)>,
    has_more: bool,
}

/// How many may be handed out.
#[derive(Debug)]
struct Allowance {
    per_second: f64,
    saved: f64,
    at: Instant,
}

impl Recalls {
    /// For marks that are at work, at most so many retries a second.
    pub(crate) fn new(marks: &Marks, per_second: u32, now: Instant) -> Self {
        let mut waiting = Turns::default();
        marks.at_work().for_each(|mark| waiting.push(mark.tenant, mark.id));
        Self {
            waiting,
            seek: None,
            ready: Turns::default(),
            under_way: None,
            allowance: Allowance { per_second: f64::from(per_second), saved: 0.0, at: now },
            most: MAX_FOUND,
        }
    }

    /// A mark was added.
    pub(crate) fn begin(&mut self, tenant: Uuid, mark: i64) {
        self.waiting.push(tenant, mark);
    }

    /// Whether there is something to hand out.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.len() > 0
    }

    /// Where to read on to find what marks cover, if any is to be found. A new walk begins after the cursor.
    pub(crate) fn seek_after(&mut self, cursor: Position) -> Option<Position> {
        if self.seek.is_none() {
            self.seek = self.begin_walk(cursor);
        }
        self.seek.as_ref().map(|seek| seek.after)
    }

    /// Whether [`Recalls::seek_after`] would name a place.
    pub(crate) fn wants_page(&self) -> bool {
        self.seek.is_some() || self.has_room() || self.has_room_besides()
    }

    /// Whether marks may be sought, whoever's.
    fn has_room(&self) -> bool {
        self.waiting.len() > 0 && self.ready.len() < MAX_TOGETHER
    }

    /// Whether marks of tenants that have nothing to be handed out may be sought, though the others have enough.
    fn has_room_besides(&self) -> bool {
        self.ready.len() < MAX_TOGETHER + MAX_BESIDES
            && self.waiting.tenants().any(|tenant| self.has_nothing_ready(tenant))
    }

    fn has_nothing_ready(&self, tenant: Uuid) -> bool {
        !self.ready.has(tenant) && self.under_way != Some(tenant)
    }

    /// A walk for the marks that are next: besides those that have enough, one of each tenant.
    fn begin_walk(&mut self, after: Position) -> Option<Seek> {
        let is_besides = !self.has_room();
        if is_besides && !self.has_room_besides() {
            return None;
        }
        let most = if is_besides { self.most.div_ceil(FEWER) } else { self.most };
        let (mut marks, mut tenants) = (BTreeMap::new(), HashSet::new());
        while marks.len() < MAX_TOGETHER {
            let may = |tenant| !is_besides || (self.has_nothing_ready(tenant) && !tenants.contains(&tenant));
            let Some(tenant) = self.waiting.tenants().find(|tenant| may(*tenant)) else { break };
            marks.extend(self.waiting.pop_of(tenant).map(|mark| (mark, Lowest::of(tenant))));
            tenants.insert(tenant);
        }
        (!marks.is_empty()).then_some(Seek { after, marks, most })
    }

    /// The next page, and whether it was the last one. Answers marks that cover nothing more.
    pub(crate) fn saw(&mut self, marks: &Marks, page: &[Candidate], is_last: bool) -> Vec<i64> {
        let Some(seek) = &mut self.seek else { return Vec::new() };
        for (mark, lowest) in &mut seek.marks {
            let Some(mark) = marks.get(*mark) else { continue };
            for row in page {
                let id = row.position.id;
                if !marks.has_settled(mark, id)
                    && covers(mark, id, row.tenant, row.subscription, &row.event_id)
                {
                    lowest.add(row.position, seek.most);
                }
            }
        }
        if let Some(last) = page.last() {
            seek.after = last.position;
        }
        if !is_last {
            return Vec::new();
        }
        let Some(seek) = self.seek.take() else { return Vec::new() };
        let (none, some): (Vec<_>, Vec<_>) =
            seek.marks.into_iter().partition(|(_, lowest)| lowest.heap.is_empty());
        some.into_iter().for_each(|(mark, lowest)| self.ready.push(lowest.tenant, lowest.into_recall(mark)));
        none.into_iter().map(|(mark, _)| mark).collect()
    }

    /// What may be handed out now. Its recall comes back by [`Recalls::back`].
    pub(crate) fn take(&mut self, now: Instant) -> Option<Share> {
        let front = self.ready.front()?;
        let wanted = if front.again > 0 { front.again } else { front.found.len().min(AT_ONCE) };
        let granted = self.allowance.take(wanted, now);
        if granted == 0 {
            return None;
        }
        let mut recall = self.ready.pop()?;
        let again = recall.again.min(granted);
        recall.again -= again;
        self.under_way = Some(recall.tenant);
        let places = recall.found.drain(..granted.min(recall.found.len())).collect();
        Some(Share { recall, places, again })
    }

    /// A share comes back as it was handed out.
    pub(crate) fn not_now(&mut self, share: Share) {
        let Share { mut recall, places, again } = share;
        self.under_way = None;
        self.allowance.saved += places.len() as f64;
        recall.again += again;
        recall.put_back(places);
        self.ready.push(recall.tenant, recall);
    }

    /// A recall ends although it is not done: one of its retries can never be handed out. The others come at their own time.
    pub(crate) fn gave_up(&mut self, recall: Recall) {
        self.under_way = None;
        drop(recall);
    }

    /// A recall comes back, with the places that are to be handed out again, by id. `true` when its work is done.
    pub(crate) fn back(&mut self, mut recall: Recall, left: Vec<Position>) -> bool {
        self.under_way = None;
        recall.again += left.len();
        recall.put_back(left);
        if !recall.found.is_empty() {
            self.ready.push(recall.tenant, recall);
            return false;
        }
        if recall.has_more {
            self.waiting.push(recall.tenant, recall.mark);
        }
        !recall.has_more
    }
}

impl Recall {
    /// Takes back places that were not handed out after all, by id.
    pub(crate) fn put_back(&mut self, places: Vec<Position>) {
        places.into_iter().rev().for_each(|place| self.found.push_front(place));
    }
}

impl Lowest {
    fn of(tenant: Uuid) -> Self {
        Self { tenant, heap: BinaryHeap::new(), has_more: false }
    }

    fn add(&mut self, place: Position, most: usize) {
        self.heap.push((place.id, place.due));
        if self.heap.len() > most {
            self.heap.pop();
            self.has_more = true;
        }
    }

    fn into_recall(self, mark: i64) -> Recall {
        let found = self.heap.into_sorted_vec().into_iter().map(|(id, due)| Position { due, id }).collect();
        Recall { mark, tenant: self.tenant, found, again: 0, has_more: self.has_more }
    }
}

impl Allowance {
    /// Grants up to `wanted`: all, or what is saved when that is worth a batch.
    fn take(&mut self, wanted: usize, now: Instant) -> usize {
        let most = (self.per_second * SAVED_FOR.as_secs_f64()).max(1.0);
        let earned = self.per_second * now.saturating_duration_since(self.at).as_secs_f64();
        self.saved = (self.saved + earned).min(most);
        self.at = now;
        // A quarter of what can be saved, so that records travel together.
        if self.saved < 1.0 || self.saved < (most / 4.0).min(wanted as f64) {
            return 0;
        }
        let granted = wanted.min(self.saved as usize);
        self.saved -= granted as f64;
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use floodway_schemas::retry_command::RetryAction;
    use floodway_store::retry_marks::Mark;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn mark(id: i64, subscription: u128) -> Mark {
        Mark {
            id,
            first_id: 0,
            until: DbInstant(i64::MAX),
            recorded_at: DbInstant(0),
            command: Uuid::from_u128(id.unsigned_abs().into()),
            action: RetryAction::Now,
            tenant: Uuid::nil(),
            subscription: Some(Uuid::from_u128(subscription)),
            event_id: None,
            retry_id: None,
            done: -1,
        }
    }

    #[test]
    fn a_share_that_comes_back_as_it_was_is_handed_out_again_and_one_that_was_refused_is_alone() {
        let (start, now) = (Position { due: DbInstant(-1), id: 0 }, Instant::now());
        let marks = Marks::new(vec![of(1, 1_000_000)]);
        let mut recalls = Recalls::new(&marks, 100_000, now);
        recalls.seek_after(start).unwrap();
        recalls.saw(&marks, &page(1, 600), true);
        let mut share = |left: Option<usize>| {
            let share = recalls.take(now + SAVED_FOR).unwrap();
            let ids: Vec<i64> = share.places.iter().map(|place| place.id).collect();
            match left {
                None => recalls.not_now(share),
                Some(left) => drop(recalls.back(share.recall, share.places[..left].to_vec())),
            }
            (ids[0], ids.len())
        };
        assert_eq!(
            [None, Some(3), None, Some(1), Some(0)].map(&mut share),
            [(0, 250), (0, 250), (0, 3), (0, 3), (0, 1)]
        );
        assert_eq!([Some(0), Some(0)].map(share), [(250, 250), (500, 100)]);
        assert!(!recalls.is_ready());
    }

    #[test]
    fn the_rate_holds_and_is_saved_up_for_a_moment_only() {
        let start = Instant::now();
        let mut allowance = Allowance { per_second: 1_000.0, saved: 0.0, at: start };
        assert_eq!(allowance.take(1_000, start + Duration::from_millis(10)), 0, "not worth a batch");
        assert_eq!(allowance.take(1_000, start + Duration::from_millis(100)), 100);
        assert_eq!(allowance.take(1_000, start + Duration::from_secs(100)), 250);
        assert_eq!(allowance.take(3, start + Duration::from_secs(101)), 3);
    }

    /// One mark of a tenant that covers all of its retries.
    fn of(tenant: u128, id: i64) -> Mark {
        Mark { tenant: Uuid::from_u128(tenant), ..mark(id, 0) }
    }

    /// A tenant's pending retries, this many.
    fn page(tenant: u128, n: i64) -> Vec<Candidate> {
        let candidate = |id| Candidate {
            position: Position { due: DbInstant(1), id },
            tenant: Uuid::from_u128(tenant),
            subscription: Uuid::nil(),
            event_id: String::new(),
        };
        (0..n).map(candidate).collect()
    }

    #[test]
    fn a_tenant_with_many_commands_keeps_nobody_elses_one_from_being_sought() {
        // Nine with a hundred each, more than are sought together; and one with one, after all of them.
        let many = (0..900i64).map(|id| of(id.unsigned_abs() as u128 / 100, id));
        let marks = Marks::new(many.chain([of(9, 900)]).collect());
        let mut recalls = Recalls::new(&marks, 1_000, Instant::now());
        let walks = [(); 3].map(|()| {
            let walk = recalls.begin_walk(Position { due: DbInstant(0), id: 0 }).unwrap();
            walk.marks.into_keys().collect::<Vec<_>>()
        });
        assert_eq!(walks[0], [0, 100, 200, 300, 400, 500, 600, 700]);
        assert_eq!(walks[1], [1, 101, 201, 301, 401, 501, 800, 900]);
        assert_eq!(walks[2], [2, 102, 202, 302, 402, 601, 701, 801]);
        assert_eq!(recalls.waiting.len(), 901 - 24);
    }

    #[test]
    fn what_many_commands_of_a_tenant_found_keeps_nobody_elses_from_being_handed_out_next() {
        let (start, now) = (Position { due: DbInstant(-1), id: 0 }, Instant::now());
        let many = (0..40i64).map(|n| of(1, 1_000_000 + n));
        let marks = Marks::new(many.chain([of(2, 2_000_000)]).collect());
        let mut recalls = Recalls::new(&marks, 1_000, now);
        recalls.seek_after(start).unwrap();
        recalls.saw(&marks, &page(1, 10_000), true);
        // The other's one came with the first walk, as the last in turn; seven of the many are ready.
        assert_eq!(recalls.ready.len(), 7);
        recalls.seek_after(start).unwrap();
        recalls.saw(&marks, &page(1, 10_000), true);
        assert!(!recalls.wants_page(), "this tenant has enough to be handed out");
        (0..3).for_each(|n| recalls.begin(Uuid::from_u128(3), 3_000_000 + n));
        let marks = Marks::new(vec![of(1, 1_000_000), of(3, 3_000_000)]);
        assert!(recalls.wants_page() && recalls.seek_after(start).is_some());
        recalls.saw(&marks, &page(3, 1_000), true);
        assert!(recalls.ready.len() == 16 && !recalls.wants_page(), "one of the other's, as it had nothing");
        let mut turns = (1..=4u32).map(|turn| {
            let Share { recall, places, .. } = recalls.take(now + turn * SAVED_FOR).unwrap();
            let of = recall.mark / 1_000_000;
            recalls.back(recall, Vec::new());
            (of, places.len())
        });
        assert_eq!([(); 4].map(|()| turns.next().unwrap()), [(1, 250), (3, 250), (1, 250), (3, 250)]);
    }

    proptest! {
        #[test]
        fn every_retry_that_a_mark_covers_is_handed_out_once_in_the_order_of_arrival(
            rows in proptest::collection::btree_map(0i64..1_000, (0i64..100, 0u128..3), 0..120),
            commands in proptest::collection::btree_map(1i64..1_200, 0u128..3, 1..12),
            most in 1usize..40, page in 1usize..30, failing in any::<u64>(),
        ) {
            let mut table: Vec<Candidate> = rows.iter().map(|(id, (due, subscription))| Candidate {
                position: Position { due: DbInstant(*due), id: *id },
                tenant: Uuid::nil(),
                subscription: Uuid::from_u128(*subscription),
                event_id: String::new(),
            }).collect();
            table.sort_by_key(|row| row.position);
            let mut marks = Marks::new(commands.iter().map(|(id, subscription)| mark(*id, *subscription)).collect());
            let mut now = Instant::now();
            let mut recalls = Recalls { most, ..Recalls::new(&marks, 10_000, now) };
            let mut handed: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
            let start = Position { due: DbInstant(-1), id: 0 };
            // At worst a walk of 120 pages for every retry of twelve commands, eight at once; and half of them fail for a while.
            for step in 0..60_000u32 {
                if !recalls.is_ready() && !recalls.wants_page() {
                    break;
                }
                now += Duration::from_millis(100);
                if let Some(after) = recalls.seek_after(start) {
                    let rest: Vec<Candidate> = table.iter().filter(|row| row.position > after).take(page).cloned().collect();
                    for ended in recalls.saw(&marks, &rest, rest.len() < page) {
                        marks.advance(ended, ended);
                    }
                }
                if let Some(Share { recall, places, .. }) = recalls.take(now) {
                    prop_assert!(recall.found.len() + places.len() <= most);
                    // Now and then the last one fails and comes again.
                    let fails = step < 2_000 && failing & (1 << (step % 64)) != 0;
                    let cut = places.len() - usize::from(fails);
                    let (done, again) = places.split_at(cut);
                    handed.entry(recall.mark).or_default().extend(done.iter().map(|place| place.id));
                    let (mark, reached) = (recall.mark, done.last().map(|place| place.id));
                    reached.into_iter().for_each(|reached| marks.advance(mark, reached));
                    if recalls.back(recall, again.to_vec()) {
                        marks.advance(mark, mark);
                    }
                }
            }
            prop_assert!(!recalls.is_ready() && !recalls.wants_page());
            prop_assert!(marks.at_work().next().is_none());
            for (command, subscription) in &commands {
                let covered = rows.iter().filter(|(id, (_, of))| *id < command && of == subscription);
                let covered: Vec<i64> = covered.map(|(id, _)| *id).collect();
                prop_assert_eq!(handed.remove(command).unwrap_or_default(), covered);
            }
        }
    }
}
