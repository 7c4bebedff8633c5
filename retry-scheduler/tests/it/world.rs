//! Topics and a database of a test's own, a scheduler on them, and a dispatcher's side to talk to it.

use floodway_retry_scheduler::{RetryScheduler, Settings};
use floodway_runtime::{Context, health::Health, testing::TestTopics};
use floodway_schemas::{
    UnixMillis,
    due::{Due, Origin, RetryKey},
    ids::{RunId, SubscriptionId, TenantId},
    outcome::{Cause, ErrorClass, OUTCOME_VERSION, Outcome, OutcomeKind, Via},
    topic::Topic,
};
use floodway_store::{Pool, testing::TestDatabase};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    producer::{BaseProducer, BaseRecord, Producer},
};
use secrecy::SecretString;
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Longest wait for anything. Generous: the machine is shared.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) const TENANT: TenantId = TenantId(Uuid::from_u128(0x01938f2e_0000_7000_8000_000000000001));
pub(crate) const SUBSCRIPTION: SubscriptionId =
    SubscriptionId(Uuid::from_u128(0x01938f2e_0000_7000_8000_000000000002));

/// An event whose spacing no serializer would choose.
pub(crate) const EVENT: &str = "{\"id\" : \"order-1\",\"n\":1.0,  \"data\":{\"b\":1,\"a\":2}}";

pub(crate) struct World {
    pub(crate) topics: TestTopics,
    pub(crate) database: TestDatabase,
    pub(crate) pool: Pool,
    producer: BaseProducer,
}

/// A scheduler that runs.
pub(crate) struct Running {
    tasks: JoinSet<()>,
    shutdown: CancellationToken,
    pub(crate) health: Health,
}

/// A record that a test read.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) partition: i32,
    pub(crate) key: String,
    pub(crate) value: Vec<u8>,
    pub(crate) at: Instant,
}

/// Small and quick, so that tests create few partitions and wait for little.
pub(crate) fn settings() -> Settings {
    Settings {
        linger: Duration::from_millis(5),
        max_delay: Duration::from_secs(86_400),
        retry_hours: 1,
        retry_days: 3,
        history_hours: 2,
        cursor_interval: Duration::from_millis(50),
        idle_interval: Duration::from_millis(200),
        maintenance_interval: Duration::from_millis(500),
        ..Settings::default()
    }
}

/// An outcome of the `n`th event; its retry is due `delay` later.
pub(crate) fn outcome(kind: OutcomeKind, n: i64, delay: Duration) -> Outcome<'static> {
    let at = floodway_runtime::clock::now();
    Outcome {
        v: OUTCOME_VERSION,
        cause: Cause::Event { run: RunId(Uuid::from_u128(7)), partition: 0, offset: n },
        kind,
        tenant: TENANT,
        subscription: SUBSCRIPTION,
        event_id: format!("order-{n}").into(),
        event_type: "order.created".into(),
        key: "customer-9".into(),
        attempt: 2,
        since: UnixMillis(at.0 - 1_000),
        at,
        not_before: matches!(kind, OutcomeKind::Retry | OutcomeKind::Deferred | OutcomeKind::InDoubt)
            .then(|| at.plus(delay)),
        reason: None,
        status: Some(503),
        error: Some(ErrorClass::Status),
        via: Via::Main,
        detail: None,
        duration_ms: Some(12),
        response: Some("busy".into()),
        exchange: None,
        record: false,
        batch: None,
        event: (kind != OutcomeKind::Delivered).then(|| serde_json::from_str(EVENT).unwrap()),
    }
}

pub(crate) fn retry(n: i64, delay_ms: u64) -> Outcome<'static> {
    outcome(OutcomeKind::Retry, n, Duration::from_millis(delay_ms))
}

impl World {
    pub(crate) async fn new(partitions: i32) -> Self {
        Self::with(partitions, TestDatabase::create()).await
    }

    /// On a database that is just being made.
    pub(crate) async fn with(partitions: i32, database: impl Future<Output = TestDatabase>) -> Self {
        let (topics, database) = tokio::join!(TestTopics::create(partitions), database);
        let producer = topics.kafka.producer().create().unwrap();
        Self { pool: database.pool(), topics, database, producer }
    }

    pub(crate) async fn start(&self) -> Running {
        self.start_with(settings(), self.pool()).await
    }

    pub(crate) async fn start_with(&self, settings: Settings, pool: Pool) -> Running {
        self.start_in(settings, self.topics.context(), pool).await
    }

