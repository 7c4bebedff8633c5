//! A running ingest on topics of its own, a tenant with a key, and an HTTP client.

use bytes::Bytes;
use floodway_ingest::{Error, Ingest, Settings};
use floodway_runtime::{
    Context,
    kafka::KafkaSettings,
    testing::{TestTopics, context},
};
use floodway_schemas::{
    api_key,
    config::{ApiKeyRecord, ApiKeyState, CONFIG_VERSION, ConfigChange, Tenant, TenantState},
    ids::{ApiKeyId, TenantId},
    topic::Topic,
};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    message::Headers,
    producer::{BaseProducer, BaseRecord, Producer},
};
use secrecy::ExposeSecret;
use serde_json::Value;
use std::{
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroU32,
    time::{Duration, Instant},
};
use tokio::{net::TcpStream, task::JoinSet, time::sleep};
use uuid::Uuid;

/// Far more than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);
pub(crate) const PARTITIONS: i32 = 3;

pub(crate) struct TestIngest {
    pub(crate) topics: TestTopics,
    pub(crate) context: Context,
    pub(crate) address: SocketAddr,
    pub(crate) sender: Sender,
    running: JoinSet<Result<(), Error>>,
}

/// A tenant with a key.
#[derive(Clone)]
pub(crate) struct Sender {
    pub(crate) tenant: Tenant,
    pub(crate) record: ApiKeyRecord,
    pub(crate) key: String,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// A record as it is on the events topic.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) key: String,
    pub(crate) value: Vec<u8>,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) partition: i32,
}

pub(crate) fn settings() -> Settings {
    Settings { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), workers: 2, ..Settings::default() }
}

impl Sender {
    pub(crate) fn new() -> Self {
        let (tenant, id) = (TenantId(Uuid::now_v7()), ApiKeyId(Uuid::now_v7()));
        let (key, hash) = api_key::compose("test", id, &[9; 32]).unwrap();
        let (v, version) = (CONFIG_VERSION, 1);
        let state = TenantState::Active;
        Self {
            tenant: Tenant {
                v,
                version,
                id: tenant,
                name: "Test".to_owned(),
                state,
                events_per_second: None,
                requests_per_second: None,
            },
            record: ApiKeyRecord {
                v,
                version,
                id,
                tenant,
                hash,
                state: ApiKeyState::Active,
                expires_at: None,
                events_per_second: None,
                requests_per_second: None,
            },
            key: key.expose_secret().to_owned(),
        }
    }

    pub(crate) fn with_rate(mut self, events_per_second: u32) -> Self {
        self.tenant.events_per_second = NonZeroU32::new(events_per_second);
        self
    }

    pub(crate) fn changes(&self) -> [ConfigChange; 2] {
        [ConfigChange::Tenant(self.tenant.clone()), ConfigChange::ApiKey(self.record.clone())]
    }
}

impl TestIngest {
    /// A server that is ready, with a sender it knows.
    pub(crate) async fn start(settings: Settings) -> Self {
        Self::start_for(settings, Sender::new()).await
    }

    pub(crate) async fn start_for(settings: Settings, sender: Sender) -> Self {
        let topics = TestTopics::create(PARTITIONS).await;
        configure(&topics.kafka, &sender.changes());
        let context = topics.context();
        let this = Self::start_in(settings, context, topics, sender).await;
        this.ready().await;
        this
    }

    /// A server in a context of the test's making.
    pub(crate) async fn start_in(
        settings: Settings,
        context: Context,
        topics: TestTopics,
        sender: Sender,
    ) -> Self {
        let ingest = Ingest::bind(settings, context.clone()).await.unwrap();
        let address = ingest.address();
        let mut running = JoinSet::new();
        running.spawn(ingest.run());
        Self { topics, context, address, sender, running }
    }

    pub(crate) async fn ready(&self) {
        eventually("ready", || self.context.health.is_ready()).await;
    }

    /// Sends a body as JSON with the sender's key.
    pub(crate) async fn post(&self, body: impl Into<Bytes>) -> Reply {
        self.send(self.request().body(Full::new(body.into())).unwrap()).await
    }

