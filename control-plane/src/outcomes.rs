//! Reading `outcomes` as a member of the control plane's group, with another client when one has lost its brokers.

use crate::metrics;
use floodway_runtime::{kafka::KafkaSettings, stall::Blindness, witness::Witness};
use floodway_schemas::topic::Topic;
use rdkafka::{
    ClientContext,
    consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext},
    error::{KafkaError, KafkaResult},
    message::BorrowedMessage,
};
use std::{
    cell::Cell,
    time::{Duration, Instant},
};

/// Name of the consumer group, after the topic prefix.
const GROUP: &str = "control-plane";
/// Longest wait for a record before the thread looks at the shutdown token again.
const POLL_WAIT: Duration = Duration::from_millis(200);
/// So long nothing may be read before the client is asked for an answer: quiet topics are the rule.
const ASK_AFTER: Duration = Duration::from_secs(30);
/// The same when the client reports an error, and when the last question was not answered.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(2);
/// Longest wait for the answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);

/// Keeps the client from logging the end of each partition as an error: it is reached after every burst.
struct Quiet;

impl ClientContext for Quiet {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "consumer of outcomes");
    }
}

impl ConsumerContext for Quiet {}

/// The topic, from the group's position on. It may go back to the last commit at any time.
pub(crate) struct Outcomes {
    kafka: KafkaSettings,
    topic: String,
    consumer: BaseConsumer<Quiet>,
    /// Something was read since the client was last looked at.
    was_heard: Cell<bool>,
    /// The client reported an error since it was last asked: mostly a connection that it renews.
    is_suspect: Cell<bool>,
    looked_at: Instant,
    blindness: Blindness,
    witness: Witness,
}

impl Outcomes {
    /// Joins the group when Kafka is there.
    pub(crate) fn new(kafka: &KafkaSettings) -> KafkaResult<Self> {
        let topic = kafka.topic(Topic::Outcomes);
        Ok(Self {
            consumer: member(kafka, &topic)?,
            kafka: kafka.clone(),
            topic,
            was_heard: Cell::new(false),
            is_suspect: Cell::new(false),
            looked_at: Instant::now(),
            blindness: Blindness::default(),
            witness: Witness::new(kafka),
        })
    }

    /// The next record; `None` when none comes in a moment.
    pub(crate) fn next(&self) -> Option<BorrowedMessage<'_>> {
        match self.consumer.poll(POLL_WAIT)? {
            Ok(record) => {
                self.was_heard.set(true);
                return Some(record);
            }
            Err(KafkaError::PartitionEOF(_)) => self.was_heard.set(true),
            Err(error) => {
                tracing::debug!(%error, "outcomes are not readable now");
                self.is_suspect.set(true);
            }
        }
        None
    }

    /// The record is done with: the next commit covers it.
    pub(crate) fn is_done(&self, record: &BorrowedMessage<'_>) {
        if let Err(error) = self.consumer.store_offset_from_message(record) {
            // The partition was taken away meanwhile; its next owner starts at the commit.
            tracing::debug!(%error, "position of outcomes not kept");
        }
    }

    pub(crate) fn commit(&self, mode: CommitMode) {
        if let Err(error) = self.consumer.commit_consumer_state(mode) {
            // Nothing new to commit is an error too.
            tracing::debug!(%error, "position of outcomes not committed");
        }
    }

    /// Asks the brokers for an answer when nothing came for a while, and reads with another client when they have not given this one any for
    /// long, and others one. Blocks for some seconds then; to be called between any two records.
    pub(crate) fn look_after_client(&mut self) {
        if self.was_heard.take() {
            self.blindness.answered();
            self.looked_at = Instant::now();
            return;
        }
        let is_in_doubt = self.blindness.is_blind() || self.is_suspect.get();
        let pause = if is_in_doubt { ASK_AGAIN_AFTER } else { ASK_AFTER };
        if self.looked_at.elapsed() < pause {
            return;
        }
        self.is_suspect.set(false);
        let is_answered = self.consumer.fetch_metadata(Some(&self.topic), ANSWER_PATIENCE).is_ok();
        if self.witness.judge(is_answered, &mut self.blindness) {
            self.read_anew();
        }
        self.looked_at = Instant::now();
    }

    fn read_anew(&mut self) {
        match member(&self.kafka, &self.topic) {
            Ok(consumer) => {
                tracing::error!("the consumer of outcomes found no broker, and others did: it is replaced");
                metrics::lost_client(metrics::Client::Disabler);
                self.consumer = consumer;
                self.blindness.replaced();
            }
            // Tried again at the next look.
            Err(error) => tracing::error!(%error, "no new consumer of outcomes"),
        }
    }
}

