//! Membership in the consumer group: learns which shards are this process's, and keeps a thread for each.
//!
//! The group's consumer reads nothing. It pauses every partition it is assigned, so what it is for is the assignment
//! alone (why, see [`crate::reader`]). Its callbacks run on the thread of [`run`], which waits for no database: they note
//! what changed and return. Ownership does not rest on the group: a shard's thread takes over in the database, and a
//! member that the group gave up finds its writes refused there. So a revoked shard need not be handed over while
//! the rebalance waits; its thread drains on its own, and the next owner's takeover cuts it short.
//!
//! A member whose consumer finds no broker although others do has no say in the group any more: it ends its threads and joins anew.

use crate::{
    dependency::Reporter,
    error::Error,
    shard::{self, End},
    shared::{Shared, lock},
    stop::{Ending, Stop},
};
use floodway_runtime::{kafka::KafkaSettings, stall::Blindness};
use floodway_schemas::topic::Topic;
use rdkafka::{
    ClientContext, Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance},
    error::KafkaError,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// The group's name, without the prefix.
pub(crate) const GROUP: &str = "retry-scheduler";

/// Longest wait for a callback before the thread looks at its threads.
const POLL_WAIT: Duration = Duration::from_millis(100);

/// How often the shards' positions are committed to the group, as a hint, and Kafka is asked whether it is there.
const HINT_INTERVAL: Duration = Duration::from_secs(5);

/// Longest wait for Kafka's answer to that. Callbacks wait meanwhile; the group's heartbeat does not.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Wait before a shard whose thread ended by itself is tried again, so that two processes that both believe to own
/// it do not take it from each other at full speed.
const RESTART_AFTER: Duration = Duration::from_secs(1);

/// What the group decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Assigned(i32),
    Revoked(i32),
}

/// Notes what the callbacks are told.
#[derive(Default)]
struct Assignments {
    changes: Mutex<Vec<Change>>,
}

impl ClientContext for Assignments {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "retry group: {reason}");
    }
}

impl ConsumerContext for Assignments {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Revoke(partitions) = rebalance {
            self.note(partitions, Change::Revoked);
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Assign(partitions) = rebalance {
            if let Err(error) = consumer.pause(partitions) {
                // What it fetches is thrown away; a waste, not a fault.
                tracing::warn!(%error, "the group's consumer could not be paused");
            }
            self.note(partitions, Change::Assigned);
        }
    }
}

impl Assignments {
    fn note(&self, partitions: &TopicPartitionList, change: fn(i32) -> Change) {
        lock(&self.changes)
            .extend(partitions.elements().iter().map(|partition| change(partition.partition())));
    }
}

/// A shard's thread.
struct Running {
    stop: Arc<Stop>,
    thread: JoinHandle<End>,
}

/// The threads of this process.
struct Members {
    shared: Arc<Shared>,
    /// Assigned shards; without a thread, when that ended by itself, until the instant.
    assigned: BTreeMap<i32, Result<Running, Instant>>,
    /// Revoked, and draining.
    leaving: Vec<(i32, Running)>,
}

/// Keeps a thread for every assigned shard until told to end.
pub(crate) fn run(shared: &Arc<Shared>, kafka: &KafkaSettings, stop: &Stop) -> Result<(), Error> {
    while stop.requested().is_none() {
        be_member(shared, kafka, stop)?;
    }
    Ok(())
}

/// The same for as long as the group's consumer finds brokers.
fn be_member(shared: &Arc<Shared>, kafka: &KafkaSettings, stop: &Stop) -> Result<(), Error> {
    use rdkafka::config::FromClientConfigAndContext;
    let consumer = BaseConsumer::from_config_and_context(&kafka.consumer(GROUP), Assignments::default())?;
    let topic = kafka.topic(Topic::Outcomes);
    consumer.subscribe(&[&topic])?;
    let mut members = Members { shared: Arc::clone(shared), assigned: BTreeMap::new(), leaving: Vec::new() };
    let mut hinted_at = Instant::now();
    let mut blindness = Blindness::default();
    let mut result = Ok(());
    while stop.requested().is_none() {
        if let Some(Err(error)) = consumer.poll(POLL_WAIT) {
            tracing::debug!(%error, "the group's consumer waits for Kafka");
        }
        let changes = std::mem::take(&mut *lock(&consumer.context().changes));
        changes.into_iter().for_each(|change| members.apply(change));
        members.tend();
        if hinted_at.elapsed() >= HINT_INTERVAL {
            hinted_at = Instant::now();
            let is_lost = probe(shared, &consumer, &topic, &mut blindness);
            // Without Kafka the probe took its time; shards that are to end are told first.
            if stop.requested().is_some() {
                break;
            }
            look_after_producer(shared);
            commit_hints(shared, &consumer, &topic);
            if is_lost {
                tracing::error!("the group's consumer finds no broker, and others do: it is replaced");
                break;
            }
        }
        if let Some(error) = shared.publisher.fatal() {
            result = Err(error.into());
            break;
        }
    }
    // Shards end before the consumer is dropped, which leaves the group at once: the next owner finds them at rest. No
    // unsubscribing first: with that the group often waits for the member until its session times out.
    members.end(stop.requested().unwrap_or(Ending::Drain));
    commit_hints(shared, &consumer, &topic);
    result
}

