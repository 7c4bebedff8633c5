//! A Floodway of the benchmark's own: topics under a prefix, a database, ingest and the control plane as processes, and
//! a tenant with a key. All of it goes when the benchmark ends.

use super::{
    BenchError,
    database::Database,
    topics::{Retention, Topics},
};
use crate::{
    admin_client::{AdminClient, AdminError},
    child::{GuardedChild, last_lines},
    send::{SendError, SendPlan, payload::Payload, record::SendRecord, send},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::Method;
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};
use tokio::{process::Command, time::Instant};
use tokio_util::sync::CancellationToken;

/// Partitions of the topics.
pub const PARTITIONS: i32 = 8;
/// How long a role may take to become ready, and the key to take effect.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// Pause between two looks at it.
const READY_PAUSE: Duration = Duration::from_millis(100);
/// How long `floodway topics apply` and `floodway migrate` may take.
const PREPARE_DEADLINE: Duration = Duration::from_secs(120);

/// Where the servers are, and what is started on them.
#[derive(Debug, Clone)]
pub struct Site {
    /// The binary.
    pub floodway: PathBuf,
    /// `host:port`, separated by commas.
    pub brokers: String,
    /// The server on which databases are created.
    pub database_url: String,
    /// Where logs go.
    pub logs: PathBuf,
}

/// The running installation.
pub struct Installation {
    prefix: String,
    database: Option<Database>,
    children: Vec<GuardedChild>,
    variables: BTreeMap<String, String>,
}

/// What a benchmark needs to know of a running installation.
#[derive(Clone)]
pub struct Target {
    /// What the names of its topics start with.
    pub prefix: String,
    /// Process of ingest.
    pub ingest_pid: u32,
    /// Base URL of ingest.
    pub ingest_url: String,
    /// API key of the tenant.
    pub key: String,
    /// Version of PostgreSQL.
    pub postgres: String,
}

impl Target {
    /// The topic of events.
    pub fn events_topic(&self) -> String {
        format!("{}events", self.prefix)
    }

    /// A topic for the floor of the producer; it goes with the others.
    pub fn floor_topic(&self, scenario: &str) -> String {
        format!("{}floor-{scenario}", self.prefix)
    }
}

impl Installation {
    /// One that has a name and nothing else. [`Self::remove`] is to be called whatever [`Self::start`] returns.
    pub fn new() -> Self {
        Self {
            prefix: format!("bench-{:08x}-", rand::random::<u32>()),
            database: None,
            children: Vec::new(),
            variables: BTreeMap::new(),
        }
    }

    /// Creates topics and tables, starts the roles, and returns once ingest accepts events.
    ///
    /// # Errors
    /// When a server or a role does not do its part.
    pub async fn start(
        &mut self,
        site: &Site,
        topics: &Topics,
        retention: Retention,
    ) -> Result<Target, BenchError> {
        let name = format!("floodway_{}", self.prefix.trim_end_matches('-').replace('-', "_"));
        let database = Database::create(&site.database_url, &name).await?;
        let postgres = database.version.clone();
        let [ingest, control_plane, ingest_admin, control_admin] = free_ports()?;
        let admin_key = format!("bench_admin_{:032x}", rand::random::<u128>());
        let sealing_key = format!("bench:{}", STANDARD.encode(rand::random::<[u8; 32]>()));
        let own = [
            ("FLOODWAY_KAFKA_BROKERS", site.brokers.clone()),
            ("FLOODWAY_DATABASE_URL", database.url.clone()),
            ("FLOODWAY_TOPIC_PREFIX", self.prefix.clone()),
            ("FLOODWAY_SEALING_KEY", sealing_key),
            ("FLOODWAY_CONTROL_PLANE__ADMIN_KEY", admin_key.clone()),
            ("FLOODWAY_INGEST__LISTEN", ingest.to_string()),
            ("FLOODWAY_CONTROL_PLANE__LISTEN", control_plane.to_string()),
            ("FLOODWAY_LOG", "warn".to_owned()),
        ];
        self.variables = own.map(|(name, value)| (name.to_owned(), value)).into();
        self.database = Some(database);

        let partitions = PARTITIONS.to_string();
        let apply = ["topics", "apply", "--dev", "--replication", "1", "--partitions", &partitions];
        self.prepare(site, &apply).await?;
        topics.keep(&format!("{}events", self.prefix), retention).await?;
        self.prepare(site, &["migrate"]).await?;
        self.start_role(site, "control-plane", control_admin).await?;
        let ingest_pid = self.start_role(site, "ingest", ingest_admin).await?;

        let admin = AdminClient::new(&format!("http://{control_plane}"), Some(&admin_key))?;
        let tenant = admin.create_tenant("bench").await?;
        let key = admin.create_api_key(&tenant, "bench").await?.key;
        let ingest_url = format!("http://{ingest}");
        let target = Target { prefix: self.prefix.clone(), ingest_pid, ingest_url, key, postgres };
        wait_until_accepting(&target).await?;
        Ok(target)
    }

