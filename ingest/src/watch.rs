//! Watches Kafka from a thread of its own: health, the topic's partitions, and a producer that must be replaced.
//!
//! Kafka is up while a broker answers for the events topic, the topics are right, and deliveries do not only fail. Readiness follows; the
//! process never ends because of it, and recovers without help.
//!
//! A producer that no broker answers for long while Kafka answers others is replaced: it would not find Kafka again
//! ([`floodway_runtime::stall`]). One that is answered and gets no acknowledgement stays: its events wait for a leader or for replicas, and
//! may still be written.

use crate::{
    error::Error,
    publish::{NoPartitions, Publisher},
    topics::TopicsVerdict,
};
use floodway_runtime::{health::Component, kafka::KafkaSettings, stall::Blindness, witness::Witness};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long a broker has for its answer. Short, because the thread is joined at the end.
const PROBE_PATIENCE: Duration = Duration::from_secs(2);
/// Outages shorter than this are waited for by the requests themselves.
const AWAY_AFTER: Duration = Duration::from_secs(10);
/// How long deliveries that only failed count against Kafka. Afterwards requests may try again: without them nothing
/// would show that it recovered.
const FAILING_FOR: Duration = Duration::from_secs(10);

/// The thread.
#[derive(Debug)]
pub(crate) struct KafkaWatch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl KafkaWatch {
    /// Starts watching.
    pub(crate) fn start(
        kafka: KafkaSettings,
        publisher: Arc<Publisher>,
        topics: Arc<TopicsVerdict>,
        health: Component,
    ) -> Result<Self, Error> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("kafka-watch".to_owned())
            .spawn(move || Watch::new(kafka, publisher, topics, health).run(&stopped))
            .map_err(Error::Worker)?;
        Ok(Self { stop, thread })
    }

    /// Ends the thread and waits for it; blocks.
    pub(crate) fn join(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        if self.thread.join().is_err() {
            tracing::error!("the watch over Kafka panicked");
        }
    }
}

struct Watch {
    kafka: KafkaSettings,
    publisher: Arc<Publisher>,
    topics: Arc<TopicsVerdict>,
    health: Component,
    acknowledged: u64,
    failed: u64,
    last_failure: Option<Instant>,
    down_since: Option<Instant>,
    blindness: Blindness,
    witness: Witness,
}

impl Watch {
    fn new(
        kafka: KafkaSettings,
        publisher: Arc<Publisher>,
        topics: Arc<TopicsVerdict>,
        health: Component,
    ) -> Self {
        let (acknowledged, failed, last_failure, down_since) = (0, 0, None, None);
        let (blindness, witness) = (Blindness::default(), Witness::new(&kafka));
        Self {
            kafka,
            publisher,
            topics,
            health,
            acknowledged,
            failed,
            last_failure,
            down_since,
            blindness,
            witness,
        }
    }

