//! The operator's commands: tables and topics.

use crate::{command::TopicsApply, config::Settings, error::Error, process::Role};
use floodway_runtime::topics::{self, Change, TopicPlan, TopicsError};
use floodway_store::migrate;

/// Partitions of the topics that `floodway dev` creates.
const DEV_PARTITIONS: i32 = 8;

/// Brings the database's tables up to date.
pub(crate) async fn migrate(settings: &Settings) -> Result<(), Error> {
    let report = migrate::migrate(settings.database_direct_url()?).await.map_err(store_error)?;
    tracing::info!(version = report.version, applied = ?report.applied, "the database is up to date");
    Ok(())
}

/// Creates missing topics and checks all of them.
pub(crate) async fn apply_topics(settings: &Settings, plan: TopicsApply) -> Result<(), Error> {
    let TopicsApply { partitions, replication, dev } = plan;
    apply(settings, TopicPlan { partitions, replication, dev }).await
}

/// What `floodway dev` needs before its roles start: valid settings, topics and tables.
pub(crate) async fn prepare_dev(settings: &Settings) -> Result<(), Error> {
    settings.validate(&Role::ALL)?;
    apply(settings, TopicPlan { partitions: DEV_PARTITIONS, replication: 1, dev: true }).await?;
    migrate(settings).await
}

async fn apply(settings: &Settings, plan: TopicPlan) -> Result<(), Error> {
    let kafka = settings.kafka()?;
    for change in topics::apply(&kafka, plan).await.map_err(topics_error)? {
        match change {
            Change::Created(topic) => tracing::info!(topic = kafka.topic(topic), "created"),
            Change::Unchanged(topic) => tracing::info!(topic = kafka.topic(topic), "is as it should be"),
        }
    }
    Ok(())
}

fn topics_error(error: TopicsError) -> Error {
    match error {
        TopicsError::Unreachable { .. } => Error::Unavailable(error.to_string()),
        _ => Error::settings(error),
    }
}

pub(crate) fn store_error(error: floodway_store::Error) -> Error {
    match error {
        floodway_store::Error::Unavailable(_) | floodway_store::Error::Busy(_) => {
            Error::Unavailable(error.to_string())
        }
        floodway_store::Error::Schema(_) => Error::settings(error),
        _ => Error::Failed(error.to_string()),
    }
}
