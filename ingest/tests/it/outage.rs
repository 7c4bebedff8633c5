//! Kafka is away.

use crate::harness::{PATIENCE, Sender, TestIngest, configure, context_at, eventually, settings};
use floodway_runtime::testing::TestTopics;
use serde_json::json;
use std::time::Instant;
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
