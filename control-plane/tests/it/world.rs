//! A control plane with topics and a database of its own, and a client for it.

use floodway_control_plane::{ControlPlane, Databases, Settings};
use floodway_runtime::{
    Context,
    kafka::KafkaSettings,
    testing::{self, KafkaRelay, TestTopics},
};
use floodway_schemas::{config::ConfigChange, topic::Topic};
use floodway_store::{Pool, testing::TestDatabase};
use http_body_util::{BodyExt, Full};
use hyper::{Request, body::Bytes, header};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
};
use serde_json::Value;
use std::{
    future::Future,
    net::SocketAddr,
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

pub(crate) const ADMIN_KEY: &str = "test-admin-key-0123456789";
/// Generous: the machine may be busy with other tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct World {
    pub(crate) topics: TestTopics,
    pub(crate) database: TestDatabase,
    pub(crate) pool: Pool,
    pub(crate) plane: Plane,
}

/// A running control plane.
pub(crate) struct Plane {
    pub(crate) address: SocketAddr,
    pub(crate) context: Context,
    tasks: JoinSet<()>,
    client: Client<HttpConnector, Full<Bytes>>,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) content_type: String,
    pub(crate) json: Value,
}

pub(crate) fn settings() -> Settings {
    Settings {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        admin_key: Some(ADMIN_KEY.into()),
        publish_deadline: Duration::from_secs(20),
        ..Settings::default()
    }
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::start_with(settings()).await
    }

    pub(crate) async fn start_with(settings: Settings) -> Self {
        let (topics, database) = tokio::join!(TestTopics::create(2), TestDatabase::create());
        let pool = database.pool();
        let plane = Plane::start(settings, topics.context(), pool.clone()).await;
        Self { topics, database, pool, plane }
    }

    /// One whose way to Kafka can be disturbed.
    pub(crate) async fn start_relayed() -> (Self, KafkaRelay) {
        let (topics, database) = tokio::join!(TestTopics::create(2), TestDatabase::create());
        let (pool, (relay, relayed)) = (database.pool(), topics.relayed());
        let plane = Plane::start(settings(), testing::context(relayed), pool.clone()).await;
        (Self { topics, database, pool, plane }, relay)
    }

    /// Ends the control plane and begins another one on the same topics and database; in between, `meanwhile`.
    pub(crate) async fn restart(&mut self, meanwhile: impl AsyncFnOnce(&Pool)) {
        self.plane.stop().await;
        meanwhile(&self.pool).await;
        self.plane = Plane::start(settings(), self.topics.context(), self.pool.clone()).await;
    }

    pub(crate) async fn end(mut self) {
        self.plane.stop().await;
        self.topics.delete().await;
        self.database.drop().await;
    }

    /// A new tenant's id.
    pub(crate) async fn tenant(&self) -> String {
        let answer = self.plane.post("/v1/tenants", r#"{"name":"Acme"}"#).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.text("id")
    }

    /// Id of a new subscription of a tenant.
    pub(crate) async fn subscription(&self, tenant: &str) -> String {
        let path = format!("/v1/tenants/{tenant}/subscriptions");
        let answer = self.plane.post(&path, r#"{"url":"https://example.com/hook"}"#).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.text("id")
    }

    /// Everything that is on the `config` topic now: offset, key and value.
    pub(crate) async fn config_records(&self) -> Vec<Record> {
        records(self.topics.kafka.clone(), Topic::Config).await
    }

    /// Everything that is on the `outcomes` topic now.
    pub(crate) async fn outcome_records(&self) -> Vec<Record> {
        records(self.topics.kafka.clone(), Topic::Outcomes).await
    }

    /// Everything that is on the `replays` topic now.
    pub(crate) async fn replay_records(&self) -> Vec<Record> {
        records(self.topics.kafka.clone(), Topic::Replays).await
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) offset: i64,
    pub(crate) key: String,
    pub(crate) value: Option<Vec<u8>>,
}

impl Record {
    pub(crate) fn change(&self) -> ConfigChange {
        ConfigChange::decode(self.key.as_bytes(), self.value.as_deref()).unwrap()
    }
}

/// Reads all partitions of a topic to their ends.
async fn records(kafka: KafkaSettings, topic: Topic) -> Vec<Record> {
    tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer =
            kafka.reader().set("group.id", "none").set("enable.partition.eof", "true").create().unwrap();
        let name = kafka.topic(topic);
        let partitions = topic.partitions(2);
        let mut list = TopicPartitionList::new();
        for partition in 0..partitions {
            list.add_partition_offset(&name, partition, Offset::Beginning).unwrap();
        }
        consumer.assign(&list).unwrap();
        let (mut records, mut ends, deadline) = (Vec::new(), 0, Instant::now() + PATIENCE);
        while ends < partitions {
            assert!(Instant::now() < deadline, "{name} is not readable");
            match consumer.poll(Duration::from_millis(200)) {
                Some(Ok(record)) => records.push(Record {
                    offset: record.offset(),
                    key: String::from_utf8_lossy(record.key().unwrap_or_default()).into_owned(),
                    value: record.payload().map(<[u8]>::to_vec),
                }),
                Some(Err(KafkaError::PartitionEOF(_))) => ends += 1,
                Some(Err(_)) | None => {}
            }
        }
        records
    })
    .await
    .unwrap()
}

