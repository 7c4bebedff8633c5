//! One shard: a partition of `outcomes`, the rows it became, and the thread that owns both.
//!
//! A shard's thread does one thing at a time, so ingest, prefetch and cursor need no agreement:
//!
//! 1. **Ingest** ([`ingest`]). Outcomes are read into a batch until it is full or a moment old.
//! 2. **Commit** ([`commit`]). Its dead letters are produced and acknowledged, then one transaction moves `next_offset` and stores
//!    every row. Either both happen or neither. Rows due soon also go into memory. The next batch is read meanwhile, see
//!    [`crate::ahead`].
//! 3. **Fire** ([`fire`]). Rows that are due are produced to `due`, to the partition of the shard's number. Their `retry_key` is
//!    (shard, offset of the outcome), so a retry that is produced twice is recognised.
//! 4. **Move the cursor** ([`cursor`]) past what was acknowledged; on an idle shard, past the time in which nothing was due.
//! 5. **Extend the horizon** ([`horizon`]): read the rows that fall due next into memory, a page while the one before is produced.
//!
//! Commands to pending retries come by the same log, and what they leave is stored with its position and with the cursor: see
//! [`commands`].
//!
//! What happens at each point where the process may end, or be cut off:
//!
//! | at | effect |
//! |---|---|
//! | before the batch is committed | rows and offset are both absent; the next owner reads the outcomes again |
//! | during the commit | whoever comes next, this owner included, finds out from `next_offset` |
//! | produced, not acknowledged, or the cursor not moved | the next owner produces the same records to the same partition, and they are delivered again; of the outcomes of equal records only the first is stored (see [`crate::repeats`]) |
//! | hangs, or its machine is gone, in the middle of the transaction | the server ends the transaction after its time limit; the next owner ends a session that waits for `COPY` data, which the limit does not reach |
//! | cut off, another owner took over | no transaction succeeds, for none has the new epoch; nothing is produced beyond `fence_age` after the last one that did |
//! | the database came back older (asynchronous failover) | rows, offset and cursor went back together; the shard starts over from them |
//!
//! While the database is away nothing is read, produced or dropped. One thread of the process asks for all whether it is
//! back (see [`crate::circuit`]); then each asks for its shard's row until it gets it, compares it with what it believes, and goes on or starts over.

mod commands;
mod commit;
mod cursor;
mod early;
mod fire;
mod horizon;
mod ingest;
mod recovery;

use self::{
    commands::{Cancelled, RECALL_INTERVAL},
    early::Recalled,
    fire::Firing,
    horizon::Page,
};
use crate::{
    batch::Batch,
    circuit::Turn,
    clamp::DbClock,
    dependency::Reporter,
    intake::Intake,
    marks::Marks,
    metrics::{Metrics, ShardMetrics},
    pending::Pending,
    reader::Reader,
    recalls::Recalls,
    repeats::Repeats,
    shared::{Shared, lock},
    stop::{Ending, Stop},
    takeover::{self, Obstacle, TakenOver},
};
use floodway_runtime::{backoff::Backoff, stall::StallWatch};
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Longest wait before the thread looks whether it is to end.
const LONGEST_WAIT: Duration = Duration::from_millis(100);

/// How often the thread looks at acknowledgements it waits for. Kafka takes about as long.
const ACK_INTERVAL: Duration = Duration::from_millis(2);

/// A batch is stored at this age even while there is more to read.
const FLUSH: Duration = Duration::from_secs(1);

/// Longest wait of a new owner's due retries for what it reads again: a lease among them may be void.
const REPLAY_PATIENCE: Duration = Duration::from_secs(5);

/// Waits between tries while a dependency is away.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(5);

/// How a shard's thread ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// As it was told.
    Stopped,
    /// Another process took over.
    Fenced,
}

