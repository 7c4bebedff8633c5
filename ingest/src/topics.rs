//! Whether the topics keep Floodway's promises: checked at the start, or as soon as Kafka answers.

use floodway_runtime::{
    backoff::Backoff,
    kafka::KafkaSettings,
    topics::{self, TopicsError},
};
use floodway_schemas::topic::Topic;
use std::{
    convert::Infallible,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// What ingest writes to and reads from.
const TOPICS: [Topic; 2] = [Topic::Events, Topic::Config];
/// Longest pause between two checks that fail: after that time at most, topics put right are taken note of.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// First pause.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// What is known of the topics. Nothing is accepted before they are known to be right: an event acknowledged by a topic
/// that loses it would be lost for good.
#[derive(Debug)]
pub(crate) struct TopicsVerdict(Mutex<Result<(), String>>);

impl TopicsVerdict {
    /// The topics are right.
    pub(crate) fn right() -> Self {
        Self(Mutex::new(Ok(())))
    }

    /// Nothing is known yet.
    pub(crate) fn unknown() -> Self {
        Self(Mutex::new(Err("the topics have not been checked yet".to_owned())))
    }

    /// `Err` has the reason for operators.
    pub(crate) fn get(&self) -> Result<(), String> {
        self.lock().clone()
    }

    fn set(&self, verdict: Result<(), String>) {
        *self.lock() = verdict;
    }

    // Each critical section is an assignment or a read: a panic elsewhere cannot leave it half done.
    fn lock(&self) -> MutexGuard<'_, Result<(), String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Checks the topics; gives the partitions of the events topic.
pub(crate) async fn check(kafka: &KafkaSettings) -> Result<Option<i32>, TopicsError> {
    Ok(topics::check(kafka, &TOPICS).await?.partitions(Topic::Events))
}

/// Checks the topics until they are right; never returns.
pub(crate) async fn check_until_right(kafka: &KafkaSettings, verdict: &TopicsVerdict) -> Infallible {
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    while verdict.get().is_err() {
        match check(kafka).await {
            Ok(_) => verdict.set(Ok(())),
            Err(error) => {
                let reason = Err(error.to_string());
                // Kafka's absence is in the health report's log; what an operator must put right is said once.
                if !matches!(error, TopicsError::Unreachable { .. }) && verdict.get() != reason {
                    tracing::error!(%error, "no events are accepted until the topics are right");
                }
                verdict.set(reason);
                backoff.wait().await;
            }
        }
    }
    std::future::pending().await
}
