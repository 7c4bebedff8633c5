//! Where history and counts are read: from a replica while it keeps up, from the primary otherwise. A replica whose connections are
//! all in use is no reason to load the primary: the request waits a little for one and is then refused.

use crate::error::Refusal;
use floodway_schemas::ids::TenantId;
use floodway_store::{Error, Pool, pool::Client, tenants};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// The databases of a control plane. Connects nothing.
#[derive(Debug, Clone)]
pub struct Databases {
    /// For configuration and marks, read and written.
    pub primary: Pool,
    /// For reading history, counts and dead letters from the primary.
    pub reads: Pool,
    /// For reading them from a replica.
    pub replica: Option<Pool>,
}

/// One pool for everything.
impl From<Pool> for Databases {
    fn from(primary: Pool) -> Self {
        Self { reads: primary.clone(), primary, replica: None }
    }
}

/// Gives out connections for reading. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct HistoryReads {
    primary: Pool,
    replica: Option<Replica>,
}

/// A replica, and whether it is to be asked: whoever watches it says so.
#[derive(Debug, Clone)]
pub(crate) struct Replica {
    pub(crate) pool: Pool,
    usable: Arc<AtomicBool>,
}

impl Replica {
    /// Says whether it is to be asked.
    pub(crate) fn set_usable(&self, usable: bool) {
        self.usable.store(usable, Ordering::Relaxed);
    }
}

impl HistoryReads {
    pub(crate) fn new(databases: &Databases) -> Self {
        let replica = |pool: &Pool| Replica { pool: pool.clone(), usable: Arc::default() };
        Self { primary: databases.reads.clone(), replica: databases.replica.as_ref().map(replica) }
    }

    pub(crate) fn replica(&self) -> Option<Replica> {
        self.replica.clone()
    }

    /// A connection to read what a tenant has.
    ///
    /// # Errors
    /// [`Refusal::NotFound`] when there is no such tenant, [`Refusal::Unavailable`] when too many read at the same time.
    pub(crate) async fn of_tenant(&self, tenant: TenantId) -> Result<Client, Refusal> {
        if let Some(client) = self.replica_of(tenant).await? {
            return Ok(client);
        }
        let client = self.primary.get().await?;
        tenants::get(&**client, tenant).await?;
        Ok(client)
    }

    /// A connection to the replica, if it is there and knows the tenant, which may be newer than what it has.
    async fn replica_of(&self, tenant: TenantId) -> Result<Option<Client>, Refusal> {
        let is_usable = |replica: &&Replica| replica.usable.load(Ordering::Relaxed);
        let Some(replica) = self.replica.as_ref().filter(is_usable) else { return Ok(None) };
        match replica.pool.get().await {
            Ok(client) => Ok(tenants::get(&**client, tenant).await.ok().map(|_| client)),
            Err(error @ Error::Busy(_)) => Err(error.into()),
            Err(error) => {
                tracing::warn!(%error, "the replica does not answer, history is read from the primary: {error}");
                replica.set_usable(false);
                Ok(None)
            }
        }
    }
}