fn member(kafka: &KafkaSettings, topic: &str) -> KafkaResult<BaseConsumer<Quiet>> {
    // That there is nothing more is an answer, too.
    let consumer: BaseConsumer<Quiet> =
        kafka.consumer(GROUP).set("enable.partition.eof", "true").create_with_context(Quiet)?;
    consumer.subscribe(&[topic])?;
    Ok(consumer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use floodway_runtime::kafka::{KafkaSecurity, SecurityProtocol};
    use rdkafka::{
        Message,
        mocking::MockCluster,
        producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer},
    };

    const DEADLINE: Duration = Duration::from_secs(60);

    /// A cluster with a record on the topic, and the settings for it.
    fn cluster() -> (MockCluster<'static, DefaultProducerContext>, KafkaSettings) {
        let cluster = MockCluster::new(1).unwrap();
        let kafka = KafkaSettings { brokers: cluster.bootstrap_servers(), ..KafkaSettings::default() };
        let topic = kafka.topic(Topic::Outcomes);
        cluster.create_topic(&topic, 1, 1).unwrap();
        let producer: BaseProducer = kafka.producer().create().unwrap();
        producer.send(BaseRecord::<str, str>::to(&topic).payload("x")).map_err(|(error, _)| error).unwrap();
        producer.flush(DEADLINE).unwrap();
        (cluster, kafka)
    }

    fn until(what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !holds() {
            assert!(Instant::now() < deadline, "not in time: {what}");
        }
    }

    /// As if no broker had answered the client for a minute, in which others were answered.
    fn has_been_blind(outcomes: &mut Outcomes) {
        let long_ago = Instant::now().checked_sub(Duration::from_secs(60)).unwrap();
        outcomes.looked_at = long_ago;
        outcomes.blindness = Blindness::default();
        assert!(!outcomes.blindness.unanswered(long_ago) && !outcomes.blindness.others(true, long_ago));
    }

    #[test]
    fn records_and_the_end_of_the_topic_are_answers_and_so_is_what_is_known_of_it() {
        let (_cluster, kafka) = cluster();
        let mut outcomes = Outcomes::new(&kafka).unwrap();
        until("a record", || outcomes.next().is_some());
        has_been_blind(&mut outcomes);
        outcomes.look_after_client();
        assert!(!outcomes.blindness.is_blind());
        until("the end", || outcomes.next().is_none() && outcomes.was_heard.get());
        has_been_blind(&mut outcomes);
        outcomes.look_after_client();
        assert!(!outcomes.blindness.is_blind());
        // Now it has to be asked.
        has_been_blind(&mut outcomes);
        outcomes.look_after_client();
        assert!(!outcomes.blindness.is_blind() && outcomes.looked_at.elapsed() < DEADLINE);
    }

    #[test]
    fn a_client_that_finds_no_broker_is_replaced_as_soon_as_another_one_can_be_made() {
        let (_cluster, there) = cluster();
        // Reserved and closed on every sane machine.
        let nowhere = KafkaSettings { brokers: "127.0.0.1:1".to_owned(), ..KafkaSettings::default() };
        let mut outcomes = Outcomes::new(&nowhere).unwrap();
        outcomes.witness = Witness::new(&there);
        let security = KafkaSecurity {
            security_protocol: SecurityProtocol::Ssl,
            ca_file: Some("/nowhere.pem".into()),
            ..KafkaSecurity::default()
        };
        outcomes.kafka = KafkaSettings { security, ..there.clone() };
        has_been_blind(&mut outcomes);
        outcomes.look_after_client();
        // It has not become more patient.
        assert!(outcomes.blindness.unanswered(Instant::now()));
        outcomes.kafka = there;
        until("another client", || {
            has_been_blind(&mut outcomes);
            outcomes.look_after_client();
            !outcomes.blindness.is_blind()
        });
        until("it reads", || outcomes.next().is_some_and(|record| record.offset() == 0));
    }
}
