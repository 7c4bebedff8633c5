//! All four roles as processes, with topics and a database of their own, and a tenant to send as.

use crate::{
    role::{DEADLINE, Role, command, free_port},
    stack::Stack,
};
use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use floodway_loadtest::{
    admin_client::{AdminClient, NewSubscription, RetryPolicy, Subscription},
    receive::{Receiver, ReceiverConfig},
};
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// Partitions of every topic: enough for the parallel paths, few enough to start fast.
const PARTITIONS: &str = "4";
/// Retries of the tests' subscriptions: soon, and few.
const RETRY_DELAYS: [f64; 2] = [0.3, 0.6];
/// Requests that a receiver keeps whole.
const CAPTURED: usize = 20_000;

/// A running pipeline and its receiver.
pub struct Pipeline {
    /// Accepts events.
    pub ingest: Role,
    /// Delivers them.
    pub dispatcher: Role,
    /// Keeps retries.
    pub retry_scheduler: Role,
    /// Administers.
    pub control_plane: Role,
    /// The control plane's API.
    pub admin: AdminClient,
    /// Where the tests' webhooks go.
    pub receiver: Receiver,
    /// The tenant's id.
    pub tenant: String,
    /// The tenant's API key.
    pub key: String,
    /// Where events are sent.
    pub events_url: String,
    /// What this pipeline's topics and groups start with.
    pub prefix: String,
    /// URL of this pipeline's database.
    pub database_url: String,
    /// The servers under it.
    pub stack: Stack,
    /// Subscriptions created so far.
    subscriptions: AtomicU32,
    environment: BTreeMap<String, String>,
    folder: PathBuf,
}

impl Pipeline {
    /// Creates topics, database, roles, tenant and key, and waits until all is ready.
    ///
    /// # Errors
    /// When any of it fails; the error has the end of the log.
    pub async fn start(stack: Stack) -> Result<Self> {
        Self::start_with(stack, &[]).await
    }

