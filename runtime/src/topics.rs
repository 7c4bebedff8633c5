//! Creating Floodway's topics, and checking that those on the cluster keep its promises.

use crate::kafka::{KafkaSettings, REQUEST_TIMEOUT};
use floodway_schemas::topic::{SettingRule, Topic, TopicSetting};
use rdkafka::{
    admin::{AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication},
    client::DefaultClientContext,
    error::KafkaError,
    metadata::Metadata,
    types::RDKafkaErrorCode,
};
use std::{collections::HashMap, sync::Arc, time::Duration};
use thiserror::Error;
use tokio::{runtime::Handle, time::Instant};

/// Replicas that a production topic has at least.
pub const PRODUCTION_REPLICAS: i32 = 3;
/// In-sync replicas without which a production topic refuses writes.
pub const PRODUCTION_MIN_INSYNC: u32 = 2;

/// How long a topic just created may take to be known to the broker that is asked.
const PROPAGATION: Duration = Duration::from_secs(20);
/// Pause before it is asked again.
const PROPAGATION_PAUSE: Duration = Duration::from_millis(50);
/// How long the reason why no broker answers is looked for.
const DIAGNOSIS_PATIENCE: Duration = Duration::from_secs(2);

/// What to create.
#[derive(Debug, Clone, Copy)]
pub struct TopicPlan {
    /// Partitions of every topic but `config`, which has one.
    pub partitions: i32,
    /// Replicas of every topic.
    pub replication: i32,
    /// Accepts fewer than [`PRODUCTION_REPLICAS`] replicas: for development and tests only.
    pub dev: bool,
}

/// What `apply` found or did for one topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It was not there and has been created.
    Created(Topic),
    /// It was there and is right.
    Unchanged(Topic),
}

/// Partitions of the topics, as the cluster has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TopicFacts(HashMap<Topic, i32>);

impl TopicFacts {
    /// Partitions of a topic that was checked.
    pub fn partitions(&self, topic: Topic) -> Option<i32> {
        self.0.get(&topic).copied()
    }
}

/// Why the topics cannot be used.
#[derive(Debug, Error)]
pub enum TopicsError {
    /// The cluster does not answer: try again later.
    #[error("Kafka at {brokers} does not answer: {reason}")]
    Unreachable {
        /// The brokers asked.
        brokers: String,
        /// The client's reason.
        reason: String,
    },
    /// The client could not be created: its settings cannot work.
    #[error("Kafka client: {0}")]
    Client(String),
    /// Some topics are missing.
    #[error("topics are missing: {}; create them with `floodway topics apply`", .0.join(", "))]
    Missing(Vec<String>),
    /// Topics have settings that break a promise.
    #[error("topics are not as Floodway needs them: {}", .0.join("; "))]
    Wrong(Vec<String>),
    /// The plan would not survive the loss of a broker.
    #[error(
        "{0} replicas would lose acknowledged events with a broker: use at least {PRODUCTION_REPLICAS}, or --dev for development"
    )]
    TooFewReplicas(i32),
    /// The cluster refused to create a topic.
    #[error("topic {topic} could not be created: {reason}")]
    Refused {
        /// Full name of the topic.
        topic: String,
        /// Kafka's reason.
        reason: String,
    },
}

/// Creates the topics that are missing, then checks all of them.
pub async fn apply(kafka: &KafkaSettings, plan: TopicPlan) -> Result<Vec<Change>, TopicsError> {
    if !plan.dev && plan.replication < PRODUCTION_REPLICAS {
        return Err(TopicsError::TooFewReplicas(plan.replication));
    }
    let cluster = Cluster::connect(kafka)?;
    let found = cluster.metadata().await?;
    let mut changes = Vec::with_capacity(Topic::ALL.len());
    for topic in Topic::ALL {
        if partitions_of(&found, &kafka.topic(topic)).is_some() {
            changes.push(Change::Unchanged(topic));
        } else {
            cluster.create(topic, plan).await?;
            changes.push(Change::Created(topic));
        }
    }
    cluster.check(&Topic::ALL, Some(plan), PROPAGATION).await?;
    Ok(changes)
}

/// Checks that the given topics exist and keep Floodway's promises.
pub async fn check(kafka: &KafkaSettings, topics: &[Topic]) -> Result<TopicFacts, TopicsError> {
    Cluster::connect(kafka)?.check(topics, None, Duration::ZERO).await
}

struct Cluster<'k> {
    kafka: &'k KafkaSettings,
    admin: Admin,
}

