//! What a partition has read and its lanes have no room for yet, although their endpoints work them off.
//!
//! Deferring such deliveries would send them through the database and back for nothing when there is nothing else to deliver; waiting
//! for room would make everything behind them in the partition wait. So they are held back, up to a bound, while the partition is read
//! on. At the bound,
//! - a partition that held nothing else waits for room: neither in the records that were read ahead, nor lately in the time of the
//!   log, was there one that another lane took. Now and then it looks further ahead. So it is when one endpoint has a backlog, and
//!   when the process is the limit: then all lanes are full.
//! - a partition waits, too, when workers are behind ([`crate::lag`]) and what it holds is for many lanes: no endpoint is the limit, and what
//!   comes next would find no room either.
//! - any other partition is read on, and what finds no room is deferred.
//!
//! Lanes of endpoints that hang or fail do not come here: what they have no room for is deferred at once.

use crate::{
    deliver::{Deliverer, Taken},
    delivery::{Delivery, LaneId},
};
use floodway_schemas::UnixMillis;
use smallvec::SmallVec;
use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};
use tokio_util::task::task_tracker::TaskTrackerToken;

/// Deliveries held back per partition, and so the records that are read ahead: a few times what a lane takes in between two offers.
const CAPACITY: usize = 2048;
/// The same when less than [`SCARCE`] of the budget is free.
const SCARCE_CAPACITY: usize = 16;
/// Divisor of the budget that is left to others.
const SCARCE: usize = 4;
/// A partition in which another lane took something within this time of the log is not for full lanes alone.
const ALONE: Duration = Duration::from_secs(10);
/// Lanes that are remembered to have taken something.
const RECENT: usize = 4;
/// Longest wait before a partition looks further ahead, and how far. The records in between are deferred.
const LOOK_PAUSE: Duration = Duration::from_secs(10);
const LOOK_AHEAD: usize = CAPACITY;
/// Time between two offers of what is held back: lanes that flow hold enough for longer.
const OFFER_PAUSE: Duration = Duration::from_millis(2);
/// The same while workers are behind: they are the last to run out of work, and an offer in vain costs them time.
const BEHIND_PAUSE: Duration = Duration::from_millis(20);
/// So long a lane counts as full after it was found to be. When the process is the limit and no endpoint is, every lane is full most of
/// the time, and takes something now and then.
const FULL_MEMORY: Duration = Duration::from_millis(250);
/// So long a lane that was full is not offered anything while it says that it still is ([`crate::lane::Lane::is_full`]).
const VAIN_PAUSE: Duration = Duration::from_millis(100);
/// What is held back is for many lanes when none has more than this part of it, written as its divisor.
const MANY_LANES: usize = 4;

/// What is held back of one partition.
#[derive(Default)]
pub(crate) struct Backlog {
    /// By the lane that they wait for.
    held: HashMap<LaneId, Held>,
    /// How many they are together.
    count: usize,
    full: FullLanes,
    attention: Attention,
    offered_at: Option<Instant>,
}

/// What waits for one lane.
struct Held {
    /// In order. Each counts as under way: a dispatcher that ends sees to them.
    waiting: VecDeque<(Delivery, TaskTrackerToken)>,
    /// When the lane was last found full.
    refused_at: Instant,
}

/// Lanes that were found full lately, and when.
#[derive(Debug, Default)]
struct FullLanes(HashMap<LaneId, Instant>);

/// What the partition does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    /// It reads on.
    On,
    /// It waits a moment for room.
    Pauses(Duration),
}

/// What becomes of a delivery whose lane is full.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Excess {
    /// It is held back.
    Hold,
    /// It is deferred.
    Defer,
}

impl FullLanes {
    fn found(&mut self, lane: LaneId, now: Instant) {
        self.0.insert(lane, now);
    }

    fn contains(&self, lane: LaneId, now: Instant) -> bool {
        self.0.get(&lane).is_some_and(|&at| now.saturating_duration_since(at) <= FULL_MEMORY)
    }

    /// Forgets lanes that have not been full lately.
    fn forget_old(&mut self, now: Instant) {
        self.0.retain(|_, at| now.saturating_duration_since(*at) <= FULL_MEMORY);
    }
}

