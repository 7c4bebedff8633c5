//! A producer that serves requests now and then, and that is replaced when it has lost its brokers.
//!
//! Whether it has is asked regularly, and not only when records fail: days may go by without one ([`crate::stall`]).

use crate::{served_producer::ServedProducer, stall::Blindness, witness::Witness};
use rdkafka::{
    ClientConfig,
    error::{KafkaError, KafkaResult},
    producer::{Producer, ProducerContext},
};
use std::{
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, Instant},
};

/// Longest wait for an answer when asking whether Kafka is there.
const LOOK_PATIENCE: Duration = Duration::from_secs(3);
/// Pause between two replacements of producers that failed for good: for want of a right, say, all of them do.
const FAILED_PAUSE: Duration = Duration::from_secs(60);

/// A producer, and how to make another one like it.
pub struct ReplaceableProducer<C: ProducerContext + Clone + 'static> {
    config: ClientConfig,
    context: C,
    live: RwLock<Arc<ServedProducer<C>>>,
    /// When one that had failed for good was last replaced.
    failed_at: Mutex<Option<Instant>>,
    /// Since when no broker answers it. Held while it is looked at.
    blindness: Mutex<Blindness>,
}

/// What a look at a producer showed.
#[derive(Debug)]
pub enum Look {
    /// A broker answers it.
    Answered,
    /// None does: Kafka is away, or it is too early to tell whether the producer is at fault. Or it failed for good soon after another one had.
    Unanswered(KafkaError),
    /// None did, and Kafka answers others, or it failed for good: another producer has taken its place.
    Replaced,
}

