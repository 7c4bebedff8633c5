use anyhow::{Result, ensure};
use floodway_e2e::{
    pipeline::Pipeline,
    producer::send_events,
    reconcile::{all_dead, all_delivered, arrivals},
    stack::Stack,
    topic_reader::event_ids,
};
use std::{collections::BTreeSet, time::Duration};

/// Events before, and again after, the instant that the group is reset to.
const EVENTS: u64 = 100;

#[tokio::test(flavor = "multi_thread")]
async fn two_groups_see_every_event_and_a_reset_group_delivers_exactly_what_follows_again() -> Result<()> {
    let mut pipeline = Pipeline::start(Stack::shared()?).await?;
    pipeline.subscribe("/ok").await?;
    let dead = pipeline.subscribe("/status/500").await?;
    let first = send_events(&pipeline.events_url, &pipeline.key, "first", EVENTS).await?;
    let instant = after_this_millisecond().await;
    let second = send_events(&pipeline.events_url, &pipeline.key, "second", EVENTS).await?;
    let all: BTreeSet<String> = first.keys().chain(second.keys()).cloned().collect();

    for group in ["analytics", "audit"] {
        let (brokers, topic, group) =
            (pipeline.stack.brokers.clone(), pipeline.topic("events"), pipeline.topic(group));
        let ids = tokio::task::spawn_blocking(move || event_ids(&brokers, &topic, &group)).await??;
        assert_eq!(ids.len(), all.len(), "each event once");
        assert_eq!(ids.into_iter().collect::<BTreeSet<_>>(), all);
    }
    for accepted in [&first, &second] {
        all_delivered(&pipeline, "/ok", accepted).await?;
        all_dead(&pipeline, &dead.id, accepted).await?;
    }

    pipeline.dispatcher.terminate().await?;
    let (group, topic) = (pipeline.topic("dispatcher"), pipeline.topic("events"));
    let brokers = pipeline.stack.brokers.clone();
    pipeline
        .stack
        .kafka_tool(&[
            "kafka-consumer-groups",
            "--bootstrap-server",
            &brokers,
            "--group",
            &group,
            "--topic",
            &topic,
            "--reset-offsets",
            "--to-datetime",
            &instant,
            "--execute",
        ])
        .await?;
    pipeline.dispatcher.start()?;
    pipeline.dispatcher.ready().await?;

    let again = 2 * EVENTS + EVENTS;
    let wanted = |path: &'static str, per_event: u64| {
        let receiver = &pipeline.receiver;
        async move {
            let reached = receiver
                .wait_until(Duration::from_secs(60), |ledger| {
                    ledger.totals(path).arrivals >= again * per_event
                })
                .await;
            ensure!(reached, "{path}: {:?} after the reset", receiver.ledger().totals(path));
            Ok(())
        }
    };
    wanted("/ok", 1).await?;
    wanted("/status/500", Pipeline::attempts_of_the_dead()).await?;
    for (path, per_event) in [("/ok", 1), ("/status/500", Pipeline::attempts_of_the_dead())] {
        let arrived = arrivals(&pipeline, path);
        for id in first.keys() {
            assert_eq!(u64::from(arrived[id].arrivals), per_event, "{id} came before the reset instant");
        }
        for id in second.keys() {
            assert_eq!(u64::from(arrived[id].arrivals), 2 * per_event, "{id} came after the reset instant");
        }
    }
    pipeline.finish().await.map(drop)
}

/// The present instant as Kafka's tool takes it, with the clock moved on so that what follows is strictly later.
async fn after_this_millisecond() -> String {
    // Record times have milliseconds: two of them apart is enough for "before" and "after".
    tokio::time::sleep(Duration::from_millis(2)).await;
    let now = floodway_runtime::clock::now().to_rfc3339();
    tokio::time::sleep(Duration::from_millis(2)).await;
    now.trim_end_matches('Z').to_owned()
}
