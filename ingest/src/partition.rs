//! Which partition an event goes to, and how many bytes wait there.
//!
//! The partition is computed here and not by the client, so that the bytes in flight can be counted per partition:
//! without that, one partition without a leader would fill the producer's queue for all.

use std::sync::atomic::{AtomicUsize, Ordering};

/// The events topic's partitions and the bytes waiting for each.
#[derive(Debug)]
pub(crate) struct Partitions {
    waiting: Box<[AtomicUsize]>,
    limit: usize,
}

impl Partitions {
    /// `count` partitions, each with room for `limit` bytes.
    pub(crate) fn new(count: i32, limit: usize) -> Self {
        let count = usize::try_from(count).unwrap_or(0).max(1);
        Self { waiting: (0..count).map(|_| AtomicUsize::new(0)).collect(), limit }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.waiting.len()
    }

    /// The partition of a key: as the Java client and librdkafka's `murmur2_random` choose it.
    pub(crate) fn of(&self, key: &[u8]) -> usize {
        (murmur2(key) & 0x7fff_ffff) as usize % self.waiting.len()
    }

    /// Takes room in a partition; `false` when it has not enough.
    pub(crate) fn reserve(&self, partition: usize, bytes: usize) -> bool {
        let waiting = &self.waiting[partition];
        let before = waiting.fetch_add(bytes, Ordering::Relaxed);
        let fits = before + bytes <= self.limit;
        if !fits {
            waiting.fetch_sub(bytes, Ordering::Relaxed);
        }
        fits
    }

    /// Gives room back.
    pub(crate) fn release(&self, partition: usize, bytes: usize) {
        self.waiting[partition].fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes waiting in all of them.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.waiting.iter().map(|bytes| bytes.load(Ordering::Relaxed)).sum()
    }
}

/// MurmurHash2 with Kafka's seed.
fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    let mix = |word: u32| {
        let word = word.wrapping_mul(M);
        (word ^ word >> 24).wrapping_mul(M)
    };
    // Kafka's keys are far below 4 GiB: the length fits.
    let mut hash = SEED ^ data.len() as u32;
    let (words, tail) = data.as_chunks::<4>();
    for word in words {
        hash = hash.wrapping_mul(M) ^ mix(u32::from_le_bytes(*word));
    }
    if !tail.is_empty() {
        let last = tail.iter().rev().fold(0u32, |last, byte| last << 8 | u32::from(*byte));
        hash = (hash ^ last).wrapping_mul(M);
    }
    hash = (hash ^ hash >> 13).wrapping_mul(M);
    hash ^ hash >> 15
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_that_of_the_java_client() {
        let table: [(&str, i32); 6] = [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ];
        for (key, expected) in table {
            assert_eq!(murmur2(key.as_bytes()) as i32, expected, "{key}");
        }
    }

    #[test]
    fn a_full_partition_refuses_until_room_is_given_back() {
        let partitions = Partitions::new(2, 100);
        assert!(partitions.reserve(0, 60));
        assert!(!partitions.reserve(0, 41));
        assert!(partitions.reserve(1, 100));
        partitions.release(0, 60);
        assert!(partitions.reserve(0, 41));
        assert_eq!(partitions.waiting_bytes(), 141);
    }
}