/// The client. Dropping it joins a thread, which must not hold up the runtime.
struct Admin(Option<Arc<AdminClient<DefaultClientContext>>>);

impl Admin {
    fn client(&self) -> &Arc<AdminClient<DefaultClientContext>> {
        #[allow(clippy::expect_used, reason = "only `drop` takes the client")]
        self.0.as_ref().expect("the client is there until it is dropped")
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        let client = self.0.take();
        match Handle::try_current() {
            // Nobody waits for it: the client has no work left.
            Ok(runtime) => drop(runtime.spawn_blocking(move || drop(client))),
            Err(_) => drop(client),
        }
    }
}

impl<'k> Cluster<'k> {
    fn connect(kafka: &'k KafkaSettings) -> Result<Self, TopicsError> {
        let admin = kafka.client().create().map_err(|error| TopicsError::Client(error.to_string()))?;
        Ok(Self { kafka, admin: Admin(Some(Arc::new(admin))) })
    }

    /// Metadata of the whole cluster; the client's call blocks, so it runs off the runtime.
    async fn metadata(&self) -> Result<Arc<Metadata>, TopicsError> {
        let (admin, kafka) = (Arc::clone(self.admin.client()), self.kafka.clone());
        let fetch = move || {
            let fetched = admin.inner().fetch_metadata(None, REQUEST_TIMEOUT);
            fetched.map(Arc::new).map_err(|error| TopicsError::Unreachable {
                brokers: kafka.brokers.clone(),
                reason: kafka.diagnose(DIAGNOSIS_PATIENCE).unwrap_or_else(|| error.to_string()),
            })
        };
        match tokio::task::spawn_blocking(fetch).await {
            Ok(result) => result,
            Err(panicked) => Err(TopicsError::Unreachable {
                brokers: self.kafka.brokers.clone(),
                reason: panicked.to_string(),
            }),
        }
    }

