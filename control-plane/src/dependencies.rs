//! Watches what the control plane depends on, so that health tells the truth while nobody asks for anything.

use crate::{
    history_reads::Replica,
    metrics::{self, Client},
    records::Records,
};
use floodway_runtime::{
    health::Component, kafka::KafkaSettings, replaceable_producer::Look, retry_commands::RetryCommands,
    topics, witness::Witness,
};
use floodway_schemas::topic::Topic;
use floodway_store::{Error, Pool, migrate::check_schema, replica};
use rdkafka::error::KafkaError;
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// The topics that the role uses.
pub(crate) const TOPICS: [Topic; 3] = [Topic::Config, Topic::Replays, Topic::Outcomes];

/// How often each dependency is looked at.
const PROBE_EVERY: Duration = Duration::from_secs(5);

/// How far a replica may be behind: history that is older than this surprises people who look for what just happened.
const MAX_LAG: Duration = Duration::from_secs(30);

/// Reports on PostgreSQL until `stop` is cancelled.
pub(crate) async fn watch_postgresql(pool: Pool, component: Component, stop: CancellationToken) {
    let probe = async {
        loop {
            match check_schema(&pool).await {
                Ok(()) => component.up(),
                Err(error) => component.down(error.to_string()),
            }
            tokio::time::sleep(PROBE_EVERY).await;
        }
    };
    stop.run_until_cancelled(probe).await;
}

/// Reports on a read replica until `stop` is cancelled, and decides whether it is asked.
pub(crate) async fn watch_replica(replica: Replica, component: Component, stop: CancellationToken) {
    let probe = async {
        loop {
            let problem = match lag_of(&replica.pool).await {
                Ok(lag) if lag <= MAX_LAG => String::new(),
                Ok(lag) => format!("it is {} s behind", lag.as_secs()),
                // Its connections are in use: nothing new is known.
                Err(Error::Busy(_)) => {
                    tokio::time::sleep(PROBE_EVERY).await;
                    continue;
                }
                Err(error) => error.to_string(),
            };
            replica.set_usable(problem.is_empty());
            if problem.is_empty() {
                component.up();
            } else {
                component.down(format!("history is read from the primary: {problem}"));
            }
            tokio::time::sleep(PROBE_EVERY).await;
        }
    };
    stop.run_until_cancelled(probe).await;
}

async fn lag_of(pool: &Pool) -> Result<Duration, Error> {
    check_schema(pool).await?;
    replica::lag(&pool.get().await?).await
}

/// The producers that serve requests: each is replaced when it has lost its brokers.
pub(crate) struct Producers {
    pub(crate) records: Records,
    pub(crate) retry_commands: RetryCommands,
}

/// Reports on Kafka until `stop` is cancelled, and looks after the producers. Kafka is not up before the topics were found to be right, which
/// ends `topics_checked`: they could not be checked at the start when Kafka was away then.
pub(crate) async fn watch_kafka(
    kafka: KafkaSettings,
    Producers { records, retry_commands }: Producers,
    topics_checked: CancellationToken,
    component: Component,
    stop: CancellationToken,
) {
    let (topic, witness) = (kafka.topic(Topic::Config), Arc::new(Witness::new(&kafka)));
    let look_at_records = || {
        let (records, topic, witness) = (records.clone(), topic.clone(), Arc::clone(&witness));
        blocking(move || records.look(&topic, &witness))
    };
    let look_at_commands = || {
        let (commands, witness) = (retry_commands.clone(), Arc::clone(&witness));
        blocking(move || commands.look(&witness))
    };
    let probe = async {
        while !topics_checked.is_cancelled() {
            match topics::check(&kafka, &TOPICS).await {
                Ok(_) => topics_checked.cancel(),
                Err(error) => {
                    tracing::warn!(%error, "the topics cannot be used yet");
                    component.down(error.to_string());
                    tokio::time::sleep(PROBE_EVERY).await;
                }
            }
        }
        loop {
            match look_at_records().await {
                Look::Answered => component.up(),
                Look::Unanswered(error) => component.down(error.to_string()),
                Look::Replaced => metrics::lost_client(Client::Replays),
            }
            // Nothing else depends on these.
            if let Look::Replaced = look_at_commands().await {
                metrics::lost_client(Client::RetryCommands);
            }
            tokio::time::sleep(PROBE_EVERY).await;
        }
    };
    stop.run_until_cancelled(probe).await;
}

/// Looks where waiting disturbs nobody: ending a client takes its time, too.
async fn blocking(look: impl FnOnce() -> Look + Send + 'static) -> Look {
    tokio::task::spawn_blocking(look).await.unwrap_or(Look::Unanswered(KafkaError::Canceled))
}