impl Backlog {
    /// Offers what is held back again, if it is time, and says whether to read on.
    pub(crate) fn work(&mut self, deliverer: &Deliverer) -> Reading {
        if self.count == 0 {
            return Reading::On;
        }
        let now = Instant::now();
        let are_behind = deliverer.workers.are_behind(now);
        let pause = if are_behind { BEHIND_PAUSE } else { OFFER_PAUSE };
        if self.offered_at.is_none_or(|at| now.saturating_duration_since(at) >= pause) {
            self.offered_at = Some(now);
            // Nothing begins any more once taking has ended.
            deliverer.life.while_running(|| self.offer_again(deliverer, now));
            deliverer.workers.signal();
        }
        let capacity = capacity(deliverer);
        let is_crowded = self.count >= capacity
            && are_behind
            && are_many(self.held.values().map(|held| held.waiting.len()), self.count);
        if is_crowded || self.attention.waits(self.count, capacity, &self.full, now) {
            Reading::Pauses(pause)
        } else {
            Reading::On
        }
    }

    /// How long the partition may wait for records: what is held back is offered again then.
    pub(crate) fn patience(&self, longest: Duration) -> Duration {
        if self.count == 0 { longest } else { OFFER_PAUSE }
    }

    /// Whether a delivery is to be taken without its lane having been asked: others wait for that lane, and there is room for more.
    pub(crate) fn is_ahead_of(&self, delivery: &Delivery, deliverer: &Deliverer) -> bool {
        self.held.contains_key(&delivery.lane_id()) && self.count < capacity(deliverer)
    }

    /// Takes a delivery whose lane is full, or defers it.
    pub(crate) fn take(&mut self, delivery: Delivery, deliverer: &Deliverer) {
        let (lane, now) = (delivery.lane_id(), Instant::now());
        self.full.found(lane, now);
        match self.attention.excess(self.count, capacity(deliverer)) {
            Excess::Hold => {
                self.count += 1;
                let held = self.held.entry(lane).or_insert_with(|| Held::found_full(now));
                held.waiting.push_back((delivery, deliverer.tasks.token()));
            }
            Excess::Defer => deliverer.put_off(delivery),
        }
    }

    /// Notes that a lane took a delivery of a record at once; returns whether it is another one than those that are full.
    pub(crate) fn passed(&mut self, lane: LaneId, at: UnixMillis) -> bool {
        self.attention.passed(lane, at);
        self.full.0.is_empty() || !self.full.contains(lane, Instant::now())
    }

    /// Notes a record of which deliveries were made: whether another lane than those that are full took one of them.
    pub(crate) fn note(&mut self, others: bool, at: UnixMillis) {
        self.attention.note(others, at);
    }

    /// Defers everything that is not the next owner's.
    pub(crate) fn leave(self, deliverer: &Deliverer) {
        let held = self.held.into_values().flat_map(|held| held.waiting);
        held.for_each(|(delivery, _under_way)| deliverer.leave(delivery));
    }

    /// Offers everything to its lane, in order, until that has no room.
    fn offer_again(&mut self, deliverer: &Deliverer, now: Instant) {
        self.full.forget_old(now);
        for (&lane, held) in &mut self.held {
            if held.is_in_vain(now) {
                continue;
            }
            while let Some((delivery, under_way)) = held.waiting.pop_front() {
                if let Taken::Full(delivery) = deliverer.offer(delivery) {
                    held.waiting.push_front((delivery, under_way));
                    held.refused_at = now;
                    self.full.found(lane, now);
                    break;
                }
                self.count -= 1;
            }
        }
        self.held.retain(|_, held| !held.waiting.is_empty());
    }
}

impl Held {
    fn found_full(now: Instant) -> Self {
        Self { waiting: VecDeque::new(), refused_at: now }
    }

    /// Whether to offer the first one now would only take time.
    fn is_in_vain(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.refused_at) < VAIN_PAUSE
            && self.waiting.front().is_some_and(|(delivery, _)| delivery.lane().is_full())
    }
}

