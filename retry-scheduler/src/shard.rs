//! One shard: a partition of `outcomes`, the rows it became, and the thread that owns both.
//!
//! A shard's thread does one thing at a time, so ingest, prefetch and cursor need no agreement:
//!
//! 1. **Ingest.** Outcomes are read into a batch until it is full or a moment old.
//! 2. **Commit.** Its dead letters are produced and acknowledged, then one transaction moves `next_offset` and stores
//!    every row. Either both happen or neither. Rows due soon also go into memory. The next batch is read meanwhile, see
//!    [`crate::ahead`].
//! 3. **Fire.** Rows that are due are produced to `due`, to the partition of the shard's number. Their `retry_key` is
//!    (shard, offset of the outcome), so a retry that is produced twice is recognised.
//! 4. **Move the cursor** past what was acknowledged; on an idle shard, past the time in which nothing was due.
//! 5. **Extend the horizon**: read the rows that fall due next into memory, a page while the one before is produced.
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
mod early;
mod horizon;

use self::{
    commands::{Cancelled, RECALL_INTERVAL},
    early::{Early, Recalled},
    horizon::{PAGE_BYTES, Page},
};
use crate::{
    admission,
    ahead::{Ahead, Seen, while_reading},
    batch::{self, Batch, Letters},
    circuit::{Circuit, Turn},
    clamp::DbClock,
    config::Settings,
    dependency::{Dependency, Reporter},
    intake::Intake,
    marks::Marks,
    metrics::{Metrics, ShardMetrics},
    pending::Pending,
    publish::{Acks, Publisher},
    read::Poison,
    reader::{Polled, Reader},
    recalls::Recalls,
    repeats::Repeats,
    stop::{Ending, Stop},
    takeover::{self, Obstacle, TakenOver},
};
use floodway_runtime::{
    backoff::Backoff,
    kafka::KafkaSettings,
    stall::{Finding, StallWatch},
    witness::Witness,
};
use floodway_store::{
    DbInstant, Pool,
    retry::{self, PendingRetry, Position, WriteError},
};
use rdkafka::Message;
use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    runtime::Handle,
    sync::{Notify, Semaphore},
};

/// Longest wait before the thread looks whether it is to end.
const LONGEST_WAIT: Duration = Duration::from_millis(100);

/// How often the thread looks at acknowledgements it waits for. Kafka takes about as long.
const ACK_INTERVAL: Duration = Duration::from_millis(2);

/// Records are read for this long at least while there are any, even when something else is to be done all the time.
const READ_AT_LEAST: Duration = Duration::from_millis(5);

/// A batch is stored at this age even while there is more to read.
const FLUSH: Duration = Duration::from_secs(1);

/// Longest wait of a new owner's due retries for what it reads again: a lease among them may be void.
const REPLAY_PATIENCE: Duration = Duration::from_secs(5);

/// Longest wait for the database's answer. Its own limits are shorter, so this passes only if they do not work.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(15);

/// Waits between tries while a dependency is away.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(5);

/// Why a shard starts over whose next record is gone.
const OUT_OF_RANGE: &str = "its next offset left the log";

/// Why a shard starts over that reads nothing and cannot ask.
const BLIND: &str = "its reader finds no broker, and others do";

/// Why a shard starts over that waits for the producer in vain.
const UNANSWERED: &str = "the producer does not say what became of its records";

/// What every shard of the process uses.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) kafka: KafkaSettings,
    pub(crate) pool: Pool,
    /// Half of the pool's connections: pages that are read meanwhile leave the others to whoever stores.
    pub(crate) pages: Arc<Semaphore>,
    pub(crate) handle: Handle,
    pub(crate) publisher: Publisher,
    /// Asked when a client finds no broker.
    pub(crate) witness: Witness,
    pub(crate) metrics: Metrics,
    pub(crate) kafka_health: Dependency,
    pub(crate) database_health: Dependency,
    pub(crate) circuit: Circuit,
    pub(crate) outcomes_log: Dependency,
    /// Wakes the task that creates partitions and looks after shards without one.
    pub(crate) partitions_wanted: Notify,
    /// How far each shard was stored: what the group commits, as a hint for people and tools.
    pub(crate) positions: Mutex<BTreeMap<i32, i64>>,
    /// Partitions of `outcomes` as Kafka last told; 0 before that.
    pub(crate) partitions: AtomicI32,
    /// Who this process is, for the shard's row.
    pub(crate) owner: String,
}

