use floodway_runtime::{
    config_feed::ConfigFeed,
    health::Health,
    kafka::KafkaSettings,
    testing::{TestTopics, kafka},
};
use floodway_schemas::{
    config::{CONFIG_VERSION, ConfigChange, Tenant, TenantState},
    ids::TenantId,
    topic::Topic,
};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use std::time::Duration;
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(20);

async fn publish(kafka: &KafkaSettings, key: &str, value: Option<&[u8]>) {
    let producer: FutureProducer = kafka.producer().create().unwrap();
    let topic = kafka.topic(Topic::Config);
    let mut record = FutureRecord::<str, [u8]>::to(&topic).key(key);
    record.payload = value;
    producer.send(record, DEADLINE).await.unwrap();
}

#[tokio::test]
async fn the_feed_applies_what_is_there_then_what_comes_and_skips_what_it_cannot_read() {
    let topics = TestTopics::create(1).await;
    let tenant = Tenant {
        v: CONFIG_VERSION,
        version: 1,
        id: TenantId(uuid::Uuid::from_u128(7)),
        name: "Shop".to_owned(),
        state: TenantState::Active,
        events_per_second: None,
        requests_per_second: None,
    };
    let created = ConfigChange::Tenant(tenant);
    let key = created.key().to_string();
    publish(&topics.kafka, "robot/1", Some(b"{}")).await;
    publish(&topics.kafka, &key, created.encode().unwrap().as_deref()).await;

    let shutdown = CancellationToken::new();
    let topic = topics.kafka.topic(Topic::Config);
    let (changes_tx, mut changes) = mpsc::unbounded_channel();
    let feed = ConfigFeed::start(&topics.kafka, shutdown.clone(), move |change, offset| {
        changes_tx.send((change, offset)).unwrap();
    })
    .unwrap();
    assert!(timeout(DEADLINE, feed.caught_up()).await.unwrap());
    assert_eq!((feed.skipped(), changes.try_recv().unwrap()), (1, (created.clone(), 1)));

    publish(&topics.kafka, &key, None).await;
    let deleted = timeout(DEADLINE, changes.recv()).await.unwrap().unwrap();
    assert_eq!(deleted, (ConfigChange::Deleted(created.key()), 2));

    // A transaction leaves its marker after the last record: the feed's position is never the topic's end.
    let producer: FutureProducer =
        topics.kafka.producer().set("transactional.id", topics.kafka.group("publisher")).create().unwrap();
    tokio::task::spawn_blocking(move || {
        producer.init_transactions(DEADLINE).unwrap();
        producer.begin_transaction().unwrap();
        let sent = producer.send_result(FutureRecord::to(&topic).key("robot/2").payload("{}"));
        drop(sent.map_err(|(error, _)| error).unwrap());
        producer.commit_transaction(DEADLINE).unwrap();
    })
    .await
    .unwrap();

    // Nothing changes any more, and the feed goes on to say that it knows.
    let freshness = feed.freshness();
    for _ in 0..4 {
        let before = freshness.current_as_of();
        assert!(before.is_some());
        timeout(DEADLINE, async {
            while freshness.current_as_of() == before {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .unwrap();
    }
    assert!(freshness.is_within(DEADLINE) && !freshness.is_within(Duration::ZERO));

    shutdown.cancel();
    tokio::task::spawn_blocking(move || feed.join()).await.unwrap();
    topics.delete().await;
}

#[tokio::test]
async fn a_feed_without_kafka_never_claims_to_be_current() {
    let mut kafka = floodway_runtime::testing::kafka();
    // Reserved and closed on every sane machine.
    kafka.brokers = "127.0.0.1:1".to_owned();
    let shutdown = CancellationToken::new();
    let feed = ConfigFeed::start(&kafka, shutdown.clone(), |_, _| {}).unwrap();
    let freshness = feed.freshness();
    // Longer than a check takes.
    assert!(timeout(Duration::from_secs(3), feed.caught_up()).await.is_err());
    assert_eq!(freshness.current_as_of(), None);
    shutdown.cancel();
    tokio::task::spawn_blocking(move || feed.join()).await.unwrap();
}

#[tokio::test]
async fn a_feed_that_cannot_read_has_its_component_say_why() {
    // Nobody made topics under this prefix.
    let kafka = kafka();
    let shutdown = CancellationToken::new();
    let feed = ConfigFeed::start(&kafka, shutdown.clone(), |_, _| {}).unwrap();
    let health = Health::default();
    let component = health.component("config", true);
    let told = async {
        while !health.reports()[0].reason.as_ref().is_some_and(|reason| reason.contains("cannot be read: ")) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        caught_up = feed.caught_up_telling(&component) => panic!("ended: {caught_up}"),
        told = timeout(DEADLINE, told) => told.unwrap_or_else(|_| panic!("{:?}", health.reports())),
    }
    shutdown.cancel();
    tokio::task::spawn_blocking(move || feed.join()).await.unwrap();
}
