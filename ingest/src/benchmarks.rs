//! The steps of the hot path that have no public face, for the benchmarks alone. Not part of what this crate offers.

use crate::{
    authenticate::KeyTable,
    limit::{Rates, Standing},
    partition::Partitions,
};
use floodway_schemas::{UnixMillis, config::ConfigChange};
use http::HeaderMap;
use std::num::NonZeroU32;

/// Letting a request in: its key, its tenant, their rates.
#[derive(Debug)]
pub struct Admission(KeyTable);

impl Admission {
    /// A table with these keys and tenants.
    pub fn new(changes: impl IntoIterator<Item = ConfigChange>) -> Self {
        let keys = KeyTable::new(Rates::default(), NonZeroU32::MIN);
        changes.into_iter().for_each(|change| keys.apply(change));
        keys.set_caught_up();
        Self(keys)
    }

    /// Whether a request with these headers and so many events is let in.
    pub fn admit(&self, headers: &HeaderMap, events: usize, now: UnixMillis) -> bool {
        let mut standing = Standing::default();
        let Ok(caller) = self.0.authenticate(headers, now) else { return false };
        caller.take_request(&mut standing).is_ok() && caller.take_events(events, &mut standing).is_ok()
    }
}

/// Choosing a record's partition and taking room in it.
#[derive(Debug)]
pub struct Placement(Partitions);

impl Placement {
    /// So many partitions, with room for anything.
    pub fn new(partitions: i32) -> Self {
        Self(Partitions::new(partitions, usize::MAX / 2))
    }

    /// Takes room for a record and gives it back; returns its partition.
    pub fn place(&self, key: &[u8], bytes: usize) -> usize {
        let partition = self.0.of(key);
        self.0.reserve(partition, bytes);
        self.0.release(partition, bytes);
        partition
    }
}
