use anyhow::{Result, ensure};
use floodway_e2e::{
    pipeline::Pipeline,
    producer::send_events,
    reconcile::{all_delivered, arrivals},
    stack::Stack,
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// Longest wait for anything. Far below the deferral of what is parked.
const DEADLINE: Duration = Duration::from_secs(90);

#[tokio::test(flavor = "multi_thread")]
async fn what_waited_while_paused_arrives_once_after_the_resumption_and_what_was_cancelled_never_does()
-> Result<()> {
    let settings = [("FLOODWAY_DISPATCHER__PAUSED_RECHECK", "20m")];
    let pipeline = Pipeline::start_with(Stack::shared()?, &settings).await?;
    let subscription = pipeline.subscribe("/ok").await?;
    let path = format!("/v1/tenants/{}/subscriptions/{}", pipeline.tenant, subscription.id);
    post(&pipeline, &format!("{path}/pause")).await?;
    // Events before the dispatcher has heard of it are delivered at once; those after it are parked.
    sleep(Duration::from_millis(500)).await;
    let sent = send_events(&pipeline.events_url, &pipeline.key, "kept", 200).await?;
    pending_becomes(&pipeline, &path, 200).await?;
    pipeline.operate(&["retries", "stats"]).await?;
    pipeline.operate(&["retries", "due", "--tenant", &pipeline.tenant, "--json"]).await?;
    post(&pipeline, &format!("{path}/resume")).await?;
    let kept = all_delivered(&pipeline, "/ok", &sent).await?;
    assert_eq!((kept.delivered, kept.repeats), (200, 0));
    pending_becomes(&pipeline, &path, 0).await?;

    post(&pipeline, &format!("{path}/pause")).await?;
    sleep(Duration::from_millis(500)).await;
    let cancelled = send_events(&pipeline.events_url, &pipeline.key, "cancelled", 20).await?;
    pending_becomes(&pipeline, &path, 20).await?;
    let all = ["--tenant", &pipeline.tenant, "--subscription", &subscription.id];
    pipeline.operate(&[&["retries", "cancel", "--dry-run"], &all[..]].concat()).await?;
    ensure!(pipeline.operate(&[&["retries", "cancel"], &all[..]].concat()).await.is_err(), "it does not ask");
    pipeline.operate(&[&["retries", "cancel", "--yes"], &all[..]].concat()).await?;
    pending_becomes(&pipeline, &path, 0).await?;
    // Who asks for all that is pending learns at once what of it was cancelled.
    post(&pipeline, &format!("{path}/resume")).await?;
    let counts = format!("/v1/tenants/{}/counts", pipeline.tenant);
    let end = Instant::now() + DEADLINE;
    loop {
        let found: Value = pipeline.admin.get(&counts).await?;
        if found["items"][0]["cancelled"] == 20 {
            break;
        }
        ensure!(Instant::now() < end, "not told as cancelled: {found}");
        sleep(Duration::from_millis(200)).await;
    }
    let arrived = arrivals(&pipeline, "/ok");
    ensure!(cancelled.keys().all(|id| !arrived.contains_key(id)), "a cancelled delivery arrived");
    pipeline.finish().await.map(drop)
}

async fn post(pipeline: &Pipeline, path: &str) -> Result<()> {
    pipeline.admin.post::<Value>(path, &json!({})).await?;
    Ok(())
}

/// Waits until so many retries of a subscription are pending.
async fn pending_becomes(pipeline: &Pipeline, path: &str, wanted: usize) -> Result<()> {
    let end = Instant::now() + DEADLINE;
    loop {
        let found: Value = pipeline.admin.get(&format!("{path}/retries?limit=500")).await?;
        let is_all = found["next_cursor"].is_null();
        if is_all && found["items"].as_array().is_some_and(|items| items.len() == wanted) {
            return Ok(());
        }
        ensure!(Instant::now() < end, "{wanted} are not pending: {found}");
        sleep(Duration::from_millis(100)).await;
    }
}
