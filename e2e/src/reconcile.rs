//! Holding the producer's ledger against the receiver's.

use crate::pipeline::Pipeline;
use anyhow::{Result, ensure};
use bytes::Bytes;
use floodway_loadtest::receive::ledger::{Entry, body_hash};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// How long deliveries, retries and dead letters may take to settle after the last fault: four times the longest deferral.
pub const SETTLE_DEADLINE: Duration = Duration::from_secs(120);
/// How often a ledger is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// More dead letters than any test makes, repeats included.
const MOST_DEAD_LETTERS: usize = 100_000;

/// What a reconciliation found; loss is an error, repeats are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reconciled {
    /// Events that were acknowledged, and delivered.
    pub delivered: usize,
    /// Arrivals beyond the first that was answered with 2xx.
    pub repeats: u64,
}

/// What arrived on a path, by the producer's event id.
pub fn arrivals(pipeline: &Pipeline, path: &str) -> HashMap<String, Entry> {
    let entries = pipeline.receiver.ledger().entries(path);
    entries
        .into_iter()
        .filter_map(|(_, entry)| Some((entry.event_id.clone()?.into_string(), entry)))
        .collect()
}

/// Waits until every accepted event was answered with 2xx on `path`, and checks bodies and signatures.
///
/// # Errors
/// When an event is lost, a body differs from the `data` sent, or a signature does not verify.
pub async fn all_delivered(
    pipeline: &Pipeline,
    path: &str,
    accepted: &BTreeMap<String, Bytes>,
) -> Result<Reconciled> {
    let end = Instant::now() + SETTLE_DEADLINE;
    let arrived = loop {
        let arrived = arrivals(pipeline, path);
        let missing: Vec<&String> =
            accepted.keys().filter(|id| arrived.get(*id).is_none_or(|entry| entry.successes == 0)).collect();
        if missing.is_empty() {
            break arrived;
        }
        ensure!(
            Instant::now() < end,
            "{} of {} events are lost on {path}, such as {:?}",
            missing.len(),
            accepted.len(),
            &missing[..missing.len().min(3)]
        );
        sleep(LOOK_EVERY).await;
    };
    for (id, data) in accepted {
        ensure!(arrived[id].body_hash == body_hash(data), "the body of {id} is not the data that was sent");
    }
    let totals = pipeline.receiver.ledger().totals(path);
    ensure!(
        totals.invalid_signatures == 0,
        "{} signatures on {path} do not verify",
        totals.invalid_signatures
    );
    ensure!(
        totals.changed_bodies == 0,
        "{} bodies on {path} changed between attempts",
        totals.changed_bodies
    );
    let repeats = arrived.values().map(|entry| u64::from(entry.successes.saturating_sub(1))).sum();
    Ok(Reconciled { delivered: accepted.len(), repeats })
}

/// Waits until every accepted event is a dead letter of the subscription. Returns how many dead letters there are beyond one each.
///
/// # Errors
/// When an event is neither delivered nor dead.
pub async fn all_dead(
    pipeline: &Pipeline,
    subscription: &str,
    accepted: &BTreeMap<String, Bytes>,
) -> Result<u64> {
    let end = Instant::now() + SETTLE_DEADLINE;
    loop {
        let letters = pipeline.admin.dead_letters(&pipeline.tenant, subscription, MOST_DEAD_LETTERS).await?;
        let dead: HashSet<&str> = letters.iter().map(|letter| letter.event_id.as_str()).collect();
        let missing = accepted.keys().filter(|id| !dead.contains(id.as_str())).count();
        if missing == 0 {
            return Ok((letters.len() - dead.len()) as u64);
        }
        ensure!(Instant::now() < end, "{missing} of {} events did not become dead letters", accepted.len());
        sleep(LOOK_EVERY * 5).await;
    }
}
