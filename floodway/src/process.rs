//! The life of a process that runs one or more roles: bind all, run all, drain all.

use crate::{config::Settings, error::Error};
use floodway_control_plane::{ControlPlane, Databases};
use floodway_dispatcher::Dispatcher;
use floodway_ingest::Ingest;
use floodway_retry_scheduler::RetryScheduler;
use floodway_runtime::{
    Context,
    admin::{self, Admin},
    health::Health,
    shutdown,
};
use floodway_schemas::seal::SealingKeys;
use floodway_store::{
    Pool,
    pool::{DEFAULT_POOL_SIZE, READ_POOL_SIZE},
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::sync::Arc;
use tokio::task::JoinSet;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// A role of the pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Ingest,
    Dispatcher,
    RetryScheduler,
    ControlPlane,
}

impl Role {
    /// Every role, in the order of the pipeline.
    pub(crate) const ALL: [Self; 4] =
        [Self::Ingest, Self::Dispatcher, Self::RetryScheduler, Self::ControlPlane];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Dispatcher => "dispatcher",
            Self::RetryScheduler => "retry-scheduler",
            Self::ControlPlane => "control-plane",
        }
    }

    pub(crate) const fn needs_database(self) -> bool {
        matches!(self, Self::RetryScheduler | Self::ControlPlane)
    }

    pub(crate) const fn needs_sealing_key(self) -> bool {
        matches!(self, Self::Dispatcher | Self::ControlPlane)
    }
}

/// Runs the roles until a signal comes or one of them fails; returns when all have drained.
pub(crate) async fn run(roles: &[Role], settings: Settings) -> Result<(), Error> {
    settings.validate(roles)?;
    raise_descriptor_limit(roles, &settings);
    let metrics = admin::install_metrics().map_err(Error::settings)?;
    let health = Health::default();
    // Until the roles are built they report nothing, and nothing would look like readiness.
    let built = health.component("roles", true);
    let admin = Admin::bind(&settings.admin, health.clone(), metrics).await.map_err(Error::settings)?;
    tracing::info!(address = %admin.address()?, "health and metrics");
    let sealing = match &settings.sealing_key {
        Some(_) => settings.sealing_keys()?,
        None => SealingKeys::none(),
    };
    let context = Context {
        kafka: settings.kafka()?,
        sealing: Arc::new(sealing),
        health,
        shutdown: CancellationToken::new(),
    };

    let (listeners, admin_stopped) = (TaskTracker::new(), CancellationToken::new());
    listeners.spawn(admin.run(admin_stopped.clone()));
    listeners.spawn(wait_for_signal(context.shutdown.clone()));
    let mut running = JoinSet::new();
    for role in roles {
        start(*role, &settings, &context, &mut running).await?;
    }
    built.up();

    let ended = drain(running, &context.shutdown).await;
    admin_stopped.cancel();
    listeners.close();
    listeners.wait().await;
    ended
}

/// File descriptors besides ingest's connections: admin connections, clients of Kafka and PostgreSQL, deliveries in
/// flight, files.
const OTHER_DESCRIPTORS: u64 = 1024;

/// Lets the process have as many file descriptors as the system grants. The soft limit is low by custom, for programs
/// older than `poll`.
fn raise_descriptor_limit(roles: &[Role], settings: &Settings) {
    let found = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: found.maximum, ..found };
    if found != raised
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        tracing::warn!(%error, "the limit on open files could not be raised");
    }
    let limit = getrlimit(Resource::Nofile).current;
    tracing::info!(limit, "open files");
    let connections = settings.ingest.max_connections;
    if roles.contains(&Role::Ingest) && !leaves_room(limit, connections) {
        tracing::warn!(
            limit,
            connections,
            "ingest.max_connections is more than the limit on open files leaves room for: raise the hard limit (ulimit -Hn)"
        );
    }
}