fn capacity(deliverer: &Deliverer) -> usize {
    if deliverer.budget.is_scarce(SCARCE) { SCARCE_CAPACITY } else { CAPACITY }
}

/// Whether no lane of these has a great part of all that is held back.
fn are_many(lanes: impl Iterator<Item = usize>, count: usize) -> bool {
    lanes.max().unwrap_or(0) <= count / MANY_LANES
}

/// Whether a partition holds anything but deliveries for full lanes. Pure: time is an argument.
#[derive(Debug, Default)]
struct Attention {
    /// Records in a row of which no other lane took anything at once.
    in_a_row: usize,
    /// The lanes that took something last, and when in the time of the log. The latest is at the end.
    recent: SmallVec<[(LaneId, UnixMillis); RECENT]>,
    /// Time of the newest record.
    newest: Option<UnixMillis>,
    waits_since: Option<Instant>,
    /// Records that are still to be looked at although the partition would wait.
    look_ahead: usize,
}

impl Attention {
    fn passed(&mut self, lane: LaneId, at: UnixMillis) {
        if let Some(last) = self.recent.last_mut()
            && last.0 == lane
        {
            last.1 = at;
            return;
        }
        self.recent.retain(|known| known.0 != lane);
        if self.recent.len() == RECENT {
            self.recent.remove(0);
        }
        self.recent.push((lane, at));
    }

    fn note(&mut self, others: bool, at: UnixMillis) {
        self.newest = self.newest.max(Some(at));
        if others {
            self.in_a_row = 0;
            self.look_ahead = 0;
            self.waits_since = None;
        } else {
            self.in_a_row = self.in_a_row.saturating_add(1);
            self.look_ahead = self.look_ahead.saturating_sub(1);
        }
    }

    fn excess(&self, held: usize, capacity: usize) -> Excess {
        if held < capacity { Excess::Hold } else { Excess::Defer }
    }

    /// Whether to wait for room in the `full` lanes instead of reading on.
    fn waits(&mut self, held: usize, capacity: usize, full: &FullLanes, now: Instant) -> bool {
        if held < capacity || self.in_a_row < capacity || self.look_ahead > 0 || !self.is_alone(full, now) {
            return false;
        }
        let since = *self.waits_since.get_or_insert(now);
        if now.saturating_duration_since(since) >= LOOK_PAUSE {
            self.waits_since = None;
            self.look_ahead = LOOK_AHEAD;
            return false;
        }
        true
    }

