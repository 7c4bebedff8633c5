//! Many events in one request.

use crate::{
    attributes::signature,
    receiver::{Answer, Arrival, Receiver},
    world::{SECRET, World, until},
};
use floodway_runtime::clock;
use floodway_schemas::{
    UnixMillis,
    batch::{self, BatchPolicy},
    config::{ConfigKey, Format, History, Subscription, SubscriptionState},
    due::{Origin, RetryKey},
    event::{self, Event},
    ids::{ReplayId, SubscriptionId},
    retry_policy::RetryPolicy,
    topic::Topic,
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};
use url::Url;
use uuid::Uuid;

/// Longer than any test waits for a batch that is to close for another reason.
const LONG_MS: u32 = 30_000;

/// A subscription to batches that close as said.
fn batching(world: &World, url: Url, max_events: u32, max_bytes: u32, max_age_ms: u32) -> Subscription {
    let policy = BatchPolicy::new(max_events, max_bytes, max_age_ms).unwrap();
    Subscription { format: Format::Cloudevents, batch: Some(policy), ..world.subscription(url) }
}

/// The ids of the events in a request, whose signature and `webhook-id` must be those of its whole body.
fn checked_ids(world: &World, arrival: &Arrival) -> Vec<String> {
    assert_eq!(arrival.header("content-type"), batch::CLOUDEVENTS_BATCH_JSON);
    assert!(arrival.headers.keys().all(|name| !name.as_str().starts_with("ce-")), "{arrival:?}");
    let (id, timestamp) = (arrival.header("webhook-id"), arrival.header("webhook-timestamp"));
    assert_eq!(arrival.header("webhook-signature"), signature(SECRET, id, timestamp, &arrival.body));
    let events: Vec<&serde_json::value::RawValue> = serde_json::from_slice(&arrival.body).unwrap();
    let events: Vec<Event<'_>> = events.iter().map(|e| Event::decode(e.get().as_bytes()).unwrap()).collect();
    let ids: Vec<String> = events.iter().map(|e| event::message_id(world.tenant, &e.source, &e.id)).collect();
    match &ids[..] {
        [one] => assert_eq!(id, one),
        several => assert_eq!(id, batch::batch_id(several.iter().map(String::as_str))),
    }
    events.iter().map(|event| event.id.clone().into_owned()).collect()
}

