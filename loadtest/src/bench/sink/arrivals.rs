//! What arrived at a sink, by groups of endpoints: how many webhooks, how many different ones, and how long they took.

use crate::{load::Quantiles, send::latency_histogram};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashSet},
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// Groups that are kept apart; further ones count as untracked.
const MAX_GROUPS: usize = 64;
/// Webhooks that are remembered, to tell repeats: 16 bytes or so each. Further ones count as untracked.
const MAX_REMEMBERED: usize = 8_000_000;
/// Locks of what is remembered. Threads seldom meet at one of them.
const SHARDS: usize = 16;

/// One webhook that was read whole.
#[derive(Debug, Clone, Copy)]
pub struct Webhook<'a> {
    /// Group of its endpoint.
    pub group: &'a str,
    /// Its endpoint within the group: one event may go to several.
    pub endpoint: &'a str,
    /// The event's id.
    pub event_id: &'a str,
    /// When its request was due at ingest, if the event says so.
    pub sent_micros: Option<u64>,
    /// When it had been read, by the same clock.
    pub at_micros: u64,
}

/// Everything that arrived since the start or the last time that it was forgotten.
pub struct Arrivals {
    groups: RwLock<BTreeMap<Box<str>, Arc<Group>>>,
    /// Hashes of endpoint and event id.
    remembered: [Mutex<HashSet<u64>>; SHARDS],
    hasher: RandomState,
    untracked: AtomicU64,
}

/// Counts of one group.
#[derive(Default)]
struct Group {
    arrivals: AtomicU64,
    distinct: AtomicU64,
    first_micros: AtomicU64,
    last_micros: AtomicU64,
    /// First arrivals only.
    latency: Mutex<Option<Histogram<u64>>>,
}

/// What a sink says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkFigures {
    /// By group.
    pub groups: BTreeMap<String, GroupFigures>,
    /// Webhooks beyond what can be remembered: with any, nothing is proved.
    pub untracked: u64,
}

/// What a sink says of one group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupFigures {
    /// Webhooks that arrived.
    pub arrivals: u64,
    /// Different ones: pairs of endpoint and event.
    pub distinct: u64,
    /// When the first arrived, in microseconds of the machine's clock; 0 if none did.
    pub first_micros: u64,
    /// When the last one arrived that had not arrived before.
    pub last_micros: u64,
    /// From when the request was due at ingest to its arrival, in microseconds, without repeats.
    pub latency: Quantiles,
}

impl Arrivals {
    /// Nothing yet.
    pub fn new() -> Self {
        Self {
            groups: RwLock::default(),
            remembered: std::array::from_fn(|_| Mutex::default()),
            hasher: RandomState::new(),
            untracked: AtomicU64::new(0),
        }
    }

    /// Counts a webhook.
    pub fn count(&self, webhook: &Webhook<'_>) {
        let Some(group) = self.group(webhook.group) else {
            self.untracked.fetch_add(1, Relaxed);
            return;
        };
        let hash = self.hasher.hash_one((webhook.group, webhook.endpoint, webhook.event_id));
        let is_new = {
            let mut remembered = lock(&self.remembered[hash as usize % SHARDS]);
            if remembered.len() >= MAX_REMEMBERED / SHARDS {
                self.untracked.fetch_add(1, Relaxed);
            }
            remembered.len() < MAX_REMEMBERED / SHARDS && remembered.insert(hash)
        };
        group.arrivals.fetch_add(1, Relaxed);
        // Only the first arrival finds 0.
        let _ = group.first_micros.compare_exchange(0, webhook.at_micros, Relaxed, Relaxed);
        if !is_new {
            return;
        }
        group.distinct.fetch_add(1, Relaxed);
        group.last_micros.fetch_max(webhook.at_micros, Relaxed);
        if let Some(sent) = webhook.sent_micros {
            let mut latency = lock(&group.latency);
            let histogram = latency.get_or_insert_with(latency_histogram);
            histogram.saturating_record(webhook.at_micros.saturating_sub(sent).max(1));
        }
    }

    /// What arrived.
    pub fn figures(&self) -> SinkFigures {
        let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        let groups = groups.iter().map(|(name, group)| (name.to_string(), group.figures())).collect();
        SinkFigures { groups, untracked: self.untracked.load(Relaxed) }
    }

    /// Forgets everything.
    pub fn forget(&self) {
        self.groups.write().unwrap_or_else(PoisonError::into_inner).clear();
        self.remembered.iter().for_each(|shard| *lock(shard) = HashSet::new());
        self.untracked.store(0, Relaxed);
    }

    fn group(&self, name: &str) -> Option<Arc<Group>> {
        if let Some(group) = self.groups.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            return Some(Arc::clone(group));
        }
        let mut groups = self.groups.write().unwrap_or_else(PoisonError::into_inner);
        if groups.len() >= MAX_GROUPS && !groups.contains_key(name) {
            return None;
        }
        Some(Arc::clone(groups.entry(name.into()).or_default()))
    }
}

impl Default for Arrivals {
    fn default() -> Self {
        Self::new()
    }
}

impl Group {
    fn figures(&self) -> GroupFigures {
        GroupFigures {
            arrivals: self.arrivals.load(Relaxed),
            distinct: self.distinct.load(Relaxed),
            first_micros: self.first_micros.load(Relaxed),
            last_micros: self.last_micros.load(Relaxed),
            latency: lock(&self.latency).as_ref().map(Quantiles::from).unwrap_or_default(),
        }
    }
}

impl SinkFigures {
    /// One group; all zero if nothing arrived there.
    pub fn group(&self, name: &str) -> GroupFigures {
        self.groups.get(name).copied().unwrap_or_default()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn webhook<'a>(endpoint: &'a str, event_id: &'a str, at_micros: u64) -> Webhook<'a> {
        Webhook { group: "g", endpoint, event_id, sent_micros: Some(1_000), at_micros }
    }

    #[test]
    fn repeats_are_arrivals_and_neither_different_nor_late() {
        let arrivals = Arrivals::new();
        for (endpoint, event, at) in
            [("/a", "1", 2_000), ("/a", "2", 3_000), ("/b", "1", 4_000), ("/a", "1", 900_000)]
        {
            arrivals.count(&webhook(endpoint, event, at));
        }
        let group = arrivals.figures().group("g");
        assert_eq!((group.arrivals, group.distinct), (4, 3));
        assert_eq!((group.first_micros, group.last_micros), (2_000, 4_000));
        assert!((3_000..3_010).contains(&group.latency.max), "{group:?}");
        assert_eq!(arrivals.figures().group("other"), GroupFigures::default());
    }

    #[test]
    fn what_was_forgotten_counts_again() {
        let arrivals = Arrivals::new();
        arrivals.count(&webhook("/a", "1", 2_000));
        arrivals.forget();
        assert_eq!(arrivals.figures(), SinkFigures::default());
        arrivals.count(&webhook("/a", "1", 2_000));
        assert_eq!(arrivals.figures().group("g").distinct, 1);
    }

    #[test]
    fn groups_beyond_the_bound_are_untracked() {
        let arrivals = Arrivals::new();
        for number in 0..=MAX_GROUPS {
            let group = number.to_string();
            arrivals.count(&Webhook { group: &group, ..webhook("/a", "1", 2_000) });
        }
        assert_eq!((arrivals.figures().groups.len(), arrivals.figures().untracked), (MAX_GROUPS, 1));
    }
}
