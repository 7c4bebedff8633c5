//! A partition as long as this process owns it. A new assignment makes a new one: what finishes late for an old one reaches
//! only the old tracker, which nobody commits any more.

use crate::{
    commit,
    tracker::{Progress, Tracker},
};
use floodway_schemas::ids::RunId;
use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

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

    /// The tracker's methods leave it whole: a panic elsewhere is no reason to stop.
    fn lock(&self) -> MutexGuard<'_, Tracker> {
        self.tracker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One delivery of one record, or of the several of a batch, to be settled once.
#[derive(Debug)]
pub(crate) struct Receipt {
    partition: Arc<Partition>,
    offset: i64,
    /// The further records of a batch.
    others: Vec<Receipt>,
}

impl Receipt {
    /// For one delivery of the record at `offset`.
    pub(crate) fn new(partition: &Arc<Partition>, offset: i64) -> Self {
        Self { partition: Arc::clone(partition), offset, others: Vec::new() }
    }

    /// The same delivery is for these records, too.
    pub(crate) fn join(&mut self, others: Vec<Self>) {
        self.others.extend(others);
    }

    /// Whether it is for several records, which may be of other partitions.
    pub(crate) fn is_shared(&self) -> bool {
        !self.others.is_empty()
    }

    /// Whether it is for a record of this assignment.
    pub(crate) fn is_of(&self, partition: &Arc<Partition>) -> bool {
        Arc::ptr_eq(&self.partition, partition)
    }

    /// The delivery's outcome is acknowledged.
    pub(crate) fn settle(&self) {
        if self.partition.lock().complete(self.offset) {
            self.partition.room.notify_all();
        }
        self.others.iter().for_each(Self::settle);
    }
}
