//! What is written to `outcomes`.

use crate::{
    receiver::{Answer, Receiver},
    world::World,
};
use bytes::Bytes;
use floodway_runtime::clock;
use floodway_schemas::{
    UnixMillis,
    config::{History, Subscription},
    seal::Sealed,
    topic::Topic,
};
use http::Response;
use http_body_util::Full;
use serde_json::{Value, json};

/// A free port that nobody listens on.
async fn closed_port() -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().port()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outcome_says_what_happened_and_why() {
    let mut world = World::create(1).await;
    let receiver = Receiver::start(|arrival| match arrival.path.as_str() {
        "/ok" => Answer::status(204),
        "/failing" => Answer::Respond(Response::builder().status(500).body(Full::from("oh no")).unwrap()),
        "/gone" => Answer::status(410),
        "/moved" => Answer::Respond(
            Response::builder().status(302).header("location", "/ok").body(Full::default()).unwrap(),
        ),
        "/busy" => Answer::Respond(
            Response::builder().status(503).header("retry-after", "120").body(Full::default()).unwrap(),
        ),
        _ => Answer::Hang,
    })
    .await;
    let closed = closed_port().await;
    let url = |text: String| text.parse().unwrap();
    let tls = receiver.url("").as_str().replace("http:", "https:");
    // name, URL, kind, error, status, reason
    let table = [
        ("ok", receiver.url("ok"), "delivered", json!(null), json!(204), json!(null)),
        ("failing", receiver.url("failing"), "retry", json!("status"), json!(500), json!(null)),
        ("gone", receiver.url("gone"), "disable", json!("status"), json!(410), json!("endpoint_gone")),
        ("moved", receiver.url("moved"), "retry", json!("redirect"), json!(302), json!(null)),
        ("busy", receiver.url("busy"), "retry", json!("status"), json!(503), json!(null)),
        ("hanging", receiver.url("hanging"), "retry", json!("timeout"), json!(null), json!(null)),
        (
            "refused",
            url(format!("http://127.0.0.1:{closed}/")),
            "retry",
            json!("refused"),
            json!(null),
            json!(null),
        ),
        (
            "private",
            url("http://10.0.0.1/".into()),
            "retry",
            json!("forbidden_address"),
            json!(null),
            json!(null),
        ),
        (
            "metadata",
            url("http://169.254.169.254/".into()),
            "retry",
            json!("forbidden_address"),
            json!(null),
            json!(null),
        ),
        (
            "unknown-host",
            url("http://no-such-host.invalid/".into()),
            "retry",
            json!("dns"),
            json!(null),
            json!(null),
        ),
        ("no-tls", url(tls), "retry", json!("tls"), json!(null), json!(null)),
    ];
    let mut subscriptions = Vec::new();
    for (name, url, ..) in &table {
        let mut subscription = world.subscription(url.clone());
        subscription.types = vec![name.parse().unwrap()];
        subscription.timeout_ms = if *name == "hanging" { 300 } else { 20_000 };
        world.publish(&subscription);
        subscriptions.push(subscription);
    }
    let running = world.run(World::settings()).await;
    for (name, ..) in &table {
        world.send(name, name);
    }
    let mut outcomes = world.outcomes();
    for ((name, _, kind, error, status, reason), subscription) in table.iter().zip(&subscriptions) {
        let outcome = outcomes.of(subscription.id).await;
        let found = [&outcome["kind"], &outcome["error"], &outcome["status"], &outcome["reason"]];
        assert_eq!(found, [&json!(kind), error, status, reason], "{name}: {outcome}");
        check_common(&world, subscription, name, &outcome);
    }
    let failing = outcomes.of(subscriptions[1].id).await;
    assert_eq!(failing["response"], "oh no");
    check_exchange(&failing["exchange"]);
    let refused = &outcomes.of(subscriptions[6].id).await["exchange"];
    assert_eq!(refused["address"], format!("127.0.0.1:{closed}"));
    assert_eq!(
        (&refused["timings"]["first_byte_us"], &refused["response_headers"]),
        (&json!(null), &json!([]))
    );
    // It was connected to, and said nothing.
    let hanging = &outcomes.of(subscriptions[5].id).await["exchange"];
    assert!(hanging["address"].is_string() && hanging["timings"]["first_byte_us"].is_null(), "{hanging}");
    // A success is not described, unless it is to be recorded.
    assert_eq!(outcomes.of(subscriptions[0].id).await.get("exchange"), None);
    let busy = outcomes.of(subscriptions[4].id).await;
    let wait = busy["not_before"].as_i64().unwrap() - busy["at"].as_i64().unwrap();
    assert!((110_000..=120_000).contains(&wait), "{wait}");
    world.end(&[&running]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_success_that_is_recorded_says_what_went_over_the_wire() {
    let mut world = World::create(1).await;
    let receiver = Receiver::ok().await;
    let mut subscription = world.subscription(receiver.url(""));
    subscription.history = History::All;
    subscription.headers.insert("x-api-key".into(), "s3cr3t".into());
    world.publish(&subscription);
    let running = world.run(World::settings()).await;
    world.send("failing", "a");
    let outcome = world.outcomes().of(subscription.id).await;
    assert_eq!((&outcome["kind"], &outcome["record"]), (&json!("delivered"), &json!(true)));
    check_exchange(&outcome["exchange"]);
    assert!(!outcome.to_string().contains("s3cr3t"));
    world.end(&[&running]).await;
}

fn check_exchange(exchange: &Value) {
    assert!(exchange["address"].as_str().unwrap().starts_with("127.0.0.1:"), "{exchange}");
    let timings = &exchange["timings"];
    let first_byte = timings["first_byte_us"].as_u64().unwrap();
    assert!(first_byte <= timings["total_us"].as_u64().unwrap());
    assert_eq!(exchange["reused"], timings["connect_us"].is_null());
    let sent = exchange["request_headers"].as_array().unwrap();
    let value = |name: &str| &sent.iter().find(|header| header["name"] == name).unwrap()["value"];
    assert_eq!((value("ce-id"), value("webhook-signature")), (&json!("failing"), &json!("[redacted]")));
    assert!(
        exchange["response_headers"]
            .as_array()
            .unwrap()
            .iter()
            .any(|header| header["name"] == "content-length")
    );
}

fn check_common(world: &World, subscription: &Subscription, name: &str, outcome: &Value) {
    assert_eq!(outcome["event_id"], name);
    assert_eq!(outcome["tenant"], world.tenant.to_string());
    assert_eq!(outcome["subscription"], subscription.id.to_string());
    assert_eq!(outcome["attempt"], 1);
    assert!(outcome["duration_ms"].is_u64());
    assert!(outcome["cause"].as_str().unwrap().starts_with("events:"));
    assert_eq!(outcome["kind"] == "retry", outcome["not_before"].is_i64());
    assert_eq!(outcome["kind"] != "delivered", outcome["event"]["id"] == name);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_is_too_old_or_out_of_attempts_is_dead() {
    let mut world = World::create(1).await;
    let mut receiver = Receiver::start(|_| Answer::status(500)).await;
    let mut once = world.subscription(receiver.url("once"));
    once.retry = floodway_schemas::retry_policy::RetryPolicy::new(vec![], 0.0, 3600.0).unwrap();
    once.types = vec!["young".parse().unwrap()];
    let mut expired = world.subscription(receiver.url("expired"));
    expired.types = vec!["old".parse().unwrap()];
    expired.history = History::All;
    world.publish(&once);
    world.publish(&expired);
    let running = world.run(World::settings()).await;
    let long_ago = UnixMillis(clock::now().0 - 3_601_000);
    world.produce(Topic::Events, None, "1", world.event_received_at("1", "old", "1", long_ago).as_bytes());
    world.send("2", "young");
    let mut outcomes = world.outcomes();
    let outcome = outcomes.of(expired.id).await;
    assert_eq!((&outcome["kind"], &outcome["reason"]), (&json!("dead"), &json!("expired")));
    assert_eq!((&outcome["record"], &outcome["since"]), (&json!(true), &json!(long_ago.0)));
    let outcome = outcomes.of(once.id).await;
    assert_eq!((&outcome["kind"], &outcome["reason"]), (&json!("dead"), &json!("attempts_exhausted")));
    assert_eq!(outcome.get("record"), None);
    assert_eq!(receiver.next().await.path, "/once");
    assert!(receiver.rest().is_empty());
    world.end(&[&running]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_that_does_not_open_is_retried_and_nothing_is_sent() {
    let mut world = World::create(1).await;
    let mut receiver = Receiver::ok().await;
    let mut subscription = world.subscription(receiver.url(""));
    subscription.secrets[0].sealed = Sealed("fws1.lost-key.AAAA".into());
    world.publish(&subscription);
    let running = world.run(World::settings()).await;
    world.send("1", "a");
    let outcome = world.outcomes().of(subscription.id).await;
    assert_eq!((&outcome["kind"], &outcome["error"]), (&json!("retry"), &json!("secret")));
    assert!(receiver.rest().is_empty());
    world.end(&[&running]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_response_is_cut() {
    let mut world = World::create(1).await;
    let receiver = Receiver::start(|_| {
        let body = Bytes::from(vec![b'x'; 8 * 1024 * 1024]);
        Answer::Respond(Response::builder().status(400).body(Full::new(body)).unwrap())
    })
    .await;
    let subscription = world.subscription(receiver.url(""));
    world.publish(&subscription);
    let running = world.run(World::settings()).await;
    world.send("1", "a");
    let outcome = world.outcomes().of(subscription.id).await;
    assert_eq!((&outcome["kind"], &outcome["status"]), (&json!("retry"), &json!(400)));
    assert_eq!(outcome["response"].as_str().unwrap(), "x".repeat(4096));
    world.end(&[&running]).await;
}