    /// The same, with further settings of all roles.
    ///
    /// # Errors
    /// When any of it fails; the error has the end of the log.
    pub async fn start_with(stack: Stack, settings: &[(&str, &str)]) -> Result<Self> {
        let name = format!("e{:012x}", rand::random::<u64>() >> 16);
        let database_url = create_database(&stack.database_url, &name).await?;
        let (ingest_port, control_port) = (free_port()?, free_port()?);
        let folder = std::env::temp_dir().join(format!("floodway-{name}"));
        std::fs::create_dir_all(&folder)?;
        let mut environment: BTreeMap<String, String> = [
            ("FLOODWAY_KAFKA_BROKERS", stack.brokers.clone()),
            ("FLOODWAY_DATABASE_URL", database_url.clone()),
            ("FLOODWAY_TOPIC_PREFIX", format!("{name}-")),
            ("FLOODWAY_SEALING_KEY", format!("e2e:{}", STANDARD.encode([7; 32]))),
            ("FLOODWAY_INGEST__LISTEN", format!("127.0.0.1:{ingest_port}")),
            ("FLOODWAY_CONTROL_PLANE__LISTEN", format!("127.0.0.1:{control_port}")),
            ("FLOODWAY_CONTROL_PLANE__ADMIN_KEY", "e2e-admin-key-0123456789".to_owned()),
            ("FLOODWAY_CONTROL_PLANE__ALLOWED_NETWORKS", "[\"127.0.0.0/8\"]".to_owned()),
            ("FLOODWAY_DISPATCHER__ALLOWED_NETWORKS", "[\"127.0.0.0/8\"]".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        environment
            .extend(settings.iter().map(|(variable, value)| ((*variable).to_owned(), (*value).to_owned())));
        let topics = ["topics", "apply", "--dev", "--replication", "1", "--partitions", PARTITIONS];
        operate(&environment, &topics).await?;
        operate(&environment, &["migrate"]).await?;

        let role = |name| Role::new(name, environment.clone(), &folder);
        let mut pipeline = Self {
            ingest: role("ingest")?,
            dispatcher: role("dispatcher")?,
            retry_scheduler: role("retry-scheduler")?,
            control_plane: role("control-plane")?,
            admin: AdminClient::new(
                &format!("http://127.0.0.1:{control_port}"),
                Some("e2e-admin-key-0123456789"),
            )?,
            receiver: Receiver::bind(
                "127.0.0.1:0",
                ReceiverConfig { captured: CAPTURED, ..Default::default() },
            )
            .await?,
            tenant: String::new(),
            key: String::new(),
            events_url: format!("http://127.0.0.1:{ingest_port}/v1/events"),
            prefix: format!("{name}-"),
            database_url,
            stack,
            subscriptions: AtomicU32::new(0),
            environment,
            folder,
        };
        for role in pipeline.roles() {
            role.start()?;
        }
        for role in pipeline.roles() {
            role.ready().await?;
        }
        pipeline.tenant = pipeline.admin.create_tenant("e2e").await?;
        pipeline.key = pipeline.admin.create_api_key(&pipeline.tenant, "e2e").await?.key;
        Ok(pipeline)
    }

    /// The roles, in the order of the pipeline.
    pub fn roles(&mut self) -> [&mut Role; 4] {
        [&mut self.ingest, &mut self.dispatcher, &mut self.retry_scheduler, &mut self.control_plane]
    }

    /// One role by its name.
    ///
    /// # Errors
    /// When there is no such role.
    pub fn role(&mut self, name: &str) -> Result<&mut Role> {
        self.roles().into_iter().find(|role| role.name == name).with_context(|| format!("no role {name}"))
    }

    /// Another process of a role, with the settings of the first and a log of its own. It is not started.
    ///
    /// # Errors
    /// When no port is free.
    pub fn another(&self, name: &'static str, log: &str) -> Result<Role> {
        let folder = self.folder.join(log);
        std::fs::create_dir_all(&folder)?;
        Role::new(name, self.environment.clone(), &folder)
    }

    /// A subscription to everything, delivered to `path` of the receiver, which checks its signatures.
    ///
    /// # Errors
    /// When the control plane refuses it.
    pub async fn subscribe(&self, path: &str) -> Result<Subscription> {
        let subscription = self.subscribe_url(path, &self.receiver.url(path)).await?;
        self.receiver.set_secrets(path, &[&subscription.secret])?;
        Ok(subscription)
    }

    /// A subscription to everything, delivered to any URL.
    ///
    /// # Errors
    /// When the control plane refuses it.
    pub async fn subscribe_url(&self, name: &str, url: &str) -> Result<Subscription> {
        self.subscribe_patiently(name, url, &RETRY_DELAYS).await
    }

    /// The same, with a retry after each of so many seconds.
    ///
    /// # Errors
    /// When the control plane refuses it.
    pub async fn subscribe_patiently(
        &self,
        name: &str,
        url: &str,
        retry_delays: &[f64],
    ) -> Result<Subscription> {
        self.subscribe_to(&wanted(name, url, retry_delays)).await
    }

    /// A subscription as it is described, by [`wanted`] for one.
    ///
    /// # Errors
    /// When the control plane refuses it.
    pub async fn subscribe_to(&self, wanted: &NewSubscription) -> Result<Subscription> {
        let subscription = self.admin.create_subscription(&self.tenant, wanted).await?;
        // It is published; events that the dispatcher takes before it has read that are not for it.
        let known = self.subscriptions.fetch_add(1, Ordering::Relaxed) + 1;
        let end = Instant::now() + DEADLINE;
        while self
            .dispatcher
            .metric("floodway_dispatcher_subscriptions")
            .await
            .is_none_or(|n| n < f64::from(known))
        {
            ensure!(Instant::now() < end, "the dispatcher does not learn of {}", wanted.name);
            sleep(Duration::from_millis(20)).await;
        }
        Ok(subscription)
    }

    /// Attempts that a delivery to a dead endpoint gets.
    pub fn attempts_of_the_dead() -> u64 {
        RETRY_DELAYS.len() as u64 + 1
    }

    /// Full name of a topic.
    pub fn topic(&self, base: &str) -> String {
        format!("{}{base}", self.prefix)
    }

    /// Runs a command of the binary with this pipeline's settings.
    ///
    /// # Errors
    /// When it fails; the error has its output.
    pub async fn operate(&self, arguments: &[&str]) -> Result<()> {
        operate(&self.environment, arguments).await
    }

    /// Ends all roles in order and removes what the pipeline left behind.
    ///
    /// # Errors
    /// When a role does not end cleanly on SIGTERM.
    pub async fn finish(mut self) -> Result<Stack> {
        for role in self.roles() {
            let status = role.terminate().await?;
            ensure!(status.success(), "{} ended with {status}:\n{}", role.name, role.log_tail());
        }
        self.receiver.stop().await;
        drop_database(&self.stack.database_url, &self.database_url).await?;
        tokio::fs::remove_dir_all(&self.folder).await?;
        Ok(self.stack)
    }
}

/// A subscription to everything, with a retry after each of so many seconds and all of its history.
pub fn wanted(name: &str, url: &str, retry_delays: &[f64]) -> NewSubscription {
    NewSubscription {
        name: name.to_owned(),
        url: url.to_owned(),
        types: vec!["*".to_owned()],
        retry: Some(RetryPolicy {
            delays_seconds: retry_delays.to_vec(),
            jitter: 0.1,
            max_age_seconds: 3_600.0,
        }),
        history: Some("all"),
        timeout_ms: Some(5_000),
        ..NewSubscription::default()
    }
}

pub(crate) async fn operate(environment: &BTreeMap<String, String>, arguments: &[&str]) -> Result<()> {
    let output = command(environment)?.args(arguments).output().await?;
    if !output.status.success() {
        bail!(
            "floodway {}: {}\n{}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

async fn create_database(server_url: &str, name: &str) -> Result<String> {
    execute(server_url, &format!("CREATE DATABASE {name}")).await?;
    let (server, _) = server_url.rsplit_once('/').context("the database URL names no database")?;
    Ok(format!("{server}/{name}"))
}

/// Drops a database. Refused while a worker of autovacuum is in it, which only a superuser may end: then asked again.
async fn drop_database(server_url: &str, database_url: &str) -> Result<()> {
    const TRIES: u32 = 20;
    const PAUSE: Duration = Duration::from_millis(500);
    let (_, name) = database_url.rsplit_once('/').context("the database URL names no database")?;
    let statement = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
    for _ in 1..TRIES {
        if execute(server_url, &statement).await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
    execute(server_url, &statement).await
}

async fn execute(server_url: &str, statement: &str) -> Result<()> {
    const DEADLINE: Duration = Duration::from_secs(30);
    let (client, connection) = tokio_postgres::connect(server_url, tokio_postgres::NoTls).await?;
    tokio::select! {
        done = tokio::time::timeout(DEADLINE, client.batch_execute(statement)) => done??,
        ended = connection => ended?,
    }
    Ok(())
}
