use anyhow::{Result, ensure};
use floodway_e2e::{
    pipeline::Pipeline,
    producer::{OnFailure, Producer},
    reconcile::{all_delivered, arrivals},
    stack::Stack,
    unreliable_network::{UnreliableNetwork, Way},
};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Events that the other endpoint gets while the network to the first is disturbed, and before and after that.
const SOME: usize = 200;
/// What a disturbance does at least.
const DISTURBED: u64 = 20;
/// Longest wait for what should happen within seconds.
const PATIENCE: Duration = Duration::from_secs(90);
/// Retries for longer than all disturbances last.
const RETRY_DELAYS: [f64; 10] = [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0];
/// The endpoint gets requests again soon after it can be reached again.
const SETTINGS: [(&str, &str); 2] =
    [("FLOODWAY_DISPATCHER__BREAKER_PAUSE", "1s"), ("FLOODWAY_DISPATCHER__BREAKER_MAX_PAUSE", "4s")];

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_resets_swallows_or_loses_answers_loses_nothing_and_repeats_only_what_was_not_answered()
-> Result<()> {
    let pipeline = Pipeline::start_with(Stack::shared()?, &SETTINGS).await?;
    let network = UnreliableNetwork::start(pipeline.receiver.address()).await?;
    pipeline.subscribe("/ok").await?;
    let cut = pipeline.subscribe_patiently("cut", &network.url("/ok/cut"), &RETRY_DELAYS).await?;
    pipeline.receiver.set_secrets("/ok/cut", &[&cut.secret])?;
    let producer = Producer::start(&pipeline.events_url, &pipeline.key, 4, 2, OnFailure::SendAgain);
    both_go_on(&pipeline).await?;

    network.set(Way::Resets);
    until("connections are reset", async || network.broken() >= DISTURBED).await?;
    other_goes_on(&pipeline).await?;
    network.set(Way::Open);
    both_go_on(&pipeline).await?;

    const TIMEOUTS: &str = "floodway_dispatcher_deliveries_total{kind=\"retry\",error=\"timeout\"}";
    network.set(Way::Swallows);
    until("attempts end without an answer", async || {
        pipeline.dispatcher.metric(TIMEOUTS).await.is_some_and(|count| count >= 1.0)
    })
    .await?;
    other_goes_on(&pipeline).await?;
    network.set(Way::Open);
    both_go_on(&pipeline).await?;

    let before = network.lost_answers();
    network.set(Way::LosesAnswers);
    until("answers are lost", async || network.lost_answers() >= before + DISTURBED).await?;
    other_goes_on(&pipeline).await?;
    network.set(Way::Open);
    both_go_on(&pipeline).await?;
    let sent = producer.stop().await;

    let other = all_delivered(&pipeline, "/ok", &sent.accepted).await?;
    let of_cut = all_delivered(&pipeline, "/ok/cut", &sent.accepted).await?;
    let (broken, lost) = (network.broken(), network.lost_answers());
    println!(
        "network cut, stalled, answers lost: accepted {}, lost 0, connections reset {broken}, answers lost {lost}, \
         repeats {} behind it (at most {lost}), {} elsewhere",
        sent.accepted.len(),
        of_cut.repeats,
        other.repeats
    );
    ensure!(of_cut.repeats >= DISTURBED, "answers were lost, and {} deliveries repeated", of_cut.repeats);
    ensure!(of_cut.repeats <= lost, "{} deliveries were repeated, {lost} answers lost", of_cut.repeats);
    let disturbed = arrivals(&pipeline, "/ok").values().filter(|entry| entry.arrivals > 1).count();
    ensure!(disturbed == 0, "{disturbed} events came twice where the network was whole");
    pipeline.finish().await.map(drop)
}

/// Both endpoints get further events.
async fn both_go_on(pipeline: &Pipeline) -> Result<()> {
    go_on(pipeline, &["/ok", "/ok/cut"]).await
}

/// The endpoint whose network is whole gets further events.
async fn other_goes_on(pipeline: &Pipeline) -> Result<()> {
    go_on(pipeline, &["/ok"]).await
}

async fn go_on(pipeline: &Pipeline, paths: &[&str]) -> Result<()> {
    let webhooks = |path: &&str| pipeline.receiver.ledger().totals(path).webhooks;
    let wanted: Vec<u64> = paths.iter().map(|path| webhooks(path) + SOME as u64).collect();
    let reached = pipeline
        .receiver
        .wait_until(PATIENCE, |ledger| {
            paths.iter().zip(&wanted).all(|(path, wanted)| ledger.totals(path).webhooks >= *wanted)
        })
        .await;
    ensure!(reached, "{paths:?} did not get further events");
    Ok(())
}

async fn until(what: &str, condition: impl AsyncFn() -> bool) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !condition().await {
        ensure!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
