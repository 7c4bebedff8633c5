//! What becomes of deliveries whose endpoint is away, and of those that a rate has no room for.

use crate::{
    receiver::{Answer, Receiver},
    world::{World, until},
};
use floodway_runtime::clock;
use floodway_schemas::{UnixMillis, breaker_policy::BreakerPolicy, config::Subscription, topic::Topic};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// A receiver that answers 503 until it is told that it is back.
async fn away() -> (Receiver, Arc<AtomicBool>) {
    let is_back = Arc::new(AtomicBool::new(false));
    let known = Arc::clone(&is_back);
    let answer = move |_: &_| Answer::status(if known.load(Ordering::Relaxed) { 200 } else { 503 });
    (Receiver::start(answer).await, is_back)
}

/// Publishes a subscription with a fallback, and a breaker that opens after so many failures for so long.
fn subscribe(world: &World, main: &Receiver, fallback: &Receiver, failures: u32, pause_ms: u32) {
    let policy = BreakerPolicy {
        failures: Some(failures),
        pause_ms: Some(pause_ms),
        max_pause_ms: Some(pause_ms),
        ..BreakerPolicy::default()
    };
    world.publish(&Subscription {
        fallback_url: Some(Box::new(fallback.url("fallback"))),
        breaker: Some(policy.checked().unwrap()),
        ..world.subscription(main.url("main"))
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fallback_gets_what_its_endpoint_does_not_take_and_every_attempt_goes_to_one_of_them() {
    let mut world = World::create(1).await;
    let (mut main, is_back) = away().await;
    let mut fallback = Receiver::ok().await;
    subscribe(&world, &main, &fallback, 2, 200);
    let running = world.run(World::settings()).await;
    let mut outcomes = world.outcomes();
    let mut sent = 0;
    let mut kinds: Vec<(Value, Value)> = Vec::new();
    // One after the other, until the endpoint is back and has taken one.
    loop {
        world.send(&format!("{sent:04}"), "a");
        sent += 1;
        let outcome = outcomes.at_least(sent).await.last().unwrap();
        kinds.push((outcome["kind"].clone(), outcome["via"].clone()));
        match (outcome["kind"].as_str(), outcome["via"].as_str()) {
            (Some("delivered"), None) => break,
            (Some("delivered"), Some("fallback")) | (Some("retry"), None) => {}
            _ => panic!("{outcome}"),
        }
        // Two that open the breaker, and probes after that.
        let failed = kinds.iter().filter(|(kind, _)| kind == "retry").count();
        is_back.store(failed >= 4, Ordering::Relaxed);
        assert!(sent < 100_000);
    }
    assert_eq!(
        kinds[..3],
        [
            (json!("retry"), json!(null)),
            (json!("retry"), json!(null)),
            (json!("delivered"), json!("fallback"))
        ]
    );
    let count =
        |kind: &str, via: Value| kinds.iter().filter(|known| **known == (json!(kind), via.clone())).count();
    let (at_main, at_fallback) = (main.rest(), fallback.rest());
    assert_eq!(at_main.len(), count("retry", json!(null)) + 1);
    assert_eq!(at_fallback.len(), count("delivered", json!("fallback")));
    let ids: BTreeSet<&str> = at_main.iter().chain(&at_fallback).map(|arrival| arrival.event_id()).collect();
    assert_eq!(ids.len(), sent);
    assert!(
        at_fallback
            .iter()
            .all(|arrival| arrival.path == "/fallback"
                && arrival.header("webhook-signature").starts_with("v1,"))
    );
    world.end(&[&running]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_both_endpoints_are_away_deliveries_wait_and_what_is_too_old_is_a_dead_letter() {
    let mut world = World::create(1).await;
    let ((mut main, _), (mut fallback, _)) = (away().await, away().await);
    subscribe(&world, &main, &fallback, 1, 60_000);
    let running = world.run(World::settings()).await;
    let mut outcomes = world.outcomes();
    let two_hours_ago = UnixMillis(clock::now().0 - 7_200_000);
    let old = world.event_received_at("old", "a", "{}", two_hours_ago);
    let mut seen = Vec::new();
    for (number, id) in ["1", "2", "3", "4", "old"].into_iter().enumerate() {
        match id {
            "old" => world.produce(Topic::Events, None, id, old.as_bytes()),
            id => world.send(id, "a"),
        }
        let outcome = outcomes.at_least(number + 1).await.last().unwrap();
        seen.push((outcome["kind"].clone(), outcome["via"].clone(), outcome["reason"].clone()));
    }
    let of = |kind: &str, via: Value, reason: Value| (json!(kind), via, reason);
    let null = || json!(null);
    let expected = [
        of("retry", null(), null()),
        of("retry", json!("fallback"), null()),
        of("deferred", null(), null()),
        of("deferred", null(), null()),
        of("dead", null(), json!("expired")),
    ];
    assert_eq!(seen, expected);
    assert_eq!((main.rest().len(), fallback.rest().len()), (1, 1));
    world.end(&[&running]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_holds_for_all_dispatchers_together() {
    const RATE: u32 = 20;
    const DELIVERED: usize = 100;
    let mut world = World::create(4).await;
    let mut receiver = Receiver::ok().await;
    let mut subscription = world.subscription(receiver.url(""));
    subscription.requests_per_second = NonZeroU32::new(RATE);
    world.publish(&subscription);
    let dispatchers = [world.run(World::settings()).await, world.run(World::settings()).await];
    for (topic, group) in [
        (Topic::Events, "dispatcher"),
        (Topic::Due, "dispatcher-due"),
        (Topic::Replays, "dispatcher-replays"),
    ] {
        until("each of two members has half of the partitions", || world.assigned(topic, group) == [2, 2])
            .await;
    }
    let began = Instant::now();
    for event in 0..400 {
        world.send(&format!("{event:04}"), "a");
    }
    for _ in 0..DELIVERED {
        receiver.next().await;
    }
    // Each of the two may be a tenth of a second and one request ahead of its half.
    let allowed = |elapsed: Duration| f64::from(RATE) * (elapsed.as_secs_f64() + 0.1) + 2.0;
    let elapsed = began.elapsed();
    assert!(DELIVERED as f64 <= allowed(elapsed), "{DELIVERED} in {elapsed:?}");
    world.end(&[&dispatchers[0], &dispatchers[1]]).await;
}
