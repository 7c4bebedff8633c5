//! Ingest alone, on topics of its own, with a tenant: what producers see, without the rest of the pipeline.

use crate::{
    pipeline::operate,
    role::{Role, free_port},
    stack::Stack,
    topic_reader::{Record, records},
};
use anyhow::{Context, Result, ensure};
use floodway_runtime::kafka::KafkaSettings;
use floodway_schemas::{
    api_key,
    config::{CONFIG_VERSION, ConfigChange},
    ids::{ApiKeyId, TenantId},
    topic::Topic,
};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use secrecy::ExposeSecret;
use serde_json::json;
use std::{collections::BTreeMap, path::PathBuf, time::Duration};
use uuid::Uuid;

/// An ingest, its topics and a tenant that may send to it.
#[derive(Debug)]
pub struct Front {
    /// The process.
    pub ingest: Role,
    /// Where events are sent.
    pub events_url: String,
    /// The tenant's API key.
    pub key: String,
    /// The topics, reached without encryption and password.
    pub kafka: KafkaSettings,
    environment: BTreeMap<String, String>,
    folder: PathBuf,
}

impl Front {
    /// Creates topics with the given arguments of `floodway topics apply`, and a tenant; starts nothing. `shape` may create
    /// topics before, under the prefix that it is given.
    ///
    /// # Errors
    /// When any of it fails.
    pub async fn prepare(
        stack: &Stack,
        apply: &str,
        shape: impl AsyncFnOnce(&KafkaSettings) -> Result<()>,
    ) -> Result<Self> {
        let name = format!("f{:012x}", rand::random::<u64>() >> 16);
        let folder = std::env::temp_dir().join(format!("floodway-{name}"));
        std::fs::create_dir_all(&folder)?;
        let port = free_port()?;
        let environment: BTreeMap<String, String> = [
            ("FLOODWAY_KAFKA_BROKERS", stack.brokers.clone()),
            ("FLOODWAY_TOPIC_PREFIX", format!("{name}-")),
            ("FLOODWAY_INGEST__LISTEN", format!("127.0.0.1:{port}")),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        let kafka = KafkaSettings {
            brokers: stack.brokers.clone(),
            topic_prefix: format!("{name}-").parse()?,
            ..KafkaSettings::default()
        };
        shape(&kafka).await?;
        let arguments: Vec<&str> = ["topics", "apply"].into_iter().chain(apply.split_whitespace()).collect();
        operate(&environment, &arguments).await?;
        let key = configure(&kafka)?;
        let ingest = Role::new("ingest", environment.clone(), &folder)?;
        Ok(Self {
            ingest,
            events_url: format!("http://127.0.0.1:{port}/v1/events"),
            key,
            kafka,
            environment,
            folder,
        })
    }

    /// Starts ingest with further settings and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn start(&mut self, settings: &[(&str, &str)]) -> Result<()> {
        for (variable, value) in settings {
            self.ingest.set(variable, value);
        }
        self.ingest.start()?;
        self.ingest.ready().await
    }

    /// Another role on the same topics, with further settings and a port of its own. It is not started. The second value
    /// is where an ingest takes events.
    ///
    /// # Errors
    /// When no port is free.
    pub fn another(
        &self,
        name: &'static str,
        log: &str,
        settings: &[(&str, String)],
    ) -> Result<(Role, String)> {
        let mut environment = self.environment.clone();
        let port = free_port()?;
        environment.insert("FLOODWAY_INGEST__LISTEN".to_owned(), format!("127.0.0.1:{port}"));
        environment.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        let folder = self.folder.join(log);
        std::fs::create_dir_all(&folder)?;
        Ok((Role::new(name, environment, &folder)?, format!("http://127.0.0.1:{port}/v1/events")))
    }

    /// Runs a command of the binary with further settings.
    ///
    /// # Errors
    /// When it fails; the error has its output.
    pub async fn operate(&self, arguments: &[&str], settings: &[(&str, String)]) -> Result<()> {
        let mut environment = self.environment.clone();
        environment.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        operate(&environment, arguments).await
    }

    /// Every event on the topic.
    ///
    /// # Errors
    /// When the topic cannot be read to its end.
    pub async fn stored(&self) -> Result<Vec<Record>> {
        let (brokers, topic) = (self.kafka.brokers.clone(), self.kafka.topic(Topic::Events));
        tokio::task::spawn_blocking(move || records(&brokers, &topic)).await?
    }

    /// Ends ingest in order and removes what it left behind.
    ///
    /// # Errors
    /// When it does not end cleanly on SIGTERM.
    pub async fn finish(mut self) -> Result<()> {
        let status = self.ingest.terminate().await?;
        ensure!(status.success(), "ingest ended with {status}:\n{}", self.ingest.log_tail());
        self.remove().await
    }

    /// Removes what an ingest that was not started left behind.
    ///
    /// # Errors
    /// When the system refuses it.
    pub async fn remove(self) -> Result<()> {
        tokio::fs::remove_dir_all(&self.folder).await.map_err(Into::into)
    }
}

/// Publishes a tenant and a key of it, as the control plane would; returns the key.
fn configure(kafka: &KafkaSettings) -> Result<String> {
    let (tenant, id) = (TenantId(Uuid::now_v7()), ApiKeyId(Uuid::now_v7()));
    let (key, hash) = api_key::compose("test", id, &rand::random())?;
    // Read from their written form: what is not said of them has its default.
    let changes = [
        ConfigChange::Tenant(serde_json::from_value(
            json!({"v": CONFIG_VERSION, "version": 1, "id": tenant, "name": "e2e", "state": "active"}),
        )?),
        ConfigChange::ApiKey(serde_json::from_value(
            json!({"v": CONFIG_VERSION, "version": 1, "id": id, "tenant": tenant, "hash": hash, "state": "active"}),
        )?),
    ];
    let (producer, topic): (BaseProducer, _) = (kafka.producer().create()?, kafka.topic(Topic::Config));
    for change in &changes {
        let (key, value) = (change.key().to_string(), change.encode()?.context("a tombstone")?);
        producer.send(BaseRecord::to(&topic).key(&key).payload(&value)).map_err(|(error, _)| error)?;
    }
    producer.flush(Duration::from_secs(30))?;
    Ok(key.expose_secret().to_owned())
}
