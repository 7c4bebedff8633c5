//! Consuming one topic: a thread that polls the consumer (rebalances, errors, commits), and per owned partition a thread that
//! drains the partition's own queue.
//!
//! Backpressure is not draining: librdkafka stops fetching for a queue that nobody polls. `pause()` would throw away what was fetched.
//!
//! Everything about ownership happens on the consumer's thread, in its rebalance callback:
//! - *assign*: read the committed offset and metadata, split the partitions' queues, and only then begin to fetch. A partition
//!   without metadata of ours begins a new run, which is committed at once, so that it survives a crash.
//!   Where the log does not hold the committed position, it is no longer the log that was consumed: a partition that ends before
//!   it was made anew, and is consumed from its start in a new run; of one that begins after it records are gone, which is logged.
//! - *revoke*: end the partitions' threads, which hold no lock and wait for no HTTP; commit a last time; give up the
//!   partitions. Attempts under way go on and their outcomes are produced, but they reach a tracker that is committed no more,
//!   so the next owner makes just these again.
//!
//! Commits are made by the same thread, one at a time, so none can overtake a later one. They wait for Kafka's answer, because the
//! client's event interface reports nothing about asynchronous commits that the application makes itself; the partitions' threads
//! do not wait with them.

use crate::{
    commit,
    kafka_health::KafkaHealth,
    life::{Life, Phase},
    metrics::IntakeMetrics,
    partition::Partition,
    repeats::Repeats,
    route::{Record, Router},
    tracker::Progress,
};
use bytes::Bytes;
use floodway_runtime::{
    clock,
    kafka::{KafkaSettings, REQUEST_TIMEOUT},
};
use floodway_schemas::{UnixMillis, ids::RunId, topic::Topic};
use rdkafka::{
    ClientContext, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, base_consumer::PartitionQueue},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    types::RDKafkaRespErr,
};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};
use uuid::Uuid;

/// Longest wait for a record or an event before a thread looks whether it is to end.
const POLL_WAIT: Duration = Duration::from_millis(200);
/// Longest wait for room in a tracker's window before a thread looks whether it is to end.
const WINDOW_WAIT: Duration = Duration::from_millis(100);
/// How long the committed offsets are asked for before the consumer is built anew.
const COMMITTED_PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two such questions, and before a consumer is built anew.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How often a partition's bounds are asked for before it counts as made anew: a new leader may not know the end at once.
const BOUNDS_ASKED: u32 = 6;
/// How often a partition is asked for the offset of a time, each of them four times as long ago as the one before: from a minute to
/// more than a month.
const TIMES_ASKED: u32 = 10;
/// Pause between two looks whether Kafka is back.
const PROBE_PAUSE: Duration = Duration::from_secs(1);

/// What an intake is made of.
pub(crate) struct Intake {
    /// The topic to consume.
    pub(crate) topic: Topic,
    /// Name of the consumer group, without the prefix.
    pub(crate) group: &'static str,
    /// How to reach Kafka.
    pub(crate) kafka: KafkaSettings,
    /// Where records go.
    pub(crate) router: Arc<Router>,
    /// When to end.
    pub(crate) life: Arc<Life>,
    /// Where the state of Kafka is reported.
    pub(crate) health: Arc<KafkaHealth>,
    /// Most records that a partition's tracker holds.
    pub(crate) max_window: usize,
    /// How long a repeated event is taken for a repeat.
    pub(crate) repeat_window: Duration,
    /// Most events of a partition that are remembered for that.
    pub(crate) repeat_ids: usize,
    /// Time between commits.
    pub(crate) commit_interval: Duration,
}

impl Intake {
    /// Starts the consumer's thread. It ends with the dispatcher's life.
    pub(crate) fn start(self) -> std::io::Result<JoinHandle<()>> {
        std::thread::Builder::new()
            .name(format!("{}-consumer", self.topic.base_name()))
            .spawn(move || self.run())
    }