    /// Runs a command of Floodway that ends by itself.
    async fn prepare(&self, site: &Site, arguments: &[&str]) -> Result<(), BenchError> {
        let output = Command::new(&site.floodway)
            .args(arguments)
            .envs(&self.variables)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let command = || format!("floodway {}", arguments.join(" "));
        let failed = |reason: String| BenchError::Command { command: command(), reason };
        let output = tokio::time::timeout(PREPARE_DEADLINE, output)
            .await
            .map_err(|_| failed(format!("not done after {} s", PREPARE_DEADLINE.as_secs())))?
            .map_err(|error| failed(error.to_string()))?;
        if output.status.success() {
            return Ok(());
        }
        Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }

    /// Starts a role and waits until it is ready; returns its process id.
    async fn start_role(&mut self, site: &Site, role: &str, admin: SocketAddr) -> Result<u32, BenchError> {
        let log = site.logs.join(format!("{role}.log"));
        let mut variables = self.variables.clone();
        variables.insert("FLOODWAY_ADMIN__LISTEN".to_owned(), admin.to_string());
        let mut child = GuardedChild::start(&site.floodway, &[role], &variables, &log)?;
        // It was started just now and has not been waited for.
        let pid = child.pid().unwrap_or_default();
        let ready = tokio::select! {
            ready = wait_until_ready(role, admin, &log) => ready,
            ended = child.ended() => Err(ended.into()),
        };
        self.children.push(child);
        ready.map(|()| pid)
    }

    /// Returns when a process has ended, which none does by itself unless something is wrong.
    pub async fn ended(&mut self) -> BenchError {
        match self.children.as_mut_slice() {
            [first, second, ..] => {
                tokio::select! { error = first.ended() => error.into(), error = second.ended() => error.into() }
            }
            [only] => only.ended().await.into(),
            [] => std::future::pending().await,
        }
    }

    /// Stops the processes; drops the database; deletes the topics. Goes on after an error, and returns the first one.
    ///
    /// # Errors
    /// When something is left behind.
    pub async fn remove(self, topics: &Topics) -> Result<(), BenchError> {
        for child in self.children.into_iter().rev() {
            // One that had to be killed is gone as well.
            let _ = child.stop().await;
        }
        let deleted = topics.delete_installation(&self.prefix).await;
        if let Some(database) = self.database {
            database.drop().await?;
        }
        deleted
    }
}

impl Default for Installation {
    fn default() -> Self {
        Self::new()
    }
}

async fn wait_until_ready(role: &str, admin: SocketAddr, log: &Path) -> Result<(), BenchError> {
    let health = AdminClient::new(&format!("http://{admin}"), None)?;
    let ask = async |path| health.call(Method::GET, path, Bytes::new()).await;
    let deadline = Instant::now() + READY_DEADLINE;
    while ask("/health/ready").await.is_err() {
        if Instant::now() >= deadline {
            let health = match ask("/health/detailed").await {
                Ok(body) => String::from_utf8_lossy(&body).into_owned(),
                Err(AdminError::Refused { body, .. }) => body,
                Err(error) => error.to_string(),
            };
            let what = format!("floodway {role}");
            let seconds = READY_DEADLINE.as_secs();
            return Err(BenchError::NotReady { what, seconds, health, log: last_lines(log) });
        }
        tokio::time::sleep(READY_PAUSE).await;
    }
    Ok(())
}

/// Sends an event now and then until one is accepted: the key takes effect when ingest has heard of it.
async fn wait_until_accepting(target: &Target) -> Result<(), BenchError> {
    let plan = SendPlan {
        url: target.ingest_url.clone(),
        key: target.key.clone(),
        payload: Payload::Sized { event_type: "bench.probe".to_owned(), bytes: 32 },
        tries: 1,
        connections: 1,
        ..SendPlan::default()
    };
    let deadline = Instant::now() + READY_DEADLINE;
    loop {
        let record = Arc::new(SendRecord::new(format!("probe-{:x}", rand::random::<u32>()), 1));
        let last = match send(&plan, &record, &CancellationToken::new()).await {
            Ok(report) if report.tally.accepted == 1 => return Ok(()),
            Ok(report) => format!("{:?}", report.tally),
            Err(error @ SendError::Unauthorized(_)) => error.to_string(),
            Err(error) => return Err(error.into()),
        };
        if Instant::now() >= deadline {
            let seconds = READY_DEADLINE.as_secs();
            return Err(BenchError::NotReady {
                what: "the key of the new tenant".to_owned(),
                seconds,
                health: last,
                log: String::new(),
            });
        }
        tokio::time::sleep(READY_PAUSE).await;
    }
}

/// Loopback addresses with ports that are free. Somebody else may still take one before its role does; then the role says
/// so and ends.
pub fn free_ports<const N: usize>() -> Result<[SocketAddr; N], BenchError> {
    let mut held = Vec::with_capacity(N);
    let mut addresses = [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)); N];
    for address in &mut addresses {
        let listener = TcpListener::bind(*address)?;
        *address = listener.local_addr()?;
        // Held until all are found, so that they differ.
        held.push(listener);
    }
    Ok(addresses)
}
