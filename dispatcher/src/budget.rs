//! The memory that deliveries may hold in this process, by count and by bytes.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// The budget of all deliveries from intake to the acknowledgement of their outcome.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: Amount,
    used: Mutex<Amount>,
    freed: Condvar,
}

/// Deliveries and the bytes of their events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    /// Number of deliveries.
    pub(crate) count: usize,
    /// Bytes of their events.
    pub(crate) bytes: usize,
}

impl Budget {
    /// An unused budget.
    pub(crate) fn new(limit: Amount) -> Arc<Self> {
        Arc::new(Self { limit, used: Mutex::default(), freed: Condvar::new() })
    }

    /// Takes one delivery's part, beyond the limit if need be: a record is taken whole, however many subscriptions match, and
    /// [`Budget::wait_for_room`] keeps the next one out.
    pub(crate) fn take(self: &Arc<Self>, bytes: usize) -> Permit {
        let mut used = self.lock();
        used.count += 1;
        used.bytes += bytes;
        Permit { budget: Arc::clone(self), bytes }
    }

    /// What is not taken.
    pub(crate) fn free(&self) -> Amount {
        let used = *self.lock();
        Amount {
            count: self.limit.count.saturating_sub(used.count),
            bytes: self.limit.bytes.saturating_sub(used.bytes),
        }
    }

    /// Whether there is room for another record; waits for it up to `patience`. Blocks the thread.
    pub(crate) fn wait_for_room(&self, patience: Duration) -> bool {
        let is_full = |used: &mut Amount| used.count >= self.limit.count || used.bytes >= self.limit.bytes;
        let (mut used, _) = self
            .freed
            .wait_timeout_while(self.lock(), patience, is_full)
            .unwrap_or_else(PoisonError::into_inner);
        !is_full(&mut used)
    }

    /// Every critical section is plain arithmetic: a panic elsewhere cannot leave it half done.
    fn lock(&self) -> MutexGuard<'_, Amount> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One delivery's part of the budget, given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut used = self.budget.lock();
        let was_full = used.count >= self.budget.limit.count || used.bytes >= self.budget.limit.bytes;
        used.count -= 1;
        used.bytes -= self.bytes;
        drop(used);
        if was_full {
            self.budget.freed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_comes_back_with_the_permit() {
        let budget = Budget::new(Amount { count: 2, bytes: 100 });
        let first = budget.take(10);
        assert!(budget.wait_for_room(Duration::ZERO));
        let second = budget.take(95);
        assert_eq!(budget.free(), Amount { count: 0, bytes: 0 });
        assert!(!budget.wait_for_room(Duration::ZERO));
        drop(second);
        assert!(budget.wait_for_room(Duration::ZERO));
        drop(first);
        assert_eq!(budget.free(), Amount { count: 2, bytes: 100 });
    }

    #[test]
    fn a_waiting_thread_is_woken() {
        let budget = Budget::new(Amount { count: 1, bytes: 100 });
        let permit = budget.take(1);
        let waiting = Arc::clone(&budget);
        let thread = std::thread::spawn(move || waiting.wait_for_room(Duration::from_secs(30)));
        drop(permit);
        assert!(thread.join().unwrap());
    }
}