    /// Consumes; after a failure that the client does not mend itself, with a new consumer.
    fn run(self) {
        let intake = Arc::new(self);
        while intake.life.phase() < Phase::Leaving {
            let Err(error) = Self::consume(&intake) else { return };
            tracing::error!(topic = intake.topic.base_name(), %error, "the consumer failed and is built anew");
            intake.health.down(format!("consumer of {}: {error}", intake.topic.base_name()));
            std::thread::sleep(RETRY_PAUSE);
        }
    }

    /// Consumes until the dispatcher leaves, then commits and leaves the group.
    fn consume(intake: &Arc<Self>) -> KafkaResult<()> {
        let name = intake.kafka.topic(intake.topic);
        let owner = Owner {
            metrics: IntakeMetrics::new(intake.topic),
            intake: Arc::clone(intake),
            name: name.clone(),
            consumer: OnceLock::new(),
            assigned: Mutex::default(),
            broken: Arc::default(),
        };
        let mut config = intake.kafka.consumer(intake.group);
        // A position that the log does not hold is looked into, and not replaced by its start: what is there would pass for settled.
        config.set("auto.offset.reset", "error");
        let consumer: Arc<BaseConsumer<Owner>> = Arc::new(config.create_with_context(owner)?);
        // Fresh, so it is not set yet.
        let _ = consumer.context().consumer.set(Arc::downgrade(&consumer));
        let result = consumer.subscribe(&[&name]).and_then(|()| intake.poll(&consumer));
        consumer.context().end_threads();
        // The last reference: closing revokes what is assigned, which commits it, and leaves the group. Without unsubscribing
        // before: librdkafka 2.12 then mostly loses the request to leave, and the next owner waits for the session timeout.
        drop(consumer);
        result
    }

    fn poll(&self, consumer: &Arc<BaseConsumer<Owner>>) -> KafkaResult<()> {
        let owner = consumer.context();
        let mut committed_at = Instant::now();
        let mut probed_at = Instant::now();
        loop {
            match self.life.phase() {
                Phase::Running | Phase::Draining => {}
                Phase::Leaving | Phase::Abandoned => return Ok(()),
            }
            match consumer.poll(POLL_WAIT.min(self.commit_interval)) {
                None => {}
                Some(Err(error)) if is_fatal(&error) => return Err(error),
                Some(Err(error)) => self.health.suspect(self.group, &error.to_string()),
                // Every partition has a queue of its own; a record here would be lost if it were passed over.
                Some(Ok(_)) => {
                    return Err(KafkaError::Subscription(
                        "a record outside of its partition's queue".to_owned(),
                    ));
                }
            }
            if owner.broken.load(Ordering::Acquire) {
                return Err(KafkaError::Subscription("a partition cannot be consumed".to_owned()));
            }
            if owner.lock().values().any(|assigned| assigned.has_died(self)) {
                return Err(KafkaError::Subscription("the thread of a partition died".to_owned()));
            }
            if committed_at.elapsed() >= self.commit_interval {
                committed_at = Instant::now();
                owner.commit_regularly(consumer);
            }
            if probed_at.elapsed() >= PROBE_PAUSE {
                probed_at = Instant::now();
                self.probe(consumer);
            }
        }
    }

    /// Looks whether Kafka is there, when there is a reason to doubt it.
    fn probe(&self, consumer: &BaseConsumer<Owner>) {
        if self.router.is_stalled() {
            self.health.down("Kafka does not take outcomes: no event is taken until it does");
        } else if self.health.is_suspect() {
            match consumer.fetch_metadata(Some(&consumer.context().name), REQUEST_TIMEOUT) {
                Ok(_) => self.health.up(),
                Err(error) => self.health.down(format!("no broker answers: {error}")),
            }
        }
    }
}

