//! What nobody should have written: it is counted or retried, and its partition goes on.

use crate::{
    receiver::{Answer, Receiver},
    world::{World, until},
};
use bytes::Bytes;
use floodway_runtime::clock;
use floodway_schemas::{
    MAX_EVENT_BYTES,
    due::{Origin, RetryKey},
    topic::Topic,
};
use http::Response;
use http_body_util::Full;
use rdkafka::{
    message::{Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer},
};
use serde_json::json;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_cannot_be_used_do_not_stop_their_partition() {
    let mut world = World::create(1).await;
    let mut receiver = Receiver::ok().await;
    let subscription = world.subscription(receiver.url(""));
    world.publish(&subscription);
    let running = world.run(World::settings()).await;
    let good = world.event("good", "a", "{}");
    let truncated = &good[..good.len() - 1];
    let foreign_tenant = good.replace(&world.tenant.to_string(), "nobody");
    let undated = good.replace("receivedat", "received");
    let nested = world.event("nested", "a", &format!("{}{}", "[".repeat(5_000), "]".repeat(5_000)));
    let records: [&str; 6] = [truncated, &foreign_tenant, &undated, "\u{0}", "null", "{\"data\":1}"];
    for record in records {
        world.produce(Topic::Events, None, "k", record.as_bytes());
    }
    // Its data is nobody's business: it is delivered as it is.
    world.produce(Topic::Events, None, "k", nested.as_bytes());
    // Nor are headers that others add, however large.
    let producer: BaseProducer = world.topics.kafka.producer().create().unwrap();
    let (topic, value) = (world.topics.kafka.topic(Topic::Events), vec![b'x'; 100_000]);
    let headers = OwnedHeaders::new().insert(Header { key: "huge", value: Some(&value) });
    let with_header = world.event("with-header", "a", "{}");
    producer
        .send(BaseRecord::to(&topic).partition(0).key("k").payload(with_header.as_bytes()).headers(headers))
        .map_err(|(error, _)| error)
        .unwrap();
    producer.flush(Duration::from_secs(30)).unwrap();

    let due = |version: u32| {
        let origin = Origin::RetryKey(RetryKey { shard: 0, id: 1 });
        let event = serde_json::from_str(&good).unwrap();
        let due = floodway_schemas::due::Due {
            v: version,
            origin,
            tenant: world.tenant,
            subscription: subscription.id,
            attempt: 1,
            since: clock::now(),
            lease: false,
            event,
        };
        due.encode().unwrap()
    };
    world.produce(Topic::Due, None, "k", &due(99));
    world.produce(Topic::Due, None, "k", &due(1));
    let mut arrived = receiver.next_ids(3).await;
    arrived.sort();
    assert_eq!(arrived, ["good", "nested", "with-header"]);
    until("everything is settled", || {
        world.committed(Topic::Events, "dispatcher", 0).is_some_and(|(offset, _)| offset == 8)
            && world.committed(Topic::Due, "dispatcher-due", 0).is_some_and(|(offset, _)| offset == 2)
    })
    .await;
    world.end(&[&running]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_failure_of_the_largest_event_is_settled_although_it_is_larger_than_the_event() {
    let mut world = World::create(1).await;
    // Every byte of the answer takes six in JSON.
    let receiver = Receiver::start(|_| {
        let body = Bytes::from(vec![1; 8 * 1024]);
        Answer::Respond(Response::builder().status(500).body(Full::new(body)).unwrap())
    })
    .await;
    let mut subscription = world.subscription(receiver.url(""));
    for number in 0..16 {
        subscription.headers.insert(format!("x-header-{number}"), "\"".repeat(1_000));
    }
    world.publish(&subscription);
    let running = world.run(World::settings()).await;
    let envelope = world.event("largest", "a", "\"\"").len();
    let data = format!("\"{}\"", "x".repeat(MAX_EVENT_BYTES - envelope));
    let event = world.event("largest", "a", &data);
    assert_eq!(event.len(), MAX_EVENT_BYTES);
    world.produce(Topic::Events, None, "k", event.as_bytes());
    let outcome = world.outcomes().of(subscription.id).await;
    assert_eq!((&outcome["kind"], &outcome["status"]), (&json!("retry"), &json!(500)));
    assert_eq!(outcome["event"]["data"].as_str().map(str::len), Some(data.len() - 2));
    assert!(outcome.to_string().len() > MAX_EVENT_BYTES + 16 * 1024);
    until("it is settled", || {
        world.committed(Topic::Events, "dispatcher", 0).is_some_and(|(offset, _)| offset == 1)
    })
    .await;
    world.end(&[&running]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_that_cannot_be_delivered_to_fails_alone() {
    let mut world = World::create(1).await;
    let mut receiver = Receiver::ok().await;
    let long = world.subscription(receiver.url(&"x".repeat(70_000)));
    let scheme = world.subscription("ftp://127.0.0.1/".parse().unwrap());
    let mut keyless = world.subscription(receiver.url("keyless"));
    keyless.secrets.clear();
    let mut broken_key = world.subscription(receiver.url("broken-key"));
    broken_key.secrets = vec![world.seal(broken_key.id, "whsk_AAAA", None)];
    let good = world.subscription(receiver.url("good"));
    for subscription in [&long, &scheme, &keyless, &broken_key, &good] {
        world.publish(subscription);
    }
    let running = world.run(World::settings()).await;
    world.send("1", "a");
    assert_eq!(receiver.next().await.path, "/good");
    let mut outcomes = world.outcomes();
    for (subscription, error) in
        [(&long, "protocol"), (&scheme, "protocol"), (&keyless, "secret"), (&broken_key, "secret")]
    {
        let outcome = outcomes.of(subscription.id).await;
        assert_eq!((&outcome["kind"], &outcome["error"]), (&json!("retry"), &json!(error)), "{outcome}");
    }
    assert!(receiver.rest().is_empty());
    world.end(&[&running]).await;
}
