//! Keeps partitions ahead of the clock and drops those behind it. One process at a time, by an advisory lock on a
//! connection of its own that ends with the pass.

use crate::{circuit::Turn, dependency::Reporter, shared::Shared};
use floodway_store::{
    Error, count_levels, delivery_indexes, missing_indexes, partitions, partitions::Report,
    pool::DedicatedClient, retry,
};
use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// Wait after a pass that failed.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Partitions that last for less than this are worth a warning: passes have been failing for long, and a day is left to
/// do something about it.
const LEAST_AHEAD: Duration = Duration::from_secs(24 * 3600);

/// Passes until shutdown: at once, then at every interval, and when a shard lacks a partition.
pub(crate) async fn run(shared: Arc<Shared>, shutdown: CancellationToken) {
    loop {
        let turn = shared.circuit.turn(Instant::now());
        if turn == Turn::Wait {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(RETRY_AFTER) => {}
            }
            continue;
        }
        let wait = match pass(&shared).await {
            Ok(ahead) => {
                shared.circuit.closed();
                shared.database_health.up(Reporter::Maintenance);
                report_ahead(&shared, ahead);
                shared.settings.maintenance_interval
            }
            Err(error) => {
                if error.is_unavailable() || turn == Turn::Probe {
                    shared.circuit.failed(turn, Instant::now(), rand::random());
                }
                shared.metrics.maintenance_failures.increment(1);
                tracing::warn!(%error, "partitions could not be looked after");
                if !error.is_unavailable()
                    && let Ok(ahead) = look_ahead(&shared).await
                {
                    report_ahead(&shared, ahead);
                }
                shared.database_health.down(Reporter::Maintenance, error.to_string());
                RETRY_AFTER.min(shared.settings.maintenance_interval)
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(wait.mul_f64(0.75 + rand::random::<f64>() / 2.0)) => {}
            () = shared.partitions_wanted.notified() => {}
        }
    }
}

/// Answers how long partitions last, also when another process looks after them: each one tells it, so that the metric means
/// the same everywhere.
async fn pass(shared: &Shared) -> Result<Duration, Error> {
    report_stranded(shared).await?;
    let Some(mut client) = partitions::lock(&shared.pool).await? else {
        return look_ahead(shared).await;
    };
    // The database is there: what waits for that does not wait for a pass, which may take minutes.
    shared.circuit.closed();
    let settings = &shared.settings;
    let Report { created, dropped, ahead, blocked } =
        partitions::maintain(&mut client, settings.plan(), settings.retention()).await?;
    if !created.is_empty() || !dropped.is_empty() {
        let (n_created, n_dropped) = (created.len(), dropped.len());
        tracing::info!(n_created, n_dropped, ?dropped, "created {n_created} partitions, dropped {n_dropped}");
    }
    if let Some(reason) = blocked {
        tracing::warn!(%reason, "a partition could not be dropped for now: {reason}");
    }
    shared.metrics.pending_estimate.set(retry::stored_estimate(&client).await?);
    match settle_history(&mut client).await {
        Err(error) if error.is_unavailable() => return Err(error),
        // Queries are slower then, and that is all: retries go on, and the next pass tries again.
        Err(error) => {
            shared.metrics.maintenance_failures.increment(1);
            tracing::warn!(%error, "history could not be summed up or indexed for now: {error}");
        }
        Ok(()) => {}
    }
    Ok(ahead)
}

async fn look_ahead(shared: &Shared) -> Result<Duration, Error> {
    partitions::ahead(&*shared.pool.get().await?).await
}

fn report_ahead(shared: &Shared, ahead: Duration) {
    shared.metrics.partitions_ahead_hours.set(ahead.as_secs_f64() / 3600.0);
    // Half of what is planned, where less than two days are.
    if ahead < LEAST_AHEAD.min(Duration::from_secs(u64::from(shared.settings.history_hours) * 1800)) {
        let hours = ahead.as_secs() / 3600;
        tracing::warn!(
            hours,
            "partitions end in {hours} hours: see docs/runbooks/partition-maintenance-behind.md"
        );
    }
}

/// Sums up the counts of periods that have ended, and indexes hours of history that have closed. After the partitions, for
/// this can take minutes, and nothing waits for it.
async fn settle_history(client: &mut DedicatedClient) -> Result<(), Error> {
    let rolled_up = count_levels::roll_up(client).await;
    if let Ok(rolled_up) = &rolled_up
        && rolled_up.hours > 0
    {
        tracing::info!(hours = rolled_up.hours, days = rolled_up.days, "counts were rolled up");
    }
    let built = delivery_indexes::build(client).await?;
    if !built.is_empty() {
        tracing::info!(?built, "history was indexed");
    }
    let completed = missing_indexes::complete(client).await?;
    if !completed.is_empty() {
        tracing::info!(?completed, "indexes of this version were built for what was there before it");
    }
    rolled_up.map(drop)
}

/// Shards whose partition is gone, because `outcomes` was made anew with fewer: nobody owns them, so their retries stay
/// undelivered and their cursors keep every partition of retries from being dropped. Only people can decide about that.
async fn report_stranded(shared: &Shared) -> Result<(), Error> {
    let partitions = shared.partitions.load(Ordering::Relaxed);
    if partitions == 0 {
        return Ok(());
    }
    let stranded = retry::shards_from(&*shared.pool.get().await?, partitions).await?;
    if stranded.is_empty() {
        shared.outcomes_log.up(Reporter::Maintenance);
        return Ok(());
    }
    let reason = format!(
        "the topic has {partitions} partitions, but retry_shard has the shards {stranded:?}: their retries are not \
         delivered, and no partition of retries is dropped"
    );
    tracing::error!(partitions, ?stranded, "{reason}");
    shared.outcomes_log.down(Reporter::Maintenance, reason);
    Ok(())
}