impl Shared {
    /// Notes how many partitions `outcomes` has; when that is news, maintenance looks whether all shards still have one.
    pub(crate) fn learn_partitions(&self, partitions: i32) {
        // Relaxed: the number stands for itself.
        if partitions > 0 && self.partitions.swap(partitions, Ordering::Relaxed) != partitions {
            self.partitions_wanted.notify_one();
        }
    }
}

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

/// Waits for the database from a thread of its own.
pub(crate) fn call<T, E: From<floodway_store::Error>>(
    shared: &Shared,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let limited = async {
        match tokio::time::timeout(DATABASE_TIMEOUT, work).await {
            Ok(result) => result,
            Err(_) => Err(no_answer().into()),
        }
    };
    shared.handle.block_on(limited)
}

/// What stands for an answer that does not come.
fn no_answer() -> floodway_store::Error {
    floodway_store::Error::Unavailable(format!("no answer within {} s", DATABASE_TIMEOUT.as_secs()))
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

/// Retries that were produced and not all acknowledged yet.
struct Firing {
    rows: Vec<PendingRetry>,
    acks: Arc<Acks>,
    /// The last part of the rows, which came before its time.
    early: Option<Early>,
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
            firing: None,
            fire_after: replays.then(|| at + REPLAY_PATIENCE),
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

    // ---- Ingest

    /// Reads records until the batch is full or something else is to be done.
    fn ingest(&mut self) -> Result<(), Trouble> {
        let mut now = Instant::now();
        let wake = self.next_wake(now);
        let read_until = wake.max(now + READ_AT_LEAST);
        if self.left_log {
            return Err(Trouble::StartOver(OUT_OF_RANGE));
        }
        if !self.closed.is_empty() {
            // A batch waits for its dead letters, or for a partition: what else is due goes on meanwhile.
            self.stop.wait(wake.saturating_duration_since(now).min(ACK_INTERVAL));
            self.stall.not_asked(now);
            return Ok(());
        }
        let settings = &self.shared.settings;
        while !self.intake.open.is_full(settings.batch_rows, settings.batch_bytes) {
            let wait_until =
                self.intake.open.deadline(settings.linger).map_or(wake, |deadline| deadline.min(wake));
            match self.reader.poll(wait_until.saturating_duration_since(now)) {
                Polled::Nothing => {
                    self.caught_up = true;
                    return self.check_reader();
                }
                Polled::End => {
                    now = Instant::now();
                    self.caught_up = true;
                    self.stall.reached_end();
                    self.has_read_up_to(i64::MAX);
                }
                Polled::OutOfRange => return Err(Trouble::StartOver(OUT_OF_RANGE)),
                Polled::Record(record) => {
                    now = Instant::now();
                    self.caught_up = false;
                    let next = record.offset().saturating_add(1);
                    self.stall.read(record.offset());
                    self.intake.take(&self.shared.metrics, &record, now);
                    self.has_read_up_to(next);
                }
            }
            if now >= read_until || self.intake.open.deadline(FLUSH).is_some_and(|deadline| deadline <= now) {
                break;
            }
        }
        Ok(())
    }

    /// Lets retries fire that waited until all that is to be read again was read.
    fn has_read_up_to(&mut self, next: i64) {
        if self.replayed_at.is_some_and(|replayed_at| next >= replayed_at) {
            self.replayed_at = None;
            self.fire_after = None;
        }
    }

    /// Fetches again when the reader yields nothing although the log goes on, and starts over when that does not help.
    fn check_reader(&mut self) -> Result<(), Trouble> {
        if !self.stall.is_due(Instant::now()) {
            return Ok(());
        }
        let end = self.reader.end().ok();
        match self.stall.look(end, Instant::now()) {
            Finding::ReadsOn => Ok(()),
            Finding::Stopped => {
                let from = self.stall.next();
                self.shared.metrics.reader_stalls.increment(1);
                let fetched = self.reader.start(from);
                tracing::warn!(shard = self.shard, from, ?fetched, "the reader had stopped: fetched again");
                Ok(())
            }
            Finding::StoppedForGood => {
                self.shared.metrics.reader_stalls.increment(1);
                Err(Trouble::StartOver("its reader stopped although the log goes on"))
            }
            Finding::Blind if self.reader.is_lost(&self.shared.witness, self.stall.blindness()) => {
                self.shared.metrics.reader_stalls.increment(1);
                Err(Trouble::StartOver(BLIND))
            }
            // The partition has no leader, or Kafka is away, or was a moment ago: what is in memory fires all the same.
            Finding::Blind => Ok(()),
        }
    }

    /// Whether the open batch is to be stored: it is full, or it lingered and no more is there to be read, or it is old.
    fn is_ready(&self, now: Instant) -> bool {
        let settings = &self.shared.settings;
        let is_older = |age| self.intake.open.deadline(age).is_some_and(|deadline| deadline <= now);
        self.intake.open.is_full(settings.batch_rows, settings.batch_bytes)
            || (self.caught_up && is_older(settings.linger))
            || is_older(FLUSH)
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
        if self.wants_page(now) || self.recalls.wants_page() {
            wake = now;
        }
        wake.max(now)
    }

    // ---- Commit

    /// Stores what is ready to be stored.
    fn commit(&mut self) -> Result<(), Trouble> {
        let now = Instant::now();
        if self.closed.is_empty() && self.is_ready(now) {
            let next = Batch::new(self.intake.open.to);
            self.intake.log_poison();
            self.closed.push_back(std::mem::replace(&mut self.intake.open, next));
        }
        while self.commit_after.is_none_or(|after| after <= now) && self.publish_letters(now) {
            self.commit_after = None;
            self.finish_page()?;
            match self.store_first() {
                Ok(()) => self.first_is_stored(),
                Err(WriteError::MissingPartition) => self.wait_for_partition(now),
                Err(WriteError::Refused(reason)) => self.split_first(&reason),
                Err(WriteError::Store(error)) => return Err(Trouble::Database(error)),
                Err(WriteError::Fenced) => return Err(Trouble::Fenced),
            }
        }
        Ok(())
    }

    /// Brings the dead letters of the first closed batch onto their topic. Whether there is a batch and all are there.
    fn publish_letters(&mut self, now: Instant) -> bool {
        let Some(first) = self.closed.front_mut() else { return false };
        if let Letters::Unsent(after) = first.letters {
            let letters = first.letters();
            if letters.is_empty() {
                first.letters = Letters::Done;
            } else if after.is_none_or(|after| after <= now) {
                let records = letters.iter().map(|letter| (letter.key.as_str(), letter.record.as_slice()));
                let acks = self.shared.publisher.dead_letters(records);
                first.letters = Letters::Sent(acks);
            }
        }
        if let Letters::Sent(acks) = &first.letters
            && let Some(failed) = acks.result()
        {
            // A letter that the topic will never take must not hold up the shard: the table has it.
            let (lost, failed): (Vec<_>, Vec<_>) = failed.into_iter().partition(|failed| failed.too_large);
            if !lost.is_empty() {
                self.shared.metrics.letters_unpublished.increment(lost.len() as u64);
                tracing::error!(
                    shard = self.shard,
                    n = lost.len(),
                    "dead letters are too large for their topic"
                );
            }
            // Those that were acknowledged come again with the others: equal ids are repeats.
            first.letters =
                if failed.is_empty() { Letters::Done } else { Letters::Unsent(Some(now + RETRY_LONGEST)) };
        }
        matches!(first.letters, Letters::Done)
    }

    /// One transaction: the position and every row of the first closed batch.
    fn store_first(&mut self) -> Result<(), WriteError> {
        let Some(first) = self.closed.front_mut() else { return Ok(()) };
        let (shared, shard, epoch) = (self.shared, self.shard, self.epoch);
        let (clock, commit_sent, floor) = (&mut self.clock, &mut self.commit_sent, self.pending.floor());
        // A shard that has caught up has nothing to read meanwhile.
        let ahead = (!self.caught_up).then_some(Ahead {
            shared,
            reader: &self.reader,
            intake: &mut self.intake,
            stall: &mut self.stall,
        });
        let marks = &self.marks;
        let sent_at = Instant::now();
        let store = || {
            call(shared, async {
                let mut client = shared.pool.get().await?;
                let transaction = retry::begin(&mut client, shard, epoch, first.from, first.to).await?;
                *clock = DbClock::new(transaction.db_now, Instant::now());
                let floor = floor.max(transaction.cursor);
                let mut admission = admission::admit(&first.commands, marks, transaction.db_now);
                let new = &mut admission.marks;
                Self::shorten_deferrals(first, marks, transaction.db_now, new);
                batch::place(&mut first.entries, transaction.db_now, floor, shared.settings.limits());
                let rows = batch::rows(&first.entries);
                transaction.add_retries(shard, &rows.retries).await?;
                transaction.add_deliveries(shard, &rows.deliveries).await?;
                transaction.add_dead_letters(shard, &rows.dead_letters).await?;
                transaction.add_counts(&rows.counts.iter().collect::<Vec<_>>()).await?;
                if !new.is_empty() {
                    let last_due = transaction.last_due(shard).await?;
                    new.iter_mut()
                        .for_each(|mark| mark.until = last_due.map_or(mark.until, |due| due.max(mark.until)));
                    transaction.add_marks(shard, &new.iter().collect::<Vec<_>>()).await?;
                }
                first.admission = admission;
                *commit_sent = true;
                transaction.commit().await
            })
        };
        let (stored, seen) = while_reading(ahead, store);
        self.note(seen);
        stored?;
        self.fenced_at = sent_at;
        shared.metrics.transaction_seconds.record(sent_at.elapsed());
        Ok(())
    }

    /// What reading ahead found.
    fn note(&mut self, seen: Seen) {
        match seen {
            Seen::NotAsked => {}
            Seen::OutOfRange => self.left_log = true,
            Seen::UpTo { next, caught_up } => {
                self.caught_up = caught_up;
                self.has_read_up_to(next);
            }
        }
    }

    /// The first closed batch is in the database: what is due soon goes into memory.
    fn first_is_stored(&mut self) {
        self.commit_sent = false;
        let Some(first) = self.closed.pop_front() else { return };
        self.shared.metrics.batch_rows.record(first.entries.len() as f64);
        lock(&self.shared.positions).insert(self.shard, first.to);
        for entry in first.entries {
            self.shared.metrics.outcomes(entry.count.kind, 1);
            if let Some(letter) = &entry.letter {
                self.shared.metrics.dead_letter(letter.row.reason);
            }
            if let Some(later) = entry.retry {
                let row = later.row;
                let position = row.position;
                let pending = || PendingRetry { position, record_key: row.record_key, record: row.record };
                self.pending.stored(pending, position);
            }
        }
        self.commands_are_stored(first.admission);
    }

    fn wait_for_partition(&mut self, now: Instant) {
        self.commit_sent = false;
        self.shared.metrics.partitions_missing.increment(1);
        tracing::warn!(shard = self.shard, "a partition is missing, the batch waits for it");
        self.shared.partitions_wanted.notify_one();
        self.commit_after = Some(now + LONGEST_WAIT);
    }

    /// The database refuses a row: halves the batch until its record is alone. A command is passed over; of an outcome the history is
    /// left out, and it is passed over if it is refused even so. Then a lease that it ended is open again: the delivery is made once more.
    fn split_first(&mut self, reason: &str) {
        self.commit_sent = false;
        let Some(first) = self.closed.pop_front() else { return };
        match first.split() {
            Ok((one, other)) => {
                self.closed.push_front(other);
                self.closed.push_front(one);
            }
            Err(mut single) => {
                let (shard, offset) = (self.shard, single.from);
                self.shared.metrics.poison(Poison::Refused);
                if single.leave_out_history() {
                    tracing::error!(shard, offset, reason, "history of an outcome left out: {reason}");
                } else if single.leave_out_commands() {
                    tracing::error!(
                        shard,
                        offset,
                        reason,
                        "command to pending retries passed over: {reason}"
                    );
                } else {
                    tracing::error!(shard, offset, reason, "outcome passed over: {reason}");
                    let voided = single.entries.drain(..).filter_map(|entry| entry.voids);
                    for delivery in voided {
                        self.intake.leases.reopen(delivery);
                    }
                }
                self.closed.push_front(*single);
            }
        }
    }

    // ---- Fire

    /// Produces what is due.
    fn fire(&mut self) -> Result<(), Trouble> {
        let now = Instant::now();
        let is_due = self.pending.next_due().is_some_and(|due| due <= self.clock.now(now));
        let is_wanted = is_due || self.recalled.is_some();
        if !is_wanted || self.firing.is_some() || self.fire_after.is_some_and(|after| after > now) {
            return Ok(());
        }
        let settings = &self.shared.settings;
        if now.saturating_duration_since(self.fenced_at) >= settings.fence_age {
            self.store_cursor()?;
        }
        let rows = self.pending.take_due(self.clock.now(now), settings.fire_rows, settings.fire_bytes);
        let mut rows = self.unless_void(rows);
        self.unless_marked(&mut rows);
        let early = self.add_recalled(&mut rows);
        let acks = self.shared.publisher.due(self.shard, &rows);
        self.firing = Some(Firing { rows, acks, early });
        Ok(())
    }

    /// Leaves out the leases of deliveries whose own outcome came: they count as acknowledged.
    fn unless_void(&mut self, mut rows: Vec<PendingRetry>) -> Vec<PendingRetry> {
        let (leases, metrics) = (&mut self.intake.leases, &self.shared.metrics);
        let before = rows.len();
        rows.retain(|row| match leases.fire(row.position.id) {
            None => true,
            Some(fires) => {
                metrics.lease(fires);
                fires
            }
        });
        self.acknowledged |= rows.len() < before;
        rows
    }

    /// Starts over when the producer never answers: what it was given is produced again, and a repeat is told by its key.
    fn check_producer(&self) -> Result<(), Trouble> {
        let now = Instant::now();
        let letters = self.closed.front().and_then(|batch| match &batch.letters {
            Letters::Sent(acks) => Some(acks),
            _ => None,
        });
        let mut waiting = self.firing.iter().map(|firing| &firing.acks).chain(letters);
        if waiting.any(|acks| acks.is_overdue(now)) { Err(Trouble::StartOver(UNANSWERED)) } else { Ok(()) }
    }

    /// Looks at what became of the rows produced. Rows that were not acknowledged go back and are tried again.
    fn settle(&mut self) {
        let Some(failed) = self.firing.as_ref().and_then(|firing| firing.acks.result()) else { return };
        let Some(Firing { rows, early, .. }) = self.firing.take() else { return };
        let first_early = early.as_ref().map_or(rows.len(), Early::first_index);
        let (mut again, early_rows, mut early_failed) = (Vec::new(), rows.len() - first_early, 0);
        let now = Instant::now();
        let db_now = self.clock.now(now);
        let total = rows.len();
        let mut back = Vec::with_capacity(failed.len());
        // Thousands of rows, and when Kafka refuses, all of them.
        let refused: HashSet<usize> = failed.iter().map(|failed| failed.index).collect();
        for (index, row) in rows.into_iter().enumerate() {
            if refused.contains(&index) {
                early_failed += usize::from(index >= first_early);
                if early.as_ref().is_some_and(|early| early.has(index)) {
                    again.push(row.position);
                }
                // One beyond what memory knows is in the table only.
                if row.position <= self.pending.loaded() {
                    back.push(row);
                }
            } else if index < first_early {
                self.intake.leases.fired(row.position.id);
                self.shared.metrics.lateness_seconds.record(db_now.since(row.position.due));
            }
        }
        self.shared.metrics.due_produced.increment((total - failed.len()) as u64);
        self.shared.metrics.due_failed.increment(failed.len() as u64);
        self.acknowledged |= failed.len() < total;
        if failed.is_empty() {
            self.fire_backoff.reset();
            self.fire_after = None;
        } else {
            if failed.iter().any(|failed| failed.too_large) {
                tracing::error!(shard = self.shard, "a retry is too large for the topic of due records");
            }
            // A record that is refused alone must not slow the others down more than a little.
            let wait =
                if failed.len() < total { RETRY_FIRST } else { self.fire_backoff.next(rand::random()) };
            self.fire_after = Some(now + wait);
        }
        self.pending.settle(back);
        if let Some(early) = early {
            self.settle_early(early, again, early_rows - early_failed);
        }
    }

    // ---- Cursor

    /// Moves the cursor, soon after acknowledgements and now and then on an idle shard.
    fn move_cursor(&mut self) -> Result<(), Trouble> {
        let settings = &self.shared.settings;
        let interval = if self.acknowledged { settings.cursor_interval } else { settings.idle_interval };
        if self.cursor_moved_at.elapsed() < interval && !self.has_much_to_tell() {
            return Ok(());
        }
        self.store_cursor()
    }

    /// Stores the cursor, moved or not: proves that the shard is still this owner's.
    fn store_cursor(&mut self) -> Result<(), Trouble> {
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
    fn stored_offset(&self) -> i64 {
        self.closed.front().map_or(self.intake.open.from, |first| first.from)
    }

    fn report(&self) {
        self.metrics.heap_rows.set(self.pending.len() as f64);
        let age = self.clock.now(Instant::now()).since(self.pending.cursor().due);
        self.metrics.cursor_lag_seconds.set(age.as_secs_f64());
    }

    // ---- Trouble and end

    /// The database failed: waits until it answers, then compares its row with what this owner believes. A commit
    /// whose answer was lost is found out here.
    fn reconcile(&mut self, error: floodway_store::Error) -> Result<(), Trouble> {
        self.page = None;
        let circuit = &self.shared.circuit;
        self.shared.database_health.down(Reporter::Shard(self.shard), error.to_string());
        if error.is_unavailable() {
            circuit.failed(Turn::Free, Instant::now(), rand::random());
        }
        // A server that can be read and takes no writes is not asked all the time either.
        self.stop.wait(self.database_backoff.next(rand::random()));
        loop {
            self.troubled_at = Some(Instant::now());
            self.settle();
            if self.stop.requested().is_some() {
                return Ok(());
            }
            let turn = circuit.wait(self.stop);
            if turn == Turn::Wait {
                continue;
            }
            let (shared, shard, epoch) = (self.shared, self.shard, self.epoch);
            let row = call(shared, async {
                let client = shared.pool.get().await?;
                retry::read(&client, shard, epoch).await
            });
            match row {
                Err(error) => {
                    circuit.failed(turn, Instant::now(), rand::random());
                    shared.database_health.down(Reporter::Shard(shard), error.to_string());
                }
                Ok(row) => {
                    circuit.closed();
                    return row.map_or(Err(Trouble::Fenced), |row| self.go_on_from(row));
                }
            }
        }
    }

    fn go_on_from(&mut self, row: retry::Shard) -> Result<(), Trouble> {
        self.clock = DbClock::new(row.db_now, Instant::now());
        let committed =
            self.commit_sent && self.closed.front().is_some_and(|first| first.to == row.next_offset);
        if committed {
            self.first_is_stored();
        }
        // Under this epoch only this owner moves the cursor, to places that were acknowledged: further is fine.
        if row.next_offset != self.stored_offset() || row.cursor < self.pending.cursor() {
            return Err(Trouble::StartOver("the database is not where this owner left it"));
        }
        if self.may_be_told {
            // The position says nothing about it, and history that is told again is counted twice.
            return Err(Trouble::StartOver("history of cancelled retries may be stored already"));
        }
        self.commit_sent = false;
        self.pending.cursor_moved(row.cursor);
        self.cursor_was_stored(row.cursor);
        // A write soon, to know whether the database takes them.
        self.acknowledged = true;
        self.shared.metrics.reconciled.increment(1);
        tracing::info!(shard = self.shard, committed, "shard {} goes on", self.shard);
        Ok(())
    }

    /// Waits for the acknowledgements in flight and moves the cursor past them, so that the next owner repeats nothing.
    /// What was read and not stored is read again by it.
    fn drain(&mut self) {
        let deadline = Instant::now() + self.shared.settings.drain_timeout;
        while self.firing.is_some() && Instant::now() < deadline {
            std::thread::sleep(ACK_INTERVAL);
            self.settle();
        }
        if self.may_be_told || self.store_cursor().is_err() {
            tracing::info!(
                shard = self.shard,
                "the cursor was not moved at the end; the next owner repeats a little"
            );
        }
    }
}

/// The critical sections are single map operations: a panic cannot leave one half done.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
