//! Topics of a test's own, what the other services would write to them, and what the dispatcher writes.

use floodway_dispatcher::{Dispatcher, Error, Settings};
use floodway_runtime::{Context, clock, testing::TestTopics};
use floodway_schemas::{
    UnixMillis,
    config::{ConfigChange, Format, History, SigningSecret, Subscription, SubscriptionState},
    due::{DUE_VERSION, Due, Origin},
    ids::{SubscriptionId, TenantId},
    outcome::Outcome,
    retry_policy::RetryPolicy,
    topic::Topic,
};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer},
    message::{BorrowedMessage, Headers},
    producer::{BaseProducer, BaseRecord, Producer},
};
use serde_json::Value;
use std::time::{Duration, Instant};
use tokio::task::{AbortHandle, JoinSet};
use url::Url;
use uuid::Uuid;

/// How long a test waits for anything before it fails.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
/// A signing secret.
pub(crate) const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
/// Another one.
pub(crate) const OTHER_SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

/// The result of `work`; fails the test when it does not come.
pub(crate) async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work).await.unwrap_or_else(|_| panic!("no {what} within {DEADLINE:?}"))
}

/// Waits until `condition` holds; fails the test when it does not.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) struct World {
    pub(crate) topics: TestTopics,
    pub(crate) tenant: TenantId,
    producer: BaseProducer,
    running: JoinSet<Result<(), Error>>,
}

/// A dispatcher under test.
pub(crate) struct Running {
    pub(crate) context: Context,
    abort: AbortHandle,
}

impl Running {
    /// Ends it without a drain, as a crash would.
    pub(crate) fn crash(&self) {
        self.abort.abort();
    }
}

impl World {
    pub(crate) async fn create(partitions: i32) -> Self {
        let topics = TestTopics::create(partitions).await;
        let producer = topics.kafka.producer().create().unwrap();
        Self { topics, tenant: TenantId(Uuid::now_v7()), producer, running: JoinSet::new() }
    }

    /// Ends the test: drains every dispatcher and deletes the topics.
    pub(crate) async fn end(mut self, running: &[&Running]) {
        for running in running {
            running.context.shutdown.cancel();
        }
        within("end of the dispatchers", async {
            while let Some(result) = self.running.join_next().await {
                match result {
                    Ok(result) => result.unwrap(),
                    Err(error) => assert!(error.is_cancelled(), "{error}"),
                }
            }
        })
        .await;
        self.topics.delete().await;
    }

    /// Settings for tests: loopback is open, and nothing waits longer than it must.
    pub(crate) fn settings() -> Settings {
        Settings {
            allowed_networks: vec!["127.0.0.0/8".parse().unwrap()],
            commit_interval: Duration::from_millis(50),
            max_timeout: Duration::from_secs(120),
            ..Settings::default()
        }
    }

    pub(crate) async fn run(&mut self, settings: Settings) -> Running {
        self.run_in(settings, self.topics.context()).await
    }

    /// Starts a dispatcher in a context of the test's making.
    pub(crate) async fn run_in(&mut self, settings: Settings, context: Context) -> Running {
        let dispatcher = Dispatcher::bind(settings, context.clone()).await.unwrap();
        let abort = self.running.spawn(dispatcher.run());
        Running { context, abort }
    }

    /// Waits for one of the dispatchers to end, and returns how.
    pub(crate) async fn ended(&mut self) -> Result<(), Error> {
        within("end of a dispatcher", self.running.join_next()).await.unwrap().unwrap()
    }

    /// A subscription to everything at `url`, not yet published.
    pub(crate) fn subscription(&self, url: Url) -> Subscription {
        let id = SubscriptionId(Uuid::now_v7());
        Subscription {
            v: 1,
            version: 1,
            id,
            tenant: self.tenant,
            url,
            types: vec!["*".parse().unwrap()],
            state: SubscriptionState::Active,
            paused_since: None,
            active_from: UnixMillis(0),
            secrets: vec![self.seal(id, SECRET, None)],
            retry: RetryPolicy::new(vec![10.0], 0.0, 3600.0).unwrap(),
            history: History::Counters,
            // Longer than a test waits: an attempt that is to be held is.
            timeout_ms: 120_000,
            headers: Default::default(),
            format: Format::Data,
            filter: None,
            batch: None,
            fallback_url: None,
            breaker: None,
            requests_per_second: None,
        }
    }

