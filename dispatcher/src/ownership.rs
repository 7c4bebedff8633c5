//! Which partitions of a topic this process owns, and where in them it is. All of it happens on the consumer's thread, in its
//! rebalance callback:
//! - *assign*: read the committed offset and metadata, split the partitions' queues, and only then begin to fetch. A partition
//!   without metadata of ours begins a new run, which is committed at once, so that it survives a crash.
//!   Where the log does not hold the committed position, it is no longer the log that was consumed: a partition that ends before
//!   it was made anew, and is consumed from its start in a new run; of one that begins after it records are gone, which is logged.
//! - *revoke*: end the partitions' threads, which hold no lock and wait for no HTTP; commit a last time; give up the
//!   partitions. Attempts under way go on and their outcomes are produced, but they reach a tracker that is committed no more,
//!   so the next owner makes just these again.

use crate::{
    commit, drain::Drain, intake::Intake, life::Phase, metrics::IntakeMetrics, partition::Partition,
    tracker::Progress,
};
use floodway_runtime::{clock, kafka::REQUEST_TIMEOUT, stall::StallWatch};
use floodway_schemas::{UnixMillis, ids::RunId, topic::Topic};
use rdkafka::{
    ClientContext, Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, base_consumer::PartitionQueue},
    error::{KafkaError, KafkaResult},
    types::RDKafkaRespErr,
};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};
use uuid::Uuid;

/// How long the committed offsets are asked for before the consumer is built anew.
const COMMITTED_PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two such questions.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How long a partition is kept although a delivery was given up, as after a worker's panic: what panics at each try is not to
/// disturb the group all the time.
const ABANDONED_PATIENCE: Duration = Duration::from_secs(60);
/// How often a partition's bounds are asked for before it counts as made anew: a new leader may not know the end at once.
const BOUNDS_ASKED: u32 = 6;
/// How often a partition is asked for the offset of a time, each of them four times as long ago as the one before: from a minute to
/// more than a month.
const TIMES_ASKED: u32 = 10;

/// The consumer's context: what it owns.
pub(crate) struct Owner {
    intake: Arc<Intake>,
    /// Full name of the topic.
    name: String,
    metrics: IntakeMetrics,
    /// Partitions of the topic; 0 while that is not known.
    partitions: AtomicUsize,
    /// The consumer itself, for splitting queues; weak, for the consumer owns this context.
    consumer: OnceLock<Weak<BaseConsumer<Owner>>>,
    /// Touched by the consumer's thread only.
    assigned: Mutex<HashMap<i32, Assigned>>,
    /// An assignment could not be taken over, or a partition cannot be consumed on: the consumer is of no use.
    broken: Arc<AtomicBool>,
    /// Something of a partition came since it was last asked.
    heard: AtomicBool,
}

struct Assigned {
    partition: Arc<Partition>,
    thread: Option<JoinHandle<()>>,
    /// Revision that is known to be committed.
    acknowledged: Option<u64>,
}

/// Where to start a partition.
struct Start {
    partition: i32,
    run: RunId,
    progress: Progress,
    /// Nothing of ours was committed: the run is new.
    is_new: bool,
    /// Where reading begins: before the progress, for repeats to be known of what was settled.
    read_from: i64,
}

impl Start {
    /// The start of a new run.
    fn anew(partition: i32, progress: Progress) -> Self {
        Self::going_on(partition, RunId(Uuid::new_v4()), progress, true)
    }

    fn going_on(partition: i32, run: RunId, progress: Progress, is_new: bool) -> Self {
        Self { partition, run, read_from: progress.watermark(), progress, is_new }
    }
}

impl Owner {
    /// Owns nothing yet.
    pub(crate) fn new(intake: Arc<Intake>, name: String) -> Self {
        Self {
            metrics: IntakeMetrics::new(intake.topic),
            intake,
            name,
            partitions: AtomicUsize::new(0),
            consumer: OnceLock::new(),
            assigned: Mutex::default(),
            broken: Arc::default(),
            heard: AtomicBool::new(false),
        }
    }

