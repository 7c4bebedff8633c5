//! Clients that have lost their brokers for good, while others reach them.

use floodway_runtime::{config_feed::ConfigFeed, testing::TestTopics};
use floodway_schemas::{config::ConfigChange, ids::TenantId, topic::Topic};
use rdkafka::{
    ClientConfig,
    producer::{BaseProducer, BaseRecord, Producer},
};
use std::time::{Duration, Instant};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

/// More than twice what it takes to replace a client.
const DEADLINE: Duration = Duration::from_secs(120);

/// Deletes a tenant that never was: a change as good as any.
fn delete_tenant(kafka: &ClientConfig, topic: &str, id: u128) -> ConfigChange {
    let producer: BaseProducer = kafka.create().unwrap();
    let key = format!("tenant/{}", TenantId(uuid::Uuid::from_u128(id)));
    producer.send(BaseRecord::<str, [u8]>::to(topic).key(&key)).map_err(|(error, _)| error).unwrap();
    producer.flush(DEADLINE).unwrap();
    ConfigChange::decode(key.as_bytes(), None).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feed_whose_client_has_lost_its_brokers_for_good_reads_on() {
    let topics = TestTopics::create(1).await;
    let (relay, relayed) = topics.relayed();
    let (direct, topic) = (topics.kafka.producer(), topics.kafka.topic(Topic::Config));
    let first = delete_tenant(&direct, &topic, 1);
    let (changes_tx, mut changes) = mpsc::unbounded_channel();
    let shutdown = CancellationToken::new();
    let feed = ConfigFeed::start(&relayed, shutdown.clone(), move |change, offset| {
        changes_tx.send((change, offset)).unwrap();
    })
    .unwrap();
    assert!(timeout(DEADLINE, feed.caught_up()).await.unwrap());
    assert_eq!(changes.try_recv().unwrap(), (first, 0));

    relay.loses_clients();
    let cut_off = Instant::now();
    let second = delete_tenant(&direct, &topic, 2);
    assert_eq!(timeout(DEADLINE, changes.recv()).await.unwrap().unwrap(), (second, 1));
    println!("the feed reads again after {:?}", cut_off.elapsed());
    let freshness = feed.freshness();
    timeout(DEADLINE, async {
        while !freshness.is_within(Duration::from_secs(3)) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    shutdown.cancel();
    tokio::task::spawn_blocking(move || feed.join()).await.unwrap();
    topics.delete().await;
}
