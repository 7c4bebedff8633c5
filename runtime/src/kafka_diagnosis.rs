//! Why Kafka does not answer, for people.
//!
//! A request to a broker that cannot be reached only times out: the reason is told to the client's error callback, once, and
//! again at most twice a minute. So a client of its own is asked, which hears of it at its first attempt.

use crate::kafka::KafkaSettings;
use floodway_schemas::topic::Topic;
use rdkafka::{
    ClientContext,
    error::KafkaError as ClientError,
    producer::{BaseProducer, Producer, ProducerContext},
    types::RDKafkaErrorCode as Code,
};
use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Longest wait for metadata before the errors are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What the client said about its connections.
#[derive(Debug, Default)]
struct Errors(Mutex<Vec<(Code, String)>>);

impl Errors {
    // Each critical section is one insertion or read: a panic elsewhere cannot leave it half done.
    fn lock(&self) -> MutexGuard<'_, Vec<(Code, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Errors {
    fn error(&self, error: ClientError, reason: &str) {
        if let Some(code) = error.rdkafka_error_code() {
            self.lock().push((code, reason.to_owned()));
        }
    }
}

impl ProducerContext for Errors {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &rdkafka::message::DeliveryResult<'_>, (): ()) {}
}

impl KafkaSettings {
    /// Connects anew and tells why no broker answers; `None` if one does, or if nothing is known after `patience`.
    /// Blocks. The reason names settings and hosts and no secret.
    pub fn diagnose(&self, patience: Duration) -> Option<String> {
        let end = Instant::now() + patience;
        let client: BaseProducer<Errors> = self.client().create_with_context(Errors::default()).ok()?;
        let (errors, topic) = (client.context(), self.topic(Topic::Config));
        loop {
            // A topic that is not there is an answer as well.
            if client.client().fetch_metadata(Some(&topic), LOOK_EVERY).is_ok() {
                return None;
            }
            client.poll(Duration::ZERO);
            let all_tried = errors.lock().iter().any(|(code, _)| *code == Code::AllBrokersDown);
            if all_tried || Instant::now() >= end {
                return most_telling(&errors.lock());
            }
        }
    }
}

/// A refusal tells more than a broker that is not there: all of them may be asked, and some be down.
fn most_telling(errors: &[(Code, String)]) -> Option<String> {
    let rank = |code: Code| match code {
        Code::Authentication => 0,
        Code::SSL => 1,
        Code::Resolve => 2,
        _ => 3,
    };
    let told = errors.iter().filter(|(code, _)| *code != Code::AllBrokersDown);
    told.min_by_key(|(code, _)| rank(*code)).map(|(code, reason)| match code {
        Code::Authentication => {
            format!("authentication failed (kafka.sasl_mechanism, sasl_username, sasl_password): {reason}")
        }
        Code::SSL => format!("TLS failed (kafka.security_protocol, ca_file, certificate_file): {reason}"),
        _ => reason.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::mocking::MockCluster;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn at(brokers: &str) -> KafkaSettings {
        KafkaSettings { brokers: brokers.to_owned(), ..KafkaSettings::default() }
    }

    #[test]
    fn a_broker_that_answers_has_no_diagnosis() {
        let cluster = MockCluster::new(1).unwrap();
        assert_eq!(at(&cluster.bootstrap_servers()).diagnose(PATIENCE), None);
    }

    #[test]
    fn nobody_there_and_no_such_host_are_told_apart() {
        let reason = at("127.0.0.1:1").diagnose(PATIENCE).unwrap();
        assert!(reason.contains("127.0.0.1:1") && reason.contains("refused"), "{reason}");
        let reason = at("no-such-host.invalid:9092").diagnose(PATIENCE).unwrap();
        assert!(reason.contains("resolve") && reason.contains("no-such-host.invalid"), "{reason}");
    }

    #[test]
    fn a_refusal_is_told_rather_than_an_absence() {
        let down = (Code::BrokerTransportFailure, "a: Connect failed".to_owned());
        let refused = (Code::Authentication, "b: SASL authentication error".to_owned());
        let all_down = (Code::AllBrokersDown, "2/2 brokers are down".to_owned());
        assert_eq!(most_telling(&[down.clone(), all_down.clone()]).unwrap(), "a: Connect failed");
        assert!(most_telling(&[down, refused, all_down]).unwrap().starts_with("authentication failed"));
    }
}
