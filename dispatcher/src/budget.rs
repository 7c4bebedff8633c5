//! The memory that deliveries may hold in this process, by count and by bytes.
//!
//! Every source of deliveries has a part of it that the others leave free: a backlog of retries does not keep first attempts out, a
//! replay of a month's dead letters neither, and first attempts do not keep the retries waiting. The rest is for whoever comes first.
//!
//! A tenant whose deliveries hold more than what is left for all finds its lanes full: one tenant's endpoints, however many of them
//! hang, leave half of the budget to the others.

use floodway_schemas::{ids::TenantId, outcome::Cause};
use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Where deliveries come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// First attempts.
    Events,
    /// Retries and deferred deliveries.
    Due,
    /// Deliveries asked for by hand.
    Replays,
}

impl Source {
    const ALL: [Self; 3] = [Self::Events, Self::Due, Self::Replays];

    /// The source of deliveries with this cause.
    pub(crate) fn of(cause: &Cause) -> Self {
        match cause {
            Cause::Event { .. } | Cause::Batch(_) => Self::Events,
            Cause::Due(_) => Self::Due,
            Cause::Replay { .. } => Self::Replays,
        }
    }

    /// Percentage of the budget that the other sources leave free.
    fn percentage(self) -> usize {
        match self {
            Self::Events => 50,
            Self::Due => 15,
            Self::Replays => 5,
        }
    }
}

/// Waiting threads are woken once this fraction of the budget was given back, written as its divisor: not for every delivery.
const WAKING: usize = 64;

/// The budget of all deliveries from intake to the acknowledgement of their outcome.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: Amount,
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// By source.
    used: [Amount; Source::ALL.len()],
    /// By tenant; those that hold nothing are not in it.
    tenants: HashMap<TenantId, Amount>,
    /// Threads that wait for room.
    waiting: usize,
    /// What was given back since they were last woken.
    freed: Amount,
}

impl State {
    fn total(&self) -> Amount {
        let sum = |part: fn(&Amount) -> usize| self.used.iter().map(part).sum();
        Amount { count: sum(|used| used.count), bytes: sum(|used| used.bytes) }
    }
}

/// Deliveries and the bytes of their events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    /// Number of deliveries.
    pub(crate) count: usize,
    /// Bytes of their events.
    pub(crate) bytes: usize,
}

impl Amount {
    /// One delivery of `bytes`.
    pub(crate) fn one(bytes: usize) -> Self {
        Self { count: 1, bytes }
    }

    pub(crate) fn add(&mut self, part: Self) {
        self.count += part.count;
        self.bytes += part.bytes;
    }

    pub(crate) fn remove(&mut self, part: Self) {
        self.count -= part.count;
        self.bytes -= part.bytes;
    }
}

impl Budget {
    /// An unused budget.
    pub(crate) fn new(limit: Amount) -> Arc<Self> {
        Arc::new(Self { limit, state: Mutex::default(), freed: Condvar::new() })
    }

    /// Takes one delivery's part, beyond the limit if need be: a record is taken whole, however many subscriptions match, and
    /// [`Budget::wait_for_room`] keeps the next one out.
    pub(crate) fn take(self: &Arc<Self>, source: Source, tenant: TenantId, bytes: usize) -> Permit {
        let mut state = self.lock();
        let part = Amount::one(bytes);
        state.used[source as usize].add(part);
        state.tenants.entry(tenant).or_default().add(part);
        Permit { budget: Arc::clone(self), source, tenant, part }
    }

    /// What is not taken, as far as it is for a tenant: nothing, when that holds more than what is left for all.
    pub(crate) fn free_for(&self, tenant: TenantId) -> Amount {
        let state = self.lock();
        let free = self.free(&state);
        let own = state.tenants.get(&tenant).copied().unwrap_or_default();
        Amount {
            count: if own.count > free.count { 0 } else { free.count },
            bytes: if own.bytes > free.bytes { 0 } else { free.bytes },
        }
    }

    fn free(&self, state: &State) -> Amount {
        let used = state.total();
        Amount {
            count: self.limit.count.saturating_sub(used.count),
            bytes: self.limit.bytes.saturating_sub(used.bytes),
        }
    }

    /// Whether there is room for another record; waits for it up to `patience`. Blocks the thread.
    pub(crate) fn wait_for_room(&self, source: Source, patience: Duration) -> bool {
        let mut state = self.lock();
        if self.has_room(&state, source) {
            return true;
        }
        state.waiting += 1;
        let is_full = |state: &mut State| !self.has_room(state, source);
        let (mut state, _) =
            self.freed.wait_timeout_while(state, patience, is_full).unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
        self.has_room(&state, source)
    }

    /// Whether less than this fraction is free, written as its divisor.
    pub(crate) fn is_scarce(&self, divisor: usize) -> bool {
        let free = self.free(&self.lock());
        free.count < self.limit.count / divisor || free.bytes < self.limit.bytes / divisor
    }

    /// Whether a source is within its own part, or leaves the others theirs.
    fn has_room(&self, state: &State, source: Source) -> bool {
        let used = |source: Source| state.used[source as usize];
        let part = |source: Source| Amount {
            count: (self.limit.count.saturating_mul(source.percentage()) / 100).max(1),
            bytes: (self.limit.bytes.saturating_mul(source.percentage()) / 100).max(1),
        };
        let (own, own_part) = (used(source), part(source));
        if own.count < own_part.count && own.bytes < own_part.bytes {
            return true;
        }
        let mut taken = state.total();
        for other in Source::ALL.into_iter().filter(|&other| other != source) {
            taken.count += part(other).count.saturating_sub(used(other).count);
            taken.bytes += part(other).bytes.saturating_sub(used(other).bytes);
        }
        taken.count < self.limit.count && taken.bytes < self.limit.bytes
    }