    /// Tells it the consumer that it is the context of.
    pub(crate) fn belongs_to(&self, consumer: &Arc<BaseConsumer<Self>>) {
        // Called once.
        let _ = self.consumer.set(Arc::downgrade(consumer));
    }

    /// Full name of the topic.
    pub(crate) fn topic_name(&self) -> &str {
        &self.name
    }

    /// Notes that a record came, or that a partition has no more.
    pub(crate) fn hear(&self) {
        // Relaxed: the flag stands for itself. Written once: all partitions' threads come by with every record.
        if !self.heard.load(Ordering::Relaxed) {
            self.heard.store(true, Ordering::Relaxed);
        }
    }

    /// Whether anything came since this was last asked.
    pub(crate) fn has_heard(&self) -> bool {
        self.heard.swap(false, Ordering::Relaxed)
    }

    /// Counts that the consumer finds no broker any more while others do.
    pub(crate) fn count_loss(&self) {
        self.metrics.lost.increment(1);
    }

    /// An error when the consumer is of no use any more.
    pub(crate) fn check(&self) -> KafkaResult<()> {
        if self.broken.load(Ordering::Acquire) {
            return Err(KafkaError::Subscription("a partition cannot be consumed".to_owned()));
        }
        if self.lock().values().any(|assigned| assigned.holds_what_nobody_delivers(&self.intake)) {
            return Err(KafkaError::Subscription(
                "a delivery was given up without an outcome: its partition is taken over anew".to_owned(),
            ));
        }
        if self.lock().values().any(|assigned| assigned.has_died(&self.intake)) {
            return Err(KafkaError::Subscription("the thread of a partition died".to_owned()));
        }
        Ok(())
    }

    fn assign(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) -> KafkaResult<()> {
        let Some(this) = self.consumer.get().and_then(Weak::upgrade) else {
            // The consumer is being dropped: what it is given now, it gives back at once.
            return consumer.incremental_assign(partitions);
        };
        let starts = self.starts(consumer, partitions)?;
        self.count_partitions(consumer);
        // Before the first delivery.
        self.share(self.lock().len() + starts.len());
        let mut list = TopicPartitionList::with_capacity(starts.len());
        let mut queues = Vec::with_capacity(starts.len());
        for start in &starts {
            list.add_partition_offset(&self.name, start.partition, Offset::Offset(start.read_from))?;
            // Before the assignment: else the first records would go to the consumer's own queue.
            queues.push(this.split_partition_queue(&self.name, start.partition).ok_or_else(|| {
                KafkaError::Subscription(format!("no queue for partition {}", start.partition))
            })?);
        }
        consumer.incremental_assign(&list)?;
        for (start, queue) in starts.into_iter().zip(queues) {
            self.spawn(&this, start, queue)?;
        }
        self.report();
        Ok(())
    }

    /// Tells this process's share of the group's work.
    fn share(&self, owned: usize) {
        let all = self.partitions.load(Ordering::Relaxed);
        if all == 0 {
            // Not known yet. Until then the other topics tell.
            return;
        }
        self.intake.router.deliverer.shares.own(self.intake.topic, owned, all);
    }

    /// Asks how many partitions the topic has. What was known before stays when Kafka does not answer.
    fn count_partitions(&self, consumer: &BaseConsumer<Self>) {
        match consumer.fetch_metadata(Some(&self.name), REQUEST_TIMEOUT) {
            Ok(metadata) => {
                let count = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
                self.partitions.fetch_max(count, Ordering::Relaxed);
            }
            Err(error) => {
                tracing::warn!(topic = self.name, %error, "the topic's partitions could not be counted")
            }
        }
    }