fn leaves_room(limit: Option<u64>, connections: usize) -> bool {
    limit.is_none_or(|limit| limit.saturating_sub(OTHER_DESCRIPTORS) >= connections as u64)
}

async fn wait_for_signal(shutdown: CancellationToken) {
    if let Err(error) = shutdown::on_signal(shutdown).await {
        tracing::error!(%error, "signals cannot be received: end this process with SIGKILL");
    }
}

type Running = JoinSet<Result<(), Error>>;

/// Builds a role and spawns it. What fails here is a setting, or what a setting points to.
async fn start(
    role: Role,
    settings: &Settings,
    context: &Context,
    running: &mut Running,
) -> Result<(), Error> {
    let context = Context { health: context.health.for_role(role.name()), ..context.clone() };
    match role {
        Role::Ingest => {
            let ingest = Ingest::bind(settings.ingest.clone(), context).await.map_err(Error::settings)?;
            tracing::info!(address = %ingest.address(), "ingest accepts events");
            running.spawn(async move { ingest.run().await.map_err(|error| failed(role, &error)) });
        }
        Role::Dispatcher => {
            let dispatcher =
                Dispatcher::bind(settings.dispatcher.clone(), context).await.map_err(Error::settings)?;
            running.spawn(async move { dispatcher.run().await.map_err(|error| failed(role, &error)) });
        }
        Role::RetryScheduler => {
            let pool = pool(settings, role)?;
            let scheduler = RetryScheduler::bind(settings.retry_scheduler.clone(), context, pool)
                .await
                .map_err(Error::settings)?;
            running.spawn(async move { scheduler.run().await.map_err(|error| failed(role, &error)) });
        }
        Role::ControlPlane => {
            let databases = databases(settings, role)?;
            let control_plane = ControlPlane::bind(settings.control_plane.clone(), context, databases)
                .await
                .map_err(Error::settings)?;
            tracing::info!(address = %control_plane.address(), "control plane serves its API");
            running.spawn(async move { control_plane.run().await.map_err(|error| failed(role, &error)) });
        }
    }
    Ok(())
}

fn pool(settings: &Settings, role: Role) -> Result<Pool, Error> {
    settings.database_pool(&format!("floodway-{}", role.name()), DEFAULT_POOL_SIZE)
}

/// The control plane's pools: one for its own tables, one for reading history, one for the replica.
fn databases(settings: &Settings, role: Role) -> Result<Databases, Error> {
    let name = format!("floodway-{}-reads", role.name());
    let reads = |url| Pool::read_only(url, &name, READ_POOL_SIZE).map_err(Error::settings);
    Ok(Databases {
        primary: pool(settings, role)?,
        // Past a pooler, which takes no options of a session.
        reads: reads(settings.database_direct_url()?)?,
        replica: settings.database_replica_url()?.map(reads).transpose()?,
    })
}

fn failed(role: Role, error: &dyn std::error::Error) -> Error {
    Error::Role { role: role.name(), reason: error.to_string() }
}

/// Waits for every role. The first to fail takes the others down with it: half a process helps nobody.
async fn drain(mut running: Running, shutdown: &CancellationToken) -> Result<(), Error> {
    let mut first_error = None;
    while let Some(ended) = running.join_next().await {
        let result = ended.unwrap_or_else(|panic| Err(Error::Failed(format!("a role panicked: {panic}"))));
        if let Err(error) = result {
            tracing::error!(%error, "shutting down");
            first_error.get_or_insert(error);
        }
        shutdown.cancel();
    }
    first_error.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_on_open_files_is_raised_as_far_as_it_goes() {
        raise_descriptor_limit(&[Role::Ingest], &Settings::default());
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }

    #[test]
    fn connections_have_room_beside_everything_else() {
        assert!(leaves_room(None, usize::MAX));
        assert!(leaves_room(Some(10_000 + OTHER_DESCRIPTORS), 10_000));
        assert!(!leaves_room(Some(10_000), 10_000));
        assert!(!leaves_room(Some(10), 1));
    }
}