    pub(crate) fn seal(
        &self,
        subscription: SubscriptionId,
        secret: &str,
        expires_at: Option<UnixMillis>,
    ) -> SigningSecret {
        let sealing = self.topics.context().sealing;
        let sealed = sealing.seal(&secret.to_owned().into(), &subscription.to_string(), [7; 12]).unwrap();
        SigningSecret { sealed, public_key: None, expires_at }
    }

    /// Publishes a subscription as the control plane would: it is on the topic before this returns.
    pub(crate) fn publish(&self, subscription: &Subscription) {
        let change = ConfigChange::Subscription(Box::new(subscription.clone()));
        self.produce(Topic::Config, Some(0), &change.key().to_string(), &change.encode().unwrap().unwrap());
        self.flush();
    }

    /// An event of `event_type` as ingest would write it, with `data` as its JSON.
    pub(crate) fn event(&self, id: &str, event_type: &str, data: &str) -> String {
        self.event_received_at(id, event_type, data, clock::now())
    }

    pub(crate) fn event_received_at(&self, id: &str, event_type: &str, data: &str, at: UnixMillis) -> String {
        let (tenant, at) = (self.tenant, at.to_rfc3339());
        format!(
            r#"{{"specversion":"1.0","id":"{id}","source":"/test","type":"{event_type}","tenantid":"{tenant}","receivedat":"{at}","data":{data}}}"#
        )
    }

    /// Writes a plain event.
    pub(crate) fn send(&self, id: &str, event_type: &str) {
        self.produce(Topic::Events, None, id, self.event(id, event_type, "{}").as_bytes());
    }

    /// Writes a due record or a replay.
    pub(crate) fn send_due(
        &self,
        topic: Topic,
        subscription: SubscriptionId,
        origin: Origin,
        attempt: u32,
        event: &str,
        since: UnixMillis,
    ) {
        let event = serde_json::from_str(event).unwrap();
        let due = Due {
            v: DUE_VERSION,
            origin,
            tenant: self.tenant,
            subscription,
            attempt,
            since,
            lease: false,
            event,
        };
        self.produce(topic, None, &subscription.to_string(), &due.encode().unwrap());
    }

    pub(crate) fn produce(&self, topic: Topic, partition: Option<i32>, key: &str, payload: &[u8]) {
        let topic = self.topics.kafka.topic(topic);
        let mut record = BaseRecord::to(&topic).key(key).payload(payload);
        record.partition = partition;
        self.producer.send(record).map_err(|(error, _)| error).unwrap();
    }

    /// Writes a tombstone, as for a subscription that was deleted.
    pub(crate) fn produce_tombstone(&self, topic: Topic, key: &str) {
        let topic = self.topics.kafka.topic(topic);
        let record = BaseRecord::<str, [u8]>::to(&topic).partition(0).key(key);
        self.producer.send(record).map_err(|(error, _)| error).unwrap();
    }

    /// Waits until everything written is on the broker.
    pub(crate) fn flush(&self) {
        self.producer.flush(DEADLINE).unwrap();
    }

