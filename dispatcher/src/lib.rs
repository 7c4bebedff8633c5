//! The dispatcher: consumes `events`, `due` and `replays`, delivers to subscribers' webhooks, and writes an outcome for every delivery.
//!
//! It connects to Kafka and to endpoints, and to nothing else. Delivery is at least once: progress is committed only for
//! records whose every delivery has an outcome that Kafka acknowledged.
//!
//! One consumer group per topic, so that resetting one never fires another again. Their names carry the topic prefix:
//! `<prefix>dispatcher` for `events`, `<prefix>dispatcher-due` and `<prefix>dispatcher-replays`.
//!
//! A record's way: `drain` (a thread per partition) → `route` (which subscriptions) → `batches` (if asked for) → `lane` (when) → `worker` (a thread per core) →
//! `deliver` (`attempt`, `classify`) → `outcomes` (until acknowledged) → `tracker` → `commit`.

mod attempt;
mod backlog;
mod batches;
mod breaker;
mod budget;
mod classify;
mod commit;
mod concurrency;
pub mod config;
mod connect;
mod connection;
mod deliver;
mod delivery;
mod drain;
pub mod error;
mod filter_time;
mod filters;
mod frame_scan;
mod headers;
#[cfg(test)]
mod histories;
mod intake;
mod kafka_health;
mod lag;
mod lane;
mod lane_place;
mod life;
mod metrics;
mod open_batches;
mod outcome_queue;
mod outcome_record;
mod outcomes;
mod ownership;
mod pace;
mod partition;
mod paused;
mod places;
mod pool;
mod read_map;
mod repeats;
mod resolve;
mod response;
mod returns;
mod route;
mod session;
mod shares;
mod sign;
mod subscriptions;
mod target;
#[cfg(test)]
mod testing;
mod tracker;
mod traffic;
mod vigil;
mod worker;

pub use config::Settings;
pub use error::Error;

use connect::Connector;
use deliver::Deliverer;
use floodway_runtime::{
    Context,
    config_feed::ConfigFeed,
    health::Component,
    kafka::KafkaError,
    topics::{self, TopicsError},
    witness::Witness,
};
use floodway_schemas::topic::Topic;
use intake::Intake;
use kafka_health::KafkaHealth;
use life::{Life, Phase};
use metrics::Metrics;
use outcomes::Outcomes;
use pool::PoolLimits;
use route::Router;
use std::{
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};
use subscriptions::Subscriptions;
use tokio_util::sync::CancellationToken;
use worker::Workers;

/// The topics consumed, each with the name of its consumer group, without the prefix.
pub const CONSUMER_GROUPS: [(Topic, &str); 3] =
    [(Topic::Events, "dispatcher"), (Topic::Due, "dispatcher-due"), (Topic::Replays, "dispatcher-replays")];

/// Topics that must be there and right.
const TOPICS: [Topic; 5] = [Topic::Events, Topic::Due, Topic::Replays, Topic::Outcomes, Topic::Config];
/// Pause between two looks whether the topics are there; spread by half.
const TOPICS_PAUSE: Duration = Duration::from_secs(1);
/// Pause between two looks for what waited too long; it comes on top of the longest wait.
const SWEEP_PAUSE: Duration = Duration::from_millis(500);
/// How long the last outcomes may take to be acknowledged at shutdown.
const FLUSH_PATIENCE: Duration = Duration::from_secs(10);
/// How long threads may take to end.
const THREADS_PATIENCE: Duration = Duration::from_secs(20);

/// A dispatcher that is ready to run.
pub struct Dispatcher {
    settings: Settings,
    context: Context,
    connector: Connector,
    health: Arc<KafkaHealth>,
    config_health: Component,
}

impl Dispatcher {
    /// Checks the settings and, if Kafka answers, the topics. Kafka need not be there yet.
    ///
    /// # Errors
    /// When a setting cannot be used, or topics are missing or not as they have to be.
    pub async fn bind(settings: Settings, context: Context) -> Result<Self, Error> {
        settings.validate().map_err(Error::Settings)?;
        let connector = Connector::new(&settings)?;
        let health = Arc::new(KafkaHealth::new(context.health.component("kafka", true)));
        let config_health = context.health.component("config", true);
        match topics::check(&context.kafka, &TOPICS).await {
            Ok(_) => {}
            Err(error @ TopicsError::Unreachable { .. }) => tracing::warn!(%error, "starting without Kafka"),
            Err(error) => return Err(error.into()),
        }
        Ok(Self { settings, context, connector, health, config_health })
    }

