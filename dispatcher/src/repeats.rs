//! Which records of a partition repeat an earlier one: the same event, sent again by its producer within a short time.
//!
//! Repeats have the same tenant, source and id, and so the same key, and so the same partition: each partition's thread remembers for
//! itself. What it remembers follows from the log alone, in the log's order and by the log's times. A new owner of the partition
//! reads the window before its start again and knows the same as the one before; no decision changes hands.
//!
//! A record is a repeat of a *lower offset* only. What was in flight at a crash is received again at its own offset, and is not mistaken
//! for a repeat of itself.
//!
//! Ids that ingest made are remembered like others: a producer whose batch was answered in part sends them again.
//!
//! Retries repeat, too: a scheduler that ended between producing them and storing that it had leaves them to the next one, which
//! produces them to the same partition again. They are remembered in the same way, from the first record read on.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use floodway_schemas::{UnixMillis, due::RetryKey, ids::SubscriptionId};
use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

/// What tells an event, or a retry, from others: 128 bits of a hash over tenant, source and id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Fingerprint([u8; 16]);

impl Fingerprint {
    /// Of the event with this message id, which is such a hash in base64 behind four letters.
    pub(crate) fn of(message_id: &str) -> Option<Self> {
        let mut bytes = [0; 16];
        let read = URL_SAFE_NO_PAD.decode_slice(message_id.get(4..)?, &mut bytes).ok()?;
        (read == bytes.len()).then_some(Self(bytes))
    }

    /// Of the retry of that event, by its key, for this subscription. Keys alone come again when the topic that they count is made anew.
    pub(crate) fn of_retry(message_id: &str, key: RetryKey, subscription: SubscriptionId) -> Option<Self> {
        let Self(mut bytes) = Self::of(message_id)?;
        let position = (u128::from(key.shard.unsigned_abs()) << 64) | u128::from(key.id.unsigned_abs());
        // The bytes of a hash stay spread evenly, whatever they are combined with.
        for mixed in [position.to_be_bytes(), *subscription.0.as_bytes()] {
            bytes.iter_mut().zip(mixed).for_each(|(byte, other)| *byte ^= other);
        }
        Some(Self(bytes))
    }
}

/// The events of one partition in the last `window`, at most `most` of them.
#[derive(Debug)]
pub(crate) struct Repeats {
    window: Duration,
    most: usize,
    /// The latest record of each event.
    seen: HashMap<Fingerprint, Seen>,
    /// All records, oldest first.
    order: VecDeque<(Fingerprint, Seen)>,
}

/// A record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    offset: i64,
    at: UnixMillis,
}

impl Repeats {
    /// Nothing is remembered yet. Without a window, or without room, nothing ever is.
    pub(crate) fn new(window: Duration, most: usize) -> Self {
        Self { window, most, seen: HashMap::new(), order: VecDeque::new() }
    }

    /// Whether the record at `offset`, recorded at `at`, repeats an earlier one; it is remembered, too. Called in the log's order.
    ///
    /// A repeat counts for what follows as a first record does. So the window before a record decides about it, and nothing else.
    pub(crate) fn is_repeat(&mut self, fingerprint: Fingerprint, offset: i64, at: UnixMillis) -> bool {
        if self.window.is_zero() || self.most == 0 {
            return false;
        }
        self.forget(at);
        let seen = Seen { offset, at };
        let before = self.seen.insert(fingerprint, seen);
        if before != Some(seen) {
            if self.order.len() >= self.most {
                self.forget_oldest();
            }
            self.order.push_back((fingerprint, seen));
        }
        before.is_some_and(|before| before.offset < offset)
    }

