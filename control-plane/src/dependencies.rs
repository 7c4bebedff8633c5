//! Watches what the control plane depends on, so that health tells the truth while nobody asks for anything.

use crate::records::Records;
use floodway_runtime::health::Component;
use floodway_store::{Pool, migrate::check_schema};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

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

/// Reports on Kafka until `stop` is cancelled.
pub(crate) async fn watch_kafka(
    records: Records,
    topic: String,
    component: Component,
    stop: CancellationToken,
) {
    let probe = async {
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
