//! A partition as long as this process owns it. A new assignment makes a new one: what finishes late for an old one reaches
//! only the old tracker, which nobody commits any more.

use crate::{
    commit,
    tracker::{Progress, Tracker},
};
use floodway_schemas::ids::RunId;
use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

/// Part of the longest window, written as its divisor, from which on its oldest records are pressing.
const LONG_WINDOW: usize = 2;
/// Unsettled records from which on the oldest are pressing. Committed metadata can name three times as many if the distances between
/// them take a byte, and still as many if they take three.
const MANY_OPEN: usize = commit::MAX_OPEN / 3 - 8;

/// Stands for the offset of a delivery that is settled. Kafka's start at 0.
const SETTLED: i64 = -1;

/// One assignment of a partition.
#[derive(Debug)]
pub(crate) struct Partition {
    id: i32,
    run: RunId,
    /// Most records between the oldest unsettled and the newest received one.
    max_window: usize,
    tracker: Mutex<Tracker>,
    room: Condvar,
    stopped: AtomicBool,
    /// When a delivery was first given up without an outcome.
    abandoned: OnceLock<Instant>,
}

/// What is to be committed, and the tracker's revision that it shows.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// See [`Tracker::revision`].
    pub(crate) revision: u64,
    /// The offset to start from.
    pub(crate) offset: i64,
    /// What is settled above it.
    pub(crate) metadata: String,
}

impl Partition {
    /// An assignment that goes on where `progress` ends.
    pub(crate) fn new(id: i32, run: RunId, progress: Progress, max_window: usize) -> Self {
        Self {
            id,
            run,
            max_window,
            tracker: Mutex::new(Tracker::new(progress)),
            room: Condvar::new(),
            stopped: AtomicBool::new(false),
            abandoned: OnceLock::new(),
        }
    }

    /// Number of the partition.
    pub(crate) fn id(&self) -> i32 {
        self.id
    }

    /// The run that deliveries belong to.
    pub(crate) fn run(&self) -> RunId {
        self.run
    }

    /// See [`Tracker::is_settled_or_seen`].
    pub(crate) fn is_settled_or_seen(&self, offset: i64) -> bool {
        self.lock().is_settled_or_seen(offset)
    }

    /// See [`Tracker::receive`].
    pub(crate) fn receive(&self, offset: i64, deliveries: u32) {
        self.lock().receive(offset, deliveries);
    }

    /// Whether there is room for another record; waits for it up to `patience`. Blocks the thread.
    pub(crate) fn wait_for_room(&self, patience: Duration) -> bool {
        let is_full = |tracker: &mut Tracker| tracker.window_len() >= self.max_window && !self.is_stopped();
        let (tracker, _) = self
            .room
            .wait_timeout_while(self.lock(), patience, is_full)
            .unwrap_or_else(PoisonError::into_inner);
        tracker.window_len() < self.max_window
    }

    /// Records between the oldest unsettled and the newest received one.
    pub(crate) fn window_len(&self) -> usize {
        self.lock().window_len()
    }

    /// What is to be committed, unless it is what `known` shows already.
    pub(crate) fn snapshot(&self, known: Option<u64>) -> Option<Snapshot> {
        let (revision, progress) = {
            let tracker = self.lock();
            if known == Some(tracker.revision()) {
                return None;
            }
            (tracker.revision(), tracker.progress_of(commit::MAX_OPEN))
        };
        let (offset, metadata) = commit::encode(self.run, &progress);
        Some(Snapshot { revision, offset, metadata })
    }

    /// Tells the partition's thread to end.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.room.notify_all();
    }

    /// Whether the partition's thread is to end.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// How long ago a delivery was given up without an outcome: its record is settled by another assignment only.
    pub(crate) fn abandoned_for(&self) -> Option<Duration> {
        self.abandoned.get().map(Instant::elapsed)
    }

    /// The tracker's methods leave it whole: a panic elsewhere is no reason to stop.
    fn lock(&self) -> MutexGuard<'_, Tracker> {
        self.tracker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One delivery of one record, or of the several of a batch, to be settled once. Dropped before that, it leaves them to the next
/// assignment of the partition.
#[derive(Debug)]
pub(crate) struct Receipt {
    partition: Arc<Partition>,
    /// Of the record; [`SETTLED`] when that does not wait any more. There are as many receipts as deliveries: each byte counts.
    offset: AtomicI64,
    /// The further records of a batch.
    others: Vec<Receipt>,
}

