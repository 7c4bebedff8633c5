//! Accepts events over HTTP, writes them to Kafka, and answers once Kafka has them.
//!
//! A 2xx answer means that every in-sync replica acknowledged the record. Nothing here talks to a database: keys
//! and tenants come from the `config` topic, events go to the `events` topic.
//!
//! Threads: `workers` of HTTP, each with a runtime and a listening socket of its own; the producer's own; one that
//! watches Kafka; one that reads the configuration. All are joined before [`Ingest::run`] returns.

mod accept;
mod addresses;
mod aside;
mod authenticate;
mod batch;
#[doc(hidden)]
pub mod benchmarks;
mod binary;
mod broker_times;
mod budget;
mod certificate_end;
mod complete;
pub mod config;
mod connection;
pub mod error;
mod identify;
mod inflate;
mod limit;
mod media;
mod metrics;
mod parse;
mod partition;
mod publish;
mod read;
mod respond;
mod serve;
mod target;
mod tls;
mod topics;
mod wake;
mod watch;

pub use config::Settings;
pub use error::Error;

use accept::Server;
use addresses::OpenByAddress;
use authenticate::KeyTable;
use budget::BodyBudget;
use floodway_runtime::{Context, config_feed::ConfigFeed, health::Component, topics::TopicsError};
use limit::Rates;
use publish::Publisher;
use std::{
    net::{SocketAddr, TcpListener},
    sync::{Arc, atomic::AtomicUsize},
    time::{Duration, Instant},
};
use tls::Tls;
use topics::TopicsVerdict;
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
    verdict: Arc<TopicsVerdict>,
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
        let metrics = Arc::new(metrics::Metrics::new());
        let tls = Tls::new(&settings, &metrics)?;
        let kafka = context.health.component("kafka", true);
        let config = context.health.component("config", true);
        config.down("the configuration has not been read to its end yet");
        let workers = settings.worker_count();
        let (listeners, address) = serve::listen(settings.listen, workers)
            .map_err(|source| Error::Listen { address: settings.listen, source })?;
        let (partitions, verdict) = known_topics(&context, &kafka).await?;
        let publisher = Publisher::new(&context.kafka, &settings, partitions, Arc::clone(&metrics))?;
        let default_rates = Rates {
            requests: settings.default_requests_per_second,
            events: settings.default_events_per_second,
        };
        let server = Arc::new(Server {
            keys: KeyTable::new(default_rates, settings.burst_seconds),
            publisher: Arc::new(publisher),
            bodies: BodyBudget::new(
                settings.max_reading_bytes,
                settings.largest_body(),
                metrics.reading_bytes.clone(),
            ),
            metrics,
            connections: AtomicUsize::new(0),
            addresses: OpenByAddress::new(settings.max_connections_per_address),
            tls,
            requests_per_worker: settings.max_requests.div_ceil(workers),
            // A child, so that a failing worker stops its siblings and not the process's other roles.
            shutdown: context.shutdown.child_token(),
            settings,
        });
        let verdict = Arc::new(verdict);
        Ok(Self { server, listeners, address, context, verdict, kafka, config })
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
        let Self { server, listeners, context, verdict, kafka, config, .. } = self;
        // Whatever ends this function also ends the threads it started.
        let _stop = server.shutdown.clone().drop_guard();
        let keys = Arc::clone(&server);
        let feed = ConfigFeed::start(&context.kafka, server.shutdown.clone(), move |change, _offset| {
            keys.keys.apply(change);
        })?;
        let watch = KafkaWatch::start(
            context.kafka.clone(),
            Arc::clone(&server.publisher),
            Arc::clone(&verdict),
            kafka,
        )?;
        let mut workers = serve::start(listeners, &server)?;
        let served = tokio::select! {
            served = workers.ended() => served,
            never = announce_catching_up(&feed, &server.keys, &config) => match never {},
            never = topics::check_until_right(&context.kafka, &verdict) => match never {},
            never = follow_certificate(server.tls.as_ref()) => match never {},
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

/// Partitions of the events topic, `None` while Kafka does not answer, and what is known of the topics.
async fn known_topics(context: &Context, kafka: &Component) -> Result<(Option<i32>, TopicsVerdict), Error> {
    match topics::check(&context.kafka).await {
        Ok(partitions) => Ok((partitions, TopicsVerdict::right())),
        Err(error @ TopicsError::Unreachable { .. }) => {
            kafka.down(error.to_string());
            Ok((None, TopicsVerdict::unknown()))
        }
        Err(error) => Err(error.into()),
    }
}

/// Takes over renewed certificates; never returns.
async fn follow_certificate(tls: Option<&Tls>) -> std::convert::Infallible {
    match tls {
        Some(tls) => tls.follow_files().await,
        None => std::future::pending().await,
    }
}

/// Opens the door once every key is known; never returns.
async fn announce_catching_up(
    feed: &ConfigFeed,
    keys: &KeyTable,
    config: &Component,
) -> std::convert::Infallible {
    if feed.caught_up_telling(config).await {
        keys.set_caught_up();
        config.up();
    }
    std::future::pending().await
}
