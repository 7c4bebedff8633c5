//! Accepts events over HTTP, writes them to Kafka, and answers once Kafka has them.
//!
//! A 2xx answer means that every in-sync replica acknowledged the record. Nothing here talks to a database: keys
//! and tenants come from the `config` topic, events go to the `events` topic.
//!
//! Threads: `workers` of HTTP, each with a runtime and a listening socket of its own; the producer's own; one that
//! watches Kafka; one that reads the configuration. All are joined before [`Ingest::run`] returns.

mod accept;
mod authenticate;
mod batch;
mod complete;
pub mod config;
mod connection;
pub mod error;
mod identify;
mod limit;
mod metrics;
mod parse;
mod partition;
mod publish;
mod read;
mod respond;
mod serve;
mod watch;

pub use config::Settings;
pub use error::Error;

use accept::Server;
use authenticate::KeyTable;
use floodway_runtime::{
    Context,
    config_feed::ConfigFeed,
    health::Component,
    topics::{self, TopicsError},
};
use floodway_schemas::topic::Topic;
use publish::Publisher;
use std::{
    net::{SocketAddr, TcpListener},
    sync::{Arc, atomic::AtomicUsize},
    time::{Duration, Instant},
};
use watch::KafkaWatch;

/// Time that the producer has for its last records when the drain deadline has already passed.
const LAST_FLUSH: Duration = Duration::from_secs(1);

/// The ingest server: bound to its port, not yet serving.
#[derive(Debug)]
pub struct Ingest {
    server: Arc<Server>,
    listeners: Vec<TcpListener>,
    address: SocketAddr,
    context: Context,
    kafka: Component,
    config: Component,
}

impl Ingest {
    /// Checks the settings, binds the port and checks the topics. Kafka need not be reachable: the health component
    /// `kafka` says so, and requests get 503 until it is.
    ///
    /// # Errors
    /// A setting that cannot work, a port in use, or topics that break Floodway's promises.
    pub async fn bind(settings: Settings, context: Context) -> Result<Self, Error> {
        settings.validate()?;
        let kafka = context.health.component("kafka", true);
        let config = context.health.component("config", true);
        config.down("the configuration has not been read to its end yet");
        let (listeners, address) = serve::listen(settings.listen, settings.worker_count())
            .map_err(|source| Error::Listen { address: settings.listen, source })?;
        let partitions = events_partitions(&context, &kafka).await?;
        let metrics = Arc::new(metrics::Metrics::new());
        let publisher = Publisher::new(&context.kafka, &settings, partitions, Arc::clone(&metrics))?;
        let server = Arc::new(Server {
            keys: KeyTable::new(settings.default_events_per_second, settings.burst_seconds),
            publisher: Arc::new(publisher),
            metrics,
            connections: AtomicUsize::new(0),
            // A child, so that a failing worker stops its siblings and not the process's other roles.
            shutdown: context.shutdown.child_token(),
            settings,
        });
        Ok(Self { server, listeners, address, context, kafka, config })
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the shutdown token is cancelled, then stops accepting, answers the requests in flight within the
    /// drain deadline, and flushes the producer.
    ///
    /// # Errors
    /// When a thread cannot be started or ended on its own.
    pub async fn run(self) -> Result<(), Error> {
        let Self { server, listeners, context, kafka, config, .. } = self;
        // Whatever ends this function also ends the threads it started.
        let _stop = server.shutdown.clone().drop_guard();
        let keys = Arc::clone(&server);
        let feed = ConfigFeed::start(&context.kafka, server.shutdown.clone(), move |change, _offset| {
            keys.keys.apply(change);
        })?;
        let watch = KafkaWatch::start(Arc::clone(&server.publisher), kafka)?;
        let mut workers = serve::start(listeners, &server)?;
        let served = tokio::select! {
            served = workers.ended() => served,
            never = announce_catching_up(&feed, &server.keys, &config) => match never {},
        };
        let drain_deadline = Instant::now() + server.settings.drain_timeout;
        server.shutdown.cancel();
        let drained = workers.all_ended().await;
        // Joins threads and waits for the producer: not for a runtime's thread.
        let closed = tokio::task::spawn_blocking(move || {
            let left = drain_deadline.saturating_duration_since(Instant::now()).max(LAST_FLUSH);
            server.publisher.close(left);
            watch.join();
            feed.join();
        });
        if closed.await.is_err() {
            tracing::error!("closing the producer panicked");
        }
        served.and(drained)
    }
}

/// Partitions of the events topic; `None` while Kafka does not answer.
async fn events_partitions(context: &Context, kafka: &Component) -> Result<Option<i32>, Error> {
    match topics::check(&context.kafka, &[Topic::Events, Topic::Config]).await {
        Ok(facts) => Ok(facts.partitions(Topic::Events)),
        Err(error @ TopicsError::Unreachable { .. }) => {
            kafka.down(error.to_string());
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Opens the door once every key is known; never returns.
async fn announce_catching_up(
    feed: &ConfigFeed,
    keys: &KeyTable,
    config: &Component,
) -> std::convert::Infallible {
    if feed.caught_up().await {
        keys.set_caught_up();
        config.up();
    }
    std::future::pending().await
}
