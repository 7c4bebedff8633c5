//! Whole histories of a partition, at random: owners that receive, settle, hand over, commit, are replaced, or crash, on a log with gaps
//! whose start is deleted now and then. Commits go through the metadata that Kafka keeps.
//!
//! Claimed of each: nothing unsettled is passed over; what is delivered again was not covered by a commit; the committed offset never
//! goes back; the window keeps its bound, and what fills it can always be handed over.

use crate::{
    commit,
    tracker::{Progress, Tracker},
};
use floodway_schemas::ids::RunId;
use proptest::{collection, prelude::*};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// Offsets of the log.
const END: i64 = 300;
/// Bounds as a partition has them, only smaller.
const MAX_WINDOW: usize = 12;
const LONG: usize = MAX_WINDOW / 2;
const MANY: usize = 4;
const RUN: RunId = RunId(Uuid::nil());

/// One of a record's deliveries.
type Delivery = (i64, u32);

#[derive(Debug, Clone)]
enum Step {
    /// The consumer hands over the next records.
    Receive(u8),
    /// Some delivery's own outcome is acknowledged.
    Complete(usize),
    /// Whatever is pressing is handed over.
    HandOver,
    /// A delivery that was handed over, or whose partition has another owner by now, has its own outcome.
    CompleteLate(usize),
    /// The current progress is committed.
    Commit,
    /// The partition is revoked, with a last commit, and goes to another owner. Attempts under way go on.
    Rebalance,
    /// The same without the commit: the owner lost the partition before it knew.
    Lose,
    /// The process dies, and what it has under way with it.
    Crash,
    /// Records up to some offset are deleted.
    Truncate(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (1u8..20).prop_map(Step::Receive),
        10 => any::<usize>().prop_map(Step::Complete),
        2 => Just(Step::HandOver),
        3 => any::<usize>().prop_map(Step::CompleteLate),
        3 => Just(Step::Commit),
        1 => Just(Step::Rebalance),
        1 => Just(Step::Lose),
        1 => Just(Step::Crash),
        1 => (0u8..30).prop_map(Step::Truncate),
    ];
    collection::vec(step, 1..200)
}

/// A log with gaps: offsets and the number of deliveries of each.
fn log() -> impl Strategy<Value = BTreeMap<i64, u32>> {
    collection::btree_map(0..END, 0u32..3, 1..120)
}

/// One owner of the partition, and what it has under way.
struct Owner {
    tracker: Tracker,
    position: i64,
    pending: Vec<Delivery>,
}

/// A partition with everything around it.
struct World {
    log: BTreeMap<i64, u32>,
    /// First offset that is not deleted.
    low: i64,
    committed: (i64, String),
    /// Records that a commit covered.
    covered: BTreeSet<i64>,
    /// Deliveries with an outcome of their own.
    done: BTreeSet<Delivery>,
    /// Deliveries with a lease.
    in_doubt: BTreeSet<Delivery>,
    /// Attempts under way that no progress waits for.
    late: Vec<Delivery>,
    owner: Owner,
}