impl Members {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Assigned(shard) => {
                self.assigned.entry(shard).or_insert_with(|| Err(Instant::now()));
            }
            Change::Revoked(shard) => {
                tracing::info!(shard, "shard {shard} was revoked");
                if let Some(Ok(running)) = self.assigned.remove(&shard) {
                    running.stop.request(Ending::Drain);
                    self.leaving.push((shard, running));
                }
            }
        }
    }

    /// Starts what is to run, and looks after what ended.
    fn tend(&mut self) {
        let now = Instant::now();
        let mut ended = Vec::new();
        for (&shard, slot) in &mut self.assigned {
            match slot {
                Err(after) if *after <= now => match start(&self.shared, shard) {
                    Ok(running) => *slot = Ok(running),
                    Err(error) => {
                        tracing::error!(shard, %error, "no thread for shard {shard}");
                        *slot = Err(now + RESTART_AFTER);
                    }
                },
                Ok(running) if running.thread.is_finished() => {
                    // Spread, for the other process does the same.
                    let after = now + RESTART_AFTER.mul_f64(0.5 + rand::random::<f64>());
                    ended.extend(std::mem::replace(slot, Err(after)).ok().map(|running| (shard, running)));
                }
                _ => {}
            }
        }
        ended.into_iter().for_each(|(shard, running)| join(shard, running));
        let (done, leaving) = std::mem::take(&mut self.leaving)
            .into_iter()
            .partition(|(_, running)| running.thread.is_finished());
        self.leaving = leaving;
        let done: Vec<(i32, Running)> = done;
        done.into_iter().for_each(|(shard, running)| join(shard, running));
        self.shared.metrics.shards.set(self.assigned.values().filter(|slot| slot.is_ok()).count() as f64);
    }

    /// Ends every thread and waits for it; each bounds its own drain.
    fn end(self, ending: Ending) {
        let assigned = self.assigned.into_iter().filter_map(|(shard, slot)| Some((shard, slot.ok()?)));
        let all: Vec<(i32, Running)> = assigned.chain(self.leaving).collect();
        all.iter().for_each(|(_, running)| running.stop.request(ending));
        all.into_iter().for_each(|(shard, running)| join(shard, running));
        self.shared.metrics.shards.set(0.0);
    }
}

fn start(shared: &Arc<Shared>, shard: i32) -> std::io::Result<Running> {
    let stop = Arc::new(Stop::default());
    let (shared, its_stop) = (Arc::clone(shared), Arc::clone(&stop));
    let thread = std::thread::Builder::new()
        .name(format!("shard-{shard}"))
        .spawn(move || shard::run(&shared, shard, &its_stop))?;
    Ok(Running { stop, thread })
}

fn join(shard: i32, running: Running) {
    match running.thread.join() {
        Ok(end) => tracing::info!(shard, ?end, "shard {shard} ended"),
        Err(_) => tracing::error!(shard, "the thread of shard {shard} panicked"),
    }
}

/// Asks whether Kafka is there. Whether it is, and has not answered this consumer for long.
fn probe(
    shared: &Shared,
    consumer: &BaseConsumer<Assignments>,
    topic: &str,
    blindness: &mut Blindness,
) -> bool {
    match consumer.fetch_metadata(Some(topic), PROBE_TIMEOUT) {
        Ok(metadata) => {
            blindness.answered();
            shared.kafka_health.up(Reporter::Role);
            let partitions = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
            shared.learn_partitions(i32::try_from(partitions).unwrap_or(0));
            false
        }
        Err(error) => {
            shared.kafka_health.down(Reporter::Role, error.to_string());
            blindness.unanswered(Instant::now()) && shared.witness.contradicts(blindness)
        }
    }
}

/// Replaces the producer of all shards if Kafka does not answer it any more.
fn look_after_producer(shared: &Shared) {
    match shared.publisher.replace_if_lost(&shared.witness) {
        Ok(false) => {}
        Ok(true) => {
            shared.metrics.producer_rebuilds.increment(1);
            tracing::error!(
                "the producer got no acknowledgement, although Kafka answers others: it was replaced"
            );
        }
        // Tried again at the next look.
        Err(error) => tracing::error!(%error, "the producer could not be replaced"),
    }
}

/// Tells the group how far each shard is, for tools that show the lag. Nothing reads it back, and nobody waits for the
/// answer: the client does not report the results of asynchronous commits, and a lost hint is made up for by the next.
fn commit_hints(shared: &Shared, consumer: &BaseConsumer<Assignments>, topic: &str) {
    let mut offsets = TopicPartitionList::new();
    for (&shard, &offset) in lock(&shared.positions).iter() {
        if let Err(error) = offsets.add_partition_offset(topic, shard, Offset::Offset(offset)) {
            tracing::debug!(shard, %error, "no hint for shard {shard}");
        }
    }
    if offsets.count() > 0
        && let Err(error) = consumer.commit(&offsets, CommitMode::Async)
    {
        tracing::debug!(%error, "hints not committed");
    }
}
