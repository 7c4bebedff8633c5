//! What a subscriber receives.

use crate::{
    receiver::Receiver,
    world::{OTHER_SECRET, SECRET, World},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use floodway_runtime::clock;
use floodway_schemas::{UnixMillis, config::Format, event::message_id, topic::Topic};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::time::Duration;

pub(crate) fn signature(secret: &str, id: &str, timestamp: &str, body: &[u8]) -> String {
    let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
    mac.update(&[id.as_bytes(), b".", timestamp.as_bytes(), b".", body].concat());
    format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_carries_the_data_untouched_its_attributes_and_a_signature_that_verifies() {
    let mut world = World::create(1).await;
    let mut receiver = Receiver::ok().await;
    let mut subscription = world.subscription(receiver.url("hook"));
    subscription.headers.insert("x-team".into(), "blue".into());
    subscription.headers.insert("webhook-id".into(), "forged".into());
    world.publish(&subscription);
    let running = world.run(World::settings()).await;

    let data = "{ \"total\" : 12.50,\n\t\"text\":\"caf\u{e9} \\u00e9\" }";
    world.produce(
        Topic::Events,
        None,
        "k",
        world.event("order 7".replace(' ', "-").as_str(), "order.created", data).as_bytes(),
    );
    let arrival = receiver.next().await;

    assert_eq!((arrival.method.as_str(), arrival.path.as_str()), ("POST", "/hook"));
    assert_eq!(arrival.body, data.as_bytes());
    assert_eq!(arrival.header("content-type"), "application/json");
    assert_eq!(arrival.header("ce-specversion"), "1.0");
    assert_eq!(arrival.header("ce-id"), "order-7");
    assert_eq!(arrival.header("ce-source"), "/test");
    assert_eq!(arrival.header("ce-type"), "order.created");
    assert_eq!(arrival.header("ce-tenantid"), world.tenant.to_string());
    assert_eq!(arrival.header("x-team"), "blue");
    assert!(arrival.header("user-agent").starts_with("Floodway/"));
    assert_eq!(arrival.header("webhook-id"), message_id(world.tenant, "/test", "order-7"));
    let timestamp = arrival.header("webhook-timestamp");
    let age = clock::now().0 / 1000 - timestamp.parse::<i64>().unwrap();
    assert!((0..=60).contains(&age), "{age}");
    let expected = signature(SECRET, arrival.header("webhook-id"), timestamp, &arrival.body);
    assert_eq!(arrival.header("webhook-signature"), expected);
    let outcome = world.outcomes().of(subscription.id).await;
    assert_eq!(outcome["kind"], "delivered");
    assert_eq!(outcome["status"], 200);
    assert_eq!(outcome.get("event"), None);
    world.end(&[&running]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_unexpired_secret_signs_while_one_rotates() {
    let mut world = World::create(1).await;
    let mut receiver = Receiver::ok().await;
    let mut subscription = world.subscription(receiver.url(""));
    let later = clock::now().plus(Duration::from_secs(3600));
    subscription.secrets = vec![
        world.seal(subscription.id, OTHER_SECRET, None),
        world.seal(subscription.id, SECRET, Some(later)),
        world.seal(subscription.id, "whsec_AAAA", Some(UnixMillis(1))),
    ];
    world.publish(&subscription);
    let running = world.run(World::settings()).await;
    world.send("1", "a");
    let arrival = receiver.next().await;
    let sign = |secret| {
        signature(secret, arrival.header("webhook-id"), arrival.header("webhook-timestamp"), &arrival.body)
    };
    assert_eq!(arrival.header("webhook-signature"), format!("{} {}", sign(OTHER_SECRET), sign(SECRET)));
    world.end(&[&running]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_structured_format_delivers_the_whole_envelope() {
    let mut world = World::create(1).await;
    let mut receiver = Receiver::ok().await;
    let mut subscription = world.subscription(receiver.url(""));
    subscription.format = Format::Cloudevents;
    world.publish(&subscription);
    let running = world.run(World::settings()).await;
    let event = world.event("1", "a", "[1, 2.0]");
    world.produce(Topic::Events, None, "1", event.as_bytes());
    let arrival = receiver.next().await;
    assert_eq!(arrival.body, event.as_bytes());
    assert_eq!(arrival.header("content-type"), "application/cloudevents+json");
    assert!(arrival.headers.get("ce-id").is_none());
    world.end(&[&running]).await;
}
