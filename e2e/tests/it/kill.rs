use anyhow::{Result, ensure};
use floodway_e2e::{
    pipeline::Pipeline,
    producer::{OnFailure, Producer},
    reconcile::{all_dead, all_delivered},
    stack::Stack,
};

/// Events accepted before and after each kill.
const BETWEEN_KILLS: usize = 300;

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_of_each_role_in_turn_under_load_loses_nothing() -> Result<()> {
    let mut pipeline = Pipeline::start(Stack::shared()?).await?;
    pipeline.subscribe("/ok").await?;
    pipeline.subscribe("/fail/1").await?;
    let dead = pipeline.subscribe("/status/500").await?;
    let producer = Producer::start(&pipeline.events_url, &pipeline.key, 4, 4, OnFailure::SendAgain);
    for name in ["ingest", "dispatcher", "retry-scheduler", "control-plane"] {
        producer.accepts_more(BETWEEN_KILLS).await?;
        let role = pipeline.role(name)?;
        role.kill().await?;
        role.start()?;
        role.ready().await?;
    }
    producer.accepts_more(BETWEEN_KILLS).await?;
    let sent = producer.stop().await;
    ensure!(sent.failed.is_empty(), "{} events were given up by the producer", sent.failed.len());

    let healthy = all_delivered(&pipeline, "/ok", &sent.accepted).await?;
    let flaky = all_delivered(&pipeline, "/fail/1", &sent.accepted).await?;
    let dead_repeats = all_dead(&pipeline, &dead.id, &sent.accepted).await?;
    println!(
        "kill -9 of each role: accepted {}, lost 0, requests sent again {}, repeats {} healthy, {} flaky, {dead_repeats} dead",
        sent.accepted.len(),
        sent.repeated_requests,
        healthy.repeats,
        flaky.repeats
    );
    pipeline.finish().await.map(drop)
}
