//! One endpoint never delays another.

use crate::{
    receiver::{Answer, Receiver},
    world::{DEADLINE, World, until},
};
use floodway_dispatcher::Settings;
use floodway_schemas::topic::Topic;
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_that_hang_delay_no_other_on_the_same_partition() {
    const HUNG: usize = 3;
    const EVENTS: usize = 200;
    let mut world = World::create(1).await;
    let hung = Receiver::start(|_| Answer::Hang).await;
    let mut healthy = Receiver::ok().await;
    let mut hanging = Vec::new();
    for _ in 0..HUNG {
        let mut subscription = world.subscription(hung.url(""));
        subscription.timeout_ms = 60_000;
        world.publish(&subscription);
        hanging.push(subscription.id.to_string());
    }
    world.publish(&world.subscription(healthy.url("")));
    // A small budget: hung lanes that could use it up would do so here.
    let settings = Settings {
        lane_in_flight: 4,
        lane_queue: 8,
        max_deliveries: 64,
        drain_timeout: std::time::Duration::from_millis(100),
        ..World::settings()
    };
    let running = world.run(settings).await;
    for event in 0..EVENTS {
        world.send(&format!("{event:04}"), "a");
    }
    // Some of the healthy endpoint's deliveries may be deferred while the burst lasts; none may wait for a hung one.
    let mut outcomes = world.outcomes();
    let mut count = 0;
    loop {
        count += 1;
        let seen = outcomes.at_least(count).await;
        let healthy =
            seen.iter().filter(|o| !hanging.iter().any(|id| o["subscription"] == id.as_str())).count();
        if healthy == EVENTS {
            break;
        }
    }
    let kinds = |kind: &str, hung: bool| {
        let is_hung =
            |o: &&serde_json::Value| hanging.iter().any(|id| o["subscription"] == id.as_str()) == hung;
        outcomes.seen.iter().filter(|o| o["kind"] == kind).filter(is_hung).count()
    };
    assert_eq!(kinds("delivered", true), 0);
    assert!(kinds("deferred", true) > 0);
    assert_eq!(kinds("delivered", false) + kinds("deferred", false), EVENTS);
    assert!(kinds("delivered", false) > 0);
    healthy.next().await;
    world.end(&[&running]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_hangs_does_not_stop_the_intake_of_its_partition() {
    // Three windows of records, each of which may stay unsettled for four seconds.
    const EVENTS: usize = 3_000;
    let mut world = World::create(1).await;
    let hung = Receiver::start(|_| Answer::Hang).await;
    let mut hanging = world.subscription(hung.url(""));
    hanging.timeout_ms = 3_000;
    world.publish(&hanging);
    let healthy = Receiver::ok().await;
    world.publish(&world.subscription(healthy.url("")));
    let settings = Settings {
        lane_in_flight: 4,
        lane_wait: Duration::from_secs(1),
        tracker_window: EVENTS / 3,
        drain_timeout: Duration::from_millis(100),
        ..World::settings()
    };
    let running = world.run(settings).await;
    for event in 0..EVENTS {
        world.send(&format!("{event:04}"), "a");
    }
    let hanging = hanging.id.to_string();
    let mut outcomes = world.outcomes();
    let mut settled = BTreeSet::new();
    let mut count = 0;
    // Outcomes of the endpoint that hangs trickle in, so the wait for each of them does not bound the test.
    let deadline = Instant::now() + DEADLINE;
    while settled.len() < EVENTS {
        assert!(Instant::now() < deadline, "{} of {EVENTS} events within {DEADLINE:?}", settled.len());
        count += 1;
        let outcome = &outcomes.at_least(count).await[count - 1];
        if outcome["subscription"] != hanging.as_str() {
            settled.insert(outcome["event_id"].as_str().unwrap().to_owned());
        }
    }
    world.end(&[&running]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_for_many_subscriptions_takes_no_more_memory_than_there_is_and_is_made_up_for_when_it_is_cut_off()
 {
    const SUBSCRIPTIONS: usize = 40;
    /// Of which a fifth is kept for retries and replays.
    const BUDGET: usize = 20;
    const FOR_EVENTS: usize = 16;
    let mut world = World::create(1).await;
    let mut receiver = Receiver::start(|_| Answer::Held).await;
    for number in 0..SUBSCRIPTIONS {
        world.publish(&world.subscription(receiver.url(&number.to_string())));
    }
    let small =
        Settings { max_deliveries: BUDGET, drain_timeout: Duration::from_millis(100), ..World::settings() };
    let first = world.run(small).await;
    world.send("1", "a");
    for _ in 0..FOR_EVENTS {
        receiver.next().await;
    }
    // Nothing more comes for many times what a delivery takes.
    let end = Instant::now() + Duration::from_millis(500);
    until("many deliveries' time passes", || {
        assert!(receiver.rest().is_empty());
        Instant::now() > end
    })
    .await;
    first.context.shutdown.cancel();
    world.ended().await.unwrap();
    assert_eq!(world.committed(Topic::Events, "dispatcher", 0).unwrap().0, 0);

    receiver.open_gate();
    let second = world.run(Settings { max_deliveries: BUDGET, ..World::settings() }).await;
    let mut reached = BTreeSet::new();
    while reached.len() < SUBSCRIPTIONS {
        reached.insert(receiver.next().await.path);
    }
    world.end(&[&second]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_for_one_endpoint_that_answers_flows_without_deferrals() {
    // Many times what its lane and its partition hold.
    const EVENTS: usize = 6_000;
    let mut world = World::create(1).await;
    let receiver = Receiver::ok().await;
    let subscription = world.subscription(receiver.url(""));
    world.publish(&subscription);
    for event in 0..EVENTS {
        world.send(&format!("{event:04}"), "a");
    }
    world.flush();
    let settings = Settings { lane_queue: 100, ..World::settings() };
    let running = world.run(settings).await;
    let mut outcomes = world.outcomes();
    let mut count = 0;
    let deadline = Instant::now() + DEADLINE;
    while count < EVENTS {
        assert!(Instant::now() < deadline, "{count} of {EVENTS} events within {DEADLINE:?}");
        count += 1;
        let outcome = &outcomes.at_least(count).await[count - 1];
        assert_eq!(outcome["kind"], "delivered");
    }
    world.end(&[&running]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_never_answers_gets_fewer_and_fewer_requests_and_then_none() {
    let mut world = World::create(1).await;
    let mut hung = Receiver::start(|_| Answer::Hang).await;
    let mut subscription = world.subscription(hung.url(""));
    subscription.timeout_ms = 200;
    world.publish(&subscription);
    let settings = Settings {
        breaker_failures: 10,
        breaker_pause: Duration::from_secs(60),
        drain_timeout: Duration::from_millis(100),
        ..World::settings()
    };
    let running = world.run(settings).await;
    let mut outcomes = world.outcomes();
    let mut sent = 0;
    // Each failure shrinks the bound; after ten in a row nothing is sent.
    loop {
        world.send(&format!("{sent:04}"), "a");
        sent += 1;
        let outcome = &outcomes.at_least(sent).await[sent - 1];
        let wait = outcome["not_before"].as_i64().unwrap() - outcome["at"].as_i64().unwrap();
        if outcome["kind"] == "deferred" && wait > 50_000 {
            break;
        }
        assert!(sent < 100, "{outcome}");
    }
    assert_eq!(hung.rest().len(), 10);
    world.end(&[&running]).await;
}
