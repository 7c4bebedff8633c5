//! Watches what the control plane depends on, so that health tells the truth while nobody asks for anything.

use crate::records::Records;
use floodway_runtime::{health::Component, kafka::KafkaSettings, topics};
use floodway_schemas::topic::Topic;
use floodway_store::{Pool, migrate::check_schema};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The topics that the role uses.
pub(crate) const TOPICS: [Topic; 3] = [Topic::Config, Topic::Replays, Topic::Outcomes];

/// How often each dependency is looked at.
const PROBE_EVERY: Duration = Duration::from_secs(5);

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

/// Reports on Kafka until `stop` is cancelled. It is not up before the topics were found to be right, which ends
/// `topics_checked`: they could not be checked at the start when Kafka was away then.
pub(crate) async fn watch_kafka(
    kafka: KafkaSettings,
    records: Records,
    topics_checked: CancellationToken,
    component: Component,
    stop: CancellationToken,
) {
    let topic = kafka.topic(Topic::Config);
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
            match records.probe(&topic).await {
                Ok(()) => component.up(),
                Err(error) => component.down(error.to_string()),
            }
            tokio::time::sleep(PROBE_EVERY).await;
        }
    };
    stop.run_until_cancelled(probe).await;
}
