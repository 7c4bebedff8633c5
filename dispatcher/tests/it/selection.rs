//! Who gets what.

use crate::{
    receiver::Receiver,
    world::{World, until},
};
use floodway_runtime::clock;
use floodway_schemas::{
    UnixMillis,
    config::SubscriptionState,
    due::{Origin, RetryKey},
    event::message_id,
    ids::{ReplayId, SubscriptionId, TenantId},
    topic::Topic,
};
use serde_json::json;
use std::time::Duration;
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_goes_to_the_subscriptions_that_want_it() {
    let mut world = World::create(2).await;
    let mut receiver = Receiver::ok().await;
    let publish = |path: &str, change: &dyn Fn(&mut floodway_schemas::config::Subscription)| {
        let mut subscription = world.subscription(receiver.url(path));
        change(&mut subscription);
        world.publish(&subscription);
    };
    publish("all", &|_| {});
    publish("orders", &|s| s.types = vec!["order.*".parse().unwrap()]);
    publish("exact", &|s| s.types = vec!["x".parse().unwrap(), "order.created".parse().unwrap()]);
    publish("disabled", &|s| s.state = SubscriptionState::Disabled);
    publish("future", &|s| s.active_from = clock::now().plus(Duration::from_secs(3600)));
    publish("foreign", &|s| s.tenant = TenantId(Uuid::now_v7()));
    let running = world.run(World::settings()).await;
    for event_type in ["order.created", "order.deleted", "user.created"] {
        world.send(event_type, event_type);
    }
    let mut arrived = Vec::new();
    for _ in 0..6 {
        let arrival = receiver.next().await;
        arrived.push(format!("{} {}", &arrival.path[1..], arrival.event_id()));
    }
    arrived.sort();
    let expected = [
        "all order.created",
        "all order.deleted",
        "all user.created",
        "exact order.created",
        "orders order.created",
        "orders order.deleted",
    ];
    assert_eq!(arrived, expected);
    world.outcomes().at_least(6).await;
    assert!(receiver.rest().is_empty());
    world.end(&[&running]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_lets_pass_what_it_says_and_what_it_cannot_decide_about_is_a_dead_letter() {
    let mut world = World::create(1).await;
    let mut receiver = Receiver::ok().await;
    let mut large = world.subscription(receiver.url("large"));
    large.filter =
        Some("event.type == 'order' && data.total > 100 && data.lines.exists(l, l.sku == 'a')".into());
    let mut broken = world.subscription(receiver.url("broken"));
    // Nothing that the control plane lets through.
    broken.filter = Some("data.total >".into());
    broken.types = vec!["other".parse().unwrap()];
    for subscription in [&large, &broken] {
        world.publish(subscription);
    }
    let running = world.run(World::settings()).await;
    let send = |id: &str, event_type: &str, data: &str| {
        world.produce(Topic::Events, None, id, world.event(id, event_type, data).as_bytes());
    };
    send("small", "order", r#"{"total":100,"lines":[{"sku":"a"}]}"#);
    send("without", "order", r#"{"lines":[{"sku":"a"}]}"#);
    send("text", "order", r#"{"total":"s3cr3t","lines":[{"sku":"a"}]}"#);
    send("large", "order", r#"{"total":100.5,"lines":[{"sku":"b"},{"sku":"a"}]}"#);
    send("unreadable", "other", "{}");
    assert_eq!(receiver.next().await.event_id(), "large");
    let mut outcomes = world.outcomes();
    let seen = outcomes.at_least(3).await;
    let of = |id: &str| seen.iter().find(|outcome| outcome["event_id"] == id).unwrap();
    assert_eq!(of("large")["kind"], "delivered");
    for id in ["text", "unreadable"] {
        let outcome = of(id);
        assert_eq!(
            (&outcome["kind"], &outcome["reason"]),
            (&json!("dead"), &json!("filter_failed")),
            "{outcome}"
        );
        let detail = outcome["detail"].as_str().unwrap();
        assert!(detail.contains("the filter failed") && !detail.contains("s3cr3t"), "{detail}");
    }
    until("every event is settled", || {
        world.committed(Topic::Events, "dispatcher", 0).is_some_and(|(offset, _)| offset == 5)
    })
    .await;
    assert!(receiver.rest().is_empty());
    world.end(&[&running]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_that_takes_long_is_asked_later_and_holds_up_nobody() {
    const EVENTS: usize = 400;
    let mut world = World::create(1).await;
    let (mut receiver, mut filtered) = (Receiver::ok().await, Receiver::ok().await);
    world.publish(&world.subscription(receiver.url("")));
    let mut slow = world.subscription(filtered.url(""));
    slow.filter = Some("!data.l.all(x, data.l.all(y, x == y)) || data.go".into());
    world.publish(&slow);
    let running = world.run(World::settings()).await;
    let data = |go: bool| format!(r#"{{"go":{go},"l":{}}}"#, json!(vec![1; 70]));
    for event in 0..EVENTS {
        let id = format!("{event:04}");
        world.produce(Topic::Events, None, &id, world.event(&id, "a", &data(false)).as_bytes());
    }
    // All of them, whatever the other subscription's filter takes.
    receiver.next_ids(EVENTS).await;
    let outcome = world.outcomes().of(slow.id).await;
    assert_eq!((&outcome["kind"], &outcome["attempt"]), (&json!("deferred"), &json!(0)), "{outcome}");
    assert!(outcome["detail"].as_str().unwrap().contains("filters"), "{outcome}");

    // When its turn comes it is filtered.
    let retry = |id| Origin::RetryKey(RetryKey { shard: 3, id });
    for (id, go) in [(1, false), (2, true)] {
        let event = world.event(&format!("later-{go}"), "a", &data(go));
        world.send_due(Topic::Due, slow.id, retry(id), 0, &event, clock::now());
    }
    assert_eq!(filtered.next().await.event_id(), "later-true");
    let (mut outcomes, mut read) = (world.outcomes(), 0);
    let attempt = loop {
        read += 1;
        let newest = outcomes.at_least(read).await.last().unwrap();
        if newest["cause"] == "due:3-2" {
            break (newest["kind"].clone(), newest["attempt"].clone());
        }
    };
    assert_eq!(attempt, (json!("delivered"), json!(1)));
    until("what does not pass is settled, too", || {
        world.committed(Topic::Due, "dispatcher-due", 0).is_some_and(|(offset, _)| offset == 2)
    })
    .await;
    assert!(filtered.rest().is_empty());
    world.end(&[&running]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_does_not_get_events_recorded_before_it_was_active() {
    let mut world = World::create(1).await;
    let mut receiver = Receiver::ok().await;
    world.send("before", "a");
    world.flush();
    let mut subscription = world.subscription(receiver.url(""));
    // The broker's clock is this machine's, and record times are whole milliseconds.
    subscription.active_from = clock::now().plus(Duration::from_millis(1));
    world.publish(&subscription);
    until("the subscription is active", || clock::now() >= subscription.active_from).await;
    world.send("after", "a");
    let running = world.run(World::settings()).await;
    assert_eq!(receiver.next().await.event_id(), "after");
    assert!(receiver.rest().is_empty());
    world.end(&[&running]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_goes_to_its_subscription_only_and_names_its_cause() {
    let mut world = World::create(1).await;
    let mut receiver = Receiver::ok().await;
    let wanted = world.subscription(receiver.url("wanted"));
    let mut disabled = world.subscription(receiver.url("disabled"));
    disabled.state = SubscriptionState::Disabled;
    let unknown = SubscriptionId(Uuid::now_v7());
    for subscription in [&wanted, &disabled, &world.subscription(receiver.url("other"))] {
        world.publish(subscription);
    }
    let running = world.run(World::settings()).await;
    let event = world.event("e", "a", "{}");
    let retry = |id| Origin::RetryKey(RetryKey { shard: 3, id });
    let replay = ReplayId(Uuid::now_v7());
    let minute_ago = UnixMillis(clock::now().0 - 60_000);
    world.send_due(Topic::Due, wanted.id, retry(1), 2, &event, minute_ago);
    world.send_due(Topic::Due, disabled.id, retry(2), 2, &event, minute_ago);
    world.send_due(Topic::Due, unknown, retry(3), 2, &event, minute_ago);
    let mut outcomes = world.outcomes();
    let outcome = outcomes.of(wanted.id).await;
    assert_eq!(
        (&outcome["kind"], &outcome["cause"], &outcome["attempt"]),
        (&json!("delivered"), &json!("due:3-1"), &json!(2))
    );
    let outcome = outcomes.of(disabled.id).await;
    assert_eq!((&outcome["kind"], &outcome["reason"]), (&json!("dead"), &json!("subscription_disabled")));
    assert_eq!(outcomes.of(unknown).await["kind"], "dropped");
    assert_eq!(receiver.next().await.path, "/wanted");

    world.send_due(Topic::Replays, wanted.id, Origin::ReplayId(replay), 1, &event, clock::now());
    assert_eq!(receiver.next().await.path, "/wanted");
    let outcome = outcomes.at_least(4).await[3].clone();
    let message = message_id(world.tenant, "/test", "e");
    assert_eq!(outcome["cause"], format!("replay:{replay}:{message}"));
    assert!(receiver.rest().is_empty());
    world.end(&[&running]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_other_formats_are_skipped() {
    let mut world = World::create(1).await;
    let mut receiver = Receiver::ok().await;
    world.publish(&world.subscription(receiver.url("")));
    let running = world.run(World::settings()).await;
    for payload in ["", "not json", "[]", r#"{"specversion":"1.0","type":"a"}"#] {
        world.produce(Topic::Events, None, "k", payload.as_bytes());
        world.produce(Topic::Due, None, "k", payload.as_bytes());
    }
    world.send("good", "a");
    assert_eq!(receiver.next().await.event_id(), "good");
    until("everything is settled", || {
        world.committed(Topic::Events, "dispatcher", 0).is_some_and(|(offset, _)| offset == 5)
            && world.committed(Topic::Due, "dispatcher-due", 0).is_some_and(|(offset, _)| offset == 4)
    })
    .await;
    world.end(&[&running]).await;
}