    pub(crate) async fn start_in(&self, settings: Settings, context: Context, pool: Pool) -> Running {
        let (shutdown, health) = (context.shutdown.clone(), context.health.clone());
        let scheduler = RetryScheduler::bind(settings, context, pool).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { scheduler.run().await.unwrap() });
        Running { tasks, shutdown, health }
    }

    /// A pool for a scheduler, apart from the test's own.
    pub(crate) fn pool(&self) -> Pool {
        Pool::new(&self.database.url, "scheduler-under-test", 8).unwrap()
    }

    /// A pool that reaches the database through another address.
    pub(crate) fn pool_through(&self, address: std::net::SocketAddr) -> Pool {
        let url = self.database.url_text();
        let at = url.find('@').unwrap() + 1;
        let end = at + url[at..].find('/').unwrap();
        let url: SecretString = format!("{}{address}{}", &url[..at], &url[end..]).into();
        Pool::new(&url, "scheduler-under-test", 8).unwrap()
    }

    /// The address of the database's server.
    pub(crate) fn server(&self) -> String {
        let url = self.database.url_text();
        let at = url.find('@').unwrap() + 1;
        url[at..at + url[at..].find('/').unwrap()].to_owned()
    }

    /// Writes outcomes to a shard and waits for their acknowledgements.
    pub(crate) fn write(&self, shard: i32, outcomes: &[Outcome<'_>]) {
        outcomes.iter().for_each(|outcome| self.write_bytes(shard, &outcome.encode().unwrap()));
        self.producer.flush(DEADLINE).unwrap();
    }

    pub(crate) fn write_bytes(&self, shard: i32, value: &[u8]) {
        self.write_bytes_at(shard, value, floodway_runtime::clock::now().0);
    }

    /// From now on a record of `outcomes` has its producer's time, as in installations of before.
    pub(crate) async fn takes_producers_times(&self) {
        let topic = self.topics.kafka.topic(Topic::Outcomes);
        let limit = Topic::Outcomes.max_record_bytes().to_string();
        let settings = AlterConfig::new(ResourceSpecifier::Topic(&topic))
            .set("message.timestamp.type", "CreateTime")
            .set("max.message.bytes", &limit);
        let admin: AdminClient<DefaultClientContext> = self.topics.kafka.client().create().unwrap();
        let altered = admin.alter_configs([&settings], &AdminOptions::new()).await.unwrap();
        altered.into_iter().for_each(|altered| drop(altered.unwrap()));
    }

    /// From now on `due` refuses records with more bytes than these, and the batches that they are in.
    pub(crate) async fn due_takes(&self, bytes: usize) {
        let (topic, bytes) = (self.topics.kafka.topic(Topic::Due), bytes.to_string());
        let settings = AlterConfig::new(ResourceSpecifier::Topic(&topic)).set("max.message.bytes", &bytes);
        let admin: AdminClient<DefaultClientContext> = self.topics.kafka.client().create().unwrap();
        let altered = admin.alter_configs([&settings], &AdminOptions::new()).await.unwrap();
        altered.into_iter().for_each(|altered| drop(altered.unwrap()));
    }

    /// Writes outcomes as a producer with another clock.
    pub(crate) fn write_as_of(&self, shard: i32, outcomes: &[Outcome<'_>], ahead_ms: i64) {
        let at = floodway_runtime::clock::now().0 + ahead_ms;
        outcomes.iter().for_each(|outcome| self.write_bytes_at(shard, &outcome.encode().unwrap(), at));
        self.producer.flush(DEADLINE).unwrap();
    }

    fn write_bytes_at(&self, shard: i32, value: &[u8], at_ms: i64) {
        let topic = self.topics.kafka.topic(Topic::Outcomes);
        let record = BaseRecord::to(&topic).partition(shard).key("k").payload(value).timestamp(at_ms);
        self.producer.send(record).unwrap();
        self.producer.poll(Duration::ZERO);
    }

    /// Reads a topic from its beginning until `enough` says so of what was read.
    pub(crate) async fn read(
        &self,
        topic: Topic,
        enough: impl Fn(&[Record]) -> bool + Send + 'static,
    ) -> Vec<Record> {
        let kafka = self.topics.kafka.clone();
        let partitions = topics_partitions(&self.producer, &kafka.topic(topic));
        tokio::task::spawn_blocking(move || {
            let consumer: BaseConsumer = kafka.reader().set("group.id", "unused").create().unwrap();
            let mut assignment = TopicPartitionList::new();
            for partition in 0..partitions {
                assignment.add_partition_offset(&kafka.topic(topic), partition, Offset::Beginning).unwrap();
            }
            consumer.assign(&assignment).unwrap();
            let (mut records, deadline) = (Vec::new(), Instant::now() + DEADLINE);
            while !enough(&records) {
                assert!(Instant::now() < deadline, "{} records on {topic:?} in time", records.len());
                if let Some(Ok(record)) = consumer.poll(Duration::from_millis(50)) {
                    records.push(Record {
                        partition: record.partition(),
                        key: String::from_utf8(record.key().unwrap().to_vec()).unwrap(),
                        value: record.payload().unwrap().to_vec(),
                        at: Instant::now(),
                    });
                }
            }
            records
        })
        .await
        .unwrap()
    }

    /// Reads `due` until `n` different retries were seen.
    pub(crate) async fn read_due(&self, n: usize) -> Vec<Record> {
        self.read(Topic::Due, move |records| records.len() >= n && retry_keys(records).len() >= n).await
    }

    /// Waits for so many records on `due`, for as long as it takes to replace clients that have lost their brokers.
    pub(crate) async fn due_becomes_long(&self, n: i64) {
        let topic = self.topics.kafka.topic(Topic::Due);
        let partitions = topics_partitions(&self.producer, &topic);
        let deadline = Instant::now() + 3 * DEADLINE;
        loop {
            let ends = (0..partitions).map(|partition| {
                self.producer.client().fetch_watermarks(&topic, partition, DEADLINE).unwrap().1
            });
            let records: i64 = ends.sum();
            if records >= n {
                return;
            }
            assert!(Instant::now() < deadline, "{records} of {n} records");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Members of the schedulers' group.
    pub(crate) fn members(&self) -> usize {
        let group = self.topics.kafka.group("retry-scheduler");
        let groups = self.producer.client().fetch_group_list(Some(&group), DEADLINE).unwrap();
        groups.groups().iter().map(|group| group.members().len()).sum()
    }

    /// Waits until a shard's position is what the group was told.
    pub(crate) async fn committed_becomes(&self, shard: i32, position: i64) {
        let (kafka, topic) = (self.topics.kafka.clone(), self.topics.kafka.topic(Topic::Outcomes));
        let wait = move || {
            let reader: BaseConsumer =
                kafka.reader().set("group.id", kafka.group("retry-scheduler")).create().unwrap();
            let deadline = Instant::now() + DEADLINE;
            loop {
                let mut wanted = TopicPartitionList::new();
                wanted.add_partition(&topic, shard);
                let committed = reader.committed_offsets(wanted, DEADLINE).unwrap();
                if committed.elements()[0].offset() == Offset::Offset(position) {
                    return;
                }
                assert!(Instant::now() < deadline, "{committed:?}");
                std::thread::sleep(Duration::from_millis(100));
            }
        };
        tokio::task::spawn_blocking(wait).await.unwrap();
    }

    /// One number from the database.
    pub(crate) async fn number(&self, sql: &str) -> i64 {
        self.pool.get().await.unwrap().query_one(sql, &[]).await.unwrap().get(0)
    }

    pub(crate) async fn execute(&self, sql: &str) {
        self.pool.get().await.unwrap().batch_execute(sql).await.unwrap();
    }

    /// Waits until a query yields a number that will do.
    pub(crate) async fn number_becomes(&self, sql: &str, will_do: impl Fn(i64) -> bool) -> i64 {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let number = self.number(sql).await;
            if will_do(number) {
                return number;
            }
            assert!(Instant::now() < deadline, "still {number}: {sql}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn end(self) {
        drop(self.pool);
        self.database.drop().await;
        self.topics.delete().await;
    }
}

impl Running {
    /// Ends it in good order.
    pub(crate) async fn stop(mut self) {
        self.shutdown.cancel();
        tokio::time::timeout(DEADLINE, self.tasks.join_next()).await.unwrap().unwrap().unwrap();
    }

    /// Ends it without draining. Unlike a kill it lets a call to the database finish: see [`crate::process`] for those.
    pub(crate) async fn kill(mut self) {
        self.tasks.shutdown().await;
    }

    /// Waits until a component's state will do: `None` is up, else the reason.
    pub(crate) async fn health_becomes(&self, component: &str, will_do: impl Fn(Option<&str>) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let reports = self.health.reports();
            let report = reports.iter().find(|report| report.name == component);
            let state = report.map(|report| report.reason.as_deref());
            if state.is_some_and(&will_do) {
                return;
            }
            assert!(Instant::now() < deadline, "{component} is {state:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn topics_partitions(producer: &BaseProducer, topic: &str) -> i32 {
    let metadata = producer.client().fetch_metadata(Some(topic), DEADLINE).unwrap();
    i32::try_from(metadata.topics()[0].partitions().len()).unwrap()
}

pub(crate) fn retry_key(record: &Record) -> RetryKey {
    match Due::decode(&record.value).unwrap().origin {
        Origin::RetryKey(key) => key,
        origin => panic!("{origin:?} on due"),
    }
}

pub(crate) fn retry_keys(records: &[Record]) -> BTreeSet<RetryKey> {
    records.iter().map(retry_key).collect()
}