    /// Delivers until the context's shutdown token is cancelled, then drains: no record is taken any more, attempts
    /// under way may finish until the drain deadline, their outcomes are flushed and progress is committed.
    ///
    /// Dropping the future instead of that is like a crash: nothing more is committed.
    ///
    /// # Errors
    /// When the topics break a promise, or no client or thread can be had.
    pub async fn run(self) -> Result<(), Error> {
        let shutdown = self.context.shutdown.clone();
        let parts = Parts::start(&self)?;
        let Some(()) = unless_cancelled(&shutdown, self.topics_ready()).await.transpose()? else {
            return parts.stop(Vec::new(), self.settings.drain_timeout).await;
        };
        // Without all subscriptions an event would pass unmatched.
        match unless_cancelled(&shutdown, parts.feed_caught_up()).await {
            Some(true) => {}
            Some(false) => {
                parts.stop(Vec::new(), self.settings.drain_timeout).await?;
                return Err(Error::ConfigFeed);
            }
            None => return parts.stop(Vec::new(), self.settings.drain_timeout).await,
        }
        let intakes = self.start_intakes(&parts)?;
        unless_cancelled(&shutdown, self.look_after(&parts)).await;
        // Lanes need no sweep from here on: what waits in them is made or deferred before the drain deadline.
        parts.stop(intakes, self.settings.drain_timeout).await
    }

    /// Sees to it that nothing waits for too long in the lanes, and that health knows the age of the configuration. Never returns.
    async fn look_after(&self, parts: &Parts) {
        loop {
            if parts.router.is_config_current() {
                self.config_health.up();
            } else {
                self.config_health
                    .down("the configuration may be old: events are not taken until it is known again");
            }
            let (subscriptions, deliverer) = (Arc::clone(&parts.subscriptions), Arc::clone(&parts.deliverer));
            let swept = off_runtime(move || {
                deliverer.defer_overdue(subscriptions.take_overdue(
                    &deliverer.sweep_limits(),
                    deliverer.shares.share(),
                    Instant::now(),
                ));
            });
            if swept.await.is_none() {
                tracing::error!("the sweep of the lanes panicked");
            }
            tokio::time::sleep(SWEEP_PAUSE).await;
        }
    }

    /// Waits until the topics are there. Their absence and Kafka's may end any moment; wrong settings do not.
    async fn topics_ready(&self) -> Result<(), Error> {
        loop {
            match topics::check(&self.context.kafka, &TOPICS).await {
                Ok(_) => return Ok(()),
                Err(error @ (TopicsError::Unreachable { .. } | TopicsError::Missing(_))) => {
                    self.health.down(error.to_string());
                }
                Err(error) => return Err(error.into()),
            }
            tokio::time::sleep(TOPICS_PAUSE.mul_f64(0.5 + rand::random::<f64>())).await;
        }
    }

    fn start_intakes(&self, parts: &Parts) -> Result<Vec<JoinHandle<()>>, Error> {
        let witness = Arc::new(Witness::new(&self.context.kafka));
        let start = |(topic, group)| {
            let intake = self.intake(parts, &witness, topic, group);
            intake.start().map_err(|error| KafkaError::from(error).into())
        };
        CONSUMER_GROUPS.into_iter().map(start).collect()
    }

    fn intake(&self, parts: &Parts, witness: &Arc<Witness>, topic: Topic, group: &'static str) -> Intake {
        Intake {
            topic,
            group,
            kafka: self.context.kafka.clone(),
            router: Arc::clone(&parts.router),
            life: Arc::clone(&parts.life),
            health: Arc::clone(&self.health),
            witness: Arc::clone(witness),
            max_window: self.settings.tracker_window,
            repeat_window: self.settings.repeat_window,
            repeat_ids: self.settings.repeat_ids,
            commit_interval: self.settings.commit_interval,
        }
    }
}

/// The result of `work`, or `None` when the token is cancelled first.
async fn unless_cancelled<T>(token: &CancellationToken, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        () = token.cancelled() => None,
        result = work => Some(result),
    }
}

/// Everything that runs. Dropped without [`Parts::stop`], it abandons its work as a crash would.
struct Parts {
    life: Arc<Life>,
    feed: Option<ConfigFeed>,
    feed_token: CancellationToken,
    config_health: Component,
    subscriptions: Arc<Subscriptions>,
    outcomes: Arc<Outcomes>,
    deliverer: Arc<Deliverer>,
    router: Arc<Router>,
    batches: Option<JoinHandle<()>>,
}