/// Why a round did not complete.
enum Trouble {
    /// The database failed: find out what it has, then go on.
    Database(floodway_store::Error),
    /// Another process took over.
    Fenced,
    /// Memory and log do not fit any more: take over again.
    StartOver(&'static str),
}

impl From<floodway_store::Error> for Trouble {
    fn from(error: floodway_store::Error) -> Self {
        Self::Database(error)
    }
}

/// The life of a shard's thread.
pub(crate) fn run(shared: &Shared, shard: i32, stop: &Stop) -> End {
    let end = loop {
        let Some(taken) = take_over(shared, shard, stop) else { break End::Stopped };
        let mut owner = Owner::new(shared, shard, stop, taken);
        match owner.work() {
            Ok(Ending::Drain) => {
                owner.drain();
                break End::Stopped;
            }
            Ok(Ending::Abort) => break End::Stopped,
            Err(Trouble::StartOver(reason)) => {
                tracing::warn!(shard, epoch = owner.epoch, reason, "shard {shard} starts over: {reason}");
            }
            Err(_) => {
                tracing::warn!(shard, epoch = owner.epoch, "shard {shard} was taken over by another process");
                shared.metrics.fenced.increment(1);
                break End::Fenced;
            }
        }
    };
    shared.database_health.up(Reporter::Shard(shard));
    shared.kafka_health.up(Reporter::Shard(shard));
    lock(&shared.positions).remove(&shard);
    let ShardMetrics { heap_rows, cursor_lag_seconds } = Metrics::shard(shard);
    heap_rows.set(0.0);
    cursor_lag_seconds.set(0.0);
    end
}

/// Takes the shard over, however long that takes; `None` when the thread is to end.
fn take_over(shared: &Shared, shard: i32, stop: &Stop) -> Option<TakenOver> {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
    while stop.requested().is_none() {
        let turn = shared.circuit.wait(stop);
        if turn == Turn::Wait {
            continue;
        }
        match takeover::take_over(shared, shard) {
            Ok(taken) => {
                shared.circuit.closed();
                shared.metrics.takeovers.increment(1);
                shared.database_health.up(Reporter::Shard(shard));
                shared.kafka_health.up(Reporter::Shard(shard));
                let (epoch, next_offset) = (taken.row.epoch, taken.row.next_offset);
                tracing::info!(shard, epoch, next_offset, "took shard {shard} over at offset {next_offset}");
                return Some(taken);
            }
            Err(Obstacle::Kafka(error)) => {
                if turn == Turn::Probe {
                    // Nothing was learnt about the database: the turn goes on to somebody else.
                    shared.circuit.failed(turn, Instant::now(), rand::random());
                }
                shared.kafka_health.down(Reporter::Shard(shard), error.to_string())
            }
            Err(Obstacle::Database(error)) => {
                shared.circuit.failed(turn, Instant::now(), rand::random());
                shared.database_health.down(Reporter::Shard(shard), error.to_string());
            }
            Err(Obstacle::Fenced) => shared.circuit.closed(),
        }
        stop.wait(backoff.next(rand::random()));
    }
    None
}

/// The owner of a shard, within one epoch.
struct Owner<'s> {
    shared: &'s Shared,
    shard: i32,
    stop: &'s Stop,
    metrics: ShardMetrics,
    epoch: i64,
    reader: Reader,
    intake: Intake,
    /// Whether the reader still reads.
    stall: StallWatch,
    /// Whether the last look at the log found nothing more.
    caught_up: bool,
    /// Whether the place to read from left the log, as reading ahead found.
    left_log: bool,
    /// Closed, in order. While one is being stored the open batch is filled; while one waits nothing is read.
    closed: VecDeque<Batch>,
    /// Whether the commit of the first closed batch was sent.
    commit_sent: bool,
    /// Earliest time for another try of the first closed batch.
    commit_after: Option<Instant>,
    pending: Pending,
    /// The rows that follow, on their way from the table.
    page: Option<Page>,
    /// Earliest time for another try to read pending retries: others did.
    page_after: Option<Instant>,
    /// The same for seeking what commands cover.
    seek_after: Option<Instant>,
    firing: Option<Firing>,
    fire_after: Option<Instant>,
    /// The offset from which nothing is read again; `None` when it was reached.
    replayed_at: Option<i64>,
    fire_backoff: Backoff,
    /// What commands mean for pending retries.
    marks: Marks,
    recalls: Recalls,
    /// To be produced with the next rows.
    recalled: Option<Recalled>,
    /// Whose history is not stored.
    cancelled: Vec<Cancelled>,
    /// Whether some of it was sent to be stored, and the answer was lost.
    may_be_told: bool,
    clock: DbClock,
    /// When the last write was sent that proved the ownership.
    fenced_at: Instant,
    cursor_moved_at: Instant,
    /// Whether anything was acknowledged since.
    acknowledged: bool,
    /// When the database last failed, until it took a write.
    troubled_at: Option<Instant>,
    database_backoff: Backoff,
}

