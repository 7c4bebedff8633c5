//! Recognises outcomes that were written twice.
//!
//! A dispatcher that ends between an outcome's acknowledgement and its own commit handles the event again and writes
//! another outcome with the same (cause, subscription, kind). A retry that was produced to `due` twice, by a scheduler
//! that ended before it stored that it had, is delivered twice; each delivery writes an outcome with the retry as its
//! cause. They may differ in kind, for the endpoint may have answered differently, yet a retry has exactly one outcome:
//! were both kept, the delivery would go on twice from there. So for retries the kind does not count.
//!
//! An outcome in doubt precedes the delivery's own: it has a kind of its own whatever the cause.
//!
//! Only the first of equal outcomes may count. The set is bounded: it forgets
//! what is older than a window of record time, and the oldest beyond a number of entries. What it forgets too soon is
//! delivered once more, which at-least-once delivery allows.

use floodway_schemas::outcome::{Cause, Outcome, OutcomeKind};
use sha2::{Digest, Sha256};
use std::{
    collections::{HashSet, VecDeque},
    fmt::{self, Write},
    hash::{BuildHasherDefault, Hasher},
    time::Duration,
};

/// Identity of an outcome for the purpose of recognising repeats: 128 bits of a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Fingerprint(u128);

impl Fingerprint {
    /// The fingerprint of the delivery that an outcome is about, whatever became of it.
    pub(crate) fn of_delivery(outcome: &Outcome<'_>) -> Self {
        let mut hash = Sha256::new();
        hash.update(outcome.subscription.0.as_bytes());
        // A hash takes whatever is written.
        let _ = write!(Hashed(&mut hash), "{}", outcome.cause);
        let hash: [u8; 32] = hash.finalize().into();
        let mut first = [0; 16];
        first.copy_from_slice(&hash[..16]);
        Self(u128::from_be_bytes(first))
    }

    /// This delivery's fingerprint made that of its outcome of a kind, as far as the kind counts. Hashes differ in all of their
    /// bits, so a number that tells the kinds apart is enough.
    pub(crate) fn with_kind(self, outcome: &Outcome<'_>, kind: OutcomeKind) -> Self {
        let counts = kind == OutcomeKind::InDoubt || !matches!(outcome.cause, Cause::Due(_));
        if counts { Self(self.0 ^ (1 + kind as u128)) } else { self }
    }
}

/// Hashes text as it is written, without keeping it.
struct Hashed<'h>(&'h mut Sha256);

impl Write for Hashed<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.update(text);
        Ok(())
    }
}

/// Places fingerprints in a table by their own bits: they are hashes that nobody can choose.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct OwnBits(u64);

impl Hasher for OwnBits {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.0 = self.0.rotate_left(8) ^ u64::from(byte));
    }

    fn write_u128(&mut self, number: u128) {
        // The upper half: kinds differ in the lower one, and few outcomes of a delivery are remembered at a time.
        self.0 = (number >> 64) as u64;
    }
}

#[cfg(test)]
impl Fingerprint {
    /// One of one's own choice.
    pub(crate) fn for_tests(number: u128) -> Self {
        Self(number)
    }
}

/// The fingerprints seen of late.
#[derive(Debug)]
pub(crate) struct Repeats {
    seen: HashSet<Fingerprint, BuildHasherDefault<OwnBits>>,
    /// In the order of arrival, with the newest record time at that point.
    order: VecDeque<(i64, Fingerprint)>,
    newest_ms: i64,
    capacity: usize,
    window_ms: i64,
}

impl Repeats {
    /// An empty set of at most `capacity` fingerprints, none older than `window`.
    pub(crate) fn new(capacity: usize, window: Duration) -> Self {
        Self {
            seen: HashSet::default(),
            order: VecDeque::new(),
            newest_ms: i64::MIN,
            capacity,
            window_ms: i64::try_from(window.as_millis()).unwrap_or(i64::MAX),
        }
    }

    /// Whether the fingerprint was seen; remembers it if not. Record time that runs backwards counts as standing still.
    pub(crate) fn is_repeat(&mut self, fingerprint: Fingerprint, record_time_ms: i64) -> bool {
        self.newest_ms = self.newest_ms.max(record_time_ms);
        self.forget_old();
        if !self.seen.insert(fingerprint) {
            return true;
        }
        self.order.push_back((self.newest_ms, fingerprint));
        false
    }

    /// Whether the fingerprint was seen.
    pub(crate) fn has_seen(&self, fingerprint: Fingerprint) -> bool {
        self.seen.contains(&fingerprint)
    }

    fn forget_old(&mut self) {
        let oldest_kept = self.newest_ms.saturating_sub(self.window_ms);
        while let Some(&(at, fingerprint)) = self.order.front()
            && (at < oldest_kept || self.order.len() >= self.capacity.max(1))
        {
            self.order.pop_front();
            self.seen.remove(&fingerprint);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_second_of_two_is_a_repeat_within_the_window() {
        let mut repeats = Repeats::new(100, Duration::from_millis(1_000));
        assert!(!repeats.is_repeat(Fingerprint(1), 5_000));
        assert!(repeats.is_repeat(Fingerprint(1), 6_000));
        assert!(!repeats.is_repeat(Fingerprint(2), 6_001));
        assert!(!repeats.is_repeat(Fingerprint(1), 6_001), "forgotten after the window");
    }

    #[test]
    fn beyond_the_capacity_the_oldest_is_forgotten() {
        let mut repeats = Repeats::new(2, Duration::from_secs(900));
        for fingerprint in [1, 2, 3] {
            assert!(!repeats.is_repeat(Fingerprint(fingerprint), 0));
        }
        assert!(repeats.is_repeat(Fingerprint(3), 0));
        assert!(!repeats.is_repeat(Fingerprint(1), 0));
    }

    proptest! {
        #[test]
        fn the_set_stays_within_its_bounds(
            records in proptest::collection::vec((0u128..50, 0i64..10_000), 0..300), capacity in 1usize..20,
        ) {
            let mut repeats = Repeats::new(capacity, Duration::from_millis(700));
            for (fingerprint, at) in records {
                repeats.is_repeat(Fingerprint(fingerprint), at);
                prop_assert!(repeats.seen.len() <= capacity);
                prop_assert_eq!(repeats.seen.len(), repeats.order.len());
            }
        }
    }
}