impl Parts {
    fn start(dispatcher: &Dispatcher) -> Result<Self, Error> {
        let Dispatcher { settings, context, connector, health, config_health } = dispatcher;
        let life = Arc::new(Life::default());
        let metrics = Arc::new(Metrics::new());
        let subscriptions = Arc::new(Subscriptions::default());
        let feed_token = CancellationToken::new();
        let feed = {
            let (subscriptions, sealing, metrics) =
                (Arc::clone(&subscriptions), Arc::clone(&context.sealing), Arc::clone(&metrics));
            ConfigFeed::start(&context.kafka, feed_token.clone(), move |change, _| {
                subscriptions.apply(change, &sealing);
                // Counts far below 2^52.
                metrics.subscriptions.set(subscriptions.len() as f64);
            })?
        };
        let outcomes = Arc::new(Outcomes::start(&context.kafka, Arc::clone(&metrics), Arc::clone(health))?);
        let deliverer = Arc::new(Deliverer::new(
            settings,
            connector.clone(),
            Arc::clone(&outcomes),
            metrics,
            Arc::clone(&life),
        ));
        let limits = PoolLimits {
            connections: settings.max_connections,
            per_host: settings.max_connections_per_host,
            idle_per_host: settings.pool_max_idle_per_host,
            idle_timeout: settings.pool_idle_timeout,
        };
        Workers::start(&deliverer, limits).map_err(KafkaError::from)?;
        let router = Arc::new(Router::new(
            Arc::clone(&subscriptions),
            Arc::clone(&deliverer),
            settings,
            feed.freshness(),
        ));
        let closing = Arc::clone(&router);
        let batches = std::thread::Builder::new()
            .name("batches".to_owned())
            .spawn(move || closing.close_batches())
            .map_err(KafkaError::from)?;
        let (feed, batches) = (Some(feed), Some(batches));
        let config_health = config_health.clone();
        Ok(Self {
            life,
            feed,
            feed_token,
            config_health,
            subscriptions,
            outcomes,
            deliverer,
            router,
            batches,
        })
    }

    /// Whether all subscriptions are known; `false` when the feed ended before.
    async fn feed_caught_up(&self) -> bool {
        match &self.feed {
            Some(feed) => feed.caught_up_telling(&self.config_health).await,
            None => false,
        }
    }

    /// Drains and ends everything, in the order in which work flows.
    async fn stop(mut self, intakes: Vec<JoinHandle<()>>, drain_deadline: Duration) -> Result<(), Error> {
        // A partition may be given up meanwhile, and its last commit shows only what is acknowledged by then.
        self.outcomes.hurry();
        let life = Arc::clone(&self.life);
        let (router, batches) = (Arc::clone(&self.router), self.batches.take());
        let stopped = off_runtime(move || {
            life.stop_taking();
            router.leave_batches();
            batches.is_none_or(|thread| thread.join().is_ok())
        });
        if stopped.await != Some(true) {
            tracing::error!("the thread that closes batches panicked");
        }
        self.finish_deliveries(drain_deadline).await;
        let deliverer = Arc::clone(&self.deliverer);
        deliverer.cut_off.cancel();
        off_runtime(move || deliverer.workers.join()).await;
        let outcomes = Arc::clone(&self.outcomes);
        if !off_runtime(move || outcomes.flush(FLUSH_PATIENCE)).await.unwrap_or(false) {
            tracing::warn!("Kafka did not acknowledge all outcomes: their deliveries are made again");
        }
        self.life.enter(Phase::Leaving);
        let left = off_runtime(move || intakes.into_iter().for_each(|thread| drop(thread.join())));
        if tokio::time::timeout(THREADS_PATIENCE, left).await.is_err() {
            tracing::warn!("the consumers did not leave their groups in time");
        }
        self.feed_token.cancel();
        let (outcomes, feed) = (Arc::clone(&self.outcomes), self.feed.take());
        let ended = off_runtime(move || {
            outcomes.end();
            feed.into_iter().for_each(ConfigFeed::join);
        });
        if tokio::time::timeout(THREADS_PATIENCE, ended).await.is_err() {
            tracing::warn!("threads did not end in time");
        }
        Ok(())
    }

    /// Half of the time the lanes go on with what waits in them. Then that is deferred, and in the other half only the attempts under
    /// way may finish.
    async fn finish_deliveries(&self, drain_deadline: Duration) {
        let tasks = &self.deliverer.tasks;
        tasks.close();
        if tokio::time::timeout(drain_deadline / 2, tasks.wait()).await.is_ok() {
            return;
        }
        let (subscriptions, deliverer) = (Arc::clone(&self.subscriptions), Arc::clone(&self.deliverer));
        off_runtime(move || deliverer.defer_waiting(subscriptions.take_waiting())).await;
        if tokio::time::timeout(drain_deadline / 2, tasks.wait()).await.is_err() {
            tracing::warn!(
                attempts = tasks.len(),
                "the drain deadline has passed: attempts are cut off, to be made again"
            );
            self.deliverer.cut_off.cancel();
            tasks.wait().await;
        }
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        self.life.enter(Phase::Abandoned);
        self.deliverer.cut_off.cancel();
        self.feed_token.cancel();
        self.outcomes.abandon();
        self.router.drop_batches();
        // A delivery that waits in a lane holds the lane: without this, both would stay for ever.
        drop(self.subscriptions.take_waiting());
    }
}

/// Runs what blocks off the runtime's threads; `None` when it panicked.
async fn off_runtime<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}