impl<'s> Owner<'s> {
    fn new(shared: &'s Shared, shard: i32, stop: &'s Stop, taken: TakenOver) -> Self {
        let TakenOver { row, marks, at, fenced_at, reader, replays } = taken;
        let settings = &shared.settings;
        let marks = Marks::new(marks);
        Self {
            shared,
            shard,
            stop,
            metrics: Metrics::shard(shard),
            epoch: row.epoch,
            reader,
            intake: Intake::new(shard, &row, Repeats::new(settings.repeats, settings.repeats_window)),
            stall: StallWatch::new(row.next_offset, Instant::now()),
            caught_up: false,
            left_log: false,
            closed: VecDeque::new(),
            commit_sent: false,
            commit_after: None,
            pending: Pending::new(row.cursor, settings.bounds()),
            page: None,
            page_after: None,
            seek_after: None,
            firing: None,
            fire_after: replays.then(|| Instant::now() + REPLAY_PATIENCE),
            replayed_at: replays.then_some(row.next_offset),
            fire_backoff: Backoff::new(RETRY_FIRST, RETRY_LONGEST),
            recalls: Recalls::new(&marks, settings.recall_rate, Instant::now()),
            marks,
            recalled: None,
            cancelled: Vec::new(),
            may_be_told: false,
            clock: DbClock::new(row.db_now, at),
            fenced_at,
            cursor_moved_at: at,
            acknowledged: false,
            troubled_at: None,
            database_backoff: Backoff::new(RETRY_FIRST, RETRY_LONGEST),
        }
    }

    /// Works until told to end. Trouble with the database is waited out; other trouble ends the ownership.
    fn work(&mut self) -> Result<Ending, Trouble> {
        loop {
            if let Some(ending) = self.stop.requested() {
                return Ok(ending);
            }
            match self.round() {
                Err(Trouble::Database(error)) => self.reconcile(error)?,
                result => result?,
            }
            self.recover();
        }
    }

    /// The database is well again only when it took a write, not already when it could be read.
    fn recover(&mut self) {
        if self.troubled_at.is_some_and(|troubled_at| self.fenced_at > troubled_at) {
            self.troubled_at = None;
            self.database_backoff.reset();
            self.shared.database_health.up(Reporter::Shard(self.shard));
        }
    }

    fn round(&mut self) -> Result<(), Trouble> {
        self.ingest()?;
        self.commit()?;
        self.settle();
        self.check_producer()?;
        self.seek()?;
        self.recall()?;
        self.fire()?;
        self.move_cursor()?;
        self.extend_horizon()?;
        self.report();
        Ok(())
    }

    /// When the next thing is to be done even if no record comes.
    fn next_wake(&self, now: Instant) -> Instant {
        let mut wake = now + LONGEST_WAIT;
        if self.firing.is_some() || !self.closed.is_empty() {
            wake = wake.min(now + ACK_INTERVAL);
        } else if let Some(due) = self.pending.next_due() {
            let due = self.clock.instant_of(due).max(self.fire_after.unwrap_or(now));
            wake = wake.min(due);
        }
        if self.acknowledged {
            wake = wake.min(self.cursor_moved_at + self.shared.settings.cursor_interval);
        }
        if self.recalls.is_ready() || self.recalled.is_some() {
            wake = wake.min(now + RECALL_INTERVAL);
        }
        if self.page.is_some() {
            wake = wake.min(now + ACK_INTERVAL);
        }
        if self.wants_page(now) {
            wake = wake.min(self.page_after.unwrap_or(now));
        }
        if self.recalls.wants_page() {
            wake = wake.min(self.seek_after.unwrap_or(now));
        }
        wake.max(now)
    }

    fn report(&self) {
        self.metrics.heap_rows.set(self.pending.len() as f64);
        let age = self.clock.now(Instant::now()).since(self.pending.cursor().due);
        self.metrics.cursor_lag_seconds.set(age.as_secs_f64());
    }
}