    async fn create(&self, topic: Topic, plan: TopicPlan) -> Result<(), TopicsError> {
        let name = self.kafka.topic(topic);
        let settings = topic.settings();
        let min_insync = PRODUCTION_MIN_INSYNC.to_string();
        let mut new = NewTopic::new(
            &name,
            topic.partitions(plan.partitions),
            TopicReplication::Fixed(plan.replication),
        );
        for TopicSetting { name, value, .. } in &settings {
            new = new.set(name, value);
        }
        if !plan.dev {
            new = new.set("min.insync.replicas", &min_insync);
        }
        let options = AdminOptions::new()
            .operation_timeout(Some(REQUEST_TIMEOUT))
            .request_timeout(Some(REQUEST_TIMEOUT));
        let results = self
            .admin
            .client()
            .create_topics([&new], &options)
            .await
            .map_err(|error| unreachable(self.kafka, &error))?;
        for result in results {
            match result {
                // Another process may have been faster; the check that follows judges its work.
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, code)) => return Err(TopicsError::Refused { topic, reason: code.to_string() }),
            }
        }
        Ok(())
    }

    /// `patience` is how long topics that are missing may still take to appear.
    async fn check(
        &self,
        topics: &[Topic],
        plan: Option<TopicPlan>,
        patience: Duration,
    ) -> Result<TopicFacts, TopicsError> {
        let found = self.settled_metadata(topics, patience).await?;
        let facts: HashMap<Topic, i32> = topics
            .iter()
            .filter_map(|&topic| Some((topic, partitions_of(&found, &self.kafka.topic(topic))?)))
            .collect();
        let missing: Vec<String> = topics
            .iter()
            .filter(|topic| !facts.contains_key(topic))
            .map(|topic| self.kafka.topic(*topic))
            .collect();
        if !missing.is_empty() {
            return Err(TopicsError::Missing(missing));
        }
        let mut wrong = self.wrong_partitions(&facts, plan);
        wrong.extend(self.wrong_settings(topics, plan).await?);
        wrong.extend(
            plan.filter(|plan| !plan.dev).into_iter().flat_map(|_| self.wrong_replication(topics, &found)),
        );
        if wrong.is_empty() { Ok(TopicFacts(facts)) } else { Err(TopicsError::Wrong(wrong)) }
    }

    /// Metadata that shows the topics, or what there is after `patience`.
    async fn settled_metadata(
        &self,
        topics: &[Topic],
        patience: Duration,
    ) -> Result<Arc<Metadata>, TopicsError> {
        let end = Instant::now() + patience;
        loop {
            let found = self.metadata().await?;
            let shows = |topic: &Topic| partitions_of(&found, &self.kafka.topic(*topic)).is_some();
            if topics.iter().all(shows) || Instant::now() >= end {
                return Ok(found);
            }
            tokio::time::sleep(PROPAGATION_PAUSE).await;
        }
    }

    fn wrong_partitions(&self, facts: &HashMap<Topic, i32>, plan: Option<TopicPlan>) -> Vec<String> {
        let mut wrong = Vec::new();
        if let (Some(due), Some(outcomes)) = (facts.get(&Topic::Due), facts.get(&Topic::Outcomes))
            && due != outcomes
        {
            wrong.push(format!(
                "{} has {due} partitions and {} has {outcomes}, they must be equal",
                self.kafka.topic(Topic::Due),
                self.kafka.topic(Topic::Outcomes)
            ));
        }
        if let Some(&config) = facts.get(&Topic::Config)
            && config != 1
        {
            wrong
                .push(format!("{} has {config} partitions, it must have 1", self.kafka.topic(Topic::Config)));
        }
        for (&topic, &partitions) in facts {
            if let Some(planned) = plan.map(|plan| topic.partitions(plan.partitions))
                && partitions != planned
            {
                let name = self.kafka.topic(topic);
                wrong.push(format!("{name} has {partitions} partitions, {planned} were asked for"));
            }
        }
        wrong.sort();
        wrong.dedup();
        wrong
    }

    async fn wrong_settings(
        &self,
        topics: &[Topic],
        plan: Option<TopicPlan>,
    ) -> Result<Vec<String>, TopicsError> {
        let names: Vec<String> = topics.iter().map(|topic| self.kafka.topic(*topic)).collect();
        let resources: Vec<ResourceSpecifier<'_>> =
            names.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
        let options = AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT));
        let described = self
            .admin
            .client()
            .describe_configs(&resources, &options)
            .await
            .map_err(|error| unreachable(self.kafka, &error))?;
        let mut wrong = Vec::new();
        for (index, resource) in described.into_iter().enumerate() {
            let Ok(resource) = resource else {
                // Without the right to read settings, what they are is the operator's to know.
                tracing::warn!(
                    topic = names[index],
                    "the settings of this topic cannot be read, so they are not checked"
                );
                continue;
            };
            let mut settings = topics[index].settings();
            if plan.is_some_and(|plan| !plan.dev) {
                let value = PRODUCTION_MIN_INSYNC.to_string();
                settings.push(TopicSetting {
                    name: "min.insync.replicas",
                    value,
                    rule: SettingRule::AtLeast,
                });
            }
            wrong.extend(settings.iter().filter_map(|setting| violation(&names[index], setting, &resource)));
        }
        Ok(wrong)
    }

    fn wrong_replication(&self, topics: &[Topic], found: &Metadata) -> Vec<String> {
        let names: Vec<String> = topics.iter().map(|topic| self.kafka.topic(*topic)).collect();
        found
            .topics()
            .iter()
            .filter(|topic| names.iter().any(|name| name == topic.name()))
            .filter_map(|topic| {
                let fewest = topic.partitions().iter().map(|p| p.replicas().len()).min().unwrap_or(0);
                (fewest < PRODUCTION_REPLICAS as usize).then(|| {
                    format!(
                        "{} has {fewest} replicas, at least {PRODUCTION_REPLICAS} are needed",
                        topic.name()
                    )
                })
            })
            .collect()
    }
}

fn violation(topic: &str, wanted: &TopicSetting, resource: &ConfigResource) -> Option<String> {
    let found = resource.get(wanted.name)?.value.as_deref()?;
    let kept = match wanted.rule {
        SettingRule::Free => true,
        SettingRule::Exactly => found == wanted.value,
        SettingRule::AtLeast => match (found.parse::<i64>(), wanted.value.parse::<i64>()) {
            (Ok(found), Ok(wanted)) => found >= wanted,
            _ => false,
        },
    };
    let relation = if wanted.rule == SettingRule::AtLeast { "at least " } else { "" };
    (!kept).then(|| format!("{topic} has {}={found}, it must be {relation}{}", wanted.name, wanted.value))
}

fn partitions_of(metadata: &Metadata, name: &str) -> Option<i32> {
    let topic = metadata.topics().iter().find(|topic| topic.name() == name)?;
    i32::try_from(topic.partitions().len()).ok().filter(|&partitions| partitions > 0)
}

fn unreachable(kafka: &KafkaSettings, error: &KafkaError) -> TopicsError {
    TopicsError::Unreachable { brokers: kafka.brokers.clone(), reason: error.to_string() }
}