impl<C: ProducerContext + Clone + 'static> ReplaceableProducer<C> {
    /// Connects nothing yet.
    ///
    /// # Errors
    /// When the client refuses its settings.
    pub fn new(config: ClientConfig, context: C) -> KafkaResult<Self> {
        let live = RwLock::new(Arc::new(config.create_with_context(context.clone())?));
        Ok(Self { config, context, live, failed_at: Mutex::default(), blindness: Mutex::default() })
    }

    /// The present producer. To be let go of before its reports are waited for: one that is replaced ends when nobody has it any more.
    pub fn live(&self) -> Arc<ServedProducer<C>> {
        // The lock guards one assignment, which a panic elsewhere cannot leave half done; so does the other one.
        Arc::clone(&self.live.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Asks the brokers for a topic, and replaces the producer when none has answered it for long while others were answered, or when it has
    /// failed for good. What it held is reported as failed then. Blocks for some seconds.
    pub fn look(&self, topic: &str, witness: &Witness) -> Look {
        let mut blindness = self.blindness.lock().unwrap_or_else(PoisonError::into_inner);
        let live = self.live();
        let failed = live.client().fatal_error();
        let answer = live.client().fetch_metadata(Some(topic), LOOK_PATIENCE);
        drop(live);
        let is_lost = witness.judge(answer.is_ok(), &mut blindness);
        let reason = match (failed, answer) {
            (Some((code, reason)), _) => {
                let mut failed_at = self.failed_at.lock().unwrap_or_else(PoisonError::into_inner);
                if failed_at.is_some_and(|at| at.elapsed() < FAILED_PAUSE) {
                    return Look::Unanswered(KafkaError::MessageProduction(code));
                }
                *failed_at = Some(Instant::now());
                reason
            }
            (None, Ok(_)) => return Look::Answered,
            (None, Err(error)) if !is_lost => return Look::Unanswered(error),
            (None, Err(error)) => format!("it got no answer, and others did: {error}"),
        };
        match self.replace() {
            Ok(()) => {
                blindness.replaced();
                tracing::error!(topic, reason, "a producer was of no more use and was replaced");
                Look::Replaced
            }
            // Tried again at the next look.
            Err(error) => {
                tracing::error!(topic, %error, "a producer could not be replaced");
                Look::Unanswered(error)
            }
        }
    }

    fn replace(&self) -> KafkaResult<()> {
        let fresh = Arc::new(self.config.create_with_context(self.context.clone())?);
        let lost = std::mem::replace(&mut *self.live.write().unwrap_or_else(PoisonError::into_inner), fresh);
        ServedProducer::retire(lost);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::KafkaSettings;
    use rdkafka::{
        ClientContext,
        message::DeliveryResult,
        mocking::MockCluster,
        producer::{BaseRecord, DefaultProducerContext},
        types::{RDKafkaApiKey, RDKafkaRespErr},
    };
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Counts the records that failed.
    #[derive(Clone, Default)]
    struct Failures(Arc<AtomicU32>);

    impl ClientContext for Failures {}

    impl ProducerContext for Failures {
        type DeliveryOpaque = ();

        fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
            self.0.fetch_add(u32::from(result.is_err()), Ordering::Relaxed);
        }
    }

    /// A cluster that answers, and a witness of that.
    fn cluster() -> (MockCluster<'static, DefaultProducerContext>, Witness, KafkaSettings) {
        let cluster = MockCluster::new(1).unwrap();
        let kafka = KafkaSettings { brokers: cluster.bootstrap_servers(), ..KafkaSettings::default() };
        let (witness, deadline) = (Witness::new(&kafka), Instant::now() + Duration::from_secs(40));
        while !witness.judge(false, &mut Blindness::of_a_minute()) {
            assert!(Instant::now() < deadline);
        }
        (cluster, witness, kafka)
    }

    fn producer(kafka: &KafkaSettings) -> (ReplaceableProducer<Failures>, Failures) {
        let failures = Failures::default();
        (ReplaceableProducer::new(kafka.producer(), failures.clone()).unwrap(), failures)
    }

    /// Settings of a client that finds no broker, on every sane machine.
    fn nowhere() -> KafkaSettings {
        KafkaSettings { brokers: "127.0.0.1:1".to_owned(), ..KafkaSettings::default() }
    }

    fn has_been_blind(producer: &ReplaceableProducer<Failures>) {
        *producer.blindness.lock().unwrap() = Blindness::of_a_minute();
    }

    fn is_blind(producer: &ReplaceableProducer<Failures>) -> bool {
        producer.blindness.lock().unwrap().is_blind()
    }

    #[test]
    fn a_producer_that_is_answered_stays() {
        let (_cluster, witness, kafka) = cluster();
        let (producer, _) = producer(&kafka);
        has_been_blind(&producer);
        let before = producer.live();
        assert!(matches!(producer.look("any", &witness), Look::Answered));
        assert!(Arc::ptr_eq(&before, &producer.live()) && !is_blind(&producer));
    }

    #[test]
    fn a_producer_that_is_not_answered_while_others_are_is_replaced_and_what_it_held_fails() {
        let (_cluster, witness, _) = cluster();
        let (producer, failures) = producer(&nowhere());
        has_been_blind(&producer);
        let record = BaseRecord::<str, str>::to("any").payload("x");
        producer.live().send(record).map_err(|(error, _)| error).unwrap();
        let before = Arc::downgrade(&producer.live());
        assert!(matches!(producer.look("any", &witness), Look::Replaced));
        assert!(before.upgrade().is_none() && !is_blind(&producer));
        assert_eq!(failures.0.load(Ordering::Relaxed), 1);
    }

    fn until_it_failed(producer: &ReplaceableProducer<Failures>) {
        let deadline = Instant::now() + Duration::from_secs(40);
        while producer.live().client().fatal_error().is_none() {
            assert!(Instant::now() < deadline, "the producer is well");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn a_producer_that_failed_for_good_is_replaced() {
        let (cluster, witness, kafka) = cluster();
        let (producer, _) = producer(&kafka);
        let refusals = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED];
        cluster.request_errors(RDKafkaApiKey::InitProducerId, &refusals);
        until_it_failed(&producer);
        assert!(matches!(producer.look("any", &witness), Look::Replaced));
        assert!(matches!(producer.look("any", &witness), Look::Answered));
        assert!(producer.live().client().fatal_error().is_none());
        // The next one is refused, too: it is not replaced again and again, and whoever asks is told.
        cluster.request_errors(RDKafkaApiKey::InitProducerId, &refusals);
        *producer.live.write().unwrap() =
            Arc::new(producer.config.create_with_context(producer.context.clone()).unwrap());
        until_it_failed(&producer);
        let look = producer.look("any", &witness);
        assert!(matches!(look, Look::Unanswered(KafkaError::MessageProduction(_))), "{look:?}");
        *producer.failed_at.lock().unwrap() = None;
        assert!(matches!(producer.look("any", &witness), Look::Replaced));
    }

    #[test]
    fn while_nobody_is_answered_and_while_none_can_be_made_the_producer_stays_and_is_tried_again() {
        let (mut producer, _) = producer(&nowhere());
        let before = producer.live();
        has_been_blind(&producer);
        assert!(matches!(producer.look("any", &Witness::new(&nowhere())), Look::Unanswered(_)));
        let (_cluster, witness, _) = cluster();
        has_been_blind(&producer);
        producer.config.set("acks", "never");
        for _ in 0..2 {
            let look = producer.look("any", &witness);
            assert!(matches!(look, Look::Unanswered(KafkaError::ClientConfig(..))), "{look:?}");
            assert!(Arc::ptr_eq(&before, &producer.live()) && is_blind(&producer));
        }
    }
}
