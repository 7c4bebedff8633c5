//! What is handed to the scheduler without an attempt.

use crate::{receiver::Receiver, world::World};
use floodway_runtime::clock;
use floodway_schemas::{
    config::SubscriptionState,
    due::Origin,
    ids::{ReplayId, SubscriptionId},
    topic::Topic,
};
use serde_json::json;
use std::time::Duration;
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_subscription_defers_until_it_is_resumed() {
    let mut world = World::create(1).await;
    let mut receiver = Receiver::ok().await;
    let mut subscription = world.subscription(receiver.url(""));
    subscription.state = SubscriptionState::Paused;
    world.publish(&subscription);
    let running = world.run(World::settings()).await;
    world.send("1", "a");
    let mut outcomes = world.outcomes();
    let outcome = outcomes.of(subscription.id).await;
    assert_eq!((&outcome["kind"], &outcome["attempt"]), (&json!("deferred"), &json!(1)));
    let wait = outcome["not_before"].as_i64().unwrap() - outcome["at"].as_i64().unwrap();
    assert!((14_000..=18_000).contains(&wait), "{wait}");
    assert_eq!(outcome["event"]["id"], "1");
    assert!(receiver.rest().is_empty());

    subscription.state = SubscriptionState::Active;
    subscription.version = 2;
    world.publish(&subscription);
    world.flush();
    // The feed applies the change soon; until then events are deferred.
    let mut count = 1;
    loop {
        count += 1;
        world.send(&count.to_string(), "a");
        let latest = outcomes.at_least(count).await.last().unwrap().clone();
        if latest["kind"] == "delivered" {
            break;
        }
        assert!(count < 1_000, "{latest}");
    }
    assert_eq!(receiver.next().await.event_id(), count.to_string());
    world.end(&[&running]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_that_overtakes_its_subscription_waits_for_it() {
    let mut world = World::create(1).await;
    let running = world.run(World::settings()).await;
    let unknown = SubscriptionId(Uuid::now_v7());
    let event = world.event("e", "a", "{}");
    world.send_due(
        Topic::Replays,
        unknown,
        Origin::ReplayId(ReplayId(Uuid::now_v7())),
        1,
        &event,
        clock::now(),
    );
    let outcome = world.outcomes().of(unknown).await;
    assert_eq!(outcome["kind"], "deferred");
    let wait = outcome["not_before"].as_i64().unwrap() - outcome["at"].as_i64().unwrap();
    assert!(wait >= Duration::from_millis(900).as_millis() as i64, "{wait}");
    world.end(&[&running]).await;
}