    /// Starts the thread that drains a partition.
    fn spawn(
        &self,
        consumer: &Arc<BaseConsumer<Self>>,
        start: Start,
        queue: PartitionQueue<Self>,
    ) -> KafkaResult<()> {
        let Start { partition: id, run, progress, is_new, read_from } = start;
        tracing::info!(topic = self.name, partition = id, offset = progress.watermark(), read_from, %run, is_new, "partition assigned");
        let partition = Arc::new(Partition::new(id, run, progress, self.intake.max_window));
        let drain = Drain {
            queue,
            consumer: Arc::clone(consumer),
            partition: Arc::clone(&partition),
            intake: Arc::clone(&self.intake),
            broken: Arc::clone(&self.broken),
            stalls: self.metrics.stalls.clone(),
            watch: StallWatch::new(read_from, Instant::now()),
        };
        let thread = std::thread::Builder::new()
            .name(format!("{}-{id}", self.intake.topic.base_name()))
            .spawn(move || drain.run())
            .map_err(|error| KafkaError::Subscription(format!("no thread for partition {id}: {error}")))?;
        let assigned = Assigned { partition, thread: Some(thread), acknowledged: None };
        self.lock().insert(id, assigned);
        Ok(())
    }

    /// Where to start each partition. Asks again while Kafka does not answer: a guess would lose or repeat.
    fn starts(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &TopicPartitionList,
    ) -> KafkaResult<Vec<Start>> {
        let deadline = Instant::now() + COMMITTED_PATIENCE;
        let starts = loop {
            match self.ask_starts(consumer, partitions) {
                Ok(starts) => break starts,
                Err(error) if Instant::now() > deadline || !self.intake.life.is_running() => {
                    return Err(error);
                }
                Err(error) => {
                    self.intake
                        .health
                        .down(format!("the committed offsets of {} cannot be read: {error}", self.name));
                    std::thread::sleep(RETRY_PAUSE);
                }
            }
        };
        let mut fresh = TopicPartitionList::new();
        for start in starts.iter().filter(|start| start.is_new) {
            put(&mut fresh, &self.name, start.partition, commit::encode(start.run, &start.progress))?;
        }
        if fresh.count() > 0
            && let Err(error) = consumer.commit(&fresh, CommitMode::Sync)
        {
            // The next regular commit carries the run, too.
            tracing::warn!(topic = self.name, %error, "new runs could not be committed yet");
            self.metrics.commit_failures.increment(1);
        }
        Ok(starts)
    }

    fn ask_starts(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &TopicPartitionList,
    ) -> KafkaResult<Vec<Start>> {
        if partitions.count() == 0 {
            return Ok(Vec::new());
        }
        let committed = consumer.committed_offsets(partitions.clone(), REQUEST_TIMEOUT)?;
        let start = |element: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| {
            element.error()?;
            let partition = element.partition();
            let (run, progress) = match element.offset() {
                Offset::Offset(offset) => match commit::decode(offset, element.metadata()) {
                    Some((run, progress)) => (Some(run), Some(progress)),
                    None => (None, Some(Progress::starting_at(offset))),
                },
                _ => (None, None),
            };
            let bounds = self.bounds(consumer, partition, progress.as_ref())?;
            let progress = match progress {
                None => return Ok(Start::anew(partition, Progress::starting_at(bounds.0))),
                Some(progress) => progress,
            };
            let position = progress.watermark();
            match progress.within(bounds) {
                None => {
                    tracing::error!(
                        topic = self.name,
                        partition,
                        position,
                        begins = bounds.0,
                        ends = bounds.1,
                        "the partition ends before what was consumed, so it was made anew: consumed from its start"
                    );
                    Ok(Start::anew(partition, Progress::starting_at(bounds.0)))
                }
                Some(progress) => {
                    if progress.watermark() > position {
                        tracing::error!(
                            topic = self.name,
                            partition,
                            position,
                            begins = bounds.0,
                            "records were deleted before they were consumed: going on with the first one that is left"
                        );
                    }
                    let mut start = match run {
                        Some(run) => Start::going_on(partition, run, progress, false),
                        None => Start::anew(partition, progress),
                    };
                    start.read_from = self.repeats_from(consumer, partition, start.read_from, bounds)?;
                    Ok(start)
                }
            }
        };
        committed.elements().iter().map(start).collect()
    }