    /// Forgets what is older than the window. A clock that went back keeps some for longer, up to the next record of the right time.
    fn forget(&mut self, now: UnixMillis) {
        while self.order.front().is_some_and(|(_, seen)| now.since(seen.at) > self.window) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((fingerprint, seen)) = self.order.pop_front()
            && self.seen.get(&fingerprint) == Some(&seen)
        {
            self.seen.remove(&fingerprint);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use floodway_schemas::{event::message_id, ids::TenantId};
    use proptest::{collection::vec, prelude::*};

    const WINDOW: Duration = Duration::from_millis(60);

    fn print(id: u8) -> Fingerprint {
        Fingerprint([id; 16])
    }

    #[test]
    fn fingerprints_are_those_of_message_ids() {
        let tenant = TenantId(uuid::Uuid::nil());
        let of = |id| Fingerprint::of(&message_id(tenant, "s", id)).unwrap();
        assert_eq!(of("1"), of("1"));
        assert_ne!(of("1"), of("2"));
        assert_eq!(Fingerprint::of("msg"), None);
        assert_eq!(Fingerprint::of("msg_AAAA"), None);
    }

    #[test]
    fn retries_are_told_apart_by_event_key_and_subscription() {
        let of = |event, shard, id, subscription| {
            let message_id = message_id(TenantId(uuid::Uuid::nil()), "s", event);
            let key = RetryKey { shard, id };
            Fingerprint::of_retry(&message_id, key, SubscriptionId(uuid::Uuid::from_u128(subscription)))
                .unwrap()
        };
        let first = of("1", 3, 7, 9);
        assert_eq!(of("1", 3, 7, 9), first);
        for other in [of("2", 3, 7, 9), of("1", 4, 7, 9), of("1", 3, 8, 9), of("1", 3, 7, 8)] {
            assert_ne!(other, first);
        }
    }

    #[test]
    fn a_record_is_a_repeat_of_a_lower_offset_within_the_window_only() {
        let mut repeats = Repeats::new(WINDOW, 10);
        assert!(!repeats.is_repeat(print(1), 5, UnixMillis(1_000)));
        assert!(!repeats.is_repeat(print(1), 5, UnixMillis(1_000)));
        assert!(!repeats.is_repeat(print(2), 6, UnixMillis(1_001)));
        assert!(repeats.is_repeat(print(1), 7, UnixMillis(1_060)));
        assert!(repeats.is_repeat(print(1), 8, UnixMillis(1_120)));
        assert!(!repeats.is_repeat(print(1), 9, UnixMillis(1_181)));
        assert!(repeats.is_repeat(print(1), 10, UnixMillis(1_181)));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_can_be_nothing() {
        let mut repeats = Repeats::new(WINDOW, 2);
        for id in 0..100 {
            assert!(!repeats.is_repeat(print(id), i64::from(id), UnixMillis(1_000)));
        }
        assert_eq!((repeats.seen.len(), repeats.order.len()), (2, 2));
        assert!(repeats.is_repeat(print(99), 100, UnixMillis(1_000)));
        assert!(!repeats.is_repeat(print(1), 101, UnixMillis(1_000)));
        for (window, most) in [(Duration::ZERO, 10), (WINDOW, 0)] {
            let mut nothing = Repeats::new(window, most);
            assert!(
                !nothing.is_repeat(print(1), 1, UnixMillis(1))
                    && !nothing.is_repeat(print(1), 2, UnixMillis(1))
            );
        }
    }

    proptest! {
        /// Owners come and go at any record; each reads the window before its start again, and goes on from any unsettled record.
        #[test]
        fn a_new_owner_decides_as_the_one_before(
            steps in vec((0u8..6, 0i64..25), 1..120),
            takeovers in vec((any::<prop::sample::Index>(), 0usize..20), 0..4),
        ) {
            let mut now = 0;
            let log: Vec<(Fingerprint, UnixMillis)> = steps
                .iter()
                .map(|&(id, pause)| {
                    now += pause;
                    (print(id), UnixMillis(now))
                })
                .collect();
            let read = |repeats: &mut Repeats, offset: usize| {
                let (fingerprint, at) = log[offset];
                repeats.is_repeat(fingerprint, i64::try_from(offset).unwrap(), at)
            };
            let repeats_by_rule = |offset: usize| {
                (0..offset).any(|before| log[before].0 == log[offset].0 && log[offset].1.since(log[before].1) <= WINDOW)
            };
            let mut first = Repeats::new(WINDOW, 1_000);
            for offset in 0..log.len() {
                prop_assert_eq!(read(&mut first, offset), repeats_by_rule(offset), "offset {}", offset);
            }
            for (index, back) in takeovers {
                // The oldest unsettled record, and the window before it.
                let start = index.index(log.len()).saturating_sub(back);
                let from = (0..start).find(|&offset| log[start].1.since(log[offset].1) <= WINDOW).unwrap_or(start);
                let mut next = Repeats::new(WINDOW, 1_000);
                for offset in from..log.len() {
                    let repeats = read(&mut next, offset);
                    if offset >= start {
                        prop_assert_eq!(repeats, repeats_by_rule(offset), "offset {} after {}", offset, start);
                    }
                }
            }
        }
    }
}
