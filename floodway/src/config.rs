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
    /// `FLOODWAY_DATABASE_DIRECT_URL`: the same database past a pooler that `database_url` leads through, such as PgBouncer
    /// in transaction mode: for session locks and migrations. Default: there is no pooler.
    pub(crate) database_direct_url: Option<SecretString>,
    /// `FLOODWAY_DATABASE_REPLICA_URL`: a read replica of it, for the control plane's queries of history.
    pub(crate) database_replica_url: Option<SecretString>,
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
            database_direct_url: None,
            database_replica_url: None,
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
        if self.database_url.is_some() || self.database_direct_url.is_some() {
            self.database_pool("floodway", 1)?;
        }
        self.database_replica_url()?;
        for role in roles {
            match role {
                Role::Ingest => self.ingest.validate().map_err(Error::settings)?,
                Role::Dispatcher => self.dispatcher.validate().map_err(Error::settings)?,
                Role::RetryScheduler => self.retry_scheduler.validate().map_err(Error::settings)?,
                Role::ControlPlane => self.control_plane.validate().map_err(Error::settings)?,
            }
            if role.needs_database() {
                self.database_pool("floodway", 1)?;
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

    /// A pool of connections to the database. Connects nothing.
    pub(crate) fn database_pool(&self, application_name: &str, size: usize) -> Result<Pool, Error> {
        let url = self.database_url()?;
        match &self.database_direct_url {
            None => Pool::new(url, application_name, size).map_err(|error| unreadable(DATABASE_URL, &error)),
            Some(_) => Pool::behind_pooler(url, self.database_direct_url()?, application_name, size)
                .map_err(|error| unreadable(DATABASE_URL, &error)),
        }
    }

    /// Where the database's server itself is.
    pub(crate) fn database_direct_url(&self) -> Result<&SecretString, Error> {
        let Some(url) = &self.database_direct_url else {
            let url = self.database_url()?;
            Pool::new(url, "floodway", 1).map_err(|error| unreadable(DATABASE_URL, &error))?;
            return Ok(url);
        };
        // A pool that is never asked for a connection: it shows whether the URL can be read, and connects nothing.
        Pool::new(url, "floodway", 1).map_err(|error| unreadable(DATABASE_DIRECT_URL, &error))?;
        Ok(url)
    }

    fn database_url(&self) -> Result<&SecretString, Error> {
        let form = "postgres://user:password@host:port/database";
        self.database_url.as_ref().ok_or_else(|| Error::missing(DATABASE_URL, form))
    }

    /// Where its read replica is, if there is one.
    pub(crate) fn database_replica_url(&self) -> Result<Option<&SecretString>, Error> {
        let Some(url) = &self.database_replica_url else { return Ok(None) };
        Pool::new(url, "floodway", 1).map_err(|error| unreadable(DATABASE_REPLICA_URL, &error))?;
        Ok(Some(url))
    }

    /// The keys that seal and open secrets.
    pub(crate) fn sealing_keys(&self) -> Result<SealingKeys, Error> {
        let name = "sealing_key (FLOODWAY_SEALING_KEY)";
        let text =
            self.sealing_key.as_ref().ok_or_else(|| Error::missing(name, "<id>:<base64 of 32 bytes>"))?;
        SealingKeys::parse(text).map_err(|error| Error::settings(format!("setting {name}: {error}")))
    }
}

const DATABASE_URL: &str = "database_url (FLOODWAY_DATABASE_URL)";
const DATABASE_DIRECT_URL: &str = "database_direct_url (FLOODWAY_DATABASE_DIRECT_URL)";
const DATABASE_REPLICA_URL: &str = "database_replica_url (FLOODWAY_DATABASE_REPLICA_URL)";

fn unreadable(setting: &str, error: &floodway_store::Error) -> Error {
    Error::settings(format!("setting {setting}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_of_the_database_that_cannot_be_read_is_named_and_not_quoted() {
        let good = || Some("postgres://u:p@h/d".to_owned().into());
        let bad = || Some("postgres://u:hunter2@[".to_owned().into());
        for (url, direct, expected) in [
            (bad(), None, "(FLOODWAY_DATABASE_URL): database error: the database URL is not"),
            (bad(), good(), "(FLOODWAY_DATABASE_URL): database error: the database URL is not"),
            (good(), bad(), "(FLOODWAY_DATABASE_DIRECT_URL): database error: the database URL is not"),
            (None, good(), "(FLOODWAY_DATABASE_URL): is required"),
        ] {
            let settings = Settings { database_url: url, database_direct_url: direct, ..Settings::default() };
            let said = settings.database_pool("test", 1).unwrap_err().to_string();
            assert!(said.contains(expected) && !said.contains("hunter2"), "{said}");
        }
    }

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