/// How often each event is in an outcome's batch, or alone in an outcome.
fn events_of(outcomes: &[Value]) -> BTreeMap<String, usize> {
    let mut counted = BTreeMap::new();
    for outcome in outcomes {
        let of = |events: &Value| {
            events.as_array().map(|events| events.iter().map(|event| event["id"].clone()).collect())
        };
        let ids: Option<Vec<Value>> = of(&outcome["batch"]["members"]).or_else(|| of(&outcome["event"]));
        for id in ids.unwrap_or_else(|| vec![outcome["event_id"].clone()]) {
            *counted.entry(id.as_str().unwrap().to_owned()).or_default() += 1;
        }
    }
    counted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_all_partitions_arrive_as_one_signed_array_and_settle_together() {
    let mut world = World::create(2).await;
    let mut receiver = Receiver::ok().await;
    let mut subscription = batching(&world, receiver.url(""), 4, 1 << 20, LONG_MS);
    subscription.history = History::All;
    subscription.types = vec!["order.*".parse().unwrap()];
    subscription.filter = Some("data.n > 0".to_owned());
    world.publish(&subscription);
    let running = world.run(World::settings()).await;
    let mut sent = BTreeMap::new();
    for n in 0..9 {
        // The first one does not pass the filter, and the types of the others differ.
        let event = world.event(
            &format!("e{n}"),
            if n < 5 { "order.a" } else { "order.b" },
            &format!(r#"{{ "n" : {n}}}"#),
        );
        world.produce(Topic::Events, Some(n % 2), "k", event.as_bytes());
        sent.insert(format!("e{n}"), event);
    }
    world.flush();
    sent.remove("e0");
    for _ in 0..2 {
        let arrival = receiver.next().await;
        let ids = checked_ids(&world, &arrival);
        assert_eq!(ids.len(), 4);
        let events: Vec<String> = ids.iter().map(|id| sent.remove(id).unwrap()).collect();
        assert_eq!(arrival.body, format!("[{}]", events.join(",")));
    }
    assert!(sent.is_empty(), "{sent:?}");
    let mut log = world.outcomes();
    for outcome in log.at_least(2).await {
        assert_eq!((&outcome["kind"], &outcome["attempt"]), (&json!("delivered"), &json!(1)));
        assert!(outcome["cause"].as_str().unwrap().starts_with("batch:"), "{outcome}");
        assert!(outcome["event"].is_null() && outcome["event_id"] == outcome["key"], "{outcome}");
        assert_eq!(
            (&outcome["batch"]["events"], outcome["batch"]["members"].as_array().unwrap().len()),
            (&json!(4), 4)
        );
    }
    until("both partitions are committed to their ends", || {
        let committed = |partition| world.committed(Topic::Events, "dispatcher", partition);
        committed(0).is_some_and(|(offset, _)| offset == 5)
            && committed(1).is_some_and(|(offset, _)| offset == 4)
    })
    .await;
    world.end(&[&running]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_closes_by_bytes_and_by_age_and_a_single_event_is_a_batch_of_one() {
    let mut world = World::create(1).await;
    let mut receiver = Receiver::ok().await;
    world.publish(&batching(&world, receiver.url("bytes"), 100, 2_048, LONG_MS));
    let mut aged = batching(&world, receiver.url("age"), 100, 1 << 20, 300);
    aged.types = vec!["aged".parse().unwrap()];
    world.publish(&aged);
    let running = world.run(World::settings()).await;
    let fill = |bytes: usize| format!("\"{}\"", "x".repeat(bytes));
    // Two fit, the third does not; then one that is too large for any.
    for (id, bytes) in [("1", 600), ("2", 600), ("3", 600), ("4", 5_000)] {
        world.produce(Topic::Events, None, "k", world.event(id, "a", &fill(bytes)).as_bytes());
    }
    let mut arrived = Vec::new();
    for _ in 0..3 {
        let arrival = receiver.next().await;
        assert_eq!(arrival.path, "/bytes");
        arrived.push(checked_ids(&world, &arrival).join(" "));
    }
    // They are made side by side.
    arrived.sort();
    assert_eq!(arrived, ["1 2", "3", "4"]);
    world.send("5", "aged");
    loop {
        let arrival = receiver.next().await;
        if arrival.path == "/age" {
            assert_eq!(checked_ids(&world, &arrival), ["5"]);
            break;
        }
    }
    let outcome = world.outcomes().of(aged.id).await;
    assert_eq!((&outcome["event_id"], &outcome["batch"]), (&json!("5"), &json!(null)), "{outcome}");
    world.end(&[&running]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_batch_comes_back_whole_with_its_id_and_bytes_although_its_subscription_batches_no_more() {
    let mut world = World::create(1).await;
    let mut receiver =
        Receiver::start(|arrival| Answer::status(if arrival.path == "/later" { 200 } else { 500 })).await;
    let mut subscription = batching(&world, receiver.url("first"), 3, 1 << 20, LONG_MS);
    world.publish(&subscription);
    let running = world.run(World::settings()).await;
    for id in ["1", "2", "3"] {
        world.send(id, "a");
    }
    let first = receiver.next().await;
    assert_eq!(checked_ids(&world, &first), ["1", "2", "3"]);
    let mut outcomes = world.outcomes();
    let outcome = outcomes.of(subscription.id).await;
    assert_eq!(
        (&outcome["kind"], &outcome["status"], &outcome["batch"]),
        (&json!("retry"), &json!(500), &json!({"events": 3}))
    );
    assert_eq!(outcome["event"], serde_json::from_slice::<Value>(&first.body).unwrap());
    assert_eq!(
        (&outcome["event_id"], &outcome["event_type"]),
        (&json!(first.header("webhook-id")), &json!("a"))
    );

    subscription.batch = None;
    subscription.format = Format::Data;
    subscription.url = receiver.url("later");
    subscription.version = 2;
    world.publish(&subscription);
    // The feed applies the change soon.
    for attempt in 2.. {
        let origin = Origin::RetryKey(RetryKey { shard: 0, id: attempt.into() });
        let body = std::str::from_utf8(&first.body).unwrap();
        world.send_due(Topic::Due, subscription.id, origin, attempt, body, clock::now());
        let again = receiver.next().await;
        assert_eq!((&again.body, again.header("webhook-id")), (&first.body, first.header("webhook-id")));
        checked_ids(&world, &again);
        if again.path == "/later" {
            break;
        }
        assert!(attempt < 1_000);
    }
    world.end(&[&running]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_is_due_has_the_end_that_its_subscription_has_for_it() {
    let mut world = World::create(1).await;
    let receiver = Receiver::start(|_| Answer::status(410)).await;
    let subscription = |change: &dyn Fn(&mut Subscription)| {
        let mut subscription = batching(&world, receiver.url(""), 10, 1 << 20, LONG_MS);
        change(&mut subscription);
        world.publish(&subscription);
        subscription.id
    };
    let old = UnixMillis(clock::now().0 - 3_000_000);
    let now = clock::now();
    // Subscription, since, kind and reason.
    let table = [
        (subscription(&|_| {}), now, "disable", json!("endpoint_gone")),
        (subscription(&|s| s.state = SubscriptionState::Paused), now, "deferred", json!(null)),
        (
            subscription(&|s| s.state = SubscriptionState::Disabled),
            now,
            "dead",
            json!("subscription_disabled"),
        ),
        (
            subscription(&|s| s.retry = RetryPolicy::new(vec![10.0], 0.0, 60.0).unwrap()),
            old,
            "dead",
            json!("expired"),
        ),
        (SubscriptionId(Uuid::now_v7()), now, "deferred", json!(null)),
        (SubscriptionId(Uuid::now_v7()), old, "dropped", json!(null)),
    ];
    let running = world.run(World::settings()).await;
    let array = format!("[{},{}]", world.event("1", "a", "{}"), world.event("2", "b", "[ 1]"));
    for (number, (id, since, ..)) in table.iter().enumerate() {
        let origin = Origin::ReplayId(ReplayId(Uuid::from_u128(number as u128)));
        world.send_due(Topic::Replays, *id, origin, 1, &array, *since);
    }
    let mut outcomes = world.outcomes();
    for (id, _, kind, reason) in &table {
        let outcome = outcomes.of(*id).await;
        assert_eq!((&outcome["kind"], &outcome["reason"]), (&json!(kind), reason), "{outcome}");
        assert_eq!(
            (&outcome["batch"]["events"], &outcome["event_type"]),
            (&json!(2), &json!("*")),
            "{outcome}"
        );
        assert_eq!(outcome["event"], serde_json::from_str::<Value>(&array).unwrap());
    }
    world.end(&[&running]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_batch_ends_as_its_subscription_does() {
    let mut world = World::create(1).await;
    let mut receiver = Receiver::ok().await;
    let batching = |state| Subscription { state, ..batching(&world, receiver.url(""), 10, 1 << 20, 5_000) };
    let mut disabled = batching(SubscriptionState::Active);
    let paused = batching(SubscriptionState::Paused);
    let deleted = batching(SubscriptionState::Active);
    let plain = world.subscription(receiver.url(""));
    for subscription in [&disabled, &paused, &deleted, &plain] {
        world.publish(subscription);
    }
    let settings = floodway_dispatcher::Settings { config_grace: Duration::ZERO, ..World::settings() };
    let running = world.run(settings).await;
    for id in ["1", "2"] {
        world.send(id, "a");
    }
    // They are in the batches about when they arrive elsewhere.
    assert_eq!(receiver.next_ids(2).await, ["1", "2"]);
    disabled.state = SubscriptionState::Disabled;
    disabled.version = 2;
    world.publish(&disabled);
    world.produce_tombstone(Topic::Config, &ConfigKey::Subscription(deleted.id).to_string());
    let mut outcomes = world.outcomes();
    for (id, kind, reason) in [
        (disabled.id, "dead", json!("subscription_disabled")),
        (paused.id, "deferred", json!(null)),
        (deleted.id, "dropped", json!(null)),
    ] {
        let outcome = outcomes.of(id).await;
        assert_eq!((&outcome["kind"], &outcome["reason"]), (&json!(kind), &reason), "{outcome}");
        assert_eq!(events_of(&[outcome]), [("1".to_owned(), 1), ("2".to_owned(), 1)].into());
    }
    assert!(receiver.rest().is_empty());
    world.end(&[&running]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_with_an_open_batch_loses_nothing() {
    let mut world = World::create(1).await;
    let mut receiver = Receiver::ok().await;
    world.publish(&batching(&world, receiver.url(""), 3, 1 << 20, LONG_MS));
    let mut watched = world.subscription(receiver.url("watched"));
    watched.types = vec!["seen".parse().unwrap()];
    world.publish(&watched);
    let first = world.run(World::settings()).await;
    for id in ["1", "2"] {
        world.send(id, "a");
    }
    world.flush();
    // A due event behind them in time tells that the first dispatcher works; the batch waits for a third one.
    let origin = Origin::RetryKey(RetryKey { shard: 0, id: 1 });
    world.send_due(Topic::Due, watched.id, origin, 1, &world.event("x", "seen", "{}"), clock::now());
    assert_eq!(receiver.next().await.path, "/watched");
    first.crash();
    let second = world.run(World::settings()).await;
    world.send("3", "a");
    // The other one may come again, for nothing had been committed.
    let arrival = loop {
        let arrival = receiver.next().await;
        if arrival.path != "/watched" {
            break arrival;
        }
    };
    assert_eq!(checked_ids(&world, &arrival), ["1", "2", "3"]);
    until("all is committed", || {
        world.committed(Topic::Events, "dispatcher", 0).is_some_and(|(offset, _)| offset == 3)
    })
    .await;
    world.end(&[&second]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_change_hands_and_shutdown_leave_each_event_of_open_batches_in_one_outcome() {
    const EVENTS: i32 = 20;
    let mut world = World::create(4).await;
    let mut receiver = Receiver::ok().await;
    let mut subscription = batching(&world, receiver.url(""), 1_000, 1 << 20, LONG_MS);
    subscription.history = History::All;
    world.publish(&subscription);
    let first = world.run(World::settings()).await;
    until("the first has all partitions", || world.assigned(Topic::Events, "dispatcher") == [4]).await;
    for n in 0..EVENTS {
        world.produce(Topic::Events, Some(n % 4), "k", world.event(&n.to_string(), "a", "{}").as_bytes());
    }
    world.flush();
    let second = world.run(World::settings()).await;
    until("they share the partitions", || world.assigned(Topic::Events, "dispatcher") == [2, 2]).await;
    first.context.shutdown.cancel();
    world.ended().await.unwrap();
    until("the second has all partitions", || world.assigned(Topic::Events, "dispatcher") == [4]).await;
    second.context.shutdown.cancel();
    world.ended().await.unwrap();
    assert!(receiver.rest().is_empty());
    // What they had not read, or gave up, is there for the next one, which does not wait for more.
    subscription.batch = Some(BatchPolicy::new(1_000, 1 << 20, 300).unwrap());
    subscription.version = 2;
    world.publish(&subscription);
    world.produce(Topic::Events, Some(0), "k", world.event("last", "a", "{}").as_bytes());
    let third = world.run(World::settings()).await;
    let mut outcomes = world.outcomes();
    let mut count = 1;
    while events_of(outcomes.at_least(count).await).len() <= EVENTS as usize {
        count += 1;
    }
    for (id, times) in events_of(&outcomes.seen) {
        assert_eq!(times, 1, "{id}");
    }
    world.end(&[&third]).await;
}