    /// Where to begin reading so that at `position` everything in the window of repeats is known.
    fn repeats_from(
        &self,
        consumer: &BaseConsumer<Self>,
        partition: i32,
        position: i64,
        (begins, ends): (i64, i64),
    ) -> KafkaResult<i64> {
        let Intake { topic, repeat_window: window, repeat_ids, .. } = *self.intake;
        // Further back nothing would be remembered.
        let most = i64::try_from(repeat_ids).unwrap_or(i64::MAX);
        let least = position.saturating_sub(most).max(begins);
        if topic != Topic::Events || window.is_zero() || least >= position {
            return Ok(position);
        }
        // Kafka tells the offset of a time, and not the time of an offset: the time of the position is looked for.
        let now = clock::now();
        let ago = |back: Duration| {
            UnixMillis(now.0.saturating_sub(i64::try_from(back.as_millis()).unwrap_or(i64::MAX)))
        };
        let mut back = if position >= ends { Duration::ZERO } else { window };
        for _ in 0..TIMES_ASKED {
            if back.is_zero() || self.offset_at(consumer, partition, ago(back))?.unwrap_or(ends) <= position {
                let from = self.offset_at(consumer, partition, ago(back + window))?.unwrap_or(ends);
                return Ok(from.clamp(least, position));
            }
            back *= 4;
        }
        Ok(least)
    }

