//! Kafka is away.

use crate::harness::{PATIENCE, Sender, TestIngest, configure, context_at, eventually, settings};
use floodway_runtime::{
    kafka::KafkaSettings,
    testing::{TestTopics, counted},
    topics,
};
use floodway_schemas::topic::Topic;
use rdkafka::{
    admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier},
    client::DefaultClientContext,
};
use serde_json::json;
use std::time::{Duration, Instant};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
};

#[tokio::test]
async fn without_kafka_at_start_nothing_is_accepted_and_everything_recovers_when_it_comes() {
    let topics = TestTopics::create(crate::harness::PARTITIONS).await;
    let sender = Sender::new();
    configure(&topics.kafka, &sender.changes());
    // A port that is ours, where nothing listens yet.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let bootstrap = socket.local_addr().unwrap();
    let broker = topics.kafka.brokers.clone();
    let context = context_at(&topics, bootstrap.to_string());
    let ingest = TestIngest::start_in(settings(), context, topics, sender).await;

    let reply = ingest.post(r#"{"type":"a"}"#).await;
    assert_eq!((reply.status, reply.header("retry-after"), reply.is_problem()), (503, Some("1"), true));
    assert_eq!(
        reply.json(),
        json!({"type": "urn:floodway:problem:unavailable", "title": "Service unavailable", "status": 503,
            "detail": "this server is still reading its configuration; nothing was written",
            "outcome": "not_persisted"})
    );
    let reports = ingest.context.health.reports();
    assert!(!ingest.context.health.is_ready());
    assert!(reports.iter().all(|report| report.status == "down"), "{reports:?}");

    // Kafka comes: connections to the first address reach the broker, whose metadata leads on to itself.
    let listener = socket.listen(64).unwrap();
    let mut forwarding = JoinSet::new();
    forwarding.spawn(forward(listener, broker));
    ingest.ready().await;
    assert_eq!(ingest.post(r#"{"type":"a"}"#).await.status, 202);
    ingest.stored(1).await;
    ingest.finish().await;
}

#[tokio::test]
async fn topics_found_wrong_after_the_start_keep_the_server_from_accepting_until_they_are_right() {
    let topics = TestTopics::create(crate::harness::PARTITIONS).await;
    let sender = Sender::new();
    configure(&topics.kafka, &sender.changes());
    limit_records(&topics.kafka, "1000").await;
    eventually_checked(&topics.kafka, false).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let context = context_at(&topics, socket.local_addr().unwrap().to_string());
    let broker = topics.kafka.brokers.clone();
    let ingest = TestIngest::start_in(settings(), context, topics, sender).await;

    let mut forwarding = JoinSet::new();
    forwarding.spawn(forward(socket.listen(64).unwrap(), broker));
    let reason = || {
        let reports = ingest.context.health.reports();
        let kafka = reports.into_iter().find(|report| report.name == "kafka");
        kafka.and_then(|report| report.reason).unwrap_or_default()
    };
    eventually("the reason", || reason().contains("max.message.bytes=1000")).await;
    assert!(!ingest.context.health.is_ready());
    assert_eq!(ingest.post(r#"{"type":"a"}"#).await.status, 503);

    limit_records(&ingest.topics.kafka, "2000000").await;
    ingest.ready().await;
    assert_eq!(ingest.post(r#"{"type":"a"}"#).await.status, 202);
    ingest.finish().await;
}

/// Sets the largest record that the events topic takes.
async fn limit_records(kafka: &KafkaSettings, bytes: &str) {
    let name = kafka.topic(Topic::Events);
    let admin: AdminClient<DefaultClientContext> = kafka.client().create().unwrap();
    let change = AlterConfig::new(ResourceSpecifier::Topic(&name))
        .set("max.message.bytes", bytes)
        .set("message.timestamp.type", "LogAppendTime");
    admin.alter_configs([&change], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
}

/// The broker takes a moment to show a new setting.
async fn eventually_checked(kafka: &KafkaSettings, right: bool) {
    let deadline = Instant::now() + PATIENCE;
    while topics::check(kafka, &[Topic::Events]).await.is_ok() != right {
        assert!(Instant::now() < deadline, "the broker does not show the setting");
    }
}

/// Longer than it takes to notice that clients have lost their brokers, and to replace them.
const LOST_PATIENCE: Duration = Duration::from_secs(180);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_its_clients_have_lost_their_brokers_for_good_every_request_is_answered_and_events_are_taken_again()
 {
    let replaced = || counted("floodway_ingest_producer_rebuilds_total");
    let before = replaced();
    let topics = TestTopics::create(crate::harness::PARTITIONS).await;
    let sender = Sender::new();
    configure(&topics.kafka, &sender.changes());
    let (relay, _) = topics.relayed();
    let context = context_at(&topics, relay.brokers());
    let ingest = TestIngest::start_in(settings(), context, topics, sender).await;
    ingest.ready().await;
    assert_eq!(ingest.post(r#"{"type":"a"}"#).await.status, 202);

    let lost_at = Instant::now();
    let mut refused = 0;
    tokio::task::block_in_place(|| relay.loses_clients());
    loop {
        // Each is answered long before the client that waits for it would give up.
        let reply = tokio::time::timeout(PATIENCE, ingest.post(r#"{"type":"a"}"#)).await.unwrap();
        if reply.status == 202 && replaced() > before {
            break;
        }
        assert!(
            lost_at.elapsed() < LOST_PATIENCE,
            "no event is taken by another producer; {refused} refused"
        );
        if reply.status == 202 {
            // It got away.
            tokio::task::block_in_place(|| relay.loses_clients());
            continue;
        }
        assert_eq!(reply.status, 503, "{reply:?}");
        refused += 1;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    println!("events are taken again after {:?}, {refused} were refused", lost_at.elapsed());
    ingest.ready().await;
    assert_eq!(ingest.post(r#"{"type":"a"}"#).await.status, 202);
    ingest.finish().await;
}

async fn forward(listener: TcpListener, broker: String) {
    let mut connections = JoinSet::new();
    while let Ok((mut client, _)) = listener.accept().await {
        let broker = broker.clone();
        connections.spawn(async move {
            if let Ok(mut server) = TcpStream::connect(broker).await {
                let _ = copy_bidirectional(&mut client, &mut server).await;
            }
        });
    }
}

#[tokio::test]
async fn a_server_without_kafka_says_why_and_ends_when_asked() {
    let topics = TestTopics::create(1).await;
    let context = context_at(&topics, "127.0.0.1:1".to_owned());
    let ingest = TestIngest::start_in(settings(), context, topics, Sender::new()).await;
    let reason = || {
        let reports = ingest.context.health.reports();
        reports
            .into_iter()
            .find(|report| report.name == "kafka")
            .and_then(|report| report.reason)
            .unwrap_or_default()
    };
    eventually("the reason", || reason().starts_with("no broker answers")).await;
    let asked = Instant::now();
    ingest.finish().await;
    assert!(asked.elapsed() < PATIENCE);
}