    /// Offset and metadata that a group committed for a partition.
    pub(crate) fn committed(&self, topic: Topic, group: &str, partition: i32) -> Option<(i64, String)> {
        let consumer = self.bystander(group);
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.topics.kafka.topic(topic), partition);
        let committed = consumer.committed_offsets(list, DEADLINE).unwrap();
        let element = &committed.elements()[0];
        match element.offset() {
            Offset::Offset(offset) => Some((offset, element.metadata().to_owned())),
            _ => None,
        }
    }

    /// How many partitions of a topic each member of a group has, in order. None while they change hands.
    pub(crate) fn assigned(&self, topic: Topic, group: &str) -> Vec<i32> {
        let group = self.topics.kafka.group(group);
        let list = self.bystander("unused").fetch_group_list(Some(&group), DEADLINE).unwrap();
        let stable = list.groups().iter().filter(|group| group.state() == "Stable");
        // Version, number of topics (one), name with its length, number of partitions: integers of 2, 4, 2 and 4 bytes.
        let at = 8 + self.topics.kafka.topic(topic).len();
        let count = |assignment: &[u8]| {
            assignment.get(at..at + 4).map_or(0, |n| i32::from_be_bytes(n.try_into().unwrap()))
        };
        let mut counts: Vec<i32> = stable
            .flat_map(|group| group.members())
            .map(|member| member.assignment().map_or(0, count))
            .collect();
        counts.sort_unstable();
        counts
    }

    /// Commits as Kafka's reset tool does: an offset with empty metadata, while nobody is in the group.
    pub(crate) fn reset(&self, topic: Topic, group: &str, partition: i32, offset: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.topics.kafka.topic(topic), partition, Offset::Offset(offset))
            .unwrap();
        let deadline = Instant::now() + DEADLINE;
        while let Err(error) = self.bystander(group).commit(&list, CommitMode::Sync) {
            assert!(Instant::now() < deadline, "{error}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// A consumer that names the group and never joins it.
    fn bystander(&self, group: &str) -> BaseConsumer {
        self.topics.kafka.reader().set("group.id", self.topics.kafka.group(group)).create().unwrap()
    }

    /// The outcomes, from the first one on.
    pub(crate) fn outcomes(&self) -> OutcomeLog {
        let consumer: BaseConsumer = self.topics.kafka.reader().set("group.id", "unused").create().unwrap();
        let topic = self.topics.kafka.topic(Topic::Outcomes);
        let metadata = consumer.fetch_metadata(Some(&topic), DEADLINE).unwrap();
        let mut list = TopicPartitionList::new();
        for partition in metadata.topics()[0].partitions() {
            list.add_partition_offset(&topic, partition.id(), Offset::Beginning).unwrap();
        }
        consumer.assign(&list).unwrap();
        OutcomeLog { consumer, seen: Vec::new() }
    }
}

/// Reads the `outcomes` topic.
pub(crate) struct OutcomeLog {
    consumer: BaseConsumer,
    pub(crate) seen: Vec<Value>,
}

impl OutcomeLog {
    /// All outcomes so far, at least `count`; fails the test when they do not come.
    pub(crate) async fn at_least(&mut self, count: usize) -> &[Value] {
        let deadline = Instant::now() + DEADLINE;
        while self.seen.len() < count {
            assert!(Instant::now() < deadline, "{} of {count} outcomes: {:?}", self.seen.len(), self.seen);
            match self.consumer.poll(Duration::ZERO) {
                Some(message) => self.seen.push(read(&message.unwrap())),
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
        &self.seen
    }

    /// The first outcome for a subscription.
    pub(crate) async fn of(&mut self, subscription: SubscriptionId) -> Value {
        let id = subscription.to_string();
        for count in 1.. {
            self.at_least(count).await;
            if let Some(found) = self.seen.iter().find(|outcome| outcome["subscription"] == id.as_str()) {
                return found.clone();
            }
        }
        unreachable!("the loop ends by returning or panicking")
    }
}

fn read(message: &BorrowedMessage<'_>) -> Value {
    let payload = message.payload().unwrap();
    let outcome = Outcome::decode(payload).unwrap();
    assert_eq!(message.key().unwrap(), outcome.record_key().as_bytes());
    let header = message.headers().unwrap().get(0);
    assert_eq!((header.key, header.value), ("kind", Some(outcome.kind.as_str().as_bytes())));
    serde_json::from_slice(payload).unwrap()
}
