use anyhow::{Context, Result, ensure};
use floodway_e2e::{
    pipeline::Pipeline,
    producer::{OnFailure, Producer, send_events},
    reconcile::{all_dead, all_delivered, arrivals},
    role::free_port,
    stack::{Stack, root},
};
use sha2::{Digest, Sha256};
use std::{collections::BTreeSet, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{ChildStdout, Command},
    time::timeout,
};

#[tokio::test(flavor = "multi_thread")]
async fn without_faults_every_event_is_delivered_once_retried_when_it_fails_and_dead_lettered_at_the_end()
-> Result<()> {
    let pipeline = Pipeline::start(Stack::shared()?).await?;
    pipeline.subscribe("/ok").await?;
    pipeline.subscribe("/fail/2").await?;
    let dead = pipeline.subscribe("/status/500").await?;

    let producer = Producer::start(&pipeline.events_url, &pipeline.key, 4, 4, OnFailure::Note);
    producer.accepts_more(1_000).await?;
    let sent = producer.stop().await;
    ensure!(sent.failed.is_empty() && sent.refused == 0, "{} events were not accepted", sent.failed.len());

    let healthy = all_delivered(&pipeline, "/ok", &sent.accepted).await?;
    let flaky = all_delivered(&pipeline, "/fail/2", &sent.accepted).await?;
    let dead_repeats = all_dead(&pipeline, &dead.id, &sent.accepted).await?;
    assert_eq!((healthy.repeats, flaky.repeats, dead_repeats), (0, 0, 0));
    for (id, entry) in arrivals(&pipeline, "/fail/2") {
        assert_eq!(entry.arrivals, 3, "{id} fails twice and succeeds once");
    }
    for (id, entry) in arrivals(&pipeline, "/status/500") {
        assert_eq!(u64::from(entry.arrivals), Pipeline::attempts_of_the_dead(), "{id}");
    }
    let counts = pipeline.admin.counts(&pipeline.tenant).await?;
    let of_dead = counts.iter().find(|counts| counts.subscription == dead.id).context("no counts")?;
    assert_eq!((of_dead.delivered, of_dead.dead), (0, sent.accepted.len() as u64));
    pipeline.finish().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reference_library_of_standard_webhooks_verifies_deliveries() -> Result<()> {
    let pipeline = Pipeline::start(Stack::shared()?).await?;
    let port = free_port()?.to_string();
    let subscription = pipeline.subscribe_url("verify", &format!("http://127.0.0.1:{port}/hook")).await?;
    let mut receiver = Command::new(root().join("e2e/verify/run"))
        .args([&subscription.secret, &port])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(receiver.stdout.take().context("no output")?).lines();
    ensure!(next_line(&mut lines).await? == format!("listening {port}"), "it does not listen");

    let sent = send_events(&pipeline.events_url, &pipeline.key, "verify", 50).await?;
    let mut expected: BTreeSet<String> = sent.values().map(|data| hex(&Sha256::digest(data))).collect();
    while !expected.is_empty() {
        let line = next_line(&mut lines).await?;
        let hash = line.strip_prefix("verified ").with_context(|| line.clone())?.split(' ').next();
        expected.remove(hash.context("no hash")?);
    }
    receiver.kill().await?;
    pipeline.finish().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_scheme_changes_deliveries_verify_with_the_secret_and_with_the_public_key() -> Result<()> {
    let pipeline = Pipeline::start(Stack::shared()?).await?;
    let port = free_port()?.to_string();
    let subscription = pipeline.subscribe_url("verify", &format!("http://127.0.0.1:{port}/hook")).await?;
    let path = format!("/v1/tenants/{}/subscriptions/{}/rotate-secret", pipeline.tenant, subscription.id);
    let rotated: serde_json::Value =
        pipeline.admin.post(&path, &serde_json::json!({"signature": "v1a"})).await?;
    let public_key = rotated["secret"].as_str().context("no key")?;
    ensure!(public_key.starts_with("whpk_"), "{public_key} is no public key");
    let mut receiver = Command::new(root().join("e2e/verify/run"))
        .args([&format!("{},{public_key}", subscription.secret), &port])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(receiver.stdout.take().context("no output")?).lines();
    ensure!(next_line(&mut lines).await? == format!("listening {port}"), "it does not listen");

    let sent = send_events(&pipeline.events_url, &pipeline.key, "verify", 20).await?;
    let mut expected: BTreeSet<String> = sent.values().map(|data| hex(&Sha256::digest(data))).collect();
    while !expected.is_empty() {
        let line = next_line(&mut lines).await?;
        // Made before the dispatcher had read of the change; it comes again.
        if line == "refused no v1a signature" {
            continue;
        }
        let hash = line.strip_prefix("verified ").with_context(|| line.clone())?.split(' ').next();
        expected.remove(hash.context("no hash")?);
    }
    receiver.kill().await?;
    pipeline.finish().await.map(drop)
}

async fn next_line(lines: &mut Lines<BufReader<ChildStdout>>) -> Result<String> {
    // Installing the library, the first time, takes a while.
    const DEADLINE: Duration = Duration::from_secs(120);
    timeout(DEADLINE, lines.next_line()).await??.context("the receiver ended")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
