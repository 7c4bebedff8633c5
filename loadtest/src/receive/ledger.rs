//! What arrived: one entry per path and webhook-id, and totals per path.
//!
//! Memory is bounded: an entry takes about 250 bytes, so the default of a million entries stays below 300 MB.
//! Arrivals beyond the bounds are answered as a first arrival would be and counted as untracked, never dropped
//! silently: a reconciliation over a ledger with untracked arrivals proves nothing, and says so.

use super::verify::{Refusal, Verdict};
use serde::Serialize;
use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

/// Locks per path. Arrivals of different webhooks seldom meet at one of them.
const SHARDS: usize = 16;
/// Longest webhook-id or event id that is kept, in bytes; longer ones are untracked. Floodway's are at most 256.
const MAX_ID_BYTES: usize = 512;

/// How much a ledger may remember.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Entries in all paths together.
    pub entries: usize,
    /// Paths.
    pub paths: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { entries: 1_000_000, paths: 10_000 }
    }
}

/// One request, as far as the ledger cares.
#[derive(Debug, Clone, Copy)]
pub struct Arrival<'a> {
    /// Path of the URL, without the query.
    pub path: &'a str,
    /// `webhook-id`; empty if the request had none.
    pub webhook_id: &'a str,
    /// `ce-id`, the producer's own id of the event.
    pub event_id: Option<&'a str>,
    /// The body.
    pub body: &'a [u8],
    /// When the whole request had been read.
    pub at: Instant,
    /// What the check of its signature said.
    pub verdict: Verdict,
}

/// What is known of one webhook-id on one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Arrivals, without those whose signature was refused.
    pub arrivals: u32,
    /// Arrivals that were answered with a complete 2xx.
    pub successes: u32,
    /// Arrivals whose signature was refused.
    pub invalid_signatures: u32,
    /// Arrivals whose body differed from the first one's.
    pub changed_bodies: u32,
    /// When the first arrival had been read.
    pub first_arrival: Instant,
    /// When the first arrival that was answered with a 2xx had been read.
    pub first_success: Option<Instant>,
    /// Position of the first arrival among all arrivals of the receiver, from 0.
    pub order: u64,
    /// Size of the first body.
    pub body_bytes: u64,
    /// Hash of the first body, see [`body_hash`].
    pub body_hash: u64,
    /// `ce-id` of the first arrival.
    pub event_id: Option<Box<str>>,
}

/// Sums over one path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Different webhook-ids.
    pub webhooks: u64,
    /// Arrivals, without those whose signature was refused.
    pub arrivals: u64,
    /// Webhook-ids with at least one arrival that was answered with a complete 2xx.
    pub delivered: u64,
    /// Arrivals whose signature was refused.
    pub invalid_signatures: u64,
    /// Of these, because of the timestamp.
    pub invalid_timestamps: u64,
    /// Arrivals whose signature was checked and is right.
    pub verified: u64,
    /// Arrivals whose body differed from the first one's.
    pub changed_bodies: u64,
    /// Bytes of all bodies.
    pub body_bytes: u64,
}

/// What arrived so far.
pub struct Ledger {
    bounds: Bounds,
    paths: RwLock<HashMap<Box<str>, Arc<PathLedger>>>,
    entries: AtomicU64,
    arrivals: AtomicU64,
    untracked: AtomicU64,
    hasher: RandomState,
}

#[derive(Default)]
struct PathLedger {
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Default)]
struct Shard {
    entries: HashMap<Box<str>, Entry>,
    totals: Totals,
}

