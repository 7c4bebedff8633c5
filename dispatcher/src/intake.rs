//! Consuming one topic: a thread that polls the consumer (rebalances, errors, commits), and per owned partition a thread that
//! drains the partition's own queue.
//!
//! Everything about ownership happens on the consumer's thread, in its rebalance callback: see [`crate::ownership`]. Commits are made
//! by the same thread, one at a time, so none can overtake a later one. They wait for Kafka's answer, because the client's event
//! interface reports nothing about asynchronous commits that the application makes itself; the partitions' threads do not wait with
//! them.

use crate::{
    kafka_health::KafkaHealth,
    life::{Life, Phase},
    ownership::Owner,
    repeats::Repeats,
    route::Router,
};
use floodway_runtime::{
    kafka::{KafkaSettings, REQUEST_TIMEOUT},
    stall::Blindness,
    witness::Witness,
};
use floodway_schemas::topic::Topic;
use rdkafka::{
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
};
use std::{
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Longest wait for an event before the thread looks whether it is to end.
const POLL_WAIT: Duration = Duration::from_millis(300);
/// Milliseconds that a broker holds back an answer that says that there is nothing.
const FETCH_WAIT_MS: &str = "500";
/// Kilobytes and records of a partition that are fetched ahead: some tenths of a second of what a thread takes.
const QUEUED_KBYTES: &str = "2048";
const QUEUED_RECORDS: &str = "4000";
/// Bytes of a partition in one answer, as they are compressed: what they are once they are not counts only towards the next answer, and
/// all the partitions of a broker are in one.
const FETCHED_BYTES: &str = "524288";
/// How long after a retry another record of it counts as a repeat: longer than another scheduler takes to take over.
const DUE_REPEAT_WINDOW: Duration = Duration::from_secs(15 * 60);
/// Retries of a partition that are remembered for that, about 100 bytes each: more than a scheduler produces between two moves of
/// its cursor.
const DUE_REPEAT_KEYS: usize = 16_384;
/// Pause before a consumer is built anew.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Pause between two looks whether Kafka is back.
const PROBE_PAUSE: Duration = Duration::from_secs(1);
/// So often a consumer is asked for although nothing speaks against it: one that has lost its brokers may report no error.
const REGULAR_PROBE: Duration = Duration::from_secs(30);

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
    /// Asked when a consumer finds no broker.
    pub(crate) witness: Arc<Witness>,
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

    /// What a partition's thread remembers, to tell repeats.
    pub(crate) fn repeats(&self) -> Repeats {
        match self.topic {
            Topic::Due => Repeats::new(DUE_REPEAT_WINDOW, DUE_REPEAT_KEYS),
            _ => Repeats::new(self.repeat_window, self.repeat_ids),
        }
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
        let consumer = Self::subscribed(intake)?;
        let result = intake.poll(&consumer);
        consumer.context().end_threads();
        // The last reference: closing revokes what is assigned, which commits it, and leaves the group. Without unsubscribing
        // before: librdkafka 2.12 then mostly loses the request to leave, and the next owner waits for the session timeout.
        drop(consumer);
        result
    }

    fn subscribed(intake: &Arc<Self>) -> KafkaResult<Arc<BaseConsumer<Owner>>> {
        let name = intake.kafka.topic(intake.topic);
        let owner = Owner::new(Arc::clone(intake), name.clone());
        let mut config = intake.kafka.consumer(intake.group);
        // A position that the log does not hold is looked into, and not replaced by its start: what is there would pass for settled.
        config.set("auto.offset.reset", "error");
        // Tells a log that has nothing more from a client that stopped.
        config.set("enable.partition.eof", "true");
        // The broker answers as soon as there is something: waiting longer makes idle consumers cheaper and nothing later.
        config.set("fetch.wait.max.ms", FETCH_WAIT_MS);
        // Of every partition so much is fetched ahead: there may be many.
        config.set("queued.max.messages.kbytes", QUEUED_KBYTES).set("queued.min.messages", QUEUED_RECORDS);
        config.set("max.partition.fetch.bytes", FETCHED_BYTES);
        let consumer: Arc<BaseConsumer<Owner>> = Arc::new(config.create_with_context(owner)?);
        consumer.context().belongs_to(&consumer);
        consumer.subscribe(&[&name])?;
        Ok(consumer)
    }

    fn poll(&self, consumer: &Arc<BaseConsumer<Owner>>) -> KafkaResult<()> {
        let owner = consumer.context();
        let mut committed_at = Instant::now();
        let mut looked_at = Instant::now();
        let mut probed_at = looked_at;
        let mut blindness = Blindness::default();
        loop {
            match self.life.phase() {
                Phase::Running | Phase::Draining => {}
                Phase::Leaving | Phase::Abandoned => return Ok(()),
            }
            match consumer.poll(POLL_WAIT.min(self.commit_interval)) {
                None | Some(Err(KafkaError::PartitionEOF(_))) => {}
                Some(Err(error)) if is_fatal(&error) => return Err(error),
                Some(Err(error)) => self.health.suspect(self.group, &error.to_string()),
                // Every partition has a queue of its own; a record here would be lost if it were passed over.
                Some(Ok(_)) => {
                    return Err(KafkaError::Subscription(
                        "a record outside of its partition's queue".to_owned(),
                    ));
                }
            }
            owner.check()?;
            if committed_at.elapsed() >= self.commit_interval {
                committed_at = Instant::now();
                owner.commit_regularly(consumer);
            }
            if looked_at.elapsed() >= PROBE_PAUSE {
                looked_at = Instant::now();
                if self.is_in_doubt(&blindness, probed_at) {
                    self.probe(consumer, &mut blindness)?;
                    probed_at = Instant::now();
                }
            }
        }
    }

    /// Whether there is a reason to ask whether Kafka is there, and it would tell something new.
    fn is_in_doubt(&self, blindness: &Blindness, probed_at: Instant) -> bool {
        if self.router.is_stalled() {
            self.health.down("Kafka does not take outcomes: no event is taken until it does");
        } else if self.health.is_suspect() {
            return true;
        }
        blindness.is_blind() || probed_at.elapsed() >= REGULAR_PROBE
    }

    /// Looks whether a broker answers this consumer. An error when none has for long, and Kafka is there: then it takes another consumer.
    /// While nobody is answered, the consumer's progress is worth more than a new connection.
    fn probe(&self, consumer: &BaseConsumer<Owner>, blindness: &mut Blindness) -> KafkaResult<()> {
        let answer = consumer.fetch_metadata(Some(consumer.context().topic_name()), REQUEST_TIMEOUT);
        self.judge(consumer.context(), answer.map(drop), blindness)
    }

    /// Takes in how a consumer was answered when it asked about its topic.
    fn judge(&self, owner: &Owner, answer: KafkaResult<()>, blindness: &mut Blindness) -> KafkaResult<()> {
        let Err(error) = answer else {
            blindness.answered();
            if !self.router.is_stalled() {
                self.health.up();
            }
            return Ok(());
        };
        if owner.has_heard() {
            // Records come: brokers answer it, and let it wait, as under a quota. It is asked again soon, for they may have come before.
            blindness.answered();
            self.health.suspect(self.group, &error.to_string());
            return Ok(());
        }
        self.health.down(format!("no broker answers: {error}"));
        if blindness.unanswered(Instant::now()) && self.witness.contradicts(blindness) {
            owner.count_loss();
            return Err(KafkaError::Subscription("it finds no broker, and others do".to_owned()));
        }
        Ok(())
    }
}