impl World {
    fn new(log: BTreeMap<i64, u32>) -> Self {
        let owner =
            Owner { tracker: Tracker::new(Progress::starting_at(0)), position: 0, pending: Vec::new() };
        Self {
            log,
            low: 0,
            committed: (0, String::new()),
            covered: BTreeSet::new(),
            done: BTreeSet::new(),
            in_doubt: BTreeSet::new(),
            late: Vec::new(),
            owner,
        }
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Receive(count) => (0..count).for_each(|_| self.receive()),
            Step::Complete(pick) => {
                if let Some(delivery) = take(&mut self.owner.pending, pick) {
                    self.done.insert(delivery);
                    self.owner.tracker.complete(delivery.0);
                }
            }
            Step::HandOver => self.hand_over(),
            Step::CompleteLate(pick) => self.done.extend(take(&mut self.late, pick)),
            Step::Commit => self.commit(),
            Step::Rebalance => {
                self.commit();
                self.lose();
            }
            Step::Lose => self.lose(),
            Step::Crash => {
                self.late.clear();
                self.owner.pending.clear();
                self.take_over();
            }
            Step::Truncate(count) => {
                self.low = (self.low + i64::from(count)).min(END);
                // What is gone is nobody's duty any more, unless it was received before.
                let low = self.low;
                self.log.retain(|&offset, _| offset >= low);
            }
        }
        assert!(self.owner.tracker.window_len() <= MAX_WINDOW);
    }

    fn receive(&mut self) {
        let Owner { tracker, position, pending } = &mut self.owner;
        if tracker.window_len() >= MAX_WINDOW {
            return;
        }
        let Some((&offset, &deliveries)) = self.log.range(*position..).next() else { return };
        *position = offset + 1;
        if tracker.is_settled_or_seen(offset) {
            tracker.receive(offset, 0);
            return;
        }
        assert!(!self.covered.contains(&offset), "{offset} was covered by a commit");
        tracker.receive(offset, deliveries);
        pending.extend((0..deliveries).map(|number| (offset, number)));
    }

    /// As many times as it takes: each hand-over may leave others pressing.
    fn hand_over(&mut self) {
        let Owner { tracker, pending, .. } = &mut self.owner;
        while let Some(at) = pending.iter().position(|&(offset, _)| tracker.is_pressing(offset, LONG, MANY)) {
            let delivery = pending.remove(at);
            self.in_doubt.insert(delivery);
            self.late.push(delivery);
            tracker.complete(delivery.0);
        }
        assert!(tracker.window_len() <= LONG, "a window stays long although everything old was handed over");
    }

    fn commit(&mut self) {
        let progress = self.owner.tracker.progress();
        for few in [0, 1, 3] {
            let few = self.owner.tracker.progress_of(few);
            assert_eq!(few.watermark(), progress.watermark());
            assert!((0..END).all(|offset| !few.is_settled(offset) || progress.is_settled(offset)));
        }
        for (&offset, &deliveries) in &self.log {
            if progress.is_settled(offset) {
                self.covered.insert(offset);
                let answered = |number| {
                    self.done.contains(&(offset, number)) || self.in_doubt.contains(&(offset, number))
                };
                assert!((0..deliveries).all(answered), "{offset} is claimed and not settled");
            }
        }
        let (offset, metadata) = commit::encode(RUN, &progress);
        assert!(offset >= self.committed.0, "the committed offset went back");
        self.committed = (offset, metadata);
    }

    fn lose(&mut self) {
        self.late.append(&mut self.owner.pending);
        self.take_over();
    }

    fn take_over(&mut self) {
        let (offset, metadata) = &self.committed;
        let progress = match commit::decode(*offset, metadata) {
            Some((_, progress)) => progress,
            None => Progress::starting_at(*offset),
        };
        let progress = progress.within((self.low, END)).expect("the log reaches as far as it was consumed");
        self.owner =
            Owner { position: progress.watermark(), tracker: Tracker::new(progress), pending: Vec::new() };
    }

    /// Left alone, the last owner settles everything; leases without an outcome fire.
    fn finish(&mut self) {
        while self.log.range(self.owner.position..).next().is_some() {
            self.apply(&Step::Receive(1));
            (0..3).for_each(|_| self.apply(&Step::Complete(0)));
        }
        while !self.owner.pending.is_empty() {
            self.apply(&Step::Complete(0));
        }
        self.apply(&Step::Commit);
        self.done.append(&mut self.in_doubt);
        for (&offset, &deliveries) in &self.log {
            assert!((0..deliveries).all(|number| self.done.contains(&(offset, number))), "{offset} was lost");
            assert!(self.covered.contains(&offset));
        }
        assert_eq!((self.owner.tracker.window_len(), self.owner.tracker.progress().open.len()), (0, 0));
    }
}

fn take(deliveries: &mut Vec<Delivery>, pick: usize) -> Option<Delivery> {
    (!deliveries.is_empty()).then(|| deliveries.swap_remove(pick % deliveries.len()))
}

proptest! {
    #[test]
    fn nothing_is_passed_over_and_only_what_no_commit_covered_is_repeated(log in log(), steps in steps()) {
        let mut world = World::new(log);
        steps.iter().for_each(|step| world.apply(step));
        world.finish();
    }
}