    /// A request with everything but its body.
    pub(crate) fn request(&self) -> http::request::Builder {
        Request::post("/v1/events")
            .header("host", "ingest")
            .header("authorization", format!("Bearer {}", self.sender.key))
            .header("content-type", "application/json")
    }

    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Reply {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut client, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        Reply::read(client.send_request(request).await.unwrap()).await
    }

    /// Sends over HTTP/2 with prior knowledge, several requests at once on one connection.
    pub(crate) async fn send_http2(&self, requests: Vec<Request<Full<Bytes>>>) -> Vec<Reply> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (client, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        let mut sent = JoinSet::new();
        for request in requests {
            let mut client = client.clone();
            sent.spawn(async move { Reply::read(client.send_request(request).await.unwrap()).await });
        }
        sent.join_all().await
    }

    /// The tenant's records on the events topic, once there are `count` of them.
    pub(crate) async fn stored(&self, count: usize) -> Vec<Stored> {
        stored(&self.topics.kafka, self.sender.tenant.id, count).await
    }

    /// Cancels the shutdown token and waits for `run` to return.
    pub(crate) async fn stop(mut self) -> TestTopics {
        self.context.shutdown.cancel();
        let ended = tokio::time::timeout(PATIENCE, self.running.join_next()).await;
        ended.expect("the server did not end").unwrap().unwrap().unwrap();
        self.topics
    }

    pub(crate) async fn finish(self) {
        self.stop().await.delete().await;
    }
}

impl Reply {
    pub(crate) async fn read(response: Response<Incoming>) -> Self {
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Self { status: head.status.as_u16(), headers: head.headers, body }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(crate) fn is_problem(&self) -> bool {
        self.header("content-type") == Some("application/problem+json")
    }
}

/// The context of a server whose Kafka is at `brokers`.
pub(crate) fn context_at(topics: &TestTopics, brokers: String) -> Context {
    context(KafkaSettings { brokers, ..topics.kafka.clone() })
}

pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Publishes changes to the config topic.
pub(crate) fn configure(kafka: &KafkaSettings, changes: &[ConfigChange]) {
    let producer: BaseProducer = kafka.producer().create().unwrap();
    let topic = kafka.topic(Topic::Config);
    for change in changes {
        let (key, value) = (change.key().to_string(), change.encode().unwrap());
        let record = BaseRecord::<str, Vec<u8>>::to(&topic).key(&key);
        let record = match &value {
            Some(value) => record.payload(value),
            None => record,
        };
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
}

pub(crate) async fn stored(kafka: &KafkaSettings, tenant: TenantId, count: usize) -> Vec<Stored> {
    let (kafka, prefix) = (kafka.clone(), format!("{tenant}/"));
    tokio::task::spawn_blocking(move || read_events(&kafka, &prefix, count)).await.unwrap()
}

fn read_events(kafka: &KafkaSettings, prefix: &str, count: usize) -> Vec<Stored> {
    let consumer: BaseConsumer = kafka.reader().set("group.id", "test").create().unwrap();
    let mut partitions = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        partitions.add_partition_offset(&kafka.topic(Topic::Events), partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&partitions).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut found = Vec::new();
    // A little longer than the first empty poll, so that a record too many is noticed.
    let mut quiet = 0;
    while found.len() < count || quiet < 3 {
        assert!(Instant::now() < deadline, "{} of {count} records", found.len());
        let Some(record) = consumer.poll(Duration::from_millis(100)) else {
            quiet += 1;
            continue;
        };
        let Ok(record) = record else { continue };
        let key = String::from_utf8(record.key().unwrap().to_vec()).unwrap();
        if key.starts_with(prefix) {
            let headers = record.headers().map(|headers| {
                headers.iter().map(|h| (h.key.to_owned(), h.value.unwrap_or_default().to_vec())).collect()
            });
            found.push(Stored {
                key,
                value: record.payload().unwrap().to_vec(),
                headers: headers.unwrap_or_default(),
                partition: record.partition(),
            });
        }
    }
    assert_eq!(found.len(), count);
    found
}
