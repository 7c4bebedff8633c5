//! When batches close. Pure: time is an argument, and what they hold may be anything.
//!
//! A batch closes by count, by bytes or by age, as its subscription asks, or when the open batches together hold more than they
//! may: what is open keeps the progress of partitions open, and memory from deliveries that could be made. The oldest one goes then.

use crate::budget::Amount;
use floodway_schemas::{batch::BatchPolicy, ids::SubscriptionId};
use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

/// Bytes of an array without events.
const BRACKETS: usize = 2;

/// Why a batch is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Closing {
    /// It has as many events as it may.
    Count,
    /// The next event would make it too large, or one event alone is.
    Bytes,
    /// Its time is over.
    Age,
    /// All batches together hold too much, or a partition waits for what they hold.
    Room,
    /// The dispatcher ends.
    Leaving,
}

/// A batch that takes no more events.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Closed<T> {
    /// What it holds, at least one.
    pub(crate) items: Vec<T>,
    /// Why it is closed.
    pub(crate) why: Closing,
}

/// The open batches, one per subscription at most.
#[derive(Debug)]
pub(crate) struct OpenBatches<T> {
    open: HashMap<SubscriptionId, Open<T>>,
    /// The same by when they close.
    by_age: BTreeSet<(Instant, SubscriptionId)>,
    /// What they hold together.
    held: Amount,
    /// What they may hold together.
    most: Amount,
}

#[derive(Debug)]
struct Open<T> {
    items: Vec<Item<T>>,
    /// Of the array.
    bytes: usize,
    closes_at: Instant,
}

#[derive(Debug)]
struct Item<T> {
    item: T,
    bytes: usize,
}

impl<T> OpenBatches<T> {
    /// None open; together they hold at most `most`.
    pub(crate) fn new(most: Amount) -> Self {
        Self { open: HashMap::new(), by_age: BTreeSet::new(), held: Amount::default(), most }
    }

    /// Adds an item of `bytes` to its subscription's batch, and returns what that closes, in the order in which it is to be sent.
    pub(crate) fn add(
        &mut self,
        subscription: SubscriptionId,
        item: T,
        bytes: usize,
        policy: &BatchPolicy,
        now: Instant,
    ) -> Vec<Closed<T>> {
        let mut closed = Vec::new();
        let (most_events, most_bytes) = (policy.max_events as usize, policy.max_bytes as usize);
        if self.open.get(&subscription).is_some_and(|open| open.bytes + 1 + bytes > most_bytes) {
            closed.extend(self.close(subscription, Closing::Bytes));
        }
        let open = self.open.entry(subscription).or_insert_with(|| {
            let closes_at = now + Duration::from_millis(policy.max_age_ms.into());
            self.by_age.insert((closes_at, subscription));
            Open { items: Vec::new(), bytes: BRACKETS - 1, closes_at }
        });
        open.items.push(Item { item, bytes });
        open.bytes += 1 + bytes;
        self.held.count += 1;
        self.held.bytes += bytes;
        let why = if open.items.len() >= most_events {
            Some(Closing::Count)
        } else if open.bytes >= most_bytes {
            Some(Closing::Bytes)
        } else {
            None
        };
        closed.extend(why.and_then(|why| self.close(subscription, why)));
        while (self.held.count > self.most.count || self.held.bytes > self.most.bytes)
            && let Some(&(_, oldest)) = self.by_age.first()
        {
            closed.extend(self.close(oldest, Closing::Room));
        }
        closed
    }

    /// When the next batch closes by age.
    pub(crate) fn next_end(&self) -> Option<Instant> {
        self.by_age.first().map(|&(closes_at, _)| closes_at)
    }

    /// Closes the batches whose time is over.
    pub(crate) fn close_old(&mut self, now: Instant) -> Vec<Closed<T>> {
        let mut closed = Vec::new();
        while let Some(&(closes_at, subscription)) = self.by_age.first()
            && closes_at <= now
        {
            closed.extend(self.close(subscription, Closing::Age));
        }
        closed
    }

    /// Closes every batch, the oldest one first.
    pub(crate) fn close_all(&mut self, why: Closing) -> Vec<Closed<T>> {
        let all: Vec<SubscriptionId> = self.by_age.iter().map(|&(_, subscription)| subscription).collect();
        all.into_iter().filter_map(|subscription| self.close(subscription, why)).collect()
    }

    /// Takes out everything that is not to be kept.
    pub(crate) fn retain(&mut self, keep: impl Fn(&T) -> bool) -> Vec<T> {
        let (mut taken, mut empty) = (Vec::new(), Vec::new());
        for (&subscription, open) in &mut self.open {
            for Item { item, bytes } in open.items.extract_if(.., |item| !keep(&item.item)) {
                open.bytes -= 1 + bytes;
                self.held.count -= 1;
                self.held.bytes -= bytes;
                taken.push(item);
            }
            if open.items.is_empty() {
                empty.push(subscription);
            }
        }
        for subscription in empty {
            self.close(subscription, Closing::Leaving);
        }
        taken
    }