/// The consumer's context: what it owns.
struct Owner {
    intake: Arc<Intake>,
    /// Full name of the topic.
    name: String,
    metrics: IntakeMetrics,
    /// The consumer itself, for splitting queues; weak, for the consumer owns this context.
    consumer: OnceLock<Weak<BaseConsumer<Owner>>>,
    /// Touched by the consumer's thread only.
    assigned: Mutex<HashMap<i32, Assigned>>,
    /// An assignment could not be taken over, or a partition cannot be consumed on: the consumer is of no use.
    broken: Arc<AtomicBool>,
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
    fn assign(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) -> KafkaResult<()> {
        let Some(this) = self.consumer.get().and_then(Weak::upgrade) else {
            // The consumer is being dropped: what it is given now, it gives back at once.
            return consumer.incremental_assign(partitions);
        };
        let starts = self.starts(consumer, partitions)?;
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
            self.spawn(start, queue)?;
        }
        self.report();
        Ok(())
    }

    /// Starts the thread that drains a partition.
    fn spawn(&self, start: Start, queue: PartitionQueue<Self>) -> KafkaResult<()> {
        let Start { partition: id, run, progress, is_new, read_from } = start;
        tracing::info!(topic = self.name, partition = id, offset = progress.watermark(), read_from, %run, is_new, "partition assigned");
        let partition = Arc::new(Partition::new(id, run, progress, self.intake.max_window));
        let (draining, intake) = (Arc::clone(&partition), Arc::clone(&self.intake));
        let broken = Arc::clone(&self.broken);
        let thread = std::thread::Builder::new()
            .name(format!("{}-{id}", self.intake.topic.base_name()))
            .spawn(move || drain(&queue, &draining, &intake, &broken))
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

    fn commit_regularly(&self, consumer: &BaseConsumer<Self>) {
        self.report();
        if let Err(error) = self.commit(consumer, self.lock().values_mut()) {
            // A rebalance or a new coordinator: the next commit shows the same and more.
            tracing::debug!(topic = self.name, %error, "commit failed, to be repeated");
        }
    }

    /// Ends the partitions' threads: they hold the consumer. The partitions stay, for the revocation to commit them.
    fn end_threads(&self) {
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

/// The body of a partition's thread.
fn drain(queue: &PartitionQueue<Owner>, partition: &Arc<Partition>, intake: &Intake, broken: &AtomicBool) {
    let mut repeats = Repeats::new(intake.repeat_window, intake.repeat_ids);
    while !partition.is_stopped() && intake.life.is_running() {
        if !intake.router.wait_for_room(intake.topic) || !partition.wait_for_room(WINDOW_WAIT) {
            continue;
        }
        match queue.poll(POLL_WAIT) {
            None => {}
            Some(Ok(message)) => {
                let record = Record {
                    topic: intake.topic,
                    offset: message.offset(),
                    timestamp: UnixMillis(message.timestamp().to_millis().unwrap_or(0)),
                    payload: Bytes::copy_from_slice(message.payload().unwrap_or_default()),
                };
                intake.router.accept(partition, &record, &mut repeats);
            }
            Some(Err(error)) if is_fatal(&error) => {
                tracing::error!(topic = intake.topic.base_name(), partition = partition.id(), %error, "a partition cannot be consumed");
                broken.store(true, Ordering::Release);
                return;
            }
            Some(Err(error)) => intake.health.suspect(intake.group, &error.to_string()),
        }
    }
}

/// Whether the consumer cannot go on: it failed for good, or its position is none of the log's.
fn is_fatal(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{AutoOffsetReset, OffsetOutOfRange};
    match error {
        KafkaError::MessageConsumptionFatal(_) => true,
        KafkaError::MessageConsumption(code) => matches!(code, AutoOffsetReset | OffsetOutOfRange),
        _ => false,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dispatcher, Parts, Settings, connect};
    use floodway_runtime::testing;
    use rdkafka::{mocking::MockCluster, producer::DefaultProducerContext, types::RDKafkaApiKey};

    /// How long the test waits for anything.
    const DEADLINE: Duration = Duration::from_secs(60);

    fn until(what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !condition() {
            assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn dispatcher(kafka: &KafkaSettings) -> Dispatcher {
        let context = testing::context(kafka.clone());
        let settings = Settings::default();
        Dispatcher {
            client: connect::client(&settings).unwrap(),
            health: Arc::new(KafkaHealth::new(context.health.component("kafka", true))),
            config_health: context.health.component("config", true),
            settings,
            context,
        }
    }

    /// A cluster in this process, which can be told to fail.
    fn cluster() -> (MockCluster<'static, DefaultProducerContext>, KafkaSettings) {
        let cluster = MockCluster::new(1).unwrap();
        let mut kafka = testing::kafka();
        kafka.brokers = cluster.bootstrap_servers();
        for topic in [Topic::Events, Topic::Due, Topic::Replays, Topic::Config, Topic::Outcomes] {
            cluster.create_topic(&kafka.topic(topic), 2, 1).unwrap();
        }
        (cluster, kafka)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn events_wait_while_the_configuration_may_be_old_and_health_says_so() {
        let (cluster, kafka) = cluster();
        let dispatcher = dispatcher(&kafka);
        let parts = Parts::start(&dispatcher).unwrap();
        let config = || {
            let reports = dispatcher.context.health.reports();
            reports.iter().find(|report| report.name == "config").unwrap().status
        };
        let becomes = async |status: &str| {
            let deadline = Instant::now() + DEADLINE;
            while config() != status {
                assert!(Instant::now() < deadline, "config is not {status}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let work = async {
            assert!(parts.feed_caught_up().await);
            becomes("up").await;
            assert!(parts.router.wait_for_room(Topic::Events));
            // Where the topic ends cannot be asked any more.
            let refused = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED; 1_000];
            cluster.request_errors(RDKafkaApiKey::ListOffsets, &refused);
            becomes("down").await;
            assert!(!parts.router.wait_for_room(Topic::Events));
            assert!(parts.router.wait_for_room(Topic::Due));
            cluster.clear_request_errors(RDKafkaApiKey::ListOffsets);
            becomes("up").await;
            assert!(parts.router.wait_for_room(Topic::Events));
        };
        tokio::select! {
            () = work => {}
            () = dispatcher.look_after(&parts) => {}
        }
        parts.stop(Vec::new(), Duration::ZERO).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_consumer_ends_although_it_cannot_take_further_partitions_over() {
        let (cluster, kafka) = cluster();
        // The group's first rebalance waits for further members: both get a partition of every topic.
        let (stays, leaves) = (dispatcher(&kafka), dispatcher(&kafka));
        let (staying, leaving) = (Parts::start(&stays).unwrap(), Parts::start(&leaves).unwrap());
        let (staying_intakes, leaving_intakes) =
            (stays.start_intakes(&staying).unwrap(), leaves.start_intakes(&leaving).unwrap());
        let is_up = |dispatcher: &Dispatcher| {
            dispatcher.context.health.reports().iter().any(|r| r.name == "kafka" && r.status == "up")
        };
        until("both take partitions over", || is_up(&stays) && is_up(&leaves));

        let refused = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED; 1_000];
        cluster.request_errors(RDKafkaApiKey::OffsetFetch, &refused);
        leaving.stop(leaving_intakes, Duration::ZERO).await.unwrap();
        until("the committed offsets are refused", || {
            let reports = stays.context.health.reports();
            let mut reasons = reports.iter().filter_map(|report| report.reason.as_deref());
            reasons.any(|reason| reason.contains("committed offsets of"))
        });
        staying.life.enter(Phase::Leaving);
        until("every consumer ends", || staying_intakes.iter().all(JoinHandle::is_finished));
        staying.stop(staying_intakes, Duration::ZERO).await.unwrap();
    }
}