    /// Whether no lane but the full ones took anything lately.
    fn is_alone(&self, full: &FullLanes, now: Instant) -> bool {
        let is_long_ago = |at| self.newest.is_none_or(|newest| newest.since(at) >= ALONE);
        self.recent.iter().all(|(lane, at)| full.contains(*lane, now) || is_long_ago(*at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FULL: LaneId = 1;
    const OTHER: LaneId = 2;

    /// Notes records of which `lane` took a delivery at once, or none did.
    fn note(attention: &mut Attention, records: usize, lane: Option<LaneId>, at_seconds: i64) {
        let at = UnixMillis(at_seconds * 1000);
        for _ in 0..records {
            if let Some(lane) = lane {
                attention.passed(lane, at);
            }
            attention.note(lane.is_some_and(|lane| lane != FULL), at);
        }
    }

    fn waits(attention: &mut Attention, held: usize, now: Instant) -> bool {
        attention.waits(held, CAPACITY, &full(now), now)
    }

    fn full(now: Instant) -> FullLanes {
        let mut lanes = FullLanes::default();
        lanes.found(FULL, now);
        lanes
    }

    #[test]
    fn what_is_held_back_is_for_many_lanes_when_none_has_more_than_a_quarter() {
        assert!(are_many([20; 100].into_iter(), 2000));
        assert!(are_many([500, 499, 500, 499].into_iter(), 2000));
        assert!(!are_many([501, 499, 500, 500].into_iter(), 2000));
        assert!(!are_many([2000].into_iter(), 2000));
    }

    #[test]
    fn a_lane_counts_as_full_for_a_moment_after_it_was() {
        let now = Instant::now();
        let mut lanes = full(now);
        let later = now + FULL_MEMORY;
        assert!(lanes.contains(FULL, later) && !lanes.contains(OTHER, later));
        lanes.forget_old(later);
        assert!(lanes.contains(FULL, later));
        let too_late = later + Duration::from_millis(1);
        assert!(!lanes.contains(FULL, too_late));
        lanes.forget_old(too_late);
        assert!(lanes.0.is_empty());
    }

    #[test]
    fn a_partition_waits_when_every_lane_is_full_now_and_then() {
        const LANES: LaneId = 100;
        let now = Instant::now();
        let (mut attention, mut lanes) = (Attention::default(), FullLanes::default());
        for record in 0..CAPACITY {
            let lane = record % LANES;
            lanes.found(lane, now);
            attention.passed(lane, UnixMillis(1));
            attention.note(!lanes.contains(lane, now), UnixMillis(1));
        }
        attention.note(false, UnixMillis(1));
        assert!(attention.waits(CAPACITY, CAPACITY, &lanes, now));
        // One that is not full would wait for nothing.
        attention.passed(LANES, UnixMillis(1));
        attention.note(true, UnixMillis(1));
        assert!(!attention.waits(CAPACITY, CAPACITY, &lanes, now));
    }

    #[test]
    fn a_partition_for_full_lanes_alone_waits_for_them() {
        let mut attention = Attention::default();
        let now = Instant::now();
        // Before it was full, and when there was room for a moment, the lane took some itself.
        note(&mut attention, 100, Some(FULL), 1);
        note(&mut attention, CAPACITY - 101, None, 1);
        note(&mut attention, 1, Some(FULL), 1);
        note(&mut attention, 1, None, 1);
        assert!(!waits(&mut attention, CAPACITY - 1, now));
        assert_eq!(attention.excess(CAPACITY - 1, CAPACITY), Excess::Hold);
        assert!(waits(&mut attention, CAPACITY, now));
        // Room was found: it reads on.
        assert!(!waits(&mut attention, CAPACITY - 20, now));
    }

    #[test]
    fn a_partition_in_which_others_were_met_is_read_on_and_the_excess_deferred() {
        let mut attention = Attention::default();
        let now = Instant::now();
        note(&mut attention, 1, Some(OTHER), 100);
        note(&mut attention, 1, Some(FULL), 100);
        note(&mut attention, 50 * CAPACITY, None, 109);
        assert!(!waits(&mut attention, CAPACITY, now));
        assert_eq!(attention.excess(CAPACITY, CAPACITY), Excess::Defer);
        // For ten seconds of the log there was nobody else.
        note(&mut attention, 1, None, 110);
        assert!(waits(&mut attention, CAPACITY, now));
        note(&mut attention, 1, Some(OTHER), 110);
        assert!(!waits(&mut attention, CAPACITY, now));
    }

    #[test]
    fn a_partition_that_waits_looks_further_ahead_now_and_then() {
        let mut attention = Attention::default();
        let now = Instant::now();
        note(&mut attention, CAPACITY, None, 1);
        assert!(waits(&mut attention, CAPACITY, now));
        let later = now + LOOK_PAUSE;
        assert!(!waits(&mut attention, CAPACITY, later));
        note(&mut attention, LOOK_AHEAD - 1, None, 1);
        assert!(!waits(&mut attention, CAPACITY, later));
        note(&mut attention, 1, None, 1);
        assert!(waits(&mut attention, CAPACITY, later));
    }

    proptest! {
        #[test]
        fn nothing_waits_behind_a_full_lane_in_a_shared_partition(
            records in proptest::collection::vec((0usize..4, 0i64..5_000), 1..200), held in 0usize..5_000,
        ) {
            let mut attention = Attention::default();
            let (now, mut at, mut last_other) = (Instant::now(), 0, None);
            for (lane, millis) in records {
                at += millis;
                // None, the full one, or others.
                if lane > 0 {
                    attention.passed(lane, UnixMillis(at));
                }
                attention.note(lane > FULL, UnixMillis(at));
                if lane > FULL {
                    last_other = Some(at);
                }
                if last_other.is_some_and(|other| at - other < 10_000) {
                    prop_assert!(!attention.waits(held, 1, &full(now), now));
                }
            }
        }
    }
}