impl Plane {
    pub(crate) async fn start(settings: Settings, context: Context, databases: impl Into<Databases>) -> Self {
        let plane = ControlPlane::bind(settings, context.clone(), databases).await.unwrap();
        let address = plane.address();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { plane.run().await.unwrap() });
        Self { address, context, tasks, client: Client::builder(TokioExecutor::new()).build_http() }
    }

    pub(crate) async fn stop(&mut self) {
        self.context.shutdown.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> Answer {
        self.call("POST", path, Some(body)).await
    }

    pub(crate) async fn patch(&self, path: &str, body: &str) -> Answer {
        self.call("PATCH", path, Some(body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.call("DELETE", path, None).await
    }

    /// Calls with the admin key; a body is JSON.
    pub(crate) async fn call(&self, method: &str, path: &str, body: Option<&str>) -> Answer {
        let mut request = Request::builder().method(method).uri(self.url(path));
        request = request.header(header::AUTHORIZATION, format!("Bearer {ADMIN_KEY}"));
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = Full::new(Bytes::from(body.unwrap_or_default().to_owned()));
        self.send(request.body(body).unwrap()).await
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        let response = self.client.request(request).await.unwrap();
        let status = response.status().as_u16();
        let content_type = response
            .headers()
            .get(header::CONTENT_TYPE)
            .map(|value| value.to_str().unwrap().to_owned())
            .unwrap_or_default();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        Answer { status, content_type, json: serde_json::from_slice(&body).unwrap_or(Value::Null) }
    }
}

impl Answer {
    #[track_caller]
    pub(crate) fn text(&self, field: &str) -> String {
        self.json[field].as_str().unwrap_or_else(|| panic!("no text {field} in {self:?}")).to_owned()
    }

    #[track_caller]
    pub(crate) fn offset(&self) -> i64 {
        self.json["config_offset"].as_i64().unwrap_or_else(|| panic!("no config_offset in {self:?}"))
    }

    /// Asserts a problem document with this status whose detail holds `detail`.
    #[track_caller]
    pub(crate) fn is_problem(&self, status: u16, detail: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.content_type, "application/problem+json", "{self:?}");
        assert_eq!(self.json["status"], status, "{self:?}");
        assert!(self.text("type").starts_with("urn:floodway:problem:"), "{self:?}");
        assert!(
            self.json["detail"].as_str().unwrap_or_default().contains(detail),
            "{self:?} lacks {detail:?}"
        );
    }
}

/// Waits until `condition` holds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
