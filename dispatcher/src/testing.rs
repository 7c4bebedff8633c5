//! For unit tests: a Kafka in this process, and what delivers to it, whole or in part.

use crate::{
    Dispatcher, Settings,
    budget::{Budget, Source},
    connect::Connector,
    deliver::Deliverer,
    delivery::{Delivery, Order},
    headers::PreparedEvent,
    kafka_health::KafkaHealth,
    metrics::Metrics,
    outcomes::Outcomes,
    partition::{Partition, Receipt},
    subscriptions::{Endpoint, Subscriptions},
    tracker::Progress,
};
use bytes::Bytes;
use floodway_runtime::{
    clock,
    kafka::KafkaSettings,
    testing::{self, SEALING_KEY},
};
use floodway_schemas::{
    config::{ConfigChange, Subscription},
    event::Event,
    ids::RunId,
    outcome::{Cause, Via},
    seal::SealingKeys,
    topic::Topic,
};
use rdkafka::{mocking::MockCluster, producer::DefaultProducerContext};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use uuid::Uuid;

/// How long a test waits for anything.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Waits until something is so.
pub(crate) fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A cluster in this process, which can be told to fail.
pub(crate) fn cluster_of(brokers: i32) -> (MockCluster<'static, DefaultProducerContext>, KafkaSettings) {
    let cluster = MockCluster::new(brokers).unwrap();
    let mut kafka = testing::kafka();
    kafka.brokers = cluster.bootstrap_servers();
    for topic in [Topic::Events, Topic::Due, Topic::Replays, Topic::Config, Topic::Outcomes] {
        cluster.create_topic(&kafka.topic(topic), 2, 1).unwrap();
    }
    (cluster, kafka)
}

/// A dispatcher that has not begun.
pub(crate) fn dispatcher(kafka: &KafkaSettings) -> Dispatcher {
    let context = testing::context(kafka.clone());
    let settings = Settings::default();
    Dispatcher {
        connector: Connector::new(&settings).unwrap(),
        health: Arc::new(KafkaHealth::new(context.health.component("kafka", true))),
        config_health: context.health.component("config", true),
        settings,
        context,
    }
}

/// What delivers, without threads that make deliveries.
pub(crate) struct TestDeliverer {
    /// The deliverer.
    pub(crate) deliverer: Arc<Deliverer>,
    _cluster: MockCluster<'static, DefaultProducerContext>,
}

impl TestDeliverer {
    /// One whose outcomes are acknowledged.
    pub(crate) fn start() -> Self {
        let (cluster, kafka) = cluster_of(1);
        let Dispatcher { settings, connector, health, .. } = dispatcher(&kafka);
        let metrics = Arc::new(Metrics::new());
        let outcomes = Arc::new(Outcomes::start(&kafka, Arc::clone(&metrics), health).unwrap());
        let deliverer = Deliverer::new(&settings, connector, outcomes, metrics, Arc::default());
        Self { deliverer: Arc::new(deliverer), _cluster: cluster }
    }
}

impl Drop for TestDeliverer {
    fn drop(&mut self) {
        self.deliverer.outcomes.end();
    }
}

/// A partition of which nothing was read.
pub(crate) fn partition() -> Arc<Partition> {
    Arc::new(Partition::new(0, RunId(Uuid::nil()), Progress::starting_at(0), 1_000))
}

/// The endpoint of a subscription with a lane that nobody else has.
pub(crate) fn endpoint() -> Arc<Endpoint> {
    let subscription: Subscription =
        serde_json::from_str(include_str!("../../schemas/golden/config-subscription.json")).unwrap();
    let (index, id) = (Subscriptions::default(), subscription.id);
    let sealing = SealingKeys::parse(&SEALING_KEY.to_owned().into()).unwrap();
    index.apply(ConfigChange::Subscription(Box::new(subscription)), &sealing);
    index.get(id).unwrap()
}

/// The one delivery of the record of `partition` at `offset`, which is received with it.
pub(crate) fn delivery(
    budget: &Arc<Budget>,
    endpoint: &Arc<Endpoint>,
    partition: &Arc<Partition>,
    offset: i64,
) -> Delivery {
    let envelope = Bytes::from_static(include_bytes!("../../schemas/golden/event-minimal.json"));
    let event = Arc::new(PreparedEvent::new(&Event::decode(&envelope).unwrap(), &envelope));
    partition.receive(offset, 1);
    let order = Order {
        permit: budget.take(Source::Events, event.tenant, envelope.len()),
        event,
        subscription: endpoint.subscription.id,
        record: false,
        cause: Cause::Event { run: partition.run(), partition: partition.id(), offset },
        attempt: 1,
        since: clock::now(),
        receipt: Some(Receipt::new(partition, offset)),
    };
    Delivery { order, endpoint: Arc::clone(endpoint), received: Instant::now(), via: Via::Main }
}