impl Ledger {
    /// An empty ledger.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            paths: RwLock::default(),
            entries: AtomicU64::new(0),
            arrivals: AtomicU64::new(0),
            untracked: AtomicU64::new(0),
            hasher: RandomState::new(),
        }
    }

    /// Records an arrival. `succeeds` is told the number of the arrival for its webhook-id, from 1, and says
    /// whether it will be answered with a complete 2xx. Returns that number; 1 if the arrival is untracked.
    /// Refused signatures are counted and have no number of their own.
    pub fn arrive(&self, arrival: &Arrival<'_>, succeeds: impl FnOnce(u32) -> bool) -> u32 {
        let order = self.arrivals.fetch_add(1, Relaxed);
        let fits = arrival.webhook_id.len().max(arrival.event_id.map_or(0, str::len)) <= MAX_ID_BYTES;
        let Some(path) = fits.then(|| self.path_for(arrival.path)).flatten() else {
            self.untracked.fetch_add(1, Relaxed);
            return 1;
        };
        let mut guard = path.shard(self.hasher.hash_one(arrival.webhook_id));
        let shard = &mut *guard;
        shard.totals.body_bytes += arrival.body.len() as u64;
        let Some(entry) = self.entry_for(shard, arrival, order) else {
            self.untracked.fetch_add(1, Relaxed);
            return 1;
        };
        let totals = entry.1;
        let entry = entry.0;
        if let Verdict::Invalid(refusal) = arrival.verdict {
            entry.invalid_signatures += 1;
            totals.invalid_signatures += 1;
            totals.invalid_timestamps += u64::from(refusal == Refusal::Timestamp);
            return entry.arrivals;
        }
        totals.verified += u64::from(arrival.verdict == Verdict::Valid);
        totals.arrivals += 1;
        entry.arrivals += 1;
        if entry.body_bytes != arrival.body.len() as u64 || entry.body_hash != body_hash(arrival.body) {
            entry.changed_bodies += 1;
            totals.changed_bodies += 1;
        }
        if succeeds(entry.arrivals) {
            entry.successes += 1;
            if entry.first_success.is_none() {
                entry.first_success = Some(arrival.at);
                totals.delivered += 1;
            }
        }
        entry.arrivals
    }

    /// What is known of one webhook-id on one path.
    pub fn entry(&self, path: &str, webhook_id: &str) -> Option<Entry> {
        let path = self.known_path(path)?;
        let shard = path.shard(self.hasher.hash_one(webhook_id));
        shard.entries.get(webhook_id).cloned()
    }

    /// Every webhook-id and entry of a path, in the order of first arrival.
    pub fn entries(&self, path: &str) -> Vec<(String, Entry)> {
        let mut entries = Vec::new();
        self.for_each(path, |webhook_id, entry| entries.push((webhook_id.to_owned(), entry.clone())));
        entries.sort_unstable_by_key(|(_, entry)| entry.order);
        entries
    }

    /// Shows every webhook-id and entry of a path, in no order and without copying. Arrivals of that path wait
    /// meanwhile: `show` must be quick and must not call this ledger.
    pub fn for_each(&self, path: &str, mut show: impl FnMut(&str, &Entry)) {
        let Some(path) = self.known_path(path) else { return };
        for shard in 0..SHARDS {
            for (webhook_id, entry) in &path.shard(shard as u64).entries {
                show(webhook_id, entry);
            }
        }
    }

    /// The sums of a path; all zero if nothing arrived there.
    pub fn totals(&self, path: &str) -> Totals {
        self.known_path(path).map_or_else(Totals::default, |path| path.totals())
    }

    /// The sums of every path.
    pub fn totals_by_path(&self) -> BTreeMap<String, Totals> {
        let paths = self.paths.read().unwrap_or_else(PoisonError::into_inner);
        paths.iter().map(|(name, path)| (name.to_string(), path.totals())).collect()
    }

    /// Requests on all paths, refused and untracked ones included.
    pub fn arrivals(&self) -> u64 {
        self.arrivals.load(Relaxed)
    }

    /// Arrivals beyond the ledger's bounds: known only by their number.
    pub fn untracked(&self) -> u64 {
        self.untracked.load(Relaxed)
    }

    fn known_path(&self, name: &str) -> Option<Arc<PathLedger>> {
        self.paths.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// The ledger of a path, made if there is room for it.
    fn path_for(&self, name: &str) -> Option<Arc<PathLedger>> {
        if let Some(path) = self.known_path(name) {
            return Some(path);
        }
        let mut paths = self.paths.write().unwrap_or_else(PoisonError::into_inner);
        if !paths.contains_key(name) && paths.len() >= self.bounds.paths {
            return None;
        }
        Some(Arc::clone(paths.entry(name.into()).or_default()))
    }

    /// The entry of an arrival and its shard's totals; the entry is made if there is room for it.
    fn entry_for<'s>(
        &self,
        shard: &'s mut Shard,
        arrival: &Arrival<'_>,
        order: u64,
    ) -> Option<(&'s mut Entry, &'s mut Totals)> {
        if !shard.entries.contains_key(arrival.webhook_id) {
            if self.entries.fetch_add(1, Relaxed) >= self.bounds.entries as u64 {
                self.entries.fetch_sub(1, Relaxed);
                return None;
            }
            shard.totals.webhooks += 1;
            shard.entries.insert(arrival.webhook_id.into(), Entry::first(arrival, order));
        }
        let Shard { entries, totals } = shard;
        Some((entries.get_mut(arrival.webhook_id)?, totals))
    }
}