    /// The first offset of a partition that was recorded at `time` or later.
    fn offset_at(
        &self,
        consumer: &BaseConsumer<Self>,
        partition: i32,
        time: UnixMillis,
    ) -> KafkaResult<Option<i64>> {
        let mut times = TopicPartitionList::new();
        times.add_partition_offset(&self.name, partition, Offset::Offset(time.0.max(0)))?;
        let found = consumer.offsets_for_times(times, REQUEST_TIMEOUT)?;
        let element = found.find_partition(&self.name, partition);
        Ok(element.and_then(|element| match element.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        }))
    }

    /// The first offset of a partition, and one more than its last. Asks again when that speaks against what was consumed.
    fn bounds(
        &self,
        consumer: &BaseConsumer<Self>,
        partition: i32,
        progress: Option<&Progress>,
    ) -> KafkaResult<(i64, i64)> {
        let mut bounds = consumer.fetch_watermarks(&self.name, partition, REQUEST_TIMEOUT)?;
        for _ in 1..BOUNDS_ASKED {
            if progress.is_none_or(|progress| progress.high <= bounds.1) {
                break;
            }
            std::thread::sleep(RETRY_PAUSE);
            bounds = consumer.fetch_watermarks(&self.name, partition, REQUEST_TIMEOUT)?;
        }
        Ok(bounds)
    }

    fn revoke(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) -> KafkaResult<()> {
        let mut revoked: Vec<Assigned> = {
            let mut assigned = self.lock();
            partitions.elements().iter().filter_map(|element| assigned.remove(&element.partition())).collect()
        };
        revoked.iter_mut().for_each(Assigned::signal);
        revoked.iter_mut().for_each(Assigned::join);
        if consumer.assignment_lost() || self.intake.life.phase() == Phase::Abandoned {
            // Others may own the partitions by now; a commit would overwrite theirs.
            tracing::info!(topic = self.name, partitions = revoked.len(), "partitions lost");
        } else {
            if let Err(error) = self.commit(consumer, revoked.iter_mut()) {
                tracing::warn!(topic = self.name, %error, "the last commit failed: the next owner repeats a little");
            }
            tracing::info!(topic = self.name, partitions = revoked.len(), "partitions given up");
        }
        self.report();
        consumer.incremental_unassign(partitions)
    }

    /// Commits what changed since the last commit, and waits for Kafka's answer.
    fn commit<'a>(
        &self,
        consumer: &BaseConsumer<Self>,
        assigned: impl Iterator<Item = &'a mut Assigned>,
    ) -> KafkaResult<()> {
        let mut list = TopicPartitionList::new();
        let mut sent = Vec::new();
        for assigned in assigned {
            let Some(snapshot) = assigned.partition.snapshot(assigned.acknowledged) else { continue };
            put(&mut list, &self.name, assigned.partition.id(), (snapshot.offset, snapshot.metadata))?;
            sent.push((&mut assigned.acknowledged, snapshot.revision));
        }
        if sent.is_empty() {
            return Ok(());
        }
        consumer
            .commit(&list, CommitMode::Sync)
            .inspect_err(|_| self.metrics.commit_failures.increment(1))?;
        for (acknowledged, revision) in sent {
            *acknowledged = Some(revision);
        }
        Ok(())
    }

    /// Commits what changed, and reports the state of the partitions.
    pub(crate) fn commit_regularly(&self, consumer: &BaseConsumer<Self>) {
        if self.partitions.load(Ordering::Relaxed) == 0 && !self.lock().is_empty() {
            self.count_partitions(consumer);
        }
        self.report();
        if let Err(error) = self.commit(consumer, self.lock().values_mut()) {
            // A rebalance or a new coordinator: the next commit shows the same and more.
            tracing::debug!(topic = self.name, %error, "commit failed, to be repeated");
        }
    }

    /// Ends the partitions' threads: they hold the consumer. The partitions stay, for the revocation to commit them.
    pub(crate) fn end_threads(&self) {
        let mut assigned = self.lock();
        assigned.values_mut().for_each(Assigned::signal);
        assigned.values_mut().for_each(Assigned::join);
    }

    fn report(&self) {
        let assigned = self.lock();
        let window: usize = assigned.values().map(|assigned| assigned.partition.window_len()).sum();
        // Counts far below 2^52.
        self.metrics.tracker_window.set(window as f64);
        self.metrics.partitions.set(assigned.len() as f64);
        self.share(assigned.len());
    }

    /// Critical sections leave the map whole: a panic elsewhere is no reason to stop.
    fn lock(&self) -> MutexGuard<'_, HashMap<i32, Assigned>> {
        self.assigned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Assigned {
    fn signal(&mut self) {
        self.partition.stop();
    }

    /// Whether the thread ended although nobody told it to.
    fn has_died(&self, intake: &Intake) -> bool {
        let ended = self.thread.as_ref().is_some_and(JoinHandle::is_finished);
        // Looked at in this order: a thread that was told to end, and did, has not died.
        ended && !self.partition.is_stopped() && intake.life.is_running()
    }

    /// Whether a record stays unsettled for as long as the partition is assigned.
    fn holds_what_nobody_delivers(&self, intake: &Intake) -> bool {
        self.partition.abandoned_for().is_some_and(|since| since >= ABANDONED_PATIENCE)
            && !self.partition.is_stopped()
            && intake.life.is_running()
    }

    fn join(&mut self) {
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!(partition = self.partition.id(), "the thread of a partition panicked");
        }
    }
}

impl ClientContext for Owner {
    fn error(&self, error: KafkaError, reason: &str) {
        self.intake.health.suspect(self.intake.group, &format!("{error}: {reason}"));
    }
}

impl ConsumerContext for Owner {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        event: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        let result = match event {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                let result = self.assign(consumer, partitions);
                match &result {
                    Ok(()) => self.intake.health.up(),
                    // The client waits for its answer to an assignment, for ever, also when it is closed. Nothing of this
                    // one is consumed: the consumer is of no use from here on. Refused when it was answered before.
                    Err(_) => drop(consumer.incremental_assign(partitions)),
                }
                result
            }
            _ => self.revoke(consumer, partitions),
        };
        if let Err(error) = result {
            tracing::error!(topic = self.name, %error, "rebalance failed");
            self.broken.store(true, Ordering::Release);
        }
    }
}

/// Adds an offset with its metadata to a list.
fn put(
    list: &mut TopicPartitionList,
    topic: &str,
    partition: i32,
    (offset, metadata): (i64, String),
) -> KafkaResult<()> {
    let mut element = list.add_partition(topic, partition);
    element.set_offset(Offset::Offset(offset))?;
    element.set_metadata(metadata);
    Ok(())
}
