//! The control plane: administers tenants, API keys, subscriptions and replays over REST, and publishes configuration
//! to the `config` topic.
//!
//! It owns the configuration tables in PostgreSQL. A change and its outbox row are one transaction; one replica carries
//! the outbox to Kafka in order; a handler answers once its change is there. The other services know configuration
//! from the topic alone.

mod api_keys;
mod auth;
mod changed;
pub mod config;
mod dead_letters;
mod deliveries;
mod delivery_headers;
mod dependencies;
mod disable;
mod endpoint_url;
pub mod error;
mod extract;
mod fenced;
pub mod history_reads;
mod metrics;
mod openapi;
mod outcomes;
mod page;
mod pending_retries;
mod publish;
mod records;
mod replay;
mod routes;
mod secrets;
mod serve;
mod stalled;
mod subscription_state;
mod subscriptions;
mod tenants;
mod test_event;

pub use config::Settings;
pub use error::Error;
pub use history_reads::Databases;

use auth::AdminKey;
use axum::Router;
use dependencies::Producers;
use endpoint_url::EndpointRules;
use floodway_runtime::{
    Context,
    health::Component,
    kafka::KafkaError,
    retry_commands::RetryCommands,
    topics::{self, TopicsError},
};
use floodway_schemas::topic::Topic;
use floodway_store::{Pool, migrate::check_schema};
use history_reads::{HistoryReads, Replica};
use publish::Publisher;
use records::Records;
use replay::Replays;
use routes::Api;
use std::{net::SocketAddr, sync::Arc};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The control plane, bound to its address.
pub struct ControlPlane {
    settings: Settings,
    context: Context,
    pool: Pool,
    listener: TcpListener,
    address: SocketAddr,
    router: Router,
    publisher: Publisher,
    /// Cancelled, in a good sense, once the topics were found to be right.
    topics_checked: CancellationToken,
    publication: publish::Publication,
    records: Records,
    retry_commands: RetryCommands,
    postgresql: Component,
    replica: Option<(Replica, Component)>,
    kafka: Component,
}

impl std::fmt::Debug for ControlPlane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlPlane").field("address", &self.address).finish_non_exhaustive()
    }
}

impl ControlPlane {
    /// Checks the settings, binds the listener and prepares the clients. Kafka and PostgreSQL may be away; what they say
    /// when they are there must fit.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the setting, [`Error::Topics`] when topics are missing or wrong, [`Error::Store`] when
    /// the database's schema is not this version's.
    pub async fn bind(
        settings: Settings,
        context: Context,
        databases: impl Into<Databases>,
    ) -> Result<Self, Error> {
        let databases = databases.into();
        let (pool, history) = (databases.primary.clone(), HistoryReads::new(&databases));
        settings.validate().map_err(Error::Setting)?;
        let Some(admin_key) = &settings.admin_key else {
            return Err(Error::Setting("control_plane.admin_key is required".to_owned()));
        };
        let key = AdminKey::new(admin_key);
        metrics::describe();
        let topics_checked = check_dependencies(&context, &pool).await?;
        let (postgresql, kafka) =
            (context.health.component("postgresql", true), context.health.component("kafka", true));
        let replica =
            history.replica().map(|replica| (replica, context.health.component("postgresql_replica", false)));
        let records = Records::new(&context.kafka).map_err(KafkaError::from)?;
        let retry_commands = RetryCommands::new(&context.kafka).map_err(KafkaError::from)?;
        let (publisher, publication) = Publisher::new(
            pool.clone(),
            context.kafka.clone(),
            context.kafka.topic(Topic::Config),
            settings.publish_deadline,
            postgresql.clone(),
            kafka.clone(),
        );
        let api = Api {
            pool: pool.clone(),
            history: history.clone(),
            publication: publication.clone(),
            retry_commands: retry_commands.clone(),
            replays: Replays::new(records.clone(), context.kafka.topic(Topic::Replays)),
            sealing: Arc::clone(&context.sealing),
            endpoints: Arc::new(EndpointRules::new(settings.allowed_networks.clone())),
            turn: Arc::default(),
        };
        let router = routes::router(api, key, settings.max_body_bytes, settings.publish_deadline)
            .map_err(|_| Error::Setting("the interface's description cannot be written".to_owned()))?;
        let (listener, address) = listen(settings.listen).await?;
        Ok(Self {
            settings,
            context,
            pool,
            listener,
            address,
            router,
            publisher,
            topics_checked,
            publication,
            records,
            retry_commands,
            postgresql,
            replica,
            kafka,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the context's shutdown token is cancelled, then drains. Publishing goes on until the last request
    /// is answered, for requests wait for it.
    ///
    /// # Errors
    /// When a Kafka client or its thread cannot be had.
    pub async fn run(self) -> Result<(), Error> {
        let shutdown = self.context.shutdown.clone();
        let disabler = disable::Disabler::start(
            &self.context.kafka,
            self.pool.clone(),
            self.publication.waker(),
            shutdown.clone(),
        )?;
        let (tasks, drained) = (TaskTracker::new(), CancellationToken::new());
        let (publisher, topics_checked, ended) = (self.publisher, self.topics_checked, drained.clone());
        let topics_wait = topics_checked.clone();
        tasks.spawn(async move {
            // What a wrong topic was told is lost, for example to a policy that deletes instead of compacting.
            if ended.run_until_cancelled(topics_wait.cancelled()).await.is_some() {
                publisher.run(ended).await;
            }
        });
        tasks.spawn(dependencies::watch_postgresql(self.pool.clone(), self.postgresql, drained.clone()));
        if let Some((replica, component)) = self.replica {
            tasks.spawn(dependencies::watch_replica(replica, component, drained.clone()));
        }
        tasks.spawn(dependencies::watch_kafka(
            self.context.kafka.clone(),
            Producers { records: self.records.clone(), retry_commands: self.retry_commands },
            topics_checked,
            self.kafka,
            drained.clone(),
        ));
        tasks.close();
        tracing::info!(address = %self.address, "control plane listens on {}", self.address);
        serve::serve(self.listener, self.router, shutdown, self.settings.drain_timeout).await;
        drained.cancel();
        tasks.wait().await;
        if !matches!(tokio::task::spawn_blocking(move || disabler.join()).await, Ok(Ok(()))) {
            tracing::error!("the thread that disables subscriptions panicked");
        }
        self.records.flush().await;
        Ok(())
    }
}

/// Fails for what no waiting repairs; whatever is merely away is reported by health later. The token is cancelled if the
/// topics could be checked.
async fn check_dependencies(context: &Context, pool: &Pool) -> Result<CancellationToken, Error> {
    let topics_checked = CancellationToken::new();
    match topics::check(&context.kafka, &dependencies::TOPICS).await {
        Ok(_) => topics_checked.cancel(),
        Err(error @ TopicsError::Unreachable { .. }) => tracing::warn!(%error, "starting without Kafka"),
        Err(error) => return Err(error.into()),
    }
    match check_schema(pool).await {
        Ok(()) => {}
        Err(error) if error.is_unavailable() => tracing::warn!(%error, "starting without the database"),
        Err(error) => return Err(error.into()),
    }
    Ok(topics_checked)
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), Error> {
    let failed = |reason| Error::Listen { address, reason };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}