impl Receipt {
    /// For one delivery of the record at `offset`.
    pub(crate) fn new(partition: &Arc<Partition>, offset: i64) -> Self {
        Self { partition: Arc::clone(partition), offset: AtomicI64::new(offset), others: Vec::new() }
    }

    /// The same delivery is for these records, too.
    pub(crate) fn join(&mut self, others: impl IntoIterator<Item = Self>) {
        self.others.extend(others);
    }

    /// Whether every record is the next owner's to deliver. Those of a batch may be of partitions that stayed.
    pub(crate) fn is_given_up(&self) -> bool {
        self.partition.is_stopped() && self.others.iter().all(Self::is_given_up)
    }

    /// Whether it is for a record of this assignment.
    pub(crate) fn is_of(&self, partition: &Arc<Partition>) -> bool {
        Arc::ptr_eq(&self.partition, partition)
    }

    /// The delivery's outcome is acknowledged.
    pub(crate) fn settle(&self) {
        let offset = self.offset.swap(SETTLED, Ordering::AcqRel);
        if offset != SETTLED && self.partition.lock().complete(offset) {
            self.partition.room.notify_all();
        }
        self.others.iter().for_each(Self::settle);
    }

    /// Whether the progress of a partition ought not to wait any longer for this delivery.
    pub(crate) fn is_pressing(&self) -> bool {
        let long = self.partition.max_window / LONG_WINDOW;
        let offset = self.offset.load(Ordering::Acquire);
        (!self.partition.is_stopped() && self.partition.lock().is_pressing(offset, long, MANY_OPEN))
            || self.others.iter().any(Self::is_pressing)
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if *self.offset.get_mut() != SETTLED {
            self.partition.abandoned.get_or_init(Instant::now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn partition(max_window: usize) -> Arc<Partition> {
        Arc::new(Partition::new(0, RunId(Uuid::nil()), Progress::starting_at(0), max_window))
    }

    #[test]
    fn a_delivery_is_settled_once_and_one_that_is_given_up_is_noticed() {
        let partition = partition(10);
        partition.receive(0, 2);
        let (first, second) = (Receipt::new(&partition, 0), Receipt::new(&partition, 0));
        first.settle();
        first.settle();
        drop(first);
        assert_eq!((partition.window_len(), partition.abandoned_for()), (1, None));
        drop(second);
        assert!(partition.abandoned_for().is_some());
    }

    #[test]
    fn what_is_for_partitions_that_were_all_given_up_is_the_next_owners() {
        let (gone, kept) = (partition(10), partition(10));
        let (alone, other) = (Receipt::new(&gone, 0), Receipt::new(&kept, 0));
        let (mut batch, mut shared) = (Receipt::new(&gone, 1), Receipt::new(&gone, 2));
        batch.join([Receipt::new(&gone, 3)]);
        shared.join([Receipt::new(&kept, 1)]);
        assert!(!alone.is_given_up() && !batch.is_given_up());
        gone.stop();
        assert!(alone.is_given_up() && batch.is_given_up());
        assert!(!other.is_given_up() && !shared.is_given_up());
        kept.stop();
        assert!(shared.is_given_up());
    }

    #[test]
    fn the_oldest_deliveries_of_a_window_that_is_half_full_are_pressing() {
        let partition = partition(16);
        let receipts: Vec<Receipt> = (0..8).map(|offset| Receipt::new(&partition, offset)).collect();
        (0..8).for_each(|offset| partition.receive(offset, 1));
        assert!(!receipts[0].is_pressing());
        (8..12).for_each(|offset| partition.receive(offset, 1));
        assert!(receipts.iter().all(Receipt::is_pressing));
        let newest = Receipt::new(&partition, 9);
        assert!(!newest.is_pressing());
        receipts[..4].iter().for_each(Receipt::settle);
        assert!(!receipts[4].is_pressing(), "the window is short again");
        partition.stop();
    }

    #[test]
    fn deliveries_are_pressing_before_there_are_more_than_a_commit_can_name() {
        let partition = partition(1_000_000);
        let open = i64::try_from(MANY_OPEN).unwrap();
        // Far enough apart for each to take three bytes.
        (0..=open).for_each(|number| partition.receive(number * 100_000, 1));
        let oldest = Receipt::new(&partition, 0);
        assert!(oldest.is_pressing());
        let snapshot = partition.snapshot(None).unwrap();
        let (_, named) = commit::decode(snapshot.offset, &snapshot.metadata).unwrap();
        assert_eq!((named.open.len(), named.high), (MANY_OPEN + 1, open * 100_000 + 1));
        oldest.settle();
        assert!(!Receipt::new(&partition, 100_000).is_pressing());
    }
}
