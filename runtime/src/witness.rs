//! Whether Kafka answers somebody else: tells a client that is at fault from a Kafka that is away.

use crate::{kafka::KafkaSettings, stall::Blindness};
use floodway_schemas::topic::Topic;
use rdkafka::{
    ClientContext,
    client::Client,
    error::KafkaError as ClientError,
    message::DeliveryResult,
    producer::{BaseProducer, Producer, ProducerContext},
};
use std::{
    sync::{Mutex, TryLockError},
    time::{Duration, Instant},
};

/// Longest wait for an answer. Threads that ask have to end soon when they are told to.
const PATIENCE: Duration = Duration::from_secs(2);
/// So long an answer is good for all who ask: while Kafka is away, many do.
const GOOD_FOR: Duration = Duration::from_secs(4);

/// Asks Kafka with a client made for the question. One serves all clients of a role.
#[derive(Debug)]
pub struct Witness {
    kafka: KafkaSettings,
    last: Mutex<Option<(Instant, bool)>>,
}

impl Witness {
    /// For clients with these settings.
    pub fn new(kafka: &KafkaSettings) -> Self {
        Self { kafka: kafka.clone(), last: Mutex::new(None) }
    }

    /// Whether a client of which nothing is heard has lost Kafka: it gets no answer about the cluster, which any broker gives, and others do.
    /// One that is answered waits for something else, such as a leader or replicas, which another client would wait for, too. Blocks for some
    /// seconds at most.
    pub fn finds_lost<C: ClientContext>(&self, client: &Client<C>, blindness: &mut Blindness) -> bool {
        if self.is_answered(client) {
            blindness.answered();
            return false;
        }
        self.contradicts(blindness)
    }

    /// Takes in whether a broker answered the client about the cluster just now. Whether it has lost Kafka: nobody has answered it for long, while
    /// Kafka answers others. Blocks for some seconds at most.
    pub fn judge(&self, is_answered: bool, blindness: &mut Blindness) -> bool {
        if is_answered {
            blindness.answered();
            return false;
        }
        blindness.unanswered(Instant::now()) && self.contradicts(blindness)
    }

    /// Whether Kafka has answered others for a while in which it did not answer the client, which was asked before: that one takes another's
    /// place. Blocks for some seconds at most.
    pub fn contradicts(&self, blindness: &mut Blindness) -> bool {
        self.answered().is_some_and(|answered| blindness.others(answered, Instant::now()))
    }

    /// Whether a broker answers a client that is made now, or was a moment ago; `None` while another thread asks.
    fn answered(&self) -> Option<bool> {
        let mut last = match self.last.try_lock() {
            Ok(last) => last,
            // An instant and its answer are stored at once.
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        if let Some((at, answered)) = *last
            && at.elapsed() < GOOD_FOR
        {
            return Some(answered);
        }
        let answered = self.ask();
        *last = Some((Instant::now(), answered));
        Some(answered)
    }

    fn ask(&self) -> bool {
        let Ok(client) = self.kafka.client().create_with_context::<_, BaseProducer<Quiet>>(Quiet) else {
            return false;
        };
        self.is_answered(client.client())
    }

    fn is_answered<C: ClientContext>(&self, client: &Client<C>) -> bool {
        let answer = client.fetch_metadata(Some(&self.kafka.topic(Topic::Config)), PATIENCE);
        // A broker that does not take part in the cluster yet names none, itself included.
        answer.is_ok_and(|metadata| !metadata.brokers().is_empty())
    }
}

/// That a connection failed is what is asked for.
struct Quiet;

impl ClientContext for Quiet {
    fn error(&self, error: ClientError, reason: &str) {
        tracing::debug!(%error, reason, "witness");
    }
}

impl ProducerContext for Quiet {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::mocking::MockCluster;

    fn at(brokers: &str) -> Witness {
        Witness::new(&KafkaSettings { brokers: brokers.to_owned(), ..KafkaSettings::default() })
    }

    #[test]
    fn a_cluster_answers_and_nobody_does_not() {
        let cluster = MockCluster::new(1).unwrap();
        let (there, nowhere) = (at(&cluster.bootstrap_servers()), at("127.0.0.1:1"));
        let deadline = Instant::now() + Duration::from_secs(40);
        while there.answered() != Some(true) {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(nowhere.answered(), Some(false));
        // Another thread is asking.
        let _asking = there.last.lock().unwrap();
        assert_eq!(there.answered(), None);
    }

    #[test]
    fn a_client_that_is_answered_is_not_lost_whatever_it_waits_for() {
        let cluster = MockCluster::new(1).unwrap();
        let witness = at(&cluster.bootstrap_servers());
        let client = |witness: &Witness| {
            witness.kafka.client().create_with_context::<_, BaseProducer<Quiet>>(Quiet).unwrap()
        };
        let (healthy, lost) = (client(&witness), client(&at("127.0.0.1:1")));
        // For long nothing was heard of either, and others were answered.
        let long_ago = Instant::now().checked_sub(Duration::from_secs(60)).unwrap();
        let blind = || {
            let mut blindness = Blindness::default();
            assert!(!blindness.unanswered(long_ago) && !blindness.others(true, long_ago));
            assert!(blindness.unanswered(Instant::now()));
            blindness
        };
        let deadline = Instant::now() + Duration::from_secs(40);
        let is_there = || witness.is_answered(healthy.client()) && witness.ask();
        while !is_there() {
            assert!(Instant::now() < deadline);
        }
        let mut of_healthy = blind();
        assert!(!witness.finds_lost(healthy.client(), &mut of_healthy) && !of_healthy.is_blind());
        assert!(witness.finds_lost(lost.client(), &mut blind()));
    }
}
