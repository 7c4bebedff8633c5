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
    process::{Child, ChildStdout, Command},
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
async fn the_reference_library_and_the_sdk_of_svix_verify_deliveries_also_while_a_secret_is_replaced()
-> Result<()> {
    let pipeline = Pipeline::start(Stack::shared()?).await?;
    let port = free_port()?;
    let subscription = pipeline.subscribe_url("verify", &format!("http://127.0.0.1:{port}/hook")).await?;
    let mut verifier = Verifier::start(&[&subscription.secret], port).await?;
    verifier.verifies(&pipeline, 50, 1).await?;
    verifier.stop().await?;

    // Whoever holds the old secret or the new one must be able to verify: there are two signatures.
    let secret = rotate(&pipeline, &subscription.id, "v1").await?;
    ensure!(secret.starts_with("whsec_") && secret != subscription.secret, "no new secret");
    let mut verifier = Verifier::start(&[&subscription.secret, &secret], port).await?;
    verifier.verifies(&pipeline, 20, 2).await?;
    verifier.stop().await?;
    pipeline.finish().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_scheme_changes_deliveries_verify_with_the_secret_and_with_the_public_key() -> Result<()> {
    let pipeline = Pipeline::start(Stack::shared()?).await?;
    let port = free_port()?;
    let subscription = pipeline.subscribe_url("verify", &format!("http://127.0.0.1:{port}/hook")).await?;
    let public_key = rotate(&pipeline, &subscription.id, "v1a").await?;
    ensure!(public_key.starts_with("whpk_"), "{public_key} is no public key");
    // The libraries know `v1` only: they must find theirs beside the signature that they do not know.
    let mut verifier = Verifier::start(&[&subscription.secret, &public_key], port).await?;
    verifier.verifies(&pipeline, 20, 2).await?;
    verifier.stop().await?;
    pipeline.finish().await.map(drop)
}

/// Replaces a subscription's secret; the old one goes on signing. Returns the new one, or its public key.
async fn rotate(pipeline: &Pipeline, subscription: &str, scheme: &str) -> Result<String> {
    let path = format!("/v1/tenants/{}/subscriptions/{subscription}/rotate-secret", pipeline.tenant);
    let rotated: serde_json::Value =
        pipeline.admin.post(&path, &serde_json::json!({"signature": scheme})).await?;
    rotated["secret"].as_str().map(str::to_owned).context("no secret")
}

/// A subscriber written in another language, with the libraries that subscribers use.
struct Verifier {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Verifier {
    /// Listens, and demands a signature by each of the keys.
    async fn start(keys: &[&str], port: u16) -> Result<Self> {
        let mut process = Command::new(root().join("e2e/verify/run"))
            .args([&keys.join(","), &port.to_string()])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut lines = BufReader::new(process.stdout.take().context("no output")?).lines();
        ensure!(next_line(&mut lines).await? == format!("listening {port}"), "it does not listen");
        Ok(Self { process, lines })
    }

    /// Sends events and waits until each has arrived with so many signatures and verifies.
    async fn verifies(&mut self, pipeline: &Pipeline, events: u64, signatures: usize) -> Result<()> {
        let sent = send_events(&pipeline.events_url, &pipeline.key, "verify", events).await?;
        let mut expected: BTreeSet<String> = sent.values().map(|data| hex(&Sha256::digest(data))).collect();
        while !expected.is_empty() {
            let line = next_line(&mut self.lines).await?;
            // Made before the dispatcher had read of a new secret: it comes again.
            if signatures > 1 && REFUSED_BEFORE_ROTATION.contains(&line.as_str()) {
                continue;
            }
            let mut words = line.strip_prefix("verified ").with_context(|| line.clone())?.split(' ');
            let (hash, count) = (words.next().context("no hash")?, words.next().context("no count")?);
            ensure!(count == signatures.to_string(), "{count} signatures, and not {signatures}");
            expected.remove(hash);
        }
        Ok(())
    }

    async fn stop(mut self) -> Result<()> {
        self.process.kill().await.map_err(Into::into)
    }
}

/// What is said of a delivery that the new secret has not signed.
const REFUSED_BEFORE_ROTATION: [&str; 2] =
    ["refused No matching signature found", "refused no v1a signature"];

async fn next_line(lines: &mut Lines<BufReader<ChildStdout>>) -> Result<String> {
    // Installing the library, the first time, takes a while.
    const DEADLINE: Duration = Duration::from_secs(120);
    timeout(DEADLINE, lines.next_line()).await??.context("the receiver ended")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
