use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use floodway_e2e::{
    pipeline::Pipeline,
    producer::{OnFailure, Producer},
    reconcile::SETTLE_DEADLINE,
    role::DEADLINE,
    stack::Stack,
};
use floodway_loadtest::receive::behaviour::Behaviour;
use floodway_schemas::event::Event;
use serde_json::{Value, json, value::RawValue};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// Events accepted before and after the kill.
const BETWEEN_KILLS: usize = 300;
/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

#[tokio::test(flavor = "multi_thread")]
async fn batches_are_tried_again_and_dead_lettered_whole_and_kill_9_of_the_dispatcher_loses_nothing()
-> Result<()> {
    let mut pipeline = Pipeline::start(Stack::shared()?).await?;
    let mut subscriptions = HashMap::new();
    for path in ["/ok", "/fail/2", "/status/500"] {
        subscriptions.insert(path, subscribe(&pipeline, path).await?);
    }
    let known = subscriptions.len() as f64;
    until(DEADLINE, "the dispatcher learns of the subscriptions", async || {
        Ok(pipeline.dispatcher.metric("floodway_dispatcher_subscriptions").await == Some(known))
    })
    .await?;

    let producer = Producer::start(&pipeline.events_url, &pipeline.key, 4, 4, OnFailure::SendAgain);
    producer.accepts_more(BETWEEN_KILLS).await?;
    pipeline.dispatcher.kill().await?;
    pipeline.dispatcher.start()?;
    pipeline.dispatcher.ready().await?;
    producer.accepts_more(BETWEEN_KILLS).await?;
    let sent = producer.stop().await;
    ensure!(sent.failed.is_empty(), "{} events were given up by the producer", sent.failed.len());

    let accepted = &sent.accepted;
    for path in ["/ok", "/fail/2"] {
        until(SETTLE_DEADLINE, path, async || {
            let delivered = delivered(&pipeline, path, accepted)?;
            Ok(accepted.keys().all(|id| delivered.contains_key(id)))
        })
        .await?;
        let totals = pipeline.receiver.ledger().totals(path);
        ensure!(totals.invalid_signatures == 0 && totals.changed_bodies == 0, "{path}: {totals:?}");
        let arrived: u64 = delivered(&pipeline, path, accepted)?.values().sum();
        println!(
            "batches on {path}: accepted {}, lost 0, repeats {}, batches {}",
            accepted.len(),
            arrived - accepted.len() as u64,
            totals.webhooks
        );
        ensure!(totals.webhooks < accepted.len() as u64 / 2, "events came alone: {totals:?}");
    }

    let dead = &subscriptions["/status/500"];
    let letters = format!("/v1/tenants/{}/dead-letters", pipeline.tenant);
    let mut letter = Value::Null;
    until(SETTLE_DEADLINE, "every event is in a dead letter", async || {
        let mut named = HashSet::new();
        let mut path = format!("{letters}?subscription={dead}&limit=500");
        loop {
            let page: Value = pipeline.admin.get(&path).await?;
            for item in page["items"].as_array().context("no items")? {
                match item["members"].as_array() {
                    None => drop(named.insert(item["event_id"].as_str().unwrap_or_default().to_owned())),
                    Some(members) => {
                        named.extend(members.iter().filter_map(Value::as_str).map(str::to_owned));
                        letter = item.clone();
                    }
                }
            }
            let Some(cursor) = page["next_cursor"].as_str() else { break };
            path = format!("{letters}?subscription={dead}&limit=500&cursor={cursor}");
        }
        Ok(accepted.keys().all(|id| named.contains(id)))
    })
    .await?;

    // History finds a batch by any of its events, and says which it was.
    let member = letter["members"][1].as_str().context("no batch is dead")?;
    let history = format!("/v1/tenants/{}/deliveries?subscription={dead}&event_id={member}", pipeline.tenant);
    let rows: Value = pipeline.admin.get(&history).await?;
    let of_letter: Vec<&Value> = rows["items"]
        .as_array()
        .context("no items")?
        .iter()
        .filter(|row| row["event_id"] == letter["event_id"])
        .collect();
    ensure!(of_letter.len() as u64 == Pipeline::attempts_of_the_dead(), "{rows}");
    ensure!(of_letter.iter().all(|row| row["members"] == letter["members"]), "{rows}");

    // Delivered again by hand, it is the same batch.
    pipeline.receiver.set_behaviour("/status/500", Behaviour::Ok);
    let id = letter["id"].as_str().context("no id")?;
    let _: Value = pipeline.admin.post(&format!("{letters}/{id}/replay"), &json!({})).await?;
    until(SETTLE_DEADLINE, "the replay arrives", async || {
        let entries = pipeline.receiver.ledger().entries("/status/500");
        let of_letter = entries.iter().find(|(webhook, _)| letter["event_id"] == webhook.as_str());
        Ok(of_letter.is_some_and(|(_, entry)| entry.successes == 1))
    })
    .await?;
    let totals = pipeline.receiver.ledger().totals("/status/500");
    ensure!(totals.invalid_signatures == 0 && totals.changed_bodies == 0, "{totals:?}");
    pipeline.finish().await.map(drop)
}

/// A subscription to batches of everything, whose signatures are checked; returns its id.
async fn subscribe(pipeline: &Pipeline, path: &str) -> Result<String> {
    let wanted = json!({
        "url": pipeline.receiver.url(path), "history": "all", "timeout_ms": 5_000,
        "retry": {"delays_seconds": [0.3, 0.6], "jitter": 0.1, "max_age_seconds": 3_600},
        "batch": {"max_events": 20, "max_age_ms": 300},
    });
    let subscriptions = format!("/v1/tenants/{}/subscriptions", pipeline.tenant);
    let created: Value = pipeline.admin.post(&subscriptions, &wanted).await?;
    pipeline.receiver.set_secrets(path, &[created["secret"].as_str().context("no secret")?])?;
    Ok(created["id"].as_str().context("no id")?.to_owned())
}

/// How often each event was in a batch that was answered with 2xx, by its id; its data must be what was sent.
fn delivered(
    pipeline: &Pipeline,
    path: &str,
    accepted: &BTreeMap<String, Bytes>,
) -> Result<HashMap<String, u64>> {
    let successes: HashMap<String, u64> = pipeline
        .receiver
        .ledger()
        .entries(path)
        .into_iter()
        .map(|(id, entry)| (id, entry.successes.into()))
        .collect();
    let mut seen = HashSet::new();
    let mut delivered = HashMap::new();
    for request in pipeline.receiver.captured().into_iter().filter(|request| request.path == path) {
        let webhook_id = request.headers["webhook-id"].to_str()?.to_owned();
        let times = successes.get(&webhook_id).copied().unwrap_or(0);
        if times == 0 || !seen.insert(webhook_id) {
            continue;
        }
        for event in serde_json::from_slice::<Vec<&RawValue>>(&request.body)? {
            let event = Event::decode(event.get().as_bytes())?;
            if let Some(data) = accepted.get(&*event.id) {
                ensure!(*event.body() == data[..], "the data of {} is not what was sent", event.id);
            }
            *delivered.entry(event.id.into_owned()).or_default() += times;
        }
    }
    Ok(delivered)
}

/// Waits until `condition` holds.
async fn until(
    patience: Duration,
    what: &str,
    mut condition: impl AsyncFnMut() -> Result<bool>,
) -> Result<()> {
    let end = Instant::now() + patience;
    while !condition().await? {
        ensure!(Instant::now() < end, "not in time: {what}");
        sleep(LOOK_EVERY).await;
    }
    Ok(())
}
