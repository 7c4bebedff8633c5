//! First attempts, retries and replays: none of them keeps the others waiting.

use crate::{
    receiver::{Answer, Receiver},
    world::World,
};
use floodway_dispatcher::Settings;
use floodway_runtime::clock;
use floodway_schemas::{
    due::{Origin, RetryKey},
    ids::{ReplayId, SubscriptionId},
    topic::Topic,
};
use std::time::Duration;
use uuid::Uuid;

/// Deliveries that the dispatcher may hold.
const BUDGET: usize = 40;
/// Far more than that.
const BACKLOG: usize = 4 * BUDGET;

/// Who asked for the delivery number `number` of a topic.
fn origin(topic: Topic, number: usize) -> Origin {
    match topic {
        Topic::Due => Origin::RetryKey(RetryKey { shard: 0, id: i64::try_from(number).unwrap() }),
        _ => Origin::ReplayId(ReplayId(Uuid::now_v7())),
    }
}

/// Puts one delivery to a subscription on a topic.
fn ask(world: &World, topic: Topic, number: usize, subscription: SubscriptionId) {
    match topic {
        Topic::Events => world.send(&format!("{}-{number}", subscription.0), "held"),
        _ => {
            let event = world.event(&number.to_string(), "a", "{}");
            world.send_due(topic, subscription, origin(topic, number), 1, &event, clock::now());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_on_one_topic_leaves_room_for_deliveries_of_the_other_two() {
    for crowded in [Topic::Events, Topic::Due, Topic::Replays] {
        let mut world = World::create(1).await;
        let mut held = Receiver::start(|_| Answer::Held).await;
        let mut waits = world.subscription(held.url(""));
        waits.types = vec!["held".parse().unwrap()];
        world.publish(&waits);
        let mut well = Receiver::ok().await;
        let mut fresh = world.subscription(well.url(""));
        fresh.types = vec!["fresh".parse().unwrap()];
        world.publish(&fresh);
        let settings = Settings {
            max_deliveries: BUDGET,
            drain_timeout: Duration::from_millis(100),
            ..World::settings()
        };
        let running = world.run(settings).await;
        (0..BACKLOG).for_each(|number| ask(&world, crowded, number, waits.id));
        // The budget is used as far as the topic may.
        held.next().await;
        for other in [Topic::Events, Topic::Due, Topic::Replays].into_iter().filter(|&topic| topic != crowded)
        {
            match other {
                Topic::Events => world.send("fresh", "fresh"),
                _ => ask(&world, other, BACKLOG, fresh.id),
            }
            // Nothing of what came before has ended.
            well.next().await;
        }
        held.open_gate();
        world.end(&[&running]).await;
    }
}