    fn run(mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            self.publisher.replace_if_dead();
            self.look();
            self.publisher.report_waiting_bytes();
            thread::park_timeout(INTERVAL);
        }
    }

    fn look(&mut self) {
        let acknowledged = self.acknowledged;
        let deliveries = self.judge_deliveries();
        let partitions = self.publisher.probe(PROBE_PATIENCE);
        let is_answered = !matches!(partitions, Err(NoPartitions::Unanswered(_)));
        self.replace_if_lost(is_answered || self.acknowledged > acknowledged);
        match self.judge_topics(partitions).and(deliveries) {
            Ok(()) => {
                self.down_since = None;
                self.health.up();
            }
            Err(reason) => {
                self.down_since.get_or_insert_with(Instant::now);
                self.health.down(reason);
            }
        }
        self.publisher.set_away(self.down_since.is_some_and(|since| since.elapsed() >= AWAY_AFTER));
    }

    /// Requests are let in once the number of partitions is known, and so not before the topics are right.
    fn judge_topics(&self, partitions: Result<i32, NoPartitions>) -> Result<(), String> {
        let partitions = partitions.map_err(|reason| self.explain(reason.to_string()))?;
        self.topics.get()?;
        self.publisher.set_partitions(partitions);
        Ok(())
    }

    /// Replaces a producer of which nothing is heard while Kafka answers others.
    fn replace_if_lost(&mut self, is_answered: bool) {
        if self.witness.judge(is_answered, &mut self.blindness) {
            tracing::error!("the producer gets no answer, and others do: it is replaced");
            if self.publisher.replace() {
                self.blindness.replaced();
            }
        }
    }

    /// A request that timed out does not know why no broker answered.
    fn explain(&self, reason: String) -> String {
        match self.kafka.diagnose(PROBE_PATIENCE) {
            Some(cause) => format!("no broker answers: {cause}"),
            None => reason,
        }
    }

    /// A broker may answer and still not take events, for example with too few in-sync replicas.
    fn judge_deliveries(&mut self) -> Result<(), String> {
        let tally = self.publisher.tally();
        let acknowledged = tally.acknowledged.load(Ordering::Relaxed);
        let failed = tally.failed.load(Ordering::Relaxed);
        if acknowledged > self.acknowledged {
            self.last_failure = None;
        } else if failed > self.failed {
            self.last_failure = Some(Instant::now());
        }
        (self.acknowledged, self.failed) = (acknowledged, failed);
        match self.last_failure {
            Some(at) if at.elapsed() < FAILING_FOR => Err("Kafka does not acknowledge events".to_owned()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{complete::Fate, config::Settings, metrics::Metrics};
    use floodway_runtime::health::Health;
    use rdkafka::{
        mocking::MockCluster,
        producer::DefaultProducerContext,
        types::{RDKafkaApiKey, RDKafkaRespErr},
    };

    const PATIENCE: Duration = Duration::from_secs(40);

    fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds() {
            assert!(Instant::now() < deadline, "not in time: {what}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn right() -> Arc<TopicsVerdict> {
        Arc::new(TopicsVerdict::right())
    }

    fn kafka(cluster: &MockCluster<'_, DefaultProducerContext>) -> KafkaSettings {
        KafkaSettings { brokers: cluster.bootstrap_servers(), ..KafkaSettings::default() }
    }

    fn publisher(kafka: &KafkaSettings) -> Arc<Publisher> {
        Arc::new(Publisher::new(kafka, &Settings::default(), None, Arc::new(Metrics::new())).unwrap())
    }

    #[test]
    fn readiness_follows_the_broker_down_and_up_again() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("floodway.events", 4, 1).unwrap();
        let (health, kafka) = (Health::default(), kafka(&cluster));
        let publisher = publisher(&kafka);
        let watch =
            KafkaWatch::start(kafka, Arc::clone(&publisher), right(), health.component("kafka", true))
                .unwrap();
        eventually("up", || health.is_ready());
        assert_eq!(publisher.check_reachable(), Ok(()));
        cluster.broker_down(1).unwrap();
        eventually("down", || !health.is_ready());
        cluster.broker_up(1).unwrap();
        eventually("up again", || health.is_ready());
        watch.join();
    }

    #[test]
    fn deliveries_that_only_fail_count_against_kafka_until_one_succeeds() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("floodway.events", 4, 1).unwrap();
        let (health, kafka) = (Health::default(), kafka(&cluster));
        let publisher = publisher(&kafka);
        let mut watch = Watch::new(kafka, Arc::clone(&publisher), right(), health.component("kafka", true));
        publisher.tally().failed.fetch_add(1, Ordering::Relaxed);
        watch.look();
        assert_eq!(health.reports()[0].reason.as_deref(), Some("Kafka does not acknowledge events"));
        watch.look();
        assert!(!health.is_ready());
        publisher.tally().acknowledged.fetch_add(1, Ordering::Relaxed);
        watch.look();
        assert!(health.is_ready());
    }

    #[test]
    fn a_producer_that_is_answered_stays_although_nothing_is_acknowledged() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("floodway.events", 4, 1).unwrap();
        let refused = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS; 1_000];
        cluster.request_errors(RDKafkaApiKey::Produce, &refused);
        let (health, kafka) = (Health::default(), kafka(&cluster));
        let publisher = publisher(&kafka);
        publisher.set_partitions(4);
        let mut publication = publisher.begin(1).unwrap();
        publication.send(0, b"tenant/key", b"x");
        let (completion, _) = publication.finish();
        let mut watch = Watch::new(kafka, Arc::clone(&publisher), right(), health.component("kafka", true));
        eventually("answered", || publisher.probe(PROBE_PATIENCE).is_ok());
        // As if nothing had been heard of it for long, while others were answered.
        let long_ago = Instant::now().checked_sub(Duration::from_secs(60)).unwrap();
        assert!(!watch.blindness.unanswered(long_ago) && !watch.blindness.others(true, long_ago));
        watch.look();
        assert!(!watch.blindness.is_blind() && publisher.waits());
        assert_eq!(completion.fates(), [Fate::Pending]);
    }

    #[test]
    fn a_producer_that_could_not_be_replaced_is_tried_again_at_the_next_look() {
        let cluster = MockCluster::new(1).unwrap();
        let (health, kafka) = (Health::default(), kafka(&cluster));
        let nowhere = KafkaSettings { brokers: "127.0.0.1:1".to_owned(), ..KafkaSettings::default() };
        let new = || Publisher::new(&nowhere, &Settings::default(), None, Arc::new(Metrics::new())).unwrap();
        let mut refusing = new();
        refusing.refuse_to_replace();
        for (publisher, is_replaced) in [(refusing, false), (new(), true)] {
            let component = health.component("kafka", true);
            let mut watch = Watch::new(kafka.clone(), Arc::new(publisher), right(), component);
            // As if nothing had been heard of it for long, while others were answered.
            let long_ago = Instant::now().checked_sub(Duration::from_secs(60)).unwrap();
            assert!(!watch.blindness.unanswered(long_ago) && !watch.blindness.others(true, long_ago));
            watch.replace_if_lost(false);
            // It has not become more patient.
            let is_tried_again = watch.blindness.is_blind() && watch.blindness.unanswered(Instant::now());
            assert_eq!(is_tried_again, !is_replaced);
        }
    }

    #[test]
    fn while_the_topics_are_not_known_to_be_right_nothing_is_accepted() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("floodway.events", 4, 1).unwrap();
        let (health, kafka) = (Health::default(), kafka(&cluster));
        let publisher = publisher(&kafka);
        let unknown = Arc::new(TopicsVerdict::unknown());
        let component = health.component("kafka", true);
        Watch::new(kafka.clone(), Arc::clone(&publisher), unknown, component.clone()).look();
        assert_eq!(health.reports()[0].reason.as_deref(), Some("the topics have not been checked yet"));
        assert!(publisher.check_reachable().is_err());
        Watch::new(kafka, Arc::clone(&publisher), right(), component).look();
        assert!(health.is_ready());
        assert_eq!(publisher.check_reachable(), Ok(()));
    }
}
