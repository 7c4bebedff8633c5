use anyhow::{Result, ensure};
use floodway_e2e::{
    pipeline::Pipeline,
    producer::{OnFailure, Producer},
    reconcile::{all_dead, all_delivered, arrivals},
    stack::Stack,
};
use floodway_loadtest::receive::behaviour::Behaviour;
use std::time::Duration;
use tokio::time::{Instant, sleep};

#[tokio::test(flavor = "multi_thread")]
async fn kafka_stopped_and_started_under_load_loses_nothing_and_needs_no_help() -> Result<()> {
    let mut pipeline = Pipeline::start(Stack::own("e2e-kafka").await?).await?;
    pipeline.subscribe("/ok").await?;
    pipeline.subscribe("/fail/1").await?;
    // Slower than events come until Kafka is back: the dispatcher holds a backlog for it meanwhile.
    pipeline.subscribe("/ok/slow").await?;
    pipeline.receiver.set_behaviour("/ok/slow", Behaviour::Delay(Duration::from_secs(1)));
    let producer = Producer::start(&pipeline.events_url, &pipeline.key, 4, 4, OnFailure::SendAgain);
    producer.accepts_more(500).await?;
    let backlog = producer.accepted().saturating_sub(arrivals(&pipeline, "/ok/slow").len());
    ensure!(backlog > 0, "there is no backlog");
    pipeline.stack.stop("kafka").await?;
    wait_for_health(&pipeline, 503).await?;
    pipeline.stack.start("kafka").await?;
    pipeline.receiver.set_behaviour("/ok/slow", Behaviour::Ok);
    for role in pipeline.roles() {
        role.ready().await?;
    }
    producer.accepts_more(500).await?;
    let sent = producer.stop().await;

    let healthy = all_delivered(&pipeline, "/ok", &sent.accepted).await?;
    let flaky = all_delivered(&pipeline, "/fail/1", &sent.accepted).await?;
    let slow = all_delivered(&pipeline, "/ok/slow", &sent.accepted).await?;
    println!(
        "Kafka stopped and started with a backlog of {backlog}: accepted {}, lost 0, requests sent again {}, \
         repeats {} healthy, {} flaky, {} slow",
        sent.accepted.len(),
        sent.repeated_requests,
        healthy.repeats,
        flaky.repeats,
        slow.repeats
    );
    pipeline.finish().await?.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn while_postgresql_is_down_accepting_and_first_deliveries_go_on_and_retries_catch_up() -> Result<()> {
    let mut pipeline = Pipeline::start(Stack::own("e2e-postgres").await?).await?;
    pipeline.subscribe("/ok").await?;
    pipeline.subscribe("/fail/1").await?;
    let dead = pipeline.subscribe("/status/500").await?;
    let producer = Producer::start(&pipeline.events_url, &pipeline.key, 4, 4, OnFailure::Note);
    producer.accepts_more(300).await?;

    pipeline.stack.stop("postgres").await?;
    let (accepted, delivered) = (producer.accepted(), arrivals(&pipeline, "/ok").len());
    producer.accepts_more(500).await?;
    wait_for_arrivals(&pipeline, "/ok", delivered + 500).await?;
    ensure!(producer.accepted() >= accepted + 500, "accepting did not go on");
    // Ingest too starts without the database.
    pipeline.ingest.terminate().await?;
    pipeline.ingest.start()?;
    pipeline.ingest.ready().await?;
    producer.accepts_more(100).await?;

    pipeline.stack.start("postgres").await?;
    for role in pipeline.roles() {
        role.ready().await?;
    }
    producer.accepts_more(100).await?;
    let sent = producer.stop().await;
    let healthy = all_delivered(&pipeline, "/ok", &sent.accepted).await?;
    let flaky = all_delivered(&pipeline, "/fail/1", &sent.accepted).await?;
    let dead_repeats = all_dead(&pipeline, &dead.id, &sent.accepted).await?;
    println!(
        "PostgreSQL stopped and started: accepted {}, lost 0, repeats {} healthy, {} flaky, {dead_repeats} dead",
        sent.accepted.len(),
        healthy.repeats,
        flaky.repeats
    );
    pipeline.finish().await?.remove().await
}

async fn wait_for_health(pipeline: &Pipeline, status: u16) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(60);
    while pipeline.ingest.health("ready").await != Some(status) {
        ensure!(Instant::now() < end, "ingest's readiness did not become {status}");
        ensure!(pipeline.ingest.health("live").await == Some(200), "ingest is not live");
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

async fn wait_for_arrivals(pipeline: &Pipeline, path: &str, count: usize) -> Result<()> {
    let arrived = pipeline
        .receiver
        .wait_until(Duration::from_secs(60), |ledger| ledger.totals(path).webhooks >= count as u64)
        .await;
    ensure!(arrived, "first deliveries on {path} did not go on");
    Ok(())
}
