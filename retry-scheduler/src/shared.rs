//! What every shard of the process uses, and how their threads call the database.

use crate::{
    circuit::Circuit, config::Settings, dependency::Dependency, metrics::Metrics, publish::Publisher,
};
use floodway_runtime::{kafka::KafkaSettings, witness::Witness};
use floodway_store::Pool;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::{Notify, Semaphore},
};

/// Longest wait for the database's answer. Its own limits are shorter, so this passes only if they do not work.
pub(crate) const DATABASE_TIMEOUT: Duration = Duration::from_secs(15);

/// What every shard of the process uses.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) kafka: KafkaSettings,
    pub(crate) pool: Pool,
    /// Half of the pool's connections: pages that are read meanwhile leave the others to whoever stores.
    pub(crate) pages: Arc<Semaphore>,
    pub(crate) handle: Handle,
    pub(crate) publisher: Publisher,
    /// Asked when a client finds no broker.
    pub(crate) witness: Witness,
    pub(crate) metrics: Metrics,
    pub(crate) kafka_health: Dependency,
    pub(crate) database_health: Dependency,
    pub(crate) circuit: Circuit,
    pub(crate) outcomes_log: Dependency,
    /// Wakes the task that creates partitions and looks after shards without one.
    pub(crate) partitions_wanted: Notify,
    /// How far each shard was stored: what the group commits, as a hint for people and tools.
    pub(crate) positions: Mutex<BTreeMap<i32, i64>>,
    /// Partitions of `outcomes` as Kafka last told; 0 before that.
    pub(crate) partitions: AtomicI32,
    /// Who this process is, for the shard's row.
    pub(crate) owner: String,
}

impl Shared {
    /// Notes how many partitions `outcomes` has; when that is news, maintenance looks whether all shards still have one.
    pub(crate) fn learn_partitions(&self, partitions: i32) {
        // Relaxed: the number stands for itself.
        if partitions > 0 && self.partitions.swap(partitions, Ordering::Relaxed) != partitions {
            self.partitions_wanted.notify_one();
        }
    }
}

/// Waits for the database from a thread of its own.
pub(crate) fn call<T, E: From<floodway_store::Error>>(
    shared: &Shared,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let limited = async {
        match tokio::time::timeout(DATABASE_TIMEOUT, work).await {
            Ok(result) => result,
            Err(_) => Err(no_answer().into()),
        }
    };
    shared.handle.block_on(limited)
}

/// What stands for an answer that does not come.
pub(crate) fn no_answer() -> floodway_store::Error {
    floodway_store::Error::Unavailable(format!("no answer within {} s", DATABASE_TIMEOUT.as_secs()))
}

/// The critical sections are single map operations: a panic cannot leave one half done.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
