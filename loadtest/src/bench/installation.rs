//! A Floodway of the benchmark's own: topics under a prefix, a database, ingest and the control plane as processes, further
//! roles as they are asked for, and a tenant with a key. All of it goes when the benchmark ends.

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
    task::Poll,
    time::Duration,
};
use tokio::{process::Command, time::Instant};
use tokio_util::sync::CancellationToken;

/// Id of the key that seals secrets.
pub const SEALING_KEY_ID: &str = "bench";
/// Networks that webhooks may go to besides public ones: sinks are on this machine.
const LOOPBACK: &str = "[\"127.0.0.0/8\"]";
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
    site: Site,
    prefix: String,
    sealing_key: [u8; 32],
    database: Option<Database>,
    roles: Vec<Role>,
    variables: BTreeMap<String, String>,
}

/// A running role.
struct Role {
    name: String,
    child: GuardedChild,
    pid: u32,
    /// Health and metrics.
    admin: SocketAddr,
    log: PathBuf,
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
    /// The tenant.
    pub tenant: String,
    /// API key of the tenant.
    pub key: String,
    /// The REST API.
    pub admin: AdminClient,
    /// What secrets are sealed with; its id is [`SEALING_KEY_ID`].
    pub sealing_key: [u8; 32],
    /// Version of PostgreSQL.
    pub postgres: String,
}

/// Topics and tables on which roles can be started.
#[derive(Debug, Clone)]
pub struct Ground {
    /// What the names of its topics start with.
    pub prefix: String,
    /// How its database is reached.
    pub database_url: String,
    /// Version of PostgreSQL.
    pub postgres: String,
}

impl Target {
    /// The topic of events.
    pub fn events_topic(&self) -> String {
        format!("{}events", self.prefix)
    }

    /// The topic of outcomes.
    pub fn outcomes_topic(&self) -> String {
        format!("{}outcomes", self.prefix)
    }

    /// The topic of configuration.
    pub fn config_topic(&self) -> String {
        format!("{}config", self.prefix)
    }

    /// A topic for the floor of the producer; it goes with the others.
    pub fn floor_topic(&self, scenario: &str) -> String {
        format!("{}floor-{scenario}", self.prefix)
    }
}

impl Installation {
    /// One that has a name and nothing else. [`Self::remove`] is to be called whatever [`Self::start`] returns.
    pub fn new(site: &Site) -> Self {
        Self {
            site: site.clone(),
            prefix: format!("bench-{:08x}-", rand::random::<u32>()),
            sealing_key: rand::random(),
            database: None,
            roles: Vec::new(),
            variables: BTreeMap::new(),
        }
    }

    /// Creates topics and tables, and starts nothing.
    ///
    /// # Errors
    /// When a server does not do its part.
    pub async fn lay(&mut self, partitions: i32) -> Result<Ground, BenchError> {
        let name = format!("floodway_{}", self.prefix.trim_end_matches('-').replace('-', "_"));
        let database = Database::create(&self.site.database_url, &name).await?;
        let ground = Ground {
            prefix: self.prefix.clone(),
            database_url: database.url.clone(),
            postgres: database.version.clone(),
        };
        let own = [
            ("FLOODWAY_KAFKA_BROKERS", self.site.brokers.clone()),
            ("FLOODWAY_DATABASE_URL", database.url.clone()),
            ("FLOODWAY_TOPIC_PREFIX", self.prefix.clone()),
            ("FLOODWAY_LOG", "warn".to_owned()),
        ];
        self.variables.extend(own.map(|(name, value)| (name.to_owned(), value)));
        self.database = Some(database);
        let partitions = partitions.to_string();
        let apply = ["topics", "apply", "--dev", "--replication", "1", "--partitions", &partitions];
        self.prepare(&apply).await?;
        self.prepare(&["migrate"]).await?;
        Ok(ground)
    }

    /// Creates topics and tables, starts the control plane and ingest, and returns once ingest accepts events.
    ///
    /// # Errors
    /// When a server or a role does not do its part.
    pub async fn start(&mut self, topics: &Topics, retention: Retention) -> Result<Target, BenchError> {
        let [ingest, control_plane] = free_ports()?;
        let admin_key = format!("bench_admin_{:032x}", rand::random::<u128>());
        let own = [
            ("FLOODWAY_SEALING_KEY", format!("{SEALING_KEY_ID}:{}", STANDARD.encode(self.sealing_key))),
            ("FLOODWAY_CONTROL_PLANE__ADMIN_KEY", admin_key.clone()),
            ("FLOODWAY_CONTROL_PLANE__ALLOWED_NETWORKS", LOOPBACK.to_owned()),
            ("FLOODWAY_DISPATCHER__ALLOWED_NETWORKS", LOOPBACK.to_owned()),
            ("FLOODWAY_INGEST__LISTEN", ingest.to_string()),
            ("FLOODWAY_CONTROL_PLANE__LISTEN", control_plane.to_string()),
        ];
        self.variables.extend(own.map(|(name, value)| (name.to_owned(), value)));
        let Ground { postgres, .. } = self.lay(PARTITIONS).await?;
        topics.keep(&format!("{}events", self.prefix), retention).await?;
        self.start_role("control-plane").await?;
        let ingest_pid = self.start_role("ingest").await?;

        let admin = AdminClient::new(&format!("http://{control_plane}"), Some(&admin_key))?;
        let tenant = admin.create_tenant("bench").await?;
        let key = admin.create_api_key(&tenant, "bench").await?.key;
        let ingest_url = format!("http://{ingest}");
        let (prefix, sealing_key) = (self.prefix.clone(), self.sealing_key);
        let target = Target { prefix, ingest_pid, ingest_url, tenant, key, admin, sealing_key, postgres };
        wait_until_accepting(&target.ingest_url, &target.key).await?;
        Ok(target)
    }