    fn close(&mut self, subscription: SubscriptionId, why: Closing) -> Option<Closed<T>> {
        let Open { items, closes_at, .. } = self.open.remove(&subscription)?;
        self.by_age.remove(&(closes_at, subscription));
        self.held.count -= items.len();
        self.held.bytes -= items.iter().map(|item| item.bytes).sum::<usize>();
        Some(Closed { items: items.into_iter().map(|item| item.item).collect(), why })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    const PLENTY: Amount = Amount { count: 1_000_000, bytes: 1_000_000_000 };
    const POLICY: BatchPolicy = BatchPolicy { max_events: 3, max_bytes: 2_000, max_age_ms: 500 };

    fn id(number: u128) -> SubscriptionId {
        SubscriptionId(Uuid::from_u128(number))
    }

    fn add(open: &mut OpenBatches<u32>, item: u32, bytes: usize, now: Instant) -> Vec<(Vec<u32>, Closing)> {
        let closed = open.add(id(1), item, bytes, &POLICY, now);
        closed.into_iter().map(|closed| (closed.items, closed.why)).collect()
    }

    #[test]
    fn a_batch_closes_by_count_by_bytes_and_by_age() {
        let now = Instant::now();
        let mut open = OpenBatches::new(PLENTY);
        assert_eq!(open.next_end(), None);
        assert_eq!(add(&mut open, 1, 10, now), []);
        assert_eq!(add(&mut open, 2, 10, now), []);
        assert_eq!(add(&mut open, 3, 10, now), [(vec![1, 2, 3], Closing::Count)]);
        assert_eq!(open.next_end(), None);
        // 2 + 998 + 1 + 999 bytes are as many as there may be.
        assert_eq!(add(&mut open, 4, 998, now), []);
        assert_eq!(add(&mut open, 5, 999, now), [(vec![4, 5], Closing::Bytes)]);
        assert_eq!(add(&mut open, 6, 998, now), []);
        assert_eq!(add(&mut open, 7, 1_000, now), [(vec![6], Closing::Bytes)]);
        // Too large for any: what came before goes first, then it alone.
        let alone = [(vec![7], Closing::Bytes), (vec![8], Closing::Bytes)];
        assert_eq!(add(&mut open, 8, 5_000, now), alone);
        let later = now + Duration::from_millis(200);
        assert_eq!(add(&mut open, 9, 10, now), []);
        assert_eq!(add(&mut open, 10, 10, later), []);
        let end = now + Duration::from_millis(500);
        assert_eq!(open.next_end(), Some(end));
        assert_eq!(open.close_old(end - Duration::from_millis(1)), []);
        assert_eq!(open.close_old(end), [Closed { items: vec![9, 10], why: Closing::Age }]);
        assert_eq!(open.close_old(end), []);
    }

    #[test]
    fn the_oldest_batch_goes_when_all_hold_too_much() {
        let now = Instant::now();
        let mut open = OpenBatches::new(Amount { count: 3, bytes: 1_000 });
        for number in 1..=3 {
            let at = now + Duration::from_millis(number);
            assert_eq!(open.add(id(number.into()), number, 10, &POLICY, at), []);
        }
        let closed = open.add(id(3), 4, 10, &POLICY, now);
        assert_eq!(closed, [Closed { items: vec![1], why: Closing::Room }]);
        let closed = open.add(id(3), 5, 990, &POLICY, now);
        assert_eq!(closed, [Closed { items: vec![3, 4, 5], why: Closing::Count }]);
        assert_eq!(open.close_all(Closing::Leaving), [Closed { items: vec![2], why: Closing::Leaving }]);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_doubled_or_reordered_and_bounds_hold(
            steps in proptest::collection::vec((0u128..4, 0usize..900, 0u64..300, any::<bool>()), 1..300),
            most in 1usize..40,
        ) {
            let mut now = Instant::now();
            let mut open = OpenBatches::new(Amount { count: most, bytes: 10_000 });
            let (mut sent, mut given): (HashMap<_, Vec<usize>>, HashMap<_, Vec<usize>>) = Default::default();
            let mut forgotten = Vec::new();
            let mut sizes = Vec::new();
            for (number, (subscription, bytes, wait, tick)) in steps.into_iter().enumerate() {
                now += Duration::from_millis(wait);
                sizes.push(bytes);
                given.entry(id(subscription)).or_default().push(number);
                let mut closed = open.add(id(subscription), (id(subscription), number), bytes, &POLICY, now);
                if tick {
                    closed.extend(open.close_old(now));
                    prop_assert!(open.next_end().is_none_or(|end| end > now));
                }
                if number % 50 == 49 {
                    // As when a partition is given up.
                    forgotten.extend(open.retain(|item| item.1 % 3 != 0).into_iter().map(|item| item.1));
                }
                prop_assert!(open.held.count <= most && open.held.bytes <= 10_000);
                for Closed { items, .. } in closed {
                    prop_assert!(!items.is_empty() && items.len() <= 3);
                    let bytes: usize = items.iter().map(|item| sizes[item.1] + 1).sum();
                    prop_assert!(items.len() == 1 || bytes < 2_000);
                    prop_assert!(items.iter().all(|item| item.0 == items[0].0));
                    sent.entry(items[0].0).or_default().extend(items.iter().map(|item| item.1));
                }
            }
            for Closed { items, .. } in open.close_all(Closing::Leaving) {
                sent.entry(items[0].0).or_default().extend(items.iter().map(|item| item.1));
            }
            prop_assert_eq!((open.held, open.next_end()), (Amount::default(), None));
            for (subscription, numbers) in given {
                let kept: Vec<usize> = numbers.into_iter().filter(|number| !forgotten.contains(number)).collect();
                prop_assert_eq!(sent.remove(&subscription).unwrap_or_default(), kept);
            }
        }
    }
}
