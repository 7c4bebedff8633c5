//! What tenants' filters take of the time of the threads that read partitions. Pure: time is an argument.
//!
//! A filter runs on the thread of a partition, which others share. What takes no longer than a delivery takes that thread anyway is
//! free. The rest is the tenant's, who has a part of each thread's time. Beyond it, events are put off to when the tenant's turn
//! comes, without having been filtered: as if its endpoints were busy, and nobody else's matter.

use floodway_schemas::{ids::TenantId, topic::Topic};
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Part of a thread's time that a tenant's filters may take in the long run, written as its divisor.
const SHARE: u32 = 4;
/// Time that one evaluation may take for nothing: usual ones take some microseconds.
const FREE: Duration = Duration::from_micros(20);
/// A tenant that has not used its part of the time for evaluations for so long may use it at once.
const BURST: Duration = Duration::from_secs(1);
/// Longest wait for a turn: later ones are not planned for.
const LONGEST_WAIT: Duration = Duration::from_secs(30 * 60);
/// Tenants beyond which those that have used nothing for a while are forgotten. About 100 bytes each.
const MANY: usize = 1024;

/// Whose filter, and on which thread: that of a partition of a topic.
pub(crate) type Payer = (TenantId, Topic, i32);

/// What was used, for one purpose.
#[derive(Debug)]
pub(crate) struct FilterTime {
    accounts: Mutex<HashMap<Payer, Account>>,
    /// See [`BURST`].
    burst: Duration,
}

impl Default for FilterTime {
    fn default() -> Self {
        Self::with_burst(BURST)
    }
}

#[derive(Debug, Clone, Copy)]
struct Account {
    /// When the part of the thread's time is worth what was used.
    paid_at: Instant,
    /// When the last of those that were put off has its turn.
    planned_at: Instant,
    /// What the last evaluation took of the tenant's time.
    last: Duration,
}

impl FilterTime {
    /// Nothing used, where a tenant may use its part of `burst` at once.
    pub(crate) fn with_burst(burst: Duration) -> Self {
        Self { accounts: Mutex::default(), burst }
    }

    /// How long an event has to wait before it is filtered, if it has to.
    pub(crate) fn wait(&self, payer: Payer, now: Instant) -> Option<Duration> {
        let mut accounts = self.lock();
        let account = accounts.get_mut(&payer)?;
        if account.paid_at.saturating_duration_since(now) <= self.burst {
            return None;
        }
        let turn = account.planned_at.max(account.paid_at);
        let wait = turn.saturating_duration_since(now);
        if wait >= LONGEST_WAIT {
            return Some(LONGEST_WAIT);
        }
        account.planned_at = turn + account.last;
        Some(wait)
    }

    /// Takes in what an evaluation took.
    pub(crate) fn used(&self, payer: Payer, took: Duration, now: Instant) {
        let beyond = took.saturating_sub(FREE);
        if beyond.is_zero() {
            return;
        }
        let mut accounts = self.lock();
        if accounts.len() >= MANY {
            accounts.retain(|_, account| account.planned_at.max(account.paid_at) > now);
        }
        let account =
            accounts.entry(payer).or_insert(Account { paid_at: now, planned_at: now, last: beyond });
        account.last = beyond * SHARE;
        account.paid_at = account.paid_at.max(now) + account.last;
    }

    /// Every critical section leaves the accounts right: a panic elsewhere is no reason to stop.
    fn lock(&self) -> MutexGuard<'_, HashMap<Payer, Account>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn payer(tenant: u128) -> Payer {
        (TenantId(Uuid::from_u128(tenant)), Topic::Events, 3)
    }

    #[test]
    fn what_filters_usually_take_is_free_however_many_there_are() {
        let (time, now) = (FilterTime::default(), Instant::now());
        for _ in 0..1_000_000 {
            time.used(payer(1), FREE, now);
        }
        assert_eq!(time.wait(payer(1), now), None);
    }

    #[test]
    fn who_used_too_much_waits_each_for_a_turn_of_its_own_and_nobody_else_does() {
        let (time, now) = (FilterTime::default(), Instant::now());
        let took = FREE + Duration::from_millis(100);
        for _ in 0..3 {
            time.used(payer(1), took, now);
        }
        let waits: Vec<Duration> = (0..3).filter_map(|_| time.wait(payer(1), now)).collect();
        assert_eq!(waits, [1_200, 1_600, 2_000].map(Duration::from_millis));
        assert_eq!(time.wait(payer(2), now), None);
        assert_eq!(time.wait((payer(1).0, Topic::Due, 3), now), None);
        // When its turn comes it is filtered, whatever was planned for others.
        assert_eq!(time.wait(payer(1), now + Duration::from_millis(1_200)), None);
    }

    #[test]
    fn plans_end_somewhere_and_what_is_paid_is_forgotten() {
        let (time, now) = (FilterTime::default(), Instant::now());
        time.used(payer(1), Duration::from_secs(300), now);
        assert!((0..10_000).all(|_| time.wait(payer(1), now).unwrap() <= LONGEST_WAIT));
        let later = now + Duration::from_secs(3_600);
        for tenant in 0..2 * MANY as u128 {
            time.used(payer(tenant), 2 * FREE, later + Duration::from_secs(tenant as u64));
        }
        assert!(time.lock().len() <= MANY);
    }

    proptest! {
        #[test]
        fn filters_take_no_more_than_their_part_of_a_long_time(
            takes in prop::collection::vec((0u64..20_000, 0u64..2_000), 1..500),
        ) {
            let time = FilterTime::default();
            let begin = Instant::now();
            let (mut now, mut used, mut longest) = (begin, Duration::ZERO, Duration::ZERO);
            for (took, pause) in takes {
                now += Duration::from_micros(pause);
                if time.wait(payer(1), now).is_none() {
                    let took = Duration::from_micros(took);
                    now += took;
                    time.used(payer(1), took, now);
                    used += took.saturating_sub(FREE);
                    longest = longest.max(took);
                }
            }
            prop_assert!(used <= (now - begin + BURST) / SHARE + longest);
        }
    }
}