/// Whether the consumer cannot go on: it failed for good, or its position is none of the log's.
pub(crate) fn is_fatal(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{AutoOffsetReset, OffsetOutOfRange};
    match error {
        KafkaError::MessageConsumptionFatal(_) => true,
        KafkaError::MessageConsumption(code) => matches!(code, AutoOffsetReset | OffsetOutOfRange),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Dispatcher, Parts,
        testing::{DEADLINE, cluster_of, dispatcher, until},
    };
    use rdkafka::{
        Offset, TopicPartitionList,
        producer::{BaseProducer, BaseRecord, Producer},
        types::{RDKafkaApiKey, RDKafkaRespErr},
    };

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn events_wait_while_the_configuration_may_be_old_and_health_says_so() {
        let (cluster, kafka) = cluster_of(1);
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

    /// The offset that the dispatcher committed for partition 0 of `events`.
    fn committed(kafka: &KafkaSettings) -> Option<i64> {
        let mut list = TopicPartitionList::new();
        list.add_partition(&kafka.topic(Topic::Events), 0);
        let bystander: BaseConsumer =
            kafka.reader().set("group.id", kafka.group("dispatcher")).create().unwrap();
        match bystander.committed_offsets(list, DEADLINE).ok()?.elements()[0].offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn partitions_that_the_client_stops_to_fetch_after_a_change_of_leader_are_read_on() {
        let (cluster, kafka) = cluster_of(2);
        let (events, config) = (kafka.topic(Topic::Events), kafka.topic(Topic::Config));
        for topic in [&events, &config] {
            cluster.partition_leader(topic, 0, Some(1)).unwrap();
        }
        let dispatcher = dispatcher(&kafka);
        let parts = Parts::start(&dispatcher).unwrap();
        assert!(parts.feed_caught_up().await);
        let intakes = dispatcher.start_intakes(&parts).unwrap();
        let producer: BaseProducer = kafka.producer().create().unwrap();
        let write = |topic: &str| {
            // None of these is a record of its topic: they are read, and passed over.
            let record = BaseRecord::to(topic).partition(0).key("k").payload("x");
            producer.send(record).map_err(|(error, _)| error).unwrap();
            producer.flush(DEADLINE).unwrap();
        };
        let freshness = parts.feed.as_ref().unwrap().freshness();
        write(&events);
        write(&config);
        let written = Instant::now();
        until("events are read", || committed(&kafka) == Some(1));
        until("the configuration is read", || freshness.current_as_of().is_some_and(|at| at > written));
        // The clients ask what the new leader's log has in common with the old one's, get no answer, and fetch nothing.
        let no_answer = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT; 10_000];
        cluster.request_errors(RDKafkaApiKey::OffsetForLeaderEpoch, &no_answer);
        for topic in [&events, &config] {
            cluster.partition_leader(topic, 0, Some(2)).unwrap();
        }
        write(&events);
        write(&config);
        let written = Instant::now();
        until("events are read in the end", || committed(&kafka) == Some(2));
        until("the configuration, too", || freshness.current_as_of().is_some_and(|at| at > written));
        parts.stop(intakes, Duration::ZERO).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_consumer_ends_although_it_cannot_take_further_partitions_over() {
        let (cluster, kafka) = cluster_of(1);
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

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_consumer_that_gets_records_is_not_taken_for_lost_although_it_is_not_answered_about_the_cluster()
     {
        let (_cluster, kafka) = cluster_of(1);
        let dispatcher = dispatcher(&kafka);
        let parts = Parts::start(&dispatcher).unwrap();
        let witness = Arc::new(Witness::new(&kafka));
        let intake = Arc::new(dispatcher.intake(&parts, &witness, Topic::Due, "dispatcher-due"));
        let consumer = Intake::subscribed(&intake).unwrap();
        let owner = consumer.context();
        owner.belongs_to(&consumer);
        let hears = || {
            until("something comes", || {
                drop(consumer.poll(Duration::from_millis(10)));
                owner.has_heard()
            });
        };
        // That there is nothing in either partition; then a record of one.
        hears();
        let producer: BaseProducer = kafka.producer().create().unwrap();
        let write = || {
            let record = BaseRecord::to(owner.topic_name()).partition(0).key("k").payload("x");
            producer.send(record).map_err(|(error, _)| error).unwrap();
            producer.flush(DEADLINE).unwrap();
        };
        write();
        hears();

        let unanswered = || Err(KafkaError::MetadataFetch(RDKafkaErrorCode::OperationTimedOut));
        let is_up =
            || dispatcher.context.health.reports().iter().any(|r| r.name == "kafka" && r.status == "up");
        let mut blindness = Blindness::default();
        owner.hear();
        intake.judge(owner, unanswered(), &mut blindness).unwrap();
        assert!(!blindness.is_blind() && is_up() && dispatcher.health.is_suspect());
        intake.judge(owner, unanswered(), &mut blindness).unwrap();
        assert!(blindness.is_blind() && !is_up());
        owner.hear();
        intake.judge(owner, unanswered(), &mut blindness).unwrap();
        assert!(!blindness.is_blind());
        owner.end_threads();
        drop(consumer);
        parts.stop(Vec::new(), Duration::ZERO).await.unwrap();
    }
}
