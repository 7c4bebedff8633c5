use floodway_runtime::{
    kafka::{KafkaSecurity, KafkaSettings, SecurityProtocol},
    testing::{self, TestTopics},
    topics::{self, Change, TopicPlan, TopicsError},
};
use floodway_schemas::topic::Topic;
use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
};

const DEV: TopicPlan = TopicPlan { partitions: 3, replication: 1, dev: true };

async fn create_by_hand(kafka: &KafkaSettings, topic: Topic, partitions: i32, setting: (&str, &str)) {
    let admin: AdminClient<DefaultClientContext> = kafka.client().create().unwrap();
    let name = kafka.topic(topic);
    let new = NewTopic::new(&name, partitions, TopicReplication::Fixed(1)).set(setting.0, setting.1);
    for result in admin.create_topics([&new], &AdminOptions::new()).await.unwrap() {
        result.unwrap();
    }
}

#[tokio::test]
async fn applying_twice_creates_once_and_checks_every_promise() {
    let kafka = testing::kafka();
    let created = topics::apply(&kafka, DEV).await.unwrap();
    assert_eq!(created, Topic::ALL.map(Change::Created));
    let again = topics::apply(&kafka, DEV).await.unwrap();
    assert_eq!(again, Topic::ALL.map(Change::Unchanged));
    let facts = topics::check(&kafka, &[Topic::Events, Topic::Config]).await.unwrap();
    assert_eq!((facts.partitions(Topic::Events), facts.partitions(Topic::Config)), (Some(3), Some(1)));
    TestTopics { kafka }.delete().await;
}

#[tokio::test]
async fn a_topic_with_the_wrong_partition_count_or_size_limit_is_named() {
    let kafka = testing::kafka();
    create_by_hand(&kafka, Topic::Outcomes, 2, ("max.message.bytes", "1000")).await;
    let error = topics::apply(&kafka, DEV).await.unwrap_err().to_string();
    let outcomes = kafka.topic(Topic::Outcomes);
    assert!(error.contains(&format!("{outcomes} has 2 partitions, 3 were asked for")), "{error}");
    assert!(error.contains("has 3 partitions and"), "{error}");
    assert!(
        error.contains(&format!("{outcomes} has max.message.bytes=1000, it must be at least")),
        "{error}"
    );
    TestTopics { kafka }.delete().await;
}

#[tokio::test]
async fn missing_topics_are_listed_with_the_command_that_creates_them() {
    let kafka = testing::kafka();
    let error = topics::check(&kafka, &[Topic::Events]).await.unwrap_err();
    assert!(
        matches!(&error, TopicsError::Missing(names) if names == &[kafka.topic(Topic::Events)]),
        "{error}"
    );
    assert!(error.to_string().contains("floodway topics apply"));
}

#[tokio::test]
async fn fewer_than_three_replicas_need_the_dev_flag() {
    let plan = TopicPlan { dev: false, ..DEV };
    let error = topics::apply(&testing::kafka(), plan).await.unwrap_err();
    assert!(matches!(error, TopicsError::TooFewReplicas(1)));
}

#[tokio::test]
async fn an_unreachable_broker_is_told_apart_from_a_wrong_topic() {
    let kafka = KafkaSettings { brokers: "127.0.0.1:1".to_owned(), ..testing::kafka() };
    let error = topics::check(&kafka, &[Topic::Events]).await.unwrap_err();
    assert!(matches!(error, TopicsError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn settings_that_cannot_work_are_told_apart_from_an_unreachable_broker() {
    let security = KafkaSecurity {
        security_protocol: SecurityProtocol::Ssl,
        ca_file: Some("/nowhere.pem".into()),
        ..KafkaSecurity::default()
    };
    let kafka = KafkaSettings { security, ..testing::kafka() };
    let error = topics::check(&kafka, &[Topic::Events]).await.unwrap_err();
    assert!(matches!(error, TopicsError::Client(_)), "{error}");
}
