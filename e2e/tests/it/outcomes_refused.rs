//! Kafka takes events and takes no outcomes.

use anyhow::{Result, ensure};
use floodway_e2e::{
    pipeline::Pipeline,
    producer::{OnFailure, Producer},
    progress::{Watch, now},
    reconcile::all_delivered,
    stack::Stack,
    takeovers::{Kill, repeats},
};
use floodway_schemas::topic::Topic;
use std::time::{Duration, Instant};

/// Events accepted before, during and after a refusal.
const SOME: usize = 200;
/// Longest wait for an endpoint to get what was accepted.
const PATIENCE: Duration = Duration::from_secs(90);
/// A limit below every batch: each outcome is refused. They are kept, and no delivery is made again for that.
const NO_RECORD_FITS: usize = 10;
/// Without a delivery for so long, nothing is left of what was taken before: endpoints answer at once.
const QUIET: Duration = Duration::from_secs(1);
/// What health says.
const REASON: &str = "Kafka does not take outcomes";

#[tokio::test(flavor = "multi_thread")]
async fn while_outcomes_are_refused_intake_stops_health_says_why_and_nothing_is_lost() -> Result<()> {
    let mut pipeline = Pipeline::start(Stack::shared()?).await?;
    let mut paths = Vec::new();
    for path in ["/ok", "/fail/1"] {
        paths.push((path, pipeline.subscribe(path).await?.id));
    }
    let watch = Watch::start(&pipeline)?;
    let producer = Producer::start(&pipeline.events_url, &pipeline.key, 4, 2, OnFailure::SendAgain);
    deliveries_go_on(&pipeline).await?;

    set_limit(&pipeline, NO_RECORD_FITS).await?;
    stops_taking(&mut pipeline, &producer).await?;
    set_limit(&pipeline, Topic::Outcomes.max_record_bytes()).await?;
    goes_on_by_itself(&mut pipeline).await?;

    // Once more, and the dispatcher dies meanwhile.
    set_limit(&pipeline, NO_RECORD_FITS).await?;
    stops_taking(&mut pipeline, &producer).await?;
    pipeline.dispatcher.kill().await?;
    let kills = [Kill { dispatcher: 0, at: now() }];
    // With such a topic it would not start: that is a setting to correct.
    set_limit(&pipeline, Topic::Outcomes.max_record_bytes()).await?;
    pipeline.dispatcher.start()?;
    goes_on_by_itself(&mut pipeline).await?;
    let sent = producer.stop().await;
    ensure!(sent.failed.is_empty(), "{} events were given up by the producer", sent.failed.len());

    for (path, _) in &paths {
        all_delivered(&pipeline, path, &sent.accepted).await?;
    }
    let looks = watch.stop().await?;
    let paths: Vec<(&str, &str)> = paths.iter().map(|(path, id)| (*path, id.as_str())).collect();
    let repeats = repeats(&pipeline, &paths, &[pipeline.dispatcher.log()], &kills, &looks).await?;
    println!("outcomes refused twice, killed once: accepted {}, lost 0, {repeats:?}", sent.accepted.len());
    ensure!(repeats.takeovers_after_kills > 0, "nothing was taken over");
    pipeline.finish().await.map(drop)
}

/// Waits until the dispatcher says that it takes nothing, and sees to it that it does not, although more is accepted.
async fn stops_taking(pipeline: &mut Pipeline, producer: &Producer) -> Result<()> {
    pipeline.dispatcher.reports(&[REASON, "\"ready\": false"]).await?;
    ensure!(pipeline.dispatcher.health("ready").await == Some(503), "it is ready");
    ensure!(pipeline.dispatcher.health("live").await == Some(200), "it is not live");
    let begun = || pipeline.receiver.ledger().totals("/ok").webhooks;
    // What was taken before is still delivered.
    let mut before = begun();
    let deadline = Instant::now() + PATIENCE;
    loop {
        tokio::time::sleep(QUIET).await;
        let now = begun();
        if now == before {
            break;
        }
        ensure!(Instant::now() < deadline, "deliveries go on without a place for their outcomes");
        before = now;
    }
    producer.accepts_more(SOME).await?;
    let after = begun();
    ensure!(after == before, "{} deliveries were begun without a place for their outcomes", after - before);
    Ok(())
}

async fn goes_on_by_itself(pipeline: &mut Pipeline) -> Result<()> {
    pipeline.dispatcher.ready().await?;
    deliveries_go_on(pipeline).await
}

async fn deliveries_go_on(pipeline: &Pipeline) -> Result<()> {
    let wanted = pipeline.receiver.ledger().totals("/ok").webhooks + SOME as u64;
    let reached =
        pipeline.receiver.wait_until(PATIENCE, |ledger| ledger.totals("/ok").webhooks >= wanted).await;
    ensure!(reached, "deliveries did not go on");
    Ok(())
}

/// Sets the size of the largest batch that Kafka takes on `outcomes`.
async fn set_limit(pipeline: &Pipeline, bytes: usize) -> Result<()> {
    let (topic, setting) = (pipeline.topic("outcomes"), format!("max.message.bytes={bytes}"));
    let alter = ["kafka-configs", "--bootstrap-server", &pipeline.stack.brokers, "--alter"];
    let what = ["--entity-type", "topics", "--entity-name", &topic, "--add-config", &setting];
    pipeline.stack.kafka_tool(&[&alter[..], &what[..]].concat()).await.map(drop)
}
