//! A map that is read all the time and changed now and then.
//!
//! Readers take a part of it as it is, without a lock, so they never wait for a change nor for one another. A change copies its part:
//! there are enough of them for a copy of hundreds of thousands of entries' part to take about a microsecond.

use arc_swap::ArcSwap;
use std::{
    collections::{HashMap, hash_map::RandomState},
    fmt,
    hash::{BuildHasher, Hash},
    sync::{Mutex, PoisonError},
};

/// Parts of a map: a power of two.
const PARTS: usize = 1024;

/// A map of `V`s that are cheap to clone.
pub(crate) struct ReadMap<K, V> {
    parts: Box<[ArcSwap<HashMap<K, V>>]>,
    hasher: RandomState,
    /// Held while a part is copied.
    changing: Mutex<()>,
}

impl<K, V> Default for ReadMap<K, V> {
    fn default() -> Self {
        Self {
            parts: (0..PARTS).map(|_| ArcSwap::default()).collect(),
            hasher: RandomState::new(),
            changing: Mutex::default(),
        }
    }
}

impl<K, V> fmt::Debug for ReadMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReadMap")
    }
}

impl<K: Hash + Eq + Clone, V: Clone> ReadMap<K, V> {
    /// The value of a key.
    pub(crate) fn get(&self, key: &K) -> Option<V> {
        self.part(key).load().get(key).cloned()
    }

    /// Puts a value in, and returns the one that was there.
    pub(crate) fn insert(&self, key: K, value: V) -> Option<V> {
        self.change(&key.clone(), |part| part.insert(key, value))
    }

    /// Takes a value out.
    pub(crate) fn remove(&self, key: &K) -> Option<V> {
        self.change(key, |part| part.remove(key))
    }

    /// Calls `visit` with every value; with those of one part as they were at one time.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(&V)) {
        for part in &self.parts {
            part.load().values().for_each(&mut visit);
        }
    }

    fn change(&self, key: &K, change: impl FnOnce(&mut HashMap<K, V>) -> Option<V>) -> Option<V> {
        // Nothing is left half done under this lock.
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let part = self.part(key);
        let mut copy = HashMap::clone(&part.load());
        let before = change(&mut copy);
        part.store(copy.into());
        before
    }

    fn part(&self, key: &K) -> &ArcSwap<HashMap<K, V>> {
        let at = self.hasher.hash_one(key) % PARTS as u64;
        // Below the number of parts.
        &self.parts[at as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_sees_whole_changes_while_they_are_made() {
        let map = ReadMap::default();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut highest = 0;
                while highest < 20_000 {
                    let seen = map.get(&7).unwrap_or(0);
                    assert!(seen >= highest);
                    highest = seen;
                }
            });
            for number in 1..=20_000 {
                map.insert(7, number);
                map.insert(number + 100_000, number);
            }
            reader.join().unwrap();
        });
        let mut count = 0;
        map.for_each(|_| count += 1);
        assert_eq!(count, 20_001);
        assert_eq!(map.remove(&7), Some(20_000));
        assert_eq!(map.get(&7), None);
    }
}
