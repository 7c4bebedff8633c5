//! The operator's command after PostgreSQL was restored: configuration from the `config` topic.

use crate::{config::Settings, error::Error, operate::store_error};
use floodway_runtime::{config_feed::ConfigFeed, kafka::KafkaSettings};
use floodway_schemas::config::ConfigChange;
use floodway_store::{
    Error as StoreError, Pool, migrate,
    recover::{self, TopicState},
};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Longest time for reading the topic: megabytes, as a rule.
const READ_TIMEOUT: Duration = Duration::from_secs(120);

/// How often an operator is told that it still goes on.
const TELL_PAUSE: Duration = Duration::from_secs(5);

/// Connections: the publisher's right, and the transaction.
const CONNECTIONS: usize = 2;

/// Brings the tables up to what the topic has.
pub(crate) async fn recover_configuration(settings: &Settings, dry_run: bool) -> Result<(), Error> {
    let kafka = settings.kafka()?;
    let pool =
        Pool::new(settings.database_direct_url()?, "floodway-recover", CONNECTIONS).map_err(store_error)?;
    // What an older binary does not know it would take for deleted.
    migrate::check_schema(&pool).await.map_err(store_error)?;
    let recovered = recover::recover(&pool, || read_topic(&kafka), dry_run).await.map_err(store_error)?;
    let what = if dry_run { "would be recovered" } else { "recovered" };
    tracing::info!(
        created = recovered.created,
        changed = recovered.changed,
        deleted = recovered.deleted,
        passed_over = recovered.passed_over,
        "configuration {what}: {} created, {} changed, {} deleted",
        recovered.created,
        recovered.changed,
        recovered.deleted
    );
    Ok(())
}

/// The topic's state, read to its end.
async fn read_topic(kafka: &KafkaSettings) -> Result<TopicState, StoreError> {
    let state = Arc::new(Mutex::new(TopicState::new()));
    let ended = CancellationToken::new();
    let into = Arc::clone(&state);
    let feed = ConfigFeed::start(kafka, ended.clone(), move |change, _| {
        let mut state = into.lock().unwrap_or_else(PoisonError::into_inner);
        match change {
            ConfigChange::Deleted(key) => drop(state.remove(&key)),
            change => drop(state.insert(change.key(), change)),
        }
    })
    .map_err(|error| StoreError::Other(error.to_string()))?;
    let caught_up = tokio::time::timeout(READ_TIMEOUT, telling(&feed)).await;
    let (skipped, trouble) = (feed.skipped(), feed.trouble());
    ended.cancel();
    // Its thread looks at the token twice a second.
    let joined = tokio::task::spawn_blocking(move || feed.join()).await;
    if skipped > 0 {
        return Err(StoreError::Conflict(format!(
            "the config topic has {skipped} records that this version cannot read, and would take for deleted: use a newer one"
        )));
    }
    match (caught_up, joined) {
        (Ok(true), Ok(())) => Ok(std::mem::take(&mut *state.lock().unwrap_or_else(PoisonError::into_inner))),
        _ => Err(StoreError::Unavailable(format!(
            "the config topic could not be read to its end: {}",
            trouble.as_deref().unwrap_or("it took too long")
        ))),
    }
}

/// Waits for the topic's end, and tells an operator who waits too.
async fn telling(feed: &ConfigFeed) -> bool {
    loop {
        tokio::select! {
            caught_up = feed.caught_up() => return caught_up,
            () = tokio::time::sleep(TELL_PAUSE) => {
                let trouble = feed.trouble();
                tracing::warn!(trouble, "the config topic is not read to its end yet");
            }
        }
    }
}
