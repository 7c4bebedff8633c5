//! Why Kafka does not answer, for people.
//!
//! A request to a broker that cannot be reached only times out: the reason is told to the client's error callback, once, and
//! again at most twice a minute. So a client of its own is asked, which hears of it at its first attempt.

use crate::kafka::KafkaSettings;
use floodway_schemas::topic::Topic;
use rdkafka::{
    ClientContext,
    config::RDKafkaLogLevel,
    error::KafkaError as ClientError,
    message::DeliveryResult,
    producer::{BaseProducer, Producer, ProducerContext},
    types::RDKafkaErrorCode as Code,
};
use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Longest wait for metadata before the errors are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long a refusal is waited for after the first reason: another broker may know more, and so may the next attempt.
const TELLING_WAIT: Duration = Duration::from_millis(500);

/// What the client said about its connections.
#[derive(Debug, Default)]
struct Reasons(Mutex<Vec<Reason>>);

/// The first is the most telling: all brokers may be asked, and some be down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// The client is not who it says, or its mechanism is not spoken.
    Authentication,
    /// No TLS connection.
    Tls,
    /// The host is not known.
    Resolve,
    /// A connection could not be made, or broke.
    Connection,
    /// A connection was closed by the broker, which the client takes for no error.
    Closed,
}

type Reason = (Kind, String);

impl Reasons {
    // Each critical section is one insertion or read: a panic elsewhere cannot leave it half done.
    fn lock(&self) -> MutexGuard<'_, Vec<Reason>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Reasons {
    /// A broker that speaks TLS closes the connection of a client that does not: this is in the log alone.
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        if facility == "FAIL" {
            // Before the reason comes the name of a thread: `[thrd:…]: `.
            let reason = message.split_once("]: ").map_or(message, |(_, reason)| reason);
            self.lock().push((Kind::Closed, reason.to_owned()));
        }
    }

    fn error(&self, error: ClientError, reason: &str) {
        let kind = match error.rdkafka_error_code() {
            // How many of them are down is not why.
            Some(Code::AllBrokersDown) => return,
            Some(Code::Authentication) => Kind::Authentication,
            Some(Code::SSL) => Kind::Tls,
            Some(Code::Resolve) => Kind::Resolve,
            _ => Kind::Connection,
        };
        self.lock().push((kind, reason.to_owned()));
    }
}

impl ProducerContext for Reasons {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

impl KafkaSettings {
    /// Connects anew and tells why no broker answers; `None` if one does, or if nothing is known after `patience`.
    /// Blocks. The reason names settings and hosts and no secret.
    pub fn diagnose(&self, patience: Duration) -> Option<String> {
        let mut end = Instant::now() + patience;
        let mut config = self.client();
        config.set_log_level(RDKafkaLogLevel::Info);
        let client: BaseProducer<Reasons> = config.create_with_context(Reasons::default()).ok()?;
        let (reasons, topic) = (client.context(), self.topic(Topic::Config));
        loop {
            // A topic that is not there is an answer as well.
            if client.client().fetch_metadata(Some(&topic), LOOK_EVERY).is_ok() {
                return None;
            }
            // Takes one event at a time, or as many as there are: either way all are heard of before the end.
            client.poll(Duration::ZERO);
            let found = reasons.lock();
            if !found.is_empty() {
                end = end.min(Instant::now() + TELLING_WAIT);
            }
            let refused = found.iter().any(|(kind, _)| *kind < Kind::Connection);
            if refused || Instant::now() >= end {
                return most_telling(&found);
            }
        }
    }
}

fn most_telling(reasons: &[Reason]) -> Option<String> {
    reasons.iter().min_by_key(|(kind, _)| *kind).map(|(kind, reason)| match kind {
        Kind::Authentication => {
            format!("authentication failed (kafka.sasl_mechanism, sasl_username, sasl_password): {reason}")
        }
        Kind::Tls => format!("TLS failed (kafka.security_protocol, ca_file, certificate_file): {reason}"),
        Kind::Closed => format!("{reason}; the listener may speak another kafka.security_protocol"),
        Kind::Resolve | Kind::Connection => reason.clone(),
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
        let down = (Kind::Connection, "a: Connect failed".to_owned());
        let closed = (Kind::Closed, "a: Disconnected".to_owned());
        let refused = (Kind::Authentication, "b: SASL authentication error".to_owned());
        assert_eq!(most_telling(&[closed.clone(), down.clone()]).unwrap(), "a: Connect failed");
        assert!(most_telling(&[closed, down, refused]).unwrap().starts_with("authentication failed"));
    }
}
