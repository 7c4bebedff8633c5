//! All settings of the binary: a section per role.

use crate::{error::Error, process::Role};
use floodway_runtime::{
    admin::AdminSettings,
    kafka::{KafkaSecurity, KafkaSettings},
    logging::LogFormat,
    settings,
};
use floodway_schemas::{seal::SealingKeys, topic::TopicPrefix};
use floodway_store::Pool;
use secrecy::SecretString;
use serde::Deserialize;
use std::path::Path;

/// The settings file, with `FLOODWAY_*` variables on top. See `floodway.toml` for a commented sample.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    /// `FLOODWAY_KAFKA_BROKERS`: `host:port`, separated by commas. Required.
    pub(crate) kafka_brokers: String,
    /// `FLOODWAY_TOPIC_PREFIX`: what topics and consumer groups start with; default `floodway.`.
    pub(crate) topic_prefix: TopicPrefix,
    /// `FLOODWAY_DATABASE_URL`: PostgreSQL, for the retry scheduler and the control plane.
    pub(crate) database_url: Option<SecretString>,
    /// `FLOODWAY_SEALING_KEY`: `<id>:<base64 of 32 bytes>`, several separated by commas; the first one seals. For the
    /// dispatcher and the control plane.
    pub(crate) sealing_key: Option<SecretString>,
    /// `FLOODWAY_LOG`: a level or `tracing` directives; default `info`.
    pub(crate) log: String,
    /// `FLOODWAY_LOG_FORMAT`: `text` or `json`; default `text`.
    pub(crate) log_format: LogFormat,
    /// Encryption and authentication of connections to Kafka.
    pub(crate) kafka: KafkaSecurity,
    /// Health and metrics.
    pub(crate) admin: AdminSettings,
    /// The role `ingest`.
    pub(crate) ingest: floodway_ingest::config::Settings,
    /// The role `dispatcher`.
    pub(crate) dispatcher: floodway_dispatcher::config::Settings,
    /// The role `retry-scheduler`.
    pub(crate) retry_scheduler: floodway_retry_scheduler::config::Settings,
    /// The role `control-plane`.
    pub(crate) control_plane: floodway_control_plane::config::Settings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            kafka_brokers: String::new(),
            topic_prefix: TopicPrefix::default(),
            database_url: None,
            sealing_key: None,
            log: "info".to_owned(),
            log_format: LogFormat::default(),
            kafka: KafkaSecurity::default(),
            admin: AdminSettings::default(),
            ingest: floodway_ingest::config::Settings::default(),
            dispatcher: floodway_dispatcher::config::Settings::default(),
            retry_scheduler: floodway_retry_scheduler::config::Settings::default(),
            control_plane: floodway_control_plane::config::Settings::default(),
        }
    }
}

impl Settings {
    /// Reads the file, if one is given, and the environment.
    pub(crate) fn load(file: Option<&Path>) -> Result<Self, Error> {
        settings::load(file).map_err(Error::settings)
    }

    /// Checks all that the given roles need, without connecting to anything.
    pub(crate) fn validate(&self, roles: &[Role]) -> Result<(), Error> {
        self.kafka()?;
        // Set and wrong, it is named whatever the role.
        if self.database_url.is_some() {
            self.database_url()?;
        }
        for role in roles {
            match role {
                Role::Ingest => self.ingest.validate().map_err(Error::settings)?,
                Role::Dispatcher => self.dispatcher.validate().map_err(Error::settings)?,
                Role::RetryScheduler => self.retry_scheduler.validate().map_err(Error::settings)?,
                Role::ControlPlane => self.control_plane.validate().map_err(Error::settings)?,
            }
            if role.needs_database() {
                self.database_url()?;
            }
            if role.needs_sealing_key() {
                self.sealing_keys()?;
            }
        }
        Ok(())
    }

    /// How to reach Kafka.
    pub(crate) fn kafka(&self) -> Result<KafkaSettings, Error> {
        if self.kafka_brokers.trim().is_empty() {
            return Err(Error::missing("kafka_brokers (FLOODWAY_KAFKA_BROKERS)", "host:port of a broker"));
        }
        let kafka = KafkaSettings {
            brokers: self.kafka_brokers.clone(),
            topic_prefix: self.topic_prefix.clone(),
            security: self.kafka.clone(),
        };
        kafka.validate().map_err(Error::settings)?;
        Ok(kafka)
    }

    /// Where the database is.
    pub(crate) fn database_url(&self) -> Result<&SecretString, Error> {
        let name = "database_url (FLOODWAY_DATABASE_URL)";
        let url = self
            .database_url
            .as_ref()
            .ok_or_else(|| Error::missing(name, "postgres://user:password@host:port/database"))?;
        // A pool that is never asked for a connection: it shows whether the URL can be read, and connects nothing.
        Pool::new(url, "floodway", 1).map_err(|error| Error::settings(format!("setting {name}: {error}")))?;
        Ok(url)
    }

    /// The keys that seal and open secrets.
    pub(crate) fn sealing_keys(&self) -> Result<SealingKeys, Error> {
        let name = "sealing_key (FLOODWAY_SEALING_KEY)";
        let text =
            self.sealing_key.as_ref().ok_or_else(|| Error::missing(name, "<id>:<base64 of 32 bytes>"))?;
        SealingKeys::parse(text).map_err(|error| Error::settings(format!("setting {name}: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_file_loads_and_shows_the_defaults() {
        let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../floodway.toml");
        let shown = Settings::load(Some(Path::new(sample))).unwrap();
        let defaults = Settings::default();
        assert_eq!(shown.admin.listen, defaults.admin.listen);
        assert_eq!(format!("{:?}", shown.ingest), format!("{:?}", defaults.ingest));
        assert_eq!(format!("{:?}", shown.dispatcher), format!("{:?}", defaults.dispatcher));
        assert_eq!(format!("{:?}", shown.retry_scheduler), format!("{:?}", defaults.retry_scheduler));
        assert_eq!(format!("{:?}", shown.control_plane), format!("{:?}", defaults.control_plane));
    }
}
