//! What keeps the server from starting.

use crate::harness::{PARTITIONS, TestIngest, settings};
use floodway_ingest::{Ingest, Settings};
use floodway_runtime::testing::{TestTopics, context, kafka};
use floodway_schemas::topic::Topic;
use rdkafka::{
    admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier},
    client::DefaultClientContext,
};

#[tokio::test]
async fn a_busy_port_is_refused_by_the_name_of_its_setting() {
    let ingest = TestIngest::start(settings()).await;
    let error = Ingest::bind(Settings { listen: ingest.address, ..settings() }, ingest.topics.context())
        .await
        .unwrap_err();
    let expected = format!("cannot listen on {} (FLOODWAY_INGEST__LISTEN): ", ingest.address);
    assert!(error.to_string().starts_with(&expected), "{error}");
    ingest.finish().await;
}

#[tokio::test]
async fn missing_topics_are_named_with_the_remedy() {
    let kafka = kafka();
    let name = kafka.topic(Topic::Events);
    let error = Ingest::bind(settings(), context(kafka)).await.unwrap_err().to_string();
    assert!(error.contains(&name) && error.contains("floodway topics apply"), "{error}");
}

#[tokio::test]
async fn a_topic_with_a_lower_size_limit_is_refused() {
    let topics = TestTopics::create(PARTITIONS).await;
    let name = topics.kafka.topic(Topic::Events);
    let admin: AdminClient<DefaultClientContext> = topics.kafka.client().create().unwrap();
    let change = AlterConfig::new(ResourceSpecifier::Topic(&name))
        .set("max.message.bytes", "1000")
        .set("message.timestamp.type", "LogAppendTime");
    admin.alter_configs([&change], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
    let deadline = std::time::Instant::now() + crate::harness::PATIENCE;
    // The broker takes a moment to show the new setting.
    loop {
        match Ingest::bind(settings(), topics.context()).await {
            Err(error) => {
                let error = error.to_string();
                assert!(error.contains(&name) && error.contains("max.message.bytes=1000"), "{error}");
                break;
            }
            Ok(_) => assert!(std::time::Instant::now() < deadline, "the topic was taken as it is"),
        }
    }
    topics.delete().await;
}

#[tokio::test]
async fn a_bad_setting_is_refused_before_anything_else() {
    let error =
        Ingest::bind(Settings { max_connections: 0, ..settings() }, context(kafka())).await.unwrap_err();
    assert_eq!(error.to_string(), "setting FLOODWAY_INGEST__MAX_CONNECTIONS: must be at least 1");
}