    /// Sets a variable for the roles that are started from now on; those that make it an installation have the last word.
    pub fn set(&mut self, name: &str, value: String) {
        self.variables.insert(name.to_owned(), value);
    }

    /// Runs a command of Floodway that ends by itself.
    async fn prepare(&self, arguments: &[&str]) -> Result<(), BenchError> {
        let output = Command::new(&self.site.floodway)
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
    ///
    /// # Errors
    /// When it cannot be started, ends by itself, or is not ready in time.
    pub async fn start_role(&mut self, role: &str) -> Result<u32, BenchError> {
        let pid = self.spawn_role(role)?;
        self.wait_until_ready(role).await?;
        Ok(pid)
    }

    /// Starts a role; returns its process id.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn_role(&mut self, role: &str) -> Result<u32, BenchError> {
        let log = self.site.logs.join(format!("{role}.log"));
        let [admin] = free_ports()?;
        let mut variables = self.variables.clone();
        variables.insert("FLOODWAY_ADMIN__LISTEN".to_owned(), admin.to_string());
        let child = GuardedChild::start(&self.site.floodway, &[role], &variables, &log)?;
        // It was started just now and has not been waited for.
        let pid = child.pid().unwrap_or_default();
        self.roles.push(Role { name: role.to_owned(), child, pid, admin, log });
        Ok(pid)
    }

    /// Waits until a role that was started is ready.
    ///
    /// # Errors
    /// When it ends by itself, or is not ready in time.
    pub async fn wait_until_ready(&mut self, role: &str) -> Result<(), BenchError> {
        let Some(role) = self.roles.iter_mut().rfind(|other| other.name == role) else { return Ok(()) };
        tokio::select! {
            ready = wait_until_ready(&role.name, role.admin, &role.log) => ready,
            ended = role.child.ended() => Err(ended.into()),
        }
    }

    /// Stops a role in order, if it runs.
    pub async fn stop_role(&mut self, role: &str) {
        while let Some(at) = self.roles.iter().position(|other| other.name == role) {
            // One that had to be killed is gone as well.
            let _ = self.roles.remove(at).child.stop().await;
        }
    }

    /// Processes of a role.
    pub fn pid(&self, role: &str) -> Option<u32> {
        self.roles.iter().rfind(|other| other.name == role).map(|role| role.pid)
    }

    /// A metric of a role, all its labels added up; `None` if the role does not say.
    pub async fn metric(&self, role: &str, name: &str) -> Option<f64> {
        let role = self.roles.iter().rfind(|other| other.name == role)?;
        let metrics = AdminClient::new(&format!("http://{}", role.admin), None).ok()?;
        let body = metrics.call(Method::GET, "/metrics", Bytes::new()).await.ok()?;
        sum_of(&String::from_utf8_lossy(&body), name)
    }

    /// Returns when a process has ended, which none does by itself unless something is wrong.
    pub async fn ended(&mut self) -> BenchError {
        let mut ends: Vec<_> = self.roles.iter_mut().map(|role| Box::pin(role.child.ended())).collect();
        let first = std::future::poll_fn(|context| {
            let ended = ends.iter_mut().find_map(|end| match end.as_mut().poll(context) {
                Poll::Ready(error) => Some(error),
                Poll::Pending => None,
            });
            ended.map_or(Poll::Pending, Poll::Ready)
        });
        first.await.into()
    }

    /// Says so if a process has ended.
    ///
    /// # Errors
    /// The end.
    pub async fn check(&mut self) -> Result<(), BenchError> {
        tokio::select! {
            biased;
            ended = self.ended() => Err(ended),
            () = std::future::ready(()) => Ok(()),
        }
    }

    /// Stops the processes; drops the database; deletes the topics. Goes on after an error, and returns the first one.
    ///
    /// # Errors
    /// When something is left behind.
    pub async fn remove(self, topics: &Topics) -> Result<(), BenchError> {
        for role in self.roles.into_iter().rev() {
            // One that had to be killed is gone as well.
            let _ = role.child.stop().await;
        }
        let deleted = topics.delete_installation(&self.prefix).await;
        if let Some(database) = self.database {
            database.drop().await?;
        }
        deleted
    }
}

/// The sum of a metric's lines in the text format of Prometheus.
fn sum_of(text: &str, name: &str) -> Option<f64> {
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        (rest.starts_with(['{', ' '])).then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
    });
    values.reduce(|sum, value| sum + value)
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
///
/// # Errors
/// When none is accepted in time.
pub async fn wait_until_accepting(ingest_url: &str, key: &str) -> Result<(), BenchError> {
    let plan = SendPlan {
        url: ingest_url.to_owned(),
        key: key.to_owned(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_the_sum_of_its_lines_and_no_others() {
        let text = "# TYPE a_total counter\na_total{x=\"1\"} 2\na_total{x=\"2\"} 3\na_total_other 7\nb 1.5\n";
        assert_eq!(sum_of(text, "a_total"), Some(5.0));
        assert_eq!(sum_of(text, "b"), Some(1.5));
        assert_eq!(sum_of(text, "c"), None);
    }
}