impl PathLedger {
    fn shard(&self, hash: u64) -> MutexGuard<'_, Shard> {
        self.shards[hash as usize % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn totals(&self) -> Totals {
        (0..SHARDS).fold(Totals::default(), |sum, shard| sum.plus(self.shard(shard as u64).totals))
    }
}

impl Entry {
    fn first(arrival: &Arrival<'_>, order: u64) -> Self {
        Self {
            arrivals: 0,
            successes: 0,
            invalid_signatures: 0,
            changed_bodies: 0,
            first_arrival: arrival.at,
            first_success: None,
            order,
            body_bytes: arrival.body.len() as u64,
            body_hash: body_hash(arrival.body),
            event_id: arrival.event_id.map(Into::into),
        }
    }
}

impl Totals {
    /// The sums of both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            webhooks: self.webhooks + other.webhooks,
            arrivals: self.arrivals + other.arrivals,
            delivered: self.delivered + other.delivered,
            invalid_signatures: self.invalid_signatures + other.invalid_signatures,
            invalid_timestamps: self.invalid_timestamps + other.invalid_timestamps,
            verified: self.verified + other.verified,
            changed_bodies: self.changed_bodies + other.changed_bodies,
            body_bytes: self.body_bytes + other.body_bytes,
        }
    }
}

/// The hash under which bodies are compared: the same in every process of one build, not cryptographic.
pub fn body_hash(body: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrival<'a>(path: &'a str, webhook_id: &'a str, body: &'a [u8]) -> Arrival<'a> {
        Arrival { path, webhook_id, event_id: Some("e-1"), body, at: Instant::now(), verdict: Verdict::Valid }
    }

    #[test]
    fn arrivals_are_numbered_per_path_and_webhook() {
        let ledger = Ledger::new(Bounds::default());
        let numbers: Vec<u32> = [("/a", "1"), ("/a", "1"), ("/a", "2"), ("/b", "1"), ("/a", "1")]
            .into_iter()
            .map(|(path, id)| ledger.arrive(&arrival(path, id, b"x"), |number| number >= 2))
            .collect();
        assert_eq!(numbers, [1, 2, 1, 1, 3]);
        let totals = ledger.totals("/a");
        assert_eq!((totals.webhooks, totals.arrivals, totals.delivered, totals.verified), (2, 4, 1, 4));
        let entry = ledger.entry("/a", "1").unwrap();
        assert_eq!((entry.arrivals, entry.successes, entry.order), (3, 2, 0));
        assert_eq!(entry.event_id.as_deref(), Some("e-1"));
        assert_eq!(ledger.entries("/a").iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(ledger.totals_by_path().len(), 2);
        assert_eq!(ledger.totals("/never").arrivals, 0);
    }

    #[test]
    fn a_body_that_changes_between_attempts_is_counted() {
        let ledger = Ledger::new(Bounds::default());
        for body in [b"one", b"one", b"two"] {
            ledger.arrive(&arrival("/a", "1", body), |_| true);
        }
        assert_eq!(ledger.totals("/a").changed_bodies, 1);
    }

    #[test]
    fn a_refused_signature_is_neither_an_arrival_nor_a_delivery() {
        let ledger = Ledger::new(Bounds::default());
        let refused = Arrival { verdict: Verdict::Invalid(Refusal::Timestamp), ..arrival("/a", "1", b"x") };
        ledger.arrive(&refused, |_| true);
        assert_eq!(ledger.arrive(&arrival("/a", "1", b"x"), |_| true), 1);
        let totals = ledger.totals("/a");
        assert_eq!((totals.arrivals, totals.invalid_signatures, totals.invalid_timestamps), (1, 1, 1));
    }

    #[test]
    fn a_full_ledger_counts_what_it_cannot_track() {
        let ledger = Ledger::new(Bounds { entries: 1, paths: 1 });
        assert_eq!(ledger.arrive(&arrival("/a", "1", b""), |_| true), 1);
        assert_eq!(ledger.arrive(&arrival("/a", "2", b""), |_| true), 1);
        assert_eq!(ledger.arrive(&arrival("/b", "1", b""), |_| true), 1);
        assert_eq!(ledger.arrive(&arrival("/a", "1", b""), |_| true), 2);
        assert_eq!((ledger.untracked(), ledger.arrivals(), ledger.totals("/a").webhooks), (2, 4, 1));
    }
}