    /// Every critical section is plain arithmetic: a panic elsewhere cannot leave it half done.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A delivery's part of the budget, given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    budget: Arc<Budget>,
    source: Source,
    tenant: TenantId,
    part: Amount,
}

impl Permit {
    /// A part of nothing, for something that this permit covers already.
    pub(crate) fn nothing(&self) -> Self {
        let Self { budget, source, tenant, .. } = self;
        Self { budget: Arc::clone(budget), source: *source, tenant: *tenant, part: Amount::default() }
    }

    /// How many deliveries it is for.
    pub(crate) fn count(&self) -> usize {
        self.part.count
    }

    /// Takes over the part of another delivery of the same source and tenant.
    pub(crate) fn join(&mut self, mut other: Self) {
        debug_assert!(
            self.source == other.source && self.tenant == other.tenant,
            "parts of different budgets"
        );
        self.part.add(std::mem::take(&mut other.part));
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let limit = self.budget.limit;
        let mut state = self.budget.lock();
        state.used[self.source as usize].remove(self.part);
        if let Entry::Occupied(mut own) = state.tenants.entry(self.tenant) {
            own.get_mut().remove(self.part);
            if own.get().count == 0 {
                own.remove();
            }
        }
        state.freed.add(self.part);
        let is_enough =
            state.freed.count >= limit.count / WAKING || state.freed.bytes >= limit.bytes / WAKING;
        if state.waiting > 0 && is_enough {
            state.freed = Amount::default();
            drop(state);
            self.budget.freed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: Source = Source::Events;
    const TENANT: TenantId = TenantId(uuid::Uuid::nil());

    fn free(budget: &Budget) -> Amount {
        budget.free(&budget.lock())
    }

    fn has_room(budget: &Budget, source: Source) -> bool {
        budget.wait_for_room(source, Duration::ZERO)
    }

    #[test]
    fn room_comes_back_with_the_permit() {
        let budget = Budget::new(Amount { count: 4, bytes: 100 });
        let first = budget.take(EVENTS, TENANT, 10);
        assert!(has_room(&budget, EVENTS));
        let second = budget.take(EVENTS, TENANT, 95);
        assert_eq!(free(&budget), Amount { count: 2, bytes: 0 });
        assert!(!has_room(&budget, EVENTS));
        drop(second);
        assert!(has_room(&budget, EVENTS));
        drop(first);
        assert_eq!(free(&budget), Amount { count: 4, bytes: 100 });
    }

    #[test]
    fn no_source_uses_up_what_is_kept_for_the_others() {
        const LIMIT: usize = 1_000;
        for greedy in Source::ALL {
            let budget = Budget::new(Amount { count: LIMIT, bytes: usize::MAX / 1_000 });
            let mut held = Vec::new();
            while has_room(&budget, greedy) {
                held.push(budget.take(greedy, TENANT, 1));
            }
            let kept: usize = Source::ALL
                .iter()
                .filter(|&&other| other != greedy)
                .map(|other| other.percentage() * LIMIT / 100)
                .sum();
            assert_eq!(held.len(), LIMIT - kept, "{greedy:?}");
            for other in Source::ALL.into_iter().filter(|&other| other != greedy) {
                for _ in 0..other.percentage() * LIMIT / 100 {
                    assert!(has_room(&budget, other), "{other:?} beside {greedy:?}");
                    held.push(budget.take(other, TENANT, 1));
                }
            }
            // Everything is taken, and nothing beyond it.
            assert_eq!(free(&budget).count, 0);
            assert!(Source::ALL.into_iter().all(|source| !has_room(&budget, source)));
        }
    }

    #[test]
    fn a_source_alone_in_the_smallest_budget_has_room() {
        let budget = Budget::new(Amount { count: 16, bytes: 1024 * 1024 });
        for source in Source::ALL {
            assert!(has_room(&budget, source));
        }
    }

    #[test]
    fn a_tenant_leaves_half_of_the_budget_to_the_others() {
        let budget = Budget::new(Amount { count: 100, bytes: 1_000_000 });
        let other = TenantId(uuid::Uuid::max());
        let mut held = Vec::new();
        while budget.free_for(TENANT).count > 0 {
            held.push(budget.take(EVENTS, TENANT, 1));
        }
        assert_eq!(held.len(), 51);
        assert_eq!(budget.free_for(other).count, 49);
        held.push(budget.take(EVENTS, TENANT, 600_000));
        assert_eq!((budget.free_for(TENANT).bytes, budget.free_for(other).bytes), (0, 399_949));
        held.clear();
        assert_eq!(budget.free_for(TENANT), Amount { count: 100, bytes: 1_000_000 });
        assert!(budget.lock().tenants.is_empty());
    }

    #[test]
    fn the_parts_of_a_batch_come_back_together() {
        let budget = Budget::new(Amount { count: 10, bytes: 100 });
        let mut first = budget.take(EVENTS, TENANT, 10);
        first.join(budget.take(EVENTS, TENANT, 20));
        first.join(budget.take(EVENTS, TENANT, 30));
        assert_eq!(free(&budget), Amount { count: 7, bytes: 40 });
        drop(first);
        assert_eq!(free(&budget), Amount { count: 10, bytes: 100 });
        assert!(budget.lock().tenants.is_empty());
    }

    #[test]
    fn a_waiting_thread_is_woken() {
        let budget = Budget::new(Amount { count: 3, bytes: 100 });
        let permit = budget.take(EVENTS, TENANT, 1);
        let waiting = Arc::clone(&budget);
        let thread = std::thread::spawn(move || waiting.wait_for_room(EVENTS, Duration::from_secs(30)));
        drop(permit);
        assert!(thread.join().unwrap());
    }
}
