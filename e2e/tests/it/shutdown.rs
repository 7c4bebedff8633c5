use anyhow::{Result, ensure};
use floodway_e2e::{
    pipeline::Pipeline,
    producer::{OnFailure, Producer},
    reconcile::all_delivered,
    stack::Stack,
    topic_reader::event_ids,
};
use std::collections::HashSet;

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_loses_nothing_and_fails_no_request_that_was_taken() -> Result<()> {
    let mut pipeline = Pipeline::start(Stack::shared()?).await?;
    pipeline.subscribe("/ok").await?;
    pipeline.subscribe("/fail/1").await?;
    let producer = Producer::start(&pipeline.events_url, &pipeline.key, 8, 4, OnFailure::Note);
    for name in ["dispatcher", "retry-scheduler", "control-plane", "ingest"] {
        producer.accepts_more(300).await?;
        let role = pipeline.role(name)?;
        let status = role.terminate().await?;
        ensure!(status.success(), "{name} ended with {status}:\n{}", role.log_tail());
        role.start()?;
        role.ready().await?;
    }
    producer.accepts_more(300).await?;
    let sent = producer.stop().await;

    let healthy = all_delivered(&pipeline, "/ok", &sent.accepted).await?;
    let flaky = all_delivered(&pipeline, "/fail/1", &sent.accepted).await?;
    let (brokers, topic, group) =
        (pipeline.stack.brokers.clone(), pipeline.topic("events"), pipeline.topic("reader"));
    let on_topic = tokio::task::spawn_blocking(move || event_ids(&brokers, &topic, &group)).await??;
    let on_topic: HashSet<String> = on_topic.into_iter().collect();
    let taken: Vec<&String> = sent.failed.keys().filter(|id| on_topic.contains(*id)).collect();
    ensure!(
        taken.is_empty(),
        "{} events were taken and their requests failed, such as {:?}",
        taken.len(),
        taken[0]
    );
    // A clean end leaves nothing to deliver again.
    ensure!((healthy.repeats, flaky.repeats) == (0, 0), "repeated: {healthy:?}, {flaky:?}");
    println!(
        "SIGTERM of each role: accepted {}, refused or failed {}, lost 0, repeats 0",
        sent.accepted.len(),
        sent.failed.len()
    );
    pipeline.finish().await.map(drop)
}
