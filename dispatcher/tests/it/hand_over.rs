//! What is under way for long is handed to the retry scheduler, and what the scheduler produces twice is delivered once.

use crate::{
    receiver::{Answer, Receiver},
    world::{World, until},
};
use floodway_dispatcher::Settings;
use floodway_runtime::clock;
use floodway_schemas::{
    due::{Origin, RetryKey},
    topic::Topic,
};
use serde_json::json;

async fn holding_receiver() -> Receiver {
    Receiver::start(|arrival| if arrival.event_id() == "held" { Answer::Held } else { Answer::status(200) })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_takes_long_does_not_keep_its_partition_from_being_read_on() {
    const WINDOW: usize = 16;
    let mut world = World::create(1).await;
    let mut receiver = holding_receiver().await;
    let subscription = world.subscription(receiver.url(""));
    world.publish(&subscription);
    let running = world.run(Settings { tracker_window: WINDOW, ..World::settings() }).await;
    world.send("held", "a");
    assert_eq!(receiver.next().await.event_id(), "held");
    let began = clock::now();
    for number in 0..4 * WINDOW {
        world.send(&format!("{number}"), "a");
    }
    receiver.next_ids(4 * WINDOW).await;
    let mut outcomes = world.outcomes();
    let seen = outcomes.at_least(4 * WINDOW + 1).await;
    let held: Vec<_> = seen.iter().filter(|outcome| outcome["event_id"] == "held").cloned().collect();
    assert_eq!(held.len(), 1);
    assert_eq!((&held[0]["kind"], &held[0]["attempt"]), (&json!("in_doubt"), &json!(1)));
    assert_eq!(held[0]["event"]["id"], "held");
    // Not before the attempt must have ended.
    let lease = held[0]["not_before"].as_i64().unwrap() - began.0;
    assert!(lease > i64::from(subscription.timeout_ms), "{lease}");
    until("its record is settled", || {
        world.committed(Topic::Events, "dispatcher", 0).is_some_and(|(offset, _)| offset > 1)
    })
    .await;

    // Its own outcome follows, and says which lease it ends.
    receiver.open_gate();
    let seen = outcomes.at_least(4 * WINDOW + 2).await;
    let last = seen.last().unwrap();
    assert_eq!((&last["kind"], &last["event_id"]), (&json!("delivered"), &json!("held")));
    assert_eq!(last["cause"], held[0]["cause"]);
    assert!(receiver.rest().is_empty());
    world.end(&[&running]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_that_was_produced_twice_is_delivered_once_and_its_first_copy_survives_a_crash() {
    let mut world = World::create(1).await;
    let mut receiver = holding_receiver().await;
    let subscription = world.subscription(receiver.url(""));
    world.publish(&subscription);
    let first = world.run(World::settings()).await;
    let send = |world: &World, event: &str, id: i64| {
        let key = Origin::RetryKey(RetryKey { shard: 0, id });
        let event = world.event(event, "a", "{}");
        world.send_due(Topic::Due, subscription.id, key, 2, &event, clock::now());
    };
    for (event, id) in [("1", 1), ("held", 2), ("1", 1), ("held", 2), ("1", 3)] {
        send(&world, event, id);
    }
    assert_eq!(receiver.next_ids(3).await, ["1", "1", "held"]);
    until("the commit covers all but the held retry's first copy", || {
        world
            .committed(Topic::Due, "dispatcher-due", 0)
            .is_some_and(|(offset, metadata)| offset == 1 && metadata.ends_with(":BA"))
    })
    .await;
    first.crash();
    let second = world.run(World::settings()).await;
    assert_eq!(receiver.next().await.event_id(), "held");
    receiver.open_gate();
    send(&world, "held", 2);
    send(&world, "4", 4);
    assert_eq!(receiver.next().await.event_id(), "4");
    assert!(receiver.rest().is_empty());
    world.end(&[&first, &second]).await;
}
